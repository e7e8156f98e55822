// narrow: activations are stored in bf16. In registers they stay f32.
//
//   %5 = fused(%1, %2) {prog={... $9:f32 = mul($7, $8); out $9}} : f32[1,S,D]
//   %6 = fused(%5, %3) {prog={$0:f32 = input 0; ...}}
//     ->
//   %5 = fused(%1, %2) {prog={... $9:f32 = mul($7, $8); $10:bf16 = cast($9); out $10}} : bf16[1,S,D]
//   %6 = fused(%5, %3) {prog={$0:bf16 = input 0; $1:f32 = cast($0); ...}}
//
// An f32 value becomes bf16 in memory if it depends on a parameter, is as large as an activation (at least ROW elements for each
// token: no statistic of rows or heads), is no output of the graph and no gradient on its way to the optimizer, and if whoever
// makes it and whoever reads it is a program (a pointwise op becomes one) or only moves elements (permute, slice, concat,
// reshard, ...), which then moves bf16. One other reader (a sum, a scan, a convolution) keeps the value f32. A value that is a
// cast of a stored bf16 value is read from there, whatever its size: that loses nothing.
//
// Requires: placements, and fuse ran if it runs. Establishes: the same graph with fewer bytes; programs of pointwise ops have
// bf16 operands and results.
#include "ir/uses.h"
#include "ir/views.h"
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

enum { ROW = 64 };  // elements for each token that make a value an activation

typedef struct Narrow {
    Rewrite r;
    Uses uses;
    bool *learned;     // [values of in] depends on a parameter
    bool *gradient;    // [values of in] goes to the optimizer or out as a parameter's gradient, rearranged at most
    bool *narrow;      // [values of in] stored in bf16 instead
    ValueId *source;   // [values of in] the bf16 value of which it is a cast, NO_VALUE if it is none
    bool *wide;        // [values of in] of those with a source: someone needs it in f32 all the same
    ValueId *low;      // [values of in] -> value of out that holds it in bf16
} Narrow;

// ---- what nodes are -------------------------------------------------------------------------------------------------------
static bool is_spread(const Value *v) { return v->place.kind == PLACE_PARTIAL || v->place.reduce != RED_NONE; }

// A node that is a program or can be written as one.
static bool is_program(const Graph *g, const Node *n) {
    return n->op == OP_FUSED || (op_is_pointwise(n->op) && n->nout == 1 && !is_spread(graph_value(g, n->out[0])));
}

static bool moves(const Node *n) { return op_only_moves(n) || n->op == OP_RESHARD; }

// The shape that a program runs over.
static Shape space_of(const Graph *g, const Node *n) {
    const int64_t *dims;
    int ndim = node_ints(n, ATTR_SHAPE, &dims);
    return n->op == OP_FUSED && node_attr(n, ATTR_SHAPE) ? shape_of(ndim, dims) : *graph_shape(g, n->out[0]);
}

// Whether a fused node reads operand `slot` as it lies in memory.
static bool is_read_flat(const Graph *g, const Node *n, int slot) {
    View view[64];
    Diag d = {0};
    if (n->nin > 64 || views_decode(n, view, &d) != ST_OK) return false;
    Shape space = space_of(g, n);
    View v = view_resolve(&view[slot], graph_shape(g, n->in[slot]), &space);
    return view_is_flat(&v, graph_shape(g, n->in[slot]), &space);
}

// The operand of which output j is the value itself in another float type; NO_VALUE if it is none.
static ValueId cast_of(const Graph *g, const Node *n, int j, DType from) {
    int slot = -1;
    if (n->op == OP_CAST) slot = 0;
    if (n->op == OP_FUSED) {
        const Program *p = node_prog(n, ATTR_PROG);
        const Instr *x = &p->instr[p->out[j]];
        if (x->code == PROG_OP + OP_CAST && p->instr[x->a].code == PROG_INPUT) slot = p->instr[x->a].a;
        if (slot >= 0 && !is_read_flat(g, n, slot)) slot = -1;
    }
    if (slot < 0) return NO_VALUE;
    const Value *v = graph_value(g, n->in[slot]), *out = graph_value(g, n->out[j]);
    bool same = v->dtype == from && shape_equal(&v->shape, &out->shape) && placement_equal(&v->place, &out->place);
    return same && !is_spread(v) ? n->in[slot] : NO_VALUE;
}

