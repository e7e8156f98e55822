// conv1d and its gradients: out[b, o, t] = sum over c, j of w[o, c, j] * x[b, c, t*stride + j*dilation - lo], zeros outside x.
// For one tap j, output positions t and input positions p = t*stride + j*dilation - lo go along together in runs, which the spans
// of a sharded sequence (halos included) and the ends of x cut. With one input channel per group a run is a loop over positions;
// with more, every tap is a matrix product over channels.
#include <string.h>
#include "backend/cpu/blas.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/tasks.h"

enum { WINDOW = 4096, CHANNELS = 64 };  // positions and channels of a task

typedef struct Conv {
    int64_t batch, groups, in_ch, out_ch;  // channels per group; local
    int64_t taps, stride, dilation, lo;
    Axis x, y;  // positions of the input and of the output side; n: local
    int64_t x_len, y_len;  // global
} Conv;

static Conv conv_of(const Node *n, const Operand *x, const Operand *w, const Operand *y) {
    Conv c = {.batch = x->dim[0],
              .in_ch = w->dim[1],
              .taps = w->dim[2],
              .x = axis_of(x, 2),
              .y = axis_of(y, 2),
              .x_len = x->global[2],
              .y_len = y->global[2]};
    c.groups = c.in_ch > 0 ? x->dim[1] / c.in_ch : 0;
    c.out_ch = c.groups > 0 ? y->dim[1] / c.groups : 0;
    c.stride = node_int_or(n, ATTR_STRIDE, 1);
    c.dilation = node_int_or(n, ATTR_DILATION, 1);
    c.lo = node_int_or(n, ATTR_LO, 0);
    return c;
}

static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// n positions: y local t + i, x local p + i*stride.
typedef struct Run {
    int64_t t, p, n;
} Run;

// The runs of one tap for local positions [begin, end) of the driving side (each of its positions once); on the other side a
// position may be stored more than once (halos) and any copy will do.
typedef struct RunIter {
    const Conv *c;
    bool by_x;  // the driving side is x
    int64_t offset;  // p = t*stride + offset
    int64_t begin, end;
    int span;  // of the driving side; base: its local start
    int64_t base, t, t_end;  // global t still to do in this span
} RunIter;

// The range of global t for which span `s` of the driving side, cut to the window, has a partner.
static void run_enter(RunIter *it, Span s) {
    const Conv *c = it->c;
    int64_t first = s.begin + max_i64(0, it->begin - it->base), last = min_i64(s.end, s.begin + it->end - it->base);
    // p = t*stride + offset in [first, last) resp. [0, x_len)
    int64_t p0 = it->by_x ? first : 0, p1 = it->by_x ? last : c->x_len;
    int64_t t0 = floor_div(p0 - it->offset + c->stride - 1, c->stride), t1 = floor_div(p1 - 1 - it->offset, c->stride) + 1;
    it->t = max_i64(t0, it->by_x ? 0 : first);
    it->t_end = first < last ? min_i64(t1, it->by_x ? c->y_len : last) : it->t;
}

static RunIter runs(const Conv *c, int64_t tap, bool by_x, int64_t begin, int64_t end) {
    RunIter it = {.c = c, .by_x = by_x, .offset = tap * c->dilation - c->lo, .begin = begin, .end = end};
    const Axis *drive = by_x ? &c->x : &c->y;
    if (drive->nspan > 0) run_enter(&it, axis_spans(drive)[0]);
    return it;
}

static bool run_next(RunIter *it, Run *r) {
    const Conv *c = it->c;
    const Axis *drive = it->by_x ? &c->x : &c->y, *other = it->by_x ? &c->y : &c->x;
    for (; it->span < drive->nspan;) {
        Span ds = axis_spans(drive)[it->span];
        if (it->t >= it->t_end) {
            it->base += ds.end - ds.begin;
            if (++it->span < drive->nspan) run_enter(it, axis_spans(drive)[it->span]);
            continue;
        }
        int64_t p = it->t * c->stride + it->offset, at = it->by_x ? it->t : p, base = 0;
        for (int s = 0; s < other->nspan; s++) {
            Span os = axis_spans(other)[s];
            if (at >= os.begin && at < os.end) {
                r->n = min_i64(it->t_end - it->t, it->by_x ? os.end - at : ceil_div(os.end - at, c->stride));
                int64_t driven = base + at - os.begin, driving = it->base + (it->by_x ? p : it->t) - ds.begin;
                r->t = it->by_x ? driven : driving, r->p = it->by_x ? driving : driven;
                it->t += r->n;
                return true;
            }
            base += os.end - os.begin;
        }
        CHECK(false, "convolution: position %lld is not on this rank", (long long)at);
    }
    return false;
}

static size_t round_bytes(size_t n) { return (n + 63) & ~(size_t)63; }

#define REAL_BITS 32
#include "backend/cpu/conv1d_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/conv1d_impl.h"
#undef REAL_BITS

// The weights tap by tap, and for each worker a strided run made dense.
static size_t conv_scratch(const Operand *w, int nthreads) {
    size_t real = (size_t)dtype_nbytes(w->dtype), taps = (size_t)(w->dim[0] * w->dim[1] * w->dim[2]) * real;
    return round_bytes(taps) + (size_t)nthreads * round_bytes((size_t)(max_i64(w->dim[1], CHANNELS) * WINDOW) * real);
}
size_t cpu_conv1d_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n, (void)out;
    return conv_scratch(&in[1], nthreads);
}
size_t cpu_conv1d_grad_x_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n, (void)out;
    return conv_scratch(&in[1], nthreads);
}
size_t cpu_conv1d_grad_w_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n, (void)in;
    return conv_scratch(&out[0], nthreads);
}
