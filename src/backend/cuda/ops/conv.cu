// The kernels of conv.c. Those that are right for all: a thread for each element of the result, neighbouring threads at
// neighbouring positions; a block for each element of the weights' gradient. And what language models have, depthwise ones of a
// few taps without stride: where each interval of the result reads from one interval of the operand, a thread has the window of
// several results in registers.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

struct ConvParams {
    GpuConv c;
    GpuSpans y_spans;
    DeviceError *error;
};

GPU_FN i64 conv_global(const GpuSpans &s, i64 local) {
    for (int i = 0; i < s.n; i++) {
        i64 len = s.end[i] - s.begin[i];
        if (local < len) return s.begin[i] + local;
        local -= len;
    }
    return -1;
}

// Where this rank keeps a position. It must: sharding brings what is read.
GPU_FN i64 conv_local(const ConvParams &p, const GpuSpans &s, i64 at, i64 limit) {
    i64 pos = 0;
    for (int i = 0; i < s.n; i++) {
        if (at >= s.begin[i] && at < s.end[i]) return pos + at - s.begin[i];
        pos += s.end[i] - s.begin[i];
    }
    record_index(p.error, p.c.node, at, limit);
    return -1;
}

template <class T> GPU_FN void conv_forward(const ConvParams &p) {
    const GpuConv &c = p.c;
    i64 channels = c.groups * c.out_ch, n = c.batch * channels * c.y_n;
    for (i64 i = gpu_thread(); i < n; i += gpu_nthreads()) {
        i64 row = i / c.y_n, o = row % channels, b = row / channels, g = o / c.out_ch,
            t = conv_global(p.y_spans, i - row * c.y_n);
        float sum = 0;
        for (i64 j = 0; j < c.taps; j++) {
            i64 at = t * c.stride + j * c.dilation - c.lo;
            if (at < 0 || at >= c.x_len) continue;
            i64 local = conv_local(p, c.x_spans, at, c.x_len);
            const T *x = (const T *)c.x + (b * c.groups + g) * c.in_ch * c.x_n + local,
                    *w = (const T *)c.w + o * c.in_ch * c.taps + j;
            for (i64 k = 0; k < c.in_ch && local >= 0; k++) sum += to_float(w[k * c.taps]) * to_float(x[k * c.x_n]);
        }
        store_float((T *)c.out + i, sum);
    }
}

template <class T> GPU_FN void conv_grad_x(const ConvParams &p) {
    const GpuConv &c = p.c;
    i64 channels = c.groups * c.in_ch, n = c.batch * channels * c.x_n;
    for (i64 i = gpu_thread(); i < n; i += gpu_nthreads()) {
        i64 row = i / c.x_n, ch = row % channels, b = row / channels, g = ch / c.in_ch,
            at = conv_global(c.x_spans, i - row * c.x_n);
        float sum = 0;
        for (i64 j = 0; j < c.taps; j++) {
            i64 t = at + c.lo - j * c.dilation;
            if (t < 0 || t % c.stride || t / c.stride >= c.y_len) continue;
            i64 local = conv_local(p, p.y_spans, t / c.stride, c.y_len);
            const T *y = (const T *)c.y + (b * c.groups + g) * c.out_ch * c.y_n + local;
            const T *w = (const T *)c.w + (g * c.out_ch * c.in_ch + ch % c.in_ch) * c.taps + j;
            for (i64 o = 0; o < c.out_ch && local >= 0; o++) sum += to_float(w[o * c.in_ch * c.taps]) * to_float(y[o * c.y_n]);
        }
        store_float((T *)c.out + i, sum);
    }
}

struct ConvSum {
    typedef double Acc;
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return a + b; }
};

