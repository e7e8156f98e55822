// Reference: reading and writing by index, sorting, counting.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "exec/reference.h"

// index[at] checked against [0, n).
static Status checked(const RefNode *r, const double *index, int64_t at, int64_t n, int64_t *row, Diag *d) {
    *row = (int64_t)index[at];
    if (*row >= 0 && *row < n) return ST_OK;
    return diag_error(d, ST_NUMERIC, "%s: index %lld at position %lld is outside [0, %lld)", op_name(r->n->op), (long long)*row,
                      (long long)at, (long long)n);
}

static int64_t row_size(const Shape *s) {
    int64_t n = 1;
    for (int i = 1; i < s->ndim; i++) n *= s->dim[i];
    return n;
}

static Status ref_embedding(const RefNode *r, Diag *d) {
    const Shape *table = ref_in_shape(r, 0);
    int64_t n = shape_numel(ref_in_shape(r, 1)), rest = row_size(table), row;
    for (int64_t i = 0; i < n; i++) {
        TRY(checked(r, r->in[1], i, table->dim[0], &row, d));
        for (int64_t k = 0; k < rest; k++) r->out[0][i * rest + k] = r->in[0][row * rest + k];
    }
    return ST_OK;
}

static Status ref_embedding_grad(const RefNode *r, Diag *d) {
    const Shape *so = ref_out_shape(r, 0);
    int64_t n = shape_numel(ref_in_shape(r, 0)), rest = row_size(so), row, skip = node_int_or(r->n, ATTR_SKIP, -1);
    memset(r->out[0], 0, sizeof(double) * (size_t)shape_numel(so));
    for (int64_t i = 0; i < n; i++) {
        TRY(checked(r, r->in[0], i, so->dim[0], &row, d));
        if (row == skip) continue;
        for (int64_t k = 0; k < rest; k++) r->out[0][row * rest + k] += r->in[1][i * rest + k];
    }
    return ST_OK;
}

static Status ref_pick(const RefNode *r, Diag *d) {
    const Shape *sx = ref_in_shape(r, 0);
    int64_t n = shape_numel(ref_in_shape(r, 1)), v = sx->dim[sx->ndim - 1], t;
    for (int64_t i = 0; i < n; i++) {
        TRY(checked(r, r->in[1], i, v, &t, d));
        r->out[0][i] = r->in[0][i * v + t];
    }
    return ST_OK;
}

static Status ref_gather(const RefNode *r, Diag *d) {
    const Shape *sx = ref_in_shape(r, 0), *si = ref_in_shape(r, 1);
    int dim = (int)node_int(r->n, ATTR_DIM);
    int64_t index[MAX_DIMS] = {0}, from[MAX_DIMS], e = 0;
    if (shape_numel(si) == 0) return ST_OK;
    do {
        memcpy(from, index, sizeof from);
        TRY(checked(r, r->in[1], e, sx->dim[dim], &from[dim], d));
        r->out[0][e++] = r->in[0][ref_offset(sx, from)];
    } while (ref_next(si, index));
    return ST_OK;
}

static Status ref_scatter_add(const RefNode *r, Diag *d) {
    const Shape *sx = ref_in_shape(r, 0), *si = ref_in_shape(r, 1), *ss = ref_in_shape(r, 2);
    int dim = (int)node_int(r->n, ATTR_DIM);
    int64_t index[MAX_DIMS] = {0}, to[MAX_DIMS], e = 0;
    memcpy(r->out[0], r->in[0], sizeof(double) * (size_t)shape_numel(sx));
    if (shape_numel(si) == 0) return ST_OK;
    do {
        memcpy(to, index, sizeof to);
        TRY(checked(r, r->in[1], e++, sx->dim[dim], &to[dim], d));
        r->out[0][ref_offset(sx, to)] += r->in[2][ref_offset(ss, index)];
    } while (ref_next(si, index));
    return ST_OK;
}

