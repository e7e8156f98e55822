// See attention_probe.h.
#include "attention_probe.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

Device device;
int npass, nfail;
bool counted = true;
enum { MAX_DIM = 256 };

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void verdict(bool ok) {
    printf("  %s\n", !counted ? ok ? "right" : "wrong, not used" : ok ? "PASS" : "FAIL");
    fflush(stdout);
    if (!counted) return;
    if (ok)
        npass++;
    else
        nfail++;
}

bool cuda_ok(int e, const char *what) {
    if (e == cudaSuccess) return true;
    printf("  CUDA: %s: %s\n", what, cudaGetErrorString((cudaError_t)e));
    fflush(stdout);
    return false;
}

// ---- operands -------------------------------------------------------------------------------------------------------------

static uint64_t seed = 1;
static double uniform(void) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(seed >> 11) / 9007199254740992.0;
}
static double normal(void) { return sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform()); }

// Large operands repeat after a prime number of elements, so that rows still differ.
static uint16_t *random_bf16(int64_t n, double mean, double spread) {
    enum { PERIOD = 1000003 };
    uint16_t *x = malloc((size_t)n * 2);
    for (int64_t i = 0; i < n && i < PERIOD; i++) x[i] = bf16_round(mean + spread * normal());
    for (int64_t i = PERIOD; i < n; i += PERIOD) memcpy(x + i, x, (size_t)(n - i < PERIOD ? n - i : PERIOD) * 2);
    return x;
}

bool to_device(void **dst, const void *src, size_t nbytes) {
    if (!cuda_ok(cudaMalloc(dst, nbytes + 4096), "allocation")) return false;
    if (src) return cuda_ok(cudaMemcpy(*dst, src, nbytes, cudaMemcpyHostToDevice), "copy");
    return cuda_ok(cudaMemset(*dst, 0xff, nbytes + 4096), "fill");  // NaN: what is not written shows
}

void free_operands(Operands *x) {
    void *host[] = {x->q, x->k, x->v, x->dout, x->o, x->dq, x->dk, x->dv, x->lse, x->ids, x->first, x->end};
    void *dev[] = {x->gq, x->gk, x->gv, x->gdout, x->go, x->gdq, x->gdk, x->gdv, x->glse, x->scratch, x->gids};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++) cudaFree(dev[i]);
    *x = (Operands){0};
}

// negative: scores around -150, so that every log-sum-exp is below -88.
bool make_operands(Operands *x, const DnnCall *c, bool negative) {
    *x = (Operands){.nrow = c->batch * c->heads * c->nq};
    x->nq = x->nrow * c->dim, x->nk = c->batch * c->kv_heads * c->nk * c->dim;
    double mean = negative ? sqrt(150 / (c->scale * (double)c->dim)) : 0;
    x->q = random_bf16(x->nq, mean, 1), x->k = random_bf16(x->nk, -mean, 1), x->v = random_bf16(x->nk, 0, 1),
    x->dout = random_bf16(x->nq, 0, 1);
    size_t q = (size_t)x->nq * 2, k = (size_t)x->nk * 2;
    x->o = malloc(q), x->dq = malloc(q), x->dk = malloc(k), x->dv = malloc(k), x->lse = malloc((size_t)x->nrow * 4);
    DnnCall f = *c, b = *c;
    f.backward = false, b.backward = true;
    x->scratch_nbytes = dnn_scratch(&f) > dnn_scratch(&b) ? dnn_scratch(&f) : dnn_scratch(&b);
    return to_device(&x->gq, x->q, q) && to_device(&x->gk, x->k, k) && to_device(&x->gv, x->v, k) &&
           to_device(&x->gdout, x->dout, q) && to_device(&x->go, NULL, q) && to_device(&x->gdq, NULL, q) &&
           to_device(&x->gdk, NULL, k) && to_device(&x->gdv, NULL, k) && to_device(&x->glse, NULL, (size_t)x->nrow * 4) &&
           to_device(&x->scratch, NULL, x->scratch_nbytes);
}

