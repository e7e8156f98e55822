// Generated kernels of fused nodes on a GPU.
//   gpu_fused random [FROM COUNT]   random programs against an evaluation in double
//   gpu_fused bench [NAME]          GB/s of what a transformer needs, beside a device copy
//   gpu_fused tune [NAME]           the cases whose ways codegen_tuning.c decides, with entries of it changed one at a time
//   gpu_fused large                 more than 2^31 elements
//   gpu_fused compile [COUNT]       no GPU: every source through NVRTC for compute capability 9.0
//   gpu_fused source NAME|NUMBER    prints the source of a bench case, of a random one
// Without arguments: random, large, bench. PASS or FAIL at the end.
#include <cuda_runtime_api.h>
#include <math.h>
#include <time.h>
#include "../fused_case.h"
#include "backend/cuda/fused/codegen_fused.h"
#include "backend/cuda/device/module.h"
#include "backend/cuda/device/module_impl.h"

extern const Backend backend_cuda;

// ---- what is measured ---------------------------------------------------------------------------------------------------

enum { BENCH_MAX_IN = 6 };
typedef struct Bench {
    const char *name;
    ProgramBuilder b;
    Shape space;
    int row, nin, nview;
    Shape in[BENCH_MAX_IN];
    DType type[BENCH_MAX_IN];
    int64_t views[256];
    double times_read;  // of input bytes that count: an input that several views share counts once
} Bench;

static int add_input(Bench *x, Shape s, DType t) {
    x->in[x->nin] = s, x->type[x->nin] = t;
    int v = prog_leaf(&x->b, PROG_INPUT, t, x->nin++, 0);
    return t == DT_BF16 ? prog_op(&x->b, OP_CAST, DT_F32, v, -1, -1) : v;
}
static int f32_op(Bench *x, OpKind op, int a, int b) { return prog_op(&x->b, op, DT_F32, a, b, -1); }
static int f32_const(Bench *x, double v) { return prog_leaf(&x->b, PROG_CONST, DT_F32, -1, v); }
static void add_output(Bench *x, int i, DType t) {
    vec_push(&x->b.out, t == DT_BF16 ? prog_op(&x->b, OP_CAST, DT_BF16, i, -1, -1) : i);
}
static int reduce(Bench *x, int code, int i) { return prog_leaf(&x->b, code, DT_F32, i, 0); }

static void make_add(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c);
    add_output(x, f32_op(x, OP_ADD, add_input(x, x->space, DT_BF16), add_input(x, x->space, DT_BF16)), DT_BF16);
}

static void make_add_f32(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c);
    add_output(x, f32_op(x, OP_ADD, add_input(x, x->space, DT_F32), add_input(x, x->space, DT_F32)), DT_F32);
}

static void make_bias(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c);
    int v = f32_op(x, OP_ADD, add_input(x, x->space, DT_BF16), add_input(x, SHAPE(c), DT_F32));
    add_output(x, f32_op(x, OP_GELU, v, -1), DT_BF16);
}

static void make_swiglu(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c);
    int g = add_input(x, x->space, DT_BF16), u = add_input(x, x->space, DT_BF16);
    add_output(x, f32_op(x, OP_MUL, f32_op(x, OP_SILU, g, -1), u), DT_BF16);
}

static void make_swiglu_grad(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c);
    int g = add_input(x, x->space, DT_BF16), u = add_input(x, x->space, DT_BF16), dy = add_input(x, x->space, DT_BF16);
    int s = f32_op(x, OP_SIGMOID, g, -1), one = f32_const(x, 1), gs = f32_op(x, OP_MUL, g, s);
    int slope = f32_op(x, OP_MUL, s, f32_op(x, OP_ADD, one, f32_op(x, OP_MUL, g, f32_op(x, OP_SUB, one, s))));
    add_output(x, f32_op(x, OP_MUL, f32_op(x, OP_MUL, dy, u), slope), DT_BF16);
    add_output(x, f32_op(x, OP_MUL, dy, gs), DT_BF16);
}

