// Rules of the op table that the generated tests cannot know: what an error says, gradients at kinks (values from PyTorch), and
// which rows movement ops offer. Kernels and finite differences: test_ops_generated.c.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "exec/exec.h"
#include "ir/build.h"
#include "ops/op.h"
#include "pass/pass.h"

typedef struct Fixture {
    Arena *arena;
    Graph *g;
    Diag d;
    Builder b;
} Fixture;

static Fixture *fixture_new(int nranks) {
    Arena *a = arena_new();
    Fixture *f = ARENA_NEW(a, Fixture);
    f->arena = a;
    f->g = graph_new(a, "test", nranks);
    f->b = (Builder){.g = f->g, .d = &f->d};
    return f;
}

static void fixture_free(Fixture *f) {
    graph_free_vecs(f->g);
    arena_free(f->arena);
}

static ValueId zeros(Fixture *f, Shape s, DType t) { return build_full(&f->b, s, t, 0); }

// ---- the table -----------------------------------------------------------------------------------------------------------

static void test_table(void **state) {
    (void)state;
    for (int k = 0; k < OP_COUNT; k++) {
        OpKind found = OP_COUNT;
        assert_true(op_from_name(op_name((OpKind)k), &found));
        assert_int_equal(found, k);
        const OpInfo *info = op_info((OpKind)k);
        assert_non_null(info);
        if (!info->infer || !info->shard || !info->cost) fail_msg("%s lacks a rule", op_name((OpKind)k));
        for (int i = 0; i < info->nsample; i++) assert_non_null(info->samples[i].label);
        bool table_entry = k == OP_PARAM || k == OP_INPUT || k == OP_CONSTANT || k == OP_RESHARD;
        if (info->nsample < 2 && !table_entry) fail_msg("%s has %d samples", op_name((OpKind)k), info->nsample);
    }
    OpKind none;
    assert_false(op_from_name("no such op", &none));
    assert_string_equal(op_name((OpKind)OP_COUNT), "?");
}

// ---- the builder ---------------------------------------------------------------------------------------------------------

static void test_builder_shapes(void **state) {
    (void)state;
    Fixture *f = fixture_new(1);
    Builder *b = &f->b;
    ValueId x = zeros(f, SHAPE(2, 3, 4), DT_F32);
    int64_t before = f->g->nodes.len;
    assert_int_equal(build_cast(b, x, DT_F32), x);  // what changes nothing adds nothing
    assert_int_equal(build_reshape(b, x, SHAPE(2, 3, 4)), x);
    assert_int_equal(build_slice(b, x, 1, 0, 1, 3), x);
    assert_int_equal(build_pad(b, x, 1, 0, 0, 5), x);
    assert_int_equal(build_permute(b, x, (int[]){0, 1, 2}), x);
    assert_int_equal(build_broadcast(b, x, SHAPE(2, 3, 4)), x);
    assert_int_equal(build_sum(b, x, 0, NULL), x);
    assert_int_equal(build_concat(b, 1, &x, 0), x);
    assert_int_equal(build_sum_to(b, x, SHAPE(2, 3, 4)), x);
    assert_int_equal(f->g->nodes.len, before);

    const struct {
        ValueId v;
        Shape want;
    } made[] = {
        {build_transpose(b, x, 0, 2), SHAPE(4, 3, 2)},
        {build_broadcast(b, zeros(f, SHAPE(3, 1), DT_F32), SHAPE(5, 3, 4)), SHAPE(5, 3, 4)},
        {build_squeeze(b, build_slice(b, x, 1, 2, 1, 1), 1), SHAPE(2, 4)},
        {build_unsqueeze(b, x, 3), SHAPE(2, 3, 4, 1)},
        {build_sum_to(b, x, SHAPE(3, 1)), SHAPE(3, 1)},
        {build_sum_to(b, x, SHAPE0), SHAPE0},
        {build_sum_all(b, x), SHAPE0},
        {build_sum_all(b, build_scalar(b, DT_F32, 1)), SHAPE0},
        {build_reduce(b, OP_LOGSUMEXP, x, 2), SHAPE(2, 3, 1)},
        {build_reduce(b, OP_AMAX, x, 0), SHAPE(1, 3, 4)},
        {build_concat(b, 2, (ValueId[]){x, x}, 1), SHAPE(2, 6, 4)},
    };
    assert_int_equal(b->status, ST_OK);
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) assert_true(shape_equal(graph_shape(f->g, made[i].v), &made[i].want));
    fixture_free(f);
}

