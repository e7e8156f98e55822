// dnn.h without a GPU: for each query the definition of attention, in float64, of what cuDNN would be given: a group's shape and
// strides and the operands of its run (dnn_run.h). Proves what attention.c asks cuDNN for, not cuDNN.
#include <math.h>
#include <string.h>
#include "backend/cuda/attention/dnn_run.h"
#include "backend/cuda/device/module.h"
#include "base/arena.h"
#include "base/containers.h"

struct DnnPlan {
    DnnRun run;
};

Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    const char *no = dnn_refuses(c);
    if (no) return diag_error(d, ST_UNSUPPORTED, "cuDNN takes no such attention: %s", no);
    Arena *a = module_arena(dev);
    *out = ARENA_NEW(a, DnnPlan);
    DnnRun *r = &(*out)->run;
    *r = dnn_run_of(c);
    int64_t n = r->groups.batch;
    r->lengths = ARENA_ARRAY(a, int32_t, 2 * n);
    for (int64_t i = 0; i < n; i++) r->lengths[i] = (int32_t)c->nq, r->lengths[n + i] = (int32_t)c->nk;
    return ST_OK;
}

DnnPlanFacts dnn_plan_facts(const DnnPlan *p) { return (void)p, (DnnPlanFacts){0}; }
void dnn_close(Device *dev) { (void)dev; }

// ---- operands
// ---------------------------------------------------------------------------------------------------------------------
static void *operand(const DnnOperands *x, DnnUid uid) {
    for (int i = 0; i < x->n; i++)
        if (x->uid[i] == uid) return x->data[i];
    CHECK(false, "operand %d of cuDNN's attention is not given", (int)uid);
}

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

static double dot(const void *a, int64_t i, const void *b, int64_t j, int64_t n) {
    double sum = 0;
    for (int64_t e = 0; e < n; e++) sum += (double)load(a, i + e) * load(b, j + e);
    return sum;
}

// The mask's numbers come from the run's operands, as for cuDNN.
typedef struct Band {
    DnnMaskKind mask;
    int64_t shift;
    double left;
} Band;

static Band band_of(const DnnAttention *a, const DnnOperands *x) {
    Band b = {.mask = a->mask};
    if (a->shifted) b.shift = *(int32_t *)operand(x, DNN_SHIFT);
    if (a->mask == DNN_WINDOW) b.left = (double)*(float *)operand(x, DNN_LEFT);
    return b;
}

static bool sees(const Band *b, int64_t q, int64_t k) {
    if (b->mask == DNN_FULL) return true;
    return k <= q + b->shift && (b->mask == DNN_CAUSAL || (double)k + b->left > (double)q);
}

// Queries and keys that attend to each other: where their first rows lie (elements of q, k, lse; of dk and dv), how many.
typedef struct Part {
    int64_t q, k, row, dk, nq, nk;
} Part;

// Query head h of batch entry b.
static Part part_of(const DnnAttention *a, const DnnOperands *x, int64_t b, int64_t h) {
    int64_t kv = h / (a->heads / a->kv_heads);
    Part p = {.q = b * a->q.batch + h * a->q.head,
              .k = b * a->k.batch + kv * a->k.head,
              .row = b * a->lse_batch + h * a->lse_head,
              .nq = a->nq,
              .nk = a->nk};
    p.dk = p.k;
    if (a->packed) {
        p.q = ((int64_t *)operand(x, DNN_OFFSET_Q))[b], p.k = ((int64_t *)operand(x, DNN_OFFSET_K))[b];
        p.row = ((int64_t *)operand(x, DNN_OFFSET_ROW))[b], p.dk = p.q;
    }
    if (a->cut) p.nq = ((int32_t *)operand(x, DNN_NQ))[b], p.nk = ((int32_t *)operand(x, DNN_NK))[b];
    CHECK(p.nq >= 0 && p.nq <= a->nq && p.nk >= 0 && p.nk <= a->nk, "lengths of cuDNN's attention");
    return p;
}

// ---- rows
// -------------------------------------------------------------------------------------------------------------------------
typedef struct Work {
    const DnnAttention *a;
    const DnnOperands *x;
    Band band;
    double scale, *p, *one;  // p: a row of scores; one: of channels
    double *dk, *dv;         // sums, where dk and dv lie; `touched` says which elements a part has
    bool *touched;
} Work;

