// gemm.h by cuBLASLt. Row-major matrices are the transposes of column-major ones, so D = A B is computed as D' = B' A' on the
// same bytes. The library's heuristic only proposes; what it proposes is timed where it will run, once per distinct product, and
// kept on disk.
#include <cuda_runtime.h>
#include <string.h>
#include "backend/cuda/device/cache.h"
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/device/libs.h"
#include "base/arena.h"
#include "base/containers.h"

enum { MAX_CANDIDATES = 96, MAX_KEY = 512 };

struct GemmPlan {
    Gemm g;
    char key[MAX_KEY];
    GemmPlan *next;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t left, right, c, d;  // column-major: left is B, right is A
    cublasLtMatmulAlgo_t algo;
    GemmTuning tuning;
};

typedef struct GemmDevice {
    Arena *arena;
    const CublasLtLib *lt;
    cublasLtHandle_t handle;   // NULL until the first product that needs the library
    GemmPlan *plans;
    cudaEvent_t begin, end;
} GemmDevice;

// What is kept on disk.
typedef struct GemmChoice {
    cublasLtMatmulAlgo_t algo;
    float first_us, best_us;
    int32_t ncandidate, splitk;
} GemmChoice;

static Status cuda_error(Diag *d, const char *what, cudaError_t e) {
    return diag_error(d, ST_UNSUPPORTED, "matrix product: %s: %s", what, cudaGetErrorString(e));
}
static Status blas_error(const GemmDevice *gd, Diag *d, const char *what, cublasStatus_t s) {
    return diag_error(d, ST_UNSUPPORTED, "matrix product: %s: %s", what, gd->lt->cublasLtGetStatusString(s));
}
#define CUDA(call)                                                  \
    do {                                                            \
        cudaError_t cuda_e_ = (call);                               \
        if (cuda_e_ != cudaSuccess) return cuda_error(d, #call, cuda_e_); \
    } while (0)
#define BLAS(call)                                                  \
    do {                                                            \
        cublasStatus_t blas_s_ = gd->lt->call;                      \
        if (blas_s_ != CUBLAS_STATUS_SUCCESS) return blas_error(gd, d, #call, blas_s_); \
    } while (0)

static GemmDevice *device_of(Device *dev) {
    if (dev->blas) return dev->blas;
    Arena *a = arena_new();
    CHECK(a, "out of memory");
    GemmDevice *gd = ARENA_NEW(a, GemmDevice);
    gd->arena = a;
    return dev->blas = gd;
}

void *gemm_alloc(Device *dev, size_t nbytes) { return arena_alloc(device_of(dev)->arena, nbytes); }
const GemmTuning *gemm_tuning(const GemmPlan *p) { return &p->tuning; }

static Status open_library(GemmDevice *gd, Diag *d) {
    if (gd->handle) return ST_OK;
    TRY(libs_cublaslt(&gd->lt, d));
    CUDA(cudaEventCreate(&gd->begin));
    CUDA(cudaEventCreate(&gd->end));
    BLAS(cublasLtCreate(&gd->handle));
    return ST_OK;
}

void gemm_close(Device *dev) {
    GemmDevice *gd = dev->blas;
    if (!gd) return;
    for (GemmPlan *p = gd->plans; p && gd->lt; p = p->next) {
        if (p->desc) gd->lt->cublasLtMatmulDescDestroy(p->desc);
        cublasLtMatrixLayout_t all[] = {p->left, p->right, p->c, p->d};
        for (int i = 0; i < 4; i++)
            if (all[i]) gd->lt->cublasLtMatrixLayoutDestroy(all[i]);
    }
    if (gd->handle) {
        gd->lt->cublasLtDestroy(gd->handle);
        cudaEventDestroy(gd->begin);
        cudaEventDestroy(gd->end);
    }
    arena_free(gd->arena);
    dev->blas = NULL;
}

// ---- keys -----------------------------------------------------------------------------------------------------------------

// The alignment that may be relied upon. Beyond 64 bytes no kernel gains; the arena's offsets are multiples of that, so that
// equal products at different places have one plan.
static uint32_t alignment(const void *p) {
    uintptr_t both = (uintptr_t)p | 64;
    return (uint32_t)(both & -both);
}

typedef struct Addresses {
    const void *a, *b, *c, *bias;
    void *d, *workspace;
} Addresses;

static void plan_key(const Device *dev, const GemmDevice *gd, const Gemm *g, const Addresses *at, char *key) {
    int n = snprintf(
        key, MAX_KEY,
        "gemm 1 %s lt%zu m%lld n%lld k%lld batch%lld %c%c ld%lld,%lld,%lld,%lld stride%lld,%lld,%lld,%lld %s %s alpha%a beta%a "
        "bias%d align%u,%u,%u,%u inplace%d workspace%d",
        dev->key, gd->lt->version, (long long)g->m, (long long)g->n, (long long)g->k, (long long)g->batch, g->trans_a ? 't' : 'n',
        g->trans_b ? 't' : 'n', (long long)g->lda, (long long)g->ldb, (long long)g->ldc, (long long)g->ldd,
        (long long)g->stride_a, (long long)g->stride_b, (long long)g->stride_c, (long long)g->stride_d, dtype_name(g->ab),
        dtype_name(g->cd), (double)g->alpha, (double)g->beta, g->bias, alignment(at->a), alignment(at->b), alignment(at->c),
        alignment(at->d), at->c == at->d, (int)gemm_workspace(g));
    CHECK(n > 0 && n < MAX_KEY, "the key of a product is too long");
}

// ---- descriptors ----------------------------------------------------------------------------------------------------------

static cudaDataType_t type_of(DType t) { return t == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static Status new_layout(GemmDevice *gd, cublasLtMatrixLayout_t *out, DType t, int64_t rows, int64_t cols, int64_t ld,
                         int64_t batch, int64_t stride, Diag *d) {
    int32_t count = (int32_t)batch;
    BLAS(cublasLtMatrixLayoutCreate(out, type_of(t), (uint64_t)rows, (uint64_t)cols, ld));
    if (batch == 1) return ST_OK;
    BLAS(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    BLAS(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride));
    return ST_OK;
}

static Status describe(GemmDevice *gd, GemmPlan *p, Diag *d) {
    const Gemm *g = &p->g;
    // COMPUTE_32F rounds no float32 operand: TF32 would be COMPUTE_32F_FAST_TF32.
    BLAS(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    cublasOperation_t left = g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, right = g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left));
    BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right));
    if (g->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        int32_t type = type_of(g->cd);
        BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    }
    int64_t bn = g->batch;
    TRY(new_layout(gd, &p->left, g->ab, g->trans_b ? g->k : g->n, g->trans_b ? g->n : g->k, g->ldb, bn, g->stride_b, d));
    TRY(new_layout(gd, &p->right, g->ab, g->trans_a ? g->m : g->k, g->trans_a ? g->k : g->m, g->lda, bn, g->stride_a, d));
    TRY(new_layout(gd, &p->c, g->cd, g->n, g->m, g->beta != 0 ? g->ldc : g->ldd, bn, g->beta != 0 ? g->stride_c : g->stride_d,
                   d));
    TRY(new_layout(gd, &p->d, g->cd, g->n, g->m, g->ldd, bn, g->stride_d, d));
    return ST_OK;
}

