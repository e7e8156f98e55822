// Along one dim: cumulative sums, differences, sorting, the k largest, histograms.
#include <math.h>
#include "import/lower.h"

static void lower_cumsum(Lower *l) {
    ValueId x = lower_in(l, "self");
    DType t = LDTYPE(l, x) == DT_BOOL ? DT_I64 : LDTYPE(l, x);
    lower_dtype_arg(l, "dtype", &t);
    int dim = lower_dim_arg(l, "dim", 0, LSHAPE(l, x).ndim);
    x = lower_cast(l, x, t);
    if (lower_failed(l)) return;
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_REVERSE, 0)};
    lower_out(l, 0, LSHAPE(l, x).ndim ? build(&l->b, OP_CUMSUM, 1, &x, 2, a) : x);
}

static void lower_no_scan(Lower *l) { lower_refuse(l, "this cumulative operation; cumsum is the one there is"); }

static ValueId difference(Lower *l, ValueId x, int dim) {
    int64_t n = LSHAPE(l, x).dim[dim];
    if (lower_failed(l)) return NO_VALUE;
    if (n == 0) return x;
    ValueId a = build_slice(&l->b, x, dim, 0, 1, n - 1), b = build_slice(&l->b, x, dim, 1, 1, n - 1);
    if (LDTYPE(l, x) == DT_BOOL) return lower_binary(l, OP_XOR, b, a);
    return lower_binary(l, OP_SUB, b, a);
}

// The n-th differences of prepend ++ x ++ append.
static void lower_diff(Lower *l) {
    ValueId x = lower_in(l, "self"), part[3];
    int64_t times = lower_int(l, "n", 1);
    int dim = lower_dim_arg(l, "dim", -1, LSHAPE(l, x).ndim), k = 0;
    if (lower_has(l, "prepend")) part[k++] = lower_in(l, "prepend");
    part[k++] = x;
    if (lower_has(l, "append")) part[k++] = lower_in(l, "append");
    if (!lower_failed(l) && (times < 0 || times > 64 || LSHAPE(l, x).ndim == 0))
        lower_invalid(l, "differences of order %lld", (long long)times);
    if (lower_failed(l)) return;
    DType t = LDTYPE(l, x);
    for (int i = 0; i < k; i++) t = lower_promote(l, t, LDTYPE(l, part[i]));
    for (int i = 0; i < k; i++) part[i] = lower_cast(l, part[i], t);
    x = build_concat(&l->b, k, part, dim);
    for (int64_t i = 0; i < times; i++) x = difference(l, x, dim);
    lower_out(l, 0, x);
}

// ---- order ----------------------------------------------------------------------------------------------------------------

// A 0-dim tensor is its own only element.
static bool out_single(Lower *l, ValueId x, bool index_only) {
    if (lower_failed(l) || LSHAPE(l, x).ndim) return false;
    ValueId zero = lower_number(l, DT_I64, 0);
    lower_out(l, 0, index_only ? zero : x);
    lower_out(l, 1, zero);
    return true;
}

enum { SORT_BOTH, SORT_INDEX, SORT_VALUE };
static void lower_sort(Lower *l) {
    ValueId x = lower_in(l, "self"), out[2];
    DType t = LDTYPE(l, x);
    int dim = lower_dim_arg(l, "dim", l->cur->op == SORT_VALUE ? 0 : -1, LSHAPE(l, x).ndim);
    bool descending = lower_bool(l, "descending", false);
    if (out_single(l, x, l->cur->op == SORT_INDEX) || lower_failed(l)) return;
    if (t == DT_BOOL) x = lower_cast(l, x, DT_I64);
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_DESCENDING, descending)};
    build_multi(&l->b, OP_SORT, 1, &x, 2, a, 2, out);
    lower_out(l, 0, l->cur->op == SORT_INDEX ? out[1] : lower_cast(l, out[0], t));
    if (l->cur->op == SORT_BOTH) lower_out(l, 1, out[1]);
}

