// An explanation for people and as JSON.
#include <jansson.h>

#include "driver/explain.h"

static void print_time(FILE *f, const Compiled *c, const Explanation *e) {
    double total = 0;
    for (int k = 0; k < TIME_KINDS; k++) total += e->seconds[k];
    fprintf(f, "\ntime of the step on rank %d, the slowest: %.4f s predicted, %.0f tokens/s\n", c->plan->rank[plan_slowest(c->plan)].rank,
            plan_step_seconds(c), plan_step_seconds(c) > 0 ? (double)(c->graph->seq * c->graph->batch) / plan_step_seconds(c) : 0);
    for (int k = 0; k < TIME_KINDS; k++)
        if (e->seconds[k] > 0) fprintf(f, "  %-24s %10.4f s %6.1f %%\n", time_kind_name((TimeKind)k), e->seconds[k], 100 * e->seconds[k] / total);
}

static void print_alive(FILE *f, const Compiled *c, const Explanation *e, bool every) {
    const RankPlan *r = &c->plan->rank[e->rank];
    const Node *n = r->nstep ? graph_node(c->graph, r->step[r->peak_step].node) : NULL;
    fprintf(f, "\nalive at the peak of rank %d: step %d of %d, %s", r->rank, r->peak_step + 1, r->nstep, n ? op_name(n->op) : "nothing");
    if (n) fprintf(f, " (%s)", phase_name(n->phase));
    if (n && n->source) fprintf(f, " at %s", n->source);
    fprintf(f, "\n");
    for (int i = 0; i < e->nalive && (every || i < 12); i++) {
        const Alive *x = &e->alive[i];
        fprintf(f, "  %11s %6lld x %-18s %s%s%s\n", bytes_text(x->nbytes).s, (long long)x->count, buffer_kind_name(x->kind), x->label,
                x->source ? "; " : "", x->source ? x->source : "");
    }
    if (!every && e->nalive > 12) fprintf(f, "  ... and %d more (--all lists them)\n", e->nalive - 12);
}

static void print_decisions(FILE *f, const Explanation *e, bool every) {
    bool choice = false;
    for (int i = 0; i < e->nfate; i++) choice |= e->fate[i].fate != FATE_KEPT;
    if (!choice && !every) return;  // everything is kept: nothing was decided
    for (int i = 0; i < e->nlayer; i++) {
        const LayerGroup *g = &e->layer[i];
        bool one = !strpbrk(g->layers, "-,");
        fprintf(f, "  layer%s %s\n", one ? "" : "s", g->layers);
        for (int k = 0; k < FATE_COUNT; k++)
            if (g->text[k]) fprintf(f, "    %-15s %s\n", fate_name((Fate)k), g->text[k]);
    }
}

void explain_text(FILE *f, const Compiled *c, const Explanation *e, bool every) {
    print_alive(f, c, e, every);
    fprintf(f, "\nwhat the backward needs\n");
    print_decisions(f, e, every);
    double nbytes[FATE_COUNT] = {0}, seconds[FATE_COUNT] = {0};
    int64_t count[FATE_COUNT] = {0};
    for (int i = 0; i < e->nfate; i++) {
        nbytes[e->fate[i].fate] += e->fate[i].nbytes;
        seconds[e->fate[i].fate] += e->fate[i].seconds;
        count[e->fate[i].fate] += e->fate[i].count;
    }
    for (int k = 0; k < FATE_COUNT; k++) {
        if (!count[k]) continue;
        fprintf(f, "  %-15s %6lld values, %s", fate_name((Fate)k), (long long)count[k], bytes_text(nbytes[k]).s);
        if (seconds[k] > 0) fprintf(f, ", %.4f s", seconds[k]);
        fprintf(f, "\n");
    }
    print_time(f, c, e);
}

// ---- JSON ----------------------------------------------------------------------------------------------------------------------
static json_t *alive_json(const Compiled *c, const Explanation *e) {
    const RankPlan *r = &c->plan->rank[e->rank];
    json_t *list = json_array();
    for (int i = 0; i < e->nalive; i++) {
        const Alive *x = &e->alive[i];
        json_array_append_new(list, json_pack("{s:s, s:s?, s:s, s:I, s:f}", "what", x->label, "source", x->source, "kind", buffer_kind_name(x->kind),
                                              "count", (json_int_t)x->count, "nbytes", x->nbytes));
    }
    const Node *n = r->nstep ? graph_node(c->graph, r->step[r->peak_step].node) : NULL;
    return json_pack("{s:i, s:i, s:s?, s:s?, s:o}", "rank", r->rank, "step", r->peak_step, "op", n ? op_name(n->op) : NULL, "source",
                     n ? n->source : NULL, "alive", list);
}

json_t *explain_json(const Compiled *c, const Explanation *e) {
    json_t *time = json_object(), *values = json_array(), *layers = json_array();
    for (int k = 0; k < TIME_KINDS; k++) json_object_set_new(time, time_kind_name((TimeKind)k), json_real(e->seconds[k]));
    for (int i = 0; i < e->nfate; i++) {
        const FateGroup *x = &e->fate[i];
        json_array_append_new(values, json_pack("{s:s, s:s?, s:s, s:s, s:I, s:f, s:f}", "what", x->label, "source", x->source, "fate", fate_name(x->fate),
                                                "layers", x->layers, "count", (json_int_t)x->count, "nbytes", x->nbytes, "seconds", x->seconds));
    }
    for (int i = 0; i < e->nlayer; i++) {
        json_t *x = json_pack("{s:s}", "layers", e->layer[i].layers);
        for (int k = 0; x && k < FATE_COUNT; k++)
            if (e->layer[i].text[k]) json_object_set_new(x, fate_name((Fate)k), json_string(e->layer[i].text[k]));
        json_array_append_new(layers, x);
    }
    return json_pack("{s:f, s:o, s:o, s:o, s:o}", "predicted_seconds", plan_step_seconds(c), "seconds_by_kind", time, "peak", alive_json(c, e),
                     "values", values, "layers", layers);
}
