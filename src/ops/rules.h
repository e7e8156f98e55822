// What the op families' rules are written with: checks of operands and attributes, and rows from named axes.
#pragma once
#include <limits.h>
#include "ir/build.h"
#include "ops/op.h"

// ---- shape rules -------------------------------------------------------------------------------------------------------
// A shape as text for an error: shape_text(s).s is "[2,64]".
typedef struct ShapeText {
    char s[192];
} ShapeText;
ShapeText shape_text(const Shape *s);

// Classes of element types, to be or'ed. Values have the types f32, f64, bf16, i64 and bool only; nothing is computed in bf16
// (pointwise_type): it is how floats are stored.
enum { TYPE_FLOAT = 1, TYPE_INT = 2, TYPE_BOOL = 4, TYPE_NUMBER = 3, TYPE_ANY = 7 };
int type_class(DType t);  // 0: not a type that values can have

static inline const Shape *in_shape(const Graph *g, const Node *n, int i) { return graph_shape(g, n->in[i]); }
static inline DType in_dtype(const Graph *g, const Node *n, int i) { return graph_value(g, n->in[i])->dtype; }

Status rule_nin(const Node *n, int nin, Diag *d);                              // exactly nin operands
Status rule_type(const Graph *g, const Node *n, int i, int classes, Diag *d);  // operand i is of one of the classes
Status rule_same_type(const Graph *g, const Node *n, int i, int j, Diag *d);
Status rule_int(const Node *n, AttrKey k, int64_t lo, int64_t hi, int64_t *out, Diag *d);  // required, lo <= value <= hi
Status rule_dim(const Node *n, int ndim, int *out, Diag *d);                   // attribute dim, in [0, ndim)
Status rule_dims(const Node *n, int ndim, bool *marked, Diag *d);              // attribute dims: distinct; marked[ndim]
Status rule_dtype(const Node *n, DType *out, Diag *d);                         // attribute dtype: a type that values can have
// Attribute dtype where it widens the result: `t`, that of the operands, or f32 from bf16; *out is t without the attribute.
Status rule_wide(const Node *n, DType t, DType *out, Diag *d);
Status rule_shape(const Node *n, Shape *out, Diag *d);                         // attribute shape
Status rule_value(const Node *n, DType t, Diag *d);                            // attribute value: one that type t has
Status rule_check_shape(const Shape *s, Diag *d);                              // sizes >= 0, bytes fit 63 bits
static inline Status rule_result(int *nout, TypeOut *out, DType t, Shape s) {
    *nout = 1;
    out[0] = (TypeOut){t, s};
    return ST_OK;
}
// The result type of pointwise op `op` on operand types t[nin]; error if the types are not what it takes. `to`: of CAST.
Status pointwise_type(OpKind op, int nin, const DType *t, DType to, DType *out, Diag *d);
int pointwise_nin(OpKind op);

// ---- sharding rules ----------------------------------------------------------------------------------------------------
static inline ValueId slot_value(const Node *n, int slot) { return slot >= 0 ? n->in[slot] : n->out[~slot]; }
static inline Placement *row_slot(Row *row, int slot) { return slot >= 0 ? &row->in[slot] : &row->out[~slot]; }
// Every operand and result has placement `p`, a term of a sum or maximum. False where results are bools, which have neither.
bool row_terms(const Graph *g, const Node *n, Placement p, Row *row);
// The placement is a partition of a dim (of more than one element) that the operand has.
bool row_slot_ok(const Graph *g, const Node *n, int slot, const Placement *p);

// Names the axis along which dim `dim` of operand `slot` runs. Dims with equal names must be divided alike; NO_AXIS cannot be
// divided by this kind of row.
#define NO_AXIS (-1)
typedef int (*AxisFn)(const Graph *g, const Node *n, int slot, int dim);
// The row in which the axis of operand `slot` that `p` divides is divided in every operand that has it; inputs without the axis
// are whole. An output without it gets `reduced` (an axis that was summed away), or there is no such row if that is NULL.
bool row_from_axes(Graph *g, const Node *n, int slot, Placement p, AxisFn axis, const Placement *reduced, Row *row);

// ---- samples -----------------------------------------------------------------------------------------------------------
#define SAMPLE_I(KEY, value) {.key = ATTR_##KEY, .u.i = (value)}
#define SAMPLE_F(KEY, value) {.key = ATTR_##KEY, .u.f = (value)}
#define SAMPLE_INTS(KEY, ...) \
    {.key = ATTR_##KEY, .n = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), .u.ints = (const int64_t[]){__VA_ARGS__}}
#define DIMS(...) {.ndim = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), .dim = {__VA_ARGS__}}
#define SAMPLES(array) .samples = (array), .nsample = (int)(sizeof(array) / sizeof((array)[0]))
