// Runs our own attention on one case, in f32 or bf16, on some device, and compares with the float64 reference.
#pragma once
#include "backend/cuda/device.h"
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

// False: *why says what is wrong. Tolerances follow from the dtype. Operands are bf16 values in both.
bool flash_run(const FlashHost *h, const FlashCase *c, bool backward, DType t, FlashError *error, Str *why);
