// What a plan comes to, for tables and pages: where the time goes, what is alive when, what was decided about which values.
#pragma once
#include <jansson.h>

#include "driver/driver.h"

// ---- time --------------------------------------------------------------------------------------------------------------------
typedef enum TimeKind {
    TIME_PRODUCT, TIME_ATTENTION, TIME_POINTWISE, TIME_MOVE, TIME_COLLECTIVE, TIME_UPDATE, TIME_HOST, TIME_KINDS
} TimeKind;
const char *time_kind_name(TimeKind k);  // "matrix products", "attention", ...
TimeKind step_time_kind(const Graph *g, const Step *s);
void plan_time(const Plan *p, const RankPlan *r, double seconds[TIME_KINDS]);
int plan_slowest(const Plan *p);   // which of p->rank takes longest, and holds most
int plan_fullest(const Plan *p);
double plan_step_seconds(const Compiled *c);   // of the slowest rank
int64_t plan_host_nbytes(const Compiled *c);   // pinned host memory of the fullest rank

// ---- values for people -----------------------------------------------------------------------------------------------------
// "o of attention", "mlp.gate_proj: dot": what a value is, the same for all layers. In arena `a`.
const char *value_label(const Graph *g, ValueId v, Arena *a);
// The number of the layer that a node's source names, -1 if it names none.
int node_layer(const Node *n);

typedef enum Fate { FATE_KEPT, FATE_HOST, FATE_AGAIN, FATE_COUNT } Fate;
const char *fate_name(Fate f);     // "kept", "on the host", "computed again"
typedef struct FateGroup {         // values that are the same in their layers and fare alike
    const char *label, *source;    // source of the first one
    Fate fate;
    int64_t count;
    double nbytes, seconds;        // together; seconds: of the nodes that run again, of the copies both ways
    const char *layers;            // "0-15, 18"; "" where no layer has a number
} FateGroup;
typedef struct LayerGroup {        // layers for whose values the same was decided
    const char *layers;
    const char *text[FATE_COUNT];  // "o of attention, log-sum-exp of attention" or NULL
} LayerGroup;
typedef struct Alive {             // at the peak
    const char *label, *source;
    BufferKind kind;
    int64_t count;
    double nbytes;
} Alive;

typedef struct Explanation {
    int rank;                      // which of plan->rank it is of: the fullest
    int nfate, nlayer, nalive;
    FateGroup *fate;               // most bytes first
    LayerGroup *layer;
    Alive *alive;                  // most bytes first
    double seconds[TIME_KINDS];    // of the slowest rank
} Explanation;
void explain(const Compiled *c, Arena *a, Explanation *out);
void explain_text(FILE *f, const Compiled *c, const Explanation *e, bool every);
json_t *explain_json(const Compiled *c, const Explanation *e);  // the caller's
