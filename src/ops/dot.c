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

static Status infer_dot(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin != 2) return infer_error(d, "takes 2 operands, not %d", n->nin);
    const Value *a = graph_value(g, n->in[0]), *b = graph_value(g, n->in[1]);
    if (!dtype_is_float(a->dtype) || a->dtype != b->dtype)
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
    out[0].dtype = a->dtype;
    out[0].shape.ndim = nd;
    for (int i = 0; i < t.n[DOT_BATCH] + t.n[DOT_FREE_A]; i++)
        out[0].shape.dim[i] =
            a->shape.dim[i < t.n[DOT_BATCH] ? i : t.start[0][DOT_FREE_A] + i - t.n[DOT_BATCH]];
    for (int i = 0; i < t.n[DOT_FREE_B]; i++)
        out[0].shape.dim[t.start[2][DOT_FREE_B] + i] = b->shape.dim[t.start[1][DOT_FREE_B] + i];
    *nout = 1;
    return rule_check_shape(&out[0].shape, d);
}


// With g = cotangent [batch, free_a, free_b]: da contracts free_b of g and b, db contracts free_a of a and g. Which of the two
// stands first decides the order of the result's dims, so that it comes out as the operand's own without a permute.
static Status grad_dot(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    const Node *n = c->n;
    if (c->gout[0] == NO_VALUE) return ST_OK;
    ValueId x = n->in[0], y = n->in[1], gx = c->gout[0], gy = c->gout[0];
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
        if (slot < 0 || p.reduce != RED_SUM) return false;
        row->in[slot] = row->out[0] = PARTIAL_SUM;
        return true;
    }
    if (!placement_is_partition(g, &p)) return false;
    int operand = slot >= 0 ? slot : 2;
    for (int group = 0; group < DOT_NGROUP; group++) {
        int i = p.dim - t.start[operand][group];
        if (t.start[operand][group] < 0 || i < 0 || i >= t.n[group]) continue;
        if (t.start[0][group] >= 0) row->in[0] = shard_on(t.start[0][group] + i, p.layout);
        if (t.start[1][group] >= 0) row->in[1] = shard_on(t.start[1][group] + i, p.layout);
        row->out[0] = group == DOT_CONTRACT ? PARTIAL_SUM : shard_on(t.start[2][group] + i, p.layout);
        return true;
    }
    return false;
}

static void cost_dot(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    DotDims t;
    CHECK(dot_dims(n, in[0].ndim, in[1].ndim, &t), "dot with bad dims");
    double k = 1;
    for (int i = 0; i < t.n[DOT_CONTRACT]; i++) k *= (double)in[0].dim[t.start[0][DOT_CONTRACT] + i];
    c->flops = 2 * k * operand_numel(&out[0]);
    c->nbytes = operand_nbytes(&in[0]) + operand_nbytes(&in[1]) + operand_nbytes(&out[0]);
}

#define F32x2 {DT_F32, DT_F32}
#define DOT_ATTRS(nb, nc, ta, tb)                                                                   \
    .nattr = 4, .attr = {{.key = ATTR_NBATCH, .u.i = nb}, {.key = ATTR_NCONTRACT, .u.i = nc},       \
                         {.key = ATTR_TRANS_A, .u.i = ta}, {.key = ATTR_TRANS_B, .u.i = tb}}
static const Sample dot_samples[] = {
    {.label = "matrix", .nin = 2, .shape = {{2, {5, 3}}, {2, {3, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "linear", .nin = 2, .shape = {{3, {2, 7, 5}}, {2, {6, 5}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 1)},
    {.label = "trans_a", .nin = 2, .shape = {{2, {5, 6}}, {2, {5, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 1, 0)},
    {.label = "both transposed", .nin = 2, .shape = {{2, {5, 6}}, {2, {7, 5}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 1, 1)},
    {.label = "batched", .nin = 2, .shape = {{4, {2, 3, 5, 4}}, {4, {2, 3, 6, 4}}}, .dtype = F32x2, DOT_ATTRS(2, 1, 0, 1)},
    {.label = "batched trans_a", .nin = 2, .shape = {{3, {5, 4, 6}}, {3, {5, 4, 3}}}, .dtype = F32x2, DOT_ATTRS(1, 1, 1, 0)},
    {.label = "two contracted", .nin = 2, .shape = {{3, {2, 5, 3}}, {3, {2, 5, 7}}}, .dtype = F32x2, DOT_ATTRS(0, 2, 1, 0)},
    {.label = "two contracted, two free, all transposed", .nin = 2, .shape = {{5, {2, 3, 5, 2, 3}}, {4, {2, 6, 3, 5}}},
     .dtype = F32x2, DOT_ATTRS(1, 2, 1, 1)},
    {.label = "vectors", .nin = 2, .shape = {{1, {7}}, {1, {7}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "matrix times vector", .nin = 2, .shape = {{2, {5, 6}}, {1, {6}}}, .dtype = F32x2, DOT_ATTRS(0, 1, 0, 0)},
    {.label = "vector times matrix, batched", .nin = 2, .shape = {{2, {3, 5}}, {3, {3, 7, 5}}}, .dtype = F32x2,
     DOT_ATTRS(1, 1, 0, 1)},
};

const OpInfo op_info_DOT = {
    .infer = infer_dot,
    .grad = grad_dot,
    .shard = shard_dot,
    .cost = cost_dot,
    .samples = dot_samples,
    .nsample = sizeof dot_samples / sizeof *dot_samples,
};
