// Which band of keys an attention mask program is: the forms that programs have, things that only look like them, and random
// programs, whose recognised band must be the program at every position.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "backend/cuda/attention/attention_kind.c"

static Instr instr[64];
static int n;
static int leaf(ProgLeaf l) { return instr[n] = (Instr){.code = l, .dtype = DT_I64, .a = -1, .b = -1, .c = -1}, n++; }
static int num(double v) {
    return instr[n] = (Instr){.code = PROG_CONST, .dtype = DT_I64, .a = -1, .b = -1, .c = -1, .imm = v}, n++;
}
static int op(OpKind o, DType t, int a, int b) {
    return instr[n] = (Instr){.code = PROG_OP + (int)o, .dtype = t, .a = a, .b = b, .c = -1}, n++;
}
static int q(void) { return leaf(PROG_INDEX_Q); }
static int k(void) { return leaf(PROG_INDEX_K); }
static int cmp(OpKind o, int a, int b) { return op(o, DT_BOOL, a, b); }

static bool band_of(int visible, AttentionBand *b) {
    int32_t out[2] = {visible, -1};
    Program p = {.ninstr = n, .instr = instr, .nout = 2, .out = out};
    bool ok = attention_band(&p, 40, 50, b);
    n = 0;
    return ok;
}

static void expect(int visible, bool has_lo, int64_t lo, bool has_hi, int64_t hi) {
    AttentionBand b;
    assert_true(band_of(visible, &b));
    assert_int_equal(b.has_lo, has_lo);
    assert_int_equal(b.has_hi, has_hi);
    if (has_lo) assert_int_equal(b.lo, lo);
    if (has_hi) assert_int_equal(b.hi, hi);
}

static void test_forms(void **state) {
    (void)state;
    AttentionBand b;
    assert_true(attention_band(NULL, 4, 4, &b) && !b.has_lo && !b.has_hi);
    expect(-1, false, 0, false, 0);
    expect(num(1), false, 0, false, 0);
    expect(cmp(OP_LE, k(), q()), false, 0, true, 0);
    expect(cmp(OP_GE, q(), k()), false, 0, true, 0);
    expect(cmp(OP_LT, k(), q()), false, 0, true, -1);
    expect(cmp(OP_GT, op(OP_ADD, DT_I64, q(), num(1)), k()), false, 0, true, 0);
    expect(cmp(OP_LE, k(), op(OP_ADD, DT_I64, q(), num(7))), false, 0, true, 7);
    expect(cmp(OP_LE, op(OP_SUB, DT_I64, k(), q()), num(3)), false, 0, true, 3);
    int causal = cmp(OP_LE, k(), q()), window = cmp(OP_LT, op(OP_SUB, DT_I64, q(), k()), num(24));
    expect(cmp(OP_AND, causal, window), true, -23, true, 0);
    causal = cmp(OP_LE, k(), q()), window = cmp(OP_LE, q(), op(OP_ADD, DT_I64, k(), num(9)));
    expect(cmp(OP_AND, cmp(OP_AND, window, causal), cmp(OP_AND, causal, num(1))), true, -9, true, 0);
}

static void test_others(void **state) {
    (void)state;
    AttentionBand b;
    assert_false(band_of(num(0), &b));
    assert_false(band_of(cmp(OP_EQ, k(), q()), &b));
    assert_false(band_of(cmp(OP_LE, k(), num(5)), &b));
    assert_false(band_of(cmp(OP_OR, cmp(OP_LE, k(), q()), cmp(OP_LE, k(), num(5))), &b));
    assert_false(band_of(cmp(OP_LE, op(OP_ADD, DT_I64, k(), k()), q()), &b));
    assert_false(band_of(cmp(OP_LE, k(), leaf(PROG_INDEX_H)), &b));
    assert_false(band_of(cmp(OP_EQ, leaf(PROG_VEC_Q), leaf(PROG_VEC_K)), &b));
    assert_false(band_of(cmp(OP_LE, op(OP_ADD, DT_I64, k(), q()), num(30)), &b));
    int32_t out[2] = {-1, 0};  // a bias
    instr[0] = (Instr){.code = PROG_CONST, .dtype = DT_F32, .imm = 1};
    Program p = {.ninstr = 1, .instr = instr, .nout = 2, .out = out};
    assert_false(attention_band(&p, 4, 4, &b));
}

// ---- documents
static int vec(ProgLeaf l, int slot, DType t) {
    return instr[n] = (Instr){.code = l, .dtype = t, .a = slot, .b = -1, .c = -1}, n++;
}
static int same(int a, int b) { return cmp(OP_EQ, vec(PROG_VEC_Q, a, DT_I64), vec(PROG_VEC_K, b, DT_I64)); }

static bool documents_of(int visible, AttentionBand *b, AttentionDocuments *docs) {
    int32_t out[2] = {visible, -1};
    Program p = {.ninstr = n, .instr = instr, .nout = 2, .out = out};
    bool ok = attention_documents(&p, 40, 40, b, docs);
    n = 0;
    return ok;
}

