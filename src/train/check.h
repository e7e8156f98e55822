// check: does the compiled program compute what the original does? Against PyTorch goldens, or P ranks against one.
#pragma once
#include "driver/driver.h"
#include "exec/exec.h"

typedef struct CheckOptions {
    CompileOptions compile;      // path, ranks, attention, weights; batch/seq when there is no golden
    const char *golden;          // .safetensors with the inputs, "loss", "grad.<parameter>", "adamw_losses"; or NULL
    const char *inputs;          // without golden: .safetensors with the inputs, or NULL: made up by role
    const char *out;             // write what was computed here, or NULL
    uint64_t seed;               // of made-up parameters and inputs
    double lr;                   // of the AdamW steps (1e-3 is what the goldens use)
    int adamw_steps;             // without golden
    bool
        hold_routing;  // a mixture's choices of experts are those of a float32 run on the CPU; AdamW losses are not compared then
    RuntimeOptions runtime;
    void (*notes)(const ImportReport *r);  // what importing had to say, once; may be NULL
} CheckOptions;

typedef struct CheckResult {
    int64_t seq, batch;
    double loss, loss_relerr;    // |a-b| / |b|
    double grad_relerr;          // max over parameters of ||g-r|| / (||r|| + 1e-4 ||all r||)
    double adamw_relerr;         // max over steps
    char worst[256];             // the parameter with the largest gradient error
    bool grad_from_reference;    // the golden has no gradients: compared with one rank in float64
    bool pass;
} CheckResult;

// ST_OK with r->pass false is a FAIL; any error is a refusal.
Status check_run(const CheckOptions *o, CheckResult *r, Diag *d);
// What a PASS may differ by. float32 (sums of a few thousand terms): 1e-5 for the loss, 1e-4 for gradients and AdamW losses.
// bf16, whose operands have 8 significant bits: 2e-3, 3e-2, 5e-3.
typedef struct CheckLimits {
    double loss, grad, adamw;
} CheckLimits;
CheckLimits check_limits(DType compute);
