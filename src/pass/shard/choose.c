// Choosing a row for every node. A forward sweep takes, node by node, the cheapest row given where the operands are; then sweeps
// against and along the data flow reconsider the nodes next to a reshard, now knowing what consumers want, until nothing gets
// cheaper. Every change lowers the total predicted time, so this ends; the sweeps let placements sink through chains of cheap ops
// (position tables are built sharded because attention wants them so) and undo what greed got wrong (a partial sum that would
// have to be reduced in full later).
#include "pass/shard/shard.h"

// ---- placements seen by shape ------------------------------------------------------------------------------------------------
// A cotangent is best placed as the value it belongs to, and all hidden states alike; yet when a node is first looked at, neither
// its operands nor its undecided consumers may suggest that. So every shard placement once chosen is offered to later values of
// the same shape: without it, say, the three dots that give d(hidden) from head-sharded dq, dk, dv would all leave partial sums,
// and no single change afterwards would be an improvement.

enum { SEEN_SLOTS = 1024, SEEN_PLACES = 4 };
typedef struct SeenTable {
    struct {
        Shape shape;
        int n;
        Placement place[SEEN_PLACES];
    } slot[SEEN_SLOTS];
} SeenTable;

// The slot of a shape, or NULL when the table is full (then there are just fewer suggestions).
static int seen_slot(const SeenTable *t, const Shape *shape) {
    uint64_t h = hash_bytes((uint64_t)shape->ndim, shape->dim, sizeof(int64_t) * (size_t)shape->ndim);
    for (int probe = 0; probe < 16; probe++) {
        int i = (int)((h + (uint64_t)probe) % SEEN_SLOTS);
        if (t->slot[i].n == 0 || shape_equal(&t->slot[i].shape, shape)) return i;
    }
    return -1;
}

static void seen_add(ShardState *s, ValueId v, const Placement *p) {
    const Shape *shape = graph_shape(s->g, v);
    if (p->kind != PLACE_SHARD || p->reduce || layouts_get(s->g->layouts, p->layout)->overlap) return;
    int i = seen_slot(s->seen, shape);
    if (i < 0 || s->seen->slot[i].n == SEEN_PLACES) return;
    for (int k = 0; k < s->seen->slot[i].n; k++)
        if (placement_equal(&s->seen->slot[i].place[k], p)) return;
    s->seen->slot[i].shape = *shape;
    s->seen->slot[i].place[s->seen->slot[i].n++] = *p;
}

static void row_copy(ShardState *s, NodeId id, const Row *row) {
    const Node *n = graph_node(s->g, id);
    Row *to = &s->row[id];
    if (!to->in) {
        to->in = ARENA_ARRAY(s->c->scratch, Placement, n->nin);
        to->out = ARENA_ARRAY(s->c->scratch, Placement, n->nout);
    }
    memcpy(to->in, row->in, sizeof(Placement) * (size_t)n->nin);
    memcpy(to->out, row->out, sizeof(Placement) * (size_t)n->nout);
    to->strategy = row->strategy;
    for (int j = 0; j < n->nout; j++) {
        s->place[n->out[j]] = to->out[j];
        seen_add(s, n->out[j], &to->out[j]);
    }
}

static bool row_equal(const Node *n, const Row *a, const Row *b) {
    for (int i = 0; i < n->nin; i++)
        if (!placement_equal(&a->in[i], &b->in[i])) return false;
    for (int j = 0; j < n->nout; j++)
        if (!placement_equal(&a->out[j], &b->out[j])) return false;
    return true;
}

static void buf_reserve(ShardState *s, const Node *n) {
    int64_t need = n->nin + n->nout;
    if (s->buf_slots >= need) return;
    s->buf_slots = need + 16;
    s->buf = ARENA_ARRAY(s->c->scratch, Row, MAX_CANDIDATES);
    for (int i = 0; i < MAX_CANDIDATES; i++) s->buf[i].in = ARENA_ARRAY(s->c->scratch, Placement, s->buf_slots);
}

static Row *buf_row(ShardState *s, const Node *n, int i) {
    Row *r = &s->buf[i];
    r->out = r->in + n->nin;
    r->strategy = NULL;
    return r;
}

