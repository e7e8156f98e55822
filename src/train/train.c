#include "train/train.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "exec/exec.h"
#include "train/profile.h"
#include "train/values.h"

typedef struct Run {
    const TrainOptions *o;
    Compiled *c;
    Runtime *rt;
    Data *data;
    FILE *metrics;
    Arena *arena;
    int64_t *tokens, *labels, *positions;  // [batch*seq]
    VEC(int64_t) step;
    VEC(double) loss;
    int64_t first;                         // steps done before this run
    double opened;                         // when training was asked for
    double started, seconds;               // when the loop began; what the last step took
} Run;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double train_lr(const TrainOptions *o, int64_t step) {
    int64_t warm = o->warmup >= 0 ? o->warmup : o->steps / 20;
    if (step < warm) return o->lr * (double)(step + 1) / (double)warm;
    double done = (double)(step - warm) / (double)max_i64(o->steps - warm, 1);
    return o->lr * (o->min_lr + (1 - o->min_lr) * 0.5 * (1 + cos(3.14159265358979323846 * fmin(done, 1))));
}

// ---- inputs of a step ----------------------------------------------------------------------------------------------------------

static Status feed_from_table(Run *r, int32_t index, int64_t step, Diag *d) {
    const Input *in = &r->c->graph->inputs.data[index];
    const TensorView *t = tensors_find(data_tensors(r->data), in->name);
    if (!t) return diag_error(d, ST_INPUT, "the data has no tensor \"%s\" for the program's input", in->name);
    Shape want = in->shape;
    if (in->batch_dim != 0) return diag_error(d, ST_UNSUPPORTED, "input \"%s\": tables of examples need the batch as first dim", in->name);
    want.dim[0] = t->shape.dim[0];
    if (!shape_equal(&want, &t->shape)) return diag_error(d, ST_INPUT, "tensor \"%s\" of the data does not have rows of the shape that the program was bound to", in->name);
    TRY(values_check_dtype(in, t, d));
    int64_t row = shape_numel(&in->shape) / in->shape.dim[0];
    char *buf = malloc((size_t)shape_numel(&in->shape) * 8);
    if (!buf) return diag_error(d, ST_MEMORY, "out of memory for input \"%s\"", in->name);
    Status st = ST_OK;
    for (int64_t b = 0; b < in->shape.dim[0] && st == ST_OK; b++)
        st = tensor_convert((const char *)t->data + data_row(r->data, step, b) * row * dtype_nbytes(t->dtype), t->dtype,
                            buf + b * row * dtype_nbytes(in->dtype), in->dtype, row, d);
    if (st == ST_OK) st = runtime_set_input(r->rt, index, buf, d);
    free(buf);
    return st;
}

static Status feed_from_stream(Run *r, int32_t index, Diag *d) {
    const Input *in = &r->c->graph->inputs.data[index];
    const int64_t *from = in->role == ROLE_TOKENS ? r->tokens : in->role == ROLE_LABELS ? r->labels : in->role == ROLE_POSITIONS ? r->positions : NULL;
    if (!from || in->dtype != DT_I64 || in->shape.ndim != 2 || in->seq_dim != 1)
        return diag_error(d, ST_INPUT, "input \"%s\" is no token ids, labels or positions [batch, sequence]: give the data as a table of examples (safetensors with a tensor per input)", in->name);
    return runtime_set_input(r->rt, index, from, d);
}

static Status feed(Run *r, int64_t step, Diag *d) {
    const Graph *g = r->c->graph;
    bool table = data_tensors(r->data) != NULL;
    if (!table) data_batch(r->data, step, r->tokens, r->labels, r->positions);
    for (int64_t i = 0; i < g->inputs.len; i++) {
        if (!strcmp(g->inputs.data[i].name, "adamw.hyper")) continue;
        TRY(table ? feed_from_table(r, (int32_t)i, step, d) : feed_from_stream(r, (int32_t)i, d));
    }
    return ST_OK;
}

