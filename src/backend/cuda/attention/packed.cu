// See packed.h. Documents are found in order whatever the blocks' order: beginnings are counted by chunks, then each chunk knows
// how many come before it.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/attention/packed.h"

struct PackedParams {
    GpuPacked p;
    DeviceError *error;
    i64 chunks;
};

GPU_FN void packed_error(const PackedParams &q, int code, i64 value, i64 limit) {
    if (gpu_atomic_cas(&q.error->code, DEVICE_OK, code) != DEVICE_OK) return;
    q.error->node = q.p.node;
    q.error->value = value, q.error->limit = limit;
}

GPU_FN const long long *packed_ids(const GpuPacked &p, i64 row) { return p.ids + row * p.ids_stride; }
GPU_FN bool packed_begins(const long long *ids, i64 i) { return i == 0 || ids[i] != ids[i - 1]; }

// Counts are sums of floats: exact up to 2^24, and beyond that far more than there are slots.
GPU_KERNEL(packed_count, PackedParams, UTIL_BLOCK) {
    const GpuPacked &d = p.p;
    for (i64 x = gpu_block_x; x < d.rows * p.chunks; x += gpu_grid_x) {
        const long long *ids = packed_ids(d, x / p.chunks);
        i64 first = x % p.chunks * PACKED_CHUNK, end = min_of(first + PACKED_CHUNK, (i64)d.n);
        float n = 0;
        for (i64 i = first + gpu_thread_x; i < end; i += gpu_block_threads) {
            n += packed_begins(ids, i) ? 1.0f : 0.0f;
            if (i > 0 && ids[i] < ids[i - 1]) packed_error(p, DEVICE_UNSORTED, i, 0);
        }
        n = gpu_block_sum(n);
        if (gpu_thread_x == 0) d.count[x] = (int)n;
    }
}

GPU_KERNEL(packed_begin, PackedParams, UTIL_BLOCK) {
    GPU_SHARED int part[UTIL_THREADS];
    const GpuPacked &d = p.p;
    i64 each = (PACKED_CHUNK + gpu_block_threads - 1) / gpu_block_threads;  // neighbouring positions of a thread
    for (i64 x = gpu_block_x; x < d.rows * p.chunks; x += gpu_grid_x) {
        i64 row = x / p.chunks, chunk = x % p.chunks;
        const long long *ids = packed_ids(d, row);
        i64 last = min_of((chunk + 1) * PACKED_CHUNK, (i64)d.n);
        i64 first = min_of(chunk * PACKED_CHUNK + gpu_thread_x * each, last), end = min_of(first + each, last);
        float before = 0;
        for (i64 c = gpu_thread_x; c < chunk; c += gpu_block_threads) before += (float)d.count[row * p.chunks + c];
        before = gpu_block_sum(before);
        int n = 0;
        for (i64 i = first; i < end; i++) n += packed_begins(ids, i);
        gpu_sync();
        part[gpu_thread_x] = n;
        gpu_sync();
        i64 at = (i64)before;
        for (i64 t = 0; t < gpu_thread_x; t++) at += part[t];
        for (i64 i = first; i < end; i++) {
            if (!packed_begins(ids, i)) continue;
            if (at < d.slots) d.begin[row * d.slots + at] = i;
            at++;
        }
        if (chunk != p.chunks - 1 || gpu_thread_x != gpu_block_threads - 1) continue;
        d.ndocument[row] = (int)min_of(at, (i64)d.slots);
        if (at > d.slots) packed_error(p, DEVICE_DOCUMENTS, at, d.slots);
    }
}

GPU_KERNEL(packed_entries, PackedParams, UTIL_BLOCK) {
    const GpuPacked &d = p.p;
    i64 n = d.rows * d.heads * d.slots;
    for (i64 x = gpu_thread(); x <= n; x += gpu_nthreads()) {
        i64 head = x / d.slots, slot = x % d.slots, begin = 0;  // head: of all rows; the last x is what lies behind everything
        if (x < n) {
            i64 row = head / d.heads, documents = d.ndocument[row];
            begin = slot < documents ? d.begin[row * d.slots + slot] : d.n;
            i64 end = slot + 1 < documents ? d.begin[row * d.slots + slot + 1] : d.n;
            d.length[x] = (int)(end - begin);
        }
        d.row[x] = head * d.n + begin;
        d.q[x] = d.row[x] * d.dim;
        d.k[x] = (head / d.group * d.n + begin) * d.dim;
    }
}

struct PackedSum {
    const bf16 *x;
    bf16 *out;
    i64 n, group, elems;
};

GPU_KERNEL(packed_sum, PackedSum, UTIL_BLOCK) {
    enum { W = 8 };
    i64 row = p.elems / W;
    for (i64 t = gpu_thread(); t < p.n * row; t += gpu_nthreads()) {
        i64 i = t / row, e = t % row * W;
        float sum[W] = {0};
        for (i64 j = 0; j < p.group; j++) {
            Pack<bf16> v = *(const Pack<bf16> *)(const void *)(p.x + (i * p.group + j) * p.elems + e);
            for (int w = 0; w < W; w++) sum[w] += to_float(v.v[w]);
        }
        Pack<bf16> r;
        for (int w = 0; w < W; w++) r.v[w] = to_bf16(sum[w]);
        *(Pack<bf16> *)(void *)(p.out + i * p.elems + e) = r;
    }
}

extern "C" void gpu_packed(const Device *dev, const GpuPacked *d) {
    PackedParams p = {*d, dev->error, util_ceil_div(d->n, PACKED_CHUNK)};
    GpuDim chunks = util_grid(dev->nsm, d->rows * p.chunks, 1);
    GPU_LAUNCH(packed_count, dev->stream, chunks, util_block(), 0, p);
    GPU_LAUNCH(packed_begin, dev->stream, chunks, util_block(), 0, p);
    GpuDim entries = util_grid(dev->nsm, d->rows * d->heads * d->slots + 1, UTIL_BLOCK);
    GPU_LAUNCH(packed_entries, dev->stream, entries, util_block(), 0, p);
}

extern "C" void gpu_packed_sum(const Device *dev, const void *x, void *out, long long n, long long group, long long elems) {
    PackedSum p = {(const bf16 *)x, (bf16 *)out, n, group, elems};
    GPU_LAUNCH(packed_sum, dev->stream, util_grid(dev->nsm, n * elems / 8, UTIL_BLOCK), util_block(), 0, p);
}
