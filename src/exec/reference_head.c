// Reference: the output layer with its cross-entropy, a row at a time.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "exec/reference.h"

typedef struct Head {
    int64_t n, nd, nv;
    double scale, cap;
    double *z;  // [nv]: logits of one row
} Head;

// The logits of row i, and their log-sum-exp (see ref_logsumexp about infinities).
static double row_logits(const RefNode *r, const Head *x, int64_t i) {
    double max = -INFINITY, sum = 0;
    for (int64_t v = 0; v < x->nv; v++) {
        double s = 0;
        for (int64_t k = 0; k < x->nd; k++) s += r->in[0][i * x->nd + k] * r->in[1][v * x->nd + k];
        s *= x->scale;
        x->z[v] = x->cap > 0 ? x->cap * tanh(s / x->cap) : s;
        if (isnan(x->z[v]) || x->z[v] > max) max = x->z[v];
    }
    for (int64_t v = 0; v < x->nv; v++) sum += exp(x->z[v] - (isinf(max) ? 0 : max));
    return max == -INFINITY ? max : isinf(max) ? log(sum) : max + log(sum);
}

static void row_grads(const RefNode *r, const Head *x, int64_t i, int64_t at, double lse, double glse, double gpick, double *dh,
                      double *dw) {
    for (int64_t v = 0; v < x->nv; v++) {
        double g = exp(x->z[v] - lse) * glse + (v == at ? gpick : 0);
        if (x->cap > 0) g *= 1 - x->z[v] / x->cap * (x->z[v] / x->cap);
        g *= x->scale;
        for (int64_t k = 0; k < x->nd; k++) {
            dh[i * x->nd + k] += g * r->in[1][v * x->nd + k];
            dw[v * x->nd + k] += g * r->in[0][i * x->nd + k];
        }
    }
}

static Status each_row(const RefNode *r, const Head *x, Diag *d) {
    bool fwd = r->n->op != OP_HEAD_GRAD, grad = r->n->op != OP_HEAD_FWD;
    double *dh = grad ? r->out[fwd ? 2 : 0] : NULL, *dw = grad ? r->out[fwd ? 3 : 1] : NULL;
    const double *glse = grad ? r->in[fwd ? 3 : 4] : NULL, *gpick = grad ? r->in[fwd ? 4 : 5] : NULL;
    if (grad) memset(dh, 0, sizeof *dh * (size_t)(x->n * x->nd)), memset(dw, 0, sizeof *dw * (size_t)(x->nv * x->nd));
    for (int64_t i = 0; i < x->n; i++) {
        int64_t at = (int64_t)r->in[2][i];
        if (at < 0 || at >= x->nv)
            return diag_error(d, ST_NUMERIC, "%s: index %lld at position %lld is outside [0, %lld)", op_name(r->n->op),
                              (long long)at, (long long)i, (long long)x->nv);
        double lse = row_logits(r, x, i);
        if (fwd) r->out[0][i] = lse, r->out[1][i] = x->z[at];
        if (grad) row_grads(r, x, i, at, fwd ? lse : r->in[3][i], glse[i], gpick[i], dh, dw);
    }
    return ST_OK;
}

static Status ref_head(const RefNode *r, Diag *d) {
    const Shape *h = ref_in_shape(r, 0);
    Head x = {.n = h->dim[0], .nd = h->dim[1], .nv = ref_in_shape(r, 1)->dim[0]};
    x.scale = node_float_or(r->n, ATTR_SCALE, 1), x.cap = node_float_or(r->n, ATTR_SOFTCAP, 0);
    x.z = malloc(sizeof *x.z * (size_t)(x.nv + 1));
    if (!x.z) return diag_error(d, ST_MEMORY, "out of memory");
    Status st = each_row(r, &x, d);
    free(x.z);
    return st;
}

RefFn ref_head_fn(OpKind op) { return op == OP_HEAD_FWD || op == OP_HEAD_GRAD || op == OP_HEAD ? ref_head : NULL; }
