// Matrix products of one GPU behind one interface: cuBLASLt (gemm_cublaslt.c) or plain loops (gemm_emulated.c).
#pragma once
#include "backend/cuda/device/device.h"
#include "backend/cuda/product/gemm_simt.h"
#include "base/diag.h"
#include "ir/type.h"

// For each of `batch` matrices: D[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C[m,n] (+ bias[n]), all dense row-major with the
// given leading dims (elements between rows) and strides (elements between matrices of the batch). trans_a: A is stored [k,m].
typedef struct Gemm {
    int64_t m, n, k, batch;
    bool trans_a, trans_b;
    int64_t lda, ldb, ldc, ldd;
    int64_t stride_a, stride_b, stride_c, stride_d;
    DType ab, cd;            // of A and B; of C and D. bf16/bf16, bf16/f32, f32/f32
    float alpha, beta;       // beta 0: C is not read. C may be D
    bool bias;               // a vector [n] of dtype cd is added
} Gemm;
enum { GEMM_WORKSPACE_NBYTES = 32 << 20 };  // scratch that a product is given, but for small ones
// A launch takes longer than the work: not timed, and without workspace.
static inline bool gemm_small(const Gemm *g) { return 2.0 * (double)g->m * (double)g->n * (double)g->k * (double)g->batch < 1e8; }
static inline size_t gemm_workspace(const Gemm *g) { return gemm_small(g) ? 0 : GEMM_WORKSPACE_NBYTES; }
// What gemm_prepare chose; owned by the device, shared by equal products.
typedef struct GemmPlan GemmPlan;
// Picks the fastest algorithm: measured on these addresses unless the cache on disk knows it (D is overwritten then). m, n and
// batch are at least 1; k = 0 is legal. float32 never uses TF32, and no algorithm is taken whose result depends on the order of
// threads.
Status gemm_prepare(Device *dev, const Gemm *g, const void *a, const void *b, const void *c, void *dst, void *workspace,
                    GemmPlan **out, Diag *d);
Status gemm_run(Device *dev, const GemmPlan *p, const void *a, const void *b, const void *c, const void *bias, void *dst,
                void *workspace, Diag *d);
void gemm_close(Device *dev);
// dot sums a longer contraction of bf16 that gives f32 piece by piece: see dot.c.
enum { DOT_PIECE = 1 << 17 };
extern int64_t dot_piece;  // DOT_PIECE; tests set it

// Zeroed host memory that lives until gemm_close: for what a kernel's `prepare` keeps beside plans.
void *gemm_alloc(Device *dev, size_t nbytes);
// How a plan was chosen, for reports: microseconds of the library's first choice and of the plan, 0 where nothing was measured.
typedef struct GemmTuning {
    int ncandidate;
    bool from_cache, simt;   // simt: by gemm_simt.cu, the library has no algorithm
    float first_us, best_us;
    int splitk;
} GemmTuning;
const GemmTuning *gemm_tuning(const GemmPlan *p);

// The same product as gemm_simt.cu takes it.
static inline SimtGemm gemm_simt_of(const Gemm *g, const void *a, const void *b, const void *c, const void *bias, void *dst) {
    return (SimtGemm){.a = a,
                      .b = b,
                      .c = c,
                      .bias = g->bias ? bias : 0,
                      .d = dst,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .batch = g->batch,
                      .a_m = g->trans_a ? 1 : g->lda,
                      .a_k = g->trans_a ? g->lda : 1,
                      .b_k = g->trans_b ? 1 : g->ldb,
                      .b_n = g->trans_b ? g->ldb : 1,
                      .ldc = g->ldc,
                      .ldd = g->ldd,
                      .stride_a = g->stride_a,
                      .stride_b = g->stride_b,
                      .stride_c = g->stride_c,
                      .stride_d = g->stride_d,
                      .alpha = g->alpha,
                      .beta = g->beta};
}
