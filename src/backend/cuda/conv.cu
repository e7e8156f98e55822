// The kernels of conv.c: a thread for each element of the result, neighbouring threads at neighbouring positions; a block for
// each element of the weights' gradient. Meant for the short depthwise convolutions of language models, right for all.
#include "backend/cuda/gpu_util.h"
#include "backend/cuda/launch.h"

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

extern "C" void gpu_conv1d(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) { launch_conv_forward(dev, c, y_spans); }
extern "C" void gpu_conv1d_grad_x(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) {
    launch_conv_grad_x(dev, c, y_spans);
}
extern "C" void gpu_conv1d_grad_w(const Device *dev, const GpuConv *c, const GpuSpans *y_spans) {
    launch_conv_grad_w(dev, c, y_spans);
}
