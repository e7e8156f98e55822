// Which values share a buffer: views, in-place updates, and pointwise results that take over an input nobody reads again. All
// of it is decided on the global graph, so that every rank decides alike.
#include "plan/lower.h"

ValueId lower_group(const Lower *l, ValueId v) {
    while (l->group[v] != v) v = l->group[v] = l->group[l->group[v]];
    return v;
}

static int64_t value_nbytes(const Lower *l, ValueId v) {
    return shape_numel(graph_shape(l->g, v)) * dtype_nbytes(graph_value(l->g, v)->dtype);
}

static void join_at(Lower *l, ValueId v, ValueId into, NodeId node, int part) {
    ValueId a = lower_group(l, v), b = lower_group(l, into);
    if (l->parts) vec_push(&l->joins, ((Join){v, into, node, part}));
    if (a == b) return;
    if (l->parts && value_nbytes(l, a) > value_nbytes(l, b)) {  // a group is named by its whole
        ValueId swap = a;
        a = b, b = swap;
    }
    l->group[a] = b;
    Group *x = &l->info[a], *y = &l->info[b];
    CHECK(x->host == y->host, "%%%d and %%%d: one buffer in host memory and on the device", v, into);
    y->last = y->last > x->last ? y->last : x->last;
    y->persistent |= x->persistent;
    y->output |= x->output;
    y->parts |= x->parts;
}

static void join(Lower *l, ValueId v, ValueId into) { join_at(l, v, into, NO_NODE, 0); }

// The parts lie in the whole. What makes a part is then written there, so it must be at no other place already.
static Status join_parts(Lower *l, NodeId i, const Node *n) {
    for (int k = 0; k < n->nin; k++) {
        bool part = n->op == OP_PART;
        ValueId group = lower_group(l, n->in[k]);
        bool inside = value_nbytes(l, group) > value_nbytes(l, n->in[k]);  // it is a part of something else
        if (!part && (inside || l->info[group].persistent || group == lower_group(l, n->out[0])))
            return diag_error(l->d, ST_UNSUPPORTED, "%s: part %d, %%%d, lies elsewhere already", node_describe(l->g, i, l->a), k,
                              n->in[k]);
        join_at(l, part ? n->out[0] : n->in[k], part ? n->in[k] : n->out[0], i, k);
    }
    l->info[lower_group(l, n->out[0])].parts = true;
    return ST_OK;
}

// AdamW's outputs overwrite its inputs p, m, v, and with half=1 p's copy in bf16.
static const int adamw_state[4] = {0, 2, 3, 6};

static void find_uses(Lower *l) {
    const Graph *g = l->g;
    for (int64_t v = 0; v < g->values.len; v++) {
        l->group[v] = (ValueId)v;
        l->info[v] = (Group){.last = graph_value(g, (ValueId)v)->def, .host = value_on_host(g, (ValueId)v)};
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin; k++) l->info[n->in[k]].last = (int32_t)i;
        if (n->op == OP_FETCH_DONE) l->info[graph_def(g, n->in[0])->in[0]].last = (int32_t)i;  // the copy reads it until then
        if (l->action[i] == ACT_NONE) l->info[n->out[0]].persistent = true;
    }
    for (int64_t i = 0; i < g->outputs.len; i++) l->info[g->outputs.data[i].value].output = true;
}

// Several nodes may name one parameter, moment or copy (kinds 0 to 3); all of them are one buffer.
static Status join_states(Lower *l) {
    const Graph *g = l->g;
    ValueId *first = ARENA_ARRAY(l->a, ValueId, 4 * g->params.len);
    for (int64_t i = 0; i < 4 * g->params.len; i++) first[i] = NO_VALUE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_PARAM) continue;
        int64_t at = 4 * node_int(n, ATTR_INDEX) + node_int_or(n, ATTR_KIND, 0);
        if (first[at] == NO_VALUE) {
            first[at] = n->out[0];
            continue;
        }
        if (!placement_equal(&graph_value(g, first[at])->place, &graph_value(g, n->out[0])->place))
            return diag_error(l->d, ST_UNSUPPORTED, "%s: parameter \"%s\" is placed in two ways",
                              node_describe(g, (NodeId)i, l->a), g->params.data[node_int(n, ATTR_INDEX)].name);
        join(l, n->out[0], first[at]);
    }
    return ST_OK;
}

