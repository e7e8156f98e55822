// state: the optimizer's state in host memory.
//
//   %m = param {kind=1}                             %m = param {kind=1, host=1}
//                                                   %a = fetch(%m)                     while earlier parameters are updated
//   %q, %n, %w = adamw(%p, %g, %m, %v, ...)   ->    %b = fetch_done(%a)
//   return state 1 %n                               %q, %n, %w = adamw(%p, %g, %b, ...)
//                                                   %c = offload(%n, %m)               over what was fetched
//                                                   %d = offload_done(%n, %c)          while later parameters are updated
//                                                   return state 1 %d
//
// Both moments, and the parameter itself where nothing but its update reads it (with a copy in bf16, that is what the program reads). One
// parameter's state is fetched while another's is updated and a third's is written back, so at most WINDOW of them are on the device, and both
// directions of the link are busy.
//
// Requires: the order in which the nodes will run (schedule ran): where copies start and end is written into it. Establishes: state that
// only its update reads is host memory's; everything else is as it was.
#include "ir/build.h"
#include "ops/op.h"
#include "pass/pass.h"

enum { WINDOW = 3, SLOTS = 3 };
static const int state_operand[SLOTS] = {0, 2, 3};  // of adamw: the parameter, its moments

typedef struct Update {      // one adamw node
    NodeId node;
    bool host[SLOTS];        // which of its state is in host memory
    ValueId y0[SLOTS];       // of the new graph: being fetched
    ValueId x[SLOTS], h[SLOTS];  // of the new graph: being written back
} Update;

typedef struct StatePass {
    const Graph *in;
    Graph *out;
    Builder b;
    ValueId *map;
    bool *host;              // [values of in] a param that moves
    ValueId *kept;           // [values of in] what an output shows instead
    VEC(Update) update;
} StatePass;

static void find_updates(StatePass *s) {
    const Graph *g = s->in;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_ADAMW) continue;
        Update u = {.node = (NodeId)i};
        bool any = false;
        for (int k = 0; k < SLOTS; k++) any |= u.host[k] = s->host[n->in[state_operand[k]]];
        if (any) vec_push(&s->update, u);
    }
}

static ValueId place_as(StatePass *s, ValueId v, ValueId like) {
    if (s->b.status == ST_OK) graph_value(s->out, v)->place = graph_value(s->out, like)->place;
    return v;
}

// The new graph's node of a param in host memory.
static ValueId host_param(StatePass *s, ValueId v) {
    if (s->map[v] != NO_VALUE) return s->map[v];
    const Node *n = graph_def(s->in, v);
    Attr attr[8];
    CHECK(n->nattr < 8, "a param with %d attributes", n->nattr);
    for (int i = 0; i < n->nattr; i++) attr[i] = n->attr[i];
    attr[n->nattr] = attr_i(ATTR_HOST, 1);
    ValueId made = build(&s->b, OP_PARAM, 0, NULL, n->nattr + 1, attr);
    if (s->b.status != ST_OK) return made;
    graph_value(s->out, made)->place = graph_value(s->in, v)->place;
    graph_value(s->out, made)->name = graph_value(s->in, v)->name;
    return s->map[v] = made;
}

static void at_node(StatePass *s, const Node *n) { s->b.source = n->source, s->b.phase = PHASE_UPDATE; }

static void fetch_state(StatePass *s, int64_t i) {
    if (i >= s->update.len) return;
    Update *u = &s->update.data[i];
    const Node *n = graph_node(s->in, u->node);
    at_node(s, n);
    for (int k = 0; k < SLOTS; k++) {
        if (!u->host[k]) continue;
        ValueId from = host_param(s, n->in[state_operand[k]]);
        if (s->b.status == ST_OK) u->y0[k] = place_as(s, build(&s->b, OP_FETCH, 1, &from, 0, NULL), from);
    }
}

