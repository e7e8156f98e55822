// What device code is written with: the part that CUDA and HIP share, and an emulation that runs kernels on the host one thread
// at a time, so that they can be tested (and sanitized) on a machine without a GPU. Included by every .cu file and by every
// generated kernel; stands alone (NVRTC has no C library headers).
//
//   struct CopyParams { float *y; const float *x; long long n; };          // plain data, passed by value, at most 4 KB
//   GPU_KERNEL(copy_f32, CopyParams, 256) {                                // 256: the most threads of a block it is launched
//   with
//       for (long long i = gpu_thread(); i < p.n; i += gpu_nthreads()) p.y[i] = p.x[i];
//   }
//   GPU_LAUNCH(copy_f32, stream, grid, block, shared_nbytes, params);      // host side; asynchronous
//
// Rules for kernels: right for any block and grid size (the emulation has blocks of one thread); sizes and indices are 64-bit;
// threads of a block talk through GPU_SHARED arrays and gpu_sync(), or through gpu_block_sum/gpu_block_max; every thread of a
// block reaches every gpu_sync(). Kernels that need more than that (tensor cores, fixed block sizes) stand under #ifndef
// GPU_EMULATE.
#pragma once

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

struct GpuDim { u32 x, y, z; };

#if defined(GPU_EMULATE)
// ---- emulation: C++ on the host -------------------------------------------------------------------------------------------
#include <math.h>
#include <string.h>
#define GPU_FN static inline
#define GPU_SHARED static thread_local
#define GPU_UNROLL
#define GPU_RESTRICT __restrict__
// The grid index of the block that runs now; threads of a block are one.
struct GpuEmulated { GpuDim block, grid; };
static thread_local GpuEmulated gpu_emulated;
#define gpu_block_x ((i64)gpu_emulated.block.x)
#define gpu_block_y ((i64)gpu_emulated.block.y)
#define gpu_block_z ((i64)gpu_emulated.block.z)
#define gpu_grid_x ((i64)gpu_emulated.grid.x)
#define gpu_grid_y ((i64)gpu_emulated.grid.y)
#define gpu_grid_z ((i64)gpu_emulated.grid.z)
#define gpu_thread_x ((i64)0)
#define gpu_block_threads ((i64)1)
static inline void gpu_sync(void) {}
// name(grid, params): what a launch calls; generated kernels are found by this symbol too.
#define GPU_KERNEL(name, Params, threads)                                        \
    static void name##_body(const Params &p);                                    \
    extern "C" void name(const GpuDim *grid, const void *params) {               \
        gpu_emulated.grid = *grid;                                               \
        for (u32 z = 0; z < grid->z; z++)                                        \
            for (u32 y = 0; y < grid->y; y++)                                    \
                for (u32 x = 0; x < grid->x; x++) {                              \
                    gpu_emulated.block.x = x, gpu_emulated.block.y = y, gpu_emulated.block.z = z; \
                    name##_body(*(const Params *)params);                        \
                }                                                                \
    }                                                                            \
    static void name##_body(const Params &p)
#define GPU_LAUNCH(name, stream, grid, block, shared, params)                    \
    do {                                                                         \
        GpuDim gpu_grid_ = (grid);                                               \
        (void)(block), (void)(shared), (void)(stream);                           \
        name(&gpu_grid_, &(params));                                             \
    } while (0)
static inline float gpu_atomic_add(float *p, float v) { float o = *p; *p += v; return o; }
static inline u64 gpu_atomic_add(u64 *p, u64 v) { u64 o = *p; *p += v; return o; }
static inline int gpu_atomic_add(int *p, int v) { int o = *p; *p += v; return o; }
static inline int gpu_atomic_cas(int *p, int compare, int v) { int o = *p; if (o == compare) *p = v; return o; }
static inline float gpu_warp_sum(float v) { return v; }
static inline float gpu_warp_max(float v) { return v; }
static inline u32 gpu_float_bits(float f) { u32 u; memcpy(&u, &f, 4); return u; }
static inline float gpu_bits_float(u32 u) { float f; memcpy(&f, &u, 4); return f; }
#define gpu_warp_size 1
#else
// ---- CUDA (HIP: the same names; warp size 64) -----------------------------------------------------------------------------
#define GPU_FN static __device__ __forceinline__
#define GPU_SHARED __shared__
#define GPU_UNROLL _Pragma("unroll")
#define GPU_RESTRICT __restrict__
#define gpu_block_x ((i64)blockIdx.x)
#define gpu_block_y ((i64)blockIdx.y)
#define gpu_block_z ((i64)blockIdx.z)
#define gpu_grid_x ((i64)gridDim.x)
#define gpu_grid_y ((i64)gridDim.y)
#define gpu_grid_z ((i64)gridDim.z)
#define gpu_thread_x ((i64)threadIdx.x)
#define gpu_block_threads ((i64)blockDim.x)
#define GPU_KERNEL(name, Params, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)
#define GPU_LAUNCH(name, stream, grid_, block_, shared, params)                                                             \
    do {                                                                                                                    \
        GpuDim gpu_g_ = (grid_), gpu_b_ = (block_);                                                                         \
        name<<<dim3(gpu_g_.x, gpu_g_.y, gpu_g_.z), dim3(gpu_b_.x, gpu_b_.y, gpu_b_.z), (shared), (cudaStream_t)(stream)>>>( \
            params);                                                                                                        \
    } while (0)
