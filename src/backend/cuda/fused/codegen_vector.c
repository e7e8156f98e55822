// The pieces that kernels of fused nodes are made of: parameters, positions, loads, elements, stores. See codegen_fused.h.
#include <stdarg.h>
#include "backend/cuda/fused/codegen_expr.h"
#include "backend/cuda/fused/codegen_fused.h"

// Loads and stores of V elements in as few accesses as there can be; elements stay packed as they were in memory until they are
// used.
static const char vector_prelude[] =
    "struct GxDiv { u32 d, m, s, z; };  // n / d is (mulhi(n, m) + n) >> s for n < 2^31\n"
    "GPU_FN u32 gx_quot(u32 n, GxDiv d) { return ((u32)(((u64)n * d.m) >> 32) + n) >> d.s; }\n"
    "template <class T, int V> struct GxVec { u32 w[(sizeof(T) * V + 3) / 4]; };\n"
    "template <class T, int V> struct GxElems { T at[V]; };\n"
    "#if defined(GPU_EMULATE)\n"
    "template <int N> GPU_FN void gx_words(u32 *w, const void *p) { w[0] = 0, memcpy(w, p, N); }\n"
    "template <int N> GPU_FN void gx_put_words(void *p, const u32 *w) { memcpy(p, w, N); }\n"
    "GPU_FN u32 gx_pack_bf16(float lo, float hi) { return to_bf16(lo).bits | (u32)to_bf16(hi).bits << 16; }\n"
    "template <int G> GPU_FN float gx_group_sum(float v, int &) { return v; }\n"
    "template <int G> GPU_FN float gx_group_max(float v, int &) { return v; }\n"
    "#else\n"
    "template <int N> GPU_FN void gx_words(u32 *w, const void *p) {\n"
    "    if constexpr (N >= 16) {\n"
    "        GPU_UNROLL for (int i = 0; i < N / 16; i++) {\n"
    "            uint4 q = ((const uint4 *)p)[i];\n"
    "            w[4 * i] = q.x, w[4 * i + 1] = q.y, w[4 * i + 2] = q.z, w[4 * i + 3] = q.w;\n"
    "        }\n"
    "    } else if constexpr (N == 8) {\n"
    "        uint2 q = *(const uint2 *)p;\n"
    "        w[0] = q.x, w[1] = q.y;\n"
    "    } else if constexpr (N == 4) w[0] = *(const u32 *)p;\n"
    "    else if constexpr (N == 2) w[0] = *(const u16 *)p;\n"
    "    else w[0] = *(const u8 *)p;\n"
    "}\n"
    "template <int N> GPU_FN void gx_put_words(void *p, const u32 *w) {\n"
    "    if constexpr (N >= 16) {\n"
    "        GPU_UNROLL for (int i = 0; i < N / 16; i++)\n"
    "            ((uint4 *)p)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);\n"
    "    } else if constexpr (N == 8) *(uint2 *)p = make_uint2(w[0], w[1]);\n"
    "    else if constexpr (N == 4) *(u32 *)p = w[0];\n"
    "    else if constexpr (N == 2) *(u16 *)p = (u16)w[0];\n"
    "    else *(u8 *)p = (u8)w[0];\n"
    "}\n"
    "GPU_FN u32 gx_pack_bf16(float lo, float hi) {\n"
    "    u32 r;\n"
    "    asm(\"cvt.rn.bf16x2.f32 %0, %1, %2;\" : \"=r\"(r) : \"f\"(hi), \"f\"(lo));\n"
    "    return r;\n"
    "}\n"
    // One barrier is enough: `turn` alternates, and whoever writes to an array has passed the barrier of the reduction between,
    // before which all had read it.
    "template <int G> GPU_FN float gx_group_sum(float v, int &turn) {\n"
    "    if constexpr (G > 32) {\n"
    "        __shared__ __align__(16) float part[2][G / 32];\n"
    "        v = gpu_warp_sum(v);\n"
    "        turn ^= 1;\n"
    "        if (threadIdx.x % 32 == 0) part[turn][threadIdx.x / 32] = v;\n"
    "        __syncthreads();\n"
    "        v = 0;\n"
    "        GPU_UNROLL for (int i = 0; i < G / 32; i++) v += part[turn][i];\n"
    "        return v;\n"
    "    }\n"
    "    GPU_UNROLL for (int m = G / 2; m > 0; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);\n"
    "    return v;\n"
    "}\n"
    "template <int G> GPU_FN float gx_group_max(float v, int &turn) {\n"
    "    if constexpr (G > 32) {\n"
    "        __shared__ __align__(16) float part[2][G / 32];\n"
    "        GPU_UNROLL for (int m = 16; m > 0; m /= 2) v = gx_larger(v, __shfl_xor_sync(0xffffffffu, v, m));\n"
    "        turn ^= 1;\n"
    "        if (threadIdx.x % 32 == 0) part[turn][threadIdx.x / 32] = v;\n"
    "        __syncthreads();\n"
    "        v = part[turn][0];\n"
    "        GPU_UNROLL for (int i = 1; i < G / 32; i++) v = gx_larger(v, part[turn][i]);\n"
    "        return v;\n"
    "    }\n"
    "    GPU_UNROLL for (int m = G / 2; m > 0; m /= 2) v = gx_larger(v, __shfl_xor_sync(0xffffffffu, v, m));\n"
    "    return v;\n"
    "}\n"
    "#endif\n"
    "template <class T, int V> GPU_FN void gx_load(GxVec<T, V> &x, const T *p) { gx_words<sizeof(T) * V>(x.w, p); }\n"
    "template <class T, int V> GPU_FN void gx_clear(GxVec<T, V> &x) { GPU_UNROLL for (u32 &w : x.w) w = 0; }\n"
    "GPU_FN float gx_value(float x) { return x; }\n"
    "GPU_FN float gx_value(bf16 x) { return to_float(x); }\n"
    "GPU_FN i64 gx_value(i64 x) { return x; }\n"
    "GPU_FN bool gx_value(u8 x) { return x != 0; }\n"
    "template <int V> GPU_FN float gx_get(const GxVec<float, V> &x, int e) { return gpu_bits_float(x.w[e]); }\n"
    "template <int V> GPU_FN float gx_get(const GxVec<bf16, V> &x, int e) {\n"
    "    return gpu_bits_float(e & 1 ? x.w[e / 2] & 0xffff0000u : x.w[e / 2] << 16);\n"
    "}\n"
    "template <int V> GPU_FN i64 gx_get(const GxVec<i64, V> &x, int e) { return (i64)(x.w[2 * e] | (u64)x.w[2 * e + 1] << 32); "
    "}\n"
    "template <int V> GPU_FN bool gx_get(const GxVec<u8, V> &x, int e) { return ((x.w[e / 4] >> (e % 4 * 8)) & 255) != 0; }\n"
    "template <class T, int V> GPU_FN auto gx_get(const GxElems<T, V> &x, int e) { return gx_value(x.at[e]); }\n"
    "template <int V> GPU_FN void gx_store(float *p, const float *y) {\n"
    "    u32 w[V];\n"
    "    GPU_UNROLL for (int e = 0; e < V; e++) w[e] = gpu_float_bits(y[e]);\n"
    "    gx_put_words<4 * V>(p, w);\n"
    "}\n"
    "template <int V> GPU_FN void gx_store(bf16 *p, const float *y) {\n"
    "    if constexpr (V == 1) *p = to_bf16(y[0]);\n"
    "    else {\n"
    "        u32 w[V / 2];\n"
    "        GPU_UNROLL for (int e = 0; e < V / 2; e++) w[e] = gx_pack_bf16(y[2 * e], y[2 * e + 1]);\n"
    "        gx_put_words<2 * V>(p, w);\n"
    "    }\n"
    "}\n"
    "template <int V> GPU_FN void gx_store(i64 *p, const i64 *y) {\n"
    "    u32 w[2 * V];\n"
    "    GPU_UNROLL for (int e = 0; e < V; e++) w[2 * e] = (u32)(u64)y[e], w[2 * e + 1] = (u32)((u64)y[e] >> 32);\n"
    "    gx_put_words<8 * V>(p, w);\n"
    "}\n"
    "template <int V> GPU_FN void gx_store(u8 *p, const bool *y) {\n"
    "    u32 w[(V + 3) / 4];\n"
    "    GPU_UNROLL for (int e = 0; e < V; e++) w[e / 4] = (e % 4 ? w[e / 4] : 0u) | (u32)y[e] << (e % 4 * 8);\n"
    "    gx_put_words<V>(p, w);\n"
    "}\n"
    "struct GxError { int code, node; i64 value, limit; };  // DeviceError\n";

