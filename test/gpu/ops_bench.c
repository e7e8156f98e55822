#include "ops_bench.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "base/random.h"

void bench_fail(Bench *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(b->report, "FAIL ");
    vfprintf(b->report, fmt, ap);
    fprintf(b->report, "\n");
    va_end(ap);
    b->nfail++;
}

int64_t bench_numel(const Operand *o) {
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    return n;
}
static size_t nbytes_of(const Operand *o) { return (size_t)bench_numel(o) * (size_t)dtype_nbytes(o->dtype); }

static void *take(Bench *b, size_t nbytes) {
    void *p = b->arena + b->used;
    b->used += (nbytes + 255) / 256 * 256;
    CHECK(b->used <= b->nbytes, "the arena of %zu bytes is too small", b->nbytes);
    return p;
}

Operand bench_tensor(Bench *b, DType t, int ndim, const int64_t *dim) {
    Operand o = {.dtype = t, .ndim = ndim, .sdim = -1};
    for (int i = 0; i < ndim; i++) o.dim[i] = o.global[i] = dim[i];
    o.data = take(b, nbytes_of(&o));
    return o;
}

bool bench_run(Bench *b, const BenchOp *o, int times, double *seconds) {
    Diag d = {0};
    ValueId ids[8] = {0};
    Node n = {.op = o->op, .nin = (int16_t)o->nin, .nout = (int16_t)o->nout, .nattr = (int16_t)o->nattr, .in = ids, .out = ids};
    n.attr = (Attr *)o->attr;
    KernelArgs k = {
        .node = &n, .nin = o->nin, .nout = o->nout, .in = o->in, .out = o->out, .device = b->dev, .run_seed = o->run_seed};
    size_t used = b->used;
    k.scratch_nbytes = backend_cuda.scratch(&n, o->in, o->out, 1);
    k.scratch = take(b, k.scratch_nbytes);
    NodeId failed;
    Status st = b->api->prepare(b->dev, &k, &k.state, &d);
    if (st == ST_OK) st = b->api->begin(b->dev, o->run_seed, 0, &d);
    KernelFn fn = backend_cuda.kernel(o->op, DT_F32);
    if (st == ST_OK) st = fn(&k, &d);  // the first is slower
    if (st == ST_OK) st = b->api->mark(b->dev, 0, &d);
    for (int i = 1; i < times && st == ST_OK; i++) st = fn(&k, &d);
    if (st == ST_OK) st = b->api->mark(b->dev, 1, &d);
    if (st == ST_OK) st = b->api->finish(b->dev, &failed, &d);
    if (st == ST_OK && seconds) st = b->api->elapsed(b->dev, 0, 1, seconds, &d), *seconds /= times > 1 ? times - 1 : 1;
    b->used = used;
    if (st != ST_OK) bench_fail(b, "%s: %s", op_name(o->op), d.text);
    return st == ST_OK;
}

// ---- speed ----------------------------------------------------------------------------------------------------------------

typedef struct SpeedCase {
    const char *what;
    OpKind op;
    int nin, nout;
    Shape in[7], out[4];
    DType tin[7], tout[4];
    int nattr;
    Attr attr[6];
    double moved;  // bytes for each element of output 0, where it is not everything once
    int64_t limit;  // i64 operands are drawn from [0, limit)
} SpeedCase;