template <class T> GPU_FN void conv_grad_w(const ConvParams &p) {
    GPU_SHARED double part[UTIL_THREADS];
    const GpuConv &c = p.c;
    i64 channels = c.groups * c.out_ch, n = channels * c.in_ch * c.taps;
    for (i64 i = gpu_block_x; i < n; i += gpu_grid_x) {
        i64 j = i % c.taps, k = i / c.taps % c.in_ch, o = i / c.taps / c.in_ch, g = o / c.out_ch;
        double sum = 0;
        for (i64 b = 0; b < c.batch; b++) {
            const T *y = (const T *)c.y + (b * channels + o) * c.y_n,
                    *x = (const T *)c.x + ((b * c.groups + g) * c.in_ch + k) * c.x_n;
            for (i64 l = gpu_thread_x; l < c.y_n; l += gpu_block_threads) {
                i64 at = conv_global(p.y_spans, l) * c.stride + j * c.dilation - c.lo;
                if (at < 0 || at >= c.x_len) continue;
                i64 local = conv_local(p, c.x_spans, at, c.x_len);
                if (local >= 0) sum += (double)to_float(y[l]) * (double)to_float(x[local]);
            }
        }
        sum = group_reduce<ConvSum>(sum, part, UTIL_THREADS);
        if (gpu_thread_x == 0) store_float((T *)c.out + i, (float)sum);
    }
}

// ---- depthwise ----------------------------------------------------------------------------------------------------------------

// Row r of y, positions [0, n): y[i] = sum over j of w(j) * x[i + j - lo]; x has positions [0, x_n), what is outside counts as 0.
// Rows are batch x channels. `flip`: w(j) is the tap taps-1-j.
struct WideConv {
    const void *x, *w;
    void *y;
    i64 rows, n, lo, x_n, x_pitch, y_pitch, pieces, length;  // pieces of length positions: grad_w
    FastDiv channels;
    int flip;
    double *partial;  // grad_w: [pieces, channels, taps], where pieces > 1
};
enum { CONV_PACK = 4, CONV_MOST_TAPS = 4 };  // results of a thread at a time

// x[i - lo, i - lo + N), zeros outside.
template <class T, int N> GPU_FN void conv_window(const WideConv &p, const T *x, i64 at, float (&v)[N]) {
    if (at >= 0 && at + N <= p.x_n) {
        GPU_UNROLL for (int k = 0; k < N; k++) v[k] = to_float(x[at + k]);
    } else {
        GPU_UNROLL for (int k = 0; k < N; k++) v[k] = at + k >= 0 && at + k < p.x_n ? to_float(x[at + k]) : 0.0f;
    }
}

template <class T, int TAPS> GPU_FN void conv_wide(const WideConv &p) {
    struct alignas(CONV_PACK * sizeof(T)) Out { T v[CONV_PACK]; };
    i64 packs = (p.n + CONV_PACK - 1) / CONV_PACK;
    bool whole = p.n % CONV_PACK == 0 && p.y_pitch % CONV_PACK == 0 && (u64)p.y % sizeof(Out) == 0;
    for (i64 row = gpu_block_y; row < p.rows; row += gpu_grid_y) {
        u32 channel = (u32)row - fast_div((u32)row, p.channels) * p.channels.d;
        const T *x = (const T *)p.x + row * p.x_pitch;
        T *y = (T *)p.y + row * p.y_pitch;
        float w[TAPS], v[CONV_PACK + TAPS - 1];
        GPU_UNROLL for (int j = 0; j < TAPS; j++)
            w[j] = to_float(((const T *)p.w)[(i64)channel * TAPS + (p.flip ? TAPS - 1 - j : j)]);
        for (i64 i = gpu_thread(); i < packs; i += gpu_nthreads()) {
            conv_window<T, CONV_PACK + TAPS - 1>(p, x, i * CONV_PACK - p.lo, v);
            Out out;
            GPU_UNROLL for (int k = 0; k < CONV_PACK; k++) {
                float sum = 0;
                GPU_UNROLL for (int j = 0; j < TAPS; j++) sum += w[j] * v[k + j];
                store_float(&out.v[k], sum);
            }
            if (whole) *(Out *)(y + i * CONV_PACK) = out;
            else
                for (int k = 0; k < min_of((i64)CONV_PACK, p.n - i * CONV_PACK); k++) y[i * CONV_PACK + k] = out.v[k];
        }
    }
}

