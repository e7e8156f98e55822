// The forward on tensor cores: see flash_mma.h.

// Products to scores; false: no element needs a look.
template <int MT>
GPU_FN void mma_scores(const FlashParams &p, const FlashHead &at, float (*s)[MMA_OTHER / 8][4], int verdict, i64 q0,
                       i64 (*pos)[2], i64 k0) {
    bool tail = k0 + MMA_OTHER > p.nk;
    if (FLASH_RAW && !(verdict & FLASH_ELEMENT) && !tail) return;
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) {
        i64 lq = q0 + mma_row<MT>(m, e);
        bool there = lq < p.nq;
        GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 2; i++) {
            i64 k = k0 + mma_col() + 8 * j + i;
            float slope, x = -FLASH_INF;
            if (there && k < p.nk) x = flash_score(p, at, s[m][j][2 * e + i], verdict, lq, pos[m][e], k, &slope);
            s[m][j][2 * e + i] = x;
        }
    }
}

// Scores to probabilities relative to the new maxima; sums are this thread's share.
template <int MT>
GPU_FN void mma_softmax(const FlashParams &p, const FlashHead &at, float (*s)[MMA_OTHER / 8][4], float (*max)[2], float (*sum)[2],
                        float (*fade)[2], i64 (*pos)[2], i64 k0) {
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) {
        float old = max[m][e], top = old, part = 0.0f;
        GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) top = fmaxf(top, fmaxf(s[m][j][2 * e], s[m][j][2 * e + 1]));
        top = fmaxf(top, mma_quad(top, 1)), top = fmaxf(top, mma_quad(top, 2));
        float base = top == -FLASH_INF ? 0.0f : top, scaled = base * p.unit;
        GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 2; i++) {
            float x = s[m][j][2 * e + i];
            x = mma_exp2(FLASH_RAW ? x * p.unit - scaled : (x - base) * p.unit);
            part += x;
            if (FLASH_DROPOUT) x *= flash_keep(p, at, pos[m][e], k0 + mma_col() + 8 * j + i);
            s[m][j][2 * e + i] = x;
        }
        fade[m][e] = top == old ? 1.0f : mma_exp2((old - top) * p.unit);
        sum[m][e] = sum[m][e] * fade[m][e] + part;
        max[m][e] = top;
    }
}

template <int MT>
GPU_FN void mma_write_rows(const FlashParams &p, float (*acc)[MMA_DV / 8][4], float (*factor)[2], bool (*write)[2], bf16 *o,
                           i64 n) {
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) {
        int r = mma_row<MT>(m, e);
        if (r >= n || !write[m][e]) continue;
        GPU_UNROLL for (int j = 0; j < MMA_DV / 8; j++) if (mma_col() + 8 * j < FLASH_DV) mma_store2(
            o + (i64)r * FLASH_DV + mma_col() + 8 * j, acc[m][j][2 * e] * factor[m][e], acc[m][j][2 * e + 1] * factor[m][e]);
    }
}

// Rows that saw no key, when such rows attend to all keys alike.
template <int MT>
GPU_FN void mma_uniform(const FlashParams &p, const FlashHead &at, float (*acc)[MMA_DV / 8][4], bool (*blind)[2], i64 (*pos)[2],
                        u16 *sv) {
    const bf16 *v = (const bf16 *)p.v + at.kv * p.nk * FLASH_DV;
    mma_zero<FLASH_DV, MT>(acc);
    for (i64 k0 = 0; k0 < p.nk; k0 += MMA_OTHER) {
        float w[MT][MMA_OTHER / 8][4];
        gpu_sync();
        mma_fetch<FLASH_DV>(sv, v + k0 * FLASH_DV, MMA_OTHER, p.nk - k0);
        mma_copies_done();
        gpu_sync();
        GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++)
            GPU_UNROLL for (int j = 0; j < MMA_OTHER / 8; j++) GPU_UNROLL for (int i = 0; i < 2; i++) {
                i64 k = k0 + mma_col() + 8 * j + i;  // 1 or 0, exact in bf16; the rest of the factor comes at the end
                w[m][j][2 * e + i] = blind[m][e] && k < p.nk && flash_keep(p, at, pos[m][e], k) != 0.0f ? 1.0f : 0.0f;
            }
        mma_apply<FLASH_DV, MT>(acc, w, sv);
    }
}