// ---- which values ---------------------------------------------------------------------------------------------------------
static void mark_learned(Narrow *w) {
    const Graph *g = w->r.in;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool any = n->op == OP_PARAM;
        for (int k = 0; k < n->nin; k++) any |= w->learned[n->in[k]];
        for (int j = 0; j < n->nout; j++) w->learned[n->out[j]] = any;
    }
}

// From where gradients of parameters are delivered back through what does not sum: they are not rounded on the way.
static void mark_gradients(Narrow *w) {
    const Graph *g = w->r.in;
    for (int64_t i = 0; i < g->outputs.len; i++)
        if (g->outputs.data[i].kind == OUT_GRAD) w->gradient[g->outputs.data[i].value] = true;
    for (int64_t i = g->nodes.len - 1; i >= 0; i--) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op == OP_ADAMW) w->gradient[n->in[1]] = true;
        for (int j = 0; j < n->nout; j++) {
            if (!w->gradient[n->out[j]] || (!moves(n) && !op_is_pointwise(n->op) && n->op != OP_FUSED)) continue;
            int64_t numel = shape_numel(graph_shape(g, n->out[j]));
            for (int k = 0; k < n->nin; k++)
                if (moves(n) || shape_numel(graph_shape(g, n->in[k])) == numel) w->gradient[n->in[k]] = true;
        }
    }
}

static bool is_output(const Narrow *w, ValueId v) {
    int32_t last = w->uses.first[v + 1] - 1;
    return last >= w->uses.first[v] && w->uses.use[last].node == NO_NODE;
}

// What a value must be in itself.
static bool is_activation(const Narrow *w, ValueId v) {
    const Graph *g = w->r.in;
    const Value *x = graph_value(g, v);
    const Node *n = graph_def(g, v);
    if (x->dtype != DT_F32 || !w->learned[v] || w->gradient[v] || is_output(w, v)) return false;
    if (moves(n)) return true;  // if what it moves is one
    if (!is_program(g, n) || is_spread(x)) return false;
    int64_t ntokens = max_i64(1, g->batch) * max_i64(1, g->seq);
    Shape space = space_of(g, n);
    const Program *p = n->op == OP_FUSED ? node_prog(n, ATTR_PROG) : NULL;
    if (p && p->instr[p->out[x->index]].code == PROG_COL_SUM) return false;
    return shape_equal(&space, &x->shape) && shape_numel(&x->shape) / ROW >= ntokens;
}

// Whether candidate v still is one, seen from its maker and its readers.
static bool holds(const Narrow *w, ValueId v) {
    const Graph *g = w->r.in;
    const Node *n = graph_def(g, v);
    for (int k = 0; moves(n) && k < n->nin; k++)
        if (!w->narrow[n->in[k]] && w->source[n->in[k]] == NO_VALUE) return false;
    for (int32_t u = w->uses.first[v]; u < w->uses.first[v + 1]; u++) {
        const Node *user = graph_node(g, w->uses.use[u].node);
        if (!is_program(g, user) && !(moves(user) && w->narrow[user->out[0]])) return false;
    }
    return true;
}

static void choose(Narrow *w) {
    const Graph *g = w->r.in;
    for (int64_t v = 0; v < g->values.len; v++) {
        const Node *n = graph_def(g, (ValueId)v);
        bool f32 = graph_value(g, (ValueId)v)->dtype == DT_F32;
        w->source[v] = f32 ? cast_of(g, n, graph_value(g, (ValueId)v)->index, DT_BF16) : NO_VALUE;
        w->narrow[v] = w->source[v] == NO_VALUE && is_activation(w, (ValueId)v);
    }
    for (bool again = true; again;) {
        again = false;
        for (int64_t v = 0; v < g->values.len; v++)
            if (w->narrow[v] && !holds(w, (ValueId)v)) w->narrow[v] = false, again = true;
    }
    for (int64_t v = 0; v < g->values.len; v++) {
        if (w->source[v] == NO_VALUE) continue;
        w->wide[v] = is_output(w, (ValueId)v);
        for (int32_t u = w->uses.first[v]; u < w->uses.first[v + 1] && !w->wide[v]; u++) {
            const Node *user = graph_node(g, w->uses.use[u].node);
            w->wide[v] = !is_program(g, user) && !(moves(user) && w->narrow[user->out[0]]);
        }
    }
}

// ---- rewriting programs ---------------------------------------------------------------------------------------------------

