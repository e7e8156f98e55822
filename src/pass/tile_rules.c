// Which nodes are token-wise, and how they are cut: asked of the ops' own sharding rules, with the chunks in the place of ranks.
#include <stdlib.h>

#include "pass/tile_inside.h"

// ---- chunks of an axis --------------------------------------------------------------------------------------------------
enum { GRAIN = 16 };  // chunks begin at multiples of so many rows: that is enough for any alignment

static int64_t grain(const Tile *t) { return t->o.rows >= GRAIN ? GRAIN : 1; }

static LayoutTable *table_of(Tile *t, int n) {
    for (int64_t i = 0; i < t->tables.len; i++)
        if (layouts_nranks(t->tables.data[i]) == n) return t->tables.data[i];
    vec_push(&t->tables, layouts_new(t->a, n));
    return t->tables.data[t->tables.len - 1];
}

typedef struct Piece {
    Span span;
    int chunk;
} Piece;

static int by_chunk_and_begin(const void *pa, const void *pb) {
    const Piece *a = pa, *b = pb;
    if (a->chunk != b->chunk) return a->chunk - b->chunk;
    return a->span.begin < b->span.begin ? -1 : a->span.begin > b->span.begin;
}
static int by_begin(const void *pa, const void *pb) {
    const Piece *a = pa, *b = pb;
    return a->span.begin < b->span.begin ? -1 : a->span.begin > b->span.begin;
}

// Every rank cuts the rows that it holds, in the order in which it stores them, into n runs as even as whole grains go; chunk c
// is what the ranks' c-th runs are together.
static LayoutId cut_rows(const Tile *t, LayoutTable *chunks, LayoutId rank, int64_t extent, int64_t unit) {
    int n = layouts_nranks(chunks), nranks = rank == NO_LAYOUT ? 1 : graph_nranks(t->g);
    const Layout *l = rank == NO_LAYOUT ? NULL : layouts_get(t->g->layouts, rank);
    VEC(Piece) piece = {0};
    for (int r = 0; r < nranks; r++) {
        int64_t local = l ? layout_local(l, r) : extent, units = ceil_div(local, unit), at = 0;
        int chunk = 0;
        Span all = {0, extent};
        for (int s = 0; s < (l ? layout_nspan(l, r) : 1); s++) {
            Span span = l ? layout_spans(l, r)[s] : all;
            while (span.begin < span.end) {
                int64_t end = ((chunk + 1) * (units / n) + min_i64(chunk + 1, units % n)) * unit;  // of this chunk, in local rows
                int64_t take = min_i64(span.end - span.begin, end - at);
                if (take > 0) vec_push(&piece, ((Piece){{span.begin, span.begin + take}, chunk}));
                at += take, span.begin += take;
                if (at == end) chunk++;
            }
        }
    }
    qsort(piece.data, (size_t)piece.len, sizeof *piece.data, by_chunk_and_begin);
    int32_t *count = ARENA_ARRAY(t->a, int32_t, n);
    Span *span = ARENA_ARRAY(t->a, Span, piece.len + 1);
    for (int64_t i = 0; i < piece.len; i++) span[i] = piece.data[i].span, count[piece.data[i].chunk]++;
    vec_free(&piece);
    return layouts_intern(chunks, extent, count, span);
}

// ---- which rows are tokens ----------------------------------------------------------------------------------------------
static int64_t local_extent(const Graph *g, const Value *x, int dim) {
    bool cut = x->place.kind == PLACE_SHARD && x->place.dim == dim;
    return cut ? layout_max_local(layouts_get(g->layouts, x->place.layout)) : x->shape.dim[dim];
}

// The first dim of which some rank holds more than one element: whole rows of it lie one after the other.
static int outermost(const Graph *g, const Value *x) {
    for (int k = 0; k < x->shape.ndim; k++)
        if (local_extent(g, x, k) > 1) return k;
    return -1;
}

static LayoutId rank_layout(const Value *x, int dim) {
    return x->place.kind == PLACE_SHARD && x->place.dim == dim ? x->place.layout : NO_LAYOUT;
}

