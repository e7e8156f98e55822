// One-dimensional convolution over the sequence and its two gradients. Output element j reads the inputs
// j*stride - lo + k*dilation, k in [0, kernel): a shard of the output needs a halo of the input, which is a layout that overlaps
// (layout_stencil). The halo is asked for as an operand placement, so that the reshard in front of the node moves it.
#include "ops/halo.h"
#include "ops/rules.h"

// Sizes beyond this in an attribute are nonsense, and would overflow products.
#define CONV_LIMIT (INT64_C(1) << 40)

typedef struct Conv {
    int64_t stride, dilation, groups, lo, hi;
    int64_t kernel, lin, lout;  // taps; lengths of x and of the output
    int64_t reach;              // dilation*(kernel-1): distance between the first and the last tap
} Conv;

static Conv conv_of(const Node *n, int64_t kernel, int64_t lin, int64_t lout) {
    Conv c = {
        .stride = node_int_or(n, ATTR_STRIDE, 1),
        .dilation = node_int_or(n, ATTR_DILATION, 1),
        .groups = node_int_or(n, ATTR_GROUPS, 1),
        .lo = node_int_or(n, ATTR_LO, 0),
        .hi = node_int_or(n, ATTR_HI, 0),
        .kernel = kernel,
        .lin = lin,
        .lout = lout,
    };
    c.reach = kernel >= 1 && kernel <= CONV_LIMIT / c.dilation ? c.dilation * (kernel - 1) : 0;
    return c;
}

static Conv conv_of_node(const Graph *g, const Node *n) {
    const Shape *s0 = graph_shape(g, n->in[0]), *s1 = graph_shape(g, n->in[1]), *so = graph_shape(g, n->out[0]);
    switch (n->op) {
    case OP_CONV1D: return conv_of(n, s1->dim[2], s0->dim[2], so->dim[2]);
    case OP_CONV1D_GRAD_X: return conv_of(n, s1->dim[2], so->dim[2], s0->dim[2]);
    default: return conv_of(n, so->dim[2], s1->dim[2], s0->dim[2]);
    }
}

// ---- shapes --------------------------------------------------------------------------------------------------------------

static Status check_conv(const Graph *g, const Node *n, Diag *d) {
    if (n->nin != 2) return infer_error(d, "takes 2 operands, not %d", n->nin);
    const Value *a = graph_value(g, n->in[0]), *b = graph_value(g, n->in[1]);
    if (!dtype_is_float(a->dtype) || a->dtype != b->dtype)
        return infer_error(d, "operands must be of one float type, not %s and %s", dtype_name(a->dtype), dtype_name(b->dtype));
    if (a->shape.ndim != 3 || b->shape.ndim != 3)
        return infer_error(d, "operands must have 3 dims, they have %d and %d", a->shape.ndim, b->shape.ndim);
    static const struct { AttrKey key; int64_t min, dflt; } limits[] = {
        {ATTR_STRIDE, 1, 1}, {ATTR_DILATION, 1, 1}, {ATTR_GROUPS, 1, 1}, {ATTR_LO, 0, 0}, {ATTR_HI, 0, 0}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        int64_t v = node_int_or(n, limits[i].key, limits[i].dflt);
        if (v < limits[i].min || v > CONV_LIMIT)
            return infer_error(d, "%s is %lld, out of range", attr_name(limits[i].key), (long long)v);
    }
    return ST_OK;
}

// Given the length of x and the taps, the output's length; fails where there is none.
static Status conv_length(Conv *c, Diag *d) {
    if (c->kernel < 1 || c->kernel > CONV_LIMIT / c->dilation || c->lin < 0 || c->lin > CONV_LIMIT)
        return infer_error(d, "kernel of %lld over length %lld is out of range", (long long)c->kernel, (long long)c->lin);
    int64_t room = c->lin + c->lo + c->hi - c->reach - 1;
    if (room < 0)
        return infer_error(d, "kernel spans %lld elements, the padded input has %lld", (long long)c->reach + 1,
                           (long long)(c->lin + c->lo + c->hi));
    c->lout = room / c->stride + 1;
    return ST_OK;
}

