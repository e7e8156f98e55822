// The sharded graph: every node copied with its placements, and a reshard wherever a consumer wants a value placed otherwise than
// its producer left it. A reshard is made once per value and placement and shared; across forward and backward only when the
// resharded copy is no larger than the original (the backward of gathered attention gathers again rather than hold every key).
#include "pass/shard/shard.h"

typedef struct Moved {  // one placement in which a value is available in the new graph
    struct Moved *next;
    Placement place;
    ValueId value;
    Phase phase;
} Moved;

typedef struct Insert {
    ShardState *s;
    Graph *g;      // new
    ValueId *map;  // [old values] the producer's placement
    Moved **moved; // [old values]
    NodeId *node_map;  // [old nodes]
} Insert;

static double local_nbytes(const ShardState *s, ValueId v, const Placement *p) {
    Operand o = shard_operand(s, v, p, 0);
    return operand_nbytes(&o);
}

static const Moved *find_moved(const Insert *x, ValueId v, const Placement *want, NodeId user, Phase phase) {
    for (const Moved *m = x->moved[v]; m; m = m->next) {
        if (!placement_equal(&m->place, want)) continue;
        if (user == NO_NODE || m->phase == phase || local_nbytes(x->s, v, want) <= local_nbytes(x->s, v, &x->s->place[v]) * 1.001)
            return m;
    }
    return NULL;
}

static const char *operand_word(OpKind op, int slot) {
    static const char *const attn[] = {"q", "k", "v", "o", "log-sum-exp", "d(o)"};
    if ((op == OP_ATTENTION || op == OP_ATTENTION_GRAD) && slot < (op == OP_ATTENTION ? 3 : 6)) return attn[slot];
    return op == OP_ATTENTION || op == OP_ATTENTION_GRAD ? "per-token vector" : NULL;
}

// The value is a result of attention, as it is or rearranged.
static bool comes_from_attention(const Graph *g, ValueId v) {
    for (int depth = 0; depth < 8; depth++) {
        const Node *n = graph_def(g, v);
        if (n->op == OP_ATTENTION || n->op == OP_ATTENTION_GRAD) return true;
        if (n->op != OP_RESHAPE && n->op != OP_PERMUTE && n->op != OP_CAST) return false;
        v = n->in[0];
    }
    return false;
}

// Why a collective is there, in a line that a person can check.
static const char *move_reason(const Insert *x, ValueId v, NodeId user, int slot, const Placement *want) {
    const ShardState *s = x->s;
    Arena *a = x->g->arena;
    for (int64_t i = 0; i < s->g->outputs.len; i++) {
        const Output *o = &s->g->outputs.data[i];
        if (o->kind == OUT_GRAD && o->value == v) return arena_printf(a, "gradient of %s, summed over ranks", o->name);
    }
    if (user == NO_NODE) return arena_printf(a, "an output of the step: every rank holds it whole");
    const Node *n = graph_node(s->g, user);
    const char *word = operand_word(n->op, slot);
    if (word) return arena_printf(a, "%s of attention (%s)", word, s->strategy[user] ? s->strategy[user] : "local");
    if (comes_from_attention(s->g, v))
        return arena_printf(a, "result of attention back to %s for %s", shard_place_text(s->g, want, s->c->scratch),
                            op_name(n->op));
    return arena_printf(a, "%s wants it %s", op_name(n->op), shard_place_text(s->g, want, s->c->scratch));
}

static Status make_moved(Insert *x, ValueId v, NodeId user, int slot, const Placement *want, Phase phase, const char *source,
                         ValueId *out) {
    const Moved *have = find_moved(x, v, want, user, phase);
    if (have) {
        *out = have->value;
        return ST_OK;
    }
    NodeId made = NO_NODE;
    if (shard_is_source(x->s->g, v)) {  // every rank makes its own part: no data moves
        graph_copy_node(x->s->g, graph_value(x->s->g, v)->def, x->g, x->map);
        made = (NodeId)(x->g->nodes.len - 1);
        // graph_copy_node points the map at the copy; consumers that want the original must still find it
        ValueId copy = graph_node(x->g, made)->out[0];
        x->map[v] = x->moved[v]->value;
        *out = copy;
    } else {
        TRY(graph_add(x->g, OP_RESHARD, 1, &x->map[v], 0, NULL, source, phase, &made, x->s->d));
        graph_node(x->g, made)->note = move_reason(x, v, user, slot, want);
        *out = graph_node(x->g, made)->out[0];
        graph_value(x->g, *out)->name = graph_value(x->s->g, v)->name;
    }
    graph_value(x->g, *out)->place = *want;
    Moved *m = ARENA_NEW(x->s->c->scratch, Moved);
    *m = (Moved){.next = x->moved[v]->next, .place = *want, .value = *out, .phase = phase};
    x->moved[v]->next = m;  // the producer's own placement stays first
    return ST_OK;
}