// ---- text and parameters ------------------------------------------------------------------------------------------------

void gen_line(Gen *g, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    CHECK(n >= 0 && n < (int)sizeof text, "a line of generated code is too long: %s", text);
    str_add(&g->body, text);
    str_add(&g->body, "\n");
}

// Every member is a multiple of 8 bytes, so that the struct has no holes.
void gen_slot(Gen *g, SlotKind kind, int64_t value, const char *type, const char *fmt, ...) {
    char name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    str_printf(&g->fields, "    %s%s;\n", type, name);
    vec_push(&g->slots, ((Slot){kind, value}));
}

void gen_launch(Gen *g, const char *name, int64_t blocks, int threads) {
    CHECK(g->plan->nlaunch < FUSED_MAX_LAUNCHES, "too many launches");
    FusedLaunch *l = &g->plan->launch[g->plan->nlaunch++];
    snprintf(l->name, sizeof l->name, "%s", name);
    l->blocks = blocks, l->threads = threads;
}

void gen_operands(Gen *g) {
    const FusedSpace *s = g->s;
    for (int i = 0; i < s->nin; i++) {
        const Access *x = &s->in[i];
        char type[32];
        snprintf(type, sizeof type, "const %s *", expr_memory_type(x->dtype));
        gen_slot(g, SLOT_IN, i, type, "i%d", i);
        if (x->base) gen_slot(g, SLOT_VALUE, x->base, "i64 ", "i%db", i);
        for (int k = 0; k < s->ndim; k++)
            if (x->stride[k] && !(x->stride[k] == 1 && k == s->ndim - 1))
                gen_slot(g, SLOT_VALUE, x->stride[k], "i64 ", "i%ds%d", i, k);
        for (int k = 0; k < x->nwin; k++) {
            gen_slot(g, SLOT_VALUE, x->win[k].lo, "i64 ", "i%dlo%d", i, k);
            gen_slot(g, SLOT_VALUE, x->win[k].hi, "i64 ", "i%dhi%d", i, k);
        }
    }
    for (int j = 0; j < s->nout; j++) {
        char type[32];
        snprintf(type, sizeof type, "%s *", expr_memory_type(s->out[j].dtype));
        if (s->out_kind[j] != OUT_COL) gen_slot(g, SLOT_OUT, j, type, "o%d", j);
    }
    for (int k = 0; k < s->ndim; k++) {
        int64_t n = max_i64(1, k == s->ndim - 1 ? s->dim[k] / g->v : k == g->many_dim ? s->dim[k] / g->many : s->dim[k]);
        if (g->wide) gen_slot(g, SLOT_VALUE, n, "i64 ", "d%d", k);
        else gen_slot(g, SLOT_DIV, n, "GxDiv ", "d%d", k);
    }
    bool divides = false;
    for (int i = 0; i < s->p->ninstr; i++) {
        int op = s->p->instr[i].code - PROG_OP;
        divides = divides || ((op == OP_FLOORDIV || op == OP_MOD) && s->p->instr[i].dtype == DT_I64);
    }
    if (divides) {
        gen_slot(g, SLOT_ERROR, 0, "GxError *", "error");
        gen_slot(g, SLOT_NODE, 0, "i64 ", "node");
    }
}

