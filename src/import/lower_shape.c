// Views: what changes the shape, the order of the dims, or which part is seen. Each is a recipe of lower_tensor.c, so that a
// write through it finds its way.
#include "import/lower.h"

typedef struct Source {  // the tensor that is viewed
    int32_t t;
    Shape s;
} Source;

static Source source(Lower *l) {
    Source x = {.t = lower_handle(l, "self")};
    x.s = LSHAPE(l, lower_in(l, "self"));
    return x;
}

static View view_reshape(Shape s, bool maybe) { return (View){.kind = VIEW_RESHAPE, .shape = s, .maybe = maybe}; }

// ---- shape ----------------------------------------------------------------------------------------------------------------

// One size may be -1: what is left.
static bool resolve_sizes(Lower *l, int64_t numel, Shape *s) {
    int64_t known = 1;
    int unknown = -1;
    for (int i = 0; i < s->ndim; i++) {
        if (s->dim[i] == -1 && unknown < 0) {
            unknown = i;
        } else if (s->dim[i] < 0 || !mul_i64(known, s->dim[i], &known)) {
            lower_invalid(l, "size %lld in a new shape", (long long)s->dim[i]);
            return false;
        }
    }
    if (unknown >= 0) {
        s->dim[unknown] = known ? numel / known : 0;
        known *= s->dim[unknown];
    }
    if (known != numel) lower_invalid(l, "a tensor of %lld elements cannot have %lld", (long long)numel, (long long)known);
    return !lower_failed(l);
}

enum { SHARES, SHARES_MAYBE };
static void lower_reshape(Lower *l) {
    Source x = source(l);
    Shape s = {0};
    if (lower_has(l, "dtype")) lower_refuse(l, "reinterpreting a tensor's bytes; convert the values with .to()");
    lower_ignore(l, "stride");
    lower_shape_arg(l, lower_has(l, "size") ? "size" : "shape", &s);
    if (!lower_failed(l) && resolve_sizes(l, lower_numel(l, x.s), &s))
        lower_out_view(l, 0, x.t, view_reshape(s, l->cur->op == SHARES_MAYBE));
}

static void lower_reshape_as(Lower *l) {
    Source x = source(l);
    Shape s = LSHAPE(l, lower_in(l, "other"));
    if (!lower_failed(l) && lower_numel(l, s) != lower_numel(l, x.s))
        lower_invalid(l, "tensors of different numbers of elements");
    lower_out_view(l, 0, x.t, view_reshape(s, l->cur->op == SHARES_MAYBE));
}

enum { FLATTEN, RAVEL };
static void lower_flatten(Lower *l) {
    Source x = source(l);
    int first = l->cur->op == RAVEL ? 0 : lower_dim_arg(l, "start_dim", 0, x.s.ndim);
    int last = l->cur->op == RAVEL ? lower_dim(l, -1, x.s.ndim) : lower_dim_arg(l, "end_dim", -1, x.s.ndim);
    if (!lower_failed(l) && first > last) lower_invalid(l, "flatten from dim %d to dim %d", first, last);
    if (lower_failed(l)) return;
    Shape s = {0};
    for (int i = 0; i < first; i++) s.dim[s.ndim++] = x.s.dim[i];
    s.dim[s.ndim] = 1;
    for (int i = first; i <= last && i < x.s.ndim; i++) s.dim[s.ndim] *= x.s.dim[i];
    s.ndim++;
    for (int i = last + 1; i < x.s.ndim; i++) s.dim[s.ndim++] = x.s.dim[i];
    lower_out_view(l, 0, x.t, view_reshape(s, true));
}

static void lower_unflatten(Lower *l) {
    Source x = source(l);
    Shape part = {0}, s = {0};
    int dim = lower_dim_arg(l, "dim", 0, x.s.ndim);
    if (!lower_shape_arg(l, "sizes", &part) || !resolve_sizes(l, x.s.dim[dim], &part)) return;
    if (x.s.ndim - 1 + part.ndim > MAX_DIMS) {
        lower_refuse(l, "a tensor of more than %d dims", MAX_DIMS);
        return;
    }
    for (int i = 0; i < x.s.ndim; i++) {
        if (i != dim) s.dim[s.ndim++] = x.s.dim[i];
        for (int k = 0; i == dim && k < part.ndim; k++) s.dim[s.ndim++] = part.dim[k];
    }
    lower_out_view(l, 0, x.t, view_reshape(s, false));
}

static void lower_unsqueeze(Lower *l) {
    Source x = source(l);
    int dim = lower_dim_arg(l, "dim", 0, x.s.ndim + 1);
    if (!lower_failed(l) && x.s.ndim == MAX_DIMS) lower_refuse(l, "a tensor of more than %d dims", MAX_DIMS);
    if (lower_failed(l)) return;
    Shape s = {.ndim = x.s.ndim + 1};
    for (int i = 0; i < s.ndim; i++) s.dim[i] = i == dim ? 1 : x.s.dim[i < dim ? i : i - 1];
    lower_out_view(l, 0, x.t, view_reshape(s, false));
}

