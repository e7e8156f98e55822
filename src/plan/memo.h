// What one kernel takes (scratch, work, seconds), remembered by what it depends on: the op, its attributes, and its operands' types,
// extents and spans. Layers repeat, and a search plans the same kernels many times.
#pragma once
#include "plan/plan.h"

typedef struct KernelWork {
    size_t scratch_nbytes;
    Cost cost;
    double seconds;
} KernelWork;

typedef struct KernelMemo KernelMemo;
KernelMemo *kernel_memo_new(void);  // malloc'ed; NULL when there is no memory: then nothing is remembered
void kernel_memo_free(KernelMemo *m);
// Of node n on these operands; asks the backend, the op's cost rule and the device model where it is not known yet. m may be NULL.
KernelWork kernel_work(KernelMemo *m, const PlanOptions *o, const Node *n, const Operand *in, const Operand *out);
