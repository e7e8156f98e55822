// The pass list, in reading order.
#include "driver/driver.h"

#include <time.h>
#include <unistd.h>

#include "backend/backend.h"
#include "plan/memo.h"

Status compute_from_name(const char *name, DType *out, Diag *d) {
    *out = !name ? COMPUTE_AS_ARCHIVE : !strcmp(name, "bf16") ? DT_BF16 : DT_F32;
    if (!name || *out == DT_BF16 || !strcmp(name, "fp32")) return ST_OK;
    return diag_error(d, ST_INPUT, "dtype %s: there are fp32 and bf16", name);
}

void compile_defaults(CompileOptions *o) {
    *o = (CompileOptions){.nranks = 1, .adamw = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1}};
    o->import.real = o->compute = DT_F32;
#ifndef NDEBUG
    o->verify_each = true;
#endif
}

typedef Status (*PassFn)(PassContext *c, Graph *in, Graph **out, Diag *d);
static Status run_schedule(PassContext *c, Graph *in, Graph **out, Diag *d) {
    (void)c;
    return pass_schedule(in, out, d);
}

static bool if_routing(const CompileOptions *o) { return o->routing != ROUTING_FREE; }
static bool if_update(const CompileOptions *o) { return o->update; }
static bool if_state(const CompileOptions *o) { return o->update && o->offload_state; }
static bool if_fuse(const CompileOptions *o) { return !o->no_fuse; }
static bool if_chunked(const CompileOptions *o) { return !o->whole_logits; }
static bool if_bf16(const CompileOptions *o) { return o->compute == DT_BF16; }

typedef struct PassEntry {
    const char *name;
    PassFn run;
    bool (*when)(const CompileOptions *o);  // NULL: always
} PassEntry;

// clang-format off
static const PassEntry passes[] = {
    {"canonicalize", pass_canonicalize, NULL},        // folding, identities, CSE
    {"hold",         pass_hold,         if_routing},  // a router's choices shown or held
    {"experts",      pass_experts,      NULL},        // mixtures of experts become token-wise
    {"mask",         pass_mask,         NULL},        // attention with predicates
    {"head",         pass_head,         if_chunked},       // logits with their cross-entropy
    {"precision",    pass_precision,    if_bf16},     // operands of products and of attention in bf16
    {"grad",         pass_grad,         NULL},        // the backward, on the global graph
    {"simplify",     pass_canonicalize, NULL},        // once more, over the joint graph
    {"head_join",    pass_head_join,    if_chunked},       // ... with their gradients
    {"update",       pass_update,       if_update},   // clipping and AdamW
    {"shard",        pass_shard,        NULL},        // placements and reshards
    {"epilogue",     pass_epilogue,     NULL},        // sums into products
    {"recompute",    pass_recompute,    if_fuse},     // what kernels of the backward can compute themselves is not kept
    {"fuse",         pass_fuse,         if_fuse},     // pointwise groups
    {"narrow",       pass_narrow,       if_bf16},     // activations in bf16 in memory
    {"groups",       pass_groups,       NULL},        // attention's heads in groups
    {"remat",        pass_remat,        NULL},        // what the backward needs: kept, or computed again
    {"schedule",     run_schedule,      NULL},        // an order
    {"offload",      pass_offload,      NULL},        // what is kept: on the device, or on the host for a while
    {"tile",         pass_tile,         NULL},        // token-wise kernels chunk by chunk
    {"state",        pass_state,        if_state},    // the optimizer's state in host memory
};
// clang-format on
enum { NPASS = sizeof passes / sizeof *passes };

