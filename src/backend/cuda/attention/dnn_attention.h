// Attention as graphs of cuDNN operations: what its engines recognise and run as one flash attention kernel.
#pragma once
#include "backend/cuda/attention/dnn_mask.h"

typedef struct DnnAttention {
    int64_t batch, heads, kv_heads, nq, nk, dim;
    DnnMaskKind mask;
    bool shifted;  // the mask has a shift other than 0 (the number itself is given to each run, as is the window)
    bool cut;      // lengths of queries and keys are read from memory, so that the rest of their tiles counts for nothing
    // elements between entries of the batch, heads and positions; channels are next to each other. lse: dense [.., nq]
    struct DnnStride {
        int64_t batch, head, pos;
    } q, k, v, o;  // dout and gradients are laid out as what they belong to
    int64_t lse_batch, lse_head;
    // Entries of the batch are documents of varying length, found by offsets in memory; cut is set, one head. lse, the sums and
    // the accumulator are packed as q is, dk and dv too (one for each query head), k and v by offsets of their own.
    bool packed;
} DnnAttention;

typedef enum DnnUid {
    DNN_Q = 1,
    DNN_K,
    DNN_V,
    DNN_O,
    DNN_LSE,
    DNN_DO,
    DNN_DQ,
    DNN_DK,
    DNN_DV,
    DNN_SUM,     // backward's scratch, f32 [batch, heads, nq]: sum of do * o
    DNN_DQ_ACC,  // backward's scratch, f32 [batch, heads, nq, dim]
    DNN_NQ,
    DNN_NK,  // cut: int32 [batch]
    DNN_OFFSET_Q,
    DNN_OFFSET_K,
    DNN_OFFSET_ROW,  // packed: int64 [batch + 1], in elements of q, of k, of lse
    DNN_SCALE,
    DNN_MINUS_INF,
    DNN_ONE,  // on the host: f32
    DNN_SHIFT,
    DNN_LEFT,  // on the host: int32 shift; f32 window - shift
    DNN_UID_END
} DnnUid;

#include "backend/cuda/attention/dnn_graph.h"
#if LIBS_HAVE_CUDNN
// Adds the operations of the forward pass (q, k, v -> o, lse) or of the backward pass (q, k, v, o, lse, do -> dq, dk, dv).
void dnn_build_forward(DnnGraph *g, const DnnAttention *a);
void dnn_build_backward(DnnGraph *g, const DnnAttention *a);
#endif
