// See gemm_simt.h. Slow beside cuBLASLt; for what that refuses (odd strides of bf16, empty contractions).
#include "backend/cuda/product/gemm_simt.h"
#include "backend/cuda/product/tile.h"

template <class AB, class CD>
GPU_FN void gemm_tile(const SimtGemm &p, i64 batch, i64 row, i64 col) {
    const AB *a = (const AB *)p.a + batch * p.stride_a, *b = (const AB *)p.b + batch * p.stride_b;
    const CD *c = (const CD *)p.c + batch * p.stride_c, *bias = (const CD *)p.bias;
    CD *d = (CD *)p.d + batch * p.stride_d;
    float acc[TILE_SUB][TILE_SUB] = {};
    tile_product(0, p.k, p.a_k == 1, p.b_k == 1,
        [&](i64 i, i64 k) { return row + i < p.m ? to_float(a[(row + i) * p.a_m + k * p.a_k]) : 0.0f; },
        [&](i64 k, i64 j) { return col + j < p.n ? to_float(b[k * p.b_k + (col + j) * p.b_n]) : 0.0f; }, acc);
    for (int i = 0; i < TILE_SUB; i++)
        for (int j = 0; j < TILE_SUB; j++) {
            i64 r = row + tile_row(i), s = col + tile_col(j);
            if (r >= p.m || s >= p.n) continue;
            float v = p.alpha * acc[i][j];
            if (p.beta != 0) v += p.beta * to_float(c[r * p.ldc + s]);
            if (bias) v += to_float(bias[s]);
            store_float(&d[r * p.ldd + s], v);
        }
}

template <class AB, class CD>
GPU_FN void gemm_tiles(const SimtGemm &p) {
    i64 across = (p.n + TILE - 1) / TILE, each = (p.m + TILE - 1) / TILE * across;
    for (i64 t = gpu_block_x; t < each * p.batch; t += gpu_grid_x)
        gemm_tile<AB, CD>(p, t / each, t % each / across * TILE, t % each % across * TILE);
}

GPU_KERNEL(gemm_simt_f32, SimtGemm, TILE_THREADS) { gemm_tiles<float, float>(p); }
GPU_KERNEL(gemm_simt_bf16, SimtGemm, TILE_THREADS) { gemm_tiles<bf16, bf16>(p); }
GPU_KERNEL(gemm_simt_bf16_f32, SimtGemm, TILE_THREADS) { gemm_tiles<bf16, float>(p); }

extern "C" void gemm_simt_launch(void *stream, int ab_bf16, int cd_bf16, const SimtGemm *g) {
    i64 tiles = (g->m + TILE - 1) / TILE * ((g->n + TILE - 1) / TILE) * g->batch;
    if (tiles == 0) return;
    GpuDim grid = {(u32)(tiles < (1 << 30) ? tiles : 1 << 30), 1, 1}, block = {TILE_THREADS, 1, 1};
    if (!ab_bf16) GPU_LAUNCH(gemm_simt_f32, stream, grid, block, 0, *g);
    else if (cd_bf16) GPU_LAUNCH(gemm_simt_bf16, stream, grid, block, 0, *g);
    else GPU_LAUNCH(gemm_simt_bf16_f32, stream, grid, block, 0, *g);
}

GPU_KERNEL(gemm_spread_f32, SpreadParams, 256) {
    for (i64 i = gpu_thread(); i < p.total; i += gpu_nthreads()) ((float *)p.d)[i] = ((const float *)p.bias)[i % p.n];
}
GPU_KERNEL(gemm_spread_bf16, SpreadParams, 256) {
    for (i64 i = gpu_thread(); i < p.total; i += gpu_nthreads()) ((bf16 *)p.d)[i] = ((const bf16 *)p.bias)[i % p.n];
}

extern "C" void gemm_spread_launch(void *stream, int bf16_elements, const SpreadParams *p) {
    i64 blocks = (p->total + 255) / 256;
    if (blocks == 0) return;
    GpuDim grid = {(u32)(blocks < 4096 ? blocks : 4096), 1, 1}, block = {256, 1, 1};
    if (bf16_elements) GPU_LAUNCH(gemm_spread_bf16, stream, grid, block, 0, *p);
    else GPU_LAUNCH(gemm_spread_f32, stream, grid, block, 0, *p);
}
