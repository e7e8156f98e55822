// The generated kernels of fused nodes on the emulated device: random programs of both forms against an evaluation in double, and
// against the reference executor.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include "fused_case.h"

extern const Backend backend_cuda;

static void test_random(void **state) {
    const char *from = getenv("FUSED_FROM"), *count = getenv("FUSED_COUNT");
    int first = from ? atoi(from) : 0, n = count ? atoi(count) : 60, failed = 0;
    int64_t compared = 0;
    for (int i = first; i < first + n; i++) {
        FusedCase c;
        fused_case_random(&c, (uint64_t)i, 6000);
        fused_case_expect(&c);
        Str why = {0};
        if (!fused_case_check(&c, &backend_cuda, &why, &compared)) {
            print_error("%s\n", str_text(&why));
            failed++;
        }
        str_free(&why);
        fused_case_free(&c);
    }
    print_message("%lld elements compared\n", (long long)compared);
    assert_int_equal(failed, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
