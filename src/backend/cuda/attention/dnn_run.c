// See dnn_run.h.
#include "backend/cuda/attention/dnn_run.h"
#include <math.h>
#include "base/containers.h"

DnnRun dnn_run_of(const DnnCall *c) {
    DnnRun r = {.call = *c,
                .groups = dnn_groups(c),
                .cut = c->slots || c->cut < 0 ? dnn_needs_cut(c) : c->cut > 0,
                .scale = (float)c->scale,
                .left = (float)(c->window - c->shift),
                .shift = (int32_t)c->shift};
    r.parts = dnn_parts(c, r.groups.batch, r.groups.kv_heads);
    return r;
}

// Every document of every head is an entry.
static DnnAttention packed_group(const DnnRun *r) {
    const DnnCall *c = &r->call;
    struct DnnStride s = {c->nq * c->dim, c->nq * c->dim, c->dim};
    return (DnnAttention){.batch = r->groups.batch * r->groups.kv_heads * (c->heads / c->kv_heads) * c->slots,
                          .heads = 1,
                          .kv_heads = 1,
                          .nq = c->nq,
                          .nk = c->nk,
                          .dim = c->dim,
                          .mask = c->mask,
                          .cut = true,
                          .packed = true,
                          .q = s,
                          .k = s,
                          .v = s,
                          .o = s,
                          .lse_batch = c->nq,
                          .lse_head = c->nq};
}

// One group's tensors lie in the whole operands: their batch stride is the operands'. Where a group is of one entry the stride is
// never used, and says nothing of heads that are not in it.
DnnAttention dnn_group(const DnnRun *r) {
    const DnnCall *c = &r->call;
    if (c->slots) return packed_group(r);
    int64_t group = c->heads / c->kv_heads, kv_heads = r->groups.batch > 1 ? c->kv_heads : r->groups.kv_heads;
    struct DnnStride q = {kv_heads * group * c->nq * c->dim, c->nq * c->dim, c->dim},
                     k = {kv_heads * c->nk * c->dim, c->nk * c->dim, c->dim};
    return (DnnAttention){.batch = r->groups.batch,
                          .heads = r->groups.kv_heads * group,
                          .kv_heads = r->groups.kv_heads,
                          .nq = c->nq,
                          .nk = c->nk,
                          .dim = c->dim,
                          .mask = c->mask,
                          .shifted = c->mask != DNN_FULL && c->shift != 0,
                          .cut = r->cut,
                          .q = q,
                          .k = k,
                          .v = k,
                          .o = q,
                          .lse_batch = kv_heads * group * c->nq,
                          .lse_head = c->nq};
}

// ---- operands
// ---------------------------------------------------------------------------------------------------------------------
static void give(DnnOperands *p, DnnUid uid, const void *data) {
    p->uid[p->n] = uid;
    p->data[p->n++] = (void *)(uintptr_t)data;
}

uint64_t dnn_given(const DnnOperands *x) {
    uint64_t bits = 0;
    for (int i = 0; i < x->n; i++) bits |= (uint64_t)1 << x->uid[i];
    return bits;
}

static const void *after(const void *base, int64_t nbytes) { return (const char *)base + nbytes; }

// dk and dv come out for every query head, and are summed for its KV head.
static bool each_head(const DnnCall *c) { return c->slots && c->backward && c->heads > c->kv_heads; }

static void give_lengths(DnnOperands *p, const DnnRun *r, const void *scratch) {
    const DnnParts *at = &r->parts;
    if (r->call.slots) {
        give(p, DNN_NQ, after(scratch, at->length)), give(p, DNN_NK, after(scratch, at->length));
        give(p, DNN_OFFSET_Q, after(scratch, at->q)), give(p, DNN_OFFSET_K, after(scratch, at->k));
        give(p, DNN_OFFSET_ROW, after(scratch, at->row));
    } else if (r->cut) {
        give(p, DNN_NQ, r->lengths), give(p, DNN_NK, r->lengths + r->groups.batch);
    }
}

DnnOperands dnn_operands(const DnnRun *r, const DnnData *x, const void *scratch) {
    static const float minus_inf = -INFINITY, one = 1;
    const DnnCall *c = &r->call;
    DnnOperands p = {0};
    give(&p, DNN_Q, x->q), give(&p, DNN_K, x->k), give(&p, DNN_V, x->v);
    give(&p, DNN_O, x->o), give(&p, DNN_LSE, x->lse);
    give(&p, DNN_SCALE, &r->scale);
    if (c->mask != DNN_FULL || r->cut) give(&p, DNN_MINUS_INF, &minus_inf);
    if (c->mask != DNN_FULL && c->shift != 0) give(&p, DNN_SHIFT, &r->shift);
    if (c->mask == DNN_WINDOW) give(&p, DNN_LEFT, &r->left);
    give_lengths(&p, r, scratch);
    if (!c->backward) return p;
    bool each = each_head(c);
    give(&p, DNN_DO, x->dout), give(&p, DNN_DQ, x->dq);
    give(&p, DNN_DK, each ? after(scratch, r->parts.dk) : x->dk);
    give(&p, DNN_DV, each ? after(scratch, r->parts.dv) : x->dv);
    give(&p, DNN_DQ_ACC, after(scratch, r->parts.acc)), give(&p, DNN_SUM, after(scratch, r->parts.sum));
    give(&p, DNN_ONE, &one);
    return p;
}

Status dnn_run_groups(const Device *dev, const DnnRun *r, const DnnData *data, void *scratch, DnnExecute execute, void *context,
                      Diag *d) {
    const DnnCall *c = &r->call;
    const DnnGroups *g = &r->groups;
    for (int64_t b = 0; b < c->batch; b += g->batch)
        for (int64_t kv = 0; kv < c->kv_heads; kv += g->kv_heads) {
            DnnData x = dnn_group_data(c, data, b, kv);
            if (c->slots && kv == 0) dnn_pack(dev, c, &r->parts, g->batch, g->kv_heads, &x, scratch);
            DnnOperands operands = dnn_operands(r, &x, scratch);
            TRY(execute(context, &operands, (char *)scratch + r->parts.workspace, d));
            if (each_head(c)) dnn_sum_heads(dev, c, &r->parts, g->batch, g->kv_heads, x.dk, x.dv, scratch);
        }
    return ST_OK;
}
