// The loops that a program's instructions are made of: one per op and element type.
#include <stdint.h>
#include "backend/cpu/kernels.h"
#include "backend/cpu/vm.h"
#include "backend/cpu/vmath.h"

static inline float vsqrt_f32(float x) { return sqrtf(x); }
static inline double vsqrt_f64(double x) { return sqrt(x); }
static inline float vfloor_f32(float x) { return floorf(x); }
static inline double vfloor_f64(double x) { return floor(x); }
static inline float vpow_f32(float x, float y) { return powf(x, y); }
static inline double vpow_f64(double x, double y) { return pow(x, y); }

#define REAL_BITS 32
#include "backend/cpu/vm_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/vm_impl.h"

// ---- integers and bools -------------------------------------------------------------------------------------------------
// Arithmetic wraps around, as PyTorch's does.
#define UNARY(name, T, expr)                                                                    \
    static void name(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {    \
        (void)pb, (void)pc;                                                                     \
        T *o = dst;                                                                             \
        const T *x = pa;                                                                        \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) {                                               \
            T a = x[i];                                                                         \
            o[i] = (T)(expr);                                                                   \
        }                                                                                       \
    }
#define BINARY(name, T, TO, expr)                                                               \
    static void name(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {    \
        (void)pc;                                                                               \
        TO *o = dst;                                                                            \
        const T *x = pa, *y = pb;                                                               \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) {                                               \
            T a = x[i], b = y[i];                                                               \
            o[i] = (TO)(expr);                                                                  \
        }                                                                                       \
    }
#define WHERE(name, T)                                                                          \
    static void name(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {    \
        T *o = dst;                                                                             \
        const uint8_t *cond = pa;                                                               \
        const T *x = pb, *y = pc;                                                               \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) o[i] = cond[i] ? x[i] : y[i];                   \
    }
