// One rank's steps and buffers, in node order.
#include <string.h>

#include "plan/lower.h"
#include "plan/memo.h"

enum { ALIGN = BUFFER_ALIGN };

typedef struct RankLower {
    const Lower *l;
    int made, rank;          // the how manieth that is made, and which rank that is
    RankPlan *out;
    VEC(Step) step;
    VEC(Buffer) buffer;
    int32_t *value_buf;      // [values]; a group's buffer is noted at its name, then copied to the members
    int64_t *value_off;      // [values]
    int32_t *copy;           // [values] the number of the copy that makes it
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
        Operand whole = plan_operand(r->l->a, r->l->g, group, r->rank);
        buf = new_buffer(r, r->l->info[group].kind, operand_bytes(&whole), v);
        r->buffer.data[buf].host = r->l->info[group].host;
        r->value_buf[group] = buf;
    }
    bool fits = r->value_off[v] >= 0 && r->value_off[v] + operand_bytes(o) <= r->buffer.data[buf].nbytes;
    CHECK(fits && (r->l->parts || r->buffer.data[buf].nbytes == operand_bytes(o)),
          "rank %d: %%%d has %lld bytes at %lld, its buffer (%%%d) %lld", r->rank, v, (long long)operand_bytes(o),
          (long long)r->value_off[v], r->buffer.data[buf].value, (long long)r->buffer.data[buf].nbytes);
    r->value_buf[v] = buf;
    touch(r, buf);
    return buf;
}

static void step_operands(RankLower *r, Step *s, const Node *n) {
    const Lower *l = r->l;
    Operand *op = ARENA_ARRAY(l->a, Operand, n->nin + n->nout);
    int32_t *buf = ARENA_ARRAY(l->a, int32_t, n->nin + n->nout);
    int64_t *off = ARENA_ARRAY(l->a, int64_t, n->nin + n->nout);
    s->nin = n->nin, s->in = op, s->in_buf = buf, s->in_off = off;
    s->nout = n->nout, s->out = op + n->nin, s->out_buf = buf + n->nin, s->out_off = off + n->nin;
    for (int k = 0; k < n->nin + n->nout; k++) {
        ValueId v = k < n->nin ? n->in[k] : n->out[k - n->nin];
        op[k] = plan_operand(l->a, l->g, v, r->rank);
        buf[k] = value_buffer(r, v, &op[k]);
        off[k] = r->value_off[v];
    }
}

