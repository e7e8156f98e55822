// tile: token-wise kernels between barriers, cut along the sequence; what the pass and the search over plans share.
#pragma once
#include "plan/plan.h"

enum { TILE_MAX_CHUNKS = 4096, TILE_MAX_NODES = 1 << 22 };  // of one run of rows; of all regions: more are refused
typedef struct TileOptions {
    int64_t rows;   // of one chunk on the fullest rank, at most (more where that would be over TILE_MAX_CHUNKS); 0: no tiling
    int64_t align;  // bytes; parts begin at multiples of it. 0: 16, which is what kernels of devices want
} TileOptions;

// For every value of a graph in its order of execution: in how many pieces it will be held. 1: it is whole; n: only one of its n
// chunks exists at a time. The analysis of pass_tile, without the rewriting; linear in the size of the graph.
// For every node the region that runs it chunk by chunk, -1 none: what a region reads whole is alive until its last chunk, what it makes
// whole from its first one on.
TileSketch tile_sketch(const Graph *scheduled, const TileOptions *o, Arena *a);  // arrays in `a`
