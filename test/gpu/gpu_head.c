// The head (logits never whole) and products grouped by expert on a GPU: right against sums in float64, and how fast.
//   gpu_head [head] [expert] [speed]      all without arguments
#include "gemm_util.h"

// Runs a kernel of three or more operands as a plan's step would; scratch of what it asks for.
typedef struct Step {
    KernelFn run;
    size_t (*scratch)(const Node *, const Operand *, const Operand *);
    Status (*prepare)(Device *, const KernelArgs *, void **, Diag *);
} Step;
#define STEP(name) ((Step){cuda_##name, cuda_##name##_scratch, cuda_##name##_prepare})

typedef struct Ready {
    Node node;
    KernelArgs k;
    Buf scratch;
} Ready;
static void ready(Ready *r, Step s, OpKind op, Attr *attr, int nattr, const Operand *in, int nin, const Operand *out, int nout) {
    r->node = (Node){.op = op, .nin = (int16_t)nin, .nout = (int16_t)nout, .attr = attr, .nattr = (int16_t)nattr};
    r->k = (KernelArgs){.node = &r->node, .id = 1, .nin = nin, .nout = nout, .in = in, .out = out, .device = &device};
    r->k.scratch_nbytes = s.scratch(&r->node, in, out);
    r->scratch = buf_new(DT_F32, (int64_t)(r->k.scratch_nbytes / 4 + 1), 0);
    r->k.scratch = r->scratch.dev;
    DO(s.prepare(&device, &r->k, &r->k.state, &d));
    device_wait();
}
static void run_once(Ready *r, Step s) {
    DO(s.run(&r->k, &d));
    device_wait();
    GPU(cudaGetLastError());
}

// ---- head -----------------------------------------------------------------------------------------------------------------
typedef struct Head {
    DType t;
    int64_t n, d, v;
    double scale, cap;
    Buf h, w, idx, glse, gpick, lse, pick, dh, dw;
    Operand in[5], out[4];
} Head;

static void head_new(Head *c) {
    c->h = buf_new(c->t, c->n * c->d, 0), c->w = buf_new(c->t, c->v * c->d, 0), c->idx = buf_new(DT_I64, c->n, 0);
    c->glse = buf_new(DT_F32, c->n, 0), c->gpick = buf_new(DT_F32, c->n, 0), c->lse = buf_new(DT_F32, c->n, 0),
    c->pick = buf_new(DT_F32, c->n, 0);
    c->dh = buf_new(c->t, c->n * c->d, 0), c->dw = buf_new(DT_F32, c->v * c->d, 0);
    buf_random(&c->h, 1, -1, 1), buf_random(&c->w, 2, -0.5, 0.5), buf_random(&c->idx, 3, 0, (double)c->v);
    buf_random(&c->glse, 4, 0, 1), buf_random(&c->gpick, 5, -1, 0);
    Operand in[5] = {operand_of(&c->h, 2, c->n, c->d, 0), operand_of(&c->w, 2, c->v, c->d, 0), operand_of(&c->idx, 1, c->n, 0, 0),
                     operand_of(&c->glse, 1, c->n, 0, 0), operand_of(&c->gpick, 1, c->n, 0, 0)};
    Operand out[4] = {operand_of(&c->lse, 1, c->n, 0, 0), operand_of(&c->pick, 1, c->n, 0, 0),
                      operand_of(&c->dh, 2, c->n, c->d, 0), operand_of(&c->dw, 2, c->v, c->d, 0)};
    memcpy(c->in, in, sizeof in), memcpy(c->out, out, sizeof out);
}
static void head_free(Head *c) {
    Buf *all[] = {&c->h, &c->w, &c->idx, &c->glse, &c->gpick, &c->lse, &c->pick, &c->dh, &c->dw};
    for (int i = 0; i < 9; i++) buf_free(all[i]);
}

// One logit, as the kernels see it: rounded to the type of h.
static double head_logit(const Head *c, int64_t i, int64_t j) {
    double s = 0;
    for (int64_t k = 0; k < c->d; k++) s += c->h.host[i * c->d + k] * c->w.host[j * c->d + k];
    s *= c->scale;
    uint16_t half;
    if (c->t == DT_BF16) bits_set(&half, DT_BF16, 0, s), s = bits_get(&half, DT_BF16, 0);
    return c->cap > 0 ? c->cap * tanh(s / c->cap) : s;
}
static double head_slope(const Head *c, int64_t i, int64_t j, double z, double lse) {
    double dz = exp(z - lse) * c->glse.host[i] + (j == (int64_t)c->idx.host[i] ? c->gpick.host[i] : 0);
    return c->scale * dz * (c->cap > 0 ? 1 - z / c->cap * z / c->cap : 1);
}

