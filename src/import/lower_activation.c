// Activation functions. Where a function has a corner, the gradient there is PyTorch's.
#include <math.h>
#include "import/lower.h"

static ValueId zero(Lower *l) { return lower_number(l, l->real, 0); }

// The activation's argument is called self, except for a few that say input.
static ValueId input_value(Lower *l) {
    ValueId x = lower_in(l, lower_has(l, "self") ? "self" : "input");
    if (!lower_failed(l) && !dtype_is_float(LDTYPE(l, x))) lower_refuse(l, "an activation of integers");
    return x;
}

static void lower_activation(Lower *l) {
    lower_out(l, 0, lower_unary(l, (OpKind)l->cur->op, lower_real(l, lower_in(l, "self"))));
}

// 0 where x <= 0, so that the gradient at 0 is 0 and NaN stays NaN.
static void lower_relu(Lower *l) {
    ValueId x = lower_in(l, "self");
    if (!lower_failed(l)) lower_out(l, 0, lower_where(l, lower_scalar(l, OP_LE, x, 0), lower_number(l, LDTYPE(l, x), 0), x));
}

static void lower_leaky_relu(Lower *l) {
    ValueId x = input_value(l);
    double slope = lower_float(l, "negative_slope", 0.01);
    lower_out(l, 0, lower_where(l, lower_scalar(l, OP_GT, x, 0), x, lower_scalar(l, OP_MUL, x, slope)));
}

// weight has one entry, or one per channel (dim 1).
static void lower_prelu(Lower *l) {
    ValueId x = input_value(l), w = lower_in(l, "weight");
    Shape s = LSHAPE(l, x), line = {.ndim = s.ndim};
    if (lower_failed(l)) return;
    int64_t n = lower_numel(l, LSHAPE(l, w));
    for (int i = 0; i < s.ndim; i++) line.dim[i] = i == 1 ? n : 1;
    w = build_reshape(&l->b, w, s.ndim > 1 ? line : SHAPE0);
    lower_out(l, 0, lower_where(l, lower_scalar(l, OP_GT, x, 0), x, lower_binary(l, OP_MUL, x, w)));
}

// scale * x above 0, alpha * scale * (exp(x * input_scale) - 1) below; the exponent is kept from overflowing where it is not
// used.
static ValueId elu_value(Lower *l, ValueId x, double alpha, double scale, double input_scale) {
    ValueId pos = lower_scalar(l, OP_GT, x, 0), safe = lower_where(l, pos, zero(l), x);
    ValueId low = lower_unary(l, OP_EXPM1, input_scale == 1 ? safe : lower_scalar(l, OP_MUL, safe, input_scale));
    ValueId high = scale == 1 ? x : lower_scalar(l, OP_MUL, x, scale);
    return lower_where(l, pos, high, alpha * scale == 1 ? low : lower_scalar(l, OP_MUL, low, alpha * scale));
}

enum { ELU, SELU, CELU };
static void lower_elu(Lower *l) {
    ValueId x = input_value(l);
    double alpha = lower_float(l, "alpha", 1);
    if (l->cur->op == SELU)
        lower_out(l, 0, elu_value(l, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1));
    else if (l->cur->op == CELU)
        lower_out(l, 0, elu_value(l, x, alpha, 1, 1 / alpha));
    else
        lower_out(l, 0, elu_value(l, x, alpha, lower_float(l, "scale", 1), lower_float(l, "input_scale", 1)));
}

// Outside or on the bounds the gradient is 0.
static ValueId hardtanh_value(Lower *l, ValueId x, double lo, double hi) {
    ValueId y = lower_where(l, lower_scalar(l, OP_GE, x, hi), lower_number(l, l->real, hi), x);
    return lower_where(l, lower_scalar(l, OP_LE, x, lo), lower_number(l, l->real, lo), y);
}

static void lower_hardtanh(Lower *l) {
    ValueId x = input_value(l);
    bool six = l->cur->op;
    lower_out(l, 0, hardtanh_value(l, x, six ? 0 : lower_float(l, "min_val", -1), six ? 6 : lower_float(l, "max_val", 1)));
}

