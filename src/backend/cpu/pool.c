// Worker threads: a job is published by raising a generation count; workers spin for some microseconds, then sleep on a condition
// variable, because several ranks share the cores and a spinning rank would starve one that works.
#include "backend/cpu/pool.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { SPIN_ROUNDS = 400 };  // of a pause instruction each: some 10 us

typedef struct Worker {
    Pool *pool;
    int index;
    pthread_t thread;
} Worker;

struct Pool {
    int nthreads, nstarted;
    int spin;  // rounds to spin before sleeping; 0 when there are more threads than processors
    Worker *worker;
    // The job. Written by the caller before `generation` is raised, read by workers after they see it.
    PoolFn fn;
    void *ctx;
    int64_t n, grain;
    bool stop;
    _Atomic uint64_t generation;
    _Atomic int pending;  // workers that have not finished the current job
    pthread_mutex_t mutex;
    pthread_cond_t start, done;
};

static void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

// Part of worker w when `units` grains are divided among the workers.
static void run_part(const Pool *p, int w) {
    int64_t units = (p->n + p->grain - 1) / p->grain;
    int64_t used = units < p->nthreads ? units : p->nthreads;
    if (w >= used) return;
    int64_t base = units / used, extra = units % used;
    int64_t first = base * w + (w < extra ? w : extra);
    int64_t begin = first * p->grain, end = (first + base + (w < extra)) * p->grain;
    p->fn(p->ctx, begin, end < p->n ? end : p->n, w);
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < p->spin && atomic_load_explicit(&p->generation, memory_order_acquire) == seen; i++) cpu_pause();
        if (atomic_load_explicit(&p->generation, memory_order_acquire) == seen) {
            pthread_mutex_lock(&p->mutex);
            while (atomic_load_explicit(&p->generation, memory_order_acquire) == seen) pthread_cond_wait(&p->start, &p->mutex);
            pthread_mutex_unlock(&p->mutex);
        }
        seen++;
        if (p->stop) return NULL;
        run_part(p, w->index);
        if (atomic_fetch_sub_explicit(&p->pending, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->mutex);
        }
    }
}

static void publish(Pool *p) {
    atomic_store_explicit(&p->pending, p->nstarted, memory_order_relaxed);
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add_explicit(&p->generation, 1, memory_order_release);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->mutex);
}

void pool_run(Pool *p, PoolFn fn, void *ctx, int64_t n, int64_t grain) {
    if (n <= 0) return;
    if (!p || p->nthreads == 1 || n <= grain) {
        fn(ctx, 0, n, 0);
        return;
    }
    p->fn = fn, p->ctx = ctx, p->n = n, p->grain = grain;
    publish(p);
    run_part(p, 0);
    for (int i = 0; i < p->spin && atomic_load_explicit(&p->pending, memory_order_acquire) != 0; i++) cpu_pause();
    if (atomic_load_explicit(&p->pending, memory_order_acquire) != 0) {
        pthread_mutex_lock(&p->mutex);
        while (atomic_load_explicit(&p->pending, memory_order_acquire) != 0) pthread_cond_wait(&p->done, &p->mutex);
        pthread_mutex_unlock(&p->mutex);
    }
}

int pool_nthreads(const Pool *p) { return p ? p->nthreads : 1; }

static void no_work(void *ctx, int64_t begin, int64_t end, int worker) { (void)ctx, (void)begin, (void)end, (void)worker; }

Pool *pool_new(int nthreads) {
    Pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->nthreads = nthreads < 1 ? 1 : nthreads;
    p->spin = p->nthreads <= sysconf(_SC_NPROCESSORS_ONLN) ? SPIN_ROUNDS : 0;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    p->worker = calloc((size_t)p->nthreads, sizeof *p->worker);
    if (!p->worker) {
        pool_free(p);
        return NULL;
    }
    for (int i = 1; i < p->nthreads; i++) {
        p->worker[i] = (Worker){.pool = p, .index = i};
        if (pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]) != 0) {
            pool_free(p);
            return NULL;
        }
        p->nstarted++;
    }
    pool_run(p, no_work, NULL, p->nthreads, 1);  // all have started: what a thread allocates at its start is not part of a step
    return p;
}

void pool_free(Pool *p) {
    if (!p) return;
    if (p->nstarted > 0) {
        p->stop = true;
        publish(p);
        for (int i = 1; i <= p->nstarted; i++) pthread_join(p->worker[i].thread, NULL);
    }
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->done);
    free(p->worker);
    free(p);
}
