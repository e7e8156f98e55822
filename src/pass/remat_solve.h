// What to keep for a target of bytes, by estimates: the part of pass remat's search that makes no graphs (remat_search.c makes them).
#pragma once
#include "pass/remat_estimate.h"

typedef struct Point {       // a choice and its estimate
    uint8_t *choice;         // [values]
    double seconds;          // of the step
    int64_t peak;
} Point;

typedef struct Cut {         // of the hull
    Point p;
    double price, kept, cost;
} Cut;

typedef struct Seen {        // a choice that was estimated; what makes no difference is CHOICE_KEEP
    uint64_t *bit;           // [flip.len] computed again
    double seconds;
    int64_t peak;
    uint64_t key;
    int64_t trial_peak;      // -1: it was not tried
    bool looked;             // all around it was estimated
} Seen;

typedef struct Solver {
    const RematGraph *r;
    Arena *a;
    RematEstimate *estimate;
    VEC(Cut) cut;            // the hull, by falling bytes: cut.data[0] keeps everything that it pays to keep
    VEC(ValueId) flip;       // values with a choice, those that are worth most per byte first
    bool *decided;           // [values] among them
    VEC(Seen) seen;
    int32_t *table;          // [nslot] index into seen, -1: its hash
    int64_t nslot;
    int nestimate;
} Solver;

// In arena a, for as long as r lives; solver_end frees the rest.
Status solver_begin(Solver *s, Arena *a, const RematGraph *r, const PlanOptions *o, Diag *d);
void solver_end(Solver *s);
// The fastest choice whose estimated peak is within the target, or that with the least; the answer lives in the arena.
Point solver_solve(Solver *s, int64_t target);
void solver_estimate(Solver *s, Point *p);
// What a trial of the choice came to.
void solver_tried(Solver *s, const uint8_t *choice, int64_t peak);
int64_t solver_trial_peak(Solver *s, const uint8_t *choice);  // -1: it was not tried
void solver_forget_trials(Solver *s);
// The most promising of the choices that were estimated and not tried: what its trial's peak will be is told by the estimate and by the
// trials of choices like it. Faster than `seconds` and likely within the budget; or, where `smallest`, that of the least peak. False:
// there is none.
bool solver_next(Solver *s, int64_t budget, double seconds, bool smallest, uint8_t *choice);
// Estimates all that differ from the choice in one value, and in two as long as there are not many. NULL: from the choice of the least
// trial that was not looked around yet; false: there is none.
bool solver_look_around(Solver *s, const uint8_t *choice);
