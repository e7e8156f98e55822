// Random programs through every pass, the plan and the runtime, in float64 and in float32. What must hold, whatever the number of
// ranks, the placements and the strategies chosen, with fusion or without:
//   - the loss and every gradient after any pass, by the reference executor, are those of the program differentiated as it was
//   made;
//   - that gradient is the slope of the loss (central differences);
//   - the runtime computes the same loss, gradients and AdamW update.
// Asked for in bf16, a graph has the same values by the reference, which does not round; the CPU cannot run it and says so.
// Passes that make use of what only devices have are tried with a backend that claims to have it.
// A failure names the iteration; FUZZ_NOPS=n runs it with n steps only (the report says which number still fails). FUZZ_DUMP=1
// prints the final graph. FUZZ_ROWS=1 compares only before and after fusing with views and rows.
#include <math.h>
#include <stdarg.h>

#include "backend/backend.h"
#include "base/random.h"
#include "driver/driver.h"
#include "exec/exec.h"
#include "fuzz.h"
#include "ir/views.h"
#include "random_graph.h"

enum { STEP = 3, RUN_SEED = 77 };

// What one way of computing gave: the loss, and the gradients by parameter, NULL where there is none.
typedef struct Result {
    double loss;
    double *grad[RANDOM_MAX_PARAMS];
} Result;

typedef struct Case {
    uint64_t seed;
    int nops;
    uint64_t rng;        // of the configuration
    Arena *arena;        // results, and what is compared
    RandomGraph plain;   // its arena is `arena`
    Result want;
    DType real;          // of the compilation at hand
    Str why;             // the failure
} Case;

static uint64_t config(Case *c, uint64_t n) {
    c->rng += UINT64_C(0x9E3779B97F4A7C15);
    return random_mix(c->rng) % n;
}

