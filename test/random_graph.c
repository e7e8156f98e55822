// The generator's core: inputs and parameters, the pool of values, how values are brought to a shape, and the loss.
#include "random_graph_inside.h"

#include <stdio.h>

#include "base/random.h"

// ---- drawing --------------------------------------------------------------------------------------------------------------

int64_t draw(Gen *g, int64_t n) {
    g->rng += UINT64_C(0x9E3779B97F4A7C15);
    return (int64_t)(random_mix(g->rng) % (uint64_t)n);
}

int64_t draw_in(Gen *g, int64_t lo, int64_t hi) { return lo + draw(g, hi - lo + 1); }
bool chance(Gen *g, int percent) { return draw(g, 100) < percent; }
double draw_real(Gen *g) { return (double)draw(g, 1 << 24) / (1 << 23) - 1; }

static Item late(Gen *g, const Item *data, int64_t n) {
    int64_t a = draw(g, n), b = draw(g, n);
    return data[a > b ? a : b];
}

Item pick_float(Gen *g) { return late(g, g->floats.data, g->floats.len); }
Item pick_int(Gen *g) { return late(g, g->ints.data, g->ints.len); }
Item pick_bool(Gen *g) { return late(g, g->bools.data, g->bools.len); }

Item pick_exact_float(Gen *g) {
    int64_t n = g->floats.len, at = draw(g, n);
    for (int64_t i = 0; i < n; i++)
        if (g->floats.data[(at + i) % n].exact) return g->floats.data[(at + i) % n];
    CHECK(false, "no exact float");  // there is an input
}

void give(Gen *g, ValueId v, bool exact, bool input, double mag) {
    Builder *b = &g->b;
    CHECK(b->status == ST_OK, "the generator made a node that is refused: %s", g->d.text);
    if (numel_at(g, v) > MAX_NUMEL) {
        Shape s = shape_at(g, v);
        int dim = 0;
        for (int i = 1; i < s.ndim; i++)
            if (s.dim[i] > s.dim[dim]) dim = i;
        int64_t keep = max_i64(1, s.dim[dim] * MAX_NUMEL / shape_numel(&s));
        v = build_slice(b, v, dim, draw(g, s.dim[dim] - keep + 1), 1, keep);
    }
    DType t = build_dtype(b, v);
    if (t == g->real && mag > 8) {
        v = build_binary_scalar(b, OP_MUL, v, 4 / mag);
        mag = 4;
        exact = false;
    }
    Item x = {v, exact || t != g->real, input, mag};
    if (t == g->real)
        vec_push(&g->floats, x);
    else if (t == DT_I64)
        vec_push(&g->ints, x);
    else
        vec_push(&g->bools, x);
}

// ---- sources --------------------------------------------------------------------------------------------------------------

static ValueId make_input(Gen *g, const char *name, Role role, Shape s, DType t) {
    int64_t i = g->g->inputs.len;
    Input in = {.name = name, .role = role, .shape = s, .dtype = t, .batch_dim = 0, .seq_dim = 1};
    vec_push(&g->g->inputs, in);
    g->out->input[i] = ARENA_ARRAY(g->a, double, shape_numel(&s));
    return build(&g->b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, i)});
}

Item make_param(Gen *g, Shape s, double mag) {
    int64_t i = g->g->params.len, n = shape_numel(&s);
    CHECK(i < RANDOM_MAX_PARAMS, "too many parameters");
    vec_push(&g->g->params, ((Param){.name = arena_printf(g->a, "p%lld", (long long)i), .shape = s, .dtype = g->real,
                                     .trainable = true, .decay = true}));
    double *data = g->out->param[i] = ARENA_ARRAY(g->a, double, n);
    for (int64_t k = 0; k < n; k++) data[k] = (float)(mag * draw_real(g));
    Attr attr[] = {attr_i(ATTR_INDEX, i), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, g->real)};
    return (Item){build(&g->b, OP_PARAM, 0, NULL, 3, attr), true, false, mag};
}

