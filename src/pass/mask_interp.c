// A value of the graph as an expression over (b, h, q, k): the mask subgraph read symbolically. The question is always "what is
// element idx[] of value v", where each idx is itself an integer expression, so that views, gathers, arange arithmetic and the
// merged rows of a flattened gather are all index arithmetic. What cannot be read further, but varies along at most one of q and
// k, becomes a vector that the kernel reads.
#include <stdarg.h>

#include "ops/op.h"
#include "pass/mask.h"

static const Node *def(const MaskInterp *in, ValueId v) { return graph_def(in->g, v); }
static const Shape *shape(const MaskInterp *in, ValueId v) { return graph_shape(in->g, v); }
static DType dtype(const MaskInterp *in, ValueId v) { return graph_value(in->g, v)->dtype; }
static int zero(MaskInterp *in) { return mask_const(in->m, DT_I64, 0); }
static int int_const(MaskInterp *in, int64_t v) { return mask_const(in->m, DT_I64, (double)v); }

__attribute__((format(printf, 2, 3))) static int refuse(MaskInterp *in, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (!in->why[0]) vsnprintf(in->why, sizeof in->why, fmt, ap);
    va_end(ap);
    return -1;
}

// ---- views ----------------------------------------------------------------------------------------------------------
// Splits the linear index of an output group over the dims [first, end) of the input group.
void mask_split_index(MaskInterp *in, const Shape *s, int first, int end, int linear, int *idx) {
    int64_t inner = 1;
    for (int i = end - 1; i >= first; i--) {
        int x = inner == 1 ? linear : mask_int_op(in->m, OP_FLOORDIV, linear, int_const(in, inner));
        bool top = true;  // no larger factor in the group: the quotient is in range already
        for (int j = first; j < i; j++) top = top && s->dim[j] == 1;
        if (s->dim[i] == 1) x = zero(in);
        else if (!top) x = mask_int_op(in->m, OP_MOD, x, int_const(in, s->dim[i]));
        idx[i] = x;
        inner *= s->dim[i];
    }
}

int mask_merge_index(MaskInterp *in, const Shape *s, int first, int end, const int *idx) {
    int linear = zero(in);
    int64_t inner = 1;
    for (int i = end - 1; i >= first; i--) {
        linear = mask_int_op(in->m, OP_ADD, linear, mask_int_op(in->m, OP_MUL, idx[i], int_const(in, inner)));
        inner *= s->dim[i];
    }
    return linear;
}

// Through a reshape: dims in minimal groups of equal product, each merged and split again.
static void reshape_index(MaskInterp *in, const Shape *from, const Shape *to, const int *idx, int *out) {
    int i = 0, j = 0;
    while (i < from->ndim || j < to->ndim) {
        int i0 = i, j0 = j;
        int64_t a = i < from->ndim ? from->dim[i++] : 1, b = j < to->ndim ? to->dim[j++] : 1;
        while (a != b) {
            if (a < b && i < from->ndim) a *= from->dim[i++];
            else if (b < a && j < to->ndim) b *= to->dim[j++];
            else break;
        }
        mask_split_index(in, from, i0, i, mask_merge_index(in, to, j0, j, idx), out);
    }
}

bool mask_through_view(MaskInterp *in, ValueId v, const int *idx, ValueId *below, int *out) {
    const Node *n = def(in, v);
    const int64_t *dims;
    if (n->nin != 1) return false;
    const Shape *from = shape(in, n->in[0]);
    switch (n->op) {
        case OP_RESHAPE: reshape_index(in, from, shape(in, v), idx, out); break;
        case OP_BROADCAST:
            for (int i = 0; i < from->ndim; i++) out[i] = from->dim[i] == 1 ? zero(in) : idx[i];
            break;
        case OP_PERMUTE:
            node_ints(n, ATTR_DIMS, &dims);
            for (int i = 0; i < from->ndim; i++) out[dims[i]] = idx[i];
            break;
        case OP_SLICE: {
            int64_t dim = node_int(n, ATTR_DIM);
            for (int i = 0; i < from->ndim; i++) out[i] = idx[i];
            int x = mask_int_op(in->m, OP_MUL, idx[dim], int_const(in, node_int_or(n, ATTR_STEP, 1)));
            out[dim] = mask_int_op(in->m, OP_ADD, x, int_const(in, node_int_or(n, ATTR_START, 0)));
            break;
        }
        default: return false;
    }
    *below = n->in[0];
    return true;
}

// ---- vectors --------------------------------------------------------------------------------------------------------
static char index_letter(const MaskProg *m, int32_t atom) {
    switch (m->instr.data[atom].code) {
        case PROG_INDEX_B: return 'b';
        case PROG_INDEX_H: return 'h';
        case PROG_INDEX_Q: return 'q';
        case PROG_INDEX_K: return 'k';
        default: return 0;
    }
}

