// gemm.h without a GPU: plain loops in double.
#include <string.h>
#include "backend/cuda/product/gemm.h"
#include "base/arena.h"

struct GemmPlan {
    Gemm g;
    GemmTuning tuning;
};

void *gemm_alloc(Device *dev, size_t nbytes) {
    if (!dev->blas) dev->blas = arena_new();
    CHECK(dev->blas, "out of memory");
    return arena_alloc(dev->blas, nbytes);
}

void gemm_close(Device *dev) {
    arena_free(dev->blas);
    dev->blas = NULL;
}

const GemmTuning *gemm_tuning(const GemmPlan *p) { return &p->tuning; }

Status gemm_prepare(Device *dev, const Gemm *g, const void *a, const void *b, const void *c, void *dst, void *workspace,
                    GemmPlan **out, Diag *d) {
    (void)a, (void)b, (void)c, (void)dst, (void)workspace, (void)d;
    *out = gemm_alloc(dev, sizeof **out);
    (*out)->g = *g;
    return ST_OK;
}

static float load(const void *p, DType t, int64_t i) {
    if (t == DT_F32) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void store(void *p, DType t, int64_t i, float f) {
    if (t == DT_F32) {
        ((float *)p)[i] = f;
        return;
    }
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    ((uint16_t *)p)[i] = f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// op(x)[rows, cols] of one matrix of the batch, in double.
static void unpack(double *to, const void *x, DType t, int64_t at, bool trans, int64_t ld, int64_t rows, int64_t cols) {
    int64_t row = trans ? 1 : ld, col = trans ? ld : 1;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) to[i * cols + j] = load(x, t, at + i * row + j * col);
}

// Each element is summed over k in order.
static void multiply(double *restrict sum, const double *restrict a, const double *restrict b, int64_t m, int64_t n, int64_t k) {
    memset(sum, 0, (size_t)(m * n) * sizeof *sum);
    for (int64_t i = 0; i < m; i++)
        for (int64_t e = 0; e < k; e++)
            for (int64_t j = 0; j < n; j++) sum[i * n + j] += a[i * k + e] * b[e * n + j];
}

Status gemm_run(Device *dev, const GemmPlan *p, const void *a, const void *b, const void *c, const void *bias, void *dst,
                void *workspace, Diag *d) {
    (void)dev, (void)workspace, (void)d;
    const Gemm *g = &p->g;
    Arena *arena = arena_new();
    double *left = ARENA_ARRAY(arena, double, g->m * g->k), *right = ARENA_ARRAY(arena, double, g->k * g->n);
    double *sum = ARENA_ARRAY(arena, double, g->m * g->n);
    for (int64_t t = 0; t < g->batch; t++) {
        unpack(left, a, g->ab, t * g->stride_a, g->trans_a, g->lda, g->m, g->k);
        unpack(right, b, g->ab, t * g->stride_b, g->trans_b, g->ldb, g->k, g->n);
        multiply(sum, left, right, g->m, g->n, g->k);
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                double v = g->alpha * sum[i * g->n + j];
                if (g->beta != 0) v += (double)g->beta * load(c, g->cd, t * g->stride_c + i * g->ldc + j);
                if (g->bias) v += load(bias, g->cd, j);
                store(dst, g->cd, t * g->stride_d + i * g->ldd + j, (float)v);
            }
    }
    arena_free(arena);
    return ST_OK;
}
