// A buffer that is not accessed for a long time, typically from a layer's forward to its backward, can spend the time on the host. Where
// the live bytes exceed the budget most, a buffer with a gap there goes: the one with the longest (Belady's rule: its copies have most
// freedom, its bytes are free for the longest time), the one with most bytes, or the one with just enough; the way that evicts the fewest
// bytes wins, and what then turns out not to be needed stays. Copies to the host start right after the last access, in order; copies back
// are planned from the last one backwards, each as late as its reader and the copies after it allow.
#include "plan/offload.h"

#include <stdlib.h>

enum { LEAST_NBYTES = 1 << 20 };  // smaller ones are not worth a copy

typedef struct Gap {
    Eviction e;
    double length;           // seconds
    bool taken, useless;
} Gap;

typedef struct Offload {
    Arena *a;
    const Graph *g;
    const RankPlan *p;
    const DeviceModel *m;
    const OffloadOptions *o;
    double *start;           // [nstep + 1] of each step
    int32_t *first, *last;   // [nstep] of the region that it is in
    int64_t *live;           // [nstep + 1]
    int64_t *change;         // [nstep + 1] of the live bytes at each step, without evictions
    int64_t *host;           // [nstep + 1] scratch
    VEC(Gap) gap;
    VEC(Gap *) taken;        // in the order of e.before
    int64_t host_peak;
} Offload;

static int64_t padded(int64_t nbytes) { return round_up(nbytes, BUFFER_ALIGN); }

static bool may_leave(const Buffer *b) {
    return !b->host && (b->kind == BUF_SAVED || b->kind == BUF_TRANSIENT) && b->value != NO_VALUE && b->nbytes >= LEAST_NBYTES;
}

// What is read at step `after` of the buffer: the value that lies in it during the gap.
static ValueId value_read(const RankPlan *p, const Graph *g, int32_t buffer, int32_t after) {
    const Step *s = &p->step[after];
    for (int k = 0; k < s->nin; k++)
        if (s->in_buf[k] == buffer) return graph_node(g, s->node)->in[k];
    return NO_VALUE;
}

// The longest time between two accesses of each buffer that may leave.
static void find_gaps(Offload *f) {
    const RankPlan *p = f->p;
    int32_t *last = ARENA_ARRAY(f->a, int32_t, p->nbuffer), *best = ARENA_ARRAY(f->a, int32_t, p->nbuffer);
    for (int i = 0; i < p->nbuffer; i++) last[i] = best[i] = -1;
    for (int32_t s = 0; s < p->nstep; s++)
        for (int k = 0; k < p->step[s].nin + p->step[s].nout; k++) {
            int32_t b = k < p->step[s].nin ? p->step[s].in_buf[k] : p->step[s].out_buf[k - p->step[s].nin];
            const Operand *o = k < p->step[s].nin ? &p->step[s].in[k] : &p->step[s].out[k - p->step[s].nin];
            if (b < 0 || !may_leave(&p->buffer[b]) || operand_nbytes(o) > p->buffer[b].nbytes) continue;  // in pieces: never whole
            if (last[b] >= 0 && f->first[s] > f->last[last[b]] + 1) {
                Gap *known = best[b] >= 0 ? &f->gap.data[best[b]] : NULL;
                double length = f->start[f->first[s]] - f->start[f->last[last[b]] + 1];
                if (!known) {
                    best[b] = (int32_t)f->gap.len;
                    vec_push(&f->gap, ((Gap){.length = -1}));
                    known = &f->gap.data[best[b]];
                }
                if (length > known->length)
                    *known = (Gap){.e = {.buffer = b, .before = last[b], .after = s, .nbytes = padded(p->buffer[b].nbytes)}, .length = length};
            }
            last[b] = s;
        }
    int64_t kept = 0;
    for (int64_t i = 0; i < f->gap.len; i++) {
        Eviction *e = &f->gap.data[i].e;
        e->value = value_read(p, f->g, e->buffer, e->after);
        const Placement *at = e->value == NO_VALUE ? NULL : &graph_value(f->g, e->value)->place;
        if (at && at->kind != PLACE_PARTIAL && at->reduce == RED_NONE) f->gap.data[kept++] = f->gap.data[i];  // terms are summed before they are kept
    }
    f->gap.len = kept;
}