// One dim of a vector: a constant, or index + constant in range.
static bool slot_dim(MaskInterp *in, MaskSlot *s, int d, int x, bool *seen) {
    MaskLinear l = mask_linear_of(in->m, x);
    if (l.n < 0 || l.n > 1 || l.constant < 0) return false;
    s->dim[d].start = l.constant;
    s->dim[d].length = 1;
    if (l.n == 1) {
        char letter = index_letter(in->m, l.term[0].atom);
        if (!letter || l.term[0].coef != 1 || seen[(int)letter]) return false;
        seen[(int)letter] = true;
        if (letter == 'q' || letter == 'k') s->role = letter;
        s->dim[d].index = letter == 'b' || letter == 'h' ? letter : 'l';
        s->dim[d].length = in->m->extent[letter == 'b' ? 0 : letter == 'h' ? 1 : letter == 'q' ? 2 : 3];
    }
    return s->dim[d].start + s->dim[d].length <= s->shape.dim[d];
}

static int as_vector(MaskInterp *in, ValueId v, const int *idx) {
    bool seen[128] = {0};
    MaskSlot s = {.role = 'q', .dtype = dtype(in, v), .value = v, .shape = *shape(in, v)};
    for (int d = 0; d < s.shape.ndim; d++)
        if (!slot_dim(in, &s, d, idx[d], seen)) return -1;
    if (seen['q'] && seen['k']) return -1;
    if (in->needs[v]) return refuse(in, "it depends on trainable parameters");
    return mask_slot(in->m, &s);
}

// ---- operations -----------------------------------------------------------------------------------------------------
// idx of operand `x` of a pointwise node whose result is addressed by idx[ndim].
static void align_index(MaskInterp *in, ValueId x, int ndim, const int *idx, int *out) {
    const Shape *s = shape(in, x);
    for (int i = 0; i < s->ndim; i++) out[i] = s->dim[i] == 1 ? zero(in) : idx[i + ndim - s->ndim];
}

static int read_pointwise(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int arg[3] = {-1, -1, -1}, sub[MAX_DIMS];
    if (n->nin > 3) return -1;
    for (int i = 0; i < n->nin; i++) {
        align_index(in, n->in[i], shape(in, v)->ndim, idx, sub);
        arg[i] = mask_interp(in, n->in[i], sub);
        if (arg[i] < 0) return -1;
    }
    return mask_op(in->m, n->op, dtype(in, v), arg[0], arg[1], arg[2]);
}

static int read_iota(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int64_t start = node_int_or(n, ATTR_START, 0), step = node_int_or(n, ATTR_STEP, 1);
    int x = mask_int_op(in->m, OP_MUL, idx[node_int(n, ATTR_DIM)], int_const(in, step));
    x = mask_int_op(in->m, OP_ADD, x, int_const(in, start));
    return x < 0 ? -1 : mask_op(in->m, OP_CAST, dtype(in, v), x, -1, -1);
}

static int read_concat(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int64_t dim = node_int(n, ATTR_DIM), at = 0;
    int sub[MAX_DIMS], result = -1, start[64];
    if (n->nin > 64) return -1;
    memcpy(sub, idx, sizeof *sub * (size_t)shape(in, v)->ndim);
    for (int i = 0; i < n->nin; i++) {
        start[i] = (int)at;
        at += shape(in, n->in[i])->dim[dim];
    }
    for (int i = n->nin - 1; i >= 0;
         i--) {  // where(x < start of part i+1, part i, the rest); only parts that x can reach are read
        int64_t end = start[i] + shape(in, n->in[i])->dim[dim];
        int inside = i == n->nin - 1 ? mask_const(in->m, DT_BOOL, 1) : mask_int_op(in->m, OP_LT, idx[dim], int_const(in, end));
        int reachable = mask_int_op(in->m, OP_GE, idx[dim], int_const(in, start[i]));
        double yes, can;
        if ((mask_number(in->m, reachable, &can) && can == 0) || (mask_number(in->m, inside, &yes) && yes == 0)) continue;
        sub[dim] = mask_int_op(in->m, OP_SUB, idx[dim], int_const(in, start[i]));
        int part = mask_interp(in, n->in[i], sub);
        if (part < 0) return -1;
        result = result < 0 ? part : mask_op(in->m, OP_WHERE, dtype(in, v), inside, part, result);
    }
    return result;
}

