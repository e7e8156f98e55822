// Lookups and scatters along one dim: embedding, gather, scatter, index_select; and what cannot be done because its size depends
// on the data.
#include "import/lower.h"

static void lower_embedding(Lower *l) {
    ValueId w = lower_in(l, "weight"), idx = lower_in(l, "indices");
    int64_t skip = lower_int(l, "padding_idx", -1);
    lower_ignore(l, "sparse");
    if (lower_bool(l, "scale_grad_by_freq", false)) lower_refuse(l, "scale_grad_by_freq");
    if (!lower_failed(l) && (LSHAPE(l, w).ndim != 2 || LDTYPE(l, idx) != DT_I64))
        lower_invalid(l, "an embedding table or index of a wrong type");
    Attr a = attr_i(ATTR_SKIP, skip < 0 ? -1 : skip);
    lower_out(l, 0, build(&l->b, OP_EMBEDDING, 2, (ValueId[]){w, idx}, 1, &a));
}

static void lower_index_select(Lower *l) {
    ValueId x = lower_in(l, "self"), idx = lower_in(l, "index");
    Shape s = LSHAPE(l, x);
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    if (!lower_failed(l) && s.ndim == 0) lower_invalid(l, "index_select of a 0-dim tensor");
    if (lower_failed(l)) return;
    idx = build_reshape(&l->b, lower_cast(l, idx, DT_I64), SHAPE(lower_numel(l, LSHAPE(l, idx))));
    lower_out(l, 0, lower_take(l, x, dim, idx));
}

// Elements of the flattened tensor.
static void lower_take_flat(Lower *l) {
    ValueId x = lower_in(l, "self"), idx = lower_in(l, "index");
    if (lower_failed(l)) return;
    int64_t n = lower_numel(l, LSHAPE(l, x));
    x = build_reshape(&l->b, x, SHAPE(n));
    lower_out(l, 0, lower_take(l, x, 0, lower_wrap_index(l, idx, n)));
}

static bool dim_and_index(Lower *l, ValueId x, int *dim, ValueId *idx, const char *index_name) {
    *idx = lower_in(l, index_name);
    *dim = lower_dim_arg(l, "dim", 0, LSHAPE(l, x).ndim);
    if (!lower_failed(l) && (LDTYPE(l, *idx) != DT_I64 || LSHAPE(l, x).ndim == 0 || LSHAPE(l, *idx).ndim != LSHAPE(l, x).ndim))
        lower_refuse(l, "an index that is not an integer tensor of as many dims (one or more) as the tensor");
    return !lower_failed(l);
}

static void lower_gather(Lower *l) {
    ValueId x = lower_in(l, "self"), idx;
    int dim;
    lower_ignore(l, "sparse_grad");
    if (!dim_and_index(l, x, &dim, &idx, "index")) return;
    Attr a = attr_i(ATTR_DIM, dim);
    lower_out(l, 0, build(&l->b, OP_GATHER, 2, (ValueId[]){x, idx}, 1, &a));
}

// gather with the other dims broadcast.
static void lower_take_along_dim(Lower *l) {
    ValueId x = lower_in(l, "self"), idx;
    int dim;
    if (!lower_has(l, "dim")) lower_refuse(l, "take_along_dim without dim");
    if (lower_failed(l) || !dim_and_index(l, x, &dim, &idx, "indices")) return;
    Shape sx = LSHAPE(l, x), si = LSHAPE(l, idx), both;
    int64_t nx = sx.dim[dim], ni = si.dim[dim];
    sx.dim[dim] = si.dim[dim] = 1;
    if (!lower_broadcast(l, sx, si, &both)) return;
    sx = si = both;
    sx.dim[dim] = nx;
    si.dim[dim] = ni;
    Attr a = attr_i(ATTR_DIM, dim);
    ValueId in[] = {build_broadcast(&l->b, x, sx), build_broadcast(&l->b, lower_wrap_index(l, idx, nx), si)};
    lower_out(l, 0, build(&l->b, OP_GATHER, 2, in, 1, &a));
}