// Whether an instruction's operands are instructions; of the others they are slots.
static bool program_reads(int32_t code) { return code >= PROG_OP || program_is_reduction(code); }

typedef struct Edit {  // a program being written
    Instr *instr;
    int ninstr, nout;
    int32_t *out;
} Edit;

// A pointwise node as a program: an instruction for each operand, then the op.
static Program as_program(Narrow *w, const Node *n) {
    if (n->op == OP_FUSED) return *node_prog(n, ATTR_PROG);
    Instr *x = ARENA_ARRAY(w->r.scratch, Instr, n->nin + 1);
    int32_t *out = ARENA_ARRAY(w->r.scratch, int32_t, 1);
    for (int k = 0; k < n->nin; k++) x[k] = (Instr){PROG_INPUT, graph_value(w->r.in, n->in[k])->dtype, k, -1, -1, 0};
    x[n->nin] = (Instr){PROG_OP + n->op, graph_value(w->r.in, n->out[0])->dtype, 0, n->nin > 1 ? 1 : -1, n->nin > 2 ? 2 : -1, 0};
    out[0] = n->nin;
    return (Program){n->nin + 1, x, 1, out};
}

// The program with casts behind the inputs that have become bf16; at[i] is where instruction i went.
static Edit widen_inputs(Narrow *w, const Program *p, const bool *low_in, int32_t *at) {
    Edit e = {.instr = ARENA_ARRAY(w->r.scratch, Instr, 2 * p->ninstr + 2 * p->nout),
              .out = ARENA_ARRAY(w->r.scratch, int32_t, p->nout)};
    for (int i = 0; i < p->ninstr; i++) {
        Instr x = p->instr[i];
        if (x.code == PROG_INPUT && low_in[x.a]) {
            x.dtype = DT_BF16;
            e.instr[e.ninstr++] = x;
            x = (Instr){PROG_OP + OP_CAST, DT_F32, e.ninstr - 1, -1, -1, 0};
        } else if (program_reads(x.code)) {
            x.a = x.a < 0 ? -1 : at[x.a], x.b = x.b < 0 ? -1 : at[x.b], x.c = x.c < 0 ? -1 : at[x.c];
        }
        at[i] = e.ninstr;
        e.instr[e.ninstr++] = x;
    }
    return e;
}

// The output that holds instruction `at` in bf16: one that is there already, else a cast at the end.
static int output_in_bf16(Edit *e, int32_t at) {
    for (int j = 0; j < e->nout; j++) {
        const Instr *x = &e->instr[e->out[j]];
        if (x->code == PROG_OP + OP_CAST && x->dtype == DT_BF16 && x->a == at) return j;
    }
    e->instr[e->ninstr] = (Instr){PROG_OP + OP_CAST, DT_BF16, at, -1, -1, 0};
    e->out[e->nout] = e->ninstr++;
    return e->nout++;
}

// Outputs that need no kernel: f32 values read from the bf16 value that they are cast from, and casts of narrowed values to bf16.
static bool skip_output(Narrow *w, const Node *n, int j) {
    ValueId v = n->out[j];
    if (w->source[v] != NO_VALUE) {
        w->low[v] = w->r.map[w->source[v]];
        return !w->wide[v];
    }
    ValueId from = graph_value(w->r.in, v)->dtype == DT_BF16 ? cast_of(w->r.in, n, j, DT_F32) : NO_VALUE;
    if (from == NO_VALUE || w->low[from] == NO_VALUE) return false;
    w->r.map[v] = w->low[from];
    return true;
}

static Status add_program(Narrow *w, NodeId id, const Node *n, const Edit *e, const ValueId *in, NodeId *made) {
    Program prog = {e->ninstr, e->instr, e->nout, e->out};
    Attr *attr = ARENA_ARRAY(w->r.scratch, Attr, n->nattr + 2);
    int nattr = 0;
    for (int k = 0; n->op == OP_FUSED && k < n->nattr; k++)
        attr[nattr++] = n->attr[k].key == ATTR_PROG ? attr_prog(ATTR_PROG, &prog) : n->attr[k];
    Shape space = space_of(w->r.in, n);
    if (n->op != OP_FUSED) attr[nattr++] = attr_prog(ATTR_PROG, &prog);
    if (n->op != OP_FUSED) attr[nattr++] = attr_ints(ATTR_SHAPE, space.ndim, space.dim);
    TRY(graph_add(w->r.out, OP_FUSED, n->nin, in, nattr, attr, n->source, n->phase, made, w->r.b.d));
    graph_node(w->r.out, *made)->note = n->note;
    (void)id;
    return ST_OK;
}

