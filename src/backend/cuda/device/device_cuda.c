// The GPU: a stream for kernels, one for copies in each direction, one allocation and a few records for each rank.
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/ops/box.h"
#include "backend/cuda/device/device_api.h"
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/device/module.h"
#include "backend/cuda/device/pinned.h"

#define CUDA_TRY(dev, call)                                                                                                     \
    do {                                                                                                                        \
        cudaError_t cuda_err_ = (call);                                                                                         \
        if (cuda_err_ != cudaSuccess) {                                                                                         \
            cudaGetLastError(); /* not for the next caller */                                                                   \
            return diag_error(d, ST_UNSUPPORTED, "rank %d: %s: %s", (dev)->rank, #call, cudaGetErrorString(cuda_err_));         \
        }                                                                                                                       \
    } while (0)

// Pinned host memory behind a rank's records.
typedef struct Mirror {
    DeviceError error;
    DeviceStep step;
} Mirror;

typedef struct CopyEvents {
    cudaEvent_t begin, end;
} CopyEvents;

struct DeviceImpl {
    char *memory;            // arena, then the records
    size_t arena_nbytes;
    Mirror *mirror;
    Pinned host;             // values in host memory
    cudaStream_t copy_stream[COPY_DIRECTIONS];
    cudaEvent_t fork;        // what a copy waits for: all that was launched before it
    cudaEvent_t join;        // what the next step waits for: all that was copied before it
    bool copied[COPY_DIRECTIONS];  // in this step
    VEC(CopyEvents) copy;    // by slot
    VEC(cudaEvent_t) mark;
    VEC(cudaGraphExec_t) graph;
    VEC(void *) peer;        // mapped arenas of other processes
};
enum { RECORD_NBYTES = 256, ALIGN = 256 };

static int device_count(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return n;
}

static Status no_device(Diag *d) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    cudaGetLastError();
    return diag_error(
        d, ST_UNSUPPORTED,
        "no NVIDIA GPU can be used here (%s): run on a machine with one, or take --device cpu; plan --device cuda works anywhere",
        e == cudaSuccess ? "the driver shows none" : cudaGetErrorString(e));
}

static Status use_device(int rank, int *ordinal, Diag *d) {
    int n = device_count();
    if (n < 1) return no_device(d);
    *ordinal = rank % n;
    Device who = {.rank = rank};
    CUDA_TRY(&who, cudaSetDevice(*ordinal));
    return ST_OK;
}

static Status device_available(int rank, size_t *free_nbytes, size_t *total_nbytes, Diag *d) {
    int ordinal;
    TRY(use_device(rank, &ordinal, d));
    Device who = {.rank = rank};
    CUDA_TRY(&who, cudaMemGetInfo(free_nbytes, total_nbytes));
    return ST_OK;
}

static Status name_device(Device *dev, Diag *d) {
    struct cudaDeviceProp p;
    int driver = 0;
    CUDA_TRY(dev, cudaGetDeviceProperties(&p, dev->ordinal));
    CUDA_TRY(dev, cudaDriverGetVersion(&driver));
    dev->nsm = p.multiProcessorCount;
    dev->capability = p.major * 10 + p.minor;
    snprintf(dev->name, sizeof dev->name, "%.63s", p.name);
    snprintf(dev->key, sizeof dev->key, "%s sm_%d driver %d", dev->name, dev->capability, driver);
    if (dev->capability < 80)
        return diag_error(d, ST_UNSUPPORTED, "%s has compute capability %d.%d; 8.0 (Ampere) is the least that is supported",
                          dev->name, p.major, p.minor);
    return ST_OK;
}