static void lower_squeeze(Lower *l) {
    Source x = source(l);
    int dims[MAX_DIMS], n = lower_dims_arg(l, "dim", x.s.ndim, dims);
    if (lower_failed(l)) return;
    bool drop[MAX_DIMS] = {false};
    for (int i = 0; i < x.s.ndim; i++) drop[i] = n < 0;
    for (int i = 0; i < n; i++) drop[dims[i]] = true;
    Shape s = {0};
    for (int i = 0; i < x.s.ndim; i++)
        if (!drop[i] || x.s.dim[i] != 1) s.dim[s.ndim++] = x.s.dim[i];
    lower_out_view(l, 0, x.t, view_reshape(s, false));
}

enum { AT_LEAST_1 = 1, AT_LEAST_2, AT_LEAST_3 };
static void lower_at_least(Lower *l) {
    Source x = source(l);
    int64_t n0 = x.s.ndim > 0 ? x.s.dim[0] : 1, n1 = x.s.ndim > 1 ? x.s.dim[1] : 1;
    Shape s = x.s;
    if (x.s.ndim < l->cur->op)
        s = l->cur->op == 1 ? SHAPE(1) : l->cur->op == 2 ? SHAPE(1, n0) : x.s.ndim < 2 ? SHAPE(1, n0, 1) : SHAPE(n0, n1, 1);
    lower_out_view(l, 0, x.t, view_reshape(s, false));
}

// ---- order ----------------------------------------------------------------------------------------------------------------

static void out_permuted(Lower *l, Source x, const int *dims) {
    View v = {.kind = VIEW_PERMUTE};
    for (int i = 0; i < x.s.ndim; i++) v.dims[i] = dims[i];
    lower_out_view(l, 0, x.t, v);
}

static void lower_permute(Lower *l) {
    Source x = source(l);
    int dims[MAX_DIMS] = {0}, n = lower_dims_arg(l, "dims", x.s.ndim, dims);
    if (!lower_failed(l) && n != x.s.ndim) lower_invalid(l, "permute names %d of %d dims", n, x.s.ndim);
    if (!lower_failed(l)) out_permuted(l, x, dims);
}

// transpose(dim0, dim1), t(), .mT, .T
enum { SWAP_NAMED, SWAP_T, SWAP_MT, SWAP_ALL };
static void lower_transpose(Lower *l) {
    Source x = source(l);
    int n = x.s.ndim, d0 = 0, d1 = n - 1, dims[MAX_DIMS];
    int kind = l->cur->op;
    if (kind == SWAP_NAMED) {
        bool axes = lower_has(l, "axis0");
        d0 = lower_dim_arg(l, axes ? "axis0" : "dim0", 0, n);
        d1 = lower_dim_arg(l, axes ? "axis1" : "dim1", 0, n);
    }
    if (kind == SWAP_T && n > 2) lower_invalid(l, "t() of %d dims", n);
    if (kind == SWAP_MT && n < 2) lower_invalid(l, "mT of %d dims", n);
    if (kind == SWAP_MT) d0 = n - 2;
    if (lower_failed(l)) return;
    for (int i = 0; i < n; i++) dims[i] = kind == SWAP_ALL ? n - 1 - i : i == d0 ? d1 : i == d1 ? d0 : i;
    out_permuted(l, x, dims);
}

static void lower_movedim(Lower *l) {
    Source x = source(l);
    int from[MAX_DIMS], to[MAX_DIMS], dims[MAX_DIMS], n = x.s.ndim;
    int k = lower_dims_arg(l, "source", n, from), k2 = lower_dims_arg(l, "destination", n, to);
    if (!lower_failed(l) && (k != k2 || k < 0)) lower_invalid(l, "movedim with lists of different lengths");
    if (lower_failed(l)) return;
    bool taken[MAX_DIMS] = {false};
    for (int i = 0; i < n; i++) dims[i] = -1;
    for (int i = 0; i < k; i++) {
        dims[to[i]] = from[i];
        taken[from[i]] = true;
    }
    for (int i = 0, next = 0; i < n; i++) {
        if (dims[i] >= 0) continue;
        while (taken[next]) next++;
        dims[i] = next++;
    }
    out_permuted(l, x, dims);
}

// ---- size -----------------------------------------------------------------------------------------------------------------