static void test_documents(void **state) {
    (void)state;
    AttentionBand b;
    AttentionDocuments docs;
    assert_true(documents_of(same(0, 1), &b, &docs) && !b.has_hi && !b.has_lo && docs.q == 0 && docs.k == 1);
    assert_true(documents_of(same(1, 0), &b, &docs) && docs.q == 1 && docs.k == 0);
    int turned = cmp(OP_EQ, vec(PROG_VEC_K, 1, DT_I64), vec(PROG_VEC_Q, 0, DT_I64));
    assert_true(documents_of(cmp(OP_AND, turned, cmp(OP_LE, k(), q())), &b, &docs) && b.has_hi && b.hi == 0 && !b.has_lo);
    int causal = cmp(OP_LE, k(), q()), window = cmp(OP_LT, op(OP_SUB, DT_I64, q(), k()), num(24));
    assert_true(documents_of(cmp(OP_AND, cmp(OP_AND, window, same(0, 1)), causal), &b, &docs) && b.lo == -23 && b.hi == 0);
    // what only looks like it
    assert_false(documents_of(cmp(OP_LE, k(), q()), &b, &docs));  // no documents
    assert_false(documents_of(cmp(OP_OR, cmp(OP_LE, k(), q()), same(0, 1)), &b, &docs));
    assert_false(documents_of(cmp(OP_NE, vec(PROG_VEC_Q, 0, DT_I64), vec(PROG_VEC_K, 1, DT_I64)), &b, &docs));
    assert_false(documents_of(cmp(OP_LE, vec(PROG_VEC_Q, 0, DT_I64), vec(PROG_VEC_K, 1, DT_I64)), &b, &docs));
    assert_false(documents_of(cmp(OP_EQ, vec(PROG_VEC_Q, 0, DT_I64), vec(PROG_VEC_Q, 1, DT_I64)), &b, &docs));
    assert_false(documents_of(cmp(OP_EQ, vec(PROG_VEC_Q, 0, DT_F32), vec(PROG_VEC_K, 1, DT_F32)), &b, &docs));
    assert_false(documents_of(cmp(OP_EQ, vec(PROG_VEC_Q, 0, DT_I64), num(1)), &b, &docs));
    int next = op(OP_ADD, DT_I64, vec(PROG_VEC_Q, 0, DT_I64), num(1));
    assert_false(documents_of(cmp(OP_EQ, next, vec(PROG_VEC_K, 1, DT_I64)), &b, &docs));
    int two = cmp(OP_AND, same(0, 1), same(2, 3));
    assert_false(documents_of(two, &b, &docs));
    assert_false(band_of(same(0, 1), &b));  // no band without documents
    int32_t out[2] = {same(0, 1), 0};  // a bias
    Program p = {.ninstr = n, .instr = instr, .nout = 2, .out = out};
    assert_false(attention_documents(&p, 40, 40, &b, &docs));
    n = 0;
}

static uint64_t counter;
static int pick(int m) { return (int)(random_uniform(3, 4, 5, (int64_t)counter++) * m); }

static int random_linear(int depth) {
    int what = depth > 2 ? pick(3) : pick(6);
    if (what == 0) return q();
    if (what == 1) return k();
    if (what == 2) return num(pick(40) - 20);
    int a = random_linear(depth + 1), b = random_linear(depth + 1);
    return op(what == 3 ? OP_SUB : OP_ADD, DT_I64, a, b);
}

static int random_visible(int depth) {
    static const OpKind compare[] = {OP_LE, OP_LT, OP_GE, OP_GT, OP_LE, OP_EQ};
    if (depth < 2 && pick(2) && n < 30) {
        int a = random_visible(depth + 1), b = random_visible(depth + 1);
        return cmp(pick(8) ? OP_AND : OP_OR, a, b);
    }
    int a = random_linear(1), b = random_linear(1);
    return cmp(compare[pick(6)], a, b);
}

static void test_random(void **state) {
    (void)state;
    int recognised = 0;
    for (int i = 0; i < 4000; i++) {
        n = 0;
        int32_t out[2] = {random_visible(0), -1};
        Program p = {.ninstr = n, .instr = instr, .nout = 2, .out = out};
        AttentionBand b;
        if (!attention_band(&p, 23, 31, &b)) continue;
        recognised++;
        for (int64_t y = 0; y < 23; y++)
            for (int64_t x = 0; x < 31; x++) {
                double value[64];
                bool known[64];
                program_eval_scalar(&p, &(ProgPoint){.q = y, .k = x}, value, known);
                assert_true(known[out[0]]);
                assert_int_equal(value[out[0]] != 0, in_band(&b, y, x));
            }
    }
    assert_true(recognised > 400);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms), cmocka_unit_test(test_others),
                                       cmocka_unit_test(test_documents),
                                       cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
