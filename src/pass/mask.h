// Inside the mask pass: scalar expressions over (b, h, q, k) being built, and values of the graph read as such expressions.
#pragma once
#include "ir/graph.h"
#include "pass/rewrite.h"

// ---- expressions (mask_program.c, mask_linear.c) --------------------------------------------------------------------
// Instructions are hash-consed and simplified as they are made, so that equal meanings mostly get equal numbers: integer sums are
// kept as linear forms, comparisons as `left <= right`, and whatever bounds decide is decided.
enum {                // leaves that only live inside the pass; codes of ProgLeaf come first
    MP_INDEX_D = 32,  // channel within a head (q.k contracts it)
    MP_INDEX_E,       // channel of v
    MP_SCORE,         // the q.k product that hand-written attention started from
    MP_SOFTMAX,       // soft-max over k of expression a
    MP_RANDOM,        // uniform noise keyed by (b, h, q, k); imm is the seed
};
enum { MP_MAX_INSTR = 2048, MP_MAX_TERMS = 8 };

typedef struct MaskSlot {  // a vector that an expression reads
    char role;             // 'q' or 'k'
    DType dtype;
    ValueId value;  // in the old graph; NO_VALUE: `data`
    Shape shape;    // of value
    struct {
        char index;  // 'b', 'h', 'l' (q or k), or 0: the constant `start`
        int64_t start, length;
    } dim[MAX_DIMS];
    const double *data;  // [nh * nl]
    int64_t nh, nl;
} MaskSlot;

typedef struct MaskInfo {            // what is known of an instruction
    double lo, hi;                   // bounds of an integer or bool
    bool reads_q, reads_k, special;  // special: contains the score, or a leaf that lives only inside the pass
} MaskInfo;

typedef struct MaskProg {
    VEC(Instr) instr;
    VEC(MaskInfo) info;
    VEC(MaskSlot) slot;
    int64_t extent[6];  // B, H, Sq, Sk, D, E in the order of their leaves
    DType real;
    bool overflow;  // too large an expression: every later result is -1
} MaskProg;

typedef struct MaskTerm {
    int32_t atom;
    int64_t coef;
} MaskTerm;
typedef struct MaskLinear {  // sum of coef * atom + constant; n == -1: not linear
    int n;
    MaskTerm term[MP_MAX_TERMS];
    int64_t constant;
} MaskLinear;

void mask_prog_free(MaskProg *m);
int mask_const(MaskProg *m, DType t, double v);
int mask_index(MaskProg *m, int leaf);
int mask_leaf(MaskProg *m, int code, DType t, int a, double imm);
// a, b, c: instructions (-1 unused); any -1 operand that the op needs gives -1. `to` is the result's dtype.
int mask_op(MaskProg *m, OpKind op, DType to, int a, int b, int c);
bool mask_number(const MaskProg *m, int x, double *v);
// Exactly the instruction, no simplification.
int mask_raw(MaskProg *m, Instr x);
int mask_slot(MaskProg *m, const MaskSlot *s);
bool mask_slot_equal(const MaskSlot *a, const MaskSlot *b);
// Integer arithmetic in normal form (mask_linear.c).
MaskLinear mask_linear_of(const MaskProg *m, int x);
void mask_linear_bounds(const MaskProg *m, const MaskLinear *l, double *lo, double *hi);
int mask_linear_build(MaskProg *m, const MaskLinear *l);
int mask_int_op(MaskProg *m, OpKind op, int a, int b);  // add, sub, neg, mul, floordiv, mod and comparisons of i64
bool mask_implies(const MaskProg *m, int a, int b);     // a true => b true, seen syntactically
// Evaluates x with every k replaced by q: does a row always see its own position?
int mask_on_diagonal(MaskProg *m, int x);

// ---- reading values as expressions (mask_interp.c, mask_const.c) ----------------------------------------------------
typedef struct MaskMemo {
    ValueId v;
    int ndim;
    int idx[MAX_DIMS];
    int result;
} MaskMemo;
typedef struct MaskInterp {
    MaskProg *m;
    const Graph *g;
    const bool *needs;  // [values] gradient flows through
    bool hand_written;  // soft-max and q.k products are understood
    NodeId score;       // the q.k product found, NO_NODE yet
    int score_idx[MAX_DIMS];
    VEC(MaskMemo) memo;
    char why[160];  // the first reason for a failure
} MaskInterp;
// Value v at the element given by idx[] (one i64 instruction per dim): an instruction, -1 if it is no program.
int mask_interp(MaskInterp *in, ValueId v, const int *idx);
int mask_interp_constant(MaskInterp *in, ValueId v, const int *idx);
// Moves idx through one view (reshape, broadcast, permute, slice): the value below it. False: v is no view.
bool mask_through_view(MaskInterp *in, ValueId v, const int *idx, ValueId *below, int *idx_below);

