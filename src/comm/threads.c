// Ranks as threads of one process, or as processes of one machine (then what they share lies in shared memory). A collective
// publishes every rank's pointers, meets at a barrier, copies what is its own out of the others' send buffers, and meets again
// before the senders may go on. Waiting sleeps on a condition variable (there are often more ranks than cores); a rank that waits
// too long, or one that failed, wakes everybody with an error.
#include "comm/comm.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef struct Slot {        // what a rank shows the others during a collective
    const char *send;
    const int64_t *send_off, *send_nbytes;
    const char *label;
    uint64_t word;           // of share
    uint64_t arrivals;       // barriers this rank has entered
} Slot;
typedef struct World {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int nranks, nwaiting, nusers;
    uint64_t generation;     // barriers completed
    double timeout_s;
    bool aborted;
    bool shared;             // by processes
    char why[512];
    Slot slot[];
} World;
typedef struct ThreadsComm {
    Comm base;
    World *world;
} ThreadsComm;

static size_t world_nbytes(int nranks) { return sizeof(World) + (size_t)nranks * sizeof(Slot); }

static void world_fail(World *w, const char *why) {  // lock held
    if (!w->aborted) {
        w->aborted = true;
        snprintf(w->why, sizeof w->why, "%s", why);
    }
    pthread_cond_broadcast(&w->wake);
}

static struct timespec deadline_after(double seconds) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double whole = seconds > 1e9 ? 1e9 : seconds;
    t.tv_sec += (time_t)whole;
    t.tv_nsec += (long)((whole - (double)(time_t)whole) * 1e9);
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

// Names the ranks that have not entered the barrier `generation` + 1 waits for.
static void world_timeout(World *w, const char *label) {
    char text[sizeof w->why];
    int n = snprintf(text, sizeof text, "%s: waited %g s for rank", label, w->timeout_s);
    for (int r = 0; r < w->nranks && n > 0 && (size_t)n < sizeof text - 16; r++)
        if (w->slot[r].arrivals == w->generation) n += snprintf(text + n, sizeof text - (size_t)n, " %d", r);
    world_fail(w, text);
}

// Enters the barrier with this rank's slot already filled in; the lock is held on entry and on return.
static Status world_meet(World *w, int rank, const char *label, Diag *d) {
    uint64_t mine = w->generation;
    if (!w->aborted) {
        w->slot[rank].label = label;
        w->slot[rank].arrivals++;
        if (++w->nwaiting == w->nranks) {
            w->nwaiting = 0;
            w->generation++;
            pthread_cond_broadcast(&w->wake);
            return ST_OK;
        }
    }
    struct timespec deadline = deadline_after(w->timeout_s);
    while (!w->aborted && w->generation == mine)
        if (pthread_cond_timedwait(&w->wake, &w->lock, &deadline) == ETIMEDOUT && w->generation == mine && !w->aborted)
            world_timeout(w, label);
    if (w->generation != mine) return ST_OK;  // completed before anything went wrong
    return diag_error(d, ST_COMM, "rank %d stopped: %s", rank, w->why);
}

// All ranks must be in the same collective, and what one sends another must expect.
static Status check_slots(World *w, int rank, const int64_t *recv_nbytes, const char *label, Diag *d) {
    for (int r = 0; r < w->nranks; r++) {
        const Slot *s = &w->slot[r];
        char text[sizeof w->why];
        if (!s->send_nbytes || strcmp(s->label, label) != 0)
            snprintf(text, sizeof text, "rank %d is in \"%s\" while rank %d is in \"%s\"", rank, label, r, s->label);
        else if (s->send_nbytes[rank] != recv_nbytes[r])
            snprintf(text, sizeof text, "%s: rank %d sends %lld bytes to rank %d, which expects %lld", label, r,
                     (long long)s->send_nbytes[rank], rank, (long long)recv_nbytes[r]);
        else continue;
        world_fail(w, text);
        return diag_error(d, ST_COMM, "%s", text);
    }
    return ST_OK;
}

static Status copy_own(Comm *c, const World *w, void *recv, const int64_t *recv_off, const int64_t *recv_nbytes, Diag *d) {
    for (int i = 0; i < c->nranks; i++) {
        int r = (c->rank + i) % c->nranks;  // start at different peers: spreads the reads
        if (recv_nbytes[r] <= 0) continue;
        char *dst = (char *)recv + recv_off[r];
        const char *src = w->slot[r].send + w->slot[r].send_off[c->rank];
        if (c->memory) TRY(c->memory->copy(c->memory->ctx, dst, r, src, (size_t)recv_nbytes[r], d));
        else memcpy(dst, src, (size_t)recv_nbytes[r]);
    }
    return c->memory ? c->memory->fence(c->memory->ctx, d) : ST_OK;
}

