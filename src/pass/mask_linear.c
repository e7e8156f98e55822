// Integer expressions as linear forms: c0 + c1*atom1 + ... Sums cancel, comparisons get one spelling, and bounds of the indices
// decide what they can (a window as long as the sequence is no window). See mask.h.
#include <math.h>

#include "pass/mask.h"

static Instr get(const MaskProg *m, int x) { return m->instr.data[x]; }

static void linear_add_term(MaskLinear *l, int32_t atom, int64_t coef) {
    if (l->n < 0 || coef == 0) return;
    int at = 0;
    while (at < l->n && l->term[at].atom < atom) at++;
    if (at < l->n && l->term[at].atom == atom) {
        l->term[at].coef += coef;
        if (l->term[at].coef != 0) return;
        l->n--;
        memmove(&l->term[at], &l->term[at + 1], sizeof *l->term * (size_t)(l->n - at));
        return;
    }
    if (l->n == MP_MAX_TERMS) {
        l->n = -1;
        return;
    }
    memmove(&l->term[at + 1], &l->term[at], sizeof *l->term * (size_t)(l->n - at));
    l->term[at] = (MaskTerm){atom, coef};
    l->n++;
}

static void linear_add(MaskLinear *l, const MaskLinear *o, int64_t factor) {
    int64_t add;
    if (l->n < 0 || o->n < 0 || __builtin_mul_overflow(o->constant, factor, &add) ||
        __builtin_add_overflow(l->constant, add, &l->constant)) {
        l->n = -1;
        return;
    }
    for (int i = 0; i < o->n && l->n >= 0; i++) {
        int64_t coef;
        if (__builtin_mul_overflow(o->term[i].coef, factor, &coef)) l->n = -1;
        else linear_add_term(l, o->term[i].atom, coef);
    }
}

MaskLinear mask_linear_of(const MaskProg *m, int x) {
    MaskLinear l = {0};
    Instr i = get(m, x);
    double v;
    if (i.dtype != DT_I64) l.n = -1;
    else if (i.code == PROG_CONST) l.constant = (int64_t)i.imm;
    else if (i.code == PROG_OP + OP_ADD || i.code == PROG_OP + OP_SUB) {
        MaskLinear a = mask_linear_of(m, i.a), b = mask_linear_of(m, i.b);
        l = a;
        linear_add(&l, &b, i.code == PROG_OP + OP_ADD ? 1 : -1);
    } else if (i.code == PROG_OP + OP_MUL && mask_number(m, i.b, &v)) {
        MaskLinear a = mask_linear_of(m, i.a);
        linear_add(&l, &a, (int64_t)v);
    } else {
        linear_add_term(&l, x, 1);
    }
    return l;
}

void mask_linear_bounds(const MaskProg *m, const MaskLinear *l, double *lo, double *hi) {
    *lo = *hi = (double)l->constant;
    for (int i = 0; i < l->n; i++) {
        const MaskInfo *a = &m->info.data[l->term[i].atom];
        double c = (double)l->term[i].coef;
        *lo += c > 0 ? c * a->lo : c * a->hi;
        *hi += c > 0 ? c * a->hi : c * a->lo;
    }
}

static int raw2(MaskProg *m, OpKind op, DType to, int a, int b) {
    if (a < 0 || b < 0) return -1;
    return mask_raw(m, (Instr){.code = PROG_OP + (int)op, .dtype = to, .a = a, .b = b, .c = -1});
}

static int scaled(MaskProg *m, int atom, int64_t coef) {
    return coef == 1 ? atom : raw2(m, OP_MUL, DT_I64, atom, mask_const(m, DT_I64, (double)coef));
}

