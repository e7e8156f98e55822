// Reading and writing by index. The indexed dim is never divided among ranks, so indices are local. An index out of range is
// recorded for the step's end; what it would have read is zero, what it would have written is left out.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

static Status type_of(const KernelArgs *k, const Operand *o, GpuType *t, Diag *d) {
    return gpu_type_of(o->dtype, op_name(k->node->op), t, d);
}

// ---- rows of a table ------------------------------------------------------------------------------------------------------

static Status rows_of(const KernelArgs *k, const Operand *index, const Operand *table, GpuRows *r, Diag *d) {
    *r = (GpuRows){.index = index->data,
                   .n = operand_elems(index),
                   .nrows = table->dim[0],
                   .rest = operand_count(table, 1, table->ndim),
                   .skip = -1,
                   .dst = k->out[0].data,
                   .node = (int)k->id};
    return type_of(k, table, &r->type, d);
}

Status cuda_embedding(const KernelArgs *k, Diag *d) {
    GpuRows r;
    TRY(rows_of(k, &k->in[1], &k->in[0], &r, d));
    r.src = k->in[0].data;
    if (r.n > 0) gpu_take_rows(k->device, &r);
    return ST_OK;
}

// Sums of bf16 are made in f32 and rounded once at the end.
static size_t sums_scratch(const Operand *out) {
    return out->dtype == DT_BF16 ? ((size_t)operand_elems(out) * 4 + 255) / 256 * 256 : 0;
}

static void *sums_of(const KernelArgs *k) {
    if (k->out[0].dtype != DT_BF16) return k->out[0].data;
    CHECK(k->scratch_nbytes >= sums_scratch(&k->out[0]), "scratch too small");
    return k->scratch;
}

// The sums into the result, if they are not there.
static void sums_done(const KernelArgs *k, const void *sums) {
    if (sums != k->out[0].data) gpu_convert(k->device, k->out[0].data, GPU_BF16, sums, GPU_F32, operand_elems(&k->out[0]));
}

// What they start from: operand 0.
static Status sums_start(const KernelArgs *k, void *sums, Diag *d) {
    if (sums == k->out[0].data) return cuda_copy(k, d);
    gpu_convert(k->device, sums, GPU_F32, k->in[0].data, GPU_BF16, operand_elems(&k->in[0]));
    return ST_OK;
}

// Of rows that are added to rows of `out`.
static size_t rows_scratch(const Operand *index, const Operand *out) {
    size_t sums = sums_scratch(out);
    return out->dtype == DT_I64 ? 0 : sums + gpu_sum_rows_scratch(operand_elems(index), operand_count(out, 1, out->ndim));
}

static void add_rows(const KernelArgs *k, const GpuRows *r, void *sums, bool add) {
    if (r->n == 0) return;
    if (r->type == GPU_I64 || r->rest == 0) gpu_add_rows(k->device, r, sums);  // any order is right
    else gpu_sum_rows(k->device, r, sums, add, (char *)k->scratch + sums_scratch(&k->out[0]));
}

size_t cuda_embedding_grad_scratch(const Node *n, const Operand *in, const Operand *out) { return rows_scratch(&in[0], &out[0]); }

Status cuda_embedding_grad(const KernelArgs *k, Diag *d) {
    GpuRows r;
    GpuType out;
    TRY(rows_of(k, &k->in[0], &k->out[0], &r, d));
    TRY(type_of(k, &k->in[1], &r.type, d));
    TRY(type_of(k, &k->out[0], &out, d));
    if (r.type == GPU_BOOL || (r.type == GPU_I64) != (out == GPU_I64))
        return diag_error(d, ST_UNSUPPORTED, "device cuda has no embedding_grad of %s into %s", dtype_name(k->in[1].dtype),
                          dtype_name(k->out[0].dtype));
    r.src = k->in[1].data, r.skip = node_int_or(k->node, ATTR_SKIP, -1);
    CHECK(k->scratch_nbytes >= rows_scratch(&k->in[0], &k->out[0]), "scratch too small");
    void *sums = sums_of(k);
    gpu_fill(k->device->stream, k->device->nsm, sums, out == GPU_I64 ? GPU_I64 : GPU_F32, r.nrows * r.rest, 0);
    add_rows(k, &r, sums, false);
    sums_done(k, sums);
    return ST_OK;
}

static bool accumulates(const Node *n) { return node_int_or(n, ATTR_ACCUMULATE, 0) != 0; }

