// canonicalize, experts and mask against the reference executor: every graph, however rewritten, must compute the same outputs.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>
#include "exec/exec.h"
#include "ir/build.h"
#include "ops/op.h"
#include "pass/pass.h"

// ---- harness --------------------------------------------------------------------------------------------------------
typedef struct Case {
    Arena *a, *scratch;
    Diag d;
    Graph *g;
    Builder b;
    PassContext c;
    double *data[16];
    uint64_t seed;
} Case;

static uint64_t next_random(uint64_t *s) {
    *s += 0x9e3779b97f4a7c15u;
    uint64_t z = *s;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int64_t below(Case *t, int64_t n) { return (int64_t)(next_random(&t->seed) % (uint64_t)n); }

static void begin(Case *t, int64_t batch, int64_t seq, uint64_t seed) {
    *t = (Case){.a = arena_new(), .scratch = arena_new(), .seed = seed};
    t->g = graph_new(t->a, "test", 1);
    t->g->batch = batch;
    t->g->seq = seq;
    t->b = (Builder){.g = t->g, .d = &t->d};
    t->c = (PassContext){.scratch = t->scratch, .nranks = 1};
}

static void end(Case *t) {
    graph_free_vecs(t->g);
    arena_free(t->scratch);
    arena_free(t->a);
}

// Floats in [-1, 1), integers in [0, range).
static ValueId input(Case *t, Shape s, DType dtype, int64_t range) {
    int64_t i = t->g->inputs.len, n = shape_numel(&s);
    vec_push(&t->g->inputs, ((Input){.name = "x", .shape = s, .dtype = dtype, .seq_dim = -1, .batch_dim = -1}));
    t->data[i] = ARENA_ARRAY(t->a, double, n + 1);
    for (int64_t k = 0; k < n; k++)
        t->data[i][k] = dtype == DT_F64 ? (double)below(t, 2000) / 1000.0 - 1 : (double)below(t, dtype == DT_BOOL ? 2 : range);
    Attr a = attr_i(ATTR_INDEX, i);
    return build(&t->b, OP_INPUT, 0, NULL, 1, &a);
}

static ValueId constant(Case *t, Shape s, DType dtype, const void *data) {
    vec_push(&t->g->consts, ((Const){.name = "c", .shape = s, .dtype = dtype, .data = data}));
    Attr a = attr_i(ATTR_INDEX, t->g->consts.len - 1);
    return build(&t->b, OP_CONSTANT, 0, NULL, 1, &a);
}

static void output(Case *t, ValueId v) {
    assert_int_equal(t->b.status, ST_OK);
    graph_add_output(t->g, OUT_AUX, -1, 0, "out", v);
}

static void evaluate(Case *t, const Graph *g, double **out) {
    for (int64_t i = 0; i < g->outputs.len; i++)
        out[i] = ARENA_ARRAY(t->a, double, shape_numel(graph_shape(g, g->outputs.data[i].value)) + 1);
    double hyper[3] = {0};
    Reference r = {.run_seed = 3, .inputs = (const double *const *)t->data, .params = NULL, .hyper = hyper};
    Status st = reference_run(g, &r, out, &t->d);
    if (st != ST_OK) fail_msg("%s", t->d.text);
}

typedef Status (*PassFn)(PassContext *c, Graph *in, Graph **out, Diag *d);

// Runs the passes, compares every output with the graph as built, and leaves the result in t->g.
static void run(Case *t, int npass, const PassFn *pass) {
    double *want[8], *got[8];
    assert_true(t->g->outputs.len <= 8);
    evaluate(t, t->g, want);
    for (int p = 0; p < npass; p++) {
        Graph *next = NULL;
        if (pass[p](&t->c, t->g, &next, &t->d) != ST_OK || graph_verify(next, "pass", &t->d) != ST_OK) fail_msg("%s", t->d.text);
        if (next != t->g) graph_free_vecs(t->g);
        t->g = next;
    }
    evaluate(t, t->g, got);
    for (int64_t i = 0; i < t->g->outputs.len; i++) {
        int64_t n = shape_numel(graph_shape(t->g, t->g->outputs.data[i].value));
        for (int64_t k = 0; k < n; k++) {
            double a = want[i][k], b = got[i][k];
            if (a == b || (isnan(a) && isnan(b)) || fabs(a - b) <= 1e-9 * (1 + fabs(a))) continue;
            Str s = {0};
            graph_print(t->g, &s);
            print_error("%s", str_text(&s));
            fail_msg("output %lld, element %lld: %.17g before, %.17g after", (long long)i, (long long)k, a, b);
        }
    }
}

static const PassFn canonical[] = {pass_canonicalize};
static const PassFn forward[] = {pass_canonicalize, pass_experts, pass_mask};

static int count_op(const Graph *g, OpKind op) {
    int n = 0;
    for (int64_t i = 0; i < g->nodes.len; i++) n += g->nodes.data[i].op == op;
    return n;
}

static const Node *find_op(const Graph *g, OpKind op) {
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (g->nodes.data[i].op == op) return &g->nodes.data[i];
    return NULL;
}

static void expect_words(Case *t, const char *words) {
    const Node *n = find_op(t->g, OP_ATTENTION);
    if (!n) fail_msg("no attention was made");
    assert_string_equal(mask_in_words(node_prog(n, ATTR_PROG), t->a), words);
}

// No value of the graph has two dims of length n.
static void expect_no_square(Case *t, int64_t n) {
    for (int64_t i = 0; i < t->g->values.len; i++) {
        const Shape *s = &t->g->values.data[i].shape;
        int count = 0;
        for (int k = 0; k < s->ndim; k++) count += s->dim[k] == n;
        assert_true(count < 2);
    }
}

// ---- canonicalize ---------------------------------------------------------------------------------------------------
// Hugging Face's document ids of an unpacked row: arange -> diff -> != 1 -> cumsum is zero everywhere.
static void documents_of_one_row_fold(void **state) {
    (void)state;
    Case t;
    begin(&t, 2, 9, 1);
    Builder *b = &t.b;
    ValueId pos = build_iota(b, SHAPE(1, 9), 1, 0, 1, DT_I64),
            first = build_binary_scalar(b, OP_SUB, build_slice(b, pos, 1, 0, 1, 1), 1);
    ValueId ext = build_concat(b, 2, (ValueId[]){first, pos}, 1);
    ValueId diff = build_binary(b, OP_SUB, build_slice(b, ext, 1, 1, 1, 9), build_slice(b, ext, 1, 0, 1, 9));
    Attr dim = attr_i(ATTR_DIM, 1);
    ValueId ids = build_cast(b, build_binary_scalar(b, OP_NE, diff, 1), DT_I64);
    ids = build(b, OP_CUMSUM, 1, &ids, 1, &dim);
    ValueId same = build_binary(b, OP_EQ, build_reshape(b, ids, SHAPE(9, 1)), build_reshape(b, ids, SHAPE(1, 9)));
    output(&t,
           build_binary(b, OP_AND, same, build_binary(b, OP_LT, input(&t, SHAPE(9, 9), DT_I64, 5), build_scalar(b, DT_I64, 3))));
    run(&t, 1, canonical);
    assert_int_equal(t.g->nodes.len, 3);  // input, full 3, lt
    end(&t);
}

static void identities_vanish(void **state) {
    (void)state;
    Case t;
    begin(&t, 2, 6, 2);
    Builder *b = &t.b;
    ValueId x = input(&t, SHAPE(4, 6), DT_F64, 0), y = x;
    y = build_binary_scalar(b, OP_ADD, y, 0);
    y = build_binary(b, OP_MUL, build_full(b, SHAPE(4, 6), DT_F64, 1), y);
    y = build_unary(b, OP_NEG, build_unary(b, OP_NEG, y));
    y = build_transpose(b, build_transpose(b, y, 0, 1), 0, 1);
    y = build_reshape(b, build_reshape(b, y, SHAPE(2, 12)), SHAPE(4, 6));
    y = build_slice(b, build_pad(b, y, 1, 2, 3, 7), 1, 2, 1, 6);
    y = build_slice(b, build_slice(b, build_concat(b, 2, (ValueId[]){y, x}, 0), 0, 0, 1, 5), 0, 0, 1, 4);
    y = build_where(b, build_full(b, SHAPE(4, 6), DT_BOOL, 1), y, x);
    output(&t, y);
    run(&t, 1, canonical);
    assert_int_equal(t.g->nodes.len, 1);
    end(&t);
}

static void transposed_weights_become_flags(void **state) {
    (void)state;
    Case t;
    begin(&t, 1, 5, 3);
    Builder *b = &t.b;
    ValueId x = input(&t, SHAPE(3, 5, 4), DT_F64, 0), w = input(&t, SHAPE(7, 4), DT_F64, 0),
            k = input(&t, SHAPE(3, 6, 4), DT_F64, 0);
    output(&t, build_dot(b, x, build_transpose(b, w, 0, 1), 0, 1, false, false));
    output(&t, build_dot(b, x, build_transpose(b, k, 1, 2), 1, 1, false, false));
    output(&t, build_dot(b, build_transpose(b, x, 1, 2), build_transpose(b, k, 1, 2), 1, 1, true, false));
    run(&t, 1, canonical);
    assert_int_equal(count_op(t.g, OP_PERMUTE), 0);
    assert_int_equal(count_op(t.g, OP_DOT), 2);  // the last two are the same product
    end(&t);
}

static void split_gradients_are_concats(void **state) {
    (void)state;
    Case t;
    begin(&t, 1, 5, 4);
    Builder *b = &t.b;
    ValueId p = input(&t, SHAPE(3, 2), DT_F64, 0), q = input(&t, SHAPE(3, 4), DT_F64, 0), r = input(&t, SHAPE(3, 1), DT_F64, 0);
    ValueId sum = build_binary(b, OP_ADD, build_pad(b, q, 1, 2, 1, 0), build_pad(b, r, 1, 6, 0, 0));
    output(&t, build_binary(b, OP_ADD, sum, build_pad(b, p, 1, 0, 5, 0)));
    run(&t, 1, canonical);
    assert_int_equal(count_op(t.g, OP_PAD), 0);
    assert_int_equal(count_op(t.g, OP_ADD), 0);
    end(&t);
}

// ---- random graphs --------------------------------------------------------------------------------------------------
typedef struct Pool {
    ValueId v[64];
    int n;
} Values;

static ValueId pick_dtype(Case *t, const Values *p, int kind) {  // 0 float, 1 int, 2 bool; NO_VALUE if there is none
    static const DType want[] = {DT_F64, DT_I64, DT_BOOL};
    int start = (int)below(t, p->n);
    for (int i = 0; i < p->n; i++) {
        ValueId v = p->v[(start + i) % p->n];
        if (build_dtype(&t->b, v) == want[kind]) return v;
    }
    return NO_VALUE;
}

static bool fits_together(Case *t, ValueId x, ValueId y) {
    Shape a = build_shape(&t->b, x), c = build_shape(&t->b, y), out;
    return broadcast_shapes(&a, &c, &out) && shape_numel(&out) <= 600;
}

static ValueId random_pointwise(Case *t, const Values *p) {
    static const OpKind arith[] = {OP_ADD, OP_SUB, OP_MUL, OP_MAX, OP_MIN},
                        compare[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE}, logic[] = {OP_AND, OP_OR, OP_XOR};
    int kind = (int)below(t, 3);
    ValueId x = pick_dtype(t, p, kind), y = below(t, 4) ? pick_dtype(t, p, kind) : NO_VALUE, c = pick_dtype(t, p, 2);
    if (x == NO_VALUE) return NO_VALUE;
    if (y == NO_VALUE) y = build_scalar(&t->b, build_dtype(&t->b, x), kind == 2 ? (double)below(t, 2) : (double)below(t, 3));
    if (!fits_together(t, x, y)) return NO_VALUE;
    if (below(t, 6) == 0 && c != NO_VALUE && fits_together(t, c, x) && fits_together(t, c, y)) {
        ValueId sum = build_where(&t->b, c, x, x);
        return fits_together(t, sum, y) ? build_where(&t->b, c, x, y) : NO_VALUE;
    }
    if (kind < 2 && below(t, 3) == 0) return build_binary(&t->b, compare[below(t, 6)], x, y);
    if (kind == 1 && below(t, 4) == 0)
        return build_binary_scalar(&t->b, below(t, 2) ? OP_FLOORDIV : OP_MOD, x, (double)(1 + below(t, 4)));
    return build_binary(&t->b, kind == 2 ? logic[below(t, 3)] : arith[below(t, 5)], x, y);
}

static ValueId random_unary(Case *t, ValueId x) {
    DType d = build_dtype(&t->b, x);
    static const DType types[] = {DT_F64, DT_I64, DT_BOOL};
    if (below(t, 3) == 0) return build_cast(&t->b, x, types[below(t, 3)]);
    return build_unary(&t->b, d == DT_BOOL ? OP_NOT : below(t, 2) ? OP_NEG : OP_ABS, x);
}

static ValueId random_movement(Case *t, ValueId x) {
    Builder *b = &t->b;
    Shape s = build_shape(b, x);
    if (s.ndim == 0) return build_reshape(b, x, SHAPE(1, 1));
    int dim = (int)below(t, s.ndim);
    int64_t n = s.dim[dim], start = below(t, n), step = 1 + below(t, 2);
    Attr along = attr_i(ATTR_DIM, dim);
    switch (below(t, 8)) {
        case 0: return build_slice(b, x, dim, start, step, 1 + (n - 1 - start) / step);
        case 1:
            return shape_numel(&s) > 300
                       ? x
                       : build_pad(b, x, dim, below(t, 3), below(t, 3), build_dtype(b, x) == DT_BOOL ? 1 : (double)below(t, 2));
        case 2: return shape_numel(&s) > 300 ? x : build_concat(b, 2, (ValueId[]){x, x}, dim);
        case 3: return build_transpose(b, x, dim, (int)below(t, s.ndim));
        case 4: return s.ndim < 4 ? build_unsqueeze(b, x, (int)below(t, s.ndim + 1)) : x;
        case 5: {
            Shape flat = SHAPE(shape_numel(&s)), two = SHAPE(n, shape_numel(&s) / n);
            return build_reshape(b, x, below(t, 2) ? flat : two);
        }
        case 6:
            if (n != 1 || shape_numel(&s) > 200) return build_dtype(b, x) == DT_BOOL ? x : build(b, OP_CUMSUM, 1, &x, 1, &along);
            s.dim[dim] = 3;
            return build_broadcast(b, x, s);
        default: return build_dtype(b, x) == DT_BOOL ? x : build_sum(b, x, 1, &dim);
    }
}

static void random_graphs_keep_their_value(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        Case t;
        begin(&t, 2, 6, seed * 77 + 5);
        Builder *b = &t.b;
        Values p = {0};
        p.v[p.n++] = input(&t, SHAPE(2, 6), DT_F64, 0);
        p.v[p.n++] = input(&t, SHAPE(6), DT_I64, 5);
        p.v[p.n++] = input(&t, SHAPE(2, 1), DT_BOOL, 2);
        p.v[p.n++] = build_iota(b, SHAPE(2, 6), 1, below(&t, 3), 1 + below(&t, 2), DT_I64);
        p.v[p.n++] = build_iota(b, SHAPE(6, 1), 0, 0, 1, DT_I64);
        p.v[p.n++] = build_full(b, SHAPE(2, 6), DT_F64, (double)below(&t, 2));
        p.v[p.n++] = build_full(b, SHAPE(1, 6), DT_I64, (double)below(&t, 2));
        while (p.n < 40) {
            ValueId x = p.v[below(&t, p.n)], y = NO_VALUE;
            switch (below(&t, 4)) {
                case 0:
                case 1: y = random_pointwise(&t, &p); break;
                case 2: y = random_unary(&t, x); break;
                default: y = random_movement(&t, x); break;
            }
            if (y == NO_VALUE) continue;
            assert_int_equal(t.b.status, ST_OK);
            p.v[p.n++] = y;
        }
        for (int i = 0; i < 4; i++) output(&t, p.v[p.n - 1 - 3 * i]);
        run(&t, 1, canonical);
        end(&t);
    }
}

