// What to keep, as a minimum cut.
//
// The backward needs some values of the forward. A needed value is kept (its bytes at a price) or computed again (its node's seconds),
// and then the node's operands are needed too. With a_v "v is needed" and b_n "node n runs again", both meaning "on the source's side":
//
//   source -> a_v  infinite            v is read by the backward
//   a_v -> b_n     price * bytes(v)    needed, but its node does not run again: kept
//   b_n -> sink    seconds(n)          runs again
//   b_n -> a_u     infinite            u is an operand of n: running n again needs u
//
// so the least cut is the cheapest choice. It is the selection problem of min-cut rematerialisation (as in PyTorch's partitioner), with
// seconds and bytes on both sides instead of bytes alone.
#include "pass/mincut.h"
#include "pass/remat.h"

enum { SOURCE, SINK, FIRST };

static int64_t scaled(double seconds) {  // capacities in picoseconds: a day is 1e17
    double x = seconds * 1e12;
    return x < 1 ? 1 : x > 1e17 ? (int64_t)1e17 : (int64_t)x;
}

static void add_node(MinCut *m, const RematGraph *r, const int32_t *need, int32_t again, NodeId i, double price) {
    const Node *n = graph_node(r->g, i);
    for (int k = 0; k < n->nout; k++) {
        ValueId v = n->out[k];
        if (need[v] < 0) continue;
        if (r->needed[v]) mincut_add(m, SOURCE, need[v], MINCUT_INFINITE);
        mincut_add(m, need[v], again, scaled(price * (double)r->nbytes[v]));
    }
    mincut_add(m, again, SINK, scaled(r->seconds[i]));
    for (int k = 0; k < n->nin; k++)
        if (need[r->root[n->in[k]]] >= 0) mincut_add(m, again, need[r->root[n->in[k]]], MINCUT_INFINITE);
}

void remat_cut(const RematGraph *r, double price, uint8_t *choice, double *kept, double *seconds) {
    const Graph *g = r->g;
    Arena *a = arena_new();
    CHECK(a != NULL, "out of memory");
    int32_t *need = ARENA_ARRAY(a, int32_t, g->values.len), *again = ARENA_ARRAY(a, int32_t, g->nodes.len), count = FIRST;
    for (int64_t v = 0; v < g->values.len; v++) need[v] = r->forward[v] ? count++ : -1;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        again[i] = -1;
        if (graph_node(g, (NodeId)i)->nout > 0 && r->forward[graph_node(g, (NodeId)i)->out[0]]) again[i] = count++;
    }
    MinCut m;
    mincut_begin(&m, count, a);
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (again[i] >= 0) add_node(&m, r, need, again[i], (NodeId)i, price);
    bool *side = ARENA_ARRAY(a, bool, count);
    mincut_solve(&m, SOURCE, SINK, side);
    for (int64_t v = 0; v < g->values.len; v++) {
        NodeId def = graph_value(g, r->root[v])->def;
        choice[v] = again[def] >= 0 && side[again[def]] ? CHOICE_AGAIN : CHOICE_KEEP;
    }
    mincut_free(&m);
    arena_free(a);
    remat_cost(r, choice, kept, seconds);
}

void remat_cost(const RematGraph *r, const uint8_t *choice, double *kept, double *seconds) {
    const Graph *g = r->g;
    bool *need = calloc((size_t)g->values.len + 1, sizeof *need);
    CHECK(need != NULL, "out of memory");
    *kept = *seconds = 0;
    for (int64_t v = 0; v < g->values.len; v++) need[v] = r->needed[v];
    for (int64_t i = g->nodes.len; i-- > 0;) {  // readers come after what they read
        const Node *n = graph_node(g, (NodeId)i);
        bool runs = false;
        for (int k = 0; k < n->nout; k++) {
            ValueId v = n->out[k];
            if (!r->forward[v] || !need[v]) continue;
            if (choice[v] == CHOICE_KEEP) *kept += (double)r->nbytes[v];
            else runs = true;
        }
        if (!runs) continue;
        *seconds += r->seconds[i];
        for (int k = 0; k < n->nin; k++) need[r->root[n->in[k]]] = true;
    }
    free(need);
}

// ---- by hand -----------------------------------------------------------------------------------------------------------------
// live[i]: bytes of the forward's values that nodes from i on read, before node i runs.
static void forward_live(const RematGraph *r, int64_t *last, double *live) {
    const Graph *g = r->g;
    for (int64_t v = 0; v < g->values.len; v++) last[v] = -1;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && n->phase == PHASE_FORWARD; k++) last[r->root[n->in[k]]] = i;
    }
    for (int64_t v = 0; v < g->values.len; v++) {
        int64_t def = graph_value(g, (ValueId)v)->def;
        if (!r->forward[v] || last[v] <= def) continue;
        live[def + 1] += (double)r->nbytes[v];
        live[last[v] + 1] -= (double)r->nbytes[v];
    }
    for (int64_t i = 0; i < g->nodes.len; i++) live[i + 1] += live[i];
}

// Where the residual stream alone is alive: the narrowest place from node `from` on and before node `end`, the last of equals; -1 none.
static int64_t narrowest(const RematGraph *r, const double *live, int64_t from, int64_t end, bool first) {
    int64_t best = -1;
    for (int64_t k = from; k <= end && k < r->g->nodes.len; k++) {
        if (graph_node(r->g, (NodeId)k)->phase != PHASE_FORWARD || (first && live[k] == 0)) continue;
        if (best < 0 || live[k] <= live[best]) best = k;
    }
    return best;
}

// The first node from `from` on whose results are the step's own (output layer with loss): no part of a layer.
static int64_t find_result(const RematGraph *r, int64_t from) {
    const Graph *g = r->g;
    for (int64_t i = from; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->phase == PHASE_FORWARD && n->nout > 0 && r->root[n->out[0]] == n->out[0] && !r->forward[n->out[0]] && n->nin > 0) return i;
    }
    return g->nodes.len;
}

// The narrowest place between two attentions is a layer's start. After the last attention the layer ends before the loss.
void remat_layers(const RematGraph *r, uint8_t *choice) {
    const Graph *g = r->g;
    int64_t *last = ARENA_ARRAY(r->a, int64_t, g->values.len), from = 0;
    double *live = ARENA_ARRAY(r->a, double, g->nodes.len + 2);
    bool *keep = ARENA_ARRAY(r->a, bool, g->values.len);
    forward_live(r, last, live);
    bool first = true;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_ATTENTION || n->phase != PHASE_FORWARD) continue;
        int64_t best = narrowest(r, live, from, i, first);
        for (int64_t v = 0; v < g->values.len && best >= 0; v++)
            keep[v] |= r->forward[v] && graph_value(g, (ValueId)v)->def < best && last[v] >= best;
        from = i + 1;
        first = false;
    }
    int64_t end = narrowest(r, live, from, find_result(r, from), first);
    for (int64_t v = 0; v < g->values.len; v++) {
        ValueId root = r->root[v];
        bool after = end >= 0 && graph_value(g, root)->def >= end;
        choice[v] = keep[root] || !r->forward[root] || after ? CHOICE_KEEP : CHOICE_AGAIN;
    }
}
