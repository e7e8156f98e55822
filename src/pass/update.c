// update: the optimizer as graph nodes.
//
//   return loss=%9, grad "w"=%21    ->    %30 = adamw(%w, %21, %m, %v, %hyper, %scale)  -> new w, m, v (in place)
//                                         return loss=%9, grad "w"=%21, state "w"=%30 ...
//
// A trained parameter that is read through a cast to bf16 gets a copy in bf16, which the update writes too; the casts then read
// it:
//
//   %5 = cast(%w) {dtype=bf16}       ->    %5 = param {kind=3, dtype=bf16}
//                                          %30, %31, %32, %33 = adamw(%w, ..., %scale, %5) {half=1}
//
// Requires: OUT_GRAD outputs (grad ran). Establishes: OUT_STATE outputs 0 (parameter), 1, 2 (moments) for each gradient, and the
// aux output "grad_norm" when clipping. The learning rate and AdamW's bias corrections of the step enter through the input
// "adamw.hyper" [3], so that one plan serves every step. AdamW: Loshchilov & Hutter, "Decoupled weight decay regularization".
#include "ir/build.h"
#include "ops/op.h"
#include "pass/pass.h"

static ValueId find_param_value(const Graph *g, int32_t param) {
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op == OP_PARAM && node_int(n, ATTR_INDEX) == param && node_int_or(n, ATTR_KIND, 0) == 0) return n->out[0];
        if (n->phase != PHASE_FORWARD) break;
    }
    CHECK(false, "parameter %d has a gradient but no node", param);
}

static ValueId build_hyper(Builder *b, DType real) {
    int64_t index = b->g->inputs.len;
    vec_push(
        &b->g->inputs,
        ((Input){.name = "adamw.hyper", .role = ROLE_OTHER, .shape = SHAPE(3), .dtype = real, .seq_dim = -1, .batch_dim = -1}));
    return build(b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, index)});
}

// min(1, clip / (||all gradients|| + 1e-6)), as torch.nn.utils.clip_grad_norm_.
static ValueId build_clip_scale(Builder *b, double clip_norm, DType real) {
    if (clip_norm <= 0) return build_scalar(b, real, 1.0);
    b->note = "gradient clipping";
    ValueId total = NO_VALUE;
    int64_t n = b->g->outputs.len;
    for (int64_t i = 0; i < n; i++) {
        Output o = b->g->outputs.data[i];
        if (o.kind != OUT_GRAD) continue;
        ValueId sq = build_sum_all(b, build_binary(b, OP_MUL, o.value, o.value));
        total = total == NO_VALUE ? sq : build_binary(b, OP_ADD, total, sq);
    }
    ValueId norm = build_unary(b, OP_SQRT, total);
    if (b->status == ST_OK) graph_add_output(b->g, OUT_AUX, -1, 0, "grad_norm", norm);
    ValueId ratio = build_binary(b, OP_DIV, build_scalar(b, real, clip_norm), build_binary_scalar(b, OP_ADD, norm, 1e-6));
    b->note = NULL;
    return build_binary(b, OP_MIN, ratio, build_scalar(b, real, 1.0));
}

// The gradient of sum(a*b) by a is b itself, and the other way round: no order of in-place updates suits both. A gradient that is
// a parameter's value (or a view of it) is copied; the copies, as readers of the parameters, run before all updates.
static void copy_shown_states(Builder *b) {
    for (int64_t i = 0; i < b->g->outputs.len; i++) {
        if (b->g->outputs.data[i].kind != OUT_GRAD) continue;
        ValueId v = b->g->outputs.data[i].value, root = v;
        while ((op_flags(graph_def(b->g, root)->op) & OPF_VIEW) || graph_def(b->g, root)->op == OP_STOP_GRAD)
            root = graph_def(b->g, root)->in[0];
        if (graph_def(b->g, root)->op != OP_PARAM) continue;
        b->note = "a gradient that is a parameter's value from before its update";
        v = build(b, OP_CAST, 1, &v, 1, (Attr[]){attr_i(ATTR_DTYPE, graph_value(b->g, v)->dtype)});
        if (b->status == ST_OK) b->g->outputs.data[i].value = v;
    }
    b->note = NULL;
}

