// Drawings are SVG over COLUMNS columns of the step's time: in each the step that holds the most bytes is shown, so no peak is lost, and the
// kind of kernel that takes most of it. A tiled step has tens of thousands of kernels; the page stays small.
#include "driver/html.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "driver/explain.h"

enum { COLUMNS = 800, WIDTH = 960, LEFT = 70, HEIGHT = 260, ROW = 26 };

static const char style[] =
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;background:#fff;color:#1c1e21}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;width:100%;font-size:.92em}"
    "td,th{text-align:left;vertical-align:top;padding:.3em .6em;border-bottom:1px solid #8884}td.n{text-align:right;white-space:nowrap}"
    "svg{width:100%;height:auto}svg text{font-size:12px;fill:currentColor}.key span{display:inline-block;margin-right:1.2em}"
    ".key i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}.grid{stroke:#8886}.budget{stroke:#d33;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}}";
static const char *const kind_colour[BUF_KIND_COUNT] = {"#4e79a7", "#76b7b2", "#9c755f", "#bab0ac", "#f28e2b",
                                                        "#59a14f", "#edc948", "#b07aa1", "#e15759", "#8cd17d"};
static const char *const time_colour[TIME_KINDS] = {"#4e79a7", "#e15759", "#59a14f", "#edc948", "#b07aa1", "#76b7b2", "#222"};

typedef struct Page {
    const Compiled *c;
    const RankPlan *r;
    Arena *a;
    Str s;
    double *start, total;    // [nstep + 1] when each step begins
} Page;

static void text(Page *p, const char *t) {
    for (; t && *t; t++) {
        if (*t == '<') str_add(&p->s, "&lt;");
        else if (*t == '>') str_add(&p->s, "&gt;");
        else if (*t == '&') str_add(&p->s, "&amp;");
        else if (*t == '"') str_add(&p->s, "&quot;");
        else str_printf(&p->s, "%c", *t);
    }
}

static double x_of(const Page *p, double t) { return LEFT + (WIDTH - LEFT) * (p->total > 0 ? t / p->total : 0); }
static int column_of(const Page *p, double t) {
    int k = p->total > 0 ? (int)(t / p->total * COLUMNS) : 0;
    return k < 0 ? 0 : k >= COLUMNS ? COLUMNS - 1 : k;
}

static void key(Page *p, int n, const char *const *colour, const char *(*name)(int), const bool *shown) {
    str_add(&p->s, "<p class=key>");
    for (int k = 0; k < n; k++)
        if (shown[k]) str_printf(&p->s, "<span><i style=\"background:%s\"></i>%s</span>", colour[k], name(k));
    str_add(&p->s, "</p>\n");
}
static const char *kind_name(int k) { return buffer_kind_name((BufferKind)k); }
static const char *time_name(int k) { return time_kind_name((TimeKind)k); }

// ---- memory --------------------------------------------------------------------------------------------------------------------
// live[column][kind] of the device's or the host's arena, where their sum is largest within the column.
static double *sample_memory(Page *p, bool host) {
    const RankPlan *r = p->r;
    double *delta = ARENA_ARRAY(p->a, double, (int64_t)(r->nstep + 1) * BUF_KIND_COUNT), *out = ARENA_ARRAY(p->a, double, COLUMNS * BUF_KIND_COUNT);
    double live[BUF_KIND_COUNT] = {0}, *best = ARENA_ARRAY(p->a, double, COLUMNS);
    for (int i = 0; i < r->nbuffer; i++) {
        const Buffer *b = &r->buffer[i];
        if (b->host != host) continue;
        double nbytes = (double)round_up(b->nbytes, BUFFER_ALIGN);
        delta[(int64_t)b->first * BUF_KIND_COUNT + b->kind] += nbytes;
        delta[(int64_t)(b->last + 1) * BUF_KIND_COUNT + b->kind] -= nbytes;
    }
    for (int k = 0; k < COLUMNS; k++) best[k] = -1;
    for (int i = 0; i < r->nstep; i++) {
        double sum = 0;
        for (int k = 0; k < BUF_KIND_COUNT; k++) sum += live[k] += delta[(int64_t)i * BUF_KIND_COUNT + k];
        int to = column_of(p, p->start[i + 1]);
        for (int col = column_of(p, p->start[i]); col <= to; col++) {
            if (sum <= best[col]) continue;
            best[col] = sum;
            memcpy(&out[col * BUF_KIND_COUNT], live, sizeof live);
        }
    }
    return out;
}

