// The kernels of the CUDA backend: what cuda.c puts into its table. See docs/cuda.md for what each function must do.
//   cuda_<op>          launches
//   cuda_<op>_scratch  bytes, without a device
//   cuda_<op>_prepare  once for each step of a plan
#pragma once
#include "backend/backend.h"
#include "backend/cuda/device/device.h"

#define KERNEL(name) Status cuda_##name(const KernelArgs *k, Diag *d);
#define KERNEL_SCRATCH(name) KERNEL(name) size_t cuda_##name##_scratch(const Node *n, const Operand *in, const Operand *out);
#define KERNEL_FULL(name)  \
    KERNEL_SCRATCH(name)   \
    Status cuda_##name##_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d);

// movement.c, source.c
KERNEL(full)
KERNEL(iota)
KERNEL(random)
KERNEL(copy)       // reshape and what else keeps bytes and order
KERNEL(permute)
KERNEL(broadcast)
KERNEL(slice)
KERNEL(pad)
KERNEL(concat)
KERNEL(reshard)    // the part of a reshard that needs no other rank
// reduce.c, scan.c
KERNEL_SCRATCH(sum)
KERNEL_SCRATCH(amax)
KERNEL_SCRATCH(logsumexp)
KERNEL_SCRATCH(cumsum)
// index.c, sort.c
KERNEL(embedding)
KERNEL_SCRATCH(embedding_grad)
KERNEL(pick)
KERNEL(gather)
KERNEL_SCRATCH(scatter_add)
KERNEL_SCRATCH(index_put)
KERNEL(histogram)
KERNEL_SCRATCH(sort)  // and topk
// conv.c, adamw.c
KERNEL(conv1d)
KERNEL(conv1d_grad_x)
KERNEL_SCRATCH(conv1d_grad_w)
KERNEL(adamw)
// dot.c, expert.c, head.c
KERNEL_FULL(dot)
KERNEL_FULL(expert_matmul)
KERNEL_FULL(expert_matmul_grad)
KERNEL_FULL(head_fwd)
KERNEL_FULL(head_grad)
KERNEL_FULL(head)
// attention.c (cuDNN: dnn.c; our own: flash.c)
const char *cuda_attention_kernel(const Node *n, const Operand *in, const Operand *out);  // Backend.attention_kernel
KERNEL_FULL(attention)
KERNEL_FULL(attention_grad)
// fused.c (codegen*.c): fused nodes and single pointwise ones
KERNEL_FULL(fused)
KERNEL_FULL(pointwise)
#undef KERNEL
#undef KERNEL_SCRATCH
#undef KERNEL_FULL
