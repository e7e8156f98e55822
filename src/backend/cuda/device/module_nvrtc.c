// Generated kernels compiled by NVRTC and loaded through the CUDA runtime.
#include <cuda_runtime_api.h>
#include "backend/cuda/device/libs.h"
#include "backend/cuda/device/module_impl.h"

#define CUDA_TRY(call)                                                                                       \
    do {                                                                                                     \
        cudaError_t cuda_e_ = (call);                                                                        \
        if (cuda_e_ != cudaSuccess)                                                                          \
            return diag_error(d, ST_UNSUPPORTED, "%s: %s (%s)", #call, cudaGetErrorString(cuda_e_), cudaGetErrorName(cuda_e_)); \
    } while (0)

// Tensor-core and bulk-copy instructions of Hopper and later exist only in the architecture's own feature set.
static void architecture(int capability, char *out, size_t n) {
    snprintf(out, n, "--gpu-architecture=sm_%d%s", capability, capability >= 90 ? "a" : "");
}

Status module_compiler_key(int capability, Str *out, Diag *d) {
    const NvrtcLib *lib;
    TRY(libs_nvrtc(&lib, d));
    char arch[48];
    architecture(capability, arch, sizeof arch);
    uint64_t header = hash_bytes(0, gpu_h_text, strlen(gpu_h_text));
    str_printf(out, "nvrtc %d %s gpu.h %016llx", lib->version, arch, (unsigned long long)header);
    return ST_OK;
}

static Status nvrtc_error(const NvrtcLib *lib, const char *call, nvrtcResult r, Diag *d) {
    return diag_error(d, ST_UNSUPPORTED, "%s: %s", call, lib->nvrtcGetErrorString(r));
}

static void read_log(const NvrtcLib *lib, nvrtcProgram program, Str *log) {
    size_t n = 0;
    if (lib->nvrtcGetProgramLogSize(program, &n) != NVRTC_SUCCESS || n < 2) return;
    char *text = calloc(1, n + 1);
    if (text && lib->nvrtcGetProgramLog(program, text) == NVRTC_SUCCESS) str_add(log, text);
    free(text);
}

static Status read_code(const NvrtcLib *lib, nvrtcProgram program, void **image, size_t *nbytes, Diag *d) {
    nvrtcResult r = lib->nvrtcGetCUBINSize(program, nbytes);
    if (r != NVRTC_SUCCESS) return nvrtc_error(lib, "nvrtcGetCUBINSize", r, d);
    *image = malloc(*nbytes + 1);
    if (!*image) return diag_error(d, ST_MEMORY, "out of memory");
    r = lib->nvrtcGetCUBIN(program, *image);
    return r == NVRTC_SUCCESS ? ST_OK : nvrtc_error(lib, "nvrtcGetCUBIN", r, d);
}

Status module_compile(int capability, const char *source, void **image, size_t *nbytes, Str *log, Diag *d) {
    const NvrtcLib *lib;
    TRY(libs_nvrtc(&lib, d));
    const char *header_text = gpu_h_text, *header_name = "gpu.h";
    nvrtcProgram program;
    nvrtcResult r = lib->nvrtcCreateProgram(&program, source, "generated.cu", 1, &header_text, &header_name);
    if (r != NVRTC_SUCCESS) return nvrtc_error(lib, "nvrtcCreateProgram", r, d);
    char arch[48];
    architecture(capability, arch, sizeof arch);
    const char *option[] = {arch, "-default-device", "--std=c++17", "-w"};
    r = lib->nvrtcCompileProgram(program, sizeof option / sizeof *option, option);
    Status st = r == NVRTC_SUCCESS ? read_code(lib, program, image, nbytes, d) : nvrtc_error(lib, "nvrtcCompileProgram", r, d);
    if (r != NVRTC_SUCCESS) read_log(lib, program, log);
    lib->nvrtcDestroyProgram(&program);
    return st;
}

Status module_load(const void *image, size_t nbytes, void **library, Diag *d) {
    (void)nbytes;
    cudaLibrary_t l;
    CUDA_TRY(cudaLibraryLoadData(&l, image, NULL, NULL, 0, NULL, NULL, 0));
    *library = l;
    return ST_OK;
}

Status module_find(void *library, const char *name, void **entry, Diag *d) {
    cudaKernel_t k;
    CUDA_TRY(cudaLibraryGetKernel(&k, library, name));
    *entry = k;
    return ST_OK;
}

Status module_start(Device *dev, void *entry, Grid grid, int threads, size_t shared_nbytes,
                     const void *params, size_t nparams, Diag *d) {
    CHECK(nparams <= 4096, "%zu bytes of kernel parameters", nparams);
    if (shared_nbytes > (48u << 10))
        CUDA_TRY(cudaKernelSetAttributeForDevice(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_nbytes,
                                                 dev->ordinal));
    void *args[] = {(void *)params};
    dim3 g = {grid.x, grid.y, grid.z}, b = {(unsigned)threads, 1, 1};
    CUDA_TRY(cudaLaunchKernel(entry, g, b, args, shared_nbytes, dev->stream));
    return ST_OK;
}
