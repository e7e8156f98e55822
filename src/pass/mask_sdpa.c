// scaled_dot_product_attention as imported -> attention with a predicate; or, where the mask is no program (data-dependent S x S,
// or trained), matrix products, whose S x S values the shard pass places or refuses by their bytes.
#include <math.h>

#include "ops/op.h"
#include "pass/mask.h"

static void sdpa_extents(const MaskPass *p, const Node *n, MaskProg *m) {
    const Shape *q = graph_shape(p->r.in, n->in[0]), *k = graph_shape(p->r.in, n->in[1]), *v = graph_shape(p->r.in, n->in[2]);
    const int64_t e[6] = {q->dim[0], q->dim[1], q->dim[2], k->dim[2], q->dim[3], v->dim[3]};
    memcpy(m->extent, e, sizeof e);
    m->real = graph_value(p->r.in, n->in[0])->dtype;
}

static double sdpa_scale(const MaskPass *p, const Node *n) {
    return node_float_or(n, ATTR_SCALE, 1 / sqrt((double)graph_shape(p->r.in, n->in[0])->dim[3]));
}

// The mask and the causal flag as a predicate and a bias.
static bool sdpa_mask(MaskInterp *in, const Node *n, AttentionSpec *spec) {
    MaskProg *m = in->m;
    static const int leaf[4] = {PROG_INDEX_B, PROG_INDEX_H, PROG_INDEX_Q, PROG_INDEX_K};
    bool causal = node_int_or(n, ATTR_CAUSAL, 0) != 0;
    if (n->nin == 4) {
        const Shape *s = graph_shape(in->g, n->in[3]);
        int idx[MAX_DIMS];
        for (int d = 0; d < s->ndim; d++)
            idx[d] = s->dim[d] == 1 ? mask_const(m, DT_I64, 0) : mask_index(m, leaf[d + 4 - s->ndim]);
        int x = mask_interp(in, n->in[3], idx);
        ScoreForm form;
        if (x < 0) return false;
        if (m->instr.data[x].dtype == DT_BOOL) spec->visible = x;
        else if (!mask_decide(in, x, true, spec, &form)) return false;
        if (causal && spec->masked_row >= 2) return false;  // which keys a row without any falls back to would change
    }
    if (causal) {
        int le = mask_int_op(m, OP_LE, mask_index(m, PROG_INDEX_K), mask_index(m, PROG_INDEX_Q));
        spec->visible = spec->visible < 0 ? le : mask_op(m, OP_AND, DT_BOOL, spec->visible, le, -1);
    }
    return !m->overflow && !(n->nin == 4 && in->needs[n->in[3]]);
}

// K and V with their heads once each, if the program repeated them (both alike).
static void sdpa_heads(MaskPass *p, const Node *n, ValueId *k, ValueId *v) {
    MaskProg m = {0};
    MaskInterp in;
    sdpa_extents(p, n, &m);
    m.extent[1] = graph_shape(p->r.in, n->in[1])->dim[1];
    mask_interp_init(&in, &m, p);
    ValueId value[2] = {n->in[1], n->in[2]}, made[2];
    int idx[2][MAX_DIMS] = {0};
    int64_t group[2] = {1, 1};
    static const int chan[2] = {MP_INDEX_D, MP_INDEX_E};
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        const int leaf[4] = {PROG_INDEX_B, PROG_INDEX_H, PROG_INDEX_K, chan[i]};
        for (int d = 0; d < 4; d++) idx[i][d] = mask_index(&m, leaf[d]);
        ok = ok && mask_settle(&in, &value[i], idx[i], PROG_INDEX_K, chan[i], true, &group[i]);
    }
    ok = ok && group[0] == group[1] && group[0] > 1;
    for (int i = 0; i < 2 && ok; i++) ok = mask_arrange(&p->r, &in, value[i], idx[i], PROG_INDEX_K, chan[i], &made[i], &group[i]);
    *k = ok ? made[0] : p->r.map[n->in[1]];
    *v = ok ? made[1] : p->r.map[n->in[2]];
    mask_interp_free(&in);
    mask_prog_free(&m);
}

