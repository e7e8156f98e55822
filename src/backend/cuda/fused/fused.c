// Fused nodes and single pointwise ones: kernels generated for each node (codegen_*.c), launched here; column sums are finished
// here.
#include "backend/cuda/fused/codegen_expr.h"
#include "backend/cuda/fused/codegen_fused.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/module.h"

// Adds up parts [n, ncol] by columns: tiles of 32 columns, 32 sums each over every 32nd part of a chunk, then those in order.
static const char columns_source[] =
    "#include \"gpu.h\"\n"
    "struct ColumnParams { float *dst; const float *part; i64 nparts, ncol, chunk; };\n"
    "GPU_KERNEL(columns, ColumnParams, 1024) {\n"
    "    GPU_SHARED float sums[1024];\n"
    "    const i64 first = gpu_block_y * p.chunk, last = first + p.chunk < p.nparts ? first + p.chunk : p.nparts;\n"
    "    for (i64 tile = gpu_block_x * 32; tile < p.ncol; tile += gpu_grid_x * 32) {\n"
    "        for (i64 t = gpu_thread_x; t < 1024; t += gpu_block_threads) {\n"
    "            const i64 c = tile + t % 32;\n"
    "            float a = 0;\n"
    "            if (c < p.ncol)\n"
    "                _Pragma(\"unroll 8\") for (i64 i = first + t / 32; i < last; i += 32) a += p.part[i * p.ncol + c];\n"
    "            sums[t] = a;\n"
    "        }\n"
    "        gpu_sync();\n"
    "        for (i64 t = gpu_thread_x; t < 32; t += gpu_block_threads) {\n"
    "            float a = 0;\n"
    "            for (int i = 0; i < 32; i++) a += sums[i * 32 + t];\n"
    "            if (tile + t < p.ncol) p.dst[gpu_block_y * p.ncol + tile + t] = a;\n"
    "        }\n"
    "        gpu_sync();\n"
    "    }\n"
    "}\n";
typedef struct ColumnParams {
    void *dst;
    const void *part;
    int64_t nparts, ncol, chunk;
} ColumnParams;
enum { COLUMN_CHUNKS = 64, COLUMN_ONE_STAGE = 2048, MAX_GRID = 65535 };

typedef struct FusedState {
    FusedSpace space;
    FusedPlan plan;
    bool idle;               // no positions: nothing but column sums of nothing
    GpuFunction *fn[FUSED_MAX_LAUNCHES], *columns;
} FusedState;

// Room for the second stage of column sums, where there are many parts.
static void add_second_stage(FusedPlan *p) {
    int64_t most = 0;
    for (int i = 0; i < p->ncolumns; i++)
        if (p->columns[i].nparts > COLUMN_ONE_STAGE) most = max_i64(most, p->columns[i].ncols);
    p->second_offset = round_up((int64_t)p->scratch_nbytes, 256);
    if (most) p->scratch_nbytes = (size_t)(p->second_offset + most * COLUMN_CHUNKS * 4);
}

static Status make_state(Arena *a, const Node *n, const Operand *in, const Operand *out, FusedState *st, Diag *d) {
    TRY(fused_space(a, n, in, out, &st->space, d));
    const FusedSpace *s = &st->space;
    bool row_results = false;  // an empty row has a sum
    for (int j = 0; j < s->nout; j++) row_results = row_results || s->out_kind[j] == OUT_ROW;
    st->idle = s->empty && !(row_results && fused_nrows(s) > 0);
    TRY(fused_plan(a, s, &st->plan, d));
    add_second_stage(&st->plan);
    return ST_OK;
}

size_t cuda_fused_scratch(const Node *n, const Operand *in, const Operand *out) {
    Arena *a = arena_new();
    Diag d = {0};  // what is wrong, `prepare` says
    FusedState *st = a ? ARENA_NEW(a, FusedState) : NULL;
    size_t nbytes = st && make_state(a, n, in, out, st, &d) == ST_OK ? st->plan.scratch_nbytes : 0;
    arena_free(a);
    return nbytes;
}

Status cuda_fused_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    Arena *a = module_arena(dev);
    if (!a) return diag_error(d, ST_UNSUPPORTED, "kernels cannot be compiled: no compiler at run time (NVRTC)");
    FusedState *st = ARENA_NEW(a, FusedState);
    TRY(make_state(a, k->node, k->in, k->out, st, d));
    const char *what = k->node->source ? arena_printf(a, "%s of %s", st->space.label, k->node->source) : st->space.label;
    for (int i = 0; i < st->plan.nlaunch && !st->idle; i++)
        TRY(module_function(dev, st->plan.source, st->plan.launch[i].name, what, &st->fn[i], d));
    if (st->plan.ncolumns) TRY(module_function(dev, columns_source, "columns", "column sums", &st->columns, d));
    *state = st;
    return ST_OK;
}

// ---- launching ----------------------------------------------------------------------------------------------------------

// n / d as (mulhi(n, m) + n) >> s for n < 2^31 (Granlund and Montgomery 1994).
static void put_divisor(char *at, int64_t divisor) {
    uint32_t d = (uint32_t)divisor, s = 0;
    while (((uint64_t)1 << s) < d) s++;
    uint32_t m = (uint32_t)(((((uint64_t)1 << s) - d) << 32) / d + 1);
    memcpy(at, (uint32_t[]){d, m, s, 0}, 16);
}

