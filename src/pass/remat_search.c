// The search over candidates. A candidate is a choice for each value and a size of chunks; trying one means to rewrite the graph, order
// it, and look at the live bytes of every step, with evictions to the host where they exceed the budget (plan/offload.c). That takes
// milliseconds for a large program, so most of the search goes by estimates (remat_estimate.h), and trials tell what they are worth.
//
// 1. The hull: prices per byte whose cuts differ, from "keep all" to "keep least" (the parametric search of Eisner and Severance).
// 2. For a target of bytes, by estimates: the fastest point of the hull within it. A price treats all layers alike, so neighbouring
//    points may lie far apart: between them, late values take the choice of one and early values that of the other, by bisection. Then
//    single values change, and pairs of them, as long as that helps.
// 3. The target is what an estimate may come to for its trial to fit the budget: found by bisection over trials. (The estimate knows
//    nothing of evictions and chunks, and the order may turn out otherwise.)
// 4. Trials of single changes of the best candidate.
// Steps 2 and 3 for every size of chunks; the fastest answer wins.
#include "pass/remat_search.h"

#include <stdlib.h>

#include "pass/remat_estimate.h"
#include "pass/tile.h"
#include "plan/offload.h"

enum {
    MOST_POINTS = 24,       // of the hull
    TARGETS = 8,            // trials for one size of chunks
    ESTIMATES = 600,        // for one target at most, and fewer of large graphs:
    ESTIMATE_WORK = 600000, // nodes times estimates
    REPAIRS = 60,           // trials at the end at most, and fewer of large graphs:
    REPAIR_WORK = 30000,    // nodes times trials
    SMALLEST_CHUNK = 1024,
    MOST_CHUNKS = 64,     // more of them are many launches, and a long plan
};

typedef struct Point {
    uint8_t *choice;
    double price, kept, cost;   // of the cut
    double seconds;             // estimated: of the step
    int64_t peak;
} Point;