DnnData data_of(const Operands *x) {
    return (DnnData){x->gq, x->gk, x->gv, x->go, x->glse, x->gdout, x->gdq, x->gdk, x->gdv, x->gids, PROBE_NODE};
}

Status prepare(const DnnCall *c, bool backward, DnnPlan **p) {
    Diag d = {0};
    DnnCall call = *c;
    call.backward = backward;
    if (!backward && c->cut != 2) call.cut = -1;  // 2: in both directions
    const char *no = dnn_refuses(&call);
    Status st = no ? diag_error(&d, ST_UNSUPPORTED, "refused: %s", no) : dnn_prepare(&device, &call, p, &d);
    if (st != ST_OK) printf("\n    %s plan: %s\n", backward ? "backward" : "forward", d.text);
    return st;
}

Status run(const DnnPlan *p, const DnnData *data, void *scratch) {
    Diag d = {0};
    Status st = dnn_run(&device, p, data, scratch, &d);
    if (st != ST_OK) printf("\n    run: %s\n", d.text);
    return st;
}

DeviceError device_error(void) {
    DeviceError e = {0};
    cuda_ok(cudaStreamSynchronize(device.stream), "run");
    cuda_ok(cudaMemcpy(&e, device.error, sizeof e, cudaMemcpyDeviceToHost), "error record");
    cuda_ok(cudaMemset(device.error, 0, sizeof e), "error record");
    return e;
}

static bool to_host(void *dst, const void *src, size_t nbytes) {
    return cuda_ok(cudaMemcpy(dst, src, nbytes, cudaMemcpyDeviceToHost), "copy");
}
bool fetch_results(Operands *x) {
    size_t q = (size_t)x->nq * 2, k = (size_t)x->nk * 2;
    return cuda_ok(cudaStreamSynchronize(device.stream), "run") && to_host(x->o, x->go, q) && to_host(x->dq, x->gdq, q) &&
           to_host(x->dk, x->gdk, k) && to_host(x->dv, x->gdv, k) && to_host(x->lse, x->glse, (size_t)x->nrow * 4);
}

// ---- comparison -----------------------------------------------------------------------------------------------------------

static void compare_row(Error *e, const uint16_t *got, const double *want, int64_t n) {
    double row = 0;
    for (int64_t i = 0; i < n; i++) {
        double g = bf16_value(got[i]), x = g - want[i];
        if (!isfinite(g)) {
            e->nan++;
            continue;
        }
        row += x * x, e->ref2 += want[i] * want[i];
    }
    e->err2 += row, e->n += (double)n;
    if (row / (double)n > e->worst2) e->worst2 = row / (double)n;
}
static double rel(const Error *e) { return sqrt(e->err2 / (e->ref2 > 0 ? e->ref2 : 1)); }
static double worst(const Error *e) { return sqrt(e->worst2 / (e->ref2 > 0 ? e->ref2 / e->n : 1)); }

typedef struct Check {
    RefCall ref;
    const Operands *x;
    int64_t row_step, key_step;  // every step-th row and key
    int64_t rows, keys;          // so many
    double *o, *dq, *dk, *dv, *lse, *delta;
} Check;

static void check_row(void *p, int64_t i) {
    Check *c = p;
    int64_t r = i * c->row_step, n = c->ref.dim;
    ref_row(&c->ref, r, c->o + i * n, &c->lse[r], c->dq + i * n, &c->delta[r]);
}
static void check_key(void *p, int64_t i) {
    Check *c = p;
    int64_t r = i * c->key_step, n = c->ref.dim;
    ref_key(&c->ref, r, c->lse, c->delta, c->dk + i * n, c->dv + i * n);
}
// Where not every row is computed: keys from the GPU's own lse and o, which the rows' check vouches for.
static void row_statistics(void *p, int64_t r) {
    Check *c = p;
    int64_t n = c->ref.dim;
    double s = 0;
    for (int64_t e = 0; e < n; e++) s += bf16_value(c->x->dout[r * n + e]) * bf16_value(c->x->o[r * n + e]);
    c->lse[r] = c->x->lse[r], c->delta[r] = s;
}

