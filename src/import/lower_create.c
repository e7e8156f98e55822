// Tensors made from nothing: full, arange, eye, random numbers.
#include <math.h>
#include "import/lower.h"

// The result's shape: of `size`, or that of self.
static Shape result_shape(Lower *l) {
    Shape s = {0};
    if (lower_has(l, "size")) {
        lower_ignore(l, "self");
        lower_shape_arg(l, "size", &s);
        lower_numel(l, s);
    } else if (lower_has(l, "self")) {
        s = LSHAPE(l, lower_in(l, "self"));
    }
    lower_ignore(l, "dtype");
    lower_ignore(l, "stride");
    lower_ignore(l, "names");
    return s;
}

// full, zeros, ones, empty and their _like and new_ forms; empty is 0: a program may not depend on it.
enum { FILL_ZERO, FILL_ONE, FILL_VALUE };
static void lower_full(Lower *l) {
    Shape s = result_shape(l);
    DType t = lower_out_dtype(l, 0);
    if (lower_failed(l)) return;
    if (l->cur->op == FILL_VALUE) {
        ValueId v = lower_cast(l, lower_operand(l, lower_has(l, "fill_value") ? "fill_value" : "s"), t);
        const Node *def = lower_failed(l) ? NULL : graph_def(l->b.g, v);
        if (def && def->op == OP_FULL)
            lower_out(l, 0, build_full(&l->b, s, t, node_float(def, ATTR_VALUE)));
        else
            lower_out(l, 0, build_broadcast(&l->b, v, s));
        return;
    }
    lower_out(l, 0, build_full(&l->b, s, t, l->cur->op == FILL_ONE));
}

// start + i * step for i in [0, n).
static ValueId float_range(Lower *l, int64_t n, double start, double step) {
    ValueId i = build_iota(&l->b, SHAPE(n), 0, 0, 1, DT_I64);
    ValueId x = lower_real(l, i);
    if (step != 1) x = lower_scalar(l, OP_MUL, x, step);
    return start == 0 ? x : lower_scalar(l, OP_ADD, x, start);
}

static void lower_arange(Lower *l) {
    DType t = lower_out_dtype(l, 0);
    double start = lower_float(l, "start", 0), end = lower_float(l, "end", 0), step = lower_float(l, "step", 1);
    lower_ignore(l, "dtype");
    if (!lower_failed(l) && (step == 0 || !isfinite(start) || !isfinite(end) || !isfinite(step)))
        lower_invalid(l, "an endless range");
    if (lower_failed(l)) return;
    double count = ceil((end - start) / step);
    if (count < 0) lower_invalid(l, "a range whose end is before its start");
    if (count > 9e15) lower_refuse(l, "a range of more than 9e15 elements");
    if (lower_failed(l)) return;
    bool whole = start == floor(start) && step == floor(step);
    if (whole) {
        int64_t first = lower_int(l, "start", 0), by = lower_int(l, "step", 1);
        lower_out(l, 0, lower_cast(l, build_iota(&l->b, SHAPE((int64_t)count), 0, first, by, DT_I64), t));
    } else {
        lower_out(l, 0, lower_cast(l, float_range(l, (int64_t)count, start, step), t));
    }
}

static void lower_linspace(Lower *l) {
    double start = lower_float(l, "start", 0), end = lower_float(l, "end", 0);
    int64_t n = lower_int(l, "steps", 0);
    DType t = lower_out_dtype(l, 0);
    lower_ignore(l, "dtype");
    if (!lower_failed(l) && n < 0) lower_invalid(l, "%lld steps", (long long)n);
    if (lower_failed(l)) return;
    lower_out(l, 0, lower_cast(l, float_range(l, n, start, n > 1 ? (end - start) / (double)(n - 1) : 0), t));
}

static void lower_eye(Lower *l) {
    int64_t n = lower_int(l, "n", 0), m = lower_int(l, "m", n);
    DType t = lower_out_dtype(l, 0);
    lower_ignore(l, "dtype");
    if (!lower_failed(l) && (n < 0 || m < 0)) lower_invalid(l, "a negative size");
    if (lower_failed(l)) return;
    ValueId row = build_iota(&l->b, SHAPE(n, 1), 0, 0, 1, DT_I64), col = build_iota(&l->b, SHAPE(1, m), 1, 0, 1, DT_I64);
    lower_out(l, 0, lower_cast(l, lower_binary(l, OP_EQ, row, col), t));
}

// Row and column numbers of a triangle: the size is known, the values are gathered positions. Only masks are usual; refuse.
static void lower_indices(Lower *l) { lower_refuse(l, "index lists of a triangle; use tril/triu on a matrix"); }

