// Reading and writing by index. The indexed dim is never divided among ranks, so indices are local. Where two writes may meet,
// work is divided by place, not by write, and every place sees its writes in their order: results do not depend on the threads.
#include <string.h>
#include "backend/cpu/kernels.h"

// ---- checking -----------------------------------------------------------------------------------------------------------

// The error for the index at local position `at` of operand `o`, with its global coordinates.
static Status index_error(const KernelArgs *k, const Operand *o, int64_t at, int64_t n, Diag *d) {
    int64_t coord[MAX_DIMS], value = ((const int64_t *)o->data)[at];
    char where[MAX_DIMS * 24] = "";
    for (int i = o->ndim - 1; i >= 0; i--) {
        coord[i] = at % o->dim[i];
        at /= o->dim[i];
        if (i != o->sdim) continue;
        Axis a = axis_of(o, i);
        coord[i] = axis_global(&a, coord[i]);
    }
    for (int i = 0, len = 0; i < o->ndim; i++)
        len += snprintf(where + len, sizeof where - (size_t)len, "%s%lld", i ? ", " : "", (long long)coord[i]);
    return diag_error(d, ST_NUMERIC, "%s: index %lld at [%s] is outside [0, %lld)", op_name(k->node->op), (long long)value, where,
                      (long long)n);
}

Status cpu_check_indices(const KernelArgs *k, const Operand *o, int64_t n, Diag *d) {
    const int64_t *index = o->data;
    int64_t count = operand_elems(o), bad = 0;
    for (int64_t i = 0; i < count; i++) bad |= (uint64_t)index[i] >= (uint64_t)n;
    for (int64_t i = 0; bad && i < count; i++)
        if ((uint64_t)index[i] >= (uint64_t)n) return index_error(k, o, i, n, d);
    return ST_OK;
}

// ---- rows of a table ----------------------------------------------------------------------------------------------------

typedef struct Rows {
    const int64_t *index;
    int64_t n, nrows, rest;  // indices; rows of the table; elements of a row
    int64_t skip;
    int elem;
    const char *src;
    char *dst;
    bool by_column;          // how the scatter is divided
} Rows;

static void embedding_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Rows *r = ctx;
    int64_t row = r->rest * r->elem;
    for (int64_t i = begin; i < end; i++) memcpy(r->dst + i * row, r->src + r->index[i] * row, (size_t)row);
}

Status cpu_embedding(const KernelArgs *k, Diag *d) {
    const Operand *table = &k->in[0], *index = &k->in[1];
    TRY(cpu_check_indices(k, index, table->dim[0], d));
    Rows r = {.index = index->data, .n = operand_elems(index), .rest = operand_count(table, 1, table->ndim)};
    r.elem = dtype_nbytes(table->dtype), r.src = table->data, r.dst = k->out[0].data;
    kernel_run(k->pool, embedding_part, &r, r.n, r.rest);
    return ST_OK;
}

// dst[index[i]] += src[i] (or = with `set`), for rows [r0, r1) and columns [c0, c1).
#define SCATTER_ROWS(name, T, OP)                                                                                          \
    static void name(const Rows *r, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {                                      \
        for (int64_t i = 0; i < r->n; i++) {                                                                               \
            int64_t row = r->index[i];                                                                                     \
            if (row < r0 || row >= r1 || row == r->skip) continue;                                                         \
            T *o = (T *)r->dst + row * r->rest;                                                                            \
            const T *x = (const T *)r->src + i * r->rest;                                                                  \
            for (int64_t c = c0; c < c1; c++) o[c] OP x[c];                                                                \
        }                                                                                                                  \
    }
SCATTER_ROWS(add_rows_f32, float, +=)
SCATTER_ROWS(add_rows_f64, double, +=)
SCATTER_ROWS(add_rows_i64, uint64_t, +=)
SCATTER_ROWS(set_rows_1, uint8_t, =)
SCATTER_ROWS(set_rows_4, uint32_t, =)
SCATTER_ROWS(set_rows_8, uint64_t, =)

typedef void (*ScatterRows)(const Rows *, int64_t, int64_t, int64_t, int64_t);
static ScatterRows scatter_rows_fn(DType t, bool accumulate) {
    if (!accumulate) return dtype_nbytes(t) == 1 ? set_rows_1 : dtype_nbytes(t) == 4 ? set_rows_4 : set_rows_8;
    return t == DT_F32 ? add_rows_f32 : t == DT_F64 ? add_rows_f64 : t == DT_I64 ? add_rows_i64 : NULL;
}

typedef struct Scatter {
    Rows rows;
    ScatterRows fn;
    const char *initial;  // what dst starts as; NULL: zeros
} Scatter;

static void scatter_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Scatter *s = ctx;
    const Rows *r = &s->rows;
    int64_t r0 = r->by_column ? 0 : begin, r1 = r->by_column ? r->nrows : end;
    int64_t c0 = r->by_column ? begin : 0, c1 = r->by_column ? end : r->rest;
    size_t width = (size_t)((c1 - c0) * r->elem);
    for (int64_t i = r0; i < r1 && s->initial != r->dst; i++) {
        int64_t off = (i * r->rest + c0) * r->elem;
        if (s->initial) memcpy(r->dst + off, s->initial + off, width);
        else memset(r->dst + off, 0, width);
    }
    s->fn(r, r0, r1, c0, c1);
}

