// Our own attention on the host: where things are in scratch, what the kernels are told, what is launched. See flash.h.
#include "backend/cuda/attention/flash.h"
#include <math.h>
#include <string.h>
#include "backend/cuda/attention/flash_codegen.h"
#include "backend/cuda/attention/flash_params.h"
#include "backend/cuda/device/module.h"
#include "base/containers.h"

_Static_assert(sizeof(FlashParams) <= 4096, "parameters of a launch");

// ---- geometry -------------------------------------------------------------------------------------------------------------
typedef struct Flash {
    const Node *n;
    const Operand *in, *q, *k, *v, *vec;
    FlashForm form;
    int nvec;
    bool grad, over_k[FLASH_MAX_VEC];
    int64_t batch, heads, nq, nk, nqb, nkb, ntile;  // local; blocks of verdicts; tiles of queries
    int64_t verdict_b, verdict_h, nrow;
} Flash;

static Flash flash_of(const Node *n, const Operand *in, const Operand *out) {
    int first = flash_first_vec(n);
    const Program *p = node_prog(n, ATTR_PROG);
    Flash f = {.n = n, .in = in, .q = &in[0], .k = &in[1], .v = &in[2], .vec = in + first, .nvec = n->nin - first};
    f.form = flash_form(n, in, out);
    f.grad = n->op == OP_ATTENTION_GRAD;
    f.batch = in[0].dim[0], f.heads = in[0].dim[1], f.nq = in[0].dim[2], f.nk = in[1].dim[2];
    f.nqb = ceil_div(f.nq, FLASH_BLOCK), f.nkb = ceil_div(f.nk, FLASH_BLOCK), f.ntile = ceil_div(f.nq, FLASH_TILE);
    bool on_b = false, on_h = false;
    for (int i = 0; p && i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        on_b |= x->code == PROG_INDEX_B, on_h |= x->code == PROG_INDEX_H;
        if (x->code != PROG_VEC_Q && x->code != PROG_VEC_K) continue;
        on_b |= f.vec[x->a].global[0] > 1, on_h |= f.vec[x->a].global[1] > 1;
        f.over_k[x->a] |= x->code == PROG_VEC_K;
    }
    f.verdict_h = on_h, f.verdict_b = !on_b ? 0 : on_h ? f.heads : 1;
    f.nrow = (on_b ? f.batch : 1) * (on_h ? f.heads : 1);
    return f;
}

// ---- scratch --------------------------------------------------------------------------------------------------------------
typedef struct FlashScratch {
    size_t verdict, bound_q, bound_k, range[FLASH_MAX_VEC], delta, max, unsum, flags, any, nbytes;
} FlashScratch;

static size_t take(FlashScratch *s, int64_t n, size_t size) {
    size_t at = s->nbytes;
    s->nbytes += ((size_t)n * size + 255) & ~(size_t)255;
    return at;
}

static FlashScratch scratch_of(const Flash *f) {
    FlashScratch s = {0};
    if (f->form.visible || f->form.bias) {
        s.verdict = take(&s, f->nrow * f->nqb * f->nkb, 1);
        s.bound_q = take(&s, f->nrow * f->nqb * 2, sizeof(int));
        s.bound_k = take(&s, f->nrow * f->nkb * 2, sizeof(int));
        for (int i = 0; i < f->nvec && i < FLASH_MAX_VEC; i++) {
            const Operand *v = &f->vec[i];
            s.range[i] = take(&s, v->dim[0] * v->dim[1] * ceil_div(v->dim[2], FLASH_BLOCK), sizeof(FlashRange));
        }
    }
    if (f->grad) {
        int64_t rows = f->batch * f->heads * f->nq;
        s.delta = take(&s, rows, sizeof(float)), s.max = take(&s, rows, sizeof(float)), s.unsum = take(&s, rows, sizeof(float));
        s.flags = take(&s, f->batch * f->heads * f->ntile, 1);
        s.any = take(&s, f->batch * f->heads, sizeof(int));
    }
    return s;
}

