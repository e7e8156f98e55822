// See dnn.h.
#include "backend/cuda/dnn.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "backend/cuda/cache.h"
#include "base/containers.h"

// ---- which, and how much
// ----------------------------------------------------------------------------------------------------------
enum { TILE = 128, SLACK = 4096, FORWARD_WORKSPACE = 1 << 20 };
static const int64_t GROUP_NBYTES = (int64_t)512 << 20;  // scratch that a group may have, if one KV head's needs no more

const char *dnn_refuses(const DnnCall *c) {
    if (c->dim % 8 || c->dim > 256) return "head dim is not a multiple of 8, at most 256";
    if (c->batch < 1 || c->heads < 1 || c->nq < 1 || c->nk < 1) return "nothing to attend to";
    if (c->nq >= 1 << 30 || c->nk >= 1 << 30) return "positions do not fit 32 bits";
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

// Parts of the scratch of one group.
typedef struct Parts {
    int64_t acc, sum, workspace, total;  // offsets; bytes in all
    int64_t workspace_nbytes;
} Parts;

static Parts parts_of(const DnnCall *c, int64_t batch, int64_t kv_heads) {
    int64_t heads = kv_heads * (c->heads / c->kv_heads), rows = batch * heads * c->nq;
    if (!c->backward) return (Parts){.total = FORWARD_WORKSPACE, .workspace_nbytes = FORWARD_WORKSPACE};
    Parts p = {0};
    p.sum = align_up(rows * c->dim * 4 + TILE * c->dim * 4);
    p.workspace = p.sum + align_up(rows * 4 + TILE * 4);
    // dk and dv of every query head, before those of one KV head are summed; measured: these bytes and 256
    p.workspace_nbytes = (c->heads == c->kv_heads ? 0 : 2 * batch * heads * c->nk * c->dim * 2) + SLACK;
    p.total = p.workspace + align_up(p.workspace_nbytes);
    return p;
}

DnnGroups dnn_groups(const DnnCall *c) {
    if (parts_of(c, c->batch, c->kv_heads).total <= GROUP_NBYTES) return (DnnGroups){c->batch, c->kv_heads, 1};
    for (int64_t g = c->kv_heads; g > 1; g--)
        if (c->kv_heads % g == 0 && parts_of(c, 1, g).total <= GROUP_NBYTES)
            return (DnnGroups){1, g, c->batch * (c->kv_heads / g)};
    return (DnnGroups){1, 1, c->batch * c->kv_heads};
}

size_t dnn_scratch(const DnnCall *c) {
    DnnGroups g = dnn_groups(c);
    return (size_t)parts_of(c, g.batch, g.kv_heads).total;
}

#if LIBS_HAVE_CUDNN
#include <cuda_runtime_api.h>

// ---- plans
// ------------------------------------------------------------------------------------------------------------------------
struct DnnPlan {
    DnnPlan *next;
    char key[256];
    DnnCall call;
    DnnGroups groups;
    Parts parts;
    DnnPlanFacts facts;
    cudnnBackendDescriptor_t plan;
    int32_t *lengths;  // on the device: batch times nq, batch times nk; NULL without cut
    float scale, left;
    int32_t shift;
    bool cut;
};

typedef struct DnnDevice {
    Dnn dnn;
    DnnPlan *plans;
} DnnDevice;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Status device_of(Device *dev, DnnDevice **out, Diag *d) {
    if (!dev->dnn) {
        DnnDevice *x = calloc(1, sizeof *x);
        if (!x) return diag_error(d, ST_MEMORY, "no memory for cuDNN's record");
        Status st = dnn_open(&x->dnn, dev->stream, d);
        if (st != ST_OK) {
            free(x);
            return st;
        }
        dev->dnn = x;
    }
    *out = dev->dnn;
    return ST_OK;
}

static void free_plan(const Dnn *dnn, DnnPlan *p) {
    if (p->lengths) cudaFree(p->lengths);
    dnn_plan_free(dnn, p->plan);
    free(p);
}

void dnn_close(Device *dev) {
    DnnDevice *x = dev->dnn;
    if (!x) return;
    while (x->plans) {
        DnnPlan *p = x->plans;
        x->plans = p->next;
        free_plan(&x->dnn, p);
    }
    dnn_disconnect(&x->dnn);
    free(x);
    dev->dnn = NULL;
}

static bool plan_cut(const DnnCall *c) { return c->cut < 0 ? dnn_needs_cut(c) : c->cut > 0; }

// One group's tensors lie in the whole operands: their batch stride is the operands'.
static DnnAttention group_of(const DnnPlan *p) {
    const DnnCall *c = &p->call;
    int64_t group = c->heads / c->kv_heads;
    struct DnnStride q = {c->heads * c->nq * c->dim, c->nq * c->dim, c->dim},
                     k = {c->kv_heads * c->nk * c->dim, c->nk * c->dim, c->dim};
    return (DnnAttention){.batch = p->groups.batch,
                          .heads = p->groups.kv_heads * group,
                          .kv_heads = p->groups.kv_heads,
                          .nq = c->nq,
                          .nk = c->nk,
                          .dim = c->dim,
                          .mask = c->mask,
                          .shifted = c->mask != DNN_FULL && c->shift != 0,
                          .cut = p->cut,
                          .q = q,
                          .k = k,
                          .v = k,
                          .o = q,
                          .lse_batch = c->heads * c->nq,
                          .lse_head = c->nq};
}

// What the compiled kernel depends on, and nothing more: scale, shift and window are given to each run.
static void disk_key(const DnnPlan *p, const Device *dev, const Dnn *dnn, char *key, size_t n) {
    DnnAttention a = group_of(p);
    snprintf(key, n, "attention 1|%s|cudnn %zu|%s|b%lld h%lld/%lld q%lld k%lld d%lld mask%d%s%s|%lld %lld %lld|%lld", dev->key,
             dnn->lib->version, p->call.backward ? "backward" : "forward", (long long)a.batch, (long long)a.heads,
             (long long)a.kv_heads, (long long)a.nq, (long long)a.nk, (long long)a.dim, (int)a.mask, a.shifted ? " shifted" : "",
             a.cut ? " cut" : "", (long long)a.q.batch, (long long)a.k.batch, (long long)a.lse_batch,
             (long long)p->parts.workspace_nbytes);
}

static bool plan_from_disk(const Dnn *dnn, DnnPlan *p, const char *key) {
    Arena *a = arena_new();
    if (!a) return false;
    size_t n = 0;
    const char *text = cache_get(a, "cudnn", key, &n);
    Diag why = {0};  // a stale or damaged plan is built again
    bool ok = text && dnn_plan_from_text(dnn, text, n, &p->plan, &p->facts.workspace, &why) == ST_OK;
    if (ok && p->facts.workspace > p->parts.workspace_nbytes) {
        dnn_plan_free(dnn, p->plan);
        p->plan = NULL;
        ok = false;
    }
    p->facts.from_disk = ok;
    arena_free(a);
    return ok;
}

static void plan_to_disk(const Dnn *dnn, const DnnPlan *p, const char *key) {
    char *text = NULL;
    size_t n = 0;
    Diag why = {0};  // an engine that cannot be written down is built each time
    if (dnn_plan_text(dnn, p->plan, &text, &n, &why) == ST_OK) cache_put("cudnn", key, text, n);
    free(text);
}

static Status build_plan(const Dnn *dnn, DnnPlan *p, Diag *d) {
    DnnAttention a = group_of(p);
    DnnGraph *g = malloc(sizeof *g);
    if (!g) return diag_error(d, ST_MEMORY, "no memory for a cuDNN graph");
    dnn_graph_begin(g, dnn);
    if (p->call.backward)
        dnn_build_backward(g, &a);
    else
        dnn_build_forward(g, &a);
    DnnEngine e = {0};
    Status st = dnn_graph_plan(g, p->parts.workspace_nbytes, &p->plan, &e, d);
    p->facts.engine = e.index, p->facts.workspace = e.workspace, p->facts.proposals = e.nconfig, p->facts.chosen = e.chosen;
    dnn_graph_end(g);
    free(g);
    return st;
}

static Status upload_lengths(DnnPlan *p, Diag *d) {
    int64_t n = p->groups.batch;
    int32_t *host = malloc((size_t)n * 2 * sizeof *host);
    if (!host) return diag_error(d, ST_MEMORY, "no memory for lengths");
    for (int64_t i = 0; i < n; i++) host[i] = (int32_t)p->call.nq, host[n + i] = (int32_t)p->call.nk;
    cudaError_t e = cudaMalloc((void **)&p->lengths, (size_t)n * 2 * sizeof *host);
    if (e == cudaSuccess) e = cudaMemcpy(p->lengths, host, (size_t)n * 2 * sizeof *host, cudaMemcpyHostToDevice);
    free(host);
    return e == cudaSuccess ? ST_OK : diag_error(d, ST_MEMORY, "lengths for cuDNN: %s", cudaGetErrorString(e));
}

static Status make_plan(Device *dev, const Dnn *dnn, DnnPlan *p, Diag *d) {
    char key[512];
    disk_key(p, dev, dnn, key, sizeof key);
    double begin = now();
    if (!plan_from_disk(dnn, p, key)) {
        TRY(build_plan(dnn, p, d));
        plan_to_disk(dnn, p, key);
    }
    p->facts.seconds = now() - begin;
    p->facts.planned_workspace = p->parts.workspace_nbytes;
    return p->cut ? upload_lengths(p, d) : ST_OK;
}

Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    const char *why = dnn_refuses(c);
    CHECK(!why, "a call that cuDNN does not take: %s", why);
    DnnDevice *x = NULL;
    TRY(device_of(dev, &x, d));
    DnnPlan *p = calloc(1, sizeof *p);
    if (!p) return diag_error(d, ST_MEMORY, "no memory for a cuDNN plan");
    *p = (DnnPlan){.call = *c,
                   .groups = dnn_groups(c),
                   .scale = (float)c->scale,
                   .shift = (int32_t)c->shift,
                   .left = (float)(c->window - c->shift),
                   .cut = plan_cut(c)};
    p->parts = parts_of(c, p->groups.batch, p->groups.kv_heads);
    snprintf(p->key, sizeof p->key, "%d b%lld h%lld/%lld q%lld k%lld d%lld m%d %lld %lld %a %d", (int)c->backward,
             (long long)c->batch, (long long)c->heads, (long long)c->kv_heads, (long long)c->nq, (long long)c->nk,
             (long long)c->dim, (int)c->mask, (long long)c->shift, (long long)c->window, c->scale, (int)p->cut);
    for (DnnPlan *q = x->plans; q; q = q->next)
        if (!strcmp(q->key, p->key)) {
            free(p);
            *out = q;
            return ST_OK;
        }
    Status st = make_plan(dev, &x->dnn, p, d);
    if (st != ST_OK) {
        free_plan(&x->dnn, p);
        return st;
    }
    p->next = x->plans;
    x->plans = p;
    *out = p;
    return ST_OK;
}