static void make_inputs(Gen *g) {
    int64_t n = g->batch * g->seq, width = g->width;
    Shape rows = SHAPE(g->batch, g->seq);
    ValueId tokens = make_input(g, "tokens", ROLE_TOKENS, rows, DT_I64);
    ValueId labels = make_input(g, "labels", ROLE_LABELS, rows, DT_I64);
    ValueId positions = make_input(g, "positions", ROLE_POSITIONS, rows, DT_I64);
    ValueId x = make_input(g, "x", ROLE_OTHER, SHAPE(g->batch, g->seq, width), g->real);
    double **in = g->out->input;
    for (int64_t i = 0, pos = 0; i < n; i++, pos++) {
        if (i % g->seq == 0 || chance(g, 15)) pos = 0;
        in[0][i] = (double)draw(g, g->vocab);
        in[1][i] = chance(g, 15) ? -100 : (double)draw(g, g->vocab);
        in[2][i] = (double)pos;
    }
    for (int64_t i = 0; i < n * width; i++) in[3][i] = draw_real(g);
    give(g, tokens, true, true, 0);
    give(g, labels, true, true, 0);
    give(g, positions, true, true, 0);
    give(g, x, true, true, 1);
    give(g, build_iota(&g->b, SHAPE(g->seq), 0, draw(g, 3), 1, DT_I64), true, true, 0);
    give(g, build_binary_scalar(&g->b, OP_EQ, positions, 0), true, true, 0);
    Item table = make_param(g, SHAPE(g->vocab, width), 1);
    int64_t skip = chance(g, 80) ? -1 : draw(g, g->vocab);
    if (skip >= 0) g->out->smooth = false;  // its row gets no gradient
    ValueId hidden = build(&g->b, OP_EMBEDDING, 2, (ValueId[]){table.v, tokens}, 1, (Attr[]){attr_i(ATTR_SKIP, skip)});
    give(g, hidden, true, false, 1);
}

// ---- shapes ---------------------------------------------------------------------------------------------------------------

// Fewer dims than s or 1 where s is larger: broadcasts to s without changing it.
static bool broadcasts(const Shape *x, const Shape *s) {
    if (x->ndim > s->ndim) return false;
    for (int i = 0; i < x->ndim; i++)
        if (x->dim[i] != 1 && x->dim[i] != s->dim[i + s->ndim - x->ndim]) return false;
    return true;
}

Item fit(Gen *g, Item x, Shape s) {
    Builder *b = &g->b;
    Shape have = shape_at(g, x.v);
    if (shape_equal(&have, &s)) return x;
    int64_t n = shape_numel(&have), want = shape_numel(&s);
    if (n != want) x.v = build_reshape(b, x.v, SHAPE(n));
    if (n > want) x.v = build_slice(b, x.v, 0, draw(g, n - want + 1), 1, want);
    if (n < want) {
        int64_t times = ceil_div(want, n);
        x.v = build_reshape(b, build_broadcast(b, x.v, SHAPE(times, n)), SHAPE(times * n));
        x.v = build_slice(b, x.v, 0, 0, 1, want);
    }
    x.v = build_reshape(b, x.v, s);
    return x;
}

Item some_float(Gen *g, Shape s, bool broadcast) {
    int64_t n = g->floats.len, at = draw(g, n);
    for (int64_t i = 0; i < n && chance(g, 97); i++) {
        Item x = g->floats.data[(at + i) % n];
        Shape have = shape_at(g, x.v);
        if (broadcast ? broadcasts(&have, &s) : shape_equal(&have, &s)) return x;
    }
    for (int i = 0; i < s.ndim && broadcast; i++)
        if (chance(g, 30)) s.dim[i] = 1;
    while (broadcast && s.ndim > 0 && chance(g, 20)) {  // drop leading dims
        for (int i = 1; i < s.ndim; i++) s.dim[i - 1] = s.dim[i];
        s.ndim--;
    }
    return chance(g, 50) ? make_param(g, s, 1) : fit(g, pick_float(g), s);
}

