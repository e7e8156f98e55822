// Mask and bias buffers: an S x S table that came with the program (a tril, a band, ALiBi distances, a prefix mask) as a function
// of positions. Two shapes are recognised, both checked against every element that is read:
//   f(q - k): at most four constant or linear pieces, per head if need be
//   two values, one of them on one interval of keys per row: where(lo[q] <= k < hi[q], x, y)
#include <math.h>

#include "pass/known.h"
#include "pass/mask.h"

enum { MAX_PIECES = 4 };

typedef struct Table {  // element (h, q, k) is at base + h*stride[0] + q*stride[1] + k*stride[2]
    const Const *c;
    DType dtype;  // of the value
    int64_t base, stride[3], n[3];
} Table;
typedef struct Piece {  // diff in [begin, end] (end inclusive): at + slope*(diff - begin)
    int64_t begin, end;
    double at, slope;
} Piece;

static double read_at(const Table *t, int64_t h, int64_t q, int64_t k) {
    double v = known_read(t->c->dtype, t->c->data, t->base + h * t->stride[0] + q * t->stride[1] + k * t->stride[2]);
    return t->dtype == DT_F32 ? (double)(float)v : v;
}

// How idx addresses the constant. False: not by plain indices, or out of range, or per batch row.
static bool table_of(MaskInterp *in, ValueId v, const int *idx, Table *t) {
    const Node *n = graph_def(in->g, v);
    *t = (Table){.c = &in->g->consts.data[node_int(n, ATTR_INDEX)], .dtype = graph_value(in->g, v)->dtype, .n = {1, 1, 1}};
    const Shape *s = &t->c->shape;
    int64_t stride = 1;
    if (!t->c->data || !shape_equal(s, graph_shape(in->g, v))) return false;
    for (int d = s->ndim - 1; d >= 0; d--) {
        MaskLinear l = mask_linear_of(in->m, idx[d]);
        if (l.n < 0 || l.n > 1 || l.constant < 0) return false;
        t->base += l.constant * stride;
        int64_t reach = l.constant;
        if (l.n == 1) {
            int slot = in->m->instr.data[l.term[0].atom].code - PROG_INDEX_H;  // h, q, k
            if (slot < 0 || slot > 2 || t->stride[slot] || l.term[0].coef < 1) return false;
            t->stride[slot] = stride * l.term[0].coef;
            t->n[slot] = in->m->extent[1 + slot];
            reach += l.term[0].coef * (t->n[slot] - 1);
        }
        if (reach >= s->dim[d]) return false;
        stride *= s->dim[d];
    }
    return true;
}

static bool close_to(const Table *t, double a, double b, double scale) {
    return a == b || (dtype_is_float(t->dtype) && isfinite(a) && isfinite(b) && fabs(a - b) <= scale * 0x1p-22);
}

// f[diff + Sk - 1] for head h; false if the head's table is not a function of q - k.
static bool toeplitz(const Table *t, int64_t h, double *f) {
    int64_t sq = t->n[1], sk = t->n[2];
    for (int64_t q = 0; q < sq; q++)
        for (int64_t k = 0; k < sk; k++) {
            double v = read_at(t, h, q, k), *at = &f[q - k + sk - 1];
            if (q == 0 || k == 0) *at = v;
            else if (*at != v || isnan(v)) return false;
        }
    return true;
}

static double largest(const double *f, int64_t n) {
    double m = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(f[i])) m = fmax(m, fabs(f[i]));
    return m;
}

// The line through f[begin..end], if every element is on it.
static bool fit(const Table *t, const double *f, Piece *p, double scale) {
    p->at = f[p->begin];
    p->slope = p->end > p->begin && f[p->end] != p->at ? (f[p->end] - p->at) / (double)(p->end - p->begin) : 0;
    if (p->slope != 0 && t->dtype == DT_BOOL) return false;
    for (int64_t i = p->begin; i <= p->end; i++)
        if (!close_to(t, f[i], p->slope == 0 ? p->at : p->at + p->slope * (double)(i - p->begin), scale)) return false;
    return true;
}

static int segment(const Table *t, const double *f, int64_t n, Piece *piece) {
    int count = 0;
    double scale = largest(f, n);
    for (int64_t i = 0; i < n;) {
        if (count == MAX_PIECES) return 0;
        Piece *p = &piece[count++];
        int64_t end = i + 1 < n ? i + 1 : i;
        bool flat = end > i && f[end] == f[i];
        if (end > i && !flat && (t->dtype == DT_BOOL || !isfinite(f[i]) || !isfinite(f[end]))) end = i;
        while (end > i && end + 1 < n &&
               (flat ? f[end + 1] == f[i]
                     : isfinite(f[end + 1]) && close_to(t, f[end + 1] - f[end], f[end] - f[end - 1], 4 * scale)))
            end++;
        *p = (Piece){.begin = i, .end = end};
        if (!fit(t, f, p, scale)) return 0;
        i = end + 1;
    }
    return count;
}

