// Reading and writing by index tensors: index, index_put, and bool masks that write.
#include "import/lower.h"

// x[i0, :, i1, ...]: which dims have an index tensor, and the index tensors broadcast together.
typedef struct Indexing {
    int k;                   // index tensors
    int dim[MAX_DIMS];       // ascending
    ValueId idx[MAX_DIMS];   // of the common shape, wrapped into range
    Shape shape;             // the common shape
    bool adjacent;           // the result's index dims come where dim[0] was; else in front
} Indexing;

static bool read_indices(Lower *l, Shape s, Indexing *x) {
    int32_t *t;
    int n = lower_in_list(l, "indices", &t);
    *x = (Indexing){.adjacent = true};
    if (lower_failed(l)) return false;
    if (n > s.ndim) lower_invalid(l, "%d indices for %d dims", n, s.ndim);
    for (int i = 0; i < n && !lower_failed(l); i++) {
        if (t[i] < 0) continue;
        ValueId v = lower_read(l, t[i]);
        if (!lower_failed(l) && LDTYPE(l, v) != DT_I64)
            lower_refuse(
                l,
                "selection by a bool mask, whose result size depends on the data; use torch.where, or ignore_index in the loss");
        if (lower_failed(l) || !lower_broadcast(l, x->shape, LSHAPE(l, v), &x->shape)) return false;
        if (x->k && x->dim[x->k - 1] != i - 1) x->adjacent = false;
        x->dim[x->k] = i;
        x->idx[x->k++] = v;
    }
    if (!lower_failed(l) && x->k == 0) lower_invalid(l, "no index tensor");
    if (!lower_failed(l) && s.ndim - x->k + x->shape.ndim > MAX_DIMS)
        lower_refuse(l, "indexing that makes more than %d dims", MAX_DIMS);
    for (int i = 0; i < x->k && !lower_failed(l); i++) x->idx[i] = lower_wrap_index(l, x->idx[i], s.dim[x->dim[i]]);
    return !lower_failed(l);
}

// Position in the merged indexed dims, row-major.
static ValueId linear_index(Lower *l, const Indexing *x, Shape s) {
    ValueId lin = x->idx[0];
    for (int i = 1; i < x->k; i++) {
        lin = lower_scalar(l, OP_MUL, lin, (double)s.dim[x->dim[i]]);
        lin = lower_binary(l, OP_ADD, lin, x->idx[i]);
    }
    return build_broadcast(&l->b, lin, x->shape);
}

// dims[] that bring the indexed dims to the front, and the shape with them merged into one.
static Shape front_order(const Indexing *x, Shape s, int *dims) {
    bool indexed[MAX_DIMS] = {false};
    Shape merged = {.ndim = 1, .dim = {1}};
    int at = 0;
    for (int i = 0; i < x->k; i++) {
        indexed[x->dim[i]] = true;
        dims[at++] = x->dim[i];
        merged.dim[0] *= s.dim[x->dim[i]];
    }
    for (int i = 0; i < s.ndim; i++) {
        if (indexed[i]) continue;
        dims[at++] = i;
        merged.dim[merged.ndim++] = s.dim[i];
    }
    return merged;
}

// [idx..., rest...] -> the index dims where they belong in the result; or back.
static ValueId place_index_dims(Lower *l, ValueId y, const Indexing *x, bool back) {
    int k = x->shape.ndim, n = LSHAPE(l, y).ndim, before = x->adjacent ? x->dim[0] : 0, dims[MAX_DIMS], inverse[MAX_DIMS], at = 0;
    if (lower_failed(l) || before == 0) return y;
    for (int i = 0; i < before; i++) dims[at++] = k + i;
    for (int i = 0; i < k; i++) dims[at++] = i;
    for (int i = k + before; i < n; i++) dims[at++] = i;
    for (int i = 0; i < n; i++) inverse[dims[i]] = i;
    return build_permute(&l->b, y, back ? inverse : dims);
}

static ValueId index_value(Lower *l, ValueId x, const Indexing *ix) {
    Shape s = LSHAPE(l, x);
    int dims[MAX_DIMS];
    Shape merged = front_order(ix, s, dims);
    ValueId lin = linear_index(l, ix, s);
    if (ix->k == 1) return lower_take(l, x, ix->dim[0], lin);
    ValueId table = build_reshape(&l->b, build_permute(&l->b, x, dims), merged);
    return place_index_dims(l, lower_take(l, table, 0, lin), ix, false);
}

static void lower_index(Lower *l) {
    ValueId x = lower_in(l, "self");
    Indexing ix;
    if (lower_failed(l) || !read_indices(l, LSHAPE(l, x), &ix)) return;
    lower_out(l, 0, index_value(l, x, &ix));
}

static ValueId put_rows(Lower *l, ValueId table, ValueId idx, ValueId rows, bool accumulate) {
    Attr a = attr_i(ATTR_ACCUMULATE, accumulate);
    return build(&l->b, OP_INDEX_PUT, 3, (ValueId[]){table, idx, rows}, 1, &a);
}

