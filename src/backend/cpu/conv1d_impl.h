// The kernels of conv1d.c for one float type (see real.h).
#include "backend/cpu/real.h"

typedef struct FN(ConvJob) {
    Conv c;
    const REAL *x, *y, *w;  // whichever are operands
    REAL *out;
    REAL *taps;  // [tap][groups * out_ch][in_ch]
    REAL *dense;  // [worker][max(in_ch, CHANNELS)][WINDOW]
    int64_t dense_len;
} FN(ConvJob);

static FN(ConvJob) FN(conv_job)(const KernelArgs *k, Conv c) {
    FN(ConvJob) j = {.c = c, .out = k->out[0].data, .taps = k->scratch};
    size_t taps = round_bytes((size_t)(c.taps * c.groups * c.out_ch * c.in_ch) * sizeof(REAL));
    j.dense = (REAL *)((char *)k->scratch + taps);
    j.dense_len = (int64_t)(round_bytes((size_t)(max_i64(c.in_ch, CHANNELS) * WINDOW) * sizeof(REAL)) / sizeof(REAL));
    return j;
}

// w [out][in][tap] <-> taps [tap][out][in].
static void FN(conv_split_taps)(const FN(ConvJob) * j) {
    int64_t rows = j->c.groups * j->c.out_ch * j->c.in_ch;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t t = 0; t < j->c.taps; t++) j->taps[t * rows + i] = j->w[i * j->c.taps + t];
}

static const REAL *FN(conv_tap)(const FN(ConvJob) * j, int64_t tap, int64_t row) {
    return j->taps + (tap * j->c.groups * j->c.out_ch + row) * j->c.in_ch;
}

// Every stride-th of n elements of `rows` rows (length ld), made dense.
static void FN(conv_gather)(REAL *dst, const REAL *src, int64_t rows, int64_t ld, int64_t n, int64_t stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) dst[r * n + i] = src[r * ld + i * stride];
}

// Forward: output channels [o0, o0 + no) of group g, local positions [begin, end).
static void FN(conv_forward)(const FN(ConvJob) * j, int64_t b, int64_t g, int64_t o0, int64_t no, int64_t begin, int64_t end,
                             REAL *dense) {
    const Conv *c = &j->c;
    int64_t row = g * c->out_ch + o0;
    REAL *y = j->out + (b * c->groups * c->out_ch + row) * c->y.n;
    const REAL *x = j->x + (b * c->groups + g) * c->in_ch * c->x.n;
    for (int64_t o = 0; o < no; o++) memset(y + o * c->y.n + begin, 0, (size_t)(end - begin) * sizeof *y);
    for (int64_t tap = 0; tap < c->taps; tap++) {
        RunIter it = runs(c, tap, false, begin, end);
        for (Run r; run_next(&it, &r);) {
            if (c->in_ch == 1) {
                for (int64_t o = 0; o < no; o++) {
                    REAL w = *FN(conv_tap)(j, tap, row + o), *yr = y + o * c->y.n + r.t;
                    const REAL *xr = x + r.p;
                    if (c->stride == 1)
                        for (int64_t i = 0; i < r.n; i++) yr[i] += w * xr[i];
                    else
                        for (int64_t i = 0; i < r.n; i++) yr[i] += w * xr[i * c->stride];
                }
                continue;
            }
            const REAL *xs = x + r.p;
            if (c->stride != 1) FN(conv_gather)(dense, xs, c->in_ch, c->x.n, r.n, c->stride), xs = dense;
            GEMM(false, false, no, r.n, c->in_ch, 1, FN(conv_tap)(j, tap, row), c->in_ch, xs, c->stride == 1 ? c->x.n : r.n, 1,
                 y + r.t, c->y.n);
        }
    }
}