// out[channel, j] = sum over batch and i of y[i] * x[i + j - lo]; y is an operand here. A block for each (channel, piece).
template <class T, int TAPS> GPU_FN void conv_wide_grad(const WideConv &p) {
    GPU_SHARED double part[UTIL_THREADS];
    i64 channels = p.channels.d, total = channels * p.pieces;
    for (i64 u = gpu_block_x; u < total; u += gpu_grid_x) {
        i64 piece = u / channels, channel = u - piece * channels, end = min_of(p.n, (piece + 1) * p.length);
        double sum[TAPS];
        GPU_UNROLL for (int j = 0; j < TAPS; j++) sum[j] = 0;
        for (i64 row = channel; row < p.rows; row += channels) {
            const T *x = (const T *)p.x + row * p.x_pitch, *y = (const T *)p.y + row * p.y_pitch;
            for (i64 i = piece * p.length + gpu_thread_x * CONV_PACK; i < end; i += gpu_block_threads * CONV_PACK) {
                float v[CONV_PACK + TAPS - 1], g[CONV_PACK];
                conv_window<T, CONV_PACK + TAPS - 1>(p, x, i - p.lo, v);
                GPU_UNROLL for (int k = 0; k < CONV_PACK; k++) g[k] = i + k < end ? to_float(y[i + k]) : 0.0f;
                GPU_UNROLL for (int j = 0; j < TAPS; j++) {
                    float few = 0;
                    GPU_UNROLL for (int k = 0; k < CONV_PACK; k++) few += i + k < end ? g[k] * v[k + j] : 0.0f;
                    sum[j] += (double)few;
                }
            }
        }
        GPU_UNROLL for (int j = 0; j < TAPS; j++) {
            double all = group_reduce<ConvSum>(sum[j], part, UTIL_THREADS);
            if (gpu_thread_x > 0) continue;
            if (p.pieces > 1) p.partial[u * TAPS + j] = all;
            else store_float((T *)p.w + channel * TAPS + j, (float)all);
        }
    }
}

// partial -> out, in order of pieces.
template <class T, int TAPS> GPU_FN void conv_wide_sums(const WideConv &p) {
    i64 n = (i64)p.channels.d * TAPS;
    for (i64 i = gpu_thread(); i < n; i += gpu_nthreads()) {
        double sum = 0;
        for (i64 s = 0; s < p.pieces; s++) sum += p.partial[s * n + i];
        store_float((T *)p.w + i, (float)sum);
    }
}

// Where y's interval [begin, end) finds what it reads: false if that is not in one interval of x. y reads x from begin - lo to
// end - 1 + taps - 1 - lo, of which [0, x_len) exists.
static bool conv_source(const GpuSpans &x, i64 x_len, i64 first, i64 last, i64 *local, i64 *begin, i64 *end) {
    first = first < 0 ? 0 : first, last = util_min(last, x_len);
    i64 pos = 0;
    for (int i = 0; i < x.n; i++) {
        if (first >= x.begin[i] && last <= x.end[i]) {
            *local = pos, *begin = x.begin[i], *end = x.end[i];
            return true;
        }
        pos += x.end[i] - x.begin[i];
    }
    return false;
}

// The launch for the interval [begin, end) of y, but for addresses; *skip: bytes of x before what it reads.
static bool wide_conv_of(const GpuConv *c, const GpuSpans &from, i64 from_len, i64 from_n, i64 to_n, i64 begin, i64 end, i64 lo,
                         WideConv *p, i64 *skip) {
    i64 local, lo_x, hi_x, channels = c->groups;
    if (c->in_ch != 1 || c->out_ch != 1 || c->stride != 1 || c->dilation != 1) return false;
    if (c->taps < 2 || c->taps > CONV_MOST_TAPS) return false;
    if (c->batch * channels >= (i64)1 << 31) return false;
    if (begin >= end || !conv_source(from, from_len, begin - lo, end + c->taps - 1 - lo, &local, &lo_x, &hi_x)) return false;
    *p = WideConv{0, 0, 0, c->batch * channels, end - begin, lo - begin + lo_x, hi_x - lo_x, from_n, to_n, 1, end - begin,
                  fast_div_of((u32)channels), 0, 0};
    *skip = local * (c->type == GPU_F32 ? 4 : 2);
    return true;
}

