// What the kernels of our own attention share: where a block of threads is, what is known about blocks of scores, one score.
// Follows
// the generated program, which defines FLASH_D, FLASH_DV (channels), TQ, TL, TG (types of q k v o do; of the log-sum-exp; of dq
// dk
// dv), FLASH_VISIBLE, FLASH_BIAS, FLASH_SOFTCAP, FLASH_DROPOUT, FLASH_MASKED_ROW and flash_program, flash_program_range.

#define FLASH_PROGRAM (FLASH_VISIBLE || FLASH_BIAS)
#define FLASH_ELEMENT (FLASH_MASKED | FLASH_BIASED)
#define FLASH_INF gpu_bits_float(0x7f800000u)
#define FLASH_NAN gpu_bits_float(0x7fc00000u)
#define FLASH_LOG2E 1.44269504088896340736f

GPU_FN i64 flash_min(i64 a, i64 b) { return a < b ? a : b; }
GPU_FN i64 flash_blocks(i64 n, i64 block) { return (n + block - 1) / block; }

// ---- positions ------------------------------------------------------------------------------------------------------------
GPU_FN i64 flash_global(const FlashParams &p, int dim, i64 local) {
    if (p.qdim != dim) return local;
    int s = 0;
    while (s + 1 < p.nqspan && p.qspan[s + 1].base <= local) s++;
    return p.qspan[s].begin + (local - p.qspan[s].base);
}
// KV head of query head h, both counted in the group.
GPU_FN i64 flash_kv_head(const FlashParams &p, i64 h) {
    i64 want = flash_global(p, 1, p.h0 + h) / p.group;
    if (p.nkspan == 0) return want - p.kv0;
    int s = 0;
    while (s + 1 < p.nkspan && p.kspan[s + 1].begin <= want) s++;
    return p.kspan[s].base + (want - p.kspan[s].begin) - p.kv0;
}

// One head of one batch entry: what a block of threads works on.
struct FlashHead {
    i64 b, h, gb, gh;   // in the group, global
    i64 kv;             // row of k, v: b * kv_heads + head
    i64 row;            // of the verdicts
    u64 key, score;     // dropout: of the stream; the global index of score (b, h, 0, 0)
};
GPU_FN u64 flash_mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
GPU_FN FlashHead flash_head(const FlashParams &p, i64 b, i64 h) {
    FlashHead at;
    at.b = b, at.h = h, at.gb = flash_global(p, 0, p.b0 + b), at.gh = flash_global(p, 1, p.h0 + h);
    at.kv = b * p.kv_heads + flash_kv_head(p, h);
    at.row = b * p.verdict_b + h * p.verdict_h;
    at.key = at.score = 0;
#if FLASH_DROPOUT  // as base/random.h
    u64 z = flash_mix(p.step[0] + 0x9E3779B97F4A7C15ull);
    z = flash_mix(z ^ (p.step[1] + 0xD1B54A32D192ED03ull));
    at.key = flash_mix(z ^ ((u64)p.seed + 0x8CB92BA72F3D8DD7ull));
    at.score = ((u64)at.gb * (u64)p.heads_all + (u64)at.gh) * (u64)p.nq_all * (u64)p.nk_all;
#endif
    return at;
}
// What dropout multiplies the probability of global (query q, key k) by.
GPU_FN float flash_keep(const FlashParams &p, const FlashHead &at, i64 q, i64 k) {
#if FLASH_DROPOUT
    u64 index = at.score + (u64)q * (u64)p.nk_all + (u64)k;
    return (flash_mix(at.key + (index + 1) * 0x9E3779B97F4A7C15ull) >> 40) >= p.drop_below ? p.keep : 0.0f;
#else
    return 1.0f;
#endif
}

// ---- verdicts -------------------------------------------------------------------------------------------------------------
// The verdict on block (qb, kb), and the first and last block worth looking at along a row or column.
GPU_FN int flash_verdict(const FlashParams &p, i64 row, i64 qb, i64 kb) {
#if FLASH_PROGRAM
    i64 nqb = flash_blocks(p.nq, FLASH_BLOCK), nkb = flash_blocks(p.nk, FLASH_BLOCK);
    return p.verdict[(row * nqb + qb) * nkb + kb];
#else
    return FLASH_ALIVE;
#endif
}
struct FlashWalk { i64 first, last; };
GPU_FN FlashWalk flash_walk_keys(const FlashParams &p, i64 row, i64 qb, bool all) {
    FlashWalk w;
    w.first = 0, w.last = flash_blocks(p.nk, FLASH_BLOCK) - 1;
#if FLASH_PROGRAM
    const int *bound = p.bound_q + (row * flash_blocks(p.nq, FLASH_BLOCK) + qb) * 2;
    if (!all) w.first = bound[0], w.last = bound[1];
#endif
    return w;
}
GPU_FN FlashWalk flash_walk_queries(const FlashParams &p, i64 row, i64 kb, bool all) {
    FlashWalk w;
    w.first = 0, w.last = flash_blocks(p.nq, FLASH_BLOCK) - 1;
#if FLASH_PROGRAM
    const int *bound = p.bound_k + (row * flash_blocks(p.nk, FLASH_BLOCK) + kb) * 2;
    if (!all) w.first = bound[0], w.last = bound[1];
#endif
    return w;
}

