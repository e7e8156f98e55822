// Copying a graph with changes; see rewrite.h.
#include "pass/rewrite.h"

#include "ops/op.h"

void rewrite_begin(Rewrite *r, const Graph *in, Arena *scratch, Diag *d) {
    *r = (Rewrite){.in = in, .out = graph_new_like(in), .scratch = scratch};
    r->b = (Builder){.g = r->out, .d = d};
    r->map = ARENA_ARRAY(scratch, ValueId, in->values.len);
    for (int64_t i = 0; i < in->values.len; i++) r->map[i] = NO_VALUE;
}

void rewrite_at(Rewrite *r, NodeId n) {
    const Node *node = graph_node(r->in, n);
    r->b.source = node->source;
    r->b.note = node->note;
    r->b.phase = node->phase;
}

void rewrite_copy(Rewrite *r, NodeId n) { graph_copy_node(r->in, n, r->out, r->map); }

// A stack of its own: chains may be as long as the program.
void rewrite_before(Rewrite *r, ValueId v) {
    VEC(NodeId) stack = {0};
    if (r->map[v] == NO_VALUE) vec_push(&stack, graph_value(r->in, v)->def);
    while (stack.len) {
        NodeId id = stack.data[stack.len - 1], missing = NO_NODE;
        const Node *n = graph_node(r->in, id);
        for (int k = 0; k < n->nin && missing == NO_NODE; k++)
            if (r->map[n->in[k]] == NO_VALUE) missing = graph_value(r->in, n->in[k])->def;
        if (missing != NO_NODE) {
            vec_push(&stack, missing);
            continue;
        }
        if (r->map[n->out[0]] == NO_VALUE) rewrite_copy(r, id);
        stack.len--;
    }
    vec_free(&stack);
}

Status rewrite_finish(Rewrite *r, Graph **out) {
    if (r->b.status == ST_OK) {
        for (int64_t i = 0; i < r->in->outputs.len; i++) {
            const Output *o = &r->in->outputs.data[i];
            graph_add_output(r->out, o->kind, o->param, o->slot, o->name, r->map[o->value]);
        }
        *out = rewrite_prune(r->out, r->in->consts.len, r->scratch);
    }
    graph_free_vecs(r->out);
    return r->b.status;
}

int64_t rewrite_add_const(Graph *g, Shape s, DType t, const void *data) {
    size_t nbytes = (size_t)shape_numel(&s) * (size_t)dtype_nbytes(t);
    int64_t index = g->consts.len;
    for (int64_t i = 0; i < index && nbytes <= 1 << 20; i++) {  // equal tables are one
        const Const *o = &g->consts.data[i];
        if (o->dtype == t && o->data && shape_equal(&o->shape, &s) && !memcmp(o->data, data, nbytes)) return i;
    }
    const char *name = arena_printf(g->arena, "folded.%lld", (long long)index);
    vec_push(&g->consts, ((Const){.name = name, .shape = s, .dtype = t, .data = data}));
    return index;
}

bool *rewrite_live(const Graph *g, Arena *scratch) {
    bool *live = ARENA_ARRAY(scratch, bool, g->nodes.len);
    for (int64_t i = 0; i < g->outputs.len; i++) live[graph_value(g, g->outputs.data[i].value)->def] = true;
    for (int64_t i = g->nodes.len - 1; i >= 0; i--) {
        if (!live[i]) continue;
        const Node *n = &g->nodes.data[i];
        for (int k = 0; k < n->nin; k++) live[graph_value(g, n->in[k])->def] = true;
    }
    return live;
}

// Which consts stay, and the index that each gets.
static int32_t *renumber_consts(const Graph *g, const bool *live, int64_t keep, Graph *to, Arena *scratch) {
    bool *used = ARENA_ARRAY(scratch, bool, g->consts.len);
    int32_t *index = ARENA_ARRAY(scratch, int32_t, g->consts.len);
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (live[i] && g->nodes.data[i].op == OP_CONSTANT) used[node_int(&g->nodes.data[i], ATTR_INDEX)] = true;
    to->consts.len = 0;
    for (int64_t i = 0; i < g->consts.len; i++) {
        index[i] = (int32_t)to->consts.len;
        if (used[i] || i < keep) vec_push(&to->consts, g->consts.data[i]);
    }
    return index;
}

Graph *rewrite_prune(const Graph *g, int64_t keep_consts, Arena *scratch) {
    bool *live = rewrite_live(g, scratch);
    Graph *to = graph_new_like(g);
    int32_t *index = renumber_consts(g, live, keep_consts, to, scratch);
    ValueId *map = ARENA_ARRAY(scratch, ValueId, g->values.len);
    for (int64_t i = 0; i < g->values.len; i++) map[i] = NO_VALUE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        if (!live[i]) continue;
        graph_copy_node(g, (NodeId)i, to, map);
        Node *n = graph_node(to, (NodeId)(to->nodes.len - 1));
        if (n->op != OP_CONSTANT) continue;
        int64_t was = node_int(n, ATTR_INDEX);
        if (index[was] == was) continue;
        n->attr = arena_copy(to->arena, n->attr, sizeof(Attr) * (size_t)n->nattr);  // shared with the old graph until now
        for (int k = 0; k < n->nattr; k++)
            if (n->attr[k].key == ATTR_INDEX) n->attr[k].u.i = index[was];
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        graph_add_output(to, o->kind, o->param, o->slot, o->name, map[o->value]);
    }
    return to;
}

bool *rewrite_needs_grad(const Graph *g, Arena *scratch) {
    bool *needs = ARENA_ARRAY(scratch, bool, g->values.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = &g->nodes.data[i];
        bool any = n->op == OP_PARAM && node_int_or(n, ATTR_KIND, 0) == 0 && g->params.data[node_int(n, ATTR_INDEX)].trainable;
        for (int k = 0; k < n->nin; k++) any = any || needs[n->in[k]];
        const OpInfo *info = op_info(n->op);
        if (n->op == OP_STOP_GRAD || (n->op != OP_PARAM && !info->grad && !info->grad_error)) any = false;
        for (int j = 0; j < n->nout; j++) needs[n->out[j]] = any && dtype_is_float(graph_value(g, n->out[j])->dtype);
    }
    return needs;
}
