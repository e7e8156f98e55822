// Ops that move elements about: permute, broadcast, slice, pad, concat. (reshape has its own file.)
#include "ops/rules.h"

// ---- shapes ------------------------------------------------------------------------------------------------------------
static Status infer_permute(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    const Shape *s = in_shape(g, n, 0);
    const int64_t *dims;
    int count = node_ints(n, ATTR_DIMS, &dims);
    if (count != s->ndim) return infer_error(d, "permute of %s by %d dims", shape_text(s).s, count);
    Shape r = {.ndim = count};
    bool seen[MAX_DIMS] = {0};
    for (int i = 0; i < count; i++) {
        if (dims[i] < 0 || dims[i] >= count || seen[dims[i]])
            return infer_error(d, "the dims of permute are no permutation of 0..%d", count - 1);
        seen[dims[i]] = true;
        r.dim[i] = s->dim[dims[i]];
    }
    return rule_result(nout, out, in_dtype(g, n, 0), r);
}

static Status infer_broadcast(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    Shape to;
    TRY(rule_nin(n, 1, d));
    TRY(rule_shape(n, &to, d));
    const Shape *s = in_shape(g, n, 0);
    bool fits = s->ndim == to.ndim;
    for (int i = 0; fits && i < s->ndim; i++) fits = s->dim[i] == to.dim[i] || s->dim[i] == 1;
    if (!fits) return infer_error(d, "broadcast from %s to %s: only dims of size 1 can grow", shape_text(s).s, shape_text(&to).s);
    return rule_result(nout, out, in_dtype(g, n, 0), to);
}

