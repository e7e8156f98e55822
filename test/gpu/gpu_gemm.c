// Matrix products on a GPU: right against sums in float64, beyond 2^31 elements, equal from run to run, and how fast.
//   gpu_gemm [check] [big] [long] [speed]      all without arguments
#include "gemm_util.h"

typedef struct Case {
    int64_t m, n, k, batch;
    int pad;    // beyond the leading dims' least
    int skip;   // elements that operands lie behind an aligned address
} Case;
typedef enum Kind { PLAIN, ADD, ADD_IN_PLACE, BIAS, BIAS_AND_ADD, SCALED, NKIND } Kind;
static const DType pair[][2] = {{DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_BF16, DT_F32}};

static Gemm gemm_of(const Case *c, int p, int trans, Kind kind) {
    Gemm g = {.m = c->m,
              .n = c->n,
              .k = c->k,
              .batch = c->batch,
              .trans_a = trans & 1,
              .trans_b = trans & 2,
              .ab = pair[p][0],
              .cd = pair[p][1],
              .alpha = kind == SCALED ? 0.125f : 1,
              .beta = kind == ADD || kind == ADD_IN_PLACE || kind == BIAS_AND_ADD,
              .bias = kind == BIAS || kind == BIAS_AND_ADD};
    g.lda = (g.trans_a ? g.m : g.k) + c->pad, g.ldb = (g.trans_b ? g.k : g.n) + c->pad, g.ldc = g.ldd = g.n + c->pad;
    g.stride_a = (g.trans_a ? g.k : g.m) * g.lda, g.stride_b = (g.trans_b ? g.n : g.k) * g.ldb,
    g.stride_c = g.stride_d = g.m * g.ldd;
    return g;
}

// One element's exact value and what an ideal device may be off by.
typedef struct Exact {
    int64_t k;
    double sum, square, absolute, lo, hi;  // lo, hi: of the sums on the way
} Exact;

static void exact_add(Exact *x, double v) {
    x->k++, x->sum += v, x->square += v * v, x->absolute += fabs(v);
    x->lo = fmin(x->lo, x->sum), x->hi = fmax(x->hi, x->sum);
}

// What tensor cores lose. They take 16 products of bf16 at a time: those and the accumulator are aligned to the largest exponent,
// cut off two bits below its 24th, added, and the sum is cut to 24 bits, always towards zero (Fasi, Higham, Mikaitis, Pranesh,
// "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330, 2021; H100: Khattak, Mikaitis, arXiv:2512.07004). With R the most
// that a part of the sum comes to, one unit of its 24 bits is at most 2^-23 R, so a slab of 16 loses 2^-24 R on average for the
// sum and 2^-26 R for each product; the latter cancel but for the share by which products agree in sign. Losses add up, linear in
// k; what is random about them (a third of a unit a slab) adds up as the root. This model, run on the host, gives the ratios to a
// root-only limit that an H100 gave, in three digits: 2.56, 3.12 (k = 8192), 1.35, 1.14 (2048), 276 (128256), 56 (32768); it
// stays below a third of this limit.
static double truncation(const Exact *x) {
    double slabs = ceil((double)x->k / 16), agree = x->absolute > 0 ? fabs(x->sum) / x->absolute : 0;
    return (x->hi - x->lo) * (slabs * (0x1p-24 + 0x1p-22 * agree) + 8 * sqrt(slabs) * 0x1p-23);
}

// bf16 results that have something added are rounded twice by some of cuBLASLt's kernels: in place, the product before c is
// added; with a bias, what there is before it (a kernel of its own where columns are odd). Each rounding may be off by half a
// unit, 2^-8 of what is rounded. Under a limit with one rounding only such results failed, 35 of them, and with the very ratios,
// in three digits, that bf16(bf16(p) + c), bf16(bf16(p) + bias) and bf16(bf16(p + c) + bias) have on the host. c from elsewhere
// (ADD) is added before rounding.
static double first_rounding(const Gemm *g, double product, double c, bool in_place) {
    if (g->cd != DT_BF16 || !(g->bias || in_place)) return 0;
    return fabs(product + (g->bias ? c : 0)) / 256;
}

