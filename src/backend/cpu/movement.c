// Movement of data: permute, broadcast, and the ops that work along one axis in global coordinates (slice, pad, concat, reshard).
// A rank holds intervals (spans) of a sharded axis, so an axis op intersects the intervals of its result, shifted into the
// coordinates of its source, with the intervals of the source, and copies what they share.
#include <string.h>
#include "backend/cpu/kernels.h"
#include "backend/cpu/vm.h"

// ---- rows: [outer, len] rows of row_nbytes each, at different pitches ---------------------------------------------------

typedef struct RowCopy {
    char *dst;
    const char *src;
    int64_t len, row_nbytes, dst_pitch, src_pitch;  // pitches: rows from one outer index to the next
} RowCopy;

static void row_copy_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const RowCopy *c = ctx;
    while (begin < end) {
        int64_t o = begin / c->len, j = begin % c->len, run = min_i64(c->len - j, end - begin);
        memcpy(c->dst + (o * c->dst_pitch + j) * c->row_nbytes, c->src + (o * c->src_pitch + j) * c->row_nbytes,
               (size_t)(run * c->row_nbytes));
        begin += run;
    }
}

static void copy_rows(Pool *p, RowCopy *c, int64_t outer) {
    if (c->len > 0 && c->row_nbytes > 0) kernel_run(p, row_copy_part, c, outer * c->len, c->row_nbytes / 4);
}

// ---- one axis -----------------------------------------------------------------------------------------------------------

// Copies every element of `out` at position g of the axis from position g + shift of `in`, where that lies in [0, extent).
static void copy_axis(const KernelArgs *k, const Operand *out, const Operand *in, int dim, int64_t shift, int64_t extent) {
    Axis to = axis_of(out, dim), from = axis_of(in, dim);
    int64_t row = to.inner * dtype_nbytes(out->dtype), to_pos = 0, wanted = 0, found = 0;
    CHECK(to.outer == from.outer && to.inner == from.inner, "%s: operands differ off the axis", op_name(k->node->op));
    for (int i = 0; i < to.nspan; i++) {
        Span t = axis_spans(&to)[i];
        int64_t begin = max_i64(t.begin + shift, 0), end = min_i64(t.end + shift, extent), from_pos = 0;
        wanted += max_i64(end - begin, 0);
        for (int j = 0; j < from.nspan; j++) {
            Span f = axis_spans(&from)[j];
            int64_t lo = max_i64(begin, f.begin), hi = min_i64(end, f.end);
            if (lo < hi) {
                RowCopy c = {.len = hi - lo, .row_nbytes = row, .dst_pitch = to.n, .src_pitch = from.n};
                c.dst = (char *)out->data + (to_pos + lo - shift - t.begin) * row;
                c.src = (const char *)in->data + (from_pos + lo - f.begin) * row;
                copy_rows(k->pool, &c, to.outer);
                found += hi - lo;
            }
            from_pos += f.end - f.begin;
        }
        to_pos += t.end - t.begin;
    }
    CHECK(found == wanted, "%s: this rank lacks %lld elements of its source", op_name(k->node->op), (long long)(wanted - found));
}

typedef struct StepCopy {
    const Operand *out, *in;
    Axis to, from;
    int64_t start, step, row;
} StepCopy;

static void step_copy_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const StepCopy *c = ctx;
    for (int64_t i = begin; i < end; i++) {
        int64_t o = i / c->to.n, j = axis_local(&c->from, c->start + axis_global(&c->to, i % c->to.n) * c->step);
        CHECK(j >= 0, "slice: this rank lacks an element of its source");
        memcpy((char *)c->out->data + i * c->row, (const char *)c->in->data + (o * c->from.n + j) * c->row, (size_t)c->row);
    }
}

Status cpu_slice(const KernelArgs *k, Diag *d) {
    (void)d;
    int dim = (int)node_int(k->node, ATTR_DIM);
    int64_t start = node_int(k->node, ATTR_START), step = node_int_or(k->node, ATTR_STEP, 1);
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    if (step == 1) {
        copy_axis(k, &k->out[0], &k->in[0], dim, start, k->in[0].global[dim]);
        return ST_OK;
    }
    StepCopy c = {.out = &k->out[0], .in = &k->in[0], .to = axis_of(&k->out[0], dim), .from = axis_of(&k->in[0], dim)};
    c.start = start, c.step = step, c.row = c.to.inner * dtype_nbytes(k->out[0].dtype);
    kernel_run(k->pool, step_copy_part, &c, c.to.outer * c.to.n, c.row / 4 + 4);
    return ST_OK;
}