static int read_pad(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int64_t dim = node_int(n, ATTR_DIM), lo = node_int(n, ATTR_LO), len = shape(in, n->in[0])->dim[dim];
    int sub[MAX_DIMS];
    memcpy(sub, idx, sizeof *sub * (size_t)shape(in, v)->ndim);
    sub[dim] = mask_int_op(in->m, OP_SUB, idx[dim], int_const(in, lo));
    int above = mask_int_op(in->m, OP_GE, sub[dim], zero(in)), below = mask_int_op(in->m, OP_LT, sub[dim], int_const(in, len));
    int inside = mask_op(in->m, OP_AND, DT_BOOL, above, below, -1);
    int x = mask_interp(in, n->in[0], sub);
    return mask_op(in->m, OP_WHERE, dtype(in, v), inside, x, mask_const(in->m, dtype(in, v), node_float_or(n, ATTR_VALUE, 0)));
}

// Rows of a table: the row number is read first, then the table at it. An arange read this way is the identity.
static int read_embedding(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int nidx = shape(in, n->in[1])->ndim, sub[MAX_DIMS];
    const Shape *table = shape(in, n->in[0]);
    sub[0] = mask_interp(in, n->in[1], idx);
    if (sub[0] < 0) return -1;
    const MaskInfo *row = &in->m->info.data[sub[0]];
    if (!(row->lo >= 0 && row->hi < (double)table->dim[0])) return -1;  // not provably in range: the lookup's own check must stay
    for (int i = 1; i < table->ndim; i++) sub[i] = idx[nidx + i - 1];
    return mask_interp(in, n->in[0], sub);
}

static int read_gather(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int64_t dim = n->op == OP_PICK ? shape(in, n->in[0])->ndim - 1 : node_int(n, ATTR_DIM);
    int sub[MAX_DIMS], at = mask_interp(in, n->in[1], idx);
    if (at < 0) return -1;
    const MaskInfo *range = &in->m->info.data[at];
    if (!(range->lo >= 0 && range->hi < (double)shape(in, n->in[0])->dim[dim])) return -1;
    memcpy(sub, idx, sizeof *sub * (size_t)shape(in, v)->ndim);
    sub[dim] = at;
    return mask_interp(in, n->in[0], sub);
}

// ---- hand-written attention -----------------------------------------------------------------------------------------
static ValueId skip_broadcast(const MaskInterp *in, ValueId v) {
    while (def(in, v)->op == OP_BROADCAST || def(in, v)->op == OP_STOP_GRAD) v = def(in, v)->in[0];
    return v;
}

// exp(x - logsumexp(x)), exp(x - max) / sum(exp(x - max)), exp(x) / sum(exp(x)): x and the dim, NO_VALUE if v is none of them.
static ValueId softmax_argument(const MaskInterp *in, ValueId v, int *dim) {
    const Node *n = def(in, v);
    const int64_t *dims;
    if (n->op == OP_EXP && def(in, n->in[0])->op == OP_SUB) {
        const Node *sub = def(in, n->in[0]), *lse = def(in, skip_broadcast(in, sub->in[1]));
        if (lse->op != OP_LOGSUMEXP || lse->in[0] != sub->in[0] || shape(in, lse->out[0])->ndim != shape(in, sub->in[0])->ndim)
            return NO_VALUE;
        *dim = (int)node_int(lse, ATTR_DIM);
        return sub->in[0];
    }
    if (n->op != OP_DIV) return NO_VALUE;
    const Node *e = def(in, n->in[0]), *sum = def(in, skip_broadcast(in, n->in[1]));
    if (e->op != OP_EXP || sum->op != OP_SUM || sum->in[0] != n->in[0] || node_ints(sum, ATTR_DIMS, &dims) != 1) return NO_VALUE;
    *dim = (int)dims[0];
    if (def(in, e->in[0])->op != OP_SUB) return e->in[0];
    const Node *sub = def(in, e->in[0]), *max = def(in, skip_broadcast(in, sub->in[1]));
    bool shifted = max->op == OP_AMAX && max->in[0] == sub->in[0] && node_ints(max, ATTR_DIMS, &dims) == 1 && dims[0] == *dim;
    return shifted ? sub->in[0] : e->in[0];
}

static int read_softmax(MaskInterp *in, ValueId v, const int *idx) {
    int dim = 0, sub[MAX_DIMS];
    ValueId x = softmax_argument(in, v, &dim);
    if (x == NO_VALUE) return -1;
    align_index(in, x, shape(in, v)->ndim, idx, sub);
    bool whole_rows = sub[dim] == mask_index(in->m, PROG_INDEX_K) && shape(in, x)->dim[dim] == in->m->extent[3];
    for (int i = 0; i < shape(in, x)->ndim; i++) whole_rows = whole_rows && (i == dim || !in->m->info.data[sub[i]].reads_k);
    if (!whole_rows || in->m->extent[3] == 1) return -1;
    int s = mask_interp(in, x, sub);
    return s < 0 ? -1 : mask_leaf(in->m, MP_SOFTMAX, in->m->real, s, 0);
}