static void lower_topk(Lower *l) {
    ValueId x = lower_in(l, "self"), out[2];
    DType t = LDTYPE(l, x);
    int64_t k = lower_int(l, "k", 1);
    int dim = lower_dim_arg(l, "dim", -1, LSHAPE(l, x).ndim);
    bool largest = lower_bool(l, "largest", true);
    lower_ignore(l, "sorted");  // any order will do; sorted is one
    if (out_single(l, x, false) || lower_failed(l)) return;
    if (t == DT_BOOL) x = lower_cast(l, x, DT_I64);
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_K, k), attr_i(ATTR_DESCENDING, largest)};
    build_multi(&l->b, OP_TOPK, 1, &x, 3, a, 2, out);
    lower_out(l, 0, lower_cast(l, out[0], t));
    lower_out(l, 1, out[1]);
}

// ---- histograms -----------------------------------------------------------------------------------------------------------

// Integers from 0 to bins - 1 with one bin each count as themselves (the form mixtures of experts use); otherwise bin
// floor((x - min) * bins / (max - min)), the last bin closed, values outside dropped.
static ValueId bin_of(Lower *l, ValueId x, int64_t bins, double min, double max) {
    const Node *def = graph_def(l->b.g, x);
    ValueId ints = LDTYPE(l, x) == DT_I64 ? x : def->op == OP_CAST && LDTYPE(l, def->in[0]) == DT_I64 ? def->in[0] : NO_VALUE;
    if (ints >= 0 && min == floor(min) && max - min == (double)(bins - 1))
        return min == 0 ? ints : lower_scalar(l, OP_SUB, ints, min);
    x = lower_real(l, x);
    ValueId at = lower_scalar(l, OP_MUL, lower_scalar(l, OP_SUB, x, min), (double)bins);
    at = lower_unary(l, OP_FLOOR, lower_scalar(l, OP_DIV, at, max - min));
    at = lower_where(l, lower_scalar(l, OP_EQ, x, max), lower_number(l, l->real, (double)(bins - 1)), at);
    ValueId inside = lower_binary(l, OP_AND, lower_scalar(l, OP_GE, x, min), lower_scalar(l, OP_LE, x, max));
    return lower_cast(l, lower_where(l, inside, at, lower_number(l, l->real, -1)), DT_I64);
}

static void lower_histc(Lower *l) {
    ValueId x = lower_in(l, "self");
    int64_t bins = lower_int(l, "bins", 100);
    double min = lower_float(l, "min", 0), max = lower_float(l, "max", 0);
    DType t = lower_out_dtype(l, 0);
    if (!lower_failed(l) && min == max) lower_refuse(l, "a histogram whose range depends on the data; give min and max");
    if (!lower_failed(l) && (bins < 1 || !(max > min)))
        lower_invalid(l, "a histogram of %lld bins from %g to %g", (long long)bins, min, max);
    if (lower_failed(l)) return;
    ValueId at = bin_of(l, x, bins, min, max);
    Attr a = attr_i(ATTR_NROWS, bins);
    lower_out(l, 0, lower_cast(l, build(&l->b, OP_HISTOGRAM, 1, &at, 1, &a), t));
}

static void lower_bincount(Lower *l) {
    lower_refuse(l, "bincount, whose result size depends on the data; use histc(bins=n, min=0, max=n-1) or sum a one_hot");
}

const LowerRow lower_rows_scan[] = {
    {"cumsum", lower_cumsum, 0},
    {"cumprod", lower_no_scan, 0},
    {"cummax", lower_no_scan, 0},
    {"cummin", lower_no_scan, 0},
    {"logcumsumexp", lower_no_scan, 0},
    {"diff", lower_diff, 0},
    {"sort", lower_sort, SORT_BOTH},
    {"msort", lower_sort, SORT_VALUE},
    {"argsort", lower_sort, SORT_INDEX},
    {"topk", lower_topk, 0},
    {"histc", lower_histc, 0},
    {"bincount", lower_bincount, 0},
    {NULL, NULL, 0},
};
