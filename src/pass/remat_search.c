// The search over candidates. A candidate is a choice for each value and a size of chunks; trying one means to rewrite the graph, order
// it, and look at the live bytes of every step, with evictions to the host where they exceed the budget (plan/offload.c).
//
// 1. The hull: prices per byte whose cuts differ, from "keep all" to "keep least" (the parametric search of Eisner and Severance).
// 2. Along it less is kept and more computed again: the first point that fits.
// 3. A price treats all layers alike, so neighbouring points of the hull may lie far apart: between the last that does not fit and the
//    first that does, late values take the choice of one and early values that of the other, by bisection.
// 4. Repair: single values that may be kept after all, the ones that save most time first.
// Steps 2 to 4 for every size of chunks; the fastest answer wins.
#include "pass/remat_search.h"

#include <stdlib.h>

#include "pass/tile.h"
#include "plan/offload.h"

enum {
    MOST_POINTS = 24,     // of the hull
    MIX_TRIALS = 6,
    REPAIR_WORK = 60000,  // nodes times trials spent on repairs
    SMALLEST_CHUNK = 1024,
    MOST_CHUNKS = 64,     // more of them are many launches, and a long plan
};

typedef struct Point {
    uint8_t *choice;
    double price, kept, seconds;
} Point;

typedef struct Search {
    const RematGraph *r;
    const PlanOptions *o;
    const MemoryOptions *m;
    Arena *a;
    int64_t align;        // of chunks
    int rank;
    VEC(Point) point;     // by falling bytes
    RematTrial best;
    bool found;           // best fits
    int ntrial;
    Diag *d;
} Search;

// ---- one candidate -----------------------------------------------------------------------------------------------------------
// Launches that chunks add, and what sums over tokens read and write once more for each chunk.
static double tile_seconds(const Graph *g, const RankPlan *p, const int32_t *pieces, const DeviceModel *m) {
    double sum = 0;
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        const Node *n = graph_node(g, s->node);
        int32_t most = 1;
        for (int k = 0; k < n->nin; k++) most = pieces[n->in[k]] > most ? pieces[n->in[k]] : most;
        for (int k = 0; k < n->nout; k++) most = pieces[n->out[k]] > most ? pieces[n->out[k]] : most;
        sum += (most - 1) * m->kernel_latency_s;
        for (int k = 0; k < n->nout && s->kind == STEP_KERNEL; k++)
            if (most > 1 && graph_value(g, n->out[k])->dtype == DT_F32 && n->op == OP_DOT)
                sum += (most - 1) * 2 * operand_nbytes(&s->out[k]) / m->mem_bandwidth;
    }
    return sum;
}

static Status try_in(const RematGraph *r, const PlanOptions *o, const MemoryOptions *m, int64_t align, RematTrial *t,
                     Arena *a, Diag *d) {
    Graph view = *r->g, *with = NULL, *ordered = NULL;  // nodes of a candidate live in its own arena
    view.arena = a;
    RematGraph in = *r;
    in.g = &view;
    in.a = a;
    TRY(remat_apply(&in, t->choice, &with, d));
    Status st = pass_schedule(with, &ordered, d);
    graph_free_vecs(with);
    TRY(st);
    int32_t *pieces = ARENA_ARRAY(a, int32_t, ordered->values.len);
    tile_pieces(ordered, &(TileOptions){t->rows, align}, a, pieces);
    RankPlan p;
    st = plan_sketch(a, ordered, o, plan_fullest_rank(ordered), pieces, &p, d);
    if (st == ST_OK) {
        OffloadOptions oo = {m->budget_nbytes, m->offload ? m->host_nbytes : 0};
        OffloadChoice c;
        if (oo.budget_nbytes <= 0) oo.budget_nbytes = INT64_MAX;
        offload_choose(a, ordered, &p, o->device, &oo, &c);
        t->seconds = c.seconds + tile_seconds(ordered, &p, pieces, o->device);
        t->peak_nbytes = c.peak_nbytes;
        t->host_peak_nbytes = c.host_peak_nbytes;
        t->noffload = c.n;
        t->offload_nbytes = 0;
        for (int i = 0; i < c.n; i++) t->offload_nbytes += (double)c.eviction[i].nbytes;
    }
    graph_free_vecs(ordered);
    return st;
}

Status remat_try(const RematGraph *r, const PlanOptions *o, const MemoryOptions *m, int64_t align, RematTrial *t, Diag *d) {
    Arena *a = arena_new();
    if (!a) return diag_error(d, ST_MEMORY, "out of memory");
    Status st = try_in(r, o, m, align, t, a, d);
    arena_free(a);
    return st;
}

static bool fits(const Search *s, const RematTrial *t) { return s->m->budget_nbytes <= 0 || t->peak_nbytes <= s->m->budget_nbytes; }

