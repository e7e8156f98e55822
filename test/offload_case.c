#include "offload_case.h"

#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "ops/op.h"

int64_t offload_trips, offload_compared, offload_masters;

// ---- trips ---------------------------------------------------------------------------------------------------------------

typedef struct Dice {
    uint64_t state;
} Dice;
static int64_t roll(Dice *d, int64_t n) {
    d->state += UINT64_C(0x9E3779B97F4A7C15);
    return (int64_t)(random_mix(d->state) % (uint64_t)n);
}

enum { TRIP_OFFLOAD, TRIP_OFFLOAD_DONE, TRIP_FETCH, TRIP_FETCH_DONE, TRIP_PARTS };
typedef struct Trip {
    ValueId value;           // of the old graph
    int64_t after[TRIP_PARTS];  // the old nodes that the four new ones follow
    ValueId x, h, k, y0;     // of the new graph
} Trip;

// What lies in the state's own buffer is not for moving (its update must come last), nor is what the runtime looks for by name.
static bool may_travel(const Graph *g, ValueId v, bool update) {
    const Placement *p = &graph_value(g, v)->place;
    if (p->kind == PLACE_PARTIAL || p->reduce != RED_NONE) return false;
    const Node *n = graph_def(g, v);
    while (n->op == OP_RESHAPE || n->op == OP_PERMUTE || n->op == OP_RESHARD || n->op == OP_STOP_GRAD) n = graph_def(g, n->in[0]);
    if (n->op == OP_INPUT) return strcmp(g->inputs.data[node_int(n, ATTR_INDEX)].name, "adamw.hyper") != 0;
    return n->op != OP_ADAMW && (n->op != OP_PARAM || !update);
}

static int64_t last_use(const Graph *g, ValueId v) {
    for (int64_t i = g->nodes.len - 1; i > graph_value(g, v)->def; i--)
        for (int k = 0; k < graph_node(g, (NodeId)i)->nin; k++)
            if (graph_node(g, (NodeId)i)->in[k] == v) return i;
    return graph_value(g, v)->def + 1;
}

static void choose_places(const Graph *g, Dice *dice, Trip *t) {
    int64_t from = graph_value(g, t->value)->def, to = roll(dice, 4) ? last_use(g, t->value) : g->nodes.len;
    for (int i = 0; i < TRIP_PARTS; i++) {
        int64_t at = from + roll(dice, to - from);
        int k = i;
        for (; k > 0 && t->after[k - 1] > at; k--) t->after[k] = t->after[k - 1];
        t->after[k] = at;
    }
}

static ValueId append(Graph *g, OpKind op, int nin, const ValueId *in, Phase phase) {
    NodeId id;
    Diag d = {0};
    Placement place = graph_value(g, in[0])->place;
    if (graph_add(g, op, nin, in, 0, NULL, NULL, phase, &id, &d) != ST_OK) CHECK(false, "%s: %s", op_name(op), d.text);
    ValueId v = graph_node(g, id)->out[0];
    graph_value(g, v)->place = place;
    return v;
}

static void travel(Graph *g, Trip *t, int part, ValueId *map, Phase phase) {
    switch (part) {
    case TRIP_OFFLOAD:
        t->x = map[t->value];
        t->h = append(g, OP_OFFLOAD, 1, &t->x, phase);
        break;
    case TRIP_OFFLOAD_DONE: t->k = append(g, OP_OFFLOAD_DONE, 2, (ValueId[]){t->x, t->h}, phase); break;
    case TRIP_FETCH: t->y0 = append(g, OP_FETCH, 1, &t->k, phase); break;
    case TRIP_FETCH_DONE: map[t->value] = append(g, OP_FETCH_DONE, 1, &t->y0, phase); break;
    }
}

Graph *offload_insert(const Graph *g, uint64_t seed, int ntrip, int *done) {
    Dice dice = {seed};
    Trip *trip = ARENA_ARRAY(g->arena, Trip, ntrip);
    bool update = false;
    for (int64_t i = 0; i < g->nodes.len; i++) update |= graph_node(g, (NodeId)i)->op == OP_ADAMW;
    *done = 0;
    for (int i = 0; i < ntrip; i++) {
        Trip *t = &trip[*done];
        t->value = (ValueId)roll(&dice, g->values.len);
        if (!may_travel(g, t->value, update)) continue;
        choose_places(g, &dice, t);
        ++*done;
    }
    Graph *out = graph_new_like(g);
    ValueId *map = ARENA_ARRAY(g->arena, ValueId, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) map[v] = NO_VALUE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        graph_copy_node(g, (NodeId)i, out, map);
        for (int part = 0; part < TRIP_PARTS; part++)
            for (int k = 0; k < *done; k++)
                if (trip[k].after[part] == i) travel(out, &trip[k], part, map, graph_node(g, (NodeId)i)->phase);
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        Output o = g->outputs.data[i];
        o.value = map[o.value];
        vec_push(&out->outputs, o);
    }
    return out;
}

// ---- plans ---------------------------------------------------------------------------------------------------------------