// ---- setting up ------------------------------------------------------------------------------------------------------------------

static Status require_buffers(const Graph *g, Diag *d) {
    for (int64_t i = 0; i < g->consts.len; i++)
        if (!g->consts.data[i].data)
            return diag_error(d, ST_INPUT, "buffer \"%s\" has no value in the archive; export with real buffers (python -m autosp.export keeps them)", g->consts.data[i].name);
    return ST_OK;
}

static Status open_data(Run *r, Diag *d) {
    const Graph *g = r->c->graph;
    DataOptions o = r->o->data;
    o.seq = g->seq;
    o.batch = g->batch;
    o.seed = r->o->seed;
    bool takes_positions = false;
    for (int64_t i = 0; i < g->inputs.len; i++) {
        if (g->inputs.data[i].role == ROLE_TOKENS) o.vocabulary = values_vocabulary(g, (int32_t)i);
        takes_positions |= g->inputs.data[i].role == ROLE_POSITIONS;
    }
    TRY(data_open(r->arena, &o, &r->data, d));
    r->tokens = ARENA_ARRAY(r->arena, int64_t, o.seq * o.batch);
    r->labels = ARENA_ARRAY(r->arena, int64_t, o.seq * o.batch);
    if (takes_positions) r->positions = ARENA_ARRAY(r->arena, int64_t, o.seq * o.batch);
    return ST_OK;
}

// The data are opened here without the program, which is not compiled yet: only tokens are counted.
static Status count_documents(const TrainOptions *o, CompileOptions *co, Diag *d) {
    DataOptions data = o->data;
    data.seq = co->import.seq, data.batch = 1;
    if (!o->count_documents || !co->backend || !co->backend->device || data.doc_token < 0 || data.seq < 1) return ST_OK;
    Arena *a = arena_new();
    Data *x = NULL;
    Status st = data_open(a, &data, &x, d);
    if (st == ST_OK) co->max_documents = data_max_documents(x);
    arena_free(a);
    if (st == ST_OK && co->max_documents) printf("data: at most %" PRId64 " documents in a row\n", co->max_documents);
    return st;
}

static Status make_folder(const char *path, Diag *d) {
    char part[4096];
    if (strlen(path) >= sizeof part) return diag_error(d, ST_INPUT, "the output folder's name is too long");
    strcpy(part, path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/') continue;
        char keep = *p;
        *p = 0;
        if (mkdir(part, 0777) && errno != EEXIST) return diag_error(d, ST_IO, "%s: cannot make the folder: %s", part, strerror(errno));
        *p = keep;
        if (!keep) return ST_OK;
    }
}

static Status open_metrics(Run *r, Diag *d) {
    const char *path = arena_printf(r->arena, "%s/metrics.jsonl", r->o->out);
    r->metrics = fopen(path, r->o->resume ? "a" : "w");
    return r->metrics ? ST_OK : diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
}

static Status load_start(Run *r, Diag *d) {
    Graph *g = r->c->graph;
    if (!r->o->resume) return values_load_params(r->rt, g, r->o->random_init, r->o->seed, d);
    return save_load(r->o->out, r->rt, g, r->o->seed, &r->first, d);
}

// ---- the loop --------------------------------------------------------------------------------------------------------------------

static void print_left(double seconds) {
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600)
        printf("  %" PRId64 ":%02" PRId64 ":%02" PRId64 " left\n", s / 3600, s / 60 % 60, s % 60);
    else
        printf("  %" PRId64 ":%02" PRId64 " left\n", s / 60, s % 60);
}

static Status read_aux(Run *r, const char *name, double *out, Diag *d) {
    const Graph *g = r->c->graph;
    for (int64_t i = 0; i < g->outputs.len; i++)
        if (g->outputs.data[i].kind == OUT_AUX && !strcmp(g->outputs.data[i].name, name)) return runtime_get_output(r->rt, (int)i, out, d);
    *out = NAN;
    return ST_OK;
}