static int number_per_head(MaskInterp *in, const Table *t, int64_t nh, const double *v) {
    bool same = true;
    for (int64_t h = 1; h < nh; h++) same = same && v[h] == v[0];
    if (same) return mask_const(in->m, t->dtype, v[0]);
    double *copy = arena_copy(in->g->arena, v, sizeof *v * (size_t)nh);
    MaskSlot s = {.role = 'q', .dtype = t->dtype, .value = NO_VALUE, .data = copy, .nh = nh, .nl = 1};
    return mask_slot(in->m, &s);
}

// where(q - k <= end of piece 0, piece 0, where(...)).
static int emit_pieces(MaskInterp *in, const Table *t, int npiece, Piece *const *head, int64_t nh) {
    MaskProg *m = in->m;
    int diff = mask_int_op(m, OP_SUB, mask_index(m, PROG_INDEX_Q), mask_index(m, PROG_INDEX_K)), result = -1;
    double *number = malloc(sizeof *number * (size_t)nh);
    for (int i = npiece - 1; i >= 0; i--) {
        bool flat = true;
        for (int64_t h = 0; h < nh; h++) flat = flat && head[h][i].slope == 0;
        int64_t origin = flat ? 0 : head[0][i].begin - (t->n[2] - 1);
        for (int64_t h = 0; h < nh; h++) number[h] = head[h][i].at - head[h][i].slope * (double)origin;
        int x = number_per_head(in, t, nh, number);
        if (!flat) {
            for (int64_t h = 0; h < nh; h++) number[h] = head[h][i].slope;
            int slope = number_per_head(in, t, nh, number), d = mask_op(m, OP_CAST, t->dtype, diff, -1, -1);
            x = mask_op(m, OP_ADD, t->dtype, mask_op(m, OP_MUL, t->dtype, d, slope, -1), x, -1);
        }
        int here = mask_int_op(m, OP_LE, diff, mask_const(m, DT_I64, (double)(head[0][i].end - (t->n[2] - 1))));
        result = result < 0 ? x : mask_op(m, OP_WHERE, t->dtype, here, x, result);
    }
    free(number);
    return result;
}

static int read_toeplitz(MaskInterp *in, const Table *t) {
    int64_t n = t->n[1] + t->n[2] - 1, nh = t->stride[0] ? t->n[0] : 1;
    double *f = malloc(sizeof *f * (size_t)n);
    Piece **head = malloc(sizeof *head * (size_t)nh), *all = malloc(sizeof *all * (size_t)(nh * MAX_PIECES));
    int npiece = 0, result = -1;
    bool ok = true;
    for (int64_t h = 0; h < nh && ok; h++) {
        head[h] = all + h * MAX_PIECES;
        ok = toeplitz(t, h, f);
        if (ok && h == 0) ok = (npiece = segment(t, f, n, head[0])) > 0;
        for (int i = 0; ok && h > 0 && i < npiece; i++) {
            head[h][i] = head[0][i];
            ok = fit(t, f, &head[h][i], largest(f, n));
        }
    }
    if (ok) result = emit_pieces(in, t, npiece, head, nh);
    free(f);
    free(head);
    free(all);
    return result;
}

// i // c or i % c for some c: a folded block number or phase.
static int read_staircase(MaskInterp *in, const double *f, int64_t n, int index) {
    int64_t c = 0;
    bool block = true, phase = true;
    while (c < n && f[c] == f[0]) c++;
    int64_t period = 1;
    while (period < n && f[period] != f[0]) period++;
    for (int64_t i = 0; i < n; i++) {
        block = block && f[i] == (double)(i / c);
        phase = phase && f[i] == (double)(i % period);
    }
    if (block) return mask_int_op(in->m, OP_FLOORDIV, index, mask_const(in->m, DT_I64, (double)c));
    return phase ? mask_int_op(in->m, OP_MOD, index, mask_const(in->m, DT_I64, (double)period)) : -1;
}

