// What attention does to one row of a block of scores between two matrix products. float32 in vectors, float64 in plain loops.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

// ---- float32 ----------------------------------------------------------------------------------------------------------------
#ifdef __AVX__
enum { VN = 8 };
#else
enum { VN = 4 };
#endif
typedef float Vf __attribute__((vector_size(VN * 4)));
typedef int32_t Vi __attribute__((vector_size(VN * 4)));

#ifdef __AVX__
#define V_MAX(a, b) ((Vf)_mm256_max_ps((__m256)(a), (__m256)(b)))  // b where either is NaN
#else
#define V_MAX(a, b) v_select((a) > (b), a, b)
#endif
static inline __attribute__((always_inline)) Vf v_select(Vi mask, Vf a, Vf b) { return (Vf)((mask & (Vi)a) | (~mask & (Vi)b)); }
static inline __attribute__((always_inline)) Vf v_load(const float *p) {
    Vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline __attribute__((always_inline)) void v_store(float *p, Vf v) { memcpy(p, &v, sizeof v); }
static inline __attribute__((always_inline)) Vf v_set(float x) { return x - (Vf){0}; }  // x - 0 is x, -0 too
// The last n < VN elements, the other lanes `rest`.
static inline __attribute__((always_inline)) Vf v_load_part(const float *p, int64_t n, float rest) {
    float t[VN];
    for (int i = 0; i < VN; i++) t[i] = i < n ? p[i] : rest;
    return v_load(t);
}
static inline __attribute__((always_inline)) void v_store_part(float *p, int64_t n, Vf v) {
    memcpy(p, &v, (size_t)n * sizeof *p);
}

static inline float v_sum(Vf v) {
    float s = 0;
    for (int i = 0; i < VN; i++) s += v[i];
    return s;
}

// 2^x for x <= 0 (and a little above); exactly 0 below -126, NaN stays. Polynomial of Cephes exp2f on [-1/2, 1/2].
static inline __attribute__((always_inline)) Vf v_exp2(Vf x) {
    const Vf magic = v_set(12583039.0f);  // 1.5 * 2^23 + 127: adding it leaves round(x) + 127, an exponent, in the low bits
    const Vf low = v_set(-126.0f);
    Vf y = V_MAX(low, x), t = y + magic, f = y - (t - magic);
    Vf p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    Vf r = p * (Vf)((Vi)t << 23);
    return (Vf)((Vi)r & ~(Vi)(x < low));
}

static inline float row_max_f32(const float *s, int64_t n) {
    Vf m0 = v_set(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
    int64_t i = 0;
    for (; i + 4 * VN <= n; i += 4 * VN) {
        Vf a = v_load(s + i), b = v_load(s + i + VN), c = v_load(s + i + 2 * VN), d = v_load(s + i + 3 * VN);
        m0 = V_MAX(a, m0), m1 = V_MAX(b, m1), m2 = V_MAX(c, m2), m3 = V_MAX(d, m3);
    }
    for (; i < n; i += VN) {
        Vf a = n - i >= VN ? v_load(s + i) : v_load_part(s + i, n - i, -INFINITY);
        m0 = V_MAX(a, m0);
    }
    m0 = V_MAX(m0, m1), m2 = V_MAX(m2, m3), m0 = V_MAX(m0, m2);
    float m = m0[0];
    for (int j = 1; j < VN; j++) m = m0[j] > m ? m0[j] : m;
    return m;
}

// s[i] = 2^((s[i] - m) * c); returns the sum.
static inline float row_exp_f32(float *s, int64_t n, float m, float c) {
    Vf mv = v_set(m), cv = v_set(c), sum0 = v_set(0), sum1 = sum0;
    int64_t i = 0;
    for (; i + 2 * VN <= n; i += 2 * VN) {
        Vf a = v_exp2((v_load(s + i) - mv) * cv), b = v_exp2((v_load(s + i + VN) - mv) * cv);
        v_store(s + i, a), v_store(s + i + VN, b);
        sum0 += a, sum1 += b;
    }
    for (; i < n; i += VN) {
        if (n - i >= VN) {
            Vf a = v_exp2((v_load(s + i) - mv) * cv);
            v_store(s + i, a);
            sum0 += a;
        } else {
            Vf a = v_exp2((v_load_part(s + i, n - i, -INFINITY) - mv) * cv);
            v_store_part(s + i, n - i, a);
            for (int64_t j = 0; j < n - i; j++) sum1[0] += a[j];
        }
    }
    return v_sum(sum0 + sum1);
}

// p = 2^((s[i] - m) * c) into s, p * (dp[i] - delta) * scale into dp.
static inline void row_grad_f32(float *s, float *dp, int64_t n, float m, float c, float delta, float scale) {
    Vf mv = v_set(m), cv = v_set(c), dv = v_set(delta), sv = v_set(scale);
    int64_t i = 0;
    for (; i + VN <= n; i += VN) {
        Vf p = v_exp2((v_load(s + i) - mv) * cv);
        v_store(dp + i, p * ((v_load(dp + i) - dv) * sv));
        v_store(s + i, p);
    }
    if (i < n) {
        Vf p = v_exp2((v_load_part(s + i, n - i, -INFINITY) - mv) * cv);
        v_store_part(dp + i, n - i, p * ((v_load_part(dp + i, n - i, 0) - dv) * sv));
        v_store_part(s + i, n - i, p);
    }
}

static inline float row_dot_f32(const float *a, const float *b, int64_t n) {
    Vf sum = v_set(0);
    int64_t i = 0;
    for (; i + VN <= n; i += VN) sum += v_load(a + i) * v_load(b + i);
    float r = v_sum(sum);
    for (; i < n; i++) r += a[i] * b[i];
    return r;
}

// ---- float64 (tests) ----------------------------------------------------------------------------------------------------------
static inline double row_max_f64(const double *s, int64_t n) {
    double m = -INFINITY;
    for (int64_t i = 0; i < n; i++) m = s[i] > m ? s[i] : m;
    return m;
}

static inline double row_exp_f64(double *s, int64_t n, double m, double c) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s[i] = exp2((s[i] - m) * c);
    return sum;
}

static inline void row_grad_f64(double *s, double *dp, int64_t n, double m, double c, double delta, double scale) {
    for (int64_t i = 0; i < n; i++) {
        s[i] = exp2((s[i] - m) * c);
        dp[i] = s[i] * ((dp[i] - delta) * scale);
    }
}

static inline double row_dot_f64(const double *a, const double *b, int64_t n) {
    double r = 0;
    for (int64_t i = 0; i < n; i++) r += a[i] * b[i];
    return r;
}
