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
} Match;

// The owner that gives a copy to `target`: itself, else owners take turns.
static const Owner *choose_owner(const Axis *x, const Segment *s, int target) {
    const Owner *o = x->owner.data + s->first;
    for (int i = 0; i < s->nowner; i++)
        if (o[i].rank == target) return &o[i];
    return &o[target % s->nowner];
}

static void piece_add(PieceList *l, Piece p) {
    Piece *last = l->piece.len ? &l->piece.data[l->piece.len - 1] : NULL;
    if (last && l->ndim == 1 && last->source == p.source && last->target == p.target &&
        last->source_start[0] + last->size[0] == p.source_start[0] &&
        last->target_start[0] + last->size[0] == p.target_start[0]) {
        last->size[0] += p.size[0];  // an interval cut only because of other ranks
        return;
    }
    vec_push(&l->piece, p);
}

static void take_from(const Match *m, const Segment *s, const Owner *o, int target, const Need *need) {
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
    piece_add(m->out, p);
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

static void satisfy(const Match *m, int target, const Need *need) {
    bool same = m->out->ndim == 1;
    int64_t found = 0;
    for (int64_t i = same ? segment_at(m->axis, need->begin) : 0; i < m->axis->segment.len; i++) {
        const Segment *s = &m->axis->segment.data[i];
        if (same && s->begin >= need->end) break;
        found += min_i64(s->end, need->end) - max_i64(s->begin, need->begin);
        if (!m->terms) {
            take_from(m, s, choose_owner(m->axis, s, target), target, need);
            continue;
        }
        for (int k = 0; k < s->nowner; k++) take_from(m, s, &m->axis->owner.data[s->first + k], target, need);
    }
    CHECK(!same || found == need->end - need->begin, "elements %lld..%lld of dim %d live on no rank", (long long)need->begin,
          (long long)need->end, m->axis->dim);
}

// A target whose copies are terms: each element goes to the first of its holders, the other holders' terms stay neutral.
static void satisfy_terms(const Match *m, const Axis *target) {
    for (int64_t i = 0; i < target->segment.len; i++) {
        const Segment *s = &target->segment.data[i];
        const Owner *o = &target->owner.data[s->first];
        satisfy(m, o->rank, &(Need){s->begin, s->end, o->local});
    }
}

// A whole-shaped term: every rank keeps its own terms, or those copies of which it is the first owner. Nothing travels.
static void satisfy_partial(const Match *m) {
    for (int64_t i = 0; i < m->axis->segment.len; i++) {
        const Segment *s = &m->axis->segment.data[i];
        for (int k = 0; k < (m->terms ? s->nowner : 1); k++) {
            const Owner *o = &m->axis->owner.data[s->first + k];
            take_from(m, s, o, o->rank, &(Need){s->begin, s->end, s->begin});
        }
    }
}

void reshard_pieces(const LayoutTable *t, const Shape *shape, const Placement *from, const Placement *to, PieceList *out) {
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
    Axis source, target = {0};
    if (is_shard(from)) axis_from_layout(&source, from_dim, layouts_get(t, from->layout));
    else axis_whole(&source, from_dim, out->shape.dim[from_dim], nranks);
    Match m = {out, &source, give != RED_NONE};
    if (to->kind == PLACE_PARTIAL) {
        satisfy_partial(&m);
    } else if (take != RED_NONE) {
        axis_from_layout(&target, to_dim, layouts_get(t, to->layout));
        satisfy_terms(&m, &target);
    } else if (is_shard(to)) {
        const Layout *l = layouts_get(t, to->layout);
        for (int r = 0; r < nranks; r++) {
            int64_t local = 0;
            for (int i = l->first[r]; i < l->first[r + 1]; local += l->span[i].end - l->span[i].begin, i++)
                satisfy(&m, r, &(Need){l->span[i].begin, l->span[i].end, local});
        }
    } else if (out->shape.dim[to_dim] > 0) {
        for (int r = 0; r < nranks; r++) satisfy(&m, r, &(Need){0, out->shape.dim[to_dim], 0});
    }
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
        reshard_pieces(g->layouts, &hop[h].shape, &hop[h].from, &hop[h].to, &l);
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
