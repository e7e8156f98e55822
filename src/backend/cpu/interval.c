#include "backend/cpu/interval.h"
#include <math.h>

// Integers are carried as doubles, exact below 2^53; beyond this bound nothing is claimed about them (overflow included).
#define INT_BOUND 0x1p50

static bool bounded(Interval x) { return x.lo >= -INT_BOUND && x.hi <= INT_BOUND; }

// Bounds on a computed float: the kernel rounds each operation to `real`.
static Interval widen(Interval x, DType real) {
    double eps = real == DT_F32 ? 0x1p-22 : 0x1p-51;
    if (isnan(x.lo) || isnan(x.hi)) return interval_unknown();
    x.lo -= fabs(x.lo) * eps, x.hi += fabs(x.hi) * eps;
    if (isnan(x.lo)) x.lo = -INFINITY;  // inf - inf
    if (isnan(x.hi)) x.hi = INFINITY;
    double largest = real == DT_F32 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
    if (x.lo > largest) x.lo = largest;  // may have been rounded down to it
    if (x.hi < -largest) x.hi = -largest;
    if (x.hi > largest) x.hi = INFINITY;
    if (x.lo < -largest) x.lo = -INFINITY;
    return x;
}

// An integer result outside the bound says nothing; a float result is widened by rounding.
static Interval finish(Interval x, const Instr *in, DType real) {
    if (dtype_is_float(in->dtype)) return x.lo == x.hi && x.lo == 0 ? x : widen(x, real);
    return bounded(x) ? x : interval_unknown();
}

// The hull of the four corners of a monotone-in-each-operand operation.
static Interval corners(double (*f)(double, double), Interval x, Interval y) {
    double c[4] = {f(x.lo, y.lo), f(x.lo, y.hi), f(x.hi, y.lo), f(x.hi, y.hi)};
    Interval r = {c[0], c[0], x.nan || y.nan};
    for (int i = 0; i < 4; i++) {
        if (isnan(c[i])) return interval_unknown();
        interval_add(&r, c[i]);
    }
    return r;
}
static double op_mul(double a, double b) { return a * b; }
static double op_div(double a, double b) { return a / b; }
static double op_floordiv(double a, double b) { return floor(a / b); }

static bool has_zero(Interval y) { return y.lo <= 0 && y.hi >= 0; }
static bool infinite(Interval x) { return isinf(x.lo) || isinf(x.hi); }

// Python's modulo by a known positive number.
static Interval interval_mod(Interval x, Interval y, bool integer) {
    if (y.lo != y.hi || !(y.lo > 0) || x.nan || y.nan || infinite(x) || infinite(y)) return interval_unknown();
    double m = y.lo, first = floor(x.lo / m);
    if (integer && first == floor(x.hi / m)) return (Interval){x.lo - first * m, x.hi - first * m, false};
    return (Interval){0, integer ? m - 1 : m, false};
}

static Interval compare(OpKind op, Interval x, Interval y) {
    bool nan = x.nan || y.nan, lt = x.lo<y.hi, gt = x.hi> y.lo, eq = x.lo <= y.hi && y.lo <= x.hi;
    if (x.lo > x.hi || y.lo > y.hi) lt = gt = eq = false;  // nothing but NaN
    switch (op) {
    case OP_EQ: return interval_bool(nan || lt || gt, eq);
    case OP_NE: return interval_bool(eq, nan || lt || gt);
    case OP_LT: return interval_bool(nan || eq || gt, lt);
    case OP_LE: return interval_bool(nan || gt, lt || eq);
    case OP_GT: return interval_bool(nan || eq || lt, gt);
    default: return interval_bool(nan || lt, gt || eq);
    }
}

// Rising functions keep the order of the bounds.
static Interval rising(double (*f)(double), Interval x) {
    double lo = f(x.lo), hi = f(x.hi);
    if (isnan(lo) || isnan(hi)) return interval_unknown();
    return (Interval){lo, hi, x.nan};
}
static double op_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double op_sign(double x) { return (x > 0) - (x < 0); }

static Interval interval_cast(const Instr *in, Interval x, DType from, DType real) {
    if (in->dtype == DT_BOOL) return interval_bool(has_zero(x), x.nan || x.lo != 0 || x.hi != 0);
    if (from == DT_BOOL) return x;
    if (dtype_is_float(in->dtype)) return fabs(x.lo) <= 0x1p24 && fabs(x.hi) <= 0x1p24 && from == DT_I64 ? x : widen(x, real);
    if (!dtype_is_float(from)) return x;
    if (x.nan || !bounded(x)) return interval_unknown();
    return (Interval){trunc(x.lo), trunc(x.hi), false};
}

