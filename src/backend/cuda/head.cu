// The rows of the head's logits: statistics and the gradient in place. A block takes a row twice: a row of 128k bf16 is 256 KB, too much for
// registers or shared memory, but those of all blocks that run at once stay in the L2 cache, so that memory is read once and written once.
#include "backend/cuda/gpu.h"
#include "backend/cuda/head_rows.h"
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

// A logit as the softmax sees it: z = cap * tanh(x / cap) where CAP. It is computed again in the second pass rather than stored: a narrow
// element type would round it once more.
template <bool CAP>
GPU_FN float head_z(const HeadRows &p, float x) {
    return CAP ? p.cap * tanhf(x / p.cap) : x;
}

// A running maximum m and the sum of exp(z - m).
struct HeadSum {
    float m, s;
};
// What is subtracted from exponents: a row that is all -inf must not become NaN by -inf - -inf.
GPU_FN float head_base(float m) { return m == -HEAD_INFINITY ? 0.0f : m; }
template <class T, bool CAP>
GPU_FN void head_add(const HeadRows &p, HeadSum &h, const HeadPack<T> &x) {
    float v[HeadPack<T>::N], m = h.m;
    GPU_UNROLL for (int i = 0; i < HeadPack<T>::N; i++) {
        v[i] = head_z<CAP>(p, to_float(x.at[i]));
        m = v[i] > m || v[i] != v[i] ? v[i] : m;  // NaN stays
    }
    float base = head_base(m);
    if (m != h.m) h.s *= expf(h.m - base), h.m = m;
    GPU_UNROLL for (int i = 0; i < HeadPack<T>::N; i++) h.s += expf(v[i] - base);
}

GPU_FN void head_record(const HeadRows &p, i64 value) {
    if (gpu_atomic_cas(&p.error->code, DEVICE_OK, DEVICE_INDEX_RANGE) != DEVICE_OK) return;
    p.error->node = p.node, p.error->value = value, p.error->limit = p.v;
}

// A row as it is walked: 16 bytes at a time, and singly the elements before the first such place and after the last (rows need not begin
// at multiples of 16 bytes).
template <class T>
struct HeadRow {
    T *x;
    i64 head, packs, singles;
};
template <class T>
GPU_FN HeadRow<T> head_row_of(const HeadRows &p, i64 row) {
    HeadRow<T> r;
    r.x = (T *)p.x + row * p.v;
    r.head = (i64)((16 - (u64)r.x % 16) % 16 / sizeof(T));
    if (r.head > p.v) r.head = p.v;
    r.packs = (p.v - r.head) / HeadPack<T>::N;
    r.singles = p.v - r.packs * HeadPack<T>::N;
    return r;
}
template <class T>
GPU_FN HeadPack<T> *head_pack(const HeadRow<T> &r, i64 i) {
    return (HeadPack<T> *)(r.x + r.head) + i;
}
template <class T>
GPU_FN i64 head_single(const HeadRow<T> &r, i64 i) {
    return i < r.head ? i : r.packs * HeadPack<T>::N + i;
}

template <class T, bool CAP>
GPU_FN float head_lse(const HeadRows &p, const HeadRow<T> &r) {
    HeadSum h = {-HEAD_INFINITY, 0};
    for (i64 i = gpu_thread_x; i < r.packs; i += gpu_block_threads) head_add<T, CAP>(p, h, *head_pack(r, i));
    for (i64 i = gpu_thread_x; i < r.singles; i += gpu_block_threads) {
        float v = head_z<CAP>(p, to_float(r.x[head_single(r, i)])), m = v > h.m || v != v ? v : h.m, base = head_base(m);
        h.s = h.s * expf(h.m - base) + expf(v - base);
        h.m = m;
    }
    float m = gpu_block_max(h.m), base = head_base(m);
    return base + logf(gpu_block_sum(h.s * expf(h.m - base)));
}

// The gradient of the loss for one logit x; `pick`: what comes through the picked one, else 0.
template <bool CAP>
GPU_FN float head_dx(const HeadRows &p, float x, float lse, float glse, float pick) {
    float z = head_z<CAP>(p, x), g = expf(z - lse) * glse + pick;
    return CAP ? g * (1 - z / p.cap * (z / p.cap)) : g;
}

template <class T, bool CAP>
GPU_FN void head_row(const HeadRows &p, i64 row) {
    HeadRow<T> r = head_row_of<T>(p, row);
    float lse = p.lse_in ? p.lse_in[row] : head_lse<T, CAP>(p, r);
    i64 at = p.idx[row];
    bool in = at >= 0 && at < p.v;
    float picked = in && p.pick ? head_z<CAP>(p, to_float(r.x[at])) : 0.0f;
    if (gpu_thread_x == 0) {
        if (p.lse) p.lse[row] = lse, p.pick[row] = picked;
        if (!in) head_record(p, at);
    }
    if (!p.glse) return;
    gpu_sync();  // x[at] is read before anyone overwrites it
    float glse = p.glse[row], gpick = p.gpick[row];
    for (i64 i = gpu_thread_x; i < r.packs; i += gpu_block_threads) {
        HeadPack<T> q = *head_pack(r, i);
        i64 first = r.head + i * HeadPack<T>::N;
        GPU_UNROLL for (int j = 0; j < HeadPack<T>::N; j++)
            store_float(&q.at[j], head_dx<CAP>(p, to_float(q.at[j]), lse, glse, first + j == at ? gpick : 0.0f));
        *head_pack(r, i) = q;
    }
    for (i64 i = gpu_thread_x; i < r.singles; i += gpu_block_threads) {
        i64 c = head_single(r, i);
        store_float(&r.x[c], head_dx<CAP>(p, to_float(r.x[c]), lse, glse, c == at ? gpick : 0.0f));
    }
}

#define HEAD_KERNEL(name, T, CAP)                                                                    \
    GPU_KERNEL(name, HeadRows, HEAD_THREADS) {                                                       \
        for (i64 r = gpu_block_x; r < p.rows; r += gpu_grid_x) head_row<T, CAP>(p, r);               \
    }
HEAD_KERNEL(head_rows_f32, float, false)
HEAD_KERNEL(head_rows_bf16, bf16, false)
HEAD_KERNEL(head_rows_f32_cap, float, true)
HEAD_KERNEL(head_rows_bf16_cap, bf16, true)

extern "C" void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p) {
    if (p->rows == 0) return;
    GpuDim grid = {(u32)(p->rows < (1 << 30) ? p->rows : 1 << 30), 1, 1}, block = {HEAD_THREADS, 1, 1};
    if (p->cap > 0) {
        if (bf16_elements) GPU_LAUNCH(head_rows_bf16_cap, stream, grid, block, 0, *p);
        else GPU_LAUNCH(head_rows_f32_cap, stream, grid, block, 0, *p);
    } else {
        if (bf16_elements) GPU_LAUNCH(head_rows_bf16, stream, grid, block, 0, *p);
        else GPU_LAUNCH(head_rows_f32, stream, grid, block, 0, *p);
    }
}
