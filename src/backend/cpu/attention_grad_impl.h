// The backward kernel of attention.c for one float type (see real.h).
//     P = exp(S - lse)   dP = dO V^T   dS = P * (dP - rowsum(dO * O))   dV += P^T dO   dQ += dS K   dK += dS^T Q
// A task is one KV head of one batch entry with all the query heads that use it: it owns its dK, dV and those dQ, so that nothing
// is computed twice and sums have one order. Where such slices do not divide evenly among the workers, the last ones are split
// into lanes, each with a share of the query blocks and partial dK, dV that are added up in order at the end.

typedef struct FN(GradJob) {
    const KernelArgs *args;
    Attn a;
    GradSplit split;
    const REAL *o, *lse, *dout;
    REAL *dq, *dk, *dv;
    REAL *partial;  // [split lanes][nk * (dim + dim_v)]
    char *memory;
    size_t worker_nbytes;
} FN(GradJob);

// Blind rows see no key; with masked_row 2 or 3 they attend to all keys alike (3: whatever q and k are).
static bool FN(uniform_row)(const Attn *a, REAL lse) { return a->masked_row >= 2 && lse == -(REAL)INFINITY; }

// A log-sum-exp of this size (rows in which every key is suppressed by an added -1e9) was rounded more coarsely than its
// probabilities can bear: such rows are summed again.
static bool FN(coarse_row)(REAL lse) { return isfinite(lse) && fabs((double)lse) > 256; }

// Sets, for coarse rows, max to the true maximum and sum to 1 / sum of exp(score - max), as the forward kernel had them.
static void FN(grad_sum_again)(const Attn *a, FN(AttnWorker) * w, const QBlock *qb, const REAL *q, const REAL *key,
                               const REAL *lse) {
    REAL c = (REAL)((FN(attention_raw)(a) ? a->scale : 1) * LOG2E);
    for (int64_t r = 0; r < qb->n; r++)
        if (FN(coarse_row)(lse[r])) w->max[r] = -(REAL)INFINITY, w->sum[r] = 0;
    BlockVerdict verdict;
    for (int64_t kb = 0; (kb = predicate_next(&w->pred, kb, &verdict)) < a->pred.nblock; kb++) {
        int64_t k0 = kb * a->kblock, nk = min_i64(a->kblock, a->nk - k0);
        if (verdict.visible == PRED_MIXED) predicate_trim(&w->pred, &k0, &nk);
        predicate_block(&w->pred, k0, nk, verdict);
        FN(tile_pack_transposed)(w->keys, key + k0 * a->dim, a->dim, a->dim, nk);
        FN(tile_gemm)(false, qb->n, nk, a->dim, q, a->dim, w->keys, false, w->s, a->kblock);
        for (int64_t r = 0; r < qb->n; r++) {
            REAL *s = w->s + r * a->kblock;
            const uint8_t *visible;
            const void *bias;
            if (!FN(coarse_row)(lse[r])) continue;
            predicate_row(&w->pred, qb->q + r, &visible, &bias);
            FN(score_row)(a, s, nk, visible, bias, NULL);
            REAL max = FN(row_max)(s, nk);
            if (!(max > w->max[r])) max = w->max[r];
            if (max == -(REAL)INFINITY) continue;
            if (w->sum[r] != 0) w->sum[r] *= exp2((double)(w->max[r] - max) * (double)c);
            w->max[r] = max;
            w->sum[r] += (double)FN(row_exp)(s, nk, max, c);
        }
    }
    for (int64_t r = 0; r < qb->n; r++)
        if (FN(coarse_row)(lse[r])) w->sum[r] = 1 / w->sum[r];
}