// Rows from lse to dh, columns of dw; all of a small one, samples of a large one. dlogits are rounded to the type of h too.
static void check_head(Head *c, const char *name) {
    Attr attr[] = {attr_f(ATTR_SCALE, c->scale), attr_f(ATTR_SOFTCAP, c->cap)};
    Ready r;
    head_new(c);
    ready(&r, STEP(head), OP_HEAD, attr, 2, c->in, 5, c->out, 4);
    run_once(&r, STEP(head));
    buf_read(&c->lse), buf_read(&c->pick), buf_read(&c->dh), buf_read(&c->dw);
    double unit = c->t == DT_BF16 ? 1.0 / 128 : 2e-5, worst[4] = {0};
    double *z = malloc(sizeof *z * (size_t)c->v);
    int64_t rows = c->n > 40 ? 40 : c->n, columns = c->v > 24 ? 24 : c->v;
    for (int64_t s = 0; s < rows; s++) {
        int64_t i = s == 0 ? c->n - 1 : s * (c->n / rows);
        double sum = 0;
        for (int64_t j = 0; j < c->v; j++) sum += exp(z[j] = head_logit(c, i, j));
        double lse = log(sum), picked = z[(int64_t)c->idx.host[i]];
        worst[0] = fmax(worst[0], fabs(c->lse.host[i] - lse) / (unit / 8 * (1 + fabs(lse))));
        worst[1] = fmax(worst[1], fabs(c->pick.host[i] - picked) / (unit * (0.1 + fabs(picked))));
        for (int64_t k = 0; k < c->d; k += 1 + c->d / 16) {
            double want = 0, norm = 0;
            for (int64_t j = 0; j < c->v; j++) {
                double v = head_slope(c, i, j, z[j], lse) * c->w.host[j * c->d + k];
                want += v, norm += v * v;
            }
            worst[2] = fmax(worst[2], fabs(c->dh.host[i * c->d + k] - want) / (unit * (fabs(want) + 2 * sqrt(norm)) + 1e-7));
        }
    }
    for (int64_t s = 0; s < columns; s++) {
        int64_t j = s % 2 ? (int64_t)c->idx.host[s * (c->n / columns) % c->n] : c->v - 1 - s * (c->v / columns);
        double want[4] = {0}, norm[4] = {0};
        for (int64_t i = 0; i < c->n; i++) {
            double slope = head_slope(c, i, j, head_logit(c, i, j), c->lse.host[i]);
            for (int64_t k = 0; k < 4; k++) {
                double v = slope * c->h.host[i * c->d + k * (c->d / 4)];
                want[k] += v, norm[k] += v * v;
            }
        }
        for (int64_t k = 0; k < 4; k++)
            worst[3] = fmax(worst[3], fabs(c->dw.host[j * c->d + k * (c->d / 4)] - want[k]) /
                                          (unit * (fabs(want[k]) + 2 * sqrt(norm[k])) + 1e-7));
    }
    static const char *const part[] = {"lse", "pick", "dh", "dw"};
    for (int p = 0; p < 4; p++) {
        char what[128];
        snprintf(what, sizeof what, "%s %s", name, part[p]);
        verdict(worst[p] <= 1, what, worst[p]);
    }
    free(z);
    buf_free(&r.scratch), head_free(c);
}

static void head(void) {
    check_head(&(Head){.t = DT_F32, .n = 300, .d = 64, .v = 1003, .scale = 1}, "head f32");
    check_head(&(Head){.t = DT_BF16, .n = 300, .d = 64, .v = 1003, .scale = 1}, "head bf16, odd vocabulary");
    check_head(&(Head){.t = DT_BF16, .n = 130, .d = 40, .v = 4096, .scale = 0.5, .cap = 2}, "head bf16, scale and cap");
    check_head(&(Head){.t = DT_F32, .n = 17, .d = 36, .v = 50257, .scale = 1, .cap = 3}, "head f32, cap");
    check_head(&(Head){.t = DT_BF16, .n = 5000, .d = 64, .v = 128256, .scale = 1}, "head bf16, three chunks");
    check_head(&(Head){.t = DT_F32, .n = 1500, .d = 64, .v = 128256, .scale = 1}, "head f32, two chunks");
}

// ---- experts --------------------------------------------------------------------------------------------------------------
typedef struct Experts {
    DType t;
    int64_t n, e, nx, ny;
    bool trans;
} Experts;

