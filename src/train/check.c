#include "train/check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "exec/exec.h"
#include "import/aten.h"
#include "train/values.h"

CheckLimits check_limits(DType compute) {
    if (compute == DT_BF16) return (CheckLimits){.loss = 2e-3, .grad = 3e-2, .adamw = 5e-3};
    return (CheckLimits){.loss = 1e-5, .grad = 1e-4, .adamw = 1e-4};
}

// The choices of a float32 run: input "routing.N" of the program that holds them.
typedef struct Routing {
    Arena *arena;
    VEC(int64_t *) choice;
} Routing;

// What one compiled program computed: the first loss, every gradient, and the losses before each AdamW step.
typedef struct Trace {
    Arena *arena;
    int nstep;
    DType compute;           // what it was compiled for
    double *loss;            // [nstep]
    int64_t nparam;
    const char **name;       // [nparam]
    const Param *param;      // [nparam], names for matching aliases; owned by the trace's arena
    double **grad;           // [nparam], NULL where the loss does not depend on the parameter
    int64_t *numel;
} Trace;

static void copy_param_table(Trace *t, const Graph *g) {
    t->nparam = g->params.len;
    t->name = ARENA_ARRAY(t->arena, const char *, t->nparam);
    t->grad = ARENA_ARRAY(t->arena, double *, t->nparam);
    t->numel = ARENA_ARRAY(t->arena, int64_t, t->nparam);
    Param *copy = ARENA_ARRAY(t->arena, Param, t->nparam);
    for (int64_t p = 0; p < t->nparam; p++) {
        const Param *q = &g->params.data[p];
        copy[p] = *q;
        copy[p].name = t->name[p] = arena_strdup(t->arena, q->name);
        copy[p].alias = ARENA_ARRAY(t->arena, const char *, q->nalias);
        for (int k = 0; k < q->nalias; k++) copy[p].alias[k] = arena_strdup(t->arena, q->alias[k]);
        copy[p].data = NULL;
        t->numel[p] = shape_numel(&q->shape);
    }
    t->param = copy;
}

static void float32_only(CompileOptions *o) {
    o->import.real = o->compute = DT_F32;
}  // whatever the run that is checked computes in

static Status read_gradients(Trace *t, Runtime *rt, const Graph *g, Diag *d) {
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        if (o->kind != OUT_GRAD) continue;
        t->grad[o->param] = ARENA_ARRAY(t->arena, double, t->numel[o->param]);
        TRY(runtime_get_output(rt, (int)i, t->grad[o->param], d));
    }
    return ST_OK;
}

static Status set_routing(const Routing *held, const Graph *g, Runtime *rt, Diag *d) {
    int n = 0;
    for (int64_t i = 0; i < g->inputs.len; i++)
        if (!strncmp(g->inputs.data[i].name, "routing.", 8)) TRY(runtime_set_input(rt, (int32_t)i, held->choice.data[n++], d));
    return ST_OK;
}

static Status run_steps(const CheckOptions *o, const Compiled *c, const TensorFile *inputs, const Routing *held, Runtime *rt,
                        Trace *t, Diag *d) {
    TRY(values_load_params(rt, c->graph, o->golden == NULL, o->seed, d));
    TRY(values_set_inputs(rt, c->graph, inputs, o->seed, d));
    if (held) TRY(set_routing(held, c->graph, rt, d));
    const AdamWOptions *opt = &o->compile.adamw;
    for (int step = 1; step <= t->nstep; step++) {
        TRY(runtime_set_hyper(rt, (double[]){o->lr, 1 - pow(opt->beta1, step), 1 - pow(opt->beta2, step)}, d));
        TRY(runtime_step(rt, 0, &t->loss[step - 1], d));  // dropout draws the same numbers at every step of a check
        if (step == 1) TRY(read_gradients(t, rt, c->graph, d));
    }
    return ST_OK;
}