static void draw_memory(Page *p, const char *title, bool host, double limit) {
    double *live = sample_memory(p, host), most = limit;
    bool shown[BUF_KIND_COUNT] = {0};
    for (int col = 0; col < COLUMNS; col++) {
        double sum = 0;
        for (int k = 0; k < BUF_KIND_COUNT; k++) {
            sum += live[col * BUF_KIND_COUNT + k];
            shown[k] |= live[col * BUF_KIND_COUNT + k] > 0;
        }
        most = sum > most ? sum : most;
    }
    if (most <= 0) return;
    str_printf(&p->s, "<h2>%s</h2>\n<svg viewBox=\"0 0 %d %d\" role=img>\n", title, WIDTH, HEIGHT + 24);
    double *base = ARENA_ARRAY(p->a, double, COLUMNS);
    for (int k = 0; k < BUF_KIND_COUNT; k++) {
        if (!shown[k]) continue;
        str_printf(&p->s, "<path fill=\"%s\" d=\"M", kind_colour[k]);
        for (int col = 0; col < COLUMNS; col++) {
            double y = HEIGHT - (base[col] + live[col * BUF_KIND_COUNT + k]) / most * (HEIGHT - 10);
            double x = LEFT + (double)(WIDTH - LEFT) * col / COLUMNS, w = (double)(WIDTH - LEFT) / COLUMNS;
            str_printf(&p->s, "%.1f %.1fL%.1f %.1fL", x, y, x + w, y);
        }
        for (int col = COLUMNS - 1; col >= 0; col--) {
            double x = LEFT + (double)(WIDTH - LEFT) * col / COLUMNS, w = (double)(WIDTH - LEFT) / COLUMNS, y = HEIGHT - base[col] / most * (HEIGHT - 10);
            str_printf(&p->s, "%.1f %.1fL%.1f %.1f%s", x + w, y, x, y, col ? "L" : "Z");
        }
        str_printf(&p->s, "\"><title>%s</title></path>\n", kind_name(k));
        for (int col = 0; col < COLUMNS; col++) base[col] += live[col * BUF_KIND_COUNT + k];
    }
    for (int g = 0; g <= 4; g++) {
        double y = HEIGHT - g / 4.0 * (HEIGHT - 10);
        str_printf(&p->s, "<line class=grid x1=%d x2=%d y1=%.1f y2=%.1f /><text x=0 y=%.1f>%s</text>\n", LEFT, WIDTH, y, y, y + 4, bytes_text(most * g / 4).s);
    }
    if (limit > 0) {
        double y = HEIGHT - limit / most * (HEIGHT - 10);
        str_printf(&p->s, "<line class=budget x1=%d x2=%d y1=%.1f y2=%.1f><title>budget %s</title></line>\n", LEFT, WIDTH, y, y, bytes_text(limit).s);
    }
    str_printf(&p->s, "<text x=%d y=%d>0 s</text><text x=%d y=%d text-anchor=end>%.4g s</text></svg>\n", LEFT, HEIGHT + 18, WIDTH, HEIGHT + 18, p->total);
    key(p, BUF_KIND_COUNT, kind_colour, kind_name, shown);
}

// ---- streams -------------------------------------------------------------------------------------------------------------------
static void bar(Page *p, int row, double begin, double end, const char *colour, const char *title) {
    double x = x_of(p, begin), w = x_of(p, end) - x;
    str_printf(&p->s, "<rect x=%.2f y=%d width=%.2f height=%d fill=\"%s\"><title>%s</title></rect>\n", x, row * ROW + 4, w < 0.4 ? 0.4 : w, ROW - 8,
               colour, title);
}

