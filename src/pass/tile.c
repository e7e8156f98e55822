// tile: runs of token-wise kernels are cut along the sequence and written out chunk by chunk.
//
//   %3 = dot(%x, %w)  [1,S,F]            %3 = part(%x) {0..k}       %7 = part(%x) {k..S}
//   %4 = fused(%3)    [1,S,F]     ->     %4 = dot(%3, %w)           %8 = dot(%7, %w)
//   %5 = dot(%4, %v)  [1,S,D]            %5 = fused(%4)             %9 = fused(%8)
//                                        %6 = dot(%5, %v)           %10 = dot(%9, %v)        %11 = assemble(%6, %10)
//
// so that of what lies between (%3 and %4, the widest values there are) only a chunk exists at a time. What sums over tokens,
// gradients of weights above all, is added up over the chunks.
//
// A region is found by going through the nodes in their order. A node joins if the rule by which its op is sharded has a row in
// which its rows are divided as those of the region are (tile_rules.c), and if it depends on nothing outside of the region that
// depends on the region. A token-wise node that does so ends the region: the next one begins. Nodes in between that do not join
// run before the region if it needs them, else after it. A sum that comes later but needs nothing later is fetched into the
// region: the gradient of a weight frees what it reads. Members that neither read nor make anything that would be cut are left
// out again.
//
// With several rows in the batch regions are cut into rows of the batch first, then each of these along the sequence.
//
// Requires: the order of execution (schedule ran). Establishes: the same values (sums over tokens up to rounding); parts that are
// contiguous on every rank and begin at multiples of TileOptions.align bytes.
#include "backend/backend.h"
#include "pass/pass.h"
#include "pass/tile_inside.h"

double tile_nbytes(const Graph *g, ValueId v) {
    const Value *x = graph_value(g, v);
    double n = dtype_nbytes(x->dtype);
    for (int i = 0; i < x->shape.ndim; i++) {
        bool cut = x->place.kind == PLACE_SHARD && x->place.dim == i;
        n *= (double)(cut ? layout_max_local(layouts_get(g->layouts, x->place.layout)) : x->shape.dim[i]);
    }
    return n;
}

bool tile_has_batch(const Graph *g) { return g->batch > 1; }

void tile_begin(Tile *t, const Graph *g, const TileOptions *o, TileLevel level, Arena *a) {
    *t = (Tile){.g = g, .o = *o, .level = level, .a = a, .region = 1};
    if (t->o.align < 1) t->o.align = 16;
    t->value = ARENA_ARRAY(a, TileValue, g->values.len);
    t->member = ARENA_ARRAY(a, int32_t, g->nodes.len);
    t->taken = ARENA_ARRAY(a, bool, g->nodes.len);
    t->seen = ARENA_ARRAY(a, int32_t, g->values.len);
    t->data = ARENA_ARRAY(a, bool, g->values.len);
    t->uses = uses_collect(g, a);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        bool data = n->op == OP_INPUT;
        for (int k = 0; k < n->nin && !data; k++) data = t->data[n->in[k]];
        for (int j = 0; j < n->nout; j++) t->data[n->out[j]] = data;
    }
}

void tile_end(Tile *t) {
    vec_free(&t->tables);
    vec_free(&t->fits);
}

// ---- finding a region ---------------------------------------------------------------------------------------------------
typedef enum Verdict { VERDICT_JOINS, VERDICT_OTHER, VERDICT_ENDS } Verdict;

static TileValue *value_of(Tile *t, ValueId v) {
    TileValue *x = &t->value[v];
    if (x->region != t->region) *x = (TileValue){.region = t->region};
    return x;
}

static Verdict judge(Tile *t, Region *r, NodeId i, Member *m) {
    const Node *n = graph_node(t->g, i);
    if (!tile_member(t, r, i, m)) return VERDICT_OTHER;
    bool after = false, sum = false, rows = false;
    for (int k = 0; k < n->nin; k++) {
        const TileValue *v = value_of(t, n->in[k]);
        after |= v->after;
        sum |= v->sum;
        rows |= m->in[k].kind == CUT_ROWS && !v->sum;
    }
    if (sum) return rows ? VERDICT_ENDS : VERDICT_OTHER;
    return after || r->past ? VERDICT_ENDS : VERDICT_JOINS;
}

static void join(Tile *t, Region *r, const Member *m) {
    const Node *n = graph_node(t->g, m->node);
    if (r->member.len == 0) r->first = m->node;
    vec_push(&r->member, *m);
    t->member[m->node] = t->region;
    for (int j = 0; j < n->nout; j++) {
        TileValue *v = value_of(t, n->out[j]);
        v->member = true, v->cut = m->out[j], v->sum = m->out[j].kind == CUT_SUM;
    }
}

