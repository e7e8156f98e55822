// Reading and writing at computed places: embedding, pick, gather, scatter-add, index-put.
#include "ops/rules.h"

// ---- shapes ------------------------------------------------------------------------------------------------------------
static Status want_ints(const Graph *g, const Node *n, int i, Diag *d) { return rule_type(g, n, i, TYPE_INT, d); }

// [idx dims..., rest...] where rest = dims 1.. of the table.
static Status rows_shape(const Node *n, const Shape *idx, const Shape *table, Shape *out, Diag *d) {
    if (idx->ndim + table->ndim - 1 > MAX_DIMS)
        return infer_error(d, "%s: a result of more than %d dims", op_name(n->op), MAX_DIMS);
    *out = *idx;
    for (int i = 1; i < table->ndim; i++) out->dim[out->ndim++] = table->dim[i];
    return rule_check_shape(out, d);
}

static Status infer_embedding(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    Shape s;
    TRY(rule_nin(n, 2, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    TRY(want_ints(g, n, 1, d));
    if (in_shape(g, n, 0)->ndim < 1) return infer_error(d, "embedding: the table must have rows");
    TRY(rows_shape(n, in_shape(g, n, 1), in_shape(g, n, 0), &s, d));
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

static Status infer_embedding_grad(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int64_t nrows;
    TRY(rule_nin(n, 2, d));
    TRY(want_ints(g, n, 0, d));
    TRY(rule_type(g, n, 1, TYPE_NUMBER, d));
    TRY(rule_int(n, ATTR_NROWS, 0, INT64_MAX / 16, &nrows, d));
    const Shape *idx = in_shape(g, n, 0), *src = in_shape(g, n, 1);
    bool fits = src->ndim >= idx->ndim;
    for (int i = 0; fits && i < idx->ndim; i++) fits = src->dim[i] == idx->dim[i];
    if (!fits)
        return infer_error(d, "embedding_grad: operand 1, %s, must begin with the index's dims %s", shape_text(src).s,
                           shape_text(idx).s);
    if (src->ndim - idx->ndim + 1 > MAX_DIMS) return infer_error(d, "embedding_grad: a result of more than %d dims", MAX_DIMS);
    Shape s = {.ndim = 1, .dim = {nrows}};
    for (int i = idx->ndim; i < src->ndim; i++) s.dim[s.ndim++] = src->dim[i];
    TRY(rule_check_shape(&s, d));
    DType t;
    TRY(rule_wide(n, in_dtype(g, n, 1), &t, d));
    return rule_result(nout, out, t, s);
}

static Status infer_pick(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 2, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    TRY(want_ints(g, n, 1, d));
    Shape x = *in_shape(g, n, 0);
    if (x.ndim < 1) return infer_error(d, "pick from a scalar");
    Shape s = shape_of(x.ndim - 1, x.dim);
    if (!shape_equal(&s, in_shape(g, n, 1)))
        return infer_error(d, "pick: the index must be %s for values of %s, not %s", shape_text(&s).s, shape_text(&x).s,
                           shape_text(in_shape(g, n, 1)).s);
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

// Operand `small` may be no larger than operand `large` in any dim but `except`.
static Status want_within(const Graph *g, const Node *n, int small, int large, int except, Diag *d) {
    const Shape *a = in_shape(g, n, small), *b = in_shape(g, n, large);
    bool fits = a->ndim == b->ndim;
    for (int i = 0; fits && i < a->ndim; i++) fits = i == except || a->dim[i] <= b->dim[i];
    if (fits) return ST_OK;
    return infer_error(d, "%s: operand %d, %s, does not lie within operand %d, %s", op_name(n->op), small, shape_text(a).s, large,
                       shape_text(b).s);
}

static Status infer_gather(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    TRY(rule_nin(n, 2, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    TRY(want_ints(g, n, 1, d));
    TRY(rule_dim(n, in_shape(g, n, 0)->ndim, &dim, d));
    TRY(want_within(g, n, 1, 0, dim, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 1));
}

static Status infer_scatter_add(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    TRY(rule_nin(n, 3, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    TRY(want_ints(g, n, 1, d));
    TRY(rule_same_type(g, n, 0, 2, d));
    TRY(rule_dim(n, in_shape(g, n, 0)->ndim, &dim, d));
    TRY(want_within(g, n, 1, 0, dim, d));
    TRY(want_within(g, n, 1, 2, -1, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

static Status infer_index_put(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 3, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    TRY(want_ints(g, n, 1, d));
    TRY(rule_same_type(g, n, 0, 2, d));
    const Shape *x = in_shape(g, n, 0), *idx = in_shape(g, n, 1), *src = in_shape(g, n, 2);
    if (node_int_or(n, ATTR_ACCUMULATE, 0)) TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    bool fits = x->ndim >= 1 && idx->ndim == 1 && src->ndim == x->ndim && src->dim[0] == idx->dim[0];
    for (int i = 1; fits && i < x->ndim; i++) fits = x->dim[i] == src->dim[i];
    if (!fits)
        return infer_error(d, "index_put: rows of %s, index %s and source %s do not fit together", shape_text(x).s,
                           shape_text(idx).s, shape_text(src).s);
    return rule_result(nout, out, in_dtype(g, n, 0), *x);
}

// ---- gradients ---------------------------------------------------------------------------------------------------------
static ValueId zeros_like(Builder *b, ValueId x) { return build_full(b, build_shape(b, x), build_dtype(b, x), 0); }

static ValueId take_rows(Builder *b, ValueId table, ValueId idx) { return build_binary(b, OP_EMBEDDING, table, idx); }

static Status grad_embedding(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    Attr a[] = {attr_i(ATTR_NROWS, build_shape(c->b, c->n->in[0]).dim[0]), attr_i(ATTR_SKIP, node_int_or(c->n, ATTR_SKIP, -1))};
    c->gin[0] = build(c->b, OP_EMBEDDING_GRAD, 2, (ValueId[]){c->n->in[1], c->gout[0]}, 2, a);
    return c->b->status;
}

// Row i of the source was added to row idx[i], or dropped if that is `skip`.
static Status grad_embedding_grad(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[1]) return ST_OK;
    Builder *b = c->b;
    ValueId idx = c->n->in[0], rows = take_rows(b, c->gout[0], idx);
    int64_t skip = node_int_or(c->n, ATTR_SKIP, -1);
    if (skip >= 0) {
        Shape column = build_shape(b, idx);
        int rest = build_shape(b, c->n->in[1]).ndim - column.ndim;
        for (int i = 0; i < rest; i++) column.dim[column.ndim++] = 1;
        ValueId dropped = build_binary_scalar(b, OP_EQ, build_reshape(b, idx, column), (double)skip);
        rows = build_where(b, dropped, build_scalar(b, build_dtype(b, rows), 0), rows);
    }
    c->gin[1] = rows;
    return b->status;
}

// x [..., V]: g where the position along V is the index, else 0.
static Status grad_pick(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    Builder *b = c->b;
    Shape x = build_shape(b, c->n->in[0]), line = {.ndim = x.ndim};
    int last = x.ndim - 1;
    for (int i = 0; i < x.ndim; i++) line.dim[i] = i == last ? x.dim[last] : 1;
    ValueId here = build_binary(b, OP_EQ, build_iota(b, line, last, 0, 1, DT_I64), build_unsqueeze(b, c->n->in[1], last));
    ValueId g = build_unsqueeze(b, c->gout[0], last);
    c->gin[0] = build_where(b, here, g, build_scalar(b, build_dtype(b, g), 0));
    return b->status;
}

static ValueId scatter_add(Builder *b, ValueId x, ValueId idx, ValueId src, int64_t dim) {
    Attr a = attr_i(ATTR_DIM, dim);
    return build(b, OP_SCATTER_ADD, 3, (ValueId[]){x, idx, src}, 1, &a);
}

static Status grad_gather(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    c->gin[0] = scatter_add(c->b, zeros_like(c->b, c->n->in[0]), c->n->in[1], c->gout[0], node_int(c->n, ATTR_DIM));
    return c->b->status;
}

static Status grad_scatter_add(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    if (c->want[0]) c->gin[0] = c->gout[0];
    if (!c->want[2]) return ST_OK;
    Attr a = attr_i(ATTR_DIM, node_int(c->n, ATTR_DIM));
    ValueId g = build(b, OP_GATHER, 2, (ValueId[]){c->gout[0], c->n->in[1]}, 1, &a);
    Shape idx = build_shape(b, c->n->in[1]), src = build_shape(b, c->n->in[2]);
    for (int i = 0; i < src.ndim; i++) g = build_pad(b, g, i, 0, src.dim[i] - idx.dim[i], 0);  // what the index does not reach
    c->gin[2] = g;
    return b->status;
}

static Status grad_index_put(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    ValueId g = c->gout[0], idx = c->n->in[1];
    if (c->want[0] && node_int_or(c->n, ATTR_ACCUMULATE, 0)) {
        c->gin[0] = g;
    } else if (c->want[0]) {
        Attr a = attr_i(ATTR_ACCUMULATE, 0);
        c->gin[0] = build(b, OP_INDEX_PUT, 3, (ValueId[]){g, idx, zeros_like(b, c->n->in[2])}, 1, &a);
    }
    if (c->want[2]) c->gin[2] = take_rows(b, g, idx);
    return b->status;
}

// ---- sharding ----------------------------------------------------------------------------------------------------------
// Axes of the index come first (0..), those of a row from ROW_AXIS on.
enum { ROW_AXIS = MAX_DIMS };

static int embedding_axis(const Graph *g, const Node *n, int slot, int dim) {
    if (slot == 0) return dim == 0 ? NO_AXIS : ROW_AXIS + dim - 1;
    int nidx = in_shape(g, n, 1)->ndim;
    return dim < nidx ? dim : ROW_AXIS + dim - nidx;
}

// Rows are taken linearly from the table: a table that is a sum gives rows that are.
static bool shard_embedding(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, embedding_axis, NULL, row);
    if (slot == 1) return false;
    if (!row_terms(g, n, p, row)) return false;
    row->in[1] = REPLICATE;
    return true;
}

static int embedding_grad_axis(const Graph *g, const Node *n, int slot, int dim) {
    if (slot == ~0) return dim == 0 ? NO_AXIS : ROW_AXIS + dim - 1;
    int nidx = in_shape(g, n, 0)->ndim;
    return dim < nidx ? dim : ROW_AXIS + dim - nidx;
}

static bool shard_embedding_grad(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, embedding_grad_axis, &PARTIAL_SUM, row);
    if (slot == 0 || p.reduce != RED_SUM) return false;
    if (!row_terms(g, n, p, row)) return false;
    row->in[0] = REPLICATE;
    return true;
}

static int pick_axis(const Graph *g, const Node *n, int slot, int dim) {
    return slot == 0 && dim == in_shape(g, n, 0)->ndim - 1 ? NO_AXIS : dim;
}

static bool shard_pick(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, pick_axis, NULL, row);
    if (slot == 1 || p.reduce != RED_SUM) return false;
    if (!row_terms(g, n, p, row)) return false;
    row->in[1] = REPLICATE;
    return true;
}

// gather, scatter_add: a dim other than the indexed one, if all operands have the same size there. Along the indexed dim a
// gather's index and result may be divided too: each rank reads its own from the whole.
static int indexed_axis(const Graph *g, const Node *n, int slot, int dim) {
    if (dim == node_int(n, ATTR_DIM)) return n->op == OP_GATHER && slot != 0 ? dim : NO_AXIS;
    for (int i = 1; i < n->nin; i++)
        if (in_shape(g, n, i)->dim[dim] != in_shape(g, n, 0)->dim[dim]) return NO_AXIS;
    return dim;
}

static bool shard_indexed(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, indexed_axis, NULL, row);
    if (slot == 1 || p.reduce != RED_SUM) return false;  // linear in the values, all of which are sums then
    if (!row_terms(g, n, p, row)) return false;
    row->in[1] = REPLICATE;
    return true;
}

static int index_put_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)n;
    return slot == 1 || dim == 0 ? NO_AXIS : dim;
}

static bool shard_index_put(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, index_put_axis, NULL, row);
    if (slot == 1 || p.reduce != RED_SUM) return false;
    if (!row_terms(g, n, p, row)) return false;
    row->in[1] = REPLICATE;
    return true;
}

// ---- cost --------------------------------------------------------------------------------------------------------------
// Only the rows that are read count, not the table.
static void cost_rows(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n;
    *c = (Cost){.nbytes = operand_nbytes(&in[1]) + 2 * operand_nbytes(&out[0])};
}

static void cost_gather(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n;
    *c = (Cost){.flops = operand_numel(&out[0]), .nbytes = operand_nbytes(&in[1]) + 2 * operand_nbytes(&out[0])};
}

static void cost_count(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = operand_numel(&in[0]);
}

// ---- records -----------------------------------------------------------------------------------------------------------
static const Sample embedding_samples[] = {
    {.label = "tokens", .nin = 2, .shape = {DIMS(9, 3), DIMS(2, 7)}, .dtype = {DT_F32, DT_I64}, .hi = {0, 9}},
    {.label = "padding index",
     .nin = 2,
     .shape = {DIMS(4, 2), DIMS(6)},
     .dtype = {DT_F32, DT_I64},
     .hi = {0, 4},
     .nattr = 1,
     .attr = {SAMPLE_I(SKIP, 1)}},
    {.label = "scalars, i64", .nin = 2, .shape = {DIMS(5), DIMS(7)}, .dtype = {DT_I64, DT_I64}, .lo = {-3, 0}, .hi = {4, 5}},
    {.label = "blocks as rows", .nin = 2, .shape = {DIMS(3, 5, 2), DIMS(1)}, .dtype = {DT_F32, DT_I64}, .hi = {0, 3}},
};
const OpInfo op_info_EMBEDDING = {
    .infer = infer_embedding, .grad = grad_embedding, .shard = shard_embedding, .cost = cost_rows, SAMPLES(embedding_samples)};

static const Sample embedding_grad_samples[] = {
    {.label = "tokens",
     .nin = 2,
     .shape = {DIMS(2, 7), DIMS(2, 7, 3)},
     .dtype = {DT_I64, DT_F32},
     .hi = {5},
     .nattr = 1,
     .attr = {SAMPLE_I(NROWS, 6)}},
    {.label = "padding index",
     .nin = 2,
     .shape = {DIMS(6), DIMS(6, 5)},
     .dtype = {DT_I64, DT_F32},
     .hi = {4},
     .nattr = 2,
     .attr = {SAMPLE_I(NROWS, 4), SAMPLE_I(SKIP, 2)}},
    {.label = "scalars",
     .nin = 2,
     .shape = {DIMS(7), DIMS(7)},
     .dtype = {DT_I64, DT_F32},
     .hi = {3},
     .nattr = 1,
     .attr = {SAMPLE_I(NROWS, 3)}},
};
const OpInfo op_info_EMBEDDING_GRAD = {.infer = infer_embedding_grad,
                                       .grad = grad_embedding_grad,
                                       .shard = shard_embedding_grad,
                                       .cost = cost_rows,
                                       SAMPLES(embedding_grad_samples)};

static const Sample pick_samples[] = {
    {.label = "labels",
     .nin = 2,
     .shape = {DIMS(2, 7, 5), DIMS(2, 7)},
     .dtype = {DT_F32, DT_I64},
     .hi = {0, 5}},
    {.label = "flat", .nin = 2, .shape = {DIMS(6, 3), DIMS(6)}, .dtype = {DT_F32, DT_I64}, .hi = {0, 3}},
};
const OpInfo op_info_PICK = {
    .infer = infer_pick, .grad = grad_pick, .shard = shard_pick, .cost = cost_gather, SAMPLES(pick_samples)};

static const Sample gather_samples[] = {
    {.label = "last dim",
     .nin = 2,
     .shape = {DIMS(5, 6), DIMS(5, 2)},
     .dtype = {DT_F32, DT_I64},
     .hi = {0, 6},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "first dim, fewer columns",
     .nin = 2,
     .shape = {DIMS(3, 7), DIMS(4, 5)},
     .dtype = {DT_F32, DT_I64},
     .hi = {0, 3},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 0)}},
};
const OpInfo op_info_GATHER = {
    .infer = infer_gather, .grad = grad_gather, .shard = shard_indexed, .cost = cost_gather, SAMPLES(gather_samples)};

static const Sample scatter_add_samples[] = {
    {.label = "last dim",
     .nin = 3,
     .shape = {DIMS(5, 6), DIMS(5, 3), DIMS(5, 3)},
     .dtype = {DT_F32, DT_I64, DT_F32},
     .hi = {0, 6, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "larger source",
     .nin = 3,
     .shape = {DIMS(3, 7), DIMS(2, 5), DIMS(4, 6)},
     .dtype = {DT_F32, DT_I64, DT_F32},
     .hi = {0, 3, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 0)}},
};
const OpInfo op_info_SCATTER_ADD = {.infer = infer_scatter_add,
                                    .grad = grad_scatter_add,
                                    .shard = shard_indexed,
                                    .cost = cost_count,
                                    SAMPLES(scatter_add_samples)};

// Without accumulation one row only: of several writes to one row, which stays is not defined, and so neither is the gradient.
static const Sample index_put_samples[] = {
    {.label = "one row",
     .nin = 3,
     .shape = {DIMS(4, 5), DIMS(1), DIMS(1, 5)},
     .dtype = {DT_F32, DT_I64, DT_F32},
     .hi = {0, 4, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(ACCUMULATE, 0)}},
    {.label = "accumulate",
     .nin = 3,
     .shape = {DIMS(4, 5), DIMS(6), DIMS(6, 5)},
     .dtype = {DT_F32, DT_I64, DT_F32},
     .hi = {0, 4, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(ACCUMULATE, 1)}},
    {.label = "scalars",
     .nin = 3,
     .shape = {DIMS(7), DIMS(1), DIMS(1)},
     .dtype = {DT_I64, DT_I64, DT_I64},
     .lo = {-3, 0, 5},
     .hi = {4, 7, 9},
     .nattr = 1,
     .attr = {SAMPLE_I(ACCUMULATE, 0)}},
};
const OpInfo op_info_INDEX_PUT = {
    .infer = infer_index_put, .grad = grad_index_put, .shard = shard_index_put, .cost = cost_count, SAMPLES(index_put_samples)};
