// Lowering: what becomes of each node (a kernel, an exchange, an alias, nothing), which values share a buffer, then every
// rank's steps, buffers and offsets. Decisions are global; only extents and offsets differ from rank to rank.
#include "plan/plan.h"

#include <stdlib.h>
#include <string.h>

#include "plan/lower.h"
#include "plan/memo.h"

const char *buffer_kind_name(BufferKind k) {
    static const char *const name[BUF_KIND_COUNT] = {
        "parameters", "moments", "inputs", "constants", "gradients",
        "saved for backward", "transient", "communication", "scratch", "offloaded",
    };
    return (unsigned)k < BUF_KIND_COUNT ? name[k] : "?";
}

static Operand operand_make(const LayoutTable *t, DType dtype, const Shape *shape, const Placement *place, int rank) {
    Operand o = {.dtype = dtype, .ndim = shape->ndim, .sdim = -1};
    for (int i = 0; i < shape->ndim; i++) o.dim[i] = o.global[i] = shape->dim[i];
    if (place->kind == PLACE_SHARD && layouts_nranks(t) > 1) {
        const Layout *l = layouts_get(t, place->layout);
        o.sdim = place->dim;
        o.nspan = layout_nspan(l, rank);
        o.span = layout_spans(l, rank);
        o.dim[o.sdim] = layout_local(l, rank);
    }
    return o;
}

Operand plan_operand(Arena *a, const Graph *g, ValueId v, int rank) {
    (void)a;  // spans stay where the layout keeps them
    const Value *x = graph_value(g, v);
    return operand_make(g->layouts, x->dtype, &x->shape, &x->place, rank);
}

// ---- what becomes of each node ------------------------------------------------------------------------------------------
static uint64_t reshard_key(const Value *x, const Value *y) {
    uint64_t h = hash_bytes((uint64_t)dtype_nbytes(x->dtype), x->shape.dim, sizeof *x->shape.dim * (size_t)x->shape.ndim);
    int64_t place[] = {x->dtype,      x->place.kind, x->place.reduce, x->place.dim,   x->place.layout,
                       y->place.kind, y->place.reduce, y->place.dim,  y->place.layout};
    return hash_bytes(h, place, sizeof place);
}

// Of all ranks at once, or of some one by one.
static const Exchange *make_exchanges(const Lower *l, const Hop *hop, DType dtype) {
    Arena *a = l->reshards->a;
    if (!l->made) return exchange_make(a, l->g->layouts, &hop->shape, dtype, &hop->from, &hop->to);
    Exchange *e = ARENA_ARRAY(a, Exchange, l->nmade);
    for (int k = 0; k < l->nmade; k++)
        e[k] = *exchange_make_one(a, l->g->layouts, &hop->shape, dtype, &hop->from, &hop->to, l->made[k]);
    return e;
}

static const ReshardPlan *find_reshard(Lower *l, const Value *x, const Value *y) {
    uint64_t key = reshard_key(x, y);
    for (int64_t i = 0; i < l->reshards->list.len; i++) {
        const ReshardPlan *p = l->reshards->list.data[i];
        if (p->key == key && p->dtype == x->dtype && shape_equal(&p->shape, &x->shape) && placement_equal(&p->from, &x->place) &&
            placement_equal(&p->to, &y->place))
            return p;
    }
    ReshardPlan *p = ARENA_NEW(l->reshards->a, ReshardPlan);
    *p = (ReshardPlan){.key = key, .dtype = x->dtype, .shape = x->shape, .from = x->place, .to = y->place};
    p->nhop = reshard_hops(l->g, &x->shape, x->dtype, &x->place, &y->place, p->hop);
    p->identity = true;
    for (int h = 0; h < p->nhop; h++) {
        const Hop *hop = &p->hop[h];
        p->exchange[h] = make_exchanges(l, hop, x->dtype);
        p->identity = p->identity && exchange_is_identity(l->g->layouts, &hop->shape, &hop->from, &hop->to);
    }
    vec_push(&l->reshards->list, p);
    return p;
}

static Action choose_action(Lower *l, NodeId i, const Node *n) {
    if (n->op == OP_PARAM || n->op == OP_INPUT || n->op == OP_CONSTANT) return ACT_NONE;
    if (n->op == OP_RESHARD) {
        l->reshard[i] = find_reshard(l, graph_value(l->g, n->in[0]), graph_value(l->g, n->out[0]));
        return l->reshard[i]->identity ? ACT_ALIAS : ACT_EXCHANGE;
    }
    if (n->op == OP_OFFLOAD || n->op == OP_OFFLOAD_DONE || n->op == OP_FETCH || n->op == OP_FETCH_DONE) return ACT_COPY;
    if (op_flags(n->op) & OPF_PLACED || op_is_view(l->g, n)) return ACT_ALIAS;
    return ACT_KERNEL;
}

Status lower_actions(Lower *l) {
    const Graph *g = l->g;
    l->action = ARENA_ARRAY(l->a, Action, g->nodes.len);
    l->reshard = ARENA_ARRAY(l->a, const ReshardPlan *, g->nodes.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        l->action[i] = choose_action(l, (NodeId)i, n);
        bool second = n->op == OP_FUSED && (node_attr(n, ATTR_ROW) || node_attr(n, ATTR_VIEWS));
        if (second && !(l->o->backend->features & BACKEND_FUSE_ROWS))
            return diag_error(l->d, ST_UNSUPPORTED, "%s: the %s backend has no kernel for fused nodes with rows or views",
                              node_describe(g, (NodeId)i, l->a), l->o->backend->name);
        if (l->action[i] == ACT_KERNEL && !l->o->backend->kernel(n->op, l->real))
            return diag_error(l->d, ST_UNSUPPORTED, "%s: the %s backend has no kernel for %s", node_describe(g, (NodeId)i, l->a),
                              l->o->backend->name, op_name(n->op));
    }
    return ST_OK;
}

