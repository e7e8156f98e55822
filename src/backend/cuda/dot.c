// dot: every matrix product. Operands are dense and their dims come in groups (ops.def), so a group merges into one extent and the whole
// op is one batch of row-major products (gemm.h). A third operand is added: of the result's shape (C with beta = 1), or with
// attribute bias a vector over the last dim. Sharding needs no care: a contraction over a sharded dim gives this rank's term.
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels.h"

static int64_t product(const Operand *o, int begin, int end) {
    int64_t p = 1;
    for (int i = begin; i < end; i++) p *= o->dim[i];
    return p;
}

static bool has_bias(const Node *n) { return node_int_or(n, ATTR_BIAS, 0) != 0; }
static int64_t last_dim(const Operand *o) { return o->ndim > 0 ? o->dim[o->ndim - 1] : 1; }

static Gemm dot_gemm(const Node *node, const Operand *in, const Operand *out) {
    const Operand *a = &in[0], *b = &in[1];
    Gemm g = {.trans_a = node_int_or(node, ATTR_TRANS_A, 0) != 0, .trans_b = node_int_or(node, ATTR_TRANS_B, 0) != 0,
              .ab = a->dtype, .cd = out->dtype, .alpha = 1};
    int nb = (int)node_int_or(node, ATTR_NBATCH, 0), nc = (int)node_int_or(node, ATTR_NCONTRACT, 1);
    int free_a = a->ndim - nb - nc, free_b = b->ndim - nb - nc;
    g.batch = product(a, 0, nb);
    g.m = g.trans_a ? product(a, nb + nc, a->ndim) : product(a, nb, nb + free_a);
    g.k = g.trans_a ? product(a, nb, nb + nc) : product(a, nb + free_a, a->ndim);
    g.n = g.trans_b ? product(b, nb, nb + free_b) : product(b, nb + nc, b->ndim);
    g.lda = g.trans_a ? g.m : g.k, g.ldb = g.trans_b ? g.k : g.n, g.ldc = g.ldd = g.n;
    g.stride_a = g.m * g.k, g.stride_b = g.k * g.n, g.stride_c = g.stride_d = g.m * g.n;
    if (node->nin > 2 && has_bias(node) && last_dim(out) == g.n) g.bias = true;
    else if (node->nin > 2) g.beta = 1;
    return g;
}

// A bias over a last dim that is not all of the product's columns (two free dims of b, or none): it is spread over the result first,
// and the product added to that.
static bool dot_spreads(const Node *node, const Gemm *g) { return node->nin > 2 && has_bias(node) && !g->bias; }

static Status check_dot(const KernelArgs *k, const Gemm *g, Diag *d) {
    const Operand *in = k->in, *out = k->out;
    bool types = (in[0].dtype == DT_F32 && out->dtype == DT_F32) ||
                 (in[0].dtype == DT_BF16 && (out->dtype == DT_F32 || out->dtype == DT_BF16));
    if (!types || in[1].dtype != in[0].dtype || (k->nin > 2 && in[2].dtype != out->dtype))
        return diag_error(d, ST_UNSUPPORTED, "dot: CUDA has no product of %s and %s that gives %s%s%s: use f32 or bf16",
                          dtype_name(in[0].dtype), dtype_name(in[1].dtype), dtype_name(out->dtype), k->nin > 2 ? " and adds " : "",
                          k->nin > 2 ? dtype_name(in[2].dtype) : "");
    if (k->nin == 2) return ST_OK;
    int64_t have = product(&in[2], 0, in[2].ndim), want = has_bias(k->node) ? last_dim(out) : g->batch * g->m * g->n;
    CHECK(have == want, "dot: what is added has %lld elements, not %lld", (long long)have, (long long)want);
    return ST_OK;
}

static bool dot_empty(const Gemm *g) { return g->m == 0 || g->n == 0 || g->batch == 0; }

size_t cuda_dot_scratch(const Node *n, const Operand *in, const Operand *out) {
    Gemm g = dot_gemm(n, in, out);
    return gemm_workspace(&g);
}

// What is read as C.
static const void *dot_c(const KernelArgs *k, const Gemm *g) {
    return g->beta == 0 ? NULL : dot_spreads(k->node, g) ? k->out[0].data : k->in[2].data;
}

Status cuda_dot_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    Gemm g = dot_gemm(k->node, k->in, k->out);
    *state = NULL;
    TRY(check_dot(k, &g, d));
    if (dot_empty(&g)) return ST_OK;
    GemmPlan *plan;
    TRY(gemm_prepare(dev, &g, k->in[0].data, k->in[1].data, dot_c(k, &g), k->out[0].data, k->scratch, &plan, d));
    *state = plan;
    return ST_OK;
}

Status cuda_dot(const KernelArgs *k, Diag *d) {
    Gemm g = dot_gemm(k->node, k->in, k->out);
    if (dot_empty(&g)) return ST_OK;
    CHECK(k->state, "dot was not prepared");
    if (dot_spreads(k->node, &g)) {
        SpreadParams p = {.d = k->out[0].data, .bias = k->in[2].data, .n = last_dim(k->out), .total = g.batch * g.m * g.n};
        gemm_spread_launch(k->device->stream, g.cd == DT_BF16, &p);
    }
    const void *bias = g.bias ? k->in[2].data : NULL;
    return gemm_run(k->device, k->state, k->in[0].data, k->in[1].data, dot_c(k, &g), bias, k->out[0].data, k->scratch, d);
}
