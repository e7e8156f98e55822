// Inside the pass head: what it found.
#pragma once
#include <math.h>
#include "ir/uses.h"
#include "pass/pass.h"

enum { HEAD_MAX_STEPS = 16, HEAD_MAX_READERS = 16 };

typedef enum HeadKind { HEAD_LSE, HEAD_PICK, HEAD_SUM, HEAD_WEIGH } HeadKind;
typedef struct HeadReader {
    NodeId node;
    HeadKind kind;  // SUM: over the classes; WEIGH: a product with a number for each class. Both are linear (label smoothing)
} HeadReader;

typedef struct HeadMatch {
    NodeId dot;
    int nstep;
    NodeId step[HEAD_MAX_STEPS];  // reshape, permute and slice nodes between product and readers, in order
    ValueId idx;
    double scale, softcap;
    int nreader;
    HeadReader reader[HEAD_MAX_READERS];
    bool log_softmax;             // the picks read logits - logsumexp, which nothing else reads
} HeadMatch;

// Is node `dot` a product whose result only a cross-entropy reads? If not, *why completes "logits stay whole: ...".
bool head_match(const Graph *g, Uses uses, NodeId dot, HeadMatch *m, const char **why, Arena *scratch);
