// canonicalize: one normal form for what importers and gradient rules write in many ways.
//
//   %5 = iota {shape=[1,64], dim=1}                 %5 = iota {shape=[1,64], dim=1}
//   %6 = slice(%5) {dim=1, start=1, length=63}      ...
//   %7 = slice(%5) {dim=1, start=0, length=63}  ->  (positions differ by one everywhere: no document border)
//   %8 = sub(%6, %7)
//   %9 = ne(%8, full 1)                             %9 = full {shape=[1,63], value=0}
//
// Every node is appended through canon_emit, which (1) applies identities, (2) folds integer, boolean and small float vectors
// that depend on no input, (3) shares equal nodes. Dead nodes are dropped at the end. Runs before the passes that recognise
// patterns and again after grad, when STOP_GRAD has done its work and is dropped. Only value-preserving rewrites of floats are
// made.
//
// Requires: any verified unsharded graph. Establishes: no identities, no foldable index arithmetic, no duplicate nodes, scalars
// as 0-dim fulls on the right of commutative operations, transposed weights as trans flags.
#include <math.h>

#include "pass/canon.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

// ---- sharing equal nodes --------------------------------------------------------------------------------------------
static uint64_t hash_node(OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    uint64_t h = hash_bytes((uint64_t)op, in, sizeof *in * (size_t)nin);
    for (int i = 0; i < nattr; i++) {
        const Attr *a = &attr[i];
        h = hash_bytes(h, &a->key, sizeof a->key);
        switch (attr_kind(a->key)) {
            case ATTRK_INT: h = hash_bytes(h, &a->u.i, sizeof a->u.i); break;
            case ATTRK_FLOAT: h = hash_bytes(h, &a->u.f, sizeof a->u.f); break;
            case ATTRK_INTS: h = hash_bytes(h, a->u.ints, sizeof(int64_t) * (size_t)a->n); break;
            case ATTRK_STR: h = hash_bytes(h, a->u.str, strlen(a->u.str)); break;
            case ATTRK_PROG: break;
        }
    }
    return h;
}

static void table_insert(Canon *c, uint64_t h, NodeId id) {
    int64_t at = (int64_t)(h & (uint64_t)(c->cap - 1));
    while (c->table[at]) at = (at + 1) & (c->cap - 1);
    c->table[at] = id + 1;
    c->used++;
}

static void table_grow(Canon *c) {
    c->cap = c->cap ? c->cap * 2 : 4096;
    c->table = ARENA_ARRAY(c->scratch, int32_t, c->cap);
    c->used = 0;
    for (int64_t i = 0; i < c->g->nodes.len; i++) {
        const Node *n = &c->g->nodes.data[i];
        table_insert(c, hash_node(n->op, n->nin, n->in, n->nattr, n->attr), (NodeId)i);
    }
}

static NodeId table_find(const Canon *c, uint64_t h, const Node *key) {
    for (int64_t at = (int64_t)(h & (uint64_t)(c->cap - 1)); c->table[at]; at = (at + 1) & (c->cap - 1)) {
        const Node *n = graph_node(c->g, c->table[at] - 1);
        if (n->op != key->op || n->nin != key->nin) continue;
        if (n->nin && memcmp(n->in, key->in, sizeof *n->in * (size_t)n->nin)) continue;
        if (attrs_equal(n, key)) return c->table[at] - 1;
    }
    return NO_NODE;
}

// ---- bounds of integers ---------------------------------------------------------------------------------------------
static IntRange range_of_pointwise(const Canon *c, const Node *n) {
    IntRange a = c->range.data[n->in[0]], none = {0};
    if (n->op == OP_CAST || n->op == OP_STOP_GRAD) return a;
    if (n->nin < 2) return none;
    IntRange b = c->range.data[n->in[1]];
    if (n->op == OP_WHERE) {
        a = b, b = c->range.data[n->in[2]];
        if (!a.ok || !b.ok) return none;
        return (IntRange){true, fmin(a.lo, b.lo), fmax(a.hi, b.hi)};
    }
    if (n->op == OP_MOD && b.ok && b.lo > 0) return (IntRange){true, 0, b.hi - 1};
    if (!a.ok || !b.ok) return none;
    switch (n->op) {
        case OP_ADD: return (IntRange){true, a.lo + b.lo, a.hi + b.hi};
        case OP_SUB: return (IntRange){true, a.lo - b.hi, a.hi - b.lo};
        case OP_MAX: return (IntRange){true, fmax(a.lo, b.lo), fmax(a.hi, b.hi)};
        case OP_MIN: return (IntRange){true, fmin(a.lo, b.lo), fmin(a.hi, b.hi)};
        case OP_MUL: {
            double p[4] = {a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi};
            return (IntRange){true, fmin(fmin(p[0], p[1]), fmin(p[2], p[3])), fmax(fmax(p[0], p[1]), fmax(p[2], p[3]))};
        }
        case OP_FLOORDIV: return b.lo > 0 && a.lo >= 0 ? (IntRange){true, floor(a.lo / b.hi), floor(a.hi / b.lo)} : none;
        default: return none;
    }
}

