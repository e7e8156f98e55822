// Where a step's time goes, kernel by kernel, from what runtime_profile measured.
#pragma once
#include "plan/plan.h"

// A table by kind of kernel: launches, seconds, share of the step, what the device model predicted beside it, achieved rate.
// `wall_s` is what an unprofiled step took (NaN: not known).
void profile_print(FILE *f, const Plan *p, const DeviceModel *m, int rank, const double *seconds, double wall_s);
// Chrome's trace format (chrome://tracing, Perfetto): one track per rank, one event per kernel or exchange with shapes and source
// line.
Status profile_write_trace(const char *path, const Plan *p, const double *const *seconds, Diag *d);
