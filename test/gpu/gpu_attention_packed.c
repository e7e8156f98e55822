// Packed documents: every row and key of small ones, spots of large ones, what must be refused, speeds.
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "attention_probe.h"

typedef struct PackedCase {
    const char *name;
    int64_t b, h, hkv, n, d;
    DnnMaskKind mask;
    int64_t slots;  // 0: as they are planned for so many documents
    int how;        // documents: below
    bool negative;  // log-sum-exp below -88
    int groups;     // as DnnCall
} PackedCase;
enum { ONE = -1, SINGLES = -2, UNEVEN = -3 };  // else: so many, as even as they come

// Lengths that are no multiple of anything, single tokens among them; another packing for each batch entry.
static int64_t next_length(int how, int64_t n, int64_t at, int64_t i, int64_t b) {
    static const int64_t uneven[] = {1, 130, 1, 1, 63, 200, 128, 7, 64, 257, 1, 31};
    if (how == ONE) return n;
    if (how == SINGLES) return 1;
    if (how == UNEVEN) return uneven[(i + 5 * b) % 12];
    return (i + 1) * n / how - at;
}

static bool make_documents(Operands *x, const PackedCase *k, int64_t *ndocument) {
    size_t nbytes = (size_t)(k->b * k->n) * 8;
    x->ids = malloc(nbytes), x->first = malloc(nbytes), x->end = malloc(nbytes);
    *ndocument = 0;
    for (int64_t b = 0; b < k->b; b++) {
        int64_t i = 0;
        for (int64_t at = 0, len; at < k->n; at += len, i++) {
            len = next_length(k->how, k->n, at, i, b);
            if (at + len > k->n) len = k->n - at;
            for (int64_t j = at; j < at + len; j++)
                x->ids[b * k->n + j] = 3 * i - 1, x->first[b * k->n + j] = at, x->end[b * k->n + j] = at + len;
        }
        if (i > *ndocument) *ndocument = i;
    }
    return to_device(&x->gids, x->ids, nbytes);
}

static int64_t most_documents(const PackedCase *k) {
    int64_t most = 0;
    for (int64_t b = 0; b < k->b; b++) {
        int64_t i = 0;
        for (int64_t at = 0; at < k->n; i++) at += next_length(k->how, k->n, at, i, b);
        if (i > most) most = i;
    }
    return most;
}

static DnnCall packed_call(const PackedCase *k) {
    return (DnnCall){.batch = k->b, .heads = k->h, .kv_heads = k->hkv, .nq = k->n, .nk = k->n, .dim = k->d, .mask = k->mask,
                     .scale = 1 / sqrt((double)k->d), .cut = -1,
                     .groups = k->groups,
                     .slots = k->slots ? k->slots : dnn_slots(most_documents(k), k->n)};
}

static bool start_packed(const PackedCase *k, Operands *x, DnnPlan **f, DnnPlan **b, int64_t *ndocument) {
    DnnCall c = packed_call(k);
    printf("%-24s b%lld h%lld/%lld n%lld d%lld %s slots %lld:", k->name, (long long)k->b, (long long)k->h, (long long)k->hkv,
           (long long)k->n, (long long)k->d, k->mask == DNN_FULL ? "full" : "causal", (long long)c.slots);
    bool ok = make_operands(x, &c, k->negative) && make_documents(x, k, ndocument);
    if (ok) printf(" %lld documents", (long long)*ndocument);
    return ok && prepare(&c, false, f) == ST_OK && prepare(&c, true, b) == ST_OK;
}

// Launched, or recorded into a CUDA graph and replayed.
static bool run_both(const DnnPlan *f, const DnnPlan *b, const Operands *x, bool captured) {
    DnnData data = data_of(x);
    if (!captured) return run(f, &data, x->scratch) == ST_OK && run(b, &data, x->scratch) == ST_OK;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!cuda_ok(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal), "begin capture")) return false;
    bool ok = run(f, &data, x->scratch) == ST_OK && run(b, &data, x->scratch) == ST_OK;
    ok = cuda_ok(cudaStreamEndCapture(device.stream, &graph), "end capture") && ok;
    ok = ok && cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    for (int i = 0; i < 3 && ok; i++) ok = cuda_ok(cudaGraphLaunch(exec, device.stream), "launch");
    ok = cuda_ok(cudaStreamSynchronize(device.stream), "replay") && ok;
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    return ok;
}

