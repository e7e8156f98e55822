// Tensors of more than 2^31 elements: sources, movement, sums, scans, embedding, against closed forms; and what all such tests
// share.
#include <stdlib.h>
#include <string.h>
#include "base/random.h"
#include "ops_bench.h"

enum { SEED = 77, STREAM = 5, PROBES = 3000 };
double bench_source(int64_t i) { return random_uniform(SEED, 0, STREAM, i); }

BenchOp bench_op(OpKind op, int nin, const Operand *in, Operand out, int nattr, const Attr *attr) {
    BenchOp o = {.op = op, .nin = nin, .nout = 1, .nattr = nattr, .out = {out}, .run_seed = SEED};
    if (nin) memcpy(o.in, in, sizeof *in * (size_t)nin);
    if (nattr) memcpy(o.attr, attr, sizeof *attr * (size_t)nattr);
    return o;
}

bool bench_random(Bench *b, const Operand *o) {
    BenchOp random = bench_op(OP_RANDOM, 0, NULL, *o, ATTRS(I(SEED, STREAM)));
    return bench_run(b, &random, 1, NULL);
}

bool bench_iota(Bench *b, const Operand *o, int dim, int64_t start, int64_t step) {
    BenchOp iota = bench_op(OP_IOTA, 0, NULL, *o, ATTRS(I(DIM, dim), I(START, start), I(STEP, step)));
    return bench_run(b, &iota, 1, NULL);
}

bool bench_write(Bench *b, const Operand *o, int64_t (*at)(int64_t i, const int64_t *ctx), const int64_t *ctx) {
    Diag d = {0};
    int64_t n = bench_numel(o), *x = malloc((size_t)n * sizeof *x);
    CHECK(x && o->dtype == DT_I64, "out of memory");
    for (int64_t i = 0; i < n; i++) x[i] = at(i, ctx);
    Status st = b->api->write(b->dev, o->data, x, (size_t)n * sizeof *x, &d);
    free(x);
    if (st != ST_OK) bench_fail(b, "%s", d.text);
    return st == ST_OK;
}

bool bench_read(Bench *b, void *to, const Operand *o, int64_t at, int64_t n) {
    Diag d = {0};
    size_t each = (size_t)dtype_nbytes(o->dtype);
    bool ok = b->api->read(b->dev, to, (char *)o->data + (size_t)at * each, (size_t)n * each, &d) == ST_OK;
    if (!ok) bench_fail(b, "%s", d.text);
    return ok;
}

void bench_pass(Bench *b, const char *what, int64_t n) {
    fprintf(b->report, "PASS %s: %lld elements\n", what, (long long)n);
    fflush(b->report);
}

void bench_probe(Bench *b, const char *what, const Operand *o, BenchWant *want, const int64_t *ctx) {
    int64_t n = bench_numel(o);
    for (int i = 0; i < PROBES; i++) {
        int64_t at = i < 64 ? i : i < 128 ? n - 1 - (i - 64) : (int64_t)(random_uniform(3, 0, 0, i) * (double)n);
        if (at < 0 || at >= n) continue;
        unsigned char bytes[8];
        if (!bench_read(b, bytes, o, at, 1)) return;
        double got = o->dtype == DT_I64 ? (double)*(int64_t *)bytes : o->dtype == DT_F32 ? (double)*(float *)bytes : bytes[0];
        double w = want(at, ctx), tol = o->dtype == DT_F32 ? 1e-5 * (w < 0 ? -w : w) : 0;
        if (got - w <= tol && w - got <= tol) continue;
        bench_fail(b, "%s: element %lld is %.9g, not %.9g", what, (long long)at, got, w);
        return;
    }
    bench_pass(b, what, n);
}

