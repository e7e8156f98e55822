// Element type conversion of host arrays: file bytes into graphs, weights into arenas, results out of them.
#pragma once
#include "ir/type.h"

// dst[i] = src[i] for n elements. Every pair of dtypes is defined: floats round to nearest even, float -> integer truncates
// toward zero and saturates (NaN is 0), anything -> bool is x != 0. src and dst do not overlap; neither needs alignment.
void convert_array(const void *src, DType from, void *dst, DType to, int64_t n);