// The first step that starts at or after time t, and the last one that starts at or before it.
static int32_t step_at(const Offload *f, double t, bool after) {
    int32_t lo = 0, hi = f->p->nstep;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (f->start[mid] < t) lo = mid + 1;
        else hi = mid;
    }
    return after || f->start[lo] == t || lo == 0 ? lo : lo - 1;
}

static double copy_seconds(const Offload *f, int64_t nbytes, bool to_host) {
    return (double)nbytes / (to_host ? f->m->to_host_bandwidth : f->m->from_host_bandwidth) + f->m->host_latency_s;
}

static int by_before(const void *pa, const void *pb) {
    const Gap *a = *(Gap *const *)pa, *b = *(Gap *const *)pb;
    return a->e.before != b->e.before ? (a->e.before > b->e.before ? 1 : -1) : (a->e.buffer > b->e.buffer) - (a->e.buffer < b->e.buffer);
}
static int by_after(const void *pa, const void *pb) {
    const Gap *a = *(Gap *const *)pa, *b = *(Gap *const *)pb;
    return a->e.after != b->e.after ? (a->e.after < b->e.after ? 1 : -1) : (a->e.buffer > b->e.buffer) - (a->e.buffer < b->e.buffer);
}

// Times of all copies. An eviction whose copy back would have to start before its copy out is done frees nothing.
static void plan_copies(Offload *f) {
    if (f->taken.len) qsort(f->taken.data, (size_t)f->taken.len, sizeof *f->taken.data, by_before);
    double link = 0;
    for (int64_t i = 0; i < f->taken.len; i++) {
        Eviction *e = &f->taken.data[i]->e;
        double ready = f->start[f->last[e->before] + 1];
        link = (ready > link ? ready : link) + copy_seconds(f, e->nbytes, true);
        e->done = step_at(f, link, true);
        if (e->done < f->p->nstep && f->first[e->done] < e->done) e->done = f->last[e->done] + 1;
        if (e->done > f->first[e->after]) e->done = f->first[e->after];
    }
    Gap **back = ARENA_ARRAY(f->a, Gap *, f->taken.len);
    for (int64_t i = 0; i < f->taken.len; i++) back[i] = f->taken.data[i];
    if (f->taken.len) qsort(back, (size_t)f->taken.len, sizeof *back, by_after);
    link = f->start[f->p->nstep];
    for (int64_t i = 0; i < f->taken.len; i++) {
        Eviction *e = &back[i]->e;
        double reader = f->start[f->first[e->after]], end = reader < link ? reader : link;
        link = end - copy_seconds(f, e->nbytes, false) * 1.1;  // copies both ways at once are a little slower than alone
        e->fetch = link > 0 ? step_at(f, link, false) : 0;
        e->fetch = f->first[e->fetch];
        if (e->fetch > f->first[e->after]) e->fetch = f->first[e->after];
        if (e->fetch < e->done) e->fetch = e->done;
    }
}

// Live bytes of every step with the evictions taken; the host's peak.
static void count_live(Offload *f) {
    const RankPlan *p = f->p;
    int32_t n = p->nstep;
    int64_t *host = f->host;
    memcpy(f->live, f->change, sizeof *f->live * (size_t)(n + 1));
    memset(host, 0, sizeof *host * (size_t)(n + 1));
    for (int64_t i = 0; i < f->taken.len; i++) {
        const Eviction *e = &f->taken.data[i]->e;
        f->live[e->done] -= e->nbytes;
        f->live[e->fetch] += e->nbytes;
        host[e->before + 1 < n ? e->before + 1 : n - 1] += e->nbytes;
        host[e->after] -= e->nbytes;
    }
    f->host_peak = 0;
    int64_t at = 0;
    for (int32_t s = 0; s < n; s++) {
        if (s > 0) f->live[s] += f->live[s - 1];
        at += host[s];
        f->host_peak = max_i64(f->host_peak, at);
    }
}