static size_t scratch_nbytes(const Node *n, const Operand *in, const Operand *out) {
    if (n->nin - flash_first_vec(n) > FLASH_MAX_VEC) return 0;  // refused by prepare
    Flash f = flash_of(n, in, out);
    return scratch_of(&f).nbytes;
}
size_t flash_attention_scratch(const Node *n, const Operand *in, const Operand *out) { return scratch_nbytes(n, in, out); }
size_t flash_attention_grad_scratch(const Node *n, const Operand *in, const Operand *out) { return scratch_nbytes(n, in, out); }

const char *flash_kernel_name(const Node *n, const Operand *in, const Operand *out) {
    FlashForm f = flash_form(n, in, out);
    return !f.tensor ? "portable" : f.bias ? "own-bias" : "own";
}

// ---- parameters -----------------------------------------------------------------------------------------------------------
static int put_spans(FlashSpan *to, const Operand *o) {
    int64_t base = 0;
    for (int i = 0; i < o->nspan; base += o->span[i].end - o->span[i].begin, i++) to[i] = (FlashSpan){o->span[i].begin, base};
    return o->nspan;
}

static bool same_spans(const Operand *a, const Operand *b) {
    if (a->nspan != b->nspan) return false;
    for (int i = 0; i < a->nspan; i++)
        if (a->span[i].begin != b->span[i].begin || a->span[i].end != b->span[i].end) return false;
    return true;
}

static void put_vec(FlashParams *p, const Flash *f, int i, const FlashScratch *s, char *scratch) {
    const Operand *v = &f->vec[i];
    for (int dim = 0; dim < 3; dim++) {  // positions of vectors are those of q, and keys are whole
        if (v->global[dim] == 1) continue;
        bool over_k = dim == 2 && f->over_k[i];
        bool sharded = !over_k && f->q->sdim == dim;
        CHECK(sharded == (v->sdim == dim) && (!sharded || same_spans(v, f->q)),
              "vector %d of an attention mask is not laid out as q is", i);
    }
    p->vec[i] = (FlashVec){.data = v->data, .nrow = (int)(v->dim[0] * v->dim[1]), .len = (int)v->dim[2]};
    p->vec[i].range = (FlashRange *)(void *)(scratch + s->range[i]);
    p->vec[i].stride_h = v->global[1] > 1 ? v->dim[2] : 0;
    p->vec[i].stride_b = v->global[0] > 1 ? v->dim[1] * v->dim[2] : 0;
}

static void put_numbers(FlashParams *p, const Flash *f) {
    double scale = node_float_or(f->n, ATTR_SCALE, 1), cap = node_float_or(f->n, ATTR_SOFTCAP, 0),
           drop = node_float_or(f->n, ATTR_DROPOUT, 0);
    p->scale = (float)scale, p->cap = (float)cap, p->inner = cap > 0 ? (float)(scale / cap) : 0;
    p->unit_lse = f->form.raw ? (float)scale : 1;
    p->unit = (float)((f->form.raw ? scale : 1) * 1.44269504088896340736);
    p->keep = (float)(1 / (1 - drop)), p->drop_below = (unsigned long long)ceil(drop * 0x1p24);
    p->seed = node_int_or(f->n, ATTR_SEED, 0);
}

static void put_operands(FlashParams *p, const KernelArgs *k, const Flash *f) {
    p->q = k->in[0].data, p->k = k->in[1].data, p->v = k->in[2].data;
    if (f->grad) p->o = k->in[3].data, p->lse = k->in[4].data, p->dout = k->in[5].data;
    p->out0 = k->out[0].data, p->out1 = k->out[1].data, p->out2 = f->grad ? k->out[2].data : NULL;
    p->batch = f->batch, p->heads = f->heads, p->kv_heads = f->k->dim[1], p->nq = f->nq, p->nk = f->nk;
    p->heads_all = f->q->global[1], p->nq_all = f->q->global[2], p->nk_all = f->k->global[2];
    p->group = max_i64(1, f->q->global[1] / max_i64(1, f->k->global[1]));
    const Operand *q = f->q, *key = f->k;
    CHECK(q->sdim <= 2 && key->sdim <= 1 && f->v->sdim == key->sdim && (key->sdim != 0 || same_spans(q, key)),
          "attention operands sharded on dims %d, %d, %d", q->sdim, key->sdim, f->v->sdim);
    p->qdim = q->sdim;
    if (q->sdim >= 0) p->nqspan = put_spans(p->qspan, q);
    if (key->sdim == 1) p->nkspan = put_spans(p->kspan, key);
}

