// head: the output projection with its softmax statistics and gradients, without logits of the whole sequence (docs/cuda.md). A chunk of
// rows at a time: logits = scale h w^T, their rows' statistics and gradient in place (head.cu), dh = scale dlogits w, dw += scale
// dlogits^T h. Inputs h [N, D], w [V, D], idx [N], glse [N], gpick [N]; results lse [N], pick [N], dh [N, D], dw [V, D] f32.
#include "backend/cuda/gemm.h"
#include "backend/cuda/head_rows.h"
#include "backend/cuda/kernels.h"
#include "base/containers.h"

// Of a chunk's logits. Larger ones read and write dw less often (2 * 4 * V * D bytes for each chunk), smaller ones leave more memory.
#define HEAD_CHUNK_NBYTES ((int64_t)512 << 20)
enum { HEAD_ROWS = 128, HEAD_ALIGN = 256 };  // rows come in whole tiles of the products

typedef struct HeadSizes {
    int64_t n, d, v;
    int64_t rows, nchunk, last;  // rows of every chunk but the last
    int64_t logits_nbytes;
} HeadSizes;

static HeadSizes head_sizes(const Operand *in) {
    HeadSizes s = {.n = in[0].dim[0], .d = in[0].dim[1], .v = in[1].dim[0]};
    int64_t row = max_i64(1, s.v * dtype_nbytes(in[0].dtype)), most = max_i64(1, HEAD_CHUNK_NBYTES / row / HEAD_ROWS) * HEAD_ROWS;
    s.nchunk = max_i64(1, ceil_div(s.n, most));
    s.rows = min_i64(s.n, round_up(ceil_div(s.n, s.nchunk), HEAD_ROWS));
    s.nchunk = s.rows > 0 ? ceil_div(s.n, s.rows) : 0;
    s.last = s.rows > 0 ? s.n - (s.nchunk - 1) * s.rows : 0;
    s.logits_nbytes = round_up(s.rows * s.v * dtype_nbytes(in[0].dtype), HEAD_ALIGN);
    return s;
}

// The three products of a chunk. [0]: of most chunks, [1]: of the last. dw is overwritten by the first chunk and added to by the others.
typedef struct HeadState {
    GemmPlan *logits[2], *dh[2], *dw_first, *dw_add[2];
} HeadState;

static Gemm logits_gemm(const KernelArgs *k, const HeadSizes *s, int64_t rows) {
    return (Gemm){.m = rows, .n = s->v, .k = s->d, .batch = 1, .trans_b = true, .lda = s->d, .ldb = s->d, .ldc = s->v, .ldd = s->v,
                  .ab = k->in[0].dtype, .cd = k->in[0].dtype, .alpha = (float)node_float_or(k->node, ATTR_SCALE, 1)};
}
static Gemm dh_gemm(const KernelArgs *k, const HeadSizes *s, int64_t rows) {
    return (Gemm){.m = rows, .n = s->d, .k = s->v, .batch = 1, .lda = s->v, .ldb = s->d, .ldc = s->d, .ldd = s->d,
                  .ab = k->in[0].dtype, .cd = k->out[2].dtype, .alpha = (float)node_float_or(k->node, ATTR_SCALE, 1)};
}
static Gemm dw_gemm(const KernelArgs *k, const HeadSizes *s, int64_t rows, bool add) {
    return (Gemm){.m = s->v, .n = s->d, .k = rows, .batch = 1, .trans_a = true, .lda = s->v, .ldb = s->d, .ldc = s->d, .ldd = s->d,
                  .ab = k->in[0].dtype, .cd = k->out[3].dtype, .alpha = (float)node_float_or(k->node, ATTR_SCALE, 1), .beta = add};
}

// The addresses of chunk c.
typedef struct HeadChunk {
    char *h, *dh, *logits, *workspace;
} HeadChunk;
static HeadChunk head_chunk(const KernelArgs *k, const HeadSizes *s, int64_t c) {
    int64_t at = c * s->rows * s->d;
    char *scratch = k->scratch;
    return (HeadChunk){.h = (char *)k->in[0].data + at * dtype_nbytes(k->in[0].dtype),
                       .dh = (char *)k->out[2].data + at * dtype_nbytes(k->out[2].dtype),
                       .logits = scratch, .workspace = scratch + s->logits_nbytes};
}

size_t cuda_head_scratch(const Node *n, const Operand *in, const Operand *out) {
    (void)n, (void)out;
    return (size_t)head_sizes(in).logits_nbytes + GEMM_WORKSPACE_NBYTES;
}

