// Sorting and convolution where tensors have more than 2^31 elements: lines that are looked at are sorted, or summed, here.
#include <math.h>
#include <stdlib.h>
#include "base/random.h"
#include "ops_bench.h"

// ---- sort, topk -----------------------------------------------------------------------------------------------------------

typedef struct Key {
    float value;
    int64_t index;
} Key;
static int ascending(const void *a, const void *b) {
    const Key *x = a, *y = b;
    return x->value != y->value ? (x->value < y->value ? -1 : 1) : x->index < y->index ? -1 : x->index > y->index;
}
static int descending(const void *a, const void *b) {
    const Key *x = a, *y = b;
    return x->value != y->value ? (x->value > y->value ? -1 : 1) : x->index < y->index ? -1 : x->index > y->index;
}

typedef struct Lines {
    int64_t outer, n, inner, take;  // lines along the middle dim; so many of each are kept
    bool down;
} Lines;

// Line `line` of values and indices against the source's.
static bool check_line(Bench *b, const char *what, const Lines *l, int64_t line, const Operand *values, const Operand *indices) {
    int64_t o = line / l->inner, c = line % l->inner, first = o * l->take * l->inner + c, run = l->inner == 1 ? l->take : 1;
    Key *want = malloc((size_t)l->n * sizeof *want);
    float *v = malloc((size_t)run * sizeof *v);
    int64_t *at = malloc((size_t)run * sizeof *at);
    CHECK(want && v && at, "out of memory");
    for (int64_t i = 0; i < l->n; i++) want[i] = (Key){(float)bench_source((o * l->n + i) * l->inner + c), i};
    qsort(want, (size_t)l->n, sizeof *want, l->down ? descending : ascending);
    bool ok = true;
    for (int64_t r = 0; r < l->take && ok; r++) {
        if (r % run == 0)
            ok = bench_read(b, v, values, first + r * l->inner, run) && bench_read(b, at, indices, first + r * l->inner, run);
        if (!ok || (v[r % run] == want[r].value && at[r % run] == want[r].index)) continue;
        bench_fail(b, "%s: line %lld, rank %lld is %.9g of %lld, not %.9g of %lld", what, (long long)line, (long long)r,
                   (double)v[r % run], (long long)at[r % run], (double)want[r].value, (long long)want[r].index);
        ok = false;
    }
    free(want), free(v), free(at);
    return ok;
}

static void large_sort(Bench *b, const char *what, Lines l, int looks) {
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, DIMS_OF(l.outer, l.n, l.inner));
    Operand values = bench_tensor(b, DT_F32, DIMS_OF(l.outer, l.take, l.inner));
    Operand indices = bench_tensor(b, DT_I64, DIMS_OF(l.outer, l.take, l.inner));
    BenchOp o = bench_op(l.take < l.n ? OP_TOPK : OP_SORT, OPERANDS(x), values,
                         ATTRS(I(DIM, 1), I(K, l.take), I(DESCENDING, l.down)));
    o.nout = 2, o.out[1] = indices;
    if (!bench_random(b, &x) || !bench_run(b, &o, 1, NULL)) return;
    int64_t lines = l.outer * l.inner;
    for (int i = 0; i < looks; i++) {
        int64_t line = i == 0 ? 0 : i == 1 ? lines - 1 : (int64_t)(random_uniform(4, 0, 0, i) * (double)lines);
        if (!check_line(b, what, &l, line, &values, &indices)) return;
    }
    bench_pass(b, what, bench_numel(&x));
}

// ---- convolution ----------------------------------------------------------------------------------------------------------
// Of the source with itself: channel c's weights are elements 4c .. 4c + 3. ctx: channels, positions, dilation, zeros before.

