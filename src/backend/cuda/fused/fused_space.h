// A fused (or single pointwise) node as its kernels see it on one rank: the local iteration space with dims merged, and where
// each operand's element of a position lies.
#pragma once
#include "base/arena.h"
#include "ir/views.h"
#include "ops/op.h"

// Element of a position q: base + sum of stride[d] * q[d]. Outside a window it is not read and counts as 0.
typedef struct Access {
    DType dtype;
    int64_t base, stride[MAX_DIMS];
    int nwin;
    ViewWindow win[MAX_VIEW_WINDOWS];  // clipped to the dim
    bool identity;   // of the whole space's shape, read at the position itself: an output may take over its memory
} Access;

typedef enum FusedOut { OUT_WHOLE, OUT_ROW, OUT_COL } FusedOut;  // an element per position, per row, per column

typedef struct FusedSpace {
    const Program *p;
    const char *label;       // "fused", "add"
    int ndim, row;  // dims, of which the last `row` are the row. row 0: no row. At least one dim; with a row one of each kind
    int64_t dim[MAX_DIMS];
    int index_dim[MAX_DIMS];  // of the node's dim d: the dim it has become, -1 where it has one element (so that its position is
                              // 0)
    int nin, nout;
    Access *in, *out;        // out: of its own shape
    FusedOut *out_kind;
    bool *row_const;         // [ninstr]
    int *level;              // [ninstr]: row reductions, one after the other, that it waits for
    int nlevel;              // levels of row reductions
    bool fast;               // floats leave as bf16 only
    bool empty;              // no positions
} FusedSpace;

Status fused_space(Arena *a, const Node *n, const Operand *in, const Operand *out, FusedSpace *s, Diag *d);
int64_t fused_nrows(const FusedSpace *s);  // positions of the dims before the row (all before the last where row is 0)
int64_t fused_ncols(const FusedSpace *s);  // positions of the row's dims (of the last)
static inline int fused_nouter(const FusedSpace *s) { return s->ndim - (s->row ? s->row : 1); }
// The operand's values differ along the row (along the last dim where row is 0).
bool access_varies(const FusedSpace *s, const Access *x);
// v elements from every multiple of v along the last dim on lie side by side, aligned, and on one side of every window.
bool access_in_vectors(const FusedSpace *s, const Access *x, int v);