static double element_error(const Gemm *g, const Buf *a, const Buf *b, const double *c, bool in_place, const Buf *bias,
                            double got, int64_t t, int64_t i, int64_t j) {
    Exact x = {0};
    for (int64_t k = 0; k < g->k; k++)
        exact_add(&x, a->host[t * g->stride_a + (g->trans_a ? k * g->lda + i : i * g->lda + k)] *
                          b->host[t * g->stride_b + (g->trans_b ? j * g->ldb + k : k * g->ldb + j)]);
    double product = g->alpha * x.sum, old = g->beta != 0 ? c[t * g->stride_c + i * g->ldc + j] : 0;
    double add = old + (g->bias ? bias->host[j] : 0);
    double more = first_rounding(g, product, old, in_place) + (g->ab == DT_BF16 ? fabs(g->alpha) * truncation(&x) : 0);
    return error_beyond(got, product + add, g->cd, g->k, sqrt(x.square) * fabs(g->alpha) + fabs(add), more);
}

static int nsimt, nproduct;
static void check_case(const Case *c, int p, int trans, Kind kind) {
    Gemm g = gemm_of(c, p, trans, kind);
    Buf a = buf_new(g.ab, g.batch * g.stride_a, c->skip), b = buf_new(g.ab, g.batch * g.stride_b, c->skip),
        bias = buf_new(g.cd, g.n, 0);
    Buf old = buf_new(g.cd, g.batch * g.stride_c, c->skip), out = buf_new(g.cd, g.batch * g.stride_d, c->skip),
        ws = buf_new(DT_F32, GEMM_WORKSPACE_NBYTES / 4, 0);
    buf_random(&a, 1, -1, 1), buf_random(&b, 2, -1, 1), buf_random(&bias, 3, -1, 1), buf_random(&old, 4, -1, 1);
    const void *from = g.beta == 0 ? NULL : kind == ADD_IN_PLACE ? out.dev : old.dev;
    GemmPlan *plan;
    DO(gemm_prepare(&device, &g, a.dev, b.dev, from, out.dev, ws.dev, &plan, &d));
    device_wait();
    buf_write(&out, old.host);
    DO(gemm_run(&device, plan, a.dev, b.dev, from, g.bias ? bias.dev : NULL, out.dev, ws.dev, &d));
    device_wait();
    buf_read(&out);
    nproduct++, nsimt += gemm_tuning(plan)->simt;
    double worst = 0;
    int64_t numel = g.batch * g.m * g.n, step = numel > 4000 ? numel / 2000 | 1 : 1;
    for (int64_t e = 0; e < numel; e += step) {
        int64_t t = e / (g.m * g.n), i = e / g.n % g.m, j = e % g.n;
        worst = fmax(worst, element_error(&g, &a, &b, old.host, kind == ADD_IN_PLACE, &bias,
                                          out.host[t * g.stride_d + i * g.ldd + j], t, i, j));
    }
    for (int64_t i = 0; i < g.batch * g.m; i++)  // nothing is written between rows
        for (int64_t j = g.n; j < g.ldd; j++) worst = out.host[i * g.ldd + j] == old.host[i * g.ldd + j] ? worst : INFINITY;
    char what[200];
    snprintf(what, sizeof what, "%lldx%lldx%lld batch %lld pad %d skip %d %s->%s trans %d kind %d%s", (long long)g.m,
             (long long)g.n, (long long)g.k, (long long)g.batch, c->pad, c->skip, dtype_name(g.ab), dtype_name(g.cd), trans, kind,
             gemm_tuning(plan)->simt ? " (simt)" : "");
    verdict(worst <= 1, what, worst);
    buf_free(&a), buf_free(&b), buf_free(&bias), buf_free(&old), buf_free(&out), buf_free(&ws);
}

static void check(void) {
    static const Case small[] = {{1, 1, 1, 1, 0, 0},      {1, 300, 257, 1, 0, 0},  {300, 1, 257, 1, 0, 0}, {1, 1, 5000, 1, 0, 0},
                                 {128, 256, 64, 1, 0, 0}, {131, 67, 259, 1, 0, 0}, {130, 66, 130, 1, 0, 0}, {8, 8, 8, 3, 0, 0},
                                 {33, 7, 5, 3, 0, 0},     {64, 72, 40, 2, 8, 0},   {65, 72, 40, 2, 3, 1},  {40, 48, 0, 1, 0, 0}};
    for (size_t s = 0; s < sizeof small / sizeof *small; s++)
        for (int p = 0; p < 3; p++)
            for (int trans = 0; trans < 4; trans++)
                for (int kind = 0; kind < NKIND; kind++) check_case(&small[s], p, trans, kind);
    static const Case large[] = {
        {2048, 512, 8192, 1, 0, 0}, {1000, 1000, 1000, 1, 0, 0}, {512, 768, 2048, 3, 0, 8}};  // timed; splits
    for (size_t s = 0; s < sizeof large / sizeof *large; s++)
        for (int p = 0; p < 3; p++)
            for (int trans = 0; trans < 4; trans++)
                check_case(&large[s], p, trans, trans == 3 ? ADD_IN_PLACE : trans == 2 ? BIAS : PLAIN);
    printf("products: %d checked, %d of them without the library\n", nproduct, nsimt);
}

