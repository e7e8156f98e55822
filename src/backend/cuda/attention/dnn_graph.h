// Graphs of cuDNN's backend API, without its C++ front end: tensors, the handful of operations that attention is made of, and
// plans.
//
//   DnnGraph g;
//   dnn_graph_begin(&g, dnn);
//   DnnTensor s = dnn_virtual(&g, "scores", CUDNN_DATA_FLOAT, DIMS(b, h, sq, sk));
//   dnn_matmul(&g, "q.k", q, k, s);  ...
//   status = dnn_graph_plan(&g, max_workspace, &plan, d);
//   dnn_graph_end(&g);
//
// The first failure sticks: later calls do nothing, and dnn_graph_plan reports it with the descriptor's name and cuDNN's own
// words.
#pragma once
#include "backend/cuda/device/libs.h"
#if LIBS_HAVE_CUDNN
#include <stdint.h>

// A connection to cuDNN.
typedef struct Dnn {
    const CudnnLib *lib;
    cudnnHandle_t handle;
} Dnn;
Status dnn_open(Dnn *dnn, void *stream, Diag *d);
void dnn_disconnect(Dnn *dnn);
// "what: CUDNN_STATUS_...: cuDNN's last error text".
Status dnn_error(const Dnn *dnn, cudnnStatus_t st, const char *what, Diag *d);

typedef struct DnnDims {
    int64_t v[4];
} DnnDims;
#define DIMS(...) ((DnnDims){{__VA_ARGS__}})
static inline DnnDims dnn_dense(DnnDims n) { return DIMS(n.v[1] * n.v[2] * n.v[3], n.v[2] * n.v[3], n.v[3], 1); }

typedef int DnnTensor;  // index in the graph
#define NO_TENSOR (-1)
enum { DNN_MAX_TENSORS = 64, DNN_MAX_OPS = 48, DNN_MAX_DESCRIPTORS = 192, DNN_FIRST_VIRTUAL = 1000 };
typedef struct DnnGraph {
    const Dnn *dnn;
    cudnnBackendDescriptor_t tensor[DNN_MAX_TENSORS], op[DNN_MAX_OPS], all[DNN_MAX_DESCRIPTORS];
    DnnDims dims[DNN_MAX_TENSORS];
    int ntensor, nop, nall;
    uint64_t operands;  // bit uid of every tensor that a run gives
    Diag error;
} DnnGraph;

void dnn_graph_begin(DnnGraph *g, const Dnn *dnn);
void dnn_graph_end(DnnGraph *g);  // plans live on
// Memory that a run gives by `uid` (1 .. 63).
DnnTensor dnn_tensor(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride, int64_t uid);
// The same, packed: entry i of the batch begins at element offset[i] (a tensor int64 [batch + 1,1,1,1]). NO_TENSOR: dense.
DnnTensor dnn_tensor_packed(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride, int64_t uid,
                            DnnTensor offset);
// One number that a run gives by address on the host.
DnnTensor dnn_scalar(DnnGraph *g, const char *name, cudnnDataType_t t, int64_t uid);
// Exists only inside of the kernel (or in the plan's workspace). Dense unless said otherwise.
DnnTensor dnn_virtual(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims);
DnnTensor dnn_virtual_strided(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride,
                              DnnTensor offset);

// Lengths that a product's dims are cut to, for each entry of the batch: int32 [B,1,1,1]; NO_TENSOR: whole.
typedef struct DnnCut {
    DnnTensor m, n, k;
} DnnCut;
#define DNN_WHOLE ((DnnCut){NO_TENSOR, NO_TENSOR, NO_TENSOR})
void dnn_matmul(DnnGraph *g, const char *name, DnnTensor a, DnnTensor b, DnnTensor c, DnnCut cut);
// y = mode(x, b); b NO_TENSOR: unary.
void dnn_pointwise(DnnGraph *g, const char *name, cudnnPointwiseMode_t mode, cudnnDataType_t compute, DnnTensor x, DnnTensor b,
                   DnnTensor y);
void dnn_index(DnnGraph *g, const char *name, int64_t axis, DnnTensor like, DnnTensor y);
void dnn_select(DnnGraph *g, const char *name, DnnTensor if_true, DnnTensor if_false, DnnTensor condition, DnnTensor y);
void dnn_reduce(DnnGraph *g, const char *name, cudnnReduceTensorOp_t op, DnnTensor x, DnnTensor y);
void dnn_reshape(DnnGraph *g, const char *name, DnnTensor x, DnnTensor y);

typedef struct DnnEngine {  // what was chosen, for people
    int64_t index;          // cuDNN's engine
    int64_t workspace;      // bytes
    int nconfig, chosen;    // proposals of the heuristics; which one was taken
} DnnEngine;
// The heuristics' first proposal that builds and needs at most max_workspace bytes.
Status dnn_graph_plan(DnnGraph *g, int64_t max_workspace, cudnnBackendDescriptor_t *plan, DnnEngine *engine, Diag *d);

// A plan as text and back: what is kept on disk. The text is malloc'ed.
Status dnn_plan_text(const Dnn *dnn, cudnnBackendDescriptor_t plan, char **text, size_t *nbytes, Diag *d);
Status dnn_plan_from_text(const Dnn *dnn, const char *text, size_t nbytes, cudnnBackendDescriptor_t *plan, int64_t *workspace,
                          Diag *d);
void dnn_plan_free(const Dnn *dnn, cudnnBackendDescriptor_t plan);
Status dnn_plan_run(const Dnn *dnn, cudnnBackendDescriptor_t plan, int n, const int64_t *uid, void **data, void *workspace,
                    Diag *d);
#endif
