// Which attention node goes to cuDNN and which to our own kernel. The choice and the scratch follow from the node and its
// operands' shapes alone. cuDNN takes bf16 with a mask that is a band of keys at each rank's contiguous queries, where every
// query sees a key; and documents packed into whole sequences, whose numbers are proven to rise and of which there are at most so
// many in each. Everything else (other vectors, biases, soft-cap, dropout, several spans of queries, f32) is ours.
#include <math.h>
#include "backend/cuda/attention/attention_kind.h"
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/flash.h"
#include "backend/cuda/device/operand.h"
#include "backend/cuda/kernels.h"
#include "ops/attention.h"

// ---- the choice
// -------------------------------------------------------------------------------------------------------------------
// Every local KV head serves as many local query heads, in order: what cuDNN assumes. (Ranks may share a KV head, so that one has
// fewer.)
static bool heads_in_groups(const Operand *q, const Operand *k) {
    int64_t heads = q->dim[1], kv_heads = k->dim[1];
    if (kv_heads < 1 || heads % kv_heads) return false;
    int64_t group = q->global[1] / k->global[1], local = heads / kv_heads;
    for (int64_t h = 0; h < heads; h++)
        if (operand_global(q, 1, h) / group != operand_global(k, 1, h / local)) return false;
    return true;
}

static bool bf16_operands(const Node *n, const Operand *in, const Operand *out) {
    bool grad = n->op == OP_ATTENTION_GRAD;
    for (int i = 0; i < 3; i++)
        if (in[i].dtype != DT_BF16) return false;
    if (!grad) return out[0].dtype == DT_BF16 && out[1].dtype == DT_F32;
    for (int i = 0; i < 3; i++)
        if (out[i].dtype != DT_BF16) return false;
    return in[3].dtype == DT_BF16 && in[4].dtype == DT_F32 && in[5].dtype == DT_BF16;
}

// Band of global positions -> cuDNN's, whose queries start at 0 (`first` here). A bound that hides nothing from these queries is
// none: a window wider than the sequence is plain causal. A band with a lower bound only is none of cuDNN's.
static bool mask_of(const AttentionBand *b, int64_t first, DnnCall *c) {
    bool hi = b->has_hi && first + b->hi < c->nk - 1, lo = b->has_lo && first + c->nq - 1 + b->lo > 0;
    c->mask = lo ? DNN_WINDOW : hi ? DNN_CAUSAL : DNN_FULL;
    if (lo && !b->has_hi) return false;
    if (hi || lo) c->shift = b->hi + first;
    if (lo) c->window = b->hi - b->lo + 1;
    return true;
}

// The mask holds within documents, whose numbers are one value, proven never to fall along positions. Queries are whole, so the
// vectors are too.
static bool documents(const Node *n, const Operand *in, const Operand *vec, AttentionBand *band, DnnCall *c) {
    int first = n->op == OP_ATTENTION_GRAD ? ATTENTION_GRAD_NIN : ATTENTION_NIN;
    const Operand *q = &in[0], *k = &in[1];
    AttentionDocuments docs;
    if (n->nin != first + 2 || n->in[first] != n->in[first + 1] || node_int_or(n, ATTR_MONOTONE, 0) != 3) return false;
    if (q->sdim == 2 || q->global[2] != k->global[2]) return false;
    if (!attention_documents(node_prog(n, ATTR_PROG), q->global[2], k->global[2], band, &docs)) return false;
    if (vec->dtype != DT_I64 || vec->global[1] != 1 || vec->dim[2] != c->nq) return false;
    if (vec->dim[0] != 1 && vec->dim[0] != c->batch) return false;
    if (vec->global[0] != 1 && vec->sdim != (q->sdim == 0 ? 0 : -1)) return false;
    c->slots = dnn_slots(node_int_or(n, ATTR_DOCUMENTS, 0), c->nq), c->one_packing = vec->dim[0] == 1;
    return c->slots > 0;
}

