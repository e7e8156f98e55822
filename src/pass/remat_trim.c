// What nobody reads any more is not computed: once a value is kept or computed again, the forward's kernels and their copies have results
// without readers.
//
//   %7, %8 = fused(%3, %4) {$0, $1 ... out $5, $9}        %7 = fused(%3) {$0 ... out $5}
//
// Instructions and operands that only the dropped results needed go with them; nodes without any result that is read were dropped before.
#include "ir/views.h"
#include "ops/op.h"
#include "pass/remat.h"

enum { MOST_INSTR = 1024 };

typedef struct Trim {
    const Graph *g;
    Arena *a;        // scratch
    bool *read;      // [values]
    bool *input;     // [operands of one node] its program reads it
    bool *live;      // [instructions of one program]
} Trim;

// Instructions that results with readers depend on, and the operands that those read. False: nothing is to be dropped.
static bool mark_program(Trim *t, const Node *n) {
    const Program *p = node_prog(n, ATTR_PROG);
    bool all = true;
    if (p->ninstr > MOST_INSTR) return false;
    memset(t->live, 0, (size_t)p->ninstr);
    memset(t->input, 0, (size_t)n->nin);
    for (int k = 0; k < p->nout; k++) {
        t->live[p->out[k]] |= t->read[n->out[k]];
        all &= t->read[n->out[k]];
    }
    for (int i = p->ninstr - 1; i >= 0 && !all; i--) {
        const Instr *x = &p->instr[i];
        if (!t->live[i]) continue;
        if (x->code == PROG_INPUT) t->input[x->a] = true;
        int arity = x->code >= PROG_OP ? program_op_arity(x->code - PROG_OP) : program_is_reduction(x->code);
        const int32_t arg[3] = {x->a, x->b, x->c};
        for (int k = 0; k < arity; k++) t->live[arg[k]] = true;
    }
    return !all;
}

// Without attribute shape the operands span the iteration space: those that stay must do so too.
static bool spans(const Trim *t, const Node *n) {
    Shape all = SHAPE0, rest = SHAPE0;
    if (node_attr(n, ATTR_SHAPE)) return true;
    for (int k = 0; k < n->nin; k++) {
        const Shape *s = graph_shape(t->g, n->in[k]);
        if (!broadcast_shapes(&all, s, &all) || (t->input[k] && !broadcast_shapes(&rest, s, &rest))) return false;
    }
    return shape_equal(&all, &rest);
}

// Whether node n can do with less; t->live and t->input say with what.
static bool can_trim(Trim *t, const Node *n) { return n->op == OP_FUSED && mark_program(t, n) && spans(t, n); }

// The values that are read, backwards: what a trimmed node does not need is not. Returns how many nodes can be trimmed.
static int64_t mark_read(Trim *t) {
    const Graph *g = t->g;
    int64_t count = 0;
    for (int64_t i = 0; i < g->outputs.len; i++) t->read[g->outputs.data[i].value] = true;
    for (int64_t i = g->nodes.len; i-- > 0;) {
        const Node *n = graph_node(g, (NodeId)i);
        bool any = false;
        for (int k = 0; k < n->nout; k++) any |= t->read[n->out[k]];
        if (!any) continue;
        bool trim = can_trim(t, n);
        count += trim;
        for (int k = 0; k < n->nin; k++)
            if (!trim || t->input[k]) t->read[n->in[k]] = true;
    }
    return count;
}

