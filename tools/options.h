// Options that several subcommands share, and how they become CompileOptions.
#pragma once
#include "args.h"
#include "commands.h"
#include "exec/exec.h"

typedef struct CommonArgs {
    int64_t ranks, threads, seq, batch, seed, documents, attention_groups;
    const char *attention, *dtype, *weights, *decisions, *dump_after, *stop_after, *device, *device_model, *remat, *offload, *budget,
        *host_budget, *tile;
    bool no_fuse, verify_each, whole_logits, offload_state;
    bool runs;  // the command runs the plan, so its device must be one
} CommonArgs;

#define DOCUMENTS_UNSAID (-1)  // the data may say
#define COMMON_DEFAULTS {.ranks = 1, .seed = 1, .documents = DOCUMENTS_UNSAID, .attention_groups = 1}
// Of a command that runs the plan.
#define RUN_DEFAULTS {.ranks = 1, .seed = 1, .documents = DOCUMENTS_UNSAID, .attention_groups = 1, .runs = true}
// Rows for the option table.
// clang-format off
#define COMMON_OPTIONS(c)                                                                                                      \
    {"--ranks", OPT_INT, &(c).ranks, "P", "number of ranks (default 1)"},                                                      \
    OPTIONS_BUT_RANKS(c)
#define OPTIONS_BUT_RANKS(c)                                                                                                   \
    {"--threads", OPT_INT, &(c).threads, "N", "threads of each rank (default: processors / ranks)"},                           \
    {"--device", OPT_TEXT, &(c).device, "D",                                                                                   \
     "cpu (default) or cuda; plan and dump need no GPU for it and take h100, h200, a100-80g, mi300x too"},                     \
    {"--device-model", OPT_TEXT, &(c).device_model, "F",                                                                       \
     "a device model to reckon with (autosp calibrate writes one) instead of the device's own"},                               \
    {"--batch", OPT_INT, &(c).batch, "B", "batch size (default: the archive's example)"},                                      \
    {"--attention", OPT_TEXT, &(c).attention, "S", "auto, head (all-to-all), gather-kv (all-gather of keys and values)"},      \
    {"--dtype", OPT_TEXT, &(c).dtype, "T",                                                                                     \
     "fp32, bf16 (mixed precision; parameters stay fp32); default: the archive's, fp32 on the CPU"},                           \
    {"--max-documents", OPT_INT, &(c).documents, "N",                                                                          \
     "at most N documents are packed into one row: with --device cuda, faster attention (0: not known)"},                      \
    {"--weights", OPT_TEXT, &(c).weights, "PATH", "safetensors file or checkpoint folder instead of the archive's weights"},   \
    {"--remat", OPT_TEXT, &(c).remat, "R",                                                                                     \
     "auto (default): the fastest that fits the budget; none: keep all; layer: keep each layer's input, recompute the rest"}, \
    {"--offload", OPT_TEXT, &(c).offload, "on|off", "kept values may wait in pinned host memory (default: on with a GPU)"},    \
    {"--tile", OPT_TEXT, &(c).tile, "T", "auto (default), off, or ROWS: token-wise kernels run over so many tokens at a time"},\
    {"--attention-groups", OPT_INT, &(c).attention_groups, "N",                                                                \
     "attention does its heads in N groups, one after the other, with scratch for one (default 1)"},                           \
    {"--budget", OPT_TEXT, &(c).budget, "BYTES",                                                                               \
     "memory of each rank, such as 40GB or 40GiB (default: the device's, or what is free of it; none on the CPU)"},                                   \
    {"--host-budget", OPT_TEXT, &(c).host_budget, "BYTES", "pinned host memory of each rank (default: most of the host's)"},   \
    {"--whole-logits", OPT_FLAG, &(c).whole_logits, NULL, "keep the logits whole, as the program has them (for comparison)"},  \
    {"--decisions", OPT_TEXT, &(c).decisions, "PLAN", "replay the decisions saved by plan --save"},                            \
    {"--offload-state", OPT_FLAG, &(c).offload_state, NULL,                                                                    \
     "with the optimizer: its moments (in bf16 the parameters in fp32 too) in host memory, fetched for their update"},         \
    {"", 0, NULL, NULL, "debugging:"},                                                                                         \
    {"--dump-after", OPT_TEXT, &(c).dump_after, "PASS", "print the graph after this pass (or all) to stderr"},                 \
    {"--stop-after", OPT_TEXT, &(c).stop_after, "PASS", "stop there"},                                                         \
    {"--verify-each", OPT_FLAG, &(c).verify_each, NULL, "verify the graph after every pass"},                                  \
    {"--no-fuse", OPT_FLAG, &(c).no_fuse, NULL, "leave pointwise chains unfused"}

// Rows of the commands that run something.
#define RUNTIME_OPTIONS(r)                                                                                                     \
    {"--processes", OPT_FLAG, &(r).processes, NULL, "with --device cuda: each rank is a process of its own (default: a thread)"}, \
    {"--trace", OPT_TEXT, &(r).trace, "F", "debugging: a line for every value that a step makes (norm, ends, NaNs); slow"},     \
    {"--poison", OPT_FLAG, &(r).poison, NULL, "debugging: memory begins as NaN: what is read before it was written shows"},     \
    {"--no-graph", OPT_FLAG, &(r).no_graph, NULL, "with --device cuda: launch kernel by kernel, replay no captured step"}
// clang-format on

typedef struct RuntimeArgs {
    bool processes, no_graph, poison;
    const char *trace;
} RuntimeArgs;
static inline RuntimeOptions options_runtime(const RuntimeArgs *r) {
    return (RuntimeOptions){.processes = r->processes, .capture = !r->no_graph, .poison = r->poison,
                            .trace = r->trace ? fopen(r->trace, "w") : NULL};
}

// Fills o; the strategies of --decisions live in `a`. The Diag says what is wrong with the options.
Status options_compile(Arena *a, const CommonArgs *c, const char *path, CompileOptions *o, Diag *d);
// "autosp check: m.pt2: node ...: ..." on stderr.
void print_error(const char *command, const Diag *d);
// Archive notes and reports that a user should see, on stderr.
void print_import_notes(const char *command, const ImportReport *r);
