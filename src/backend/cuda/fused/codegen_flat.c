// Kernels of fused nodes without rows: every thread takes vectors along the last dim, several at once so that loads overlap.
// Where an input repeats along an earlier dim, the vectors that a thread takes at once lie along that dim, and the input is
// loaded for all of them once (rotary tables for several heads, a bias for several rows).
#include "backend/cuda/fused/codegen_expr.h"
#include "backend/cuda/fused/codegen_fused.h"

enum { FLAT_THREADS = 256, FLAT_MAX_BLOCKS = 132 * 32 };

typedef struct Flat {
    bool *need, *used;  // [ninstr], [nin]
    int unroll;
    int64_t steps;      // along the dim that inputs repeat along, turns that a thread takes with what it has loaded
} Flat;

static bool uses_position(const FusedSpace *s) {
    for (int i = 0; i < s->p->ninstr; i++)
        if (s->p->instr[i].code == PROG_INDEX) return true;
    return false;
}

static bool runs_along(const Access *x, int dim) {
    for (int k = 0; k < x->nwin; k++)
        if (x->win[k].dim == dim) return true;
    return x->stride[dim] != 0;
}

// Values of the elements of a vector, and the stores; `at`: the first element's flat index.
static void gen_elements(Gen *g, const Flat *f, const char *at) {
    const FusedSpace *s = g->s;
    for (int j = 0; j < s->nout; j++) gen_line(g, "%s y%d[%d];", expr_register_type(s->out[j].dtype), j, g->v);
    gen_line(g, "GPU_UNROLL for (int e = 0; e < %d; e++) {", g->v);
    for (int i = 0; i < s->p->ninstr; i++)
        if (f->need[i]) gen_instr(g, i);
    for (int j = 0; j < s->nout; j++) gen_line(g, "y%d[e] = v%d;", j, s->p->out[j]);
    gen_line(g, "}");
    for (int j = 0; j < s->nout; j++) gen_line(g, "gx_store<%d>(p.o%d + %s, y%d);", g->v, j, at, j);
}

static void gen_loads(Gen *g, const Flat *f, bool many) {
    int last = g->s->ndim - 1;
    for (int i = 0; i < g->s->nin; i++) {
        if (!f->used[i] || g->cached[i] != many) continue;
        gen_outer_offset(g, i, last);
        gen_load_input(g, i, last);
    }
}

// Vectors [from, n), `unroll` of them at once, one after the other in each thread's turns.
static void gen_loop(Gen *g, const Flat *f, const char *from, const char *n, int unroll) {
    const FusedSpace *s = g->s;
    char array[16], at[32];
    snprintf(array, sizeof array, "[%d]", unroll);
    snprintf(at, sizeof at, "t * %d", g->v);
    for (int i = 0; i < s->nin; i++) g->cached[i] = f->used[i];
    gen_line(g, "for (i64 t0 = %s + gpu_thread(); t0 < %s; t0 += %d * gpu_nthreads()) {", from, n, unroll);
    for (int i = 0; i < s->nin; i++)
        if (f->used[i]) gen_declare_input(g, i, array);
    for (int step = 0; step < 2; step++) {
        gen_line(g, "GPU_UNROLL for (int k = 0; k < %d; k++) {", unroll);
        gen_line(g, "const i64 t = t0 + k * gpu_nthreads();");
        gen_line(g, "if (t < %s) {", n);
        if (step == 0 || uses_position(s)) gen_positions(g, "t", 0, s->ndim - 1, g->v);
        if (step == 0) gen_loads(g, f, true);
        else gen_elements(g, f, at);
        gen_line(g, "}\n}");
    }
    gen_line(g, "}");
}

// ---- along a dim that an input repeats along ----------------------------------------------------------------------------

// The dim before the last along which most registers' worth of inputs repeats (that need be loaded as vectors); -1: none.
static int repeated_dim(const Gen *g, const Flat *f, int *many) {
    const FusedSpace *s = g->s;
    int best = -1, most = 0;
    for (int k = 0; k < s->ndim - 1; k++) {
        int words = 0;
        for (int i = 0; i < s->nin; i++)
            if (f->used[i] && gen_class(g, i) != INPUT_SPLAT && !runs_along(&s->in[i], k)) words += gen_words(g, i);
        if (words <= most || s->dim[k] % 2) continue;
        best = k, most = words;
        *many = s->dim[k] % 4 ? 2 : 4;
    }
    return best;
}

