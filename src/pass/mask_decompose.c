// What happens to q.k before the soft-max, as attention's attributes: scale, soft-cap, a visibility predicate and a bias.
#include <float.h>
#include <math.h>

#include "pass/mask.h"

#define REPLACED_LIMIT (-1e4)  // where(mask, score, c): exp(c - max) is zero for any score that a model can have

static bool is_op(const MaskProg *m, int x, OpKind op) { return x >= 0 && m->instr.data[x].code == PROG_OP + (int)op; }
static bool has_score(const MaskProg *m, int x) { return m->info.data[x].special; }
static bool both(MaskProg *m, int *visible, int other) {
    if (other < 0) return true;
    *visible = *visible < 0 ? other : mask_op(m, OP_AND, DT_BOOL, *visible, other, -1);
    return *visible >= 0;
}
static int add_bias(MaskProg *m, int a, int b) { return a < 0 ? b : b < 0 ? a : mask_op(m, OP_ADD, m->real, a, b, -1); }
static int scale_bias(MaskProg *m, int a, double c) {
    return a < 0 ? -1 : mask_op(m, OP_MUL, m->real, a, mask_const(m, m->real, c), -1);
}
static bool says_no(MaskInterp *in, const char *what) {
    if (!in->why[0]) snprintf(in->why, sizeof in->why, "%s", what);
    return false;
}

static bool is_false(const MaskProg *m, int x) {
    double v;
    return mask_number(m, x, &v) && v == 0;
}

// ---- expressions without the score: what is added -------------------------------------------------------------------
static bool decompose_added(MaskInterp *in, int x, double limit, ScoreForm *f);

static bool added_number(MaskInterp *in, double v, double limit, ScoreForm *f) {
    if (!(v <= limit) && v != -INFINITY) {
        f->bias = v == 0 ? -1 : mask_const(in->m, in->m->real, v);
        return !isnan(v) || says_no(in, "the mask holds NaN");
    }
    f->visible = mask_const(in->m, DT_BOOL, 0);
    if (v == -INFINITY) f->saw_inf = true;
    else f->saw_finite = f->added_finite = true, f->fill = v;
    return true;
}

// Marks of two alternatives (`summed` false) or of two terms of a sum.
static void merge_marks(ScoreForm *f, const ScoreForm *o, bool summed) {
    f->uneven |= o->uneven || (f->saw_finite && o->saw_finite && (summed || f->fill != o->fill));
    if (summed) {  // a bias would show in a row of scores that were replaced, unless the number swallows it
        bool replaced = f->saw_finite && !f->added_finite;
        f->uneven |= replaced && o->bias >= 0 && f->fill > MASK_LIMIT_ABSORB;
    }
    if (o->saw_finite) f->fill = o->fill;
    f->saw_inf |= o->saw_inf;
    f->saw_finite |= o->saw_finite;
    f->added_finite |= o->added_finite;
}

static bool added_choice(MaskInterp *in, Instr i, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    ScoreForm x = {.visible = -1, .bias = -1}, y = x;
    if (!decompose_added(in, i.b, limit, &x) || !decompose_added(in, i.c, limit, &y)) return false;
    merge_marks(f, &x, false);
    merge_marks(f, &y, false);
    int yes = mask_const(m, DT_BOOL, 1), zero = mask_const(m, m->real, 0);
    if (x.visible >= 0 || y.visible >= 0)
        f->visible = mask_op(m, OP_WHERE, DT_BOOL, i.a, x.visible < 0 ? yes : x.visible, y.visible < 0 ? yes : y.visible);
    if (is_false(m, x.visible)) f->bias = y.bias;  // what is never seen has no bias
    else if (is_false(m, y.visible)) f->bias = x.bias;
    else if (x.bias >= 0 || y.bias >= 0)
        f->bias = mask_op(m, OP_WHERE, m->real, i.a, x.bias < 0 ? zero : x.bias, y.bias < 0 ? zero : y.bias);
    return true;
}

