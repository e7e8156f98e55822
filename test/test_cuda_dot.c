// The CUDA backend's matrix products in the emulation: dot, grouped products and the head against sums in float64 written here,
// on sizes that the op table's samples (test_cuda_ops) have not. (cuBLASLt and tensor cores need a GPU: test/gpu/gpu_gemm.c.)
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "backend/cuda/product/gemm.h"
#include "backend/cuda/kernels.h"
#include "base/containers.h"
#include "base/random.h"

enum { SEED = 7 };

static Device device;
static DeviceError device_error;

static void device_reset(void) {
    device_error = (DeviceError){0};
    device = (Device){.ordinal = -1, .nsm = 4, .error = &device_error, .key = "emulated"};
}

typedef Status (*Prepare)(Device *, const KernelArgs *, void **, Diag *);
static Status run(const KernelArgs *args, KernelFn kernel, Prepare prepare, Diag *d) {
    KernelArgs k = *args;
    device_reset();
    k.device = &device;
    Status s = prepare(&device, &k, &k.state, d);
    if (s == ST_OK) s = kernel(&k, d);
    gemm_close(&device);
    return s;
}

static Status run_dot(const KernelArgs *k, Diag *d) { return run(k, cuda_dot, cuda_dot_prepare, d); }
static Status run_expert(const KernelArgs *k, Diag *d) { return run(k, cuda_expert_matmul, cuda_expert_matmul_prepare, d); }
static Status run_expert_grad(const KernelArgs *k, Diag *d) {
    return run(k, cuda_expert_matmul_grad, cuda_expert_matmul_grad_prepare, d);
}

