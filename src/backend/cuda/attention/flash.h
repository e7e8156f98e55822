// Our own blockwise attention, for every attention node that cuDNN cannot do: any mask program, any head size, dropout, soft-cap,
// rows
// that see no key, queries and heads sharded by spans. Signatures are those of kernels.h; attention.c decides who gets a node.
#pragma once
#include "backend/backend.h"
#include "backend/cuda/device/device.h"

Status flash_attention(const KernelArgs *k, Diag *d);
size_t flash_attention_scratch(const Node *n, const Operand *in, const Operand *out);
Status flash_attention_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d);
Status flash_attention_grad(const KernelArgs *k, Diag *d);
size_t flash_attention_grad_scratch(const Node *n, const Operand *in, const Operand *out);
Status flash_attention_grad_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d);
// "own" (tensor cores), "own-bias" (the same where the program adds to scores), "portable": as device models have them.
const char *flash_kernel_name(const Node *n, const Operand *in, const Operand *out);
// Tests set it to compare: nodes prepared from then on use the portable kernels though the tensor cores could take them.
extern bool flash_portable;
