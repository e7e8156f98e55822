// Which calls cuDNN takes and how much scratch they need: needs no library, so that any machine plans the same.
#include <stdlib.h>
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/packed.h"
#include "base/containers.h"

enum { TILE = 128, SLACK = 4096, FORWARD_WORKSPACE = 1 << 20 };
enum { MOST_ENTRIES = 65535, ENTRY_WORKSPACE = 512 };  // cuDNN's workspace: 256 an entry forward, 448 backward
static const int64_t GROUP_NBYTES = (int64_t)512 << 20;  // scratch that a group may have, if one KV head's needs no more

// Powers of two, so that runs over other data find the same plans.
int64_t dnn_slots(int64_t documents, int64_t n) {
    documents = min_i64(documents, n);
    if (documents < 1 || documents > DNN_MOST_SLOTS) return 0;
    int64_t slots = DNN_LEAST_SLOTS;
    while (slots < documents) slots *= 2;
    return slots;
}

static const char *refuses_packed(const DnnCall *c) {
    if (c->nq != c->nk || c->mask == DNN_WINDOW || (c->mask == DNN_CAUSAL && c->shift != 0))
        return "packed documents are full or causal";
    // cuDNN's front end warns of packed gradients whose head dim is no multiple of 16.
    if (c->dim % 16 || c->dim > 128) return "packed head dim is not a multiple of 16, at most 128";
    if (c->slots * (c->heads / c->kv_heads) > MOST_ENTRIES) return "too many packed documents";
    return NULL;
}

// The largest tensor that a group of `batch` entries is described by: from its first to its last element. (Packed documents: as
// far as their offsets reach; dims and strides name more, every slot as long as the sequence, and no kernel uses those.)
static bool indexable(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t group = c->heads / c->kv_heads, most = max_i64(group * c->nq, c->nk);
    return ((batch - 1) * c->kv_heads + kv_heads) * most * c->dim <= INT32_MAX;
}

const char *dnn_refuses(const DnnCall *c) {
    if (c->slots && refuses_packed(c)) return refuses_packed(c);
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
bool dnn_needs_cut(const DnnCall *c) {
    if (c->slots) return true;
    return c->backward && (c->nq % TILE || c->nk % TILE);
}

static int64_t align_up(int64_t n) { return (n + 255) & ~(int64_t)255; }

static int64_t take(int64_t *total, int64_t nbytes) {
    int64_t at = *total;
    *total += align_up(nbytes);
    return at;
}

static int64_t entries(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    return batch * kv_heads * (c->heads / c->kv_heads) * c->slots;
}

// A stretch of TILE rows lies behind what the kernel may read or write by whole tiles.
static DnnParts packed_parts(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t rows = (batch * kv_heads * (c->heads / c->kv_heads)) * c->nq + TILE, n = entries(c, batch, kv_heads), total = 0;
    DnnParts p = {0};
    if (c->backward) {
        p.acc = take(&total, rows * c->dim * 4), p.sum = take(&total, rows * 4);
        bool each = c->heads == c->kv_heads;
        p.dk = take(&total, each ? 0 : rows * c->dim * 2), p.dv = take(&total, each ? 0 : rows * c->dim * 2);
    }
    p.q = take(&total, (n + 1) * 8), p.k = take(&total, (n + 1) * 8), p.row = take(&total, (n + 1) * 8);
    p.length = take(&total, n * 4), p.begin = take(&total, batch * c->slots * 8);
    p.count = take(&total, batch * ceil_div(c->nq, PACKED_CHUNK) * 4), p.ndocument = take(&total, batch * 4);
    p.workspace_nbytes = n * ENTRY_WORKSPACE + SLACK;
    p.workspace = take(&total, p.workspace_nbytes);
    p.total = total;
    return p;
}

void dnn_pack(const Device *dev, const DnnCall *c, const DnnParts *p, int64_t batch, int64_t kv_heads, const DnnData *group_data,
              void *scratch) {
    char *at = scratch;
    int64_t group = c->heads / c->kv_heads;
    GpuPacked g = {.ids = group_data->ids,
                   .ids_stride = c->one_packing ? 0 : c->nq,
                   .rows = batch,
                   .n = c->nq,
                   .heads = kv_heads * group,
                   .group = group,
                   .slots = c->slots,
                   .dim = c->dim,
                   .count = (void *)(at + p->count),
                   .begin = (void *)(at + p->begin),
                   .ndocument = (void *)(at + p->ndocument),
                   .q = (void *)(at + p->q),
                   .k = (void *)(at + p->k),
                   .row = (void *)(at + p->row),
                   .length = (void *)(at + p->length),
                   .node = group_data->node};
    gpu_packed(dev, &g);
}

void dnn_sum_heads(const Device *dev, const DnnCall *c, const DnnParts *p, int64_t batch, int64_t kv_heads, void *dk, void *dv,
                   void *scratch) {
    int64_t group = c->heads / c->kv_heads;
    gpu_packed_sum(dev, (char *)scratch + p->dk, dk, batch * kv_heads, group, c->nk * c->dim);
    gpu_packed_sum(dev, (char *)scratch + p->dv, dv, batch * kv_heads, group, c->nk * c->dim);
}

DnnParts dnn_parts(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    if (c->slots) return packed_parts(c, batch, kv_heads);
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
    if (entries(c, batch, kv_heads) > MOST_ENTRIES) return false;
    int64_t most = c->group_nbytes > 0 ? c->group_nbytes : GROUP_NBYTES;
    if (most == INT64_MAX) return true;
    return indexable(c, batch, kv_heads) && dnn_parts(c, batch, kv_heads).total <= most;
}

// A packed group is one run of tokens, so that all heads of each entry of the batch are in it or some heads of one entry.
DnnGroups dnn_groups(const DnnCall *c) {
    int64_t most = max_i64(1, c->kv_heads / max_i64(1, c->groups));  // KV heads of a group
    bool together = !c->slots || c->batch == 1 || most == c->kv_heads;
    if (together && c->kv_heads % most == 0 && fits(c, c->batch, most))
        return (DnnGroups){c->batch, most, c->kv_heads / most};
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
                     .dv = into(x->dv, k),
                     .ids = c->one_packing ? x->ids : after(x->ids, b * c->nq * 8),
                     .node = x->node};
}

size_t dnn_scratch(const DnnCall *c) {
    DnnGroups g = dnn_groups(c);
    return (size_t)dnn_parts(c, g.batch, g.kv_heads).total;
}
