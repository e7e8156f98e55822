#include "fused_case.h"
#include <math.h>
#include "base/random.h"
#include "exec/reference.h"
#include "ir/views.h"

// ---- random choices -----------------------------------------------------------------------------------------------------

typedef struct Dice {
    uint64_t key;
    int64_t n;
} Dice;
static double roll(Dice *d) { return random_at(d->key, d->n++); }
static int pick(Dice *d, int n) { return (int)(roll(d) * n); }
static bool chance(Dice *d, double p) { return roll(d) < p; }

static float round_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f != f) return f;
    u = (u + 0x7fffu + ((u >> 16) & 1)) & 0xffff0000u;
    memcpy(&f, &u, sizeof u);
    return f;
}

static double draw(Dice *d, DType t, bool specials) {
    if (t == DT_BOOL) return chance(d, 0.5);
    if (t == DT_I64) return pick(d, 9) - 4;
    if (specials && chance(d, 0.02)) return (double[]){NAN, INFINITY, -INFINITY, -0.0}[pick(d, 4)];
    if (chance(d, 0.1)) return pick(d, 17) * 0.25 - 2;  // equal values, whole numbers
    float f = (float)(3 * roll(d) - 1.5);
    return t == DT_BF16 ? round_bf16(f) : f;
}

// ---- programs -----------------------------------------------------------------------------------------------------------

int prog_leaf(ProgramBuilder *b, int code, DType t, int a, double imm) {
    vec_push(&b->instr, ((Instr){.code = code, .dtype = t, .a = a, .b = -1, .c = -1, .imm = imm}));
    return (int)b->instr.len - 1;
}

int prog_op(ProgramBuilder *b, OpKind op, DType t, int x, int y, int z) {
    vec_push(&b->instr, ((Instr){.code = PROG_OP + (int)op, .dtype = t, .a = x, .b = y, .c = z}));
    return (int)b->instr.len - 1;
}

const Program *prog_finish(ProgramBuilder *b) {
    Program *p = ARENA_NEW(b->arena, Program);
    *p = (Program){.ninstr = (int)b->instr.len, .nout = (int)b->out.len};
    p->instr = arena_copy(b->arena, b->instr.data, sizeof(Instr) * (size_t)b->instr.len);
    p->out = arena_copy(b->arena, b->out.data, sizeof(int32_t) * (size_t)b->out.len);
    vec_free(&b->instr);
    vec_free(&b->out);
    return p;
}

static int any_of(ProgramBuilder *b, Dice *d, DType t) {  // a recent instruction of that type, else a constant
    for (int tries = 0; tries < 12; tries++) {
        int i = (int)b->instr.len - 1 - pick(d, (int)min_i64(b->instr.len, 8));
        if (b->instr.data[i].dtype == t && b->instr.data[i].code != PROG_COL_SUM) return i;
    }
    static const double values[] = {0, 1, -1, 0.5, 2, 3, -0.75, 1e-5};
    double v = values[pick(d, 8)];
    return prog_leaf(b, PROG_CONST, t, -1, t == DT_F32 ? (double)(float)v : t == DT_BOOL ? v > 0 : floor(v));
}

static void random_float_op(ProgramBuilder *b, Dice *d) {
    static const OpKind unary[] = {OP_NEG,   OP_ABS,   OP_SIGN, OP_EXP,       OP_EXPM1,    OP_LOG,     OP_LOG1P,
                                   OP_SQRT,  OP_RSQRT, OP_SIN,  OP_COS,       OP_TANH,     OP_SIGMOID, OP_ERF,
                                   OP_FLOOR, OP_SILU,  OP_GELU, OP_GELU_TANH, OP_STOP_GRAD};
    static const OpKind binary[] = {OP_ADD, OP_SUB, OP_MUL, OP_ADD, OP_SUB,      OP_MUL,
                                    OP_DIV, OP_POW, OP_MAX, OP_MIN, OP_FLOORDIV, OP_MOD};
    int x = any_of(b, d, DT_F32), y = any_of(b, d, DT_F32);
    if (chance(d, 0.45)) prog_op(b, unary[pick(d, sizeof unary / sizeof *unary)], DT_F32, x, -1, -1);
    else if (chance(d, 0.85)) prog_op(b, binary[pick(d, sizeof binary / sizeof *binary)], DT_F32, x, y, -1);
    else prog_op(b, OP_WHERE, DT_F32, any_of(b, d, DT_BOOL), x, y);
}