static void check_experts(Experts c) {
    Buf x = buf_new(c.t, c.n * c.nx, 0), idx = buf_new(DT_I64, c.n, 0), w = buf_new(c.t, c.e * c.nx * c.ny, 0),
        y = buf_new(c.t, c.n * c.ny, 0);
    Buf g = buf_new(c.t, c.n * c.ny, 0), dw = buf_new(DT_F32, c.e * c.nx * c.ny, 0);
    buf_random(&x, 1, -1, 1), buf_random(&w, 2, -1, 1), buf_random(&g, 3, -1, 1), buf_random(&idx, 4, -1, (double)c.e + 1);
    for (int64_t i = 0; i < c.n; i++) idx.host[i] = idx.host[i] == 1 ? 0 : idx.host[i];  // expert 1 has no row
    double *moved = malloc(sizeof *moved * (size_t)c.n);
    memcpy(moved, idx.host, sizeof *moved * (size_t)c.n);
    buf_write(&idx, moved);
    free(moved);
    Attr attr[] = {attr_i(ATTR_TRANS_W, c.trans), attr_i(ATTR_NROWS, c.e)};
    int64_t w1 = c.trans ? c.ny : c.nx, w2 = c.trans ? c.nx : c.ny;
    Operand in[3] = {operand_of(&x, 2, c.n, c.nx, 0), operand_of(&idx, 1, c.n, 0, 0), operand_of(&w, 3, c.e, w1, w2)},
            out = operand_of(&y, 2, c.n, c.ny, 0);
    Operand back[3] = {in[0], in[1], operand_of(&g, 2, c.n, c.ny, 0)}, grad = operand_of(&dw, 3, c.e, w1, w2);
    Ready f, b;
    ready(&f, STEP(expert_matmul), OP_EXPERT_MATMUL, attr, 2, in, 3, &out, 1);
    ready(&b, STEP(expert_matmul_grad), OP_EXPERT_MATMUL_GRAD, attr, 2, back, 3, &grad, 1);
    run_once(&f, STEP(expert_matmul)), run_once(&b, STEP(expert_matmul_grad));
    buf_read(&y), buf_read(&dw);
    double worst[2] = {0};
    for (int64_t s = 0; s < 3000; s++) {
        int64_t i = s * 7919 % c.n, j = s * 104729 % c.ny, e = (int64_t)idx.host[i];
        double sum = 0, norm = 0;
        for (int64_t k = 0; k < c.nx && e >= 0 && e < c.e; k++) {
            double v = x.host[i * c.nx + k] * w.host[e * c.nx * c.ny + (c.trans ? j * c.nx + k : k * c.ny + j)];
            sum += v, norm += v * v;
        }
        worst[0] = fmax(worst[0], error_of(y.host[i * c.ny + j], sum, c.t, c.nx, sqrt(norm)));
    }
    for (int64_t s = 0; s < 1000; s++) {
        int64_t e = s % c.e, a = s * 7919 % c.nx, j = s * 104729 % c.ny;
        double sum = 0, norm = 0;
        for (int64_t i = 0; i < c.n; i++) {
            double v = (int64_t)idx.host[i] == e ? x.host[i * c.nx + a] * g.host[i * c.ny + j] : 0;
            sum += v, norm += v * v;
        }
        worst[1] = fmax(
            worst[1], error_of(dw.host[e * c.nx * c.ny + (c.trans ? j * c.nx + a : a * c.ny + j)], sum, DT_F32, c.n, sqrt(norm)));
    }
    for (int p = 0; p < 2; p++) {
        char what[160];
        snprintf(what, sizeof what, "%s %s [%lld, %lld] x %lld of [%lld]%s", p ? "expert_matmul_grad" : "expert_matmul",
                 dtype_name(c.t), (long long)c.n, (long long)c.nx, (long long)c.e, (long long)c.ny, c.trans ? " transposed" : "");
        verdict(worst[p] <= 1, what, worst[p]);
    }
    Buf *all[] = {&x, &idx, &w, &y, &g, &dw, &f.scratch, &b.scratch};
    for (int i = 0; i < 8; i++) buf_free(all[i]);
}

static void expert(void) {
    for (int t = 0; t < 2; t++)
        for (int trans = 0; trans < 2; trans++) {
            DType type = t ? DT_BF16 : DT_F32;
            check_experts((Experts){type, 3000, 5, 136, 264, trans});  // bf16: tensor cores, tiles not full
            check_experts((Experts){type, 700, 8, 33, 65, trans});     // nothing aligned
            check_experts((Experts){type, 20000, 60, 64, 128, trans}); // many experts, many chunks
            check_experts((Experts){type, 100, 128, 512, 96, trans});  // most have none
        }
}

