// The kernels of reduce.c. What a thread loads at once is reduced in a tree, sums of floats in float; these go to an accumulator,
// which is a double for sums: so the error does not grow with length, and conversions are few.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

// What is reduced: element type E, Part what few of them are joined in, accumulator Acc of at most 8 bytes.
template <class E> struct SumFloat {
    typedef E Elem;
    typedef float Part;
    typedef double Acc;
    GPU_CALL_STATIC Acc start() { return 0; }
    GPU_CALL_STATIC Part none() { return 0; }
    GPU_CALL_STATIC Part part(E x) { return to_float(x); }
    GPU_CALL_STATIC Part join(Part a, Part b) { return a + b; }
    GPU_CALL_STATIC Acc take(Acc a, Part x) { return a + (double)x; }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return a + b; }
};
template <class E> struct SumInt {
    typedef E Elem;
    typedef u64 Part;
    typedef u64 Acc;
    GPU_CALL_STATIC Acc start() { return 0; }
    GPU_CALL_STATIC Part none() { return 0; }
    GPU_CALL_STATIC Part part(E x) { return (u64)x; }
    GPU_CALL_STATIC Part join(Part a, Part b) { return a + b; }
    GPU_CALL_STATIC Acc take(Acc a, Part x) { return a + x; }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return a + b; }
};
template <class E> struct MaxFloat {  // once a is NaN no comparison replaces it
    typedef E Elem;
    typedef float Part;
    typedef float Acc;
    GPU_CALL_STATIC Acc start() { return gpu_bits_float(0xff800000u); }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return b != b || b > a ? b : a; }
    GPU_CALL_STATIC Part none() { return start(); }
    GPU_CALL_STATIC Part part(E x) { return to_float(x); }
    GPU_CALL_STATIC Part join(Part a, Part b) { return merge(a, b); }
    GPU_CALL_STATIC Acc take(Acc a, Part x) { return merge(a, x); }
};
struct MaxInt {
    typedef i64 Elem;
    typedef i64 Part;
    typedef i64 Acc;
    GPU_CALL_STATIC Acc start() { return (i64)((u64)1 << 63); }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return b > a ? b : a; }
    GPU_CALL_STATIC Part none() { return start(); }
    GPU_CALL_STATIC Part part(i64 x) { return x; }
    GPU_CALL_STATIC Part join(Part a, Part b) { return merge(a, b); }
    GPU_CALL_STATIC Acc take(Acc a, Part x) { return merge(a, x); }
};
// The N values of v in a tree; N is a power of two.
template <class R, int N> GPU_FN typename R::Part join_all(typename R::Part (&v)[N]) {
    GPU_UNROLL for (int m = N / 2; m > 0; m /= 2)
        GPU_UNROLL for (int j = 0; j < m; j++) v[j] = R::join(v[j], v[j + m]);
    return v[0];
}

GPU_FN void store_result(void *dst, i64 at, GpuType t, double v) {
    if (t == GPU_F32) ((float *)dst)[at] = (float)v;
    else ((bf16 *)dst)[at] = to_bf16((float)v);
}
GPU_FN void store_result(void *dst, i64 at, GpuType t, float v) { store_result(dst, at, t, (double)v); }
GPU_FN void store_result(void *dst, i64 at, GpuType, u64 v) { ((u64 *)dst)[at] = v; }
GPU_FN void store_result(void *dst, i64 at, GpuType, i64 v) { ((i64 *)dst)[at] = v; }

GPU_FN i64 reduce_offset(int n, const i64 *size, const i64 *stride, i64 index) {
    i64 off = 0;
    for (int d = n - 1; d > 0; d--) {
        i64 q = index / size[d];
        off += (index - q * size[d]) * stride[d];
        index = q;
    }
    return n > 0 ? off + index * stride[0] : 0;
}

