// Boxes of dense arrays as boxes of strides.
#include "backend/cuda/ops/box.h"

Status gpu_type_of(DType t, const char *what, GpuType *out, Diag *d) {
    switch (t) {
    case DT_F32: *out = GPU_F32; return ST_OK;
    case DT_BF16: *out = GPU_BF16; return ST_OK;
    case DT_I64: *out = GPU_I64; return ST_OK;
    case DT_BOOL: *out = GPU_BOOL; return ST_OK;
    default:
        return diag_error(d, ST_UNSUPPORTED, "%s: device cuda has no %s; it has f32, bf16, i64 and bool", what, dtype_name(t));
    }
}

Status gpu_box_of(const BoxCopy *b, GpuBox *out, Diag *d) {
    *out = (GpuBox){.ndim = b->ndim, .reduce = b->reduce == RED_SUM ? GPU_SUM : b->reduce == RED_MAX ? GPU_MAX : GPU_OVERWRITE};
    if (b->ndim > GPU_BOX_DIMS) return diag_error(d, ST_UNSUPPORTED, "a copy of %d dims; at most %d", b->ndim, GPU_BOX_DIMS);
    TRY(gpu_type_of(b->dtype, "a copy", &out->type, d));
    int64_t to = 0, from = 0, to_stride = 1, from_stride = 1;
    for (int i = b->ndim - 1; i >= 0; i--) {
        out->size[i] = b->size[i], out->dst_stride[i] = to_stride, out->src_stride[i] = from_stride;
        to += b->dst_start[i] * to_stride, from += b->src_start[i] * from_stride;
        to_stride *= b->dst_dim[i], from_stride *= b->src_dim[i];
    }
    out->dst = (char *)b->dst + to * dtype_nbytes(b->dtype);
    out->src = (const char *)b->src + from * dtype_nbytes(b->dtype);
    return ST_OK;
}
