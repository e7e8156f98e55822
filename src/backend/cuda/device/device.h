// One rank's connection to a GPU, as the files of this folder share it. Plain C and C++: .cu files include it too.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
#include <stddef.h>
#include <stdint.h>

// The first error that a kernel met, in memory that host and device see. code 0: none.
typedef enum DeviceErrorCode {
    DEVICE_OK,
    DEVICE_INDEX_RANGE,
    DEVICE_ZERO_DIVISOR,
    DEVICE_DOCUMENTS,  // `value` documents in one packed sequence, `limit` were planned for
    DEVICE_UNSORTED,   // document numbers fall at position `value`
} DeviceErrorCode;
// What the host says to the errors of packed documents: with value and limit; with value.
#define DEVICE_DOCUMENTS_TEXT \
    "a sequence holds %lld packed documents, at most %lld were planned for: give --max-documents N, as many as there may be"
#define DEVICE_UNSORTED_TEXT \
    "document numbers of a packed sequence fall at position %lld, though the compiler proved that they cannot (this is a bug; " \
    "--max-documents 0 avoids it)"
typedef struct DeviceError {
    int code;
    int node;
    long long value, limit;  // the index that is not in [0, limit)
} DeviceError;

// What kernels read that changes from step to step, in device memory: captured launches repeat with the same arguments.
typedef struct DeviceStep {
    unsigned long long run_seed;
    long long step;
} DeviceStep;

typedef struct Device {
    int ordinal;             // of the GPU; -1: emulated
    int rank;
    int nsm;                 // multiprocessors: what grids are sized by
    void *stream;            // cudaStream_t
    DeviceError *error;      // device address
    DeviceStep *step;        // device address
    char name[64];           // "NVIDIA H100 80GB HBM3"
    char key[96];            // name, compute capability and driver: what caches on disk are keyed by
    int capability;          // 90
    void *blas, *dnn;        // library handles and caches, made at first use by gemm_*.c and dnn.c, closed by them
    void *modules;           // module.c
    struct DeviceImpl *impl; // device_cuda.c / device_emulated.c
} Device;

#ifdef __cplusplus
}
#endif
