// The search for what to keep, with how large chunks, under a budget of bytes.
#pragma once
#include "pass/remat.h"

typedef struct RematTrial {      // one candidate and what became of it
    uint8_t *choice;             // [values]
    int64_t rows;                // of a chunk; 0: not tiled
    double seconds;              // of the step
    int64_t peak_nbytes, host_peak_nbytes;
    int64_t noffload;
    double offload_nbytes;
    int ntrial;                  // candidates looked at to find it
} RematTrial;

// best->choice: an array for the answer; best->rows: the size of chunks where it is not to be chosen. If nothing fits the budget, the
// answer is the candidate with the least peak. align: of chunks, see TileOptions.
Status remat_search(const RematGraph *r, const PlanOptions *o, const MemoryOptions *m, int64_t align, RematTrial *best, Diag *d);
// What becomes of one candidate: applied, scheduled, its buffers offloaded as far as the budget asks for.
Status remat_try(const RematGraph *r, const PlanOptions *o, const MemoryOptions *m, int64_t align, RematTrial *t, Diag *d);