static void write_back_done(StatePass *s, int64_t i) {
    if (i < 0) return;
    Update *u = &s->update.data[i];
    const Node *n = graph_node(s->in, u->node);
    at_node(s, n);
    for (int k = 0; k < SLOTS; k++)
        if (u->host[k])
            s->kept[n->out[k]] = place_as(s, build(&s->b, OP_OFFLOAD_DONE, 2, (ValueId[]){u->x[k], u->h[k]}, 0, NULL), u->x[k]);
}

static void run_update(StatePass *s, int64_t i) {
    Update *u = &s->update.data[i];
    const Node *n = graph_node(s->in, u->node);
    ValueId state[SLOTS];
    at_node(s, n);
    for (int k = 0; k < SLOTS; k++) {
        ValueId v = n->in[state_operand[k]];
        state[k] = s->map[v];
        if (u->host[k]) s->map[v] = place_as(s, build(&s->b, OP_FETCH_DONE, 1, &u->y0[k], 0, NULL), state[k]);
    }
    if (s->b.status != ST_OK) return;
    graph_copy_node(s->in, u->node, s->out, s->map);
    for (int k = 0; k < SLOTS; k++) {
        s->map[n->in[state_operand[k]]] = state[k];
        if (!u->host[k]) continue;
        u->x[k] = s->map[n->out[k]];
        u->h[k] = place_as(s, build(&s->b, OP_OFFLOAD, 2, (ValueId[]){u->x[k], state[k]}, 0, NULL), u->x[k]);
    }
}

// The first state is fetched once the backward's values are gone: with clipping, while the gradients' norm is found.
static NodeId first_of_update(const StatePass *s) {
    NodeId begin = s->update.data[0].node;
    while (begin > 0 && graph_node(s->in, begin - 1)->phase == PHASE_UPDATE) begin--;
    return begin;
}

static void write_nodes(StatePass *s) {
    const Graph *g = s->in;
    NodeId begin = first_of_update(s);
    int64_t next = 0;
    for (NodeId i = 0; i < g->nodes.len && s->b.status == ST_OK; i++) {
        const Node *n = graph_node(g, i);
        if (i == begin)
            for (int k = 0; k < WINDOW - 1; k++) fetch_state(s, k);
        if (n->op == OP_PARAM && s->host[n->out[0]]) continue;  // made where it is fetched first
        if (next == s->update.len || s->update.data[next].node != i) {
            graph_copy_node(g, i, s->out, s->map);
            continue;
        }
        run_update(s, next);
        write_back_done(s, next - 1);
        fetch_state(s, next + WINDOW - 1);
        next++;
    }
    if (s->b.status == ST_OK) write_back_done(s, s->update.len - 1);
}

Status pass_state(PassContext *c, Graph *in, Graph **out, Diag *d) {
    StatePass s = {.in = in, .b = {.d = d}};
    s.host = ARENA_ARRAY(c->scratch, bool, in->values.len + 1);
    s.map = ARENA_ARRAY(c->scratch, ValueId, in->values.len + 1);
    s.kept = ARENA_ARRAY(c->scratch, ValueId, in->values.len + 1);
    for (int64_t v = 0; v < in->values.len; v++) s.map[v] = s.kept[v] = NO_VALUE;
    plan_host_state(in, c->scratch, s.host);
    find_updates(&s);
    *out = in;
    if (s.update.len == 0) return ST_OK;
    *out = s.out = s.b.g = graph_new_like(in);
    write_nodes(&s);
    for (int64_t i = 0; i < in->outputs.len && s.b.status == ST_OK; i++) {
        Output o = in->outputs.data[i];
        bool kept = o.kind == OUT_STATE && s.kept[o.value] != NO_VALUE;
        graph_add_output(s.out, o.kind, o.param, o.slot, o.name, kept ? s.kept[o.value] : s.map[o.value]);
    }
    vec_free(&s.update);
    return s.b.status;
}
