// Attention written out by hand: product of q and k, scale, soft-cap, masks, soft-max, dropout, product with v, in any order of
// dims and with heads merged into the batch or not. The product with v is where recognition starts: its other operand, read as an
// expression over (b, h, q, k), must be a soft-max over k of an expression of one q.k product.
#include <math.h>

#include "ops/op.h"
#include "pass/mask.h"

typedef struct Product {  // dot: which dims of an operand are batch, free, contracted
    int nbatch, nfree, free0, contract0;
} Product;

static bool product_operand(const MaskPass *p, const Node *dot, int side, Product *out) {
    int nb = (int)node_int_or(dot, ATTR_NBATCH, 0), nc = (int)node_int_or(dot, ATTR_NCONTRACT, 1);
    bool trans = node_int_or(dot, side == 0 ? ATTR_TRANS_A : ATTR_TRANS_B, 0) != 0, contract_first = (side == 1) != trans;
    int nfree = graph_shape(p->r.in, dot->in[side])->ndim - nb - nc;
    *out = (Product){nb, nfree, nb + (contract_first ? nc : 0), nb + (contract_first ? 0 : nfree)};
    return nc == 1 && nfree >= 1;
}

// A soft-max within a few pointwise steps and views?
static bool near_softmax(const MaskPass *p, ValueId v, int depth) {
    const Graph *g = p->r.in;
    const Node *n = graph_def(g, v);
    if (depth > 12 || !dtype_is_float(graph_value(g, v)->dtype)) return false;
    if (n->op == OP_EXP) return true;
    bool view = n->op == OP_RESHAPE || n->op == OP_PERMUTE || n->op == OP_BROADCAST || n->op == OP_SLICE;
    bool pointwise = n->op == OP_MUL || n->op == OP_DIV || n->op == OP_WHERE || n->op == OP_CAST;
    for (int i = 0; i < n->nin && (view || pointwise); i++)
        if (near_softmax(p, n->in[i], depth + 1)) return true;
    return false;
}

// ---- what happens between the soft-max and v ------------------------------------------------------------------------
static bool is_op(const MaskProg *m, int x, OpKind op) { return m->instr.data[x].code == PROG_OP + (int)op; }

// where(noise >= rate, yes, no): dropout's keep mask.
static bool is_keep(const MaskProg *m, int x, double *rate, int64_t *seed) {
    if (!is_op(m, x, OP_GE)) return false;
    Instr i = m->instr.data[x];
    if (m->instr.data[i.a].code != MP_RANDOM || !mask_number(m, i.b, rate)) return false;
    *seed = (int64_t)m->instr.data[i.a].imm;
    return *rate >= 0 && *rate < 1;
}

static bool drop(AttentionSpec *s, double rate, int64_t seed, double kept) {
    if (s->dropout != 0) return false;
    s->dropout = rate;
    s->seed = seed;
    s->out_factor *= kept * (1 - rate);  // attention scales by 1 / (1 - rate) itself
    return true;
}

// x down to the soft-max's argument; -1 if something else happens on the way.
static int peel(const MaskProg *m, int x, AttentionSpec *s, bool *nan_safe) {
    Instr i = m->instr.data[x];
    double v, rate;
    int64_t seed;
    if (i.code == MP_SOFTMAX) return i.a;
    if (i.code < PROG_OP) return -1;
    switch ((OpKind)(i.code - PROG_OP)) {
        case OP_CAST: return peel(m, i.a, s, nan_safe);
        case OP_DIV:
            if (!mask_number(m, i.b, &v)) return -1;
            s->out_factor /= v;
            return peel(m, i.a, s, nan_safe);
        case OP_MUL:
            for (int side = 0; side < 2; side++) {
                int other = side ? i.b : i.a, factor = side ? i.a : i.b;
                Instr f = m->instr.data[factor];
                double zero;
                if (mask_number(m, factor, &v)) {
                    s->out_factor *= v;
                    return peel(m, other, s, nan_safe);
                }
                if (is_op(m, factor, OP_WHERE) && is_keep(m, f.a, &rate, &seed) && mask_number(m, f.b, &v) &&
                    mask_number(m, f.c, &zero) && zero == 0)
                    return drop(s, rate, seed, v) ? peel(m, other, s, nan_safe) : -1;
            }
            return -1;
        case OP_WHERE:
            if (mask_number(m, i.c, &v) && v == 0 && is_keep(m, i.a, &rate, &seed))
                return drop(s, rate, seed, 1) ? peel(m, i.b, s, nan_safe) : -1;
            if (mask_number(m, i.b, &v) && v == 0 && is_op(m, i.a, OP_NE) && m->instr.data[i.a].a == i.c &&
                m->instr.data[i.a].b == i.c) {
                *nan_safe = true;  // where(p != p, 0, p)
                return peel(m, i.c, s, nan_safe);
            }
            return -1;
        default: return -1;
    }
}

