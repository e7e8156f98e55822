// What lowering shares between its files: decisions that hold for all ranks (alias.c, plan.c), then one rank's steps (rank.c).
#pragma once
#include "plan/memo.h"
#include "plan/reshard.h"

typedef enum Action {
    ACT_NONE,        // source whose bytes lie in the arena before the step: param, input, constant
    ACT_ALIAS,       // the output is the input's bytes
    ACT_KERNEL,
    ACT_EXCHANGE,
    ACT_COPY,        // a copy to or from host memory, or the wait for one
} Action;

typedef struct ReshardPlan {
    int nhop;
    Hop hop[RESHARD_MAX_HOPS];
    const Exchange *exchange[RESHARD_MAX_HOPS];  // [nmade] each
    uint64_t key;
    DType dtype;
    Shape shape;
    Placement from, to;
    bool identity;
} ReshardPlan;

// Values that share a buffer form a group, named by one of its values: the whole where others are parts of it.
typedef struct Group {
    int32_t last;        // last node that uses it
    bool parts;          // some members are parts of others
    bool persistent;     // param, moment, input, constant
    bool output;         // of the graph: alive to the end
    bool host;           // in the host arena
    BufferKind kind;
} Group;

// Two values that share bytes: `v` begins where `into` does, or, where node is a part or an assemble, where operand or result
// `part` lies in the whole `into`. The offset is every rank's own.
typedef struct Join {
    ValueId v, into;
    NodeId node;         // NO_NODE: side by side
    int32_t part;
} Join;

// Those of one rank are kept for all trials, in the memo (memo.c); others live as long as the plan is made.
typedef struct Reshards {
    Arena *a;
    VEC(ReshardPlan *) list;
} Reshards;
Reshards *memo_reshards(KernelMemo *m, const LayoutTable *layouts, int rank);  // NULL: not kept

typedef struct Lower {
    Arena *a;
    const Graph *g;
    const PlanOptions *o;
    Diag *d;
    int nmade;                   // ranks that are lowered
    const int *made;             // [nmade] which, rising; NULL: all
    DType real;
    Action *action;              // [nodes]
    const ReshardPlan **reshard; // [nodes]
    Reshards *reshards;          // distinct ones, by from, to, shape and dtype
    ValueId *group;              // [values]: towards the value that names the group
    Group *info;                 // [values], valid at group names
    VEC(Join) joins;             // all of them, if there is any part
    bool parts;                  // there is a part or an assemble
} Lower;

Status lower_actions(Lower *l);  // action, reshard
Status lower_groups(Lower *l);   // group, info
ValueId lower_group(const Lower *l, ValueId v);
Status lower_rank(Lower *l, int k, RankPlan *out);  // the k-th of those that are made
// Where every value lies in its group's buffer on this rank, bytes: out[values] (place.c).
Status lower_offsets(const Lower *l, int rank, int64_t *out);
static inline int lower_made(const Lower *l, int k) { return l->made ? l->made[k] : k; }
int64_t rank_statistics(const Lower *l, RankPlan *p);  // returns the largest sum of live bytes
Status plan_find_real(const Graph *g, const Backend *b, DType *real, Diag *d);  // the type of its floats
