// Checks and rows shared by the op families (see rules.h).
#include "ops/rules.h"

ShapeText shape_text(const Shape *s) {
    ShapeText t;
    size_t at = 0;
    t.s[at++] = '[';
    for (int i = 0; i < s->ndim && i < MAX_DIMS; i++)
        at += (size_t)snprintf(t.s + at, sizeof t.s - at, "%s%lld", i ? "," : "", (long long)s->dim[i]);
    snprintf(t.s + at, sizeof t.s - at, "]");
    return t;
}

int type_class(DType t) {
    switch (t) {
    case DT_F32:
    case DT_F64:
    case DT_BF16: return TYPE_FLOAT;
    case DT_I64: return TYPE_INT;
    case DT_BOOL: return TYPE_BOOL;
    default: return 0;
    }
}

static const char *class_name(int classes) {
    static const char *const names[TYPE_ANY + 1] = {"nothing",       "a float",         "an i64",         "a float or i64",
                                                    "a bool",        "a float or bool", "an i64 or bool", "a float, i64 or bool"};
    return names[classes & TYPE_ANY];
}

Status rule_nin(const Node *n, int nin, Diag *d) {
    if (n->nin == nin) return ST_OK;
    return infer_error(d, "%s takes %d operand%s, got %d", op_name(n->op), nin, nin == 1 ? "" : "s", n->nin);
}

Status rule_type(const Graph *g, const Node *n, int i, int classes, Diag *d) {
    DType t = in_dtype(g, n, i);
    if (type_class(t) & classes) return ST_OK;
    return infer_error(d, "operand %d of %s must be %s, not %s", i, op_name(n->op), class_name(classes), dtype_name(t));
}

Status rule_same_type(const Graph *g, const Node *n, int i, int j, Diag *d) {
    DType s = in_dtype(g, n, i), t = in_dtype(g, n, j);
    if (s == t) return ST_OK;
    return infer_error(d, "operands %d and %d of %s differ in type: %s and %s", i, j, op_name(n->op), dtype_name(s),
                       dtype_name(t));
}

Status rule_int(const Node *n, AttrKey k, int64_t lo, int64_t hi, int64_t *out, Diag *d) {
    const Attr *a = node_attr(n, k);
    if (!a) return infer_error(d, "%s needs attribute %s", op_name(n->op), attr_name(k));
    if (a->u.i < lo || a->u.i > hi)
        return infer_error(d, "%s of %s is %lld, outside [%lld, %lld]", attr_name(k), op_name(n->op), (long long)a->u.i,
                           (long long)lo, (long long)hi);
    *out = a->u.i;
    return ST_OK;
}

Status rule_dim(const Node *n, int ndim, int *out, Diag *d) {
    int64_t v;
    if (ndim == 0) return infer_error(d, "%s along a dim of a scalar", op_name(n->op));
    TRY(rule_int(n, ATTR_DIM, 0, ndim - 1, &v, d));
    *out = (int)v;
    return ST_OK;
}

Status rule_dims(const Node *n, int ndim, bool *marked, Diag *d) {
    const int64_t *dims;
    int count = node_ints(n, ATTR_DIMS, &dims);
    if (count == 0) return infer_error(d, "%s needs at least one dim in dims", op_name(n->op));
    for (int i = 0; i < ndim; i++) marked[i] = false;
    for (int i = 0; i < count; i++) {
        if (dims[i] < 0 || dims[i] >= ndim)
            return infer_error(d, "dim %lld of %s is outside [0, %d)", (long long)dims[i], op_name(n->op), ndim);
        if (marked[dims[i]]) return infer_error(d, "%s names dim %lld twice", op_name(n->op), (long long)dims[i]);
        marked[dims[i]] = true;
    }
    return ST_OK;
}

Status rule_dtype(const Node *n, DType *out, Diag *d) {
    int64_t v;
    TRY(rule_int(n, ATTR_DTYPE, 0, DT_COUNT - 1, &v, d));
    if (!type_class((DType)v)) return infer_error(d, "values cannot have the type %s", dtype_name((DType)v));
    *out = (DType)v;
    return ST_OK;
}