// Runs the program in float32 on one CPU rank and keeps what its routers chose.
static Status show_routing(const CheckOptions *o, const TensorFile *inputs, Routing *held, Diag *d) {
    CompileOptions co = o->compile;
    co.memory = (MemoryOptions){0};
    co.nranks = 1, co.backend = NULL, co.routing = ROUTING_SHOW, co.update = false, co.strategies = NULL,
    co.attention = ATTN_AUTO;
    float32_only(&co);
    Compiled c;
    Runtime *rt = NULL;
    double loss;
    held->arena = arena_new();
    Status st = compile_file(&co, &c, d);
    if (st == ST_OK) st = runtime_new(c.plan, o->seed, &rt, d);
    if (st == ST_OK) st = values_load_params(rt, c.graph, o->golden == NULL, o->seed, d);
    if (st == ST_OK) st = values_set_inputs(rt, c.graph, inputs, o->seed, d);
    if (st == ST_OK) st = runtime_step(rt, 0, &loss, d);
    for (int64_t i = 0; st == ST_OK && i < c.graph->outputs.len; i++) {
        const Output *out = &c.graph->outputs.data[i];
        if (out->kind != OUT_AUX || strncmp(out->name, "routing.", 8)) continue;
        int64_t n = shape_numel(graph_shape(c.graph, out->value));
        double *x = ARENA_ARRAY(held->arena, double, n);
        int64_t *choice = ARENA_ARRAY(held->arena, int64_t, n);
        st = runtime_get_output(rt, (int)i, x, d);
        for (int64_t k = 0; k < n; k++) choice[k] = (int64_t)x[k];
        vec_push(&held->choice, choice);
    }
    if (st == ST_OK && held->choice.len == 0)
        st = diag_error(d, ST_INPUT, "--hold-routing: the program chooses no experts (it has no topk)");
    runtime_free(rt);
    compiled_free(&c);
    return st;
}

// Compiles for o->compile.nranks and runs nstep steps.
static Status trace_run(const CheckOptions *options, const TensorFile *inputs, int nstep, Trace *t, Diag *d) {
    CheckOptions copy = *options, *o = &copy;
    Routing held = {0};
    if (o->hold_routing) o->compile.routing = ROUTING_HOLD;
    Status shown = o->hold_routing ? show_routing(options, inputs, &held, d) : ST_OK;
    if (shown != ST_OK) {
        vec_free(&held.choice);
        arena_free(held.arena);
        return shown;
    }
    t->arena = arena_new();
    t->nstep = nstep;
    t->loss = ARENA_ARRAY(t->arena, double, nstep);
    Compiled c;
    Runtime *rt = NULL;
    Status st = compile_file(&o->compile, &c, d);
    if (st == ST_OK) {
        if (o->notes) o->notes(&c.import);
        t->compute = c.compute;
        copy_param_table(t, c.graph);
        RuntimeOptions run = o->runtime;
        run.run_seed = o->seed;
        run.processes = run.processes && o->compile.backend && o->compile.backend->device;
        st = runtime_new_with(c.plan, &run, &rt, d);
    }
    if (st == ST_OK) st = run_steps(o, &c, inputs, o->hold_routing ? &held : NULL, rt, t, d);
    runtime_free(rt);
    compiled_free(&c);
    vec_free(&held.choice);
    if (held.arena) arena_free(held.arena);
    return st;
}

static void trace_free(Trace *t) {
    arena_free(t->arena);
    *t = (Trace){0};
}

// ---- comparing ------------------------------------------------------------------------------------------------------------

static double relative(double a, double b) {
    double e = fabs(a - b) / fmax(fabs(b), 1e-30);
    return isfinite(e) ? e : INFINITY;  // a NaN is a difference, never a match
}

// ref[p] NULL: a zero gradient.
static void compare_gradients(const Trace *t, double *const *ref, CheckResult *r) {
    double all = 0;
    for (int64_t p = 0; p < t->nparam; p++)
        for (int64_t i = 0; ref[p] && i < t->numel[p]; i++) all += ref[p][i] * ref[p][i];
    r->grad_relerr = 0;
    for (int64_t p = 0; p < t->nparam; p++) {
        double norm = 0, diff = 0;
        for (int64_t i = 0; i < t->numel[p]; i++) {
            double b = ref[p] ? ref[p][i] : 0, a = t->grad[p] ? t->grad[p][i] : 0;
            norm += b * b;
            diff += (a - b) * (a - b);
        }
        double e = sqrt(diff) / fmax(sqrt(norm) + 1e-4 * sqrt(all), 1e-300);
        if (diff == 0) e = 0;
        if (!isfinite(e)) e = INFINITY;
        if (e >= r->grad_relerr) {
            r->grad_relerr = e;
            snprintf(r->worst, sizeof r->worst, "%s", t->name[p]);
        }
    }
}

static void compare_losses(const Trace *t, const double *adamw, CheckResult *r) {
    r->adamw_relerr = 0;
    for (int i = 0; i < t->nstep; i++) r->adamw_relerr = fmax(r->adamw_relerr, relative(t->loss[i], adamw[i]));
}

static const TensorView *find_gradient(const TensorFile *f, const Param *p) {
    char name[1024];
    snprintf(name, sizeof name, "grad.%s", p->name);
    const TensorView *t = tensors_find(f, name);
    for (int k = 0; k < p->nalias && !t; k++) {
        snprintf(name, sizeof name, "grad.%s", p->alias[k]);
        t = tensors_find(f, name);
    }
    return t;
}