// The kind that takes most of each column; neighbours of one kind are one bar.
static void draw_kernels(Page *p, bool *shown) {
    double *share = ARENA_ARRAY(p->a, double, COLUMNS * TIME_KINDS), width = p->total / COLUMNS;
    for (int i = 0; i < p->r->nstep; i++) {
        TimeKind k = step_time_kind(p->c->graph, &p->r->step[i]);
        if (p->start[i + 1] <= p->start[i]) continue;
        int to = column_of(p, p->start[i + 1]);
        for (int col = column_of(p, p->start[i]); col <= to; col++) {
            double begin = col * width > p->start[i] ? col * width : p->start[i], end = (col + 1) * width < p->start[i + 1] ? (col + 1) * width : p->start[i + 1];
            if (end > begin) share[col * TIME_KINDS + k] += end - begin;
        }
    }
    int since = 0, last = -1;
    for (int col = 0; col <= COLUMNS; col++) {
        int best = -1;
        for (int k = 0; col < COLUMNS && k < TIME_KINDS; k++)
            if (share[col * TIME_KINDS + k] > (best < 0 ? 0 : share[col * TIME_KINDS + best])) best = k;
        if (best == last && col < COLUMNS) continue;
        if (last >= 0) bar(p, 0, since * width, col * width, time_colour[last], time_name(last)), shown[last] = true;
        since = col;
        last = best;
    }
}

// Copies one after the other over the link, as the plan reckons them (plan/rank.c); those closer than a column are one bar.
static void draw_copies(Page *p, bool back) {
    const DeviceModel *m = p->c->device;
    double rate = back ? m->from_host_bandwidth : m->to_host_bandwidth, link = 0, begin = -1, end = -1, nbytes = 0;
    StepKind want = back ? STEP_FETCH : STEP_OFFLOAD;
    for (int i = 0; i <= p->r->nstep; i++) {
        bool copy = i < p->r->nstep && p->r->step[i].kind == want && rate > 0;
        if (i < p->r->nstep && !copy) continue;
        double from = copy ? (link > p->start[i] ? link : p->start[i]) : INFINITY, n = copy ? operand_nbytes(&p->r->step[i].in[0]) : 0;
        if (begin >= 0 && from > end + p->total / COLUMNS) {
            bar(p, back ? 2 : 1, begin, end, back ? "#f28e2b" : "#59a14f", arena_printf(p->a, "%s in %.4g s", bytes_text(nbytes).s, end - begin));
            begin = -1;
            nbytes = 0;
        }
        if (!copy) break;
        link = from + n / rate + m->host_latency_s;
        if (begin < 0) begin = from;
        end = link;
        nbytes += n;
    }
}

static void draw_collectives(Page *p) {
    double begin = -1, end = -1;
    for (int i = 0; i <= p->r->nstep; i++) {
        bool is = i < p->r->nstep && step_time_kind(p->c->graph, &p->r->step[i]) == TIME_COLLECTIVE;
        if (i < p->r->nstep && !is) continue;
        if (begin >= 0 && (!is || p->start[i] > end + p->total / COLUMNS)) {
            bar(p, 3, begin, end, time_colour[TIME_COLLECTIVE], "collectives");
            begin = -1;
        }
        if (!is) break;
        if (begin < 0) begin = p->start[i];
        end = p->start[i + 1];
    }
}

static void draw_streams(Page *p) {
    static const char *const row[] = {"kernels", "to host", "from host", "collectives"};
    bool shown[TIME_KINDS] = {0};
    str_printf(&p->s, "<h2>The step by stream (predicted)</h2>\n<svg viewBox=\"0 0 %d %d\" role=img>\n", WIDTH, 4 * ROW + 20);
    for (int k = 0; k < 4; k++) str_printf(&p->s, "<text x=0 y=%d>%s</text>\n", k * ROW + 18, row[k]);
    draw_kernels(p, shown);
    draw_copies(p, false);
    draw_copies(p, true);
    draw_collectives(p);
    str_printf(&p->s, "<text x=%d y=%d>0 s</text><text x=%d y=%d text-anchor=end>%.4g s</text></svg>\n", LEFT, 4 * ROW + 16, WIDTH, 4 * ROW + 16, p->total);
    key(p, TIME_KINDS, time_colour, time_name, shown);
}