static void test_builder_remembers_the_first_error(void **state) {
    (void)state;
    Fixture *f = fixture_new(1);
    Builder *b = &f->b;
    ValueId x = zeros(f, SHAPE(2, 3), DT_F32), y = zeros(f, SHAPE(4), DT_F32);
    ValueId bad = build_binary(b, OP_ADD, x, y);
    assert_int_equal(bad, NO_VALUE);
    assert_int_equal(b->status, ST_INPUT);
    int64_t nodes = f->g->nodes.len;
    assert_int_equal(build_unary(b, OP_EXP, bad), NO_VALUE);
    assert_int_equal(build_sum_all(b, build_broadcast(b, bad, SHAPE(2))), NO_VALUE);
    assert_int_equal(build_binary_scalar(b, OP_MUL, bad, 2), NO_VALUE);
    assert_int_equal(f->g->nodes.len, nodes);
    assert_non_null(strstr(f->d.text, "does not broadcast"));
    fixture_free(f);
}

// ---- errors --------------------------------------------------------------------------------------------------------------

static void expect_error(Fixture *f, ValueId v, const char *text) {
    assert_int_equal(v, NO_VALUE);
    if (!strstr(f->d.text, text)) fail_msg("\"%s\" does not say \"%s\"", f->d.text, text);
    diag_clear(&f->d);
    f->b.status = ST_OK;
}

static void test_errors_name_operand_and_size(void **state) {
    (void)state;
    Fixture *f = fixture_new(1);
    Builder *b = &f->b;
    ValueId x = zeros(f, SHAPE(2, 3), DT_F32), i = zeros(f, SHAPE(2, 3), DT_I64), t = zeros(f, SHAPE(3), DT_BOOL);
    expect_error(f, build_binary(b, OP_ADD, x, i), "f32 and i64");
    expect_error(f, build_binary(b, OP_MUL, t, t), "operand 0 is bool");
    expect_error(f, build_unary(b, OP_EXP, i), "operand 0 is i64");
    expect_error(f, build_where(b, x, x, x), "condition of where must be bool");
    expect_error(f, build_reshape(b, x, SHAPE(4)), "[2,3] to [4]");
    expect_error(f, build_slice(b, x, 1, 2, 1, 2), "leaves dim 1 of [2,3]");
    expect_error(f, build_slice(b, x, 2, 0, 1, 1), "outside [0, 1]");
    expect_error(f, build_concat(b, 2, (ValueId[]){x, zeros(f, SHAPE(3, 3), DT_F32)}, 1), "operand 1 is [3,3]");
    expect_error(f, build_broadcast(b, zeros(f, SHAPE(2), DT_F32), SHAPE(3)), "only dims of size 1 can grow");
    expect_error(f, build_sum(b, x, 2, (int[]){1, 1}), "dim 1 twice");
    expect_error(f, build_reduce(b, OP_AMAX, zeros(f, SHAPE(0), DT_F32), 0), "nothing to choose from");
    expect_error(f, build_full(b, SHAPE(INT64_C(1) << 40, INT64_C(1) << 40), DT_F32, 0), "too many elements");
    expect_error(f, build_full(b, SHAPE(3), DT_BF16, 0), "bf16");
    expect_error(f, build_full(b, SHAPE(3), DT_I64, 0.5), "no i64 has the value 0.5");
    expect_error(f, build_pad(b, i, 0, 1, 0, INFINITY), "no i64 has the value inf");
    expect_error(f, build_binary(b, OP_EMBEDDING, x, x), "operand 1 of embedding must be an i64");
    expect_error(f, build_binary(b, OP_PICK, x, i), "index must be [2]");
    fixture_free(f);
}

// ---- gradients at kinks ----------------------------------------------------------------------------------------------------

enum { MAX_X = 8 };

typedef ValueId (*FormulaFn)(Builder *b, const ValueId *x);

