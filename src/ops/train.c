// The optimizer's step. It runs on every rank alike, on replicated state and gradient.
#include "ops/rules.h"

enum { ADAMW_P, ADAMW_G, ADAMW_M, ADAMW_V, ADAMW_HYPER, ADAMW_SCALE, ADAMW_NIN, ADAMW_HALF = ADAMW_NIN };

static Status infer_adamw(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    bool half = node_int_or(n, ATTR_HALF, 0) != 0;
    TRY(rule_nin(n, ADAMW_NIN + half, d));
    const Shape *p = in_shape(g, n, ADAMW_P), *hyper = in_shape(g, n, ADAMW_HYPER), *scale = in_shape(g, n, ADAMW_SCALE);
    for (int i = 0; i < ADAMW_NIN; i++) {
        TRY(rule_type(g, n, i, TYPE_FLOAT, d));
        TRY(rule_same_type(g, n, ADAMW_P, i, d));
    }
    if (in_dtype(g, n, ADAMW_P) == DT_BF16)
        return infer_error(d, "adamw: the parameter and its state are not kept in bf16 alone");
    if (half && (in_dtype(g, n, ADAMW_HALF) != DT_BF16 || !shape_equal(p, in_shape(g, n, ADAMW_HALF))))
        return infer_error(d, "adamw: the copy must be bf16 %s", shape_text(p).s);
    for (int i = ADAMW_G; i <= ADAMW_V; i++)
        if (!shape_equal(p, in_shape(g, n, i)))
            return infer_error(d, "adamw: the parameter is %s, operand %d is %s", shape_text(p).s, i,
                               shape_text(in_shape(g, n, i)).s);
    if (hyper->ndim != 1 || hyper->dim[0] != 3) return infer_error(d, "adamw: hyper must be [3], not %s", shape_text(hyper).s);
    if (scale->ndim != 0) return infer_error(d, "adamw: scale must be a scalar, not %s", shape_text(scale).s);
    static const AttrKey needed[] = {ATTR_BETA1, ATTR_BETA2, ATTR_EPS, ATTR_DECAY};
    for (int i = 0; i < 4; i++)
        if (!node_attr(n, needed[i])) return infer_error(d, "adamw needs attribute %s", attr_name(needed[i]));
    *nout = 3 + half;
    for (int j = 0; j < 3; j++) out[j] = (TypeOut){in_dtype(g, n, ADAMW_P), *p};
    if (half) out[3] = (TypeOut){DT_BF16, *p};
    return ST_OK;
}

static bool shard_adamw(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    (void)g, (void)n, (void)slot, (void)p, (void)row;
    return false;
}

static void cost_adamw(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops = 16 * operand_numel(&in[ADAMW_P]);
}

#define ADAMW_SAMPLE(text, ...)                                                                    \
    {.label = text,                                                                                \
     .nin = ADAMW_NIN,                                                                             \
     .shape = {DIMS(__VA_ARGS__), DIMS(__VA_ARGS__), DIMS(__VA_ARGS__), DIMS(__VA_ARGS__), DIMS(3), {0}}, \
     .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32},                                    \
     .lo = {0, 0, 0, 1, 1, 4},                                                                     \
     .hi = {0, 0, 0, 8, 8, 8},                                                                     \
     .nattr = 4,                                                                                   \
     .attr = {SAMPLE_F(BETA1, 0.9), SAMPLE_F(BETA2, 0.95), SAMPLE_F(EPS, 1e-8), SAMPLE_F(DECAY, 0.1)}}
static const Sample adamw_samples[] = {ADAMW_SAMPLE("matrix", 5, 3), ADAMW_SAMPLE("vector", 7)};
const OpInfo op_info_ADAMW = {.infer = infer_adamw,
                              .grad_error = "the optimizer's step is not differentiated",
                              .shard = shard_adamw,
                              .cost = cost_adamw,
                              SAMPLES(adamw_samples)};
