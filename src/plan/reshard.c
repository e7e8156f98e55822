// From two placements to the pieces that ranks take from each other. Every placement is looked at as: rank r holds a list of
// intervals along one dim (the whole value: one interval), as a copy or as a term of a sum or maximum. Each element of a copy
// is taken from exactly one owner, from oneself if possible; of terms, from every owner. A target whose copies are terms gives
// each element to one of its holders only.
#include "plan/reshard.h"

// ---- the two sides ------------------------------------------------------------------------------------------------------
typedef struct Owner {
    int rank;
    int64_t local;           // where the segment starts in this rank's storage of the axis
} Owner;
typedef struct Segment {     // an interval of an axis over which the set of owners does not change
    int64_t begin, end;
    int32_t first, nowner;   // in Axis.owner, by rank
} Segment;
typedef struct Axis {
    int dim;
    VEC(Segment) segment;    // sorted, disjoint
    VEC(Owner) owner;
} Axis;

typedef struct Edge {        // begin or end of a rank's interval
    int64_t at;
    int rank;
    bool begin;
    int64_t local;           // of its interval: storage offset minus global index
} Edge;
static int compare_edges(const void *pa, const void *pb) {
    const Edge *a = pa, *b = pb;
    if (a->at != b->at) return a->at < b->at ? -1 : 1;
    if (a->begin != b->begin) return a->begin ? 1 : -1;
    return a->rank - b->rank;
}

static void axis_free(Axis *x) {
    vec_free(&x->segment);
    vec_free(&x->owner);
}

static int compare_owners(const Owner *a, const Owner *b) {
    return a->rank != b->rank ? a->rank - b->rank : (a->local > b->local) - (a->local < b->local);
}

// Keeps `active` (the intervals open at a point, local as storage offset minus global index) sorted; returns the new count.
static int owners_update(Owner *active, int n, const Edge *e) {
    Owner o = {e->rank, e->local};
    int at = 0;
    while (at < n && compare_owners(&active[at], &o) < 0) at++;
    if (e->begin) {
        memmove(active + at + 1, active + at, sizeof *active * (size_t)(n - at));
        active[at] = o;
        return n + 1;
    }
    memmove(active + at, active + at + 1, sizeof *active * (size_t)(n - at - 1));
    return n - 1;
}

// Cuts the axis wherever some interval begins or ends.
static void axis_from_layout(Axis *x, int dim, const Layout *l) {
    *x = (Axis){.dim = dim};
    int nspan = l->first[l->nranks], nedge = 0, nactive = 0;
    Edge *edge = malloc(sizeof *edge * (size_t)(2 * nspan + 1));
    Owner *active = malloc(sizeof *active * (size_t)(nspan + 1));
    CHECK(edge && active, "out of memory for %d intervals", nspan);
    for (int r = 0; r < l->nranks; r++) {
        int64_t at = 0;
        for (int i = l->first[r]; i < l->first[r + 1]; i++) {
            const Span *s = &l->span[i];
            edge[nedge++] = (Edge){s->begin, r, true, at - s->begin};
            edge[nedge++] = (Edge){s->end, r, false, at - s->begin};
            at += s->end - s->begin;
        }
    }
    qsort(edge, (size_t)nedge, sizeof *edge, compare_edges);
    for (int i = 0; i < nedge; i++) {
        if (nactive > 0 && edge[i].at > edge[i - 1].at) {
            Segment s = {edge[i - 1].at, edge[i].at, (int32_t)x->owner.len, nactive};
            for (int k = 0; k < nactive; k++) vec_push(&x->owner, ((Owner){active[k].rank, s.begin + active[k].local}));
            vec_push(&x->segment, s);
        }
        nactive = owners_update(active, nactive, &edge[i]);
    }
    free(edge);
    free(active);
}

// The whole extent, held by `nranks` ranks.
static void axis_whole(Axis *x, int dim, int64_t extent, int nranks) {
    *x = (Axis){.dim = dim};
    if (extent == 0) return;
    for (int r = 0; r < nranks; r++) vec_push(&x->owner, ((Owner){r, 0}));
    vec_push(&x->segment, ((Segment){0, extent, 0, nranks}));
}

static bool is_shard(const Placement *p) { return p->kind == PLACE_SHARD; }
static Reduce place_reduce(const Placement *p) {
    return p->kind == PLACE_PARTIAL || p->kind == PLACE_SHARD ? p->reduce : RED_NONE;
}

