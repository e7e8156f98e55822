// Small graphs whose nodes are timed one by one on the backend: what calibrate.c measures with.
#pragma once
#include "exec/exec.h"
#include "ir/build.h"
#include "plan/plan.h"

typedef struct Measure {       // nodes [first, end) of the graph, of which those of `op` count
    OpKind op;
    NodeId first, end;
    double seconds;            // of one of them: the median
    double flops, nbytes;      // by the op's cost rule
    double predicted;          // seconds, by the base model
    const char *kernel;        // of an attention: Backend.attention_kernel
    double length;             // ... attention_length
} Measure;

typedef struct Bench {
    const Backend *backend;
    const DeviceModel *base;   // what the plan is made with; no influence on what is measured
    int nranks, nthreads;
    Arena *a;
    Builder b;
    VEC(Measure) measure;
    Diag *d;
} Bench;

enum { BENCH_REPEAT = 2, BENCH_TIMES = 4 };  // nodes for each measure; timed steps, after one that is not
void bench_begin(Bench *x);    // an empty graph; the four first fields and d are set
void bench_end(Bench *x);
ValueId bench_random(Bench *x, DType t, Shape s);  // in [-0.5, 0.5): power, and with it clocks, depend on what is multiplied
// BENCH_REPEAT times the node; returns the measure's number.
int bench_node(Bench *x, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr);
Status bench_run(Bench *x);    // fills in the measures
// Seconds of a whole step of the graph, replayed where the backend can.
Status bench_step(Bench *x, double *seconds);
