// A Runtime from the inside: shared by runtime.c (ranks, steps), rank.c (one rank) and runtime_state.c (values in and out).
#pragma once
#include <pthread.h>

#include "exec/exchange.h"
#include "exec/exec.h"

// A rank is a thread of this process, or (options.processes) a process of its own: then this struct lies in shared memory, and
// what is marked "own" means something in the rank's process only.
typedef struct Rank {
    struct Runtime *runtime;
    int index;
    char *arena;             // own: address of the arena (a device address on a device)
    int64_t arena_nbytes;    // as allocated
    char *host;              // own: address of the host arena
    int64_t host_nbytes;     // as allocated
    Comm *comm;              // own
    CommMemory comm_memory;  // own
    Pool *pool;              // own; CPU
    Device *device;          // own; devices
    void **state;            // own; devices: [nstep] what prepare made
    void *graph;             // own; devices: the captured step
    int64_t nrun;            // own: steps run
    void **peer;             // own; processes: arenas of the other ranks as mapped here
    Operand *operand;        // own: room for the operands of any step
    char handle[64];         // processes: names the arena
    double *seconds;         // [nstep] when profiled: of each step, by the device's clock
    double *copies;          // [ncopy][2] when profiled: begin and end of each copy, since the first step began
    pthread_t thread;
    bool has_thread;
    int pid;                 // processes; 0: none
    Status status;           // of the last command
    Diag diag;
} Rank;

typedef enum Command { CMD_AGREE, CMD_PREPARE, CMD_STEP, CMD_READ, CMD_WRITE, CMD_QUIT } Command;
// Processes: one rank's bytes to or from memory that all processes share. The commanding process never touches a device itself: a
// process that did could not fork again.
typedef struct Errand {
    int rank;
    bool host;               // the host arena
    int64_t offset, nbytes;  // in that arena
} Errand;
enum { COURIER_NBYTES = 8 << 20 };
struct Runtime {
    const Plan *plan;
    RuntimeOptions options;
    uint64_t run_seed;
    Rank *rank;              // [nranks]
    pthread_mutex_t lock;
    pthread_cond_t start, finish;
    Command command;
    uint64_t generation;     // commands given
    int nbusy;
    int64_t step;
    bool profile;            // the next step is timed kernel by kernel
    bool broken;             // processes: one failed, the others cannot go on
    Errand errand;
    char *courier;           // processes: COURIER_NBYTES that all share
    size_t shared_nbytes;    // processes: of this struct and what follows it
};

static inline const DeviceApi *runtime_device(const Runtime *rt) { return rt->plan->backend->device; }
static inline void *rank_buffer(const Rank *r, int32_t buf) {
    const Buffer *b = &r->runtime->plan->rank[r->index].buffer[buf];
    return (b->host ? r->host : r->arena) + b->offset;
}
// A rank's buffer where the backend is a device, from and to memory of the caller's.
Status runtime_read(Runtime *rt, int rank, int32_t buf, void *to, int64_t nbytes, Diag *d);
Status runtime_write(Runtime *rt, int rank, int32_t buf, const void *from, int64_t nbytes, Diag *d);
// In the rank's own thread or process.
Status rank_open(Rank *r, Diag *d);   // arena, workers or device
void rank_close(Rank *r);
void rank_obey(Rank *r, Command c);
Status rank_trace(Rank *r, int index, Diag *d);  // trace.c
void rank_set_comm(Rank *r, Comm *c);