static bool gen_divides(const Gen *g) { return strstr(str_text(&g->fields), "GxError *error") != NULL; }

void gen_open_kernel(Gen *g, const char *name, const char *bounds) {
    gen_line(g, "GPU_KERNEL(%s, FusedParams, %s) {", name, bounds);
    if (gen_divides(g)) gen_line(g, "int zero = 0;");
}

void gen_close_kernel(Gen *g) {
    if (gen_divides(g)) gen_line(g, "    if (zero && gpu_atomic_cas(&p.error->code, 0, 2) == 0) p.error->node = (int)p.node;");
    gen_line(g, "}");
}

// ---- vectors ------------------------------------------------------------------------------------------------------------

int gen_vector_size(const FusedSpace *s) {
    int v = 4;
    for (int i = 0; i < s->nin + s->nout; i++) {
        const Access *x = i < s->nin ? &s->in[i] : &s->out[i - s->nin];
        if (dtype_nbytes(x->dtype) <= 2 && access_varies(s, x)) v = 8;
    }
    while (s->dim[s->ndim - 1] % v) v /= 2;
    return v;
}

static bool varies_along_last(const FusedSpace *s, const Access *x) {
    for (int k = 0; k < x->nwin; k++)
        if (x->win[k].dim == s->ndim - 1) return true;
    return x->stride[s->ndim - 1] != 0;
}

