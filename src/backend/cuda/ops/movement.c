// Movement of data: every op is a few boxes (box.h). Ops along one axis work in global coordinates: a rank holds intervals
// (spans) of a sharded axis, so the intervals of the result, carried over to the source, are intersected with the intervals of
// the source.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/operand.h"

static Status type_of(const KernelArgs *k, const Operand *o, GpuType *t, Diag *d) {
    return gpu_type_of(o->dtype, op_name(k->node->op), t, d);
}

static void launch_box(const KernelArgs *k, const GpuBox *b) { gpu_copy_box(k->device->stream, k->device->nsm, b); }

static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Every element of `out` at position g of the axis from position start + g * step of `in`, where that lies in [0, extent).
static Status copy_axis(const KernelArgs *k, const Operand *out, const Operand *in, int dim, int64_t start, int64_t step,
                        int64_t extent, Diag *d) {
    Axis to = axis_of(out, dim), from = axis_of(in, dim);
    int64_t to_pos = 0, wanted = 0, found = 0;
    CHECK(to.outer == from.outer && to.inner == from.inner, "%s: operands differ off the axis", op_name(k->node->op));
    GpuBox b = {.ndim = 3, .size = {to.outer, 0, to.inner}};
    b.dst_stride[0] = to.n * to.inner, b.dst_stride[1] = to.inner, b.dst_stride[2] = 1;
    b.src_stride[0] = from.n * from.inner, b.src_stride[1] = step * from.inner, b.src_stride[2] = 1;
    TRY(type_of(k, out, &b.type, d));
    for (int i = 0; i < to.nspan; i++) {
        Span t = axis_spans(&to)[i];
        // start + g*step in [0, extent)
        int64_t begin = max_i64(t.begin, ceil_div(max_i64(-start, 0), step));
        int64_t end = min_i64(t.end, floor_div(extent - 1 - start, step) + 1), from_pos = 0;
        wanted += max_i64(end - begin, 0);
        for (int j = 0; j < from.nspan; j++) {
            Span f = axis_spans(&from)[j];
            int64_t lo = max_i64(begin, -floor_div(start - f.begin, step)),
                    hi = min_i64(end, floor_div(f.end - 1 - start, step) + 1);
            if (lo < hi) {
                b.size[1] = hi - lo;
                b.dst = operand_at(out, (to_pos + lo - t.begin) * to.inner);
                b.src = operand_at(in, (from_pos + start + lo * step - f.begin) * from.inner);
                launch_box(k, &b);
                found += hi - lo;
            }
            from_pos += f.end - f.begin;
        }
        to_pos += t.end - t.begin;
    }
    CHECK(found == wanted, "%s: this rank lacks %lld elements of its source", op_name(k->node->op), (long long)(wanted - found));
    return ST_OK;
}

Status cuda_slice(const KernelArgs *k, Diag *d) {
    int dim = (int)node_int(k->node, ATTR_DIM);
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    return copy_axis(k, &k->out[0], &k->in[0], dim, node_int(k->node, ATTR_START), node_int_or(k->node, ATTR_STEP, 1),
                     k->in[0].global[dim], d);
}

// The parts of the result's intervals that lie in [begin, end) of the axis become `value`.
static Status fill_axis(const KernelArgs *k, const Operand *out, int dim, int64_t begin, int64_t end, double value, Diag *d) {
    Axis a = axis_of(out, dim);
    GpuBox b = {.ndim = 3, .size = {a.outer, 0, a.inner}, .dst_stride = {a.n * a.inner, a.inner, 1}};
    TRY(type_of(k, out, &b.type, d));
    int64_t pos = 0;
    for (int i = 0; i < a.nspan; i++) {
        Span s = axis_spans(&a)[i];
        int64_t lo = max_i64(begin, s.begin), hi = min_i64(end, s.end);
        if (lo < hi) {
            b.size[1] = hi - lo, b.dst = operand_at(out, (pos + lo - s.begin) * a.inner);
            gpu_fill_box(k->device->stream, k->device->nsm, &b, value);
        }
        pos += s.end - s.begin;
    }
    return ST_OK;
}

Status cuda_pad(const KernelArgs *k, Diag *d) {
    int dim = (int)node_int(k->node, ATTR_DIM);
    const Operand *in = &k->in[0], *out = &k->out[0];
    if (operand_elems(out) == 0) return ST_OK;
    int64_t lo = node_int(k->node, ATTR_LO), n = in->global[dim];
    double value = node_float(k->node, ATTR_VALUE);
    TRY(fill_axis(k, out, dim, 0, lo, value, d));
    TRY(fill_axis(k, out, dim, lo + n, out->global[dim], value, d));
    return copy_axis(k, out, in, dim, -lo, 1, n, d);
}

Status cuda_concat(const KernelArgs *k, Diag *d) {
    int dim = (int)node_int(k->node, ATTR_DIM);
    int64_t at = 0;
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    for (int i = 0; i < k->nin; i++) {
        TRY(copy_axis(k, &k->out[0], &k->in[i], dim, -at, 1, k->in[i].global[dim], d));
        at += k->in[i].global[dim];
    }
    return ST_OK;
}

Status cuda_copy(const KernelArgs *k, Diag *d) {
    GpuBox b = {.dst = k->out[0].data,
                .src = k->in[0].data,
                .ndim = 1,
                .size = {operand_elems(&k->out[0])},
                .dst_stride = {1},
                .src_stride = {1}};
    TRY(type_of(k, &k->out[0], &b.type, d));
    if (b.dst != b.src) launch_box(k, &b);
    return ST_OK;
}

Status cuda_reshard(const KernelArgs *k, Diag *d) {
    int dim = k->out[0].sdim;
    if (dim < 0) return cuda_copy(k, d);
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    return copy_axis(k, &k->out[0], &k->in[0], dim, 0, 1, k->in[0].global[dim], d);
}

Status cuda_full(const KernelArgs *k, Diag *d) {
    GpuType t;
    TRY(type_of(k, &k->out[0], &t, d));
    gpu_fill(k->device->stream, k->device->nsm, k->out[0].data, t, operand_elems(&k->out[0]), node_float(k->node, ATTR_VALUE));
    return ST_OK;
}

// The whole result, dim i of it at src_stride[i] in the source.
static Status copy_view(const KernelArgs *k, const int64_t *src_stride, Diag *d) {
    const Operand *out = &k->out[0];
    GpuBox b = {.dst = out->data, .src = k->in[0].data, .ndim = out->ndim};
    TRY(type_of(k, out, &b.type, d));
    for (int i = out->ndim - 1; i >= 0; i--) {
        b.size[i] = out->dim[i], b.src_stride[i] = src_stride[i];
        b.dst_stride[i] = operand_count(out, i + 1, out->ndim);
    }
    launch_box(k, &b);
    return ST_OK;
}

Status cuda_broadcast(const KernelArgs *k, Diag *d) {
    int64_t stride[MAX_DIMS];
    const Operand *in = &k->in[0];
    for (int i = 0; i < in->ndim; i++) stride[i] = in->dim[i] == 1 ? 0 : operand_count(in, i + 1, in->ndim);
    return copy_view(k, stride, d);
}

Status cuda_permute(const KernelArgs *k, Diag *d) {
    int64_t stride[MAX_DIMS];
    const int64_t *dims;
    int n = node_ints(k->node, ATTR_DIMS, &dims);
    for (int i = 0; i < n; i++) stride[i] = operand_count(&k->in[0], (int)dims[i] + 1, k->in[0].ndim);
    return copy_view(k, stride, d);
}