ValueId mod_index(Gen *g, ValueId x, int64_t n) { return build_binary_scalar(&g->b, OP_MOD, x, (double)n); }

ValueId some_index(Gen *g, Shape s, int64_t n) { return mod_index(g, fit(g, pick_int(g), s).v, n); }

Item apart(Gen *g, Item x) {
    Item noise = make_param(g, shape_at(g, x.v), 1);
    return (Item){build_binary(&g->b, OP_ADD, x.v, noise.v), false, false, x.mag + 1};
}

// ---- a program ------------------------------------------------------------------------------------------------------------

static void add_step(Gen *g) {
    static void (*const family[])(Gen *) = {
        add_unary,    add_binary,   add_binary,   add_jump,     add_integer,   add_compare,   add_where,     add_movement,
        add_movement, add_movement, add_movement, add_movement, add_reduction, add_reduction, add_index,     add_index,
        add_order,    add_dot,      add_dot,      add_expert,   add_conv,      add_attention, add_attention, add_random};
    family[draw(g, sizeof family / sizeof *family)](g);
}

// sum(x * pattern) / sqrt(n): every element counts differently.
static ValueId weigh(Gen *g, Item x) {
    Builder *b = &g->b;
    Shape s = shape_at(g, x.v);
    int64_t n = shape_numel(&s);
    ValueId at = build_reshape(b, build_iota(b, SHAPE(n), 0, 1, 1, g->real), s);
    ValueId pattern = build_unary(b, OP_SIN, build_binary_scalar(b, OP_MUL, at, 0.3 + 0.1 * (double)draw(g, 9)));
    ValueId total = build_sum_all(b, build_binary(b, OP_MUL, x.v, pattern));
    return build_binary_scalar(b, OP_MUL, total, 1 / (sqrt((double)n) * (1 + x.mag)));
}

// Mean cross-entropy of some value as logits against the labels that are not -100.
static ValueId cross_entropy(Gen *g) {
    Builder *b = &g->b;
    ValueId labels = g->ints.data[1].v;
    Item x = fit(g, pick_float(g), SHAPE(g->batch, g->seq, g->vocab));
    ValueId valid = build_binary_scalar(b, OP_GE, labels, 0);
    ValueId safe = build_where(b, valid, labels, build_scalar(b, DT_I64, 0));
    ValueId lse = build_reshape(b, build_reduce(b, OP_LOGSUMEXP, x.v, 2), SHAPE(g->batch, g->seq));
    ValueId nll = build_binary(b, OP_SUB, lse, build_binary(b, OP_PICK, x.v, safe));
    ValueId sum = build_sum_all(b, build_where(b, valid, nll, build_scalar(b, g->real, 0)));
    ValueId count = build_sum_all(b, build_cast(b, valid, g->real));
    return build_binary(b, OP_DIV, sum, build_binary_scalar(b, OP_ADD, count, 0.5));
}

