// The device on host memory: launches run at once, in order. With it the whole backend runs, and is sanitized, without a GPU.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "backend/cuda/ops/box.h"
#include "backend/cuda/device/device_api.h"
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/device/module.h"

enum { EMULATED_SMS = 3, MARKS = 4096 };  // few multiprocessors: small grids, whose blocks take several turns

typedef struct PeerMap {
    void *at;
    size_t nbytes;
} PeerMap;

// A copy is as late as it may be: it takes place when it is waited for. Until then its destination is what a copy under way leaves of
// it, nothing to rely on. So whoever reads too early, or shares the bytes of either side, sees it.
typedef struct PendingCopy {
    void *dst;
    const void *src;
    size_t nbytes;
    bool running;            // not waited for yet
    double begin, end;
} PendingCopy;

struct DeviceImpl {
    DeviceError error;
    DeviceStep step;
    void *arena;
    size_t arena_nbytes;
    int fd;                  // the file in memory behind the arena: other processes map it
    VEC(PeerMap) peer;
    VEC(PendingCopy) copy;   // by slot
    double mark[MARKS];
};

// Parts of the backend that may not be linked into a small test.
void gemm_close(Device *dev) __attribute__((weak));
void module_close(Device *dev) __attribute__((weak));

static int emulated_count(void) { return 1; }

static void emulated_close(Device *dev) {
    if (!dev) return;
    if (&gemm_close) gemm_close(dev);
    if (&module_close) module_close(dev);
    for (int64_t i = 0; i < dev->impl->peer.len; i++) munmap(dev->impl->peer.data[i].at, dev->impl->peer.data[i].nbytes);
    vec_free(&dev->impl->peer);
    vec_free(&dev->impl->copy);
    if (dev->impl->arena) munmap(dev->impl->arena, dev->impl->arena_nbytes);
    if (dev->impl->fd >= 0) close(dev->impl->fd);
    free(dev->impl);
    free(dev);
}

static Status emulated_open(int rank, int nranks, size_t arena_nbytes, Device **out, void **arena, Diag *d) {
    Device *dev = calloc(1, sizeof *dev);
    struct DeviceImpl *impl = calloc(1, sizeof *impl);
    size_t nbytes = arena_nbytes ? arena_nbytes : 1;
    int fd = memfd_create("arena", MFD_CLOEXEC);
    void *p = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)nbytes) == 0) p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!dev || !impl || p == MAP_FAILED) {
        if (p != MAP_FAILED) munmap(p, nbytes);
        if (fd >= 0) close(fd);
        free(impl);
        free(dev);
        return diag_error(d, ST_MEMORY, "rank %d: the emulated device cannot allocate its arena of %zu bytes", rank,
                          arena_nbytes);
    }
    *impl = (struct DeviceImpl){.arena = p, .arena_nbytes = nbytes, .fd = fd};
    *dev = (Device){.ordinal = -1, .rank = rank, .nsm = EMULATED_SMS, .error = &impl->error, .step = &impl->step,
                    .name = "emulated", .key = "emulated", .impl = impl};
    *arena = p;
    *out = dev;
    return ST_OK;
}

static Status emulated_available(int rank, size_t *free_nbytes, size_t *total_nbytes, Diag *d) {
    *free_nbytes = *total_nbytes = (size_t)64 << 30;  // the host's memory is the limit, and mmap says when it is reached
    return ST_OK;
}

static Status emulated_begin(Device *dev, uint64_t run_seed, int64_t step, Diag *d) {
    dev->impl->error = (DeviceError){0};
    dev->impl->step = (DeviceStep){.run_seed = run_seed, .step = step};
    dev->impl->copy.len = 0;  // of a step that failed
    return ST_OK;
}

static Status emulated_finish(Device *dev, NodeId *failed, Diag *d) {
    DeviceError e = dev->impl->error;
    *failed = NO_NODE;
    if (e.code == DEVICE_OK) return ST_OK;
    *failed = e.node;
    dev->impl->error = (DeviceError){0};
    if (e.code == DEVICE_ZERO_DIVISOR) return diag_error(d, ST_NUMERIC, "integer division by zero");
    if (e.code == DEVICE_DOCUMENTS) return diag_error(d, ST_NUMERIC, DEVICE_DOCUMENTS_TEXT, e.value, e.limit);
    if (e.code == DEVICE_UNSORTED) return diag_error(d, ST_NUMERIC, DEVICE_UNSORTED_TEXT, e.value);
    return diag_error(d, ST_NUMERIC, "index %lld is outside [0, %lld)", e.value, e.limit);
}

static Status emulated_copy(Device *dev, void *dst, const void *src, size_t nbytes, Diag *d) {
    if (nbytes) memmove(dst, src, nbytes);
    return ST_OK;
}

static Status emulated_fill(Device *dev, void *dst, DType t, int64_t n, double value, Diag *d) {
    GpuType type;
    TRY(gpu_type_of(t, "fill", &type, d));
    gpu_fill(dev->stream, dev->nsm, dst, type, n, value);
    return ST_OK;
}