// Sizes of -1 keep the tensor's own; new dims come in front.
static void out_expanded(Lower *l, Source x, Shape s) {
    int lead = s.ndim - x.s.ndim;
    for (int i = 0; i < s.ndim && !lower_failed(l); i++) {
        int64_t own = i >= lead ? x.s.dim[i - lead] : 1;
        if (s.dim[i] == -1 && i >= lead) s.dim[i] = own;
        if (s.dim[i] < 0 || (own != 1 && own != s.dim[i]))
            lower_invalid(l, "size %lld cannot become %lld", (long long)own, (long long)s.dim[i]);
    }
    if (!lower_failed(l) && lead < 0) lower_invalid(l, "expand to fewer dims");
    if (lower_failed(l)) return;
    if (shape_equal(&s, &x.s))
        lower_out_view(l, 0, x.t, view_reshape(s, false));
    else
        lower_out_view(l, 0, x.t, (View){.kind = VIEW_BROADCAST, .shape = s});
}

static void lower_expand(Lower *l) {
    Source x = source(l);
    Shape s = {0};
    if (lower_shape_arg(l, "size", &s)) out_expanded(l, x, s);
}

static void lower_expand_as(Lower *l) {
    Source x = source(l);
    Shape s = LSHAPE(l, lower_in(l, "other"));
    if (!lower_failed(l)) out_expanded(l, x, s);
}

static void out_slice(Lower *l, Source x, int dim, int64_t start, int64_t step, int64_t n) {
    lower_out_view(l, 0, x.t, (View){.kind = VIEW_SLICE, .dim = dim, .start = start, .step = step, .length = n});
}

// As Python clips: from the end if negative, then into [0, n].
static int64_t clip(int64_t i, int64_t n) { return i < 0 ? max_i64(i + n, 0) : min_i64(i, n); }

static void lower_slice(Lower *l) {
    Source x = source(l);
    int dim = lower_dim_arg(l, "dim", 0, x.s.ndim);
    int64_t start = lower_int(l, "start", 0), end = lower_int(l, "end", INT64_MAX), step = lower_int(l, "step", 1);
    if (!lower_failed(l) && (step < 1 || x.s.ndim == 0))
        lower_invalid(l, "a slice with step %lld of %d dims", (long long)step, x.s.ndim);
    if (lower_failed(l)) return;
    int64_t n = x.s.dim[dim];
    start = clip(start, n);
    end = max_i64(clip(end, n), start);
    int64_t count = (end - start) / step + ((end - start) % step != 0);
    out_slice(l, x, dim, start, step, count);
}

static void lower_narrow(Lower *l) {
    Source x = source(l);
    int dim = lower_dim_arg(l, "dim", 0, x.s.ndim);
    if (lower_is_tensor(l, "start")) lower_refuse(l, "narrow from a position that depends on the data");
    int64_t start = lower_failed(l) ? 0 : lower_int(l, "start", 0), n = lower_int(l, "length", 0);
    int64_t size = x.s.ndim ? x.s.dim[dim] : 0;
    if (start < 0) start += size;
    if (!lower_failed(l) && (start < 0 || n < 0 || n > size - start)) lower_invalid(l, "narrow outside the tensor");
    if (!lower_failed(l)) out_slice(l, x, dim, start, 1, n);
}

static void lower_select(Lower *l) {
    Source x = source(l);
    int dim = lower_dim_arg(l, "dim", 0, x.s.ndim);
    int64_t i = lower_int(l, "index", 0);
    if (lower_failed(l)) return;
    int64_t n = x.s.ndim ? x.s.dim[dim] : 0;
    if (i < -n || i >= n) {
        lower_invalid(l, "index %lld of a dim of %lld", (long long)i, (long long)n);
        return;
    }
    Shape s = {0};
    for (int k = 0; k < x.s.ndim; k++)
        if (k != dim) s.dim[s.ndim++] = x.s.dim[k];
    View part = {.kind = VIEW_SLICE, .dim = dim, .start = i < 0 ? i + n : i, .step = 1, .length = 1};
    int32_t t = lower_new_view(l, x.t, part);
    lower_out_view(l, 0, t, view_reshape(s, false));
}

// ---- views that are not tracked -------------------------------------------------------------------------------------------

// The elements [i, i + offset]: dims [.., R, C, ..] moved to the end and flattened, a diagonal is a slice of step C + 1.
static ValueId diagonal_value(Lower *l, ValueId x, int d0, int d1, int64_t offset) {
    Builder *b = &l->b;
    int n = LSHAPE(l, x).ndim, dims[MAX_DIMS], k = 0;
    for (int i = 0; i < n; i++)
        if (i != d0 && i != d1) dims[k++] = i;
    dims[k++] = d0;
    dims[k++] = d1;
    x = build_permute(b, x, dims);
    Shape s = LSHAPE(l, x);
    if (lower_failed(l)) return NO_VALUE;
    int64_t rows = s.dim[n - 2], cols = s.dim[n - 1];
    int64_t len = offset >= 0 ? min_i64(rows, cols - offset) : min_i64(rows + offset, cols);
    s.ndim = n - 1;
    s.dim[n - 2] = rows * cols;
    return build_slice(b, build_reshape(b, x, s), n - 2,
                       len <= 0      ? 0
                       : offset >= 0 ? offset
                                     : -offset * cols,
                       cols + 1, max_i64(len, 0));
}