static Status check_head(const KernelArgs *k, Diag *d) {
    DType t = k->in[0].dtype, dh = k->out[2].dtype;
    bool ok = (t == DT_BF16 && (dh == DT_BF16 || dh == DT_F32)) || (t == DT_F32 && dh == DT_F32);
    if (ok && k->in[1].dtype == t && k->in[3].dtype == DT_F32 && k->in[4].dtype == DT_F32 && k->out[3].dtype == DT_F32) return ST_OK;
    return diag_error(d, ST_UNSUPPORTED, "head: CUDA takes h and w both f32 or both bf16 and f32 cotangents, not h %s, w %s, glse %s, gpick %s, "
                      "dh %s, dw %s", dtype_name(t), dtype_name(k->in[1].dtype), dtype_name(k->in[3].dtype), dtype_name(k->in[4].dtype),
                      dtype_name(dh), dtype_name(k->out[3].dtype));
}

Status cuda_head_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    TRY(check_head(k, d));
    HeadSizes s = head_sizes(k->in);
    HeadState *h = *state = gemm_alloc(dev, sizeof *h);
    if (s.d == 0 || s.v == 0) return ST_OK;
    const void *w = k->in[1].data;
    void *dw = k->out[3].data;
    HeadChunk c = head_chunk(k, &s, 0);
    if (s.n == 0) {  // an empty contraction gives zeros
        Gemm g = dw_gemm(k, &s, 0, false);
        return gemm_prepare(dev, &g, c.logits, c.h, NULL, dw, c.workspace, &h->dw_first, d);
    }
    for (int last = 0; last < 2; last++) {
        int64_t rows = last ? s.last : s.rows;
        c = head_chunk(k, &s, last ? s.nchunk - 1 : 0);
        Gemm logits = logits_gemm(k, &s, rows), dh = dh_gemm(k, &s, rows), add = dw_gemm(k, &s, rows, true);
        TRY(gemm_prepare(dev, &logits, c.h, w, NULL, c.logits, c.workspace, &h->logits[last], d));
        TRY(gemm_prepare(dev, &dh, c.logits, w, NULL, c.dh, c.workspace, &h->dh[last], d));
        if (s.nchunk > 1) TRY(gemm_prepare(dev, &add, c.logits, c.h, dw, dw, c.workspace, &h->dw_add[last], d));
    }
    Gemm first = dw_gemm(k, &s, s.rows, false);
    c = head_chunk(k, &s, 0);
    return gemm_prepare(dev, &first, c.logits, c.h, NULL, dw, c.workspace, &h->dw_first, d);
}

static Status run_chunk(const KernelArgs *k, const HeadSizes *s, int64_t i, Diag *d) {
    const HeadState *h = k->state;
    HeadChunk c = head_chunk(k, s, i);
    bool last = i == s->nchunk - 1;
    int64_t at = i * s->rows;
    const void *w = k->in[1].data;
    void *dw = k->out[3].data;
    HeadRows r = {.x = c.logits, .idx = (const long long *)k->in[2].data + at, .glse = (const float *)k->in[3].data + at,
                  .gpick = (const float *)k->in[4].data + at, .lse = (float *)k->out[0].data + at, .pick = (float *)k->out[1].data + at,
                  .rows = last ? s->last : s->rows, .v = s->v, .error = k->device->error, .node = k->id};
    TRY(gemm_run(k->device, h->logits[last], c.h, w, NULL, NULL, c.logits, c.workspace, d));
    head_rows_launch(k->device->stream, k->in[0].dtype == DT_BF16, &r);
    TRY(gemm_run(k->device, h->dh[last], c.logits, w, NULL, NULL, c.dh, c.workspace, d));
    return gemm_run(k->device, i == 0 ? h->dw_first : h->dw_add[last], c.logits, c.h, dw, NULL, dw, c.workspace, d);
}

Status cuda_head(const KernelArgs *k, Diag *d) {
    HeadSizes s = head_sizes(k->in);
    CHECK(k->state && s.d > 0 && s.v > 0, "head: not prepared, or nothing to project (%lld x %lld)", (long long)s.v, (long long)s.d);
    if (s.n == 0) {
        HeadChunk c = head_chunk(k, &s, 0);
        return gemm_run(k->device, ((HeadState *)k->state)->dw_first, c.logits, c.h, NULL, NULL, k->out[3].data, c.workspace, d);
    }
    for (int64_t i = 0; i < s.nchunk; i++) TRY(run_chunk(k, &s, i, d));
    return ST_OK;
}
