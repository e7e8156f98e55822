// A small training step, sharded by hand, planned and run on 1 to 4 ranks: outputs and updated state against the reference
// executor, bitwise equal on a rerun, the arena as planned, nothing allocated during a step, errors from any rank.
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "count_alloc.h"
#include "exec/exec.h"
#include "ir/build.h"

// ---- the program -------------------------------------------------------------------------------------------------------- x
// [7,4] rows sharded, tokens [7] index rows of e [5,4]; y = gelu((x + e[tokens]) w), loss = sum(y*y) with w [4,6]; the gradient
// of w by hand, AdamW on w. Every kind of exchange occurs: rows -> columns (all-to-all), partial -> whole (all-reduce), rows ->
// whole.
enum { ROWS = 7, INNER = 4, COLS = 6, VOCAB = 5 };

static ValueId place(Builder *b, ValueId v, Placement p) {
    if (v != NO_VALUE) graph_value(b->g, v)->place = graph_nranks(b->g) > 1 ? p : REPLICATE;
    return v;
}
static ValueId reshard(Builder *b, ValueId v, Placement p) {
    if (graph_nranks(b->g) == 1) return v;
    return place(b, build(b, OP_RESHARD, 1, &v, 0, NULL), p);
}

static ValueId source(Builder *b, OpKind op, int index, int kind) {
    Attr attr[] = {attr_i(ATTR_INDEX, index), attr_i(ATTR_KIND, kind), attr_i(ATTR_DTYPE, DT_F64)};
    return place(b, build(b, op, 0, NULL, op == OP_PARAM ? 3 : 1, attr), REPLICATE);
}

static Graph *program(Arena *a, int nranks, bool update, Diag *d) {
    Graph *g = graph_new(a, "hand", nranks);
    vec_push(&g->inputs, ((Input){.name = "x", .shape = SHAPE(ROWS, INNER), .dtype = DT_F64, .seq_dim = 0, .batch_dim = -1}));
    vec_push(&g->inputs, ((Input){.name = "tokens", .shape = SHAPE(ROWS), .dtype = DT_I64, .seq_dim = 0, .batch_dim = -1}));
    vec_push(&g->inputs, ((Input){.name = "hyper", .shape = SHAPE(3), .dtype = DT_F64, .seq_dim = -1, .batch_dim = -1}));
    vec_push(&g->params, ((Param){.name = "w", .shape = SHAPE(INNER, COLS), .dtype = DT_F64, .trainable = true}));
    vec_push(&g->params, ((Param){.name = "e", .shape = SHAPE(VOCAB, INNER), .dtype = DT_F64}));
    Placement rows = shard_on(0, layouts_even(g->layouts, ROWS)), cols = shard_on(1, layouts_even(g->layouts, COLS));
    Builder b = {.g = g, .d = d, .source = "test.py:1"};
    ValueId x = place(&b, source(&b, OP_INPUT, 0, 0), rows), tokens = place(&b, source(&b, OP_INPUT, 1, 0), rows);
    ValueId w = source(&b, OP_PARAM, 0, 0), e = source(&b, OP_PARAM, 1, 0);
    ValueId rowsum = place(&b, build_binary(&b, OP_ADD, x, place(&b, build(&b, OP_EMBEDDING, 2, (ValueId[]){e, tokens}, 1,
                                                                         (Attr[]){attr_i(ATTR_SKIP, -1)}), rows)), rows);
    ValueId z = place(&b, build_dot(&b, rowsum, w, 0, 1, false, false), rows);
    ValueId y = place(&b, build_unary(&b, OP_GELU, reshard(&b, z, cols)), cols);
    ValueId sq = place(&b, build_sum(&b, place(&b, build_binary(&b, OP_MUL, y, y), cols), 2, (int[]){0, 1}), PARTIAL_SUM);
    ValueId loss = place(&b, build_reshape(&b, reshard(&b, sq, REPLICATE), SHAPE0), REPLICATE);
    graph_add_output(g, OUT_LOSS, -1, 0, "loss", loss);
    b.phase = PHASE_BACKWARD;
    ValueId back = reshard(&b, y, rows);  // not the true gradient, but one that depends on everything
    ValueId dw = place(&b, build_dot(&b, rowsum, back, 0, 1, true, false), PARTIAL_SUM);
    dw = reshard(&b, dw, REPLICATE);
    graph_add_output(g, OUT_GRAD, 0, 0, "w", dw);
    graph_add_output(g, OUT_AUX, -1, 0, "y", reshard(&b, back, REPLICATE));
    if (update && b.status == ST_OK) {
        b.phase = PHASE_UPDATE;
        ValueId in[6] = {w, dw, source(&b, OP_PARAM, 0, 1), source(&b, OP_PARAM, 0, 2), source(&b, OP_INPUT, 2, 0),
                         place(&b, build_scalar(&b, DT_F64, 0.5), REPLICATE)}, out[3];
        Attr attr[] = {attr_f(ATTR_BETA1, 0.9), attr_f(ATTR_BETA2, 0.99), attr_f(ATTR_EPS, 1e-8), attr_f(ATTR_DECAY, 0.1)};
        build_multi(&b, OP_ADAMW, 6, in, 4, attr, 3, out);
        for (int i = 0; i < 3; i++) graph_add_output(g, OUT_STATE, 0, i, "w", place(&b, out[i], REPLICATE));
    }
    if (b.status != ST_OK) fail_msg("%s", d->text);
    return g;
}

