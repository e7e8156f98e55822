// What one training step of a model of the Llama-3.2-1B shape takes at the least: every matrix product of it alone, and attention
// alone, as the backend calls them (gemm.h, dnn.h), warm. Nothing else is counted: no norms, no activations, no optimizer. bf16,
// random data.
//   gpu_ceiling [S...]       a table for each length (8192), batch 1
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/backend.h"
#include "backend/cuda/attention/dnn.h"
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/product/head.h"

extern const Backend backend_cuda;

enum { LAYERS = 16, D = 2048, HEADS = 32, KV_HEADS = 8, D_HEAD = 64, FFN = 8192, VOCABULARY = 128256 };
enum { TIMES = 7, ALIGN = 256, RANDOM = 1 << 22 };

#define OK(call)                                                                                \
    do {                                                                                        \
        cudaError_t e_ = (call);                                                                \
        if (e_ != cudaSuccess) fail(#call, cudaGetErrorString(e_));                             \
    } while (0)
#define MUST(call)                                                                              \
    do {                                                                                        \
        if ((call) != ST_OK) fail(#call, diag.text);                                            \
    } while (0)

static Diag diag;
static void fail(const char *what, const char *why) {
    printf("FAIL %s: %s\n", what, why);
    exit(1);
}

// Device memory of one length.
typedef struct Ceiling {
    int64_t seq;
    Device *dev;
    char *arena;
    char *x, *y;          // activations [seq, FFN]; in attention its operands
    char *w, *dw;         // the largest weight, and its gradient in f32
    char *logits, *workspace, *scratch;
    double seconds;       // so far, of all layers
} Ceiling;

static int64_t place(int64_t *at, int64_t nbytes) {
    int64_t here = *at;
    *at = round_up(here + nbytes, ALIGN);
    return here;
}

static DnnCall attention_call(int64_t seq, bool backward) {
    return (DnnCall){.batch = 1, .heads = HEADS, .kv_heads = KV_HEADS, .nq = seq, .nk = seq, .dim = D_HEAD, .mask = DNN_CAUSAL,
                     .scale = 1 / sqrt((double)D_HEAD), .backward = backward, .cut = -1};
}

// The arena: activations, then what does not grow with the length but for attention's scratch.
static void open_length(Ceiling *c, int64_t seq) {
    DnnCall f = attention_call(seq, false), b = attention_call(seq, true);
    HeadSizes h = head_sizes(seq, D, VOCABULARY, DT_BF16);
    int64_t scratch = max_i64((int64_t)dnn_scratch(&f), (int64_t)dnn_scratch(&b)), act = seq * FFN * 2, at = 0;
    int64_t x = place(&at, act), y = place(&at, act), w = place(&at, (int64_t)VOCABULARY * D * 2),
            dw = place(&at, (int64_t)VOCABULARY * D * 4);
    int64_t logits = place(&at, h.logits_nbytes), ws = place(&at, GEMM_WORKSPACE_NBYTES), s = place(&at, scratch);
    void *arena;
    *c = (Ceiling){.seq = seq};
    MUST(backend_cuda.device->open(0, 1, (size_t)at, &c->dev, &arena, &diag));
    c->arena = arena;
    c->x = c->arena + x, c->y = c->arena + y, c->w = c->arena + w, c->dw = c->arena + dw;
    c->logits = c->arena + logits, c->workspace = c->arena + ws, c->scratch = c->arena + s;
}

// ---- data -----------------------------------------------------------------------------------------------------------------
static uint16_t bf16_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// About normal (the sum of four uniforms). A GPU's clock depends on how many bits flip: zeros would flatter it.
static void fill_random(Ceiling *c, char *to, int64_t nbytes, float deviation) {
    static uint16_t *host;
    static uint64_t state = 1;
    if (!host) host = malloc(RANDOM * sizeof *host);
    for (int64_t i = 0; i < RANDOM; i++) {
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(state >> 40) / (float)(1 << 24) - 0.5f;
        }
        host[i] = bf16_of(sum * 1.7320508f * deviation);
    }
    for (int64_t at = 0; at < nbytes; at += RANDOM * 2) {
        size_t n = (size_t)min_i64(nbytes - at, RANDOM * 2);
        OK(cudaMemcpyAsync(to + at, host, n, cudaMemcpyHostToDevice, c->dev->stream));
    }
    OK(cudaStreamSynchronize(c->dev->stream));
}

// ---- times ----------------------------------------------------------------------------------------------------------------
typedef Status (*WorkFn)(Ceiling *c, void *what);

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double time_once(Ceiling *c, WorkFn work, void *what, int64_t repeats) {
    cudaEvent_t begin, end;
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    OK(cudaEventRecord(begin, c->dev->stream));
    for (int64_t i = 0; i < repeats; i++) MUST(work(c, what));
    OK(cudaEventRecord(end, c->dev->stream));
    OK(cudaEventSynchronize(end));
    float ms;
    OK(cudaEventElapsedTime(&ms, begin, end));
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return ms / 1e3 / (double)repeats;
}

// Seconds of one run: the median of several, each of at least some 20 milliseconds.
static double time_of(Ceiling *c, WorkFn work, void *what) {
    double first = time_once(c, work, what, 2), t[TIMES];
    int64_t repeats = max_i64(1, min_i64(200, (int64_t)(0.02 / first)));
    int times = first > 1 ? 1 : first > 0.3 ? 3 : TIMES;  // long ones vary little
    for (int i = 0; i < times; i++) t[i] = time_once(c, work, what, repeats);
    qsort(t, (size_t)times, sizeof *t, by_size);
    return t[times / 2];
}

static void line(Ceiling *c, const char *name, double flops, double seconds, int64_t count) {
    c->seconds += seconds * (double)count;
    printf("  %-28s %10.3f ms %8.1f TFLOP/s  x %4lld = %9.2f ms\n", name, 1e3 * seconds, flops / seconds / 1e12, (long long)count,
           1e3 * seconds * (double)count);
}

// ---- products -------------------------------------------------------------------------------------------------------------
typedef struct Product {
    GemmPlan *plan;
    const void *a, *b, *c;
    void *d;
} Product;

static Status run_product(Ceiling *c, void *what) {
    Product *p = what;
    return gemm_run(c->dev, p->plan, p->a, p->b, p->c, NULL, p->d, c->workspace, &diag);
}

static double product(Ceiling *c, Gemm g, const void *a, const void *b, const void *add, void *d) {
    Product p = {.a = a, .b = b, .c = add, .d = d};
    MUST(gemm_prepare(c->dev, &g, a, b, add, d, c->workspace, &p.plan, &diag));
    return time_of(c, run_product, &p);
}

// y [S, out] = x [S, in] w [out, in]^T: forward, gradient of x, gradient of w. `count` of them in the model.
static void linear(Ceiling *c, const char *name, int64_t in, int64_t out, int64_t count) {
    char text[64];
    double flops = 2.0 * (double)c->seq * (double)in * (double)out;
    Gemm forward = {.m = c->seq,
                    .n = out,
                    .k = in,
                    .batch = 1,
                    .trans_b = true,
                    .lda = in,
                    .ldb = in,
                    .ldc = out,
                    .ldd = out,
                    .ab = DT_BF16,
                    .cd = DT_BF16,
                    .alpha = 1};
    Gemm dx = {.m = c->seq,
               .n = in,
               .k = out,
               .batch = 1,
               .lda = out,
               .ldb = in,
               .ldc = in,
               .ldd = in,
               .ab = DT_BF16,
               .cd = DT_BF16,
               .alpha = 1};
    Gemm dw = {.m = out,
               .n = in,
               .k = c->seq,
               .batch = 1,
               .trans_a = true,
               .lda = out,
               .ldb = in,
               .ldc = in,
               .ldd = in,
               .ab = DT_BF16,
               .cd = DT_F32,
               .alpha = 1};
    snprintf(text, sizeof text, "%s forward", name);
    line(c, text, flops, product(c, forward, c->x, c->w, NULL, c->y), count);
    snprintf(text, sizeof text, "%s gradient of input", name);
    line(c, text, flops, product(c, dx, c->x, c->w, NULL, c->y), count);
    fill_random(c, c->y, c->seq * out * 2, 1);
    snprintf(text, sizeof text, "%s gradient of weight", name);
    line(c, text, flops, product(c, dw, c->y, c->x, NULL, c->dw), count);
}

// The output layer as op head takes it: chunks of rows.
static void head(Ceiling *c, int64_t rows, int64_t count) {
    HeadSizes h = head_sizes(c->seq, D, VOCABULARY, DT_BF16);
    double flops = 2.0 * (double)rows * D * VOCABULARY;
    Gemm logits = {.m = rows,
                   .n = h.v,
                   .k = D,
                   .batch = 1,
                   .trans_b = true,
                   .lda = D,
                   .ldb = D,
                   .ldc = h.pitch,
                   .ldd = h.pitch,
                   .ab = DT_BF16,
                   .cd = DT_BF16,
                   .alpha = 1};
    Gemm dh = {.m = rows,
               .n = D,
               .k = h.v,
               .batch = 1,
               .lda = h.pitch,
               .ldb = D,
               .ldc = D,
               .ldd = D,
               .ab = DT_BF16,
               .cd = DT_BF16,
               .alpha = 1};
    Gemm dw = {.m = h.v,
               .n = D,
               .k = rows,
               .batch = 1,
               .trans_a = true,
               .lda = h.pitch,
               .ldb = D,
               .ldc = D,
               .ldd = D,
               .ab = DT_BF16,
               .cd = DT_F32,
               .alpha = 1,
               .beta = 1};
    printf("  head, %lld rows at a time:\n", (long long)rows);
    line(c, "head logits", flops, product(c, logits, c->x, c->w, NULL, c->logits), count);
    fill_random(c, c->logits, rows * h.pitch * 2, 1e-3f);
    line(c, "head gradient of input", flops, product(c, dh, c->logits, c->w, NULL, c->y), count);
    line(c, "head gradient of weight", flops, product(c, dw, c->logits, c->x, c->dw, c->dw), count);
}

// ---- attention ------------------------------------------------------------------------------------------------------------
typedef struct Attention {
    DnnPlan *plan;
    DnnData data;
} Attention;

static Status run_attention(Ceiling *c, void *what) {
    Attention *a = what;
    return dnn_run(c->dev, a->plan, &a->data, c->scratch, &diag);
}

static void attention(Ceiling *c) {
    int64_t q = c->seq * D * 2, kv = c->seq * KV_HEADS * D_HEAD * 2, at = 0;
    double flops = 4.0 * (double)c->seq * (double)c->seq * D_HEAD * HEADS / 2;
    char *base = c->x;  // x and y lie one after the other
    DnnData d = {.q = base + place(&at, q), .k = base + place(&at, kv), .v = base + place(&at, kv), .o = base + place(&at, q)};
    d.dout = base + place(&at, q), d.dq = base + place(&at, q), d.dk = base + place(&at, kv), d.dv = base + place(&at, kv);
    d.lse = base + place(&at, c->seq * HEADS * 4);
    CHECK(at <= c->w - c->x, "attention's operands fit where activations lie");
    fill_random(c, base, c->w - c->x, 1);
    Attention a = {.data = {.q = d.q, .k = d.k, .v = d.v, .o = d.o, .lse = d.lse}};
    DnnCall call = attention_call(c->seq, false);
    MUST(dnn_prepare(c->dev, &call, &a.plan, &diag));
    line(c, "attention forward", flops, time_of(c, run_attention, &a), LAYERS);
    call = attention_call(c->seq, true);
    a.data = d;
    MUST(dnn_prepare(c->dev, &call, &a.plan, &diag));
    line(c, "attention backward", 2.5 * flops, time_of(c, run_attention, &a), LAYERS);
}

// ---- a length -------------------------------------------------------------------------------------------------------------
static Status run_copy(Ceiling *c, void *what) {
    int64_t n = *(int64_t *)what;
    return backend_cuda.device->copy(c->dev, c->dw, c->w, (size_t)n, &diag);
}

static void one_length(int64_t seq) {
    Ceiling c;
    open_length(&c, seq);
    printf("%s, sequence %lld, batch 1\n", c.dev->name, (long long)seq);
    fill_random(&c, c.x, seq * FFN * 2, 1);
    fill_random(&c, c.w, (int64_t)VOCABULARY * D * 2, 0.02f);
    linear(&c, "q, o (2048 -> 2048)", D, D, 2 * LAYERS);
    linear(&c, "k, v (2048 -> 512)", D, KV_HEADS * D_HEAD, 2 * LAYERS);
    linear(&c, "gate, up (2048 -> 8192)", D, FFN, 2 * LAYERS);
    linear(&c, "down (8192 -> 2048)", FFN, D, LAYERS);
    HeadSizes h = head_sizes(seq, D, VOCABULARY, DT_BF16);
    if (h.nchunk > 1) head(&c, h.rows, h.nchunk - 1);
    head(&c, h.last, 1);
    attention(&c);
    int64_t nbytes = (int64_t)VOCABULARY * D * 2;
    double copy = time_of(&c, run_copy, &nbytes);
    printf("  device copy: %.2f TB/s, read and written\n", 2 * (double)nbytes / copy / 1e12);
    printf("  together %.2f ms\nceiling: %.0f tokens/s at %lld\n\n", 1e3 * c.seconds, (double)seq / c.seconds, (long long)seq);
    fflush(stdout);
    backend_cuda.device->close(c.dev);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        printf("usage: gpu_ceiling [S...]   lengths of the sequence (8192)\n");
        return 0;
    }
    if (argc < 2) one_length(8192);
    for (int i = 1; i < argc; i++) {
        char *end;
        long long seq = strtoll(argv[i], &end, 10);
        if (*end || seq < 1) {
            printf("gpu_ceiling: %s is no length\n", argv[i]);
            return 3;
        }
        one_length(seq);
    }
    return 0;
}
