// Folding of vector-like values; see known.h.
#include "pass/known.h"

#include <math.h>

#include "ops/op.h"
#include "pass/scalar.h"

Known known_constant(double v) { return (Known){.known = true, .dim = -1, .affine = true, .base = v}; }

// Takes ownership of data[len] (scratch); finds the constant or affine form if it has one.
static Known known_vector(int dim, int64_t len, const double *data) {
    bool same = true, affine = true;
    double step = len > 1 ? data[1] - data[0] : 0;
    for (int64_t i = 1; i < len; i++) {
        same = same && data[i] == data[0];
        affine = affine && data[i] == data[0] + (double)i * step;
    }
    if (same && !isnan(data[0])) return known_constant(data[0]);
    Known k = {.known = true, .dim = dim, .len = len, .affine = affine, .base = data[0], .step = step};
    if (!affine) k.data = data;
    return k;
}

static bool fits(DType t, int64_t len) { return len > 0 && len <= (dtype_is_float(t) ? KNOWN_MAX_FLOAT : KNOWN_MAX_INT); }

bool known_is_iota(const Known *k, DType dtype) {
    if (k->dim < 0 || !k->affine || dtype == DT_BOOL) return false;
    if (!dtype_is_float(dtype)) return true;
    double last = known_at(k, k->len - 1), limit = dtype == DT_F64 ? SCALAR_EXACT : 16777216.0;
    return k->base == floor(k->base) && k->step == floor(k->step) && fabs(k->base) <= limit && fabs(last) <= limit;
}

double known_read(DType t, const void *p, int64_t i) {
    switch (t) {
        case DT_F32: return ((const float *)p)[i];
        case DT_F64: return ((const double *)p)[i];
        case DT_I64: return (double)((const int64_t *)p)[i];
        default: return ((const uint8_t *)p)[i] != 0;
    }
}

bool known_from_bytes(const Const *c, DType dtype, Known *out, Arena *scratch) {
    int64_t n = shape_numel(&c->shape);
    if (!c->data || n == 0 || n > KNOWN_MAX_INT ||
        (c->dtype != DT_F32 && c->dtype != DT_F64 && c->dtype != DT_I64 && c->dtype != DT_BOOL))
        return false;
    double first = known_read(c->dtype, c->data, 0);
    int64_t same = 1;
    while (same < n && known_read(c->dtype, c->data, same) == first) same++;
    if (same == n)
        return *out = known_constant(dtype == DT_F32 ? (double)(float)first : first),
               fabs(first) <= SCALAR_EXACT || dtype_is_float(dtype);
    int dim = -1;
    for (int i = 0; i < c->shape.ndim; i++) {
        if (c->shape.dim[i] == 1) continue;
        if (dim >= 0) return false;
        dim = i;
    }
    if (!fits(dtype, n)) return false;
    double *v = ARENA_ARRAY(scratch, double, n);
    for (int64_t i = 0; i < n; i++) {
        v[i] = known_read(c->dtype, c->data, i);
        if (dtype == DT_F32) v[i] = (double)(float)v[i];
        if (!dtype_is_float(dtype) && !(fabs(v[i]) <= SCALAR_EXACT)) return false;
    }
    *out = known_vector(dim, n, v);
    return true;
}

static bool eval_pointwise(const Graph *g, const Node *n, const Known *in, DType dtype, const Shape *shape, Known *out,
                           Arena *scratch) {
    int dim = -1;
    for (int i = 0; i < n->nin; i++) {
        if (in[i].dim < 0) continue;
        int at = in[i].dim + shape->ndim - graph_shape(g, n->in[i])->ndim;
        if (dim >= 0 && at != dim) return false;
        dim = at;
    }
    DType t = graph_value(g, n->in[n->op == OP_WHERE ? 1 : 0])->dtype;
    double x[3] = {0}, r;
    if (dim < 0) {
        for (int i = 0; i < n->nin; i++) x[i] = in[i].base;
        if (!scalar_eval(n->op, t, dtype, x, &r)) return false;
        *out = known_constant(r);
        return true;
    }
    int64_t len = shape->dim[dim];
    bool exact = n->op == OP_CAST || n->op == OP_STOP_GRAD;  // position -> float: an iota stays one at any length
    if (exact && in[0].affine && known_is_iota(&in[0], dtype) && known_is_iota(&in[0], t)) return *out = in[0], true;
    if (!fits(dtype, len)) return false;
    double *v = ARENA_ARRAY(scratch, double, len);
    for (int64_t j = 0; j < len; j++) {
        for (int i = 0; i < n->nin; i++) x[i] = known_at(&in[i], j);
        if (!scalar_eval(n->op, t, dtype, x, &v[j])) return false;
    }
    *out = known_vector(dim, len, v);
    return true;
}

