#include "driver/calibrate_bench.h"

#include <stdlib.h>
#include <time.h>

void bench_begin(Bench *x) {
    x->a = arena_new();
    CHECK(x->a, "out of memory");
    x->b = (Builder){.g = graph_new(x->a, "calibrate", x->nranks), .d = x->d, .source = "calibrate"};
}

void bench_end(Bench *x) {
    vec_free(&x->measure);
    arena_free(x->a);
    x->a = NULL;
}

ValueId bench_random(Bench *x, DType t, Shape s) {
    Attr attr[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DTYPE, DT_F32), attr_i(ATTR_SEED, x->b.g->nodes.len)};
    ValueId r = build(&x->b, OP_RANDOM, 0, NULL, 3, attr);
    return build_cast(&x->b, build_binary_scalar(&x->b, OP_SUB, r, 0.5), t);
}

int bench_node(Bench *x, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    Measure m = {.op = op, .first = (NodeId)x->b.g->nodes.len};
    for (int i = 0; i < BENCH_REPEAT; i++) build(&x->b, op, nin, in, nattr, attr);
    m.end = (NodeId)x->b.g->nodes.len;
    vec_push(&x->measure, m);
    return (int)x->measure.len - 1;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static Status open_plan(Bench *x, Plan **plan, Runtime **rt) {
    TRY(x->b.status);
    Graph *g = x->b.g;
    for (int64_t v = 0; v < g->values.len; v++)
        if (graph_value(g, (ValueId)v)->place.kind == PLACE_NONE) graph_value(g, (ValueId)v)->place = REPLICATE;
    PlanOptions o = {.backend = x->backend, .device = x->base, .nthreads = x->nthreads};
    TRY(plan_make(x->a, g, &o, plan, x->d));
    return runtime_new(*plan, 1, rt, x->d);
}

// Rank 0's times: in exchanges ranks wait for each other.
static Status take(Bench *x, Runtime *rt, const Plan *p, double **sample, int *count) {
    StepTimes *times = ARENA_ARRAY(x->a, StepTimes, p->nranks);
    for (int t = 0; t <= BENCH_TIMES; t++) {
        double loss;
        TRY(runtime_profile(rt, t, &loss, times, x->d));
        for (int i = 0; i < p->rank[0].nstep && t > 0; i++)
            for (int64_t k = 0; k < x->measure.len; k++) {
                const Measure *m = &x->measure.data[k];
                NodeId node = p->rank[0].step[i].node;
                if (node >= m->first && node < m->end && graph_node(p->graph, node)->op == m->op)
                    sample[k][count[k]++] = times[0].seconds[i];
            }
    }
    return ST_OK;
}

static void describe(Bench *x, const Plan *p, Measure *m) {
    for (int i = 0; i < p->rank[0].nstep; i++) {
        const Step *s = &p->rank[0].step[i];
        const Node *n = graph_node(p->graph, s->node);
        if (s->node < m->first || s->node >= m->end || n->op != m->op) continue;
        m->flops = s->work.flops, m->nbytes = s->work.nbytes, m->predicted = s->seconds;
        if (m->op != OP_ATTENTION && m->op != OP_ATTENTION_GRAD) return;
        m->length = attention_length(n, s->in, &s->work);
        m->kernel = x->backend->attention_kernel ? x->backend->attention_kernel(n, s->in, s->out) : x->backend->name;
        return;
    }
}

Status bench_run(Bench *x) {
    Plan *p = NULL;
    Runtime *rt = NULL;
    double **sample = ARENA_ARRAY(x->a, double *, x->measure.len + 1);
    int *count = ARENA_ARRAY(x->a, int, x->measure.len + 1);
    for (int64_t k = 0; k < x->measure.len; k++) {
        int64_t n = x->measure.data[k].end - x->measure.data[k].first;
        sample[k] = ARENA_ARRAY(x->a, double, n *BENCH_TIMES * 4);  // a reshard may take several steps
    }
    Status st = open_plan(x, &p, &rt);
    if (st == ST_OK) st = take(x, rt, p, sample, count);
    runtime_free(rt);
    TRY(st);
    for (int64_t k = 0; k < x->measure.len; k++) {
        Measure *m = &x->measure.data[k];
        if (count[k] == 0) return diag_error(x->d, ST_UNSUPPORTED, "calibrate: the plan has no step for %s", op_name(m->op));
        m->seconds = median(sample[k], count[k]);
        describe(x, p, m);
    }
    return ST_OK;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Status bench_step(Bench *x, double *seconds) {
    enum { WARM = 3, TIMES = 15 };
    Plan *p = NULL;
    Runtime *rt = NULL;
    double t[TIMES], loss;
    Status st = open_plan(x, &p, &rt);
    for (int i = 0; i < WARM + TIMES && st == ST_OK; i++) {
        double begin = now();
        st = runtime_step(rt, i, &loss, x->d);
        if (i >= WARM) t[i - WARM] = now() - begin;
    }
    runtime_free(rt);
    if (st == ST_OK) *seconds = median(t, TIMES);
    return st;
}
