// The steps of a rank by kind of kernel, for reports.
#include <stdlib.h>

#include "plan/plan.h"

static StepGroup *find_group(StepGroup *g, int *n, OpKind op, Phase phase, bool exchange) {
    for (int i = 0; i < *n; i++)
        if (g[i].exchange == exchange && g[i].phase == phase && (exchange || g[i].op == op)) return &g[i];
    if (*n == STEP_GROUPS) return &g[STEP_GROUPS - 1];
    g[*n] = (StepGroup){.op = op, .phase = phase, .exchange = exchange};
    return &g[(*n)++];
}

static int slowest_first(const void *a, const void *b) {
    const StepGroup *x = a, *y = b;
    double s = x->seconds > 0 ? x->seconds : x->predicted, t = y->seconds > 0 ? y->seconds : y->predicted;
    return s > t ? -1 : s < t;
}

int plan_groups(const Plan *p, int rank, const double *seconds, StepGroup out[STEP_GROUPS]) {
    const RankPlan *r = &p->rank[rank];
    int n = 0;
    for (int i = 0; i < r->nstep; i++) {
        const Step *s = &r->step[i];
        const Node *node = graph_node(p->graph, s->node);
        StepGroup *g = find_group(out, &n, node->op, node->phase, s->kind == STEP_EXCHANGE);
        g->count++;
        g->predicted += s->seconds;
        g->seconds += seconds ? seconds[i] : 0;
        g->flops += s->work.flops;
        g->nbytes += s->work.nbytes;
    }
    qsort(out, (size_t)n, sizeof *out, slowest_first);
    return n;
}

const char *step_group_name(const StepGroup *g, char text[STEP_GROUP_NAME]) {
    snprintf(text, STEP_GROUP_NAME, "%s %s", g->exchange ? "exchange" : op_name(g->op), phase_name(g->phase));
    return text;
}