typedef struct Data {
    double x[ROWS * INNER], tokens[ROWS], hyper[3], w[INNER * COLS], e[VOCAB * INNER];
    int64_t token_ids[ROWS];
} Data;
static Data make_data(void) {
    Data d = {.hyper = {0.01, 0.1, 0.01}};
    for (int i = 0; i < ROWS * INNER; i++) d.x[i] = sin(i * 0.7);
    for (int i = 0; i < INNER * COLS; i++) d.w[i] = cos(i * 1.3);
    for (int i = 0; i < VOCAB * INNER; i++) d.e[i] = sin(i * 2.1 + 1);
    for (int i = 0; i < ROWS; i++) d.tokens[i] = (double)(d.token_ids[i] = i * 3 % VOCAB);
    return d;
}

typedef struct Run {
    Arena *arena;
    Graph *graph;
    Plan *plan;
    Runtime *runtime;
    Diag diag;
} Run;

static void run_start(Run *r, int nranks, int nthreads, bool update, const Data *data) {
    *r = (Run){.arena = arena_new()};
    Graph *g = program(r->arena, nranks, update, &r->diag);
    assert_int_equal(pass_schedule(g, &r->graph, &r->diag), ST_OK);
    graph_free_vecs(g);
    if (graph_verify(r->graph, "schedule", &r->diag) != ST_OK) fail_msg("%s", r->diag.text);
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = nthreads};
    if (plan_make(r->arena, r->graph, &o, &r->plan, &r->diag) != ST_OK) fail_msg("%s", r->diag.text);
    if (runtime_new(r->plan, 7, &r->runtime, &r->diag) != ST_OK) fail_msg("%s", r->diag.text);
    Runtime *rt = r->runtime;
    assert_int_equal(runtime_set_input(rt, 0, data->x, &r->diag), ST_OK);
    assert_int_equal(runtime_set_input(rt, 1, data->token_ids, &r->diag), ST_OK);
    assert_int_equal(runtime_set_state(rt, 0, 0, data->w, DT_F64, &r->diag), ST_OK);
    assert_int_equal(runtime_set_state(rt, 1, 0, data->e, DT_F64, &r->diag), ST_OK);
    assert_int_equal(runtime_set_hyper(rt, data->hyper, &r->diag), ST_OK);
}
// A plan of some ranks is those ranks of the whole one.
static void check_some(const Run *r, int nranks) {
    Arena *a = arena_new();
    int made[] = {0, nranks - 1};
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = r->plan->nthreads};
    for (int again = 0; again < 2; again++) {  // the second time kernels' work comes from the memo
        Plan *p;
        Diag d = {0};
        if (plan_make_some(a, r->graph, &o, nranks > 1 ? 2 : 1, made, &p, &d) != ST_OK) fail_msg("%s", d.text);
        for (int k = 0; k < p->nmade; k++) {
            const RankPlan *x = &p->rank[k], *y = &r->plan->rank[made[k]];
            assert_true(x->rank == made[k] && x->nstep == y->nstep && x->nbuffer == y->nbuffer && x->peak_step == y->peak_step);
            assert_true(x->arena_nbytes == y->arena_nbytes && x->seconds == y->seconds && x->flops == y->flops);
            assert_true(x->comm_nbytes == y->comm_nbytes);
            for (int i = 0; i < x->nbuffer; i++)
                assert_true(x->buffer[i].offset == y->buffer[i].offset && x->buffer[i].nbytes == y->buffer[i].nbytes);
        }
    }
    arena_free(a);
}

