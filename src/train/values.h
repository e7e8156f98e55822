// What goes into a runtime before a step: parameters from the archive or made at random, inputs from files or made by role.
#pragma once
#include "driver/driver.h"
#include "exec/exec.h"

// Parameters with bytes are loaded (NaN or infinite weights are an error naming the tensor and the element). Those without are an
// error unless random_missing: then normal(0, 0.02) for matrices, ones for vectors called "...weight", zeros for other vectors,
// drawn from `seed`. Moments are zero. Buffers without bytes are always an error: they are part of the function.
Status values_load_params(Runtime *rt, const Graph *g, bool random_missing, uint64_t seed, Diag *d);

// The whole value of parameter p as real numbers of dtype `t`, as values_load_params would set it. `data` holds its numel.
Status values_param(const Graph *g, int32_t p, bool random_missing, uint64_t seed, DType t, void *data, Diag *d);

// Inputs that come from `file` by name; shapes and dtypes must agree. With file NULL (or where `made_up` and the name is
// missing): random token ids below the vocabulary, labels equal to the ids, positions arange, masks ones.
Status values_set_inputs(Runtime *rt, const Graph *g, const TensorFile *file, uint64_t seed, Diag *d);

// Whether a file's tensor can be an input: both floats, or both whole numbers.
Status values_check_dtype(const Input *in, const TensorView *t, Diag *d);

// The number of rows of the embedding table that input `index` is looked up in, 0 if none: token ids must be below it.
int64_t values_vocabulary(const Graph *g, int32_t index);
