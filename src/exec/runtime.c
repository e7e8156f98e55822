// Ranks as threads (or processes) that execute their plans in lock step with their communicator. The caller's thread gives a command
// and waits.
#include "exec/available.h"
#include "exec/runtime.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Ranks share a process, so a missing one is a bug, not a lost machine; long kernels on few cores must not trip the watchdog.
enum { COMM_TIMEOUT_S = 3600 };

// ---- ranks at work -------------------------------------------------------------------------------------------------------
static void finish_command(Runtime *rt) {
    pthread_mutex_lock(&rt->lock);
    if (--rt->nbusy == 0) pthread_cond_signal(&rt->finish);
    pthread_mutex_unlock(&rt->lock);
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
        finish_command(rt);
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
        rank_set_comm(&rt->rank[i], c[i]);
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
    if (rt->options.processes) rt->broken = true;
    else TRY(make_comms(rt, d));  // the old ones are aborted for good
    return diag_error(d, worst->status, "%s", worst->diag.text);
}

// A rank's process that ended without a word. Its number may belong to somebody else from now on.
static const Rank *lost_process(Runtime *rt) {
    for (int i = 0; i < rt->plan->nranks && rt->options.processes; i++) {
        Rank *r = &rt->rank[i];
        if (r->pid <= 0 || waitpid(r->pid, NULL, WNOHANG) == 0) continue;
        r->pid = 0;
        return r;
    }
    return NULL;
}

// Waits until all ranks have obeyed.
static Status await_ranks(Runtime *rt, Diag *d) {
    pthread_mutex_lock(&rt->lock);
    const Rank *lost = NULL;
    while (rt->nbusy > 0 && !lost) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec++;
        if (pthread_cond_timedwait(&rt->finish, &rt->lock, &t) == ETIMEDOUT) lost = lost_process(rt);
    }
    pthread_mutex_unlock(&rt->lock);
    if (!lost) return collect_errors(rt, d);
    rt->broken = true;
    return diag_error(d, ST_COMM, "the process of rank %d ended unexpectedly", lost->index);
}

static Status command_all(Runtime *rt, Command c, Diag *d) {
    if (rt->broken) return diag_error(d, ST_COMM, "a rank failed before; start again");
    if (!rt->rank[0].has_thread && !rt->options.processes) {
        rank_obey(&rt->rank[0], c);
        return collect_errors(rt, d);
    }
    pthread_mutex_lock(&rt->lock);
    rt->command = c;
    rt->generation++;
    rt->nbusy = rt->plan->nranks;
    pthread_cond_broadcast(&rt->start);
    pthread_mutex_unlock(&rt->lock);
    return await_ranks(rt, d);
}

// ---- starting --------------------------------------------------------------------------------------------------------------
static Status start_threads(Runtime *rt, Diag *d) {
    for (int i = 0; i < rt->plan->nranks; i++) TRY(rank_open(&rt->rank[i], d));
    TRY(make_comms(rt, d));
    for (int i = 0; i < rt->plan->nranks && rt->plan->nranks > 1; i++) {
        if (pthread_create(&rt->rank[i].thread, NULL, rank_main, &rt->rank[i]) != 0)
            return diag_error(d, ST_MEMORY, "cannot start a thread for rank %d of %d", i, rt->plan->nranks);
        rt->rank[i].has_thread = true;
    }
    return ST_OK;
}

// A rank's process: opens its device, says so, and obeys until it is told to quit. It never returns.
static _Noreturn void rank_process(Rank *r, int parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    r->status = rank_open(r, &r->diag);
    if (r->status == ST_OK) rank_set_comm(r, r->comm);
    else r->comm->vt->abort(r->comm, r->diag.text);
    finish_command(r->runtime);
    rank_main(r);
    Comm *c = r->comm;  // the commanding process has one at the same address, and is yet to free it
    rank_close(r);
    r->comm = c;
    _exit(0);
}