// How many chunks, or 0: as many rows as there are fit into one.
static int chunk_count(const Tile *t, int64_t rows) {
    int64_t unit = grain(t), n = ceil_div(ceil_div(rows, unit), max_i64(1, t->o.rows / unit));
    return n < 2 ? 0 : (int)min_i64(n, TILE_MAX_CHUNKS);
}

static bool cut_sequence(Tile *t, Region *r, const Value *x, int dim, LayoutId *out) {
    LayoutId rank = rank_layout(x, dim);
    int64_t seq = t->g->seq, extent = x->shape.dim[dim];
    if (extent != seq && (rank == NO_LAYOUT || extent % seq)) return false;
    int n = chunk_count(t, local_extent(t->g, x, dim));
    if (n == 0 || (r->n && r->n != n)) return false;
    r->n = n;
    r->chunks = table_of(t, n);
    *out = cut_rows(t, r->chunks, rank, extent, grain(t));
    return true;
}

// Rows of the batch, one or more to a chunk; also seen in the merged axis [batch * seq].
static bool cut_batch(Tile *t, Region *r, const Value *x, int dim, LayoutId *out) {
    LayoutTable *ranks = t->g->layouts;
    LayoutId rank = rank_layout(x, dim), rows = NO_LAYOUT;
    int64_t batch = t->g->batch, seq = t->g->seq, extent = x->shape.dim[dim];
    bool merged = extent == batch * seq;
    if (extent == batch) rows = rank;
    else if (!merged) return false;
    else if (rank != NO_LAYOUT && !layout_split(ranks, rank, 1, batch, seq, &rows)) {
        LayoutId of_seq;
        if (!layout_split(ranks, rank, batch, seq, 1, &of_seq)) return false;
        rows = NO_LAYOUT;
    }
    int64_t held = rows == NO_LAYOUT ? batch : layout_max_local(layouts_get(ranks, rows));
    int64_t tokens = rows == NO_LAYOUT ? ceil_div(seq, graph_nranks(t->g)) : seq;
    int n = (int)min_i64(held, ceil_div(held * tokens, t->o.rows));
    if (n < 2 || (r->n && r->n != n)) return false;
    r->n = n;
    r->chunks = table_of(t, n);
    *out = cut_rows(t, r->chunks, rows, batch, 1);
    if (merged) *out = layout_merge(r->chunks, *out, 1, seq);
    return true;
}

static bool cut_tokens(Tile *t, Region *r, ValueId v, Placement *p) {
    const Value *x = graph_value(t->g, v);
    if (!t->data[v] || (graph_nranks(t->g) > 1 && x->place.kind != PLACE_SHARD)) return false;
    int dim = outermost(t->g, x);
    LayoutId layout = 0;
    if (dim < 0) return false;
    if (!(t->level == TILE_BATCH ? cut_batch(t, r, x, dim, &layout) : cut_sequence(t, r, x, dim, &layout))) return false;
    *p = shard_on(dim, layout);
    return true;
}

