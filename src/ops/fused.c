// fused: a pointwise group as one program, in the form that every backend takes and in the second form (docs/cuda.md), which
// has views of its inputs, a row and reductions over it.
#include "ir/views.h"
#include "ops/pointwise.h"

enum { MAX_FUSED_OUTPUTS = 64 };  // graph_add takes no more

static int row_of(const Node *n) { return (int)node_int_or(n, ATTR_ROW, 0); }

// ---- types ---------------------------------------------------------------------------------------------------------------
// bf16 is how values are stored: inputs have it and casts give it, to outputs or to further casts.
static Status check_op(const Program *p, const Instr *x, DType *result, Diag *d) {
    OpKind op = (OpKind)(x->code - PROG_OP);
    const int32_t arg[3] = {x->a, x->b, x->c};
    DType t[3] = {x->dtype};
    for (int i = 0; i < pointwise_nin(op); i++) {
        t[i] = p->instr[arg[i]].dtype;
        if (t[i] != DT_BF16) continue;
        if (op != OP_CAST) return infer_error(d, "fused: %s of a bf16 (cast it first)", op_name(op));
        t[i] = DT_F32;
    }
    return pointwise_type(op, pointwise_nin(op), t, x->dtype, result, d);
}

// The types of instruction `at`, whose operands program_check has found to be in place.
static Status check_types(const Graph *g, const Node *n, const Program *p, int at, Diag *d) {
    const Instr *x = &p->instr[at];
    DType result = x->dtype;
    if (x->code == PROG_INPUT) result = in_dtype(g, n, x->a);
    if (x->code >= PROG_OP) TRY(check_op(p, x, &result, d));
    bool may_be = type_class(result) || (result == DT_BF16 && (x->code == PROG_INPUT || x->code == PROG_OP + OP_CAST));
    if (result == x->dtype && may_be) return ST_OK;
    return infer_error(d, "fused: instruction %d gives %s, not %s", at, dtype_name(result), dtype_name(x->dtype));
}

static Status check_program(const Graph *g, const Node *n, const Program *p, Diag *d) {
    TRY(program_check(p, false, n->nin, d));
    if (p->nout < 1 || p->nout > MAX_FUSED_OUTPUTS) return infer_error(d, "fused: a program of %d outputs", p->nout);
    for (int i = 0; i < p->ninstr; i++) TRY(check_types(g, n, p, i, d));
    return ST_OK;
}

// ---- the second form -----------------------------------------------------------------------------------------------------
static Status check_second(const Node *n, const Program *p, const Shape *space, Diag *d) {
    int row = row_of(n);
    if (node_attr(n, ATTR_ROW) && (row < 1 || row > space->ndim))
        return infer_error(d, "fused: a row of %d dims in %s", row, shape_text(space).s);
    for (int k = space->ndim - row; k < space->ndim; k++)
        if (space->dim[k] == 0) return infer_error(d, "fused: a row without elements in %s", shape_text(space).s);
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        if (x->code == PROG_INDEX && x->a >= space->ndim)
            return infer_error(d, "fused: instruction %d is the position along dim %d of %s", i, x->a, shape_text(space).s);
        if (program_is_reduction(x->code) && row == 0)
            return infer_error(d, "fused: instruction %d reduces, but there is no row", i);
    }
    return ST_OK;
}

// Every view leads to where its input has elements. resolved[nin].
static Status check_views(const Graph *g, const Node *n, const Shape *space, View *resolved, Diag *d) {
    TRY(views_decode(n, resolved, d));
    for (int i = 0; i < n->nin; i++) {
        const Shape *in = in_shape(g, n, i);
        Shape both;
        bool fits = resolved[i].ndim == in->ndim;
        if (resolved[i].broadcast) fits = broadcast_shapes(in, space, &both) && shape_equal(&both, space);
        if (!fits) return infer_error(d, "fused: operand %d of %s does not fit in %s", i, shape_text(in).s, shape_text(space).s);
        resolved[i] = view_resolve(&resolved[i], in, space);
        if (!view_inside(&resolved[i], in, space))
            return infer_error(d, "fused: the view of operand %d leads outside of its %s", i, shape_text(in).s);
    }
    return ST_OK;
}

// What broadcasting makes of the operands, where no attribute says it.
static Status broadcast_space(const Graph *g, const Node *n, Shape *s, Diag *d) {
    *s = SHAPE0;
    for (int i = 0; i < n->nin; i++)
        if (!broadcast_shapes(s, in_shape(g, n, i), s))
            return infer_error(d, "operand %d of fused, %s, does not broadcast with %s", i, shape_text(in_shape(g, n, i)).s,
                               shape_text(s).s);
    return ST_OK;
}

// The iteration space is attribute shape, or without it what the operands broadcast to.
static Status infer_fused(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    const Program *p = node_prog(n, ATTR_PROG);
    if (!p) return infer_error(d, "fused needs attribute prog");
    TRY(check_program(g, n, p, d));
    Shape s;
    if (node_attr(n, ATTR_SHAPE))
        TRY(rule_shape(n, &s, d));
    else if (node_attr(n, ATTR_ROW) || node_attr(n, ATTR_VIEWS))
        return infer_error(d, "fused needs attribute shape where it has row or views");
    else
        TRY(broadcast_space(g, n, &s, d));
    TRY(rule_check_shape(&s, d));
    TRY(check_second(n, p, &s, d));
    View *views = ARENA_ARRAY(g->arena, View, n->nin);
    TRY(check_views(g, n, &s, views, d));
    bool *constant = ARENA_ARRAY(g->arena, bool, p->ninstr);
    int row = row_of(n);
    program_row_constant(p, s.ndim, row, views, constant);
    *nout = p->nout;
    for (int j = 0; j < p->nout; j++) {
        const Instr *x = &p->instr[p->out[j]];
        out[j] = (TypeOut){x->dtype, s};
        for (int k = 0; k < s.ndim; k++)
            if (k < s.ndim - row ? x->code == PROG_COL_SUM : constant[p->out[j]]) out[j].shape.dim[k] = 1;
    }
    return ST_OK;
}

