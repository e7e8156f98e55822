// Canonical forms and identities of pointwise operations; see canonicalize.c. Of floats only what preserves the value.
#include <math.h>

#include "pass/canon.h"

static ValueId emit1(Canon *c, OpKind op, ValueId x) { return canon_emit(c, op, 1, &x, 0, NULL); }

static ValueId emit_cast(Canon *c, ValueId x, DType t) {
    if (canon_dtype(c, x) == t) return x;
    Attr a = attr_i(ATTR_DTYPE, t);
    return canon_emit(c, OP_CAST, 1, &x, 1, &a);
}

// Shape of op(in): all operands broadcast together.
static bool result_shape(const Canon *c, int nin, const ValueId *in, Shape *out) {
    *out = *canon_shape(c, in[0]);
    for (int i = 1; i < nin; i++) {
        Shape s = *out;
        if (!broadcast_shapes(&s, canon_shape(c, in[i]), out)) return false;
    }
    return true;
}

static bool same_shape_with(const Canon *c, int nin, ValueId *in, int slot, ValueId replacement, const Shape *want) {
    ValueId old = in[slot];
    Shape s;
    in[slot] = replacement;
    bool same = result_shape(c, nin, in, &s) && shape_equal(&s, want);
    in[slot] = old;
    return same;
}

static bool is_commutative(OpKind op) {
    return op == OP_ADD || op == OP_MUL || op == OP_MAX || op == OP_MIN || op == OP_EQ || op == OP_NE || op == OP_AND ||
           op == OP_OR || op == OP_XOR;
}

// Implicit broadcasting instead of BROADCAST nodes, scalars instead of filled tensors, scalars on the right. True if `in`
// changed.
static bool normalise_operands(Canon *c, OpKind op, int nin, ValueId *in, const Shape *want) {
    bool changed = false;
    for (int i = 0; i < nin && nin > 1; i++) {
        double v;
        while (canon_def(c, in[i])->op == OP_BROADCAST) {
            ValueId from = canon_def(c, in[i])->in[0];
            if (!same_shape_with(c, nin, in, i, from, want)) break;
            in[i] = from;
            changed = true;
        }
        if (canon_shape(c, in[i])->ndim == 0 || !canon_number(c, in[i], &v)) continue;
        ValueId s = canon_full(c, SHAPE0, canon_dtype(c, in[i]), v);
        if (s == NO_VALUE || !same_shape_with(c, nin, in, i, s, want)) continue;
        in[i] = s;
        changed = true;
    }
    double v;
    if (is_commutative(op) && canon_number(c, in[0], &v) && !canon_number(c, in[1], &v)) {
        ValueId x = in[0];
        in[0] = in[1];
        in[1] = x;
        changed = true;
    }
    return changed;
}

// ---- comparisons ----------------------------------------------------------------------------------------------------
// -1 unknown, else the truth value that bounds or equality of the operands give.
static int decide_compare(const Canon *c, OpKind op, ValueId x, ValueId y) {
    if (dtype_is_float(canon_dtype(c, x))) return -1;
    if (x == y) return op == OP_EQ || op == OP_LE || op == OP_GE;
    IntRange a = c->range.data[x], b = c->range.data[y];
    if (!a.ok || !b.ok) return -1;
    switch (op) {
        case OP_LT: return a.hi < b.lo ? 1 : a.lo >= b.hi ? 0 : -1;
        case OP_LE: return a.hi <= b.lo ? 1 : a.lo > b.hi ? 0 : -1;
        case OP_GT: return a.lo > b.hi ? 1 : a.hi <= b.lo ? 0 : -1;
        case OP_GE: return a.lo >= b.hi ? 1 : a.hi < b.lo ? 0 : -1;
        case OP_EQ: return a.hi < b.lo || a.lo > b.hi ? 0 : -1;
        case OP_NE: return a.hi < b.lo || a.lo > b.hi ? 1 : -1;
        default: return -1;
    }
}

static OpKind inverse_compare(OpKind op) {
    switch (op) {
        case OP_EQ: return OP_NE;
        case OP_NE: return OP_EQ;
        case OP_LT: return OP_GE;
        case OP_LE: return OP_GT;
        case OP_GT: return OP_LE;
        case OP_GE: return OP_LT;
        default: return OP_COUNT;
    }
}

