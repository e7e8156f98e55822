// Seconds from work: device.h.
#include "plan/device.h"

#include <math.h>
#include <string.h>

#include "backend/registry.h"

const char *const product_form_names[PRODUCT_NFORM] = {"nt", "nn", "tn"};
const char *const product_type_names[PRODUCT_NTYPE] = {"f32", "bf16"};

// A power law between two points: as seconds rise from point to point (device_file.c sees to that), they rise in between.
double rate_at(const RateCurve *c, double size) {
    if (c->n == 0) return 0;
    if (!(size > c->at[0])) return c->rate[0];
    for (int i = 1; i < c->n; i++) {
        if (size > c->at[i]) continue;
        double part = log(size / c->at[i - 1]) / log(c->at[i] / c->at[i - 1]);
        return c->rate[i - 1] * pow(c->rate[i] / c->rate[i - 1], part);
    }
    return c->rate[c->n - 1];
}

static double at_rate(double work, double rate) { return rate > 0 ? work / rate : 0; }

static double memory_seconds(const DeviceModel *m, OpKind op, double nbytes) {
    double part = m->efficiency[op] > 0 ? m->efficiency[op] : m->other_efficiency > 0 ? m->other_efficiency : 1;
    return at_rate(nbytes, m->mem_bandwidth * part);
}

// ---- products --------------------------------------------------------------------------------------------------------------
// Tiles of the result are made `units` at a time; a last wave that is not full takes as long as a full one, and a tile at the
// edge as long as a whole one. Where there are few tiles the contraction is split too, down to LEAST_K.
double product_wave_part(const DeviceModel *m, double batch, double rows, double cols, double k) {
    enum { LEAST_K = 512, MOST_SPLIT = 64 };
    if (m->units <= 1 || m->tile <= 1) return 1;
    double across = ceil(rows / m->tile), down = ceil(cols / m->tile), tiles = batch * across * down, best = 0;
    if (!(tiles > 0)) return 1;
    for (double split = 1; split <= MOST_SPLIT && (split == 1 || k / split >= LEAST_K); split *= 2) {
        double part = tiles * split / (ceil(tiles * split / m->units) * m->units);
        best = part > best ? part : best;
        if (tiles * split >= 4 * m->units) break;
    }
    double filled = rows * cols / (across * down * m->tile * m->tile);
    return best * filled;
}

static const RateCurve *product_curve(const DeviceModel *m, DType t, ProductForm form) {
    const RateCurve *c = &m->product[t == DT_BF16 ? PRODUCT_BF16 : PRODUCT_F32][form];
    return c->n ? c : &m->product[PRODUCT_F32][form];
}

static double product_seconds(const DeviceModel *m, DType t, ProductForm form, double batch, double rows, double cols,
                              double k) {
    double full = 2 * batch * rows * cols * k / product_wave_part(m, batch, rows, cols, k);  // work of as many full waves
    return at_rate(full, rate_at(product_curve(m, t, form), full));
}

static double dot_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    double batch = 1, made = operand_numel(&out[0]);
    for (int i = 0; i < node_int_or(n, ATTR_NBATCH, 0); i++) batch *= (double)in[0].dim[i];
    double k = c->flops / (2 * made), rows = operand_numel(&in[0]) / (batch * k), cols = operand_numel(&in[1]) / (batch * k);
    ProductForm form = node_int_or(n, ATTR_TRANS_A, 0) ? PRODUCT_TN : node_int_or(n, ATTR_TRANS_B, 0) ? PRODUCT_NT : PRODUCT_NN;
    return product_seconds(m, in[0].dtype, form, batch, rows, cols, k);
}

// The output layer: its products, and the passes over logits that are not whole at any time but are written and read once more:
// one for the log-sum-exp, and where gradients are made a second one that reads and writes them.
static double head_seconds(const DeviceModel *m, const Node *n, const Operand *in) {
    double rows = (double)in[0].dim[0], width = (double)in[0].dim[1], classes = (double)in[1].dim[0];
    DType t = in[0].dtype;
    double logits = rows * classes * dtype_nbytes(t);
    double s = product_seconds(m, t, PRODUCT_NT, 1, rows, classes, width) + at_rate(logits, m->mem_bandwidth);
    if (n->op == OP_HEAD_FWD) return s;
    s += product_seconds(m, t, PRODUCT_NN, 1, rows, width, classes);
    s += product_seconds(m, t, PRODUCT_TN, 1, classes, width, rows);
    return s + 2 * at_rate(logits, m->mem_bandwidth);
}

