// Canonical forms and identities of views, slices, reductions and contractions; see canonicalize.c.
#include "pass/canon.h"

static ValueId emit_permute(Canon *c, ValueId x, int n, const int64_t *dims) {
    Attr a = attr_ints(ATTR_DIMS, n, dims);
    return canon_emit(c, OP_PERMUTE, 1, &x, 1, &a);
}

static ValueId emit_slice(Canon *c, ValueId x, int64_t dim, int64_t start, int64_t step, int64_t length) {
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_START, start), attr_i(ATTR_STEP, step), attr_i(ATTR_LENGTH, length)};
    return canon_emit(c, OP_SLICE, 1, &x, 4, a);
}

static ValueId emit_pad(Canon *c, ValueId x, int64_t dim, int64_t lo, int64_t hi, double v) {
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_LO, lo), attr_i(ATTR_HI, hi), attr_f(ATTR_VALUE, v)};
    return canon_emit(c, OP_PAD, 1, &x, 4, a);
}

ValueId canon_reshape(Canon *c, ValueId x, Shape s) {
    if (x == NO_VALUE || shape_equal(canon_shape(c, x), &s)) return x;
    Attr a = attr_ints(ATTR_SHAPE, s.ndim, s.dim);
    return canon_emit(c, OP_RESHAPE, 1, &x, 1, &a);
}

ValueId canon_broadcast(Canon *c, ValueId x, Shape s) {
    if (x == NO_VALUE || shape_equal(canon_shape(c, x), &s)) return x;
    Shape from = *canon_shape(c, x), wide = {.ndim = s.ndim};
    int lead = s.ndim - from.ndim;
    for (int i = 0; i < s.ndim; i++) wide.dim[i] = i < lead ? 1 : from.dim[i - lead];
    x = canon_reshape(c, x, wide);
    if (x == NO_VALUE || shape_equal(&wide, &s)) return x;
    Attr a = attr_ints(ATTR_SHAPE, s.ndim, s.dim);
    return canon_emit(c, OP_BROADCAST, 1, &x, 1, &a);
}

static Shape attr_shape(const Node *n) {
    const int64_t *dims;
    int k = node_ints(n, ATTR_SHAPE, &dims);
    return shape_of(k, dims);
}

static ValueId simplify_permute(Canon *c, ValueId x, const Node *n) {
    const Shape *s = canon_shape(c, x);
    const int64_t *dims, *inner;
    int k = node_ints(n, ATTR_DIMS, &dims);
    if (k != s->ndim) return NO_VALUE;
    const Node *def = canon_def(c, x);
    if (def->op == OP_PERMUTE) {
        int64_t both[MAX_DIMS];
        node_ints(def, ATTR_DIMS, &inner);
        for (int i = 0; i < k; i++) both[i] = inner[dims[i]];
        return emit_permute(c, def->in[0], k, both);
    }
    bool moves = false;  // do dims larger than one change their order?
    Shape out = {.ndim = k};
    int64_t last = -1;
    for (int i = 0; i < k; i++) {
        out.dim[i] = s->dim[dims[i]];
        if (out.dim[i] == 1) continue;
        moves = moves || dims[i] < last;
        last = dims[i];
    }
    return moves ? NO_VALUE : canon_reshape(c, x, out);
}

static ValueId slice_of_pad(Canon *c, const Node *pad, int64_t start, int64_t length) {
    int64_t dim = node_int(pad, ATTR_DIM), lo = node_int(pad, ATTR_LO);
    ValueId x = pad->in[0];
    int64_t n = canon_shape(c, x)->dim[dim], begin = start - lo, end = begin + length;  // in x's coordinates
    int64_t b = begin < 0 ? 0 : begin, e = end > n ? n : end;
    double v = node_float_or(pad, ATTR_VALUE, 0);
    if (b >= e) return NO_VALUE;
    return emit_pad(c, emit_slice(c, x, dim, b, 1, e - b), dim, b - begin, end - e, v);
}

static ValueId slice_of_concat(Canon *c, const Node *cat, int64_t start, int64_t length) {
    int64_t dim = node_int(cat, ATTR_DIM), at = 0;
    for (int i = 0; i < cat->nin; i++) {
        int64_t n = canon_shape(c, cat->in[i])->dim[dim];
        if (start >= at && start + length <= at + n) return emit_slice(c, cat->in[i], dim, start - at, 1, length);
        at += n;
    }
    return NO_VALUE;
}

