// Inside the reference executor: one node at a time, every value a double array of the global shape. See reference_run in exec.h.
#pragma once
#include "exec/exec.h"
#include "ops/op.h"

typedef struct RefNode {
    const Graph *g;
    const Node *n;
    const double *const *in;
    double *const *out;
    uint64_t run_seed;
    int64_t step;
} RefNode;
typedef Status (*RefFn)(const RefNode *r, Diag *d);

static inline const Shape *ref_in_shape(const RefNode *r, int i) { return graph_shape(r->g, r->n->in[i]); }
static inline const Shape *ref_out_shape(const RefNode *r, int j) { return graph_shape(r->g, r->n->out[j]); }
static inline DType ref_in_dtype(const RefNode *r, int i) { return graph_value(r->g, r->n->in[i])->dtype; }
static inline DType ref_out_dtype(const RefNode *r, int j) { return graph_value(r->g, r->n->out[j])->dtype; }

// Multi-indices: the next one in row-major order (false after the last), and where it lies in a value that broadcasts to it.
bool ref_next(const Shape *s, int64_t *index);
int64_t ref_broadcast_offset(const Shape *operand, const Shape *out, const int64_t *index);
int64_t ref_offset(const Shape *s, const int64_t *index);
// A shape seen as [outer, n, inner] around dim `dim`.
void ref_split(const Shape *s, int dim, int64_t *outer, int64_t *n, int64_t *inner);

// One pointwise operation on scalars. `in` is the dtype of the (last) value operand, `out` of the result.
Status ref_scalar(OpKind op, DType in, DType out, double a, double b, double c, double *result, Diag *d);
// Runs a program; leaf(ctx, instruction) gives the value of every leaf but constants. reg[ninstr] receives all results.
typedef double (*RefLeaf)(void *ctx, const Instr *i);
Status ref_program(const Program *p, RefLeaf leaf, void *ctx, double *reg, Diag *d);

// Families (one file each); NULL if the op is not of the family.
RefFn ref_pointwise_fn(OpKind op);
RefFn ref_fused_fn(OpKind op);
RefFn ref_tensor_fn(OpKind op);    // movement, reductions, scans
RefFn ref_index_fn(OpKind op);     // indexing, sorting
RefFn ref_contract_fn(OpKind op);  // dot, experts, convolution, adamw
RefFn ref_attention_fn(OpKind op);
RefFn ref_head_fn(OpKind op);
