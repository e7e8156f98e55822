// The forward kernel of attention.c for one float type (see real.h).
#include "backend/cpu/real.h"

// A worker's memory. [b]: ATTN_QBLOCK, [k]: kblock.
typedef struct FN(AttnWorker) {
    PredWorker pred;
    REAL *s, *dp;  // [b][k] scores, then probabilities; backward: also their gradients
    REAL *keys, *values;  // packed for q k^T and p v; backward: for do v^T
    REAL *keys_n, *q, *dout;  // backward: packed for ds k, ds^T q, p^T do
    REAL *max;  // [b] in the units of s; backward: log-sum-exp
    double *sum;  // [b]
    REAL *delta;  // [b] backward: rowsum(do * o)
    REAL *slope, *keep;  // [k] backward: d(score)/d(scaled product) of the soft-cap, dropout factors
} FN(AttnWorker);

// Lays out a worker's memory from `at` (NULL: only counts) and returns its size.
static size_t FN(attention_worker)(FN(AttnWorker) * w, const Node *n, const Operand *in, char *at) {
    bool grad = n->op == OP_ATTENTION_GRAD;
    int64_t kb = attn_kblock(n, in), b = ATTN_QBLOCK, D = in[1].dim[3], Dv = in[2].dim[3];
    size_t used = 0;
    struct {
        REAL **p;
        int64_t len;
    } part[] = {{&w->s, b * kb},
                {&w->keys, FN(tile_packed_len)(D, kb)},
                {&w->values, grad ? FN(tile_packed_len)(Dv, kb) : FN(tile_packed_len)(kb, Dv)},
                {&w->max, b},
                {&w->dp, grad ? b * kb : 0},
                {&w->keys_n, grad ? FN(tile_packed_len)(kb, D) : 0},
                {&w->q, grad ? FN(tile_packed_len)(b, D) : 0},
                {&w->dout, grad ? FN(tile_packed_len)(b, Dv) : 0},
                {&w->delta, grad ? b : 0},
                {&w->slope, grad ? kb : 0},
                {&w->keep, grad ? kb : 0}};
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        if (at) *part[i].p = (REAL *)(at + used);
        used += round_bytes((size_t)part[i].len * sizeof(REAL));
    }
    if (at) w->sum = (double *)(at + used);
    used += round_bytes((size_t)b * sizeof(double));
    return used;
}

static size_t FN(attention_worker_nbytes)(const Node *n, const Operand *in) {
    FN(AttnWorker) w;
    return FN(attention_worker)(&w, n, in, NULL) + predicate_worker_nbytes(node_prog(n, ATTR_PROG), attn_kblock(n, in));
}

static void FN(attention_worker_at)(FN(AttnWorker) * w, const KernelArgs *k, const Attn *a, char *memory) {
    size_t used = FN(attention_worker)(w, k->node, k->in, memory);
    predicate_worker(&w->pred, &a->pred, memory + used);
}

// Scores stay as the product q.k, the scale going into the exponential, if nothing happens to them but masking.
static bool FN(attention_raw)(const Attn *a) { return a->softcap == 0 && a->scale > 0 && a->pred.bias < 0; }

// Row of products s[n] -> scores: scale, soft-cap, bias; -inf where the key is not seen. slope (if not NULL): its derivative.
static void FN(score_row)(const Attn *a, REAL *s, int64_t n, const uint8_t *visible, const REAL *bias, REAL *slope) {
    if (!FN(attention_raw)(a)) {
        REAL scale = (REAL)a->scale, cap = (REAL)a->softcap;
        if (a->softcap != 0) {
            REAL inner = (REAL)(a->scale / a->softcap);
            for (int64_t i = 0; i < n; i++) {
                REAL t = FN(vtanh)(s[i] * inner);
                s[i] = cap * t;
                if (slope) slope[i] = 1 - t * t;
            }
        } else {
            for (int64_t i = 0; i < n; i++) s[i] *= scale;
        }
        if (bias)
            for (int64_t i = 0; i < n; i++) s[i] += bias[i];
    }
    if (visible)
        for (int64_t i = 0; i < n; i++) s[i] = visible[i] ? s[i] : -(REAL)INFINITY;
}