// Grid: tiles of 64 * FLASH_MT queries * heads * batch.
GPU_KERNEL(flash_mma_forward, FlashParams, FLASH_THREADS) {
    enum { MT = FLASH_MT, BQ = 64 * MT, STAGE = MMA_OTHER * (MMA_LD(FLASH_D) + MMA_LD(FLASH_DV)), NJ = MMA_DV / 8 };
    MMA_SHARED(shared);
    u16 *sq = shared, *stage = shared + BQ * MMA_LD(FLASH_D);
    i64 ntile = flash_blocks(p.nq, BQ), bh = gpu_block_x / ntile, q0 = (ntile - 1 - gpu_block_x % ntile) * BQ,
        n = flash_min(BQ, p.nq - q0);
    FlashHead at = flash_head(p, bh / p.heads, bh % p.heads);
    const bf16 *k = (const bf16 *)p.k + at.kv * p.nk * FLASH_D, *v = (const bf16 *)p.v + at.kv * p.nk * FLASH_DV;
    float acc[MT][NJ][4], max[MT][2], sum[MT][2], fade[MT][2];
    i64 pos[MT][2];
    mma_zero<FLASH_DV, MT>(acc);
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) {
        max[m][e] = -FLASH_INF, sum[m][e] = 0.0f;
        pos[m][e] = flash_global(p, 2, flash_min(q0 + mma_row<MT>(m, e), p.nq - 1));
    }
    FlashWalk walk = flash_walk_keys(p, at.row, q0 / FLASH_BLOCK, false);
    i64 end = flash_min((walk.last + 1) * FLASH_BLOCK, p.nk);
    int verdict = 0, next_verdict = 0, buffer = 0;
    i64 k0 = mma_next<false>(p, at.row, q0 / FLASH_BLOCK, walk.first * FLASH_BLOCK, end, false, 0, &verdict), next;
    mma_fetch<FLASH_D>(sq, (const bf16 *)p.q + (bh * p.nq + q0) * FLASH_D, BQ, n);
    if (k0 < end) {
        mma_fetch<FLASH_D>(stage, k + k0 * FLASH_D, MMA_OTHER, p.nk - k0);
        mma_fetch<FLASH_DV>(stage + MMA_OTHER * MMA_LD(FLASH_D), v + k0 * FLASH_DV, MMA_OTHER, p.nk - k0);
    }
    for (; k0 < end; k0 = next, verdict = next_verdict, buffer ^= 1) {
        const u16 *sk = stage + buffer * STAGE, *sv = sk + MMA_OTHER * MMA_LD(FLASH_D);
        next = mma_next<false>(p, at.row, q0 / FLASH_BLOCK, k0 + MMA_OTHER, end, false, 0, &next_verdict);
        mma_copies_done();
        gpu_sync();  // this tile is there, and nobody reads the other buffer any more
        if (next < end) {
            u16 *to = stage + (buffer ^ 1) * STAGE;
            mma_fetch<FLASH_D>(to, k + next * FLASH_D, MMA_OTHER, p.nk - next);
            mma_fetch<FLASH_DV>(to + MMA_OTHER * MMA_LD(FLASH_D), v + next * FLASH_DV, MMA_OTHER, p.nk - next);
        }
        float s[MT][MMA_OTHER / 8][4];
        mma_dot<FLASH_D, MT>(s, sq + (int)gpu_thread_x / 32 * 16 * MT * MMA_LD(FLASH_D), sk);
        mma_scores<MT>(p, at, s, verdict, q0, pos, k0);
        mma_softmax<MT>(p, at, s, max, sum, fade, pos, k0);
        GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int j = 0; j < NJ; j++) GPU_UNROLL for (int i = 0; i < 4; i++)
            acc[m][j][i] *= fade[m][i / 2];
        mma_apply<FLASH_DV, MT>(acc, s, sv);
    }
    bf16 *o = (bf16 *)p.out0 + (bh * p.nq + q0) * FLASH_DV;
    bool blind[MT][2], all[MT][2], some = false;
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) {
        sum[m][e] += mma_quad(sum[m][e], 1), sum[m][e] += mma_quad(sum[m][e], 2);
        int r = mma_row<MT>(m, e);
        blind[m][e] = sum[m][e] == 0.0f, all[m][e] = true, some |= blind[m][e] && r < n;
        fade[m][e] = blind[m][e] ? (FLASH_MASKED_ROW == 1 ? FLASH_NAN : 0.0f) : 1.0f / sum[m][e];
        float lse = blind[m][e] ? (FLASH_MASKED_ROW == 1 ? FLASH_NAN : -FLASH_INF) : max[m][e] * p.unit_lse + logf(sum[m][e]);
        if (r < n && mma_col() == 0) store_float(&((TL *)p.out1)[bh * p.nq + q0 + r], lse);
    }
    mma_write_rows<MT>(p, acc, fade, all, o, n);
    mma_copies_done();
    if (FLASH_MASKED_ROW < 2 || !mma_any(some)) return;
    mma_uniform<MT>(p, at, acc, blind, pos, stage + MMA_OTHER * MMA_LD(FLASH_D));
    GPU_UNROLL for (int m = 0; m < MT; m++) GPU_UNROLL for (int e = 0; e < 2; e++) fade[m][e] = p.keep / (float)p.nk;
    mma_write_rows<MT>(p, acc, fade, blind, o, n);
}
