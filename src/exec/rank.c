// One rank: its arena, and the steps of its plan in order.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "exec/runtime.h"

static Status name_failure(const Rank *r, NodeId node, Diag *d) {
    Arena *a = arena_new();
    diag_where(d, "rank %d: %s", r->index, a ? node_describe(r->runtime->plan->graph, node, a) : "node");
    arena_free(a);
    return d->status;
}

// ---- opening and closing --------------------------------------------------------------------------------------------------
static int most_operands(const RankPlan *p) {
    int most = 1;
    for (int i = 0; i < p->nstep; i++) most = p->step[i].nin + p->step[i].nout > most ? p->step[i].nin + p->step[i].nout : most;
    return most;
}

static Status open_host(Rank *r, Diag *d) {
    const Plan *plan = r->runtime->plan;
    const Backend *b = plan->backend;
    if (r->arena_nbytes > 0) r->arena = b->alloc((size_t)r->arena_nbytes);
    if (r->arena_nbytes > 0 && !r->arena)
        return diag_error(d, ST_MEMORY, "rank %d: cannot allocate its arena of %lld bytes", r->index, (long long)r->arena_nbytes);
    if (r->host_nbytes > 0 && !(r->host = b->alloc((size_t)r->host_nbytes)))
        return diag_error(d, ST_MEMORY, "rank %d: cannot allocate its host arena of %lld bytes", r->index, (long long)r->host_nbytes);
    if (b->pool_new) r->pool = b->pool_new(plan->nthreads);
    if (b->pool_new && !r->pool)
        return diag_error(d, ST_MEMORY, "rank %d: cannot start %d worker threads", r->index, plan->nthreads);
    return ST_OK;
}

static bool is_state(const Buffer *b) { return b->kind == BUF_PARAM || b->kind == BUF_MOMENT; }

static Status open_device(Rank *r, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    void *arena = NULL;
    TRY(api->open(r->index, r->runtime->plan->nranks, (size_t)r->arena_nbytes, &r->device, &arena, d));
    r->arena = arena;
    void *host = NULL;
    if (r->host_nbytes > 0) TRY(api->host_alloc(r->device, (size_t)r->host_nbytes, &host, d));
    r->host = host;
    for (int i = 0; i < p->nbuffer; i++)  // pinned memory comes as it is; a run begins with zeros where nothing else is set
        if (p->buffer[i].host && is_state(&p->buffer[i])) memset(r->host + p->buffer[i].offset, 0, (size_t)p->buffer[i].nbytes);
    if (r->runtime->options.processes) TRY(api->export_arena(r->device, r->handle, d));
    return ST_OK;
}

// Some bytes of an arena: 0xff or zero.
static Status set_bytes(Rank *r, bool host, int64_t offset, int64_t nbytes, int value, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    char *to = (host ? r->host : r->arena) + offset;
    if (api && !host) return api->fill(r->device, to, DT_I64, nbytes / 8, value, d);
    memset(to, value, (size_t)nbytes);
    return ST_OK;
}

// Everything, gaps too, but what a run may count on: parameters and moments begin as zeros.
static Status poison(Rank *r, const RankPlan *p, Diag *d) {
    if (r->arena_nbytes > 0) TRY(set_bytes(r, false, 0, r->arena_nbytes, -1, d));
    if (r->host_nbytes > 0) TRY(set_bytes(r, true, 0, r->host_nbytes, -1, d));
    for (int i = 0; i < p->nbuffer; i++)
        if (is_state(&p->buffer[i]))
            TRY(set_bytes(r, p->buffer[i].host, p->buffer[i].offset, round_up(p->buffer[i].nbytes, 8), 0, d));
    return ST_OK;
}

Status rank_open(Rank *r, Diag *d) {
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    r->arena_nbytes = p->arena_nbytes;
    r->host_nbytes = p->host_nbytes;
    r->operand = calloc((size_t)most_operands(p), sizeof *r->operand);
    r->state = calloc((size_t)p->nstep + 1, sizeof *r->state);
    r->peer = calloc((size_t)r->runtime->plan->nranks, sizeof *r->peer);
    if (!r->operand || !r->state || !r->peer) return diag_error(d, ST_MEMORY, "out of memory for rank %d", r->index);
    TRY(runtime_device(r->runtime) ? open_device(r, d) : open_host(r, d));
    if (r->runtime->options.poison) TRY(poison(r, p, d));
    return ST_OK;
}

