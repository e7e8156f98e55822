#include "flash_run.h"
#include <float.h>
#include <math.h>
#include "backend/cuda/attention/flash.h"
#include "backend/cuda/device/module.h"
#include "op_harness.h"

static uint16_t bits_of_bf16(double v) {
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static double bf16_of_bits(uint16_t b) {
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void to_memory(void *to, DType t, int64_t i, double v) {
    switch (t) {
    case DT_F32: ((float *)to)[i] = (float)v; break;
    case DT_BF16: ((uint16_t *)to)[i] = bits_of_bf16(v); break;
    case DT_I64: ((int64_t *)to)[i] = (int64_t)v; break;
    default: ((uint8_t *)to)[i] = v != 0;
    }
}
static double from_memory(const void *from, DType t, int64_t i) {
    return t == DT_F32 ? ((const float *)from)[i] : bf16_of_bits(((const uint16_t *)from)[i]);
}

// q, k, v, do hold bf16 values, whatever they are stored as; o and lse are the forward's.
static void operands(OpCase *c, bool backward, Diag *d) {
    for (int i = 0; i < c->nin; i++)
        for (int64_t j = 0; j < shape_numel(&c->sample->shape[i]) && (i < 3 || (backward && i == 5)); j++)
            c->in[i][j] = bf16_of_bits(bits_of_bf16(c->in[i][j]));
    if (!backward) return;
    Sample forward = *c->sample;
    forward.nin -= 3;
    for (int i = 3; i < forward.nin; i++) forward.shape[i] = forward.shape[i + 3], forward.dtype[i] = forward.dtype[i + 3];
    OpCase f;
    CHECK(op_case_new(&f, OP_ATTENTION, &forward, DT_F32, 1, c->run_seed, d) == ST_OK, "%s", d->text);
    for (int i = 0; i < f.nin; i++) {
        int from = i < 3 ? i : i + 3;
        memcpy(f.in[i], c->in[from], sizeof(double) * (size_t)shape_numel(&c->sample->shape[from]));
    }
    CHECK(op_case_expect(&f, d) == ST_OK, "%s", d->text);
    for (int j = 0; j < 2; j++)
        for (int64_t i = 0; i < shape_numel(&c->sample->shape[3 + j]); i++) c->in[3 + j][i] = (float)f.out[j][i];
    op_case_free(&f);
}

static Operand operand(const FlashHost *h, const OpCase *c, ValueId v, DType t, const double *value) {
    const Value *x = graph_value(c->g, v);
    Operand o = {.dtype = x->dtype == DT_F32 ? t : x->dtype, .ndim = x->shape.ndim, .sdim = -1};
    memcpy(o.dim, x->shape.dim, sizeof o.dim), memcpy(o.global, x->shape.dim, sizeof o.global);
    size_t n = (size_t)shape_numel(&x->shape), nbytes = n * (size_t)dtype_nbytes(o.dtype) + 1;
    o.data = h->alloc(nbytes);
    if (!value) return o;
    void *host = calloc(nbytes, 1);
    CHECK(host, "out of memory");
    for (size_t i = 0; i < n; i++) to_memory(host, o.dtype, (int64_t)i, value[i]);
    h->put(o.data, host, nbytes);
    free(host);
    return o;
}

static bool compare(const FlashHost *h, const Operand *o, const double *want, DType t, int j, FlashError *e, Str *why) {
    int64_t n = 1, wrong = -1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    size_t nbytes = (size_t)n * (size_t)dtype_nbytes(o->dtype);
    void *host = malloc(nbytes + 1);
    CHECK(host, "out of memory");
    h->get(host, o->data, nbytes);
    double square = 0, differ = 0, largest = 0, most = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(want[i])) square += want[i] * want[i], largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n; i++) {
        double got = from_memory(host, o->dtype, i), off = fabs(got - want[i]);
        if (!isfinite(want[i])) {
            if (isnan(want[i]) ? !isnan(got) : got != want[i]) wrong = i;
            continue;
        }
        differ += off * off;
        if (!(off <= most)) most = off;
        double tol = t == DT_F32 ? 64 * FLT_EPSILON * (1 + largest) : 0x1p-5 * largest + 0x1p-7;
        if (!(off <= tol) && wrong < 0) wrong = i;
    }
    double rms = square > 0 ? sqrt(differ / square) : differ > 0;
    e->rms = fmax(e->rms, rms), e->most = fmax(e->most, largest > 0 ? most / largest : most);
    if (wrong >= 0)
        str_printf(why, "output %d, element %lld: %.9g, not %.9g", j, (long long)wrong, from_memory(host, o->dtype, wrong),
                   want[wrong]);
    else if (t == DT_BF16 && rms > 1e-2) str_printf(why, "output %d is off by %.3g of its root mean square", j, rms);
    free(host);
    return why->len == 0;
}

