// Sums and maxima over any set of dims. Float sums accumulate in float64, in an order that depends on the shape only.
//
// Dims of size 1 are dropped and neighbours of one kind merged, so that kept and reduced dims alternate. The innermost decides:
//   reduced: a result is the sum of rows           [kept...][reduced... x row]      in chunks of CHUNK elements
//   kept:    COLUMNS results are summed together   [kept... x columns][reduced...]
// A step is one chunk of a row, or one row of columns. Where results are few, the steps are cut into pieces that run in
// parallel and are combined in order.
#include <math.h>
#include "backend/cpu/kernels.h"

enum { LANES = 16, COLUMNS = 256, CHUNK = 8192 };
enum { ENOUGH_UNITS = 32, PIECE_ELEMS = 32768 };  // parallel units aimed at; elements below which a piece is not worth it

typedef struct Dims {
    int n;
    int64_t size[MAX_DIMS], stride[MAX_DIMS];
} Dims;

static void dims_push(Dims *d, int64_t size, int64_t stride) { d->size[d->n] = size, d->stride[d->n] = stride, d->n++; }

static int64_t dims_count(const Dims *d) {
    int64_t n = 1;
    for (int i = 0; i < d->n; i++) n *= d->size[i];
    return n;
}

static int64_t dims_offset(const Dims *d, int64_t index) {
    int64_t off = 0;
    for (int i = d->n - 1; i > 0; i--) {
        off += index % d->size[i] * d->stride[i];
        index /= d->size[i];
    }
    return d->n > 0 ? off + index * d->stride[0] : 0;
}

typedef struct Reduction {
    Dims kept, reduced;  // without the innermost dim, which is the row or the columns
    int64_t row_length;  // 0: columns
    int64_t columns;     // results per kept index; 1 with rows
    int64_t groups;      // of COLUMNS columns
    int64_t units, results, chunks, steps, pieces;
    const void *src;
    void *dst, *partial;  // partial: [pieces, results] of 8 bytes, where pieces > 1
} Reduction;

static Reduction reduction_of(const Node *n, const Operand *in) {
    Reduction r = {.columns = 1, .chunks = 1, .src = in->data};
    bool marked[MAX_DIMS] = {false}, last = false;
    const int64_t *list;
    int count = node_ints(n, ATTR_DIMS, &list);
    for (int i = 0; i < count; i++) marked[list[i]] = true;
    Dims all = {0};
    bool kind[MAX_DIMS];
    for (int i = 0; i < in->ndim; i++) {
        if (in->dim[i] == 1) continue;
        if (all.n > 0 && last == marked[i]) {
            all.size[all.n - 1] *= in->dim[i];
        } else {
            kind[all.n] = marked[i];
            dims_push(&all, in->dim[i], 0);
        }
        last = marked[i];
    }
    int64_t stride = 1;
    for (int i = all.n - 1; i >= 0; i--) all.stride[i] = stride, stride *= all.size[i];
    for (int i = 0; i < all.n - 1; i++) dims_push(kind[i] ? &r.reduced : &r.kept, all.size[i], all.stride[i]);
    if (all.n > 0 && kind[all.n - 1]) r.row_length = all.size[all.n - 1], r.chunks = ceil_div(r.row_length, CHUNK);
    else if (all.n > 0) r.columns = all.size[all.n - 1];
    r.groups = ceil_div(r.columns, COLUMNS);
    r.results = dims_count(&r.kept) * r.columns;
    r.units = dims_count(&r.kept) * r.groups;
    r.steps = dims_count(&r.reduced) * r.chunks;
    int64_t worth = min_i64(ceil_div(ENOUGH_UNITS, max_i64(1, r.units)), operand_elems(in) / PIECE_ELEMS);
    r.pieces = max_i64(1, min_i64(worth, r.steps));
    return r;
}

// A max keeps NaN: once acc is NaN no comparison replaces it.
#define FLOAT_MAX(acc, x) ((x) != (x) || (x) > (acc) ? (x) : (acc))
#define INT_MAX_OF(acc, x) ((x) > (acc) ? (x) : (acc))
#define PLUS(acc, x) ((acc) + (x))

#define T float
#define ACC double
#define OUT float
#define RNAME(name) sum_f32_##name
#define TAKE PLUS
#define START 0
#include "backend/cpu/reduce_impl.h"
#define T double
#define ACC double
#define OUT double
#define RNAME(name) sum_f64_##name
#define TAKE PLUS
#define START 0
#include "backend/cpu/reduce_impl.h"
#define T int64_t
#define ACC uint64_t
#define OUT int64_t
#define RNAME(name) sum_i64_##name
#define TAKE PLUS
#define START 0
#include "backend/cpu/reduce_impl.h"
#define T uint8_t
#define ACC int64_t
#define OUT int64_t
#define RNAME(name) sum_bool_##name
#define TAKE PLUS
#define START 0
#include "backend/cpu/reduce_impl.h"
#define T float
#define ACC float
#define OUT float
#define RNAME(name) max_f32_##name
#define TAKE FLOAT_MAX
#define START (-INFINITY)
#include "backend/cpu/reduce_impl.h"
#define T double
#define ACC double
#define OUT double
#define RNAME(name) max_f64_##name
#define TAKE FLOAT_MAX
#define START (-INFINITY)
#include "backend/cpu/reduce_impl.h"
#define T int64_t
#define ACC int64_t
#define OUT int64_t
#define RNAME(name) max_i64_##name
#define TAKE INT_MAX_OF
#define START INT64_MIN
#include "backend/cpu/reduce_impl.h"

static Status reduce_run(const KernelArgs *k, PoolFn part, void (*combine)(const Reduction *)) {
    Reduction r = reduction_of(k->node, &k->in[0]);
    r.dst = k->out[0].data;
    if (r.results == 0) return ST_OK;
    if (r.pieces > 1) {
        CHECK(k->scratch_nbytes >= (size_t)(8 * r.pieces * r.results), "scratch too small");
        r.partial = k->scratch;
    }
    int64_t units = r.units * r.pieces;
    kernel_run(k->pool, part, &r, units, operand_elems(&k->in[0]) / units);
    if (r.partial) combine(&r);
    return ST_OK;
}

size_t cpu_sum_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)out, (void)nthreads;
    Reduction r = reduction_of(n, in);
    return r.pieces > 1 ? (size_t)(8 * r.pieces * r.results) : 0;
}

size_t cpu_amax_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    return cpu_sum_scratch(n, in, out, nthreads);
}

Status cpu_sum(const KernelArgs *k, Diag *d) {
    switch (k->in[0].dtype) {
    case DT_F32: return reduce_run(k, sum_f32_part, sum_f32_combine);
    case DT_F64: return reduce_run(k, sum_f64_part, sum_f64_combine);
    case DT_I64: return reduce_run(k, sum_i64_part, sum_i64_combine);
    case DT_BOOL: return reduce_run(k, sum_bool_part, sum_bool_combine);
    default: return diag_error(d, ST_UNSUPPORTED, "the CPU has no sum of %s", dtype_name(k->in[0].dtype));
    }
}

Status cpu_amax(const KernelArgs *k, Diag *d) {
    switch (k->in[0].dtype) {
    case DT_F32: return reduce_run(k, max_f32_part, max_f32_combine);
    case DT_F64: return reduce_run(k, max_f64_part, max_f64_combine);
    case DT_I64: return reduce_run(k, max_i64_part, max_i64_combine);
    default: return diag_error(d, ST_UNSUPPORTED, "the CPU has no amax of %s", dtype_name(k->in[0].dtype));
    }
}
