// Lowering: the archive's ATen program, with its symbols bound, becomes a graph of core ops. This file walks the nodes; what
// each ATen op means is in the rows of lower_*.c, found here by name. After every node the inferred types are compared with
// the types that the exporter stored: a disagreement is an error, never a wrong answer.
#include "import/lower.h"

#include <stdarg.h>

// ---- errors ---------------------------------------------------------------------------------------------------------------

static void latch(Lower *l, Status s, const char *prefix, const char *fmt, va_list ap) {
    if (lower_failed(l)) return;
    char text[1024];
    vsnprintf(text, sizeof text, fmt, ap);
    l->b.status = diag_error(l->b.d, s, "%s%s", prefix, text);
}

void lower_refuse(Lower *l, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    latch(l, ST_UNSUPPORTED, "not supported: ", fmt, ap);
    va_end(ap);
}

void lower_invalid(Lower *l, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    latch(l, ST_INPUT, "", fmt, ap);
    va_end(ap);
}

void lower_note(Lower *l, const char *text) {
    if (l->report) vec_push(&l->report->notes, text);
}

// ---- results --------------------------------------------------------------------------------------------------------------

void lower_bind(Lower *l, const char *name, Bind b) {
    if (!name) return;
    map_set(l->scope->names, name, l->binds.len);
    vec_push(&l->binds, b);
}

void lower_out_handle(Lower *l, int i, int32_t tensor) {
    if (lower_failed(l) || i >= l->nout || !l->out[i]) return;
    ValueId v = l->tensors.data[tensor].value;
    if (!graph_value(l->b.g, v)->name) graph_value(l->b.g, v)->name = arena_strdup(l->arena, l->out[i]);
    if (l->part == 1) {  // the real part is bound already
        int64_t at;
        CHECK(map_get(l->scope->names, l->out[i], &at), "part 1 of `%s` before part 0", l->out[i]);
        lower_bind_complex(l, l->out[i], l->binds.data[at].tensor, tensor);
        return;
    }
    lower_bind(l, l->out[i], (Bind){.kind = BIND_TENSOR, .tensor = tensor});
}

void lower_out(Lower *l, int i, ValueId v) {
    if (lower_failed(l)) return;
    if (l->inplace && i == 0) {
        l->written = v;
        return;
    }
    lower_out_handle(l, i, lower_new(l, v));
}

void lower_out_view(Lower *l, int i, int32_t parent, View v) {
    if (lower_failed(l)) return;
    int32_t t = lower_new_view(l, parent, v);
    if (!lower_failed(l)) lower_out_handle(l, i, t);
}

void lower_out_number(Lower *l, int i, Bind b) {
    if (lower_failed(l) || i >= l->nout) return;
    lower_bind(l, l->out[i], b);
}

int64_t lower_stream(Lower *l) {
    if (!l->noted_random) {
        lower_note(l, "random numbers (dropout, rand) come from a generator keyed by position: they differ from PyTorch's");
        l->noted_random = true;
    }
    return l->nstream++;
}

// ---- one node -------------------------------------------------------------------------------------------------------------

// "torch.ops.aten.add_.Tensor" -> "add_"; other namespaces keep theirs: "_operator.mul", "higher_order.cond".
static void op_key(const char *target, char *key, size_t cap) {
    static const char ops[] = "torch.ops.", aten[] = "aten.";
    bool is_op = !strncmp(target, ops, sizeof ops - 1);
    if (is_op) target += sizeof ops - 1;
    snprintf(key, cap, "%s", target);
    if (!is_op) return;
    char *name = key;
    if (!strncmp(key, aten, sizeof aten - 1)) {
        memmove(key, key + sizeof aten - 1, strlen(key + sizeof aten - 1) + 1);
    } else {
        char *dot = strchr(key, '.');
        if (dot) name = dot + 1;
    }
    char *overload = strchr(name, '.');
    if (overload) *overload = 0;
}