// Terms with positive coefficients added, negative ones subtracted, then the constant.
int mask_linear_build(MaskProg *m, const MaskLinear *l) {
    int x = -1;
    for (int i = 0; i < l->n; i++)
        if (l->term[i].coef > 0) {
            int t = scaled(m, l->term[i].atom, l->term[i].coef);
            x = x < 0 ? t : raw2(m, OP_ADD, DT_I64, x, t);
        }
    int64_t constant = l->constant;
    bool negative = false;
    for (int i = 0; i < l->n; i++) negative = negative || l->term[i].coef < 0;
    if (x < 0 && negative) {
        x = mask_const(m, DT_I64, (double)constant);
        constant = 0;
    }
    for (int i = 0; i < l->n; i++)
        if (l->term[i].coef < 0) x = raw2(m, OP_SUB, DT_I64, x, scaled(m, l->term[i].atom, -l->term[i].coef));
    if (x < 0) return m->overflow ? -1 : mask_const(m, DT_I64, (double)constant);
    if (constant > 0) return raw2(m, OP_ADD, DT_I64, x, mask_const(m, DT_I64, (double)constant));
    return constant < 0 ? raw2(m, OP_SUB, DT_I64, x, mask_const(m, DT_I64, (double)-constant)) : x;
}

// l <= 0 or l == 0 as `left op right`: positive terms left, negative ones and the constant right.
static int build_compare(MaskProg *m, OpKind op, const MaskLinear *l) {
    MaskLinear left = {0}, right = {0};
    for (int i = 0; i < l->n; i++) linear_add_term(l->term[i].coef > 0 ? &left : &right, l->term[i].atom, llabs(l->term[i].coef));
    (left.n == 0 ? &left : &right)->constant = left.n == 0 ? l->constant : -l->constant;
    int a = mask_linear_build(m, &left), b = mask_linear_build(m, &right);
    if (op != OP_LE && left.n == 0) return raw2(m, op, DT_BOOL, b, a);
    return raw2(m, op, DT_BOOL, a, b);
}

static int int_compare(MaskProg *m, OpKind op, int a, int b) {
    if (op == OP_GT || op == OP_GE) return int_compare(m, op == OP_GT ? OP_LT : OP_LE, b, a);
    MaskLinear l = mask_linear_of(m, a), r = mask_linear_of(m, b);
    linear_add(&l, &r, -1);
    if (l.n < 0) return raw2(m, op, DT_BOOL, a, b);  // too many terms
    if (op == OP_LT) {
        l.constant++;
        op = OP_LE;
    }
    double lo, hi;
    mask_linear_bounds(m, &l, &lo, &hi);
    if (op == OP_LE) {
        if (hi <= 0) return mask_const(m, DT_BOOL, 1);
        if (lo > 0) return mask_const(m, DT_BOOL, 0);
        return build_compare(m, op, &l);
    }
    if (lo > 0 || hi < 0 || (l.n == 0 && l.constant != 0)) return mask_const(m, DT_BOOL, op == OP_NE);
    if (l.n == 0) return mask_const(m, DT_BOOL, op == OP_EQ);
    if (l.term[0].coef < 0) {  // one sign for x - y and y - x
        MaskLinear neg = {0};
        linear_add(&neg, &l, -1);
        l = neg;
    }
    return build_compare(m, op, &l);
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && a % b < 0); }

// Division by a positive constant c: l = c*quotient + rest; where 0 <= rest < c the parts are the answer.
static int int_division(MaskProg *m, OpKind op, int a, int64_t c) {
    MaskLinear l = mask_linear_of(m, a), quotient = {0}, rest = {0};
    for (int i = 0; i < l.n; i++) {
        bool whole = l.term[i].coef % c == 0;
        linear_add_term(whole ? &quotient : &rest, l.term[i].atom, whole ? l.term[i].coef / c : l.term[i].coef);
    }
    quotient.constant = floor_div(l.constant, c);
    rest.constant = l.constant - c * quotient.constant;
    double lo, hi;
    mask_linear_bounds(m, &rest, &lo, &hi);
    if (l.n >= 0 && lo >= 0 && hi < (double)c) return mask_linear_build(m, op == OP_FLOORDIV ? &quotient : &rest);
    if (l.n >= 0 && op == OP_MOD && quotient.n > 0) a = mask_linear_build(m, &rest);
    return raw2(m, op, DT_I64, a, mask_const(m, DT_I64, (double)c));
}