static ValueId simplify_slice(Canon *c, ValueId x, const Node *n) {
    const Shape *s = canon_shape(c, x);
    int64_t dim = node_int(n, ATTR_DIM), start = node_int_or(n, ATTR_START, 0), step = node_int_or(n, ATTR_STEP, 1),
            length = node_int(n, ATTR_LENGTH);
    if (dim < 0 || dim >= s->ndim || step < 1 || start < 0) return NO_VALUE;
    if (length > 0 && start + (length - 1) * step >= s->dim[dim]) return NO_VALUE;  // malformed: graph_add says so
    if (start == 0 && length == s->dim[dim]) return x;
    Node def = *canon_def(c, x);
    if (def.op == OP_SLICE && node_int(&def, ATTR_DIM) == dim) {
        int64_t step0 = node_int_or(&def, ATTR_STEP, 1);
        return emit_slice(c, def.in[0], dim, node_int_or(&def, ATTR_START, 0) + start * step0, step * step0, length);
    }
    if (length == 0) return NO_VALUE;
    if (def.op == OP_PAD && node_int(&def, ATTR_DIM) == dim && step == 1) return slice_of_pad(c, &def, start, length);
    if (def.op == OP_CONCAT && node_int(&def, ATTR_DIM) == dim && step == 1) return slice_of_concat(c, &def, start, length);
    if (def.op == OP_BROADCAST) {
        Shape out = *s;
        out.dim[dim] = length;
        ValueId from = def.in[0];
        if (canon_shape(c, from)->dim[dim] != 1) from = emit_slice(c, from, dim, start, step, length);
        return canon_broadcast(c, from, out);
    }
    return NO_VALUE;
}

// concat(x[0:a], x[a:b], ...) is a slice of x.
static ValueId simplify_concat(Canon *c, int nin, const ValueId *in, const Node *n) {
    if (nin == 1) return in[0];
    int64_t dim = node_int(n, ATTR_DIM), start = 0, end = 0;
    ValueId from = NO_VALUE;
    for (int i = 0; i < nin; i++) {
        const Node *def = canon_def(c, in[i]);
        if (def->op != OP_SLICE || node_int(def, ATTR_DIM) != dim || node_int_or(def, ATTR_STEP, 1) != 1) return NO_VALUE;
        int64_t begin = node_int_or(def, ATTR_START, 0);
        if (i == 0) from = def->in[0], start = end = begin;
        if (def->in[0] != from || begin != end) return NO_VALUE;
        end += node_int(def, ATTR_LENGTH);
    }
    return emit_slice(c, from, dim, start, 1, end - start);
}

// Reduced dims of extent 1 are no work.
static ValueId simplify_sum(Canon *c, ValueId x, const Node *n) {
    const int64_t *dims;
    int64_t keep[MAX_DIMS];
    int k = node_ints(n, ATTR_DIMS, &dims), nkeep = 0;
    const Shape *s = canon_shape(c, x);
    for (int i = 0; i < k; i++) {
        if (dims[i] < 0 || dims[i] >= s->ndim || nkeep == MAX_DIMS) return NO_VALUE;
        if (s->dim[dims[i]] != 1) keep[nkeep++] = dims[i];
    }
    if (nkeep == k) return NO_VALUE;
    if (nkeep == 0) {
        if (canon_dtype(c, x) != DT_BOOL) return x;
        Attr a = attr_i(ATTR_DTYPE, DT_I64);
        return canon_emit(c, OP_CAST, 1, &x, 1, &a);
    }
    Attr a = attr_ints(ATTR_DIMS, nkeep, keep);
    return canon_emit(c, n->op, 1, &x, 1, &a);
}

static bool perm_swaps(const Node *n, int nbatch, int n1) {
    // The permutation keeps nbatch leading dims and exchanges the next group with the last n1 ones of its result.
    const int64_t *dims;
    int k = node_ints(n, ATTR_DIMS, &dims), first = k - nbatch - n1;
    for (int i = 0; i < nbatch; i++)
        if (dims[i] != i) return false;
    for (int i = 0; i < first; i++)
        if (dims[nbatch + i] != nbatch + n1 + i) return false;
    for (int i = 0; i < n1; i++)
        if (dims[nbatch + first + i] != nbatch + i) return false;
    return true;
}