static ValueId simplify_not(Canon *c, ValueId x) {
    const Node *n = canon_def(c, x);
    if (n->op == OP_NOT) return n->in[0];
    OpKind inv = inverse_compare(n->op);
    if (inv == OP_COUNT) return NO_VALUE;
    bool ordered = n->op != OP_EQ && n->op != OP_NE;  // !(a < b) is a >= b only where there is no NaN
    if (ordered && dtype_is_float(canon_dtype(c, n->in[0]))) return NO_VALUE;
    ValueId in[2] = {n->in[0], n->in[1]};
    return canon_emit(c, inv, 2, in, 0, NULL);
}

static ValueId simplify_logic(Canon *c, OpKind op, const ValueId *in, const Shape *s) {
    double v;
    if (in[0] == in[1]) return op == OP_XOR ? canon_full(c, *s, DT_BOOL, 0) : in[0];
    if (!canon_number(c, in[1], &v)) return NO_VALUE;
    if (op == OP_XOR) return v == 0 ? canon_broadcast(c, in[0], *s) : canon_broadcast(c, emit1(c, OP_NOT, in[0]), *s);
    if ((op == OP_AND) == (v != 0)) return canon_broadcast(c, in[0], *s);
    return canon_full(c, *s, DT_BOOL, op == OP_OR);
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------
static ValueId simplify_extremum(Canon *c, OpKind op, const ValueId *in, const Shape *s) {
    if (in[0] == in[1]) return in[0];
    IntRange a = c->range.data[in[0]], b = c->range.data[in[1]];
    if (!a.ok || !b.ok || dtype_is_float(canon_dtype(c, in[0]))) return NO_VALUE;
    bool first = op == OP_MIN ? a.hi <= b.lo : a.lo >= b.hi, second = op == OP_MIN ? b.hi <= a.lo : b.lo >= a.hi;
    return first ? canon_broadcast(c, in[0], *s) : second ? canon_broadcast(c, in[1], *s) : NO_VALUE;
}

static bool is_zero_pad(const Canon *c, ValueId x, int64_t *dim, int64_t *lo, int64_t *hi) {
    const Node *n = canon_def(c, x);
    if (n->op != OP_PAD || node_float_or(n, ATTR_VALUE, 0) != 0) return false;
    *dim = node_int(n, ATTR_DIM), *lo = node_int(n, ATTR_LO), *hi = node_int(n, ATTR_HI);
    return true;
}

// The gradient of a split: pad(a, 0, n) + pad(b, n, 0) = concat(a, b); where they only touch, pads remain around it.
static ValueId merge_pads(Canon *c, ValueId x, ValueId y) {
    int64_t dim, dim2, lo[2], hi[2];
    if (!is_zero_pad(c, x, &dim, &lo[0], &hi[0]) || !is_zero_pad(c, y, &dim2, &lo[1], &hi[1]) || dim != dim2) return NO_VALUE;
    const Shape *sx = canon_shape(c, x), *sy = canon_shape(c, y);
    if (!shape_equal(sx, sy)) return NO_VALUE;
    int64_t total = sx->dim[dim];
    int first = lo[0] < lo[1] ? 0 : 1, last = 1 - first;
    if (total - hi[first] != lo[last]) return NO_VALUE;
    ValueId part[2] = {canon_def(c, first == 0 ? x : y)->in[0], canon_def(c, first == 0 ? y : x)->in[0]};
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_LO, lo[first]), attr_i(ATTR_HI, hi[last]), attr_f(ATTR_VALUE, 0)};
    ValueId both = canon_emit(c, OP_CONCAT, 2, part, 1, a);
    return both == NO_VALUE || (lo[first] == 0 && hi[last] == 0) ? both : canon_emit(c, OP_PAD, 1, &both, 4, a);
}

