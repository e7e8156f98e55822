// Element conversion: half formats by their definition, integers exact and saturating.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "base/containers.h"
#include "ir/convert.h"

static uint64_t rng = 3;
static uint64_t draw(void) { return rng = hash_bytes(rng, "x", 1); }

// IEEE 754 binary16 by its definition; the bits after the largest finite one stand for 65536, where rounding ends in infinity.
static double half_value(uint16_t h) {
    int e = h >> 10 & 31, m = h & 1023;
    double x = e == 0 ? ldexp(m, -24) : ldexp(1 + m / 1024.0, e - 15);
    return h & 0x8000 ? -x : x;
}

static uint16_t half_nearest(double x) {  // x >= 0
    uint16_t lo = 0, hi = 0x7c00;
    if (x >= half_value(hi)) return hi;
    while (hi - lo > 1) {
        uint16_t mid = (uint16_t)((lo + hi) / 2);
        if (half_value(mid) <= x) lo = mid;
        else hi = mid;
    }
    double below = x - half_value(lo), above = half_value(hi) - x;
    return below < above || (below == above && lo % 2 == 0) ? lo : hi;
}

static void test_half(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {  // every half and back
        uint16_t h = (uint16_t)i, back;
        double x;
        convert_array(&h, DT_F16, &x, DT_F64, 1);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(x));
            continue;
        }
        assert_true((h & 0x7fff) == 0x7c00 ? isinf(x) && (x < 0) == (h > 0x8000) : x == half_value(h));
        convert_array(&x, DT_F64, &back, DT_F16, 1);
        assert_int_equal(back, h);
    }
    for (int i = 0; i < 200000; i++) {  // every exponent near the format's range, and ties
        double x = ldexp((double)(draw() % 16384) + (i % 2 ? 0.5 : 0), (int)(draw() % 44) - 38);
        uint16_t got;
        convert_array(&x, DT_F64, &got, DT_F16, 1);
        if (got != half_nearest(x)) fail_msg("%a: %04x, expected %04x", x, got, half_nearest(x));
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
