// The kernels of the CUDA backend that are no contractions, emulated, against the reference executor: every sample of the op
// table in every element type and under every sharding row. `test_cuda_ops NAME`: only ops whose name contains NAME.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "cuda_ops_run.h"
#include "op_harness.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static void device_gap(void *p, size_t nbytes, bool forbid) {
    if (forbid) ASAN_POISON_MEMORY_REGION(p, nbytes);
    else ASAN_UNPOISON_MEMORY_REGION(p, nbytes);
}
#endif

static const char *only;

static void test_samples(void **state) {
#if defined(__SANITIZE_ADDRESS__)
    op_device_gap = device_gap;
#endif
    assert_int_equal(cuda_ops_run(only, stderr), 0);
}

int main(int argc, char **argv) {
    only = argc > 1 ? argv[1] : NULL;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_samples)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
