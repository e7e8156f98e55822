// Ops that passes make: reshard (pass/shard) and fused (pass/fuse).
#include "ops/pointwise.h"

// ---- reshard: the identity in global meaning ---------------------------------------------------------------------------
static Status infer_reshard(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

static bool shard_reshard(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    (void)g, (void)n, (void)slot, (void)p, (void)row;
    return false;  // its two placements are what the shard pass gave it
}

const OpInfo op_info_RESHARD = {.infer = infer_reshard,
                                .grad_error = "gradients are taken before sharding",
                                .shard = shard_reshard,
                                .cost = cost_memory_bound};

// ---- fused: a pointwise group as one program -----------------------------------------------------------------------------
enum { MAX_FUSED_OUTPUTS = 64 };  // graph_add takes no more

// The types of instruction `at`, whose operands program_check has found to be in place.
static Status check_types(const Graph *g, const Node *n, const Program *p, int at, Diag *d) {
    const Instr *x = &p->instr[at];
    DType t[3] = {x->dtype}, result = x->dtype;
    if (x->code == PROG_INPUT) {
        result = in_dtype(g, n, x->a);
    } else if (x->code >= PROG_OP) {
        const int32_t arg[3] = {x->a, x->b, x->c};
        OpKind op = (OpKind)(x->code - PROG_OP);
        for (int i = 0; i < pointwise_nin(op); i++) t[i] = p->instr[arg[i]].dtype;
        TRY(pointwise_type(op, pointwise_nin(op), t, x->dtype, &result, d));
    }
    if (result == x->dtype && type_class(result)) return ST_OK;
    return infer_error(d, "fused: instruction %d gives %s, not %s", at, dtype_name(result), dtype_name(x->dtype));
}

static Status check_program(const Graph *g, const Node *n, const Program *p, Diag *d) {
    TRY(program_check(p, false, n->nin, d));
    if (p->nout < 1 || p->nout > MAX_FUSED_OUTPUTS) return infer_error(d, "fused: a program of %d outputs", p->nout);
    for (int i = 0; i < p->ninstr; i++) TRY(check_types(g, n, p, i, d));
    return ST_OK;
}

// The iteration space is what the operands broadcast to, or attribute shape where that is larger (a group fed by scalars only).
static Status infer_fused(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    const Program *p = node_prog(n, ATTR_PROG);
    if (!p) return infer_error(d, "fused needs attribute prog");
    TRY(check_program(g, n, p, d));
    Shape s = SHAPE0, whole;
    for (int i = 0; i < n->nin; i++)
        if (!broadcast_shapes(&s, in_shape(g, n, i), &s))
            return infer_error(d, "operand %d of fused, %s, does not broadcast with %s", i, shape_text(in_shape(g, n, i)).s,
                               shape_text(&s).s);
    if (node_attr(n, ATTR_SHAPE)) {
        TRY(rule_shape(n, &whole, d));
        Shape both;
        if (!broadcast_shapes(&s, &whole, &both) || !shape_equal(&both, &whole))
            return infer_error(d, "fused: operands of %s do not fit in %s", shape_text(&s).s, shape_text(&whole).s);
        s = whole;
    }
    TRY(rule_check_shape(&s, d));
    *nout = p->nout;
    for (int j = 0; j < p->nout; j++) out[j] = (TypeOut){p->instr[p->out[j]].dtype, s};
    return ST_OK;
}

static bool shard_fused(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    return row_from_axes(g, n, slot, p, pointwise_axis, NULL, row);
}

static bool is_transcendental(int op) {
    switch (op) {
    case OP_EXP: case OP_EXPM1: case OP_LOG: case OP_LOG1P: case OP_SIN: case OP_COS: case OP_TANH: case OP_SIGMOID:
    case OP_ERF: case OP_SILU: case OP_GELU: case OP_GELU_TANH: case OP_POW: return true;
    default: return false;
    }
}

static void cost_fused(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    const Program *p = node_prog(n, ATTR_PROG);
    double work = 0;
    for (int i = 0; i < p->ninstr; i++)
        if (p->instr[i].code >= PROG_OP) work += is_transcendental(p->instr[i].code - PROG_OP) ? 8 : 1;
    c->flops = work * operand_numel(&out[0]);
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
