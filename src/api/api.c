// include/autosp.h over the driver and the runtime.
#include "autosp.h"

#include <math.h>
#include <stdlib.h>

#include "backend/registry.h"
#include "driver/plan_report.h"
#include "ir/convert.h"
#include "train/values.h"

_Static_assert((int)AUTOSP_MISMATCH == (int)ST_MISMATCH && (int)AUTOSP_COMM == (int)ST_COMM,
               "public statuses are the internal ones");

struct autosp_program {
    Compiled c;
    autosp_options o;
};
struct autosp_session {
    const autosp_program *p;
    Runtime *rt;
    int64_t step;
};

static autosp_status give(Status st, const Diag *d, autosp_error *e) {
    e->status = (autosp_status)st;
    snprintf(e->text, sizeof e->text, "%s", st == ST_OK ? "" : d->text);
    return e->status;
}

const char *autosp_version(void) { return "0.1.0"; }

autosp_options autosp_options_default(void) {
    return (autosp_options){.ranks = 1,
                            .attention = "auto",
                            .device = "cpu",
                            .optimizer = 1,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .clip_norm = 1.0};
}

static Status convert_options(const char *path, const autosp_options *o, CompileOptions *c, Diag *d) {
    compile_defaults(c);
    c->path = path;
    c->nranks = o->ranks;
    c->nthreads = o->threads;
    c->import.batch = o->batch;
    c->import.seq = o->seq;
    c->import.weights = o->weights;
    c->import.allow_missing_params = true;
    c->update = o->optimizer != 0;
    c->adamw = (AdamWOptions){o->beta1, o->beta2, o->eps, o->weight_decay, o->clip_norm};
    if (o->max_documents < 0) return diag_error(d, ST_INPUT, "max_documents must not be negative");
    c->max_documents = o->max_documents;
    if (o->batch < 0 || o->seq < 0) return diag_error(d, ST_INPUT, "batch and sequence length must not be negative");
    TRY(backend_find(o->device ? o->device : "cpu", &c->backend, d));
    TRY(compute_from_name(o->dtype, &c->compute, d));
    const char *want = o->attention ? o->attention : "auto";
    for (int i = ATTN_AUTO; i <= ATTN_GATHER_KV; i++)
        if (!strcmp(want, attention_choice_name((AttentionChoice)i))) {
            c->attention = (AttentionChoice)i;
            return ST_OK;
        }
    return diag_error(d, ST_INPUT, "attention \"%s\": there are auto, head and gather-kv", want);
}

autosp_status autosp_compile(const char *path, const autosp_options *o, autosp_program **out, autosp_error *e) {
    Diag d = {0};
    CompileOptions c;
    *out = NULL;
    autosp_program *p = calloc(1, sizeof *p);
    if (!p) return give(ST_MEMORY, &(Diag){.text = "out of memory"}, e);
    p->o = *o;
    Status st = convert_options(path, o, &c, &d);
    if (st == ST_OK) st = compile_file(&c, &p->c, &d);
    if (st == ST_OK)
        *out = p;
    else
        autosp_program_free(p);
    return give(st, &d, e);
}

void autosp_program_free(autosp_program *p) {
    if (!p) return;
    compiled_free(&p->c);
    free(p);
}

int autosp_ranks(const autosp_program *p) { return p->c.plan->nranks; }
static bool has_rank(const autosp_program *p, int rank) { return rank >= 0 && rank < p->c.plan->nranks; }
int64_t autosp_peak_nbytes(const autosp_program *p, int rank) {
    return has_rank(p, rank) ? p->c.plan->rank[rank].arena_nbytes : -1;
}
double autosp_step_flops(const autosp_program *p, int rank) { return has_rank(p, rank) ? p->c.plan->rank[rank].flops : -1; }

autosp_status autosp_print_plan(const autosp_program *p, FILE *f, int json, autosp_error *e) {
    Diag d = {0};
    if (json) return give(plan_report_json(f, &p->c, &d), &d, e);
    plan_report_text(f, &p->c, false);
    return give(ST_OK, &d, e);
}

