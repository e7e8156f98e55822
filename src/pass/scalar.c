// See scalar.h.
#include "pass/scalar.h"

#include <math.h>

static bool eval_compare(OpKind op, double a, double b, double *r) {
    switch (op) {
        case OP_EQ: *r = a == b; return true;
        case OP_NE: *r = a != b; return true;
        case OP_LT: *r = a < b; return true;
        case OP_LE: *r = a <= b; return true;
        case OP_GT: *r = a > b; return true;
        case OP_GE: *r = a >= b; return true;
        case OP_AND: *r = a != 0 && b != 0; return true;
        case OP_OR: *r = a != 0 || b != 0; return true;
        case OP_XOR: *r = (a != 0) != (b != 0); return true;
        default: return false;
    }
}

// Integer quotient and remainder rounded toward minus infinity, in int64 so that they are exact.
static bool eval_int_division(OpKind op, double a, double b, double *r) {
    int64_t x = (int64_t)a, y = (int64_t)b;
    if (y == 0) return false;
    int64_t q = x / y, m = x % y;
    if (m != 0 && (m < 0) != (y < 0)) {
        q--;
        m += y;
    }
    *r = (double)(op == OP_FLOORDIV ? q : m);
    return true;
}

static bool eval_arith(OpKind op, bool integer, double a, double b, double *r) {
    switch (op) {
        case OP_ADD: *r = a + b; return true;
        case OP_SUB: *r = a - b; return true;
        case OP_MUL: *r = a * b; return true;
        case OP_DIV: *r = a / b; return !integer;
        case OP_POW: *r = pow(a, b); return !integer || b >= 0;
        case OP_MAX: *r = isnan(a) || isnan(b) ? NAN : a > b ? a : b; return true;
        case OP_MIN: *r = isnan(a) || isnan(b) ? NAN : a < b ? a : b; return true;
        case OP_FLOORDIV:
        case OP_MOD:
            if (integer) return eval_int_division(op, a, b, r);
            *r = op == OP_FLOORDIV ? floor(a / b) : a - b * floor(a / b);
            return b != 0;
        default: return false;
    }
}

static bool eval_unary(OpKind op, double a, double *r) {
    switch (op) {
        case OP_NEG: *r = -a; return true;
        case OP_ABS: *r = fabs(a); return true;
        case OP_SIGN: *r = (a > 0) - (a < 0); return !isnan(a);
        case OP_EXP: *r = exp(a); return true;
        case OP_EXPM1: *r = expm1(a); return true;
        case OP_LOG: *r = log(a); return true;
        case OP_LOG1P: *r = log1p(a); return true;
        case OP_SQRT: *r = sqrt(a); return true;
        case OP_RSQRT: *r = 1.0 / sqrt(a); return true;
        case OP_SIN: *r = sin(a); return true;
        case OP_COS: *r = cos(a); return true;
        case OP_TANH: *r = tanh(a); return true;
        case OP_FLOOR: *r = floor(a); return true;
        case OP_NOT: *r = a == 0; return true;
        case OP_STOP_GRAD: *r = a; return true;
        default: return false;
    }
}

static bool eval_cast(DType to, double a, double *r) {
    if (to == DT_BOOL) *r = a != 0;
    else if (dtype_is_float(to)) *r = a;
    else if (!(fabs(a) <= SCALAR_EXACT)) return false;
    else *r = trunc(a);
    return true;
}

bool scalar_eval(OpKind op, DType in, DType out, const double *x, double *r) {
    bool ok;
    if (op == OP_CAST) ok = eval_cast(out, x[0], r);
    else if (op == OP_WHERE) ok = true, *r = x[0] != 0 ? x[1] : x[2];
    else ok = eval_unary(op, x[0], r);
    if (!ok && op != OP_CAST)
        ok = (op >= OP_ADD && op <= OP_XOR) &&
             (eval_compare(op, x[0], x[1], r) || eval_arith(op, !dtype_is_float(in), x[0], x[1], r));
    if (!ok) return false;
    if (out == DT_F32) *r = (double)(float)*r;
    if (dtype_is_float(out)) return true;
    return fabs(*r) <= SCALAR_EXACT;
}
