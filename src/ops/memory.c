// Values in host memory. Each op is the identity in meaning; what they say is when a copy starts and when it must be complete:
//     h  = offload(x)             the copy of x to host memory starts; offload(x, s): over the state s, which h takes the place of
//     k  = offload_done(x, h)     it is complete; the copy reads x no longer
//     y0 = fetch(k)               the copy back starts
//     y  = fetch_done(y0)         it is complete: y may be read
// h and k are one buffer in host memory, y0 and y one on the device (plan/alias.c). ir/verify.c sees to it that nobody else reads h, k
// or y0, and that every copy that is started is waited for once.
#include "ops/rules.h"

static Status infer_copy(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 1, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

static Status infer_pair(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, 2, d));
    TRY(rule_type(g, n, 0, TYPE_ANY, d));
    TRY(rule_same_type(g, n, 0, 1, d));
    if (!shape_equal(in_shape(g, n, 0), in_shape(g, n, 1)))
        return infer_error(d, "%s: the value is %s, in host memory it is %s", op_name(n->op), shape_text(in_shape(g, n, 0)).s,
                           shape_text(in_shape(g, n, 1)).s);
    return rule_result(nout, out, in_dtype(g, n, 0), *in_shape(g, n, 0));
}

static Status infer_offload(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    return n->nin == 2 ? infer_pair(g, n, nout, out, d) : infer_copy(g, n, nout, out, d);
}

// Every rank copies what it holds, whichever part of the whole that is. Terms are refused: a sum is made before it is kept.
static bool shard_alike(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind != PLACE_SHARD || p.reduce != RED_NONE) return false;
    const Shape *s = graph_shape(g, slot_value(n, slot));
    if (p.dim < 0 || p.dim >= s->ndim) return false;
    row_replicate(n, row);
    for (int i = 0; i < n->nin; i++) row->in[i] = p;
    row->out[0] = p;
    return true;
}

// A copy crosses the link between device and host while kernels run; a wait costs nothing but the time that it takes.
static void cost_copy(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)out;
    *c = (Cost){.nbytes = operand_nbytes(&in[0])};
}

static void cost_wait(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    (void)n, (void)in, (void)out;
    *c = (Cost){0};
}

#define NO_GRADIENT .grad_error = "gradients are taken before values move to host memory"
#define COPY_SAMPLE(text, type, ...) {.label = text, .nin = 1, .shape = {DIMS(__VA_ARGS__)}, .dtype = {type}}
#define WAIT_SAMPLE(text, type, ...) \
    {.label = text, .nin = 2, .shape = {DIMS(__VA_ARGS__), DIMS(__VA_ARGS__)}, .dtype = {type, type}}
static const Sample copy_samples[] = {COPY_SAMPLE("matrix", DT_F32, 5, 3), COPY_SAMPLE("indices", DT_I64, 7),
                                      COPY_SAMPLE("mask", DT_BOOL, 2, 1, 3)};
static const Sample wait_samples[] = {WAIT_SAMPLE("matrix", DT_F32, 5, 3), WAIT_SAMPLE("indices", DT_I64, 7),
                                      WAIT_SAMPLE("mask", DT_BOOL, 2, 1, 3)};

#define MEMORY_OP(rule, price, list) {.infer = rule, NO_GRADIENT, .shard = shard_alike, .cost = price, SAMPLES(list)}
const OpInfo op_info_OFFLOAD = MEMORY_OP(infer_offload, cost_copy, copy_samples);
const OpInfo op_info_OFFLOAD_DONE = MEMORY_OP(infer_pair, cost_wait, wait_samples);
const OpInfo op_info_FETCH = MEMORY_OP(infer_copy, cost_copy, copy_samples);
const OpInfo op_info_FETCH_DONE = MEMORY_OP(infer_copy, cost_wait, copy_samples);
