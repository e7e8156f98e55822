// Element conversion: half formats against the compiler's own, integers exact and saturating.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "base/containers.h"
#include "ir/convert.h"

static uint64_t rng = 3;
static uint64_t draw(void) { return rng = hash_bytes(rng, "x", 1); }

static void test_half(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {  // every half and back
        uint16_t h = (uint16_t)i, back;
        _Float16 f;
        double x;
        memcpy(&f, &h, 2);
        convert_array(&h, DT_F16, &x, DT_F64, 1);
        assert_true(isnan((double)f) ? isnan(x) : (double)f == x);
        convert_array(&x, DT_F64, &back, DT_F16, 1);
        assert_true(isnan(x) || back == h);
    }
    for (int i = 0; i < 200000; i++) {  // every exponent near the format's range, and ties
        double x = ldexp((double)(draw() % 16384 + (i % 2 ? 0.5 : 0)), (int)(draw() % 44) - 38) * (i % 3 ? 1 : -1);
        uint16_t got, want;
        _Float16 f = (_Float16)x;
        memcpy(&want, &f, 2);
        convert_array(&x, DT_F64, &got, DT_F16, 1);
        if (got != want) fail_msg("%a: %04x, expected %04x", x, got, want);
    }
}

static void test_bf16(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i, back;
        float x;
        convert_array(&h, DT_BF16, &x, DT_F32, 1);
        convert_array(&x, DT_F32, &back, DT_BF16, 1);
        assert_true(isnan(x) ? (back & 0x7fff) > 0x7f80 : back == h);
    }
    float x[] = {1.00390625f, 1.01171875f, 3.4e38f, -1e-45f};  // ties to even both ways, overflow, underflow
    uint16_t want[] = {0x3f80, 0x3f82, 0x7f80, 0x8000}, got[4];
    convert_array(x, DT_F32, got, DT_BF16, 4);
    assert_memory_equal(got, want, sizeof want);
}

static void test_integers(void **state) {
    (void)state;
    int64_t big[] = {INT64_MAX, (INT64_C(1) << 53) + 1, INT64_MIN, -1}, same[4];
    int32_t small[4], want[] = {INT32_MAX, INT32_MAX, INT32_MIN, -1};
    convert_array(big, DT_I64, same, DT_I64, 4);
    assert_memory_equal(big, same, sizeof big);
    convert_array(big, DT_I64, small, DT_I32, 4);
    assert_memory_equal(small, want, sizeof want);
    double x[] = {NAN, 1e30, -1e30, -2.9, 0.5};
    int64_t n[5], wanted[] = {0, INT64_MAX, INT64_MIN, -2, 0};
    uint8_t b[5], truth[] = {1, 1, 1, 1, 1};
    convert_array(x, DT_F64, n, DT_I64, 5);
    assert_memory_equal(n, wanted, sizeof n);
    convert_array(x, DT_F64, b, DT_BOOL, 5);
    assert_memory_equal(b, truth, sizeof b);
}

// Longer than a chunk, unaligned on both sides.
static void test_long(void **state) {
    (void)state;
    enum { N = 1000 };
    char src[4 * N + 1], dst[8 * N + 1];
    for (int i = 0; i < N; i++) memcpy(src + 1 + 4 * i, &(float){(float)i * 0.25f}, 4);
    convert_array(src + 1, DT_F32, dst + 1, DT_F64, N);
    for (int i = 0; i < N; i++) {
        double x;
        memcpy(&x, dst + 1 + 8 * i, 8);
        assert_true(x == i * 0.25);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half), cmocka_unit_test(test_bf16), cmocka_unit_test(test_integers), cmocka_unit_test(test_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
