// Where a plan's time and bytes go, and the fate of each value that the backward needs, the same for all layers put together.
#include "driver/explain.h"

#include <ctype.h>

// ---- time --------------------------------------------------------------------------------------------------------------------
const char *time_kind_name(TimeKind k) {
    static const char *const name[TIME_KINDS] = {
        "matrix products", "attention", "pointwise, reductions", "copies, indexing", "collectives", "optimizer", "waiting for the host",
    };
    return (unsigned)k < TIME_KINDS ? name[k] : "?";
}

TimeKind step_time_kind(const Graph *g, const Step *s) {
    const Node *n = graph_node(g, s->node);
    if (s->kind == STEP_EXCHANGE) return s->exchange->collective ? TIME_COLLECTIVE : TIME_MOVE;
    if (step_is_wait(s->kind)) return TIME_HOST;
    if (n->phase == PHASE_UPDATE) return TIME_UPDATE;
    switch (n->op) {
        case OP_ATTENTION: case OP_ATTENTION_GRAD: case OP_SDPA: return TIME_ATTENTION;
        case OP_DOT: case OP_EXPERT_MATMUL: case OP_EXPERT_MATMUL_GRAD: case OP_CONV1D: case OP_CONV1D_GRAD_X: case OP_CONV1D_GRAD_W:
        case OP_HEAD: case OP_HEAD_FWD: case OP_HEAD_GRAD: return TIME_PRODUCT;
        case OP_FUSED: case OP_SUM: case OP_AMAX: case OP_LOGSUMEXP: case OP_CUMSUM: return TIME_POINTWISE;
        default: return op_is_pointwise(n->op) ? TIME_POINTWISE : TIME_MOVE;
    }
}

void plan_time(const Plan *p, const RankPlan *r, double seconds[TIME_KINDS]) {
    for (int k = 0; k < TIME_KINDS; k++) seconds[k] = 0;
    for (int i = 0; i < r->nstep; i++) seconds[step_time_kind(p->graph, &r->step[i])] += r->step[i].seconds;
}

int plan_slowest(const Plan *p) {
    int best = 0;
    for (int k = 1; k < p->nmade; k++)
        if (p->rank[k].seconds > p->rank[best].seconds) best = k;
    return best;
}

int plan_fullest(const Plan *p) {
    int best = 0;
    for (int k = 1; k < p->nmade; k++)
        if (p->rank[k].arena_nbytes > p->rank[best].arena_nbytes) best = k;
    return best;
}

double plan_step_seconds(const Compiled *c) { return c->plan->rank[plan_slowest(c->plan)].seconds; }
int64_t plan_host_nbytes(const Compiled *c) {
    int64_t most = 0;
    for (int k = 0; k < c->plan->nmade; k++) most = max_i64(most, c->plan->rank[k].host_nbytes);
    return most;
}

// ---- labels ------------------------------------------------------------------------------------------------------------------
// Where "(model.model.layers.5.mlp.up_proj)" begins; NULL if the source names no module.
static const char *module_of(const char *source) {
    const char *open = source ? strrchr(source, '(') : NULL;
    return open ? open + 1 : NULL;
}

// The digits of the first part of a module's path that is a number.
static const char *layer_digits(const char *module) {
    for (const char *p = module; p && *p && *p != ')'; p++)
        if (*p == '.' && isdigit((unsigned char)p[1])) {
            const char *end = p + 1;
            while (isdigit((unsigned char)*end)) end++;
            if (*end == '.' || *end == ')') return p + 1;
        }
    return NULL;
}

int node_layer(const Node *n) {
    const char *p = layer_digits(module_of(n->source));
    return p ? (int)strtol(p, NULL, 10) : -1;
}

// "mlp.up_proj" within a layer, "the layer" itself, or the module's whole path.
static const char *place_of(const Node *n, Arena *a) {
    const char *module = module_of(n->source), *p = layer_digits(module);
    if (!module) return "";
    if (p) {
        while (isdigit((unsigned char)*p)) p++;
        if (*p == ')') return "the layer";
        module = p + 1;
    }
    size_t len = strcspn(module, ")");
    return arena_strndup(a, module, len);
}

