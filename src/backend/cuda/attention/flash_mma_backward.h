// The backward on tensor cores: see flash_backward.h for what is computed and flash_mma.h for how. Row statistics, flags and
// coarse rows
// are the portable kernels' work.

struct MmaRow { float max, unsum, delta; int uniform; };  // of a query; one that is not there has p = 0
GPU_FN MmaRow mma_row_stats(const FlashParams &p, i64 bh, i64 q) {
    MmaRow r;
    r.max = FLASH_INF, r.unsum = 0.0f, r.delta = 0.0f, r.uniform = 0;
    if (q >= p.nq) return r;
    r.max = p.row_max[bh * p.nq + q], r.unsum = p.row_unsum[bh * p.nq + q], r.delta = p.row_delta[bh * p.nq + q];
    r.uniform = (FLASH_MASKED_ROW >= 2 && r.max == FLASH_INF) || (FLASH_MASKED_ROW == 1 && r.max != r.max);
    return r;
}
// From products s and do.v of one element, when nothing but a plain softmax happened.
GPU_FN FlashGrad mma_grad_plain(const FlashParams &p, float s, float dp, float max, float unsum, float delta) {
    FlashGrad g;
    g.p = mma_exp2(FLASH_RAW ? s * p.unit - max * p.unit : (s * p.scale - max) * p.unit) * unsum;
    g.ds = g.p * (dp - delta) * p.scale;
    return g;
}

// Grid: tiles of 64 queries * heads * batch.
GPU_KERNEL(flash_mma_dq, FlashParams, FLASH_THREADS) {
    enum { STAGE = MMA_OTHER * (MMA_LD(FLASH_D) + MMA_LD(FLASH_DV)) };
    MMA_SHARED(shared);
    u16 *sq = shared, *sg = sq + 64 * MMA_LD(FLASH_D), *stage = sg + 64 * MMA_LD(FLASH_DV);
    i64 ntile = flash_blocks(p.nq, 64), bh = gpu_block_x / ntile, tile = ntile - 1 - gpu_block_x % ntile, q0 = tile * 64,
        n = flash_min(64, p.nq - q0);
    FlashHead at = flash_head(p, bh / p.heads, bh % p.heads);
    const bf16 *k = (const bf16 *)p.k + at.kv * p.nk * FLASH_D, *v = (const bf16 *)p.v + at.kv * p.nk * FLASH_DV;
    float acc[1][MMA_D / 8][4];
    mma_zero<FLASH_D, 1>(acc);
    MmaRow stats[2];
    i64 pos[2];
    GPU_UNROLL for (int e = 0; e < 2; e++) {
        stats[e] = mma_row_stats(p, bh, q0 + mma_row<1>(0, e));
        pos[e] = flash_global(p, 2, flash_min(q0 + mma_row<1>(0, e), p.nq - 1));
    }
    bool all = (p.flags[bh * ntile + tile] & FLASH_UNIFORM) != 0;
    FlashWalk walk = flash_walk_keys(p, at.row, q0 / FLASH_BLOCK, all);
    i64 end = flash_min((walk.last + 1) * FLASH_BLOCK, p.nk);
    int verdict = 0, next_verdict = 0, buffer = 0;
    i64 k0 = mma_next<false>(p, at.row, q0 / FLASH_BLOCK, walk.first * FLASH_BLOCK, end, all, 0, &verdict), next;
    mma_fetch<FLASH_D>(sq, (const bf16 *)p.q + (bh * p.nq + q0) * FLASH_D, 64, n);
    mma_fetch<FLASH_DV>(sg, (const bf16 *)p.dout + (bh * p.nq + q0) * FLASH_DV, 64, n);
    if (k0 < end) {
        mma_fetch<FLASH_D>(stage, k + k0 * FLASH_D, MMA_OTHER, p.nk - k0);
        mma_fetch<FLASH_DV>(stage + MMA_OTHER * MMA_LD(FLASH_D), v + k0 * FLASH_DV, MMA_OTHER, p.nk - k0);
    }
    for (; k0 < end; k0 = next, verdict = next_verdict, buffer ^= 1) {
        const u16 *sk = stage + buffer * STAGE, *sv = sk + MMA_OTHER * MMA_LD(FLASH_D);
        next = mma_next<false>(p, at.row, q0 / FLASH_BLOCK, k0 + MMA_OTHER, end, all, 0, &next_verdict);
        mma_copies_done();
        gpu_sync();
        if (next < end) {
            u16 *to = stage + (buffer ^ 1) * STAGE;
            mma_fetch<FLASH_D>(to, k + next * FLASH_D, MMA_OTHER, p.nk - next);
            mma_fetch<FLASH_DV>(to + MMA_OTHER * MMA_LD(FLASH_D), v + next * FLASH_DV, MMA_OTHER, p.nk - next);
        }
        float s[1][MMA_OTHER / 8][4], dp[1][MMA_OTHER / 8][4];
        mma_dot<FLASH_D, 1>(s, sq + (int)gpu_thread_x / 32 * 16 * MMA_LD(FLASH_D), sk);
        mma_dot<FLASH_DV, 1>(dp, sg + (int)gpu_thread_x / 32 * 16 * MMA_LD(FLASH_DV), sv);
        bool plain = !FLASH_SOFTCAP && !FLASH_DROPOUT && !(verdict & FLASH_ELEMENT) && !all && k0 + MMA_OTHER <= p.nk;
        if (plain) {
            GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 4; i++) {
                const MmaRow &r = stats[i / 2];
                s[0][j][i] = mma_grad_plain(p, s[0][j][i], dp[0][j][i], r.max, r.unsum, r.delta).ds;
            }
        } else {
            GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 4; i++) {
                const MmaRow &r = stats[i / 2];
                i64 key = k0 + mma_col() + 8 * j + i % 2, lq = flash_min(q0 + mma_row<1>(0, i / 2), p.nq - 1);
                FlashGrad g = flash_grad(p, at, s[0][j][i], dp[0][j][i], verdict, lq, pos[i / 2], flash_min(key, p.nk - 1), r.max,
                                         r.unsum, r.delta, r.uniform != 0);
                s[0][j][i] = key < p.nk ? g.ds : 0.0f;
            }
        }
        mma_apply<FLASH_D, 1>(acc, s, sk);
    }
    TG *dq = (TG *)p.out0 + (bh * p.nq + q0) * FLASH_D;
    GPU_UNROLL for (int e = 0; e < 2; e++) {
        int r = mma_row<1>(0, e);
        if (r >= n) continue;
        GPU_UNROLL for (int j = 0; j < MMA_D / 8; j++) if (mma_col() + 8 * j < FLASH_D)
            mma_store2(dq + (i64)r * FLASH_D + mma_col() + 8 * j, acc[0][j][2 * e], acc[0][j][2 * e + 1]);
    }
    mma_copies_done();
}

