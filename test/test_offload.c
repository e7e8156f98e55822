// Values in host memory on the CPU: random programs compute the same bits with and without them, the verifier refuses what would read a
// copy too early or too late, and the plan says what they take.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "driver/plan_report.h"
#include "offload_case.h"
#include "ops/op.h"

static void test_random(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        OffloadSetup s = {.seed = seed,
                          .nops = 2 + (int)(seed * 7 % 25),
                          .nranks = 1 + (int)(seed % 4),
                          .nthreads = 1 + (int)(seed % 2),
                          .real = seed % 3 ? DT_F32 : DT_F64,
                          .update = seed % 5 != 0,
                          .backend = &backend_cpu};
        offload_check_program(&s, 4);
    }
    assert_true(offload_trips > 500);
}

// ---- the verifier --------------------------------------------------------------------------------------------------------

static const char program[] =
    "autosp.graph 1 \"t\" batch 1 seq 8 ranks 2\n"
    "input 0 \"x\" f32[8,4] role other batch_dim -1 seq_dim 0\n"
    "layout @0 8: [0,4) | [4,8)\n"
    "forward:\n"
    "%0 = input() {index=0} : f32[8,4] shard(0,@0)\n"
    "%1 = tanh(%0) : f32[8,4] shard(0,@0)\n"
    "%2 = sin(%1) : f32[8,4] shard(0,@0)\n"
    "%3 = offload(%1) : f32[8,4] shard(0,@0)\n"
    "%4 = exp(%1) : f32[8,4] shard(0,@0)\n"
    "%5 = offload_done(%1, %3) : f32[8,4] shard(0,@0)\n"
    "%6 = fetch(%5) : f32[8,4] shard(0,@0)\n"
    "%7 = mul(%4, %2) : f32[8,4] shard(0,@0)\n"
    "%8 = fetch_done(%6) : f32[8,4] shard(0,@0)\n"
    "%9 = add(%7, %8) : f32[8,4] shard(0,@0)\n"
    "%10 = sum(%9) {dims=[0,1]} : f32[1,1] partial(sum)\n"
    "%11 = reshard(%10) : f32[1,1] replicate\n"
    "%12 = reshape(%11) {shape=[]} : f32[] replicate\n"
    "return loss -1 0 %12 \"loss\"\n";

static void read_h(Graph *g) { graph_node(g, 7)->in[1] = 3; }
static void read_k(Graph *g) { graph_node(g, 7)->in[1] = 5; }
static void read_y0(Graph *g) { graph_node(g, 7)->in[1] = 6; }
static void fetch_h(Graph *g) { graph_node(g, 6)->in[0] = 3; }
static void fetch_x(Graph *g) { graph_node(g, 6)->in[0] = 1; }
static void done_of_x(Graph *g) { graph_node(g, 8)->in[0] = 1; }
static void done_of_other(Graph *g) { graph_node(g, 5)->in[0] = 4; }
static void copy_of_nothing(Graph *g) { graph_node(g, 5)->in[1] = 1; }
static void x_for_h(Graph *g) { graph_node(g, 5)->in[0] = 3; }
static void no_wait(Graph *g) { graph_node(g, 9)->in[1] = 2, graph_node(g, 8)->op = OP_NEG, graph_node(g, 8)->in[0] = 2; }
static void wait_twice(Graph *g) { graph_node(g, 7)->op = OP_FETCH_DONE, graph_node(g, 7)->nin = 1, graph_node(g, 7)->in[0] = 6; }
static void output_h(Graph *g) { graph_add_output(g, OUT_AUX, -1, 0, "h", 3); }
static void output_y0(Graph *g) { graph_add_output(g, OUT_AUX, -1, 0, "y0", 6); }
static void terms(Graph *g) {
    for (ValueId v = 3; v < 9; v++)
        if (v != 4 && v != 7) graph_value(g, v)->place = PARTIAL_SUM;
}