static void forward_row(const Work *w, const Part *at, int64_t q) {
    int64_t n = w->a->dim, qi = at->q + q * w->a->q.pos, pos = w->a->k.pos;
    const void *qs = operand(w->x, DNN_Q), *ks = operand(w->x, DNN_K), *vs = operand(w->x, DNN_V);
    double max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < at->nk; k++) {
        w->p[k] = sees(&w->band, q, k) ? w->scale * dot(qs, qi, ks, at->k + k * pos, n) : -INFINITY;
        max = fmax(max, w->p[k]);
    }
    for (int64_t k = 0; k < at->nk; k++) sum += w->p[k] = exp(w->p[k] - max);
    for (int64_t e = 0; e < n; e++) w->one[e] = 0;
    for (int64_t k = 0; k < at->nk; k++)
        for (int64_t e = 0; e < n && w->p[k] != 0; e++) w->one[e] += w->p[k] / sum * load(vs, at->k + k * pos + e);
    for (int64_t e = 0; e < n; e++) store(operand(w->x, DNN_O), qi + e, w->one[e]);
    ((float *)operand(w->x, DNN_LSE))[at->row + q] = (float)(max + log(sum));
}

static void backward_row(const Work *w, const Part *at, int64_t q) {
    int64_t n = w->a->dim, qi = at->q + q * w->a->q.pos, pos = w->a->k.pos;
    const void *qs = operand(w->x, DNN_Q), *ks = operand(w->x, DNN_K), *vs = operand(w->x, DNN_V), *g = operand(w->x, DNN_DO);
    double lse = ((const float *)operand(w->x, DNN_LSE))[at->row + q], sum = dot(g, qi, operand(w->x, DNN_O), qi, n);
    for (int64_t e = 0; e < n; e++) w->one[e] = 0;
    for (int64_t k = 0; k < at->nk; k++) {
        int64_t ki = at->k + k * pos, to = at->dk + k * pos;
        if (!sees(&w->band, q, k)) continue;
        double p = exp(w->scale * dot(qs, qi, ks, ki, n) - lse), ds = p * (dot(g, qi, vs, ki, n) - sum) * w->scale;
        for (int64_t e = 0; e < n; e++) {
            w->one[e] += ds * load(ks, ki + e);
            w->dk[to + e] += ds * load(qs, qi + e);
            w->dv[to + e] += p * load(g, qi + e);
        }
    }
    for (int64_t e = 0; e < n; e++) store(operand(w->x, DNN_DQ), qi + e, w->one[e]);
}

// Elements from the first to behind the last of dk in this group.
static int64_t dk_extent(const DnnAttention *a, const DnnOperands *x) {
    int64_t end = 0;
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t h = 0; h < a->heads; h++) {
            Part p = part_of(a, x, b, h);
            end = max_i64(end, p.dk + p.nk * a->k.pos);
        }
    return end;
}

typedef struct Execution {
    const DnnRun *run;
    DnnAttention a;
    char *scratch;
} Execution;

// All of the scratch is a group's to write to, but for the tables of packed documents, which the next group reads too.
static void spoil(const DnnRun *r, char *scratch) {
    const DnnParts *p = &r->parts;
    bool tables = r->call.slots > 0;
    if (tables) memset(scratch, 0xff, (size_t)p->q);
    int64_t from = tables ? p->workspace : 0;
    memset(scratch + from, 0xff, (size_t)(p->total - from));
}

static void run_parts(Work *w, bool backward) {
    const DnnAttention *a = w->a;
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t h = 0; h < a->heads; h++) {
            Part at = part_of(a, w->x, b, h);
            for (int64_t q = 0; q < at.nq; q++) {
                if (backward)
                    backward_row(w, &at, q);
                else
                    forward_row(w, &at, q);
            }
            for (int64_t k = 0; k < at.nk && backward; k++)
                for (int64_t e = 0; e < a->dim; e++) w->touched[at.dk + k * a->k.pos + e] = true;
        }
}

static Status execute(void *context, const DnnOperands *x, void *workspace, Diag *d) {
    (void)workspace, (void)d;
    const Execution *c = context;
    bool backward = c->run->call.backward;
    spoil(c->run, c->scratch);
    Arena *m = arena_new();
    int64_t n = backward ? dk_extent(&c->a, x) : 0;
    Work w = {.a = &c->a, .x = x, .band = band_of(&c->a, x), .scale = (double)*(float *)operand(x, DNN_SCALE)};
    w.p = ARENA_ARRAY(m, double, c->a.nk), w.one = ARENA_ARRAY(m, double, c->a.dim);
    w.dk = ARENA_ARRAY(m, double, n), w.dv = ARENA_ARRAY(m, double, n), w.touched = ARENA_ARRAY(m, bool, n);
    run_parts(&w, backward);
    for (int64_t i = 0; i < n; i++)
        if (w.touched[i]) store(operand(x, DNN_DK), i, w.dk[i]), store(operand(x, DNN_DV), i, w.dv[i]);
    arena_free(m);
    return ST_OK;
}

Status dnn_run(Device *dev, const DnnPlan *plan, const DnnData *x, void *scratch, Diag *d) {
    Execution c = {&plan->run, dnn_group(&plan->run), scratch};
    return dnn_run_groups(dev, &plan->run, x, scratch, execute, &c, d);
}
