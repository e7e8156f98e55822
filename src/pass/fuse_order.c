// What may be one kernel without a cycle, and the new graph. See fuse_rows.c.
#include "pass/fuse_rows.h"

void fuse_mark(Fuse *f, const NodeId *member, int n) {
    f->stamp++;
    for (int i = 0; i < n; i++) f->inside[member[i]] = f->stamp;
}

// ---- paths ----------------------------------------------------------------------------------------------------------------

// A node and all that is one kernel with it.
static void visit(Fuse *f, NodeId n) {
    if (f->visited[n] == f->walk) return;
    const Group *p = f->group[n] < 0 ? NULL : f->groups.data[f->group[n]];
    for (int i = 0; i < (p ? p->n : 1); i++) {
        NodeId x = p ? p->member[i] : n;
        f->visited[x] = f->walk;
        vec_push(&f->stack, x);
    }
}

// The readers outside of a value made inside; those that read through a movement read the value itself.
static void visit_readers(Fuse *f, ValueId v, NodeId last) {
    for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++) {
        NodeId user = f->uses.use[u].node;
        if (user == NO_NODE || user > last || f->inside[user] == f->stamp) continue;
        if (f->kind[user] == FUSE_MOVE && f->group[user] < 0)
            visit_readers(f, graph_node(f->g, user)->out[0], last);
        else
            visit(f, user);
    }
}

bool fuse_path_outside(Fuse *f, const NodeId *member, int n, NodeId last) {
    f->walk++;
    f->stack.len = 0;
    for (int i = 0; i < n; i++) visit_readers(f, graph_node(f->g, member[i])->out[0], last);
    while (f->stack.len) {
        const Node *x = graph_node(f->g, f->stack.data[--f->stack.len]);
        for (int j = 0; j < x->nout; j++)
            for (int32_t u = f->uses.first[x->out[j]]; u < f->uses.first[x->out[j] + 1]; u++) {
                NodeId user = f->uses.use[u].node;
                if (user == NO_NODE || user > last) continue;
                if (f->inside[user] == f->stamp) return true;
                visit(f, user);
            }
    }
    return false;
}

// ---- the new graph --------------------------------------------------------------------------------------------------------

typedef struct Order {
    Fuse *f;
    Rewrite r;
    bool *done;  // [nodes]
    VEC(NodeId) waiting;
    Diag *d;
} Order;

static bool reads_views(const Fuse *f) {
    const Emit *e = f->emit;
    for (int i = 0; i < e->nin; i++)
        if (!view_is_broadcast(&e->view[i], graph_shape(f->g, e->in[i]), &e->space.shape)) return true;
    return false;
}

// Whether a group becomes a node: one op alone stays the op it is unless it reads through views.
static bool is_kernel(const Group *p) { return p && p->ninstr && (p->n > 1 || p->viewed); }

// A result in the order of the rows, in the order of the dims of the value that it is.
static ValueId permuted_back(Order *o, ValueId v, const FuseOutput *x, Placement place) {
    int dims[MAX_DIMS], n = 0, ndim = graph_shape(o->r.out, v)->ndim;
    bool taken[MAX_DIMS] = {false};
    for (int k = 0; k < x->view.ndim; k++)
        if (x->view.d[k].dim >= 0) taken[dims[n++] = x->view.d[k].dim] = true;
    for (int k = 0; k < ndim; k++)
        if (!taken[k]) dims[n++] = k;
    ValueId p = build_permute(&o->r.b, v, dims);
    if (o->r.b.status != ST_OK) return NO_VALUE;
    if (place.kind == PLACE_SHARD)
        for (int k = 0; k < ndim; k++)
            if (dims[k] == place.dim) {
                place.dim = k;
                break;
            }
    graph_value(o->r.out, p)->place = place;
    return p;
}

static void set_outputs(Order *o, NodeId made) {
    const Emit *e = o->f->emit;
    const Graph *g = o->f->g;
    for (int j = 0; j < e->nout && o->r.b.status == ST_OK; j++) {
        const Value *old = graph_value(g, e->out[j].v);
        ValueId v = graph_node(o->r.out, made)->out[j];
        Placement place = e->space.place;
        if (e->instr[e->out[j].instr].code == PROG_COL_SUM && place.kind == PLACE_SHARD) place = PARTIAL_SUM;
        else if (e->instr[e->out[j].instr].code == PROG_COL_SUM) place = REPLICATE;
        graph_value(o->r.out, v)->place = place;
        if (e->out[j].permuted) v = permuted_back(o, v, &e->out[j], place);
        if (o->r.b.status != ST_OK) return;
        if (!shape_equal(graph_shape(o->r.out, v), &old->shape)) {
            CHECK(shape_equal_but_ones(graph_shape(o->r.out, v), &old->shape), "output %d of a fused node has another shape", j);
            v = build_reshape(&o->r.b, v, old->shape);
            if (o->r.b.status != ST_OK) return;
            graph_value(o->r.out, v)->place = old->place;
        }
        graph_value(o->r.out, v)->name = old->name;
        o->r.map[e->out[j].v] = v;
    }
}