static Status emulated_copy_box(Device *dev, const BoxCopy *b, Diag *d) {
    GpuBox box;
    TRY(gpu_box_of(b, &box, d));
    gpu_copy_box(dev->stream, dev->nsm, &box);
    return ST_OK;
}

// ---- copies beside the kernels ----------------------------------------------------------------------------------------------
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Status emulated_host_alloc(Device *dev, size_t nbytes, void **out, Diag *d) {
    *out = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*out != MAP_FAILED) return ST_OK;
    *out = NULL;
    return diag_error(d, ST_MEMORY, "rank %d: the emulated device cannot allocate %zu bytes of host memory", dev->rank, nbytes);
}

static void emulated_host_free(Device *dev, void *p, size_t nbytes) {
    if (p) munmap(p, nbytes);
}

static Status emulated_copy_start(Device *dev, CopyDirection to, void *dst, const void *src, size_t nbytes, int slot, Diag *d) {
    struct DeviceImpl *m = dev->impl;
    while (m->copy.len <= slot) vec_push(&m->copy, ((PendingCopy){0}));
    if (m->copy.data[slot].running) return diag_error(d, ST_UNSUPPORTED, "copy %d is started while it is under way", slot);
    m->copy.data[slot] = (PendingCopy){.dst = dst, .src = src, .nbytes = nbytes, .running = true, .begin = now()};
    if (nbytes) memset(dst, 0xff, nbytes);
    return ST_OK;
}

static Status emulated_copy_wait(Device *dev, int slot, Diag *d) {
    PendingCopy *c = slot < dev->impl->copy.len ? &dev->impl->copy.data[slot] : NULL;
    if (!c || !c->running) return diag_error(d, ST_UNSUPPORTED, "nothing was started as copy %d", slot);
    if (c->nbytes) memcpy(c->dst, c->src, c->nbytes);
    c->running = false;
    c->end = now();
    return ST_OK;
}

static Status emulated_copy_times(Device *dev, int slot, double *begin, double *end, Diag *d) {
    if (slot >= dev->impl->copy.len) return diag_error(d, ST_UNSUPPORTED, "there was no copy %d", slot);
    *begin = dev->impl->copy.data[slot].begin - dev->impl->mark[0];
    *end = dev->impl->copy.data[slot].end - dev->impl->mark[0];
    return ST_OK;
}

static Status emulated_mark(Device *dev, int i, Diag *d) {
    if (i < 0 || i >= MARKS) return diag_error(d, ST_UNSUPPORTED, "mark %d: the emulated device has %d", i, MARKS);
    dev->impl->mark[i] = now();
    return ST_OK;
}

static Status emulated_elapsed(Device *dev, int from, int to, double *seconds, Diag *d) {
    if (from < 0 || from >= MARKS || to < 0 || to >= MARKS)
        return diag_error(d, ST_UNSUPPORTED, "marks %d and %d: the emulated device has %d", from, to, MARKS);
    *seconds = dev->impl->mark[to] - dev->impl->mark[from];
    return ST_OK;
}

typedef struct Handle {
    int64_t pid, fd, nbytes;
} Handle;

static Status emulated_export(Device *dev, void *handle64, Diag *d) {
    *(Handle *)handle64 = (Handle){getpid(), dev->impl->fd, (int64_t)dev->impl->arena_nbytes};
    return ST_OK;
}

static Status emulated_open_peer(Device *dev, const void *handle64, void **arena, Diag *d) {
    const Handle *h = handle64;
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)h->pid, (long long)h->fd);
    int fd = open(path, O_RDWR);
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, (size_t)h->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (p == MAP_FAILED) return diag_error(d, ST_COMM, "cannot map the memory of process %lld", (long long)h->pid);
    vec_push(&dev->impl->peer, ((PeerMap){p, (size_t)h->nbytes}));
    *arena = p;
    return ST_OK;
}

static void emulated_about(char *text, size_t nbytes) { snprintf(text, nbytes, "emulated on the host, for tests"); }

const DeviceApi device_api = {  // launches run at once: nothing can be recorded
    .count = emulated_count,
    .about = emulated_about,
    .open = emulated_open,
    .close = emulated_close,
    .available = emulated_available,
    .prepare = cuda_prepare,
    .begin = emulated_begin,
    .finish = emulated_finish,
    .read = emulated_copy,
    .write = emulated_copy,
    .copy = emulated_copy,
    .fill = emulated_fill,
    .copy_box = emulated_copy_box,
    .host_alloc = emulated_host_alloc,
    .host_free = emulated_host_free,
    .copy_start = emulated_copy_start,
    .copy_wait = emulated_copy_wait,
    .copy_times = emulated_copy_times,
    .mark = emulated_mark,
    .elapsed = emulated_elapsed,
    .export_arena = emulated_export,
    .open_peer = emulated_open_peer,
};
