// The op that pass/shard makes: reshard. (fused.c has the one that pass/fuse makes.)
#include "ops/rules.h"

// ---- reshard: the identity in global meaning ---------------------------------------------------------------------------
static Status infer_reshard(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

static bool shard_reshard(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    (void)g, (void)n, (void)slot, (void)p, (void)row;
    return false;  // its two placements are what the shard pass gave it
}

const OpInfo op_info_RESHARD = {.infer = infer_reshard,
                                .grad_error = "gradients are taken before sharding",
                                .shard = shard_reshard,
                                .cost = cost_memory_bound};
