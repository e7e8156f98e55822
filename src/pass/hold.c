// hold: the choices of a mixture's router, shown or held fixed.
//
//   %5, %6 = topk(%4) {dim=1, k=2}    show ->    return aux "routing.0" %6
//                                     hold ->    %6 = input "routing.0"; %5 = gather(%4, %6) {dim=1}
//
// A rounding can flip a close choice of experts, and the loss jumps: no measure of how well low precision computes. `check
// --hold-routing` shows the choices of a float32 run and holds them in the run that is checked.
//
// Requires: a forward graph. Establishes: with ROUTING_SHOW an aux output, with ROUTING_HOLD an i64 input "routing.N" for every
// topk.
#include "pass/pass.h"
#include "pass/rewrite.h"

static void show(Rewrite *r, const Node *n, int index) {
    graph_add_output(r->out, OUT_AUX, -1, 0, arena_printf(r->out->arena, "routing.%d", index), r->map[n->out[1]]);
}

static void hold(Rewrite *r, NodeId id, const Node *n, int index) {
    rewrite_at(r, id);
    const char *name = arena_printf(r->out->arena, "routing.%d", index);
    Input in = {.name = name,
                .role = ROLE_OTHER,
                .shape = *graph_shape(r->in, n->out[1]),
                .dtype = DT_I64,
                .seq_dim = -1,
                .batch_dim = -1};
    vec_push(&r->out->inputs, in);
    ValueId choice = build(&r->b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, r->out->inputs.len - 1)});
    ValueId x[2] = {r->map[n->in[0]], choice};
    r->map[n->out[0]] = build(&r->b, OP_GATHER, 2, x, 1, (Attr[]){attr_i(ATTR_DIM, node_int(n, ATTR_DIM))});
    r->map[n->out[1]] = choice;
}

Status pass_hold(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Rewrite r;
    rewrite_begin(&r, in, c->scratch, d);
    int index = 0;
    for (int64_t i = 0; i < in->nodes.len && r.b.status == ST_OK; i++) {
        const Node *n = graph_node(in, (NodeId)i);
        if (n->op == OP_TOPK && c->routing == ROUTING_HOLD) {
            hold(&r, (NodeId)i, n, index++);
            continue;
        }
        rewrite_copy(&r, (NodeId)i);
        if (n->op == OP_TOPK && c->routing == ROUTING_SHOW) show(&r, n, index++);
    }
    return rewrite_finish(&r, out);
}
