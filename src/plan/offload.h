// Which buffers of a rank's plan to hold in host memory while nobody reads them, and when to copy them.
#pragma once
#include "plan/plan.h"

typedef struct Eviction {
    int32_t buffer;
    ValueId value;           // read after the gap; what lies in the buffer during it
    int32_t before, after;   // steps: the last access before the gap, the first one after it
    int32_t done, fetch;     // the device's bytes are free from the start of step `done` until the start of step `fetch`
    int64_t nbytes;
} Eviction;

typedef struct OffloadOptions {
    int64_t budget_nbytes;   // of the device: live bytes at every step
    int64_t host_nbytes;     // of the host; 0: nothing may be offloaded
    const int32_t *region;   // [nodes] that run chunk by chunk (TileSketch): copies start and end before or after them; NULL: none do
    const uint8_t *want;     // [values] decided before: just the buffers that were made for these values, whatever the budget; NULL: to be chosen
} OffloadOptions;

typedef struct OffloadChoice {
    int n;
    Eviction *eviction;      // in the order of `before`
    int64_t peak_nbytes;     // live on the device
    int64_t host_peak_nbytes;
    double seconds;          // of the step, what the copies take of the device's bandwidth included
} OffloadChoice;

// Evicts until the live bytes fit the budget, or nothing more helps (then peak_nbytes > budget). Copies go one after the other over
// a link each way and are planned so that no kernel waits for them. Arrays in arena `a`.
void offload_choose(Arena *a, const Graph *g, const RankPlan *p, const DeviceModel *m, const OffloadOptions *o, OffloadChoice *out);
