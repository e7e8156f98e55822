// Inside the pass head: what it found.
#pragma once
#include <math.h>
#include "ir/uses.h"
#include "pass/pass.h"

enum { HEAD_MAX_STEPS = 16, HEAD_MAX_PICKS = 8 };

typedef struct HeadPick {
    NodeId node;          // pick
    ValueId log_softmax;  // NO_VALUE: it reads the logits; else this log-softmax of them
} HeadPick;

typedef struct HeadMatch {
    NodeId dot;
    int nstep;
    NodeId step[HEAD_MAX_STEPS];  // reshape, permute and slice nodes between the product and `logits`, in order
    ValueId logits;               // what the readers read
    ValueId idx;
    double scale, softcap;
    int nlse, npick;
    NodeId lse[HEAD_MAX_PICKS];   // logsumexp nodes
    HeadPick pick[HEAD_MAX_PICKS];
} HeadMatch;

// Is node `dot` a product whose result only a cross-entropy reads? If not, *why completes "logits stay whole: ...".
bool head_match(const Graph *g, Uses uses, NodeId dot, HeadMatch *m, const char **why, Arena *scratch);
