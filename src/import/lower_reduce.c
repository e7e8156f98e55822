// Reductions: sums, means, extrema, norms, variances, any and all.
#include <math.h>
#include "import/lower.h"

typedef struct Dims {  // what is reduced
    int n, dim[MAX_DIMS];
    bool keep;
} Dims;

// `dim` as an int, a list, absent, None or empty (all dims).
static Dims reduced_dims(Lower *l, ValueId x) {
    Dims d;
    int ndim = LSHAPE(l, x).ndim;
    d.n = lower_dims_arg(l, lower_has(l, "axis") ? "axis" : "dim", ndim, d.dim);
    d.keep = lower_bool(l, "keepdim", false);
    if (d.n <= 0) {
        d.n = ndim;
        for (int i = 0; i < ndim; i++) d.dim[i] = i;
    }
    if (ndim == 0) d.n = 0;
    return d;
}

static double reduced_count(Lower *l, ValueId x, const Dims *d) {
    double n = 1;
    Shape s = LSHAPE(l, x);
    for (int i = 0; i < d->n; i++) n *= (double)s.dim[d->dim[i]];
    return n;
}

static ValueId reduced_sum(Lower *l, ValueId x, const Dims *d) { return lower_sum_dims(l, x, d->n, d->dim, d->keep); }

static ValueId with_dtype(Lower *l, ValueId x) {
    DType t = LDTYPE(l, x);
    return lower_dtype_arg(l, "dtype", &t) ? lower_cast(l, x, t) : x;
}

// Bools are counted.
static void lower_sum(Lower *l) {
    ValueId x = with_dtype(l, lower_in(l, "self"));
    if (LDTYPE(l, x) == DT_BOOL) x = lower_cast(l, x, DT_I64);
    Dims d = reduced_dims(l, x);
    lower_out(l, 0, reduced_sum(l, x, &d));
}

// NaN counts as 0 (nansum).
static void lower_nansum(Lower *l) {
    ValueId x = lower_real(l, with_dtype(l, lower_in(l, "self")));
    Dims d = reduced_dims(l, x);
    x = lower_where(l, lower_binary(l, OP_NE, x, x), lower_number(l, l->real, 0), x);
    lower_out(l, 0, reduced_sum(l, x, &d));
}

static void lower_mean(Lower *l) {
    ValueId x = with_dtype(l, lower_in(l, "self"));
    if (!lower_failed(l) && !dtype_is_float(LDTYPE(l, x)))
        lower_invalid(l, "the mean of integers; convert to a floating type first");
    Dims d = reduced_dims(l, x);
    lower_out(l, 0, lower_mean_dims(l, x, d.n, d.dim, d.keep));
}

// ---- extrema --------------------------------------------------------------------------------------------------------------

static ValueId amax_value(Lower *l, ValueId x, const Dims *d, bool least) {
    DType t = LDTYPE(l, x);
    if (lower_failed(l)) return NO_VALUE;
    if (d->n == 0) return x;
    if (t == DT_BOOL) x = lower_cast(l, x, DT_I64);
    int64_t dims[MAX_DIMS];
    for (int i = 0; i < d->n; i++) dims[i] = d->dim[i];
    Attr a = attr_ints(ATTR_DIMS, d->n, dims);
    if (least) x = lower_unary(l, OP_NEG, x);
    ValueId y = build(&l->b, OP_AMAX, 1, &x, 1, &a);
    if (least) y = lower_unary(l, OP_NEG, y);
    return lower_cast(l, d->keep ? y : lower_drop_dims(l, y, d->n, d->dim), t);
}

enum { GREATEST, LEAST };
static void lower_amax(Lower *l) {
    ValueId x = lower_in(l, "self");
    Dims d = reduced_dims(l, x);
    lower_out(l, 0, amax_value(l, x, &d, l->cur->op == LEAST));
}

// (value, index) of the first extreme element along one dim; the gradient goes to that element alone.
static void extreme(Lower *l, ValueId x, int dim, bool keep, bool least, ValueId out[2]) {
    out[0] = out[1] = NO_VALUE;
    DType t = LDTYPE(l, x);
    if (lower_failed(l)) return;
    if (LSHAPE(l, x).ndim == 0) {
        out[0] = x;
        out[1] = lower_number(l, DT_I64, 0);
        return;
    }
    if (t == DT_BOOL) x = lower_cast(l, x, DT_I64);
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_K, 1), attr_i(ATTR_DESCENDING, !least)};
    build_multi(&l->b, OP_TOPK, 1, &x, 3, a, 2, out);
    for (int i = 0; i < 2 && !keep; i++) out[i] = lower_drop_dims(l, out[i], 1, &dim);
    out[0] = lower_cast(l, out[0], t);
}

