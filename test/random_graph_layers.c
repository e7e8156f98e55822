// The families of random steps: matrix products, experts, convolution, attention with random predicates.
#include "random_graph_inside.h"

// ---- products --------------------------------------------------------------------------------------------------------------

static ValueId dot(Gen *g, ValueId x, ValueId y, int nbatch, int ncontract, bool ta, bool tb) {
    return build_dot(&g->b, x, y, nbatch, ncontract, ta, tb);
}

// x times a matrix: its last (or first) dims contracted.
static Item times_param(Gen *g, Item x, Shape s) {
    int nbatch = s.ndim > 1 && chance(g, 20) ? 1 : 0, ncontract = chance(g, 80) || s.ndim - nbatch < 2 ? 1 : 2;
    bool ta = chance(g, 25), tb = chance(g, 50);
    Shape w = shape_of(nbatch, s.dim), free = SHAPE(draw_in(g, 1, 6));
    if (chance(g, 20)) free = SHAPE(draw_in(g, 1, 3), draw_in(g, 1, 3));
    if (chance(g, 10)) free = SHAPE0;
    const int64_t *contract = s.dim + (ta ? nbatch : s.ndim - ncontract);
    int64_t k = 1;
    for (int i = 0; i < free.ndim && tb; i++) w.dim[w.ndim++] = free.dim[i];
    for (int i = 0; i < ncontract; i++) k *= w.dim[w.ndim++] = contract[i];
    for (int i = 0; i < free.ndim && !tb; i++) w.dim[w.ndim++] = free.dim[i];
    Item y = make_param(g, w, 1 / sqrt((double)k));
    return (Item){dot(g, x.v, y.v, nbatch, ncontract, ta, tb), false, false, x.mag * sqrt((double)k)};
}

// Two values against each other, along a dim of both.
static void times_value(Gen *g, Item x, Shape s) {
    int nbatch = s.ndim > 1 ? (int)draw(g, s.ndim) : 0;
    if (nbatch >= s.ndim) nbatch = s.ndim - 1;
    int ncontract = 1 + (int)draw(g, s.ndim - nbatch);
    bool trans = chance(g, 40);  // contract the first dims after the batch instead of the last
    int64_t k = 1, out = 1;
    for (int i = nbatch; i < s.ndim; i++) {
        bool contracted = trans ? i < nbatch + ncontract : i >= s.ndim - ncontract;
        *(contracted ? &k : &out) *= s.dim[i];
    }
    for (int i = 0; i < nbatch; i++) out *= s.dim[i];
    if (out * (out / 2 + 1) > 16 * MAX_NUMEL || s.ndim + s.ndim - nbatch > 6) return;
    Item y = chance(g, 50) ? x : some_float(g, s, false);
    give(g, dot(g, x.v, y.v, nbatch, ncontract, trans, !trans), false, x.input && y.input, x.mag * y.mag * (double)k);
}

void add_dot(Gen *g) {
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    if (!s.ndim || s.ndim > 5) return;
    if (chance(g, 60)) {
        Item y = times_param(g, x, s);
        give(g, y.v, false, false, y.mag);
    } else {
        times_value(g, x, s);
    }
}

void add_expert(Gen *g) {
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    if (s.ndim < 2) return;
    int64_t k = s.dim[s.ndim - 1], n = shape_numel(&s) / k, experts = draw_in(g, 1, 4), width = draw_in(g, 1, 5);
    bool trans = chance(g, 50);
    Item w = make_param(g, trans ? SHAPE(experts, width, k) : SHAPE(experts, k, width), 1 / sqrt((double)k));
    ValueId rows = build_reshape(&g->b, x.v, SHAPE(n, k));
    ValueId at = some_index(g, SHAPE(n), experts + draw(g, 2));  // one past the last: a row without an expert
    ValueId y = build(&g->b, OP_EXPERT_MATMUL, 3, (ValueId[]){rows, at, w.v}, 1, (Attr[]){attr_i(ATTR_TRANS_W, trans)});
    give(g, y, false, false, x.mag * sqrt((double)k));
}

