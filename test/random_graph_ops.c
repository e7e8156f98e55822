// The families of random steps: pointwise, movement, reductions, indexing, order.
#include "random_graph_inside.h"

// ---- pointwise -------------------------------------------------------------------------------------------------------------

static ValueId positive(Gen *g, ValueId x) {  // x*x + 0.5
    return build_binary_scalar(&g->b, OP_ADD, build_binary(&g->b, OP_MUL, x, x), 0.5);
}

void add_unary(Gen *g) {
    static const OpKind bounded[] = {OP_TANH, OP_SIGMOID, OP_SIN, OP_COS, OP_ERF};
    static const OpKind growing[] = {OP_SILU, OP_GELU, OP_GELU_TANH, OP_NEG};
    Builder *b = &g->b;
    Item x = pick_float(g);
    double m = x.mag;
    switch (draw(g, 9)) {
    case 0:
    case 1: give(g, build_unary(b, bounded[draw(g, 5)], x.v), false, x.input, 1); break;
    case 2:
    case 3: {
        OpKind op = growing[draw(g, 4)];
        give(g, build_unary(b, op, x.v), x.exact && op == OP_NEG, x.input, m);
        break;
    }
    case 4: give(g, build_unary(b, OP_EXP, m > 1 ? build_unary(b, OP_TANH, x.v) : x.v), false, x.input, 2.8); break;
    case 5: give(g, build_unary(b, OP_EXPM1, m > 1 ? build_unary(b, OP_SIN, x.v) : x.v), false, x.input, 2.8); break;
    case 6: give(g, build_unary(b, chance(g, 50) ? OP_LOG : OP_SQRT, positive(g, x.v)), false, x.input, m + 1); break;
    case 7: give(g, build_unary(b, OP_RSQRT, positive(g, x.v)), false, x.input, 1.5); break;
    case 8:
        if (chance(g, 50)) {
            give(g, build_unary(b, OP_LOG1P, build_binary(b, OP_MUL, x.v, x.v)), false, x.input, m + 1);
        } else {
            give(g, build_unary(b, OP_STOP_GRAD, x.v), x.exact, x.input, m);
            g->out->smooth = false;
        }
        break;
    }
}

void add_binary(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g), y = some_float(g, shape_at(g, x.v), true);
    bool input = x.input && y.input;
    if (chance(g, 30)) {
        Item t = x;
        x = y, y = t;
    }
    switch (draw(g, 6)) {
    case 0:
    case 1: give(g, build_binary(b, chance(g, 70) ? OP_ADD : OP_SUB, x.v, y.v), false, input, x.mag + y.mag); break;
    case 2:
    case 3: give(g, build_binary(b, OP_MUL, x.v, y.v), false, input, x.mag * y.mag); break;
    case 4: give(g, build_binary(b, OP_DIV, x.v, positive(g, y.v)), false, input, 2 * x.mag); break;
    case 5:
        if (chance(g, 50)) {
            double e = (double)draw_in(g, 1, 3);
            give(g, build_binary_scalar(b, OP_POW, x.v, e), false, x.input, pow(x.mag, e));
        } else {
            ValueId power = build_binary(b, OP_POW, positive(g, x.v), build_unary(b, OP_TANH, y.v));
            give(g, power, false, input, fmax(2, x.mag * x.mag + 0.5));
        }
        break;
    }
}

// Pointwise functions with kinks and jumps.
void add_jump(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g);
    OpKind op = chance(g, 50) ? OP_MAX : OP_MIN;
    switch (draw(g, 4)) {
    case 0: {
        if (!x.exact) x = apart(g, x);
        give(g, build_binary_scalar(b, op, x.v, 0), x.exact, x.input, x.mag);
        break;
    }
    case 1: {
        Item y = some_float(g, shape_at(g, x.v), true);
        if (!x.exact || !y.exact) x = apart(g, x);
        give(g, build_binary(b, op, x.v, y.v), x.exact && y.exact, x.input && y.input, fmax(x.mag, y.mag));
        break;
    }
    case 2: {
        if (!x.exact) x = apart(g, x);
        give(g, build_unary(b, OP_ABS, x.v), x.exact, x.input, x.mag);
        break;
    }
    case 3: {
        x = pick_exact_float(g);
        ValueId v = chance(g, 50) ? build_unary(b, OP_SIGN, x.v) : build_unary(b, OP_FLOOR, x.v);
        give(g, v, true, x.input, x.mag + 1);
        break;
    }
    }
}