static bool failed(Case *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool failed(Case *c, const char *fmt, ...) {
    char text[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    str_printf(&c->why, "  %s\n", text);
    return false;
}

// ---- evaluating by the reference ------------------------------------------------------------------------------------------

static const double hyper[3] = {0.01, 1 - 0.9, 1 - 0.95};

static bool evaluate(Case *c, const Graph *g, const double *const *params, Result *r, Diag *d) {
    double **out = ARENA_ARRAY(c->arena, double *, g->outputs.len);
    for (int64_t i = 0; i < g->outputs.len; i++)
        out[i] = ARENA_ARRAY(c->arena, double, shape_numel(graph_shape(g, g->outputs.data[i].value)));
    Reference ref = {
        .run_seed = RUN_SEED, .step = STEP, .inputs = (const double *const *)c->plain.input, .params = params, .hyper = hyper};
    if (reference_run(g, &ref, out, d) != ST_OK) return false;
    *r = (Result){0};
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        if (o->kind == OUT_LOSS) r->loss = out[i][0];
        if (o->kind == OUT_GRAD) r->grad[o->param] = out[i];
    }
    return true;
}

static double norm(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; x && i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

static int64_t param_numel(const Case *c, int64_t p) { return shape_numel(&c->plain.g->params.data[p].shape); }

// In float64 what differs by more than the order of sums is wrong; float32 is given what rounding does over some dozen steps.
// Gradients that are nearly zero by cancellation are measured against all of them.
static bool same(Case *c, const Result *r, bool gradients, const char *what) {
    bool f64 = c->real == DT_F64;
    if (!(fabs(r->loss - c->want.loss) <= (f64 ? 1e-9 : 1e-4) * (1 + fabs(c->want.loss))))
        return failed(c, "%s: the loss is %.17g, expected %.17g", what, r->loss, c->want.loss);
    if (!gradients) return true;
    double all = 0;
    for (int64_t p = 0; p < c->plain.g->params.len; p++) all = hypot(all, norm(c->want.grad[p], param_numel(c, p)));
    for (int64_t p = 0; p < c->plain.g->params.len; p++) {
        const double *a = r->grad[p], *b = c->want.grad[p];
        double diff = 0, size = norm(b, param_numel(c, p));
        for (int64_t i = 0; i < param_numel(c, p); i++) {
            double e = (a ? a[i] : 0) - (b ? b[i] : 0);
            diff += e * e;
        }
        if (!(sqrt(diff) <= (f64 ? 1e-8 * (size + 1e-2 * all + 1e-6) : 1e-3 * (size + 0.1 * all + 1e-3))))
            return failed(c, "%s: the gradient of p%lld differs by %.3g, its norm is %.3g, of all %.3g%s", what, (long long)p,
                          sqrt(diff), size, all, a ? "" : " (it has none)");
    }
    return true;
}

// ---- the oracle -----------------------------------------------------------------------------------------------------------

// The program as it was made, then differentiated; attention as imported must become `attention` first.
static bool oracle(Case *c, bool *usable) {
    Diag d = {0};
    Result forward;
    *usable = false;
    if (!evaluate(c, c->plain.g, (const double *const *)c->plain.param, &forward, &d)) return failed(c, "reference: %s", d.text);
    if (!isfinite(forward.loss)) return true;  // the program itself is no good
    Arena *scratch = arena_new();
    PassContext pc = {.scratch = scratch, .nranks = 1};
    Graph *g = c->plain.g, *next = NULL;
    Status st = ST_OK;
    if (c->plain.sdpa) {
        st = pass_canonicalize(&pc, g, &next, &d);
        if (st == ST_OK) st = pass_mask(&pc, g = next, &next, &d);
        g = next;
    }
    if (st == ST_OK) st = pass_grad(&pc, g, &next, &d);
    bool ok = st == ST_OK && evaluate(c, next, (const double *const *)c->plain.param, &c->want, &d);
    arena_free(scratch);
    if (!ok) return failed(c, "oracle: %s", d.text);
    double loss = forward.loss;
    if (!(fabs(loss - c->want.loss) <= 1e-9 * (1 + fabs(loss))))
        return failed(c, "with its gradient the loss is %.17g, without %.17g", c->want.loss, loss);
    for (int64_t p = 0; p < c->plain.g->params.len; p++)
        for (int64_t i = 0; c->want.grad[p] && i < param_numel(c, p); i++)
            if (!isfinite(c->want.grad[p][i])) return failed(c, "the gradient of p%lld is not finite", (long long)p);
    *usable = true;
    return true;
}

// The loss at parameters moved by h along a direction.
static bool loss_along(Case *c, double *const *direction, double h, double *loss) {
    Arena *a = arena_new();
    const double *moved[RANDOM_MAX_PARAMS];
    for (int64_t p = 0; p < c->plain.g->params.len; p++) {
        double *x = ARENA_ARRAY(a, double, param_numel(c, p));
        for (int64_t i = 0; i < param_numel(c, p); i++) x[i] = c->plain.param[p][i] + h * direction[p][i];
        moved[p] = x;
    }
    Diag d = {0};
    Result r;
    bool ok = evaluate(c, c->plain.g, moved, &r, &d);
    *loss = r.loss;
    arena_free(a);
    return ok || failed(c, "reference: %s", d.text);
}

// Central differences along one random direction, at three distances: near a kink one of them still agrees.
static bool slope(Case *c) {
    if (!c->plain.smooth) return true;
    double *direction[RANDOM_MAX_PARAMS], want = 0, all = 0, best = INFINITY, nearest = 0;
    for (int64_t p = 0; p < c->plain.g->params.len; p++) {
        direction[p] = ARENA_ARRAY(c->arena, double, param_numel(c, p));
        for (int64_t i = 0; i < param_numel(c, p); i++) {
            direction[p][i] = (double)config(c, 2001) / 1000 - 1;
            if (c->want.grad[p]) want += direction[p][i] * c->want.grad[p][i];
        }
        all = hypot(all, norm(c->want.grad[p], param_numel(c, p)));
    }
    for (int k = 0; k < 3; k++) {
        double h = pow(10, -4 - k), up, down;
        if (!loss_along(c, direction, h, &up) || !loss_along(c, direction, -h, &down)) return false;
        double got = (up - down) / (2 * h);
        if (fabs(got - want) < best) best = fabs(got - want), nearest = got;
    }
    return best <= 1e-3 * (fabs(want) + all + 1e-2) ||
           failed(c, "the slope of the loss is %.9g, by its gradient %.9g (gradient's norm %.3g)", nearest, want, all);
}

// ---- compiling ------------------------------------------------------------------------------------------------------------

typedef struct Setup {
    CompileOptions o;
    Backend backend;
    DeviceModel device;
    char text[256];
} Setup;

// Rates over many orders of magnitude: with free links everything is divided, with slow ones nothing.
static double random_rate(Case *c, double least) { return least * pow(10, (double)config(c, 7)); }

static Status run_nothing(const KernelArgs *k, Diag *d) {
    return (void)k, diag_error(d, ST_UNSUPPORTED, "a kernel of no device");
}
static KernelFn any_kernel(OpKind op, DType real) { return (void)op, (void)real, run_nothing; }
static size_t no_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    return (void)n, (void)in, (void)out, (void)nthreads, 0;
}

static void random_setup(Case *c, Setup *s) {
    compile_defaults(&s->o);
    s->o.nranks = 1 + (int)config(c, 6);
    s->o.nthreads = 1 + (int)config(c, 2);
    s->o.attention = (AttentionChoice)config(c, 3);
    s->o.update = config(c, 2);
    s->o.no_fuse = config(c, 3) == 0;
    s->o.adamw.clip_norm = config(c, 2) ? 0.5 : 0;
    s->o.memory.tile_rows = config(c, 3) ? 1 + (int64_t)config(c, 9) : 0;
    s->o.memory.tile_align = config(c, 4) ? 0 : 16;
    s->o.verify_each = true;
    s->o.square_limit_nbytes = 1e18;
    c->real = config(c, 3) ? DT_F64 : DT_F32;
    s->backend = backend_cpu;
    if (config(c, 2)) s->backend.features |= BACKEND_EPILOGUE;  // the CPU's dot adds a third operand too
    s->o.backend = &s->backend;
    if (c->real == DT_F32 && config(c, 3)) s->o.compute = DT_BF16;
    if (s->o.compute == DT_BF16 && config(c, 2)) {  // plans only
        s->backend.features |= BACKEND_BF16 | BACKEND_FUSE_ROWS | BACKEND_EPILOGUE;
        s->backend.kernel = any_kernel;
        s->backend.scratch = no_scratch;
    }
    s->device = *device_model_cpu();
    if (config(c, 6)) {
        RateCurve product = {1, {1}, {random_rate(c, 1e3)}}, attention = {1, {1}, {random_rate(c, 1e3)}};
        s->device = (DeviceModel){.name = "random",
                                  .product = {{product, product, product}},
                                  .nattention = 1,
                                  .attention = {{.head = 64, .forward = attention, .backward = attention}},
                                  .vector_flops = random_rate(c, 1e3),
                                  .mem_bandwidth = random_rate(c, 1e3),
                                  .link_bandwidth = random_rate(c, 1e5),
                                  .link_latency_s = 1 / random_rate(c, 1e4),
                                  .kernel_latency_s = 1 / random_rate(c, 1e4)};
    }
    s->o.device = &s->device;
    snprintf(s->text, sizeof s->text, "%s%s%s, %d ranks, %d threads, tile %d, attention %s%s%s", dtype_name(c->real),
             s->o.compute == DT_BF16 ? " (bf16)" : "", s->backend.features & BACKEND_EPILOGUE ? ", epilogue" : "", s->o.nranks,
             s->o.nthreads, (int)s->o.memory.tile_rows, attention_choice_name(s->o.attention), s->o.update ? ", update" : "",
             s->o.no_fuse ? ", no fuse" : "");
}

static void dump(const Graph *g) {
    Str text = {0};
    graph_print(g, &text);
    fputs(str_text(&text), stderr);
    str_free(&text);
}

// Compiles up to `stop` (NULL: all). False with nothing in c->why: a forced strategy is not possible here.
static bool compile(Case *c, Setup *s, const char *stop, Compiled *out) {
    Diag d = {0};
    Arena *a = arena_new();
    RandomGraph g;
    random_graph(a, c->seed, c->nops, c->real, &g);
    s->o.stop_after = stop;
    *out = (Compiled){0};
    Status st = compile_graph(a, g.g, &s->o, out, &d);
    if (st == ST_OK) return true;
    if (getenv("FUZZ_DUMP")) dump(out->graph);
    compiled_free(out);
    if (st == ST_UNSUPPORTED && s->o.attention != ATTN_AUTO && strstr(d.text, "strategy")) return false;
    return failed(c, "%s: %s: %s", s->text, status_name(st), d.text);
}

static bool after_pass(Case *c, Setup *s, const char *pass) {
    Compiled out;
    if (!compile(c, s, pass, &out)) return c->why.len == 0;
    Diag d = {0};
    Result r;
    bool gradients = false;
    for (int64_t i = 0; i < out.graph->outputs.len; i++) gradients |= out.graph->outputs.data[i].kind == OUT_GRAD;
    char what[400];
    snprintf(what, sizeof what, "after %s, %s", pass, s->text);
    bool ok = evaluate(c, out.graph, (const double *const *)c->plain.param, &r, &d) ? same(c, &r, gradients, what)
                                                                                    : failed(c, "%s: %s", what, d.text);
    compiled_free(&out);
    return ok;
}

// How often the second form was met, so that nobody takes an empty comparison for a test.
static struct {
    long graphs, kernels, views, rows, col_sums, windows, divided;
    long tiled, parts, divided_parts, nested, assembled;
} met;

static void count_tiles(const Graph *g) {
    bool any = false;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        any |= n->op == OP_PART;
        met.parts += n->op == OP_PART;
        met.divided_parts += n->op == OP_PART && graph_value(g, n->out[0])->place.kind == PLACE_SHARD;
        met.nested += n->op == OP_PART && graph_def(g, n->in[0])->op == OP_PART;
        met.assembled += n->op == OP_ASSEMBLE;
    }
    met.tiled += any;
}