static Status start_processes(Runtime *rt, Diag *d) {
    int n = rt->plan->nranks, parent = getpid();
    if (!runtime_device(rt)) return diag_error(d, ST_UNSUPPORTED, "ranks as processes need a device; on the CPU ranks are threads");
    Comm **c = calloc((size_t)n, sizeof *c);
    if (!c) return diag_error(d, ST_MEMORY, "out of memory for %d ranks", n);
    rt->courier = mmap(NULL, COURIER_NBYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    Status st = rt->courier == MAP_FAILED ? diag_error(d, ST_MEMORY, "out of shared memory") : comm_processes_new(n, COMM_TIMEOUT_S, c, d);
    rt->nbusy = n;
    for (int i = 0; i < n && st == ST_OK; i++) {
        rt->rank[i].comm = c[i];
        fflush(NULL);  // or the child would write it again
        rt->rank[i].pid = fork();
        if (rt->rank[i].pid == 0) rank_process(&rt->rank[i], parent);
        if (rt->rank[i].pid < 0) st = diag_error(d, ST_MEMORY, "cannot start a process for rank %d of %d", i, n);
    }
    free(c);
    TRY(st);
    return await_ranks(rt, d);
}

static Runtime *runtime_alloc(const Plan *p, const RuntimeOptions *o) {
    size_t nbytes = sizeof(Runtime) + (size_t)p->nranks * sizeof(Rank);
    Runtime *rt;
    if (o->processes) {
        rt = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (rt == MAP_FAILED) return NULL;
        rt->shared_nbytes = nbytes;
    } else if (!(rt = calloc(1, nbytes))) {
        return NULL;
    }
    rt->rank = (Rank *)(rt + 1);
    rt->plan = p;
    rt->options = *o;
    for (int i = 0; i < p->nranks; i++) rt->rank[i].runtime = rt, rt->rank[i].index = i;
    pthread_mutexattr_t mutex;
    pthread_condattr_t cond;
    pthread_mutexattr_init(&mutex);
    pthread_condattr_init(&cond);
    if (o->processes) {
        pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
        pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    }
    pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
    pthread_mutex_init(&rt->lock, &mutex);
    pthread_cond_init(&rt->start, &cond);
    pthread_cond_init(&rt->finish, &cond);
    pthread_mutexattr_destroy(&mutex);
    pthread_condattr_destroy(&cond);
    return rt;
}

Status runtime_new_with(const Plan *p, const RuntimeOptions *o, Runtime **out, Diag *d) {
    CHECK(p->nmade == p->nranks, "a plan of %d of %d ranks is to look at, not to run", p->nmade, p->nranks);
    TRY(available_check(p, d));
    if (p->backend->device && !p->backend->device->count && !o->processes) return diag_error(d, ST_UNSUPPORTED, "the %s backend cannot run", p->backend->name);
    Runtime *rt = runtime_alloc(p, o);
    if (!rt) return diag_error(d, ST_MEMORY, "out of memory for %d ranks", p->nranks);
    rt->run_seed = o->run_seed;
    sigset_t all, old;
    sigfillset(&all);  // signals are the main thread's business
    pthread_sigmask(SIG_SETMASK, &all, &old);
    Status st = o->processes ? start_processes(rt, d) : start_threads(rt, d);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (st == ST_OK) st = command_all(rt, CMD_AGREE, d);
    if (st == ST_OK && p->backend->device) st = command_all(rt, CMD_PREPARE, d);
    if (st == ST_OK) st = runtime_set_const_inputs(rt, d);
    if (st != ST_OK) {
        runtime_free(rt);
        return st;
    }
    *out = rt;
    return ST_OK;
}

Status runtime_new(const Plan *p, uint64_t run_seed, Runtime **out, Diag *d) {
    return runtime_new_with(p, &(RuntimeOptions){.run_seed = run_seed, .capture = true}, out, d);
}

static void stop_processes(Runtime *rt) {
    for (int i = 0; i < rt->plan->nranks; i++) {
        Rank *r = &rt->rank[i];
        if (r->pid > 0 && rt->broken) kill(r->pid, SIGKILL);
        if (r->pid > 0) waitpid(r->pid, NULL, 0);
    }
    for (int i = rt->plan->nranks - 1; i >= 0; i--)
        if (rt->rank[i].comm) rt->rank[i].comm->vt->free(rt->rank[i].comm);
    if (rt->courier && rt->courier != MAP_FAILED) munmap(rt->courier, COURIER_NBYTES);
}

void runtime_free(Runtime *rt) {
    if (!rt) return;
    pthread_mutex_lock(&rt->lock);
    rt->command = CMD_QUIT;
    rt->generation++;
    pthread_cond_broadcast(&rt->start);
    pthread_mutex_unlock(&rt->lock);
    if (rt->options.processes) {
        stop_processes(rt);
        munmap(rt, rt->shared_nbytes);
        return;
    }
    for (int i = 0; i < rt->plan->nranks; i++)
        if (rt->rank[i].has_thread) pthread_join(rt->rank[i].thread, NULL);
    for (int i = 0; i < rt->plan->nranks; i++) {
        rank_close(&rt->rank[i]);
        free(rt->rank[i].seconds);
        free(rt->rank[i].copies);
    }
    pthread_mutex_destroy(&rt->lock);
    pthread_cond_destroy(&rt->start);
    pthread_cond_destroy(&rt->finish);
    free(rt);
}

// ---- a device's memory ------------------------------------------------------------------------------------------------------------
Status runtime_read(Runtime *rt, int rank, int32_t buf, void *to, int64_t nbytes, Diag *d) {
    const Rank *r = &rt->rank[rank];
    const Buffer *b = &rt->plan->rank[rank].buffer[buf];
    if (!rt->options.processes && !b->host) return runtime_device(rt)->read(r->device, to, rank_buffer(r, buf), (size_t)nbytes, d);
    if (!rt->options.processes && nbytes > 0) return memcpy(to, rank_buffer(r, buf), (size_t)nbytes), ST_OK;
    for (int64_t at = 0; at < nbytes; at += COURIER_NBYTES) {
        rt->errand = (Errand){rank, b->host, b->offset + at, min_i64(COURIER_NBYTES, nbytes - at)};
        TRY(command_all(rt, CMD_READ, d));
        memcpy((char *)to + at, rt->courier, (size_t)rt->errand.nbytes);
    }
    return ST_OK;
}

Status runtime_write(Runtime *rt, int rank, int32_t buf, const void *from, int64_t nbytes, Diag *d) {
    const Rank *r = &rt->rank[rank];
    const Buffer *b = &rt->plan->rank[rank].buffer[buf];
    if (!rt->options.processes && !b->host) return runtime_device(rt)->write(r->device, rank_buffer(r, buf), from, (size_t)nbytes, d);
    if (!rt->options.processes && nbytes > 0) return memcpy(rank_buffer(r, buf), from, (size_t)nbytes), ST_OK;
    for (int64_t at = 0; at < nbytes; at += COURIER_NBYTES) {
        rt->errand = (Errand){rank, b->host, b->offset + at, min_i64(COURIER_NBYTES, nbytes - at)};
        memcpy(rt->courier, (const char *)from + at, (size_t)rt->errand.nbytes);
        TRY(command_all(rt, CMD_WRITE, d));
    }
    return ST_OK;
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

Status runtime_profile(Runtime *rt, int64_t step, double *loss, StepTimes *times, Diag *d) {
    if (rt->options.processes) return diag_error(d, ST_UNSUPPORTED, "profiles are taken with ranks as threads");
    for (int i = 0; i < rt->plan->nranks; i++) {
        Rank *r = &rt->rank[i];
        if (!r->seconds) r->seconds = calloc((size_t)rt->plan->rank[i].nstep + 1, sizeof *r->seconds);
        if (!r->copies) r->copies = calloc((size_t)rt->plan->rank[i].ncopy + 1, 2 * sizeof *r->copies);
        if (!r->seconds || !r->copies) return diag_error(d, ST_MEMORY, "out of memory for a profile");
        times[i] = (StepTimes){r->seconds, r->copies};
    }
    rt->profile = true;
    Status st = runtime_step(rt, step, loss, d);
    rt->profile = false;
    return st;
}

bool runtime_device_used(const Runtime *rt, double *used, double *planned) {
    size_t have, total;
    Diag d = {0};
    if (!runtime_device(rt) || rt->options.processes || runtime_device(rt)->available(0, &have, &total, &d) != ST_OK) return false;
    *used = (double)(total - have);
    *planned = 0;
    int count = runtime_device(rt)->count();
    for (int r = 0; r < rt->plan->nranks; r += count > 0 ? count : 1) *planned += (double)rt->rank[r].arena_nbytes;
    return true;
}

int64_t runtime_arena_nbytes(const Runtime *rt, int rank) { return rt->rank[rank].arena_nbytes; }
int64_t runtime_host_nbytes(const Runtime *rt, int rank) { return rt->rank[rank].host_nbytes; }