static void run_end(Run *r) {
    runtime_free(r->runtime);
    graph_free_vecs(r->graph);
    arena_free(r->arena);
}

enum { NOUT = 6, OUT_MAX = ROWS * COLS };
static void reference(const Data *d, double out[NOUT][OUT_MAX]) {
    Arena *a = arena_new();
    Diag diag = {0};
    Graph *g = program(a, 1, true, &diag);
    const double *inputs[] = {d->x, d->tokens, d->hyper}, *params[] = {d->w, d->e};
    double *to[NOUT];
    for (int i = 0; i < NOUT; i++) to[i] = out[i];
    Reference r = {.run_seed = 7, .inputs = inputs, .params = params, .hyper = d->hyper};
    if (reference_run(g, &r, to, &diag) != ST_OK) fail_msg("%s", diag.text);
    graph_free_vecs(g);
    arena_free(a);
}

static void assert_close(const double *a, const double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= 1e-12 * (1 + fabs(b[i]))))
            fail_msg("element %lld: %.17g, expected %.17g", (long long)i, a[i], b[i]);
}

static void test_outputs(void **state) {
    (void)state;
    Data data = make_data();
    double want[NOUT][OUT_MAX] = {{0}}, got[OUT_MAX], loss = 0;
    reference(&data, want);
    for (int nranks = 1; nranks <= 8; nranks++) {
        Run r;
        run_start(&r, nranks, 1, true, &data);
        if (runtime_step(r.runtime, 0, &loss, &r.diag) != ST_OK) fail_msg("%d ranks: %s", nranks, r.diag.text);
        assert_close(&loss, want[0], 1);
        for (int i = 0; i < (int)r.graph->outputs.len; i++) {
            assert_int_equal(runtime_get_output(r.runtime, i, got, &r.diag), ST_OK);
            assert_close(got, want[i], shape_numel(graph_shape(r.graph, r.graph->outputs.data[i].value)));
        }
        for (int slot = 0; slot < 3; slot++) {
            assert_int_equal(runtime_get_state(r.runtime, 0, slot, got, DT_F64, &r.diag), ST_OK);
            assert_close(got, want[3 + slot], INNER * COLS);
        }
        for (int i = 0; i < nranks; i++) assert_int_equal(runtime_arena_nbytes(r.runtime, i), r.plan->rank[i].arena_nbytes);
        check_some(&r, nranks);
        run_end(&r);
    }
}

static void losses(int nranks, int nthreads, const Data *data, double *loss, int nstep) {
    Run r;
    run_start(&r, nranks, nthreads, true, data);
    for (int i = 0; i < nstep; i++) assert_int_equal(runtime_step(r.runtime, i, &loss[i], &r.diag), ST_OK);
    run_end(&r);
}
static void test_bitwise_rerun(void **state) {
    (void)state;
    Data data = make_data();
    double a[5], b[5], other[5];
    losses(3, 2, &data, a, 5);
    losses(3, 2, &data, b, 5);
    losses(1, 1, &data, other, 5);
    assert_memory_equal(a, b, sizeof a);
    assert_true(a[4] != a[0]);
    assert_close(a, other, 5);
}

