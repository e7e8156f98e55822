// One rank's steps and buffers without offsets, for passes that try out many graphs.
#include "plan/lower.h"

#include <stdlib.h>

Status plan_sketch(Arena *a, const Graph *g, const PlanOptions *o, int rank, const int32_t *pieces, RankPlan *out, Diag *d) {
    Lower l = {.a = a, .g = g, .o = o, .d = d};
    *out = (RankPlan){0};
    Status st = plan_find_real(g, o->backend, &l.real, d);
    if (st == ST_OK) st = lower_actions(&l);
    if (st == ST_OK) st = lower_groups(&l);
    if (st == ST_OK) {
        st = lower_rank(&l, rank, out);
    }
    if (st == ST_OK) {
        Buffer *buf = (Buffer *)out->buffer;
        for (int i = 0; i < out->nbuffer; i++) {
            if (pieces && buf[i].value != NO_VALUE && pieces[buf[i].value] > 1)
                buf[i].nbytes = (buf[i].nbytes + pieces[buf[i].value] - 1) / pieces[buf[i].value];
        }
        out->lower_bound_nbytes = rank_statistics(&l, out);
        out->arena_nbytes = out->lower_bound_nbytes;
    }
    vec_free(&l.reshards);
    return st;
}

int plan_fullest_rank(const Graph *g) {
    int nranks = graph_nranks(g), best = 0;
    if (nranks == 1) return 0;
    double most = -1, *weight = calloc((size_t)layouts_count(g->layouts), sizeof *weight);
    CHECK(weight != NULL, "out of memory");
    for (int64_t v = 0; v < g->values.len; v++) {
        const Value *x = graph_value(g, (ValueId)v);
        if (x->place.kind != PLACE_SHARD) continue;
        double n = dtype_nbytes(x->dtype);
        for (int i = 0; i < x->shape.ndim; i++) n *= i == x->place.dim ? 1 : (double)x->shape.dim[i];
        weight[x->place.layout] += n;
    }
    for (int r = 0; r < nranks; r++) {
        double sum = 0;
        for (int k = 0; k < layouts_count(g->layouts); k++)
            if (weight[k] > 0) sum += weight[k] * (double)layout_local(layouts_get(g->layouts, k), r);
        if (sum <= most) continue;
        most = sum;
        best = r;
    }
    free(weight);
    return best;
}