// ---- tables --------------------------------------------------------------------------------------------------------------------
static void table_of_decisions(Page *p, const Explanation *e) {
    str_add(&p->s, "<h2>What the backward needs</h2>\n<table><tr><th>layers<th>kept<th>on the host<th>computed again</tr>\n");
    for (int i = 0; i < e->nlayer; i++) {
        str_printf(&p->s, "<tr><td>%s", e->layer[i].layers);
        for (int k = 0; k < FATE_COUNT; k++) str_add(&p->s, "<td>"), text(p, e->layer[i].text[k]);
        str_add(&p->s, "</tr>\n");
    }
    str_add(&p->s, "</table>\n<h2>Alive at the peak</h2>\n<table><tr><th>bytes<th>values<th>kind<th>what<th>where</tr>\n");
    for (int i = 0; i < e->nalive && i < 24; i++) {
        const Alive *x = &e->alive[i];
        str_printf(&p->s, "<tr><td class=n>%s<td class=n>%" PRId64 "<td>%s<td>", bytes_text(x->nbytes).s, x->count, buffer_kind_name(x->kind));
        text(p, x->label);
        str_add(&p->s, "<td>");
        text(p, x->source);
        str_add(&p->s, "</tr>\n");
    }
    str_add(&p->s, "</table>\n<h2>Where the time goes</h2>\n<table><tr><th>kind<th>seconds<th>share</tr>\n");
    double total = plan_step_seconds(p->c);
    for (int k = 0; k < TIME_KINDS; k++)
        if (e->seconds[k] > 0)
            str_printf(&p->s, "<tr><td>%s<td class=n>%.4f<td class=n>%.1f %%</tr>\n", time_kind_name((TimeKind)k), e->seconds[k],
                       total > 0 ? 100 * e->seconds[k] / total : 0);
    str_add(&p->s, "</table>\n");
}

static void headline(Page *p) {
    const Compiled *c = p->c;
    const Graph *g = c->graph;
    double seconds = plan_step_seconds(c);
    str_add(&p->s, "<h1>");
    text(p, g->name);
    str_printf(&p->s, ": %" PRId64 " tokens on %d rank%s</h1>\n<p>", g->seq, c->plan->nranks, c->plan->nranks == 1 ? "" : "s");
    text(p, c->device->about);
    str_printf(&p->s, ", batch %" PRId64 ". A step takes %.4g s (predicted), %.0f tokens/s. Rank %d, the fullest: %s on the device", g->batch, seconds,
               seconds > 0 ? (double)(g->seq * g->batch) / seconds : 0, p->r->rank, bytes_text((double)p->r->arena_nbytes).s);
    if (c->options.budget_nbytes > 0) str_printf(&p->s, " of a budget of %s", bytes_text((double)c->options.budget_nbytes).s);
    if (p->r->host_nbytes > 0) str_printf(&p->s, ", %s in host memory", bytes_text((double)p->r->host_nbytes).s);
    if (c->memory.tile_rows > 0) str_printf(&p->s, "; token-wise kernels run over at most %" PRId64 " tokens at a time", c->memory.tile_rows);
    str_add(&p->s, ".</p>\n");
}

Status plan_html(const char *path, const Compiled *c, Diag *d) {
    Page p = {.c = c, .a = arena_new()};
    CHECK(p.a != NULL, "out of memory");
    Explanation e;
    explain(c, p.a, &e);
    p.r = &c->plan->rank[e.rank];
    p.start = ARENA_ARRAY(p.a, double, p.r->nstep + 1);
    for (int i = 0; i < p.r->nstep; i++) p.start[i + 1] = p.start[i] + p.r->step[i].seconds;
    p.total = p.start[p.r->nstep];
    str_printf(&p.s, "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>plan</title><style>%s</style>\n", style);
    headline(&p);
    draw_memory(&p, "Device memory over the step", false, (double)c->options.budget_nbytes);
    draw_memory(&p, "Host memory over the step", true, 0);
    draw_streams(&p);
    table_of_decisions(&p, &e);
    str_add(&p.s, "</html>\n");
    errno = 0;
    FILE *f = fopen(path, "w");
    bool ok = f && fwrite(str_text(&p.s), 1, p.s.len, f) == p.s.len;
    if (f && fclose(f)) ok = false;
    str_free(&p.s);
    arena_free(p.a);
    return ok ? ST_OK : diag_error(d, ST_IO, "%s: cannot write the page: %s", path, errno ? strerror(errno) : "short write");
}
