// See dnn.h.
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/dnn_attention.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "backend/cuda/device/cache.h"
#include "base/containers.h"

#if LIBS_HAVE_CUDNN
#include <cuda_runtime_api.h>

// ---- plans
// ------------------------------------------------------------------------------------------------------------------------
struct DnnPlan {
    DnnPlan *next;
    char key[256];
    DnnCall call;
    DnnGroups groups;
    DnnParts parts;
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

// One group's tensors lie in the whole operands: their batch stride is the operands'. Where a group is of one entry the stride is
// never used, and says nothing of heads that are not in it.
static DnnAttention group_of(const DnnPlan *p) {
    const DnnCall *c = &p->call;
    int64_t group = c->heads / c->kv_heads, kv_heads = p->groups.batch > 1 ? c->kv_heads : p->groups.kv_heads;
    struct DnnStride q = {kv_heads * group * c->nq * c->dim, c->nq * c->dim, c->dim},
                     k = {kv_heads * c->nk * c->dim, c->nk * c->dim, c->dim};
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
                          .lse_batch = kv_heads * group * c->nq,
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
    p->parts = dnn_parts(c, p->groups.batch, p->groups.kv_heads);
    snprintf(p->key, sizeof p->key, "%d b%lld h%lld/%lld q%lld k%lld d%lld m%d %lld %lld %a %d g%lld/%lld", (int)c->backward,
             (long long)c->batch, (long long)c->heads, (long long)c->kv_heads, (long long)c->nq, (long long)c->nk,
             (long long)c->dim, (int)c->mask, (long long)c->shift, (long long)c->window, c->scale, (int)p->cut,
             (long long)p->groups.batch, (long long)p->groups.kv_heads);
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

static Status run_group(const Dnn *dnn, const DnnPlan *p, const DnnData *x, void *scratch, Diag *d) {
    static const float minus_inf = -INFINITY, one = 1;
    const DnnCall *c = &p->call;
    Pack pack = {0};
    give(&pack, DNN_Q, x->q), give(&pack, DNN_K, x->k), give(&pack, DNN_V, x->v);
    give(&pack, DNN_O, x->o), give(&pack, DNN_LSE, x->lse);
    give(&pack, DNN_SCALE, &p->scale);
    if (c->mask != DNN_FULL || p->cut) give(&pack, DNN_MINUS_INF, &minus_inf);
    if (c->mask != DNN_FULL && c->shift != 0) give(&pack, DNN_SHIFT, &p->shift);
    if (c->mask == DNN_WINDOW) give(&pack, DNN_LEFT, &p->left);
    if (p->cut) give(&pack, DNN_NQ, p->lengths), give(&pack, DNN_NK, p->lengths + p->groups.batch);
    if (c->backward) {
        give(&pack, DNN_DO, x->dout), give(&pack, DNN_DQ, x->dq);
        give(&pack, DNN_DK, x->dk), give(&pack, DNN_DV, x->dv);
        give(&pack, DNN_DQ_ACC, after(scratch, p->parts.acc)), give(&pack, DNN_SUM, after(scratch, p->parts.sum));
        give(&pack, DNN_ONE, &one);
    }
    return dnn_plan_run(dnn, p->plan, pack.n, pack.uid, pack.data, (char *)scratch + p->parts.workspace, d);
}

Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d) {
    DnnDevice *x = dev->dnn;
    for (int64_t b = 0; b < p->call.batch; b += p->groups.batch)
        for (int64_t kv = 0; kv < p->call.kv_heads; kv += p->groups.kv_heads) {
            DnnData group = dnn_group_data(&p->call, data, b, kv);
            TRY(run_group(&x->dnn, p, &group, scratch, d));
        }
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
