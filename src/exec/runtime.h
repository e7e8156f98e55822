// A Runtime from the inside: shared by runtime.c (ranks, steps) and runtime_state.c (values in and out).
#pragma once
#include <pthread.h>

#include "exec/exec.h"

typedef struct Rank {
    struct Runtime *runtime;
    int index;
    char *arena;
    int64_t arena_nbytes;    // as allocated
    Comm *comm;
    Pool *pool;
    Operand *operand;        // room for the operands of any step
    pthread_t thread;
    bool has_thread;
    Status status;           // of the last command
    Diag diag;
} Rank;

typedef enum Command { CMD_AGREE, CMD_STEP, CMD_QUIT } Command;
struct Runtime {
    const Plan *plan;
    uint64_t run_seed;
    Rank *rank;              // [nranks]
    pthread_mutex_t lock;
    pthread_cond_t start, finish;
    Command command;
    uint64_t generation;     // commands given
    int nbusy;
    int64_t step;
};

static inline void *rank_buffer(const Rank *r, int32_t buf) {
    return r->arena + r->runtime->plan->rank[r->index].buffer[buf].offset;
}
