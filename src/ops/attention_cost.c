// What attention costs one rank: matrix products over the visible query-key pairs. Kernels skip blocks that the mask rules out,
// so a causal mask halves the work, a window makes it linear in S, and under gather-kv the rank with the last rows has the most
// to do: the estimate evaluates the mask at sample points of the rank's own rows.
#include "ops/attention.h"

enum {
    ROW_SAMPLES = 8,     // query rows per estimate
    KEY_SAMPLES = 16,    // evenly spaced keys per row
    NEAR_SAMPLES = 48,   // keys at +-2^i from the row, so that a narrow window is seen at any length
    MAX_INSTR = 512,     // longer programs count as all visible
    KEY_BLOCK = 64,      // kernels work on whole blocks: part of one more per row
    FORWARD_LAUNCHES = 1, BACKWARD_LAUNCHES = 4,  // kernels of one group of heads
};

typedef struct Keys {
    int n;
    int64_t at[KEY_SAMPLES + 2 * NEAR_SAMPLES + 3];  // ascending
} Keys;

static int compare_i64(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void keys_add(Keys *s, int64_t k, int64_t nkeys) {
    if (k >= 0 && k < nkeys) s->at[s->n++] = k;
}

static void keys_near_row(Keys *s, int64_t q, int64_t nkeys) {
    s->n = 0;
    for (int64_t i = 0; i < KEY_SAMPLES; i++) keys_add(s, nkeys / KEY_SAMPLES * i + nkeys % KEY_SAMPLES * i / KEY_SAMPLES, nkeys);
    keys_add(s, nkeys - 1, nkeys);
    keys_add(s, q, nkeys);
    for (int i = 0; i < NEAR_SAMPLES && (INT64_C(1) << i) < nkeys; i++) {
        keys_add(s, q - (INT64_C(1) << i), nkeys);
        keys_add(s, q + (INT64_C(1) << i), nkeys);
    }
    qsort(s->at, (size_t)s->n, sizeof *s->at, compare_i64);
}

static bool visible_at(const Program *p, ProgPoint at) {
    double value[MAX_INSTR];
    bool known[MAX_INSTR];
    program_eval_scalar(p, &at, value, known);
    return !known[p->out[0]] || value[p->out[0]] != 0;
}

// Visible keys of row (h, q): between two sampled keys all, half or none count, as both, one or none of them is visible.
static double visible_keys(const Program *p, int64_t b, int64_t h, int64_t q, int64_t nkeys) {
    Keys s;
    keys_near_row(&s, q, nkeys);
    double total = 0;
    bool last = false;
    for (int i = 0; i < s.n; i++) {
        bool now = visible_at(p, (ProgPoint){.b = b, .h = h, .q = q, .k = s.at[i]});
        if (i > 0) total += 0.5 * ((double)last + (double)now) * (double)(s.at[i] - s.at[i - 1]);
        last = now;
    }
    return total > 0 || last ? total + KEY_BLOCK : 0;
}

// Global index of local element i of dim `dim`.
static int64_t global_index(const Operand *o, int dim, int64_t i) {
    if (o->sdim != dim) return i;
    for (int s = 0; s < o->nspan; s++) {
        int64_t len = o->span[s].end - o->span[s].begin;
        if (i < len) return o->span[s].begin + i;
        i -= len;
    }
    return 0;
}

double attention_visible_fraction(const Node *n, const Operand *q, const Operand *k) {
    const Program *p = node_prog(n, ATTR_PROG);
    int64_t nheads = q->dim[1], nrows = q->dim[2], nkeys = k->dim[2], nbatch = q->dim[0];
    if (nheads < 1 || nrows < 1 || nkeys < 1 || nbatch < 1) return 0;
    if (n->op == OP_SDPA && node_int_or(n, ATTR_CAUSAL, 0)) return 0.5;
    if (!p || p->out[0] < 0 || p->ninstr > MAX_INSTR) return 1;
    int64_t nsample = min_i64(nrows, ROW_SAMPLES);
    double total = 0;
    for (int64_t i = 0; i < nsample; i++) {
        int64_t row = nrows / nsample * i + nrows / nsample / 2;
        total += visible_keys(p, global_index(q, 0, i % nbatch), global_index(q, 1, i % nheads), global_index(q, 2, row), nkeys);
    }
    double fraction = total / ((double)nsample * (double)nkeys);
    return fraction < 1 ? fraction : 1;
}

void cost_attention(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    const Operand *q = &in[0], *k = &in[1], *v = &in[2];
    cost_memory_bound(n, in, out, c);
    double pairs = (double)q->dim[0] * (double)q->dim[1] * (double)q->dim[2] * (double)k->dim[2];
    c->launches = (attention_groups(n, k->dim[1]) - 1) * FORWARD_LAUNCHES;
    c->flops = 2 * pairs * (double)(q->dim[3] + v->dim[3]) * attention_visible_fraction(n, q, k);
}

// Five products instead of two: the scores again, dp, dv, dq, dk.
void cost_attention_grad(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_attention(n, in, out, c);
    c->flops *= 2.5;
    c->launches *= BACKWARD_LAUNCHES / FORWARD_LAUNCHES;
}
