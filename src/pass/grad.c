// grad: reverse-mode differentiation on the global, one-device graph.
//
//   %3 = dot(%x, %w)                       %3 = dot(%x, %w)
//   return loss=%9                 ->      ...
//                                          %20 = dot(%19, %w) {trans_b}      backward
//                                          %21 = dot(%19, %x) {trans_a}
//                                          return loss=%9, grad "w"=%21
//
// Requires: one OUT_LOSS, a float scalar; no sdpa (mask ran). Establishes: an OUT_GRAD for every trainable parameter that the
// loss depends on (a parameter it does not depend on has none, as in PyTorch). Because this happens before sharding, every
// cotangent has a global meaning and gets a placement like any other value.
#include "ir/build.h"
#include "ops/op.h"
#include "pass/pass.h"

typedef struct GradState {
    Graph *g;
    Builder b;
    bool *needs;       // [forward values] the loss's gradient may flow through this value
    ValueId *cot;      // [forward values] sum of cotangents so far, NO_VALUE if none; of bf16 values bf16 or f32
    bool *weight;      // [forward values] bf16 that depends on parameters only: its cotangent stays f32
    ValueId *param;    // [params] gradient so far
    int64_t nforward;  // forward nodes
} GradState;

// A value needs a gradient if it is a trainable parameter or a float that depends on one through an op that has a gradient.
static void mark_needs(GradState *s) {
    for (int64_t i = 0; i < s->nforward; i++) {
        const Node *n = graph_node(s->g, (NodeId)i);
        bool any = n->op == OP_PARAM && node_int_or(n, ATTR_KIND, 0) == 0 && s->g->params.data[node_int(n, ATTR_INDEX)].trainable;
        for (int k = 0; k < n->nin; k++) any |= s->needs[n->in[k]];
        if (n->op == OP_STOP_GRAD) any = false;
        const OpInfo *info = op_info(n->op);
        if (!info->grad && !info->grad_error && n->op != OP_PARAM) any = false;  // piecewise constant: comparisons, floor, ...
        for (int j = 0; j < n->nout; j++) s->needs[n->out[j]] = any && dtype_is_float(graph_value(s->g, n->out[j])->dtype);
    }
}

// A parameter as matrix products read it: cast to bf16, perhaps rearranged.
static void mark_weights(GradState *s, bool *data) {
    for (int64_t i = 0; i < s->nforward; i++) {
        const Node *n = graph_node(s->g, (NodeId)i);
        bool any = n->op == OP_INPUT || n->op == OP_RANDOM;
        for (int k = 0; k < n->nin; k++) any |= data[n->in[k]];
        for (int j = 0; j < n->nout; j++) {
            data[n->out[j]] = any;
            s->weight[n->out[j]] = !any && graph_value(s->g, n->out[j])->dtype == DT_BF16;
        }
    }
}

// A parameter's cotangent in f32: a product that was just made for it accumulates in f32 anyway and need not round its result.
static ValueId widen(GradState *s, ValueId g) {
    if (build_dtype(&s->b, g) != DT_BF16) return g;
    Node n = *graph_def(s->g, g);
    if (n.op == OP_CAST && build_dtype(&s->b, n.in[0]) == DT_F32) return n.in[0];
    bool product = n.op == OP_DOT || n.op == OP_EXPERT_MATMUL_GRAD || n.op == OP_EMBEDDING_GRAD;
    if (!product || node_attr(&n, ATTR_DTYPE)) return build_cast(&s->b, g, DT_F32);
    Attr attr[16];
    CHECK(n.nattr < 16, "%s with %d attributes", op_name(n.op), n.nattr);
    memcpy(attr, n.attr, sizeof *attr * (size_t)n.nattr);
    attr[n.nattr] = attr_i(ATTR_DTYPE, DT_F32);
    return build(&s->b, n.op, n.nin, n.in, n.nattr + 1, attr);
}

static ValueId unrounded(Builder *b, ValueId g) { return build_dtype(b, g) == DT_BF16 ? build_cast(b, g, DT_F32) : g; }

// Sums are taken in f32, those of bf16 cotangents too; whoever reads the sum rounds it, once.
static void accumulate(GradState *s, ValueId v, ValueId g) {
    Shape shape = *graph_shape(s->g, v);
    ValueId *slot = &s->cot[v];
    Builder *b = &s->b;
    if (b->status != ST_OK) return;
    if (s->weight[v]) g = widen(s, g);
    else if (*slot != NO_VALUE || !shape_equal(graph_shape(s->g, g), &shape)) g = unrounded(b, g);
    g = build_sum_to(b, g, shape);
    *slot = *slot == NO_VALUE ? g : build_binary(b, OP_ADD, unrounded(b, *slot), g);
}

