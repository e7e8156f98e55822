// Device models: every shipped file loads and is listed; files that are wrong are refused with file, key and reason; what is saved
// loads as the same; and more work never takes less time.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "ir/build.h"
#include "plan/plan.h"

static Arena *arena;
static int setup(void **state) { return (void)state, (arena = arena_new()) ? 0 : -1; }
static int teardown(void **state) { return (void)state, arena_free(arena), 0; }

static char *shipped_text(const char *name) {
    FILE *f = fopen(arena_printf(arena, TEST_DATA "/../../src/plan/devices/%s.json", name), "rb");
    assert_non_null(f);
    char *text = arena_alloc(arena, 1 << 16);
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    assert_true(n > 0 && n < (1 << 16) - 1);
    fclose(f);
    return text;
}

static void test_shipped(void **state) {
    (void)state;
    int nfile = 0, n = 0;
    DIR *dir = opendir(TEST_DATA "/../../src/plan/devices");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) nfile += strstr(e->d_name, ".json") != NULL;
    closedir(dir);
    for (; device_model_at(n); n++) {
        const DeviceModel *m = device_model_at(n), *from_file;
        Diag d = {0};
        char *text = shipped_text(m->name);
        assert_int_equal(device_model_parse(arena, m->name, text, (int64_t)strlen(text), &from_file, &d), ST_OK);
        assert_ptr_equal(device_model_find(m->name), m);
        assert_true(from_file->mem_bandwidth == m->mem_bandwidth);
        assert_true(strlen(m->source) > 20);
        if (!m->measured) assert_int_not_equal(strncmp(m->source, "measured", 8), 0);
        if (strcmp(m->name, "cpu")) assert_true(m->mem_nbytes > 1e9 && m->host_mem_nbytes > 1e9);
    }
    assert_int_equal(n, nfile);
    assert_null(device_model_find("tpu"));
    assert_string_equal(device_model_of("NVIDIA H100 80GB HBM3")->name, "h100");
    assert_string_equal(device_model_of("NVIDIA H200")->name, "h200");
    assert_null(device_model_of("NVIDIA L4"));
}