// ---- operands -------------------------------------------------------------------------------------------------------------
static float bf16_of(double v) {
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    u = (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u;
    memcpy(&f, &u, sizeof f);
    return f;
}

static double get(const Operand *o, int64_t i) {
    if (o->dtype == DT_I64) return (double)((const int64_t *)o->data)[i];
    if (o->dtype == DT_F32) return ((const float *)o->data)[i];
    uint32_t u = (uint32_t)((const uint16_t *)o->data)[i] << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void set(const Operand *o, int64_t i, double v) {
    float f = o->dtype == DT_BF16 ? bf16_of(v) : (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (o->dtype == DT_I64) ((int64_t *)o->data)[i] = (int64_t)v;
    else if (o->dtype == DT_F32) ((float *)o->data)[i] = f;
    else ((uint16_t *)o->data)[i] = (uint16_t)(u >> 16);
}

static int64_t numel(const Operand *o) {
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    return n;
}

// Exactly as many bytes as it needs: the sanitizer sees what is beyond. Filled with numbers in [-1, 1), or with 0xA5 as a result.
static Operand operand(DType t, int slot, int ndim, const int64_t *dim) {
    Operand o = {.dtype = t, .ndim = ndim, .sdim = -1};
    for (int i = 0; i < ndim; i++) o.dim[i] = o.global[i] = dim[i];
    size_t nbytes = (size_t)(numel(&o) * dtype_nbytes(t));
    o.data = aligned_alloc(64, (nbytes + 63) / 64 * 64 + 64);
    memset(o.data, 0xA5, nbytes);
    for (int64_t i = 0; slot >= 0 && i < numel(&o); i++) set(&o, i, 2 * random_uniform(SEED, slot, 0, i) - 1);
    return o;
}
#define OPERAND(t, slot, ...) \
    operand(t, slot, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})

// Half a unit in the last place of bf16, and float32 sums of k terms of about 1.
static void check(const Operand *o, int64_t i, double want, int64_t k, const char *what) {
    double got = get(o, i), tol = 1e-6 * (1 + (double)k) + fabs(want) * (o->dtype == DT_BF16 ? 1.0 / 256 : 1e-6);
    if (!(fabs(got - want) <= tol)) fail_msg("%s: element %lld is %.9g, not %.9g", what, (long long)i, got, want);
}

// ---- products -------------------------------------------------------------------------------------------------------------
typedef struct Pair {
    DType ab, cd;
} Pair;
static const Pair pairs[] = {{DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_BF16, DT_F32}};

// Every way of storing, every addition, sizes on both sides of a tile's: the loops and the kernel that replaces the library.
static void check_gemm(const Gemm *g, const char *what) {
    Operand a = OPERAND(g->ab, 0, g->batch * g->stride_a), b = OPERAND(g->ab, 1, g->batch * g->stride_b);
    Operand c = OPERAND(g->cd, 2, g->batch * g->stride_c), bias = OPERAND(g->cd, 3, g->n);
    Operand out[2] = {OPERAND(g->cd, -1, g->batch * g->stride_d), OPERAND(g->cd, -1, g->batch * g->stride_d)};
    Diag d = {0};
    GemmPlan *plan;
    device_reset();
    assert_int_equal(gemm_prepare(&device, g, a.data, b.data, c.data, out[0].data, NULL, &plan, &d), ST_OK);
    assert_int_equal(gemm_run(&device, plan, a.data, b.data, c.data, bias.data, out[0].data, NULL, &d), ST_OK);
    gemm_close(&device);
    SimtGemm s = gemm_simt_of(g, a.data, b.data, c.data, bias.data, out[1].data);
    gemm_simt_launch(NULL, g->ab == DT_BF16, g->cd == DT_BF16, &s);
    for (int64_t t = 0; t < g->batch; t++)
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                double sum = 0;
                for (int64_t k = 0; k < g->k; k++)
                    sum += get(&a, t * g->stride_a + (g->trans_a ? k * g->lda + i : i * g->lda + k)) *
                           get(&b, t * g->stride_b + (g->trans_b ? j * g->ldb + k : k * g->ldb + j));
                sum = g->alpha * sum + (g->beta != 0 ? g->beta * get(&c, t * g->stride_c + i * g->ldc + j) : 0);
                if (g->bias) sum += get(&bias, j);
                for (int v = 0; v < 2; v++) check(&out[v], t * g->stride_d + i * g->ldd + j, sum, g->k, what);
            }
    for (int v = 0; v < 2; v++) {  // between rows nothing is written
        uint8_t *p = out[v].data;
        for (int64_t j = g->n; j < g->ldd && g->m > 1; j++)
            for (int e = 0; e < dtype_nbytes(g->cd); e++) assert_int_equal(p[j * dtype_nbytes(g->cd) + e], 0xA5);
    }
    free(a.data), free(b.data), free(c.data), free(bias.data), free(out[0].data), free(out[1].data);
}

static void test_gemm(void **state) {
    (void)state;
    static const int64_t size[][3] = {{1, 1, 1}, {3, 5, 7}, {65, 1, 33}, {1, 70, 16}, {64, 64, 16}, {67, 130, 19}, {5, 6, 0}};
    for (size_t p = 0; p < 3; p++)
        for (size_t s = 0; s < sizeof size / sizeof *size; s++)
            for (int way = 0; way < 16; way++) {
                Gemm g = {.m = size[s][0],
                          .n = size[s][1],
                          .k = size[s][2],
                          .batch = way & 8 ? 3 : 1,
                          .trans_a = way & 1,
                          .trans_b = way & 2,
                          .ab = pairs[p].ab,
                          .cd = pairs[p].cd,
                          .alpha = way & 4 ? 0.75f : 1,
                          .beta = way & 4 ? 1 : 0,
                          .bias = way % 3 == 0};
                g.lda = (g.trans_a ? g.m : g.k) + way % 2 * 3, g.ldb = (g.trans_b ? g.k : g.n) + way % 2, g.ldc = g.n + 2,
                g.ldd = g.n + 1;
                g.stride_a = (g.trans_a ? g.k : g.m) * g.lda, g.stride_b = (g.trans_b ? g.n : g.k) * g.ldb;
                g.stride_c = g.m * g.ldc, g.stride_d = g.m * g.ldd;
                char what[128];
                snprintf(what, sizeof what, "%lldx%lldx%lld, way %d, %s -> %s", (long long)g.m, (long long)g.n, (long long)g.k,
                         way, dtype_name(g.ab), dtype_name(g.cd));
                check_gemm(&g, what);
            }
}

// dot's third operand, for results whose last dim is all of the product's columns, a part of them, or none.
static void check_added(Pair p, bool bias, int64_t k, int nfree_a, int nfree_b) {
    int64_t da[4] = {2}, db[4] = {2}, dout[4] = {2};  // one batch dim
    int na = 1, nb = 1, nd = 1;
    static const int64_t fa[] = {3}, fb[] = {4, 5};
    for (int i = 0; i < nfree_a; i++) da[na++] = dout[nd++] = fa[i];
    da[na++] = k;
    for (int i = 0; i < nfree_b; i++) db[nb++] = dout[nd++] = fb[i];
    db[nb++] = k;
    int64_t last = dout[nd - 1], m = nfree_a ? 3 : 1, n = nfree_b == 0 ? 1 : nfree_b == 1 ? 4 : 20;
    Operand in[3] = {operand(p.ab, 0, na, da), operand(p.ab, 1, nb, db),
                     bias ? OPERAND(p.cd, 2, last) : operand(p.cd, 2, nd, dout)};
    Operand out = operand(p.cd, -1, nd, dout);
    Attr attr[] = {attr_i(ATTR_NBATCH, 1), attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, 0), attr_i(ATTR_TRANS_B, 1),
                   attr_i(ATTR_BIAS, bias)};
    Node node = {.op = OP_DOT, .nin = 3, .nout = 1, .nattr = 5, .attr = attr};
    KernelArgs args = {.node = &node, .nin = 3, .nout = 1, .in = in, .out = &out};
    Diag d = {0};
    if (run_dot(&args, &d) != ST_OK) fail_msg("%s", d.text);
    for (int64_t t = 0; t < 2; t++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                int64_t at = (t * m + i) * n + j;
                double sum = get(&in[2], bias ? at % last : at);
                for (int64_t x = 0; x < k; x++) sum += get(&in[0], (t * m + i) * k + x) * get(&in[1], (t * n + j) * k + x);
                check(&out, at, sum, k, bias ? "dot with bias" : "dot added to c");
            }
    for (int i = 0; i < 3; i++) free(in[i].data);
    free(out.data);
}