static Status check_groups(int64_t groups, int64_t channels, int64_t channels_out, int64_t per_group, Diag *d) {
    if (channels % groups || channels_out % groups || channels / groups != per_group)
        return infer_error(d, "%lld channels to %lld in %lld groups do not fit weights for %lld", (long long)channels,
                           (long long)channels_out, (long long)groups, (long long)per_group);
    return ST_OK;
}

static Status infer_conv1d(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_conv(g, n, d));
    const Shape *x = graph_shape(g, n->in[0]), *w = graph_shape(g, n->in[1]);
    Conv c = conv_of(n, w->dim[2], x->dim[2], 0);
    TRY(check_groups(c.groups, x->dim[1], w->dim[0], w->dim[1], d));
    TRY(conv_length(&c, d));
    out[0] = (TypeOut){graph_value(g, n->in[0])->dtype, SHAPE(x->dim[0], w->dim[0], c.lout)};
    *nout = 1;
    return rule_check_shape(&out[0].shape, d);
}

static Status infer_conv1d_grad_x(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_conv(g, n, d));
    const Shape *gy = graph_shape(g, n->in[0]), *w = graph_shape(g, n->in[1]);
    if (!node_attr(n, ATTR_LENGTH)) return infer_error(d, "needs length, that of x");
    Conv c = conv_of(n, w->dim[2], node_int(n, ATTR_LENGTH), 0);
    TRY(conv_length(&c, d));
    if (gy->dim[1] != w->dim[0] || gy->dim[2] != c.lout || w->dim[0] % c.groups)
        return infer_error(d, "the cotangent must be [B, %lld, %lld] for x of length %lld", (long long)w->dim[0],
                           (long long)c.lout, (long long)c.lin);
    int64_t channels;
    if (!mul_i64(w->dim[1], c.groups, &channels)) return infer_error(d, "too many channels");
    out[0] = (TypeOut){graph_value(g, n->in[0])->dtype, SHAPE(gy->dim[0], channels, c.lin)};
    *nout = 1;
    return rule_check_shape(&out[0].shape, d);
}

static Status infer_conv1d_grad_w(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_conv(g, n, d));
    const Shape *gy = graph_shape(g, n->in[0]), *x = graph_shape(g, n->in[1]);
    if (!node_attr(n, ATTR_KERNEL)) return infer_error(d, "needs kernel, the number of taps");
    Conv c = conv_of(n, node_int(n, ATTR_KERNEL), x->dim[2], 0);
    TRY(conv_length(&c, d));
    if (gy->dim[0] != x->dim[0] || gy->dim[2] != c.lout)
        return infer_error(d, "the cotangent must be [%lld, C, %lld] for x of length %lld", (long long)x->dim[0],
                           (long long)c.lout, (long long)c.lin);
    TRY(check_groups(c.groups, x->dim[1], gy->dim[1], x->dim[1] / c.groups, d));
    out[0] = (TypeOut){graph_value(g, n->in[0])->dtype, SHAPE(gy->dim[1], x->dim[1] / c.groups, c.kernel)};
    *nout = 1;
    return rule_check_shape(&out[0].shape, d);
}

// ---- gradient ------------------------------------------------------------------------------------------------------------

