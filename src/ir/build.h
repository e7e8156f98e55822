// Appending nodes in C without ceremony. A Builder remembers the first error; after one, every call returns NO_VALUE, so that
// a gradient rule or a lowering reads as the formula it is and is checked once at the end.
#pragma once
#include "ir/graph.h"

typedef struct Builder {
    Graph *g;
    Diag *d;
    Status status;
    const char *source;  // given to every node made
    const char *note;
    Phase phase;
} Builder;

ValueId build(Builder *b, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr);  // first output
// All outputs: out[] receives nout ids.
void build_multi(Builder *b, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr, int nout, ValueId *out);

ValueId build_unary(Builder *b, OpKind op, ValueId x);
ValueId build_binary(Builder *b, OpKind op, ValueId x, ValueId y);
ValueId build_where(Builder *b, ValueId c, ValueId x, ValueId y);
ValueId build_cast(Builder *b, ValueId x, DType t);               // x itself if it has that dtype
ValueId build_scalar(Builder *b, DType t, double v);              // 0-dim full
ValueId build_full(Builder *b, Shape s, DType t, double v);
ValueId build_iota(Builder *b, Shape s, int dim, int64_t start, int64_t step, DType t);
ValueId build_binary_scalar(Builder *b, OpKind op, ValueId x, double v);  // scalar in x's dtype
ValueId build_reshape(Builder *b, ValueId x, Shape s);            // x itself if equal
ValueId build_permute(Builder *b, ValueId x, const int *dims);    // x itself if identity
ValueId build_transpose(Builder *b, ValueId x, int d0, int d1);
ValueId build_broadcast(Builder *b, ValueId x, Shape s);          // adds leading 1-dims first; x itself if equal
ValueId build_slice(Builder *b, ValueId x, int dim, int64_t start, int64_t step, int64_t length);  // x itself if whole
ValueId build_pad(Builder *b, ValueId x, int dim, int64_t lo, int64_t hi, double v);
ValueId build_concat(Builder *b, int n, const ValueId *x, int dim);
ValueId build_sum(Builder *b, ValueId x, int ndims, const int *dims);  // keeps dims as 1; x itself if ndims == 0
ValueId build_sum_all(Builder *b, ValueId x);                     // 0-dim
ValueId build_reduce(Builder *b, OpKind op, ValueId x, int dim);  // amax, logsumexp along dim
ValueId build_dot(Builder *b, ValueId x, ValueId y, int nbatch, int ncontract, bool trans_a, bool trans_b);
ValueId build_squeeze(Builder *b, ValueId x, int dim);
ValueId build_unsqueeze(Builder *b, ValueId x, int dim);
// Sums x down to shape s (undoing a NumPy broadcast).
ValueId build_sum_to(Builder *b, ValueId x, Shape s);
static inline DType build_dtype(const Builder *b, ValueId v) { return v < 0 ? DT_F32 : graph_value(b->g, v)->dtype; }
static inline Shape build_shape(const Builder *b, ValueId v) { return v < 0 ? SHAPE0 : *graph_shape(b->g, v); }
