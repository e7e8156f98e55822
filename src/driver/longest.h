// The longest context that fits, for several numbers of ranks.
#pragma once
#include "driver/driver.h"

typedef enum LongestLimit {
    LIMIT_DEVICE,            // bytes of the device: more of them would help
    LIMIT_HOST,              // bytes of the host: with more of them the device's would do
    LIMIT_COPIES,            // copies to the host and back take longer than the kernels beside them
    LIMIT_PROGRAM,           // the program itself: lengths beyond are refused, for the reason in `why`
    LIMIT_NONE,              // nothing up to LONGEST_SEQ
} LongestLimit;
const char *longest_limit_name(LongestLimit l);  // "device memory", ...
#define LONGEST_SEQ ((int64_t)1 << 30)

typedef struct Longest {     // one number of ranks
    int nranks;
    int64_t seq;             // the longest that fits; 0: none does
    int64_t next;            // the shortest that was seen not to fit
    LongestLimit limit;
    const char *why;         // LIMIT_PROGRAM, or no length fits: the text of the refusal; NULL
    int64_t shortest, least_nbytes;  // no length fits: the shortest that was tried, and what it needs
    double step_seconds, attention_seconds, tokens_per_second;  // of the slowest rank
    int64_t device_nbytes, host_nbytes;  // the fullest rank's peaks
    int64_t budget_nbytes;
    MemoryChoice choice;
    const char *strategies;  // of attention: "head", "head x 16, gather-kv x 16"
    bool all_ranks;          // the plan has every rank's steps; else those that tell
    const char *program;     // its name, and the batch it was bound to
    int64_t batch;
    int nprobe;              // plans made
    double seconds;          // what finding it took
} Longest;

// rank[n] -> out[n], texts in arena `a`. o->path, o->memory and so on as for compile_file; the length is what is looked for, to about
// two percent. A number of ranks for which nothing fits is no error: its row says so.
Status longest_find(Arena *a, const CompileOptions *o, int n, const int *rank, Longest *out, Diag *d);
void longest_text(FILE *f, const CompileOptions *o, int n, const Longest *row);
Status longest_json(FILE *f, const CompileOptions *o, int n, const Longest *row, Diag *d);