void rank_close(Rank *r) {
    const Backend *b = r->runtime->plan->backend;
    if (r->comm) r->comm->vt->free(r->comm);
    if (r->pool) b->pool_free(r->pool);
    if (b->device && r->host) b->device->host_free(r->device, r->host, (size_t)r->host_nbytes);
    if (b->device) b->device->close(r->device);
    else if (r->arena) b->free(r->arena, (size_t)r->arena_nbytes);
    if (!b->device && r->host) b->free(r->host, (size_t)r->host_nbytes);
    free(r->operand);
    free(r->state);
    free(r->peer);
    r->comm = NULL, r->pool = NULL, r->device = NULL, r->arena = NULL, r->host = NULL, r->operand = NULL, r->state = NULL, r->peer = NULL;
}

// ---- what a communicator does on a device ---------------------------------------------------------------------------------
static Status memory_copy(void *ctx, void *dst, int from, const void *src, size_t nbytes, Diag *d) {
    Rank *r = ctx;
    const DeviceApi *api = runtime_device(r->runtime);
    const Rank *other = &r->runtime->rank[from];
    if (r->runtime->options.processes && from != r->index) {
        if (!r->peer[from]) TRY(api->open_peer(r->device, other->handle, &r->peer[from], d));
        src = (const char *)r->peer[from] + ((const char *)src - other->arena);
    }
    return api->copy(r->device, dst, src, nbytes, d);
}

static Status memory_fence(void *ctx, Diag *d) {
    Rank *r = ctx;
    NodeId node = NO_NODE;
    Status st = runtime_device(r->runtime)->finish(r->device, &node, d);
    if (st != ST_OK && node != NO_NODE) name_failure(r, node, d);
    return st;
}

void rank_set_comm(Rank *r, Comm *c) {
    if (r->comm && r->comm != c) r->comm->vt->free(r->comm);
    r->comm = c;
    r->comm_memory = (CommMemory){r, memory_copy, memory_fence};
    c->memory = r->device ? &r->comm_memory : NULL;
}

// ---- steps ----------------------------------------------------------------------------------------------------------------
static KernelArgs step_args(Rank *r, int index) {
    const Runtime *rt = r->runtime;
    const RankPlan *p = &rt->plan->rank[r->index];
    const Step *s = &p->step[index];
    Operand *in = r->operand, *out = r->operand + s->nin;
    for (int i = 0; i < s->nin; i++) {
        in[i] = s->in[i];
        in[i].data = (char *)rank_buffer(r, s->in_buf[i]) + s->in_off[i];
    }
    for (int i = 0; i < s->nout; i++) {
        out[i] = s->out[i];
        out[i].data = (char *)rank_buffer(r, s->out_buf[i]) + s->out_off[i];
    }
    void *scratch = s->scratch_buf >= 0 ? rank_buffer(r, s->scratch_buf) : NULL;
    return (KernelArgs){
        .node = graph_node(rt->plan->graph, s->node),
        .id = s->node,
        .nin = s->nin,
        .nout = s->nout,
        .in = in,
        .out = out,
        .scratch = scratch,
        .scratch_nbytes = scratch ? (size_t)p->buffer[s->scratch_buf].nbytes : 0,
        .pool = r->pool,
        .device = r->device,
        .state = r->state[index],
        .run_seed = rt->run_seed,
        .step = rt->step,
    };
}

// In host memory itself a copy is complete when it has been started.
static Status run_copy(Rank *r, const Step *s, const KernelArgs *k, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    if (step_is_wait(s->kind)) return api ? api->copy_wait(r->device, s->copy, d) : ST_OK;
    size_t nbytes = (size_t)operand_nbytes(&k->in[0]);
    CopyDirection to = s->kind == STEP_OFFLOAD ? COPY_TO_HOST : COPY_TO_DEVICE;
    if (api) return api->copy_start(r->device, to, k->out[0].data, k->in[0].data, nbytes, s->copy, d);
    if (nbytes > 0) memcpy(k->out[0].data, k->in[0].data, nbytes);
    return ST_OK;
}

