// Attention: shapes, gradient and the strategies by which it is spread over ranks. Costs are in attention_cost.c.
//
// Operands have roles, and a strategy places roles, so that the forward and the gradient node share one table:
//              q, o, do, dq [B,H,Sq,D]   lse [B,H,Sq]   k, v [B,Hkv,Sk,D]        dk, dv                      vec [B|1,H|1,L|1]
//   batch      dim 0                     dim 0          dim 0                    dim 0                       dim 0
//   head       dim 1 by L                dim 1 by L     dim 1 by L in KV heads   the same, copies summed     dim 1 by L
//   gather-kv  dim 2 by L                dim 2 by L     whole                    partial sums                dim 2 by L if over q
// where a size-1 dim of a vector stays whole.
#include "ops/attention.h"
#include "ops/halo.h"
#include "ops/rules.h"

// ---- shapes --------------------------------------------------------------------------------------------------------------

// q [B,H,Sq,D], k [B,Hkv,Sk,D], v [B,Hkv,Sk,Dv], one float type, H a multiple of Hkv.
static Status check_qkv(const Graph *g, const Node *n, Diag *d) {
    const Value *q = graph_value(g, n->in[0]), *k = graph_value(g, n->in[1]), *v = graph_value(g, n->in[2]);
    if (!dtype_is_float(q->dtype) || k->dtype != q->dtype || v->dtype != q->dtype)
        return infer_error(d, "q, k, v must be of one float type, not %s, %s, %s", dtype_name(q->dtype), dtype_name(k->dtype),
                           dtype_name(v->dtype));
    if (q->shape.ndim != 4 || k->shape.ndim != 4 || v->shape.ndim != 4)
        return infer_error(d, "q, k, v must have 4 dims [batch, heads, positions, channels], they have %d, %d, %d", q->shape.ndim,
                           k->shape.ndim, v->shape.ndim);
    const int64_t *qd = q->shape.dim, *kd = k->shape.dim, *vd = v->shape.dim;
    if (qd[0] != kd[0] || kd[0] != vd[0]) return infer_error(d, "batch sizes of q, k, v differ");
    if (kd[1] != vd[1] || kd[2] != vd[2]) return infer_error(d, "heads or positions of k and v differ");
    if (qd[3] != kd[3])
        return infer_error(d, "q has %lld channels per head, k has %lld", (long long)qd[3], (long long)kd[3]);
    if (kd[1] < 1 || qd[1] % kd[1])
        return infer_error(d, "%lld query heads cannot share %lld KV heads", (long long)qd[1], (long long)kd[1]);
    return ST_OK;
}

// o [B,H,Sq,Dv].
static Shape output_shape(const Graph *g, const Node *n) {
    Shape o = *graph_shape(g, n->in[0]);
    o.dim[3] = graph_shape(g, n->in[2])->dim[3];
    return o;
}

// Log-sum-exps are not kept in bf16: a score's weight is exp(s - lse).
static DType lse_type(DType t) { return t == DT_BF16 ? DT_F32 : t; }

static Status infer_sdpa(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin != 3 && n->nin != 4) return infer_error(d, "takes q, k, v and maybe a mask, not %d operands", n->nin);
    TRY(check_qkv(g, n, d));
    DType t = graph_value(g, n->in[0])->dtype;
    if (n->nin == 4) {
        const Value *m = graph_value(g, n->in[3]);
        if (m->dtype != DT_BOOL && m->dtype != t)
            return infer_error(d, "the mask must be bool or %s, not %s", dtype_name(t), dtype_name(m->dtype));
        const Shape *q = graph_shape(g, n->in[0]), *k = graph_shape(g, n->in[1]);
        Shape scores = SHAPE(q->dim[0], q->dim[1], q->dim[2], k->dim[2]), both;
        if (!broadcast_shapes(&m->shape, &scores, &both) || !shape_equal(&both, &scores))
            return infer_error(d, "the mask does not broadcast to [B, H, Sq, Sk]");
    }
    out[0] = (TypeOut){t, output_shape(g, n)};
    *nout = 1;
    return ST_OK;
}

