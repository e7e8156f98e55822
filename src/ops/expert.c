// The grouped product of a mixture of experts: every row times the matrix of its expert. Rows are tokens (times top-k), so
// sharding rows is sharding tokens: each rank sorts and multiplies its own.
#include "ops/rules.h"

static Status check_rows(const Value *x, const Value *expert, const char *what, Diag *d) {
    if (!dtype_is_float(x->dtype)) return infer_error(d, "%s must be float, not %s", what, dtype_name(x->dtype));
    if (expert->dtype != DT_I64) return infer_error(d, "expert numbers must be i64, not %s", dtype_name(expert->dtype));
    if (x->shape.ndim != 2 || expert->shape.ndim != 1 || x->shape.dim[0] != expert->shape.dim[0])
        return infer_error(d, "%s must be [N, K] and the expert numbers [N]", what);
    return ST_OK;
}

static Status infer_expert_matmul(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin != 3) return infer_error(d, "takes 3 operands (x, expert, w), not %d", n->nin);
    const Value *x = graph_value(g, n->in[0]), *expert = graph_value(g, n->in[1]), *w = graph_value(g, n->in[2]);
    TRY(check_rows(x, expert, "x", d));
    if (w->dtype != x->dtype) return infer_error(d, "x is %s but w is %s", dtype_name(x->dtype), dtype_name(w->dtype));
    if (w->shape.ndim != 3) return infer_error(d, "w must be [experts, K, N], it has %d dims", w->shape.ndim);
    bool trans = node_int_or(n, ATTR_TRANS_W, 0) != 0;
    if (w->shape.dim[trans ? 2 : 1] != x->shape.dim[1])
        return infer_error(d, "rows of x have %lld elements, matrices of w take %lld", (long long)x->shape.dim[1],
                           (long long)w->shape.dim[trans ? 2 : 1]);
    out[0] = (TypeOut){x->dtype, SHAPE(x->shape.dim[0], w->shape.dim[trans ? 1 : 2])};
    *nout = 1;
    return rule_check_shape(&out[0].shape, d);
}

static Status infer_expert_matmul_grad(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin != 3 && n->nin != 4)
        return infer_error(d, "takes 3 operands (x, expert, g) and perhaps one to add, not %d", n->nin);
    const Value *x = graph_value(g, n->in[0]), *expert = graph_value(g, n->in[1]), *gy = graph_value(g, n->in[2]);
    TRY(check_rows(x, expert, "x", d));
    TRY(check_rows(gy, expert, "the cotangent", d));
    if (gy->dtype != x->dtype)
        return infer_error(d, "x is %s but the cotangent is %s", dtype_name(x->dtype), dtype_name(gy->dtype));
    if (!node_attr(n, ATTR_NROWS) || node_int(n, ATTR_NROWS) < 0) return infer_error(d, "needs nrows, the number of experts");
    bool trans = node_int_or(n, ATTR_TRANS_W, 0) != 0;
    int64_t in = x->shape.dim[1], res = gy->shape.dim[1];
    DType t;
    TRY(rule_wide(n, x->dtype, &t, d));
    out[0] = (TypeOut){t, SHAPE(node_int(n, ATTR_NROWS), trans ? res : in, trans ? in : res)};
    *nout = 1;
    TRY(rule_check_shape(&out[0].shape, d));
    if (n->nin == 3) return ST_OK;
    const Value *c = graph_value(g, n->in[3]);
    if (c->dtype == t && shape_equal(&c->shape, &out[0].shape)) return ST_OK;
    return infer_error(d, "what is added is %s %s, the result %s %s", dtype_name(c->dtype), shape_text(&c->shape).s,
                       dtype_name(t), shape_text(&out[0].shape).s);
}

static Status grad_expert_matmul(GradCtx *c, Diag *d) {
    (void)d;
    Builder *b = c->b;
    const Node *n = c->n;
    ValueId gy = c->gout[0];
    if (gy == NO_VALUE) return ST_OK;
    int64_t trans = node_int_or(n, ATTR_TRANS_W, 0) != 0;
    if (c->want[0]) {
        Attr a = attr_i(ATTR_TRANS_W, !trans);
        c->gin[0] = build(b, OP_EXPERT_MATMUL, 3, (ValueId[]){gy, n->in[1], n->in[2]}, 1, &a);
    }
    if (c->want[2]) {
        Attr a[] = {attr_i(ATTR_NROWS, build_shape(b, n->in[2]).dim[0]), attr_i(ATTR_TRANS_W, trans)};
        c->gin[2] = build(b, OP_EXPERT_MATMUL_GRAD, 3, (ValueId[]){n->in[0], n->in[1], gy}, 2, a);
    }
    return b->status;
}

// Rows go together (x, expert, out); a column of the result needs only the same column of every expert's matrix.
static bool shard_expert_matmul(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    row_replicate(n, row);
    if (p.kind == PLACE_PARTIAL) {  // linear in x and in w
        if ((slot != 0 && slot != 2) || p.reduce != RED_SUM) return false;
        row->in[slot] = row->out[0] = PARTIAL_SUM;
        return true;
    }
    if (!placement_is_partition(g, &p)) return false;
    int col = node_int_or(n, ATTR_TRANS_W, 0) != 0 ? 1 : 2;  // dim of w that is dim 1 of the result
    if (slot != 2 && p.dim == 0) {
        row->in[0] = row->in[1] = row->out[0] = p;
        return true;
    }
    if ((slot == 2 && p.dim == col) || (slot == ~0 && p.dim == 1)) {
        row->in[2] = shard_on(col, p.layout);
        row->out[0] = shard_on(1, p.layout);
        return true;
    }
    return false;
}