// ---- who takes what -----------------------------------------------------------------------------------------------------
typedef struct Need {        // an interval of the target's axis that a rank must be given
    int64_t begin, end, local;
} Need;
typedef struct Match {       // what pieces are made from
    PieceList *out;
    const Axis *axis;        // of the source
    bool terms;              // the source's copies are terms
    int only;                // the rank whose pieces are wanted, or ALL_RANKS
    VEC(int64_t) mine;       // segments that `only` owns, where only those matter for what others take
    bool apart;              // a piece was left out since the last one: the next must not grow it
} Match;

// The first owner of a rank in a segment, -1 if it has none; owners are sorted by rank.
static int find_owner(const Axis *x, const Segment *s, int rank) {
    const Owner *o = x->owner.data + s->first;
    int lo = 0, hi = s->nowner;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (o[mid].rank < rank) lo = mid + 1;
        else hi = mid;
    }
    return lo < s->nowner && o[lo].rank == rank ? lo : -1;
}

// The owner that gives a copy to `target`: itself, else owners take turns.
static const Owner *choose_owner(const Axis *x, const Segment *s, int target) {
    int i = find_owner(x, s, target);
    return x->owner.data + s->first + (i >= 0 ? i : target % s->nowner);
}

static void piece_add(Match *m, Piece p) {
    PieceList *l = m->out;
    Piece *last = l->piece.len && !m->apart ? &l->piece.data[l->piece.len - 1] : NULL;
    m->apart = false;
    if (last && l->ndim == 1 && last->source == p.source && last->target == p.target &&
        last->source_start[0] + last->size[0] == p.source_start[0] &&
        last->target_start[0] + last->size[0] == p.target_start[0]) {
        last->size[0] += p.size[0];  // an interval cut only because of other ranks
        return;
    }
    vec_push(&l->piece, p);
}

static void take_from(Match *m, const Segment *s, const Owner *o, int target, const Need *need) {
    m->out->travels |= o->rank != target;
    if (m->only != ALL_RANKS && o->rank != m->only && target != m->only) {
        m->apart = true;
        return;
    }
    Piece p = {.source = o->rank, .target = target};
    if (m->out->ndim == 1) {
        int64_t begin = max_i64(s->begin, need->begin), end = min_i64(s->end, need->end);
        p.size[0] = end - begin;
        p.source_start[0] = o->local + begin - s->begin;
        p.target_start[0] = need->local + begin - need->begin;
    } else {
        p.size[0] = s->end - s->begin;
        p.source_start[0] = o->local;
        p.target_start[0] = s->begin;
        p.size[1] = need->end - need->begin;
        p.source_start[1] = need->begin;
        p.target_start[1] = need->local;
    }
    piece_add(m, p);
}

// First segment that ends after `at`.
static int64_t segment_at(const Axis *x, int64_t at) {
    int64_t lo = 0, hi = x->segment.len;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (x->segment.data[mid].end > at) hi = mid;
        else lo = mid + 1;
    }
    return lo;
}

// The terms of one segment: of every owner, or of `only` where others give to others.
static void take_terms(Match *m, const Segment *s, int target, const Need *need) {
    const Owner *o = m->axis->owner.data + s->first;
    int i = 0;
    if (m->only != ALL_RANKS && target != m->only) {
        m->out->travels |= s->nowner > 1 || o[0].rank != target;
        i = find_owner(m->axis, s, m->only);
        m->apart |= i != 0;
        if (i < 0) return;
    }
    for (; i < s->nowner; i++) take_from(m, s, &o[i], target, need);
}

// What another rank takes from `only`: copies lie in segments that `only` owns. Whether pieces travel at all the others say too.
static void satisfy_other(Match *m, int target, const Need *need) {
    const Segment *segment = m->axis->segment.data;
    bool same = m->out->ndim == 1;
    for (int64_t i = 0; i < m->mine.len; i++) {
        const Segment *s = &segment[m->mine.data[i]];
        if (same && (s->end <= need->begin || s->begin >= need->end)) continue;
        take_from(m, s, choose_owner(m->axis, s, target), target, need);
    }
    for (int64_t i = same ? segment_at(m->axis, need->begin) : 0; i < m->axis->segment.len && !m->out->travels; i++) {
        if (same && segment[i].begin >= need->end) break;
        m->out->travels = choose_owner(m->axis, &segment[i], target)->rank != target;
    }
}