// Every instruction has the type that its op gives; indices are i64. (Places and leaves were found in order by program_check.)
static Status check_mask_types(const Program *p, Diag *d) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        DType t[3], result = x->dtype;
        const int32_t operand[3] = {x->a, x->b, x->c};
        if (x->code >= PROG_INDEX_B && x->code <= PROG_INDEX_K) result = DT_I64;
        if (x->code >= PROG_OP) {
            OpKind op = (OpKind)(x->code - PROG_OP);
            for (int k = 0; k < pointwise_nin(op); k++) t[k] = p->instr[operand[k]].dtype;
            TRY(pointwise_type(op, pointwise_nin(op), t, x->dtype, &result, d));
        }
        if (result != x->dtype || !type_class(result))
            return infer_error(d, "mask instruction %d gives %s, not %s", i, dtype_name(result), dtype_name(x->dtype));
    }
    return ST_OK;
}

// Vectors from input `first` on: [B|1, H|1, L|1], L = Sq or Sk by the vector's role, and a program that fits them.
static Status check_mask(const Graph *g, const Node *n, int first, Diag *d) {
    const Program *p = node_prog(n, ATTR_PROG);
    if (!p) return n->nin == first ? ST_OK : infer_error(d, "has vectors but no program that reads them");
    TRY(program_check(p, true, n->nin - first, d));
    TRY(check_mask_types(p, d));
    const Shape *q = graph_shape(g, n->in[0]), *k = graph_shape(g, n->in[1]);
    for (int i = 0; i < n->nin - first; i++) {
        const Shape *s = graph_shape(g, n->in[first + i]);
        int64_t len = program_vec_role(p, i) == 'k' ? k->dim[2] : q->dim[2];
        bool ok = s->ndim == 3 && (s->dim[0] == 1 || s->dim[0] == q->dim[0]) && (s->dim[1] == 1 || s->dim[1] == q->dim[1]) &&
                  (s->dim[2] == 1 || s->dim[2] == len);
        if (!ok) return infer_error(d, "vector %d must be [%lld or 1, %lld or 1, %lld or 1]", i, (long long)q->dim[0],
                                    (long long)q->dim[1], (long long)len);
    }
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        if (x->code != PROG_VEC_Q && x->code != PROG_VEC_K) continue;
        if (program_vec_role(p, x->a) != (x->code == PROG_VEC_Q ? 'q' : 'k'))
            return infer_error(d, "vector %d is read both by query and by key", x->a);
        if (x->dtype != graph_value(g, n->in[first + x->a])->dtype)
            return infer_error(d, "vector %d is %s, the program reads %s", x->a,
                               dtype_name(graph_value(g, n->in[first + x->a])->dtype), dtype_name(x->dtype));
    }
    return ST_OK;
}

int64_t attention_most_groups(int64_t most, int64_t kv_heads) {
    int64_t g = min_i64(most, kv_heads);
    while (g > 1 && kv_heads % g) g--;
    return max_i64(1, g);
}

int64_t attention_groups(const Node *n, int64_t kv_heads) {
    return attention_most_groups(node_int_or(n, ATTR_GROUPS, 1), kv_heads);
}

// What both the forward and the gradient node say in attributes.
static Status check_attributes(const Graph *g, const Node *n, Diag *d) {
    int64_t groups = node_int_or(n, ATTR_GROUPS, 1), kv_heads = graph_shape(g, n->in[1])->dim[1];
    if (groups < 1 || kv_heads % groups)
        return infer_error(d, "%lld KV heads cannot be done in %lld groups", (long long)kv_heads, (long long)groups);
    if (!node_attr(n, ATTR_SCALE)) return infer_error(d, "needs a scale");
    int64_t blind = node_int_or(n, ATTR_MASKED_ROW, 0);
    if (blind < 0 || blind > 3) return infer_error(d, "masked_row is %lld, not 0 to 3", (long long)blind);
    double dropout = node_float_or(n, ATTR_DROPOUT, 0), cap = node_float_or(n, ATTR_SOFTCAP, 0);
    if (!(dropout >= 0 && dropout < 1)) return infer_error(d, "dropout is %g, not in [0, 1)", dropout);
    if (!(cap >= 0)) return infer_error(d, "softcap is %g, not 0 (none) or positive", cap);
    return ST_OK;
}

static Status infer_attention(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin < ATTENTION_NIN) return infer_error(d, "takes q, k, v and vectors, not %d operands", n->nin);
    TRY(check_qkv(g, n, d));
    TRY(check_mask(g, n, ATTENTION_NIN, d));
    TRY(check_attributes(g, n, d));
    DType t = graph_value(g, n->in[0])->dtype;
    Shape o = output_shape(g, n);
    out[0] = (TypeOut){t, o};
    out[1] = (TypeOut){lse_type(t), shape_of(3, o.dim)};
    *nout = 2;
    return ST_OK;
}

