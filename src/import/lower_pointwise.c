// Elementwise arithmetic, comparison and logic. Result types follow PyTorch: bool < integer < floating.
#include <math.h>
#include "import/lower.h"

// ---- one operand ----------------------------------------------------------------------------------------------------------

// Functions into the reals: integers are converted first.
static void lower_float_unary(Lower *l) {
    lower_out(l, 0, lower_unary(l, (OpKind)l->cur->op, lower_real(l, lower_in(l, "self"))));
}

// abs, neg, sign: integers stay integers.
static void lower_plain_unary(Lower *l) {
    ValueId x = lower_in(l, "self");
    if (LDTYPE(l, x) == DT_BOOL) lower_refuse(l, "it has no meaning for a bool tensor");
    lower_out(l, 0, lower_unary(l, (OpKind)l->cur->op, x));
}

static ValueId ceil_value(Lower *l, ValueId x) {
    return lower_unary(l, OP_NEG, lower_unary(l, OP_FLOOR, lower_unary(l, OP_NEG, x)));
}

static ValueId trunc_value(Lower *l, ValueId x) {
    return lower_where(l, lower_scalar(l, OP_LT, x, 0), ceil_value(l, x), lower_unary(l, OP_FLOOR, x));
}

// To the nearest integer, halves to the even one.
static ValueId round_value(Lower *l, ValueId x) {
    ValueId down = lower_unary(l, OP_FLOOR, x), rest = lower_binary(l, OP_SUB, x, down), up = lower_scalar(l, OP_ADD, down, 1);
    ValueId even = lower_scalar(l, OP_EQ, lower_scalar(l, OP_MOD, down, 2), 0);
    ValueId half = lower_where(l, even, down, up);
    return lower_where(l, lower_scalar(l, OP_LT, rest, 0.5), down, lower_where(l, lower_scalar(l, OP_GT, rest, 0.5), up, half));
}

enum { ROUND_FLOOR, ROUND_CEIL, ROUND_TRUNC, ROUND_NEAREST, ROUND_FRAC };
static void lower_rounding(Lower *l) {
    ValueId x = lower_in(l, "self");
    if (lower_int(l, "decimals", 0) != 0) lower_refuse(l, "rounding to decimals");
    if (lower_failed(l)) return;
    if (!dtype_is_float(LDTYPE(l, x))) {
        lower_out(l, 0, x);
        return;
    }
    switch (l->cur->op) {
        case ROUND_FLOOR: lower_out(l, 0, lower_unary(l, OP_FLOOR, x)); break;
        case ROUND_CEIL: lower_out(l, 0, ceil_value(l, x)); break;
        case ROUND_TRUNC: lower_out(l, 0, trunc_value(l, x)); break;
        case ROUND_NEAREST: lower_out(l, 0, round_value(l, x)); break;
        default: lower_out(l, 0, lower_binary(l, OP_SUB, x, trunc_value(l, x))); break;
    }
}

enum { FN_EXP2, FN_LOG2, FN_LOG10, FN_RECIPROCAL, FN_TAN, FN_SINH, FN_COSH, FN_ERFC, FN_ATANH };
static ValueId composed_value(Lower *l, int fn, ValueId x) {
    switch (fn) {
        case FN_EXP2: return lower_unary(l, OP_EXP, lower_scalar(l, OP_MUL, x, M_LN2));
        case FN_LOG2: return lower_scalar(l, OP_MUL, lower_unary(l, OP_LOG, x), 1 / M_LN2);
        case FN_LOG10: return lower_scalar(l, OP_MUL, lower_unary(l, OP_LOG, x), 1 / M_LN10);
        case FN_RECIPROCAL: return lower_binary(l, OP_DIV, lower_number(l, l->real, 1), x);
        case FN_TAN: return lower_binary(l, OP_DIV, lower_unary(l, OP_SIN, x), lower_unary(l, OP_COS, x));
        case FN_SINH:
        case FN_COSH: {
            ValueId p = lower_unary(l, OP_EXPM1, x), m = lower_unary(l, OP_EXPM1, lower_unary(l, OP_NEG, x));
            ValueId s = lower_scalar(l, OP_MUL, lower_binary(l, fn == FN_SINH ? OP_SUB : OP_ADD, p, m), 0.5);
            return fn == FN_SINH ? s : lower_scalar(l, OP_ADD, s, 1);
        }
        case FN_ERFC: return lower_binary(l, OP_SUB, lower_number(l, l->real, 1), lower_unary(l, OP_ERF, x));
        case FN_ATANH:
            return lower_scalar(
                l, OP_MUL,
                lower_binary(l, OP_SUB, lower_unary(l, OP_LOG1P, x), lower_unary(l, OP_LOG1P, lower_unary(l, OP_NEG, x))), 0.5);
        default: return x;
    }
}

