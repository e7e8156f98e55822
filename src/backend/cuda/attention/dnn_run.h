// From a call to what cuDNN's graphs are run with, group by group: the shape of a group's graph and the address of each of its
// operands. Needs no library: dnn.c hands it to cuDNN, dnn_emulated.c to the definition of attention, which reads operands and
// strides from it as cuDNN does.
#pragma once
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/attention/dnn_attention.h"

typedef struct DnnRun {
    DnnCall call;
    DnnGroups groups;
    DnnParts parts;
    bool cut;
    float scale, left;
    int32_t shift;
    int32_t *lengths;  // cut, not packed: nq for each of the group's batch entries, then nk for each. The owner's to make
} DnnRun;
DnnRun dnn_run_of(const DnnCall *c);  // without lengths
DnnAttention dnn_group(const DnnRun *r);

// Operands of a run by their uid.
typedef struct DnnOperands {
    int n;
    int64_t uid[DNN_UID_END];
    void *data[DNN_UID_END];
} DnnOperands;
DnnOperands dnn_operands(const DnnRun *r, const DnnData *group_data, const void *scratch);
// Bit uid of each operand. It must be what the graph has: cuDNN runs without an error where one is not given, and anything comes
// out. (Runs of the cut form that were not given the lengths of queries once gave NaN.)
uint64_t dnn_given(const DnnOperands *x);

// Calls `execute` for each group, and around it what packed documents need. Launches; can be captured.
typedef Status (*DnnExecute)(void *context, const DnnOperands *x, void *workspace, Diag *d);
Status dnn_run_groups(const Device *dev, const DnnRun *r, const DnnData *data, void *scratch, DnnExecute execute, void *context,
                      Diag *d);