static Status infer_attention_grad(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    if (n->nin < ATTENTION_GRAD_NIN)
        return infer_error(d, "takes q, k, v, o, lse, do and vectors, not %d operands", n->nin);
    TRY(check_qkv(g, n, d));
    TRY(check_mask(g, n, ATTENTION_GRAD_NIN, d));
    TRY(check_attributes(g, n, d));
    DType t = graph_value(g, n->in[0])->dtype;
    Shape o = output_shape(g, n), lse = shape_of(3, o.dim);
    static const char *const name[] = {"o", "lse", "do"};
    for (int i = 3; i < 6; i++) {
        const Value *v = graph_value(g, n->in[i]);
        if (v->dtype != (i == 4 ? lse_type(t) : t) || !shape_equal(&v->shape, i == 4 ? &lse : &o))
            return infer_error(d, "%s has not the type of that output of attention", name[i - 3]);
    }
    for (int i = 0; i < 3; i++) out[i] = (TypeOut){t, *graph_shape(g, n->in[i])};
    *nout = 3;
    return ST_OK;
}

// ---- gradient ------------------------------------------------------------------------------------------------------------

static Status grad_attention(GradCtx *c, Diag *d) {
    Builder *b = c->b;
    const Node *n = c->n;
    if (c->gout[1] != NO_VALUE) return diag_error(d, ST_UNSUPPORTED, "a gradient through attention's log-sum-exp");
    for (int i = ATTENTION_NIN; i < n->nin; i++)
        if (c->want[i])
            return diag_error(d, ST_UNSUPPORTED, "a gradient into the attention mask's vector %d; make it a tensor bias or "
                              "freeze what it depends on", i - ATTENTION_NIN);
    if (c->gout[0] == NO_VALUE || !(c->want[0] || c->want[1] || c->want[2])) return ST_OK;
    int nin = ATTENTION_GRAD_NIN + n->nin - ATTENTION_NIN;
    ValueId *in = ARENA_ARRAY(b->g->arena, ValueId, nin), grad[3];
    memcpy(in, (ValueId[]){n->in[0], n->in[1], n->in[2], n->out[0], n->out[1], c->gout[0]}, sizeof(ValueId) * ATTENTION_GRAD_NIN);
    for (int i = ATTENTION_NIN; i < n->nin; i++) in[ATTENTION_GRAD_NIN + i - ATTENTION_NIN] = n->in[i];
    build_multi(b, OP_ATTENTION_GRAD, nin, in, n->nattr, n->attr, 3, grad);
    for (int i = 0; i < 3; i++)
        if (c->want[i]) c->gin[i] = grad[i];
    return b->status;
}

// ---- sharding ------------------------------------------------------------------------------------------------------------

typedef enum AttnRole { AR_Q, AR_LSE, AR_KV, AR_DKV, AR_VEC_Q, AR_VEC_K } AttnRole;
typedef enum AttnStrategy { AS_BATCH, AS_HEAD, AS_GATHER_KV } AttnStrategy;  // value = the dim of q that is sharded
static const char *const strategy_name[] = {"batch", "head", "gather-kv"};

// Role of operand `slot` (outputs as ~j).
static AttnRole role_of(const Node *n, int slot) {
    bool grad = n->op == OP_ATTENTION_GRAD;
    static const AttnRole in[] = {AR_Q, AR_KV, AR_KV, AR_Q, AR_LSE, AR_Q}, out[] = {AR_Q, AR_LSE},
                          out_grad[] = {AR_Q, AR_DKV, AR_DKV};
    if (slot < 0) return grad ? out_grad[~slot] : out[~slot];
    int first = grad ? ATTENTION_GRAD_NIN : ATTENTION_NIN;
    if (slot < first) return in[slot];
    return program_vec_role(node_prog(n, ATTR_PROG), slot - first) == 'k' ? AR_VEC_K : AR_VEC_Q;
}

static const Shape *slot_shape(const Graph *g, const Node *n, int slot) {
    return graph_shape(g, slot >= 0 ? n->in[slot] : n->out[~slot]);
}

