// The worker threads of one rank. Work is divided statically: which worker gets which part depends only on (n, grain, nthreads).
#pragma once
#include <stdint.h>
#include "backend/backend.h"

Pool *pool_new(int nthreads);  // nthreads >= 1, the caller's thread is worker 0; NULL when threads cannot be had
void pool_free(Pool *p);       // NULL is fine
int pool_nthreads(const Pool *p);

typedef void (*PoolFn)(void *ctx, int64_t begin, int64_t end, int worker);
// Calls fn on parts [begin, end) of [0, n), at most one part per worker, whose borders are multiples of `grain` (>= 1), and
// returns when all are done. Nothing is allocated. Does not call fn at all if n <= 0. A NULL pool runs inline. Not reentrant.
void pool_run(Pool *p, PoolFn fn, void *ctx, int64_t n, int64_t grain);