static Status threads_alltoallv(Comm *c, const void *send, const int64_t *send_off, const int64_t *send_nbytes, void *recv,
                                const int64_t *recv_off, const int64_t *recv_nbytes, const char *label, Diag *d) {
    World *w = ((ThreadsComm *)c)->world;
    if (c->memory) TRY(c->memory->fence(c->memory->ctx, d));  // what was packed is there before others read it
    pthread_mutex_lock(&w->lock);
    w->slot[c->rank].send = send;
    w->slot[c->rank].send_off = send_off;
    w->slot[c->rank].send_nbytes = send_nbytes;
    Status st = world_meet(w, c->rank, label, d);
    if (st == ST_OK) st = check_slots(w, c->rank, recv_nbytes, label, d);
    pthread_mutex_unlock(&w->lock);
    if (st != ST_OK) return st;
    TRY(copy_own(c, w, recv, recv_off, recv_nbytes, d));
    pthread_mutex_lock(&w->lock);
    st = world_meet(w, c->rank, label, d);
    pthread_mutex_unlock(&w->lock);
    return st;
}

static Status threads_share(Comm *c, uint64_t mine, uint64_t *all, const char *label, Diag *d) {
    World *w = ((ThreadsComm *)c)->world;
    pthread_mutex_lock(&w->lock);
    w->slot[c->rank].send_nbytes = NULL;
    w->slot[c->rank].word = mine;
    Status st = world_meet(w, c->rank, label, d);
    for (int r = 0; r < c->nranks && st == ST_OK; r++) all[r] = w->slot[r].word;
    if (st == ST_OK) st = world_meet(w, c->rank, label, d);  // nobody goes on and shows another word before all have read
    pthread_mutex_unlock(&w->lock);
    return st;
}

static Status threads_barrier(Comm *c, const char *label, Diag *d) {
    World *w = ((ThreadsComm *)c)->world;
    pthread_mutex_lock(&w->lock);
    w->slot[c->rank].send_nbytes = NULL;
    Status st = world_meet(w, c->rank, label, d);
    pthread_mutex_unlock(&w->lock);
    return st;
}

static void threads_abort(Comm *c, const char *why) {
    World *w = ((ThreadsComm *)c)->world;
    char text[sizeof w->why];
    snprintf(text, sizeof text, "rank %d failed: %s", c->rank, why);
    pthread_mutex_lock(&w->lock);
    world_fail(w, text);
    pthread_mutex_unlock(&w->lock);
}

static void threads_free(Comm *c) {
    World *w = ((ThreadsComm *)c)->world;
    pthread_mutex_lock(&w->lock);
    bool last = --w->nusers == 0;
    pthread_mutex_unlock(&w->lock);
    if (last) {
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->lock);
        free(w);
    }
    free(c);
}

// Each process has its own view of the world: rank 0's communicator, freed last, lets go of it.
static void processes_free(Comm *c) {
    World *w = ((ThreadsComm *)c)->world;
    if (c->rank == 0) munmap(w, world_nbytes(w->nranks));
    free(c);
}

static const CommVtable threads_vtable = {"threads",       threads_alltoallv, threads_share,
                                          threads_barrier, threads_abort,     threads_free};
static const CommVtable processes_vtable = {"processes",     threads_alltoallv, threads_share,
                                            threads_barrier, threads_abort,     processes_free};

static void world_init(World *w, int nranks, double timeout_s, bool shared) {
    w->nranks = w->nusers = nranks;
    w->timeout_s = timeout_s;
    w->shared = shared;
    pthread_condattr_t cond;
    pthread_mutexattr_t mutex;
    pthread_condattr_init(&cond);
    pthread_mutexattr_init(&mutex);
    pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
    if (shared) {
        pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    }
    pthread_mutex_init(&w->lock, &mutex);
    pthread_cond_init(&w->wake, &cond);
    pthread_condattr_destroy(&cond);
    pthread_mutexattr_destroy(&mutex);
}

static void make_comms(World *w, Comm **out) {
    for (int r = 0; r < w->nranks; r++) {
        ThreadsComm *c = malloc(sizeof *c);
        CHECK(c != NULL, "out of memory for a communicator");
        *c = (ThreadsComm){.base = {.vt = w->shared ? &processes_vtable : &threads_vtable, .rank = r, .nranks = w->nranks},
                           .world = w};
        out[r] = &c->base;
    }
}

Status comm_threads_new(int nranks, double timeout_s, Comm **out, Diag *d) {
    CHECK(nranks >= 1, "%d ranks", nranks);
    World *w = calloc(1, world_nbytes(nranks));
    if (!w) return diag_error(d, ST_MEMORY, "out of memory for %d ranks", nranks);
    world_init(w, nranks, timeout_s, false);
    make_comms(w, out);
    return ST_OK;
}

Status comm_processes_new(int nranks, double timeout_s, Comm **out, Diag *d) {
    CHECK(nranks >= 1, "%d ranks", nranks);
    World *w = mmap(NULL, world_nbytes(nranks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (w == MAP_FAILED) return diag_error(d, ST_MEMORY, "out of shared memory for %d ranks", nranks);
    world_init(w, nranks, timeout_s, true);
    make_comms(w, out);
    return ST_OK;
}
