// Gradients of the pointwise ops, as formulas. g: cotangent of the output, x (and y): operands, out: the output where it gives a
// cheaper formula. A result of the broadcast shape is summed down by the driver (pass/grad.c). At kinks they follow PyTorch.
#include "ops/pointwise.h"

#include <math.h>

static ValueId add(Builder *b, ValueId x, ValueId y) { return build_binary(b, OP_ADD, x, y); }
static ValueId sub(Builder *b, ValueId x, ValueId y) { return build_binary(b, OP_SUB, x, y); }
static ValueId mul(Builder *b, ValueId x, ValueId y) { return build_binary(b, OP_MUL, x, y); }
static ValueId quot(Builder *b, ValueId x, ValueId y) { return build_binary(b, OP_DIV, x, y); }
static ValueId neg(Builder *b, ValueId x) { return build_unary(b, OP_NEG, x); }
static ValueId scaled(Builder *b, ValueId x, double v) { return build_binary_scalar(b, OP_MUL, x, v); }
static ValueId plus(Builder *b, ValueId x, double v) { return build_binary_scalar(b, OP_ADD, x, v); }
static ValueId constant_like(Builder *b, ValueId x, double v) { return build_scalar(b, build_dtype(b, x), v); }
static ValueId one_minus(Builder *b, ValueId x) { return sub(b, constant_like(b, x, 1), x); }

// Defines a unary rule: gin[0] = EXPR over g, x, out.
#define UNARY_GRAD(name, EXPR)                                          \
    Status grad_##name(GradCtx *c, Diag *d) {                           \
        (void)d;                                                        \
        Builder *b = c->b;                                              \
        ValueId g = c->gout[0], x = c->n->in[0], out = c->n->out[0];    \
        (void)x, (void)out;                                             \
        if (c->want[0]) c->gin[0] = (EXPR);                             \
        return b->status;                                               \
    }

UNARY_GRAD(neg, neg(b, g))
UNARY_GRAD(abs, mul(b, g, build_unary(b, OP_SIGN, x)))
UNARY_GRAD(exp, mul(b, g, out))
UNARY_GRAD(expm1, mul(b, g, plus(b, out, 1)))
UNARY_GRAD(log, quot(b, g, x))
UNARY_GRAD(log1p, quot(b, g, plus(b, x, 1)))
UNARY_GRAD(sqrt, quot(b, g, scaled(b, out, 2)))
UNARY_GRAD(rsqrt, mul(b, scaled(b, g, -0.5), mul(b, out, mul(b, out, out))))
UNARY_GRAD(sin, mul(b, g, build_unary(b, OP_COS, x)))
UNARY_GRAD(cos, neg(b, mul(b, g, build_unary(b, OP_SIN, x))))
UNARY_GRAD(tanh, mul(b, g, one_minus(b, mul(b, out, out))))
UNARY_GRAD(sigmoid, mul(b, g, mul(b, out, one_minus(b, out))))
UNARY_GRAD(erf, mul(b, g, scaled(b, build_unary(b, OP_EXP, neg(b, mul(b, x, x))), M_2_SQRTPI)))
UNARY_GRAD(cast, build_cast(b, g, build_dtype(b, x)))

// silu = x*s, s = sigmoid(x): s * (1 + x*(1-s))
static ValueId silu_slope(Builder *b, ValueId x) {
    ValueId s = build_unary(b, OP_SIGMOID, x);
    return mul(b, s, plus(b, mul(b, x, one_minus(b, s)), 1));
}
UNARY_GRAD(silu, mul(b, g, silu_slope(b, x)))

// gelu = x*cdf(x): cdf(x) + x*pdf(x) of the standard normal distribution
static ValueId gelu_slope(Builder *b, ValueId x) {
    ValueId cdf = scaled(b, plus(b, build_unary(b, OP_ERF, scaled(b, x, M_SQRT1_2)), 1), 0.5);
    ValueId pdf = scaled(b, build_unary(b, OP_EXP, scaled(b, mul(b, x, x), -0.5)), M_2_SQRTPI * M_SQRT1_2 * 0.5);
    return add(b, cdf, mul(b, x, pdf));
}
UNARY_GRAD(gelu, mul(b, g, gelu_slope(b, x)))

// gelu_tanh = x/2 * (1 + t), t = tanh(u), u = k*(x + 0.044715 x^3), k = sqrt(2/pi):
// (1 + t)/2 + x/2 * (1 - t^2) * k*(1 + 3*0.044715 x^2)
static ValueId gelu_tanh_slope(Builder *b, ValueId x) {
    const double k = M_2_SQRTPI * M_SQRT1_2, cubic = 0.044715;
    ValueId xx = mul(b, x, x);
    ValueId t = build_unary(b, OP_TANH, mul(b, scaled(b, x, k), plus(b, scaled(b, xx, cubic), 1)));
    ValueId du = scaled(b, plus(b, scaled(b, xx, 3 * cubic), 1), k);
    ValueId left = scaled(b, plus(b, t, 1), 0.5);
    return add(b, left, mul(b, mul(b, scaled(b, x, 0.5), one_minus(b, mul(b, t, t))), du));
}
UNARY_GRAD(gelu_tanh, mul(b, g, gelu_tanh_slope(b, x)))

