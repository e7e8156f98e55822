// The least memory that a length needs is nearly a straight line over the length, so the secant through two lengths that were looked at
// is a good guess at where it meets the budget; what was seen to fit and what was not bracket the answer. A probe is a whole plan, made
// for the least memory (CompileOptions.least) of the ranks that tell. The answer is then compiled as `plan --seq` does.
#include "driver/longest.h"

#include <math.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "driver/explain.h"

enum { FIRST_SEQ = 1024, SHORTEST_SEQ = 64, MOST_STEPS = 40, MOST_BACK = 6 };

const char *longest_limit_name(LongestLimit l) {
    static const char *const name[] = {"device memory", "host memory", "copies to the host", "the program", "none found"};
    return (unsigned)l <= LIMIT_NONE ? name[l] : "?";
}

typedef struct Probe {       // one length
    int64_t seq, nbytes;     // nbytes 0: it cannot be compiled, for the reason in `why`
    const char *why;
} Probe;

typedef struct Search {      // one number of ranks
    const CompileOptions *o;
    const Archive *ar;
    Arena *a;                // texts
    Longest *out;
    Probe lo, hi;            // the longest that fits, the shortest that does not; seq 0: none yet
    Probe at[2];             // the last two with bytes, for the secant
    int nat;
} Search;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Lengths are multiples of this power of two: one to two percent.
static int64_t step_of(int64_t seq) {
    int64_t step = 1;
    while (step * 100 <= seq) step *= 2;
    return step;
}

// ---- probes ------------------------------------------------------------------------------------------------------------------
static Probe probe(Search *s, int64_t seq, const CompileOptions *o) {
    CompileOptions with = *o;
    Compiled c = {0};
    Diag d = {0};
    with.import.seq = seq;
    with.nranks = s->out->nranks;
    with.least = true;
    with.memory.quick = true;
    with.sketch = 1;
    Probe p = {.seq = seq};
    if (compile_archive(s->ar, &with, &c, &d) == ST_OK) p.nbytes = plan_device_nbytes(c.plan, compile_device_model(s->o));
    else p.why = arena_strdup(s->a, d.text);
    if (c.graph) {
        s->out->batch = c.graph->batch;
        if (!s->out->program) s->out->program = arena_strdup(s->a, c.graph->name);
    }
    compiled_free(&c);
    s->out->nprobe++;
    return p;
}

static bool fits(const Search *s, const Probe *p) { return p->nbytes > 0 && p->nbytes <= s->o->memory.budget_nbytes; }

// The plan of least memory sends to the host whatever it can: where that is full, a plan that aims at the budget may still fit.
static Probe probe_budget(Search *s, const Probe *least) {
    CompileOptions with = *s->o;
    Compiled c = {0};
    Diag d = {0};
    Probe p = *least;
    with.import.seq = least->seq;
    with.nranks = s->out->nranks;
    with.sketch = 1;
    if (compile_archive(s->ar, &with, &c, &d) == ST_OK) p.nbytes = plan_device_nbytes(c.plan, compile_device_model(s->o));
    compiled_free(&c);
    s->out->nprobe++;
    return p;
}

static bool look(Search *s, int64_t seq) {
    Probe p = probe(s, seq, s->o);
    if (p.nbytes > 0) {
        s->at[0] = s->at[1];
        s->at[1] = p;
        s->nat++;
    }
    bool near = (double)p.nbytes < 1.4 * (double)s->o->memory.budget_nbytes;
    if (p.nbytes > 0 && !fits(s, &p) && near && s->o->memory.offload) p = probe_budget(s, &p);
    if (fits(s, &p)) s->lo = p;
    else s->hi = p;
    return fits(s, &p);
}

// Where the secant meets the budget; 0 without one.
static int64_t guess(const Search *s) {
    const Probe *p = &s->at[0], *q = &s->at[1];
    if (s->nat < 2 || p->seq == q->seq) return 0;
    double slope = (double)(q->nbytes - p->nbytes) / (double)(q->seq - p->seq);
    if (!(slope > 0)) return LONGEST_SEQ;
    double at = (double)q->seq + (double)(s->o->memory.budget_nbytes - q->nbytes) / slope;
    return at < 1 ? 1 : at > (double)LONGEST_SEQ ? LONGEST_SEQ : (int64_t)at;
}

