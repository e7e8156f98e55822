// Kernels of fused nodes as source text, and what to launch. codegen_flat.c writes those without rows, codegen_rows.c those with;
// both are put together from the pieces of codegen_vector.c.
#pragma once
#include "backend/cuda/fused_space.h"
#include "base/containers.h"

// A member of the kernel's parameter struct; what its value is.
typedef enum SlotKind { SLOT_VALUE, SLOT_DIV, SLOT_IN, SLOT_OUT, SLOT_SCRATCH, SLOT_ERROR, SLOT_NODE } SlotKind;
typedef struct Slot {
    SlotKind kind;
    int64_t value;  // the number, the divisor, the operand, or bytes from the start of scratch
} Slot;

enum { FUSED_MAX_LAUNCHES = 16, FUSED_MAX_PARAMS = 4096 };
typedef struct FusedLaunch {
    char name[24];
    int64_t blocks;
    int threads;
} FusedLaunch;

// Columns summed: partial sums [nparts, ncols] f32 at `offset` of scratch go into output `out`.
typedef struct FusedColumns {
    int out;
    int64_t offset, nparts, ncols;
} FusedColumns;

typedef struct FusedPlan {
    char *source;
    int nslot, nlaunch, ncolumns;
    Slot *slot;
    FusedLaunch launch[FUSED_MAX_LAUNCHES];
    FusedColumns *columns;
    int64_t second_offset;  // of room for the second stage of column sums
    size_t scratch_nbytes;
} FusedPlan;

// Source and launches of a space that is not empty, in arena a.
Status fused_plan(Arena *a, const FusedSpace *s, FusedPlan *plan, Diag *d);

// ---- inside the generator -----------------------------------------------------------------------------------------------
typedef enum InputClass { INPUT_SPLAT, INPUT_VECTOR, INPUT_ELEMENTS } InputClass;  // one value; loaded as a vector; one by one

typedef struct Gen {
    Arena *arena;
    const FusedSpace *s;
    FusedPlan *plan;
    Diag *d;
    Status status;       // the first error
    int v;               // elements that a thread handles together, along the last dim
    bool wide;           // positions need 64 bits
    bool *cached;        // [nin]: input i is x<i>[k] rather than x<i>
    int many_dim, many;  // a thread takes `many` positions along many_dim at once, from position `many0` on; -1: no such dim
    Str fields, body;
    VEC(Slot) slots;
} Gen;

Status codegen_flat(Gen *g);
Status codegen_rows(Gen *g);

void gen_line(Gen *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void gen_slot(Gen *g, SlotKind kind, int64_t value, const char *type, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void gen_launch(Gen *g, const char *name, int64_t blocks, int threads);
// Pointers, bases, strides and windows of all operands, extents of all dims.
void gen_operands(Gen *g);
int gen_vector_size(const FusedSpace *s);
InputClass gen_class(const Gen *g, int i);
int gen_words(const Gen *g, int i);   // registers that a vector of input i takes
// q<first> .. q<last> from the flat index `from` over these dims; the last is in steps of `unit`.
void gen_positions(Gen *g, const char *from, int first, int last, int unit);
// f<i> and w<i>: offset of input i, and whether its windows let it be read, as far as dims [0, ndims) decide.
void gen_outer_offset(Gen *g, int i, int ndims);
// Declares x<i>, or loads into it: at the positions of dims [ndims, ndim).
void gen_declare_input(Gen *g, int i, const char *array);
void gen_load_input(Gen *g, int i, int ndims);
// "v<i> = ...": instruction i as a scalar, or of element e; inputs by x<i>.
void gen_instr(Gen *g, int i);
void gen_row_input(Gen *g, int i);    // an input instruction that is the same along the row
// Marks in need[] what instruction i needs; does not go beyond row-constant instructions (which it marks) where stop is set.
void gen_need(const FusedSpace *s, int i, bool stop, bool *need);
// Around a kernel's body; one that divides integers reports a zero divisor.
void gen_open_kernel(Gen *g, const char *name, const char *bounds);
void gen_close_kernel(Gen *g);
