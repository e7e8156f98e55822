// Formulas in core ops that several families of lowerings share.
#include "import/lower.h"
#include "ops/op.h"

// ---- types ----------------------------------------------------------------------------------------------------------------

DType lower_promote(Lower *l, DType a, DType b) {
    if (dtype_is_float(a) || dtype_is_float(b)) return l->real;
    return a == DT_BOOL && b == DT_BOOL ? DT_BOOL : DT_I64;
}

ValueId lower_cast(Lower *l, ValueId v, DType t) {
    if (lower_failed(l) || LDTYPE(l, v) == t) return v;
    const Node *def = graph_def(l->b.g, v);
    // Integers through a floating type and back (histc of expert ids, arange in float) stay integers.
    if (t == DT_I64 && def->op == OP_CAST && LDTYPE(l, def->in[0]) == DT_I64) return def->in[0];
    return build_cast(&l->b, v, t);
}

ValueId lower_real(Lower *l, ValueId v) { return lower_cast(l, v, l->real); }

ValueId lower_number(Lower *l, DType t, double v) { return build_scalar(&l->b, t, v); }

ValueId lower_unary(Lower *l, OpKind op, ValueId x) { return build_unary(&l->b, op, x); }

static bool is_comparison(OpKind op) {
    return op == OP_EQ || op == OP_NE || op == OP_LT || op == OP_LE || op == OP_GT || op == OP_GE;
}
static bool is_logic(OpKind op) { return op == OP_AND || op == OP_OR || op == OP_XOR; }

ValueId lower_binary(Lower *l, OpKind op, ValueId x, ValueId y) {
    if (lower_failed(l)) return NO_VALUE;
    DType t = lower_promote(l, LDTYPE(l, x), LDTYPE(l, y));
    if (is_logic(op)) t = DT_BOOL;
    if (op == OP_DIV) t = l->real;
    if (t == DT_BOOL) {
        if (op == OP_ADD || op == OP_MAX) op = OP_OR;
        if (op == OP_MUL || op == OP_MIN) op = OP_AND;
        if (is_comparison(op)) t = DT_I64;
        if (!is_logic(op) && !is_comparison(op)) {
            lower_refuse(l, "arithmetic on bool tensors; convert to an integer or floating type first");
            return NO_VALUE;
        }
    }
    return build_binary(&l->b, op, lower_cast(l, x, t), lower_cast(l, y, t));
}

ValueId lower_scalar(Lower *l, OpKind op, ValueId x, double v) { return build_binary_scalar(&l->b, op, x, v); }

ValueId lower_not(Lower *l, ValueId c) { return build_unary(&l->b, OP_NOT, lower_cast(l, c, DT_BOOL)); }

ValueId lower_where(Lower *l, ValueId c, ValueId x, ValueId y) {
    if (lower_failed(l)) return NO_VALUE;
    DType t = lower_promote(l, LDTYPE(l, x), LDTYPE(l, y));
    return build_where(&l->b, lower_cast(l, c, DT_BOOL), lower_cast(l, x, t), lower_cast(l, y, t));
}

// ---- shapes ---------------------------------------------------------------------------------------------------------------

int64_t lower_numel(Lower *l, Shape s) {
    int64_t n = 1;
    for (int i = 0; i < s.ndim; i++)
        if (s.dim[i] < 0 || !mul_i64(n, s.dim[i], &n)) {
            lower_invalid(l, "a size is negative or the tensor has more elements than 64 bits can count");
            return 0;
        }
    return n;
}

bool lower_broadcast(Lower *l, Shape a, Shape b, Shape *out) {
    if (lower_failed(l)) return false;
    if (broadcast_shapes(&a, &b, out)) return true;
    lower_invalid(l, "shapes that do not broadcast");
    return false;
}

ValueId lower_broadcast_like(Lower *l, ValueId x, Shape s) {
    if (lower_failed(l)) return NO_VALUE;
    Shape from = LSHAPE(l, x), both;
    while (from.ndim > s.ndim && from.dim[0] == 1) {  // copy_ accepts leading dims of size 1
        x = build_squeeze(&l->b, x, 0);
        from = LSHAPE(l, x);
    }
    if (from.ndim > s.ndim || !broadcast_shapes(&from, &s, &both) || !shape_equal(&both, &s)) {
        lower_invalid(l, "a tensor that cannot be expanded to the shape needed");
        return NO_VALUE;
    }
    return build_broadcast(&l->b, x, s);
}