static cublasStatus_t launch(const Device *dev, const GemmDevice *gd, const GemmPlan *p, const cublasLtMatmulAlgo_t *algo,
                             const Addresses *at) {
    if (p->g.bias) {
        cublasStatus_t s =
            gd->lt->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at->bias, sizeof at->bias);
        if (s != CUBLAS_STATUS_SUCCESS) return s;
    }
    const void *c = p->g.beta != 0 ? at->c : at->d;
    return gd->lt->cublasLtMatmul(gd->handle, p->desc, &p->g.alpha, at->b, p->left, at->a, p->right, &p->g.beta, c, p->c, at->d,
                                  p->d, algo, at->workspace, gemm_workspace(&p->g), (cudaStream_t)dev->stream);
}

// ---- candidates -----------------------------------------------------------------------------------------------------------

typedef struct Candidates {
    int n;
    cublasLtMatmulAlgo_t algo[MAX_CANDIDATES];
    float us[MAX_CANDIDATES];
} Candidates;

static uint32_t config(const GemmDevice *gd, const cublasLtMatmulAlgo_t *a, cublasLtMatmulAlgoConfigAttributes_t what) {
    uint32_t v = 0;
    size_t n;
    return gd->lt->cublasLtMatmulAlgoConfigGetAttribute(a, what, &v, sizeof v, &n) == CUBLAS_STATUS_SUCCESS ? v : 0;
}