template <class R> GPU_FN void reduce_store(const GpuReduction &p, i64 piece, i64 result, typename R::Acc v) {
    if (p.pieces > 1) ((typename R::Acc *)p.partial)[piece * p.results + result] = v;
    else store_result(p.dst, result, p.out, v);
}

// W elements as one load.
template <class R, int W> struct Chunk { typename R::Elem v[W]; };
template <class R, int W> GPU_FN Chunk<R, W> load_chunk(const typename R::Elem *x) {
    Chunk<R, W> c;
    if (W == 1) {
        c.v[0] = x[0];
    } else {
        Pack<typename R::Elem> p = *(const Pack<typename R::Elem> *)x;
        GPU_UNROLL for (int j = 0; j < W; j++) c.v[j] = p.v[j];
    }
    return c;
}

enum { AHEAD = 4 };  // loads under way before the first is used

// Every `step`-th W elements of x[0, n) from the lane's on; n is a multiple of W.
template <class R, int W>
GPU_FN typename R::Acc reduce_row(typename R::Acc acc, const typename R::Elem *x, i64 n, int lane, int step) {
    i64 packs = n / W;
    for (i64 i = lane; i < packs; i += AHEAD * step) {
        Chunk<R, W> c[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            if (i + u * step < packs) c[u] = load_chunk<R, W>(x + (i + u * step) * W);
        typename R::Part all[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
            typename R::Part v[W];
            GPU_UNROLL for (int j = 0; j < W; j++) v[j] = R::part(c[u].v[j]);
            all[u] = i + u * step < packs ? join_all<R, W>(v) : R::none();
        }
        acc = R::take(acc, join_all<R, AHEAD>(all));
    }
    return acc;
}

// A piece is a range of steps; neighbouring chunks of a row are taken in one go.
template <class R, int W>
GPU_FN typename R::Acc reduce_steps(const GpuReduction &p, const typename R::Elem *x, i64 piece, int lane, int step) {
    typename R::Acc acc = R::start();
    i64 last = p.steps * (piece + 1) / p.pieces;
    for (i64 s = p.steps * piece / p.pieces; s < last;) {
        i64 index = p.chunks == 1 ? s : s / p.chunks, chunk = s - index * p.chunks, run = min_of(p.chunks - chunk, last - s);
        i64 begin = chunk * GPU_REDUCE_CHUNK, end = min_of(p.row, (chunk + run) * GPU_REDUCE_CHUNK);
        i64 off = reduce_offset(p.nreduced, p.reduced_size, p.reduced_stride, index);
        acc = reduce_row<R, W>(acc, x + off + begin, end - begin, lane, step);
        s += run;
    }
    return acc;
}

// A group of threads for each (piece, result).
template <class R, int W> GPU_FN void reduce_rows(const GpuReduction &p) {
    GPU_SHARED typename R::Acc part[UTIL_THREADS];
    int group = p.group < UTIL_THREADS ? p.group : UTIL_THREADS, slots = UTIL_THREADS / group;
    int slot = (int)gpu_thread_x / group, lane = (int)gpu_thread_x % group;
    i64 total = p.units * p.pieces;
    for (i64 base = gpu_block_x * slots; base < total; base += gpu_grid_x * slots) {
        i64 unit = base + slot, result = unit, piece = 0;
        if (p.pieces > 1) result = unit % p.units, piece = unit / p.units;
        typename R::Acc acc = R::start();
        if (unit < total) {
            const typename R::Elem *x =
                (const typename R::Elem *)p.src + reduce_offset(p.nkept, p.kept_size, p.kept_stride, result);
            acc = p.steps == 1 ? reduce_row<R, W>(acc, x, p.row, lane, group) : reduce_steps<R, W>(p, x, piece, lane, group);
        }
        acc = group_reduce<R>(acc, part, group);
        if (unit < total && lane == 0) reduce_store<R>(p, piece, result, acc);
    }
}

// Groups of `width` columns.
#if defined(GPU_EMULATE)
static inline
#else
static __host__ __device__ __forceinline__
#endif
i64 column_groups(const GpuReduction &p, i64 width) { return (p.columns + width - 1) / width; }

// A block for each (piece, kept index, group * W columns): lanes of W columns each, the other threads beside them take further
// steps.
template <class R, int W> GPU_FN void reduce_columns(const GpuReduction &p) {
    GPU_SHARED typename R::Acc part[UTIL_THREADS * W];
    int lanes = p.group < UTIL_THREADS ? p.group : UTIL_THREADS, beside = UTIL_THREADS / lanes;
    int lane = (int)gpu_thread_x % lanes, ty = (int)gpu_thread_x / lanes;
    i64 across = column_groups(p, lanes * W), kept = p.results / p.columns, total = kept * across * p.pieces;
    for (i64 u = gpu_block_x; u < total; u += gpu_grid_x) {
        i64 group = u % across, row = u / across % kept, piece = u / across / kept, column = (group * lanes + lane) * W;
        const typename R::Elem *x =
            (const typename R::Elem *)p.src + reduce_offset(p.nkept, p.kept_size, p.kept_stride, row) + column;
        typename R::Acc acc[W];
        GPU_UNROLL for (int j = 0; j < W; j++) acc[j] = R::start();
        i64 last = p.steps * (piece + 1) / p.pieces;
        for (i64 s = p.steps * piece / p.pieces + ty; s < last && column < p.columns; s += AHEAD * beside) {
            Chunk<R, W> c[AHEAD];
            GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
                if (s + u * beside >= last) continue;
                c[u] = load_chunk<R, W>(x + reduce_offset(p.nreduced, p.reduced_size, p.reduced_stride, s + u * beside));
            }
            GPU_UNROLL for (int j = 0; j < W; j++) {
                typename R::Part v[AHEAD];
                GPU_UNROLL for (int u = 0; u < AHEAD; u++) v[u] = s + u * beside < last ? R::part(c[u].v[j]) : R::none();
                acc[j] = R::take(acc[j], join_all<R, AHEAD>(v));
            }
        }
        gpu_sync();
        GPU_UNROLL for (int j = 0; j < W; j++) part[j * UTIL_THREADS + (int)gpu_thread_x] = acc[j];
        gpu_sync();
        for (int m = beside / 2; m > 0; m /= 2) {
            if (ty < m)
                for (int j = 0; j < W; j++) {
                    typename R::Acc *a = part + j * UTIL_THREADS + (int)gpu_thread_x;
                    *a = R::merge(*a, a[m * lanes]);
                }
            gpu_sync();
        }
        if (ty == 0 && column < p.columns)
            for (int j = 0; j < W; j++) reduce_store<R>(p, piece, row * p.columns + column + j, part[j * UTIL_THREADS + lane]);
    }
}