static ValueId simplify_arith(Canon *c, OpKind op, const ValueId *in, const Shape *s) {
    DType t = canon_dtype(c, in[0]);
    bool integer = !dtype_is_float(t);
    double v;
    if (op == OP_SUB && integer && in[0] == in[1]) return canon_full(c, *s, t, 0);
    if (op == OP_MAX || op == OP_MIN) return simplify_extremum(c, op, in, s);
    if (op == OP_ADD && !canon_number(c, in[1], &v)) return merge_pads(c, in[0], in[1]);
    if (!canon_number(c, in[1], &v)) return NO_VALUE;
    bool neutral = false;
    switch (op) {
        case OP_ADD:
        case OP_SUB: neutral = v == 0; break;
        case OP_MUL:
        case OP_DIV:
        case OP_POW: neutral = v == 1; break;
        case OP_FLOORDIV: neutral = integer && v == 1; break;
        default: break;
    }
    if (neutral) return canon_broadcast(c, in[0], *s);
    if (integer && ((op == OP_MUL && v == 0) || (op == OP_MOD && v == 1))) return canon_full(c, *s, t, 0);
    IntRange r = c->range.data[in[0]];
    if (integer && op == OP_MOD && r.ok && r.lo >= 0 && r.hi < v) return canon_broadcast(c, in[0], *s);
    return NO_VALUE;
}

static ValueId simplify_cast(Canon *c, ValueId x, DType to) {
    if (canon_dtype(c, x) == to) return x;
    const Node *n = canon_def(c, x);
    if (n->op != OP_CAST) return NO_VALUE;
    ValueId from = n->in[0];
    DType s = canon_dtype(c, from), via = canon_dtype(c, x);
    if (s == DT_BOOL) return emit_cast(c, from, to);
    IntRange r = c->range.data[from];
    if (s == DT_BF16 && to == DT_BF16 && dtype_is_float(via)) return from;  // the other way round a cast rounds
    double exact = via == DT_BF16 ? 256.0 : via == DT_F32 ? 16777216.0 : 9007199254740992.0;
    if (s == to && s == DT_I64 && dtype_is_float(via) && r.ok && fabs(r.lo) <= exact && fabs(r.hi) <= exact) return from;
    return NO_VALUE;
}

static ValueId simplify_where(Canon *c, const ValueId *in, const Shape *s) {
    double v;
    if (canon_number(c, in[0], &v)) return canon_broadcast(c, v != 0 ? in[1] : in[2], *s);
    if (in[1] == in[2]) return canon_broadcast(c, in[1], *s);
    const Node *n = canon_def(c, in[0]);
    if (n->op == OP_NOT) {
        ValueId swapped[3] = {n->in[0], in[2], in[1]};
        return canon_emit(c, OP_WHERE, 3, swapped, 0, NULL);
    }
    return NO_VALUE;
}

static ValueId simplify_unary(Canon *c, OpKind op, ValueId x, int nattr, const Attr *attr) {
    const Node *n = canon_def(c, x);
    switch (op) {
        case OP_CAST: {
            Node k = {.op = OP_CAST, .nattr = (int16_t)nattr, .attr = (Attr *)attr};
            return simplify_cast(c, x, (DType)node_int(&k, ATTR_DTYPE));
        }
        case OP_NEG: return n->op == OP_NEG ? n->in[0] : NO_VALUE;
        case OP_NOT: return simplify_not(c, x);
        case OP_STOP_GRAD: {
            bool constant = n->op == OP_STOP_GRAD || c->known.data[x].known || n->op == OP_CONSTANT || n->op == OP_INPUT;
            return c->drop_stop_grad || constant || !dtype_is_float(canon_dtype(c, x)) ? x : NO_VALUE;
        }
        default: return NO_VALUE;
    }
}

ValueId canon_pointwise(Canon *c, OpKind op, int nin, const ValueId *arg, int nattr, const Attr *attr) {
    if (nin == 1) return simplify_unary(c, op, arg[0], nattr, attr);
    if (nin > 3) return NO_VALUE;
    ValueId in[3];
    memcpy(in, arg, sizeof *in * (size_t)nin);
    Shape s;
    if (!result_shape(c, nin, in, &s)) return NO_VALUE;  // graph_add will say what is wrong
    if (normalise_operands(c, op, nin, in, &s)) return canon_emit(c, op, nin, in, nattr, attr);
    if (op == OP_WHERE) return simplify_where(c, in, &s);
    if (op == OP_AND || op == OP_OR || op == OP_XOR) return simplify_logic(c, op, in, &s);
    if (inverse_compare(op) != OP_COUNT) {
        int truth = decide_compare(c, op, in[0], in[1]);
        return truth < 0 ? NO_VALUE : canon_full(c, s, DT_BOOL, truth);
    }
    return simplify_arith(c, op, in, &s);
}
