#include "train/profile.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "ops/op.h"

typedef struct Kind {        // steps that are reported together
    OpKind op;
    Phase phase;
    bool exchange;
    int64_t count;
    double seconds, flops, nbytes;
} Kind;
enum { MAX_KINDS = 256 };

static bool is_compute(OpKind op) {
    return op == OP_DOT || op == OP_EXPERT_MATMUL || op == OP_EXPERT_MATMUL_GRAD || op == OP_ATTENTION ||
           op == OP_ATTENTION_GRAD || op == OP_HEAD || op == OP_HEAD_FWD || op == OP_HEAD_GRAD;
}

static Kind *find_kind(Kind *k, int *n, OpKind op, Phase phase, bool exchange) {
    for (int i = 0; i < *n; i++)
        if (k[i].op == op && k[i].phase == phase && k[i].exchange == exchange) return &k[i];
    if (*n == MAX_KINDS) return &k[MAX_KINDS - 1];
    k[*n] = (Kind){.op = op, .phase = phase, .exchange = exchange};
    return &k[(*n)++];
}

static int collect(const Plan *p, int rank, const double *seconds, Kind *kind) {
    const RankPlan *r = &p->rank[rank];
    int n = 0;
    for (int i = 0; i < r->nstep; i++) {
        const Step *s = &r->step[i];
        const Node *node = graph_node(p->graph, s->node);
        bool exchange = s->kind == STEP_EXCHANGE;
        Kind *k = find_kind(kind, &n, node->op, node->phase, exchange);
        Cost c = {0};
        if (!exchange && op_info(node->op)->cost) op_info(node->op)->cost(node, s->in, s->out, &c);
        for (int j = 0; exchange && j < p->nranks; j++) c.nbytes += (double)s->exchange->send_nbytes[j];
        k->count++;
        k->seconds += seconds[i];
        k->flops += c.flops;
        k->nbytes += c.nbytes;
    }
    return n;
}

static int slowest_first(const void *a, const void *b) {
    double x = ((const Kind *)a)->seconds, y = ((const Kind *)b)->seconds;
    return x > y ? -1 : x < y;
}

static void print_kind(FILE *f, const Kind *k, const DeviceModel *m, double total) {
    char name[64];
    snprintf(name, sizeof name, "%s %s", k->exchange ? "exchange" : op_name(k->op), phase_name(k->phase));
    fprintf(f, "  %-28s %6lld %11.3f ms %6.1f %%", name, (long long)k->count, 1e3 * k->seconds, 100 * k->seconds / total);
    bool attention = k->op == OP_ATTENTION || k->op == OP_ATTENTION_GRAD;
    if (k->seconds <= 0) fprintf(f, "\n");
    else if (is_compute(k->op) && !k->exchange)
        fprintf(f, "  %8.1f TFLOP/s  of %6.1f\n", k->flops / k->seconds / 1e12,
                (attention ? m->attention_flops : m->matmul_flops) / 1e12);
    else
        fprintf(f, "  %8.1f GB/s     of %6.1f\n", k->nbytes / k->seconds / 1e9,
                (k->exchange ? m->link_bandwidth : m->mem_bandwidth) / 1e9);
}

void profile_print(FILE *f, const Plan *p, const DeviceModel *m, int rank, const double *seconds, double wall_s) {
    Kind kind[MAX_KINDS];
    int n = collect(p, rank, seconds, kind);
    qsort(kind, (size_t)n, sizeof *kind, slowest_first);
    double total = 0;
    for (int i = 0; i < n; i++) total += kind[i].seconds;
    fprintf(f, "\nprofile of one step, rank %d of %d (rates: achieved, and what the model of %s expects)\n", rank, p->nranks,
            m->name);
    fprintf(f, "  %-28s %6s %14s %8s\n", "kernels", "number", "time", "share");
    for (int i = 0; i < n; i++) print_kind(f, &kind[i], m, total);
    fprintf(f, "  %-28s %6d %11.3f ms\n", "all", p->rank[rank].nstep, 1e3 * total);
    if (isfinite(wall_s)) fprintf(f, "  a step without marks takes %.3f ms\n", 1e3 * wall_s);
}

static char *shapes_text(Arena *a, const Step *s) {
    Str t = {0};
    for (int k = 0; k < s->nin + s->nout; k++) {
        const Operand *o = k < s->nin ? &s->in[k] : &s->out[k - s->nin];
        str_printf(&t, "%s%s[", k == 0 ? "" : k == s->nin ? " -> " : ", ", dtype_name(o->dtype));
        for (int i = 0; i < o->ndim; i++) str_printf(&t, i ? ",%lld" : "%lld", (long long)o->dim[i]);
        str_add(&t, "]");
    }
    char *text = arena_strdup(a, str_text(&t));
    str_free(&t);
    return text;
}

static void add_events(json_t *events, const Plan *p, int rank, const double *seconds, Arena *a) {
    double at = 0;
    for (int i = 0; i < p->rank[rank].nstep; i++) {
        const Step *s = &p->rank[rank].step[i];
        const Node *n = graph_node(p->graph, s->node);
        const char *name = s->kind == STEP_EXCHANGE && n->note ? n->note : op_name(n->op);
        json_array_append_new(
            events, json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:{s:s, s:s}}", "name", name, "cat", phase_name(n->phase),
                              "ph", "X", "pid", 0, "tid", rank, "ts", at * 1e6, "dur", seconds[i] * 1e6, "args", "shapes",
                              shapes_text(a, s), "source", n->source ? n->source : ""));
        at += seconds[i];
    }
}

Status profile_write_trace(const char *path, const Plan *p, const double *const *seconds, Diag *d) {
    Arena *a = arena_new();
    json_t *events = json_array(), *top = json_object();
    for (int r = 0; r < p->nranks; r++) add_events(events, p, r, seconds[r], a);
    json_object_set_new(top, "traceEvents", events);
    errno = 0;
    int bad = json_dump_file(top, path, JSON_COMPACT);
    json_decref(top);
    arena_free(a);
    return bad ? diag_error(d, ST_IO, "%s: cannot write the trace: %s", path, errno ? strerror(errno) : "out of memory") : ST_OK;
}