// An in-place update is the last reader of what it overwrites.
static Status join_in_place(Lower *l, NodeId i, const Node *n) {
    const Graph *g = l->g;
    CHECK(n->op == OP_ADAMW, "%s: which inputs does it overwrite?", op_name(n->op));
    for (int k = 0; k < n->nout; k++) {
        ValueId in = n->in[adamw_state[k]], group = lower_group(l, in);
        if (l->info[group].last > i)
            return diag_error(l->d, ST_UNSUPPORTED, "%s: overwrites %%%d, which is read again at %s", node_describe(g, i, l->a),
                              in, node_describe(g, l->info[group].last, l->a));
        const Group *gr = &l->info[group];
        bool fetched = graph_def(g, in)->op == OP_FETCH_DONE && !gr->output;  // state of host memory, while it is here
        if (!gr->persistent && !fetched)
            return diag_error(l->d, ST_UNSUPPORTED, "%s: updates %%%d, which is not a parameter's state",
                              node_describe(g, i, l->a), in);
    }
    for (int k = 0; k < n->nout; k++) join(l, n->out[k], n->in[adamw_state[k]]);
    return ST_OK;
}

// A copy that is complete is the copy that was started; new state takes the place of the old, whose last reader was before.
static Status join_copy(Lower *l, NodeId i, const Node *n) {
    if (n->op == OP_OFFLOAD_DONE || n->op == OP_FETCH_DONE) join(l, n->out[0], n->in[n->nin - 1]);
    if (n->op != OP_OFFLOAD || n->nin < 2) return ST_OK;
    const Group *gr = &l->info[lower_group(l, n->in[1])];
    if (gr->last > i)
        return diag_error(l->d, ST_UNSUPPORTED, "%s: written over %%%d, which is read again at %s", node_describe(l->g, i, l->a), n->in[1],
                          node_describe(l->g, gr->last, l->a));
    join(l, n->out[0], n->in[1]);
    return ST_OK;
}

// Output `v` of pointwise node i may be written over input `in`: same elements at the same places, not read by anyone later,
// and not read at other places by the same node.
static bool can_take_over(const Lower *l, NodeId i, const Node *n, ValueId v, ValueId in) {
    const Value *out = graph_value(l->g, v), *x = graph_value(l->g, in);
    if (!shape_equal(&out->shape, &x->shape) || !placement_equal(&out->place, &x->place)) return false;
    if (dtype_nbytes(out->dtype) != dtype_nbytes(x->dtype)) return false;
    const Group *gr = &l->info[lower_group(l, in)];
    if (gr->persistent || gr->output || gr->parts || gr->last > i) return false;  // of a whole, other parts may be alive
    for (int k = 0; k < n->nin; k++)
        if (lower_group(l, n->in[k]) == lower_group(l, in) && !shape_equal(graph_shape(l->g, n->in[k]), &x->shape)) return false;
    return true;
}

// Kernels write a block of every output only after reading that block of every input, so several outputs may take over an input
// each; but not where an output of the group is an input itself, read while the outputs are written. With a view a kernel reads
// other elements than those that it writes, with a row it may go over its inputs again after it wrote.
static bool writes_last(const Node *n) {
    if (node_attr(n, ATTR_ROW) || node_attr(n, ATTR_VIEWS)) return false;
    const Program *p = n->op == OP_FUSED ? node_prog(n, ATTR_PROG) : NULL;
    for (int k = 0; p && k < p->nout; k++)
        if (p->instr[p->out[k]].code < PROG_OP) return false;
    return true;
}

static bool is_taken(const Lower *l, const Node *n, ValueId in) {
    for (int k = 0; k < n->nout; k++)
        if (lower_group(l, n->out[k]) == lower_group(l, in)) return true;
    return false;
}

