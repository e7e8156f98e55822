// Attention in blocks, after FlashAttention-2 (Dao 2023): scores exist only for ATTN_QBLOCK queries x kblock keys at a time, in a
// worker's cache. Blocks of keys that the predicate rules out are never touched. The forward keeps a running maximum and sum per
// row; the backward computes the probabilities again from the saved log-sum-exp.
#include "backend/cpu/attention.h"
#include <math.h>
#include <string.h>
#include "backend/cpu/attention_rows.h"
#include "backend/cpu/tasks.h"
#include "backend/cpu/vmath.h"
#include "base/containers.h"
#include "base/random.h"

#define LOG2E 1.44269504088896340736
#define LN2 0.69314718055994530942

static size_t round_bytes(size_t n) { return (n + 63) & ~(size_t)63; }

// ---- geometry ---------------------------------------------------------------------------------------------------------------
static int first_vec(const Node *n) { return n->op == OP_ATTENTION_GRAD ? 6 : 3; }

// Keys of a block, in whole register tiles: what a task touches again and again (scores, and packed keys and values) together
// stays within a core's second-level cache.
int64_t attn_kblock(const Node *n, const Operand *in) {
    int64_t dims = in[1].dim[3] + in[2].dim[3];
    if (n->op == OP_ATTENTION_GRAD) return dims <= 160 ? 144 : 96;
    return dims <= 160 ? 240 : dims <= 320 ? 192 : 96;
}

static int64_t count_qblocks(const Operand *q) {
    if (q->sdim != 2) return ceil_div(q->dim[2], ATTN_QBLOCK);
    int64_t n = 0;
    for (int s = 0; s < q->nspan; s++) n += ceil_div(q->span[s].end - q->span[s].begin, ATTN_QBLOCK);
    return n;
}

QBlock attn_qblock(const Attn *a, int64_t i) {
    const Operand *q = a->q;
    Span whole = {0, q->dim[2]};
    const Span *span = q->sdim == 2 ? q->span : &whole;
    int nspan = q->sdim == 2 ? q->nspan : 1;
    int64_t row = 0;
    for (int s = 0; s < nspan; s++) {
        int64_t len = span[s].end - span[s].begin, n = ceil_div(len, ATTN_QBLOCK);
        if (i < n) {
            int64_t at = i * ATTN_QBLOCK;
            return (QBlock){row + at, min_i64(ATTN_QBLOCK, len - at), span[s].begin + at};
        }
        i -= n, row += len;
    }
    CHECK(false, "no query block %lld", (long long)i);
}

// Global index of local element i of dim `dim`.
static int64_t global_index(const Operand *o, int dim, int64_t i) {
    if (o->sdim != dim) return i;
    for (int s = 0; s < o->nspan; s++) {
        int64_t len = o->span[s].end - o->span[s].begin;
        if (i < len) return o->span[s].begin + i;
        i -= len;
    }
    CHECK(false, "no local element %lld", (long long)i);
}

int64_t attn_global_batch(const Attn *a, int64_t b) { return global_index(a->q, 0, b); }
int64_t attn_global_head(const Attn *a, int64_t h) { return global_index(a->q, 1, h); }

int64_t attn_kv_head(const Attn *a, int64_t h) {
    int64_t want = attn_global_head(a, h) / a->group, base = 0;
    const Operand *k = a->k;
    if (k->sdim != 1) return want;
    for (int s = 0; s < k->nspan; base += k->span[s].end - k->span[s].begin, s++)
        if (want >= k->span[s].begin && want < k->span[s].end) return base + want - k->span[s].begin;
    CHECK(false, "KV head %lld is not on this rank", (long long)want);
}

int64_t attn_score_index(const Attn *a, int64_t b, int64_t h, int64_t q) {
    return ((attn_global_batch(a, b) * a->q->global[1] + attn_global_head(a, h)) * a->q->global[2] + q) * a->k->global[2];
}

size_t attn_shared_nbytes(const Node *n, const Operand *in) {
    int vec = first_vec(n);
    return round_bytes(predicate_nbytes(node_prog(n, ATTR_PROG), n->nin - vec, in + vec, in[1].dim[2], attn_kblock(n, in)));
}

