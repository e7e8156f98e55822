// head: logits are never whole. A product whose result only a cross-entropy reads becomes one op together with it.
//
//   %8 = dot(%h, %w) {trans_b=1} : [2,64,V]          %8 = reshape(%h) {shape=[128,D]}
//   %9 = reshape(%8) {shape=[128,V]}           ->    %9, %10 = head_fwd(%8, %w, %labels) : [128], [128]
//   %10 = logsumexp(%9) {dim=1}                      %11 = reshape(%9) {shape=[128,1]}
//   %11 = pick(%9, %labels)
//
// What stands between the product and its readers is moved out of the way: reshapes, slices and permutes of rows onto h, slices of
// classes onto w, a constant factor and tanh's soft cap into attributes; casts go (the op's arithmetic is wide). A log-softmax of
// which only picked elements are read is read as pick - logsumexp. Anything else that reads the logits keeps them whole; the plan's
// report says so.
//
// Requires: canonical form (equal nodes are one), no gradients yet. Establishes: head_fwd, whose gradient rule makes head_grad;
// the pass head_join makes one node of the two.
#include "ops/op.h"
#include "pass/head.h"
#include "pass/rewrite.h"

// ---- recognising ---------------------------------------------------------------------------------------------------------

// From value v, whose last dim is the classes, one step nearer to the readers. Returns the value after it, NO_VALUE if `use` is none.
typedef struct Scan {
    const Graph *g;
    HeadMatch *m;
    double inner;  // factor inside the tanh, once that was passed; else 0
} Scan;

static bool constant_of(const Graph *g, ValueId v, double *c) {
    const Node *n = graph_def(g, v);
    if (n->op != OP_FULL) return false;
    *c = node_float(n, ATTR_VALUE);
    return isfinite(*c) && *c != 0;
}

static bool scan_factor(Scan *s, const Node *n, int slot) {
    double c;
    if (n->op == OP_DIV && slot != 0) return false;
    if (!constant_of(s->g, n->in[1 - slot], &c)) return false;
    if (!shape_equal(graph_shape(s->g, n->out[0]), graph_shape(s->g, n->in[slot]))) return false;  // a constant that grows it
    if (n->op == OP_DIV) c = 1 / c;
    if (s->inner == 0) {
        if (s->m->softcap > 0) return false;  // a factor after the cap
        s->m->scale *= c;
        return isfinite(s->m->scale) && s->m->scale != 0;
    }
    if (!(c > 0)) return false;
    s->m->softcap = c, s->m->scale = s->inner * c, s->inner = 0;  // c tanh(a x) = c tanh((a c x) / c)
    return true;
}

static bool scan_rows(Scan *s, NodeId id, const Node *n) {
    const Shape *x = graph_shape(s->g, n->in[0]), *y = graph_shape(s->g, n->out[0]);
    int last = x->ndim - 1;
    const int64_t *dims;
    if (n->op == OP_RESHAPE && (y->ndim < 1 || y->dim[y->ndim - 1] != x->dim[last])) return false;
    if (n->op == OP_PERMUTE && (node_ints(n, ATTR_DIMS, &dims), dims[last] != last)) return false;
    if (s->m->nstep == HEAD_MAX_STEPS) return false;
    s->m->step[s->m->nstep++] = id;
    return true;
}

static bool scan_step(Scan *s, Use use) {
    if (use.node == NO_NODE) return false;
    const Node *n = graph_node(s->g, use.node);
    switch (n->op) {
    case OP_CAST: return dtype_is_float(graph_value(s->g, n->out[0])->dtype);
    case OP_MUL:
    case OP_DIV: return scan_factor(s, n, use.slot);
    case OP_TANH:
        if (s->inner != 0 || s->m->softcap > 0) return false;
        s->inner = s->m->scale;
        return true;
    case OP_RESHAPE:
    case OP_PERMUTE:
    case OP_SLICE: return scan_rows(s, use.node, n);
    default: return false;
    }
}

