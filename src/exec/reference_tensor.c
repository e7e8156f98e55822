// Reference: movement of data, reductions and scans.
#include <math.h>
#include <string.h>
#include "exec/reference.h"
#include "ops/chunk.h"

static Status ref_copy(const RefNode *r, Diag *d) {  // reshape, reshard, copies: the same elements in the same order
    (void)d;
    memcpy(r->out[0], r->in[0], sizeof(double) * (size_t)shape_numel(ref_out_shape(r, 0)));
    return ST_OK;
}

static Status ref_offload_done(const RefNode *r, Diag *d) {  // the copy, not what it is a copy of
    (void)d;
    memcpy(r->out[0], r->in[1], sizeof(double) * (size_t)shape_numel(ref_out_shape(r, 0)));
    return ST_OK;
}

static Status ref_permute(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *si = ref_in_shape(r, 0), *so = ref_out_shape(r, 0);
    const int64_t *dims;
    node_ints(r->n, ATTR_DIMS, &dims);
    int64_t index[MAX_DIMS] = {0}, from[MAX_DIMS] = {0}, e = 0;
    if (shape_numel(so) == 0) return ST_OK;
    do {
        for (int i = 0; i < so->ndim; i++) from[dims[i]] = index[i];
        r->out[0][e++] = r->in[0][ref_offset(si, from)];
    } while (ref_next(so, index));
    return ST_OK;
}

static Status ref_broadcast(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *so = ref_out_shape(r, 0);
    int64_t index[MAX_DIMS] = {0}, e = 0;
    if (shape_numel(so) == 0) return ST_OK;
    do r->out[0][e++] = r->in[0][ref_broadcast_offset(ref_in_shape(r, 0), so, index)];
    while (ref_next(so, index));
    return ST_OK;
}

static Status ref_slice(const RefNode *r, Diag *d) {
    (void)d;
    int dim = (int)node_int(r->n, ATTR_DIM);
    int64_t start = node_int(r->n, ATTR_START), step = node_int_or(r->n, ATTR_STEP, 1), outer, n, inner, nin;
    ref_split(ref_in_shape(r, 0), dim, &outer, &nin, &inner);
    n = ref_out_shape(r, 0)->dim[dim];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < inner; k++)
                r->out[0][(o * n + j) * inner + k] = r->in[0][(o * nin + start + j * step) * inner + k];
    return ST_OK;
}

static Status ref_pad(const RefNode *r, Diag *d) {
    (void)d;
    int dim = (int)node_int(r->n, ATTR_DIM);
    int64_t lo = node_int(r->n, ATTR_LO), outer, n, inner, nin;
    double value = node_float_or(r->n, ATTR_VALUE, 0);
    ref_split(ref_in_shape(r, 0), dim, &outer, &nin, &inner);
    n = ref_out_shape(r, 0)->dim[dim];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < inner; k++) {
                bool inside = j >= lo && j < lo + nin;
                r->out[0][(o * n + j) * inner + k] = inside ? r->in[0][(o * nin + j - lo) * inner + k] : value;
            }
    return ST_OK;
}

static Status ref_concat(const RefNode *r, Diag *d) {
    (void)d;
    int dim = (int)node_int(r->n, ATTR_DIM);
    int64_t outer, n, inner, at = 0;
    ref_split(ref_out_shape(r, 0), dim, &outer, &n, &inner);
    for (int i = 0; i < r->n->nin; i++) {
        int64_t ni = ref_in_shape(r, i)->dim[dim];
        for (int64_t o = 0; o < outer; o++)
            for (int64_t j = 0; j < ni * inner; j++) r->out[0][(o * n + at) * inner + j] = r->in[i][o * ni * inner + j];
        at += ni;
    }
    return ST_OK;
}

