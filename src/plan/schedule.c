// schedule: the order of execution.
//
//   %1 = full 1.0            %2 = dot(%x, %w)
//   %2 = dot(%x, %w)    ->   %1 = full 1.0
//   %3 = mul(%2, %1)         %3 = mul(%2, %1)
//
// Requires: any valid graph. Establishes: the same nodes in an order in which (1) a node whose result takes more memory than
// running it later would keep alive comes right before its first use, (2) a node that frees at least as much as it makes runs
// as soon as it can (weight gradients are reduced and consumed while they are fresh), (3) an in-place update follows every
// other reader of what it overwrites. Otherwise the given order stays; copies to and from host memory keep their places in any case.
// The order is global, so collectives come in the same order on every rank.
#include "ops/op.h"
#include "plan/plan.h"

typedef struct Sched {
    const Graph *g;
    Arena *a;                // scratch
    double *nbytes;          // [values] on the fullest rank, 0 for state and views
    ValueId *root;           // [values] what a view looks at, itself otherwise
    int32_t *use_first;      // [values + 1] into use[]: consumers in node order
    NodeId *use;
    int32_t *left;           // [values, at roots] uses through any view not yet run, +1 for graph outputs
    bool *late;              // [nodes] runs on demand
    uint8_t *state;          // [nodes] NEW, OPEN (waits for something), DONE
    int32_t *missing;        // [nodes] inputs not yet available: run, or late with all their inputs available
    NodeId *writer;          // [values, at roots] the in-place node that overwrites it, NO_NODE
    int32_t *before_first;   // [nodes + 1] into before[]: readers that an in-place node must follow
    NodeId *before;
    bool wait;               // nothing runs before its turn but what is wanted
    VEC(NodeId) order, stack, eager;
} Sched;
enum { NEW, OPEN, DONE };

static bool is_state(const Node *n) { return n->op == OP_PARAM || n->op == OP_INPUT || n->op == OP_CONSTANT; }
static bool is_in_place(const Node *n) { return (op_flags(n->op) & OPF_INPLACE) != 0; }
// (A fetched value is what was being fetched: waiting for it makes nothing, and is best done right before it is read.)
static bool is_view(const Node *n) { return (op_flags(n->op) & OPF_VIEW) || n->op == OP_STOP_GRAD || n->op == OP_FETCH_DONE; }
// Where copies start, and where they give back what they read, was decided by whoever put them there.
static bool keeps_place(const Node *n) { return n->op == OP_OFFLOAD || n->op == OP_OFFLOAD_DONE || n->op == OP_FETCH; }

static double value_nbytes(const Graph *g, ValueId v) {
    const Value *x = graph_value(g, v);
    double n = dtype_nbytes(x->dtype);
    for (int i = 0; i < x->shape.ndim; i++) {
        bool cut = x->place.kind == PLACE_SHARD && x->place.dim == i;
        n *= (double)(cut ? layout_max_local(layouts_get(g->layouts, x->place.layout)) : x->shape.dim[i]);
    }
    return n;
}

static void collect_values(Sched *s) {
    const Graph *g = s->g;
    s->nbytes = ARENA_ARRAY(s->a, double, g->values.len);
    s->root = ARENA_ARRAY(s->a, ValueId, g->values.len);
    s->left = ARENA_ARRAY(s->a, int32_t, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) {
        const Node *def = graph_def(g, (ValueId)v);
        s->root[v] = is_view(def) ? s->root[def->in[0]] : (ValueId)v;
        bool none = is_state(def) || is_in_place(def) || is_view(def) || value_on_host(g, (ValueId)v);
        s->nbytes[v] = none ? 0 : value_nbytes(g, (ValueId)v);
    }
    for (int64_t i = 0; i < g->outputs.len; i++) s->left[s->root[g->outputs.data[i].value]]++;
}

static void collect_uses(Sched *s) {
    const Graph *g = s->g;
    s->use_first = ARENA_ARRAY(s->a, int32_t, g->values.len + 1);
    s->missing = ARENA_ARRAY(s->a, int32_t, g->nodes.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        s->missing[i] = n->nin;
        for (int k = 0; k < n->nin; k++) {
            s->use_first[n->in[k] + 1]++;
            if (!is_view(n)) s->left[s->root[n->in[k]]]++;
        }
    }
    for (int64_t v = 0; v < g->values.len; v++) s->use_first[v + 1] += s->use_first[v];
    s->use = ARENA_ARRAY(s->a, NodeId, s->use_first[g->values.len]);
    int32_t *n_use = ARENA_ARRAY(s->a, int32_t, g->values.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin; k++) s->use[s->use_first[n->in[k]] + n_use[n->in[k]]++] = (NodeId)i;
    }
}