static void random_other_op(ProgramBuilder *b, Dice *d) {
    static const OpKind compare[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE}, logic[] = {OP_AND, OP_OR, OP_XOR, OP_EQ, OP_NE};
    static const OpKind whole[] = {OP_ADD, OP_SUB, OP_MUL, OP_MAX, OP_MIN, OP_POW};
    static const DType types[] = {DT_F32, DT_I64, DT_BOOL};
    DType t = chance(d, 0.5) ? DT_F32 : DT_I64;
    int x = any_of(b, d, t), y = any_of(b, d, t), v;
    switch (pick(d, 8)) {
    case 0: prog_op(b, compare[pick(d, 6)], DT_BOOL, x, y, -1); break;
    case 1:
        x = any_of(b, d, DT_BOOL), y = any_of(b, d, DT_BOOL);
        prog_op(b, logic[pick(d, 5)], DT_BOOL, x, y, -1);
        break;
    case 2: prog_op(b, OP_NOT, DT_BOOL, any_of(b, d, DT_BOOL), -1, -1); break;
    case 3: {
        x = any_of(b, d, DT_I64);
        OpKind op = whole[pick(d, 6)];
        y = op == OP_POW || op == OP_MUL ? prog_leaf(b, PROG_CONST, DT_I64, -1, pick(d, 4)) : any_of(b, d, DT_I64);
        prog_op(b, op, DT_I64, x, y, -1);
        break;
    }
    case 4:
        x = any_of(b, d, DT_I64), y = prog_leaf(b, PROG_CONST, DT_I64, -1, (double[]){2, 3, -2, -1, 7}[pick(d, 5)]);
        if (chance(d, 0.4))
            v = prog_op(b, OP_ABS, DT_I64, any_of(b, d, DT_I64), -1, -1),
            y = prog_op(b, OP_ADD, DT_I64, v, prog_leaf(b, PROG_CONST, DT_I64, -1, 1), -1);
        prog_op(b, chance(d, 0.5) ? OP_FLOORDIV : OP_MOD, DT_I64, x, y, -1);
        break;
    case 5: prog_op(b, OP_WHERE, DT_I64, any_of(b, d, DT_BOOL), any_of(b, d, DT_I64), any_of(b, d, DT_I64)); break;
    case 6: prog_op(b, OP_CAST, DT_F32, prog_op(b, OP_CAST, DT_BF16, any_of(b, d, DT_F32), -1, -1), -1, -1); break;
    default: prog_op(b, OP_CAST, types[pick(d, 3)], any_of(b, d, types[pick(d, 3)]), -1, -1); break;
    }
}

static const Program *random_program(Arena *a, Dice *d, int nin, const DType *type, int ndim, int row) {
    ProgramBuilder b = {.arena = a};
    for (int i = 0; i < nin; i++) {
        int x = prog_leaf(&b, PROG_INPUT, type[i], i, 0);
        if (type[i] == DT_BF16) prog_op(&b, OP_CAST, DT_F32, x, -1, -1);
    }
    int nop = 2 + pick(d, 12), nred = 0;
    for (int i = 0; i < nop; i++) {
        if (row && nred < 4 && chance(d, 0.3))
            prog_leaf(&b, chance(d, 0.6) ? PROG_ROW_SUM : PROG_ROW_MAX, DT_F32, any_of(&b, d, DT_F32), 0), nred++;
        else if (ndim && chance(d, 0.1)) prog_leaf(&b, PROG_INDEX, DT_I64, pick(d, ndim), 0);
        else if (chance(d, 0.7)) random_float_op(&b, d);
        else random_other_op(&b, d);
    }
    int n = (int)b.instr.len, nout = 1 + pick(d, 3);
    for (int j = 0; j < nout; j++) {
        int i = j == 0 ? n - 1 : n - 1 - pick(d, (int)min_i64(n, 6));
        DType t = b.instr.data[i].dtype;
        if (t == DT_F32 && chance(d, 0.5)) i = prog_op(&b, OP_CAST, DT_BF16, i, -1, -1);
        if (b.instr.data[i].code == PROG_INPUT) i = prog_op(&b, OP_STOP_GRAD, t, i, -1, -1);
        vec_push(&b.out, i);
    }
    for (int j = 0; row && j < 2 && chance(d, 0.4); j++)
        vec_push(&b.out, prog_leaf(&b, PROG_COL_SUM, DT_F32, any_of(&b, d, DT_F32), 0));
    return prog_finish(&b);
}

