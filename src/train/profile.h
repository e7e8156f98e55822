// Where a step's time goes, kernel by kernel, from what runtime_profile measured.
#pragma once
#include "exec/exec.h"

// A table by kind of kernel: launches, seconds, share of the step, what the device model predicted beside it, achieved rate.
// `wall_s` is what an unprofiled step took (NaN: not known). With values in host memory also how fast they were copied each way, and how
// long the kernels stood still for that.
void profile_print(FILE *f, const Plan *p, const DeviceModel *m, int rank, const StepTimes *times, double wall_s);
// Chrome's trace format (chrome://tracing, Perfetto): a process per rank with a track for the kernels, one event per kernel or exchange with
// shapes and source line, and one for the copies of each direction.
Status profile_write_trace(const char *path, const Plan *p, const StepTimes *times, Diag *d);
