// Writing regions out: what they need, then all members for the first chunk, for the second, ..., then the wholes that others
// read, then the nodes that come after.
#include "ir/build.h"
#include "ir/views.h"
#include "pass/tile_inside.h"

typedef struct Selected {  // the ranks' layouts of the chunks of a value
    const LayoutTable *chunks;
    LayoutId chunk, rank;
    LayoutId *layout;      // [chunks]
} Selected;

typedef struct Emit {
    Tile t;
    TileEmit *e;
    Builder b;
    ValueId *now;          // [values of g] of a result of a member: its chunk, or the sum so far
    int32_t *made;  // [values of g] the number of the chunk, counted through, for which `now` holds, of values cut from outside
    Cut *as;               // [values of g] ... and how they were cut
    int64_t total;         // members times chunks
    NodeId done;           // nodes of g before this one are written
    int32_t chunk;         // counted through all regions
    VEC(Selected) selected;
    ValueId *part;         // [values of g] of results that are wanted whole: where the first of their chunks is in `parts`
    VEC(ValueId) parts;
    VEC(NodeId) starts;    // nodes of the new graph where chunks begin
} Emit;

static const Span *chunk_spans(const Region *r, const Cut *cut, int c, int *n) {
    const Layout *l = layouts_get(r->chunks, cut->layout);
    *n = layout_nspan(l, c);
    return layout_spans(l, c);
}

// The layout of the ranks' rows in chunk c.
static LayoutId select_layout(Emit *m, const Region *r, const Cut *cut, LayoutId rank, int c) {
    for (int64_t i = m->selected.len - 1; i >= 0; i--) {
        const Selected *s = &m->selected.data[i];
        if (s->chunks == r->chunks && s->chunk == cut->layout && s->rank == rank) return s->layout[c];
    }
    Selected s = {r->chunks, cut->layout, rank, ARENA_ARRAY(m->t.a, LayoutId, r->n)};
    for (int k = 0; k < r->n; k++) {
        int n;
        const Span *span = chunk_spans(r, cut, k, &n);
        s.layout[k] = layout_select(m->t.g->layouts, rank, n, span);
    }
    vec_push(&m->selected, s);
    return s.layout[c];
}

static Placement chunk_place(Emit *m, const Region *r, const Value *x, const Cut *cut, int c) {
    Placement p = x->place;
    if (cut->kind == CUT_ROWS && p.kind == PLACE_SHARD && p.dim == cut->dim) p.layout = select_layout(m, r, cut, p.layout, c);
    return p;
}

static int64_t *span_ints(Arena *a, const Span *span, int n, int64_t *at) {
    int64_t *ints = at ? at : ARENA_ARRAY(a, int64_t, 2 * n);
    for (int i = 0; i < n; i++) ints[2 * i] = span[i].begin, ints[2 * i + 1] = span[i].end;
    return ints;
}

static ValueId placed(Emit *m, ValueId v, Placement p) {
    if (m->b.status == ST_OK) graph_value(m->b.g, v)->place = p;
    return v;
}

// ---- one member, one chunk ----------------------------------------------------------------------------------------------
static ValueId make_part(Emit *m, const Region *r, ValueId v, const Cut *cut, int c) {
    const Cut *as = &m->as[v];
    if (m->made[v] == m->chunk && as->dim == cut->dim && as->layout == cut->layout) return m->now[v];
    int n;
    const Span *span = chunk_spans(r, cut, c, &n);
    Attr attr[2] = {attr_i(ATTR_DIM, cut->dim), attr_ints(ATTR_INTERVALS, 2 * n, span_ints(m->t.a, span, n, NULL))};
    ValueId part = placed(m, build(&m->b, OP_PART, 1, &m->e->map[v], 2, attr), chunk_place(m, r, graph_value(m->t.g, v), cut, c));
    m->made[v] = m->chunk, m->as[v] = *cut, m->now[v] = part;
    return part;
}

static ValueId operand(Emit *m, const Region *r, const Member *x, int k, int c) {
    const Node *n = graph_node(m->t.g, x->node);
    ValueId v = n->in[k];
    const Cut *cut = &x->in[k];
    if (cut->kind == CUT_ADDEND) return c == 0 ? m->e->map[v] : m->now[n->out[0]];
    if (cut->kind != CUT_ROWS) return m->e->map[v];
    bool member = m->t.member[graph_value(m->t.g, v)->def] == m->t.region;
    return member ? m->now[v] : make_part(m, r, v, cut, c);
}

