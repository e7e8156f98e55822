// The kernels of index.c.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

struct RowParams {
    GpuRows r;
    i64 *sums, *owner;
    DeviceError *error;
    int group;  // threads of a row
};

// The row of the table that row i goes with, -1 if there is none.
GPU_FN i64 row_index(const RowParams &p, i64 i, bool report) {
    i64 t = p.r.index[i];
    if ((u64)t < (u64)p.r.nrows) return t == p.r.skip ? -1 : t;
    if (report) record_index(p.error, p.r.node, t, p.r.nrows);
    return -1;
}

// fn(row, lane, lanes) for every row by the threads of a group.
template <class F> GPU_FN void each_row(const RowParams &p, i64 n, F fn) {
    int group = p.group < UTIL_THREADS ? p.group : UTIL_THREADS, slots = UTIL_THREADS / group;
    int slot = (int)gpu_thread_x / group, lane = (int)gpu_thread_x % group;
    for (i64 i = gpu_block_x * slots + slot; i < n; i += gpu_grid_x * slots) fn(i, lane, group);
}

template <class V> struct TakeRow {
    const RowParams &p;
    GPU_CALL void operator()(i64 i, int lane, int lanes) const {
        i64 t = row_index(p, i, lane == 0);
        V *to = (V *)p.r.dst + i * p.r.rest;
        const V *from = (const V *)p.r.src + t * p.r.rest;
        V zero = {};
        for (i64 c = lane; c < p.r.rest; c += lanes) to[c] = t < 0 ? zero : from[c];
    }
};
template <class V> struct SetRow {
    const RowParams &p;
    GPU_CALL void operator()(i64 i, int lane, int lanes) const {
        i64 t = row_index(p, i, false);
        if (t < 0 || p.owner[t] != i) return;
        V *to = (V *)p.r.dst + t * p.r.rest;
        const V *from = (const V *)p.r.src + i * p.r.rest;
        for (i64 c = lane; c < p.r.rest; c += lanes) to[c] = from[c];
    }
};
struct AddRowInt {
    const RowParams &p;
    GPU_CALL void operator()(i64 i, int lane, int lanes) const {
        i64 t = row_index(p, i, lane == 0);
        if (t < 0) return;
        for (i64 c = lane; c < p.r.rest; c += lanes)
            gpu_atomic_add((u64 *)p.sums + t * p.r.rest + c, ((const u64 *)p.r.src)[i * p.r.rest + c]);
    }
};

typedef Pack<u64> Wide;
#define ROWS(name, F) GPU_KERNEL(name, RowParams, UTIL_BLOCK) { each_row(p, p.r.n, F{p}); }
ROWS(rows_take_1, TakeRow<u8>)
ROWS(rows_take_2, TakeRow<u16>)
ROWS(rows_take_4, TakeRow<u32>)
ROWS(rows_take_8, TakeRow<u64>)
ROWS(rows_take_16, TakeRow<Wide>)
ROWS(rows_set_1, SetRow<u8>)
ROWS(rows_set_2, SetRow<u16>)
ROWS(rows_set_4, SetRow<u32>)
ROWS(rows_set_8, SetRow<u64>)
ROWS(rows_set_16, SetRow<Wide>)
ROWS(rows_add_i64, AddRowInt)

GPU_KERNEL(rows_owner, RowParams, UTIL_BLOCK) {
    for (i64 i = gpu_thread(); i < p.r.n; i += gpu_nthreads()) {
        i64 t = row_index(p, i, true);
        if (t >= 0) gpu_atomic_max(p.owner + t, i);
    }
}

static i64 rows_elem(GpuType t) { return t == GPU_F32 ? 4 : t == GPU_BF16 ? 2 : t == GPU_I64 ? 8 : 1; }

// Takes as many elements as one as rows and addresses allow; returns their bytes.
static i64 rows_widen(GpuRows *r) {
    i64 elem = rows_elem(r->type);
    while (elem < 16 && r->rest % 2 == 0 && util_aligned(r->src, 2 * elem) && util_aligned(r->dst, 2 * elem))
        elem *= 2, r->rest /= 2;
    return elem;
}

static RowParams rows_params(const Device *dev, const GpuRows *r) {
    RowParams p = {*r, 0, 0, dev->error, util_pow2(r->rest, UTIL_BLOCK)};
    return p;
}
static GpuDim rows_grid(const Device *dev, const RowParams &p) { return util_grid(dev->nsm, p.r.n, UTIL_BLOCK / p.group); }

