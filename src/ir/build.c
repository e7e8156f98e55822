// The Builder: see build.h. Every function is a thin spelling of `build`, which remembers the first error.
#include "ir/build.h"

#include "ops/op.h"

void build_multi(Builder *b, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr, int nout, ValueId *out) {
    for (int i = 0; i < nout; i++) out[i] = NO_VALUE;
    if (b->status != ST_OK) return;
    for (int i = 0; i < nin; i++) CHECK(in[i] >= 0, "operand %d of %s is missing", i, op_name(op));
    NodeId id;
    b->status = graph_add(b->g, op, nin, in, nattr, attr, b->source, b->phase, &id, b->d);
    if (b->status != ST_OK) return;
    Node *n = graph_node(b->g, id);
    n->note = b->note;
    for (int i = 0; i < nout && i < n->nout; i++) out[i] = n->out[i];
}

ValueId build(Builder *b, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    ValueId out;
    build_multi(b, op, nin, in, nattr, attr, 1, &out);
    return out;
}

ValueId build_unary(Builder *b, OpKind op, ValueId x) { return build(b, op, 1, &x, 0, NULL); }

ValueId build_binary(Builder *b, OpKind op, ValueId x, ValueId y) { return build(b, op, 2, (ValueId[]){x, y}, 0, NULL); }

ValueId build_where(Builder *b, ValueId c, ValueId x, ValueId y) { return build(b, OP_WHERE, 3, (ValueId[]){c, x, y}, 0, NULL); }

ValueId build_cast(Builder *b, ValueId x, DType t) {
    if (b->status != ST_OK || build_dtype(b, x) == t) return x;
    Attr a = attr_i(ATTR_DTYPE, t);
    return build(b, OP_CAST, 1, &x, 1, &a);
}

// ---- sources -----------------------------------------------------------------------------------------------------------
ValueId build_full(Builder *b, Shape s, DType t, double v) {
    Attr a[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DTYPE, t), attr_f(ATTR_VALUE, v)};
    return build(b, OP_FULL, 0, NULL, 3, a);
}

ValueId build_scalar(Builder *b, DType t, double v) { return build_full(b, SHAPE0, t, v); }

ValueId build_iota(Builder *b, Shape s, int dim, int64_t start, int64_t step, DType t) {
    Attr a[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DIM, dim), attr_i(ATTR_START, start), attr_i(ATTR_STEP, step),
                attr_i(ATTR_DTYPE, t)};
    return build(b, OP_IOTA, 0, NULL, 5, a);
}

ValueId build_binary_scalar(Builder *b, OpKind op, ValueId x, double v) {
    if (b->status != ST_OK) return NO_VALUE;
    return build_binary(b, op, x, build_scalar(b, build_dtype(b, x), v));
}

// ---- movement ----------------------------------------------------------------------------------------------------------
ValueId build_reshape(Builder *b, ValueId x, Shape s) {
    if (b->status != ST_OK) return NO_VALUE;
    if (shape_equal(graph_shape(b->g, x), &s)) return x;
    Attr a = attr_ints(ATTR_SHAPE, s.ndim, s.dim);
    return build(b, OP_RESHAPE, 1, &x, 1, &a);
}

ValueId build_permute(Builder *b, ValueId x, const int *dims) {
    if (b->status != ST_OK) return NO_VALUE;
    int ndim = graph_shape(b->g, x)->ndim;
    int64_t order[MAX_DIMS];
    bool identity = true;
    for (int i = 0; i < ndim; i++) {
        order[i] = dims[i];
        identity = identity && dims[i] == i;
    }
    if (identity) return x;
    Attr a = attr_ints(ATTR_DIMS, ndim, order);
    return build(b, OP_PERMUTE, 1, &x, 1, &a);
}

ValueId build_transpose(Builder *b, ValueId x, int d0, int d1) {
    if (b->status != ST_OK) return NO_VALUE;
    int ndim = graph_shape(b->g, x)->ndim;
    CHECK(d0 >= 0 && d0 < ndim && d1 >= 0 && d1 < ndim, "transpose of dims %d and %d of %d", d0, d1, ndim);
    int dims[MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = i == d0 ? d1 : i == d1 ? d0 : i;
    return build_permute(b, x, dims);
}

ValueId build_broadcast(Builder *b, ValueId x, Shape s) {
    if (b->status != ST_OK) return NO_VALUE;
    Shape from = *graph_shape(b->g, x);
    if (shape_equal(&from, &s)) return x;
    if (from.ndim < s.ndim) {
        Shape wide = {.ndim = s.ndim};
        int lead = s.ndim - from.ndim;
        for (int i = 0; i < s.ndim; i++) wide.dim[i] = i < lead ? 1 : from.dim[i - lead];
        x = build_reshape(b, x, wide);
        if (shape_equal(&wide, &s)) return x;
    }
    Attr a = attr_ints(ATTR_SHAPE, s.ndim, s.dim);
    return build(b, OP_BROADCAST, 1, &x, 1, &a);
}

ValueId build_slice(Builder *b, ValueId x, int dim, int64_t start, int64_t step, int64_t length) {
    if (b->status != ST_OK) return NO_VALUE;
    const Shape *s = graph_shape(b->g, x);
    if (dim >= 0 && dim < s->ndim && start == 0 && step == 1 && length == s->dim[dim]) return x;
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_START, start), attr_i(ATTR_STEP, step), attr_i(ATTR_LENGTH, length)};
    return build(b, OP_SLICE, 1, &x, 4, a);
}

