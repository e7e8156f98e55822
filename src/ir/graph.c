// Building and reading graphs. Printing, parsing and verifying are in print.c, parse.c and verify.c.
#include "ir/graph.h"

#include "ops/op.h"

static const struct {
    const char *name;
    AttrKind kind;
} attr_table[ATTR_COUNT] = {
#define ATTR(ENUM, name, kind) [ATTR_##ENUM] = {name, ATTRK_##kind},
#include "ir/attrs.def"
#undef ATTR
};
AttrKind attr_kind(AttrKey k) { return attr_table[k].kind; }
const char *attr_name(AttrKey k) { return attr_table[k].name; }

const char *role_name(Role r) {
    static const char *const name[] = {"?", "tokens", "labels", "positions", "mask", "other"};
    return name[r];
}

static void release_vecs(void *g) { graph_free_vecs(g); }

Graph *graph_new(Arena *a, const char *name, int nranks) {
    Graph *g = ARENA_NEW(a, Graph);
    arena_defer(a, release_vecs, g);  // also of a graph that a failing pass leaves behind
    g->arena = a;
    g->name = arena_strdup(a, name ? name : "program");
    g->layouts = layouts_new(a, nranks);
    return g;
}

void graph_free_vecs(Graph *g) {
    vec_free(&g->nodes);
    vec_free(&g->values);
    vec_free(&g->params);
    vec_free(&g->consts);
    vec_free(&g->inputs);
    vec_free(&g->outputs);
}

Graph *graph_new_like(const Graph *g) {
    Graph *n = ARENA_NEW(g->arena, Graph);
    arena_defer(g->arena, release_vecs, n);
    n->arena = g->arena;
    n->name = g->name;
    n->batch = g->batch;
    n->seq = g->seq;
    n->layouts = g->layouts;
    for (int64_t i = 0; i < g->params.len; i++) vec_push(&n->params, g->params.data[i]);
    for (int64_t i = 0; i < g->consts.len; i++) vec_push(&n->consts, g->consts.data[i]);
    for (int64_t i = 0; i < g->inputs.len; i++) vec_push(&n->inputs, g->inputs.data[i]);
    return n;
}

bool value_on_host(const Graph *g, ValueId v) {
    const Node *n = graph_def(g, v);
    return n->op == OP_OFFLOAD || n->op == OP_OFFLOAD_DONE || (n->op == OP_PARAM && node_int_or(n, ATTR_HOST, 0));
}

// ---- attributes ----------------------------------------------------------------------------------------------------------

const Attr *node_attr(const Node *n, AttrKey k) {
    for (int i = 0; i < n->nattr; i++)
        if (n->attr[i].key == k) return &n->attr[i];
    return NULL;
}

static const Attr *require_attr(const Node *n, AttrKey k) {
    const Attr *a = node_attr(n, k);
    CHECK(a, "%s has no attribute \"%s\"", op_name(n->op), attr_name(k));
    return a;
}

int64_t node_int(const Node *n, AttrKey k) { return require_attr(n, k)->u.i; }
double node_float(const Node *n, AttrKey k) { return require_attr(n, k)->u.f; }
const char *node_str(const Node *n, AttrKey k) { return require_attr(n, k)->u.str; }

int64_t node_int_or(const Node *n, AttrKey k, int64_t dflt) {
    const Attr *a = node_attr(n, k);
    return a ? a->u.i : dflt;
}

double node_float_or(const Node *n, AttrKey k, double dflt) {
    const Attr *a = node_attr(n, k);
    return a ? a->u.f : dflt;
}

const Program *node_prog(const Node *n, AttrKey k) {
    const Attr *a = node_attr(n, k);
    return a ? a->u.prog : NULL;
}

int node_ints(const Node *n, AttrKey k, const int64_t **out) {
    const Attr *a = node_attr(n, k);
    *out = a ? a->u.ints : NULL;
    return a ? a->n : 0;
}

