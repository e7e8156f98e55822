// How much memory this machine can still give.
#pragma once
#include "base/diag.h"
#include "plan/plan.h"

// ST_MEMORY, with both figures and what to do, if the arenas of all ranks of `p` do not fit into what is available now. The
// system would promise the memory all the same and end the process in the middle of a step.
Status available_check(const Plan *p, Diag *d);
// Host memory that a new program could have now, bytes: what the system and the control group leave. -1: not known.
int64_t available_host_nbytes(void);
