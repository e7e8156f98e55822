// experts: mixtures of experts keep their tokens home.
//
//   %e = reshape(topk indices)              [N]              expert of each assignment
//   %s, %p = sort(%e)                                        %x2 = repeat rows of %x k times
//   %xs = embedding(%x, %p // k)            [N, D]     ->    %y2 = expert_matmul(%x2, %e, %w)
//   %ys = expert_matmul(%xs, group of row, %w)               %y  = sum over k of %y2
//   %y  = sum over k of embedding(%ys, inverse of %p)
//
// Exported routing sorts all assignments by expert, gathers rows, multiplies group by group and scatters back: read globally, a
// sort of every token of every rank. In meaning it is token-wise. Beside each node this pass builds the value without the sort:
// if v = u[p] ("permuted rows", P(u)), then row-wise operations of P's are P's of the same operation, a gather of rows by P(w) is
// P of the gather by w, the grouped product is P of the product with each row's own expert, sums and histograms over rows forget
// the order, and the gather by the inverse permutation (or the scatter by p) gives u back. There the value without the sort takes
// over, and nothing uses the sort any more. What is not understood keeps the original nodes: a global sort, correct all the same.
//
// Products with a gathered weight per row (embedding of [E, K, N2] by expert, batched) become expert_matmul too.
//
// Requires: canonicalize. Establishes: no new form; only fewer sorts.
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

typedef struct Permuted {
    NodeId sort;    // the SORT whose permutation it is, NO_NODE: none
    ValueId plain;  // new graph: v = plain[p] along dim 0
} Permuted;

typedef struct Experts {
    Rewrite r;
    Permuted *perm;   // [old values]
    NodeId *inverse;  // [old values]: v is the inverse permutation of that SORT
} Experts;

static const Node *def(const Experts *x, ValueId v) { return graph_def(x->r.in, v); }
static const Shape *shape(const Experts *x, ValueId v) { return graph_shape(x->r.in, v); }
static int64_t rows(const Experts *x, NodeId sort) { return shape(x, graph_node(x->r.in, sort)->in[0])->dim[0]; }

static const int64_t *int_dims(const Node *n, int *count) {
    const int64_t *dims;
    *count = node_ints(n, ATTR_DIMS, &dims);
    return dims;
}

static bool has_row_dim(const Node *n) {
    int count;
    const int64_t *dims = int_dims(n, &count);
    for (int i = 0; i < count; i++)
        if (dims[i] == 0) return true;
    return false;
}

// ---- which expert ---------------------------------------------------------------------------------------------------
static bool is_arange(const Experts *x, ValueId v) {
    const Node *n = def(x, v);
    return n->op == OP_IOTA && node_int_or(n, ATTR_START, 0) == 0 && node_int_or(n, ATTR_STEP, 1) == 1;
}

static ValueId below_views(const Experts *x, ValueId v) {
    while (def(x, v)->op == OP_RESHAPE || def(x, v)->op == OP_CAST || def(x, v)->op == OP_STOP_GRAD) v = def(x, v)->in[0];
    return v;
}

// Provably >= 0: an index that topk or sort returned, moved around.
static bool never_negative(const Experts *x, ValueId v) {
    const Node *n = def(x, v);
    switch (n->op) {
        case OP_TOPK:
        case OP_SORT: return n->out[1] == v || never_negative(x, n->in[0]);
        case OP_RESHAPE:
        case OP_PERMUTE:
        case OP_SLICE:
        case OP_BROADCAST:
        case OP_EMBEDDING: return never_negative(x, n->in[0]);
        case OP_MAX: return never_negative(x, n->in[0]) || never_negative(x, n->in[1]);
        case OP_MIN: return never_negative(x, n->in[0]) && never_negative(x, n->in[1]);
        case OP_FULL: return node_float(n, ATTR_VALUE) >= 0;
        case OP_WHERE: return never_negative(x, n->in[1]) && never_negative(x, n->in[2]);
        default: return false;
    }
}

