// One rank's steps and buffers without offsets, for passes that try out many graphs.
#include "plan/lower.h"

#include <stdlib.h>

// A buffer is held in pieces if all that lies in it is. least[buffers].
static void cut_buffers(const Graph *g, RankPlan *p, const int32_t *pieces, int32_t *least) {
    Buffer *buf = (Buffer *)p->buffer;
    for (int64_t v = 0; v < g->values.len; v++) {
        int32_t b = p->value_buf[v];
        if (b >= 0 && (least[b] == 0 || pieces[v] < least[b])) least[b] = pieces[v];
    }
    for (int i = 0; i < p->nbuffer; i++)
        if (least[i] > 1) buf[i].nbytes = (buf[i].nbytes + least[i] - 1) / least[i];
}

void plan_regions(const RankPlan *p, const int32_t *region, Arena *a, int32_t *first, int32_t *last) {
    int32_t most = -1;
    for (int i = 0; i < p->nstep; i++) most = region[p->step[i].node] > most ? region[p->step[i].node] : most;
    int32_t *begin = ARENA_ARRAY(a, int32_t, most + 1), *end = ARENA_ARRAY(a, int32_t, most + 1);
    for (int32_t r = 0; r <= most; r++) begin[r] = INT32_MAX;
    for (int i = 0; i < p->nstep; i++) {
        int32_t r = region[p->step[i].node];
        if (r < 0) continue;
        if (i < begin[r]) begin[r] = i;
        end[r] = i;
    }
    for (int i = 0; i < p->nstep; i++) first[i] = last[i] = i;
    for (int32_t r = 0; r <= most; r++)  // what lies between runs before the chunks or after them
        for (int32_t i = begin[r]; begin[r] < INT32_MAX && i <= end[r]; i++) first[i] = begin[r], last[i] = end[r];
}

// What is whole in a region is alive for all its chunks.
static void hold_in_regions(RankPlan *p, const int32_t *region, const int32_t *least, Arena *a) {
    Buffer *buf = (Buffer *)p->buffer;
    int32_t *first = ARENA_ARRAY(a, int32_t, p->nstep), *last = ARENA_ARRAY(a, int32_t, p->nstep);
    plan_regions(p, region, a, first, last);
    for (int i = 0; i < p->nstep; i++) {
        const Step *s = &p->step[i];
        for (int k = 0; k < s->nin + s->nout; k++) {
            int32_t b = k < s->nin ? s->in_buf[k] : s->out_buf[k - s->nin];
            if (b < 0 || least[b] > 1 || region[s->node] < 0) continue;
            if (first[i] < buf[b].first) buf[b].first = first[i];
            if (last[i] > buf[b].last) buf[b].last = last[i];
        }
    }
}

int64_t plan_host_state(const Graph *g, Arena *a, bool *host) {
    int32_t *uses = graph_use_counts(g, a), *names = ARENA_ARRAY(a, int32_t, 4 * g->params.len + 1);  // nodes that name a table entry
    int64_t nbytes = 0;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op == OP_PARAM) names[4 * node_int(n, ATTR_INDEX) + node_int_or(n, ATTR_KIND, 0)]++;
    }
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        for (int k = 0; k < n->nin && n->op == OP_ADAMW; k++) {
            const Node *def = graph_def(g, n->in[k]);
            int64_t kind = def->op == OP_PARAM ? node_int_or(def, ATTR_KIND, 0) : 3;
            if (k > 3 || kind > 2 || uses[n->in[k]] != 1 || names[4 * node_int(def, ATTR_INDEX) + kind] != 1) continue;
            host[n->in[k]] = true;
            nbytes += round_up(shape_numel(graph_shape(g, n->in[k])) * dtype_nbytes(graph_value(g, n->in[k])->dtype), BUFFER_ALIGN);
        }
    }
    return nbytes;
}

static void move_state(Arena *a, const Graph *g, RankPlan *p) {
    bool *host = ARENA_ARRAY(a, bool, g->values.len);
    plan_host_state(g, a, host);
    for (int64_t v = 0; v < g->values.len; v++)
        if (host[v] && p->value_buf[v] >= 0) ((Buffer *)p->buffer)[p->value_buf[v]].host = true;
}

Status plan_sketch(Arena *a, const Graph *g, const PlanOptions *o, int rank, const TileSketch *tile, RankPlan *out, Diag *d) {
    Reshards own = {.a = a}, *kept = memo_reshards(o->memo, g->layouts, rank);
    Lower l = {.a = a, .g = g, .o = o, .d = d, .nmade = 1, .made = &rank, .reshards = kept ? kept : &own};
    *out = (RankPlan){0};
    Status st = plan_find_real(g, o->backend, &l.real, d);
    if (st == ST_OK) st = lower_actions(&l);
    if (st == ST_OK) st = lower_groups(&l);
    if (st == ST_OK) st = lower_rank(&l, 0, out);
    if (st == ST_OK) {
        if (tile) {
            int32_t *least = ARENA_ARRAY(a, int32_t, out->nbuffer);
            cut_buffers(g, out, tile->pieces, least);
            hold_in_regions(out, tile->region, least, a);
        }
        if (o->state_on_host) move_state(a, g, out);
        out->lower_bound_nbytes = rank_statistics(&l, out);
        out->arena_nbytes = out->lower_bound_nbytes;
    }
    vec_free(&own.list);
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

int plan_telling_ranks(const Graph *g, int rank[3]) {
    int full = plan_fullest_rank(g), last = graph_nranks(g) - 1, n = 0;
    rank[n++] = 0;
    if (full != 0) rank[n++] = full;
    if (last != 0 && last != full) rank[n++] = last;
    return n;
}
