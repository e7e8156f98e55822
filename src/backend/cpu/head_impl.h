// The kernels of head.c for one float type (see real.h).
#include "backend/cpu/real.h"
#if REAL_BITS == 32
#define VEXP vexp_f32
#define VTANH vtanh_f32
#else
#define VEXP vexp_f64
#define VTANH vtanh_f64
#endif

typedef struct FN(Head) {
    int64_t n, nd, nv;
    REAL scale, cap;       // cap 0: none
    const REAL *h, *w;     // [n, nd], [nv, nd]
    const int64_t *idx;    // [n]
    const REAL *glse, *gpick, *lse_in;  // [n]; NULL without gradients; lse_in: NULL where the log-sum-exp is computed here
    REAL *lse, *pick, *dh, *dw;         // NULL where not wanted
    REAL *z;               // [rows, nv]: logits of the chunk, then their gradients
    int64_t row0, rows;    // the chunk
    int64_t panel;         // of the step at hand
    bool first;            // chunk: dw is overwritten
} FN(Head);

static FN(Head) FN(head_of)(const KernelArgs *k) {
    FN(Head) x = {.n = k->in[0].dim[0], .nd = k->in[0].dim[1], .nv = k->in[1].dim[0], .h = k->in[0].data, .w = k->in[1].data};
    x.idx = k->in[2].data, x.z = k->scratch;
    x.scale = (REAL)node_float_or(k->node, ATTR_SCALE, 1), x.cap = (REAL)node_float_or(k->node, ATTR_SOFTCAP, 0);
    return x;
}

// ---- the products --------------------------------------------------------------------------------------------------------
static void FN(head_logits_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const FN(Head) *x = ctx;
    GEMM(false, true, x->rows, end - begin, x->nd, x->scale, x->h + x->row0 * x->nd, x->nd, x->w + begin * x->nd, x->nd, 0,
         x->z + begin, x->nv);
}

static void FN(head_dh_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const FN(Head) *x = ctx;
    GEMM(false, false, x->rows, end - begin, x->nv, x->scale, x->z, x->nv, x->w + begin, x->nd, 0,
         x->dh + x->row0 * x->nd + begin, x->nd);
}

static void FN(head_dw_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const FN(Head) *x = ctx;
    GEMM(true, false, end - begin, x->nd, x->rows, x->scale, x->z + begin, x->nv, x->h + x->row0 * x->nd, x->nd, x->first ? 0 : 1,
         x->dw + begin * x->nd, x->nd);
}

// ---- along a row ---------------------------------------------------------------------------------------------------------
enum { FN(HEAD_LANES) = 16, FN(HEAD_BLOCK) = 1024 };

static REAL FN(head_max)(const REAL *z, int64_t n) {
    REAL lane[FN(HEAD_LANES)], max = -INFINITY;
    for (int j = 0; j < FN(HEAD_LANES); j++) lane[j] = -INFINITY;
    int64_t i = 0;
    for (; i + FN(HEAD_LANES) <= n; i += FN(HEAD_LANES))
        for (int j = 0; j < FN(HEAD_LANES); j++) lane[j] = z[i + j] > lane[j] ? z[i + j] : lane[j];
    for (int j = 0; j < FN(HEAD_LANES); j++) max = lane[j] > max ? lane[j] : max;
    for (; i < n; i++) max = z[i] > max ? z[i] : max;
    return max;  // NaNs passed over: the sum of exponentials has them
}

// Blocks are summed in lanes, blocks together in float64.
static REAL FN(head_lse)(const REAL *z, int64_t n) {
    REAL max = FN(head_max)(z, n), shift = isinf(max) ? 0 : max;
    double sum = 0;
    for (int64_t b = 0; b < n; b += FN(HEAD_BLOCK)) {
        int64_t end = min_i64(n, b + FN(HEAD_BLOCK)), i = b;
        REAL lane[FN(HEAD_LANES)] = {0};
        for (; i + FN(HEAD_LANES) <= end; i += FN(HEAD_LANES))
            for (int j = 0; j < FN(HEAD_LANES); j++) lane[j] += VEXP(z[i + j] - shift);
        for (int j = 0; i < end; i++, j++) lane[j] += VEXP(z[i] - shift);
        for (int j = 0; j < FN(HEAD_LANES); j++) sum += (double)lane[j];
    }
    return (REAL)((double)shift + log(sum));
}