static void count_met(const Graph *g) {
    met.graphs++;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_FUSED) continue;
        const Program *p = node_prog(n, ATTR_PROG);
        View view[64];
        Diag d = {0};
        bool windows = false;
        if (views_decode(n, view, &d) == ST_OK)
            for (int k = 0; k < n->nin; k++) windows |= view[k].nwin > 0;
        met.kernels++;
        met.windows += windows;
        met.views += node_attr(n, ATTR_VIEWS) != NULL;
        met.rows += node_attr(n, ATTR_ROW) != NULL;
        bool second = node_attr(n, ATTR_VIEWS) || node_attr(n, ATTR_ROW);
        met.divided += second && graph_value(g, n->out[0])->place.kind != PLACE_REPLICATE;
        for (int k = 0; k < p->ninstr; k++) met.col_sums += p->instr[k].code == PROG_COL_SUM;
    }
}

// The form for backends with views and rows: the reference makes of it what it made of the nodes before, up to rounding.
static bool fused_rows(Case *c, const Setup *setup) {
    static const char *const stop[] = {"shard", "fuse", "tile"};
    Setup s = *setup;
    s.o.features = BACKEND_FUSE_ROWS;
    s.o.compute = DT_F32;
    s.o.no_fuse = false;
    Result want = c->want, r;
    bool ok = true;
    for (int k = 0; k < 3 && ok; k++) {
        Compiled out;
        if (!compile(c, &s, stop[k], &out)) {
            ok = c->why.len == 0;
            break;
        }
        Diag d = {0};
        char what[400];
        snprintf(what, sizeof what, "after %s with rows, %s", stop[k], s.text);
        DType real = c->real;
        ok = evaluate(c, out.graph, (const double *const *)c->plain.param, &r, &d) || failed(c, "%s: %s", what, d.text);
        c->real = DT_F64;
        if (k == 0) c->want = r;
        else ok = ok && same(c, &r, true, what);
        c->real = real;
        if (k == 1) count_met(out.graph);
        if (k == 2) count_tiles(out.graph);
        if (!ok && getenv("FUZZ_DUMP")) dump(out.graph);
        compiled_free(&out);
    }
    c->want = want;
    return ok;
}