static void test_added(void **state) {
    (void)state;
    for (size_t p = 0; p < 3; p++)
        for (int bias = 0; bias < 2; bias++)
            for (int64_t k = 0; k < 12; k += 11)
                for (int a = 0; a < 2; a++)
                    for (int b = 0; b < 3; b++) check_added(pairs[p], bias, k, a, b);
}

// Contractions in pieces: a weight's gradient, and everything that may be added.
static void test_pieces(void **state) {
    (void)state;
    static const int64_t piece[] = {8, 20, 42, 43};
    for (size_t i = 0; i < sizeof piece / sizeof *piece; i++) {
        dot_piece = piece[i];
        for (int bias = 0; bias < 2; bias++)
            for (int a = 0; a < 2; a++)
                for (int b = 0; b < 3; b++) check_added((Pair){DT_BF16, DT_F32}, bias, 43, a, b);
        Operand in[2] = {OPERAND(DT_BF16, 0, 43, 5), OPERAND(DT_BF16, 1, 43, 7)}, out = OPERAND(DT_F32, -1, 5, 7);
        Attr attr[] = {attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, 1)};
        Node node = {.op = OP_DOT, .nin = 2, .nout = 1, .nattr = 2, .attr = attr};
        KernelArgs args = {.node = &node, .nin = 2, .nout = 1, .in = in, .out = &out};
        Diag d = {0};
        if (run_dot(&args, &d) != ST_OK) fail_msg("%s", d.text);
        for (int64_t x = 0; x < 35; x++) {
            double sum = 0;
            for (int64_t k = 0; k < 43; k++) sum += get(&in[0], k * 5 + x / 7) * get(&in[1], k * 7 + x % 7);
            check(&out, x, sum, 43, "a weight's gradient in pieces");
        }
        free(in[0].data), free(in[1].data), free(out.data);
    }
    dot_piece = DOT_PIECE;
}