// Keeps candidate `count` if it is new and fits the settled attention strategy.
static int keep_candidate(ShardState *s, NodeId id, int count) {
    const Node *n = graph_node(s->g, id);
    const char *want = s->strategy[id];
    if (want && (!s->buf[count].strategy || strcmp(want, s->buf[count].strategy))) return count;
    for (int i = 0; i < count; i++)
        if (row_equal(n, &s->buf[i], &s->buf[count])) return count;
    return count + 1;
}

static int add_from_slot(ShardState *s, NodeId id, int slot, const Placement *p, int count) {
    const Node *n = graph_node(s->g, id);
    if (p->kind != PLACE_SHARD && p->kind != PLACE_PARTIAL) return count;
    if (p->kind == PLACE_SHARD && (p->reduce || layouts_get(s->g->layouts, p->layout)->overlap)) return count;
    const OpInfo *info = op_info(n->op);
    if (count >= MAX_CANDIDATES || !info->shard || !info->shard(s->g, n, slot, *p, buf_row(s, n, count))) return count;
    return keep_candidate(s, id, count);
}

// The sequence dim of a program input, spread evenly: where sharding comes from.
static int add_input_seed(ShardState *s, NodeId id, int count) {
    const Node *n = graph_node(s->g, id);
    const Input *in = &s->g->inputs.data[node_int(n, ATTR_INDEX)];
    if (in->seq_dim < 0) return count;
    Placement p = shard_on(in->seq_dim, layouts_even(s->g->layouts, in->shape.dim[in->seq_dim]));
    return add_from_slot(s, id, ~0, &p, count);
}

int shard_candidates(ShardState *s, NodeId id) {
    const Node *n = graph_node(s->g, id);
    buf_reserve(s, n);
    int count = 0;
    if (!s->strategy[id] || s->c->nranks == 1) {
        row_replicate(n, buf_row(s, n, 0));
        count = 1;
    }
    if (s->c->nranks == 1) return count;
    for (int i = 0; i < n->nin && count < MAX_CANDIDATES; i++) count = add_from_slot(s, id, i, &s->place[n->in[i]], count);
    if (n->op == OP_INPUT) count = add_input_seed(s, id, count);
    if (s->strategy[id] && !strcmp(s->strategy[id], "batch")) {
        Placement p = shard_on(0, layouts_even(s->g->layouts, graph_shape(s->g, n->in[0])->dim[0]));
        count = add_from_slot(s, id, 0, &p, count);
    }
    const OpInfo *info = op_info(n->op);
    for (int k = 0; info->extra_rows && count < MAX_CANDIDATES; k++) {
        if (k >= info->extra_rows(s->g, n, k, buf_row(s, n, count))) break;
        count = keep_candidate(s, id, count);
    }
    for (int j = 0; j < n->nout; j++) {
        ValueId v = n->out[j];
        int at = seen_slot(s->seen, graph_shape(s->g, v));
        for (int k = 0; at >= 0 && k < s->seen->slot[at].n && count < MAX_CANDIDATES; k++)
            count = add_from_slot(s, id, ~j, &s->seen->slot[at].place[k], count);
        for (int32_t u = s->first_use[v]; u < s->first_use[v + 1] && count < MAX_CANDIDATES; u++)
            if (s->use[u].node != NO_NODE && s->row[s->use[u].node].in)
                count = add_from_slot(s, id, ~j, &s->row[s->use[u].node].in[s->use[u].slot], count);
    }
    return count;
}

static const Placement replicated = {.kind = PLACE_REPLICATE};

static const Placement *use_demand(const ShardState *s, const Use *u) {
    if (u->node == NO_NODE) return &replicated;
    return s->row[u->node].in ? &s->row[u->node].in[u->slot] : NULL;  // NULL: not decided yet
}

// Somebody else already needs value v in placement p, so that the move is paid for.
static bool already_demanded(const ShardState *s, ValueId v, const Placement *p, NodeId except) {
    for (int32_t u = s->first_use[v]; u < s->first_use[v + 1]; u++) {
        if (s->use[u].node == except && except != NO_NODE) continue;
        const Placement *q = use_demand(s, &s->use[u]);
        if (q && placement_equal(p, q)) return true;
    }
    return false;
}

