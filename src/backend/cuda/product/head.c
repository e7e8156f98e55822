// head_fwd, head_grad, head: the output projection with its cross-entropy, without logits of the whole sequence. A chunk of rows
// at a time: logits = scale h w^T, their rows' statistics and gradient in place (head.cu), dh = scale dlogits w, dw += scale
// dlogits^T h. Logits are of the type of h; statistics and dw are f32.
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/product/head.h"
#include "backend/cuda/product/head_rows.h"
#include "backend/cuda/kernels.h"

// The operands by name, whichever of the three ops it is; NULL: it has none.
typedef struct HeadArgs {
    const Operand *h, *w, *idx, *lse_in, *glse, *gpick, *lse, *pick, *dh, *dw;
} HeadArgs;
static HeadArgs fwd_args(const Operand *in, const Operand *out) {  // (h, w, idx) -> (lse, pick)
    return (HeadArgs){.h = &in[0], .w = &in[1], .idx = &in[2], .lse = &out[0], .pick = &out[1]};
}
static HeadArgs grad_args(const Operand *in, const Operand *out) {  // (h, w, idx, lse, glse, gpick) -> (dh, dw)
    return (HeadArgs){.h = &in[0], .w = &in[1], .idx = &in[2], .lse_in = &in[3], .glse = &in[4], .gpick = &in[5], .dh = &out[0],
                      .dw = &out[1]};
}
static HeadArgs both_args(const Operand *in, const Operand *out) {  // (h, w, idx, glse, gpick) -> (lse, pick, dh, dw)
    return (HeadArgs){.h = &in[0], .w = &in[1], .idx = &in[2], .glse = &in[3], .gpick = &in[4], .lse = &out[0], .pick = &out[1],
                      .dh = &out[2], .dw = &out[3]};
}

static HeadSizes sizes_of(const Operand *in) { return head_sizes(in[0].dim[0], in[0].dim[1], in[1].dim[0], in[0].dtype); }

static size_t head_scratch(const Operand *in) {
    HeadSizes s = sizes_of(in);
    Gemm any = {.m = s.rows,
                .n = s.v,
                .k = s.d,
                .batch = 1};  // the three products of a chunk are equally large, and the last's are no larger
    return (size_t)s.logits_nbytes + gemm_workspace(&any);
}

// The products of a chunk, [1]: of the last one; dw is overwritten by the first chunk and added to by the others. NULL: not
// needed.
typedef struct HeadState {
    GemmPlan *logits[2], *dh[2], *dw_first, *dw_add[2];
} HeadState;

static Gemm logits_gemm(const HeadArgs *a, const HeadSizes *s, int64_t rows, float scale) {
    return (Gemm){.m = rows,
                  .n = s->v,
                  .k = s->d,
                  .batch = 1,
                  .trans_b = true,
                  .lda = s->d,
                  .ldb = s->d,
                  .ldc = s->pitch,
                  .ldd = s->pitch,
                  .ab = a->h->dtype,
                  .cd = a->h->dtype,
                  .alpha = scale};
}
static Gemm dh_gemm(const HeadArgs *a, const HeadSizes *s, int64_t rows, float scale) {
    return (Gemm){.m = rows,
                  .n = s->d,
                  .k = s->v,
                  .batch = 1,
                  .lda = s->pitch,
                  .ldb = s->d,
                  .ldc = s->d,
                  .ldd = s->d,
                  .ab = a->h->dtype,
                  .cd = a->dh->dtype,
                  .alpha = scale};
}
static Gemm dw_gemm(const HeadArgs *a, const HeadSizes *s, int64_t rows, float scale, bool add) {
    return (Gemm){.m = s->v,
                  .n = s->d,
                  .k = rows,
                  .batch = 1,
                  .trans_a = true,
                  .lda = s->pitch,
                  .ldb = s->d,
                  .ldc = s->d,
                  .ldd = s->d,
                  .ab = a->h->dtype,
                  .cd = a->dw->dtype,
                  .alpha = scale,
                  .beta = add};
}

static void *element(const Operand *o, int64_t i) { return o ? (char *)o->data + i * dtype_nbytes(o->dtype) : NULL; }

// The addresses of chunk c.
typedef struct HeadChunk {
    int64_t first, rows;
    void *h, *dh, *logits, *workspace;
} HeadChunk;
static HeadChunk head_chunk(const HeadArgs *a, const HeadSizes *s, void *scratch, int64_t c) {
    int64_t first = c * s->rows;
    return (HeadChunk){.first = first, .rows = c == s->nchunk - 1 ? s->last : s->rows, .h = element(a->h, first * s->d),
                       .dh = element(a->dh, first * s->d), .logits = scratch, .workspace = (char *)scratch + s->logits_nbytes};
}

