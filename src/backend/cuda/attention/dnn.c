// See dnn.h.
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/dnn_run.h"
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
    DnnRun run;
    DnnPlanFacts facts;
    cudnnBackendDescriptor_t plan;
    uint64_t operands;  // of its graph
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
    if (p->run.lengths) cudaFree(p->run.lengths);
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

// What the compiled kernel depends on, and nothing more: scale, shift and window are given to each run.
static void disk_key(const DnnPlan *p, const Device *dev, const Dnn *dnn, char *key, size_t n) {
    DnnAttention a = dnn_group(&p->run);
    snprintf(key, n, "attention 1|%s|cudnn %zu|%s|b%lld h%lld/%lld q%lld k%lld d%lld mask%d%s%s%s|%lld %lld %lld|%lld", dev->key,
             dnn->lib->version, p->run.call.backward ? "backward" : "forward", (long long)a.batch, (long long)a.heads,
             (long long)a.kv_heads, (long long)a.nq, (long long)a.nk, (long long)a.dim, (int)a.mask, a.shifted ? " shifted" : "",
             a.cut ? " cut" : "", a.packed ? " packed" : "", (long long)a.q.batch, (long long)a.k.batch, (long long)a.lse_batch,
             (long long)p->run.parts.workspace_nbytes);
}

static bool plan_from_disk(const Dnn *dnn, DnnPlan *p, const char *key) {
    Arena *a = arena_new();
    if (!a) return false;
    size_t n = 0;
    const char *text = cache_get(a, "cudnn", key, &n);
    Diag why = {0};  // a stale or damaged plan is built again
    bool ok = text && dnn_plan_from_text(dnn, text, n, &p->plan, &p->facts.workspace, &why) == ST_OK;
    if (ok && p->facts.workspace > p->run.parts.workspace_nbytes) {
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

// The graph is made for a plan from disk too: it says what a run must give.
static Status build_plan(Device *dev, const Dnn *dnn, DnnPlan *p, Diag *d) {
    DnnAttention a = dnn_group(&p->run);
    char key[512];
    disk_key(p, dev, dnn, key, sizeof key);
    DnnGraph *g = malloc(sizeof *g);
    if (!g) return diag_error(d, ST_MEMORY, "no memory for a cuDNN graph");
    dnn_graph_begin(g, dnn);
    if (p->run.call.backward)
        dnn_build_backward(g, &a);
    else
        dnn_build_forward(g, &a);
    p->operands = g->operands;
    DnnEngine e = {0};
    Status st = ST_OK;
    if (!plan_from_disk(dnn, p, key)) {
        st = dnn_graph_plan(g, p->run.parts.workspace_nbytes, &p->plan, &e, d);
        p->facts.engine = e.index, p->facts.workspace = e.workspace, p->facts.proposals = e.nconfig, p->facts.chosen = e.chosen;
        if (st == ST_OK) plan_to_disk(dnn, p, key);
    }
    dnn_graph_end(g);
    free(g);
    return st;
}

static Status upload_lengths(DnnPlan *p, Diag *d) {
    int64_t n = p->run.groups.batch;
    int32_t *host = malloc((size_t)n * 2 * sizeof *host);
    if (!host) return diag_error(d, ST_MEMORY, "no memory for lengths");
    for (int64_t i = 0; i < n; i++) host[i] = (int32_t)p->run.call.nq, host[n + i] = (int32_t)p->run.call.nk;
    cudaError_t e = cudaMalloc((void **)&p->run.lengths, (size_t)n * 2 * sizeof *host);
    if (e == cudaSuccess) e = cudaMemcpy(p->run.lengths, host, (size_t)n * 2 * sizeof *host, cudaMemcpyHostToDevice);
    free(host);
    return e == cudaSuccess ? ST_OK : diag_error(d, ST_MEMORY, "lengths for cuDNN: %s", cudaGetErrorString(e));
}

static Status make_plan(Device *dev, const Dnn *dnn, DnnPlan *p, Diag *d) {
    double begin = now();
    TRY(build_plan(dev, dnn, p, d));
    p->facts.seconds = now() - begin;
    p->facts.planned_workspace = p->run.parts.workspace_nbytes;
    return p->run.cut && !p->run.call.slots ? upload_lengths(p, d) : ST_OK;
}

Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    const char *why = dnn_refuses(c);
    CHECK(!why, "a call that cuDNN does not take: %s", why);
    DnnDevice *x = NULL;
    TRY(device_of(dev, &x, d));
    DnnPlan *p = calloc(1, sizeof *p);
    if (!p) return diag_error(d, ST_MEMORY, "no memory for a cuDNN plan");
    *p = (DnnPlan){.run = dnn_run_of(c)};
    const DnnGroups *g = &p->run.groups;
    snprintf(p->key, sizeof p->key, "%d b%lld h%lld/%lld q%lld k%lld d%lld m%d %lld %lld %a %d s%lld %d g%lld/%lld",
             (int)c->backward, (long long)c->batch, (long long)c->heads, (long long)c->kv_heads, (long long)c->nq,
             (long long)c->nk, (long long)c->dim, (int)c->mask, (long long)c->shift, (long long)c->window, c->scale,
             (int)p->run.cut, (long long)c->slots, (int)c->one_packing, (long long)g->batch, (long long)g->kv_heads);
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
typedef struct Execution {
    const Dnn *dnn;
    const DnnPlan *plan;
} Execution;

static Status execute(void *context, const DnnOperands *x, void *workspace, Diag *d) {
    const Execution *e = context;
    CHECK(dnn_given(x) == e->plan->operands, "cuDNN attention %s: operands %#llx are given, its graph has %#llx", e->plan->key,
          (unsigned long long)dnn_given(x), (unsigned long long)e->plan->operands);
    return dnn_plan_run(e->dnn, e->plan->plan, x->n, x->uid, (void **)(uintptr_t)x->data, workspace, d);
}

Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d) {
    DnnDevice *x = dev->dnn;
    return dnn_run_groups(dev, &p->run, data, scratch, execute, &(Execution){&x->dnn, p}, d);
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