// partial [pieces, results] -> results, in order of pieces: a group of threads for each result.
template <class R> GPU_FN void reduce_combine(const GpuReduction &p) {
    GPU_SHARED typename R::Acc part[UTIL_THREADS];
    int group = p.group < UTIL_THREADS ? p.group : UTIL_THREADS, slots = UTIL_THREADS / group;
    int slot = (int)gpu_thread_x % slots, lane = (int)gpu_thread_x / slots;  // neighbouring threads, neighbouring results
    for (i64 base = gpu_block_x * slots; base < p.results; base += gpu_grid_x * slots) {
        typename R::Acc acc = R::start();
        for (i64 s = lane; s < p.pieces && base + slot < p.results; s += group)
            acc = R::merge(acc, ((const typename R::Acc *)p.partial)[s * p.results + base + slot]);
        gpu_sync();
        part[gpu_thread_x] = acc;
        gpu_sync();
        for (int m = group / 2; m > 0; m /= 2) {
            if (lane < m) part[gpu_thread_x] = R::merge(part[gpu_thread_x], part[gpu_thread_x + m * slots]);
            gpu_sync();
        }
        if (lane == 0 && base + slot < p.results) store_result(p.dst, base + slot, p.out, part[slot]);
    }
}

#define REDUCE(name, R, W)                                                                          \
    GPU_KERNEL(reduce_rows_##name, GpuReduction, UTIL_BLOCK) { reduce_rows<R, W>(p); }              \
    GPU_KERNEL(reduce_rows1_##name, GpuReduction, UTIL_BLOCK) { reduce_rows<R, 1>(p); }             \
    GPU_KERNEL(reduce_columns_##name, GpuReduction, UTIL_BLOCK) { reduce_columns<R, W>(p); }        \
    GPU_KERNEL(reduce_columns1_##name, GpuReduction, UTIL_BLOCK) { reduce_columns<R, 1>(p); }       \
    GPU_KERNEL(reduce_combine_##name, GpuReduction, UTIL_BLOCK) { reduce_combine<R>(p); }           \
    static void launch_##name(const Device *dev, const GpuReduction &r, bool wide) {                \
        GpuDim block = util_block();                                                                \
        i64 per_block = r.row > 0 ? UTIL_BLOCK / r.group : 1;                                       \
        i64 units = r.row > 0 ? r.units : r.results / r.columns * column_groups(r, r.group * (wide ? W : 1)); \
        GpuDim grid = util_grid_many(dev->nsm, units * r.pieces, per_block);                        \
        if (r.row > 0 && wide) GPU_LAUNCH(reduce_rows_##name, dev->stream, grid, block, 0, r);      \
        else if (r.row > 0) GPU_LAUNCH(reduce_rows1_##name, dev->stream, grid, block, 0, r);        \
        else if (wide) GPU_LAUNCH(reduce_columns_##name, dev->stream, grid, block, 0, r);           \
        else GPU_LAUNCH(reduce_columns1_##name, dev->stream, grid, block, 0, r);                    \
        if (r.pieces == 1) return;                                                                  \
        GpuReduction c = r;                                                                         \
        c.group = r.results >= 4096 ? util_pow2(r.pieces, 8) : util_pow2(r.pieces, UTIL_BLOCK);     \
        GPU_LAUNCH(reduce_combine_##name, dev->stream, util_grid(dev->nsm, r.results, UTIL_BLOCK / c.group), block, 0, c); \
    }
REDUCE(sum_f32, SumFloat<float>, 4)
REDUCE(sum_bf16, SumFloat<bf16>, 8)
REDUCE(sum_i64, SumInt<u64>, 2)
REDUCE(sum_bool, SumInt<u8>, 16)
REDUCE(max_f32, MaxFloat<float>, 4)
REDUCE(max_bf16, MaxFloat<bf16>, 8)
REDUCE(max_i64, MaxInt, 2)

extern "C" int gpu_reduce_width(GpuType t) { return t == GPU_F32 ? 4 : t == GPU_BF16 ? 8 : t == GPU_I64 ? 2 : 16; }

extern "C" void gpu_reduce(const Device *dev, const GpuReduction *r) {
    i64 w = gpu_reduce_width(r->type);
    bool wide = util_aligned(r->src, 16) && (r->row > 0 ? r->row % w == 0 : r->columns % w == 0);
    for (int d = 0; d < r->nkept; d++) wide = wide && r->kept_stride[d] % w == 0;
    for (int d = 0; d < r->nreduced; d++) wide = wide && r->reduced_stride[d] % w == 0;
    if (r->max && r->type == GPU_F32) launch_max_f32(dev, *r, wide);
    else if (r->max && r->type == GPU_BF16) launch_max_bf16(dev, *r, wide);
    else if (r->max) launch_max_i64(dev, *r, wide);
    else if (r->type == GPU_F32) launch_sum_f32(dev, *r, wide);
    else if (r->type == GPU_BF16) launch_sum_bf16(dev, *r, wide);
    else if (r->type == GPU_I64) launch_sum_i64(dev, *r, wide);
    else launch_sum_bool(dev, *r, wide);
}