void add_conv(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    if (s.ndim != 3) return;
    bool swap = chance(g, 60);  // [B, S, D] programs convolve along S
    ValueId v = swap ? build_transpose(b, x.v, 1, 2) : x.v;
    s = shape_at(g, v);
    int64_t groups = chance(g, 30) ? s.dim[1] : draw_in(g, 1, 3), kernel = draw_in(g, 1, 4), dilation = draw_in(g, 1, 2);
    while (s.dim[1] % groups) groups--;
    int64_t reach = dilation * (kernel - 1), lo = chance(g, 50) ? reach : draw(g, 4), hi = chance(g, 50) ? 0 : draw(g, 4);
    if (s.dim[2] + lo + hi <= reach) return;
    int64_t width = groups * draw_in(g, 1, 2);
    Item w = make_param(g, SHAPE(width, s.dim[1] / groups, kernel), 0.5);
    Attr a[] = {attr_i(ATTR_STRIDE, chance(g, 70) ? 1 : 2), attr_i(ATTR_DILATION, dilation), attr_i(ATTR_GROUPS, groups),
                attr_i(ATTR_LO, lo), attr_i(ATTR_HI, hi)};
    ValueId y = build(b, OP_CONV1D, 2, (ValueId[]){v, w.v}, 5, a);
    give(g, swap ? build_transpose(b, y, 1, 2) : y, false, false, x.mag * 0.5 * (double)(kernel * s.dim[1] / groups));
}

// ---- attention -------------------------------------------------------------------------------------------------------------

enum { MAX_VEC = 4, MAX_CODE = 64 };
typedef struct Mask {
    Gen *g;
    Instr code[MAX_CODE];
    int n;
    int nvec;
    char role[MAX_VEC];
    ValueId vec[MAX_VEC];
    int64_t batch, heads, sq, sk;
} Mask;

static int emit(Mask *m, int code, DType t, int a, int b, double imm) {
    CHECK(m->n < MAX_CODE, "long mask");
    m->code[m->n] = (Instr){.code = code, .dtype = t, .a = a, .b = b, .c = -1, .imm = imm};
    return m->n++;
}

static int leaf(Mask *m, int code) { return emit(m, code, DT_I64, -1, -1, 0); }
static int number(Mask *m, double v) { return emit(m, PROG_CONST, DT_I64, -1, -1, v); }
static int op2(Mask *m, OpKind op, DType t, int a, int b) { return emit(m, PROG_OP + (int)op, t, a, b, 0); }

// A vector of integers, bools or floats by query or by key; -1 when there are enough. Biases have no gradient: made from inputs.
static int vector(Mask *m, char role, DType t) {
    Gen *g = m->g;
    if (m->nvec == MAX_VEC) return -1;
    int64_t len = role == 'q' ? m->sq : m->sk;
    Shape s = SHAPE(chance(g, 50) ? 1 : m->batch, chance(g, 70) ? 1 : m->heads, chance(g, 85) ? len : 1);
    ValueId v = some_index(g, s, t == DT_BOOL ? 2 : 3);
    if (t == DT_BOOL) v = build_binary_scalar(&g->b, OP_EQ, v, 0);
    if (t == g->real) v = build_unary(&g->b, OP_SIN, build_cast(&g->b, v, g->real));
    m->vec[m->nvec] = v;
    m->role[m->nvec] = role;
    return emit(m, role == 'q' ? PROG_VEC_Q : PROG_VEC_K, t, m->nvec++, -1, 0);
}