static int32_t worst_step(const Offload *f) {
    int32_t worst = 0;
    for (int32_t s = 1; s < f->p->nstep; s++)
        if (f->live[s] > f->live[worst]) worst = s;
    return worst;
}

// The next buffer to go: of the gaps around step s that were not tried.
typedef enum Rule { RULE_LONGEST, RULE_LARGEST, RULE_ENOUGH, RULE_COUNT } Rule;
static bool goes_first(const Gap *x, const Gap *y, Rule rule, int64_t over) {
    if (rule == RULE_ENOUGH) {  // the smallest of those that are enough, the largest of the others
        bool ex = x->e.nbytes >= over, ey = y->e.nbytes >= over;
        if (ex != ey) return ex;
        if (x->e.nbytes != y->e.nbytes) return (x->e.nbytes < y->e.nbytes) == ex;
    }
    if (rule == RULE_LARGEST && x->e.nbytes != y->e.nbytes) return x->e.nbytes > y->e.nbytes;
    return x->length > y->length || (x->length == y->length && x->e.nbytes > y->e.nbytes);
}

static Gap *choose_gap(Offload *f, int32_t s, Rule rule) {
    Gap *best = NULL;
    for (int64_t i = 0; i < f->gap.len; i++) {
        Gap *x = &f->gap.data[i];
        if (x->taken || x->useless || x->e.before >= s || x->e.after <= s) continue;
        if (!best || goes_first(x, best, rule, f->live[s] - f->o->budget_nbytes)) best = x;
    }
    return best;
}

static void take(Offload *f, Gap *x) {
    x->taken = true;
    vec_push(&f->taken, x);
}

static void drop(Offload *f, Gap *x) {
    x->taken = false;
    int64_t k = 0;
    for (int64_t i = 0; i < f->taken.len; i++)
        if (f->taken.data[i] != x) f->taken.data[k++] = f->taken.data[i];
    f->taken.len = k;
}

static void reckon(Offload *f) {
    plan_copies(f);
    count_live(f);
}

static void evict(Offload *f, Rule rule) {
    reckon(f);
    int32_t s = worst_step(f);
    while (f->live[s] > f->o->budget_nbytes) {
        Gap *x = choose_gap(f, s, rule);
        if (!x) return;
        int64_t before = f->live[s];
        take(f, x);
        reckon(f);
        // It may move others' copies: what does not help here is put back, for good.
        if (f->live[s] >= before || f->host_peak > f->o->host_nbytes) {
            x->useless = true;
            drop(f, x);
            reckon(f);
        }
        s = worst_step(f);
    }
}

static int by_nbytes(const void *pa, const void *pb) {
    const Gap *a = *(Gap *const *)pa, *b = *(Gap *const *)pb;
    return a->e.nbytes != b->e.nbytes ? (a->e.nbytes < b->e.nbytes ? 1 : -1) : (a->e.buffer > b->e.buffer) - (a->e.buffer < b->e.buffer);
}

// Largest first: what the budget is met without stays.
static void put_back(Offload *f) {
    int64_t n = f->taken.len;
    Gap **all = ARENA_ARRAY(f->a, Gap *, n);
    for (int64_t i = 0; i < n; i++) all[i] = f->taken.data[i];
    if (n) qsort(all, (size_t)n, sizeof *all, by_nbytes);
    for (int64_t i = 0; i < n; i++) {
        drop(f, all[i]);
        reckon(f);
        if (f->live[worst_step(f)] <= f->o->budget_nbytes) continue;
        take(f, all[i]);
    }
    reckon(f);
}

