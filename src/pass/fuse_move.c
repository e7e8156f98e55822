// Views through movement ops: a value that a permute, slice, pad, concat, broadcast or reshape makes is its operand read at
// other positions, or a choice between operands by the position. See fuse_rows.c.
#include "ops/op.h"
#include "pass/fuse_rows.h"

// ---- views ----------------------------------------------------------------------------------------------------------------

// Lets through only positions [lo, hi) along iteration dim `dim`. False where there is no room for another window.
static bool restrict_view(View *v, int dim, int64_t lo, int64_t hi) {
    for (int k = 0; k < v->nwin; k++)
        if (v->win[k].dim == dim) {
            v->win[k].lo = max_i64(v->win[k].lo, lo);
            v->win[k].hi = min_i64(v->win[k].hi, hi);
            return true;
        }
    if (v->nwin == MAX_VIEW_WINDOWS) return false;
    int at = v->nwin++;
    for (; at > 0 && v->win[at - 1].dim > dim; at--) v->win[at] = v->win[at - 1];  // in order, so that equal views compare equal
    v->win[at] = (ViewWindow){dim, lo, hi};
    return true;
}

bool fuse_view_normal(View *v, const Shape *of, const Space *space) {
    const Shape *s = &space->shape;
    for (int k = 0; k < v->ndim; k++) {
        ViewDim *x = &v->d[k];
        if (of->dim[k] == 1) *x = (ViewDim){.dim = -1};
        if (x->dim >= 0 && s->dim[x->dim] == 1) *x = (ViewDim){.dim = -1, .start = x->start};
        if (x->dim < 0) x->step = 0;
    }
    int n = 0;
    for (int k = 0; k < v->nwin; k++) {
        ViewWindow w = v->win[k];
        w.lo = max_i64(w.lo, 0);
        w.hi = min_i64(w.hi, s->dim[w.dim]);
        if (w.lo >= w.hi) return false;
        if (w.lo > 0 || w.hi < s->dim[w.dim]) v->win[n++] = w;
    }
    v->nwin = n;
    return true;
}

static int64_t ceil_quotient(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }  // b > 0

// The first position along x->dim at which the index reaches `index`.
static int64_t position_of(const ViewDim *x, int64_t index) { return ceil_quotient(index - x->start, x->step); }

// Two views that read alike, for reshapes: dims of one element come and go, the others keep their order.
static View reshaped(const View *v, const Shape *from, const Shape *to) {
    View r = {.ndim = to->ndim, .nwin = v->nwin};
    memcpy(r.win, v->win, sizeof r.win);
    int j = 0;
    for (int k = 0; k < to->ndim; k++) {
        r.d[k] = (ViewDim){.dim = -1};
        if (to->dim[k] == 1) continue;
        while (from->dim[j] == 1) j++;
        r.d[k] = v->d[j++];
    }
    return r;
}

// ---- pieces chosen by position --------------------------------------------------------------------------------------------

static int unary(Emit *e, OpKind op, DType t, int a) { return fuse_emit_instr(e, (Instr){PROG_OP + op, t, a, -1, -1, 0}); }

static int compare_index(Emit *e, int dim, OpKind op, int64_t with) {
    int index = fuse_emit_instr(e, (Instr){PROG_INDEX, DT_I64, dim, -1, -1, 0});
    int bound = fuse_emit_const(e, DT_I64, (double)with);
    return fuse_emit_instr(e, (Instr){PROG_OP + op, DT_BOOL, index, bound, -1, 0});
}

// where(condition, x, y) of values of type t: bf16 has no arithmetic, so it goes through f32, which is exact.
static int choose(Emit *e, DType t, int condition, int x, int y) {
    if (t != DT_BF16) return fuse_emit_instr(e, (Instr){PROG_OP + OP_WHERE, t, condition, x, y, 0});
    x = unary(e, OP_CAST, DT_F32, x);
    y = unary(e, OP_CAST, DT_F32, y);
    int w = fuse_emit_instr(e, (Instr){PROG_OP + OP_WHERE, DT_F32, condition, x, y, 0});
    if (e->failed) return 0;
    e->moved[w] = true;
    return unary(e, OP_CAST, DT_BF16, w);
}

