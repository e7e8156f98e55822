// Sources: parameters, inputs, constants and generated values. None has a gradient; each rank loads or generates its own part.
#include "ops/rules.h"

// A table entry's type. The tables hold stored types; attribute dtype says what the program computes in where that differs.
static Status infer_entry(const Node *n, DType stored, Shape shape, int *nout, TypeOut *out, Diag *d) {
    DType t = stored == DT_BF16 || stored == DT_F16 ? DT_F32 : stored == DT_I32 ? DT_I64 : stored;
    if (node_attr(n, ATTR_DTYPE)) TRY(rule_dtype(n, &t, d));
    TRY(rule_check_shape(&shape, d));
    return rule_result(nout, out, t, shape);
}

static Status infer_index(const Node *n, int64_t count, int64_t *index, Diag *d) {
    TRY(rule_nin(n, 0, d));
    if (count == 0) return infer_error(d, "the program has no %ss", op_name(n->op));
    return rule_int(n, ATTR_INDEX, 0, count - 1, index, d);
}

static Status infer_param(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int64_t i, kind, host;
    if (node_attr(n, ATTR_HOST)) TRY(rule_int(n, ATTR_HOST, 0, 1, &host, d));
    TRY(infer_index(n, g->params.len, &i, d));
    kind = 0;
    if (node_attr(n, ATTR_KIND)) TRY(rule_int(n, ATTR_KIND, 0, 3, &kind, d));
    TRY(infer_entry(n, g->params.data[i].dtype, g->params.data[i].shape, nout, out, d));
    if ((kind == 3) == (out[0].dtype == DT_BF16)) return ST_OK;
    return infer_error(d, "a parameter in bf16 is its copy, of kind 3, and the other way round");
}

static Status infer_input(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int64_t i;
    TRY(infer_index(n, g->inputs.len, &i, d));
    return infer_entry(n, g->inputs.data[i].dtype, g->inputs.data[i].shape, nout, out, d);
}

static Status infer_constant(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int64_t i;
    TRY(infer_index(n, g->consts.len, &i, d));
    return infer_entry(n, g->consts.data[i].dtype, g->consts.data[i].shape, nout, out, d);
}

static Status infer_generated(const Node *n, int classes, int *nout, TypeOut *out, Diag *d) {
    DType t;
    Shape s;
    TRY(rule_nin(n, 0, d));
    TRY(rule_dtype(n, &t, d));
    TRY(rule_shape(n, &s, d));
    if (!(type_class(t) & classes) || t == DT_BF16) return infer_error(d, "%s cannot make %s", op_name(n->op), dtype_name(t));
    return rule_result(nout, out, t, s);
}

static Status infer_full(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    (void)g;
    TRY(infer_generated(n, TYPE_ANY, nout, out, d));
    return rule_value(n, out[0].dtype, d);
}

static Status infer_iota(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    (void)g;
    int64_t start, step, end;
    int dim;
    TRY(infer_generated(n, TYPE_NUMBER, nout, out, d));
    TRY(rule_dim(n, out[0].shape.ndim, &dim, d));
    TRY(rule_int(n, ATTR_START, INT64_MIN / 2, INT64_MAX / 2, &start, d));
    TRY(rule_int(n, ATTR_STEP, INT64_MIN / 2, INT64_MAX / 2, &step, d));
    int64_t last = out[0].shape.dim[dim] - 1;
    if (last > 0 && (!mul_i64(last, step < 0 ? -step : step, &end) || end > INT64_MAX / 2))
        return infer_error(d, "iota leaves the range of i64");
    return ST_OK;
}

static Status infer_random(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    (void)g;
    if (!node_attr(n, ATTR_SEED)) return infer_error(d, "random needs attribute seed");
    return infer_generated(n, TYPE_FLOAT, nout, out, d);
}

// Every rank can make or load any part of it, halos too.
static bool shard_source(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (slot >= 0 || p.kind != PLACE_SHARD || p.reduce) return false;
    const Shape *s = graph_shape(g, n->out[~slot]);
    if (p.dim < 0 || p.dim >= s->ndim || layouts_get(g->layouts, p.layout)->extent != s->dim[p.dim]) return false;
    row_replicate(n, row);
    row->out[0] = p;
    return true;
}

// Parameters are replicated: their update runs on every rank alike.
static bool shard_param(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    (void)g, (void)n, (void)slot, (void)p, (void)row;
    return false;
}

static void cost_nothing(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)in, (void)out;
    *c = (Cost){0};
}

static void cost_random(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops *= 20;  // a few rounds of an integer hash
}

const OpInfo op_info_PARAM = {.infer = infer_param, .shard = shard_param, .cost = cost_nothing};
const OpInfo op_info_INPUT = {.infer = infer_input, .shard = shard_source, .cost = cost_nothing};
const OpInfo op_info_CONSTANT = {.infer = infer_constant, .shard = shard_source, .cost = cost_nothing};

static const Sample full_samples[] = {
    {.label = "float", .nattr = 3, .attr = {SAMPLE_INTS(SHAPE, 3, 5), SAMPLE_I(DTYPE, DT_F32), SAMPLE_F(VALUE, 0.25)}},
    {.label = "i64", .nattr = 3, .attr = {SAMPLE_INTS(SHAPE, 7), SAMPLE_I(DTYPE, DT_I64), SAMPLE_F(VALUE, -100)}},
    {.label = "bool", .nattr = 3, .attr = {SAMPLE_INTS(SHAPE, 1, 6), SAMPLE_I(DTYPE, DT_BOOL), SAMPLE_F(VALUE, 1)}},
};
const OpInfo op_info_FULL = {.infer = infer_full, .shard = shard_source, .cost = cost_memory_bound, SAMPLES(full_samples)};

static const Sample iota_samples[] = {
    {.label = "last dim",
     .nattr = 5,
     .attr = {SAMPLE_INTS(SHAPE, 2, 7), SAMPLE_I(DIM, 1), SAMPLE_I(START, 3), SAMPLE_I(STEP, 2), SAMPLE_I(DTYPE, DT_I64)}},
    {.label = "first dim, downwards, float",
     .nattr = 5,
     .attr = {SAMPLE_INTS(SHAPE, 5, 3), SAMPLE_I(DIM, 0), SAMPLE_I(START, 4), SAMPLE_I(STEP, -1), SAMPLE_I(DTYPE, DT_F32)}},
};
const OpInfo op_info_IOTA = {.infer = infer_iota, .shard = shard_source, .cost = cost_memory_bound, SAMPLES(iota_samples)};

static const Sample random_samples[] = {
    {.label = "2-d", .nattr = 3, .attr = {SAMPLE_INTS(SHAPE, 5, 6), SAMPLE_I(DTYPE, DT_F32), SAMPLE_I(SEED, 3)}},
    {.label = "3-d", .nattr = 3, .attr = {SAMPLE_INTS(SHAPE, 2, 5, 3), SAMPLE_I(DTYPE, DT_F32), SAMPLE_I(SEED, 4)}},
};
const OpInfo op_info_RANDOM = {.infer = infer_random, .shard = shard_source, .cost = cost_random, SAMPLES(random_samples)};
