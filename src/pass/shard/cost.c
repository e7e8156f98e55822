// What a placement costs: the node's own time on the slowest rank, and the time to move a value between placements.
#include "pass/shard/shard.h"

Operand shard_operand(const ShardState *s, ValueId id, const Placement *p, int rank) {
    const Value *v = graph_value(s->g, id);
    Operand o = {.dtype = v->dtype, .ndim = v->shape.ndim, .sdim = -1};
    for (int k = 0; k < v->shape.ndim; k++) o.dim[k] = o.global[k] = v->shape.dim[k];
    if (p->kind == PLACE_SHARD) {
        const Layout *l = layouts_get(s->g->layouts, p->layout);
        o.sdim = p->dim;
        o.nspan = layout_nspan(l, rank);
        o.span = layout_spans(l, rank);
        o.dim[p->dim] = layout_local(l, rank);
    }
    return o;
}

double shard_node_seconds(const ShardState *s, NodeId id, const Row *row) {
    const Node *n = graph_node(s->g, id);
    const OpInfo *info = op_info(n->op);
    Operand small[24], *in = small;
    Operand *heap = NULL;
    if (n->nin + n->nout > 24) in = heap = malloc(sizeof(Operand) * (size_t)(n->nin + n->nout));
    CHECK(in, "out of memory");
    Operand *out = in + n->nin;
    int last = s->c->nranks - 1;
    double seconds = 0, held = 0;
    // The first rank owns the most of an even layout; under a causal mask the last works most. Others lie between.
    for (int r = 0; r <= last; r += last ? last : 1) {
        for (int i = 0; i < n->nin; i++) in[i] = shard_operand(s, n->in[i], &row->in[i], r);
        double nbytes = 0;
        for (int j = 0; j < n->nout; j++) {
            out[j] = shard_operand(s, n->out[j], &row->out[j], r);
            nbytes += operand_nbytes(&out[j]);
        }
        Cost cost = {0};
        if (info->cost) info->cost(n, in, out, &cost);
        double t = cost_seconds(s->c->device, n, in, out, &cost);
        if (t > seconds) seconds = t;
        if (nbytes > held) held = nbytes;
    }
    free(heap);
    // A small price on bytes held makes the sharded of two equally fast choices win (views cost no time but do hold memory).
    return seconds + held * 1e-2 / s->c->device->mem_bandwidth;
}

bool shard_is_source(const Graph *g, ValueId v) {
    OpKind op = graph_def(g, v)->op;
    return op == OP_INPUT || op == OP_CONSTANT || op == OP_FULL || op == OP_IOTA || op == OP_RANDOM;
}

// Elements that rank r must receive to hold its spans of `to`, owning those of `from`.
static int64_t missing_elements(const Layout *from, const Layout *to, int r) {
    int64_t missing = 0;
    for (int i = 0; i < layout_nspan(to, r); i++) {
        Span t = layout_spans(to, r)[i];
        missing += t.end - t.begin;
        for (int k = 0; k < layout_nspan(from, r); k++) {
            Span f = layout_spans(from, r)[k];
            int64_t both = min_i64(t.end, f.end) - max_i64(t.begin, f.begin);
            if (both > 0) missing -= both;
        }
    }
    return max_i64(missing, 0);
}

// Bytes that the busiest rank receives when the value changes placement.
static double moved_nbytes(const ShardState *s, const Value *v, const Placement *from, const Placement *to) {
    int ranks = s->c->nranks;
    double whole = (double)shape_numel(&v->shape) * dtype_nbytes(v->dtype), share = whole * (ranks - 1) / ranks;
    if (from->kind == PLACE_PARTIAL) return to->kind == PLACE_SHARD ? share : 2 * share;
    if (to->kind != PLACE_SHARD) return share;  // all-gather
    const Layout *b = layouts_get(s->g->layouts, to->layout);
    double slice = b->extent ? whole / (double)b->extent : 0;
    if (from->dim == to->dim) {
        const Layout *a = layouts_get(s->g->layouts, from->layout);
        int64_t most = 0;
        for (int r = 0; r < ranks; r++) most = max_i64(most, from->reduce ? layout_local(b, r) : missing_elements(a, b, r));
        return slice * (double)most;
    }
    return slice * (double)layout_max_local(b) * (ranks - 1) / ranks;  // all-to-all
}

double shard_move_seconds(const ShardState *s, ValueId id, const Placement *from, const Placement *to, double *sent) {
    if (sent) *sent = 0;
    if (placement_equal(from, to) || s->c->nranks == 1) return 0;
    const Value *v = graph_value(s->g, id);
    const DeviceModel *m = s->c->device;
    if (to->kind == PLACE_PARTIAL || to->reduce) return 1e18;  // nothing is taken apart into terms, not even what every rank can make
    if (shard_is_source(s->g, id)) return 0;
    Operand o = shard_operand(s, id, to, 0);
    double copy = m->kernel_latency_s + 2 * operand_nbytes(&o) / m->mem_bandwidth;
    if (from->kind == PLACE_REPLICATE) return copy;  // a local slice
    double nbytes = moved_nbytes(s, v, from, to);
    if (sent) *sent = nbytes;
    double rounds = from->kind == PLACE_PARTIAL && to->kind != PLACE_SHARD ? 2 : 1;
    return copy + rounds * m->link_latency_s + nbytes / m->link_bandwidth;
}

const char *shard_place_text(const Graph *g, const Placement *p, Arena *a) {
    switch (p->kind) {
        case PLACE_REPLICATE: return "replicated";
        case PLACE_PARTIAL: return p->reduce == RED_MAX ? "partial max" : "partial sum";
        case PLACE_SHARD: {
            const Layout *l = layouts_get(g->layouts, p->layout);
            return arena_printf(a, "sharded on dim %d%s%s", p->dim, l->overlap ? " (overlapping)" : "", p->reduce ? ", partial" : "");
        }
        default: return "not placed";
    }
}