static bool decompose_added(MaskInterp *in, int x, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    Instr i = m->instr.data[x];
    double v;
    *f = (ScoreForm){.visible = -1, .bias = -1, .scale = 1, .amp = 1};
    if (i.code == PROG_CONST) return added_number(in, i.imm, limit, f);
    if (is_op(m, x, OP_WHERE)) return added_choice(in, i, limit, f);
    if (is_op(m, x, OP_ADD)) {
        ScoreForm b;
        if (!decompose_added(in, i.a, limit, f) || !decompose_added(in, i.b, limit, &b)) return false;
        merge_marks(f, &b, true);
        f->bias = add_bias(m, f->bias, b.bias);
        return both(m, &f->visible, b.visible);
    }
    bool scaled = (is_op(m, x, OP_MUL) || is_op(m, x, OP_DIV)) && mask_number(m, i.b, &v) && v > 0 && isfinite(v);
    if (scaled && decompose_added(in, i.a, limit, f) && f->visible >= 0) {
        f->bias = scale_bias(m, f->bias, is_op(m, x, OP_MUL) ? v : 1 / v);
        return true;
    }
    *f = (ScoreForm){.visible = -1, .bias = x, .scale = 1, .amp = 1};
    return true;
}

// ---- expressions of the score ---------------------------------------------------------------------------------------
static bool decompose_score(MaskInterp *in, int x, double limit, ScoreForm *f);

static bool scale_form(MaskInterp *in, double c, ScoreForm *f) {
    bool masked = f->visible >= 0;
    if (!isfinite(c) || c == 0 || (masked && c < 0))
        return says_no(in, "masked scores are multiplied by a number that is not positive");
    if (f->tanh) f->amp *= c;
    else f->scale *= c;
    f->bias = scale_bias(in->m, f->bias, c);
    f->fill *= c;
    f->uneven |= f->saw_finite && f->fill < -FLT_MAX;  // has become -inf
    return true;
}

// Scores were replaced by `fill` where they are masked.
static void mark_replaced(ScoreForm *f, double fill) {
    if (fill == -INFINITY) {
        f->saw_inf = true;
        return;
    }
    f->uneven |= f->saw_finite && (f->added_finite || f->fill != fill);
    f->saw_finite = true;
    f->fill = fill;
}

// where(cond, score, very negative): not the same as adding, but equal wherever the row sees a key.
static bool score_choice(MaskInterp *in, Instr i, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    bool first = has_score(m, i.b);
    double fill;
    if (has_score(m, i.a) || (first && has_score(m, i.c)) || !mask_number(m, first ? i.c : i.b, &fill) ||
        !(fill <= REPLACED_LIMIT))
        return says_no(in, "scores are replaced by something that is not a very negative number");
    if (!decompose_score(in, first ? i.b : i.c, limit, f)) return false;
    mark_replaced(f, fill);
    return both(m, &f->visible, first ? i.a : mask_op(m, OP_NOT, DT_BOOL, i.a, -1, -1));
}

// score * m + where(m, 0, very negative), m being 0 or 1: GPT-2's first form.
static bool zeroed_and_masked(MaskInterp *in, int product, int added, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    Instr p = m->instr.data[product], w = m->instr.data[added];
    if (!is_op(m, product, OP_MUL) || !is_op(m, added, OP_WHERE)) return false;
    int choice = has_score(m, p.a) ? p.b : p.a, score = has_score(m, p.a) ? p.a : p.b;
    Instr c = m->instr.data[choice];
    double one, zero, none, fill;
    bool unit = is_op(m, choice, OP_WHERE) && c.a == w.a && mask_number(m, c.b, &one) && one == 1 && mask_number(m, c.c, &zero) &&
                zero == 0;
    if (!unit || !mask_number(m, w.b, &none) || none != 0 || !mask_number(m, w.c, &fill) || !(fill <= REPLACED_LIMIT))
        return false;
    if (!decompose_score(in, score, limit, f)) return false;
    mark_replaced(f, fill);
    return both(m, &f->visible, w.a);
}

static bool score_sum(MaskInterp *in, int x, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    Instr i = m->instr.data[x];
    bool minus = is_op(m, x, OP_SUB), first = has_score(m, i.a);
    if (first && has_score(m, i.b)) return says_no(in, "scores are added to scores");
    int score = first ? i.a : i.b, added = first ? i.b : i.a;
    ScoreForm o;
    if (minus && first) added = mask_op(m, OP_NEG, m->real, added, -1, -1);
    if (added >= 0 && !(minus && !first) && zeroed_and_masked(in, score, added, limit, f)) return true;
    if (added < 0 || !decompose_score(in, score, limit, f) || !decompose_added(in, added, limit, &o)) return false;
    if (minus && !first && !scale_form(in, -1, f)) return false;
    merge_marks(f, &o, true);
    f->bias = add_bias(m, f->bias, o.bias);
    return both(m, &f->visible, o.visible);
}