ValueId lower_move_dim(Lower *l, ValueId x, int from, int to) {
    if (lower_failed(l)) return NO_VALUE;
    int n = LSHAPE(l, x).ndim, dims[MAX_DIMS], k = 0;
    for (int i = 0; i < n; i++) {
        if (k == from) k++;
        dims[i] = i == to ? from : k++;
    }
    return build_permute(&l->b, x, dims);
}

ValueId lower_drop_dims(Lower *l, ValueId x, int nd, const int *dims) {
    if (lower_failed(l)) return NO_VALUE;
    Shape s = LSHAPE(l, x), out = {0};
    bool drop[MAX_DIMS] = {false};
    for (int i = 0; i < nd; i++) drop[dims[i]] = true;
    for (int i = 0; i < s.ndim; i++)
        if (!drop[i]) out.dim[out.ndim++] = s.dim[i];
    return build_reshape(&l->b, x, out);
}

ValueId lower_stack(Lower *l, int n, const ValueId *x, int dim) {
    ValueId *wide = ARENA_ARRAY(l->arena, ValueId, n);
    for (int i = 0; i < n; i++) wide[i] = build_unsqueeze(&l->b, x[i], dim);
    return build_concat(&l->b, n, wide, dim);
}

// ---- reductions -----------------------------------------------------------------------------------------------------------

ValueId lower_sum_dims(Lower *l, ValueId x, int nd, const int *dims, bool keep) {
    ValueId s = build_sum(&l->b, x, nd, dims);
    return keep ? s : lower_drop_dims(l, s, nd, dims);
}

ValueId lower_mean_dims(Lower *l, ValueId x, int nd, const int *dims, bool keep) {
    Shape s = LSHAPE(l, x);
    double n = 1;
    for (int i = 0; i < nd; i++) n *= (double)s.dim[dims[i]];
    return lower_scalar(l, OP_MUL, lower_sum_dims(l, x, nd, dims, keep), 1.0 / n);
}

ValueId lower_reduction(Lower *l, ValueId x, int64_t reduction) {
    int dims[MAX_DIMS], n = LSHAPE(l, x).ndim;
    for (int i = 0; i < n; i++) dims[i] = i;
    if (reduction == 0) return x;
    if (reduction == 1) return lower_mean_dims(l, x, n, dims, false);
    if (reduction == 2) return lower_sum_dims(l, x, n, dims, false);
    lower_invalid(l, "reduction %lld is neither none, mean nor sum", (long long)reduction);
    return NO_VALUE;
}

ValueId lower_logsumexp(Lower *l, ValueId x, int dim) {
    if (lower_failed(l)) return NO_VALUE;
    if (LSHAPE(l, x).ndim == 0) return x;
    return build_reduce(&l->b, OP_LOGSUMEXP, x, dim);
}

ValueId lower_log_softmax(Lower *l, ValueId x, int dim) { return lower_binary(l, OP_SUB, x, lower_logsumexp(l, x, dim)); }

// exp(x - max) / sum, not exp(x - logsumexp): where a whole row is about -1e9 (masked by adding), float32 has no room for the
// logarithm of the sum beside the maximum.
ValueId lower_softmax(Lower *l, ValueId x, int dim) {
    if (lower_failed(l)) return NO_VALUE;
    if (LSHAPE(l, x).ndim == 0) return lower_unary(l, OP_EXP, lower_binary(l, OP_SUB, x, x));
    ValueId max = build_unary(&l->b, OP_STOP_GRAD, build_reduce(&l->b, OP_AMAX, x, dim));
    ValueId e = lower_unary(l, OP_EXP, lower_binary(l, OP_SUB, x, max));
    return lower_binary(l, OP_DIV, e, build_sum(&l->b, e, 1, &dim));
}

