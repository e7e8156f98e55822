// The generated kernels of fused nodes on the emulated device: random programs of both forms against an evaluation in double, and
// against the reference executor.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include "backend/cuda/fused/codegen_fused.h"
#include "fused_case.h"
#include "op_harness.h"

extern const Backend backend_cuda;

static int check(FusedCase *c, int64_t *compared) {
    Str why = {0};
    fused_case_expect(c);
    bool same = fused_case_check(c, &backend_cuda, &why, compared);
    if (!same) print_error("%s\n", str_text(&why));
    str_free(&why);
    fused_case_free(c);
    return !same;
}

static void test_random(void **state) {
    const char *from = getenv("FUSED_FROM"), *count = getenv("FUSED_COUNT");
    int first = from ? atoi(from) : 0, n = count ? atoi(count) : 40, failed = 0;
    int64_t compared = 0;
    for (int i = first; i < first + n; i++) {
        FusedCase c;
        fused_case_random(&c, (uint64_t)i, 6000);
        failed += check(&c, &compared);
    }
    print_message("%lld elements compared\n", (long long)compared);
    assert_int_equal(failed, 0);
}

// Case 9 at the size that gpu_fused gives it is x^x of a sum of -8.5e7: whole in f32, so that it is 0 there, and not in double
// (NaN).
static void test_whole_exponents(void **state) {
    FusedCase c;
    int64_t compared = 0;
    fused_case_random(&c, 9, 20000);
    assert_int_equal(check(&c, &compared), 0);
}

// Every way in which rows are taken (codegen_rows.c): kept in registers by part of a warp or a block, read again, split among
// blocks; and more rows than column sums have workers.
static void test_rows(void **state) {
    const struct {
        Shape space;
        int row, times;
    } spaces[] = {{SHAPE(300, 24), 1, 2}, {SHAPE(8, 513), 1, 1}, {SHAPE(6, 1024), 1, 2}, {SHAPE(5, 2, 1000), 1, 2},
                  {SHAPE(2, 8195), 1, 2}, {SHAPE(33000), 1, 2}, {SHAPE(2, 32768), 1, 1}, {SHAPE(2, 3, 8, 256), 2, 2},
                  {SHAPE(0, 16), 1, 1}, {SHAPE(2200, 8), 1, 1}};
    int failed = 0;
    int64_t compared = 0;
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++)
        for (int t = 0; t < spaces[i].times; t++) {
            FusedCase c;
            fused_case_random_on(&c, 1000 * i + (uint64_t)t, spaces[i].space, spaces[i].row);
            failed += check(&c, &compared);
        }
    print_message("%lld elements compared\n", (long long)compared);
    assert_int_equal(failed, 0);
}

static bool source_has(const FusedCase *c, const char *text) {
    Operand in[CASE_MAX_IN], out[CASE_MAX_OUT];
    FusedSpace s;
    FusedPlan p;
    Diag d = {0};
    Arena *a = arena_new();
    fused_case_operands(c, in, out);
    bool planned = fused_space(a, graph_node(c->g, c->node), in, out, &s, &d) == ST_OK && fused_plan(a, &s, &p, &d) == ST_OK;
    bool has = planned && strstr(p.source, text) != NULL;
    arena_free(a);
    return has;
}

// x * t + position, t repeating along the first dim or, as rotary tables do, along the second.
static void make_repeated(FusedCase *c, Shape s, int along) {
    Arena *a = arena_new();
    ProgramBuilder b = {.arena = a};
    if (along) s = SHAPE(s.dim[1], s.dim[0], s.dim[2]);
    Shape in[2] = {s, along ? SHAPE(s.dim[0], 1, s.dim[2]) : SHAPE(s.dim[1], s.dim[2])};
    DType type[2] = {DT_F32, DT_F32};
    int x = prog_leaf(&b, PROG_INPUT, DT_F32, 0, 0), t = prog_leaf(&b, PROG_INPUT, DT_F32, 1, 0);
    int at = prog_op(&b, OP_CAST, DT_F32, prog_leaf(&b, PROG_INDEX, DT_I64, along, 0), -1, -1);
    vec_push(&b.out, prog_op(&b, OP_ADD, DT_F32, prog_op(&b, OP_MUL, DT_F32, x, t, -1), at, -1));
    fused_case_make(c, "repeated", prog_finish(&b), s, 0, 2, in, type, 0, NULL, 7);
    arena_free(a);
}

