// How ranks exchange bytes. One vtable; everything the plan needs (all-gather, reduce-scatter, all-reduce, halo, all-to-all) is
// an all-to-all-v of packed blocks, so that is the one collective a transport must have. Backends may specialise by `kind`.
#pragma once
#include "base/diag.h"

typedef struct Comm Comm;
typedef struct CommVtable {
    const char *name;  // "self", "threads", "mpi", ...
    // Sends send_nbytes[r] bytes at send + send_off[r] to each rank r, receives likewise; own part included. Blocks until recv
    // is complete and send may be reused. `label` names the collective in errors. All ranks call in the same order.
    Status (*alltoallv)(Comm *c, const void *send, const int64_t *send_off, const int64_t *send_nbytes, void *recv,
                        const int64_t *recv_off, const int64_t *recv_nbytes, const char *label, Diag *d);
    // Every rank shows the others one word of host memory: all[r] becomes rank r's.
    Status (*share)(Comm *c, uint64_t mine, uint64_t *all, const char *label, Diag *d);
    Status (*barrier)(Comm *c, const char *label, Diag *d);
    // Tell the other ranks that this one failed, so that they return ST_COMM instead of waiting for ever.
    void (*abort)(Comm *c, const char *why);
    void (*free)(Comm *c);
} CommVtable;
// How a transport reaches the ranks' memory where that is a device's: all pointers that alltoallv is given are device addresses
// then.
typedef struct CommMemory {
    void *ctx;
    // dst is this rank's; src is at `src` in the memory of rank `from` (as that rank knows the address). May return before it
    // happened.
    Status (*copy)(void *ctx, void *dst, int from, const void *src, size_t nbytes, Diag *d);
    Status (*fence)(void *ctx, Diag *d);  // all copies, and all that was launched before, have happened
} CommMemory;
struct Comm {
    const CommVtable *vt;
    int rank, nranks;
    const CommMemory *memory;  // NULL: host memory; set by the runtime, owned by it
};

Comm *comm_self_new(void);
// nranks communicators for the threads of one process. A rank that waits longer than timeout_s gets ST_COMM naming the
// collective and the missing ranks. out[nranks]; each is freed with its vt->free.
Status comm_threads_new(int nranks, double timeout_s, Comm **out, Diag *d);
// The same for processes that are forked after this call: what the ranks share lies in shared memory. Labels and the count arrays
// of collectives must lie at the same addresses everywhere, as what was made before the fork does.
Status comm_processes_new(int nranks, double timeout_s, Comm **out, Diag *d);
// True for every rank iff all ranks pass the same hash; the error names this rank and the first that differs. Called before step
// 0.
Status comm_agree(Comm *c, uint64_t hash, const char *what, Diag *d);