// Adds the node whose program is in f->emit.
static void add_kernel(Order *o) {
    const Emit *e = o->f->emit;
    enum { MOST = FUSE_INPUTS * MAX_VIEW_INTS };
    int64_t views[MOST];
    int32_t out[FUSE_OUTPUTS];
    ValueId in[FUSE_INPUTS];
    int nviews = 0, nattr = 0;
    for (int i = 0; i < e->nin; i++) {
        View v = e->view[i];
        v.broadcast = view_is_broadcast(&v, graph_shape(o->f->g, e->in[i]), &e->space.shape);
        view_encode(&v, views, &nviews);
        in[i] = o->r.map[e->in[i]];
        CHECK(in[i] != NO_VALUE, "fused group reads value %d before it is made", e->in[i]);
    }
    for (int j = 0; j < e->nout; j++) out[j] = e->out[j].instr;
    Program p = {.ninstr = e->ninstr, .instr = e->instr, .nout = e->nout, .out = out};
    Attr attr[4];
    attr[nattr++] = attr_prog(ATTR_PROG, &p);
    attr[nattr++] = attr_ints(ATTR_SHAPE, e->space.shape.ndim, e->space.shape.dim);
    if (e->space.row) attr[nattr++] = attr_i(ATTR_ROW, e->space.row);
    if (reads_views(o->f)) attr[nattr++] = attr_ints(ATTR_VIEWS, nviews, views);
    NodeId made;
    Builder *b = &o->r.b;
    b->status = graph_add(o->r.out, OP_FUSED, e->nin, in, nattr, attr, b->source, b->phase, &made, o->d);
    if (b->status != ST_OK) return;
    graph_node(o->r.out, made)->note = b->note;
    set_outputs(o, made);
}

static void ensure(Order *o, NodeId n);

static void ensure_kernel(Order *o, const Group *p) {
    Fuse *f = o->f;
    ValueId in[FUSE_INPUTS];
    fuse_mark(f, p->member, p->n);
    CHECK(fuse_emit(f, p->member, p->n, &p->space), "a group of %d nodes has no program any more", p->n);
    int nin = f->emit->nin;
    memcpy(in, f->emit->in, sizeof in);
    for (int i = 0; i < p->n; i++) o->done[p->member[i]] = true;
    for (int i = 0; i < nin; i++) ensure(o, graph_value(f->g, in[i])->def);
    fuse_mark(f, p->member, p->n);  // making the operands wrote other programs
    CHECK(fuse_emit(f, p->member, p->n, &p->space), "a group of %d nodes has no program any more", p->n);
    rewrite_at(&o->r, p->member[p->n - 1]);
    add_kernel(o);
}

// Makes node n of the old graph, and first what it needs.
static void ensure(Order *o, NodeId n) {
    Fuse *f = o->f;
    if (o->done[n] || o->r.b.status != ST_OK) return;
    const Group *p = f->group[n] < 0 ? NULL : f->groups.data[f->group[n]];
    if (is_kernel(p)) {
        ensure_kernel(o, p);
        return;
    }
    o->done[n] = true;
    for (int i = 0; i < graph_node(f->g, n)->nin; i++) ensure(o, graph_value(f->g, graph_node(f->g, n)->in[i])->def);
    if (o->r.b.status == ST_OK) rewrite_copy(&o->r, n);
}

// Movements that waited for a kernel and can be made now, so that they stand in their phase.
static void make_waiting(Order *o, NodeId last) {
    const Graph *g = o->f->g;
    int64_t kept = 0;
    for (int64_t i = 0; i < o->waiting.len; i++) {
        NodeId n = o->waiting.data[i];
        const Node *x = graph_node(g, n);
        bool ready = n <= last;
        for (int k = 0; k < x->nin; k++) ready = ready && o->r.map[x->in[k]] != NO_VALUE;
        if (ready) ensure(o, n);
        else o->waiting.data[kept++] = n;
    }
    o->waiting.len = kept;
}

// In the old order, but a kernel where its last member stood or where it is first needed. Movements that nothing needs go at
// the end.
Status fuse_rewrite(Fuse *f, Graph **out, Diag *d) {
    Order o = {.f = f, .d = d};
    o.done = ARENA_ARRAY(f->a, bool, f->g->nodes.len);
    rewrite_begin(&o.r, f->g, f->a, d);
    for (int64_t i = 0; i < f->g->nodes.len; i++) {
        const Group *p = f->group[i] < 0 ? NULL : f->groups.data[f->group[i]];
        if (!p && f->kind[i] == FUSE_MOVE) vec_push(&o.waiting, (NodeId)i);
        else if (!p || p->member[p->n - 1] == (NodeId)i) ensure(&o, (NodeId)i);
        make_waiting(&o, (NodeId)i);
    }
    for (int64_t i = 0; i < f->g->outputs.len; i++) ensure(&o, graph_value(f->g, f->g->outputs.data[i].value)->def);
    vec_free(&o.waiting);
    return rewrite_finish(&o.r, out);
}