// ---- running --------------------------------------------------------------------------------------------------------------

static Status set_values(Case *c, const Graph *g, Runtime *rt, Diag *d) {
    for (int64_t i = 0; i < c->plain.g->inputs.len; i++) {
        const Input *in = &g->inputs.data[i];
        void *data = ARENA_ARRAY(c->arena, double, shape_numel(&in->shape));
        TRY(tensor_convert(c->plain.input[i], DT_F64, data, in->dtype, shape_numel(&in->shape), d));
        TRY(runtime_set_input(rt, (int32_t)i, data, d));
    }
    for (int64_t p = 0; p < g->params.len; p++) TRY(runtime_set_state(rt, (int32_t)p, 0, c->plain.param[p], DT_F64, d));
    return runtime_set_hyper(rt, hyper, d);
}

// The first AdamW step from zero moments, by its definition.
static bool updated(Case *c, const Setup *s, const Compiled *out, Runtime *rt, const Result *r) {
    double scale = 1, all = 0;
    const AdamWOptions *o = &s->o.adamw;
    for (int64_t p = 0; p < c->plain.g->params.len; p++) all = hypot(all, norm(r->grad[p], param_numel(c, p)));
    if (o->clip_norm > 0) scale = fmin(1, o->clip_norm / (all + 1e-6));
    for (int64_t i = 0; i < out->graph->outputs.len; i++) {
        const Output *x = &out->graph->outputs.data[i];
        if (x->kind != OUT_STATE || x->slot != 0) continue;
        int64_t n = param_numel(c, x->param);
        double *got = ARENA_ARRAY(c->arena, double, n);
        Diag d = {0};
        if (runtime_get_state(rt, x->param, 0, got, DT_F64, &d) != ST_OK) return failed(c, "%s: %s", s->text, d.text);
        for (int64_t k = 0; k < n; k++) {
            double p = c->plain.param[x->param][k], g = scale * r->grad[x->param][k], m = (1 - o->beta1) * g,
                   v = (1 - o->beta2) * g * g;
            double want = p * (1 - hyper[0] * o->weight_decay) - hyper[0] * (m / hyper[1]) / (sqrt(v / hyper[2]) + o->eps);
            if (!(fabs(got[k] - want) <= (c->real == DT_F64 ? 1e-9 : 2e-6) * (1 + fabs(want))))
                return failed(c, "%s: after the update p%d[%lld] is %.12g, expected %.12g", s->text, x->param, (long long)k,
                              got[k], want);
        }
    }
    return true;
}

