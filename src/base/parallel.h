// Loops over large arrays of host memory by all processors: loading, converting and drawing values outside of steps.
#pragma once
#include <stdint.h>

typedef void (*ParallelFn)(void *ctx, int64_t begin, int64_t end);
// Calls fn on parts of [0, n), each of at least `grain` elements but the last, on threads of their own, and returns when all are
// done. fn must not care which part runs where. Where threads cannot be had, the caller does the rest.
void parallel_for(int64_t n, int64_t grain, ParallelFn fn, void *ctx);
