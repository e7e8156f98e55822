// The rows of the head's logits: statistics and the gradient in place. A block takes a row twice: a row of 128k bf16 is 256 KB,
// too much for registers or shared memory, but those of all blocks that run at once stay in the L2 cache, so that memory is read
// once and written once.
#include "backend/cuda/device/gpu.h"
#include "backend/cuda/product/head_rows.h"
#if defined(GPU_EMULATE)
#define HEAD_INFINITY INFINITY
#else
#define HEAD_INFINITY __int_as_float(0x7f800000)
#endif

enum { HEAD_THREADS = 512 };

// 16 bytes of a row.
template <class T>
struct alignas(16) HeadPack {
    enum { N = 16 / sizeof(T) };
    T at[N];
};

// A running maximum m and the sum of exp(x - m).
struct HeadSum {
    float m, s;
};
// What is subtracted from exponents: an infinite maximum must not give NaN by inf - inf.
GPU_FN float head_base(float m) { return m == HEAD_INFINITY || m == -HEAD_INFINITY ? 0.0f : m; }
GPU_FN float head_larger(float m, float v) { return v > m || v != v ? v : m; }  // NaN stays
template <bool CAP>
GPU_FN float head_logit(float x, float cap) { return CAP ? cap * tanhf(x / cap) : x; }

// N values at once: one rescaling for all of them.
template <int N>
GPU_FN void head_add(HeadSum &h, const float (&v)[N]) {
    float m = h.m;
    GPU_UNROLL for (int i = 0; i < N; i++) m = head_larger(m, v[i]);
    float base = head_base(m);
    if (m != h.m) h.s *= expf(h.m - base), h.m = m;
    GPU_UNROLL for (int i = 0; i < N; i++) h.s += expf(v[i] - base);
}

GPU_FN void head_record(const HeadRows &p, i64 value) {
    if (gpu_atomic_cas(&p.error->code, DEVICE_OK, DEVICE_INDEX_RANGE) != DEVICE_OK) return;
    p.error->node = p.node, p.error->value = value, p.error->limit = p.v;
}

// A row: whole packs, and the elements from `tail` on singly.
template <class T>
struct HeadRow {
    T *x;
    HeadPack<T> *pack;
    i64 npack, tail, v;
};
template <class T>
GPU_FN HeadRow<T> head_row(T *x, i64 v) {
    i64 npack = v / HeadPack<T>::N;
    return {x, (HeadPack<T> *)x, npack, npack * HeadPack<T>::N, v};
}

// The row's log-sum-exp, in every thread.
template <class T, bool CAP>
GPU_FN float head_statistics(const HeadRow<T> &r, float cap) {
    HeadSum h = {-HEAD_INFINITY, 0};
    for (i64 i = gpu_thread_x; i < r.npack; i += gpu_block_threads) {
        HeadPack<T> q = r.pack[i];
        float v[HeadPack<T>::N];
        GPU_UNROLL for (int j = 0; j < HeadPack<T>::N; j++) v[j] = head_logit<CAP>(to_float(q.at[j]), cap);
        head_add(h, v);
    }
    for (i64 i = r.tail + gpu_thread_x; i < r.v; i += gpu_block_threads) {
        float v[1] = {head_logit<CAP>(to_float(r.x[i]), cap)};
        head_add(h, v);
    }
    float base = head_base(gpu_block_max(h.m));
    return base + logf(gpu_block_sum(h.s * expf(h.m - base)));
}

// What replaces a logit.
typedef struct HeadGrad {
    float lse, glse, gpick, cap, inv;
    i64 at;
} HeadGrad;
template <bool CAP>
GPU_FN float head_grad(const HeadGrad &g, float x, i64 column) {
    float z = head_logit<CAP>(x, g.cap), dz = expf(z - g.lse) * g.glse;
    if (column == g.at) dz += g.gpick;
    return CAP ? dz * (1 - z * g.inv * (z * g.inv)) : dz;
}

template <class T, bool CAP>
GPU_FN void head_one_row(const HeadRows &p, i64 row) {
    HeadRow<T> r = head_row((T *)p.x + row * p.ld, p.v);
    float lse = p.lse_in ? p.lse_in[row] : head_statistics<T, CAP>(r, p.cap);
    i64 at = p.idx[row];
    bool in = at >= 0 && at < p.v;
    if (gpu_thread_x == 0) {
        if (!p.lse_in) p.lse[row] = lse, p.pick[row] = in ? head_logit<CAP>(to_float(r.x[at]), p.cap) : 0.0f;
        if (!in) head_record(p, at);
    }
    if (!p.glse) return;
    gpu_sync();  // x[at] is read before it is overwritten
    HeadGrad g = {lse, p.glse[row], p.gpick[row], p.cap, CAP ? 1 / p.cap : 0.0f, at};
    for (i64 i = gpu_thread_x; i < r.npack; i += gpu_block_threads) {
        HeadPack<T> q = r.pack[i];
        i64 first = i * HeadPack<T>::N;
        GPU_UNROLL for (int j = 0; j < HeadPack<T>::N; j++)
            store_float(&q.at[j], head_grad<CAP>(g, to_float(q.at[j]), first + j));
        r.pack[i] = q;
    }
    for (i64 i = r.tail + gpu_thread_x; i < r.v; i += gpu_block_threads)
        store_float(&r.x[i], head_grad<CAP>(g, to_float(r.x[i]), i));
}

template <class T>
GPU_FN void head_all_rows(const HeadRows &p) {
    for (i64 r = gpu_block_x; r < p.rows; r += gpu_grid_x) {
        if (p.cap > 0) head_one_row<T, true>(p, r);
        else head_one_row<T, false>(p, r);
    }
}
GPU_KERNEL(head_rows_f32, HeadRows, HEAD_THREADS) { head_all_rows<float>(p); }
GPU_KERNEL(head_rows_bf16, HeadRows, HEAD_THREADS) { head_all_rows<bf16>(p); }

extern "C" void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p) {
    if (p->rows == 0) return;
    GpuDim grid = {(u32)(p->rows < (1 << 30) ? p->rows : 1 << 30), 1, 1}, block = {HEAD_THREADS, 1, 1};
    if (bf16_elements) GPU_LAUNCH(head_rows_bf16, stream, grid, block, 0, *p);
    else GPU_LAUNCH(head_rows_f32, stream, grid, block, 0, *p);
}
