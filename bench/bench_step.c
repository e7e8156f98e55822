// A whole training step beside the BLAS's own rate, measured in the same run:
//     bench_step M.pt2 SEQ [threads] [steps]
// FLOPs are those of the matrix products and of attention (causal: the visible half), forward and backward. The last line says
// what fraction of the BLAS's rate the step reaches: everything else (norms, soft-max, optimizer, copies) is overhead.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/cpu/blas.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/pool.h"
#include "train/values.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct Gemm {
    int64_t n;
    float *a, *b, *c;  // each worker has its own c
} Gemm;
static void gemm_part(void *ctx, int64_t begin, int64_t end, int worker) {
    const Gemm *g = ctx;
    for (int64_t i = begin; i < end; i++)
        blas_gemm_f32(false, false, g->n, g->n, g->n, 1, g->a, g->n, g->b, g->n, 0, g->c + worker * g->n * g->n, g->n);
}

// FLOP/s of one product of 1024^3 per thread, all threads at once; the best of several.
static double blas_rate(Pool *pool) {
    Gemm g = {.n = 1024};
    int threads = pool_nthreads(pool);
    size_t n = (size_t)(g.n * g.n);
    g.a = calloc(n, 4);
    g.b = calloc(n, 4);
    g.c = calloc(n * (size_t)threads, 4);
    CHECK(g.a && g.b && g.c, "out of memory");
    for (size_t i = 0; i < n; i++) g.a[i] = g.b[i] = (float)(i % 7) * 0.1f;
    double best = INFINITY;
    for (int i = 0; i < 8; i++) {
        double t = now();
        pool_run(pool, gemm_part, &g, threads, 1);
        best = fmin(best, now() - t);
    }
    free(g.a);
    free(g.b);
    free(g.c);
    return 2.0 * (double)g.n * (double)g.n * (double)g.n * threads / best;
}

static double counted_flops(const Plan *p) {
    double total = 0;
    for (int i = 0; i < p->rank[0].nstep; i++) {
        const Step *s = &p->rank[0].step[i];
        const Node *n = graph_node(p->graph, s->node);
        if (n->op != OP_DOT && n->op != OP_ATTENTION && n->op != OP_ATTENTION_GRAD) continue;
        Cost c = {0};
        op_info(n->op)->cost(n, s->in, s->out, &c);
        total += c.flops;
    }
    return total;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: bench_step M.pt2 SEQ [threads] [steps]\n"), 2;
    CompileOptions o;
    compile_defaults(&o);
    o.path = argv[1];
    o.import.batch = 1;
    o.import.seq = atoll(argv[2]);
    o.import.allow_missing_params = true;
    o.nthreads = argc > 3 ? atoi(argv[3]) : 0;
    o.update = true;
    int steps = argc > 4 ? atoi(argv[4]) : 3;
    Diag d = {0};
    Compiled c;
    Runtime *rt = NULL;
    Status st = compile_file(&o, &c, &d);
    if (st == ST_OK) st = runtime_new(c.plan, 1, &rt, &d);
    if (st == ST_OK) st = values_load_params(rt, c.graph, true, 1, &d);
    if (st == ST_OK) st = values_set_inputs(rt, c.graph, NULL, 1, &d);
    if (st != ST_OK) return fprintf(stderr, "bench_step: %s\n", d.text), 2;
    cpu_blas_init();
    Pool *pool = pool_new(c.plan->nthreads);
    double flops = counted_flops(c.plan), best = INFINITY, rate = blas_rate(pool), loss = 0;
    for (int i = 0; i <= steps && st == ST_OK; i++) {
        runtime_set_hyper(rt, (double[]){1e-4, 0.1, 0.05});
        double t = now();
        st = runtime_step(rt, i, &loss, &d);
        t = now() - t;
        if (i) best = fmin(best, t);  // the first step touches the arena's pages
        printf("step %d  %.3f s  loss %.4f\n", i, t, loss);
        rate = fmax(rate, blas_rate(pool));
    }
    if (st != ST_OK) return fprintf(stderr, "bench_step: %s\n", d.text), 2;
    printf("%s S=%s, %d threads: arena %.1f MB, %.1f GFLOP per step, %.0f tokens/s\n", argv[1], argv[2], c.plan->nthreads,
           (double)c.plan->rank[0].arena_nbytes / 1e6, flops / 1e9, (double)c.graph->seq / best);
    printf("sgemm %.1f GFLOP/s; step %.1f GFLOP/s = %.1f %% of it\n", rate / 1e9, flops / best / 1e9, 100 * flops / best / rate);
    pool_free(pool);
    runtime_free(rt);
    compiled_free(&c);
    return 0;
}
