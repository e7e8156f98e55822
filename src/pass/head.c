// head: logits are never whole. A product whose result only a cross-entropy reads becomes one op together with it.
//
//   %8 = dot(%h, %w) {trans_b=1} : [2,64,V]          %8 = reshape(%h) {shape=[128,D]}
//   %9 = reshape(%8) {shape=[128,V]}           ->    %9, %10 = head_fwd(%8, %w, %labels) : [128], [128]
//   %10 = logsumexp(%9) {dim=1}                      %11 = reshape(%9) {shape=[128,1]}
//   %11 = pick(%9, %labels)
//
// What stands between the product and its readers is moved out of the way: reshapes, slices and permutes of rows onto h, slices
// of classes onto w, a constant factor and tanh's soft cap into attributes; casts from bf16 to f32 go (the op's arithmetic is
// f32). A log-softmax of which only picked elements are read is pick - logsumexp; a sum over classes, weighted or not (label
// smoothing), is a product with the sum of w's rows. Anything else that reads the logits keeps them whole; the plan's report says
// so.
//
// Requires: canonical form (equal nodes are one), no gradients yet. Establishes: head_fwd, whose gradient rule makes head_grad;
// the pass head_join makes one node of the two.
#include "ops/op.h"
#include "pass/head.h"
#include "pass/rewrite.h"

// ---- recognising ---------------------------------------------------------------------------------------------------------

// Along the chain of single uses from the product to its readers; the last dim of every value on it is the classes.
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

// A cast that the op makes by itself. Others round, or what follows them is computed in a wider type than the op's.
static bool is_kept(DType from, DType to) { return from == DT_BF16 && to == DT_F32; }

