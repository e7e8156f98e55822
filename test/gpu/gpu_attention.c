// cuDNN attention on a GPU: against float64 on the host, then speeds. Stands alone (no cmocka): one line per case, PASS or FAIL,
// and cuDNN's own words wherever it refuses; a case that fails does not stop the others.
//   gpu_attention           check, packed, speed and packed-speed (about two minutes)
//   gpu_attention check     correctness; gpu_attention speed: speeds
//   gpu_attention packed, packed-speed    the same for packed documents
//   gpu_attention operands  every graph has the operands that a run is given; needs no GPU
//   gpu_attention missing   (only when named) what cuDNN does without an operand
//   gpu_attention groups    heads in groups: the same results, how long, how much scratch (half a minute)
//   gpu_attention million   a million tokens, at a few places (a minute); gpu_attention beyond: what cuDNN makes of 2^31 elements
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "attention_probe.h"
#include "backend/cuda/device/cache.h"
#include "backend/cuda/device/libs.h"

// ---- cases
// ------------------------------------------------------------------------------------------------------------------------
static const Case cases[] = {
    {"full, one tile", 1, 4, 4, 128, 128, 64, DNN_FULL, 0, 0, -1, false},
    {"full", 1, 8, 2, 512, 512, 64, DNN_FULL, 0, 0, -1, false},
    {"full 128", 1, 8, 2, 384, 640, 128, DNN_FULL, 0, 0, -1, false},
    {"causal", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal 128", 1, 8, 2, 512, 512, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal one head each", 1, 4, 4, 512, 512, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal one KV head", 1, 8, 1, 384, 384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal batch 3", 3, 4, 2, 256, 256, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal more queries", 1, 4, 2, 640, 384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal more keys", 1, 4, 2, 384, 640, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal bottom right", 1, 8, 2, 256, 640, 64, DNN_CAUSAL, 384, 0, -1, false},
    {"causal bottom right 128", 1, 8, 2, 256, 640, 128, DNN_CAUSAL, 384, 0, -1, false},
    {"causal shift 100", 1, 8, 2, 256, 640, 64, DNN_CAUSAL, 100, 0, -1, false},
    {"causal shift 1", 1, 8, 2, 256, 256, 128, DNN_CAUSAL, 1, 0, -1, false},
    {"causal shift beyond", 1, 4, 2, 256, 640, 64, DNN_CAUSAL, 5000, 0, -1, false},
    {"window 100", 1, 8, 2, 512, 512, 64, DNN_WINDOW, 0, 100, -1, false},
    {"window 128", 1, 8, 2, 640, 640, 128, DNN_WINDOW, 0, 128, -1, false},
    {"window 1", 1, 4, 2, 256, 256, 64, DNN_WINDOW, 0, 1, -1, false},
    {"window wide", 1, 4, 2, 256, 256, 64, DNN_WINDOW, 0, 4096, -1, false},
    {"window shifted", 1, 8, 2, 256, 640, 64, DNN_WINDOW, 300, 200, -1, false},
    {"window shifted 128", 1, 8, 2, 256, 640, 128, DNN_WINDOW, 384, 77, -1, false},
    {"window more queries", 1, 4, 2, 640, 512, 64, DNN_WINDOW, 0, 300, -1, false},
    {"window batch 2", 2, 4, 2, 384, 384, 64, DNN_WINDOW, 0, 130, -1, false},
    {"dim 32", 1, 4, 2, 256, 256, 32, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 8", 1, 4, 2, 256, 256, 8, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 80", 1, 4, 2, 256, 256, 80, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 96", 1, 4, 2, 256, 256, 96, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 192", 1, 4, 2, 256, 256, 192, DNN_CAUSAL, 0, 0, -1, false},
    {"dim 256", 1, 4, 2, 256, 256, 256, DNN_CAUSAL, 0, 0, -1, false},
    {"forward cut too", 1, 4, 2, 256, 200, 64, DNN_CAUSAL, 0, 0, 2, false},
    {"one query", 1, 4, 2, 1, 300, 64, DNN_FULL, 0, 0, -1, false},
    {"one query, one key", 1, 4, 2, 1, 1, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"three queries", 1, 4, 2, 3, 300, 128, DNN_CAUSAL, 297, 0, -1, false},
};

// Lengths that do not fill tiles, with and without lengths given to the kernel, scores as usual and far below zero. Which of the
// uncut ones are right decides dnn_needs_cut; they are not counted.
static void run_length(DnnMaskKind mask, int64_t nq, int64_t nk, int cut) {
    static const char *const word[] = {"full", "causal", "window"};
    for (int negative = 0; negative < 2; negative++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", word[mask], negative ? " negative" : "");
        Case k = {name, 1, 4, 2, nq, nk, 64, mask, mask == DNN_CAUSAL && nq < nk ? 17 : 0, 150, cut, negative};
        run_case(&k);
    }
}

static void run_lengths(void) {
    static const int64_t n[] = {64, 192, 200};
    for (int cut = 1; cut >= 0; cut--) {
        counted = cut;
        printf("-- lengths off the tile, %s\n", cut ? "cut (what is used)" : "uncut (for information: NaN is expected)");
        for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
            run_length(DNN_FULL, n[i], n[i], cut), run_length(DNN_FULL, 256, n[i], cut), run_length(DNN_FULL, n[i], 256, cut);
            run_length(DNN_CAUSAL, n[i], n[i], cut), run_length(DNN_CAUSAL, n[i], 256, cut),
                run_length(DNN_WINDOW, n[i], n[i], cut);
        }
    }
    counted = true;
}