// Parts of a split contraction are summed in the workspace, in float32 and in order; in place they would be added by atomics, in
// the output's type they would be rounded. float32 operands stay float32.
static bool acceptable(const GemmDevice *gd, const Gemm *g, const cublasLtMatmulAlgo_t *a) {
    uint32_t split = config(gd, a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
             scheme = config(gd, a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    if (split > 1 && (scheme & (CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE))) return false;
    uint64_t flags = 0, narrow = CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_TF32 | CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16F |
                                 CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16BF;
    size_t n;
    if (gd->lt->cublasLtMatmulAlgoCapGetAttribute(a, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS, &flags, sizeof flags, &n) !=
        CUBLAS_STATUS_SUCCESS)
        flags = 0;  // CUBLAS_COMPUTE_32F promises it as well
    return g->ab != DT_F32 || !(flags & narrow);
}

static void add_candidate(const GemmDevice *gd, const Gemm *g, const cublasLtMatmulAlgo_t *a, Candidates *all) {
    if (all->n == MAX_CANDIDATES || !acceptable(gd, g, a)) return;
    for (int i = 0; i < all->n; i++)
        if (memcmp(&all->algo[i], a, sizeof *a) == 0) return;
    all->algo[all->n++] = *a;
}

// What the heuristic proposes within a workspace.
static Status ask(GemmDevice *gd, const GemmPlan *p, const Addresses *at, uint64_t workspace, int want, Candidates *all,
                  Diag *d) {
    cublasLtMatmulPreference_t pref;
    BLAS(cublasLtMatmulPreferenceCreate(&pref));
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const void *c = p->g.beta != 0 ? at->c : at->d;
    uint32_t align[4] = {alignment(at->b), alignment(at->a), alignment(c), alignment(at->d)};
    static const cublasLtMatmulPreferenceAttributes_t name[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    bool ok = gd->lt->cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                           sizeof workspace) == 0;
    ok &= gd->lt->cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                       sizeof schemes) == 0;
    for (int i = 0; i < 4; i++)
        ok &= gd->lt->cublasLtMatmulPreferenceSetAttribute(pref, name[i], &align[i], sizeof align[i]) == 0;
    static _Thread_local cublasLtMatmulHeuristicResult_t result[MAX_CANDIDATES];
    int n = 0;
    cublasStatus_t s =
        !ok ? CUBLAS_STATUS_INVALID_VALUE
            : gd->lt->cublasLtMatmulAlgoGetHeuristic(gd->handle, p->desc, p->left, p->right, p->c, p->d, pref, want, result, &n);
    gd->lt->cublasLtMatmulPreferenceDestroy(pref);
    if (s == CUBLAS_STATUS_NOT_SUPPORTED) return ST_OK;  // none within these limits
    if (s != CUBLAS_STATUS_SUCCESS) return blas_error(gd, d, "cublasLtMatmulAlgoGetHeuristic", s);
    for (int i = 0; i < n; i++)
        if (result[i].state == CUBLAS_STATUS_SUCCESS && result[i].workspaceSize <= workspace)
            add_candidate(gd, &p->g, &result[i].algo, all);
    return ST_OK;
}

// Few tiles and a long contraction (a weight's gradient over many tokens): the first candidates again with the contraction
// divided.
static void add_splits(const GemmDevice *gd, const Device *dev, const GemmPlan *p, Candidates *all) {
    const Gemm *g = &p->g;
    int64_t tiles = ceil_div(g->m, 128) * ceil_div(g->n, 256) * g->batch;
    if (g->k < 2048 || tiles >= 2 * dev->nsm) return;
    int first = (int)min_i64(all->n, 6);
    static const int32_t parts[] = {2, 3, 4, 6, 8, 12, 16};
    for (int i = 0; i < first; i++)
        for (size_t s = 0; s < sizeof parts / sizeof *parts; s++) {
            cublasLtMatmulAlgo_t a = all->algo[i];
            uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
            cublasLtMatmulHeuristicResult_t r;
            if (gd->lt->cublasLtMatmulAlgoConfigSetAttribute(&a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts[s], sizeof parts[s]) ||
                gd->lt->cublasLtMatmulAlgoConfigSetAttribute(&a, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme) ||
                gd->lt->cublasLtMatmulAlgoCheck(gd->handle, p->desc, p->left, p->right, p->c, p->d, &a, &r) ||
                r.state != CUBLAS_STATUS_SUCCESS || r.workspaceSize > gemm_workspace(g))
                continue;
            add_candidate(gd, g, &a, all);
        }
}

// ---- timing ---------------------------------------------------------------------------------------------------------------

// Microseconds of one launch, as the mean of `n`; negative: the candidate does not run.
static Status time_launches(const Device *dev, const GemmDevice *gd, const GemmPlan *p, const cublasLtMatmulAlgo_t *algo,
                            const Addresses *at, int n, float *us, Diag *d) {
    cudaStream_t stream = dev->stream;
    *us = -1;
    CUDA(cudaEventRecord(gd->begin, stream));
    for (int i = 0; i < n; i++)
        if (launch(dev, gd, p, algo, at) != CUBLAS_STATUS_SUCCESS) return ST_OK;
    CUDA(cudaEventRecord(gd->end, stream));
    CUDA(cudaEventSynchronize(gd->end));
    float ms;
    CUDA(cudaEventElapsedTime(&ms, gd->begin, gd->end));
    *us = ms * 1000 / (float)n;
    return ST_OK;
}

// Every candidate once to load it and once for a guess; those near the best in rounds, so that a clock that changes meanwhile
// treats all alike; the fastest round of each counts.
static Status time_all(const Device *dev, const GemmDevice *gd, const GemmPlan *p, const Addresses *at, Candidates *all,
                       Diag *d) {
    enum { ROUNDS = 5 };
    float best = 0;
    for (int i = 0; i < all->n; i++) {
        TRY(time_launches(dev, gd, p, &all->algo[i], at, 1, &all->us[i], d));
        if (all->us[i] < 0 || (best > 0 && all->us[i] > 50000 && all->us[i] > 4 * best)) continue;  // slow ones are not run again
        TRY(time_launches(dev, gd, p, &all->algo[i], at, 1, &all->us[i], d));
        if (all->us[i] > 0 && (best == 0 || all->us[i] < best)) best = all->us[i];
    }
    if (best == 0) return ST_OK;
    int repeat = best < 200 ? (int)(200 / best) + 1 : 1, rounds = best > 20000 ? 2 : ROUNDS;
    float limit = best * (best < 50 ? 2.0f : 1.25f);  // a single launch of a short product is a poor guess
    for (int i = 0; i < all->n; i++)
        if (all->us[i] > limit) all->us[i] = -all->us[i];
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < all->n; i++) {
            if (all->us[i] <= 0) continue;
            float us;
            TRY(time_launches(dev, gd, p, &all->algo[i], at, repeat, &us, d));
            if (us > 0 && (round == 0 || us < all->us[i])) all->us[i] = us;
        }
    return ST_OK;
}

