// dot: every matrix product. Operands are dense and their dims come in groups (ops.def), so a group merges into one extent and
// the whole op is one batch of row-major products (gemm.h). A third operand is added: of the result's shape (C with beta = 1), or
// with attribute bias a vector over the last dim. Sharding needs no care: a contraction over a sharded dim gives this rank's
// term.
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/kernels.h"
#include "base/containers.h"

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

// A bias over a last dim that is not all of the product's columns (two free dims of b, or none): it is spread over the result
// first, and the product added to that.
static bool dot_spreads(const Node *node, const Gemm *g) { return node->nin > 2 && has_bias(node) && !g->bias; }

// Tensor cores cut their f32 sums towards zero after every 16 products, so what they lose grows linearly with the contraction: up
// to 0.6 % over 2^20 tokens where all products have one sign (derived in test/gpu/gpu_gemm.c). Sums of pieces are rounded, so
// pieces of 2^17 keep that below 0.1 % for any length; each costs one more pass over the result. Results in bf16 are not cut:
// they would be rounded at each piece by more than that.
int64_t dot_piece = DOT_PIECE;
typedef struct DotPieces {
    int64_t n, each;      // the last may be shorter
    GemmPlan *plan[3];    // first, those in the middle, last
} DotPieces;

static DotPieces pieces_of(const Gemm *g) {
    bool cut = g->ab == DT_BF16 && g->cd == DT_F32 && g->k > dot_piece;
    DotPieces p = {.n = 1, .each = g->k};
    if (cut) p.each = round_up(ceil_div(g->k, ceil_div(g->k, dot_piece)), 8), p.n = ceil_div(g->k, p.each);
    return p;
}

// Piece i of a product, and how far its operands are into the whole's.
typedef struct DotPiece {
    Gemm g;
    int64_t a, b;  // bytes
    bool first;
} DotPiece;
static DotPiece piece_of(const Gemm *g, const DotPieces *p, int64_t i) {
    DotPiece x = {.g = *g, .first = i == 0};
    int64_t at = i * p->each, size = dtype_nbytes(g->ab);
    x.g.k = min_i64(p->each, g->k - at);
    x.a = at * (g->trans_a ? g->lda : 1) * size, x.b = at * (g->trans_b ? 1 : g->ldb) * size;
    if (i > 0) x.g.beta = 1, x.g.bias = false, x.g.ldc = x.g.ldd, x.g.stride_c = x.g.stride_d;  // added to what is there
    return x;
}

static Status check_dot(const KernelArgs *k, const Gemm *g, Diag *d) {
    const Operand *in = k->in, *out = k->out;
    bool types = (in[0].dtype == DT_F32 && out->dtype == DT_F32) ||
                 (in[0].dtype == DT_BF16 && (out->dtype == DT_F32 || out->dtype == DT_BF16));
    if (!types || in[1].dtype != in[0].dtype || (k->nin > 2 && in[2].dtype != out->dtype))
        return diag_error(d, ST_UNSUPPORTED, "dot: CUDA has no product of %s and %s that gives %s%s%s: use f32 or bf16",
                          dtype_name(in[0].dtype), dtype_name(in[1].dtype), dtype_name(out->dtype),
                          k->nin > 2 ? " and adds " : "", k->nin > 2 ? dtype_name(in[2].dtype) : "");
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

static const char *bytes_at(const Operand *o, int64_t nbytes) { return (const char *)o->data + nbytes; }

Status cuda_dot_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    Gemm g = dot_gemm(k->node, k->in, k->out);
    *state = NULL;
    TRY(check_dot(k, &g, d));
    if (dot_empty(&g)) return ST_OK;
    DotPieces *p = gemm_alloc(dev, sizeof *p);
    *p = pieces_of(&g);
    for (int part = 0; part < 3; part++) {
        int64_t i = part == 2 ? p->n - 1 : part;
        if (p->n <= (part == 0 ? 0 : part == 1 ? 2 : 1)) continue;
        DotPiece x = piece_of(&g, p, i);
        const void *c = x.first ? dot_c(k, &g) : k->out[0].data;
        TRY(gemm_prepare(dev, &x.g, bytes_at(&k->in[0], x.a), bytes_at(&k->in[1], x.b), c, k->out[0].data, k->scratch,
                         &p->plan[part], d));
    }
    *state = p;
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
    const DotPieces *p = k->state;
    for (int64_t i = 0; i < p->n; i++) {
        DotPiece x = piece_of(&g, p, i);
        const void *bias = x.g.bias ? k->in[2].data : NULL, *c = x.first ? dot_c(k, &g) : k->out[0].data;
        const GemmPlan *plan = p->plan[i == 0 ? 0 : i < p->n - 1 ? 1 : 2];
        TRY(gemm_run(k->device, plan, bytes_at(&k->in[0], x.a), bytes_at(&k->in[1], x.b), c, bias, k->out[0].data,
                     k->scratch, d));
    }
    return ST_OK;
}