// ---- more than 2^31 elements: [32768, 128256] -----------------------------------------------------------------------------
static void big(void) {
    enum { S = 32768, V = 128256, K = 64, SAMPLES = 300 };
    Buf a = buf_new(DT_BF16, (int64_t)S * K, 0), b = buf_new(DT_BF16, (int64_t)V * K, 0), x = buf_new(DT_BF16, (int64_t)S * V, 0);
    Buf y = buf_new(DT_F32, (int64_t)S * K, 0), z = buf_new(DT_F32, (int64_t)V * K, 0),
        ws = buf_new(DT_F32, GEMM_WORKSPACE_NBYTES / 4, 0);
    buf_random(&a, 1, -1, 1), buf_random(&b, 2, -1, 1);
    Gemm up = {.m = S,
               .n = V,
               .k = K,
               .batch = 1,
               .trans_b = true,
               .lda = K,
               .ldb = K,
               .ldc = V,
               .ldd = V,
               .ab = DT_BF16,
               .cd = DT_BF16,
               .alpha = 1};
    Gemm down = {
        .m = S, .n = K, .k = V, .batch = 1, .lda = V, .ldb = K, .ldc = K, .ldd = K, .ab = DT_BF16, .cd = DT_F32, .alpha = 1};
    Gemm back = {.m = V,
                 .n = K,
                 .k = S,
                 .batch = 1,
                 .trans_a = true,
                 .lda = V,
                 .ldb = K,
                 .ldc = K,
                 .ldd = K,
                 .ab = DT_BF16,
                 .cd = DT_F32,
                 .alpha = 1};
    GemmPlan *p[3];
    DO(gemm_prepare(&device, &up, a.dev, b.dev, NULL, x.dev, ws.dev, &p[0], &d));
    DO(gemm_prepare(&device, &down, x.dev, b.dev, NULL, y.dev, ws.dev, &p[1], &d));
    DO(gemm_prepare(&device, &back, x.dev, a.dev, NULL, z.dev, ws.dev, &p[2], &d));
    DO(gemm_run(&device, p[0], a.dev, b.dev, NULL, NULL, x.dev, ws.dev, &d));
    DO(gemm_run(&device, p[1], x.dev, b.dev, NULL, NULL, y.dev, ws.dev, &d));
    DO(gemm_run(&device, p[2], x.dev, a.dev, NULL, NULL, z.dev, ws.dev, &d));
    device_wait();
    double worst = 0;
    for (int64_t s = 0; s < SAMPLES; s++) {
        int64_t i = s == 0 ? S - 1 : s * 109 % S, j = s == 0 ? V - 1 : s * 7919 % V;
        worst = fmax(worst, element_error(&up, &a, &b, NULL, false, NULL, buf_at(&x, i * V + j), 0, i, j));
    }
    verdict(worst <= 1, "a result of more than 2^32 elements", worst);
    uint16_t *line = malloc(sizeof *line * V);
    for (int r = 0; r < 2; r++) {  // a row of x against y, a column against z
        worst = 0;
        for (int64_t s = 0; s < 12; s++) {
            int64_t i = r == 0 ? S - 1 - s * 2731 : V - 1 - s * 10687, n = r == 0 ? V : S;
            if (r == 0) GPU(cudaMemcpy(line, (uint16_t *)x.dev + i * V, sizeof *line * V, cudaMemcpyDeviceToHost));
            else GPU(cudaMemcpy2D(line, 2, (uint16_t *)x.dev + i, 2 * (size_t)V, 2, S, cudaMemcpyDeviceToHost));
            for (int64_t c = 0; c < K; c += 9) {
                Exact x1 = {0};
                for (int64_t k = 0; k < n; k++)
                    exact_add(&x1, bits_get(line, DT_BF16, k) * (r == 0 ? b.host : a.host)[k * K + c]);
                double got = buf_at(r == 0 ? &y : &z, i * K + c);
                worst = fmax(worst, error_beyond(got, x1.sum, DT_F32, n, sqrt(x1.square), truncation(&x1)));
            }
        }
        verdict(worst <= 1, r == 0 ? "an operand of more than 2^32 elements" : "a transposed operand of more than 2^32 elements",
                worst);
    }
    free(line);
    buf_free(&a), buf_free(&b), buf_free(&x), buf_free(&y), buf_free(&z), buf_free(&ws);
}