void add_integer(Gen *g) {
    static const OpKind ops[] = {OP_ADD, OP_SUB, OP_MUL, OP_MAX, OP_MIN};
    Builder *b = &g->b;
    Item x = pick_int(g);
    ValueId v;
    switch (draw(g, 5)) {
    case 0: v = build_binary(b, ops[draw(g, 5)], x.v, fit(g, pick_int(g), shape_at(g, x.v)).v); break;
    case 1: v = build_binary_scalar(b, OP_FLOORDIV, x.v, (double)draw_in(g, 2, 5)); break;
    case 2: v = build_iota(b, shape_at(g, x.v), 0, draw_in(g, -3, 3), draw_in(g, 1, 3), DT_I64); break;
    case 3: v = build_cast(b, pick_bool(g).v, DT_I64); break;
    default: {  // a function of the integer as a float
        ValueId f = build_cast(b, x.v, g->real);
        give(g, build_unary(b, chance(g, 50) ? OP_SIN : OP_COS, build_binary_scalar(b, OP_MUL, f, 0.37)), false, true, 1);
        return;
    }
    }
    if (shape_at(g, v).ndim == 0 && graph_def(g->g, v)->op == OP_IOTA) return;
    give(g, mod_index(g, v, draw_in(g, 3, 97)), true, true, 0);
}

void add_compare(Gen *g) {
    static const OpKind compare[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE}, logic[] = {OP_AND, OP_OR, OP_XOR};
    Builder *b = &g->b;
    switch (draw(g, 4)) {
    case 0: {
        Item x = pick_int(g);
        give(g, build_binary(b, compare[draw(g, 6)], x.v, fit(g, pick_int(g), shape_at(g, x.v)).v), true, true, 0);
        break;
    }
    case 1: {
        Item x = pick_exact_float(g);
        give(g, build_binary_scalar(b, compare[2 + draw(g, 4)], x.v, draw_real(g)), true, true, 0);
        break;
    }
    case 2: give(g, build_unary(b, OP_NOT, pick_bool(g).v), true, true, 0); break;
    case 3: {
        Item x = pick_bool(g);
        give(g, build_binary(b, logic[draw(g, 3)], x.v, fit(g, pick_bool(g), shape_at(g, x.v)).v), true, true, 0);
        break;
    }
    }
}

void add_where(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g), y = some_float(g, shape_at(g, x.v), true), c = fit(g, pick_bool(g), shape_at(g, x.v));
    bool scalar = chance(g, 40);
    ValueId other = scalar ? build_scalar(b, g->real, draw_real(g)) : y.v;
    give(g, build_where(b, c.v, x.v, other), x.exact && (scalar || y.exact), x.input && (scalar || y.input),
         fmax(x.mag, y.mag + 1));
}

// Dropout.
void add_random(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    double p = 0.1 + 0.2 * (double)draw(g, 3);
    Attr a[] = {attr_ints(ATTR_SHAPE, s.ndim, s.dim), attr_i(ATTR_DTYPE, g->real), attr_i(ATTR_SEED, draw(g, 1000))};
    ValueId keep = build_binary_scalar(b, OP_GE, build(b, OP_RANDOM, 0, NULL, 3, a), p);
    give(g, build_where(b, keep, build_binary_scalar(b, OP_MUL, x.v, 1 / (1 - p)), build_scalar(b, g->real, 0)), false, x.input,
         2 * x.mag);
}

// ---- movement --------------------------------------------------------------------------------------------------------------