static bool attr_equal(const Attr *a, const Attr *b) {
    switch (attr_kind(a->key)) {
        case ATTRK_INT: return a->u.i == b->u.i;
        case ATTRK_FLOAT: return !memcmp(&a->u.f, &b->u.f, sizeof a->u.f);
        case ATTRK_INTS: return a->n == b->n && (a->n == 0 || !memcmp(a->u.ints, b->u.ints, sizeof(int64_t) * (size_t)a->n));
        case ATTRK_STR: return !strcmp(a->u.str, b->u.str);
        case ATTRK_PROG: return program_equal(a->u.prog, b->u.prog);
    }
    return false;
}

bool attrs_equal(const Node *a, const Node *b) {
    if (a->nattr != b->nattr) return false;
    for (int i = 0; i < a->nattr; i++) {
        const Attr *other = node_attr(b, a->attr[i].key);
        if (!other || !attr_equal(&a->attr[i], other)) return false;
    }
    return true;
}

static Program *program_copy(Arena *a, const Program *p) {
    Program *q = ARENA_NEW(a, Program);
    *q = *p;
    q->instr = arena_copy(a, p->instr, sizeof(Instr) * (size_t)p->ninstr);
    q->out = arena_copy(a, p->out, sizeof(int32_t) * (size_t)p->nout);
    return q;
}

// Deep copies, so that callers may build attributes on the stack.
static Attr *copy_attrs(Arena *a, int n, const Attr *attr) {
    Attr *out = ARENA_ARRAY(a, Attr, n);
    for (int i = 0; i < n; i++) {
        out[i] = attr[i];
        switch (attr_kind(attr[i].key)) {
            case ATTRK_INTS: out[i].u.ints = arena_copy(a, attr[i].u.ints, sizeof(int64_t) * (size_t)attr[i].n); break;
            case ATTRK_STR: out[i].u.str = arena_strdup(a, attr[i].u.str); break;
            case ATTRK_PROG: out[i].u.prog = program_copy(a, attr[i].u.prog); break;
            default: break;
        }
    }
    return out;
}

// ---- nodes -----------------------------------------------------------------------------------------------------------------

enum { MAX_OUTPUTS = 64 };

// Appends the node record and its output values; the types were inferred or copied.
static NodeId append_node(Graph *g, Node n, const TypeOut *type) {
    NodeId id = (NodeId)g->nodes.len;
    n.out = ARENA_ARRAY(g->arena, ValueId, n.nout);
    for (int j = 0; j < n.nout; j++) {
        n.out[j] = (ValueId)g->values.len;
        vec_push(&g->values, ((Value){.dtype = type[j].dtype, .shape = type[j].shape, .def = id, .index = (int16_t)j}));
    }
    vec_push(&g->nodes, n);
    return id;
}

static Status add_failed(const Graph *g, const Node *n, Diag *d) {
    Str s = {0};
    str_printf(&s, "%s(", op_name(n->op));
    for (int i = 0; i < n->nin; i++) {
        const Value *v = graph_value(g, n->in[i]);
        str_printf(&s, "%s%%%d: %s[", i ? ", " : "", n->in[i], dtype_name(v->dtype));
        for (int k = 0; k < v->shape.ndim; k++) str_printf(&s, k ? ",%lld" : "%lld", (long long)v->shape.dim[k]);
        str_add(&s, "]");
    }
    str_add(&s, ")");
    if (n->source) str_printf(&s, " at %s", n->source);
    Status st = diag_where(d, "%s", str_text(&s));
    str_free(&s);
    return st;
}