#define DIM(...) {.ndim = COUNT(int64_t, __VA_ARGS__), .dim = {__VA_ARGS__}}
#define W(...) __VA_ARGS__
#define ONE(OP, text, t, from, to, ...) \
    {text, OP_##OP, 1, 1, {from}, {to}, {t}, {t}, COUNT(Attr, __VA_ARGS__), {__VA_ARGS__}, 0, 0}
enum { S = 32768, D = 2048, V = 128256, N = 1 << 26 };
static const SpeedCase speed[] = {
    ONE(PERMUTE, "permute [S,D] f32 -> [D,S]", DT_F32, W(DIM(S, D)), W(DIM(D, S)), INTS(DIMS, 1, 0)),
    ONE(PERMUTE, "permute [S,D] bf16 -> [D,S]", DT_BF16, W(DIM(S, D)), W(DIM(D, S)), INTS(DIMS, 1, 0)),
    ONE(PERMUTE, "permute [S,32,64] bf16 -> [32,S,64]", DT_BF16, W(DIM(S, 32, 64)), W(DIM(32, S, 64)), INTS(DIMS, 1, 0, 2)),
    ONE(PERMUTE, "permute [32,S,64] bf16 -> [S,32,64]", DT_BF16, W(DIM(32, S, 64)), W(DIM(S, 32, 64)), INTS(DIMS, 1, 0, 2)),
    ONE(PERMUTE, "permute [S,32,64] bf16 -> [32,64,S]", DT_BF16, W(DIM(S, 32, 64)), W(DIM(32, 64, S)), INTS(DIMS, 1, 2, 0)),
    ONE(BROADCAST, "broadcast [S,8,1,64] bf16 -> [S,8,4,64]", DT_BF16, W(DIM(S, 8, 1, 64)), W(DIM(S, 8, 4, 64)),
        INTS(SHAPE, S, 8, 4, 64)),
    ONE(BROADCAST, "broadcast [S,1] f32 -> [S,D]", DT_F32, W(DIM(S, 1)), W(DIM(S, D)), INTS(SHAPE, S, D)),
    ONE(SLICE, "slice [S,2D] bf16 -> [S,D]", DT_BF16, W(DIM(S, 2 * D)), W(DIM(S, D)), I(DIM, 1), I(START, D), I(STEP, 1),
        I(LENGTH, D)),
    ONE(SLICE, "slice by one row, odd [S,D+1] f32", DT_F32, W(DIM(S, D + 1)), W(DIM(S, D)), I(DIM, 1), I(START, 1), I(STEP, 1),
        I(LENGTH, D)),
    ONE(PAD, "pad [S,D] bf16 -> [S,D+128]", DT_BF16, W(DIM(S, D)), W(DIM(S, D + 128)), I(DIM, 1), I(LO, 64), I(HI, 64),
        F(VALUE, 0)),
    ONE(SUM, "sum rows f32", DT_F32, W(DIM(S, D)), W(DIM(S, 1)), INTS(DIMS, 1)),
    ONE(SUM, "sum rows bf16", DT_BF16, W(DIM(S, D)), W(DIM(S, 1)), INTS(DIMS, 1)),
    ONE(SUM, "sum short rows f32 [S*32,64]", DT_F32, W(DIM(S * 32, 64)), W(DIM(S * 32, 1)), INTS(DIMS, 1)),
    ONE(SUM, "sum columns f32", DT_F32, W(DIM(S, D)), W(DIM(1, D)), INTS(DIMS, 0)),
    ONE(SUM, "sum columns bf16", DT_BF16, W(DIM(S, D)), W(DIM(1, D)), INTS(DIMS, 0)),
    ONE(SUM, "sum all f32", DT_F32, W(DIM(S, D)), W(DIM(1, 1)), INTS(DIMS, 0, 1)),
    ONE(AMAX, "amax rows f32", DT_F32, W(DIM(S, D)), W(DIM(S, 1)), INTS(DIMS, 1)),
    ONE(LOGSUMEXP, "logsumexp rows f32", DT_F32, W(DIM(S, D)), W(DIM(S, 1)), I(DIM, 1)),
    ONE(CUMSUM, "cumsum rows f32", DT_F32, W(DIM(S, D)), W(DIM(S, D)), I(DIM, 1)),
    ONE(CUMSUM, "cumsum columns f32", DT_F32, W(DIM(S, D)), W(DIM(S, D)), I(DIM, 0)),
    {"full f32", OP_FULL, 0, 1, {{0}}, {DIM(S, D)}, {0}, {DT_F32}, 1, {F(VALUE, 1)}, 0, 0},
    {"random f32", OP_RANDOM, 0, 1, {{0}}, {DIM(S, D)}, {0}, {DT_F32}, 1, {I(SEED, 1)}, 0, 0},
    {"concat [S,D] + [S,D] bf16",
     OP_CONCAT,
     2,
     1,
     {DIM(S, D), DIM(S, D)},
     {DIM(S, 2 * D)},
     {DT_BF16, DT_BF16},
     {DT_BF16},
     1,
     {I(DIM, 1)},
     0,
     0},
    {"embedding bf16 [V,D], S tokens",
     OP_EMBEDDING,
     2,
     1,
     {DIM(V, D), DIM(S)},
     {DIM(S, D)},
     {DT_BF16, DT_I64},
     {DT_BF16},
     0,
     {I(DIM, 0)},
     4,
     V},
    {"embedding_grad f32 [V,D], S tokens",
     OP_EMBEDDING_GRAD,
     2,
     1,
     {DIM(S), DIM(S, D)},
     {DIM(V, D)},
     {DT_I64, DT_F32},
     {DT_F32},
     1,
     {I(NROWS, V)},
     0,
     V},
    {"embedding_grad f32, 16 tokens only",
     OP_EMBEDDING_GRAD,
     2,
     1,
     {DIM(S), DIM(S, D)},
     {DIM(V, D)},
     {DT_I64, DT_F32},
     {DT_F32},
     1,
     {I(NROWS, V)},
     0,
     16},
    {"gather f32 [S,D]", OP_GATHER, 2, 1, {DIM(S, D), DIM(S, D)}, {DIM(S, D)}, {DT_F32, DT_I64}, {DT_F32}, 1, {I(DIM, 1)}, 0, D},
    {"histogram of 4M into 64", OP_HISTOGRAM, 1, 1, {DIM(1 << 22)}, {DIM(64)}, {DT_I64}, {DT_I64}, 1, {I(NROWS, 64)}, 0, 64},
    {"sort i64 [262144]",
     OP_SORT,
     1,
     2,
     {DIM(1 << 18)},
     {DIM(1 << 18), DIM(1 << 18)},
     {DT_I64},
     {DT_I64, DT_I64},
     1,
     {I(DIM, 0)},
     0,
     64},
    {"topk 4 of 64, S rows, f32",
     OP_TOPK,
     1,
     2,
     {DIM(S, 64)},
     {DIM(S, 4), DIM(S, 4)},
     {DT_F32},
     {DT_F32, DT_I64},
     2,
     {I(DIM, 1), I(K, 4)},
     0,
     0},
    {"adamw 64M with bf16 copy",
     OP_ADAMW,
     7,
     4,
     {DIM(N), DIM(N), DIM(N), DIM(N), DIM(3), {0}, DIM(N)},
     {DIM(N), DIM(N), DIM(N), DIM(N)},
     {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_BF16},
     {DT_F32, DT_F32, DT_F32, DT_BF16},
     5,
     {F(BETA1, 0.9), F(BETA2, 0.95), F(EPS, 1e-8), F(DECAY, 0.1), I(HALF, 1)},
     30,
     0},
    {"conv1d depthwise, 4 taps, f32 [1,D,S]",
     OP_CONV1D,
     2,
     1,
     {DIM(1, D, S), DIM(D, 1, 4)},
     {DIM(1, D, S)},
     {DT_F32, DT_F32},
     {DT_F32},
     2,
     {I(GROUPS, D), I(LO, 3)},
     0,
     0},
    {"conv1d_grad_w, the same",
     OP_CONV1D_GRAD_W,
     2,
     1,
     {DIM(1, D, S), DIM(1, D, S)},
     {DIM(D, 1, 4)},
     {DT_F32, DT_F32},
     {DT_F32},
     3,
     {I(GROUPS, D), I(LO, 3), I(KERNEL, 4)},
     0,
     0},
};

static bool write_indices(Bench *b, const Operand *o, int64_t limit) {
    Diag d = {0};
    int64_t n = bench_numel(o), *x = malloc((size_t)n * sizeof *x);
    CHECK(x, "out of memory");
    for (int64_t i = 0; i < n; i++) x[i] = (int64_t)(random_uniform(1, 0, 0, i) * (double)limit);
    Status st = b->api->write(b->dev, o->data, x, (size_t)n * sizeof *x, &d);
    free(x);
    if (st != ST_OK) bench_fail(b, "%s", d.text);
    return st == ST_OK;
}

static void speed_case(Bench *b, const SpeedCase *c, double copy_rate) {
    bench_reset(b);
    BenchOp o = {.op = c->op, .nin = c->nin, .nout = c->nout, .nattr = c->nattr};
    memcpy(o.attr, c->attr, sizeof c->attr);
    double moved = 0, seconds;
    Diag d = {0};
    for (int i = 0; i < c->nin; i++) {
        o.in[i] = bench_tensor(b, c->tin[i], c->in[i].ndim, c->in[i].dim);
        moved += (double)nbytes_of(&o.in[i]);
        if (c->tin[i] == DT_I64 && !write_indices(b, &o.in[i], c->limit)) return;
        if (c->tin[i] != DT_I64 && b->api->fill(b->dev, o.in[i].data, c->tin[i], bench_numel(&o.in[i]), 0.5, &d) != ST_OK)
            bench_fail(b, "%s", d.text);
    }
    static const int in_place[] = {0, 2, 3, 6};
    for (int j = 0; j < c->nout; j++) {
        o.out[j] = c->op == OP_ADAMW ? o.in[in_place[j]] : bench_tensor(b, c->tout[j], c->out[j].ndim, c->out[j].dim);
        moved += (double)nbytes_of(&o.out[j]);
    }
    if (c->moved > 0) moved = c->moved * (double)bench_numel(&o.out[0]);
    if (c->op == OP_SLICE) moved = 2 * (double)nbytes_of(&o.out[0]);
    if (!bench_run(b, &o, 20, &seconds)) return;
    fprintf(b->report, "%-44s %9.1f us %7.0f GB/s  %5.2f of a copy\n", c->what, 1e6 * seconds, 1e-9 * moved / seconds,
            moved / seconds / copy_rate);
    fflush(b->report);
}

static double copy_rate_of(Bench *b) {
    enum { TIMES = 20 };
    const size_t n = (size_t)S * D * 4;
    Diag d = {0};
    NodeId failed;
    double seconds = 0;
    bench_reset(b);
    void *x = take(b, n), *y = take(b, n);
    for (int i = 0; i <= TIMES; i++) {
        if (i == 1 && b->api->mark(b->dev, 0, &d) != ST_OK) break;
        if (b->api->copy(b->dev, y, x, n, &d) != ST_OK) break;
    }
    if (b->api->mark(b->dev, 1, &d) != ST_OK || b->api->finish(b->dev, &failed, &d) != ST_OK ||
        b->api->elapsed(b->dev, 0, 1, &seconds, &d) != ST_OK)
        bench_fail(b, "copy: %s", d.text);
    return 2.0 * (double)n * TIMES / seconds;
}

void bench_speed(Bench *b) {
    double rate = copy_rate_of(b);
    fprintf(b->report, "device copy: %.0f GB/s (read + write)\n", 1e-9 * rate);
    for (size_t i = 0; i < sizeof speed / sizeof *speed; i++) speed_case(b, &speed[i], rate);
}
