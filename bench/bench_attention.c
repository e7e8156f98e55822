// Attention and matrix products of the CPU backend beside the BLAS's own rate, measured in the same run.
//     bench_attention [threads] [sequence] [heads] [dim] [kv_heads]
// FLOPs counted for causal attention: 4 * S * S * D * H / 2 forward, 2.5 times that backward.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "backend/cpu/blas.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/pool.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *filled(int64_t n) {
    float *p = aligned_alloc(64, ((size_t)n * sizeof *p + 63) / 64 * 64);
    CHECK(p, "out of memory");
    uint32_t z = 1;
    for (int64_t i = 0; i < n; i++) z = z * 1664525 + 1013904223, p[i] = (float)(z >> 8) / (1 << 24) - 0.5f;
    return p;
}

static Operand operand(const Shape *s) {
    Operand o = {.dtype = DT_F32, .ndim = s->ndim, .sdim = -1};
    int64_t n = 1;
    for (int i = 0; i < s->ndim; i++) n *= o.dim[i] = o.global[i] = s->dim[i];
    o.data = filled(n);
    return o;
}

// Best seconds of a few calls of a kernel. A slow machine has other work to do: the best is what the code can do.
static double time_kernel(KernelFn fn, const KernelArgs *k, double at_least_s) {
    double best = INFINITY, start = now();
    for (int i = 0; i < 3 || now() - start < at_least_s; i++) {
        Diag d = {0};
        double t = now();
        CHECK(fn(k, &d) == ST_OK, "%s", d.text);
        best = fmin(best, now() - t);
    }
    return best;
}

// The BLAS on every thread at once, each with a product of its own, to be the yardstick for all threads together.
typedef struct Gemm {
    const float *a, *b;
    float *c;
    int64_t n;
} Gemm;
static void gemm_part(void *ctx, int64_t begin, int64_t end, int worker) {
    const Gemm *g = ctx;
    (void)begin, (void)end;
    blas_gemm_f32(false, false, g->n, g->n, g->n, 1, g->a, g->n, g->b, g->n, 0, g->c + worker * g->n * g->n, g->n);
}
static double blas_rate(Pool *pool, double at_least_s) {
    Gemm g = {.n = 1024};
    int nthreads = pool_nthreads(pool);
    g.a = filled(g.n * g.n), g.b = filled(g.n * g.n), g.c = filled(g.n * g.n * nthreads);
    double best = INFINITY, start = now();
    while (now() - start < at_least_s) {
        double t = now();
        pool_run(pool, gemm_part, &g, nthreads, 1);
        best = fmin(best, now() - t);
    }
    free((void *)g.a), free((void *)g.b), free(g.c);
    return 2.0 * (double)(g.n * g.n * g.n) * nthreads / best;
}

static void bench_dot(Pool *pool, const char *what, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b, double rate) {
    Attr attr[] = {attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, trans_a), attr_i(ATTR_TRANS_B, trans_b)};
    Node node = {.op = OP_DOT, .nin = 2, .nout = 1, .nattr = 3, .attr = attr};
    Shape a = trans_a ? SHAPE(k, m) : SHAPE(m, k), b = trans_b ? SHAPE(n, k) : SHAPE(k, n), c = SHAPE(m, n);
    Operand in[2] = {operand(&a), operand(&b)}, out = operand(&c);
    KernelArgs args = {.node = &node, .nin = 2, .nout = 1, .in = in, .out = &out, .pool = pool};
    double got = 2.0 * (double)m * (double)n * (double)k / time_kernel(cpu_dot_f32, &args, 0.5);
    printf("%-34s %6lld x %6lld x %6lld %8.1f GFLOP/s  %5.1f %% of sgemm\n", what, (long long)m, (long long)n, (long long)k,
           got * 1e-9, 100 * got / rate);
    free(in[0].data), free(in[1].data), free(out.data);
}

static void *scratch_new(size_t n, KernelArgs *k) {
    k->scratch_nbytes = n;
    return k->scratch = aligned_alloc(64, (n + 64) / 64 * 64);
}