static Status allocate(Device *dev, size_t arena_nbytes, Diag *d) {
    struct DeviceImpl *m = dev->impl;
    size_t have = 0, total = 0;
    m->arena_nbytes = (arena_nbytes + ALIGN - 1) / ALIGN * ALIGN;
    CUDA_TRY(dev, cudaMemGetInfo(&have, &total));
    cudaError_t e = cudaMalloc((void **)&m->memory, m->arena_nbytes + RECORD_NBYTES);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return diag_error(d, ST_MEMORY,
                          "rank %d: the plan needs %.2f GB on %s, %.2f of %.2f GB are free: take a shorter sequence, a smaller "
                          "batch, or more GPUs",
                          dev->rank, (double)arena_nbytes / 1e9, dev->name, (double)have / 1e9, (double)total / 1e9);
    }
    CUDA_TRY(dev, cudaMemsetAsync(m->memory, 0, m->arena_nbytes + RECORD_NBYTES, dev->stream));
    CUDA_TRY(dev, cudaMallocHost((void **)&m->mirror, sizeof *m->mirror));
    memset(m->mirror, 0, sizeof *m->mirror);
    dev->error = (DeviceError *)(m->memory + m->arena_nbytes);
    dev->step = (DeviceStep *)(m->memory + m->arena_nbytes + RECORD_NBYTES / 2);
    CUDA_TRY(dev, cudaStreamSynchronize(dev->stream));
    return ST_OK;
}

// ---- copies beside the kernels --------------------------------------------------------------------------------------------
static Status open_copies(Device *dev, Diag *d) {
    struct DeviceImpl *m = dev->impl;
    for (int k = 0; k < COPY_DIRECTIONS; k++) CUDA_TRY(dev, cudaStreamCreateWithFlags(&m->copy_stream[k], cudaStreamNonBlocking));
    CUDA_TRY(dev, cudaEventCreateWithFlags(&m->fork, cudaEventDisableTiming));
    CUDA_TRY(dev, cudaEventCreateWithFlags(&m->join, cudaEventDisableTiming));
    return ST_OK;
}

static void sync_copies(Device *dev) {
    for (int k = 0; k < COPY_DIRECTIONS; k++)
        if (dev->impl->copy_stream[k]) cudaStreamSynchronize(dev->impl->copy_stream[k]);
}

static void close_copies(Device *dev) {
    struct DeviceImpl *m = dev->impl;
    for (int64_t i = 0; i < m->copy.len; i++) {
        cudaEventDestroy(m->copy.data[i].begin);
        cudaEventDestroy(m->copy.data[i].end);
    }
    if (m->fork) cudaEventDestroy(m->fork);
    if (m->join) cudaEventDestroy(m->join);
    for (int k = 0; k < COPY_DIRECTIONS; k++)
        if (m->copy_stream[k]) cudaStreamDestroy(m->copy_stream[k]);
    vec_free(&m->copy);
}

// What is launched from here on runs after all copies of this step. Every copy has been waited for by then, unless a step failed in
// the middle; a capture may not end with streams apart.
static Status join_copies(Device *dev, Diag *d) {
    struct DeviceImpl *m = dev->impl;
    for (int k = 0; k < COPY_DIRECTIONS; k++) {
        if (!m->copied[k]) continue;
        m->copied[k] = false;
        CUDA_TRY(dev, cudaEventRecord(m->join, m->copy_stream[k]));
        CUDA_TRY(dev, cudaStreamWaitEvent(dev->stream, m->join, 0));
    }
    return ST_OK;
}

static Status device_host_alloc(Device *dev, size_t nbytes, void **out, Diag *d) {
    *out = NULL;
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    CHECK(!dev->impl->host.data, "one host arena for a device");
    const char *why = pinned_alloc(&dev->impl->host, nbytes);
    *out = dev->impl->host.data;
    if (!why) return ST_OK;
    return diag_error(d, ST_MEMORY,
                      "rank %d: the plan keeps %.2f GB in host memory, and the driver cannot pin that much here (%s): offload less, take a "
                      "shorter sequence, or a machine with more memory",
                      dev->rank, (double)nbytes / 1e9, why);
}

static void device_host_free(Device *dev, void *p, size_t nbytes) {
    (void)nbytes;
    if (!p) return;
    cudaSetDevice(dev->ordinal);
    if (dev->stream) cudaStreamSynchronize(dev->stream);
    sync_copies(dev);
    pinned_free(&dev->impl->host);
}

