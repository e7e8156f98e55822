// One tile of a matrix product by plain multiply-adds in float32: what products that no library or tensor-core kernel takes are
// made of. Device code: included by .cu files after gpu.h.
#pragma once
#include "backend/cuda/device/gpu.h"

// A block of TILE_THREADS threads computes TILE x TILE elements, TILE_SUB x TILE_SUB each. (The emulation's one thread: all.)
enum { TILE = 64, TILE_K = 16 };
#if defined(GPU_EMULATE)
enum { TILE_SUB = TILE };
#else
enum { TILE_SUB = 4 };
#endif
enum { TILE_SIDE = TILE / TILE_SUB, TILE_THREADS = TILE_SIDE * TILE_SIDE };

// The tile's place of this thread's element (i, j) of acc: rows and columns are interleaved among threads, so that a warp's reads
// of shared memory are broadcasts or neighbours.
#define tile_row(i) (gpu_thread_x / TILE_SIDE + (i) * TILE_SIDE)
#define tile_col(j) (gpu_thread_x % TILE_SIDE + (j) * TILE_SIDE)

// acc += sum over k in [k0, k1) of a(i, k) * b(k, j). The functions are called for i, j in [0, TILE) and give 0 outside their
// operand. a_along_k, b_along_k: neighbours in memory are neighbours in k (decides only which thread loads what). All threads
// must call it.
template <class A, class B>
GPU_FN void tile_product(i64 k0, i64 k1, bool a_along_k, bool b_along_k, A a, B b, float (&acc)[TILE_SUB][TILE_SUB]) {
    GPU_SHARED float as[TILE_K][TILE + 1], bs[TILE_K][TILE + 1];
    for (i64 k = k0; k < k1; k += TILE_K) {
        gpu_sync();
        for (int t = (int)gpu_thread_x; t < TILE * TILE_K; t += TILE_THREADS) {
            int ai = a_along_k ? t / TILE_K : t % TILE, ak = a_along_k ? t % TILE_K : t / TILE;
            int bj = b_along_k ? t / TILE_K : t % TILE, bk = b_along_k ? t % TILE_K : t / TILE;
            as[ak][ai] = k + ak < k1 ? a((i64)ai, k + ak) : 0.0f;
            bs[bk][bj] = k + bk < k1 ? b(k + bk, (i64)bj) : 0.0f;
        }
        gpu_sync();
        for (int kk = 0; kk < TILE_K; kk++) {
            float x[TILE_SUB], y[TILE_SUB];
            GPU_UNROLL for (int i = 0; i < TILE_SUB; i++) x[i] = as[kk][tile_row(i)], y[i] = bs[kk][tile_col(i)];
            GPU_UNROLL for (int i = 0; i < TILE_SUB; i++)
                GPU_UNROLL for (int j = 0; j < TILE_SUB; j++) acc[i][j] += x[i] * y[j];
        }
    }
}