static const struct {
    const char *what;
    void (*harm)(Graph *g);
    const char *want;
} broken[] = {
    {"a node that reads h", read_h, "node 7, %7 = mul"},
    {"a node that reads k", read_k, "reads a value in host memory"},
    {"a node that reads y0", read_y0, "copy from host memory that may still be under way"},
    {"a fetch of h", fetch_h, "copy to host memory that may still be under way"},
    {"a fetch of what is not in host memory", fetch_x, "not the copy it is for"},
    {"a fetch_done of what was not fetched", done_of_x, "not the copy it is for"},
    {"an offload_done of another value", done_of_other, "not what was copied"},
    {"an offload_done of no copy", copy_of_nothing, "not the copy it is for"},
    {"an offload_done with the copy as value", x_for_h, "may still be under way"},
    {"a fetch that nobody waits for", no_wait, "nobody waits for"},
    {"a fetch that is waited for twice", wait_twice, "waited for before"},
    {"an output that is being offloaded", output_h, "still be copied"},
    {"an output that is being fetched", output_y0, "still be copied"},
    {"terms in host memory", terms, "no row"},
};

// State in host memory, fetched, updated and written back.
static const char state_program[] =
    "autosp.graph 1 \"t\" batch 1 seq 1 ranks 1\n"
    "param 0 \"w\" f32[4]\n"
    "input 0 \"adamw.hyper\" f32[3] role other batch_dim -1 seq_dim -1\n"
    "update:\n"
    "%0 = param() {index=0, kind=0} : f32[4]\n"
    "%1 = param() {index=0, kind=1, host=1} : f32[4]\n"
    "%2 = param() {index=0, kind=2} : f32[4]\n"
    "%3 = input() {index=0} : f32[3]\n"
    "%4 = full() {shape=[], dtype=f32, value=1} : f32[]\n"
    "%5 = neg(%0) : f32[4]\n"
    "%6 = fetch(%1) : f32[4]\n"
    "%7 = fetch_done(%6) : f32[4]\n"
    "%8, %9, %10 = adamw(%0, %5, %7, %2, %3, %4) {beta1=0.9, beta2=0.9, eps=1e-08, decay=0} : f32[4], f32[4], f32[4]\n"
    "%11 = offload(%9, %1) : f32[4]\n"
    "%12 = offload_done(%9, %11) : f32[4]\n"
    "return state 0 0 %8 \"w\"\n"
    "return state 0 1 %12 \"w\"\n"
    "return state 0 2 %10 \"w\"\n";

static const struct {
    const char *what, *line, *instead, *want;
} broken_state[] = {
    {"state in host memory that is read", "%5 = neg(%0)", "%5 = neg(%1)", "reads a value in host memory"},
    {"state in host memory that is updated there", "%7, %2, %3", "%1, %2, %3", "reads a value in host memory"},
    {"state on the device that is fetched", "%6 = fetch(%1)", "%6 = fetch(%2)", "not the copy it is for"},
    {"state on the device that is written over", "offload(%9, %1)", "offload(%9, %2)", "no state in host memory"},
    {"an update of what is no state", "%7, %2, %3", "%5, %2, %3", "not a parameter's state"},
};

static void test_state(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = NULL;
    Plan *p = NULL;
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1};
    if (graph_parse(a, state_program, "state", &g, &d) != ST_OK || graph_verify(g, "parse", &d) != ST_OK) fail_msg("%s", d.text);
    for (ValueId v = 0; v < g->values.len; v++) graph_value(g, v)->place = REPLICATE;
    if (graph_verify(g, "placed", &d) != ST_OK || plan_make(a, g, &o, &p, &d) != ST_OK) fail_msg("%s", d.text);
    const RankPlan *r = &p->rank[0];
    assert_true(r->value_buf[1] == r->value_buf[11] && r->value_buf[1] == r->value_buf[12]);
    assert_true(r->value_buf[7] == r->value_buf[9] && r->value_buf[7] != r->value_buf[1]);
    const Buffer *b = &r->buffer[r->value_buf[1]];
    assert_true(b->host && b->kind == BUF_MOMENT && b->first == 0 && b->last == r->nstep - 1);
    for (size_t i = 0; i < sizeof broken_state / sizeof *broken_state; i++) {
        char text[sizeof state_program];
        diag_clear(&d);
        strcpy(text, state_program);
        char *at = strstr(text, broken_state[i].line);
        assert_true(at && strlen(broken_state[i].line) == strlen(broken_state[i].instead));
        memcpy(at, broken_state[i].instead, strlen(broken_state[i].instead));
        assert_int_equal(graph_parse(a, text, "state", &g, &d), ST_OK);
        for (ValueId v = 0; v < g->values.len; v++) graph_value(g, v)->place = REPLICATE;
        Status st = graph_verify(g, "harm", &d);
        if (st == ST_OK) st = plan_make(a, g, &o, &p, &d);
        if (st == ST_OK) fail_msg("accepted: %s", broken_state[i].what);
        if (!strstr(d.text, broken_state[i].want)) fail_msg("%s gives \"%s\"", broken_state[i].what, d.text);
    }
    arena_free(a);
}

