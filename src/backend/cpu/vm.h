// Executes a pointwise Program block by block: every instruction is one tight loop over some hundred elements whose operands lie
// in the first-level cache. A fused group thus reads its inputs and writes its outputs once. A plain pointwise op is a program of
// one instruction.
#pragma once
#include "backend/backend.h"

// One instruction over n elements: dst and sources are arrays of the element types that its table entry stands for.
typedef void (*VmFn)(void *dst, const void *a, const void *b, const void *c, int64_t n);
// The loop of `op` whose (last) operand has dtype `in` and whose result has dtype `out`; NULL if there is none.
VmFn vm_fn(OpKind op, DType in, DType out);
bool vm_has_zero(const int64_t *x, int64_t n);

// An operand read in the row-major order of a larger index space that it broadcasts to: merged dims, outermost first, stride 0
// where it repeats.
typedef struct VmView {
    int ndim, elem;  // elem: bytes of an element
    int64_t size[MAX_DIMS], stride[MAX_DIMS];
    const char *data;
} VmView;
VmView vm_view(const Operand *operand, int ndim, const int64_t *dim);  // against `dim`, right-aligned
bool vm_view_is_dense(const VmView *v);
bool vm_view_is_scalar(const VmView *v);
void vm_view_read(const VmView *v, int64_t begin, int64_t n, void *dst);  // elements [begin, begin + n) of the larger space

// Runs p over the iteration space of out[0]. Scratch as vm_scratch says, which must be asked with the same operands.
size_t vm_scratch(const Program *p, int nin, const Operand *in, const Operand *out, int nthreads);
Status vm_run(const Program *p, const KernelArgs *k, Diag *d);