static int rms_scale(Bench *x, int v, int64_t c) {
    int mean = f32_op(x, OP_MUL, reduce(x, PROG_ROW_SUM, f32_op(x, OP_MUL, v, v)), f32_const(x, 1.0 / (double)c));
    return f32_op(x, OP_RSQRT, f32_op(x, OP_ADD, mean, f32_const(x, 1e-5)), -1);
}

static void make_rmsnorm(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    int v = add_input(x, x->space, DT_BF16), w = add_input(x, SHAPE(c), DT_F32), scale = rms_scale(x, v, c);
    add_output(x, f32_op(x, OP_MUL, f32_op(x, OP_MUL, v, scale), w), DT_BF16);
    add_output(x, scale, DT_F32);
}

static void make_rmsnorm_residual(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    int a = add_input(x, x->space, DT_BF16), b = add_input(x, x->space, DT_BF16), w = add_input(x, SHAPE(c), DT_F32);
    int v = f32_op(x, OP_ADD, a, b), scale = rms_scale(x, v, c);
    add_output(x, v, DT_BF16);
    add_output(x, f32_op(x, OP_MUL, f32_op(x, OP_MUL, v, scale), w), DT_BF16);
    add_output(x, scale, DT_F32);
}

static void make_rmsnorm_grad(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    int v = add_input(x, x->space, DT_BF16), dy = add_input(x, x->space, DT_BF16), w = add_input(x, SHAPE(c), DT_F32);
    int scale = add_input(x, SHAPE(n, 1), DT_F32), h = f32_op(x, OP_MUL, v, scale), dw = f32_op(x, OP_MUL, dy, w);
    int dot = f32_op(x, OP_MUL, reduce(x, PROG_ROW_SUM, f32_op(x, OP_MUL, dw, h)), f32_const(x, 1.0 / (double)c));
    add_output(x, f32_op(x, OP_MUL, f32_op(x, OP_SUB, dw, f32_op(x, OP_MUL, h, dot)), scale), DT_BF16);
    vec_push(&x->b.out, reduce(x, PROG_COL_SUM, f32_op(x, OP_MUL, dy, h)));
}

static void make_layernorm(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    int v = add_input(x, x->space, DT_BF16), w = add_input(x, SHAPE(c), DT_F32), b = add_input(x, SHAPE(c), DT_F32),
        r = f32_const(x, 1.0 / (double)c);
    int mean = f32_op(x, OP_MUL, reduce(x, PROG_ROW_SUM, v), r), z = f32_op(x, OP_SUB, v, mean);
    int var = f32_op(x, OP_MUL, reduce(x, PROG_ROW_SUM, f32_op(x, OP_MUL, z, z)), r);
    int scale = f32_op(x, OP_RSQRT, f32_op(x, OP_ADD, var, f32_const(x, 1e-5)), -1);
    add_output(x, f32_op(x, OP_ADD, f32_op(x, OP_MUL, f32_op(x, OP_MUL, z, scale), w), b), DT_BF16);
}

static void make_softmax(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    int v = add_input(x, x->space, DT_BF16), m = reduce(x, PROG_ROW_MAX, v), e = f32_op(x, OP_EXP, f32_op(x, OP_SUB, v, m), -1);
    add_output(x, f32_op(x, OP_DIV, e, reduce(x, PROG_ROW_SUM, e)), DT_BF16);
}

static void make_column_sum(Bench *x, int64_t n, int64_t c) {
    x->space = SHAPE(n, c), x->row = 1;
    vec_push(&x->b.out, reduce(x, PROG_COL_SUM, add_input(x, x->space, DT_BF16)));
}

static void make_total(Bench *x, int64_t n, int64_t c) {  // one row
    x->space = SHAPE(n * c), x->row = 1;
    add_output(x, reduce(x, PROG_ROW_SUM, add_input(x, x->space, DT_BF16)), DT_F32);
}

static void make_norm(Bench *x, int64_t n, int64_t c) {  // of a gradient: all of it one row. [8192, 2048] and [32768, 8192]
    x->space = SHAPE(c > 2048 ? n : n / 4, c), x->row = 2;
    int g = add_input(x, x->space, DT_F32);
    add_output(x, reduce(x, PROG_ROW_SUM, f32_op(x, OP_MUL, g, g)), DT_F32);
}

