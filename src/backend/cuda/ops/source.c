// Values made from nothing, in global coordinates. (full: movement.c; parameters, inputs and constants are written by the
// runtime.)
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

// One launch for each interval of axis `a` of the result.
static Status each_place(const KernelArgs *k, const Axis *a, void (*launch)(const KernelArgs *, const GpuPlace *, int64_t),
                         int64_t extent, Diag *d) {
    const Operand *o = &k->out[0];
    GpuPlace p = {.outer = a->outer, .inner = a->inner, .pitch = a->n * a->inner};
    TRY(gpu_type_of(o->dtype, op_name(k->node->op), &p.type, d));
    int64_t pos = 0;
    for (int i = 0; i < a->nspan; i++) {
        Span s = axis_spans(a)[i];
        p.begin = s.begin, p.end = s.end, p.dst = operand_at(o, pos * a->inner);
        if (p.outer > 0 && p.inner > 0 && s.begin < s.end) launch(k, &p, extent);
        pos += s.end - s.begin;
    }
    return ST_OK;
}

static void launch_iota(const KernelArgs *k, const GpuPlace *p, int64_t extent) {
    gpu_iota(k->device, p, node_int(k->node, ATTR_START), node_int(k->node, ATTR_STEP));
}

Status cuda_iota(const KernelArgs *k, Diag *d) {
    Axis a = axis_of(&k->out[0], (int)node_int(k->node, ATTR_DIM));
    return each_place(k, &a, launch_iota, 0, d);
}

static void launch_random(const KernelArgs *k, const GpuPlace *p, int64_t extent) {
    gpu_random(k->device, p, extent, (unsigned long long)node_int(k->node, ATTR_SEED));
}

Status cuda_random(const KernelArgs *k, Diag *d) {
    const Operand *o = &k->out[0];
    Axis a = {.outer = 1, .n = 1, .inner = operand_elems(o), .nspan = 1, .whole = {0, 1}};
    if (o->sdim >= 0) a = axis_of(o, o->sdim);
    return each_place(k, &a, launch_random, o->sdim >= 0 ? o->global[o->sdim] : 1, d);
}
