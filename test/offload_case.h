// Graphs whose values go to host memory and back, for the tests of copies on any backend.
#pragma once
#include "driver/driver.h"
#include "exec/exec.h"
#include "random_graph.h"

// A copy of g in which up to `ntrip` values, chosen by `seed`, are offloaded and fetched at random places; what reads them after that
// reads what came back. *done: how many trips it has.
Graph *offload_insert(const Graph *g, uint64_t seed, int ntrip, int *done);

// What must hold of a plan's buffers: those alive together do not share bytes, a copy holds both sides until it was waited for.
void offload_check_plan(const Plan *p);

// All outputs of g, and the parameters and moments, after three steps on `o`'s backend, as one array.
typedef struct OffloadResult {
    int64_t n;
    double *value;
} OffloadResult;
typedef struct OffloadSetup {
    uint64_t seed;           // of the program and its values
    int nops, nranks, nthreads;
    DType real, compute;     // compute 0: f32
    bool update, processes;
    bool unsteady;           // a GPU: outputs that are made of sums by atomics are not compared (without update: few)
    const Backend *backend;
} OffloadSetup;
// The program compiled as it is, then with `nvariant` graphs of trips, then (with update) with its optimizer's state in host memory: every one must compute the
// same bits in three steps, or the program
// ends with a message.
void offload_check_program(const OffloadSetup *s, int nvariant);
// So far, so that nobody takes an empty comparison for a test: trips made, outputs read where some are not compared, parameters that
// were in host memory as their moments were.
extern int64_t offload_trips, offload_compared, offload_masters;