// Queries of the second half of a sequence against its two halves of keys, merged by log-sum-exp on the host; the backward of
// each half gets the merged o and lse (what ring attention does). Against the whole.
static void run_merged(int64_t d) {
    int64_t s = 512, h = 8, hkv = 2;
    Case k = {"", 1, h, hkv, s / 2, s, d, DNN_CAUSAL, s / 2, 0, -1, false};
    DnnCall whole = call_of(&k);
    DnnCall part[2] = {whole, whole};
    part[0].nk = part[1].nk = s / 2, part[0].mask = DNN_FULL, part[0].shift = part[1].shift = 0;
    printf("%-24s d%lld:", "two halves of keys", (long long)d);
    Operands x, y[2] = {{0}};
    bool ok = make_operands(&x, &whole, false);
    int64_t half = s / 2 * d;
    float *dq = calloc((size_t)x.nq, sizeof *dq);
    for (int i = 0; i < 2 && ok; i++) {  // the halves' keys are the whole's
        ok = make_operands(&y[i], &part[i], false);
        for (int64_t kv = 0; kv < hkv && ok; kv++) {
            memcpy(y[i].k + kv * half, x.k + kv * s * d + i * half, (size_t)half * 2);
            memcpy(y[i].v + kv * half, x.v + kv * s * d + i * half, (size_t)half * 2);
        }
        ok = ok && cuda_ok(cudaMemcpy(y[i].gk, y[i].k, (size_t)y[i].nk * 2, cudaMemcpyHostToDevice), "copy") &&
             cuda_ok(cudaMemcpy(y[i].gv, y[i].v, (size_t)y[i].nk * 2, cudaMemcpyHostToDevice), "copy");
        DnnData data = data_of(&y[i]);
        DnnPlan *p;
        data.q = x.gq;
        ok = ok && prepare(&part[i], false, &p) == ST_OK && run(p, &data, y[i].scratch) == ST_OK && fetch_results(&y[i]);
    }
    for (int64_t r = 0; r < x.nrow && ok; r++) {
        double a = y[0].lse[r], b = y[1].lse[r], m = a > b ? a : b, l = m + log(exp(a - m) + exp(b - m));
        x.lse[r] = (float)l;
        for (int64_t e = r * d; e < (r + 1) * d; e++)
            x.o[e] = bf16_round(exp(a - l) * bf16_value(y[0].o[e]) + exp(b - l) * bf16_value(y[1].o[e]));
    }
    ok = ok && cuda_ok(cudaMemcpy(x.go, x.o, (size_t)x.nq * 2, cudaMemcpyHostToDevice), "copy") &&
         cuda_ok(cudaMemcpy(x.glse, x.lse, (size_t)x.nrow * 4, cudaMemcpyHostToDevice), "copy");
    for (int i = 0; i < 2 && ok; i++) {
        DnnData data = data_of(&y[i]);
        DnnPlan *p;
        data.q = x.gq, data.o = x.go, data.lse = x.glse, data.dout = x.gdout;
        ok = prepare(&part[i], true, &p) == ST_OK && run(p, &data, y[i].scratch) == ST_OK && fetch_results(&y[i]);
        for (int64_t e = 0; e < x.nq && ok; e++) dq[e] += (float)bf16_value(y[i].dq[e]);
        for (int64_t kv = 0; kv < hkv && ok; kv++) {
            memcpy(x.dk + kv * s * d + i * half, y[i].dk + kv * half, (size_t)half * 2);
            memcpy(x.dv + kv * s * d + i * half, y[i].dv + kv * half, (size_t)half * 2);
        }
    }
    for (int64_t e = 0; e < x.nq; e++) x.dq[e] = bf16_round(dq[e]);
    if (ok) {
        Errors e;
        check_all(&whole, &x, 1, 1, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free(dq), free_operands(&x), free_operands(&y[0]), free_operands(&y[1]);
}

// Recorded into a CUDA graph and replayed: the same bits as launched, forward (the backward sums in any order).
static void run_captured(void) {
    Case k = {"captured", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false};
    DnnCall c = call_of(&k);
    printf("%-24s:", k.name);
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, false) && prepare(&c, false, &f) == ST_OK && prepare(&c, true, &b) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && run(f, &data, x.scratch) == ST_OK && fetch_results(&x);
    uint16_t *direct = malloc((size_t)x.nq * 2);
    memcpy(direct, x.o, (size_t)x.nq * 2);
    ok = ok && cuda_ok(cudaMemset(x.go, 0xff, (size_t)x.nq * 2), "fill");
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaStream_t s = device.stream;
    ok = ok && cuda_ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "begin capture");
    if (ok) {
        ok = run(f, &data, x.scratch) == ST_OK && run(b, &data, x.scratch) == ST_OK;
        ok = cuda_ok(cudaStreamEndCapture(s, &graph), "end capture") && ok;
    }
    ok = ok && cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    for (int i = 0; i < 3 && ok; i++) ok = cuda_ok(cudaGraphLaunch(exec, s), "launch");
    ok = ok && fetch_results(&x);
    if (ok) {
        Errors e;
        check_all(&c, &x, 1, 1, false, &e);
        ok = report(&e, 10) && !memcmp(direct, x.o, (size_t)x.nq * 2);
    }
    verdict(ok);
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    free(direct), free_operands(&x);
}

