// A GPU, buffers on it and a PASS/FAIL line per check, for the probes of matrix products. No test library: they run where only a
// driver is.
#pragma once
#include <cuda_runtime.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/kernels.h"
#include "base/random.h"

#define GPU(call)                                                                                              \
    do {                                                                                                       \
        cudaError_t e_ = (call);                                                                               \
        if (e_ != cudaSuccess) {                                                                               \
            printf("FAIL %s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));                  \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)
#define DO(call)                                                                                               \
    do {                                                                                                       \
        Diag d = {0};                                                                                          \
        if ((call) != ST_OK) {                                                                                 \
            printf("FAIL %s:%d %s\n", __FILE__, __LINE__, d.text);                                             \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

static int nfail, npass;
static inline void verdict(bool ok, const char *what, double worst) {
    if (ok) npass++;
    else nfail++;
    if (!ok) printf("FAIL %s: error %.3g of what is allowed\n", what, worst);
}

// A buffer on the device and, where the host made it or asked for it, its values as doubles.
typedef struct Buf {
    DType t;
    int64_t n;
    void *dev;
    double *host;
} Buf;

static inline double bits_get(const void *p, DType t, int64_t i) {
    if (t == DT_I64) return (double)((const int64_t *)p)[i];
    if (t == DT_F32) return ((const float *)p)[i];
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline void bits_set(void *p, DType t, int64_t i, double v) {
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (t == DT_I64) ((int64_t *)p)[i] = (int64_t)v;
    else if (t == DT_F32) ((float *)p)[i] = f;
    else ((uint16_t *)p)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// n elements, `skip` elements behind a 256-byte boundary; uninitialised (NaN).
static inline Buf buf_new(DType t, int64_t n, int skip) {
    Buf b = {.t = t, .n = n};
    char *p;
    GPU(cudaMalloc((void **)&p, (size_t)(n + skip + 64) * (size_t)dtype_nbytes(t)));
    GPU(cudaMemset(p, 0xff, (size_t)(n + skip + 64) * (size_t)dtype_nbytes(t)));
    b.dev = p + skip * dtype_nbytes(t);
    b.host = NULL;
    return b;
}
static inline void buf_free(Buf *b) {
    GPU(cudaFree((void *)((uintptr_t)b->dev & ~(uintptr_t)255)));
    free(b->host);
}
static inline void buf_write(Buf *b, const double *v) {
    char *bytes = malloc((size_t)b->n * (size_t)dtype_nbytes(b->t) + 1);
    for (int64_t i = 0; i < b->n; i++) bits_set(bytes, b->t, i, v[i]);
    GPU(cudaMemcpy(b->dev, bytes, (size_t)b->n * (size_t)dtype_nbytes(b->t), cudaMemcpyHostToDevice));
    free(b->host);
    b->host = malloc(sizeof(double) * (size_t)(b->n + 1));
    for (int64_t i = 0; i < b->n; i++) b->host[i] = bits_get(bytes, b->t, i);
    free(bytes);
}
// Numbers in [lo, hi), of a cheap generator: buffers may be large.
static inline void buf_random(Buf *b, uint64_t seed, double lo, double hi) {
    double *v = calloc((size_t)(b->n + 1), sizeof *v);
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < b->n; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        v[i] = lo + (hi - lo) * (double)(x >> 11) / 9007199254740992.0;
        if (b->t == DT_I64) v[i] = floor(v[i]);
    }
    buf_write(b, v);
    free(v);
}
static inline void buf_read(Buf *b) {
    size_t nbytes = (size_t)b->n * (size_t)dtype_nbytes(b->t);
    char *bytes = malloc(nbytes + 1);
    GPU(cudaMemcpy(bytes, b->dev, nbytes, cudaMemcpyDeviceToHost));
    free(b->host);
    b->host = malloc(sizeof(double) * (size_t)(b->n + 1));
    for (int64_t i = 0; i < b->n; i++) b->host[i] = bits_get(bytes, b->t, i);
    free(bytes);
}
static inline double buf_at(const Buf *b, int64_t i) {  // one element, from the device
    char bytes[8];
    GPU(cudaMemcpy(bytes, (char *)b->dev + i * dtype_nbytes(b->t), (size_t)dtype_nbytes(b->t), cudaMemcpyDeviceToHost));
    return bits_get(bytes, b->t, 0);
}

static Device device;
static cudaEvent_t time_begin, time_end;
static inline void device_start(void) {
    struct cudaDeviceProp p;
    cudaStream_t stream;
    GPU(cudaGetDeviceProperties(&p, 0));
    GPU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    device = (Device){.nsm = p.multiProcessorCount, .stream = stream, .capability = p.major * 10 + p.minor};
    snprintf(device.name, sizeof device.name, "%.63s", p.name);
    snprintf(device.key, sizeof device.key, "%.63s sm_%d", p.name, device.capability);
    GPU(cudaMalloc((void **)&device.error, sizeof *device.error));
    GPU(cudaMemset(device.error, 0, sizeof *device.error));
    GPU(cudaEventCreate(&time_begin));
    GPU(cudaEventCreate(&time_end));
    printf("%s, %d multiprocessors\n", device.name, device.nsm);
}
static inline void device_wait(void) { GPU(cudaStreamSynchronize((cudaStream_t)device.stream)); }
static inline void clock_start(void) { GPU(cudaEventRecord(time_begin, (cudaStream_t)device.stream)); }
static inline double clock_ms(void) {
    float ms;
    GPU(cudaEventRecord(time_end, (cudaStream_t)device.stream));
    GPU(cudaEventSynchronize(time_end));
    GPU(cudaEventElapsedTime(&ms, time_begin, time_end));
    return ms;
}

// |got - want| in units of what is allowed: rounding of the result's type, float32 sums of k terms whose squares sum to `norm`
// squared, and `more`, what the caller knows besides.
static inline double error_beyond(double got, double want, DType t, int64_t k, double norm, double more) {
    double unit = t == DT_BF16 ? fabs(want) / 256 : fabs(want) * 2.4e-7;
    double e = fabs(got - want) / (unit + 1.2e-7 * (8 + sqrt((double)k)) * norm + more + 1e-30);
    return isnan(e) ? INFINITY : e;
}
static inline double error_of(double got, double want, DType t, int64_t k, double norm) {
    return error_beyond(got, want, t, k, norm, 0);
}

static inline Operand operand_of(const Buf *b, int ndim, int64_t d0, int64_t d1, int64_t d2) {
    return (Operand){.dtype = b->t, .ndim = ndim, .sdim = -1, .dim = {d0, d1, d2}, .global = {d0, d1, d2}, .data = b->dev};
}