// Linear index -> one index per dim of s[first..end); dims [first, end) -> linear index.
void mask_split_index(MaskInterp *in, const Shape *s, int first, int end, int linear, int *idx);
int mask_merge_index(MaskInterp *in, const Shape *s, int first, int end, const int *idx);

// ---- from expressions to attention (mask_decompose.c, mask_arrange.c) -----------------------------------------------
typedef struct ScoreForm {  // what is added to, masked out of and done to q.k before the soft-max
    bool has_score, tanh;   // value = amp * (tanh ? tanh(scale * score) : scale * score) + bias where visible
    double scale, amp;
    int visible, bias;         // instructions, -1: everything, nothing
    bool saw_inf, saw_finite;  // masked with -inf, with a very negative number
    double fill;               // ... that number
    bool uneven;               // several such numbers, or added to one another: what a row of them only attends to is open
    bool added_finite;         // ... which was added, not put in the score's place
} ScoreForm;
// Float expression x as such a form. Added numbers up to `limit` (negative) count as masked out, others as bias. False: it is
// something else (why says what).
bool mask_decompose(MaskInterp *in, int x, double limit, ScoreForm *out);
#define MASK_LIMIT_COMMON (-1e4)   // exact where the row sees some key: exp(score - 1e4 - max) is zero
#define MASK_LIMIT_ABSORB (-1e30)  // absorbs any score even in float64: a row that sees no key is uniform
// An element of v's row-major value is addressed by idx[]; makes [B|1, H/group|1, L, C] of it in the new graph, where `seq` and
// `chan` are the leaves of its last two dims. False: idx is no such arrangement. group is set to H / (heads found).
// r == NULL: only say whether it is possible.
bool mask_arrange(Rewrite *r, MaskInterp *in, ValueId v, const int *idx, int seq, int chan, ValueId *out, int64_t *group);

// ---- the pass's parts -----------------------------------------------------------------------------------------------
typedef struct MaskPass {
    Rewrite r;
    const bool *needs;
    Arena *scratch;
    int64_t max_documents;  // PassContext
} MaskPass;
// Everything that an attention node has besides q, k, v.
typedef struct AttentionSpec {
    double scale, softcap, dropout, out_factor;
    int64_t seed;
    int masked_row;
    int visible, bias;
} AttentionSpec;
// Bit i: vec[i], [.., L], never falls along its last dim, whatever the inputs are. Proven from what makes it; 0 proves nothing.
int64_t mask_monotone(const Graph *g, int n, const ValueId *vec);
ValueId mask_emit_attention(MaskPass *p, MaskProg *m, ValueId q, ValueId k, ValueId v, const AttentionSpec *spec);
// Fills visible, bias and masked_row from the expression added to the scores; `safe`: rows that see nothing are zero, not NaN.
bool mask_decide(MaskInterp *in, int x, bool safe, AttentionSpec *spec, ScoreForm *form);
// Value v addressed by idx, moved below its views until mask_arrange takes it; with `unrepeat` further down until its heads stand
// there once, if they were repeated. Changes v and idx in place; *group as mask_arrange. False: nowhere.
bool mask_settle(MaskInterp *in, ValueId *v, int *idx, int seq, int chan, bool unrepeat, int64_t *group);
// [B, heads, L, C] -> every head `times` times in a row.
ValueId mask_repeat_heads(Builder *b, ValueId x, int64_t times);
bool mask_rewrite_sdpa(MaskPass *p, NodeId id);                       // false: the mask is no program; nothing was replaced
void mask_lower_sdpa(MaskPass *p, NodeId id);                         // to matrix products
bool mask_rewrite_written(MaskPass *p, NodeId id, const char **why);  // hand-written: id is the product with v
void mask_interp_init(MaskInterp *in, MaskProg *m, MaskPass *p);
void mask_interp_free(MaskInterp *in);