// The dim of the iteration space of a fused node that is cut, and its size in chunk c.
static void fused_dim(Emit *m, const Region *r, const Member *x, int c, int *dim, int64_t *size) {
    const Node *n = graph_node(m->t.g, x->node);
    const Cut *cut = NULL;
    for (int j = 0; j < n->nout && !cut; j++)
        if (x->out[j].kind == CUT_ROWS) cut = &x->out[j];
    *dim = cut ? cut->dim : -1;
    View *views = ARENA_ARRAY(m->t.a, View, n->nin);
    CHECK(cut || views_decode(n, views, m->b.d) == ST_OK, "tile: views that cannot be read");
    for (int k = 0; k < n->nin && !cut; k++) {
        if (x->in[k].kind != CUT_ROWS) continue;
        cut = &x->in[k];
        const int64_t *ints;
        int ndim = node_ints(n, ATTR_SHAPE, &ints);
        Shape space = shape_of(ndim, ints);
        *dim = view_resolve(&views[k], graph_shape(m->t.g, n->in[k]), &space).d[cut->dim].dim;
    }
    CHECK(cut && *dim >= 0, "tile: a fused node without a dim to cut");
    *size = layout_local(layouts_get(r->chunks, cut->layout), c);
}

// Attribute shape is that of the chunk.
static void cut_shape(Emit *m, const Region *r, const Member *x, int c, Attr *attr) {
    const Node *n = graph_node(m->t.g, x->node);
    if (n->op != OP_RESHAPE && n->op != OP_BROADCAST && n->op != OP_FUSED) return;
    for (int i = 0; i < n->nattr; i++) {
        if (attr[i].key != ATTR_SHAPE) continue;
        int dim = x->out[0].dim;
        int64_t size = 0, *ints = arena_copy(m->b.g->arena, attr[i].u.ints, sizeof(int64_t) * (size_t)attr[i].n);
        if (n->op == OP_FUSED) fused_dim(m, r, x, c, &dim, &size);
        else size = layout_local(layouts_get(r->chunks, x->out[0].layout), c);
        ints[dim] = size;
        attr[i].u.ints = ints;
    }
}

static ValueId add_up(Emit *m, const Member *x, int j, ValueId v) {
    ValueId old = graph_node(m->t.g, x->node)->out[j];
    return placed(m, build_binary(&m->b, OP_ADD, m->now[old], v), graph_value(m->t.g, old)->place);
}

static void emit_member(Emit *m, const Region *r, const Member *x, int c) {
    const Node *n = graph_node(m->t.g, x->node);
    m->b.source = n->source, m->b.note = n->note, m->b.phase = n->phase;
    ValueId *in = ARENA_ARRAY(m->t.a, ValueId, n->nin + 1), *out = ARENA_ARRAY(m->t.a, ValueId, n->nout);
    for (int k = 0; k < n->nin; k++) in[k] = operand(m, r, x, k, c);
    Attr *attr = arena_copy(m->t.a, n->attr, sizeof(Attr) * (size_t)n->nattr);
    cut_shape(m, r, x, c, attr);
    int nin = n->nin;
    bool adds = op_addend(n->op) >= 0 && (n->op != OP_DOT || m->e->epilogue);
    bool onto = adds && x->out[0].kind == CUT_SUM && nin == op_addend(n->op) && c > 0;
    if (onto) in[nin++] = m->now[n->out[0]];
    build_multi(&m->b, n->op, nin, in, n->nattr, attr, n->nout, out);
    bool added = onto || (n->nin > 0 && x->in[n->nin - 1].kind == CUT_ADDEND);
    for (int j = 0; j < n->nout && m->b.status == ST_OK; j++) {
        placed(m, out[j], chunk_place(m, r, graph_value(m->t.g, n->out[j]), &x->out[j], c));
        bool sum = x->out[j].kind == CUT_SUM && c > 0 && !added;
        m->now[n->out[j]] = sum ? add_up(m, x, j, out[j]) : out[j];
        if (m->t.value[n->out[j]].whole && x->out[j].kind == CUT_ROWS && !op_is_view(m->t.g, n))
            m->parts.data[m->part[n->out[j]] + c] = out[j];
    }
}

// ---- a region -----------------------------------------------------------------------------------------------------------
static ValueId assemble(Emit *m, const Region *r, ValueId v, const Cut *cut) {
    const Layout *l = layouts_get(r->chunks, cut->layout);
    int64_t *ints = ARENA_ARRAY(m->t.a, int64_t, r->n + 2 * l->first[r->n]), at = 0;
    for (int c = 0; c < r->n; c++) {
        int n;
        const Span *span = chunk_spans(r, cut, c, &n);
        ints[at++] = n;
        span_ints(NULL, span, n, &ints[at]);
        at += 2 * n;
    }
    Attr attr[2] = {attr_i(ATTR_DIM, cut->dim), attr_ints(ATTR_INTERVALS, (int)at, ints)};
    return build(&m->b, OP_ASSEMBLE, r->n, &m->parts.data[m->part[v]], 2, attr);
}

