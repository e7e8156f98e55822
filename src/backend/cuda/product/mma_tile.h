// One tile of a bf16 matrix product on tensor cores (mma.sync, sm_80 and newer), accumulated in float32. Rows or columns of an
// operand may be picked by an index: what products grouped by expert need. Device code, not for the emulation; included after
// gpu.h.
#pragma once
#include "backend/cuda/device/gpu.h"
#if !defined(GPU_EMULATE)

// A block computes MMA_M x MMA_N; its 8 warps are 2 x 4, each 64 x 32 in fragments of 16 x 8. Tiles of MMA_K pass through a ring
// of MMA_STAGES in shared memory, 8 KiB for each operand.
#define MMA_MEMBER __device__ __forceinline__
enum { MMA_M = 128, MMA_N = 128, MMA_K = 32, MMA_STAGES = 3, MMA_THREADS = 256, MMA_FRAG_M = 4, MMA_FRAG_N = 4 };
enum { MMA_TILE_NBYTES = MMA_M * MMA_K * 2, MMA_SHARED_NBYTES = 2 * MMA_STAGES * MMA_TILE_NBYTES };

// 16 bytes from global to shared memory, asynchronously; zeros where !valid (src is not read then).
GPU_FN void mma_copy16(u32 dst, const void *src, bool valid) {
    int n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(n) : "memory");
}
GPU_FN void mma_load4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
GPU_FN void mma_load4_transposed(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// An operand whose lines lie along k: element (i, k) is at base[line(i) * ld + k], line(i) = pick ? pick[i] : i, for i in [begin,
// end) and k in [0, nk). In shared memory: 128 lines of 64 bytes; 16-byte pieces are swizzled by line / 2, so that the eight
// lines that ldmatrix reads at once lie in different banks.
struct MmaAlongK {
    const bf16 *line[2];  // this thread copies one piece of two lines
    bool valid[2];
    i64 nk;
    MMA_MEMBER MmaAlongK(i64 begin, i64 end, i64 nk_, const bf16 *base, i64 ld, const i64 *pick) : nk(nk_) {
        for (int h = 0; h < 2; h++) {
            i64 i = begin + threadIdx.x / 4 + h * 64;
            valid[h] = i < end;
            line[h] = base + (valid[h] ? (pick ? pick[i] : i) * ld : 0) + threadIdx.x % 4 * 8;
        }
    }
    MMA_MEMBER void copy(u32 tile, i64 k) const {
        int piece = threadIdx.x % 4;
        for (int h = 0; h < 2; h++) {
            int i = threadIdx.x / 4 + h * 64;
            bool in = valid[h] && k + piece * 8 < nk;
            mma_copy16(tile + i * 64 + ((piece ^ (i / 2 % 4)) * 16), in ? line[h] + k : line[h], in);
        }
    }
    MMA_MEMBER void advance(i64) {}
    static MMA_MEMBER u32 at(u32 tile, int i, int piece) { return tile + i * 64 + ((piece ^ (i / 2 % 4)) * 16); }
    // The fragments of 16 rows of A from i0 on, k step s (16 of MMA_K): pieces (i, k), (i + 8, k), (i, k + 8), (i + 8, k + 8).
    static MMA_MEMBER void load_a(u32 (&r)[4], u32 tile, int i0, int s) {
        int l = threadIdx.x % 32;
        mma_load4(r, at(tile, i0 + l % 8 + l / 8 % 2 * 8, s * 2 + l / 16));
    }
    // Those of 16 columns of B: r[0], r[1] of the first eight, r[2], r[3] of the others.
    static MMA_MEMBER void load_b(u32 (&r)[4], u32 tile, int j0, int s) {
        int l = threadIdx.x % 32;
        mma_load4(r, at(tile, j0 + l % 8 + l / 16 * 8, s * 2 + l / 8 % 2));
    }
};

// An operand whose lines lie across k: element (i, k) is at base[line(k0 + k) * ld + i] for i in [begin, end), k0 + k in [k0,
// k1). In shared memory: 32 lines of 256 bytes, 16-byte pieces swizzled by line. The picked lines are looked up one tile ahead.
struct MmaAcrossK {
    const bf16 *base;
    i64 ld, k0, k1;
    const i64 *pick;
    bool valid;
    i64 next[2];  // lines of the tile to be copied next, -1: none
    MMA_MEMBER MmaAcrossK(i64 begin, i64 end, i64 k0_, i64 k1_, const bf16 *base_, i64 ld_, const i64 *pick_)
        : base(base_ + begin + threadIdx.x % 16 * 8), ld(ld_), k0(k0_), k1(k1_), pick(pick_) {
        valid = begin + threadIdx.x % 16 * 8 < end;
        if (!valid) base = base_;
        advance(0);
    }
    MMA_MEMBER void advance(i64 k) {
        for (int h = 0; h < 2; h++) {
            i64 at = k0 + k + threadIdx.x / 16 + h * 16;
            next[h] = at >= k1 || !valid ? -1 : pick ? pick[at] : at;
        }
    }
    MMA_MEMBER void copy(u32 tile, i64) const {
        int piece = threadIdx.x % 16;
        for (int h = 0; h < 2; h++) {
            int k = threadIdx.x / 16 + h * 16;
            mma_copy16(tile + k * 256 + ((piece ^ (k % 8)) * 16), next[h] >= 0 ? base + next[h] * ld : base, next[h] >= 0);
        }
    }
    static MMA_MEMBER u32 at(u32 tile, int k, int piece) { return tile + k * 256 + ((piece ^ (k % 8)) * 16); }
    static MMA_MEMBER void load_a(u32 (&r)[4], u32 tile, int i0, int s) {
        int l = threadIdx.x % 32;
        mma_load4_transposed(r, at(tile, s * 16 + l % 8 + l / 16 * 8, i0 / 8 + l / 8 % 2));
    }
    static MMA_MEMBER void load_b(u32 (&r)[4], u32 tile, int j0, int s) {
        int l = threadIdx.x % 32;
        mma_load4_transposed(r, at(tile, s * 16 + l % 8 + l / 8 % 2 * 8, j0 / 8 + l / 16));
    }
};

GPU_FN void mma_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// acc += a b over nk elements of k. All threads of the block call it once; it uses all of the block's dynamic shared memory.
template <class A, class B>
GPU_FN void mma_tile(i64 nk, A a, B b, float (&acc)[MMA_FRAG_M][MMA_FRAG_N][4]) {
    extern __shared__ __align__(128) u8 mma_shared[];
    u32 shared = (u32)__cvta_generic_to_shared(mma_shared);
    int warp = threadIdx.x / 32, i0 = warp / 4 * 64, j0 = warp % 4 * 32;
    i64 n = (nk + MMA_K - 1) / MMA_K;
    auto copy = [&](i64 t) {  // a group per tile, empty ones beyond the last, so that counts of groups stay equal
        if (t < n) {
            u32 stage = shared + (u32)(t % MMA_STAGES) * 2 * MMA_TILE_NBYTES;
            a.copy(stage, t * MMA_K);
            b.copy(stage + MMA_TILE_NBYTES, t * MMA_K);
            a.advance((t + 1) * MMA_K);
            b.advance((t + 1) * MMA_K);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    for (int t = 0; t < MMA_STAGES - 1; t++) copy(t);
    for (i64 t = 0; t < n; t++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(MMA_STAGES - 2) : "memory");
        __syncthreads();  // tile t has come, and everyone is done with tile t - 1, whose place the next copy takes
        copy(t + MMA_STAGES - 1);
        u32 tile_a = shared + (u32)(t % MMA_STAGES) * 2 * MMA_TILE_NBYTES, tile_b = tile_a + MMA_TILE_NBYTES;
        GPU_UNROLL for (int s = 0; s < MMA_K / 16; s++) {
            u32 fa[MMA_FRAG_M][4], fb[MMA_FRAG_N / 2][4];
            GPU_UNROLL for (int i = 0; i < MMA_FRAG_M; i++) A::load_a(fa[i], tile_a, i0 + i * 16, s);
            GPU_UNROLL for (int j = 0; j < MMA_FRAG_N / 2; j++) B::load_b(fb[j], tile_b, j0 + j * 16, s);
            GPU_UNROLL for (int i = 0; i < MMA_FRAG_M; i++) GPU_UNROLL for (int j = 0; j < MMA_FRAG_N; j++)
                mma_16x8x16(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// Calls fn(i, j, v0, v1) for this thread's elements (i, j) and (i, j + 1) of the tile.
template <class F>
GPU_FN void mma_each_pair(const float (&acc)[MMA_FRAG_M][MMA_FRAG_N][4], F fn) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i0 = warp / 4 * 64 + lane / 4, j0 = warp % 4 * 32 + lane % 4 * 2;
    GPU_UNROLL for (int i = 0; i < MMA_FRAG_M; i++)
        GPU_UNROLL for (int j = 0; j < MMA_FRAG_N; j++) {
            fn(i0 + i * 16, j0 + j * 8, acc[i][j][0], acc[i][j][1]);
            fn(i0 + i * 16 + 8, j0 + j * 8, acc[i][j][2], acc[i][j][3]);
        }
}
GPU_FN void mma_store_pair(float *p, float a, float b) { *(float2 *)p = make_float2(a, b); }
GPU_FN void mma_store_pair(bf16 *p, float a, float b) { *(u32 *)p = (u32)to_bf16(a).bits | (u32)to_bf16(b).bits << 16; }

#endif
