// What an operation means, as one record. Everything that is particular to an op is here and in its family's file; passes,
// planner and runtime ask the record.
#pragma once
#include "ir/graph.h"

enum {
    OPF_SOURCE = 1,      // no inputs
    OPF_POINTWISE = 2,   // elementwise with broadcasting; may be an instruction of a Program
    OPF_VIEW = 4,        // the output has input 0's bytes in the same order: no data moves
    OPF_INPLACE = 8,    // output i overwrites a state buffer (see the op)
    OPF_PLACED = 16,    // no data moves: operands and output share bytes, at an offset (part, assemble)
    OPF_MOVE = 32,      // the output has the operands' elements (pad: and its value), and nothing is computed
};

typedef struct TypeOut {  // result type of one output
    DType dtype;
    Shape shape;
} TypeOut;

// Appends the gradient of node `n`. gout[j] is the cotangent of output j (NO_VALUE: zero). For each input i for which
// want[i] is true set gin[i] to its cotangent, of the *broadcast* shape if that is easier: the driver (pass/grad.c) reduces it
// to the input's shape (sums over broadcast dims), and sums the contributions of all uses.
struct Builder;
typedef struct GradCtx {
    struct Builder *b;
    const Node *n;
    const ValueId *gout;
    const bool *want;
    ValueId *gin;
} GradCtx;

// A row of the sharding rule: one legal combination of placements. in[] and out[] have n->nin and n->nout entries.
typedef struct Row {
    Placement *in, *out;
    const char *strategy;  // attention: "head", "gather-kv"; NULL otherwise
} Row;

typedef struct Cost {
    double flops;          // of one rank, given local shapes
    double nbytes;         // memory traffic
    int64_t launches;      // of further kernels that an attribute asks for
} Cost;

// One operand as a kernel (or the cost rule) sees it on one rank.
typedef struct Operand {
    DType dtype;
    int ndim;
    int sdim;                   // the sharded dim, -1 if none
    int nspan;                  // global intervals of dim sdim that this rank holds, in storage order
    const Span *span;
    int64_t dim[MAX_DIMS];      // local
    int64_t global[MAX_DIMS];   // global
    void *data;                 // NULL while planning
} Operand;

typedef struct Sample {         // a small legal instance, from which the per-op tests are generated
    const char *label;
    int nin;
    Shape shape[8];
    DType dtype[8];
    int64_t lo[8], hi[8];       // i64 inputs: values drawn from [lo, hi); floats from roughly [-1.5, 1.5] or [lo/8.0, hi/8.0] if set
    int nattr;
    Attr attr[10];
} Sample;

typedef struct OpInfo {
    // inferred types of the nout outputs; *nout is set by the rule. Errors say which operand and why.
    Status (*infer)(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d);
    // NULL: the op has no gradient (all its outputs are constants to differentiation) unless `grad_error` says otherwise
    Status (*grad)(GradCtx *c, Diag *d);
    const char *grad_error;     // non-NULL: asking for a gradient is refused with this text
    // If operand `slot` (input i >= 0; output j as ~j) has placement `p`, fill the whole row; false: no legal row has it there.
    // p.kind is SHARD or PARTIAL (the all-replicated row is always legal and is the caller's). Overlapping layouts and Shard with
    // reduce come only from rows of ops that produce them; reject them unless the op really takes them.
    bool (*shard)(Graph *g, const Node *n, int slot, Placement p, Row *row);
    // Further rows that do not follow from any operand's placement (attention strategies; default seeds). Returns how many it has;
    // fills row `i` if 0 <= i < count. NULL: none.
    int (*extra_rows)(Graph *g, const Node *n, int i, Row *row);
    void (*cost)(const Node *n, const Operand *in, const Operand *out, Cost *c);
    const Sample *samples;
    int nsample;
} OpInfo;

extern const OpInfo *const op_table[OP_COUNT];
static inline const OpInfo *op_info(OpKind k) { return op_table[k]; }
const char *op_name(OpKind k);
uint32_t op_flags(OpKind k);
bool op_from_name(const char *s, OpKind *out);
// The operand that an op may have beyond those that it needs, which is added to its result (of a dot with bias=1: broadcast); -1:
// none.
static inline int op_addend(OpKind k) { return k == OP_DOT ? 2 : k == OP_EXPERT_MATMUL_GRAD ? 3 : -1; }
static inline bool op_is_pointwise(OpKind k) { return (op_flags(k) & OPF_POINTWISE) != 0; }
static inline bool op_is_move(OpKind k) { return (op_flags(k) & OPF_MOVE) != 0; }
// A move that brings in nothing but zeros: right in any float type.
static inline bool op_only_moves(const Node *n) {
    return op_is_move(n->op) && (n->op != OP_PAD || node_float_or(n, ATTR_VALUE, 0) == 0);
}

#define OP(ENUM, ...) extern const OpInfo op_info_##ENUM;
#include "ops/ops.def"
#undef OP

// Helpers shared by the families (ops/op.c).
Status infer_error(Diag *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool broadcast_shapes(const Shape *a, const Shape *b, Shape *out);  // false: not broadcastable
void row_replicate(const Node *n, Row *row);                         // everything REPLICATE
bool placement_is_partition(const Graph *g, const Placement *p);     // SHARD, no overlap, no reduce
// The output has the operand's bytes in the same order: by its op, or because a permute moves dims of one element alone.
bool op_is_view(const Graph *g, const Node *n);
double operand_nbytes(const Operand *o);
double operand_numel(const Operand *o);
void cost_memory_bound(const Node *n, const Operand *in, const Operand *out, Cost *c);  // reads + writes, flops = outputs
