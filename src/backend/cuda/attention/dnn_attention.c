// See dnn_attention.h. cuDNN's engines match these graphs as a whole: the order of operations, which tensors are virtual and the
// type of each are what they expect (docs of the graph API, "Fused flash attention fprop / bprop"); scores are [B,H,Sq,Sk] only
// in name.
#include "backend/cuda/attention/dnn_attention.h"
#if LIBS_HAVE_CUDNN

#define F32 CUDNN_DATA_FLOAT
#define I32 CUDNN_DATA_INT32
#define BF16 CUDNN_DATA_BFLOAT16

typedef struct DnnStride DnnStride;
static DnnDims strides(DnnStride s) { return DIMS(s.batch, s.head, s.pos, 1); }
static DnnDims swapped(DnnDims x) { return DIMS(x.v[0], x.v[1], x.v[3], x.v[2]); }

static DnnDims score_dims(const DnnAttention *a) { return DIMS(a->batch, a->heads, a->nq, a->nk); }
static DnnDims row_dims(const DnnAttention *a) { return DIMS(a->batch, a->heads, a->nq, 1); }
static DnnDims query_dims(const DnnAttention *a) { return DIMS(a->batch, a->heads, a->nq, a->dim); }
static DnnDims key_dims(const DnnAttention *a) { return DIMS(a->batch, a->kv_heads, a->nk, a->dim); }

// Where the entries of the batch begin; NO_TENSOR: densely.
typedef struct Offsets {
    DnnTensor q, k, row;
} Offsets;

static Offsets offsets(DnnGraph *g, const DnnAttention *a) {
    if (!a->packed) return (Offsets){NO_TENSOR, NO_TENSOR, NO_TENSOR};
    DnnDims n = DIMS(a->batch + 1, 1, 1, 1), s = DIMS(1, 1, 1, 1);
    return (Offsets){dnn_tensor(g, "offsets of q", CUDNN_DATA_INT64, n, s, DNN_OFFSET_Q),
                     dnn_tensor(g, "offsets of k", CUDNN_DATA_INT64, n, s, DNN_OFFSET_K),
                     dnn_tensor(g, "offsets of rows", CUDNN_DATA_INT64, n, s, DNN_OFFSET_ROW)};
}

static DnnTensor queries(DnnGraph *g, const DnnAttention *a, const char *name, DnnStride s, DnnUid uid, DnnTensor offset) {
    return dnn_tensor_packed(g, name, BF16, query_dims(a), strides(s), uid, offset);
}
static DnnTensor keys(DnnGraph *g, const DnnAttention *a, const char *name, DnnStride s, DnnUid uid, DnnTensor offset) {
    return dnn_tensor_packed(g, name, BF16, key_dims(a), strides(s), uid, offset);
}
// [B,Hkv,D,Sk]: the same bytes
static DnnTensor keys_transposed(DnnGraph *g, const DnnAttention *a, const char *name, DnnStride s, DnnUid uid,
                                 DnnTensor offset) {
    return dnn_tensor_packed(g, name, BF16, swapped(key_dims(a)), swapped(strides(s)), uid, offset);
}
static DnnTensor lse(DnnGraph *g, const DnnAttention *a, DnnTensor offset) {
    return dnn_tensor_packed(g, "lse", F32, row_dims(a), DIMS(a->lse_batch, a->lse_head, 1, 1), DNN_LSE, offset);
}

// ---- masks
// ------------------------------------------------------------------------------------------------------------------------
typedef struct Lengths {
    DnnTensor nq, nk;  // NO_TENSOR: not cut
} Lengths;

static Lengths lengths(DnnGraph *g, const DnnAttention *a) {
    if (!a->cut) return (Lengths){NO_TENSOR, NO_TENSOR};
    DnnDims n = DIMS(a->batch, 1, 1, 1), s = DIMS(1, 1, 1, 1);
    return (Lengths){dnn_tensor(g, "nq", I32, n, s, DNN_NQ), dnn_tensor(g, "nk", I32, n, s, DNN_NK)};
}

static DnnTensor scores(DnnGraph *g, const DnnAttention *a, const char *name, cudnnDataType_t t) {
    return dnn_virtual(g, name, t, score_dims(a));
}

static DnnTensor position(DnnGraph *g, const DnnAttention *a, const char *name, int64_t axis, DnnTensor like) {
    DnnTensor y = scores(g, a, name, I32);
    dnn_index(g, name, axis, like, y);
    return y;
}

// s where mode(x, y), -inf elsewhere
static DnnTensor keep(DnnGraph *g, const DnnAttention *a, const char *name, DnnTensor s, cudnnPointwiseMode_t mode, DnnTensor x,
                      DnnTensor y, DnnTensor minus_inf) {
    DnnTensor visible = scores(g, a, name, CUDNN_DATA_BOOLEAN), out = scores(g, a, name, F32);
    dnn_pointwise(g, name, mode, CUDNN_DATA_BOOLEAN, x, y, visible);
    dnn_select(g, name, s, minus_inf, visible, out);
    return out;
}

