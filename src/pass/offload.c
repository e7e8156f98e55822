// offload: kept values wait in host memory where the device's is short (docs/memory.md).
//
//   %3 = fused(...)                 %3 = fused(...)
//   ...                             %4 = offload(%3)            the copy starts
//   ...                     ->      ...
//                                   %5 = offload_done(%3, %4)   %3's bytes are free from here on
//                                   ...
//                                   %6 = fetch(%5)              the copy back starts
//                                   %7 = fetch_done(%6)
//   %8 = dot(%3, %9)                %8 = dot(%7, %9)
//
// Requires: an order. Establishes: the same values; live bytes that fit the budget as far as offloading helps. Which values, and where
// the copies start and end: plan/offload.c, from the times that the device model predicts.
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"
#include "pass/tile.h"
#include "plan/offload.h"

typedef enum EventKind { EVENT_DONE, EVENT_FETCH, EVENT_FETCHED, EVENT_OFFLOAD, EVENT_COUNT } EventKind;

typedef struct Event {
    EventKind kind;      // OFFLOAD comes after the node, the others before it
    int32_t eviction, next;
} Event;

typedef struct Insert {
    const OffloadChoice *choice;
    ValueId *root;       // [values] what a view looks at, itself otherwise
    int32_t *first;      // [nodes] of its events, -1
    ValueId *made;       // [evictions] the last of the four results so far, in the new graph
    ValueId *kept;       // [evictions] the value in the new graph
    VEC(Event) event;
    Rewrite w;
} Insert;

static void add_event(Insert *x, NodeId node, EventKind kind, int32_t eviction) {
    vec_push(&x->event, ((Event){kind, eviction, x->first[node]}));
    x->first[node] = (int32_t)x->event.len - 1;
}

static void collect_events(Insert *x, const Graph *g, const RankPlan *p, Arena *a) {
    x->first = ARENA_ARRAY(a, int32_t, g->nodes.len);
    x->root = ARENA_ARRAY(a, ValueId, g->values.len);
    for (int64_t i = 0; i < g->nodes.len; i++) x->first[i] = -1;
    for (int64_t v = 0; v < g->values.len; v++) {
        const Node *n = graph_def(g, (ValueId)v);
        x->root[v] = op_is_view(g, n) ? x->root[n->in[0]] : (ValueId)v;
    }
    for (int32_t k = x->choice->n; k-- > 0;) {  // events are put in front of their lists
        const Eviction *e = &x->choice->eviction[k];
        add_event(x, p->step[e->before].node, EVENT_OFFLOAD, k);
        add_event(x, p->step[e->done].node, EVENT_DONE, k);
        add_event(x, p->step[e->fetch].node, EVENT_FETCH, k);
        add_event(x, p->step[e->after].node, EVENT_FETCHED, k);
    }
}

static ValueId add(Insert *x, OpKind op, int nin, const ValueId *in, const Value *like) {
    ValueId v = build(&x->w.b, op, nin, in, 0, NULL);
    if (v != NO_VALUE) graph_value(x->w.out, v)->place = like->place;
    return v;
}

static void happen(Insert *x, const Event *e) {
    ValueId root = x->root[x->choice->eviction[e->eviction].value], *made = &x->made[e->eviction];
    Value like = *graph_value(x->w.in, root);
    switch (e->kind) {
    case EVENT_OFFLOAD:
        x->kept[e->eviction] = x->w.map[root];
        *made = add(x, OP_OFFLOAD, 1, &x->w.map[root], &like);
        break;
    case EVENT_DONE: {
        ValueId in[2] = {x->kept[e->eviction], *made};
        *made = add(x, OP_OFFLOAD_DONE, 2, in, &like);
        break;
    }
    case EVENT_FETCH: *made = add(x, OP_FETCH, 1, made, &like); break;
    default:
        x->w.map[root] = *made = add(x, OP_FETCH_DONE, 1, made, &like);
        for (int64_t v = 0; v < x->w.in->values.len; v++)  // views of it are made anew
            if (x->root[v] == root && v != root) x->w.map[v] = NO_VALUE;
    }
}

static void happen_all(Insert *x, NodeId i, EventKind from, EventKind to) {
    rewrite_at(&x->w, i);
    x->w.b.note = NULL;
    for (EventKind kind = from; kind <= to; kind++)
        for (int32_t k = x->first[i]; k >= 0; k = x->event.data[k].next)
            if (x->event.data[k].kind == kind) happen(x, &x->event.data[k]);
}

static Status insert(Insert *x, const Graph *g, Arena *scratch, Graph **out, Diag *d) {
    rewrite_begin(&x->w, g, scratch, d);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        happen_all(x, (NodeId)i, EVENT_DONE, EVENT_FETCHED);
        for (int k = 0; k < n->nin; k++) rewrite_before(&x->w, n->in[k]);
        rewrite_copy(&x->w, (NodeId)i);
        happen_all(x, (NodeId)i, EVENT_OFFLOAD, EVENT_OFFLOAD);
    }
    for (int64_t i = 0; i < g->outputs.len; i++) rewrite_before(&x->w, g->outputs.data[i].value);
    return rewrite_finish(&x->w, out);
}

Status pass_offload(PassContext *c, Graph *in, Graph **out, Diag *d) {
    *out = in;
    if (!c->memory.offload || c->memory.budget_nbytes <= 0) return ST_OK;
    TileSketch tile = tile_sketch(in, &c->tile, c->scratch);
    RankPlan p;
    TRY(plan_sketch(c->scratch, in, c->plan, plan_fullest_rank(in), &tile, &p, d));
    OffloadChoice choice;
    OffloadOptions o = {.budget_nbytes = c->memory.budget_nbytes, .host_nbytes = c->memory.host_nbytes, .region = tile.region};
    offload_choose(c->scratch, in, &p, c->device, &o, &choice);
    if (choice.n == 0) return ST_OK;
    Insert x = {.choice = &choice};
    x.made = ARENA_ARRAY(c->scratch, ValueId, choice.n);
    x.kept = ARENA_ARRAY(c->scratch, ValueId, choice.n);
    collect_events(&x, in, &p, c->scratch);
    Status st = insert(&x, in, c->scratch, out, d);
    vec_free(&x.event);
    return st;
}
