// part and assemble: a run of rows of a value as a value of its own, and the whole made of such parts. Views in both directions:
// the planner lays the parts where they lie in the whole.
#include "ops/chunk.h"

#include <stdlib.h>

#include "ops/rules.h"

// ---- intervals ----------------------------------------------------------------------------------------------------------
Intervals part_intervals(const Node *n) {
    Intervals v = {0};
    v.n = node_ints(n, ATTR_INTERVALS, &v.at) / 2;
    return v;
}

Intervals assemble_next(const Node *n, Intervals before) {
    const int64_t *at;
    node_ints(n, ATTR_INTERVALS, &at);
    if (before.at) at = before.at + 2 * before.n;
    return (Intervals){at + 1, (int)at[0]};
}

static int64_t length(Intervals v) {
    int64_t n = 0;
    for (int k = 0; k < v.n; k++) n += v.at[2 * k + 1] - v.at[2 * k];
    return n;
}

bool intervals_place(const Operand *whole, int dim, Intervals v, int64_t *offset, int64_t *nbytes) {
    int64_t before = 1, row = dtype_nbytes(whole->dtype), at = 0, begin = 0, end = 0;
    for (int i = 0; i < dim; i++) before *= whole->dim[i];
    for (int i = dim + 1; i < whole->ndim; i++) row *= whole->dim[i];
    Span all = {0, whole->global[dim]};
    bool together = true;
    bool cut = whole->sdim == dim;
    int nspan = cut ? whole->nspan : 1;
    for (int i = 0; i < nspan; i++) {  // of what this rank holds, in storage order
        Span s = cut ? whole->span[i] : all;
        for (int k = 0; k < v.n && v.at[2 * k] < s.end; k++) {
            int64_t b = max_i64(s.begin, v.at[2 * k]), e = min_i64(s.end, v.at[2 * k + 1]);
            if (b >= e) continue;
            together = together && (end == begin || at + b - s.begin == end);
            if (end == begin) begin = at + b - s.begin;
            end = at + e - s.begin;
        }
        at += s.end - s.begin;
    }
    *nbytes = before * (end - begin) * row;
    *offset = *nbytes ? begin * row : 0;
    return *nbytes == 0 || (together && (before == 1 || end - begin == at));
}

// Ascending, not empty, within the dim (extent < 0: whatever that is).
static Status check_intervals(const Node *n, Intervals v, int64_t extent, Diag *d) {
    int64_t last = 0;
    for (int k = 0; k < v.n; k++) {
        int64_t b = v.at[2 * k], e = v.at[2 * k + 1];
        if (b < last || e <= b || (extent >= 0 && e > extent))
            return infer_error(d, "%s: the interval [%lld, %lld) is empty, out of order or outside of the dim", op_name(n->op),
                               (long long)b, (long long)e);
        last = e;
    }
    return ST_OK;
}

