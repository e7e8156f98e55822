// autosp dump: the graph after a pass, as text that autosp reads back.
#include <string.h>

#include "options.h"

int command_dump(int argc, char **argv) {
    CommonArgs c = COMMON_DEFAULTS;
    const char *after = "import", *parse = NULL;
    bool no_update = false;
    const Opt opts[] = {
        {"--seq", OPT_INT, &c.seq, "S", "sequence length (default: the archive's example)"},
        {"--after", OPT_TEXT, &after, "PASS", "import, canonicalize, experts, mask, grad, simplify, update, shard, fuse, schedule"},
        {"--no-update", OPT_FLAG, &no_update, NULL, "leave the optimizer out"},
        {"--parse", OPT_TEXT, &parse, "FILE", "instead of an archive: read a dump back, verify it and print it again"},
        COMMON_OPTIONS(c),
    };
    const Usage u = {"autosp dump", "M.pt2 --seq S --ranks P --after PASS", "Prints the graph as it is after a pass (docs/ir.md is the grammar).", opts,
                     sizeof opts / sizeof *opts};
    const char *path[1];
    int n = args_parse(&u, argc, argv, path, 1);
    if (n == -2) return EXIT_DONE;
    if (n < 0 || (n == 0 && !parse)) {
        if (n == 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    Arena *a = arena_new();
    Compiled out = {0};
    Str text = {0};
    Status st;
    if (parse) {
        Graph *g = NULL;
        st = graph_parse_file(a, parse, &g, &d);
        if (st == ST_OK) st = graph_verify(g, "parse", &d);
        if (st == ST_OK) graph_print(g, &text);
        if (g) graph_free_vecs(g);
    } else {
        CompileOptions o;
        c.stop_after = after;
        st = options_compile(a, &c, path[0], &o, &d);
        o.update = !no_update;
        if (st == ST_OK) st = compile_file(&o, &out, &d);
        if (st == ST_OK) graph_print(out.graph, &text);
    }
    if (st == ST_OK) fputs(str_text(&text), stdout);
    str_free(&text);
    compiled_free(&out);
    arena_free(a);
    if (st == ST_OK) return EXIT_DONE;
    print_error("autosp dump", &d);
    return EXIT_REFUSED;
}
