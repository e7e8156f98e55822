#include "train/profile.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "ops/op.h"

static bool is_compute(OpKind op) {
    return op == OP_DOT || op == OP_EXPERT_MATMUL || op == OP_EXPERT_MATMUL_GRAD || op == OP_ATTENTION ||
           op == OP_ATTENTION_GRAD || op == OP_HEAD || op == OP_HEAD_FWD || op == OP_HEAD_GRAD;
}

static bool is_copy(OpKind op) { return op == OP_OFFLOAD || op == OP_OFFLOAD_DONE || op == OP_FETCH || op == OP_FETCH_DONE; }

static void print_group(FILE *f, const StepGroup *k, double total) {
    char name[STEP_GROUP_NAME];
    fprintf(f, "  %-28s %6lld %11.3f ms %6.1f %% %11.3f ms", step_group_name(k, name), (long long)k->count, 1e3 * k->seconds,
            100 * k->seconds / total, 1e3 * k->predicted);
    if (k->seconds <= 0) {
        fprintf(f, "\n");
        return;
    }
    fprintf(f, " %+6.1f %%", 100 * (k->predicted / k->seconds - 1));
    if (is_copy(k->op) && !k->exchange) fprintf(f, "\n");  // the kernels' time, not the copies'
    else if (is_compute(k->op) && !k->exchange) fprintf(f, "  %8.1f TFLOP/s\n", k->flops / k->seconds / 1e12);
    else fprintf(f, "  %8.1f GB/s\n", k->nbytes / k->seconds / 1e9);
}

// One direction's copies, and how long the kernels waited for them.
static void print_copies(FILE *f, const RankPlan *r, const StepTimes *t, StepKind start, const char *text) {
    double nbytes = 0, busy = 0, stalls = 0;
    int n = 0;
    for (int i = 0; i < r->nstep; i++) {
        const Step *s = &r->step[i];
        if (s->kind == start + 1) stalls += t->seconds[i];  // the wait for such a copy
        if (s->kind != start) continue;
        n++;
        nbytes += operand_nbytes(&s->in[0]);
        busy += t->copies[2 * s->copy + 1] - t->copies[2 * s->copy];
    }
    if (n == 0) return;
    fprintf(f, "  %-28s %6d %11.3f ms  %.3f GB", text, n, 1e3 * busy, nbytes / 1e9);
    if (busy > 0) fprintf(f, " at %.1f GB/s", nbytes / busy / 1e9);
    fprintf(f, "; stalls: kernels waited %.3f ms\n", 1e3 * stalls);
}

void profile_print(FILE *f, const Plan *p, const DeviceModel *m, int rank, const StepTimes *times, double wall_s) {
    StepGroup group[STEP_GROUPS];
    int n = plan_groups(p, rank, times->seconds, group);
    double total = 0, predicted = 0;
    for (int i = 0; i < n; i++) total += group[i].seconds, predicted += group[i].predicted;
    fprintf(f, "\nprofile of one step, rank %d of %d; predicted by the device model %s (%s)\n", rank, p->nranks, m->name,
            m->source);
    fprintf(f, "  %-28s %6s %14s %8s %14s %8s  %s\n", "kernels", "number", "time", "share", "predicted", "off by", "achieved");
    for (int i = 0; i < n; i++) print_group(f, &group[i], total);
    fprintf(f, "  %-28s %6d %11.3f ms %8s %11.3f ms %+6.1f %%\n", "all", p->rank[rank].nstep, 1e3 * total, "", 1e3 * predicted,
            total > 0 ? 100 * (predicted / total - 1) : 0);
    print_copies(f, &p->rank[rank], times, STEP_OFFLOAD, "copies to host memory");
    print_copies(f, &p->rank[rank], times, STEP_FETCH, "copies from host memory");
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

enum { TRACK_KERNELS, TRACK_TO_HOST, TRACK_TO_DEVICE };

static void add_event(json_t *events, const Plan *p, int rank, const Step *s, int track, double begin, double end, Arena *a) {
    const Node *n = graph_node(p->graph, s->node);
    const char *name = s->kind == STEP_EXCHANGE && n->note ? n->note : op_name(n->op);
    if (track == TRACK_KERNELS && step_is_wait(s->kind)) name = s->kind == STEP_OFFLOAD_DONE ? "stall: offload_done" : "stall: fetch_done";
    json_array_append_new(
        events, json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:{s:s, s:s}}", "name", name, "cat", phase_name(n->phase),
                          "ph", "X", "pid", rank, "tid", track, "ts", begin * 1e6, "dur", (end - begin) * 1e6, "args", "shapes",
                          shapes_text(a, s), "source", n->source ? n->source : ""));
}

static void name_track(json_t *events, int rank, int track, const char *name) {
    json_array_append_new(events, json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name", "thread_name", "ph", "M", "pid", rank, "tid", track,
                                            "args", "name", name));
}

static void add_events(json_t *events, const Plan *p, int rank, const StepTimes *t, Arena *a) {
    const RankPlan *r = &p->rank[rank];
    json_array_append_new(events, json_pack("{s:s, s:s, s:i, s:{s:o}}", "name", "process_name", "ph", "M", "pid", rank, "args", "name",
                                            json_sprintf("rank %d", rank)));
    name_track(events, rank, TRACK_KERNELS, "kernels");
    if (r->ncopy > 0) name_track(events, rank, TRACK_TO_HOST, "copies to host memory");
    if (r->ncopy > 0) name_track(events, rank, TRACK_TO_DEVICE, "copies from host memory");
    double at = 0;
    for (int i = 0; i < r->nstep; i++) {
        const Step *s = &r->step[i];
        int track = s->kind == STEP_OFFLOAD ? TRACK_TO_HOST : TRACK_TO_DEVICE;
        if (step_is_copy(s->kind)) add_event(events, p, rank, s, track, t->copies[2 * s->copy], t->copies[2 * s->copy + 1], a);
        else add_event(events, p, rank, s, TRACK_KERNELS, at, at + t->seconds[i], a);
        at += t->seconds[i];
    }
}

Status profile_write_trace(const char *path, const Plan *p, const StepTimes *times, Diag *d) {
    Arena *a = arena_new();
    json_t *events = json_array(), *top = json_object();
    for (int r = 0; r < p->nranks; r++) add_events(events, p, r, &times[r], a);
    json_object_set_new(top, "traceEvents", events);
    errno = 0;
    int bad = json_dump_file(top, path, JSON_COMPACT);
    json_decref(top);
    arena_free(a);
    return bad ? diag_error(d, ST_IO, "%s: cannot write the trace: %s", path, errno ? strerror(errno) : "out of memory") : ST_OK;
}
