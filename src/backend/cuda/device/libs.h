// The libraries of the CUDA backend, opened when first needed: a machine without one of them can still build, plan and run what
// does not use it. One list of symbols per library (libs_*.def): a file that needs another function adds a line there.
//
//   const NvrtcLib *nvrtc;
//   TRY(libs_nvrtc(&nvrtc, d));
//   nvrtc->nvrtcVersion(&major, &minor);
//
// A missing library or symbol is ST_UNSUPPORTED and says which, and where it was looked for. Thread-safe; nothing is ever closed.
#pragma once
#include <cublasLt.h>
#include <cuda.h>
#include <nvrtc.h>
#include "base/diag.h"
#if __has_include(<cudnn.h>)
#include <cudnn.h>
#define LIBS_HAVE_CUDNN 1
#else
#define LIBS_HAVE_CUDNN 0  // built without cuDNN's headers: libs_cudnn says so
#endif

// A field per symbol, named and typed as in the library's header. (Names that the header maps to versioned ones, cuMemAlloc ->
// cuMemAlloc_v2, may be used by either name.)
#define FN(symbol) __typeof__(&symbol) symbol;
typedef struct CublasLtLib {
#include "backend/cuda/device/libs_cublaslt.def"
    size_t version;  // cublasLtGetVersion(): 130100
} CublasLtLib;
typedef struct NvrtcLib {
#include "backend/cuda/device/libs_nvrtc.def"
    int version;  // 13000: major * 1000 + minor * 10
} NvrtcLib;
typedef struct CudnnLib {
#if LIBS_HAVE_CUDNN
#include "backend/cuda/device/libs_cudnn.def"
#endif
    size_t version;  // cudnnGetVersion(): 91900
} CudnnLib;
typedef struct DriverLib {
#include "backend/cuda/device/libs_driver.def"
    int version;  // cuDriverGetVersion(): 13000
} DriverLib;
#undef FN

Status libs_cublaslt(const CublasLtLib **out, Diag *d);
Status libs_nvrtc(const NvrtcLib **out, Diag *d);
Status libs_cudnn(const CudnnLib **out, Diag *d);  // any version 9: dnn.c refuses the ones it knows to be wrong
Status libs_driver(const DriverLib **out, Diag *d);
