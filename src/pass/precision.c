// precision: which values are bf16. Runs where bf16 is asked for; the gradient follows by the rules of cast and dot
// (pass/grad.c).
//
//   %3 = dot(%x, %w) {trans_b}         %3 = cast(%x) {dtype=bf16}
//   %4 = silu(%3)                ->    %4 = cast(%w) {dtype=bf16}
//                                      %5 = dot(%3, %4) {trans_b}             bf16, summed in f32
//                                      %6 = cast(%5) {dtype=f32}
//                                      %7 = silu(%6)
//
// Operands of dot, expert_matmul and attention that depend on a parameter are cast, and so are the results; products of values
// that depend on none (rotary angles: positions up to a million) stay as they are. Rows of a table that depends on parameters
// only are taken from the cast table: the same cast as that of a tied output layer, and one that the optimizer keeps
// (pass/update.c). A product with a weight of few columns (a mixture's router) gives f32: it costs nothing, and its softmax
// decides. Casts to bf16 move up through what only rearranges, casts from bf16 down through reshape and permute: less is moved,
// and casts meet the kernels that make and read a value. (Not down through slices: their cotangents are added, in f32.)
//
// Requires: no sdpa (mask ran), no gradients. Establishes: dot, expert_matmul and attention of values that depend on parameters
// have bf16 operands; every other op has f32 operands.
#include "ir/uses.h"
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

enum { FEW_COLUMNS = 64 };  // results narrower than this stay f32

typedef struct Precision {
    Rewrite r;
    bool *learned;     // [values of in] depends on a parameter
    bool *data;        // [values of in] depends on an input
    ValueId *half;     // [values of in] the value in bf16, NO_VALUE if not yet needed
    int32_t *nuse;
} Precision;

static bool is_f32(const Precision *p, ValueId v) { return graph_value(p->r.in, v)->dtype == DT_F32; }

static void mark(Precision *p, const Node *n) {
    bool learned = n->op == OP_PARAM, data = n->op == OP_INPUT || n->op == OP_RANDOM;
    for (int k = 0; k < n->nin; k++) learned |= p->learned[n->in[k]], data |= p->data[n->in[k]];
    for (int j = 0; j < n->nout; j++) p->learned[n->out[j]] = learned, p->data[n->out[j]] = data;
}

// A value of the old graph in bf16, as a value of the new one.
static ValueId half(Precision *p, ValueId v) {
    if (p->half[v] != NO_VALUE || p->r.b.status != ST_OK) return p->half[v];
    const Node *n = graph_def(p->r.in, v), *now = graph_def(p->r.out, p->r.map[v]);
    if (now->op == OP_CAST && graph_value(p->r.out, now->in[0])->dtype == DT_BF16) return p->half[v] = now->in[0];
    bool follow = op_only_moves(n) && p->learned[v] && (p->nuse[v] == 1 || (op_flags(n->op) & OPF_VIEW));
    if (!follow) return p->half[v] = build_cast(&p->r.b, p->r.map[v], DT_BF16);
    ValueId *in = ARENA_ARRAY(p->r.scratch, ValueId, n->nin);
    for (int k = 0; k < n->nin; k++) in[k] = half(p, n->in[k]);
    if (p->r.b.status != ST_OK) return NO_VALUE;
    return p->half[v] = build(&p->r.b, n->op, n->nin, in, n->nattr, n->attr);
}

// One operand is a weight that gives few columns.
static bool has_few_columns(const Precision *p, const Node *n) {
    for (int k = 0; k < 2; k++) {
        const Shape *w = graph_shape(p->r.in, n->in[k]), *x = graph_shape(p->r.in, n->in[1 - k]),
                    *out = graph_shape(p->r.in, n->out[0]);
        if (p->data[n->in[k]] || !p->learned[n->in[k]] || !p->data[n->in[1 - k]]) continue;
        int64_t nbatch = node_int_or(n, ATTR_NBATCH, 0), ncontract = node_int_or(n, ATTR_NCONTRACT, 1), columns = 1;
        int nfree = w->ndim - (int)(nbatch + ncontract), first = k ? out->ndim - nfree : (int)nbatch;
        for (int i = 0; i < nfree; i++) columns *= out->dim[first + i];
        if (columns < FEW_COLUMNS && x->ndim > nbatch + ncontract) return true;
    }
    return false;
}