static ValueId random_reshape(Gen *g, ValueId v) {
    Shape s = shape_at(g, v), to = SHAPE0;
    int64_t how = draw(g, 4);
    int at = s.ndim ? (int)draw(g, s.ndim) : 0;
    if (how == 0 && s.ndim >= 2) {  // merge two neighbours
        at = (int)draw(g, s.ndim - 1);
        for (int i = 0; i < s.ndim; i++) {
            if (i == at + 1)
                to.dim[to.ndim - 1] *= s.dim[i];
            else
                to.dim[to.ndim++] = s.dim[i];
        }
    } else if (how == 1 && s.ndim >= 1 && s.ndim < 6) {  // split one
        int64_t f = draw_in(g, 2, 6);
        while (s.dim[at] % f) f--;
        for (int i = 0; i < s.ndim; i++) {
            bool outer = chance(g, 50);
            to.dim[to.ndim++] = i != at ? s.dim[i] : outer ? f : s.dim[i] / f;
            if (i == at) to.dim[to.ndim++] = outer ? s.dim[i] / f : f;
        }
    } else if (how == 2 && s.ndim < 6) {  // a new dim
        at = (int)draw(g, s.ndim + 1);
        for (int i = 0; i <= s.ndim; i++) to.dim[to.ndim++] = i == at ? 1 : s.dim[i - (i > at)];
    } else {  // without its ones, or flat
        for (int i = 0; i < s.ndim; i++)
            if (s.dim[i] != 1) to.dim[to.ndim++] = s.dim[i];
        if (how == 3 && chance(g, 30)) to = SHAPE(shape_numel(&s));
    }
    return build_reshape(&g->b, v, to);
}

static ValueId random_permute(Gen *g, ValueId v) {
    int n = shape_at(g, v).ndim, dims[MAX_DIMS];
    for (int i = 0; i < n; i++) {
        int k = (int)draw(g, i + 1);
        dims[i] = dims[k];
        dims[k] = i;
    }
    return n ? build_permute(&g->b, v, dims) : v;
}

static ValueId random_slice(Gen *g, ValueId v) {
    Shape s = shape_at(g, v);
    if (!s.ndim) return v;
    int dim = (int)draw(g, s.ndim);
    int64_t n = s.dim[dim], step = chance(g, 70) ? 1 : draw_in(g, 2, 3), start = draw(g, n);
    return build_slice(&g->b, v, dim, start, step, draw_in(g, 1, (n - 1 - start) / step + 1));
}

static ValueId random_pad(Gen *g, ValueId v) {
    Shape s = shape_at(g, v);
    if (!s.ndim) return v;
    DType t = build_dtype(&g->b, v);
    double fill = t == g->real ? (chance(g, 60) ? 0 : draw_real(g)) : (double)draw(g, 2);
    return build_pad(&g->b, v, (int)draw(g, s.ndim), draw(g, 4), draw(g, 4), fill);
}

// Copies along dims of 1, or along a new leading dim.
static ValueId random_broadcast(Gen *g, ValueId v) {
    Shape s = shape_at(g, v), to = s;
    for (int i = 0; i < s.ndim; i++)
        if (s.dim[i] == 1 && chance(g, 60)) to.dim[i] = chance(g, 50) ? g->seq : draw_in(g, 2, 4);
    if (shape_equal(&s, &to) && s.ndim < 5) {
        for (int i = s.ndim; i > 0; i--) to.dim[i] = s.dim[i - 1];
        to.dim[0] = draw_in(g, 1, 4);
        to.ndim++;
    }
    return shape_numel(&to) > 4 * MAX_NUMEL ? v : build_broadcast(&g->b, v, to);
}

// With a shifted part of itself, or rolled.
static ValueId random_concat(Gen *g, ValueId v, ValueId other) {
    Shape s = shape_at(g, v);
    if (!s.ndim) return v;
    int dim = (int)draw(g, s.ndim);
    int64_t n = s.dim[dim], cut = draw(g, n);
    Builder *b = &g->b;
    ValueId tail = cut ? build_slice(b, v, dim, n - cut, 1, cut) : v;
    switch (draw(g, 3)) {
    case 0: return cut ? build_concat(b, 2, (ValueId[]){tail, build_slice(b, v, dim, 0, 1, n - cut)}, dim) : v;
    case 1: return build_concat(b, 2, (ValueId[]){v, tail}, dim);
    default: return build_concat(b, 3, (ValueId[]){tail, other, v}, dim);
    }
}