static bool runs(const Device *dev, const GemmDevice *gd, const GemmPlan *p, const Addresses *at) {
    return launch(dev, gd, p, &p->algo, at) == CUBLAS_STATUS_SUCCESS;
}

// Fills plan->algo and plan->tuning.
static Status tune(const Device *dev, GemmDevice *gd, GemmPlan *p, const Addresses *at, Diag *d) {
    const Gemm *g = &p->g;
    static _Thread_local Candidates all;
    all.n = 0;
    if (g->batch <= INT32_MAX) {
        TRY(ask(gd, p, at, gemm_workspace(g), 32, &all, d));
        TRY(ask(gd, p, at, 0, 16, &all, d));
        TRY(ask(gd, p, at, gemm_workspace(g) / 8, 8, &all, d));
        add_splits(gd, dev, p, &all);
    }
    p->tuning.ncandidate = all.n;
    if (gemm_small(g)) {
        for (int i = 0; i < all.n; i++) {
            p->algo = all.algo[i];
            if (runs(dev, gd, p, at)) return ST_OK;
        }
        all.n = 0;
    }
    TRY(time_all(dev, gd, p, at, &all, d));
    int best = -1;
    for (int i = 0; i < all.n; i++)
        if (all.us[i] > 0 && (best < 0 || all.us[i] < all.us[best])) best = i;
    p->tuning.simt = best < 0;
    if (best < 0) return ST_OK;
    p->algo = all.algo[best];
    p->tuning.best_us = all.us[best];
    p->tuning.first_us = all.us[0] < 0 ? -all.us[0] : all.us[0];
    p->tuning.splitk = (int)config(gd, &p->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
    return ST_OK;
}

static bool from_cache(const Device *dev, const GemmDevice *gd, GemmPlan *p, const Addresses *at) {
    Arena *a = arena_new();
    size_t nbytes = 0;
    const GemmChoice *choice = a ? cache_get(a, "gemm", p->key, &nbytes) : NULL;
    bool found = choice && nbytes == sizeof *choice;
    if (found) {
        cublasLtMatmulHeuristicResult_t r;
        p->algo = choice->algo;
        p->tuning = (GemmTuning){.from_cache = true, .ncandidate = choice->ncandidate, .first_us = choice->first_us,
                                 .best_us = choice->best_us, .splitk = choice->splitk};
        found = gd->lt->cublasLtMatmulAlgoCheck(gd->handle, p->desc, p->left, p->right, p->c, p->d, &p->algo, &r) ==
                    CUBLAS_STATUS_SUCCESS &&
                r.state == CUBLAS_STATUS_SUCCESS && r.workspaceSize <= gemm_workspace(&p->g) && acceptable(gd, &p->g, &p->algo) &&
                runs(dev, gd, p, at);  // loads it, too: nothing may be loaded while launches are captured
    }
    if (!found) p->tuning = (GemmTuning){0};
    arena_free(a);
    return found;
}

Status gemm_prepare(Device *dev, const Gemm *g, const void *a, const void *b, const void *c, void *dst, void *workspace,
                    GemmPlan **out, Diag *d) {
    GemmDevice *gd = device_of(dev);
    // The bias's place is not known yet; any n elements do for measuring.
    Addresses at = {.a = a, .b = b, .c = g->beta != 0 ? c : dst, .bias = dst, .d = dst, .workspace = workspace};
    char key[MAX_KEY];
    if (g->k > 0) {
        TRY(open_library(gd, d));
        plan_key(dev, gd, g, &at, key);
        for (GemmPlan *p = gd->plans; p; p = p->next)
            if (strcmp(p->key, key) == 0) return *out = p, ST_OK;
    }
    GemmPlan *p = ARENA_NEW(gd->arena, GemmPlan);
    p->g = *g;
    *out = p;
    p->tuning.simt = g->k == 0;
    if (g->k == 0) return ST_OK;
    memcpy(p->key, key, sizeof key);
    p->next = gd->plans;
    gd->plans = p;
    TRY(describe(gd, p, d));
    if (from_cache(dev, gd, p, &at)) return ST_OK;
    TRY(tune(dev, gd, p, &at, d));
    CUDA(cudaStreamSynchronize((cudaStream_t)dev->stream));
    if (p->tuning.best_us <= 0) return ST_OK;
    GemmChoice choice;
    memset(&choice, 0, sizeof choice);
    choice.algo = p->algo, choice.first_us = p->tuning.first_us, choice.best_us = p->tuning.best_us;
    choice.ncandidate = p->tuning.ncandidate, choice.splitk = p->tuning.splitk;
    cache_put("gemm", key, &choice, sizeof choice);
    return ST_OK;
}

Status gemm_run(Device *dev, const GemmPlan *p, const void *a, const void *b, const void *c, const void *bias, void *dst,
                void *workspace, Diag *d) {
    const Gemm *g = &p->g;
    if (p->tuning.simt) {
        SimtGemm s = gemm_simt_of(g, a, b, c, bias, dst);
        gemm_simt_launch(dev->stream, g->ab == DT_BF16, g->cd == DT_BF16, &s);
        CUDA(cudaGetLastError());
        return ST_OK;
    }
    const GemmDevice *gd = dev->blas;
    Addresses at = {.a = a, .b = b, .c = c, .bias = bias, .d = dst, .workspace = workspace};
    cublasStatus_t s = launch(dev, gd, p, &p->algo, &at);
    if (s == CUBLAS_STATUS_SUCCESS) return ST_OK;
    return diag_error(d, ST_UNSUPPORTED, "matrix product [%lld, %lld] x [%lld, %lld] x %lld of %s: cuBLASLt: %s", (long long)g->m,
                      (long long)g->k, (long long)g->k, (long long)g->n, (long long)g->batch, dtype_name(g->ab),
                      gd->lt->cublasLtGetStatusString(s));
}