// The h100's text with one piece replaced must be refused, and the error must hold `says`.
static void refused(const char *from, const char *to, const char *says) {
    Diag d = {0};
    const DeviceModel *m;
    char *text = shipped_text("h100"), *at = strstr(text, from);
    if (!at) fail_msg("h100.json has no %s", from);
    char *bad = arena_printf(arena, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    if (device_model_parse(arena, "bad.json", bad, (int64_t)strlen(bad), &m, &d) != ST_INPUT) fail_msg("%s was taken", to);
    if (!strstr(d.text, "bad.json") || !strstr(d.text, says)) fail_msg("%s: the error is: %s", to, d.text);
}

static void test_bad_files(void **state) {
    (void)state;
    refused("{", "[", "bad.json:");
    refused("\"autosp_device\": 1", "\"autosp_device\": 2", "no device model");
    refused("\"units\": 132,", "", "units: is missing");
    refused("\"units\": 132", "\"units\": \"132\"", "units: must be a number");
    refused("\"units\": 132", "\"units\": 0", "units: 0 is not between 1");
    refused("\"units\": 132", "\"units\": -1e400", "bad.json");
    refused("\"units\": 132", "\"unit\": 132", "unknown key \"unit\"");
    refused("\"units\": 132", "\"units\": 132, \"units\": 1", "duplicate");
    refused("\"memory_bandwidth\": 3.0e12", "\"memory_bandwidth\": 1e31", "memory_bandwidth");
    refused("\"name\": \"h100\"", "\"name\": \"h 100\"", "name: must be a name");
    refused("\"about\": \"NVIDIA", "\"about\": \"\\u001b[31m", "about: has a control character");
    refused("\"about\": \"NVIDIA", "\"about\": \"\\u0000", "bad.json");
    refused("\"backend\": \"cuda\"", "\"backend\": \"tpu\"", "there are cpu and cuda");
    refused("\"measured\": true", "\"measured\": 1", "measured: must be true or false");
    refused("\"nt\"", "\"tt\"", "products.bf16: has an unknown key \"tt\"");
    refused("[1e9, 4e9, 1.7e10", "[1e9, 1e9, 1.7e10", "products.bf16.nt: flops[1] is not larger");
    refused("[200e12, 450e12", "[200e12, 450e15", "more work would take less time");
    refused("[200e12, 450e12", "[200e12", "6 sizes, but 5 rates");
    refused("[200e12, 450e12", "[200e12, null", "products.bf16.nt.rate[1]: must be a number");
    refused("[200e12, 450e12", "[200e12, 0", "products.bf16.nt.rate[1]: 0 is not between");
    refused("\"head\": 64", "\"head\": 64.5", "attention[0]: head must be a whole number");
    refused("\"head\": 64", "\"head\": 1e9", "attention[0]: head must be a whole number");
    refused("\"attention\": [", "\"attention\": [3, ", "attention[0]: must be an object");
    refused("\"fused\": 1.04", "\"fusd\": 1.04", "there is no op \"fusd\"");
    refused("\"fused\": 1.04", "\"fused\": 9", "efficiency.fused");
    refused("\"other\": 0.9, ", "", "needs \"other\"");
    Diag d = {0};
    const DeviceModel *m;
    assert_int_equal(device_model_load(arena, "/nowhere/x.json", &m, &d), ST_IO);
    assert_non_null(strstr(d.text, "/nowhere/x.json"));
    diag_clear(&d);
    assert_int_equal(device_model_load(arena, "/", &m, &d), ST_IO);
    diag_clear(&d);
    assert_int_equal(device_model_load(arena, "/dev/zero", &m, &d), ST_INPUT);
    assert_non_null(strstr(d.text, "larger than 1 MiB"));
}

// Every prefix of a good file, and every byte of its head replaced: refused or taken, never worse.
static void test_broken_text(void **state) {
    (void)state;
    char *text = shipped_text("cpu");
    int64_t n = (int64_t)strlen(text);
    for (int64_t i = 0; i < n; i++) {
        Arena *a = arena_new();
        Diag d = {0};
        const DeviceModel *m;
        if (i + 2 < n) assert_int_equal(device_model_parse(a, "cut", text, i, &m, &d), ST_INPUT);
        diag_clear(&d);
        char old = text[i];
        text[i] = "{}[]\",:0-e\x01z"[i % 12];
        Status st = device_model_parse(a, "changed", text, n, &m, &d);
        assert_true(st == ST_OK || st == ST_INPUT);
        text[i] = old;
        arena_free(a);
    }
}

static bool same_curve(const RateCurve *a, const RateCurve *b) {
    if (a->n != b->n) return false;
    for (int i = 0; i < a->n; i++)
        if (a->at[i] != b->at[i] || a->rate[i] != b->rate[i]) return false;
    return true;
}

static void test_save(void **state) {
    (void)state;
    char path[] = "/tmp/autosp-device-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; device_model_at(i); i++) {
        const DeviceModel *m = device_model_at(i), *back;
        Diag d = {0};
        if (device_model_save(m, 1, (const char *const[]){"a \"note\""}, path, &d) != ST_OK) fail_msg("%s", d.text);
        if (device_model_load(arena, path, &back, &d) != ST_OK) fail_msg("%s", d.text);
        assert_string_equal(back->name, m->name);
        assert_string_equal(back->source, m->source);
        assert_true(back->mem_nbytes == m->mem_nbytes && back->host_latency_s == m->host_latency_s && back->tile == m->tile);
        assert_int_equal(back->nattention, m->nattention);
        for (int k = 0; k < m->nattention; k++) {
            assert_true(same_curve(&back->attention[k].forward, &m->attention[k].forward));
            assert_true(same_curve(&back->attention[k].backward, &m->attention[k].backward));
        }
        for (int t = 0; t < PRODUCT_NTYPE; t++)
            for (int f = 0; f < PRODUCT_NFORM; f++) assert_true(same_curve(&back->product[t][f], &m->product[t][f]));
        assert_memory_equal(back->efficiency, m->efficiency, sizeof m->efficiency);
    }
    unlink(path);
}