// ---- attention ------------------------------------------------------------------------------------------------------
enum { B = 2, H = 4, HKV = 2, S = 11, D = 3 };

static ValueId sdpa(Case *t, ValueId mask, bool causal, int hkv) {
    ValueId in[4] = {input(t, SHAPE(B, H, S, D), DT_F64, 0), input(t, SHAPE(B, hkv, S, D), DT_F64, 0),
                     input(t, SHAPE(B, hkv, S, D), DT_F64, 0), mask};
    Attr a[] = {attr_f(ATTR_SCALE, 0.7), attr_i(ATTR_CAUSAL, causal), attr_f(ATTR_DROPOUT, 0), attr_i(ATTR_SEED, 0)};
    return build(&t->b, OP_SDPA, mask == NO_VALUE ? 3 : 4, in, 4, a);
}

static ValueId row(Case *t) { return build_iota(&t->b, SHAPE(S, 1), 0, 0, 1, DT_I64); }
static ValueId col(Case *t) { return build_iota(&t->b, SHAPE(1, S), 1, 0, 1, DT_I64); }
static ValueId lower_triangle(Case *t) { return build_binary(&t->b, OP_LE, col(t), row(t)); }

static ValueId same_document(Case *t) {
    Builder *b = &t->b;
    Attr dim = attr_i(ATTR_DIM, 1);
    ValueId border = build_cast(b, build_binary_scalar(b, OP_EQ, input(t, SHAPE(B, S), DT_I64, 4), 1), DT_I64),
            ids = build(b, OP_CUMSUM, 1, &border, 1, &dim);
    return build_binary(b, OP_EQ, build_reshape(b, ids, SHAPE(B, 1, S, 1)), build_reshape(b, ids, SHAPE(B, 1, 1, S)));
}