void add_movement(Gen *g) {
    int64_t kind = draw(g, 10);
    Item x = kind < 7 ? pick_float(g) : kind < 9 ? pick_int(g) : pick_bool(g);
    ValueId v = x.v;
    switch (draw(g, 7)) {
    case 0: v = random_reshape(g, v); break;
    case 1: v = random_permute(g, v); break;
    case 2: v = random_slice(g, v); break;
    case 3: v = random_pad(g, v); break;
    case 4: v = random_broadcast(g, v); break;
    case 5: {
        Item other = fit(g, kind < 7 ? pick_float(g) : kind < 9 ? pick_int(g) : pick_bool(g), shape_at(g, v));
        v = random_concat(g, v, other.v);
        x.exact &= other.exact;
        x.input &= other.input;
        x.mag = fmax(x.mag, other.mag);
        break;
    }
    case 6: v = random_reshape(g, random_permute(g, v)); break;
    }
    if (v != x.v) give(g, v, x.exact, x.input, fmax(x.mag, 1));
}

// ---- reductions ------------------------------------------------------------------------------------------------------------

static ValueId random_sum(Gen *g, ValueId v) {
    int dims[MAX_DIMS], n = 0;
    Shape s = shape_at(g, v);
    for (int i = 0; i < s.ndim; i++)
        if (chance(g, 50)) dims[n++] = i;
    return build_sum(&g->b, v, n, dims);
}

static ValueId scan(Gen *g, ValueId v, int dim) {
    return build(&g->b, OP_CUMSUM, 1, &v, 2, (Attr[]){attr_i(ATTR_DIM, dim), attr_i(ATTR_REVERSE, draw(g, 2))});
}

static void reduce_integer(Gen *g) {
    Item x = pick_int(g);
    Shape s = shape_at(g, x.v);
    if (!s.ndim) return;
    int dim = (int)draw(g, s.ndim);
    ValueId v = draw(g, 3) == 0 ? random_sum(g, chance(g, 50) ? x.v : pick_bool(g).v)
                : chance(g, 70) ? scan(g, x.v, dim)
                                : build_reduce(&g->b, OP_AMAX, x.v, dim);
    if (build_dtype(&g->b, v) == DT_I64) give(g, mod_index(g, v, draw_in(g, 3, 97)), true, true, 0);
}

void add_reduction(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    if (chance(g, 25)) {
        reduce_integer(g);
        return;
    }
    if (!s.ndim) return;
    int dim = (int)draw(g, s.ndim);
    switch (draw(g, 6)) {
    case 0:
    case 1: {
        ValueId v = random_sum(g, x.v);
        if (v != x.v) give(g, v, false, x.input, x.mag * (double)shape_numel(&s) / (double)numel_at(g, v));
        break;
    }
    case 2: {
        if (!x.exact) x = apart(g, x);
        give(g, build_reduce(b, OP_AMAX, x.v, dim), x.exact, x.input, x.mag);
        break;
    }
    case 3: give(g, build_reduce(b, OP_LOGSUMEXP, x.v, dim), false, x.input, x.mag + log((double)s.dim[dim])); break;
    case 4: give(g, scan(g, x.v, dim), false, x.input, x.mag * (double)s.dim[dim]); break;
    case 5: {  // soft-max
        ValueId p = build_unary(b, OP_EXP, build_binary(b, OP_SUB, x.v, build_reduce(b, OP_LOGSUMEXP, x.v, dim)));
        give(g, p, false, x.input, 1);
        break;
    }
    }
}

// ---- indexing --------------------------------------------------------------------------------------------------------------

static void add_scatter(Gen *g, Item x, Shape s, int dim, int64_t other) {
    Builder *b = &g->b;
    Shape idx = s;
    for (int i = 0; i < s.ndim; i++) idx.dim[i] = i == dim ? other : draw_in(g, 1, s.dim[i]);
    ValueId at = some_index(g, idx, s.dim[dim]);
    Item src = some_float(g, idx, false);
    ValueId v = build(b, OP_SCATTER_ADD, 3, (ValueId[]){x.v, at, src.v}, 1, (Attr[]){attr_i(ATTR_DIM, dim)});
    give(g, v, false, x.input && src.input, x.mag + src.mag * (double)other);
}