// An op that takes everything whole although an operand comes sharded: say so, with bytes; refuse beyond the device's memory.
static Status report_gathered(Insert *x, NodeId id) {
    ShardState *s = x->s;
    const Node *n = graph_node(s->g, id);
    if (n->phase == PHASE_UPDATE) return ST_OK;
    double nbytes = 0;
    for (int i = 0; i < n->nin; i++) {
        const Placement *from = &s->place[n->in[i]];
        if (s->row[id].in[i].kind != PLACE_REPLICATE) {
            if (s->row[id].in[i].kind == PLACE_SHARD) return ST_OK;
            continue;
        }
        if (from->kind == PLACE_SHARD)
            nbytes += (double)shape_numel(graph_shape(s->g, n->in[i])) * dtype_nbytes(graph_value(s->g, n->in[i])->dtype);
    }
    for (int j = 0; j < n->nout; j++)
        if (s->row[id].out[j].kind != PLACE_REPLICATE) return ST_OK;
    if (nbytes == 0) return ST_OK;
    double limit = s->c->device->mem_nbytes;
    if (limit > 0 && nbytes > limit)
        return diag_error(s->d, ST_UNSUPPORTED,
                          "%s: has no sharded form here and its %.3g GB of operands do not fit one rank (%.3g GB)",
                          node_describe(s->g, id, s->c->scratch), nbytes / 1e9, limit / 1e9);
    if (s->c->report)
        vec_push(&s->c->report->gathered, arena_printf(s->g->arena, "%s: computed whole on every rank, %.3g MB gathered",
                                                       node_describe(s->g, id, s->c->scratch), nbytes / 1e6));
    return ST_OK;
}

static Status insert_node(Insert *x, NodeId id) {
    ShardState *s = x->s;
    const Node *n = graph_node(s->g, id);
    ValueId *in = ARENA_ARRAY(s->c->scratch, ValueId, n->nin);
    ValueId *keep = ARENA_ARRAY(s->c->scratch, ValueId, n->nin);
    TRY(report_gathered(x, id));
    for (int i = 0; i < n->nin; i++) {
        in[i] = x->map[n->in[i]];
        if (!placement_equal(&s->place[n->in[i]], &s->row[id].in[i]))
            TRY(make_moved(x, n->in[i], id, i, &s->row[id].in[i], n->phase, n->source, &in[i]));
    }
    for (int i = 0; i < n->nin; i++) keep[i] = x->map[n->in[i]];
    graph_copy_node(s->g, id, x->g, x->map);
    NodeId made = (NodeId)(x->g->nodes.len - 1);
    x->node_map[id] = made;
    for (int i = 0; i < n->nin; i++) {
        graph_node(x->g, made)->in[i] = in[i];
        x->map[n->in[i]] = keep[i];
    }
    for (int j = 0; j < n->nout; j++) {
        ValueId v = x->map[n->out[j]];
        graph_value(x->g, v)->place = s->row[id].out[j];
        Moved *m = ARENA_NEW(s->c->scratch, Moved);
        *m = (Moved){.place = s->row[id].out[j], .value = v, .phase = n->phase};
        x->moved[n->out[j]] = m;
    }
    return ST_OK;
}

Status shard_insert(ShardState *s, Graph **out) {
    Graph *g = graph_new_like(s->g);
    Insert x = {.s = s, .g = g};
    x.map = ARENA_ARRAY(s->c->scratch, ValueId, s->g->values.len);
    x.moved = ARENA_ARRAY(s->c->scratch, Moved *, s->g->values.len);
    x.node_map = ARENA_ARRAY(s->c->scratch, NodeId, s->g->nodes.len);
    for (int64_t i = 0; i < s->g->values.len; i++) x.map[i] = NO_VALUE;
    for (int64_t i = 0; i < s->g->nodes.len; i++) TRY(insert_node(&x, (NodeId)i));
    for (int64_t i = 0; i < s->g->outputs.len; i++) {
        const Output *o = &s->g->outputs.data[i];
        ValueId v = x.map[o->value];
        if (s->place[o->value].kind != PLACE_REPLICATE)
            TRY(make_moved(&x, o->value, NO_NODE, 0, &REPLICATE, PHASE_BACKWARD, graph_def(s->g, o->value)->source, &v));
        graph_add_output(g, o->kind, o->param, o->slot, o->name, v);
    }
    if (s->c->report)
        for (int64_t i = 0; i < s->c->report->attention.len; i++) {
            AttentionReport *r = &s->c->report->attention.data[i];
            r->node = x.node_map[r->node];
        }
    *out = g;
    return ST_OK;
}