// ---- q, k, v --------------------------------------------------------------------------------------------------------
typedef struct Found {
    ValueId q, k, v;  // in the old graph
    int qi[MAX_DIMS], ki[MAX_DIMS], vi[MAX_DIMS];
    int64_t gq, gk, gv;  // query heads per head of each
} Found;

// Operand `side` of the q.k product, addressed through the product's own index and channel `d`.
static void score_operand(const MaskPass *p, const MaskInterp *in, int side, int *idx, bool *reads_k) {
    const Node *dot = graph_node(p->r.in, in->score);
    Product x, first;
    product_operand(p, dot, side, &x);
    product_operand(p, dot, 0, &first);
    *reads_k = false;
    for (int i = 0; i < x.nbatch; i++) idx[i] = in->score_idx[i];
    for (int i = 0; i < x.nfree; i++) {
        int at = in->score_idx[x.nbatch + (side ? first.nfree : 0) + i];
        idx[x.free0 + i] = at;
        *reads_k |= in->m->info.data[at].reads_k;
    }
    idx[x.contract0] = mask_index(in->m, MP_INDEX_D);
}

static bool find_qk(MaskPass *p, MaskInterp *in, Found *f) {
    const Node *dot = graph_node(p->r.in, in->score);
    Product a, b;
    if (!product_operand(p, dot, 0, &a) || !product_operand(p, dot, 1, &b)) return false;
    in->m->extent[4] = graph_shape(p->r.in, dot->in[0])->dim[a.contract0];
    int idx[2][MAX_DIMS] = {0};
    bool reads_k[2];
    for (int side = 0; side < 2; side++) score_operand(p, in, side, idx[side], &reads_k[side]);
    if (reads_k[0] == reads_k[1]) return false;
    int k = reads_k[1] ? 1 : 0;
    f->q = dot->in[1 - k];
    f->k = dot->in[k];
    memcpy(f->qi, idx[1 - k], sizeof f->qi);
    memcpy(f->ki, idx[k], sizeof f->ki);
    return mask_settle(in, &f->q, f->qi, PROG_INDEX_Q, MP_INDEX_D, false, &f->gq) &&
           mask_settle(in, &f->k, f->ki, PROG_INDEX_K, MP_INDEX_D, true, &f->gk);
}

// ---- one way of reading the product with v as heads -----------------------------------------------------------------
typedef struct Reading {
    const Node *dot;
    int side;  // which operand is the soft-max
    Product prob, value;
    int64_t batch, kv_heads, group;
    AttentionSpec spec;
    Found found;
} Reading;

// Indices of the batch dims: b and the KV head in one linear index, split over whatever dims there are.
static void batch_index(MaskInterp *in, const Reading *r, const Shape *s, int *idx) {
    MaskProg *m = in->m;
    int kv = mask_int_op(m, OP_FLOORDIV, mask_index(m, PROG_INDEX_H), mask_const(m, DT_I64, (double)r->group));
    int b = mask_int_op(m, OP_MUL, mask_index(m, PROG_INDEX_B), mask_const(m, DT_I64, (double)r->kv_heads));
    mask_split_index(in, s, 0, r->prob.nbatch, mask_int_op(m, OP_ADD, b, kv), idx);
}

static bool understand(MaskPass *p, MaskInterp *in, Reading *r) {
    MaskProg *m = in->m;
    const Shape *ps = graph_shape(in->g, r->dot->in[r->side]), *vs = graph_shape(in->g, r->dot->in[1 - r->side]);
    int idx[MAX_DIMS];
    batch_index(in, r, ps, idx);
    int within = mask_int_op(m, OP_MOD, mask_index(m, PROG_INDEX_H), mask_const(m, DT_I64, (double)r->group));
    int row = mask_int_op(m, OP_ADD, mask_int_op(m, OP_MUL, within, mask_const(m, DT_I64, (double)m->extent[2])),
                          mask_index(m, PROG_INDEX_Q));
    mask_split_index(in, ps, r->prob.free0, r->prob.free0 + r->prob.nfree, row, idx);
    idx[r->prob.contract0] = mask_index(m, PROG_INDEX_K);
    int x = mask_interp(in, r->dot->in[r->side], idx);
    bool nan_safe = false;
    ScoreForm form;
    r->spec = (AttentionSpec){.out_factor = 1, .visible = -1, .bias = -1};
    int s = x < 0 ? -1 : peel(m, x, &r->spec, &nan_safe);
    if (s < 0 || !mask_decide(in, s, nan_safe, &r->spec, &form) || !form.has_score || in->score == NO_NODE) return false;
    r->spec.scale = form.tanh ? form.scale * form.amp : form.scale;
    r->spec.softcap = form.tanh ? fabs(form.amp) : 0;
    Found *f = &r->found;
    f->v = r->dot->in[1 - r->side];
    batch_index(in, r, vs, f->vi);
    f->vi[r->value.contract0] = mask_index(m, PROG_INDEX_K);
    f->vi[r->value.free0] = mask_index(m, MP_INDEX_E);
    return find_qk(p, in, f) && mask_settle(in, &f->v, f->vi, PROG_INDEX_K, MP_INDEX_E, true, &f->gv) && !m->overflow;
}

