// tile: token-wise kernels between barriers, cut along the sequence; what the pass and the search over plans share.
#pragma once
#include "ir/graph.h"

typedef struct TileOptions {
    int64_t rows;   // of one chunk on the fullest rank, at most; 0: no tiling
    int64_t align;  // bytes; parts begin at multiples of it. 0: 16, which is what kernels of devices want
} TileOptions;

// For every value of a graph in its order of execution: in how many pieces it will be held. 1: it is whole; n: only one of its n
// chunks exists at a time. The analysis of pass_tile, without the rewriting; linear in the size of the graph.
// pieces[values].
void tile_pieces(const Graph *scheduled, const TileOptions *o, Arena *scratch, int32_t *pieces);
