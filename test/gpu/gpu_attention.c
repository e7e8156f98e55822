// cuDNN attention on a GPU: against float64 on the host, then speeds. Stands alone (no cmocka): one line per case, PASS or FAIL,
// and cuDNN's own words wherever it refuses; a case that fails does not stop the others.
//   gpu_attention           all of it (about a minute)
//   gpu_attention check     correctness; gpu_attention speed: speeds
//   gpu_attention large     more than 2^31 elements (35 GB of either memory, half a minute): not among "all"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "attention_ref.h"
#include "backend/cuda/device/cache.h"
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/device/libs.h"

static Device device;
static int npass, nfail;
static bool counted = true;  // verdicts are; else they are for information
enum { MAX_DIM = 256 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void verdict(bool ok) {
    printf("  %s\n", !counted ? ok ? "right" : "wrong, not used" : ok ? "PASS" : "FAIL");
    fflush(stdout);
    if (!counted) return;
    if (ok)
        npass++;
    else
        nfail++;
}

static bool cuda_ok(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return true;
    printf("  CUDA: %s: %s\n", what, cudaGetErrorString(e));
    fflush(stdout);
    return false;
}

// ---- operands
// ---------------------------------------------------------------------------------------------------------------------
typedef struct Operands {
    int64_t nq, nk, nrow;                           // elements of q and of k; rows of q
    uint16_t *q, *k, *v, *dout, *o, *dq, *dk, *dv;  // host
    float *lse;
    void *gq, *gk, *gv, *gdout, *go, *gdq, *gdk, *gdv, *glse, *scratch;  // device
    size_t scratch_nbytes;
} Operands;

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

static bool to_device(void **dst, const void *src, size_t nbytes) {
    if (!cuda_ok(cudaMalloc(dst, nbytes + 4096), "allocation")) return false;
    if (src) return cuda_ok(cudaMemcpy(*dst, src, nbytes, cudaMemcpyHostToDevice), "copy");
    return cuda_ok(cudaMemset(*dst, 0xff, nbytes + 4096), "fill");  // NaN: what is not written shows
}

static void free_operands(Operands *x) {
    void *host[] = {x->q, x->k, x->v, x->dout, x->o, x->dq, x->dk, x->dv, x->lse};
    void *dev[] = {x->gq, x->gk, x->gv, x->gdout, x->go, x->gdq, x->gdk, x->gdv, x->glse, x->scratch};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    for (size_t i = 0; i < sizeof dev / sizeof *dev; i++) cudaFree(dev[i]);
    *x = (Operands){0};
}

// negative: scores around -150, so that every log-sum-exp is below -88.
static bool make_operands(Operands *x, const DnnCall *c, bool negative) {
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

static DnnData data_of(const Operands *x) {
    return (DnnData){x->gq, x->gk, x->gv, x->go, x->glse, x->gdout, x->gdq, x->gdk, x->gdv};
}

static Status prepare(const DnnCall *c, bool backward, DnnPlan **p) {
    Diag d = {0};
    DnnCall call = *c;
    call.backward = backward;
    if (!backward && c->cut != 2) call.cut = -1;  // 2: in both directions
    const char *no = dnn_refuses(&call);
    Status st = no ? diag_error(&d, ST_UNSUPPORTED, "refused: %s", no) : dnn_prepare(&device, &call, p, &d);
    if (st != ST_OK) printf("\n    %s plan: %s\n", backward ? "backward" : "forward", d.text);
    return st;
}

static Status run(const DnnPlan *p, const DnnData *data, void *scratch) {
    Diag d = {0};
    Status st = dnn_run(&device, p, data, scratch, &d);
    if (st != ST_OK) printf("\n    run: %s\n", d.text);
    return st;
}

static bool to_host(void *dst, const void *src, size_t nbytes) {
    return cuda_ok(cudaMemcpy(dst, src, nbytes, cudaMemcpyDeviceToHost), "copy");
}
static bool fetch_results(Operands *x) {
    size_t q = (size_t)x->nq * 2, k = (size_t)x->nk * 2;
    return cuda_ok(cudaStreamSynchronize(device.stream), "run") && to_host(x->o, x->go, q) && to_host(x->dq, x->gdq, q) &&
           to_host(x->dk, x->gdk, k) && to_host(x->dv, x->gdv, k) && to_host(x->lse, x->glse, (size_t)x->nrow * 4);
}

// ---- comparison
// ------------------------------------------------------------------------------------------------------------------- Sums over
// what was checked: of one operand. `worst`: the largest error of one row over the rms of all rows.
typedef struct Error {
    double err2, ref2, n, worst2;
    int64_t nan;
} Error;

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

typedef struct Errors {
    Error each[4];      // o, dq, dk, dv
    Error ideal[4];     // of the best kernel there can be, where that was asked for
    double lse;         // largest absolute error
    int64_t lse_nan;
} Errors;

static void reference_rows(Check *k, const DnnCall *c, const Operands *x, int64_t row_step, int64_t key_step, bool rounded) {
    int64_t n = c->dim;
    *k = (Check){.ref = {c->batch, c->heads, c->kv_heads, c->nq, c->nk, c->dim, (int)c->mask, c->shift, c->window, c->scale,
                         rounded, x->q, x->k, x->v, x->dout},
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

static void check_all(const DnnCall *c, const Operands *x, int64_t row_step, int64_t key_step, bool ideal, Errors *e) {
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
static bool report(const Errors *e, double lse_size) {
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

// ---- cases
// ------------------------------------------------------------------------------------------------------------------------
typedef struct Case {
    const char *name;
    int64_t b, h, hkv, nq, nk, d;
    DnnMaskKind mask;
    int64_t shift, window;
    int cut;        // as DnnCall, of the backward; 2: of both
    bool negative;  // log-sum-exp below -88
} Case;

static const Case cases[] = {
    {"full, one tile", 1, 4, 4, 128, 128, 64, DNN_FULL, 0, 0, -1, false},
    {"full", 1, 8, 2, 512, 512, 64, DNN_FULL, 0, 0, -1, false},
    {"full 128", 1, 8, 2, 384, 640, 128, DNN_FULL, 0, 0, -1, false},
    {"causal", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal 128", 1, 8, 2, 512, 512, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal one head each", 1, 4, 4, 512, 512, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal one KV head", 1, 8, 1, 384, 384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal batch 3", 3, 4, 2, 256, 256, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal more queries", 1, 4, 2, 640, 384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal more keys", 1, 4, 2, 384, 640, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal bottom right", 1, 8, 2, 256, 640, 64, DNN_CAUSAL, 384, 0, -1, false},
    {"causal bottom right 128", 1, 8, 2, 256, 640, 128, DNN_CAUSAL, 384, 0, -1, false},
    {"causal shift 100", 1, 8, 2, 256, 640, 64, DNN_CAUSAL, 100, 0, -1, false},
    {"causal shift 1", 1, 8, 2, 256, 256, 128, DNN_CAUSAL, 1, 0, -1, false},
    {"causal shift beyond", 1, 4, 2, 256, 640, 64, DNN_CAUSAL, 5000, 0, -1, false},
    {"window 100", 1, 8, 2, 512, 512, 64, DNN_WINDOW, 0, 100, -1, false},
    {"window 128", 1, 8, 2, 640, 640, 128, DNN_WINDOW, 0, 128, -1, false},
    {"window 1", 1, 4, 2, 256, 256, 64, DNN_WINDOW, 0, 1, -1, false},
    {"window wide", 1, 4, 2, 256, 256, 64, DNN_WINDOW, 0, 4096, -1, false},
    {"window shifted", 1, 8, 2, 256, 640, 64, DNN_WINDOW, 300, 200, -1, false},
    {"window shifted 128", 1, 8, 2, 256, 640, 128, DNN_WINDOW, 384, 77, -1, false},
    {"window more queries", 1, 4, 2, 640, 512, 64, DNN_WINDOW, 0, 300, -1, false},
    {"window batch 2", 2, 4, 2, 384, 384, 64, DNN_WINDOW, 0, 130, -1, false},
    {"dim 32", 1, 4, 2, 256, 256, 32, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 8", 1, 4, 2, 256, 256, 8, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 80", 1, 4, 2, 256, 256, 80, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 96", 1, 4, 2, 256, 256, 96, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 192", 1, 4, 2, 256, 256, 192, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 256", 1, 4, 2, 256, 256, 256, DNN_CAUSAL, 0, 0, -1, false},
    {"forward cut too", 1, 4, 2, 256, 200, 64, DNN_CAUSAL, 0, 0, 2, false},
    {"one query", 1, 4, 2, 1, 300, 64, DNN_FULL, 0, 0, -1, false},
    {"one query, one key", 1, 4, 2, 1, 1, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"three queries", 1, 4, 2, 3, 300, 128, DNN_CAUSAL, 297, 0, -1, false},
};

// Operands beyond 2^31 elements: of many entries of the batch (which the backward takes one at a time), and of long heads.
static const Case larges[] = {
    {"2^31, batch", 8203, 16, 16, 128, 128, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"2^31, sequence", 1, 32, 32, 524416, 524416, 128, DNN_WINDOW, 0, 4096, -1, false},
};

static DnnCall call_of(const Case *k) {
    return (DnnCall){k->b, k->h, k->hkv, k->nq, k->nk, k->d, k->mask, k->shift, k->window, 1 / sqrt((double)k->d), false, k->cut};
}

// Every step-th row and key is compared.
static void run_case(const Case *k, int64_t step) {
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
        check_all(&c, &x, step, step, k->negative, &e);
        ok = report(&e, k->negative ? 200 : 10);
    }
    verdict(ok);
    free_operands(&x);
}

// Lengths that do not fill tiles, with and without lengths given to the kernel, scores as usual and far below zero. Which of the
// uncut ones are right decides dnn_needs_cut; they are not counted.
static void run_length(DnnMaskKind mask, int64_t nq, int64_t nk, int cut) {
    static const char *const word[] = {"full", "causal", "window"};
    for (int negative = 0; negative < 2; negative++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", word[mask], negative ? " negative" : "");
        Case k = {name, 1, 4, 2, nq, nk, 64, mask, mask == DNN_CAUSAL && nq < nk ? 17 : 0, 150, cut, negative};
        run_case(&k, 1);
    }
}

static void run_lengths(void) {
    static const int64_t n[] = {64, 192, 200};
    for (int cut = 1; cut >= 0; cut--) {
        counted = cut;
        printf("-- lengths off the tile, %s\n", cut ? "cut (what is used)" : "uncut (for information: NaN is expected)");
        for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
            run_length(DNN_FULL, n[i], n[i], cut), run_length(DNN_FULL, 256, n[i], cut), run_length(DNN_FULL, n[i], 256, cut);
            run_length(DNN_CAUSAL, n[i], n[i], cut), run_length(DNN_CAUSAL, n[i], 256, cut),
                run_length(DNN_WINDOW, n[i], n[i], cut);
        }
    }
    counted = true;
}

// Queries of the second half of a sequence against its two halves of keys, merged by log-sum-exp on the host; the backward of
// each half gets the merged o and lse (what ring attention does). Against the whole.
static void run_merged(int64_t d) {
    int64_t s = 512, h = 8, hkv = 2;
    DnnCall whole = {1, h, hkv, s / 2, s, d, DNN_CAUSAL, s / 2, 0, 1 / sqrt((double)d), false, -1};
    DnnCall part[2] = {whole, whole};
    part[0].nk = part[1].nk = s / 2, part[0].mask = DNN_FULL, part[0].shift = part[1].shift = 0;
    printf("%-24s d%lld:", "two halves of keys", (long long)d);
    Operands x, y[2] = {{0}};
    bool ok = make_operands(&x, &whole, false);
    int64_t half = s / 2 * d;
    float *dq = calloc((size_t)x.nq, sizeof *dq);
    for (int i = 0; i < 2 && ok; i++) {  // the halves' keys are the whole's
        ok = make_operands(&y[i], &part[i], false);
        for (int64_t kv = 0; kv < hkv && ok; kv++) {
            memcpy(y[i].k + kv * half, x.k + kv * s * d + i * half, (size_t)half * 2);
            memcpy(y[i].v + kv * half, x.v + kv * s * d + i * half, (size_t)half * 2);
        }
        ok = ok && cuda_ok(cudaMemcpy(y[i].gk, y[i].k, (size_t)y[i].nk * 2, cudaMemcpyHostToDevice), "copy") &&
             cuda_ok(cudaMemcpy(y[i].gv, y[i].v, (size_t)y[i].nk * 2, cudaMemcpyHostToDevice), "copy");
        DnnData data = data_of(&y[i]);
        DnnPlan *p;
        data.q = x.gq;
        ok = ok && prepare(&part[i], false, &p) == ST_OK && run(p, &data, y[i].scratch) == ST_OK && fetch_results(&y[i]);
    }
    for (int64_t r = 0; r < x.nrow && ok; r++) {
        double a = y[0].lse[r], b = y[1].lse[r], m = a > b ? a : b, l = m + log(exp(a - m) + exp(b - m));
        x.lse[r] = (float)l;
        for (int64_t e = r * d; e < (r + 1) * d; e++)
            x.o[e] = bf16_round(exp(a - l) * bf16_value(y[0].o[e]) + exp(b - l) * bf16_value(y[1].o[e]));
    }
    ok = ok && cuda_ok(cudaMemcpy(x.go, x.o, (size_t)x.nq * 2, cudaMemcpyHostToDevice), "copy") &&
         cuda_ok(cudaMemcpy(x.glse, x.lse, (size_t)x.nrow * 4, cudaMemcpyHostToDevice), "copy");
    for (int i = 0; i < 2 && ok; i++) {
        DnnData data = data_of(&y[i]);
        DnnPlan *p;
        data.q = x.gq, data.o = x.go, data.lse = x.glse, data.dout = x.gdout;
        ok = prepare(&part[i], true, &p) == ST_OK && run(p, &data, y[i].scratch) == ST_OK && fetch_results(&y[i]);
        for (int64_t e = 0; e < x.nq && ok; e++) dq[e] += (float)bf16_value(y[i].dq[e]);
        for (int64_t kv = 0; kv < hkv && ok; kv++) {
            memcpy(x.dk + kv * s * d + i * half, y[i].dk + kv * half, (size_t)half * 2);
            memcpy(x.dv + kv * s * d + i * half, y[i].dv + kv * half, (size_t)half * 2);
        }
    }
    for (int64_t e = 0; e < x.nq; e++) x.dq[e] = bf16_round(dq[e]);
    if (ok) {
        Errors e;
        check_all(&whole, &x, 1, 1, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free(dq), free_operands(&x), free_operands(&y[0]), free_operands(&y[1]);
}

// Recorded into a CUDA graph and replayed: the same bits as launched, forward (the backward sums in any order).
static void run_captured(void) {
    Case k = {"captured", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false};
    DnnCall c = call_of(&k);
    printf("%-24s:", k.name);
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, false) && prepare(&c, false, &f) == ST_OK && prepare(&c, true, &b) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && run(f, &data, x.scratch) == ST_OK && fetch_results(&x);
    uint16_t *direct = malloc((size_t)x.nq * 2);
    memcpy(direct, x.o, (size_t)x.nq * 2);
    ok = ok && cuda_ok(cudaMemset(x.go, 0xff, (size_t)x.nq * 2), "fill");
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaStream_t s = device.stream;
    ok = ok && cuda_ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "begin capture");
    if (ok) {
        ok = run(f, &data, x.scratch) == ST_OK && run(b, &data, x.scratch) == ST_OK;
        ok = cuda_ok(cudaStreamEndCapture(s, &graph), "end capture") && ok;
    }
    ok = ok && cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    for (int i = 0; i < 3 && ok; i++) ok = cuda_ok(cudaGraphLaunch(exec, s), "launch");
    ok = ok && fetch_results(&x);
    if (ok) {
        Errors e;
        check_all(&c, &x, 1, 1, false, &e);
        ok = report(&e, 10) && !memcmp(direct, x.o, (size_t)x.nq * 2);
    }
    verdict(ok);
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    free(direct), free_operands(&x);
}

// ---- speed
// ------------------------------------------------------------------------------------------------------------------------
static double seconds_of(const DnnPlan *p, const DnnData *data, void *scratch, int repeat) {
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

static double visible_pairs(const DnnCall *c) {
    double n = 0;
    for (int64_t i = 0; i < c->nq; i++) {
        int64_t hi = c->mask == DNN_FULL ? c->nk : i + c->shift + 1 < c->nk ? i + c->shift + 1 : c->nk;
        int64_t lo = c->mask == DNN_WINDOW && i + c->shift - c->window + 1 > 0 ? i + c->shift - c->window + 1 : 0;
        n += (double)(hi - lo);
    }
    return n;
}

static void print_facts(const char *what, const DnnCall *c, const DnnPlan *p) {
    DnnPlanFacts f = dnn_plan_facts(p);
    DnnGroups g = dnn_groups(c);
    printf("\n    %s: engine %lld (%d of %d), plan %.2f s%s, workspace %lld of %lld planned, scratch %.1f MiB, %lld groups of "
           "%lld KV heads",
           what, (long long)f.engine, f.chosen, f.proposals, f.seconds, f.from_disk ? " from text" : "", (long long)f.workspace,
           (long long)f.planned_workspace, (double)dnn_scratch(c) / 1048576, (long long)g.n, (long long)g.kv_heads);
}

static void run_speed(const Case *k) {
    DnnCall c = call_of(k), cb = c;
    cb.backward = true;
    double flops = 4 * visible_pairs(&c) * (double)(c.dim * c.heads * c.batch);
    int repeat = flops > 2e13 ? 3 : 10;
    printf("%-16s h%lld/%lld q%lld k%lld d%lld:", k->name, (long long)k->h, (long long)k->hkv, (long long)k->nq, (long long)k->nk,
           (long long)k->d);
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, false) && prepare(&c, false, &f) == ST_OK;
    DnnData data = data_of(&x);
    if (ok) {
        double t = seconds_of(f, &data, x.scratch, repeat);
        printf(" forward %.3f ms %.0f TFLOP/s", t * 1e3, flops / t * 1e-12);
        print_facts("forward", &c, f);
    }
    ok = ok && prepare(&c, true, &b) == ST_OK;
    if (ok) {
        double t = seconds_of(b, &data, x.scratch, repeat);
        printf("\n    backward %.3f ms %.0f TFLOP/s", t * 1e3, 2.5 * flops / t * 1e-12);
        print_facts("backward", &cb, b);
    }
    ok = ok && fetch_results(&x);
    if (ok) {  // a few rows and keys, primes apart
        Errors e;
        printf("\n    spots:");
        check_all(&c, &x, 32749, 32749, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free_operands(&x);
}

static const Case speeds[] = {
    {"causal", 1, 32, 8, 8192, 8192, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 16384, 16384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 32768, 32768, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 8192, 8192, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 16384, 16384, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 32768, 32768, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal groups", 1, 32, 8, 65536, 65536, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal cut", 1, 32, 8, 16384, 16384, 64, DNN_CAUSAL, 0, 0, 1, false},
    {"causal off tile", 1, 32, 8, 16320, 16320, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"last quarter", 1, 32, 8, 8192, 32768, 64, DNN_CAUSAL, 24576, 0, -1, false},
    {"third quarter", 1, 32, 8, 8192, 32768, 64, DNN_CAUSAL, 16384, 0, -1, false},
    {"full", 1, 32, 8, 8192, 8192, 64, DNN_FULL, 0, 0, -1, false},
    {"window 4096", 1, 32, 8, 32768, 32768, 128, DNN_WINDOW, 0, 4096, -1, false},
    {"window 4096", 1, 32, 8, 32768, 32768, 64, DNN_WINDOW, 0, 4096, -1, false},
};

// A second connection finds its plans in the cache.
static void run_plan_times(void) {
    Case k = {"plan from text", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false};
    Device other = device;
    other.dnn = NULL;
    DnnCall c = call_of(&k);
    for (int backward = 0; backward < 2; backward++) {
        Diag d = {0};
        DnnPlan *p;
        c.backward = backward;
        double t = now();
        Status st = dnn_prepare(&other, &c, &p, &d);
        printf("%-24s %s: %.4f s", k.name, backward ? "backward" : "forward", now() - t);
        if (st != ST_OK)
            printf(" %s", d.text);
        else
            print_facts("plan", &c, p);
        verdict(st == ST_OK && dnn_plan_facts(p).from_disk);
    }
    Operands x;
    DnnPlan *f, *b;
    DnnCall cb = c;
    c.backward = false;
    Diag d = {0};
    printf("%-24s:", "and it runs");
    bool ok =
        make_operands(&x, &c, false) && dnn_prepare(&other, &c, &f, &d) == ST_OK && dnn_prepare(&other, &cb, &b, &d) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && dnn_run(&other, f, &data, x.scratch, &d) == ST_OK && dnn_run(&other, b, &data, x.scratch, &d) == ST_OK &&
         fetch_results(&x);
    if (d.status != ST_OK) printf(" %s", d.text);
    if (ok) {
        Errors e;
        check_all(&c, &x, 1, 1, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free_operands(&x);
    dnn_close(&other);
}

// ---- a cache of this process, where the real one is not linked in
// ----------------------------------------------------------------
typedef struct Entry {
    struct Entry *next;
    char *key;
    void *data;
    size_t nbytes;
} Entry;
static Entry *entries;

__attribute__((weak)) const void *cache_get(Arena *a, const char *kind, const char *key, size_t *nbytes) {
    (void)kind;
    for (Entry *e = entries; e; e = e->next)
        if (!strcmp(e->key, key)) {
            *nbytes = e->nbytes;
            return arena_copy(a, e->data, e->nbytes);
        }
    return NULL;
}
__attribute__((weak)) void cache_put(const char *kind, const char *key, const void *data, size_t nbytes) {
    (void)kind;
    Entry *e = malloc(sizeof *e);
    *e = (Entry){entries, strdup(key), malloc(nbytes), nbytes};
    memcpy(e->data, data, nbytes);
    entries = e;
}

int main(int argc, char **argv) {
    bool check = argc < 2 || !strcmp(argv[1], "check"), speed = argc < 2 || !strcmp(argv[1], "speed");
    bool large = argc > 1 && !strcmp(argv[1], "large");
    struct cudaDeviceProp prop;
    cudaStream_t stream;
    if (!cuda_ok(cudaGetDeviceProperties(&prop, 0), "device")) return 2;
    if (!cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return 2;
    device = (Device){.nsm = prop.multiProcessorCount, .stream = stream, .capability = prop.major * 10 + prop.minor};
    snprintf(device.name, sizeof device.name, "%.60s", prop.name);
    snprintf(device.key, sizeof device.key, "%.60s %d", prop.name, device.capability);
    const CudnnLib *lib;
    Diag d = {0};
    if (libs_cudnn(&lib, &d) != ST_OK) {
        printf("%s\n", d.text);
        return 2;
    }
    printf("%s, cuDNN %zu\n", device.key, lib->version);
    double begin = now();
    if (check) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i], 1);
        run_merged(64), run_merged(128);
        run_captured();
        run_plan_times();
        run_lengths();
    }
    if (check) printf("check: %.1f s\n", now() - begin);
    for (size_t i = 0; large && i < sizeof larges / sizeof *larges; i++) run_case(&larges[i], 32749);  // prime
    for (size_t i = 0; speed && i < sizeof speeds / sizeof *speeds; i++) run_speed(&speeds[i]);
    printf("%s: %d passed, %d failed; %.1f s\n", nfail ? "FAIL" : "PASS", npass, nfail, now() - begin);
    dnn_close(&device);
    return nfail > 0;
}
