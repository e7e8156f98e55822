// Instructions of a Program as C expressions of device code: shared by the generators of fused nodes and of attention predicates.
// In registers f32 and bf16 are float (a bf16 holds a float that was rounded), i64 is i64, bool is bool. In memory bool is a
// byte.
#pragma once
#include "base/containers.h"
#include "base/diag.h"
#include "ir/program.h"

typedef struct ExprOptions {
    bool fast;         // results are rounded to bf16 anyway: quick exponentials and divisions may stand
    const char *zero;  // an int variable of the generated code that becomes 1 where an i64 divisor is 0; NULL: such results are 0
} ExprOptions;

// Helper functions (gx_*) that expressions call: put it after #include "gpu.h", once per source.
extern const char expr_prelude_text[];
const char *expr_register_type(DType t);  // "float", "i64", "bool"; NULL: no such values on a GPU
const char *expr_memory_type(DType t);    // "float", "bf16", "i64", "u8"; NULL
// A literal that is exactly `value` in type t.
void expr_constant(Str *out, DType t, double value);
// Appends the value of instruction i, a pointwise op, in terms of its operands' names; `operand[k]` is side-effect free and may
// stand several times. PROG_CONST works too; other leaves are the caller's. f64 and other types are refused.
Status expr_instr(Str *out, const Program *p, int i, const char *const operand[3], const ExprOptions *opt, Diag *d);
