// autosp plan: what a step takes, before anything runs.
#include <inttypes.h>
#include <string.h>

#include "decisions.h"
#include "options.h"
#include "driver/plan_report.h"

int command_plan(int argc, char **argv) {
    CommonArgs c = COMMON_DEFAULTS;
    const char *save = NULL;
    bool json = false, all = false, no_update = false;
    const Opt opts[] = {
        {"--seq", OPT_INT, &c.seq, "S", "sequence length (default: the archive's example)"},
        {"--json", OPT_FLAG, &json, NULL, "the same as JSON on standard output"},
        {"--save", OPT_TEXT, &save, "PLAN", "keep the decisions, for check --decisions and train --decisions"},
        {"--all", OPT_FLAG, &all, NULL, "list every collective instead of groups of alike ones"},
        {"--no-update", OPT_FLAG, &no_update, NULL, "leave the optimizer out"},
        COMMON_OPTIONS(c),
    };
    const Usage u = {"autosp plan", "M.pt2 --seq S --ranks P [options]",
                     "Compiles the program and says what each rank will hold and do in one training step: bytes by kind and the peak, FLOPs,\n"
                     "every collective with its bytes and its reason, and the strategy of each attention with what the others would cost.",
                     opts, sizeof opts / sizeof *opts};
    const char *path[1];
    int n = args_parse(&u, argc, argv, path, 1);
    if (n == -2) return EXIT_DONE;
    if (n != 1) {
        if (n == 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    CompileOptions o;
    Compiled out = {0};
    Arena *a = arena_new();
    Status st = options_compile(a, &c, path[0], &o, &d);
    o.update = !no_update;
    o.sketch = true;
    if (st == ST_OK) st = compile_file(&o, &out, &d);
    if (st == ST_OK && o.stop_after) {
        fprintf(stderr, "autosp plan: stopped after %s, there is no plan\n", o.stop_after);
    } else if (st == ST_OK) {
        if (json)
            st = plan_report_json(stdout, &out, &d);
        else
            plan_report_text(stdout, &out, all);
    }
    if (st == ST_OK && save && out.plan) st = decisions_save(save, &out, &d);
    if (st == ST_OK) print_import_notes("autosp plan", &out.import);
    compiled_free(&out);
    arena_free(a);
    if (st == ST_OK) return EXIT_DONE;
    print_error("autosp plan", &d);
    return EXIT_REFUSED;
}