static Status report_step(Run *r, int64_t step, double loss, double lr, double seconds, Diag *d) {
    double norm, rate = (double)(r->c->graph->seq * r->c->graph->batch) / seconds;
    TRY(read_aux(r, "grad_norm", &norm, d));
    double per_step = (now() - r->started) / (double)(step + 1 - r->first);
    printf("step %" PRId64 "/%" PRId64 "  loss %.4f", step + 1, r->o->steps, loss);
    if (isfinite(norm)) printf("  grad norm %.3f", norm);
    printf("  lr %.2e  %.0f tokens/s", lr, rate);
    print_left(per_step * (double)(r->o->steps - step - 1));
    fflush(stdout);
    int bad = fprintf(r->metrics, "{\"step\": %" PRId64 ", \"loss\": %.9g, \"lr\": %.9g, \"grad_norm\": ", step + 1, loss, lr) < 0;
    bad |= fprintf(r->metrics, isfinite(norm) ? "%.9g" : "null", norm) < 0;
    bad |= fprintf(r->metrics, ", \"tokens_per_s\": %.6g, \"seconds\": %.6g}\n", rate, seconds) < 0;
    if (bad || fflush(r->metrics)) return diag_error(d, ST_IO, "%s/metrics.jsonl: cannot write: %s", r->o->out, strerror(errno));
    return ST_OK;
}

static Status save_all(Run *r, int64_t done, double entropy, Diag *d) {
    TRY(save_model(r->o->out, r->rt, r->c->graph, done, r->o->seed, d));
    return picture_write(arena_printf(r->arena, "%s/loss.svg", r->o->out), r->step.len, r->step.data, r->loss.data, entropy, "unigram entropy of the data", d);
}

// What the plan said of the device's memory and what is in use (by this process, if the device is its own).
static void report_memory(const Run *r) {
    double used, planned, host = 0, host_planned = 0;
    for (int k = 0; k < r->c->plan->nranks; k++) {
        host += (double)runtime_host_nbytes(r->rt, k);
        host_planned += (double)r->c->plan->rank[k].host_nbytes;
    }
    if (host_planned > 0) printf("host memory for offloaded values: planned %.3f GB, allocated %.3f GB\n", host_planned / 1e9, host / 1e9);
    if (!runtime_device_used(r->rt, &used, &planned)) return;
    double context = device_beside_nbytes(compile_device_model(&r->o->compile), runtime_host_nbytes(r->rt, 0));
    printf("device memory: planned %.3f GB (arenas %.3f, context %.3f), in use %.3f GB\n", (planned + context) / 1e9, planned / 1e9, context / 1e9, used / 1e9);
}

// The table compares with the step before, which ran as all others do.
static Status profile_step(Run *r, int64_t step, double *loss, Diag *d) {
    const Plan *p = r->c->plan;
    StepTimes *times = ARENA_ARRAY(r->arena, StepTimes, p->nranks);
    double before = r->seconds;
    TRY(runtime_profile(r->rt, step, loss, times, d));
    profile_print(stdout, p, compile_device_model(&r->o->compile), 0, &times[0], step > r->first ? before : NAN);
    return profile_write_trace(arena_printf(r->arena, "%s/trace.json", r->o->out), p, times, d);
}