// ---- shapes and views ---------------------------------------------------------------------------------------------------

static Shape random_space(Dice *d, int64_t elements) {
    static const int64_t sizes[] = {1, 2, 3, 4, 7, 8, 16, 24, 31, 64, 100, 128, 257, 1000, 1024, 2051};
    Shape s = {.ndim = 1 + pick(d, 4)};
    for (int k = s.ndim - 1; k >= 0; k--) {
        int64_t n;
        do n = sizes[pick(d, 16)];
        while (n > elements);
        s.dim[k] = n, elements /= n;
    }
    return s;
}

static Shape random_input(Dice *d, const Shape *space, int64_t *list, int *n) {
    Shape in = {0};
    if (chance(d, 0.55)) {  // broadcast: some dims 1, leading ones missing
        int skip = chance(d, 0.2) ? pick(d, space->ndim + 1) : 0;
        for (int k = skip; k < space->ndim; k++) in.dim[in.ndim++] = chance(d, 0.25) ? 1 : space->dim[k];
        list[(*n)++] = -1;
        return in;
    }
    View v = {0};
    int order[MAX_DIMS], ndim = space->ndim;
    for (int k = 0; k < ndim; k++) order[k] = k;
    for (int k = ndim - 1; k > 0 && chance(d, 0.4); k--) {
        int at = pick(d, k + 1), t = order[k];
        order[k] = order[at], order[at] = t;
    }
    for (int k = 0; k < ndim; k++) {
        if (chance(d, 0.15)) continue;  // broadcast along it
        ViewDim *x = &v.d[v.ndim];
        int dim = order[k];
        int64_t lo = 0, hi = space->dim[dim];
        *x = (ViewDim){.dim = dim, .step = chance(d, 0.2) ? 2 : 1};
        if (chance(d, 0.35)) {
            lo = pick(d, (int)hi + 1), hi = lo + pick(d, (int)(hi - lo) + 1);
            if (chance(d, 0.5)) lo = lo / 8 * 8, hi = hi / 8 * 8 > lo ? hi / 8 * 8 : hi;
            v.win[v.nwin++] = (ViewWindow){dim, lo, hi};
        }
        x->start = chance(d, 0.5) ? -lo * x->step : chance(d, 0.5) ? 8 - lo * x->step : 3 - lo * x->step;
        in.dim[in.ndim++] = max_i64(1, x->start + (hi - 1) * x->step + 1) + (chance(d, 0.3) ? 8 : 0);
        v.ndim++;
    }
    if (chance(d, 0.1) && v.ndim < MAX_DIMS) v.d[v.ndim++] = (ViewDim){.dim = -1, .start = 1}, in.dim[in.ndim++] = 2;
    view_encode(&v, list, n);
    return in;
}

// ---- the case -----------------------------------------------------------------------------------------------------------

static ValueId add_source(FusedCase *c, const Shape *s, DType t, int i) {
    Diag d = {0};
    NodeId n;
    Attr attr = attr_i(ATTR_INDEX, c->g->inputs.len);
    const char *name = arena_printf(c->arena, "x%d", i);
    vec_push(&c->g->inputs, ((Input){.name = name, .shape = *s, .dtype = t, .seq_dim = -1, .batch_dim = -1}));
    Status st = graph_add(c->g, OP_INPUT, 0, NULL, 1, &attr, NULL, PHASE_FORWARD, &n, &d);
    CHECK(st == ST_OK, "%s", d.text);
    graph_value(c->g, graph_node(c->g, n)->out[0])->dtype = t;  // programs take no inputs in bf16, but nodes do
    return graph_node(c->g, n)->out[0];
}

static void draw_inputs(FusedCase *c, const Shape *in, Dice *d, bool specials) {
    for (int i = 0; i < c->nin; i++) {
        int64_t n = shape_numel(&in[i]);
        c->in[i] = ARENA_ARRAY(c->arena, double, n + 1);
        for (int64_t k = 0; k < n; k++) c->in[i][k] = draw(d, c->in_dtype[i], specials);
    }
}

