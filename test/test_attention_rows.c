// The gradient of attention rows in which every key is suppressed by an added number: their log-sum-exp is near -2^20, of which a
// float32 keeps three fractional bits, and the probabilities must not be taken from it. Scores are multiples of 1/2, so that
// nothing else rounds.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "base/random.h"
#include "op_harness.h"
#include "ops/rules.h"

#define LEAF(code_) {.code = (code_), .dtype = DT_I64, .a = -1, .b = -1, .c = -1}
#define NUM(v) {.code = PROG_CONST, .dtype = DT_F32, .a = -1, .b = -1, .c = -1, .imm = (v)}
// 0 where k < q, -2^20 elsewhere: row 0 has suppressed keys only
static const Instr suppressed[] = {LEAF(PROG_INDEX_Q), LEAF(PROG_INDEX_K),
                                   {.code = PROG_OP + OP_LT, .dtype = DT_BOOL, .a = 1, .b = 0, .c = -1}, NUM(0), NUM(-1048576),
                                   {.code = PROG_OP + OP_WHERE, .dtype = DT_F32, .a = 2, .b = 3, .c = 4}};
static const Program program = {.ninstr = 6, .instr = suppressed, .nout = 2, .out = (const int32_t[]){-1, 5}};
static const Sample forward = {.label = "forward", .nin = 3, .shape = {DIMS(1, 4, 7, 4), DIMS(1, 2, 7, 4), DIMS(1, 2, 7, 4)},
                               .dtype = {DT_F32, DT_F32, DT_F32}, .nattr = 2,
                               .attr = {SAMPLE_F(SCALE, 0.5), {.key = ATTR_PROG, .u.prog = &program}}};
static const Sample backward = {.label = "backward", .nin = 6,
                                .shape = {DIMS(1, 4, 7, 4), DIMS(1, 2, 7, 4), DIMS(1, 2, 7, 4), DIMS(1, 4, 7, 4), DIMS(1, 4, 7),
                                          DIMS(1, 4, 7, 4)},
                                .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32}, .nattr = 2,
                                .attr = {SAMPLE_F(SCALE, 0.5), {.key = ATTR_PROG, .u.prog = &program}}};

static void check_rank(OpCase *c, const Row *row, void *ctx) {
    Str why = {0};
    bool ran;
    if (!op_check_row(c, &backend_cpu, ctx, row, &ran, &why)) fail_msg("%s: %s", op_row_text(c, row), str_text(&why));
    str_free(&why);
}

static void test_suppressed_rows(void **state) {
    (void)state;
    Diag d = {0};
    OpCase f, b;
    assert_int_equal(op_case_new(&f, OP_ATTENTION, &forward, DT_F32, 3, 5, &d), ST_OK);
    assert_int_equal(op_case_new(&b, OP_ATTENTION_GRAD, &backward, DT_F32, 3, 5, &d), ST_OK);
    for (int i = 0; i < 2; i++)  // q and k: -1, 0, 1
        for (int64_t k = 0; k < shape_numel(&forward.shape[i]); k++) f.in[i][k] = floor(3 * random_uniform(5, 9, i, k)) - 1;
    assert_int_equal(op_case_expect(&f, &d), ST_OK);
    for (int i = 0; i < 5; i++) {
        const double *from = i < 3 ? f.in[i] : f.out[i - 3];
        for (int64_t k = 0; k < shape_numel(&backward.shape[i]); k++) b.in[i][k] = from[k];
    }
    assert_int_equal(op_case_expect(&b, &d), ST_OK);
    Pool *pool = backend_cpu.pool_new(2);
    Row row = op_row_new(&b);
    check_rank(&b, &row, pool);
    assert_true(op_each_row(&b, check_rank, pool) > 0);
    backend_cpu.pool_free(pool);
    op_case_free(&f);
    op_case_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_suppressed_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