// ---- sharding -------------------------------------------------------------------------------------------------------------
// Whether iteration dim `dim` may be divided: no view moves it, nothing asks for positions along it, it is no row dim.
static bool divides(const Graph *g, const Node *n, const View *views, const Shape *space, int dim) {
    const Program *p = node_prog(n, ATTR_PROG);
    if (dim >= space->ndim - row_of(n) || space->dim[dim] <= 1) return false;
    for (int i = 0; i < p->ninstr; i++)
        if (p->instr[i].code == PROG_INDEX && p->instr[i].a == dim) return false;
    for (int i = 0; i < n->nin; i++) {
        int runs = 0;
        for (int k = 0; k < views[i].nwin; k++)
            if (views[i].win[k].dim == dim) return false;
        for (int k = 0; k < views[i].ndim; k++) {
            const ViewDim *x = &views[i].d[k];
            if (x->dim != dim) continue;
            if (x->start != 0 || x->step != 1 || in_shape(g, n, i)->dim[k] != space->dim[dim] || ++runs > 1) return false;
        }
    }
    return true;
}

// A dim before the row is divided alike in all that have it; a result without it, a col_sum, becomes a term.
static bool shard_fused(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (!row_slot_ok(g, n, slot, &p)) return false;
    View views[64];
    Diag inner = {0};
    Shape space = {0};
    const int64_t *shape;
    if (n->nin > 64) return false;
    if (!node_attr(n, ATTR_SHAPE)) {
        if (broadcast_space(g, n, &space, &inner) != ST_OK) return false;
    } else {
        space.ndim = node_ints(n, ATTR_SHAPE, &shape);
        for (int k = 0; k < space.ndim; k++) space.dim[k] = shape[k];
    }
    if (check_views(g, n, &space, views, &inner) != ST_OK) return false;
    int dim = slot < 0 ? p.dim : views[slot].d[p.dim].dim;
    if (dim < 0 || !divides(g, n, views, &space, dim)) return false;
    row_replicate(n, row);
    for (int i = 0; i < n->nin; i++)
        for (int k = 0; k < views[i].ndim; k++)
            if (views[i].d[k].dim == dim) row->in[i] = shard_on(k, p.layout);
    for (int j = 0; j < n->nout; j++)
        row->out[j] = graph_shape(g, n->out[j])->dim[dim] == space.dim[dim] ? shard_on(dim, p.layout) : PARTIAL_SUM;
    return true;
}

// ---- cost ----------------------------------------------------------------------------------------------------------------
static bool is_transcendental(int op) {
    switch (op) {
    case OP_EXP: case OP_EXPM1: case OP_LOG: case OP_LOG1P: case OP_SIN: case OP_COS: case OP_TANH: case OP_SIGMOID:
    case OP_ERF: case OP_SILU: case OP_GELU: case OP_GELU_TANH: case OP_POW: return true;
    default: return false;
    }
}

// The largest operand or result stands for the local iteration space: which dim of it is divided, the attribute cannot say.
static void cost_fused(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    const Program *p = node_prog(n, ATTR_PROG);
    double work = 0, points = 0;
    for (int i = 0; i < p->ninstr; i++)
        if (p->instr[i].code >= PROG_OP) work += is_transcendental(p->instr[i].code - PROG_OP) ? 8 : 1;
        else work += program_is_reduction(p->instr[i].code);
    for (int j = 0; j < n->nout; j++) points = operand_numel(&out[j]) > points ? operand_numel(&out[j]) : points;
    for (int i = 0; i < n->nin && node_attr(n, ATTR_ROW); i++)
        points = operand_numel(&in[i]) > points ? operand_numel(&in[i]) : points;
    c->flops = work * points;
}

// exp(x*2 + y) and its comparison with x
static const Instr sample_instr[] = {
    {PROG_INPUT, DT_F32, 0, -1, -1, 0},       {PROG_INPUT, DT_F32, 1, -1, -1, 0},       {PROG_CONST, DT_F32, -1, -1, -1, 2},
    {PROG_OP + OP_MUL, DT_F32, 0, 2, -1, 0},  {PROG_OP + OP_ADD, DT_F32, 3, 1, -1, 0},  {PROG_OP + OP_EXP, DT_F32, 4, -1, -1, 0},
    {PROG_OP + OP_LT, DT_BOOL, 5, 0, -1, 0},
};
static const Program sample_program = {
    .ninstr = sizeof sample_instr / sizeof sample_instr[0], .instr = sample_instr, .nout = 2, .out = (const int32_t[]){5, 6}};
static const Sample fused_samples[] = {
    {.label = "equal shapes",
     .nin = 2,
     .shape = {DIMS(5, 3), DIMS(5, 3)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 1,
     .attr = {{.key = ATTR_PROG, .u.prog = &sample_program}}},
    {.label = "broadcast",
     .nin = 2,
     .shape = {DIMS(2, 1, 7), DIMS(3, 1)},
     .dtype = {DT_F32, DT_F32},
     .nattr = 1,
     .attr = {{.key = ATTR_PROG, .u.prog = &sample_program}}},
};
const OpInfo op_info_FUSED = {.infer = infer_fused,
                              .grad_error = "groups are fused after gradients are taken",
                              .shard = shard_fused,
                              .cost = cost_fused,
                              SAMPLES(fused_samples)};
