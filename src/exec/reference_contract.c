// Reference: contractions (dot, expert products, convolution) and the optimizer's update.
#include <math.h>
#include <string.h>
#include "exec/reference.h"

static int64_t product(const Shape *s, int from, int to) {
    int64_t n = 1;
    for (int i = from; i < to; i++) n *= s->dim[i];
    return n;
}

static Status ref_dot(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *sa = ref_in_shape(r, 0), *sb = ref_in_shape(r, 1);
    int nb = (int)node_int_or(r->n, ATTR_NBATCH, 0), nc = (int)node_int_or(r->n, ATTR_NCONTRACT, 1);
    bool ta = node_int_or(r->n, ATTR_TRANS_A, 0) != 0, tb = node_int_or(r->n, ATTR_TRANS_B, 0) != 0;
    int64_t batch = product(sa, 0, nb);
    int64_t K = ta ? product(sa, nb, nb + nc) : product(sa, sa->ndim - nc, sa->ndim);
    int64_t M = ta ? product(sa, nb + nc, sa->ndim) : product(sa, nb, sa->ndim - nc);
    int64_t N = tb ? product(sb, nb, sb->ndim - nc) : product(sb, nb + nc, sb->ndim);
    for (int64_t b = 0; b < batch; b++) {
        const double *A = r->in[0] + b * M * K, *B = r->in[1] + b * K * N;
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++) sum += A[ta ? k * M + m : m * K + k] * B[tb ? n * K + k : k * N + n];
                r->out[0][(b * M + m) * N + n] = sum;
            }
    }
    if (r->n->nin == 3) {
        const Shape *so = ref_out_shape(r, 0);
        int64_t numel = shape_numel(so), width = node_int_or(r->n, ATTR_BIAS, 0) ? so->dim[so->ndim - 1] : numel;
        for (int64_t i = 0; i < numel; i++) r->out[0][i] += r->in[2][i % width];
    }
    return ST_OK;
}

// w[e] is [K, N], or [N, K] with trans_w.
static Status ref_expert_matmul(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *sx = ref_in_shape(r, 0), *so = ref_out_shape(r, 0);
    int64_t rows = sx->dim[0], K = sx->dim[1], N = so->dim[1], E = ref_in_shape(r, 2)->dim[0];
    bool trans = node_int_or(r->n, ATTR_TRANS_W, 0) != 0;
    for (int64_t i = 0; i < rows; i++) {
        int64_t e = (int64_t)r->in[1][i];
        const double *w = r->in[2] + (e >= 0 && e < E ? e * K * N : 0);
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++) sum += r->in[0][i * K + k] * w[trans ? n * K + k : k * N + n];
            r->out[0][i * N + n] = e >= 0 && e < E ? sum : 0;
        }
    }
    return ST_OK;
}

static Status ref_expert_matmul_grad(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *sx = ref_in_shape(r, 0), *sg = ref_in_shape(r, 2), *so = ref_out_shape(r, 0);
    int64_t rows = sx->dim[0], K = sx->dim[1], N = sg->dim[1], E = so->dim[0];
    bool trans = node_int_or(r->n, ATTR_TRANS_W, 0) != 0;
    if (r->n->nin == 4) memcpy(r->out[0], r->in[3], sizeof(double) * (size_t)shape_numel(so));
    else memset(r->out[0], 0, sizeof(double) * (size_t)shape_numel(so));
    for (int64_t i = 0; i < rows; i++) {
        int64_t e = (int64_t)r->in[1][i];
        if (e < 0 || e >= E) continue;
        double *w = r->out[0] + e * K * N;
        for (int64_t k = 0; k < K; k++)
            for (int64_t n = 0; n < N; n++) w[trans ? n * K + k : k * N + n] += r->in[0][i * K + k] * r->in[2][i * N + n];
    }
    return ST_OK;
}

// ---- convolution: out[b, c2, l] = sum over (c, t) of w[c2, c, t] * x[b, group(c2)*cg + c, l*stride + t*dilation - lo] ----

typedef struct Conv {
    int64_t B, C, L, C2, L2, cg, kernel, stride, dilation, groups, lo;
} Conv;
typedef void (*ConvTerm)(const RefNode *r, int64_t x, int64_t w, int64_t out);