// Events of a slot are made when it is first used: in the first step, which runs before any is captured.
static Status device_copy_start(Device *dev, CopyDirection to, void *dst, const void *src, size_t nbytes, int slot, Diag *d) {
    struct DeviceImpl *m = dev->impl;
    while (m->copy.len <= slot) {
        CopyEvents e = {0};
        CUDA_TRY(dev, cudaEventCreate(&e.begin));
        CUDA_TRY(dev, cudaEventCreate(&e.end));
        vec_push(&m->copy, e);
    }
    cudaStream_t stream = m->copy_stream[to];
    enum cudaMemcpyKind kind = to == COPY_TO_HOST ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    CUDA_TRY(dev, cudaEventRecord(m->fork, dev->stream));
    CUDA_TRY(dev, cudaStreamWaitEvent(stream, m->fork, 0));
    m->copied[to] = true;
    CUDA_TRY(dev, cudaEventRecord(m->copy.data[slot].begin, stream));
    if (nbytes > 0) CUDA_TRY(dev, cudaMemcpyAsync(dst, src, nbytes, kind, stream));
    CUDA_TRY(dev, cudaEventRecord(m->copy.data[slot].end, stream));
    return ST_OK;
}

static Status device_copy_wait(Device *dev, int slot, Diag *d) {
    CUDA_TRY(dev, cudaStreamWaitEvent(dev->stream, dev->impl->copy.data[slot].end, 0));
    return ST_OK;
}

static Status device_copy_times(Device *dev, int slot, double *begin, double *end, Diag *d) {
    const CopyEvents *e = &dev->impl->copy.data[slot];
    float from = 0, to = 0;
    CUDA_TRY(dev, cudaEventElapsedTime(&from, dev->impl->mark.data[0], e->begin));
    CUDA_TRY(dev, cudaEventElapsedTime(&to, dev->impl->mark.data[0], e->end));
    *begin = (double)from * 1e-3;
    *end = (double)to * 1e-3;
    return ST_OK;
}

static Status connect_device(Device *dev, size_t arena_nbytes, Diag *d) {
    TRY(use_device(dev->rank, &dev->ordinal, d));
    TRY(name_device(dev, d));
    cudaStream_t stream;
    CUDA_TRY(dev, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    dev->stream = stream;
    TRY(open_copies(dev, d));
    for (int i = 0; i < device_count(); i++) {  // neighbours read each other's messages
        int can = 0;
        if (i == dev->ordinal || cudaDeviceCanAccessPeer(&can, dev->ordinal, i) != cudaSuccess || !can) continue;
        cudaDeviceEnablePeerAccess(i, 0);
        cudaGetLastError();  // already enabled by another rank: fine
    }
    return allocate(dev, arena_nbytes, d);
}

static void device_close(Device *dev) {
    if (!dev) return;
    cudaSetDevice(dev->ordinal);
    struct DeviceImpl *m = dev->impl;
    if (dev->stream) cudaStreamSynchronize(dev->stream);
    sync_copies(dev);
    if (dev->blas) gemm_close(dev);
    if (dev->dnn) dnn_close(dev);
    if (dev->modules) module_close(dev);
    for (int64_t i = 0; i < m->graph.len; i++) cudaGraphExecDestroy(m->graph.data[i]);
    for (int64_t i = 0; i < m->mark.len; i++) cudaEventDestroy(m->mark.data[i]);
    for (int64_t i = 0; i < m->peer.len; i++) cudaIpcCloseMemHandle(m->peer.data[i]);
    close_copies(dev);
    if (m->mirror) cudaFreeHost(m->mirror);
    if (m->memory) cudaFree(m->memory);
    if (dev->stream) cudaStreamDestroy(dev->stream);
    cudaGetLastError();
    vec_free(&m->graph);
    vec_free(&m->mark);
    vec_free(&m->peer);
    free(m);
    free(dev);
}

static Status device_open(int rank, int nranks, size_t arena_nbytes, Device **out, void **arena, Diag *d) {
    (void)nranks;
    Device *dev = calloc(1, sizeof *dev);
    if (dev) dev->impl = calloc(1, sizeof *dev->impl);
    if (!dev || !dev->impl) {
        free(dev);
        return diag_error(d, ST_MEMORY, "out of memory for a device");
    }
    dev->rank = rank;
    Status st = connect_device(dev, arena_nbytes, d);
    if (st != ST_OK) {
        device_close(dev);
        return st;
    }
    *out = dev;
    *arena = dev->impl->memory;
    return ST_OK;
}

// A rank's thread starts with device 0 as its current one, whatever its rank's is: what is created in preparing belongs to the
// current one.
static Status device_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    return cuda_prepare(dev, k, state, d);
}