static bool is_lse(const Graph *g, Use use) {
    if (use.node == NO_NODE) return false;
    const Node *n = graph_node(g, use.node);
    return n->op == OP_LOGSUMEXP && node_int(n, ATTR_DIM) == graph_shape(g, n->in[0])->ndim - 1;
}

static bool add_pick(HeadMatch *m, const Node *n, const Use *use, ValueId log_softmax) {
    if (n->op != OP_PICK || use->slot != 0 || m->npick == HEAD_MAX_PICKS) return false;
    if (m->npick && m->idx != n->in[1]) return false;
    m->idx = n->in[1];
    m->pick[m->npick++] = (HeadPick){use->node, log_softmax};
    return true;
}

// x - logsumexp(x), of which only picked elements are read, perhaps after its rows were merged.
static bool add_log_softmax(const Graph *g, Uses uses, HeadMatch *m, const Node *sub, int slot) {
    if (sub->op != OP_SUB || slot != 0) return false;
    const Node *lse = graph_def(g, sub->in[1]);
    if (lse->op != OP_LOGSUMEXP || lse->in[0] != sub->in[0] || node_int(lse, ATTR_DIM) != graph_shape(g, lse->in[0])->ndim - 1) return false;
    ValueId v = sub->out[0];
    const Use *u = uses.use + uses.first[v];
    while (uses.first[v + 1] - uses.first[v] == 1 && u->node != NO_NODE && graph_node(g, u->node)->op == OP_RESHAPE) {
        const Node *n = graph_node(g, u->node);
        const Shape *x = graph_shape(g, v), *y = graph_shape(g, n->out[0]);
        if (y->ndim < 1 || y->dim[y->ndim - 1] != x->dim[x->ndim - 1]) return false;
        v = n->out[0], u = uses.use + uses.first[v];
    }
    for (int32_t k = uses.first[v]; k < uses.first[v + 1]; k++)
        if (uses.use[k].node == NO_NODE || !add_pick(m, graph_node(g, uses.use[k].node), &uses.use[k], sub->out[0])) return false;
    return uses.first[v] < uses.first[v + 1];
}

static bool add_reader(const Graph *g, Uses uses, HeadMatch *m, Use use) {
    if (is_lse(g, use)) {
        if (m->nlse == HEAD_MAX_PICKS) return false;
        m->lse[m->nlse++] = use.node;
        return true;
    }
    if (use.node == NO_NODE) return false;
    const Node *n = graph_node(g, use.node);
    return add_pick(m, n, &use, NO_VALUE) || add_log_softmax(g, uses, m, n, use.slot);
}

// Does v depend on a result of node `from`?
static bool depends_on(const Graph *g, ValueId v, NodeId from, Arena *scratch) {
    bool *dep = ARENA_ARRAY(scratch, bool, g->values.len);
    NodeId last = graph_value(g, v)->def;
    for (NodeId i = from; i <= last; i++) {
        const Node *n = graph_node(g, i);
        bool any = i == from;
        for (int k = 0; k < n->nin; k++) any = any || dep[n->in[k]];
        for (int j = 0; j < n->nout; j++) dep[n->out[j]] = any;
    }
    return dep[v];
}

static const char *other_use(const Graph *g, Use use, Arena *scratch) {
    if (use.node == NO_NODE) return "the program returns them";
    return arena_printf(scratch, "%s reads them", node_describe(g, use.node, scratch));
}

static bool is_head_dot(const Graph *g, const Node *n) {
    if (n->op != OP_DOT || n->nin != 2 || node_int_or(n, ATTR_NBATCH, 0) != 0 || node_int_or(n, ATTR_NCONTRACT, 1) != 1) return false;
    return !node_int_or(n, ATTR_TRANS_A, 0) && graph_shape(g, n->in[1])->ndim == 2 && graph_shape(g, n->in[0])->ndim >= 1 &&
           dtype_is_float(graph_value(g, n->out[0])->dtype);
}

