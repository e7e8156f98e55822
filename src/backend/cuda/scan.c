// logsumexp and cumsum: along one dim, which is never divided among ranks.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/operand.h"

enum { PIECE = 256 };  // elements of a line that one thread sums in order, at least

static Status scan_of(const KernelArgs *k, GpuScan *s, Diag *d) {
    Axis a = axis_of(&k->in[0], (int)node_int(k->node, ATTR_DIM));
    *s = (GpuScan){.src = k->in[0].data, .dst = k->out[0].data, .outer = a.outer, .n = a.n, .inner = a.inner, .pieces = 1};
    s->reverse = node_int_or(k->node, ATTR_REVERSE, 0) != 0;
    return gpu_type_of(k->in[0].dtype, op_name(k->node->op), &s->type, d);
}

size_t cuda_logsumexp_scratch(const Node *n, const Operand *in, const Operand *out) { return 0; }

Status cuda_logsumexp(const KernelArgs *k, Diag *d) {
    GpuScan s;
    TRY(scan_of(k, &s, d));
    if (s.outer * s.inner > 0) gpu_logsumexp(k->device, &s);
    return ST_OK;
}

// About the root of n, so that neither the pieces nor their sums are many to go through in order.
static int64_t cumsum_pieces(int64_t n) {
    int64_t length = PIECE;
    while (length * length < n) length *= 2;
    return max_i64(1, ceil_div(n, length));
}

size_t cuda_cumsum_scratch(const Node *n, const Operand *in, const Operand *out) {
    int64_t length = in[0].dim[node_int(n, ATTR_DIM)], pieces = cumsum_pieces(length);
    return pieces > 1 ? (size_t)(8 * pieces * (operand_elems(&in[0]) / length)) : 0;
}

Status cuda_cumsum(const KernelArgs *k, Diag *d) {
    GpuScan s;
    TRY(scan_of(k, &s, d));
    if (s.type == GPU_BOOL) return diag_error(d, ST_UNSUPPORTED, "device cuda has no cumsum of bool");
    s.pieces = cumsum_pieces(s.n);
    if (s.pieces > 1) {
        CHECK(k->scratch_nbytes >= (size_t)(8 * s.pieces * s.outer * s.inner), "scratch too small");
        s.partial = k->scratch;
    }
    if (s.outer * s.n * s.inner > 0) gpu_cumsum(k->device, &s);
    return ST_OK;
}