static void lower_hardsigmoid(Lower *l) {
    ValueId x = hardtanh_value(l, input_value(l), -3, 3);
    lower_out(l, 0, lower_scalar(l, OP_MUL, lower_scalar(l, OP_ADD, x, 3), 1.0 / 6));
}

static void lower_hardswish(Lower *l) {
    ValueId x = input_value(l);
    ValueId mid = lower_scalar(l, OP_MUL, lower_binary(l, OP_MUL, x, lower_scalar(l, OP_ADD, x, 3)), 1.0 / 6);
    ValueId y = lower_where(l, lower_scalar(l, OP_GT, x, 3), x, mid);
    lower_out(l, 0, lower_where(l, lower_scalar(l, OP_LT, x, -3), zero(l), y));
}

static void lower_gelu(Lower *l) {
    ValueId x = input_value(l);
    const char *form = lower_str(l, "approximate", "none");
    bool tanh_form = !strcmp(form, "tanh");
    if (!tanh_form && strcmp(form, "none")) lower_invalid(l, "gelu approximation \"%s\"", form);
    lower_out(l, 0, lower_unary(l, tanh_form ? OP_GELU_TANH : OP_GELU, x));
}

static void lower_softplus_op(Lower *l) {
    ValueId x = input_value(l);
    lower_out(l, 0, lower_softplus(l, x, lower_float(l, "beta", 1), lower_float(l, "threshold", 20)));
}

static void lower_log_sigmoid_op(Lower *l) { lower_out(l, 0, lower_log_sigmoid(l, input_value(l))); }

static void lower_mish(Lower *l) {
    ValueId x = input_value(l);
    lower_out(l, 0, lower_binary(l, OP_MUL, x, lower_unary(l, OP_TANH, lower_softplus(l, x, 1, 20))));
}

static void lower_softsign(Lower *l) {
    ValueId x = input_value(l);
    lower_out(l, 0, lower_binary(l, OP_DIV, x, lower_scalar(l, OP_ADD, lower_unary(l, OP_ABS, x), 1)));
}

static void lower_threshold(Lower *l) {
    ValueId x = lower_in(l, "self");
    double at = lower_float(l, "threshold", 0), value = lower_float(l, "value", 0);
    if (!lower_failed(l)) lower_out(l, 0, lower_where(l, lower_scalar(l, OP_LE, x, at), lower_number(l, LDTYPE(l, x), value), x));
}

// x where |x| > lambda (hard); moved toward 0 by lambda (soft).
static void lower_shrink(Lower *l) {
    ValueId x = input_value(l);
    double lambda = lower_float(l, "lambd", 0.5);
    ValueId out = lower_scalar(l, OP_GT, lower_unary(l, OP_ABS, x), lambda);
    ValueId y = l->cur->op ? lower_binary(l, OP_SUB, x, lower_scalar(l, OP_MUL, lower_unary(l, OP_SIGN, x), lambda)) : x;
    lower_out(l, 0, lower_where(l, out, y, zero(l)));
}

static void lower_tanhshrink(Lower *l) {
    ValueId x = input_value(l);
    lower_out(l, 0, lower_binary(l, OP_SUB, x, lower_unary(l, OP_TANH, x)));
}

static void lower_glu(Lower *l) {
    ValueId x = input_value(l);
    Shape s = LSHAPE(l, x);
    int dim = lower_dim_arg(l, "dim", -1, s.ndim);
    if (!lower_failed(l) && (s.ndim == 0 || s.dim[dim] % 2)) lower_invalid(l, "glu of a dim of odd size");
    if (lower_failed(l)) return;
    int64_t half = s.dim[dim] / 2;
    ValueId gate = lower_unary(l, OP_SIGMOID, build_slice(&l->b, x, dim, half, 1, half));
    lower_out(l, 0, lower_binary(l, OP_MUL, build_slice(&l->b, x, dim, 0, 1, half), gate));
}