// Without accumulating: which source comes last, for every row.
size_t cuda_index_put_scratch(const Node *n, const Operand *in, const Operand *out) {
    return accumulates(n) ? rows_scratch(&in[1], &out[0]) : (size_t)in[0].dim[0] * 8;
}

Status cuda_index_put(const KernelArgs *k, Diag *d) {
    GpuRows r;
    TRY(rows_of(k, &k->in[1], &k->in[0], &r, d));
    r.src = k->in[2].data;
    if (accumulates(k->node)) {
        if (r.type == GPU_BOOL) return diag_error(d, ST_UNSUPPORTED, "device cuda has no index_put that accumulates bool");
        CHECK(k->scratch_nbytes >= rows_scratch(&k->in[1], &k->out[0]), "scratch too small");
        void *sums = sums_of(k);
        TRY(sums_start(k, sums, d));
        add_rows(k, &r, sums, true);
        sums_done(k, sums);
        return ST_OK;
    }
    CHECK(k->scratch_nbytes >= (size_t)r.nrows * 8, "scratch too small");
    TRY(cuda_copy(k, d));
    gpu_fill(k->device->stream, k->device->nsm, k->scratch, GPU_I64, r.nrows, -1);
    if (r.n > 0) gpu_set_rows(k->device, &r, k->scratch);
    return ST_OK;
}

// ---- single elements ------------------------------------------------------------------------------------------------------

// Lines of `small` and `large` at the places of the index operand; dim `dim` of large is indexed.
static Status lines_of(const KernelArgs *k, const Operand *index, const Operand *small, const Operand *large, int dim,
                       GpuLines *l, Diag *d) {
    *l = (GpuLines){.index = index->data,
                    .ndim = index->ndim,
                    .dim = dim,
                    .node = (int)k->id,
                    .n = operand_elems(index),
                    .limit = large->dim[dim]};
    for (int i = 0; i < index->ndim; i++) {
        l->size[i] = index->dim[i];
        l->index_stride[i] = operand_count(index, i + 1, index->ndim);
        l->small_stride[i] = operand_count(small, i + 1, small->ndim);
        l->large_stride[i] = operand_count(large, i + 1, large->ndim);
    }
    return type_of(k, large, &l->type, d);
}

Status cuda_gather(const KernelArgs *k, Diag *d) {
    GpuLines l;
    TRY(lines_of(k, &k->in[1], &k->out[0], &k->in[0], (int)node_int(k->node, ATTR_DIM), &l, d));
    l.src = k->in[0].data, l.dst = k->out[0].data;
    if (l.n > 0) gpu_gather(k->device, &l);
    return ST_OK;
}

// A gather along the last dim whose index has one element there.
Status cuda_pick(const KernelArgs *k, Diag *d) {
    const Operand *x = &k->in[0];
    Operand index = k->in[1], out = k->out[0];
    index.dim[index.ndim++] = out.dim[out.ndim++] = 1;
    GpuLines l;
    TRY(lines_of(k, &index, &out, x, x->ndim - 1, &l, d));
    l.src = x->data, l.dst = out.data;
    if (l.n > 0) gpu_gather(k->device, &l);
    return ST_OK;
}

size_t cuda_scatter_add_scratch(const Node *n, const Operand *in, const Operand *out) { return sums_scratch(&out[0]); }

Status cuda_scatter_add(const KernelArgs *k, Diag *d) {
    GpuLines l;
    TRY(lines_of(k, &k->in[1], &k->in[2], &k->out[0], (int)node_int(k->node, ATTR_DIM), &l, d));
    if (l.type == GPU_BOOL) return diag_error(d, ST_UNSUPPORTED, "device cuda has no scatter_add of bool");
    void *sums = sums_of(k);
    TRY(sums_start(k, sums, d));
    l.src = k->in[2].data, l.dst = sums;
    if (l.n > 0) gpu_scatter_add(k->device, &l);
    sums_done(k, sums);
    return ST_OK;
}

Status cuda_histogram(const KernelArgs *k, Diag *d) {
    int64_t bins = k->out[0].dim[0], n = operand_elems(&k->in[0]);
    gpu_fill(k->device->stream, k->device->nsm, k->out[0].data, GPU_I64, bins, 0);
    if (n > 0 && bins > 0) gpu_histogram(k->device, k->in[0].data, n, k->out[0].data, bins);
    return ST_OK;
}
