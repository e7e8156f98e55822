// The estimate of how much of an attention its mask leaves: what strategies are chosen by. And Programs at a point.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "ops/attention.h"

#define LEAF(code_, slot) {.code = (code_), .dtype = DT_I64, .a = (slot), .b = -1, .c = -1}
#define NUM(v) {.code = PROG_CONST, .dtype = DT_I64, .a = -1, .b = -1, .c = -1, .imm = (v)}
#define OP2(op, t, x, y) {.code = PROG_OP + OP_##op, .dtype = (t), .a = (x), .b = (y), .c = -1}
#define Q LEAF(PROG_INDEX_Q, -1)
#define K LEAF(PROG_INDEX_K, -1)
static const Instr causal[] = {Q, K, OP2(LE, DT_BOOL, 1, 0)};
static const Instr window[] = {Q, K, OP2(LE, DT_BOOL, 1, 0), OP2(SUB, DT_I64, 0, 1), NUM(24), OP2(LT, DT_BOOL, 3, 4),
                               OP2(AND, DT_BOOL, 2, 5)};
static const Instr documents[] = {Q, K, OP2(LE, DT_BOOL, 1, 0), LEAF(PROG_VEC_Q, 0), LEAF(PROG_VEC_K, 1), OP2(EQ, DT_BOOL, 3, 4),
                                  OP2(AND, DT_BOOL, 2, 5)};
static const Instr nothing[] = {Q, NUM(0), OP2(LT, DT_BOOL, 0, 1)};

// Fraction for queries [begin, end) of n, keys [0, n).
static double fraction(const Instr *code, int ninstr, int64_t n, int64_t begin, int64_t end) {
    Program p = {.ninstr = ninstr, .instr = code, .nout = 2, .out = (int32_t[]){ninstr - 1, -1}};
    Attr attr = attr_prog(ATTR_PROG, &p);
    Node node = {.op = OP_ATTENTION, .nattr = 1, .attr = &attr};
    Span span = {begin, end};
    Operand q = {.ndim = 4, .sdim = 2, .nspan = 1, .span = &span, .dim = {1, 8, end - begin, 64}, .global = {1, 8, n, 64}};
    Operand k = {.ndim = 4, .sdim = -1, .dim = {1, 2, n, 64}, .global = {1, 2, n, 64}};
    return attention_visible_fraction(&node, &q, &k);
}
#define FRACTION(code, n, begin, end) fraction(code, sizeof(code) / sizeof *(code), n, begin, end)

static void assert_near(double got, double want, double tol) {
    if (fabs(got - want) > tol) fail_msg("%g is not within %g of %g", got, tol, want);
}

static void test_fractions(void **state) {
    (void)state;
    const int64_t n = 131072;
    assert_near(FRACTION(causal, n, 0, n), 0.5, 0.02);
    assert_near(FRACTION(causal, n, 0, n / 4), 0.125, 0.02);            // the first of four ranks
    assert_near(FRACTION(causal, n, 3 * n / 4, n), 0.875, 0.02);        // the last: the slowest
    assert_near(FRACTION(window, n, 0, n), (24 + 64) / (double)n, 3e-4);  // seen at any length
    assert_near(FRACTION(documents, n, 0, n), 0.5, 0.02);               // vectors are unknown: all one document
    assert_near(FRACTION(nothing, n, 0, n), 0, 0);
    assert_near(FRACTION(causal, 5, 0, 5), 1, 0);                       // blocks are whole
    assert_near(FRACTION(causal, 5, 5, 5), 0, 0);                       // an idle rank
}

static void test_unknowns(void **state) {
    (void)state;
    Program p = {.ninstr = 7, .instr = documents, .nout = 2, .out = (int32_t[]){6, -1}};
    double value[7];
    bool known[7];
    program_eval_scalar(&p, &(ProgPoint){.q = 3, .k = 2}, value, known);
    assert_false(known[6]);                       // could be another document
    program_eval_scalar(&p, &(ProgPoint){.q = 3, .k = 4}, value, known);
    assert_true(known[6] && value[6] == 0);       // not causal, whatever the documents
    program_eval_scalar(&p, &(ProgPoint){.q = 3, .k = 2, .vec = (double[]){5, 5}}, value, known);
    assert_true(known[6] && value[6] == 1);
}

static void test_integer_division(void **state) {
    (void)state;
    static const Instr code[] = {Q, K, OP2(FLOORDIV, DT_I64, 0, 1), OP2(MOD, DT_I64, 0, 1)};
    Program p = {.ninstr = 4, .instr = code, .nout = 2, .out = (int32_t[]){-1, -1}};
    for (int64_t x = -9; x <= 9; x++) {
        for (int64_t y = -4; y <= 4; y++) {
            double value[4];
            bool known[4];
            if (y == 0) continue;
            program_eval_scalar(&p, &(ProgPoint){.q = x, .k = y}, value, known);
            int64_t quotient = x / y - (x % y != 0 && (x < 0) != (y < 0));
            assert_true(value[2] == (double)quotient && value[3] == (double)(x - y * quotient));
        }
    }
}

static void test_program_check(void **state) {
    (void)state;
    Diag d = {0};
    Program p = {.ninstr = 7, .instr = documents, .nout = 2, .out = (int32_t[]){6, -1}};
    assert_int_equal(program_check(&p, true, 2, &d), ST_OK);
    assert_int_not_equal(program_check(&p, true, 1, &d), ST_OK);   // vector 1 of 1
    assert_int_not_equal(program_check(&p, false, 2, &d), ST_OK);  // indices do not belong in a fused group
    p.out = (int32_t[]){3, -1};
    assert_int_not_equal(program_check(&p, true, 2, &d), ST_OK);   // visible is not a bool
    assert_int_equal(program_vec_role(&p, 0), 'q');
    assert_int_equal(program_vec_role(&p, 1), 'k');
    assert_int_equal(program_vec_role(&p, 2), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fractions), cmocka_unit_test(test_unknowns),
                                       cmocka_unit_test(test_integer_division), cmocka_unit_test(test_program_check)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