static void test_refused(void **state) {
    (void)state;
    Operand in[2] = {OPERAND(DT_F32, 0, 2, 3), OPERAND(DT_F32, 1, 3, 4)}, out = OPERAND(DT_BF16, -1, 2, 4);
    Node node = {.op = OP_DOT, .nin = 2, .nout = 1};
    KernelArgs args = {.node = &node, .nin = 2, .nout = 1, .in = in, .out = &out};
    Diag d = {0};
    assert_int_equal(run_dot(&args, &d), ST_UNSUPPORTED);
    assert_non_null(strstr(d.text, "bf16"));
    free(in[0].data), free(in[1].data), free(out.data);
}

// ---- experts --------------------------------------------------------------------------------------------------------------
// Enough rows for several chunks of the sort and several tiles of an expert; one expert has none, some rows have none.
static void check_expert(Pair p, bool trans, int64_t n, int64_t nexpert, int64_t nx, int64_t ny) {
    Operand in[3] = {OPERAND(p.ab, 0, n, nx), OPERAND(DT_I64, 1, n),
                     trans ? OPERAND(p.ab, 2, nexpert, ny, nx) : OPERAND(p.ab, 2, nexpert, nx, ny)};
    for (int64_t i = 0; i < n; i++) {
        int64_t e = (int64_t)(random_uniform(SEED, 5, 0, i) * (double)(nexpert + 2)) - 1;
        set(&in[1], i, (double)(e == 1 ? 0 : e));
    }
    Operand y = OPERAND(p.cd, -1, n, ny), g = OPERAND(p.ab, 3, n, ny);
    Operand dw = trans ? OPERAND(p.cd, -1, nexpert, ny, nx) : OPERAND(p.cd, -1, nexpert, nx, ny);
    Attr attr[] = {attr_i(ATTR_TRANS_W, trans), attr_i(ATTR_NROWS, nexpert)};
    Node node = {.op = OP_EXPERT_MATMUL, .nin = 3, .nout = 1, .nattr = 2, .attr = attr};
    KernelArgs args = {.node = &node, .nin = 3, .nout = 1, .in = in, .out = &y};
    args.scratch = malloc(cuda_expert_matmul_scratch(&node, in, &y));
    Diag d = {0};
    if (run_expert(&args, &d) != ST_OK) fail_msg("%s", d.text);
    free(args.scratch);
    Operand back[3] = {in[0], in[1], g};
    node.op = OP_EXPERT_MATMUL_GRAD, args.in = back, args.out = &dw;
    args.scratch = malloc(cuda_expert_matmul_grad_scratch(&node, back, &dw));
    if (run_expert_grad(&args, &d) != ST_OK) fail_msg("%s", d.text);
    free(args.scratch);
    double *sum = calloc((size_t)(nexpert * nx * ny) + 1, sizeof *sum);
    for (int64_t i = 0; i < n; i++) {
        int64_t e = (int64_t)get(&in[1], i);
        for (int64_t j = 0; j < ny; j++) {
            double v = 0;
            for (int64_t k = 0; k < nx && e >= 0 && e < nexpert; k++) {
                int64_t at = trans ? (e * ny + j) * nx + k : (e * nx + k) * ny + j;
                v += get(&in[0], i * nx + k) * get(&in[2], at);
                sum[at] += get(&in[0], i * nx + k) * get(&g, i * ny + j);
            }
            check(&y, i * ny + j, v, nx, "expert_matmul");
        }
    }
    for (int64_t i = 0; i < nexpert * nx * ny; i++) check(&dw, i, sum[i], n, "expert_matmul_grad");
    free(sum), free(y.data), free(g.data), free(dw.data);
    for (int i = 0; i < 3; i++) free(in[i].data);
}

