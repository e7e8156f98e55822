// reshape: the same elements in the same order under another shape. Its sharding rule is where dims merge and split.
#include "ops/rules.h"

static Status infer_reshape(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    Shape to;
    TRY(rule_nin(n, 1, d));
    TRY(rule_shape(n, &to, d));
    const Shape *s = in_shape(g, n, 0);
    if (shape_numel(s) != shape_numel(&to))
        return infer_error(d, "reshape of %s to %s changes the number of elements", shape_text(s).s, shape_text(&to).s);
    return rule_result(nout, out, in_dtype(g, n, 0), to);
}

static Status grad_reshape(GradCtx *c, Diag *d) {
    (void)d;
    if (c->want[0]) c->gin[0] = build_reshape(c->b, c->gout[0], build_shape(c->b, c->n->in[0]));
    return c->b->status;
}

// ---- sharding ----------------------------------------------------------------------------------------------------------
// Both shapes fall into groups of adjacent dims with equal products, as short as can be: [2,6,5] -> [12,5] has {2,6}|{12} and
// {5}|{5}.
typedef struct DimGroup {
    int begin[2], end[2];  // dims [begin, end) of side 0 (operand) and 1 (result)
} DimGroup;

static int dim_groups(const Shape *const side[2], DimGroup *group) {
    int count = 0, at[2] = {0, 0};
    while (at[0] < side[0]->ndim && at[1] < side[1]->ndim) {
        DimGroup *p = &group[count++];
        int64_t product[2];
        for (int s = 0; s < 2; s++) {
            p->begin[s] = at[s];
            product[s] = side[s]->dim[at[s]++];
        }
        while (product[0] != product[1]) {
            int s = product[0] < product[1] ? 0 : 1;
            product[s] *= side[s]->dim[at[s]++];
        }
        for (int s = 0; s < 2; s++) p->end[s] = at[s];
    }
    for (int s = 0; s < 2 && count > 0; s++) group[count - 1].end[s] = side[s]->ndim;  // what is left has size 1
    return count;
}

static int64_t product(const Shape *s, int begin, int end) {
    int64_t p = 1;
    for (int i = begin; i < end; i++) p *= s->dim[i];
    return p;
}

// Layouts of more intervals than this are not worth having: every copy would go by single elements.
enum { MAX_SPANS = 1 << 16 };

// Dim `dim` of side `from` is divided by `layout`: the dim of the other side that is divided then, and how. False if the ranks'
// parts are not whole intervals of one dim there.
static bool map_layout(Graph *g, const Shape *const side[2], const DimGroup *group, int from, int dim, LayoutId layout,
                       int *to_dim, LayoutId *to_layout) {
    const Shape *s = side[from], *t = side[!from];
    int64_t outer = product(s, group->begin[from], dim), inner = product(s, dim + 1, group->end[from]);
    const Layout *l = layouts_get(g->layouts, layout);
    if (outer * (l->first[l->nranks] + 1) > MAX_SPANS) return false;
    LayoutId merged = outer * inner == 1 ? layout : layout_merge(g->layouts, layout, outer, inner);
    for (int e = group->begin[!from]; e < group->end[!from]; e++) {
        if (t->dim[e] <= 1) continue;
        *to_dim = e;
        int64_t before = product(t, group->begin[!from], e), after = product(t, e + 1, group->end[!from]);
        if (layout_split(g->layouts, merged, before, t->dim[e], after, to_layout)) return true;
    }
    return false;
}

static bool fill_row(Graph *g, const Node *n, const DimGroup *group, int ngroup, int from, int dim, LayoutId layout, Row *row) {
    const Shape *const side[2] = {in_shape(g, n, 0), graph_shape(g, n->out[0])};
    for (int i = 0; i < ngroup; i++) {
        if (dim < group[i].begin[from] || dim >= group[i].end[from]) continue;
        int to_dim = 0;
        LayoutId to = 0;
        if (!map_layout(g, side, &group[i], from, dim, layout, &to_dim, &to)) return false;
        row_replicate(n, row);
        row->in[0] = from == 0 ? shard_on(dim, layout) : shard_on(to_dim, to);
        row->out[0] = from == 0 ? shard_on(to_dim, to) : shard_on(dim, layout);
        return true;
    }
    return false;
}