static void add_index_put(Gen *g, Item x, Shape s, int64_t n) {
    Builder *b = &g->b;
    bool accumulate = chance(g, 60);
    if (!accumulate) n = min_i64(n, s.dim[0]);
    // Without adding, two sources of one row would race: distinct rows.
    ValueId at =
        accumulate ? some_index(g, SHAPE(n), s.dim[0]) : build_iota(b, SHAPE(n), 0, draw(g, s.dim[0] - n + 1), 1, DT_I64);
    Shape rows = s;
    rows.dim[0] = n;
    Item src = some_float(g, rows, false);
    ValueId v = build(b, OP_INDEX_PUT, 3, (ValueId[]){x.v, at, src.v}, 1, (Attr[]){attr_i(ATTR_ACCUMULATE, accumulate)});
    give(g, v, false, x.input && src.input, x.mag + src.mag * (double)(accumulate ? n : 1));
}

void add_index(Gen *g) {
    Builder *b = &g->b;
    Item x = pick_float(g);
    Shape s = shape_at(g, x.v);
    if (!s.ndim) return;
    int dim = (int)draw(g, s.ndim);
    int64_t other = draw_in(g, 1, 6);
    switch (draw(g, 6)) {
    case 0: {
        Item table = chance(g, 50) ? make_param(g, SHAPE(draw_in(g, 1, 9), draw_in(g, 1, 6)), 1) : x;
        Shape rows = shape_at(g, table.v);
        ValueId idx = mod_index(g, pick_int(g).v, rows.dim[0]);
        int64_t n = numel_at(g, idx) * (shape_numel(&rows) / rows.dim[0]);
        if (n > 4 * MAX_NUMEL || shape_at(g, idx).ndim + rows.ndim > 6) return;
        give(g, build_binary(b, OP_EMBEDDING, table.v, idx), table.exact, table.input, table.mag);
        break;
    }
    case 1: {
        Shape lead = shape_of(s.ndim - 1, s.dim);
        give(g, build_binary(b, OP_PICK, x.v, some_index(g, lead, s.dim[s.ndim - 1])), x.exact, x.input, x.mag);
        break;
    }
    case 2: {
        Shape idx = s;
        for (int i = 0; i < s.ndim; i++) idx.dim[i] = i == dim ? other : chance(g, 70) ? s.dim[i] : draw_in(g, 1, s.dim[i]);
        ValueId at = some_index(g, idx, s.dim[dim]);
        give(g, build(b, OP_GATHER, 2, (ValueId[]){x.v, at}, 1, (Attr[]){attr_i(ATTR_DIM, dim)}), x.exact, x.input, x.mag);
        break;
    }
    case 3: add_scatter(g, x, s, dim, other); break;
    case 4: add_index_put(g, x, s, other); break;
    case 5: {
        int64_t bins = draw_in(g, 1, 9);
        ValueId at = mod_index(g, pick_int(g).v, bins + 1);
        give(g, build(b, OP_HISTOGRAM, 1, &at, 1, (Attr[]){attr_i(ATTR_NROWS, bins)}), true, true, 0);
        break;
    }
    }
}

void add_order(Gen *g) {
    bool ints = chance(g, 30);
    Item x = ints ? pick_int(g) : pick_exact_float(g);
    Shape s = shape_at(g, x.v);
    if (!s.ndim) return;
    int dim = (int)draw(g, s.ndim);
    Attr a[] = {attr_i(ATTR_DIM, dim), attr_i(ATTR_DESCENDING, draw(g, 2)), attr_i(ATTR_K, draw_in(g, 1, s.dim[dim]))};
    ValueId out[2];
    bool sort = chance(g, 50);
    build_multi(&g->b, sort ? OP_SORT : OP_TOPK, 1, &x.v, sort ? 2 : 3, a, 2, out);
    give(g, out[0], true, x.input, x.mag);
    give(g, out[1], true, true, 0);
}