static const Program *trimmed_program(const Trim *t, Arena *a, const Node *n) {
    const Program *p = node_prog(n, ATTR_PROG);
    Program *q = ARENA_NEW(a, Program);
    Instr *instr = ARENA_ARRAY(a, Instr, p->ninstr);
    int32_t *out = ARENA_ARRAY(a, int32_t, p->nout), *to = ARENA_ARRAY(t->a, int32_t, p->ninstr), *slot = ARENA_ARRAY(t->a, int32_t, n->nin);
    for (int k = 0, next = 0; k < n->nin; k++) slot[k] = t->input[k] ? next++ : -1;
    *q = (Program){.instr = instr, .out = out};
    for (int i = 0; i < p->ninstr; i++) {
        if (!t->live[i]) continue;
        Instr x = p->instr[i];
        int arity = x.code >= PROG_OP ? program_op_arity(x.code - PROG_OP) : program_is_reduction(x.code);
        if (x.code == PROG_INPUT) x.a = slot[x.a];
        if (arity > 0) x.a = to[x.a];
        if (arity > 1) x.b = to[x.b];
        if (arity > 2) x.c = to[x.c];
        to[i] = q->ninstr;
        instr[q->ninstr++] = x;
    }
    for (int k = 0; k < p->nout; k++)
        if (t->read[n->out[k]]) out[q->nout++] = to[p->out[k]];
    return q;
}

static Status add_trimmed(Trim *t, Graph *to, NodeId id, ValueId *map, Diag *d) {
    const Node *n = graph_node(t->g, id);
    Attr *attr = arena_copy(to->arena, n->attr, sizeof *attr * (size_t)n->nattr);
    ValueId *in = ARENA_ARRAY(t->a, ValueId, n->nin);
    View *view = ARENA_ARRAY(t->a, View, n->nin);
    int64_t *list = ARENA_ARRAY(to->arena, int64_t, n->nin * MAX_VIEW_INTS);
    int nin = 0, nlist = 0;
    TRY(views_decode(n, view, d));
    for (int k = 0; k < n->nin; k++) {
        if (!t->input[k]) continue;
        in[nin++] = map[n->in[k]];
        view_encode(&view[k], list, &nlist);
    }
    for (int k = 0; k < n->nattr; k++) {
        if (attr[k].key == ATTR_PROG) attr[k].u.prog = trimmed_program(t, to->arena, n);
        if (attr[k].key == ATTR_VIEWS) attr[k] = attr_ints(ATTR_VIEWS, nlist, list);
    }
    NodeId made;
    TRY(graph_add(to, OP_FUSED, nin, in, n->nattr, attr, n->source, n->phase, &made, d));
    graph_node(to, made)->note = n->note;
    for (int k = 0, next = 0; k < n->nout; k++) {
        if (!t->read[n->out[k]]) continue;
        ValueId v = map[n->out[k]] = graph_node(to, made)->out[next++];
        graph_value(to, v)->place = graph_value(t->g, n->out[k])->place;
        graph_value(to, v)->name = graph_value(t->g, n->out[k])->name;
    }
    return ST_OK;
}

Status remat_trim(const Graph *g, Arena *scratch, Graph **out, Diag *d) {
    Trim t = {.g = g, .a = scratch, .read = ARENA_ARRAY(scratch, bool, g->values.len), .live = ARENA_ARRAY(scratch, bool, MOST_INSTR)};
    int most = 0;
    *out = NULL;
    for (int64_t i = 0; i < g->nodes.len; i++) most = graph_node(g, (NodeId)i)->nin > most ? graph_node(g, (NodeId)i)->nin : most;
    t.input = ARENA_ARRAY(scratch, bool, most);
    if (mark_read(&t) == 0) return ST_OK;
    Graph *to = graph_new_like(g);
    ValueId *map = ARENA_ARRAY(scratch, ValueId, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) map[v] = NO_VALUE;
    Status st = ST_OK;
    for (int64_t i = 0; i < g->nodes.len && st == ST_OK; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool any = false;
        for (int k = 0; k < n->nout; k++) any |= t.read[n->out[k]];
        if (!any && n->op != OP_CONSTANT) continue;  // constants are numbered: they stay
        if (any && can_trim(&t, n)) st = add_trimmed(&t, to, (NodeId)i, map, d);
        else graph_copy_node(g, (NodeId)i, to, map);
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        graph_add_output(to, o->kind, o->param, o->slot, o->name, map[o->value]);
    }
    *out = to;
    return st;
}