static void finish_attention(Case *t, ValueId o, const char *words) {
    output(t, o);
    run(t, 3, forward);
    expect_words(t, words);
    expect_no_square(t, S);
    end(t);
}

static void causal_flag(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 10);
    finish_attention(&t, sdpa(&t, NO_VALUE, true, HKV), "causal");
}

static void window_of_positions(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 11);
    Builder *b = &t.b;
    ValueId near = build_binary(b, OP_GT, col(&t), build_binary_scalar(b, OP_SUB, row(&t), 4));
    finish_attention(&t, sdpa(&t, build_binary(b, OP_AND, lower_triangle(&t), near), false, H), "causal & window 4");
}

static void a_window_of_the_whole_row_is_none(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 12);
    Builder *b = &t.b;
    ValueId near = build_binary(b, OP_GT, col(&t), build_binary_scalar(b, OP_SUB, row(&t), S));
    finish_attention(&t, sdpa(&t, build_binary(b, OP_AND, near, lower_triangle(&t)), false, H), "causal");
}

static void documents(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 13);
    ValueId mask = build_binary(&t.b, OP_AND, same_document(&t), lower_triangle(&t));
    finish_attention(&t, sdpa(&t, mask, false, H), "causal & same document");
}

// x[b_index, q_index] with the multi-index flattened: reshape, then rows b*S + q.
static void flattened_gathers_are_the_identity(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 14);
    Builder *b = &t.b;
    ValueId ids = input(&t, SHAPE(B, S), DT_I64, 3), flat = build_reshape(b, ids, SHAPE(B * S));
    ValueId at = build_binary_scalar(b, OP_MUL, build_iota(b, SHAPE(B, 1, 1, 1), 0, 0, 1, DT_I64), S);
    ValueId q = build_binary(b, OP_ADD, at, build_iota(b, SHAPE(1, 1, S, 1), 2, 0, 1, DT_I64)),
            k = build_binary(b, OP_ADD, at, build_iota(b, SHAPE(1, 1, 1, S), 3, 0, 1, DT_I64));
    q = build(b, OP_EMBEDDING, 2, (ValueId[]){flat, q}, 0, NULL);
    k = build(b, OP_EMBEDDING, 2, (ValueId[]){flat, k}, 0, NULL);
    ValueId mask = build_binary(b, OP_AND, build_binary(b, OP_EQ, q, k), lower_triangle(&t));
    output(&t, sdpa(&t, mask, false, H));
    run(&t, 3, forward);
    expect_words(&t, "causal & same document");
    assert_int_equal(count_op(t.g, OP_EMBEDDING), 0);
    end(&t);
}