static bool has_gradients(const TensorFile *f) {
    for (int64_t i = 0; i < tensors_count(f); i++)
        if (!strncmp(tensors_at(f, i)->name, "grad.", 5)) return true;
    return false;
}

static Status golden_gradients(const TensorFile *f, const Trace *t, Arena *a, double ***out, Diag *d) {
    double **ref = ARENA_ARRAY(a, double *, t->nparam);
    int64_t used = 0, there = 0;
    for (int64_t p = 0; p < t->nparam; p++) {
        const TensorView *v = find_gradient(f, &t->param[p]);
        if (!v) continue;  // as PyTorch: a parameter without gradient
        used++;
        if (!v->known_dtype) return diag_error(d, ST_INPUT, "the golden's \"%s\" has a dtype of an unknown kind", v->name);
        if (!shape_equal(&v->shape, &t->param[p].shape))
            return diag_error(d, ST_INPUT, "%s has another shape than the parameter", v->name);
        ref[p] = ARENA_ARRAY(a, double, t->numel[p]);
        TRY(tensor_convert(v->data, v->dtype, ref[p], DT_F64, t->numel[p], d));
    }
    for (int64_t i = 0; i < tensors_count(f); i++) there += !strncmp(tensors_at(f, i)->name, "grad.", 5);
    if (used != there)
        return diag_error(d, ST_INPUT, "the golden has %" PRId64 " gradients, %" PRId64 " of them for parameters of this program",
                          there, used);
    *out = ref;
    return ST_OK;
}

static Status read_doubles(const TensorFile *f, const char *name, int max, double *out, int *n, Diag *d) {
    const TensorView *v = tensors_find(f, name);
    if (!v) return diag_error(d, ST_INPUT, "the golden has no tensor \"%s\"", name);
    if (!v->known_dtype) return diag_error(d, ST_INPUT, "the golden's \"%s\" has a dtype of an unknown kind", name);
    int64_t count = shape_numel(&v->shape);
    if (count < 1 || count > max) return diag_error(d, ST_INPUT, "\"%s\" has %" PRId64 " elements", name, count);
    *n = (int)count;
    return tensor_convert(v->data, v->dtype, out, DT_F64, count, d);
}

// ---- golden ---------------------------------------------------------------------------------------------------------------

// The golden's inputs say what length to bind: the program's first input that has a batch and a sequence dim, by its name.
static Status golden_binding(const TensorFile *f, CheckOptions *o, Diag *d) {
    Arena *a = arena_new();
    Archive *ar = NULL;
    ImportReport ignored = {0};
    Status st = archive_open(a, o->compile.path, NULL, &ar, &ignored, d);
    const TensorView *pick = NULL;
    for (int i = 0; st == ST_OK && i < ar->nuser && !pick; i++) {
        const AtenUserInput *u = &ar->user[i];
        const TensorView *t = tensors_find(f, u->name);
        if (u->seq_dim < 0 || u->batch_dim < 0 || !t || t->shape.ndim != u->ndim) continue;
        pick = t;
        int64_t batch = t->shape.dim[u->batch_dim], seq = t->shape.dim[u->seq_dim];
        ImportOptions *want = &o->compile.import;
        if ((want->batch && want->batch != batch) || (want->seq && want->seq != seq))
            st = diag_error(d, ST_INPUT,
                            "%s holds batch %" PRId64 " and sequence %" PRId64
                            ": drop --batch and --seq, the golden says what to bind",
                            o->golden, batch, seq);
        want->batch = batch;
        want->seq = seq;
    }
    if (st == ST_OK && !pick)
        st = diag_error(d, ST_INPUT, "%s: no tensor is one of the program's inputs [batch, sequence, ...] to bind it to",
                        o->golden);
    vec_free(&ignored.missing);
    vec_free(&ignored.leftover);
    vec_free(&ignored.notes);
    arena_free(a);
    return st;
}

// One rank in float64, unfused: what a golden without gradients is completed with.
static Status reference_gradients(const CheckOptions *o, const TensorFile *f, Trace *ref, Diag *d) {
    CheckOptions one = *o;
    one.compile.nranks = 1;
    one.compile.memory = (MemoryOptions){0};  // what is compared with keeps everything, whole
    one.compile.offload_state = false;
    one.notes = NULL;
    one.compile.no_fuse = true;
    one.compile.import.real = DT_F64;
    one.compile.compute = DT_F32;  // no mixed precision
    one.compile.backend = NULL;  // the CPU
    one.runtime.processes = false;
    one.compile.attention = ATTN_AUTO;
    one.compile.strategies = NULL;
    return trace_run(&one, f, 1, ref, d);
}

