// head_join: head_fwd and its head_grad become one node, which makes the logits once instead of twice.
//
//   %9, %10 = head_fwd(%h, %w, %idx)                        %20 = where(%valid, ...)        (forward now)
//   ... loss of %9, %10                                 ->  %21, %22, %23, %24 = head(%h, %w, %idx, %20, %21)
//   %20 = where(%valid, ...)                                ... loss of %21, %22
//   %23, %24 = head_grad(%h, %w, %idx, %9, %20, %21)
//
// Where the cotangents depend on the forward's results (a z-loss, the loss of a loss) both stay, and the backward makes the
// logits again.
//
// Requires: grad ran, canonical form.
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

typedef struct Pair {
    NodeId fwd, grad;
} Pair;

static bool same_head(const Node *f, const Node *g) {
    return f->op == OP_HEAD_FWD && g->op == OP_HEAD_GRAD && f->in[0] == g->in[0] && f->in[1] == g->in[1] &&
           f->in[2] == g->in[2] && g->in[3] == f->out[0] && attrs_equal(f, g);
}

// The cotangents glse and gpick are to be had before lse and pick are.
static bool independent(const Graph *g, const Pair *p, Arena *scratch) {
    bool *dep = ARENA_ARRAY(scratch, bool, g->values.len);
    for (NodeId i = p->fwd; i < p->grad; i++) {
        const Node *n = graph_node(g, i);
        bool any = i == p->fwd;
        for (int k = 0; k < n->nin; k++) any = any || dep[n->in[k]];
        for (int j = 0; j < n->nout; j++) dep[n->out[j]] = any;
    }
    const Node *n = graph_node(g, p->grad);
    return !dep[n->in[4]] && !dep[n->in[5]];
}

static bool find_pair(const Graph *g, Pair *p, Arena *scratch) {
    for (NodeId i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, i);
        if (n->op != OP_HEAD_GRAD) continue;
        *p = (Pair){graph_value(g, n->in[3])->def, i};
        if (same_head(graph_node(g, p->fwd), n) && independent(g, p, scratch)) return true;
    }
    return false;
}

static void emit_joint(Rewrite *r, const Pair *p) {
    const Node *f = graph_node(r->in, p->fwd), *g = graph_node(r->in, p->grad);
    int64_t first = r->out->nodes.len;
    rewrite_before(r, g->in[4]);
    rewrite_before(r, g->in[5]);
    for (int64_t i = first; i < r->out->nodes.len; i++) r->out->nodes.data[i].phase = PHASE_FORWARD;  // the loss needs them now
    rewrite_at(r, p->fwd);
    ValueId in[] = {r->map[g->in[0]], r->map[g->in[1]], r->map[g->in[2]], r->map[g->in[4]], r->map[g->in[5]]}, out[4];
    build_multi(&r->b, OP_HEAD, 5, in, f->nattr, f->attr, 4, out);
    for (int j = 0; j < 2; j++) r->map[f->out[j]] = out[j], r->map[g->out[j]] = out[2 + j];
}

static Status join(PassContext *c, const Graph *in, const Pair *p, Graph **out, Diag *d) {
    Rewrite r;
    rewrite_begin(&r, in, c->scratch, d);
    for (NodeId i = 0; i < in->nodes.len && r.b.status == ST_OK; i++) {
        if (i == p->fwd) emit_joint(&r, p);
        else if (r.map[graph_node(in, i)->out[0]] == NO_VALUE) rewrite_copy(&r, i);
    }
    return rewrite_finish(&r, out);
}

Status pass_head_join(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Graph *g = in;
    Pair p;
    while (find_pair(g, &p, c->scratch)) {
        Graph *next = NULL;
        Status st = join(c, g, &p, &next, d);
        if (g != in) graph_free_vecs(g);
        TRY(st);
        g = next;
    }
    *out = g;
    return ST_OK;
}