static int read_score(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    int ndim = shape(in, v)->ndim;
    NodeId id = graph_value(in->g, v)->def;
    bool q = false, k = false;
    for (int i = 0; i < ndim; i++) {
        const MaskInfo *info = &in->m->info.data[idx[i]];
        q |= info->reads_q, k |= info->reads_k;
    }
    if (n->op != OP_DOT || !(q || in->m->extent[2] == 1) || !k) return -1;
    if (in->score == NO_NODE) {
        in->score = id;
        memcpy(in->score_idx, idx, sizeof *idx * (size_t)ndim);
    }
    if (in->score != id || memcmp(in->score_idx, idx, sizeof *idx * (size_t)ndim))
        return refuse(in, "two different products of q and k are added");
    return mask_leaf(in->m, MP_SCORE, in->m->real, -1, 0);
}

// Noise of shape [B, H, Sq, Sk] read in place is what attention's dropout draws.
static int read_random(MaskInterp *in, ValueId v, const int *idx) {
    const Shape *s = shape(in, v);
    static const int leaf[4] = {PROG_INDEX_B, PROG_INDEX_H, PROG_INDEX_Q, PROG_INDEX_K};
    int linear = mask_merge_index(in, s, 0, s->ndim, idx), want[4];
    Shape full = shape_of(4, in->m->extent);
    for (int i = 0; i < 4; i++) want[i] = mask_index(in->m, leaf[i]);
    if (linear != mask_merge_index(in, &full, 0, 4, want))
        return refuse(in, "dropout noise in another order than [B, H, Sq, Sk]");
    return mask_leaf(in->m, MP_RANDOM, dtype(in, v), -1, (double)node_int(def(in, v), ATTR_SEED));
}

// ---- the recursion --------------------------------------------------------------------------------------------------
static int read_node(MaskInterp *in, ValueId v, const int *idx) {
    const Node *n = def(in, v);
    ValueId below;
    int sub[MAX_DIMS];
    if (mask_through_view(in, v, idx, &below, sub)) return mask_interp(in, below, sub);
    if (in->hand_written) {
        int x = n->op == OP_EXP || n->op == OP_DIV ? read_softmax(in, v, idx) : n->op == OP_DOT ? read_score(in, v, idx) : -1;
        if (x >= 0) return x;
        if (n->op == OP_RANDOM) return read_random(in, v, idx);
    }
    switch (n->op) {
        case OP_FULL: return mask_const(in->m, dtype(in, v), node_float(n, ATTR_VALUE));
        case OP_IOTA: return read_iota(in, v, idx);
        case OP_CONSTANT: return mask_interp_constant(in, v, idx);
        case OP_CONCAT: return read_concat(in, v, idx);
        case OP_PAD: return read_pad(in, v, idx);
        case OP_EMBEDDING: return read_embedding(in, v, idx);
        case OP_GATHER:
        case OP_PICK: return read_gather(in, v, idx);
        case OP_STOP_GRAD: return in->needs[n->in[0]] && in->hand_written ? -1 : read_pointwise(in, v, idx);
        default: return op_is_pointwise(n->op) ? read_pointwise(in, v, idx) : -1;
    }
}

void mask_interp_init(MaskInterp *in, MaskProg *m, MaskPass *p) {
    *in = (MaskInterp){.m = m, .g = p->r.in, .needs = p->needs, .score = NO_NODE};
}

void mask_interp_free(MaskInterp *in) { vec_free(&in->memo); }

int mask_interp(MaskInterp *in, ValueId v, const int *idx) {
    int ndim = shape(in, v)->ndim;
    for (int i = 0; i < ndim; i++)
        if (idx[i] < 0) return -1;
    for (int64_t i = 0; i < in->memo.len; i++) {
        const MaskMemo *e = &in->memo.data[i];
        if (e->v == v && !memcmp(e->idx, idx, sizeof *idx * (size_t)ndim)) return e->result;
    }
    MaskMemo e = {.v = v, .ndim = ndim};
    memcpy(e.idx, idx, sizeof *idx * (size_t)ndim);
    e.result = read_node(in, v, idx);
    if (e.result < 0) e.result = as_vector(in, v, idx);
    if (e.result < 0) refuse(in, "%s is no function of positions and per-token vectors", op_name(def(in, v)->op));
    vec_push(&in->memo, e);
    return e.result;
}
