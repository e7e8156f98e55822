// Values in host memory on the emulated device, where a copy takes place when it is waited for and its destination is worth nothing until
// then: random programs compute the same bits with and without them, and plans with a lifetime cut short do not.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "offload_case.h"
#include "train/profile.h"

extern const Backend backend_cuda;

static void check(uint64_t seed, int nranks, DType compute, bool processes) {
    OffloadSetup s = {.seed = seed, .nops = 8, .nranks = nranks, .nthreads = 1, .real = DT_F32, .compute = compute, .update = true, .processes = processes,
                      .backend = &backend_cuda};
    offload_check_program(&s, 4);
}

static void test_random(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) check(seed, 1 + (int)(seed % 3), DT_F32, false);
    assert_true(offload_trips > 60);
}

static void test_processes(void **state) {
    (void)state;
    check(6, 2, DT_F32, true);
}

// The program reads the parameters' copies in bf16: the parameters themselves are state that only the update reads.
static void test_bf16(void **state) {
    (void)state;
    for (uint64_t seed = 11; seed <= 14; seed++) check(seed, 1 + (int)(seed % 2), DT_BF16, false);
    assert_true(offload_masters > 4);
}

// ---- plans that are wrong ------------------------------------------------------------------------------------------------

enum { N = 64 };  // one line of memory: buffers of equal size that only lifetimes keep apart

typedef struct Small {
    Arena *arena;
    Graph *g;
    Plan *plan;
    ValueId x, h, other, back;
} Small;

// x goes to host memory and back while `other` (a sum that is no operand of x's) is made and read.
static Small small_new(void) {
    Small s = {.arena = arena_new()};
    Diag d = {0};
    s.g = graph_new(s.arena, "small", 1);
    vec_push(&s.g->inputs, ((Input){.name = "x", .shape = SHAPE(N, 2), .dtype = DT_F32, .seq_dim = -1, .batch_dim = -1}));
    Builder b = {.g = s.g, .d = &d};
    ValueId in = build(&b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)});
    s.x = build_sum(&b, in, 1, (int[]){1});
    s.h = build(&b, OP_OFFLOAD, 1, &s.x, 0, NULL);
    s.other = build_slice(&b, in, 1, 0, 1, 1);
    ValueId k = build(&b, OP_OFFLOAD_DONE, 2, (ValueId[]){s.x, s.h}, 0, NULL);
    ValueId late = build_slice(&b, in, 1, 1, 1, 1);
    ValueId y0 = build(&b, OP_FETCH, 1, &k, 0, NULL);
    ValueId used = build_concat(&b, 2, (ValueId[]){s.other, late}, 1);
    s.back = build(&b, OP_FETCH_DONE, 1, &y0, 0, NULL);
    graph_add_output(s.g, OUT_AUX, -1, 0, "back", s.back);
    graph_add_output(s.g, OUT_AUX, -1, 0, "used", used);
    if (b.status != ST_OK) fail_msg("%s", d.text);
    for (ValueId v = 0; v < s.g->values.len; v++) graph_value(s.g, v)->place = REPLICATE;
    PlanOptions o = {.backend = &backend_cuda, .device = device_model_h100(), .nthreads = 1};
    if (graph_verify(s.g, "test", &d) != ST_OK || plan_make(s.arena, s.g, &o, &s.plan, &d) != ST_OK) fail_msg("%s", d.text);
    return s;
}

// Whether both outputs come out as they should.
static bool runs_right(Small *s) {
    Diag d = {0};
    Runtime *rt = NULL;
    float in[N][2];
    double back[N], used[N][2], loss;
    for (int i = 0; i < N; i++) in[i][0] = (float)i, in[i][1] = (float)(3 * i + 1);
    if (runtime_new(s->plan, 0, &rt, &d) != ST_OK) fail_msg("%s", d.text);
    if (runtime_set_input(rt, 0, in, &d) != ST_OK || runtime_step(rt, 0, &loss, &d) != ST_OK) fail_msg("%s", d.text);
    if (runtime_get_output(rt, 0, back, &d) != ST_OK || runtime_get_output(rt, 1, used[0], &d) != ST_OK) fail_msg("%s", d.text);
    bool right = true;
    for (int i = 0; i < N; i++) right &= back[i] == in[i][0] + in[i][1] && used[i][0] == in[i][0] && used[i][1] == in[i][1];
    runtime_free(rt);
    return right;
}