static void test_expert(void **state) {
    (void)state;
    for (size_t p = 0; p < 3; p++)
        for (int trans = 0; trans < 2; trans++) {
            check_expert(pairs[p], trans, 2600, 5, 6, 3);
            check_expert(pairs[p], trans, 70, 3, 8, 66);
            check_expert(pairs[p], trans, 0, 3, 4, 4);
            check_expert(pairs[p], trans, 9, 3, 0, 4);
            check_expert(pairs[p], trans, 5, 0, 4, 4);
        }
}

// ---- head -----------------------------------------------------------------------------------------------------------------
typedef struct HeadCase {
    DType t;
    int64_t n, d, v;
    double scale, cap;
} HeadCase;

// The logits that the kernels see are rounded to the operands' type, and so are their gradients.
static void head_logits(const HeadCase *c, const Operand *h, const Operand *w, int64_t i, double *z) {
    for (int64_t j = 0; j < c->v; j++) {
        double s = 0;
        for (int64_t k = 0; k < c->d; k++) s += get(h, i * c->d + k) * get(w, j * c->d + k);
        s *= c->scale;
        if (c->t == DT_BF16) s = bf16_of(s);
        z[j] = c->cap > 0 ? c->cap * tanh(s / c->cap) : s;
    }
}


static void check_near(const Operand *o, int64_t i, double want, double tol, const char *what) {
    if (!(fabs(get(o, i) - want) <= tol)) fail_msg("%s[%lld] is %.9g, not %.9g", what, (long long)i, get(o, i), want);
}

static void check_head_results(const HeadCase *c, const Operand *in, const Operand *lse, const Operand *pick, const Operand *dh,
                               const Operand *dw) {
    double *z = calloc((size_t)c->v + 1, sizeof *z), *want = calloc((size_t)(c->v * c->d) + 1, sizeof *want);
    double eps = c->t == DT_BF16 ? 1.0 / 128 : 1e-5;  // one logit may round the other way than here
    for (int64_t i = 0; i < c->n; i++) {
        head_logits(c, &in[0], &in[1], i, z);
        double sum = 0, l;
        int64_t at = (int64_t)get(&in[2], i);
        for (int64_t j = 0; j < c->v; j++) sum += exp(z[j]);
        l = log(sum);
        check_near(lse, i, l, eps * (1 + fabs(l)) / 4, "lse");
        check_near(pick, i, z[at], eps * (1 + fabs(z[at])), "pick");
        for (int64_t j = 0; j < c->v; j++) {
            double dz = exp(z[j] - l) * get(&in[3], i) + (j == at ? get(&in[4], i) : 0);
            z[j] = dz * (c->cap > 0 ? 1 - z[j] / c->cap * z[j] / c->cap : 1);
        }
        for (int64_t k = 0; k < c->d; k++) {
            double s = 0;
            for (int64_t j = 0; j < c->v; j++) {
                s += c->scale * z[j] * get(&in[1], j * c->d + k);
                want[j * c->d + k] += c->scale * z[j] * get(&in[0], i * c->d + k);
            }
            check_near(dh, i * c->d + k, s, eps * 3, "dh");
        }
    }
    for (int64_t i = 0; i < c->v * c->d; i++) check_near(dw, i, want[i], eps * (1 + sqrt((double)c->n)), "dw");
    free(z), free(want);
}