static void mask_buffers_are_read(void **state) {
    (void)state;
    enum { N = 16 };
    static uint8_t band[N * N], prefix[N * N];
    static double tril[N * N], alibi[H * N * N];
    for (int q = 0; q < N; q++)
        for (int k = 0; k < N; k++) {
            band[q * N + k] = k <= q && q - k < 3;
            prefix[q * N + k] = k <= q || (k < 5 && q < 9);
            tril[q * N + k] = k <= q;
            for (int h = 0; h < H; h++) alibi[(h * N + q) * N + k] = k <= q ? -0.25 * (h + 1) * (q - k) : -INFINITY;
        }
    static const char *const words[4] = {"causal & window 3", "(vec0[q] <= k) & (k <= (vec1[q] - 1))", "causal",
                                         "causal + bias ((q - k)*vec0[q])"};
    for (int i = 0; i < 2; i++) {
        Case t;
        begin(&t, B, S, 20 + (uint64_t)i);
        ValueId m = constant(&t, SHAPE(1, 1, N, N), DT_BOOL, i == 0 ? band : prefix);
        m = build_slice(&t.b, build_slice(&t.b, m, 2, 0, 1, S), 3, 0, 1, S);
        finish_attention(&t, sdpa(&t, m, false, H), words[i]);
    }
    for (int i = 2; i < 4; i++) {
        Case t;
        begin(&t, B, S, 30 + (uint64_t)i);
        Builder *b = &t.b;
        ValueId m = i == 3 ? constant(&t, SHAPE(1, H, N, N), DT_F64, alibi) : constant(&t, SHAPE(1, 1, N, N), DT_F64, tril);
        m = build_slice(b, build_slice(b, m, 2, 0, 1, S), 3, 0, 1, S);
        if (i == 2) m = build_unary(b, OP_NOT, build_binary_scalar(b, OP_EQ, m, 0));
        finish_attention(&t, sdpa(&t, m, false, H), words[i]);
    }
}

