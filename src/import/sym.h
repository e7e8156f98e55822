// Expressions over the archive's symbols: sizes (sympy's srepr or str form) and guards (Python). One grammar serves both.
// Numbers are exact: rationals are carried as a Sym over a positive constant while parsing, and must come out whole.
#pragma once
#include "import/aten.h"

// A condition: what a guard parses to.
typedef enum PredOp { PRED_CONST, PRED_EQ, PRED_NE, PRED_LT, PRED_LE, PRED_AND, PRED_OR, PRED_NOT } PredOp;
typedef struct Pred {
    PredOp op;
    bool value;             // PRED_CONST
    Sym *x, *y;             // comparisons
    struct Pred *a, *b;     // AND, OR; NOT has only a
} Pred;

// The archive's symbols while they are being collected.
typedef struct SymTable {
    Arena *a;
    Map *index;             // name -> index
    VEC(SymbolInfo) symbol;
} SymTable;
// The index of `name`, added with range [0, inf) and no hint if new.
int64_t symtable_intern(SymTable *t, const char *name);

// What names in an expression may refer to. Exactly one of table (sizes; new symbols are added) and archive (guards: symbols must
// exist, L['input'].size()[i] reads a user input's size) is set.
typedef struct SymScope {
    Arena *a;
    SymTable *table;
    const Archive *archive;
} SymScope;
Status sym_parse(const SymScope *s, const char *text, Sym **out, Diag *d);
Status pred_parse(const SymScope *s, const char *text, Pred **out, Diag *d);

// values[k] == SYM_UNBOUND: symbol k has no value (yet).
#define SYM_UNBOUND INT64_MIN
typedef enum EvalResult { EVAL_OK, EVAL_UNBOUND, EVAL_OVERFLOW, EVAL_DOMAIN } EvalResult;  // DOMAIN: x/0, x**-1
EvalResult sym_value(const Sym *s, const int64_t *values, int64_t *out);
EvalResult pred_value(const Pred *p, const int64_t *values, bool *out);
// Gives the one unbound symbol of x and y the value that makes x == y, if x - y is linear in it (as seen at 0, 1 and 2: check
// afterwards). False: nothing could be concluded.
bool sym_solve(int64_t *values, const Sym *x, const Sym *y);
// For messages: "S*B" with the archive's symbol names.
void sym_print(const Archive *ar, const Sym *s, Str *out);
