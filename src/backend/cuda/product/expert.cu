// Products grouped by expert: ordering of the rows, and the products by plain multiply-adds (any shape, float32) or by tensor
// cores (bf16; mma_tile.h). Every sum has one order, whatever the threads do.
#include "backend/cuda/product/expert.h"
#include "backend/cuda/product/mma_tile.h"
#include "backend/cuda/product/tile.h"

// ---- order ----------------------------------------------------------------------------------------------------------------

#define EXPERT_BIN(p, e) ((e) >= 0 && (e) < (p).nexpert ? (int)(e) : (int)(p).nexpert)

// How many rows of each group a chunk has: a thread per group reads the chunk's expert numbers from shared memory.
GPU_KERNEL(expert_count, ExpertOrder, 256) {
    GPU_SHARED int bin[EXPERT_STAGE];
    for (i64 c = gpu_block_x; c < p.nchunk; c += gpu_grid_x) {
        i64 begin = c * p.chunk, end = begin + p.chunk < p.n ? begin + p.chunk : p.n;
        i64 *count = p.count + c * (p.nexpert + 1);
        for (i64 e = gpu_thread_x; e <= p.nexpert; e += gpu_block_threads) count[e] = 0;
        for (i64 s = begin; s < end; s += EXPERT_STAGE) {
            i64 len = end - s < EXPERT_STAGE ? end - s : (i64)EXPERT_STAGE;
            gpu_sync();
            for (i64 i = gpu_thread_x; i < len; i += gpu_block_threads) bin[i] = EXPERT_BIN(p, p.expert[s + i]);
            gpu_sync();
            for (i64 e = gpu_thread_x; e <= p.nexpert; e += gpu_block_threads) {
                int n = 0;
                for (int i = 0; i < (int)len; i++) n += bin[i] == (int)e;
                count[e] += n;
            }
        }
    }
}

// Of one block: where each group begins, and where each chunk's rows of it do.
GPU_KERNEL(expert_scan, ExpertOrder, 1024) {
    i64 width = p.nexpert + 1;
    for (i64 e = gpu_thread_x; e < width; e += gpu_block_threads) {
        i64 sum = 0;
        for (i64 c = 0; c < p.nchunk; c++) sum += p.count[c * width + e];
        p.first[e + 1] = sum;
        p.tile_first[e + 1] = (sum + p.tile - 1) / p.tile;
    }
    gpu_sync();
    if (gpu_thread_x == 0) {
        i64 row = 0, tile = 0;
        p.first[0] = p.tile_first[0] = 0;
        for (i64 e = 1; e <= width; e++) {
            row += p.first[e], tile += p.tile_first[e];
            p.first[e] = row, p.tile_first[e] = tile;
        }
    }
    gpu_sync();
    for (i64 e = gpu_thread_x; e < width; e += gpu_block_threads) {
        i64 at = p.first[e];
        for (i64 c = 0; c < p.nchunk; c++) {
            i64 n = p.count[c * width + e];
            p.count[c * width + e] = at;
            at += n;
        }
    }
}

GPU_KERNEL(expert_place, ExpertOrder, 256) {
    GPU_SHARED int bin[EXPERT_STAGE];
    for (i64 c = gpu_block_x; c < p.nchunk; c += gpu_grid_x) {
        i64 begin = c * p.chunk, end = begin + p.chunk < p.n ? begin + p.chunk : p.n;
        i64 *next = p.count + c * (p.nexpert + 1);
        for (i64 s = begin; s < end; s += EXPERT_STAGE) {
            i64 len = end - s < EXPERT_STAGE ? end - s : (i64)EXPERT_STAGE;
            gpu_sync();
            for (i64 i = gpu_thread_x; i < len; i += gpu_block_threads) bin[i] = EXPERT_BIN(p, p.expert[s + i]);
            gpu_sync();
            for (i64 e = gpu_thread_x; e <= p.nexpert; e += gpu_block_threads) {
                i64 at = next[e];
                for (int i = 0; i < (int)len; i++)
                    if (bin[i] == (int)e) p.order[at++] = s + i;
                next[e] = at;
            }
        }
    }
}