static void repeated_heads_are_found(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 40);
    Builder *b = &t.b;
    ValueId in[3] = {input(&t, SHAPE(B, H, S, D), DT_F64, 0)};
    for (int i = 1; i < 3; i++) {
        ValueId x = input(&t, SHAPE(B, S, HKV, D), DT_F64, 0);
        x = build_broadcast(b, build_unsqueeze(b, build_transpose(b, x, 1, 2), 2), SHAPE(B, HKV, H / HKV, S, D));
        in[i] = build_reshape(b, x, SHAPE(B, H, S, D));
    }
    Attr a[] = {attr_f(ATTR_SCALE, 0.7), attr_i(ATTR_CAUSAL, 1)};
    output(&t, build(b, OP_SDPA, 3, in, 2, a));
    run(&t, 3, forward);
    const Node *n = find_op(t.g, OP_ATTENTION);
    assert_int_equal(graph_shape(t.g, n->in[1])->dim[1], HKV);
    assert_int_equal(graph_shape(t.g, n->in[2])->dim[1], HKV);
    end(&t);
}

static ValueId soft_max(Builder *b, ValueId s) {
    return build_unary(b, OP_EXP, build_binary(b, OP_SUB, s, build_reduce(b, OP_LOGSUMEXP, s, build_shape(b, s).ndim - 1)));
}

static ValueId softmax_times(Case *t, ValueId s, ValueId v) {
    int nb = build_shape(&t->b, s).ndim - 2;
    return build_dot(&t->b, soft_max(&t->b, s), v, nb, 1, false, false);
}

// Written out, [B, H]: scale, soft-cap, then a mask in one of the usual spellings.
static void written_attention(void **state) {
    (void)state;
    static const char *const words[] = {"causal", "causal", "causal & same document", "causal", "full + bias vec0[k]"};
    for (int i = 0; i < 5; i++) {
        Case t;
        begin(&t, B, S, 50 + (uint64_t)i);
        Builder *b = &t.b;
        ValueId q = input(&t, SHAPE(B, H, S, D), DT_F64, 0), k = input(&t, SHAPE(B, H, S, D), DT_F64, 0),
                v = input(&t, SHAPE(B, H, S, D), DT_F64, 0);
        ValueId s = build_binary_scalar(b, OP_MUL, build_dot(b, q, build_transpose(b, k, 2, 3), 2, 1, false, false), 0.6);
        if (i == 1) s = build_binary_scalar(b, OP_MUL, build_unary(b, OP_TANH, build_binary_scalar(b, OP_DIV, s, 2)), 2);
        ValueId low = build_scalar(b, DT_F64, i == 0 ? -INFINITY : -1e9), zero = build_scalar(b, DT_F64, 0);
        if (i < 2) s = build_where(b, lower_triangle(&t), s, low);
        if (i == 2) s = build_where(b, build_binary(b, OP_AND, same_document(&t), lower_triangle(&t)), s, low);
        if (i == 3) s = build_binary(b, OP_ADD, s, build_where(b, lower_triangle(&t), zero, build_scalar(b, DT_F64, -3e38)));
        if (i == 4) s = build_binary(b, OP_ADD, s, input(&t, SHAPE(B, 1, 1, S), DT_F64, 0));
        finish_attention(&t, softmax_times(&t, s, v), words[i]);
    }
}

