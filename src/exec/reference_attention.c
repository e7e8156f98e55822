// Reference: attention and its gradient, one query row at a time, by the textbook.
//   raw = scale * q.k;  s = softcap ? softcap*tanh(raw/softcap) : raw;  s += bias;  p = exp(s - lse);  o = sum_k p*keep*v
// keep is 1/(1-dropout) or 0 by a random number of (b, h, q, k). A query that sees no key follows `masked_row`.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/random.h"
#include "exec/reference.h"

typedef struct Attn {
    const RefNode *r;
    const double *q, *k, *v;
    int64_t B, H, Hkv, Sq, Sk, D, Dv;
    double scale, softcap, dropout;
    int64_t seed, masked_row;
    const Program *prog;
    int first_vec;         // operand index of vector slot 0
    bool causal;           // sdpa only
    const double *mask;    // sdpa only
    const Shape *mask_shape;
    bool mask_bool;
    int64_t b, h, i, j;    // the point at hand: batch, head, query, key
    double *reg, *p, *keep, *slope;  // program registers; per key: probability, dropout factor, d(s)/d(raw)
} Attn;

static double attn_leaf(void *ctx, const Instr *s) {
    const Attn *a = ctx;
    switch (s->code) {
    case PROG_INDEX_B: return (double)a->b;
    case PROG_INDEX_H: return (double)a->h;
    case PROG_INDEX_Q: return (double)a->i;
    case PROG_INDEX_K: return (double)a->j;
    default: break;
    }
    CHECK(s->code == PROG_VEC_Q || s->code == PROG_VEC_K, "leaf %d in an attention program", s->code);
    int slot = a->first_vec + s->a;
    int64_t index[3] = {a->b, a->h, s->code == PROG_VEC_Q ? a->i : a->j};
    Shape full = SHAPE(a->B, a->H, s->code == PROG_VEC_Q ? a->Sq : a->Sk);
    return a->r->in[slot][ref_broadcast_offset(ref_in_shape(a->r, slot), &full, index)];
}

static Status attn_visible(Attn *a, bool *visible, double *bias, Diag *d) {
    *visible = !a->causal || a->j <= a->i;
    *bias = 0;
    if (a->mask) {
        int64_t index[4] = {a->b, a->h, a->i, a->j};
        Shape full = SHAPE(a->B, a->H, a->Sq, a->Sk);
        double m = a->mask[ref_broadcast_offset(a->mask_shape, &full, index)];
        if (a->mask_bool) *visible &= m != 0;
        else *bias = m;
    }
    if (!a->prog) return ST_OK;
    TRY(ref_program(a->prog, attn_leaf, a, a->reg, d));
    if (a->prog->out[0] >= 0) *visible &= a->reg[a->prog->out[0]] != 0;
    if (a->prog->out[1] >= 0) *bias += a->reg[a->prog->out[1]];
    return ST_OK;
}

// Fills p (scores first, -inf where masked), keep and slope of the row; *seen: some key is visible.
static Status attn_row(Attn *a, bool *seen, Diag *d) {
    uint64_t key = random_key(a->r->run_seed, a->r->step, a->seed);
    const double *q = a->q + ((a->b * a->H + a->h) * a->Sq + a->i) * a->D;
    const double *k = a->k + (a->b * a->Hkv + a->h / (a->H / a->Hkv)) * a->Sk * a->D;
    *seen = false;
    for (a->j = 0; a->j < a->Sk; a->j++) {
        int64_t j = a->j;
        double dot = 0, bias, t = 0;
        bool visible;
        TRY(attn_visible(a, &visible, &bias, d));
        for (int64_t e = 0; e < a->D; e++) dot += q[e] * k[j * a->D + e];
        dot *= a->scale;
        if (a->softcap > 0) t = tanh(dot / a->softcap), dot = a->softcap * t;
        a->slope[j] = 1 - t * t;
        a->p[j] = visible ? dot + bias : -INFINITY;
        *seen |= a->p[j] != -INFINITY;
        a->keep[j] = 1;
        if (a->dropout > 0) {
            double u = random_at(key, ((a->b * a->H + a->h) * a->Sq + a->i) * a->Sk + j);
            a->keep[j] = u >= a->dropout ? 1 / (1 - a->dropout) : 0;
        }
    }
    return ST_OK;
}

// p of a row that sees no key.
static void attn_unseen(Attn *a) {
    for (int64_t j = 0; j < a->Sk; j++) a->p[j] = a->masked_row >= 2 ? 1.0 / (double)a->Sk : a->masked_row == 1 ? NAN : 0;
}

static Status attn_forward(Attn *a, double *o, double *lse, Diag *d) {
    for (a->b = 0; a->b < a->B; a->b++)
        for (a->h = 0; a->h < a->H; a->h++)
            for (a->i = 0; a->i < a->Sq; a->i++) {
                int64_t row = (a->b * a->H + a->h) * a->Sq + a->i;
                const double *v = a->v + (a->b * a->Hkv + a->h / (a->H / a->Hkv)) * a->Sk * a->Dv;
                double max = -INFINITY, sum = 0, log_sum;
                bool seen;
                TRY(attn_row(a, &seen, d));
                for (int64_t j = 0; j < a->Sk; j++)
                    if (a->p[j] > max) max = a->p[j];
                for (int64_t j = 0; seen && j < a->Sk; j++) sum += exp(a->p[j] - max);
                log_sum = seen ? max + log(sum) : a->masked_row == 1 ? NAN : -INFINITY;
                for (int64_t j = 0; seen && j < a->Sk; j++) a->p[j] = exp(a->p[j] - log_sum);
                if (!seen) attn_unseen(a);
                if (lse) lse[row] = log_sum;
                for (int64_t e = 0; e < a->Dv; e++) {
                    double acc = 0;
                    for (int64_t j = 0; j < a->Sk; j++) acc += a->p[j] * a->keep[j] * v[j * a->Dv + e];
                    o[row * a->Dv + e] = acc;
                }
            }
    return ST_OK;
}

