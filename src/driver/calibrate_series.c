#include "driver/calibrate_series.h"

#include <math.h>
#include <string.h>

// ---- sizes: each about four times the work of the one before
// -------------------------------------------------------------------
static const int64_t product_size[][3] = {
    // rows, columns, contracted
    {64, 64, 64},       {128, 128, 64},     {256, 128, 128},    {256, 256, 256},     {512, 512, 256},     {1024, 512, 512},
    {1024, 1024, 1024}, {2048, 2048, 1024}, {4096, 2048, 2048}, {16384, 2048, 2048}, {32768, 2048, 4096}, {32768, 8192, 4096},
};
static const int64_t attention_size[] = {128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
static const int64_t memory_size[][2] = {
    // rows, width
    {16, 256}, {64, 256}, {256, 256}, {1024, 256}, {1024, 1024}, {4096, 1024}, {8192, 2048}, {32768, 2048}, {32768, 8192},
};
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
_Static_assert(sizeof product_size / sizeof *product_size <= MAX_SIZES, "sizes of products");

// Enough heads to fill a GPU at short lengths; fewer at long ones, where they would only take time.
static int64_t heads_of(const Series *s, int size) { return s->gpu && attention_size[size] <= 32768 ? 32 : 8; }
static bool is_grad(const Series *s) { return s->op == OP_ATTENTION_GRAD; }

double series_work(const Series *s, int size) {
    if (s->kind == SERIES_PRODUCT) {
        const int64_t *n = product_size[size];
        return 2.0 * (double)n[0] * (double)n[1] * (double)n[2];
    }
    if (s->kind == SERIES_MEMORY) return 12.0 * (double)memory_size[size][0] * (double)memory_size[size][1];
    double len = (double)attention_size[size];
    return (is_grad(s) ? 5 : 2) * len * len * s->head * (double)heads_of(s, size);
}

int64_t series_nbytes(const Series *s, int size) {
    if (s->kind == SERIES_PRODUCT) {
        const int64_t *n = product_size[size];
        return 8 * (n[0] * n[1] + n[1] * n[2] + n[0] * n[2]);
    }
    if (s->kind == SERIES_MEMORY) return 16 * memory_size[size][0] * memory_size[size][1];
    return 64 * attention_size[size] * s->head * heads_of(s, size);
}

// ---- graphs
// ------------------------------------------------------------------------------------------------------------------
static int build_product(const Series *s, int size, Bench *x) {
    int64_t m = product_size[size][0], n = product_size[size][1], k = product_size[size][2];
    bool ta = s->form == PRODUCT_TN, tb = s->form == PRODUCT_NT;
    ValueId in[] = {bench_random(x, s->type, ta ? SHAPE(k, m) : SHAPE(m, k)),
                    bench_random(x, s->type, tb ? SHAPE(n, k) : SHAPE(k, n))};
    Attr attr[] = {attr_i(ATTR_NBATCH, 0), attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, ta), attr_i(ATTR_TRANS_B, tb),
                   attr_i(ATTR_DTYPE, DT_F32)};
    return bench_node(x, OP_DOT, 2, in, s->type == DT_BF16 && ta ? 5 : 4, attr);
}

// Causal; with one key hidden from every query (but from its own) it is no band any more.
static const Instr mask_instr[] = {
    {PROG_INDEX_Q, DT_I64, -1, -1, -1, 0}, {PROG_INDEX_K, DT_I64, -1, -1, -1, 0},   {PROG_OP + OP_LE, DT_BOOL, 1, 0, -1, 0},
    {PROG_CONST, DT_I64, -1, -1, -1, 3},   {PROG_OP + OP_NE, DT_BOOL, 1, 3, -1, 0}, {PROG_OP + OP_AND, DT_BOOL, 2, 4, -1, 0},
};
static const Program causal = {.ninstr = 3, .instr = mask_instr, .nout = 2, .out = (const int32_t[]){2, -1}};
static const Program pierced = {.ninstr = 6, .instr = mask_instr, .nout = 2, .out = (const int32_t[]){5, -1}};