static void view_dim(Bench *x, int64_t dim, int64_t start, int64_t step) {
    x->views[x->nview++] = dim, x->views[x->nview++] = start, x->views[x->nview++] = step;
}

// Rotary embedding of x [S, H*64] into [H, S, 64]: y = x cos + rotate(x) sin, by three views of x.
static void make_rope(Bench *x, int64_t n, int64_t c) {
    int64_t heads = c / 64;
    x->space = SHAPE(heads, n, 64);
    int half[3] = {0, 32, -32}, lo[3] = {0, 0, 32}, hi[3] = {64, 32, 64}, v[3];
    for (int i = 0; i < 3; i++) {
        v[i] = add_input(x, SHAPE(n, heads, 64), DT_BF16);
        x->views[x->nview++] = 3;
        view_dim(x, 1, 0, 1), view_dim(x, 0, 0, 1), view_dim(x, 2, half[i], 1);
        x->views[x->nview++] = i > 0;
        if (i > 0) view_dim(x, 2, lo[i], hi[i]);
    }
    int cs = add_input(x, SHAPE(n, 64), DT_F32), sn = add_input(x, SHAPE(n, 64), DT_F32);
    x->views[x->nview++] = -1, x->views[x->nview++] = -1;
    int first = prog_op(&x->b, OP_LT, DT_BOOL, prog_leaf(&x->b, PROG_INDEX, DT_I64, 2, 0),
                        prog_leaf(&x->b, PROG_CONST, DT_I64, -1, 32), -1);
    int turned = prog_op(&x->b, OP_WHERE, DT_F32, first, f32_op(x, OP_NEG, v[1], -1), v[2]);
    add_output(x, f32_op(x, OP_ADD, f32_op(x, OP_MUL, v[0], cs), f32_op(x, OP_MUL, turned, sn)), DT_BF16);
    x->times_read = 1.0 / 3;
}

static const struct {
    const char *name;
    void (*make)(Bench *x, int64_t n, int64_t c);
} benches[] = {
    {"add bf16", make_add}, {"add f32", make_add_f32}, {"bias+gelu", make_bias}, {"swiglu", make_swiglu},
    {"swiglu grad", make_swiglu_grad}, {"rope", make_rope}, {"rmsnorm", make_rmsnorm},
    {"rmsnorm+residual", make_rmsnorm_residual}, {"rmsnorm grad", make_rmsnorm_grad}, {"layernorm", make_layernorm},
    {"softmax", make_softmax}, {"column sum", make_column_sum}, {"total", make_total}, {"gradient norm", make_norm},
};
enum { NBENCH = sizeof benches / sizeof *benches };

static void bench_new(Bench *x, int which, int64_t n, int64_t c, FusedCase *shapes, Arena *a) {
    *x = (Bench){.name = benches[which].name, .b = {.arena = a}, .times_read = 1};
    benches[which].make(x, n, c);
    const Program *p = prog_finish(&x->b);
    fused_case_shape(shapes, x->name, p, x->space, x->row, x->nin, x->in, x->type, x->nview, x->nview ? x->views : NULL);
}

// ---- running ------------------------------------------------------------------------------------------------------------

static double operand_nbytes_of(const Operand *o) {
    double n = dtype_nbytes(o->dtype);
    for (int k = 0; k < o->ndim; k++) n *= (double)o->dim[k];
    return n;
}

typedef struct Timing {
    double seconds, nbytes;
} Timing;

static void fail(const char *what, const Diag *d) {
    printf("FAIL %s: %s\n", what, d->text);
    exit(1);
}

