// Attention's heads in groups: how many there are, what scratch is left of it, and that no call of cuDNN's is larger than it may be.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/flash.h"
#include "op_harness.h"
#include "ops/attention.h"
#include "pass/groups.h"

static DnnCall call(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t dim, bool backward, int64_t groups) {
    return (DnnCall){.batch = batch, .heads = heads, .kv_heads = kv_heads, .nq = n, .nk = n, .dim = dim, .mask = DNN_CAUSAL,
                     .scale = 0.125, .backward = backward, .groups = groups, .cut = -1};
}

static void expect(DnnCall c, int64_t batch, int64_t kv_heads) {
    DnnGroups g = dnn_groups(&c);
    assert_int_equal(g.batch, batch);
    assert_int_equal(g.kv_heads, kv_heads);
    assert_int_equal(g.n, c.batch / batch * (c.kv_heads / kv_heads));
    assert_int_equal(dnn_scratch(&c), dnn_parts(&c, batch, kv_heads).total);
}

static void test_dnn(void **state) {
    (void)state;
    for (int64_t groups = 1; groups <= 8; groups *= 2) {  // 128 MiB in all
        DnnCall c = call(1, 32, 8, 8192, 64, true, groups), one = call(1, 32, 8, 8192, 64, true, 1);
        expect(c, 1, 8 / groups);
        int64_t slack = 1 << 20;  // tails of the parts
        assert_in_range(dnn_scratch(&c), dnn_scratch(&one) / (size_t)groups, dnn_scratch(&one) / (size_t)groups + slack);
    }
    expect(call(3, 8, 2, 512, 64, true, 0), 3, 2);
    expect(call(3, 8, 2, 512, 64, true, 2), 3, 1);      // all entries of the batch, some heads
    expect(call(3, 32, 8, 32768, 64, true, 2), 1, 4);   // too much for three at a time
    expect(call(1, 32, 8, 131072, 64, true, 1), 1, 1);  // 512 MiB hold one of the eight
    DnnCall all = call(1, 32, 8, 131072, 64, true, 2);
    all.group_nbytes = INT64_MAX;
    expect(all, 1, 4);
}

// 2^31 elements or more are never in one call, whichever operand has them.
static void test_million(void **state) {
    (void)state;
    const int64_t n = 1 << 20;
    expect(call(1, 32, 8, n, 64, false, 1), 1, 4);
    expect(call(1, 32, 8, n, 128, false, 1), 1, 2);
    expect(call(1, 16, 16, n, 128, false, 1), 1, 8);
    expect(call(2, 16, 8, n, 64, false, 1), 1, 8);   // the second entry begins at 2^30: with both the end is at 2^31
    expect(call(2, 16, 8, n / 2, 64, false, 1), 2, 8);
    for (int64_t dim = 64; dim <= 128; dim += 64)
        for (int64_t heads = 4; heads <= 64; heads *= 2)
            for (int64_t kv_heads = 1; kv_heads <= heads; kv_heads *= 2)
                for (int backward = 0; backward < 2; backward++) {
                    DnnCall c = call(1, heads, kv_heads, n, dim, backward, 1);
                    DnnGroups g = dnn_groups(&c);
                    bool fits = g.kv_heads * (heads / kv_heads) * n * dim < (int64_t)1 << 31;
                    assert_int_equal(fits, dnn_refuses(&c) == NULL);
                }
    DnnCall one = call(1, 32, 1, n, 64, true, 1);  // one KV head's queries: none of cuDNN's
    assert_non_null(dnn_refuses(&one));
}

// A packed group is one run of tokens: some heads of one entry of the batch, or all of it. Its elements are below 2^31 too.
static void test_packed(void **state) {
    (void)state;
    DnnCall c = call(3, 8, 4, 512, 64, true, 1);
    c.slots = 16;
    expect(c, 3, 4);
    c.groups = 2;
    expect(c, 1, 2);
    c.groups = 4;
    expect(c, 1, 1);
    c = call(1, 8, 4, 512, 64, true, 2), c.slots = 16;
    expect(c, 1, 2);
    c = call(1, 32, 8, 1 << 20, 64, false, 1), c.slots = 64;
    expect(c, 1, 4);
    c = call(2, 16, 8, 1 << 20, 64, false, 1), c.slots = 64;
    expect(c, 1, 8);
    c = call(1, 64, 64, 4096, 64, false, 1), c.slots = 2048;  // 65,535 entries hold 31 heads; 16 of them divide 64
    expect(c, 1, 16);
    c.group_nbytes = INT64_MAX;  // entries are a limit of every call
    expect(c, 1, 16);
    c = call(1, 32, 1, 1 << 20, 64, true, 1), c.slots = 4;
    assert_non_null(dnn_refuses(&c));
}

