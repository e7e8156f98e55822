// Random graphs through schedule, plan and runtime against the reference executor: whatever is moved, aliased, taken over or
// updated in place, every output and the updated state must come out as if each node had its own memory.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "exec/exec.h"
#include "ir/build.h"

enum { N0 = 4, N1 = 6, NUMEL = N0 * N1, NODES = 30, OUT_MAX = 64 };

static uint64_t rng = 5;
static int64_t draw(int64_t n) {  // [0, n)
    rng = hash_bytes(rng, "x", 1);
    return (int64_t)(rng % (uint64_t)n);
}

// Values of three shapes: [4,6], [6,4] and [24].
typedef struct Pool3 {
    VEC(ValueId) of[3];
} Pool3;
static Shape shape_at(int k) { return k == 0 ? SHAPE(N0, N1) : k == 1 ? SHAPE(N1, N0) : SHAPE(NUMEL); }
static ValueId pick(const Pool3 *p, int k) { return p->of[k].data[draw(p->of[k].len)]; }
static void give(Pool3 *p, int k, ValueId v) { vec_push(&p->of[k], v); }

// A reshape even to the same shape.
static ValueId view(Builder *b, ValueId x, Shape s) {
    return build(b, OP_RESHAPE, 1, &x, 1, (Attr[]){attr_ints(ATTR_SHAPE, s.ndim, s.dim)});
}

static ValueId state(Builder *b, int kind) {
    Attr attr[] = {attr_i(ATTR_INDEX, 0), attr_i(ATTR_KIND, kind), attr_i(ATTR_DTYPE, DT_F64)};
    return build(b, OP_PARAM, 0, NULL, 3, attr);
}

static void add_random(Builder *b, Pool3 *p) {
    int k = (int)draw(3), other = (int)draw(3);
    ValueId x = pick(p, k), y = pick(p, k);
    switch (draw(9)) {
    case 0: give(p, k, build_binary(b, OP_ADD, x, y)); break;
    case 1: give(p, k, build_unary(b, OP_TANH, build_binary(b, OP_MUL, x, y))); break;
    case 2: give(p, k, build_unary(b, OP_NEG, x)); break;
    case 3: give(p, other, view(b, x, shape_at(other))); break;
    case 4: give(p, 1, build_transpose(b, pick(p, 0), 0, 1)); break;
    case 5: give(p, k, build_full(b, shape_at(k), DT_F64, 0.25 * (double)draw(5))); break;
    case 6: give(p, k, build_binary(b, OP_SUB, x, build_sum(b, y, 1, (int[]){0}))); break;  // broadcast over dim 0
    case 7: give(p, k, build_iota(b, shape_at(k), 0, draw(3), 1, DT_F64)); break;
    case 8: give(p, k, build_unary(b, OP_STOP_GRAD, x)); break;
    }
}

static void add_update(Builder *b, Pool3 *p, ValueId w) {
    ValueId m = state(b, 1), v = state(b, 2), out[3];
    ValueId hyper = build(b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 1)});
    ValueId in[6] = {w, pick(p, 0), m, v, hyper, build_scalar(b, DT_F64, 1)};
    Attr attr[] = {attr_f(ATTR_BETA1, 0.9), attr_f(ATTR_BETA2, 0.99), attr_f(ATTR_EPS, 1e-8), attr_f(ATTR_DECAY, 0)};
    build_multi(b, OP_ADAMW, 6, in, 4, attr, 3, out);
    for (int i = 0; i < 3; i++) graph_add_output(b->g, OUT_STATE, 0, i, "w", out[i]);
}

static Graph *random_graph(Arena *a) {
    Diag d = {0};
    Graph *g = graph_new(a, "random", 1);
    vec_push(&g->inputs, ((Input){.name = "x", .shape = SHAPE(N0, N1), .dtype = DT_F64, .seq_dim = -1, .batch_dim = -1}));
    vec_push(&g->inputs, ((Input){.name = "hyper", .shape = SHAPE(3), .dtype = DT_F64, .seq_dim = -1, .batch_dim = -1}));
    vec_push(&g->params, ((Param){.name = "w", .shape = SHAPE(N0, N1), .dtype = DT_F64, .trainable = true}));
    Builder b = {.g = g, .d = &d};
    Pool3 p = {0};
    ValueId x = build(&b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)});
    ValueId w = state(&b, 0);
    give(&p, 0, x);
    give(&p, 0, w);
    give(&p, 1, build_transpose(&b, w, 0, 1));
    give(&p, 2, build_reshape(&b, w, SHAPE(NUMEL)));
    int update = (int)draw(NODES);  // later nodes may use w's old value: the schedule must put them first
    for (int i = 0; i < NODES; i++) {
        if (i == update) add_update(&b, &p, w);
        add_random(&b, &p);
    }
    for (int i = 0; i < 4; i++) graph_add_output(g, OUT_AUX, -1, 0, "aux", pick(&p, (int)draw(3)));  // perhaps w or a view of it
    if (b.status != ST_OK) fail_msg("%s", d.text);
    for (int k = 0; k < 3; k++) vec_free(&p.of[k]);
    return g;
}

static void check_graph(int round) {
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = random_graph(a), *s = NULL;
    double x[NUMEL], w[NUMEL], hyper[3] = {0.1, 0.1, 0.01}, want[OUT_MAX][NUMEL], got[NUMEL], *out[OUT_MAX];
    for (int i = 0; i < NUMEL; i++) {
        x[i] = sin(i + round);
        w[i] = cos(i * 0.7 + round);
    }
    for (int i = 0; i < OUT_MAX; i++) out[i] = want[i];
    const double *inputs[] = {x, hyper}, *params[] = {w};
    Reference r = {.inputs = inputs, .params = params, .hyper = hyper};
    if (reference_run(g, &r, out, &d) != ST_OK) fail_msg("%s", d.text);
    if (pass_schedule(g, &s, &d) != ST_OK) fail_msg("round %d: %s", round, d.text);
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1 + round % 2};
    Plan *p = NULL;
    Runtime *rt = NULL;
    if (plan_make(a, s, &o, &p, &d) != ST_OK || runtime_new(p, 0, &rt, &d) != ST_OK) fail_msg("round %d: %s", round, d.text);
    assert_int_equal(runtime_set_input(rt, 0, x, &d), ST_OK);
    assert_int_equal(runtime_set_state(rt, 0, 0, w, DT_F64, &d), ST_OK);
    assert_int_equal(runtime_set_hyper(rt, hyper, &d), ST_OK);
    double loss;
    if (runtime_step(rt, 0, &loss, &d) != ST_OK) fail_msg("round %d: %s", round, d.text);
    for (int i = 0; i < (int)s->outputs.len; i++) {
        assert_int_equal(runtime_get_output(rt, i, got, &d), ST_OK);
        for (int64_t k = 0; k < NUMEL; k++)
            if (!(fabs(got[k] - want[i][k]) <= 1e-12 * (1 + fabs(want[i][k]))))
                fail_msg("round %d, output %d, element %lld: %.17g, expected %.17g", round, i, (long long)k, got[k], want[i][k]);
    }
    runtime_free(rt);
    graph_free_vecs(s);
    graph_free_vecs(g);
    arena_free(a);
}

static void test_random_graphs(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) check_graph(round);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_graphs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
