// The strategy of each attention: the forward and the backward node together, each possible row priced with operands that come in
// sharded along the sequence and results that must go out so. The cheapest wins unless the user forces one.
#include "pass/shard/shard.h"

typedef struct Price {
    double seconds, sent;
    bool legal;
} Price;

static NodeId find_grad(const ShardState *s, NodeId fwd) {
    ValueId o = graph_node(s->g, fwd)->out[0];
    for (int32_t u = s->first_use[o]; u < s->first_use[o + 1]; u++) {
        NodeId n = s->use[u].node;
        if (n != NO_NODE && graph_node(s->g, n)->op == OP_ATTENTION_GRAD && s->use[u].slot == 3) return n;
    }
    return NO_NODE;
}

static bool find_row(ShardState *s, NodeId id, const char *strategy, Row *row) {
    const Node *n = graph_node(s->g, id);
    row->in = ARENA_ARRAY(s->c->scratch, Placement, n->nin);
    row->out = ARENA_ARRAY(s->c->scratch, Placement, n->nout);
    const OpInfo *info = op_info(n->op);
    for (int k = 0; k < info->extra_rows(s->g, n, k, row); k++)
        if (row->strategy && !strcmp(row->strategy, strategy)) return true;
    if (strcmp(strategy, "batch")) return false;
    int64_t batch = graph_shape(s->g, n->in[0])->dim[0];
    Placement p = shard_on(0, layouts_even(s->g->layouts, batch));
    return batch >= s->c->nranks && info->shard(s->g, n, 0, p, row) && row->strategy && !strcmp(row->strategy, strategy);
}

// Sequence-sharded where the value has a sequence dim (dim 2), else replicated.
static Placement natural(const ShardState *s, ValueId v) {
    const Shape *shape = graph_shape(s->g, v);
    return shape->ndim >= 3 && shape->dim[2] > 1 ? shard_on(2, layouts_even(s->g->layouts, shape->dim[2])) : REPLICATE;
}

static void add_move(const ShardState *s, ValueId v, const Placement *from, const Placement *to, Price *p) {
    double sent = 0;
    p->seconds += shard_move_seconds(s, v, from, to, &sent);
    p->sent += sent;
}

static Price price_strategy(ShardState *s, NodeId fwd, NodeId bwd, const char *strategy) {
    Price p = {0};
    Row row = {0}, grad = {0};
    if (!find_row(s, fwd, strategy, &row) || (bwd != NO_NODE && !find_row(s, bwd, strategy, &grad))) return p;
    p.legal = true;
    const Node *n = graph_node(s->g, fwd);
    p.seconds = shard_node_seconds(s, fwd, &row);
    for (int i = 0; i < n->nin; i++) {
        Placement from = natural(s, n->in[i]);
        add_move(s, n->in[i], &from, &row.in[i], &p);
    }
    Placement to = natural(s, n->out[0]);
    add_move(s, n->out[0], &row.out[0], &to, &p);
    if (bwd == NO_NODE) return p;
    n = graph_node(s->g, bwd);
    p.seconds += shard_node_seconds(s, bwd, &grad);
    for (int i = 0; i < n->nin; i++) {
        Placement from = natural(s, n->in[i]);
        bool kept = i < 5 && grad.in[i].kind == PLACE_SHARD;  // q, k, v, o, lse as the forward had them, unless that is larger
        if (!kept) add_move(s, n->in[i], &from, &grad.in[i], &p);
    }
    for (int j = 0; j < n->nout; j++) {
        to = natural(s, n->out[j]);
        add_move(s, n->out[j], &grad.out[j], &to, &p);
    }
    return p;
}

// The strategy that a saved plan or the user demands for attention `index`, or NULL.
static const char *demanded(const ShardState *s, int index) {
    if (s->c->strategies) return index < s->c->nstrategies ? s->c->strategies[index] : NULL;
    return s->c->attention == ATTN_AUTO ? NULL : attention_choice_name(s->c->attention);
}

static Status settle_one(ShardState *s, NodeId fwd, int index) {
    static const char *const names[] = {"head", "gather-kv", "batch"};
    const Node *n = graph_node(s->g, fwd);
    NodeId bwd = find_grad(s, fwd);
    AttentionReport r = {.node = fwd, .source = n->source, .mask = "full", .strategy = "local"};
    const Program *prog = node_prog(n, ATTR_PROG);
    if (prog) r.mask = mask_in_words(prog, s->g->arena);
    const char *must = demanded(s, index);
    int best = -1;
    Price price[3] = {0};
    for (int i = 0; i < 3 && s->c->nranks > 1; i++) {
        price[i] = price_strategy(s, fwd, bwd, names[i]);
        r.alt[i].strategy = names[i];
        r.alt[i].legal = price[i].legal;
        r.alt[i].seconds = price[i].seconds;
        r.alt[i].nbytes_sent = price[i].sent;
        bool allowed = !must || !strcmp(names[i], must);
        if (price[i].legal && allowed && (best < 0 || price[i].seconds < price[best].seconds)) best = i;
    }
    if (s->c->nranks > 1) {
        r.nalt = 3;
        if (best < 0)
            return diag_error(s->d, ST_UNSUPPORTED, "%s: attention strategy \"%s\"%s is not possible here; %s",
                              node_describe(s->g, fwd, s->c->scratch), must ? must : "auto",
                              s->c->strategies ? " (of the saved decisions)" : "",
                              s->c->strategies ? "make them anew with plan --save at this batch and number of ranks"
                                               : "leave --attention to auto");
        r.strategy = names[best];
        r.seconds = price[best].seconds;
        r.nbytes_sent = price[best].sent;
        s->strategy[fwd] = names[best];
        if (bwd != NO_NODE) s->strategy[bwd] = names[best];
    }
    if (s->c->report) vec_push(&s->c->report->attention, r);
    return ST_OK;
}

Status shard_settle_strategies(ShardState *s) {
    int index = 0;
    for (int64_t i = 0; i < s->g->nodes.len; i++)
        if (graph_node(s->g, (NodeId)i)->op == OP_ATTENTION) TRY(settle_one(s, (NodeId)i, index++));
    if (s->c->strategies && index != s->c->nstrategies)
        return diag_error(s->d, ST_INPUT, "the saved decisions are for %d attentions, this program has %d", s->c->nstrategies,
                          index);
    return ST_OK;
}
