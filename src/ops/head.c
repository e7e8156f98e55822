// The output layer with its cross-entropy: logits over a vocabulary that are never whole. Made by the pass head: head_fwd before
// gradients are taken, head_grad as its gradient, and head where the two can be one (the logits are made once instead of twice).
#include "ops/rules.h"

// Operands of the three: h [N, D], w [V, D], idx [N] first in all of them; vectors [N] after.
enum { HEAD_H, HEAD_W, HEAD_IDX, HEAD_VECTORS };

// ---- shapes ------------------------------------------------------------------------------------------------------------
// Statistics of rows and the gradient of w are kept in this type: f32 where h and w are bf16.
static DType wide(DType t) { return t == DT_F64 ? DT_F64 : DT_F32; }

static Status check_numbers(const Node *n, Diag *d) {
    double scale = node_float_or(n, ATTR_SCALE, 1), cap = node_float_or(n, ATTR_SOFTCAP, 0);
    if (!(scale - scale == 0)) return infer_error(d, "%s: a scale of %g", op_name(n->op), scale);
    if (!(cap >= 0 && cap - cap == 0)) return infer_error(d, "%s: a softcap of %g", op_name(n->op), cap);
    return ST_OK;
}

// All operands; `nvector` vectors [N] of statistics or cotangents follow idx.
static Status check_operands(const Graph *g, const Node *n, int nvector, Diag *d) {
    TRY(rule_nin(n, HEAD_VECTORS + nvector, d));
    DType t = in_dtype(g, n, HEAD_H);
    if (t != DT_F32 && t != DT_F64 && t != DT_BF16)
        return infer_error(d, "%s: operand 0 must be f32, f64 or bf16, not %s", op_name(n->op), dtype_name(t));
    TRY(rule_same_type(g, n, HEAD_H, HEAD_W, d));
    TRY(rule_type(g, n, HEAD_IDX, TYPE_INT, d));
    const Shape *h = in_shape(g, n, HEAD_H), *w = in_shape(g, n, HEAD_W);
    if (h->ndim != 2 || w->ndim != 2 || h->dim[1] != w->dim[1])
        return infer_error(d, "%s: rows must be [N, D] and the matrix [V, D], not %s and %s", op_name(n->op), shape_text(h).s,
                           shape_text(w).s);
    for (int i = HEAD_IDX; i < n->nin; i++) {
        const Shape *s = in_shape(g, n, i);
        if (s->ndim != 1 || s->dim[0] != h->dim[0])
            return infer_error(d, "%s: operand %d must be [%lld], one per row, not %s", op_name(n->op), i, (long long)h->dim[0],
                               shape_text(s).s);
        if (i >= HEAD_VECTORS && in_dtype(g, n, i) != wide(t))
            return infer_error(d, "%s: operand %d must be %s, not %s", op_name(n->op), i, dtype_name(wide(t)),
                               dtype_name(in_dtype(g, n, i)));
    }
    return check_numbers(n, d);
}

static void row_results(const Graph *g, const Node *n, TypeOut *out) {  // lse, pick
    out[0] = out[1] = (TypeOut){wide(in_dtype(g, n, HEAD_H)), *in_shape(g, n, HEAD_IDX)};
}

static void grad_results(const Graph *g, const Node *n, TypeOut *out) {  // dh, dw
    out[0] = (TypeOut){in_dtype(g, n, HEAD_H), *in_shape(g, n, HEAD_H)};
    out[1] = (TypeOut){wide(in_dtype(g, n, HEAD_H)), *in_shape(g, n, HEAD_W)};
}

static Status infer_head_fwd(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_operands(g, n, 0, d));
    row_results(g, n, out);
    *nout = 2;
    return ST_OK;
}

static Status infer_head_grad(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_operands(g, n, 3, d));
    grad_results(g, n, out);
    *nout = 2;
    return ST_OK;
}

static Status infer_head(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(check_operands(g, n, 2, d));
    row_results(g, n, out);
    grad_results(g, n, out + 2);
    *nout = 4;
    return ST_OK;
}