static Status ref_index_put(const RefNode *r, Diag *d) {
    const Shape *sx = ref_in_shape(r, 0);
    int64_t n = shape_numel(ref_in_shape(r, 1)), rest = row_size(sx), row;
    bool accumulate = node_int_or(r->n, ATTR_ACCUMULATE, 0) != 0;
    memcpy(r->out[0], r->in[0], sizeof(double) * (size_t)shape_numel(sx));
    for (int64_t i = 0; i < n; i++) {
        TRY(checked(r, r->in[1], i, sx->dim[0], &row, d));
        for (int64_t k = 0; k < rest; k++) {
            double v = r->in[2][i * rest + k];
            r->out[0][row * rest + k] = accumulate ? r->out[0][row * rest + k] + v : v;
        }
    }
    return ST_OK;
}

// Does x come strictly before y? NaN counts as the greatest value, as in PyTorch.
static bool before(double x, double y, bool descending) {
    if (isnan(x) || isnan(y)) return descending ? isnan(x) && !isnan(y) : !isnan(x) && isnan(y);
    return descending ? x > y : x < y;
}

// Stable insertion of order[0..n) by x[order[i] * stride]; a merge keeps it usable for thousands of elements.
static void stable_sort(int64_t *order, int64_t *tmp, int64_t n, const double *x, int64_t stride, bool descending) {
    if (n < 2) return;
    int64_t h = n / 2, i = 0, j = h, k = 0;
    stable_sort(order, tmp, h, x, stride, descending);
    stable_sort(order + h, tmp, n - h, x, stride, descending);
    while (i < h && j < n) tmp[k++] = before(x[order[j] * stride], x[order[i] * stride], descending) ? order[j++] : order[i++];
    while (i < h) tmp[k++] = order[i++];
    while (j < n) tmp[k++] = order[j++];
    memcpy(order, tmp, sizeof *order * (size_t)n);
}

static Status ref_sort(const RefNode *r, Diag *d) {  // sort, and topk, which takes the first k
    int dim = (int)node_int(r->n, ATTR_DIM);
    bool descending = node_int_or(r->n, ATTR_DESCENDING, r->n->op == OP_TOPK) != 0;
    int64_t outer, n, inner, take = ref_out_shape(r, 0)->dim[dim];
    ref_split(ref_in_shape(r, 0), dim, &outer, &n, &inner);
    int64_t *order = malloc(sizeof *order * (size_t)(2 * n + 1));
    if (!order) return diag_error(d, ST_MEMORY, "out of memory");
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++) {
            const double *x = r->in[0] + o * n * inner + k;
            for (int64_t j = 0; j < n; j++) order[j] = j;
            stable_sort(order, order + n, n, x, inner, descending);
            for (int64_t j = 0; j < take; j++) {
                r->out[0][(o * take + j) * inner + k] = x[order[j] * inner];
                r->out[1][(o * take + j) * inner + k] = (double)order[j];
            }
        }
    free(order);
    return ST_OK;
}

static Status ref_histogram(const RefNode *r, Diag *d) {
    (void)d;
    int64_t bins = ref_out_shape(r, 0)->dim[0], n = shape_numel(ref_in_shape(r, 0));
    memset(r->out[0], 0, sizeof(double) * (size_t)bins);
    for (int64_t i = 0; i < n; i++)
        if (r->in[0][i] >= 0 && r->in[0][i] < (double)bins) r->out[0][(int64_t)r->in[0][i]] += 1;
    return ST_OK;
}

RefFn ref_index_fn(OpKind op) {
    switch (op) {
    case OP_EMBEDDING: return ref_embedding;
    case OP_EMBEDDING_GRAD: return ref_embedding_grad;
    case OP_PICK: return ref_pick;
    case OP_GATHER: return ref_gather;
    case OP_SCATTER_ADD: return ref_scatter_add;
    case OP_INDEX_PUT: return ref_index_put;
    case OP_SORT:
    case OP_TOPK: return ref_sort;
    case OP_HISTOGRAM: return ref_histogram;
    default: return NULL;
    }
}