// sum_e(row >= offs[e]) with offs = cumsum(histogram(keys)): the expert whose group row i of the sorted keys is in.
static bool is_group_of_row(const Experts *x, ValueId v, NodeId sort, int64_t nexpert) {
    const Node *sum = def(x, below_views(x, v)), *s = graph_node(x->r.in, sort);
    int count;
    if (sum->op != OP_SUM || int_dims(sum, &count)[0] != 1 || count != 1 || node_int_or(s, ATTR_DESCENDING, 0)) return false;
    const Node *ge = def(x, below_views(x, sum->in[0]));
    bool le = ge->op == OP_LE;
    if (ge->op != OP_GE && !le) return false;
    ValueId row = ge->in[le ? 1 : 0], offs = ge->in[le ? 0 : 1];
    const Shape *rs = shape(x, row), *os = shape(x, offs);
    bool shapes = rs->ndim == 2 && rs->dim[1] == 1 && rs->dim[0] == rows(x, sort) && os->dim[os->ndim - 1] == nexpert &&
                  shape_numel(os) == nexpert;
    if (!shapes || !is_arange(x, row)) return false;
    const Node *cum = def(x, below_views(x, offs));
    if (cum->op != OP_CUMSUM || node_int_or(cum, ATTR_REVERSE, 0)) return false;
    const Node *hist = def(x, below_views(x, cum->in[0]));
    if (hist->op != OP_HISTOGRAM || node_int(hist, ATTR_NROWS) != nexpert) return false;
    ValueId keys = hist->in[0];
    bool same = keys == s->in[0] || keys == s->out[0] || x->perm[keys].plain == x->r.map[s->in[0]] ||
                x->r.map[keys] == x->r.map[s->in[0]];
    return same && never_negative(x, s->in[0]);
}

// ---- rows -----------------------------------------------------------------------------------------------------------
static ValueId repeat_rows(Builder *b, ValueId x, int64_t times) {
    Shape s = build_shape(b, x), wide = {.ndim = s.ndim + 1}, out = s;
    for (int i = 0; i < s.ndim; i++) wide.dim[i ? i + 1 : 0] = s.dim[i];
    wide.dim[1] = 1;
    x = build_reshape(b, x, wide);
    wide.dim[1] = times;
    out.dim[0] *= times;
    return build_reshape(b, build_broadcast(b, x, wide), out);
}

static ValueId sum_rows(Builder *b, ValueId x, int64_t times) {
    Shape s = build_shape(b, x), wide = {.ndim = s.ndim + 1}, out = s;
    for (int i = 0; i < s.ndim; i++) wide.dim[i ? i + 1 : 0] = s.dim[i];
    wide.dim[0] = out.dim[0] = s.dim[0] / times;
    wide.dim[1] = times;
    return build_reshape(b, build_sum(b, build_reshape(b, x, wide), 1, (int[]){1}), out);
}

// New graph: w = iota // k over n rows gives k (1 for the iota itself), else 0.
static int64_t row_divisor(const Builder *b, ValueId w) {
    const Node *n = graph_def(b->g, w);
    int64_t k = 1;
    if (n->op == OP_FLOORDIV) {
        const Node *c = graph_def(b->g, n->in[1]);
        if (c->op != OP_FULL) return 0;
        k = (int64_t)node_float(c, ATTR_VALUE);
        n = graph_def(b->g, n->in[0]);
    }
    return n->op == OP_IOTA && node_int_or(n, ATTR_START, 0) == 0 && node_int_or(n, ATTR_STEP, 1) == 1 && k > 0 ? k : 0;
}

// Rows of `table` by w (new graph), as a repetition where it is one.
static ValueId gather_rows(Experts *x, ValueId table, ValueId w) {
    Builder *b = &x->r.b;
    int64_t k = row_divisor(b, w), n = build_shape(b, table).dim[0];
    if (k > 0 && build_shape(b, w).ndim == 1 && build_shape(b, w).dim[0] == n * k)
        return k == 1 ? table : repeat_rows(b, table, k);
    return build(b, OP_EMBEDDING, 2, (ValueId[]){table, w}, 0, NULL);
}

