#include "remat_case.h"

#include <math.h>

#include "base/random.h"
#include "ir/build.h"
#include "ops/op.h"

uint64_t remat_draw(uint64_t *rng, uint64_t n) {
    *rng += UINT64_C(0x9E3779B97F4A7C15);
    return random_mix(*rng) % n;
}
double remat_draw_log(uint64_t *rng, double lo, double hi) {
    return lo * pow(hi / lo, (double)remat_draw(rng, 1 << 20) / (double)(1 << 20));
}

// ---- a program ---------------------------------------------------------------------------------------------------------------
typedef struct Gen {
    uint64_t rng;
    Graph *g;
    Builder b;
    int64_t seq;
    VEC(ValueId) pool;  // [1, seq, width]
} Gen;

static int64_t width_of(const Gen *g, ValueId v) { return build_shape(&g->b, v).dim[2]; }

static ValueId param(Gen *g, Shape s) {
    int64_t i = g->g->params.len;
    vec_push(&g->g->params, ((Param){.name = arena_printf(g->g->arena, "p%lld", (long long)i), .shape = s, .dtype = DT_F32, .trainable = true}));
    return build(&g->b, OP_PARAM, 0, NULL, 3, (Attr[]){attr_i(ATTR_INDEX, i), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, DT_F32)});
}

static ValueId times(Gen *g, ValueId x, int64_t width) {
    return build_dot(&g->b, x, param(g, SHAPE(width_of(g, x), width)), 0, 1, false, false);
}

static int64_t some_width(Gen *g) { return (int64_t)16 << remat_draw(&g->rng, 6); }

static ValueId late(Gen *g) {
    int64_t n = g->pool.len, a = (int64_t)remat_draw(&g->rng, (uint64_t)n), b = (int64_t)remat_draw(&g->rng, (uint64_t)n);
    return g->pool.data[a > b ? a : b];
}

static ValueId another(Gen *g, ValueId x) {  // of the same width
    for (int k = 0; k < 8; k++) {
        ValueId y = late(g);
        if (y != x && width_of(g, y) == width_of(g, x)) return y;
    }
    return times(g, late(g), width_of(g, x));
}

static ValueId attention(Gen *g, ValueId x) {
    Builder *b = &g->b;
    enum { HEADS = 4, WIDTH = 16 };
    ValueId qkv[3], out[2];
    for (int k = 0; k < 3; k++)
        qkv[k] = build_transpose(b, build_reshape(b, times(g, x, HEADS * WIDTH), SHAPE(1, g->seq, HEADS, WIDTH)), 1, 2);
    Attr attr[] = {attr_f(ATTR_SCALE, 0.25), attr_i(ATTR_MASKED_ROW, 0)};
    build_multi(b, OP_ATTENTION, 3, qkv, 2, attr, 2, out);
    return build_reshape(b, build_transpose(b, out[0], 1, 2), SHAPE(1, g->seq, HEADS * WIDTH));
}

static void add_step(Gen *g) {
    static const OpKind unary[] = {OP_TANH, OP_EXP, OP_SIN, OP_SIGMOID};
    ValueId x = late(g), y;
    Builder *b = &g->b;
    switch (remat_draw(&g->rng, 8)) {
    case 0:
    case 1:
    case 2: y = times(g, x, some_width(g)); break;
    case 3: y = build_unary(b, unary[remat_draw(&g->rng, 4)], x); break;
    case 4: y = build_binary(b, OP_ADD, x, another(g, x)); break;
    case 5: y = build_binary(b, OP_MUL, x, another(g, x)); break;
    case 6: y = build_binary(b, OP_MUL, x, build_reduce(b, OP_LOGSUMEXP, x, 2)); break;
    default: y = remat_draw(&g->rng, 3) ? build_unary(b, OP_TANH, times(g, x, some_width(g))) : attention(g, x);
    }
    vec_push(&g->pool, y);
}

static Graph *program(Arena *a, uint64_t *rng) {
    Diag d = {0};
    Gen g = {.rng = *rng, .g = graph_new(a, "random", 1)};
    g.b = (Builder){.g = g.g, .d = &d};
    g.seq = (int64_t)1024 << remat_draw(&g.rng, 6);
    g.g->batch = 1, g.g->seq = g.seq;
    int64_t width = some_width(&g);
    Input in = {.name = "x", .role = ROLE_OTHER, .shape = SHAPE(1, g.seq, width), .dtype = DT_F32, .seq_dim = 1, .batch_dim = 0};
    vec_push(&g.g->inputs, in);
    ValueId x = build(&g.b, OP_INPUT, 0, NULL, 1, (Attr[]){attr_i(ATTR_INDEX, 0)}), loss = NO_VALUE;
    vec_push(&g.pool, times(&g, x, some_width(&g)));
    for (int n = 2 + (int)remat_draw(&g.rng, 11); n > 0; n--) add_step(&g);
    const int32_t *uses = graph_use_counts(g.g, a);
    for (int64_t i = g.pool.len; i-- > 0;) {  // what nobody reads would be dead
        if (uses[g.pool.data[i]] && i + 1 < g.pool.len) continue;
        ValueId sum = build_sum_all(&g.b, build_unary(&g.b, OP_SIN, g.pool.data[i]));
        loss = loss == NO_VALUE ? sum : build_binary(&g.b, OP_ADD, loss, sum);
    }
    CHECK(g.b.status == ST_OK, "the generator made a node that is refused: %s", d.text);
    graph_add_output(g.g, OUT_LOSS, -1, 0, "loss", loss);
    vec_free(&g.pool);
    *rng = g.rng;
    return g.g;
}

