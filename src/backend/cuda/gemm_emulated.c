// gemm.h without a GPU: element by element, summed in double.
#include <string.h>
#include "backend/cuda/gemm.h"
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

Status gemm_prepare(Device *dev, const Gemm *g, const void *a, const void *b, const void *c, void *dst, void *workspace, GemmPlan **out, Diag *d) {
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

Status gemm_run(Device *dev, const GemmPlan *p, const void *a, const void *b, const void *c, const void *bias, void *dst, void *workspace, Diag *d) {
    (void)dev, (void)workspace, (void)d;
    const Gemm *g = &p->g;
    int64_t a_m = g->trans_a ? 1 : g->lda, a_k = g->trans_a ? g->lda : 1, b_k = g->trans_b ? 1 : g->ldb, b_n = g->trans_b ? g->ldb : 1;
    for (int64_t t = 0; t < g->batch; t++)
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                int64_t pa = t * g->stride_a + i * a_m, pb = t * g->stride_b + j * b_n;
                double sum = 0;
                if (g->ab == DT_F32)
                    for (int64_t k = 0; k < g->k; k++) sum += (double)((const float *)a)[pa + k * a_k] * ((const float *)b)[pb + k * b_k];
                else
                    for (int64_t k = 0; k < g->k; k++) sum += (double)load(a, DT_BF16, pa + k * a_k) * load(b, DT_BF16, pb + k * b_k);
                double v = g->alpha * sum;
                if (g->beta != 0) v += (double)g->beta * load(c, g->cd, t * g->stride_c + i * g->ldc + j);
                if (g->bias) v += load(bias, g->cd, j);
                store(dst, g->cd, t * g->stride_d + i * g->ldd + j, (float)v);
            }
    return ST_OK;
}