// Rows in groups: each group is a product of its own, so the rate is that of a group's size.
static double expert_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    const Operand *w = n->op == OP_EXPERT_MATMUL ? &in[2] : &out[0];
    double groups = w->dim[0] > 0 ? (double)w->dim[0] : 1;
    ProductForm form = n->op == OP_EXPERT_MATMUL ? PRODUCT_NT : PRODUCT_TN;
    return at_rate(c->flops, rate_at(product_curve(m, in[0].dtype, form), c->flops / groups));
}

// ---- attention -------------------------------------------------------------------------------------------------------------
static bool is_attention(OpKind op) { return op == OP_ATTENTION || op == OP_ATTENTION_GRAD || op == OP_SDPA; }

// Kernels skip what the mask hides, so what their speed depends on is how many keys a query sees. A causal sequence shows half
// of itself on average.
double attention_length(const Node *n, const Operand *in, const Cost *c) {
    const Operand *q = &in[0], *v = &in[2];
    double rows = (double)q->dim[0] * (double)q->dim[1] * (double)q->dim[2];
    double pair = (n->op == OP_ATTENTION_GRAD ? 5 : 2) * (double)(q->dim[3] + v->dim[3]);
    return rows > 0 && pair > 0 ? 2 * c->flops / (rows * pair) : 0;
}

// Of the kernel's rows that with the smallest head that holds this one, else that with the largest.
static const AttentionRates *attention_rates(const DeviceModel *m, const char *kernel, int64_t head) {
    const AttentionRates *best = NULL;
    for (int i = 0; i < m->nattention; i++) {
        const AttentionRates *r = &m->attention[i];
        if (kernel && (!r->kernel || strcmp(r->kernel, kernel))) continue;
        bool fits = r->head >= head, had = best && best->head >= head;
        if (!best || (fits && (!had || r->head < best->head)) || (!fits && !had && r->head > best->head)) best = r;
    }
    return best || !kernel ? best : attention_rates(m, NULL, head);
}

static double attention_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    const Backend *b = NULL;
    Diag ignored = {0};
    if (m->backend && backend_find(m->backend, &b, &ignored) != ST_OK) b = NULL;
    const char *kernel = b && b->attention_kernel ? b->attention_kernel(n, in, out) : NULL;
    int64_t head = in[0].dim[3];
    const AttentionRates *r = attention_rates(m, kernel, head);
    if (!r) return 0;
    double rate = rate_at(n->op == OP_ATTENTION_GRAD ? &r->backward : &r->forward, attention_length(n, in, c));
    if (head < r->head) rate *= (double)head / r->head;  // tiles are as wide as the larger head
    return at_rate(c->flops, rate);
}

// ---- the whole -------------------------------------------------------------------------------------------------------------
static double compute_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    if (!(c->flops > 0)) return 0;
    if (is_attention(n->op)) return attention_seconds(m, n, in, out, c);
    switch (n->op) {
    case OP_DOT: return dot_seconds(m, n, in, out, c);
    case OP_HEAD_FWD:
    case OP_HEAD_GRAD:
    case OP_HEAD: return head_seconds(m, n, in);
    case OP_EXPERT_MATMUL:
    case OP_EXPERT_MATMUL_GRAD: return expert_seconds(m, n, in, out, c);
    default: return at_rate(c->flops, m->vector_flops);
    }
}

// A fused kernel whose results are all small reduces over blocks and finishes in a second launch.
static int launches(const Node *n, const Operand *in, const Operand *out) {
    double largest = 0, made = 0;
    if (n->op != OP_FUSED || !node_attr(n, ATTR_ROW)) return 1;
    for (int i = 0; i < n->nin; i++) largest = fmax(largest, operand_numel(&in[i]));
    for (int j = 0; j < n->nout; j++) made = fmax(made, operand_numel(&out[j]));
    return made * 64 <= largest ? 2 : 1;
}

double device_beside_nbytes(const DeviceModel *m, int64_t host_nbytes) { return m->context_nbytes + (m->mem_nbytes > 0 ? (double)host_nbytes / 512 : 0); }

// Roofline: a kernel is bound by its arithmetic or by its traffic, whichever takes longer.
double cost_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    double compute = compute_seconds(m, n, in, out, c), memory = memory_seconds(m, n->op, c->nbytes);
    return (compute > memory ? compute : memory) + m->kernel_latency_s * (launches(n, in, out) + (double)c->launches);
}

double exchange_seconds(const DeviceModel *m, double sent, double received, double copied, int ncopy, bool collective) {
    double link = at_rate(sent > received ? sent : received, m->link_bandwidth);
    return link + (collective ? m->link_latency_s : 0) + at_rate(copied, m->mem_bandwidth) + ncopy * m->kernel_latency_s;
}
