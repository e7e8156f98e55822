// Contractions: dot (every matrix product and linear layer). The dims of its operands fall into four groups: batch (in a, b and
// out), free_a (a, out), free_b (b, out) and contract (a, b); shape, gradient, sharding and cost all follow from the groups.
#include "ops/rules.h"

typedef enum DotGroup { DOT_BATCH, DOT_FREE_A, DOT_FREE_B, DOT_CONTRACT, DOT_NGROUP } DotGroup;

typedef struct DotDims {
    bool trans_a, trans_b;
    int n[DOT_NGROUP];          // dims in each group
    int start[3][DOT_NGROUP];   // first dim of the group in a, b, out; -1 where the operand has no such group
} DotDims;

// Lays out the groups of operands with `nda` and `ndb` dims. False when the counts do not fit.
static bool dot_dims(const Node *n, int nda, int ndb, DotDims *out) {
    int64_t nb = node_int_or(n, ATTR_NBATCH, 0), nc = node_int_or(n, ATTR_NCONTRACT, 1);
    if (nb < 0 || nc < 1 || nb > MAX_DIMS || nc > MAX_DIMS || nb + nc > nda || nb + nc > ndb) return false;
    DotDims t = {.trans_a = node_int_or(n, ATTR_TRANS_A, 0) != 0, .trans_b = node_int_or(n, ATTR_TRANS_B, 0) != 0};
    int batch = (int)nb, contract = (int)nc, fa = nda - batch - contract, fb = ndb - batch - contract;
    t.n[DOT_BATCH] = batch, t.n[DOT_FREE_A] = fa, t.n[DOT_FREE_B] = fb, t.n[DOT_CONTRACT] = contract;
    int *a = t.start[0], *b = t.start[1], *o = t.start[2];
    a[DOT_BATCH] = b[DOT_BATCH] = o[DOT_BATCH] = 0;
    a[DOT_FREE_A] = t.trans_a ? batch + contract : batch;
    a[DOT_CONTRACT] = t.trans_a ? batch : batch + fa;
    a[DOT_FREE_B] = b[DOT_FREE_A] = o[DOT_CONTRACT] = -1;
    b[DOT_FREE_B] = t.trans_b ? batch : batch + contract;
    b[DOT_CONTRACT] = t.trans_b ? batch + fb : batch;
    o[DOT_FREE_A] = batch;
    o[DOT_FREE_B] = batch + fa;
    *out = t;
    return true;
}

// The third operand is added: it is of the result's type, or (bias=1) a vector over its last dim.
static Status check_addend(const Graph *g, const Node *n, const TypeOut *out, Diag *d) {
    bool bias = node_int_or(n, ATTR_BIAS, 0) != 0;
    if (n->nin == 2) return bias ? infer_error(d, "has bias, but no third operand") : ST_OK;
    const Value *c = graph_value(g, n->in[2]);
    if (c->dtype != out->dtype)
        return infer_error(d, "the result is %s, what is added %s", dtype_name(out->dtype), dtype_name(c->dtype));
    int last = out->shape.ndim - 1;
    bool fits =
        bias ? last >= 0 && c->shape.ndim == 1 && c->shape.dim[0] == out->shape.dim[last] : shape_equal(&c->shape, &out->shape);
    if (fits) return ST_OK;
    return infer_error(d, "what is added, %s, is not %s of the result, %s", shape_text(&c->shape).s,
                       bias ? "a vector over the last dim" : "the shape", shape_text(&out->shape).s);
}

static Status infer_dot(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin != 2 && n->nin != 3) return infer_error(d, "takes 2 operands and perhaps one to add, not %d", n->nin);
    const Value *a = graph_value(g, n->in[0]), *b = graph_value(g, n->in[1]);
    if (!(type_class(a->dtype) & TYPE_FLOAT) || a->dtype != b->dtype)
        return infer_error(d, "operands must be of one float type, not %s and %s", dtype_name(a->dtype), dtype_name(b->dtype));
    DotDims t;
    if (!dot_dims(n, a->shape.ndim, b->shape.ndim, &t))
        return infer_error(d, "operands of %d and %d dims have no %lld batch and %lld contracted dims", a->shape.ndim,
                           b->shape.ndim, (long long)node_int_or(n, ATTR_NBATCH, 0),
                           (long long)node_int_or(n, ATTR_NCONTRACT, 1));
    static const DotGroup shared[] = {DOT_BATCH, DOT_CONTRACT};  // the groups that a and b both have
    for (int s = 0; s < 2; s++) {
        DotGroup group = shared[s];
        for (int i = 0; i < t.n[group]; i++) {
            int da = t.start[0][group] + i, db = t.start[1][group] + i;
            if (a->shape.dim[da] != b->shape.dim[db])
                return infer_error(d, "%s dims differ: dim %d of operand 0 is %lld, dim %d of operand 1 is %lld",
                                   group == DOT_BATCH ? "batch" : "contracted", da, (long long)a->shape.dim[da], db,
                                   (long long)b->shape.dim[db]);
        }
    }
    int nd = t.n[DOT_BATCH] + t.n[DOT_FREE_A] + t.n[DOT_FREE_B];
    if (nd > MAX_DIMS) return infer_error(d, "the result would have %d dims, at most %d are possible", nd, MAX_DIMS);
    TRY(rule_wide(n, a->dtype, &out[0].dtype, d));
    out[0].shape.ndim = nd;
    for (int i = 0; i < t.n[DOT_BATCH] + t.n[DOT_FREE_A]; i++)
        out[0].shape.dim[i] =
            a->shape.dim[i < t.n[DOT_BATCH] ? i : t.start[0][DOT_FREE_A] + i - t.n[DOT_BATCH]];
    for (int i = 0; i < t.n[DOT_FREE_B]; i++)
        out[0].shape.dim[t.start[2][DOT_FREE_B] + i] = b->shape.dim[t.start[1][DOT_FREE_B] + i];
    *nout = 1;
    TRY(rule_check_shape(&out[0].shape, d));
    return check_addend(g, n, out, d);
}