// ---- contractions that dot cuts -------------------------------------------------------------------------------------------
// A weight's gradient over a million tokens, all products of one sign on the diagonal: lost is what is lost in pieces.
static void longest(void) {
    enum { M = 64, K = (1 << 20) + 24 };
    Buf x = buf_new(DT_BF16, (int64_t)K * M, 0), y = buf_new(DT_F32, M * M, 0),
        ws = buf_new(DT_F32, GEMM_WORKSPACE_NBYTES / 4, 0);
    buf_random(&x, 1, -1, 1);
    Attr attr[] = {attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, 1)};
    Node node = {.op = OP_DOT, .nin = 2, .nout = 1, .nattr = 2, .attr = attr};
    Operand in[] = {operand_of(&x, 2, K, M, 0), operand_of(&x, 2, K, M, 0)}, out = operand_of(&y, 2, M, M, 0);
    KernelArgs k = {.node = &node, .nin = 2, .nout = 1, .in = in, .out = &out, .scratch = ws.dev, .device = &device};
    DO(cuda_dot_prepare(&device, &k, &k.state, &d));
    for (int i = 0; i < 2; i++) DO(cuda_dot(&k, &d));
    device_wait();
    buf_read(&y);
    double worst = 0, most = 0;
    for (int64_t e = 0; e < M * M; e += e % (M + 1) == 0 ? 1 : M) {  // the diagonal and what is beside it
        Exact all = {0}, piece = {0};
        for (int64_t r = 0; r < K; r++) {
            double v = x.host[r * M + e / M] * x.host[r * M + e % M];
            exact_add(&all, v);
            if (r < DOT_PIECE) exact_add(&piece, v);
        }
        double lost = truncation(&piece) * ceil((double)K / DOT_PIECE);
        worst = fmax(worst, error_beyond(y.host[e], all.sum, DT_F32, K, sqrt(all.square), lost));
        if (e % (M + 1) == 0) most = fmax(most, fabs(y.host[e] - all.sum) / all.sum);
    }
    printf("contraction of %d, cut: relative error of sums of squares %.2e\n", K, most);
    verdict(worst <= 1 && most < 1.5e-3, "a contraction that is cut", worst);
    buf_free(&x), buf_free(&y), buf_free(&ws);
}