extern "C" void expert_order_launch(void *stream, const ExpertOrder *o) {
    GpuDim grid = {(u32)o->nchunk, 1, 1}, one = {1, 1, 1}, block = {256, 1, 1}, wide = {1024, 1, 1};
    GPU_LAUNCH(expert_count, stream, grid, block, 0, *o);
    GPU_LAUNCH(expert_scan, stream, one, wide, 0, *o);
    GPU_LAUNCH(expert_place, stream, grid, block, 0, *o);
}

// The group of tile t: the last that starts at or before it (empty groups start where the next one does). nexpert + 1: no such
// tile.
GPU_FN i64 expert_of_tile(const ExpertOrder &o, i64 t) {
    if (t >= o.tile_first[o.nexpert + 1]) return o.nexpert + 1;
    i64 lo = 0, hi = o.nexpert;
    while (lo < hi) {
        i64 mid = (lo + hi + 1) / 2;
        if (o.tile_first[mid] <= t) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

// Tiles that there can be at most: every group's last one may be partly filled.
static i64 expert_most_tiles(const ExpertOrder *o) { return (o->n + o->tile - 1) / o->tile + o->nexpert + 1; }

// ---- products by multiply-adds --------------------------------------------------------------------------------------------

template <class T, class TY>
GPU_FN void expert_simt_tiles(const ExpertProduct &p) {
    const ExpertOrder &o = p.rows;
    i64 across = (p.ny + TILE - 1) / TILE, n = ((o.n + TILE - 1) / TILE + o.nexpert + 1) * across;
    for (i64 t = gpu_block_x; t < n; t += gpu_grid_x) {
        i64 e = expert_of_tile(o, t / across), col = t % across * TILE;
        if (e > o.nexpert) return;
        i64 row = o.first[e] + (t / across - o.tile_first[e]) * TILE, end = o.first[e + 1];
        const T *x = (const T *)p.x, *w = (const T *)p.w + e * p.nx * p.ny;
        i64 w_k = p.trans_w ? 1 : p.ny, w_n = p.trans_w ? p.nx : 1, nk = e < o.nexpert ? p.nx : 0;
        float acc[TILE_SUB][TILE_SUB] = {};
        tile_product(0, nk, true, p.trans_w != 0,
            [&](i64 i, i64 k) { return row + i < end ? to_float(x[o.order[row + i] * p.nx + k]) : 0.0f; },
            [&](i64 k, i64 j) { return col + j < p.ny ? to_float(w[k * w_k + (col + j) * w_n]) : 0.0f; }, acc);
        for (int i = 0; i < TILE_SUB; i++)
            for (int j = 0; j < TILE_SUB; j++) {
                i64 r = row + tile_row(i), c = col + tile_col(j);
                if (r < end && c < p.ny) store_float((TY *)p.y + o.order[r] * p.ny + c, acc[i][j]);
            }
    }
}

template <class T, class TW>
GPU_FN void expert_grad_simt_tiles(const ExpertGrad &p) {
    const ExpertOrder &o = p.rows;
    i64 across = (p.nr + TILE - 1) / TILE, each = (p.nl + TILE - 1) / TILE * across;
    for (i64 t = gpu_block_x; t < each * o.nexpert; t += gpu_grid_x) {
        i64 e = t / each, row = t % each / across * TILE, col = t % each % across * TILE;
        const T *left = (const T *)p.left, *right = (const T *)p.right;
        float acc[TILE_SUB][TILE_SUB] = {};
        tile_product(o.first[e], o.first[e + 1], false, false,
            [&](i64 i, i64 k) { return row + i < p.nl ? to_float(left[o.order[k] * p.nl + row + i]) : 0.0f; },
            [&](i64 k, i64 j) { return col + j < p.nr ? to_float(right[o.order[k] * p.nr + col + j]) : 0.0f; }, acc);
        for (int i = 0; i < TILE_SUB; i++)
            for (int j = 0; j < TILE_SUB; j++) {
                i64 r = row + tile_row(i), c = col + tile_col(j);
                if (r >= p.nl || c >= p.nr) continue;
                i64 at = (e * p.nl + r) * p.nr + c;
                store_float((TW *)p.dw + at, acc[i][j] + (p.add ? to_float(((const TW *)p.add)[at]) : 0.0f));
            }
    }
}

GPU_KERNEL(expert_simt_f32, ExpertProduct, TILE_THREADS) { expert_simt_tiles<float, float>(p); }
GPU_KERNEL(expert_simt_bf16, ExpertProduct, TILE_THREADS) { expert_simt_tiles<bf16, bf16>(p); }
GPU_KERNEL(expert_simt_bf16_f32, ExpertProduct, TILE_THREADS) { expert_simt_tiles<bf16, float>(p); }
GPU_KERNEL(expert_grad_simt_f32, ExpertGrad, TILE_THREADS) { expert_grad_simt_tiles<float, float>(p); }
GPU_KERNEL(expert_grad_simt_bf16, ExpertGrad, TILE_THREADS) { expert_grad_simt_tiles<bf16, bf16>(p); }
GPU_KERNEL(expert_grad_simt_bf16_f32, ExpertGrad, TILE_THREADS) { expert_grad_simt_tiles<bf16, float>(p); }

// ---- products by tensor cores ---------------------------------------------------------------------------------------------

#if !defined(GPU_EMULATE)
// Operands as MmaTile takes them; see there.
template <bool TRANS_W, class TY>
GPU_FN void expert_mma_tile(const ExpertProduct &p) {
    const ExpertOrder &o = p.rows;
    i64 across = (p.ny + MMA_N - 1) / MMA_N, e = expert_of_tile(o, gpu_block_x / across), col = gpu_block_x % across * MMA_N;
    if (e > o.nexpert) return;
    i64 row = o.first[e] + (gpu_block_x / across - o.tile_first[e]) * MMA_M, end = o.first[e + 1];
    float acc[MMA_FRAG_M][MMA_FRAG_N][4] = {};
    if (e < o.nexpert) {
        const bf16 *w = (const bf16 *)p.w + e * p.nx * p.ny;
        MmaAlongK a(row, end, p.nx, (const bf16 *)p.x, p.nx, o.order);
        if (TRANS_W) mma_tile(p.nx, a, MmaAlongK(col, p.ny, p.nx, w, p.nx, nullptr), acc);
        else mma_tile(p.nx, a, MmaAcrossK(col, p.ny, 0, p.nx, w, p.ny, nullptr), acc);
    }
    mma_each_pair(acc, [&](int i, int j, float v0, float v1) {
        if (row + i < end && col + j < p.ny) mma_store_pair((TY *)p.y + o.order[row + i] * p.ny + col + j, v0, v1);
    });
}

template <class TW>
GPU_FN void expert_grad_mma_tile(const ExpertGrad &p) {
    const ExpertOrder &o = p.rows;
    i64 across = (p.nr + MMA_N - 1) / MMA_N, each = (p.nl + MMA_M - 1) / MMA_M * across, e = gpu_block_x / each;
    i64 row = gpu_block_x % each / across * MMA_M, col = gpu_block_x % each % across * MMA_N;
    i64 k0 = o.first[e], k1 = o.first[e + 1];
    float acc[MMA_FRAG_M][MMA_FRAG_N][4] = {};
    mma_tile(k1 - k0, MmaAcrossK(row, p.nl, k0, k1, (const bf16 *)p.left, p.nl, o.order),
             MmaAcrossK(col, p.nr, k0, k1, (const bf16 *)p.right, p.nr, o.order), acc);
    mma_each_pair(acc, [&](int i, int j, float v0, float v1) {
        if (row + i >= p.nl || col + j >= p.nr) return;
        i64 at = (e * p.nl + row + i) * p.nr + col + j;
        const TW *add = (const TW *)p.add;
        if (add) v0 += to_float(add[at]), v1 += to_float(add[at + 1]);  // nr is a multiple of 8
        mma_store_pair((TW *)p.dw + at, v0, v1);
    });
}

GPU_KERNEL(expert_mma_bf16, ExpertProduct, MMA_THREADS) { expert_mma_tile<false, bf16>(p); }
GPU_KERNEL(expert_mma_bf16_t, ExpertProduct, MMA_THREADS) { expert_mma_tile<true, bf16>(p); }
GPU_KERNEL(expert_mma_f32, ExpertProduct, MMA_THREADS) { expert_mma_tile<false, float>(p); }
GPU_KERNEL(expert_mma_f32_t, ExpertProduct, MMA_THREADS) { expert_mma_tile<true, float>(p); }
GPU_KERNEL(expert_grad_mma_bf16, ExpertGrad, MMA_THREADS) { expert_grad_mma_tile<bf16>(p); }
GPU_KERNEL(expert_grad_mma_f32, ExpertGrad, MMA_THREADS) { expert_grad_mma_tile<float>(p); }

static void expert_product_mma(void *stream, int out_bf16, const ExpertProduct *p) {
    i64 n = expert_most_tiles(&p->rows) * ((p->ny + MMA_N - 1) / MMA_N);
    GpuDim grid = {(u32)n, 1, 1}, block = {MMA_THREADS, 1, 1};
    if (out_bf16 && !p->trans_w) GPU_LAUNCH(expert_mma_bf16, stream, grid, block, MMA_SHARED_NBYTES, *p);
    else if (out_bf16) GPU_LAUNCH(expert_mma_bf16_t, stream, grid, block, MMA_SHARED_NBYTES, *p);
    else if (!p->trans_w) GPU_LAUNCH(expert_mma_f32, stream, grid, block, MMA_SHARED_NBYTES, *p);
    else GPU_LAUNCH(expert_mma_f32_t, stream, grid, block, MMA_SHARED_NBYTES, *p);
}

static void expert_grad_mma(void *stream, int out_bf16, const ExpertGrad *p) {
    i64 n = p->rows.nexpert * ((p->nl + MMA_M - 1) / MMA_M) * ((p->nr + MMA_N - 1) / MMA_N);
    GpuDim grid = {(u32)n, 1, 1}, block = {MMA_THREADS, 1, 1};
    if (out_bf16) GPU_LAUNCH(expert_grad_mma_bf16, stream, grid, block, MMA_SHARED_NBYTES, *p);
    else GPU_LAUNCH(expert_grad_mma_f32, stream, grid, block, MMA_SHARED_NBYTES, *p);
}

extern "C" int expert_tile(int bf16_operands, long long cols_a, long long cols_b, const void *a, const void *b) {
    bool whole = ((u64)a | (u64)b) % 16 == 0 && cols_a % 8 == 0 && cols_b % 8 == 0;
    return bf16_operands && whole && cols_a > 0 ? (int)MMA_M : (int)TILE;
}
#else
extern "C" int expert_tile(int, long long, long long, const void *, const void *) { return TILE; }
static void expert_product_mma(void *, int, const ExpertProduct *) {}
static void expert_grad_mma(void *, int, const ExpertGrad *) {}
#endif

static GpuDim expert_grid(i64 blocks) { return {(u32)(blocks < (1 << 30) ? blocks : 1 << 30), 1, 1}; }

extern "C" void expert_product_launch(void *stream, int in_bf16, int out_bf16, const ExpertProduct *p) {
    if (p->rows.tile != TILE) return expert_product_mma(stream, out_bf16, p);
    GpuDim grid = expert_grid(expert_most_tiles(&p->rows) * ((p->ny + TILE - 1) / TILE)), block = {TILE_THREADS, 1, 1};
    if (!in_bf16) GPU_LAUNCH(expert_simt_f32, stream, grid, block, 0, *p);
    else if (out_bf16) GPU_LAUNCH(expert_simt_bf16, stream, grid, block, 0, *p);
    else GPU_LAUNCH(expert_simt_bf16_f32, stream, grid, block, 0, *p);
}

extern "C" void expert_grad_launch(void *stream, int in_bf16, int out_bf16, const ExpertGrad *p) {
    if (p->rows.tile != TILE) return expert_grad_mma(stream, out_bf16, p);
    GpuDim grid = expert_grid(p->rows.nexpert * ((p->nl + TILE - 1) / TILE) * ((p->nr + TILE - 1) / TILE)),
           block = {TILE_THREADS, 1, 1};
    if (!in_bf16) GPU_LAUNCH(expert_grad_simt_f32, stream, grid, block, 0, *p);
    else if (out_bf16) GPU_LAUNCH(expert_grad_simt_bf16, stream, grid, block, 0, *p);
    else GPU_LAUNCH(expert_grad_simt_bf16_f32, stream, grid, block, 0, *p);
}