static void take_over(Lower *l, NodeId i, const Node *n) {
    if (!writes_last(n)) return;
    for (int j = 0; j < n->nout; j++)
        for (int k = 0; k < n->nin; k++) {
            if (is_taken(l, n, n->in[k]) || !can_take_over(l, i, n, n->out[j], n->in[k])) continue;
            join(l, n->out[j], n->in[k]);
            break;
        }
}

// A product may be written over what is added to it: each element is read before it is written, by the same kernel.
static void take_over_addend(Lower *l, NodeId i, const Node *n) {
    int at = op_addend(n->op);
    if (n->nin != at + 1 || node_int_or(n, ATTR_BIAS, 0)) return;
    ValueId c = lower_group(l, n->in[at]);
    for (int k = 0; k < at; k++)
        if (lower_group(l, n->in[k]) == c) return;
    if (can_take_over(l, i, n, n->out[0], n->in[at])) join(l, n->out[0], n->in[at]);
}

static void name_kinds(Lower *l) {
    const Graph *g = l->g;
    int64_t loss = INT64_MAX;  // phases do not tell: a forward node may run late and a backward node early
    for (int64_t i = 0; i < g->outputs.len; i++)
        if (g->outputs.data[i].kind == OUT_LOSS) loss = graph_value(g, g->outputs.data[i].value)->def;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nout; k++) {
            Group *gr = &l->info[lower_group(l, n->out[k])];
            if (gr->kind != BUF_KIND_COUNT) continue;  // named by its first value
            gr->kind = i < loss && gr->last > loss ? BUF_SAVED : BUF_TRANSIENT;
            if (gr->host) gr->kind = BUF_HOST;
            int64_t state = n->op == OP_PARAM ? node_int_or(n, ATTR_KIND, 0) : -1;
            if (state >= 0) gr->kind = state == 1 || state == 2 ? BUF_MOMENT : BUF_PARAM;
            if (n->op == OP_INPUT) gr->kind = BUF_INPUT;
            if (n->op == OP_CONSTANT) gr->kind = BUF_CONST;
        }
        if (n->op == OP_ADAMW) {
            Group *gr = &l->info[lower_group(l, n->in[1])];
            if (!gr->persistent) gr->kind = BUF_GRAD;
        }
    }
    for (int64_t i = 0; i < g->outputs.len; i++) {
        Group *gr = &l->info[lower_group(l, g->outputs.data[i].value)];
        if (g->outputs.data[i].kind == OUT_GRAD && !gr->persistent) gr->kind = BUF_GRAD;
    }
}

Status lower_groups(Lower *l) {
    const Graph *g = l->g;
    l->group = ARENA_ARRAY(l->a, ValueId, g->values.len);
    l->info = ARENA_ARRAY(l->a, Group, g->values.len);
    for (int64_t i = 0; i < g->nodes.len; i++) l->parts |= (op_flags(graph_node(g, (NodeId)i)->op) & OPF_PLACED) != 0;
    find_uses(l);
    TRY(join_states(l));
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (l->action[i] == ACT_COPY) TRY(join_copy(l, (NodeId)i, n));
        if (l->action[i] != ACT_ALIAS) continue;
        if (op_flags(n->op) & OPF_PLACED) TRY(join_parts(l, (NodeId)i, n));
        else join(l, n->out[0], n->in[0]);
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (l->action[i] != ACT_KERNEL) continue;
        if (op_flags(n->op) & OPF_INPLACE) TRY(join_in_place(l, (NodeId)i, n));
        else if (op_is_pointwise(n->op) || n->op == OP_FUSED) take_over(l, (NodeId)i, n);
        else if (op_addend(n->op) >= 0) take_over_addend(l, (NodeId)i, n);
    }
    for (int64_t v = 0; v < g->values.len; v++) l->info[v].kind = BUF_KIND_COUNT;
    name_kinds(l);
    return ST_OK;
}
