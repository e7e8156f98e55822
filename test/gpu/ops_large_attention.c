// Our own attention where every operand has more than 2^31 elements. Entries of the batch have nothing to do with each other: the
// first, the last and some between are computed here and compared. A soft-cap so high that it changes nothing keeps cuDNN away.
#include <math.h>
#include <stdlib.h>
#include "attention_ref.h"
#include "backend/cuda/attention/flash.h"
#include "base/random.h"
#include "ops_bench.h"

#define LEAF(code_) {.code = (code_), .dtype = DT_I64, .a = -1, .b = -1, .c = -1}
static const Instr causal[] = {LEAF(PROG_INDEX_Q), LEAF(PROG_INDEX_K),
                               {.code = PROG_OP + OP_LE, .dtype = DT_BOOL, .a = 1, .b = 0, .c = -1}};
static const Program see_causal = {.ninstr = 3, .instr = causal, .nout = 2, .out = (const int32_t[]){2, -1}};

enum { PERIOD = 1000003 };  // prime: the same numbers lie elsewhere in each head

// Random bf16 of variance 1.
static bool fill_halves(Bench *b, const Operand *o, int stream) {
    Diag d = {0};
    uint16_t *x = malloc(PERIOD * sizeof *x);
    CHECK(x, "out of memory");
    for (int64_t i = 0; i < PERIOD; i++) x[i] = bf16_round(3.4 * (random_uniform(5, 0, stream, i) - 0.5));
    size_t n = (size_t)bench_numel(o) * 2, done = n < PERIOD * 2 ? n : PERIOD * 2;
    Status st = b->api->write(b->dev, o->data, x, done, &d);
    for (size_t more; done < n && st == ST_OK; done += more) {
        more = done < n - done ? done : n - done;
        st = b->api->copy(b->dev, (char *)o->data + done, o->data, more, &d);
    }
    free(x);
    if (st != ST_OK) bench_fail(b, "%s", d.text);
    return st == ST_OK;
}

typedef struct Entry {  // one batch entry
    int64_t rows, dim;  // of one operand
    uint16_t *x[8];     // q, k, v, do; o, dq, dk, dv
    double *want[4], *lse, *delta;
    RefCall ref;
} Entry;

static void query(void *p, int64_t r) {
    Entry *e = p;
    ref_row(&e->ref, r, e->want[0] + r * e->dim, &e->lse[r], e->want[1] + r * e->dim, &e->delta[r]);
}
static void key(void *p, int64_t r) {
    Entry *e = p;
    ref_key(&e->ref, r, e->lse, e->delta, e->want[2] + r * e->dim, e->want[3] + r * e->dim);
}

static double off_by(const uint16_t *got, const double *want, int64_t n) {
    double off = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = bf16_value(got[i]) - want[i];
        off += x * x, square += want[i] * want[i];
    }
    return sqrt(off / square);  // NaN where something is
}

static bool check_entry(Bench *b, const char *what, Entry *e, Operand *const *operand, int64_t at) {
    static const char *const name[] = {"o", "dq", "dk", "dv"};
    int64_t n = e->rows * e->dim;
    for (int i = 0; i < 8; i++)
        if (!bench_read(b, e->x[i], operand[i], at * n, n)) return false;
    parallel(e->rows, query, e);
    parallel(e->rows, key, e);
    for (int i = 0; i < 4; i++) {
        double off = off_by(e->x[4 + i], e->want[i], n);
        if (off < 1e-2) continue;
        bench_fail(b, "%s: %s of batch entry %lld is off by %.3g of its root mean square", what, name[i], (long long)at, off);
        return false;
    }
    return true;
}

static void check_entries(Bench *b, const char *what, Operand *const *operand) {
    enum { LOOKS = 12 };
    int64_t batch = operand[0]->dim[0], heads = operand[0]->dim[1], s = operand[0]->dim[2], dim = operand[0]->dim[3];
    Entry e = {.rows = heads * s, .dim = dim};
    for (int i = 0; i < 8; i++) CHECK(e.x[i] = malloc((size_t)(e.rows * dim) * 2), "out of memory");
    for (int i = 0; i < 4; i++) CHECK(e.want[i] = malloc((size_t)(e.rows * dim) * 8), "out of memory");
    e.lse = malloc((size_t)e.rows * 8), e.delta = malloc((size_t)e.rows * 8);
    CHECK(e.lse && e.delta, "out of memory");
    e.ref = (RefCall){.batch = 1, .heads = heads, .kv_heads = heads, .nq = s, .nk = s, .dim = dim, .mask = 1, .scale = 1 / sqrt((double)dim),
                      .q = e.x[0], .k = e.x[1], .v = e.x[2], .dout = e.x[3]};
    bool ok = true;
    for (int i = 0; i < LOOKS && ok; i++) ok = check_entry(b, what, &e, operand, i * (batch - 1) / (LOOKS - 1));
    if (ok) bench_pass(b, what, bench_numel(operand[0]));
    for (int i = 0; i < 8; i++) free(e.x[i]);
    for (int i = 0; i < 4; i++) free(e.want[i]);
    free(e.lse), free(e.delta);
}

void bench_large_attention(Bench *b, double scale) {
    bool small = scale < 1;
    const int64_t dims[] = {small ? 13 : 8203, small ? 3 : 16, small ? 72 : 128, small ? 16 : 128};  // 8192: 2^31 elements
    bench_reset(b);
    Operand q, k, v, g, o, dq, dk, dv, lse = bench_tensor(b, DT_F32, 3, dims);
    Operand *const operand[] = {&q, &k, &v, &g, &o, &dq, &dk, &dv};
    for (int i = 0; i < 8; i++) *operand[i] = bench_tensor(b, DT_BF16, 4, dims);
    const Attr attr[] = {F(SCALE, 1 / sqrt((double)dims[3])), {.key = ATTR_PROG, .u.prog = &see_causal}, F(SOFTCAP, 1e4)};
    BenchOp forward = bench_op(OP_ATTENTION, OPERANDS(q, k, v), o, 3, attr);
    BenchOp backward = bench_op(OP_ATTENTION_GRAD, OPERANDS(q, k, v, o, lse, g), dq, 3, attr);
    forward.nout = 2, forward.out[1] = lse;
    backward.nout = 3, backward.out[1] = dk, backward.out[2] = dv;
    for (int i = 0; i < 4; i++)
        if (!fill_halves(b, operand[i], i)) return;
    for (int portable = 0; portable < 2; portable++) {
        flash_portable = portable;
        if (bench_run(b, &forward, 1, NULL) && bench_run(b, &backward, 1, NULL))
            check_entries(b, portable ? "attention bf16, portable" : "attention bf16", operand);
    }
    flash_portable = false;
}
