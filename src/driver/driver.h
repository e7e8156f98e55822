// From a file to a Plan: the pass list in reading order.
#pragma once
#include "import/import.h"
#include "pass/pass.h"
#include "plan/plan.h"

typedef struct CompileOptions {
    const char *path;          // .pt2
    ImportOptions import;
    int nranks, nthreads;      // nthreads 0: processors / ranks, at least 1
    AttentionChoice attention;
    const char *const *strategies;  // replayed decisions, see PassContext
    int nstrategies;
    RoutingChoice routing;     // for `check --hold-routing`
    bool update;               // with the optimizer
    AdamWOptions adamw;
    bool offload_state;        // with the optimizer: its state in host memory
    bool no_fuse;
    bool whole_logits;         // the output layer as the program has it: logits whole
    MemoryOptions memory;      // what to keep, recompute, offload and tile; budget_nbytes 0: all is kept
    unsigned features;           // BACKEND_* that passes may count on besides the backend's own (tests, dumps)
    int64_t max_documents;     // packed into one row of the batch: more are an error of the step; 0: not known
    DType compute;             // DT_F32, or DT_BF16: mixed precision
    const Backend *backend;      // what the plan is for; NULL: the CPU
    const DeviceModel *device;   // what costs are reckoned with; NULL: the CPU's, or that of the GPU here, or h100
    const char *stop_after;    // pass name or NULL
    const char *dump_after;    // pass name, "all" or NULL: text to stderr
    bool verify_each;
    double square_limit_nbytes;  // 0: default
    int sketch;                // > 0: a plan to look at: of more ranks than so many only those that tell (plan_telling_ranks)
    bool least;                // the plan that takes the least memory that was found, whatever the budget
} CompileOptions;
enum { SKETCH_RANKS = 64 };    // up to here a plan to look at has all ranks

typedef struct Compiled {
    int64_t refused_nbytes;    // the least that was found, where no plan fits the budget; else 0
    Arena *arena;              // owns the graph, the plan and the reports
    Graph *graph;              // after the last pass that ran
    Plan *plan;                // NULL with stop_after
    ImportReport import;
    ShardReport shard;
    MemoryChoice memory;       // what remat, offload and tile did
    MemoryOptions options;     // under which limits
    int ntry;                  // plans made until one fitted the budget
    DType compute;             // as asked for
    const DeviceModel *device;   // what seconds and memory are reckoned with
    double seconds;            // import + passes + plan
} Compiled;
const DeviceModel *compile_device_model(const CompileOptions *o);  // what the plan's seconds are reckoned with
#define COMPUTE_AS_ARCHIVE \
    DT_COUNT  // CompileOptions.compute: bf16 where the archive's parameters are and the backend can, else f32
// "fp32", "bf16"; NULL: COMPUTE_AS_ARCHIVE.
Status compute_from_name(const char *name, DType *out, Diag *d);
void compile_defaults(CompileOptions *o);
Status compile_file(const CompileOptions *o, Compiled *out, Diag *d);
// As compile_file, from an archive that import_open opened, for one program at several lengths. The archive outlives the result.
Status compile_archive(const Archive *ar, const CompileOptions *o, Compiled *out, Diag *d);
// As compile_file, from a forward graph already in `a` (C builder API, tests). Takes ownership of the arena.
Status compile_graph(Arena *a, Graph *forward, const CompileOptions *o, Compiled *out, Diag *d);
// What a rank takes of a device's budget at most: its arena, and the tables for pinned host memory.
int64_t plan_device_nbytes(const Plan *p, const DeviceModel *m);
void compiled_free(Compiled *c);
const char *const *pass_names(int *n);  // "import", "canonicalize", ..., "plan"
