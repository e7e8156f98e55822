// Types of values: element type, shape, and placement (how the value is spread over the ranks).
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/diag.h"

typedef enum DType { DT_F32, DT_F64, DT_BF16, DT_F16, DT_I64, DT_I32, DT_BOOL, DT_COUNT } DType;
int dtype_nbytes(DType t);
const char *dtype_name(DType t);                 // "f32", "bf16", "i64", "bool"
bool dtype_from_name(const char *s, DType *out);
bool dtype_is_float(DType t);

#define MAX_DIMS 8
typedef struct Shape {
    int ndim;
    int64_t dim[MAX_DIMS];
} Shape;
int64_t shape_numel(const Shape *s);             // 1 for a scalar
bool shape_equal(const Shape *a, const Shape *b);
Shape shape_of(int ndim, const int64_t *dims);
#define SHAPE(...) shape_of((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
#define SHAPE0 ((Shape){0})

// A half-open interval [begin, end) of a global axis.
typedef struct Span {
    int64_t begin, end;
} Span;

// A Layout says, for each rank, which intervals of a global axis of `extent` elements it owns, in the order in which it stores
// them. Contiguous, uneven, zigzag, clipped, shifted, the [B,S] -> [B*S] merge (B intervals per rank) and halos are all this.
// A partition owns every element exactly once; with `overlap` some elements live on several ranks (halos, KV heads shared by
// ranks); with gaps elements live nowhere (never legal for a value; the verifier checks).
typedef struct Layout {
    int64_t extent;
    int nranks;
    bool overlap;
    const int32_t *first;  // [nranks + 1]: rank r owns span[first[r]] .. span[first[r+1])
    const Span *span;
} Layout;
typedef int32_t LayoutId;  // index into LayoutTable; equal layouts have equal ids

typedef struct LayoutTable LayoutTable;
LayoutTable *layouts_new(Arena *a, int nranks);
int layouts_nranks(const LayoutTable *t);
int layouts_count(const LayoutTable *t);
const Layout *layouts_get(const LayoutTable *t, LayoutId id);
// Interns a layout given per-rank span lists (nspan[r] spans of rank r, concatenated in `span`). Empty spans are dropped and
// touching spans of a rank merged, so equal ownership in equal order gives the equal id.
LayoutId layouts_intern(LayoutTable *t, int64_t extent, const int32_t *nspan, const Span *span);
// Contiguous and as even as can be: the first extent % P ranks own one more; with fewer elements than ranks the last are idle.
LayoutId layouts_even(LayoutTable *t, int64_t extent);
// Contiguous with given cut points: rank r owns [cut[r], cut[r+1]).
LayoutId layouts_cuts(LayoutTable *t, int64_t extent, const int64_t *cut);
// As layouts_even over extent/unit blocks of `unit` elements (extent % unit == 0).
LayoutId layouts_even_blocks(LayoutTable *t, int64_t extent, int64_t unit);

// The layout of out[j] = in[start + j*step], j in [0, n): intervals clipped, shifted, divided.
LayoutId layout_slice(LayoutTable *t, LayoutId in, int64_t start, int64_t step, int64_t n);
// The layout of an axis of `lo` new elements, the old axis, `hi` new ones. New elements go to the rank that owns the nearest
// old element (lo to the owner of element 0, hi to the owner of the last).
LayoutId layout_pad(LayoutTable *t, LayoutId in, int64_t lo, int64_t hi);
// The inverse view of layout_pad: drop lo and hi elements (== layout_slice(in, lo, 1, extent-lo-hi)).
// Axis A of layout `in` inside the merged row-major axis [outer, A, inner].
LayoutId layout_merge(LayoutTable *t, LayoutId in, int64_t outer, int64_t inner);
// The inverse: a layout over outer*mid*inner seen on the middle factor. False if ownership is not a product
// full(outer) x L(mid) x full(inner) in row-major local order.
bool layout_split(LayoutTable *t, LayoutId merged, int64_t outer, int64_t mid, int64_t inner, LayoutId *out);
// The layout of an axis made of these n intervals of the old one, one after the other; they ascend.
LayoutId layout_select(LayoutTable *t, LayoutId in, int n, const Span *interval);
// Concatenation of axes: rank r owns its spans of each part, in order.
LayoutId layout_concat(LayoutTable *t, int n, const LayoutId *part);
// Each span [b,e) of the input becomes [max(0,b*mul+lo), min(extent_out, (e-1)*mul+hi+1)) : the elements of an input axis that
// a stencil needs to compute the output elements of `in` (halo). Usually overlaps.
LayoutId layout_stencil(LayoutTable *t, LayoutId in, int64_t mul, int64_t lo, int64_t hi, int64_t extent_out);
// Each span widened to whole groups and divided: [b/group, ceil(e/group)): KV heads needed by query heads.
LayoutId layout_group(LayoutTable *t, LayoutId in, int64_t group);

int64_t layout_local(const Layout *l, int rank);      // elements owned by `rank`
int64_t layout_max_local(const Layout *l);            // the largest over ranks
static inline int layout_nspan(const Layout *l, int r) { return l->first[r + 1] - l->first[r]; }
static inline const Span *layout_spans(const Layout *l, int r) { return l->span + l->first[r]; }

// Where a value lives on the (single) mesh axis.
//   REPLICATE  every rank holds the whole value
//   PARTIAL    every rank holds a whole-shaped term; the value is their sum (or max)
//   SHARD      dim `dim` is divided by `layout`; with `reduce` != NONE the layout overlaps and copies are terms to be reduced
typedef enum PlaceKind { PLACE_NONE, PLACE_REPLICATE, PLACE_PARTIAL, PLACE_SHARD } PlaceKind;
typedef enum Reduce { RED_NONE, RED_SUM, RED_MAX } Reduce;
typedef struct Placement {
    PlaceKind kind;
    Reduce reduce;
    int dim;
    LayoutId layout;
} Placement;
#define REPLICATE ((Placement){.kind = PLACE_REPLICATE})
#define PARTIAL_SUM ((Placement){.kind = PLACE_PARTIAL, .reduce = RED_SUM})
#define PARTIAL_MAX ((Placement){.kind = PLACE_PARTIAL, .reduce = RED_MAX})
static inline Placement shard_on(int dim, LayoutId l) { return (Placement){.kind = PLACE_SHARD, .dim = dim, .layout = l}; }
static inline Placement shard_sum_on(int dim, LayoutId l) {
    return (Placement){.kind = PLACE_SHARD, .reduce = RED_SUM, .dim = dim, .layout = l};
}
bool placement_equal(const Placement *a, const Placement *b);
// Shape held by `rank`.
Shape placement_local_shape(const LayoutTable *t, const Placement *p, const Shape *global, int rank);