static Status add_adamw(Builder *b, const Output *o, const AdamWOptions *opt, ValueId hyper, ValueId scale, ValueId copy) {
    Graph *g = b->g;
    const char *name = g->params.data[o->param].name;
    double decay = g->params.data[o->param].decay ? opt->weight_decay : 0.0;
    ValueId p = find_param_value(g, o->param);
    Attr dtype = attr_i(ATTR_DTYPE, graph_value(g, p)->dtype);
    ValueId m = build(b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, o->param), attr_i(ATTR_KIND, 1), dtype});
    ValueId v = build(b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, o->param), attr_i(ATTR_KIND, 2), dtype});
    ValueId result[4];
    int half = copy != NO_VALUE;
    build_multi(b, OP_ADAMW, 6 + half, (ValueId[]){p, o->value, m, v, hyper, scale, copy}, 4 + half,
                (Attr[]){attr_f(ATTR_BETA1, opt->beta1), attr_f(ATTR_BETA2, opt->beta2), attr_f(ATTR_EPS, opt->eps),
                         attr_f(ATTR_DECAY, decay), attr_i(ATTR_HALF, 1)},
                3 + half, result);
    TRY(b->status);
    for (int slot = 0; slot < 3; slot++) graph_add_output(g, OUT_STATE, o->param, slot, name, result[slot]);
    return ST_OK;
}

// The parameter whose copy in bf16 node n makes; -1 if it makes none.
static int64_t cast_of_param(const Graph *g, const Node *n) {
    if (n->op != OP_CAST || node_int(n, ATTR_DTYPE) != DT_BF16) return -1;
    const Node *p = graph_def(g, n->in[0]);
    return p->op == OP_PARAM && node_int_or(p, ATTR_KIND, 0) == 0 ? node_int(p, ATTR_INDEX) : -1;
}

// Copies the nodes; casts of trained parameters read copy[param] instead.
static Status copy_nodes(const Graph *in, Graph *g, ValueId *map, ValueId *copy, Arena *scratch, Diag *d) {
    bool *trained = ARENA_ARRAY(scratch, bool, in->params.len);
    for (int64_t i = 0; i < in->outputs.len; i++)
        if (in->outputs.data[i].kind == OUT_GRAD) trained[in->outputs.data[i].param] = true;
    for (int64_t i = 0; i < in->params.len; i++) copy[i] = NO_VALUE;
    Builder b = {.g = g, .d = d};
    for (int64_t i = 0; i < in->nodes.len; i++) {
        const Node *n = graph_node(in, (NodeId)i);
        int64_t p = cast_of_param(in, n);
        if (p < 0 || !trained[p]) {
            graph_copy_node(in, (NodeId)i, g, map);
            continue;
        }
        b.source = n->source, b.phase = n->phase;
        if (copy[p] == NO_VALUE)
            copy[p] = build(&b, OP_PARAM, 0, NULL, 3,
                            (Attr[]){attr_i(ATTR_INDEX, p), attr_i(ATTR_KIND, 3), attr_i(ATTR_DTYPE, DT_BF16)});
        map[n->out[0]] = copy[p];
    }
    return b.status;
}

Status pass_update(PassContext *c, Graph *in, Graph **out, Diag *d) {
    CHECK(c->adamw, "pass_update needs the optimizer's settings");
    Graph *g = graph_new_like(in);
    ValueId *map = ARENA_ARRAY(c->scratch, ValueId, in->values.len);
    ValueId *copy = ARENA_ARRAY(c->scratch, ValueId, in->params.len);
    TRY(copy_nodes(in, g, map, copy, c->scratch, d));
    DType real = DT_F32;
    for (int64_t i = 0; i < in->outputs.len; i++) {
        const Output *o = &in->outputs.data[i];
        graph_add_output(g, o->kind, o->param, o->slot, o->name, map[o->value]);
        if (o->kind == OUT_LOSS) real = graph_value(in, o->value)->dtype;
    }
    Builder b = {.g = g, .d = d, .phase = PHASE_UPDATE};
    copy_shown_states(&b);
    ValueId hyper = build_hyper(&b, real);
    ValueId scale = build_clip_scale(&b, c->adamw->clip_norm, real);
    TRY(b.status);
    int64_t n = g->outputs.len;
    for (int64_t i = 0; i < n; i++) {
        Output o = g->outputs.data[i];
        if (o.kind == OUT_GRAD) TRY(add_adamw(&b, &o, c->adamw, hyper, scale, copy[o.param]));
    }
    *out = g;
    return b.status;
}