InputClass gen_class(const Gen *g, int i) {
    const Access *x = &g->s->in[i];
    if (!varies_along_last(g->s, x)) return INPUT_SPLAT;
    return access_in_vectors(g->s, x, g->v) ? INPUT_VECTOR : INPUT_ELEMENTS;
}

int gen_words(const Gen *g, int i) {
    int size = dtype_nbytes(g->s->in[i].dtype), word = size < 4 ? 1 : size / 4;
    InputClass c = gen_class(g, i);
    return c == INPUT_SPLAT ? word : c == INPUT_VECTOR ? (size * g->v + 3) / 4 : word * g->v;
}

void gen_positions(Gen *g, const char *from, int first, int last, int unit) {
    const char *t = g->wide ? "i64" : "u32";
    if (first > last) return;
    gen_line(g, "%s h%d = (%s)%s;", t, last, t, from);
    for (int k = last; k >= first; k--) {
        if (g->along && k == g->many_dim) {  // the kernel's own loop
            if (k > first) gen_line(g, "const %s h%d = h%d;", t, k - 1, k);
            continue;
        }
        char scale[24] = "", name[16] = "many0";
        if (k != g->many_dim) snprintf(name, sizeof name, "q%d", k);
        if (unit > 1 && k == last) snprintf(scale, sizeof scale, " * %d", unit);
        if (k == g->many_dim) snprintf(scale, sizeof scale, " * %d", g->many);
        if (k == first) {
            gen_line(g, "const i64 %s = (i64)h%d%s;", name, k, scale);
        } else if (g->wide) {
            gen_line(g, "const i64 h%d = h%d / p.d%d, %s = (h%d - h%d * p.d%d)%s;", k - 1, k, k, name, k, k - 1, k, scale);
        } else {
            gen_line(g, "const u32 h%d = gx_quot(h%d, p.d%d);", k - 1, k, k);
            gen_line(g, "const i64 %s = (i64)(h%d - h%d * p.d%d.d)%s;", name, k, k - 1, k, scale);
        }
    }
}

static void stride_term(const Gen *g, Str *out, int i, int k, const char *position) {
    int64_t stride = g->s->in[i].stride[k];
    if (stride == 0) return;
    if (stride == 1 && k == g->s->ndim - 1) str_printf(out, " + %s", position);
    else str_printf(out, " + %s * p.i%ds%d", position, i, k);
}

static void window_terms(const Gen *g, Str *out, int i, int first, int last, const char *add_to_last) {
    const Access *x = &g->s->in[i];
    for (int k = 0; k < x->nwin; k++) {
        int dim = x->win[k].dim;
        if (dim < first || dim > last) continue;
        const char *plus = dim == g->s->ndim - 1 ? add_to_last : "";
        str_printf(out, "%sq%d%s >= p.i%dlo%d && q%d%s < p.i%dhi%d", out->len ? " && " : "", dim, plus, i, k, dim, plus, i, k);
    }
}

