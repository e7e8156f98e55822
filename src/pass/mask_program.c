// Expressions over (b, h, q, k): hash-consed, simplified as they are built. See mask.h.
#include <math.h>

#include "ops/op.h"
#include "pass/mask.h"
#include "pass/scalar.h"

void mask_prog_free(MaskProg *m) {
    vec_free(&m->instr);
    vec_free(&m->info);
    vec_free(&m->slot);
}

static double leaf_extent(const MaskProg *m, int code) {
    if (code >= PROG_INDEX_B && code <= PROG_INDEX_K) return (double)m->extent[code - PROG_INDEX_B];
    if (code == MP_INDEX_D || code == MP_INDEX_E) return (double)m->extent[4 + code - MP_INDEX_D];
    return INFINITY;
}

static void bounds_of_op(const MaskProg *m, const Instr *x, MaskInfo *out) {
    const MaskInfo *a = &m->info.data[x->a], *b = x->b >= 0 ? &m->info.data[x->b] : a, *c = x->c >= 0 ? &m->info.data[x->c] : a;
    switch ((OpKind)(x->code - PROG_OP)) {
        case OP_ADD: out->lo = a->lo + b->lo, out->hi = a->hi + b->hi; break;
        case OP_SUB: out->lo = a->lo - b->hi, out->hi = a->hi - b->lo; break;
        case OP_NEG: out->lo = -a->hi, out->hi = -a->lo; break;
        case OP_ABS: out->lo = a->lo > 0 ? a->lo : a->hi < 0 ? -a->hi : 0, out->hi = fmax(fabs(a->lo), fabs(a->hi)); break;
        case OP_MAX: out->lo = fmax(a->lo, b->lo), out->hi = fmax(a->hi, b->hi); break;
        case OP_MIN: out->lo = fmin(a->lo, b->lo), out->hi = fmin(a->hi, b->hi); break;
        case OP_WHERE: out->lo = fmin(b->lo, c->lo), out->hi = fmax(b->hi, c->hi); break;
        case OP_CAST: out->lo = a->lo, out->hi = a->hi; break;
        case OP_FLOORDIV:
            if (b->lo == b->hi && b->lo > 0) out->lo = floor(a->lo / b->lo), out->hi = floor(a->hi / b->lo);
            break;
        case OP_MOD:
            if (b->lo == b->hi && b->lo > 0) out->lo = 0, out->hi = b->lo - 1;
            break;
        case OP_MUL:
            if (b->lo == b->hi && isfinite(b->lo) && b->lo != 0)
                out->lo = fmin(a->lo * b->lo, a->hi * b->lo), out->hi = fmax(a->lo * b->lo, a->hi * b->lo);
            break;
        default: break;
    }
}

static MaskInfo info_of(const MaskProg *m, const Instr *x) {
    MaskInfo i = {.lo = -INFINITY, .hi = INFINITY};
    if (x->code == PROG_CONST) i.lo = i.hi = x->imm;
    if (x->code < PROG_OP) {
        if (isfinite(leaf_extent(m, x->code))) i.lo = 0, i.hi = leaf_extent(m, x->code) - 1;
        i.reads_q = x->code == PROG_INDEX_Q || x->code == PROG_VEC_Q || x->code == MP_SCORE || x->code == MP_RANDOM;
        i.reads_k = x->code == PROG_INDEX_K || x->code == PROG_VEC_K || x->code == MP_SCORE || x->code == MP_RANDOM;
        i.special = x->code >= MP_INDEX_D;
        if (x->code == MP_SOFTMAX) i.reads_q = i.reads_k = true;
    } else {
        const int32_t operand[3] = {x->a, x->b, x->c};
        for (int k = 0; k < 3; k++) {
            if (operand[k] < 0) continue;
            const MaskInfo *o = &m->info.data[operand[k]];
            i.reads_q |= o->reads_q, i.reads_k |= o->reads_k, i.special |= o->special;
        }
        bounds_of_op(m, x, &i);
    }
    if (x->dtype == DT_BOOL) i.lo = fmax(i.lo, 0), i.hi = fmin(i.hi, 1);
    if (isnan(i.lo) || isnan(i.hi)) i.lo = -INFINITY, i.hi = INFINITY;
    return i;
}