// max and min: of all elements, along a dim (two outputs), or of two tensors.
static void lower_max(Lower *l) {
    bool least = l->cur->op == LEAST;
    ValueId x = lower_in(l, "self"), out[2];
    if (lower_has(l, "other")) {
        lower_out(l, 0, lower_binary(l, least ? OP_MIN : OP_MAX, x, lower_in(l, "other")));
    } else if (lower_has(l, "dim")) {
        int dim = lower_dim_arg(l, "dim", -1, LSHAPE(l, x).ndim);
        extreme(l, x, dim, lower_bool(l, "keepdim", false), least, out);
        lower_out(l, 0, out[0]);
        lower_out(l, 1, out[1]);
    } else {
        Dims d = reduced_dims(l, x);
        lower_out(l, 0, amax_value(l, x, &d, least));
    }
}

static void lower_argmax(Lower *l) {
    ValueId x = lower_in(l, "self"), out[2];
    bool keep = lower_bool(l, "keepdim", false), all = !lower_has(l, "dim");
    int ndim = LSHAPE(l, x).ndim, dim = all ? 0 : lower_dim_arg(l, "dim", -1, ndim);
    if (lower_failed(l)) return;
    if (all) x = build_reshape(&l->b, x, SHAPE(lower_numel(l, LSHAPE(l, x))));
    extreme(l, x, dim, keep && !all, l->cur->op == LEAST, out);
    if (all) {
        Shape s = {.ndim = keep ? ndim : 0};
        for (int i = 0; i < s.ndim; i++) s.dim[i] = 1;
        out[1] = build_reshape(&l->b, out[1], s);
    }
    lower_out(l, 0, out[1]);
}

static void lower_aminmax(Lower *l) {
    ValueId x = lower_in(l, "self");
    Dims d = reduced_dims(l, x);
    lower_out(l, 0, amax_value(l, x, &d, true));
    lower_out(l, 1, amax_value(l, x, &d, false));
}

// ---- counting -------------------------------------------------------------------------------------------------------------

enum { COUNT_ANY, COUNT_ALL, COUNT_NONZERO };
static void lower_count(Lower *l) {
    ValueId x = lower_in(l, "self");
    Dims d = reduced_dims(l, x);
    ValueId hit = lower_cast(l, x, DT_BOOL);
    if (l->cur->op == COUNT_ALL) hit = lower_not(l, hit);
    ValueId n = reduced_sum(l, lower_cast(l, hit, DT_I64), &d);
    if (l->cur->op == COUNT_ANY) n = lower_scalar(l, OP_GT, n, 0);
    if (l->cur->op == COUNT_ALL) n = lower_scalar(l, OP_EQ, n, 0);
    lower_out(l, 0, n);
}

// ---- moments --------------------------------------------------------------------------------------------------------------

typedef struct Moments {
    ValueId mean, var;
} Moments;

// Two passes: the mean first, then the mean square of what is left. `correction` is taken off the count.
static Moments moments(Lower *l, ValueId x, Dims d, double correction) {
    Moments m;
    bool keep = d.keep;
    d.keep = true;
    m.mean = lower_mean_dims(l, x, d.n, d.dim, true);
    ValueId c = lower_binary(l, OP_SUB, x, m.mean);
    double n = reduced_count(l, x, &d) - correction;
    ValueId sum = reduced_sum(l, lower_binary(l, OP_MUL, c, c), &d);
    m.var = lower_scalar(l, OP_MUL, sum, n > 0 ? 1 / n : NAN);
    if (!keep) {
        m.mean = lower_drop_dims(l, m.mean, d.n, d.dim);
        m.var = lower_drop_dims(l, m.var, d.n, d.dim);
    }
    return m;
}

// sqrt with gradient 0 (not infinity) where x is 0, as the 2-norm has it.
static ValueId guarded_sqrt(Lower *l, ValueId x) {
    ValueId zero = lower_scalar(l, OP_LE, x, 0);
    ValueId r = lower_unary(l, OP_SQRT, lower_where(l, zero, lower_number(l, l->real, 1), x));
    return lower_where(l, zero, lower_number(l, l->real, 0), r);
}

enum { MOMENT_VAR = 1, MOMENT_STD = 2, MOMENT_MEAN = 4 };
static void lower_moments(Lower *l) {
    ValueId x = lower_in(l, "self");
    double correction = lower_float(l, "correction", lower_bool(l, "unbiased", true));
    if (!lower_failed(l) && !dtype_is_float(LDTYPE(l, x))) lower_invalid(l, "the variance of integers");
    Moments m = moments(l, x, reduced_dims(l, x), correction);
    lower_out(l, 0, l->cur->op & MOMENT_STD ? lower_unary(l, OP_SQRT, m.var) : m.var);
    if (l->cur->op & MOMENT_MEAN) lower_out(l, 1, m.mean);
}