static Status grad_conv1d(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    const Node *n = c->n;
    ValueId x = n->in[0], w = n->in[1], gy = c->gout[0];
    if (gy == NO_VALUE) return ST_OK;
    Conv v = conv_of_node(b->g, n);
    Attr a[6] = {attr_i(ATTR_STRIDE, v.stride), attr_i(ATTR_DILATION, v.dilation), attr_i(ATTR_GROUPS, v.groups),
                 attr_i(ATTR_LO, v.lo), attr_i(ATTR_HI, v.hi)};
    if (c->want[0]) {
        a[5] = attr_i(ATTR_LENGTH, v.lin);
        c->gin[0] = build(b, OP_CONV1D_GRAD_X, 2, (ValueId[]){gy, w}, 6, a);
    }
    if (c->want[1]) {
        a[5] = attr_i(ATTR_KERNEL, v.kernel);
        c->gin[1] = build(b, OP_CONV1D_GRAD_W, 2, (ValueId[]){gy, x}, 6, a);
    }
    return b->status;
}

// ---- sharding ------------------------------------------------------------------------------------------------------------

// Output j sits at padded input position anchor + j*stride: the element that it shares a rank with. With causal padding
// (lo = reach) that is x[j*stride] itself.
static int64_t conv_anchor(const Conv *c) { return min_i64(c->lo, c->reach); }

// The output partition under which most positions stay on the rank that has them in x.
static LayoutId layout_out_from_x(LayoutTable *t, const Conv *c, LayoutId x) {
    return layout_slice(t, layout_pad(t, x, c->lo, c->hi), conv_anchor(c), c->stride, c->lout);
}

// The other way round: each output element is widened to `stride` input positions.
static LayoutId layout_x_from_out(LayoutTable *t, const Conv *c, LayoutId out) {
    LayoutId wide = layout_merge(t, out, 1, c->stride);
    int64_t extent = c->lout * c->stride, before = conv_anchor(c), padded = c->lin + c->lo + c->hi;
    if (before + extent > padded) wide = layout_slice(t, wide, 0, 1, padded - before), extent = padded - before;
    return layout_slice(t, layout_pad(t, wide, before, padded - before - extent), c->lo, 1, c->lin);
}

// The elements of x that the outputs of `out` read.
static LayoutId layout_x_read(LayoutTable *t, const Conv *c, LayoutId out) {
    return layout_stencil(t, out, c->stride, -c->lo, c->reach - c->lo, c->lin);
}

// The outputs that read any of the elements of x in `x`: j*stride in [begin + lo - reach, end - 1 + lo].
static LayoutId layout_out_reading(Graph *g, const Conv *c, LayoutId x) {
    if (c->stride == 1) return layout_stencil(g->layouts, x, 1, c->lo - c->reach, c->lo, c->lout);
    const Layout *l = layouts_get(g->layouts, x);
    int32_t *count = ARENA_ARRAY(g->arena, int32_t, l->nranks);
    Span *span = ARENA_ARRAY(g->arena, Span, l->first[l->nranks] + 1);
    for (int r = 0; r < l->nranks; r++) {
        int64_t done = 0;  // a rank's intervals may come to overlap each other: keep the union
        count[r] = layout_nspan(l, r);
        for (int i = l->first[r]; i < l->first[r + 1]; i++) {
            int64_t begin = ceil_div(max_i64(0, l->span[i].begin + c->lo - c->reach), c->stride);
            int64_t end = min_i64(c->lout, (l->span[i].end - 1 + c->lo) / c->stride + 1);
            begin = max_i64(begin, done);
            done = max_i64(done, end);
            span[i] = (Span){begin, max_i64(begin, end)};
        }
    }
    return layouts_intern(g->layouts, c->lout, count, span);
}

// `halo` was widened from partition `from` and may be an operand's layout.
static bool halo_is_legal(const Graph *g, LayoutId from, LayoutId halo) {
    return layout_is_ascending(layouts_get(g->layouts, from)) && layout_is_complete(layouts_get(g->layouts, halo));
}