static bool scan_step(Scan *s, Use use) {
    if (use.node == NO_NODE) return false;
    const Node *n = graph_node(s->g, use.node);
    switch (n->op) {
    case OP_CAST: return is_kept(graph_value(s->g, n->in[0])->dtype, graph_value(s->g, n->out[0])->dtype);
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

static int use_count(Uses u, ValueId v) { return u.first[v + 1] - u.first[v]; }

static bool over_classes(const Graph *g, const Node *n) {  // a reduction over the last dim of its operand, and no other
    int last = graph_shape(g, n->in[0])->ndim - 1;
    const int64_t *dims;
    if (n->op == OP_LOGSUMEXP) return node_int(n, ATTR_DIM) == last;
    return n->op == OP_SUM && node_ints(n, ATTR_DIMS, &dims) == 1 && dims[0] == last;
}

static bool is_weigh(const Graph *g, const Node *n, int slot) {
    return n->op == OP_DOT && n->nin == 2 && slot == 0 && n->in[1] != n->in[0] && graph_shape(g, n->in[1])->ndim == 1 &&
           node_int_or(n, ATTR_NBATCH, 0) == 0 && node_int_or(n, ATTR_NCONTRACT, 1) == 1 && !node_int_or(n, ATTR_TRANS_A, 0);
}

static ValueId through_reshapes(const Graph *g, ValueId v) {
    while (graph_def(g, v)->op == OP_RESHAPE) v = graph_def(g, v)->in[0];
    return v;
}

static bool add_reader(const Graph *g, HeadMatch *m, Use use) {
    if (use.node == NO_NODE || m->nreader == HEAD_MAX_READERS) return false;
    const Node *n = graph_node(g, use.node);
    HeadKind kind;
    if (n->op == OP_PICK && use.slot == 0) {
        if (m->idx != NO_VALUE && through_reshapes(g, m->idx) != through_reshapes(g, n->in[1])) return false;
        m->idx = n->in[1];
        kind = HEAD_PICK;
    } else if (n->op == OP_LOGSUMEXP && over_classes(g, n)) {
        kind = HEAD_LSE;
    } else if (over_classes(g, n) || is_weigh(g, n, use.slot)) {
        kind = n->op == OP_SUM ? HEAD_SUM : HEAD_WEIGH;
        if (m->softcap > 0) return false;  // not linear in h
    } else {
        return false;
    }
    m->reader[m->nreader++] = (HeadReader){use.node, kind};
    return true;
}

static bool keeps_classes(const Graph *g, const Node *n) {
    const Shape *x = graph_shape(g, n->in[0]), *y = graph_shape(g, n->out[0]);
    return n->op == OP_RESHAPE && y->ndim > 0 && y->dim[y->ndim - 1] == x->dim[x->ndim - 1];
}

// All that reads v, directly or with its rows merged or split otherwise: the rows are the same and in the same order. *bad: what
// is no reader.
static bool add_readers(const Graph *g, Uses uses, HeadMatch *m, ValueId v, Use *bad) {
    for (int32_t k = uses.first[v]; k < uses.first[v + 1]; k++) {
        Use u = uses.use[k];
        bool view = u.node != NO_NODE && keeps_classes(g, graph_node(g, u.node));
        if (view ? !add_readers(g, uses, m, graph_node(g, u.node)->out[0], bad) : !add_reader(g, m, u)) {
            if (!view) *bad = u;
            return false;
        }
    }
    return true;
}

// v is read by a log-sum-exp and by v - that, and that is all: the value of the difference, else NO_VALUE.
static ValueId log_softmax_of(const Graph *g, Uses uses, ValueId v) {
    if (use_count(uses, v) != 2) return NO_VALUE;
    for (int k = 0; k < 2; k++) {
        Use a = uses.use[uses.first[v] + k], b = uses.use[uses.first[v] + 1 - k];
        if (a.node == NO_NODE || b.node == NO_NODE) return NO_VALUE;
        const Node *lse = graph_node(g, a.node), *sub = graph_node(g, b.node);
        if (lse->op == OP_LOGSUMEXP && over_classes(g, lse) && use_count(uses, lse->out[0]) == 1 && sub->op == OP_SUB &&
            sub->in[0] == v && sub->in[1] == lse->out[0])
            return sub->out[0];
    }
    return NO_VALUE;
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
    if (n->op != OP_DOT || n->nin != 2 || node_int_or(n, ATTR_NBATCH, 0) != 0 || node_int_or(n, ATTR_NCONTRACT, 1) != 1)
        return false;
    return !node_int_or(n, ATTR_TRANS_A, 0) && graph_shape(g, n->in[1])->ndim == 2 && graph_shape(g, n->in[0])->ndim >= 1 &&
           dtype_is_float(graph_value(g, n->out[0])->dtype);
}

// From v on through single uses; behind a log-softmax (`rows_only`) only moves of rows.
static ValueId scan_chain(Scan *s, Uses uses, ValueId v, bool rows_only) {
    while (use_count(uses, v) == 1) {
        Use u = uses.use[uses.first[v]];
        if (u.node == NO_NODE) break;
        const Node *n = graph_node(s->g, u.node);
        bool row = n->op == OP_RESHAPE || n->op == OP_PERMUTE ||
                   (n->op == OP_SLICE && node_int(n, ATTR_DIM) != graph_shape(s->g, v)->ndim - 1);
        if ((rows_only && !row) || !scan_step(s, u)) break;
        v = n->out[0];
    }
    return v;
}

bool head_match(const Graph *g, Uses uses, NodeId dot, HeadMatch *m, const char **why, Arena *scratch) {
    *m = (HeadMatch){.dot = dot, .scale = 1, .idx = NO_VALUE};
    *why = "they are not a plain product of rows and a matrix";
    const Node *n = graph_node(g, dot);
    if (!is_head_dot(g, n)) return false;
    Scan s = {.g = g, .m = m};
    ValueId v = scan_chain(&s, uses, n->out[0], false), difference = log_softmax_of(g, uses, v);
    if (difference != NO_VALUE) m->log_softmax = true, v = scan_chain(&s, uses, difference, true);
    Use bad;
    if (!add_readers(g, uses, m, v, &bad)) return *why = other_use(g, bad, scratch), false;
    *why = "they are not read by a log-sum-exp and a pick, as a cross-entropy does";
    bool kind[HEAD_WEIGH + 1] = {0};
    for (int i = 0; i < m->nreader; i++) kind[m->reader[i].kind] = true;
    if (!kind[HEAD_PICK] || s.inner != 0) return false;
    if (m->log_softmax ? kind[HEAD_LSE] || kind[HEAD_SUM] || kind[HEAD_WEIGH] : !kind[HEAD_LSE]) return false;
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
            int64_t dim = node_int(n, ATTR_DIM), start = node_int(n, ATTR_START), step = node_int_or(n, ATTR_STEP, 1),
                    length = node_int(n, ATTR_LENGTH);
            if (dim == last) *w = build_slice(b, *w, 0, start, step, length);
            else *h = build_slice(b, *h, (int)dim, start, step, length);
        }
    }
}

