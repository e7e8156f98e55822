// The kernels of scan.c. A line is one (outer, inner) pair; its elements lie `inner` apart.
#include "backend/cuda/gpu_util.h"
#include "backend/cuda/launch.h"

// sum of exp(x - max), and the max: merged without overflow. NaN is passed over by the maximum and comes out of the sum.
struct LogSumExp {
    struct Acc {
        float max;
        double sum;
    };
    GPU_CALL_STATIC Acc start() {
        Acc a;
        a.max = gpu_bits_float(0xff800000u), a.sum = 0;
        return a;
    }
    GPU_CALL_STATIC float shift(float max) {  // infinities are not subtracted: inf - inf
        return max == gpu_bits_float(0x7f800000u) || max == gpu_bits_float(0xff800000u) ? 0.0f : max;
    }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) {
        Acc r;
        r.max = b.max > a.max ? b.max : a.max;
        r.sum = scaled(a, shift(r.max)) + scaled(b, shift(r.max));
        return r;
    }
    // The sum as if `to` had been subtracted. One that is zero has nothing in it, whatever the factor.
    GPU_CALL_STATIC double scaled(Acc a, float to) {
        float from = shift(a.max);
        return a.sum == 0 || from == to ? a.sum : a.sum * (double)expf(from - to);
    }
};

struct LseParams {
    GpuScan s;
    int group;  // threads of a line
};

template <class T> GPU_FN void logsumexp(const LseParams &q) {
    GPU_SHARED LogSumExp::Acc part[UTIL_THREADS];
    const GpuScan &p = q.s;
    int group = q.group < UTIL_THREADS ? q.group : UTIL_THREADS, slots = UTIL_THREADS / group, tid = (int)gpu_thread_x;
    // neighbouring threads read neighbouring elements: of a line, or of neighbouring lines
    bool along = p.inner == 1;
    int slot = along ? tid / group : tid % slots, lane = along ? tid % group : tid / slots;
    i64 lines = p.outer * p.inner;
    for (i64 base = gpu_block_x * slots; base < lines; base += gpu_grid_x * slots) {
        i64 line = base + slot;
        LogSumExp::Acc acc = LogSumExp::start();
        const T *x = (const T *)p.src + line / p.inner * p.n * p.inner + line % p.inner;
        if (line < lines) {
            float max = acc.max;
            for (i64 i = lane; i < p.n; i += group) {
                float v = to_float(x[i * p.inner]);
                max = v > max ? v : max;
            }
            acc.max = max;
            for (i64 i = lane; i < p.n; i += group) acc.sum += (double)expf(to_float(x[i * p.inner]) - LogSumExp::shift(max));
        }
        gpu_sync();
        part[slot * group + lane] = acc;
        gpu_sync();
        for (int m = group / 2; m > 0; m /= 2) {
            if (lane < m) part[slot * group + lane] = LogSumExp::merge(part[slot * group + lane], part[slot * group + lane + m]);
            gpu_sync();
        }
        if (lane == 0 && line < lines) {
            acc = part[slot * group];
            store_float((T *)p.dst + line, (float)((double)LogSumExp::shift(acc.max) + log(acc.sum)));
        }
    }
}
GPU_KERNEL(scan_lse_f32, LseParams, UTIL_BLOCK) { logsumexp<float>(p); }
GPU_KERNEL(scan_lse_bf16, LseParams, UTIL_BLOCK) { logsumexp<bf16>(p); }

extern "C" void gpu_logsumexp(const Device *dev, const GpuScan *s) {
    LseParams p = {*s, util_pow2(util_ceil_div(s->n, 4), UTIL_BLOCK)};
    GpuDim grid = util_grid(dev->nsm, s->outer * s->inner, UTIL_BLOCK / p.group), block = util_block();
    if (s->type == GPU_F32) GPU_LAUNCH(scan_lse_f32, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(scan_lse_bf16, dev->stream, grid, block, 0, p);
}

// ---- cumsum: sums of the pieces of every line, their own running sums, then every piece from where it starts --------------

GPU_FN double scan_value(float x) { return (double)x; }
GPU_FN double scan_value(bf16 x) { return (double)to_float(x); }
GPU_FN u64 scan_value(u64 x) { return x; }
GPU_FN void scan_store(float *p, double v) { *p = (float)v; }
GPU_FN void scan_store(bf16 *p, double v) { *p = to_bf16((float)v); }
GPU_FN void scan_store(u64 *p, u64 v) { *p = v; }

template <class T, class A> GPU_FN void cumsum_piece(const GpuScan &p, bool write) {
    i64 lines = p.outer * p.inner, length = (p.n + p.pieces - 1) / p.pieces;
    for (i64 u = gpu_thread(); u < lines * p.pieces; u += gpu_nthreads()) {
        i64 line = u % lines, piece = u / lines, begin = piece * length, end = min_of(p.n, begin + length);
        i64 at = line / p.inner * p.n * p.inner + line % p.inner;
        A sum = write && p.pieces > 1 ? ((const A *)p.partial)[u] : 0;
        for (i64 i = begin; i < end; i++) {
            i64 here = at + (p.reverse ? p.n - 1 - i : i) * p.inner;
            sum += scan_value(((const T *)p.src)[here]);
            if (write) scan_store((T *)p.dst + here, sum);
        }
        if (!write) ((A *)p.partial)[u] = sum;
    }
}

template <class A> GPU_FN void cumsum_offsets(const GpuScan &p) {
    i64 lines = p.outer * p.inner;
    for (i64 line = gpu_thread(); line < lines; line += gpu_nthreads()) {
        A sum = 0, *partial = (A *)p.partial + line;
        for (i64 i = 0; i < p.pieces; i++) {
            A v = partial[i * lines];
            partial[i * lines] = sum;
            sum += v;
        }
    }
}

#define CUMSUM(name, T, A)                                                                    \
    GPU_KERNEL(scan_sums_##name, GpuScan, UTIL_BLOCK) { cumsum_piece<T, A>(p, false); }       \
    GPU_KERNEL(scan_offsets_##name, GpuScan, UTIL_BLOCK) { cumsum_offsets<A>(p); }            \
    GPU_KERNEL(scan_write_##name, GpuScan, UTIL_BLOCK) { cumsum_piece<T, A>(p, true); }       \
    static void launch_##name(const Device *dev, const GpuScan &s) {                          \
        GpuDim block = util_block(), units = util_grid(dev->nsm, s.outer * s.inner * s.pieces, UTIL_BLOCK); \
        if (s.pieces > 1) {                                                                   \
            GPU_LAUNCH(scan_sums_##name, dev->stream, units, block, 0, s);                    \
            GPU_LAUNCH(scan_offsets_##name, dev->stream, util_grid(dev->nsm, s.outer * s.inner, UTIL_BLOCK), block, 0, s); \
        }                                                                                     \
        GPU_LAUNCH(scan_write_##name, dev->stream, units, block, 0, s);                       \
    }
CUMSUM(f32, float, double)
CUMSUM(bf16, bf16, double)
CUMSUM(i64, u64, u64)

extern "C" void gpu_cumsum(const Device *dev, const GpuScan *s) {
    if (s->type == GPU_F32) launch_f32(dev, *s);
    else if (s->type == GPU_BF16) launch_bf16(dev, *s);
    else launch_i64(dev, *s);
}
