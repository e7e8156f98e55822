// sum and amax over any set of dims.
//
// Dims of size 1 are dropped and neighbours of one kind merged, so that kept and reduced dims alternate. The innermost decides:
//   reduced: a result is the sum of rows           [kept...][reduced... x row]      in chunks; a group of threads for each result
//   kept:    neighbouring results together         [kept... x columns][reduced...]  a lane for each few columns
// Where results are few, their steps are cut into pieces that run in parallel and are combined in order. All of it depends on
// shapes only, so results do not change from run to run, nor with the device.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

enum { BLOCK = 256, LANES = 32, WARP = 32, LOADS = 4, ENOUGH_THREADS = 1 << 18, LEAST_STEPS = 8, MOST_PIECES = 4096 };
// Blocks that reduce columns use many registers: no more of them than a device runs at once, else a few run alone at the end.
enum { COLUMN_THREADS = 1 << 17 };

typedef struct Merged {
    int n;
    int64_t size[MAX_DIMS];
    bool reduced[MAX_DIMS];
} Merged;

static Merged merge_dims(const Node *n, const Operand *in) {
    bool marked[MAX_DIMS] = {false};
    const int64_t *list;
    int count = node_ints(n, ATTR_DIMS, &list);
    for (int i = 0; i < count; i++) marked[list[i]] = true;
    Merged m = {0};
    for (int i = 0; i < in->ndim; i++) {
        if (in->dim[i] == 1) continue;
        if (m.n > 0 && m.reduced[m.n - 1] == marked[i]) m.size[m.n - 1] *= in->dim[i];
        else m.reduced[m.n] = marked[i], m.size[m.n++] = in->dim[i];
    }
    return m;
}

static int64_t pow2_at_least(int64_t n, int64_t most) {
    int64_t p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

// Threads for a row of `packs` loads: each has a few of them under way. Where rows are many a warp is enough, and needs no
// barrier.
static int row_group(int64_t packs, int64_t rows) {
    int64_t group = pow2_at_least(ceil_div(packs, LOADS), BLOCK);
    return (int)(group > WARP && rows >= ENOUGH_THREADS / WARP ? WARP : group);
}

static GpuReduction reduction_of(const Node *n, const Operand *in, GpuType type) {
    GpuReduction r = {.columns = 1, .chunks = 1, .type = type};
    Merged m = merge_dims(n, in);
    int64_t stride = operand_elems(in), results = 1, steps = 1;
    for (int i = 0; i < m.n - 1; i++) {
        stride = m.size[i] ? stride / m.size[i] : 0;
        if (m.reduced[i]) r.reduced_size[r.nreduced] = m.size[i], r.reduced_stride[r.nreduced++] = stride, steps *= m.size[i];
        else r.kept_size[r.nkept] = m.size[i], r.kept_stride[r.nkept++] = stride, results *= m.size[i];
    }
    int width = gpu_reduce_width(type);
    int64_t per_thread = 1;
    r.units = results;
    if (m.n > 0 && m.reduced[m.n - 1]) {
        r.row = m.size[m.n - 1];
        r.chunks = ceil_div(r.row, GPU_REDUCE_CHUNK);
        r.group = row_group(ceil_div(min_i64(r.row, GPU_REDUCE_CHUNK), width), results);
        per_thread = r.group;
    } else {
        if (m.n > 0) r.columns = m.size[m.n - 1];
        r.group = (int)pow2_at_least(ceil_div(r.columns, width), LANES);
        r.units *= ceil_div(r.columns, (int64_t)r.group * width);
        per_thread = BLOCK;  // lanes and the rows beside each other
    }
    r.results = results * r.columns;
    r.steps = steps * r.chunks;
    if (r.row == 0 && m.n > 0 && m.reduced[m.n - 1]) r.steps = 0;
    int64_t beside = r.row > 0 ? 1 : BLOCK / r.group;  // steps that a block takes at once
    int64_t enough = r.row > 0 ? ENOUGH_THREADS : COLUMN_THREADS;
    int64_t pieces = min_i64(enough / max_i64(1, r.units * per_thread), r.steps / (LEAST_STEPS * beside));
    if (r.row > LEAST_STEPS * GPU_REDUCE_CHUNK) pieces = min_i64(ENOUGH_THREADS / max_i64(1, r.units * per_thread), r.steps);
    r.pieces = max_i64(1, min_i64(pieces, MOST_PIECES));
    return r;
}

static size_t reduce_scratch(const Node *n, const Operand *in) {
    GpuType t;
    Diag d = {0};
    if (gpu_type_of(in->dtype, "", &t, &d) != ST_OK) return 0;  // the kernel says so
    GpuReduction r = reduction_of(n, in, t);
    return r.pieces > 1 ? (size_t)(8 * r.pieces * r.results) : 0;
}

static Status reduce_run(const KernelArgs *k, bool max, Diag *d) {
    GpuType t, out;
    TRY(gpu_type_of(k->in[0].dtype, op_name(k->node->op), &t, d));
    TRY(gpu_type_of(k->out[0].dtype, op_name(k->node->op), &out, d));
    if (max && t == GPU_BOOL) return diag_error(d, ST_UNSUPPORTED, "device cuda has no amax of bool");
    GpuReduction r = reduction_of(k->node, &k->in[0], t);
    r.src = k->in[0].data, r.dst = k->out[0].data, r.out = out, r.max = max;
    if (r.results == 0) return ST_OK;
    if (r.pieces > 1) {
        CHECK(k->scratch_nbytes >= (size_t)(8 * r.pieces * r.results), "scratch too small");
        r.partial = k->scratch;
    }
    gpu_reduce(k->device, &r);
    return ST_OK;
}

size_t cuda_sum_scratch(const Node *n, const Operand *in, const Operand *out) { return reduce_scratch(n, in); }
size_t cuda_amax_scratch(const Node *n, const Operand *in, const Operand *out) { return reduce_scratch(n, in); }
Status cuda_sum(const KernelArgs *k, Diag *d) { return reduce_run(k, false, d); }
Status cuda_amax(const KernelArgs *k, Diag *d) { return reduce_run(k, true, d); }