static Status infer_part(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    const int64_t *ints;
    int dim, nints = node_ints(n, ATTR_INTERVALS, &ints);
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    if (nints == 0 || nints % 2) return infer_error(d, "part needs intervals: pairs of begin and end");
    TRY(check_intervals(n, part_intervals(n), s.dim[dim], d));
    s.dim[dim] = length(part_intervals(n));
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

static int by_begin(const void *pa, const void *pb) {
    const Span *a = pa, *b = pb;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

// The parts' intervals together are the dim, each element once.
static Status check_cover(Span *span, int n, int64_t extent, Diag *d) {
    qsort(span, (size_t)n, sizeof *span, by_begin);
    int64_t at = 0;
    for (int k = 0; k < n; k++) {
        if (span[k].begin != at) return infer_error(d, "assemble: element %lld is in no part, or in two", (long long)at);
        at = span[k].end;
    }
    return at == extent ? ST_OK : infer_error(d, "assemble: the parts end at %lld of %lld", (long long)at, (long long)extent);
}

static Status check_lists(const Node *n, const int64_t *ints, int nints, Diag *d) {
    int at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t count = at < nints ? ints[at] : -1;
        if (count < 0 || count > (nints - at - 1) / 2) return infer_error(d, "assemble: part %d has no list of intervals", i);
        at += 1 + 2 * (int)count;
    }
    return at == nints ? ST_OK : infer_error(d, "assemble: more intervals than its %d parts have", n->nin);
}

static Status infer_assemble(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    const int64_t *ints;
    int dim, nints = node_ints(n, ATTR_INTERVALS, &ints), nspan = 0;
    if (n->nin < 1) return infer_error(d, "assemble needs at least one part");
    Shape s = *in_shape(g, n, 0);
    TRY(rule_dim(n, s.ndim, &dim, d));
    TRY(check_lists(n, ints, nints, d));
    Span *span = ARENA_ARRAY(g->arena, Span, nints / 2 + 1);
    int64_t extent = 0;
    Intervals v = {0};
    for (int i = 0; i < n->nin; i++) {
        v = assemble_next(n, v);
        TRY(check_intervals(n, v, -1, d));
        Shape part = *in_shape(g, n, i);
        bool fits = part.ndim == s.ndim && part.dim[dim] == length(v);
        for (int k = 0; k < s.ndim && fits; k++) fits = k == dim || part.dim[k] == s.dim[k];
        if (!fits)
            return infer_error(d, "assemble: part %d is %s, its intervals have %lld elements", i, shape_text(&part).s,
                               (long long)length(v));
        TRY(rule_same_type(g, n, 0, i, d));
        for (int k = 0; k < v.n; k++) span[nspan++] = (Span){v.at[2 * k], v.at[2 * k + 1]};
        if (!add_i64(extent, part.dim[dim], &extent)) return infer_error(d, "assemble: too many elements");
    }
    TRY(check_cover(span, nspan, extent, d));
    s.dim[dim] = extent;
    TRY(rule_check_shape(&s, d));
    return rule_result(nout, out, in_dtype(g, n, 0), s);
}

// ---- sharding: each rank's part of a part is what it has of the whole ---------------------------------------------------
static int other_axis(const Graph *g, const Node *n, int slot, int dim) {
    (void)g, (void)slot;
    return dim == node_int(n, ATTR_DIM) ? NO_AXIS : dim;
}

static LayoutId select_intervals(Graph *g, LayoutId in, Intervals v) {
    Span *span = ARENA_ARRAY(g->arena, Span, v.n + 1);
    for (int k = 0; k < v.n; k++) span[k] = (Span){v.at[2 * k], v.at[2 * k + 1]};
    return layout_select(g->layouts, in, v.n, span);
}

static bool shard_part(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    if (p.dim != node_int(n, ATTR_DIM)) return row_from_axes(g, n, slot, p, other_axis, NULL, row);
    if (slot != 0 || !row_slot_ok(g, n, slot, &p)) return false;  // a part does not tell how the rest is divided
    row->in[0] = p;
    row->out[0] = shard_on(p.dim, select_intervals(g, p.layout, part_intervals(n)));
    return true;
}

static bool shard_assemble(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);
    if (p.dim != node_int(n, ATTR_DIM)) return row_from_axes(g, n, slot, p, other_axis, NULL, row);
    if (slot >= 0 || !row_slot_ok(g, n, slot, &p)) return false;
    Intervals v = {0};
    for (int i = 0; i < n->nin; i++) {
        v = assemble_next(n, v);
        row->in[i] = shard_on(p.dim, select_intervals(g, p.layout, v));
    }
    row->out[0] = p;
    return true;
}

static void cost_none(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)in, (void)out;
    *c = (Cost){0};
}

// ---- records ------------------------------------------------------------------------------------------------------------
static const Sample part_samples[] = {
    {.label = "rows",
     .nin = 1,
     .shape = {DIMS(7, 3)},
     .dtype = {DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 0), SAMPLE_INTS(INTERVALS, 2, 5)}},
    {.label = "two intervals",
     .nin = 1,
     .shape = {DIMS(1, 9, 2)},
     .dtype = {DT_I64},
     .hi = {5},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_INTS(INTERVALS, 0, 2, 5, 8)}},
    {.label = "inner",
     .nin = 1,
     .shape = {DIMS(5, 6, 2)},
     .dtype = {DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_INTS(INTERVALS, 3, 6)}},
};
const OpInfo op_info_PART = {.infer = infer_part,
                             .grad_error = "made after gradients are taken",
                             .shard = shard_part,
                             .cost = cost_none,
                             SAMPLES(part_samples)};

static const Sample assemble_samples[] = {
    {.label = "rows",
     .nin = 2,
     .shape = {DIMS(3, 2), DIMS(4, 2)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 0), SAMPLE_INTS(INTERVALS, 1, 0, 3, 1, 3, 7)}},
    {.label = "interleaved",
     .nin = 2,
     .shape = {DIMS(1, 4, 2), DIMS(1, 5, 2)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_INTS(INTERVALS, 2, 0, 2, 5, 7, 2, 2, 5, 7, 9)}},
    {.label = "inner, three",
     .nin = 3,
     .shape = {DIMS(3, 2), DIMS(3, 1), DIMS(3, 4)},
     .dtype = {DT_BOOL, DT_BOOL, DT_BOOL},
     .hi = {2, 2, 2},
     .nattr = 2,
     .attr = {SAMPLE_I(DIM, 1), SAMPLE_INTS(INTERVALS, 1, 0, 2, 1, 6, 7, 1, 2, 6)}},
};
const OpInfo op_info_ASSEMBLE = {.infer = infer_assemble,
                                 .grad_error = "made after gradients are taken",
                                 .shard = shard_assemble,
                                 .cost = cost_none,
                                 SAMPLES(assemble_samples)};
