// The search over candidates. A candidate is a choice for each value and a size of chunks; trying one means to rewrite the graph, order
// it, and look at the live bytes of every step, with evictions to the host where they exceed the budget (plan/offload.c). That takes
// milliseconds for a large program, so most of the search goes by estimates (remat_solve.c), and trials tell what they are worth.
//
// 1. The target is what an estimate may come to for its trial to fit the budget: found by bisection over trials. (The estimate knows
//    nothing of evictions and chunks, and the order may turn out otherwise.) For every size of chunks; the fastest answer wins.
// 2. Trials of what estimates made second best, and of single changes of the best candidate.
#include "pass/remat_search.h"

#include <math.h>
#include <stdlib.h>

#include "pass/remat_solve.h"
#include "plan/offload.h"

enum {
    TARGETS = 8,            // trials for one size of chunks
    REPAIRS = 90,           // trials at the end at most, and fewer of large graphs:
    REPAIR_WORK = 40000,    // nodes times trials
    FINDS = 400,            // the same while nothing fits
    FIND_WORK = 120000,
    SMALLEST_CHUNK = 1024,
    MOST_CHUNKS = 64,       // more of them are many launches, and a long plan
};

typedef struct Search {
    const RematGraph *r;
    const PlanOptions *o;
    const MemoryOptions *m;
    Arena *a;
    int64_t align;        // of chunks
    int rank;
    Solver solver;
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
    TileSketch tile = tile_sketch(ordered, &(TileOptions){t->rows, align}, a);
    RankPlan p;
    st = plan_sketch(a, ordered, o, plan_fullest_rank(ordered), &tile, &p, d);
    if (st == ST_OK) {
        OffloadOptions oo = {.budget_nbytes = m->budget_nbytes, .host_nbytes = m->offload ? m->host_nbytes : 0, .region = tile.region};
        OffloadChoice c;
        if (oo.budget_nbytes <= 0) oo.budget_nbytes = INT64_MAX;
        offload_choose(a, ordered, &p, o->device, &oo, &c);
        t->seconds = c.seconds + tile_seconds(ordered, &p, tile.pieces, o->device);
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
    if (s->solver.flip.len) solver_tried(&s->solver, choice, t->peak_nbytes);
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

// While nothing fits: what costs the least at each price of a byte, whatever the estimates say of it. What is kept may well go to the host,
// of which they know nothing.
static Status scan_hull(Search *s, int64_t rows) {
    RematTrial t;
    for (int64_t i = 0; i < s->solver.cut.len; i++)
        if (solver_trial_peak(&s->solver, s->solver.cut.data[i].p.choice) < 0) TRY(consider(s, s->solver.cut.data[i].p.choice, rows, &t));
    return ST_OK;
}

// ---- one size of chunks ----------------------------------------------------------------------------------------------------------
static Status search_rows(Search *s, int64_t rows) {
    RematTrial t;
    Point all = s->solver.cut.data[0].p;
    int64_t budget = s->m->budget_nbytes;
    solver_forget_trials(&s->solver);
    TRY(consider(s, all.choice, rows, &t));
    if (fits(s, &t)) return ST_OK;
    int64_t most = all.peak, least = 0, target = budget < most ? budget : most - (t.peak_nbytes - budget);
    for (int k = 0; k < TARGETS && most > least + least / 256; k++) {
        if (target <= least || target >= most) target = least + (most - least) / 2;
        Point p = solver_solve(&s->solver, target);
        int64_t peak = solver_trial_peak(&s->solver, p.choice);
        if (peak < 0) {
            TRY(consider(s, p.choice, rows, &t));
            peak = t.peak_nbytes;
        }
        int64_t over = peak - budget;
        if (over <= 0) {
            least = max_i64(target, p.peak);
            target = least + max_i64(-over, (most - least) / 8);
        } else {
            if (p.peak > target) break;  // less than that there is not
            most = min_i64(target, p.peak - 1);
            target = most - over;
        }
    }
    return s->found ? ST_OK : scan_hull(s, rows);
}

// Trials of what estimates made second best, in the light of the trials that were made, and of changes of the best candidate.
static Status repair(Search *s) {
    const RematGraph *r = s->r;
    int64_t rows = s->best.rows, size = r->g->nodes.len + 1, peak = 0;
    double seconds = INFINITY;
    RematTrial t;
    uint8_t *choice = ARENA_ARRAY(s->a, uint8_t, r->g->values.len);
    for (int64_t k = 0; k < (s->found ? min_i64(REPAIRS, REPAIR_WORK / size) : min_i64(FINDS, FIND_WORK / size)); k++) {
        if (s->best.seconds != seconds || s->best.peak_nbytes != peak) solver_look_around(&s->solver, s->best.choice);
        seconds = s->best.seconds;
        peak = s->best.peak_nbytes;
        while (!solver_next(&s->solver, s->m->budget_nbytes, seconds, !s->found, choice))
            if (!solver_look_around(&s->solver, NULL)) return ST_OK;
        TRY(consider(s, choice, rows, &t));
    }
    return ST_OK;
}

// ---- all sizes -------------------------------------------------------------------------------------------------------------------
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

static bool keeps_all(const Search *s) {
    return s->found && !s->best.noffload && !memcmp(s->best.choice, s->solver.cut.data[0].p.choice, (size_t)s->r->g->values.len);
}

static Status search_auto(Search *s) {
    TRY(solver_begin(&s->solver, s->a, s->r, s->o, s->d));
    bool fixed = s->m->tile_rows != TILE_AUTO;
    int64_t tokens = local_tokens(s->r, s->rank), least = max_i64(SMALLEST_CHUNK, tokens / MOST_CHUNKS);
    TRY(search_rows(s, fixed ? s->m->tile_rows : 0));
    int worse = 0;
    // Nothing is gained on a candidate that keeps everything.
    for (int64_t rows = tokens / 2; !fixed && rows >= least && !keeps_all(s) && worse < 2; rows /= 2) {
        double before = s->best.seconds;
        int64_t peak = s->best.peak_nbytes;
        bool found = s->found;
        TRY(search_rows(s, round_up(rows, 128)));
        bool better = s->found != found || (s->found ? s->best.seconds < before : s->best.peak_nbytes < peak - peak / 128);
        worse = better ? 0 : worse + 1;
    }
    return keeps_all(s) || s->m->quick ? ST_OK : repair(s);
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
    if (st == ST_OK) {
        memcpy(best->choice, s.best.choice, (size_t)r->g->values.len);
        uint8_t *mine = best->choice;
        *best = s.best;
        best->choice = mine;
        best->ntrial = s.ntrial;
    }
    solver_end(&s.solver);
    arena_free(s.a);
    return st;
}