// A group's operands: where its first entry and heads begin, nothing where nothing was given.
static void test_group_data(void **state) {
    (void)state;
    DnnCall c = call(3, 8, 4, 16, 32, true, 2);
    char base[1];
    DnnData all = {.q = base, .k = base, .v = base, .o = base, .lse = base, .dq = base, .dv = base, .ids = base, .node = 3};
    DnnData x = dnn_group_data(&c, &all, 2, 1);
    int64_t row = (2 * 8 + 2) * 16, key = (2 * 4 + 1) * 16;
    assert_int_equal((const char *)x.q - base, row * 32 * 2);
    assert_int_equal((const char *)x.k - base, key * 32 * 2);
    assert_int_equal((const char *)x.v - base, key * 32 * 2);
    assert_int_equal((char *)x.o - base, row * 32 * 2);
    assert_int_equal((char *)x.lse - base, row * 4);
    assert_int_equal((char *)x.dq - base, row * 32 * 2);
    assert_int_equal((char *)x.dv - base, key * 32 * 2);
    assert_null(x.dout);
    assert_null(x.dk);
    assert_int_equal((const char *)x.ids - base, 2 * 16 * 8);
    assert_int_equal(x.node, 3);
    c.one_packing = true;
    assert_ptr_equal(dnn_group_data(&c, &all, 2, 1).ids, base);
}

static Operand operand(const OpCase *c, ValueId v, bool long_one) {
    const Value *x = graph_value(c->g, v);
    Operand o = {.dtype = x->dtype, .ndim = x->shape.ndim, .sdim = -1};
    memcpy(o.dim, x->shape.dim, sizeof o.dim), memcpy(o.global, x->shape.dim, sizeof o.global);
    if (long_one) o.dim[2] = o.global[2] = 4096;  // so that sizes are not made of what rounds them up
    return o;
}

static size_t flash_scratch(const OpCase *c) {
    Operand in[OP_MAX_IN], out[OP_MAX_OUT];
    for (int i = 0; i < c->nin; i++) in[i] = operand(c, op_case_node(c)->in[i], i < ATTENTION_GRAD_NIN);
    for (int j = 0; j < c->nout; j++) out[j] = operand(c, op_case_node(c)->out[j], true);
    return flash_attention_grad_scratch(op_case_node(c), in, out);
}

// Our own kernels: rows' statistics and, where the mask asks for the head, verdicts are those of a group.
static void test_flash(void **state) {
    (void)state;
    const OpInfo *info = op_info(OP_ATTENTION_GRAD);
    int tried = 0;
    for (int i = 0; i < info->nsample; i++) {
        OpCase c;
        Diag d = {0};
        assert_int_equal(op_case_new(&c, OP_ATTENTION_GRAD, &info->samples[i], DT_F32, 1, 1, &d), ST_OK);
        int64_t groups = node_int_or(op_case_node(&c), ATTR_GROUPS, 1);
        size_t with = flash_scratch(&c), without;
        groups_set(c.g, c.arena, 1);
        without = flash_scratch(&c);
        if (groups == 1) assert_int_equal(with, without);
        else assert_true(with < without * 2 / 3);
        tried += groups > 1;
        op_case_free(&c);
    }
    assert_int_equal(tried, 3);
}

static void test_set(void **state) {
    (void)state;
    static const struct { int64_t most, want; } cases[] = {{4, 4}, {1, 1}, {3, 2}, {100, 4}, {2, 2}, {0, 1}};
    for (int i = 0; i < op_info(OP_ATTENTION)->nsample; i++) {
        const Sample *s = &op_info(OP_ATTENTION)->samples[i];
        if (strcmp(s->label, "bias vectors by head and batch")) continue;
        OpCase c;
        Diag d = {0};
        assert_int_equal(op_case_new(&c, OP_ATTENTION, s, DT_F32, 1, 1, &d), ST_OK);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            groups_set(c.g, c.arena, cases[k].most);
            const Node *n = op_case_node(&c);
            assert_int_equal(node_int_or(n, ATTR_GROUPS, 1), cases[k].want);
            assert_int_equal(n->nattr, s->nattr + (cases[k].want > 1));
            assert_int_equal(graph_verify(c.g, "groups", &d), ST_OK);
            // a rank with fewer heads does fewer groups
            assert_int_equal(attention_groups(n, 4), cases[k].want);
            assert_int_equal(attention_groups(n, 3), cases[k].want == 4 ? 3 : 1);
            assert_int_equal(attention_groups(n, 1), 1);
            assert_int_equal(attention_groups(n, 0), 1);
        }
        op_case_free(&c);
        return;
    }
    fail_msg("the sample is gone");
}

static void test_refused(void **state) {
    (void)state;
    for (int op = 0; op < 2; op++) {
        const OpInfo *info = op_info(op ? OP_ATTENTION_GRAD : OP_ATTENTION);
        for (int i = 0; i < info->nsample; i++) {
            Sample s = info->samples[i];
            int64_t bad = i % 2 ? 0 : s.shape[1].dim[1] + 1;
            int at = 0;
            while (at < s.nattr && s.attr[at].key != ATTR_GROUPS) at++;
            s.attr[at] = attr_i(ATTR_GROUPS, bad);
            if (at == s.nattr) s.nattr++;
            OpCase c;
            Diag d = {0};
            assert_int_not_equal(op_case_new(&c, op ? OP_ATTENTION_GRAD : OP_ATTENTION, &s, DT_F32, 1, 1, &d), ST_OK);
            assert_non_null(strstr(d.text, "KV heads cannot be done in"));
            op_case_free(&c);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dnn), cmocka_unit_test(test_million), cmocka_unit_test(test_packed),
                                       cmocka_unit_test(test_group_data), cmocka_unit_test(test_flash),
                                       cmocka_unit_test(test_set), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