// A transposed operand of dot is its trans flag.
static ValueId simplify_dot(Canon *c, const ValueId *in, const Node *n) {
    if (n->nin != 2) return NO_VALUE;  // made after the last canonicalization
    int nb = (int)node_int_or(n, ATTR_NBATCH, 0), nc = (int)node_int_or(n, ATTR_NCONTRACT, 1);
    bool trans[2] = {node_int_or(n, ATTR_TRANS_A, 0), node_int_or(n, ATTR_TRANS_B, 0)}, changed = false;
    ValueId x[2] = {in[0], in[1]};
    for (int i = 0; i < 2; i++) {
        const Node *def = canon_def(c, x[i]);
        int nd = canon_shape(c, x[i])->ndim, nfree = nd - nb - nc;
        if (def->op != OP_PERMUTE || nfree < 1) continue;
        bool contract_last = (i == 0) != trans[i];  // a: free, contract | b: contract, free
        if (!perm_swaps(def, nb, contract_last ? nc : nfree)) continue;
        x[i] = def->in[0];
        trans[i] = !trans[i];
        changed = true;
    }
    if (!changed) return NO_VALUE;
    Attr a[] = {attr_i(ATTR_NBATCH, nb), attr_i(ATTR_NCONTRACT, nc), attr_i(ATTR_TRANS_A, trans[0]),
                attr_i(ATTR_TRANS_B, trans[1]), {0}};
    const Attr *wide = node_attr(n, ATTR_DTYPE);
    if (wide) a[4] = *wide;
    return canon_emit(c, OP_DOT, 2, x, wide ? 5 : 4, a);
}

static ValueId simplify_expert_matmul(Canon *c, const ValueId *in, const Node *n) {
    const Node *w = canon_def(c, in[2]);
    const int64_t *dims;
    if (w->op != OP_PERMUTE || node_ints(w, ATTR_DIMS, &dims) != 3 || dims[0] != 0) return NO_VALUE;
    ValueId x[3] = {in[0], in[1], w->in[0]};
    Attr a = attr_i(ATTR_TRANS_W, !node_int_or(n, ATTR_TRANS_W, 0));
    return canon_emit(c, OP_EXPERT_MATMUL, 3, x, 1, &a);
}

// Rows 0, 1, 2, ... of a table are the table.
static ValueId simplify_embedding(Canon *c, const ValueId *in, const Node *n) {
    if (node_int_or(n, ATTR_SKIP, -1) >= 0) return NO_VALUE;  // a row whose gradient is dropped
    const Known *k = &c->known.data[in[1]];
    const Shape *table = canon_shape(c, in[0]), *idx = canon_shape(c, in[1]);
    if (!k->known || k->dim < 0 || !k->affine || k->base != 0 || k->step != 1 || k->len != table->dim[0] ||
        k->len != shape_numel(idx))
        return NO_VALUE;
    Shape out = *idx;
    for (int i = 1; i < table->ndim; i++) {
        if (out.ndim == MAX_DIMS) return NO_VALUE;
        out.dim[out.ndim++] = table->dim[i];
    }
    return canon_reshape(c, in[0], out);
}

ValueId canon_movement(Canon *c, OpKind op, int nin, const ValueId *in, const Node *n) {
    if (nin == 0) return NO_VALUE;
    ValueId x = in[0];
    const Shape *s = canon_shape(c, x);
    Node def = *canon_def(c, x);
    switch (op) {
        case OP_RESHAPE: {
            Shape to = attr_shape(n);
            if (shape_numel(&to) != shape_numel(s)) return NO_VALUE;
            if (shape_equal(s, &to)) return x;
            return def.op == OP_RESHAPE ? canon_reshape(c, def.in[0], to) : NO_VALUE;
        }
        case OP_BROADCAST: {
            Shape to = attr_shape(n);
            if (shape_equal(s, &to)) return x;
            return def.op == OP_BROADCAST ? canon_broadcast(c, def.in[0], to) : NO_VALUE;
        }
        case OP_PERMUTE: return simplify_permute(c, x, n);
        case OP_SLICE: return simplify_slice(c, x, n);
        case OP_PAD: return node_int(n, ATTR_LO) == 0 && node_int(n, ATTR_HI) == 0 ? x : NO_VALUE;
        case OP_CONCAT: return simplify_concat(c, nin, in, n);
        case OP_SUM:
        case OP_AMAX: return simplify_sum(c, x, n);
        case OP_DOT: return simplify_dot(c, in, n);
        case OP_EXPERT_MATMUL: return simplify_expert_matmul(c, in, n);
        case OP_EMBEDDING: return simplify_embedding(c, in, n);
        default: return NO_VALUE;
    }
}
