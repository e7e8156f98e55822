// The portable backward kernels: P again from the log-sum-exp,
//     dP = dO V^T   dS = P * (dP - rowsum(dO * O))   dQ = dS K   dV = P^T dO   dK = dS^T Q
// in two passes, over tiles of queries (dQ) and over tiles of keys (dV, dK with all the query heads that share the KV head), so
// that
// every sum has one owner and one order.

// What each row needs: rowsum(do * o), its maximum, and flags of the tile. Grid: tiles of queries * heads * batch.
GPU_KERNEL(flash_rows, FlashParams, FLASH_THREADS) {
    GPU_SHARED float part[FLASH_THREADS];
    GPU_SHARED int flag[FLASH_TILE];
    i64 ntile = flash_blocks(p.nq, FLASH_TILE), bh = gpu_block_x / ntile, tile = gpu_block_x % ntile;
    i64 n = flash_min(FLASH_TILE, p.nq - tile * FLASH_TILE), row0 = bh * p.nq + tile * FLASH_TILE;
    FLASH_EACH(v, t) {
        float sum = 0.0f;
        const TQ *o = (const TQ *)p.o + (row0 + t / 2) * FLASH_DV, *g = (const TQ *)p.dout + (row0 + t / 2) * FLASH_DV;
        if (t / 2 < n)
            for (int c = t % 2; c < FLASH_DV; c += 2) sum += to_float(o[c]) * to_float(g[c]);
        part[t] = sum;
    }
    gpu_sync();
    FLASH_EACH(v, t) if (t < FLASH_TILE) {
        flag[t] = 0;
        if (t < n) {
            float lse = to_float(((const TL *)p.lse)[row0 + t]), size = lse < 0 ? -lse : lse;
            bool blind = lse == -FLASH_INF, nan = lse != lse;
            if ((blind && FLASH_MASKED_ROW >= 2) || (nan && FLASH_MASKED_ROW == 1)) flag[t] = FLASH_UNIFORM;
            // Rounded more coarsely than its probabilities can bear: rows in which every key is suppressed by an added -1e9.
            else if (!nan && size < FLASH_INF && (size > 256.0f || sizeof(TL) == 2)) flag[t] = FLASH_COARSE;
            p.row_delta[row0 + t] = part[2 * t] + part[2 * t + 1];
            p.row_max[row0 + t] = blind ? FLASH_INF : lse / p.unit_lse;
            p.row_unsum[row0 + t] = 1.0f;
        }
    }
    gpu_sync();
    if (gpu_thread_x != 0) return;
    int all = 0;
    for (int r = 0; r < n; r++) all |= flag[r];
    p.flags[gpu_block_x] = (u8)all;
    if (all & FLASH_UNIFORM) p.any[bh] = 1;
}

GPU_KERNEL(flash_clear, FlashParams, FLASH_THREADS) {
    for (i64 i = gpu_thread(); i < p.batch * p.heads; i += gpu_nthreads()) p.any[i] = 0;
}

// Coarse rows are summed again: the true maximum, and 1 / the sum relative to it. Same grid.
GPU_KERNEL(flash_resum, FlashParams, FLASH_THREADS) {
    GPU_SHARED float buf[2 * FLASH_TILE * FLASH_LD], sp[FLASH_TILE * FLASH_LDP], stat[7 * FLASH_TILE];
    GPU_SHARED i64 pos[FLASH_TILE];
    if (!(p.flags[gpu_block_x] & FLASH_COARSE)) return;
    i64 ntile = flash_blocks(p.nq, FLASH_TILE), bh = gpu_block_x / ntile, q0 = gpu_block_x % ntile * FLASH_TILE;
    i64 n = flash_min(FLASH_TILE, p.nq - q0);
    FlashHead at = flash_head(p, bh / p.heads, bh % p.heads);
    const TQ *q = (const TQ *)p.q + (bh * p.nq + q0) * FLASH_D, *k = (const TQ *)p.k + at.kv * p.nk * FLASH_D;
    FlashRows rows = {stat, stat + FLASH_TILE, stat + 2 * FLASH_TILE, stat + 3 * FLASH_TILE};
    flash_positions(p, q0, n, pos);
    flash_rows_begin(rows);
    FlashWalk w = flash_walk_keys(p, at.row, q0 / FLASH_BLOCK, false);
    for (i64 k0 = w.first * FLASH_BLOCK; k0 < flash_min((w.last + 1) * FLASH_BLOCK, p.nk); k0 += FLASH_TILE) {
        int verdict = flash_verdict(p, at.row, q0 / FLASH_BLOCK, k0 / FLASH_BLOCK);
        if (!verdict) continue;
        FlashTile s[FLASH_VT];
        flash_dot<FLASH_D>(s, q, n, k + k0 * FLASH_D, p.nk - k0, buf);
        flash_scores(p, at, s, verdict, q0, pos, k0, sp);
        flash_softmax(p, at, rows, pos, k0, sp);
    }
    for (int r = (int)gpu_thread_x; r < n; r += (int)gpu_block_threads) {
        i64 row = bh * p.nq + q0 + r;
        float lse = to_float(((const TL *)p.lse)[row]), size = lse < 0 ? -lse : lse;
        if (size < FLASH_INF && (size > 256.0f || sizeof(TL) == 2))
            p.row_max[row] = rows.max[r], p.row_unsum[row] = 1.0f / rows.sum[r];
    }
}