void gen_outer_offset(Gen *g, int i, int ndims) {
    Str offset = {0}, inside = {0};
    if (g->s->in[i].base) str_printf(&offset, "p.i%db", i);
    else str_add(&offset, "(i64)0");
    for (int k = 0; k < ndims; k++) {
        char q[16];
        snprintf(q, sizeof q, "q%d", k);
        stride_term(g, &offset, i, k, q);
    }
    window_terms(g, &inside, i, 0, ndims - 1, "");
    gen_line(g, "const i64 f%d = %s;", i, offset.data);
    if (inside.len) gen_line(g, "const bool w%d = %s;", i, inside.data);
    str_free(&offset);
    str_free(&inside);
}

static bool has_outer_window(const Gen *g, int i, int ndims) {
    const Access *x = &g->s->in[i];
    for (int k = 0; k < x->nwin; k++)
        if (x->win[k].dim < ndims) return true;
    return false;
}

void gen_declare_input(Gen *g, int i, const char *array) {
    const char *t = expr_memory_type(g->s->in[i].dtype);
    InputClass c = gen_class(g, i);
    char x = g->next ? 'n' : 'x';
    if (c == INPUT_SPLAT) gen_line(g, "%s %c%d%s;", t, x, i, array);
    else gen_line(g, "%s<%s, %d> %c%d%s;", c == INPUT_VECTOR ? "GxVec" : "GxElems", t, g->v, x, i, array);
}

static const char *input_name(const Gen *g, int i, char *out, size_t n) {
    snprintf(out, n, "%c%d%s", g->next ? 'n' : 'x', i, g->cached[i] ? "[k]" : "");
    return out;
}

void gen_load_input(Gen *g, int i, int ndims) {
    const FusedSpace *s = g->s;
    int last = s->ndim - 1;
    InputClass c = gen_class(g, i);
    Str offset = {0}, inside = {0};
    str_printf(&offset, "f%d", i);
    for (int k = ndims; k <= last; k++) {
        char q[24];
        snprintf(q, sizeof q, k == last && c == INPUT_ELEMENTS ? "(q%d + e)" : "q%d", k);
        stride_term(g, &offset, i, k, q);
    }
    if (has_outer_window(g, i, ndims)) str_printf(&inside, "w%d", i);
    window_terms(g, &inside, i, ndims, last, c == INPUT_ELEMENTS ? " + e" : "");
    char x[32];
    const char *name = input_name(g, i, x, sizeof x), *t = expr_memory_type(s->in[i].dtype);
    if (c == INPUT_VECTOR) {
        if (inside.len)
            gen_line(g, "if (%s) gx_load(%s, p.i%d + (%s)); else gx_clear(%s);", inside.data, name, i, offset.data, name);
        else gen_line(g, "gx_load(%s, p.i%d + (%s));", name, i, offset.data);
    } else {
        const char *at = c == INPUT_ELEMENTS ? ".at[e]" : "";
        if (c == INPUT_ELEMENTS) gen_line(g, "GPU_UNROLL for (int e = 0; e < %d; e++)", g->v);
        if (inside.len) gen_line(g, "%s%s = %s ? p.i%d[%s] : %s();", name, at, inside.data, i, offset.data, t);
        else gen_line(g, "%s%s = p.i%d[%s];", name, at, i, offset.data);
    }
    str_free(&offset);
    str_free(&inside);
}

// ---- instructions -------------------------------------------------------------------------------------------------------

static void index_text(const Gen *g, Str *out, int node_dim, bool element) {
    int k = g->s->index_dim[node_dim];
    if (k < 0) str_add(out, "(i64)0");
    else if (k == g->s->ndim - 1 && element) str_printf(out, "q%d + e", k);
    else str_printf(out, "q%d", k);
}