// Outputs over inputs that are read at the same elements, as a plan does it.
static void choose_overlay(FusedCase *c, Dice *d) {
    const Node *n = graph_node(c->g, c->node);
    View view[CASE_MAX_IN];
    const int64_t *dims;
    Diag diag = {0};
    CHECK(views_decode(n, view, &diag) == ST_OK, "%s", diag.text);
    int ndim = node_ints(n, ATTR_SHAPE, &dims);
    Shape space = shape_of(ndim, dims);
    bool taken[CASE_MAX_IN] = {false};
    for (int j = 0; j < c->nout; j++) {
        c->over[j] = -1;
        for (int i = 0; i < c->nin && c->over[j] < 0 && chance(d, 0.5); i++) {
            const Shape *x = graph_shape(c->g, n->in[i]), *y = graph_shape(c->g, n->out[j]);
            View v = view_resolve(&view[i], x, &space);
            bool same = shape_equal(x, y) && shape_equal(x, &space) && view_is_flat(&v, x, &space);
            if (taken[i] || !same || dtype_nbytes(c->in_dtype[i]) != dtype_nbytes(c->out_dtype[j])) continue;
            c->over[j] = i, taken[i] = true;
        }
    }
}

static bool make(FusedCase *c, const Program *p, Shape space, int row, int nin, const Shape *in, const DType *type, int nview,
                 const int64_t *views, Diag *d) {
    ValueId ids[CASE_MAX_IN];
    c->g = graph_new(c->arena, "fused", 1);
    c->nin = nin;
    for (int i = 0; i < nin; i++) ids[i] = add_source(c, &in[i], type[i], i), c->in_dtype[i] = type[i];
    Attr attr[4] = {attr_prog(ATTR_PROG, p),
                    attr_ints(ATTR_SHAPE, space.ndim, arena_copy(c->arena, space.dim, sizeof space.dim))};
    int nattr = 2;
    if (row) attr[nattr++] = attr_i(ATTR_ROW, row);
    if (nview) attr[nattr++] = attr_ints(ATTR_VIEWS, nview, views);
    if (graph_add(c->g, OP_FUSED, nin, ids, nattr, attr, NULL, PHASE_FORWARD, &c->node, d) != ST_OK) return false;
    const Node *n = graph_node(c->g, c->node);
    c->nout = n->nout;
    CHECK(c->nout <= CASE_MAX_OUT, "too many outputs");
    for (int j = 0; j < c->nout; j++) {
        c->out_dtype[j] = graph_value(c->g, n->out[j])->dtype, c->over[j] = -1;
    }
    return true;
}

static void fill(FusedCase *c, const Shape *in, Dice *dice, bool specials) {
    const Node *n = graph_node(c->g, c->node);
    for (int j = 0; j < c->nout; j++) {
        int64_t numel = shape_numel(graph_shape(c->g, n->out[j]));
        c->want[j] = ARENA_ARRAY(c->arena, double, numel + 1), c->error[j] = ARENA_ARRAY(c->arena, double, numel + 1);
    }
    draw_inputs(c, in, dice, specials);
}

void fused_case_shape(FusedCase *c, const char *name, const Program *p, Shape space, int row, int nin, const Shape *in,
                      const DType *type, int nview, const int64_t *views) {
    *c = (FusedCase){.arena = arena_new()};
    snprintf(c->name, sizeof c->name, "%s", name);
    Diag d = {0};
    bool ok = make(c, p, space, row, nin, in, type, nview, views, &d);
    CHECK(ok, "%s: %s", name, d.text);
}

void fused_case_make(FusedCase *c, const char *name, const Program *p, Shape space, int row, int nin, const Shape *in,
                     const DType *type, int nview, const int64_t *views, uint64_t seed) {
    Dice dice = {.key = random_key(seed, 0, 1)};
    fused_case_shape(c, name, p, space, row, nin, in, type, nview, views);
    fill(c, in, &dice, false);
}

static bool draw_case(FusedCase *c, Dice *dice, Shape space, int row, Diag *d) {
    static const DType types[] = {DT_F32, DT_BF16, DT_F32, DT_BF16, DT_I64, DT_BOOL};
    Shape in[CASE_MAX_IN];
    DType type[CASE_MAX_IN];
    int nin = 1 + pick(dice, 4), n = 0;
    int64_t *views = ARENA_ARRAY(c->arena, int64_t, CASE_MAX_IN * MAX_VIEW_INTS);
    for (int i = 0; i < nin; i++) type[i] = types[pick(dice, 6)], in[i] = random_input(dice, &space, views, &n);
    const Program *p = random_program(c->arena, dice, nin, type, space.ndim, row);
    *d = (Diag){0};
    if (c->g) graph_free_vecs(c->g);
    if (!make(c, p, space, row, nin, in, type, n, views, d)) return false;
    fill(c, in, dice, chance(dice, 0.2));
    choose_overlay(c, dice);
    return true;
}

