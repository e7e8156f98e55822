// The kernels of reduce.c. Sums of floats are kept in double: it costs nothing beside the memory traffic, and length does not
// matter.
#include "backend/cuda/gpu_util.h"
#include "backend/cuda/launch.h"

// What is reduced: element type E, accumulator Acc of at most 8 bytes.
template <class E> struct SumFloat {
    typedef E Elem;
    typedef double Acc;
    GPU_CALL_STATIC Acc start() { return 0; }
    GPU_CALL_STATIC Acc take(Acc a, E x) { return a + (double)to_float(x); }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return a + b; }
};
template <class E> struct SumInt {
    typedef E Elem;
    typedef u64 Acc;
    GPU_CALL_STATIC Acc start() { return 0; }
    GPU_CALL_STATIC Acc take(Acc a, E x) { return a + (u64)x; }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return a + b; }
};
template <class E> struct MaxFloat {  // once a is NaN no comparison replaces it
    typedef E Elem;
    typedef float Acc;
    GPU_CALL_STATIC Acc start() { return gpu_bits_float(0xff800000u); }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return b != b || b > a ? b : a; }
    GPU_CALL_STATIC Acc take(Acc a, E x) { return merge(a, to_float(x)); }
};
struct MaxInt {
    typedef i64 Elem;
    typedef i64 Acc;
    GPU_CALL_STATIC Acc start() { return (i64)((u64)1 << 63); }
    GPU_CALL_STATIC Acc merge(Acc a, Acc b) { return b > a ? b : a; }
    GPU_CALL_STATIC Acc take(Acc a, i64 x) { return merge(a, x); }
};

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
template <class R, int W> GPU_FN typename R::Acc reduce_row(const typename R::Elem *x, i64 n, int lane, int step) {
    typename R::Acc acc = R::start();
    i64 packs = n / W;
    for (i64 i = lane; i < packs; i += AHEAD * step) {
        Chunk<R, W> c[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            if (i + u * step < packs) c[u] = load_chunk<R, W>(x + (i + u * step) * W);
        GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
            if (i + u * step >= packs) continue;
            GPU_UNROLL for (int j = 0; j < W; j++) acc = R::take(acc, c[u].v[j]);
        }
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
        i64 unit = base + slot, result = unit % p.units, piece = unit / p.units;
        typename R::Acc acc = R::start();
        if (unit < total) {
            const typename R::Elem *x =
                (const typename R::Elem *)p.src + reduce_offset(p.nkept, p.kept_size, p.kept_stride, result);
            // a piece is a range of steps; neighbouring chunks of a row are taken in one go
            i64 last = p.steps * (piece + 1) / p.pieces;
            for (i64 s = p.steps * piece / p.pieces; s < last;) {
                i64 chunk = s % p.chunks, index = s / p.chunks, run = min_of(p.chunks - chunk, last - s);
                i64 begin = chunk * GPU_REDUCE_CHUNK, end = min_of(p.row, (chunk + run) * GPU_REDUCE_CHUNK);
                i64 off = reduce_offset(p.nreduced, p.reduced_size, p.reduced_stride, index);
                acc = R::merge(acc, reduce_row<R, W>(x + off + begin, end - begin, lane, group));
                s += run;
            }
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
                i64 off = reduce_offset(p.nreduced, p.reduced_size, p.reduced_stride, s + u * beside);
                if (s + u * beside < last) c[u] = load_chunk<R, W>(x + off);
            }
            GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
                if (s + u * beside >= last) continue;
                GPU_UNROLL for (int j = 0; j < W; j++) acc[j] = R::take(acc[j], c[u].v[j]);
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
        GpuDim grid = util_grid(dev->nsm, units * r.pieces, per_block);                             \
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
