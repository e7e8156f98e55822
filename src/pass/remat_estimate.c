// Time is counted in slots: one for every node in the order of the plan, and one for every copy, right before the slot of its first
// reader. A value lives from its slot to its last reader's; a result that the plan puts into an operand's memory takes none of its own in
// the slot in which that operand is read last.
#include "pass/remat_estimate.h"

#include "ops/op.h"

enum { TAKES = 3 };

typedef struct Item {        // a value that has memory of its own
    ValueId value;
    NodeId def;
    int64_t nbytes;
    int32_t takes[TAKES];    // items whose memory the plan may give to this one when they end with it, -1
    bool forward, output;
} Item;

struct RematEstimate {
    const RematGraph *r;
    int32_t nitem;
    Item *item;
    int32_t *item_of;        // [values] of its root; -1: none
    int32_t *pos;            // [nodes] in the order of the plan
    int64_t *scratch;        // [nodes] bytes while it runs
    int64_t always;          // bytes that are there all the time
    double base;             // seconds of the program as it is
    double bandwidth, latency;
    bool *works;             // [nodes] has a step: not a source, not a view
    int32_t *late_first, *late_last, *use_last;  // [items] positions of readers after the forward; of the last of all for other items
    // of one estimate
    int32_t *forward_last;   // [items] position of the last reader in the forward that is not dropped
    int32_t *first;          // [items] position before which the copy is wanted
    bool *need;              // [items] by readers after the forward, copies among them
    int32_t *again;          // [nodes] position before which the node runs again, -1
    int32_t *slot_again;     // [nodes]
    int32_t *slot;           // [nodes + 1] by position: its slot
    int32_t *last, *copy_last;  // [items] slots
    int64_t *live;           // [2 nodes + 2]
    uint8_t *normal;         // [values]
};

static bool persistent(const Buffer *b) {
    return b->kind == BUF_PARAM || b->kind == BUF_MOMENT || b->kind == BUF_INPUT || b->kind == BUF_CONST;
}

// The graph in the order of the plan; map: to its values.
static Status plan_in_order(RematEstimate *e, Arena *a, const PlanOptions *o, int rank, RankPlan *p, ValueId *map, NodeId *order, Diag *d) {
    const Graph *g = e->r->g;
    TRY(schedule_order(g, order, d));
    Graph view = *g;
    view.arena = a;
    Graph *with = graph_new_like(&view);
    for (int64_t v = 0; v < g->values.len; v++) map[v] = NO_VALUE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        graph_copy_node(&view, order[i], with, map);
        e->pos[order[i]] = (int32_t)i;
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *x = &g->outputs.data[i];
        graph_add_output(with, x->kind, x->param, x->slot, x->name, map[x->value]);
    }
    Status st = plan_sketch(a, with, o, rank, NULL, p, d);
    graph_free_vecs(with);
    return st;
}

static void find_steps(RematEstimate *e, const RankPlan *p, const NodeId *order) {
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        NodeId n = order[s->node];
        e->works[n] = true;
        e->base += s->seconds;
        int64_t scratch = s->scratch_buf >= 0 ? round_up(p->buffer[s->scratch_buf].nbytes, BUFFER_ALIGN) : 0;
        e->scratch[n] = max_i64(e->scratch[n], scratch);
    }
    for (int i = 0; i < p->nbuffer; i++)
        if (persistent(&p->buffer[i])) e->always += round_up(p->buffer[i].nbytes, BUFFER_ALIGN);
}

// As plan/alias.c: what a kernel reads element by element before it writes, and the third operand of a product.
static void find_taken(const RematEstimate *e, const Node *n, int j, Item *x) {
    const Graph *g = e->r->g;
    bool product = n->op == OP_DOT && n->nin == 3 && !node_int_or(n, ATTR_BIAS, 0);
    bool pointwise = (op_is_pointwise(n->op) || n->op == OP_FUSED) && !node_attr(n, ATTR_ROW) && !node_attr(n, ATTR_VIEWS);
    const Value *out = graph_value(g, n->out[j]);
    int count = 0;
    for (int k = 0; k < TAKES; k++) x->takes[k] = -1;
    for (int k = product ? 2 : 0; k < n->nin && (product || pointwise) && count < TAKES; k++) {
        const Value *in = graph_value(g, n->in[k]);
        bool alike = shape_equal(&out->shape, &in->shape) && placement_equal(&out->place, &in->place);
        if (alike && dtype_nbytes(out->dtype) == dtype_nbytes(in->dtype) && e->item_of[n->in[k]] >= 0) x->takes[count++] = e->item_of[n->in[k]];
    }
}

// Every root whose node has a step; what has none shares the memory of its first operand.
static void find_items(RematEstimate *e, const RankPlan *p, const ValueId *map) {
    const RematGraph *r = e->r;
    const Graph *g = r->g;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nout; k++) {
            ValueId v = n->out[k];
            int32_t buf = p->value_buf[map[v]];
            e->item_of[v] = !e->works[i] && n->nin > 0 ? e->item_of[n->in[0]] : -1;
            if (!e->works[i] || buf < 0 || persistent(&p->buffer[buf])) continue;
            e->item_of[v] = e->nitem;
            Item x = {.value = v, .def = (NodeId)i, .nbytes = r->nbytes[v], .forward = r->forward[v]};
            find_taken(e, n, k, &x);
            e->item[e->nitem++] = x;
        }
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        int32_t x = e->item_of[g->outputs.data[i].value];
        if (x >= 0) e->item[x].output = true;
    }
}