// Returns how many terms the target's elements get, all together along the dims that are cut; of copies that is not counted.
static int64_t satisfy(Match *m, int target, const Need *need) {
    bool same = m->out->ndim == 1;
    int64_t found = 0, given = 0;
    if (!m->terms && m->only != ALL_RANKS && m->only != target) {
        satisfy_other(m, target, need);
        return 0;
    }
    for (int64_t i = same ? segment_at(m->axis, need->begin) : 0; i < m->axis->segment.len; i++) {
        const Segment *s = &m->axis->segment.data[i];
        if (same && s->begin >= need->end) break;
        int64_t both = same ? min_i64(s->end, need->end) - max_i64(s->begin, need->begin) : s->end - s->begin;
        found += both;
        given += both * s->nowner;
        if (m->terms) take_terms(m, s, target, need);
        else take_from(m, s, choose_owner(m->axis, s, target), target, need);
    }
    CHECK(!same || found == need->end - need->begin, "elements %lld..%lld of dim %d live on no rank", (long long)need->begin,
          (long long)need->end, m->axis->dim);
    return given * (same ? 1 : need->end - need->begin);
}

// A target whose copies are terms: each element goes to the first of its holders, the other holders' terms stay neutral.
static void satisfy_terms(Match *m, const Axis *target) {
    for (int64_t i = 0; i < target->segment.len; i++) {
        const Segment *s = &target->segment.data[i];
        const Owner *o = &target->owner.data[s->first];
        satisfy(m, o->rank, &(Need){s->begin, s->end, o->local});
    }
}

// A whole-shaped term: every rank keeps its own terms, or those copies of which it is the first owner. Nothing travels.
static void satisfy_partial(Match *m) {
    for (int64_t i = 0; i < m->axis->segment.len; i++) {
        const Segment *s = &m->axis->segment.data[i];
        for (int k = 0; k < (m->terms ? s->nowner : 1); k++) {
            const Owner *o = &m->axis->owner.data[s->first + k];
            take_from(m, s, o, o->rank, &(Need){s->begin, s->end, s->begin});
        }
    }
}

static void find_mine(Match *m) {
    for (int64_t i = 0; i < m->axis->segment.len && m->only != ALL_RANKS; i++)
        if (find_owner(m->axis, &m->axis->segment.data[i], m->only) >= 0) vec_push(&m->mine, i);
}

// A target of copies. Notes whether some rank gets more or fewer terms than it has elements.
static void satisfy_copies(Match *m, const LayoutTable *t, const Placement *to) {
    PieceList *out = m->out;
    int64_t extent = out->shape.dim[out->dim[1]];
    const Layout *l = is_shard(to) ? layouts_get(t, to->layout) : NULL;
    for (int r = 0; r < layouts_nranks(t); r++) {
        int64_t local = 0, given = 0;
        for (int i = l ? l->first[r] : 0; l && i < l->first[r + 1]; i++) {
            const Span *s = &l->span[i];
            given += satisfy(m, r, &(Need){s->begin, s->end, local});
            local += s->end - s->begin;
        }
        if (!l && extent > 0) given = satisfy(m, r, &(Need){0, local = extent, 0});
        out->reduces |= m->terms && given != local * (out->ndim == 2 ? out->shape.dim[out->dim[0]] : 1);
    }
}

void reshard_pieces(const LayoutTable *t, const Shape *shape, const Placement *from, const Placement *to, int rank, PieceList *out) {
    *out = (PieceList){.shape = *shape, .ndim = 1};
    if (shape->ndim == 0) out->shape = SHAPE(1);
    int nranks = layouts_nranks(t), from_dim = is_shard(from) ? from->dim : is_shard(to) ? to->dim : 0;
    int to_dim = is_shard(to) ? to->dim : from_dim;
    out->dim[0] = from_dim;
    out->dim[1] = to_dim;
    if (to_dim != from_dim) out->ndim = 2;
    Reduce give = place_reduce(from), take = place_reduce(to);
    CHECK(give == RED_NONE || take == RED_NONE || give == take, "a reshard from one reduction to another goes through hops");
    out->reduce = give != RED_NONE ? give : take;
    // A target of terms may have an overlap beside a hole: as many terms as elements, yet not one each.
    out->reduces = to->kind == PLACE_PARTIAL || take != RED_NONE;
    Axis source, target = {0};
    if (is_shard(from)) axis_from_layout(&source, from_dim, layouts_get(t, from->layout));
    else axis_whole(&source, from_dim, out->shape.dim[from_dim], nranks);
    Match m = {.out = out, .axis = &source, .terms = give != RED_NONE, .only = rank};
    find_mine(&m);
    if (to->kind == PLACE_PARTIAL) {
        satisfy_partial(&m);
    } else if (take != RED_NONE) {
        axis_from_layout(&target, to_dim, layouts_get(t, to->layout));
        satisfy_terms(&m, &target);
    } else {
        satisfy_copies(&m, t, to);
    }
    vec_free(&m.mine);
    axis_free(&source);
    axis_free(&target);
}