// Where an operand goes under a strategy; `layout` of q's dim, `kv` the KV heads that each rank's query heads need.
static Placement place_role(AttnRole role, const Shape *s, AttnStrategy strategy, LayoutId layout, LayoutId kv, bool kv_shared) {
    int dim = (int)strategy;
    if (role == AR_VEC_Q || role == AR_VEC_K) {
        bool spans_dim = s->dim[dim] > 1 && !(role == AR_VEC_K && strategy == AS_GATHER_KV);
        return spans_dim ? shard_on(dim, layout) : REPLICATE;
    }
    if (role == AR_Q || role == AR_LSE || strategy == AS_BATCH) return shard_on(dim, layout);
    if (strategy == AS_GATHER_KV) return role == AR_KV ? REPLICATE : PARTIAL_SUM;
    return role == AR_DKV && kv_shared ? shard_sum_on(dim, kv) : shard_on(dim, kv);
}

static bool fill_row(Graph *g, const Node *n, AttnStrategy strategy, LayoutId layout, Row *row) {
    LayoutId kv = layout;
    bool shared = false;
    if (!layout_is_ascending(layouts_get(g->layouts, layout))) return false;
    if (strategy == AS_HEAD) {
        kv = layout_group(g->layouts, layout, graph_shape(g, n->in[0])->dim[1] / graph_shape(g, n->in[1])->dim[1]);
        shared = layouts_get(g->layouts, kv)->overlap;
    }
    for (int i = 0; i < n->nin; i++)
        row->in[i] = place_role(role_of(n, i), slot_shape(g, n, i), strategy, layout, kv, shared);
    for (int j = 0; j < n->nout; j++)
        row->out[j] = place_role(role_of(n, ~j), slot_shape(g, n, ~j), strategy, layout, kv, shared);
    row->strategy = strategy_name[strategy];
    return true;
}

// The strategy follows from which dim of which operand is sharded. Keys sharded by position have no row: gather-kv, found
// through extra_rows, gathers them.
static bool shard_attention(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (!placement_is_partition(g, &p) || p.dim > 2) return false;
    AttnRole role = role_of(n, slot);
    AttnStrategy strategy = (AttnStrategy)p.dim;
    LayoutId layout = p.layout;
    if (role == AR_VEC_Q || role == AR_VEC_K) {
        if (slot_shape(g, n, slot)->dim[p.dim] == 1) return false;
        if (role == AR_VEC_K && strategy == AS_GATHER_KV) return false;
    }
    if (role == AR_KV || role == AR_DKV) {
        if (strategy == AS_GATHER_KV) return false;
        if (strategy == AS_HEAD)  // every KV head with the query heads that share it
            layout = layout_merge(g->layouts, layout, 1, graph_shape(g, n->in[0])->dim[1] / graph_shape(g, n->in[1])->dim[1]);
    }
    return fill_row(g, n, strategy, layout, row);
}

static int extra_rows_attention(Graph *g, const Node *n, int i, Row *row) {
    const Shape *q = graph_shape(g, n->in[0]);
    static const AttnStrategy offered[] = {AS_HEAD, AS_GATHER_KV};
    int count = sizeof offered / sizeof *offered;
    if (i >= 0 && i < count)
        CHECK(fill_row(g, n, offered[i], layouts_even(g->layouts, q->dim[offered[i]]), row), "even layout has no row");
    return count;
}

// sdpa is gone before the shard pass; an attention that could not be recognised was lowered to matrix products by then.
static bool shard_sdpa(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    (void)g, (void)n, (void)slot, (void)p, (void)row;
    return false;
}

const OpInfo op_info_SDPA = {
    .infer = infer_sdpa,
    .grad_error = "attention as imported has no gradient: the mask pass must run first",
    .shard = shard_sdpa,
    .cost = cost_attention,
    .samples = sdpa_samples,
    .nsample = SDPA_NSAMPLE,
};
const OpInfo op_info_ATTENTION = {
    .infer = infer_attention,
    .grad = grad_attention,
    .shard = shard_attention,
    .extra_rows = extra_rows_attention,
    .cost = cost_attention,
    .samples = attention_samples,
    .nsample = ATTENTION_NSAMPLE,
};
const OpInfo op_info_ATTENTION_GRAD = {
    .infer = infer_attention_grad,
    .grad_error = "second derivatives are not supported",
    .shard = shard_attention,
    .extra_rows = extra_rows_attention,
    .cost = cost_attention_grad,
    .samples = attention_grad_samples,
    .nsample = ATTENTION_GRAD_NSAMPLE,
};
