// Elementary functions that compilers turn into vector code: straight-line, no calls, no table. The float32 ones are accurate to
// about 2 ulp (measured in test/test_kernels_a.c) and follow the C library at infinities, NaN, zeros and subnormals. float64,
// which only tests use, is the C library. Coefficients are least-maximum fits made for these intervals.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float vbits_to_float(uint32_t i) {
    float f;
    memcpy(&f, &i, sizeof f);
    return f;
}
static inline uint32_t vbits_of_float(float f) {
    uint32_t i;
    memcpy(&i, &f, sizeof i);
    return i;
}

#define VLOG2E 1.44269504f
#define VLN2_HI 0.693359375f     // ln 2 in two parts: multiples of the first up to 2^10 are exact
#define VLN2_LO -2.12194440e-4f
#define VROUND 12582912.0f       // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits

static inline float vexp_f32(float x) {
    x = x > 89.0f ? 89.0f : x;      // NaN passes both
    x = x < -104.0f ? -104.0f : x;
    float z = x * VLOG2E + VROUND, n = z - VROUND;
    float r = (x - n * VLN2_HI) - n * VLN2_LO;
    float p = (((0.00139517174f * r + 0.00836959854f) * r + 0.0416661873f) * r + 0.166665122f) * r + 0.5f;
    float e = (p * r * r + r) + 1.0f;
    // 2^n in two steps, because neither 2^128 nor the subnormal powers are floats that bits can be made for.
    int32_t i = (int32_t)(vbits_of_float(z) - vbits_of_float(VROUND)), half = i >> 1;
    return e * vbits_to_float((uint32_t)(half + 127) << 23) * vbits_to_float(((uint32_t)i - (uint32_t)half + 127u) << 23);
}

static inline float vexpm1_f32(float x) {
    float p = ((((0.000199928661f * x + 0.00139974582f) * x + 0.008333073f) * x + 0.0416653156f) * x + 0.166666687f) * x + 0.5f;
    float small = p * x * x + x, large = vexp_f32(x) - 1.0f;
    return fabsf(x) < 0.5f ? small : large;
}

static inline float vlog_f32(float x) {
    float y = x < FLT_MIN ? x * 0x1p23f : x, e0 = x < FLT_MIN ? -23.0f : 0.0f;
    // y = m * 2^e with m in [sqrt(1/2), sqrt(2))
    uint32_t i = vbits_of_float(y) - 0x3F3504F3u;
    float e = (float)((int32_t)i >> 23) + e0, f = vbits_to_float((i & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = 0.0674659982f * f + -0.116756409f;
    p = (((p * f + 0.118881747f) * f + -0.124055915f) * f + 0.142195508f) * f + -0.166679963f;
    p = ((p * f + 0.200021192f) * f + -0.250000089f) * f + 0.333333135f;
    float s = f * f, r = (p * f * s + e * VLN2_LO) - 0.5f * s + f + e * VLN2_HI;
    r = x == 0.0f ? -INFINITY : r;
    r = x < 0.0f ? NAN : r;
    return x < INFINITY ? r : x;  // +inf and NaN
}

static inline float vlog1p_f32(float x) {
    float u = 1.0f + x, lost = x - (u - 1.0f);  // what rounding took from u, put back to first order
    float r = vlog_f32(u) + lost / u;
    r = u == 0.0f ? -INFINITY : r;
    return u == INFINITY ? u : r;
}

static inline float vsigmoid_f32(float x) { return 1.0f / (1.0f + vexp_f32(-x)); }

static inline float vtanh_f32(float x) {
    float t = fabsf(x), s = x * x;
    float p = (((-0.00571703631f * s + 0.0206505787f) * s + -0.0537434965f) * s + 0.133314908f) * s + -0.333332837f;
    float small = p * s * x + x, large = copysignf(1.0f - 2.0f / (vexp_f32(2.0f * t) + 1.0f), x);
    return t < 0.625f ? small : large;
}

static inline float verf_f32(float x) {
    float t = fabsf(x), s = x * x;
    float p = ((8.21542344e-05f * s + -0.00081059651f) * s + 0.00519779697f) * s + -0.0268581044f;
    p = ((p * s + 0.112836726f) * s + -0.376126319f) * s + 0.128379166f;
    float small = p * x + x;
    t = t > 4.1f ? 4.1f : t;  // erf(4.1) is 1 in float32
    float q = (((5.15088595e-06f * t + -4.82022915e-05f) * t + -3.60644772e-05f) * t + 0.00289230002f) * t + -0.0226120092f;
    q = ((q * t + 0.105202913f) * t + 0.635656536f) * t + 1.12854493f;
    float large = copysignf(1.0f - vexp_f32(-q * t), x);
    return fabsf(x) < 0.95f ? small : large;
}

// sin and cos by x = n*pi/2 + r, reduced in float64. Only for |x| <= VTRIG_MAX (beyond it n*VPIO2_HI is not exact): callers hand
// other arguments, NaN and infinities to the C library.
#define VTRIG_MAX 1.6e6f
#define VPIO2_HI 1.57079632673412561417e+00  // first 33 bits of pi/2
#define VPIO2_LO 6.07710050650619224932e-11

static inline float vtrig_f32(float x, int32_t quadrant) {
    double z = (double)x, n = (z * M_2_PI + 0x1.8p52) - 0x1.8p52;
    float r = (float)((z - n * VPIO2_HI) - n * VPIO2_LO), s = r * r;
    int32_t q = (int32_t)n + quadrant;
    float sn = (((2.71793988e-06f * s + -0.000198392954f) * s + 0.00833332911f) * s + -0.166666672f) * s * r + r;
    float cs = (((-2.72067865e-07f * s + 2.47994794e-05f) * s + -0.00138888834f) * s + 0.0416666679f) * s * s + (1.0f - 0.5f * s);
    float v = q & 1 ? cs : sn;
    return q & 2 ? -v : v;
}
static inline float vsin_f32(float x) { return vtrig_f32(x, 0); }
static inline float vcos_f32(float x) { return vtrig_f32(x, 1); }

static inline double vexp_f64(double x) { return exp(x); }
static inline double vexpm1_f64(double x) { return expm1(x); }
static inline double vlog_f64(double x) { return log(x); }
static inline double vlog1p_f64(double x) { return log1p(x); }
static inline double vsigmoid_f64(double x) { return 1.0 / (1.0 + exp(-x)); }
static inline double vtanh_f64(double x) { return tanh(x); }
static inline double verf_f64(double x) { return erf(x); }
static inline double vsin_f64(double x) { return sin(x); }
static inline double vcos_f64(double x) { return cos(x); }