void fused_case_random(FusedCase *c, uint64_t number, int64_t elements) {
    *c = (FusedCase){.arena = arena_new()};
    snprintf(c->name, sizeof c->name, "random %llu", (unsigned long long)number);
    Dice dice = {.key = random_key(number, 0, 0)};
    Diag d = {0};
    for (int tries = 0; tries < 100; tries++) {
        Shape space = random_space(&dice, elements);
        int row = chance(&dice, 0.6) ? 1 + pick(&dice, (int)min_i64(2, space.ndim)) : 0;
        if (draw_case(c, &dice, space, row, &d)) return;
    }
    CHECK(false, "no case %llu: %s", (unsigned long long)number, d.text);
}

void fused_case_random_on(FusedCase *c, uint64_t number, Shape space, int row) {
    *c = (FusedCase){.arena = arena_new()};
    snprintf(c->name, sizeof c->name, "random %llu on a given space", (unsigned long long)number);
    Dice dice = {.key = random_key(number, 0, 2)};
    Diag d = {0};
    for (int tries = 0; tries < 100; tries++)
        if (draw_case(c, &dice, space, row, &d)) return;
    CHECK(false, "no case %llu: %s", (unsigned long long)number, d.text);
}

void fused_case_free(FusedCase *c) {
    graph_free_vecs(c->g);
    arena_free(c->arena);
    *c = (FusedCase){0};
}

// ---- expectation --------------------------------------------------------------------------------------------------------

// Every instruction at every point of a row: value, and a bound of the error of f32 arithmetic.
typedef struct Eval {
    const FusedCase *c;
    const Program *p;
    Shape outer, row;
    View view[CASE_MAX_IN];
    int64_t npoint, at;
    double *value, *error;
} Eval;

#define EPS 0x1p-24

static double distance(double a, double b) {
    return a == b || (isnan(a) && isnan(b)) ? 0 : isfinite(a) && isfinite(b) ? fabs(a - b) : INFINITY;
}

// What an operation does between the points at which eval_op tries it: v as they are, r how far off they may be.
static double hidden_bound(OpKind op, const double *v, const double *r) {
    switch (op) {
    case OP_SIN:
    case OP_COS: return fmin(2, r[0]);
    case OP_MOD: return r[0] + fabs(v[0] / v[1]) * r[1] >= fabs(v[1]) / 2 ? fabs(v[1]) + r[1] : 0;
    case OP_POW:  // of a negative base: a number at whole exponents (as every f32 from 2^23 on is one), NaN beside them
        return v[0] - r[0] < 0 && r[1] > 0 && floor(v[1] + r[1]) >= ceil(v[1] - r[1]) ? INFINITY : 0;
    default: return 0;
    }
}