static void run_packed(const PackedCase *k, bool captured) {
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(k, &x, &f, &b, &ndocument) && run_both(f, b, &x, captured);
    DeviceError e = device_error();
    ok = ok && fetch_results(&x);
    if (ok && e.code) printf(" error %d: %lld of %lld", e.code, e.value, e.limit), ok = false;
    if (ok) {
        Errors errors;
        DnnCall c = packed_call(k);
        check_all(&c, &x, 1, 1, k->negative, &errors);
        ok = report(&errors, k->negative ? 200 : 10);
    }
    verdict(ok);
    free_operands(&x);
}

// What must be said: more documents than slots, numbers that fall.
static void run_packed_error(const char *name, int64_t slots, bool fall, int code, int64_t value, int64_t limit) {
    PackedCase k = {name, 1, 4, 2, 3000, 64, DNN_CAUSAL, slots, 9, false, 1};
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(&k, &x, &f, &b, &ndocument);
    if (ok && fall) {
        x.ids[2500] = -5;
        ok = cuda_ok(cudaMemcpy(x.gids, x.ids, (size_t)k.n * 8, cudaMemcpyHostToDevice), "copy");
    }
    ok = ok && run_both(f, b, &x, false);
    DeviceError e = device_error();
    printf(" error %d, node %d, %lld of %lld", e.code, e.node, e.value, e.limit);
    verdict(ok && e.code == code && e.node == PROBE_NODE && e.value == value && (fall || e.limit == limit));
    free_operands(&x);
}

static void run_packed_speed(const PackedCase *k) {
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(k, &x, &f, &b, &ndocument);
    DnnCall c = packed_call(k), cb = c;
    cb.backward = true;
    double pairs = 0;
    for (int64_t i = 0; i < k->n && ok; i++) pairs += (double)((k->mask == DNN_FULL ? x.end[i] : i + 1) - x.first[i]);
    double flops = 4 * pairs * (double)(k->d * k->h);
    DnnData data = data_of(&x);
    double t = ok ? seconds_of(f, &data, x.scratch, 10) : INFINITY, u = ok ? seconds_of(b, &data, x.scratch, 10) : INFINITY;
    printf("\n    forward %.3f ms %.0f TFLOP/s, backward %.3f ms %.0f TFLOP/s", t * 1e3, flops / t * 1e-12, u * 1e3,
           2.5 * flops / u * 1e-12);
    if (ok) print_facts("forward", &c, f), print_facts("backward", &cb, b);
    DeviceError e = device_error();
    ok = ok && e.code == 0 && fetch_results(&x);
    if (ok) {
        Errors errors;
        printf("\n    spots:");
        check_all(&c, &x, 4093, 4093, false, &errors);
        ok = report(&errors, 10);
    }
    verdict(ok);
    free_operands(&x);
}

// A million tokens: spots, as they are found in a plain call (gpu_attention_long.c).
static void run_packed_long(const PackedCase *k) {
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    DnnCall c = packed_call(k), cb = c;
    cb.backward = true;
    bool ok = start_packed(k, &x, &f, &b, &ndocument) && run_both(f, b, &x, false);
    DeviceError e = device_error();
    ok = ok && e.code == DEVICE_OK && fetch_results(&x);
    printf(", %lld groups forward, %lld backward", (long long)dnn_groups(&c).n, (long long)dnn_groups(&cb).n);
    verdict(ok && check_spots(&c, &x));
    free_operands(&x);
}

