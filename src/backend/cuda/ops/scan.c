// logsumexp and cumsum: along one dim, which is never divided among ranks.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

// Lines are cut into pieces where fewer than these would run at once: each piece costs a second reading.
enum { ENOUGH_WARPS = 2048, ENOUGH_THREADS = 1 << 17, MOST_PIECES = 4096 };
enum { LEAST_ROW = 256, LEAST_COLUMN = 16 };  // elements of a piece: a multiple of any load's

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

// Depends on shapes only.
static void cumsum_cut(GpuScan *s) {
    int64_t width = gpu_reduce_width(s->type), least = s->inner == 1 ? LEAST_ROW : LEAST_COLUMN;
    int64_t beside = s->inner == 1 ? s->outer : s->outer * ceil_div(s->inner, width);
    int64_t pieces = (s->inner == 1 ? ENOUGH_WARPS : ENOUGH_THREADS) / max_i64(1, beside);
    pieces = max_i64(1, min_i64(min_i64(pieces, s->n / least), MOST_PIECES));
    s->length = ceil_div(ceil_div(max_i64(1, s->n), pieces), least) * least;
    s->pieces = max_i64(1, ceil_div(s->n, s->length));
}

static size_t cumsum_bytes(const GpuScan *s) { return s->pieces > 1 ? (size_t)(8 * s->pieces * s->outer * s->inner) : 0; }

size_t cuda_cumsum_scratch(const Node *n, const Operand *in, const Operand *out) {
    Diag d = {0};
    Axis a = axis_of(&in[0], (int)node_int(n, ATTR_DIM));
    GpuScan s = {.outer = a.outer, .n = a.n, .inner = a.inner};
    if (gpu_type_of(in[0].dtype, "", &s.type, &d) != ST_OK) return 0;  // the kernel says so
    cumsum_cut(&s);
    return cumsum_bytes(&s);
}

Status cuda_cumsum(const KernelArgs *k, Diag *d) {
    GpuScan s;
    TRY(scan_of(k, &s, d));
    if (s.type == GPU_BOOL) return diag_error(d, ST_UNSUPPORTED, "device cuda has no cumsum of bool");
    cumsum_cut(&s);
    if (s.pieces > 1) {
        CHECK(k->scratch_nbytes >= cumsum_bytes(&s), "scratch too small");
        s.partial = k->scratch;
    }
    if (s.outer * s.n * s.inner > 0) gpu_cumsum(k->device, &s);
    return ST_OK;
}
