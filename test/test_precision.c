// Mixed precision as a plan sees it, for a backend that claims to have bf16: copies of parameters are updated in place and
// counted as parameters, a product is written over what it adds where nobody reads that later, and its gradient's accumulation is
// in f32.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "driver/driver.h"
#include "ir/build.h"
#include "ir/uses.h"

static Status run_nothing(const KernelArgs *k, Diag *d) {
    return (void)k, diag_error(d, ST_UNSUPPORTED, "a kernel of no device");
}
static KernelFn any_kernel(OpKind op, DType real) { return (void)op, (void)real, run_nothing; }
static size_t no_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    return (void)n, (void)in, (void)out, (void)nthreads, 0;
}

static void compile_bf16(const char *fixture, int ranks, Backend *backend, Compiled *c) {
    static char path[256];
    Diag d = {0};
    CompileOptions o;
    compile_defaults(&o);
    *backend = backend_cpu;
    backend->features |= BACKEND_BF16 | BACKEND_FUSE_ROWS | BACKEND_EPILOGUE;
    backend->kernel = any_kernel;
    backend->scratch = no_scratch;
    snprintf(path, sizeof path, "%s/fixtures/%s/model.pt2", TEST_DATA, fixture);
    o.path = path, o.backend = backend, o.nranks = ranks, o.update = o.verify_each = true, o.compute = DT_BF16;
    Status st = compile_file(&o, c, &d);
    if (st != ST_OK) fail_msg("%s: %s", fixture, d.text);
    assert_non_null(c->plan);
}

static void test_copies(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        Backend backend;
        Compiled c;
        compile_bf16("llama", ranks, &backend, &c);
        const Graph *g = c.graph;
        int64_t numel = 0, half = 0, ncopy = 0, nupdate = 0;
        for (int64_t i = 0; i < g->params.len; i++) numel += shape_numel(&g->params.data[i].shape);
        for (int64_t i = 0; i < g->nodes.len; i++) {
            const Node *n = graph_node(g, (NodeId)i);
            if (n->op == OP_CAST && node_int(n, ATTR_DTYPE) == DT_BF16)
                assert_int_not_equal(graph_def(g, n->in[0])->op, OP_PARAM);
            if (n->op != OP_ADAMW) continue;
            nupdate++;
            assert_int_equal(graph_value(g, n->in[1])->dtype, DT_F32);
            if (n->nout != 4) continue;
            ncopy++;
            half += shape_numel(graph_shape(g, n->in[6]));
            assert_int_equal(graph_value(g, n->out[3])->dtype, DT_BF16);
            for (int r = 0; r < ranks; r++) {
                const RankPlan *p = &c.plan->rank[r];
                assert_int_equal(p->value_buf[n->out[3]], p->value_buf[n->in[6]]);
                assert_int_not_equal(p->value_buf[n->in[6]], p->value_buf[n->in[0]]);
                assert_int_equal(p->buffer[p->value_buf[n->in[6]]].kind, BUF_PARAM);
            }
        }
        assert_int_equal(nupdate, g->params.len);
        assert_int_equal(ncopy, g->params.len - 5);  // the norms' scales stay f32
        int64_t want = 4 * numel + 2 * half, have = c.plan->rank[0].nbytes_by_kind[BUF_PARAM];
        assert_true(have >= want && have < want + 64 * 2 * g->params.len);
        compiled_free(&c);
    }
}

// x + x.w + x.v: the first product is written into a new buffer (x is a parameter), the second over the first.
static void test_in_place(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = graph_new(a, "sums", 1), *joined = NULL;
    const char *names[] = {"x", "w", "v"};
    Builder b = {.g = g, .d = &d};
    ValueId p[3];
    for (int i = 0; i < 3; i++) {
        vec_push(&g->params, ((Param){.name = names[i], .shape = SHAPE(4, 4), .dtype = DT_F32, .trainable = true}));
        p[i] = build(&b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, i), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, DT_F32)});
    }
    ValueId sum = build_binary(&b, OP_ADD, p[0], build_dot(&b, p[0], p[1], 0, 1, false, false));
    sum = build_binary(&b, OP_ADD, sum, build_dot(&b, p[0], p[2], 0, 1, false, false));
    graph_add_output(g, OUT_LOSS, -1, 0, "loss", build_sum_all(&b, sum));
    assert_int_equal(b.status, ST_OK);
    for (int64_t v = 0; v < g->values.len; v++) graph_value(g, (ValueId)v)->place = REPLICATE;
    PassContext pc = {.scratch = a, .nranks = 1, .features = BACKEND_EPILOGUE};
    assert_int_equal(pass_epilogue(&pc, g, &joined, &d), ST_OK);
    assert_int_equal(graph_verify(joined, "epilogue", &d), ST_OK);
    PlanOptions po = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1};
    Plan *plan = NULL;
    assert_int_equal(plan_make(a, joined, &po, &plan, &d), ST_OK);
    const int32_t *buf = plan->rank[0].value_buf;
    int ndot = 0;
    for (int64_t i = 0; i < joined->nodes.len; i++) {
        const Node *n = graph_node(joined, (NodeId)i);
        assert_int_not_equal(n->op, OP_ADD);
        if (n->op != OP_DOT) continue;
        assert_int_equal(n->nin, 3);
        if (ndot++ == 0) assert_int_not_equal(buf[n->out[0]], buf[n->in[2]]);
        else assert_int_equal(buf[n->out[0]], buf[n->in[2]]);
    }
    assert_int_equal(ndot, 2);
    graph_free_vecs(joined);
    arena_free(a);
}