// Logits as output layers make them: rows cut or flattened before or after, scaled, capped, as a log-softmax, smoothed, with a
// z-loss.
static ValueId output_layer(Gen *g) {
    Builder *b = &g->b;
    Item h = fit(g, pick_float(g), SHAPE(g->batch, g->seq, g->width));
    bool cut = g->seq > 1 && chance(g, 40), swapped = chance(g, 20), stored_t = chance(g, 20);
    ValueId w = make_param(g, stored_t ? SHAPE(g->width, g->vocab) : SHAPE(g->vocab, g->width), 1).v;
    ValueId x = swapped ? build_transpose(b, h.v, 0, 1) : h.v, labels = g->ints.data[1].v;
    ValueId z = build_binary_scalar(b, OP_MUL, build_dot(b, x, w, 0, 1, false, !stored_t), 1 / (1 + h.mag));
    if (swapped) z = build_transpose(b, z, 0, 1);
    int64_t length = g->seq - (cut ? 1 : 0), rows = g->batch * length;
    if (cut) z = build_slice(b, z, 1, 0, 1, length), labels = build_slice(b, labels, 1, 1, 1, length);
    if (chance(g, 30)) z = build_binary_scalar(b, OP_MUL, build_unary(b, OP_TANH, build_binary_scalar(b, OP_DIV, z, 1.5)), 1.5);
    bool flat = chance(g, 60);
    if (flat) z = build_reshape(b, z, SHAPE(rows, g->vocab)), labels = build_reshape(b, labels, SHAPE(rows));
    int last = flat ? 1 : 2;
    ValueId valid = build_binary_scalar(b, OP_GE, labels, 0), zero = build_scalar(b, g->real, 0), lse, nll;
    ValueId safe = build_where(b, valid, labels, build_scalar(b, DT_I64, 0));
    if (chance(g, 25)) {
        ValueId log_p = build_binary(b, OP_SUB, z, build_reduce(b, OP_LOGSUMEXP, z, last));
        nll = lse = build_unary(b, OP_NEG, build_binary(b, OP_PICK, log_p, safe));
    } else {
        lse = build_squeeze(b, build_reduce(b, OP_LOGSUMEXP, z, last), last);
        nll = build_binary(b, OP_SUB, lse, build_binary(b, OP_PICK, z, safe));
        if (chance(g, 25))
            nll = build_binary(b, OP_SUB, nll,
                               build_binary_scalar(b, OP_MUL, build_squeeze(b, build_sum(b, z, 1, &last), last), 0.05));
        if (chance(g, 25))
            nll = build_binary(b, OP_ADD, nll, build_binary_scalar(b, OP_MUL, build_binary(b, OP_MUL, lse, lse), 0.1));
    }
    ValueId loss = build_binary_scalar(b, OP_DIV, build_sum_all(b, build_where(b, valid, nll, zero)), (double)rows);
    if (chance(g, 10))
        loss = build_binary(b, OP_ADD, loss,
                            build_binary_scalar(b, OP_DIV, build_sum_all(b, build_binary(b, OP_MUL, z, z)), (double)rows));
    return loss;
}

static void finish(Gen *g, int nops) {
    Builder *b = &g->b;
    g->rng = random_mix(g->rng + (uint64_t)nops);
    const int32_t *uses = graph_use_counts(g->g, g->a);
    ValueId loss = weigh(g, g->floats.data[1]);  // 1: depends on a parameter
    int ends = 0;
    for (int64_t i = g->floats.len - 1; i > 1 && ends < 8; i--)
        if (!uses[g->floats.data[i].v]) {  // what nobody reads would be dead
            loss = build_binary(b, OP_ADD, loss, weigh(g, g->floats.data[i]));
            ends++;
        }
    if (!ends || chance(g, 30)) loss = build_binary(b, OP_ADD, loss, weigh(g, pick_float(g)));
    if (chance(g, 60)) loss = build_binary(b, OP_ADD, loss, cross_entropy(g));
    if (chance(g, 40)) loss = build_binary(b, OP_ADD, loss, output_layer(g));
    CHECK(b->status == ST_OK, "the generator made a node that is refused: %s", g->d.text);
    graph_add_output(g->g, OUT_LOSS, -1, 0, "loss", loss);
}

void random_graph(Arena *a, uint64_t seed, int nops, DType real, RandomGraph *out) {
    *out = (RandomGraph){.g = graph_new(a, "random", 1), .smooth = true};
    Gen g = {.out = out, .g = out->g, .a = a, .real = real, .rng = random_mix(seed + 1)};
    g.b = (Builder){.g = g.g, .d = &g.d, .source = "random"};
    g.batch = draw_in(&g, 1, 3);
    g.seq = chance(&g, 30) ? draw_in(&g, 1, 4) : draw_in(&g, 5, 20);
    g.width = draw_in(&g, 1, 8);
    g.vocab = draw_in(&g, 2, 11);
    g.g->batch = g.batch;
    g.g->seq = g.seq;
    make_inputs(&g);
    for (int i = 0; i < nops; i++) add_step(&g);
    finish(&g, nops);
    vec_free(&g.floats);
    vec_free(&g.ints);
    vec_free(&g.bools);
}