// ---- operations that keep the rows' order ---------------------------------------------------------------------------
// May operand i of a row-wise operation stand beside permuted rows: permuted alike, or the same for every row?
static bool row_operand(const Experts *x, ValueId v, int out_ndim, NodeId sort, ValueId *plain) {
    const Shape *s = shape(x, v);
    *plain = x->r.map[v];
    if (s->ndim < out_ndim || s->dim[0] == 1) return true;
    *plain = x->perm[v].plain;
    return x->perm[v].sort == sort;
}

static NodeId first_sort(const Experts *x, const Node *n) {
    for (int i = 0; i < n->nin; i++)
        if (x->perm[n->in[i]].sort != NO_NODE) return x->perm[n->in[i]].sort;
    return NO_NODE;
}

static bool all_permuted(const Experts *x, const Node *n, NodeId sort) {
    for (int i = 0; i < n->nin; i++)
        if (x->perm[n->in[i]].sort != sort) return false;
    return true;
}

static bool keeps_rows(const Experts *x, const Node *n, NodeId sort) {
    int64_t nrow = rows(x, sort);
    const Shape *out = shape(x, n->out[0]);
    int count;
    if (op_is_pointwise(n->op)) return out->ndim > 0 && out->dim[0] == nrow;
    if (!all_permuted(x, n, sort)) {  // rows times one matrix
        bool product = n->op == OP_DOT && x->perm[n->in[0]].sort == sort && x->perm[n->in[1]].sort == NO_NODE;
        return product && node_int_or(n, ATTR_NBATCH, 0) == 0 && !node_int_or(n, ATTR_TRANS_A, 0) &&
               shape(x, n->in[0])->ndim > node_int_or(n, ATTR_NCONTRACT, 1);
    }
    switch (n->op) {
        case OP_RESHAPE: return out->ndim > 0 && out->dim[0] == nrow;
        case OP_BROADCAST: return true;
        case OP_PERMUTE: return int_dims(n, &count)[0] == 0;
        case OP_SLICE:
        case OP_PAD:
        case OP_CONCAT:
        case OP_LOGSUMEXP:
        case OP_CUMSUM:
        case OP_TOPK:
        case OP_GATHER: return node_int(n, ATTR_DIM) != 0;
        case OP_SUM:
        case OP_AMAX: return !has_row_dim(n);
        case OP_PICK: return shape(x, n->in[0])->ndim > 1;
        case OP_DOT: return node_int_or(n, ATTR_NBATCH, 0) > 0;
        default: return false;
    }
}

// A second copy of node n on the un-permuted operands.
static bool shadow(Experts *x, const Node *n, NodeId sort) {
    ValueId in[8], out[2];
    if (n->nin > 8 || n->nout > 2) return false;
    for (int i = 0; i < n->nin; i++) {
        if (op_is_pointwise(n->op)) {
            if (!row_operand(x, n->in[i], shape(x, n->out[0])->ndim, sort, &in[i])) return false;
        } else {
            in[i] = x->perm[n->in[i]].sort == sort ? x->perm[n->in[i]].plain : x->r.map[n->in[i]];
        }
    }
    build_multi(&x->r.b, n->op, n->nin, in, n->nattr, n->attr, n->nout, out);
    for (int j = 0; j < n->nout; j++) x->perm[n->out[j]] = (Permuted){sort, out[j]};
    return true;
}

