// What is known about a value at compile time: values that depend on no input and vary along at most one dim (position
// indices, document ids of an unpacked row, filled tensors, small tables). S x S values are never held: they stay nodes.
#pragma once
#include "ir/graph.h"

typedef struct Known {
    bool known;
    int dim;      // the dim along which it varies, -1: the same everywhere
    int64_t len;  // extent of that dim
    bool affine;  // element i is base + i*step; else data[i]. dim == -1: base
    double base, step;
    const double *data;  // [len]
} Known;

// Longest vectors that are folded: integers (a row of a million tokens, four times) and floats (tables; not activations' worth).
enum { KNOWN_MAX_INT = 1 << 25, KNOWN_MAX_FLOAT = 4096 };

Known known_constant(double v);
static inline double known_at(const Known *k, int64_t i) {
    return k->dim < 0 ? k->base : k->affine ? k->base + (double)i * k->step : k->data[i];
}
// Result of node n (appended or not; its single output has the given type) from what is known of its inputs. False: unknown.
bool known_eval(const Graph *g, const Node *n, const Known *in, DType dtype, const Shape *shape, Known *out, Arena *scratch);
// A CONSTANT's bytes, if they are such a vector.
bool known_from_bytes(const Const *c, DType dtype, Known *out, Arena *scratch);
// Element i of a Const's bytes (f32, f64, i64, bool).
double known_read(DType t, const void *data, int64_t i);
// True if it can be written as an iota (integers, or floats that are exact integers).
bool known_is_iota(const Known *k, DType dtype);