// Gradient of x: input channels [i0, i0 + ni) of group g, local positions [begin, end).
static void FN(conv_grad_x)(const FN(ConvJob) * j, int64_t b, int64_t g, int64_t i0, int64_t ni, int64_t begin, int64_t end,
                            REAL *dense) {
    const Conv *c = &j->c;
    REAL *x = j->out + ((b * c->groups + g) * c->in_ch + i0) * c->x.n;
    const REAL *y = j->y + (b * c->groups + g) * c->out_ch * c->y.n;
    for (int64_t i = 0; i < ni; i++) memset(x + i * c->x.n + begin, 0, (size_t)(end - begin) * sizeof *x);
    for (int64_t tap = 0; tap < c->taps; tap++) {
        RunIter it = runs(c, tap, true, begin, end);
        for (Run r; run_next(&it, &r);) {
            if (c->in_ch == 1) {
                for (int64_t o = 0; o < c->out_ch; o++) {
                    REAL w = *FN(conv_tap)(j, tap, g * c->out_ch + o), *xr = x + r.p;
                    const REAL *yr = y + o * c->y.n + r.t;
                    if (c->stride == 1)
                        for (int64_t i = 0; i < r.n; i++) xr[i] += w * yr[i];
                    else
                        for (int64_t i = 0; i < r.n; i++) xr[i * c->stride] += w * yr[i];
                }
                continue;
            }
            const REAL *w = FN(conv_tap)(j, tap, g * c->out_ch) + i0;
            if (c->stride == 1) {
                GEMM(true, false, ni, r.n, c->out_ch, 1, w, c->in_ch, y + r.t, c->y.n, 1, x + r.p, c->x.n);
                continue;
            }
            GEMM(true, false, ni, r.n, c->out_ch, 1, w, c->in_ch, y + r.t, c->y.n, 0, dense, r.n);
            for (int64_t i = 0; i < ni; i++)
                for (int64_t t = 0; t < r.n; t++) x[i * c->x.n + r.p + t * c->stride] += dense[i * r.n + t];
        }
    }
}

static double FN(conv_dot)(const REAL *y, const REAL *x, int64_t n, int64_t stride) {
    double lane[8] = {0};  // several sums, so that they are independent, in double, because n may be the whole sequence
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) lane[l] += (double)y[i + l] * (double)x[(i + l) * stride];
    for (; i < n; i++) lane[0] += (double)y[i] * (double)x[i * stride];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// Gradient of w: output channels [o0, o0 + no) of group g, all batch entries and positions.
static void FN(conv_grad_w)(const FN(ConvJob) * j, int64_t g, int64_t o0, int64_t no, REAL *dense) {
    const Conv *c = &j->c;
    int64_t row = g * c->out_ch + o0;
    for (int64_t tap = 0; tap < c->taps; tap++) {
        REAL *acc = j->taps + (tap * c->groups * c->out_ch + row) * c->in_ch;
        memset(acc, 0, (size_t)(no * c->in_ch) * sizeof *acc);
        double sum[CHANNELS] = {0};
        for (int64_t b = 0; b < c->batch; b++) {
            const REAL *y = j->y + (b * c->groups * c->out_ch + row) * c->y.n,
                       *x = j->x + (b * c->groups + g) * c->in_ch * c->x.n;
            for (int64_t begin = 0; begin < c->y.n; begin += WINDOW) {
                RunIter it = runs(c, tap, false, begin, min_i64(begin + WINDOW, c->y.n));
                for (Run r; run_next(&it, &r);) {
                    const REAL *xs = x + r.p;
                    if (c->in_ch == 1) {
                        for (int64_t o = 0; o < no; o++) sum[o] += FN(conv_dot)(y + o * c->y.n + r.t, xs, r.n, c->stride);
                        continue;
                    }
                    if (c->stride != 1) FN(conv_gather)(dense, xs, c->in_ch, c->x.n, r.n, c->stride), xs = dense;
                    GEMM(false, true, no, c->in_ch, r.n, 1, y + r.t, c->y.n, xs, c->stride == 1 ? c->x.n : r.n, 1, acc, c->in_ch);
                }
            }
        }
        for (int64_t o = 0; o < no; o++)
            for (int64_t i = 0; i < c->in_ch; i++)
                j->out[((row + o) * c->in_ch + i) * c->taps + tap] = c->in_ch == 1 ? (REAL)sum[o] : acc[o * c->in_ch + i];
    }
}

