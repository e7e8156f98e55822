// Inside of the random graph generator: the pool of values made so far and how more are drawn from it.
#pragma once
#include <math.h>
#include "ops/op.h"
#include "random_graph.h"

enum { MAX_NUMEL = 1500 };

typedef struct Item {
    ValueId v;
    bool exact;   // no rounding on the way here: bitwise the same under every plan
    bool input;   // depends on no parameter
    double mag;   // floats: |elements| are at most about this
} Item;

typedef struct Gen {
    RandomGraph *out;
    Graph *g;
    Builder b;
    Arena *a;
    Diag d;
    DType real;   // of the graph's floats
    uint64_t rng;
    int64_t batch, seq, width, vocab;
    VEC(Item) floats, ints, bools;
} Gen;

int64_t draw(Gen *g, int64_t n);             // [0, n)
int64_t draw_in(Gen *g, int64_t lo, int64_t hi);  // [lo, hi]
bool chance(Gen *g, int percent);
double draw_real(Gen *g);                    // [-1, 1)

static inline Shape shape_at(const Gen *g, ValueId v) { return build_shape(&g->b, v); }
static inline int64_t numel_at(const Gen *g, ValueId v) {
    Shape s = shape_at(g, v);
    return shape_numel(&s);
}

// Later values are likelier.
Item pick_float(Gen *g);
Item pick_int(Gen *g);
Item pick_bool(Gen *g);
Item pick_exact_float(Gen *g);
// Put a value in the pool of its type; floats that grew are scaled down first, large values are cut.
void give(Gen *g, ValueId v, bool exact, bool input, double mag);

Item make_param(Gen *g, Shape s, double mag);  // a fresh parameter
// Some value brought to a shape that broadcasts to `s` (or exactly `s`): one that fits already, or cut, repeated, reshaped.
Item fit(Gen *g, Item x, Shape s);
Item some_float(Gen *g, Shape s, bool broadcast);
ValueId some_index(Gen *g, Shape s, int64_t n);  // i64 of shape s in [0, n)
// x, moved so that no two of its elements (and no element of another such value) are equal but by design.
Item apart(Gen *g, Item x);
ValueId mod_index(Gen *g, ValueId x, int64_t n);

// The families of random steps: each adds something to the pool, or nothing when what it drew does not fit.
void add_unary(Gen *g);
void add_binary(Gen *g);
void add_jump(Gen *g);
void add_integer(Gen *g);
void add_compare(Gen *g);
void add_where(Gen *g);
void add_movement(Gen *g);
void add_reduction(Gen *g);
void add_index(Gen *g);
void add_order(Gen *g);
void add_dot(Gen *g);
void add_expert(Gen *g);
void add_conv(Gen *g);
void add_attention(Gen *g);
void add_random(Gen *g);
