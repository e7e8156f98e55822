// The output projection with its softmax statistics and gradients, without logits of the whole sequence (docs/cuda.md): ops head_fwd,
// head_grad and head. A chunk of rows at a time: logits = scale h w^T, their rows' statistics and gradient in place (head.cu),
// dh = scale dlogits w, dw += scale dlogits^T h. Operands h [N, D], w [V, D], idx [N] and vectors [N]; results as the op has them.
#include "backend/cuda/head.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/head_rows.h"
#include "backend/cuda/kernels.h"

enum { HEAD_ALIGN = 256 };

// The operands of all three ops under one set of names; NULL: the op has none.
typedef struct HeadCall {
    const Operand *h, *w, *idx, *lse_in, *glse, *gpick;
    const Operand *lse, *pick, *dh, *dw;
    float scale, cap;
    char *logits, *workspace;  // scratch
} HeadCall;

static size_t logits_nbytes(const Operand *in) {
    HeadChunks c = head_chunks(in[0].dim[0], in[1].dim[0], in[0].dtype);
    return (size_t)round_up(c.rows * in[1].dim[0] * dtype_nbytes(in[0].dtype), HEAD_ALIGN);
}

static HeadCall head_call(const KernelArgs *k) {
    HeadCall x = {.h = &k->in[0], .w = &k->in[1], .idx = &k->in[2], .logits = k->scratch, .workspace = (char *)k->scratch + logits_nbytes(k->in)};
    x.scale = (float)node_float_or(k->node, ATTR_SCALE, 1), x.cap = (float)node_float_or(k->node, ATTR_SOFTCAP, 0);
    if (k->node->op == OP_HEAD_GRAD) {
        x.lse_in = &k->in[3], x.glse = &k->in[4], x.gpick = &k->in[5], x.dh = &k->out[0], x.dw = &k->out[1];
        return x;
    }
    x.lse = &k->out[0], x.pick = &k->out[1];
    if (k->node->op == OP_HEAD) x.glse = &k->in[3], x.gpick = &k->in[4], x.dh = &k->out[2], x.dw = &k->out[3];
    return x;
}

// Its element `at` (rows of `width`).
static void *at_row(const Operand *o, int64_t row, int64_t width) {
    return o ? (char *)o->data + row * width * dtype_nbytes(o->dtype) : NULL;
}

// ---- preparation -------------------------------------------------------------------------------------------------------
// The three products of a chunk. [0]: of most chunks, [1]: of the last. dw is overwritten by the first chunk and added to by the others.
typedef struct HeadState {
    GemmPlan *logits[2], *dh[2], *dw_first, *dw_add[2];
} HeadState;

static Gemm logits_gemm(const HeadCall *x, int64_t rows) {
    int64_t d = x->w->dim[1], v = x->w->dim[0];
    return (Gemm){.m = rows, .n = v, .k = d, .batch = 1, .trans_b = true, .lda = d, .ldb = d, .ldc = v, .ldd = v, .ab = x->h->dtype,
                  .cd = x->h->dtype, .alpha = x->scale};
}
static Gemm dh_gemm(const HeadCall *x, int64_t rows) {
    int64_t d = x->w->dim[1], v = x->w->dim[0];
    return (Gemm){.m = rows, .n = d, .k = v, .batch = 1, .lda = v, .ldb = d, .ldc = d, .ldd = d, .ab = x->h->dtype, .cd = x->dh->dtype,
                  .alpha = x->scale};
}
static Gemm dw_gemm(const HeadCall *x, int64_t rows, bool add) {
    int64_t d = x->w->dim[1], v = x->w->dim[0];
    return (Gemm){.m = v, .n = d, .k = rows, .batch = 1, .trans_a = true, .lda = v, .ldb = d, .ldc = d, .ldd = d, .ab = x->h->dtype,
                  .cd = x->dw->dtype, .alpha = x->scale, .beta = add};
}

static Status check_head(const KernelArgs *k, const HeadCall *x, Diag *d) {
    const char *op = op_name(k->node->op);
    if (x->w->dim[0] == 0 || x->w->dim[1] == 0)
        return diag_error(d, ST_UNSUPPORTED, "%s: an output layer of %lld classes over %lld features", op, (long long)x->w->dim[0],
                          (long long)x->w->dim[1]);
    DType t = x->h->dtype;
    if ((t != DT_BF16 && t != DT_F32) || x->w->dtype != t)
        return diag_error(d, ST_UNSUPPORTED, "%s: CUDA takes h and w both f32 or both bf16, not %s and %s", op, dtype_name(t), dtype_name(x->w->dtype));
    if (x->dh && x->dh->dtype != t && x->dh->dtype != DT_F32)
        return diag_error(d, ST_UNSUPPORTED, "%s: CUDA gives the gradient of h as %s or f32, not %s", op, dtype_name(t), dtype_name(x->dh->dtype));
    const Operand *wide[] = {x->lse_in, x->glse, x->gpick, x->lse, x->pick, x->dw};
    for (int i = 0; i < 6; i++)
        if (wide[i] && wide[i]->dtype != DT_F32)
            return diag_error(d, ST_UNSUPPORTED, "%s: CUDA takes statistics, their cotangents and the gradient of w as f32, not %s", op,
                              dtype_name(wide[i]->dtype));
    return ST_OK;
}

