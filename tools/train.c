// autosp train: the main job.
#include "train/train.h"

#include <math.h>
#include <signal.h>
#include <string.h>

#include "options.h"
#include "driver/plan_report.h"

static volatile int stop_requested;

// The first Ctrl-C asks the loop to save and leave after its step; the second ends the process at once.
static void on_signal(int sig) {
    stop_requested = 1;
    signal(sig, SIG_DFL);
}

static void show_notes(const Compiled *c) { print_import_notes("autosp train", &c->import); }

static void show_plan(const Compiled *c) {
    show_notes(c);
    plan_report_text(stdout, c, false);
    printf("\n");
    fflush(stdout);
}

static Status check_options(const TrainOptions *o, const CommonArgs *c, Diag *d) {
    if (c->seq < 1) return diag_error(d, ST_INPUT, "give the sequence length with --seq S");
    if (o->data.nfile < 1) return diag_error(d, ST_INPUT, "give the training data with --data FILE...");
    if (o->steps < 1) return diag_error(d, ST_INPUT, "give the number of steps with --steps N");
    if (!(o->lr > 0) || !isfinite(o->lr)) return diag_error(d, ST_INPUT, "--lr must be positive");
    if (!(o->min_lr >= 0 && o->min_lr <= 1)) return diag_error(d, ST_INPUT, "--min-lr is a fraction between 0 and 1");
    if (!(o->compile.adamw.clip_norm >= 0) || !(o->compile.adamw.weight_decay >= 0))
        return diag_error(d, ST_INPUT, "--clip and --weight-decay must not be negative");
    const AdamWOptions *w = &o->compile.adamw;
    if (!(w->beta1 >= 0 && w->beta1 < 1) || !(w->beta2 >= 0 && w->beta2 < 1))
        return diag_error(d, ST_INPUT, "--beta1 and --beta2 must be in [0, 1)");
    if (o->warmup < -1) return diag_error(d, ST_INPUT, "--warmup must not be negative");
    if (o->save_every < 0) return diag_error(d, ST_INPUT, "--save-every must not be negative");
    return ST_OK;
}

// Files given after --data, up to the next option, as well as one --data each.
static int gather_data(int argc, char **argv, const char **file, char **rest) {
    int n = 0;
    for (int i = 0, in_data = 0; i < argc; i++) {
        if (!strncmp(argv[i], "--", 2)) in_data = !strcmp(argv[i], "--data");
        if (!strcmp(argv[i], "--data")) continue;
        if (!strncmp(argv[i], "--data=", 7))
            file[n++] = argv[i] + 7;
        else if (in_data)
            file[n++] = argv[i];
        else
            *rest++ = argv[i];
    }
    return n;
}

