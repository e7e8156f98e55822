// One pointwise operation on numbers, at compile time: what constant folding and the mask program's simplifier share.
#pragma once
#include "ir/graph.h"

// x[0..nin) are operands of dtype `in`; the result has dtype `out`. Integers and booleans travel as doubles, exact up to 2^53.
// False: not foldable (an exotic op, division by zero, an integer that a double cannot hold).
bool scalar_eval(OpKind op, DType in, DType out, const double *x, double *r);
#define SCALAR_EXACT 9007199254740992.0  // 2^53
