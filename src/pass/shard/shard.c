// shard: a placement for every value, and reshards between them.
//
//   %9 = attention(%q, %k, %v)           %40 = reshard(%q) : f32[1,8,64,8] shard(1, @heads)    // all-to-all: q of attention
//                                                                                              // (head)
//   %10 = add(%x, %9)              ->    ...
//                                        %43 = attention(%40, %41, %42) : ... shard(1, @heads)
//                                        %44 = reshard(%43) : ... shard(2, @seq)               // all-to-all: result of attention
//                                                                                              // back
//                                        %10 = add(%x, %44) : ... shard(1, @seq)
//
// Requires: no sdpa; gradients and the optimizer are in the graph. Establishes: every value has a placement; every node's
// operands and results form a legal row of its op's sharding rule; the loss, gradients and state are replicated. Propagation is
// total: a node for which nothing better exists is computed whole on every rank, and the report says so.
#include "pass/shard/shard.h"

const char *attention_choice_name(AttentionChoice c) {
    static const char *const name[] = {"auto", "head", "gather-kv"};
    return name[c];
}

// Whether some other size of the program, of a parameter or an attention head, equals the sequence length: then a length says
// nothing about what a dim is (and at such lengths S x S does not matter either).
static bool length_is_ambiguous(const Graph *g) {
    for (int64_t p = 0; p < g->params.len; p++)
        for (int k = 0; k < g->params.data[p].shape.ndim; k++)
            if (g->params.data[p].shape.dim[k] == g->seq) return true;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; n->op == OP_ATTENTION && k < 3; k++)
            for (int j = 0; j < 4; j++)
                if (j != 2 && graph_shape(g, n->in[k])->dim[j] == g->seq) return true;
    }
    return g->batch == g->seq;
}

// A value with two dims as long as the sequence is an S x S tensor.
static bool is_square(const Graph *g, const Value *v) {
    int n = 0;
    for (int k = 0; k < v->shape.ndim; k++) n += v->shape.dim[k] == g->seq;
    return n >= 2;
}

static Status report_squares(ShardState *s) {
    if (length_is_ambiguous(s->g)) return ST_OK;
    for (int64_t i = 0; i < s->g->values.len; i++) {
        const Value *v = graph_value(s->g, (ValueId)i);
        if (!is_square(s->g, v)) continue;
        Operand o = shard_operand(s, (ValueId)i, &s->place[i], 0);
        double nbytes = operand_nbytes(&o);
        const char *name = node_describe(s->g, v->def, s->c->scratch);
        if (s->c->square_limit_nbytes > 0 && nbytes > s->c->square_limit_nbytes)
            return diag_error(s->d, ST_UNSUPPORTED,
                              "%s: its mask or scores are no function of indices and per-token vectors, so that %.3g GB of S x S "
                              "values would be "
                              "held per rank (limit %.3g GB); use more ranks, a shorter sequence, or a mask built from positions",
                              name, nbytes / 1e9, s->c->square_limit_nbytes / 1e9);
        if (s->c->report)
            vec_push(&s->c->report->square, arena_printf(s->g->arena, "%s: stays an S x S tensor, %.3g MB per rank, %s", name,
                                                         nbytes / 1e6, shard_place_text(s->g, &s->place[i], s->c->scratch)));
    }
    return ST_OK;
}

Status pass_shard(PassContext *c, Graph *in, Graph **out, Diag *d) {
    CHECK(graph_nranks(in) == c->nranks, "graph for %d ranks, pass for %d", graph_nranks(in), c->nranks);
    ShardState s = {.c = c, .g = in, .d = d};
    s.row = ARENA_ARRAY(c->scratch, Row, in->nodes.len);
    s.place = ARENA_ARRAY(c->scratch, Placement, in->values.len);
    s.strategy = ARENA_ARRAY(c->scratch, const char *, in->nodes.len);
    Uses uses = uses_collect(in, c->scratch);
    s.first_use = uses.first;
    s.use = uses.use;
    TRY(shard_settle_strategies(&s));
    TRY(shard_choose(&s));
    TRY(report_squares(&s));
    return shard_insert(&s, out);
}