// Readers of each overwritten state, through views too, as "must come before" lists of the in-place nodes.
static void collect_readers(Sched *s) {
    const Graph *g = s->g;
    s->writer = ARENA_ARRAY(s->a, NodeId, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) s->writer[v] = NO_NODE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; is_in_place(n) && k < n->nin; k++)
            if (graph_def(g, n->in[k])->op == OP_PARAM) s->writer[n->in[k]] = (NodeId)i;
    }
    s->before_first = ARENA_ARRAY(s->a, int32_t, g->nodes.len + 1);
    for (int fill = 0; fill < 2; fill++) {
        for (int64_t i = 0; i < g->nodes.len; i++) {
            const Node *n = graph_node(g, (NodeId)i);
            for (int k = 0; k < n->nin; k++) {
                NodeId w = s->writer[s->root[n->in[k]]];
                if (w == NO_NODE || w == i) continue;
                if (fill) s->before[--s->before_first[w]] = (NodeId)i;
                else s->before_first[w]++;
            }
        }
        if (fill) break;
        // before_first[w] becomes the end of w's list; filling moves it down to the start
        for (int64_t i = 0; i < g->nodes.len; i++) s->before_first[i + 1] += s->before_first[i];
        s->before = ARENA_ARRAY(s->a, NodeId, s->before_first[g->nodes.len]);
    }
}

// Backwards over the nodes: at[i] is when node i runs, its own place or that of its first consumer. Running late is right if
// the inputs that would not be alive then anyway are smaller than the result.
static void choose_late(Sched *s) {
    const Graph *g = s->g;
    s->late = ARENA_ARRAY(s->a, bool, g->nodes.len);
    int32_t *dies = ARENA_ARRAY(s->a, int32_t, g->values.len), *at = ARENA_ARRAY(s->a, int32_t, g->nodes.len);
    for (int64_t v = 0; v < g->values.len; v++) dies[v] = -1;
    for (int64_t i = 0; i < g->outputs.len; i++) dies[s->root[g->outputs.data[i].value]] = INT32_MAX;
    for (int64_t i = g->nodes.len - 1; i >= 0; i--) {
        const Node *n = graph_node(g, (NodeId)i);
        int32_t first = INT32_MAX;
        double made = 0, held = 0;
        for (int k = 0; k < n->nout; k++) {
            made += s->nbytes[n->out[k]];
            for (int32_t u = s->use_first[n->out[k]]; u < s->use_first[n->out[k] + 1]; u++)
                if (at[s->use[u]] < first) first = at[s->use[u]];
        }
        for (int k = 0; k < n->nin; k++)
            if (dies[s->root[n->in[k]]] < first) held += s->nbytes[s->root[n->in[k]]];
        // What is computed again was dropped on purpose: never before it is wanted.
        s->late[i] = first != INT32_MAX && !is_in_place(n) && !keeps_place(n) &&
                     (held == 0 || held < made || n->phase == PHASE_RECOMPUTE);
        at[i] = s->late[i] ? first : (int32_t)i;
        for (int k = 0; k < n->nin; k++)
            if (dies[s->root[n->in[k]]] < at[i]) dies[s->root[n->in[k]]] = at[i];
    }
}

static bool frees_enough(const Sched *s, const Node *n) {
    double made = 0, freed = 0;
    for (int k = 0; k < n->nout; k++) made += s->nbytes[n->out[k]];
    for (int k = 0; k < n->nin; k++) {
        ValueId v = s->root[n->in[k]];
        int uses = 0;
        bool counted = false;
        for (int j = 0; j < n->nin; j++) {
            uses += s->root[n->in[j]] == v;
            counted |= j < k && s->root[n->in[j]] == v;
        }
        if (!counted && s->left[v] == uses) freed += s->nbytes[v];
    }
    return freed >= made;
}

// A late node whose result can be taken for available: its readers may run as if it had. What is computed again is not: it could be from
// the beginning on, and its readers are to wait for their turn.
static bool can_be_had(const Sched *s, NodeId i) { return s->late[i] && graph_node(s->g, i)->phase != PHASE_RECOMPUTE; }

// Node i can be had: its consumers may have all they need. Late consumers then can be had too; others that free memory run
// soon.
static void make_available(Sched *s, NodeId i) {
    int64_t base = s->stack.len;
    vec_push(&s->stack, i);
    while (s->stack.len > base) {
        const Node *n = graph_node(s->g, s->stack.data[--s->stack.len]);
        for (int k = 0; k < n->nout; k++)
            for (int32_t u = s->use_first[n->out[k]]; u < s->use_first[n->out[k] + 1]; u++) {
                NodeId c = s->use[u];
                if (--s->missing[c] > 0) continue;
                if (can_be_had(s, c)) vec_push(&s->stack, c);
                else if (s->state[c] == NEW && !s->late[c]) vec_push(&s->eager, c);
            }
    }
}

