// The loops of one float type (see real.h), in the order of ops.def.
#include "backend/cpu/real.h"

#define UNARY(name, expr)                                                                            \
    static void FN(vm_##name)(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) { \
        (void)pb, (void)pc;                                                                          \
        REAL *o = dst;                                                                               \
        const REAL *x = pa;                                                                          \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) {                                                    \
            REAL a = x[i];                                                                           \
            o[i] = (expr);                                                                           \
        }                                                                                            \
    }
#define BINARY_TO(name, TYPE, expr)                                                                  \
    static void FN(vm_##name)(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) { \
        (void)pc;                                                                                    \
        TYPE *o = dst;                                                                               \
        const REAL *x = pa, *y = pb;                                                                 \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) {                                                    \
            REAL a = x[i], b = y[i];                                                                 \
            o[i] = (TYPE)(expr);                                                                     \
        }                                                                                            \
    }
#define BINARY(name, expr) BINARY_TO(name, REAL, expr)
#define COMPARE(name, expr) BINARY_TO(name, uint8_t, expr)

UNARY(neg, -a)
UNARY(abs, a < 0 ? -a : a == 0 ? 0 : a)
UNARY(sign, (REAL)((a > 0) - (a < 0)))
UNARY(exp, FN(vexp)(a))
UNARY(expm1, FN(vexpm1)(a))
UNARY(log, FN(vlog)(a))
UNARY(log1p, FN(vlog1p)(a))
UNARY(sqrt, FN(vsqrt)(a))
UNARY(rsqrt, (REAL)1 / FN(vsqrt)(a))
UNARY(tanh, FN(vtanh)(a))
UNARY(sigmoid, FN(vsigmoid)(a))
UNARY(erf, FN(verf)(a))
UNARY(floor, FN(vfloor)(a))
UNARY(silu, a / ((REAL)1 + FN(vexp)(-a)))
UNARY(gelu, (REAL)0.5 * a * ((REAL)1 + FN(verf)(a * (REAL)M_SQRT1_2)))
UNARY(gelu_tanh, (REAL)0.5 * a * ((REAL)1 + FN(vtanh)((REAL)0.79788456080286535588 * (a + (REAL)0.044715 * a * a * a))))
BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(max, a != a || a > b ? a : b)
BINARY(min, a != a || a < b ? a : b)
COMPARE(eq, a == b)
COMPARE(ne, a != b)
COMPARE(lt, a < b)
COMPARE(le, a <= b)
COMPARE(gt, a > b)
COMPARE(ge, a >= b)

// Large arguments, NaN and infinities are rare and go to the C library, element by element.
#define TRIG(name)                                                                                   \
    static void FN(vm_##name)(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) { \
        (void)pb, (void)pc;                                                                          \
        REAL *o = dst;                                                                               \
        const REAL *x = pa;                                                                          \
        int32_t beyond = 0;                                                                          \
        KERNEL_LOOP for (int64_t i = 0; i < n; i++) beyond |= !(x[i] <= VTRIG_MAX && x[i] >= -VTRIG_MAX); \
        if (!beyond) {                                                                               \
            KERNEL_LOOP for (int64_t i = 0; i < n; i++) o[i] = FN(v##name)(x[i]);                        \
        } else {                                                                                     \
            for (int64_t i = 0; i < n; i++) o[i] = (REAL)name(x[i]);                                 \
        }                                                                                            \
    }
TRIG(sin)
TRIG(cos)

static REAL FN(python_mod)(REAL a, REAL b) {
    REAL m = (REAL)fmod(a, b);
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
static REAL FN(floor_div)(REAL a, REAL b) {
    if (b == 0) return a / b;
    REAL q = (a - FN(python_mod)(a, b)) / b, f = FN(vfloor)(q);
    return q - f > (REAL)0.5 ? f + 1 : f;
}
BINARY(floordiv, FN(floor_div)(a, b))
BINARY(mod, FN(python_mod)(a, b))

UNARY(square, a * a)
UNARY(cube, a * a * a)
UNARY(reciprocal, (REAL)1 / a)
UNARY(copy, a)

// Exponents are mostly one number for the whole block, and mostly a small one.
static void FN(vm_pow)(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {
    REAL *o = dst;
    const REAL *x = pa, *y = pb;
    int32_t differ = 0;
    KERNEL_LOOP for (int64_t i = 0; i < n; i++) differ |= y[i] != y[0];
    REAL e = differ ? 0 : y[0];
    if (e == 2) FN(vm_square)(dst, pa, pb, pc, n);
    else if (e == 3) FN(vm_cube)(dst, pa, pb, pc, n);
    else if (e == 1) FN(vm_copy)(dst, pa, pb, pc, n);
    else if (e == -1) FN(vm_reciprocal)(dst, pa, pb, pc, n);
    else
        for (int64_t i = 0; i < n; i++) o[i] = FN(vpow)(x[i], y[i]);
}

static void FN(vm_where)(void *dst, const void *pa, const void *pb, const void *pc, int64_t n) {
    REAL *o = dst;
    const uint8_t *cond = pa;
    const REAL *x = pb, *y = pc;
    KERNEL_LOOP for (int64_t i = 0; i < n; i++) o[i] = cond[i] ? x[i] : y[i];
}

static const VmFn FN(vm_table)[OP_COUNT] = {
    [OP_NEG] = FN(vm_neg), [OP_ABS] = FN(vm_abs), [OP_SIGN] = FN(vm_sign), [OP_EXP] = FN(vm_exp), [OP_EXPM1] = FN(vm_expm1),
    [OP_LOG] = FN(vm_log), [OP_LOG1P] = FN(vm_log1p), [OP_SQRT] = FN(vm_sqrt), [OP_RSQRT] = FN(vm_rsqrt), [OP_SIN] = FN(vm_sin),
    [OP_COS] = FN(vm_cos), [OP_TANH] = FN(vm_tanh), [OP_SIGMOID] = FN(vm_sigmoid), [OP_ERF] = FN(vm_erf),
    [OP_FLOOR] = FN(vm_floor), [OP_SILU] = FN(vm_silu), [OP_GELU] = FN(vm_gelu), [OP_GELU_TANH] = FN(vm_gelu_tanh),
    [OP_STOP_GRAD] = FN(vm_copy), [OP_ADD] = FN(vm_add), [OP_SUB] = FN(vm_sub), [OP_MUL] = FN(vm_mul), [OP_DIV] = FN(vm_div),
    [OP_POW] = FN(vm_pow), [OP_MAX] = FN(vm_max), [OP_MIN] = FN(vm_min), [OP_FLOORDIV] = FN(vm_floordiv), [OP_MOD] = FN(vm_mod),
    [OP_EQ] = FN(vm_eq), [OP_NE] = FN(vm_ne), [OP_LT] = FN(vm_lt), [OP_LE] = FN(vm_le), [OP_GT] = FN(vm_gt), [OP_GE] = FN(vm_ge),
    [OP_WHERE] = FN(vm_where),
};
#undef UNARY
#undef BINARY_TO
#undef BINARY
#undef COMPARE
#undef TRIG
