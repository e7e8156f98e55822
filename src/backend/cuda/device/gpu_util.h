// What the kernels of this folder share beyond gpu.h. C++, for .cu files only.
#pragma once
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/gpu.h"

// Threads of the blocks that kernels here are launched with; of the emulation's blocks.
#if defined(GPU_EMULATE)
enum { UTIL_THREADS = 1 };
#define GPU_CALL inline  // in front of a member function that kernels call
#define GPU_CALL_STATIC static inline
#else
enum { UTIL_THREADS = 256 };
#define GPU_CALL __device__ __forceinline__
#define GPU_CALL_STATIC static __device__ __forceinline__
#endif
enum { UTIL_BLOCK = 256, UTIL_BLOCKS_PER_SM = 8 };

static inline i64 util_min(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 util_ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
static inline GpuDim util_block(void) { return GpuDim{UTIL_BLOCK, 1, 1}; }
// Blocks for n items that are taken in strides of the grid, `per_block` of them at a time by a block.
static inline GpuDim util_grid(int nsm, i64 n, i64 per_block) {
    i64 blocks = util_min(util_ceil_div(n, per_block), (i64)nsm * UTIL_BLOCKS_PER_SM);
    return GpuDim{(u32)(blocks < 1 ? 1 : blocks), 1, 1};
}
// The same for kernels whose blocks are short: so many that those at the end fill the device too.
enum { UTIL_WAVES = 4 };
static inline GpuDim util_grid_many(int nsm, i64 n, i64 per_block) { return util_grid(nsm * UTIL_WAVES, n, per_block); }
static inline int util_pow2(i64 n, int most) {  // the power of two in [1, most] that is at least n if there is one
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

// 16 bytes of elements, which one instruction loads.
template <class T> struct alignas(16) Pack { T v[16 / sizeof(T)]; };
static inline bool util_aligned(const void *p, i64 nbytes) { return (u64)p % (u64)nbytes == 0; }

// Division of numbers below 2^31 by a constant (Granlund and Montgomery 1994).
struct FastDiv { u32 d, m, s; };
static inline FastDiv fast_div_of(u32 d) {
    FastDiv f = {d, 0, 0};
    while (((u64)1 << f.s) < d) f.s++;
    f.m = (u32)((((u64)1 << 32) * (((u64)1 << f.s) - d)) / d + 1);
    return f;
}
GPU_FN u32 fast_div(u32 n, FastDiv f) { return ((u32)(((u64)n * f.m) >> 32) + n) >> f.s; }

GPU_FN float min_of(float a, float b) { return a < b ? a : b; }
GPU_FN i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
GPU_FN i64 max_of(i64 a, i64 b) { return a > b ? a : b; }

#if defined(GPU_EMULATE)
GPU_FN i64 gpu_atomic_max(i64 *p, i64 v) { i64 o = *p; *p = v > o ? v : o; return o; }
#else
GPU_FN i64 gpu_atomic_max(i64 *p, i64 v) { return atomicMax(p, v); }
#endif

// The first error of a step is the one that is reported.
GPU_FN void record_index(DeviceError *e, int node, i64 value, i64 limit) {
    if (gpu_atomic_cas(&e->code, DEVICE_OK, DEVICE_INDEX_RANGE) != DEVICE_OK) return;
    e->node = node;
    e->value = value, e->limit = limit;
}

#if !defined(GPU_EMULATE)
// v of the lane that `m` says, word by word: any plain value.
template <class A> union LaneWords { A v; u32 w[(sizeof(A) + 3) / 4]; GPU_CALL LaneWords() {} };
template <class A> GPU_FN A lane_xor(A v, int m) {
    LaneWords<A> x;
    x.v = v;
    GPU_UNROLL for (int i = 0; i < (int)(sizeof(A) / 4); i++) x.w[i] = __shfl_xor_sync(0xffffffffu, x.w[i], m);
    return x.v;
}
template <class A> GPU_FN A lane_up(A v, int m) {  // of m lanes before; the first m keep their own
    LaneWords<A> x;
    x.v = v;
    GPU_UNROLL for (int i = 0; i < (int)(sizeof(A) / 4); i++) x.w[i] = __shfl_up_sync(0xffffffffu, x.w[i], (u32)m);
    return x.v;
}
template <class A> GPU_FN A lane_at(A v, int lane) {
    LaneWords<A> x;
    x.v = v;
    GPU_UNROLL for (int i = 0; i < (int)(sizeof(A) / 4); i++) x.w[i] = __shfl_sync(0xffffffffu, x.w[i], lane);
    return x.v;
}
#endif

// Over groups of `n` neighbouring threads of a block, n a power of two (the number of threads is a multiple of it); every thread
// of the block calls it, with `part` one shared A a thread. All threads of a group get the result; the order is fixed. Groups
// within a warp need no barrier. merge(a, b) == merge(b, a).
template <class R> GPU_FN typename R::Acc group_reduce(typename R::Acc v, typename R::Acc *part, int n) {
#if defined(GPU_EMULATE)
    (void)part, (void)n;  // a group is one thread
#else
    for (int m = (n < gpu_warp_size ? n : gpu_warp_size) / 2; m > 0; m /= 2) v = R::merge(v, lane_xor(v, m));
    if (n > gpu_warp_size) {
        int warp = (int)gpu_thread_x / gpu_warp_size, warps = n / gpu_warp_size, first = warp / warps * warps;
        gpu_sync();
        if ((int)gpu_thread_x % gpu_warp_size == 0) part[warp] = v;
        gpu_sync();
        v = part[first];
        for (int i = 1; i < warps; i++) v = R::merge(v, part[first + i]);
    }
#endif
    return v;
}