// The optimizer's hyper-parameters are an input of the graph, but not one of the user's program: it is the last.
int autosp_num_inputs(const autosp_program *p) {
    const Graph *g = p->c.graph;
    int64_t n = g->inputs.len;
    return (int)(n && !strcmp(g->inputs.data[n - 1].name, "adamw.hyper") ? n - 1 : n);
}
const char *autosp_input_name(const autosp_program *p, int i) {
    return i >= 0 && i < autosp_num_inputs(p) ? p->c.graph->inputs.data[i].name : NULL;
}
int autosp_num_parameters(const autosp_program *p) { return (int)p->c.graph->params.len; }
const char *autosp_parameter_name(const autosp_program *p, int i) {
    return i >= 0 && i < autosp_num_parameters(p) ? p->c.graph->params.data[i].name : NULL;
}
int64_t autosp_parameter_numel(const autosp_program *p, int i) {
    return i >= 0 && i < autosp_num_parameters(p) ? shape_numel(&p->c.graph->params.data[i].shape) : -1;
}

autosp_status autosp_session_new(const autosp_program *p, uint64_t seed, autosp_session **out, autosp_error *e) {
    Diag d = {0};
    *out = NULL;
    autosp_session *s = calloc(1, sizeof *s);
    if (!s) return give(ST_MEMORY, &(Diag){.text = "out of memory"}, e);
    s->p = p;
    Status st = runtime_new(p->c.plan, seed, &s->rt, &d);
    if (st == ST_OK) st = values_load_params(s->rt, p->c.graph, p->o.random_missing != 0, seed, &d);
    if (st == ST_OK)
        *out = s;
    else
        autosp_session_free(s);
    return give(st, &d, e);
}

void autosp_session_free(autosp_session *s) {
    if (!s) return;
    runtime_free(s->rt);
    free(s);
}

autosp_status autosp_set_input(autosp_session *s, const char *name, const void *data, autosp_error *e) {
    Diag d = {0};
    for (int i = 0; i < autosp_num_inputs(s->p); i++)
        if (!strcmp(name, autosp_input_name(s->p, i))) return give(runtime_set_input(s->rt, i, data, &d), &d, e);
    return give(diag_error(&d, ST_INPUT, "the program has no input \"%s\"", name), &d, e);
}

autosp_status autosp_step(autosp_session *s, double lr, double *loss, autosp_error *e) {
    Diag d = {0};
    double t = (double)(s->step + 1);
    Status st = ST_OK;
    if (s->p->o.optimizer)
        st = runtime_set_hyper(s->rt, (double[]){lr, 1 - pow(s->p->o.beta1, t), 1 - pow(s->p->o.beta2, t)}, &d);
    if (st == ST_OK) st = runtime_step(s->rt, s->step, loss, &d);
    if (st == ST_OK) s->step++;
    return give(st, &d, e);
}

autosp_status autosp_get_parameter(autosp_session *s, int i, float *out, autosp_error *e) {
    Diag d = {0};
    if (!autosp_parameter_name(s->p, i)) return give(diag_error(&d, ST_INPUT, "there is no parameter %d", i), &d, e);
    return give(runtime_get_state(s->rt, i, 0, out, DT_F32, &d), &d, e);
}

autosp_status autosp_get_gradient(autosp_session *s, int i, float *out, autosp_error *e) {
    Diag d = {0};
    const Graph *g = s->p->c.graph;
    int64_t n = autosp_parameter_numel(s->p, i);
    if (n < 0) return give(diag_error(&d, ST_INPUT, "there is no parameter %d", i), &d, e);
    for (int64_t k = 0; k < n; k++) out[k] = 0;
    for (int64_t k = 0; k < g->outputs.len; k++) {
        if (g->outputs.data[k].kind != OUT_GRAD || g->outputs.data[k].param != i) continue;
        double *whole = malloc((size_t)(n ? n : 1) * sizeof *whole);
        if (!whole) return give(diag_error(&d, ST_MEMORY, "out of memory"), &d, e);
        Status st = runtime_get_output(s->rt, (int)k, whole, &d);
        if (st == ST_OK) convert_array(whole, DT_F64, out, DT_F32, n);
        free(whole);
        return give(st, &d, e);
    }
    return give(ST_OK, &d, e);
}