// Heads merged into the batch, the mask not.
static void written_with_merged_heads(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 60);
    Builder *b = &t.b;
    ValueId x[3];
    for (int i = 0; i < 3; i++)
        x[i] = build_reshape(b, build_transpose(b, input(&t, SHAPE(B, S, H, D), DT_F64, 0), 1, 2), SHAPE(B * H, S, D));
    ValueId s = build_reshape(b, build_dot(b, x[0], x[1], 1, 1, false, true), SHAPE(B, H, S, S));
    s = build_where(b, build_binary(b, OP_AND, same_document(&t), lower_triangle(&t)), s, build_scalar(b, DT_F64, -INFINITY));
    finish_attention(&t, softmax_times(&t, build_reshape(b, s, SHAPE(B * H, S, S)), x[2]), "causal & same document");
}

// Grouped queries as one more dim, keys on the left, v on the left.
static void written_the_other_way_round(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 61);
    Builder *b = &t.b;
    ValueId q = input(&t, SHAPE(B, HKV, 2, S, D), DT_F64, 0), k = input(&t, SHAPE(B, HKV, S, D), DT_F64, 0),
            v = input(&t, SHAPE(B, HKV, S, D), DT_F64, 0);
    ValueId s = build_permute(b, build_dot(b, k, q, 2, 1, false, true), (int[]){0, 1, 3, 4, 2});  // [B, HKV, 2, S, S]
    s = build_where(b, lower_triangle(&t), s, build_scalar(b, DT_F64, -INFINITY));
    ValueId o = build_dot(b, v, soft_max(b, s), 2, 1, true, true);  // [B, HKV, D, 2, S]
    output(&t, o);
    run(&t, 3, forward);
    expect_words(&t, "causal");
    expect_no_square(&t, S);
    assert_int_equal(graph_shape(t.g, find_op(t.g, OP_ATTENTION)->in[1])->dim[1], HKV);
    end(&t);
}

// Rows that see no key keep the meaning of the way they were written.
static void rows_without_keys(void **state) {
    (void)state;
    static const int masked_row[] = {1, 3, 0};
    for (int i = 0; i < 3; i++) {
        Case t;
        begin(&t, B, S, 70 + (uint64_t)i);
        Builder *b = &t.b;
        ValueId keys = build_binary_scalar(b, OP_EQ, input(&t, SHAPE(B, 1, 1, S), DT_I64, 3), 0);
        ValueId mask = build_binary(b, OP_AND, keys, lower_triangle(&t)), o;
        if (i == 2) {
            o = sdpa(&t, mask, false, H);
        } else {
            ValueId q = input(&t, SHAPE(B, H, S, D), DT_F64, 0), k = input(&t, SHAPE(B, H, S, D), DT_F64, 0),
                    v = input(&t, SHAPE(B, H, S, D), DT_F64, 0);
            ValueId s =
                build_where(b, mask, build_dot(b, q, k, 2, 1, false, true), build_scalar(b, DT_F64, i == 0 ? -INFINITY : -1e5));
            o = softmax_times(&t, s, v);
        }
        output(&t, o);
        run(&t, 3, forward);
        assert_int_equal(node_int_or(find_op(t.g, OP_ATTENTION), ATTR_MASKED_ROW, 0), masked_row[i]);
        end(&t);
    }
}

// A mask that is no program leaves matrix products, and they say why.
static void square_masks_stay(void **state) {
    (void)state;
    Case t;
    begin(&t, B, S, 80);
    output(&t, sdpa(&t, input(&t, SHAPE(B, 1, S, S), DT_F64, 0), true, HKV));
    run(&t, 3, forward);
    assert_null(find_op(t.g, OP_SDPA));
    assert_null(find_op(t.g, OP_ATTENTION));
    assert_non_null(find_op(t.g, OP_LOGSUMEXP)->note);
    end(&t);
}

// Random boolean masks from positions, vectors, views and gathers.
static ValueId random_index(Case *t, int along) {
    Builder *b = &t->b;
    ValueId x;
    switch (below(t, 4)) {
        case 0: x = build_iota(b, along ? SHAPE(1, S) : SHAPE(S, 1), along, below(t, 3), 1, DT_I64); break;
        case 1:
            x = build_reshape(b, build_slice(b, build_iota(b, SHAPE(2 * S), 0, 0, 1, DT_I64), 0, 3, 1, S),
                              along ? SHAPE(1, S) : SHAPE(S, 1));
            break;
        case 2: x = build_reshape(b, input(t, SHAPE(B, S), DT_I64, 6), along ? SHAPE(B, 1, 1, S) : SHAPE(B, 1, S, 1)); break;
        default:
            x = build_reshape(b, input(t, SHAPE(S, H), DT_I64, 4), SHAPE(S, H)),
            x = build_reshape(b, build_transpose(b, x, 0, 1), along ? SHAPE(1, H, 1, S) : SHAPE(1, H, S, 1));
            break;
    }
    if (below(t, 4) == 0) x = build_binary_scalar(b, below(t, 2) ? OP_FLOORDIV : OP_MOD, x, (double)(2 + below(t, 3)));
    return below(t, 3) ? x : build_binary_scalar(b, below(t, 2) ? OP_ADD : OP_SUB, x, (double)below(t, 5));
}

