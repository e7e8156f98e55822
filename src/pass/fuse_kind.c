// Which nodes fuse_rows may put into kernels: pointwise ops, reductions that are one of a row or of columns, and movements that
// are views. See fuse_rows.c.
#include "ops/op.h"
#include "pass/fuse_rows.h"

bool shape_equal_but_ones(const Shape *a, const Shape *b) {
    int i = 0, j = 0;
    for (;;) {
        while (i < a->ndim && a->dim[i] == 1) i++;
        while (j < b->ndim && b->dim[j] == 1) j++;
        if (i == a->ndim || j == b->ndim) return i == a->ndim && j == b->ndim;
        if (a->dim[i++] != b->dim[j++]) return false;
    }
}

static bool placed_plainly(const Graph *g, ValueId v) {
    const Placement *p = &graph_value(g, v)->place;
    return p->kind == PLACE_REPLICATE || placement_is_partition(g, p);
}

static bool is_pointwise(const Graph *g, const Node *n) {
    if (!op_is_pointwise(n->op) || n->nout != 1 || !placed_plainly(g, n->out[0])) return false;
    for (int i = 0; i < n->nin; i++)
        if (!placed_plainly(g, n->in[i]) || (graph_value(g, n->in[i])->dtype == DT_BF16 && n->op != OP_CAST)) return false;
    return graph_value(g, n->out[0])->dtype != DT_BF16 || n->op == OP_CAST;
}

// Sums and maxima of f32: a row's are whole, a column's may be terms where the rows are divided.
static bool is_reduction(const Graph *g, const Node *n) {
    if (n->op != OP_SUM && n->op != OP_AMAX && n->op != OP_LOGSUMEXP) return false;
    const Placement *out = &graph_value(g, n->out[0])->place;
    if (graph_value(g, n->in[0])->dtype != DT_F32 || !placed_plainly(g, n->in[0])) return false;
    if (placed_plainly(g, n->out[0])) return true;
    bool terms = out->kind == PLACE_PARTIAL && out->reduce == RED_SUM && graph_value(g, n->in[0])->place.kind == PLACE_SHARD;
    return n->op == OP_SUM && terms;
}

// A permutation that leaves the fastest dim where it is: other ones are better off in a kernel that goes by tiles.
static bool keeps_last(const Graph *g, const Node *n) {
    enum { SMALL = 1 << 14 };
    const Shape *s = graph_shape(g, n->in[0]), *o = graph_shape(g, n->out[0]);
    const int64_t *dims;
    node_ints(n, ATTR_DIMS, &dims);
    int last_in = -1, last_out = -1;
    for (int k = 0; k < s->ndim; k++) {
        if (s->dim[k] > 1) last_in = k;
        if (o->dim[k] > 1) last_out = (int)dims[k];
    }
    return last_in == last_out || shape_numel(s) <= SMALL;
}

static bool is_move(const Graph *g, const Node *n) {
    const Placement *p = n->nout ? &graph_value(g, n->out[0])->place : NULL;
    bool along = node_attr(n, ATTR_DIM) != NULL;  // moves what lies along that dim, which must be whole
    if (!op_is_move(n->op) || (n->op == OP_PERMUTE && !keeps_last(g, n))) return false;
    if (n->op == OP_RESHAPE && !shape_equal_but_ones(graph_shape(g, n->in[0]), graph_shape(g, n->out[0]))) return false;
    if (!placed_plainly(g, n->out[0]) || shape_numel(graph_shape(g, n->out[0])) == 0) return false;
    if (along && p->kind == PLACE_SHARD && p->dim == node_int(n, ATTR_DIM)) return false;
    for (int i = 0; i < n->nin; i++) {
        if (!placed_plainly(g, n->in[i]) || shape_numel(graph_shape(g, n->in[i])) == 0) return false;
        const Placement *q = &graph_value(g, n->in[i])->place;
        if (along && q->kind == PLACE_SHARD && q->dim == node_int(n, ATTR_DIM)) return false;
    }
    return true;
}

static FuseKind kind_of(const Graph *g, const Node *n) {
    if (n->nout != 1) return FUSE_OPAQUE;
    for (int i = 0; i < n->nin; i++)
        if (shape_numel(graph_shape(g, n->in[i])) == 0) return FUSE_OPAQUE;
    if (shape_numel(graph_shape(g, n->out[0])) == 0) return FUSE_OPAQUE;
    if (is_pointwise(g, n)) return FUSE_POINTWISE;
    if (is_reduction(g, n)) return FUSE_REDUCE;
    return is_move(g, n) ? FUSE_MOVE : FUSE_OPAQUE;
}

// A reader in a later phase keeps the operands of a movement instead of its result: not if they are larger.
static bool keeps_no_more(const Graph *g, const Node *n) {
    int64_t in = 0;
    for (int i = 0; i < n->nin; i++) {
        OpKind op = graph_def(g, n->in[i])->op;
        if (op != OP_PARAM && op != OP_INPUT && op != OP_CONSTANT) in += shape_numel(graph_shape(g, n->in[i]));
    }
    return in <= shape_numel(graph_shape(g, n->out[0]));
}

// Movements are read through where that spares the node, or where it costs nothing. Readers come later, so the last node first.
static bool read_through(const Fuse *f, const Node *n) {
    if (n->op == OP_RESHAPE || n->op == OP_BROADCAST) return true;
    for (int32_t u = f->uses.first[n->out[0]]; u < f->uses.first[n->out[0] + 1]; u++) {
        NodeId user = f->uses.use[u].node;
        if (user == NO_NODE) return false;
        FuseKind k = (FuseKind)f->kind[user];
        if (k == FUSE_OPAQUE || (k == FUSE_MOVE && !f->through[user])) return false;
        if (k == FUSE_MOVE && graph_node(f->g, user)->op == OP_RESHAPE) return false;  // may have readers that need it stored
        if (graph_node(f->g, user)->phase != n->phase && !keeps_no_more(f->g, n)) return false;
    }
    return true;
}

void fuse_classify(Fuse *f) {
    for (int64_t i = 0; i < f->g->nodes.len; i++) f->kind[i] = (uint8_t)kind_of(f->g, graph_node(f->g, (NodeId)i));
    for (int64_t i = f->g->nodes.len; i-- > 0;)
        f->through[i] = f->kind[i] == FUSE_MOVE && read_through(f, graph_node(f->g, (NodeId)i));
}
