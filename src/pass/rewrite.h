// What every rewriting pass is made of: walk the old graph in order, copy or replace each node in a new one, drop what nothing
// uses.
#pragma once
#include "ir/build.h"
#include "ir/graph.h"

typedef struct Rewrite {
    const Graph *in;
    Graph *out;
    Builder b;     // appends to `out` with the source and phase of the node at hand
    ValueId *map;  // [values of in] -> value of out, NO_VALUE until its node was copied or replaced
    Arena *scratch;
} Rewrite;

void rewrite_begin(Rewrite *r, const Graph *in, Arena *scratch, Diag *d);
// New nodes from here on belong to node n of the old graph: its source line, its phase.
void rewrite_at(Rewrite *r, NodeId n);
void rewrite_copy(Rewrite *r, NodeId n);
// Copies what value v of the old graph is made of, as far as that was not done yet: v is wanted before its turn.
void rewrite_before(Rewrite *r, ValueId v);
// Outputs through the map, then dead nodes dropped. The Rewrite is used up.
Status rewrite_finish(Rewrite *r, Graph **out);

// Index of a const with these bytes (row-major, dtype t), added if there is none; `data` must live as long as the graph.
int64_t rewrite_add_const(Graph *g, Shape s, DType t, const void *data);
// live[n]: an output depends on node n.
bool *rewrite_live(const Graph *g, Arena *scratch);
// A copy of g without the nodes (and the consts from index `keep_consts` on) that no output depends on.
Graph *rewrite_prune(const Graph *g, int64_t keep_consts, Arena *scratch);
// needs[v]: the gradient of a trainable parameter may flow through value v.
bool *rewrite_needs_grad(const Graph *g, Arena *scratch);