static Status run_one(Rank *r, int index, Diag *d) {
    const Step *s = &r->runtime->plan->rank[r->index].step[index];
    KernelArgs k = step_args(r, index);
    if (s->kind == STEP_KERNEL) return s->kernel(&k, d);
    if (s->kind != STEP_EXCHANGE) return run_copy(r, s, &k, d);
    Memory m = {runtime_device(r->runtime), r->device};
    return exchange_run(r->comm, &m, s, k.in, k.out, k.scratch, k.node->note ? k.node->note : "reshard", d);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// marks: on a device, an event before each step; the host's clock does on the CPU, whose kernels return when they are done.
static Status run_all(Rank *r, bool marks, Diag *d) {
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    const DeviceApi *api = runtime_device(r->runtime);
    for (int i = 0; i < p->nstep; i++) {
        double begin = marks && !api ? now() : 0;
        if (marks && api) TRY(api->mark(r->device, i, d));
        Status st = run_one(r, i, d);
        if (marks && !api) r->seconds[i] = now() - begin;
        if (st == ST_OK && r->runtime->options.trace) st = rank_trace(r, i, d);
        if (st == ST_OK) continue;
        diag_error(d, st, "failed");  // in case the kernel gave no text
        // What a kernel recorded comes to light in the next exchange, whose fence has named the kernel.
        bool named = p->step[i].kind == STEP_EXCHANGE && st == ST_NUMERIC;
        if (st != ST_COMM && !named) name_failure(r, p->step[i].node, d);
        return st;
    }
    return marks && api ? api->mark(r->device, p->nstep, d) : ST_OK;
}

// Other ranks are met on the host, which no captured step can do.
static bool can_capture(const Rank *r) {
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    for (int i = 0; i < p->nstep; i++)
        if (p->step[i].kind == STEP_EXCHANGE && p->step[i].exchange->collective) return false;
    return r->runtime->options.capture && !r->runtime->options.trace && runtime_device(r->runtime)->capture_begin;
}

// The first step runs launch by launch (libraries load what they need lazily), the second is captured, all later ones replay it.
static Status launch_step(Rank *r, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    bool profile = r->runtime->profile && r->seconds;
    if (profile || !can_capture(r) || r->nrun++ == 0) return run_all(r, profile, d);
    if (!r->graph) {
        TRY(api->capture_begin(r->device, d));
        Status st = run_all(r, false, d);
        Diag later = {0};
        Status end = api->capture_end(r->device, &r->graph, st == ST_OK ? d : &later);
        TRY(st);
        TRY(end);
    }
    return api->replay(r->device, r->graph, d);
}

static Status step_on_device(Rank *r, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    TRY(api->begin(r->device, r->runtime->run_seed, r->runtime->step, d));
    TRY(launch_step(r, d));
    TRY(memory_fence(r, d));
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    if (!r->runtime->profile || !r->seconds) return ST_OK;
    for (int i = 0; i < p->nstep; i++) TRY(api->elapsed(r->device, i, i + 1, &r->seconds[i], d));
    for (int i = 0; i < p->ncopy; i++) TRY(api->copy_times(r->device, i, &r->copies[2 * i], &r->copies[2 * i + 1], d));
    return ST_OK;
}

static Status prepare_all(Rank *r, Diag *d) {
    const RankPlan *p = &r->runtime->plan->rank[r->index];
    for (int i = 0; i < p->nstep; i++) {
        if (p->step[i].kind != STEP_KERNEL) continue;
        KernelArgs k = step_args(r, i);
        Status st = runtime_device(r->runtime)->prepare(r->device, &k, &r->state[i], d);
        if (st == ST_OK) continue;
        diag_error(d, st, "failed");
        return name_failure(r, p->step[i].node, d);
    }
    return memory_fence(r, d);
}

static Status run_errand(Rank *r, bool read, Diag *d) {
    const DeviceApi *api = runtime_device(r->runtime);
    const Errand *e = &r->runtime->errand;
    if (e->rank != r->index) return ST_OK;
    if (e->host) {
        memcpy(read ? r->runtime->courier : r->host + e->offset, read ? r->host + e->offset : r->runtime->courier, (size_t)e->nbytes);
        return ST_OK;
    }
    return read ? api->read(r->device, r->runtime->courier, r->arena + e->offset, (size_t)e->nbytes, d)
                : api->write(r->device, r->arena + e->offset, r->runtime->courier, (size_t)e->nbytes, d);
}

static Status run_command(Rank *r, Command c, Diag *d) {
    switch (c) {
    case CMD_AGREE: return comm_agree(r->comm, r->runtime->plan->hash, "plan", d);
    case CMD_PREPARE: return prepare_all(r, d);
    case CMD_READ:
    case CMD_WRITE: return run_errand(r, c == CMD_READ, d);
    default: return r->device ? step_on_device(r, d) : run_all(r, r->runtime->profile && r->seconds, d);
    }
}

void rank_obey(Rank *r, Command c) {
    diag_clear(&r->diag);
    r->status = run_command(r, c, &r->diag);
    if (r->status != ST_OK) r->comm->vt->abort(r->comm, r->diag.text);
}