static void bench_attention(Pool *pool, int64_t S, int64_t H, int64_t Hkv, int64_t D, double rate) {
    static const Instr causal[] = {{.code = PROG_INDEX_Q, .dtype = DT_I64, .a = -1, .b = -1, .c = -1},
                                   {.code = PROG_INDEX_K, .dtype = DT_I64, .a = -1, .b = -1, .c = -1},
                                   {.code = PROG_OP + OP_LE, .dtype = DT_BOOL, .a = 1, .b = 0, .c = -1}};
    static const int32_t outs[2] = {2, -1};
    Program prog = {.ninstr = 3, .instr = causal, .nout = 2, .out = outs};
    Attr attr[] = {attr_f(ATTR_SCALE, 1 / sqrt((double)D)), attr_prog(ATTR_PROG, &prog)};
    Node fwd = {.op = OP_ATTENTION, .nin = 3, .nout = 2, .nattr = 2, .attr = attr}, bwd = fwd;
    bwd.op = OP_ATTENTION_GRAD, bwd.nin = 6, bwd.nout = 3;
    Shape q = SHAPE(1, H, S, D), kv = SHAPE(1, Hkv, S, D), lse = SHAPE(1, H, S);
    Operand in[6] = {operand(&q), operand(&kv), operand(&kv), operand(&q), operand(&lse), operand(&q)};
    Operand grad[3] = {operand(&q), operand(&kv), operand(&kv)};
    KernelArgs f = {.node = &fwd, .nin = 3, .nout = 2, .in = in, .out = &in[3], .pool = pool};
    KernelArgs b = {.node = &bwd, .nin = 6, .nout = 3, .in = in, .out = grad, .pool = pool};
    void *s1 = scratch_new(cpu_attention_scratch(&fwd, in, &in[3], pool_nthreads(pool)), &f);
    void *s2 = scratch_new(cpu_attention_grad_scratch(&bwd, in, grad, pool_nthreads(pool)), &b);
    double flops = 2.0 * (double)S * (double)S * (double)D * (double)H;
    double tf = time_kernel(cpu_attention_f32, &f, 1), tb = time_kernel(cpu_attention_grad_f32, &b, 2);
    printf("causal attention S=%lld H=%lld/%lld D=%lld\n", (long long)S, (long long)H, (long long)Hkv, (long long)D);
    printf("  forward  %8.3f ms %8.1f GFLOP/s  %5.1f %% of sgemm\n", tf * 1e3, flops / tf * 1e-9, 100 * flops / tf / rate);
    printf("  backward %8.3f ms %8.1f GFLOP/s  %5.1f %% of sgemm\n", tb * 1e3, 2.5 * flops / tb * 1e-9, 250 * flops / tb / rate);
    printf("  together %8.3f ms %8.1f GFLOP/s  %5.1f %% of sgemm\n", (tf + tb) * 1e3, 3.5 * flops / (tf + tb) * 1e-9,
           350 * flops / (tf + tb) / rate);
    for (int i = 0; i < 6; i++) free(in[i].data);
    for (int i = 0; i < 3; i++) free(grad[i].data);
    free(s1), free(s2);
}

int main(int argc, char **argv) {
    int64_t arg[5] = {2, 4096, 8, 64, 8};
    for (int i = 1; i < argc && i <= 5; i++) arg[i - 1] = atoll(argv[i]);
    if (argc > 3 && argc < 6) arg[4] = arg[2];
    cpu_blas_init();
    Pool *pool = pool_new((int)arg[0]);
    CHECK(pool, "no threads");
    double rate = blas_rate(pool, 1);
    printf("sgemm, %lld threads: %.1f GFLOP/s\n", (long long)arg[0], rate * 1e-9);
    bench_attention(pool, arg[1], arg[2], arg[4], arg[3], rate);
    rate = fmax(rate, blas_rate(pool, 1));
    printf("sgemm again: %.1f GFLOP/s\n", rate * 1e-9);
    bench_dot(pool, "linear, 512 -> 1408", 4096, 1408, 512, false, true, rate);
    bench_dot(pool, "linear, 1408 -> 512", 4096, 512, 1408, false, true, rate);
    bench_dot(pool, "its input gradient", 4096, 1408, 512, false, false, rate);
    bench_dot(pool, "its weight gradient", 512, 1408, 4096, true, false, rate);
    bench_dot(pool, "head, 512 -> 32000, 1024 tokens", 1024, 32000, 512, false, true, rate);
    pool_free(pool);
    return 0;
}