static Status infer_slice(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    int64_t start, step, length, reach;
    TRY(rule_nin(n, 1, d));
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    TRY(rule_int(n, ATTR_START, 0, s.dim[dim], &start, d));
    TRY(rule_int(n, ATTR_STEP, 1, INT64_MAX, &step, d));
    TRY(rule_int(n, ATTR_LENGTH, 0, s.dim[dim], &length, d));
    if (length > 0 && (!mul_i64(length - 1, step, &reach) || reach >= s.dim[dim] - start))
        return infer_error(d, "slice of %lld elements from %lld by steps of %lld leaves dim %d of %s", (long long)length,
                           (long long)start, (long long)step, dim, shape_text(&s).s);
    s.dim[dim] = length;
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

static Status infer_pad(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    int64_t lo, hi;
    TRY(rule_nin(n, 1, d));
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    TRY(rule_int(n, ATTR_LO, 0, INT64_MAX / 4, &lo, d));
    TRY(rule_int(n, ATTR_HI, 0, INT64_MAX / 4, &hi, d));
    TRY(rule_value(n, in_dtype(g, n, 0), d));
    s.dim[dim] += lo + hi;
    TRY(rule_check_shape(&s, d));
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

static Status infer_concat(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    int dim;
    if (n->nin < 1) return infer_error(d, "concat of nothing");
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    for (int i = 1; i < n->nin; i++) {
        TRY(rule_same_type(g, n, 0, i, d));
        const Shape *p = in_shape(g, n, i);
        bool fits = p->ndim == s.ndim;
        for (int k = 0; fits && k < s.ndim; k++) fits = k == dim || p->dim[k] == s.dim[k];
        if (!fits)
            return infer_error(d, "concat along dim %d: operand %d is %s, operand 0 %s", dim, i, shape_text(p).s,
                               shape_text(in_shape(g, n, 0)).s);
        if (!add_i64(s.dim[dim], p->dim[dim], &s.dim[dim])) return infer_error(d, "concat: too many elements");
    }
    TRY(rule_check_shape(&s, d));
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

// ---- gradients ---------------------------------------------------------------------------------------------------------
static Status grad_permute(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    const int64_t *dims;
    int count = node_ints(c->n, ATTR_DIMS, &dims), inverse[MAX_DIMS];
    for (int i = 0; i < count; i++) inverse[dims[i]] = i;
    c->gin[0] = build_permute(c->b, c->gout[0], inverse);
    return c->b->status;
}

static Status grad_broadcast(GradCtx *c, Diag *d) {
    (void)d;
    if (c->want[0]) c->gin[0] = build_sum_to(c->b, c->gout[0], build_shape(c->b, c->n->in[0]));
    return c->b->status;
}

// Puts step-1 zeros behind each element of dim `dim`: [.., n, ..] -> [.., n*step, ..]. The dims around `dim` stay apart where
// there is room for one dim more, so that they can stay sharded.
static ValueId spread(Builder *b, ValueId x, int dim, int64_t step) {
    Shape s = build_shape(b, x), wide = s, flat = s;
    flat.dim[dim] *= step;
    if (s.ndim == MAX_DIMS) {
        wide = (Shape){.ndim = 3, .dim = {1, s.dim[dim], 1}};
        for (int i = 0; i < s.ndim; i++)
            if (i != dim) wide.dim[i < dim ? 0 : 2] *= s.dim[i];
        dim = 1;
        x = build_reshape(b, x, wide);
    }
    x = build_pad(b, build_unsqueeze(b, x, dim + 1), dim + 1, 0, step - 1, 0);
    return build_reshape(b, x, flat);
}

static Status grad_slice(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    Builder *b = c->b;
    int dim = (int)node_int(c->n, ATTR_DIM);
    int64_t start = node_int(c->n, ATTR_START), step = node_int(c->n, ATTR_STEP), length = node_int(c->n, ATTR_LENGTH);
    Shape s = build_shape(b, c->n->in[0]);
    ValueId g = c->gout[0];
    if (length == 0) {
        c->gin[0] = build_full(b, s, build_dtype(b, g), 0);
        return b->status;
    }
    if (step > 1) {
        g = spread(b, g, dim, step);
        length = min_i64(length * step, s.dim[dim] - start);
        g = build_slice(b, g, dim, 0, 1, length);
    }
    c->gin[0] = build_pad(b, g, dim, start, s.dim[dim] - start - length, 0);
    return b->status;
}

static Status grad_pad(GradCtx *c, Diag *d) {
    (void)d;
    if (!c->want[0]) return ST_OK;
    int dim = (int)node_int(c->n, ATTR_DIM);
    int64_t n = build_shape(c->b, c->n->in[0]).dim[dim];
    c->gin[0] = build_slice(c->b, c->gout[0], dim, node_int(c->n, ATTR_LO), 1, n);
    return c->b->status;
}

static Status grad_concat(GradCtx *c, Diag *d) {
    (void)d;
    int dim = (int)node_int(c->n, ATTR_DIM);
    int64_t at = 0;
    for (int i = 0; i < c->n->nin; i++) {
        int64_t n = build_shape(c->b, c->n->in[i]).dim[dim];
        if (c->want[i]) c->gin[i] = build_slice(c->b, c->gout[0], dim, at, 1, n);
        at += n;
    }
    return c->b->status;
}

// ---- sharding ----------------------------------------------------------------------------------------------------------
// Terms of sums and maxima pass through all of these: moving elements commutes with adding and with taking the maximum.

static int permute_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g;
    const int64_t *dims;
    node_ints(n, ATTR_DIMS, &dims);
    return slot < 0 ? (int)dims[dim] : dim;
}

static bool shard_permute(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    return row_from_axes(g, n, slot, p, permute_axis, NULL, row);
}

// A grown dim is an axis of the output alone: each rank makes its part from the one whole element.
static int broadcast_axis(const Graph *g, const Node *n, int slot, int dim) {
    return slot >= 0 && in_shape(g, n, 0)->dim[dim] != graph_shape(g, n->out[0])->dim[dim] ? NO_AXIS : dim;
}

static bool shard_broadcast(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    return row_from_axes(g, n, slot, p, broadcast_axis, NULL, row);
}

// slice, pad, concat: every dim but the one that changes.
static int other_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)slot;
    return dim == node_int(n, ATTR_DIM) ? NO_AXIS : dim;
}

// Row of a one-operand op whose dim `p.dim` has the layouts in and out.
static bool row_in_out(const Node *n, int dim, LayoutId in, LayoutId out, Row *row) {
    row_replicate(n, row);
    row->in[0] = shard_on(dim, in);
    row->out[0] = shard_on(dim, out);
    return true;
}

// Along the sliced dim the output's intervals are the input's, clipped and shifted. Given the output's, the input's are the same
// shifted back, what was cut off going to the nearest owner; with step > 1 what lies between has no natural owner.
static bool shard_slice(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    if (p.dim != node_int(n, ATTR_DIM)) return row_from_axes(g, n, slot, p, other_axis, NULL, row);
    int64_t start = node_int(n, ATTR_START), step = node_int(n, ATTR_STEP), length = node_int(n, ATTR_LENGTH);
    if (!row_slot_ok(g, n, slot, &p) || length == 0) return false;
    if (slot >= 0) return row_in_out(n, p.dim, p.layout, layout_slice(g->layouts, p.layout, start, step, length), row);
    if (step > 1) return false;
    int64_t rest = in_shape(g, n, 0)->dim[p.dim] - start - length;
    return row_in_out(n, p.dim, layout_pad(g->layouts, p.layout, start, rest), p.layout, row);
}