// Node n with the operands in halves[] in bf16, and its first result back in f32.
static void emit(Precision *p, NodeId id, const Node *n, int nhalf, const int *halves, bool wide) {
    Builder *b = &p->r.b;
    ValueId *in = ARENA_ARRAY(p->r.scratch, ValueId, n->nin), out[2];
    rewrite_at(&p->r, id);
    for (int k = 0; k < n->nin; k++) in[k] = p->r.map[n->in[k]];
    for (int k = 0; k < nhalf; k++) in[halves[k]] = half(p, n->in[halves[k]]);
    if (b->status != ST_OK) return;
    Attr *attr = ARENA_ARRAY(p->r.scratch, Attr, n->nattr + 1);
    memcpy(attr, n->attr, sizeof *attr * (size_t)n->nattr);
    attr[n->nattr] = attr_i(ATTR_DTYPE, DT_F32);
    build_multi(b, n->op, n->nin, in, n->nattr + wide, attr, n->nout, out);
    if (b->status != ST_OK) return;
    if (!wide) p->half[n->out[0]] = out[0];
    p->r.map[n->out[0]] = build_cast(b, out[0], DT_F32);
    if (n->nout > 1) p->r.map[n->out[1]] = out[1];
    const char *name = graph_value(p->r.in, n->out[0])->name;
    if (b->status == ST_OK && name) graph_value(p->r.out, p->r.map[n->out[0]])->name = name;
}

// Rows and matrix in bf16; what comes out, statistics of rows, is f32.
static void emit_head(Precision *p, NodeId id, const Node *n) {
    static const int first_two[] = {0, 1};
    emit(p, id, n, 2, first_two, false);
    p->half[n->out[0]] = NO_VALUE;
}

// A reshape or permute of a product's result.
static bool of_half(Precision *p, const Node *n) {
    if ((n->op != OP_RESHAPE && n->op != OP_PERMUTE) || !p->learned[n->in[0]] || !is_f32(p, n->in[0])) return false;
    const Node *now = graph_def(p->r.out, p->r.map[n->in[0]]);
    return now->op == OP_CAST && graph_value(p->r.out, now->in[0])->dtype == DT_BF16;
}

static void visit(Precision *p, NodeId id) {
    static const int first_two[] = {0, 1}, outer[] = {0, 2}, qkv[] = {0, 1, 2};
    const Node *n = graph_node(p->r.in, id);
    mark(p, n);
    bool any = n->nout > 0 && n->nin > 0 && p->learned[n->out[0]] && is_f32(p, n->out[0]);
    ValueId table = n->op == OP_EMBEDDING ? n->in[0] : NO_VALUE;
    if (any && n->op == OP_DOT) emit(p, id, n, 2, first_two, has_few_columns(p, n));
    else if (any && n->op == OP_HEAD_FWD) emit_head(p, id, n);
    else if (any && n->op == OP_EXPERT_MATMUL) emit(p, id, n, 2, outer, false);
    else if (any && n->op == OP_ATTENTION && (p->learned[n->in[0]] || p->learned[n->in[1]] || p->learned[n->in[2]]))
        emit(p, id, n, 3, qkv, false);
    else if (any && table != NO_VALUE && !p->data[table] && graph_shape(p->r.in, table)->ndim > 1)
        emit(p, id, n, 1, first_two, false);
    else if (of_half(p, n)) emit(p, id, n, 1, first_two, false);
    else rewrite_copy(&p->r, id);
}

Status pass_precision(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Precision p = {.learned = ARENA_ARRAY(c->scratch, bool, in->values.len),
                   .data = ARENA_ARRAY(c->scratch, bool, in->values.len),
                   .half = ARENA_ARRAY(c->scratch, ValueId, in->values.len),
                   .nuse = graph_use_counts(in, c->scratch)};
    for (int64_t v = 0; v < in->values.len; v++) p.half[v] = NO_VALUE;
    rewrite_begin(&p.r, in, c->scratch, d);
    for (int64_t i = 0; i < in->nodes.len && p.r.b.status == ST_OK; i++) visit(&p, (NodeId)i);
    return rewrite_finish(&p.r, out);
}