// ---- two operands ------------------------------------------------------------------------------------------------------
Status grad_add(GradCtx *c, Diag *d) {
    (void)d;
    for (int i = 0; i < 2; i++)
        if (c->want[i]) c->gin[i] = c->gout[0];
    return c->b->status;
}

Status grad_sub(GradCtx *c, Diag *d) {
    (void)d;
    if (c->want[0]) c->gin[0] = c->gout[0];
    if (c->want[1]) c->gin[1] = neg(c->b, c->gout[0]);
    return c->b->status;
}

Status grad_mul(GradCtx *c, Diag *d) {
    (void)d;
    for (int i = 0; i < 2; i++)
        if (c->want[i]) c->gin[i] = mul(c->b, c->gout[0], c->n->in[1 - i]);
    return c->b->status;
}

Status grad_div(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    ValueId by = quot(b, c->gout[0], c->n->in[1]);  // g/y
    if (c->want[0]) c->gin[0] = by;
    if (c->want[1]) c->gin[1] = neg(b, mul(b, by, c->n->out[0]));  // -g/y * x/y
    return b->status;
}

// The value of a scalar constant seen through casts and changes of shape.
static bool constant_value(const Graph *g, ValueId v, double *out) {
    const Node *n = graph_def(g, v);
    while (n->op == OP_RESHAPE || n->op == OP_BROADCAST || n->op == OP_CAST) n = graph_def(g, n->in[0]);
    if (n->op != OP_FULL) return false;
    *out = node_float(n, ATTR_VALUE);
    return true;
}

// x^e for a constant e, by the cheapest op that also takes negative x where the power does.
static ValueId power(Builder *b, ValueId x, double e) {
    if (e == 1) return x;
    if (e == 2) return mul(b, x, x);
    if (e == 0.5) return build_unary(b, OP_SQRT, x);
    if (e == -0.5) return build_unary(b, OP_RSQRT, x);
    return build_binary_scalar(b, OP_POW, x, e);
}

Status grad_pow(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    ValueId g = c->gout[0], x = c->n->in[0], y = c->n->in[1], out = c->n->out[0];
    double e;
    ValueId zero = constant_like(b, g, 0);
    if (c->want[0] && b->status == ST_OK && constant_value(b->g, y, &e)) {
        if (e == 1) c->gin[0] = g;
        else if (e != 0) c->gin[0] = mul(b, scaled(b, g, e), power(b, x, e - 1));
    } else if (c->want[0]) {
        ValueId slope = mul(b, y, build_binary(b, OP_POW, x, build_binary_scalar(b, OP_SUB, y, 1)));
        c->gin[0] = build_where(b, build_binary(b, OP_EQ, y, zero), zero, mul(b, g, slope));
    }
    if (c->want[1]) {  // out*log(x); 0 where x = 0 and y >= 0
        ValueId flat = build_binary(b, OP_AND, build_binary(b, OP_EQ, x, zero), build_binary(b, OP_GE, y, zero));
        c->gin[1] = build_where(b, flat, zero, mul(b, g, mul(b, out, build_unary(b, OP_LOG, x))));
    }
    return b->status;
}

// An operand that `loses` (x < y for max) gets nothing, a tie is shared in halves.
static Status grad_select(GradCtx *c, OpKind loses) {
    Builder *b = c->b;
    ValueId g = c->gout[0], zero = constant_like(b, g, 0);
    ValueId tie = build_binary(b, OP_EQ, c->n->in[0], c->n->in[1]);
    ValueId shared = build_where(b, tie, scaled(b, g, 0.5), g);
    for (int i = 0; i < 2; i++)
        if (c->want[i]) c->gin[i] = build_where(b, build_binary(b, loses, c->n->in[i], c->n->in[1 - i]), zero, shared);
    return b->status;
}

Status grad_max(GradCtx *c, Diag *d) {
    (void)d;
    return grad_select(c, OP_LT);
}

Status grad_min(GradCtx *c, Diag *d) {
    (void)d;
    return grad_select(c, OP_GT);
}

// mod(x, y) = x - y*floor(x/y)
Status grad_mod(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    if (c->want[0]) c->gin[0] = c->gout[0];
    if (c->want[1]) c->gin[1] = neg(b, mul(b, c->gout[0], build_binary(b, OP_FLOORDIV, c->n->in[0], c->n->in[1])));
    return b->status;
}

Status grad_where(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    ValueId g = c->gout[0], cond = c->n->in[0], zero = constant_like(b, g, 0);
    if (c->want[1]) c->gin[1] = build_where(b, cond, g, zero);
    if (c->want[2]) c->gin[2] = build_where(b, cond, zero, g);
    return b->status;
}