// What could have run before, but would not have freed v then.
static void offer_last_reader(Sched *s, ValueId v) {
    for (int32_t u = s->use_first[v]; u < s->use_first[v + 1]; u++) {
        NodeId c = s->use[u];
        if (s->state[c] == NEW && s->missing[c] == 0 && !s->late[c]) vec_push(&s->eager, c);
    }
}

static void run(Sched *s, NodeId i) {
    const Node *n = graph_node(s->g, i);
    s->state[i] = DONE;
    vec_push(&s->order, i);
    for (int k = 0; k < n->nin && !is_view(n); k++) s->left[s->root[n->in[k]]]--;
    if (!can_be_had(s, i)) make_available(s, i);
    for (int k = 0; k < n->nin; k++)
        if (s->nbytes[s->root[n->in[k]]] > 0 && s->left[s->root[n->in[k]]] == 1) offer_last_reader(s, n->in[k]);
    for (int k = 0; k < n->nin; k++) {
        NodeId w = s->writer[s->root[n->in[k]]];
        if (w != NO_NODE && s->state[w] == NEW && s->missing[w] == 0) vec_push(&s->eager, w);
    }
}

// The first node that must run before node i and has not.
static NodeId find_missing(const Sched *s, NodeId i) {
    const Node *n = graph_node(s->g, i);
    for (int k = 0; k < n->nin; k++) {
        NodeId def = graph_value(s->g, n->in[k])->def;
        if (s->state[def] != DONE) return def;
    }
    for (int32_t k = s->before_first[i]; k < s->before_first[i + 1]; k++)
        if (s->state[s->before[k]] != DONE) return s->before[k];
    return NO_NODE;
}

// Runs node i after everything it needs. An explicit stack: chains of late nodes can be long.
static Status demand(Sched *s, NodeId i, Diag *d) {
    VEC(NodeId) open = {0};
    Status st = ST_OK;
    if (s->state[i] == NEW) vec_push(&open, i);
    while (open.len > 0 && st == ST_OK) {
        NodeId top = open.data[open.len - 1], need = find_missing(s, top);
        s->state[top] = OPEN;
        if (need == NO_NODE) {
            open.len--;
            run(s, top);
        } else if (s->state[need] == OPEN) {
            st = diag_error(d, ST_UNSUPPORTED, "%s: reads state that must be overwritten before it",
                            node_describe(s->g, need, s->a));
        } else {
            vec_push(&open, need);
        }
    }
    vec_free(&open);
    return st;
}

static Status choose_order(Sched *s, Diag *d) {
    const Graph *g = s->g;
    s->state = ARENA_ARRAY(s->a, uint8_t, g->nodes.len);
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (can_be_had(s, (NodeId)i) && graph_node(g, (NodeId)i)->nin == 0) make_available(s, (NodeId)i);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        if (!s->late[i]) TRY(demand(s, (NodeId)i, d));
        while (s->eager.len > 0) {
            NodeId c = s->eager.data[--s->eager.len];
            bool follows = !keeps_place(graph_node(g, c));  // an in-place node waits for its readers rather than pulling them forward
            for (int32_t k = s->before_first[c]; k < s->before_first[c + 1] && follows; k++)
                follows = s->state[s->before[k]] == DONE;
            if (follows && !s->wait && frees_enough(s, graph_node(g, c))) TRY(demand(s, c, d));
        }
    }
    for (int64_t i = 0; i < g->nodes.len; i++) TRY(demand(s, (NodeId)i, d));  // late nodes that only dead nodes use
    return ST_OK;
}

// ---- which order ------------------------------------------------------------------------------------------------------------
// Bytes alive at once in the order found.
static double order_peak(Sched *s) {
    const Graph *g = s->g;
    int32_t *left = ARENA_ARRAY(s->a, int32_t, g->values.len);
    double live = 0, peak = 0;
    for (int64_t i = 0; i < g->outputs.len; i++) left[s->root[g->outputs.data[i].value]]++;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && !is_view(n); k++) left[s->root[n->in[k]]]++;
    }
    for (int64_t i = 0; i < s->order.len; i++) {
        const Node *n = graph_node(g, s->order.data[i]);
        for (int k = 0; k < n->nout; k++) live += s->nbytes[n->out[k]];
        if (live > peak) peak = live;
        for (int k = 0; k < n->nin && !is_view(n); k++)
            if (--left[s->root[n->in[k]]] == 0) live -= s->nbytes[s->root[n->in[k]]];
    }
    return peak;
}