// Copies between a part and the whole, interval by interval.
static void ref_intervals(const Shape *whole, int dim, double *all, double *part, Intervals v, bool gather) {
    int64_t outer, n, inner, own = 0, at = 0;
    ref_split(whole, dim, &outer, &n, &inner);
    for (int i = 0; i < v.n; i++) own += v.at[2 * i + 1] - v.at[2 * i];
    for (int i = 0; i < v.n; i++)
        for (int64_t j = v.at[2 * i]; j < v.at[2 * i + 1]; j++, at++)
            for (int64_t o = 0; o < outer; o++)
                for (int64_t k = 0; k < inner; k++) {
                    double *w = &all[(o * n + j) * inner + k], *p = &part[(o * own + at) * inner + k];
                    if (gather) *p = *w;
                    else *w = *p;
                }
}

static Status ref_part(const RefNode *r, Diag *d) {
    (void)d;
    ref_intervals(ref_in_shape(r, 0), (int)node_int(r->n, ATTR_DIM), (double *)r->in[0], r->out[0], part_intervals(r->n), true);
    return ST_OK;
}

static Status ref_assemble(const RefNode *r, Diag *d) {
    (void)d;
    Intervals v = {0};
    for (int i = 0; i < r->n->nin; i++) {
        v = assemble_next(r->n, v);
        ref_intervals(ref_out_shape(r, 0), (int)node_int(r->n, ATTR_DIM), r->out[0], (double *)r->in[i], v, false);
    }
    return ST_OK;
}

// sum and amax: out starts at the neutral element and takes every input element at its place.
static Status ref_reduce(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *si = ref_in_shape(r, 0), *so = ref_out_shape(r, 0);
    bool sum = r->n->op == OP_SUM;
    int64_t index[MAX_DIMS] = {0}, e = 0;
    for (int64_t i = 0; i < shape_numel(so); i++) r->out[0][i] = sum ? 0 : -INFINITY;
    if (shape_numel(si) == 0) return ST_OK;
    do {
        double *o = &r->out[0][ref_broadcast_offset(so, si, index)], x = r->in[0][e++];
        if (sum) *o += x;
        else if (isnan(x) || x > *o) *o = x;
    } while (ref_next(si, index));
    return ST_OK;
}

static Status ref_logsumexp(const RefNode *r, Diag *d) {
    (void)d;
    int64_t outer, n, inner;
    ref_split(ref_in_shape(r, 0), (int)node_int(r->n, ATTR_DIM), &outer, &n, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++) {
            const double *x = r->in[0] + o * n * inner + k;
            double max = -INFINITY, sum = 0;
            for (int64_t j = 0; j < n; j++)
                if (isnan(x[j * inner]) || x[j * inner] > max) max = x[j * inner];
            for (int64_t j = 0; j < n; j++) sum += exp(x[j * inner] - (isinf(max) ? 0 : max));
            r->out[0][o * inner + k] = max == -INFINITY ? max : isinf(max) ? log(sum) : max + log(sum);
        }
    return ST_OK;
}

static Status ref_cumsum(const RefNode *r, Diag *d) {
    (void)d;
    int64_t outer, n, inner;
    bool reverse = node_int_or(r->n, ATTR_REVERSE, 0) != 0;
    ref_split(ref_in_shape(r, 0), (int)node_int(r->n, ATTR_DIM), &outer, &n, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) {
                int64_t at = (o * n + (reverse ? n - 1 - j : j)) * inner + k;
                sum += r->in[0][at];
                r->out[0][at] = sum;
            }
        }
    return ST_OK;
}

RefFn ref_tensor_fn(OpKind op) {
    switch (op) {
    case OP_RESHAPE:
    case OP_RESHARD:
    case OP_OFFLOAD:
    case OP_FETCH:
    case OP_FETCH_DONE: return ref_copy;
    case OP_OFFLOAD_DONE: return ref_offload_done;
    case OP_PERMUTE: return ref_permute;
    case OP_BROADCAST: return ref_broadcast;
    case OP_SLICE: return ref_slice;
    case OP_PAD: return ref_pad;
    case OP_CONCAT: return ref_concat;
    case OP_PART: return ref_part;
    case OP_ASSEMBLE: return ref_assemble;
    case OP_SUM:
    case OP_AMAX: return ref_reduce;
    case OP_LOGSUMEXP: return ref_logsumexp;
    case OP_CUMSUM: return ref_cumsum;
    default: return NULL;
    }
}