static DnnTensor mask_lengths(DnnGraph *g, const DnnAttention *a, DnnTensor s, Lengths n, DnnTensor minus_inf) {
    if (!a->cut) return s;
    DnnTensor row = position(g, a, "row of the cut", 2, s), col = position(g, a, "column of the cut", 3, s);
    DnnTensor in_q = scores(g, a, "row < nq", CUDNN_DATA_BOOLEAN), in_k = scores(g, a, "column < nk", CUDNN_DATA_BOOLEAN);
    DnnTensor both = scores(g, a, "within lengths", CUDNN_DATA_BOOLEAN), out = scores(g, a, "cut scores", F32);
    dnn_pointwise(g, "row < nq", CUDNN_POINTWISE_CMP_LT, CUDNN_DATA_BOOLEAN, row, n.nq, in_q);
    dnn_pointwise(g, "column < nk", CUDNN_POINTWISE_CMP_LT, CUDNN_DATA_BOOLEAN, col, n.nk, in_k);
    dnn_pointwise(g, "within lengths", CUDNN_POINTWISE_LOGICAL_AND, CUDNN_DATA_BOOLEAN, in_q, in_k, both);
    dnn_select(g, "cut scores", s, minus_inf, both, out);
    return out;
}

static DnnTensor mask_band(DnnGraph *g, const DnnAttention *a, DnnTensor s, DnnTensor minus_inf) {
    if (a->mask == DNN_FULL) return s;
    DnnTensor row = position(g, a, "row", 2, s), col = position(g, a, "column", 3, s);
    if (a->shifted) {
        DnnTensor shift = dnn_scalar(g, "shift", I32, DNN_SHIFT), moved = scores(g, a, "row + shift", I32);
        dnn_pointwise(g, "row + shift", CUDNN_POINTWISE_ADD, I32, row, shift, moved);
        row = moved;
    }
    s = keep(g, a, "causal", s, CUDNN_POINTWISE_CMP_GE, row, col, minus_inf);
    if (a->mask == DNN_CAUSAL) return s;
    row = position(g, a, "row of the window", 2, s), col = position(g, a, "column of the window", 3, s);
    DnnTensor left = dnn_scalar(g, "left", F32, DNN_LEFT), end = scores(g, a, "column + left", F32);
    dnn_pointwise(g, "column + left", CUDNN_POINTWISE_ADD, F32, col, left, end);
    return keep(g, a, "window", s, CUDNN_POINTWISE_CMP_GT, end, row, minus_inf);
}

static DnnTensor apply(DnnGraph *g, const DnnAttention *a, const char *name, cudnnPointwiseMode_t mode, DnnTensor x,
                       DnnTensor b) {
    DnnTensor y = scores(g, a, name, F32);
    dnn_pointwise(g, name, mode, F32, x, b, y);
    return y;
}

// ---- forward
// ----------------------------------------------------------------------------------------------------------------------
void dnn_build_forward(DnnGraph *g, const DnnAttention *a) {
    Offsets at = offsets(g, a);
    DnnTensor q = queries(g, a, "q", a->q, DNN_Q, at.q), kt = keys_transposed(g, a, "k", a->k, DNN_K, at.k),
              v = keys(g, a, "v", a->v, DNN_V, at.k);
    DnnTensor scale = dnn_scalar(g, "scale", F32, DNN_SCALE), o = queries(g, a, "o", a->o, DNN_O, at.q);
    DnnTensor minus_inf = a->mask != DNN_FULL || a->cut ? dnn_scalar(g, "-inf", F32, DNN_MINUS_INF) : NO_TENSOR;
    Lengths n = lengths(g, a);
    DnnTensor s = scores(g, a, "q k", F32);
    dnn_matmul(g, "q k", q, kt, s, (DnnCut){n.nq, n.nk, NO_TENSOR});
    s = apply(g, a, "scale", CUDNN_POINTWISE_MUL, s, scale);
    s = mask_lengths(g, a, s, n, minus_inf);
    s = mask_band(g, a, s, minus_inf);
    DnnTensor max = dnn_virtual(g, "max", F32, row_dims(a)), sum = dnn_virtual(g, "sum", F32, row_dims(a));
    DnnTensor log = dnn_virtual(g, "log", F32, row_dims(a)), p = scores(g, a, "p", BF16);
    dnn_reduce(g, "max", CUDNN_REDUCE_TENSOR_MAX, s, max);
    DnnTensor e = apply(g, a, "exp", CUDNN_POINTWISE_EXP, apply(g, a, "s - max", CUDNN_POINTWISE_SUB, s, max), NO_TENSOR);
    dnn_reduce(g, "sum", CUDNN_REDUCE_TENSOR_ADD, e, sum);
    dnn_pointwise(g, "log", CUDNN_POINTWISE_LOG, F32, sum, NO_TENSOR, log);
    dnn_pointwise(g, "lse", CUDNN_POINTWISE_ADD, F32, max, log, lse(g, a, at.row));
    dnn_pointwise(g, "p", CUDNN_POINTWISE_DIV, F32, e, sum, p);
    dnn_matmul(g, "p v", p, v, o, (DnnCut){n.nq, NO_TENSOR, n.nk});
}

