// 1. The hull: prices per byte whose cuts differ, from "keep all" to "keep least" (the parametric search of Eisner and Severance).
// 2. For a target: the fastest point of the hull within it. A price treats all layers alike, so neighbouring points may lie far apart:
//    between them, late values take the choice of one and early values that of the other, by bisection.
// 3. Single values change, and pairs of them, as long as that helps; from a few points.
// Everything that was estimated is remembered: where a trial turns out otherwise than estimated, the next best is at hand.
#include "pass/remat_solve.h"

#include <math.h>
#include <stdlib.h>

#define GAIN 1e-4            // parts of the step's seconds that are worth a trial

enum {
    MOST_CUTS = 24,
    ESTIMATES = 600,         // for one target at most, and fewer of large graphs:
    ESTIMATE_WORK = 600000,  // nodes times estimates
    MOST_SEEN = 1 << 14,
    FEW = 32,                // values; of more, those smaller than
    SMALL = 50,              // the mean divided by this are kept
};

static uint8_t *new_choice(const Solver *s) { return ARENA_ARRAY(s->a, uint8_t, s->r->g->values.len); }
static void take(const Solver *s, Point *to, const Point *from) {
    uint8_t *mine = to->choice;
    memmove(mine, from->choice, (size_t)s->r->g->values.len);
    *to = *from;
    to->choice = mine;
}

// ---- what was seen ---------------------------------------------------------------------------------------------------------------
static int64_t words(const Solver *s) { return (s->flip.len + 63) / 64; }

// Bits of a choice, and the place in the table where it is or would be.
static int64_t find_seen(const Solver *s, const uint8_t *choice, uint64_t *bit, uint64_t *key) {
    memset(bit, 0, sizeof *bit * (size_t)words(s));
    for (int64_t i = 0; i < s->flip.len; i++)
        if (choice[s->flip.data[i]] == CHOICE_AGAIN) bit[i / 64] |= UINT64_C(1) << i % 64;
    *key = hash_bytes(0, bit, sizeof *bit * (size_t)words(s));
    int64_t at = (int64_t)(*key % (uint64_t)s->nslot);
    while (s->table[at] >= 0) {
        const Seen *x = &s->seen.data[s->table[at]];
        if (x->key == *key && !memcmp(x->bit, bit, sizeof *bit * (size_t)words(s))) break;
        at = (at + 1) % s->nslot;
    }
    return at;
}

static Seen *remember(Solver *s, const uint8_t *choice, double seconds, int64_t peak) {
    uint64_t key, *bit = ARENA_ARRAY(s->a, uint64_t, words(s) + 1);
    int64_t at = find_seen(s, choice, bit, &key);
    if (s->table[at] >= 0) return &s->seen.data[s->table[at]];
    if (s->seen.len == MOST_SEEN) return NULL;
    s->table[at] = (int32_t)s->seen.len;
    vec_push(&s->seen, ((Seen){.bit = bit, .seconds = seconds, .peak = peak, .key = key, .trial_peak = -1}));
    return &s->seen.data[s->seen.len - 1];
}

void solver_estimate(Solver *s, Point *p) {
    remat_estimate(s->estimate, p->choice, &p->seconds, &p->peak);
    s->nestimate++;
    remember(s, remat_estimate_normal(s->estimate, p->choice), p->seconds, p->peak);
}

static Seen *seen_of(Solver *s, const uint8_t *choice) {
    Point p = {.choice = (uint8_t *)choice};
    remat_estimate(s->estimate, choice, &p.seconds, &p.peak);
    return remember(s, remat_estimate_normal(s->estimate, choice), p.seconds, p.peak);
}

void solver_tried(Solver *s, const uint8_t *choice, int64_t peak) {
    Seen *x = seen_of(s, choice);
    if (x) x->trial_peak = peak;
}