// Seconds for all moves of v's consumers when its producer leaves it in `from`.
static double demand_seconds(const ShardState *s, ValueId v, const Placement *from) {
    double total = 0;
    for (int32_t u = s->first_use[v]; u < s->first_use[v + 1]; u++) {
        const Placement *p = use_demand(s, &s->use[u]);
        if (!p || placement_equal(p, from)) continue;
        bool seen = false;
        for (int32_t w = s->first_use[v]; w < u && !seen; w++) {
            const Placement *q = use_demand(s, &s->use[w]);
            seen = q && placement_equal(p, q);
        }
        if (!seen) total += shard_move_seconds(s, v, from, p, NULL);
    }
    return total;
}

// Before consumers are known a partial result is charged what it takes to reduce it: somebody must.
static double partial_seconds(const ShardState *s, ValueId v, const Placement *p) {
    const Shape *shape = graph_shape(s->g, v);
    if (p->kind != PLACE_PARTIAL || shape->ndim == 0) return 0;
    Placement scattered = shard_on(0, layouts_even(s->g->layouts, shape->dim[0]));
    return shard_move_seconds(s, v, p, &scattered, NULL);
}

static double row_seconds(const ShardState *s, NodeId id, const Row *row, bool first) {
    const Node *n = graph_node(s->g, id);
    double total = shard_node_seconds(s, id, row);
    for (int i = 0; i < n->nin; i++) {
        ValueId v = n->in[i];
        if (placement_equal(&s->place[v], &row->in[i])) continue;
        bool repeated = false;  // the same value twice in one node
        for (int k = 0; k < i; k++) repeated |= n->in[k] == v && placement_equal(&row->in[k], &row->in[i]);
        if (!repeated && !already_demanded(s, v, &row->in[i], id))
            total += shard_move_seconds(s, v, &s->place[v], &row->in[i], NULL);
    }
    for (int j = 0; j < n->nout; j++)
        total += first ? partial_seconds(s, n->out[j], &row->out[j]) : demand_seconds(s, n->out[j], &row->out[j]);
    return total;
}

// Takes the cheapest candidate; true if the row changed.
static bool improve_node(ShardState *s, NodeId id, bool first) {
    int n = shard_candidates(s, id);
    if (n == 0) {
        diag_error(s->d, ST_UNSUPPORTED, "%s: attention strategy \"%s\" is not possible here; leave --attention to auto",
                   node_describe(s->g, id, s->c->scratch), s->strategy[id]);
        return false;
    }
    double best = first ? 0 : row_seconds(s, id, &s->row[id], false) * (1 - 1e-9);
    int pick = -1;
    for (int i = 0; i < n; i++) {
        double t = row_seconds(s, id, &s->buf[i], first);
        if (pick < 0 && first ? true : t < best) best = t, pick = i;
    }
    if (pick < 0) return false;
    row_copy(s, id, &s->buf[pick]);
    return true;
}

// Nodes with a reshard on some edge are worth another look; the others are where they want to be.
static bool touches_move(const ShardState *s, NodeId id) {
    const Node *n = graph_node(s->g, id);
    for (int i = 0; i < n->nin; i++)
        if (!placement_equal(&s->place[n->in[i]], &s->row[id].in[i])) return true;
    for (int j = 0; j < n->nout; j++)
        for (int32_t u = s->first_use[n->out[j]]; u < s->first_use[n->out[j] + 1]; u++) {
            const Placement *p = use_demand(s, &s->use[u]);
            if (p && !placement_equal(p, &s->place[n->out[j]])) return true;
        }
    return false;
}

Status shard_choose(ShardState *s) {
    int64_t nnode = s->g->nodes.len;
    s->seen = ARENA_NEW(s->c->scratch, SeenTable);
    for (int64_t i = 0; i < nnode; i++) {
        improve_node(s, (NodeId)i, true);
        if (s->d->status != ST_OK) return s->d->status;
    }
    if (s->c->nranks == 1) return ST_OK;
    enum { MAX_SWEEPS = 8 };
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        int64_t changed = 0;
        for (int64_t k = 0; k < nnode; k++) {
            NodeId id = (NodeId)(sweep % 2 ? k : nnode - 1 - k);
            if (touches_move(s, id)) changed += improve_node(s, id, false);
            if (s->d->status != ST_OK) return s->d->status;
        }
        if (!changed) break;
    }
    return ST_OK;
}
