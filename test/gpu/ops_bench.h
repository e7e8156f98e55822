// Single ops of backend_cuda on large tensors of a device: what gpu_ops.c runs besides the samples.
#pragma once
#include <stdio.h>
#include "backend/backend.h"

extern const Backend backend_cuda;

// A device with one arena, from which tensors are taken until bench_reset.
typedef struct Bench {
    const DeviceApi *api;
    Device *dev;
    char *arena;
    size_t nbytes, used;
    FILE *report;
    int nfail;
} Bench;
// GB/s of every op beside the device's own copy.
void bench_speed(Bench *b);
// Tensors of more than 2^31 elements (times `scale`) against closed forms.
void bench_large(Bench *b, double scale);

Operand bench_tensor(Bench *b, DType t, int ndim, const int64_t *dim);
static inline void bench_reset(Bench *b) { b->used = 0; }
// Prepares and runs the op `times` times; *seconds of one, NULL: not measured. False: an error, reported.
typedef struct BenchOp {
    OpKind op;
    int nin, nout, nattr;
    Operand in[8], out[4];
    Attr attr[10];
    uint64_t run_seed;
} BenchOp;
bool bench_run(Bench *b, const BenchOp *o, int times, double *seconds);
void bench_fail(Bench *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
