// One rank's steps and buffers, in node order.
#include "plan/lower.h"

enum { ALIGN = BUFFER_ALIGN };

typedef struct RankLower {
    const Lower *l;
    int made, rank;          // the how manieth that is made, and which rank that is
    RankPlan *out;
    VEC(Step) step;
    VEC(Buffer) buffer;
    int32_t *value_buf;      // [values]; a group's buffer is noted at its name, then copied to the members
} RankLower;

static int64_t operand_bytes(const Operand *o) {
    int64_t n = dtype_nbytes(o->dtype);
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    return n;
}

static int32_t new_buffer(RankLower *r, BufferKind kind, int64_t nbytes, ValueId v) {
    int32_t step = (int32_t)r->step.len;
    vec_push(&r->buffer, ((Buffer){.kind = kind, .nbytes = nbytes, .first = step, .last = step, .value = v}));
    return (int32_t)r->buffer.len - 1;
}

static void touch(RankLower *r, int32_t buf) { r->buffer.data[buf].last = (int32_t)r->step.len; }

// The buffer of value v, made if its group has none yet.
static int32_t value_buffer(RankLower *r, ValueId v, const Operand *o) {
    ValueId group = lower_group(r->l, v);
    int32_t buf = r->value_buf[group];
    if (buf < 0) {
        buf = new_buffer(r, r->l->info[group].kind, operand_bytes(o), v);
        r->value_buf[group] = buf;
    }
    CHECK(r->buffer.data[buf].nbytes == operand_bytes(o), "rank %d: %%%d has %lld bytes, its buffer (%%%d) %lld", r->rank, v,
          (long long)operand_bytes(o), r->buffer.data[buf].value, (long long)r->buffer.data[buf].nbytes);
    r->value_buf[v] = buf;
    touch(r, buf);
    return buf;
}

static void step_operands(RankLower *r, Step *s, const Node *n) {
    const Lower *l = r->l;
    Operand *op = ARENA_ARRAY(l->a, Operand, n->nin + n->nout);
    int32_t *buf = ARENA_ARRAY(l->a, int32_t, n->nin + n->nout);
    s->nin = n->nin, s->in = op, s->in_buf = buf;
    s->nout = n->nout, s->out = op + n->nin, s->out_buf = buf + n->nin;
    for (int k = 0; k < n->nin + n->nout; k++) {
        ValueId v = k < n->nin ? n->in[k] : n->out[k - n->nin];
        op[k] = plan_operand(l->a, l->g, v, r->rank);
        buf[k] = value_buffer(r, v, &op[k]);
    }
}

static void lower_kernel(RankLower *r, NodeId i, const Node *n) {
    const PlanOptions *o = r->l->o;
    Step s = {.kind = STEP_KERNEL, .node = i, .scratch_buf = -1, .kernel = o->backend->kernel(n->op, r->l->real)};
    step_operands(r, &s, n);
    KernelWork w = plan_work(r->l->memo, o, n, s.in, s.out);
    if (w.scratch_nbytes > 0) s.scratch_buf = new_buffer(r, BUF_SCRATCH, w.scratch_nbytes, NO_VALUE);
    r->out->flops += w.cost.flops;
    s.seconds = w.seconds;
    r->out->seconds += s.seconds;
    vec_push(&r->step, s);
}

static Operand hop_operand(const RankLower *r, const ReshardPlan *p, const Shape *shape, const Placement *place) {
    Operand o = {.dtype = p->dtype, .ndim = shape->ndim, .sdim = -1};
    Shape local = placement_local_shape(r->l->g->layouts, place, shape, r->rank);
    for (int i = 0; i < shape->ndim; i++) {
        o.dim[i] = local.dim[i];
        o.global[i] = shape->dim[i];
    }
    return o;
}

static double count_exchange(RankLower *r, const Exchange *e) {
    const DeviceModel *m = r->l->o->device;
    double sent = 0, received = 0;
    for (int k = 0; k < graph_nranks(r->l->g); k++) {
        sent += (double)e->send_nbytes[k];
        received += (double)e->recv_nbytes[k];
    }
    r->out->comm_nbytes += sent;
    double seconds = (sent > received ? sent : received) / m->link_bandwidth;
    seconds += e->collective ? m->link_latency_s : m->kernel_latency_s;
    r->out->seconds += seconds;
    return seconds;
}