static void reference_rows(Check *k, const DnnCall *c, const Operands *x, int64_t row_step, int64_t key_step, bool rounded) {
    int64_t n = c->dim;
    *k = (Check){.ref = {c->batch, c->heads, c->kv_heads, c->nq, c->nk, c->dim, (int)c->mask, c->shift, c->window, c->scale,
                         rounded, x->q, x->k, x->v, x->dout, x->first, x->end},
                 .x = x,
                 .row_step = row_step,
                 .key_step = key_step,
                 .rows = (x->nrow + row_step - 1) / row_step,
                 .keys = (x->nk / n + key_step - 1) / key_step};
    k->o = malloc((size_t)(k->rows * n) * 8), k->dq = malloc((size_t)(k->rows * n) * 8);
    k->dk = malloc((size_t)(k->keys * n) * 8), k->dv = malloc((size_t)(k->keys * n) * 8);
    k->lse = malloc((size_t)x->nrow * 8), k->delta = malloc((size_t)x->nrow * 8);
    parallel(k->rows, check_row, k);
}
static void reference_keys(Check *k) {
    if (k->row_step > 1) parallel(k->x->nrow, row_statistics, k);
    parallel(k->keys, check_key, k);
}
static void free_reference(Check *k) { free(k->o), free(k->dq), free(k->dk), free(k->dv), free(k->lse), free(k->delta); }

// What bf16 alone costs: the reference with a kernel's roundings against the reference.
static void compare_ideal(Error *e, const double *ideal, const double *want, int64_t rows, int64_t n) {
    uint16_t *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < n; j++) x[j] = bf16_round(ideal[i * n + j]);
        compare_row(e, x, want + i * n, n);
    }
    free(x);
}
static void find_ideal(const Check *k, const DnnCall *c, const Operands *x, Errors *e) {
    Check r;
    reference_rows(&r, c, x, 1, 1, true);
    reference_keys(&r);
    compare_ideal(&e->ideal[0], r.o, k->o, k->rows, c->dim), compare_ideal(&e->ideal[1], r.dq, k->dq, k->rows, c->dim);
    compare_ideal(&e->ideal[2], r.dk, k->dk, k->keys, c->dim), compare_ideal(&e->ideal[3], r.dv, k->dv, k->keys, c->dim);
    free_reference(&r);
}

void check_all(const DnnCall *c, const Operands *x, int64_t row_step, int64_t key_step, bool ideal, Errors *e) {
    *e = (Errors){0};
    int64_t n = c->dim;
    Check k;
    reference_rows(&k, c, x, row_step, key_step, false);
    for (int64_t i = 0; i < k.rows; i++) {
        int64_t r = i * row_step;
        compare_row(&e->each[0], x->o + r * n, k.o + i * n, n);
        compare_row(&e->each[1], x->dq + r * n, k.dq + i * n, n);
        double l = fabs((double)x->lse[r] - k.lse[r]);
        if (!isfinite(x->lse[r]))
            e->lse_nan++;
        else if (l > e->lse)
            e->lse = l;
    }
    reference_keys(&k);
    for (int64_t i = 0; i < k.keys; i++) {
        compare_row(&e->each[2], x->dk + i * key_step * n, k.dk + i * n, n);
        compare_row(&e->each[3], x->dv + i * key_step * n, k.dv + i * n, n);
    }
    if (ideal) find_ideal(&k, c, x, e);
    free_reference(&k);
}

