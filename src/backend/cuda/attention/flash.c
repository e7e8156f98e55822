// Our own attention on the host: where things are in scratch, what the kernels are told, what is launched. See flash.h.
// With `groups` on the node a launch is about some of the heads of one entry of the batch, and all groups use the same scratch.
#include "backend/cuda/attention/flash.h"
#include <math.h>
#include <string.h>
#include "backend/cuda/attention/flash_codegen.h"
#include "backend/cuda/attention/flash_params.h"
#include "backend/cuda/device/module.h"
#include "backend/cuda/device/operand.h"
#include "base/containers.h"
#include "ops/attention.h"

_Static_assert(sizeof(FlashParams) <= 4096, "parameters of a launch");

// ---- geometry -------------------------------------------------------------------------------------------------------------
typedef struct Flash {
    const Node *n;
    const Operand *in, *q, *k, *v, *vec;
    FlashForm form;
    int nvec;
    bool grad, over_k[FLASH_MAX_VEC];
    bool on_b, on_h;                 // the program asks for the entry of the batch, for the head
    int64_t nq, nk, nqb, nkb, ntile;  // local; blocks of verdicts; tiles of queries
    int64_t ngroup;
} Flash;

// Some of a rank's heads: query heads h0 .. and the KV heads they use, of entries b0 .. of the batch.
typedef struct FlashGroup {
    int64_t b0, batch, h0, heads, kv0, kv_heads;
} FlashGroup;

static Flash flash_of(const Node *n, const Operand *in, const Operand *out) {
    int first = flash_first_vec(n);
    const Program *p = node_prog(n, ATTR_PROG);
    Flash f = {.n = n, .in = in, .q = &in[0], .k = &in[1], .v = &in[2], .vec = in + first, .nvec = n->nin - first};
    f.form = flash_form(n, in, out);
    f.grad = n->op == OP_ATTENTION_GRAD;
    f.nq = in[0].dim[2], f.nk = in[1].dim[2];
    f.nqb = ceil_div(f.nq, FLASH_BLOCK), f.nkb = ceil_div(f.nk, FLASH_BLOCK), f.ntile = ceil_div(f.nq, FLASH_TILE);
    for (int i = 0; p && i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        f.on_b |= x->code == PROG_INDEX_B, f.on_h |= x->code == PROG_INDEX_H;
        if (x->code != PROG_VEC_Q && x->code != PROG_VEC_K) continue;
        f.on_b |= f.vec[x->a].global[0] > 1, f.on_h |= f.vec[x->a].global[1] > 1;
        f.over_k[x->a] |= x->code == PROG_VEC_K;
    }
    bool per_head = f.grad || f.on_b || f.on_h;  // of the scratch, something is
    f.ngroup = per_head ? attention_groups(n, in[1].dim[1]) : 1;
    return f;
}

// Local index of the first query head whose KV head is local head `kv` or a later one.
static int64_t first_query_head(const Flash *f, int64_t kv) {
    int64_t group = max_i64(1, f->q->global[1] / max_i64(1, f->k->global[1])), heads = f->q->dim[1], h = 0;
    if (kv >= f->k->dim[1]) return heads;
    int64_t want = operand_global(f->k, 1, kv);
    while (h < heads && operand_global(f->q, 1, h) / group < want) h++;
    return h;
}

static FlashGroup group_at(const Flash *f, int64_t b, int64_t i) {
    int64_t kv_heads = f->k->dim[1];
    if (f->ngroup == 1) return (FlashGroup){.batch = f->q->dim[0], .heads = f->q->dim[1], .kv_heads = kv_heads};
    int64_t n = kv_heads / f->ngroup, first = first_query_head(f, i * n);
    int64_t heads = first_query_head(f, (i + 1) * n) - first;
    return (FlashGroup){.b0 = b, .batch = 1, .h0 = first, .heads = heads, .kv0 = i * n, .kv_heads = n};
}