static void lower_composed(Lower *l) { lower_out(l, 0, composed_value(l, l->cur->op, lower_real(l, lower_in(l, "self")))); }

static void lower_square(Lower *l) {
    ValueId x = lower_in(l, "self");
    lower_out(l, 0, lower_binary(l, OP_MUL, x, x));
}

// log(x / (1 - x)), x first clamped to [eps, 1 - eps] if eps is given.
static void lower_logit(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self"));
    double eps = lower_float(l, "eps", -1);
    if (eps >= 0) {
        x = lower_where(l, lower_scalar(l, OP_LT, x, eps), lower_number(l, l->real, eps), x);
        x = lower_where(l, lower_scalar(l, OP_GT, x, 1 - eps), lower_number(l, l->real, 1 - eps), x);
    }
    lower_out(l, 0, lower_binary(l, OP_SUB, lower_unary(l, OP_LOG, x), lower_unary(l, OP_LOG1P, lower_unary(l, OP_NEG, x))));
}

enum { IS_NAN, IS_INF, IS_FINITE, IS_POSINF, IS_NEGINF };
static ValueId classify(Lower *l, int what, ValueId x) {
    switch (what) {
        case IS_NAN: return lower_binary(l, OP_NE, x, x);
        case IS_INF: return lower_scalar(l, OP_EQ, lower_unary(l, OP_ABS, x), INFINITY);
        case IS_FINITE: return lower_scalar(l, OP_LT, lower_unary(l, OP_ABS, x), INFINITY);
        case IS_POSINF: return lower_scalar(l, OP_EQ, x, INFINITY);
        default: return lower_scalar(l, OP_EQ, x, -INFINITY);
    }
}

static void lower_classify(Lower *l) { lower_out(l, 0, classify(l, l->cur->op, lower_real(l, lower_in(l, "self")))); }

// Infinities become the largest finite numbers of the real dtype unless given.
static void lower_nan_to_num(Lower *l) {
    ValueId x = lower_in(l, "self");
    double big = l->real == DT_F32 ? 3.4028234663852886e38 : 1.7976931348623157e308;
    double nan = lower_float(l, "nan", 0), pos = lower_float(l, "posinf", big), neg = lower_float(l, "neginf", -big);
    if (!lower_failed(l) && dtype_is_float(LDTYPE(l, x))) {
        ValueId y = lower_where(l, classify(l, IS_NAN, x), lower_number(l, l->real, nan), x);
        y = lower_where(l, classify(l, IS_POSINF, x), lower_number(l, l->real, pos), y);
        x = lower_where(l, classify(l, IS_NEGINF, x), lower_number(l, l->real, neg), y);
    }
    lower_out(l, 0, x);
}

// ---- two operands ---------------------------------------------------------------------------------------------------------

static void lower_plain_binary(Lower *l) {
    lower_out(l, 0, lower_binary(l, (OpKind)l->cur->op, lower_operand(l, "self"), lower_operand(l, "other")));
}

