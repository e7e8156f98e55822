// Stable sort and top-k along one dim, which is never divided among ranks. Keys are mapped to integers in whose order they are to
// come, so that one merge sort serves all types and both directions, and equal keys keep their places.
#include <math.h>
#include <string.h>
#include "backend/cpu/kernels.h"

typedef struct Key {
    int64_t key, index;
} Key;

typedef struct SortJob {
    const Operand *x, *values, *indices;
    int64_t n, inner, take;
    bool descending;
    Key *scratch;  // 2*n per worker
} SortJob;

// PyTorch's order: NaN is the greatest, -0 equals 0.
static int64_t order_of_double(double v) {
    int64_t i;
    if (isnan(v)) return INT64_MAX;
    v += 0.0;  // -0 + 0 = 0
    memcpy(&i, &v, sizeof i);
    return i < 0 ? INT64_MIN - i : i;
}

static int64_t order_at(const Operand *x, int64_t at) {
    switch (x->dtype) {
    case DT_F32: return order_of_double((double)((const float *)x->data)[at]);
    case DT_F64: return order_of_double(((const double *)x->data)[at]);
    case DT_BOOL: return ((const uint8_t *)x->data)[at];
    default: return ((const int64_t *)x->data)[at];
    }
}

// Sorts k[0, n) bottom-up; the result is in k.
static void merge_sort(Key *k, Key *tmp, int64_t n) {
    enum { RUN = 16 };
    for (int64_t b = 0; b < n; b += RUN)
        for (int64_t i = b + 1, end = min_i64(b + RUN, n); i < end; i++) {
            Key x = k[i];
            int64_t j = i;
            for (; j > b && k[j - 1].key > x.key; j--) k[j] = k[j - 1];
            k[j] = x;
        }
    Key *from = k, *to = tmp;
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t b = 0; b < n; b += 2 * width) {
            int64_t mid = min_i64(b + width, n), end = min_i64(b + 2 * width, n), i = b, j = mid;
            for (int64_t o = b; o < end; o++) to[o] = i < mid && (j >= end || from[i].key <= from[j].key) ? from[i++] : from[j++];
        }
        Key *swap = from;
        from = to, to = swap;
    }
    if (from != k) memcpy(k, from, sizeof *k * (size_t)n);
}

static void sort_part(void *ctx, int64_t begin, int64_t end, int worker) {
    const SortJob *s = ctx;
    Key *key = s->scratch + worker * 2 * s->n;
    int elem = dtype_nbytes(s->x->dtype);
    for (int64_t line = begin; line < end; line++) {
        int64_t o = line / s->inner, c = line % s->inner, from = o * s->n * s->inner + c, to = o * s->take * s->inner + c;
        for (int64_t j = 0; j < s->n; j++) {
            int64_t v = order_at(s->x, from + j * s->inner);
            key[j] = (Key){s->descending ? ~v : v, j};
        }
        merge_sort(key, key + s->n, s->n);
        for (int64_t j = 0; j < s->take; j++) {
            int64_t at = to + j * s->inner;
            const char *value = (const char *)s->x->data + (from + key[j].index * s->inner) * elem;
            memcpy((char *)s->values->data + at * elem, value, (size_t)elem);
            ((int64_t *)s->indices->data)[at] = key[j].index;
        }
    }
}

Status cpu_sort(const KernelArgs *k, Diag *d) {
    (void)d;
    int dim = (int)node_int(k->node, ATTR_DIM);
    Axis a = axis_of(&k->in[0], dim);
    SortJob s = {.x = &k->in[0], .values = &k->out[0], .indices = &k->out[1], .n = a.n, .inner = a.inner, .scratch = k->scratch};
    s.take = k->out[0].dim[dim];
    s.descending = node_int_or(k->node, ATTR_DESCENDING, k->node->op == OP_TOPK) != 0;
    kernel_run(k->pool, sort_part, &s, a.outer * a.inner, 16 * a.n);
    return ST_OK;
}

size_t cpu_sort_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)out;
    return sizeof(Key) * 2 * (size_t)in[0].dim[node_int(n, ATTR_DIM)] * (size_t)nthreads;
}
