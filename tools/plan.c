// autosp plan: what a step takes, before anything runs.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "decisions.h"
#include "driver/explain.h"
#include "driver/html.h"
#include "driver/longest.h"
#include "driver/plan_report.h"
#include "options.h"

enum { MOST_ROWS = 64 };
typedef struct PlanArgs {
    CommonArgs common;
    const char *ranks, *save, *html;
    bool json, all, no_update, max_seq;
    int nrank, rank[MOST_ROWS];
} PlanArgs;

// "8" or "1,2,4,8".
static Status parse_ranks(PlanArgs *p, Diag *d) {
    const char *at = p->ranks ? p->ranks : "1";
    for (;; at++) {
        char *end;
        errno = 0;
        long n = strtol(at, &end, 10);
        if (end == at || errno || n < 1 || n > 65536 || (*end && *end != ','))
            return diag_error(d, ST_INPUT, "--ranks %s: a number between 1 and 65536 is wanted, or several with commas between them", p->ranks);
        if (p->nrank == MOST_ROWS) return diag_error(d, ST_INPUT, "--ranks %s: more than %d numbers", p->ranks, MOST_ROWS);
        p->rank[p->nrank++] = (int)n;
        at = end;
        if (!*at) break;
    }
    if (p->nrank > 1 && !p->max_seq) return diag_error(d, ST_INPUT, "--ranks %s: several numbers go with --max-seq only", p->ranks);
    p->common.ranks = p->rank[0];
    return ST_OK;
}

static Status plan_longest(Arena *a, const PlanArgs *p, const CompileOptions *o, Diag *d) {
    if (p->common.seq) return diag_error(d, ST_INPUT, "--seq and --max-seq: one of the two");
    if (p->save || p->html) return diag_error(d, ST_INPUT, "--save and --html show one plan: leave out --max-seq and give --seq");
    Longest row[MOST_ROWS];
    TRY(longest_find(a, o, p->nrank, p->rank, row, d));
    if (p->json) return longest_json(stdout, o, p->nrank, row, d);
    longest_text(stdout, o, p->nrank, row);
    return ST_OK;
}

static Status plan_one(const PlanArgs *p, const CompileOptions *o, Diag *d) {
    Compiled out = {0};
    Status st = compile_file(o, &out, d);
    if (st == ST_OK && o->stop_after) {
        fprintf(stderr, "autosp plan: stopped after %s, there is no plan\n", o->stop_after);
    } else if (st == ST_OK) {
        if (p->json) st = plan_report_json(stdout, &out, d);
        else plan_report_text(stdout, &out, p->all);
    }
    if (st == ST_OK && p->html && out.plan) st = plan_html(p->html, &out, d);
    if (st == ST_OK && p->save && out.plan) st = decisions_save(p->save, &out, d);
    if (st == ST_OK) print_import_notes("autosp plan", &out.import);
    compiled_free(&out);
    return st;
}

int command_plan(int argc, char **argv) {
    PlanArgs p = {.common = COMMON_DEFAULTS};
    const Opt opts[] = {
        {"--seq", OPT_INT, &p.common.seq, "S", "sequence length (default: the archive's example)"},
        {"--max-seq", OPT_FLAG, &p.max_seq, NULL, "instead of one length: the longest that fits, for each number of ranks"},
        {"--ranks", OPT_TEXT, &p.ranks, "P[,P...]", "number of ranks (default 1); with --max-seq several, such as 1,8,64,1024"},
        {"--json", OPT_FLAG, &p.json, NULL, "the same as JSON on standard output"},
        {"--html", OPT_TEXT, &p.html, "F", "one page: memory and streams over the step, decisions"},
        {"--save", OPT_TEXT, &p.save, "PLAN", "keep the decisions, for check --decisions and train --decisions"},
        {"--all", OPT_FLAG, &p.all, NULL, "list everything: each collective, each value alive at the peak"},
        {"--no-update", OPT_FLAG, &p.no_update, NULL, "leave the optimizer out"},
        OPTIONS_BUT_RANKS(p.common),
    };
    const Usage u = {"autosp plan", "M.pt2 --seq S --ranks P [options]\n       autosp plan M.pt2 --max-seq --ranks 1,8,64 [options]",
                     "Compiles the program and says what each rank will hold and do in one training step: bytes by kind, the peak and what is\n"
                     "alive there, what is kept for the backward and what is computed again, where the time goes, every collective with its\n"
                     "bytes and its reason, and the strategy of each attention with what the others would cost.\n"
                     "With --max-seq: a table of the longest contexts that fit the memory, to about two percent.",
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
    Arena *a = arena_new();
    Status st = parse_ranks(&p, &d);
    if (st == ST_OK) st = options_compile(a, &p.common, path[0], &o, &d);
    if (st == ST_OK) {
        o.update = !p.no_update;
        o.sketch = SKETCH_RANKS;
        st = p.max_seq ? plan_longest(a, &p, &o, &d) : plan_one(&p, &o, &d);
    }
    arena_free(a);
    if (st == ST_OK) return EXIT_DONE;
    print_error("autosp plan", &d);
    return EXIT_REFUSED;
}
