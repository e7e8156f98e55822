// Reading and writing by index where tensors have more than 2^31 elements. Contexts of closed forms: rows, columns.
#include <stdlib.h>
#include <string.h>
#include "ops_bench.h"

// Columns in reverse; rows in reverse.
static double want_mirrored(int64_t at, const int64_t *c) { return bench_source(at / c[1] * c[1] + c[1] - 1 - at % c[1]); }
static double want_upside_down(int64_t at, const int64_t *c) { return bench_source((c[0] - 1 - at / c[1]) * c[1] + at % c[1]); }
static double want_folded(int64_t at, const int64_t *c) { return bench_source(at) + want_mirrored(at, c); }

static void large_gather(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, 2, c), index = bench_tensor(b, DT_I64, 2, c), out = bench_tensor(b, DT_F32, 2, c);
    BenchOp down = bench_op(OP_GATHER, OPERANDS(x, index), out, ATTRS(I(DIM, 0)));
    BenchOp across = bench_op(OP_GATHER, OPERANDS(x, index), out, ATTRS(I(DIM, 1)));
    BenchOp add = bench_op(OP_SCATTER_ADD, OPERANDS(x, index, x), out, ATTRS(I(DIM, 1)));
    if (!bench_random(b, &x) || !bench_iota(b, &index, 0, rows - 1, -1)) return;
    if (bench_run(b, &down, 1, NULL)) bench_probe(b, "gather f32, rows", &out, want_upside_down, c);
    if (!bench_iota(b, &index, 1, cols - 1, -1)) return;
    if (bench_run(b, &across, 1, NULL)) bench_probe(b, "gather f32, columns", &out, want_mirrored, c);
    if (bench_run(b, &add, 1, NULL)) bench_probe(b, "scatter_add f32", &out, want_folded, c);
}

static int64_t class_at(int64_t i, const int64_t *c) { return i * 7 % c[1]; }
static double want_class(int64_t at, const int64_t *c) { return bench_source(at * c[1] + class_at(at, c)); }

static void large_pick(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, 2, c), index = bench_tensor(b, DT_I64, 1, &rows), out = bench_tensor(b, DT_F32, 1, &rows);
    BenchOp o = bench_op(OP_PICK, OPERANDS(x, index), out, 0, NULL);
    if (!bench_random(b, &x) || !bench_write(b, &index, class_at, c)) return;
    if (bench_run(b, &o, 1, NULL)) bench_probe(b, "pick f32", &out, want_class, c);
}

// ---- rows of tables -------------------------------------------------------------------------------------------------------

enum { FEW = 5000 };  // rows of a small table
static int64_t backwards(int64_t i, const int64_t *c) { return c[0] - 1 - i; }
static int64_t few_at(int64_t i, const int64_t *c) { return i % FEW; }
static double want_few(int64_t at, const int64_t *c) {
    double sum = 0;
    for (int64_t i = at / c[1]; i < c[0]; i += FEW) sum += bench_source(i * c[1] + at % c[1]);
    return sum;
}
// Rows 0, 0, 2, 2, 4, ... from the last row of the source to its first; odd ones stay.
static int64_t even_at(int64_t i, const int64_t *c) { return (c[0] - 1 - i) / 2 * 2; }
static double want_last(int64_t at, const int64_t *c) { return at / c[1] % 2 ? bench_source(at) : want_upside_down(at, c); }
static double want_all(int64_t at, const int64_t *c) {
    int64_t t = at / c[1];
    if (t % 2) return bench_source(at);
    return bench_source(at) + want_upside_down(at, c) + (t + 1 < c[0] ? want_upside_down(at + c[1], c) : 0);
}

// Twice the same bits.
static void check_again(Bench *b, const char *what, const BenchOp *o) {
    int64_t n = bench_numel(&o->out[0]);
    float *x[2] = {malloc((size_t)n * sizeof(float)), malloc((size_t)n * sizeof(float))};
    CHECK(x[0] && x[1], "out of memory");
    bool ok = true;
    for (int i = 0; i < 2 && ok; i++) ok = bench_run(b, o, 1, NULL) && bench_read(b, x[i], &o->out[0], 0, n);
    if (ok && memcmp(x[0], x[1], (size_t)n * sizeof(float))) bench_fail(b, "%s differs when it runs again", what);
    else if (ok) bench_pass(b, what, n);
    free(x[0]), free(x[1]);
}

static void large_tables(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_F32, 2, c), index = bench_tensor(b, DT_I64, 1, &rows), out = bench_tensor(b, DT_F32, 2, c);
    Operand few = bench_tensor(b, DT_F32, DIMS_OF(FEW, cols));
    BenchOp sums = bench_op(OP_EMBEDDING_GRAD, OPERANDS(index, x), out, ATTRS(I(NROWS, rows)));
    BenchOp into_few = bench_op(OP_EMBEDDING_GRAD, OPERANDS(index, x), few, ATTRS(I(NROWS, FEW)));
    BenchOp put = bench_op(OP_INDEX_PUT, OPERANDS(x, index, x), out, 0, NULL);
    BenchOp add = bench_op(OP_INDEX_PUT, OPERANDS(x, index, x), out, ATTRS(I(ACCUMULATE, 1)));
    if (!bench_random(b, &x) || !bench_write(b, &index, backwards, c)) return;
    if (bench_run(b, &sums, 1, NULL)) bench_probe(b, "embedding_grad f32, a row each", &out, want_upside_down, c);
    if (!bench_write(b, &index, few_at, c)) return;
    if (bench_run(b, &into_few, 1, NULL)) bench_probe(b, "embedding_grad f32, many for each row", &few, want_few, c);
    check_again(b, "embedding_grad f32, again", &into_few);
    if (!bench_write(b, &index, even_at, c)) return;
    if (bench_run(b, &put, 1, NULL)) bench_probe(b, "index_put f32, the last of two", &out, want_last, c);
    if (bench_run(b, &add, 1, NULL)) bench_probe(b, "index_put f32, added", &out, want_all, c);
}

static double want_count(int64_t at, const int64_t *c) { return at < c[1] ? (double)c[0] : 0; }

static void large_histogram(Bench *b, int64_t rows, int64_t cols) {
    const int64_t c[] = {rows, cols};
    bench_reset(b);
    Operand x = bench_tensor(b, DT_I64, 2, c);
    if (!bench_iota(b, &x, 1, 0, 1)) return;
    for (int64_t bins = cols; bins <= 4096; bins += 4096 - cols) {  // counted by each block for itself first, and not
        BenchOp o = bench_op(OP_HISTOGRAM, OPERANDS(x), bench_tensor(b, DT_I64, 1, &bins), ATTRS(I(NROWS, bins)));
        const char *what = bins == cols ? "histogram, few" : "histogram, many";
        if (bench_run(b, &o, 1, NULL)) bench_probe(b, what, &o.out[0], want_count, c);
    }
}

void bench_large_index(Bench *b, double scale) {
    int64_t rows = (int64_t)(1050001 * scale) + 3;
    large_gather(b, (int64_t)(65549 * scale) + 3, 32771);
    large_pick(b, rows, 2052);
    large_tables(b, rows, 2052);
    large_histogram(b, (int64_t)(2100001 * scale) + 3, 1027);
}