int64_t solver_trial_peak(Solver *s, const uint8_t *choice) {
    const Seen *x = seen_of(s, choice);
    return x ? x->trial_peak : -1;
}

void solver_forget_trials(Solver *s) {
    for (int64_t i = 0; i < s->seen.len; i++) s->seen.data[i].trial_peak = -1;
}

static void write_choice(const Solver *s, const Seen *x, uint8_t *choice) {
    for (int64_t v = 0; v < s->r->g->values.len; v++) choice[v] = CHOICE_KEEP;
    for (int64_t i = 0; i < s->flip.len; i++) choice[s->flip.data[i]] = (x->bit[i / 64] >> i % 64 & 1) ? CHOICE_AGAIN : CHOICE_KEEP;
    for (int64_t v = 0; v < s->r->g->values.len; v++) choice[v] = choice[s->r->root[v]];
}

bool solver_look_around(Solver *s, const uint8_t *choice) {
    Point p = {.choice = new_choice(s)};
    int64_t n = s->flip.len, gaps = n * n < ESTIMATES ? n : 1;
    Seen *from = choice ? seen_of(s, choice) : NULL;
    for (int64_t i = 0; i < s->seen.len && !choice; i++) {
        Seen *x = &s->seen.data[i];
        if (x->trial_peak >= 0 && !x->looked && (!from || x->trial_peak < from->trial_peak)) from = x;
    }
    if (!from || from->looked) return false;
    from->looked = true;
    write_choice(s, from, p.choice);
    for (int64_t gap = 0; gap < gaps; gap++)
        for (int64_t i = 0; i + gap < n; i++) {
            p.choice[s->flip.data[i]] ^= 1;
            if (gap) p.choice[s->flip.data[i + gap]] ^= 1;
            solver_estimate(s, &p);
            p.choice[s->flip.data[i]] ^= 1;
            if (gap) p.choice[s->flip.data[i + gap]] ^= 1;
        }
    return true;
}

// What its trial's peak is likely to be in parts of the estimate, from trials of choices that differ in few values, and how sure that is.
static void expect(const Solver *s, const Seen *x, double *off, double *spread) {
    double sum = 0.1, weight = 0.1, nearest = 64;
    for (int64_t i = 0; i < s->seen.len; i++) {
        const Seen *y = &s->seen.data[i];
        if (y->trial_peak < 0) continue;
        int differ = 0;
        for (int64_t k = 0; k < words(s); k++) differ += __builtin_popcountll(x->bit[k] ^ y->bit[k]);
        double w = exp(-1.0 * differ);
        sum += w * (double)(y->trial_peak + 1) / (double)(y->peak + 1);
        weight += w;
        if (differ < nearest) nearest = differ;
    }
    *off = sum / weight;
    *spread = 0.01 + 0.02 * fmin(nearest, 4);
}

bool solver_next(Solver *s, int64_t budget, double seconds, bool smallest, uint8_t *choice) {
    const Seen *best = NULL;
    double most = 0;
    for (int64_t i = 0; i < s->seen.len; i++) {
        const Seen *x = &s->seen.data[i];
        if (x->trial_peak >= 0 || (!smallest && x->seconds >= seconds * (1 - GAIN))) continue;
        double off, spread;
        expect(s, x, &off, &spread);
        double peak = (double)x->peak * off, over = (peak / (double)budget - 1) / spread;
        double worth = smallest ? 1 / (peak * (1 - spread) + 1) : (seconds - x->seconds) / (1 + exp(fmin(2 * over, 500)));
        if (best && worth <= most) continue;
        best = x;
        most = worth;
    }
    if (!best) return false;
    write_choice(s, best, choice);
    return true;
}

// ---- the hull ----------------------------------------------------------------------------------------------------------------------
static void keep_small(Solver *s, uint8_t *choice) {
    for (int64_t v = 0; v < s->r->g->values.len; v++)
        if (!s->decided[s->r->root[v]]) choice[v] = CHOICE_KEEP;
}

