// Keys are mapped to integers in whose order they are to come and carry their place, which decides between equals: no two are
// equal, so that any sort is a stable one. Chunks are sorted in shared memory by a bitonic network (Batcher 1968), several short
// lines side by side; the chunks of long lines are then merged in rounds, every key finding its place in the other run by
// bisection.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

struct SortParams {
    GpuSort s;
    i64 first;       // line of the batch
    i64 count;       // lines of it
    i64 width;       // a power of two: keys of a line in shared memory; the chunk for long lines
    i64 run;         // merge: length of the sorted runs
    const GpuKey *from;
    GpuKey *to;
};

// PyTorch's order: NaN is the greatest, -0 equals 0.
GPU_FN i64 sort_order(float v) {
    if (v != v) return 0x7fffffffffffffffll;
    i64 i = (int)gpu_float_bits(v + 0.0f);  // -0 + 0 = 0
    return i < 0 ? -0x80000000ll - i : i;
}

GPU_FN i64 sort_key(const GpuSort &s, i64 at) {
    i64 v;
    if (s.type == GPU_F32) v = sort_order(((const float *)s.src)[at]);
    else if (s.type == GPU_BF16) v = sort_order(to_float(((const bf16 *)s.src)[at]));
    else if (s.type == GPU_I64) v = ((const i64 *)s.src)[at];
    else v = ((const u8 *)s.src)[at];
    return s.descending ? ~v : v;
}

GPU_FN bool sort_before(const GpuKey &a, const GpuKey &b) { return a.key < b.key || (a.key == b.key && a.index < b.index); }

// Element `rank` of a sorted line.
GPU_FN void sort_emit(const GpuSort &s, i64 line, i64 rank, i64 index) {
    i64 o = line / s.inner, c = line % s.inner, at = (o * s.take + rank) * s.inner + c, from = (o * s.n + index) * s.inner + c;
    s.indices[at] = index;
    if (s.type == GPU_F32) ((u32 *)s.values)[at] = ((const u32 *)s.src)[from];
    else if (s.type == GPU_BF16) ((u16 *)s.values)[at] = ((const u16 *)s.src)[from];
    else if (s.type == GPU_I64) ((u64 *)s.values)[at] = ((const u64 *)s.src)[from];
    else ((u8 *)s.values)[at] = ((const u8 *)s.src)[from];
}

// Sorts every `width` keys of key[0, GPU_SORT_CHUNK) by themselves.
GPU_FN void sort_bitonic(GpuKey *key, int width) {
    for (int k = 2; k <= width; k *= 2) {
        for (int j = k / 2; j > 0; j /= 2) {
            gpu_sync();
            for (int t = (int)gpu_thread_x; t < GPU_SORT_CHUNK / 2; t += (int)gpu_block_threads) {
                int lo = 2 * j * (t / j) + t % j, hi = lo + j;
                bool up = ((lo & (width - 1)) & k) == 0;
                if (sort_before(key[hi], key[lo]) != up) continue;
                GpuKey x = key[lo];
                key[lo] = key[hi], key[hi] = x;
            }
        }
    }
    gpu_sync();
}

// Units of `width` keys of a line; GPU_SORT_CHUNK / width of them at a time. Short lines are done with that.
GPU_KERNEL(sort_chunks, SortParams, UTIL_BLOCK) {
    GPU_SHARED GpuKey key[GPU_SORT_CHUNK];
    const GpuSort &s = p.s;
    i64 per_line = (s.n + p.width - 1) / p.width, units = p.count * per_line, at_once = GPU_SORT_CHUNK / p.width;
    for (i64 base = gpu_block_x * at_once; base < units; base += gpu_grid_x * at_once) {
        gpu_sync();
        for (i64 e = gpu_thread_x; e < GPU_SORT_CHUNK; e += gpu_block_threads) {
            i64 unit = base + e / p.width, line = p.first + unit / per_line, i = unit % per_line * p.width + e % p.width;
            key[e].key = 0x7fffffffffffffffll, key[e].index = 0x7fffffffffffffffll;  // no key, after all others
            if (unit < units && i < s.n) {
                key[e].key = sort_key(s, (line / s.inner * s.n + i) * s.inner + line % s.inner);
                key[e].index = i;
            }
        }
        sort_bitonic(key, (int)p.width);
        for (i64 e = gpu_thread_x; e < GPU_SORT_CHUNK; e += gpu_block_threads) {
            i64 unit = base + e / p.width, i = unit % per_line * p.width + e % p.width;
            if (unit >= units || i >= s.n) continue;
            if (per_line > 1) p.to[unit / per_line * s.n + i] = key[e];
            else if (i < s.take) sort_emit(s, p.first + unit, i, key[e].index);
        }
    }
}

// Runs of p.run keys, two by two, from p.from to p.to.
GPU_KERNEL(sort_merge, SortParams, UTIL_BLOCK) {
    i64 n = p.s.n;
    for (i64 u = gpu_thread(); u < p.count * n; u += gpu_nthreads()) {
        i64 line = u / n, i = u - line * n, pair = i / (2 * p.run) * (2 * p.run), mid = min_of(pair + p.run, n);
        bool second = i >= mid;
        const GpuKey *keys = p.from + line * n;
        GpuKey mine = keys[i];
        i64 begin = second ? pair : mid, lo = begin, hi = second ? mid : min_of(pair + 2 * p.run, n);
        while (lo < hi) {  // keys of the other run that come before mine
            i64 m = lo + (hi - lo) / 2;
            if (sort_before(keys[m], mine)) lo = m + 1;
            else hi = m;
        }
        p.to[line * n + i + (second ? lo - mid : lo - begin)] = mine;
    }
}

GPU_KERNEL(sort_write, SortParams, UTIL_BLOCK) {
    for (i64 u = gpu_thread(); u < p.count * p.s.take; u += gpu_nthreads()) {
        i64 line = u / p.s.take, rank = u - line * p.s.take;
        sort_emit(p.s, p.first + line, rank, p.from[line * p.s.n + rank].index);
    }
}

extern "C" void gpu_sort(const Device *dev, const GpuSort *s) {
    GpuDim block = util_block();
    SortParams p = {*s, 0, 0, util_pow2(s->n, GPU_SORT_CHUNK), 0, 0, s->scratch};
    for (p.first = 0; p.first < s->lines; p.first += s->batch) {
        p.count = util_min(s->batch, s->lines - p.first);
        i64 units = p.count * util_ceil_div(s->n, p.width);
        p.to = s->scratch;
        GPU_LAUNCH(sort_chunks, dev->stream, util_grid(dev->nsm, units, GPU_SORT_CHUNK / p.width), block, 0, p);
        if (s->n <= GPU_SORT_CHUNK) continue;
        GpuKey *from = s->scratch, *to = s->scratch + p.count * s->n;
        for (p.run = p.width; p.run < s->n; p.run *= 2) {
            p.from = from, p.to = to;
            GPU_LAUNCH(sort_merge, dev->stream, util_grid(dev->nsm, p.count * s->n, UTIL_BLOCK), block, 0, p);
            GpuKey *swap = from;
            from = to, to = swap;
        }
        p.from = from;
        GPU_LAUNCH(sort_write, dev->stream, util_grid(dev->nsm, p.count * s->take, UTIL_BLOCK), block, 0, p);
    }
}