void gen_instr(Gen *g, int i) {
    const FusedSpace *s = g->s;
    const Instr *x = &s->p->instr[i];
    Str value = {0};
    if (x->code == PROG_INPUT) {
        char name[32];
        input_name(g, x->a, name, sizeof name);
        str_printf(&value, gen_class(g, x->a) == INPUT_SPLAT ? "gx_value(%s)" : "gx_get(%s, e)", name);
    } else if (x->code == PROG_INDEX) {
        index_text(g, &value, x->a, !s->row_const[i]);
    } else if (gen_divides_by_row(g, i)) {
        str_printf(&value, "gx_div_by(v%d, d%d)", x->a, x->b);
    } else {
        char name[3][16];
        snprintf(name[0], sizeof name[0], "v%d", x->a), snprintf(name[1], sizeof name[1], "v%d", x->b);
        snprintf(name[2], sizeof name[2], "v%d", x->c);
        const char *const operand[3] = {name[0], name[1], name[2]};
        const char *type = expr_register_type(x->dtype);
        ExprOptions opt = {.fast = s->fast, .zero = gen_divides(g) ? "zero" : NULL};
        if (g->status == ST_OK && type) g->status = expr_instr(&value, s->p, i, operand, &opt, g->d);
        else if (g->status == ST_OK)
            g->status = diag_error(g->d, ST_UNSUPPORTED, "%s: values of %s", s->label, dtype_name(x->dtype));
    }
    const char *type = expr_register_type(x->dtype);
    str_printf(&g->body, "const %s v%d = %s;\n", type ? type : "float", i, str_text(&value));
    str_free(&value);
}

bool gen_divides_by_row(const Gen *g, int i) {
    const FusedSpace *s = g->s;
    const Instr *x = &s->p->instr[i];
    bool divides = x->code == PROG_OP + OP_DIV && x->dtype == DT_F32 && s->p->instr[x->a].dtype == DT_F32;
    return divides && s->row && s->fast && s->row_const[x->b] && !s->row_const[i];
}

void gen_row_input(Gen *g, int i) {
    int slot = g->s->p->instr[i].a;
    const char *type = expr_register_type(g->s->p->instr[i].dtype), *t = expr_memory_type(g->s->in[slot].dtype);
    if (g->next) gen_line(g, "m%d =", i);
    else gen_line(g, "const %s v%d =", type, i);
    if (has_outer_window(g, slot, fused_nouter(g->s))) gen_line(g, "    gx_value(w%d ? p.i%d[f%d] : %s());", slot, slot, slot, t);
    else gen_line(g, "    gx_value(p.i%d[f%d]);", slot, slot);
}

void gen_need(const FusedSpace *s, int i, bool stop, bool *need) {
    if (need[i]) return;
    need[i] = true;
    const Instr *x = &s->p->instr[i];
    if ((stop && s->row_const[i]) || (x->code < PROG_OP && !program_is_reduction(x->code))) return;
    const int32_t use[3] = {x->a, x->b, x->c};
    int n = x->code < PROG_OP ? 1 : program_op_arity(x->code - PROG_OP);
    for (int k = 0; k < n; k++) gen_need(s, use[k], stop, need);
}

// ---- all of it ----------------------------------------------------------------------------------------------------------

Status fused_plan(Arena *a, const FusedSpace *s, FusedPlan *plan, Diag *d) {
    *plan = (FusedPlan){0};
    Gen g = {.arena = a, .s = s, .plan = plan, .d = d, .v = gen_vector_size(s), .many_dim = -1};
    g.cached = ARENA_ARRAY(a, bool, s->nin + 1);
    Status st = s->row ? codegen_rows(&g) : codegen_flat(&g);
    if (st == ST_OK) st = g.status;
    size_t nbytes = 0;
    for (int64_t i = 0; i < g.slots.len; i++) nbytes += g.slots.data[i].kind == SLOT_DIV ? 16 : 8;
    if (st == ST_OK && nbytes > FUSED_MAX_PARAMS)
        st = diag_error(d, ST_UNSUPPORTED, "%s: %d operands need %zu bytes of parameters, a kernel takes %d: fuse fewer",
                        s->label, s->nin + s->nout, nbytes, FUSED_MAX_PARAMS);
    if (st == ST_OK) {
        plan->source = arena_printf(a, "#include \"gpu.h\"\n%s%sstruct FusedParams {\n%s};\n%s", expr_prelude_text,
                                    vector_prelude, str_text(&g.fields), str_text(&g.body));
        plan->nslot = (int)g.slots.len;
        plan->slot = arena_copy(a, g.slots.data, sizeof(Slot) * (size_t)g.slots.len);
    }
    str_free(&g.fields);
    str_free(&g.body);
    vec_free(&g.slots);
    return st;
}