static void check_head(HeadCase c) {
    Operand in[5] = {OPERAND(c.t, 0, c.n, c.d), OPERAND(c.t, 1, c.v, c.d), OPERAND(DT_I64, 2, c.n), OPERAND(DT_F32, 3, c.n),
                     OPERAND(DT_F32, 4, c.n)};
    for (int64_t i = 0; i < c.n; i++) set(&in[2], i, floor(random_uniform(SEED, 9, 0, i) * (double)c.v));
    Operand out[4] = {OPERAND(DT_F32, -1, c.n), OPERAND(DT_F32, -1, c.n), OPERAND(c.t, -1, c.n, c.d),
                      OPERAND(DT_F32, -1, c.v, c.d)};
    Attr attr[] = {attr_f(ATTR_SCALE, c.scale), attr_f(ATTR_SOFTCAP, c.cap)};
    Node node = {.op = OP_DOT, .nin = 5, .nout = 4, .nattr = 2, .attr = attr};
    KernelArgs args = {.node = &node, .nin = 5, .nout = 4, .in = in, .out = out};
    args.scratch = aligned_alloc(64, cuda_head_scratch(&node, in, out));
    Diag d = {0};
    if (run(&args, cuda_head, cuda_head_prepare, &d) != ST_OK) fail_msg("%s", d.text);
    assert_int_equal(device_error.code, DEVICE_OK);
    check_head_results(&c, in, &out[0], &out[1], &out[2], &out[3]);
    // The same in two.
    Operand rows[2] = {OPERAND(DT_F32, -1, c.n), OPERAND(DT_F32, -1, c.n)},
            grads[2] = {OPERAND(c.t, -1, c.n, c.d), OPERAND(DT_F32, -1, c.v, c.d)};
    args.out = rows;
    if (run(&args, cuda_head_fwd, cuda_head_fwd_prepare, &d) != ST_OK) fail_msg("%s", d.text);
    Operand six[6] = {in[0], in[1], in[2], rows[0], in[3], in[4]};
    args.in = six, args.out = grads;
    if (run(&args, cuda_head_grad, cuda_head_grad_prepare, &d) != ST_OK) fail_msg("%s", d.text);
    check_head_results(&c, in, &rows[0], &rows[1], &grads[0], &grads[1]);
    free(args.scratch);
    for (int i = 0; i < 5; i++) free(in[i].data);
    for (int i = 0; i < 4; i++) free(out[i].data);
    for (int i = 0; i < 2; i++) free(rows[i].data), free(grads[i].data);
}

static void test_head(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_BF16};
    for (int t = 0; t < 2; t++) {
        check_head((HeadCase){types[t], 9, 5, 37, 1, 0});
        check_head((HeadCase){types[t], 6, 8, 64, 0.25, 0});
        check_head((HeadCase){types[t], 7, 4, 19, 2, 1.5});
        check_head((HeadCase){types[t], 3, 4, 1, 1, 0});
        check_head((HeadCase){types[t], 0, 4, 9, 1, 0});
    }
}

// An index outside the vocabulary is recorded with its value.
static void test_head_index(void **state) {
    (void)state;
    Operand in[3] = {OPERAND(DT_F32, 0, 2, 3), OPERAND(DT_F32, 1, 5, 3), OPERAND(DT_I64, 2, 2)};
    Operand out[2] = {OPERAND(DT_F32, -1, 2), OPERAND(DT_F32, -1, 2)};
    set(&in[2], 0, 4), set(&in[2], 1, 5);
    Node node = {.op = OP_DOT, .nin = 3, .nout = 2};
    KernelArgs args = {.node = &node, .id = 17, .nin = 3, .nout = 2, .in = in, .out = out};
    args.scratch = aligned_alloc(64, cuda_head_scratch(&node, in, out));
    Diag d = {0};
    assert_int_equal(run(&args, cuda_head_fwd, cuda_head_fwd_prepare, &d), ST_OK);
    assert_int_equal(device_error.code, DEVICE_INDEX_RANGE);
    assert_int_equal(device_error.node, 17);
    assert_int_equal(device_error.value, 5);
    assert_int_equal(device_error.limit, 5);
    free(args.scratch);
    for (int i = 0; i < 3; i++) free(in[i].data);
    for (int i = 0; i < 2; i++) free(out[i].data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),       cmocka_unit_test(test_added),  cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_expert), cmocka_unit_test(test_head),
        cmocka_unit_test(test_head_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
