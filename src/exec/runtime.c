// Ranks as threads that execute their plans in lock step with their communicator. The caller's thread gives a command and waits.
#include "exec/available.h"
#include "exec/runtime.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "exec/exchange.h"

// Ranks share a process, so a missing one is a bug, not a lost machine; long kernels on few cores must not trip the watchdog.
enum { COMM_TIMEOUT_S = 3600 };

// ---- one rank -----------------------------------------------------------------------------------------------------------
static Status name_failure(const Rank *r, NodeId node, Diag *d) {
    Arena *a = arena_new();
    diag_where(d, "rank %d: %s", r->index, a ? node_describe(r->runtime->plan->graph, node, a) : "node");
    arena_free(a);
    return d->status;
}

static Status rank_run_step(Rank *r, const Step *s, Diag *d) {
    const Runtime *rt = r->runtime;
    const RankPlan *p = &rt->plan->rank[r->index];
    const Node *n = graph_node(rt->plan->graph, s->node);
    Operand *in = r->operand, *out = r->operand + s->nin;
    for (int i = 0; i < s->nin; i++) {
        in[i] = s->in[i];
        in[i].data = rank_buffer(r, s->in_buf[i]);
    }
    for (int i = 0; i < s->nout; i++) {
        out[i] = s->out[i];
        out[i].data = rank_buffer(r, s->out_buf[i]);
    }
    void *scratch = s->scratch_buf >= 0 ? rank_buffer(r, s->scratch_buf) : NULL;
    if (s->kind == STEP_EXCHANGE) return exchange_run(r->comm, s, in, out, scratch, n->note ? n->note : "reshard", d);
    KernelArgs k = {
        .node = n, .nin = s->nin, .nout = s->nout, .in = in, .out = out, .scratch = scratch,
        .scratch_nbytes = scratch ? (size_t)p->buffer[s->scratch_buf].nbytes : 0,
        .pool = r->pool, .run_seed = rt->run_seed, .step = rt->step,
    };
    return s->kernel(&k, d);
}

static Status rank_run_command(Rank *r, Command c, Diag *d) {
    const Plan *plan = r->runtime->plan;
    if (c == CMD_AGREE) return comm_agree(r->comm, plan->hash, "plan", d);
    const RankPlan *p = &plan->rank[r->index];
    for (int i = 0; i < p->nstep; i++) {
        Status st = rank_run_step(r, &p->step[i], d);
        if (st == ST_OK) continue;
        diag_error(d, st, "failed");  // in case the kernel gave no text
        if (st != ST_COMM) name_failure(r, p->step[i].node, d);
        return st;
    }
    return ST_OK;
}

static void rank_obey(Rank *r, Command c) {
    diag_clear(&r->diag);
    r->status = rank_run_command(r, c, &r->diag);
    if (r->status != ST_OK) r->comm->vt->abort(r->comm, r->diag.text);
}

static void *rank_main(void *arg) {
    Rank *r = arg;
    Runtime *rt = r->runtime;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&rt->lock);
        while (rt->generation == seen) pthread_cond_wait(&rt->start, &rt->lock);
        seen = rt->generation;
        Command c = rt->command;
        pthread_mutex_unlock(&rt->lock);
        if (c == CMD_QUIT) return NULL;
        rank_obey(r, c);
        pthread_mutex_lock(&rt->lock);
        if (--rt->nbusy == 0) pthread_cond_signal(&rt->finish);
        pthread_mutex_unlock(&rt->lock);
    }
}

// ---- all ranks ----------------------------------------------------------------------------------------------------------
static Status make_comms(Runtime *rt, Diag *d) {
    int n = rt->plan->nranks;
    Comm **c = calloc((size_t)n, sizeof *c);
    if (!c) return diag_error(d, ST_MEMORY, "out of memory for %d ranks", n);
    Status st = ST_OK;
    if (n == 1) c[0] = comm_self_new();
    else st = comm_threads_new(n, COMM_TIMEOUT_S, c, d);
    if (st == ST_OK && !c[0]) st = diag_error(d, ST_MEMORY, "out of memory for a communicator");
    for (int i = 0; i < n && st == ST_OK; i++) {
        if (rt->rank[i].comm) rt->rank[i].comm->vt->free(rt->rank[i].comm);
        rt->rank[i].comm = c[i];
    }
    free(c);
    return st;
}

// The error to report: a rank's own failure rather than the others' "rank k failed".
static Status collect_errors(Runtime *rt, Diag *d) {
    const Rank *worst = NULL;
    for (int i = 0; i < rt->plan->nranks; i++) {
        const Rank *r = &rt->rank[i];
        if (r->status == ST_OK) continue;
        if (!worst || (worst->status == ST_COMM && r->status != ST_COMM)) worst = r;
    }
    if (!worst) return ST_OK;
    TRY(make_comms(rt, d));  // the old ones are aborted for good
    return diag_error(d, worst->status, "%s", worst->diag.text);
}

