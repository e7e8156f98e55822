// The body of blas.c for one float type (see real.h).
#include "backend/cpu/real.h"
#if REAL_BITS == 32
#define CBLAS_GEMM cblas_sgemm
#define CBLAS_GEMV cblas_sgemv
#else
#define CBLAS_GEMM cblas_dgemm
#define CBLAS_GEMV cblas_dgemv
#endif

static void FN(scale)(REAL *c, int64_t m, int64_t n, int64_t ldc, REAL beta) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
}

// y[stride*i] += alpha * sum_j op(a)[i,j] x[stride_x*j]; rows, cols as stored. Reads `a` once and packs nothing.
static void FN(gemv)(bool trans, int rows, int cols, REAL alpha, const REAL *a, int64_t lda, const REAL *x, int64_t stride_x,
                     REAL *y, int64_t stride_y) {
    CBLAS_GEMV(CblasRowMajor, trans ? CblasTrans : CblasNoTrans, rows, cols, alpha, a, (int)lda, x, (int)stride_x, 1, y,
               (int)stride_y);
}

static void FN(gemm_piece)(bool ta, bool tb, int m, int n, int k, REAL alpha, const REAL *a, int64_t lda, const REAL *b,
                           int64_t ldb, REAL beta, REAL *c, int64_t ldc) {
    if (k == 0 || ((m == 1 || n == 1) && beta != 1)) {
        FN(scale)(c, m, n, ldc, beta);
        beta = 1;
    }
    if (k == 0) return;
    if (n == 1)
        FN(gemv)(ta, ta ? k : m, ta ? m : k, alpha, a, lda, b, tb ? 1 : ldb, c, ldc);
    else if (m == 1)
        FN(gemv)(!tb, tb ? n : k, tb ? k : n, alpha, b, ldb, a, ta ? lda : 1, c, 1);
    else
        CBLAS_GEMM(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha, a, (int)lda, b,
                   (int)ldb, beta, c, (int)ldc);
}

void FN(blas_gemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, REAL alpha, const REAL *a, int64_t lda, const REAL *b,
                   int64_t ldb, REAL beta, REAL *c, int64_t ldc) {
    CHECK(lda <= PIECE && ldb <= PIECE && ldc <= PIECE, "row strides %lld, %lld, %lld", (long long)lda, (long long)ldb,
          (long long)ldc);
    for (int64_t i = 0; i < m; i += PIECE)
        for (int64_t j = 0; j < n; j += PIECE)
            for (int64_t l = 0; l == 0 || l < k; l += PIECE)
                FN(gemm_piece)
                (ta, tb, (int)min_i64(PIECE, m - i), (int)min_i64(PIECE, n - j), (int)min_i64(PIECE, k - l), alpha,
                 ta ? a + l * lda + i : a + i * lda + l, lda, tb ? b + j * ldb + l : b + l * ldb + j, ldb, l == 0 ? beta : 1,
                 c + i * ldc + j, ldc);
}
#undef CBLAS_GEMM
#undef CBLAS_GEMV
