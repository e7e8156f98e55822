// iota and random.
#include "backend/cuda/device/gpu_util.h"
#include "backend/cuda/device/launch.h"

struct SourceParams {
    GpuPlace p;
    i64 start, step, extent;
    u64 stream;
    const DeviceStep *now;
};

GPU_FN i64 source_outer(const GpuPlace &p, i64 i, i64 *rest) {
    i64 run = (p.end - p.begin) * p.inner, o = p.outer == 1 ? 0 : i / run;
    *rest = i - o * run;
    return o;
}

GPU_KERNEL(source_iota, SourceParams, UTIL_BLOCK) {
    const GpuPlace &q = p.p;
    i64 n = q.outer * (q.end - q.begin) * q.inner;
    for (i64 i = gpu_thread(); i < n; i += gpu_nthreads()) {
        i64 rest, o = source_outer(q, i, &rest), at = o * q.pitch + rest;
        i64 v = p.start + (q.begin + (q.inner == 1 ? rest : rest / q.inner)) * p.step;
        if (q.type == GPU_I64) ((i64 *)q.dst)[at] = v;
        else if (q.type == GPU_F32) ((float *)q.dst)[at] = (float)v;
        else ((bf16 *)q.dst)[at] = to_bf16((float)v);
    }
}

// base/random.h, bit for bit.
GPU_FN u64 source_mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
GPU_FN u64 source_key(u64 run_seed, i64 step, u64 stream) {
    u64 z = source_mix(run_seed + 0x9E3779B97F4A7C15ull);
    z = source_mix(z ^ ((u64)step + 0xD1B54A32D192ED03ull));
    return source_mix(z ^ (stream + 0x8CB92BA72F3D8DD7ull));
}

GPU_FN float source_uniform(u64 z) { return (float)(u32)(source_mix(z) >> 40) * 5.9604644775390625e-8f; }  // 2^-24
static const u64 SOURCE_STEP = 0x9E3779B97F4A7C15ull;

GPU_KERNEL(source_random, SourceParams, UTIL_BLOCK) {
    const GpuPlace &q = p.p;
    i64 n = q.outer * (q.end - q.begin) * q.inner;
    u64 key = source_key(p.now->run_seed, p.now->step, p.stream);
    for (i64 i = gpu_thread(); i < n; i += gpu_nthreads()) {
        i64 rest, o = source_outer(q, i, &rest), at = o * q.pitch + rest;
        i64 index = (o * p.extent + q.begin) * q.inner + rest;
        float v = source_uniform(key + ((u64)index + 1) * SOURCE_STEP);
        if (q.type == GPU_F32) ((float *)q.dst)[at] = v;
        else ((bf16 *)q.dst)[at] = to_bf16(v);
    }
}

// The same for one run of f32, four at a time.
GPU_KERNEL(source_random4, SourceParams, UTIL_BLOCK) {
    const GpuPlace &q = p.p;
    i64 n = (q.end - q.begin) * q.inner, first = q.begin * q.inner;
    u64 key = source_key(p.now->run_seed, p.now->step, p.stream);
    for (i64 i = gpu_thread() * 4; i < n; i += gpu_nthreads() * 4) {
        u64 z = key + ((u64)(first + i) + 1) * SOURCE_STEP;
        Pack<float> v;
        GPU_UNROLL for (int j = 0; j < 4; j++) v.v[j] = source_uniform(z), z += SOURCE_STEP;
        if (i + 4 <= n) *(Pack<float> *)((float *)q.dst + i) = v;
        else
            for (int j = 0; j < n - i; j++) ((float *)q.dst)[i + j] = v.v[j];
    }
}

extern "C" void gpu_iota(const Device *dev, const GpuPlace *p, i64 start, i64 step) {
    SourceParams q = {*p, start, step, 0, 0, 0};
    GPU_LAUNCH(source_iota, dev->stream, util_grid(dev->nsm, p->outer * (p->end - p->begin) * p->inner, UTIL_BLOCK), util_block(),
               0, q);
}

extern "C" void gpu_random(const Device *dev, const GpuPlace *p, i64 extent, u64 stream) {
    SourceParams q = {*p, 0, 0, extent, stream, dev->step};
    i64 n = p->outer * (p->end - p->begin) * p->inner;
    GpuDim block = util_block();
    if (p->outer == 1 && p->type == GPU_F32 && util_aligned(p->dst, 16))
        GPU_LAUNCH(source_random4, dev->stream, util_grid_many(dev->nsm, n, 4 * UTIL_BLOCK), block, 0, q);
    else
        GPU_LAUNCH(source_random, dev->stream, util_grid_many(dev->nsm, n, UTIL_BLOCK), block, 0, q);
}