static Status command_all(Runtime *rt, Command c, Diag *d) {
    if (!rt->rank[0].has_thread) {
        rank_obey(&rt->rank[0], c);
        return collect_errors(rt, d);
    }
    pthread_mutex_lock(&rt->lock);
    rt->command = c;
    rt->generation++;
    rt->nbusy = rt->plan->nranks;
    pthread_cond_broadcast(&rt->start);
    while (rt->nbusy > 0) pthread_cond_wait(&rt->finish, &rt->lock);
    pthread_mutex_unlock(&rt->lock);
    return collect_errors(rt, d);
}

static int most_operands(const RankPlan *p) {
    int most = 1;
    for (int i = 0; i < p->nstep; i++) most = p->step[i].nin + p->step[i].nout > most ? p->step[i].nin + p->step[i].nout : most;
    return most;
}

static Status rank_init(Runtime *rt, int i, Diag *d) {
    Rank *r = &rt->rank[i];
    const RankPlan *p = &rt->plan->rank[i];
    const Backend *b = rt->plan->backend;
    r->runtime = rt;
    r->index = i;
    r->arena_nbytes = p->arena_nbytes;
    if (r->arena_nbytes > 0) r->arena = b->alloc((size_t)r->arena_nbytes);
    if (r->arena_nbytes > 0 && !r->arena)
        return diag_error(d, ST_MEMORY, "rank %d: cannot allocate its arena of %lld bytes", i, (long long)r->arena_nbytes);
    r->operand = calloc((size_t)most_operands(p), sizeof *r->operand);
    if (b->pool_new) r->pool = b->pool_new(rt->plan->nthreads);
    if (!r->operand || (b->pool_new && !r->pool))
        return diag_error(d, ST_MEMORY, "rank %d: cannot start %d worker threads", i, rt->plan->nthreads);
    return ST_OK;
}

static Status start_ranks(Runtime *rt, Diag *d) {
    for (int i = 0; i < rt->plan->nranks; i++) TRY(rank_init(rt, i, d));
    TRY(make_comms(rt, d));
    for (int i = 0; i < rt->plan->nranks && rt->plan->nranks > 1; i++) {
        if (pthread_create(&rt->rank[i].thread, NULL, rank_main, &rt->rank[i]) != 0)
            return diag_error(d, ST_MEMORY, "cannot start a thread for rank %d of %d", i, rt->plan->nranks);
        rt->rank[i].has_thread = true;
    }
    return ST_OK;
}

Status runtime_new(const Plan *p, uint64_t run_seed, Runtime **out, Diag *d) {
    TRY(available_check(p, d));
    Runtime *rt = calloc(1, sizeof *rt);
    if (!rt || !(rt->rank = calloc((size_t)p->nranks, sizeof *rt->rank))) {
        free(rt);
        return diag_error(d, ST_MEMORY, "out of memory for %d ranks", p->nranks);
    }
    rt->plan = p;
    rt->run_seed = run_seed;
    pthread_mutex_init(&rt->lock, NULL);
    pthread_cond_init(&rt->start, NULL);
    pthread_cond_init(&rt->finish, NULL);
    sigset_t all, old;
    sigfillset(&all);  // signals are the main thread's business
    pthread_sigmask(SIG_SETMASK, &all, &old);
    Status st = start_ranks(rt, d);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (st == ST_OK) st = command_all(rt, CMD_AGREE, d);
    if (st == ST_OK) st = runtime_set_const_inputs(rt, d);
    if (st != ST_OK) {
        runtime_free(rt);
        return st;
    }
    *out = rt;
    return ST_OK;
}

void runtime_free(Runtime *rt) {
    if (!rt) return;
    pthread_mutex_lock(&rt->lock);
    rt->command = CMD_QUIT;
    rt->generation++;
    pthread_cond_broadcast(&rt->start);
    pthread_mutex_unlock(&rt->lock);
    const Backend *b = rt->plan->backend;
    for (int i = 0; i < rt->plan->nranks; i++) {
        Rank *r = &rt->rank[i];
        if (r->has_thread) pthread_join(r->thread, NULL);
    }
    for (int i = 0; i < rt->plan->nranks; i++) {
        Rank *r = &rt->rank[i];
        if (r->comm) r->comm->vt->free(r->comm);
        if (r->pool) b->pool_free(r->pool);
        if (r->arena) b->free(r->arena, (size_t)r->arena_nbytes);
        free(r->operand);
    }
    pthread_mutex_destroy(&rt->lock);
    pthread_cond_destroy(&rt->start);
    pthread_cond_destroy(&rt->finish);
    free(rt->rank);
    free(rt);
}

Status runtime_step(Runtime *rt, int64_t step, double *loss, Diag *d) {
    rt->step = step;
    TRY(command_all(rt, CMD_STEP, d));
    const Graph *g = rt->plan->graph;
    for (int64_t i = 0; i < g->outputs.len; i++)
        if (g->outputs.data[i].kind == OUT_LOSS && shape_numel(graph_shape(g, g->outputs.data[i].value)) == 1)
            return runtime_get_output(rt, (int)i, loss, d);
    return ST_OK;
}

int64_t runtime_arena_nbytes(const Runtime *rt, int rank) { return rt->rank[rank].arena_nbytes; }
