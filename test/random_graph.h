// Random small training programs, for tests that compare whole compilations: tokens, labels, positions and floats of
// [batch, sequence] in, parameters along the way, a scalar loss out. Every op of ops.def that a program can contain may occur.
// Where an op jumps (max, floor, sort, comparisons), its operands are either exact, that is made from inputs without rounding, or
// all but surely apart, so that a sum taken in another order cannot change the result by more than rounding.
#pragma once
#include "ir/build.h"

enum { RANDOM_MAX_INPUTS = 16, RANDOM_MAX_PARAMS = 256 };

typedef struct RandomGraph {
    Graph *g;                           // single output: OUT_LOSS
    double *input[RANDOM_MAX_INPUTS];   // whole values, in the graph's arena
    double *param[RANDOM_MAX_PARAMS];
    bool sdpa;       // has an sdpa node: differentiate after the mask pass
    bool smooth;     // differences of the loss approximate its gradient (no stop_grad, no masked row that only f32 blinds)
} RandomGraph;

// The program of `seed` with `nops` random steps in `a`, its floats of type `real`; the values of inputs and parameters are
// floats of 24 bits, the same for both types. The same arguments give the same program; a smaller nops a prefix of it, with a
// loss of its own.
void random_graph(Arena *a, uint64_t seed, int nops, DType real, RandomGraph *out);