static void eval_op(const Eval *e, int i, int64_t k) {
    const Instr *x = &e->p->instr[i];
    OpKind op = (OpKind)(x->code - PROG_OP);
    int arity = program_op_arity(op);
    const int32_t use[3] = {x->a, x->b, x->c};
    double v[3] = {0}, r[3] = {0}, result = 0, bound = 0;
    Diag d = {0};
    for (int n = 0; n < arity; n++) {
        v[n] = e->value[use[n] * e->npoint + k], r[n] = e->error[use[n] * e->npoint + k];
        if (isnan(v[n]) && r[n] > 0) bound = INFINITY;
    }
    DType in = e->p->instr[x->a].dtype, to = x->dtype == DT_BF16 ? DT_F32 : x->dtype;
    CHECK(ref_scalar(op, in, to, v[0], v[1], v[2], &result, &d) == ST_OK, "%s", d.text);
    for (int mask = 1; mask < 27; mask++) {  // each operand as it is, a bit less, a bit more
        double w[3], other;
        int m = mask;
        bool differs = false;
        for (int n = 0; n < 3; n++, m /= 3) {
            double step = m % 3 == 0 ? 0 : m % 3 == 1 ? -r[n] : r[n];
            w[n] = v[n] + step, differs = differs || step != 0;
            if (n < arity && e->p->instr[use[n]].dtype == DT_BOOL && step != 0) w[n] = step < 0 ? 0 : 1;
        }
        if (!differs) continue;
        (void)!ref_scalar(op, in, to, w[0], w[1], w[2], &other, &d);
        bound = fmax(bound, distance(other, result));
    }
    bound = fmax(bound, hidden_bound(op, v, r));
    if (x->dtype == DT_F32 || x->dtype == DT_BF16) {
        double inner = op == OP_GELU || op == OP_GELU_TANH ? fabs(v[0])
                       : op == OP_FLOORDIV || op == OP_MOD ? fabs(v[0]) + fabs(v[1])
                                                           : 0;
        bool perhaps = isinf(bound);
        bound += 8 * EPS * (fabs(result) + inner) + 1e-37;
        if (op == OP_SIN || op == OP_COS) bound += 4 * EPS;
        if (op == OP_POW || op == OP_EXP) bound += 8 * EPS * fabs(result) * (1 + fabs(v[0]));
        if (x->dtype == DT_BF16) bound += 0x1p-8 * fabs(result);
        if (fabs(result) > 3.3e38) result = result > 0 ? INFINITY : -INFINITY, bound = INFINITY;  // where f32 ends
        if (isnan(result)) bound = perhaps ? INFINITY : 0;  // there is no more or less of a NaN: it is one, or perhaps a number
        else if (isnan(bound)) bound = INFINITY;
    }
    e->value[i * e->npoint + k] = result, e->error[i * e->npoint + k] = bound;
}

static void eval_reduction(const Eval *e, int i) {
    const Instr *x = &e->p->instr[i];
    const double *v = e->value + x->a * e->npoint, *r = e->error + x->a * e->npoint;
    double t = x->code == PROG_ROW_SUM ? 0 : -INFINITY, size = 0, bound = 0;
    for (int64_t k = 0; k < e->npoint; k++) {
        if (x->code == PROG_ROW_SUM) t += v[k], size += fabs(v[k]), bound += r[k];
        else t = isnan(v[k]) || v[k] > t ? v[k] : t, bound = fmax(bound, r[k]);
        if (isnan(t)) break;
    }
    bound += x->code == PROG_ROW_SUM ? EPS * size * (2 * sqrt((double)e->npoint) + 16) : 0;
    if (isnan(t)) {  // where the operand is certain to be NaN or infinite so is the sum
        bound = 0;
        for (int64_t k = 0; k < e->npoint; k++)
            if (!isfinite(r[k])) bound = INFINITY;
    }
    for (int64_t k = 0; k < e->npoint; k++)
        e->value[i * e->npoint + k] = t, e->error[i * e->npoint + k] = isnan(bound) ? INFINITY : bound;
}

static double eval_input(const Eval *e, int slot, const int64_t *index) {
    const View *v = &e->view[slot];
    const Shape *s = graph_shape(e->c->g, graph_node(e->c->g, e->c->node)->in[slot]);
    int64_t offset = 0;
    for (int k = 0; k < v->nwin; k++)
        if (index[v->win[k].dim] < v->win[k].lo || index[v->win[k].dim] >= v->win[k].hi) return 0;
    for (int k = 0; k < v->ndim; k++) {
        int64_t at = v->d[k].start + (v->d[k].dim < 0 ? 0 : v->d[k].step * index[v->d[k].dim]);
        CHECK(at >= 0 && at < s->dim[k], "a view reads outside its input");
        offset = offset * s->dim[k] + at;
    }
    return e->c->in[slot][offset];
}

static void eval_instr(Eval *e, int i, int64_t *index) {
    const Instr *x = &e->p->instr[i];
    if (x->code == PROG_ROW_SUM || x->code == PROG_ROW_MAX) {
        eval_reduction(e, i);
        return;
    }
    int64_t *in_row = index + e->outer.ndim, k = 0;
    for (int n = 0; n < e->row.ndim; n++) in_row[n] = 0;
    do {
        double *v = &e->value[i * e->npoint + k], *r = &e->error[i * e->npoint + k];
        *r = 0;
        if (x->code >= PROG_OP) eval_op(e, i, k);
        else if (x->code == PROG_INPUT) *v = eval_input(e, x->a, index);
        else if (x->code == PROG_INDEX) *v = (double)index[x->a];
        else if (x->code == PROG_CONST) *v = x->dtype == DT_F32 ? (double)(float)x->imm : x->imm;
        else *v = e->value[x->a * e->npoint + k], *r = e->error[x->a * e->npoint + k];  // col_sum
        k++;
    } while (ref_next(&e->row, in_row));
}