// One row's share of the gradient; p comes from the saved lse.
static void attn_row_grad(Attn *a, bool seen, const double *o, double lse, const double *go, double *dq, double *dk, double *dv) {
    int64_t row = (a->b * a->H + a->h) * a->Sq + a->i, kv = (a->b * a->Hkv + a->h / (a->H / a->Hkv)) * a->Sk;
    double delta = 0;
    for (int64_t e = 0; e < a->Dv; e++) delta += go[e] * o[e];
    for (int64_t j = 0; seen && j < a->Sk; j++) a->p[j] = exp(a->p[j] - lse);
    if (!seen) attn_unseen(a);
    for (int64_t j = 0; j < a->Sk; j++) {
        double dp = 0, ds;
        for (int64_t e = 0; e < a->Dv; e++) {
            dp += go[e] * a->v[(kv + j) * a->Dv + e];
            dv[(kv + j) * a->Dv + e] += a->p[j] * a->keep[j] * go[e];
        }
        ds = a->p[j] * (dp * a->keep[j] - delta) * a->slope[j] * a->scale;
        if (a->p[j] == 0) continue;  // 0 * inf is not a gradient
        if (!seen && a->masked_row == 3) continue;  // its scores were replaced by a number
        for (int64_t e = 0; e < a->D; e++) {
            dq[row * a->D + e] += ds * a->k[(kv + j) * a->D + e];
            dk[(kv + j) * a->D + e] += ds * a->q[row * a->D + e];
        }
    }
}

static Status attn_backward(Attn *a, Diag *d) {
    double *const *out = a->r->out;
    const double *o = a->r->in[3], *lse = a->r->in[4], *go = a->r->in[5];
    for (int j = 0; j < 3; j++) memset(out[j], 0, sizeof(double) * (size_t)shape_numel(ref_out_shape(a->r, j)));
    for (a->b = 0; a->b < a->B; a->b++)
        for (a->h = 0; a->h < a->H; a->h++)
            for (a->i = 0; a->i < a->Sq; a->i++) {
                int64_t row = (a->b * a->H + a->h) * a->Sq + a->i;
                bool seen;
                TRY(attn_row(a, &seen, d));
                attn_row_grad(a, seen, o + row * a->Dv, lse[row], go + row * a->Dv, out[0], out[1], out[2]);
            }
    return ST_OK;
}

static Attn attn_of(const RefNode *r) {
    const Shape *q = ref_in_shape(r, 0), *k = ref_in_shape(r, 1), *v = ref_in_shape(r, 2);
    Attn a = {.r = r, .q = r->in[0], .k = r->in[1], .v = r->in[2]};
    a.B = q->dim[0], a.H = q->dim[1], a.Sq = q->dim[2], a.D = q->dim[3];
    a.Hkv = k->dim[1], a.Sk = k->dim[2], a.Dv = v->dim[3];
    a.scale = node_float_or(r->n, ATTR_SCALE, 1 / sqrt((double)a.D));
    a.softcap = node_float_or(r->n, ATTR_SOFTCAP, 0);
    a.dropout = node_float_or(r->n, ATTR_DROPOUT, 0);
    a.seed = node_int_or(r->n, ATTR_SEED, 0);
    a.masked_row = node_int_or(r->n, ATTR_MASKED_ROW, 0);
    a.first_vec = r->n->op == OP_ATTENTION ? 3 : 6;
    if (r->n->op != OP_SDPA) {
        a.prog = node_prog(r->n, ATTR_PROG);
        return a;
    }
    a.causal = node_int_or(r->n, ATTR_CAUSAL, 0) != 0;
    if (r->n->nin > 3) a.mask = r->in[3], a.mask_shape = ref_in_shape(r, 3), a.mask_bool = ref_in_dtype(r, 3) == DT_BOOL;
    return a;
}

static Status ref_attention(const RefNode *r, Diag *d) {
    Attn a = attn_of(r);
    size_t nreg = a.prog ? (size_t)a.prog->ninstr : 0;
    double *scratch = calloc(nreg + 3 * (size_t)a.Sk + 1, sizeof *scratch);
    if (!scratch) return diag_error(d, ST_MEMORY, "out of memory");
    a.p = scratch, a.keep = a.p + a.Sk, a.slope = a.keep + a.Sk, a.reg = a.slope + a.Sk;
    Status st;
    if (r->n->op == OP_ATTENTION_GRAD) st = attn_backward(&a, d);
    else st = attn_forward(&a, r->out[0], r->n->op == OP_ATTENTION ? r->out[1] : NULL, d);
    free(scratch);
    return st;
}

RefFn ref_attention_fn(OpKind op) {
    return op == OP_SDPA || op == OP_ATTENTION || op == OP_ATTENTION_GRAD ? ref_attention : NULL;
}