static void lower_diagonal(Lower *l) {
    Source x = source(l);
    bool trace = l->cur->op;
    int d0 = trace ? 0 : lower_dim_arg(l, "dim1", 0, x.s.ndim), d1 = trace ? 1 : lower_dim_arg(l, "dim2", 1, x.s.ndim);
    int64_t offset = trace ? 0 : lower_int(l, "offset", 0);
    if (!lower_failed(l) && (d0 == d1 || x.s.ndim < 2)) lower_invalid(l, "a diagonal of %d dims", x.s.ndim);
    if (lower_failed(l)) return;
    ValueId v = diagonal_value(l, lower_in(l, "self"), d0, d1, offset);
    if (trace)
        lower_out(l, 0, build_sum_all(&l->b, v));
    else if (!lower_failed(l))
        lower_out_handle(l, 0, lower_new_opaque(l, x.t, v));
}

// Windows of `size` every `step`: a new last dim.
static void lower_unfold(Lower *l) {
    Source x = source(l);
    int dim = lower_dim_arg(l, "dimension", 0, x.s.ndim);
    int64_t size = lower_int(l, "size", 1), step = lower_int(l, "step", 1), n = x.s.ndim ? x.s.dim[dim] : 0;
    if (!lower_failed(l) && (size < 0 || size > n || step < 1))
        lower_invalid(l, "windows of %lld in a dim of %lld", (long long)size, (long long)n);
    if (lower_failed(l)) return;
    int64_t count = (n - size) / step + 1;
    ValueId at = build_iota(&l->b, SHAPE(count, 1), 0, 0, step, DT_I64), in = build_iota(&l->b, SHAPE(1, size), 1, 0, 1, DT_I64);
    ValueId v = lower_take(l, lower_in(l, "self"), dim, lower_binary(l, OP_ADD, at, in));
    v = lower_move_dim(l, v, dim + 1, x.s.ndim);
    if (!lower_failed(l)) lower_out_handle(l, 0, lower_new_opaque(l, x.t, v));
}

static void lower_as_strided(Lower *l) { lower_refuse(l, "a view by strides; use slices, views and expand"); }

const LowerRow lower_rows_shape[] = {
    {"view", lower_reshape, SHARES},
    {"_unsafe_view", lower_reshape, SHARES},
    {"reshape", lower_reshape, SHARES_MAYBE},
    {"_reshape_alias", lower_reshape, SHARES},
    {"view_as", lower_reshape_as, SHARES},
    {"reshape_as", lower_reshape_as, SHARES_MAYBE},
    {"flatten", lower_flatten, FLATTEN},
    {"ravel", lower_flatten, RAVEL},
    {"unflatten", lower_unflatten, 0},
    {"unsqueeze", lower_unsqueeze, 0},
    {"unsqueeze_", lower_unsqueeze, 0},
    {"squeeze", lower_squeeze, 0},
    {"squeeze_", lower_squeeze, 0},
    {"atleast_1d", lower_at_least, AT_LEAST_1},
    {"atleast_2d", lower_at_least, AT_LEAST_2},
    {"atleast_3d", lower_at_least, AT_LEAST_3},
    {"permute", lower_permute, 0},
    {"transpose", lower_transpose, SWAP_NAMED},
    {"transpose_", lower_transpose, SWAP_NAMED},
    {"swapaxes", lower_transpose, SWAP_NAMED},
    {"swapdims", lower_transpose, SWAP_NAMED},
    {"t", lower_transpose, SWAP_T},
    {"t_", lower_transpose, SWAP_T},
    {"mT", lower_transpose, SWAP_MT},
    {"adjoint", lower_transpose, SWAP_MT},
    {"numpy_T", lower_transpose, SWAP_ALL},
    {"movedim", lower_movedim, 0},
    {"moveaxis", lower_movedim, 0},
    {"expand", lower_expand, 0},
    {"broadcast_to", lower_expand, 0},
    {"expand_as", lower_expand_as, 0},
    {"slice", lower_slice, 0},
    {"narrow", lower_narrow, 0},
    {"select", lower_select, 0},
    {"diagonal", lower_diagonal, 0},
    {"trace", lower_diagonal, 1},
    {"unfold", lower_unfold, 0},
    {"as_strided", lower_as_strided, 0},
    {NULL, NULL, 0},
};