// ---- chains -------------------------------------------------------------------------------------------------------------
enum { DIRECT_NBYTES = 4096 };  // smaller all-reduces go in one round: latency matters more than bytes

int reshard_hops(const Graph *g, const Shape *shape, DType dtype, const Placement *from, const Placement *to,
                 Hop hop[RESHARD_MAX_HOPS]) {
    if (placement_equal(from, to)) return 0;
    Reduce give = place_reduce(from), take = place_reduce(to);
    if (give != RED_NONE && take != RED_NONE && give != take) {
        Placement whole = REPLICATE;
        int n = reshard_hops(g, shape, dtype, from, &whole, hop);
        hop[n] = (Hop){*shape, whole, *to};
        return n + 1;
    }
    int64_t numel = shape_numel(shape);
    bool all_reduce = from->kind == PLACE_PARTIAL && to->kind == PLACE_REPLICATE && graph_nranks(g) > 1;
    if (all_reduce && numel * dtype_nbytes(dtype) > DIRECT_NBYTES) {
        Shape flat = SHAPE(numel);
        Placement part = shard_on(0, layouts_even(g->layouts, numel));
        hop[0] = (Hop){flat, *from, part};
        hop[1] = (Hop){flat, part, *to};
        return 2;
    }
    hop[0] = (Hop){*shape, *from, *to};
    return 1;
}

int64_t reshard_sent_nbytes(const Graph *g, const Shape *shape, DType dtype, const Placement *from, const Placement *to,
                            int rank) {
    Hop hop[RESHARD_MAX_HOPS];
    int nhop = reshard_hops(g, shape, dtype, from, to, hop);
    int64_t total = 0;
    for (int h = 0; h < nhop; h++) {
        if (hop[h].from.kind == PLACE_REPLICATE) continue;  // everybody has everything
        PieceList l;
        reshard_pieces(g->layouts, &hop[h].shape, &hop[h].from, &hop[h].to, rank, &l);
        int64_t rest = 1;  // elements per unit of what pieces cut
        for (int i = 0; i < l.shape.ndim; i++)
            if (i != l.dim[0] && i != l.dim[1]) rest *= l.shape.dim[i];
        for (int64_t i = 0; i < l.piece.len; i++) {
            const Piece *p = &l.piece.data[i];
            if (p->source == rank && p->target != rank) total += p->size[0] * (l.ndim == 2 ? p->size[1] : 1) * rest;
        }
        vec_free(&l.piece);
    }
    return total * dtype_nbytes(dtype);
}

// Every interval that a rank wants is among those it has.
static bool layout_within(const Layout *want, const Layout *have) {
    for (int r = 0; r < want->nranks; r++)
        for (int i = want->first[r]; i < want->first[r + 1]; i++) {
            bool found = false;
            for (int k = have->first[r]; k < have->first[r + 1] && !found; k++)
                found = have->span[k].begin <= want->span[i].begin && want->span[i].end <= have->span[k].end;
            if (!found) return false;
        }
    return true;
}

const char *reshard_name(const Graph *g, const Placement *from, const Placement *to) {
    if (graph_nranks(g) == 1 || placement_equal(from, to)) return "none";
    bool terms = place_reduce(from) != RED_NONE;
    if (from->kind == PLACE_REPLICATE) return "local slice";
    if (to->kind == PLACE_REPLICATE) return terms ? "all-reduce" : "all-gather";
    if (from->kind == PLACE_PARTIAL) return "reduce-scatter";
    if (to->kind == PLACE_PARTIAL) return "local pad";
    if (from->dim != to->dim) return terms ? "all-to-all with sum" : "all-to-all";
    if (terms) return "halo sum";
    const Layout *have = layouts_get(g->layouts, from->layout), *want = layouts_get(g->layouts, to->layout);
    if (layout_within(want, have)) return "local slice";
    return layout_within(have, want) ? "halo exchange" : "boundary shift";
}