// Tasks: (batch entry, group, block of channels, window of positions); of the weight gradient (group, block of channels).
static void FN(conv_forward_task)(void *ctx, int64_t task, int worker) {
    const FN(ConvJob) *j = ctx;
    int64_t nw = ceil_div(j->c.y.n, WINDOW), nb = ceil_div(j->c.out_ch, CHANNELS), begin = task % nw * WINDOW;
    int64_t ch = task / nw % nb * CHANNELS, g = task / nw / nb % j->c.groups, b = task / nw / nb / j->c.groups;
    FN(conv_forward)
    (j, b, g, ch, min_i64(CHANNELS, j->c.out_ch - ch), begin, min_i64(begin + WINDOW, j->c.y.n),
     j->dense + worker * j->dense_len);
}
static void FN(conv_grad_x_task)(void *ctx, int64_t task, int worker) {
    const FN(ConvJob) *j = ctx;
    int64_t nw = ceil_div(j->c.x.n, WINDOW), nb = ceil_div(j->c.in_ch, CHANNELS), begin = task % nw * WINDOW;
    int64_t ch = task / nw % nb * CHANNELS, g = task / nw / nb % j->c.groups, b = task / nw / nb / j->c.groups;
    FN(conv_grad_x)
    (j, b, g, ch, min_i64(CHANNELS, j->c.in_ch - ch), begin, min_i64(begin + WINDOW, j->c.x.n), j->dense + worker * j->dense_len);
}
static void FN(conv_grad_w_task)(void *ctx, int64_t task, int worker) {
    const FN(ConvJob) *j = ctx;
    int64_t nb = ceil_div(j->c.out_ch, CHANNELS), ch = task % nb * CHANNELS;
    FN(conv_grad_w)(j, task / nb, ch, min_i64(CHANNELS, j->c.out_ch - ch), j->dense + worker * j->dense_len);
}

Status FN(cpu_conv1d)(const KernelArgs *k, Diag *d) {
    (void)d;
    FN(ConvJob) j = FN(conv_job)(k, conv_of(k->node, &k->in[0], &k->in[1], &k->out[0]));
    j.x = k->in[0].data, j.w = k->in[1].data;
    FN(conv_split_taps)(&j);
    tasks_run(k->pool, FN(conv_forward_task), &j,
              j.c.batch * j.c.groups * ceil_div(j.c.out_ch, CHANNELS) * ceil_div(j.c.y.n, WINDOW));
    return ST_OK;
}

Status FN(cpu_conv1d_grad_x)(const KernelArgs *k, Diag *d) {
    (void)d;
    FN(ConvJob) j = FN(conv_job)(k, conv_of(k->node, &k->out[0], &k->in[1], &k->in[0]));
    j.y = k->in[0].data, j.w = k->in[1].data;
    FN(conv_split_taps)(&j);
    tasks_run(k->pool, FN(conv_grad_x_task), &j,
              j.c.batch * j.c.groups * ceil_div(j.c.in_ch, CHANNELS) * ceil_div(j.c.x.n, WINDOW));
    return ST_OK;
}

Status FN(cpu_conv1d_grad_w)(const KernelArgs *k, Diag *d) {
    (void)d;
    FN(ConvJob) j = FN(conv_job)(k, conv_of(k->node, &k->in[1], &k->out[0], &k->in[0]));
    j.y = k->in[0].data, j.x = k->in[1].data;
    tasks_run(k->pool, FN(conv_grad_w_task), &j, j.c.groups * ceil_div(j.c.out_ch, CHANNELS));
    return ST_OK;
}
