// Who reads each value, as one table: the passes that look at consumers share it.
#pragma once
#include "ir/graph.h"

typedef struct Use {
    NodeId node;  // NO_NODE: an output of the graph
    int32_t slot; // which operand
} Use;

typedef struct Uses {
    const int32_t *first;  // [values + 1]: the uses of value v are use[first[v]] .. use[first[v+1]), in graph order, outputs last
    const Use *use;
} Uses;

Uses uses_collect(const Graph *g, Arena *a);