#define COMPARISONS(p, T)                 \
    BINARY(p##_eq, T, uint8_t, a == b)    \
    BINARY(p##_ne, T, uint8_t, a != b)    \
    BINARY(p##_lt, T, uint8_t, a < b)     \
    BINARY(p##_le, T, uint8_t, a <= b)    \
    BINARY(p##_gt, T, uint8_t, a > b)     \
    BINARY(p##_ge, T, uint8_t, a >= b)    \
    BINARY(p##_max, T, T, a > b ? a : b)  \
    BINARY(p##_min, T, T, a < b ? a : b)  \
    BINARY(p##_and, T, T, a & b)          \
    BINARY(p##_or, T, T, a | b)           \
    BINARY(p##_xor, T, T, a ^ b)          \
    WHERE(p##_where, T)                   \
    UNARY(p##_copy, T, a)

// Divisors that are 0 are an error, which vm_run finds; here they only must not trap.
static int64_t int_floordiv(int64_t a, int64_t b) {
    if (b == 0) return 0;
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
static int64_t int_mod(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return 0;
    int64_t m = a % b;
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
static int64_t int_pow(int64_t a, int64_t b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
    uint64_t result = 1, base = (uint64_t)a;
    for (; b > 0; b >>= 1, base *= base)
        if (b & 1) result *= base;
    return (int64_t)result;
}

COMPARISONS(i64, int64_t)
UNARY(i64_neg, int64_t, 0 - (uint64_t)a)
UNARY(i64_abs, int64_t, a < 0 ? 0 - (uint64_t)a : (uint64_t)a)
UNARY(i64_sign, int64_t, (a > 0) - (a < 0))
BINARY(i64_add, int64_t, int64_t, (uint64_t)a + (uint64_t)b)
BINARY(i64_sub, int64_t, int64_t, (uint64_t)a - (uint64_t)b)
BINARY(i64_mul, int64_t, int64_t, (uint64_t)a * (uint64_t)b)
BINARY(i64_floordiv, int64_t, int64_t, int_floordiv(a, b))
BINARY(i64_mod, int64_t, int64_t, int_mod(a, b))
BINARY(i64_pow, int64_t, int64_t, int_pow(a, b))
COMPARISONS(bool, uint8_t)
UNARY(bool_not, uint8_t, a == 0)

static const VmFn i64_table[OP_COUNT] = {
    [OP_NEG] = i64_neg, [OP_ABS] = i64_abs, [OP_SIGN] = i64_sign, [OP_STOP_GRAD] = i64_copy, [OP_ADD] = i64_add,
    [OP_SUB] = i64_sub, [OP_MUL] = i64_mul, [OP_POW] = i64_pow, [OP_MAX] = i64_max, [OP_MIN] = i64_min,
    [OP_FLOORDIV] = i64_floordiv, [OP_MOD] = i64_mod, [OP_EQ] = i64_eq, [OP_NE] = i64_ne, [OP_LT] = i64_lt, [OP_LE] = i64_le,
    [OP_GT] = i64_gt, [OP_GE] = i64_ge, [OP_AND] = i64_and, [OP_OR] = i64_or, [OP_XOR] = i64_xor, [OP_WHERE] = i64_where,
};
static const VmFn bool_table[OP_COUNT] = {
    [OP_NOT] = bool_not, [OP_STOP_GRAD] = bool_copy, [OP_MAX] = bool_max, [OP_MIN] = bool_min, [OP_EQ] = bool_eq,
    [OP_NE] = bool_ne, [OP_LT] = bool_lt, [OP_LE] = bool_le, [OP_GT] = bool_gt, [OP_GE] = bool_ge, [OP_AND] = bool_and,
    [OP_OR] = bool_or, [OP_XOR] = bool_xor, [OP_WHERE] = bool_where,
};

// ---- casts --------------------------------------------------------------------------------------------------------------
#define CAST(name, FROM, TO, expr)                                                              \
    static void name(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {    \
        (void)pb, (void)pc;                                                                     \
        TO *o = dst;                                                                            \
        const FROM *x = pa;                                                                     \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) {                                               \
            FROM a = x[i];                                                                      \
            o[i] = (expr);                                                                      \
        }                                                                                       \
    }
// Outside int64 (and NaN): the smallest integer, which is what x86 conversions give.
#define TO_INT(a) ((a) > -0x1p63 && (a) < 0x1p63 ? (int64_t)(a) : INT64_MIN)
CAST(f32_to_f64, float, double, (double)a)
CAST(f32_to_i64, float, int64_t, TO_INT((double)a))
CAST(f32_to_bool, float, uint8_t, a != 0)
CAST(f64_to_f32, double, float, (float)a)
CAST(f64_to_i64, double, int64_t, TO_INT(a))
CAST(f64_to_bool, double, uint8_t, a != 0)
CAST(i64_to_f32, int64_t, float, (float)a)
CAST(i64_to_f64, int64_t, double, (double)a)
CAST(i64_to_bool, int64_t, uint8_t, a != 0)
CAST(bool_to_f32, uint8_t, float, (float)(a != 0))
CAST(bool_to_f64, uint8_t, double, (double)(a != 0))
CAST(bool_to_i64, uint8_t, int64_t, a != 0)

static const VmFn cast_table[DT_COUNT][DT_COUNT] = {
    [DT_F32] = {[DT_F32] = vm_copy_f32, [DT_F64] = f32_to_f64, [DT_I64] = f32_to_i64, [DT_BOOL] = f32_to_bool},
    [DT_F64] = {[DT_F32] = f64_to_f32, [DT_F64] = vm_copy_f64, [DT_I64] = f64_to_i64, [DT_BOOL] = f64_to_bool},
    [DT_I64] = {[DT_F32] = i64_to_f32, [DT_F64] = i64_to_f64, [DT_I64] = i64_copy, [DT_BOOL] = i64_to_bool},
    [DT_BOOL] = {[DT_F32] = bool_to_f32, [DT_F64] = bool_to_f64, [DT_I64] = bool_to_i64, [DT_BOOL] = bool_copy},
};

VmFn vm_fn(OpKind op, DType in, DType out) {
    if (op == OP_CAST) return cast_table[in][out];
    switch (in) {
    case DT_F32: return vm_table_f32[op];
    case DT_F64: return vm_table_f64[op];
    case DT_I64: return i64_table[op];
    case DT_BOOL: return bool_table[op];
    default: return NULL;
    }
}

bool vm_has_zero(const int64_t *x, int64_t n) {
    int64_t zero = 0;
    for (int64_t i = 0; i < n; i++) zero |= x[i] == 0;
    return zero != 0;
}