typedef struct Fill {
    void *dst;
    int elem;
    union { uint8_t b; float f; double d; int64_t i; } value;
} Fill;

static void fill_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Fill *f = ctx;
    VmView v = {.elem = f->elem, .data = (const char *)&f->value};
    vm_view_read(&v, begin, end - begin, (char *)f->dst + begin * f->elem);
}

static void fill_operand(Pool *p, const Operand *o, double value) {
    Fill f = {.dst = o->data, .elem = dtype_nbytes(o->dtype)};
    switch (o->dtype) {
    case DT_F32: f.value.f = (float)value; break;
    case DT_F64: f.value.d = value; break;
    case DT_BOOL: f.value.b = value != 0; break;
    default: f.value.i = (int64_t)value; break;
    }
    kernel_run(p, fill_part, &f, operand_elems(o), 1);
}

Status cpu_full(const KernelArgs *k, Diag *d) {
    (void)d;
    fill_operand(k->pool, &k->out[0], node_float(k->node, ATTR_VALUE));
    return ST_OK;
}

Status cpu_pad(const KernelArgs *k, Diag *d) {
    (void)d;
    int dim = (int)node_int(k->node, ATTR_DIM);
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    fill_operand(k->pool, &k->out[0], node_float_or(k->node, ATTR_VALUE, 0));
    copy_axis(k, &k->out[0], &k->in[0], dim, -node_int(k->node, ATTR_LO), k->in[0].global[dim]);
    return ST_OK;
}

Status cpu_concat(const KernelArgs *k, Diag *d) {
    (void)d;
    int dim = (int)node_int(k->node, ATTR_DIM);
    int64_t at = 0;
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    for (int i = 0; i < k->nin; i++) {
        copy_axis(k, &k->out[0], &k->in[i], dim, -at, k->in[i].global[dim]);
        at += k->in[i].global[dim];
    }
    return ST_OK;
}

static void copy_whole(const KernelArgs *k) {
    RowCopy c = {.dst = k->out[0].data, .src = k->in[0].data, .len = operand_elems(&k->out[0])};
    c.row_nbytes = dtype_nbytes(k->out[0].dtype);
    if (c.dst != c.src) copy_rows(k->pool, &c, 1);
}

Status cpu_copy(const KernelArgs *k, Diag *d) {
    (void)d;
    copy_whole(k);
    return ST_OK;
}

Status cpu_reshard(const KernelArgs *k, Diag *d) {
    (void)d;
    int dim = k->out[0].sdim;
    if (dim < 0) copy_whole(k);
    else if (operand_elems(&k->out[0]) > 0) copy_axis(k, &k->out[0], &k->in[0], dim, 0, k->in[0].global[dim]);
    return ST_OK;
}

// ---- broadcast and permute ----------------------------------------------------------------------------------------------

typedef struct ViewCopy {
    VmView view;
    char *dst;
} ViewCopy;

static void view_copy_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const ViewCopy *c = ctx;
    vm_view_read(&c->view, begin, end - begin, c->dst + begin * c->view.elem);
}

Status cpu_broadcast(const KernelArgs *k, Diag *d) {
    (void)d;
    if (operand_elems(&k->out[0]) == 0) return ST_OK;
    ViewCopy c = {.view = vm_view(&k->in[0], k->out[0].ndim, k->out[0].dim), .dst = k->out[0].data};
    kernel_run(k->pool, view_copy_part, &c, operand_elems(&k->out[0]), 1);
    return ST_OK;
}

// A permutation with dims of size 1 dropped and neighbours that stay neighbours merged. Either the innermost dim stays innermost
// (rows are copied), or dim `fast` of the result is contiguous in the source and tiles are transposed.
typedef struct Permute {
    int ndim, fast, elem;
    int64_t size[MAX_DIMS], to[MAX_DIMS], from[MAX_DIMS];  // per result dim: extent and strides in both
    char *dst;
    const char *src;
} Permute;

enum { TILE = 32 };  // elements on a side of a transposed tile