ValueId build_pad(Builder *b, ValueId x, int dim, int64_t lo, int64_t hi, double v) {
    if (b->status != ST_OK || (lo == 0 && hi == 0)) return b->status != ST_OK ? NO_VALUE : x;
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_LO, lo), attr_i(ATTR_HI, hi), attr_f(ATTR_VALUE, v)};
    return build(b, OP_PAD, 1, &x, 4, a);
}

ValueId build_concat(Builder *b, int n, const ValueId *x, int dim) {
    if (b->status != ST_OK) return NO_VALUE;
    if (n == 1) return x[0];
    Attr a = attr_i(ATTR_DIM, dim);
    return build(b, OP_CONCAT, n, x, 1, &a);
}

ValueId build_squeeze(Builder *b, ValueId x, int dim) {
    if (b->status != ST_OK) return NO_VALUE;
    Shape s = *graph_shape(b->g, x);
    CHECK(dim >= 0 && dim < s.ndim && s.dim[dim] == 1, "squeeze of dim %d", dim);
    for (int i = dim; i + 1 < s.ndim; i++) s.dim[i] = s.dim[i + 1];
    s.ndim--;
    return build_reshape(b, x, shape_of(s.ndim, s.dim));
}

ValueId build_unsqueeze(Builder *b, ValueId x, int dim) {
    if (b->status != ST_OK) return NO_VALUE;
    Shape s = *graph_shape(b->g, x);
    CHECK(dim >= 0 && dim <= s.ndim, "unsqueeze at dim %d of %d", dim, s.ndim);
    if (s.ndim == MAX_DIMS) {
        b->status = infer_error(b->d, "a value of more than %d dims is needed here", MAX_DIMS);
        return NO_VALUE;
    }
    for (int i = s.ndim; i > dim; i--) s.dim[i] = s.dim[i - 1];
    s.dim[dim] = 1;
    s.ndim++;
    return build_reshape(b, x, s);
}

// ---- reductions and products -------------------------------------------------------------------------------------------
ValueId build_sum(Builder *b, ValueId x, int ndims, const int *dims) {
    if (b->status != ST_OK || ndims == 0) return b->status != ST_OK ? NO_VALUE : x;
    CHECK(ndims <= MAX_DIMS, "sum over %d dims", ndims);
    int64_t list[MAX_DIMS];
    for (int i = 0; i < ndims; i++) list[i] = dims[i];
    Attr a = attr_ints(ATTR_DIMS, ndims, list);
    return build(b, OP_SUM, 1, &x, 1, &a);
}

ValueId build_sum_all(Builder *b, ValueId x) {
    if (b->status != ST_OK) return NO_VALUE;
    int dims[MAX_DIMS], ndim = graph_shape(b->g, x)->ndim;
    for (int i = 0; i < ndim; i++) dims[i] = i;
    return build_reshape(b, build_sum(b, x, ndim, dims), SHAPE0);
}

ValueId build_reduce(Builder *b, OpKind op, ValueId x, int dim) {
    int64_t d = dim;
    Attr a = op == OP_LOGSUMEXP ? attr_i(ATTR_DIM, dim) : attr_ints(ATTR_DIMS, 1, &d);
    return build(b, op, 1, &x, 1, &a);
}

ValueId build_dot(Builder *b, ValueId x, ValueId y, int nbatch, int ncontract, bool trans_a, bool trans_b) {
    Attr a[] = {attr_i(ATTR_NBATCH, nbatch), attr_i(ATTR_NCONTRACT, ncontract), attr_i(ATTR_TRANS_A, trans_a),
                attr_i(ATTR_TRANS_B, trans_b)};
    return build(b, OP_DOT, 2, (ValueId[]){x, y}, 4, a);
}

ValueId build_sum_to(Builder *b, ValueId x, Shape s) {
    if (b->status != ST_OK) return NO_VALUE;
    Shape from = *graph_shape(b->g, x);
    int lead = from.ndim - s.ndim, ndims = 0, dims[MAX_DIMS];
    CHECK(lead >= 0, "sum to a shape of more dims");
    for (int i = 0; i < from.ndim; i++) {
        bool gone = i < lead || (s.dim[i - lead] == 1 && from.dim[i] != 1);
        if (gone && from.dim[i] != 1) dims[ndims++] = i;
    }
    return build_reshape(b, build_sum(b, x, ndims, dims), s);
}