// ---- lookup ----------------------------------------------------------------------------------------------------------------
static void assert_rises(const RateCurve *c) {
    double last = 0;
    assert_true(rate_at(c, 0) == c->rate[0] && rate_at(c, 1e30) == c->rate[c->n - 1]);
    for (int i = 0; i < c->n; i++) assert_true(fabs(rate_at(c, c->at[i]) / c->rate[i] - 1) < 1e-12);
    for (double size = c->at[0] / 8; size < 8 * c->at[c->n - 1]; size *= 1.07) {
        double t = size / rate_at(c, size);
        assert_true(t > last);
        last = t;
    }
}

static void test_curves(void **state) {
    (void)state;
    for (int i = 0; device_model_at(i); i++) {
        const DeviceModel *m = device_model_at(i);
        for (int f = 0; f < PRODUCT_NFORM; f++) assert_rises(&m->product[PRODUCT_F32][f]);
        for (int f = 0; f < PRODUCT_NFORM && m->product[PRODUCT_BF16][0].n; f++) assert_rises(&m->product[PRODUCT_BF16][f]);
        for (int k = 0; k < m->nattention; k++) assert_rises(&m->attention[k].forward), assert_rises(&m->attention[k].backward);
    }
    RateCurve none = {0}, two = {2, {1, 4}, {10, 20}};
    assert_true(rate_at(&none, 5) == 0);
    assert_true(fabs(rate_at(&two, 2) - 10 * sqrt(2)) < 1e-12);  // half way between 1 and 4, as sizes go
}

static void test_waves(void **state) {
    (void)state;
    DeviceModel m = {.units = 132, .tile = 128};
    assert_true(product_wave_part(&m, 1, 128 * 132, 128, 4096) == 1);
    assert_true(fabs(product_wave_part(&m, 1, 128 * 133, 128, 512) - 133.0 / 264) < 1e-12);  // too short to be split
    assert_true(product_wave_part(&m, 1, 128 * 133, 128, 1 << 16) > 0.8);                    // split
    assert_true(fabs(product_wave_part(&m, 132, 64, 128, 512) - 0.5) < 1e-12);               // half of each tile is empty
    assert_true(product_wave_part(device_model_cpu(), 1, 7, 9, 11) == 1);
}

// Seconds of a product [rows, k] x [n, k]^T.
static double dot_seconds(const DeviceModel *m, int64_t rows, int64_t n, int64_t k, DType t) {
    Attr attr[] = {attr_i(ATTR_NBATCH, 0), attr_i(ATTR_NCONTRACT, 1), attr_i(ATTR_TRANS_A, 0), attr_i(ATTR_TRANS_B, 1)};
    Node node = {.op = OP_DOT, .nin = 2, .nout = 1, .nattr = 4, .attr = attr};
    Operand in[2] = {{.dtype = t, .ndim = 2, .sdim = -1, .dim = {rows, k}}, {.dtype = t, .ndim = 2, .sdim = -1, .dim = {n, k}}};
    Operand out = {.dtype = t, .ndim = 2, .sdim = -1, .dim = {rows, n}};
    Cost c = {0};
    op_info(OP_DOT)->cost(&node, in, &out, &c);
    return cost_seconds(m, &node, in, &out, &c);
}