// ---- whether a value may be cut so --------------------------------------------------------------------------------------
// Every rank's rows of every chunk lie side by side, at an aligned address; and the ranks work on each chunk together rather than
// one after the other.
static bool rows_fit(const Tile *t, const Fit *f) {
    const Layout *chunk = layouts_get(f->chunks, f->chunk),
                 *l = f->rank == NO_LAYOUT ? NULL : layouts_get(t->g->layouts, f->rank);
    int n = chunk->nranks, nspan = chunk->first[n], nranks = l ? l->nranks : 1;
    Piece *piece = malloc(sizeof *piece * (size_t)(nspan + 1));
    int64_t *end = calloc((size_t)n, 2 * sizeof *end), *most = end + n, fullest = 0, steps = 0;
    CHECK(piece && end, "out of memory");
    bool ok = true;
    for (int c = 0; c < n; c++) {
        for (int i = chunk->first[c]; i < chunk->first[c + 1]; i++) piece[i] = (Piece){chunk->span[i], c};
        ok = ok && layout_local(chunk, c) >= (l ? 2 : 1);  // a sharded dim has more than one element
    }
    qsort(piece, (size_t)nspan, sizeof *piece, by_begin);
    for (int r = 0; r < nranks && ok; r++) {
        int64_t at = 0;
        for (int c = 0; c < n; c++) end[c] = -1;
        Span all = {0, f->extent};
        int64_t *count = calloc((size_t)n, sizeof *count);
        CHECK(count, "out of memory");
        for (int s = 0; s < (l ? layout_nspan(l, r) : 1) && ok; s++) {
            Span span = l ? layout_spans(l, r)[s] : all;
            int lo = 0, hi = nspan;  // the first piece that ends behind span.begin
            while (lo < hi) {
                int mid = (lo + hi) / 2;
                if (piece[mid].span.end <= span.begin) lo = mid + 1;
                else hi = mid;
            }
            for (; lo < nspan && piece[lo].span.begin < span.end && ok; lo++) {
                int c = piece[lo].chunk;
                int64_t b = max_i64(span.begin, piece[lo].span.begin), e = min_i64(span.end, piece[lo].span.end);
                int64_t from = at + b - span.begin;
                ok = end[c] < 0 ? from * f->row_nbytes % t->o.align == 0 : end[c] == from;
                end[c] = from + e - b;
                count[c] += e - b;
            }
            at += span.end - span.begin;
        }
        fullest = max_i64(fullest, at);
        for (int c = 0; c < n; c++) most[c] = max_i64(most[c], count[c]);
        free(count);
    }
    for (int c = 0; c < n; c++) steps += most[c];
    ok = ok && (!l || steps <= fullest + fullest / 2 + n);
    free(piece);
    free(end);
    return ok;
}

static bool cut_fits(Tile *t, const Region *r, ValueId v, const Placement *p) {
    const Value *x = graph_value(t->g, v);
    if (layouts_get(r->chunks, p->layout)->overlap || p->reduce) return false;
    bool shard = x->place.kind == PLACE_SHARD;
    if (shard && (x->place.reduce || layouts_get(t->g->layouts, x->place.layout)->overlap)) return false;
    if (shard && x->shape.dim[x->place.dim] <= 1) return false;  // no row of part's rule
    int64_t row = dtype_nbytes(x->dtype);
    for (int k = 0; k < p->dim; k++)
        if (local_extent(t->g, x, k) > 1) return false;
    for (int k = p->dim + 1; k < x->shape.ndim; k++) {
        bool cut = x->place.kind == PLACE_SHARD && x->place.dim == k;  // each rank has other rows: alignment is that of one
                                                                       // element
        row *= cut ? 1 : x->shape.dim[k];
    }
    Fit f = {r->chunks, p->layout, rank_layout(x, p->dim), x->shape.dim[p->dim], row, false};
    for (int64_t i = 0; i < t->fits.len; i++) {
        const Fit *o = &t->fits.data[i];
        if (o->chunks == f.chunks && o->chunk == f.chunk && o->rank == f.rank && o->extent == f.extent && o->row_nbytes == row)
            return o->ok;
    }
    f.ok = rows_fit(t, &f);
    vec_push(&t->fits, f);
    return f.ok;
}

// ---- members ------------------------------------------------------------------------------------------------------------
// Attention and the output layer are done in blocks of their own; the others move data between ranks or values, or hold state.
static bool never_joins(const Node *n) {
    switch (n->op) {
    case OP_ATTENTION:
    case OP_ATTENTION_GRAD:
    case OP_SDPA:
    case OP_HEAD_FWD:
    case OP_HEAD_GRAD:
    case OP_HEAD:
    case OP_RESHARD:
    case OP_OFFLOAD:
    case OP_OFFLOAD_DONE:
    case OP_FETCH:
    case OP_FETCH_DONE:
    case OP_PART:
    case OP_ASSEMBLE: return true;
    default: return n->nin == 0 || (op_flags(n->op) & OPF_INPLACE) || !op_info(n->op)->shard;
    }
}

// The op's attributes count along the dim that is cut.
static bool counts_rows(const Node *n, const Member *m) {
    bool conv = n->op == OP_CONV1D || n->op == OP_CONV1D_GRAD_X || n->op == OP_CONV1D_GRAD_W;
    if (!conv && n->op != OP_SLICE && n->op != OP_PAD && n->op != OP_CONCAT && n->op != OP_CUMSUM) return false;
    int dim = conv ? 2 : (int)node_int(n, ATTR_DIM);  // the length, which is padded at its ends
    for (int k = 0; k < n->nin; k++)
        if (m->in[k].kind == CUT_ROWS && m->in[k].dim == dim) return true;
    return false;
}