static Conv conv_of(const RefNode *r, const Shape *x, const Shape *w, const Shape *out) {
    Conv c = {.B = x->dim[0], .C = x->dim[1], .L = x->dim[2], .C2 = out->dim[1], .L2 = out->dim[2]};
    c.cg = w->dim[1], c.kernel = w->dim[2];
    c.stride = node_int_or(r->n, ATTR_STRIDE, 1);
    c.dilation = node_int_or(r->n, ATTR_DILATION, 1);
    c.groups = node_int_or(r->n, ATTR_GROUPS, 1);
    c.lo = node_int_or(r->n, ATTR_LO, 0);
    return c;
}

// Visits every product of the convolution with the offsets of its three factors.
static void conv_each(const RefNode *r, const Conv *c, ConvTerm term) {
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t o = 0; o < c->C2; o++)
            for (int64_t l = 0; l < c->L2; l++)
                for (int64_t i = 0; i < c->cg; i++)
                    for (int64_t t = 0; t < c->kernel; t++) {
                        int64_t at = l * c->stride + t * c->dilation - c->lo, ch = o / (c->C2 / c->groups) * c->cg + i;
                        if (at < 0 || at >= c->L) continue;
                        term(r, (b * c->C + ch) * c->L + at, (o * c->cg + i) * c->kernel + t, (b * c->C2 + o) * c->L2 + l);
                    }
}

static void conv_term(const RefNode *r, int64_t x, int64_t w, int64_t o) { r->out[0][o] += r->in[0][x] * r->in[1][w]; }
static void conv_term_x(const RefNode *r, int64_t x, int64_t w, int64_t o) { r->out[0][x] += r->in[0][o] * r->in[1][w]; }
static void conv_term_w(const RefNode *r, int64_t x, int64_t w, int64_t o) { r->out[0][w] += r->in[0][o] * r->in[1][x]; }

static Status ref_conv1d(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *out = ref_out_shape(r, 0);
    memset(r->out[0], 0, sizeof(double) * (size_t)shape_numel(out));
    if (r->n->op == OP_CONV1D) {
        Conv c = conv_of(r, ref_in_shape(r, 0), ref_in_shape(r, 1), out);
        conv_each(r, &c, conv_term);
    } else if (r->n->op == OP_CONV1D_GRAD_X) {
        Conv c = conv_of(r, out, ref_in_shape(r, 1), ref_in_shape(r, 0));
        conv_each(r, &c, conv_term_x);
    } else {
        Conv c = conv_of(r, ref_in_shape(r, 1), out, ref_in_shape(r, 0));
        conv_each(r, &c, conv_term_w);
    }
    return ST_OK;
}

// PyTorch's AdamW (decoupled weight decay, Loshchilov & Hutter 2019). hyper = {lr, 1 - beta1^t, 1 - beta2^t}.
static Status ref_adamw(const RefNode *r, Diag *d) {
    (void)d;
    const double *hyper = r->in[4], *scale = r->in[5];
    double b1 = node_float(r->n, ATTR_BETA1), b2 = node_float(r->n, ATTR_BETA2), eps = node_float(r->n, ATTR_EPS);
    double decay = node_float_or(r->n, ATTR_DECAY, 0);
    int64_t n = shape_numel(ref_in_shape(r, 0));
    for (int64_t i = 0; i < n; i++) {
        double g = r->in[1][i] * scale[0], p = r->in[0][i] * (1 - hyper[0] * decay);
        double m = b1 * r->in[2][i] + (1 - b1) * g, v = b2 * r->in[3][i] + (1 - b2) * g * g;
        r->out[0][i] = p - hyper[0] * (m / hyper[1]) / (sqrt(v) / sqrt(hyper[2]) + eps);
        r->out[1][i] = m;
        r->out[2][i] = v;
        if (r->n->nout == 4) r->out[3][i] = r->out[0][i];
    }
    return ST_OK;
}

RefFn ref_contract_fn(OpKind op) {
    switch (op) {
    case OP_DOT: return ref_dot;
    case OP_EXPERT_MATMUL: return ref_expert_matmul;
    case OP_EXPERT_MATMUL_GRAD: return ref_expert_matmul_grad;
    case OP_CONV1D:
    case OP_CONV1D_GRAD_X:
    case OP_CONV1D_GRAD_W: return ref_conv1d;
    case OP_ADAMW: return ref_adamw;
    default: return NULL;
    }
}
