// Building exact expressions: sympy writes S/2 as Mul(Rational(1, 2), S), so fractions appear even where the result is whole.
#include "import/sym_build.h"

Sym *sym_int(Arena *a, int64_t v) {
    Sym *s = ARENA_NEW(a, Sym);
    s->op = SYM_INT;
    s->value = v;
    return s;
}

Sym *sym_nary(Arena *a, SymOp op, int n, Sym *const *arg) {
    if (n == 1 && op != SYM_NEG) return arg[0];
    Sym *s = ARENA_NEW(a, Sym);
    *s = (Sym){.op = op, .n = n, .arg = arena_copy(a, arg, sizeof *arg * (size_t)n)};
    return s;
}

static Sym *scale(Arena *a, Sym *s, int64_t k) {
    if (k == 1) return s;
    int64_t v;
    if (s->op == SYM_INT && !__builtin_mul_overflow(s->value, k, &v)) return sym_int(a, v);
    return sym_nary(a, SYM_MUL, 2, (Sym *[]){sym_int(a, k), s});
}

static int64_t gcd(int64_t x, int64_t y) {
    while (y) {
        int64_t t = x % y;
        x = y;
        y = t;
    }
    return x;
}

static bool common_denominator(int n, const Num *x, int64_t *out) {
    int64_t den = 1;
    for (int i = 0; i < n; i++)
        if (__builtin_mul_overflow(den / gcd(den, x[i].den), x[i].den, &den)) return false;
    *out = den;
    return true;
}

bool num_combine(Arena *a, SymOp op, int n, const Num *x, Num *out) {
    int64_t den = 1;
    if (op == SYM_MUL) {
        for (int i = 0; i < n; i++)
            if (__builtin_mul_overflow(den, x[i].den, &den)) return false;
    } else if (!common_denominator(n, x, &den)) {
        return false;
    }
    Sym **arg = ARENA_ARRAY(a, Sym *, n);
    for (int i = 0; i < n; i++) arg[i] = op == SYM_MUL ? x[i].num : scale(a, x[i].num, den / x[i].den);
    *out = (Num){sym_nary(a, op, n, arg), den};
    return true;
}

bool num_divide(Arena *a, Num x, Num y, Num *out) {
    if (y.num->op != SYM_INT || y.num->value == 0 || y.num->value == INT64_MIN) return false;
    int64_t k = y.num->value < 0 ? -y.num->value : y.num->value;
    out->num = scale(a, x.num, y.num->value < 0 ? -y.den : y.den);
    return !__builtin_mul_overflow(x.den, k, &out->den);
}

bool num_floordiv(Arena *a, Num x, Num y, Num *out) {
    Sym *over = scale(a, x.num, y.den), *under = scale(a, y.num, x.den);
    *out = (Num){under->op == SYM_INT && under->value == 1 ? over : sym_nary(a, SYM_FLOORDIV, 2, (Sym *[]){over, under}), 1};
    return true;
}

bool num_ceil(Arena *a, Num x, Num *out) {
    *out = x;
    if (x.den == 1) return true;
    Sym *minus = sym_nary(a, SYM_NEG, 1, &x.num);
    Sym *down = sym_nary(a, SYM_FLOORDIV, 2, (Sym *[]){minus, sym_int(a, x.den)});
    *out = (Num){sym_nary(a, SYM_NEG, 1, &down), 1};
    return true;
}

bool num_mod(Arena *a, Num x, Num y, Num *out) {
    *out = (Num){sym_nary(a, SYM_MOD, 2, (Sym *[]){x.num, y.num}), 1};
    return x.den == 1 && y.den == 1;
}

bool num_power(Arena *a, Num x, Num y, Num *out) {
    if (y.den != 1) return false;
    if (y.num->op == SYM_INT && y.num->value == -1) return num_divide(a, (Num){sym_int(a, 1), 1}, x, out);
    *out = (Num){sym_nary(a, SYM_POW, 2, (Sym *[]){x.num, y.num}), 1};
    return x.den == 1;
}

Pred *pred_compare(Arena *a, PredOp op, Num x, Num y) {
    int64_t den;
    if (!common_denominator(2, (Num[]){x, y}, &den)) return NULL;
    Pred *p = ARENA_NEW(a, Pred);
    *p = (Pred){.op = op, .x = scale(a, x.num, den / x.den), .y = scale(a, y.num, den / y.den)};
    return p;
}
