// Programs over blocks of elements: see vm.h. A value of the program is, block by block, either the input's own memory (dense
// inputs), or a register (a block-sized array in scratch), or the output's own memory (results that overlap no input).
#include "backend/cpu/vm.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cpu/pool.h"
#include "base/containers.h"

enum { BLOCK = 512 };  // elements; a dozen float registers fit the first-level cache
enum { SLOT_PAD = 64 };  // bytes between registers, so that they do not all start in one cache set
enum { CLASSES = 3 };  // registers of 1, 4 and 8 bytes per element

// ---- views --------------------------------------------------------------------------------------------------------------

VmView vm_view(const Operand *x, int ndim, const int64_t *dim) {
    VmView v = {.elem = dtype_nbytes(x->dtype), .data = x->data};
    int64_t stride = 1, rev_size[MAX_DIMS], rev_stride[MAX_DIMS];
    int n = 0;
    for (int i = ndim - 1; i >= 0; i--) {  // innermost first
        int at = i - (ndim - x->ndim);
        int64_t s = at < 0 || (x->dim[at] == 1 && dim[i] != 1) ? 0 : stride;
        if (at >= 0) stride *= x->dim[at];
        if (dim[i] == 1) continue;
        bool repeats = n > 0 && s == 0 && rev_stride[n - 1] == 0;
        bool merges = repeats || (n > 0 && s != 0 && rev_stride[n - 1] != 0 && s == rev_stride[n - 1] * rev_size[n - 1]);
        if (merges) rev_size[n - 1] *= dim[i];
        else rev_size[n] = dim[i], rev_stride[n] = s, n++;
    }
    v.ndim = n;
    for (int i = 0; i < n; i++) v.size[i] = rev_size[n - 1 - i], v.stride[i] = rev_stride[n - 1 - i];
    return v;
}

bool vm_view_is_dense(const VmView *v) { return v->ndim == 0 || (v->ndim == 1 && v->stride[0] == 1); }
bool vm_view_is_scalar(const VmView *v) { return v->ndim == 0 || (v->ndim == 1 && v->stride[0] == 0); }

static void fill(void *dst, const void *src, int64_t n, int elem) {
    if (elem == 1) {
        memset(dst, *(const uint8_t *)src, (size_t)n);
    } else if (elem == 4) {
        uint32_t *o = dst, x = *(const uint32_t *)src;
        for (int64_t i = 0; i < n; i++) o[i] = x;
    } else {
        uint64_t *o = dst, x = *(const uint64_t *)src;
        for (int64_t i = 0; i < n; i++) o[i] = x;
    }
}

void vm_view_read(const VmView *v, int64_t begin, int64_t n, void *dst) {
    int last = v->ndim - 1;
    int64_t index[MAX_DIMS], rest = begin, offset = 0;
    if (last < 0) {
        fill(dst, v->data, n, v->elem);
        return;
    }
    for (int i = last; i >= 0; i--) {
        index[i] = rest % v->size[i];
        rest /= v->size[i];
        offset += index[i] * v->stride[i];
    }
    for (char *o = dst; n > 0;) {  // one run along the innermost dim; its stride is 0 or 1, since operands are dense
        int64_t run = min_i64(n, v->size[last] - index[last]);
        const char *from = v->data + offset * v->elem;
        if (v->stride[last] == 0) fill(o, from, run, v->elem);
        else memcpy(o, from, (size_t)(run * v->elem));
        o += run * v->elem, n -= run;
        offset += run * v->stride[last], index[last] += run;
        for (int i = last; i > 0 && index[i] == v->size[i]; i--) {
            offset += v->stride[i - 1] - v->size[i] * v->stride[i];
            index[i] = 0, index[i - 1]++;
        }
    }
}

// ---- registers ----------------------------------------------------------------------------------------------------------

static int slot_class(DType t) { return dtype_nbytes(t) == 1 ? 0 : dtype_nbytes(t) == 4 ? 1 : 2; }
static const int class_nbytes[CLASSES] = {1, 4, 8};

