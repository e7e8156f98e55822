// The least cut between a source and a sink of a directed graph with integer capacities, by Dinic's algorithm (Dinic 1970: shortest
// augmenting paths, level by level). The caller scales its weights so that sums stay below MINCUT_INFINITE.
#pragma once
#include "base/arena.h"
#include "base/containers.h"
#include "base/diag.h"

#define MINCUT_INFINITE ((int64_t)1 << 61)

typedef struct MinCutEdge {
    int32_t to, next;  // next: of the same node's edges, -1 ends
    int64_t left;      // capacity that is not used; the edge back is the neighbour (index ^ 1)
} MinCutEdge;

typedef struct MinCut {
    int32_t nnode;
    int32_t *first, *level, *at;  // [nnode]
    VEC(MinCutEdge) edge;
    VEC(int32_t) queue;
} MinCut;

void mincut_begin(MinCut *m, int32_t nnode, Arena *a);  // a owns the arrays of nodes
void mincut_add(MinCut *m, int32_t from, int32_t to, int64_t capacity);
// The capacity of the least cut; from_source[n]: node n is on the source's side of the cut that is nearest to the source.
int64_t mincut_solve(MinCut *m, int32_t source, int32_t sink, bool *from_source);
void mincut_free(MinCut *m);