bool head_match(const Graph *g, Uses uses, NodeId dot, HeadMatch *m, const char **why, Arena *scratch) {
    *m = (HeadMatch){.dot = dot, .scale = 1, .idx = NO_VALUE};
    *why = "they are not a plain product of rows and a matrix";
    const Node *n = graph_node(g, dot);
    if (!is_head_dot(g, n)) return false;
    Scan s = {.g = g, .m = m};
    ValueId v = n->out[0];
    while (uses.first[v + 1] - uses.first[v] == 1 && scan_step(&s, uses.use[uses.first[v]])) v = graph_node(g, uses.use[uses.first[v]].node)->out[0];
    m->logits = v;
    for (int32_t k = uses.first[v]; k < uses.first[v + 1]; k++)
        if (!add_reader(g, uses, m, uses.use[k])) return *why = other_use(g, uses.use[k], scratch), false;
    *why = "they are not read by a log-sum-exp and a pick, as a cross-entropy does";
    if (!m->nlse || !m->npick || s.inner != 0) return false;
    *why = "the labels depend on them";
    return !depends_on(g, m->idx, dot, scratch);
}

// ---- rewriting -----------------------------------------------------------------------------------------------------------

static Shape with_last(Shape s, int64_t n) {
    s.dim[s.ndim - 1] = n;
    return s;
}

// The steps between product and readers, taken by h (its last dim instead of the classes), or by w where they cut classes.
static void move_steps(Rewrite *r, const HeadMatch *m, ValueId *h, ValueId *w) {
    Builder *b = &r->b;
    for (int i = 0; i < m->nstep && b->status == ST_OK; i++) {
        const Node *n = graph_node(r->in, m->step[i]);
        int last = graph_shape(r->in, n->in[0])->ndim - 1;
        if (n->op == OP_RESHAPE) {
            *h = build_reshape(b, *h, with_last(*graph_shape(r->in, n->out[0]), build_shape(b, *h).dim[last]));
        } else if (n->op == OP_PERMUTE) {
            *h = build(b, OP_PERMUTE, 1, h, n->nattr, n->attr);
        } else {
            int64_t dim = node_int(n, ATTR_DIM), start = node_int(n, ATTR_START), step = node_int_or(n, ATTR_STEP, 1), length = node_int(n, ATTR_LENGTH);
            if (dim == last) *w = build_slice(b, *w, 0, start, step, length);
            else *h = build_slice(b, *h, (int)dim, start, step, length);
        }
    }
}

static void replace_readers(Rewrite *r, const HeadMatch *m, ValueId lse, ValueId pick) {
    Builder *b = &r->b;
    for (int i = 0; i < m->nlse; i++) {
        ValueId old = graph_node(r->in, m->lse[i])->out[0];
        rewrite_at(r, m->lse[i]);
        r->map[old] = build_reshape(b, build_cast(b, lse, graph_value(r->in, old)->dtype), *graph_shape(r->in, old));
    }
    for (int i = 0; i < m->npick; i++) {
        ValueId old = graph_node(r->in, m->pick[i].node)->out[0];
        rewrite_at(r, m->pick[i].node);
        ValueId v = m->pick[i].log_softmax == NO_VALUE ? pick : build_binary(b, OP_SUB, pick, lse);
        r->map[old] = build_reshape(b, build_cast(b, v, graph_value(r->in, old)->dtype), *graph_shape(r->in, old));
    }
}

static void emit_head(Rewrite *r, const HeadMatch *m) {
    const Node *dot = graph_node(r->in, m->dot);
    Builder *b = &r->b;
    rewrite_before(r, dot->in[0]);
    rewrite_before(r, dot->in[1]);
    rewrite_before(r, m->idx);
    rewrite_at(r, m->dot);
    b->note = "logits are never whole";
    ValueId h = r->map[dot->in[0]], w = r->map[dot->in[1]], idx = r->map[m->idx], out[2];
    if (!node_int_or(dot, ATTR_TRANS_B, 0)) w = build_transpose(b, w, 0, 1);
    move_steps(r, m, &h, &w);
    if (b->status != ST_OK) return;
    Shape s = build_shape(b, h);
    int64_t rows = shape_numel(graph_shape(r->in, m->idx));
    h = build_reshape(b, h, SHAPE(rows, s.dim[s.ndim - 1]));
    idx = build_reshape(b, idx, SHAPE(rows));
    if (b->status != ST_OK) return;
    Attr attr[] = {attr_f(ATTR_SCALE, m->scale), attr_f(ATTR_SOFTCAP, m->softcap)};
    build_multi(b, OP_HEAD_FWD, 3, (ValueId[]){h, w, idx}, 2, attr, 2, out);
    b->note = NULL;
    if (b->status == ST_OK) replace_readers(r, m, out[0], out[1]);
}