static bool execute(Case *c, Setup *s, Compiled *out) {
    Diag d = {0};
    Runtime *rt = NULL;
    Result r = {0};
    Status st = runtime_new(out->plan, RUN_SEED, &rt, &d);
    if (st == ST_OK) st = set_values(c, out->graph, rt, &d);
    if (st == ST_OK) st = runtime_step(rt, STEP, &r.loss, &d);
    for (int64_t i = 0; st == ST_OK && i < out->graph->outputs.len; i++) {
        const Output *o = &out->graph->outputs.data[i];
        if (o->kind != OUT_GRAD) continue;
        r.grad[o->param] = ARENA_ARRAY(c->arena, double, param_numel(c, o->param));
        st = runtime_get_output(rt, (int)i, r.grad[o->param], &d);
    }
    bool ok = st == ST_OK || failed(c, "%s: running: %s", s->text, d.text);
    for (int k = 0; ok && k < s->o.nranks; k++)
        if (runtime_arena_nbytes(rt, k) != out->plan->rank[k].arena_nbytes)
            ok = failed(c, "%s: rank %d allocated other than planned", s->text, k);
    char what[400];
    snprintf(what, sizeof what, "running, %s", s->text);
    ok = ok && same(c, &r, true, what) && (!s->o.update || updated(c, s, out, rt, &r));
    runtime_free(rt);
    return ok;
}

static bool round_trip(Case *c, const Graph *g) {
    Arena *a = arena_new();
    Str once = {0}, twice = {0};
    Graph *back = NULL;
    Diag d = {0};
    graph_print(g, &once);
    bool ok =
        graph_parse(a, str_text(&once), "printed", &back, &d) == ST_OK || failed(c, "parsing the printed graph: %s", d.text);
    if (ok) graph_print(back, &twice);
    if (ok && strcmp(str_text(&once), str_text(&twice))) ok = failed(c, "the graph prints otherwise once parsed");
    if (back) graph_free_vecs(back);
    str_free(&once);
    str_free(&twice);
    arena_free(a);
    return ok;
}