// ---- as kernels ----------------------------------------------------------------------------------------------------------------
// Rates such that arithmetic, memory or launches may be what counts.
static void random_device(RematCase *c, uint64_t *rng) {
    RateCurve product = {.n = 1, .at = {1}, .rate = {remat_draw_log(rng, 1e11, 1e15)}};
    c->device = (DeviceModel){.name = "random",
                              .backend = "cpu",
                              .units = 1,
                              .tile = 1,
                              .nattention = 1,
                              .attention = {{.kernel = "cpu", .head = 16, .forward = product, .backward = product}},
                              .vector_flops = 1e15,
                              .mem_bandwidth = remat_draw_log(rng, 1e10, 1e13),
                              .other_efficiency = 1,
                              .link_bandwidth = remat_draw_log(rng, 1e9, 1e12),
                              .link_latency_s = remat_draw_log(rng, 1e-6, 1e-4),
                              .kernel_latency_s = remat_draw_log(rng, 1e-7, 1e-5),
                              .to_host_bandwidth = remat_draw_log(rng, 1e9, 1e12),
                              .from_host_bandwidth = remat_draw_log(rng, 1e9, 1e12),
                              .host_latency_s = remat_draw_log(rng, 1e-6, 1e-4)};
    for (int i = 0; i < PRODUCT_NTYPE; i++)
        for (int k = 0; k < PRODUCT_NFORM; k++) c->device.product[i][k] = product;
}

// What is needed after the forward, and what that is computed from.
static int find_values(RematCase *c, int most) {
    const Graph *g = c->r.g;
    bool *matters = ARENA_ARRAY(c->arena, bool, g->values.len);
    int n = 0;
    for (int64_t i = g->nodes.len; i-- > 0;) {
        const Node *node = graph_node(g, (NodeId)i);
        bool any = false;
        for (int k = 0; k < node->nout; k++) {
            ValueId v = node->out[k];
            matters[v] |= c->r.needed[v];
            if (!matters[v] || !c->r.forward[v]) continue;
            any = true;
            if (n < most) c->value[n] = v;
            n++;
        }
        for (int k = 0; k < node->nin && any; k++) matters[c->r.root[node->in[k]]] = true;
    }
    return n;
}

bool remat_case_make(RematCase *c, uint64_t number, int least, int most) {
    uint64_t rng = random_mix(number + 1);
    Diag d = {0};
    *c = (RematCase){.arena = arena_new()};
    random_device(c, &rng);
    CompileOptions o;
    compile_defaults(&o);
    o.nranks = remat_draw(&rng, 3) ? 1 : 2 + (int)remat_draw(&rng, 3);
    o.nthreads = 1;
    o.no_fuse = remat_draw(&rng, 2);
    o.update = remat_draw(&rng, 2);
    o.features = remat_draw(&rng, 2) ? BACKEND_EPILOGUE : 0;
    o.device = &c->device;
    o.stop_after = "narrow";
    Graph *g = program(c->arena, &rng);
    Arena *own = c->arena;
    c->arena = arena_new();
    Status st = compile_graph(own, g, &o, &c->out, &d);
    CHECK(st == ST_OK, "program %llu: %s", (unsigned long long)number, d.text);
    c->plan = (PlanOptions){.backend = &backend_cpu, .device = &c->device, .nthreads = 1};
    st = remat_analyse(&c->r, c->out.graph, &c->plan, c->arena, &d);
    CHECK(st == ST_OK, "program %llu: %s", (unsigned long long)number, d.text);
    c->nvalue = find_values(c, most);
    if (c->nvalue >= least && c->nvalue <= most) return true;
    remat_case_free(c);
    return false;
}

void remat_case_free(RematCase *c) {
    compiled_free(&c->out);
    arena_free(c->arena);
}

void remat_case_choice(const RematCase *c, uint32_t bits, uint8_t *choice) {
    const Graph *g = c->r.g;
    for (int64_t v = 0; v < g->values.len; v++) choice[v] = CHOICE_KEEP;
    for (int i = 0; i < c->nvalue; i++) choice[c->value[i]] = (bits >> i & 1) ? CHOICE_AGAIN : CHOICE_KEEP;
    for (int64_t v = 0; v < g->values.len; v++) choice[v] = choice[c->r.root[v]];
}