// A batch or linear row; false when `p` is neither. `grad_w`: the output sums over the batch.
static bool shard_conv_batch(Graph *g, const Node *n, int slot, const Placement *p, Row *row) {
    bool grad_w = n->op == OP_CONV1D_GRAD_W;
    row_replicate(n, row);
    if (p->kind == PLACE_PARTIAL) {  // linear in each operand while the other is whole
        if (slot < 0 || p->reduce != RED_SUM) return false;
        row->in[slot] = row->out[0] = PARTIAL_SUM;
        return true;
    }
    bool has_batch = grad_w ? slot >= 0 : slot != 1;  // weights have none
    if (!placement_is_partition(g, p) || !has_batch || p->dim != 0) return false;
    row->in[0] = *p;
    if (grad_w) row->in[1] = *p;
    row->out[0] = grad_w ? PARTIAL_SUM : *p;
    return true;
}

static bool shard_conv1d(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (shard_conv_batch(g, n, slot, &p, row)) return true;
    if (!placement_is_partition(g, &p) || slot == 1 || p.dim != 2) return false;
    Conv c = conv_of_node(g, n);
    LayoutId out = slot == 0 ? layout_out_from_x(g->layouts, &c, p.layout) : p.layout;
    LayoutId x = layout_x_read(g->layouts, &c, out);
    if (!halo_is_legal(g, out, x)) return false;
    row_replicate(n, row);
    row->in[0] = shard_on(2, x);
    row->out[0] = shard_on(2, out);
    return true;
}

static bool shard_conv1d_grad_x(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (shard_conv_batch(g, n, slot, &p, row)) return true;
    if (!placement_is_partition(g, &p) || slot == 1 || p.dim != 2) return false;
    Conv c = conv_of_node(g, n);
    LayoutId dx = slot == 0 ? layout_x_from_out(g->layouts, &c, p.layout) : p.layout;
    LayoutId gy = layout_out_reading(g, &c, dx);
    if (!halo_is_legal(g, dx, gy)) return false;
    row_replicate(n, row);
    row->in[0] = shard_on(2, gy);
    row->out[0] = shard_on(2, dx);
    return true;
}

static bool shard_conv1d_grad_w(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (shard_conv_batch(g, n, slot, &p, row)) return true;
    if (!placement_is_partition(g, &p) || slot < 0 || p.dim != 2) return false;
    Conv c = conv_of_node(g, n);
    LayoutId gy = slot == 1 ? layout_out_from_x(g->layouts, &c, p.layout) : p.layout;
    LayoutId x = layout_x_read(g->layouts, &c, gy);
    if (!halo_is_legal(g, gy, x)) return false;
    row_replicate(n, row);
    row->in[0] = shard_on(2, gy);
    row->in[1] = shard_on(2, x);
    row->out[0] = PARTIAL_SUM;
    return true;
}

// ---- cost ----------------------------------------------------------------------------------------------------------------

// Every one of the three does 2 * (elements of the output side) * (channels per group) * taps.
static void cost_conv(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    const Operand *side = n->op == OP_CONV1D ? &out[0] : &in[0], *w = n->op == OP_CONV1D_GRAD_W ? &out[0] : &in[1];
    cost_memory_bound(n, in, out, c);
    c->flops = 2 * operand_numel(side) * (double)w->dim[1] * (double)w->dim[2];
}

// ---- samples -------------------------------------------------------------------------------------------------------------

