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
// Tensors of more than 2^31 elements (times `scale`, 1 or much less) against closed forms, or references of what is looked at:
// ops_large.c and, called by it, ops_large_*.c.
void bench_large(Bench *b, double scale);
void bench_large_index(Bench *b, double scale);      // gather, scatter, rows of tables, histogram
void bench_large_lines(Bench *b, double scale);      // sort, topk, convolution
void bench_large_attention(Bench *b, double scale);  // our own kernels; cuDNN's: gpu_attention large

Operand bench_tensor(Bench *b, DType t, int ndim, const int64_t *dim);
int64_t bench_numel(const Operand *o);
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
void bench_pass(Bench *b, const char *what, int64_t n);  // elements
bool bench_read(Bench *b, void *to, const Operand *o, int64_t at, int64_t n);  // n elements from `at` on

// Operands whose elements are known: random numbers in [0, 1), which bench_source(i) are; whole numbers from a function.
double bench_source(int64_t i);
bool bench_random(Bench *b, const Operand *o);
bool bench_iota(Bench *b, const Operand *o, int dim, int64_t start, int64_t step);
bool bench_write(Bench *b, const Operand *o, int64_t (*at)(int64_t i, const int64_t *ctx), const int64_t *ctx);
// Element `at` of o is want(at, ctx) at many places, both ends among them: to 1e-5 of it in f32, else exactly.
typedef double BenchWant(int64_t at, const int64_t *ctx);
void bench_probe(Bench *b, const char *what, const Operand *o, BenchWant *want, const int64_t *ctx);
BenchOp bench_op(OpKind op, int nin, const Operand *in, Operand out, int nattr, const Attr *attr);

#define I(KEY, value) {.key = ATTR_##KEY, .u.i = (value)}
#define F(KEY, value) {.key = ATTR_##KEY, .u.f = (value)}
#define COUNT(type, ...) (int)(sizeof((type[]){__VA_ARGS__}) / sizeof(type))
#define INTS(KEY, ...) {.key = ATTR_##KEY, .n = COUNT(int64_t, __VA_ARGS__), .u.ints = (const int64_t[]){__VA_ARGS__}}
#define ATTRS(...) COUNT(Attr, __VA_ARGS__), (Attr[]){__VA_ARGS__}
#define DIMS_OF(...) COUNT(int64_t, __VA_ARGS__), (int64_t[]){__VA_ARGS__}
#define OPERANDS(...) COUNT(Operand, __VA_ARGS__), (Operand[]){__VA_ARGS__}