static const char *attention_word(OpKind op, int index) {
    static const char *const forward[] = {"o", "log-sum-exp"}, *const backward[] = {"d(q)", "d(k)", "d(v)"};
    if (op == OP_ATTENTION && index < 2) return forward[index];
    return op == OP_ATTENTION_GRAD && index < 3 ? backward[index] : NULL;
}

static bool is_copy(const Node *n) { return n->op == OP_OFFLOAD || n->op == OP_OFFLOAD_DONE || n->op == OP_FETCH || n->op == OP_FETCH_DONE; }

// What was computed: behind copies to the host and back, and of a whole that was put together from parts the first one.
static ValueId made_as(const Graph *g, ValueId v) {
    for (const Node *n = graph_def(g, v); (is_copy(n) || n->op == OP_ASSEMBLE || n->op == OP_PART) && n->nin > 0; n = graph_def(g, v)) v = n->in[0];
    return v;
}

const char *value_label(const Graph *g, ValueId v, Arena *a) {
    v = made_as(g, v);
    const Value *x = graph_value(g, v);
    const Node *n = graph_node(g, x->def);
    const char *word = attention_word(n->op, x->index);
    if (word) return arena_printf(a, "%s of attention", word);
    if (n->op == OP_RESHARD && n->note) {
        size_t len = strcspn(n->note, "(");
        while (len > 0 && n->note[len - 1] == ' ') len--;
        return arena_strndup(a, n->note, len);
    }
    const char *place = place_of(n, a), *index = x->index ? arena_printf(a, " (result %d)", x->index + 1) : "";
    if (n->op == OP_PARAM || n->op == OP_INPUT || n->op == OP_CONSTANT) return x->name ? x->name : op_name(n->op);
    return arena_printf(a, "%s%s%s%s", *place ? place : "", *place ? ": " : "", op_name(n->op), index);
}

const char *fate_name(Fate f) {
    static const char *const name[FATE_COUNT] = {"kept", "on the host", "computed again"};
    return (unsigned)f < FATE_COUNT ? name[f] : "?";
}

// ---- the fate of values ------------------------------------------------------------------------------------------------------
typedef struct Fated {       // one value
    ValueId value;
    Fate fate;
    const char *label;
    int layer;
    double nbytes, seconds;
} Fated;

typedef struct Maker {
    const Compiled *c;
    const Graph *g;
    const RankPlan *r;
    Arena *a;
    VEC(Fated) value;
} Maker;

static bool is_view(const Node *n) { return (op_flags(n->op) & OPF_VIEW) || n->op == OP_STOP_GRAD; }
static bool is_state(const Node *n) { return n->op == OP_PARAM || n->op == OP_INPUT || n->op == OP_CONSTANT; }

static void add_fated(Maker *m, ValueId v, Fate fate, double seconds) {
    Operand x = plan_operand(m->a, m->g, v, m->r->rank);
    const Node *n = graph_def(m->g, made_as(m->g, v));
    Fated f = {.value = v, .fate = fate, .label = value_label(m->g, v, m->a), .layer = node_layer(n), .nbytes = operand_nbytes(&x), .seconds = seconds};
    vec_push(&m->value, f);
}