// Turns that a thread takes along many_dim. Large tables that repeat along it would come from L2, or from memory, again in each
// turn of its own: threads stay at a place of the other dims instead, and blocks beside each other share one, so that they read
// and write close together. Only where places fill the blocks.
static int64_t choose_steps(const Gen *g, const Flat *f, int64_t nvec) {
    const FusedSpace *s = g->s;
    if (nvec == 0) return 1;
    int64_t turns = s->dim[g->many_dim] / g->many, places = nvec / s->dim[g->many_dim], large = 0;
    for (int i = 0; i < s->nin; i++) {
        int64_t n = 1;
        if (!f->used[i] || runs_along(&s->in[i], g->many_dim)) continue;
        for (int k = 0; k < s->ndim; k++) n *= runs_along(&s->in[i], k) ? s->dim[k] : 1;
        large = max_i64(large, n);
    }
    if (large < fused_tuning.along_elements || (places % FLAT_THREADS && places < fused_tuning.along_places)) return 1;
    int64_t chunks = ceil_div(turns, max_i64(1, fused_tuning.along_steps));
    // With few blocks the last ones would leave much of the GPU idle.
    int64_t enough = ceil_div((int64_t)fused_tuning.sms * 16, ceil_div(places, FLAT_THREADS));
    return ceil_div(turns, min_i64(turns, max_i64(chunks, enough)));
}

static void open_turns(Gen *g, const Flat *f) {
    if (f->steps == 1) {
        gen_line(g, "for (i64 t = gpu_thread(); t < p.n; t += gpu_nthreads()) {");
        gen_positions(g, "t", 0, g->s->ndim - 1, g->v);
        return;
    }
    gen_line(g, "for (i64 block = gpu_block_x; block < p.blocks; block += gpu_grid_x) {");
    gen_line(g, "const i64 tile = block / p.chunks, from = (block - tile * p.chunks) * %lld;", (long long)(f->steps * g->many));
    gen_line(g, "const i64 to = from + %lld < p.extent ? from + %lld : p.extent, last = (tile + 1) * %d;",
             (long long)(f->steps * g->many), (long long)(f->steps * g->many), FLAT_THREADS);
    gen_line(g, "for (i64 t = tile * %d + gpu_thread_x; t < last && t < p.n; t += gpu_block_threads) {", FLAT_THREADS);
    gen_positions(g, "t", 0, g->s->ndim - 1, g->v);
    gen_line(g, "i64 many0 = from;");
}

static void gen_many(Gen *g, const Flat *f) {
    const FusedSpace *s = g->s;
    char array[16];
    Str at = {0};
    snprintf(array, sizeof array, "[%d]", g->many);
    for (int k = 0; k < s->ndim - 1; k++) {
        int64_t stride = 1;
        for (int n = k + 1; n < s->ndim; n++) stride *= s->dim[n];
        gen_slot(g, SLOT_VALUE, stride, "i64 ", "os%d", k);
        str_printf(&at, "q%d * p.os%d + ", k, k);
    }
    str_printf(&at, "q%d", s->ndim - 1);
    for (int i = 0; i < s->nin; i++) g->cached[i] = f->used[i] && runs_along(&s->in[i], g->many_dim);
    open_turns(g, f);
    for (int i = 0; i < s->nin; i++)
        if (f->used[i] && !g->cached[i]) gen_declare_input(g, i, "");
    gen_line(g, "{\nconst i64 q%d = many0;", g->many_dim);
    gen_loads(g, f, false);
    gen_line(g, "}");
    if (f->steps > 1) gen_line(g, "for (; many0 < to; many0 += %d) {", g->many);
    for (int i = 0; i < s->nin; i++)
        if (f->used[i] && g->cached[i]) gen_declare_input(g, i, array);
    for (int step = 0; step < 2; step++) {
        gen_line(g, "GPU_UNROLL for (int k = 0; k < %d; k++) {\nconst i64 q%d = many0 + k;", g->many, g->many_dim);
        if (step == 0) gen_loads(g, f, true);
        else gen_line(g, "const i64 at = %s;", at.data), gen_elements(g, f, "at");
        gen_line(g, "}");
    }
    gen_line(g, f->steps > 1 ? "}\n}\n}" : "}");
    str_free(&at);
}