static Status prepare_grad(Device *dev, const HeadCall *x, int last, int64_t row, int64_t rows, bool several, HeadState *s, Diag *d) {
    int64_t nd = x->w->dim[1];
    Gemm dh = dh_gemm(x, rows), add = dw_gemm(x, rows, true), first = dw_gemm(x, rows, false);
    void *h = at_row(x->h, row, nd), *dw = x->dw->data;
    TRY(gemm_prepare(dev, &dh, x->logits, x->w->data, NULL, at_row(x->dh, row, nd), x->workspace, &s->dh[last], d));
    if (several) TRY(gemm_prepare(dev, &add, x->logits, h, dw, dw, x->workspace, &s->dw_add[last], d));
    return last ? ST_OK : gemm_prepare(dev, &first, x->logits, h, NULL, dw, x->workspace, &s->dw_first, d);
}

static Status head_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    HeadCall x = head_call(k);
    TRY(check_head(k, &x, d));
    HeadState *s = *state = gemm_alloc(dev, sizeof *s);
    HeadChunks c = head_chunks(x.h->dim[0], x.w->dim[0], x.h->dtype);
    if (c.nchunk == 0) {  // no rows: an empty contraction gives zeros
        if (!x.dw) return ST_OK;
        Gemm g = dw_gemm(&x, 0, false);
        return gemm_prepare(dev, &g, x.logits, x.h->data, NULL, x.dw->data, x.workspace, &s->dw_first, d);
    }
    for (int last = 0; last < 2; last++) {
        int64_t rows = last ? c.last : c.rows, row = last ? (c.nchunk - 1) * c.rows : 0;
        Gemm logits = logits_gemm(&x, rows);
        TRY(gemm_prepare(dev, &logits, at_row(x.h, row, x.w->dim[1]), x.w->data, NULL, x.logits, x.workspace, &s->logits[last], d));
        if (x.dh) TRY(prepare_grad(dev, &x, last, row, rows, c.nchunk > 1, s, d));
    }
    return ST_OK;
}

// ---- a step ------------------------------------------------------------------------------------------------------------
static Status run_chunk(const KernelArgs *k, const HeadCall *x, const HeadChunks *c, int64_t i, Diag *d) {
    const HeadState *s = k->state;
    bool last = i == c->nchunk - 1;
    int64_t at = i * c->rows, nd = x->w->dim[1];
    void *h = at_row(x->h, at, nd);
    HeadRows r = {.x = x->logits, .idx = at_row(x->idx, at, 1), .lse_in = at_row(x->lse_in, at, 1), .glse = at_row(x->glse, at, 1),
                  .gpick = at_row(x->gpick, at, 1), .lse = at_row(x->lse, at, 1), .pick = at_row(x->pick, at, 1), .cap = x->cap,
                  .rows = last ? c->last : c->rows, .v = x->w->dim[0], .error = k->device->error, .node = k->id};
    TRY(gemm_run(k->device, s->logits[last], h, x->w->data, NULL, NULL, x->logits, x->workspace, d));
    head_rows_launch(k->device->stream, x->h->dtype == DT_BF16, &r);
    if (!x->dh) return ST_OK;
    void *dw = x->dw->data;
    TRY(gemm_run(k->device, s->dh[last], x->logits, x->w->data, NULL, NULL, at_row(x->dh, at, nd), x->workspace, d));
    return gemm_run(k->device, i == 0 ? s->dw_first : s->dw_add[last], x->logits, h, i == 0 ? NULL : dw, NULL, dw, x->workspace, d);
}

static Status head_run(const KernelArgs *k, Diag *d) {
    CHECK(k->state, "%s: not prepared", op_name(k->node->op));
    HeadCall x = head_call(k);
    HeadChunks c = head_chunks(x.h->dim[0], x.w->dim[0], x.h->dtype);
    if (c.nchunk == 0 && x.dw)
        return gemm_run(k->device, ((HeadState *)k->state)->dw_first, x.logits, x.h->data, NULL, NULL, x.dw->data, x.workspace, d);
    for (int64_t i = 0; i < c.nchunk; i++) TRY(run_chunk(k, &x, &c, i, d));
    return ST_OK;
}

// ---- the three ops -----------------------------------------------------------------------------------------------------
#define HEAD_OP(name)                                                                                              \
    Status cuda_##name(const KernelArgs *k, Diag *d) { return head_run(k, d); }                                    \
    Status cuda_##name##_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) { return head_prepare(dev, k, state, d); } \
    size_t cuda_##name##_scratch(const Node *n, const Operand *in, const Operand *out) {                           \
        (void)n, (void)out;                                                                                        \
        return logits_nbytes(in) + GEMM_WORKSPACE_NBYTES;                                                          \
    }
HEAD_OP(head)
HEAD_OP(head_fwd)
HEAD_OP(head_grad)
