// From files to a Graph. Everything here reads hostile input.
#pragma once
#include "ir/graph.h"

typedef struct ImportOptions {
    int64_t batch, seq;       // what the program is bound to; 0: take the archive's example sizes
    DType real;               // all floating dtypes become this one (DT_F32 or DT_F64); the CPU computes in it
    const char *weights;      // NULL, a .safetensors file, or a folder with an index: overrides the archive's bytes
    bool allow_missing_params;  // `plan`, `dump` and random-parameter checks need no bytes
} ImportOptions;

typedef struct ImportReport {
    VEC(const char *) missing;   // parameters without bytes anywhere
    VEC(const char *) leftover;  // tensors in `weights` that nothing took
    bool narrowed;               // some values are half precision in the archive
    VEC(const char *) notes;     // "bf16 weights are computed in f32", ...
} ImportReport;

// Reads a torch.export archive (schema 8.x) into a forward graph of core ops whose single output is OUT_LOSS. Params, consts,
// inputs (with roles and sequence dims) are filled in. The mapping of the file is released with the arena.
Status import_pt2(Arena *a, const char *path, const ImportOptions *o, Graph **out, ImportReport *r, Diag *d);

// The same in two steps, for one archive at several lengths. The graphs point into the archive: its arena outlives theirs. An archive
// is not to be bound by two threads at once.
typedef struct Archive Archive;
Status import_open(Arena *a, const char *path, const ImportOptions *o, Archive **out, ImportReport *r, Diag *d);
Status import_bind(Arena *a, const Archive *ar, const ImportOptions *o, Graph **out, ImportReport *r, Diag *d);

// ---- safetensors (import/safetensors.c) ----
typedef struct TensorView {
    const char *name;
    DType dtype;              // file dtype; F32 F64 BF16 F16 I64 I32 BOOL (others: reading them is an error only if used)
    bool known_dtype;
    Shape shape;
    const void *data;         // into the mapping
    int64_t nbytes;
} TensorView;
typedef struct TensorFile TensorFile;
Status tensors_open(Arena *a, const char *path, TensorFile **out,
                    Diag *d);  // one file, or a folder with model.safetensors[.index.json]
int64_t tensors_count(const TensorFile *f);
const TensorView *tensors_at(const TensorFile *f, int64_t i);
const TensorView *tensors_find(const TensorFile *f, const char *name);       // NULL if absent
// Writes `path` through a temporary file and a rename: on any error the old file is untouched.
Status tensors_write(const char *path, int64_t n, const TensorView *t, Diag *d);
// Converts n elements of dtype `from` to f32/f64/i64/bool.
Status tensor_convert(const void *src, DType from, void *dst, DType to, int64_t n, Diag *d);