// The cotangent that a gradient rule sees: of the value's type. A cast takes the unrounded sum, and what rearranges a weight
// passes it on.
static ValueId cotangent(GradState *s, const Node *n, ValueId v) {
    ValueId g = s->cot[v];
    if (g == NO_VALUE || n->op == OP_CAST || (s->weight[v] && op_is_move(n->op))) return g;
    return build_cast(&s->b, g, graph_value(s->g, v)->dtype);
}

static Status differentiate_node(GradState *s, NodeId id, Arena *scratch, Diag *d) {
    Node n = *graph_node(s->g, id);  // a copy: appending moves the node array
    ValueId gout[64];
    bool any = false;
    for (int j = 0; j < n.nout; j++) {
        gout[j] = cotangent(s, &n, n.out[j]);
        any |= gout[j] != NO_VALUE;
    }
    if (!any) return ST_OK;
    s->b.source = n.source;
    if (n.op == OP_PARAM) {
        s->param[node_int(&n, ATTR_INDEX)] = s->param[node_int(&n, ATTR_INDEX)] == NO_VALUE
                                                 ? gout[0]
                                                 : build_binary(&s->b, OP_ADD, s->param[node_int(&n, ATTR_INDEX)], gout[0]);
        return s->b.status;
    }
    const OpInfo *info = op_info(n.op);
    if (info->grad_error)
        return diag_error(d, ST_UNSUPPORTED, "%s: no gradient: %s", node_describe(s->g, id, scratch), info->grad_error);
    bool *want = ARENA_ARRAY(scratch, bool, n.nin);
    ValueId *gin = ARENA_ARRAY(scratch, ValueId, n.nin);
    for (int k = 0; k < n.nin; k++) {
        want[k] = s->needs[n.in[k]];
        gin[k] = NO_VALUE;
    }
    GradCtx c = {.b = &s->b, .n = &n, .gout = gout, .want = want, .gin = gin};
    TRY(info->grad(&c, d));
    TRY(s->b.status);
    for (int k = 0; k < n.nin; k++)
        if (want[k] && gin[k] != NO_VALUE) accumulate(s, n.in[k], gin[k]);
    return s->b.status;
}

static Status check_loss(const Graph *g, ValueId *loss, Diag *d) {
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        if (o->kind != OUT_LOSS) continue;
        const Value *v = graph_value(g, o->value);
        if (shape_numel(&v->shape) != 1 || !dtype_is_float(v->dtype))
            return diag_error(d, ST_UNSUPPORTED, "the loss must be one floating-point number");
        *loss = o->value;
        return ST_OK;
    }
    return diag_error(d, ST_UNSUPPORTED,
                      "the program returns no loss (a scalar float); export a module that returns its training loss");
}

Status pass_grad(PassContext *c, Graph *in, Graph **out, Diag *d) {
    ValueId loss = NO_VALUE;
    TRY(check_loss(in, &loss, d));
    Graph *g = graph_new_like(in);
    ValueId *map = ARENA_ARRAY(c->scratch, ValueId, in->values.len);
    for (int64_t i = 0; i < in->nodes.len; i++) graph_copy_node(in, (NodeId)i, g, map);
    for (int64_t i = 0; i < in->outputs.len; i++) {
        const Output *o = &in->outputs.data[i];
        graph_add_output(g, o->kind, o->param, o->slot, o->name, map[o->value]);
    }
    GradState s = {.g = g, .b = {.g = g, .d = d, .phase = PHASE_BACKWARD}, .nforward = g->nodes.len};
    s.needs = ARENA_ARRAY(c->scratch, bool, g->values.len);
    s.cot = ARENA_ARRAY(c->scratch, ValueId, g->values.len);
    s.param = ARENA_ARRAY(c->scratch, ValueId, g->params.len);
    for (int64_t i = 0; i < g->values.len; i++) s.cot[i] = NO_VALUE;
    for (int64_t i = 0; i < g->params.len; i++) s.param[i] = NO_VALUE;
    s.weight = ARENA_ARRAY(c->scratch, bool, g->values.len);
    mark_needs(&s);
    mark_weights(&s, ARENA_ARRAY(c->scratch, bool, g->values.len));
    loss = map[loss];
    if (!s.needs[loss])
        return diag_error(d, ST_UNSUPPORTED, "the loss does not depend on any trainable parameter: nothing to train");
    s.b.source = graph_def(g, loss)->source;
    s.cot[loss] = build_full(&s.b, *graph_shape(g, loss), graph_value(g, loss)->dtype, 1.0);
    for (int64_t i = s.nforward - 1; i >= 0; i--) TRY(differentiate_node(&s, (NodeId)i, c->scratch, d));
    for (int64_t p = 0; p < g->params.len; p++)
        if (s.param[p] != NO_VALUE) graph_add_output(g, OUT_GRAD, (int32_t)p, 0, g->params.data[p].name, s.param[p]);
    *out = g;
    return s.b.status;
}