// Tries a choice and keeps it if it is the best so far: the fastest that fits, or the smallest while none does.
static Status consider(Search *s, const uint8_t *choice, int64_t rows, RematTrial *t) {
    *t = (RematTrial){.choice = (uint8_t *)choice, .rows = rows};
    TRY(remat_try(s->r, s->o, s->m, s->align, t, s->d));
    s->ntrial++;
    bool better = !s->best.choice || (fits(s, t) && !s->found);
    if (s->best.choice && fits(s, t) == s->found)
        better = s->found ? t->seconds < s->best.seconds : t->peak_nbytes < s->best.peak_nbytes;
    if (!better) return ST_OK;
    s->found = fits(s, t);
    uint8_t *mine = s->best.choice ? s->best.choice : ARENA_ARRAY(s->a, uint8_t, s->r->g->values.len);
    memmove(mine, choice, (size_t)s->r->g->values.len);
    s->best = *t;
    s->best.choice = mine;
    return ST_OK;
}

// ---- the hull ----------------------------------------------------------------------------------------------------------------
static Point cut_at(Search *s, double price) {
    Point p = {.choice = ARENA_ARRAY(s->a, uint8_t, s->r->g->values.len), .price = price};
    remat_cut(s->r, price, p.choice, &p.kept, &p.seconds);
    return p;
}

static void between(Search *s, const Point *lo, const Point *hi, int depth) {
    if (depth == 0 || s->point.len >= MOST_POINTS || lo->kept - hi->kept < 1 || hi->seconds <= lo->seconds) return;
    Point mid = cut_at(s, (hi->seconds - lo->seconds) / (lo->kept - hi->kept));
    if (mid.kept >= lo->kept || mid.kept <= hi->kept) return;
    vec_push(&s->point, mid);
    between(s, lo, &mid, depth - 1);
    between(s, &mid, hi, depth - 1);
}

static int by_kept(const void *pa, const void *pb) {
    const Point *a = pa, *b = pb;
    return a->kept != b->kept ? (a->kept < b->kept ? 1 : -1) : (a->price > b->price) - (a->price < b->price);
}

static void find_hull(Search *s) {
    const RematGraph *r = s->r;
    double total = 0;
    int64_t largest = 1;
    for (int64_t i = 0; i < r->g->nodes.len; i++) total += r->seconds[i];
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->needed[v]) largest = max_i64(largest, r->nbytes[v]);
    Point lo = cut_at(s, 0), hi = cut_at(s, 100 * total / (double)largest);
    vec_push(&s->point, lo);
    vec_push(&s->point, hi);
    between(s, &lo, &hi, 6);
    qsort(s->point.data, (size_t)s->point.len, sizeof *s->point.data, by_kept);
}

// ---- between two points, and repairs ---------------------------------------------------------------------------------------------
// Values defined at node `from` or later as in `late`, the others as in `early`.
static void mix(const RematGraph *r, const uint8_t *early, const uint8_t *late, int64_t from, uint8_t *out) {
    for (int64_t v = 0; v < r->g->values.len; v++) out[v] = graph_value(r->g, r->root[v])->def >= from ? late[v] : early[v];
}

static Status try_mixes(Search *s, int64_t rows, const Point *more, const Point *less) {
    const RematGraph *r = s->r;
    uint8_t *choice = ARENA_ARRAY(s->a, uint8_t, r->g->values.len);
    VEC(int64_t) cut = {0};  // nodes where the two differ
    for (int64_t v = 0, last = -1; v < r->g->values.len; v++) {
        int64_t def = graph_value(r->g, (ValueId)v)->def;
        if (r->root[v] != v || more->choice[v] == less->choice[v] || def == last) continue;
        vec_push(&cut, last = def);
    }
    Status st = ST_OK;
    int64_t lo = 0, hi = cut.len;  // from cut[hi] on: fits; from cut[lo] on: does not
    for (int k = 0; k < MIX_TRIALS && hi - lo > 1 && st == ST_OK; k++) {
        int64_t mid = (lo + hi) / 2;
        RematTrial t;
        mix(r, less->choice, more->choice, cut.data[mid], choice);
        st = consider(s, choice, rows, &t);
        if (st == ST_OK && fits(s, &t)) hi = mid;
        else lo = mid;
    }
    vec_free(&cut);
    return st;
}

typedef struct Flip {
    ValueId value;
    double worth;
} Flip;
static int by_worth(const void *pa, const void *pb) {
    const Flip *a = pa, *b = pb;
    return a->worth != b->worth ? (a->worth < b->worth ? 1 : -1) : (a->value > b->value) - (a->value < b->value);
}