const char *const *pass_names(int *n) {
    static const char *names[NPASS + 2];
    names[0] = "import";
    for (int i = 0; i < NPASS; i++) names[i + 1] = passes[i].name;
    names[NPASS + 1] = "plan";
    *n = NPASS + 2;
    return names;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool wants(const char *option, const char *pass) { return option && (!strcmp(option, pass) || !strcmp(option, "all")); }

static Status after_pass(const CompileOptions *o, const Graph *g, const char *name, Diag *d) {
    if (wants(o->dump_after, name)) {
        Str s = {0};
        graph_print(g, &s);
        fprintf(stderr, "# after %s\n%s", name, str_text(&s));
        str_free(&s);
    }
    return o->verify_each ? graph_verify(g, name, d) : ST_OK;
}

static int default_threads(int nranks) {
    long n = sysconf(_SC_NPROCESSORS_ONLN) / nranks;
    return n < 1 ? 1 : (int)n;
}

static const Backend *backend_of(const CompileOptions *o) { return o->backend ? o->backend : &backend_cpu; }
const DeviceModel *compile_device_model(const CompileOptions *o) {
    if (o->device) return o->device;
    if (!backend_of(o)->device) return device_model_cpu();
    const DeviceModel *here = device_model_here();
    return here ? here : device_model_h100();
}

// The CPU has no bf16: a graph that is asked for in it is shown as a device gets it.
static unsigned features_of(const CompileOptions *o) {
    unsigned f = backend_of(o)->features | o->features;
    return o->compute == DT_BF16 ? f | BACKEND_BF16 | BACKEND_FUSE_ROWS | BACKEND_EPILOGUE : f;
}

static int threads_of(const CompileOptions *o) {
    return backend_of(o)->device ? 1 : o->nthreads > 0 ? o->nthreads : default_threads(o->nranks);
}

static double default_square_limit(void) {
    double ram = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE);
    return ram / 8;
}

// A compilation on its way through the passes.
typedef struct Run {
    const CompileOptions *o;
    Compiled *out;
    PassContext c;
    PlanOptions plan;
    const Graph *kept;       // is needed again: not to be freed when a pass replaces it
    bool stopped;
    Diag *d;
} Run;

static void begin_run(Run *r) {
    const CompileOptions *o = r->o;
    r->plan = (PlanOptions){.backend = backend_of(o), .device = compile_device_model(o), .nthreads = threads_of(o), .memo = kernel_memo_new()};
    r->c = (PassContext){.scratch = arena_new(),
                         .nranks = o->nranks,
                         .attention = o->attention,
                         .strategies = o->strategies,
                         .nstrategies = o->nstrategies,
                         .device = r->plan.device,
                         .features = features_of(o),
                         .adamw = &o->adamw,
                         .routing = o->routing,
                         .compute = o->compute,
                         .max_documents = o->max_documents,
                         .square_limit_nbytes = o->square_limit_nbytes > 0 ? o->square_limit_nbytes : default_square_limit(),
                         .report = &r->out->shard,
                         .plan = &r->plan,
                         .tile.align = backend_of(o)->device && o->memory.tile_align < 16 ? 16 : max_i64(o->memory.tile_align, 1),
                         .memory = o->memory,
                         .choice = &r->out->memory};
    CHECK(r->c.scratch != NULL, "out of memory");
}

static Status run_pass(Run *r, const PassEntry *p) {
    Graph *g = r->out->graph, *next = NULL;
    if (!p->when || p->when(r->o)) {
        Status st = p->run(&r->c, g, &next, r->d);
        if (next && next != g) {
            if (g != r->kept) graph_free_vecs(g);
            r->out->graph = next;
        }
        TRY(st);
        TRY(after_pass(r->o, r->out->graph, p->name, r->d));
    }
    r->stopped = r->o->stop_after && !strcmp(r->o->stop_after, p->name);
    return ST_OK;
}

static Status run_passes(Run *r, int from, int to) {
    for (int i = from; i < to && !r->stopped; i++) TRY(run_pass(r, &passes[i]));
    return ST_OK;
}

static int pass_index(const char *name) {
    int i = 0;
    while (i < NPASS && strcmp(passes[i].name, name)) i++;
    return i;
}

