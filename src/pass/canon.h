// The canonicalizer's inside: a graph under construction whose nodes are simplified, folded and shared as they are appended.
#pragma once
#include "ir/graph.h"
#include "ops/op.h"
#include "pass/known.h"

typedef struct IntRange {  // bounds of an integer (or integral float) value
    bool ok;
    double lo, hi;
} IntRange;

typedef struct Canon {
    Graph *g;
    Arena *scratch;
    Diag *d;
    Status status;  // first error; after it every call returns NO_VALUE
    const char *source, *note;
    Phase phase;
    bool drop_stop_grad;  // the gradient has been taken
    VEC(Known) known;     // [values of g]
    VEC(IntRange) range;  // [values of g]
    int32_t *table;       // open addressing: node id + 1
    int64_t cap, used;
} Canon;

// Appends op(in) unless something simpler has the same value; returns output 0.
ValueId canon_emit(Canon *c, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr);
// A known value as a full, an iota or a constant; NO_VALUE if that would not be simpler.
ValueId canon_from_known(Canon *c, const Known *k, DType dtype, const Shape *shape);

// Rules (canon_pointwise.c, canon_movement.c): the replacement, or NO_VALUE.
ValueId canon_pointwise(Canon *c, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr);
ValueId canon_movement(Canon *c, OpKind op, int nin, const ValueId *in, const Node *n);

static inline const Shape *canon_shape(const Canon *c, ValueId v) { return graph_shape(c->g, v); }
static inline DType canon_dtype(const Canon *c, ValueId v) { return graph_value(c->g, v)->dtype; }
static inline const Node *canon_def(const Canon *c, ValueId v) { return graph_def(c->g, v); }
// True and *v if x is the same known number everywhere.
bool canon_number(const Canon *c, ValueId x, double *v);
ValueId canon_reshape(Canon *c, ValueId x, Shape s);
ValueId canon_broadcast(Canon *c, ValueId x, Shape s);
ValueId canon_full(Canon *c, Shape s, DType t, double v);
