// A read-only file in memory. Shared by the zip and safetensors readers.
#pragma once
#include "base/arena.h"
#include "base/diag.h"

// Maps the whole of a regular file; released with the arena. An empty file is *nbytes == 0 with a non-NULL pointer.
Status file_map(Arena *a, const char *path, const uint8_t **data, int64_t *nbytes, Diag *d);
// nbytes of uninitialised memory outside the arena's own blocks (tensor bytes), 64-byte aligned, released with the arena.
Status tensor_memory(Arena *a, int64_t nbytes, void **out, Diag *d);
