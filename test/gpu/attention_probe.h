// What the parts of gpu_attention share: operands on both sides, plans and runs, comparison with float64.
#pragma once
#include "attention_ref.h"
#include "backend/cuda/attention/dnn.h"

extern Device device;
extern int npass, nfail;
extern bool counted;  // verdicts are; else they are for information

double now(void);
void verdict(bool ok);  // ends the line of a case
bool cuda_ok(int error, const char *what);

typedef struct Operands {
    int64_t nq, nk, nrow;                           // elements of q and of k; rows of q
    uint16_t *q, *k, *v, *dout, *o, *dq, *dk, *dv;  // host
    float *lse;
    int64_t *ids, *first, *end;                     // host, packed: numbers of documents; where each position's begins and ends
    void *gids;
    void *gq, *gk, *gv, *gdout, *go, *gdq, *gdk, *gdv, *glse, *scratch;  // device
    size_t scratch_nbytes;
} Operands;
// negative: scores around -150, so that every log-sum-exp is below -88.
bool make_operands(Operands *x, const DnnCall *c, bool negative);
void free_operands(Operands *x);
bool to_device(void **dst, const void *src, size_t nbytes);  // src NULL: filled with NaN
enum { PROBE_NODE = 7 };                                      // that errors are reported under
DnnData data_of(const Operands *x);
DeviceError device_error(void);  // what kernels have reported, and clears it
bool fetch_results(Operands *x);

Status prepare(const DnnCall *c, bool backward, DnnPlan **p);
Status run(const DnnPlan *p, const DnnData *data, void *scratch);
double seconds_of(const DnnPlan *p, const DnnData *data, void *scratch, int repeat);  // of a run, warm
double visible_pairs(const DnnCall *c);

// Sums over what was checked: of one operand. `worst`: the largest error of one row over the rms of all rows.
typedef struct Error {
    double err2, ref2, n, worst2;
    int64_t nan;
} Error;
typedef struct Errors {
    Error each[4];      // o, dq, dk, dv
    Error ideal[4];     // of the best kernel there can be, where that was asked for
    double lse;         // largest absolute error
    int64_t lse_nan;
} Errors;
// Every step-th row and key of the results against float64.
void check_all(const DnnCall *c, const Operands *x, int64_t row_step, int64_t key_step, bool ideal, Errors *e);
// Prints them. false: larger than rounding to bf16 explains.
bool report(const Errors *e, double lse_size);
// A few rows and keys of a long call, each against its own size.
bool check_spots(const DnnCall *c, const Operands *x);

typedef struct Case {
    const char *name;
    int64_t b, h, hkv, nq, nk, d;
    DnnMaskKind mask;
    int64_t shift, window;
    int cut;        // as DnnCall, of the backward; 2: of both
    bool negative;  // log-sum-exp below -88
} Case;
DnnCall call_of(const Case *k);
void run_case(const Case *k);  // every row and key
void print_facts(const char *what, const DnnCall *c, const DnnPlan *p);

// gpu_attention_packed.c
void run_all_packed(void);
void run_packed_speeds(void);
void run_packed_million(void);
// gpu_attention_operands.c
int run_operands(void);  // what the process ends with
void run_missing(int64_t n);
// gpu_attention_long.c
void run_groups(void);
void run_million(void);
void run_beyond(void);