static Interval unary(const Instr *in, OpKind op, Interval x, DType from, DType real) {
    switch (op) {
    case OP_NEG: return (Interval){-x.hi, -x.lo, x.nan};
    case OP_ABS: {
        Interval r = {fmin(fabs(x.lo), fabs(x.hi)), fmax(fabs(x.lo), fabs(x.hi)), x.nan};
        if (has_zero(x)) r.lo = 0;
        return r;
    }
    case OP_SIGN: return rising(op_sign, x);
    case OP_FLOOR: return rising(floor, x);
    case OP_NOT: return (Interval){1 - x.hi, 1 - x.lo, false};
    case OP_STOP_GRAD: return x;
    case OP_CAST: return interval_cast(in, x, from, real);
    case OP_EXP: return widen(rising(exp, x), real);
    case OP_EXPM1: return widen(rising(expm1, x), real);
    case OP_LOG: return widen(rising(log, x), real);
    case OP_LOG1P: return widen(rising(log1p, x), real);
    case OP_SQRT: return widen(rising(sqrt, x), real);
    case OP_TANH: return widen(rising(tanh, x), real);
    case OP_ERF: return widen(rising(erf, x), real);
    case OP_SIGMOID: return widen(rising(op_sigmoid, x), real);
    default: return interval_unknown();
    }
}

static Interval binary(const Instr *in, OpKind op, Interval x, Interval y, DType real) {
    Interval r;
    switch (op) {
    case OP_ADD: r = (Interval){x.lo + y.lo, x.hi + y.hi, x.nan || y.nan || infinite(x) || infinite(y)}; break;
    case OP_SUB: r = (Interval){x.lo - y.hi, x.hi - y.lo, x.nan || y.nan || infinite(x) || infinite(y)}; break;
    case OP_MUL: r = corners(op_mul, x, y); break;
    case OP_DIV:
        if (has_zero(y)) return interval_unknown();
        r = corners(op_div, x, y);
        break;
    case OP_FLOORDIV:
        if (has_zero(y)) return interval_unknown();
        r = corners(op_floordiv, x, y);
        if (dtype_is_float(in->dtype)) r.lo -= 1, r.hi += 1;  // the quotient may have been rounded across an integer
        break;
    case OP_MOD: r = interval_mod(x, y, !dtype_is_float(in->dtype)); break;
    case OP_MAX: return (Interval){fmax(x.lo, y.lo), fmax(x.hi, y.hi), x.nan || y.nan};
    case OP_MIN: return (Interval){fmin(x.lo, y.lo), fmin(x.hi, y.hi), x.nan || y.nan};
    default: return interval_unknown();
    }
    return isnan(r.lo) || isnan(r.hi) ? interval_unknown() : finish(r, in, real);
}

Interval interval_of(const Instr *in, const Interval *range, DType operand_type, DType real) {
    OpKind op = (OpKind)(in->code - PROG_OP);
    int arity = program_op_arity(op);
    Interval x = range[in->a], y = arity > 1 ? range[in->b] : interval_unknown();
    Interval r;
    switch (op) {
    case OP_EQ:
    case OP_NE:
    case OP_LT:
    case OP_LE:
    case OP_GT:
    case OP_GE: return compare(op, x, y);
    case OP_AND:
    case OP_OR:
    case OP_XOR:
        if (in->dtype != DT_BOOL) return interval_unknown();
        if (op == OP_AND) return (Interval){fmin(x.lo, y.lo), fmin(x.hi, y.hi), false};
        if (op == OP_OR) return (Interval){fmax(x.lo, y.lo), fmax(x.hi, y.hi), false};
        if (x.lo != x.hi || y.lo != y.hi) return interval_bool(true, true);
        return interval_point(x.lo != y.lo);
    case OP_WHERE:
        if (interval_is_point(x, 1)) return y;
        r = range[in->c];
        if (!interval_is_point(x, 0)) interval_join(&r, y);
        return r;
    default: return arity > 1 ? binary(in, op, x, y, real) : unary(in, op, x, operand_type, real);
    }
}