static int build_attention(const Series *s, int size, Bench *x) {
    int64_t len = attention_size[size], heads = heads_of(s, size), kv = heads / 4;
    Shape q = SHAPE(1, heads, len, s->head), k = SHAPE(1, kv, len, s->head);
    Attr attr[] = {attr_f(ATTR_SCALE, 1 / sqrt((double)s->head)), attr_prog(ATTR_PROG, s->any_mask ? &pierced : &causal)};
    ValueId in[6] = {bench_random(x, s->type, q), bench_random(x, s->type, k), bench_random(x, s->type, k)};
    if (!is_grad(s)) return bench_node(x, OP_ATTENTION, 3, in, 2, attr);
    build_multi(&x->b, OP_ATTENTION, 3, in, 2, attr, 2, in + 3);
    in[5] = bench_random(x, s->type, q);
    return bench_node(x, OP_ATTENTION_GRAD, 6, in, 2, attr);
}

static int build_memory(const Series *s, int size, Bench *x) {
    int64_t rows = memory_size[size][0], width = memory_size[size][1], dims[] = {1, 0, 2}, last = 1;
    if (s->op == OP_PERMUTE) {  // [S, heads, 64] -> [heads, S, 64]
        ValueId v = bench_random(x, DT_F32, SHAPE(rows, width / 64, 64));
        Attr attr = attr_ints(ATTR_DIMS, 3, dims);
        return bench_node(x, OP_PERMUTE, 1, &v, 1, &attr);
    }
    ValueId in[] = {bench_random(x, DT_F32, SHAPE(rows, width)), NO_VALUE};
    Attr attr = attr_ints(ATTR_DIMS, 1, &last);
    if (s->op == OP_SUM) return bench_node(x, OP_SUM, 1, in, 1, &attr);
    in[1] = bench_random(x, DT_F32, SHAPE(rows, width));
    return bench_node(x, OP_ADD, 2, in, 0, NULL);
}

int series_build(const Series *s, int size, Bench *x) {
    if (s->kind == SERIES_PRODUCT) return build_product(s, size, x);
    return s->kind == SERIES_ATTENTION ? build_attention(s, size, x) : build_memory(s, size, x);
}

void series_take(Series *s, Arena *a, int size, const Measure *m) {
    double work = s->kind == SERIES_MEMORY ? m->nbytes : m->flops;
    double at = s->kind == SERIES_ATTENTION ? m->length : work;
    Point *p = &s->point[s->npoint++];
    *p = (Point){.size = at, .seconds = m->seconds, .rate = work / m->seconds, .index = size};
    if (s->kind == SERIES_ATTENTION) p->kernel = arena_strdup(a, m->kernel);
    s->best_rate = fmax(s->best_rate, p->rate);
}

// ---- the list
// ------------------------------------------------------------------------------------------------------------------
static void add_products(Series *s, int *n, DType t) {
    static const char *const text[2][PRODUCT_NFORM] = {{"product f32 x w^T", "product f32 x w", "product f32 x^T y"},
                                                       {"product bf16 x w^T", "product bf16 x w", "product bf16 x^T y, f32"}};
    for (int f = 0; f < PRODUCT_NFORM; f++)
        s[(*n)++] = (Series){.kind = SERIES_PRODUCT,
                             .type = t,
                             .form = (ProductForm)f,
                             .text = text[t == DT_BF16][f],
                             .nsize = COUNT(product_size)};
}

static void add_attention(Series *s, int *n, DType t, int head, bool any_mask, const char *forward, const char *backward) {
    for (int g = 0; g < 2; g++)
        s[(*n)++] = (Series){.kind = SERIES_ATTENTION,
                             .type = t,
                             .head = head,
                             .any_mask = any_mask,
                             .text = g ? backward : forward,
                             .op = g ? OP_ATTENTION_GRAD : OP_ATTENTION,
                             .nsize = COUNT(attention_size)};
}

// On a GPU small sizes are launches and little else, and libraries take up to a second to prepare each new shape.
static void start_large(Series *s) {
    if (s->kind == SERIES_PRODUCT) s->next = 6;  // 2e9 FLOPs
    if (s->kind == SERIES_MEMORY) s->next = 5;
    if (s->kind != SERIES_ATTENTION) return;
    s->next = s->any_mask || s->type == DT_F32 ? 5 : 3;  // 4,096; 1,024
    if (s->any_mask) s->step = 3;                        // 4,096 and 32,768
    if (s->type == DT_F32) s->nsize = s->next + 1;       // the portable kernel: once
}