// ---- one case -------------------------------------------------------------------------------------------------------------

// What is asked for in bf16: every pass, and the error in place of a plan, or the plan of a backend that claims to have it.
static bool passes_in_bf16(Case *c, Setup *s) {
    int n;
    const char *const *passes = pass_names(&n);
    for (int i = 1; i < n - 1; i++)
        if (!after_pass(c, s, passes[i])) return false;
    Compiled out;
    if (s->backend.features & BACKEND_BF16) {
        if (!compile(c, s, NULL, &out)) return c->why.len == 0;
        compiled_free(&out);
        return true;
    }
    if (compile(c, s, NULL, &out)) {
        bool any = false;
        for (int64_t v = 0; v < out.graph->values.len; v++) any |= graph_value(out.graph, (ValueId)v)->dtype == DT_BF16;
        compiled_free(&out);
        return !any || failed(c, "%s: the CPU planned bf16", s->text);
    }
    bool refused = c->why.len == 0 || strstr(str_text(&c->why), "--device cuda");
    if (refused) str_free(&c->why);
    return refused;
}

static bool configurations(Case *c) {
    int n;
    const char *const *passes = pass_names(&n);
    for (int k = 0; k < 3; k++) {
        Setup s;
        random_setup(c, &s);
        if (getenv("FUZZ_ROWS")) {
            if (!fused_rows(c, &s)) return false;
            continue;
        }
        if (s.o.compute == DT_BF16) {
            if (!passes_in_bf16(c, &s)) return false;
            continue;
        }
        if (!after_pass(c, &s, passes[config(c, (uint64_t)n - 1)])) return false;
        if (!fused_rows(c, &s)) return false;
        Compiled out;
        if (!compile(c, &s, NULL, &out)) {
            if (c->why.len) return false;
            continue;
        }
        count_tiles(out.graph);
        bool ok = execute(c, &s, &out) && (k || round_trip(c, out.graph));
        if (!ok && getenv("FUZZ_DUMP")) dump(out.graph);
        compiled_free(&out);
        for (int i = 1; !ok && i < n - 1; i++)  // which pass was it?
            if (!after_pass(c, &s, passes[i])) break;
        if (!ok) return false;
    }
    return true;
}

static bool run_case(uint64_t seed, int nops, Str *why) {
    Case c = {.seed = seed, .nops = nops, .rng = seed * 31 + (uint64_t)nops, .arena = arena_new()};
    random_graph(c.arena, seed, nops, DT_F64, &c.plain);
    bool usable, ok = oracle(&c, &usable);
    if (ok && usable) ok = slope(&c) && configurations(&c);
    str_add(why, str_text(&c.why));
    str_free(&c.why);
    arena_free(c.arena);
    return ok;
}

static void one(Rng *r, void *ctx) {
    (void)ctx;
    uint64_t seed = rng_next(r);
    int nops = 1 + (int)rng_below(r, 30);
    if (getenv("FUZZ_NOPS")) nops = atoi(getenv("FUZZ_NOPS"));
    Str why = {0};
    bool ok = run_case(seed, nops, &why);
    if (ok) {
        str_free(&why);
        return;
    }
    fprintf(stderr, "iteration %ld fails with %d steps:\n%s", fuzz_iteration, nops, str_text(&why));
    for (int n = 0; n < nops && !getenv("FUZZ_NOPS"); n++) {
        Str less = {0};
        alarm(FUZZ_HANG_SECONDS);
        if (!run_case(seed, n, &less)) {
            fprintf(stderr, "with FUZZ_NOPS=%d:\n%s", n, str_text(&less));
            break;
        }
    }
    exit(1);
}

int main(int argc, char **argv) {
    int rc = fuzz_loop(argc, argv, one, NULL);
    printf("of %ld graphs: %ld fused nodes, %ld with a row, %ld with views, %ld with windows, %ld divided; %ld column sums\n",
           met.graphs, met.kernels, met.rows, met.views, met.windows, met.divided, met.col_sums);
    printf("%ld graphs tiled: %ld parts, %ld of divided values, %ld of parts; %ld wholes assembled\n", met.tiled, met.parts,
           met.divided_parts, met.nested, met.assembled);
    return rc;
}
