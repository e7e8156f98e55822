// The matrix product, from whatever BLAS was linked: the one place that knows it. Row-major, 64-bit sizes, and always on the
// calling thread: kernels cut their work over their own workers.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// c[m,n] = alpha * op(a)[m,k] op(b)[k,n] + beta * c, op being a transpose where asked; ld* are row strides in elements as stored.
// beta 0 overwrites c (NaNs in it do not survive). m, n or k may be 0; k == 0 leaves beta * c.
void blas_gemm_f32(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                   const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void blas_gemm_f64(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a, int64_t lda,
                   const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
