// Sums of rows that go to the same row of a table, in the order in which they come: no atomics, the same bits every time. Indices
// are sorted (stably: sort.cu), so that rows of one index are a run; the sorted order is cut into chunks, by its length only. A
// run within a chunk is summed and written. What a chunk has of a run that reaches into other chunks goes to scratch (`head`: it
// began before the chunk; `tail`: it begins here), and a second kernel adds those.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

struct SumParams {
    GpuRows r;
    const i64 *key, *order;  // sorted indices, and where each came from
    float *sums, *partial;   // [2 * chunks, rest]: head and tail of each chunk
    DeviceError *error;
    i64 chunk, chunks, blocks, width;  // blocks of `width` columns
    int group, add;                    // threads of a block of columns; sums: += instead of =
};

template <class T, int V> struct alignas(V * sizeof(T)) SumPack { T v[V]; };

// The sum of all that goes to row t.
template <int V> GPU_FN void sum_done(const SumParams &p, i64 t, i64 column, const float *acc) {
    if ((u64)t >= (u64)p.r.nrows) {
        if (column == 0) record_index(p.error, p.r.node, t, p.r.nrows);
        return;
    }
    if (t == p.r.skip) return;
    SumPack<float, V> *to = (SumPack<float, V> *)(p.sums + t * p.r.rest + column), x = {};
    if (p.add) x = *to;
    GPU_UNROLL for (int j = 0; j < V; j++) x.v[j] = p.add ? x.v[j] + acc[j] : acc[j];
    *to = x;
}

template <int V> GPU_FN void sum_keep(const SumParams &p, i64 chunk, bool tail, i64 column, const float *acc) {
    SumPack<float, V> x;
    GPU_UNROLL for (int j = 0; j < V; j++) x.v[j] = acc[j];
    *(SumPack<float, V> *)(p.partial + (2 * chunk + tail) * p.r.rest + column) = x;
}

template <class T, int V> GPU_FN void sum_chunk(const SumParams &p, i64 chunk, i64 column) {
    enum { AHEAD = 4 };
    i64 begin = chunk * p.chunk, end = min_of(begin + p.chunk, p.r.n), now = p.key[begin];
    bool head = begin > 0 && p.key[begin - 1] == now;
    float acc[V] = {};
    for (i64 i = begin; i < end; i += AHEAD) {
        i64 key[AHEAD];
        SumPack<T, V> x[AHEAD];
        GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
            if (i + u >= end) continue;
            key[u] = p.key[i + u];
            x[u] = *(const SumPack<T, V> *)((const T *)p.r.src + p.order[i + u] * p.r.rest + column);
        }
        GPU_UNROLL for (int u = 0; u < AHEAD; u++) {
            if (i + u >= end) continue;
            if (key[u] != now) {
                if (head) sum_keep<V>(p, chunk, false, column, acc);
                else sum_done<V>(p, now, column, acc);
                GPU_UNROLL for (int j = 0; j < V; j++) acc[j] = 0.0f;
                now = key[u], head = false;
            }
            GPU_UNROLL for (int j = 0; j < V; j++) acc[j] += to_float(x[u].v[j]);
        }
    }
    bool more = end < p.r.n && p.key[end] == now;
    if (head || more) sum_keep<V>(p, chunk, !head, column, acc);
    else sum_done<V>(p, now, column, acc);
}

// Of the run that begins in a chunk and does not end there.
template <int V> GPU_FN void sum_across(const SumParams &p, i64 chunk, i64 column) {
    i64 begin = chunk * p.chunk, end = begin + p.chunk;
    if (end >= p.r.n) return;
    i64 now = p.key[end];
    if (p.key[end - 1] != now || (begin > 0 && p.key[begin - 1] == now)) return;
    float acc[V];
    SumPack<float, V> x = *(const SumPack<float, V> *)(p.partial + (2 * chunk + 1) * p.r.rest + column);
    GPU_UNROLL for (int j = 0; j < V; j++) acc[j] = x.v[j];
    for (i64 c = chunk + 1; c < p.chunks && p.key[c * p.chunk] == now; c++) {
        x = *(const SumPack<float, V> *)(p.partial + 2 * c * p.r.rest + column);
        GPU_UNROLL for (int j = 0; j < V; j++) acc[j] += x.v[j];
    }
    sum_done<V>(p, now, column, acc);
}

