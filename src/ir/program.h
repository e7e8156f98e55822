// A Program is a short straight-line scalar expression: what a fused pointwise group computes at each element, and what an
// attention mask computes at each (b, h, q, k). Instructions are in order; operands are indices of earlier instructions.
#pragma once
#include "ir/type.h"

// PROG_* leaves; every other instruction is a pointwise OpKind (ops/ops.def) shifted by PROG_OP.
typedef enum ProgLeaf {
    PROG_CONST,    // imm
    PROG_INPUT,    // fused: input slot `a`, broadcast against the output
    PROG_INDEX_B,  // attention: global indices, i64
    PROG_INDEX_H,
    PROG_INDEX_Q,
    PROG_INDEX_K,
    PROG_VEC_Q,    // attention: vector slot `a`, shape [B|1, H|1, Sq|1], read at (b, h, q)
    PROG_VEC_K,    // attention: vector slot `a`, shape [B|1, H|1, Sk|1], read at (b, h, k)
    PROG_INDEX,    // fused: global position along dim `a` of the iteration space, i64
    PROG_ROW_SUM,  // fused with a row: instruction `a` reduced over the row, f32; no leaves, but no pointwise ops either
    PROG_ROW_MAX,
    PROG_COL_SUM,  // fused with a row: instruction `a` summed over all dims before the row, f32; only an output
    PROG_OP = 64,  // op + PROG_OP: pointwise op of that kind
} ProgLeaf;

typedef struct Instr {
    int32_t code;    // ProgLeaf, or PROG_OP + OpKind
    DType dtype;     // of the result
    int32_t a, b, c; // instruction indices (or input slot, or dim, in `a` for leaves); -1 unused
    double imm;      // PROG_CONST; integers up to 2^53 are exact
} Instr;

typedef struct Program {
    int ninstr;
    const Instr *instr;
    int nout;              // fused: number of outputs; attention: 2
    const int32_t *out;    // instruction of each output. attention: out[0] = visible (bool) or -1, out[1] = bias (float) or -1
} Program;
bool program_equal(const Program *a, const Program *b);

static inline bool program_is_reduction(int32_t code) { return code >= PROG_ROW_SUM && code <= PROG_COL_SUM; }
// Operands that a pointwise OpKind takes as an instruction: 1, 2 or 3; 0 if it is no pointwise op.
int program_op_arity(int op);
// Well-formed: operands earlier than their use, slots in [0, nslot), outputs in range (-1 only where `attention`), and only
// leaves that belong there (attention: indices and vectors; fused: inputs, positions and reductions, none of which reads a
// col_sum). Hostile text reaches this through the parser.
Status program_check(const Program *p, bool attention, int nslot, Diag *d);
// How an attention program uses vector slot `slot`: 'q', 'k', or 0 if it does not. (The mask pass never mixes the two.)
char program_vec_role(const Program *p, int slot);

// Where an attention program is evaluated. vec[i] is the value of vector slot i at this point; NULL: unknown.
typedef struct ProgPoint {
    int64_t b, h, q, k;
    const double *vec;
} ProgPoint;
// Evaluates every instruction, one element, no vectors: value[i] and known[i] (false: depends on an unknown vector) for i in
// [0, ninstr). and/or/where with one known deciding operand are known. Integers are exact up to 2^53.
void program_eval_scalar(const Program *p, const ProgPoint *at, double *value, bool *known);