// ---- norms ----------------------------------------------------------------------------------------------------------------

static ValueId norm_value(Lower *l, ValueId x, double p, const Dims *d) {
    ValueId a = lower_unary(l, OP_ABS, x);
    if (p == 2) return guarded_sqrt(l, reduced_sum(l, lower_binary(l, OP_MUL, x, x), d));
    if (p == 1) return reduced_sum(l, a, d);
    if (isinf(p)) return amax_value(l, a, d, p < 0);
    if (p == 0) return reduced_sum(l, lower_real(l, lower_scalar(l, OP_NE, x, 0)), d);
    if (!(p > 1)) {
        lower_refuse(l, "a norm of order %g; use an order of 0, 1 or more", p);
        return NO_VALUE;
    }
    ValueId s = reduced_sum(l, lower_scalar(l, OP_POW, a, p), d), zero = lower_scalar(l, OP_LE, s, 0);
    ValueId r = lower_scalar(l, OP_POW, lower_where(l, zero, lower_number(l, l->real, 1), s), 1 / p);
    return lower_where(l, zero, lower_number(l, l->real, 0), r);
}

static void lower_norm(Lower *l) {
    ValueId x = lower_real(l, with_dtype(l, lower_in(l, "self")));
    double p = lower_float(l, lower_has(l, "ord") ? "ord" : "p", 2);
    Dims d = reduced_dims(l, x);
    lower_out(l, 0, norm_value(l, x, p, &d));
}

static void lower_logsumexp_op(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self"));
    Dims d = reduced_dims(l, x);
    for (int i = 0; i < d.n; i++) x = lower_logsumexp(l, x, d.dim[i]);
    lower_out(l, 0, d.keep ? x : lower_drop_dims(l, x, d.n, d.dim));
}

// x1.x2 / (max(|x1|, eps) max(|x2|, eps)) along dim.
static void lower_cosine_similarity(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "x1")), y = lower_real(l, lower_in(l, "x2"));
    double eps = lower_float(l, "eps", 1e-8);
    Shape s;
    if (lower_failed(l) || !lower_broadcast(l, LSHAPE(l, x), LSHAPE(l, y), &s)) return;
    Dims d = {.n = 1};
    d.dim[0] = lower_dim_arg(l, "dim", 1, s.ndim);
    x = build_broadcast(&l->b, x, s);
    y = build_broadcast(&l->b, y, s);
    ValueId nx = norm_value(l, x, 2, &d), ny = norm_value(l, y, 2, &d), e = lower_number(l, l->real, eps);
    nx = lower_where(l, lower_binary(l, OP_LT, nx, e), e, nx);
    ny = lower_where(l, lower_binary(l, OP_LT, ny, e), e, ny);
    lower_out(l, 0, lower_binary(l, OP_DIV, reduced_sum(l, lower_binary(l, OP_MUL, x, y), &d), lower_binary(l, OP_MUL, nx, ny)));
}

static void lower_no_product(Lower *l) {
    lower_refuse(l, "a product of all elements; use the exponential of a sum of logarithms");
}
static void lower_no_median(Lower *l) { lower_refuse(l, "order statistics (median, mode, quantile); use sort or topk"); }

const LowerRow lower_rows_reduce[] = {
    {"sum", lower_sum, 0},
    {"nansum", lower_nansum, 0},
    {"mean", lower_mean, 0},
    {"amax", lower_amax, GREATEST},
    {"amin", lower_amax, LEAST},
    {"aminmax", lower_aminmax, 0},
    {"max", lower_max, GREATEST},
    {"min", lower_max, LEAST},
    {"argmax", lower_argmax, GREATEST},
    {"argmin", lower_argmax, LEAST},
    {"any", lower_count, COUNT_ANY},
    {"all", lower_count, COUNT_ALL},
    {"count_nonzero", lower_count, COUNT_NONZERO},
    {"var", lower_moments, MOMENT_VAR},
    {"std", lower_moments, MOMENT_STD},
    {"var_mean", lower_moments, MOMENT_VAR | MOMENT_MEAN},
    {"std_mean", lower_moments, MOMENT_STD | MOMENT_MEAN},
    {"norm", lower_norm, 0},
    {"linalg_vector_norm", lower_norm, 0},
    {"linalg_norm", lower_norm, 0},
    {"logsumexp", lower_logsumexp_op, 0},
    {"special_logsumexp", lower_logsumexp_op, 0},
    {"cosine_similarity", lower_cosine_similarity, 0},
    {"prod", lower_no_product, 0},
    {"median", lower_no_median, 0},
    {"nanmedian", lower_no_median, 0},
    {"mode", lower_no_median, 0},
    {"quantile", lower_no_median, 0},
    {"kthvalue", lower_no_median, 0},
    {NULL, NULL, 0},
};