// The functional name of an in-place op: "add_" -> "add", "__iand__" -> "__and__".
static bool functional_key(char *key) {
    size_t n = strlen(key);
    if (n > 5 && !strncmp(key, "__i", 3) && !strcmp(key + n - 2, "__")) {
        memmove(key + 2, key + 3, n - 2);
        return true;
    }
    if (n < 2 || key[n - 1] != '_' || key[n - 2] == '_') return false;
    key[n - 1] = 0;
    return true;
}

static const LowerRow *find_row(const Lower *l, const char *target, bool *inplace) {
    char key[160];
    int64_t i;
    op_key(target, key, sizeof key);
    *inplace = false;
    if (map_get(l->rows, key, &i)) return l->row.data[i];
    if (!functional_key(key) || !map_get(l->rows, key, &i)) return NULL;
    *inplace = true;
    return l->row.data[i];
}

// Writes into a tensor that was there before: itself, or in a subgraph.
static bool mutates(const AtenNode *n) {
    char key[160];
    op_key(n->target, key, sizeof key);
    if (functional_key(key)) return true;
    for (int i = 0; i < n->nin; i++)
        for (int k = 0; n->in[i].kind == ARG_GRAPH && k < n->in[i].graph->nnode; k++)
            if (mutates(&n->in[i].graph->node[k])) return true;
    return false;
}

// One entry per output; a list output is spread out.
static void collect_outputs(Lower *l) {
    int n = 0;
    for (int i = 0; i < l->n->nout; i++) n += l->n->out[i].kind == ARG_TENSORS ? l->n->out[i].n : 1;
    l->nout = n;
    l->out = ARENA_ARRAY(l->arena, const char *, n);
    n = 0;
    for (int i = 0; i < l->n->nout; i++) {
        const Arg *a = &l->n->out[i];
        if (a->kind == ARG_TENSORS) {
            for (int k = 0; k < a->n; k++) l->out[n++] = a->names[k];
        } else if (a->kind == ARG_TENSOR) {
            l->out[n++] = a->names[0];
        } else {
            l->out[n++] = a->kind == ARG_NONE || !a->sym_names ? NULL : a->sym_names[0];
        }
    }
}

static bool same_sizes(const Lower *l, const AtenTensor *t, const Shape *s, Shape *stored) {
    Diag scratch = {0};
    *stored = (Shape){.ndim = t->ndim};
    for (int k = 0; k < t->ndim; k++)
        if (sym_eval(l->ar, t->size[k], l->values, &stored->dim[k], &scratch) != ST_OK) return true;  // data-dependent: not known
    return shape_equal(s, stored);
}

static const char *shape_string(Arena *a, const Shape *s) {
    Str t = {0};
    str_add(&t, "[");
    for (int i = 0; i < s->ndim; i++) str_printf(&t, "%s%lld", i ? ", " : "", (long long)s->dim[i]);
    str_add(&t, "]");
    const char *out = arena_strdup(a, str_text(&t));
    str_free(&t);
    return out;
}

// Integers of 8 and 16 bits wrap around in PyTorch; here all integers have 64 bits.
static bool may_wrap(const Lower *l, int code) {
    static const char *const list[] = {"add",         "sub", "rsub",         "mul",  "neg",
                                       "bitwise_not", "pow", "floor_divide", "copy", "cumsum"};
    for (size_t i = 0; code >= 1 && code <= 3 && i < sizeof list / sizeof *list; i++)
        if (!strcmp(l->cur->name, list[i])) return true;
    return false;
}

