#include "decisions.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

Status decisions_save(const char *path, const Compiled *c, Diag *d) {
    json_t *attention = json_array();
    for (int64_t i = 0; i < c->shard.attention.len; i++) {
        const AttentionReport *r = &c->shard.attention.data[i];
        json_array_append_new(attention, json_pack("{s:s, s:s?}", "strategy", r->strategy, "source", r->source));
    }
    json_t *top = json_pack("{s:i, s:s, s:I, s:I, s:i, s:o}", "autosp_decisions", 1, "program", c->graph->name, "seq",
                            (json_int_t)c->graph->seq, "batch", (json_int_t)c->graph->batch, "ranks", graph_nranks(c->graph),
                            "attention", attention);
    if (!top) return diag_error(d, ST_MEMORY, "out of memory");
    char *text = json_dumps(top, JSON_INDENT(2));
    json_decref(top);
    if (!text) return diag_error(d, ST_MEMORY, "out of memory");
    Status st = file_replace(path, text, strlen(text), d);
    free(text);
    return st;
}

static Status read_strategies(Arena *a, const json_t *top, const char *path, CompileOptions *o, Diag *d) {
    const json_t *list = json_object_get(top, "attention");
    if (json_integer_value(json_object_get(top, "autosp_decisions")) != 1 || !json_is_array(list))
        return diag_error(d, ST_INPUT, "%s: these are no saved decisions (autosp plan --save writes them)", path);
    size_t n = json_array_size(list);
    const char **names = ARENA_ARRAY(a, const char *, n + 1);
    for (size_t i = 0; i < n; i++) {
        const char *s = json_string_value(json_object_get(json_array_get(list, i), "strategy"));
        if (!s) return diag_error(d, ST_INPUT, "%s: attention %zu has no strategy", path, i);
        // "local" is what one rank does; on more ranks it leaves the choice open
        names[i] = strcmp(s, "local") ? arena_strdup(a, s) : NULL;
    }
    o->strategies = names;
    o->nstrategies = (int)n;
    return ST_OK;
}

Status decisions_load(Arena *a, const char *path, CompileOptions *o, Diag *d) {
    json_error_t e;
    json_t *top = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
    if (!top) return diag_error(d, ST_INPUT, "%s:%d: %s", path, e.line, e.text);
    Status st = read_strategies(a, top, path, o, d);
    json_decref(top);
    return st;
}
