// Reference: pointwise operations on scalars, and the programs made of them.
#include <math.h>
#include <stdlib.h>
#include "exec/reference.h"

static double unary(OpKind op, DType in, DType out, double a) {
    switch (op) {
    case OP_NEG: return -a;
    case OP_ABS: return fabs(a);
    case OP_SIGN: return (a > 0) - (a < 0);
    case OP_EXP: return exp(a);
    case OP_EXPM1: return expm1(a);
    case OP_LOG: return log(a);
    case OP_LOG1P: return log1p(a);
    case OP_SQRT: return sqrt(a);
    case OP_RSQRT: return 1.0 / sqrt(a);
    case OP_SIN: return sin(a);
    case OP_COS: return cos(a);
    case OP_TANH: return tanh(a);
    case OP_SIGMOID: return 1.0 / (1.0 + exp(-a));
    case OP_ERF: return erf(a);
    case OP_FLOOR: return floor(a);
    case OP_SILU: return a / (1.0 + exp(-a));
    case OP_GELU: return 0.5 * a * (1.0 + erf(a * M_SQRT1_2));
    case OP_GELU_TANH: return 0.5 * a * (1.0 + tanh(0.5 * M_2_SQRTPI * M_SQRT2 * (a + 0.044715 * a * a * a)));
    case OP_NOT: return in == DT_BOOL ? a == 0 : (double)~(int64_t)a;
    case OP_CAST: return out == DT_BOOL ? a != 0 : dtype_is_float(out) ? a : trunc(a);
    case OP_STOP_GRAD: return a;
    default: CHECK(false, "not a unary op: %s", op_name(op));
    }
}

static double python_mod(double a, double b) {
    double m = fmod(a, b);
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

static double floor_div(double a, double b, bool is_float) {
    if (!is_float) {  // exact in int64, where the quotient of two doubles might round up to the next integer
        int64_t x = (int64_t)a, y = (int64_t)b, q = x / y;
        return (double)(q - (x % y != 0 && (x < 0) != (y < 0)));
    }
    if (b == 0) return a / b;
    double q = (a - python_mod(a, b)) / b, f = floor(q);
    return q - f > 0.5 ? f + 1 : f;
}

static double binary(OpKind op, DType in, double a, double b) {
    bool is_float = dtype_is_float(in);
    switch (op) {
    case OP_ADD: return a + b;
    case OP_SUB: return a - b;
    case OP_MUL: return a * b;
    case OP_DIV: return a / b;
    case OP_POW: return is_float ? pow(a, b) : trunc(pow(a, b));
    case OP_MAX: return isnan(a) || isnan(b) ? NAN : a > b ? a : b;
    case OP_MIN: return isnan(a) || isnan(b) ? NAN : a < b ? a : b;
    case OP_FLOORDIV: return floor_div(a, b, is_float);
    case OP_MOD: return python_mod(a, b);
    case OP_EQ: return a == b;
    case OP_NE: return a != b;
    case OP_LT: return a < b;
    case OP_LE: return a <= b;
    case OP_GT: return a > b;
    case OP_GE: return a >= b;
    case OP_AND: return (double)((int64_t)a & (int64_t)b);
    case OP_OR: return (double)((int64_t)a | (int64_t)b);
    case OP_XOR: return (double)((int64_t)a ^ (int64_t)b);
    default: CHECK(false, "not a binary op: %s", op_name(op));
    }
}

Status ref_scalar(OpKind op, DType in, DType out, double a, double b, double c, double *result, Diag *d) {
    if ((op == OP_FLOORDIV || op == OP_MOD) && !dtype_is_float(in) && b == 0)
        return diag_error(d, ST_NUMERIC, "integer division by zero in %s", op_name(op));
    if (op == OP_WHERE) *result = a != 0 ? b : c;
    else if (program_op_arity(op) == 1) *result = unary(op, in, out, a);
    else *result = binary(op, in, a, b);
    return ST_OK;
}

Status ref_program(const Program *p, RefLeaf leaf, void *ctx, double *reg, Diag *d) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *s = &p->instr[i];
        if (s->code == PROG_CONST) {
            reg[i] = s->imm;
        } else if (s->code < PROG_OP) {
            reg[i] = leaf(ctx, s);
        } else {
            double b = s->b >= 0 ? reg[s->b] : 0, c = s->c >= 0 ? reg[s->c] : 0;
            TRY(ref_scalar((OpKind)(s->code - PROG_OP), p->instr[s->a].dtype, s->dtype, reg[s->a], b, c, &reg[i], d));
        }
    }
    return ST_OK;
}

static Status ref_pointwise(const RefNode *r, Diag *d) {
    const Shape *s = ref_out_shape(r, 0);
    int64_t index[MAX_DIMS] = {0}, numel = shape_numel(s);
    if (numel == 0) return ST_OK;
    int64_t e = 0;
    do {
        double v[3] = {0};
        for (int i = 0; i < r->n->nin; i++) v[i] = r->in[i][ref_broadcast_offset(ref_in_shape(r, i), s, index)];
        TRY(ref_scalar(r->n->op, ref_in_dtype(r, 0), ref_out_dtype(r, 0), v[0], v[1], v[2], &r->out[0][e++], d));
    } while (ref_next(s, index));
    return ST_OK;
}

RefFn ref_pointwise_fn(OpKind op) { return op_is_pointwise(op) ? ref_pointwise : NULL; }