static void eval_outputs(Eval *e, int64_t nouter) {
    for (int j = 0; j < e->p->nout; j++) {
        int i = e->p->out[j];
        double *want = e->c->want[j], *error = e->c->error[j];
        const double *v = e->value + i * e->npoint, *r = e->error + i * e->npoint;
        int64_t numel = shape_numel(graph_shape(e->c->g, graph_node(e->c->g, e->c->node)->out[j])), each = numel / nouter;
        bool column = e->p->instr[i].code == PROG_COL_SUM;
        for (int64_t k = 0; k < (column ? e->npoint : each); k++) {
            if (!column) want[e->at * each + k] = v[k], error[e->at * each + k] = r[k];
            else want[k] += v[k], error[k] += r[k] + EPS * fabs(v[k]) * (2 * sqrt((double)nouter) + 16);
        }
    }
    e->at++;
}

void fused_case_expect(FusedCase *c) {
    const Node *n = graph_node(c->g, c->node);
    const int64_t *dims;
    int ndim = node_ints(n, ATTR_SHAPE, &dims), row = (int)node_int_or(n, ATTR_ROW, 0);
    Shape space = shape_of(ndim, dims);
    Eval e = {.c = c, .p = node_prog(n, ATTR_PROG)};
    Diag d = {0};
    for (int k = 0; k < ndim; k++) {
        Shape *part = k < ndim - row ? &e.outer : &e.row;
        part->dim[part->ndim++] = dims[k];
    }
    CHECK(views_decode(n, e.view, &d) == ST_OK, "%s", d.text);
    for (int i = 0; i < c->nin; i++) e.view[i] = view_resolve(&e.view[i], graph_shape(c->g, n->in[i]), &space);
    e.npoint = shape_numel(&e.row);
    e.value = calloc((size_t)(e.p->ninstr * e.npoint) + 1, sizeof(double)),
    e.error = calloc((size_t)(e.p->ninstr * e.npoint) + 1, sizeof(double));
    CHECK(e.value && e.error, "out of memory");
    int64_t index[MAX_DIMS] = {0}, nouter = shape_numel(&e.outer);
    if (shape_numel(&space) > 0) {
        do {
            for (int i = 0; i < e.p->ninstr; i++) eval_instr(&e, i, index);
            eval_outputs(&e, nouter);
        } while (ref_next(&e.outer, index));
    }
    free(e.value);
    free(e.error);
}

// ---- running ------------------------------------------------------------------------------------------------------------

void fused_case_operands(const FusedCase *c, Operand *in, Operand *out) {
    const Node *n = graph_node(c->g, c->node);
    for (int i = 0; i < c->nin + c->nout; i++) {
        const Value *v = graph_value(c->g, i < c->nin ? n->in[i] : n->out[i - c->nin]);
        Operand o = {.dtype = v->dtype, .ndim = v->shape.ndim, .sdim = -1};
        memcpy(o.dim, v->shape.dim, sizeof o.dim);
        memcpy(o.global, v->shape.dim, sizeof o.global);
        if (i < c->nin) in[i] = o;
        else out[i - c->nin] = o;
    }
}

static size_t operand_bytes(const Operand *o) {
    size_t n = (size_t)dtype_nbytes(o->dtype);
    for (int k = 0; k < o->ndim; k++) n *= (size_t)o->dim[k];
    return n;
}

static void encode(void *at, DType t, const double *v, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        float f = (float)v[k];
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        if (t == DT_F32) ((float *)at)[k] = f;
        else if (t == DT_BF16) ((uint16_t *)at)[k] = (uint16_t)(u >> 16);
        else if (t == DT_I64) ((int64_t *)at)[k] = (int64_t)v[k];
        else ((uint8_t *)at)[k] = v[k] != 0;
    }
}

