#include "options.h"

#include <stdlib.h>
#include <string.h>

#include "backend/registry.h"
#include "decisions.h"

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

static Status parse_tile(const char *text, TileOptions *out, Diag *d) {
    if (!text || !strcmp(text, "off")) return ST_OK;
    char *end;
    long long rows = strtoll(text, &end, 10);
    if (*end || end == text || rows < 1)
        return diag_error(d, ST_INPUT, "--tile %s: a number of rows of at least 1, or off", text);
    out->rows = rows;
    return ST_OK;
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

Status options_compile(Arena *a, const CommonArgs *c, const char *path, CompileOptions *o, Diag *d) {
    compile_defaults(o);
    if (c->ranks < 1 || c->ranks > 65536)
        return diag_error(d, ST_INPUT, "--ranks %lld: must be between 1 and 65536", (long long)c->ranks);
    if (c->threads < 0 || c->threads > 4096)
        return diag_error(d, ST_INPUT, "--threads %lld: must be between 1 and 4096", (long long)c->threads);
    if (c->seq < 0 || c->batch < 0) return diag_error(d, ST_INPUT, "sequence length and batch must be positive");
    o->path = path;
    o->nranks = (int)c->ranks;
    o->nthreads = (int)c->threads;
    o->import.batch = c->batch;
    o->import.seq = c->seq;
    o->import.weights = c->weights;
    o->import.allow_missing_params = true;  // each command says what it does about parameters without bytes
    o->no_fuse = c->no_fuse;
    o->verify_each |= c->verify_each;
    o->dump_after = c->dump_after;
    o->stop_after = c->stop_after;
    TRY(backend_find(c->device ? c->device : "cpu", &o->backend, d));
    TRY(parse_attention(c->attention, &o->attention, d));
    TRY(parse_tile(c->tile, &o->tile, d));
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