// Where a value is kept: through views, and copies to the host and back, to what was computed; parts of a whole count as the whole.
static void find_fates(Maker *m) {
    const Graph *g = m->g;
    ValueId *root = ARENA_ARRAY(m->a, ValueId, g->values.len);
    bool *late = ARENA_ARRAY(m->a, bool, g->values.len), *away = ARENA_ARRAY(m->a, bool, g->values.len);
    double *seconds = ARENA_ARRAY(m->a, double, g->nodes.len);
    for (int i = 0; i < m->r->nstep; i++) seconds[m->r->step[i].node] += m->r->step[i].seconds;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool through = is_view(n) || is_copy(n) || n->op == OP_PART;
        for (int k = 0; k < n->nout; k++) root[n->out[k]] = through ? root[n->in[0]] : n->out[k];
        if (n->op == OP_OFFLOAD) away[root[n->in[0]]] = true;
        for (int k = 0; k < n->nin && n->phase != PHASE_FORWARD && !is_copy(n); k++) late[root[n->in[k]]] = true;
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {  // not what is only a part of something whole
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && n->op == OP_ASSEMBLE; k++) late[n->in[k]] = false;
    }
    for (int64_t v = 0; v < g->values.len; v++) {
        const Node *n = graph_def(g, (ValueId)v);
        if (root[v] != v || is_state(n)) continue;
        if (n->phase == PHASE_FORWARD && late[v]) add_fated(m, (ValueId)v, away[v] ? FATE_HOST : FATE_KEPT, 0);
        if (n->phase == PHASE_RECOMPUTE) add_fated(m, (ValueId)v, FATE_AGAIN, graph_value(g, (ValueId)v)->index ? 0 : seconds[graph_value(g, (ValueId)v)->def]);
    }
}

// ---- layers as text ------------------------------------------------------------------------------------------------------------
static const char *ranges_text(Arena *a, const bool *has, int n) {
    Str s = {0};
    for (int i = 0, end; i < n; i = end + 1) {
        end = i;
        if (!has[i]) continue;
        while (end + 1 < n && has[end + 1]) end++;
        str_printf(&s, end > i ? "%s%d-%d" : "%s%d", s.len ? ", " : "", i, end);
    }
    const char *text = arena_strdup(a, str_text(&s));
    str_free(&s);
    return text;
}

static int layer_count(const Maker *m) {
    int n = 0;
    for (int64_t i = 0; i < m->value.len; i++) n = m->value.data[i].layer + 1 > n ? m->value.data[i].layer + 1 : n;
    return n < 4096 ? n : 4096;
}

static int by_group(const void *pa, const void *pb) {
    const Fated *a = pa, *b = pb;
    int c = strcmp(a->label, b->label);
    return c ? c : a->fate != b->fate ? (int)a->fate - (int)b->fate : a->value - b->value;
}
static int by_bytes(const void *pa, const void *pb) {
    const FateGroup *a = pa, *b = pb;
    return a->nbytes != b->nbytes ? (a->nbytes < b->nbytes ? 1 : -1) : strcmp(a->label, b->label);
}

static void group_values(Maker *m, Explanation *out) {
    int64_t n = m->value.len;
    int nlayer = layer_count(m);
    Fated *x = arena_copy(m->a, m->value.data, sizeof *x * (size_t)n);
    qsort(x, (size_t)n, sizeof *x, by_group);
    out->fate = ARENA_ARRAY(m->a, FateGroup, n);
    for (int64_t i = 0, end; i < n; i = end) {
        FateGroup *g = &out->fate[out->nfate++];
        *g = (FateGroup){.label = x[i].label, .source = graph_def(m->g, x[i].value)->source, .fate = x[i].fate};
        bool *has = ARENA_ARRAY(m->a, bool, nlayer + 1);
        for (end = i; end < n && x[end].fate == x[i].fate && !strcmp(x[end].label, x[i].label); end++) {
            g->count++;
            g->nbytes += x[end].nbytes;
            g->seconds += x[end].seconds;
            if (x[end].layer >= 0 && x[end].layer < nlayer) has[x[end].layer] = true;
        }
        g->layers = ranges_text(m->a, has, nlayer);
    }
    qsort(out->fate, (size_t)out->nfate, sizeof *out->fate, by_bytes);
}