// Places the operands of a case (random bits of small bf16 / f32 values), launches, and times the best of some rounds.
static Timing time_case(const Bench *x, FusedCase *c, Device *dev, char *arena, size_t arena_nbytes) {
    Operand in[CASE_MAX_IN], out[CASE_MAX_OUT];
    Diag d = {0};
    fused_case_operands(c, in, out);
    size_t used = 0, scratch = backend_cuda.scratch(graph_node(c->g, c->node), in, out, 1);
    Timing t = {.seconds = 1e30};
    for (int i = 0; i < c->nin + c->nout; i++) {
        Operand *o = i < c->nin ? &in[i] : &out[i - c->nin];
        o->data = arena + used;
        bool shared = x->times_read < 1 && i > 0 && i < 3;  // rope's views of one tensor
        if (shared) o->data = in[0].data;
        else used += (size_t)round_up((int64_t)operand_nbytes_of(o), 256), t.nbytes += operand_nbytes_of(o);
    }
    if (used + scratch > arena_nbytes) return (Timing){0};
    KernelArgs k = {.node = graph_node(c->g, c->node),
                    .id = c->node,
                    .nin = c->nin,
                    .nout = c->nout,
                    .in = in,
                    .out = out,
                    .device = dev,
                    .scratch = arena + used,
                    .scratch_nbytes = scratch};
    if (backend_cuda.device->prepare(dev, &k, &k.state, &d) != ST_OK || module_wait(dev, &d) != ST_OK) fail(c->name, &d);
    KernelFn run = backend_cuda.kernel(OP_FUSED, DT_F32);
    NodeId failed;
    for (int round = 0; round < 6; round++) {
        enum { TIMES = 5 };
        double s = 0;
        Status st = backend_cuda.device->mark(dev, 0, &d);
        for (int i = 0; i < TIMES && st == ST_OK; i++) st = run(&k, &d);
        if (st == ST_OK) st = backend_cuda.device->mark(dev, 1, &d);
        if (st == ST_OK) st = backend_cuda.device->finish(dev, &failed, &d);
        if (st == ST_OK) st = backend_cuda.device->elapsed(dev, 0, 1, &s, &d);
        if (st != ST_OK) fail(c->name, &d);
        if (round > 0) t.seconds = fmin(t.seconds, s / TIMES);
    }
    return t;
}

static double copy_rate(char *arena, size_t nbytes, void *stream) {
    double best = 0;
    cudaEvent_t a, b;
    cudaEventCreate(&a), cudaEventCreate(&b);
    for (int round = 0; round < 6; round++) {
        float ms = 0;
        cudaEventRecord(a, stream);
        for (int i = 0; i < 5; i++) cudaMemcpyAsync(arena + nbytes, arena, nbytes, cudaMemcpyDeviceToDevice, stream);
        cudaEventRecord(b, stream);
        cudaEventSynchronize(b);
        cudaEventElapsedTime(&ms, a, b);
        if (round > 0 && ms > 0) best = fmax(best, 10.0 * (double)nbytes / (ms * 1e-3));
    }
    return best;
}

// What each kernel of a case became: registers, blocks and how many of them a multiprocessor holds, bytes spilled.
static void describe(const FusedCase *c, Str *text) {
    Operand in[CASE_MAX_IN], out[CASE_MAX_OUT];
    Arena *a = arena_new();
    FusedSpace s;
    FusedPlan p;
    Diag d = {0};
    Str log = {0};
    void *image = NULL, *library = NULL, *kernel = NULL;
    size_t n = 0;
    fused_case_operands(c, in, out);
    Status st = fused_space(a, graph_node(c->g, c->node), in, out, &s, &d);
    if (st == ST_OK) st = fused_plan(a, &s, &p, &d);
    if (st == ST_OK) st = module_compile(90, p.source, &image, &n, &log, &d);
    if (st == ST_OK) st = module_load(image, n, &library, &d);
    for (int i = 0; st == ST_OK && i < p.nlaunch; i++) {
        const FusedLaunch *l = &p.launch[i];
        struct cudaFuncAttributes f = {0};
        int fit = 0;
        st = module_find(library, l->name, &kernel, &d);
        if (st != ST_OK || cudaFuncGetAttributes(&f, kernel) != cudaSuccess) break;
        if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, l->threads, 0) != cudaSuccess) break;
        str_printf(text, "%s%lld x %d, %d an SM, %d registers", i ? "; " : "", (long long)l->blocks, l->threads, fit, f.numRegs);
        if (f.localSizeBytes) str_printf(text, ", %zu B of stack", f.localSizeBytes);
    }
    if (st != ST_OK) str_printf(text, "(%s)", d.text);
    (void)cudaGetLastError();  // of a question that got no answer
    if (library) cudaLibraryUnload(library);
    free(image);
    str_free(&log);
    arena_free(a);
}