// o [B,H,Sq,Dv] in the order of the product: batch, then the soft-max's free dims and v's channel as the operands stand.
static ValueId arrange_output(MaskPass *p, const Reading *r, const MaskProg *m, ValueId o) {
    Builder *b = &p->r.b;
    Shape out = *graph_shape(p->r.in, r->dot->out[0]);
    if (r->side == 1) {
        o = build_reshape(b, o, SHAPE(r->batch * r->kv_heads, r->group * m->extent[2], m->extent[5]));
        o = build_transpose(b, o, 1, 2);
    }
    return build_reshape(b, o, out);
}

static void emit(MaskPass *p, MaskInterp *in, Reading *r) {
    Found *f = &r->found;
    Builder *b = &p->r.b;
    ValueId q = NO_VALUE, k = NO_VALUE, v = NO_VALUE;
    bool ok = mask_arrange(&p->r, in, f->q, f->qi, PROG_INDEX_Q, MP_INDEX_D, &q, &f->gq) &&
              mask_arrange(&p->r, in, f->k, f->ki, PROG_INDEX_K, MP_INDEX_D, &k, &f->gk) &&
              mask_arrange(&p->r, in, f->v, f->vi, PROG_INDEX_K, MP_INDEX_E, &v, &f->gv);
    CHECK(ok, "operands of recognised attention cannot be arranged");
    q = mask_repeat_heads(b, q, f->gq);
    int64_t group = f->gk == f->gv ? f->gk : 1;
    k = mask_repeat_heads(b, k, f->gk / group);
    v = mask_repeat_heads(b, v, f->gv / group);
    ValueId o = mask_emit_attention(p, in->m, q, k, v, &r->spec);
    if (fabs(r->spec.out_factor - 1) > 1e-6) o = build_binary_scalar(b, OP_MUL, o, r->spec.out_factor);
    p->r.map[r->dot->out[0]] = arrange_output(p, r, in->m, o);
}

static bool try_reading(MaskPass *p, Reading *r, const char **why) {
    MaskProg m = {.real = graph_value(p->r.in, r->dot->out[0])->dtype};
    MaskInterp in;
    const Shape *ps = graph_shape(p->r.in, r->dot->in[r->side]), *vs = graph_shape(p->r.in, r->dot->in[1 - r->side]);
    const int64_t e[6] = {
        r->batch, r->kv_heads * r->group, ps->dim[r->prob.free0 + r->prob.nfree - 1], ps->dim[r->prob.contract0],
        1,        vs->dim[r->value.free0]};
    memcpy(m.extent, e, sizeof e);
    mask_interp_init(&in, &m, p);
    in.hand_written = true;
    bool ok = understand(p, &in, r);
    if (ok) emit(p, &in, r);
    else if (in.score != NO_NODE)
        *why = arena_printf(p->r.out->arena, "attention stays S x S: %s",
                            in.why[0] ? in.why : "its operands are in no order that attention has");
    mask_interp_free(&in);
    mask_prog_free(&m);
    return ok;
}

static bool try_side(MaskPass *p, NodeId id, int side, const char **why) {
    Reading r = {.dot = graph_node(p->r.in, id), .side = side};
    ValueId prob = r.dot->in[side];
    if (!near_softmax(p, prob, 0) || !product_operand(p, r.dot, side, &r.prob) ||
        !product_operand(p, r.dot, 1 - side, &r.value) || r.value.nfree != 1)
        return false;
    const Shape *s = graph_shape(p->r.in, prob);
    int64_t nb = 1, first = r.prob.nbatch > 0 ? s->dim[0] : 1;
    for (int i = 0; i < r.prob.nbatch; i++) nb *= s->dim[i];
    r.group = 1;
    for (int i = 0; i + 1 < r.prob.nfree; i++) r.group *= s->dim[r.prob.free0 + i];
    if (shape_numel(s) == 0) return false;
    int64_t batch = p->r.in->batch;
    bool merged = r.prob.nbatch == 1 && batch > 0 && nb > batch && nb % batch == 0;  // [B*H, S, S]
    for (int attempt = merged ? 0 : 1; attempt < 2; attempt++) {
        r.batch = attempt == 0 ? batch : first;
        r.kv_heads = nb / r.batch;
        if (try_reading(p, &r, why)) return true;
    }
    return false;
}

bool mask_rewrite_written(MaskPass *p, NodeId id, const char **why) { return try_side(p, id, 0, why) || try_side(p, id, 1, why); }