// Which register each instruction's block is in. Registers are given back after the last use; those of constants and scalars
// are filled once and kept.
typedef struct VmAlloc {
    int32_t *reg;   // [ninstr], -1: a dense input, which is read where it lies
    int32_t *last;  // [ninstr]: last instruction that reads it; ninstr for outputs and kept ones
    int32_t *free_list[CLASSES], nfree[CLASSES], count[CLASSES];  // free_list: [ninstr] each
} VmAlloc;
enum { ALLOC_ARRAYS = 2 + CLASSES };

static void alloc_bind(VmAlloc *a, int32_t *memory, int ninstr) {
    a->reg = memory, a->last = memory + ninstr;
    for (int c = 0; c < CLASSES; c++) a->free_list[c] = memory + (2 + c) * ninstr, a->nfree[c] = a->count[c] = 0;
}

static bool is_splat(const Instr *s, const VmView *view) {
    return s->code == PROG_CONST || (s->code == PROG_INPUT && vm_view_is_scalar(&view[s->a]));
}

static void alloc_run(VmAlloc *a, const Program *p, const VmView *view) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *s = &p->instr[i];
        a->last[i] = is_splat(s, view) ? p->ninstr : i;
        if (s->code < PROG_OP) continue;
        const int32_t use[3] = {s->a, s->b, s->c};
        for (int k = 0; k < program_op_arity(s->code - PROG_OP); k++) a->last[use[k]] = max_i64(a->last[use[k]], i);
    }
    for (int j = 0; j < p->nout; j++) a->last[p->out[j]] = p->ninstr;
    for (int i = 0; i < p->ninstr; i++)  // before all others: they are filled before the first block and must survive it
        if (is_splat(&p->instr[i], view)) a->reg[i] = a->count[slot_class(p->instr[i].dtype)]++;
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *s = &p->instr[i];
        if (is_splat(s, view)) continue;
        int c = slot_class(s->dtype);
        bool in_place = s->code == PROG_INPUT && vm_view_is_dense(&view[s->a]);
        a->reg[i] = in_place ? -1 : a->nfree[c] > 0 ? a->free_list[c][--a->nfree[c]] : a->count[c]++;
        int32_t done[4] = {i, s->code >= PROG_OP ? s->a : -1, s->code >= PROG_OP ? s->b : -1, s->code >= PROG_OP ? s->c : -1};
        for (int k = 0; k < 4; k++) {
            bool again = (k > 1 && done[k] == done[1]) || (k > 2 && done[k] == done[2]);
            if (done[k] < 0 || again || a->last[done[k]] != i || a->reg[done[k]] < 0) continue;
            int f = slot_class(p->instr[done[k]].dtype);
            a->free_list[f][a->nfree[f]++] = a->reg[done[k]];
        }
    }
}

static int64_t class_offset(const VmAlloc *a, int class) {  // within a worker's registers; class == CLASSES: their size
    int64_t off = 0;
    for (int c = 0; c < class; c++) off += (int64_t)a->count[c] * (BLOCK * class_nbytes[c] + SLOT_PAD);
    return round_up(off, 64);
}

// ---- code ---------------------------------------------------------------------------------------------------------------

typedef struct VmRef {  // where a block of a value is: base + i0*step, or the worker's registers + offset
    char *base;
    int64_t offset, step;
} VmRef;

typedef struct VmCode {
    VmFn fn;          // NULL: reads view `input` into dst
    int32_t input;
    bool check_zero;  // integer division: the second operand may not be 0
    VmRef dst, src[3];
} VmCode;

typedef struct VmRun {
    const Program *p;
    VmView *view;     // [nin]
    VmCode *code;     // [ninstr], of which ncode are used
    int ncode;
    VmAlloc alloc;
    char *registers;
    int64_t worker_nbytes, numel;
    int nout;
    const Operand *out;
    _Atomic int zero_divisor;
} VmRun;

// Scratch: views, code, allocation arrays, then the registers of each worker.
static int64_t header_nbytes(const Program *p, int nin) {
    int64_t n = round_up((int64_t)sizeof(VmView) * nin, 64) + round_up((int64_t)sizeof(VmCode) * p->ninstr, 64);
    return n + round_up((int64_t)sizeof(int32_t) * ALLOC_ARRAYS * p->ninstr, 64);
}

