// The main job: AdamW steps over data, with progress, metrics, saving and resuming.
#pragma once
#include "driver/driver.h"
#include "exec/exec.h"
#include "train/data.h"

typedef struct TrainOptions {
    CompileOptions compile;
    RuntimeOptions runtime;
    DataOptions data;
    int64_t steps;
    double lr;              // peak
    int64_t warmup;         // steps of linear warm-up; -1: a twentieth of the steps
    double min_lr;          // fraction of lr that the cosine ends at
    uint64_t seed;          // data order, dropout, random parameters
    bool random_init;       // parameters without bytes are drawn from the seed instead of being refused
    const char *out;        // folder
    bool resume;            // continue from out
    int64_t save_every;     // steps; 0: only at the end; -1: never (benchmarks)
    bool count_documents;   // on a device: compile.max_documents from the data, where they tell
    bool profile;           // devices: the last step is timed kernel by kernel; a table to standard output, out/trace.json
    void (*show_plan)(const Compiled *c);  // called once compiled, before anything runs; may be NULL
    const volatile int *stop;  // set by a signal handler: save and leave after this step
} TrainOptions;

typedef struct TrainResult {
    int64_t steps;          // done in all, earlier runs included
    double first_loss, last_loss;  // last: mean over the last tenth of the run; NaN if no step was run
    double unigram_entropy; // of the data, nats per token; NaN if not known
    bool stopped;           // by a signal
} TrainResult;

// Progress on standard output. Files in o->out: metrics.jsonl, loss.svg, model.safetensors (the archive's parameter names, as
// load_state_dict wants them), optimizer.safetensors (for --resume: moments, step, what half precision does not hold).
Status train_run(const TrainOptions *o, TrainResult *r, Diag *d);

// lr at 0-based step: linear warm-up, then half a cosine down to min_lr * lr.
double train_lr(const TrainOptions *o, int64_t step);

// ---- save.c ----
struct Runtime;
Status save_model(const char *dir, struct Runtime *rt, const Graph *g, int64_t steps_done, uint64_t seed, Diag *d);
Status save_load(const char *dir, struct Runtime *rt, const Graph *g, uint64_t seed, int64_t *steps_done, Diag *d);
// ---- picture.c: an SVG of the loss over steps; hline (NaN: none) is drawn with its label ----
Status picture_write(const char *path, int64_t n, const int64_t *step, const double *loss, double hline, const char *hline_label,
                     Diag *d);
