// Attention by cuDNN: which calls it takes, how much scratch they need, their plans and runs.
//
// Nothing here reads a graph: attention.c translates nodes. Sizes of scratch are formulas, so that a machine without a GPU plans
// the same bytes; preparing asks cuDNN and refuses a plan that needs more.
#pragma once
#include "backend/cuda/device/device.h"
#include "backend/cuda/attention/dnn_mask.h"
#include "base/diag.h"

typedef struct DnnCall {
    int64_t batch, heads, kv_heads, nq, nk,
        dim;  // q, o, do, dq [batch, heads, nq, dim]; k, v, dk, dv [batch, kv_heads, nk, dim]; all dense
    DnnMaskKind mask;
    int64_t shift, window;  // see DnnMaskKind
    double scale;
    bool backward;
    int cut;  // DnnAttention.cut: -1 by dnn_needs_cut; 0 and 1 are for tests
    // Packed documents, if not 0: the mask holds within each, there are at most so many in a batch entry. Numbers: DnnData.
    int64_t slots;
    bool one_packing;  // the same for all batch entries
    int64_t groups;        // of KV heads, at least; 0 and 1: as scratch asks for
    int64_t group_nbytes;  // scratch that a group may have; 0: the usual. For tests: INT64_MAX: nothing but `groups` counts
} DnnCall;

// cuDNN starts a block for every tile of every slot of every head, as if each document were as long as the sequence; those of a
// slot beyond the document's end find nothing to do, but cost about 0.75 ns each. On an H100 at 32,768 tokens, 32 heads of 64
// channels, 16 documents: 16 slots 329 / 256 TFLOP/s forward / backward, 512 slots 71 / 53; our own kernel, which takes any
// number: 177 / 116. Up to so many slots cuDNN is the faster.
enum { DNN_LEAST_SLOTS = 4, DNN_MOST_SLOTS = 64 };
// Slots of a packed call for at most `documents` (0: not known) in n positions; 0: no packed call.
int64_t dnn_slots(int64_t documents, int64_t n);
// NULL: cuDNN takes it; else why not, in words.
const char *dnn_refuses(const DnnCall *c);
// Backward where queries or keys do not fill whole tiles of 128: see dnn.c.
bool dnn_needs_cut(const DnnCall *c);

// Large calls are done a few KV heads (with their query heads) at a time, so that scratch stays small and no tensor that cuDNN
// sees has 2^31 elements or more (docs/cuda.md, "A million tokens").
typedef struct DnnGroups {
    int64_t batch, kv_heads;  // of one group
    int64_t n;                // groups
} DnnGroups;
DnnGroups dnn_groups(const DnnCall *c);
// Parts of the scratch of one group.
typedef struct DnnParts {
    int64_t acc, sum, workspace, total;  // offsets; bytes in all
    int64_t workspace_nbytes;
    int64_t dk, dv;                                      // packed: of every query head; nothing where each has its own KV head
    int64_t q, k, row, length, begin, count, ndocument;  // packed: as GpuPacked
} DnnParts;
DnnParts dnn_parts(const DnnCall *c, int64_t batch, int64_t kv_heads);
size_t dnn_scratch(const DnnCall *c);

// Operands' addresses; those that a call's direction has not are NULL.
typedef struct DnnData {
    const void *q, *k, *v;
    void *o, *lse;  // backward: read
    const void *dout;
    void *dq, *dk, *dv;
    const void *ids;  // packed: int64 [batch or 1, nq], document of each token, never falling
    int node;         // packed: errors are reported under
} DnnData;
// Those of the group that begins with entry b of the batch and KV head kv.
DnnData dnn_group_data(const DnnCall *c, const DnnData *x, int64_t b, int64_t kv);
typedef struct DnnPlan DnnPlan;  // owned by the device, shared by equal calls
Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d);
Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d);  // launches; can be captured
typedef struct DnnPlanFacts {
    int64_t engine, workspace, planned_workspace;
    int proposals, chosen;
    bool from_disk;
    double seconds;  // to build it
} DnnPlanFacts;
DnnPlanFacts dnn_plan_facts(const DnnPlan *p);
void dnn_close(Device *dev);

// Packed: fills the tables of a group (dnn_group_data). They are the same for all groups of one entry of the batch.
void dnn_pack(const Device *dev, const DnnCall *c, const DnnParts *p, int64_t batch, int64_t kv_heads, const DnnData *group_data,
              void *scratch);
// Packed, several query heads to a KV head: that group's dk and dv [batch, kv_heads, nk, dim] from those of the query heads.
void dnn_sum_heads(const Device *dev, const DnnCall *c, const DnnParts *p, int64_t batch, int64_t kv_heads, void *dk, void *dv,
                   void *scratch);
