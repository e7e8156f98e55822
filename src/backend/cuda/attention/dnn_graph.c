// See dnn_graph.h.
#include "backend/cuda/attention/dnn_graph.h"
#if LIBS_HAVE_CUDNN
#include <stdlib.h>
#include <string.h>

enum { OLDEST = 91800 };  // 9.14 has a wrong window and packed backward; 9.18 and 9.19 were measured right

Status dnn_error(const Dnn *dnn, cudnnStatus_t st, const char *what, Diag *d) {
    char text[1024] = "";
    dnn->lib->cudnnGetLastErrorString(text, sizeof text);
    for (char *c = text; *c; c++)
        if (*c == '\n') *c = ' ';
    return diag_error(d, ST_UNSUPPORTED, "cuDNN %zu: %s: %s: %s", dnn->lib->version, what, dnn->lib->cudnnGetErrorString(st),
                      text);
}

Status dnn_open(Dnn *dnn, void *stream, Diag *d) {
    *dnn = (Dnn){0};
    TRY(libs_cudnn(&dnn->lib, d));
    if (dnn->lib->version < OLDEST)
        return diag_error(
            d, ST_UNSUPPORTED,
            "cuDNN %zu is too old: attention needs 9.18 or newer (91800); put the folder of a newer libcudnn.so.9 (pip install "
            "nvidia-cudnn-cu13: .../nvidia/cudnn/lib) in front of LD_LIBRARY_PATH",
            dnn->lib->version);
    cudnnStatus_t st = dnn->lib->cudnnCreate(&dnn->handle);
    if (st != CUDNN_STATUS_SUCCESS) return dnn_error(dnn, st, "cudnnCreate", d);
    st = dnn->lib->cudnnSetStream(dnn->handle, stream);
    if (st == CUDNN_STATUS_SUCCESS) return ST_OK;
    dnn_error(dnn, st, "cudnnSetStream", d);
    dnn_disconnect(dnn);
    return d->status;
}

void dnn_disconnect(Dnn *dnn) {
    if (dnn->handle) dnn->lib->cudnnDestroy(dnn->handle);
    *dnn = (Dnn){.lib = dnn->lib};
}

// ---- descriptors
// ------------------------------------------------------------------------------------------------------------------
static bool failed(const DnnGraph *g) { return g->error.status != ST_OK; }

static void check(DnnGraph *g, cudnnStatus_t st, const char *name, const char *what) {
    if (st == CUDNN_STATUS_SUCCESS || failed(g)) return;
    char where[160];
    snprintf(where, sizeof where, "%s (%s)", name, what);
    dnn_error(g->dnn, st, where, &g->error);
}

static cudnnBackendDescriptor_t create(DnnGraph *g, cudnnBackendDescriptorType_t type, const char *name) {
    cudnnBackendDescriptor_t x = NULL;
    if (failed(g)) return NULL;
    CHECK(g->nall < DNN_MAX_DESCRIPTORS, "too many cuDNN descriptors");
    check(g, g->dnn->lib->cudnnBackendCreateDescriptor(type, &x), name, "create");
    if (x) g->all[g->nall++] = x;
    return x;
}

static void set(DnnGraph *g, cudnnBackendDescriptor_t x, const char *name, cudnnBackendAttributeName_t attr,
                cudnnBackendAttributeType_t type, int64_t n, const void *value) {
    if (failed(g)) return;
    char what[48];
    snprintf(what, sizeof what, "attribute %d", (int)attr);
    check(g, g->dnn->lib->cudnnBackendSetAttribute(x, attr, type, n, value), name, what);
}

static void set_tensor(DnnGraph *g, cudnnBackendDescriptor_t x, const char *name, cudnnBackendAttributeName_t attr, DnnTensor t) {
    if (!failed(g) && t != NO_TENSOR) set(g, x, name, attr, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->tensor[t]);
}

static void finalize(DnnGraph *g, cudnnBackendDescriptor_t x, const char *name) {
    if (!failed(g)) check(g, g->dnn->lib->cudnnBackendFinalize(x), name, "finalize");
}

static void add_op(DnnGraph *g, cudnnBackendDescriptor_t x, const char *name) {
    finalize(g, x, name);
    if (failed(g)) return;
    CHECK(g->nop < DNN_MAX_OPS, "too many cuDNN operations");
    g->op[g->nop++] = x;
}

void dnn_graph_begin(DnnGraph *g, const Dnn *dnn) {
    memset(g, 0, sizeof *g);
    g->dnn = dnn;
}

void dnn_graph_end(DnnGraph *g) {
    while (g->nall > 0) g->dnn->lib->cudnnBackendDestroyDescriptor(g->all[--g->nall]);
    g->ntensor = g->nop = 0;
}