enum { COLUMN_GRAIN = 16 };  // a cache line of floats, so that workers do not write to the same line

static void scatter_run(Pool *p, Scatter *s) {
    s->rows.by_column = s->rows.rest >= COLUMN_GRAIN * pool_nthreads(p);
    if (s->rows.rest == 0) return;
    int64_t columns = 16384 / max_i64(1, s->rows.n + s->rows.nrows);
    if (s->rows.by_column) pool_run(p, scatter_part, s, s->rows.rest, round_up(max_i64(1, columns), COLUMN_GRAIN));
    else pool_run(p, scatter_part, s, s->rows.nrows, max_i64(64, ceil_div(16384, s->rows.rest)));
}

Status cpu_embedding_grad(const KernelArgs *k, Diag *d) {
    const Operand *index = &k->in[0], *out = &k->out[0];
    TRY(cpu_check_indices(k, index, out->dim[0], d));
    Scatter s = {.rows = {.index = index->data, .n = operand_elems(index), .nrows = out->dim[0]}};
    s.rows.rest = operand_count(out, 1, out->ndim), s.rows.skip = node_int_or(k->node, ATTR_SKIP, -1);
    s.rows.elem = dtype_nbytes(out->dtype), s.rows.src = k->in[1].data, s.rows.dst = out->data;
    s.fn = scatter_rows_fn(out->dtype, true);
    scatter_run(k->pool, &s);
    return ST_OK;
}

Status cpu_index_put(const KernelArgs *k, Diag *d) {
    const Operand *x = &k->in[0], *index = &k->in[1];
    TRY(cpu_check_indices(k, index, x->dim[0], d));
    Scatter s = {.rows = {.index = index->data, .n = operand_elems(index), .nrows = x->dim[0], .skip = -1}, .initial = x->data};
    s.rows.rest = operand_count(x, 1, x->ndim), s.rows.elem = dtype_nbytes(x->dtype);
    s.rows.src = k->in[2].data, s.rows.dst = k->out[0].data;
    s.fn = scatter_rows_fn(x->dtype, node_int_or(k->node, ATTR_ACCUMULATE, 0) != 0);
    if (!s.fn) return diag_error(d, ST_UNSUPPORTED, "the CPU has no index_put that accumulates %s", dtype_name(x->dtype));
    scatter_run(k->pool, &s);
    return ST_OK;
}

// ---- one element per index ----------------------------------------------------------------------------------------------

typedef struct Pick {
    const Operand *x, *index, *out;
} Pick;

#define PICK(name, T)                                                                       \
    static void name(void *ctx, int64_t begin, int64_t end, int worker) {                   \
        (void)worker;                                                                       \
        const Pick *p = ctx;                                                                \
        int64_t v = p->x->dim[p->x->ndim - 1];                                              \
        for (int64_t i = begin; i < end; i++) {                                             \
            int64_t t = ((const int64_t *)p->index->data)[i];                               \
            ((T *)p->out->data)[i] = ((const T *)p->x->data)[i * v + t];                    \
        }                                                                                   \
    }
PICK(pick_1, uint8_t)
PICK(pick_4, float)
PICK(pick_8, uint64_t)

Status cpu_pick(const KernelArgs *k, Diag *d) {
    TRY(cpu_check_indices(k, &k->in[1], k->in[0].dim[k->in[0].ndim - 1], d));
    Pick p = {.x = &k->in[0], .index = &k->in[1], .out = &k->out[0]};
    int elem = dtype_nbytes(k->out[0].dtype);
    kernel_run(k->pool, elem == 1 ? pick_1 : elem == 4 ? pick_4 : pick_8, &p, operand_elems(&k->out[0]), 8);
    return ST_OK;
}

