// Our own attention, portable kernels: float32 arithmetic on tiles of 64 queries x 64 keys, for any head size, f32 or bf16 in
// memory.
// After FlashAttention-2 (Dao 2023). A block has FLASH_THREADS threads: thread t owns rows 4(t/8).. and columns t%8 + 8j of a
// tile.
// In the emulation, where a block is one thread, that thread plays all of them (FLASH_EACH).
// Output channels beyond 128 are dealt to further blocks (gpu_block_z), which compute the scores again: registers stay bounded.

#if defined(GPU_EMULATE) && !defined(GPU_FIBERS)
#define FLASH_VT FLASH_THREADS
#else
#define FLASH_VT 1
#endif
#define FLASH_EACH(v, t) for (int v = 0, t = (int)gpu_thread_x; v < FLASH_VT; v++, t++)
#define FLASH_STEP 32                            // channels, or rows, that a product takes at a time
#define FLASH_LD (FLASH_STEP + 1)                // not a power of two: shared memory's banks
#define FLASH_LDP (FLASH_TILE + 1)
#define FLASH_NCHUNK(dim) ((dim) <= 128 ? 1 : ((dim) + 127) / 128)
#define FLASH_CHUNK(dim) ((((dim) + FLASH_NCHUNK(dim) - 1) / FLASH_NCHUNK(dim) + 7) / 8 * 8)  // channels of a block

struct FlashTile { float x[4][8]; };

// s = a b^T, rows of DIM channels; na, nb rows are there, the others count as zeros. `buf`: shared, 2 * FLASH_TILE * FLASH_LD.
template <int DIM, class T>
GPU_FN void flash_dot(FlashTile *s, const T *a, i64 na, const T *b, i64 nb, float *buf) {
    float *sa = buf, *sb = buf + FLASH_TILE * FLASH_LD;
    FLASH_EACH(v, t) for (int i = 0; i < 4; i++) for (int j = 0; j < 8; j++) s[v].x[i][j] = 0.0f;
    for (int d0 = 0; d0 < DIM; d0 += FLASH_STEP) {
        gpu_sync();
        for (int i = (int)gpu_thread_x; i < FLASH_TILE * FLASH_STEP; i += (int)gpu_block_threads) {
            int r = i / FLASH_STEP, c = i % FLASH_STEP;
            bool in = d0 + c < DIM;
            sa[r * FLASH_LD + c] = in && r < na ? to_float(a[(i64)r * DIM + d0 + c]) : 0.0f;
            sb[r * FLASH_LD + c] = in && r < nb ? to_float(b[(i64)r * DIM + d0 + c]) : 0.0f;
        }
        gpu_sync();
        int n = DIM - d0 < FLASH_STEP ? DIM - d0 : FLASH_STEP;
        FLASH_EACH(v, t) {
            const float *pa = sa + t / 8 * 4 * FLASH_LD, *pb = sb + t % 8 * FLASH_LD;
            for (int l = 0; l < n; l++) {
                float x[4], y[8];
                GPU_UNROLL for (int i = 0; i < 4; i++) x[i] = pa[i * FLASH_LD + l];
                GPU_UNROLL for (int j = 0; j < 8; j++) y[j] = pb[8 * j * FLASH_LD + l];
                GPU_UNROLL for (int i = 0; i < 4; i++) GPU_UNROLL for (int j = 0; j < 8; j++) s[v].x[i][j] += x[i] * y[j];
            }
        }
    }
}

// acc += c x (transposed: c^T x): c is a tile of coefficients in shared memory, x has n rows of DIM channels, of which those from
// c0
// on are taken. acc: 4 rows x channels t%8 + 8j.
template <int DIM, bool TRANSPOSED, class T>
GPU_FN void flash_apply(float (*acc)[4][FLASH_CHUNK(DIM) / 8], const float *coef, const T *x, i64 n, int c0, float *buf) {
    enum { CV = FLASH_CHUNK(DIM), NC = CV / 8, ROW = TRANSPOSED ? 1 : FLASH_LDP, COL = TRANSPOSED ? FLASH_LDP : 1 };
    for (int r0 = 0; r0 < FLASH_TILE; r0 += FLASH_STEP) {
        gpu_sync();
        for (int i = (int)gpu_thread_x; i < FLASH_STEP * CV; i += (int)gpu_block_threads) {
            int r = i / CV, c = i % CV;
            buf[i] = r0 + r < n && c0 + c < DIM ? to_float(x[(i64)(r0 + r) * DIM + c0 + c]) : 0.0f;
        }
        gpu_sync();
        FLASH_EACH(v, t) {
            const float *pc = coef + t / 8 * 4 * ROW + r0 * COL, *px = buf + t % 8;
            for (int r = 0; r < FLASH_STEP; r++) {
                float w[4];
                GPU_UNROLL for (int i = 0; i < 4; i++) w[i] = pc[i * ROW + r * COL];
                GPU_UNROLL for (int j = 0; j < NC; j++) {
                    float y = px[r * CV + 8 * j];
                    GPU_UNROLL for (int i = 0; i < 4; i++) acc[v][i][j] += w[i] * y;
                }
            }
        }
    }
}

