// Resharding as geometry: which elements each rank takes from which other rank (reshard.c), and the messages of that
// (exchange.c).
#pragma once
#include "base/containers.h"
#include "plan/plan.h"

// One box of elements that `target` takes from `source`. All dims but `dim[0]` and `dim[1]` (possibly the same, then index 0
// holds both) are whole.
typedef struct Piece {
    int source, target;
    int64_t size[2], source_start[2], target_start[2];
} Piece;
typedef struct PieceList {
    Shape shape;          // global, at least one dim (a scalar is [1])
    int ndim;             // 1 or 2 dims that pieces cut
    int dim[2];
    Reduce reduce;        // how several pieces of one target element combine, and what elements that none reaches start at
    VEC(Piece) piece;     // for one (source, target) pair in the order in which both sides pack them
    bool travels;         // some piece goes from one rank to another
    bool reduces;         // some target element gets more than one term, or none
} PieceList;
// Fills `out` (free out->piece with vec_free). `from` and `to` must not reduce in different ways (see reshard_hops).
// Pieces of all ranks (rank ALL_RANKS), or those that `rank` gives or takes: there are about as many as ranks, not their square.
enum { ALL_RANKS = -1 };
void reshard_pieces(const LayoutTable *t, const Shape *shape, const Placement *from, const Placement *to, int rank, PieceList *out);

// A reshard as a chain of exchanges: an all-reduce of a large value is a reduce-scatter over an even split of its elements and
// an all-gather. `shape` is the value's shape or its flattened form.
enum { RESHARD_MAX_HOPS = 3 };
typedef struct Hop {
    Shape shape;
    Placement from, to;
} Hop;
int reshard_hops(const Graph *g, const Shape *shape, DType dtype, const Placement *from, const Placement *to,
                 Hop hop[RESHARD_MAX_HOPS]);

// The exchanges of all ranks, [nranks].
const Exchange *exchange_make(Arena *a, const LayoutTable *t, const Shape *shape, DType dtype, const Placement *from,
                              const Placement *to);
// The same of one rank, in time linear in the number of ranks.
const Exchange *exchange_make_one(Arena *a, const LayoutTable *t, const Shape *shape, DType dtype, const Placement *from,
                                  const Placement *to, int rank);
// Nothing moves on any rank: the destination has the source's bytes.
bool exchange_is_identity(const LayoutTable *t, const Shape *shape, const Placement *from, const Placement *to);