static void find_readers(RematEstimate *e) {
    const Graph *g = e->r->g;
    for (int32_t i = 0; i < e->nitem; i++) {
        e->late_first[i] = INT32_MAX;
        e->late_last[i] = e->use_last[i] = -1;
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        int32_t at = e->pos[i];
        for (int k = 0; k < n->nin && e->works[i]; k++) {
            int32_t x = e->item_of[n->in[k]];
            if (x < 0) continue;
            if (at > e->use_last[x]) e->use_last[x] = at;
            if (n->phase == PHASE_FORWARD) continue;
            if (at < e->late_first[x]) e->late_first[x] = at;
            if (at > e->late_last[x]) e->late_last[x] = at;
        }
    }
}

Status remat_estimate_new(Arena *a, const RematGraph *r, const PlanOptions *o, RematEstimate **out, Diag *d) {
    int64_t nodes = r->g->nodes.len, values = r->g->values.len;
    RematEstimate *e = *out = ARENA_NEW(a, RematEstimate);
    double efficiency = o->device->efficiency[OP_FUSED] > 0 ? o->device->efficiency[OP_FUSED] : o->device->other_efficiency;
    *e = (RematEstimate){.r = r, .bandwidth = o->device->mem_bandwidth * efficiency, .latency = o->device->kernel_latency_s, .item = ARENA_ARRAY(a, Item, values)};
    int32_t **by_node[] = {&e->pos, &e->again, &e->slot_again, &e->slot};
    int32_t **by_value[] = {&e->item_of, &e->late_first, &e->late_last, &e->use_last, &e->forward_last, &e->first, &e->last, &e->copy_last};
    for (size_t i = 0; i < sizeof by_node / sizeof *by_node; i++) *by_node[i] = ARENA_ARRAY(a, int32_t, nodes + 1);
    for (size_t i = 0; i < sizeof by_value / sizeof *by_value; i++) *by_value[i] = ARENA_ARRAY(a, int32_t, values);
    e->scratch = ARENA_ARRAY(a, int64_t, nodes);
    e->works = ARENA_ARRAY(a, bool, nodes);
    e->need = ARENA_ARRAY(a, bool, values);
    e->live = ARENA_ARRAY(a, int64_t, 2 * nodes + 2);
    e->normal = ARENA_ARRAY(a, uint8_t, values);
    RankPlan p;
    ValueId *map = ARENA_ARRAY(a, ValueId, values);
    NodeId *order = ARENA_ARRAY(a, NodeId, nodes);
    TRY(plan_in_order(e, a, o, plan_fullest_rank(r->g), &p, map, order, d));
    find_steps(e, &p, order);
    find_items(e, &p, map);
    find_readers(e);
    return ST_OK;
}

// ---- one estimate --------------------------------------------------------------------------------------------------------------
static bool again_item(const RematEstimate *e, int32_t x, const uint8_t *choice) {
    return e->item[x].forward && choice[e->item[x].value] == CHOICE_AGAIN;
}

// Of node i where results of so many bytes are not wanted, which a fused node then does not write.
static double node_seconds(const RematEstimate *e, NodeId i, int64_t unwanted) {
    double all = e->r->seconds[i];
    if (unwanted == 0 || graph_node(e->r->g, i)->op != OP_FUSED || e->bandwidth <= 0) return all;
    double less = all - (double)unwanted / e->bandwidth;
    return less > e->latency ? less : all < e->latency ? all : e->latency;
}

// Backwards over the forward: which nodes run again and before what, which do not run in the forward any more. Returns the seconds.
static double who_runs(RematEstimate *e, const uint8_t *choice) {
    const Graph *g = e->r->g;
    double seconds = e->base;
    for (int32_t x = 0; x < e->nitem; x++) {
        e->need[x] = e->late_first[x] != INT32_MAX;
        e->first[x] = e->late_first[x];
        e->forward_last[x] = -1;
    }
    for (int64_t i = g->nodes.len; i-- > 0;) {
        const Node *n = graph_node(g, (NodeId)i);
        e->again[i] = -1;
        if (n->phase != PHASE_FORWARD || !e->works[i]) continue;
        int32_t before = INT32_MAX;
        int64_t idle = 0, not_again = 0;
        bool runs = false;
        for (int k = 0; k < n->nout; k++) {
            int32_t x = e->item_of[n->out[k]];
            if (x < 0) {
                runs = true;
                continue;
            }
            bool again = again_item(e, x, choice) && e->need[x];
            bool forward = e->forward_last[x] >= 0 || e->item[x].output || (e->need[x] && !again);
            runs |= forward;
            idle += forward ? 0 : e->item[x].nbytes;
            not_again += again ? 0 : e->item[x].nbytes;
            if (again && e->first[x] < before) before = e->first[x];
        }
        if (before != INT32_MAX) {
            e->again[i] = before;
            seconds += node_seconds(e, (NodeId)i, not_again);
        }
        seconds -= e->r->seconds[i] - (runs ? node_seconds(e, (NodeId)i, idle) : 0);
        for (int k = 0; k < n->nin; k++) {
            int32_t x = e->item_of[n->in[k]];
            if (x < 0) continue;
            if (runs && e->pos[i] > e->forward_last[x]) e->forward_last[x] = e->pos[i];
            if (e->again[i] < 0) continue;
            e->need[x] = true;
            if (before < e->first[x]) e->first[x] = before;
        }
    }
    return seconds;
}