// ---- gradient ----------------------------------------------------------------------------------------------------------
// The gradient of w comes out wide, also where w is narrow: that is how gradients of parameters are summed (pass/grad.c).
static Status grad_head_fwd(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    const Node *n = c->n;
    if (!c->want[HEAD_H] && !c->want[HEAD_W]) return ST_OK;
    ValueId cot[2], out[2];
    for (int j = 0; j < 2; j++)
        cot[j] = c->gout[j] != NO_VALUE ? c->gout[j] : build_full(b, build_shape(b, n->out[j]), build_dtype(b, n->out[j]), 0);
    Attr attr[] = {attr_f(ATTR_SCALE, node_float_or(n, ATTR_SCALE, 1)), attr_f(ATTR_SOFTCAP, node_float_or(n, ATTR_SOFTCAP, 0))};
    ValueId in[] = {n->in[HEAD_H], n->in[HEAD_W], n->in[HEAD_IDX], n->out[0], cot[0], cot[1]};
    build_multi(b, OP_HEAD_GRAD, 6, in, 2, attr, 2, out);
    if (b->status != ST_OK) return b->status;
    c->gin[HEAD_H] = out[0];
    c->gin[HEAD_W] = out[1];
    return b->status;
}

// ---- sharding: rows ----------------------------------------------------------------------------------------------------
static int head_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g;
    bool dw = slot < 0 && n->op != OP_HEAD_FWD && ~slot == n->nout - 1;
    return slot == HEAD_W || dw || dim != 0 ? NO_AXIS : 0;
}

static bool shard_head(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    return row_from_axes(g, n, slot, p, head_axis, n->op == OP_HEAD_FWD ? NULL : &PARTIAL_SUM, row);
}

// ---- cost --------------------------------------------------------------------------------------------------------------
// One product each for logits, dh and dw.
static void cost_head(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    double products = n->op == OP_HEAD_FWD ? 1 : 3;
    c->flops = products * 2 * operand_numel(&in[HEAD_W]) * (double)in[HEAD_H].dim[0];
}

// ---- records -----------------------------------------------------------------------------------------------------------
// More rows than a kernel takes at a time are among them.
#define HEAD_SAMPLE(name, N, D, V, NV, SCALE_, CAP)                                                                       \
    {.label = name, .nin = HEAD_VECTORS + NV,                                                                             \
     .shape = {DIMS(N, D), DIMS(V, D), DIMS(N), DIMS(N), DIMS(N), DIMS(N)},                                               \
     .dtype = {DT_F32, DT_F32, DT_I64, DT_F32, DT_F32, DT_F32}, .hi = {0, 0, V},                                          \
     .nattr = 2, .attr = {SAMPLE_F(SCALE, SCALE_), SAMPLE_F(SOFTCAP, CAP)}}
#define HEAD_SAMPLES(array, NV)                                                                                           \
    static const Sample array[] = {                                                                                       \
        HEAD_SAMPLE("rows", 7, 4, 5, NV, 1, 0),         HEAD_SAMPLE("scaled", 8, 3, 37, NV, 0.25, 0),                     \
        HEAD_SAMPLE("soft cap", 6, 5, 9, NV, 1.5, 2),   HEAD_SAMPLE("one class", 4, 2, 1, NV, 1, 0),                      \
        HEAD_SAMPLE("many rows", 1100, 2, 3, NV, 1, 0),                                                                   \
    }
HEAD_SAMPLES(head_fwd_samples, 0);
HEAD_SAMPLES(head_grad_samples, 3);
HEAD_SAMPLES(head_samples, 2);

const OpInfo op_info_HEAD_FWD = {
    .infer = infer_head_fwd, .grad = grad_head_fwd, .shard = shard_head, .cost = cost_head, SAMPLES(head_fwd_samples)};
const OpInfo op_info_HEAD_GRAD = {.infer = infer_head_grad,
                                  .grad_error = "second derivatives are not supported",
                                  .shard = shard_head,
                                  .cost = cost_head,
                                  SAMPLES(head_grad_samples)};
const OpInfo op_info_HEAD = {.infer = infer_head,
                             .grad_error = "it is made after gradients are taken",
                             .shard = shard_head,
                             .cost = cost_head,
                             SAMPLES(head_samples)};
