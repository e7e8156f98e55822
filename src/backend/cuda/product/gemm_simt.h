// Matrix products without a library: any strides, any alignment, k = 0. Plain C and C++.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// d[b][i, j] = alpha * sum_k a[b][i, k] * b[b][k, j] + beta * c[b][i, j] + bias[j]. Strides in elements.
typedef struct SimtGemm {
    const void *a, *b, *c, *bias;  // bias may be NULL; c is not read where beta is 0
    void *d;
    long long m, n, k, batch;
    long long a_m, a_k, b_k, b_n;  // between elements along that dim
    long long ldc, ldd;
    long long stride_a, stride_b, stride_c, stride_d;
    float alpha, beta;
} SimtGemm;
void gemm_simt_launch(void *stream, int ab_bf16, int cd_bf16, const SimtGemm *g);
// d[i] = bias[i % n] for i in [0, total): what a product is added to whose bias is not along all its columns.
typedef struct SpreadParams {
    void *d;
    const void *bias;
    long long n, total;
} SpreadParams;
void gemm_spread_launch(void *stream, int bf16_elements, const SpreadParams *p);

#ifdef __cplusplus
}
#endif
