// The optimizer on programs whose gradients are other parameters' values: what a step reports and leaves behind is from before
// the update, on any number of ranks.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "driver/driver.h"
#include "exec/exec.h"
#include "ir/build.h"

// loss = sum(a * b), a [N] and b [N,1] (seen through a view): da = b, db = a.
enum { N = 5 };
static Graph *product(Arena *a, Diag *d) {
    Graph *g = graph_new(a, "product", 1);
    g->batch = 1;
    g->seq = N;
    vec_push(&g->params, ((Param){.name = "a", .shape = SHAPE(N), .dtype = DT_F64, .trainable = true}));
    vec_push(&g->params, ((Param){.name = "b", .shape = SHAPE(N, 1), .dtype = DT_F64, .trainable = true}));
    Builder b = {.g = g, .d = d, .source = "test.py:1"};
    ValueId p[2];
    for (int i = 0; i < 2; i++)
        p[i] = build(&b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, i), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, DT_F64)});
    ValueId loss = build_sum_all(&b, build_binary(&b, OP_MUL, p[0], build_reshape(&b, p[1], SHAPE(N))));
    assert_int_equal(b.status, ST_OK);
    graph_add_output(g, OUT_LOSS, -1, 0, "loss", loss);
    return g;
}

static double value_of(int param, int i) { return param ? 0.5 - 0.25 * i : 1.0 + i; }

static void step_on(int ranks, bool fused) {
    Diag d = {0};
    CompileOptions o;
    Compiled c = {0};
    Runtime *rt = NULL;
    compile_defaults(&o);
    o.nranks = ranks;
    o.nthreads = 1;
    o.update = o.verify_each = true;
    o.no_fuse = !fused;
    Arena *a = arena_new();
    if (compile_graph(a, product(a, &d), &o, &c, &d)) fail_msg("%s", d.text);
    if (runtime_new(c.plan, 1, &rt, &d)) fail_msg("%s", d.text);
    double x[N], loss, expected = 0;
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < N; i++) x[i] = value_of(p, i);
        assert_int_equal(runtime_set_state(rt, p, 0, x, DT_F64, &d), ST_OK);
    }
    for (int i = 0; i < N; i++) expected += value_of(0, i) * value_of(1, i);
    assert_int_equal(runtime_set_hyper(rt, (double[]){1e-2, 1 - o.adamw.beta1, 1 - o.adamw.beta2}, &d), ST_OK);
    if (runtime_step(rt, 0, &loss, &d)) fail_msg("%s", d.text);
    assert_true(fabs(loss - expected) < 1e-12);
    for (int64_t k = 0; k < c.graph->outputs.len; k++) {
        const Output *out = &c.graph->outputs.data[k];
        if (out->kind != OUT_GRAD) continue;
        assert_int_equal(runtime_get_output(rt, (int)k, x, &d), ST_OK);
        for (int i = 0; i < N; i++) assert_true(x[i] == value_of(1 - out->param, i));
    }
    for (int p = 0; p < 2; p++) {
        assert_int_equal(runtime_get_state(rt, p, 0, x, DT_F64, &d), ST_OK);
        for (int i = 0; i < N; i++) {  // the first step of AdamW goes lr along the gradient's sign
            double w = value_of(p, i) * (1 - 1e-2 * (c.graph->params.data[p].decay ? o.adamw.weight_decay : 0)),
                   g = value_of(1 - p, i);
            assert_true(fabs(x[i] - (w - 1e-2 * ((g > 0) - (g < 0)))) < 1e-6);
        }
    }
    runtime_free(rt);
    compiled_free(&c);
}

static void test_gradients_that_are_parameters(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        step_on(ranks, false);
        step_on(ranks, true);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients_that_are_parameters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