static Buffer *buffer_of(Small *s, ValueId v) { return (Buffer *)&s->plan->rank[0].buffer[s->plan->rank[0].value_buf[v]]; }

// Two buffers at one place, as if the first had not been alive while it was copied.
static void check_overlap(ValueId (*a)(const Small *), ValueId (*b)(const Small *)) {
    Small s = small_new();
    assert_true(runs_right(&s));
    buffer_of(&s, a(&s))->offset = buffer_of(&s, b(&s))->offset;
    assert_false(runs_right(&s));
    arena_free(s.arena);
}
static ValueId value_x(const Small *s) { return s->x; }
static ValueId value_other(const Small *s) { return s->other; }
static ValueId value_back(const Small *s) { return s->back; }

static void test_wrong_plans(void **state) {
    (void)state;
    check_overlap(value_other, value_x);     // written while the copy reads x
    check_overlap(value_back, value_other);  // the copy back begins while `other` is still read
}

// Without the wait, what is read is what a copy under way has left.
static void test_missing_wait(void **state) {
    (void)state;
    static const StepKind wait[] = {STEP_OFFLOAD_DONE, STEP_FETCH_DONE};
    for (int k = 0; k < 2; k++) {
        Small s = small_new();
        RankPlan *p = (RankPlan *)s.plan->rank;
        Step *step = (Step *)p->step;
        int n = 0;
        for (int i = 0; i < p->nstep; i++)
            if (step[i].kind != wait[k]) step[n++] = step[i];
        assert_int_equal(n, p->nstep - 1);
        p->nstep = n;
        assert_false(runs_right(&s));
        arena_free(s.arena);
    }
}

static void test_too_little_memory(void **state) {
    (void)state;
    Small s = small_new();
    Diag d = {0};
    Runtime *rt = NULL;
    ((RankPlan *)s.plan->rank)->host_nbytes = INT64_C(1) << 50;
    assert_int_equal(runtime_new(s.plan, 0, &rt, &d), ST_MEMORY);
    if (!strstr(d.text, "keeps 1125899.91 GB in host memory for 1 rank") || !strstr(d.text, "GB are available here")) fail_msg("%s", d.text);
    arena_free(s.arena);
}

static char *read_file(const char *path) {
    static char text[1 << 16];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

// A profile says when each copy ran, and its trace has a track for each stream.
static void test_profile(void **state) {
    (void)state;
    Small s = small_new();
    Diag d = {0};
    Runtime *rt = NULL;
    StepTimes t;
    double loss;
    char path[] = "/tmp/autosp-trace-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    if (runtime_new(s.plan, 0, &rt, &d) != ST_OK || runtime_profile(rt, 0, &loss, &t, &d) != ST_OK) fail_msg("%s", d.text);
    assert_true(t.copies[0] >= 0 && t.copies[1] >= t.copies[0] && t.copies[2] >= t.copies[1] && t.copies[3] >= t.copies[2]);
    if (profile_write_trace(path, s.plan, &t, &d) != ST_OK) fail_msg("%s", d.text);
    static const char *const want[] = {"\"copies to host memory\"", "\"copies from host memory\"", "\"kernels\"", "\"offload\"", "\"fetch\"",
                                       "\"stall: offload_done\"", "\"stall: fetch_done\"", "\"rank 0\""};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (!strstr(read_file(path), want[i])) fail_msg("the trace lacks %s: %s", want[i], read_file(path));
    FILE *f = fopen(path, "w");
    profile_print(f, s.plan, device_model_h100(), 0, &t, 1);
    fclose(f);
    if (!strstr(read_file(path), "copies to host memory") || !strstr(read_file(path), "stalls: kernels waited")) fail_msg("%s", read_file(path));
    remove(path);
    runtime_free(rt);
    arena_free(s.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_wrong_plans), cmocka_unit_test(test_missing_wait),
                                       cmocka_unit_test(test_processes), cmocka_unit_test(test_bf16), cmocka_unit_test(test_profile),
                                       cmocka_unit_test(test_too_little_memory), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