// log(1 + exp(beta x)) / beta; x itself where beta x > threshold, and exp never overflows on the way (nor in the gradient).
ValueId lower_softplus(Lower *l, ValueId x, double beta, double threshold) {
    ValueId z = beta == 1.0 ? x : lower_scalar(l, OP_MUL, x, beta);
    ValueId large = lower_scalar(l, OP_GT, z, threshold);
    ValueId safe = lower_where(l, large, lower_number(l, l->real, 0), z);
    ValueId y = lower_unary(l, OP_LOG1P, lower_unary(l, OP_EXP, safe));
    if (beta != 1.0) y = lower_scalar(l, OP_MUL, y, 1.0 / beta);
    return lower_where(l, large, x, y);
}

// At 40, log1p(exp(x)) is x to the last bit of a double, and exp(40) is finite in f32.
ValueId lower_log_sigmoid(Lower *l, ValueId x) {
    return lower_unary(l, OP_NEG, lower_softplus(l, lower_unary(l, OP_NEG, x), 1.0, 40.0));
}

// ---- indexing -------------------------------------------------------------------------------------------------------------

ValueId lower_take(Lower *l, ValueId x, int dim, ValueId idx) {
    if (lower_failed(l)) return NO_VALUE;
    int n = LSHAPE(l, x).ndim, k = LSHAPE(l, idx).ndim;
    if (n - 1 + k > MAX_DIMS) {
        lower_refuse(l, "indexing that makes more than %d dims", MAX_DIMS);
        return NO_VALUE;
    }
    Attr skip = attr_i(ATTR_SKIP, -1);
    ValueId y = build(&l->b, OP_EMBEDDING, 2, (ValueId[]){lower_move_dim(l, x, dim, 0), idx}, 1, &skip);
    if (dim == 0 || lower_failed(l)) return y;
    // [idx..., before..., after...] -> [before..., idx..., after...]
    int dims[MAX_DIMS], at = 0;
    for (int i = 0; i < dim; i++) dims[at++] = k + i;
    for (int i = 0; i < k; i++) dims[at++] = i;
    for (int i = dim; i < n - 1; i++) dims[at++] = k + i;
    return build_permute(&l->b, y, dims);
}

static bool const_never_negative(const Const *c) {
    if (!c->data || c->dtype != DT_I64) return c->dtype == DT_BOOL;
    const int64_t *v = c->data;
    for (int64_t i = 0, n = shape_numel(&c->shape); i < n; i++)
        if (v[i] < 0) return false;
    return true;
}

// Proved, by structure, to hold no negative integer.
static bool never_negative(const Lower *l, ValueId v, int *budget) {
    const Graph *g = l->b.g;
    const Node *n = graph_def(g, v);
    if (--*budget < 0) return false;
#define NN(i) never_negative(l, n->in[i], budget)
    switch (n->op) {
        case OP_FULL: return node_float(n, ATTR_VALUE) >= 0;
        case OP_IOTA: return node_int(n, ATTR_START) >= 0 && node_int(n, ATTR_STEP) >= 0;
        case OP_CONSTANT: return const_never_negative(&g->consts.data[node_int(n, ATTR_INDEX)]);
        case OP_RESHAPE: case OP_BROADCAST: case OP_SLICE: case OP_PERMUTE: case OP_STOP_GRAD: case OP_CUMSUM: case OP_SUM:
            return NN(0);
        case OP_CAST: return graph_value(g, n->in[0])->dtype == DT_BOOL || (graph_value(g, n->in[0])->dtype == DT_I64 && NN(0));
        case OP_SORT: case OP_TOPK: return graph_value(g, v)->index == 1 || NN(0);
        case OP_ADD: case OP_MUL: case OP_FLOORDIV: case OP_MIN: return NN(0) && NN(1);
        case OP_MAX: return NN(0) || NN(1);
        case OP_MOD: return NN(1);
        case OP_WHERE: return NN(1) && NN(2);
        case OP_HISTOGRAM: return true;
        case OP_INDEX_PUT: return NN(0) && NN(2);
        case OP_EMBEDDING: case OP_GATHER: return NN(0);
        case OP_PAD: return NN(0) && node_float(n, ATTR_VALUE) >= 0;
        case OP_CONCAT:
            for (int i = 0; i < n->nin; i++)
                if (!NN(i)) return false;
            return true;
        default: return false;
    }
#undef NN
}

