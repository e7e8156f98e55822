// Runs one STEP_EXCHANGE of one rank: pack, move, unpack. Nothing is allocated.
#pragma once
#include "comm/comm.h"
#include "plan/plan.h"

// Where the ranks' values lie: api NULL: in host memory.
typedef struct Memory {
    const DeviceApi *api;
    Device *device;
} Memory;

// `in` and `out` carry local dims and data; `staging` is the step's scratch buffer (NULL if it has none).
Status exchange_run(Comm *c, const Memory *m, const Step *s, const Operand *in, const Operand *out, void *staging,
                    const char *label, Diag *d);