// Softmax over one dim, in `dtype` where given.
enum { SOFTMAX, LOG_SOFTMAX };
static void lower_softmax_op(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self"));
    DType t = l->real;
    lower_dtype_arg(l, "dtype", &t);
    lower_ignore(l, "half_to_float");
    if (!lower_failed(l) && !dtype_is_float(t)) lower_invalid(l, "softmax to an integer type");
    int dim = lower_dim_arg(l, "dim", -1, LSHAPE(l, x).ndim);
    lower_out(l, 0, l->cur->op == SOFTMAX ? lower_softmax(l, x, dim) : lower_log_softmax(l, x, dim));
}

static void lower_dropout(Lower *l) {
    const char *arg = lower_has(l, "input") ? "input" : "self";
    int32_t t = lower_handle(l, arg);
    double p = lower_float(l, "p", 0.5);
    if (!lower_bool(l, "train", true) || p == 0) {
        if (l->inplace)
            lower_out(l, 0, lower_in(l, arg));
        else
            lower_out_handle(l, 0, t);
        return;
    }
    if (l->cur->op) lower_refuse(l, "alpha and feature dropout; use plain dropout");
    lower_out(l, 0, lower_dropped(l, lower_in(l, arg), p));
}

// (x * keep / (1 - p), keep)
static void lower_native_dropout(Lower *l) {
    ValueId x = lower_in(l, "input");
    double p = lower_float(l, "p", 0.5);
    bool train = lower_bool(l, "train", true);
    if (lower_failed(l)) return;
    ValueId keep =
        train && p > 0 ? lower_scalar(l, OP_GE, lower_uniform(l, LSHAPE(l, x)), p) : build_full(&l->b, LSHAPE(l, x), DT_BOOL, 1);
    ValueId y = train && p > 0 ? lower_scalar(l, OP_MUL, lower_binary(l, OP_MUL, x, keep), p < 1 ? 1 / (1 - p) : 0) : x;
    lower_out(l, 0, y);
    lower_out(l, 1, keep);
}

const LowerRow lower_rows_activation[] = {
    {"sigmoid", lower_activation, OP_SIGMOID},
    {"special_expit", lower_activation, OP_SIGMOID},
    {"silu", lower_activation, OP_SILU},
    {"relu", lower_relu, 0},
    {"relu6", lower_hardtanh, 1},
    {"leaky_relu", lower_leaky_relu, 0},
    {"prelu", lower_prelu, 0},
    {"_prelu_kernel", lower_prelu, 0},
    {"elu", lower_elu, ELU},
    {"selu", lower_elu, SELU},
    {"celu", lower_elu, CELU},
    {"hardtanh", lower_hardtanh, 0},
    {"hardsigmoid", lower_hardsigmoid, 0},
    {"hardswish", lower_hardswish, 0},
    {"gelu", lower_gelu, 0},
    {"softplus", lower_softplus_op, 0},
    {"log_sigmoid", lower_log_sigmoid_op, 0},
    {"log_sigmoid_forward", lower_log_sigmoid_op, 0},
    {"mish", lower_mish, 0},
    {"softsign", lower_softsign, 0},
    {"threshold", lower_threshold, 0},
    {"hardshrink", lower_shrink, 0},
    {"softshrink", lower_shrink, 1},
    {"tanhshrink", lower_tanhshrink, 0},
    {"glu", lower_glu, 0},
    {"softmax", lower_softmax_op, SOFTMAX},
    {"_softmax", lower_softmax_op, SOFTMAX},
    {"special_softmax", lower_softmax_op, SOFTMAX},
    {"log_softmax", lower_softmax_op, LOG_SOFTMAX},
    {"_log_softmax", lower_softmax_op, LOG_SOFTMAX},
    {"special_log_softmax", lower_softmax_op, LOG_SOFTMAX},
    {"dropout", lower_dropout, 0},
    {"alpha_dropout", lower_dropout, 1},
    {"feature_dropout", lower_dropout, 1},
    {"feature_alpha_dropout", lower_dropout, 1},
    {"native_dropout", lower_native_dropout, 0},
    {NULL, NULL, 0},
};