static int atom(Mask *m) {
    Gen *g = m->g;
    int q = leaf(m, PROG_INDEX_Q), k = leaf(m, PROG_INDEX_K);
    switch (draw(g, 8)) {
    case 0:
    case 1: return op2(m, OP_LE, DT_BOOL, k, q);
    case 2: return op2(m, OP_LT, DT_BOOL, op2(m, OP_SUB, DT_I64, q, k), number(m, (double)draw_in(g, 1, 6)));
    case 3: return op2(m, OP_LT, DT_BOOL, k, number(m, (double)draw_in(g, 0, 6)));
    case 4: {
        int n = number(m, (double)draw_in(g, 2, 5));
        OpKind op = chance(g, 50) ? OP_MOD : OP_FLOORDIV;
        return op2(m, OP_EQ, DT_BOOL, op2(m, op, DT_I64, q, n), op2(m, op, DT_I64, k, n));
    }
    case 5: {
        int a = vector(m, 'q', DT_I64), b = a < 0 ? -1 : vector(m, 'k', DT_I64);
        return b < 0 ? op2(m, OP_GE, DT_BOOL, q, k) : op2(m, chance(g, 60) ? OP_EQ : OP_LE, DT_BOOL, b, a);
    }
    case 6: {
        int a = vector(m, chance(g, 50) ? 'q' : 'k', DT_BOOL);
        return a < 0 ? op2(m, OP_NE, DT_BOOL, q, k) : a;
    }
    default: {
        int far = op2(m, OP_MUL, DT_I64,
                      op2(m, OP_ADD, DT_I64, leaf(m, chance(g, 50) ? PROG_INDEX_H : PROG_INDEX_B), number(m, 1)), number(m, 2));
        return op2(m, OP_LE, DT_BOOL, op2(m, OP_SUB, DT_I64, q, k), far);
    }
    }
}

static int predicate(Mask *m, int depth) {
    Gen *g = m->g;
    if (!depth || chance(g, 40)) return atom(m);
    if (chance(g, 15)) return emit(m, PROG_OP + OP_NOT, DT_BOOL, predicate(m, depth - 1), -1, 0);
    static const OpKind ops[] = {OP_AND, OP_AND, OP_OR, OP_XOR};
    int a = predicate(m, depth - 1), b = predicate(m, depth - 1);
    return op2(m, ops[draw(g, 4)], DT_BOOL, a, b);
}

static int bias(Mask *m) {
    Gen *g = m->g;
    int v = vector(m, chance(g, 50) ? 'q' : 'k', g->real);
    int gap = op2(m, OP_SUB, DT_I64, leaf(m, PROG_INDEX_K), leaf(m, PROG_INDEX_Q));
    int far = emit(m, PROG_OP + OP_CAST, g->real, gap, -1, 0);
    int slope = op2(m, OP_MUL, g->real, far, emit(m, PROG_CONST, g->real, -1, -1, 0.05 + 0.1 * (double)draw(g, 3)));
    return v >= 0 && chance(g, 60) ? op2(m, OP_ADD, g->real, v, slope) : slope;
}

// Vectors that no instruction of the program reads are not allowed; all that were made are read, since dead code is kept.
static const Program *random_mask(Gen *g, Mask *m) {
    int32_t out[2] = {-1, -1};
    if (chance(g, 85)) out[0] = predicate(m, 2);
    if (chance(g, 35) && m->n < MAX_CODE - 12) out[1] = bias(m);
    if (out[0] < 0 && out[1] < 0) return NULL;
    Program *p = ARENA_NEW(g->a, Program);
    *p = (Program){.ninstr = m->n,
                   .instr = arena_copy(g->a, m->code, sizeof(Instr) * (size_t)m->n),
                   .nout = 2,
                   .out = arena_copy(g->a, out, sizeof out)};
    return p;
}

// x [B, S, C] through a matrix to [B, heads, S, channels].
static ValueId heads_of(Gen *g, Item x, int64_t heads, int64_t channels) {
    Builder *b = &g->b;
    Shape s = shape_at(g, x.v);
    Item w = make_param(g, SHAPE(s.dim[2], heads * channels), 1 / sqrt((double)s.dim[2]));
    ValueId y = build_reshape(b, dot(g, x.v, w.v, 0, 1, false, false), SHAPE(s.dim[0], s.dim[1], heads, channels));
    return build_transpose(b, y, 1, 2);
}

static ValueId attend(Gen *g, const ValueId *qkv, Mask *m) {
    Builder *b = &g->b;
    const Program *p = random_mask(g, m);
    ValueId in[3 + MAX_VEC] = {qkv[0], qkv[1], qkv[2]}, out[2];
    for (int i = 0; i < m->nvec && p; i++) in[3 + i] = m->vec[i];
    int64_t blind = (int64_t[]){0, 0, 2, 3}[draw(g, 4)];
    if (blind) g->out->smooth = false;
    Attr a[6] = {attr_f(ATTR_SCALE, 0.3 + 0.2 * (double)draw(g, 3)), attr_i(ATTR_MASKED_ROW, blind)};
    int n = 2;
    if (chance(g, 20)) a[n++] = attr_f(ATTR_SOFTCAP, 2);
    if (chance(g, 20)) {
        a[n++] = attr_f(ATTR_DROPOUT, 0.2);
        a[n++] = attr_i(ATTR_SEED, draw(g, 100));
    }
    if (p) a[n++] = attr_prog(ATTR_PROG, p);
    build_multi(b, OP_ATTENTION, 3 + (p ? m->nvec : 0), in, n, a, 2, out);
    return out[0];
}