static Status check_head(const KernelArgs *k, const HeadArgs *a, Diag *d) {
    DType t = a->h->dtype;
    const Operand *f32[] = {a->lse_in, a->glse, a->gpick, a->lse, a->pick, a->dw};
    bool ok = (t == DT_BF16 || t == DT_F32) && a->w->dtype == t && (!a->dh || a->dh->dtype == t || a->dh->dtype == DT_F32);
    for (size_t i = 0; i < sizeof f32 / sizeof *f32; i++) ok &= !f32[i] || f32[i]->dtype == DT_F32;
    if (ok) return ST_OK;
    return diag_error(d, ST_UNSUPPORTED,
                      "%s: CUDA takes h and w both f32 or both bf16, and f32 for statistics of rows and the gradient of w; "
                      "h is %s, w %s",
                      op_name(k->node->op), dtype_name(t), dtype_name(a->w->dtype));
}

static float head_scale(const KernelArgs *k) { return (float)node_float_or(k->node, ATTR_SCALE, 1); }

static Status head_prepare(Device *dev, const KernelArgs *k, HeadArgs a, void **state, Diag *d) {
    TRY(check_head(k, &a, d));
    HeadSizes s = sizes_of(k->in);
    HeadState *h = *state = gemm_alloc(dev, sizeof *h);
    float scale = head_scale(k);
    const void *w = a.w->data;
    for (int last = 0; last < 2 && s.n > 0 && s.v > 0; last++) {
        HeadChunk c = head_chunk(&a, &s, k->scratch, last ? s.nchunk - 1 : 0);
        Gemm logits = logits_gemm(&a, &s, c.rows, scale);
        TRY(gemm_prepare(dev, &logits, c.h, w, NULL, c.logits, c.workspace, &h->logits[last], d));
        if (!a.dh || s.d == 0) continue;
        Gemm dh = dh_gemm(&a, &s, c.rows, scale), add = dw_gemm(&a, &s, c.rows, scale, true);
        TRY(gemm_prepare(dev, &dh, c.logits, w, NULL, c.dh, c.workspace, &h->dh[last], d));
        if (s.nchunk > 1) TRY(gemm_prepare(dev, &add, c.logits, c.h, a.dw->data, a.dw->data, c.workspace, &h->dw_add[last], d));
    }
    if (!a.dw || s.d == 0 || s.v == 0) return ST_OK;
    HeadChunk c = head_chunk(&a, &s, k->scratch, 0);
    Gemm first = dw_gemm(&a, &s, s.rows, scale, false);  // of no rows: an empty contraction, zeros
    return gemm_prepare(dev, &first, c.logits, c.h, NULL, a.dw->data, c.workspace, &h->dw_first, d);
}

static Status run_chunk(const KernelArgs *k, const HeadArgs *a, const HeadSizes *s, int64_t i, Diag *d) {
    const HeadState *h = k->state;
    HeadChunk c = head_chunk(a, s, k->scratch, i);
    int last = i == s->nchunk - 1;
    const void *w = a->w->data;
    HeadRows r = {.x = c.logits,
                  .idx = element(a->idx, c.first),
                  .lse_in = element(a->lse_in, c.first),
                  .glse = element(a->glse, c.first),
                  .gpick = element(a->gpick, c.first),
                  .lse = element(a->lse, c.first),
                  .pick = element(a->pick, c.first),
                  .rows = c.rows,
                  .v = s->v,
                  .ld = s->pitch,
                  .cap = (float)node_float_or(k->node, ATTR_SOFTCAP, 0),
                  .error = k->device->error,
                  .node = k->id};
    if (h->logits[last]) TRY(gemm_run(k->device, h->logits[last], c.h, w, NULL, NULL, c.logits, c.workspace, d));
    head_rows_launch(k->device->stream, a->h->dtype == DT_BF16, &r);
    if (h->dh[last]) TRY(gemm_run(k->device, h->dh[last], c.logits, w, NULL, NULL, c.dh, c.workspace, d));
    const GemmPlan *dw = i == 0 ? h->dw_first : h->dw_add[last];
    return dw ? gemm_run(k->device, dw, c.logits, c.h, a->dw->data, NULL, a->dw->data, c.workspace, d) : ST_OK;
}

static Status head_run(const KernelArgs *k, HeadArgs a, Diag *d) {
    HeadSizes s = sizes_of(k->in);
    const HeadState *h = k->state;
    CHECK(h, "%s was not prepared", op_name(k->node->op));
    if (s.n == 0 && h->dw_first) {
        HeadChunk c = head_chunk(&a, &s, k->scratch, 0);
        return gemm_run(k->device, h->dw_first, c.logits, c.h, NULL, NULL, a.dw->data, c.workspace, d);
    }
    for (int64_t i = 0; i < s.nchunk; i++) TRY(run_chunk(k, &a, &s, i, d));
    return ST_OK;
}

#define HEAD_KERNEL(name, args)                                                                                   \
    size_t cuda_##name##_scratch(const Node *n, const Operand *in, const Operand *out) {                          \
        (void)n, (void)out;                                                                                       \
        return head_scratch(in);                                                                                  \
    }                                                                                                             \
    Status cuda_##name##_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {                       \
        return head_prepare(dev, k, args(k->in, k->out), state, d);                                               \
    }                                                                                                             \
    Status cuda_##name(const KernelArgs *k, Diag *d) { return head_run(k, args(k->in, k->out), d); }
HEAD_KERNEL(head_fwd, fwd_args)
HEAD_KERNEL(head_grad, grad_args)
HEAD_KERNEL(head, both_args)
