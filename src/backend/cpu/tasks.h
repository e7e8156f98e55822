// Tasks of unequal cost over a pool. Workers take the next task when they are free, so who does what differs from run to run:
// a task must own everything that it writes, and then the results do not.
#pragma once
#include <stdatomic.h>
#include "backend/cpu/pool.h"

typedef void (*TaskFn)(void *ctx, int64_t task, int worker);
typedef struct TaskQueue {
    _Atomic int64_t next;
    int64_t n;
    TaskFn fn;
    void *ctx;
} TaskQueue;

static inline void tasks_worker(void *queue, int64_t begin, int64_t end, int worker) {
    (void)begin, (void)end;
    TaskQueue *q = queue;
    for (int64_t t; (t = atomic_fetch_add_explicit(&q->next, 1, memory_order_relaxed)) < q->n;) q->fn(q->ctx, t, worker);
}

// fn(ctx, t, worker) for every t in [0, n); tasks start in order of t, so put the long ones first.
static inline void tasks_run(Pool *p, TaskFn fn, void *ctx, int64_t n) {
    TaskQueue q = {.n = n, .fn = fn, .ctx = ctx};
    if (n > 0) pool_run(p, tasks_worker, &q, n < pool_nthreads(p) ? n : pool_nthreads(p), 1);
}
