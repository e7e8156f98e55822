// Inside fuse for backends that take views, rows and column sums (fuse_rows.c): which nodes become one kernel, and its program.
#pragma once
#include "ir/uses.h"
#include "ir/views.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

enum {
    FUSE_MEMBERS = 96,
    FUSE_INPUTS = 16,
    FUSE_OUTPUTS = 12,
    FUSE_INSTRS = 96,
    FUSE_JOIN = 8,          // groups that one node may join
    FUSE_LONG_ROW = 16384,  // elements: a row as long as this, with few of them, is only reduced (it is spread over many blocks)
    FUSE_FEW_ROWS = 64,
};

// What a node may become.
typedef enum FuseKind {
    FUSE_OPAQUE,     // stays the op it is
    FUSE_POINTWISE,
    FUSE_REDUCE,     // over trailing dims (row_sum, row_max, log-sum-exp) or over leading ones (col_sum)
    FUSE_MOVE,       // a view of its operands
} FuseKind;

typedef struct Space {  // where a kernel's program runs
    Shape shape;
    Placement place;
    int row;            // trailing dims that are the row; 0: none
} Space;

typedef struct Group {
    int n;
    NodeId member[FUSE_MEMBERS];  // in graph order
    Space space;
    int ninstr;                   // of its program; 0 while it has none (a reduction that waits for company)
    bool viewed;                  // its program reads through views that are no broadcasts
    int nin;                      // its inputs; the first nwide are as large as the space
    int nwide;
    ValueId in[FUSE_INPUTS];
} Group;

typedef struct FuseOutput {
    ValueId v;
    int instr;
    View view;     // of v along the dims of the space: in another order than v's where `permuted`
    bool permuted;
} FuseOutput;

typedef struct EmitMemo {
    ValueId v;
    View view;
    int instr;
} EmitMemo;

// A kernel in the making.
typedef struct Emit {
    const struct Fuse *f;
    Space space;
    Instr instr[FUSE_INSTRS];
    bool moved[FUSE_INSTRS];  // the select that a movement of bf16 made, before its cast back
    int ninstr, nin, nmemo, nout;
    ValueId in[FUSE_INPUTS];
    View view[FUSE_INPUTS];
    EmitMemo memo[4 * FUSE_INSTRS];
    FuseOutput out[FUSE_OUTPUTS];
    bool failed;              // no such kernel, or too large a one
} Emit;

typedef struct Fuse {
    const Graph *g;
    Arena *a;
    Uses uses;
    uint8_t *kind;         // [nodes] FuseKind
    bool *through;         // [nodes] a movement that every reader can read through: it needs no node
    int32_t *group;        // [nodes] index into groups, -1: in none
    VEC(Group *) groups;   // NULL once merged into another
    int32_t *inside;       // [nodes] equal to `stamp`: in the set that is looked at
    int32_t *visited;      // [nodes] likewise, by walks
    int32_t stamp, walk;
    VEC(NodeId) stack;
    Emit *emit;            // the last trial
} Fuse;

// ---- fuse_kind.c: what nodes may become -----------------------------------------------------------------------------------
void fuse_classify(Fuse *f);
bool shape_equal_but_ones(const Shape *a, const Shape *b);  // the same sizes in the same order, sizes of 1 apart

// ---- fuse_emit.c: programs ------------------------------------------------------------------------------------------------
// The program of the nodes marked inside, `member[n]`, in this space, into f->emit. False: there is none within the limits.
bool fuse_emit(Fuse *f, const NodeId *member, int n, const Space *space);
int fuse_emit_value(Emit *e, ValueId v, const View *view);  // the instruction that has v's value under the view
int fuse_emit_instr(Emit *e, Instr x);
int fuse_emit_const(Emit *e, DType t, double value);
// Whether v's value, or what it is a view of, is made inside.
bool fuse_made_inside(const Fuse *f, ValueId v);
bool fuse_needed_outside(const Fuse *f, ValueId v);

// ---- fuse_move.c: views through movement ops ------------------------------------------------------------------------------
int fuse_emit_move(Emit *e, const Node *n, const View *view);
// Normal form: what has one element has no dim, windows are clipped and one per dim. False: no position is let through.
bool fuse_view_normal(View *v, const Shape *of, const Space *space);

// ---- fuse_order.c: what may be one kernel, and the order of kernels -------------------------------------------------------
void fuse_mark(Fuse *f, const NodeId *member, int n);
// Whether a node outside of the marked set depends on it and is depended on by it; nodes after `last` are not looked at.
bool fuse_path_outside(Fuse *f, const NodeId *member, int n, NodeId last);
Status fuse_rewrite(Fuse *f, Graph **out, Diag *d);
