// The public header on its own: compile a fixture, look at the plan, run steps, and see the loss fall. Includes nothing internal.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "autosp.h"

#define LLAMA TEST_DATA "/fixtures/llama/model.pt2"

static autosp_program *compile(int ranks) {
    autosp_options o = autosp_options_default();
    autosp_error e;
    autosp_program *p = NULL;
    o.batch = 2;
    o.seq = 37;
    o.ranks = ranks;
    o.threads = 1;
    autosp_status st = autosp_compile(LLAMA, &o, &p, &e);
    if (st != AUTOSP_OK) fail_msg("%s", e.text);
    return p;
}

static void steps(int ranks, double *loss, int n, float *gradient) {
    autosp_program *p = compile(ranks);
    autosp_session *s;
    autosp_error e;
    int64_t ids[2 * 37];
    for (int i = 0; i < 74; i++) ids[i] = i * 7 % 256;
    assert_int_equal(autosp_ranks(p), ranks);
    assert_true(autosp_peak_nbytes(p, 0) > 0);
    assert_int_equal(autosp_peak_nbytes(p, ranks), -1);
    assert_int_equal(autosp_num_inputs(p), 2);
    assert_string_equal(autosp_input_name(p, 0), "input_ids");
    assert_null(autosp_input_name(p, 2));
    if (autosp_session_new(p, 1, &s, &e)) fail_msg("%s", e.text);
    assert_int_equal(autosp_set_input(s, "nonsense", ids, &e), AUTOSP_INPUT);
    assert_int_equal(autosp_set_input(s, "input_ids", ids, &e), AUTOSP_OK);
    assert_int_equal(autosp_set_input(s, "labels", ids, &e), AUTOSP_OK);
    for (int i = 0; i < n; i++) {
        if (autosp_step(s, 1e-2, &loss[i], &e)) fail_msg("%s", e.text);
        if (i == 0) assert_int_equal(autosp_get_gradient(s, 1, gradient, &e), AUTOSP_OK);
    }
    float *w = malloc(sizeof *w * (size_t)autosp_parameter_numel(p, 0));
    assert_int_equal(autosp_get_parameter(s, 0, w, &e), AUTOSP_OK);
    assert_true(isfinite(w[0]));
    free(w);
    autosp_session_free(s);
    autosp_program_free(p);
}

static void test_loss_falls_and_ranks_agree(void **state) {
    (void)state;
    double one[6], three[6];
    float g1[64 * 64], g3[64 * 64];
    steps(1, one, 6, g1);
    steps(3, three, 6, g3);
    assert_true(one[5] < one[0] - 0.1);
    double norm = 0, diff = 0;
    for (int i = 0; i < 64 * 64; i++) norm += g1[i] * g1[i], diff += (g1[i] - g3[i]) * (g1[i] - g3[i]);
    assert_true(norm > 0 && sqrt(diff) < 1e-4 * sqrt(norm));
    for (int i = 0; i < 6; i++) assert_true(fabs(one[i] - three[i]) < 1e-4 * one[i]);
}

static void test_errors(void **state) {
    (void)state;
    autosp_options o = autosp_options_default();
    autosp_error e;
    autosp_program *p;
    assert_int_not_equal(autosp_compile("/nowhere.pt2", &o, &p, &e), AUTOSP_OK);
    assert_non_null(strstr(e.text, "/nowhere.pt2"));
    assert_null(p);
    o.ranks = 0;
    assert_int_equal(autosp_compile(LLAMA, &o, &p, &e), AUTOSP_INPUT);
    o.ranks = 1;
    o.attention = "sideways";
    assert_int_equal(autosp_compile(LLAMA, &o, &p, &e), AUTOSP_INPUT);
}

// What cannot be had is refused in words: a device that does not exist, a type, bf16 on the CPU.
static void devices(void **state) {
    static const struct { const char *device, *dtype, *words; } bad[] = {
        {"tpu", NULL, "there are cpu and cuda"}, {"cpu", "fp8", "there are fp32 and bf16"}, {"cpu", "bf16", "needs"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        autosp_options o = autosp_options_default();
        autosp_error e;
        autosp_program *p = NULL;
        o.device = bad[i].device;
        o.dtype = bad[i].dtype;
        assert_int_not_equal(autosp_compile(LLAMA, &o, &p, &e), AUTOSP_OK);
        assert_null(p);
        if (!strstr(e.text, bad[i].words)) fail_msg("%s", e.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(devices), cmocka_unit_test(test_loss_falls_and_ranks_agree),
                                       cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