// The evictions of the rule that evicts the fewest bytes, or that comes nearest to the budget.
static void choose(Offload *f) {
    bool *best = ARENA_ARRAY(f->a, bool, f->gap.len);
    int64_t least_peak = INT64_MAX, least_moved = INT64_MAX, budget = f->o->budget_nbytes;
    reckon(f);
    if (f->live[worst_step(f)] <= budget) return;
    for (int rule = 0; rule < RULE_COUNT; rule++) {
        int64_t moved = 0;
        f->taken.len = 0;
        for (int64_t i = 0; i < f->gap.len; i++) {
            f->gap.data[i].taken = false;
            f->gap.data[i].useless = f->gap.data[i].e.value == NO_VALUE;
        }
        evict(f, (Rule)rule);
        if (f->live[worst_step(f)] <= budget) put_back(f);
        for (int64_t i = 0; i < f->taken.len; i++) moved += f->taken.data[i]->e.nbytes;
        int64_t peak = max_i64(f->live[worst_step(f)], budget);
        if (peak > least_peak || (peak == least_peak && moved >= least_moved)) continue;
        least_peak = peak;
        least_moved = moved;
        for (int64_t i = 0; i < f->gap.len; i++) best[i] = f->gap.data[i].taken;
    }
    f->taken.len = 0;
    for (int64_t i = 0; i < f->gap.len; i++)
        if (best[i]) take(f, &f->gap.data[i]);
    reckon(f);
}

static void take_wanted(Offload *f) {
    for (int64_t i = 0; i < f->gap.len; i++) {
        const Eviction *e = &f->gap.data[i].e;
        if (e->value != NO_VALUE && f->o->want[f->p->buffer[e->buffer].value]) take(f, &f->gap.data[i]);
    }
    reckon(f);
}

void offload_choose(Arena *a, const Graph *g, const RankPlan *p, const DeviceModel *m, const OffloadOptions *o, OffloadChoice *out) {
    Offload f = {.a = a, .g = g, .p = p, .m = m, .o = o};
    f.start = ARENA_ARRAY(a, double, p->nstep + 1);
    f.live = ARENA_ARRAY(a, int64_t, p->nstep + 1);
    f.host = ARENA_ARRAY(a, int64_t, p->nstep + 1);
    f.change = ARENA_ARRAY(a, int64_t, p->nstep + 2);
    for (int i = 0; i < p->nbuffer; i++) {
        if (p->buffer[i].host) continue;
        f.change[p->buffer[i].first] += padded(p->buffer[i].nbytes);
        f.change[p->buffer[i].last + 1] -= padded(p->buffer[i].nbytes);
    }
    for (int32_t s = 0; s < p->nstep; s++) f.start[s + 1] = f.start[s] + p->step[s].seconds;
    f.first = ARENA_ARRAY(a, int32_t, p->nstep + 1);
    f.last = ARENA_ARRAY(a, int32_t, p->nstep + 1);
    for (int32_t s = 0; s <= p->nstep; s++) f.first[s] = f.last[s] = s;
    if (o->region) plan_regions(p, o->region, a, f.first, f.last);
    if (o->host_nbytes > 0 && m->to_host_bandwidth > 0 && m->from_host_bandwidth > 0) find_gaps(&f);
    if (o->want) take_wanted(&f);
    else choose(&f);
    *out = (OffloadChoice){.n = (int)f.taken.len, .seconds = f.start[p->nstep], .host_peak_nbytes = f.host_peak};
    out->eviction = ARENA_ARRAY(a, Eviction, f.taken.len);
    out->peak_nbytes = p->nstep > 0 ? f.live[worst_step(&f)] : p->lower_bound_nbytes;
    for (int64_t i = 0; i < f.taken.len; i++) {
        out->eviction[i] = f.taken.data[i]->e;
        out->seconds += 2 * (double)f.taken.data[i]->e.nbytes / m->mem_bandwidth;
    }
    vec_free(&f.gap);
    vec_free(&f.taken);
}
