#include "exec/exchange.h"

#include <math.h>
#include <string.h>

// One side of a box copy: a dense row-major array of `dim` and where the box starts in it.
typedef struct Place {
    char *data;
    const int64_t *dim, *start;
} Place;

static const int64_t zeros[MAX_DIMS];

static Status fill_start(const Memory *m, const Operand *o, Reduce reduce, Diag *d) {
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    if (n == 0) return ST_OK;
    if (m->api) return m->api->fill(m->device, o->data, o->dtype, n, reduce == RED_MAX && o->dtype != DT_BOOL ? -INFINITY : 0, d);
    memset(o->data, 0, (size_t)n * (size_t)dtype_nbytes(o->dtype));
    if (reduce != RED_MAX) return ST_OK;
    if (o->dtype == DT_F32)
        for (int64_t i = 0; i < n; i++) ((float *)o->data)[i] = -INFINITY;
    if (o->dtype == DT_F64)
        for (int64_t i = 0; i < n; i++) ((double *)o->data)[i] = -INFINITY;
    if (o->dtype == DT_I64)
        for (int64_t i = 0; i < n; i++) ((int64_t *)o->data)[i] = INT64_MIN;
    return ST_OK;
}

#define REDUCE_RUN(T)                                                                                          \
    do {                                                                                                       \
        T *x = dst;                                                                                            \
        const T *y = src;                                                                                      \
        if (reduce == RED_SUM)                                                                                 \
            for (int64_t i = 0; i < n; i++) x[i] += y[i];                                                      \
        else                                                                                                   \
            for (int64_t i = 0; i < n; i++) x[i] = y[i] > x[i] || y[i] != y[i] ? y[i] : x[i]; /* NaN stays */ \
    } while (0)

static void reduce_run(void *dst, const void *src, int64_t n, DType t, Reduce reduce) {
    switch (t) {
    case DT_F32: REDUCE_RUN(float); break;
    case DT_F64: REDUCE_RUN(double); break;
    case DT_I64: REDUCE_RUN(int64_t); break;
    case DT_BOOL:  // sum and maximum of truth values are both "or"
        for (int64_t i = 0; i < n; i++) ((uint8_t *)dst)[i] |= ((const uint8_t *)src)[i];
        break;
    default: CHECK(false, "a reduction of %s", dtype_name(t));
    }
}

// dst box (= or op=) src box, `size` elements per dim, in runs that are contiguous on both sides.
static void copy_box_host(const Place *dst, const Place *src, int ndim, const int64_t *size, DType t, Reduce reduce) {
    int inner = ndim - 1;  // dims from `inner` on form one run
    while (inner > 0 && size[inner] == dst->dim[inner] && size[inner] == src->dim[inner]) inner--;
    int64_t run = 1, outer = 1, at[MAX_DIMS] = {0}, elem = dtype_nbytes(t);
    for (int i = inner < 0 ? 0 : inner; i < ndim; i++) run *= size[i];
    for (int i = 0; i < inner; i++) outer *= size[i];
    if (run == 0) return;
    for (int64_t k = 0; k < outer; k++) {
        int64_t to = 0, from = 0;
        for (int i = 0; i < ndim; i++) {
            to = to * dst->dim[i] + dst->start[i] + at[i];
            from = from * src->dim[i] + src->start[i] + at[i];
        }
        if (reduce == RED_NONE) memcpy(dst->data + to * elem, src->data + from * elem, (size_t)(run * elem));
        else reduce_run(dst->data + to * elem, src->data + from * elem, run, t, reduce);
        for (int i = inner - 1; i >= 0 && ++at[i] == size[i]; i--) at[i] = 0;
    }
}

static Status copy_box(const Memory *m, const Place *dst, const Place *src, int ndim, const int64_t *size, DType t, Reduce reduce,
                       Diag *d) {
    if (!m->api) {
        copy_box_host(dst, src, ndim, size, t, reduce);
        return ST_OK;
    }
    BoxCopy b = {.dst = dst->data,
                 .src = src->data,
                 .ndim = ndim,
                 .dst_dim = dst->dim,
                 .dst_start = dst->start,
                 .src_dim = src->dim,
                 .src_start = src->start,
                 .size = size,
                 .dtype = t,
                 .reduce = reduce};
    return m->api->copy_box(m->device, &b, d);
}

// A scalar's boxes are those of a one-element vector.
static const int64_t one_dim[1] = {1};
static Place place_of(const Operand *o, const Box *b) {
    return (Place){o->data, o->ndim > 0 ? o->dim : one_dim, b->start};
}

static Status pack(const Memory *m, const Exchange *e, const Operand *in, char *message, int self, Diag *d) {
    for (int i = 0; i < e->nsend; i++) {
        const Box *b = &e->send[i];
        if (b->peer == self) continue;
        Place dst = {message + b->msg_off * dtype_nbytes(in->dtype), b->size, zeros}, src = place_of(in, b);
        TRY(copy_box(m, &dst, &src, b->ndim, b->size, in->dtype, RED_NONE, d));
    }
    return ST_OK;
}

static Status unpack(const Memory *m, const Exchange *e, const Operand *in, const Operand *out, char *message, int self,
                     Diag *d) {
    int own = 0;  // next own send box: paired in order with own recv boxes
    if (e->reduce != RED_NONE && e->ncover == 0) TRY(fill_start(m, out, e->reduce, d));
    for (int i = 0; i < e->nrecv; i++) {
        const Box *b = &e->recv[i];
        Reduce reduce = i < e->ncover ? RED_NONE : e->reduce;
        Place dst = place_of(out, b), src;
        if (b->peer == self) {
            while (e->send[own].peer != self) own++;
            src = place_of(in, &e->send[own++]);
        } else {
            if (e->recv_direct) continue;
            src = (Place){message + b->msg_off * dtype_nbytes(out->dtype), b->size, zeros};
        }
        TRY(copy_box(m, &dst, &src, b->ndim, b->size, out->dtype, reduce, d));
    }
    return ST_OK;
}

Status exchange_run(Comm *c, const Memory *m, const Step *s, const Operand *in, const Operand *out, void *staging,
                    const char *label, Diag *d) {
    const Exchange *e = s->exchange;
    char *send = staging, *recv = staging ? (char *)staging + s->staging_send_nbytes : NULL;
    if (!e->send_direct) TRY(pack(m, e, in, send, c->rank, d));
    if (e->collective)
        TRY(c->vt->alltoallv(c, e->send_direct ? in->data : send, e->send_off, e->send_nbytes, e->recv_direct ? out->data : recv,
                             e->recv_off, e->recv_nbytes, label, d));
    return unpack(m, e, in, out, recv, c->rank, d);
}
