// Operands as the kernels of this folder look at them: sizes, and axes with the intervals that a rank holds.
#pragma once
#include "backend/backend.h"
#include "backend/cuda/ops/box.h"
#include "backend/cuda/device/device.h"
#include "base/containers.h"

static inline int64_t operand_count(const Operand *o, int begin, int end) {  // product of local dims [begin, end)
    int64_t n = 1;
    for (int i = begin; i < end; i++) n *= o->dim[i];
    return n;
}
static inline int64_t operand_elems(const Operand *o) { return operand_count(o, 0, o->ndim); }
static inline char *operand_at(const Operand *o, int64_t elem) { return (char *)o->data + elem * dtype_nbytes(o->dtype); }

// The global index of local element i of dim `dim`.
static inline int64_t operand_global(const Operand *o, int dim, int64_t i) {
    if (o->sdim != dim) return i;
    for (int s = 0; s < o->nspan; s++) {
        int64_t len = o->span[s].end - o->span[s].begin;
        if (i < len) return o->span[s].begin + i;
        i -= len;
    }
    CHECK(false, "no local element %lld", (long long)i);
}

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