// ---- speed: Llama-3.2-1B, 32768 tokens ------------------------------------------------------------------------------------
static void time_product(const char *name, const Gemm *g) {
    Buf a = buf_new(g->ab, g->m * g->k, 0), b = buf_new(g->ab, g->n * g->k, 0), out = buf_new(g->cd, g->m * g->n, 0);
    Buf ws = buf_new(DT_F32, GEMM_WORKSPACE_NBYTES / 4, 0);
    // Numbers: of zeros or NaN the card would draw less power and run faster.
    Buf noise = buf_new(g->ab, 1 << 20, 0);
    buf_random(&noise, 5, -1, 1);
    Buf *fill[2] = {&a, &b};
    for (int f = 0; f < 2; f++)
        for (int64_t i = 0; i < fill[f]->n; i += noise.n) {
            int64_t n = fill[f]->n - i < noise.n ? fill[f]->n - i : noise.n;
            GPU(cudaMemcpy((char *)fill[f]->dev + i * dtype_nbytes(g->ab), noise.dev, (size_t)(n * dtype_nbytes(g->ab)),
                           cudaMemcpyDeviceToDevice));
        }
    GPU(cudaMemset(out.dev, 0, (size_t)(out.n * dtype_nbytes(g->cd))));
    GPU(cudaDeviceSynchronize());
    GemmPlan *p;
    DO(gemm_prepare(&device, g, a.dev, b.dev, g->beta != 0 ? out.dev : NULL, out.dev, ws.dev, &p, &d));
    const GemmTuning *t = gemm_tuning(p);
    int n = 10;
    clock_start();
    for (int i = 0; i < n; i++) DO(gemm_run(&device, p, a.dev, b.dev, out.dev, NULL, out.dev, ws.dev, &d));
    double ms = clock_ms() / n, flops = 2.0 * (double)g->m * (double)g->n * (double)g->k;
    // The same bits again?
    bool same = true;
    if (g->beta == 0) {
        buf_read(&out);
        uint64_t seen = 0, again = 0;
        for (int64_t i = 0; i < out.n; i += 97) seen = seen * 31 + (uint64_t)(int64_t)(out.host[i] * 1e6);
        DO(gemm_run(&device, p, a.dev, b.dev, NULL, NULL, out.dev, ws.dev, &d));
        device_wait();
        buf_read(&out);
        for (int64_t i = 0; i < out.n; i += 97) again = again * 31 + (uint64_t)(int64_t)(out.host[i] * 1e6);
        same = seen == again;
        verdict(same, "a product is the same when run again", 0);
    }
    printf(
        "%-16s %6lld x %6lld x %6lld %4s->%-4s %8.3f ms %6.1f TFLOP/s; tuned: first %8.1f us, best %8.1f us of %d, split %d%s\n",
        name, (long long)g->m, (long long)g->n, (long long)g->k, dtype_name(g->ab), dtype_name(g->cd), ms, flops / ms * 1e-9,
        (double)t->first_us, (double)t->best_us, t->ncandidate, t->splitk,
        t->simt         ? " SIMT"
        : t->from_cache ? " (cached)"
                        : "");
    fflush(stdout);
    buf_free(&a), buf_free(&b), buf_free(&out), buf_free(&ws), buf_free(&noise);
}

static void time_linear(const char *name, int64_t s, int64_t k, int64_t n, float beta_w) {
    char what[64];
    Gemm f = {.m = s,
              .n = n,
              .k = k,
              .batch = 1,
              .trans_b = true,
              .lda = k,
              .ldb = k,
              .ldc = n,
              .ldd = n,
              .ab = DT_BF16,
              .cd = DT_BF16,
              .alpha = 1};
    Gemm x = {
        .m = s, .n = k, .k = n, .batch = 1, .lda = n, .ldb = k, .ldc = k, .ldd = k, .ab = DT_BF16, .cd = DT_BF16, .alpha = 1};
    Gemm w = {.m = n,
              .n = k,
              .k = s,
              .batch = 1,
              .trans_a = true,
              .lda = n,
              .ldb = k,
              .ldc = k,
              .ldd = k,
              .ab = DT_BF16,
              .cd = DT_F32,
              .alpha = 1,
              .beta = beta_w};
    snprintf(what, sizeof what, "%s fwd", name), time_product(what, &f);
    snprintf(what, sizeof what, "%s dx", name), time_product(what, &x);
    snprintf(what, sizeof what, "%s dw%s", name, beta_w != 0 ? "+=" : ""), time_product(what, &w);
}

static void speed(void) {
    time_linear("q, o", 32768, 2048, 2048, 0);
    time_linear("k, v", 32768, 2048, 512, 0);
    time_linear("gate, up", 32768, 2048, 8192, 0);
    time_linear("down", 32768, 8192, 2048, 0);
    time_linear("head 2048", 2048, 2048, 128256, 1);
    time_linear("head 4096", 4096, 2048, 128256, 1);
    Gemm f = {.m = 8192,
              .n = 2048,
              .k = 2048,
              .batch = 1,
              .trans_b = true,
              .lda = 2048,
              .ldb = 2048,
              .ldc = 2048,
              .ldd = 2048,
              .ab = DT_F32,
              .cd = DT_F32,
              .alpha = 1};
    time_product("float32", &f);
}

int main(int argc, char **argv) {
    device_start();
    struct {
        const char *name;
        void (*run)(void);
    } part[] = {{"check", check}, {"big", big}, {"long", longest}, {"speed", speed}};
    for (int i = 0; i < 4; i++) {
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], part[i].name) == 0;
        if (wanted) part[i].run();
        fflush(stdout);
    }
    gemm_close(&device);
    printf("%s: %d checks passed, %d failed\n", nfail ? "FAIL" : "PASS", npass, nfail);
    return nfail != 0;
}