static bool shard_pad(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) {
        if (p.reduce == RED_SUM && node_float(n, ATTR_VALUE) != 0) return false;  // it would be added once per rank
        return row_terms(g, n, p, row);
    }
    if (p.dim != node_int(n, ATTR_DIM)) return row_from_axes(g, n, slot, p, other_axis, NULL, row);
    int64_t lo = node_int(n, ATTR_LO), hi = node_int(n, ATTR_HI), extent = in_shape(g, n, 0)->dim[p.dim];
    if (!row_slot_ok(g, n, slot, &p) || extent == 0) return false;
    if (slot >= 0) return row_in_out(n, p.dim, p.layout, layout_pad(g->layouts, p.layout, lo, hi), row);
    return row_in_out(n, p.dim, layout_slice(g->layouts, p.layout, lo, 1, extent), p.layout, row);
}

// Divides every operand of a concat as `out` divides its part of the result. False if a rank's parts, one operand after the
// other, are not what it holds of the result in that order.
static bool concat_pieces(Graph *g, const Node *n, int dim, LayoutId out, Row *row) {
    LayoutId *piece = ARENA_ARRAY(g->arena, LayoutId, n->nin);
    int64_t at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t extent = in_shape(g, n, i)->dim[dim];
        piece[i] = layout_slice(g->layouts, out, at, 1, extent);
        row->in[i] = shard_on(dim, piece[i]);
        at += extent;
    }
    row->out[0] = shard_on(dim, out);
    return layout_concat(g->layouts, n->nin, piece) == out;
}

// Along the concatenated dim. A result that is hardly longer than operand `slot` (a token put in front) follows its layout, so
// that nothing long moves; else each operand has an even layout of its own, or that of `slot` if it is as long.
static bool concat_from_input(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    int64_t extent = in_shape(g, n, slot)->dim[p.dim], total = graph_shape(g, n->out[0])->dim[p.dim], before = 0;
    for (int i = 0; i < slot; i++) before += in_shape(g, n, i)->dim[p.dim];
    if ((total - extent) * graph_nranks(g) <= extent) {
        LayoutId out = layout_pad(g->layouts, p.layout, before, total - extent - before);
        if (concat_pieces(g, n, p.dim, out, row) && row->in[slot].layout == p.layout) return true;
    }
    LayoutId *piece = ARENA_ARRAY(g->arena, LayoutId, n->nin);
    for (int i = 0; i < n->nin; i++) {
        int64_t e = in_shape(g, n, i)->dim[p.dim];
        piece[i] = i == slot || e == extent ? p.layout : layouts_even(g->layouts, e);
        row->in[i] = shard_on(p.dim, piece[i]);
    }
    row->out[0] = shard_on(p.dim, layout_concat(g->layouts, n->nin, piece));
    return true;
}

static bool shard_concat(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    if (p.dim != node_int(n, ATTR_DIM)) return row_from_axes(g, n, slot, p, other_axis, NULL, row);
    if (!row_slot_ok(g, n, slot, &p)) return false;
    row_replicate(n, row);
    return slot >= 0 ? concat_from_input(g, n, slot, p, row) : concat_pieces(g, n, p.dim, p.layout, row);
}

// ---- cost --------------------------------------------------------------------------------------------------------------
// Copies of the output's size, whatever the operand's.
static void cost_copy(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)in;
    *c = (Cost){.nbytes = 2 * operand_nbytes(&out[0])};
}

