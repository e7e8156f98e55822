// Inside the pass tile: regions, how they are found (tile.c, tile_rules.c) and written out (tile_emit.c).
#pragma once
#include "base/containers.h"
#include "ir/uses.h"
#include "ops/op.h"
#include "pass/tile.h"

// What becomes of an operand or a result of a member.
typedef enum CutKind {
    CUT_NONE,    // an operand that every chunk reads whole
    CUT_ROWS,    // a chunk of it
    CUT_SUM,     // a result that is a sum over tokens: the chunks' results are added up
    CUT_ADDEND,  // what a dot adds to such a sum: goes into that of the first chunk
} CutKind;
typedef struct Cut {
    CutKind kind;
    int dim;
    LayoutId layout;  // of the region's table: one "rank" for each chunk
} Cut;

typedef struct Member {  // a node of a region
    NodeId node;
    Cut *in, *out;
} Member;

typedef struct Region {
    LayoutTable *chunks;
    int n;               // chunks
    NodeId first;        // members and others are nodes from here on
    VEC(Member) member;
    bool past;           // attention or the like came by: the next token-wise node begins another
} Region;

// What a chunk of rows is: one or several rows of the batch, or a run of rows of the sequence.
typedef enum TileLevel { TILE_BATCH, TILE_SEQUENCE } TileLevel;

typedef struct TileValue {  // of a value in the region at hand, valid if `region` is its number
    int32_t region;
    Cut cut;             // made by a member
    bool member;
    bool after;          // depends on a result of the region other than a sum
    bool sum;            // depends on a sum over all chunks
    bool whole;          // made by a member, and wanted whole
} TileValue;

struct Tile;
typedef Status (*RegionFn)(struct Tile *t, Region *r, NodeId end, void *ctx);

typedef struct Tile {
    const Graph *g;
    TileOptions o;
    TileLevel level;
    Arena *a;
    const bool *close;       // [nodes] a region ends before this node; may be NULL
    int32_t region;          // number of the one at hand
    TileValue *value;        // [values]
    int32_t *member;         // [nodes] number of the region that it is in
    bool *taken;             // [nodes] a member of a region that is cut, perhaps an earlier one
    int32_t *seen;           // [values] number of a region that was found to read it
    bool *data;              // [values] depends on an input of the program
    Uses uses;
    VEC(LayoutTable *) tables;  // by number of chunks
    VEC(struct Fit) fits;
    RegionFn found;          // called for each region worth cutting, and with r NULL for nodes outside of any; nodes up to `end`
    void *ctx;
} Tile;

// Whether the rank's rows of a value fall into chunks as they must (tile_rules.c), remembered.
typedef struct Fit {
    const LayoutTable *chunks;
    LayoutId chunk, rank;    // rank NO_LAYOUT: not divided along the dim
    int64_t extent, row_nbytes;
    bool ok;
} Fit;
enum { NO_LAYOUT = -1 };

void tile_begin(Tile *t, const Graph *g, const TileOptions *o, TileLevel level, Arena *a);
void tile_end(Tile *t);
Status tile_walk(Tile *t);
// How node i would be cut as a member of r. False: it cannot be.
bool tile_member(Tile *t, Region *r, NodeId i, Member *m);
bool tile_has_batch(const Graph *g);
double tile_nbytes(const Graph *g, ValueId v);  // on the fullest rank

// Writes the regions out (tile_emit.c). `close`: set for the nodes of *out at which a chunk begins, in arena a. `sketch`: only
// the first chunk of each region is written, what is made whole is a placeholder: enough to look for regions in; map[values] then
// says what became of each value of g (of a value that is cut: its first chunk).
typedef struct TileEmit {
    bool epilogue, sketch;
    bool count;              // only the pieces, no graph
    const bool *known;       // [values of g] depends on an input of the program, though a placeholder hides it; may be NULL
    Graph *out;
    bool *close, *data;      // data[values of *out]: for `known` of the next level
    ValueId *map;
    int32_t *pieces;         // [values of g] 1, or the chunks in which it is held
    int32_t *region;         // [nodes of g] which region it is a member of; -1
} TileEmit;
Status tile_emit(const Graph *g, const TileOptions *o, TileLevel level, const bool *close, Arena *a, TileEmit *e, Diag *d);
