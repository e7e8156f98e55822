// What a compiler of generated kernels provides to module.c: NVRTC (module_nvrtc.c), or the host's (module_emulated.c).
#pragma once
#include "backend/cuda/device/module.h"
#include "base/containers.h"

extern const char gpu_h_text[];  // gpu.h, embedded by scripts/embed.cmake

// What compiled code depends on beside its source: compiler, version, options, architecture. "" on error.
Status module_compiler_key(int capability, Str *out, Diag *d);
// Source to code, in *image (malloc). Called by several threads. On error *log holds what the compiler said.
Status module_compile(int capability, const char *source, void **image, size_t *nbytes, Str *log, Diag *d);
Status module_load(const void *image, size_t nbytes, void **library, Diag *d);
// A kernel of a loaded library, ready to be launched; shared_nbytes: the most dynamic shared memory it may be given.
Status module_find(void *library, const char *name, void **entry, Diag *d);
Status module_start(Device *dev, void *entry, Grid grid, int threads, size_t shared_nbytes,
                     const void *params, size_t nparams, Diag *d);
