// The kernel of dot.c for one float type (see real.h).
#include "backend/cpu/real.h"

// What is added goes into a task's part [m, n] of the result first, which begins `at` elements into it. A bias repeats along the
// result's last dim, of which the columns may be several times (b has more free dims) or a part (b has none).
static void FN(dot_add)(const DotJob *j, int64_t at, int64_t m, int64_t n) {
    const REAL *from = j->add;
    REAL *to = j->c;
    for (int64_t i = 0; i < m; i++, at += j->s.n) {
        if (!j->nbias && to != from) memcpy(to + at, from + at, (size_t)n * sizeof(REAL));
        for (int64_t col = 0, run; j->nbias && col < n; col += run) {
            int64_t first = (at + col) % j->nbias;
            run = min_i64(n - col, j->nbias - first);
            memcpy(to + at + col, from + first, (size_t)run * sizeof(REAL));
        }
    }
}

// Tasks [begin, end) of batch * npanel.
static void FN(dot_tasks)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const DotJob *j = ctx;
    const DotSizes *s = &j->s;
    int64_t lda = s->trans_a ? s->m : s->k, ldb = s->trans_b ? s->k : s->n;
    for (int64_t t = begin; t < end; t++) {
        int64_t batch = t / j->cut.npanel, at = t % j->cut.npanel * j->cut.panel, m = s->m, n = s->n;
        const REAL *a = (const REAL *)j->a + batch * m * s->k, *b = (const REAL *)j->b + batch * s->k * n;
        REAL *c = (REAL *)j->c + batch * m * n;
        if (j->cut.along_m) {
            m = min_i64(j->cut.panel, m - at);
            a += s->trans_a ? at : at * s->k, c += at * s->n;
        } else {
            n = min_i64(j->cut.panel, n - at);
            b += s->trans_b ? at * s->k : at, c += at;
        }
        if (j->add) FN(dot_add)(j, c - (REAL *)j->c, m, n);
        FN(blas_gemm)(s->trans_a, s->trans_b, m, n, s->k, 1, a, lda, b, ldb, j->add != NULL, c, s->n);
    }
}

Status FN(cpu_dot)(const KernelArgs *k, Diag *d) {
    (void)d;
    DotJob j = {.s = dot_sizes(k->node, &k->in[0], &k->in[1]), .a = k->in[0].data, .b = k->in[1].data, .c = k->out[0].data};
    if (k->nin == 3) j.add = k->in[2].data, j.nbias = node_int_or(k->node, ATTR_BIAS, 0) ? k->in[2].dim[0] : 0;
    if (j.s.batch == 0 || j.s.m == 0 || j.s.n == 0) return ST_OK;
    j.cut = dot_cut(&j.s, pool_nthreads(k->pool));
    pool_run(k->pool, FN(dot_tasks), &j, j.s.batch * j.cut.npanel, 1);
    return ST_OK;
}