static void check_apart(const RankPlan *r) {
    for (int i = 0; i < r->nbuffer; i++) {
        const Buffer *a = &r->buffer[i];
        CHECK(a->offset >= 0 && a->offset + a->nbytes <= (a->host ? r->host_nbytes : r->arena_nbytes), "buffer %d is outside", i);
        CHECK(a->offset % BUFFER_ALIGN == 0, "buffer %d is not aligned", i);
        for (int k = 0; k < i; k++) {
            const Buffer *b = &r->buffer[k];
            if (a->host != b->host || a->last < b->first || b->last < a->first) continue;
            if (a->offset < b->offset + b->nbytes && b->offset < a->offset + a->nbytes)
                CHECK(false, "buffers %d and %d share bytes and are alive together", i, k);
        }
    }
}

static void check_alive(const RankPlan *r, int32_t buf, int from, int to) {
    const Buffer *b = &r->buffer[buf];
    if (b->first > from || b->last < to) CHECK(false, "buffer %d is alive %d..%d, copied %d..%d", buf, b->first, b->last, from, to);
}

static void check_copies(const RankPlan *r) {
    int *start = calloc((size_t)r->ncopy + 1, sizeof *start), nwait = 0;
    for (int i = 0; i < r->nstep; i++) {
        const Step *s = &r->step[i];
        if (step_is_copy(s->kind)) start[s->copy] = i;
        if (!step_is_wait(s->kind)) continue;
        const Step *from = &r->step[start[s->copy]];
        nwait++;
        CHECK(from->copy == s->copy, "a wait for another copy");
        CHECK(from->kind + 1 == s->kind, "a wait of another kind");
        check_alive(r, from->in_buf[0], start[s->copy], i);
        check_alive(r, from->out_buf[0], start[s->copy], i);
        CHECK(from->out_buf[0] == s->out_buf[0], "the result of a copy moved");
        CHECK(r->buffer[from->in_buf[0]].host == (from->kind == STEP_FETCH), "a copy between other sides");
        CHECK(r->buffer[from->out_buf[0]].host == (from->kind == STEP_OFFLOAD), "a copy between other sides");
    }
    CHECK(nwait == r->ncopy, "%d waits for %d copies", nwait, r->ncopy);
    free(start);
}

void offload_check_plan(const Plan *p) {
    for (int r = 0; r < p->nranks; r++) {
        check_apart(&p->rank[r]);
        check_copies(&p->rank[r]);
        CHECK(p->rank[r].host_nbytes >= p->rank[r].host_lower_bound_nbytes, "less than the lower bound");
        CHECK(p->rank[r].ncopy > 0 || p->rank[r].host_nbytes == 0, "host memory for nothing");
    }
}

// ---- running -------------------------------------------------------------------------------------------------------------

static Status set_values(const RandomGraph *r, const Graph *g, Runtime *rt, Diag *d) {
    for (int64_t i = 0; i < r->g->inputs.len; i++) {
        const Input *in = &g->inputs.data[i];
        int64_t n = shape_numel(&in->shape);
        void *data = calloc((size_t)n + 1, sizeof(double));
        Status st = tensor_convert(r->input[i], DT_F64, data, in->dtype, n, d);
        if (st == ST_OK) st = runtime_set_input(rt, (int32_t)i, data, d);
        free(data);
        TRY(st);
    }
    for (int64_t p = 0; p < g->params.len; p++) TRY(runtime_set_state(rt, (int32_t)p, 0, r->param[p], DT_F64, d));
    return runtime_set_hyper(rt, (double[]){0.01, 0.1, 0.05}, d);
}

// Values that are made of sums by atomics, whose order a GPU is free to choose.
static bool *find_unsteady(const Graph *g) {
    bool *unsteady = ARENA_ARRAY(g->arena, bool, g->values.len + 1);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool any = n->op == OP_EMBEDDING_GRAD || n->op == OP_SCATTER_ADD || n->op == OP_INDEX_PUT;
        for (int k = 0; k < n->nin; k++) any |= unsteady[n->in[k]];
        for (int k = 0; k < n->nout; k++) unsteady[n->out[k]] = any;
    }
    return unsteady;
}

static Status read_all(const OffloadSetup *s, const Graph *g, Runtime *rt, double *to, Diag *d) {
    bool *unsteady = s->unsteady ? find_unsteady(g) : NULL;
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        if (!unsteady || !unsteady[o->value]) TRY(runtime_get_output(rt, (int)i, to, d));  // else: stays 0
        offload_compared += unsteady && !unsteady[o->value];
        to += shape_numel(graph_shape(g, o->value));
        if (o->kind != OUT_STATE) continue;
        TRY(runtime_get_state(rt, o->param, o->slot, to, DT_F64, d));
        to += shape_numel(graph_shape(g, o->value));
    }
    return ST_OK;
}