static void lower_one_hot(Lower *l) {
    ValueId x = lower_in(l, "self");
    int64_t n = lower_int(l, "num_classes", -1);
    if (!lower_failed(l) && n < 0)
        lower_refuse(l, "one_hot without num_classes, whose size depends on the data; give num_classes");
    if (lower_failed(l)) return;
    int k = LSHAPE(l, x).ndim;
    Shape line = {.ndim = k + 1};
    for (int i = 0; i <= k; i++) line.dim[i] = i == k ? n : 1;
    ValueId hit = lower_binary(l, OP_EQ, build_unsqueeze(&l->b, x, k), build_iota(&l->b, line, k, 0, 1, DT_I64));
    lower_out(l, 0, lower_cast(l, hit, DT_I64));
}

// Random numbers:
enum { RAND_UNIFORM, RAND_NORMAL, RAND_BERNOULLI, RAND_INT };

// Box and Muller: sqrt(-2 ln(1 - u)) cos(2 pi v).
static ValueId normal_value(Lower *l, Shape s) {
    ValueId u = lower_unary(l, OP_LOG1P, lower_unary(l, OP_NEG, lower_uniform(l, s)));
    ValueId r = lower_unary(l, OP_SQRT, lower_scalar(l, OP_MUL, u, -2));
    return lower_binary(l, OP_MUL, r, lower_unary(l, OP_COS, lower_scalar(l, OP_MUL, lower_uniform(l, s), 2 * M_PI)));
}

static ValueId scaled(Lower *l, ValueId x, double scale, double shift) {
    if (scale != 1) x = lower_scalar(l, OP_MUL, x, scale);
    return shift == 0 ? x : lower_scalar(l, OP_ADD, x, shift);
}

static void lower_random(Lower *l) {
    if (lower_is_tensor(l, "mean") || lower_is_tensor(l, "std"))
        lower_refuse(l, "normal numbers with tensor parameters; scale randn instead");
    if (lower_failed(l)) return;
    Shape s = result_shape(l);
    DType t = lower_out_dtype(l, 0);
    ValueId v = NO_VALUE;
    switch (l->cur->op) {
        case RAND_UNIFORM: {
            double from = lower_float(l, "from", 0), to = lower_float(l, "to", 1);
            v = scaled(l, lower_uniform(l, s), to - from, from);
            break;
        }
        case RAND_NORMAL: v = scaled(l, normal_value(l, s), lower_float(l, "std", 1), lower_float(l, "mean", 0)); break;
        case RAND_BERNOULLI: {
            ValueId p = lower_has(l, "p") ? lower_real(l, lower_operand(l, "p")) : lower_in(l, "self");
            v = lower_binary(l, OP_LT, lower_uniform(l, s), p);
            break;
        }
        default: {
            double lo = lower_float(l, "low", 0), hi = lower_float(l, "high", 0);
            if (!lower_failed(l) && !(hi > lo)) lower_invalid(l, "random integers from an empty range");
            v = lower_unary(l, OP_FLOOR, scaled(l, lower_uniform(l, s), hi - lo, lo));
        }
    }
    lower_out(l, 0, lower_cast(l, v, t));
}

static void lower_randperm(Lower *l) { lower_refuse(l, "a random permutation; shuffle in the data loader"); }

const LowerRow lower_rows_create[] = {
    {"full", lower_full, FILL_VALUE},
    {"full_like", lower_full, FILL_VALUE},
    {"new_full", lower_full, FILL_VALUE},
    {"scalar_tensor", lower_full, FILL_VALUE},
    {"zeros", lower_full, FILL_ZERO},
    {"zeros_like", lower_full, FILL_ZERO},
    {"new_zeros", lower_full, FILL_ZERO},
    {"ones", lower_full, FILL_ONE},
    {"ones_like", lower_full, FILL_ONE},
    {"new_ones", lower_full, FILL_ONE},
    {"empty", lower_full, FILL_ZERO},
    {"empty_like", lower_full, FILL_ZERO},
    {"new_empty", lower_full, FILL_ZERO},
    {"empty_strided", lower_full, FILL_ZERO},
    {"empty_permuted", lower_full, FILL_ZERO},
    {"new_empty_strided", lower_full, FILL_ZERO},
    {"arange", lower_arange, 0},
    {"linspace", lower_linspace, 0},
    {"eye", lower_eye, 0},
    {"one_hot", lower_one_hot, 0},
    {"tril_indices", lower_indices, 0},
    {"triu_indices", lower_indices, 0},
    {"rand", lower_random, RAND_UNIFORM},
    {"rand_like", lower_random, RAND_UNIFORM},
    {"uniform", lower_random, RAND_UNIFORM},
    {"randn", lower_random, RAND_NORMAL},
    {"randn_like", lower_random, RAND_NORMAL},
    {"normal", lower_random, RAND_NORMAL},
    {"bernoulli", lower_random, RAND_BERNOULLI},
    {"randint", lower_random, RAND_INT},
    {"randint_like", lower_random, RAND_INT},
    {"randperm", lower_randperm, 0},
    {NULL, NULL, 0},
};