static IntRange range_of_known(const Known *k) {
    if (k->dim < 0 || k->affine) {
        double a = k->base, b = k->dim < 0 ? a : known_at(k, k->len - 1);
        return (IntRange){a == floor(a) && b == floor(b), fmin(a, b), fmax(a, b)};
    }
    IntRange r = {true, k->data[0], k->data[0]};
    for (int64_t i = 0; i < k->len; i++) {
        r.lo = fmin(r.lo, k->data[i]);
        r.hi = fmax(r.hi, k->data[i]);
        r.ok = r.ok && k->data[i] == floor(k->data[i]);
    }
    return r;
}

static IntRange range_of(const Canon *c, const Node *n, int j) {
    IntRange in = n->nin ? c->range.data[n->in[0]] : (IntRange){0};
    DType t = graph_value(c->g, n->out[j])->dtype;
    if (t == DT_BOOL) return (IntRange){true, 0, 1};
    switch (n->op) {
        case OP_SORT:
        case OP_TOPK: {
            const Shape *s = canon_shape(c, n->in[0]);
            if (j == 0) return in;
            return (IntRange){true, 0, (double)s->dim[node_int(n, ATTR_DIM)] - 1};
        }
        case OP_RESHAPE:
        case OP_PERMUTE:
        case OP_BROADCAST:
        case OP_SLICE:
        case OP_AMAX:
        case OP_EMBEDDING:
        case OP_GATHER: return in;
        case OP_CONCAT:
            for (int i = 1; i < n->nin; i++) {
                IntRange r = c->range.data[n->in[i]];
                in = (IntRange){in.ok && r.ok, fmin(in.lo, r.lo), fmax(in.hi, r.hi)};
            }
            return in;
        case OP_HISTOGRAM: return (IntRange){true, 0, (double)shape_numel(canon_shape(c, n->in[0]))};
        default: return op_is_pointwise(n->op) ? range_of_pointwise(c, n) : (IntRange){0};
    }
}

// ---- appending ------------------------------------------------------------------------------------------------------
static Known source_known(const Canon *c, const Node *n) {
    Known k = {0};
    const Shape *s = canon_shape(c, n->out[0]);
    DType t = canon_dtype(c, n->out[0]);
    if (n->op == OP_FULL) k = known_constant(node_float(n, ATTR_VALUE));
    if (n->op == OP_IOTA) {
        int dim = (int)node_int(n, ATTR_DIM);
        if (s->dim[dim] == 1) return known_constant((double)node_int_or(n, ATTR_START, 0));
        k = (Known){.known = true, .dim = dim, .len = s->dim[dim], .affine = true};
        k.base = (double)node_int_or(n, ATTR_START, 0);
        k.step = (double)node_int_or(n, ATTR_STEP, 1);
    }
    if (n->op == OP_CONSTANT) known_from_bytes(&c->g->consts.data[node_int(n, ATTR_INDEX)], t, &k, c->scratch);
    return k;
}

