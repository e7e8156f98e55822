// remat: keep or compute again, for every value of the forward that the backward reads (docs/memory.md).
//
//   --remat none     everything is kept
//   --remat layer    each layer's input is kept, the rest computed again: what people write by hand
//   --remat auto     the fastest of many candidates whose live bytes fit the budget, see remat_search.c
//
// Requires: kernels (after fuse and narrow), forward before backward in the order of nodes. Establishes: the same values; nodes of phase
// recompute; how large chunks and what is to be offloaded in MemoryChoice.
#include "pass/remat.h"
#include "ops/op.h"
#include "pass/remat_search.h"

const char *remat_mode_name(RematMode m) {
    static const char *const name[] = {"none", "layer", "auto"};
    return (unsigned)m <= REMAT_AUTO ? name[m] : "?";
}

static bool is_state(OpKind op) { return op == OP_PARAM || op == OP_INPUT || op == OP_CONSTANT; }
static bool is_view(const Node *n) { return (op_flags(n->op) & OPF_VIEW) || n->op == OP_STOP_GRAD; }

// What the step is for, loss or gradient, is made once, and nothing else of its node is worth a second run: for instance the output layer
// with its loss makes gradients of both operands in the forward.
static void leave_results(RematGraph *r) {
    const Graph *g = r->g;
    bool *result = ARENA_ARRAY(r->a, bool, g->values.len);
    for (int64_t i = 0; i < g->outputs.len; i++) result[r->root[g->outputs.data[i].value]] = true;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && n->phase == PHASE_UPDATE; k++) result[r->root[n->in[k]]] = true;
    }
    for (int64_t i = g->nodes.len - 1; i >= 0; i--) {  // a sum's result is made of its terms
        const Node *n = graph_node(g, (NodeId)i);
        int addend = op_addend(n->op);
        if (n->phase == PHASE_FORWARD || n->nout == 0 || !result[r->root[n->out[0]]]) continue;
        for (int k = 0; k < n->nin; k++)
            if (k == addend || n->op == OP_ADD) result[r->root[n->in[k]]] = true;
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool any = false;
        for (int k = 0; k < n->nout; k++) any |= result[n->out[k]];
        for (int k = 0; k < n->nout && any; k++) r->forward[n->out[k]] = false;
    }
}

static void find_choices(RematGraph *r) {
    const Graph *g = r->g;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nout; k++) {
            r->root[n->out[k]] = is_view(n) ? r->root[n->in[0]] : n->out[k];
            r->forward[n->out[k]] = n->phase == PHASE_FORWARD && !is_state(n->op) && !is_view(n);
        }
    }
    leave_results(r);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && n->phase != PHASE_FORWARD; k++)
            if (r->forward[r->root[n->in[k]]]) r->needed[r->root[n->in[k]]] = true;
    }
    for (int64_t v = 0; v < g->values.len; v++) r->nchoice += r->needed[v];
}

Status remat_analyse(RematGraph *r, const Graph *g, const PlanOptions *o, Arena *a, Diag *d) {
    *r = (RematGraph){.g = g, .a = a};
    r->root = ARENA_ARRAY(a, ValueId, g->values.len);
    r->forward = ARENA_ARRAY(a, bool, g->values.len);
    r->needed = ARENA_ARRAY(a, bool, g->values.len);
    r->nbytes = ARENA_ARRAY(a, int64_t, g->values.len);
    r->seconds = ARENA_ARRAY(a, double, g->nodes.len);
    find_choices(r);
    int rank = plan_fullest_rank(g);
    RankPlan p;
    TRY(plan_sketch(a, g, o, rank, NULL, &p, d));
    for (int i = 0; i < p.nstep; i++) r->seconds[p.step[i].node] += p.step[i].seconds;
    for (int64_t v = 0; v < g->values.len; v++) {
        Operand x = plan_operand(a, g, (ValueId)v, rank);
        r->nbytes[v] = round_up((int64_t)operand_nbytes(&x), BUFFER_ALIGN);
    }
    return ST_OK;
}

static void describe(const RematGraph *r, const RematTrial *t, MemoryChoice *c) {
    *c = (MemoryChoice){.tile_rows = t->rows, .nneeded = r->nchoice, .noffload = t->noffload, .offload_nbytes = t->offload_nbytes,
                        .seconds = t->seconds, .peak_nbytes = t->peak_nbytes, .host_peak_nbytes = t->host_peak_nbytes, .ntrial = t->ntrial};
    remat_cost(r, t->choice, &c->kept_nbytes, &c->again_seconds);
    for (int64_t v = 0; v < r->g->values.len; v++) {
        if (!r->needed[v]) continue;
        c->needed_nbytes += (double)r->nbytes[v];
        c->nagain += t->choice[v] == CHOICE_AGAIN;
    }
}

Status pass_remat(PassContext *c, Graph *in, Graph **out, Diag *d) {
    RematGraph r;
    RematTrial best = {.rows = c->memory.tile_rows == TILE_AUTO ? 0 : c->memory.tile_rows};
    *out = in;
    bool fixed = c->memory.remat == REMAT_NONE && c->memory.tile_rows != TILE_AUTO && !c->memory.offload;
    bool limited = c->memory.budget_nbytes > 0;  // without a limit the fastest is to keep all
    if (fixed || (!limited && c->memory.remat != REMAT_LAYER)) {
        *c->choice = (MemoryChoice){.tile_rows = c->tile.rows = best.rows};
        return ST_OK;
    }
    TRY(remat_analyse(&r, in, c->plan, c->scratch, d));
    best.choice = ARENA_ARRAY(c->scratch, uint8_t, in->values.len);
    TRY(remat_search(&r, c->plan, &c->memory, c->tile.align, &best, d));
    describe(&r, &best, c->choice);
    c->tile.rows = best.rows;
    return remat_apply(&r, best.choice, out, d);
}