static void lower_kernel(RankLower *r, NodeId i, const Node *n) {
    const PlanOptions *o = r->l->o;
    Step s = {.kind = STEP_KERNEL, .node = i, .scratch_buf = -1, .kernel = o->backend->kernel(n->op, r->l->real)};
    step_operands(r, &s, n);
    KernelWork w = kernel_work(o->memo, o, n, s.in, s.out);
    if (w.scratch_nbytes > 0) s.scratch_buf = new_buffer(r, BUF_SCRATCH, (int64_t)w.scratch_nbytes, NO_VALUE);
    s.work = w.cost;
    s.seconds = w.seconds;
    r->out->flops += s.work.flops;
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

static double box_numel(const Box *b) {
    double n = 1;
    for (int i = 0; i < b->ndim; i++) n *= (double)b->size[i];
    return n;
}

// What exchange_run does: boxes for others are packed unless they lie as messages already, received ones and its own are put in
// place; what is reduced into is read as well.
static void predict_exchange(const RankLower *r, Step *s) {
    const Exchange *e = s->exchange;
    double sent = 0, received = 0, copied = 0, elem = (double)dtype_nbytes(s->out[0].dtype);
    int ncopy = 0;
    for (int k = 0; k < graph_nranks(r->l->g); k++) {
        sent += (double)e->send_nbytes[k];
        received += (double)e->recv_nbytes[k];
    }
    for (int i = 0; i < e->nsend && !e->send_direct; i++)
        if (e->send[i].peer != r->rank) copied += 2 * elem * box_numel(&e->send[i]), ncopy++;
    for (int i = 0; i < e->nrecv; i++) {
        if (e->recv[i].peer != r->rank && e->recv_direct) continue;
        copied += (i >= e->ncover && e->reduce != RED_NONE ? 3 : 2) * elem * box_numel(&e->recv[i]);
        ncopy++;
    }
    s->work.nbytes = sent;
    s->seconds = exchange_seconds(r->l->o->device, sent, received, copied, ncopy, e->collective);
}

static void lower_exchange(RankLower *r, NodeId i, const Node *n) {
    const ReshardPlan *p = r->l->reshard[i];
    int32_t from = -1;
    for (int h = 0; h < p->nhop; h++) {
        const Exchange *e = &p->exchange[h][r->made];
        Step s = {.kind = STEP_EXCHANGE, .node = i, .nin = 1, .nout = 1, .scratch_buf = -1, .exchange = e};
        Operand *op = ARENA_ARRAY(r->l->a, Operand, 2);
        int32_t *buf = ARENA_ARRAY(r->l->a, int32_t, 2);
        int64_t *off = ARENA_ARRAY(r->l->a, int64_t, 2);
        op[0] = hop_operand(r, p, &p->hop[h].shape, &p->hop[h].from);
        op[1] = hop_operand(r, p, &p->hop[h].shape, &p->hop[h].to);
        if (h == 0) from = value_buffer(r, n->in[0], &op[0]);
        touch(r, from);
        bool last = h + 1 == p->nhop;
        buf[0] = from;
        buf[1] = last ? value_buffer(r, n->out[0], &op[1]) : new_buffer(r, BUF_COMM, operand_bytes(&op[1]), NO_VALUE);
        off[0] = h == 0 ? r->value_off[n->in[0]] : 0;
        off[1] = last ? r->value_off[n->out[0]] : 0;
        s.in = op, s.out = op + 1, s.in_buf = buf, s.out_buf = buf + 1, s.in_off = off, s.out_off = off + 1;
        s.staging_send_nbytes = round_up(e->send_staging, ALIGN);
        if (s.staging_send_nbytes + e->recv_staging > 0)
            s.scratch_buf = new_buffer(r, BUF_COMM, s.staging_send_nbytes + e->recv_staging, NO_VALUE);
        predict_exchange(r, &s);
        r->out->comm_nbytes += s.work.nbytes;
        r->out->seconds += s.seconds;
        vec_push(&r->step, s);
        from = buf[1];
    }
}

// Copies run beside the kernels; whether anybody waits for them is not reckoned here. A copy back reads the host's buffer until it is
// complete, and the wait for it is the one step that does not name what it reads.
static void lower_copy(RankLower *r, NodeId i, const Node *n) {
    static const StepKind kind[] = {STEP_OFFLOAD, STEP_OFFLOAD_DONE, STEP_FETCH, STEP_FETCH_DONE};
    Step s = {.kind = kind[n->op - OP_OFFLOAD], .node = i, .scratch_buf = -1};
    step_operands(r, &s, n);
    if (step_is_copy(s.kind)) s.copy = r->copy[n->out[0]] = r->out->ncopy++;
    else s.copy = r->copy[n->in[n->nin - 1]];
    if (s.kind == STEP_FETCH_DONE) touch(r, r->value_buf[graph_def(r->l->g, n->in[0])->in[0]]);
    vec_push(&r->step, s);
}

// When copies end, in each direction one after the other beside the kernels, and how long kernels wait for them: the seconds of a wait.
static void time_copies(RankLower *r) {
    const DeviceModel *m = r->l->o->device;
    double *end = ARENA_ARRAY(r->l->a, double, r->out->ncopy), now = 0, link[2] = {0};
    for (int64_t i = 0; i < r->step.len; i++) {
        Step *s = &r->step.data[i];
        if (step_is_copy(s->kind)) {
            bool back = s->kind == STEP_FETCH;
            double rate = back ? m->from_host_bandwidth : m->to_host_bandwidth, begin = link[back] > now ? link[back] : now;
            link[back] = end[s->copy] = begin + (rate > 0 ? operand_nbytes(&s->in[0]) / rate + m->host_latency_s : 0);
        } else if (step_is_wait(s->kind)) {
            s->seconds = end[s->copy] > now ? end[s->copy] - now : 0;
            r->out->seconds += s->seconds;
        }
        now += s->seconds;
    }
}

// An alias costs nothing but keeps its buffer known under one more name.
static void lower_alias(RankLower *r, const Node *n) {
    for (int k = 0; k < n->nin + n->nout; k++) {
        ValueId v = k < n->nin ? n->in[k] : n->out[k - n->nin];
        Operand o = plan_operand(r->l->a, r->l->g, v, r->rank);
        value_buffer(r, v, &o);
    }
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

Status lower_rank(Lower *l, int k, RankPlan *out) {
    const Graph *g = l->g;
    int rank = lower_made(l, k);
    out->rank = rank;
    RankLower r = {.l = l, .made = k, .rank = rank, .out = out, .value_buf = ARENA_ARRAY(l->a, int32_t, g->values.len),
                   .copy = ARENA_ARRAY(l->a, int32_t, g->values.len)};
    r.value_off = ARENA_ARRAY(l->a, int64_t, g->values.len);
    TRY(lower_offsets(l, rank, r.value_off));
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
        if (l->action[i] == ACT_COPY) lower_copy(&r, (NodeId)i, n);
    }
    if (out->ncopy > 0) time_copies(&r);
    extend_lifetimes(&r);
    out->nstep = (int)r.step.len;
    out->nbuffer = (int)r.buffer.len;
    out->step = arena_copy(l->a, r.step.data, sizeof *r.step.data * (size_t)r.step.len);
    out->buffer = arena_copy(l->a, r.buffer.data, sizeof *r.buffer.data * (size_t)r.buffer.len);
    out->value_buf = r.value_buf;
    out->value_off = r.value_off;
    vec_free(&r.step);
    vec_free(&r.buffer);
    return ST_OK;
}

// The peak step and what is alive there.
int64_t rank_statistics(const Lower *l, RankPlan *p) {
    int nstep = p->nstep > 0 ? p->nstep : 1;
    int64_t *delta = ARENA_ARRAY(l->a, int64_t, nstep + 1), live = 0, peak = -1;
    for (int i = 0; i < p->nbuffer; i++) {
        if (p->buffer[i].host) continue;
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
        if (!p->buffer[i].host && p->buffer[i].first <= p->peak_step && p->peak_step <= p->buffer[i].last)
            p->nbytes_by_kind[p->buffer[i].kind] += round_up(p->buffer[i].nbytes, ALIGN);
    return peak;
}