static Status check_golden(CheckOptions *o, Arena *a, Trace *t, CheckResult *r, Diag *d) {
    TensorFile *f = NULL;
    TRY(tensors_open(a, o->golden, &f, d));
    TRY(golden_binding(f, o, d));
    r->batch = o->compile.import.batch;
    r->seq = o->compile.import.seq;
    double loss = 0, adamw[1024];
    int one = 0, nstep = 0;
    TRY(read_doubles(f, "loss", 1, &loss, &one, d));
    TRY(read_doubles(f, "adamw_losses", 1024, adamw, &nstep, d));
    TRY(trace_run(o, f, nstep, t, d));
    double **grad = NULL;
    Trace ref = {0};
    r->grad_from_reference = !has_gradients(f);
    if (r->grad_from_reference) {
        Status st = reference_gradients(o, f, &ref, d);
        grad = ref.grad;
        if (st == ST_OK) compare_gradients(t, grad, r);
        trace_free(&ref);
        TRY(st);
    } else {
        TRY(golden_gradients(f, t, a, &grad, d));
        compare_gradients(t, grad, r);
    }
    r->loss = t->loss[0];
    r->loss_relerr = relative(t->loss[0], loss);
    if (o->hold_routing) r->adamw_relerr = 0;  // the golden's later steps choose anew
    else compare_losses(t, adamw, r);
    return ST_OK;
}

// ---- P ranks against one --------------------------------------------------------------------------------------------------

static Status check_against_one(CheckOptions *o, Arena *a, Trace *t, CheckResult *r, Diag *d) {
    TensorFile *f = NULL;
    if (o->inputs) TRY(tensors_open(a, o->inputs, &f, d));
    r->batch = o->compile.import.batch;
    r->seq = o->compile.import.seq;
    CheckOptions one = *o;
    one.compile.nranks = 1;
    one.compile.memory = (MemoryOptions){0};  // what is compared with keeps everything, whole
    one.compile.offload_state = false;
    one.notes = NULL;
    one.compile.attention = ATTN_AUTO;
    one.compile.strategies = NULL;
    Trace ref = {0};
    Status st = trace_run(&one, f, o->adamw_steps, &ref, d);  // its arena is freed before the other's is made
    if (st == ST_OK) st = trace_run(o, f, o->adamw_steps, t, d);
    if (st == ST_OK) {
        r->loss = t->loss[0];
        r->loss_relerr = relative(t->loss[0], ref.loss[0]);
        compare_gradients(t, ref.grad, r);
        compare_losses(t, ref.loss, r);
    }
    trace_free(&ref);
    return st;
}

// ---- writing --------------------------------------------------------------------------------------------------------------

static Status write_trace(const char *path, const Trace *t, Diag *d) {
    Arena *a = arena_new();
    TensorView *v = ARENA_ARRAY(a, TensorView, t->nparam + 2);
    int64_t n = 0;
    v[n++] = (TensorView){.name = "loss", .dtype = DT_F64, .known_dtype = true, .shape = SHAPE0, .data = t->loss, .nbytes = 8};
    v[n++] = (TensorView){.name = "adamw_losses",
                          .dtype = DT_F64,
                          .known_dtype = true,
                          .shape = SHAPE(t->nstep),
                          .data = t->loss,
                          .nbytes = 8 * t->nstep};
    for (int64_t p = 0; p < t->nparam; p++) {
        if (!t->grad[p]) continue;
        float *f = ARENA_ARRAY(a, float, t->numel[p]);
        for (int64_t i = 0; i < t->numel[p]; i++) f[i] = (float)t->grad[p][i];
        v[n++] = (TensorView){.name = arena_printf(a, "grad.%s", t->name[p]),
                              .dtype = DT_F32,
                              .known_dtype = true,
                              .shape = t->param[p].shape,
                              .data = f,
                              .nbytes = 4 * t->numel[p]};
    }
    Status st = tensors_write(path, n, v, d);
    arena_free(a);
    return st;
}

Status check_run(const CheckOptions *options, CheckResult *r, Diag *d) {
    CheckOptions o = *options;
    if (o.compile.stop_after)
        return diag_error(d, ST_INPUT, "--stop-after %s: only whole steps can be checked", o.compile.stop_after);
    *r = (CheckResult){.loss_relerr = INFINITY, .grad_relerr = INFINITY, .adamw_relerr = INFINITY};
    o.compile.update = true;
    Arena *a = arena_new();
    Trace t = {0};
    Status st = o.golden ? check_golden(&o, a, &t, r, d) : check_against_one(&o, a, &t, r, d);
    if (st == ST_OK && o.out) st = write_trace(o.out, &t, d);
    CheckLimits limit = check_limits(t.compute);
    if (st == ST_OK) r->pass = r->loss_relerr <= limit.loss && r->grad_relerr <= limit.grad && r->adamw_relerr <= limit.adamw;
    trace_free(&t);
    arena_free(a);
    return st;
}