// Row r: products s -> P (as dV wants it), dp -> dS.
static void FN(grad_row)(const Attn *a, FN(AttnWorker) * w, const QBlock *qb, int64_t r, int64_t nk, REAL lse,
                         int64_t score_index) {
    REAL *s = w->s + r * a->kblock, *dp = w->dp + r * a->kblock;
    const uint8_t *visible;
    const void *bias;
    bool uniform = FN(uniform_row)(a, lse), raw = FN(attention_raw)(a);
    predicate_row(&w->pred, qb->q + r, &visible, &bias);
    FN(score_row)(a, s, nk, uniform ? NULL : visible, bias, w->slope);
    REAL c = (REAL)((raw ? a->scale : 1) * LOG2E), scale = (REAL)a->scale;
    if (uniform)
        for (int64_t i = 0; i < nk; i++) s[i] = 0;
    REAL max = uniform ? (REAL)(log2((double)a->nk) / (double)c) : w->max[r];
    if (a->dropout > 0) {
        for (int64_t i = 0; i < nk; i++) w->keep[i] = 1;
        FN(drop_row)(a, score_index + (qb->q + r) * a->k->global[2], w->keep, nk);
        for (int64_t i = 0; i < nk; i++) dp[i] *= w->keep[i];
    }
    FN(row_grad)(s, dp, nk, max, c, w->delta[r], scale);
    if (FN(coarse_row)(lse))
        for (int64_t i = 0; i < nk; i++) s[i] *= (REAL)w->sum[r], dp[i] *= (REAL)w->sum[r];
    if (uniform && a->masked_row == 3)
        for (int64_t i = 0; i < nk; i++) dp[i] = 0;
    if (a->softcap != 0)
        for (int64_t i = 0; i < nk; i++) dp[i] *= w->slope[i];
    if (a->dropout > 0)
        for (int64_t i = 0; i < nk; i++) s[i] *= w->keep[i];
}

// One block of queries of one head: adds to dk, dv [nk][..] of its KV head, writes its dq.
static void FN(grad_qblock)(const FN(GradJob) * j, FN(AttnWorker) * w, int64_t b, int64_t h, QBlock qb, REAL *dk, REAL *dv) {
    const Attn *a = &j->a;
    int64_t D = a->dim, Dv = a->dim_v, bh = b * a->heads + h, kv = b * a->kv_heads + attn_kv_head(a, h),
            row = bh * a->nq + qb.row;
    const REAL *q = (const REAL *)a->q->data + row * D, *o = j->o + row * Dv, *dout = j->dout + row * Dv, *lse = j->lse + row;
    const REAL *key = (const REAL *)a->k->data + kv * a->nk * D, *v = (const REAL *)a->v->data + kv * a->nk * Dv;
    REAL *dq = j->dq + row * D;
    bool raw = FN(attention_raw)(a), uniform = false, coarse = false, first = true;
    REAL c = (REAL)((raw ? a->scale : 1) * LOG2E);
    int64_t score_index = attn_score_index(a, b, h, 0);
    for (int64_t r = 0; r < qb.n; r++) {
        w->delta[r] = FN(row_dot)(dout + r * Dv, o + r * Dv, Dv);
        w->max[r] = lse[r] == -(REAL)INFINITY ? (REAL)INFINITY : (REAL)((double)lse[r] / (raw ? a->scale : 1));
        uniform |= FN(uniform_row)(a, lse[r]);
        coarse |= FN(coarse_row)(lse[r]);
    }
    FN(tile_pack)(w->q, q, D, qb.n, D);
    FN(tile_pack)(w->dout, dout, Dv, qb.n, Dv);
    predicate_queries(&w->pred, attn_global_batch(a, b), attn_global_head(a, h), qb.q, qb.q + qb.n);
    if (coarse) FN(grad_sum_again)(a, w, &qb, q, key, lse);
    BlockVerdict verdict;
    for (int64_t kb = 0;; kb++) {
        if (!uniform) kb = predicate_next(&w->pred, kb, &verdict);
        if (kb >= a->pred.nblock) break;
        int64_t k0 = kb * a->kblock, nk = min_i64(a->kblock, a->nk - k0);
        if (uniform) {  // some row attends to every key, whatever the predicate says
            verdict = predicate_keys(&w->pred, k0, nk);
            if (verdict.visible == PRED_NONE) verdict.visible = PRED_MIXED;
        } else if (verdict.visible == PRED_MIXED) {
            predicate_trim(&w->pred, &k0, &nk);
        }
        predicate_block(&w->pred, k0, nk, verdict);
        FN(tile_pack_transposed)(w->keys, key + k0 * D, D, D, nk);
        FN(tile_pack_transposed)(w->values, v + k0 * Dv, Dv, Dv, nk);
        FN(tile_pack)(w->keys_n, key + k0 * D, D, nk, D);
        FN(tile_gemm)(false, qb.n, nk, D, q, D, w->keys, false, w->s, a->kblock);
        FN(tile_gemm)(false, qb.n, nk, Dv, dout, Dv, w->values, false, w->dp, a->kblock);
        if (raw && !w->pred.need_visible && a->dropout == 0 && !uniform && !coarse)
            for (int64_t r = 0; r < qb.n; r++)
                FN(row_grad)(w->s + r * a->kblock, w->dp + r * a->kblock, nk, w->max[r], c, w->delta[r], (REAL)a->scale);
        else
            for (int64_t r = 0; r < qb.n; r++) FN(grad_row)(a, w, &qb, r, nk, lse[r], score_index + k0);
        FN(tile_gemm)(true, nk, Dv, qb.n, w->s, a->kblock, w->dout, true, dv + k0 * Dv, Dv);
        FN(tile_gemm)(true, nk, D, qb.n, w->dp, a->kblock, w->q, true, dk + k0 * D, D);
        FN(tile_gemm)(false, qb.n, D, nk, w->dp, a->kblock, w->keys_n, !first, dq, D);
        first = false;
    }
    if (first) memset(dq, 0, (size_t)(qb.n * D) * sizeof *dq);
}

