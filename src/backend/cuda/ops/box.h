// Copies and fills of boxes of memory, the workhorse of movement ops, exchanges and the device's own calls. The launchers are in
// box.cu and the same for the GPU and the emulation. Plain C and C++.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

typedef enum GpuType { GPU_F32, GPU_BF16, GPU_I64, GPU_BOOL } GpuType;
typedef enum GpuReduce { GPU_OVERWRITE, GPU_SUM, GPU_MAX } GpuReduce;  // of bools both are `or`; a maximum keeps NaN
enum { GPU_BOX_DIMS = 8 };

// dst[i . dst_stride] = src[i . src_stride] for every index i of `size`. Strides are in elements; a source stride may be 0
// (broadcast). No two elements of dst coincide. Any strides and sizes are right; dense inner dims, and transpositions of two
// dims, are fast.
typedef struct GpuBox {
    void *dst;          // of the first element
    const void *src;
    int ndim;
    GpuType type;
    GpuReduce reduce;
    long long size[GPU_BOX_DIMS], dst_stride[GPU_BOX_DIMS], src_stride[GPU_BOX_DIMS];
} GpuBox;

// Launches on `stream`; `nsm` sizes the grid. Nothing is launched for a box without elements.
void gpu_copy_box(void *stream, int nsm, const GpuBox *b);
// n elements of `value` (a bool: value != 0).
void gpu_fill(void *stream, int nsm, void *dst, GpuType t, long long n, double value);
// The elements of dst's box; src and its strides do not matter.
void gpu_fill_box(void *stream, int nsm, const GpuBox *b, double value);

#ifdef __cplusplus
}
#else
#include "backend/backend.h"
// The box of a copy between dense arrays (box.c).
Status gpu_box_of(const BoxCopy *b, GpuBox *out, Diag *d);
// f32, bf16, i64, bool; anything else is an error that names `what`.
Status gpu_type_of(DType t, const char *what, GpuType *out, Diag *d);
#endif
