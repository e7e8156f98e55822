// Evaluation of symbolic sizes and guards, exact in int64 or not at all.
#include "import/sym.h"

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static EvalResult divide(SymOp op, int64_t x, int64_t y, int64_t *out) {
    if (y == 0) return EVAL_DOMAIN;
    if (y == -1) {  // INT64_MIN / -1 traps
        *out = 0;
        return op == SYM_MOD || !__builtin_sub_overflow((int64_t)0, x, out) ? EVAL_OK : EVAL_OVERFLOW;
    }
    *out = op == SYM_MOD ? x - floor_div(x, y) * y : floor_div(x, y);
    return EVAL_OK;
}

static EvalResult power(int64_t x, int64_t y, int64_t *out) {
    if (y < 0) return EVAL_DOMAIN;
    if (x == 0 || x == 1) {
        *out = y == 0 ? 1 : x;
        return EVAL_OK;
    }
    if (y > 64) return EVAL_OVERFLOW;
    int64_t p = 1;
    for (int64_t i = 0; i < y; i++)
        if (__builtin_mul_overflow(p, x, &p)) return EVAL_OVERFLOW;
    *out = p;
    return EVAL_OK;
}

static EvalResult combine(SymOp op, int64_t x, int64_t y, int64_t *out) {
    switch (op) {
    case SYM_ADD: return __builtin_add_overflow(x, y, out) ? EVAL_OVERFLOW : EVAL_OK;
    case SYM_MUL: return __builtin_mul_overflow(x, y, out) ? EVAL_OVERFLOW : EVAL_OK;
    case SYM_MIN: *out = min_i64(x, y); return EVAL_OK;
    case SYM_MAX: *out = max_i64(x, y); return EVAL_OK;
    case SYM_POW: return power(x, y, out);
    case SYM_FLOORDIV:
    case SYM_MOD: return divide(op, x, y, out);
    default: return EVAL_DOMAIN;
    }
}

EvalResult sym_value(const Sym *s, const int64_t *values, int64_t *out) {
    if (s->op == SYM_INT) {
        *out = s->value;
        return EVAL_OK;
    }
    if (s->op == SYM_SYMBOL) {
        *out = values[s->value];
        return *out == SYM_UNBOUND ? EVAL_UNBOUND : EVAL_OK;
    }
    int64_t acc = 0;
    EvalResult e = sym_value(s->arg[0], values, &acc);
    if (e == EVAL_OK && s->op == SYM_NEG) e = __builtin_sub_overflow((int64_t)0, acc, &acc) ? EVAL_OVERFLOW : EVAL_OK;
    for (int i = 1; i < s->n && e == EVAL_OK; i++) {
        int64_t y = 0;
        e = sym_value(s->arg[i], values, &y);
        if (e == EVAL_OK) e = combine(s->op, acc, y, &acc);
    }
    *out = acc;
    return e;
}

EvalResult pred_value(const Pred *p, const int64_t *values, bool *out) {
    if (p->op == PRED_CONST) {
        *out = p->value;
        return EVAL_OK;
    }
    if (p->op == PRED_NOT || p->op == PRED_AND || p->op == PRED_OR) {
        bool x = false;
        EvalResult e = pred_value(p->a, values, &x);
        if (e != EVAL_OK) return e;
        if (p->op == PRED_NOT || x == (p->op == PRED_OR)) {
            *out = p->op == PRED_NOT ? !x : x;
            return EVAL_OK;
        }
        return pred_value(p->b, values, out);
    }
    int64_t x = 0, y = 0;
    EvalResult e = sym_value(p->x, values, &x);
    if (e == EVAL_OK) e = sym_value(p->y, values, &y);
    if (e != EVAL_OK) return e;
    *out = p->op == PRED_EQ ? x == y : p->op == PRED_NE ? x != y : p->op == PRED_LT ? x < y : x <= y;
    return EVAL_OK;
}

// The only unbound symbol of s: its index, -1 if there is none, -2 if there are several.
static int64_t only_unbound(const Sym *s, const int64_t *values, int64_t found) {
    if (s->op == SYM_SYMBOL && values[s->value] == SYM_UNBOUND) return found == -1 || found == s->value ? s->value : -2;
    for (int i = 0; i < s->n && found != -2; i++) found = only_unbound(s->arg[i], values, found);
    return found;
}

bool sym_solve(int64_t *values, const Sym *x, const Sym *y) {
    int64_t k = only_unbound(y, values, only_unbound(x, values, -1)), f[3];
    if (k < 0) return false;
    bool ok = true;
    for (int i = 0; i < 3 && ok; i++) {
        int64_t u = 0, v = 0;
        values[k] = i;
        ok = sym_value(x, values, &u) == EVAL_OK && sym_value(y, values, &v) == EVAL_OK && !__builtin_sub_overflow(u, v, &f[i]);
    }
    values[k] = SYM_UNBOUND;
    int64_t slope, again;
    ok = ok && !__builtin_sub_overflow(f[1], f[0], &slope) && !__builtin_sub_overflow(f[2], f[1], &again);
    if (!ok || slope != again || slope == 0 || f[0] == INT64_MIN || f[0] % slope != 0) return false;
    values[k] = -(f[0] / slope);
    return true;
}

void sym_print(const Archive *ar, const Sym *s, Str *out) {
    static const char *const infix[] = {[SYM_ADD] = " + ", [SYM_MUL] = "*", [SYM_POW] = "**", [SYM_FLOORDIV] = "//",
                                        [SYM_MOD] = " % ", [SYM_MIN] = ", ", [SYM_MAX] = ", "};
    switch (s->op) {
    case SYM_INT: str_printf(out, "%lld", (long long)s->value); return;
    case SYM_SYMBOL: str_add(out, ar->symbol[s->value].name); return;
    case SYM_NEG: str_add(out, "-"); break;
    case SYM_MIN: str_add(out, "min"); break;
    case SYM_MAX: str_add(out, "max"); break;
    default: break;
    }
    str_add(out, "(");
    for (int i = 0; i < s->n; i++) {
        if (i > 0) str_add(out, infix[s->op]);
        sym_print(ar, s->arg[i], out);
    }
    str_add(out, ")");
}

Status sym_eval(const Archive *ar, const Sym *s, const int64_t *values, int64_t *out, Diag *d) {
    EvalResult e = sym_value(s, values, out);
    if (e == EVAL_OK) return ST_OK;
    Str text = {0};
    sym_print(ar, s, &text);
    Status st = e == EVAL_UNBOUND
        ? diag_error(d, ST_UNSUPPORTED, "size %.400s depends on the data, not on batch and sequence length", str_text(&text))
        : diag_error(d, ST_INPUT, "size %.400s %s at this batch and sequence length", str_text(&text),
                     e == EVAL_OVERFLOW ? "overflows 64 bits" : "divides by zero or has a negative power");
    str_free(&text);
    return st;
}
