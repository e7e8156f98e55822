// The CUDA backend: which kernel, how much scratch and what preparation for which op.
#include "backend/cuda/device/device_api.h"
#include "backend/cuda/kernels.h"

typedef struct CudaKernel {
    KernelFn run;
    size_t (*scratch)(const Node *n, const Operand *in, const Operand *out);                  // NULL: none
    Status (*prepare)(Device *dev, const KernelArgs *k, void **state, Diag *d);  // NULL: nothing to prepare
} CudaKernel;

#define ANY(name) {cuda_##name, NULL, NULL}
#define SCRATCH(name) {cuda_##name, cuda_##name##_scratch, NULL}
#define FULL(name) {cuda_##name, cuda_##name##_scratch, cuda_##name##_prepare}
static const CudaKernel kernels[OP_COUNT] = {
    [OP_FULL] = ANY(full),
    [OP_IOTA] = ANY(iota),
    [OP_RANDOM] = ANY(random),
    [OP_RESHAPE] = ANY(copy),
    [OP_PERMUTE] = ANY(permute),
    [OP_BROADCAST] = ANY(broadcast),
    [OP_SLICE] = ANY(slice),
    [OP_PAD] = ANY(pad),
    [OP_CONCAT] = ANY(concat),
    [OP_SUM] = SCRATCH(sum),
    [OP_AMAX] = SCRATCH(amax),
    [OP_LOGSUMEXP] = SCRATCH(logsumexp),
    [OP_CUMSUM] = SCRATCH(cumsum),
    [OP_EMBEDDING] = ANY(embedding),
    [OP_EMBEDDING_GRAD] = SCRATCH(embedding_grad),
    [OP_PICK] = ANY(pick),
    [OP_GATHER] = ANY(gather),
    [OP_SCATTER_ADD] = SCRATCH(scatter_add),
    [OP_INDEX_PUT] = SCRATCH(index_put),
    [OP_SORT] = SCRATCH(sort),
    [OP_TOPK] = SCRATCH(sort),
    [OP_HISTOGRAM] = ANY(histogram),
    [OP_DOT] = FULL(dot),
    [OP_EXPERT_MATMUL] = FULL(expert_matmul),
    [OP_EXPERT_MATMUL_GRAD] = FULL(expert_matmul_grad),
    [OP_HEAD_FWD] = FULL(head_fwd),
    [OP_HEAD_GRAD] = FULL(head_grad),
    [OP_HEAD] = FULL(head),
    [OP_CONV1D] = ANY(conv1d),
    [OP_CONV1D_GRAD_X] = ANY(conv1d_grad_x),
    [OP_CONV1D_GRAD_W] = SCRATCH(conv1d_grad_w),
    [OP_ATTENTION] = FULL(attention),
    [OP_ATTENTION_GRAD] = FULL(attention_grad),
    [OP_ADAMW] = ANY(adamw),
    [OP_RESHARD] = ANY(reshard),
    [OP_FUSED] = FULL(fused),
};
static const CudaKernel pointwise = FULL(pointwise);

static const CudaKernel *kernel_entry(OpKind op) { return op_is_pointwise(op) ? &pointwise : &kernels[op]; }

static KernelFn cuda_kernel(OpKind op, DType real) { return real == DT_F32 ? kernel_entry(op)->run : NULL; }

static size_t cuda_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    const CudaKernel *k = kernel_entry(n->op);
    return k->scratch ? k->scratch(n, in, out) : 0;
}

Status cuda_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    const CudaKernel *e = kernel_entry(k->node->op);
    *state = NULL;
    return e->prepare ? e->prepare(dev, k, state, d) : ST_OK;
}

const Backend backend_cuda = {
    .name = "cuda",
    .features = BACKEND_BF16 | BACKEND_FUSE_ROWS | BACKEND_EPILOGUE,
    .kernel = cuda_kernel,
    .scratch = cuda_scratch,
    .device = &device_api,
    .attention_kernel = cuda_attention_kernel,
};