// ---- speed
// ------------------------------------------------------------------------------------------------------------------------
static void run_speed(const Case *k) {
    DnnCall c = call_of(k), cb = c;
    cb.backward = true;
    double flops = 4 * visible_pairs(&c) * (double)(c.dim * c.heads * c.batch);
    int repeat = flops > 2e13 ? 3 : 10;
    printf("%-16s h%lld/%lld q%lld k%lld d%lld:", k->name, (long long)k->h, (long long)k->hkv, (long long)k->nq, (long long)k->nk,
           (long long)k->d);
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, false) && prepare(&c, false, &f) == ST_OK;
    DnnData data = data_of(&x);
    if (ok) {
        double t = seconds_of(f, &data, x.scratch, repeat);
        printf(" forward %.3f ms %.0f TFLOP/s", t * 1e3, flops / t * 1e-12);
        print_facts("forward", &c, f);
    }
    ok = ok && prepare(&c, true, &b) == ST_OK;
    if (ok) {
        double t = seconds_of(b, &data, x.scratch, repeat);
        printf("\n    backward %.3f ms %.0f TFLOP/s", t * 1e3, 2.5 * flops / t * 1e-12);
        print_facts("backward", &cb, b);
    }
    ok = ok && fetch_results(&x);
    if (ok) {  // a few rows and keys, primes apart
        Errors e;
        printf("\n    spots:");
        check_all(&c, &x, 32749, 32749, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free_operands(&x);
}

static const Case speeds[] = {
    {"causal", 1, 32, 8, 8192, 8192, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 16384, 16384, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 32768, 32768, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 8192, 8192, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 16384, 16384, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal", 1, 32, 8, 32768, 32768, 128, DNN_CAUSAL, 0, 0, -1, false},
    {"causal groups", 1, 32, 8, 65536, 65536, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"causal cut", 1, 32, 8, 16384, 16384, 64, DNN_CAUSAL, 0, 0, 1, false},
    {"causal off tile", 1, 32, 8, 16320, 16320, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"last quarter", 1, 32, 8, 8192, 32768, 64, DNN_CAUSAL, 24576, 0, -1, false},
    {"third quarter", 1, 32, 8, 8192, 32768, 64, DNN_CAUSAL, 16384, 0, -1, false},
    {"full", 1, 32, 8, 8192, 8192, 64, DNN_FULL, 0, 0, -1, false},
    {"window 4096", 1, 32, 8, 32768, 32768, 128, DNN_WINDOW, 0, 4096, -1, false},
    {"window 4096", 1, 32, 8, 32768, 32768, 64, DNN_WINDOW, 0, 4096, -1, false},
};

// A second connection finds its plans in the cache.
static void run_plan_times(void) {
    Case k = {"plan from text", 1, 8, 2, 512, 512, 64, DNN_CAUSAL, 0, 0, -1, false};
    Device other = device;
    other.dnn = NULL;
    DnnCall c = call_of(&k);
    for (int backward = 0; backward < 2; backward++) {
        Diag d = {0};
        DnnPlan *p;
        c.backward = backward;
        double t = now();
        Status st = dnn_prepare(&other, &c, &p, &d);
        printf("%-24s %s: %.4f s", k.name, backward ? "backward" : "forward", now() - t);
        if (st != ST_OK)
            printf(" %s", d.text);
        else
            print_facts("plan", &c, p);
        verdict(st == ST_OK && dnn_plan_facts(p).from_disk);
    }
    Operands x;
    DnnPlan *f, *b;
    DnnCall cb = c;
    c.backward = false;
    Diag d = {0};
    printf("%-24s:", "and it runs");
    bool ok =
        make_operands(&x, &c, false) && dnn_prepare(&other, &c, &f, &d) == ST_OK && dnn_prepare(&other, &cb, &b, &d) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && dnn_run(&other, f, &data, x.scratch, &d) == ST_OK && dnn_run(&other, b, &data, x.scratch, &d) == ST_OK &&
         fetch_results(&x);
    if (d.status != ST_OK) printf(" %s", d.text);
    if (ok) {
        Errors e;
        check_all(&c, &x, 1, 1, false, &e);
        ok = report(&e, 10);
    }
    verdict(ok);
    free_operands(&x);
    dnn_close(&other);
}

// ---- a cache of this process, where the real one is not linked in
// ----------------------------------------------------------------
typedef struct Entry {
    struct Entry *next;
    char *key;
    void *data;
    size_t nbytes;
} Entry;
static Entry *entries;

__attribute__((weak)) const void *cache_get(Arena *a, const char *kind, const char *key, size_t *nbytes) {
    (void)kind;
    for (Entry *e = entries; e; e = e->next)
        if (!strcmp(e->key, key)) {
            *nbytes = e->nbytes;
            return arena_copy(a, e->data, e->nbytes);
        }
    return NULL;
}
__attribute__((weak)) void cache_put(const char *kind, const char *key, const void *data, size_t nbytes) {
    (void)kind;
    Entry *e = malloc(sizeof *e);
    *e = (Entry){entries, strdup(key), malloc(nbytes), nbytes};
    memcpy(e->data, data, nbytes);
    entries = e;
}

int main(int argc, char **argv) {
    bool packed = argc < 2 || !strcmp(argv[1], "packed"), packed_speed = argc < 2 || !strcmp(argv[1], "packed-speed");
    bool check = argc < 2 || !strcmp(argv[1], "check"), speed = argc < 2 || !strcmp(argv[1], "speed");
    bool groups = argc > 1 && !strcmp(argv[1], "groups"), million = argc > 1 && !strcmp(argv[1], "million");
    bool beyond = argc > 1 && !strcmp(argv[1], "beyond");
    struct cudaDeviceProp prop;
    cudaStream_t stream;
    if (argc > 1 && !strcmp(argv[1], "operands")) return run_operands();
    if (!cuda_ok(cudaGetDeviceProperties(&prop, 0), "device")) return 2;
    if (!cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return 2;
    device = (Device){.nsm = prop.multiProcessorCount, .stream = stream, .capability = prop.major * 10 + prop.minor};
    snprintf(device.name, sizeof device.name, "%.60s", prop.name);
    snprintf(device.key, sizeof device.key, "%.60s %d", prop.name, device.capability);
    if (!cuda_ok(cudaMalloc((void **)&device.error, sizeof *device.error), "error record")) return 2;
    device_error();
    const CudnnLib *lib;
    Diag d = {0};
    if (libs_cudnn(&lib, &d) != ST_OK) {
        printf("%s\n", d.text);
        return 2;
    }
    printf("%s, cuDNN %zu\n", device.key, lib->version);
    double begin = now();
    if (check) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
        run_merged(64), run_merged(128);
        run_captured();
        run_plan_times();
        run_lengths();
    }
    if (check) printf("check: %.1f s\n", now() - begin);
    for (size_t i = 0; speed && i < sizeof speeds / sizeof *speeds; i++) run_speed(&speeds[i]);
    if (packed) run_all_packed();
    if (packed_speed) run_packed_speeds();
    if (argc > 1 && !strcmp(argv[1], "missing")) run_missing(16384), run_missing(16320);
    if (groups) run_groups();
    if (million) run_million(), run_packed_million();
    if (beyond) run_beyond();
    printf("%s: %d passed, %d failed; %.1f s\n", nfail ? "FAIL" : "PASS", npass, nfail, now() - begin);
    dnn_close(&device);
    return nfail > 0;
}
