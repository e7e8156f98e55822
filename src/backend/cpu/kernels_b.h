// CPU kernels of the contractions and of attention: dot, expert_matmul, conv1d, attention. Each exists in float32 and float64 and
// follows the contract of KernelArgs (backend/backend.h): local operands, scratch given, no allocation, results that do not
// depend on which worker did what.
#pragma once
#include "backend/backend.h"

#define KERNEL_B(name)                                     \
    Status cpu_##name##_f32(const KernelArgs *k, Diag *d); \
    Status cpu_##name##_f64(const KernelArgs *k, Diag *d); \
    size_t cpu_##name##_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads);
KERNEL_B(dot)
KERNEL_B(attention)
KERNEL_B(attention_grad)
KERNEL_B(conv1d)
KERNEL_B(conv1d_grad_x)
KERNEL_B(conv1d_grad_w)
KERNEL_B(expert_matmul)
KERNEL_B(expert_matmul_grad)
KERNEL_B(head_fwd)
KERNEL_B(head_grad)
KERNEL_B(head)
#undef KERNEL_B

// Once per process before any kernel runs (idempotent): the BLAS may not start threads of its own.
void cpu_blas_init(void);