size_t vm_scratch(const Program *p, int nin, const Operand *in, const Operand *out, int nthreads) {
    int32_t *memory = malloc(sizeof *memory * (size_t)(ALLOC_ARRAYS * p->ninstr + 1));
    VmView *view = malloc(sizeof *view * (size_t)(nin + 1));
    CHECK(memory && view, "out of memory");
    for (int i = 0; i < nin; i++) view[i] = vm_view(&in[i], out[0].ndim, out[0].dim);
    VmAlloc a;
    alloc_bind(&a, memory, p->ninstr);
    alloc_run(&a, p, view);
    int64_t n = header_nbytes(p, nin) + class_offset(&a, CLASSES) * nthreads;
    free(memory);
    free(view);
    return (size_t)n;
}

// direct: see choose_direct; NULL: nobody writes an output itself.
static VmRef value_ref(const VmRun *r, const int32_t *direct, int i) {
    const Instr *s = &r->p->instr[i];
    int size = dtype_nbytes(s->dtype), c = slot_class(s->dtype);
    if (direct && direct[i] >= 0) return (VmRef){.base = r->out[direct[i]].data, .step = size};
    if (r->alloc.reg[i] < 0) return (VmRef){.base = (char *)r->view[s->a].data, .step = size};
    return (VmRef){.offset = class_offset(&r->alloc, c) + (int64_t)r->alloc.reg[i] * (BLOCK * size + SLOT_PAD)};
}

static bool overlaps_input(const Operand *out, int64_t numel, int nin, const Operand *in) {
    const char *begin = out->data, *end = begin + numel * dtype_nbytes(out->dtype);
    for (int i = 0; i < nin; i++) {
        int64_t n = dtype_nbytes(in[i].dtype);
        for (int k = 0; k < in[i].ndim; k++) n *= in[i].dim[k];
        const char *b = in[i].data;
        if (b < end && begin < b + n) return true;
    }
    return false;
}

// direct[i] >= 0: the instruction writes that output itself. The last instruction may even where the output overlaps an input
// (the plan lets an output take over an input of its own shape): nothing is read from the block after it.
static void choose_direct(const VmRun *r, const KernelArgs *k, int32_t *direct) {
    for (int i = 0; i < r->p->ninstr; i++) direct[i] = -1;
    for (int j = 0; j < r->nout; j++) {
        int i = r->p->out[j];
        bool safe = i == r->p->ninstr - 1 || !overlaps_input(&r->out[j], r->numel, k->nin, k->in);
        if (direct[i] < 0 && safe && r->p->instr[i].code >= PROG_OP) direct[i] = j;
    }
}

static Status make_code(VmRun *r, const KernelArgs *k, Diag *d) {
    const Program *p = r->p;
    int32_t *direct = r->alloc.free_list[0];  // no longer needed once registers are given
    choose_direct(r, k, direct);
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *s = &p->instr[i];
        VmCode c = {.dst = value_ref(r, direct, i), .input = -1};
        if (s->code < PROG_OP) {
            CHECK(s->code == PROG_CONST || s->code == PROG_INPUT, "leaf %d in a pointwise program", s->code);
            if (is_splat(s, r->view) || r->alloc.reg[i] < 0) continue;
            c.input = s->a;
        } else {
            OpKind op = (OpKind)(s->code - PROG_OP);
            const int32_t use[3] = {s->a, s->b, s->c};
            int arity = program_op_arity(op);
            DType in = p->instr[use[arity - 1]].dtype;
            c.fn = vm_fn(op, in, s->dtype);
            if (!c.fn) return diag_error(d, ST_UNSUPPORTED, "the CPU has no %s of %s", op_name(op), dtype_name(in));
            c.check_zero = (op == OP_FLOORDIV || op == OP_MOD) && in == DT_I64;
            for (int a = 0; a < arity; a++) c.src[a] = value_ref(r, direct, use[a]);
        }
        r->code[r->ncode++] = c;
    }
    return ST_OK;
}

// ---- execution ----------------------------------------------------------------------------------------------------------

static void *at(const VmRef *ref, char *registers, int64_t i0) {
    return ref->base ? ref->base + i0 * ref->step : registers + ref->offset;
}