#define gpu_warp_size 32
GPU_FN void gpu_sync(void) { __syncthreads(); }
GPU_FN float gpu_atomic_add(float *p, float v) { return atomicAdd(p, v); }
GPU_FN u64 gpu_atomic_add(u64 *p, u64 v) { return atomicAdd(p, v); }
GPU_FN int gpu_atomic_add(int *p, int v) { return atomicAdd(p, v); }
GPU_FN int gpu_atomic_cas(int *p, int compare, int v) { return atomicCAS(p, compare, v); }
GPU_FN float gpu_warp_sum(float v) {
    GPU_UNROLL for (int m = gpu_warp_size / 2; m > 0; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}
GPU_FN float gpu_warp_max(float v) {  // NaN wins
    GPU_UNROLL for (int m = gpu_warp_size / 2; m > 0; m /= 2) {
        float o = __shfl_xor_sync(0xffffffffu, v, m);
        v = o > v || o != o ? o : v;
    }
    return v;
}
GPU_FN u32 gpu_float_bits(float f) { return __float_as_uint(f); }
GPU_FN float gpu_bits_float(u32 u) { return __uint_as_float(u); }
#endif

// ---- for both -------------------------------------------------------------------------------------------------------------
#define gpu_thread() (gpu_block_x * gpu_block_threads + gpu_thread_x)
#define gpu_nthreads() (gpu_grid_x * gpu_block_threads)

// bfloat16: the upper half of a float. To nearest, ties to even; NaN stays NaN.
struct bf16 { u16 bits; };
GPU_FN float to_float(float x) { return x; }
GPU_FN float to_float(bf16 x) { return gpu_bits_float((u32)x.bits << 16); }
GPU_FN bf16 to_bf16(float f) {
    bf16 r;
#if !defined(GPU_EMULATE) && defined(__CUDA_ARCH__)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(f));
#else
    u32 u = gpu_float_bits(f);
    r.bits = f != f ? (u16)0x7fc0 : (u16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
    return r;
}
GPU_FN void store_float(float *p, float v) { *p = v; }
GPU_FN void store_float(bf16 *p, float v) { *p = to_bf16(v); }

#if defined(GPU_EMULATE)
#define gpu_block_sum(v) (v)
#define gpu_block_max(v) (v)
#else
// Over the threads of a block (blockDim.x a multiple of the warp); every thread gets the result. `part` is shared, one float a
// warp.
GPU_FN float gpu_block_reduce_sum(float v, float *part) {
    v = gpu_warp_sum(v);
    int lane = threadIdx.x % gpu_warp_size, warp = threadIdx.x / gpu_warp_size,
        n = (blockDim.x + gpu_warp_size - 1) / gpu_warp_size;
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < n; i++) v += part[i];
    return v;
}
GPU_FN float gpu_block_reduce_max(float v, float *part) {
    v = gpu_warp_max(v);
    int lane = threadIdx.x % gpu_warp_size, warp = threadIdx.x / gpu_warp_size,
        n = (blockDim.x + gpu_warp_size - 1) / gpu_warp_size;
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < n; i++) v = part[i] > v || part[i] != part[i] ? part[i] : v;
    return v;
}
#define gpu_block_sum(v)                                \
    ([&](float gpu_v_) {                                \
        GPU_SHARED float gpu_part_[32];                 \
        return gpu_block_reduce_sum(gpu_v_, gpu_part_); \
    }(v))
#define gpu_block_max(v)                                \
    ([&](float gpu_v_) {                                \
        GPU_SHARED float gpu_part_[32];                 \
        return gpu_block_reduce_max(gpu_v_, gpu_part_); \
    }(v))
#endif