static int64_t next_seq(const Search *s, bool halve) {
    int64_t lo = s->lo.seq, hi = s->hi.seq, step = step_of(lo), next = guess(s);
    if (hi == 0) next = next ? min_i64(max_i64(next, lo + step), lo * 64) : lo * 16;
    else if (next == 0 || halve || s->hi.nbytes == 0) next = (lo + hi) / 2;
    if (hi > 0) next = min_i64(max_i64(next, lo + step), hi - 1);
    next = min_i64(next, LONGEST_SEQ);
    return max_i64(next / step_of(next) * step_of(next), min_i64(lo + step, LONGEST_SEQ));
}

// Some length that fits, to begin with. Programs may allow short ones only.
static bool begin(Search *s) {
    int64_t first = FIRST_SEQ, shortest = max_i64(SHORTEST_SEQ, s->out->nranks);
    while (first < 4 * (int64_t)s->out->nranks) first *= 2;
    if (look(s, first)) return true;
    if (s->hi.nbytes > 0) {
        if (look(s, shortest)) return true;
    } else {
        for (int64_t seq = first / 2; seq >= 1 && s->hi.nbytes == 0; seq /= 2)
            if (look(s, seq)) return true;
    }
    s->out->shortest = s->hi.seq;
    s->out->least_nbytes = s->hi.nbytes;
    s->out->why = s->hi.why;
    return false;
}

static void narrow(Search *s) {
    int64_t width = INT64_MAX;
    for (int k = 0; k < MOST_STEPS; k++) {
        if (s->lo.seq >= LONGEST_SEQ) return;
        if (s->hi.seq > 0 && s->hi.seq - s->lo.seq <= step_of(s->lo.seq)) return;
        int64_t before = s->hi.seq ? s->hi.seq - s->lo.seq : INT64_MAX;
        bool halve = k % 3 == 2 && before > width / 4;  // the line is not straight here
        if (k % 3 == 2) width = before;
        look(s, next_seq(s, halve));
    }
}

// A search over plans is no ruler: a length a little beyond one that did not fit may fit after all.
static void look_beyond(Search *s) {
    static const double beyond[] = {1.07, 1.2};
    for (int k = 0; k < 2 && s->hi.nbytes > 0; k++) {
        Probe lo = s->lo, hi = s->hi;
        int64_t seq = (int64_t)((double)lo.seq * beyond[k]);
        if (seq <= hi.seq || seq > LONGEST_SEQ) continue;
        if (look(s, seq / step_of(seq) * step_of(seq))) {
            s->hi = (Probe){0};
            narrow(s);
            k = -1;
        } else {
            s->lo = lo;
            s->hi = hi;
        }
    }
}

// ---- what limits, and the answer -------------------------------------------------------------------------------------------
static LongestLimit find_limit(Search *s) {
    if (s->hi.seq == 0) return LIMIT_NONE;
    if (s->hi.nbytes == 0) {
        s->out->why = s->hi.why;
        return LIMIT_PROGRAM;
    }
    if (!s->o->memory.offload) return LIMIT_DEVICE;
    CompileOptions with = *s->o;
    with.memory.host_nbytes = INT64_MAX;
    Probe p = probe(s, s->hi.seq, &with);
    if (fits(s, &p)) return LIMIT_HOST;
    DeviceModel fast = *compile_device_model(s->o);
    fast.to_host_bandwidth = fast.from_host_bandwidth = 1e18;
    with.device = &fast;
    p = probe(s, s->hi.seq, &with);
    return fits(s, &p) ? LIMIT_COPIES : LIMIT_DEVICE;
}

static const char *strategies_text(Arena *a, const ShardReport *r) {
    Str s = {0};
    for (int64_t i = 0; i < r->attention.len; i++) {
        const char *name = r->attention.data[i].strategy;
        int64_t n = 0;
        bool known = false;
        for (int64_t k = 0; k < r->attention.len; k++) {
            bool same = !strcmp(r->attention.data[k].strategy, name);
            n += same;
            known |= same && k < i;
        }
        if (known) continue;
        str_printf(&s, "%s%s", s.len ? ", " : "", name);
        if (n < r->attention.len) str_printf(&s, " x %lld", (long long)n);
    }
    const char *text = arena_strdup(a, s.len ? str_text(&s) : "none");
    str_free(&s);
    return text;
}

static void describe(Search *s, const Compiled *c) {
    Longest *x = s->out;
    const Plan *p = c->plan;
    const RankPlan *slow = &p->rank[plan_slowest(p)];
    double by_kind[TIME_KINDS];
    plan_time(p, slow, by_kind);
    x->step_seconds = plan_step_seconds(c);
    x->attention_seconds = by_kind[TIME_ATTENTION];
    x->tokens_per_second = x->step_seconds > 0 ? (double)(c->graph->seq * c->graph->batch) / x->step_seconds : 0;
    x->device_nbytes = plan_device_nbytes(p, compile_device_model(s->o));
    x->host_nbytes = plan_host_nbytes(c);
    x->choice = c->memory;
    x->strategies = strategies_text(s->a, &c->shard);
    x->all_ranks = p->nmade == p->nranks;
}

