// The backend vtable: kernels for core ops on one device. The CPU backend is src/backend/cpu; others sit beside it.
#pragma once
#include "ops/op.h"

typedef struct Pool Pool;  // worker threads of one rank (backend/cpu/pool.h)

typedef struct KernelArgs {
    const Node *node;      // attributes; ids refer to the global graph
    int nin, nout;
    const Operand *in;     // local shapes, spans, data
    const Operand *out;    // data may alias in[0] for pointwise ops when the plan says so, and for OPF_INPLACE ops
    void *scratch;         // as many bytes as `scratch` asked for, 64-byte aligned
    size_t scratch_nbytes;
    Pool *pool;
    uint64_t run_seed;     // random numbers are f(run_seed, step, node's seed, global index)
    int64_t step;
} KernelArgs;
typedef Status (*KernelFn)(const KernelArgs *k, Diag *d);

typedef struct Backend {
    const char *name;
    // The kernel of an op whose floats are `real` (DT_F32 or DT_F64), NULL if this backend has none.
    KernelFn (*kernel)(OpKind op, DType real);
    // Scratch bytes that the kernel needs for these operands with nthreads workers (data pointers unset).
    size_t (*scratch)(const Node *n, const Operand *in, const Operand *out, int nthreads);
    void *(*alloc)(size_t nbytes);    // the arena: zeroed, 64-byte aligned; NULL when it does not fit
    void (*free)(void *p, size_t nbytes);
    Pool *(*pool_new)(int nthreads);  // nthreads >= 1, the caller's thread included
    void (*pool_free)(Pool *p);
} Backend;
extern const Backend backend_cpu;