// What was decided for one layer, fate by fate; equal texts are equal decisions.
static LayerGroup layer_text(Maker *m, const Explanation *e, int layer) {
    LayerGroup g = {0};
    for (int f = 0; f < FATE_COUNT; f++) {
        Str s = {0};
        for (int i = 0; i < e->nfate; i++) {
            const FateGroup *x = &e->fate[i];
            bool here = false;
            for (int64_t k = 0; k < m->value.len && !here && (int)x->fate == f; k++) {
                const Fated *v = &m->value.data[k];
                here = v->layer == layer && v->fate == x->fate && !strcmp(v->label, x->label);
            }
            if (here) str_printf(&s, "%s%s", s.len ? ", " : "", x->label);
        }
        if (s.len) g.text[f] = arena_strdup(m->a, str_text(&s));
        str_free(&s);
    }
    return g;
}

static bool same_text(const LayerGroup *a, const LayerGroup *b) {
    for (int f = 0; f < FATE_COUNT; f++) {
        if (!a->text[f] != !b->text[f]) return false;
        if (a->text[f] && strcmp(a->text[f], b->text[f])) return false;
    }
    return true;
}

static void group_layers(Maker *m, Explanation *out) {
    int n = layer_count(m);
    LayerGroup *layer = ARENA_ARRAY(m->a, LayerGroup, n + 1);
    bool *done = ARENA_ARRAY(m->a, bool, n + 1);
    for (int i = 0; i < n; i++) layer[i] = layer_text(m, out, i);
    out->layer = ARENA_ARRAY(m->a, LayerGroup, n + 1);
    for (int i = 0; i < n; i++) {
        bool *has = ARENA_ARRAY(m->a, bool, n + 1), any = false;
        if (done[i]) continue;
        for (int f = 0; f < FATE_COUNT; f++) any |= layer[i].text[f] != NULL;
        for (int k = i; k < n; k++)
            if (!done[k] && same_text(&layer[i], &layer[k])) done[k] = has[k] = true;
        if (!any) continue;
        layer[i].layers = ranges_text(m->a, has, n);
        out->layer[out->nlayer++] = layer[i];
    }
}

// ---- the peak ------------------------------------------------------------------------------------------------------------------
static int by_alive(const void *pa, const void *pb) {
    const Alive *a = pa, *b = pb;
    return a->nbytes != b->nbytes ? (a->nbytes < b->nbytes ? 1 : -1) : strcmp(a->label, b->label);
}

static void find_alive(Maker *m, Explanation *out) {
    const RankPlan *r = m->r;
    out->alive = ARENA_ARRAY(m->a, Alive, r->nbuffer);
    for (int i = 0; i < r->nbuffer; i++) {
        const Buffer *b = &r->buffer[i];
        if (b->host || b->first > r->peak_step || b->last < r->peak_step || b->nbytes == 0) continue;
        bool whole = b->kind == BUF_PARAM || b->kind == BUF_MOMENT || b->kind == BUF_INPUT || b->kind == BUF_CONST;
        const char *label = whole || b->value == NO_VALUE ? buffer_kind_name(b->kind) : value_label(m->g, b->value, m->a);
        const char *source = whole || b->value == NO_VALUE ? NULL : graph_def(m->g, made_as(m->g, b->value))->source;
        int k = 0;
        while (k < out->nalive && (out->alive[k].kind != b->kind || strcmp(out->alive[k].label, label))) k++;
        if (k == out->nalive) out->alive[out->nalive++] = (Alive){.label = label, .source = source, .kind = b->kind};
        out->alive[k].count++;
        out->alive[k].nbytes += (double)round_up(b->nbytes, BUFFER_ALIGN);
    }
    qsort(out->alive, (size_t)out->nalive, sizeof *out->alive, by_alive);
}

void explain(const Compiled *c, Arena *a, Explanation *out) {
    const Plan *p = c->plan;
    *out = (Explanation){.rank = plan_fullest(p)};
    Maker m = {.c = c, .g = p->graph, .r = &p->rank[out->rank], .a = a};
    find_fates(&m);
    group_values(&m, out);
    group_layers(&m, out);
    find_alive(&m, out);
    plan_time(p, &p->rank[plan_slowest(p)], out->seconds);
    vec_free(&m.value);
}
