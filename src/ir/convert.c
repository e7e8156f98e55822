#include "ir/convert.h"

#include <math.h>
#include <string.h>

#include "base/parallel.h"

static float bf16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t float_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);  // keep NaN a NaN
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static double half_to_double(uint16_t h) {
    int e = (h >> 10) & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -v : v;
}

static uint16_t double_to_half(double x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return sign | 0x7e00;
    double a = fabs(x);
    if (a == 0) return sign;
    if (a >= 65520) return sign | 0x7c00;  // rounds beyond the largest finite half
    int e;
    frexp(a, &e);  // a in [2^(e-1), 2^e)
    int q = e - 11 < -24 ? -24 : e - 11;  // exponent of the last mantissa bit
    int64_t m = (int64_t)nearbyint(ldexp(a, -q));
    // m may have reached 2048: the carry into the exponent field is the right answer
    return sign | (uint16_t)(q == -24 ? m : ((int64_t)(q + 24) << 10) + m);
}

static int64_t double_to_int(double x, int64_t lo, int64_t hi) {
    if (isnan(x)) return 0;
    if (x <= (double)lo) return lo;
    if (x >= (double)hi) return hi;
    return (int64_t)x;
}

enum { CHUNK = 256 };  // elements converted at a time through a stack buffer

#define LOAD(T, expr)                                     \
    do {                                                  \
        const unsigned char *p = src;                     \
        for (int64_t i = 0; i < n; i++, p += sizeof(T)) { \
            T x;                                          \
            memcpy(&x, p, sizeof x);                      \
            out[i] = expr;                                \
        }                                                 \
    } while (0)
#define STORE(T, expr)                                    \
    do {                                                  \
        unsigned char *p = dst;                           \
        for (int64_t i = 0; i < n; i++, p += sizeof(T)) { \
            T x = expr;                                   \
            memcpy(p, &x, sizeof x);                      \
        }                                                 \
    } while (0)

static void load_double(const void *src, DType t, double *out, int64_t n) {
    switch (t) {
    case DT_F32: LOAD(float, x); break;
    case DT_F64: LOAD(double, x); break;
    case DT_BF16: LOAD(uint16_t, bf16_to_float(x)); break;
    case DT_F16: LOAD(uint16_t, half_to_double(x)); break;
    case DT_I64: LOAD(int64_t, (double)x); break;
    case DT_I32: LOAD(int32_t, x); break;
    case DT_BOOL: LOAD(uint8_t, x != 0); break;
    case DT_COUNT: break;
    }
}

static void store_double(const double *in, void *dst, DType t, int64_t n) {
    switch (t) {
    case DT_F32: STORE(float, (float)in[i]); break;
    case DT_F64: STORE(double, in[i]); break;
    case DT_BF16: STORE(uint16_t, float_to_bf16((float)in[i])); break;
    case DT_F16: STORE(uint16_t, double_to_half(in[i])); break;
    case DT_I64: STORE(int64_t, double_to_int(in[i], INT64_MIN, INT64_MAX)); break;
    case DT_I32: STORE(int32_t, (int32_t)double_to_int(in[i], INT32_MIN, INT32_MAX)); break;
    case DT_BOOL: STORE(uint8_t, in[i] != 0); break;
    case DT_COUNT: break;
    }
}

// Integers to integers, exact where double is not.
static void convert_ints(const void *src, DType from, void *dst, DType to, int64_t n) {
    int64_t buf[CHUNK], *out = buf;
    const int64_t *in = buf;
    if (from == DT_I64) LOAD(int64_t, x);
    else if (from == DT_I32) LOAD(int32_t, x);
    else LOAD(uint8_t, x != 0);
    if (to == DT_I64) STORE(int64_t, in[i]);
    else if (to == DT_I32) STORE(int32_t, (int32_t)(in[i] < INT32_MIN ? INT32_MIN : in[i] > INT32_MAX ? INT32_MAX : in[i]));
    else STORE(uint8_t, in[i] != 0);
}

static void convert_part(const void *src, DType from, void *dst, DType to, int64_t n) {
    bool ints = !dtype_is_float(from) && !dtype_is_float(to);
    double buf[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        const char *s = (const char *)src + i * dtype_nbytes(from);
        char *t = (char *)dst + i * dtype_nbytes(to);
        if (ints) {
            convert_ints(s, from, t, to, m);
        } else {
            load_double(s, from, buf, m);
            store_double(buf, t, to, m);
        }
    }
}

typedef struct Conversion {
    const char *src;
    char *dst;
    DType from, to;
} Conversion;
static void convert_range(void *ctx, int64_t begin, int64_t end) {
    const Conversion *c = ctx;
    convert_part(c->src + begin * dtype_nbytes(c->from), c->from, c->dst + begin * dtype_nbytes(c->to), c->to, end - begin);
}

void convert_array(const void *src, DType from, void *dst, DType to, int64_t n) {
    CHECK((unsigned)from < DT_COUNT && (unsigned)to < DT_COUNT, "dtype %d -> %d", (int)from, (int)to);
    if (n <= 0) return;
    if (from == to && from != DT_BOOL) {
        memcpy(dst, src, (size_t)n * (size_t)dtype_nbytes(from));
        return;
    }
    enum { GRAIN = 1 << 20 };  // below, a thread costs more than it saves
    if (n < 2 * GRAIN) convert_part(src, from, dst, to, n);
    else parallel_for(n, GRAIN, convert_range, &(Conversion){src, dst, from, to});
}