// ---- steps ----------------------------------------------------------------------------------------------------------------
static Status device_begin(Device *dev, uint64_t run_seed, int64_t step, Diag *d) {
    Mirror *m = dev->impl->mirror;
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    TRY(module_wait(dev, d));
    TRY(join_copies(dev, d));
    m->step = (DeviceStep){run_seed, step};
    CUDA_TRY(dev, cudaMemsetAsync(dev->error, 0, sizeof *dev->error, dev->stream));
    CUDA_TRY(dev, cudaMemcpyAsync(dev->step, &m->step, sizeof m->step, cudaMemcpyHostToDevice, dev->stream));
    return ST_OK;
}

static Status device_finish(Device *dev, NodeId *failed, Diag *d) {
    Mirror *m = dev->impl->mirror;
    CUDA_TRY(dev, cudaMemcpyAsync(&m->error, dev->error, sizeof m->error, cudaMemcpyDeviceToHost, dev->stream));
    CUDA_TRY(dev, cudaStreamSynchronize(dev->stream));
    CUDA_TRY(dev, cudaGetLastError());
    if (m->error.code == DEVICE_OK) return ST_OK;
    *failed = m->error.node;
    if (m->error.code == DEVICE_ZERO_DIVISOR) return diag_error(d, ST_NUMERIC, "integer division by zero");
    if (m->error.code == DEVICE_DOCUMENTS)
        return diag_error(d, ST_NUMERIC, DEVICE_DOCUMENTS_TEXT, m->error.value, m->error.limit);
    if (m->error.code == DEVICE_UNSORTED) return diag_error(d, ST_NUMERIC, DEVICE_UNSORTED_TEXT, m->error.value);
    return diag_error(d, ST_NUMERIC, "index %lld is outside [0, %lld)", m->error.value, m->error.limit);
}

static Status device_read(Device *dev, void *host, const void *device, size_t nbytes, Diag *d) {
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    CUDA_TRY(dev, cudaMemcpyAsync(host, device, nbytes, cudaMemcpyDeviceToHost, dev->stream));
    CUDA_TRY(dev, cudaStreamSynchronize(dev->stream));
    return ST_OK;
}

static Status device_write(Device *dev, void *device, const void *host, size_t nbytes, Diag *d) {
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    CUDA_TRY(dev, cudaMemcpyAsync(device, host, nbytes, cudaMemcpyHostToDevice, dev->stream));
    CUDA_TRY(dev, cudaStreamSynchronize(dev->stream));
    return ST_OK;
}

static Status device_copy(Device *dev, void *dst, const void *src, size_t nbytes, Diag *d) {
    CUDA_TRY(dev, cudaMemcpyAsync(dst, src, nbytes, cudaMemcpyDefault, dev->stream));
    return ST_OK;
}

static Status device_fill(Device *dev, void *dst, DType t, int64_t n, double value, Diag *d) {
    GpuType type;
    TRY(gpu_type_of(t, "a fill", &type, d));
    gpu_fill(dev->stream, dev->nsm, dst, type, n, value);
    CUDA_TRY(dev, cudaPeekAtLastError());
    return ST_OK;
}

static Status device_copy_box(Device *dev, const BoxCopy *b, Diag *d) {
    GpuBox box;
    TRY(gpu_box_of(b, &box, d));
    gpu_copy_box(dev->stream, dev->nsm, &box);
    CUDA_TRY(dev, cudaPeekAtLastError());
    return ST_OK;
}

// ---- captured steps, times ------------------------------------------------------------------------------------------------
static Status device_capture_begin(Device *dev, Diag *d) {
    TRY(join_copies(dev, d));  // what a capture waits for must be of the capture
    CUDA_TRY(dev, cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal));
    return ST_OK;
}

