// CPU kernels of the op families that are not contractions (those: kernels_b.h). Each serves all element types: it looks at its
// operands. They follow the contract of KernelArgs (backend/backend.h): local operands with spans, scratch given, no allocation,
// results that do not depend on which worker did what, and local extents of 0 are fine.
#pragma once
#include "backend/backend.h"
#include "backend/cpu/pool.h"
#include "base/containers.h"

#define KERNEL_A(name)                               \
    Status cpu_##name(const KernelArgs *k, Diag *d); \
    size_t cpu_##name##_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads);
KERNEL_A(pointwise)
KERNEL_A(fused)
KERNEL_A(sum)
KERNEL_A(amax)
KERNEL_A(sort)  // and topk
#undef KERNEL_A

#define KERNEL_A(name) Status cpu_##name(const KernelArgs *k, Diag *d);  // without scratch
KERNEL_A(loaded)  // param, input, constant: in the arena before the step
KERNEL_A(full)
KERNEL_A(iota)
KERNEL_A(random)
KERNEL_A(copy)    // reshape, and any op that keeps bytes and order
KERNEL_A(permute)
KERNEL_A(broadcast)
KERNEL_A(slice)
KERNEL_A(pad)
KERNEL_A(concat)
KERNEL_A(reshard)  // the part of a reshard that needs no other rank
KERNEL_A(logsumexp)
KERNEL_A(cumsum)
KERNEL_A(embedding)
KERNEL_A(embedding_grad)
KERNEL_A(pick)
KERNEL_A(gather)
KERNEL_A(scatter_add)
KERNEL_A(index_put)
KERNEL_A(histogram)
KERNEL_A(adamw)
#undef KERNEL_A

// ---- what the kernels share ---------------------------------------------------------------------------------------------

// Every element of operand `o`, an i64 index, lies in [0, n); else the error says which does not (index.c).
Status cpu_check_indices(const KernelArgs *k, const Operand *o, int64_t n, Diag *d);

// In front of a loop whose iterations are independent, even where a result takes over an operand's memory (then both are at the
// same place). Clang's form of this pragma complains of loops that it cannot vectorise, such as calls of the C library.
#if defined(__clang__)
#define KERNEL_LOOP
#else
#define KERNEL_LOOP _Pragma("GCC ivdep")
#endif

static inline int64_t operand_count(const Operand *o, int begin, int end) {  // product of local dims [begin, end)
    int64_t n = 1;
    for (int i = begin; i < end; i++) n *= o->dim[i];
    return n;
}
static inline int64_t operand_elems(const Operand *o) { return operand_count(o, 0, o->ndim); }

// An operand around dim `dim`: [outer, n, inner], and which global positions of dim the n local ones are.
typedef struct Axis {
    int64_t outer, n, inner;
    int nspan;
    const Span *span;
    Span whole;  // the span where the dim is not sharded
} Axis;
static inline const Span *axis_spans(const Axis *a) { return a->span ? a->span : &a->whole; }
static inline Axis axis_of(const Operand *o, int dim) {
    Axis a = {.outer = operand_count(o, 0, dim), .n = o->dim[dim], .inner = operand_count(o, dim + 1, o->ndim), .nspan = 1};
    a.whole = (Span){0, o->dim[dim]};
    if (o->sdim == dim) a.nspan = o->nspan, a.span = o->span;
    return a;
}
static inline int64_t axis_local(const Axis *a, int64_t global) {  // where this rank keeps it; -1 if it does not
    int64_t pos = 0;
    for (int i = 0; i < a->nspan; i++) {
        Span s = axis_spans(a)[i];
        if (global >= s.begin && global < s.end) return pos + global - s.begin;
        pos += s.end - s.begin;
    }
    return -1;
}

// The inverse: the global position of a local one.
static inline int64_t axis_global(const Axis *a, int64_t local) {
    for (int i = 0; i < a->nspan; i++) {
        Span s = axis_spans(a)[i];
        if (local < s.end - s.begin) return s.begin + local;
        local -= s.end - s.begin;
    }
    return -1;
}

// fn(ctx, begin, end) over n items of about `cost` element steps each: parts are worth waking a thread for.
static inline void kernel_run(Pool *p, PoolFn fn, void *ctx, int64_t n, int64_t cost) {
    pool_run(p, fn, ctx, n, max_i64(1, 16384 / max_i64(1, cost)));
}