#define F32x2 {DT_F32, DT_F32}
#define A(k, v) {.key = ATTR_##k, .u.i = v}
#define CONV_ATTRS(s, d, g, l, h) A(STRIDE, s), A(DILATION, d), A(GROUPS, g), A(LO, l), A(HI, h)
static const Sample conv1d_samples[] = {
    {.label = "causal depthwise", .nin = 2, .shape = {{3, {2, 3, 7}}, {3, {3, 1, 4}}}, .dtype = F32x2, .nattr = 5,
     .attr = {CONV_ATTRS(1, 1, 3, 3, 0)}},
    {.label = "same, dense", .nin = 2, .shape = {{3, {2, 3, 7}}, {3, {4, 3, 3}}}, .dtype = F32x2, .nattr = 5,
     .attr = {CONV_ATTRS(1, 1, 1, 1, 1)}},
    {.label = "valid, dilated", .nin = 2, .shape = {{3, {2, 2, 9}}, {3, {3, 2, 3}}}, .dtype = F32x2, .nattr = 5,
     .attr = {CONV_ATTRS(1, 2, 1, 0, 0)}},
    {.label = "strided, two groups", .nin = 2, .shape = {{3, {1, 4, 9}}, {3, {6, 2, 3}}}, .dtype = F32x2, .nattr = 5,
     .attr = {CONV_ATTRS(2, 1, 2, 1, 1)}},
    {.label = "padded both ways and cut (lo and hi beyond the kernel)", .nin = 2, .shape = {{3, {1, 2, 6}}, {3, {2, 1, 2}}},
     .dtype = F32x2, .nattr = 5, .attr = {CONV_ATTRS(1, 1, 2, 2, 3)}},
    {.label = "patches that drop the end", .nin = 2, .shape = {{3, {2, 2, 7}}, {3, {3, 2, 2}}}, .dtype = F32x2, .nattr = 5,
     .attr = {CONV_ATTRS(3, 1, 1, 0, 0)}},
};
static const Sample conv1d_grad_x_samples[] = {
    {.label = "causal depthwise", .nin = 2, .shape = {{3, {2, 3, 7}}, {3, {3, 1, 4}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(1, 1, 3, 3, 0), A(LENGTH, 7)}},
    {.label = "valid, dilated", .nin = 2, .shape = {{3, {2, 3, 5}}, {3, {3, 2, 3}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(1, 2, 1, 0, 0), A(LENGTH, 9)}},
    {.label = "strided, two groups", .nin = 2, .shape = {{3, {1, 6, 5}}, {3, {6, 2, 3}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(2, 1, 2, 1, 1), A(LENGTH, 9)}},
    {.label = "patches that drop the end", .nin = 2, .shape = {{3, {2, 3, 2}}, {3, {3, 2, 2}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(3, 1, 1, 0, 0), A(LENGTH, 7)}},
};
static const Sample conv1d_grad_w_samples[] = {
    {.label = "causal depthwise", .nin = 2, .shape = {{3, {2, 3, 7}}, {3, {2, 3, 7}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(1, 1, 3, 3, 0), A(KERNEL, 4)}},
    {.label = "valid, dilated", .nin = 2, .shape = {{3, {2, 3, 5}}, {3, {2, 2, 9}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(1, 2, 1, 0, 0), A(KERNEL, 3)}},
    {.label = "strided, two groups", .nin = 2, .shape = {{3, {1, 6, 5}}, {3, {1, 4, 9}}}, .dtype = F32x2, .nattr = 6,
     .attr = {CONV_ATTRS(2, 1, 2, 1, 1), A(KERNEL, 3)}},
};

const OpInfo op_info_CONV1D = {
    .infer = infer_conv1d,
    .grad = grad_conv1d,
    .shard = shard_conv1d,
    .cost = cost_conv,
    .samples = conv1d_samples,
    .nsample = sizeof conv1d_samples / sizeof *conv1d_samples,
};
const OpInfo op_info_CONV1D_GRAD_X = {
    .infer = infer_conv1d_grad_x,
    .grad_error = "second derivatives are not supported",
    .shard = shard_conv1d_grad_x,
    .cost = cost_conv,
    .samples = conv1d_grad_x_samples,
    .nsample = sizeof conv1d_grad_x_samples / sizeof *conv1d_grad_x_samples,
};
const OpInfo op_info_CONV1D_GRAD_W = {
    .infer = infer_conv1d_grad_w,
    .grad_error = "second derivatives are not supported",
    .shard = shard_conv1d_grad_w,
    .cost = cost_conv,
    .samples = conv1d_grad_w_samples,
    .nsample = sizeof conv1d_grad_w_samples / sizeof *conv1d_grad_w_samples,
};
