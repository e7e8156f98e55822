#include "backend/registry.h"

#include <string.h>

// Linked into the executable where nvcc was found (CMakeLists.txt), else absent.
extern const Backend backend_cuda __attribute__((weak));

bool backend_built(const char *name) { return !strcmp(name, "cpu") || (!strcmp(name, "cuda") && &backend_cuda != NULL); }

Status backend_find(const char *name, const Backend **out, Diag *d) {
    if (!strcmp(name, "cpu")) {
        *out = &backend_cpu;
        return ST_OK;
    }
    if (strcmp(name, "cuda")) return diag_error(d, ST_INPUT, "device %s: there are cpu and cuda", name);
    if (!backend_built(name))
        return diag_error(
            d, ST_UNSUPPORTED,
            "device cuda: this autosp was built without it; install the CUDA toolkit (nvcc in PATH) and build again");
    *out = &backend_cuda;
    return ST_OK;
}