// true: cuDNN's, and the call.
static bool dnn_call(const Node *n, const Operand *in, const Operand *out, DnnCall *c) {
    const Operand *q = &in[0], *k = &in[1], *v = &in[2];
    bool grad = n->op == OP_ATTENTION_GRAD;
    AttentionBand band;
    *c = (DnnCall){.batch = q->dim[0],
                   .heads = q->dim[1],
                   .kv_heads = k->dim[1],
                   .nq = q->dim[2],
                   .nk = k->dim[2],
                   .dim = q->dim[3],
                   .scale = node_float_or(n, ATTR_SCALE, 1 / sqrt((double)q->dim[3])),
                   .backward = grad,
                   .groups = grad ? attention_groups(n, k->dim[1]) : 1,  // the forward has no scratch that heads have a part in
                   .cut = -1};
    int first = grad ? ATTENTION_GRAD_NIN : ATTENTION_NIN;
    if (!bf16_operands(n, in, out)) return false;
    if (node_float_or(n, ATTR_SOFTCAP, 0) != 0 || node_float_or(n, ATTR_DROPOUT, 0) != 0) return false;
    if (v->dim[3] != q->dim[3] || q->dim[3] > 128) return false;  // wider heads: cuDNN has engines, but they were not measured
    if (!heads_in_groups(q, k)) return false;
    if ((q->sdim == 2 && q->nspan != 1) || k->sdim == 2) return false;
    if (n->nin > first ? !documents(n, in, &in[first], &band, c)
                       : !attention_band(node_prog(n, ATTR_PROG), q->global[2], k->global[2], &band))
        return false;
    return mask_of(&band, q->sdim == 2 ? q->span[0].begin : 0, c) && !dnn_refuses(c);
}

// ---- kernels
// ----------------------------------------------------------------------------------------------------------------------
typedef Status (*PrepareFn)(Device *dev, const KernelArgs *k, void **state, Diag *d);

static size_t scratch(const Node *n, const Operand *in, const Operand *out,
                      size_t (*own)(const Node *, const Operand *, const Operand *)) {
    DnnCall c;
    return dnn_call(n, in, out, &c) ? dnn_scratch(&c) : own(n, in, out);
}

static Status prepare(Device *dev, const KernelArgs *k, void **state, PrepareFn own, Diag *d) {
    DnnCall c;
    if (!dnn_call(k->node, k->in, k->out, &c)) return own(dev, k, state, d);
    DnnPlan *p;
    TRY(dnn_prepare(dev, &c, &p, d));
    *state = p;
    return ST_OK;
}

const char *cuda_attention_kernel(const Node *n, const Operand *in, const Operand *out) {
    DnnCall c;
    if (n->op != OP_SDPA && dnn_call(n, in, out, &c)) return "cudnn";
    return n->op == OP_SDPA ? "cudnn" : flash_kernel_name(n, in, out);  // what sdpa becomes is not known yet
}

size_t cuda_attention_scratch(const Node *n, const Operand *in, const Operand *out) {
    return scratch(n, in, out, flash_attention_scratch);
}
size_t cuda_attention_grad_scratch(const Node *n, const Operand *in, const Operand *out) {
    return scratch(n, in, out, flash_attention_grad_scratch);
}
Status cuda_attention_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    return prepare(dev, k, state, flash_attention_prepare, d);
}
Status cuda_attention_grad_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    return prepare(dev, k, state, flash_attention_grad_prepare, d);
}

Status cuda_attention(const KernelArgs *k, Diag *d) {
    DnnCall c;
    if (!dnn_call(k->node, k->in, k->out, &c)) return flash_attention(k, d);
    DnnData x = {.q = k->in[0].data, .k = k->in[1].data, .v = k->in[2].data, .o = k->out[0].data, .lse = k->out[1].data};
    if (c.slots) x.ids = k->in[ATTENTION_NIN].data, x.node = k->id;
    return dnn_run(k->device, k->state, &x, k->scratch, d);
}

Status cuda_attention_grad(const KernelArgs *k, Diag *d) {
    DnnCall c;
    if (!dnn_call(k->node, k->in, k->out, &c)) return flash_attention_grad(k, d);
    DnnData x = {.q = k->in[0].data,
                 .k = k->in[1].data,
                 .v = k->in[2].data,
                 .o = k->in[3].data,
                 .lse = k->in[4].data,
                 .dout = k->in[5].data,
                 .dq = k->out[0].data,
                 .dk = k->out[1].data,
                 .dv = k->out[2].data};
    if (c.slots) x.ids = k->in[ATTENTION_GRAD_NIN].data, x.node = k->id;
    return dnn_run(k->device, k->state, &x, k->scratch, d);
}