// A vector over q or k alone that is a few constant or linear pieces is index arithmetic too: k < 10.
static int read_vector(MaskInterp *in, const Table *t) {
    MaskProg *m = in->m;
    int along = t->stride[1] ? 1 : 2, result = -1;
    int64_t n = t->n[along];
    double *f = malloc(sizeof *f * (size_t)n);
    Piece piece[MAX_PIECES];
    for (int64_t i = 0; i < n; i++) f[i] = along == 1 ? read_at(t, 0, i, 0) : read_at(t, 0, 0, i);
    int count = t->stride[0] ? 0 : segment(t, f, n, piece), index = mask_index(m, along == 1 ? PROG_INDEX_Q : PROG_INDEX_K);
    int stair = t->stride[0] || t->dtype != DT_I64 || n < 2 ? -1 : read_staircase(in, f, n, index);
    if (stair >= 0) count = 0;
    result = stair;
    for (int i = count - 1; i >= 0; i--) {
        int x = mask_const(m, t->dtype, piece[i].at - piece[i].slope * (double)piece[i].begin);
        if (piece[i].slope != 0) {
            int ramp = mask_op(m, OP_CAST, t->dtype, index, -1, -1);
            x = mask_op(m, OP_ADD, t->dtype, mask_op(m, OP_MUL, t->dtype, ramp, mask_const(m, t->dtype, piece[i].slope), -1), x,
                        -1);
        }
        int here = mask_int_op(m, OP_LE, index, mask_const(m, DT_I64, (double)piece[i].end));
        result = result < 0 ? x : mask_op(m, OP_WHERE, t->dtype, here, x, result);
    }
    free(f);
    return result;
}

// Row (h, q): the interval of keys that hold `x`; false if they are not contiguous or a third value occurs.
static bool row_interval(const Table *t, int64_t h, int64_t q, double x, double y, double *lo, double *hi) {
    int64_t first = -1, last = -1, count = 0;
    for (int64_t k = 0; k < t->n[2]; k++) {
        double v = read_at(t, h, q, k);
        if (v != x && v != y) return false;
        if (v != x) continue;
        if (first < 0) first = k;
        last = k;
        count++;
    }
    *lo = first < 0 ? 0 : (double)first;
    *hi = first < 0 ? 0 : (double)(last + 1);
    return first < 0 || last - first + 1 == count;
}

static bool intervals(const Table *t, int64_t nh, double x, double y, double *lo, double *hi) {
    for (int64_t h = 0; h < nh; h++)
        for (int64_t q = 0; q < t->n[1]; q++)
            if (!row_interval(t, h, q, x, y, &lo[h * t->n[1] + q], &hi[h * t->n[1] + q])) return false;
    return true;
}

static int read_intervals(MaskInterp *in, const Table *t) {
    MaskProg *m = in->m;
    int64_t nh = t->stride[0] ? t->n[0] : 1;
    double x = read_at(t, 0, 0, 0), y = x;
    for (int64_t q = 0; q < t->n[1] && x == y; q++)
        for (int64_t k = 0; k < t->n[2] && x == y; k++) y = read_at(t, 0, q, k);
    if (x == y || isnan(x) || isnan(y)) return -1;
    double *lo = ARENA_ARRAY(in->g->arena, double, nh * t->n[1]), *hi = ARENA_ARRAY(in->g->arena, double, nh * t->n[1]);
    if (!intervals(t, nh, x, y, lo, hi)) {
        double swap = x;
        x = y, y = swap;
        if (!intervals(t, nh, x, y, lo, hi)) return -1;
    }
    MaskSlot s = {.role = 'q', .dtype = DT_I64, .value = NO_VALUE, .data = lo, .nh = nh, .nl = t->n[1]};
    int from = mask_slot(m, &s);
    s.data = hi;
    int to = mask_slot(m, &s), k = mask_index(m, PROG_INDEX_K);
    int inside = mask_op(m, OP_AND, DT_BOOL, mask_int_op(m, OP_LE, from, k), mask_int_op(m, OP_LT, k, to), -1);
    return mask_op(m, OP_WHERE, t->dtype, inside, mask_const(m, t->dtype, x), mask_const(m, t->dtype, y));
}

int mask_interp_constant(MaskInterp *in, ValueId v, const int *idx) {
    Table t;
    if (!table_of(in, v, idx, &t)) return -1;
    if (!t.stride[1] && !t.stride[2] && !t.stride[0]) return mask_const(in->m, t.dtype, read_at(&t, 0, 0, 0));
    if (!t.stride[1] && !t.stride[2]) return -1;
    if (!t.stride[1] || !t.stride[2]) return read_vector(in, &t);  // -1: a vector, as any other
    int x = read_toeplitz(in, &t);
    if (x < 0) x = read_intervals(in, &t);
    if (x < 0 && !in->why[0])
        snprintf(in->why, sizeof in->why, "constant \"%s\" is no function of q - k and no interval of keys per row", t.c->name);
    return x;
}