// scale * h (sum of w's rows, each times its number): what a sum over classes is without the logits.
static ValueId linear_reader(Rewrite *r, const HeadMatch *m, const HeadReader *x, ValueId h, ValueId w) {
    Builder *b = &r->b;
    const Node *n = graph_node(r->in, x->node);
    DType t = build_dtype(b, h) == DT_F64 ? DT_F64 : DT_F32;
    w = build_cast(b, w, t), h = build_cast(b, h, t);
    ValueId column;
    if (x->kind == HEAD_SUM) {
        column = build_sum(b, w, 1, (int[]){0});
    } else {
        rewrite_before(r, n->in[1]);
        rewrite_at(r, x->node);
        column = build_dot(b, build_cast(b, r->map[n->in[1]], t), w, 0, 1, false, false);  // [V] [V, D] -> [D]
    }
    if (b->status != ST_OK) return NO_VALUE;
    column = build_reshape(b, column, SHAPE(1, build_shape(b, h).dim[1]));
    ValueId y = build_dot(b, h, column, 0, 1, false, true);
    return m->scale == 1 ? y : build_binary_scalar(b, OP_MUL, y, m->scale);
}

static void replace_readers(Rewrite *r, const HeadMatch *m, ValueId h, ValueId w, ValueId lse, ValueId pick) {
    Builder *b = &r->b;
    for (int i = 0; i < m->nreader && b->status == ST_OK; i++) {
        const HeadReader *x = &m->reader[i];
        ValueId old = graph_node(r->in, x->node)->out[0], v;
        rewrite_at(r, x->node);
        if (x->kind == HEAD_LSE) v = lse;
        else if (x->kind == HEAD_PICK) v = m->log_softmax ? build_binary(b, OP_SUB, pick, lse) : pick;
        else v = linear_reader(r, m, x, h, w);
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
    if (b->status == ST_OK) replace_readers(r, m, h, w, out[0], out[1]);
}

static Status rewrite_head(PassContext *c, const Graph *in, const HeadMatch *m, Graph **out, Diag *d) {
    Rewrite r;
    rewrite_begin(&r, in, c->scratch, d);
    bool *reader = ARENA_ARRAY(c->scratch, bool, in->nodes.len);
    for (int i = 0; i < m->nreader; i++) reader[m->reader[i].node] = true;
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
        bool passes =
            n->op == OP_RESHAPE || n->op == OP_SLICE || n->op == OP_PERMUTE || (op_is_pointwise(n->op) && n->op != OP_WHERE);
        if (!passes || n->nin < 1) return NO_NODE;
        int k = n->nin > 1 && shape_numel(graph_shape(g, n->in[1])) > shape_numel(graph_shape(g, n->in[0])) ? 1 : 0;
        x = n->in[k];
    }
}

static void report_whole(PassContext *c, const Graph *g, Uses uses) {
    bool *told = ARENA_ARRAY(c->scratch, bool, g->nodes.len);
    for (NodeId i = 0; i < g->nodes.len && c->report; i++) {
        const Node *n = graph_node(g, i);
        if (n->op != OP_LOGSUMEXP) continue;
        NodeId dot = product_of(g, n->in[0]);
        if (dot == NO_NODE || told[dot]) continue;
        told[dot] = true;
        const Value *z = graph_value(g, graph_node(g, dot)->out[0]);
        HeadMatch m;
        const char *why;
        if (head_match(g, uses, dot, &m, &why, c->scratch)) continue;  // (cannot be: all that match were rewritten)
        const char *name = node_describe(g, dot, c->scratch);
        double nbytes = (double)shape_numel(&z->shape) * dtype_nbytes(z->dtype);
        vec_push(&c->report->logits,
                 arena_printf(g->arena, "%s: stay whole, %.3g MB together, their gradient as much: %s", name, nbytes / 1e6, why));
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
