// Measures a device model of this machine with the backend's own kernels (docs/memory.md, "Device models").
#pragma once
#include "backend/backend.h"
#include "plan/device.h"

typedef struct CalibrateOptions {
    const Backend *backend;
    const DeviceModel *base;  // what is not measured is taken from it
    const char *name;         // of the new model
    int nthreads;             // of a rank on the CPU
    double seconds;           // about as long as the measuring may take
    FILE *report;             // a table as it goes, or NULL
} CalibrateOptions;
// The model, and in *note the lines that say how it was come by; both live in `a`.
enum { CALIBRATE_NOTES = 8 };
Status calibrate(Arena *a, const CalibrateOptions *o, DeviceModel *out, int *nnote, const char *note[CALIBRATE_NOTES], Diag *d);