static void shadow_experts(Experts *x, const Node *n, NodeId sort) {
    ValueId e = n->in[1];
    int64_t nexpert = shape(x, n->in[2])->dim[0];
    ValueId plain = x->perm[e].sort == sort                ? x->perm[e].plain
                    : is_group_of_row(x, e, sort, nexpert) ? x->r.map[graph_node(x->r.in, sort)->in[0]]
                                                           : NO_VALUE;
    if (plain == NO_VALUE || x->perm[n->in[0]].sort != sort || x->perm[n->in[2]].sort != NO_NODE) return;
    ValueId in[3] = {x->perm[n->in[0]].plain, plain, x->r.map[n->in[2]]};
    x->perm[n->out[0]] = (Permuted){sort, build(&x->r.b, OP_EXPERT_MATMUL, 3, in, n->nattr, n->attr)};
}

// ---- where the order ends -------------------------------------------------------------------------------------------
static void replace(Experts *x, const Node *n, ValueId v) {
    if (v != NO_VALUE) x->r.map[n->out[0]] = v;
}

static void end_embedding(Experts *x, const Node *n) {
    ValueId table = n->in[0], idx = n->in[1];
    if (x->inverse[idx] != NO_NODE && x->inverse[idx] == x->perm[table].sort) {
        replace(x, n, build_reshape(&x->r.b, x->perm[table].plain, *shape(x, n->out[0])));
        return;
    }
    NodeId sort = x->perm[idx].sort;
    if (sort == NO_NODE || x->perm[table].sort != NO_NODE || shape(x, table)->ndim == MAX_DIMS ||
        node_int_or(n, ATTR_SKIP, -1) >= 0)
        return;
    x->perm[n->out[0]] = (Permuted){sort, gather_rows(x, x->r.map[table], x->perm[idx].plain)};
}

static void end_index_put(Experts *x, const Node *n) {
    ValueId into = n->in[0], idx = n->in[1], src = n->in[2];
    NodeId sort = x->perm[idx].sort;
    if (sort == NO_NODE) return;
    Builder *b = &x->r.b;
    bool accumulate = node_int_or(n, ATTR_ACCUMULATE, 0), is_p = idx == graph_node(x->r.in, sort)->out[1];
    bool whole = is_p && shape(x, into)->dim[0] == rows(x, sort);
    if (whole && !accumulate && is_arange(x, src)) x->inverse[n->out[0]] = sort;
    if (x->perm[src].sort != sort || shape(x, src)->ndim == MAX_DIMS) return;
    ValueId u = x->perm[src].plain, w = x->perm[idx].plain;
    if (whole && !accumulate) {
        replace(x, n, u);
    } else if (accumulate) {
        int64_t k = row_divisor(b, w);
        if (k > 0 && shape(x, into)->dim[0] * k == rows(x, sort)) {
            ValueId sum = k == 1 ? u : sum_rows(b, u, k);
            replace(x, n, build_binary(b, OP_ADD, x->r.map[into], sum));
        } else {
            replace(x, n, build(b, OP_INDEX_PUT, 3, (ValueId[]){x->r.map[into], w, u}, n->nattr, n->attr));
        }
    }
}

static void start_sort(Experts *x, NodeId id, const Node *n) {
    const Shape *s = shape(x, n->in[0]);
    if (s->ndim != 1 || dtype_is_float(graph_value(x->r.in, n->in[0])->dtype)) return;
    NodeId of = x->perm[n->in[0]].sort;
    if (of != NO_NODE && n->in[0] == graph_node(x->r.in, of)->out[1] && !node_int_or(n, ATTR_DESCENDING, 0)) {
        x->inverse[n->out[1]] = of;  // argsort of a permutation is its inverse
        return;
    }
    x->perm[n->out[0]] = (Permuted){id, x->r.map[n->in[0]]};
    x->perm[n->out[1]] = (Permuted){id, build_iota(&x->r.b, *s, 0, 0, 1, DT_I64)};
}