static Status rewrite_head(PassContext *c, const Graph *in, const HeadMatch *m, Graph **out, Diag *d) {
    Rewrite r;
    rewrite_begin(&r, in, c->scratch, d);
    bool *reader = ARENA_ARRAY(c->scratch, bool, in->nodes.len);
    for (int i = 0; i < m->nlse; i++) reader[m->lse[i]] = true;
    for (int i = 0; i < m->npick; i++) reader[m->pick[i].node] = true;
    bool made = false;
    for (NodeId i = 0; i < in->nodes.len && r.b.status == ST_OK; i++) {
        if (reader[i] && !made) emit_head(&r, m), made = true;
        if (r.map[graph_node(in, i)->out[0]] == NO_VALUE) rewrite_copy(&r, i);  // the logits too: nothing reads them any more
    }
    return rewrite_finish(&r, out);
}

// ---- what stays ----------------------------------------------------------------------------------------------------------

// The product that x is made of, through what keeps its size in a cross-entropy's way; NO_NODE if there is none.
static NodeId product_of(const Graph *g, ValueId x) {
    for (;;) {
        NodeId id = graph_value(g, x)->def;
        const Node *n = graph_node(g, id);
        if (n->op == OP_DOT) return id;
        bool passes = n->op == OP_RESHAPE || n->op == OP_SLICE || n->op == OP_PERMUTE || (op_is_pointwise(n->op) && n->op != OP_WHERE);
        if (!passes || n->nin < 1) return NO_NODE;
        int k = n->nin > 1 && shape_numel(graph_shape(g, n->in[1])) > shape_numel(graph_shape(g, n->in[0])) ? 1 : 0;
        x = n->in[k];
    }
}

static void report_whole(PassContext *c, const Graph *g, Uses uses) {
    for (NodeId i = 0; i < g->nodes.len && c->report; i++) {
        const Node *n = graph_node(g, i);
        if (n->op != OP_LOGSUMEXP) continue;
        NodeId dot = product_of(g, n->in[0]);
        if (dot == NO_NODE) continue;
        const Value *z = graph_value(g, graph_node(g, dot)->out[0]);
        HeadMatch m;
        const char *why;
        if (head_match(g, uses, dot, &m, &why, c->scratch)) continue;  // (cannot be: all that match were rewritten)
        const char *name = node_describe(g, dot, c->scratch);
        double nbytes = (double)shape_numel(&z->shape) * dtype_nbytes(z->dtype);
        vec_push(&c->report->logits, arena_printf(g->arena, "%s: stay whole, %.3g MB together, their gradient as much: %s", name, nbytes / 1e6, why));
    }
}

Status pass_head(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Graph *g = in;
    for (;;) {  // one at a time, so that no two wait for each other's results
        Uses uses = uses_collect(g, c->scratch);
        HeadMatch m;
        bool found = false;
        for (NodeId i = 0; i < g->nodes.len && !found; i++) {
            const char *why;
            found = graph_node(g, i)->op == OP_DOT && head_match(g, uses, i, &m, &why, c->scratch);
        }
        if (!found) {
            report_whole(c, g, uses);
            *out = g;
            return ST_OK;
        }
        Graph *next = NULL;
        Status st = rewrite_head(c, g, &m, &next, d);
        if (g != in) graph_free_vecs(g);
        TRY(st);
        g = next;
    }
}
