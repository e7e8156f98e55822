// dnn.h without a GPU: for each query the definition of attention, in float64, from the same operands, masks and shapes. Proves
// what attention.c asks cuDNN for, not cuDNN.
#include <math.h>
#include <string.h>
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/device/module.h"
#include "base/arena.h"

struct DnnPlan {
    DnnCall call;
};

Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    const char *no = dnn_refuses(c);
    if (no) return diag_error(d, ST_UNSUPPORTED, "cuDNN takes no such attention: %s", no);
    *out = ARENA_NEW(module_arena(dev), DnnPlan);
    (*out)->call = *c;
    return ST_OK;
}

DnnPlanFacts dnn_plan_facts(const DnnPlan *p) { return (void)p, (DnnPlanFacts){0}; }
void dnn_close(Device *dev) { (void)dev; }

static float load(const void *p, int64_t i) {
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void store(void *p, int64_t i, double x) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    ((uint16_t *)p)[i] = f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static bool sees(const DnnCall *c, int64_t q, int64_t k) {
    if (c->mask == DNN_FULL) return true;
    return k <= q + c->shift && (c->mask == DNN_CAUSAL || k > q + c->shift - c->window);
}

static double dot(const void *a, int64_t i, const void *b, int64_t j, int64_t n) {
    double sum = 0;
    for (int64_t e = 0; e < n; e++) sum += (double)load(a, i + e) * load(b, j + e);
    return sum;
}

// Rows before row `q` of head `h` of entry `b` of the batch, and before row `k` of its KV head: of a group, in whole operands.
static int64_t query_row(const DnnCall *c, int64_t b, int64_t h, int64_t q) { return (b * c->heads + h) * c->nq + q; }
static int64_t key_row(const DnnCall *c, int64_t b, int64_t h, int64_t k) {
    return (b * c->kv_heads + h / (c->heads / c->kv_heads)) * c->nk + k;
}

static void forward_row(const DnnCall *c, const DnnData *x, int64_t b, int64_t h, int64_t q, double *p, double *o) {
    int64_t row = query_row(c, b, h, q), qi = row * c->dim, ki = key_row(c, b, h, 0) * c->dim;
    double max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < c->nk; k++) {
        p[k] = sees(c, q, k) ? c->scale * dot(x->q, qi, x->k, ki + k * c->dim, c->dim) : -INFINITY;
        max = fmax(max, p[k]);
    }
    for (int64_t k = 0; k < c->nk; k++) sum += p[k] = exp(p[k] - max);
    for (int64_t e = 0; e < c->dim; e++) o[e] = 0;
    for (int64_t k = 0; k < c->nk; k++)
        for (int64_t e = 0; e < c->dim && p[k] != 0; e++) o[e] += p[k] / sum * load(x->v, ki + k * c->dim + e);
    for (int64_t e = 0; e < c->dim; e++) store(x->o, qi + e, o[e]);
    ((float *)x->lse)[row] = (float)(max + log(sum));
}

// Adds to dk and dv [nk, dim] of its KV head.
static void backward_row(const DnnCall *c, const DnnData *x, int64_t b, int64_t h, int64_t q, double *dq, double *dk,
                         double *dv) {
    int64_t row = query_row(c, b, h, q), qi = row * c->dim, head = key_row(c, b, h, 0) * c->dim;
    double lse = ((const float *)x->lse)[row], dsum = dot(x->dout, qi, x->o, qi, c->dim);
    for (int64_t e = 0; e < c->dim; e++) dq[e] = 0;
    for (int64_t k = 0; k < c->nk; k++) {
        int64_t at = k * c->dim, ki = head + at;
        if (!sees(c, q, k)) continue;
        double p = exp(c->scale * dot(x->q, qi, x->k, ki, c->dim) - lse),
               ds = p * (dot(x->dout, qi, x->v, ki, c->dim) - dsum) * c->scale;
        for (int64_t e = 0; e < c->dim; e++) {
            dq[e] += ds * load(x->k, ki + e);
            dk[at + e] += ds * load(x->q, qi + e);
            dv[at + e] += p * load(x->dout, qi + e);
        }
    }
    for (int64_t e = 0; e < c->dim; e++) store(x->dq, qi + e, dq[e]);
}

// One KV head of one entry of the batch, with its query heads.
static void run_head(const DnnCall *c, const DnnData *x, int64_t b, int64_t kv) {
    int64_t n = c->nk * c->dim, group = c->heads / c->kv_heads;
    Arena *a = arena_new();
    double *row = ARENA_ARRAY(a, double, c->nk), *part = ARENA_ARRAY(a, double, c->dim);
    double *dk = ARENA_ARRAY(a, double, n), *dv = ARENA_ARRAY(a, double, n);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        for (int64_t q = 0; q < c->nq; q++) {
            if (c->backward)
                backward_row(c, x, b, h, q, part, dk, dv);
            else
                forward_row(c, x, b, h, q, row, part);
        }
    int64_t at = key_row(c, b, kv * group, 0) * c->dim;
    for (int64_t i = 0; i < n && c->backward; i++) store(x->dk, at + i, dk[i]), store(x->dv, at + i, dv[i]);
    arena_free(a);
}

Status dnn_run(Device *dev, const DnnPlan *plan, const DnnData *x, void *scratch, Diag *d) {
    (void)dev, (void)d;
    const DnnCall *c = &plan->call;
    DnnGroups g = dnn_groups(c);
    for (int64_t b = 0; b < c->batch; b += g.batch)
        for (int64_t kv = 0; kv < c->kv_heads; kv += g.kv_heads) {
            DnnData group = dnn_group_data(c, x, b, kv);
            memset(scratch, 0xff, (size_t)dnn_parts(c, g.batch, g.kv_heads).total);  // all of it is a group's to write to
            for (int64_t i = 0; i < g.batch * g.kv_heads; i++) run_head(c, &group, i / g.kv_heads, i % g.kv_heads);
        }
    return ST_OK;
}