#define WIDE(taps)                                                                                             \
    GPU_KERNEL(conv_wide_f32_##taps, WideConv, UTIL_BLOCK) { conv_wide<float, taps>(p); }                      \
    GPU_KERNEL(conv_wide_bf16_##taps, WideConv, UTIL_BLOCK) { conv_wide<bf16, taps>(p); }                      \
    GPU_KERNEL(conv_wide_grad_f32_##taps, WideConv, UTIL_BLOCK) { conv_wide_grad<float, taps>(p); }            \
    GPU_KERNEL(conv_wide_grad_bf16_##taps, WideConv, UTIL_BLOCK) { conv_wide_grad<bf16, taps>(p); }            \
    GPU_KERNEL(conv_wide_sums_f32_##taps, WideConv, UTIL_BLOCK) { conv_wide_sums<float, taps>(p); }            \
    GPU_KERNEL(conv_wide_sums_bf16_##taps, WideConv, UTIL_BLOCK) { conv_wide_sums<bf16, taps>(p); }            \
    static void launch_wide_##taps(const Device *dev, GpuType t, const WideConv &p, GpuDim grid) {             \
        GpuDim block = util_block();                                                                           \
        if (t == GPU_F32) GPU_LAUNCH(conv_wide_f32_##taps, dev->stream, grid, block, 0, p);                    \
        else GPU_LAUNCH(conv_wide_bf16_##taps, dev->stream, grid, block, 0, p);                                \
    }                                                                                                          \
    static void launch_wide_grad_##taps(const Device *dev, GpuType t, const WideConv &p) {                     \
        GpuDim block = util_block(), grid = util_grid_many(dev->nsm, (i64)p.channels.d * p.pieces, 1);         \
        GpuDim sums = util_grid(dev->nsm, (i64)p.channels.d * taps, UTIL_BLOCK);                               \
        if (t == GPU_F32) GPU_LAUNCH(conv_wide_grad_f32_##taps, dev->stream, grid, block, 0, p);               \
        else GPU_LAUNCH(conv_wide_grad_bf16_##taps, dev->stream, grid, block, 0, p);                           \
        if (p.pieces == 1) return;                                                                             \
        if (t == GPU_F32) GPU_LAUNCH(conv_wide_sums_f32_##taps, dev->stream, sums, block, 0, p);               \
        else GPU_LAUNCH(conv_wide_sums_bf16_##taps, dev->stream, sums, block, 0, p);                           \
    }
WIDE(2)
WIDE(3)
WIDE(4)

// A convolution of x (its intervals `from`) into out (`to`), interval by interval; false if one of them cannot be had so.
static bool conv_wide_all(const Device *dev, const GpuConv *c, const void *x, const GpuSpans &from, i64 from_len, i64 from_n,
                          const GpuSpans &to, i64 to_n, i64 lo, bool flip) {
    for (int run = 0; run < 2; run++) {  // first whether, then the launches
        i64 at = 0, elem = c->type == GPU_F32 ? 4 : 2;
        for (int i = 0; i < to.n; at += to.end[i] - to.begin[i], i++) {
            WideConv p;
            i64 skip;
            if (to.begin[i] >= to.end[i]) continue;
            if (!wide_conv_of(c, from, from_len, from_n, to_n, to.begin[i], to.end[i], lo, &p, &skip)) return false;
            if (run == 0) continue;
            p.x = (const char *)x + skip, p.w = c->w, p.y = (char *)c->out + at * elem, p.flip = flip;
            i64 across = util_min(util_ceil_div(p.n, CONV_PACK * UTIL_BLOCK), (i64)dev->nsm * UTIL_BLOCKS_PER_SM * UTIL_WAVES);
            i64 down = util_min(p.rows, util_ceil_div((i64)dev->nsm * UTIL_BLOCKS_PER_SM * UTIL_WAVES, across));
            GpuDim grid = {(u32)across, (u32)util_min(down, 65535), 1};
            if (c->taps == 2) launch_wide_2(dev, c->type, p, grid);
            else if (c->taps == 3) launch_wide_3(dev, c->type, p, grid);
            else launch_wide_4(dev, c->type, p, grid);
        }
    }
    return true;
}

// How many pieces the sums of a channel are cut into: by shapes only.
extern "C" i64 gpu_conv1d_grad_w_pieces(i64 channels, i64 n) {
    enum { ENOUGH_BLOCKS = 1024, LEAST = 4096 };
    return channels > 0 && n / LEAST > 1 ? util_min(util_ceil_div(ENOUGH_BLOCKS, channels), n / LEAST) : 1;
}

static bool conv_wide_grad_w(const Device *dev, const GpuConv *c, const GpuSpans &y, void *partial) {
    WideConv p;
    i64 skip;
    if (y.n != 1 || !wide_conv_of(c, c->x_spans, c->x_len, c->x_n, c->y_n, y.begin[0], y.end[0], c->lo, &p, &skip)) return false;
    p.x = (const char *)c->x + skip, p.w = c->out, p.y = (void *)c->y, p.partial = (double *)partial;
    p.pieces = gpu_conv1d_grad_w_pieces(c->groups, p.n);
    p.length = util_ceil_div(util_ceil_div(p.n, p.pieces), CONV_PACK) * CONV_PACK;
    if (c->taps == 2) launch_wide_grad_2(dev, c->type, p);
    else if (c->taps == 3) launch_wide_grad_3(dev, c->type, p);
    else launch_wide_grad_4(dev, c->type, p);
    return true;
}

// ---- launches -----------------------------------------------------------------------------------------------------------------

#define CONV(name, elems, per_block)                                                          \
    GPU_KERNEL(name##_f32, ConvParams, UTIL_BLOCK) { name<float>(p); }                        \
    GPU_KERNEL(name##_bf16, ConvParams, UTIL_BLOCK) { name<bf16>(p); }                        \
    static void launch_##name(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) { \
        ConvParams p = {*c, *y_spans, dev->error};                                            \
        GpuDim grid = util_grid(dev->nsm, elems, per_block), block = util_block();            \
        if (c->type == GPU_F32) GPU_LAUNCH(name##_f32, dev->stream, grid, block, 0, p);       \
        else GPU_LAUNCH(name##_bf16, dev->stream, grid, block, 0, p);                         \
    }
CONV(conv_forward, c->batch *c->groups *c->out_ch *c->y_n, UTIL_BLOCK)
CONV(conv_grad_x, c->batch *c->groups *c->in_ch *c->x_n, UTIL_BLOCK)
CONV(conv_grad_w, c->groups *c->out_ch *c->in_ch *c->taps, 1)

extern "C" void gpu_conv1d(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) {
    if (conv_wide_all(dev, c, c->x, c->x_spans, c->x_len, c->x_n, *y_spans, c->y_n, c->lo, false)) return;
    launch_conv_forward(dev, c, y_spans);
}
// gx[i] = sum over j of w[j] * gy[i + lo - j]: the convolution of gy with the taps in reverse, taps - 1 - lo before it.
extern "C" void gpu_conv1d_grad_x(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) {
    if (conv_wide_all(dev, c, c->y, *y_spans, c->y_len, c->y_n, c->x_spans, c->x_n, c->taps - 1 - c->lo, true)) return;
    launch_conv_grad_x(dev, c, y_spans);
}
extern "C" void gpu_conv1d_grad_w(const Device *dev, const GpuConv *c, const GpuSpans *y_spans, void *partial) {
    if (conv_wide_grad_w(dev, c, *y_spans, partial)) return;
    launch_conv_grad_w(dev, c, y_spans);
}
