// Values in host memory on a GPU: gpu_offload [programs] [copies [GB]] (none named: both; 8 GB).
//   programs  random programs with values sent to host memory and back, the steps captured, against themselves without
//   copies    so much pinned memory: how long it takes to get, how fast it is copied each way alone, both ways at once and beside kernels;
//             that a wait waits and a copy starts late enough, launch by launch and captured
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../offload_case.h"

extern const Backend backend_cuda;
static const DeviceApi *api;
static Device *dev;
static Diag diag;
static int nfail;

enum { ROUNDS = 4 };

#define MUST(call)                                                        \
    do {                                                                  \
        if ((call) != ST_OK) {                                            \
            printf("FAIL %s: %s\n", #call, diag.text);                    \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

static void verdict(bool ok, const char *what) {
    printf("%s %s\n", ok ? "PASS" : "FAIL", what);
    fflush(stdout);
    nfail += !ok;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- programs ------------------------------------------------------------------------------------------------------------
static void programs(void) {
    for (uint64_t seed = 1; seed <= 12; seed++) {
        OffloadSetup s = {.seed = seed, .nops = 12, .nranks = 1, .nthreads = 1, .real = DT_F32, .unsteady = true, .backend = &backend_cuda};
        offload_check_program(&s, 4);
    }
    printf("%lld trips, %lld outputs compared\n", (long long)offload_trips, (long long)offload_compared);
    verdict(offload_trips > 500 && offload_compared > 100, "random programs with values in host memory");
}

// ---- copies --------------------------------------------------------------------------------------------------------------
typedef struct Room {
    float *a, *b, *busy;     // on the device
    float *host, *host2;     // pinned
    int64_t n;               // floats of each
} Room;

static double seconds_of(int slot) {
    double begin, end;
    MUST(api->copy_times(dev, slot, &begin, &end, &diag));
    return end - begin;
}

static void finish(void) {
    NodeId node;
    MUST(api->finish(dev, &node, &diag));
}

static void begin(void) {
    MUST(api->begin(dev, 1, 0, &diag));
    MUST(api->mark(dev, 0, &diag));
}

static void speed(const Room *r) {
    size_t nbytes = (size_t)r->n * 4;
    double gb = (double)nbytes / 1e9;
    for (int k = 0; k < 2; k++) {  // the first touches the pages
        begin();
        MUST(api->copy_start(dev, COPY_TO_HOST, r->host, r->a, nbytes, 0, &diag));
        MUST(api->copy_wait(dev, 0, &diag));
        MUST(api->copy_start(dev, COPY_TO_DEVICE, r->b, r->host, nbytes, 1, &diag));
        MUST(api->copy_wait(dev, 1, &diag));
        finish();
    }
    printf("%.2f GB to host memory at %.1f GB/s, back at %.1f GB/s\n", gb, gb / seconds_of(0), gb / seconds_of(1));
    begin();
    MUST(api->copy_start(dev, COPY_TO_HOST, r->host, r->a, nbytes, 0, &diag));
    MUST(api->copy_start(dev, COPY_TO_DEVICE, r->b, r->host2, nbytes, 1, &diag));
    MUST(api->copy_wait(dev, 0, &diag));
    MUST(api->copy_wait(dev, 1, &diag));
    finish();
    printf("both ways at once: %.1f and %.1f GB/s\n", gb / seconds_of(0), gb / seconds_of(1));
    double alone, beside;
    int n = 0;
    begin();
    for (double t = 0; t < 0.05; n++) {  // so many fills take as long as a copy, about
        MUST(api->fill(dev, r->busy, DT_F32, r->n, n, &diag));
        t += (double)r->n * 4 / 2e12;
    }
    MUST(api->mark(dev, 1, &diag));
    finish();
    MUST(api->elapsed(dev, 0, 1, &alone, &diag));
    begin();
    MUST(api->copy_start(dev, COPY_TO_HOST, r->host, r->a, nbytes, 0, &diag));
    for (int i = 0; i < n; i++) MUST(api->fill(dev, r->busy, DT_F32, r->n, i, &diag));
    MUST(api->mark(dev, 1, &diag));
    MUST(api->copy_wait(dev, 0, &diag));
    MUST(api->mark(dev, 2, &diag));
    finish();
    double all;
    MUST(api->elapsed(dev, 0, 1, &beside, &diag));
    MUST(api->elapsed(dev, 0, 2, &all, &diag));
    printf("%d fills take %.2f ms alone, %.2f ms beside a copy at %.1f GB/s; both together %.2f ms\n", n, 1e3 * alone, 1e3 * beside,
           gb / seconds_of(0), 1e3 * all);
    verdict(all < 0.8 * (alone + seconds_of(0)) || seconds_of(0) < 0.2 * alone, "a copy runs beside kernels");
}

// Each round: a is filled with the round's number, offloaded, overwritten after the wait, fetched into b and overwritten again. Where an
// order is missing, b ends as something else.
static void chain(const Room *r, int rounds) {
    size_t nbytes = (size_t)r->n * 4;
    for (int k = 0; k < rounds; k++) {
        MUST(api->fill(dev, r->a, DT_F32, r->n, 1000 + k, &diag));
        MUST(api->copy_start(dev, COPY_TO_HOST, r->host, r->a, nbytes, 2 * k, &diag));
        MUST(api->copy_wait(dev, 2 * k, &diag));
        MUST(api->fill(dev, r->a, DT_F32, r->n, -1, &diag));
        MUST(api->fill(dev, r->b, DT_F32, r->n, -2, &diag));
        MUST(api->copy_start(dev, COPY_TO_DEVICE, r->b, r->host, nbytes, 2 * k + 1, &diag));
        MUST(api->copy_wait(dev, 2 * k + 1, &diag));
        MUST(api->copy(dev, r->busy, r->b, nbytes, &diag));
    }
}

static bool all_are(const Room *r, const float *where, float want) {
    float *x = malloc((size_t)r->n * 4);
    bool ok = x != NULL;
    if (ok) MUST(api->read(dev, x, where, (size_t)r->n * 4, &diag));
    for (int64_t i = 0; ok && i < r->n; i++) ok = x[i] == want;
    free(x);
    return ok;
}

static void order(const Room *r) {
    begin();
    chain(r, ROUNDS);
    finish();
    verdict(all_are(r, r->busy, 1000 + ROUNDS - 1), "copies and kernels in order, launch by launch");
    void *graph;
    begin();
    MUST(api->capture_begin(dev, &diag));
    chain(r, ROUNDS);
    MUST(api->capture_end(dev, &graph, &diag));
    bool ok = true;
    for (int k = 0; k < 3; k++) {
        begin();
        MUST(api->fill(dev, r->busy, DT_F32, r->n, 0, &diag));
        MUST(api->replay(dev, graph, &diag));
        finish();
        ok &= all_are(r, r->busy, 1000 + ROUNDS - 1);
    }
    verdict(ok, "copies and kernels in order, captured and replayed");
    begin();
    chain(r, ROUNDS);
    finish();
    verdict(all_are(r, r->busy, 1000 + ROUNDS - 1), "launch by launch again after a capture");
}

static void copies(double gb) {
    size_t pinned = (size_t)(gb * 1e9) / 512 * 512, part = (size_t)1 << 30;
    if (part > pinned / 2) part = pinned / 2;
    void *arena, *host;
    MUST(api->open(0, 1, 3 * part, &dev, &arena, &diag));
    double start = now();
    MUST(api->host_alloc(dev, pinned, &host, &diag));
    printf("%.2f GB of pinned host memory in %.2f s\n", (double)pinned / 1e9, now() - start);
    char *end = (char *)host + pinned - part;
    Room r = {.a = arena, .n = (int64_t)(part / 4), .host = host, .host2 = (float *)end};
    r.b = r.a + r.n, r.busy = r.b + r.n;
    memset(end, 0, part);
    speed(&r);
    order(&r);
    r.host = (float *)end;
    order(&r);
    start = now();
    api->host_free(dev, host, pinned);
    printf("given back in %.2f s\n", now() - start);
    Diag why = {0};
    Status st = api->host_alloc(dev, (size_t)1 << 50, &host, &why);
    verdict(st == ST_MEMORY && strstr(why.text, "host memory") != NULL, "a petabyte is refused with a reason");
    printf("  %s\n", why.text);
    api->close(dev);
}

int main(int argc, char **argv) {
    bool all = argc == 1;
    api = backend_cuda.device;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "programs")) programs();
        if (!strcmp(argv[i], "copies")) copies(i + 1 < argc && atof(argv[i + 1]) > 0 ? atof(argv[i + 1]) : 8);
    }
    if (all) programs();
    if (all) copies(8);
    printf("%s: %d failures\n", nfail ? "FAIL" : "PASS", nfail);
    return nfail != 0;
}