static ValueId random_condition(Case *t, int depth) {
    static const OpKind compare[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE};
    Builder *b = &t->b;
    if (depth == 0 || t->g->inputs.len > 10) {
        ValueId q = random_index(t, 0), k = random_index(t, 1);
        if (below(t, 5) == 0)
            return build_binary_scalar(b, OP_LT, build_unary(b, OP_ABS, build_binary(b, OP_SUB, q, k)),
                                       (double)(1 + below(t, 8)));
        return build_binary(b, compare[below(t, 6)], q, k);
    }
    ValueId x = random_condition(t, depth - 1), y = random_condition(t, depth - 1);
    switch (below(t, 5)) {
        case 0: return build_binary(b, OP_OR, x, y);
        case 1: return build_binary(b, OP_XOR, x, y);
        case 2: return build_binary(b, OP_AND, build_unary(b, OP_NOT, x), y);
        case 3: {
            ValueId sum = build_binary(b, OP_MUL, build_cast(b, x, DT_F64), build_cast(b, y, DT_F64));
            return build_binary_scalar(b, OP_GT, build_binary(b, OP_SUB, build_scalar(b, DT_F64, 1), sum), 0.5);
        }
        default: return build_binary(b, OP_AND, x, y);
    }
}

static void random_masks_keep_their_value(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 150; seed++) {
        Case t;
        begin(&t, B, S, 1000 + seed);
        Builder *b = &t.b;
        ValueId q = input(&t, SHAPE(B, H, S, D), DT_F64, 0), k = input(&t, SHAPE(B, H, S, D), DT_F64, 0),
                v = input(&t, SHAPE(B, H, S, D), DT_F64, 0);
        ValueId mask = random_condition(&t, (int)below(&t, 3)), zero = build_scalar(b, DT_F64, 0), o;
        int form = (int)below(&t, 4);
        ValueId score = build_dot(b, q, k, 2, 1, false, true), low = build_scalar(b, DT_F64, form == 1 ? -1e5 : -INFINITY);
        if (form < 2) o = softmax_times(&t, build_where(b, mask, score, low), v);
        else if (form == 2)
            o = softmax_times(&t, build_binary(b, OP_ADD, score, build_where(b, mask, zero, build_scalar(b, DT_F64, -50))), v);
        else {
            ValueId in[4] = {
                q, k, v,
                build_where(b, mask,
                            build_binary_scalar(b, OP_MUL, build_cast(b, build_binary(b, OP_SUB, row(&t), col(&t)), DT_F64), 0.1),
                            low)};
            Attr a[] = {attr_f(ATTR_SCALE, 0.7), attr_i(ATTR_CAUSAL, 0)};
            o = build(b, OP_SDPA, 4, in, 2, a);
        }
        output(&t, o);
        run(&t, 3, forward);
        assert_non_null(find_op(t.g, OP_ATTENTION));
        expect_no_square(&t, S);
        end(&t);
    }
}

// ---- experts --------------------------------------------------------------------------------------------------------
enum { N = 9, K = 2, E = 3, WIDE = 5 };

typedef struct Routed {
    ValueId x, w, e, order, sorted, rows, gate;
} Routed;

static Routed route(Case *t) {
    Builder *b = &t->b;
    Routed r = {.x = input(t, SHAPE(N, D), DT_F64, 0), .w = input(t, SHAPE(E, WIDE, D), DT_F64, 0)};
    ValueId logits = input(t, SHAPE(N, E), DT_F64, 0), top[2], sort[2];
    Attr a[] = {attr_i(ATTR_DIM, 1), attr_i(ATTR_K, K), attr_i(ATTR_DESCENDING, 1)},
         s[] = {attr_i(ATTR_DIM, 0), attr_i(ATTR_DESCENDING, 0)};
    build_multi(b, OP_TOPK, 1, &logits, 3, a, 2, top);
    r.e = build_reshape(b, top[1], SHAPE(N * K));
    r.gate = build_reshape(b, top[0], SHAPE(N * K));
    build_multi(b, OP_SORT, 1, &r.e, 2, s, 2, sort);
    r.sorted = sort[0];
    r.order = sort[1];
    r.rows = build_binary_scalar(b, OP_FLOORDIV, r.order, K);
    return r;
}

static ValueId rows_of(Case *t, ValueId x, ValueId idx) { return build(&t->b, OP_EMBEDDING, 2, (ValueId[]){x, idx}, 0, NULL); }