// In mixed precision the product takes the residual only where the sum is in bf16 for everybody: not where it is returned, or
// where an op that is no part of a kernel reads it in f32, even if another reader comes first that takes it in bf16.
static void test_stored(void **state) {
    (void)state;
    enum { NOBODY, OUTPUT, SCAN, MOVED_SCAN, POINTWISE, CASES };
    for (int other = NOBODY; other < CASES; other++) {
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = graph_new(a, "stored", 1), *joined = NULL;
        vec_push(&g->params, ((Param){.name = "w", .shape = SHAPE(64, 64), .dtype = DT_F32, .trainable = true}));
        Builder b = {.g = g, .d = &d};
        ValueId w = build(&b, OP_PARAM, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)}), h = build_cast(&b, w, DT_BF16);
        ValueId product = build_cast(&b, build_dot(&b, h, h, 0, 1, false, false), DT_F32);
        ValueId sum = build_binary(&b, OP_ADD, build_cast(&b, h, DT_F32), product);
        ValueId read = build_dot(&b, build_cast(&b, sum, DT_BF16), h, 0, 1, false, false), also = sum;
        if (other == MOVED_SCAN) also = build_reshape(&b, also, SHAPE(4096));
        if (other == SCAN || other == MOVED_SCAN) also = build(&b, OP_CUMSUM, 1, &also, 1, (Attr[]){attr_i(ATTR_DIM, 0)});
        if (other == POINTWISE) also = build_unary(&b, OP_TANH, also);
        graph_add_output(g, OUT_LOSS, -1, 0, "loss", build_sum_all(&b, build_cast(&b, read, DT_F32)));
        if (other != NOBODY) graph_add_output(g, OUT_AUX, -1, 1, "also", also);
        assert_int_equal(b.status, ST_OK);
        for (int64_t v = 0; v < g->values.len; v++) graph_value(g, (ValueId)v)->place = REPLICATE;
        PassContext pc = {.scratch = a, .nranks = 1, .features = BACKEND_EPILOGUE};
        assert_int_equal(pass_epilogue(&pc, g, &joined, &d), ST_OK);
        assert_int_equal(graph_verify(joined, "epilogue", &d), ST_OK);
        int taken = 0;
        for (int64_t i = 0; i < joined->nodes.len; i++) {
            const Node *n = graph_node(joined, (NodeId)i);
            taken += n->op == OP_DOT && n->nin == 3;
        }
        if (taken != (other == NOBODY || other == POINTWISE)) fail_msg("case %d: %d products take a third operand", other, taken);
        graph_free_vecs(joined);
        arena_free(a);
    }
}

// Types: what is refused.
static void test_refused(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = graph_new(a, "types", 1);
    vec_push(&g->params, ((Param){.name = "w", .shape = SHAPE(4, 4), .dtype = DT_F32, .trainable = true}));
    Builder b = {.g = g, .d = &d};
    ValueId w = build(&b, OP_PARAM, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)}), h = build_cast(&b, w, DT_BF16);
    assert_int_equal(b.status, ST_OK);
    struct {
        OpKind op;
        int nin;
        ValueId in[3];
        int nattr;
        Attr attr[2];
    } bad[] = {
        {OP_ADD, 2, {h, h}, 0, {{0}}},                                        // nothing is computed in bf16
        {OP_TANH, 1, {h}, 0, {{0}}},
        {OP_DOT, 2, {h, w}, 0, {{0}}},
        {OP_DOT, 3, {h, h, w}, 0, {{0}}},                                     // c is not of the result's type
        {OP_DOT, 2, {w, w}, 1, {attr_i(ATTR_DTYPE, DT_BF16)}},                // narrower than the operands
        {OP_DOT, 2, {h, h}, 1, {attr_i(ATTR_BIAS, 1)}},                       // no bias there
        {OP_PARAM, 0, {0}, 2, {attr_i(ATTR_INDEX, 0), attr_i(ATTR_DTYPE, DT_BF16)}},  // a copy that is none
        {OP_PARAM, 0, {0}, 2, {attr_i(ATTR_INDEX, 0), attr_i(ATTR_KIND, 3)}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Builder t = {.g = g, .d = &d};
        diag_clear(&d);
        build(&t, bad[i].op, bad[i].nin, bad[i].in, bad[i].nattr, bad[i].attr);
        if (t.status == ST_OK) fail_msg("case %zu was accepted", i);
        assert_true(d.text[0] != 0);
    }
    ValueId wide = build(&b, OP_DOT, 3, (ValueId[]){h, h, w}, 1, (Attr[]){attr_i(ATTR_DTYPE, DT_F32)});
    assert_int_equal(b.status, ST_OK);
    assert_int_equal(graph_value(g, wide)->dtype, DT_F32);
    graph_free_vecs(g);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies), cmocka_unit_test(test_in_place),
                                       cmocka_unit_test(test_stored), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
