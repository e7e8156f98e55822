// dnn.h without a GPU: for each query the definition of attention, in float64, from the same operands, masks and shapes. Proves
// what attention.c asks cuDNN for, not cuDNN.
#include <math.h>
#include <string.h>
#include "backend/cuda/dnn.h"
#include "backend/cuda/module.h"
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

// Queries and keys that attend to each other: first rows in q and in k, where dk and dv of these keys are summed, how many.
typedef struct Part {
    int64_t q, k, dk, nq, nk;
} Part;

static void forward_row(const DnnCall *c, const DnnData *x, const Part *at, int64_t q, double *p, double *o) {
    double max = -INFINITY, sum = 0;
    int64_t n = c->dim, row = at->q + q;
    for (int64_t k = 0; k < at->nk; k++) {
        p[k] = sees(c, q, k) ? c->scale * dot(x->q, row * n, x->k, (at->k + k) * n, n) : -INFINITY;
        max = fmax(max, p[k]);
    }
    for (int64_t k = 0; k < at->nk; k++) sum += p[k] = exp(p[k] - max);
    for (int64_t e = 0; e < n; e++) o[e] = 0;
    for (int64_t k = 0; k < at->nk; k++)
        for (int64_t e = 0; e < n && p[k] != 0; e++) o[e] += p[k] / sum * load(x->v, (at->k + k) * n + e);
    for (int64_t e = 0; e < n; e++) store(x->o, row * n + e, o[e]);
    ((float *)x->lse)[row] = (float)(max + log(sum));
}

static void backward_row(const DnnCall *c, const DnnData *x, const Part *at, int64_t q, double *dq, double *dk, double *dv) {
    int64_t n = c->dim, qi = (at->q + q) * n;
    double lse = ((const float *)x->lse)[at->q + q], dsum = dot(x->dout, qi, x->o, qi, n);
    for (int64_t e = 0; e < n; e++) dq[e] = 0;
    for (int64_t k = 0; k < at->nk; k++) {
        int64_t ki = (at->k + k) * n, to = (at->dk + k) * n;
        if (!sees(c, q, k)) continue;
        double p = exp(c->scale * dot(x->q, qi, x->k, ki, n) - lse);
        double ds = p * (dot(x->dout, qi, x->v, ki, n) - dsum) * c->scale;
        for (int64_t e = 0; e < n; e++) {
            dq[e] += ds * load(x->k, ki + e);
            dk[to + e] += ds * load(x->q, qi + e);
            dv[to + e] += p * load(x->dout, qi + e);
        }
    }
    for (int64_t e = 0; e < n; e++) store(x->dq, qi + e, dq[e]);
}

// dk, dv: sums of `rows` rows, which are stored to x's.
static void run_parts(const DnnCall *c, const DnnData *x, const Part *part, int64_t n, int64_t rows, void *dk_out, void *dv_out) {
    Arena *a = arena_new();
    int64_t elems = c->backward ? rows * c->dim : 0;
    double *row = ARENA_ARRAY(a, double, c->nk), *one = ARENA_ARRAY(a, double, c->dim);
    double *dk = ARENA_ARRAY(a, double, elems), *dv = ARENA_ARRAY(a, double, elems);
    for (int64_t i = 0; i < n; i++)
        for (int64_t q = 0; q < part[i].nq; q++) {
            if (c->backward)
                backward_row(c, x, &part[i], q, one, dk, dv);
            else
                forward_row(c, x, &part[i], q, row, one);
        }
    for (int64_t i = 0; i < elems; i++) store(dk_out, i, dk[i]), store(dv_out, i, dv[i]);
    arena_free(a);
}

static void run_dense(const DnnCall *c, const DnnData *x) {
    Arena *a = arena_new();
    int64_t heads = c->batch * c->heads, group = c->heads / c->kv_heads;
    Part *part = ARENA_ARRAY(a, Part, heads);
    for (int64_t h = 0; h < heads; h++) part[h] = (Part){h * c->nq, h / group * c->nk, h / group * c->nk, c->nq, c->nk};
    run_parts(c, x, part, heads, heads / group * c->nk, x->dk, x->dv);
    arena_free(a);
}

// Everything by the tables, as the library does it.
static void run_packed(Device *dev, const DnnCall *c, const DnnData *x, char *scratch) {
    Arena *a = arena_new();
    DnnParts p = dnn_parts(c, c->batch, c->kv_heads);
    dnn_pack(dev, c, &p, c->batch, c->kv_heads, 0, x, scratch);
    const int64_t *q = (void *)(scratch + p.q), *k = (void *)(scratch + p.k), *row = (void *)(scratch + p.row);
    const int32_t *length = (void *)(scratch + p.length);
    int64_t n = c->batch * c->heads * c->slots, rows = c->batch * c->heads * c->nq;
    Part *part = ARENA_ARRAY(a, Part, n);
    for (int64_t i = 0; i < n; i++) {
        CHECK(q[i] == row[i] * c->dim && k[i] % c->dim == 0, "tables of packed documents");
        part[i] = (Part){row[i], k[i] / c->dim, row[i], length[i], length[i]};
    }
    CHECK(row[n] == rows && q[n] == rows * c->dim, "end of the tables of packed documents");
    bool each = c->heads == c->kv_heads;
    run_parts(c, x, part, n, rows, each ? x->dk : scratch + p.dk, each ? x->dv : scratch + p.dv);
    if (c->backward && !each) dnn_sum_heads(dev, c, &p, c->batch, c->kv_heads, x->dk, x->dv, scratch);
    arena_free(a);
}

Status dnn_run(Device *dev, const DnnPlan *plan, const DnnData *x, void *scratch, Diag *d) {
    const DnnCall *c = &plan->call;
    (void)d;
    if (!c->slots) {
        run_dense(c, x);
        return ST_OK;
    }
    // As many at once as scratch was planned for: one group of batch entries and KV heads after the other.
    DnnGroups g = dnn_groups(c);
    int64_t group = c->heads / c->kv_heads;
    for (int64_t b = 0; b < c->batch; b += g.batch)
        for (int64_t kv = 0; kv < c->kv_heads; kv += g.kv_heads) {
            int64_t r = (b * c->heads + kv * group) * c->nq, i = r * c->dim * 2, j = (b * c->kv_heads + kv) * c->nk * c->dim * 2;
            DnnCall part = *c;
            part.batch = g.batch, part.heads = g.kv_heads * group, part.kv_heads = g.kv_heads;
            DnnData y = {.q = (const char *)x->q + i, .k = (const char *)x->k + j, .v = (const char *)x->v + j, .node = x->node};
            y.o = (char *)x->o + i, y.lse = (char *)x->lse + r * 4;
            y.ids = (const int64_t *)x->ids + (c->one_packing ? 0 : b * c->nq);
            if (c->backward)
                y.dout = (const char *)x->dout + i, y.dq = (char *)x->dq + i, y.dk = (char *)x->dk + j, y.dv = (char *)x->dv + j;
            run_packed(dev, &part, &y, scratch);
        }
    return ST_OK;
}