template <int NC> GPU_FN void flash_zero(float (*acc)[4][NC]) {
    FLASH_EACH(v, t) for (int i = 0; i < 4; i++) for (int j = 0; j < NC; j++) acc[v][i][j] = 0.0f;
}
// acc to rows of `out`; rows < n, channels < DIM.
template <int DIM, class T> GPU_FN void flash_write(T *out, float (*acc)[4][FLASH_CHUNK(DIM) / 8], i64 n, int c0) {
    FLASH_EACH(v, t) for (int i = 0; i < 4; i++) for (int j = 0; j < FLASH_CHUNK(DIM) / 8; j++) {
        int r = t / 8 * 4 + i, c = c0 + t % 8 + 8 * j;
        if (r < n && c < DIM) store_float(&out[(i64)r * DIM + c], acc[v][i][j]);
    }
}

// Global positions of the tile's queries into shared memory.
GPU_FN void flash_positions(const FlashParams &p, i64 q0, i64 n, i64 *pos) {
    for (int r = (int)gpu_thread_x; r < FLASH_TILE; r += (int)gpu_block_threads)
        pos[r] = flash_global(p, 2, q0 + (r < n ? r : n - 1));
    gpu_sync();
}

// Products -> scores, into shared memory; keys from nk on are not seen.
GPU_FN void flash_scores(const FlashParams &p, const FlashHead &at, FlashTile *s, int verdict, i64 q0, const i64 *pos, i64 k0,
                         float *sp) {
    FLASH_EACH(v, t) for (int i = 0; i < 4; i++) {
        int r = t / 8 * 4 + i;
        for (int j = 0; j < 8; j++) {
            int c = t % 8 + 8 * j;
            float slope, x = -FLASH_INF;
            if (k0 + c < p.nk && q0 + r < p.nq) x = flash_score(p, at, s[v].x[i][j], verdict, q0 + r, pos[r], k0 + c, &slope);
            sp[r * FLASH_LDP + c] = x;
        }
    }
    gpu_sync();
}

// The running softmax of a tile's rows; two threads a row. All in shared memory.
struct FlashRows { float *max, *sum, *fade, *part; };
// Scores in sp -> probabilities relative to the new maxima, with dropout; fade: what sums and outputs so far are multiplied by.
GPU_FN void flash_softmax(const FlashParams &p, const FlashHead &at, FlashRows rows, const i64 *pos, i64 k0, float *sp) {
    enum { HALF = FLASH_TILE / 2 };
    FLASH_EACH(v, t) {
        const float *s = sp + t / 2 * FLASH_LDP + t % 2 * HALF;
        float m = -FLASH_INF;
        for (int c = 0; c < HALF; c++) m = s[c] > m ? s[c] : m;
        rows.part[t] = m;
    }
    gpu_sync();
    FLASH_EACH(v, t) {
        int r = t / 2;
        float *s = sp + r * FLASH_LDP + t % 2 * HALF, m = rows.max[r], sum = 0.0f;
        m = rows.part[2 * r] > m ? rows.part[2 * r] : m, m = rows.part[2 * r + 1] > m ? rows.part[2 * r + 1] : m;
        for (int c = 0; c < HALF; c++) {
            float x = flash_prob(p, s[c], m);
            sum += x;
            if (FLASH_DROPOUT) x *= flash_keep(p, at, pos[r], k0 + t % 2 * HALF + c);
            s[c] = x;
        }
        rows.part[2 * FLASH_TILE + t] = sum;
    }
    gpu_sync();
    FLASH_EACH(v, t) if (t % 2 == 0) {
        int r = t / 2;
        float m = rows.max[r], old = m;
        m = rows.part[2 * r] > m ? rows.part[2 * r] : m, m = rows.part[2 * r + 1] > m ? rows.part[2 * r + 1] : m;
        rows.fade[r] = m == old ? 1.0f : exp2f((old - m) * p.unit);
        rows.max[r] = m;
        rows.sum[r] = rows.sum[r] * rows.fade[r] + rows.part[2 * FLASH_TILE + 2 * r] + rows.part[2 * FLASH_TILE + 2 * r + 1];
    }
    gpu_sync();
}
GPU_FN void flash_rows_begin(FlashRows rows) {
    for (int r = (int)gpu_thread_x; r < FLASH_TILE; r += (int)gpu_block_threads) rows.max[r] = -FLASH_INF, rows.sum[r] = 0.0f;
    gpu_sync();
}