int mask_raw(MaskProg *m, Instr x) {
    for (int64_t i = m->instr.len - 1; i >= 0; i--) {
        const Instr *y = &m->instr.data[i];
        if (x.code == y->code && x.dtype == y->dtype && x.a == y->a && x.b == y->b && x.c == y->c &&
            !memcmp(&x.imm, &y->imm, sizeof x.imm))
            return (int)i;
    }
    if (m->instr.len >= MP_MAX_INSTR) m->overflow = true;
    if (m->overflow) return -1;
    MaskInfo info = info_of(m, &x);
    vec_push(&m->instr, x);
    vec_push(&m->info, info);
    return (int)m->instr.len - 1;
}

int mask_leaf(MaskProg *m, int code, DType t, int a, double imm) {
    return mask_raw(m, (Instr){.code = code, .dtype = t, .a = a, .b = -1, .c = -1, .imm = imm});
}

int mask_const(MaskProg *m, DType t, double v) {
    if (t == DT_F32) v = (double)(float)v;
    return mask_leaf(m, PROG_CONST, t, -1, v == 0 ? 0.0 : v);
}

int mask_index(MaskProg *m, int leaf) {
    return leaf_extent(m, leaf) == 1 ? mask_const(m, DT_I64, 0) : mask_leaf(m, leaf, DT_I64, -1, 0);
}

bool mask_number(const MaskProg *m, int x, double *v) {
    if (x < 0 || m->instr.data[x].code != PROG_CONST) return false;
    *v = m->instr.data[x].imm;
    return true;
}

bool mask_slot_equal(const MaskSlot *a, const MaskSlot *b) {
    if (a->role != b->role || a->value != b->value || a->data != b->data || a->dtype != b->dtype ||
        a->shape.ndim != b->shape.ndim)
        return false;
    for (int i = 0; i < a->shape.ndim; i++)
        if (a->dim[i].index != b->dim[i].index || a->dim[i].start != b->dim[i].start || a->dim[i].length != b->dim[i].length)
            return false;
    return true;
}

int mask_slot(MaskProg *m, const MaskSlot *s) {
    int at = (int)m->slot.len;
    for (int i = 0; i < at; i++)
        if (mask_slot_equal(&m->slot.data[i], s)) return mask_leaf(m, s->role == 'q' ? PROG_VEC_Q : PROG_VEC_K, s->dtype, i, 0);
    vec_push(&m->slot, *s);
    return mask_leaf(m, s->role == 'q' ? PROG_VEC_Q : PROG_VEC_K, s->dtype, at, 0);
}

// ---- rules ----------------------------------------------------------------------------------------------------------
static bool is_op(const MaskProg *m, int x, OpKind op) { return x >= 0 && m->instr.data[x].code == PROG_OP + (int)op; }

static int raw_op(MaskProg *m, OpKind op, DType to, int a, int b, int c) {
    return mask_raw(m, (Instr){.code = PROG_OP + (int)op, .dtype = to, .a = a, .b = b, .c = c});
}

static bool is_compare(OpKind op) { return op >= OP_EQ && op <= OP_GE; }

// Is `x` one of the conjuncts (or, for OR, disjuncts) of `chain`?
static bool chain_has(const MaskProg *m, OpKind op, int chain, int x, int depth) {
    if (chain == x) return true;
    if (depth > 16 || !is_op(m, chain, op)) return false;
    const Instr i = m->instr.data[chain];
    return chain_has(m, op, i.a, x, depth + 1) || chain_has(m, op, i.b, x, depth + 1);
}

static int logic_op(MaskProg *m, OpKind op, int a, int b) {
    double v;
    if (mask_number(m, a, &v)) {
        int t = a;
        a = b, b = t;
    }
    if (mask_number(m, b, &v)) {
        if (op == OP_XOR) return v == 0 ? a : mask_op(m, OP_NOT, DT_BOOL, a, -1, -1);
        if ((op == OP_AND) == (v != 0)) return a;
        return mask_const(m, DT_BOOL, op == OP_OR);
    }
    if (op == OP_XOR) return a == b ? mask_const(m, DT_BOOL, 0) : raw_op(m, op, DT_BOOL, a, b, -1);
    if (chain_has(m, op, a, b, 0)) return a;
    if (chain_has(m, op, b, a, 0)) return b;
    int not_b = mask_op(m, OP_NOT, DT_BOOL, b, -1, -1);
    if (not_b >= 0 && chain_has(m, op, a, not_b, 0)) return mask_const(m, DT_BOOL, op == OP_OR);
    bool ab = mask_implies(m, a, b), ba = mask_implies(m, b, a);
    if (ab) return op == OP_AND ? a : b;
    if (ba) return op == OP_AND ? b : a;
    return raw_op(m, op, DT_BOOL, a, b, -1);
}