Status rule_wide(const Node *n, DType t, DType *out, Diag *d) {
    *out = t;
    if (!node_attr(n, ATTR_DTYPE)) return ST_OK;
    TRY(rule_dtype(n, out, d));
    if (*out == t || (t == DT_BF16 && *out == DT_F32)) return ST_OK;
    return infer_error(d, "%s of %s gives that or f32 from bf16, not %s", op_name(n->op), dtype_name(t), dtype_name(*out));
}

Status rule_check_shape(const Shape *s, Diag *d) {
    int64_t n = 8;  // bytes of the widest element
    for (int i = 0; i < s->ndim; i++) {
        if (s->dim[i] < 0) return infer_error(d, "dim %d has the negative size %lld", i, (long long)s->dim[i]);
        if (s->dim[i] > 0 && !mul_i64(n, s->dim[i], &n)) return infer_error(d, "%s has too many elements", shape_text(s).s);
    }
    return ST_OK;
}

Status rule_shape(const Node *n, Shape *out, Diag *d) {
    const Attr *a = node_attr(n, ATTR_SHAPE);
    if (!a) return infer_error(d, "%s needs attribute shape", op_name(n->op));
    if (a->n < 0 || a->n > MAX_DIMS) return infer_error(d, "a shape of %d dims: the most is %d", (int)a->n, MAX_DIMS);
    Shape s = {.ndim = a->n};
    for (int i = 0; i < a->n; i++) s.dim[i] = a->u.ints[i];
    TRY(rule_check_shape(&s, d));
    *out = s;
    return ST_OK;
}

Status rule_value(const Node *n, DType t, Diag *d) {
    const Attr *a = node_attr(n, ATTR_VALUE);
    if (!a) return infer_error(d, "%s needs attribute value", op_name(n->op));
    double v = a->u.f;
    bool fits = t == DT_BOOL ? v == 0 || v == 1 : t == DT_I64 ? v >= -0x1p63 && v < 0x1p63 && v == (double)(int64_t)v : true;
    return fits ? ST_OK : infer_error(d, "%s: no %s has the value %g", op_name(n->op), dtype_name(t), v);
}

bool row_terms(const Graph *g, const Node *n, Placement p, Row *row) {
    for (int i = 0; i < n->nout; i++)
        if (graph_value(g, n->out[i])->dtype == DT_BOOL) return false;
    row_replicate(n, row);
    for (int i = 0; i < n->nin; i++) row->in[i] = p;
    for (int i = 0; i < n->nout; i++) row->out[i] = p;
    return true;
}

bool row_slot_ok(const Graph *g, const Node *n, int slot, const Placement *p) {
    if (!placement_is_partition(g, p)) return false;
    const Shape *s = graph_shape(g, slot_value(n, slot));
    return p->dim >= 0 && p->dim < s->ndim && s->dim[p->dim] > 1;
}

// The placement of one operand when `name` is divided by `layout`; false if the operand does not have the axis.
static bool place_by_axis(const Graph *g, const Node *n, int slot, AxisFn axis, int name, LayoutId layout, Placement *out) {
    int ndim = graph_shape(g, slot_value(n, slot))->ndim;
    for (int k = 0; k < ndim; k++)
        if (axis(g, n, slot, k) == name) {
            *out = shard_on(k, layout);
            return true;
        }
    return false;
}

bool row_from_axes(Graph *g, const Node *n, int slot, Placement p, AxisFn axis, const Placement *reduced, Row *row) {
    if (!row_slot_ok(g, n, slot, &p)) return false;
    int name = axis(g, n, slot, p.dim);
    if (name == NO_AXIS) return false;
    row_replicate(n, row);
    for (int i = 0; i < n->nin; i++) place_by_axis(g, n, i, axis, name, p.layout, &row->in[i]);
    for (int j = 0; j < n->nout; j++)
        if (!place_by_axis(g, n, ~j, axis, name, p.layout, &row->out[j])) {
            if (!reduced) return false;
            row->out[j] = *reduced;
        }
    return true;
}
