// Series of kernels at rising sizes. Each round measures the next sizes of every series in one graph, as far as the rates seen
// so far say that they fit the time; so the same list serves a GPU, one CPU core and the emulated device.
#include "driver/calibrate.h"

#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "driver/calibrate_bench.h"
#include "driver/calibrate_series.h"

typedef struct Calibrate {
    const CalibrateOptions *o;
    Arena *a;
    DeviceModel *m;
    Series series[MAX_SERIES];
    int nseries;
    double limit_s;  // of one size of one series
    int64_t memory;  // of one size
    Diag *d;
} Calibrate;

static Bench new_bench(const Calibrate *c, int nranks) {
    int threads = nranks > 1 && c->o->nthreads > 1 ? c->o->nthreads / nranks : c->o->nthreads;
    return (Bench){
        .backend = c->o->backend, .base = c->o->base, .nranks = nranks, .nthreads = threads > 0 ? threads : 1, .d = c->d};
}

// ---- rounds ----------------------------------------------------------------------------------------------------------------
enum { RUNS = BENCH_REPEAT * (BENCH_TIMES + 1), AHEAD = 2 };

// The next size is worth trying: the first always, others by the best rate so far.
static bool affordable(const Calibrate *c, const Series *s, bool first) {
    if (s->next >= s->nsize || series_nbytes(s, s->next) > c->memory) return false;
    if (s->npoint == 0) return first;
    return series_work(s, s->next) / s->best_rate * RUNS <= c->limit_s;
}

static Status one_round(Calibrate *c, bool *more) {
    Bench x = new_bench(c, 1);
    struct {
        int series, size, at;
    } item[MAX_SERIES * AHEAD];
    int n = 0;
    bench_begin(&x);
    for (int i = 0; i < c->nseries; i++)
        for (int k = 0; k < AHEAD && affordable(c, &c->series[i], k == 0); k++) {
            Series *s = &c->series[i];
            item[n].series = i, item[n].size = s->next;
            item[n++].at = series_build(s, s->next, &x);
            s->next += s->step;
        }
    *more = n > 0;
    Status st = n > 0 ? bench_run(&x) : ST_OK;
    for (int j = 0; j < n && st == ST_OK; j++)
        series_take(&c->series[item[j].series], c->a, item[j].size, &x.measure.data[item[j].at]);
    bench_end(&x);
    return st;
}

// ---- what is not a series ---------------------------------------------------------------------------------------------------
static Status small_kernels(Calibrate *c, int n, double *seconds) {
    Bench x = new_bench(c, 1);
    bench_begin(&x);
    ValueId v = bench_random(&x, DT_F32, SHAPE(64));
    for (int i = 0; i < n; i++) v = build_binary(&x.b, OP_ADD, v, v);
    Status st = bench_step(&x, seconds);
    bench_end(&x);
    return st;
}

// What one more small kernel adds to a step.
static Status kernel_latency(Calibrate *c) {
    enum { FEW = 32, MANY = 288 };
    double few, many;
    TRY(small_kernels(c, FEW, &few));
    TRY(small_kernels(c, MANY, &many));
    if (many > few) c->m->kernel_latency_s = (many - few) / (MANY - FEW);
    return ST_OK;
}

// An exchange of so many numbers between two ranks: seconds without the copies beside the link, bytes over the link.
static Status gather(Calibrate *c, int64_t n, double *seconds, double *nbytes) {
    DeviceModel copies = *c->m;
    copies.link_bandwidth = 1e30, copies.link_latency_s = 0;
    Bench x = new_bench(c, 2);
    x.base = &copies;
    bench_begin(&x);
    ValueId v = bench_random(&x, DT_F32, SHAPE(n));
    Placement rows = shard_on(0, layouts_even(x.b.g->layouts, n));
    for (int64_t i = 0; i < x.b.g->values.len; i++)
        if (graph_shape(x.b.g, (ValueId)i)->ndim == 1) graph_value(x.b.g, (ValueId)i)->place = rows;
    bench_node(&x, OP_RESHARD, 1, &v, 0, NULL);  // whole on both: each sends its half
    Status st = bench_run(&x);
    if (st == ST_OK)
        *seconds = fmax(x.measure.data[0].seconds - x.measure.data[0].predicted, 1e-9), *nbytes = x.measure.data[0].nbytes;
    bench_end(&x);
    return st;
}