// ---- tensors
// ----------------------------------------------------------------------------------------------------------------------
typedef enum Where { IN_MEMORY, BY_VALUE, VIRTUAL } Where;

static DnnTensor add_tensor(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride, int64_t uid,
                            Where where, DnnTensor offset) {
    cudnnBackendDescriptor_t x = create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR, name);
    CHECK(g->ntensor < DNN_MAX_TENSORS, "too many cuDNN tensors");
    int64_t alignment = 16;
    bool yes = true;
    set(g, x, name, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &t);
    set(g, x, name, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.v);
    set(g, x, name, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride.v);
    set(g, x, name, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(g, x, name, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (where == VIRTUAL) set(g, x, name, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (where == BY_VALUE) set(g, x, name, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    set_tensor(g, x, name, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, offset);
    finalize(g, x, name);
    CHECK(where == VIRTUAL || uid < 64, "no bit for cuDNN tensor %s", name);
    if (where != VIRTUAL) g->operands |= (uint64_t)1 << uid;
    g->tensor[g->ntensor] = x;
    g->dims[g->ntensor] = dims;
    return g->ntensor++;
}

DnnTensor dnn_tensor(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride, int64_t uid) {
    return add_tensor(g, name, t, dims, stride, uid, IN_MEMORY, NO_TENSOR);
}

DnnTensor dnn_tensor_packed(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride, int64_t uid,
                            DnnTensor offset) {
    return add_tensor(g, name, t, dims, stride, uid, IN_MEMORY, offset);
}

DnnTensor dnn_scalar(DnnGraph *g, const char *name, cudnnDataType_t t, int64_t uid) {
    return add_tensor(g, name, t, DIMS(1, 1, 1, 1), DIMS(1, 1, 1, 1), uid, BY_VALUE, NO_TENSOR);
}

DnnTensor dnn_virtual_strided(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims, DnnDims stride,
                              DnnTensor offset) {
    return add_tensor(g, name, t, dims, stride, DNN_FIRST_VIRTUAL + g->ntensor, VIRTUAL, offset);
}

DnnTensor dnn_virtual(DnnGraph *g, const char *name, cudnnDataType_t t, DnnDims dims) {
    return dnn_virtual_strided(g, name, t, dims, dnn_dense(dims), NO_TENSOR);
}

// ---- operations
// -------------------------------------------------------------------------------------------------------------------
void dnn_matmul(DnnGraph *g, const char *name, DnnTensor a, DnnTensor b, DnnTensor c, DnnCut cut) {
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t m = create(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR, name);
    set(g, m, name, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    finalize(g, m, name);
    cudnnBackendDescriptor_t x = create(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, name);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &m);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, cut.m);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, cut.n);
    set_tensor(g, x, name, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, cut.k);
    add_op(g, x, name);
}

// axis < 0: the mode takes none. t: the third operand (a select's condition).
static void pointwise(DnnGraph *g, const char *name, cudnnPointwiseMode_t mode, cudnnDataType_t compute, int64_t axis,
                      DnnTensor x, DnnTensor b, DnnTensor t, DnnTensor y) {
    cudnnBackendDescriptor_t m = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, name);
    set(g, m, name, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, m, name, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    if (axis >= 0) set(g, m, name, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finalize(g, m, name);
    cudnnBackendDescriptor_t op = create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, name);
    set(g, op, name, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &m);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_op(g, op, name);
}

void dnn_pointwise(DnnGraph *g, const char *name, cudnnPointwiseMode_t mode, cudnnDataType_t compute, DnnTensor x, DnnTensor b,
                   DnnTensor y) {
    pointwise(g, name, mode, compute, -1, x, b, NO_TENSOR, y);
}

void dnn_index(DnnGraph *g, const char *name, int64_t axis, DnnTensor like, DnnTensor y) {
    pointwise(g, name, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, axis, like, NO_TENSOR, NO_TENSOR, y);
}

void dnn_select(DnnGraph *g, const char *name, DnnTensor if_true, DnnTensor if_false, DnnTensor condition, DnnTensor y) {
    pointwise(g, name, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1, if_true, if_false, condition, y);
}

void dnn_reduce(DnnGraph *g, const char *name, cudnnReduceTensorOp_t mode, DnnTensor x, DnnTensor y) {
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t m = create(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, name);
    set(g, m, name, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    set(g, m, name, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    finalize(g, m, name);
    cudnnBackendDescriptor_t op = create(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, name);
    set(g, op, name, CUDNN_ATTR_OPERATION_REDUCTION_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &m);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add_op(g, op, name);
}

void dnn_reshape(DnnGraph *g, const char *name, DnnTensor x, DnnTensor y) {
    cudnnBackendDescriptor_t op = create(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, name);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_tensor(g, op, name, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add_op(g, op, name);
}
#endif