static Status train_loop(Run *r, TrainResult *out, Diag *d) {
    const TrainOptions *o = r->o;
    const AdamWOptions *opt = &o->compile.adamw;
    r->started = now();
    out->steps = r->first;
    for (int64_t step = r->first; step < o->steps && !out->stopped; step++) {
        double begin = now(), loss, lr = train_lr(o, step);
        TRY(feed(r, step, d));
        TRY(runtime_set_hyper(r->rt, (double[]){lr, 1 - pow(opt->beta1, (double)(step + 1)), 1 - pow(opt->beta2, (double)(step + 1))}, d));
        bool profile = o->profile && step + 1 == o->steps;
        TRY(profile ? profile_step(r, step, &loss, d) : runtime_step(r->rt, step, &loss, d));
        if (!isfinite(loss))
            return diag_error(d, ST_NUMERIC, "the loss is not finite at step %" PRId64 "; nothing was saved after step %" PRId64 " (a lower --lr or --clip may help)", step + 1, out->steps);
        if (step == r->first) out->first_loss = loss;
        vec_push(&r->step, step + 1);
        vec_push(&r->loss, loss);
        r->seconds = now() - begin;
        TRY(report_step(r, step, loss, lr, r->seconds, d));
        out->stopped = o->stop && *o->stop;
        bool last = step + 1 == o->steps || out->stopped;
        if (o->save_every < 0) out->steps = step + 1;
        else if (last || (o->save_every > 0 && (step + 1) % o->save_every == 0)) {
            TRY(save_all(r, step + 1, out->unigram_entropy, d));
            out->steps = step + 1;
        }
    }
    report_memory(r);
    int64_t tail = max_i64(1, r->loss.len / 10);
    out->last_loss = 0;
    for (int64_t i = r->loss.len - tail; i < r->loss.len && r->loss.len; i++) out->last_loss += r->loss.data[i] / (double)tail;
    return ST_OK;
}

static Status run_prepared(Run *r, TrainResult *out, Diag *d) {
    if (r->o->show_plan) r->o->show_plan(r->c);
    TRY(require_buffers(r->c->graph, d));
    TRY(open_data(r, d));
    out->unigram_entropy = data_unigram_entropy(r->data);
    printf("data: %" PRId64 " tokens, %" PRId64 " rows of %" PRId64, data_ntokens(r->data), data_nrows(r->data), r->c->graph->seq);
    if (isfinite(out->unigram_entropy)) printf("; unigram entropy %.4f nats per token", out->unigram_entropy);
    printf("\n");
    RuntimeOptions run = r->o->runtime;
    run.run_seed = r->o->seed;
    double device = now();
    TRY(runtime_new_with(r->c->plan, &run, &r->rt, d));
    double params = now();
    TRY(load_start(r, d));
    printf("ready in %.1f s: compiled %.2f, memory and kernels %.2f, parameters %.2f\n", now() - r->opened, r->c->seconds, params - device, now() - params);
    fflush(stdout);
    TRY(feed(r, r->first, d));  // data of the wrong kind is refused before the folder is touched
    TRY(make_folder(r->o->out, d));
    TRY(open_metrics(r, d));
    if (r->first >= r->o->steps) {
        printf("nothing to do: %" PRId64 " steps were done already\n", r->first);
        out->steps = r->first;
        return ST_OK;
    }
    return train_loop(r, out, d);
}

Status train_run(const TrainOptions *o, TrainResult *out, Diag *d) {
    *out = (TrainResult){.first_loss = NAN, .last_loss = NAN, .unigram_entropy = NAN};
    if (o->compile.stop_after) return diag_error(d, ST_INPUT, "--stop-after %s: only whole steps can be trained", o->compile.stop_after);
    CompileOptions co = o->compile;
    co.update = true;
    Compiled c = {0};
    Run r = {.o = o, .c = &c, .arena = arena_new(), .opened = now()};
    Status st = count_documents(o, &co, d);
    if (st == ST_OK) st = compile_file(&co, &c, d);
    if (st == ST_OK) st = run_prepared(&r, out, d);
    if (r.metrics && fclose(r.metrics) && st == ST_OK) st = diag_error(d, ST_IO, "%s/metrics.jsonl: cannot write", o->out);
    runtime_free(r.rt);
    compiled_free(&c);
    vec_free(&r.step);
    vec_free(&r.loss);
    arena_free(r.arena);
    return st;
}