Status graph_add(Graph *g, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr, const char *source, Phase phase,
                 NodeId *out, Diag *d) {
    for (int i = 0; i < nin; i++)
        CHECK(in[i] >= 0 && in[i] < g->values.len, "%s: input %d is value %d of %lld", op_name(op), i, in[i], (long long)g->values.len);
    Node n = {.op = op, .phase = phase, .nin = (int16_t)nin, .nattr = (int16_t)nattr, .source = source};
    n.in = arena_copy(g->arena, in, sizeof(ValueId) * (size_t)nin);
    n.attr = copy_attrs(g->arena, nattr, attr);
    TypeOut type[MAX_OUTPUTS];
    int nout = 0;
    Status st = op_info(op)->infer(g, &n, &nout, type, d);
    if (st != ST_OK) return add_failed(g, &n, d);
    CHECK(nout >= 1 && nout <= MAX_OUTPUTS, "%s has %d outputs", op_name(op), nout);
    n.nout = (int16_t)nout;
    NodeId id = append_node(g, n, type);
    if (out) *out = id;
    return ST_OK;
}

void graph_add_output(Graph *g, OutputKind kind, int32_t param, int32_t slot, const char *name, ValueId v) {
    CHECK(v >= 0 && v < g->values.len, "output %s is value %d", name ? name : "?", v);
    vec_push(&g->outputs, ((Output){.kind = kind, .param = param, .slot = slot, .name = arena_strdup(g->arena, name), .value = v}));
}

int32_t *graph_use_counts(const Graph *g, Arena *scratch) {
    int32_t *count = ARENA_ARRAY(scratch, int32_t, g->values.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = &g->nodes.data[i];
        for (int k = 0; k < n->nin; k++) count[n->in[k]]++;
    }
    for (int64_t i = 0; i < g->outputs.len; i++) count[g->outputs.data[i].value]++;
    return count;
}

void graph_copy_node(const Graph *src, NodeId id, Graph *dst, ValueId *map) {
    const Node *old = graph_node(src, id);
    Node n = *old;  // attributes are immutable and shared: both graphs live in one arena
    CHECK(src->arena == dst->arena, "copy across arenas");
    n.in = ARENA_ARRAY(dst->arena, ValueId, n.nin);
    for (int i = 0; i < n.nin; i++) {
        n.in[i] = map[old->in[i]];
        CHECK(n.in[i] != NO_VALUE, "%s: input %d (value %d) was not copied yet", op_name(n.op), i, old->in[i]);
    }
    TypeOut type[MAX_OUTPUTS] = {0};
    for (int j = 0; j < n.nout; j++) {
        const Value *v = graph_value(src, old->out[j]);
        type[j] = (TypeOut){v->dtype, v->shape};
    }
    NodeId to = append_node(dst, n, type);
    for (int j = 0; j < n.nout; j++) {
        ValueId v = graph_node(dst, to)->out[j];
        graph_value(dst, v)->place = graph_value(src, old->out[j])->place;
        graph_value(dst, v)->name = graph_value(src, old->out[j])->name;
        map[old->out[j]] = v;
    }
}

static void describe_value(const Graph *g, ValueId id, Str *s) {
    const Value *v = graph_value(g, id);
    str_printf(s, "%%%d: %s[", id, dtype_name(v->dtype));
    for (int k = 0; k < v->shape.ndim; k++) str_printf(s, k ? ",%lld" : "%lld", (long long)v->shape.dim[k]);
    str_add(s, "]");
}

const char *node_describe(const Graph *g, NodeId id, Arena *scratch) {
    const Node *n = graph_node(g, id);
    Str s = {0};
    for (int j = 0; j < n->nout; j++) str_printf(&s, "%s%%%d", j ? ", " : "", n->out[j]);
    const char *name = graph_value(g, n->out[0])->name;
    if (name) str_printf(&s, " \"%s\"", name);
    str_printf(&s, " = %s(", op_name(n->op));
    for (int i = 0; i < n->nin; i++) {
        if (i) str_add(&s, ", ");
        if (n->in[i] >= 0 && n->in[i] < g->values.len)
            describe_value(g, n->in[i], &s);
        else
            str_printf(&s, "%%%d?", n->in[i]);  // the verifier describes broken nodes too
    }
    str_add(&s, ")");
    if (n->source) str_printf(&s, "  at %s", n->source);
    const char *text = arena_strdup(scratch, str_text(&s));
    str_free(&s);
    return text;
}