// The node itself, shared if it exists.
static NodeId append(Canon *c, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    if (c->status != ST_OK) return NO_NODE;
    if (2 * (c->used + 1) > c->cap) table_grow(c);
    uint64_t h = hash_node(op, nin, in, nattr, attr);
    Node key = {.op = op, .nin = (int16_t)nin, .nattr = (int16_t)nattr, .in = (ValueId *)in, .attr = (Attr *)attr};
    NodeId id = table_find(c, h, &key);
    if (id != NO_NODE) return id;
    c->status = graph_add(c->g, op, nin, in, nattr, attr, c->source, c->phase, &id, c->d);
    if (c->status != ST_OK) return NO_NODE;
    graph_node(c->g, id)->note = c->note;
    table_insert(c, h, id);
    const Node *n = graph_node(c->g, id);
    for (int j = 0; j < n->nout; j++) {
        Known k = n->nin ? (Known){0} : source_known(c, n);
        DType t = graph_value(c->g, n->out[j])->dtype;
        vec_push(&c->known, k);
        vec_push(&c->range, k.known && !dtype_is_float(t) ? range_of_known(&k) : range_of(c, n, j));
    }
    return id;
}

ValueId canon_full(Canon *c, Shape s, DType t, double v) {
    Attr a[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DTYPE, t), attr_f(ATTR_VALUE, v)};
    NodeId id = append(c, OP_FULL, 0, NULL, 3, a);
    return id == NO_NODE ? NO_VALUE : graph_node(c->g, id)->out[0];
}

static ValueId append_const(Canon *c, const Known *k, DType dtype, Shape s) {
    int64_t n = k->len;
    void *bytes = arena_alloc(c->g->arena, (size_t)n * (size_t)dtype_nbytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        double v = known_at(k, i);
        if (dtype == DT_F32) ((float *)bytes)[i] = (float)v;
        else if (dtype == DT_F64) ((double *)bytes)[i] = v;
        else if (dtype == DT_I64) ((int64_t *)bytes)[i] = (int64_t)v;
        else ((uint8_t *)bytes)[i] = v != 0;
    }
    int64_t index = rewrite_add_const(c->g, s, dtype, bytes);
    Attr a = attr_i(ATTR_INDEX, index);
    NodeId id = append(c, OP_CONSTANT, 0, NULL, 1, &a);
    return id == NO_NODE ? NO_VALUE : graph_node(c->g, id)->out[0];
}

ValueId canon_from_known(Canon *c, const Known *k, DType dtype, const Shape *shape) {
    if (k->dim < 0) return canon_full(c, *shape, dtype, k->base);
    if (known_is_iota(k, dtype)) {
        Attr a[] = {attr_ints(ATTR_SHAPE, shape->ndim, shape->dim), attr_i(ATTR_DIM, k->dim),
                    attr_i(ATTR_START, (int64_t)k->base), attr_i(ATTR_STEP, (int64_t)k->step), attr_i(ATTR_DTYPE, dtype)};
        NodeId id = append(c, OP_IOTA, 0, NULL, 5, a);
        return id == NO_NODE ? NO_VALUE : graph_node(c->g, id)->out[0];
    }
    if (dtype_is_float(dtype) && k->len > KNOWN_MAX_FLOAT) return NO_VALUE;
    Shape s = {.ndim = shape->ndim};
    for (int i = 0; i < s.ndim; i++) s.dim[i] = i == k->dim ? k->len : 1;
    ValueId v = append_const(c, k, dtype, s);
    if (v != NO_VALUE) c->known.data[v] = *k;
    if (v == NO_VALUE || shape_equal(&s, shape)) return v;
    Attr a = attr_ints(ATTR_SHAPE, shape->ndim, shape->dim);
    NodeId id = append(c, OP_BROADCAST, 1, &v, 1, &a);
    if (id == NO_NODE) return NO_VALUE;
    v = graph_node(c->g, id)->out[0];
    c->known.data[v] = *k;
    return v;
}

bool canon_number(const Canon *c, ValueId x, double *v) {
    const Known *k = &c->known.data[x];
    if (!k->known || k->dim >= 0) return false;
    *v = k->base;
    return true;
}