typedef struct Measuring {
    Device *dev;
    char *arena;
    size_t nbytes;
    double copy;  // bytes a second
} Measuring;

static Measuring open_bench(void) {
    Measuring m = {.nbytes = (size_t)5 << 30};
    Diag d = {0};
    if (backend_cuda.device->open(0, 1, m.nbytes, &m.dev, (void **)&m.arena, &d) != ST_OK) fail("open", &d);
    cudaMemset(m.arena, 0, m.nbytes);
    m.copy = copy_rate(m.arena, (size_t)1 << 30, m.dev->stream);
    printf("device copy: %.0f GB/s\n", m.copy * 1e-9);
    return m;
}

static const int64_t bench_sizes[][2] = {{32768, 2048}, {32768, 8192}};

// One line; true where it is slow.
static bool bench_line(const Measuring *m, int which, int size, const char *note) {
    Arena *a = arena_new();
    Bench x;
    FusedCase c;
    Str what = {0};
    bench_new(&x, which, bench_sizes[size][0], bench_sizes[size][1], &c, a);
    Timing t = time_case(&x, &c, m->dev, m->arena, m->nbytes);
    double rate = t.nbytes / t.seconds;
    int64_t n = shape_numel(&x.space) / bench_sizes[size][1];
    bool slow = !(rate >= 0.8 * m->copy);
    describe(&c, &what);
    printf("%-18s [%lld, %lld]  %8.1f us  %6.0f GB/s  %3.0f %% of copy%s  (%s)%s%s\n", x.name, (long long)n,
           (long long)bench_sizes[size][1], t.seconds * 1e6, rate * 1e-9, 100 * rate / m->copy, slow ? "  SLOW" : "",
           str_text(&what), *note ? "  " : "", note);
    str_free(&what);
    fused_case_free(&c);
    arena_free(a);
    return slow;
}

// Entries of the table, one at a time, for the cases that they may matter to.
static int run_tune(const char *only) {
    static int *const early = &fused_tuning.blocks_per_level, *const vectors = &fused_tuning.row_vectors;
    static const struct {
        const char *name;
        int *entry, value, *second, value2;
        const char *note;
    } trials[] = {
        {"layernorm", early, 0, NULL, 0, "no early loads"}, {"layernorm", early, 16, NULL, 0, "always early loads"},
        {"layernorm", &fused_tuning.hoist, 0, NULL, 0, "weights read in each row"},
        {"layernorm", &fused_tuning.hoist, 0, early, 0, "weights read in each row, no early loads"},
        {"layernorm", vectors, 1, &fused_tuning.row_threads, 1024, "more threads for a row"},
        {"softmax", early, 0, NULL, 0, "no early loads"}, {"softmax", early, 16, NULL, 0, "always early loads"},
        {"softmax", &fused_tuning.resident, 1536, NULL, 0, "more blocks"},
        {"softmax", vectors, 1, &fused_tuning.row_threads, 1024, "more threads for a row"},
        {"rmsnorm", early, 16, NULL, 0, "always early loads"}, {"rmsnorm grad", early, 0, NULL, 0, "no early loads"},
        {"rope", &fused_tuning.along_steps, 4, NULL, 0, "4 turns"}, {"rope", &fused_tuning.along_steps, 16, NULL, 0, "16 turns"},
        {"rope", (int *)NULL, 0, NULL, 0, "tables read in each turn"},
        {"column sum", &fused_tuning.column_words, 4, NULL, 0, "rows one by one"},
        {"column sum", &fused_tuning.column_words, 32, NULL, 0, "more rows at once"},
        {"gradient norm", &fused_tuning.split_blocks, 2, NULL, 0, "2 blocks an SM"},
        {"gradient norm", &fused_tuning.split_blocks, 8, NULL, 0, "8 blocks an SM"},
        {"gradient norm", &fused_tuning.split_unroll, 8, NULL, 0, "8 loads at once"},
    };
    const FusedTuning usual = fused_tuning;
    Measuring m = open_bench();
    for (int i = 0; i < NBENCH; i++)
        for (int s = 0; s < 2; s++) {
            bool said = false;
            for (size_t k = 0; k < sizeof trials / sizeof *trials; k++) {
                if (strcmp(trials[k].name, benches[i].name) || (only && strcmp(only, benches[i].name))) continue;
                if (!said) bench_line(&m, i, s, "as it is");
                said = true;
                if (trials[k].entry) *trials[k].entry = trials[k].value;
                else fused_tuning.along_elements = INT64_MAX;
                if (trials[k].second) *trials[k].second = trials[k].value2;
                bench_line(&m, i, s, trials[k].note);
                fused_tuning = usual;
            }
        }
    backend_cuda.device->close(m.dev);
    return 0;
}