// In the sketch: something of that type, and a reader for the first chunk.
static ValueId stand_in(Emit *m, ValueId v) {
    const Value *x = graph_value(m->t.g, v);
    graph_add_output(m->b.g, OUT_AUX, -1, 0, "chunk", m->parts.data[m->part[v]]);
    if (x->dtype != DT_BF16) return build_full(&m->b, x->shape, x->dtype, 0);
    return build_cast(&m->b, placed(m, build_full(&m->b, x->shape, DT_F32, 0), x->place), DT_BF16);
}

static void make_wholes(Emit *m, const Region *r) {
    for (int64_t i = 0; i < r->member.len && m->b.status == ST_OK; i++) {
        const Member *x = &r->member.data[i];
        const Node *n = graph_node(m->t.g, x->node);
        m->b.source = n->source, m->b.note = "parts of a tiled value", m->b.phase = n->phase;
        for (int j = 0; j < n->nout; j++) {
            ValueId v = n->out[j];
            if (x->out[j].kind == CUT_SUM) m->e->map[v] = m->now[v];
            else if (op_is_view(m->t.g, n)) {
                if (m->t.value[v].whole) graph_copy_node(m->t.g, x->node, m->b.g, m->e->map);
            } else if (m->t.value[v].whole) {
                ValueId whole = m->e->sketch ? stand_in(m, v) : assemble(m, r, v, &x->out[j]);
                m->e->map[v] = placed(m, whole, graph_value(m->t.g, v)->place);
                if (m->b.status == ST_OK) graph_value(m->b.g, whole)->name = graph_value(m->t.g, v)->name;
            }
            if (m->e->map[v] == NO_VALUE) m->e->map[v] = m->now[v];  // nobody asks for it whole
        }
    }
}

static void keep_parts(Emit *m, const Region *r) {
    m->parts.len = 0;
    for (int64_t i = 0; i < r->member.len; i++) {
        const Node *n = graph_node(m->t.g, r->member.data[i].node);
        for (int j = 0; j < n->nout; j++) {
            if (!m->t.value[n->out[j]].whole) continue;
            m->part[n->out[j]] = (ValueId)m->parts.len;
            for (int c = 0; c < r->n; c++) vec_push(&m->parts, NO_VALUE);
        }
    }
}

static bool is_copy(const Node *n) {
    return n->op == OP_OFFLOAD || n->op == OP_OFFLOAD_DONE || n->op == OP_FETCH || n->op == OP_FETCH_DONE;
}

// Which of the nodes that are no members the region needs; and copies that were put in front of it.
static bool *needed_before(Emit *m, const Region *r, NodeId end) {
    bool *needed = ARENA_ARRAY(m->t.a, bool, end - r->first);
    for (NodeId i = r->first; i < end && m->t.member[i] != m->t.region; i++) needed[i - r->first] = !m->t.taken[i] && is_copy(graph_node(m->t.g, i));
    for (int64_t i = 0; i < r->member.len; i++) {  // those fetched from behind the end
        const Node *n = graph_node(m->t.g, r->member.data[i].node);
        for (int k = 0; k < n->nin && r->member.data[i].node >= end; k++) {
            NodeId def = graph_value(m->t.g, n->in[k])->def;
            if (def >= r->first && m->t.member[def] != m->t.region) needed[def - r->first] = true;
        }
    }
    for (NodeId i = end - 1; i >= r->first; i--) {
        bool member = m->t.member[i] == m->t.region;
        const Node *n = graph_node(m->t.g, i);
        if (!member && !needed[i - r->first]) continue;
        for (int k = 0; k < n->nin; k++) {
            NodeId def = graph_value(m->t.g, n->in[k])->def;
            if (def < r->first || (m->t.member[def] == m->t.region && member)) continue;
            if (m->t.taken[def] && m->t.member[def] != m->t.region) continue;  // fetched into an earlier region
            CHECK(m->t.member[def] != m->t.region, "tile: node %d must run before and after the region", i);
            needed[def - r->first] = true;
        }
    }
    return needed;
}

