#include "base/parallel.h"

#include <pthread.h>
#include <unistd.h>

#include "base/containers.h"

enum { MAX_THREADS = 64 };

typedef struct Part {
    ParallelFn fn;
    void *ctx;
    int64_t begin, end;
    pthread_t thread;
} Part;

static void *run_part(void *arg) {
    Part *p = arg;
    p->fn(p->ctx, p->begin, p->end);
    return NULL;
}

void parallel_for(int64_t n, int64_t grain, ParallelFn fn, void *ctx) {
    Part part[MAX_THREADS];
    int64_t cores = max_i64(sysconf(_SC_NPROCESSORS_ONLN), 1),
            count = min_i64(min_i64(cores, MAX_THREADS), max_i64(n / max_i64(grain, 1), 1));
    int64_t started = 0;
    for (; started + 1 < count; started++) {
        Part *p = &part[started];
        *p = (Part){.fn = fn, .ctx = ctx, .begin = n * started / count, .end = n * (started + 1) / count};
        if (pthread_create(&p->thread, NULL, run_part, p)) break;
    }
    if (n > 0) fn(ctx, n * started / count, n);
    for (int64_t i = 0; i < started; i++) pthread_join(part[i].thread, NULL);
}
