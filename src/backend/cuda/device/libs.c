// See libs.h.
#include "backend/cuda/device/libs.h"
#include <dlfcn.h>
#include <pthread.h>

#define STRING(x) STRING_(x)  // of a header's renamed symbol: the name that the library exports
#define STRING_(x) #x

// What opening a library came to; written once.
typedef struct Opened {
    pthread_once_t once;
    Status status;
    char text[768];
} Opened;

typedef struct Symbol {
    const char *name;
    size_t at;  // offset of the pointer in the library's struct
} Symbol;

// By soname first, so that LD_LIBRARY_PATH and ld.so's configuration decide; then where CUDA's toolkit installs by default.
static void *open_any(Opened *o, const char *soname, const char *plain) {
    static const char *const dirs[] = {"", "/usr/local/cuda/lib64/", "/usr/local/cuda/lib/"};
    const char *const names[] = {soname, plain};
    char first[512] = "";
    for (int n = 0; n < 2 && names[n]; n++)
        for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
            char path[256];
            snprintf(path, sizeof path, "%s%s", dirs[i], names[n]);
            void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (handle) return handle;
            const char *why = dlerror();
            if (!first[0]) snprintf(first, sizeof first, "%s", why ? why : "unknown error");
        }
    o->status = ST_UNSUPPORTED;
    snprintf(o->text, sizeof o->text, "%s cannot be opened (%s): install it, or put its folder into LD_LIBRARY_PATH", soname,
             first);
    return NULL;
}

static void open_library(Opened *o, const char *soname, const char *plain, void *lib, const Symbol *symbol, size_t nsymbol) {
    void *handle = open_any(o, soname, plain);
    if (!handle) return;
    for (size_t i = 0; i < nsymbol; i++) {
        void *address = dlsym(handle, symbol[i].name);
        if (!address) {
            Dl_info where = {0};
            void *any = i > 0 ? *(void **)((char *)lib + symbol[0].at) : NULL;
            bool found = any && dladdr(any, &where) && where.dli_fname;
            o->status = ST_UNSUPPORTED;
            snprintf(o->text, sizeof o->text, "%s (%s) has no function %s: put a newer one's folder into LD_LIBRARY_PATH", soname,
                     found ? where.dli_fname : "as found", symbol[i].name);
            return;
        }
        *(void **)((char *)lib + symbol[i].at) = address;  // POSIX: function pointers are as wide as data pointers
    }
}

static Status opened(Opened *o, void (*open)(void), Diag *d) {
    pthread_once(&o->once, open);
    return o->status == ST_OK ? ST_OK : diag_error(d, o->status, "%s", o->text);
}

#define OPENED {.once = PTHREAD_ONCE_INIT}

#define FN(symbol) {STRING(symbol), offsetof(CublasLtLib, symbol)},
static const Symbol cublaslt_symbols[] = {
#include "backend/cuda/device/libs_cublaslt.def"
};
#undef FN
#define FN(symbol) {STRING(symbol), offsetof(NvrtcLib, symbol)},
static const Symbol nvrtc_symbols[] = {
#include "backend/cuda/device/libs_nvrtc.def"
};
#undef FN
#define FN(symbol) {STRING(symbol), offsetof(DriverLib, symbol)},
static const Symbol driver_symbols[] = {
#include "backend/cuda/device/libs_driver.def"
};
#undef FN
#define COUNT(a) (sizeof(a) / sizeof *(a))

static CublasLtLib cublaslt;
static Opened cublaslt_opened = OPENED;
static void open_cublaslt(void) {
    open_library(&cublaslt_opened, "libcublasLt.so.13", "libcublasLt.so", &cublaslt, cublaslt_symbols, COUNT(cublaslt_symbols));
    if (cublaslt_opened.status == ST_OK) cublaslt.version = cublaslt.cublasLtGetVersion();
}
Status libs_cublaslt(const CublasLtLib **out, Diag *d) {
    *out = &cublaslt;
    return opened(&cublaslt_opened, open_cublaslt, d);
}

static NvrtcLib nvrtc;
static Opened nvrtc_opened = OPENED;
static void open_nvrtc(void) {
    open_library(&nvrtc_opened, "libnvrtc.so.13", "libnvrtc.so", &nvrtc, nvrtc_symbols, COUNT(nvrtc_symbols));
    int major = 0, minor = 0;
    if (nvrtc_opened.status != ST_OK || nvrtc.nvrtcVersion(&major, &minor) != NVRTC_SUCCESS) return;
    nvrtc.version = major * 1000 + minor * 10;
}
Status libs_nvrtc(const NvrtcLib **out, Diag *d) {
    *out = &nvrtc;
    return opened(&nvrtc_opened, open_nvrtc, d);
}

static DriverLib driver;
static Opened driver_opened = OPENED;
static void open_driver(void) {
    open_library(&driver_opened, "libcuda.so.1", "libcuda.so", &driver, driver_symbols, COUNT(driver_symbols));
    if (driver_opened.status == ST_OK && driver.cuDriverGetVersion(&driver.version) != CUDA_SUCCESS) driver.version = 0;
}
Status libs_driver(const DriverLib **out, Diag *d) {
    *out = &driver;
    return opened(&driver_opened, open_driver, d);
}

static CudnnLib cudnn;
static Opened cudnn_opened = OPENED;
#if LIBS_HAVE_CUDNN
#define FN(symbol) {STRING(symbol), offsetof(CudnnLib, symbol)},
static const Symbol cudnn_symbols[] = {
#include "backend/cuda/device/libs_cudnn.def"
};
#undef FN
static void open_cudnn(void) {
    open_library(&cudnn_opened, "libcudnn.so.9", "libcudnn.so", &cudnn, cudnn_symbols, COUNT(cudnn_symbols));
    if (cudnn_opened.status == ST_OK) cudnn.version = cudnn.cudnnGetVersion();
}
#else
static void open_cudnn(void) {
    cudnn_opened.status = ST_UNSUPPORTED;
    snprintf(cudnn_opened.text, sizeof cudnn_opened.text, "built without cuDNN: install its headers (cudnn.h) and build again");
}
#endif
Status libs_cudnn(const CudnnLib **out, Diag *d) {
    *out = &cudnn;
    return opened(&cudnn_opened, open_cudnn, d);
}