Status attn_bind(Attn *a, const KernelArgs *k, DType real, void *memory, Diag *d) {
    const Operand *q = &k->in[0], *key = &k->in[1], *v = &k->in[2];
    int vec = first_vec(k->node);
    if (k->nin - vec > PRED_MAX_VEC)
        return diag_error(d, ST_UNSUPPORTED, "attention with %d mask vectors, at most %d; simplify the mask (%s)", k->nin - vec,
                          PRED_MAX_VEC, k->node->source ? k->node->source : "?");
    CHECK(q->sdim <= 2 && key->sdim <= 1 && v->sdim == key->sdim, "attention operands sharded on dims %d, %d, %d", q->sdim,
          key->sdim, v->sdim);
    *a = (Attn){.q = q, .k = key, .v = v};
    a->batch = q->dim[0], a->heads = q->dim[1], a->kv_heads = key->dim[1], a->nq = q->dim[2], a->nk = key->dim[2];
    a->dim = q->dim[3], a->dim_v = v->dim[3];
    a->group = max_i64(1, q->global[1] / max_i64(1, key->global[1]));
    a->kblock = attn_kblock(k->node, k->in);
    a->nqblock = count_qblocks(q);
    a->scale = node_float_or(k->node, ATTR_SCALE, 1 / sqrt((double)max_i64(1, a->dim)));
    a->softcap = node_float_or(k->node, ATTR_SOFTCAP, 0);
    a->dropout = node_float_or(k->node, ATTR_DROPOUT, 0);
    a->masked_row = (int)node_int_or(k->node, ATTR_MASKED_ROW, 0);
    a->dropout_key = random_key(k->run_seed, k->step, node_int_or(k->node, ATTR_SEED, 0));
    predicate_bind(&a->pred, node_prog(k->node, ATTR_PROG), k->nin - vec, k->in + vec, real, q->global[0], q->global[1],
                   q->global[2], a->nk, a->kblock, memory);
    return ST_OK;
}

// How the backward's slices (batch entries x KV heads) are given to workers.
typedef struct GradSplit {
    int64_t nwhole, nsplit;  // slices done by one task each; slices done by nlane tasks each
    int64_t nlane;
} GradSplit;

static GradSplit grad_split(const Operand *in, int nthreads) {
    int64_t nslice = in[1].dim[0] * in[1].dim[1],
            items = count_qblocks(&in[0]) * max_i64(1, in[0].dim[1] / max_i64(1, in[1].dim[1]));
    GradSplit s = {.nsplit = nslice % nthreads};
    s.nlane = s.nsplit > 0 ? min_i64(ceil_div(nthreads, s.nsplit), items) : 1;
    if (s.nlane <= 1) s.nsplit = 0, s.nlane = 1;
    s.nwhole = nslice - s.nsplit;
    return s;
}

// ---- kernels ----------------------------------------------------------------------------------------------------------------
#ifdef __AVX__
#define TILE_VECTOR_BYTES 32
#else
#define TILE_VECTOR_BYTES 16
#endif
enum { TILE_ROWS = 6 };  // with two vectors of columns: as many sums as fit 16 vector registers

static void tile_transpose8_f64(double t[8][8]) {
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < i; j++) {
            double x = t[i][j];
            t[i][j] = t[j][i], t[j][i] = x;
        }
}

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
static inline void tile_transpose8_f32(float t[8][8]) {
    typedef float V8 __attribute__((vector_size(32)));
    V8 r[8], u[8];
    memcpy(r, t, sizeof r);
    for (int i = 0; i < 8; i += 4) {  // pairs of rows interleaved, then pairs of pairs: columns of 4 in each half
        V8 a = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13), b = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
        V8 c = SHUFFLE(r[i + 2], r[i + 3], 0, 8, 1, 9, 4, 12, 5, 13), e = SHUFFLE(r[i + 2], r[i + 3], 2, 10, 3, 11, 6, 14, 7, 15);
        u[i] = SHUFFLE(a, c, 0, 1, 8, 9, 4, 5, 12, 13), u[i + 1] = SHUFFLE(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
        u[i + 2] = SHUFFLE(b, e, 0, 1, 8, 9, 4, 5, 12, 13), u[i + 3] = SHUFFLE(b, e, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    memcpy(t, r, sizeof r);
}

#define REAL_BITS 32
#include "backend/cpu/real.h"
#include "backend/cpu/attention_tile.h"
#include "backend/cpu/attention_impl.h"
#include "backend/cpu/attention_grad_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/real.h"
#include "backend/cpu/attention_tile.h"
#include "backend/cpu/attention_impl.h"
#include "backend/cpu/attention_grad_impl.h"
#undef REAL_BITS

static size_t real_nbytes(const Operand *o) { return (size_t)dtype_nbytes(o->dtype); }

size_t cpu_attention_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)out;
    size_t worker = real_nbytes(in) == 4 ? attention_worker_nbytes_f32(n, in) : attention_worker_nbytes_f64(n, in);
    return attn_shared_nbytes(n, in) + worker * (size_t)nthreads;
}

size_t cpu_attention_grad_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)out;
    size_t worker = real_nbytes(in) == 4 ? attention_worker_nbytes_f32(n, in) : attention_worker_nbytes_f64(n, in);
    GradSplit s = grad_split(in, nthreads);
    size_t lane = (size_t)(in[1].dim[2] * (in[1].dim[3] + in[2].dim[3])) * real_nbytes(in);
    return attn_shared_nbytes(n, in) + worker * (size_t)nthreads + lane * (size_t)(s.nsplit * s.nlane);
}