static void pass_by(Tile *t, Region *r, NodeId i) {
    const Node *n = graph_node(t->g, i);
    bool after = false, sum = false;
    for (int k = 0; k < n->nin; k++) {
        const TileValue *v = value_of(t, n->in[k]);
        after |= v->after || (v->member && !v->sum);
        sum |= v->sum;
    }
    after |= (op_flags(n->op) & OPF_INPLACE) != 0;  // it follows all who read what it overwrites
    for (int j = 0; j < n->nout; j++) value_of(t, n->out[j])->after = after, value_of(t, n->out[j])->sum = sum;
    r->past |=
        n->op == OP_ATTENTION || n->op == OP_ATTENTION_GRAD || n->op == OP_HEAD || n->op == OP_HEAD_FWD || n->op == OP_HEAD_GRAD;
}

// ---- sums that come later -----------------------------------------------------------------------------------------------
// Whether node i, at `end` or behind it, can run with the region: it reads what is there by then, and gives sums alone, or is a
// view for such a node.
static bool can_fetch(Tile *t, Region *r, NodeId i, NodeId end, Member *m) {
    const Node *n = graph_node(t->g, i);
    for (int k = 0; k < n->nin; k++) {
        NodeId def = graph_value(t->g, n->in[k])->def;
        const TileValue *v = value_of(t, n->in[k]);
        if (v->after || v->sum || (def >= end && t->member[def] != t->region)) return false;
    }
    if (!tile_member(t, r, i, m)) return false;
    bool sums = true;
    for (int j = 0; j < n->nout; j++) sums &= m->out[j].kind == CUT_SUM;
    return sums || op_is_view(t->g, n);
}

static void fetch_sums(Tile *t, Region *r, NodeId end) {
    for (int64_t i = 0; i < r->member.len; i++) {
        const Node *n = graph_node(t->g, r->member.data[i].node);
        for (int j = 0; j < n->nout; j++)
            for (int32_t u = t->uses.first[n->out[j]]; u < t->uses.first[n->out[j] + 1]; u++) {
                NodeId by = t->uses.use[u].node;
                Member m;
                if (by == NO_NODE || by < end || t->taken[by] || t->member[by] == t->region) continue;
                if (can_fetch(t, r, by, end, &m)) join(t, r, &m);
            }
    }
}

// ---- what of it is worth cutting ----------------------------------------------------------------------------------------
static bool is_member(const Tile *t, NodeId i) { return t->member[i] == t->region; }
static bool is_view(const Tile *t, NodeId i) { return op_is_view(t->g, graph_node(t->g, i)); }
static bool made_inside(const Tile *t, ValueId v) { return is_member(t, graph_value(t->g, v)->def); }

// Results that someone outside reads; a view is made again there, of the whole.
static void find_wanted(Tile *t, Region *r) {
    for (int64_t i = r->member.len - 1; i >= 0; i--) {
        const Node *n = graph_node(t->g, r->member.data[i].node);
        for (int j = 0; j < n->nout; j++) {
            TileValue *v = &t->value[n->out[j]];
            v->whole = false;
            for (int32_t u = t->uses.first[n->out[j]]; u < t->uses.first[n->out[j] + 1] && !v->whole; u++) {
                NodeId by = t->uses.use[u].node;
                v->whole = by == NO_NODE || !is_member(t, by) || (is_view(t, by) && t->value[graph_node(t->g, by)->out[0]].whole);
            }
        }
    }
}

static bool is_inner(const Tile *t, ValueId v) {
    return made_inside(t, v) && t->value[v].cut.kind == CUT_ROWS && !t->value[v].whole;
}

static bool touches_inner(const Tile *t, const Node *n, bool *reads, bool *feeds) {
    bool inner = false;
    *reads = *feeds = false;
    for (int k = 0; k < n->nin; k++) {
        inner |= is_inner(t, n->in[k]);
        *reads |= made_inside(t, n->in[k]);
    }
    for (int j = 0; j < n->nout; j++) {
        inner |= is_inner(t, n->out[j]);
        for (int32_t u = t->uses.first[n->out[j]]; u < t->uses.first[n->out[j] + 1]; u++) {
            NodeId by = t->uses.use[u].node;
            *feeds |= by != NO_NODE && is_member(t, by);
        }
    }
    return inner;
}

// Members that need not be cut and can run before the rest, or after it. A view that only reads what is there is made whole
// before.
static void leave_out(Tile *t, Region *r) {
    bool reads, feeds;
    for (int64_t i = 0; i < r->member.len; i++) {
        NodeId id = r->member.data[i].node;
        bool inner = touches_inner(t, graph_node(t->g, id), &reads, &feeds);
        if (!reads && (!inner || is_view(t, id))) t->member[id] = 0;
    }
    for (int64_t i = r->member.len - 1; i >= 0; i--) {
        NodeId id = r->member.data[i].node;
        if (!is_member(t, id)) continue;
        bool inner = touches_inner(t, graph_node(t->g, id), &reads, &feeds);
        if (!feeds && !inner) t->member[id] = 0;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < r->member.len; i++)
        if (is_member(t, r->member.data[i].node)) r->member.data[kept++] = r->member.data[i];
    r->member.len = kept;
}

