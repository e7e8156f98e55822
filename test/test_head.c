// Output layers as whole programs: what logits cost in memory, labels out of range, what stays whole and is told.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "driver/driver.h"
#include "exec/exec.h"
#include "ir/build.h"
#include "ops/op.h"

typedef struct Made {
    Graph *g;
    Builder b;
    Diag d;
    ValueId h, w, labels;  // [1, seq, width], [vocab, width], [1, seq]
} Made;

// The mean cross-entropy of h w^T (+ bias) against labels, h being rows of a table.
static void make(Made *m, Arena *a, int64_t seq, int64_t width, int64_t vocab) {
    Graph *g = m->g = graph_new(a, "head", 1);
    m->d = (Diag){0};
    m->b = (Builder){.g = g, .d = &m->d};
    g->batch = 1, g->seq = seq;
    const Shape s[2] = {SHAPE(vocab, width), SHAPE(vocab, width)};
    ValueId p[2];
    for (int i = 0; i < 2; i++) {
        vec_push(&g->params, ((Param){.name = i ? "w" : "embed", .shape = s[i], .dtype = DT_F32, .trainable = true}));
        p[i] =
            build(&m->b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, i), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, DT_F32)});
    }
    vec_push(
        &g->inputs,
        ((Input){.name = "labels", .role = ROLE_TOKENS, .shape = SHAPE(1, seq), .dtype = DT_I64, .seq_dim = 1, .batch_dim = 0}));
    m->labels = build(&m->b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)});
    ValueId rows = build_binary_scalar(&m->b, OP_MOD, m->labels, 7);
    m->h = build_binary(&m->b, OP_EMBEDDING, p[0], rows);
    m->w = p[1];
}

static void finish(Made *m, ValueId logits) {
    Builder *b = &m->b;
    ValueId lse = build_squeeze(b, build_reduce(b, OP_LOGSUMEXP, logits, 2), 2);
    ValueId nll = build_binary(b, OP_SUB, lse, build_binary(b, OP_PICK, logits, m->labels));
    ValueId loss = build_binary_scalar(b, OP_DIV, build_sum_all(b, nll), (double)m->g->seq);
    assert_int_equal(b->status, ST_OK);
    graph_add_output(m->g, OUT_LOSS, -1, 0, "loss", loss);
}

static void compile(Arena *a, Graph *g, int nranks, Compiled *out) {
    CompileOptions o;
    compile_defaults(&o);
    o.nranks = nranks, o.nthreads = 1, o.verify_each = true;
    Diag d = {0};
    if (compile_graph(a, g, &o, out, &d) != ST_OK) fail_msg("%s", d.text);
}

static int count(const Graph *g, OpKind op) {
    int n = 0;
    for (int64_t i = 0; i < g->nodes.len; i++) n += g->nodes.data[i].op == op;
    return n;
}

static void test_memory(void **state) {
    enum { SEQ = 4096, VOCAB = 32000, WIDTH = 16 };
    for (int nranks = 1; nranks <= 4; nranks += 3) {
        Arena *a = arena_new();
        Made m;
        make(&m, a, SEQ, WIDTH, VOCAB);
        finish(&m, build_dot(&m.b, m.h, m.w, 0, 1, false, true));
        Compiled c = {0};
        compile(a, m.g, nranks, &c);
        assert_int_equal(count(c.graph, OP_HEAD), 1);
        assert_int_equal(c.shard.logits.len, 0);
        for (int r = 0; r < nranks; r++) {
            const RankPlan *p = &c.plan->rank[r];
            // scratch, two parameters and their gradients, and a few rows' worth
            int64_t limit = (32 << 20) + (int64_t)VOCAB * WIDTH * 4 * 6 + (4 << 20);
            if (p->arena_nbytes > limit)
                fail_msg("rank %d of %d: %lld bytes, more than %lld", r, nranks, (long long)p->arena_nbytes, (long long)limit);
        }
        compiled_free(&c);
    }
}