// Written twice, or read after it was written: refused by the verifier, and by the planner of what the verifier did not see.
static void test_state_order(void **state) {
    (void)state;
    static const char *const more[] = {"%13 = fetch(%1) : f32[4]\n%14 = fetch_done(%13) : f32[4]\n",
                                       "%13 = offload(%8, %1) : f32[4]\n%14 = offload_done(%8, %13) : f32[4]\n"};
    for (int i = 0; i < 2; i++) {
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = NULL;
        Plan *p = NULL;
        PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1};
        const char *end = strstr(state_program, "return state 0 0");
        char *text = arena_printf(a, "%.*s%s%s", (int)(end - state_program), state_program, more[i], end);
        if (graph_parse(a, text, "state", &g, &d) != ST_OK) fail_msg("%s", d.text);
        for (ValueId v = 0; v < g->values.len; v++) graph_value(g, v)->place = REPLICATE;
        assert_int_not_equal(graph_verify(g, "harm", &d), ST_OK);
        if (!strstr(d.text, "written over")) fail_msg("%s", d.text);
        diag_clear(&d);
        assert_int_not_equal(plan_make(a, g, &o, &p, &d), ST_OK);
        if (!strstr(d.text, "read again")) fail_msg("%s", d.text);
        arena_free(a);
    }
}

static Graph *parse(Arena *a) {
    Diag d = {0};
    Graph *g = NULL;
    if (graph_parse(a, program, "program", &g, &d) != ST_OK || graph_verify(g, "parse", &d) != ST_OK) fail_msg("the sound graph: %s", d.text);
    return g;
}

static void test_verifier(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = parse(a);
        broken[i].harm(g);
        if (graph_verify(g, "harm", &d) == ST_OK) fail_msg("accepted: %s", broken[i].what);
        if (!strstr(d.text, broken[i].want)) fail_msg("%s gives \"%s\", and not \"%s\"", broken[i].what, d.text, broken[i].want);
        arena_free(a);
    }
}

// ---- the plan ------------------------------------------------------------------------------------------------------------

static Plan *plan_of(Graph *g) {
    Diag d = {0};
    Plan *p = NULL;
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1};
    if (plan_make(g->arena, g, &o, &p, &d) != ST_OK) fail_msg("%s", d.text);
    offload_check_plan(p);
    return p;
}

static void check_report(Graph *g, Plan *p) {
    Diag d = {0};
    Compiled c = {.graph = g, .plan = p, .device = device_model_cpu()};
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    plan_report_text(f, &c, false);
    assert_int_equal(plan_report_json(f, &c, &d), ST_OK);
    fclose(f);
    static const char *const want[] = {"host bytes", "host memory beside it, for what is offloaded: 0.26 kB on rank 0", "0.51 kB for all ranks",
                                       "\"host_nbytes\": 256"};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (!strstr(text, want[i])) fail_msg("the plan lacks %s: %s", want[i], text);
    free(text);
}

static void test_plan(void **state) {
    (void)state;
    Arena *a = arena_new();
    Graph *g = parse(a);
    for (ValueId v = 0; v < g->values.len; v++) assert_int_equal(value_on_host(g, v), v == 3 || v == 5);
    Plan *p = plan_of(g);
    for (int r = 0; r < 2; r++) {
        const RankPlan *x = &p->rank[r];
        const Buffer *h = &x->buffer[x->value_buf[3]], *in = &x->buffer[x->value_buf[1]], *y = &x->buffer[x->value_buf[8]];
        assert_int_equal(x->ncopy, 2);
        assert_int_equal(x->host_nbytes, 256);  // 4 x 4 floats, aligned
        assert_int_equal(x->host_lower_bound_nbytes, 256);
        assert_true(h->host && h->kind == BUF_HOST && !in->host && !y->host);
        assert_int_equal(x->value_buf[3], x->value_buf[5]);
        assert_int_equal(x->value_buf[6], x->value_buf[8]);
        assert_int_not_equal(x->value_buf[1], x->value_buf[8]);
        // steps: tanh, sin, offload, exp, offload_done, fetch, mul, fetch_done, add, ...
        assert_int_equal(x->step[2].kind, STEP_OFFLOAD);
        assert_int_equal(x->step[7].kind, STEP_FETCH_DONE);
        assert_int_equal(h->first, 2);
        assert_int_equal(h->last, 7);   // the copy back reads it until then
        assert_int_equal(in->last, 4);  // offload_done, though exp read it before
        assert_int_equal(y->first, 5);
        assert_int_equal(x->nbytes_by_kind[BUF_HOST], 0);
    }
    uint64_t with = p->hash;
    check_report(g, p);
    graph_free_vecs(g);
    Graph *other = NULL;
    Diag d = {0};
    char text[sizeof program];
    strcpy(text, program);
    memcpy(strstr(text, "%6 = fetch(%5)"), "%6 = tanh(%1) ", 14);
    memcpy(strstr(text, "%8 = fetch_done(%6)"), "%8 = exp(%6)       ", 19);
    if (graph_parse(a, text, "other", &other, &d) != ST_OK || graph_verify(other, "parse", &d) != ST_OK) fail_msg("%s", d.text);
    Plan *q = plan_of(other);  // offloaded, never fetched
    assert_int_not_equal(q->hash, with);
    assert_int_equal(q->rank[0].buffer[q->rank[0].value_buf[3]].last, 4);
    arena_free(a);
}