// ctx: rows, columns and more of the source [rows, cols] of random numbers.
static double want_source(int64_t at, const int64_t *c) { return bench_source(at); }
static double want_transposed(int64_t at, const int64_t *c) { return bench_source(at % c[0] * c[1] + at / c[0]); }
static double want_slice(int64_t at, const int64_t *c) { return bench_source(at / (c[1] - 1) * c[1] + 1 + at % (c[1] - 1)); }
static double want_iota(int64_t at, const int64_t *c) { return (double)(at / c[1]); }
static double want_cumsum(int64_t at, const int64_t *c) { return (double)(at / c[1]) * (double)(at % c[1] + 1); }
static int64_t index_at(int64_t i, const int64_t *c) { return (int64_t)(random_uniform(1, 0, 0, i) * (double)c[0]); }
static double want_embedded(int64_t at, const int64_t *c) { return bench_source(index_at(at / c[1], c) * c[1] + at % c[1]); }
static double want_row_sum(int64_t at, const int64_t *c) {
    double sum = 0;
    for (int64_t j = 0; j < c[1]; j++) sum += bench_source(at * c[1] + j);
    return sum;
}
static double want_column_sum(int64_t at, const int64_t *c) {
    double sum = 0;
    if (at % 97 != 0) return -1;  // few: each is long
    for (int64_t j = 0; j < c[0]; j++) sum += bench_source(j * c[1] + at);
    return sum;
}

static void large_floats(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, 2, c);
    if (!bench_random(b, &x)) return;
    bench_probe(b, "random f32", &x, want_source, c);
    size_t used = b->used;
    BenchOp o = bench_op(OP_PERMUTE, OPERANDS(x), bench_tensor(b, DT_F32, DIMS_OF(cols, rows)), ATTRS(INTS(DIMS, 1, 0)));
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "permute f32", &o.out[0], want_transposed, c);
    b->used = used;
    o = bench_op(OP_SLICE, OPERANDS(x), bench_tensor(b, DT_F32, DIMS_OF(rows, cols - 1)),
                 ATTRS(I(DIM, 1), I(START, 1), I(STEP, 1), I(LENGTH, cols - 1)));
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "slice f32, odd rows", &o.out[0], want_slice, c);
    b->used = used;
    o = bench_op(OP_SUM, OPERANDS(x), bench_tensor(b, DT_F32, DIMS_OF(rows, 1)), ATTRS(INTS(DIMS, 1)));
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "sum of rows f32", &o.out[0], want_row_sum, c);
}

static void large_columns(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, 2, c), sums = bench_tensor(b, DT_F32, 2, (int64_t[]){1, cols});
    BenchOp o = bench_op(OP_SUM, OPERANDS(x), sums, ATTRS(INTS(DIMS, 0)));
    if (!bench_random(b, &x) || !bench_run(b, &o, 1, NULL)) return;
    float *have = malloc((size_t)cols * sizeof *have);
    CHECK(have, "out of memory");
    bool ok = bench_read(b, have, &sums, 0, cols);
    for (int64_t j = 0; j < cols && ok; j += 97) {
        double w = want_column_sum(j, c);
        ok = have[j] - w <= 1e-5 * w && w - have[j] <= 1e-5 * w;
        if (!ok) bench_fail(b, "sum of columns f32: column %lld is %.9g, not %.9g", (long long)j, (double)have[j], w);
    }
    if (ok) bench_pass(b, "sum of columns f32", rows * cols);
    free(have);
}

static void large_ints(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_I64, 2, c), y = bench_tensor(b, DT_I64, 2, c);
    if (!bench_iota(b, &x, 0, 0, 1)) return;
    bench_probe(b, "iota i64", &x, want_iota, c);
    BenchOp o = bench_op(OP_CUMSUM, OPERANDS(x), y, ATTRS(I(DIM, 1)));
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "cumsum i64", &y, want_cumsum, c);
}

static void large_rows(Bench *b, int64_t tokens, int64_t cols) {
    const int64_t c[] = {50000, cols};
    bench_reset(b);
    Operand table = bench_tensor(b, DT_F32, 2, c), idx = bench_tensor(b, DT_I64, 1, &tokens);
    if (!bench_random(b, &table) || !bench_write(b, &idx, index_at, c)) return;
    BenchOp o = bench_op(OP_EMBEDDING, OPERANDS(table, idx), bench_tensor(b, DT_F32, DIMS_OF(tokens, cols)), 0, NULL);
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "embedding f32", &o.out[0], want_embedded, c);
}

void bench_large(Bench *b, double scale) {
    int64_t rows = (int64_t)(65549 * scale) + 3, tokens = (int64_t)(1050001 * scale) + 3;
    large_floats(b, rows, 32771);
    large_columns(b, rows, 32772);
    large_ints(b, (int64_t)(2100001 * scale) + 3, 1027);
    large_rows(b, tokens, 2052);
    bench_large_index(b, scale);
    bench_large_lines(b, scale);
    bench_large_attention(b, scale);
}