static Permute permute_of(const KernelArgs *k) {
    const Operand *in = &k->in[0], *out = &k->out[0];
    Permute p = {.elem = dtype_nbytes(out->dtype), .dst = out->data, .src = in->data};
    const int64_t *dims;
    node_ints(k->node, ATTR_DIMS, &dims);
    for (int i = 0; i < out->ndim; i++) {
        int64_t size = out->dim[i], stride = operand_count(in, (int)dims[i] + 1, in->ndim);
        if (size == 1) continue;
        if (p.ndim > 0 && p.from[p.ndim - 1] == size * stride) {
            p.size[p.ndim - 1] *= size, p.from[p.ndim - 1] = stride;
        } else {
            p.size[p.ndim] = size, p.from[p.ndim] = stride, p.ndim++;
        }
    }
    if (p.ndim == 0) p.size[0] = p.from[0] = 1, p.ndim = 1;
    for (int i = p.ndim - 1, s = 1; i >= 0; i--) {
        p.to[i] = i == p.ndim - 1 ? s : p.to[i + 1] * p.size[i + 1];
        if (p.from[i] == 1) p.fast = i;
    }
    return p;
}

// [cols, rows] -> [rows, cols], rows <= TILE. Through a small buffer, because rows of the source a power of two apart would evict
// each other from the cache before they are used up.
#define TRANSPOSE(T)                                                                                                          \
    static void transpose_##T(T *dst, const T *src, int64_t rows, int64_t cols, int64_t dst_pitch, int64_t src_pitch) {        \
        T tile[TILE][TILE];                                                                                                    \
        for (int64_t c0 = 0; c0 < cols; c0 += TILE) {                                                                          \
            int64_t n = min_i64(TILE, cols - c0);                                                                              \
            for (int64_t c = 0; c < n; c++)                                                                                    \
                for (int64_t r = 0; r < rows; r++) tile[c][r] = src[(c0 + c) * src_pitch + r];                                 \
            for (int64_t r = 0; r < rows; r++)                                                                                 \
                for (int64_t c = 0; c < n; c++) dst[r * dst_pitch + c0 + c] = tile[c][r];                                      \
        }                                                                                                                      \
    }
TRANSPOSE(uint8_t)
TRANSPOSE(uint32_t)
TRANSPOSE(uint64_t)

// Tasks are the index combinations of all dims but the tile's two, times the tile rows; begin/end count them.
static void permute_part(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Permute *p = ctx;
    int last = p->ndim - 1;
    bool rows = p->fast == last;
    int64_t tiles = rows ? 1 : ceil_div(p->size[p->fast], TILE);
    for (int64_t t = begin; t < end; t++) {
        int64_t rest = t / tiles, r0 = t % tiles * TILE, to = 0, from = 0;
        for (int i = last - 1; i >= 0; i--) {
            if (i == p->fast) continue;
            to += rest % p->size[i] * p->to[i], from += rest % p->size[i] * p->from[i];
            rest /= p->size[i];
        }
        if (rows) {
            memcpy(p->dst + to * p->elem, p->src + from * p->elem, (size_t)(p->size[last] * p->elem));
            continue;
        }
        int64_t n = min_i64(TILE, p->size[p->fast] - r0), pitch = p->to[p->fast];
        char *dst = p->dst + (to + r0 * pitch) * p->elem;
        const char *src = p->src + (from + r0) * p->elem;
        if (p->elem == 1) transpose_uint8_t((uint8_t *)dst, (const uint8_t *)src, n, p->size[last], pitch, p->from[last]);
        else if (p->elem == 4) transpose_uint32_t((uint32_t *)dst, (const uint32_t *)src, n, p->size[last], pitch, p->from[last]);
        else transpose_uint64_t((uint64_t *)dst, (const uint64_t *)src, n, p->size[last], pitch, p->from[last]);
    }
}

Status cpu_permute(const KernelArgs *k, Diag *d) {
    (void)d;
    int64_t numel = operand_elems(&k->out[0]);
    if (numel == 0) return ST_OK;
    Permute p = permute_of(k);
    int last = p.ndim - 1;
    int64_t tasks = numel / p.size[last];
    if (p.fast != last) tasks = tasks / p.size[p.fast] * ceil_div(p.size[p.fast], TILE);
    kernel_run(k->pool, permute_part, &p, tasks, numel / tasks);
    return ST_OK;
}