static int run_bench(const char *only) {
    Measuring m = open_bench();
    int slow = 0;
    for (int i = 0; i < NBENCH; i++)
        for (int s = 0; s < 2; s++)
            if (!only || strstr(benches[i].name, only)) slow += bench_line(&m, i, s, "");
    backend_cuda.device->close(m.dev);
    printf("bench: %d below 80 %%\n", slow);
    return 0;
}

static int run_random(int from, int count) {
    int failed = 0;
    int64_t compared = 0;
    for (int i = from; i < from + count; i++) {
        FusedCase c;
        Str why = {0};
        fused_case_random(&c, (uint64_t)i, i % 8 == 7 ? 200000 : 20000);
        fused_case_expect(&c);
        if (!fused_case_check(&c, &backend_cuda, &why, &compared)) printf("FAIL %s\n", str_text(&why)), failed++;
        str_free(&why);
        fused_case_free(&c);
    }
    printf("%s random: %d of %d failed, %lld elements compared\n", failed ? "FAIL" : "PASS", failed, count, (long long)compared);
    return failed;
}

// y = 2 x, and y = x + index % 7, over more than 2^31 elements of bf16: flat positions, and positions along two dims.
static int run_large(void) {
    int failed = 0;
    for (int kind = 0; kind < 2; kind++) {
        // 2.31e9; no vector fits an odd length, so that threads count past 2^31 too
        const int64_t n = 70000, m = kind ? 33001 : 33000;
        Arena *a = arena_new();
        ProgramBuilder b = {.arena = a};
        int x = prog_op(&b, OP_CAST, DT_F32, prog_leaf(&b, PROG_INPUT, DT_BF16, 0, 0), -1, -1), y = x;
        if (kind == 1) {
            int i = prog_op(&b, OP_MOD, DT_I64, prog_leaf(&b, PROG_INDEX, DT_I64, 0, 0), prog_leaf(&b, PROG_CONST, DT_I64, -1, 7),
                            -1);
            y = prog_op(&b, OP_CAST, DT_F32, i, -1, -1);
        }
        vec_push(&b.out, prog_op(&b, OP_CAST, DT_BF16, prog_op(&b, OP_ADD, DT_F32, x, y, -1), -1, -1));
        Shape s = SHAPE(n, m);
        DType t = DT_BF16;
        FusedCase c;
        fused_case_shape(&c, "large", prog_finish(&b), s, 0, 1, &s, &t, 0, NULL);
        Operand in[1], out[1];
        fused_case_operands(&c, in, out);
        Device *dev;
        char *arena;
        Diag d = {0};
        size_t nbytes = (size_t)n * (size_t)m * 2;
        if (backend_cuda.device->open(0, 1, nbytes * 2 + 4096, &dev, (void **)&arena, &d) != ST_OK) fail("large", &d);
        in[0].data = arena, out[0].data = arena + round_up((int64_t)nbytes, 256);
        if (backend_cuda.device->fill(dev, arena, DT_BF16, n * m, 1.5, &d) != ST_OK) fail("large", &d);
        KernelArgs k = {.node = graph_node(c.g, c.node),
                        .id = c.node,
                        .nin = 1,
                        .nout = 1,
                        .in = in,
                        .out = out,
                        .device = dev,
                        .scratch = arena};
        NodeId bad;
        Status st = backend_cuda.device->prepare(dev, &k, &k.state, &d);
        if (st == ST_OK) st = backend_cuda.kernel(OP_FUSED, DT_F32)(&k, &d);
        if (st == ST_OK) st = backend_cuda.device->finish(dev, &bad, &d);
        uint16_t *host = malloc(nbytes);
        if (st == ST_OK && host) st = backend_cuda.device->read(dev, host, out[0].data, nbytes, &d);
        if (st != ST_OK) fail("large", &d);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n * m; i += i < n * m - 1000000 ? 13 : 1) {
            float want = 1.5f + (kind ? (float)((i / m) % 7) : 1.5f);
            uint32_t u = (uint32_t)host[i] << 16;
            float got;
            memcpy(&got, &u, 4);
            wrong += got != want;
        }
        printf("%s large (%s): %lld of %lld elements wrong\n", wrong ? "FAIL" : "PASS", kind ? "by rows" : "flat",
               (long long)wrong, (long long)(n * m));
        failed += wrong > 0;
        free(host);
        backend_cuda.device->close(dev);
        fused_case_free(&c);
        arena_free(a);
    }
    return failed;
}