static void copy_rest(Emit *m, const bool *needed, NodeId first, NodeId end, bool before) {
    for (NodeId i = first; i < end; i++)
        if (!m->t.taken[i] && needed[i - first] == before) graph_copy_node(m->t.g, i, m->b.g, m->e->map);
}

// (A sum that comes from behind the end is taken to stay there: what it reads is then alive for no shorter than it will be.)
static void count_pieces(Emit *m, const Region *r, NodeId end) {
    for (int64_t i = 0; i < r->member.len; i++) {
        const Member *x = &r->member.data[i];
        const Node *n = graph_node(m->t.g, x->node);
        if (x->node < end) m->e->region[x->node] = m->t.region;
        for (int j = 0; j < n->nout; j++)
            if (x->out[j].kind == CUT_ROWS && !m->t.value[n->out[j]].whole) m->e->pieces[n->out[j]] = r->n;
    }
}

static Status emit_region(Tile *t, Region *r, NodeId end, void *ctx) {
    Emit *m = ctx;
    (void)t;
    if (r) count_pieces(m, r, end);
    if (m->e->count) return ST_OK;
    for (; m->done < (r ? r->first : end); m->done++)
        if (!m->t.taken[m->done]) graph_copy_node(m->t.g, m->done, m->b.g, m->e->map);
    if (!r) return ST_OK;
    m->total += r->member.len * r->n;
    if (m->total > TILE_MAX_NODES && !m->e->sketch)
        return diag_error(m->b.d, ST_UNSUPPORTED, "tile: chunks of %lld rows make a step of more than %d kernels: take more rows",
                          (long long)m->t.o.rows, TILE_MAX_NODES);
    bool *needed = needed_before(m, r, end);
    keep_parts(m, r);
    copy_rest(m, needed, r->first, end, true);
    for (int c = 0; c < (m->e->sketch ? 1 : r->n) && m->b.status == ST_OK; c++) {
        m->chunk++;
        vec_push(&m->starts, (NodeId)m->b.g->nodes.len);
        for (int64_t i = 0; i < r->member.len && m->b.status == ST_OK; i++) emit_member(m, r, &r->member.data[i], c);
    }
    vec_push(&m->starts, (NodeId)m->b.g->nodes.len);
    make_wholes(m, r);
    TRY(m->b.status);
    copy_rest(m, needed, r->first, end, false);
    m->done = end;
    return m->b.status;
}

static void finish(Emit *m, Arena *a) {
    TileEmit *e = m->e;
    for (int64_t i = 0; i < m->t.g->outputs.len && m->b.status == ST_OK; i++) {
        const Output *o = &m->t.g->outputs.data[i];
        graph_add_output(m->b.g, o->kind, o->param, o->slot, o->name, e->map[o->value]);
    }
    e->data = ARENA_ARRAY(a, bool, m->b.g->values.len + 1);
    for (int64_t v = 0; v < m->t.g->values.len; v++)
        if (e->map[v] != NO_VALUE) e->data[e->map[v]] |= m->t.data[v];
    e->close = ARENA_ARRAY(a, bool, m->b.g->nodes.len + 1);
    for (int64_t i = 0; i < m->starts.len; i++) e->close[m->starts.data[i]] = true;
}

Status tile_emit(const Graph *g, const TileOptions *o, TileLevel level, const bool *close, Arena *a, TileEmit *e, Diag *d) {
    Emit m = {.e = e};
    tile_begin(&m.t, g, o, level, a);
    for (int64_t v = 0; v < g->values.len && e->known; v++) m.t.data[v] |= e->known[v];
    m.t.close = close, m.t.found = emit_region, m.t.ctx = &m;
    e->map = ARENA_ARRAY(a, ValueId, g->values.len);
    e->pieces = ARENA_ARRAY(a, int32_t, g->values.len);
    e->region = ARENA_ARRAY(a, int32_t, g->nodes.len);
    for (int64_t i = 0; i < g->nodes.len; i++) e->region[i] = -1;
    m.now = ARENA_ARRAY(a, ValueId, g->values.len);
    m.made = ARENA_ARRAY(a, int32_t, g->values.len);
    m.as = ARENA_ARRAY(a, Cut, g->values.len);
    m.part = ARENA_ARRAY(a, ValueId, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) e->map[v] = NO_VALUE, e->pieces[v] = 1;
    if (!e->count) m.b = (Builder){.g = graph_new_like(g), .d = d};
    Status st = tile_walk(&m.t);
    if (st == ST_OK && !e->count) finish(&m, a);
    e->out = m.b.g;
    vec_free(&m.selected);
    vec_free(&m.parts);
    vec_free(&m.starts);
    tile_end(&m.t);
    return st;
}
