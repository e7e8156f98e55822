// What docs/ir.md demands of a graph, executed. Runs after every pass with --verify-each and in the tests; a failure is a bug in the
// pass that just ran, so the message names it.
#include <inttypes.h>

#include "ir/graph.h"
#include "ops/op.h"

typedef struct Verify {
    const Graph *g;
    const char *stage;
    Arena *scratch;
    bool *covered;  // [layouts] already found to own every element
    Diag *d;
} Verify;

static Status fail(const Verify *v, NodeId n, const char *what) {
    if (n == NO_NODE) return diag_error(v->d, ST_INPUT, "after %s the graph is not valid: %s", v->stage, what);
    return diag_error(v->d, ST_INPUT, "after %s the graph is not valid: node %d, %s: %s", v->stage, n, node_describe(v->g, n, v->scratch), what);
}

static int compare_spans(const void *pa, const void *pb) {
    const Span *a = pa, *b = pb;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

// Every element of the axis lives on some rank, on exactly one unless the layout says overlap.
static bool layout_covers(const Layout *l, Arena *scratch) {
    int n = l->first[l->nranks];
    Span *s = arena_copy(scratch, l->span, sizeof(Span) * (size_t)n);
    if (n) qsort(s, (size_t)n, sizeof *s, compare_spans);
    int64_t at = 0;
    bool overlap = false;
    for (int i = 0; i < n; i++) {
        if (s[i].begin > at || s[i].begin < 0 || s[i].end > l->extent || s[i].begin >= s[i].end) return false;
        overlap |= s[i].begin < at;
        at = max_i64(at, s[i].end);
    }
    return at == l->extent && overlap == l->overlap;
}

static Status verify_placement(Verify *v, NodeId id, const Value *x) {
    const Placement *p = &x->place;
    if (p->kind == PLACE_PARTIAL && p->reduce == RED_NONE) return fail(v, id, "a partial value without a reduction");
    if (p->kind == PLACE_PARTIAL && !dtype_is_float(x->dtype) && x->dtype != DT_I64) return fail(v, id, "a partial value that is no number");
    if (p->kind != PLACE_SHARD) return ST_OK;
    if (p->dim < 0 || p->dim >= x->shape.ndim) return fail(v, id, "sharded on a dim that it does not have");
    if (p->layout < 0 || p->layout >= layouts_count(v->g->layouts)) return fail(v, id, "sharded by a layout that does not exist");
    const Layout *l = layouts_get(v->g->layouts, p->layout);
    if (l->extent != x->shape.dim[p->dim]) return fail(v, id, "sharded by a layout of another extent");
    if (p->reduce && !l->overlap) return fail(v, id, "terms to be reduced in a layout that does not overlap");
    if (!v->covered[p->layout] && !layout_covers(l, v->scratch)) return fail(v, id, "its layout leaves elements nowhere, or hides an overlap");
    v->covered[p->layout] = true;
    return ST_OK;
}

static bool row_matches(const Verify *v, const Node *n, const Row *row) {
    for (int i = 0; i < n->nin; i++)
        if (!placement_equal(&row->in[i], &graph_value(v->g, n->in[i])->place)) return false;
    for (int j = 0; j < n->nout; j++)
        if (!placement_equal(&row->out[j], &graph_value(v->g, n->out[j])->place)) return false;
    return true;
}

// The placements of a node's operands and results are a row of its op's sharding rule.
static Status verify_row(Verify *v, NodeId id) {
    const Node *n = graph_node(v->g, id);
    if (n->op == OP_RESHARD) return ST_OK;
    Row row = {.in = ARENA_ARRAY(v->scratch, Placement, n->nin), .out = ARENA_ARRAY(v->scratch, Placement, n->nout)};
    row_replicate(n, &row);
    if (row_matches(v, n, &row)) return ST_OK;
    const OpInfo *info = op_info(n->op);
    Graph *g = (Graph *)v->g;  // rules may intern a layout; they change nothing else
    for (int slot = -n->nout; slot < n->nin && info->shard; slot++) {
        Placement p = graph_value(g, slot < 0 ? n->out[~slot] : n->in[slot])->place;
        if (p.kind != PLACE_SHARD && p.kind != PLACE_PARTIAL) continue;
        if (info->shard(g, n, slot, p, &row) && row_matches(v, n, &row)) return ST_OK;
    }
    for (int k = 0; info->extra_rows && k < info->extra_rows(g, n, k, &row); k++)
        if (row_matches(v, n, &row)) return ST_OK;
    return fail(v, id, "its placements are no row of the op's sharding rule");
}

static Status verify_types(Verify *v, NodeId id) {
    const Node *n = graph_node(v->g, id);
    TypeOut type[64];
    int nout = 0;
    Node copy = *n;
    Diag inner = {0};
    if (op_info(n->op)->infer(v->g, &copy, &nout, type, &inner) != ST_OK) return fail(v, id, inner.text);
    if (nout != n->nout) return fail(v, id, "the op has another number of results");
    for (int j = 0; j < nout; j++) {
        const Value *x = graph_value(v->g, n->out[j]);
        if (x->dtype != type[j].dtype || !shape_equal(&x->shape, &type[j].shape)) return fail(v, id, "a result's type is not what the op infers");
        if (x->def != id || x->index != j) return fail(v, id, "a result does not know its node");
    }
    return ST_OK;
}

static Status verify_node(Verify *v, NodeId id, bool placed) {
    const Node *n = graph_node(v->g, id);
    for (int i = 0; i < n->nin; i++) {
        if (n->in[i] < 0 || n->in[i] >= v->g->values.len) return fail(v, id, "an operand that does not exist");
        if (graph_value(v->g, n->in[i])->def >= id) return fail(v, id, "an operand made later");
    }
    TRY(verify_types(v, id));
    if (!placed) return ST_OK;
    for (int j = 0; j < n->nout; j++) TRY(verify_placement(v, id, graph_value(v->g, n->out[j])));
    return verify_row(v, id);
}

// ---- host memory -----------------------------------------------------------------------------------------------------------
static const char *verify_operand_memory(const Graph *g, const Node *n, int i) {
    OpKind def = graph_def(g, n->in[i])->op, op = n->op;
    bool state = def == OP_PARAM && value_on_host(g, n->in[i]);
    if (op == OP_OFFLOAD && i == 1) return state ? NULL : "is written over what is no state in host memory";
    if (def == OP_OFFLOAD && !(op == OP_OFFLOAD_DONE && i == 1)) return "reads a copy to host memory that may still be under way";
    if ((def == OP_OFFLOAD_DONE || state) && op != OP_FETCH) return "reads a value in host memory";
    if (def == OP_FETCH && op != OP_FETCH_DONE) return "reads a copy from host memory that may still be under way";
    bool wanted = op == OP_FETCH       ? def == OP_OFFLOAD_DONE || state
                  : op == OP_FETCH_DONE ? def == OP_FETCH
                                        : !(op == OP_OFFLOAD_DONE && i == 1) || def == OP_OFFLOAD;
    return wanted ? NULL : "an operand that is not the copy it is for";
}

// State in host memory is written once, after all copies of it are complete. `written`: by value.
static Status verify_state(Verify *v, NodeId id, bool *written) {
    const Node *n = graph_node(v->g, id);
    ValueId read = n->op == OP_FETCH ? n->in[0] : n->op == OP_FETCH_DONE ? graph_def(v->g, n->in[0])->in[0] : NO_VALUE;
    if (read != NO_VALUE && written[read]) return fail(v, id, "copies state in host memory that has been written over");
    if (n->op != OP_OFFLOAD || n->nin < 2) return ST_OK;
    if (written[n->in[1]]) return fail(v, id, "is written over state that has been written over before");
    written[n->in[1]] = true;
    return ST_OK;
}

// Values in host memory are read by copies alone, what is being copied by nobody, and each copy is waited for exactly once: the
// planner holds both sides' buffers until then.
static Status verify_memory(Verify *v) {
    const Graph *g = v->g;
    bool *waited = ARENA_ARRAY(v->scratch, bool, g->values.len + 1), *written = ARENA_ARRAY(v->scratch, bool, g->values.len + 1);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin; k++) {
            const char *wrong = verify_operand_memory(g, n, k);
            if (wrong) return fail(v, (NodeId)i, wrong);
        }
        TRY(verify_state(v, (NodeId)i, written));
        if (n->op != OP_OFFLOAD_DONE && n->op != OP_FETCH_DONE) continue;
        ValueId copy = n->in[n->nin - 1];
        if (waited[copy]) return fail(v, (NodeId)i, "waits for a copy that was waited for before");
        waited[copy] = true;
        if (n->op == OP_OFFLOAD_DONE && graph_def(g, copy)->in[0] != n->in[0]) return fail(v, (NodeId)i, "its operand is not what was copied");
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool copy = n->op == OP_OFFLOAD || n->op == OP_FETCH;
        if (copy && !waited[n->out[0]]) return fail(v, (NodeId)i, "a copy that nobody waits for");
    }
    return ST_OK;
}