// ---- speed ----------------------------------------------------------------------------------------------------------------
static void speed(void) {
    Head c = {.t = DT_BF16, .n = 32768, .d = 2048, .v = 128256, .scale = 1};
    Attr attr[] = {attr_f(ATTR_SCALE, 1), attr_f(ATTR_SOFTCAP, 0)};
    Ready r;
    head_new(&c);
    ready(&r, STEP(head), OP_HEAD, attr, 2, c.in, 5, c.out, 4);
    run_once(&r, STEP(head));
    clock_start();
    for (int i = 0; i < 3; i++) DO(cuda_head(&r.k, &d));
    double ms = clock_ms() / 3, flops = 6.0 * (double)c.n * (double)c.d * (double)c.v;
    printf("head, 32768 rows, 2048 x 128256: %.2f ms, %.1f TFLOP/s, scratch %.0f MiB\n", ms, flops / ms * 1e-9,
           (double)r.k.scratch_nbytes / 1048576);
    DO(cuda_head(&r.k, &d));
    device_wait();
    buf_free(&r.scratch), head_free(&c);
    static const Experts shape[] = {
        {DT_BF16, 65536, 8, 2048, 8192, false}, {DT_BF16, 65536, 64, 2048, 1408, true}, {DT_F32, 8192, 8, 2048, 2048, true}};
    for (int s = 0; s < 3; s++) {
        Experts e = shape[s];
        Buf x = buf_new(e.t, e.n * e.nx, 0), idx = buf_new(DT_I64, e.n, 0), w = buf_new(e.t, e.e * e.nx * e.ny, 0),
            y = buf_new(e.t, e.n * e.ny, 0);
        Buf dw = buf_new(DT_F32, e.e * e.nx * e.ny, 0);
        buf_random(&x, 1, -1, 1), buf_random(&w, 2, -1, 1), buf_random(&idx, 4, 0, (double)e.e);
        Attr at[] = {attr_i(ATTR_TRANS_W, e.trans), attr_i(ATTR_NROWS, e.e)};
        int64_t w1 = e.trans ? e.ny : e.nx, w2 = e.trans ? e.nx : e.ny;
        Operand in[3] = {operand_of(&x, 2, e.n, e.nx, 0), operand_of(&idx, 1, e.n, 0, 0), operand_of(&w, 3, e.e, w1, w2)},
                out = operand_of(&y, 2, e.n, e.ny, 0);
        Operand back[3] = {in[0], in[1], out}, grad = operand_of(&dw, 3, e.e, w1, w2);
        Ready f, b;
        ready(&f, STEP(expert_matmul), OP_EXPERT_MATMUL, at, 2, in, 3, &out, 1);
        ready(&b, STEP(expert_matmul_grad), OP_EXPERT_MATMUL_GRAD, at, 2, back, 3, &grad, 1);
        run_once(&f, STEP(expert_matmul)), run_once(&b, STEP(expert_matmul_grad));
        clock_start();
        for (int i = 0; i < 5; i++) DO(cuda_expert_matmul(&f.k, &d));
        double forward = clock_ms() / 5;
        clock_start();
        for (int i = 0; i < 5; i++) DO(cuda_expert_matmul_grad(&b.k, &d));
        double backward = clock_ms() / 5, work = 2.0 * (double)e.n * (double)e.nx * (double)e.ny * 1e-9;
        printf("experts %s, %lld rows, %lld of %lld x %lld%s: %.3f ms %.1f TFLOP/s, gradient %.3f ms %.1f TFLOP/s\n",
               dtype_name(e.t), (long long)e.n, (long long)e.e, (long long)e.nx, (long long)e.ny, e.trans ? " transposed" : "",
               forward, work / forward, backward, work / backward);
        Buf *all[] = {&x, &idx, &w, &y, &dw, &f.scratch, &b.scratch};
        for (int i = 0; i < 7; i++) buf_free(all[i]);
    }
}

int main(int argc, char **argv) {
    device_start();
    struct { const char *name; void (*run)(void); } part[] = {{"head", head}, {"expert", expert}, {"speed", speed}};
    for (int i = 0; i < 3; i++) {
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], part[i].name) == 0;
        if (wanted) part[i].run();
        fflush(stdout);
    }
    DeviceError e;
    GPU(cudaMemcpy(&e, device.error, sizeof e, cudaMemcpyDeviceToHost));
    verdict(e.code == DEVICE_OK, "no index was refused", e.code);
    gemm_close(&device);
    printf("%s: %d checks passed, %d failed\n", nfail ? "FAIL" : "PASS", npass, nfail);
    return nfail != 0;
}