static void free_lists(Sched *s) {
    vec_free(&s->order);
    vec_free(&s->stack);
    vec_free(&s->eager);
    arena_free(s->a);
}

static Status find_order(const Graph *g, bool wait, Sched *s, double *peak, Diag *d) {
    *s = (Sched){.g = g, .a = arena_new(), .wait = wait};
    CHECK(s->a != NULL, "out of memory");
    collect_values(s);
    collect_uses(s);
    collect_readers(s);
    choose_late(s);
    TRY(choose_order(s, d));
    *peak = order_peak(s);
    return ST_OK;
}

// Running early what frees memory keeps some values alive for longer too: where the given order with what is wanted late is better,
// that one is taken.
static Status best_order(const Graph *g, Sched *s, Diag *d) {
    double peak, other;
    Sched waiting;
    TRY(find_order(g, false, s, &peak, d));
    Status st = find_order(g, true, &waiting, &other, d);
    bool better = st == ST_OK && other < peak;
    free_lists(better ? s : &waiting);
    if (better) *s = waiting;
    return st;
}

// ---- outputs that show state ----------------------------------------------------------------------------------------------
// The gradient of sum(w*w)/2 is w itself. Read after the step, such an output would be the updated w: it gets a copy of its
// own, which as a reader of w runs before the update.
static bool is_overwritten(const Sched *s, const Output *o) {
    return o->kind != OUT_STATE && s->writer[s->root[o->value]] != NO_NODE;
}

static Status copy_outputs(const Sched *s, Graph **out, Diag *d) {
    Graph *n = *out = graph_new_like(s->g);
    ValueId *map = ARENA_ARRAY(s->a, ValueId, s->g->values.len);
    for (int64_t v = 0; v < s->g->values.len; v++) map[v] = NO_VALUE;
    for (int64_t i = 0; i < s->g->nodes.len; i++) graph_copy_node(s->g, (NodeId)i, n, map);
    for (int64_t i = 0; i < s->g->outputs.len; i++) {
        const Output *o = &s->g->outputs.data[i];
        ValueId v = map[o->value];
        if (is_overwritten(s, o)) {
            NodeId copy;
            Placement place = graph_value(n, v)->place;
            Attr dtype = attr_i(ATTR_DTYPE, graph_value(n, v)->dtype);
            TRY(graph_add(n, OP_CAST, 1, &v, 1, &dtype, graph_def(n, v)->source, PHASE_BACKWARD, &copy, d));
            graph_node(n, copy)->note = "an output that shows state from before its update";
            v = graph_node(n, copy)->out[0];
            graph_value(n, v)->place = place;
        }
        graph_add_output(n, o->kind, o->param, o->slot, o->name, v);
    }
    return ST_OK;
}

static Status reorder(Sched *s, Graph **out, Diag *d) {
    Graph *n = graph_new_like(s->g);
    ValueId *map = ARENA_ARRAY(s->a, ValueId, s->g->values.len);
    for (int64_t v = 0; v < s->g->values.len; v++) map[v] = NO_VALUE;
    for (int64_t i = 0; i < s->order.len; i++) graph_copy_node(s->g, s->order.data[i], n, map);
    for (int64_t i = 0; i < s->g->outputs.len; i++) {
        const Output *o = &s->g->outputs.data[i];
        graph_add_output(n, o->kind, o->param, o->slot, o->name, map[o->value]);
    }
    *out = n;
    return ST_OK;
}

Status schedule_order(const Graph *g, NodeId *order, Diag *d) {
    Sched s;
    Status st = best_order(g, &s, d);
    for (int64_t i = 0; i < s.order.len && st == ST_OK; i++) order[i] = s.order.data[i];
    free_lists(&s);
    return st;
}

Status pass_schedule(const Graph *g, Graph **out, Diag *d) {
    Sched s;
    Status st = best_order(g, &s, d);
    bool copies = false;
    for (int64_t i = 0; i < g->outputs.len && st == ST_OK; i++) copies |= is_overwritten(&s, &g->outputs.data[i]);
    if (st == ST_OK && !copies) st = reorder(&s, out, d);
    if (copies) {
        Graph *with = NULL;
        st = copy_outputs(&s, &with, d);
        if (st == ST_OK) st = pass_schedule(with, out, d);
        if (with) graph_free_vecs(with);
    }
    free_lists(&s);
    return st;
}