// The exporter's own types against ours.
static void check_output(Lower *l, const char *name) {
    int64_t at, where;
    if (lower_failed(l) || !name || !map_get(l->scope->graph->tensor_index, name, &at)) return;
    const AtenTensor *t = &l->scope->graph->tensor[at];
    if (!map_get(l->scope->names, name, &where)) return;
    const Bind *b = &l->binds.data[where];
    if (b->kind != BIND_TENSOR && b->kind != BIND_COMPLEX) return;
    ValueId v = lower_read(l, b->tensor);
    if (lower_failed(l)) return;
    DType want = l->real;
    if (b->kind == BIND_COMPLEX ? !lower_is_complex_code(t->dtype) : !lower_category(l, t->dtype, &want)) {
        lower_refuse(l, "its result has an element type that is neither real, integer nor bool; rewrite it with real tensors");
        return;
    }
    if (l->cur && may_wrap(l, t->dtype)) {
        lower_refuse(l, "arithmetic in 8- or 16-bit integers, which wrap around; use 64-bit integers or bool");
        return;
    }
    if (want != LDTYPE(l, v)) {
        lower_invalid(l, "internal: `%s` came out as %s, the archive says %s", name, dtype_name(LDTYPE(l, v)), dtype_name(want));
        return;
    }
    Shape stored, s = LSHAPE(l, v);
    if (t->known && !same_sizes(l, t, &s, &stored))
        lower_invalid(l, "internal: `%s` came out as %s, the archive says %s", name, shape_string(l->arena, &s),
                      shape_string(l->arena, &stored));
}

// Arguments that change where or how, not what, is computed.
static bool harmless(const char *name) {
    static const char *const list[] = {"device",       "layout",       "pin_memory", "memory_format",
                                       "non_blocking", "cudnn_enable", "generator",  "cudnn_enabled",
                                       "copy",         "implicit",     "out_int32",  "stable"};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (!strcmp(name, list[i])) return true;
    return false;
}

static void check_arguments(Lower *l) {
    if (lower_failed(l)) return;
    for (int i = 0; i < l->n->nin && i < 64; i++) {
        const Arg *a = &l->n->in[i];
        if ((l->used >> i & 1) || a->kind == ARG_NONE || !a->name[0] || harmless(a->name)) continue;
        lower_refuse(l, "its argument `%s` has no meaning here; leave it at its default", a->name);
        return;
    }
}

// add_(x, y) is x = add(x, y), seen by everything that shares x's memory.
static void run_inplace(Lower *l) {
    const Arg *self = l->n->nin ? &l->n->in[0] : NULL;
    if (!self || self->kind != ARG_TENSOR) {
        lower_refuse(l, "an in-place operation without a tensor to write to");
        return;
    }
    l->inplace = true;
    l->written = NO_VALUE;
    l->cur->fn(l);
    l->inplace = false;
    if (lower_failed(l)) return;
    if (l->written < 0) {
        lower_refuse(l, "it has no in-place form here; use the form that returns a new tensor");
        return;
    }
    int32_t t = lower_handle(l, self->name);
    lower_write(l, t, l->written);
    lower_out_handle(l, 0, t);
}

static Status node_status(Lower *l) {
    if (!lower_failed(l)) return ST_OK;
    const AtenNode *n = l->n;
    const char *name = l->nout && l->out[0] ? l->out[0] : "(no output)";
    return diag_where(l->b.d, "node %s (%s) at %s", name, n->target, n->source ? n->source : "an unknown line");
}

static Status lower_node(Lower *l, const AtenNode *n) {
    bool inplace;
    l->n = n;
    l->used = 0;
    l->inplace = false;
    l->b.source = n->source;
    collect_outputs(l);
    l->cur = find_row(l, n->target, &inplace);
    if (!l->cur)
        lower_refuse(l, "there is no lowering for this operation; express it with operations that are listed in docs/aten.md");
    else if (l->nout && lower_has_complex(l) && strncmp(l->cur->name, "higher_order.", 13))
        lower_complex_node(l, inplace);
    else if (inplace)
        run_inplace(l);
    else
        l->cur->fn(l);
    check_arguments(l);
    for (int i = 0; i < l->nout; i++) check_output(l, l->out[i]);
    return node_status(l);
}

// ---- the nodes of a graph -------------------------------------------------------------------------------------------------

typedef void (*NameFn)(void *ctx, const char *name);
static void visit_names(const Arg *a, NameFn fn, void *ctx) {
    bool tensor = a->kind == ARG_TENSOR || a->kind == ARG_TENSORS;
    for (int i = 0; tensor && i < a->n; i++)
        if (a->names[i]) fn(ctx, a->names[i]);
    for (int i = 0; !tensor && a->sym_names && i < a->n; i++)
        if (a->sym_names[i]) fn(ctx, a->sym_names[i]);
}