typedef struct Search {
    const RematGraph *r;
    const PlanOptions *o;
    const MemoryOptions *m;
    Arena *a;
    int64_t align;        // of chunks
    int rank;
    RematEstimate *estimate;
    VEC(Point) point;     // by falling bytes
    VEC(ValueId) flip;    // values with a choice, those that are worth most per byte first
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
static uint8_t *new_choice(Search *s) { return ARENA_ARRAY(s->a, uint8_t, s->r->g->values.len); }
static void copy_choice(const Search *s, uint8_t *to, const uint8_t *from) { memmove(to, from, (size_t)s->r->g->values.len); }
static void estimate(Search *s, Point *p) { remat_estimate(s->estimate, p->choice, &p->seconds, &p->peak); }

static Point cut_at(Search *s, double price) {
    Point p = {.choice = new_choice(s), .price = price};
    remat_cut(s->r, price, p.choice, &p.kept, &p.cost);
    estimate(s, &p);
    return p;
}

static void between(Search *s, const Point *lo, const Point *hi, int depth) {
    if (depth == 0 || s->point.len >= MOST_POINTS || lo->kept - hi->kept < 1 || hi->cost <= lo->cost) return;
    Point mid = cut_at(s, (hi->cost - lo->cost) / (lo->kept - hi->kept));
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

typedef struct Worth {
    ValueId value;
    double worth;
} Worth;
static int by_worth(const void *pa, const void *pb) {
    const Worth *a = pa, *b = pb;
    return a->worth != b->worth ? (a->worth < b->worth ? 1 : -1) : (a->value > b->value) - (a->value < b->value);
}

static void find_flips(Search *s) {
    const RematGraph *r = s->r;
    VEC(Worth) w = {0};
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->forward[v] && r->root[v] == v)
            vec_push(&w, ((Worth){(ValueId)v, r->seconds[graph_value(r->g, (ValueId)v)->def] / (double)(r->nbytes[v] + 1)}));
    qsort(w.data, (size_t)w.len, sizeof *w.data, by_worth);
    for (int64_t i = 0; i < w.len; i++) vec_push(&s->flip, w.data[i].value);
    vec_free(&w);
}

// ---- a target, by estimates ----------------------------------------------------------------------------------------------------
// Within the target the faster one, of those beyond it the smaller.
static bool is_better(const Point *a, const Point *b, int64_t target) {
    bool fa = a->peak <= target, fb = b->peak <= target;
    if (fa != fb) return fa;
    if (fa) return a->seconds < b->seconds || (a->seconds == b->seconds && a->peak < b->peak);
    return a->peak < b->peak || (a->peak == b->peak && a->seconds < b->seconds);
}

// Values defined at node `from` or later as in `late`, the others as in `early`.
static void mix(const RematGraph *r, const uint8_t *early, const uint8_t *late, int64_t from, uint8_t *out) {
    for (int64_t v = 0; v < r->g->values.len; v++) out[v] = graph_value(r->g, r->root[v])->def >= from ? late[v] : early[v];
}

// Between a point that does not fit and one that does: late values as in `late`, by bisection. best: improved.
static void mix_points(Search *s, const Point *early, const Point *late, int64_t target, Point *best) {
    int64_t lo = 0, hi = s->r->g->nodes.len;
    Point p = {.choice = new_choice(s)};
    bool late_fits = late->peak <= target;
    while (hi - lo > 1) {
        int64_t mid = (lo + hi) / 2;
        mix(s->r, early->choice, late->choice, mid, p.choice);
        estimate(s, &p);
        if (is_better(&p, best, target)) {
            uint8_t *mine = best->choice;
            copy_choice(s, mine, p.choice);
            *best = p;
            best->choice = mine;
        }
        if ((p.peak <= target) == late_fits) lo = mid;
        else hi = mid;
    }
}

// Tries best with one or two values changed (k < 0: one).
static bool try_flip(Search *s, Point *best, Point *p, int64_t i, int64_t k, int64_t target, int *left) {
    ValueId a = s->flip.data[i], b = k < 0 ? NO_VALUE : s->flip.data[k];
    --*left;
    best->choice[a] ^= 1;
    if (b != NO_VALUE) best->choice[b] ^= 1;
    p->choice = best->choice;
    estimate(s, p);
    if (is_better(p, best, target)) {
        *best = *p;
        return true;
    }
    best->choice[a] ^= 1;
    if (b != NO_VALUE) best->choice[b] ^= 1;
    return false;
}

// One value for another, or two together: neighbours in worth first, which is where a better fit is likeliest.
static bool improve_pairs(Search *s, Point *best, int64_t target, int *left) {
    Point p;
    int64_t n = s->flip.len;
    for (int64_t gap = 1; gap < n; gap++)
        for (int64_t i = 0; i + gap < n; i++) {
            if (*left <= 0) return false;
            if (try_flip(s, best, &p, i, i + gap, target, left)) return true;
        }
    return false;
}

static void improve(Search *s, Point *best, int64_t target, int *left) {
    for (bool better = true; better && *left > 0;) {
        Point p;
        better = false;
        for (int64_t i = 0; i < s->flip.len && *left > 0; i++) better |= try_flip(s, best, &p, i, -1, target, left);
        if (!better) better = improve_pairs(s, best, target, left);
    }
}

static void take(Search *s, Point *to, const Point *from) {
    uint8_t *mine = to->choice;
    copy_choice(s, mine, from->choice);
    *to = *from;
    to->choice = mine;
}

// The best choice within the target as far as estimates tell.
static Point solve(Search *s, int64_t target) {
    Point best = {.choice = new_choice(s)}, start = {.choice = new_choice(s)};
    int64_t n = s->point.len, at = 0;
    for (int64_t k = 1; k < n; k++)
        if (is_better(&s->point.data[k], &s->point.data[at], target)) at = k;
    take(s, &best, &s->point.data[at]);
    if (best.peak <= target && at > 0) {
        mix_points(s, &s->point.data[at], &s->point.data[at - 1], target, &best);
        mix_points(s, &s->point.data[at - 1], &s->point.data[at], target, &best);
        mix_points(s, &s->point.data[at], &s->point.data[0], target, &best);
    }
    int all = (int)min_i64(ESTIMATES, ESTIMATE_WORK / (s->r->g->nodes.len + 1)), left = all / 2;
    improve(s, &best, target, &left);
    for (int64_t k = 0; k < 2 && n > 1; k++) {  // from elsewhere too
        take(s, &start, &s->point.data[k ? n - 1 : at > 0 ? at - 1 : 0]);
        left = all / 4;
        improve(s, &start, target, &left);
        if (is_better(&start, &best, target)) take(s, &best, &start);
    }
    return best;
}

// ---- trials --------------------------------------------------------------------------------------------------------------------
// The target for which the trial just fits, by bisection between the least estimate and that of keeping everything.
static Status search_rows(Search *s, int64_t rows) {
    RematTrial t;
    Point all = s->point.data[0];
    TRY(consider(s, all.choice, rows, &t));
    if (fits(s, &t)) return ST_OK;
    int64_t most = all.peak, least = 0, target = s->m->budget_nbytes < most ? s->m->budget_nbytes : most - (t.peak_nbytes - s->m->budget_nbytes);
    Point last = all;
    for (int k = 0; k < TARGETS && most > least; k++) {
        if (target <= least || target >= most) target = least + (most - least) / 2;
        Point p = solve(s, target);
        if (k > 0 && !memcmp(p.choice, last.choice, (size_t)s->r->g->values.len)) {
            // The same answer: nothing between
        }
        last = p;
        TRY(consider(s, p.choice, rows, &t));
        int64_t over = t.peak_nbytes - s->m->budget_nbytes;
        if (over <= 0) {
            least = max_i64(target, p.peak);
            target = least + max_i64(-over, (most - least) / 8);
        } else {
            most = min_i64(target, p.peak - 1);
            target = most - over;
        }
    }
    return ST_OK;
}

// Single changes of the best candidate by trials, and pairs while there are trials left.
static Status repair(Search *s, int64_t rows) {
    const RematGraph *r = s->r;
    int left = (int)min_i64(REPAIRS, REPAIR_WORK / (r->g->nodes.len + 1));
    uint8_t *choice = new_choice(s);
    int64_t n = s->flip.len;
    for (int64_t gap = 0; gap < n && left > 0; gap++)
        for (int64_t i = 0; i + gap < n && left > 0; i++) {
            double before = s->best.seconds;
            bool found = s->found;
            int64_t peak = s->best.peak_nbytes;
            copy_choice(s, choice, s->best.choice);
            choice[s->flip.data[i]] ^= 1;
            if (gap > 0) choice[s->flip.data[i + gap]] ^= 1;
            Point p = {.choice = choice};
            estimate(s, &p);
            if (found && p.seconds >= before) continue;  // seconds of an estimate are right
            RematTrial t;
            TRY(consider(s, choice, rows, &t));
            left--;
            if (s->found != found || (s->found ? s->best.seconds < before : s->best.peak_nbytes < peak)) gap = -1, i = n;
        }
    return ST_OK;
}

// ---- one size of chunks, all sizes -------------------------------------------------------------------------------------------
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
    TRY(remat_estimate_new(s->a, s->r, s->o, &s->estimate, s->d));
    find_hull(s);
    find_flips(s);
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
    vec_free(&s.flip);
    arena_free(s.a);
    return st;
}
