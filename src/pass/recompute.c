// recompute: what the forward computed cheaply and only pointwise ops of the backward read is computed there again.
//
//   forward:  %5 = mul(%3, %4)       x, 1/rms                         %5 = mul(%3, %4)
//             %6 = mul(%w, %5)                                        %6 = mul(%w, %5)
//   backward: %9 = mul(%8, %5)                    ->      backward:   %10 = mul(%3, %4) why "recomputed"
//                                                                     %9 = mul(%8, %10)
//
// Requires: placements; a backend whose fused nodes have views and rows (the copies vanish in the kernels of their readers:
// fuse_rows.c). Establishes: the same values. A value is recomputed only from what is kept for the backward anyway, or is far
// smaller than it: parameters and inputs, what the backward's products and attention read, what cannot be computed cheaply, and
// what this pass, going through the forward in order, decided to keep. Small values are not worth it.
#include "ops/op.h"
#include "pass/fuse_rows.h"

enum {
    RC_NODES = 12,      // copies for one value at most
    RC_SMALL = 64,      // a leaf of 1/64 of the value's bytes may be kept for it
    RC_WORTH = 1024,    // a value of less than 1/1024 of the largest is kept
};

typedef struct Recompute {
    Fuse f;
    bool *kept;       // [values] there in the backward
    bool *again;      // [values] computed again by its backward readers
    int64_t worth;    // bytes
    Rewrite r;
    ValueId *copy;    // [values] the copy for the reader at hand, NO_VALUE
    VEC(ValueId) copied;
} Recompute;

static int64_t nbytes(const Graph *g, ValueId v) {
    return shape_numel(graph_shape(g, v)) * dtype_nbytes(graph_value(g, v)->dtype);
}

static bool is_source(OpKind op) { return (op_flags(op) & OPF_SOURCE) != 0 && op != OP_RANDOM; }

// A reshape is its operand's bytes.
static void keep(Recompute *c, ValueId v) {
    c->kept[v] = true;
    const Node *n = graph_def(c->f.g, v);
    if (n->op == OP_RESHAPE) keep(c, n->in[0]);
}

// Whether everything after the forward that reads v, through movements, would take v's expression in its kernel; *any:
// something reads.
static bool only_kernels_read(const Recompute *c, ValueId v, bool *any) {
    const Fuse *f = &c->f;
    for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++) {
        NodeId user = f->uses.use[u].node;
        if (user == NO_NODE) return false;
        const Node *n = graph_node(f->g, user);
        if (f->kind[user] == FUSE_MOVE) {
            if (!only_kernels_read(c, n->out[0], any)) return false;
            continue;
        }
        if (n->phase == PHASE_FORWARD) continue;
        *any = true;
        if (n->phase != PHASE_BACKWARD || (f->kind[user] != FUSE_POINTWISE && f->kind[user] != FUSE_REDUCE)) return false;
    }
    return true;
}

// Counts the nodes that computing v again takes. False: more than *left, or something is needed that is not there.
static bool count_copies(const Recompute *c, ValueId v, int64_t size, int *left) {
    const Graph *g = c->f.g;
    const Value *x = graph_value(g, v);
    FuseKind k = (FuseKind)c->f.kind[x->def];
    if ((k != FUSE_POINTWISE && k != FUSE_MOVE) || --*left < 0) return false;
    const Node *n = graph_node(g, x->def);
    for (int i = 0; i < n->nin; i++) {
        ValueId o = n->in[i];
        if (c->kept[o] || nbytes(g, o) * RC_SMALL <= size) continue;
        if (!count_copies(c, o, size, left)) return false;
    }
    return true;
}

// Goes through the forward in order. What an op that no kernel takes makes is kept if the backward reads it.
static void decide(Recompute *c) {
    const Graph *g = c->f.g;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->phase != PHASE_FORWARD) continue;
        for (int j = 0; j < n->nout; j++) {
            ValueId v = n->out[j];
            bool any = false;
            bool kernels = only_kernels_read(c, v, &any);
            if (is_source(n->op)) keep(c, v);
            if (c->kept[v] || (kernels && !any)) continue;
            // The narrower form of the same value is what to keep (a product's result in bf16).
            bool widens = n->op == OP_CAST && kernels && dtype_is_float(graph_value(g, n->in[0])->dtype);
            if (widens && nbytes(g, n->in[0]) < nbytes(g, v) && !c->again[n->in[0]]) keep(c, n->in[0]);
            int left = RC_NODES;
            bool worth = c->f.kind[i] == FUSE_POINTWISE && nbytes(g, v) >= c->worth;
            // A movement's readers are its operand's: what is kept of the two is decided there.
            bool moves = false;
            for (int k = 0; k < n->nin && c->f.kind[i] == FUSE_MOVE; k++) moves |= c->again[n->in[k]];
            c->again[v] = kernels && (worth || moves) && count_copies(c, v, nbytes(g, v), &left);
            if (!c->again[v] && c->f.kind[i] != FUSE_MOVE) keep(c, v);
        }
    }
}