static void fill_splats(VmRun *r, char *registers) {
    for (int i = 0; i < r->p->ninstr; i++) {
        const Instr *s = &r->p->instr[i];
        if (!is_splat(s, r->view)) continue;
        VmRef ref = value_ref(r, NULL, i);
        char *dst = at(&ref, registers, 0);
        if (s->code == PROG_INPUT) {
            fill(dst, r->view[s->a].data, BLOCK, r->view[s->a].elem);
            continue;
        }
        float f = (float)s->imm;
        int64_t n = dtype_is_float(s->dtype) ? 0 : (int64_t)s->imm;
        uint8_t b = s->imm != 0;
        if (s->dtype == DT_F32) fill(dst, &f, BLOCK, 4);
        else if (s->dtype == DT_F64) fill(dst, &s->imm, BLOCK, 8);
        else if (s->dtype == DT_I64) fill(dst, &n, BLOCK, 8);
        else fill(dst, &b, BLOCK, 1);
    }
}

static void run_block(VmRun *r, char *registers, int64_t i0, int64_t n) {
    for (int i = 0; i < r->ncode; i++) {
        const VmCode *c = &r->code[i];
        void *dst = at(&c->dst, registers, i0);
        if (!c->fn) {
            vm_view_read(&r->view[c->input], i0, n, dst);
            continue;
        }
        const void *b = at(&c->src[1], registers, i0);
        if (c->check_zero && vm_has_zero(b, n)) atomic_store_explicit(&r->zero_divisor, 1, memory_order_relaxed);
        c->fn(dst, at(&c->src[0], registers, i0), b, at(&c->src[2], registers, i0), n);
    }
}

static void run_blocks(void *ctx, int64_t begin, int64_t end, int worker) {
    VmRun *r = ctx;
    char *registers = r->registers + worker * r->worker_nbytes;
    const int32_t *direct = r->alloc.free_list[0];
    fill_splats(r, registers);
    for (int64_t i0 = begin; i0 < end; i0 += BLOCK) {
        int64_t n = min_i64(BLOCK, end - i0);
        run_block(r, registers, i0, n);
        for (int j = 0; j < r->nout; j++) {
            int i = r->p->out[j], size = dtype_nbytes(r->p->instr[i].dtype);
            if (direct[i] == j) continue;
            VmRef ref = value_ref(r, direct, i);
            memcpy((char *)r->out[j].data + i0 * size, at(&ref, registers, i0), (size_t)(n * size));
        }
    }
}

Status vm_run(const Program *p, const KernelArgs *k, Diag *d) {
    VmRun r = {.p = p, .nout = k->nout, .out = k->out, .numel = 1};
    for (int i = 0; i < k->out[0].ndim; i++) r.numel *= k->out[0].dim[i];
    if (r.numel == 0) return ST_OK;
    char *s = k->scratch;
    r.view = (VmView *)s;
    s += round_up((int64_t)sizeof(VmView) * k->nin, 64);
    r.code = (VmCode *)s;
    s += round_up((int64_t)sizeof(VmCode) * p->ninstr, 64);
    alloc_bind(&r.alloc, (int32_t *)s, p->ninstr);
    for (int i = 0; i < k->nin; i++) r.view[i] = vm_view(&k->in[i], k->out[0].ndim, k->out[0].dim);
    alloc_run(&r.alloc, p, r.view);
    r.registers = (char *)k->scratch + header_nbytes(p, k->nin);
    r.worker_nbytes = class_offset(&r.alloc, CLASSES);
    CHECK(header_nbytes(p, k->nin) + r.worker_nbytes * pool_nthreads(k->pool) <= (int64_t)k->scratch_nbytes, "scratch too small");
    TRY(make_code(&r, k, d));
    // About 20 us of work per part at a nanosecond per instruction and four elements.
    int64_t grain = round_up(max_i64(BLOCK, 65536 / max_i64(1, r.ncode)), BLOCK);
    pool_run(k->pool, run_blocks, &r, r.numel, grain);
    return r.zero_divisor ? diag_error(d, ST_NUMERIC, "integer division by zero") : ST_OK;
}