static int emit_pad(Emit *e, const Node *n, const View *view) {
    const Graph *g = e->f->g;
    int dim = (int)node_int(n, ATTR_DIM);
    int64_t lo = node_int(n, ATTR_LO), extent = graph_shape(g, n->in[0])->dim[dim];
    double value = node_float(n, ATTR_VALUE);
    DType t = graph_value(g, n->out[0])->dtype;
    View v = *view;
    ViewDim *x = &v.d[dim];
    x->start -= lo;
    if (x->dim < 0) {
        bool inside = x->start >= 0 && x->start < extent;
        return inside ? fuse_emit_value(e, n->in[0], &v) : fuse_emit_const(e, t, value);
    }
    int along = x->dim;
    int64_t first = max_i64(position_of(x, 0), 0), end = min_i64(position_of(x, extent), e->space.shape.dim[along]);
    if (first >= end) return fuse_emit_const(e, t, value);
    if (!restrict_view(&v, along, first, end)) e->failed = true;
    int inner = fuse_emit_value(e, n->in[0], &v);
    if (e->failed) return 0;
    if (e->instr[inner].code == PROG_INPUT && value == 0) return inner;  // not read outside of its window
    int fill = fuse_emit_const(e, t, value);
    if (end < e->space.shape.dim[along]) inner = choose(e, t, compare_index(e, along, OP_LT, end), inner, fill);
    if (first > 0) inner = choose(e, t, compare_index(e, along, OP_LT, first), fill, inner);
    return inner;
}

static int emit_concat(Emit *e, const Node *n, const View *view) {
    const Graph *g = e->f->g;
    int dim = (int)node_int(n, ATTR_DIM), result = -1;
    DType t = graph_value(g, n->out[0])->dtype;
    int64_t end = graph_shape(g, n->out[0])->dim[dim];
    const ViewDim *x = &view->d[dim];
    for (int i = n->nin; i-- > 0;) {  // from the last piece to the first: where(index < cut, piece, what comes after)
        int64_t begin = end - graph_shape(g, n->in[i])->dim[dim];
        View v = *view;
        v.d[dim].start -= begin;
        if (x->dim < 0) {
            if (x->start >= begin && x->start < end) return fuse_emit_value(e, n->in[i], &v);
            end = begin;
            continue;
        }
        int64_t first = max_i64(position_of(x, begin), 0), last = min_i64(position_of(x, end), e->space.shape.dim[x->dim]);
        for (int k = 0; k < view->nwin; k++)
            if (view->win[k].dim == x->dim) {
                first = max_i64(first, view->win[k].lo);
                last = min_i64(last, view->win[k].hi);
            }
        end = begin;
        if (first >= last) continue;
        if (!restrict_view(&v, x->dim, first, last)) e->failed = true;
        int piece = fuse_emit_value(e, n->in[i], &v);
        if (e->failed) return 0;
        result = result < 0 ? piece : choose(e, t, compare_index(e, x->dim, OP_LT, last), piece, result);
    }
    if (result >= 0) return result;
    return fuse_emit_const(e, t, 0);  // no position is let through
}

int fuse_emit_move(Emit *e, const Node *n, const View *view) {
    const Shape *in = graph_shape(e->f->g, n->in[0]), *out = graph_shape(e->f->g, n->out[0]);
    View v = *view;
    const int64_t *dims;
    switch (n->op) {
    case OP_PERMUTE:
        node_ints(n, ATTR_DIMS, &dims);
        for (int k = 0; k < in->ndim; k++) v.d[dims[k]] = view->d[k];
        break;
    case OP_SLICE: {
        ViewDim *x = &v.d[node_int(n, ATTR_DIM)];
        int64_t step = node_int(n, ATTR_STEP);
        x->start = node_int(n, ATTR_START) + step * x->start;
        x->step *= step;
        break;
    }
    case OP_BROADCAST:
        for (int k = 0; k < in->ndim; k++)
            if (in->dim[k] == 1) v.d[k] = (ViewDim){.dim = -1};
        break;
    case OP_RESHAPE: v = reshaped(view, out, in); break;
    case OP_PAD: return emit_pad(e, n, view);
    default: return emit_concat(e, n, view);
    }
    return fuse_emit_value(e, n->in[0], &v);
}