ValueId lower_wrap_index(Lower *l, ValueId idx, int64_t n) {
    if (lower_failed(l)) return NO_VALUE;
    idx = lower_cast(l, idx, DT_I64);
    int budget = 200;  // values looked at
    if (never_negative(l, idx, &budget)) return idx;
    return lower_where(l, lower_scalar(l, OP_LT, idx, 0), lower_scalar(l, OP_ADD, idx, (double)n), idx);
}

// ---- products -------------------------------------------------------------------------------------------------------------

// x [.., M, K] times y [.., K, N] with broadcast batch dims.
static ValueId batched_matmul(Lower *l, ValueId x, ValueId y) {
    Shape sx = LSHAPE(l, x), sy = LSHAPE(l, y), batch;
    Shape bx = shape_of(sx.ndim - 2, sx.dim), by = shape_of(sy.ndim - 2, sy.dim);
    if (!lower_broadcast(l, bx, by, &batch)) return NO_VALUE;
    int nb = batch.ndim;
    if (shape_numel(&by) == 1 && sx.ndim >= sy.ndim)  // one matrix for all: x's leading dims are free dims
        return build_dot(&l->b, x, build_reshape(&l->b, y, SHAPE(sy.dim[sy.ndim - 2], sy.dim[sy.ndim - 1])), 0, 1, false, false);
    Shape fx = batch, fy = batch;
    fx.ndim = fy.ndim = nb + 2;
    for (int i = 0; i < 2; i++) {
        fx.dim[nb + i] = sx.dim[sx.ndim - 2 + i];
        fy.dim[nb + i] = sy.dim[sy.ndim - 2 + i];
    }
    return build_dot(&l->b, build_broadcast(&l->b, x, fx), build_broadcast(&l->b, y, fy), nb, 1, false, false);
}

ValueId lower_matmul(Lower *l, ValueId x, ValueId y) {
    if (lower_failed(l)) return NO_VALUE;
    Shape sx = LSHAPE(l, x), sy = LSHAPE(l, y);
    int nx = sx.ndim, ny = sy.ndim;
    if (nx == 0 || ny == 0) {
        lower_invalid(l, "matmul of a 0-dim tensor");
        return NO_VALUE;
    }
    if (!dtype_is_float(LDTYPE(l, x)) || !dtype_is_float(LDTYPE(l, y))) {
        lower_refuse(l, "a matrix product of integers; convert to a floating type first");
        return NO_VALUE;
    }
    int64_t kx = sx.dim[nx - 1], ky = sy.dim[ny == 1 ? 0 : ny - 2];
    if (kx != ky) {
        lower_invalid(l, "matmul contracts %lld with %lld elements", (long long)kx, (long long)ky);
        return NO_VALUE;
    }
    if (ny <= 2) return build_dot(&l->b, x, y, 0, 1, false, false);  // leading dims of x are just free dims
    if (nx >= 2) return batched_matmul(l, x, y);
    return build_dot(&l->b, build_transpose(&l->b, y, ny - 2, ny - 1), x, 0, 1, false, false);  // [K] x [.., K, N] -> [.., N]
}

// ---- random ---------------------------------------------------------------------------------------------------------------

ValueId lower_uniform(Lower *l, Shape s) {
    Attr a[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DTYPE, l->real), attr_i(ATTR_SEED, lower_stream(l))};
    return build(&l->b, OP_RANDOM, 0, NULL, 3, a);
}

ValueId lower_dropped(Lower *l, ValueId x, double p) {
    if (lower_failed(l)) return NO_VALUE;
    if (!(p >= 0 && p <= 1)) {
        lower_invalid(l, "a dropout probability of %g", p);
        return NO_VALUE;
    }
    if (p == 1) return lower_scalar(l, OP_MUL, x, 0);
    ValueId keep = lower_scalar(l, OP_GE, lower_uniform(l, LSHAPE(l, x)), p);
    return lower_scalar(l, OP_MUL, lower_binary(l, OP_MUL, x, keep), 1.0 / (1.0 - p));
}