// Sizes of the largest group.
static FlashGroup largest_group(const Flash *f) {
    FlashGroup g = group_at(f, 0, 0);
    for (int64_t i = 1; i < f->ngroup; i++) g.heads = max_i64(g.heads, group_at(f, 0, i).heads);
    return g;
}

static int64_t verdict_rows(const Flash *f, const FlashGroup *g) { return (f->on_b ? g->batch : 1) * (f->on_h ? g->heads : 1); }

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
    FlashGroup g = largest_group(f);
    if (f->form.visible || f->form.bias) {
        int64_t nrow = verdict_rows(f, &g);
        s.verdict = take(&s, nrow * f->nqb * f->nkb, 1);
        s.bound_q = take(&s, nrow * f->nqb * 2, sizeof(int));
        s.bound_k = take(&s, nrow * f->nkb * 2, sizeof(int));
        for (int i = 0; i < f->nvec && i < FLASH_MAX_VEC; i++) {
            const Operand *v = &f->vec[i];
            s.range[i] = take(&s, v->dim[0] * v->dim[1] * ceil_div(v->dim[2], FLASH_BLOCK), sizeof(FlashRange));
        }
    }
    if (f->grad) {
        int64_t rows = g.batch * g.heads * f->nq;
        s.delta = take(&s, rows, sizeof(float)), s.max = take(&s, rows, sizeof(float)), s.unsum = take(&s, rows, sizeof(float));
        s.flags = take(&s, g.batch * g.heads * f->ntile, 1);
        s.any = take(&s, g.batch * g.heads, sizeof(int));
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

// An operand [B,H,..] or [B,Hkv,..] from head `h` of entry `b` on.
static void *head_data(const Operand *o, int64_t b, int64_t h) {
    return operand_at(o, (b * o->dim[1] + h) * operand_count(o, 2, o->ndim));
}

static void put_operands(FlashParams *p, const KernelArgs *k, const Flash *f, const FlashGroup *g) {
    int64_t b = g->b0, h = g->h0, kv = g->kv0;
    p->q = head_data(&k->in[0], b, h), p->k = head_data(&k->in[1], b, kv), p->v = head_data(&k->in[2], b, kv);
    p->out0 = head_data(&k->out[0], b, h), p->out1 = head_data(&k->out[1], b, f->grad ? kv : h);
    if (f->grad) {
        p->o = head_data(&k->in[3], b, h), p->lse = head_data(&k->in[4], b, h), p->dout = head_data(&k->in[5], b, h);
        p->out2 = head_data(&k->out[2], b, kv);
    }
    p->batch = g->batch, p->heads = g->heads, p->kv_heads = g->kv_heads, p->nq = f->nq, p->nk = f->nk;
    p->b0 = b, p->h0 = h, p->kv0 = kv;
    p->heads_all = f->q->global[1], p->nq_all = f->q->global[2], p->nk_all = f->k->global[2];
    p->group = max_i64(1, f->q->global[1] / max_i64(1, f->k->global[1]));
    const Operand *q = f->q, *key = f->k;
    CHECK(q->sdim <= 2 && key->sdim <= 1 && f->v->sdim == key->sdim && (key->sdim != 0 || same_spans(q, key)),
          "attention operands sharded on dims %d, %d, %d", q->sdim, key->sdim, f->v->sdim);
    p->qdim = q->sdim;
    if (q->sdim >= 0) p->nqspan = put_spans(p->qspan, q);
    if (key->sdim == 1) p->nkspan = put_spans(p->kspan, key);
}

static void put_params(FlashParams *p, const KernelArgs *k, const Flash *f, const FlashGroup *g) {
    FlashScratch s = scratch_of(f);
    char *at = k->scratch;
    *p = (FlashParams){0};
    put_operands(p, k, f, g);
    put_numbers(p, f);
    p->step = (const unsigned long long *)(const void *)k->device->step;
    p->verdict_h = f->on_h, p->verdict_b = !f->on_b ? 0 : f->on_h ? g->heads : 1, p->nrow_verdict = verdict_rows(f, g);
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
    FlashGroup g;
    bool first;  // of the groups
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

// What is known about blocks of scores. Vectors' ranges, and verdicts that are alike for all heads, are made once.
static Status launch_verdicts(const Launch *l, Diag *d) {
    const Flash *f = l->f;
    int64_t most = 0, nrow = verdict_rows(f, &l->g);
    if ((!f->form.visible && !f->form.bias) || (!l->first && !f->on_b && !f->on_h)) return ST_OK;
    for (int i = 0; i < f->nvec; i++)
        most = max_i64(most, f->vec[i].dim[0] * f->vec[i].dim[1] * ceil_div(f->vec[i].dim[2], FLASH_BLOCK));
    if (most > 0 && l->first) TRY(launch(l, FK_RANGES, blocks_of(most), f->nvec, 1, 0, d));
    TRY(launch(l, FK_VERDICTS, blocks_of(nrow * f->nqb * f->nkb), 1, 1, 0, d));
    return launch(l, FK_BOUNDS, blocks_of(nrow * (f->nqb + f->nkb)), 1, 1, 0, d);
}

static Status launch_forward(const Launch *l, Diag *d) {
    const Flash *f = l->f;
    int64_t bh = l->g.batch * l->g.heads;
    TRY(launch_verdicts(l, d));
    if (l->s->tensor)
        return launch(l, FK_MAIN, bh * ceil_div(f->nq, 64 * f->form.mt), 1, 1,
                      flash_mma_shared(&f->form, l->k->in, FLASH_MMA_FORWARD), d);
    return launch(l, FK_MAIN, bh * f->ntile, 1, chunks(f->v->dim[3]), 0, d);
}

static Status launch_backward(const Launch *l, Diag *d) {
    const Flash *f = l->f;
    const Operand *in = l->k->in;
    int64_t bh = l->g.batch * l->g.heads, kv = l->g.batch * l->g.kv_heads;
    TRY(launch_verdicts(l, d));
    TRY(launch(l, FK_CLEAR, blocks_of(bh), 1, 1, 0, d));
    TRY(launch(l, FK_ROWS, bh * f->ntile, 1, 1, 0, d));
    TRY(launch(l, FK_RESUM, bh * f->ntile, 1, 1, 0, d));
    if (l->s->tensor) {
        TRY(launch(l, FK_MAIN, bh * f->ntile, 1, 1, flash_mma_shared(&f->form, in, FLASH_MMA_DQ), d));
        return launch(l, FK_KEYS, kv * ceil_div(f->nk, 64), 1, flash_mma_together(in) ? 1 : 2,
                      flash_mma_shared(&f->form, in, FLASH_MMA_DKDV), d);
    }
    TRY(launch(l, FK_MAIN, bh * f->ntile, 1, chunks(f->q->dim[3]), 0, d));
    return launch(l, FK_KEYS, kv * ceil_div(f->nk, FLASH_TILE), 1, chunks(f->v->dim[3]) + chunks(f->q->dim[3]), 0, d);
}

static Status each_group(const KernelArgs *k, Status (*run)(const Launch *l, Diag *d), Diag *d) {
    Flash f = flash_of(k->node, k->in, k->out);
    CHECK(k->state, "attention was not prepared");
    for (int64_t b = 0; b < (f.ngroup > 1 ? f.q->dim[0] : 1); b++)
        for (int64_t i = 0; i < f.ngroup; i++) {
            Launch l = {.k = k, .f = &f, .s = k->state, .g = group_at(&f, b, i), .first = b == 0 && i == 0};
            put_params(&l.p, k, &f, &l.g);
            TRY(run(&l, d));
        }
    return ST_OK;
}

Status flash_attention(const KernelArgs *k, Diag *d) { return each_group(k, launch_forward, d); }
Status flash_attention_grad(const KernelArgs *k, Diag *d) { return each_group(k, launch_backward, d); }