static void emit_program(Narrow *w, NodeId id, const Node *n) {
    Arena *a = w->r.scratch;
    Program p = as_program(w, n);
    bool *low_in = ARENA_ARRAY(a, bool, n->nin), *skip = ARENA_ARRAY(a, bool, n->nout), any = false;
    int32_t *at = ARENA_ARRAY(a, int32_t, p.ninstr), *out_of = ARENA_ARRAY(a, int32_t, n->nout), left = 0;
    ValueId *in = ARENA_ARRAY(a, ValueId, n->nin);
    for (int k = 0; k < n->nin; k++) {
        low_in[k] = w->low[n->in[k]] != NO_VALUE;
        in[k] = low_in[k] ? w->low[n->in[k]] : w->r.map[n->in[k]];
        any |= low_in[k];
    }
    for (int j = 0; j < n->nout; j++) {
        skip[j] = skip_output(w, n, j);
        any |= skip[j] || w->narrow[n->out[j]];
        left += !skip[j];
    }
    if (left == 0) return;
    if (!any) return rewrite_copy(&w->r, id);
    Edit e = widen_inputs(w, &p, low_in, at);
    for (int j = 0; j < n->nout; j++)  // first those that stay: a narrowed one may be one of them
        if (!skip[j] && !w->narrow[n->out[j]]) e.out[out_of[j] = e.nout++] = at[p.out[j]];
    for (int j = 0; j < n->nout; j++)
        if (!skip[j] && w->narrow[n->out[j]]) out_of[j] = output_in_bf16(&e, at[p.out[j]]);
    NodeId made;
    w->r.b.status = add_program(w, id, n, &e, in, &made);
    for (int j = 0; w->r.b.status == ST_OK && j < n->nout; j++) {
        if (skip[j]) continue;
        ValueId v = graph_node(w->r.out, made)->out[out_of[j]], old = n->out[j];
        graph_value(w->r.out, v)->place = graph_value(w->r.in, old)->place;
        if (!graph_value(w->r.out, v)->name) graph_value(w->r.out, v)->name = graph_value(w->r.in, old)->name;
        *(w->narrow[old] ? &w->low[old] : &w->r.map[old]) = v;
    }
}

// What is moved, in bf16.
static void emit_move(Narrow *w, NodeId id, const Node *n) {
    ValueId *in = ARENA_ARRAY(w->r.scratch, ValueId, n->nin);
    for (int k = 0; k < n->nin; k++) in[k] = w->low[n->in[k]];
    rewrite_at(&w->r, id);
    ValueId v = build(&w->r.b, n->op, n->nin, in, n->nattr, n->attr);
    if (w->r.b.status != ST_OK) return;
    graph_value(w->r.out, v)->place = graph_value(w->r.in, n->out[0])->place;
    graph_value(w->r.out, v)->name = graph_value(w->r.in, n->out[0])->name;
    w->low[n->out[0]] = v;
}

Status pass_narrow(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Arena *a = c->scratch;
    Narrow w = {.uses = uses_collect(in, a)};
    w.learned = ARENA_ARRAY(a, bool, in->values.len), w.gradient = ARENA_ARRAY(a, bool, in->values.len);
    w.narrow = ARENA_ARRAY(a, bool, in->values.len), w.wide = ARENA_ARRAY(a, bool, in->values.len);
    w.source = ARENA_ARRAY(a, ValueId, in->values.len), w.low = ARENA_ARRAY(a, ValueId, in->values.len);
    for (int64_t v = 0; v < in->values.len; v++) w.low[v] = NO_VALUE;
    rewrite_begin(&w.r, in, a, d);
    mark_learned(&w);
    mark_gradients(&w);
    choose(&w);
    for (int64_t i = 0; i < in->nodes.len && w.r.b.status == ST_OK; i++) {
        const Node *n = graph_node(in, (NodeId)i);
        if (is_program(in, n)) emit_program(&w, (NodeId)i, n);
        else if (n->nout == 1 && w.narrow[n->out[0]]) emit_move(&w, (NodeId)i, n);
        else rewrite_copy(&w.r, (NodeId)i);
    }
    return rewrite_finish(&w.r, out);
}
