// Kernels compiled at run time from generated source (NVRTC; a host compiler in the emulation), and their launch.
#pragma once
#include "backend/cuda/device/device.h"
#ifndef __cplusplus
#include "base/arena.h"
#include "base/diag.h"
#endif

typedef struct GpuFunction GpuFunction;  // owned by the device

#ifndef __cplusplus
// Compiles `source` (it includes "gpu.h" by that name) and finds kernel `name` in it. Compiled code is kept per process and kind
// of device by the source's hash, and on disk (cache.h) by source, device and compiler version. `what` names the kernel in errors
// and profiles. Returns at once: threads compile, so that many functions can be asked for in a row; errors show at the first
// launch or in module_wait.
Status module_function(Device *dev, const char *source, const char *name, const char *what, GpuFunction **out, Diag *d);
// Until every function asked for by this device is compiled and loaded: at the end of preparation, so that nothing loads in a
// capture.
Status module_wait(Device *dev, Diag *d);
typedef struct Grid {
    unsigned x, y, z;
} Grid;
// `params` is the kernel's one parameter struct, nparams bytes (at most 4 KB).
Status module_launch(Device *dev, GpuFunction *f, Grid grid, int threads, size_t shared_nbytes,
                     const void *params, size_t nparams, Diag *d);
void module_close(Device *dev);
// Lives until module_close: for what `prepare` makes.
Arena *module_arena(Device *dev);
#endif