static void test_label_out_of_range(void **state) {
    enum { SEQ = 6, VOCAB = 11, WIDTH = 3 };
    Arena *a = arena_new();
    Made m;
    make(&m, a, SEQ, WIDTH, VOCAB);
    finish(&m, build_dot(&m.b, m.h, m.w, 0, 1, false, true));
    Compiled c = {0};
    compile(a, m.g, 2, &c);
    Runtime *rt = NULL;
    Diag d = {0};
    assert_int_equal(runtime_new(c.plan, 1, &rt, &d), ST_OK);
    const double values[VOCAB * WIDTH] = {0.5, -1, 0.25};
    const int64_t labels[SEQ] = {0, 1, 2, 3, VOCAB, 5};
    for (int p = 0; p < 2; p++) assert_int_equal(runtime_set_state(rt, p, 0, values, DT_F64, &d), ST_OK);
    assert_int_equal(runtime_set_input(rt, 0, labels, &d), ST_OK);
    double loss;
    assert_int_equal(runtime_step(rt, 0, &loss, &d), ST_NUMERIC);
    if (!strstr(d.text, "head: index 11 at [4] is outside [0, 11)")) fail_msg("%s", d.text);
    runtime_free(rt);
    compiled_free(&c);
}

// A bias and a second reader keep the logits whole; the report names the reader.
static void test_whole(void **state) {
    for (int k = 0; k < 2; k++) {
        Arena *a = arena_new();
        Made m;
        make(&m, a, 8, 3, 11);
        ValueId z = build_dot(&m.b, m.h, m.w, 0, 1, false, true);
        if (k == 0) z = build_binary(&m.b, OP_ADD, z, build_iota(&m.b, SHAPE(11), 0, 0, 1, DT_F32));
        finish(&m, z);
        if (k == 1) graph_add_output(m.g, OUT_AUX, -1, 0, "logits", z);
        Compiled c = {0};
        compile(a, m.g, 1, &c);
        assert_int_equal(count(c.graph, OP_HEAD) + count(c.graph, OP_HEAD_FWD), 0);
        assert_int_equal(c.shard.logits.len, 1);
        const char *why = k ? "the program returns them" : "= add(";
        if (!strstr(c.shard.logits.data[0], why)) fail_msg("%s", c.shard.logits.data[0]);
        compiled_free(&c);
    }
}

// Labels made of the logits' own log-sum-exp, and a cotangent that depends on it: no head, and no joint one.
static void test_dependent(void **state) {
    for (int k = 0; k < 2; k++) {
        Arena *a = arena_new();
        Made m;
        make(&m, a, 8, 3, 11);
        Builder *b = &m.b;
        ValueId z = build_dot(b, m.h, m.w, 0, 1, false, true), lse = build_squeeze(b, build_reduce(b, OP_LOGSUMEXP, z, 2), 2);
        if (k == 0) m.labels = build_binary_scalar(b, OP_MOD, build_cast(b, lse, DT_I64), 11);
        ValueId nll = build_binary(b, OP_SUB, lse, build_binary(b, OP_PICK, z, m.labels));
        if (k == 1) nll = build_binary(b, OP_MUL, nll, nll);
        ValueId loss = build_sum_all(b, nll);
        assert_int_equal(b->status, ST_OK);
        graph_add_output(m.g, OUT_LOSS, -1, 0, "loss", loss);
        Compiled c = {0};
        compile(a, m.g, 1, &c);
        assert_int_equal(count(c.graph, OP_HEAD), 0);
        assert_int_equal(count(c.graph, OP_HEAD_FWD), k);
        assert_int_equal(count(c.graph, OP_HEAD_GRAD), k);
        compiled_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory), cmocka_unit_test(test_label_out_of_range),
                                       cmocka_unit_test(test_whole), cmocka_unit_test(test_dependent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
