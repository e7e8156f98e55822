// autosp dump: the graph after a pass, as text that autosp reads back.
#include <string.h>

#include "backend/backend.h"
#include "options.h"

// Only a program as it is after import goes through the passes.
static Status check_forward(const Graph *g, const char *path, Diag *d) {
    bool loss = false, other = false;
    for (int64_t i = 0; i < g->outputs.len; i++) *(g->outputs.data[i].kind == OUT_LOSS ? &loss : &other) = true;
    bool placed = g->values.len && graph_value(g, 0)->place.kind != PLACE_NONE;
    if (loss && !other && !placed) return ST_OK;
    return diag_error(d, ST_INPUT, "%s: --after wants a forward graph: one loss, no gradients, nothing placed", path);
}

// Reads the text and, if a pass is named, runs the passes up to it. The arena goes to `out` then.
static Status parse_and_run(Arena *a, const char *path, const char *after, CompileOptions *o, Compiled *out, Diag *d) {
    Graph *g = NULL;
    Status st = graph_parse_file(a, path, &g, d);
    if (g) *out = (Compiled){.graph = g};
    TRY(st);
    TRY(graph_verify(g, "parse", d));
    if (!after) return ST_OK;
    TRY(check_forward(g, path, d));
    o->stop_after = after;
    if (o->compute == COMPUTE_AS_ARCHIVE) o->compute = DT_F32;
    return compile_graph(a, g, o, out, d);
}

int command_dump(int argc, char **argv) {
    CommonArgs c = COMMON_DEFAULTS;
    const char *after = NULL, *parse = NULL;
    double clip = 0;
    bool no_update = false, fuse_rows = false;
    const Opt opts[] = {
        {"--seq", OPT_INT, &c.seq, "S", "sequence length (default: the archive's example)"},
        {"--after", OPT_TEXT, &after, "PASS",
         "import, canonicalize, hold, experts, mask, head, precision, grad, simplify, head_join, update, shard, epilogue, "
         "recompute, fuse, narrow, groups, remat, schedule, offload, tile, state"},
        {"--no-update", OPT_FLAG, &no_update, NULL, "leave the optimizer out"},
        {"--clip", OPT_FLOAT, &clip, "N", "clip the gradient's norm, as train does (default 0: off)"},
        {"--fuse-rows", OPT_FLAG, &fuse_rows, NULL, "fuse as for a backend that takes views, rows and column sums (CUDA)"},
        {"--parse", OPT_TEXT, &parse, "FILE",
         "instead of an archive: read a dump back, verify it and print it again; with --after: a forward graph, run the passes "
         "on it"},
        COMMON_OPTIONS(c),
    };
    const Usage u = {"autosp dump", "M.pt2 --seq S --ranks P --after PASS",
                     "Prints the graph as it is after a pass (docs/ir.md is the grammar).", opts, sizeof opts / sizeof *opts};
    const char *path[1];
    int n = args_parse(&u, argc, argv, path, 1);
    if (n == -2) return EXIT_DONE;
    if (n < 0 || (n == 0 && !parse)) {
        if (n == 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    Arena *a = arena_new(), *graph_arena = arena_new();
    Compiled out = {0};
    Str text = {0};
    CompileOptions o;
    c.stop_after = after ? after : "import";
    Status st = options_compile(a, &c, n ? path[0] : NULL, &o, &d);
    o.update = !no_update;
    o.adamw.clip_norm = clip;
    if (fuse_rows) o.features |= BACKEND_FUSE_ROWS;
    if (st == ST_OK && parse) {
        st = parse_and_run(graph_arena, parse, after, &o, &out, &d);
        if (!out.arena) out.arena = graph_arena;
    } else {
        arena_free(graph_arena);
        if (st == ST_OK) st = compile_file(&o, &out, &d);
    }
    if (st == ST_OK) graph_print(out.graph, &text);
    if (st == ST_OK) fputs(str_text(&text), stdout);
    str_free(&text);
    compiled_free(&out);
    arena_free(a);
    if (st == ST_OK) return EXIT_DONE;
    print_error("autosp dump", &d);
    return EXIT_REFUSED;
}