struct FlashRun {
    Sample sample;
    OpCase c;
    bool backward;
};

FlashRun *flash_new(const FlashCase *fc, bool backward) {
    FlashRun *r = calloc(1, sizeof *r);
    CHECK(r, "out of memory");
    Diag d = {0};
    r->backward = backward;
    r->sample = backward ? flash_case_backward(fc) : flash_case_forward(fc);
    CHECK(op_case_new(&r->c, backward ? OP_ATTENTION_GRAD : OP_ATTENTION, &r->sample, DT_F32, 1, 11, &d) == ST_OK, "%s", d.text);
    operands(&r->c, backward, &d);
    CHECK(op_case_expect(&r->c, &d) == ST_OK, "%s", d.text);
    return r;
}

void flash_free(FlashRun *r) {
    op_case_free(&r->c);
    free(r);
}

struct FlashLaunch {
    const FlashHost *h;
    FlashRun *r;
    DType t;
    Operand in[OP_MAX_IN], out[OP_MAX_OUT];
    void *step;
    KernelArgs k;
    Diag diag;  // of asking
};

FlashLaunch *flash_request(const FlashHost *h, FlashRun *r, DType t) {
    OpCase *c = &r->c;
    bool backward = r->backward;
    const Node *n = op_case_node(c);
    FlashLaunch *l = calloc(1, sizeof *l);
    CHECK(l, "out of memory");
    l->h = h, l->r = r, l->t = t;
    for (int i = 0; i < c->nin; i++)
        l->in[i] = operand(h, c, n->in[i], i >= (backward ? 6 : 3) || (backward && i == 4) ? DT_F32 : t, c->in[i]);
    for (int j = 0; j < c->nout; j++) l->out[j] = operand(h, c, n->out[j], !backward && j == 1 ? DT_F32 : t, NULL);
    size_t nbytes = (backward ? flash_attention_grad_scratch : flash_attention_scratch)(n, l->in, l->out);
    DeviceStep step = {.run_seed = c->run_seed, .step = c->step};
    l->step = h->alloc(sizeof step);
    h->put(l->step, &step, sizeof step);
    l->k = (KernelArgs){.node = n,
                        .nin = c->nin,
                        .nout = c->nout,
                        .in = l->in,
                        .out = l->out,
                        .scratch = h->alloc(nbytes + 1),
                        .scratch_nbytes = nbytes,
                        .device = h->device,
                        .run_seed = c->run_seed,
                        .step = c->step};
    Status st = (backward ? flash_attention_grad_prepare : flash_attention_prepare)(h->device, &l->k, &l->k.state, &l->diag);
    CHECK(st == l->diag.status, "a status without its text");
    return l;
}

static Status launch(FlashLaunch *l, Diag *d) {
    if (l->diag.status != ST_OK) return diag_error(d, l->diag.status, "%s", l->diag.text);
    l->h->device->step = l->step;
    TRY(module_wait(l->h->device, d));
    return (l->r->backward ? flash_attention_grad : flash_attention)(&l->k, d);
}

bool flash_finish(FlashLaunch *l, FlashError *error, Str *why) {
    const FlashHost *h = l->h;
    OpCase *c = &l->r->c;
    Diag d = {0};
    *error = (FlashError){0};
    if (launch(l, &d) != ST_OK) str_add(why, d.text);
    for (int j = 0; j < c->nout && why->len == 0; j++) compare(h, &l->out[j], c->out[j], l->t, j, error, why);
    bool ok = why->len == 0;
    for (int i = 0; i < c->nin; i++) h->release(l->in[i].data);
    for (int j = 0; j < c->nout; j++) h->release(l->out[j].data);
    h->release(l->k.scratch), h->release(l->step);
    free(l);
    return ok;
}

bool flash_run(const FlashHost *h, const FlashCase *fc, bool backward, DType t, FlashError *error, Str *why) {
    FlashRun *r = flash_new(fc, backward);
    bool ok = flash_finish(flash_request(h, r, t), error, why);
    flash_free(r);
    return ok;
}
