// Vectors of a mask that never fall along the sequence, whatever the inputs are: numbers of packed documents, which programs make
// by counting.
//
//   %1 = cumsum(%0: 0 or 1) {dim=1}                        attention(%q, %k, %v, %2, %2) {..., monotone=3}
//   %2 = reshape(%1) : i64[B,1,S]
//
// Equal numbers are then neighbours: a kernel may take documents as ranges of positions. Only integers that cannot overflow
// count.
#include <stdlib.h>

#include "pass/mask.h"

enum { MAX_DEPTH = 64 };
static const double MAX_NUMBER = 1099511627776.0;  // 2^40: sums of a few such numbers and of positions do not overflow

static bool is_integer(DType t) { return t == DT_I64 || t == DT_I32; }
static int64_t last_dim(const Shape *s) { return s->ndim ? s->dim[s->ndim - 1] : 1; }

// 0 or 1 by its making.
static bool is_bit(const Graph *g, ValueId v, int depth) {
    const Node *n = graph_def(g, v);
    if (depth > MAX_DEPTH) return false;
    if (graph_value(g, v)->dtype == DT_BOOL) return true;
    switch (n->op) {
    case OP_CAST: return is_integer(graph_value(g, v)->dtype) && is_bit(g, n->in[0], depth + 1);
    case OP_RESHAPE:
    case OP_SLICE:
    case OP_PERMUTE:
    case OP_BROADCAST:
    case OP_STOP_GRAD: return is_bit(g, n->in[0], depth + 1);
    default: return false;
    }
}

static bool is_small_number(const Graph *g, ValueId v, int depth) {
    const Node *n = graph_def(g, v);
    if (depth > MAX_DEPTH) return false;
    if (n->op == OP_BROADCAST || n->op == OP_RESHAPE) return is_small_number(g, n->in[0], depth + 1);
    double x = n->op == OP_FULL ? node_float(n, ATTR_VALUE) : MAX_NUMBER * 2;
    return x >= -MAX_NUMBER && x <= MAX_NUMBER;
}

// The last dim is positions: v[.., i] <= v[.., i + 1].
static bool rises(const Graph *g, ValueId v, int depth) {
    const Node *n = graph_def(g, v);
    const Shape *s = graph_shape(g, v);
    if (depth > MAX_DEPTH || s->ndim < 1 || graph_value(g, v)->dtype != DT_I64) return false;
    switch (n->op) {
    case OP_CUMSUM:
        return node_int(n, ATTR_DIM) == s->ndim - 1 && !node_int_or(n, ATTR_REVERSE, 0) && is_bit(g, n->in[0], depth + 1);
    case OP_RESHAPE: return last_dim(graph_shape(g, n->in[0])) == last_dim(s) && rises(g, n->in[0], depth + 1);
    case OP_BROADCAST: return last_dim(graph_shape(g, n->in[0])) == last_dim(s) && rises(g, n->in[0], depth + 1);
    case OP_SLICE: return node_int(n, ATTR_STEP) >= 1 && rises(g, n->in[0], depth + 1);
    case OP_STOP_GRAD: return rises(g, n->in[0], depth + 1);
    case OP_ADD:
        return (rises(g, n->in[0], depth + 1) && is_small_number(g, n->in[1], 0)) ||
               (rises(g, n->in[1], depth + 1) && is_small_number(g, n->in[0], 0));
    case OP_SUB: return rises(g, n->in[0], depth + 1) && is_small_number(g, n->in[1], 0);
    default: return false;
    }
}

int64_t mask_monotone(const Graph *g, int n, const ValueId *vec) {
    int64_t bits = 0;
    for (int i = 0; i < n && i < 62; i++)
        if (rises(g, vec[i], 0)) bits |= (int64_t)1 << i;
    return bits;
}