// d/dx_i of sum(f(x) * (1, 2, 3...)) for nx operands of shape s.
static void gradient_of(FormulaFn fn, Shape s, int nx, double x[][MAX_X], double grad[][MAX_X]) {
    Fixture *f = fixture_new(1);
    ValueId ids[3];
    const double *params[3];
    for (int i = 0; i < nx; i++) {
        vec_push(&f->g->params, ((Param){.name = "x", .shape = s, .dtype = DT_F64, .trainable = true}));
        ids[i] = build(&f->b, OP_PARAM, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, i)});
        params[i] = x[i];
    }
    ValueId y = fn(&f->b, ids);
    int64_t numel = shape_numel(graph_shape(f->g, y));
    ValueId w = build_reshape(&f->b, build_iota(&f->b, SHAPE(numel), 0, 1, 1, DT_F64), *graph_shape(f->g, y));
    graph_add_output(f->g, OUT_LOSS, -1, 0, "loss", build_sum_all(&f->b, build_binary(&f->b, OP_MUL, y, w)));
    assert_int_equal(f->b.status, ST_OK);
    Graph *joint = NULL;
    PassContext pc = {.scratch = f->arena, .nranks = 1};
    if (pass_grad(&pc, f->g, &joint, &f->d) != ST_OK) fail_msg("%s", f->d.text);
    double loss, *out[4] = {&loss};
    for (int64_t i = 0; i < joint->outputs.len; i++)
        if (joint->outputs.data[i].kind == OUT_GRAD) out[i] = grad[joint->outputs.data[i].param];
    if (reference_run(joint, &(Reference){.params = params}, out, &f->d) != ST_OK) fail_msg("%s", f->d.text);
    graph_free_vecs(joint);
    fixture_free(f);
}

static void assert_same(const char *what, const double *got, const double *want, int n) {
    for (int i = 0; i < n; i++) {
        bool same = got[i] == want[i] || (isnan(got[i]) && isnan(want[i])) || fabs(got[i] - want[i]) <= 1e-12 * fabs(want[i]);
        if (!same) fail_msg("%s: gradient %d is %.17g, not %.17g", what, i, got[i], want[i]);
    }
}

static ValueId f_abs(Builder *b, const ValueId *x) { return build_unary(b, OP_ABS, x[0]); }
static ValueId f_max(Builder *b, const ValueId *x) { return build_binary(b, OP_MAX, x[0], x[1]); }
static ValueId f_min(Builder *b, const ValueId *x) { return build_binary(b, OP_MIN, x[0], x[1]); }
static ValueId f_mod(Builder *b, const ValueId *x) { return build_binary(b, OP_MOD, x[0], x[1]); }
static ValueId f_pow(Builder *b, const ValueId *x) { return build_binary(b, OP_POW, x[0], x[1]); }
static ValueId f_pow2(Builder *b, const ValueId *x) { return build_binary_scalar(b, OP_POW, x[0], 2); }
static ValueId f_pow3(Builder *b, const ValueId *x) { return build_binary_scalar(b, OP_POW, x[0], 3); }
static ValueId f_pow_m1(Builder *b, const ValueId *x) { return build_binary_scalar(b, OP_POW, x[0], -1); }
static ValueId f_pow_half(Builder *b, const ValueId *x) { return build_binary_scalar(b, OP_POW, x[0], 0.5); }
static ValueId f_sqrt(Builder *b, const ValueId *x) { return build_unary(b, OP_SQRT, x[0]); }
static ValueId f_silu(Builder *b, const ValueId *x) { return build_unary(b, OP_SILU, x[0]); }
static ValueId f_gelu(Builder *b, const ValueId *x) { return build_unary(b, OP_GELU, x[0]); }
static ValueId f_gelu_tanh(Builder *b, const ValueId *x) { return build_unary(b, OP_GELU_TANH, x[0]); }
static ValueId f_where(Builder *b, const ValueId *x) {
    ValueId zero = build_scalar(b, build_dtype(b, x[0]), 0);
    return build_where(b, build_binary(b, OP_GT, x[0], zero), x[0], build_unary(b, OP_NEG, x[1]));
}
static ValueId f_amax(Builder *b, const ValueId *x) { return build_reduce(b, OP_AMAX, x[0], 0); }
static ValueId f_logsumexp(Builder *b, const ValueId *x) { return build_reduce(b, OP_LOGSUMEXP, x[0], 1); }

