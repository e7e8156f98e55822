// Pages are made by all processors at once, large ones where the system has them, and then pinned in pieces: what takes the driver's
// own allocation a minute is done in seconds.
#include "backend/cuda/device/pinned.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_WORKERS = 16, LARGE_PAGE = 2 << 20 };

typedef struct Worker {
    char *begin, *end;
    pthread_t thread;
} Worker;

static void *touch(void *arg) {
    const Worker *w = arg;
    for (char *p = w->begin; p < w->end; p += 4096) *(volatile char *)p = 0;
    return NULL;
}

static void touch_all(char *data, size_t nbytes) {
    Worker w[MOST_WORKERS] = {0};
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    size_t n = cpus < 1 ? 1 : cpus > MOST_WORKERS ? MOST_WORKERS : (size_t)cpus, each = (nbytes / n + LARGE_PAGE) / LARGE_PAGE * LARGE_PAGE;
    for (size_t i = 0; i < n; i++) {
        size_t begin = i * each < nbytes ? i * each : nbytes, end = begin + each < nbytes ? begin + each : nbytes;
        w[i] = (Worker){.begin = data + begin, .end = data + end};
    }
    size_t started = 1;
    while (started < n && !pthread_create(&w[started].thread, NULL, touch, &w[started])) started++;
    touch(&w[0]);
    for (size_t i = started; i < n; i++) touch(&w[i]);
    for (size_t i = 1; i < started; i++) pthread_join(w[i].thread, NULL);
}

static bool map_and_pin(Pinned *p, size_t nbytes) {
    void *data = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return false;
    madvise(data, nbytes, MADV_HUGEPAGE);
    touch_all(data, nbytes);
    if (cudaHostRegister(data, nbytes, cudaHostRegisterDefault) != cudaSuccess) {
        cudaGetLastError();
        munmap(data, nbytes);
        return false;
    }
    *p = (Pinned){data, nbytes, true};
    return true;
}

const char *pinned_alloc(Pinned *p, size_t nbytes) {
    *p = (Pinned){0};
    if (nbytes >= LARGE_PAGE && map_and_pin(p, nbytes)) return NULL;
    void *data = NULL;
    cudaError_t e = cudaHostAlloc(&data, nbytes, cudaHostAllocDefault);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return cudaGetErrorString(e);
    }
    *p = (Pinned){data, nbytes, false};
    return NULL;
}

void pinned_free(Pinned *p) {
    if (!p->data) return;
    if (p->registered) {
        cudaHostUnregister(p->data);
        munmap(p->data, p->nbytes);
    } else {
        cudaFreeHost(p->data);
    }
    cudaGetLastError();
    *p = (Pinned){0};
}
