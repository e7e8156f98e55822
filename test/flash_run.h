// Runs our own attention on one case, in f32 or bf16, on some device, and compares with the float64 reference. In steps, so that
// many references are computed at a time and many kernels compiled.
#pragma once
#include "backend/cuda/device/device.h"
#include "base/containers.h"
#include "flash_cases.h"

typedef struct FlashHost {  // a device and its memory
    Device *device;
    void *(*alloc)(size_t nbytes);  // zeroed
    void (*release)(void *p);
    void (*put)(void *to, const void *from, size_t nbytes);
    void (*get)(void *to, const void *from, size_t nbytes);  // after everything that was launched
} FlashHost;

typedef struct FlashError {
    double rms, most;  // of the worst output: relative to its root mean square; to its largest value
} FlashError;

typedef struct FlashRun FlashRun;        // operands (bf16 values, whatever they will be stored as) and float64's results
typedef struct FlashLaunch FlashLaunch;  // one device's operands and kernels
FlashRun *flash_new(const FlashCase *c, bool backward);  // any thread
void flash_free(FlashRun *r);
// Puts operands on the device and asks for the kernels, which other threads compile.
FlashLaunch *flash_request(const FlashHost *h, FlashRun *r, DType t);
// Launches and compares. False: *why says what is wrong. Tolerances follow from the dtype. Frees l.
bool flash_finish(FlashLaunch *l, FlashError *error, Str *why);
// All of it.
bool flash_run(const FlashHost *h, const FlashCase *c, bool backward, DType t, FlashError *error, Str *why);