static void FN(head_cap)(REAL *z, int64_t n, REAL cap) {
    KERNEL_LOOP
    for (int64_t i = 0; i < n; i++) z[i] = cap * VTANH(z[i] / cap);
}

// z becomes its gradient: exp(z - lse) * glse, and gpick at `at`; through the cap.
static void FN(head_dz)(const FN(Head) *x, REAL *z, int64_t at, REAL lse, REAL glse, REAL gpick) {
    REAL picked = VEXP(z[at] - lse) * glse + gpick, inv = x->cap > 0 ? 1 / x->cap : 0, ratio = z[at] * inv;
    picked *= 1 - ratio * ratio;
    if (x->cap > 0) {
        KERNEL_LOOP
        for (int64_t i = 0; i < x->nv; i++) z[i] = VEXP(z[i] - lse) * glse * (1 - z[i] * inv * (z[i] * inv));
    } else {
        KERNEL_LOOP
        for (int64_t i = 0; i < x->nv; i++) z[i] = VEXP(z[i] - lse) * glse;
    }
    z[at] = picked;
}

static void FN(head_rows_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const FN(Head) *x = ctx;
    for (int64_t i = begin; i < end; i++) {
        int64_t row = x->row0 + i, at = x->idx[row];
        REAL *z = x->z + i * x->nv;
        if (x->cap > 0) FN(head_cap)(z, x->nv, x->cap);
        REAL lse = x->lse_in ? x->lse_in[row] : FN(head_lse)(z, x->nv);
        if (x->lse) x->lse[row] = lse, x->pick[row] = z[at];
        if (x->dh) FN(head_dz)(x, z, at, lse, x->glse[row], x->gpick[row]);
    }
}

// ---- the kernels ---------------------------------------------------------------------------------------------------------
static Status FN(head_run)(const KernelArgs *k, FN(Head) *x, Diag *d) {
    TRY(cpu_check_indices(k, &k->in[2], x->nv, d));
    CHECK(k->scratch_nbytes >= head_scratch(k->in), "scratch too small");
    if (x->dw && x->n == 0) memset(x->dw, 0, (size_t)(x->nv * x->nd) * sizeof *x->dw);
    int64_t rows = head_rows(x->n, x->nv, (int)sizeof(REAL));
    for (x->row0 = 0; x->row0 < x->n; x->row0 += rows) {  // nv > 0: each row has an index below it
        x->rows = min_i64(rows, x->n - x->row0), x->first = x->row0 == 0;
        pool_run(k->pool, FN(head_logits_part), x, x->nv, head_panel(x->nv, k->pool));
        kernel_run(k->pool, FN(head_rows_part), x, x->rows, 8 * x->nv);
        if (!x->dh || x->nd == 0) continue;
        pool_run(k->pool, FN(head_dh_part), x, x->nd, head_panel(x->nd, k->pool));
        pool_run(k->pool, FN(head_dw_part), x, x->nv, head_panel(x->nv, k->pool));
    }
    return ST_OK;
}

Status FN(cpu_head_fwd)(const KernelArgs *k, Diag *d) {
    FN(Head) x = FN(head_of)(k);
    x.lse = k->out[0].data, x.pick = k->out[1].data;
    return FN(head_run)(k, &x, d);
}

Status FN(cpu_head_grad)(const KernelArgs *k, Diag *d) {
    FN(Head) x = FN(head_of)(k);
    x.lse_in = k->in[3].data, x.glse = k->in[4].data, x.gpick = k->in[5].data;
    x.dh = k->out[0].data, x.dw = k->out[1].data;
    return FN(head_run)(k, &x, d);
}

Status FN(cpu_head)(const KernelArgs *k, Diag *d) {
    FN(Head) x = FN(head_of)(k);
    x.glse = k->in[3].data, x.gpick = k->in[4].data;
    x.lse = k->out[0].data, x.pick = k->out[1].data, x.dh = k->out[2].data, x.dw = k->out[3].data;
    return FN(head_run)(k, &x, d);
}
#undef VEXP
#undef VTANH