static ValueId index_put_value(Lower *l, ValueId x, const Indexing *ix, ValueId v, bool accumulate) {
    Builder *b = &l->b;
    Shape s = LSHAPE(l, x), result = {0};
    int dims[MAX_DIMS], inverse[MAX_DIMS];
    Shape merged = front_order(ix, s, dims);
    int k = ix->shape.ndim, rest = merged.ndim - 1, before = ix->adjacent ? ix->dim[0] : 0;
    // v has the shape that reading at these indices would give
    for (int i = 0; i < before; i++) result.dim[result.ndim++] = merged.dim[1 + i];
    for (int i = 0; i < k; i++) result.dim[result.ndim++] = ix->shape.dim[i];
    for (int i = before; i < rest; i++) result.dim[result.ndim++] = merged.dim[1 + i];
    v = place_index_dims(l, lower_broadcast_like(l, lower_cast(l, v, LDTYPE(l, x)), result), ix, true);
    int64_t n = shape_numel(&ix->shape);
    Shape rows = merged, front = {.ndim = s.ndim};
    rows.dim[0] = n;
    for (int i = 0; i < s.ndim; i++) {
        front.dim[i] = s.dim[dims[i]];
        inverse[dims[i]] = i;
    }
    ValueId table = build_reshape(b, build_permute(b, x, dims), merged);
    ValueId lin = build_reshape(b, linear_index(l, ix, s), SHAPE(n));
    ValueId y = put_rows(l, table, lin, build_reshape(b, v, rows), accumulate);
    return build_permute(b, build_reshape(b, y, front), inverse);
}

// x[mask] = v with one value for all places is a choice; more values would be dealt out in order of the data.
static bool put_by_mask(Lower *l, ValueId x, bool accumulate) {
    int32_t *t;
    int n = lower_in_list(l, "indices", &t);
    if (lower_failed(l) || n != 1 || t[0] < 0) return false;
    ValueId m = lower_read(l, t[0]), v = lower_in(l, "values");
    if (lower_failed(l) || LDTYPE(l, m) != DT_BOOL) return false;
    Shape s = LSHAPE(l, x), sm = LSHAPE(l, m), sv = LSHAPE(l, v);
    bool fits = sm.ndim <= s.ndim;
    for (int i = 0; i < sm.ndim && fits; i++) fits = sm.dim[i] == s.dim[i];
    if (!fits) lower_invalid(l, "a mask that does not have the tensor's leading dims");
    if (sv.ndim > s.ndim - sm.ndim && lower_numel(l, sv) != 1)
        lower_refuse(l, "writing several values by a bool mask; write one value, or use torch.where");
    Shape wide = {.ndim = s.ndim};
    for (int i = 0; i < s.ndim; i++) wide.dim[i] = i < sm.ndim ? sm.dim[i] : 1;
    m = build_reshape(&l->b, m, wide);
    if (!lower_failed(l) && lower_numel(l, sv) == 1) v = build_reshape(&l->b, v, SHAPE0);
    v = lower_cast(l, v, LDTYPE(l, x));
    lower_out(l, 0, lower_where(l, m, accumulate ? lower_binary(l, OP_ADD, x, v) : v, x));
    return true;
}

static void lower_index_put(Lower *l) {
    ValueId x = lower_in(l, "self");
    bool accumulate = lower_bool(l, "accumulate", false);
    lower_ignore(l, "unsafe");
    if (lower_failed(l) || put_by_mask(l, x, accumulate) || lower_failed(l)) return;
    Indexing ix;
    if (!read_indices(l, LSHAPE(l, x), &ix)) return;
    lower_out(l, 0, index_put_value(l, x, &ix, lower_in(l, "values"), accumulate));
}

// index_add, index_copy, index_fill along one dim.
enum { ROWS_ADD, ROWS_COPY, ROWS_FILL };
static void lower_index_rows(Lower *l) {
    ValueId x = lower_in(l, "self"), idx = lower_in(l, "index"), v;
    Shape s = LSHAPE(l, x);
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    if (l->cur->op == ROWS_FILL)
        v = lower_operand(l, "value");
    else
        v = lower_in(l, "source");
    double alpha = l->cur->op == ROWS_ADD ? lower_float(l, "alpha", 1) : 1;
    if (!lower_failed(l) && (s.ndim == 0 || LDTYPE(l, idx) != DT_I64)) lower_invalid(l, "an index into no dim");
    if (lower_failed(l)) return;
    v = lower_cast(l, v, LDTYPE(l, x));
    if (alpha != 1) v = lower_scalar(l, OP_MUL, v, alpha);
    Indexing ix = {.k = 1, .dim = {dim}, .adjacent = true};
    ix.shape = SHAPE(lower_numel(l, LSHAPE(l, idx)));
    ix.idx[0] = lower_wrap_index(l, build_reshape(&l->b, idx, ix.shape), s.dim[dim]);
    if (!lower_failed(l)) lower_out(l, 0, index_put_value(l, x, &ix, v, l->cur->op == ROWS_ADD));
}

const LowerRow lower_rows_index[] = {
    {"index", lower_index, 0},
    {"_unsafe_index", lower_index, 0},
    {"index_put", lower_index_put, 0},
    {"_index_put_impl", lower_index_put, 0},
    {"_unsafe_index_put", lower_index_put, 0},
    {"index_add", lower_index_rows, ROWS_ADD},
    {"index_copy", lower_index_rows, ROWS_COPY},
    {"index_fill", lower_index_rows, ROWS_FILL},
    {NULL, NULL, 0},
};