bool mask_rewrite_sdpa(MaskPass *p, NodeId id) {
    const Node *n = graph_node(p->r.in, id);
    MaskProg m = {0};
    MaskInterp in;
    sdpa_extents(p, n, &m);
    mask_interp_init(&in, &m, p);
    AttentionSpec spec = {.scale = sdpa_scale(p, n),
                          .visible = -1,
                          .bias = -1,
                          .dropout = node_float_or(n, ATTR_DROPOUT, 0),
                          .seed = node_int_or(n, ATTR_SEED, 0)};
    bool ok = sdpa_mask(&in, n, &spec);
    if (ok) {
        ValueId k, v;
        sdpa_heads(p, n, &k, &v);
        p->r.map[n->out[0]] = mask_emit_attention(p, &m, p->r.map[n->in[0]], k, v, &spec);
    } else {
        p->r.b.note = arena_printf(p->r.out->arena, "attention stays S x S: its mask: %s",
                                   in.why[0] ? in.why : "is too large an expression");
    }
    mask_interp_free(&in);
    mask_prog_free(&m);
    return ok;
}

// ---- matrix products ------------------------------------------------------------------------------------------------
static ValueId masked_scores(MaskPass *p, const Node *n, ValueId s) {
    Builder *b = &p->r.b;
    DType t = build_dtype(b, s);
    Shape shape = build_shape(b, s);
    int64_t sq = shape.dim[2], sk = shape.dim[3];
    if (n->nin == 4) {
        ValueId mask = p->r.map[n->in[3]];
        if (build_dtype(b, mask) == DT_BOOL) s = build_where(b, mask, s, build_scalar(b, t, -INFINITY));
        else s = build_binary(b, OP_ADD, s, mask);
    }
    if (node_int_or(n, ATTR_CAUSAL, 0)) {
        ValueId q = build_iota(b, SHAPE(sq, 1), 0, 0, 1, DT_I64), k = build_iota(b, SHAPE(1, sk), 1, 0, 1, DT_I64);
        s = build_where(b, build_binary(b, OP_LE, k, q), s, build_scalar(b, t, -INFINITY));
    }
    return s;
}

void mask_lower_sdpa(MaskPass *p, NodeId id) {
    const Node *n = graph_node(p->r.in, id);
    Builder *b = &p->r.b;
    ValueId q = p->r.map[n->in[0]], k = p->r.map[n->in[1]], v = p->r.map[n->in[2]];
    int64_t times = build_shape(b, q).dim[1] / build_shape(b, k).dim[1];
    k = mask_repeat_heads(b, k, times);
    v = mask_repeat_heads(b, v, times);
    ValueId s = build_dot(b, q, k, 2, 1, false, true);
    s = masked_scores(p, n, build_binary_scalar(b, OP_MUL, s, sdpa_scale(p, n)));
    // Relative to the maximum: where a whole row is about -1e9, float32 has no room for the logarithm of the sum beside it.
    ValueId zero = build_scalar(b, build_dtype(b, s), 0), max = build_unary(b, OP_STOP_GRAD, build_reduce(b, OP_AMAX, s, 3));
    s = build_binary(b, OP_SUB, s, build_where(b, build_binary_scalar(b, OP_EQ, max, -INFINITY), zero, max));
    ValueId lse = build_reduce(b, OP_LOGSUMEXP, s, 3);
    ValueId empty = build_binary_scalar(b, OP_EQ, lse, -INFINITY);  // rows that see nothing are zero, as PyTorch's
    lse = build_where(b, empty, zero, lse);
    ValueId prob = build_unary(b, OP_EXP, build_binary(b, OP_SUB, s, lse));
    double drop = node_float_or(n, ATTR_DROPOUT, 0);
    if (drop > 0 && b->status == ST_OK) {
        Shape shape = build_shape(b, prob);
        Attr a[] = {attr_ints(ATTR_SHAPE, 4, shape.dim), attr_i(ATTR_DTYPE, build_dtype(b, prob)),
                    attr_i(ATTR_SEED, node_int_or(n, ATTR_SEED, 0))};
        ValueId keep =
            build_cast(b, build_binary_scalar(b, OP_GE, build(b, OP_RANDOM, 0, NULL, 3, a), drop), build_dtype(b, prob));
        prob = build_binary_scalar(b, OP_MUL, build_binary(b, OP_MUL, prob, keep), drop < 1 ? 1 / (1 - drop) : 0);
    }
    p->r.map[n->out[0]] = build_dot(b, prob, v, 2, 1, false, false);
}
