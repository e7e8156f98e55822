// Small random training programs as graphs of kernels, for tests of what pass remat decides: every way to keep, compute again or offload
// can be gone through. Nothing of them is run.
#pragma once
#include "driver/driver.h"
#include "pass/remat_search.h"

enum { REMAT_CASE_MOST = 12 };  // values with a choice

typedef struct RematCase {
    Arena *arena;
    Compiled out;             // up to pass narrow
    PlanOptions plan;
    DeviceModel device;
    RematGraph r;
    int nvalue;
    ValueId value[REMAT_CASE_MOST];  // the values whose choice matters: needed after the forward, or computed for those that are
} RematCase;

// Program `number` of a sequence. False: it has fewer than `least` or more than `most` values with a choice; nothing is to be freed.
bool remat_case_make(RematCase *c, uint64_t number, int least, int most);
void remat_case_free(RematCase *c);
// The choice of which bit i set means: value[i] is computed again.
void remat_case_choice(const RematCase *c, uint32_t bits, uint8_t *choice);

uint64_t remat_draw(uint64_t *rng, uint64_t n);  // [0, n)
double remat_draw_log(uint64_t *rng, double lo, double hi);