int64_t plan_device_nbytes(const Plan *p, const DeviceModel *m) {
    int64_t most = 0;
    for (int k = 0; k < p->nmade; k++) {
        int64_t tables = (int64_t)(device_beside_nbytes(m, p->rank[k].host_nbytes) - device_beside_nbytes(m, 0));
        most = max_i64(most, p->rank[k].arena_nbytes + tables);
    }
    return most;
}

static Status refuse(Run *r, int64_t least) {
    const MemoryOptions *m = &r->o->memory;
    const Graph *g = r->out->graph;
    r->out->refused_nbytes = least;
    return diag_error(r->d, ST_MEMORY,
                      "%s at sequence length %lld on %d rank%s does not fit: the budget of each rank is %s, the least found is %s (--budget "
                      "%lld would do)",
                      g->name, (long long)g->seq, r->o->nranks, r->o->nranks == 1 ? "" : "s", bytes_text((double)m->budget_nbytes).s,
                      bytes_text((double)least).s, (long long)least);
}

static int64_t largest_host(const Plan *p) {
    int64_t most = 0;
    for (int k = 0; k < p->nmade; k++) most = max_i64(most, p->rank[k].host_nbytes);
    return most;
}

// With the optimizer's state on the host: what that takes of the host's memory is not for anything else.
static Status begin_state(Run *r) {
    MemoryOptions *m = &r->c.memory;
    if (!if_state(r->o)) return ST_OK;
    const Graph *g = r->out->graph;
    int64_t nbytes = plan_host_state(g, r->c.scratch, ARENA_ARRAY(r->c.scratch, bool, g->values.len + 1));
    r->plan.state_on_host = true;
    if (m->budget_nbytes > 0 && nbytes > m->host_nbytes)
        return diag_error(r->d, ST_MEMORY, "%s on %d rank%s: the optimizer's state takes %s of host memory for each rank, the budget is %s (--host-budget)",
                          g->name, r->o->nranks, r->o->nranks == 1 ? "" : "s", bytes_text((double)nbytes).s, bytes_text((double)m->host_nbytes).s);
    if (m->host_nbytes < INT64_MAX) m->host_nbytes -= nbytes;
    return ST_OK;
}

static Status plan_once(Run *r, Graph *kernels) {
    if (r->out->graph != kernels) graph_free_vecs(r->out->graph);
    r->out->graph = kernels;
    TRY(run_passes(r, pass_index("remat"), NPASS));
    if (r->stopped) return ST_OK;
    r->out->ntry++;
    if (r->o->sketch > 0 && r->o->nranks > r->o->sketch) {
        int *rank = ARENA_ARRAY(r->out->arena, int, 3), n = plan_telling_ranks(r->out->graph, rank);
        return plan_make_some(r->out->arena, r->out->graph, &r->plan, n, rank, &r->out->plan, r->d);
    }
    return plan_make(r->out->arena, r->out->graph, &r->plan, &r->out->plan, r->d);
}

// The passes from remat on and the plan. What they count is the sum of live bytes; the plan's peak is a little more, so where that
// exceeds the budget they aim lower once more, in the end for the least there is.
enum { BUDGET_TRIES = 5 };
static Status plan_under_budget(Run *r) {
    int64_t budget = r->o->memory.budget_nbytes, *aim = &r->c.memory.budget_nbytes;
    Graph *kernels = r->out->graph;
    r->kept = kernels;
    if (r->o->least) *aim = 1;
    TRY(begin_state(r));
    Status st = plan_once(r, kernels);
    for (int k = 1; st == ST_OK && !r->stopped && !r->o->least && budget > 0; k++) {
        int64_t peak = plan_device_nbytes(r->out->plan, r->plan.device), over = peak - budget;
        if (over <= 0) break;
        if (*aim == 1) {
            st = refuse(r, peak);
            break;
        }
        bool fitted = r->out->memory.peak_nbytes <= *aim;
        *aim -= over + over / 8 + BUFFER_ALIGN;
        if (!fitted || *aim < 1 || k == BUDGET_TRIES) *aim = 1;
        st = plan_once(r, kernels);
    }
    if (st == ST_OK && !r->stopped && budget > 0 && largest_host(r->out->plan) > r->o->memory.host_nbytes)
        st = diag_error(r->d, ST_MEMORY, "the plan takes %s of host memory for each rank, the budget is %s (--host-budget)",
                        bytes_text((double)largest_host(r->out->plan)).s, bytes_text((double)r->o->memory.host_nbytes).s);
    if (r->out->graph != kernels) graph_free_vecs(kernels);
    return st;
}

