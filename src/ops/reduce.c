// Reductions (the reduced dim stays, with size 1) and scans.
#include "ops/rules.h"

// ---- shapes ------------------------------------------------------------------------------------------------------------
static Status infer_reduced(const Graph *g, const Node *n, DType t, bool empty_ok, int *nout, TypeOut *out, Diag *d) {
    Shape s = *in_shape(g, n, 0);
    bool marked[MAX_DIMS];
    TRY(rule_dims(n, s.ndim, marked, d));
    for (int i = 0; i < s.ndim; i++) {
        if (!marked[i]) continue;
        if (s.dim[i] == 0 && !empty_ok)
            return infer_error(d, "%s over dim %d of %s: nothing to choose from", op_name(n->op), i, shape_text(&s).s);
        s.dim[i] = 1;
    }
    return rule_result(nout, out, t, s);
}

static Status infer_sum(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    DType t = in_dtype(g, n, 0);
    return infer_reduced(g, n, t == DT_BOOL ? DT_I64 : t, true, nout, out, d);
}

static Status infer_amax(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    return infer_reduced(g, n, in_dtype(g, n, 0), false, nout, out, d);
}

static Status infer_logsumexp(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_FLOAT, d));
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    s.dim[dim] = 1;
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

static Status infer_cumsum(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    TRY(rule_dim(n, in_shape(g, n, 0)->ndim, &dim, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

// ---- gradients ---------------------------------------------------------------------------------------------------------
static Status grad_sum(GradCtx *c, Diag *d) {
    (void)d;
    if (c->want[0]) c->gin[0] = build_broadcast(c->b, c->gout[0], build_shape(c->b, c->n->in[0]));
    return c->b->status;
}

// All maxima share the cotangent in equal parts.
static Status grad_amax(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    Builder *b = c->b;
    ValueId x = c->n->in[0], g = c->gout[0], is_max = build_binary(b, OP_EQ, x, c->n->out[0]);
    const int64_t *list;
    int ndims = node_ints(c->n, ATTR_DIMS, &list), dims[MAX_DIMS];
    for (int i = 0; i < ndims; i++) dims[i] = (int)list[i];
    ValueId count = build_sum(b, build_cast(b, is_max, build_dtype(b, g)), ndims, dims);
    c->gin[0] = build_where(b, is_max, build_binary(b, OP_DIV, g, count), build_scalar(b, build_dtype(b, g), 0));
    return b->status;
}

// softmax(x) * g. A row of -inf everywhere gets NaN, as in PyTorch.
static Status grad_logsumexp(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    ValueId p = build_unary(c->b, OP_EXP, build_binary(c->b, OP_SUB, c->n->in[0], c->n->out[0]));
    c->gin[0] = build_binary(c->b, OP_MUL, p, c->gout[0]);
    return c->b->status;
}

static Status grad_cumsum(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    Attr a[] = {attr_i(ATTR_DIM, node_int(c->n, ATTR_DIM)), attr_i(ATTR_REVERSE, !node_int_or(c->n, ATTR_REVERSE, 0))};
    c->gin[0] = build(c->b, OP_CUMSUM, 1, &c->gout[0], 2, a);
    return c->b->status;
}

// ---- sharding ----------------------------------------------------------------------------------------------------------
static bool reduces_dim(const Node *n, int dim) {
    if (n->op == OP_LOGSUMEXP || n->op == OP_CUMSUM) return node_int(n, ATTR_DIM) == dim;
    const int64_t *list;
    int ndims = node_ints(n, ATTR_DIMS, &list);
    for (int i = 0; i < ndims; i++)
        if (list[i] == dim) return true;
    return false;
}

// A reduced dim is an axis of the input alone: dividing it makes the result a term.
static int reduction_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g;
    return slot < 0 && reduces_dim(n, dim) ? NO_AXIS : dim;
}

static bool shard_sum(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, reduction_axis, &PARTIAL_SUM, row);
    if (p.reduce != RED_SUM || in_dtype(g, n, 0) == DT_BOOL) return false;
    return row_terms(g, n, p, row);
}

static bool shard_amax(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, reduction_axis, &PARTIAL_MAX, row);
    if (p.reduce != RED_MAX) return false;
    return row_terms(g, n, p, row);
}

static int scan_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)slot;
    return reduces_dim(n, dim) ? NO_AXIS : dim;
}

static bool shard_logsumexp(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    return row_from_axes(g, n, slot, p, scan_axis, NULL, row);
}

static bool shard_cumsum(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_PARTIAL) return row_from_axes(g, n, slot, p, scan_axis, NULL, row);
    if (p.reduce != RED_SUM) return false;
    return row_terms(g, n, p, row);
}

// ---- cost --------------------------------------------------------------------------------------------------------------
static void cost_reduction(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = operand_numel(&in[0]);
}

static void cost_logsumexp(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = 10 * operand_numel(&in[0]);
}

// ---- records -----------------------------------------------------------------------------------------------------------
static const Sample sum_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 1)}},
    {.label = "outer dims", .nin = 1, .shape = {DIMS(2, 7, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 0, 1)}},
    {.label = "size 1", .nin = 1, .shape = {DIMS(1, 6)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 0)}},
    {.label = "bool", .nin = 1, .shape = {DIMS(3, 5)}, .dtype = {DT_BOOL}, .hi = {2}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 1)}},
    {.label = "i64",
     .nin = 1,
     .shape = {DIMS(6, 2)},
     .dtype = {DT_I64},
     .lo = {-4},
     .hi = {5},
     .nattr = 1,
     .attr = {SAMPLE_INTS(DIMS, 0)}},
};
const OpInfo op_info_SUM = {
    .infer = infer_sum, .grad = grad_sum, .shard = shard_sum, .cost = cost_reduction, SAMPLES(sum_samples)};

static const Sample amax_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 1)}},
    {.label = "two dims", .nin = 1, .shape = {DIMS(2, 7, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 1, 2)}},
    {.label = "i64",
     .nin = 1,
     .shape = {DIMS(6, 2)},
     .dtype = {DT_I64},
     .lo = {-4},
     .hi = {5},
     .nattr = 1,
     .attr = {SAMPLE_INTS(DIMS, 0)}},
};
const OpInfo op_info_AMAX = {
    .infer = infer_amax, .grad = grad_amax, .shard = shard_amax, .cost = cost_reduction, SAMPLES(amax_samples)};

static const Sample logsumexp_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 7)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "middle dim", .nin = 1, .shape = {DIMS(5, 3, 2)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_I(DIM, 1)}},
};
const OpInfo op_info_LOGSUMEXP = {.infer = infer_logsumexp,
                                  .grad = grad_logsumexp,
                                  .shard = shard_logsumexp,
                                  .cost = cost_logsumexp,
                                  SAMPLES(logsumexp_samples)};

static const Sample cumsum_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 7)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "first dim, from the end",
     .nin = 1,
     .shape = {DIMS(5, 3)},
     .dtype = {DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 0), SAMPLE_I(REVERSE, 1)}},
    {.label = "i64",
     .nin = 1,
     .shape = {DIMS(2, 6)},
     .dtype = {DT_I64},
     .lo = {-4},
     .hi = {5},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
};
const OpInfo op_info_CUMSUM = {
    .infer = infer_cumsum, .grad = grad_cumsum, .shard = shard_cumsum, .cost = cost_reduction, SAMPLES(cumsum_samples)};