enum { TAPS = 4 };
static double signal_at(const int64_t *c, int64_t channel, int64_t t) {
    return t < 0 || t >= c[1] ? 0 : bench_source(channel * c[1] + t);
}
static double want_conv(int64_t at, const int64_t *c) {
    double sum = 0;
    for (int64_t j = 0; j < TAPS; j++)
        sum += bench_source(at / c[1] * TAPS + j) * signal_at(c, at / c[1], at % c[1] + j * c[2] - c[3]);
    return sum;
}
static double want_conv_grad_x(int64_t at, const int64_t *c) {
    double sum = 0;
    for (int64_t j = 0; j < TAPS; j++)
        sum += bench_source(at / c[1] * TAPS + j) * signal_at(c, at / c[1], at % c[1] - j * c[2] + c[3]);
    return sum;
}

static bool check_weights(Bench *b, const char *what, const Operand *gw, const int64_t *c) {
    for (int i = 0; i < 3; i++) {
        int64_t channel = i * (c[0] - 1) / 2;
        float got[TAPS];
        if (!bench_read(b, got, gw, channel * TAPS, TAPS)) return false;
        for (int64_t j = 0; j < TAPS; j++) {
            double want = 0;
            for (int64_t t = 0; t < c[1]; t++) want += signal_at(c, channel, t) * signal_at(c, channel, t + j * c[2] - c[3]);
            if (fabs(got[j] - want) <= 1e-5 * want) continue;
            bench_fail(b, "%s: channel %lld, tap %lld is %.9g, not %.9g", what, (long long)channel, (long long)j, (double)got[j],
                       want);
            return false;
        }
    }
    bench_pass(b, what, c[0] * c[1]);
    return true;
}

// Depthwise ones of a few taps have kernels of their own, unless dilated.
static void large_conv(Bench *b, int64_t channels, int64_t n, int64_t dilation) {
    const int64_t c[] = {channels, n, dilation, (TAPS - 1) * dilation};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, DIMS_OF(1, channels, n)), out = bench_tensor(b, DT_F32, DIMS_OF(1, channels, n));
    Operand w = bench_tensor(b, DT_F32, DIMS_OF(channels, 1, TAPS)), gw = bench_tensor(b, DT_F32, DIMS_OF(channels, 1, TAPS));
    const Attr attr[] = {I(GROUPS, channels), I(LO, c[3]), I(DILATION, dilation), I(KERNEL, TAPS), I(LENGTH, n)};
    BenchOp forward = bench_op(OP_CONV1D, OPERANDS(x, w), out, 3, attr);
    BenchOp grad_x = bench_op(OP_CONV1D_GRAD_X, OPERANDS(x, w), out, 5, attr);
    BenchOp grad_w = bench_op(OP_CONV1D_GRAD_W, OPERANDS(x, x), gw, 4, attr);
    if (!bench_random(b, &x) || !bench_random(b, &w)) return;
    static const char *const what[2][3] = {{"conv1d", "conv1d_grad_x", "conv1d_grad_w"},
                                           {"conv1d, dilated", "conv1d_grad_x, dilated", "conv1d_grad_w, dilated"}};
    const char *const *name = what[dilation > 1];
    if (bench_run(b, &forward, 1, NULL)) bench_probe(b, name[0], &out, want_conv, c);
    if (bench_run(b, &grad_x, 1, NULL)) bench_probe(b, name[1], &out, want_conv_grad_x, c);
    if (bench_run(b, &grad_w, 1, NULL)) check_weights(b, name[2], &gw, c);
}

void bench_large_lines(Bench *b, double scale) {
    bool small = scale < 1;
    int64_t lines = (int64_t)(2150003 * scale) + 3, many = (int64_t)(33600001 * scale) + 3;
    large_sort(b, "sort f32, short lines", (Lines){lines, 1000, 1, 1000, false}, 40);
    large_sort(b, "sort f32, downwards, strided", (Lines){1, 64, many, 64, true}, 40);
    large_sort(b, "sort f32, long lines", (Lines){small ? 5 : 2051, small ? 5003 : 1050001, 1, small ? 5003 : 1050001, false}, 3);
    large_sort(b, "topk f32", (Lines){many, 64, 1, 4, true}, 200);
    for (int64_t dilation = 1; dilation <= 2; dilation++)
        large_conv(b, small ? 37 : 2051, small ? 8191 : 1050001, dilation);
}
