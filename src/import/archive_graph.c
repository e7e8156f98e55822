// model.json's graph -> AtenGraph. Names are resolved here, so that the lowering may look them up without asking.
#include "import/archive.h"

#define MAX_GRAPH_DEPTH 16

// Names made so far in one graph.
typedef struct Scope {
    Map *tensor, *size;
} Scope;

// A derived dim ("4*s75", example 64) may be all that tells a symbol's example value.
static void hint_from(ArchiveReader *r, const Sym *s, int64_t hint) {
    int64_t n = r->syms.symbol.len, values[256];
    if (n > (int64_t)(sizeof values / sizeof *values)) return;
    for (int64_t i = 0; i < n; i++) values[i] = r->syms.symbol.data[i].hint;
    if (!sym_solve(values, s, &(Sym){.op = SYM_INT, .value = hint})) return;
    for (int64_t i = 0; i < n; i++) r->syms.symbol.data[i].hint = values[i];
}

Status archive_read_size(ArchiveReader *r, const json_t *v, Sym **out, int64_t *hint) {
    const char *key, *text;
    json_t *x, *h;
    if (hint) *hint = SYM_UNBOUND;
    TRY(json_union(v, &key, &x, r->d));
    if (strcmp(key, "as_int") == 0) {
        TRY(json_expect(x, JSON_INTEGER, "a size", r->d));
        *out = ARENA_NEW(r->a, Sym);
        **out = (Sym){.op = SYM_INT, .value = json_integer_value(x)};
        if (hint) *hint = (*out)->value;
        return ST_OK;
    }
    if (strcmp(key, "as_expr") != 0) return diag_error(r->d, ST_INPUT, "\"%.60s\" where a size is expected", key);
    TRY(json_field_str(x, "expr_str", &text, r->d));
    TRY(json_field_opt(x, "hint", JSON_OBJECT, &h, r->d));
    h = h ? json_object_get(h, "as_int") : NULL;
    int64_t known;
    bool fresh = false;
    if (map_get(r->sym_cache, text, &known)) {
        *out = r->sym_parsed.data[known];
    } else {
        SymScope scope = {.a = r->a, .table = &r->syms};
        TRY(sym_parse(&scope, text, out, r->d));
        map_set(r->sym_cache, text, r->sym_parsed.len);
        vec_push(&r->sym_parsed, *out);
        fresh = true;
    }
    if (json_is_integer(h)) {
        if (hint) *hint = json_integer_value(h);
        if (fresh) hint_from(r, *out, json_integer_value(h));
    }
    return ST_OK;
}

// Sizes that cannot be read do not matter unless an op asks for them: the tensor is marked unknown.
static Status read_tensor(ArchiveReader *r, const char *name, const json_t *v, AtenTensor *out) {
    json_t *sizes;
    int64_t dtype;
    TRY(json_field_int(v, "dtype", &dtype, r->d));
    TRY(json_field(v, "sizes", JSON_ARRAY, &sizes, r->d));
    if (dtype < 0 || dtype > 1000) return diag_error(r->d, ST_INPUT, "impossible dtype code %lld", (long long)dtype);
    size_t n = json_array_size(sizes);
    *out = (AtenTensor){.name = arena_strdup(r->a, name), .dtype = (int)dtype, .known = n <= MAX_DIMS};
    out->ndim = out->known ? (int)n : 0;
    for (int i = 0; i < out->ndim && out->known; i++) {
        Status st = archive_read_size(r, json_array_get(sizes, (size_t)i), &out->size[i], NULL);
        if (st == ST_UNSUPPORTED) {
            diag_clear(r->d);
            out->known = false;
        } else if (st != ST_OK) {
            return st;
        }
        if (out->known && out->size[i]->op == SYM_INT && out->size[i]->value < 0)
            return diag_error(r->d, ST_INPUT, "negative size %lld", (long long)out->size[i]->value);
    }
    return ST_OK;
}

static Status read_tensor_table(ArchiveReader *r, const json_t *table, AtenGraph *g) {
    const char *name;
    json_t *v;
    g->tensor_index = map_new(r->a);
    g->tensor = ARENA_ARRAY(r->a, AtenTensor, json_object_size(table));
    json_object_foreach((json_t *)table, name, v) {
        if (read_tensor(r, name, v, &g->tensor[g->ntensor]) != ST_OK) return diag_where(r->d, "tensor '%.200s'", name);
        map_set(g->tensor_index, name, g->ntensor++);
    }
    return ST_OK;
}

static Status use_name(ArchiveReader *r, const Map *made, const char *what, const char *name) {
    int64_t at;
    if (!name || map_get(made, name, &at)) return ST_OK;  // NULL: an absent optional tensor or a literal size
    return diag_error(r->d, ST_INPUT, "%s '%.200s' is used before it is made", what, name);
}