static ValueId times_alpha(Lower *l, ValueId y) {
    double alpha = lower_float(l, "alpha", 1);
    if (alpha == 1.0 || lower_failed(l)) return y;
    DType t = lower_promote(l, LDTYPE(l, y), alpha == floor(alpha) ? DT_I64 : l->real);
    return lower_scalar(l, OP_MUL, lower_cast(l, y, t), alpha);
}

static void lower_add_sub(Lower *l) {
    ValueId x = lower_operand(l, "self"), y = times_alpha(l, lower_operand(l, "other"));
    lower_out(l, 0, lower_binary(l, (OpKind)l->cur->op, x, y));
}

static void lower_rsub(Lower *l) {
    ValueId x = times_alpha(l, lower_operand(l, "self"));
    lower_out(l, 0, lower_binary(l, OP_SUB, lower_operand(l, "other"), x));
}

// Toward zero. |a| floordiv |b| with the sign put back, for integers.
static ValueId trunc_div(Lower *l, ValueId x, ValueId y) {
    if (dtype_is_float(lower_promote(l, LDTYPE(l, x), LDTYPE(l, y)))) return trunc_value(l, lower_binary(l, OP_DIV, x, y));
    x = lower_cast(l, x, DT_I64);
    y = lower_cast(l, y, DT_I64);
    ValueId q = lower_binary(l, OP_FLOORDIV, lower_unary(l, OP_ABS, x), lower_unary(l, OP_ABS, y));
    return lower_binary(l, OP_MUL, q, lower_binary(l, OP_MUL, lower_unary(l, OP_SIGN, x), lower_unary(l, OP_SIGN, y)));
}

static void lower_div(Lower *l) {
    ValueId x = lower_operand(l, "self"), y = lower_operand(l, "other");
    const char *mode = lower_str(l, "rounding_mode", NULL);
    if (lower_failed(l)) return;
    if (!mode)
        lower_out(l, 0, lower_binary(l, OP_DIV, x, y));
    else if (!strcmp(mode, "floor"))
        lower_out(l, 0, lower_binary(l, OP_FLOORDIV, x, y));
    else if (!strcmp(mode, "trunc"))
        lower_out(l, 0, trunc_div(l, x, y));
    else
        lower_invalid(l, "rounding mode \"%s\"", mode);
}

static void lower_fmod(Lower *l) {
    ValueId x = lower_operand(l, "self"), y = lower_operand(l, "other");
    if (lower_failed(l)) return;
    lower_out(l, 0, lower_binary(l, OP_SUB, x, lower_binary(l, OP_MUL, trunc_div(l, x, y), y)));
}

// Small integer powers as products: their gradients need no logarithm and no division.
static ValueId pow_scalar(Lower *l, ValueId x, double p) {
    if (!dtype_is_float(LDTYPE(l, x)) && (p < 0 || p != floor(p))) x = lower_real(l, x);
    if (p == 0) return build_full(&l->b, LSHAPE(l, x), LDTYPE(l, x), 1);
    if (p == 1) return x;
    if (p == 2) return lower_binary(l, OP_MUL, x, x);
    if (p == 3) return lower_binary(l, OP_MUL, lower_binary(l, OP_MUL, x, x), x);
    if (p == 0.5) return lower_unary(l, OP_SQRT, x);
    if (p == -0.5) return lower_unary(l, OP_RSQRT, x);
    if (p == -1) return lower_binary(l, OP_DIV, lower_number(l, l->real, 1), x);
    return lower_scalar(l, OP_POW, x, p);
}