// What readers that are no kernels need in the backward, before anything is decided: through movements, those of the backward
// too.
static void keep_for_others(Recompute *c) {
    const Graph *g = c->f.g;
    for (int64_t i = g->nodes.len; i-- > 0;) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->phase == PHASE_FORWARD) continue;
        bool kernel = c->f.kind[i] == FUSE_POINTWISE || c->f.kind[i] == FUSE_REDUCE;
        if (kernel && n->phase == PHASE_BACKWARD) continue;
        if (c->f.kind[i] == FUSE_MOVE && !c->kept[n->out[0]]) continue;  // its readers, which came first here, take an expression
        for (int k = 0; k < n->nin; k++) keep(c, n->in[k]);
    }
    for (int64_t i = 0; i < g->outputs.len; i++) keep(c, g->outputs.data[i].value);
}

// ---- the new graph --------------------------------------------------------------------------------------------------------

// v's expression once more, for the reader at hand; what it starts from is as decided.
static ValueId copy_value(Recompute *c, ValueId v, int64_t size) {
    const Graph *g = c->f.g;
    if (c->copy[v] != NO_VALUE) return c->copy[v];
    const Node *n = graph_def(g, v);
    ValueId saved[64];
    CHECK(n->nin <= 64 && n->nout == 1, "%s is no op to be computed again", op_name(n->op));
    for (int i = 0; i < n->nin; i++) {
        ValueId o = n->in[i];
        bool there = c->kept[o] || nbytes(g, o) * RC_SMALL <= size;
        saved[i] = there ? c->r.map[o] : copy_value(c, o, size);
    }
    ValueId old[64], mine = c->r.map[v];
    for (int i = 0; i < n->nin; i++) old[i] = c->r.map[n->in[i]];
    for (int i = 0; i < n->nin; i++) c->r.map[n->in[i]] = saved[i];
    rewrite_copy(&c->r, graph_value(g, v)->def);
    ValueId made = c->r.map[v];
    for (int i = n->nin; i-- > 0;) c->r.map[n->in[i]] = old[i];
    c->r.map[v] = mine;
    Node *m = graph_def(c->r.out, made);
    m->phase = PHASE_BACKWARD;
    m->note = "recomputed";
    c->copy[v] = made;
    vec_push(&c->copied, v);
    return made;
}

static void copy_reader(Recompute *c, NodeId id) {
    const Node *n = graph_node(c->f.g, id);
    ValueId mine[64];
    int count = 0;
    for (int i = 0; i < n->nin && i < 64; i++) {
        mine[i] = c->r.map[n->in[i]];
        if (c->again[n->in[i]]) count++;
    }
    if (n->phase != PHASE_BACKWARD || count == 0 || n->nin > 64) {
        rewrite_copy(&c->r, id);
        return;
    }
    for (int64_t i = 0; i < c->copied.len; i++) c->copy[c->copied.data[i]] = NO_VALUE;
    c->copied.len = 0;
    ValueId with[64];
    for (int i = 0; i < n->nin; i++) with[i] = c->again[n->in[i]] ? copy_value(c, n->in[i], nbytes(c->f.g, n->in[i])) : mine[i];
    for (int i = 0; i < n->nin; i++) c->r.map[n->in[i]] = with[i];
    rewrite_copy(&c->r, id);
    for (int i = n->nin; i-- > 0;) c->r.map[n->in[i]] = mine[i];
}

Status pass_recompute(PassContext *p, Graph *in, Graph **out, Diag *d) {
    Recompute c = {.f = {.g = in, .a = p->scratch, .uses = uses_collect(in, p->scratch)}};
    int64_t largest = 0;
    *out = in;
    if (!(p->features & BACKEND_FUSE_ROWS)) return ST_OK;
    c.f.kind = ARENA_ARRAY(p->scratch, uint8_t, in->nodes.len);
    c.f.through = ARENA_ARRAY(p->scratch, bool, in->nodes.len);
    c.kept = ARENA_ARRAY(p->scratch, bool, in->values.len);
    c.again = ARENA_ARRAY(p->scratch, bool, in->values.len);
    c.copy = ARENA_ARRAY(p->scratch, ValueId, in->values.len);
    for (int64_t v = 0; v < in->values.len; v++) {
        c.copy[v] = NO_VALUE;
        if (graph_def(in, (ValueId)v)->phase == PHASE_FORWARD) largest = max_i64(largest, nbytes(in, (ValueId)v));
    }
    c.worth = largest / RC_WORTH;
    fuse_classify(&c.f);
    keep_for_others(&c);
    decide(&c);
    rewrite_begin(&c.r, in, p->scratch, d);
    for (int64_t i = 0; i < in->nodes.len; i++) copy_reader(&c, (NodeId)i);
    vec_free(&c.copied);
    return rewrite_finish(&c.r, out);
}
