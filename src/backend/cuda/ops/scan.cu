// The kernels of scan.c. A line is one (outer, inner) pair; its elements lie `inner` apart.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

// W elements as one load, W = 1 or as many as 16 bytes hold.
template <class T, int W> struct ScanPack { T v[W]; };
template <class T, int W> GPU_FN ScanPack<T, W> scan_load(const T *x) {
    ScanPack<T, W> c;
    if (W == 1) {
        c.v[0] = x[0];
    } else {
        Pack<T> p = *(const Pack<T> *)x;
        GPU_UNROLL for (int j = 0; j < W; j++) c.v[j] = p.v[j];
    }
    return c;
}
template <class T, int W> GPU_FN void scan_put(T *y, const ScanPack<T, W> &c) {
    if (W == 1) {
        y[0] = c.v[0];
    } else {
        Pack<T> p;
        GPU_UNROLL for (int j = 0; j < W; j++) p.v[j] = c.v[j];
        *(Pack<T> *)y = p;
    }
}

// ---- logsumexp ----------------------------------------------------------------------------------------------------------------

// sum of exp(x - max), and the max: merged without overflow. NaN is passed over by the maximum and comes out of the sum.
struct LogSumExp {
    struct Acc {
        float max;
        double sum;
    };
    struct alignas(8) Words { u32 w[sizeof(Acc) / 4]; };  // room for one in shared memory
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

template <int N> GPU_FN LogSumExp::Acc lse_take(LogSumExp::Acc a, const float (&x)[N]) {  // -inf: nothing
    float v[N], max = a.max;
    GPU_UNROLL for (int j = 0; j < N; j++) v[j] = x[j];
    GPU_UNROLL for (int m = N / 2; m > 0; m /= 2)
        GPU_UNROLL for (int j = 0; j < m; j++) v[j] = fmaxf(v[j], v[j + m]);  // the other where one is NaN
    max = v[0] > max ? v[0] : max;
    float to = LogSumExp::shift(max);
    GPU_UNROLL for (int j = 0; j < N; j++) v[j] = expf(x[j] - to);
    GPU_UNROLL for (int m = N / 2; m > 0; m /= 2)
        GPU_UNROLL for (int j = 0; j < m; j++) v[j] += v[j + m];
    a.sum = LogSumExp::scaled(a, to) + (double)v[0];
    a.max = max;
    return a;
}

struct LseParams {
    GpuScan s;
    int group;  // threads of a line
};
enum { AHEAD = 4 };  // loads under way before the first is used

// Every `step`-th W elements of a line from the lane's on; neighbours are `inner` apart, 1 if W > 1.
template <class T, int W> GPU_FN LogSumExp::Acc lse_line(const T *x, i64 n, i64 inner, int lane, int step) {
    LogSumExp::Acc acc = LogSumExp::start();
    i64 packs = n / W;
    for (i64 i = lane; i < packs; i += AHEAD * step) {
        ScanPack<T, W> c[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            if (i + u * step < packs) c[u] = scan_load<T, W>(x + (i + u * step) * W * inner);
        float v[AHEAD * W];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            GPU_UNROLL for (int j = 0; j < W; j++)
                v[u * W + j] = i + u * step < packs ? to_float(c[u].v[j]) : gpu_bits_float(0xff800000u);
        acc = lse_take<AHEAD * W>(acc, v);
    }
    return acc;
}

template <class T> GPU_FN void lse_store(const GpuScan &p, i64 line, LogSumExp::Acc acc) {
    store_float((T *)p.dst + line, (float)((double)LogSumExp::shift(acc.max) + log(acc.sum)));
}

// Lines along memory: neighbouring threads read what is next.
template <class T, int W> GPU_FN void lse_rows(const LseParams &q) {
    GPU_SHARED LogSumExp::Words part[UTIL_THREADS];
    const GpuScan &p = q.s;
    int group = q.group < UTIL_THREADS ? q.group : UTIL_THREADS, slots = UTIL_THREADS / group;
    int slot = (int)gpu_thread_x / group, lane = (int)gpu_thread_x % group;
    for (i64 base = gpu_block_x * slots; base < p.outer; base += gpu_grid_x * slots) {
        i64 line = base + slot;
        LogSumExp::Acc acc = LogSumExp::start();
        if (line < p.outer) acc = lse_line<T, W>((const T *)p.src + line * p.n, p.n, 1, lane, group);
        acc = group_reduce<LogSumExp>(acc, (LogSumExp::Acc *)part, group);
        if (lane == 0 && line < p.outer) lse_store<T>(p, line, acc);
    }
}

// Lines side by side: neighbouring threads read neighbouring lines.
template <class T> GPU_FN void lse_columns(const LseParams &q) {
    GPU_SHARED LogSumExp::Words words[UTIL_THREADS];
    LogSumExp::Acc *part = (LogSumExp::Acc *)words;
    const GpuScan &p = q.s;
    int group = q.group < UTIL_THREADS ? q.group : UTIL_THREADS, slots = UTIL_THREADS / group, tid = (int)gpu_thread_x;
    int slot = tid % slots, lane = tid / slots;
    i64 lines = p.outer * p.inner;
    for (i64 base = gpu_block_x * slots; base < lines; base += gpu_grid_x * slots) {
        i64 line = base + slot, outer = line / p.inner;
        LogSumExp::Acc acc = LogSumExp::start();
        const T *x = (const T *)p.src + outer * p.n * p.inner + line - outer * p.inner;
        if (line < lines) acc = lse_line<T, 1>(x, p.n, p.inner, lane, group);
        gpu_sync();
        part[tid] = acc;
        gpu_sync();
        for (int m = group / 2; m > 0; m /= 2) {
            if (lane < m) part[tid] = LogSumExp::merge(part[tid], part[tid + m * slots]);
            gpu_sync();
        }
        if (lane == 0 && line < lines) lse_store<T>(p, line, part[tid]);
    }
}
#define LOGSUMEXP(name, T, W)                                                                          \
    GPU_KERNEL(scan_lse_##name, LseParams, UTIL_BLOCK) { lse_rows<T, W>(p); }                          \
    GPU_KERNEL(scan_lse1_##name, LseParams, UTIL_BLOCK) { lse_rows<T, 1>(p); }                         \
    GPU_KERNEL(scan_lse_columns_##name, LseParams, UTIL_BLOCK) { lse_columns<T>(p); }                  \
    static void launch_lse_##name(const Device *dev, const LseParams &p, GpuDim grid, bool wide) {     \
        GpuDim block = util_block();                                                                   \
        if (p.s.inner > 1) GPU_LAUNCH(scan_lse_columns_##name, dev->stream, grid, block, 0, p);        \
        else if (wide) GPU_LAUNCH(scan_lse_##name, dev->stream, grid, block, 0, p);                    \
        else GPU_LAUNCH(scan_lse1_##name, dev->stream, grid, block, 0, p);                             \
    }
LOGSUMEXP(f32, float, 4)
LOGSUMEXP(bf16, bf16, 8)

enum { WARP = 32, MANY_LINES = 8192, GROUP_OF_COLUMNS = 8 };

extern "C" void gpu_logsumexp(const Device *dev, const GpuScan *s) {
    i64 width = gpu_reduce_width(s->type), lines = s->outer * s->inner;
    bool wide = s->n % width == 0 && util_aligned(s->src, 16);
    LseParams p = {*s, util_pow2(util_ceil_div(s->n, AHEAD * width), UTIL_BLOCK)};
    if (s->inner > 1) p.group = util_pow2(util_ceil_div(s->n, AHEAD), GROUP_OF_COLUMNS);
    else if (p.group > WARP && lines >= MANY_LINES) p.group = WARP;
    GpuDim grid = util_grid_many(dev->nsm, lines, UTIL_BLOCK / p.group);
    if (s->type == GPU_F32) launch_lse_f32(dev, p, grid, wide);
    else launch_lse_bf16(dev, p, grid, wide);
}

// ---- cumsum: where lines are few they are cut into pieces: sums of the pieces, their own running sums, then every piece from
// ---- where it starts. Sums of floats are doubles.

GPU_FN double scan_value(float x) { return (double)x; }
GPU_FN double scan_value(bf16 x) { return (double)to_float(x); }
GPU_FN u64 scan_value(u64 x) { return x; }
GPU_FN void scan_store(float *p, double v) { *p = (float)v; }
GPU_FN void scan_store(bf16 *p, double v) { *p = to_bf16((float)v); }
GPU_FN void scan_store(u64 *p, u64 v) { *p = v; }
template <class A> struct ScanSum {
    typedef A Acc;
    GPU_CALL_STATIC A merge(A a, A b) { return a + b; }
};
#if defined(GPU_EMULATE)
enum { LANES = 1 };
#else
enum { LANES = gpu_warp_size };
#endif

// The sum of what the lanes before have; *all: of what all have.
template <class A> GPU_FN A lanes_before(A own, A *all) {
#if defined(GPU_EMULATE)
    *all = own;
    return 0;
#else
    int lane = (int)gpu_thread_x % LANES;
    A sum = own;
    GPU_UNROLL for (int m = 1; m < LANES; m *= 2) {
        A o = lane_up(sum, m);
        if (lane >= m) sum += o;
    }
    *all = lane_at(sum, LANES - 1);
    A before = lane_up(sum, 1);
    return lane > 0 ? before : 0;
#endif
}

// Elements [i, i + W) of a line in the order in which they are summed, as sums from i on. There: i < end.
template <class T, class A, int W> GPU_FN void scan_pack(const ScanPack<T, W> &c, bool there, bool reverse, A (&v)[W]) {
    A sum = 0;
    GPU_UNROLL for (int j = 0; j < W; j++) {
        if (there) sum += scan_value(reverse ? c.v[W - 1 - j] : c.v[j]);
        v[j] = sum;
    }
}

// A warp for each piece of a line along memory, a few rounds of neighbouring packs at a time. n and length are multiples of W.
template <class T, class A, int W> GPU_FN void cumsum_rows(const GpuScan &p, bool write) {
    i64 slots = UTIL_THREADS / LANES, lane = gpu_thread_x % LANES, round = LANES * W;
    for (i64 u = gpu_block_x * slots + gpu_thread_x / LANES; u < p.outer * p.pieces; u += gpu_grid_x * slots) {
        i64 piece = p.pieces > 1 ? u / p.outer : 0, line = u - piece * p.outer;
        i64 begin = piece * p.length, end = min_of(p.n, begin + p.length);
        const T *x = (const T *)p.src + line * p.n;
        T *y = (T *)p.dst + line * p.n;
        A sum = write && p.pieces > 1 ? ((const A *)p.partial)[u] : 0;
        for (i64 base = begin; base < end; base += AHEAD * round) {
            ScanPack<T, W> c[AHEAD];
            i64 at = base + lane * W;
            GPU_UNROLL for (int r = 0; r < AHEAD; r++)
                if (at + r * round < end) c[r] = scan_load<T, W>(x + (p.reverse ? p.n - W - at - r * round : at + r * round));
            GPU_UNROLL for (int r = 0; r < AHEAD; r++) {
                i64 i = at + r * round;
                A v[W], all;
                scan_pack<T, A, W>(c[r], i < end, p.reverse, v);
                A before = sum + lanes_before<A>(v[W - 1], &all);
                sum += all;
                if (!write || i >= end) continue;
                ScanPack<T, W> out;
                GPU_UNROLL for (int j = 0; j < W; j++) {
                    if (p.reverse) scan_store(&out.v[W - 1 - j], before + v[j]);
                    else scan_store(&out.v[j], before + v[j]);
                }
                scan_put<T, W>(y + (p.reverse ? p.n - W - i : i), out);
            }
        }
        if (!write && lane == 0) ((A *)p.partial)[u] = sum;
    }
}

// A thread for each piece of W lines side by side. inner is a multiple of W.
template <class T, class A, int W> GPU_FN void cumsum_columns(const GpuScan &p, bool write) {
    i64 across = p.inner / W, packs = p.outer * across, lines = p.outer * p.inner;
    for (i64 u = gpu_thread(); u < packs * p.pieces; u += gpu_nthreads()) {
        i64 piece = u / packs, rest = u - piece * packs, outer = rest / across, column = (rest - outer * across) * W;
        i64 begin = piece * p.length, end = min_of(p.n, begin + p.length), step = p.reverse ? -p.inner : p.inner;
        i64 first = (outer * p.n + (p.reverse ? p.n - 1 : 0)) * p.inner + column;
        const T *x = (const T *)p.src + first;
        T *y = (T *)p.dst + first;
        A sum[W], *partial = (A *)p.partial + piece * lines + outer * p.inner + column;
        GPU_UNROLL for (int j = 0; j < W; j++) sum[j] = write && p.pieces > 1 ? partial[j] : 0;
        for (i64 i = begin; i < end; i += AHEAD) {
            ScanPack<T, W> c[AHEAD];
            GPU_UNROLL for (int r = 0; r < AHEAD; r++)
                if (i + r < end) c[r] = scan_load<T, W>(x + (i + r) * step);
            GPU_UNROLL for (int r = 0; r < AHEAD; r++) {
                if (i + r >= end) continue;
                GPU_UNROLL for (int j = 0; j < W; j++) {
                    sum[j] += scan_value(c[r].v[j]);
                    if (write) scan_store(&c[r].v[j], sum[j]);
                }
                if (write) scan_put<T, W>(y + (i + r) * step, c[r]);
            }
        }
        if (write) continue;
        GPU_UNROLL for (int j = 0; j < W; j++) partial[j] = sum[j];
    }
}

// Sums of pieces into sums of those before: a warp for each line.
template <class A> GPU_FN void cumsum_offsets(const GpuScan &p) {
    i64 slots = UTIL_THREADS / LANES, lane = gpu_thread_x % LANES, lines = p.outer * p.inner;
    for (i64 line = gpu_block_x * slots + gpu_thread_x / LANES; line < lines; line += gpu_grid_x * slots) {
        A sum = 0, *partial = (A *)p.partial + line;
        for (i64 base = 0; base < p.pieces; base += LANES) {
            i64 i = base + lane;
            A own = i < p.pieces ? partial[i * lines] : 0, all, before = sum + lanes_before<A>(own, &all);
            sum += all;
            if (i < p.pieces) partial[i * lines] = before;
        }
    }
}

#define CUMSUM_KERNELS(name, T, A, W)                                                                       \
    GPU_KERNEL(scan_row_sums_##name, GpuScan, UTIL_BLOCK) { cumsum_rows<T, A, W>(p, false); }               \
    GPU_KERNEL(scan_rows_##name, GpuScan, UTIL_BLOCK) { cumsum_rows<T, A, W>(p, true); }                    \
    GPU_KERNEL(scan_column_sums_##name, GpuScan, UTIL_BLOCK) { cumsum_columns<T, A, W>(p, false); }         \
    GPU_KERNEL(scan_columns_##name, GpuScan, UTIL_BLOCK) { cumsum_columns<T, A, W>(p, true); }              \
    static void launch_pieces_##name(const Device *dev, const GpuScan &s, bool write) {                     \
        GpuDim block = util_block(), rows = util_grid_many(dev->nsm, s.outer * s.pieces, UTIL_BLOCK / WARP); \
        GpuDim columns = util_grid_many(dev->nsm, s.outer * s.inner / W * s.pieces, UTIL_BLOCK);            \
        if (s.inner == 1 && write) GPU_LAUNCH(scan_rows_##name, dev->stream, rows, block, 0, s);            \
        else if (s.inner == 1) GPU_LAUNCH(scan_row_sums_##name, dev->stream, rows, block, 0, s);            \
        else if (write) GPU_LAUNCH(scan_columns_##name, dev->stream, columns, block, 0, s);                 \
        else GPU_LAUNCH(scan_column_sums_##name, dev->stream, columns, block, 0, s);                        \
    }
#define CUMSUM(name, T, A, W)                                                                               \
    CUMSUM_KERNELS(name, T, A, W)                                                                           \
    CUMSUM_KERNELS(name##1, T, A, 1)                                                                        \
    GPU_KERNEL(scan_offsets_##name, GpuScan, UTIL_BLOCK) { cumsum_offsets<A>(p); }                          \
    static void launch_##name(const Device *dev, const GpuScan &s) {                                        \
        bool wide = (s.inner == 1 ? s.n : s.inner) % W == 0 && util_aligned(s.src, 16) && util_aligned(s.dst, 16); \
        GpuDim lines = util_grid_many(dev->nsm, s.outer * s.inner, UTIL_BLOCK / WARP), block = util_block(); \
        for (int write = s.pieces == 1; write < 2; write++) {                                               \
            if (wide) launch_pieces_##name(dev, s, write);                                                  \
            else launch_pieces_##name##1(dev, s, write);                                                    \
            if (!write) GPU_LAUNCH(scan_offsets_##name, dev->stream, lines, block, 0, s);                   \
        }                                                                                                   \
    }
CUMSUM(f32, float, double, 4)
CUMSUM(bf16, bf16, double, 8)
CUMSUM(i64, u64, u64, 2)

extern "C" void gpu_cumsum(const Device *dev, const GpuScan *s) {
    if (s->type == GPU_F32) launch_f32(dev, *s);
    else if (s->type == GPU_BF16) launch_bf16(dev, *s);
    else launch_i64(dev, *s);
}