static void FN(grad_task)(void *ctx, int64_t task, int worker) {
    const FN(GradJob) *j = ctx;
    const Attn *a = &j->a;
    const GradSplit *sp = &j->split;
    bool whole = task < sp->nwhole;
    int64_t part = task - sp->nwhole, slice = whole ? task : sp->nwhole + part / sp->nlane, nlane = whole ? 1 : sp->nlane;
    int64_t lane = whole ? 0 : part % sp->nlane, b = slice / a->kv_heads, kvh = slice % a->kv_heads;
    REAL *dk = whole ? j->dk + slice * a->nk * a->dim : j->partial + part * a->nk * (a->dim + a->dim_v);
    REAL *dv = whole ? j->dv + slice * a->nk * a->dim_v : dk + a->nk * a->dim;
    memset(dk, 0, (size_t)(a->nk * a->dim) * sizeof *dk);
    memset(dv, 0, (size_t)(a->nk * a->dim_v) * sizeof *dv);
    FN(AttnWorker) w;
    FN(attention_worker_at)(&w, j->args, a, j->memory + j->worker_nbytes * (size_t)worker);
    int64_t item = 0;
    for (int64_t h = 0; h < a->heads; h++) {
        if (attn_kv_head(a, h) != kvh) continue;
        // There and back over the lanes: under a causal mask, block i costs i.
        for (int64_t i = 0; i < a->nqblock; i++, item++) {
            int64_t at = item % (2 * nlane);
            if ((at < nlane ? at : 2 * nlane - 1 - at) == lane) FN(grad_qblock)(j, &w, b, h, attn_qblock(a, i), dk, dv);
        }
    }
}

// Keys [begin, end) of all split slices: the lanes' partial dk, dv added in order.
static void FN(grad_add_lanes)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const FN(GradJob) *j = ctx;
    const Attn *a = &j->a;
    int64_t D = a->dim, Dv = a->dim_v, lane_len = a->nk * (D + Dv);
    for (int64_t i = begin; i < end; i++) {
        int64_t s = i / a->nk, key = i % a->nk, slice = j->split.nwhole + s;
        const REAL *pk = j->partial + s * j->split.nlane * lane_len + key * D,
                   *pv = j->partial + s * j->split.nlane * lane_len + a->nk * D + key * Dv;
        REAL *dk = j->dk + (slice * a->nk + key) * D, *dv = j->dv + (slice * a->nk + key) * Dv;
        memcpy(dk, pk, (size_t)D * sizeof *dk), memcpy(dv, pv, (size_t)Dv * sizeof *dv);
        for (int64_t l = 1; l < j->split.nlane; l++) {
            for (int64_t c = 0; c < D; c++) dk[c] += pk[l * lane_len + c];
            for (int64_t c = 0; c < Dv; c++) dv[c] += pv[l * lane_len + c];
        }
    }
}

Status FN(cpu_attention_grad)(const KernelArgs *k, Diag *d) {
    FN(GradJob)
    j = {.args = k,
         .o = k->in[3].data,
         .lse = k->in[4].data,
         .dout = k->in[5].data,
         .dq = k->out[0].data,
         .dk = k->out[1].data,
         .dv = k->out[2].data};
    TRY(attn_bind(&j.a, k, REAL_BITS == 32 ? DT_F32 : DT_F64, k->scratch, d));
    int nthreads = pool_nthreads(k->pool);
    j.split = grad_split(k->in, nthreads);
    j.worker_nbytes = FN(attention_worker_nbytes)(k->node, k->in);
    j.memory = (char *)k->scratch + attn_shared_nbytes(k->node, k->in);
    j.partial = (REAL *)(j.memory + j.worker_nbytes * (size_t)nthreads);
    tasks_run(k->pool, FN(grad_task), &j, j.split.nwhole + j.split.nsplit * j.split.nlane);
    if (j.split.nsplit > 0) pool_run(k->pool, FN(grad_add_lanes), &j, j.split.nsplit * j.a.nk, 1);
    return ST_OK;
}