// With g = cotangent [batch, free_a, free_b]: da contracts free_b of g and b, db contracts free_a of a and g. Which of the two
// stands first decides the order of the result's dims, so that it comes out as the operand's own without a permute.
static Status grad_dot(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    const Node *n = c->n;
    if (c->gout[0] == NO_VALUE) return ST_OK;
    if (n->nin == 3) c->gin[2] = c->gout[0];
    ValueId x = n->in[0], y = n->in[1], gx = build_cast(b, c->gout[0], build_dtype(b, x)), gy = gx;
    DotDims t;
    CHECK(dot_dims(n, graph_shape(b->g, x)->ndim, graph_shape(b->g, y)->ndim, &t), "dot with bad dims");
    int nb = t.n[DOT_BATCH], nfa = t.n[DOT_FREE_A], nfb = t.n[DOT_FREE_B];
    if (c->want[0]) {
        if (nfb == 0) {  // an outer product: contract over a dim of size 1
            y = build_unsqueeze(b, y, t.start[1][DOT_FREE_B]);
            gx = build_unsqueeze(b, gx, nb + nfa);
            nfb = 1;
        }
        c->gin[0] = t.trans_a ? build_dot(b, y, gx, nb, nfb, t.trans_b, true) : build_dot(b, gx, y, nb, nfb, false, !t.trans_b);
    }
    if (c->want[1]) {
        if (nfa == 0) {
            x = build_unsqueeze(b, x, t.start[0][DOT_FREE_A]);
            gy = build_unsqueeze(b, gy, nb);
            nfa = 1;
        }
        c->gin[1] = t.trans_b ? build_dot(b, gy, x, nb, nfa, true, t.trans_a) : build_dot(b, x, gy, nb, nfa, !t.trans_a, false);
    }
    return b->status;
}

static bool shard_dot(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    DotDims t;
    if (!dot_dims(n, graph_shape(g, n->in[0])->ndim, graph_shape(g, n->in[1])->ndim, &t)) return false;
    row_replicate(n, row);
    if (p.kind == PLACE_PARTIAL) {  // linear in each operand while the other is whole
        bool vector = node_int_or(n, ATTR_BIAS, 0) != 0;  // would be added by every rank, as anything whole
        if (slot < 0 || slot > 1 || p.reduce != RED_SUM || vector) return false;
        row->in[slot] = row->out[0] = PARTIAL_SUM;
        if (n->nin == 3) row->in[2] = PARTIAL_SUM;
        return true;
    }
    if (!placement_is_partition(g, &p)) return false;
    bool bias = n->nin == 3 && node_int_or(n, ATTR_BIAS, 0) != 0;
    int operand = slot >= 0 ? slot : 2, last = graph_shape(g, n->out[0])->ndim - 1;
    if (slot == 2 && bias) p.dim = last;
    for (int group = 0; group < DOT_NGROUP; group++) {
        int i = p.dim - t.start[operand][group];
        if (t.start[operand][group] < 0 || i < 0 || i >= t.n[group]) continue;
        if (t.start[0][group] >= 0) row->in[0] = shard_on(t.start[0][group] + i, p.layout);
        if (t.start[1][group] >= 0) row->in[1] = shard_on(t.start[1][group] + i, p.layout);
        if (group == DOT_CONTRACT && bias) return false;
        row->out[0] = group == DOT_CONTRACT ? PARTIAL_SUM : shard_on(t.start[2][group] + i, p.layout);
        if (n->nin == 3 && !bias) row->in[2] = row->out[0];
        if (n->nin == 3 && bias && row->out[0].dim == last) row->in[2] = shard_on(0, p.layout);
        return true;
    }
    return false;
}

static void cost_dot(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    DotDims t;
    CHECK(dot_dims(n, in[0].ndim, in[1].ndim, &t), "dot with bad dims");
    double k = 1;
    for (int i = 0; i < t.n[DOT_CONTRACT]; i++) k *= (double)in[0].dim[t.start[0][DOT_CONTRACT] + i];
    cost_memory_bound(n, in, out, c);
    c->flops = 2 * k * operand_numel(&out[0]);
}