// bf16 results from bf16 probabilities: errors of about 2^-9 each; f32 sums for lse. `size` of lse's error grows with lse itself.
// Where keys have a mean far from 0, gradients of scores (which add up to 0 over a row) are rounded to bf16 and then multiplied
// by that mean: no kernel is better than `ideal`. An H100 had 1.00 of it in o and dq, and up to 1.5 in dk and dv, where cuDNN
// rounds each head of a group before it adds them. Twice is allowed.
bool report(const Errors *e, double lse_size) {
    static const char *const name[] = {"o", "dq", "dk", "dv"};
    bool ok = e->lse <= 3e-6 * (1 + lse_size) && !e->lse_nan;
    printf(" lse %.1e", e->lse);
    if (e->lse_nan) printf(" (%lld NaN)", (long long)e->lse_nan);
    for (int i = 0; i < 4; i++) {
        const Error *x = &e->each[i], *best = &e->ideal[i];
        printf(" %s %.1e (row %.1e)", name[i], rel(x), worst(x));
        if (best->n > 0) printf(" [ideal %.1e, %.1e]", rel(best), worst(best));
        if (x->nan) printf(" (%lld NaN)", (long long)x->nan);
        ok = ok && !x->nan && rel(x) < fmax(i ? 8e-3 : 5e-3, 2 * rel(best)) && worst(x) < fmax(0.1, 2 * worst(best));
    }
    return ok;
}

// ---- cases ----------------------------------------------------------------------------------------------------------------
DnnCall call_of(const Case *k) {
    return (DnnCall){.batch = k->b, .heads = k->h, .kv_heads = k->hkv, .nq = k->nq, .nk = k->nk, .dim = k->d, .mask = k->mask,
                     .shift = k->shift, .window = k->window, .scale = 1 / sqrt((double)k->d), .cut = k->cut};
}

void run_case(const Case *k) {
    DnnCall c = call_of(k);
    printf("%-24s b%lld h%lld/%lld q%lld k%lld d%lld%s:", k->name, (long long)k->b, (long long)k->h, (long long)k->hkv,
           (long long)k->nq, (long long)k->nk, (long long)k->d,
           k->cut == 0  ? " uncut"
           : k->cut > 0 ? " cut"
                        : "");
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, k->negative) && prepare(&c, false, &f) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && run(f, &data, x.scratch) == ST_OK && prepare(&c, true, &b) == ST_OK && run(b, &data, x.scratch) == ST_OK &&
         fetch_results(&x);
    if (ok) {
        Errors e;
        check_all(&c, &x, 1, 1, k->negative, &e);
        ok = report(&e, k->negative ? 200 : 10);
    }
    verdict(ok);
    free_operands(&x);
}

double seconds_of(const DnnPlan *p, const DnnData *data, void *scratch, int repeat) {
    cudaEvent_t a, b;
    float ms = 0;
    cudaEventCreate(&a), cudaEventCreate(&b);
    bool ok = run(p, data, scratch) == ST_OK && run(p, data, scratch) == ST_OK;
    cudaEventRecord(a, device.stream);
    for (int i = 0; i < repeat && ok; i++) ok = run(p, data, scratch) == ST_OK;
    cudaEventRecord(b, device.stream);
    ok = ok && cuda_ok(cudaEventSynchronize(b), "timing");
    cudaEventElapsedTime(&ms, a, b);
    cudaEventDestroy(a), cudaEventDestroy(b);
    return ok ? ms * 1e-3 / repeat : INFINITY;
}

double visible_pairs(const DnnCall *c) {
    double n = 0;
    for (int64_t i = 0; i < c->nq; i++) {
        int64_t hi = c->mask == DNN_FULL ? c->nk : i + c->shift + 1 < c->nk ? i + c->shift + 1 : c->nk;
        int64_t lo = c->mask == DNN_WINDOW && i + c->shift - c->window + 1 > 0 ? i + c->shift - c->window + 1 : 0;
        n += (double)(hi - lo);
    }
    return n;
}

void print_facts(const char *what, const DnnCall *c, const DnnPlan *p) {
    DnnPlanFacts f = dnn_plan_facts(p);
    DnnGroups g = dnn_groups(c);
    printf("\n    %s: engine %lld (%d of %d), plan %.2f s%s, workspace %lld of %lld planned, scratch %.1f MiB, %lld groups of "
           "%lld KV heads",
           what, (long long)f.engine, f.chosen, f.proposals, f.seconds, f.from_disk ? " from text" : "", (long long)f.workspace,
           (long long)f.planned_workspace, (double)dnn_scratch(c) / 1048576, (long long)g.n, (long long)g.kv_heads);
}