static void test_products(void **state) {
    (void)state;
    const DeviceModel *h100 = device_model_h100();
    double t = dot_seconds(h100, 32768, 8192, 2048, DT_BF16), flops = 2.0 * 32768 * 8192 * 2048;
    assert_true(flops / t > 780e12 && flops / t < 870e12);  // 825 as measured in the step
    assert_true(dot_seconds(h100, 32768, 8192, 2048, DT_F32) > 10 * t);
    double thin = dot_seconds(h100, 1 << 20, 8, 64, DT_BF16);  // bound by memory
    assert_true(thin >= (double)((1 << 20) * 72 * 2) / h100->mem_bandwidth);
    for (int i = 0; device_model_at(i); i++) {
        double last = 0;
        for (int64_t rows = 128; rows <= 1 << 20; rows *= 2) {
            double s = dot_seconds(device_model_at(i), rows, 2048, 2048, DT_BF16);
            assert_true(s > 0 && s >= last * (1 - 1e-9));
            last = s;
        }
    }
}

static const Instr causal_instr[] = {
    {PROG_INDEX_Q, DT_I64, -1, -1, -1, 0}, {PROG_INDEX_K, DT_I64, -1, -1, -1, 0}, {PROG_OP + OP_LE, DT_BOOL, 1, 0, -1, 0}};
static const Program causal = {.ninstr = 3, .instr = causal_instr, .nout = 2, .out = (const int32_t[]){2, -1}};

static double attention_seconds(const DeviceModel *m, OpKind op, int64_t len, int64_t head) {
    bool grad = op == OP_ATTENTION_GRAD;
    Attr attr[] = {attr_f(ATTR_SCALE, 1), attr_prog(ATTR_PROG, &causal)};
    Node node = {.op = op, .nin = grad ? 6 : 3, .nout = grad ? 3 : 2, .nattr = 2, .attr = attr};
    Operand q = {.dtype = DT_BF16, .ndim = 4, .sdim = -1, .dim = {1, 32, len, head}, .global = {1, 32, len, head}}, k = q, lse = q;
    k.dim[1] = k.global[1] = 8;
    lse.dtype = DT_F32, lse.ndim = 3;
    Operand in[6] = {q, k, k, q, lse, q}, out[3] = {q, grad ? k : lse, k};
    Cost c = {0};
    op_info(op)->cost(&node, in, out, &c);
    assert_true(fabs(attention_length(&node, in, &c) / ((double)len + 128) - 1) < 0.1);
    return cost_seconds(m, &node, in, out, &c);
}

static void test_attention(void **state) {
    (void)state;
    // 16 layers at 32,768 tokens as profiled (docs/performance.md): 157.5 ms forward, 460.5 ms backward
    const DeviceModel *h100 = device_model_h100();
    assert_true(fabs(16 * attention_seconds(h100, OP_ATTENTION, 32768, 64) / 0.1575 - 1) < 0.05);
    assert_true(fabs(16 * attention_seconds(h100, OP_ATTENTION_GRAD, 32768, 64) / 0.4605 - 1) < 0.05);
    for (int i = 0; device_model_at(i); i++)
        for (int64_t head = 32; head <= 256; head *= 2) {
            double last = 0;
            for (int64_t len = 256; len <= 1 << 20; len *= 2) {
                double f = attention_seconds(device_model_at(i), OP_ATTENTION, len, head);
                double b = attention_seconds(device_model_at(i), OP_ATTENTION_GRAD, len, head);
                assert_true(f > last && b > f);
                last = f;
            }
        }
}

static void test_exchange(void **state) {
    (void)state;
    DeviceModel m = {.mem_bandwidth = 1e9, .link_bandwidth = 1e6, .link_latency_s = 3, .kernel_latency_s = 0.5};
    assert_true(fabs(exchange_seconds(&m, 2e6, 1e6, 4e9, 2, true) - (2 + 3 + 4 + 1)) < 1e-9);
    assert_true(fabs(exchange_seconds(&m, 0, 0, 1e9, 1, false) - 1.5) < 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shipped),  cmocka_unit_test(test_bad_files), cmocka_unit_test(test_broken_text),
        cmocka_unit_test(test_save),     cmocka_unit_test(test_curves),    cmocka_unit_test(test_waves),
        cmocka_unit_test(test_products), cmocka_unit_test(test_attention), cmocka_unit_test(test_exchange),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