DnnPlanFacts dnn_plan_facts(const DnnPlan *p) { return p->facts; }

// ---- runs
// -------------------------------------------------------------------------------------------------------------------------
typedef struct Pack {
    int n;
    int64_t uid[DNN_UID_END];
    void *data[DNN_UID_END];
} Pack;

static void give(Pack *p, DnnUid uid, const void *data) {
    p->uid[p->n] = uid;
    p->data[p->n++] = (void *)(uintptr_t)data;
}

static const void *after(const void *base, int64_t nbytes) { return (const char *)base + nbytes; }

static Status run_group(const Dnn *dnn, const DnnPlan *p, const DnnData *x, int64_t b, int64_t kv, void *scratch, Diag *d) {
    static const float minus_inf = -INFINITY, one = 1;
    const DnnCall *c = &p->call;
    int64_t group = c->heads / c->kv_heads;
    int64_t row = (b * c->heads + kv * group) * c->nq, q = row * c->dim * 2, k = (b * c->kv_heads + kv) * c->nk * c->dim * 2;
    Pack pack = {0};
    give(&pack, DNN_Q, after(x->q, q)), give(&pack, DNN_K, after(x->k, k)), give(&pack, DNN_V, after(x->v, k));
    give(&pack, DNN_O, after(x->o, q)), give(&pack, DNN_LSE, after(x->lse, row * 4));
    give(&pack, DNN_SCALE, &p->scale);
    if (c->mask != DNN_FULL || p->cut) give(&pack, DNN_MINUS_INF, &minus_inf);
    if (c->mask != DNN_FULL && c->shift != 0) give(&pack, DNN_SHIFT, &p->shift);
    if (c->mask == DNN_WINDOW) give(&pack, DNN_LEFT, &p->left);
    if (p->cut) give(&pack, DNN_NQ, p->lengths), give(&pack, DNN_NK, p->lengths + p->groups.batch);
    if (c->backward) {
        give(&pack, DNN_DO, after(x->dout, q)), give(&pack, DNN_DQ, after(x->dq, q));
        give(&pack, DNN_DK, after(x->dk, k)), give(&pack, DNN_DV, after(x->dv, k));
        give(&pack, DNN_DQ_ACC, after(scratch, p->parts.acc)), give(&pack, DNN_SUM, after(scratch, p->parts.sum));
        give(&pack, DNN_ONE, &one);
    }
    return dnn_plan_run(dnn, p->plan, pack.n, pack.uid, pack.data, (char *)scratch + p->parts.workspace, d);
}

Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d) {
    DnnDevice *x = dev->dnn;
    for (int64_t b = 0; b < p->call.batch; b += p->groups.batch)
        for (int64_t kv = 0; kv < p->call.kv_heads; kv += p->groups.kv_heads) TRY(run_group(&x->dnn, p, data, b, kv, scratch, d));
    return ST_OK;
}

#else  // built without cuDNN's headers: libs_cudnn says what to do
struct DnnPlan {
    int unused;
};
Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    const CudnnLib *lib;
    (void)dev, (void)c, *out = NULL;
    return libs_cudnn(&lib, d);
}
Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d) {
    (void)dev, (void)p, (void)data, (void)scratch;
    return diag_error(d, ST_UNSUPPORTED, "built without cuDNN");
}
DnnPlanFacts dnn_plan_facts(const DnnPlan *p) { return (void)p, (DnnPlanFacts){0}; }
void dnn_close(Device *dev) { (void)dev; }
#endif