// Multiplies by 1/(1-p) or 0: the same numbers whoever asks (base/random.h).
static void FN(drop_row)(const Attn *a, int64_t score_index, REAL *p, int64_t n) {
    REAL keep = (REAL)(1 / (1 - a->dropout));
    for (int64_t i = 0; i < n; i++) p[i] = random_at(a->dropout_key, score_index + i) >= a->dropout ? p[i] * keep : 0;
}

static bool FN(has_nan)(const REAL *s, int64_t n) {
    bool nan = false;
    for (int64_t i = 0; i < n; i++) nan |= s[i] != s[i];
    return nan;
}

typedef struct FN(AttnJob) {
    const KernelArgs *args;
    Attn a;
    REAL *o, *lse;
    char *memory;  // of the workers
    size_t worker_nbytes;
} FN(AttnJob);

// Scores of one block -> probabilities relative to the running maximum; rows of o so far are brought to the new maximum.
static void FN(softmax_block)(const Attn *a, FN(AttnWorker) * w, const QBlock *qb, int64_t nk, REAL *o, int64_t score_index) {
    bool raw = FN(attention_raw)(a), plain = raw && !w->pred.need_visible;
    REAL c = (REAL)((raw ? a->scale : 1) * LOG2E);
    for (int64_t r = 0; r < qb->n; r++) {
        REAL *s = w->s + r * a->kblock;
        if (!plain) {
            const uint8_t *visible;
            const void *bias;
            predicate_row(&w->pred, qb->q + r, &visible, &bias);
            FN(score_row)(a, s, nk, visible, bias, NULL);
        }
        REAL max = FN(row_max)(s, nk);
        if (max <= w->max[r]) {
            max = w->max[r];
        } else if (w->sum[r] != 0) {
            REAL f = (REAL)exp2((double)(w->max[r] - max) * (double)c);
            for (int64_t i = 0; i < a->dim_v; i++) o[r * a->dim_v + i] *= f;
            w->sum[r] *= (double)f;
        }
        if (max == -(REAL)INFINITY) {  // nothing seen yet; the maximum passes over NaN
            if (FN(has_nan)(s, nk)) w->sum[r] = NAN;
            memset(s, 0, (size_t)nk * sizeof *s);
            continue;
        }
        w->max[r] = max;
        w->sum[r] += (double)FN(row_exp)(s, nk, max, c);
        if (a->dropout > 0) FN(drop_row)(a, score_index + (qb->q + r) * a->k->global[2], s, nk);
    }
}

// Rows that saw no key, when such rows attend to all keys alike: o is 0 so far.
static void FN(uniform_rows)(const Attn *a, FN(AttnWorker) * w, const QBlock *qb, const REAL *v, REAL *o, int64_t score_index) {
    for (int64_t k0 = 0; k0 < a->nk; k0 += a->kblock) {
        int64_t nk = min_i64(a->kblock, a->nk - k0);
        for (int64_t r = 0; r < qb->n; r++) {
            REAL *s = w->s + r * a->kblock, p = w->sum[r] == 0 ? (REAL)(1 / (double)a->nk) : 0;
            for (int64_t i = 0; i < nk; i++) s[i] = p;
            if (a->dropout > 0) FN(drop_row)(a, score_index + (qb->q + r) * a->k->global[2] + k0, s, nk);
        }
        FN(tile_pack)(w->values, v + k0 * a->dim_v, a->dim_v, nk, a->dim_v);
        FN(tile_gemm)(false, qb->n, a->dim_v, nk, w->s, a->kblock, w->values, true, o, a->dim_v);
    }
}