static void lower_pow(Lower *l) {
    double p;
    int64_t i;
    ValueId x = lower_operand(l, "self");
    if (lower_failed(l)) return;
    if (!lower_is_tensor(l, "exponent")) {
        NumberKind k = lower_arg_number(l, lower_arg(l, "exponent"), &p, &i);
        if (k == NUM_FLOAT) x = lower_real(l, x);
        if (k == NUM_INT && LDTYPE(l, x) == DT_BOOL) x = lower_cast(l, x, DT_I64);
        if (k == NUM_INT && p < 0 && !dtype_is_float(LDTYPE(l, x))) lower_invalid(l, "integers to a negative power");
        if (k == NUM_NONE) lower_invalid(l, "an exponent that is neither a number nor a tensor");
        if (!lower_failed(l)) lower_out(l, 0, pow_scalar(l, x, p));
        return;
    }
    lower_out(l, 0, lower_binary(l, OP_POW, x, lower_in(l, "exponent")));
}

static void lower_logic(Lower *l) {
    lower_out(l, 0, lower_binary(l, (OpKind)l->cur->op, lower_operand(l, "self"), lower_operand(l, "other")));
}

// On bool tensors the bitwise operations are the logical ones; there are none on integers.
static void lower_bitwise(Lower *l) {
    ValueId x = lower_operand(l, "self"), y = lower_operand(l, "other");
    if (!lower_failed(l) && (LDTYPE(l, x) != DT_BOOL || LDTYPE(l, y) != DT_BOOL))
        lower_refuse(l, "bit operations on integers; use bool tensors or arithmetic");
    lower_out(l, 0, lower_binary(l, (OpKind)l->cur->op, x, y));
}

static void lower_logical_not(Lower *l) { lower_out(l, 0, lower_not(l, lower_in(l, "self"))); }

static void lower_bitwise_not(Lower *l) {
    ValueId x = lower_in(l, "self");
    if (lower_failed(l)) return;
    lower_out(l, 0, LDTYPE(l, x) == DT_BOOL ? lower_not(l, x) : lower_binary(l, OP_SUB, lower_number(l, DT_I64, -1), x));
}

// ---- three operands -------------------------------------------------------------------------------------------------------

static void lower_where_op(Lower *l) {
    if (!lower_has(l, "self")) {
        lower_refuse(l, "where with a condition only, whose result size depends on the data; use the three-argument form");
        return;
    }
    ValueId c = lower_in(l, "condition");
    lower_out(l, 0, lower_where(l, c, lower_operand(l, "self"), lower_operand(l, "other")));
}

// The result has self's type.
static void lower_masked_fill(Lower *l) {
    ValueId x = lower_in(l, "self"), m = lower_in(l, "mask"), v = lower_operand(l, "value");
    if (!lower_failed(l)) lower_out(l, 0, lower_where(l, m, lower_cast(l, v, LDTYPE(l, x)), x));
}

// Where x is on the bound the gradient is x's, as in PyTorch; NaN stays.
static ValueId clamp_side(Lower *l, ValueId x, const char *arg, OpKind beyond) {
    if (!lower_has(l, arg)) return x;
    ValueId bound = lower_operand(l, arg);
    return lower_where(l, lower_binary(l, beyond, x, bound), bound, x);
}

enum { CLAMP_BOTH, CLAMP_LOW, CLAMP_HIGH };
static void lower_clamp(Lower *l) {
    ValueId x = lower_in(l, "self");
    if (l->cur->op != CLAMP_HIGH) x = clamp_side(l, x, "min", OP_LT);
    if (l->cur->op != CLAMP_LOW) x = clamp_side(l, x, "max", OP_GT);
    lower_out(l, 0, x);
}

static void lower_lerp(Lower *l) {
    ValueId x = lower_in(l, "self"), d = lower_binary(l, OP_SUB, lower_in(l, "end"), x);
    lower_out(l, 0, lower_binary(l, OP_ADD, x, lower_binary(l, OP_MUL, lower_operand(l, "weight"), d)));
}

