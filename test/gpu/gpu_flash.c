// Our own attention on a GPU. One line per case, PASS or FAIL.
//   gpu_flash check    the emulated test's cases in f32 and bf16 (portable and tensor-core kernels) against float64 on the host
//   gpu_flash agree    both kinds of kernels against each other at larger sizes
//   gpu_flash packed   TFLOP/s of the packed documents that `gpu_attention packed` has, whose attention cuDNN does too
//   gpu_flash speed    TFLOP/s, counted on pairs of a query and a key that it sees
// Nothing named: check and agree.
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../flash_run.h"
#include "attention_ref.h"
#include "backend/cuda/device/device_api.h"
#include "backend/cuda/attention/flash.h"
#include "backend/cuda/device/module.h"

static Device *device;
static int nfail;
static double begin;
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    printf("FAIL %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}
static void *device_alloc(size_t n) {
    void *p;
    must(cudaMalloc(&p, n), "allocation");
    must(cudaMemset(p, 0xff, n), "fill");  // NaN: what is not written shows
    must(cudaDeviceSynchronize(), "fill");
    return p;
}
static void device_release(void *p) { must(cudaFree(p), "free"); }
static void device_put(void *to, const void *from, size_t n) { must(cudaMemcpy(to, from, n, cudaMemcpyHostToDevice), "copy"); }
static void device_get(void *to, const void *from, size_t n) {
    must(cudaStreamSynchronize(device->stream), "kernels");
    must(cudaMemcpy(to, from, n, cudaMemcpyDeviceToHost), "copy");
}

// All references at once in threads; all kernels asked for before the first is waited for.
enum { KINDS = 3, MAX_RUNS = 128 };
static FlashRun *run[MAX_RUNS];
static void reference(void *unused, int64_t i) {
    (void)unused;
    if (!flash_cases[i / 2].like) run[i] = flash_new(&flash_cases[i / 2], i % 2);  // float64 does not round as its like does
}

static void check(void) {
    static const char *const name[KINDS] = {"f32", "bf16, portable", "bf16"};
    static FlashLaunch *launch[MAX_RUNS][KINDS];
    FlashHost host = {device, device_alloc, device_release, device_put, device_get};
    int n = 2 * flash_ncase;
    CHECK(n <= MAX_RUNS, "more cases than room");
    parallel(n, reference, NULL);
    printf("references: %.1f s\n", now() - begin);
    for (int i = 0; i < n; i++)
        for (int kind = 0; kind < KINDS && run[i]; kind++) {
            flash_portable = kind == 1;
            launch[i][kind] = flash_request(&host, run[i], kind ? DT_BF16 : DT_F32);
        }
    flash_portable = false;
    for (int i = 0; i < n; i++) {
        for (int kind = 0; kind < KINDS && run[i]; kind++) {
            Str why = {0};
            FlashError e;
            bool ok = flash_finish(launch[i][kind], &e, &why);
            printf("%s %s, %s, %s: rms %.2e, most %.2e %s\n", ok ? "PASS" : "FAIL", flash_cases[i / 2].label, name[kind],
                   i % 2 ? "backward" : "forward", e.rms, e.most, str_text(&why));
            fflush(stdout);
            nfail += !ok;
            str_free(&why);
        }
        if (run[i]) flash_free(run[i]);
    }
    printf("check: %.1f s\n", now() - begin);
}

// ---- large ones ---------------------------------------------------------------------------------------------------------------
#define LEAF(code_, slot) {.code = (code_), .dtype = DT_I64, .a = (slot), .b = -1, .c = -1}
#define OP2(op, dtype_, x, y) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = -1}
#define NUM(t, v) {.code = PROG_CONST, .dtype = (t), .a = -1, .b = -1, .c = -1, .imm = (v)}
#define INDICES LEAF(PROG_INDEX_Q, -1), LEAF(PROG_INDEX_K, -1), OP2(LE, DT_BOOL, 1, 0)
static const Instr causal[] = {INDICES};
static const Instr documents[] = {INDICES, LEAF(PROG_VEC_Q, 0), LEAF(PROG_VEC_K, 1), OP2(EQ, DT_BOOL, 3, 4),
                                  OP2(AND, DT_BOOL, 2, 5)};
static const Instr window[] = {INDICES, OP2(SUB, DT_I64, 0, 1), NUM(DT_I64, 4096), OP2(LT, DT_BOOL, 3, 4),
                               OP2(AND, DT_BOOL, 2, 5)};
static const Instr alibi[] = {INDICES,
                              OP2(SUB, DT_I64, 1, 0),
                              LEAF(PROG_INDEX_H, -1),
                              NUM(DT_I64, 1),
                              OP2(ADD, DT_I64, 4, 5),
                              OP2(MUL, DT_I64, 3, 6),
                              {.code = PROG_OP + OP_CAST, .dtype = DT_F32, .a = 7, .b = -1, .c = -1},
                              NUM(DT_F32, 0.001),
                              OP2(MUL, DT_F32, 8, 9)};
#define PROGRAM(code, visible, bias) \
    {.ninstr = (int)(sizeof(code) / sizeof((code)[0])), .instr = (code), .nout = 2, .out = (const int32_t[]){(visible), (bias)}}
static const Program see_causal = PROGRAM(causal, 2, -1), see_documents = PROGRAM(documents, 6, -1),
                     see_window = PROGRAM(window, 6, -1), see_alibi = PROGRAM(alibi, 2, 10);

typedef struct Large {
    const char *label;
    int64_t H, Hkv, S, D, ndoc, window;  // ndoc > 0: vectors of document ids
    const Program *prog;
    double softcap;
} Large;

typedef struct Setup {
    Node node[2];
    ValueId ids[8];
    Attr attr[4];
    int nattr;
    Operand in[2][8], out[2][4];
    KernelArgs k[2];
    size_t nbytes[4];  // o, dq, dk, dv
} Setup;

static Operand make(int ndim, const int64_t *dim, DType t) {
    Operand o = {.dtype = t, .ndim = ndim, .sdim = -1};
    for (int i = 0; i < ndim; i++) o.dim[i] = o.global[i] = dim[i];
    return o;
}
static void *memory_of(const Operand *o) {
    size_t n = (size_t)dtype_nbytes(o->dtype);
    for (int i = 0; i < o->ndim; i++) n *= (size_t)o->dim[i];
    return device_alloc(n);
}

static void fill(const Operand *o, uint64_t seed) {
    enum { PERIOD = 1000003 };
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    uint16_t *x = malloc((size_t)n * 2);
    CHECK(x, "out of memory");
    for (int64_t i = 0; i < n && i < PERIOD; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        float f = ((float)(seed >> 40) * 0x1p-24f - 0.5f) * 3.4f;  // unit variance
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        x[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    for (int64_t i = PERIOD; i < n; i += PERIOD) memcpy(x + i, x, (size_t)(n - i < PERIOD ? n - i : PERIOD) * 2);
    device_put(o->data, x, (size_t)n * 2);
    free(x);
}

// Of both nodes: what kernels are made from. The same addresses (none) for all: the tensor-core kernels only ask for alignment.
static void describe(Setup *s, const Large *l) {
    *s = (Setup){0};
    int64_t q[] = {1, l->H, l->S, l->D}, k[] = {1, l->Hkv, l->S, l->D}, one[] = {1, 1, l->S};
    s->attr[s->nattr++] = attr_f(ATTR_SCALE, 1 / sqrt((double)l->D));
    s->attr[s->nattr++] = attr_prog(ATTR_PROG, l->prog);
    if (l->softcap != 0) s->attr[s->nattr++] = attr_f(ATTR_SOFTCAP, l->softcap);
    Operand query = make(4, q, DT_BF16), key = make(4, k, DT_BF16), lse = make(3, q, DT_F32), doc = make(3, one, DT_I64);
    memcpy(s->in[0], (Operand[]){query, key, key, doc, doc}, 5 * sizeof(Operand));
    memcpy(s->in[1], (Operand[]){query, key, key, query, lse, query, doc, doc}, 8 * sizeof(Operand));
    memcpy(s->out[0], (Operand[]){query, lse}, 2 * sizeof(Operand));
    memcpy(s->out[1], (Operand[]){query, key, key}, 3 * sizeof(Operand));
    for (int b = 0; b < 2; b++) {
        s->node[b] = (Node){.op = b ? OP_ATTENTION_GRAD : OP_ATTENTION,
                            .nin = (int16_t)((b ? 6 : 3) + (l->ndoc ? 2 : 0)),
                            .nout = b ? 3 : 2,
                            .nattr = (int16_t)s->nattr,
                            .in = s->ids,
                            .out = s->ids,
                            .attr = s->attr};
        size_t n = (b ? flash_attention_grad_scratch : flash_attention_scratch)(&s->node[b], s->in[b], s->out[b]);
        s->k[b] = (KernelArgs){.node = &s->node[b],
                               .nin = s->node[b].nin,
                               .nout = s->node[b].nout,
                               .in = s->in[b],
                               .out = s->out[b],
                               .scratch_nbytes = n,
                               .device = device};
    }
    size_t nq = (size_t)(l->H * l->S * l->D) * 2, nk = (size_t)(l->Hkv * l->S * l->D) * 2;
    memcpy(s->nbytes, (size_t[]){nq, nq, nk, nk}, sizeof s->nbytes);
}

// Memory and data.
static void setup(Setup *s, const Large *l) {
    describe(s, l);
    for (int i = 0; i < 6; i++) {
        s->in[1][i].data = memory_of(&s->in[1][i]);
        if (i < 3) s->in[0][i].data = s->in[1][i].data;
        if (i < 3 || i == 5) fill(&s->in[1][i], (uint64_t)i + 1);
    }
    s->out[0][0].data = s->in[1][3].data, s->out[0][1].data = s->in[1][4].data;
    for (int i = 0; i < 3; i++) s->out[1][i].data = memory_of(&s->out[1][i]);
    for (int b = 0; b < 2; b++) s->k[b].scratch = device_alloc(s->k[b].scratch_nbytes + 1);
    if (!l->ndoc) return;
    void *doc = memory_of(&s->in[0][3]);
    int64_t *id = malloc((size_t)l->S * 8);
    CHECK(id, "out of memory");
    for (int64_t i = 0; i < l->S; i++) id[i] = i * l->ndoc / l->S;
    device_put(doc, id, (size_t)l->S * 8);
    free(id);
    for (int i = 0; i < 2; i++) s->in[0][3 + i].data = s->in[1][6 + i].data = doc;
}

static void teardown(Setup *s) {
    for (int i = 0; i < s->node[1].nin && i < 7; i++) device_release(s->in[1][i].data);  // both vectors are one
    for (int i = 0; i < 3; i++) device_release(s->out[1][i].data);
    device_release(s->k[0].scratch), device_release(s->k[1].scratch);
}

static Status launch(Setup *s, int backward, Diag *d) {
    return (backward ? flash_attention_grad : flash_attention)(&s->k[backward], d);
}

static Status request(Setup *s, Diag *d) {
    TRY(flash_attention_prepare(device, &s->k[0], &s->k[0].state, d));
    return flash_attention_grad_prepare(device, &s->k[1], &s->k[1].state, d);
}

// Asks for the kernels of a call that comes later: others compile meanwhile.
static void request_early(const Large *l, bool portable) {
    Setup s;
    Diag d = {0};
    flash_portable = portable;
    describe(&s, l);
    CHECK(request(&s, &d) == ST_OK, "%s", d.text);
    flash_portable = false;
}

static Status prepare(Setup *s, Diag *d) {
    TRY(request(s, d));
    return module_wait(device, d);
}

static float *results(Setup *s, int i) {
    void *from[] = {s->out[0][0].data, s->out[1][0].data, s->out[1][1].data, s->out[1][2].data};
    size_t n = s->nbytes[i] / 2;
    uint16_t *x = malloc(n * 2);
    float *f = malloc(n * 4);
    CHECK(x && f, "out of memory");
    device_get(x, from[i], n * 2);
    for (size_t j = 0; j < n; j++) {
        uint32_t u = (uint32_t)x[j] << 16;
        memcpy(&f[j], &u, 4);
    }
    free(x);
    return f;
}

// The tensor-core kernels against the portable ones.
static void agree(const Large *l) {
    Setup s;
    setup(&s, l);
    float *r[2][4];
    Diag d = {0};
    for (int kind = 0; kind < 2; kind++) {
        flash_portable = kind == 0;
        if (prepare(&s, &d) != ST_OK || launch(&s, 0, &d) != ST_OK || launch(&s, 1, &d) != ST_OK) {
            printf("FAIL %s: %s\n", l->label, d.text);
            exit(1);
        }
        for (int i = 0; i < 4; i++) r[kind][i] = results(&s, i);
    }
    bool ok = true;
    printf("%s, S %lld, D %lld, tensor cores and portable differ by", l->label, (long long)l->S, (long long)l->D);
    for (int i = 0; i < 4; i++) {
        double off = 0, square = 0;
        for (size_t j = 0; j < s.nbytes[i] / 2; j++) {
            double x = (double)r[0][i][j] - r[1][i][j];
            off += x * x, square += (double)r[0][i][j] * r[0][i][j];
        }
        double rms = sqrt(off / square);
        ok &= rms < 1e-2;
        printf(" %.2e", rms);
        free(r[0][i]), free(r[1][i]);
    }
    printf(" %s\n", ok ? "PASS" : "FAIL");
    fflush(stdout);
    nfail += !ok;
    teardown(&s);
}

static double seconds(Setup *s, int backward) {
    cudaEvent_t at[2];
    float ms = 0, best = INFINITY;
    Diag d = {0};
    must(cudaEventCreate(&at[0]), "event"), must(cudaEventCreate(&at[1]), "event");
    for (int i = 0; i < 4; i++) {
        must(cudaEventRecord(at[0], device->stream), "event");
        CHECK(launch(s, backward, &d) == ST_OK, "%s", d.text);
        must(cudaEventRecord(at[1], device->stream), "event");
        must(cudaEventSynchronize(at[1]), "kernels");
        must(cudaEventElapsedTime(&ms, at[0], at[1]), "event");
        if (i > 0 && ms < best) best = ms;
    }
    cudaEventDestroy(at[0]), cudaEventDestroy(at[1]);
    return best * 1e-3;
}

// Pairs of a query and a key that it sees, of one head.
static double visible_pairs(const Large *l) {
    double n = 0;
    for (int64_t i = 0; i < l->S; i++) {
        int64_t first = 0;
        if (l->ndoc) first = ceil_div(i * l->ndoc / l->S * l->S, l->ndoc);
        if (l->window) first = max_i64(first, i - l->window + 1);
        n += (double)(i + 1 - first);
    }
    return n;
}

static void speed(const Large *l, bool portable) {
    Setup s;
    Diag d = {0};
    flash_portable = portable;
    setup(&s, l);
    CHECK(prepare(&s, &d) == ST_OK, "%s", d.text);
    double flops = 4 * visible_pairs(l) * (double)l->D * (double)l->H, f = seconds(&s, 0), b = seconds(&s, 1);
    printf("%s%s, S %lld, D %lld, heads %lld/%lld: forward %.2f ms %.0f TFLOP/s, backward %.2f ms %.0f TFLOP/s\n", l->label,
           portable ? ", portable" : "", (long long)l->S, (long long)l->D, (long long)l->H, (long long)l->Hkv, f * 1e3,
           flops / f * 1e-12, b * 1e3, 2.5 * flops / b * 1e-12);
    fflush(stdout);
    teardown(&s);
    flash_portable = false;
}

enum { MOST = 32 };
static int agree_cases(Large *to) {
    int n = 0;
    for (int64_t dim = 64; dim <= 256; dim *= 2) {
        to[n++] = (Large){"causal", 4, 2, 1999, dim, .prog = &see_causal};
        to[n++] = (Large){"documents", 4, 2, 4096, dim, .ndoc = 5, .prog = &see_documents};
        to[n++] = (Large){"alibi, soft-cap", 2, 1, 1500, dim, .prog = &see_alibi, .softcap = 30};
    }
    return n;
}
static int speed_cases(Large *to) {
    int n = 0;
    for (int64_t dim = 64; dim <= 128; dim *= 2)
        for (int64_t s = 8192; s <= 32768; s *= 4) {
            to[n++] = (Large){"causal", 32, 8, s, dim, .prog = &see_causal};
            to[n++] = (Large){"16 documents", 32, 8, s, dim, .ndoc = 16, .prog = &see_documents};
            to[n++] = (Large){"window 4096", 32, 8, s, dim, .window = 4096, .prog = &see_window};
            to[n++] = (Large){"alibi", 32, 8, s, dim, .prog = &see_alibi};
        }
    to[n++] = (Large){"causal", 8, 8, 8192, 256, .prog = &see_causal};
    return n;
}

static int packed_cases(Large *to) {
    int n = 0;
    for (int64_t dim = 64; dim <= 128; dim *= 2) {
        to[n++] = (Large){"16 documents", 32, 8, 65536, dim, .ndoc = 16, .prog = &see_documents};
        to[n++] = (Large){"64 documents", 32, 8, 65536, dim, .ndoc = 64, .prog = &see_documents};
    }
    return n;
}

int main(int argc, char **argv) {
    bool want[4] = {argc < 2, argc < 2, false, false};
    static const char *const name[] = {"check", "agree", "speed", "packed"};
    for (int i = 1; i < argc; i++)
        for (int j = 0; j < 4; j++) want[j] |= !strcmp(argv[i], name[j]);
    Diag d = {0};
    void *arena;
    static Large large[MOST], fast[MOST];
    begin = now();
    if (device_api.open(0, 1, 1 << 20, &device, &arena, &d) != ST_OK) return printf("FAIL no device: %s\n", d.text), 1;
    void *step = device->step;
    int nlarge = want[1] ? agree_cases(large) : 0, nfast = want[2] ? speed_cases(fast) : 0;
    if (want[3]) nfast += packed_cases(fast + nfast);
    for (int i = 0; i < nlarge; i++) request_early(&large[i], true), request_early(&large[i], false);
    for (int i = 0; i < nfast; i++) request_early(&fast[i], false);
    if (want[0]) check();
    device->step = step;
    for (int i = 0; i < nlarge; i++) agree(&large[i]);
    for (int i = 0; i < nfast; i++) speed(&fast[i], false);
    if (want[2]) speed(&(Large){"causal", 32, 8, 8192, 64, .prog = &see_causal}, true);
    device_api.close(device);
    printf("%s: %d failures, %.1f s\n", nfail ? "FAIL" : "PASS", nfail, now() - begin);
    return nfail != 0;
}