// ---- keys -----------------------------------------------------------------------------------------------------------------
// Where the walk over the queries of all heads that share a KV head is.
struct MmaAt { i64 h, q0; int verdict; FlashHead head; };

// The next tile of queries from `at` on (h == p.heads: none). Scores are computed transposed: rows are keys, columns queries.
GPU_FN void mma_advance(const FlashParams &p, i64 b, i64 kvh, i64 kb, MmaAt *at, bool first) {
    i64 from = first ? 0 : at->q0 + MMA_OTHER, ntile = flash_blocks(p.nq, FLASH_TILE);
    for (; at->h < p.heads; at->h++, from = 0, first = true) {
        if (flash_kv_head(p, at->h) != kvh) continue;
        if (first) at->head = flash_head(p, b, at->h);
        bool any = p.any[b * p.heads + at->h] != 0;
        FlashWalk w = flash_walk_queries(p, at->head.row, kb, any);
        i64 begin = w.first * FLASH_BLOCK, end = flash_min((w.last + 1) * FLASH_BLOCK, p.nq);
        at->q0 = mma_next<true>(p, at->head.row, kb, from > begin ? from : begin, end, false,
                                any ? p.flags + (b * p.heads + at->h) * ntile : 0, &at->verdict);
        if (at->q0 < end) return;
    }
}

// What a tile of queries needs: q and do to `to`, statistics and positions to `row`, `pos`.
GPU_FN void mma_fetch_queries(const FlashParams &p, i64 b, const MmaAt *at, u16 *to, MmaRow *row, i64 *pos) {
    i64 bh = b * p.heads + at->h, n = p.nq - at->q0;
    mma_fetch<FLASH_D>(to, (const bf16 *)p.q + (bh * p.nq + at->q0) * FLASH_D, MMA_OTHER, n);
    mma_fetch<FLASH_DV>(to + MMA_OTHER * MMA_LD(FLASH_D), (const bf16 *)p.dout + (bh * p.nq + at->q0) * FLASH_DV, MMA_OTHER, n);
    int t = (int)gpu_thread_x;
    if (t >= MMA_OTHER) return;
    row[t] = mma_row_stats(p, bh, at->q0 + t);
    pos[t] = flash_global(p, 2, flash_min(at->q0 + t, p.nq - 1));
}

template <int DIM> GPU_FN void mma_write_keys(TG *to, float (*acc)[MMA_PAD(DIM) / 8][4], i64 n) {
    GPU_UNROLL for (int e = 0; e < 2; e++) {
        int r = mma_row<1>(0, e);
        if (r >= n) continue;
        GPU_UNROLL for (int j = 0; j < MMA_PAD(DIM) / 8; j++) if (mma_col() + 8 * j < DIM)
            mma_store2(to + (i64)r * DIM + mma_col() + 8 * j, acc[0][j][2 * e], acc[0][j][2 * e + 1]);
    }
}