static void lower_addc(Lower *l) {
    ValueId x = lower_in(l, "self"), y = lower_binary(l, (OpKind)l->cur->op, lower_in(l, "tensor1"), lower_in(l, "tensor2"));
    double value = lower_float(l, "value", 1);
    if (value != 1.0 && !lower_failed(l))
        y = lower_scalar(l, OP_MUL, lower_cast(l, y, value == floor(value) ? LDTYPE(l, y) : l->real), value);
    lower_out(l, 0, lower_binary(l, OP_ADD, x, y));
}

// log(exp(x) + exp(y)) as the log-sum-exp of the two side by side.
static void lower_logaddexp(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self")), y = lower_real(l, lower_in(l, "other"));
    Shape s;
    if (lower_failed(l) || !lower_broadcast(l, LSHAPE(l, x), LSHAPE(l, y), &s)) return;
    ValueId both[] = {build_broadcast(&l->b, x, s), build_broadcast(&l->b, y, s)};
    ValueId lse = lower_logsumexp(l, lower_stack(l, 2, both, s.ndim), s.ndim);
    lower_out(l, 0, lower_drop_dims(l, lse, 1, &s.ndim));
}

// x log(y), 0 where x is 0.
static void lower_xlogy(Lower *l) {
    ValueId x = lower_real(l, lower_operand(l, "self")), y = lower_real(l, lower_operand(l, "other"));
    ValueId zero = lower_scalar(l, OP_EQ, x, 0), safe = lower_where(l, zero, lower_number(l, l->real, 1), y);
    lower_out(l, 0, lower_binary(l, OP_MUL, x, lower_unary(l, OP_LOG, safe)));
}

static void lower_isclose(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self")), y = lower_real(l, lower_in(l, "other"));
    double rtol = lower_float(l, "rtol", 1e-5), atol = lower_float(l, "atol", 1e-8);
    if (lower_bool(l, "equal_nan", false)) lower_refuse(l, "isclose with equal_nan");
    ValueId bound = lower_scalar(l, OP_ADD, lower_scalar(l, OP_MUL, lower_unary(l, OP_ABS, y), rtol), atol);
    ValueId close = lower_binary(l, OP_LE, lower_unary(l, OP_ABS, lower_binary(l, OP_SUB, x, y)), bound);
    lower_out(l, 0, lower_binary(l, OP_OR, close, lower_binary(l, OP_EQ, x, y)));
}