static int64_t outer_of(const Shape *s, int dim) {
    int64_t n = 1;
    for (int i = 0; i < dim; i++) n *= s->dim[i];
    return n;
}

static bool eval_reshape(const Graph *g, const Node *n, const Known *in, const Shape *shape, Known *out) {
    *out = *in;
    if (in->dim < 0) return true;
    int64_t outer = outer_of(graph_shape(g, n->in[0]), in->dim);
    for (int i = 0; i < shape->ndim; i++)
        if (shape->dim[i] == in->len && outer_of(shape, i) == outer) return out->dim = i, true;
    return false;
}

static bool eval_slice(const Node *n, const Known *in, DType dtype, Known *out, Arena *scratch) {
    *out = *in;
    if (in->dim < 0 || in->dim != node_int(n, ATTR_DIM)) return true;
    int64_t start = node_int(n, ATTR_START), step = node_int_or(n, ATTR_STEP, 1), len = node_int(n, ATTR_LENGTH);
    if (len == 1) return *out = known_constant(known_at(in, start)), true;
    out->len = len;
    if (in->affine) {
        out->base = known_at(in, start);
        out->step = in->step * (double)step;
        return true;
    }
    if (!fits(dtype, len)) return false;
    double *v = ARENA_ARRAY(scratch, double, len);
    for (int64_t i = 0; i < len; i++) v[i] = known_at(in, start + i * step);
    *out = known_vector(in->dim, len, v);
    return true;
}

static bool eval_pad(const Graph *g, const Node *n, const Known *in, DType dtype, Known *out, Arena *scratch) {
    int dim = (int)node_int(n, ATTR_DIM);
    int64_t lo = node_int(n, ATTR_LO), hi = node_int(n, ATTR_HI), len = graph_shape(g, n->in[0])->dim[dim];
    double value = node_float_or(n, ATTR_VALUE, 0);
    if (in->dim < 0 && in->base == value) return *out = *in, true;
    if ((in->dim >= 0 && in->dim != dim) || !fits(dtype, lo + len + hi)) return false;
    double *v = ARENA_ARRAY(scratch, double, lo + len + hi);
    for (int64_t i = 0; i < lo + len + hi; i++) v[i] = i < lo || i >= lo + len ? value : known_at(in, i - lo);
    *out = known_vector(dim, lo + len + hi, v);
    return true;
}

static bool eval_concat(const Graph *g, const Node *n, const Known *in, DType dtype, const Shape *shape, Known *out,
                        Arena *scratch) {
    int dim = (int)node_int(n, ATTR_DIM);
    for (int i = 0; i < n->nin; i++)
        if (in[i].dim >= 0 && in[i].dim != dim) return false;
    if (!fits(dtype, shape->dim[dim])) return false;
    double *v = ARENA_ARRAY(scratch, double, shape->dim[dim]);
    int64_t at = 0;
    for (int i = 0; i < n->nin; i++)
        for (int64_t j = 0; j < graph_shape(g, n->in[i])->dim[dim]; j++) v[at++] = known_at(&in[i], j);
    *out = known_vector(dim, at, v);
    return true;
}