static Cut cut_at(Solver *s, double price) {
    Cut c = {.p.choice = new_choice(s), .price = price};
    remat_cut(s->r, price, c.p.choice, &c.kept, &c.cost);
    keep_small(s, c.p.choice);
    solver_estimate(s, &c.p);
    return c;
}

static void between(Solver *s, const Cut *lo, const Cut *hi, int depth) {
    if (depth == 0 || s->cut.len >= MOST_CUTS || lo->kept - hi->kept < 1 || hi->cost <= lo->cost) return;
    Cut mid = cut_at(s, (hi->cost - lo->cost) / (lo->kept - hi->kept));
    if (mid.kept >= lo->kept || mid.kept <= hi->kept) return;
    vec_push(&s->cut, mid);
    between(s, lo, &mid, depth - 1);
    between(s, &mid, hi, depth - 1);
}

static int by_kept(const void *pa, const void *pb) {
    const Cut *a = pa, *b = pb;
    return a->kept != b->kept ? (a->kept < b->kept ? 1 : -1) : (a->price > b->price) - (a->price < b->price);
}

static void find_hull(Solver *s) {
    const RematGraph *r = s->r;
    double total = 0;
    int64_t largest = 1;
    for (int64_t i = 0; i < r->g->nodes.len; i++) total += r->seconds[i];
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->needed[v]) largest = max_i64(largest, r->nbytes[v]);
    Cut lo = cut_at(s, 0), hi = cut_at(s, 100 * total / (double)largest);
    vec_push(&s->cut, lo);
    vec_push(&s->cut, hi);
    between(s, &lo, &hi, 6);
    qsort(s->cut.data, (size_t)s->cut.len, sizeof *s->cut.data, by_kept);
}

typedef struct Worth {
    ValueId value;
    double worth;
} Worth;
static int by_worth(const void *pa, const void *pb) {
    const Worth *a = pa, *b = pb;
    return a->worth != b->worth ? (a->worth < b->worth ? 1 : -1) : (a->value > b->value) - (a->value < b->value);
}

// In a large program the values that are worth a decision: the others are kept.
static void find_flips(Solver *s) {
    const RematGraph *r = s->r;
    VEC(Worth) w = {0};
    double all = 0, count = 0;
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->forward[v] && r->root[v] == v) all += (double)r->nbytes[v], count++;
    for (int64_t v = 0; v < r->g->values.len; v++)
        if (r->forward[v] && r->root[v] == v && (count < FEW || (double)r->nbytes[v] * SMALL * count >= all))
            vec_push(&w, ((Worth){(ValueId)v, r->seconds[graph_value(r->g, (ValueId)v)->def] / (double)(r->nbytes[v] + 1)}));
    if (w.len) qsort(w.data, (size_t)w.len, sizeof *w.data, by_worth);
    for (int64_t i = 0; i < w.len; i++) {
        vec_push(&s->flip, w.data[i].value);
        s->decided[w.data[i].value] = true;
    }
    vec_free(&w);
}

Status solver_begin(Solver *s, Arena *a, const RematGraph *r, const PlanOptions *o, Diag *d) {
    *s = (Solver){.r = r, .a = a, .nslot = 2 * MOST_SEEN};
    TRY(remat_estimate_new(a, r, o, &s->estimate, d));
    s->table = ARENA_ARRAY(a, int32_t, s->nslot);
    for (int64_t i = 0; i < s->nslot; i++) s->table[i] = -1;
    s->decided = ARENA_ARRAY(a, bool, r->g->values.len);
    find_flips(s);
    find_hull(s);
    return ST_OK;
}

void solver_end(Solver *s) {
    vec_free(&s->cut);
    vec_free(&s->flip);
    vec_free(&s->seen);
}