#if !FLASH_TENSOR
// ---- forward --------------------------------------------------------------------------------------------------------------
// Rows that saw no key, when such rows attend to all keys alike: their sums of v into acc.
GPU_FN void flash_uniform(const FlashParams &p, const FlashHead &at, float (*acc)[4][FLASH_CHUNK(FLASH_DV) / 8], FlashRows rows,
                          const i64 *pos, int c0, float *sp, float *buf) {
    const TQ *v = (const TQ *)p.v + at.kv * p.nk * FLASH_DV;
    flash_zero<FLASH_CHUNK(FLASH_DV) / 8>(acc);
    for (i64 k0 = 0; k0 < p.nk; k0 += FLASH_TILE) {
        gpu_sync();
        for (int i = (int)gpu_thread_x; i < FLASH_TILE * FLASH_TILE; i += (int)gpu_block_threads) {
            int r = i / FLASH_TILE, c = i % FLASH_TILE;
            bool blind = rows.sum[r] == 0.0f && k0 + c < p.nk;
            sp[r * FLASH_LDP + c] = blind ? flash_keep(p, at, pos[r], k0 + c) / (float)p.nk : 0.0f;
        }
        flash_apply<FLASH_DV, false>(acc, sp, v + k0 * FLASH_DV, p.nk - k0, c0, buf);
    }
}

// Grid: (tiles of queries * heads * batch, 1, chunks of the output's channels).
GPU_KERNEL(flash_forward, FlashParams, FLASH_THREADS) {
    enum { NC = FLASH_CHUNK(FLASH_DV) / 8 };
    GPU_SHARED float buf[2 * FLASH_TILE * FLASH_LD], sp[FLASH_TILE * FLASH_LDP], stat[7 * FLASH_TILE];
    GPU_SHARED i64 pos[FLASH_TILE];
    i64 ntile = flash_blocks(p.nq, FLASH_TILE), bh = gpu_block_x / ntile,
        tile = ntile - 1 - gpu_block_x % ntile;  // long ones first
    i64 q0 = tile * FLASH_TILE, n = flash_min(FLASH_TILE, p.nq - q0);
    int c0 = (int)gpu_block_z * FLASH_CHUNK(FLASH_DV);
    FlashHead at = flash_head(p, bh / p.heads, bh % p.heads);
    const TQ *q = (const TQ *)p.q + (bh * p.nq + q0) * FLASH_D, *k = (const TQ *)p.k + at.kv * p.nk * FLASH_D;
    const TQ *v = (const TQ *)p.v + at.kv * p.nk * FLASH_DV;
    FlashRows rows = {stat, stat + FLASH_TILE, stat + 2 * FLASH_TILE, stat + 3 * FLASH_TILE};
    float acc[FLASH_VT][4][NC];
    flash_zero<NC>(acc);
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
        FLASH_EACH(e, t) for (int i = 0; i < 4; i++) for (int j = 0; j < NC; j++) acc[e][i][j] *= rows.fade[t / 8 * 4 + i];
        flash_apply<FLASH_DV, false>(acc, sp, v + k0 * FLASH_DV, p.nk - k0, c0, buf);
    }
    TQ *o = (TQ *)p.out0 + (bh * p.nq + q0) * FLASH_DV;
    bool blind = false;
    for (int r = 0; r < n; r++) blind |= rows.sum[r] == 0.0f;
    FLASH_EACH(e, t) for (int i = 0; i < 4; i++) for (int j = 0; j < NC; j++) {
        float sum = rows.sum[t / 8 * 4 + i];
        acc[e][i][j] = sum != 0.0f ? acc[e][i][j] / sum : FLASH_MASKED_ROW == 1 ? FLASH_NAN : 0.0f;
    }
    flash_write<FLASH_DV>(o, acc, n, c0);
    if (gpu_block_z == 0)
        for (int r = (int)gpu_thread_x; r < n; r += (int)gpu_block_threads) {
            float lse = rows.sum[r] != 0.0f     ? rows.max[r] * p.unit_lse + logf(rows.sum[r])
                        : FLASH_MASKED_ROW == 1 ? FLASH_NAN
                                                : -FLASH_INF;
            store_float(&((TL *)p.out1)[bh * p.nq + q0 + r], lse);
        }
    if (!blind || FLASH_MASKED_ROW < 2) return;
    flash_uniform(p, at, acc, rows, pos, c0, sp, buf);
    FLASH_EACH(e, t) for (int i = 0; i < 4; i++) for (int j = 0; j < NC; j++) {
        int r = t / 8 * 4 + i, c = c0 + t % 8 + 8 * j;
        if (r < n && c < FLASH_DV && rows.sum[r] == 0.0f) store_float(&o[(i64)r * FLASH_DV + c], acc[e][i][j]);
    }
}
#endif