#if !FLASH_TENSOR
// Products s, dp of a tile -> what dV wants (GRAD false) or the gradients of the products (GRAD true), into shared memory.
template <bool GRAD>
GPU_FN void flash_grads(const FlashParams &p, const FlashHead &at, const FlashTile *s, const FlashTile *dp, int verdict, i64 q0,
                        const i64 *pos, i64 k0, float *sp) {
    FLASH_EACH(v, t) for (int i = 0; i < 4; i++) {
        i64 r = t / 8 * 4 + i, row = (at.b * p.heads + at.h) * p.nq + q0 + r;
        bool there = q0 + r < p.nq;
        float max = there ? p.row_max[row] : 0.0f, unsum = there ? p.row_unsum[row] : 0.0f,
              delta = there ? p.row_delta[row] : 0.0f;
        bool uniform = there && ((FLASH_MASKED_ROW >= 2 && max == FLASH_INF) || (FLASH_MASKED_ROW == 1 && max != max));
        for (int j = 0; j < 8; j++) {
            int c = t % 8 + 8 * j;
            float x = 0.0f;
            if (there && k0 + c < p.nk) {
                FlashGrad g = flash_grad(p, at, s[v].x[i][j], GRAD ? dp[v].x[i][j] : 0.0f, verdict, q0 + r, pos[r], k0 + c, max,
                                         unsum, delta, uniform);
                x = GRAD ? g.ds : g.p;
            }
            sp[r * FLASH_LDP + c] = x;
        }
    }
    gpu_sync();
}

// Grid: (tiles of queries * heads * batch, 1, chunks of q's channels).
GPU_KERNEL(flash_dq, FlashParams, FLASH_THREADS) {
    enum { NC = FLASH_CHUNK(FLASH_D) / 8 };
    GPU_SHARED float buf[2 * FLASH_TILE * FLASH_LD], sp[FLASH_TILE * FLASH_LDP];
    GPU_SHARED i64 pos[FLASH_TILE];
    i64 ntile = flash_blocks(p.nq, FLASH_TILE), bh = gpu_block_x / ntile, tile = ntile - 1 - gpu_block_x % ntile;
    i64 q0 = tile * FLASH_TILE, n = flash_min(FLASH_TILE, p.nq - q0);
    int c0 = (int)gpu_block_z * FLASH_CHUNK(FLASH_D);
    FlashHead at = flash_head(p, bh / p.heads, bh % p.heads);
    const TQ *q = (const TQ *)p.q + (bh * p.nq + q0) * FLASH_D, *g = (const TQ *)p.dout + (bh * p.nq + q0) * FLASH_DV;
    const TQ *k = (const TQ *)p.k + at.kv * p.nk * FLASH_D, *v = (const TQ *)p.v + at.kv * p.nk * FLASH_DV;
    float acc[FLASH_VT][4][NC];
    flash_zero<NC>(acc);
    flash_positions(p, q0, n, pos);
    bool all = (p.flags[bh * ntile + tile] & FLASH_UNIFORM) != 0;
    FlashWalk w = flash_walk_keys(p, at.row, q0 / FLASH_BLOCK, all);
    for (i64 k0 = w.first * FLASH_BLOCK; k0 < flash_min((w.last + 1) * FLASH_BLOCK, p.nk); k0 += FLASH_TILE) {
        int verdict = flash_verdict(p, at.row, q0 / FLASH_BLOCK, k0 / FLASH_BLOCK);
        if (!verdict && !all) continue;
        FlashTile s[FLASH_VT], dp[FLASH_VT];
        flash_dot<FLASH_D>(s, q, n, k + k0 * FLASH_D, p.nk - k0, buf);
        flash_dot<FLASH_DV>(dp, g, n, v + k0 * FLASH_DV, p.nk - k0, buf);
        flash_grads<true>(p, at, s, dp, verdict ? verdict : FLASH_ELEMENT, q0, pos, k0, sp);
        flash_apply<FLASH_D, false>(acc, sp, k + k0 * FLASH_D, p.nk - k0, c0, buf);
    }
    flash_write<FLASH_D>((TG *)p.out0 + (bh * p.nq + q0) * FLASH_D, acc, n, c0);
}