int series_list(const Backend *b, Series s[MAX_SERIES]) {
    int n = 0;
    bool bf16 = (b->features & BACKEND_BF16) != 0;
    static const struct {
        OpKind op;
        const char *text;
    } memory[] = {{OP_ADD, "add f32"}, {OP_PERMUTE, "permute f32"}, {OP_SUM, "sum f32"}};
    add_products(s, &n, DT_F32);
    if (bf16) add_products(s, &n, DT_BF16);
    add_attention(s, &n, DT_F32, 64, false, "attention f32, head 64", "attention_grad f32, head 64");
    if (!bf16) add_attention(s, &n, DT_F32, 128, false, "attention f32, head 128", "attention_grad f32, head 128");
    if (bf16) {
        add_attention(s, &n, DT_BF16, 64, false, "attention bf16, head 64", "attention_grad bf16, head 64");
        add_attention(s, &n, DT_BF16, 128, false, "attention bf16, head 128", "attention_grad bf16, head 128");
        add_attention(s, &n, DT_BF16, 64, true, "any mask bf16, head 64", "any mask grad bf16, head 64");
        add_attention(s, &n, DT_BF16, 128, true, "any mask bf16, head 128", "any mask grad bf16, head 128");
    }
    for (int i = 0; i < COUNT(memory); i++)
        s[n++] = (Series){
            .kind = SERIES_MEMORY, .type = DT_F32, .op = memory[i].op, .text = memory[i].text, .nsize = COUNT(memory_size)};
    for (int i = 0; i < n; i++) {
        s[i].gpu = b->device && b->device->capture_begin;  // not the emulated one
        s[i].step = 1;
        if (s[i].gpu) start_large(&s[i]);
    }
    return n;
}

// ---- rates
// ---------------------------------------------------------------------------------------------------------------------
static double rounded(double v) {
    double unit = pow(10, floor(log10(v)) - 3);
    return round(v / unit) * unit;
}

// A curve must say that more work takes more time: where a smaller size took as long (noise, or nothing but latency), it is
// left out.
static RateCurve curve_of(int n, const Point *p, double latency, const DeviceModel *waves) {
    RateCurve c = {0};
    for (int i = 0; i < n && c.n < DEVICE_POINTS; i++) {
        double rate = p[i].rate * p[i].seconds / fmax(p[i].seconds - latency, p[i].seconds / 4);
        const int64_t *shape = product_size[p[i].index];
        double part = waves ? product_wave_part(waves, 1, (double)shape[0], (double)shape[1], (double)shape[2]) : 1;
        double size = rounded(p[i].size / part);
        rate = rounded(rate / part);
        while (c.n > 0 && (size <= c.at[c.n - 1] || size / rate <= 1.001 * c.at[c.n - 1] / c.rate[c.n - 1])) c.n--;
        c.at[c.n] = size;
        c.rate[c.n++] = rate;
    }
    return c;
}

static AttentionRates *table_of(DeviceModel *m, const char *kernel, int head) {
    for (int i = 0; i < m->nattention; i++)
        if (m->attention[i].head == head && !strcmp(m->attention[i].kernel, kernel)) return &m->attention[i];
    if (m->nattention == DEVICE_ATTENTION) return NULL;
    m->attention[m->nattention] = (AttentionRates){.kernel = kernel, .head = head};
    return &m->attention[m->nattention++];
}

static void take_attention(const Series *s, DeviceModel *m) {
    AttentionRates *t = s->npoint > 0 ? table_of(m, s->point[s->npoint - 1].kernel, s->head) : NULL;
    if (!t) return;
    RateCurve c = curve_of(s->npoint, s->point, m->kernel_latency_s, NULL);
    *(is_grad(s) ? &t->backward : &t->forward) = c;
}

// What a copy reaches is what adding reaches; other ops are parts of it.
static void take_memory(const Series *s, DeviceModel *m) {
    if (s->npoint == 0) return;
    double rate = 0;
    const Point *last = &s->point[s->npoint - 1];
    rate = rounded(last->rate * last->seconds / fmax(last->seconds - m->kernel_latency_s, last->seconds / 4));
    if (s->op == OP_ADD) m->mem_bandwidth = rate, m->efficiency[OP_FUSED] = 1;
    else m->efficiency[s->op] = rounded(fmin(rate / m->mem_bandwidth, 4));
}

void series_rates(int n, const Series *s, DeviceModel *m) {
    DeviceModel waves = *m;
    for (int i = 0; i < n; i++) {
        ProductType t = s[i].type == DT_BF16 ? PRODUCT_BF16 : PRODUCT_F32;
        if (s[i].kind == SERIES_PRODUCT)
            m->product[t][s[i].form] = curve_of(s[i].npoint, s[i].point, m->kernel_latency_s, &waves);
        if (s[i].kind == SERIES_ATTENTION) take_attention(&s[i], m);
        if (s[i].kind == SERIES_MEMORY) take_memory(&s[i], m);
    }
}
