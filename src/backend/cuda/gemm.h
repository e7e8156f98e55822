// Matrix products of one GPU behind one interface: cuBLASLt (gemm_cublaslt.c) or plain loops (gemm_emulated.c).
#pragma once
#include "backend/cuda/device.h"
#include "base/diag.h"
#include "ir/type.h"

// For each of `batch` matrices: D[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C[m,n] (+ bias[n]), all dense row-major with the given
// leading dims (elements between rows) and strides (elements between matrices of the batch). trans_a: A is stored [k,m].
typedef struct Gemm {
    int64_t m, n, k, batch;
    bool trans_a, trans_b;
    int64_t lda, ldb, ldc, ldd;
    int64_t stride_a, stride_b, stride_c, stride_d;
    DType ab, cd;            // of A and B; of C and D. bf16/bf16, bf16/f32, f32/f32
    float alpha, beta;       // beta 0: C is not read. C may be D
    bool bias;               // a vector [n] of dtype cd is added
} Gemm;
enum { GEMM_WORKSPACE_NBYTES = 32 << 20 };  // scratch that every product is given
// What gemm_prepare chose; owned by the device, shared by equal products.
typedef struct GemmPlan GemmPlan;
// Picks the fastest algorithm: measured on these addresses unless the cache on disk knows it (D is overwritten then, with beta = 0 as if
// C were not there). float32 never uses TF32.
Status gemm_prepare(Device *dev, const Gemm *g, const void *a, const void *b, const void *c, void *dst, void *workspace, GemmPlan **out, Diag *d);
Status gemm_run(Device *dev, const GemmPlan *p, const void *a, const void *b, const void *c, const void *bias, void *dst, void *workspace, Diag *d);
void gemm_close(Device *dev) __attribute__((weak));
