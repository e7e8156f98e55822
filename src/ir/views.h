// How a fused node of the second form (docs/cuda.md) reads its inputs, decoded: what the op's rules, the reference executor,
// the passes and the generators of kernels share.
#pragma once
#include "ir/graph.h"

enum { MAX_VIEW_WINDOWS = 16, MAX_VIEW_INTS = 2 + 3 * MAX_DIMS + 3 * MAX_VIEW_WINDOWS };

typedef struct ViewDim {     // of a dim of the input: its index is start + step * position along iteration dim `dim`
    int dim;                 // -1: just start (step is 0 then)
    int64_t start, step;     // step >= 1 where dim >= 0
} ViewDim;

typedef struct ViewWindow {  // at positions outside [lo, hi) along iteration dim `dim` the input is not read and counts as 0
    int dim;
    int64_t lo, hi;
} ViewWindow;

typedef struct View {
    bool broadcast;          // by NumPy's rule; the rest is unset until view_resolve
    int ndim;                // of the input
    ViewDim d[MAX_DIMS];
    int nwin;                // at most one window per iteration dim comes from the passes; any number is legal
    ViewWindow win[MAX_VIEW_WINDOWS];
} View;

// Attribute `views` decoded into out[n->nin]; every view is a broadcast where the attribute is absent. ST_INPUT if the list is
// not well-formed (lengths, dims outside [-1, ndim of the iteration space), steps below 1).
Status views_decode(const Node *n, View *out, Diag *d);
// Appends the view's ints to list[*n] (room for MAX_VIEW_INTS more).
void view_encode(const View *v, int64_t *list, int *n);

// A view with every dim spelled out, for an input of shape `in` in iteration space `space` (both global): no broadcast is left,
// and a dim that has one element or runs along an iteration dim of one element has dim = -1. Windows along the whole of a dim
// are dropped.
View view_resolve(const View *v, const Shape *in, const Shape *space);
// Whether every position that the windows let through is inside the input; `v` is resolved.
bool view_inside(const View *v, const Shape *in, const Shape *space);
// Dense, in order, whole: the input is read at its own flat index of the iteration space (fast paths). `v` is resolved.
bool view_is_flat(const View *v, const Shape *in, const Shape *space);

// What `views` without the view would mean: NumPy's broadcasting. `v` is resolved.
bool view_is_broadcast(const View *v, const Shape *in, const Shape *space);

static inline bool view_runs_along(const View *v, int dim) {  // resolved: the value read varies with iteration dim `dim`
    for (int k = 0; k < v->ndim; k++)
        if (v->d[k].dim == dim) return true;
    for (int k = 0; k < v->nwin; k++)
        if (v->win[k].dim == dim) return true;
    return false;
}

// out[i]: instruction i is row-constant (docs/cuda.md): nothing that it depends on varies along the last `row` dims of an
// iteration space of `ndim` dims. `views` are resolved, one per input slot. A col_sum is never row-constant. All false where
// row is 0.
void program_row_constant(const Program *p, int ndim, int row, const View *views, bool *out);