// ---- gather and scatter_add: lines along the indexed dim ----------------------------------------------------------------

// A line is one combination of the index operand's other coordinates. `large` is gathered from or scattered to, `small` has the
// index's place (scatter: the source, whose shape may be larger than the index's).
typedef struct Lines {
    const Operand *index, *small, *large;
    int dim;
} Lines;

static int64_t line_offset(const Lines *l, const Operand *o, int64_t line) {
    int64_t off = 0, stride = 1, coord[MAX_DIMS] = {0};
    for (int i = l->index->ndim - 1; i >= 0; i--) {
        coord[i] = i == l->dim ? 0 : line % l->index->dim[i];
        if (i != l->dim) line /= l->index->dim[i];
    }
    for (int i = o->ndim - 1; i >= 0; i--) off += coord[i] * stride, stride *= o->dim[i];
    return off;
}

#define LINES(name, T, STATEMENT)                                                                      \
    static void name(void *ctx, int64_t begin, int64_t end, int worker) {                              \
        (void)worker;                                                                                  \
        const Lines *l = ctx;                                                                          \
        int64_t n = l->index->dim[l->dim], pitch_i = operand_count(l->index, l->dim + 1, l->index->ndim); \
        int64_t pitch_s = operand_count(l->small, l->dim + 1, l->small->ndim);                         \
        int64_t pitch_l = operand_count(l->large, l->dim + 1, l->large->ndim);                         \
        for (int64_t line = begin; line < end; line++) {                                               \
            const int64_t *index = (const int64_t *)l->index->data + line_offset(l, l->index, line);   \
            T *small = (T *)l->small->data + line_offset(l, l->small, line);                           \
            T *large = (T *)l->large->data + line_offset(l, l->large, line);                           \
            for (int64_t j = 0; j < n; j++) STATEMENT;                                                 \
        }                                                                                              \
    }
LINES(gather_1, uint8_t, small[j * pitch_s] = large[index[j * pitch_i] * pitch_l])
LINES(gather_4, uint32_t, small[j * pitch_s] = large[index[j * pitch_i] * pitch_l])
LINES(gather_8, uint64_t, small[j * pitch_s] = large[index[j * pitch_i] * pitch_l])
LINES(scatter_f32, float, large[index[j * pitch_i] * pitch_l] += small[j * pitch_s])
LINES(scatter_f64, double, large[index[j * pitch_i] * pitch_l] += small[j * pitch_s])
LINES(scatter_i64, uint64_t, large[index[j * pitch_i] * pitch_l] += small[j * pitch_s])

static void lines_run(const KernelArgs *k, const Lines *l, PoolFn fn) {
    int64_t numel = operand_elems(l->index), n = l->index->dim[l->dim];
    if (numel > 0) kernel_run(k->pool, fn, (void *)l, numel / n, 4 * n + 16);
}

Status cpu_gather(const KernelArgs *k, Diag *d) {
    Lines l = {.index = &k->in[1], .small = &k->out[0], .large = &k->in[0], .dim = (int)node_int(k->node, ATTR_DIM)};
    TRY(cpu_check_indices(k, l.index, l.large->dim[l.dim], d));
    int elem = dtype_nbytes(k->out[0].dtype);
    lines_run(k, &l, elem == 1 ? gather_1 : elem == 4 ? gather_4 : gather_8);
    return ST_OK;
}

Status cpu_scatter_add(const KernelArgs *k, Diag *d) {
    Lines l = {.index = &k->in[1], .small = &k->in[2], .large = &k->out[0], .dim = (int)node_int(k->node, ATTR_DIM)};
    TRY(cpu_check_indices(k, l.index, l.large->dim[l.dim], d));
    DType t = k->out[0].dtype;
    if (!dtype_is_float(t) && t != DT_I64)
        return diag_error(d, ST_UNSUPPORTED, "the CPU has no scatter_add of %s", dtype_name(t));
    TRY(cpu_copy(k, d));
    lines_run(k, &l, t == DT_F32 ? scatter_f32 : t == DT_F64 ? scatter_f64 : scatter_i64);
    return ST_OK;
}

Status cpu_histogram(const KernelArgs *k, Diag *d) {
    (void)d;
    const int64_t *x = k->in[0].data;
    int64_t *count = k->out[0].data, bins = k->out[0].dim[0], n = operand_elems(&k->in[0]);
    memset(count, 0, sizeof *count * (size_t)bins);
    for (int64_t i = 0; i < n; i++)
        if (x[i] >= 0 && x[i] < bins) count[x[i]]++;
    return ST_OK;
}
