// epilogue: what is added to a product is added by the product.
//
//   %4 = dot(%x, %w)                   %5 = dot(%x, %w, %3)
//   %5 = add(%3, %4)          ->
//   %6 = dot(%y, %v)                   %7 = dot(%y, %v, %5)
//   %7 = add(%5, %6)
//
// For residuals, sums of products (the gradient of a value with several readers, of a weight used twice) and biases. The add may
// see the product through a reshape. In mixed precision it sees casts to f32; then the sum is rounded to bf16 before it is used,
// so this is done only where it is stored in bf16 anyway: read by a cast to bf16, or by another phase (a residual, needed again
// by the backward), and by nobody in f32 (an output, a scan); and only if the other summand is stored in bf16 too, or is a bias
// and the sum is rounded at once.
//
// Requires: placements (shard ran); a backend whose dot takes a third operand. Establishes: the same values (but for that
// rounding) by fewer passes over memory.
#include "backend/backend.h"
#include "ir/uses.h"
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

typedef struct Epilogue {
    Rewrite r;
    Uses uses;
} Epilogue;

typedef struct Product {  // an operand of add as a product
    const Node *dot;      // NULL: it is none
    bool cast;            // from bf16 to f32
} Product;

static int32_t use_count(const Epilogue *e, ValueId v) { return e->uses.first[v + 1] - e->uses.first[v]; }
static const Value *old(const Epilogue *e, ValueId v) { return graph_value(e->r.in, v); }

// A product of two operands that nobody else reads, perhaps reshaped and cast up.
static Product find_product(const Epilogue *e, ValueId v) {
    Product p = {0};
    for (int steps = 0; steps < 3 && use_count(e, v) == 1; steps++) {
        const Node *n = graph_def(e->r.in, v);
        if (n->op == OP_DOT) {
            bool whole = old(e, v)->place.reduce == RED_NONE || old(e, v)->place.kind == PLACE_PARTIAL;
            if (n->nin == 2 && whole) p.dot = n;
            return p;
        }
        bool cast = n->op == OP_CAST && old(e, n->in[0])->dtype == DT_BF16 && old(e, v)->dtype == DT_F32;
        if (!cast && n->op != OP_RESHAPE) return p;
        p.cast |= cast;
        v = n->in[0];
    }
    return p;
}

// Whether v leaves the graph or goes, moved perhaps, into an op that is no part of a kernel of narrow's: it stays f32 in memory
// then.
static bool is_read_wide(const Epilogue *e, ValueId v, int depth) {
    for (int32_t u = e->uses.first[v]; u < e->uses.first[v + 1]; u++) {
        if (e->uses.use[u].node == NO_NODE || depth > 16) return true;
        const Node *n = graph_node(e->r.in, e->uses.use[u].node);
        bool moves = op_only_moves(n) || n->op == OP_RESHARD;
        bool fused = op_is_pointwise(n->op) || n->op == OP_SUM || n->op == OP_AMAX || n->op == OP_LOGSUMEXP;
        if (moves ? is_read_wide(e, n->out[0], depth + 1) : !fused) return true;
    }
    return false;
}

// Whether the sum v is stored in bf16, for one of its readers at least, and in f32 for none.
static bool is_stored(const Epilogue *e, ValueId v, int depth) {
    const Node *def = graph_def(e->r.in, v);
    bool stored = false;
    for (int32_t u = e->uses.first[v]; u < e->uses.first[v + 1] && !stored; u++) {
        if (e->uses.use[u].node == NO_NODE) return false;
        const Node *n = graph_node(e->r.in, e->uses.use[u].node);
        bool cast = n->op == OP_CAST && node_int(n, ATTR_DTYPE) == DT_BF16;
        stored = cast || n->phase != def->phase ||
                 (n->op == OP_ADD && use_count(e, v) == 1 && depth < 16 && is_stored(e, n->out[0], depth + 1));
    }
    return stored && !is_read_wide(e, v, 0);
}

// Broadcast along all dims but the last.
static bool is_bias(const Value *x, const Shape *sum) {
    if (x->place.kind != PLACE_REPLICATE || x->shape.ndim < 1 || sum->ndim < 1) return false;
    int64_t last = sum->dim[sum->ndim - 1];
    return x->shape.dim[x->shape.ndim - 1] == last && shape_numel(&x->shape) == last;
}

static ValueId placed(Epilogue *e, ValueId v, Placement p) {
    if (e->r.b.status == ST_OK) graph_value(e->r.out, v)->place = p;
    return v;
}

static ValueId reshaped(Epilogue *e, ValueId v, const Value *like) {
    if (e->r.b.status != ST_OK || shape_equal(graph_shape(e->r.out, v), &like->shape)) return v;
    return placed(e, build_reshape(&e->r.b, v, like->shape), like->place);
}

static ValueId cast(Epilogue *e, ValueId v, DType t) {
    if (e->r.b.status != ST_OK || graph_value(e->r.out, v)->dtype == t) return v;
    Placement p = graph_value(e->r.out, v)->place;
    return placed(e, build_cast(&e->r.b, v, t), p);
}