static void need_name(void *ctx, const char *name) { map_set(ctx, name, 1); }

typedef struct Lookup {
    const Map *map;
    bool any, all;
} Lookup;
static void look_name(void *ctx, const char *name) {
    Lookup *k = ctx;
    int64_t unused;
    bool found = map_get(k->map, name, &unused);
    k->any |= found;
    k->all &= found;
}

// What nothing needs is not lowered, so that a metric beside the loss cannot make the program unsupported. In-place ops stay.
static bool *live_nodes(Lower *l, const AtenGraph *g) {
    bool *live = ARENA_ARRAY(l->arena, bool, g->nnode);
    Map *needed = map_new(l->arena);
    for (int i = 0; i < g->nout; i++) visit_names(&g->out[i], need_name, needed);
    for (int k = g->nnode - 1; k >= 0; k--) {
        const AtenNode *n = &g->node[k];
        Lookup out = {.map = needed};
        for (int i = 0; i < n->nout; i++) visit_names(&n->out[i], look_name, &out);
        live[k] = out.any || mutates(n);
        for (int i = 0; live[k] && i < n->nin; i++) visit_names(&n->in[i], need_name, needed);
    }
    return live;
}

// Checks (nodes without outputs) run where everything they look at was computed.
static bool is_ready_check(const Lower *l, const AtenNode *n) {
    if (n->nout) return false;
    Lookup in = {.map = l->scope->names, .all = true};
    for (int i = 0; i < n->nin; i++) visit_names(&n->in[i], look_name, &in);
    return in.all;
}

Status lower_nodes(Lower *l, const AtenGraph *g) {
    const bool *live = live_nodes(l, g);
    for (int k = 0; k < g->nnode; k++)
        if (live[k] || is_ready_check(l, &g->node[k])) TRY(lower_node(l, &g->node[k]));
    return ST_OK;
}

// ---- the whole archive ----------------------------------------------------------------------------------------------------

static void add_rows(Lower *l, const LowerRow *r) {
    for (; r->name; r++) {
        int64_t other;
        CHECK(!map_get(l->rows, r->name, &other), "two lowerings of %s", r->name);
        map_set(l->rows, r->name, l->row.len);
        vec_push(&l->row, r);
    }
}

static void add_all_rows(Lower *l) {
    const LowerRow *const families[] = {lower_rows_pointwise, lower_rows_activation, lower_rows_cast,   lower_rows_shape,
                                        lower_rows_split,     lower_rows_create,     lower_rows_reduce, lower_rows_scan,
                                        lower_rows_index,     lower_rows_select,     lower_rows_linear, lower_rows_norm,
                                        lower_rows_nn,        lower_rows_einsum,     lower_rows_loss,   lower_rows_control,
                                        lower_rows_complex};
    l->rows = map_new(l->arena);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) add_rows(l, families[i]);
}

Status lower_archive(Arena *a, const Archive *ar, const int64_t *values, const ImportOptions *o, Graph **out, ImportReport *r,
                     Diag *d) {
    DType real = o->real == DT_F64 ? DT_F64 : DT_F32;
    Graph *g = graph_new(a, ar->name, 1);
    Scope top = {.graph = ar->graph, .names = map_new(a)};
    Lower l = {.arena = a, .ar = ar, .values = values, .options = o, .report = r, .real = real, .scope = &top, .part = -1};
    l.b = (Builder){.g = g, .d = d, .phase = PHASE_FORWARD};
    add_all_rows(&l);
    Status s = lower_bind_inputs(&l, d);
    if (s == ST_OK) s = lower_nodes(&l, ar->graph);
    if (s == ST_OK) s = lower_find_loss(&l, d);
    if (s == ST_OK) r->narrowed = l.noted_half;
    vec_free(&l.row);
    vec_free(&l.binds);
    vec_free(&l.tensors);
    if (s != ST_OK) {
        graph_free_vecs(g);
        return s;
    }
    *out = g;
    return ST_OK;
}