static size_t put_params(const FusedState *st, const KernelArgs *k, char *at) {
    size_t n = 0;
    for (int i = 0; i < st->plan.nslot; i++) {
        const Slot *s = &st->plan.slot[i];
        const void *p = NULL;
        int64_t value = s->kind == SLOT_NODE ? k->id : s->value;
        bool number = s->kind == SLOT_VALUE || s->kind == SLOT_NODE;
        if (s->kind == SLOT_DIV) {
            put_divisor(at + n, s->value);
            n += 16;
            continue;
        }
        if (s->kind == SLOT_IN) p = k->in[s->value].data;
        if (s->kind == SLOT_OUT) p = k->out[s->value].data;
        if (s->kind == SLOT_SCRATCH) p = (char *)k->scratch + s->value;
        if (s->kind == SLOT_ERROR) p = k->device->error;
        memcpy(at + n, number ? (const void *)&value : (const void *)&p, 8);
        n += 8;
    }
    return n;
}

static int64_t operand_bytes(const Operand *x) {
    int64_t n = dtype_nbytes(x->dtype);
    for (int i = 0; i < x->ndim; i++) n *= x->dim[i];
    return n;
}

// An output may lie on an input that is read at the very elements that are written, by the thread that writes them.
static bool may_take_over(const FusedSpace *s, int i, int j, const KernelArgs *k) {
    const Access *x = &s->in[i], *y = &s->out[j];
    if (s->out_kind[j] == OUT_COL) return true;  // written by a later launch
    if (k->in[i].data != k->out[j].data || dtype_nbytes(x->dtype) != dtype_nbytes(y->dtype)) return false;
    if (s->out_kind[j] == OUT_WHOLE) return x->identity;
    for (int d = 0; d < s->ndim; d++)
        if (x->stride[d] != y->stride[d]) return false;
    return x->base == 0 && x->nwin == 0;
}

static Status check_addresses(const FusedSpace *s, const KernelArgs *k, Diag *d) {
    for (int n = 0; n < s->nin + s->nout; n++) {
        const Operand *x = n < s->nin ? &k->in[n] : &k->out[n - s->nin];
        if ((uintptr_t)x->data % 16)
            return diag_error(d, ST_UNSUPPORTED, "%s: an operand does not start at a multiple of 16 bytes", s->label);
    }
    for (int j = 0; j < s->nout; j++)
        for (int i = 0; i < s->nin; i++) {
            const char *a = k->in[i].data, *b = k->out[j].data;
            bool apart = a + operand_bytes(&k->in[i]) <= b || b + operand_bytes(&k->out[j]) <= a;
            if (apart || may_take_over(s, i, j, k)) continue;
            return diag_error(d, ST_UNSUPPORTED, "%s: output %d lies over input %d, which is read elsewhere too", s->label, j, i);
        }
    return ST_OK;
}

static Status add_columns(const FusedState *st, const FusedColumns *c, int64_t nparts, const KernelArgs *k, Diag *d) {
    char *scratch = k->scratch;
    ColumnParams p = {k->out[c->out].data, scratch + c->offset, nparts, c->ncols, max_i64(1, nparts)};
    if (c->ncols == 0) return ST_OK;
    unsigned tiles = (unsigned)min_i64(ceil_div(c->ncols, 32), MAX_GRID);
    if (nparts > COLUMN_ONE_STAGE) {
        p.dst = scratch + st->plan.second_offset;
        p.chunk = ceil_div(nparts, COLUMN_CHUNKS);
        unsigned chunks = (unsigned)ceil_div(nparts, p.chunk);
        TRY(module_launch(k->device, st->columns, (Grid){tiles, chunks, 1}, 1024, 0, &p, sizeof p, d));
        p = (ColumnParams){k->out[c->out].data, p.dst, chunks, c->ncols, chunks};
    }
    return module_launch(k->device, st->columns, (Grid){tiles, 1, 1}, 1024, 0, &p, sizeof p, d);
}

Status cuda_fused(const KernelArgs *k, Diag *d) {
    const FusedState *st = k->state;
    CHECK(st, "a fused node that was not prepared");
    CHECK(k->scratch_nbytes >= st->plan.scratch_nbytes, "scratch too small");
    TRY(check_addresses(&st->space, k, d));
    char params[FUSED_MAX_PARAMS];
    size_t nparams = put_params(st, k, params);
    for (int i = 0; i < st->plan.nlaunch && !st->idle; i++) {
        const FusedLaunch *l = &st->plan.launch[i];
        TRY(module_launch(k->device, st->fn[i], (Grid){(unsigned)l->blocks, 1, 1}, l->threads, 0, params, nparams, d));
    }
    for (int i = 0; i < st->plan.ncolumns; i++) {
        const FusedColumns *c = &st->plan.columns[i];
        TRY(add_columns(st, c, st->idle ? 0 : c->nparts, k, d));
    }
    return ST_OK;
}

size_t cuda_pointwise_scratch(const Node *n, const Operand *in, const Operand *out) { return cuda_fused_scratch(n, in, out); }
Status cuda_pointwise_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    return cuda_fused_prepare(dev, k, state, d);
}
Status cuda_pointwise(const KernelArgs *k, Diag *d) { return cuda_fused(k, d); }
