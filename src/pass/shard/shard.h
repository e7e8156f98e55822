// Inside of the shard pass: choosing a row of the sharding rule for every node (choose.c), by cost (cost.c), after the attention
// strategies were settled (strategy.c); then making the graph with reshards (insert.c).
#pragma once
#include "ir/uses.h"
#include "ops/op.h"
#include "pass/pass.h"

typedef struct ShardState {
    PassContext *c;
    Graph *g;               // the incoming graph; its values' placements are being decided in `place`
    Diag *d;
    Row *row;               // [nodes] the chosen row
    Placement *place;       // [values] where the producer leaves the value: row[def].out[index]
    const int32_t *first_use;  // [values + 1] into use; a use by an output wants the value replicated
    const Use *use;
    const char **strategy;  // [nodes] attention nodes: the settled strategy; NULL elsewhere
    struct SeenTable *seen; // shard placements by shape, see choose.c
    Row *buf;               // candidate rows, reused for every node
    int64_t buf_slots;      // placements available per candidate
} ShardState;

enum { MAX_CANDIDATES = 40 };

// Fills s->buf with the candidate rows of node n: all replicated, those that follow from its operands' placements and from what
// its consumers want, and the op's own. Returns how many.
int shard_candidates(ShardState *s, NodeId n);
Status shard_choose(ShardState *s);
Status shard_settle_strategies(ShardState *s);
Status shard_insert(ShardState *s, Graph **out);

// Seconds that node n takes on the slowest rank under `row`, communication not included.
double shard_node_seconds(const ShardState *s, NodeId n, const Row *row);
// Seconds to bring value v from one placement to another, and the bytes that the busiest rank sends. Values that every rank can
// make for itself (inputs, constants, iotas, fills) move for nothing.
double shard_move_seconds(const ShardState *s, ValueId v, const Placement *from, const Placement *to, double *sent_nbytes);
// The operand of value v under placement p on `rank`.
Operand shard_operand(const ShardState *s, ValueId v, const Placement *p, int rank);
// Every rank can make this value in any placement without communication, by repeating its node.
bool shard_is_source(const Graph *g, ValueId v);
const char *shard_place_text(const Graph *g, const Placement *p, Arena *a);  // "replicated", "sharded on dim 1", "partial sum"