static OffloadResult run(const OffloadSetup *s, const RandomGraph *values, Graph *g, const char *what) {
    Diag d = {0};
    Plan *p = NULL;
    Runtime *rt = NULL;
    OffloadResult r = {0};
    double loss;
    PlanOptions po = {.backend = s->backend, .device = s->backend->device ? device_model_h100() : device_model_cpu(), .nthreads = s->nthreads};
    if (graph_verify(g, what, &d) != ST_OK || plan_make(g->arena, g, &po, &p, &d) != ST_OK) CHECK(false, "%s: %s", what, d.text);
    offload_check_plan(p);
    RuntimeOptions ro = {.run_seed = 7, .poison = true, .capture = true, .processes = s->processes};
    if (runtime_new_with(p, &ro, &rt, &d) != ST_OK) CHECK(false, "%s: %s", what, d.text);
    for (int k = 0; k < p->nranks; k++) CHECK(runtime_host_nbytes(rt, k) == p->rank[k].host_nbytes, "rank %d allocated other host memory than planned", k);
    for (int64_t i = 0; i < g->outputs.len; i++)
        r.n += (1 + (g->outputs.data[i].kind == OUT_STATE)) * shape_numel(graph_shape(g, g->outputs.data[i].value));
    r.value = ARENA_ARRAY(g->arena, double, r.n + 1);
    Status st = set_values(values, g, rt, &d);
    for (int step = 0; step < 3 && st == ST_OK; step++)  // a device captures the second
        st = runtime_step(rt, step, &loss, &d);
    if (st == ST_OK) st = read_all(s, g, rt, r.value, &d);
    if (st != ST_OK) CHECK(false, "%s: %s", what, d.text);
    runtime_free(rt);
    return r;
}

// The program and its values; `kept` is the graph as it was, the tables of which stay in the arena when the passes use it up.
static void compile(const OffloadSetup *s, bool state, Compiled *c, RandomGraph *values, Graph *kept) {
    Diag d = {0};
    CompileOptions o;
    random_graph(arena_new(), s->seed, s->nops, s->real, values);
    Graph *g = values->g;
    compile_defaults(&o);
    o.nranks = s->nranks;
    o.nthreads = s->nthreads;
    o.update = s->update;
    o.offload_state = state;
    o.compute = s->compute ? s->compute : DT_F32;
    o.backend = s->backend;
    o.square_limit_nbytes = 1e18;
    *kept = *g;
    kept->inputs.data = arena_copy(g->arena, g->inputs.data, sizeof(Input) * (size_t)g->inputs.len);
    values->g = kept;
    if (compile_graph(g->arena, g, &o, c, &d) != ST_OK) CHECK(false, "seed %d: %s", (int)s->seed, d.text);
}

static void compare(const OffloadSetup *s, const OffloadResult *got, const OffloadResult *want, const char *what, int ntrip) {
    CHECK(got->n == want->n, "%s: another number of results", what);
    for (int64_t k = 0; k < want->n; k++)
        if (memcmp(&got->value[k], &want->value[k], sizeof *want->value))
            CHECK(false, "seed %d, %d ranks, %s with %d trips: element %lld is %.17g, without %.17g", (int)s->seed, s->nranks, what, ntrip,
                  (long long)k, got->value[k], want->value[k]);
}

// The program compiled with its optimizer's state in host memory: the same bits, and the state is there.
static void check_state(const OffloadSetup *s, const OffloadResult *want) {
    Compiled c = {0};
    RandomGraph values;
    Graph kept;
    compile(s, true, &c, &values, &kept);
    int64_t moved = 0, updates = 0;
    for (int64_t i = 0; i < c.graph->nodes.len; i++) {
        const Node *n = graph_node(c.graph, (NodeId)i);
        updates += n->op == OP_ADAMW;
        bool host = n->op == OP_PARAM && value_on_host(c.graph, n->out[0]);
        moved += host;
        offload_masters += host && node_int_or(n, ATTR_KIND, 0) == 0;
    }
    CHECK(moved >= 2 * updates, "seed %d: %lld updates, %lld values of state in host memory", (int)s->seed, (long long)updates, (long long)moved);
    OffloadResult got = run(s, &values, c.graph, "state in host memory");
    compare(s, &got, want, "state in host memory", (int)moved);
    offload_trips += moved;
    compiled_free(&c);
}

void offload_check_program(const OffloadSetup *s, int nvariant) {
    Compiled c = {0};
    RandomGraph values;
    Graph kept;
    compile(s, false, &c, &values, &kept);
    OffloadResult want = run(s, &values, c.graph, "as it was");
    for (int i = 0; i < nvariant; i++) {
        char what[32];
        int ntrip;
        Graph *g = offload_insert(c.graph, s->seed * 1000 + (uint64_t)i, 1 << (2 * i % 7), &ntrip);
        snprintf(what, sizeof what, "variant %d", i);
        Graph *scheduled = NULL;
        Diag d = {0};
        if (i % 2 && pass_schedule(g, &scheduled, &d) != ST_OK) CHECK(false, "%s: %s", what, d.text);
        OffloadResult got = run(s, &values, scheduled ? scheduled : g, what);
        offload_trips += ntrip;
        compare(s, &got, &want, what, ntrip);
        if (scheduled) graph_free_vecs(scheduled);
        graph_free_vecs(g);
    }
    if (s->update) check_state(s, &want);
    compiled_free(&c);
}
