// Order and counts: sort, topk, histogram.
#include "ops/rules.h"

#include <math.h>

// ---- shapes -----------------------------------------------------------------------------------------------------------
static Status infer_order(const Graph *g, const Node *n, int64_t k, int dim, int *nout, TypeOut *out) {
    Shape s = *in_shape(g, n, 0);
    s.dim[dim] = k;
    *nout = 2;
    out[0] = (TypeOut){in_dtype(g, n, 0), s};
    out[1] = (TypeOut){DT_I64, s};
    return ST_OK;
}

static Status infer_sort(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    TRY(rule_dim(n, in_shape(g, n, 0)->ndim, &dim, d));
    return infer_order(g, n, in_shape(g, n, 0)->dim[dim], dim, nout, out);
}

static Status infer_topk(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    int64_t k;
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_NUMBER, d));
    TRY(rule_dim(n, in_shape(g, n, 0)->ndim, &dim, d));
    TRY(rule_int(n, ATTR_K, 0, in_shape(g, n, 0)->dim[dim], &k, d));
    return infer_order(g, n, k, dim, nout, out);
}

static Status infer_histogram(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int64_t nrows;
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_INT, d));
    TRY(rule_int(n, ATTR_NROWS, 0, INT64_MAX / 16, &nrows, d));
    return rule_result(nout, out, DT_I64, SHAPE(nrows));
}

// ---- gradient ---------------------------------------------------------------------------------------------------------
// sort and topk: the values' cotangents go back to where they came from (output 1).
static Status grad_order(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0] || c->gout[0] == NO_VALUE) return ST_OK;
    Builder *b = c->b;
    ValueId zeros = build_full(b, build_shape(b, c->n->in[0]), build_dtype(b, c->gout[0]), 0);
    Attr a = attr_i(ATTR_DIM, node_int(c->n, ATTR_DIM));
    c->gin[0] = build(b, OP_SCATTER_ADD, 3, (ValueId[]){zeros, c->n->out[1], c->gout[0]}, 1, &a);
    return b->status;
}

// ---- sharding ---------------------------------------------------------------------------------------------------------
static int order_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)slot;
    return dim == node_int(n, ATTR_DIM) ? NO_AXIS : dim;
}

static bool shard_order(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    return row_from_axes(g, n, slot, p, order_axis, NULL, row);
}

// Each rank counts what it has.
static int histogram_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)n;
    return slot < 0 ? NO_AXIS : dim;
}

static bool shard_histogram(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    return row_from_axes(g, n, slot, p, histogram_axis, &PARTIAL_SUM, row);
}

// ---- cost -------------------------------------------------------------------------------------------------------------
static void cost_order(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    double length = (double)in[0].dim[node_int(n, ATTR_DIM)];
    c->flops = 4 * operand_numel(&in[0]) * log2(length + 2);
}

static void cost_histogram(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = operand_numel(&in[0]);
}

// ---- records ----------------------------------------------------------------------------------------------------------
static const Sample sort_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 7)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "first dim, downwards",
     .nin = 1,
     .shape = {DIMS(6, 3)},
     .dtype = {DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 0), SAMPLE_I(DESCENDING, 1)}},
    {.label = "i64 with ties",
     .nin = 1,
     .shape = {DIMS(2, 7)},
     .dtype = {DT_I64},
     .hi = {3},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
};
const OpInfo op_info_SORT = {
    .infer = infer_sort, .grad = grad_order, .shard = shard_order, .cost = cost_order, SAMPLES(sort_samples)};

static const Sample topk_samples[] = {
    {.label = "largest 2",
     .nin = 1,
     .shape = {DIMS(5, 6)},
     .dtype = {DT_F32},
     .nattr = 3,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_I(K, 2), SAMPLE_I(DESCENDING, 1)}},
    {.label = "smallest 3",
     .nin = 1,
     .shape = {DIMS(7, 2)},
     .dtype = {DT_F32},
     .nattr = 3,
     .attr = {SAMPLE_I(DIM, 0), SAMPLE_I(K, 3), SAMPLE_I(DESCENDING, 0)}},
    {.label = "i64 with ties",
     .nin = 1,
     .shape = {DIMS(3, 5)},
     .dtype = {DT_I64},
     .hi = {3},
     .nattr = 3,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_I(K, 2), SAMPLE_I(DESCENDING, 1)}},
};
const OpInfo op_info_TOPK = {
    .infer = infer_topk, .grad = grad_order, .shard = shard_order, .cost = cost_order, SAMPLES(topk_samples)};

static const Sample histogram_samples[] = {
    {.label = "some outside",
     .nin = 1,
     .shape = {DIMS(2, 7)},
     .dtype = {DT_I64},
     .lo = {-1},
     .hi = {6},
     .nattr = 1,
     .attr = {SAMPLE_I(NROWS, 5)}},
    {.label = "flat", .nin = 1, .shape = {DIMS(11)}, .dtype = {DT_I64}, .hi = {3}, .nattr = 1, .attr = {SAMPLE_I(NROWS, 3)}},
};
const OpInfo op_info_HISTOGRAM = {
    .infer = infer_histogram, .shard = shard_histogram, .cost = cost_histogram, SAMPLES(histogram_samples)};