// ---- NVRTC alone --------------------------------------------------------------------------------------------------------

static bool compile_case(const FusedCase *c, bool print, double *seconds) {
    Operand in[CASE_MAX_IN], out[CASE_MAX_OUT];
    fused_case_operands(c, in, out);
    Arena *a = arena_new();
    FusedSpace s;
    FusedPlan p;
    Diag d = {0};
    Str log = {0};
    void *image = NULL;
    size_t n;
    Status st = fused_space(a, graph_node(c->g, c->node), in, out, &s, &d);
    if (st == ST_OK) st = fused_plan(a, &s, &p, &d);
    if (st == ST_OK && print) fputs(p.source, stdout);
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    if (st == ST_OK && !print) st = module_compile(90, p.source, &image, &n, &log, &d);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    *seconds += (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    if (st != ST_OK) printf("FAIL %s: %s\n%s\n%s\n", c->name, d.text, str_text(&log), p.source);
    free(image);
    str_free(&log);
    arena_free(a);
    return st == ST_OK;
}

static int run_compile(int count, const char *print) {
    int failed = 0, n = 0;
    double seconds = 0;
    for (int i = 0; i < NBENCH * 2; i++, n++) {
        Arena *a = arena_new();
        Bench x;
        FusedCase c;
        bench_new(&x, i / 2, 32768, i % 2 ? 8192 : 2048, &c, a);
        if (!print || !strcmp(print, x.name)) failed += !compile_case(&c, print != NULL, &seconds);
        fused_case_free(&c);
        arena_free(a);
    }
    bool one = print && strspn(print, "0123456789") == strlen(print);
    for (int i = one ? atoi(print) : 0; i < (one ? atoi(print) + 1 : print ? 0 : count); i++, n++) {
        FusedCase c;
        fused_case_random(&c, (uint64_t)i, one ? 20000 : 6000);
        failed += !compile_case(&c, one, &seconds);
        fused_case_free(&c);
    }
    if (!print) printf("%s compile: %d of %d failed, %.3f s each\n", failed ? "FAIL" : "PASS", failed, n, seconds / n);
    return failed;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all";
    int failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(what, "compile")) return run_compile(argc > 2 ? atoi(argv[2]) : 30, NULL) != 0;
    if (!strcmp(what, "source")) return run_compile(0, argc > 2 ? argv[2] : "rmsnorm") != 0;
    if (backend_cuda.device->count() < 1) {
        printf("no GPU: only gpu_fused compile can run here\n");
        return 77;
    }
    bool all = !strcmp(what, "all");
    if (all || !strcmp(what, "random")) failed += run_random(argc > 2 ? atoi(argv[2]) : 0, argc > 3 ? atoi(argv[3]) : 150);
    if (!strcmp(what, "tune")) failed += run_tune(argc > 2 ? argv[2] : NULL);
    if (all || !strcmp(what, "large")) failed += run_large();
    if (all || !strcmp(what, "bench")) failed += run_bench(argc > 2 ? argv[2] : NULL);
    printf("%s\n", failed ? "FAIL" : "PASS");
    return failed != 0;
}