static void test_gradients_at_kinks(void **state) {
    (void)state;
    const double nan = NAN, inf = INFINITY;
    const struct {
        const char *what;
        FormulaFn fn;
        Shape shape;
        int nx;
        double x[2][MAX_X], want[2][MAX_X];
    } cases[] = {
        {"abs", f_abs, SHAPE(3), 1, {{-2, 0, 3}}, {{-1, 0, 3}}},
        {"max", f_max, SHAPE(3), 2, {{1, 2, 2}, {2, 1, 2}}, {{0, 2, 1.5}, {1, 0, 1.5}}},
        {"min", f_min, SHAPE(3), 2, {{1, 2, 2}, {2, 1, 2}}, {{1, 0, 1.5}, {0, 2, 1.5}}},
        {"mod", f_mod, SHAPE(3), 2, {{5, -5, 5}, {3, 3, -3}}, {{1, 2, 3}, {-1, 4, 6}}},
        {"pow", f_pow, SHAPE(5), 2, {{2, 0, 0, 3, 0}, {3, 0, 2, 0, -1}},
         {{12, 0, 0, 0, -inf}, {5.545177444479562, 0, 0, 4.394449154672439, -inf}}},
        {"pow 2", f_pow2, SHAPE(3), 1, {{-1.5, 2, 0.5}}, {{-3, 8, 3}}},
        {"pow 3", f_pow3, SHAPE(3), 1, {{-1.5, 2, 0.5}}, {{6.75, 24, 2.25}}},
        {"pow -1", f_pow_m1, SHAPE(3), 1, {{-1.5, 2, 0.5}}, {{-0.4444444444444444, -0.5, -12}}},
        {"pow 0.5", f_pow_half, SHAPE(3), 1, {{-1.5, 2, 0.5}}, {{nan, 0.7071067811865475, 2.1213203435596424}}},
        {"sqrt", f_sqrt, SHAPE(2), 1, {{0, 4}}, {{inf, 0.5}}},
        {"silu", f_silu, SHAPE(3), 1, {{-800, 0, 800}}, {{0, 1, 3}}},
        {"gelu", f_gelu, SHAPE(3), 1, {{-30, 0, 30}}, {{-4.420938404635643e-195, 1, 3}}},
        {"gelu tanh", f_gelu_tanh, SHAPE(3), 1, {{-30, 0, 30}}, {{0, 1, 3}}},
        {"where", f_where, SHAPE(3), 2, {{1, -1, 0}, {4, 5, inf}}, {{1, 0, 0}, {0, -2, -3}}},
        {"amax", f_amax, SHAPE(3, 2), 1, {{1, 5, 1, 2, 0, 5}}, {{0.5, 1, 0.5, 0, 0, 1}}},
        {"logsumexp", f_logsumexp, SHAPE(2, 3), 1, {{1, 2, -inf, -inf, -inf, -inf}},
         {{0.26894142136999505, 0.7310585786300048, 0, nan, nan, nan}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double x[2][MAX_X], grad[2][MAX_X] = {{0}};
        memcpy(x, cases[i].x, sizeof x);
        gradient_of(cases[i].fn, cases[i].shape, cases[i].nx, x, grad);
        for (int k = 0; k < cases[i].nx; k++)
            assert_same(cases[i].what, grad[k], cases[i].want[k], (int)shape_numel(&cases[i].shape));
    }
}

// ---- rows ----------------------------------------------------------------------------------------------------------------

typedef struct RowTest {
    Fixture *f;
    Node *n;
    Placement in[4], out[2];
    Row row;
} RowTest;

static void row_test(RowTest *t, Fixture *f, ValueId v) {
    assert_int_equal(f->b.status, ST_OK);
    *t = (RowTest){.f = f, .n = graph_def(f->g, v)};
    t->row = (Row){.in = t->in, .out = t->out};
}

static bool row_ask(RowTest *t, int slot, Placement p) { return op_info(t->n->op)->shard(t->f->g, t->n, slot, p, &t->row); }

static LayoutId cuts(Fixture *f, int64_t extent, int64_t a, int64_t b) {
    return layouts_cuts(f->g->layouts, extent, (int64_t[]){0, a, b, extent});
}

static void assert_shard(const Placement *p, int dim, LayoutId layout) {
    assert_int_equal(p->kind, PLACE_SHARD);
    assert_int_equal(p->dim, dim);
    assert_int_equal(p->layout, layout);
}

static void test_reshape_rows(void **state) {
    (void)state;
    Fixture *f = fixture_new(3);
    LayoutTable *l = f->g->layouts;
    RowTest t;
    row_test(&t, f, build_reshape(&f->b, zeros(f, SHAPE(2, 7, 4), DT_F32), SHAPE(14, 4)));
    LayoutId s = cuts(f, 7, 1, 5), merged = layout_merge(l, s, 2, 1);
    assert_true(row_ask(&t, 0, shard_on(1, s)));  // S inside B*S
    assert_shard(&t.out[0], 0, merged);
    assert_true(row_ask(&t, ~0, shard_on(0, merged)));  // and back
    assert_shard(&t.in[0], 1, s);
    assert_true(row_ask(&t, 0, shard_on(2, cuts(f, 4, 1, 2))));
    assert_shard(&t.out[0], 1, cuts(f, 4, 1, 2));
    assert_false(row_ask(&t, ~0, shard_on(0, cuts(f, 14, 3, 10))));  // neither whole rows of S nor the same part of each

    // S cut into blocks of 4: borders inside a block have no row, whole blocks do, and are offered
    row_test(&t, f, build_reshape(&f->b, zeros(f, SHAPE(24, 5), DT_F32), SHAPE(6, 4, 5)));
    assert_false(row_ask(&t, 0, shard_on(0, cuts(f, 24, 7, 15))));
    assert_true(row_ask(&t, 0, shard_on(0, cuts(f, 24, 8, 12))));
    assert_shard(&t.out[0], 0, cuts(f, 6, 2, 3));
    int count = op_info(OP_RESHAPE)->extra_rows(f->g, t.n, -1, NULL);
    bool offered = false;
    for (int i = 0; i < count; i++) {
        assert_int_equal(op_info(OP_RESHAPE)->extra_rows(f->g, t.n, i, &t.row), count);
        offered |= t.in[0].layout == layouts_even_blocks(l, 24, 4) && t.out[0].dim == 0 && t.out[0].layout == layouts_even(l, 6);
    }
    assert_true(offered);

    row_test(&t, f, build_reshape(&f->b, zeros(f, SHAPE(1, 1), DT_F32), SHAPE0));
    assert_false(row_ask(&t, 0, shard_on(0, layouts_even(l, 1))));
    row_test(&t, f, build_reshape(&f->b, zeros(f, SHAPE(0, 4), DT_F32), SHAPE(4, 0)));
    assert_false(row_ask(&t, 0, shard_on(1, layouts_even(l, 4))));
    fixture_free(f);
}

static void test_slice_pad_concat_rows(void **state) {
    (void)state;
    Fixture *f = fixture_new(3);
    RowTest t;
    ValueId x = zeros(f, SHAPE(2, 9), DT_F32);
    LayoutId nine = cuts(f, 9, 3, 6), eight = cuts(f, 8, 2, 5);
    row_test(&t, f, build_slice(&f->b, x, 1, 1, 1, 8));  // labels[:, 1:]
    assert_true(row_ask(&t, 0, shard_on(1, nine)));
    assert_shard(&t.out[0], 1, eight);
    assert_true(row_ask(&t, ~0, shard_on(1, eight)));
    assert_shard(&t.in[0], 1, nine);
    row_test(&t, f, build_slice(&f->b, x, 1, 0, 2, 5));
    assert_true(row_ask(&t, 0, shard_on(1, nine)));
    assert_shard(&t.out[0], 1, cuts(f, 5, 2, 3));
    assert_false(row_ask(&t, ~0, shard_on(1, cuts(f, 5, 2, 3))));

    row_test(&t, f, build_pad(&f->b, zeros(f, SHAPE(2, 8), DT_F32), 1, 0, 1, 0));
    assert_true(row_ask(&t, 0, shard_on(1, eight)));
    assert_shard(&t.out[0], 1, cuts(f, 9, 2, 5));
    assert_true(row_ask(&t, 0, PARTIAL_SUM));
    row_test(&t, f, build_pad(&f->b, zeros(f, SHAPE(2, 8), DT_F32), 1, 0, 1, -100));
    assert_false(row_ask(&t, 0, PARTIAL_SUM));  // the value would be added once per rank

    // a token in front: the long operand stays where it is
    row_test(&t, f, build_concat(&f->b, 2, (ValueId[]){zeros(f, SHAPE(2, 1), DT_F32), zeros(f, SHAPE(2, 8), DT_F32)}, 1));
    assert_true(row_ask(&t, 1, shard_on(1, eight)));
    assert_shard(&t.out[0], 1, cuts(f, 9, 3, 6));
    assert_shard(&t.in[0], 1, cuts(f, 1, 1, 1));
    assert_true(row_ask(&t, ~0, shard_on(1, nine)));
    assert_shard(&t.in[1], 1, eight);
    // two halves of equal length: each rank holds its part of both
    row_test(&t, f, build_concat(&f->b, 2, (ValueId[]){x, x}, 1));
    assert_true(row_ask(&t, 0, shard_on(1, nine)));
    assert_shard(&t.in[1], 1, nine);
    assert_int_equal(layout_local(layouts_get(f->g->layouts, t.out[0].layout), 0), 6);
    fixture_free(f);
}

static void test_partial_rows(void **state) {
    (void)state;
    Fixture *f = fixture_new(2);
    Builder *b = &f->b;
    RowTest t;
    ValueId x = zeros(f, SHAPE(5, 4), DT_F32), y = zeros(f, SHAPE(4), DT_F32);
    LayoutId even = layouts_even(f->g->layouts, 5);
    row_test(&t, f, build_sum(b, x, 1, (int[]){0}));
    assert_true(row_ask(&t, 0, shard_on(0, even)));
    assert_true(placement_equal(&t.out[0], &PARTIAL_SUM));
    assert_true(row_ask(&t, 0, shard_on(1, layouts_even(f->g->layouts, 4))));
    assert_int_equal(t.out[0].kind, PLACE_SHARD);
    row_test(&t, f, build_reduce(b, OP_AMAX, x, 0));
    assert_true(row_ask(&t, 0, shard_on(0, even)));
    assert_true(placement_equal(&t.out[0], &PARTIAL_MAX));
    row_test(&t, f, build_reduce(b, OP_LOGSUMEXP, x, 0));
    assert_false(row_ask(&t, 0, shard_on(0, even)));
    row_test(&t, f, build_binary(b, OP_ADD, x, y));
    assert_true(row_ask(&t, 0, PARTIAL_SUM));
    assert_true(placement_equal(&t.in[1], &PARTIAL_SUM));  // a whole bias would be added once per rank
    assert_false(row_ask(&t, 0, PARTIAL_MAX));
    row_test(&t, f, build_binary(b, OP_MUL, x, y));
    assert_true(row_ask(&t, 1, PARTIAL_SUM));
    assert_int_equal(t.in[0].kind, PLACE_REPLICATE);
    row_test(&t, f, build_binary(b, OP_DIV, x, y));
    assert_false(row_ask(&t, 1, PARTIAL_SUM));
    row_test(&t, f, build_unary(b, OP_EXP, x));
    assert_false(row_ask(&t, 0, PARTIAL_SUM));
    assert_true(row_ask(&t, 0, shard_on(0, even)));
    // copies on several ranks are no partition: most ops refuse them
    int32_t nspan[] = {1, 1};
    LayoutId both = layouts_intern(f->g->layouts, 5, nspan, (Span[]){{0, 3}, {2, 5}});
    assert_false(row_ask(&t, 0, shard_on(0, both)));
    assert_false(row_ask(&t, 0, shard_sum_on(0, even)));
    fixture_free(f);
}

static void test_broadcast_operands_are_whole(void **state) {
    (void)state;
    Fixture *f = fixture_new(2);
    RowTest t;
    ValueId x = zeros(f, SHAPE(2, 5, 4), DT_F32), column = zeros(f, SHAPE(5, 1), DT_F32), bias = zeros(f, SHAPE(4), DT_F32);
    LayoutId even = layouts_even(f->g->layouts, 5);
    row_test(&t, f, build_binary(&f->b, OP_ADD, x, column));
    assert_true(row_ask(&t, 0, shard_on(1, even)));
    assert_shard(&t.in[1], 0, even);
    assert_true(row_ask(&t, 1, shard_on(0, even)));
    assert_shard(&t.in[0], 1, even);
    row_test(&t, f, build_binary(&f->b, OP_MUL, x, bias));
    assert_true(row_ask(&t, ~0, shard_on(1, even)));
    assert_int_equal(t.in[1].kind, PLACE_REPLICATE);
    row_test(&t, f, build_broadcast(&f->b, column, SHAPE(5, 6)));
    assert_true(row_ask(&t, ~0, shard_on(1, layouts_even(f->g->layouts, 6))));
    assert_int_equal(t.in[0].kind, PLACE_REPLICATE);
    fixture_free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_builder_shapes),
        cmocka_unit_test(test_builder_remembers_the_first_error),
        cmocka_unit_test(test_errors_name_operand_and_size),
        cmocka_unit_test(test_gradients_at_kinks),
        cmocka_unit_test(test_reshape_rows),
        cmocka_unit_test(test_slice_pad_concat_rows),
        cmocka_unit_test(test_partial_rows),
        cmocka_unit_test(test_broadcast_operands_are_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