#define F32x2 {DT_F32, DT_F32}
#define DOT_ATTRS(nb, nc, ta, tb)                                                                   \
    .nattr = 4, .attr = {{.key = ATTR_NBATCH, .u.i = nb}, {.key = ATTR_NCONTRACT, .u.i = nc},       \
                         {.key = ATTR_TRANS_A, .u.i = ta}, {.key = ATTR_TRANS_B, .u.i = tb}}
#define F32x3 {DT_F32, DT_F32, DT_F32}
#define DOT_BIAS(nb, nc, ta, tb)                                                                    \
    .nattr = 5, .attr = {{.key = ATTR_NBATCH, .u.i = nb}, {.key = ATTR_NCONTRACT, .u.i = nc},       \
                         {.key = ATTR_TRANS_A, .u.i = ta}, {.key = ATTR_TRANS_B, .u.i = tb}, {.key = ATTR_BIAS, .u.i = 1}}
static const Sample dot_samples[] = {
    {.label = "matrix", .nin = 2, .shape = {{2, {5, 3}}, {2, {3, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "linear", .nin = 2, .shape = {{3, {2, 7, 5}}, {2, {6, 5}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 1)},
    {.label = "trans_a", .nin = 2, .shape = {{2, {5, 6}}, {2, {5, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 1, 0)},
    {.label = "both transposed", .nin = 2, .shape = {{2, {5, 6}}, {2, {7, 5}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 1, 1)},
    {.label = "batched", .nin = 2, .shape = {{4, {2, 3, 5, 4}}, {4, {2, 3, 6, 4}}}, .dtype = F32x2, DOT_ATTRS(2, 1, 0, 1)},
    {.label = "batched trans_a", .nin = 2, .shape = {{3, {5, 4, 6}}, {3, {5, 4, 3}}}, .dtype = F32x2, DOT_ATTRS(1, 1, 1, 0)},
    {.label = "two contracted", .nin = 2, .shape = {{3, {2, 5, 3}}, {3, {2, 5, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 2, 1, 0)},
    {.label = "two contracted, two free, all transposed",
     .nin = 2,
     .shape = {{5, {2, 3, 5, 2, 3}}, {4, {2, 6, 3, 5}}},
     .dtype = F32x2,
     DOT_ATTRS(1, 2, 1, 1)},
    {.label = "vectors", .nin = 2, .shape = {{1, {7}}, {1, {7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "matrix times vector", .nin = 2, .shape = {{2, {5, 6}}, {1, {6}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "vector times matrix, batched",
     .nin = 2,
     .shape = {{2, {3, 5}}, {3, {3, 7, 5}}},
     .dtype = F32x2,
     DOT_ATTRS(1, 1, 0, 1)},
    {.label = "added to",
     .nin = 3,
     .shape = {{3, {2, 7, 5}}, {2, {6, 5}}, {3, {2, 7, 6}}},
     .dtype = F32x3,
     DOT_ATTRS(0, 1, 0, 1)},
    {.label = "added to, batched, trans_a",
     .nin = 3,
     .shape = {{3, {5, 4, 6}}, {3, {5, 4, 3}}, {3, {5, 6, 3}}},
     .dtype = F32x3,
     DOT_ATTRS(1, 1, 1, 0)},
    {.label = "bias", .nin = 3, .shape = {{3, {2, 7, 5}}, {2, {6, 5}}, {1, {6}}}, .dtype = F32x3, DOT_BIAS(0, 1, 0, 1)},
    {.label = "bias, wide", .nin = 3, .shape = {{2, {3, 40}}, {2, {40, 50}}, {1, {50}}}, .dtype = F32x3, DOT_BIAS(0, 1, 0, 0)},
    {.label = "bias, batched",
     .nin = 3,
     .shape = {{3, {5, 4, 6}}, {3, {5, 6, 3}}, {1, {3}}},
     .dtype = F32x3,
     DOT_BIAS(1, 1, 0, 0)},
    {.label = "bias, two free dims of b",
     .nin = 3,
     .shape = {{2, {3, 4}}, {4, {3, 4, 5, 6}}, {1, {6}}},
     .dtype = F32x3,
     DOT_BIAS(1, 1, 0, 0)},
    {.label = "bias, no free dim of b",
     .nin = 3,
     .shape = {{3, {2, 5, 7}}, {1, {7}}, {1, {5}}},
     .dtype = F32x3,
     DOT_BIAS(0, 1, 0, 0)},
    {.label = "bias, batch alone", .nin = 3, .shape = {{2, {6, 7}}, {2, {6, 7}}, {1, {6}}}, .dtype = F32x3, DOT_BIAS(1, 1, 0, 0)},
};

const OpInfo op_info_DOT = {
    .infer = infer_dot,
    .grad = grad_dot,
    .shard = shard_dot,
    .cost = cost_dot,
    .samples = dot_samples,
    .nsample = sizeof dot_samples / sizeof *dot_samples,
};