// One chunk of the channels of dV (GRAD false) or dK of a tile of keys.
template <int DIM, bool GRAD>
GPU_FN void flash_key_grads(const FlashParams &p, i64 kv, i64 k0, int c0, TG *out, float *buf, float *sp, i64 *pos) {
    enum { NC = FLASH_CHUNK(DIM) / 8 };
    float acc[FLASH_VT][4][NC];
    i64 b = kv / p.kv_heads, ntile = flash_blocks(p.nq, FLASH_TILE), nk = flash_min(FLASH_TILE, p.nk - k0);
    const TQ *k = (const TQ *)p.k + (kv * p.nk + k0) * FLASH_D, *v = (const TQ *)p.v + (kv * p.nk + k0) * FLASH_DV;
    flash_zero<NC>(acc);
    for (i64 h = 0; h < p.heads; h++) {
        if (flash_kv_head(p, h) != kv % p.kv_heads) continue;
        FlashHead at = flash_head(p, b, h);
        i64 bh = b * p.heads + h;
        bool any = p.any[bh] != 0;
        FlashWalk w = flash_walk_queries(p, at.row, k0 / FLASH_BLOCK, any);
        for (i64 q0 = w.first * FLASH_BLOCK; q0 < flash_min((w.last + 1) * FLASH_BLOCK, p.nq); q0 += FLASH_TILE) {
            int verdict = flash_verdict(p, at.row, q0 / FLASH_BLOCK, k0 / FLASH_BLOCK);
            if (!verdict && !(any && (p.flags[bh * ntile + q0 / FLASH_TILE] & FLASH_UNIFORM))) continue;
            i64 n = flash_min(FLASH_TILE, p.nq - q0);
            const TQ *q = (const TQ *)p.q + (bh * p.nq + q0) * FLASH_D, *g = (const TQ *)p.dout + (bh * p.nq + q0) * FLASH_DV;
            FlashTile s[FLASH_VT], dp[FLASH_VT];
            flash_positions(p, q0, n, pos);
            flash_dot<FLASH_D>(s, q, n, k, nk, buf);
            if (GRAD) flash_dot<FLASH_DV>(dp, g, n, v, nk, buf);
            flash_grads<GRAD>(p, at, s, dp, verdict ? verdict : FLASH_ELEMENT, q0, pos, k0, sp);
            flash_apply<DIM, true>(acc, sp, GRAD ? q : g, n, c0, buf);
        }
    }
    flash_write<DIM>(out + (kv * p.nk + k0) * DIM, acc, nk, c0);
}

// Grid: (tiles of keys * KV heads * batch, 1, chunks of v's channels, then of k's).
GPU_KERNEL(flash_dkdv, FlashParams, FLASH_THREADS) {
    GPU_SHARED float buf[2 * FLASH_TILE * FLASH_LD], sp[FLASH_TILE * FLASH_LDP];
    GPU_SHARED i64 pos[FLASH_TILE];
    i64 ntile = flash_blocks(p.nk, FLASH_TILE), kv = gpu_block_x / ntile, k0 = gpu_block_x % ntile * FLASH_TILE;
    int chunk = (int)gpu_block_z, nv = FLASH_NCHUNK(FLASH_DV);
    if (chunk < nv) flash_key_grads<FLASH_DV, false>(p, kv, k0, chunk * FLASH_CHUNK(FLASH_DV), (TG *)p.out2, buf, sp, pos);
    else flash_key_grads<FLASH_D, true>(p, kv, k0, (chunk - nv) * FLASH_CHUNK(FLASH_D), (TG *)p.out1, buf, sp, pos);
}
#endif