#if FLASH_PROGRAM
// Ranges of the vectors over blocks of their positions. Grid: (blocks * rows / threads, vectors).
GPU_KERNEL(flash_ranges, FlashParams, 128) {
    const FlashVec &v = p.vec[gpu_block_y];
    i64 nblock = flash_blocks(v.len, FLASH_BLOCK);
    for (i64 i = gpu_thread(); i < v.nrow * nblock; i += gpu_nthreads()) {
        i64 begin = i % nblock * FLASH_BLOCK, end = flash_min(begin + FLASH_BLOCK, v.len);
        FlashRange r = iv_make(IV_INF, -IV_INF, false);
        for (i64 j = i / nblock * v.len + begin; j < i / nblock * v.len + end; j++)
            r = iv_add_value(r, flash_vec_value(v.data, (int)gpu_block_y, j));
        v.range[i] = flash_vec_exact((int)gpu_block_y) || iv_bounded(r) ? r : iv_unknown();
    }
}

// One verdict a thread.
GPU_KERNEL(flash_verdicts, FlashParams, 128) {
    i64 nqb = flash_blocks(p.nq, FLASH_BLOCK), nkb = flash_blocks(p.nk, FLASH_BLOCK), each = nqb * nkb;
    for (i64 i = gpu_thread(); i < p.nrow_verdict * each; i += gpu_nthreads()) {
        i64 row = i / each, qb = i % each / nkb, kb = i % nkb;
        i64 b = p.b0 + (p.verdict_b ? row / p.verdict_b : 0), h = p.h0 + (p.verdict_h ? row % p.heads : 0);
        i64 q0 = qb * FLASH_BLOCK, q1 = flash_min(q0 + FLASH_BLOCK, p.nq) - 1;
        i64 k0 = kb * FLASH_BLOCK, k1 = flash_min(k0 + FLASH_BLOCK, p.nk) - 1;
        FlashRange visible = iv_point(1), bias = iv_point(0);
        flash_program_range(p, iv_point((double)flash_global(p, 0, b)), iv_point((double)flash_global(p, 1, h)),
                            iv_make((double)flash_global(p, 2, q0), (double)flash_global(p, 2, q1), false),
                            iv_make((double)k0, (double)k1, false), b, h, qb, kb, &visible, &bias);
        int v = FLASH_ALIVE;
        if (!(visible.lo > 0)) v |= FLASH_MASKED;
        if (!iv_is_point(bias, 0)) v |= FLASH_BIASED;
        if (!(visible.hi > 0) || (bias.hi == -IV_INF && !bias.nan)) v = 0;  // -inf is added to every score
        p.verdict[i] = (u8)v;
    }
}

// Where each row and each column of verdicts begins and ends.
GPU_KERNEL(flash_bounds, FlashParams, 128) {
    i64 nqb = flash_blocks(p.nq, FLASH_BLOCK), nkb = flash_blocks(p.nk, FLASH_BLOCK), each = nqb + nkb;
    for (i64 i = gpu_thread(); i < p.nrow_verdict * each; i += gpu_nthreads()) {
        i64 row = i / each, at = i % each;
        bool over_q = at < nqb;
        const u8 *v = p.verdict + row * nqb * nkb + (over_q ? at * nkb : at - nqb);
        i64 n = over_q ? nkb : nqb, stride = over_q ? 1 : nkb, first = 0, last = n - 1;
        while (first < n && !v[first * stride]) first++;
        while (last >= first && !v[last * stride]) last--;
        int *bound = over_q ? p.bound_q + (row * nqb + at) * 2 : p.bound_k + (row * nkb + at - nqb) * 2;
        bound[0] = (int)first, bound[1] = (int)last;
    }
}
#endif

// ---- one score ------------------------------------------------------------------------------------------------------------
// The product q.k to the score: scale, soft-cap, bias; -inf where the key is not seen. Where nothing but masking happens
// (FLASH_RAW)
// the product stays as it is and the scale goes into the exponential. *slope: its derivative by the scaled product.
GPU_FN float flash_score(const FlashParams &p, const FlashHead &at, float s, int verdict, i64 lq, i64 q, i64 k, float *slope) {
#if FLASH_SOFTCAP
    float t = tanhf(s * p.inner);
    s = p.cap * t;
    *slope = 1.0f - t * t;
#elif !FLASH_RAW
    s *= p.scale;
#endif
#if FLASH_PROGRAM
    if (verdict & FLASH_ELEMENT) {
        float bias = 0.0f;
        bool visible = flash_program(p, at.gb, at.gh, q, k, p.b0 + at.b, p.h0 + at.h, lq, &bias);
        if (FLASH_BIAS) s += bias;
        if (!visible) s = -FLASH_INF;
    }
#endif
    return s;
}
// p relative to the maximum m of a row; a row that saw nothing so far has m = -inf, and the maximum passes over NaN.
GPU_FN float flash_prob(const FlashParams &p, float s, float m) {
    if (m == -FLASH_INF) return s == s ? 0.0f : s;
    return exp2f((s - m) * p.unit);
}
struct FlashGrad { float p, ds; };  // as dV wants it, with dropout; the gradient of the product q.k
// From the product s and do.v of an element. uniform: its row saw no key and attends to all alike.
GPU_FN FlashGrad flash_grad(const FlashParams &p, const FlashHead &at, float s, float dp, int verdict, i64 lq, i64 q, i64 k,
                            float max, float unsum, float delta, bool uniform) {
    float slope = 1.0f, pr, keep = flash_keep(p, at, q, k);
    s = flash_score(p, at, s, verdict, lq, q, k, &slope);
    pr = exp2f((s - max) * p.unit) * unsum;
    if (uniform) pr = FLASH_MASKED_ROW == 1 ? FLASH_NAN : 1.0f / (float)p.nk;
    FlashGrad g;
    g.p = pr * keep;
    g.ds = pr * (dp * keep - delta) * slope * p.scale;
    if (pr == 0.0f || (uniform && FLASH_MASKED_ROW == 3)) g.ds = 0.0f;  // 0 * inf is no gradient
    return g;
}
