// Stable sort and top-k along one dim, which is never divided among ranks.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

enum { BATCH_KEYS = 1 << 22 };  // long lines are sorted so many keys at a time: 128 MB of scratch

static int64_t sort_batch(int64_t lines, int64_t n) {
    return n <= GPU_SORT_CHUNK ? lines : min_i64(lines, max_i64(1, BATCH_KEYS / n));
}

size_t cuda_sort_scratch(const Node *n, const Operand *in, const Operand *out) {
    Axis a = axis_of(&in[0], (int)node_int(n, ATTR_DIM));
    return a.n <= GPU_SORT_CHUNK ? 0 : 2 * sizeof(GpuKey) * (size_t)(sort_batch(a.outer * a.inner, a.n) * a.n);
}

Status cuda_sort(const KernelArgs *k, Diag *d) {
    int dim = (int)node_int(k->node, ATTR_DIM);
    Axis a = axis_of(&k->in[0], dim);
    GpuSort s = {.src = k->in[0].data, .values = k->out[0].data, .indices = k->out[1].data, .scratch = k->scratch};
    TRY(gpu_type_of(k->in[0].dtype, op_name(k->node->op), &s.type, d));
    s.descending = node_int_or(k->node, ATTR_DESCENDING, k->node->op == OP_TOPK) != 0;
    s.lines = a.outer * a.inner, s.n = a.n, s.inner = a.inner, s.take = k->out[0].dim[dim];
    s.batch = sort_batch(s.lines, s.n);
    CHECK(k->scratch_nbytes >= cuda_sort_scratch(k->node, k->in, k->out), "scratch too small");
    if (s.lines > 0 && s.n > 0 && s.take > 0) gpu_sort(k->device, &s);
    return ST_OK;
}