// dot of rows with a weight gathered for each row: [N, K] x embedding([E, K, N2], e).
static void fuse_gathered_weight(Experts *x, const Node *n) {
    if (node_int_or(n, ATTR_NBATCH, 0) != 1 || node_int_or(n, ATTR_NCONTRACT, 1) != 1) return;
    for (int side = 0; side < 2; side++) {
        const Node *w = def(x, n->in[side]);
        const Shape *s = shape(x, n->in[1 - side]);
        if (w->op != OP_EMBEDDING || node_int_or(w, ATTR_SKIP, -1) >= 0) continue;
        if (shape(x, w->in[0])->ndim != 3 || shape(x, w->in[1])->ndim != 1 || s->ndim > 3) continue;
        bool trans = node_int_or(n, side == 0 ? ATTR_TRANS_A : ATTR_TRANS_B, 0) != 0, contract_first = (side == 1) != trans;
        int64_t k = shape(x, w->in[0])->dim[contract_first ? 1 : 2];
        if (shape_numel(s) != s->dim[0] * k) continue;  // one row for each gathered matrix
        ValueId in[3] = {build_reshape(&x->r.b, x->r.map[n->in[1 - side]], SHAPE(s->dim[0], k)), x->r.map[w->in[1]],
                         x->r.map[w->in[0]]};
        Attr a = attr_i(ATTR_TRANS_W, !contract_first);
        ValueId y = build(&x->r.b, OP_EXPERT_MATMUL, 3, in, 1, &a);
        replace(x, n, build_reshape(&x->r.b, y, *shape(x, n->out[0])));
        return;
    }
}

static void visit(Experts *x, NodeId id) {
    const Node *n = graph_node(x->r.in, id);
    rewrite_at(&x->r, id);
    rewrite_copy(&x->r, id);
    NodeId sort = first_sort(x, n);
    switch (n->op) {
        case OP_SORT: start_sort(x, id, n); return;
        case OP_EMBEDDING: end_embedding(x, n); return;
        case OP_INDEX_PUT: end_index_put(x, n); return;
        case OP_RESHAPE: x->inverse[n->out[0]] = x->inverse[n->in[0]]; break;
        case OP_DOT:
            if (sort == NO_NODE) fuse_gathered_weight(x, n);
            break;
        case OP_EXPERT_MATMUL:
            if (sort != NO_NODE) shadow_experts(x, n, sort);
            return;
        case OP_HISTOGRAM:
            if (sort != NO_NODE) replace(x, n, build(&x->r.b, n->op, 1, &x->perm[n->in[0]].plain, n->nattr, n->attr));
            return;
        case OP_SUM:
        case OP_AMAX:  // over the rows: the order does not matter
            if (sort != NO_NODE && has_row_dim(n))
                replace(x, n, build(&x->r.b, n->op, 1, &x->perm[n->in[0]].plain, n->nattr, n->attr));
            break;
        default: break;
    }
    if (sort != NO_NODE && keeps_rows(x, n, sort)) shadow(x, n, sort);
}

Status pass_experts(PassContext *c, Graph *in, Graph **out, Diag *d) {
    bool any = false;
    for (int64_t i = 0; i < in->nodes.len; i++)
        any = any || in->nodes.data[i].op == OP_SORT || in->nodes.data[i].op == OP_EMBEDDING;
    if (!any) return *out = in, ST_OK;
    Experts x = {.perm = ARENA_ARRAY(c->scratch, Permuted, in->values.len),
                 .inverse = ARENA_ARRAY(c->scratch, NodeId, in->values.len)};
    for (int64_t i = 0; i < in->values.len; i++) {
        x.perm[i] = (Permuted){NO_NODE, NO_VALUE};
        x.inverse[i] = NO_NODE;
    }
    rewrite_begin(&x.r, in, c->scratch, d);
    for (int64_t i = 0; i < in->nodes.len && x.r.b.status == ST_OK; i++) visit(&x, (NodeId)i);
    Graph *made = NULL;
    TRY(rewrite_finish(&x.r, &made));
    Status st = pass_canonicalize(c, made, out, d);
    graph_free_vecs(made);
    return st;
}
