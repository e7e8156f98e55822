// Our own attention on bf16 tensor cores (mma.sync, sm_80 and later), after FlashAttention-2: a block of four warps, each of
// which owns 16
// or 32 rows; tiles of 64 of the other side stream through two buffers of shared memory. Head sizes are multiples of 8, padded
// to 16 with zeros, up to 256. Fixed blocks of FLASH_THREADS threads; tested on the host by test/flash_fibers.h, which plays a
// block.

#define MMA_OTHER 64                                   // rows of a streamed tile
#define MMA_PAD(dim) (((dim) + 15) / 16 * 16)
#define MMA_LD(dim) (MMA_PAD(dim) + 8)  // elements of a row in shared memory: an odd number of 16 bytes, no bank conflicts
#define MMA_D MMA_PAD(FLASH_D)
#define MMA_DV MMA_PAD(FLASH_DV)

#if !defined(GPU_FIBERS)
#define MMA_SHARED(name) extern __shared__ __align__(16) u16 name[]
GPU_FN void mma_load(u32 *r, const u16 *at) {          // four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8
    u32 a = (u32)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
GPU_FN void mma_load_transposed(u32 *r, const u16 *at) {
    u32 a = (u32)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
GPU_FN void mma_bf16(float *c, const u32 *a, u32 b0, u32 b1) {  // c[16x8] += a[16x16] b[16x8]
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
GPU_FN u32 mma_pack(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
GPU_FN float mma_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
GPU_FN void mma_copy16(u16 *to, const void *from, bool there) {  // asynchronous; zeros if it is not there
    u32 a = (u32)__cvta_generic_to_shared(to);
    int n = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(a), "l"(from), "r"(n) : "memory");
}
GPU_FN void mma_copies_done(void) { asm volatile("cp.async.wait_all;" ::: "memory"); }
GPU_FN float mma_quad(float v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
GPU_FN bool mma_any(bool v) { return __syncthreads_or(v) != 0; }
#endif

// n rows of DIM channels (rows from `there` on are zeros) to shared memory, padded.
template <int DIM> GPU_FN void mma_fetch(u16 *to, const void *from, int n, i64 there) {
    enum { CHUNKS = MMA_PAD(DIM) / 8 };
    for (int i = (int)gpu_thread_x; i < n * CHUNKS; i += FLASH_THREADS) {
        int r = i / CHUNKS, c = i % CHUNKS * 8;
        bool in = r < there && c < DIM;
        mma_copy16(to + r * MMA_LD(DIM) + c, in ? (const u16 *)from + (i64)r * DIM + c : (const u16 *)from, in);
    }
}

// c += a b^T over DIM channels: a has 16 rows from row a0 on, b 64 rows. c: 8 tiles of 8 columns.
template <int DIM, int MT> GPU_FN void mma_dot(float (*c)[MMA_OTHER / 8][4], const u16 *a, const u16 *b) {
    const int lane = (int)gpu_thread_x % 32;
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++)
        GPU_UNROLL for (int e = 0; e < 4; e++) c[m][j][e] = 0.0f;
    const u16 *pa = a + lane % 16 * MMA_LD(DIM) + lane / 16 * 8;
    const u16 *pb = b + (lane % 8 + lane / 16 * 8) * MMA_LD(DIM) + lane / 8 % 2 * 8;
    GPU_UNROLL for (int k = 0; k < MMA_PAD(DIM); k += 16) {
        u32 x[MT][4];
        GPU_UNROLL for (int m = 0; m < MT; m++) mma_load(x[m], pa + m * 16 * MMA_LD(DIM) + k);
        GPU_UNROLL for (int j = 0; j < MMA_OTHER / 16; j++) {
            u32 y[4];
            mma_load(y, pb + j * 16 * MMA_LD(DIM) + k);
            GPU_UNROLL for (int m = 0; m < MT; m++) mma_bf16(c[m][2 * j], x[m], y[0], y[1]),
                mma_bf16(c[m][2 * j + 1], x[m], y[2], y[3]);
        }
    }
}

// acc += w b: w is a tile of 64 columns in the layout of mma_dot's result, b 64 rows of DIM channels.
template <int DIM, int MT> GPU_FN void mma_apply(float (*acc)[MMA_PAD(DIM) / 8][4], float (*w)[MMA_OTHER / 8][4], const u16 *b) {
    const int lane = (int)gpu_thread_x % 32;
    const u16 *pb = b + (lane % 8 + lane / 8 % 2 * 8) * MMA_LD(DIM) + lane / 16 * 8;
    GPU_UNROLL for (int k = 0; k < MMA_OTHER / 16; k++) {
        u32 x[MT][4];
        GPU_UNROLL for (int m = 0; m < MT; m++) {
            x[m][0] = mma_pack(w[m][2 * k][0], w[m][2 * k][1]), x[m][1] = mma_pack(w[m][2 * k][2], w[m][2 * k][3]);
            x[m][2] = mma_pack(w[m][2 * k + 1][0], w[m][2 * k + 1][1]),
            x[m][3] = mma_pack(w[m][2 * k + 1][2], w[m][2 * k + 1][3]);
        }
        GPU_UNROLL for (int j = 0; j < MMA_PAD(DIM) / 16; j++) {
            u32 y[4];
            mma_load_transposed(y, pb + k * 16 * MMA_LD(DIM) + j * 16);
            GPU_UNROLL for (int m = 0; m < MT; m++) mma_bf16(acc[m][2 * j], x[m], y[0], y[1]),
                mma_bf16(acc[m][2 * j + 1], x[m], y[2], y[3]);
        }
    }
}

template <int DIM, int MT> GPU_FN void mma_zero(float (*acc)[MMA_PAD(DIM) / 8][4]) {
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int j = 0; j < MMA_PAD(DIM) / 8; j++)
        GPU_UNROLL for (int e = 0; e < 4; e++) acc[m][j][e] = 0.0f;
}

GPU_FN void mma_store2(bf16 *to, float a, float b) { *(u32 *)(void *)to = mma_pack(a, b); }
GPU_FN void mma_store2(float *to, float a, float b) { to[0] = a, to[1] = b; }

// This thread's row e (0, 1) of tile m among the block's rows; its columns are mma_col + 8j, + 1.
template <int MT>
GPU_FN int mma_row(int m, int e) {
    return (int)gpu_thread_x / 32 * 16 * MT + m * 16 + e * 8 + (int)gpu_thread_x % 32 / 4;
}
GPU_FN int mma_col(void) { return (int)gpu_thread_x % 4 * 2; }

// The next tile of 64 that is alive, from `at` on; `end` if there is none. COLUMN: queries of key block `fixed`, else keys of
// query block.
// any: tiles of queries flagged uniform count too (flags of this head).
template <bool COLUMN>
GPU_FN i64 mma_next(const FlashParams &p, i64 row, i64 fixed, i64 at, i64 end, bool all, const u8 *flags, int *verdict) {
    for (; at < end; at += MMA_OTHER) {
        i64 block = at / FLASH_BLOCK;
        *verdict = COLUMN ? flash_verdict(p, row, block, fixed) : flash_verdict(p, row, fixed, block);
        bool forced = COLUMN ? flags && (flags[at / FLASH_TILE] & FLASH_UNIFORM) : all;
        if (*verdict) return at;
        if (forced) { *verdict = FLASH_ELEMENT; return at; }
    }
    return end;
}
