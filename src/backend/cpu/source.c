// Values made from nothing: positions and random numbers in global coordinates. (full: movement.c; parameters, inputs and
// constants are loaded into the arena by the runtime.)
#include "backend/cpu/kernels.h"
#include "base/random.h"

Status cpu_loaded(const KernelArgs *k, Diag *d) {
    (void)k, (void)d;
    return ST_OK;
}

static void store(const Operand *o, int64_t at, double value) {
    if (o->dtype == DT_F32) ((float *)o->data)[at] = (float)value;
    else ((double *)o->data)[at] = value;
}

Status cpu_iota(const KernelArgs *k, Diag *d) {
    (void)d;
    const Operand *o = &k->out[0];
    Axis a = axis_of(o, (int)node_int(k->node, ATTR_DIM));
    int64_t start = node_int(k->node, ATTR_START), step = node_int(k->node, ATTR_STEP), at = 0;
    for (int64_t outer = 0; outer < a.outer; outer++)
        for (int s = 0; s < a.nspan; s++)
            for (int64_t g = axis_spans(&a)[s].begin; g < axis_spans(&a)[s].end; g++)
                for (int64_t i = 0; i < a.inner; i++, at++) {
                    int64_t v = start + g * step;
                    if (o->dtype == DT_I64) ((int64_t *)o->data)[at] = v;
                    else store(o, at, (double)v);
                }
    return ST_OK;
}

typedef struct Random {
    const Operand *out;
    Axis axis;
    int64_t extent;  // global extent of the axis
    uint64_t key;
} Random;

// Parts are rows [outer, n] of `inner` elements, whose indices follow each other globally too.
static void random_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Random *r = ctx;
    for (int64_t row = begin; row < end; row++) {
        int64_t outer = row / r->axis.n, local = row % r->axis.n, s = 0;
        while (local >= axis_spans(&r->axis)[s].end - axis_spans(&r->axis)[s].begin)
            local -= axis_spans(&r->axis)[s].end - axis_spans(&r->axis)[s].begin, s++;
        int64_t first = (outer * r->extent + axis_spans(&r->axis)[s].begin + local) * r->axis.inner;
        for (int64_t i = 0; i < r->axis.inner; i++) store(r->out, row * r->axis.inner + i, random_at(r->key, first + i));
    }
}

Status cpu_random(const KernelArgs *k, Diag *d) {
    (void)d;
    const Operand *o = &k->out[0];
    if (operand_elems(o) == 0) return ST_OK;
    Random r = {.out = o, .extent = 1, .key = random_key(k->run_seed, k->step, node_int(k->node, ATTR_SEED))};
    if (o->sdim >= 0) {
        r.axis = axis_of(o, o->sdim);
        r.extent = o->global[o->sdim];
    } else {  // one axis of all dims but the last, so that there are rows to divide
        int last = o->ndim > 0 ? o->ndim - 1 : 0;
        r.axis = (Axis){.outer = 1, .n = operand_count(o, 0, last), .inner = operand_count(o, last, o->ndim), .nspan = 1};
        r.axis.whole = (Span){0, r.axis.n};
    }
    kernel_run(k->pool, random_part, &r, r.axis.outer * r.axis.n, 2 * r.axis.inner);
    return ST_OK;
}