// The last has queries of 2^31 elements, which are two groups forward.
void run_packed_million(void) {
    enum { MILLION = 1 << 20 };
    static const PackedCase cases[] = {
        {"packed million", 1, 4, 1, MILLION, 64, DNN_CAUSAL, 0, 5, false, 1},
        {"packed million less 24", 2, 4, 2, MILLION - 24, 64, DNN_CAUSAL, 0, 5, false, 2},
        {"packed million", 1, 32, 8, MILLION, 64, DNN_CAUSAL, 0, 61, false, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_packed_long(&cases[i]);
}

static const PackedCase packed_cases[] = {
    {"one document", 1, 4, 4, 512, 64, DNN_CAUSAL, 4, ONE, false, 1},
    {"two documents", 1, 4, 4, 512, 64, DNN_CAUSAL, 2, 2, false, 1},
    {"spare slots", 1, 4, 4, 512, 64, DNN_CAUSAL, 16, 3, false, 1},
    {"groups", 1, 8, 2, 512, 64, DNN_CAUSAL, 8, 3, false, 1},
    {"groups, full", 1, 8, 2, 512, 64, DNN_FULL, 8, 3, false, 1},
    {"uneven", 1, 4, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"uneven, full", 1, 4, 2, 1000, 64, DNN_FULL, 0, UNEVEN, false, 1},
    {"uneven 128", 1, 8, 2, 1000, 128, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"uneven 128, full", 1, 8, 2, 1000, 128, DNN_FULL, 0, UNEVEN, false, 1},
    {"uneven 16", 1, 4, 2, 777, 16, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"uneven 80", 1, 4, 4, 777, 80, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"uneven 96", 1, 4, 2, 777, 96, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"negative", 1, 4, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, true, 1},
    {"negative, full", 1, 4, 2, 960, 128, DNN_FULL, 0, UNEVEN, true, 1},
    {"single tokens", 1, 4, 2, 100, 64, DNN_CAUSAL, 128, SINGLES, false, 1},
    {"single tokens, full", 1, 4, 2, 100, 64, DNN_FULL, 100, SINGLES, false, 1},
    {"one token", 1, 4, 2, 1, 64, DNN_CAUSAL, 1, ONE, false, 1},
    {"batch 3", 3, 4, 2, 700, 64, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"batch 2, one KV head", 2, 6, 1, 1100, 64, DNN_CAUSAL, 0, UNEVEN, false, 1},
    {"3 documents", 1, 8, 2, 1000, 64, DNN_CAUSAL, 0, 3, false, 1},
    {"3 documents 128", 1, 8, 2, 1000, 128, DNN_CAUSAL, 0, 3, false, 1},
    {"16 documents", 1, 8, 2, 2040, 64, DNN_CAUSAL, 0, 16, false, 1},
    {"16 documents 128", 1, 8, 2, 2040, 128, DNN_CAUSAL, 0, 16, false, 1},
    {"64 documents", 1, 4, 2, 4000, 64, DNN_CAUSAL, 0, 64, false, 1},
    {"64 documents 128", 1, 4, 2, 4000, 128, DNN_CAUSAL, 0, 64, false, 1},
    {"heads in groups", 1, 8, 4, 1000, 64, DNN_CAUSAL, 0, UNEVEN, false, 2},
    {"each head by itself", 1, 4, 4, 1000, 128, DNN_CAUSAL, 0, UNEVEN, false, 4},
    {"batch 3, in groups", 3, 8, 4, 700, 64, DNN_CAUSAL, 0, UNEVEN, false, 2},
    {"batch 2, in groups, full", 2, 4, 4, 700, 64, DNN_FULL, 0, UNEVEN, false, 2},
    {"64 documents, full", 1, 4, 2, 4096, 64, DNN_FULL, 0, 64, false, 1},
};

// `gpu_flash packed` has our own kernel's.
static const PackedCase packed_speeds[] = {
    {"16 documents", 1, 32, 8, 65536, 64, DNN_CAUSAL, 0, 16, false, 1},
    {"16 in 64 slots", 1, 32, 8, 65536, 64, DNN_CAUSAL, 64, 16, false, 1},
    {"64 documents", 1, 32, 8, 65536, 64, DNN_CAUSAL, 0, 64, false, 1},
    {"16 documents 128", 1, 32, 8, 65536, 128, DNN_CAUSAL, 0, 16, false, 1},
    {"64 documents 128", 1, 32, 8, 65536, 128, DNN_CAUSAL, 0, 64, false, 1},
};

// Plain calls off the tile after packed ones: what the lengths of queries are given for.
static const Case cut_cases[] = {
    {"plain cut", 1, 4, 2, 1024, 1024, 64, DNN_CAUSAL, 0, 0, 1, false},
    {"plain off tile", 1, 4, 2, 960, 960, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"plain off tile", 1, 4, 2, 192, 192, 64, DNN_CAUSAL, 0, 0, -1, true},
    {"plain off tile, full", 2, 4, 2, 200, 200, 128, DNN_FULL, 0, 0, -1, true},
};

void run_all_packed(void) {
    for (size_t i = 0; i < sizeof packed_cases / sizeof *packed_cases; i++) run_packed(&packed_cases[i], false);
    PackedCase captured = {"captured", 1, 8, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, false, 1};
    run_packed(&captured, true);
    run_packed_error("too many documents", 8, false, DEVICE_DOCUMENTS, 9, 8);
    run_packed_error("numbers that fall", 64, true, DEVICE_UNSORTED, 2500, 0);
    for (size_t i = 0; i < sizeof cut_cases / sizeof *cut_cases; i++) run_case(&cut_cases[i]);
}

void run_packed_speeds(void) {
    for (size_t i = 0; i < sizeof packed_speeds / sizeof *packed_speeds; i++) run_packed_speed(&packed_speeds[i]);
}