// Between two ranks: a small exchange is a message round, a large one the link.
static Status links(Calibrate *c, bool *measured) {
    const Backend *b = c->o->backend;
    double small, large, few, many;
    *measured = !b->device || b->device->count() >= 2;
    if (!*measured) return ST_OK;
    TRY(gather(c, 256, &small, &few));
    TRY(gather(c, (b->device ? 256 : 16) << 18, &large, &many));
    if (large > small) c->m->link_bandwidth = (many - few) / (large - small);
    c->m->link_latency_s = small;
    return ST_OK;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Copies to and from host memory, best of three: others may use the host. `read` and `write` wait and take pageable memory; the
// pinned copies of an offloading backend belong here instead as soon as DeviceApi has them, and then into the model.
static Status host_copies(const DeviceApi *api, Device *dev, void *arena, char *host, size_t n, double *to, double *from,
                          Diag *d) {
    *to = *from = 0;
    for (int i = 0; i < 3; i++) {
        double a = now();
        TRY(api->write(dev, arena, host, n, d));
        double b = now();
        TRY(api->read(dev, host, arena, n, d));
        double e = now();
        *from = fmax(*from, (double)n / (b - a));
        *to = fmax(*to, (double)n / (e - b));
    }
    return ST_OK;
}

static Status memory_of(Calibrate *c, double *to_host, double *from_host) {
    const DeviceApi *api = c->o->backend->device;
    double pages = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE);
    c->m->host_mem_nbytes = pages;
    if (!api) return ST_OK;
    enum { COPY = 64 << 20 };
    size_t have, total;
    Device *dev = NULL;
    void *arena;
    TRY(api->open(0, 1, COPY, &dev, &arena, c->d));
    char *host = malloc(COPY);
    Status st = host ? ST_OK : diag_error(c->d, ST_MEMORY, "out of memory");
    if (st == ST_OK) memset(host, 1, COPY);
    if (st == ST_OK) st = host_copies(api, dev, arena, host, COPY, to_host, from_host, c->d);
    if (st == ST_OK) st = api->available(0, &have, &total, c->d);
    free(host);
    api->close(dev);
    TRY(st);
    c->m->mem_nbytes = (double)total;
    c->m->host_mem_nbytes = pages / (api->count() > 0 ? api->count() : 1);
    return ST_OK;
}

// ---- the model -------------------------------------------------------------------------------------------------------------
static void report_points(const Calibrate *c) {
    FILE *f = c->o->report;
    if (!f) return;
    fprintf(f, "%-34s %14s %12s %12s\n", "kernel", "size", "seconds", "rate");
    for (int i = 0; i < c->nseries; i++)
        for (int k = 0; k < c->series[i].npoint; k++) {
            const Point *p = &c->series[i].point[k];
            fprintf(f, "%-34s %14.4g %12.4g %12.4g\n", c->series[i].text, p->size, p->seconds, p->rate);
        }
    const DeviceModel *m = c->m;
    fprintf(f, "kernel latency %.3g us; between ranks %.4g GB/s, a round %.3g us\n", 1e6 * m->kernel_latency_s,
            m->link_bandwidth / 1e9, 1e6 * m->link_latency_s);
}

static const char *date_text(Arena *a) {
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    return arena_printf(a, "%04d-%02d-%02d", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday);
}

static void add_notes(Calibrate *c, bool link, double to, double from, int *n, const char *note[]) {
    const DeviceModel *base = c->o->base;
    note[(*n)++] =
        arena_printf(c->a,
                     "every rate is a median of %d runs, each kernel alone (a long step may run at other clocks); products: "
                     "divided by the part of full waves",
                     BENCH_REPEAT * BENCH_TIMES);
    note[(*n)++] = arena_printf(
        c->a,
        "taken from %s: units, tile, vector_flops, context_nbytes, host latency, efficiencies of ops that are not measured",
        base->name);
    if (!link) note[(*n)++] = arena_printf(c->a, "link: from %s, there is one device", base->name);
    if (to > 0)
        note[(*n)++] =
            arena_printf(c->a, "host link: pinned copies from %s; pageable ones here reach %.3g GB/s to the host, %.3g from it",
                         base->name, to / 1e9, from / 1e9);
}

Status calibrate(Arena *a, const CalibrateOptions *o, DeviceModel *out, int *nnote, const char *note[CALIBRATE_NOTES],
                 Diag *d) {
    Calibrate c = {.o = o, .a = a, .m = out, .d = d, .memory = o->backend->device ? (int64_t)8 << 30 : (int64_t)1 << 28};
    double to = 0, from = 0;
    bool link, more = true;
    *out = *o->base;
    *nnote = 0;
    c.nseries = series_list(o->backend, c.series);
    c.limit_s =
        o->seconds / (1.5 * c.nseries);  // sizes grow fourfold: the smaller ones of a series take a third of the largest
    TRY(memory_of(&c, &to, &from));
    TRY(kernel_latency(&c));
    while (more) TRY(one_round(&c, &more));
    series_rates(c.nseries, c.series, out);
    TRY(links(&c, &link));
    report_points(&c);
    char about[256] = "";
    if (o->backend->device) o->backend->device->about(about, sizeof about);
    out->name = o->name;
    out->measured = true;
    out->runs = NULL;
    out->about = o->backend->device ? arena_strdup(a, about) : arena_printf(a, "CPU, %d threads for each rank", o->nthreads);
    out->source = arena_printf(a, "measured by autosp calibrate, %s", date_text(a));
    out->nmatch = 0;
    add_notes(&c, link, to, from, nnote, note);
    return ST_OK;
}