static void FN(finish_rows)(const Attn *a, FN(AttnWorker) * w, const QBlock *qb, const REAL *v, REAL *o, REAL *lse,
                            int64_t score_index) {
    double unit = FN(attention_raw)(a) ? a->scale : 1;
    bool blind = false;
    for (int64_t r = 0; r < qb->n; r++) {
        REAL *row = o + r * a->dim_v;
        if (w->sum[r] == 0) {
            blind = true;
            for (int64_t i = 0; i < a->dim_v; i++) row[i] = a->masked_row == 1 ? (REAL)NAN : 0;
            lse[r] = a->masked_row == 1 ? (REAL)NAN : -(REAL)INFINITY;
            continue;
        }
        REAL f = (REAL)(1 / w->sum[r]);
        for (int64_t i = 0; i < a->dim_v; i++) row[i] *= f;
        lse[r] = (REAL)((double)w->max[r] * unit + log(w->sum[r]));
    }
    if (blind && a->masked_row >= 2) FN(uniform_rows)(a, w, qb, v, o, score_index);
}

// One task: one block of queries of one head, against all the keys that they see.
static void FN(attention_task)(void *ctx, int64_t task, int worker) {
    const FN(AttnJob) *j = ctx;
    const Attn *a = &j->a;
    // Late blocks first: under a causal mask they are the long ones.
    QBlock qb = attn_qblock(a, a->nqblock - 1 - task % a->nqblock);
    int64_t bh = task / a->nqblock, b = bh / a->heads, h = bh % a->heads, kv = b * a->kv_heads + attn_kv_head(a, h);
    const REAL *q = (const REAL *)a->q->data + (bh * a->nq + qb.row) * a->dim;
    const REAL *key = (const REAL *)a->k->data + kv * a->nk * a->dim, *v = (const REAL *)a->v->data + kv * a->nk * a->dim_v;
    REAL *o = j->o + (bh * a->nq + qb.row) * a->dim_v;
    int64_t score_index = attn_score_index(a, b, h, 0);
    FN(AttnWorker) w;
    FN(attention_worker_at)(&w, j->args, a, j->memory + j->worker_nbytes * (size_t)worker);
    predicate_queries(&w.pred, attn_global_batch(a, b), attn_global_head(a, h), qb.q, qb.q + qb.n);
    for (int64_t r = 0; r < qb.n; r++) w.max[r] = -(REAL)INFINITY, w.sum[r] = 0;
    bool first = true;
    BlockVerdict verdict;
    for (int64_t kb = 0; (kb = predicate_next(&w.pred, kb, &verdict)) < a->pred.nblock; kb++) {
        int64_t k0 = kb * a->kblock, nk = min_i64(a->kblock, a->nk - k0);
        if (verdict.visible == PRED_MIXED) predicate_trim(&w.pred, &k0, &nk);
        predicate_block(&w.pred, k0, nk, verdict);
        FN(tile_pack_transposed)(w.keys, key + k0 * a->dim, a->dim, a->dim, nk);
        FN(tile_gemm)(false, qb.n, nk, a->dim, q, a->dim, w.keys, false, w.s, a->kblock);
        FN(softmax_block)(a, &w, &qb, nk, o, score_index + k0);
        FN(tile_pack)(w.values, v + k0 * a->dim_v, a->dim_v, nk, a->dim_v);
        FN(tile_gemm)(false, qb.n, a->dim_v, nk, w.s, a->kblock, w.values, !first, o, a->dim_v);
        first = false;
    }
    FN(finish_rows)(a, &w, &qb, v, o, j->lse + bh * a->nq + qb.row, score_index);
}

Status FN(cpu_attention)(const KernelArgs *k, Diag *d) {
    FN(AttnJob) j = {.args = k, .o = k->out[0].data, .lse = k->out[1].data};
    TRY(attn_bind(&j.a, k, REAL_BITS == 32 ? DT_F32 : DT_F64, k->scratch, d));
    j.memory = (char *)k->scratch + attn_shared_nbytes(k->node, k->in);
    j.worker_nbytes = FN(attention_worker_nbytes)(k->node, k->in);
    tasks_run(k->pool, FN(attention_task), &j, j.a.batch * j.a.heads * j.a.nqblock);
    return ST_OK;
}