static bool eval_cumsum(const Node *n, const Known *in, DType dtype, const Shape *shape, Known *out, Arena *scratch) {
    int dim = (int)node_int(n, ATTR_DIM);
    if (in->dim < 0 && in->base == 0) return *out = *in, true;
    if ((in->dim >= 0 && in->dim != dim) || !fits(dtype, shape->dim[dim])) return false;
    int64_t len = shape->dim[dim];
    bool reverse = node_int_or(n, ATTR_REVERSE, 0);
    double *v = ARENA_ARRAY(scratch, double, len), sum = 0;
    for (int64_t i = 0; i < len; i++) {
        int64_t j = reverse ? len - 1 - i : i;
        sum += known_at(in, j);
        v[j] = dtype == DT_F32 ? (double)(float)sum : sum;
    }
    if (!dtype_is_float(dtype) && !(fabs(sum) <= SCALAR_EXACT)) return false;
    *out = known_vector(dim, len, v);
    return true;
}

static bool eval_sum(const Graph *g, const Node *n, const Known *in, DType dtype, Known *out) {
    const int64_t *dims;
    int ndims = node_ints(n, ATTR_DIMS, &dims);
    double count = 1, sum = 0;
    bool along = false;
    for (int i = 0; i < ndims; i++) {
        if (in->dim == dims[i]) along = true;
        else count *= (double)graph_shape(g, n->in[0])->dim[dims[i]];
    }
    if (in->dim >= 0 && !along) return count == 1 ? (*out = *in, true) : false;
    if (along)
        for (int64_t i = 0; i < in->len; i++) sum += known_at(in, i);
    else sum = in->base;
    sum *= count;
    if (!dtype_is_float(dtype) && !(fabs(sum) <= SCALAR_EXACT)) return false;
    *out = known_constant(dtype == DT_F32 ? (double)(float)sum : sum);
    return true;
}

// Rows of a known 1-D table by known indices.
static bool eval_embedding(const Graph *g, const Node *n, const Known *in, DType dtype, Known *out, Arena *scratch) {
    const Shape *table = graph_shape(g, n->in[0]);
    if (in[0].dim < 0) return *out = in[0], true;
    if (in[0].dim != 0 || table->ndim != 1) return false;
    int64_t len = in[1].dim < 0 ? 1 : in[1].len;
    if (!fits(dtype, len)) return false;
    double *v = ARENA_ARRAY(scratch, double, len);
    for (int64_t i = 0; i < len; i++) {
        double row = known_at(&in[1], i);
        if (row < 0 || row >= (double)table->dim[0]) return false;  // an error that belongs to run time
        v[i] = known_at(&in[0], (int64_t)row);
    }
    *out = in[1].dim < 0 ? known_constant(v[0]) : known_vector(in[1].dim, len, v);
    return true;
}

bool known_eval(const Graph *g, const Node *n, const Known *in, DType dtype, const Shape *shape, Known *out, Arena *scratch) {
    if (shape_numel(shape) == 0) return false;
    for (int i = 0; i < n->nin; i++)
        if (!in[i].known) return false;
    if (op_is_pointwise(n->op)) return eval_pointwise(g, n, in, dtype, shape, out, scratch);
    const int64_t *dims;
    switch (n->op) {
        case OP_RESHAPE: return eval_reshape(g, n, in, shape, out);
        case OP_BROADCAST: return *out = in[0], true;
        case OP_PERMUTE:
            *out = in[0];
            for (int i = 0, k = node_ints(n, ATTR_DIMS, &dims); in[0].dim >= 0 && i < k; i++)
                if (dims[i] == in[0].dim) out->dim = i;
            return true;
        case OP_SLICE: return eval_slice(n, in, dtype, out, scratch);
        case OP_PAD: return eval_pad(g, n, in, dtype, out, scratch);
        case OP_CONCAT: return eval_concat(g, n, in, dtype, shape, out, scratch);
        case OP_CUMSUM: return eval_cumsum(n, in, dtype, shape, out, scratch);
        case OP_SUM: return eval_sum(g, n, in, dtype, out);
        case OP_EMBEDDING: return eval_embedding(g, n, in, dtype, out, scratch);
        default: return false;
    }
}