Status compile_graph(Arena *a, Graph *g, const CompileOptions *o, Compiled *out, Diag *d) {
    double start = now();
    CHECK(o->compute != COMPUTE_AS_ARCHIVE, "a graph has no archive: say what it computes in");
    *out = (Compiled){.arena = a, .graph = g, .import = out->import, .compute = o->compute, .device = compile_device_model(o), .options = o->memory};
    if (o->nranks < 1) return diag_error(d, ST_INPUT, "%d ranks: there must be at least one", o->nranks);
    if (o->nranks > 65536) return diag_error(d, ST_INPUT, "%d ranks: the limit is 65536", o->nranks);
    g->layouts = layouts_new(a, o->nranks);  // nothing is placed before the shard pass
    Run r = {.o = o, .out = out, .d = d};
    begin_run(&r);
    Status st = after_pass(o, g, "import", d);
    r.stopped = o->stop_after && !strcmp(o->stop_after, "import");
    if (st == ST_OK) st = run_passes(&r, 0, pass_index("remat"));
    if (st == ST_OK && !r.stopped) st = plan_under_budget(&r);
    arena_free(r.c.scratch);
    kernel_memo_free(r.plan.memo);
    out->seconds += now() - start;
    return st;
}

// In what a program is computed whose user did not say.
static DType compute_of_archive(const CompileOptions *o, const Graph *g) {
    int64_t half = 0, all = 0;
    for (int64_t i = 0; i < g->params.len; i++) {
        int64_t n = shape_numel(&g->params.data[i].shape);
        all += n;
        if (g->params.data[i].dtype == DT_BF16) half += n;
    }
    return 2 * half > all && (backend_of(o)->features & BACKEND_BF16) ? DT_BF16 : DT_F32;
}

static Status compile_from(const Archive *ar, const CompileOptions *options, Compiled *out, Diag *d) {
    CompileOptions copy = *options, *o = &copy;
    double start = now();
    *out = (Compiled){0};
    Arena *a = arena_new();
    if (!a) return diag_error(d, ST_MEMORY, "out of memory");
    out->arena = a;
    Graph *g = NULL;
    if (ar) TRY(import_bind(a, ar, &o->import, &g, &out->import, d));
    else TRY(import_pt2(a, o->path, &o->import, &g, &out->import, d));
    out->graph = g;
    if (o->compute == COMPUTE_AS_ARCHIVE) o->compute = compute_of_archive(o, g);
    if (o->compute != DT_BF16 && out->import.narrowed)
        vec_push(&out->import.notes, arena_printf(a, "half-precision values are computed in %s", dtype_name(o->import.real)));
    double imported = now() - start;
    Status st = compile_graph(a, g, o, out, d);
    out->seconds += imported;
    return st;
}

// ---- what helps, where nothing fits ------------------------------------------------------------------------------------------------
typedef struct Change {
    const char *text;
    CompileOptions o;
    int64_t nbytes;          // that a rank then needs at least; 0: there is no such plan
} Change;