static Status make_name(ArchiveReader *r, Map *made, const char *what, const char *name) {
    int64_t at;
    if (!name || !*name) return ST_OK;  // outputs that nothing uses may go without a name
    if (map_get(made, name, &at)) return diag_error(r->d, ST_INPUT, "%s '%.200s' is made twice", what, name);
    map_set(made, name, 1);
    return ST_OK;
}

// Checks (make = false) or records (make = true) the names that an argument mentions.
static Status visit_names(ArchiveReader *r, const Scope *s, const Arg *a, bool make) {
    for (int i = 0; a->names && i < a->n; i++)
        TRY(make ? make_name(r, s->tensor, "tensor", a->names[i]) : use_name(r, s->tensor, "tensor", a->names[i]));
    for (int i = 0; a->sym_names && i < a->n; i++)
        TRY(make ? make_name(r, s->size, "size", a->sym_names[i]) : use_name(r, s->size, "size", a->sym_names[i]));
    return ST_OK;
}

static Status read_args(ArchiveReader *r, const json_t *list, int depth, const Scope *s, bool make, int *n, Arg **out) {
    *n = (int)json_array_size(list);
    *out = ARENA_ARRAY(r->a, Arg, *n);
    for (int i = 0; i < *n; i++) {
        Arg *arg = &(*out)[i];
        arg->name = "";
        Status st = archive_read_arg(r, json_array_get(list, (size_t)i), depth, arg);
        if (st == ST_OK) st = visit_names(r, s, arg, make);
        if (st != ST_OK) return st;
    }
    return ST_OK;
}

static Status read_named_args(ArchiveReader *r, const json_t *list, int depth, const Scope *s, AtenNode *node) {
    node->nin = (int)json_array_size(list);
    node->in = ARENA_ARRAY(r->a, Arg, node->nin);
    for (int i = 0; i < node->nin; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        const char *name;
        json_t *value;
        TRY(json_field_str(v, "name", &name, r->d));
        node->in[i].name = arena_strdup(r->a, name);
        Status st = json_field(v, "arg", JSON_OBJECT, &value, r->d);
        if (st == ST_OK) st = archive_read_arg(r, value, depth, &node->in[i]);
        if (st == ST_OK) st = visit_names(r, s, &node->in[i], false);
        if (st != ST_OK) return diag_where(r->d, "argument '%.100s'", name);
    }
    return ST_OK;
}

static Status read_node(ArchiveReader *r, const json_t *v, int depth, const Scope *s, AtenNode *node) {
    const char *target;
    json_t *in, *out, *meta;
    TRY(json_field_str(v, "target", &target, r->d));
    node->target = arena_strdup(r->a, target);
    Status st = json_field_opt(v, "metadata", JSON_OBJECT, &meta, r->d);
    if (st == ST_OK && meta) node->source = archive_node_source(r->a, meta);
    if (st == ST_OK) st = json_field(v, "inputs", JSON_ARRAY, &in, r->d);
    if (st == ST_OK) st = json_field(v, "outputs", JSON_ARRAY, &out, r->d);
    if (st == ST_OK) st = read_named_args(r, in, depth, s, node);
    if (st == ST_OK) st = read_args(r, out, depth, s, true, &node->nout, &node->out);
    if (st != ST_OK) return diag_where(r->d, "%.200s%s%s", target, node->source ? " at " : "", node->source ? node->source : "");
    return ST_OK;
}

Status archive_read_graph(ArchiveReader *r, const json_t *graph, int depth, AtenGraph **out) {
    if (depth > MAX_GRAPH_DEPTH) return diag_error(r->d, ST_INPUT, "sub-graphs nested over %d deep", MAX_GRAPH_DEPTH);
    json_t *in, *outs, *nodes, *table;
    TRY(json_field(graph, "inputs", JSON_ARRAY, &in, r->d));
    TRY(json_field(graph, "outputs", JSON_ARRAY, &outs, r->d));
    TRY(json_field(graph, "nodes", JSON_ARRAY, &nodes, r->d));
    TRY(json_field(graph, "tensor_values", JSON_OBJECT, &table, r->d));
    AtenGraph *g = ARENA_NEW(r->a, AtenGraph);
    Scope s = {map_new(r->scratch), map_new(r->scratch)};
    TRY(read_tensor_table(r, table, g));
    if (read_args(r, in, depth, &s, true, &g->nin, &g->in) != ST_OK) return diag_where(r->d, "graph inputs");
    g->nnode = (int)json_array_size(nodes);
    g->node = ARENA_ARRAY(r->a, AtenNode, g->nnode);
    for (int i = 0; i < g->nnode; i++)
        if (read_node(r, json_array_get(nodes, (size_t)i), depth, &s, &g->node[i]) != ST_OK)
            return diag_where(r->d, "node %d", i);
    if (read_args(r, outs, depth, &s, false, &g->nout, &g->out) != ST_OK) return diag_where(r->d, "graph outputs");
    *out = g;
    return ST_OK;
}