static void test_no_allocation(void **state) {
    (void)state;
    Data data = make_data();
    count_begin();
    free(strdup(data.w[0] > 9 ? "a" : "the counter counts"));
    assert_int_equal(count_end(), 1);
    for (int nranks = 1; nranks <= 4; nranks++) {
        Run r;
        double loss;
        run_start(&r, nranks, 2, true, &data);
        assert_int_equal(runtime_step(r.runtime, 0, &loss, &r.diag), ST_OK);
        count_begin();
        Status st = runtime_step(r.runtime, 1, &loss, &r.diag);
        assert_int_equal(count_end(), 0);
        assert_int_equal(st, ST_OK);
        run_end(&r);
    }
}

// A token id that the table does not have: the rank that meets it fails, the others stop, the message is its own, and the next
// step works again.
static void test_failing_rank(void **state) {
    (void)state;
    Data data = make_data();
    for (int nranks = 1; nranks <= 4; nranks++) {
        Run r;
        double loss, good;
        run_start(&r, nranks, 1, false, &data);
        assert_int_equal(runtime_step(r.runtime, 0, &good, &r.diag), ST_OK);
        int64_t bad[ROWS] = {0, 1, 2, 3, 4, 0, 99};
        assert_int_equal(runtime_set_input(r.runtime, 1, bad, &r.diag), ST_OK);
        assert_int_equal(runtime_step(r.runtime, 1, &loss, &r.diag), ST_NUMERIC);
        assert_non_null(strstr(r.diag.text, "99"));
        assert_non_null(strstr(r.diag.text, "test.py:1"));
        diag_clear(&r.diag);
        assert_int_equal(runtime_set_input(r.runtime, 1, data.token_ids, &r.diag), ST_OK);
        assert_int_equal(runtime_step(r.runtime, 2, &loss, &r.diag), ST_OK);
        assert_true(loss == good);
        run_end(&r);
    }
}

static KernelFn no_gelu(OpKind op, DType real) { return op == OP_GELU ? NULL : backend_cpu.kernel(op, real); }
static void test_missing_kernel(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = program(a, 2, false, &d);
    Backend b = backend_cpu;
    b.kernel = no_gelu;
    PlanOptions o = {.backend = &b, .device = device_model_cpu(), .nthreads = 1};
    Plan *p = NULL;
    assert_int_equal(plan_make(a, g, &o, &p, &d), ST_UNSUPPORTED);
    assert_non_null(strstr(d.text, "no kernel for gelu"));
    graph_free_vecs(g);
    arena_free(a);
}

static int allocs_left;
static void *alloc_some(size_t nbytes) { return allocs_left-- > 0 ? backend_cpu.alloc(nbytes) : NULL; }
static Pool *pool_some(int nthreads) { return allocs_left-- > 0 ? backend_cpu.pool_new(nthreads) : NULL; }
static void test_failing_start(void **state) {
    (void)state;
    Backend b = backend_cpu;
    b.alloc = alloc_some;
    b.pool_new = pool_some;
    for (int n = 0; n < 6; n++) {  // three ranks: an arena and a pool each
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = program(a, 3, false, &d);
        PlanOptions o = {.backend = &b, .device = device_model_cpu(), .nthreads = 1};
        Plan *p = NULL;
        Runtime *rt = NULL;
        assert_int_equal(plan_make(a, g, &o, &p, &d), ST_OK);
        allocs_left = n;
        assert_int_equal(runtime_new(p, 0, &rt, &d), ST_MEMORY);
        assert_null(rt);
        assert_non_null(strstr(d.text, n < 2 ? "rank 0" : n < 4 ? "rank 1" : "rank 2"));
        graph_free_vecs(g);
        arena_free(a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs),      cmocka_unit_test(test_bitwise_rerun),  cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_failing_rank), cmocka_unit_test(test_missing_kernel), cmocka_unit_test(test_failing_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
