// Which calls cuDNN takes and how much scratch they need: needs no library, so that any machine plans the same.
#include <stdlib.h>
#include "backend/cuda/attention/dnn.h"
#include "base/containers.h"

enum { TILE = 128, SLACK = 4096, FORWARD_WORKSPACE = 1 << 20 };
static const int64_t GROUP_NBYTES = (int64_t)512 << 20;  // scratch that a group may have, if one KV head's needs no more

// The largest tensor that a group of `batch` entries is described by: from its first to its last element.
static bool indexable(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t group = c->heads / c->kv_heads, most = max_i64(group * c->nq, c->nk);
    return ((batch - 1) * c->kv_heads + kv_heads) * most * c->dim <= INT32_MAX;
}

const char *dnn_refuses(const DnnCall *c) {
    if (c->dim % 8 || c->dim > 256) return "head dim is not a multiple of 8, at most 256";
    if (c->batch < 1 || c->heads < 1 || c->nq < 1 || c->nk < 1) return "nothing to attend to";
    if (c->nq >= 1 << 30 || c->nk >= 1 << 30) return "positions do not fit 32 bits";
    if (!indexable(c, 1, 1)) return "the queries that share a KV head are 2^31 elements or more";
    if (c->mask == DNN_FULL) return NULL;
    // Every query must see a key: what a row without any gets is ours to define, not cuDNN's.
    if (c->shift < 0) return "the first queries see no key";
    if (c->shift >= 1 << 30) return "shift does not fit 32 bits";
    if (c->mask == DNN_CAUSAL) return NULL;
    if (c->window < 1) return "empty window";
    if (c->nq - 1 + c->shift - c->window >= c->nk - 1) return "the last queries see no key";
    // The engine compares positions with the window's end in f32.
    if (c->nk + llabs((long long)(c->window - c->shift)) >= 1 << 24 || c->nq >= 1 << 24)
        return "window's end is not exact in f32";
    return NULL;
}

// Where lengths are not whole tiles, the backward kernel multiplies what lies beyond them by exp(0 - lse), which is infinite for
// lse below -88 and made dQ NaN (seen at S mod 128 = 64, cuDNN 9.19). With lengths given, scores beyond them are -inf.
bool dnn_needs_cut(const DnnCall *c) { return c->backward && (c->nq % TILE || c->nk % TILE); }

static int64_t align_up(int64_t n) { return (n + 255) & ~(int64_t)255; }

DnnParts dnn_parts(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t heads = kv_heads * (c->heads / c->kv_heads), rows = batch * heads * c->nq;
    if (!c->backward) return (DnnParts){.total = FORWARD_WORKSPACE, .workspace_nbytes = FORWARD_WORKSPACE};
    DnnParts p = {0};
    p.sum = align_up(rows * c->dim * 4 + TILE * c->dim * 4);
    p.workspace = p.sum + align_up(rows * 4 + TILE * 4);
    // dk and dv of every query head, before those of one KV head are summed; measured: these bytes and 256
    p.workspace_nbytes = (c->heads == c->kv_heads ? 0 : 2 * batch * heads * c->nk * c->dim * 2) + SLACK;
    p.total = p.workspace + align_up(p.workspace_nbytes);
    return p;
}

static bool fits(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t most = c->group_nbytes > 0 ? c->group_nbytes : GROUP_NBYTES;
    if (most == INT64_MAX) return true;
    return indexable(c, batch, kv_heads) && dnn_parts(c, batch, kv_heads).total <= most;
}

DnnGroups dnn_groups(const DnnCall *c) {
    int64_t most = max_i64(1, c->kv_heads / max_i64(1, c->groups));  // KV heads of a group
    if (c->kv_heads % most == 0 && fits(c, c->batch, most)) return (DnnGroups){c->batch, most, c->kv_heads / most};
    for (int64_t g = most; g > 1; g--)
        if (c->kv_heads % g == 0 && fits(c, 1, g)) return (DnnGroups){1, g, c->batch * (c->kv_heads / g)};
    return (DnnGroups){1, 1, c->batch * c->kv_heads};
}

static const void *after(const void *base, int64_t nbytes) { return base ? (const char *)base + nbytes : NULL; }
static void *into(void *base, int64_t nbytes) { return base ? (char *)base + nbytes : NULL; }

DnnData dnn_group_data(const DnnCall *c, const DnnData *x, int64_t b, int64_t kv) {
    int64_t group = c->heads / c->kv_heads, row = (b * c->heads + kv * group) * c->nq;
    int64_t q = row * c->dim * 2, k = (b * c->kv_heads + kv) * c->nk * c->dim * 2;
    return (DnnData){.q = after(x->q, q),
                     .k = after(x->k, k),
                     .v = after(x->v, k),
                     .o = into(x->o, q),
                     .lse = into(x->lse, row * 4),
                     .dout = after(x->dout, q),
                     .dq = into(x->dq, q),
                     .dk = into(x->dk, k),
                     .dv = into(x->dv, k)};
}

size_t dnn_scratch(const DnnCall *c) {
    DnnGroups g = dnn_groups(c);
    return (size_t)dnn_parts(c, g.batch, g.kv_heads).total;
}