static bool shard_expert_matmul_grad(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    row_replicate(n, row);
    if (p.kind == PLACE_PARTIAL) {
        if ((slot != 0 && slot != 2) || p.reduce != RED_SUM) return false;
        row->in[slot] = row->out[0] = PARTIAL_SUM;
        if (n->nin == 4) row->in[3] = PARTIAL_SUM;
        return true;
    }
    if (!placement_is_partition(g, &p)) return false;
    if (slot == 3) slot = ~0;  // what is added is placed as the result
    if (slot >= 0 && p.dim == 0) {  // dw sums over rows
        row->in[0] = row->in[1] = row->in[2] = p;
        row->out[0] = PARTIAL_SUM;
        if (n->nin == 4) row->in[3] = PARTIAL_SUM;
        return true;
    }
    bool trans = node_int_or(n, ATTR_TRANS_W, 0) != 0;
    int from_x = trans ? 2 : 1, from_g = trans ? 1 : 2;  // dims of dw that are dim 1 of x and of the cotangent
    bool x_cols = (slot == 0 && p.dim == 1) || (slot == ~0 && p.dim == from_x);
    bool g_cols = (slot == 2 && p.dim == 1) || (slot == ~0 && p.dim == from_g);
    if (!x_cols && !g_cols) return false;
    row->in[x_cols ? 0 : 2] = shard_on(1, p.layout);
    row->out[0] = shard_on(x_cols ? from_x : from_g, p.layout);
    if (n->nin == 4) row->in[3] = row->out[0];
    return true;
}

static void cost_expert_matmul(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = 2 * operand_numel(&out[0]) * (double)in[0].dim[1];
}

static void cost_expert_matmul_grad(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = 2 * operand_numel(&in[0]) * (double)in[2].dim[1];
}

// Experts are drawn from [-1, 4) of 3: rows of no expert give zeros.
static const Sample expert_matmul_samples[] = {
    {.label = "plain", .nin = 3, .shape = {{2, {7, 4}}, {1, {7}}, {3, {3, 4, 5}}}, .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, 0, 0}, .hi = {0, 3, 0}, .nattr = 1, .attr = {{.key = ATTR_TRANS_W, .u.i = 0}}},
    {.label = "transposed, rows of no expert", .nin = 3, .shape = {{2, {9, 4}}, {1, {9}}, {3, {3, 5, 4}}},
     .dtype = {DT_F32, DT_I64, DT_F32}, .lo = {0, -1, 0}, .hi = {0, 4, 0}, .nattr = 1, .attr = {{.key = ATTR_TRANS_W, .u.i = 1}}},
};
static const Sample expert_matmul_grad_samples[] = {
    {.label = "plain", .nin = 3, .shape = {{2, {7, 4}}, {1, {7}}, {2, {7, 5}}}, .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, 0, 0}, .hi = {0, 3, 0}, .nattr = 2, .attr = {{.key = ATTR_NROWS, .u.i = 3}, {.key = ATTR_TRANS_W, .u.i = 0}}},
    {.label = "transposed, rows of no expert", .nin = 3, .shape = {{2, {9, 4}}, {1, {9}}, {2, {9, 5}}},
     .dtype = {DT_F32, DT_I64, DT_F32}, .lo = {0, -1, 0}, .hi = {0, 4, 0}, .nattr = 2,
     .attr = {{.key = ATTR_NROWS, .u.i = 3}, {.key = ATTR_TRANS_W, .u.i = 1}}},
    {.label = "added to", .nin = 4, .shape = {{2, {7, 4}}, {1, {7}}, {2, {7, 5}}, {3, {3, 4, 5}}},
     .dtype = {DT_F32, DT_I64, DT_F32, DT_F32}, .lo = {0, -1, 0}, .hi = {0, 2, 0}, .nattr = 2,  // expert 2 has no row
     .attr = {{.key = ATTR_NROWS, .u.i = 3}, {.key = ATTR_TRANS_W, .u.i = 0}}},
    {.label = "added to, transposed", .nin = 4, .shape = {{2, {9, 4}}, {1, {9}}, {2, {9, 5}}, {3, {3, 5, 4}}},
     .dtype = {DT_F32, DT_I64, DT_F32, DT_F32}, .lo = {0, -1, 0}, .hi = {0, 4, 0}, .nattr = 2,
     .attr = {{.key = ATTR_NROWS, .u.i = 3}, {.key = ATTR_TRANS_W, .u.i = 1}}},
};

const OpInfo op_info_EXPERT_MATMUL = {
    .infer = infer_expert_matmul,
    .grad = grad_expert_matmul,
    .shard = shard_expert_matmul,
    .cost = cost_expert_matmul,
    .samples = expert_matmul_samples,
    .nsample = sizeof expert_matmul_samples / sizeof *expert_matmul_samples,
};
const OpInfo op_info_EXPERT_MATMUL_GRAD = {
    .infer = infer_expert_matmul_grad,
    .grad_error = "second derivatives are not supported",
    .shard = shard_expert_matmul_grad,
    .cost = cost_expert_matmul_grad,
    .samples = expert_matmul_grad_samples,
    .nsample = sizeof expert_matmul_grad_samples / sizeof *expert_matmul_grad_samples,
};