static int32_t number_slots(RematEstimate *e) {
    int64_t n = e->r->g->nodes.len;
    memset(e->slot, 0, sizeof *e->slot * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++)
        if (e->again[i] >= 0) e->slot[e->again[i]]++;
    int32_t at = 0;
    for (int64_t k = 0; k < n; k++) {  // slot[k]: the first of its copies, then moved on to its own
        int32_t copies = e->slot[k];
        e->slot[k] = at;
        at += copies + 1;
    }
    for (int64_t i = 0; i < n; i++)
        if (e->again[i] >= 0) e->slot_again[i] = e->slot[e->again[i]]++;
    return at;
}

static void put_last(int32_t *last, int32_t slot) {
    if (slot > *last) *last = slot;
}

static void find_lasts(RematEstimate *e, const uint8_t *choice, int32_t end) {
    const Graph *g = e->r->g;
    for (int32_t x = 0; x < e->nitem; x++) {
        const Item *it = &e->item[x];
        bool again = again_item(e, x, choice);
        int32_t late = e->late_last[x] >= 0 ? e->slot[e->late_last[x]] : -1;
        e->copy_last[x] = again ? late : -1;
        e->last[x] = it->output ? end - 1 : -1;
        if (!it->forward && e->use_last[x] >= 0) put_last(&e->last[x], e->slot[e->use_last[x]]);
        if (it->forward && e->forward_last[x] >= 0) put_last(&e->last[x], e->slot[e->forward_last[x]]);
        if (!again) put_last(&e->last[x], late);
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        if (e->again[i] < 0) continue;
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin; k++) {
            int32_t x = e->item_of[n->in[k]];
            if (x >= 0) put_last(again_item(e, x, choice) ? &e->copy_last[x] : &e->last[x], e->slot_again[i]);
        }
    }
}

// A result alive from slot `at`; from the next one where it is given the memory of an operand that ends there. copy: of those that run
// again, operands too.
static void add_life(RematEstimate *e, const Item *it, int32_t at, int32_t last, const uint8_t *choice, bool copy) {
    for (int k = 0; k < TAKES && it->takes[k] >= 0; k++) {
        int32_t x = it->takes[k];
        bool late = copy || !it->forward;  // reads what was computed again
        if (e->item[x].output || (late && again_item(e, x, choice) ? e->copy_last[x] : e->last[x]) != at) continue;
        at++;
        break;
    }
    if (last < at) return;
    e->live[at] += it->nbytes;
    e->live[last + 1] -= it->nbytes;
}

void remat_estimate(RematEstimate *e, const uint8_t *choice, double *seconds, int64_t *peak) {
    const Graph *g = e->r->g;
    *seconds = who_runs(e, choice);
    int32_t end = number_slots(e);
    find_lasts(e, choice, end);
    memset(e->live, 0, sizeof *e->live * (size_t)(end + 1));
    for (int64_t i = 0; i < g->nodes.len; i++) {
        if (!e->scratch[i]) continue;
        e->live[e->slot[e->pos[i]]] += e->scratch[i];
        e->live[e->slot[e->pos[i]] + 1] -= e->scratch[i];
        if (e->again[i] < 0) continue;
        e->live[e->slot_again[i]] += e->scratch[i];
        e->live[e->slot_again[i] + 1] -= e->scratch[i];
    }
    for (int32_t x = 0; x < e->nitem; x++) {
        const Item *it = &e->item[x];
        if (e->last[x] >= 0) add_life(e, it, e->slot[e->pos[it->def]], e->last[x], choice, false);
        if (e->copy_last[x] >= 0 && e->again[it->def] >= 0) add_life(e, it, e->slot_again[it->def], e->copy_last[x], choice, true);
    }
    int64_t live = e->always, most = e->always;
    for (int32_t s = 0; s < end; s++) {
        live += e->live[s];
        most = max_i64(most, live);
    }
    *peak = most;
}

const uint8_t *remat_estimate_normal(RematEstimate *e, const uint8_t *choice) {
    memcpy(e->normal, choice, (size_t)e->r->g->values.len);
    for (int32_t x = 0; x < e->nitem; x++)
        if (e->item[x].forward && !e->need[x]) e->normal[e->item[x].value] = CHOICE_KEEP;
    return e->normal;
}