static Status device_capture_end(Device *dev, void **graph, Diag *d) {
    cudaGraph_t g = NULL;
    cudaGraphExec_t exec = NULL;
    *graph = NULL;
    Status joined = join_copies(dev, d);
    cudaError_t ended = cudaStreamEndCapture(dev->stream, &g);  // in any case: nothing else could be launched
    if (joined != ST_OK && g) cudaGraphDestroy(g);
    TRY(joined);
    CUDA_TRY(dev, ended);
    cudaError_t e = cudaGraphInstantiate(&exec, g, 0);
    cudaGraphDestroy(g);
    CUDA_TRY(dev, e);
    vec_push(&dev->impl->graph, exec);
    *graph = exec;
    return ST_OK;
}

static Status device_replay(Device *dev, void *graph, Diag *d) {
    CUDA_TRY(dev, cudaGraphLaunch(graph, dev->stream));
    return ST_OK;
}

static Status device_mark(Device *dev, int i, Diag *d) {
    while (dev->impl->mark.len <= i) {
        cudaEvent_t e;
        CUDA_TRY(dev, cudaEventCreate(&e));
        vec_push(&dev->impl->mark, e);
    }
    CUDA_TRY(dev, cudaEventRecord(dev->impl->mark.data[i], dev->stream));
    return ST_OK;
}

static Status device_elapsed(Device *dev, int from, int to, double *seconds, Diag *d) {
    float ms = 0;
    CUDA_TRY(dev, cudaEventElapsedTime(&ms, dev->impl->mark.data[from], dev->impl->mark.data[to]));
    *seconds = (double)ms * 1e-3;
    return ST_OK;
}

// ---- other processes ------------------------------------------------------------------------------------------------------
static Status device_export_arena(Device *dev, void *handle64, Diag *d) {
    cudaIpcMemHandle_t h;
    CUDA_TRY(dev, cudaIpcGetMemHandle(&h, dev->impl->memory));
    _Static_assert(sizeof h == 64, "an IPC handle has 64 bytes");
    memcpy(handle64, &h, sizeof h);
    return ST_OK;
}

static Status device_open_peer(Device *dev, const void *handle64, void **arena, Diag *d) {
    cudaIpcMemHandle_t h;
    memcpy(&h, handle64, sizeof h);
    CUDA_TRY(dev, cudaSetDevice(dev->ordinal));
    CUDA_TRY(dev, cudaIpcOpenMemHandle(arena, h, cudaIpcMemLazyEnablePeerAccess));
    vec_push(&dev->impl->peer, *arena);
    return ST_OK;
}

static void device_about(char *text, size_t nbytes) {
#if __has_include(<cudnn.h>)
    const char *dnn = "";
#else
    const char *dnn = ", without cuDNN's headers: attention by our own kernels only";
#endif
    int n = device_count(), driver = 0;
    int at = snprintf(text, nbytes, "toolkit %d.%d%s; ", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, dnn);
    struct cudaDeviceProp p;
    if (n > 0 && cudaGetDeviceProperties(&p, 0) == cudaSuccess)
        snprintf(text + at, nbytes - (size_t)at, "%d GPU%s to use: %s", n, n == 1 ? "" : "s", p.name);
    else if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        snprintf(text + at, nbytes - (size_t)at, "no GPU to use here: there is no driver");
    else
        snprintf(text + at, nbytes - (size_t)at, "no GPU to use here; driver for CUDA %d.%d", driver / 1000, driver % 1000 / 10);
}

const DeviceApi device_api = {
    .count = device_count,
    .about = device_about,
    .open = device_open,
    .close = device_close,
    .available = device_available,
    .prepare = device_prepare,
    .begin = device_begin,
    .finish = device_finish,
    .read = device_read,
    .write = device_write,
    .copy = device_copy,
    .fill = device_fill,
    .copy_box = device_copy_box,
    .host_alloc = device_host_alloc,
    .host_free = device_host_free,
    .copy_start = device_copy_start,
    .copy_wait = device_copy_wait,
    .copy_times = device_copy_times,
    .capture_begin = device_capture_begin,
    .capture_end = device_capture_end,
    .replay = device_replay,
    .mark = device_mark,
    .elapsed = device_elapsed,
    .export_arena = device_export_arena,
    .open_peer = device_open_peer,
};
