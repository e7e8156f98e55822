// remat: what the backward needs of the forward and was not kept is computed again.
//
//   forward:  %5 = dot(%3, %w)              forward:   %5 = dot(%3, %w)
//             ...                                      ...
//   backward: %9 = fused(%8, %5)      ->    recompute: %9 = dot(%3, %w)
//                                           backward:  %10 = fused(%8, %9)
//
// One copy serves all readers after the forward; it comes right before the first one. Results that are not read any more are dropped.
#include "ops/op.h"
#include "pass/remat.h"
#include "pass/rewrite.h"

typedef struct Apply {
    const RematGraph *r;
    const uint8_t *choice;
    Rewrite w;
    ValueId *again;      // [values of the old graph] the copy in the new one, NO_VALUE
    ValueId *saved;      // [operands and results of one node]
    VEC(NodeId) stack;
} Apply;

// The value of the new graph that readers after the forward get for v; NO_VALUE: it has to be made first.
static ValueId late_value(const Apply *p, ValueId v) {
    const RematGraph *r = p->r;
    ValueId root = r->root[v];
    if (!r->forward[root] || p->choice[root] == CHOICE_KEEP) return p->w.map[v];
    return p->again[v];
}

static NodeId first_missing(const Apply *p, const Node *n) {
    for (int k = 0; k < n->nin; k++)
        if (late_value(p, n->in[k]) == NO_VALUE) return graph_value(p->r->g, n->in[k])->def;
    return NO_NODE;
}

// Copies node i with the late form of its operands. map is put back: readers of the forward keep theirs.
static void copy_late(Apply *p, NodeId i, bool recompute) {
    const Node *n = graph_node(p->r->g, i);
    ValueId *in = p->saved, *out = p->saved + n->nin;
    for (int k = 0; k < n->nin; k++) {
        in[k] = p->w.map[n->in[k]];
        p->w.map[n->in[k]] = late_value(p, n->in[k]);
    }
    for (int k = 0; k < n->nout; k++) out[k] = p->w.map[n->out[k]];
    rewrite_copy(&p->w, i);
    for (int k = 0; k < n->nin; k++) p->w.map[n->in[k]] = in[k];
    if (!recompute) return;
    graph_def(p->w.out, p->w.map[n->out[0]])->phase = PHASE_RECOMPUTE;
    for (int k = 0; k < n->nout; k++) {
        p->again[n->out[k]] = p->w.map[n->out[k]];
        p->w.map[n->out[k]] = out[k];
    }
}

// Everything that node i reads in its late form. A stack of its own: a chain may be as long as the forward.
static void make_operands(Apply *p, NodeId i) {
    p->stack.len = 0;
    vec_push(&p->stack, i);
    while (p->stack.len > 0) {
        NodeId top = p->stack.data[p->stack.len - 1], need = first_missing(p, graph_node(p->r->g, top));
        if (need != NO_NODE) {
            vec_push(&p->stack, need);
            continue;
        }
        p->stack.len--;
        if (top != i) copy_late(p, top, true);
    }
}

Status remat_apply(const RematGraph *r, const uint8_t *choice, Graph **out, Diag *d) {
    Apply p = {.r = r, .choice = choice, .again = ARENA_ARRAY(r->a, ValueId, r->g->values.len)};
    int most = 0;
    for (int64_t i = 0; i < r->g->nodes.len; i++) {
        const Node *n = graph_node(r->g, (NodeId)i);
        most = n->nin + n->nout > most ? n->nin + n->nout : most;
    }
    p.saved = ARENA_ARRAY(r->a, ValueId, most);
    rewrite_begin(&p.w, r->g, r->a, d);
    for (int64_t v = 0; v < r->g->values.len; v++) p.again[v] = NO_VALUE;
    for (int64_t i = 0; i < r->g->nodes.len; i++) {
        const Node *n = graph_node(r->g, (NodeId)i);
        if (n->phase == PHASE_FORWARD) {
            rewrite_copy(&p.w, (NodeId)i);
            continue;
        }
        make_operands(&p, (NodeId)i);
        copy_late(&p, (NodeId)i, false);
    }
    vec_free(&p.stack);
    TRY(rewrite_finish(&p.w, out));
    Graph *less = NULL;
    Status st = remat_trim(*out, r->a, &less, d);
    if (!less) return st;
    graph_free_vecs(*out);
    *out = less;
    return st;
}