static int by_nbytes(const void *pa, const void *pb) {
    const Change *a = pa, *b = pb;
    if (!a->nbytes != !b->nbytes) return a->nbytes ? -1 : 1;
    return (a->nbytes > b->nbytes) - (a->nbytes < b->nbytes);
}

static int list_changes(const CompileOptions *o, int64_t seq, Arena *a, Change *c) {
    const MemoryOptions *m = &o->memory;
    bool device = backend_of(o)->device != NULL;
    int n = 0;
    c[n] = (Change){.text = arena_printf(a, "--ranks %d", 2 * o->nranks), .o = *o};
    c[n++].o.nranks = 2 * o->nranks;
    c[n] = (Change){.text = arena_printf(a, "--seq %lld", (long long)seq / 2), .o = *o};
    c[n++].o.import.seq = seq / 2;
    if (device && !m->offload) {
        c[n] = (Change){.text = "--offload on", .o = *o};
        c[n++].o.memory.offload = true;
    }
    if (device && o->update && !o->offload_state) {
        c[n] = (Change){.text = "--offload-state", .o = *o};
        c[n++].o.offload_state = true;
    }
    if (m->remat != REMAT_AUTO || m->tile_rows != TILE_AUTO) {
        c[n] = (Change){.text = "--remat auto --tile auto", .o = *o};
        c[n].o.memory.remat = REMAT_AUTO;
        c[n++].o.memory.tile_rows = TILE_AUTO;
    }
    if (o->whole_logits) {
        c[n] = (Change){.text = "without --whole-logits", .o = *o};
        c[n++].o.whole_logits = false;
    }
    return n;
}

// The three changes that help most, each found by planning it.
static Status advise(const CompileOptions *o, int64_t seq, int64_t least, Diag *d) {
    enum { MOST = 6, SHOWN = 3 };
    Change c[MOST];
    Arena *a = arena_new();
    if (!a) return ST_MEMORY;
    Str s = {0};
    int n = list_changes(o, seq, a, c), shown = 0;
    for (int i = 0; i < n; i++) {
        Compiled out = {0};
        Diag ignored = {0};
        c[i].o.least = c[i].o.memory.quick = true;
        c[i].o.sketch = 1;
        c[i].o.dump_after = NULL;
        if (compile_from(NULL, &c[i].o, &out, &ignored) == ST_OK && out.plan) c[i].nbytes = plan_device_nbytes(out.plan, compile_device_model(o));
        compiled_free(&out);
    }
    qsort(c, (size_t)n, sizeof *c, by_nbytes);
    for (int i = 0; i < n && shown < SHOWN && c[i].nbytes > 0 && c[i].nbytes < least; i++, shown++)
        str_printf(&s, "%s%s (%s%s)", shown ? ", " : "; each rank would need less with ", c[i].text, bytes_text((double)c[i].nbytes).s,
                   c[i].nbytes <= o->memory.budget_nbytes ? ": fits" : "");
    size_t len = strlen(d->text);
    if (s.len) snprintf(d->text + len, sizeof d->text - len, "%s", str_text(&s));
    str_free(&s);
    arena_free(a);
    return ST_MEMORY;
}

Status compile_file(const CompileOptions *o, Compiled *out, Diag *d) {
    Status st = compile_from(NULL, o, out, d);
    return st != ST_OK && out->refused_nbytes > 0 ? advise(o, out->graph->seq, out->refused_nbytes, d) : st;
}
Status compile_archive(const Archive *ar, const CompileOptions *o, Compiled *out, Diag *d) { return compile_from(ar, o, out, d); }

void compiled_free(Compiled *c) {
    if (c->graph) graph_free_vecs(c->graph);
    vec_free(&c->import.missing);
    vec_free(&c->import.leftover);
    vec_free(&c->import.notes);
    vec_free(&c->shard.attention);
    vec_free(&c->shard.gathered);
    vec_free(&c->shard.square);
    vec_free(&c->shard.logits);
    arena_free(c->arena);
    *c = (Compiled){0};
}