static int not_op(MaskProg *m, int a) {
    Instr x = m->instr.data[a];
    bool ints = x.code >= PROG_OP && x.a >= 0 && !dtype_is_float(m->instr.data[x.a].dtype);
    if (x.code == PROG_OP + OP_NOT) return x.a;
    if (x.code == PROG_OP + OP_EQ) return mask_op(m, OP_NE, DT_BOOL, x.a, x.b, -1);
    if (x.code == PROG_OP + OP_NE) return mask_op(m, OP_EQ, DT_BOOL, x.a, x.b, -1);
    if (x.code == PROG_OP + OP_LE && ints) return mask_int_op(m, OP_GT, x.a, x.b);
    return raw_op(m, OP_NOT, DT_BOOL, a, -1, -1);
}

static int where_op(MaskProg *m, DType to, int c, int x, int y) {
    double v, p, q;
    if (mask_number(m, c, &v)) return v != 0 ? x : y;
    if (x == y) return x;
    if (is_op(m, c, OP_NOT)) return where_op(m, to, m->instr.data[c].a, y, x);
    if (to == DT_BOOL) {
        bool kx = mask_number(m, x, &p), ky = mask_number(m, y, &q);
        int nc = ky || kx ? mask_op(m, OP_NOT, DT_BOOL, c, -1, -1) : -1;
        if (kx && ky) return p != 0 ? c : nc;
        if (ky) return q == 0 ? mask_op(m, OP_AND, to, c, x, -1) : mask_op(m, OP_OR, to, nc, x, -1);
        if (kx) return p != 0 ? mask_op(m, OP_OR, to, c, y, -1) : mask_op(m, OP_AND, to, nc, y, -1);
    }
    // where(c, where(c, x, _), y) and where(c, x, where(c, _, y))
    if (is_op(m, x, OP_WHERE) && m->instr.data[x].a == c) x = m->instr.data[x].b;
    if (is_op(m, y, OP_WHERE) && m->instr.data[y].a == c) y = m->instr.data[y].c;
    return raw_op(m, OP_WHERE, to, c, x, y);
}

// A number chosen by a condition: where(c, n1, n0).
static bool is_choice(const MaskProg *m, int x, int *cond, int *yes, int *no) {
    if (!is_op(m, x, OP_WHERE)) return false;
    const Instr i = m->instr.data[x];
    double v;
    *cond = i.a, *yes = i.b, *no = i.c;
    return mask_number(m, i.b, &v) && mask_number(m, i.c, &v);
}

static bool is_unit_choice(const MaskProg *m, int x, int *cond) {
    int yes, no;
    double p, q;
    return is_choice(m, x, cond, &yes, &no) && mask_number(m, yes, &p) && mask_number(m, no, &q) && p == 1 && q == 0;
}

// op over choices and numbers is a choice of results: (1 - cast(c)) * -1e9 = where(c, 0, -1e9).
static int choice_op(MaskProg *m, OpKind op, DType to, int a, int b) {
    int ca = -1, cb = -1, ay = a, an = a, by = b, bn = b;
    double v;
    bool choice_a = is_choice(m, a, &ca, &ay, &an), choice_b = b >= 0 && is_choice(m, b, &cb, &by, &bn);
    if (!choice_a && !choice_b) return -1;
    if ((!choice_a && !mask_number(m, a, &v)) || (b >= 0 && !choice_b && !mask_number(m, b, &v))) return -1;
    if (choice_a && choice_b && ca != cb) {
        int ua, ub;
        if (op != OP_MUL || !is_unit_choice(m, a, &ua) || !is_unit_choice(m, b, &ub)) return -1;
        return mask_op(m, OP_WHERE, to, mask_op(m, OP_AND, DT_BOOL, ua, ub, -1), mask_const(m, to, 1), mask_const(m, to, 0));
    }
    if (!choice_a) ay = an = a;
    if (!choice_b) by = bn = b;
    int yes = mask_op(m, op, to, ay, by, -1), no = mask_op(m, op, to, an, bn, -1);
    return mask_op(m, OP_WHERE, to, choice_a ? ca : cb, yes, no);
}

