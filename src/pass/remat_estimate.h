// What a choice of what to keep comes to, without making the graph: the order of the program as it is, copies right before their first
// reader. Some hundred times faster than a trial (remat_search.h), and as good as the order stays what it is.
#pragma once
#include "pass/remat.h"

typedef struct RematEstimate RematEstimate;
// In arena a, for as long as r lives.
Status remat_estimate_new(Arena *a, const RematGraph *r, const PlanOptions *o, RematEstimate **out, Diag *d);
// Seconds of the step and the largest sum of live bytes.
void remat_estimate(RematEstimate *e, const uint8_t *choice, double *seconds, int64_t *peak);
// `choice`, which was estimated last, without what makes no difference: values that nobody needs again are kept. Valid until the next call.
const uint8_t *remat_estimate_normal(RematEstimate *e, const uint8_t *choice);