// ---- a target ------------------------------------------------------------------------------------------------------------------------
// Within the target the faster one, of those beyond it the smaller.
static bool is_better(const Point *a, const Point *b, int64_t target) {
    bool fa = a->peak <= target, fb = b->peak <= target;
    if (fa != fb) return fa;
    if (fa) return a->seconds < b->seconds || (a->seconds == b->seconds && a->peak < b->peak);
    return a->peak < b->peak || (a->peak == b->peak && a->seconds < b->seconds);
}

// Values defined at node `from` or later as in `late`, the others as in `early`: the place where the target is just met, by bisection.
static void mix_points(Solver *s, const Point *early, const Point *late, int64_t target, Point *best) {
    const Graph *g = s->r->g;
    int64_t lo = 0, hi = g->nodes.len;
    Point p = {.choice = new_choice(s)};
    bool late_fits = late->peak <= target;
    while (hi - lo > 1) {
        int64_t mid = (lo + hi) / 2;
        for (int64_t v = 0; v < g->values.len; v++) p.choice[v] = graph_value(g, s->r->root[v])->def >= mid ? late->choice[v] : early->choice[v];
        solver_estimate(s, &p);
        if (is_better(&p, best, target)) take(s, best, &p);
        if ((p.peak <= target) == late_fits) lo = mid;
        else hi = mid;
    }
}

// best with one or two values changed (b < 0: one), where that is better.
static bool try_flip(Solver *s, Point *best, int64_t a, int64_t b, int64_t target, int *left) {
    Point p = *best;
    --*left;
    best->choice[s->flip.data[a]] ^= 1;
    if (b >= 0) best->choice[s->flip.data[b]] ^= 1;
    solver_estimate(s, &p);
    if (is_better(&p, best, target)) {
        *best = p;
        return true;
    }
    best->choice[s->flip.data[a]] ^= 1;
    if (b >= 0) best->choice[s->flip.data[b]] ^= 1;
    return false;
}

// One value for another, or two together: neighbours in worth first, which is where a better fit is likeliest.
static bool improve_pairs(Solver *s, Point *best, int64_t target, int *left) {
    int64_t n = s->flip.len;
    for (int64_t gap = 1; gap < n; gap++)
        for (int64_t i = 0; i + gap < n; i++) {
            if (*left <= 0) return false;
            if (try_flip(s, best, i, i + gap, target, left)) return true;
        }
    return false;
}

static void improve(Solver *s, Point *best, int64_t target, int left) {
    for (bool better = true; better && left > 0;) {
        better = false;
        for (int64_t i = 0; i < s->flip.len && left > 0; i++) better |= try_flip(s, best, i, -1, target, &left);
        if (!better) better = improve_pairs(s, best, target, &left);
    }
}

Point solver_solve(Solver *s, int64_t target) {
    Point best = {.choice = new_choice(s)}, start = {.choice = new_choice(s)};
    int64_t n = s->cut.len, at = 0;
    for (int64_t k = 1; k < n; k++)
        if (is_better(&s->cut.data[k].p, &s->cut.data[at].p, target)) at = k;
    take(s, &best, &s->cut.data[at].p);
    if (best.peak <= target && at > 0) {
        mix_points(s, &s->cut.data[at].p, &s->cut.data[at - 1].p, target, &best);
        mix_points(s, &s->cut.data[at - 1].p, &s->cut.data[at].p, target, &best);
        mix_points(s, &s->cut.data[at].p, &s->cut.data[0].p, target, &best);
    }
    int most = (int)min_i64(ESTIMATES, ESTIMATE_WORK / (s->r->g->nodes.len + 1));
    improve(s, &best, target, most / 2);
    const Point *other[] = {&s->cut.data[at > 0 ? at - 1 : 0].p, &s->cut.data[n - 1].p};  // from elsewhere too
    for (int k = 0; k < 2; k++) {
        take(s, &start, other[k]);
        improve(s, &start, target, most / 4);
        if (is_better(&start, &best, target)) take(s, &best, &start);
    }
    return best;
}