// As imported: causal, no mask, or a mask of positions and documents that leaves every query something to see.
static ValueId attend_imported(Gen *g, const ValueId *qkv, const Mask *m) {
    Builder *b = &g->b;
    g->out->sdpa = true;
    ValueId in[4] = {qkv[0], qkv[1], qkv[2]};
    Attr a[] = {attr_f(ATTR_SCALE, 0.5), attr_i(ATTR_CAUSAL, draw(g, 2))};
    if (a[1].u.i) return build(b, OP_SDPA, 3, in, 2, a);
    if (chance(g, 30)) return build(b, OP_SDPA, 3, in, 1, a);
    ValueId q = build_iota(b, SHAPE(m->sq, 1), 0, 0, 1, DT_I64), k = build_iota(b, SHAPE(1, m->sk), 1, 0, 1, DT_I64);
    ValueId mask = build_binary(b, OP_LE, k, build_binary_scalar(b, OP_ADD, q, (double)draw(g, 3)));
    ValueId near = build_binary(b, OP_GT, k, build_binary_scalar(b, OP_SUB, q, (double)draw_in(g, 1, 5)));
    if (chance(g, 50)) mask = build_binary(b, OP_AND, mask, near);
    if (m->sq == m->sk && chance(g, 50)) {  // a query always sees itself
        ValueId doc = some_index(g, SHAPE(m->batch, m->sq), 3);
        ValueId same = build_binary(b, OP_EQ, build_reshape(b, doc, SHAPE(m->batch, 1, m->sq, 1)),
                                    build_reshape(b, doc, SHAPE(m->batch, 1, 1, m->sk)));
        mask = build_binary(b, OP_AND, mask, same);
    } else {
        mask = build_binary(b, OP_OR, mask, build_binary_scalar(b, OP_EQ, k, 0));
    }
    mask = build_broadcast(b, mask, SHAPE(m->batch, 1, m->sq, m->sk));
    if (chance(g, 30)) mask = build_where(b, mask, build_scalar(b, g->real, 0), build_scalar(b, g->real, -INFINITY));
    in[3] = mask;
    return build(b, OP_SDPA, 4, in, 1, a);
}

void add_attention(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g), y = x;
    Shape s = shape_at(g, x.v);
    if (s.ndim != 3) return;
    if (chance(g, 25)) {  // across to part of the positions, or to other values
        int64_t n = draw_in(g, 1, s.dim[1]);
        y.v = build_slice(b, x.v, 1, draw(g, s.dim[1] - n + 1), 1, n);
    } else if (chance(g, 25)) {
        y = some_float(g, s, false);
    }
    static const int64_t shared[] = {1, 1, 2, 3};
    int64_t group = shared[draw(g, 4)], kv = draw_in(g, 1, 3), channels = draw_in(g, 1, 4);
    ValueId qkv[3] = {heads_of(g, x, kv * group, channels), heads_of(g, y, kv, channels),
                      heads_of(g, y, kv, chance(g, 70) ? channels : draw_in(g, 1, 4))};
    Mask m = {.g = g, .batch = s.dim[0], .heads = kv * group, .sq = s.dim[1], .sk = shape_at(g, qkv[1]).dim[2]};
    ValueId o = chance(g, 30) ? attend_imported(g, qkv, &m) : attend(g, qkv, &m);
    if (b->status == ST_OK && chance(g, 70)) {
        Shape out = shape_at(g, o);
        o = build_reshape(b, build_transpose(b, o, 1, 2), SHAPE(out.dim[0], out.dim[2], out.dim[1] * out.dim[3]));
    }
    give(g, o, false, false, 2 * y.mag * sqrt((double)s.dim[2]));
}