// ---- records -----------------------------------------------------------------------------------------------------------
static const Sample permute_samples[] = {
    {.label = "2-d", .nin = 1, .shape = {DIMS(5, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 1, 0)}},
    {.label = "3-d", .nin = 1, .shape = {DIMS(2, 7, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(DIMS, 2, 0, 1)}},
    {.label = "4-d, heads",
     .nin = 1,
     .shape = {DIMS(2, 5, 3, 2)},
     .dtype = {DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_INTS(DIMS, 0, 2, 1, 3)}},
    {.label = "bool",
     .nin = 1,
     .shape = {DIMS(3, 5)},
     .dtype = {DT_BOOL},
     .hi = {2},
     .nattr = 1,
     .attr = {SAMPLE_INTS(DIMS, 1, 0)}},
};
const OpInfo op_info_PERMUTE = {
    .infer = infer_permute, .grad = grad_permute, .shard = shard_permute, .cost = cost_copy, SAMPLES(permute_samples)};

static const Sample broadcast_samples[] = {
    {.label = "last dim", .nin = 1, .shape = {DIMS(5, 1)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(SHAPE, 5, 3)}},
    {.label = "two dims",
     .nin = 1,
     .shape = {DIMS(1, 6, 1)},
     .dtype = {DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_INTS(SHAPE, 2, 6, 5)}},
    {.label = "i64",
     .nin = 1,
     .shape = {DIMS(1, 1)},
     .dtype = {DT_I64},
     .lo = {-3},
     .hi = {4},
     .nattr = 1,
     .attr = {SAMPLE_INTS(SHAPE, 1, 7)}},
};
const OpInfo op_info_BROADCAST = {
    .infer = infer_broadcast, .grad = grad_broadcast, .shard = shard_broadcast, .cost = cost_copy, SAMPLES(broadcast_samples)};

#define SLICE_ATTRS(D, START_, STEP_, LENGTH_) \
    .nattr = 4, .attr = {SAMPLE_I(DIM, D), SAMPLE_I(START, START_), SAMPLE_I(STEP, STEP_), SAMPLE_I(LENGTH, LENGTH_)}
static const Sample slice_samples[] = {
    {.label = "shift", .nin = 1, .shape = {DIMS(2, 7)}, .dtype = {DT_F32}, SLICE_ATTRS(1, 1, 1, 6)},
    {.label = "front", .nin = 1, .shape = {DIMS(7, 3)}, .dtype = {DT_F32}, SLICE_ATTRS(0, 0, 1, 5)},
    {.label = "one", .nin = 1, .shape = {DIMS(2, 6, 3)}, .dtype = {DT_F32}, SLICE_ATTRS(1, 5, 1, 1)},
    {.label = "steps", .nin = 1, .shape = {DIMS(2, 7)}, .dtype = {DT_F32}, SLICE_ATTRS(1, 1, 2, 3)},
    {.label = "steps to the end", .nin = 1, .shape = {DIMS(7, 2)}, .dtype = {DT_F32}, SLICE_ATTRS(0, 0, 3, 3)},
    {.label = "steps, 8 dims", .nin = 1, .shape = {DIMS(1, 2, 1, 5, 1, 2, 1, 1)}, .dtype = {DT_F32}, SLICE_ATTRS(3, 0, 2, 2)},
    {.label = "nothing", .nin = 1, .shape = {DIMS(3, 5)}, .dtype = {DT_F32}, SLICE_ATTRS(0, 2, 1, 0)},
    {.label = "i64", .nin = 1, .shape = {DIMS(7)}, .dtype = {DT_I64}, .lo = {-3}, .hi = {4}, SLICE_ATTRS(0, 2, 1, 4)},
};
const OpInfo op_info_SLICE = {
    .infer = infer_slice, .grad = grad_slice, .shard = shard_slice, .cost = cost_copy, SAMPLES(slice_samples)};

#define PAD_ATTRS(D, LO_, HI_, VALUE_) \
    .nattr = 4, .attr = {SAMPLE_I(DIM, D), SAMPLE_I(LO, LO_), SAMPLE_I(HI, HI_), SAMPLE_F(VALUE, VALUE_)}
static const Sample pad_samples[] = {
    {.label = "both ends", .nin = 1, .shape = {DIMS(5, 3)}, .dtype = {DT_F32}, PAD_ATTRS(0, 1, 2, 0)},
    {.label = "front of the last dim", .nin = 1, .shape = {DIMS(2, 6)}, .dtype = {DT_F32}, PAD_ATTRS(1, 3, 0, 0.5)},
    {.label = "labels", .nin = 1, .shape = {DIMS(1, 7)}, .dtype = {DT_I64}, .lo = {0}, .hi = {9}, PAD_ATTRS(1, 0, 1, -100)},
};
const OpInfo op_info_PAD = {.infer = infer_pad, .grad = grad_pad, .shard = shard_pad, .cost = cost_copy, SAMPLES(pad_samples)};

static const Sample concat_samples[] = {
    {.label = "halves",
     .nin = 2,
     .shape = {DIMS(5, 3), DIMS(5, 3)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "along rows",
     .nin = 2,
     .shape = {DIMS(5, 2), DIMS(7, 2)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 0)}},
    {.label = "one in front",
     .nin = 2,
     .shape = {DIMS(2, 1), DIMS(2, 6)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 1)}},
    {.label = "three, i64",
     .nin = 3,
     .shape = {DIMS(5), DIMS(1), DIMS(5)},
     .dtype = {DT_I64, DT_I64, DT_I64},
     .lo = {-3, -3, -3},
     .hi = {4, 4, 4},
     .nattr = 1,
     .attr = {SAMPLE_I(DIM, 0)}},
};
const OpInfo op_info_CONCAT = {
    .infer = infer_concat, .grad = grad_concat, .shard = shard_concat, .cost = cost_copy, SAMPLES(concat_samples)};