// ---- the whole ----------------------------------------------------------------------------------------------------------
// What the graph computes in: f64, or f32 with values stored in bf16 beside it.
Status plan_find_real(const Graph *g, const Backend *backend, DType *real, Diag *d) {
    *real = DT_F32;
    for (int64_t v = 0; v < g->values.len; v++) {
        DType t = graph_value(g, (ValueId)v)->dtype;
        if (t == DT_F64) *real = t;
        if (t == DT_BF16 && !(backend->features & BACKEND_BF16))
            return diag_error(d, ST_UNSUPPORTED, "the %s backend has no bf16: --dtype bf16 needs --device cuda", backend->name);
        if (t == DT_F16) return diag_error(d, ST_UNSUPPORTED, "the graph computes in f16; f32, bf16 and f64 can be run");
    }
    return ST_OK;
}

static bool same_lifetimes(const RankPlan *a, const RankPlan *b) {
    if (a->nbuffer != b->nbuffer || a->nstep != b->nstep) return false;
    for (int i = 0; i < a->nbuffer; i++)
        if (a->buffer[i].nbytes != b->buffer[i].nbytes || a->buffer[i].first != b->buffer[i].first ||
            a->buffer[i].last != b->buffer[i].last)
            return false;
    return true;
}

// Offsets of one side's buffers, as if there were no others; returns what they take.
static int64_t assign_side(RankPlan *p, bool host, int64_t *lower_bound) {
    Buffer *buf = (Buffer *)p->buffer, *side = malloc(sizeof *side * (size_t)(p->nbuffer + 1));
    CHECK(side != NULL, "out of memory for %d buffers", p->nbuffer);
    int n = 0;
    for (int i = 0; i < p->nbuffer; i++)
        if (buf[i].host == host) side[n++] = buf[i];
    int64_t nbytes = memory_assign(n, side, lower_bound);
    n = 0;
    for (int i = 0; i < p->nbuffer; i++)
        if (buf[i].host == host) buf[i].offset = side[n++].offset;
    free(side);
    return nbytes;
}

// Ranks with the same sizes get the same offsets without computing them again.
static void assign_offsets(RankPlan *rank, int r) {
    RankPlan *p = &rank[r];
    Buffer *buf = (Buffer *)p->buffer;
    for (int k = 0; k < r; k++) {
        if (!same_lifetimes(&rank[k], p)) continue;
        for (int i = 0; i < p->nbuffer; i++) buf[i].offset = rank[k].buffer[i].offset;
        p->arena_nbytes = rank[k].arena_nbytes;
        p->lower_bound_nbytes = rank[k].lower_bound_nbytes;
        p->host_nbytes = rank[k].host_nbytes;
        p->host_lower_bound_nbytes = rank[k].host_lower_bound_nbytes;
        return;
    }
    p->arena_nbytes = assign_side(p, false, &p->lower_bound_nbytes);
    p->host_nbytes = assign_side(p, true, &p->host_lower_bound_nbytes);
}

static uint64_t plan_hash(const Lower *l, const RankPlan *rank, int nranks) {
    uint64_t h = graph_hash(l->g);
    for (int64_t i = 0; i < l->g->nodes.len; i++) {
        const ReshardPlan *p = l->reshard[i];
        for (int k = 0; p && k < p->nhop; k++)
            for (int r = 0; r < nranks; r++) h = hash_bytes(h, p->exchange[k][r].send_nbytes, sizeof(int64_t) * (size_t)nranks);
    }
    for (int r = 0; r < nranks && rank[r].ncopy > 0; r++) {
        int64_t copies[] = {rank[r].ncopy, rank[r].host_nbytes};
        h = hash_bytes(h, copies, sizeof copies);
    }
    int64_t rest[] = {nranks, l->real};
    return hash_bytes(h, rest, sizeof rest);
}

Status plan_make(Arena *a, const Graph *g, const PlanOptions *o, Plan **out, Diag *d) {
    return plan_make_some(a, g, o, graph_nranks(g), NULL, out, d);
}

Status plan_make_some(Arena *a, const Graph *g, const PlanOptions *o, int nmade, const int *made, Plan **out, Diag *d) {
    CHECK(o->backend && o->device && o->nthreads >= 1, "plan options are incomplete");
    PlanOptions own = *o;  // with a memory of kernels, for its chunks and layers repeat
    if (!o->memo) own.memo = kernel_memo_new();
    Reshards reshards = {.a = a};
    Lower l = {.a = a, .g = g, .o = &own, .d = d, .nmade = nmade, .made = made, .reshards = &reshards};
    int nranks = graph_nranks(g);
    Status st = plan_find_real(g, o->backend, &l.real, d);
    if (st == ST_OK) st = lower_actions(&l);
    if (st == ST_OK) st = lower_groups(&l);
    if (st == ST_OK) {
        RankPlan *rank = ARENA_ARRAY(a, RankPlan, nmade);
        for (int k = 0; k < nmade && st == ST_OK; k++) {
            st = lower_rank(&l, k, &rank[k]);
            if (st != ST_OK) break;
            assign_offsets(rank, k);
            rank_statistics(&l, &rank[k]);
        }
        Plan *p = ARENA_NEW(a, Plan);
        *p = (Plan){g, nranks, nmade, o->nthreads, l.real, o->backend, rank, made ? 0 : plan_hash(&l, rank, nranks)};
        *out = p;
    }
    vec_free(&reshards.list);
    vec_free(&l.joins);
    if (!o->memo) kernel_memo_free(own.memo);
    return st;
}