static bool accept_in(Tile *t, Region *r, const Node *n, int k, const Placement *p, Cut *out) {
    const TileValue *v = &t->value[n->in[k]];
    bool made = v->region == t->region && v->member && v->cut.kind == CUT_ROWS;
    *out = (Cut){0};
    switch (p->kind) {
    case PLACE_REPLICATE: return !made;
    case PLACE_PARTIAL:
        *out = (Cut){.kind = CUT_ADDEND};
        return !made && k == op_addend(n->op) && p->reduce == RED_SUM && !node_int_or(n, ATTR_BIAS, 0);
    case PLACE_SHARD:
        *out = (Cut){CUT_ROWS, p->dim, p->layout};
        if (made) return v->cut.dim == p->dim && v->cut.layout == p->layout && !p->reduce;
        return cut_fits(t, r, n->in[k], p);
    default: return false;
    }
}

static bool accept_out(Tile *t, Region *r, const Node *n, int j, const Placement *p, Cut *out) {
    DType type = graph_value(t->g, n->out[j])->dtype;
    if (p->kind == PLACE_PARTIAL) {
        *out = (Cut){.kind = CUT_SUM};
        return p->reduce == RED_SUM && type != DT_BF16 && type != DT_BOOL;
    }
    *out = (Cut){CUT_ROWS, p->dim, p->layout};
    return p->kind == PLACE_SHARD && cut_fits(t, r, n->out[j], p);
}

// A sum that its kernel cannot add to takes a place of its own beside each chunk's, so it may not be larger than what need not be
// whole.
static bool sums_pay(const Tile *t, const Node *n, const Member *m) {
    double sums = 0, rows = 0;
    for (int j = 0; j < n->nout && op_addend(n->op) < 0; j++)
        if (m->out[j].kind == CUT_SUM) sums += tile_nbytes(t->g, n->out[j]);
    for (int k = 0; k < n->nin; k++)
        if (m->in[k].kind == CUT_ROWS) rows += tile_nbytes(t->g, n->in[k]);
    return sums <= rows;
}

// The row of the rule in which slot `slot` has placement p.
static bool try_row(Tile *t, Region *r, const Node *n, int slot, Placement p, Member *m) {
    Graph asked = *t->g;
    asked.layouts = r->chunks;
    asked.arena = t->a;
    Row row = {.in = ARENA_ARRAY(t->a, Placement, n->nin), .out = ARENA_ARRAY(t->a, Placement, n->nout)};
    if (!op_info(n->op)->shard(&asked, n, slot, p, &row)) return false;
    bool rows = false;
    for (int k = 0; k < n->nin; k++) {
        if (!accept_in(t, r, n, k, &row.in[k], &m->in[k])) return false;
        rows |= m->in[k].kind == CUT_ROWS;
    }
    for (int j = 0; j < n->nout; j++)
        if (!accept_out(t, r, n, j, &row.out[j], &m->out[j])) return false;
    return rows && !counts_rows(n, m) && sums_pay(t, n, m);
}

// From an operand that a member made; or, a new thread, from a result or an operand whose rows are tokens.
bool tile_member(Tile *t, Region *r, NodeId i, Member *m) {
    const Node *n = graph_node(t->g, i);
    if (never_joins(n)) return false;
    *m = (Member){i, ARENA_ARRAY(t->a, Cut, n->nin), ARENA_ARRAY(t->a, Cut, n->nout)};
    for (int k = 0; k < n->nin; k++) {
        const TileValue *v = &t->value[n->in[k]];
        if (v->region == t->region && v->member && v->cut.kind == CUT_ROWS)
            return try_row(t, r, n, k, shard_on(v->cut.dim, v->cut.layout), m);
    }
    Region before = *r;
    for (int s = -n->nout; s < n->nin; s++) {
        Placement p;
        if (cut_tokens(t, r, s < 0 ? n->out[~s] : n->in[s], &p) && try_row(t, r, n, s, p, m)) return true;
        r->n = before.n, r->chunks = before.chunks;
    }
    return false;
}
