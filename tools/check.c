// autosp check: is the compiled program equal to the original?
#include "train/check.h"

#include <math.h>
#include <string.h>

#include "options.h"

static void print_number(const char *name, double v) {
    if (isfinite(v))
        printf(" %s=%.3e", name, v);
    else
        printf(" %s=nan", name);
}

static void show_notes(const ImportReport *r) { print_import_notes("autosp check", r); }

int command_check(int argc, char **argv) {
    CommonArgs c = RUN_DEFAULTS;
    CheckOptions o = {.lr = 1e-3, .adamw_steps = 5, .notes = show_notes};
    int64_t steps = 5;
    RuntimeArgs run = {0};
    const Opt opts[] = {
        {"--golden", OPT_TEXT, &o.golden, "F", "safetensors with inputs, loss, grad.<parameter>, adamw_losses"},
        {"--seq", OPT_INT, &c.seq, "S", "without golden: sequence length; P ranks are compared with one"},
        {"--inputs", OPT_TEXT, &o.inputs, "F", "without golden: safetensors with the inputs (default: made up by role)"},
        {"--seed", OPT_INT, &c.seed, "N", "of made-up inputs and parameters (default 1)"},
        {"--steps", OPT_INT, &steps, "N", "without golden: AdamW steps to compare (default 5)"},
        {"--out", OPT_TEXT, &o.out, "F", "write loss, grad.<parameter>, adamw_losses here"},
        {"--hold-routing", OPT_FLAG, &o.hold_routing, NULL,
         "a mixture's choices of experts are those of a float32 run: low precision flips close ones"},
        RUNTIME_OPTIONS(run),
        COMMON_OPTIONS(c),
    };
    const Usage u = {
        "autosp check", "M.pt2 (--golden F.safetensors | --seq S) --ranks P [options]",
        "Runs the program on P ranks (threads, or with --processes processes) and compares its loss, every gradient and the "
        "losses\n"
        "of AdamW steps with a golden, or with one rank of the same precision. Limits (relative errors of the loss, of "
        "gradients,\n"
        "of AdamW losses): 1e-5, 1e-4, 1e-4 in fp32; 2e-3, 3e-2, 5e-3 with --dtype bf16. The last line is the verdict: PASS\n"
        "(exit 0), FAIL (1) or REFUSED (2).",
        opts, sizeof opts / sizeof *opts};
    const char *path[1];
    int n = args_parse(&u, argc, argv, path, 1);
    if (n == -2) return EXIT_DONE;
    if (n != 1) {
        if (n == 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    CheckResult r = {0};
    Arena *a = arena_new();
    o.seed = (uint64_t)c.seed;
    o.runtime = options_runtime(&run);
    Status st = options_compile(a, &c, path[0], &o.compile, &d);
    if (st == ST_OK && !o.golden && c.seq == 0)
        st = diag_error(&d, ST_INPUT, "give --golden FILE, or --seq S to compare P ranks with one");
    if (st == ST_OK && o.golden && o.inputs) st = diag_error(&d, ST_INPUT, "the inputs come from the golden: drop --inputs");
    if (st == ST_OK && (steps < 1 || steps > 1024)) st = diag_error(&d, ST_INPUT, "--steps must be between 1 and 1024");
    o.adamw_steps = (int)steps;
    if (st == ST_OK) st = check_run(&o, &r, &d);
    arena_free(a);
    if (st != ST_OK) {
        printf("check: REFUSED: %s\n", d.text);
        return EXIT_REFUSED;
    }
    if (r.grad_from_reference) printf("the golden has no gradients: compared with one rank in float64\n");
    if (!r.pass) printf("largest gradient error: %s\n", r.worst);
    printf("check: %s ranks=%lld seq=%lld", r.pass ? "PASS" : "FAIL", (long long)c.ranks, (long long)r.seq);
    print_number("loss_relerr", r.loss_relerr);
    print_number("grad_relerr", r.grad_relerr);
    print_number("adamw_relerr", r.adamw_relerr);
    printf("\n");
    return r.pass ? EXIT_DONE : EXIT_DIFFERENT;
}
