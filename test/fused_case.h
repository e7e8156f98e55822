// Random fused nodes of both forms: built, run on a device through the backend's vtable (emulated or a GPU), and compared with an
// evaluation in double that carries a bound of what f32 and bf16 arithmetic may differ by.
#pragma once
#include "backend/backend.h"
#include "exec/exec.h"

enum { CASE_MAX_IN = 6, CASE_MAX_OUT = 6 };

typedef struct FusedCase {
    Arena *arena;
    Graph *g;
    NodeId node;
    int nin, nout;
    DType in_dtype[CASE_MAX_IN], out_dtype[CASE_MAX_OUT];
    double *in[CASE_MAX_IN];                           // values that the types hold exactly
    double *want[CASE_MAX_OUT], *error[CASE_MAX_OUT];  // and how far off a result may be
    int over[CASE_MAX_OUT];                            // the input whose memory the output takes over, -1
    char name[96];
} FusedCase;

// Case `number` of a sequence; elements: about how many positions there may be.
void fused_case_random(FusedCase *c, uint64_t number, int64_t elements);
// On a given iteration space: long rows, few rows, rows that no vector fits.
void fused_case_random_on(FusedCase *c, uint64_t number, Shape space, int row);
// One from parts: inputs are drawn from the types. views may be NULL. row 0: none.
void fused_case_make(FusedCase *c, const char *name, const Program *p, Shape space, int row, int nin, const Shape *in,
                     const DType *type, int nview, const int64_t *views, uint64_t seed);
// The same without values: for those who have their own.
void fused_case_shape(FusedCase *c, const char *name, const Program *p, Shape space, int row, int nin, const Shape *in,
                      const DType *type, int nview, const int64_t *views);
void fused_case_free(FusedCase *c);
void fused_case_expect(FusedCase *c);
// Operands as the kernel sees them, without data.
void fused_case_operands(const FusedCase *c, Operand *in, Operand *out);
// Runs the case on a device of its own and compares; false: *why says what differs. *compared counts checked elements.
bool fused_case_check(FusedCase *c, const Backend *backend, Str *why, int64_t *compared);

// What a program is written with.
typedef struct ProgramBuilder {
    Arena *arena;
    VEC(Instr) instr;
    VEC(int32_t) out;
} ProgramBuilder;
int prog_leaf(ProgramBuilder *b, int code, DType t, int a, double imm);
int prog_op(ProgramBuilder *b, OpKind op, DType t, int x, int y, int z);
const Program *prog_finish(ProgramBuilder *b);
