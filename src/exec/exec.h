// Runs a Plan. A Runtime is P ranks of one process, each a thread with its own arena, communicating by comm "threads" (or "self"
// for one rank). Nothing is allocated during a step.
#pragma once
#include "comm/comm.h"
#include "plan/plan.h"

typedef struct Runtime Runtime;
typedef struct RuntimeOptions {
    uint64_t run_seed;
    bool processes;  // devices: each rank is a process of its own (forked by runtime_new_with: nothing may have used the device before)
    FILE *trace;     // NULL, or: what every step makes, a line each (slow)
    bool poison;     // memory begins as NaN (-1, true) where nothing promises zeros: what is read before it was written shows
    bool capture;    // devices: from the second step on, replay captured launches where the plan allows
} RuntimeOptions;
Status runtime_new_with(const Plan *p, const RuntimeOptions *o, Runtime **out, Diag *d);
// As runtime_new_with without processes, with capture. Allocates every rank's arena, starts the threads, checks that the ranks agree on the plan's hash.
Status runtime_new(const Plan *p, uint64_t run_seed, Runtime **out, Diag *d);
void runtime_free(Runtime *r);

// Parameters and optimizer state. slot 0: the parameter, 1 and 2: AdamW moments. `data` is the whole value in dtype `t`.
Status runtime_set_state(Runtime *r, int32_t param, int slot, const void *data, DType t, Diag *d);
Status runtime_get_state(Runtime *r, int32_t param, int slot, void *data, DType t, Diag *d);
// The whole (global) input, in its graph dtype; each rank takes its part. The pointer is used only during the call.
Status runtime_set_input(Runtime *r, int32_t input, const void *data, Diag *d);
Status runtime_set_const_inputs(Runtime *r, Diag *d);  // constants into the arenas; runtime_new calls it
// AdamW's {lr, 1-beta1^t, 1-beta2^t} for the next step.
Status runtime_set_hyper(Runtime *r, const double hyper[3], Diag *d);
// One step on all ranks. *loss is OUT_LOSS (identical on all ranks).
Status runtime_step(Runtime *r, int64_t step, double *loss, Diag *d);
typedef struct StepTimes {  // of one rank; owned by the runtime
    const double *seconds;  // [nstep] what each step took of the compute stream: of a wait, how long it waited
    const double *copies;   // [ncopy][2] when each copy began and ended, since the first step began
} StepTimes;
// The same step, timed kernel by kernel on a device: times[r] of rank r's plan.
Status runtime_profile(Runtime *r, int64_t step, double *loss, StepTimes *times, Diag *d);
// The whole value of graph output `i`, gathered over ranks, as float64. `data` has its numel.
Status runtime_get_output(Runtime *r, int i, double *data, Diag *d);
// Devices: bytes in use on rank 0's device now, by everybody, and how many bytes of arenas the plan has there; false on the CPU.
bool runtime_device_used(const Runtime *r, double *used, double *planned);
int64_t runtime_arena_nbytes(const Runtime *r, int rank);  // what was really allocated
int64_t runtime_host_nbytes(const Runtime *r, int rank);   // the same of the host arena

// The oracle: evaluates the graph's nodes one by one in float64, no plan, no threads, ignoring placements (exec/reference.c).
// inputs[i], params[i] are whole values as doubles (integers too); out[i] receives graph output i (caller allocates numel doubles).
typedef struct Reference {
    uint64_t run_seed;
    int64_t step;
    const double *const *inputs;
    const double *const *params;   // slot 0
    const double *const *moments;  // [2*param + slot-1], NULL: zeros
    const double *hyper;           // [3]
} Reference;
Status reference_run(const Graph *g, const Reference *r, double *const *out, Diag *d);
// One node: in[i]/out[j] are double arrays of the operands' global shapes. What the per-op tests compare kernels with.
Status reference_node(const Graph *g, const Node *n, const double *const *in, double *const *out, uint64_t run_seed, int64_t step, Diag *d);