// The folded value of op(in), NO_VALUE if it is not known.
static ValueId fold(Canon *c, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    Known k[8];
    if (nin == 0 || nin > 8) return NO_VALUE;
    for (int i = 0; i < nin; i++) {
        k[i] = c->known.data[in[i]];
        if (!k[i].known) return NO_VALUE;
    }
    Node n = {.op = op, .nin = (int16_t)nin, .nattr = (int16_t)nattr, .in = (ValueId *)in, .attr = (Attr *)attr};
    TypeOut type[4];
    int nout = 0;
    if (op == OP_SORT || op == OP_TOPK || op == OP_SDPA) return NO_VALUE;
    c->status = op_info(op)->infer(c->g, &n, &nout, type, c->d);
    if (c->status != ST_OK || nout != 1 || type[0].dtype == DT_BF16) return NO_VALUE;  // no source makes bf16
    Known out;
    if (!known_eval(c->g, &n, k, type[0].dtype, &type[0].shape, &out, c->scratch)) return NO_VALUE;
    if (op == OP_BROADCAST && out.dim >= 0 && !known_is_iota(&out, type[0].dtype)) return NO_VALUE;
    return canon_from_known(c, &out, type[0].dtype, &type[0].shape);
}

ValueId canon_emit(Canon *c, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr) {
    if (c->status != ST_OK) return NO_VALUE;
    ValueId v = fold(c, op, nin, in, nattr, attr);
    if (c->status != ST_OK || v != NO_VALUE) return v;
    Node n = {.op = op, .nin = (int16_t)nin, .nattr = (int16_t)nattr, .in = (ValueId *)in, .attr = (Attr *)attr};
    if (op_is_pointwise(op)) v = canon_pointwise(c, op, nin, in, nattr, attr);
    else v = canon_movement(c, op, nin, in, &n);
    if (c->status != ST_OK || v != NO_VALUE) return v;
    NodeId id = append(c, op, nin, in, nattr, attr);
    if (id == NO_NODE) return NO_VALUE;
    v = graph_node(c->g, id)->out[0];
    if (op == OP_BROADCAST && c->known.data[in[0]].known) c->known.data[v] = c->known.data[in[0]];
    return v;
}

// ---- the pass -------------------------------------------------------------------------------------------------------
static bool has_backward(const Graph *g) {
    for (int64_t i = 0; i < g->nodes.len; i++)
        if (g->nodes.data[i].phase == PHASE_BACKWARD) return true;
    return false;
}

static void visit(Canon *c, const Graph *in, NodeId id, ValueId *map) {
    const Node *n = graph_node(in, id);
    c->source = n->source;
    c->note = n->note;
    c->phase = n->phase;
    ValueId *arg = ARENA_ARRAY(c->scratch, ValueId, n->nin);
    for (int k = 0; k < n->nin; k++) arg[k] = map[n->in[k]];
    ValueId v = NO_VALUE;
    if (n->op == OP_IOTA || n->op == OP_CONSTANT) {  // a constant that is a fill or an arange becomes one
        NodeId src = append(c, n->op, 0, NULL, n->nattr, n->attr);
        if (src != NO_NODE) {
            v = graph_node(c->g, src)->out[0];
            Known k = c->known.data[v];
            if (k.known && (k.dim < 0 || known_is_iota(&k, canon_dtype(c, v))))
                v = canon_from_known(c, &k, canon_dtype(c, v), canon_shape(c, v));
        }
    } else {
        v = canon_emit(c, n->op, n->nin, arg, n->nattr, n->attr);
    }
    if (v == NO_VALUE) return;
    map[n->out[0]] = v;
    if (!graph_value(c->g, v)->name) graph_value(c->g, v)->name = graph_value(in, n->out[0])->name;
    for (int j = 1; j < n->nout; j++) map[n->out[j]] = graph_def(c->g, v)->out[j];
}

Status pass_canonicalize(PassContext *ctx, Graph *in, Graph **out, Diag *d) {
    Canon c = {.g = graph_new_like(in), .scratch = ctx->scratch, .d = d, .drop_stop_grad = has_backward(in)};
    ValueId *map = ARENA_ARRAY(ctx->scratch, ValueId, in->values.len);
    bool *live = rewrite_live(in, ctx->scratch);
    for (int64_t i = 0; i < in->nodes.len && c.status == ST_OK; i++)
        if (live[i]) visit(&c, in, (NodeId)i, map);
    if (c.status == ST_OK) {
        for (int64_t i = 0; i < in->outputs.len; i++) {
            const Output *o = &in->outputs.data[i];
            graph_add_output(c.g, o->kind, o->param, o->slot, o->name, map[o->value]);
        }
        *out = rewrite_prune(c.g, in->consts.len, ctx->scratch);
    }
    graph_free_vecs(c.g);
    vec_free(&c.known);
    vec_free(&c.range);
    return c.status;
}