// ---- backward
// --------------------------------------------------------------------------------------------------------------------- sum(do *
// o) over channels, into memory: rows of dP are lowered by it.
static DnnTensor row_sums(DnnGraph *g, const DnnAttention *a, DnnTensor dout, Offsets at) {
    DnnTensor o = queries(g, a, "o", a->o, DNN_O, at.q), prod = dnn_virtual(g, "do * o", F32, query_dims(a));
    DnnTensor red = dnn_virtual(g, "sum do * o", F32, row_dims(a)), one = dnn_scalar(g, "one", F32, DNN_ONE);
    DnnTensor sum = dnn_tensor_packed(g, "softmax sum", F32, row_dims(a), dnn_dense(row_dims(a)), DNN_SUM, at.row);
    dnn_pointwise(g, "do * o", CUDNN_POINTWISE_MUL, F32, dout, o, prod);
    dnn_reduce(g, "sum do * o", CUDNN_REDUCE_TENSOR_ADD, prod, red);
    dnn_pointwise(g, "softmax sum", CUDNN_POINTWISE_MUL, F32, red, one, sum);
    return sum;
}

// out = x^T by, summed over the query heads of a KV head: dv from p and do, dk from ds and q. x [B,H,Sq,Sk] f32, by [B,H,Sq,D].
static void sum_over_queries(DnnGraph *g, const DnnAttention *a, const char *name, DnnTensor x, DnnTensor by, DnnTensor out,
                             Lengths n) {
    DnnDims t = swapped(score_dims(a));
    DnnTensor xt = dnn_virtual_strided(g, name, BF16, t, swapped(dnn_dense(score_dims(a))), NO_TENSOR);
    dnn_reshape(g, name, x, xt);
    DnnCut cut = {n.nk, NO_TENSOR, n.nq};
    if (a->heads == a->kv_heads) {
        dnn_matmul(g, name, xt, by, out, cut);
        return;
    }
    DnnTensor each = dnn_virtual(g, name, BF16, DIMS(a->batch, a->heads, a->nk, a->dim));
    dnn_matmul(g, name, xt, by, each, cut);
    dnn_reduce(g, name, CUDNN_REDUCE_TENSOR_ADD, each, out);
}

void dnn_build_backward(DnnGraph *g, const DnnAttention *a) {
    Offsets at = offsets(g, a);
    DnnTensor q = queries(g, a, "q", a->q, DNN_Q, at.q), kt = keys_transposed(g, a, "k", a->k, DNN_K, at.k),
              vt = keys_transposed(g, a, "v", a->v, DNN_V, at.k);
    DnnTensor dout = queries(g, a, "do", a->o, DNN_DO, at.q), scale = dnn_scalar(g, "scale", F32, DNN_SCALE);
    DnnTensor minus_inf = a->mask != DNN_FULL || a->cut ? dnn_scalar(g, "-inf", F32, DNN_MINUS_INF) : NO_TENSOR;
    Lengths n = lengths(g, a);
    DnnCut cut_scores = {n.nq, n.nk, NO_TENSOR};
    DnnTensor sum = row_sums(g, a, dout, at);

    DnnTensor s = scores(g, a, "q k", F32);  // probabilities again: exp(scale * q.k - lse)
    dnn_matmul(g, "q k", q, kt, s, cut_scores);
    s = apply(g, a, "scale", CUDNN_POINTWISE_MUL, s, scale);
    s = mask_lengths(g, a, s, n, minus_inf);
    s = apply(g, a, "s - lse", CUDNN_POINTWISE_SUB, s, lse(g, a, at.row));
    s = mask_band(g, a, s, minus_inf);
    DnnTensor p = apply(g, a, "p", CUDNN_POINTWISE_EXP, s, NO_TENSOR);
    sum_over_queries(g, a, "dv", p, dout, keys(g, a, "dv", a->v, DNN_DV, at.q), n);

    DnnTensor dp = scores(g, a, "do v", F32);
    dnn_matmul(g, "do v", dout, vt, dp, cut_scores);
    DnnTensor ds = apply(g, a, "dp - sum", CUDNN_POINTWISE_SUB, dp, sum);
    ds = apply(g, a, "ds", CUDNN_POINTWISE_MUL, ds, p);
    ds = apply(g, a, "scaled ds", CUDNN_POINTWISE_MUL, ds, scale);
    sum_over_queries(g, a, "dk", ds, q, keys(g, a, "dk", a->k, DNN_DK, at.q), n);

    DnnTensor k = dnn_virtual_strided(g, "k again", BF16, key_dims(a), strides(a->k), at.k);
    dnn_reshape(g, "k again", kt, k);
    DnnTensor acc = dnn_tensor_packed(g, "dq accumulator", F32, query_dims(a), dnn_dense(query_dims(a)), DNN_DQ_ACC, at.q);
    dnn_matmul(g, "dq", ds, k, acc, (DnnCut){n.nq, NO_TENSOR, n.nk});
    dnn_pointwise(g, "dq", CUDNN_POINTWISE_IDENTITY, F32, acc, NO_TENSOR, queries(g, a, "dq", a->q, DNN_DQ, at.q));
}
#endif
