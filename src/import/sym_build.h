// Rational arithmetic on Syms, for the parser: a Num is num/den with a positive constant den.
#pragma once
#include "import/sym.h"

typedef struct Num {
    Sym *num;
    int64_t den;
} Num;

Sym *sym_int(Arena *a, int64_t v);
Sym *sym_nary(Arena *a, SymOp op, int n, Sym *const *arg);   // arg[0] itself when n == 1
// False: a denominator overflows, or the operation is not exact over constants (division by an expression).
bool num_combine(Arena *a, SymOp op, int n, const Num *x, Num *out);  // ADD, MUL, MIN, MAX over n >= 1 terms
bool num_divide(Arena *a, Num x, Num y, Num *out);
bool num_floordiv(Arena *a, Num x, Num y, Num *out);
bool num_ceil(Arena *a, Num x, Num *out);
bool num_mod(Arena *a, Num x, Num y, Num *out);
bool num_power(Arena *a, Num x, Num y, Num *out);
Pred *pred_compare(Arena *a, PredOp op, Num x, Num y);       // NULL on overflow