int mask_int_op(MaskProg *m, OpKind op, int a, int b) {
    if (a < 0 || (b < 0 && op != OP_NEG && op != OP_ABS && op != OP_SIGN)) return -1;
    double v;
    const MaskInfo *ia = &m->info.data[a], *ib = b >= 0 ? &m->info.data[b] : NULL;
    MaskLinear l = mask_linear_of(m, a), out = {0};
    switch (op) {
        case OP_EQ:
        case OP_NE:
        case OP_LT:
        case OP_LE:
        case OP_GT:
        case OP_GE: return int_compare(m, op, a, b);
        case OP_ADD:
        case OP_SUB: {
            MaskLinear r = mask_linear_of(m, b);
            linear_add(&l, &r, op == OP_ADD ? 1 : -1);
            if (l.n >= 0) return mask_linear_build(m, &l);
            break;
        }
        case OP_NEG:
            linear_add(&out, &l, -1);
            if (out.n >= 0) return mask_linear_build(m, &out);
            break;
        case OP_MUL:
            if (mask_number(m, a, &v)) {
                int t = a;
                a = b, b = t;
                l = mask_linear_of(m, a);
            }
            if (!mask_number(m, b, &v)) break;
            linear_add(&out, &l, (int64_t)v);
            if (out.n >= 0) return mask_linear_build(m, &out);
            break;
        case OP_FLOORDIV:
        case OP_MOD:
            if (mask_number(m, b, &v) && v >= 1) return int_division(m, op, a, (int64_t)v);
            break;
        case OP_ABS:
            if (ia->lo >= 0) return a;
            return mask_raw(m, (Instr){.code = PROG_OP + OP_ABS, .dtype = DT_I64, .a = a, .b = -1, .c = -1});
        case OP_MAX:
        case OP_MIN:
            if (a == b) return a;
            if (ia->lo >= ib->hi) return op == OP_MAX ? a : b;
            if (ib->lo >= ia->hi) return op == OP_MAX ? b : a;
            break;
        default: break;
    }
    if (b < 0) return mask_raw(m, (Instr){.code = PROG_OP + (int)op, .dtype = DT_I64, .a = a, .b = -1, .c = -1});
    return raw2(m, op, DT_I64, a, b);
}

// `left <= right` of an instruction as left - right; n == -1: it is no such comparison.
static MaskLinear le_form(const MaskProg *m, int x) {
    Instr i = get(m, x);
    MaskLinear l = {.n = -1};
    if (i.code != PROG_OP + OP_LE || get(m, i.a).dtype != DT_I64) return l;
    l = mask_linear_of(m, i.a);
    MaskLinear r = mask_linear_of(m, i.b);
    linear_add(&l, &r, -1);
    return l;
}

bool mask_implies(const MaskProg *m, int a, int b) {
    if (a == b) return true;
    MaskLinear x = le_form(m, a), y = le_form(m, b);
    if (x.n < 0 || y.n < 0) return false;
    linear_add(&y, &x, -1);  // x <= 0 and y = x + d with d <= 0
    return y.n == 0 && y.constant <= 0;
}

static int diagonal(MaskProg *m, int x, int *memo, int depth) {
    if (memo[x] != -2) return memo[x];
    Instr i = get(m, x);
    int r = x;
    if (depth > 200) return -1;
    if (i.code == PROG_INDEX_K) r = mask_index(m, PROG_INDEX_Q);
    else if (i.code == PROG_VEC_K) {
        MaskSlot s = m->slot.data[i.a];
        s.role = 'q';
        r = mask_slot(m, &s);
    } else if (i.code >= PROG_OP) {
        int a = i.a < 0 ? -1 : diagonal(m, i.a, memo, depth + 1), b = i.b < 0 ? -1 : diagonal(m, i.b, memo, depth + 1);
        int c = i.c < 0 ? -1 : diagonal(m, i.c, memo, depth + 1);
        r = mask_op(m, (OpKind)(i.code - PROG_OP), i.dtype, a, b, c);
    }
    return memo[x] = r;
}

int mask_on_diagonal(MaskProg *m, int x) {
    if (x < 0) return -1;
    int64_t n = m->instr.len;  // everything that x depends on is before it
    int *memo = malloc(sizeof *memo * (size_t)n);
    for (int64_t i = 0; i < n; i++) memo[i] = -2;
    int r = diagonal(m, x, memo, 0);
    free(memo);
    return r;
}