static double decode(const void *at, DType t, int64_t k) {
    if (t == DT_I64) return (double)((const int64_t *)at)[k];
    if (t == DT_BOOL) return ((const uint8_t *)at)[k];
    if (t == DT_F32) return ((const float *)at)[k];
    uint32_t u = (uint32_t)((const uint16_t *)at)[k] << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

typedef struct CaseRun {
    const Backend *backend;
    Device *dev;
    char *arena;
    size_t used;
    Operand in[CASE_MAX_IN], out[CASE_MAX_OUT];
} CaseRun;

static size_t room(size_t n) { return (size_t)round_up((int64_t)n + 64, 256); }

static Status place(FusedCase *c, CaseRun *r, Diag *d) {
    const DeviceApi *api = r->backend->device;
    for (int i = 0; i < c->nin; i++) {
        size_t n = operand_bytes(&r->in[i]);
        void *host = arena_alloc(c->arena, n + 16);
        encode(host, c->in_dtype[i], c->in[i], (int64_t)(n / (size_t)dtype_nbytes(c->in_dtype[i])));
        r->in[i].data = r->arena + r->used, r->used += room(n);
        if (n) TRY(api->write(r->dev, r->in[i].data, host, n, d));
    }
    for (int j = 0; j < c->nout; j++) {
        size_t n = operand_bytes(&r->out[j]);
        r->out[j].data = c->over[j] >= 0 ? r->in[c->over[j]].data : r->arena + r->used;
        if (c->over[j] < 0) r->used += room(n);
        void *host = arena_alloc(c->arena, n + 16);
        memset(host, 0x5a, n + 16);  // unwritten elements show
        if (c->over[j] < 0 && n) TRY(api->write(r->dev, r->out[j].data, host, n, d));
    }
    return ST_OK;
}

static bool compare(FusedCase *c, int j, const void *got, int64_t n, Str *why, int64_t *compared) {
    for (int64_t k = 0; k < n; k++) {
        double want = c->want[j][k], error = c->error[j][k], x = decode(got, c->out_dtype[j], k);
        if (!isfinite(error) || (c->out_dtype[j] != DT_F32 && c->out_dtype[j] != DT_BF16 && error > 0)) continue;
        ++*compared;
        if (distance(want, x) <= 4 * error) continue;
        if (isinf(x) && fabs(want) > 3e38) continue;
        str_printf(why, "%s: output %d (%s), element %lld: %.9g, not %.9g (to %.3g)", c->name, j, dtype_name(c->out_dtype[j]),
                   (long long)k, x, want, 4 * error);
        return false;
    }
    return true;
}

static Status run(FusedCase *c, CaseRun *r, bool *same, Str *why, int64_t *compared, Diag *d) {
    const DeviceApi *api = r->backend->device;
    TRY(place(c, r, d));
    const Node *n = graph_node(c->g, c->node);
    size_t scratch = r->backend->scratch(n, r->in, r->out, 1);
    KernelArgs k = {.node = n, .id = c->node, .nin = c->nin, .nout = c->nout, .in = r->in, .out = r->out, .device = r->dev,
                    .scratch = r->arena + r->used, .scratch_nbytes = scratch};
    NodeId failed;
    TRY(api->prepare(r->dev, &k, &k.state, d));
    TRY(api->begin(r->dev, 1, 0, d));
    TRY(r->backend->kernel(OP_FUSED, DT_F32)(&k, d));
    TRY(api->finish(r->dev, &failed, d));
    for (int j = 0; j < c->nout && *same; j++) {
        size_t nbytes = operand_bytes(&r->out[j]);
        void *host = arena_alloc(c->arena, nbytes + 16);
        if (nbytes) TRY(api->read(r->dev, host, r->out[j].data, nbytes, d));
        *same = compare(c, j, host, (int64_t)(nbytes / (size_t)dtype_nbytes(c->out_dtype[j])), why, compared);
    }
    return ST_OK;
}

bool fused_case_check(FusedCase *c, const Backend *backend, Str *why, int64_t *compared) {
    CaseRun r = {.backend = backend};
    Diag d = {0};
    bool same = true;
    fused_case_operands(c, r.in, r.out);
    size_t nbytes = backend->scratch(graph_node(c->g, c->node), r.in, r.out, 1) + 4096;
    for (int i = 0; i < c->nin; i++) nbytes += room(operand_bytes(&r.in[i]));
    for (int j = 0; j < c->nout; j++) nbytes += room(operand_bytes(&r.out[j]));
    Status st = backend->device->open(0, 1, nbytes, &r.dev, (void **)&r.arena, &d);
    if (st == ST_OK) st = run(c, &r, &same, why, compared, &d);
    if (st != ST_OK) str_printf(why, "%s: %s", c->name, d.text);
    if (r.dev) backend->device->close(r.dev);
    return st == ST_OK && same;
}