static void lower_exchange(RankLower *r, NodeId i, const Node *n) {
    const ReshardPlan *p = r->l->reshard[i];
    int32_t from = -1;
    for (int h = 0; h < p->nhop; h++) {
        const Exchange *e = &p->exchange[h][r->made];
        Step s = {.kind = STEP_EXCHANGE, .node = i, .nin = 1, .nout = 1, .scratch_buf = -1, .exchange = e};
        Operand *op = ARENA_ARRAY(r->l->a, Operand, 2);
        int32_t *buf = ARENA_ARRAY(r->l->a, int32_t, 2);
        op[0] = hop_operand(r, p, &p->hop[h].shape, &p->hop[h].from);
        op[1] = hop_operand(r, p, &p->hop[h].shape, &p->hop[h].to);
        if (h == 0) from = value_buffer(r, n->in[0], &op[0]);
        touch(r, from);
        bool last = h + 1 == p->nhop;
        buf[0] = from;
        buf[1] = last ? value_buffer(r, n->out[0], &op[1]) : new_buffer(r, BUF_COMM, operand_bytes(&op[1]), NO_VALUE);
        s.in = op, s.out = op + 1, s.in_buf = buf, s.out_buf = buf + 1;
        s.staging_send_nbytes = round_up(e->send_staging, ALIGN);
        if (s.staging_send_nbytes + e->recv_staging > 0)
            s.scratch_buf = new_buffer(r, BUF_COMM, s.staging_send_nbytes + e->recv_staging, NO_VALUE);
        s.seconds = count_exchange(r, e);
        vec_push(&r->step, s);
        from = buf[1];
    }
}

// An alias costs nothing but keeps its buffer known under one more name.
static void lower_alias(RankLower *r, const Node *n) {
    Operand in = plan_operand(r->l->a, r->l->g, n->in[0], r->rank), out = plan_operand(r->l->a, r->l->g, n->out[0], r->rank);
    value_buffer(r, n->in[0], &in);
    value_buffer(r, n->out[0], &out);
}

// What outlives the step or is there before it.
static void extend_lifetimes(RankLower *r) {
    const Lower *l = r->l;
    int32_t nstep = r->step.len > 0 ? (int32_t)r->step.len : 1;
    for (int64_t v = 0; v < l->g->values.len; v++) {
        if (r->value_buf[v] < 0) continue;
        const Group *gr = &l->info[lower_group(l, (ValueId)v)];
        Buffer *b = &r->buffer.data[r->value_buf[v]];
        if (gr->persistent) b->first = 0;
        if (gr->persistent || gr->output) b->last = nstep - 1;
    }
    for (int64_t i = 0; i < r->buffer.len; i++) {  // a trailing alias may point one past the last step
        Buffer *b = &r->buffer.data[i];
        if (b->first >= nstep) b->first = nstep - 1;
        if (b->last >= nstep) b->last = nstep - 1;
    }
}

void lower_rank(Lower *l, int k, RankPlan *out) {
    const Graph *g = l->g;
    int rank = lower_made(l, k);
    out->rank = rank;
    RankLower r = {.l = l, .made = k, .rank = rank, .out = out, .value_buf = ARENA_ARRAY(l->a, int32_t, g->values.len)};
    for (int64_t v = 0; v < g->values.len; v++) r.value_buf[v] = -1;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (l->action[i] == ACT_NONE) {
            Operand o = plan_operand(l->a, g, n->out[0], rank);
            value_buffer(&r, n->out[0], &o);
        }
        if (l->action[i] == ACT_ALIAS) lower_alias(&r, n);
        if (l->action[i] == ACT_KERNEL) lower_kernel(&r, (NodeId)i, n);
        if (l->action[i] == ACT_EXCHANGE) lower_exchange(&r, (NodeId)i, n);
    }
    extend_lifetimes(&r);
    out->nstep = (int)r.step.len;
    out->nbuffer = (int)r.buffer.len;
    out->step = arena_copy(l->a, r.step.data, sizeof *r.step.data * (size_t)r.step.len);
    out->buffer = arena_copy(l->a, r.buffer.data, sizeof *r.buffer.data * (size_t)r.buffer.len);
    out->value_buf = r.value_buf;
    vec_free(&r.step);
    vec_free(&r.buffer);
}

// The peak step and what is alive there.
int64_t rank_statistics(const Lower *l, RankPlan *p) {
    int nstep = p->nstep > 0 ? p->nstep : 1;
    int64_t *delta = ARENA_ARRAY(l->a, int64_t, nstep + 1), live = 0, peak = -1;
    for (int i = 0; i < p->nbuffer; i++) {
        int64_t nbytes = round_up(p->buffer[i].nbytes, ALIGN);
        delta[p->buffer[i].first] += nbytes;
        delta[p->buffer[i].last + 1] -= nbytes;
    }
    for (int32_t t = 0; t < nstep; t++) {
        live += delta[t];
        if (live <= peak) continue;
        peak = live;
        p->peak_step = t;
    }
    for (int i = 0; i < p->nbuffer; i++)
        if (p->buffer[i].first <= p->peak_step && p->peak_step <= p->buffer[i].last)
            p->nbytes_by_kind[p->buffer[i].kind] += round_up(p->buffer[i].nbytes, ALIGN);
    return peak;
}
