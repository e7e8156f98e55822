// Kernels of fused nodes without rows: every thread takes vectors along the last dim, several at once so that loads overlap.
#include "backend/cuda/codegen_expr.h"
#include "backend/cuda/codegen_fused.h"

enum { FLAT_THREADS = 256, FLAT_MAX_BLOCKS = 132 * 32 };

static bool uses_position(const FusedSpace *s) {
    for (int i = 0; i < s->p->ninstr; i++)
        if (s->p->instr[i].code == PROG_INDEX) return true;
    return false;
}

// Values of the elements of a vector, and the stores; `at`: the first element's flat index.
static void gen_elements(Gen *g, const bool *need, const char *at) {
    const FusedSpace *s = g->s;
    for (int j = 0; j < s->nout; j++) gen_line(g, "%s y%d[%d];", expr_register_type(s->out[j].dtype), j, g->v);
    gen_line(g, "GPU_UNROLL for (int e = 0; e < %d; e++) {", g->v);
    for (int i = 0; i < s->p->ninstr; i++)
        if (need[i]) gen_instr(g, i);
    for (int j = 0; j < s->nout; j++) gen_line(g, "y%d[e] = v%d;", j, s->p->out[j]);
    gen_line(g, "}");
    for (int j = 0; j < s->nout; j++) gen_line(g, "gx_store<%d>(p.o%d + %s, y%d);", g->v, j, at, j);
}

static void gen_loads(Gen *g, const bool *used) {
    int last = g->s->ndim - 1;
    for (int i = 0; i < g->s->nin; i++) {
        if (!used[i]) continue;
        gen_outer_offset(g, i, last);
        gen_load_input(g, i, last);
    }
}

// Vectors [from, n), `unroll` of them at once.
static void gen_loop(Gen *g, const bool *need, const bool *used, const char *from, const char *n, int unroll) {
    const FusedSpace *s = g->s;
    char array[16], at[32];
    snprintf(array, sizeof array, "[%d]", unroll);
    snprintf(at, sizeof at, "t * %d", g->v);
    for (int i = 0; i < s->nin; i++) g->cached[i] = used[i];
    gen_line(g, "for (i64 t0 = %s + gpu_thread(); t0 < %s; t0 += %d * gpu_nthreads()) {", from, n, unroll);
    for (int i = 0; i < s->nin; i++)
        if (used[i]) gen_declare_input(g, i, array);
    for (int step = 0; step < 2; step++) {
        gen_line(g, "GPU_UNROLL for (int k = 0; k < %d; k++) {", unroll);
        gen_line(g, "const i64 t = t0 + k * gpu_nthreads();");
        gen_line(g, "if (t < %s) {", n);
        if (step == 0 || uses_position(s)) gen_positions(g, "t", 0, s->ndim - 1, g->v);
        if (step == 0) gen_loads(g, used);
        else gen_elements(g, need, at);
        gen_line(g, "}\n}");
    }
    gen_line(g, "}");
}

Status codegen_flat(Gen *g) {
    const FusedSpace *s = g->s;
    int64_t n = fused_nrows(s) * fused_ncols(s);
    bool tail = s->ndim == 1 && g->v < 4;  // one dim of uneven length: vectors, then single elements
    if (tail) {
        g->v = 4;
        for (int i = 0; i < s->nin; i++)
            if (dtype_nbytes(s->in[i].dtype) <= 2 && access_varies(s, &s->in[i])) g->v = 8;
    }
    int64_t nvec = n / g->v;
    g->wide = (tail ? n : nvec) >= INT32_MAX;
    gen_operands(g);
    gen_slot(g, SLOT_VALUE, nvec, "i64 ", "n");
    bool *need = ARENA_ARRAY(g->arena, bool, s->p->ninstr + 1), *used = ARENA_ARRAY(g->arena, bool, s->nin + 1);
    for (int j = 0; j < s->nout; j++) gen_need(s, s->p->out[j], false, need);
    int words = 0;
    for (int i = 0; i < s->p->ninstr; i++)
        if (need[i] && s->p->instr[i].code == PROG_INPUT) used[s->p->instr[i].a] = true;
    for (int i = 0; i < s->nin; i++) words += used[i] ? gen_words(g, i) : 0;
    int unroll = words <= 4 ? 4 : words <= 16 ? 2 : 1;
    gen_line(g, "GPU_KERNEL(fused, FusedParams, %d) {", FLAT_THREADS);
    gen_line(g, "int zero = 0;");
    gen_loop(g, need, used, "(i64)0", "p.n", unroll);
    if (tail) {
        gen_slot(g, SLOT_VALUE, n, "i64 ", "nelement");
        char from[40];
        snprintf(from, sizeof from, "p.n * %d", g->v);
        g->v = 1;
        gen_loop(g, need, used, from, "p.nelement", 1);
    }
    gen_line(g, "(void)zero;");
    gen_zero_check(g);
    gen_line(g, "}");
    int64_t blocks = ceil_div(max_i64(nvec, 1), (int64_t)FLAT_THREADS * unroll);
    gen_launch(g, "fused", min_i64(blocks, FLAT_MAX_BLOCKS), FLAT_THREADS);
    return ST_OK;
}