// ---- the kernel ---------------------------------------------------------------------------------------------------------

static void find_needed(Gen *g, Flat *f) {
    const FusedSpace *s = g->s;
    int words = 0;
    f->need = ARENA_ARRAY(g->arena, bool, s->p->ninstr + 1), f->used = ARENA_ARRAY(g->arena, bool, s->nin + 1);
    for (int j = 0; j < s->nout; j++) gen_need(s, s->p->out[j], false, f->need);
    for (int i = 0; i < s->p->ninstr; i++)
        if (f->need[i] && s->p->instr[i].code == PROG_INPUT) f->used[s->p->instr[i].a] = true;
    for (int i = 0; i < s->nin; i++) words += f->used[i] ? gen_words(g, i) : 0;
    f->unroll = words <= 4 ? 4 : words <= 16 ? 2 : 1;
}

// One dim of uneven length is taken in vectors, then in single elements.
static bool choose_tail(Gen *g) {
    const FusedSpace *s = g->s;
    if (s->ndim > 1 || g->v >= 4) return false;
    g->v = 4;
    for (int i = 0; i < s->nin; i++)
        if (dtype_nbytes(s->in[i].dtype) <= 2 && access_varies(s, &s->in[i])) g->v = 8;
    return true;
}

Status codegen_flat(Gen *g) {
    Flat f;
    int64_t n = fused_nrows(g->s) * fused_ncols(g->s);
    bool tail = choose_tail(g);
    find_needed(g, &f);
    g->many_dim = repeated_dim(g, &f, &g->many);
    int64_t nvec = n / g->v, turns = g->many_dim >= 0 ? nvec / g->many : nvec, blocks = 0;
    f.steps = g->many_dim >= 0 ? choose_steps(g, &f, nvec) : 1;
    g->along = f.steps > 1;
    if (g->along) turns = nvec / g->s->dim[g->many_dim];
    g->wide = (tail ? n : nvec) >= INT32_MAX;
    gen_operands(g);
    gen_slot(g, SLOT_VALUE, turns, "i64 ", "n");
    if (g->along) {
        int64_t chunks = ceil_div(g->s->dim[g->many_dim], f.steps * g->many);
        blocks = ceil_div(turns, FLAT_THREADS) * chunks;
        gen_slot(g, SLOT_VALUE, blocks, "i64 ", "blocks");
        gen_slot(g, SLOT_VALUE, chunks, "i64 ", "chunks");
        gen_slot(g, SLOT_VALUE, g->s->dim[g->many_dim], "i64 ", "extent");
    }
    if (tail) gen_slot(g, SLOT_VALUE, n, "i64 ", "nelement");
    // What a thread has loaded of its next turn while it works on this one would cost a block of the three that fit.
    gen_line(g, "#define GX_BOUNDS %d%s", FLAT_THREADS, g->along ? ", 3" : "");
    gen_open_kernel(g, "fused", "GX_BOUNDS");
    if (g->many_dim >= 0) gen_many(g, &f);
    else gen_loop(g, &f, "(i64)0", "p.n", f.unroll);
    if (tail) {
        char from[40];
        snprintf(from, sizeof from, "p.n * %d", g->v);
        g->v = 1;
        gen_loop(g, &f, from, "p.nelement", 1);
    }
    gen_close_kernel(g);
    int64_t per_block = (int64_t)FLAT_THREADS * (g->many_dim >= 0 ? 1 : f.unroll);
    if (!g->along) blocks = min_i64(ceil_div(max_i64(turns, 1), per_block), FLAT_MAX_BLOCKS);
    gen_launch(g, "fused", min_i64(blocks, INT32_MAX), FLAT_THREADS);
    return ST_OK;
}