// Single flips of the best candidate, both ways, as long as one helps; for small graphs pairs too.
static Status repair(Search *s, int64_t rows) {
    const RematGraph *r = s->r;
    int64_t left = REPAIR_WORK / (r->g->nodes.len + 1);
    VEC(Flip) flip = {0};
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->forward[v] && r->root[v] == v)
            vec_push(&flip, ((Flip){(ValueId)v, r->seconds[graph_value(r->g, (ValueId)v)->def] / (double)(r->nbytes[v] + 1)}));
    qsort(flip.data, (size_t)flip.len, sizeof *flip.data, by_worth);
    uint8_t *choice = ARENA_ARRAY(s->a, uint8_t, r->g->values.len);
    Status st = ST_OK;
    for (bool better = true; better && left > 0 && st == ST_OK;) {
        better = false;
        for (int64_t i = 0; i < flip.len && left > 0 && st == ST_OK; i++)
            for (int64_t k = i; k < flip.len && left > 0 && st == ST_OK; k++) {
                if (k > i && left < flip.len * flip.len) break;  // pairs only while there is plenty left
                double before = s->best.seconds;
                bool found = s->found;
                int64_t peak = s->best.peak_nbytes;
                memcpy(choice, s->best.choice, (size_t)r->g->values.len);
                choice[flip.data[i].value] ^= 1;
                if (k > i) choice[flip.data[k].value] ^= 1;
                RematTrial t;
                st = consider(s, choice, rows, &t);
                left--;
                better |= s->found != found || (s->found ? s->best.seconds < before : s->best.peak_nbytes < peak);
            }
    }
    vec_free(&flip);
    return st;
}

// ---- one size of chunks, all sizes -------------------------------------------------------------------------------------------
// More is computed again along the hull, so the first point that fits is its fastest. It need not exist and those after it need not
// fit: what is computed again all at once takes memory too.
static Status search_rows(Search *s, int64_t rows) {
    RematTrial t;
    for (int64_t k = 0; k < s->point.len; k++) {
        TRY(consider(s, s->point.data[k].choice, rows, &t));
        if (!fits(s, &t)) continue;
        return k == 0 ? ST_OK : try_mixes(s, rows, &s->point.data[k - 1], &s->point.data[k]);
    }
    return ST_OK;
}

// Rows of the longest axis that the fullest rank cuts: the tokens it has.
static int64_t local_tokens(const RematGraph *r, int rank) {
    const Graph *g = r->g;
    int64_t most = g->seq;
    for (int64_t v = 0; v < g->values.len; v++) {
        const Value *x = graph_value(g, (ValueId)v);
        if (x->place.kind == PLACE_SHARD && x->shape.dim[x->place.dim] == g->seq)
            return layout_local(layouts_get(g->layouts, x->place.layout), rank);
    }
    return most;
}

static Status search_auto(Search *s) {
    find_hull(s);
    if (s->m->tile_rows != TILE_AUTO) return search_rows(s, s->m->tile_rows);
    TRY(search_rows(s, 0));
    // Nothing is gained on a candidate that keeps everything.
    bool keeps_all = s->found && !memcmp(s->best.choice, s->point.data[0].choice, (size_t)s->r->g->values.len) && !s->best.noffload;
    int worse = 0;
    int64_t tokens = local_tokens(s->r, s->rank), least = max_i64(SMALLEST_CHUNK, tokens / MOST_CHUNKS);
    for (int64_t rows = tokens / 2; rows >= least && !keeps_all && worse < 2; rows /= 2) {
        double before = s->best.seconds;
        int64_t peak = s->best.peak_nbytes;
        bool found = s->found;
        TRY(search_rows(s, round_up(rows, 128)));
        bool better = s->found != found || (s->found ? s->best.seconds < before : s->best.peak_nbytes < peak - peak / 128);
        worse = better ? 0 : worse + 1;
    }
    return ST_OK;
}

Status remat_search(const RematGraph *r, const PlanOptions *o, const MemoryOptions *m, int64_t align, RematTrial *best,
                    Diag *d) {
    Search s = {.r = r, .o = o, .m = m, .align = align, .a = arena_new(), .d = d, .rank = plan_fullest_rank(r->g)};
    CHECK(s.a != NULL, "out of memory");
    Status st = ST_OK;
    RematTrial t;
    uint8_t *choice = ARENA_ARRAY(s.a, uint8_t, r->g->values.len);
    if (m->remat == REMAT_LAYER) remat_layers(r, choice);
    if (m->remat != REMAT_AUTO) st = consider(&s, choice, m->tile_rows == TILE_AUTO ? 0 : m->tile_rows, &t);
    else st = search_auto(&s);
    bool keeps_all = s.found && !s.best.noffload && s.point.len && !memcmp(s.best.choice, s.point.data[0].choice, (size_t)r->g->values.len);
    if (st == ST_OK && m->remat == REMAT_AUTO && !keeps_all) st = repair(&s, s.best.rows);
    if (st == ST_OK) {
        memcpy(best->choice, s.best.choice, (size_t)r->g->values.len);
        uint8_t *mine = best->choice;
        *best = s.best;
        best->choice = mine;
        best->ntrial = s.ntrial;
    }
    vec_free(&s.point);
    arena_free(s.a);
    return st;
}