// Bytes that are no more held whole, against those that are held whole all the same.
static bool is_worth_it(const Tile *t, const Region *r) {
    double inner = 0, outer = 0;
    for (int64_t i = 0; i < r->member.len; i++) {
        const Member *m = &r->member.data[i];
        const Node *n = graph_node(t->g, m->node);
        for (int k = 0; k < n->nin; k++) {
            if (m->in[k].kind != CUT_ROWS || made_inside(t, n->in[k]) || t->seen[n->in[k]] == t->region) continue;
            t->seen[n->in[k]] = t->region;
            outer += tile_nbytes(t->g, n->in[k]);
        }
        for (int j = 0; j < n->nout && !is_view(t, m->node); j++)
            if (m->out[j].kind == CUT_ROWS) *(t->value[n->out[j]].whole ? &outer : &inner) += tile_nbytes(t->g, n->out[j]);
    }
    return inner > 0 && 4 * inner >= outer;
}

static Status end_region(Tile *t, Region *r, NodeId end) {
    fetch_sums(t, r, end);
    find_wanted(t, r);
    leave_out(t, r);
    find_wanted(t, r);
    bool cut = is_worth_it(t, r);
    for (int64_t i = 0; i < r->member.len && cut; i++) t->taken[r->member.data[i].node] = true;
    Status st = t->found(t, cut ? r : NULL, end, t->ctx);
    r->member.len = 0;
    r->n = 0, r->chunks = NULL, r->past = false, r->first = end;
    t->region++;
    return st;
}

Status tile_walk(Tile *t) {
    Region r = {0};
    Status st = ST_OK;
    for (NodeId i = 0; i < t->g->nodes.len && st == ST_OK; i++) {
        if (t->close && t->close[i]) st = end_region(t, &r, i);
        if (t->taken[i]) continue;
        Member m;
        Verdict v = judge(t, &r, i, &m);
        if (v == VERDICT_ENDS && st == ST_OK) {
            st = end_region(t, &r, i);
            if (t->taken[i]) continue;
            v = judge(t, &r, i, &m);
        }
        if (v == VERDICT_JOINS) join(t, &r, &m);
        else pass_by(t, &r, i);
    }
    if (st == ST_OK) st = end_region(t, &r, (NodeId)t->g->nodes.len);
    vec_free(&r.member);
    return st;
}

// ---- the pass -----------------------------------------------------------------------------------------------------------
Status pass_tile(PassContext *c, Graph *in, Graph **out, Diag *d) {
    *out = in;
    if (c->tile.rows < 1) return ST_OK;
    TileEmit rows = {.epilogue = (c->features & BACKEND_EPILOGUE) != 0}, runs = rows;
    if (tile_has_batch(in)) TRY(tile_emit(in, &c->tile, TILE_BATCH, NULL, c->scratch, &rows, d));
    const Graph *g = rows.out ? rows.out : in;
    Status st = tile_emit(g, &c->tile, TILE_SEQUENCE, rows.close, c->scratch, &runs, d);
    if (rows.out) graph_free_vecs(rows.out);
    *out = runs.out;
    return st;
}

// Node i's region: of the outer level, or of the inner one, whose graph has it where its result comes from.
static int32_t region_of(const Graph *g, NodeId i, const TileEmit *rows, const TileEmit *runs) {
    const Node *n = graph_node(g, i);
    if (!rows->out) return runs->region[i];
    if (rows->region[i] >= 0) return rows->region[i];
    ValueId v = n->nout > 0 ? rows->map[n->out[0]] : NO_VALUE;
    int32_t inner = v == NO_VALUE ? -1 : runs->region[graph_value(rows->out, v)->def];
    return inner < 0 ? -1 : (int32_t)g->nodes.len + inner;
}

TileSketch tile_sketch(const Graph *g, const TileOptions *o, Arena *a) {
    TileSketch s = {ARENA_ARRAY(a, int32_t, g->values.len), ARENA_ARRAY(a, int32_t, g->nodes.len)};
    for (int64_t v = 0; v < g->values.len; v++) s.pieces[v] = 1;
    for (int64_t i = 0; i < g->nodes.len; i++) s.region[i] = -1;
    if (o->rows < 1) return s;
    Diag d = {0};
    TileEmit rows = {.sketch = true}, runs = {.count = true};
    if (tile_has_batch(g)) CHECK(tile_emit(g, o, TILE_BATCH, NULL, a, &rows, &d) == ST_OK, "tile: %s", d.text);
    const Graph *inner = rows.out ? rows.out : g;
    runs.known = rows.data;
    CHECK(tile_emit(inner, o, TILE_SEQUENCE, rows.close, a, &runs, &d) == ST_OK, "tile: %s", d.text);
    for (int64_t v = 0; v < g->values.len; v++) {
        ValueId at = rows.out ? rows.map[v] : (ValueId)v;
        s.pieces[v] = (rows.out ? rows.pieces[v] : 1) * runs.pieces[at];
    }
    for (int64_t i = 0; i < g->nodes.len; i++) s.region[i] = region_of(g, (NodeId)i, &rows, &runs);
    if (rows.out) graph_free_vecs(rows.out);
    return s;
}