static void put_params(FlashParams *p, const KernelArgs *k, const Flash *f) {
    FlashScratch s = scratch_of(f);
    char *at = k->scratch;
    *p = (FlashParams){0};
    put_operands(p, k, f);
    put_numbers(p, f);
    p->step = (const unsigned long long *)(const void *)k->device->step;
    p->verdict_b = f->verdict_b, p->verdict_h = f->verdict_h, p->nrow_verdict = f->nrow;
    if (f->form.visible || f->form.bias) {
        p->verdict = (unsigned char *)at + s.verdict;
        p->bound_q = (int *)(void *)(at + s.bound_q), p->bound_k = (int *)(void *)(at + s.bound_k);
        for (int i = 0; i < f->nvec; i++) put_vec(p, f, i, &s, at);
    }
    if (!f->grad) return;
    p->row_delta = (float *)(void *)(at + s.delta), p->row_max = (float *)(void *)(at + s.max),
    p->row_unsum = (float *)(void *)(at + s.unsum);
    p->flags = (unsigned char *)at + s.flags, p->any = (int *)(void *)(at + s.any);
}

// ---- preparing ------------------------------------------------------------------------------------------------------------
typedef enum FlashKernel {
    FK_RANGES,
    FK_VERDICTS,
    FK_BOUNDS,
    FK_CLEAR,
    FK_ROWS,
    FK_RESUM,
    FK_MAIN,
    FK_KEYS,
    FK_COUNT
} FlashKernel;
static const char *const kernel_name[FK_COUNT] = {"flash_ranges", "flash_verdicts", "flash_bounds", "flash_clear",
                                                  "flash_rows",   "flash_resum",    NULL,           NULL};
typedef struct FlashState {
    GpuFunction *fn[FK_COUNT];
    bool tensor;  // FK_MAIN and FK_KEYS are the tensor-core kernels
} FlashState;

static bool wanted(const Flash *f, FlashKernel i) {
    switch (i) {
    case FK_RANGES:
    case FK_VERDICTS:
    case FK_BOUNDS: return (f->form.visible || f->form.bias) && (i != FK_RANGES || f->nvec > 0);
    case FK_MAIN: return true;
    default: return f->grad;
    }
}

static const char *name_of(const Flash *f, FlashKernel i, bool tensor) {
    if (i == FK_MAIN) return f->grad ? (tensor ? "flash_mma_dq" : "flash_dq") : tensor ? "flash_mma_forward" : "flash_forward";
    if (i == FK_KEYS) return tensor ? "flash_mma_dkdv" : "flash_dkdv";
    return kernel_name[i];
}

bool flash_portable;

// The tensor-core kernels read 16 bytes at a time.
static bool aligned(const KernelArgs *k) {
    for (int i = 0; i < k->nin; i++)
        if ((i < 3 || (i < 6 && k->node->op == OP_ATTENTION_GRAD)) && ((uintptr_t)k->in[i].data & 15)) return false;
    return true;
}

static Status prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    TRY(flash_check(k->node, k->in, k->out, d));
    Flash f = flash_of(k->node, k->in, k->out);
    FlashState *s = ARENA_NEW(module_arena(dev), FlashState);
    s->tensor = f.form.tensor && !flash_portable && dev->ordinal >= 0 && dev->capability >= 80 && aligned(k);
    Str source = {0};
    Status st = flash_source(k->node, k->in, k->out, s->tensor, &source, d);
    for (int i = 0; i < FK_COUNT && st == ST_OK; i++) {
        if (!wanted(&f, (FlashKernel)i)) continue;
        st = module_function(dev, str_text(&source), name_of(&f, (FlashKernel)i, s->tensor), op_name(k->node->op), &s->fn[i], d);
    }
    str_free(&source);
    *state = s;
    return st;
}
Status flash_attention_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) { return prepare(dev, k, state, d); }
Status flash_attention_grad_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) { return prepare(dev, k, state, d); }

// ---- launching ------------------------------------------------------------------------------------------------------------
typedef struct Launch {
    const KernelArgs *k;
    const Flash *f;
    const FlashState *s;
    FlashParams p;
} Launch;