// Whether the placements of `v`, like `sum`, become those of `dot` by a reshape: the row of the reshape that is there, backwards.
static bool reshapes_back(Epilogue *e, const Value *sum, const Value *dot) {
    if (shape_equal(&sum->shape, &dot->shape)) return placement_equal(&sum->place, &dot->place);
    if (sum->place.kind != PLACE_SHARD) return placement_equal(&sum->place, &dot->place);
    ValueId in = 0, out = 1;  // a node between two values of the right shapes, to ask the rule with
    Value v[2] = {*sum, *dot};
    Graph g = *e->r.out;
    g.values.data = v, g.values.len = 2;
    Node n = {.op = OP_RESHAPE, .nin = 1, .nout = 1, .in = &in, .out = &out, .nattr = 1, .attr = &(Attr){0}};
    n.attr[0] = attr_ints(ATTR_SHAPE, dot->shape.ndim, dot->shape.dim);
    Placement from, to;
    Row row = {.in = &from, .out = &to};
    return op_info(OP_RESHAPE)->shard(&g, &n, 0, sum->place, &row) && placement_equal(&to, &dot->place);
}

// What is added, as a value of the new graph of the product's type; NO_VALUE where that would round more than now.
static ValueId addend(Epilogue *e, const Product *p, const Node *add, ValueId other, bool bias) {
    ValueId now = e->r.map[other];
    if (!p->cast) return now;
    const Node *def = graph_def(e->r.out, now);
    if (def->op == OP_CAST && graph_value(e->r.out, def->in[0])->dtype == DT_BF16) return def->in[0];
    bool rounded = false;
    if (bias && use_count(e, add->out[0]) == 1) {
        const Node *reader = graph_node(e->r.in, e->uses.use[e->uses.first[add->out[0]]].node);
        rounded = reader->op == OP_CAST && node_int(reader, ATTR_DTYPE) == DT_BF16;
    } else if (!bias) {
        rounded = op_is_pointwise(graph_def(e->r.in, other)->op) && is_stored(e, other, 0);
    }
    return rounded ? cast(e, now, DT_BF16) : NO_VALUE;
}

// add(product, other) as one product; false if it cannot be.
static bool join(Epilogue *e, const Node *add, const Product *p, ValueId other) {
    const Value *sum = old(e, add->out[0]), *x = old(e, other), *dot = old(e, p->dot->out[0]);
    bool bias = !shape_equal(&x->shape, &sum->shape);
    if (sum->shape.ndim < 1 || dot->shape.ndim < 1 || shape_numel(&sum->shape) != shape_numel(&dot->shape)) return false;
    int last = dot->shape.ndim - 1;
    if (bias && (!is_bias(x, &sum->shape) || sum->place.kind == PLACE_PARTIAL ||
                 dot->shape.dim[last] != sum->shape.dim[sum->shape.ndim - 1] ||
                 (dot->place.kind == PLACE_SHARD && dot->place.dim == last)))
        return false;
    if (!bias &&
        (!placement_equal(&x->place, &sum->place) || sum->place.reduce != dot->place.reduce || !reshapes_back(e, sum, dot)))
        return false;
    if (p->cast && !is_stored(e, add->out[0], 0)) return false;
    ValueId c = addend(e, p, add, other, bias);
    if (c == NO_VALUE) return false;
    Builder *b = &e->r.b;
    if (bias) {
        Value vector = {.shape = SHAPE(dot->shape.dim[last]), .place = REPLICATE};
        c = reshaped(e, c, &vector);
    } else {
        c = reshaped(e, c, dot);
    }
    Attr *attr = ARENA_ARRAY(e->r.scratch, Attr, p->dot->nattr + 1);
    memcpy(attr, p->dot->attr, sizeof *attr * (size_t)p->dot->nattr);
    attr[p->dot->nattr] = attr_i(ATTR_BIAS, 1);
    ValueId in[3] = {e->r.map[p->dot->in[0]], e->r.map[p->dot->in[1]], c};
    ValueId v = b->status == ST_OK ? build(b, OP_DOT, 3, in, p->dot->nattr + bias, attr) : NO_VALUE;
    v = reshaped(e, placed(e, v, dot->place), sum);
    v = cast(e, v, sum->dtype);
    e->r.map[add->out[0]] = v;
    if (b->status == ST_OK && sum->name) graph_value(e->r.out, v)->name = sum->name;
    return true;
}

static void visit(Epilogue *e, NodeId id) {
    const Node *n = graph_node(e->r.in, id);
    rewrite_at(&e->r, id);
    if (n->op == OP_CAST && node_int(n, ATTR_DTYPE) == DT_BF16) {  // the sum itself, now that it is bf16
        const Node *def = graph_def(e->r.out, e->r.map[n->in[0]]);
        if (def->op == OP_CAST && graph_value(e->r.out, def->in[0])->dtype == DT_BF16) {
            e->r.map[n->out[0]] = def->in[0];
            return;
        }
    }
    if (n->op == OP_ADD && dtype_is_float(old(e, n->out[0])->dtype)) {
        Product p[2] = {find_product(e, n->in[0]), find_product(e, n->in[1])};
        int first = p[0].dot && p[1].dot ? p[0].dot > p[1].dot ? 0 : 1 : p[0].dot ? 0 : 1;  // the later one reads the other
        for (int k = 0; k < 2; k++) {
            int side = k ? 1 - first : first;
            if (p[side].dot && join(e, n, &p[side], n->in[1 - side])) return;
        }
    }
    rewrite_copy(&e->r, id);
}

Status pass_epilogue(PassContext *c, Graph *in, Graph **out, Diag *d) {
    if (!(c->features & BACKEND_EPILOGUE)) {
        *out = in;
        return ST_OK;
    }
    Epilogue e = {.uses = uses_collect(in, c->scratch)};
    rewrite_begin(&e.r, in, c->scratch, d);
    for (int64_t i = 0; i < in->nodes.len && e.r.b.status == ST_OK; i++) visit(&e, (NodeId)i);
    return rewrite_finish(&e.r, out);
}