Status graph_verify(const Graph *g, const char *stage, Diag *d) {
    Verify v = {.g = g, .stage = stage, .scratch = arena_new(), .d = d};
    v.covered = ARENA_ARRAY(v.scratch, bool, layouts_count(g->layouts) + 1);
    bool placed = g->values.len && graph_value(g, 0)->place.kind != PLACE_NONE;
    Status st = ST_OK;
    for (int64_t i = 0; i < g->values.len && st == ST_OK; i++) {
        NodeId def = graph_value(g, (ValueId)i)->def;
        if (def < 0 || def >= g->nodes.len) st = fail(&v, NO_NODE, "a value without a node");
        if ((graph_value(g, (ValueId)i)->place.kind != PLACE_NONE) != placed) st = fail(&v, def, "some values are placed and some are not");
    }
    for (int64_t i = 0; i < g->nodes.len && st == ST_OK; i++) st = verify_node(&v, (NodeId)i, placed);
    if (st == ST_OK) st = verify_memory(&v);
    for (int64_t i = 0; i < g->outputs.len && st == ST_OK; i++) {
        const Output *o = &g->outputs.data[i];
        if (o->value < 0 || o->value >= g->values.len) {
            st = fail(&v, NO_NODE, "an output that does not exist");
            continue;
        }
        const Value *x = graph_value(g, o->value);
        if (o->kind == OUT_LOSS && (shape_numel(&x->shape) != 1 || !dtype_is_float(x->dtype))) st = fail(&v, x->def, "the loss is no scalar float");
        OpKind def = graph_node(g, x->def)->op;
        if (def == OP_OFFLOAD || def == OP_FETCH) st = fail(&v, x->def, "an output that may still be copied");
        if (o->kind == OUT_GRAD && !shape_equal(&x->shape, &g->params.data[o->param].shape)) st = fail(&v, x->def, "a gradient of another shape than its parameter");
        if (placed && x->place.kind != PLACE_REPLICATE) st = fail(&v, x->def, "an output that not every rank holds");
    }
    arena_free(v.scratch);
    return st;
}