// VALUES: dv; KEYS: dk. Both at once where the registers hold both.
template <bool VALUES, bool KEYS>
GPU_FN void mma_key_grads(const FlashParams &p, u16 *shared, MmaRow (*row)[MMA_OTHER], i64 (*pos)[MMA_OTHER]) {
    enum { STAGE = MMA_OTHER * (MMA_LD(FLASH_D) + MMA_LD(FLASH_DV)) };
    u16 *sk = shared, *sv = sk + 64 * MMA_LD(FLASH_D), *stage = sv + 64 * MMA_LD(FLASH_DV);
    i64 ntile = flash_blocks(p.nk, 64), kv = gpu_block_x / ntile, k0 = gpu_block_x % ntile * 64, nk = flash_min(64, p.nk - k0);
    i64 b = kv / p.kv_heads, kvh = kv % p.kv_heads, kb = k0 / FLASH_BLOCK;
    float dv[1][VALUES ? MMA_DV / 8 : 1][4], dk[1][KEYS ? MMA_D / 8 : 1][4];
    if constexpr (VALUES) mma_zero<FLASH_DV, 1>(dv);
    if constexpr (KEYS) mma_zero<FLASH_D, 1>(dk);
    MmaAt at, next;
    at.h = 0, at.q0 = 0, at.verdict = 0;
    mma_advance(p, b, kvh, kb, &at, true);
    mma_fetch<FLASH_D>(sk, (const bf16 *)p.k + (kv * p.nk + k0) * FLASH_D, 64, nk);
    mma_fetch<FLASH_DV>(sv, (const bf16 *)p.v + (kv * p.nk + k0) * FLASH_DV, 64, nk);
    if (at.h < p.heads) mma_fetch_queries(p, b, &at, stage, row[0], pos[0]);
    for (int buffer = 0; at.h < p.heads; at = next, buffer ^= 1) {
        const u16 *sq = stage + buffer * STAGE, *sg = sq + MMA_OTHER * MMA_LD(FLASH_D);
        const MmaRow *stats = row[buffer];
        next = at;
        mma_advance(p, b, kvh, kb, &next, false);
        mma_copies_done();
        gpu_sync();
        if (next.h < p.heads) mma_fetch_queries(p, b, &next, stage + (buffer ^ 1) * STAGE, row[buffer ^ 1], pos[buffer ^ 1]);
        float s[1][MMA_OTHER / 8][4], dp[1][MMA_OTHER / 8][4];
        mma_dot<FLASH_D, 1>(s, sk + (int)gpu_thread_x / 32 * 16 * MMA_LD(FLASH_D), sq);
        if constexpr (KEYS) mma_dot<FLASH_DV, 1>(dp, sv + (int)gpu_thread_x / 32 * 16 * MMA_LD(FLASH_DV), sg);
        bool uniform =
            p.flags && (p.flags[(b * p.heads + at.h) * flash_blocks(p.nq, FLASH_TILE) + at.q0 / FLASH_TILE] & FLASH_UNIFORM);
        bool plain = !FLASH_SOFTCAP && !FLASH_DROPOUT && !(at.verdict & FLASH_ELEMENT) && !uniform;
        if (plain) {
            GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 4; i++) {
                const MmaRow &r = stats[mma_col() + 8 * j + i % 2];
                FlashGrad g = mma_grad_plain(p, s[0][j][i], KEYS ? dp[0][j][i] : 0.0f, r.max, r.unsum, r.delta);
                s[0][j][i] = g.p, dp[0][j][i] = g.ds;
            }
        } else {
            GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 4; i++) {
                int c = mma_col() + 8 * j + i % 2;
                const MmaRow &r = stats[c];
                i64 key = flash_min(k0 + mma_row<1>(0, i / 2), p.nk - 1), lq = flash_min(at.q0 + c, p.nq - 1);
                FlashGrad g = flash_grad(p, at.head, s[0][j][i], KEYS ? dp[0][j][i] : 0.0f, at.verdict, lq, pos[buffer][c], key,
                                         r.max, r.unsum, r.delta, r.uniform != 0);
                s[0][j][i] = g.p, dp[0][j][i] = g.ds;
            }
        }
        if constexpr (VALUES) mma_apply<FLASH_DV, 1>(dv, s, sg);
        if constexpr (KEYS) mma_apply<FLASH_D, 1>(dk, dp, sq);
    }
    if constexpr (VALUES) mma_write_keys<FLASH_DV>((TG *)p.out2 + (kv * p.nk + k0) * FLASH_DV, dv, nk);
    if constexpr (KEYS) mma_write_keys<FLASH_D>((TG *)p.out1 + (kv * p.nk + k0) * FLASH_D, dk, nk);
    mma_copies_done();
}

// Grid: (tiles of 64 keys * KV heads * batch, 1, 1 where MMA_TOGETHER, else 2: dv, dk).
#define MMA_TOGETHER (MMA_D + MMA_DV <= 256)
GPU_KERNEL(flash_mma_dkdv, FlashParams, FLASH_THREADS) {
    MMA_SHARED(shared);
    GPU_SHARED MmaRow row[2][MMA_OTHER];
    GPU_SHARED i64 pos[2][MMA_OTHER];
#if MMA_TOGETHER
    mma_key_grads<true, true>(p, shared, row, pos);
#else
    if (gpu_block_z == 0) mma_key_grads<true, false>(p, shared, row, pos);
    else mma_key_grads<false, true>(p, shared, row, pos);
#endif
}