// A float that is exactly an integer expression.
static int integer_of(MaskProg *m, int x) {
    double v;
    if (mask_number(m, x, &v)) return v == floor(v) && fabs(v) < 16777216.0 ? mask_const(m, DT_I64, v) : -1;
    if (!is_op(m, x, OP_CAST)) return -1;
    int from = m->instr.data[x].a;
    const MaskInfo *i = &m->info.data[from];
    return m->instr.data[from].dtype == DT_I64 && fabs(i->lo) < 16777216.0 && fabs(i->hi) < 16777216.0 ? from : -1;
}

static int compare_op(MaskProg *m, OpKind op, int a, int b) {
    DType t = m->instr.data[a].dtype;
    if (t == DT_BOOL && (op == OP_EQ || op == OP_NE)) {
        int differ = logic_op(m, OP_XOR, a, b);
        return op == OP_NE ? differ : mask_op(m, OP_NOT, DT_BOOL, differ, -1, -1);
    }
    if (t == DT_BOOL) return raw_op(m, op, DT_BOOL, a, b, -1);
    if (!dtype_is_float(t)) return mask_int_op(m, op, a, b);
    int ia = integer_of(m, a), ib = integer_of(m, b);
    if (ia >= 0 && ib >= 0) return mask_int_op(m, op, ia, ib);
    return raw_op(m, op, DT_BOOL, a, b, -1);
}

static int cast_op(MaskProg *m, DType to, int a) {
    DType from = m->instr.data[a].dtype;
    if (from == to) return a;
    if (from == DT_BOOL) return where_op(m, to, a, mask_const(m, to, 1), mask_const(m, to, 0));
    if (is_op(m, a, OP_CAST) && m->instr.data[m->instr.data[a].a].dtype == to && to == DT_I64 && integer_of(m, a) >= 0)
        return m->instr.data[a].a;
    if (to == DT_BOOL) return mask_op(m, OP_NE, DT_BOOL, a, mask_const(m, from, 0), -1);
    return raw_op(m, OP_CAST, to, a, -1, -1);
}

static int float_op(MaskProg *m, OpKind op, DType to, int a, int b) {
    double v;
    bool right = b >= 0 && mask_number(m, b, &v);
    if (right && v == 0 && (op == OP_ADD || op == OP_SUB)) return a;
    if (right && v == 1 && (op == OP_MUL || op == OP_DIV || op == OP_POW)) return a;
    if (mask_number(m, a, &v) && ((op == OP_ADD && v == 0) || (op == OP_MUL && v == 1))) return b;
    if (op == OP_NEG && is_op(m, a, OP_NEG)) return m->instr.data[a].a;
    return raw_op(m, op, to, a, b, -1);
}

int mask_op(MaskProg *m, OpKind op, DType to, int a, int b, int c) {
    int arity = program_op_arity((int)op);
    const int x[3] = {a, b, c};
    double v[3], r;
    bool all = true;
    for (int i = 0; i < arity; i++) {
        if (x[i] < 0) return -1;
        all = mask_number(m, x[i], &v[i]) && all;
    }
    if (arity == 0 || m->overflow) return -1;
    DType t = m->instr.data[op == OP_WHERE ? b : a].dtype;
    if (all && scalar_eval(op, t, to, v, &r)) return mask_const(m, to, r);
    if (op == OP_STOP_GRAD) return a;
    if (op == OP_WHERE) return where_op(m, to, a, b, c);
    if (op == OP_AND || op == OP_OR || op == OP_XOR) return logic_op(m, op, a, b);
    if (op == OP_NOT) return not_op(m, a);
    int chosen = choice_op(m, op, to, a, b);
    if (chosen >= 0) return chosen;
    if (op == OP_CAST) return cast_op(m, to, a);
    if (is_compare(op)) return compare_op(m, op, a, b);
    if (!dtype_is_float(to)) return mask_int_op(m, op, a, b);
    return float_op(m, op, to, a, b);
}