// What codegen_tuning.c decides by size, forced at small ones: rows loaded early by every block, fewer workers than rows or more,
// nothing hoisted, one vector for a thread, turns along every dim that an input repeats along.
static void test_choices(void **state) {
    const FusedTuning usual = fused_tuning;
    const Shape space[] = {SHAPE(9, 1032), SHAPE(700, 264), SHAPE(6, 8, 512), SHAPE(256, 4, 8)};
    const int row[] = {1, 1, 1, 0};
    int failed = 0, early = 0, turns = 0;
    int64_t compared = 0;
    for (int choice = 0; choice < 4; choice++) {
        fused_tuning = usual;
        fused_tuning.blocks_per_level = 1000, fused_tuning.prefetch_words = 64, fused_tuning.prefetch_registers = -100;
        fused_tuning.along_elements = 1, fused_tuning.along_steps = 1 + choice, fused_tuning.along_places = 1;
        if (choice & 1) fused_tuning.steady_rows = 0, fused_tuning.hoist = 0;
        if (choice & 2) fused_tuning.row_vectors = 1;
        if (choice) fused_tuning.sms = 1;
        for (int i = 0; i < 4; i++) {
            FusedCase c;
            if (row[i]) fused_case_random_on(&c, 5000 + 100 * (uint64_t)i + (uint64_t)choice, space[i], row[i]);
            if (row[i] == 0) make_repeated(&c, space[i], choice % 2);
            early += source_has(&c, "const i64 rn ="), turns += source_has(&c, "many0 < to");
            failed += check(&c, &compared);
        }
    }
    fused_tuning = usual;
    print_message("%lld elements compared; %d load rows early, %d take turns\n", (long long)compared, early, turns);
    assert_int_equal(failed, 0);
    assert_true(early >= 3 && turns >= 1);
}

// ---- the op table's samples ---------------------------------------------------------------------------------------------

static void check_row(OpCase *c, const Row *row, void *ctx) {
    Str why = {0};
    bool ran;
    if (!op_check_row(c, &backend_cuda, NULL, row, &ran, &why)) {
        print_error("%s, sample \"%s\", %s: %s\n", op_name(c->op), c->sample->label, op_row_text(c, row), str_text(&why));
        ++*(int *)ctx;
    }
    assert_true(ran);
    str_free(&why);
}

static void test_samples(void **state) {
    int failed = 0;
    for (int op = 0; op < OP_COUNT; op++)
        for (int i = 0; i < op_info((OpKind)op)->nsample; i++)
            for (int nranks = 1; nranks <= 3; nranks += 2) {
                if (!op_is_pointwise((OpKind)op) && op != OP_FUSED) continue;
                OpCase c;
                Diag d = {0};
                bool built = op_case_new(&c, (OpKind)op, &op_info((OpKind)op)->samples[i], DT_F32, nranks, 23, &d) == ST_OK;
                if (!built || op_case_expect(&c, &d) != ST_OK) fail_msg("%s: %s", op_name((OpKind)op), d.text);
                Row row = op_row_new(&c);
                if (nranks == 1) check_row(&c, &row, &failed);
                else op_each_row(&c, check_row, &failed);
                op_case_free(&c);
            }
    assert_int_equal(failed, 0);
}

// ---- errors -------------------------------------------------------------------------------------------------------------

// An integer divisor of 0 is an error of the step, on the node; f64 is refused by name.
static void test_errors(void **state) {
    Arena *a = arena_new();
    ProgramBuilder b = {.arena = a};
    int x = prog_leaf(&b, PROG_INPUT, DT_I64, 0, 0), y = prog_op(&b, OP_SUB, DT_I64, x, x, -1);
    vec_push(&b.out, prog_op(&b, OP_MOD, DT_I64, x, y, -1));
    FusedCase c;
    Shape s = SHAPE(3, 5);
    DType t = DT_I64;
    Str why = {0};
    int64_t compared = 0;
    fused_case_make(&c, "zero divisor", prog_finish(&b), s, 0, 1, &s, &t, 0, NULL, 1);
    assert_false(fused_case_check(&c, &backend_cuda, &why, &compared));
    assert_non_null(strstr(str_text(&why), "zero"));
    str_free(&why);
    fused_case_free(&c);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),  cmocka_unit_test(test_whole_exponents), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_choices), cmocka_unit_test(test_samples),         cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