static bool shard_reshape(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return row_terms(g, n, p, row);  // moves nothing
    const Shape *const side[2] = {in_shape(g, n, 0), graph_shape(g, n->out[0])};
    if (!row_slot_ok(g, n, slot, &p) || shape_numel(side[0]) == 0) return false;
    DimGroup group[MAX_DIMS];
    int ngroup = dim_groups(side, group);
    return fill_row(g, n, group, ngroup, slot < 0, p.dim, p.layout, row);
}

// Where a group splits or merges dims, a layout that comes from elsewhere may cut across the blocks (S in blocks of W, say, with
// ranks' borders inside a block). So each dim of such a group is also offered divided evenly, the rest following; but not those
// deep inside, which would leave a rank with many small intervals.
enum { MAX_OUTER = 64 };

static int extra_rows_reshape(Graph *g, const Node *n, int i, Row *row) {
    const Shape *const side[2] = {in_shape(g, n, 0), graph_shape(g, n->out[0])};
    if (shape_numel(side[0]) == 0) return 0;
    DimGroup group[MAX_DIMS];
    int ngroup = dim_groups(side, group), count = 0;
    Row scratch = {.in = (Placement[1]){REPLICATE}, .out = (Placement[1]){REPLICATE}};
    for (int k = 0; k < ngroup; k++)
        for (int from = 0; from < 2; from++) {
            int wide = 0;  // dims of more than one element
            for (int e = group[k].begin[from]; e < group[k].end[from]; e++) wide += side[from]->dim[e] > 1;
            for (int e = group[k].begin[from]; e < group[k].end[from] && wide > 1; e++) {
                if (side[from]->dim[e] <= 1 || product(side[from], group[k].begin[from], e) > MAX_OUTER) continue;
                LayoutId even = layouts_even(g->layouts, side[from]->dim[e]);
                if (fill_row(g, n, group, ngroup, from, e, even, count == i ? row : &scratch)) count++;
            }
        }
    return count;
}

static void cost_view(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)in, (void)out;
    *c = (Cost){0};
}

// ---- record ------------------------------------------------------------------------------------------------------------
static const Sample reshape_samples[] = {
    {.label = "merge", .nin = 1, .shape = {DIMS(2, 7, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(SHAPE, 14, 3)}},
    {.label = "split", .nin = 1, .shape = {DIMS(10, 3)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(SHAPE, 2, 5, 3)}},
    {.label = "split into blocks",
     .nin = 1,
     .shape = {DIMS(2, 12)},
     .dtype = {DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_INTS(SHAPE, 2, 6, 2)}},
    {.label = "heads",
     .nin = 1,
     .shape = {DIMS(1, 5, 6)},
     .dtype = {DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_INTS(SHAPE, 1, 5, 3, 2)}},
    {.label = "sizes of 1",
     .nin = 1,
     .shape = {DIMS(5, 1, 3)},
     .dtype = {DT_F32},
     .nattr = 1,
     .attr = {SAMPLE_INTS(SHAPE, 1, 5, 3, 1)}},
    {.label = "regroup", .nin = 1, .shape = {DIMS(4, 6)}, .dtype = {DT_F32}, .nattr = 1, .attr = {SAMPLE_INTS(SHAPE, 6, 4)}},
    {.label = "scalar", .nin = 1, .shape = {DIMS(1, 1)}, .dtype = {DT_F32}, .nattr = 1, .attr = {{.key = ATTR_SHAPE}}},
};
const OpInfo op_info_RESHAPE = {.infer = infer_reshape,
                                .grad = grad_reshape,
                                .shard = shard_reshape,
                                .extra_rows = extra_rows_reshape,
                                .cost = cost_view,
                                SAMPLES(reshape_samples)};
