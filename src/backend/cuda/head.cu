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

// A running maximum m and the sum of exp(x - m).
struct HeadSum {
    float m, s;
};
// What is subtracted from exponents: a row that is all -inf must not become NaN by -inf - -inf.
GPU_FN float head_base(float m) { return m == -HEAD_INFINITY ? 0.0f : m; }
template <class T>
GPU_FN void head_add(HeadSum &h, const HeadPack<T> &x) {
    float v[HeadPack<T>::N], m = h.m;
    GPU_UNROLL for (int i = 0; i < HeadPack<T>::N; i++) {
        v[i] = to_float(x.at[i]);
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

template <class T>
GPU_FN void head_row(const HeadRows &p, i64 row) {
    typedef HeadPack<T> Pack;
    T *x = (T *)p.x + row * p.v;
    // Rows need not begin at multiples of 16 bytes: the elements before the first such place and after the last are taken singly.
    i64 head = (i64)((16 - (u64)x % 16) % 16 / sizeof(T));
    if (head > p.v) head = p.v;
    i64 packs = (p.v - head) / Pack::N, tail = head + packs * Pack::N, singles = head + p.v - tail;
    Pack *px = (Pack *)(x + head);
    HeadSum h = {-HEAD_INFINITY, 0};
    for (i64 i = gpu_thread_x; i < packs; i += gpu_block_threads) head_add<T>(h, px[i]);
    for (i64 i = gpu_thread_x; i < singles; i += gpu_block_threads) {
        float v = to_float(x[i < head ? i : tail + i - head]), m = v > h.m || v != v ? v : h.m, base = head_base(m);
        h.s = h.s * expf(h.m - base) + expf(v - base);
        h.m = m;
    }
    float m = gpu_block_max(h.m), base = head_base(m);
    float sum = gpu_block_sum(h.s * expf(h.m - base)), lse = base + logf(sum), glse = p.glse[row], gpick = p.gpick[row];
    i64 at = p.idx[row];
    bool in = at >= 0 && at < p.v;
    float picked = in ? to_float(x[at]) : 0.0f;
    gpu_sync();  // x[at] is read before anyone overwrites it
    if (gpu_thread_x == 0) {
        p.lse[row] = lse, p.pick[row] = picked;
        if (!in) head_record(p, at);
    }
    for (i64 i = gpu_thread_x; i < packs; i += gpu_block_threads) {
        Pack q = px[i];
        i64 first = head + i * Pack::N;
        GPU_UNROLL for (int j = 0; j < Pack::N; j++) {
            float g = expf(to_float(q.at[j]) - lse) * glse;
            store_float(&q.at[j], first + j == at ? g + gpick : g);
        }
        px[i] = q;
    }
    for (i64 i = gpu_thread_x; i < singles; i += gpu_block_threads) {
        i64 c = i < head ? i : tail + i - head;
        float g = expf(to_float(x[c]) - lse) * glse;
        store_float(&x[c], c == at ? g + gpick : g);
    }
}

GPU_KERNEL(head_rows_f32, HeadRows, HEAD_THREADS) {
    for (i64 r = gpu_block_x; r < p.rows; r += gpu_grid_x) head_row<float>(p, r);
}
GPU_KERNEL(head_rows_bf16, HeadRows, HEAD_THREADS) {
    for (i64 r = gpu_block_x; r < p.rows; r += gpu_grid_x) head_row<bf16>(p, r);
}

extern "C" void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p) {
    if (p->rows == 0) return;
    GpuDim grid = {(u32)(p->rows < (1 << 30) ? p->rows : 1 << 30), 1, 1}, block = {HEAD_THREADS, 1, 1};
    if (bf16_elements) GPU_LAUNCH(head_rows_bf16, stream, grid, block, 0, *p);
    else GPU_LAUNCH(head_rows_f32, stream, grid, block, 0, *p);
}