extern "C" void gpu_take_rows(const Device *dev, const GpuRows *r) {
    GpuRows w = *r;
    i64 elem = rows_widen(&w);
    RowParams p = rows_params(dev, &w);
    GpuDim grid = rows_grid(dev, p), block = util_block();
    if (elem == 1) GPU_LAUNCH(rows_take_1, dev->stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(rows_take_2, dev->stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(rows_take_4, dev->stream, grid, block, 0, p);
    else if (elem == 8) GPU_LAUNCH(rows_take_8, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(rows_take_16, dev->stream, grid, block, 0, p);
}

extern "C" void gpu_set_rows(const Device *dev, const GpuRows *r, i64 *owner) {
    GpuRows w = *r;
    i64 elem = rows_widen(&w);
    RowParams p = rows_params(dev, &w);
    p.owner = owner;
    GpuDim grid = rows_grid(dev, p), block = util_block();
    GPU_LAUNCH(rows_owner, dev->stream, util_grid(dev->nsm, r->n, UTIL_BLOCK), block, 0, p);
    if (elem == 1) GPU_LAUNCH(rows_set_1, dev->stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(rows_set_2, dev->stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(rows_set_4, dev->stream, grid, block, 0, p);
    else if (elem == 8) GPU_LAUNCH(rows_set_8, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(rows_set_16, dev->stream, grid, block, 0, p);
}

extern "C" void gpu_add_rows(const Device *dev, const GpuRows *r, long long *sums) {
    RowParams p = rows_params(dev, r);
    p.sums = sums;
    GPU_LAUNCH(rows_add_i64, dev->stream, rows_grid(dev, p), util_block(), 0, p);
}

// ---- conversion -----------------------------------------------------------------------------------------------------------

struct ConvertParams {
    void *dst;
    const void *src;
    i64 n;
};
GPU_KERNEL(convert_to_bf16, ConvertParams, UTIL_BLOCK) {
    for (i64 i = gpu_thread(); i < p.n; i += gpu_nthreads()) ((bf16 *)p.dst)[i] = to_bf16(((const float *)p.src)[i]);
}
GPU_KERNEL(convert_to_f32, ConvertParams, UTIL_BLOCK) {
    for (i64 i = gpu_thread(); i < p.n; i += gpu_nthreads()) ((float *)p.dst)[i] = to_float(((const bf16 *)p.src)[i]);
}

extern "C" void gpu_convert(const Device *dev, void *dst, GpuType to, const void *src, GpuType from, i64 n) {
    (void)from;  // the other of the two
    if (n == 0) return;
    ConvertParams p = {dst, src, n};
    GpuDim grid = util_grid(dev->nsm, n, UTIL_BLOCK), block = util_block();
    if (to == GPU_BF16) GPU_LAUNCH(convert_to_bf16, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(convert_to_f32, dev->stream, grid, block, 0, p);
}

// ---- single elements ------------------------------------------------------------------------------------------------------

struct LineParams {
    GpuLines l;
    DeviceError *error;
    bool small;  // indices below 2^31: FastDiv
    FastDiv div[GPU_BOX_DIMS];
};
static LineParams line_params(const Device *dev, const GpuLines *l) {
    LineParams p = {*l, dev->error, l->n < (i64)1 << 31, {}};
    for (int d = 0; d < l->ndim && p.small; d++) p.div[d] = fast_div_of((u32)l->size[d]);
    return p;
}

// Where element i of the index has its partners; false if its index is out of range.
GPU_FN bool line_offsets(const LineParams &p, i64 i, i64 t, i64 *small, i64 *large) {
    i64 s = 0, l = 0, rest = i;
    for (int d = p.l.ndim - 1; d >= 0; d--) {
        i64 q = d == 0 ? 0 : p.small ? (i64)fast_div((u32)rest, p.div[d]) : rest / p.l.size[d], c = rest - q * p.l.size[d];
        s += c * p.l.small_stride[d];
        if (d != p.l.dim) l += c * p.l.large_stride[d];
        rest = q;
    }
    bool fits = (u64)t < (u64)p.l.limit;
    if (!fits) record_index(p.error, p.l.node, t, p.l.limit);
    *small = s, *large = l + (fits ? t : 0) * p.l.large_stride[p.l.dim];
    return fits;
}

// A few elements at a time: their indices, then what these point to, then the results.
template <class T> GPU_FN void gather(const LineParams &p) {
    enum { AHEAD = 4 };
    i64 step = gpu_nthreads();
    for (i64 i = gpu_thread(); i < p.l.n; i += AHEAD * step) {
        i64 t[AHEAD], small[AHEAD];
        T v[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            if (i + u * step < p.l.n) t[u] = p.l.index[i + u * step];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
            if (i + u * step >= p.l.n) continue;
            i64 large;
            bool fits = line_offsets(p, i + u * step, t[u], &small[u], &large);
            v[u] = fits ? ((const T *)p.l.src)[large] : (T)0;
        }
        GPU_UNROLL for (int u = 0; u < AHEAD; u++)
            if (i + u * step < p.l.n) ((T *)p.l.dst)[small[u]] = v[u];
    }
}
GPU_KERNEL(gather_1, LineParams, UTIL_BLOCK) { gather<u8>(p); }
GPU_KERNEL(gather_2, LineParams, UTIL_BLOCK) { gather<u16>(p); }
GPU_KERNEL(gather_4, LineParams, UTIL_BLOCK) { gather<u32>(p); }
GPU_KERNEL(gather_8, LineParams, UTIL_BLOCK) { gather<u64>(p); }

template <class T> GPU_FN void scatter(const LineParams &p) {
    for (i64 i = gpu_thread(); i < p.l.n; i += gpu_nthreads()) {
        i64 small, large;
        if (!line_offsets(p, i, p.l.index[i], &small, &large)) continue;
        gpu_atomic_add((float *)p.l.dst + large, to_float(((const T *)p.l.src)[small]));
    }
}
GPU_KERNEL(scatter_f32, LineParams, UTIL_BLOCK) { scatter<float>(p); }
GPU_KERNEL(scatter_bf16, LineParams, UTIL_BLOCK) { scatter<bf16>(p); }
GPU_KERNEL(scatter_i64, LineParams, UTIL_BLOCK) {
    for (i64 i = gpu_thread(); i < p.l.n; i += gpu_nthreads()) {
        i64 small, large;
        if (!line_offsets(p, i, p.l.index[i], &small, &large)) continue;
        gpu_atomic_add((u64 *)p.l.dst + large, ((const u64 *)p.l.src)[small]);
    }
}

extern "C" void gpu_gather(const Device *dev, const GpuLines *l) {
    LineParams p = line_params(dev, l);
    GpuDim grid = util_grid_many(dev->nsm, l->n, UTIL_BLOCK), block = util_block();
    if (l->type == GPU_BOOL) GPU_LAUNCH(gather_1, dev->stream, grid, block, 0, p);
    else if (l->type == GPU_BF16) GPU_LAUNCH(gather_2, dev->stream, grid, block, 0, p);
    else if (l->type == GPU_F32) GPU_LAUNCH(gather_4, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(gather_8, dev->stream, grid, block, 0, p);
}

extern "C" void gpu_scatter_add(const Device *dev, const GpuLines *l) {
    LineParams p = line_params(dev, l);
    GpuDim grid = util_grid_many(dev->nsm, l->n, UTIL_BLOCK), block = util_block();
    if (l->type == GPU_F32) GPU_LAUNCH(scatter_f32, dev->stream, grid, block, 0, p);
    else if (l->type == GPU_BF16) GPU_LAUNCH(scatter_bf16, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(scatter_i64, dev->stream, grid, block, 0, p);
}

// ---- histogram ------------------------------------------------------------------------------------------------------------

enum { HISTOGRAM_BINS = 2048 };  // that a block counts for itself first

struct HistogramParams {
    const i64 *x;
    u64 *count;
    i64 n, bins;
};
GPU_KERNEL(histogram_few, HistogramParams, UTIL_BLOCK) {
    GPU_SHARED int count[HISTOGRAM_BINS];
    for (i64 b = gpu_thread_x; b < p.bins; b += gpu_block_threads) count[b] = 0;
    gpu_sync();
    for (i64 i = gpu_thread(); i < p.n; i += gpu_nthreads())
        if ((u64)p.x[i] < (u64)p.bins) gpu_atomic_add(count + p.x[i], 1);
    gpu_sync();
    for (i64 b = gpu_thread_x; b < p.bins; b += gpu_block_threads)
        if (count[b]) gpu_atomic_add(p.count + b, (u64)(u32)count[b]);
}
GPU_KERNEL(histogram_many, HistogramParams, UTIL_BLOCK) {
    for (i64 i = gpu_thread(); i < p.n; i += gpu_nthreads())
        if ((u64)p.x[i] < (u64)p.bins) gpu_atomic_add(p.count + p.x[i], (u64)1);
}

extern "C" void gpu_histogram(const Device *dev, const i64 *x, i64 n, i64 *count, i64 bins) {
    HistogramParams p = {x, (u64 *)count, n, bins};
    GpuDim grid = util_grid(dev->nsm, n, UTIL_BLOCK), block = util_block();
    if (bins <= HISTOGRAM_BINS) GPU_LAUNCH(histogram_few, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(histogram_many, dev->stream, grid, block, 0, p);
}