// As `plan --seq` does it. A little back where that comes to no plan.
static void settle(Search *s) {
    CompileOptions with = *s->o;
    with.nranks = s->out->nranks;
    with.sketch = SKETCH_RANKS;
    for (int k = 0; k < MOST_BACK && s->lo.seq > 0; k++) {
        Compiled c = {0};
        Diag d = {0};
        with.import.seq = s->lo.seq;
        Status st = compile_archive(s->ar, &with, &c, &d);
        if (st == ST_OK) {
            describe(s, &c);
            s->out->seq = s->lo.seq;
        } else {
            s->out->why = arena_strdup(s->a, d.text);
            s->hi = s->lo;
            s->lo.seq -= step_of(s->lo.seq);
        }
        compiled_free(&c);
        if (st == ST_OK) return;
    }
    s->out->shortest = s->hi.seq;
}

static void find_row(const CompileOptions *o, const Archive *ar, Arena *a, Longest *out) {
    double start = now();
    Search s = {.o = o, .ar = ar, .a = a, .out = out};
    out->budget_nbytes = o->memory.budget_nbytes;
    if (begin(&s)) {
        narrow(&s);
        look_beyond(&s);
        out->limit = find_limit(&s);
        settle(&s);
        out->next = s.hi.seq;
    }
    out->seconds = now() - start;
}

// ---- rows side by side -----------------------------------------------------------------------------------------------------
typedef struct Rows {
    const CompileOptions *o;
    int n, next;
    Longest *out;
    pthread_mutex_t lock;
} Rows;
typedef struct Worker {      // with an archive of its own
    Rows *rows;
    Arena *a;
    pthread_t thread;
    Status status;
    Diag d;
} Worker;

// The most ranks take longest: they go first.
static int take_row(Rows *r) {
    pthread_mutex_lock(&r->lock);
    int k = r->next < r->n ? r->next++ : -1;
    pthread_mutex_unlock(&r->lock);
    return k < 0 ? k : r->n - 1 - k;
}

static void *work(void *arg) {
    Worker *w = arg;
    ImportReport report = {0};
    Archive *ar;
    w->status = import_open(w->a, w->rows->o->path, &w->rows->o->import, &ar, &report, &w->d);
    for (int k; w->status == ST_OK && (k = take_row(w->rows)) >= 0;) find_row(w->rows->o, ar, w->a, &w->rows->out[k]);
    vec_free(&report.missing);
    vec_free(&report.leftover);
    vec_free(&report.notes);
    return NULL;
}

Status longest_find(Arena *a, const CompileOptions *o, int n, const int *rank, Longest *out, Diag *d) {
    if (o->memory.budget_nbytes <= 0)
        return diag_error(d, ST_INPUT, "the longest context is asked for, but how much memory there is is not known: give --budget");
    enum { MOST_WORKERS = 8 };
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int nworker = (int)min_i64(min_i64(n, cpus < 1 ? 1 : cpus), MOST_WORKERS);
    Rows rows = {.o = o, .n = n, .out = out, .lock = PTHREAD_MUTEX_INITIALIZER};
    Worker worker[MOST_WORKERS] = {0};
    for (int i = 0; i < n; i++) out[i] = (Longest){.nranks = rank[i]};
    for (int i = 0; i < nworker; i++) {
        worker[i].rows = &rows;
        worker[i].a = arena_new();
        CHECK(worker[i].a != NULL, "out of memory");
    }
    for (int i = 1; i < nworker; i++)
        if (pthread_create(&worker[i].thread, NULL, work, &worker[i])) nworker = i;
    work(&worker[0]);
    for (int i = 1; i < nworker; i++) pthread_join(worker[i].thread, NULL);
    for (int i = 0; i < n; i++) {
        out[i].program = out[i].program ? arena_strdup(a, out[i].program) : o->path;
        if (out[i].why) out[i].why = arena_strdup(a, out[i].why);
        if (out[i].strategies) out[i].strategies = arena_strdup(a, out[i].strategies);
    }
    Status st = ST_OK;
    for (int i = 0; i < MOST_WORKERS; i++) {
        if (st == ST_OK && worker[i].status != ST_OK) {
            st = worker[i].status;
            *d = worker[i].d;
        }
        arena_free(worker[i].a);
    }
    return st;
}