static Status launch(const Launch *l, FlashKernel kernel, int64_t x, int64_t y, int64_t z, size_t shared, Diag *d) {
    if (x <= 0 || y <= 0 || z <= 0) return ST_OK;
    if (x > INT32_MAX || y > 65535 || z > 65535)
        return diag_error(
            d, ST_UNSUPPORTED, "%s needs %lld x %lld x %lld blocks of threads, more than a GPU takes; use more ranks (%s)",
            op_name(l->f->n->op), (long long)x, (long long)y, (long long)z, l->f->n->source ? l->f->n->source : "?");
    CHECK(l->s->fn[kernel], "attention kernel %d was not prepared", kernel);
    return module_launch(l->k->device, l->s->fn[kernel], (Grid){(unsigned)x, (unsigned)y, (unsigned)z}, FLASH_THREADS, shared,
                         &l->p, sizeof l->p, d);
}

// One element a thread; more blocks than fill the device gain nothing.
static int64_t blocks_of(int64_t n) { return min_i64(ceil_div(n, FLASH_THREADS), 1 << 16); }
// Blocks of at most 128 output channels: as flash_kernel.h.
static int64_t chunks(int64_t dim) { return max_i64(1, ceil_div(dim, 128)); }

static Status launch_verdicts(const Launch *l, Diag *d) {
    const Flash *f = l->f;
    if (!f->form.visible && !f->form.bias) return ST_OK;
    int64_t most = 0;
    for (int i = 0; i < f->nvec; i++)
        most = max_i64(most, f->vec[i].dim[0] * f->vec[i].dim[1] * ceil_div(f->vec[i].dim[2], FLASH_BLOCK));
    if (most > 0) TRY(launch(l, FK_RANGES, blocks_of(most), f->nvec, 1, 0, d));
    TRY(launch(l, FK_VERDICTS, blocks_of(f->nrow * f->nqb * f->nkb), 1, 1, 0, d));
    return launch(l, FK_BOUNDS, blocks_of(f->nrow * (f->nqb + f->nkb)), 1, 1, 0, d);
}

static Launch launch_begin(const KernelArgs *k, const Flash *f) {
    CHECK(k->state, "attention was not prepared");
    Launch l = {.k = k, .f = f, .s = k->state};
    put_params(&l.p, k, f);
    return l;
}

Status flash_attention(const KernelArgs *k, Diag *d) {
    Flash f = flash_of(k->node, k->in, k->out);
    Launch l = launch_begin(k, &f);
    int64_t bh = f.batch * f.heads;
    TRY(launch_verdicts(&l, d));
    if (l.s->tensor)
        return launch(&l, FK_MAIN, bh * ceil_div(f.nq, 64 * f.form.mt), 1, 1, flash_mma_shared(&f.form, k->in, FLASH_MMA_FORWARD),
                      d);
    return launch(&l, FK_MAIN, bh * f.ntile, 1, chunks(f.v->dim[3]), 0, d);
}

Status flash_attention_grad(const KernelArgs *k, Diag *d) {
    Flash f = flash_of(k->node, k->in, k->out);
    Launch l = launch_begin(k, &f);
    int64_t bh = f.batch * f.heads, kv = f.batch * f.k->dim[1];
    TRY(launch_verdicts(&l, d));
    TRY(launch(&l, FK_CLEAR, blocks_of(bh), 1, 1, 0, d));
    TRY(launch(&l, FK_ROWS, bh * f.ntile, 1, 1, 0, d));
    TRY(launch(&l, FK_RESUM, bh * f.ntile, 1, 1, 0, d));
    if (l.s->tensor) {
        TRY(launch(&l, FK_MAIN, bh * f.ntile, 1, 1, flash_mma_shared(&f.form, k->in, FLASH_MMA_DQ), d));
        return launch(&l, FK_KEYS, kv * ceil_div(f.nk, 64), 1, flash_mma_together(k->in) ? 1 : 2,
                      flash_mma_shared(&f.form, k->in, FLASH_MMA_DKDV), d);
    }
    TRY(launch(&l, FK_MAIN, bh * f.ntile, 1, chunks(f.q->dim[3]), 0, d));
    return launch(&l, FK_KEYS, kv * ceil_div(f.nk, FLASH_TILE), 1, chunks(f.v->dim[3]) + chunks(f.q->dim[3]), 0, d);
}