const LowerRow lower_rows_pointwise[] = {
    {"exp", lower_float_unary, OP_EXP},
    {"expm1", lower_float_unary, OP_EXPM1},
    {"log", lower_float_unary, OP_LOG},
    {"log1p", lower_float_unary, OP_LOG1P},
    {"sqrt", lower_float_unary, OP_SQRT},
    {"rsqrt", lower_float_unary, OP_RSQRT},
    {"sin", lower_float_unary, OP_SIN},
    {"cos", lower_float_unary, OP_COS},
    {"tanh", lower_float_unary, OP_TANH},
    {"erf", lower_float_unary, OP_ERF},
    {"special_erf", lower_float_unary, OP_ERF},
    {"special_expm1", lower_float_unary, OP_EXPM1},
    {"abs", lower_plain_unary, OP_ABS},
    {"absolute", lower_plain_unary, OP_ABS},
    {"neg", lower_plain_unary, OP_NEG},
    {"negative", lower_plain_unary, OP_NEG},
    {"sign", lower_plain_unary, OP_SIGN},
    {"sgn", lower_plain_unary, OP_SIGN},
    {"floor", lower_rounding, ROUND_FLOOR},
    {"ceil", lower_rounding, ROUND_CEIL},
    {"trunc", lower_rounding, ROUND_TRUNC},
    {"fix", lower_rounding, ROUND_TRUNC},
    {"round", lower_rounding, ROUND_NEAREST},
    {"frac", lower_rounding, ROUND_FRAC},
    {"exp2", lower_composed, FN_EXP2},
    {"special_exp2", lower_composed, FN_EXP2},
    {"log2", lower_composed, FN_LOG2},
    {"log10", lower_composed, FN_LOG10},
    {"reciprocal", lower_composed, FN_RECIPROCAL},
    {"tan", lower_composed, FN_TAN},
    {"sinh", lower_composed, FN_SINH},
    {"cosh", lower_composed, FN_COSH},
    {"erfc", lower_composed, FN_ERFC},
    {"atanh", lower_composed, FN_ATANH},
    {"arctanh", lower_composed, FN_ATANH},
    {"square", lower_square, 0},
    {"logit", lower_logit, 0},
    {"special_logit", lower_logit, 0},
    {"isnan", lower_classify, IS_NAN},
    {"isinf", lower_classify, IS_INF},
    {"isfinite", lower_classify, IS_FINITE},
    {"isposinf", lower_classify, IS_POSINF},
    {"isneginf", lower_classify, IS_NEGINF},
    {"nan_to_num", lower_nan_to_num, 0},
    {"add", lower_add_sub, OP_ADD},
    {"sub", lower_add_sub, OP_SUB},
    {"subtract", lower_add_sub, OP_SUB},
    {"rsub", lower_rsub, 0},
    {"__radd__", lower_add_sub, OP_ADD},
    {"__rsub__", lower_rsub, 0},
    {"mul", lower_plain_binary, OP_MUL},
    {"multiply", lower_plain_binary, OP_MUL},
    {"div", lower_div, 0},
    {"divide", lower_div, 0},
    {"true_divide", lower_div, 0},
    {"floor_divide", lower_plain_binary, OP_FLOORDIV},
    {"remainder", lower_plain_binary, OP_MOD},
    {"fmod", lower_fmod, 0},
    {"pow", lower_pow, 0},
    {"float_power", lower_pow, 0},
    {"maximum", lower_plain_binary, OP_MAX},
    {"minimum", lower_plain_binary, OP_MIN},
    {"eq", lower_plain_binary, OP_EQ},
    {"ne", lower_plain_binary, OP_NE},
    {"lt", lower_plain_binary, OP_LT},
    {"le", lower_plain_binary, OP_LE},
    {"gt", lower_plain_binary, OP_GT},
    {"ge", lower_plain_binary, OP_GE},
    {"not_equal", lower_plain_binary, OP_NE},
    {"less", lower_plain_binary, OP_LT},
    {"less_equal", lower_plain_binary, OP_LE},
    {"greater", lower_plain_binary, OP_GT},
    {"greater_equal", lower_plain_binary, OP_GE},
    {"logical_and", lower_logic, OP_AND},
    {"logical_or", lower_logic, OP_OR},
    {"logical_xor", lower_logic, OP_XOR},
    {"logical_not", lower_logical_not, 0},
    {"bitwise_not", lower_bitwise_not, 0},
    {"bitwise_and", lower_bitwise, OP_AND},
    {"bitwise_or", lower_bitwise, OP_OR},
    {"bitwise_xor", lower_bitwise, OP_XOR},
    {"__and__", lower_bitwise, OP_AND},
    {"__or__", lower_bitwise, OP_OR},
    {"__xor__", lower_bitwise, OP_XOR},
    {"where", lower_where_op, 0},
    {"masked_fill", lower_masked_fill, 0},
    {"clamp", lower_clamp, CLAMP_BOTH},
    {"clip", lower_clamp, CLAMP_BOTH},
    {"clamp_min", lower_clamp, CLAMP_LOW},
    {"clamp_max", lower_clamp, CLAMP_HIGH},
    {"lerp", lower_lerp, 0},
    {"addcmul", lower_addc, OP_MUL},
    {"addcdiv", lower_addc, OP_DIV},
    {"logaddexp", lower_logaddexp, 0},
    {"xlogy", lower_xlogy, 0},
    {"special_xlogy", lower_xlogy, 0},
    {"isclose", lower_isclose, 0},
    {NULL, NULL, 0},
};