// files, rest: room for all arguments.
static int train_command(int argc, char **argv, const char **files, char **rest) {
    CommonArgs c = RUN_DEFAULTS;
    TrainOptions o = {.lr = 3e-4, .warmup = -1, .min_lr = 0.1, .out = "out", .data.doc_token = -1, .stop = &stop_requested};
    AdamWOptions adamw = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip_norm = 1.0};
    const char *format = "auto", *ignored = NULL;
    bool quiet = false, no_save = false;
    RuntimeArgs run = {0};
    const Opt opts[] = {
        {"--data", OPT_TEXT, &ignored, "FILE...",
         "training data: raw bytes, .u16/.u32 token ids, or .safetensors with a tensor [N, ...] per input"},
        {"--data-format", OPT_TEXT, &format, "F", "auto (by extension), bytes, u16, u32, safetensors"},
        {"--doc-token", OPT_INT, &o.data.doc_token, "ID",
         "documents end with this token; it is put between files (packed documents)"},
        {"--seq", OPT_INT, &c.seq, "S", "sequence length"},
        {"--steps", OPT_INT, &o.steps, "N", "optimizer steps"},
        {"--lr", OPT_FLOAT, &o.lr, "LR", "peak learning rate (default 3e-4)"},
        {"--warmup", OPT_INT, &o.warmup, "N", "steps of linear warm-up (default: a twentieth of the steps)"},
        {"--min-lr", OPT_FLOAT, &o.min_lr, "F", "the cosine ends at this fraction of --lr (default 0.1)"},
        {"--weight-decay", OPT_FLOAT, &adamw.weight_decay, "W", "AdamW's decoupled decay (default 0.1)"},
        {"--beta1", OPT_FLOAT, &adamw.beta1, "B", "default 0.9"},
        {"--beta2", OPT_FLOAT, &adamw.beta2, "B", "default 0.95"},
        {"--clip", OPT_FLOAT, &adamw.clip_norm, "N", "clip the gradient's norm (default 1; 0: off)"},
        {"--seed", OPT_INT, &c.seed, "N", "data order, dropout, random parameters (default 1)"},
        {"--random-init", OPT_FLAG, &o.random_init, NULL, "draw parameters that have no bytes from the seed"},
        {"--out", OPT_TEXT, &o.out, "DIR", "outputs (default out): model and optimizer .safetensors, metrics.jsonl, loss.svg"},
        {"--save-every", OPT_INT, &o.save_every, "N", "save every N steps too (default: at the end and on Ctrl-C)"},
        {"--resume", OPT_FLAG, &o.resume, NULL, "continue what --out holds"},
        {"--no-save", OPT_FLAG, &no_save, NULL, "save nothing (benchmarks)"},
        {"--profile", OPT_FLAG, &o.profile, NULL,
         "time the last step kernel by kernel, beside what was predicted: a table, and OUT/trace.json for Perfetto"},
        {"--quiet", OPT_FLAG, &quiet, NULL, "do not print the plan first"},
        RUNTIME_OPTIONS(run),
        COMMON_OPTIONS(c),
    };
    const Usage u = {"autosp train", "M.pt2 --data FILE... --seq S --ranks P --steps N [options]",
                     "Trains the program on long sequences: AdamW with warm-up, cosine and clipping. Ctrl-C saves and leaves.",
                     opts, sizeof opts / sizeof *opts};
    int nfile = gather_data(argc, argv, files, rest), nrest = 0;
    while (rest[nrest]) nrest++;
    const char *path[1];
    int n = args_parse(&u, nrest, rest, path, 1);
    if (n == -2) return EXIT_DONE;
    if (n != 1) {
        if (n == 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    Arena *a = arena_new();
    o.data.file = files, o.data.nfile = nfile;
    o.seed = (uint64_t)c.seed;
    o.runtime = options_runtime(&run);
    Status st = options_compile(a, &c, path[0], &o.compile, &d);
    o.compile.adamw = adamw;
    o.count_documents = c.documents == DOCUMENTS_UNSAID;
    o.show_plan = quiet ? show_notes : show_plan;
    if (st == ST_OK && !data_format_from_name(format, &o.data.format))
        st = diag_error(&d, ST_INPUT, "--data-format %s: there are auto, bytes, u16, u32, safetensors", format);
    if (st == ST_OK) st = check_options(&o, &c, &d);
    if (no_save) o.save_every = -1;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    TrainResult r;
    if (st == ST_OK) st = train_run(&o, &r, &d);
    arena_free(a);
    if (st != ST_OK) {
        print_error("autosp train", &d);
        return EXIT_REFUSED;
    }
    printf("%s after %lld steps", r.stopped ? "stopped and saved" : "done", (long long)r.steps);
    if (isfinite(r.first_loss)) printf(": loss %.4f -> %.4f", r.first_loss, r.last_loss);
    if (isfinite(r.unigram_entropy)) printf(" (unigram entropy of the data %.4f)", r.unigram_entropy);
    if (no_save) printf("\n");
    else printf("\noutputs: %s/model.safetensors  %s/metrics.jsonl  %s/loss.svg\n", o.out, o.out, o.out);
    return EXIT_DONE;
}

int command_train(int argc, char **argv) {
    const char **files = calloc((size_t)argc + 1, sizeof *files);
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int status = files && rest ? train_command(argc, argv, files, rest) : EXIT_REFUSED;
    free(files);
    free(rest);
    return status;
}