// fn(chunk, column) for every V columns of every chunk.
template <int V, class F> GPU_FN void each_chunk(const SumParams &p, F fn) {
    int group = p.group < UTIL_THREADS ? p.group : UTIL_THREADS, slots = UTIL_THREADS / group;
    int slot = (int)gpu_thread_x / group, lane = (int)gpu_thread_x % group;
    for (i64 u = gpu_block_x * slots + slot; u < p.chunks * p.blocks; u += gpu_grid_x * slots) {
        i64 chunk = u / p.blocks, first = u % p.blocks * p.width, last = min_of(first + p.width, p.r.rest);
        for (i64 c = first + lane * V; c < last; c += group * V) fn(chunk, c);
    }
}
template <class T, int V> struct SumChunk {
    const SumParams &p;
    GPU_CALL void operator()(i64 chunk, i64 column) const { sum_chunk<T, V>(p, chunk, column); }
};
template <int V> struct SumAcross {
    const SumParams &p;
    GPU_CALL void operator()(i64 chunk, i64 column) const { sum_across<V>(p, chunk, column); }
};
#define SUM(name, V, F) GPU_KERNEL(name, SumParams, UTIL_BLOCK) { each_chunk<V>(p, F{p}); }
#define WRAP(...) __VA_ARGS__
SUM(rows_sum_f32, 1, WRAP(SumChunk<float, 1>))
SUM(rows_sum_bf16, 1, WRAP(SumChunk<bf16, 1>))
SUM(rows_sum4_f32, 4, WRAP(SumChunk<float, 4>))
SUM(rows_sum4_bf16, 4, WRAP(SumChunk<bf16, 4>))
SUM(rows_across, 1, SumAcross<1>)
SUM(rows_across4, 4, SumAcross<4>)

// Short enough that there are many, long enough that a run of everything is not in many: half the root of n.
static i64 sum_chunk_of(i64 n) {
    i64 c = 32;
    while (c * c < n / 2) c *= 2;
    return c;
}
struct SumScratch { i64 key, order, sort, partial, nbytes; };
static SumScratch sum_scratch(i64 n, i64 rest) {
    SumScratch s;
    s.key = 0;
    s.order = s.key + util_ceil_div(8 * n, 256) * 256;
    s.sort = s.order + util_ceil_div(8 * n, 256) * 256;
    s.partial = s.sort + (n > GPU_SORT_CHUNK ? util_ceil_div(2 * n * (i64)sizeof(GpuKey), 256) * 256 : 0);
    s.nbytes = s.partial + util_ceil_div(n, sum_chunk_of(n)) * 2 * rest * 4;
    return s;
}
extern "C" size_t gpu_sum_rows_scratch(long long n, long long rest) { return n > 0 ? (size_t)sum_scratch(n, rest).nbytes : 0; }

extern "C" void gpu_sum_rows(const Device *dev, const GpuRows *r, void *sums, int add, void *scratch) {
    SumScratch at = sum_scratch(r->n, r->rest);
    char *base = (char *)scratch;
    i64 *order = (i64 *)(base + at.order);
    GpuSort sort = {r->index, base + at.key, order, (GpuKey *)(base + at.sort), GPU_I64, 0, 1, r->n, 1, r->n, 1};
    gpu_sort(dev, &sort);
    bool half = r->type == GPU_BF16, four = r->rest % 4 == 0 && util_aligned(sums, 16) && util_aligned(r->src, half ? 8 : 16);
    SumParams p = {*r, (const i64 *)(base + at.key), order, (float *)sums, (float *)(base + at.partial), dev->error,
                   sum_chunk_of(r->n), 0, 0, 0, 0, add};
    i64 wide = four ? 4 : 1;
    p.chunks = util_ceil_div(r->n, p.chunk);
    p.group = util_pow2(util_ceil_div(r->rest, wide), 64), p.width = p.group * wide, p.blocks = util_ceil_div(r->rest, p.width);
    GpuDim grid = util_grid(dev->nsm, p.chunks * p.blocks, UTIL_BLOCK / p.group), block = util_block();
    if (four && half) GPU_LAUNCH(rows_sum4_bf16, dev->stream, grid, block, 0, p);
    else if (four) GPU_LAUNCH(rows_sum4_f32, dev->stream, grid, block, 0, p);
    else if (half) GPU_LAUNCH(rows_sum_bf16, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(rows_sum_f32, dev->stream, grid, block, 0, p);
    if (four) GPU_LAUNCH(rows_across4, dev->stream, grid, block, 0, p);
    else GPU_LAUNCH(rows_across, dev->stream, grid, block, 0, p);
}