static ValueId grouped(Case *t, const Routed *r) {
    Builder *b = &t->b;
    Attr bins = attr_i(ATTR_NROWS, E), dim = attr_i(ATTR_DIM, 0), trans = attr_i(ATTR_TRANS_W, 0);
    ValueId keys = build_cast(b, build_cast(b, r->sorted, DT_F64), DT_I64), offs = build(b, OP_HISTOGRAM, 1, &keys, 1, &bins);
    offs = build(b, OP_CUMSUM, 1, &offs, 1, &dim);
    ValueId past = build_binary(b, OP_GE, build_iota(b, SHAPE(N * K, 1), 0, 0, 1, DT_I64), build_unsqueeze(b, offs, 0));
    ValueId group = build_squeeze(b, build_sum(b, build_cast(b, past, DT_I64), 1, (int[]){1}), 1);
    ValueId x = build_where(b, build_unsqueeze(b, build_binary_scalar(b, OP_GE, r->sorted, E), 1), build_scalar(b, DT_F64, 0),
                            rows_of(t, r->x, r->rows));
    ValueId y = build(b, OP_EXPERT_MATMUL, 3, (ValueId[]){x, group, build_transpose(b, r->w, 1, 2)}, 1, &trans);
    y = build_unary(b, OP_SILU, y);
    return build_binary(b, OP_MUL, y, build_unsqueeze(b, rows_of(t, r->gate, r->order), 1));
}

static void routing_becomes_token_wise(void **state) {
    (void)state;
    for (int form = 0; form < 3; form++) {
        Case t;
        begin(&t, 3, 3, 90 + (uint64_t)form);
        Builder *b = &t.b;
        Routed r = route(&t);
        ValueId y = grouped(&t, &r), o;
        Attr acc0 = attr_i(ATTR_ACCUMULATE, 0), acc1 = attr_i(ATTR_ACCUMULATE, 1),
             s[] = {attr_i(ATTR_DIM, 0), attr_i(ATTR_DESCENDING, 0)};
        if (form == 0) {  // inverse permutation by a scatter
            ValueId inv =
                build(b, OP_INDEX_PUT, 3,
                      (ValueId[]){build_full(b, SHAPE(N * K), DT_I64, 0), r.order, build_iota(b, SHAPE(N * K), 0, 0, 1, DT_I64)},
                      1, &acc0);
            o = build_sum(b, build_reshape(b, rows_of(&t, y, inv), SHAPE(N, K, WIDE)), 1, (int[]){1});
        } else if (form == 1) {  // argsort of the order, two-dimensional
            ValueId back[2];
            build_multi(b, OP_SORT, 1, &r.order, 2, s, 2, back);
            o = build_sum(b, rows_of(&t, y, build_reshape(b, back[1], SHAPE(N, K))), 1, (int[]){1});
        } else {  // index_add
            o = build(b, OP_INDEX_PUT, 3, (ValueId[]){build_full(b, SHAPE(N, WIDE), DT_F64, 0), r.rows, y}, 1, &acc1);
        }
        output(&t, o);
        output(&t, build_sum(b, y, 2, (int[]){0, 1}));
        run(&t, 3, forward);
        assert_int_equal(count_op(t.g, OP_SORT), 0);
        assert_int_equal(count_op(t.g, OP_EMBEDDING) + count_op(t.g, OP_INDEX_PUT), 0);
        assert_int_equal(node_int_or(find_op(t.g, OP_EXPERT_MATMUL), ATTR_TRANS_W, 0), 1);
        end(&t);
    }
}

// A use of the sorted rows that depends on their order keeps the sort, and the value.
static void order_that_matters_stays(void **state) {
    (void)state;
    Case t;
    begin(&t, 3, 3, 95);
    Routed r = route(&t);
    output(&t, build_slice(&t.b, grouped(&t, &r), 0, 2, 1, 5));
    run(&t, 3, forward);
    assert_int_equal(count_op(t.g, OP_SORT), 1);
    end(&t);
}

static void gathered_weights_become_expert_products(void **state) {
    (void)state;
    Case t;
    begin(&t, 3, 3, 96);
    Builder *b = &t.b;
    Routed r = route(&t);
    ValueId x = rows_of(&t, r.x, build_binary_scalar(b, OP_FLOORDIV, build_iota(b, SHAPE(N * K), 0, 0, 1, DT_I64), K));
    output(&t,
           build_dot(b, rows_of(&t, r.w, r.e), build_unsqueeze(b, x, 2), 1, 1, false, false));  // [N*K, WIDE, D] x [N*K, D, 1]
    run(&t, 3, forward);
    assert_int_equal(count_op(t.g, OP_EXPERT_MATMUL), 1);
    assert_int_equal(count_op(t.g, OP_DOT), 0);
    end(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_of_one_row_fold),
        cmocka_unit_test(identities_vanish),
        cmocka_unit_test(transposed_weights_become_flags),
        cmocka_unit_test(split_gradients_are_concats),
        cmocka_unit_test(random_graphs_keep_their_value),
        cmocka_unit_test(causal_flag),
        cmocka_unit_test(window_of_positions),
        cmocka_unit_test(a_window_of_the_whole_row_is_none),
        cmocka_unit_test(documents),
        cmocka_unit_test(flattened_gathers_are_the_identity),
        cmocka_unit_test(mask_buffers_are_read),
        cmocka_unit_test(repeated_heads_are_found),
        cmocka_unit_test(written_attention),
        cmocka_unit_test(written_with_merged_heads),
        cmocka_unit_test(written_the_other_way_round),
        cmocka_unit_test(rows_without_keys),
        cmocka_unit_test(square_masks_stay),
        cmocka_unit_test(random_masks_keep_their_value),
        cmocka_unit_test(routing_becomes_token_wise),
        cmocka_unit_test(order_that_matters_stays),
        cmocka_unit_test(gathered_weights_become_expert_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
