// part and assemble: how their intervals are read, and where a part lies in the whole on one rank.
#pragma once
#include "ops/op.h"

// Ascending intervals [at[2k], at[2k + 1]) of dim `dim` of the whole.
typedef struct Intervals {
    const int64_t *at;
    int n;
} Intervals;

Intervals part_intervals(const Node *n);
// Of an assemble: those of the part after `before`; of the first part where `before` is empty.
Intervals assemble_next(const Node *n, Intervals before);

// Where the elements of these intervals lie in the local value `whole`: `nbytes` bytes from `offset` on. False if they are not
// side by side there.
bool intervals_place(const Operand *whole, int dim, Intervals v, int64_t *offset, int64_t *nbytes);
