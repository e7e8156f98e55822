// One op at a time, from the samples of the op table: its whole result by the reference executor, its kernel on one rank or on
// several simulated ranks under a row of its sharding rule, and the comparison. Used by the generated per-op tests; other tests
// can build an OpCase of their own.
#pragma once
#include "backend/backend.h"
#include "exec/exec.h"
#include "ops/op.h"

enum { OP_MAX_IN = 8, OP_MAX_OUT = 8 };

typedef struct OpCase {
    Arena *arena;
    Graph *g;            // sources (float operands: parameters, others: inputs) and the node
    NodeId node;
    OpKind op;
    const Sample *sample;
    DType real;
    int nranks;
    uint64_t run_seed;
    int64_t step;
    int nin, nout;
    double *in[OP_MAX_IN];    // whole operands
    double *out[OP_MAX_OUT];  // whole results, by the reference (op_case_expect)
    double slack[OP_MAX_OUT]; // by how much more than rounding of the result it may differ; 0 unless a test says why
} OpCase;

// Builds the node of `sample` with floats of type `real` (any type: its f32 become that) on random operands. Errors are those of
// the op's shape rule.
Status op_case_new(OpCase *c, OpKind op, const Sample *sample, DType real, int nranks, uint64_t seed, Diag *d);
void op_case_free(OpCase *c);
Status op_case_expect(OpCase *c, Diag *d);  // fills out[]
double op_round_bf16(double v);
static inline Node *op_case_node(const OpCase *c) { return graph_node(c->g, c->node); }

// `sample` with f32 replaced by `real` in operands, attributes and programs; arrays in arena a.
Sample op_sample_of(Arena *a, const Sample *sample, DType real);
// The sources of a sample's operands appended to g, and random values for them: ids[i], value[i].
Status op_sources(Graph *g, const Sample *s, uint64_t seed, ValueId *ids, double **value, Diag *d);

// A row with room for the node's operands, everything replicated.
Row op_row_new(OpCase *c);
// Calls fn on every distinct row that the op offers: from every operand's every dim under even, uneven (one rank idle) and two-
// interval layouts, from partial sums and maxima of every operand, and the extra rows. Returns how many there were.
typedef void (*OpRowFn)(OpCase *c, const Row *row, void *ctx);
int op_each_row(OpCase *c, OpRowFn fn, void *ctx);
// "head: in %0 shard(1; 0-2 2-3) ...": a row for a failure's text, in the case's arena.
const char *op_row_text(OpCase *c, const Row *row);
// What a row must be whatever the values: dims and extents that fit, every element on some rank, overlap only with its reduction.
bool op_row_well_formed(OpCase *c, const Row *row, Str *why);

// Runs the kernel once per rank under `row` on operands cut from the whole ones and compares what the ranks' results assemble to
// with out[]. False: *why says what differs. A backend without the kernel: true, *why untouched, *ran false.
bool op_check_row(OpCase *c, const Backend *backend, Pool *pool, const Row *row, bool *ran, Str *why);
// For a device in host memory under the address sanitizer: forbids (and allows again) the bytes between operands. NULL: nothing.
extern void (*op_device_gap)(void *p, size_t nbytes, bool forbid);