// For each element of the index: its position in the flattened x, with coordinate `dim` replaced by the index.
static ValueId scatter_position(Lower *l, Shape x, ValueId idx, int dim) {
    Shape s = LSHAPE(l, idx);
    ValueId lin = NO_VALUE;
    for (int i = 0; i < s.ndim; i++) {
        Shape line = {.ndim = s.ndim};
        for (int k = 0; k < s.ndim; k++) line.dim[k] = k == i ? s.dim[i] : 1;
        ValueId at = i == dim ? idx : build_iota(&l->b, line, i, 0, 1, DT_I64);
        lin = i == 0 ? at : lower_binary(l, OP_ADD, lower_scalar(l, OP_MUL, lin, (double)x.dim[i]), at);
    }
    return build_reshape(&l->b, build_broadcast(&l->b, lin, s), SHAPE(lower_numel(l, s)));
}

static ValueId corner(Lower *l, ValueId v, Shape s) {  // v cut to the index's sizes
    for (int i = 0; i < s.ndim; i++) v = build_slice(&l->b, v, i, 0, 1, s.dim[i]);
    return v;
}

enum { SCATTER_SET, SCATTER_SUM };
static void lower_scatter(Lower *l) {
    ValueId x = lower_in(l, "self"), idx, v;
    int dim;
    const char *reduce = lower_str(l, "reduce", NULL);
    bool sum = l->cur->op == SCATTER_SUM || (reduce && (!strcmp(reduce, "add") || !strcmp(reduce, "sum")));
    if (reduce && !sum) lower_refuse(l, "scatter with reduction \"%s\"", reduce);
    if (!lower_bool(l, "include_self", true)) lower_refuse(l, "scatter_reduce without include_self");
    if (!dim_and_index(l, x, &dim, &idx, "index")) return;
    Shape s = LSHAPE(l, x), si = LSHAPE(l, idx);
    if (lower_has(l, "src"))
        v = corner(l, lower_in(l, "src"), si);
    else
        v = build_broadcast(&l->b, lower_operand(l, "value"), si);
    v = lower_cast(l, v, LDTYPE(l, x));
    if (sum) {
        Attr a = attr_i(ATTR_DIM, dim);
        lower_out(l, 0, build(&l->b, OP_SCATTER_ADD, 3, (ValueId[]){x, idx, v}, 1, &a));
        return;
    }
    Attr a = attr_i(ATTR_ACCUMULATE, 0);
    ValueId flat = build_reshape(&l->b, x, SHAPE(lower_numel(l, s))), at = scatter_position(l, s, idx, dim);
    if (lower_failed(l)) return;
    ValueId in[] = {flat, at, build_reshape(&l->b, v, SHAPE(lower_numel(l, si)))};
    lower_out(l, 0, build_reshape(&l->b, build(&l->b, OP_INDEX_PUT, 3, in, 1, &a), s));
}

static void lower_data_dependent(Lower *l) {
    lower_refuse(l,
                 "its result (or the program after it) depends on the data; use masks and torch.where, which keep sizes fixed");
}

const LowerRow lower_rows_select[] = {
    {"embedding", lower_embedding, 0},
    {"index_select", lower_index_select, 0},
    {"take", lower_take_flat, 0},
    {"gather", lower_gather, 0},
    {"take_along_dim", lower_take_along_dim, 0},
    {"scatter", lower_scatter, SCATTER_SET},
    {"scatter_add", lower_scatter, SCATTER_SUM},
    {"scatter_reduce", lower_scatter, SCATTER_SET},
    {"nonzero", lower_data_dependent, 0},
    {"nonzero_static", lower_data_dependent, 0},
    {"argwhere", lower_data_dependent, 0},
    {"masked_select", lower_data_dependent, 0},
    {"masked_scatter", lower_data_dependent, 0},
    {"item", lower_data_dependent, 0},
    {"_local_scalar_dense", lower_data_dependent, 0},
    {"_unique2", lower_data_dependent, 0},
    {"unique_dim", lower_data_dependent, 0},
    {"unique_consecutive", lower_data_dependent, 0},
    {"is_nonzero", lower_data_dependent, 0},
    {"equal", lower_data_dependent, 0},
    {NULL, NULL, 0},
};
