#include "options.h"

#include <stdlib.h>
#include <string.h>

#include "backend/registry.h"
#include "decisions.h"
#include "exec/available.h"

static Status parse_attention(const char *text, AttentionChoice *out, Diag *d) {
    *out = ATTN_AUTO;
    if (!text) return ST_OK;
    for (int i = ATTN_AUTO; i <= ATTN_GATHER_KV; i++)
        if (!strcmp(text, attention_choice_name((AttentionChoice)i))) {
            *out = (AttentionChoice)i;
            return ST_OK;
        }
    return diag_error(d, ST_INPUT, "--attention %s: there are auto, head and gather-kv", text);
}

static Status check_pass_name(const char *option, const char *name, bool all, Diag *d) {
    if (!name || (all && !strcmp(name, "all"))) return ST_OK;
    int n;
    const char *const *names = pass_names(&n);
    Str s = {0};
    for (int i = 0; i < n; i++) {
        if (!strcmp(name, names[i])) {
            str_free(&s);
            return ST_OK;
        }
        str_printf(&s, "%s%s", i ? ", " : "", names[i]);
    }
    Status st = diag_error(d, ST_INPUT, "%s %s: there is no such pass; they are %s", option, name, str_text(&s));
    str_free(&s);
    return st;
}

// "80GB", "74.5GiB", "1000000".
static Status parse_bytes(const char *option, const char *text, int64_t *out, Diag *d) {
    static const struct { const char *suffix; double factor; } unit[] = {
        {"", 1}, {"B", 1}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
        {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
    };
    char *end;
    double x = strtod(text, &end);
    for (size_t i = 0; i < sizeof unit / sizeof *unit && end > text; i++) {
        double n = x * unit[i].factor;
        if (strcmp(end, unit[i].suffix) || !(n >= 1 && n < 9e18)) continue;
        *out = (int64_t)n;
        return ST_OK;
    }
    return diag_error(d, ST_INPUT, "%s %s: a number of bytes such as 40GB, 37.5GiB or 1000000 is wanted", option, text);
}

static Status parse_rows(const char *text, int64_t *out, Diag *d) {
    char *end;
    long long rows = strtoll(text, &end, 10);
    if (*end || end == text || rows < 1) return diag_error(d, ST_INPUT, "--tile %s: auto, off, or a number of rows of at least 1", text);
    *out = rows;
    return ST_OK;
}

// A command that runs has what is free now. Ranks that share a device share its memory, and all share the host's, of which some is left
// to the system and to files that are read.
static void limit_to_here(const CommonArgs *c, const DeviceApi *device, const DeviceModel *model, MemoryOptions *m) {
    size_t have, total;
    Diag d = {0};
    int64_t count = device->count(), each = count > 0 ? (c->ranks + count - 1) / count : 1, host = available_host_nbytes();
    if (count > 0 && device->available(0, &have, &total, &d) == ST_OK) {
        double used = (double)(total - have);  // by others, or by our own context and no more than that
        int64_t most = (int64_t)(((double)total - (used > model->context_nbytes ? used : model->context_nbytes)) / (double)each);
        if (most > 0 && (m->budget_nbytes <= 0 || most < m->budget_nbytes)) m->budget_nbytes = most;
    }
    if (host >= 0) m->host_nbytes = min_i64(m->host_nbytes, (int64_t)((double)host * 0.85 / (double)c->ranks));
}

static Status parse_memory(const CommonArgs *c, CompileOptions *o, Diag *d) {
    MemoryOptions *m = &o->memory;
    bool device = o->backend->device != NULL;
    const DeviceModel *model = compile_device_model(o);
    *m = (MemoryOptions){.remat = REMAT_AUTO, .offload = device, .tile_rows = TILE_AUTO, .host_nbytes = INT64_MAX};
    for (int i = REMAT_NONE; c->remat && i <= REMAT_AUTO + 1; i++) {
        if (i > REMAT_AUTO) return diag_error(d, ST_INPUT, "--remat %s: there are none, layer and auto", c->remat);
        m->remat = (RematMode)i;
        if (!strcmp(c->remat, remat_mode_name(m->remat))) break;
    }
    if (m->remat != REMAT_AUTO) m->offload = false, m->tile_rows = 0;  // unless asked for
    if (c->offload && strcmp(c->offload, "on") && strcmp(c->offload, "off"))
        return diag_error(d, ST_INPUT, "--offload %s: there are on and off", c->offload);
    if (c->offload) m->offload = !strcmp(c->offload, "on");
    if (c->tile && !strcmp(c->tile, "auto")) m->tile_rows = TILE_AUTO;
    else if (c->tile && !strcmp(c->tile, "off")) m->tile_rows = 0;
    else if (c->tile) TRY(parse_rows(c->tile, &m->tile_rows, d));
    if (c->attention_groups < 1 || c->attention_groups > 65536)
        return diag_error(d, ST_INPUT, "--attention-groups %lld: must be between 1 and 65536", (long long)c->attention_groups);
    m->attention_groups = c->attention_groups;
    if (device && model->mem_nbytes > 0) m->budget_nbytes = (int64_t)(model->mem_nbytes - model->context_nbytes);
    if (device && model->host_mem_nbytes > 0) m->host_nbytes = (int64_t)(model->host_mem_nbytes * 0.95);
    if (device && c->runs) limit_to_here(c, o->backend->device, model, m);
    if (c->budget) TRY(parse_bytes("--budget", c->budget, &m->budget_nbytes, d));
    if (c->host_budget) TRY(parse_bytes("--host-budget", c->host_budget, &m->host_nbytes, d));
    return ST_OK;
}

static Status unknown_device(const char *name, Diag *d) {
    Str s = {0};
    for (int i = 0; device_model_at(i); i++) str_printf(&s, "%s%s", i ? ", " : "", device_model_at(i)->name);
    Status st = diag_error(d, ST_INPUT, "--device %s: there are cpu and cuda; to plan for, also the device models %s", name,
                           str_text(&s));
    str_free(&s);
    return st;
}

// A GPU that no shipped model is of: the plan's seconds are another's.
static void note_unknown_gpu(void) {
    char name[128];
    if (device_name_here(name, sizeof name) && !device_model_of(name))
        fprintf(stderr, "note: there is no device model of %s; h100's is used (autosp calibrate measures one)\n", name);
}

// cpu and cuda are backends, with the model of what is here; the other names are models, each with the backend it describes.
static Status choose_device(Arena *a, const CommonArgs *c, CompileOptions *o, Diag *d) {
    const char *name = c->device;
    if (c->device_model) TRY(device_model_load(a, c->device_model, &o->device, d));
    if (!name) name = o->device ? o->device->backend : "cpu";
    if (strcmp(name, "cpu") && strcmp(name, "cuda")) {
        const DeviceModel *m = device_model_find(name);
        if (!m) return unknown_device(name, d);
        if (c->runs)
            return diag_error(d, ST_INPUT, "--device %s: that is a model to plan for; what runs here is --device %s", name,
                              m->backend);
        if (!o->device) o->device = m;
        name = m->backend;
    }
    if (o->device && strcmp(o->device->backend, name))
        return diag_error(d, ST_INPUT, "--device-model %s: it describes the backend %s, not %s", c->device_model,
                          o->device->backend, name);
    TRY(backend_find(name, &o->backend, d));
    if (!o->device && o->backend->device) note_unknown_gpu();
    return ST_OK;
}

Status options_compile(Arena *a, const CommonArgs *c, const char *path, CompileOptions *o, Diag *d) {
    compile_defaults(o);
    if (c->ranks < 1 || c->ranks > 65536)
        return diag_error(d, ST_INPUT, "--ranks %lld: must be between 1 and 65536", (long long)c->ranks);
    if (c->threads < 0 || c->threads > 4096)
        return diag_error(d, ST_INPUT, "--threads %lld: must be between 1 and 4096", (long long)c->threads);
    if (c->seq < 0 || c->batch < 0) return diag_error(d, ST_INPUT, "sequence length and batch must be positive");
    if (c->documents < DOCUMENTS_UNSAID)
        return diag_error(d, ST_INPUT, "--max-documents %lld: must not be negative", (long long)c->documents);
    o->max_documents = c->documents < 0 ? 0 : c->documents;
    o->path = path;
    o->nranks = (int)c->ranks;
    o->nthreads = (int)c->threads;
    o->import.batch = c->batch;
    o->import.seq = c->seq;
    o->import.weights = c->weights;
    o->import.allow_missing_params = true;  // each command says what it does about parameters without bytes
    o->no_fuse = c->no_fuse;
    o->whole_logits = c->whole_logits;
    o->offload_state = c->offload_state;
    o->verify_each |= c->verify_each;
    o->dump_after = c->dump_after;
    o->stop_after = c->stop_after;
    TRY(choose_device(a, c, o, d));
    TRY(parse_memory(c, o, d));
    TRY(parse_attention(c->attention, &o->attention, d));
    TRY(compute_from_name(c->dtype, &o->compute, d));
    TRY(check_pass_name("--dump-after", c->dump_after, true, d));
    TRY(check_pass_name("--stop-after", c->stop_after, false, d));
    if (c->decisions) TRY(decisions_load(a, c->decisions, o, d));
    return ST_OK;
}

void print_error(const char *command, const Diag *d) {
    fprintf(stderr, "%s: %s: %s\n", command, status_name(d->status), d->text);
}

void print_import_notes(const char *command, const ImportReport *r) {
    for (int64_t i = 0; i < r->notes.len; i++) fprintf(stderr, "%s: note: %s\n", command, r->notes.data[i]);
    for (int64_t i = 0; i < r->leftover.len && i < 10; i++)
        fprintf(stderr, "%s: note: not used: tensor \"%s\"\n", command, r->leftover.data[i]);
    if (r->leftover.len > 10)
        fprintf(stderr, "%s: note: ... and %lld more tensors not used\n", command, (long long)r->leftover.len - 10);
}