static bool decompose_score(MaskInterp *in, int x, double limit, ScoreForm *f) {
    MaskProg *m = in->m;
    Instr i = m->instr.data[x];
    double v;
    *f = (ScoreForm){.has_score = true, .visible = -1, .bias = -1, .scale = 1, .amp = 1};
    if (i.code == MP_SCORE) return true;
    if (i.code < PROG_OP) return says_no(in, "soft-max of something that is no product of q and k");
    switch ((OpKind)(i.code - PROG_OP)) {
        case OP_CAST: return decompose_score(in, i.a, limit, f);
        case OP_NEG: return decompose_score(in, i.a, limit, f) && scale_form(in, -1, f);
        case OP_ADD:
        case OP_SUB: return score_sum(in, x, limit, f);
        case OP_WHERE: return score_choice(in, i, limit, f);
        case OP_MUL:
            if (mask_number(m, i.b, &v)) return decompose_score(in, i.a, limit, f) && scale_form(in, v, f);
            if (mask_number(m, i.a, &v)) return decompose_score(in, i.b, limit, f) && scale_form(in, v, f);
            return says_no(in, "scores are multiplied by something that is not a number");
        case OP_DIV:
            if (mask_number(m, i.b, &v)) return decompose_score(in, i.a, limit, f) && scale_form(in, 1 / v, f);
            return says_no(in, "scores are divided by something that is not a number");
        case OP_TANH:
            if (!decompose_score(in, i.a, limit, f)) return false;
            if (f->tanh || f->visible >= 0 || f->bias >= 0) return says_no(in, "a soft-cap after the mask or a bias");
            return f->tanh = true;
        case OP_MAX: {
            bool first = has_score(m, i.a);
            if (!mask_number(m, first ? i.b : i.a, &v) || !(v <= MASK_LIMIT_COMMON)) return says_no(in, "scores are clamped");
            if (!decompose_score(in, first ? i.a : i.b, limit, f)) return false;
            f->uneven |= f->saw_finite && (f->added_finite || f->fill != v);
            if (f->saw_inf) mark_replaced(f, v);
            f->saw_inf = false;
            return true;
        }
        default: return says_no(in, "scores go through an operation that attention has no place for");
    }
}

bool mask_decompose(MaskInterp *in, int x, double limit, ScoreForm *out) {
    if (x < 0) return false;
    return has_score(in->m, x) ? decompose_score(in, x, limit, out) : decompose_added(in, x, limit, out);
}

// Does every row see at least its own position?
static bool sees_itself(MaskProg *m, int visible) {
    double v;
    if (visible < 0) return true;
    if (m->extent[2] != m->extent[3]) return mask_number(m, visible, &v) && v != 0;
    int d = mask_on_diagonal(m, visible);
    return mask_number(m, d, &v) && v != 0;
}

bool mask_decide(MaskInterp *in, int x, bool safe, AttentionSpec *spec, ScoreForm *form) {
    static const double limit[] = {MASK_LIMIT_COMMON, MASK_LIMIT_ABSORB, -INFINITY};
    for (int i = 0; i < 3; i++) {
        if (!mask_decompose(in, x, limit[i], form) || in->m->overflow) return false;
        bool sure = sees_itself(in->m, form->visible);
        bool mixed = (form->saw_inf && form->saw_finite) || form->uneven;
        bool weak = form->added_finite && limit[i] > MASK_LIMIT_ABSORB;
        // A replaced score keeps no trace of itself, so any very negative number will do; one that is added must absorb it.
        if (!sure && i < 2 && (mixed || weak)) continue;
        // Numbers added may be a bias now: then keys that have another such number in their score's place compete with them.
        bool compete = i > 0 && form->saw_finite && !form->added_finite;
        if (compete || (!sure && mixed)) return says_no(in, "rows may be masked by different numbers only");
        spec->visible = form->visible;
        spec->bias = form->bias;
        spec->masked_row = sure ? 0 : form->saw_finite ? (form->added_finite ? 2 : 3) : safe ? 0 : 1;
        return true;
    }
    return false;
}