static int64_t place_of(const Graph *g, OpKind op) {
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (graph_node(g, (NodeId)i)->op == op) return i;
    fail_msg("no %s", op_name(op));
    return -1;
}

// The schedule moves other nodes, not the places where copies start; a wait comes right before what it is for.
static void test_schedule(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = NULL, *s = NULL;
    char text[sizeof program];
    strcpy(text, program);
    memcpy(strstr(text, "%7 = mul(%4, %2)"), "%7 = cos(%0)    ", 16);  // is made when it is read
    if (graph_parse(a, text, "program", &g, &d) != ST_OK || graph_verify(g, "parse", &d) != ST_OK) fail_msg("%s", d.text);
    if (pass_schedule(g, &s, &d) != ST_OK || graph_verify(s, "schedule", &d) != ST_OK) fail_msg("%s", d.text);
    assert_true(place_of(s, OP_OFFLOAD) < place_of(s, OP_EXP) && place_of(s, OP_EXP) < place_of(s, OP_OFFLOAD_DONE));
    assert_true(place_of(s, OP_FETCH) < place_of(s, OP_COS) && place_of(s, OP_COS) < place_of(s, OP_FETCH_DONE));
    assert_int_equal(place_of(s, OP_FETCH_DONE) + 1, place_of(s, OP_ADD));
    arena_free(a);
}

// A value in host memory as an output: it stays there to the end of the step, and can be read.
static void test_output(void **state) {
    (void)state;
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = graph_new(a, "t", 1);
    vec_push(&g->inputs, ((Input){.name = "x", .shape = SHAPE(3), .dtype = DT_F32, .seq_dim = -1, .batch_dim = -1}));
    Builder b = {.g = g, .d = &d};
    ValueId x = build_unary(&b, OP_NEG, build(&b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)}));
    ValueId h = build(&b, OP_OFFLOAD, 1, &x, 0, NULL), k = build(&b, OP_OFFLOAD_DONE, 2, (ValueId[]){x, h}, 0, NULL);
    graph_add_output(g, OUT_AUX, -1, 0, "k", k);
    graph_add_output(g, OUT_LOSS, -1, 0, "loss", build_sum_all(&b, x));
    assert_int_equal(b.status, ST_OK);
    for (ValueId v = 0; v < g->values.len; v++) graph_value(g, v)->place = REPLICATE;
    Plan *p = plan_of(g);
    Runtime *rt = NULL;
    double loss, got[3];
    if (runtime_new(p, 0, &rt, &d) != ST_OK) fail_msg("%s", d.text);
    assert_int_equal(runtime_set_input(rt, 0, (float[]){1, 2, 3}, &d), ST_OK);
    assert_int_equal(runtime_step(rt, 0, &loss, &d), ST_OK);
    assert_int_equal(runtime_get_output(rt, 0, got, &d), ST_OK);
    assert_true(loss == -6 && got[0] == -1 && got[1] == -2 && got[2] == -3);
    runtime_free(rt);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_verifier), cmocka_unit_test(test_state), cmocka_unit_test(test_state_order), cmocka_unit_test(test_plan), cmocka_unit_test(test_schedule), cmocka_unit_test(test_output),
                                       cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
