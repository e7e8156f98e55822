#include "cuda_ops_run.h"
#include <math.h>
#include "op_harness.h"

extern const Backend backend_cuda;

enum { SEED = 23, MOST_SHOWN = 40 };

typedef struct OpsRun {
    FILE *report;
    int nrun, nfail, nmissing;
} OpsRun;

static void ops_fail(OpsRun *r, const OpCase *c, DType t, const char *what, const char *why) {
    const char *label = c->sample && c->sample->label ? c->sample->label : "?";
    if (r->nfail++ < MOST_SHOWN)
        fprintf(r->report, "%s of %s, sample \"%s\", %s: %s\n", op_name(c->op), dtype_name(t), label, what, why);
}

static void check_row(OpCase *c, const Row *row, void *ctx) {
    OpsRun *r = ctx;
    Str why = {0};
    bool ran;
    r->nrun++;
    if (!op_check_row(c, &backend_cuda, NULL, row, &ran, &why)) ops_fail(r, c, c->real, op_row_text(c, row), str_text(&why));
    if (!ran) r->nmissing++;
    str_free(&why);
}

// Samples hold f32 operands: the other types are the same samples with those replaced, where the op takes them.
static bool takes_type(OpKind op, DType t) {
    if (t == DT_F32) return true;
    if (op == OP_ADAMW || op == OP_RANDOM) return false;  // f32 alone
    return true;
}

// ---- the head in bf16 -----------------------------------------------------------------------------------------------------
// Statistics of rows and their cotangents stay f32; logits and their gradients are bf16 between the products (docs/cuda.md). That
// is computed here, so that results need not be compared more loosely than they are rounded.

static bool is_head(OpKind op) { return op == OP_HEAD_FWD || op == OP_HEAD_GRAD || op == OP_HEAD; }

// Row i's logits, and their log-sum-exp.
static double head_logits(const OpCase *c, int64_t i, int64_t nd, int64_t nv, double *z) {
    double scale = node_float_or(op_case_node(c), ATTR_SCALE, 1), cap = node_float_or(op_case_node(c), ATTR_SOFTCAP, 0), sum = 0;
    for (int64_t v = 0; v < nv; v++) {
        z[v] = 0;
        for (int64_t k = 0; k < nd; k++) z[v] += c->in[0][i * nd + k] * c->in[1][v * nd + k];
        z[v] = op_round_bf16(scale * z[v]);
        if (cap > 0) z[v] = cap * tanh(z[v] / cap);
        sum += exp(z[v]);
    }
    return log(sum);
}

static void head_row_gradients(OpCase *c, int64_t i, int64_t nd, int64_t nv, const double *z, double lse, double *dh,
                               double *dw) {
    double scale = node_float_or(op_case_node(c), ATTR_SCALE, 1), cap = node_float_or(op_case_node(c), ATTR_SOFTCAP, 0);
    int g = c->op == OP_HEAD ? 3 : 4, last = c->nout - 1;
    for (int64_t v = 0; v < nv; v++) {
        double dz = exp(z[v] - lse) * c->in[g][i] + (v == (int64_t)c->in[2][i] ? c->in[g + 1][i] : 0);
        dz = scale * op_round_bf16(cap > 0 ? dz * (1 - z[v] / cap * (z[v] / cap)) : dz);
        for (int64_t k = 0; k < nd; k++) {
            dh[i * nd + k] += dz * c->in[1][v * nd + k];
            dw[v * nd + k] += dz * c->in[0][i * nd + k];
            // f32's error may carry one of these over the middle between two bf16 values
            c->slack[last] = fmax(c->slack[last], 0x1p-8 * fabs(dz * c->in[0][i * nd + k]));
        }
    }
}

static void head_expect_bf16(OpCase *c) {
    int64_t n = c->sample->shape[0].dim[0], nd = c->sample->shape[0].dim[1], nv = c->sample->shape[1].dim[0];
    double *z = ARENA_ARRAY(c->arena, double, nv + 1), *dh = c->out[c->nout - 2], *dw = c->out[c->nout - 1];
    bool gradients = c->op != OP_HEAD_FWD;
    for (int64_t k = 0; gradients && k < n * nd; k++) dh[k] = 0;
    for (int64_t k = 0; gradients && k < nv * nd; k++) dw[k] = 0;
    for (int64_t i = 0; i < n; i++) {
        double lse = head_logits(c, i, nd, nv, z);
        if (c->op != OP_HEAD_GRAD) c->out[0][i] = lse, c->out[1][i] = z[(int64_t)c->in[2][i]];
        if (gradients) head_row_gradients(c, i, nd, nv, z, c->op == OP_HEAD ? lse : c->in[3][i], dh, dw);
    }
}

// ---- samples --------------------------------------------------------------------------------------------------------------

static Status new_case(OpCase *c, OpKind op, const Sample *s, DType t, int nranks, Diag *d) {
    if (!is_head(op) || t != DT_BF16) return op_case_new(c, op, s, t, nranks, SEED, d);
    Sample half = *s;
    half.dtype[0] = half.dtype[1] = DT_BF16;
    return op_case_new(c, op, &half, DT_F32, nranks, SEED, d);
}

static void run_sample(OpsRun *r, OpKind op, const Sample *s, DType t, int nranks) {
    OpCase c;
    Diag d = {0};
    bool built = new_case(&c, op, s, t, nranks, &d) == ST_OK;
    if (!built && (t == DT_F32 || (t == DT_BF16 && is_head(op)))) ops_fail(r, &c, t, "sample", d.text);
    if (built && op_case_expect(&c, &d) != ST_OK) ops_fail(r, &c, t, "reference", d.text), built = false;
    if (built && is_head(op) && t == DT_BF16) head_expect_bf16(&c);
    if (built && nranks == 1) {
        Row row = op_row_new(&c);
        check_row(&c, &row, r);
    } else if (built) {
        op_each_row(&c, check_row, r);
    }
    op_case_free(&c);
}

// ---- larger than the op table's: tiles, packs, pieces, chunks, and what is not aligned ------------------------------------

#define I(KEY, value) {.key = ATTR_##KEY, .u.i = (value)}
#define F(KEY, value) {.key = ATTR_##KEY, .u.f = (value)}
#define COUNT(type, ...) (int)(sizeof((type[]){__VA_ARGS__}) / sizeof(type))
#define INTS(KEY, ...) {.key = ATTR_##KEY, .n = COUNT(int64_t, __VA_ARGS__), .u.ints = (const int64_t[]){__VA_ARGS__}}
#define DIM(...) {.ndim = COUNT(int64_t, __VA_ARGS__), .dim = {__VA_ARGS__}}
#define ATTRS(...) .nattr = COUNT(Attr, __VA_ARGS__), .attr = {__VA_ARGS__}
#define ONE(OP, text, shape_, ...) {OP_##OP, {.label = text, .nin = 1, .shape = {shape_}, .dtype = {DT_F32}, ATTRS(__VA_ARGS__)}}
#define SAMPLE(OP, text, n, shapes, dtypes, ...) \
    {OP_##OP, {.label = text, .nin = n, .shape = {shapes}, .dtype = {dtypes}, __VA_ARGS__}}
#define WRAP(...) __VA_ARGS__
typedef struct LargeSample {
    OpKind op;
    Sample s;
} LargeSample;
#define ADAMW_LARGE(nin_, ...)                                                                                          \
    {                                                                                                                   \
        OP_ADAMW, {                                                                                                     \
            .label = "odd", .nin = nin_, .shape = {DIM(1027), DIM(1027), DIM(1027), DIM(1027), DIM(3), {0}, DIM(1027)}, \
            .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_BF16}, .lo = {0, 0, 0, 1, 1, 4},               \
            .hi = {0, 0, 0, 8, 8, 8}, ATTRS(__VA_ARGS__)                                                                \
        }                                                                                                               \
    }
static const LargeSample large[] = {
    ONE(PERMUTE, "tiles", WRAP(DIM(130, 70)), INTS(DIMS, 1, 0)),
    ONE(PERMUTE, "tiles within", WRAP(DIM(3, 67, 2, 40)), INTS(DIMS, 0, 3, 2, 1)),
    ONE(PERMUTE, "pairs change places", WRAP(DIM(33, 50, 2)), INTS(DIMS, 1, 0, 2)),
    ONE(PERMUTE, "rows stay", WRAP(DIM(9, 11, 48)), INTS(DIMS, 1, 0, 2)),
    ONE(PERMUTE, "all turned", WRAP(DIM(5, 6, 7, 20)), INTS(DIMS, 3, 2, 1, 0)),
    ONE(BROADCAST, "columns", WRAP(DIM(37, 1)), INTS(SHAPE, 37, 64)),
    ONE(BROADCAST, "columns, odd", WRAP(DIM(37, 1)), INTS(SHAPE, 37, 61)),
    ONE(BROADCAST, "heads", WRAP(DIM(5, 1, 32)), INTS(SHAPE, 5, 7, 32)),
    ONE(BROADCAST, "one", WRAP(DIM(1, 1)), INTS(SHAPE, 17, 19)),
    ONE(SLICE, "steps", WRAP(DIM(7, 301)), I(DIM, 1), I(START, 4), I(STEP, 3), I(LENGTH, 90)),
    ONE(SLICE, "odd start", WRAP(DIM(13, 131)), I(DIM, 1), I(START, 3), I(STEP, 1), I(LENGTH, 120)),
    ONE(PAD, "odd", WRAP(DIM(9, 130)), I(DIM, 1), I(LO, 5), I(HI, 3), F(VALUE, 2)),
    ONE(SUM, "rows", WRAP(DIM(300, 96)), INTS(DIMS, 1)),
    ONE(SUM, "odd rows", WRAP(DIM(37, 101)), INTS(DIMS, 1)),
    ONE(SUM, "long row", WRAP(DIM(90000)), INTS(DIMS, 0)),
    ONE(SUM, "two long rows, odd", WRAP(DIM(2, 70001)), INTS(DIMS, 1)),
    ONE(SUM, "columns", WRAP(DIM(5000, 24)), INTS(DIMS, 0)),
    ONE(SUM, "odd columns", WRAP(DIM(700, 35)), INTS(DIMS, 0)),
    ONE(SUM, "many columns", WRAP(DIM(5, 1111)), INTS(DIMS, 0)),
    ONE(SUM, "between", WRAP(DIM(6, 900, 10)), INTS(DIMS, 1)),
    ONE(SUM, "around", WRAP(DIM(200, 6, 40)), INTS(DIMS, 0, 2)),
    ONE(SUM, "in turn", WRAP(DIM(20, 3, 30, 2, 10)), INTS(DIMS, 0, 2, 4)),
    ONE(SUM, "in turn, kept last", WRAP(DIM(40, 3, 50, 8)), INTS(DIMS, 0, 2)),
    ONE(SUM, "nothing of it", WRAP(DIM(3, 0, 4)), INTS(DIMS, 1)),
    ONE(SUM, "rows without elements", WRAP(DIM(3, 4, 0)), INTS(DIMS, 2)),
    ONE(AMAX, "rows", WRAP(DIM(300, 96)), INTS(DIMS, 1)),
    ONE(AMAX, "long row", WRAP(DIM(90000)), INTS(DIMS, 0)),
    ONE(AMAX, "columns", WRAP(DIM(5000, 24)), INTS(DIMS, 0)),
    ONE(LOGSUMEXP, "rows", WRAP(DIM(40, 1000)), I(DIM, 1)),
    ONE(LOGSUMEXP, "between", WRAP(DIM(3, 400, 37)), I(DIM, 1)),
    ONE(CUMSUM, "pieces", WRAP(DIM(3, 1000)), I(DIM, 1)),
    ONE(CUMSUM, "pieces of columns, reversed", WRAP(DIM(2, 777, 5)), I(DIM, 1), I(REVERSE, 1)),
    ONE(SORT, "one chunk", WRAP(DIM(3, 1024)), I(DIM, 1)),
    ONE(SORT, "merged", WRAP(DIM(2, 5000, 2)), I(DIM, 1), I(DESCENDING, 1)),
    ONE(SORT, "side by side", WRAP(DIM(100, 37)), I(DIM, 1)),
    ONE(TOPK, "merged", WRAP(DIM(2, 3000)), I(DIM, 1), I(K, 7), I(DESCENDING, 1)),
    ONE(TOPK, "experts", WRAP(DIM(300, 60)), I(DIM, 1), I(K, 4), I(DESCENDING, 1)),
    ADAMW_LARGE(6, F(BETA1, 0.9), F(BETA2, 0.95), F(EPS, 1e-8), F(DECAY, 0.1)),
    ADAMW_LARGE(7, F(BETA1, 0.9), F(BETA2, 0.95), F(EPS, 1e-8), F(DECAY, 0.1), I(HALF, 1)),
    SAMPLE(CONCAT, "odd", 3, WRAP(DIM(17, 32), DIM(17, 9), DIM(17, 64)), WRAP(DT_F32, DT_F32, DT_F32), ATTRS(I(DIM, 1))),
    SAMPLE(EMBEDDING, "wide", 2, WRAP(DIM(50, 72), DIM(3, 41)), WRAP(DT_F32, DT_I64), .hi = {0, 50}),
    SAMPLE(EMBEDDING_GRAD, "wide", 2, WRAP(DIM(3, 41), DIM(3, 41, 72)), WRAP(DT_I64, DT_F32), .hi = {50},
           ATTRS(I(NROWS, 50), I(SKIP, 7))),
    SAMPLE(EMBEDDING_GRAD, "runs over several chunks", 2, WRAP(DIM(700), DIM(700, 8)), WRAP(DT_I64, DT_F32), .lo = {2}, .hi = {6},
           ATTRS(I(NROWS, 9))),
    SAMPLE(EMBEDDING_GRAD, "all to one row", 2, WRAP(DIM(333), DIM(333, 5)), WRAP(DT_I64, DT_F32), .lo = {2}, .hi = {3},
           ATTRS(I(NROWS, 3))),
    SAMPLE(EMBEDDING_GRAD, "merged, a long run is skipped", 2, WRAP(DIM(2, 800), DIM(2, 800, 3)), WRAP(DT_I64, DT_F32), .hi = {4},
           ATTRS(I(NROWS, 5), I(SKIP, 1))),
    SAMPLE(EMBEDDING_GRAD, "more columns than a block takes", 2, WRAP(DIM(70), DIM(70, 1100)), WRAP(DT_I64, DT_F32), .hi = {3},
           ATTRS(I(NROWS, 4))),
    SAMPLE(EMBEDDING_GRAD, "odd", 2, WRAP(DIM(90), DIM(90, 13)), WRAP(DT_I64, DT_F32), .hi = {20}, ATTRS(I(NROWS, 20))),
    SAMPLE(INDEX_PUT, "often the same, added", 3, WRAP(DIM(9, 16), DIM(500), DIM(500, 16)), WRAP(DT_F32, DT_I64, DT_F32),
           .hi = {0, 9}, ATTRS(I(ACCUMULATE, 1))),
    SAMPLE(INDEX_PUT, "often the same", 3, WRAP(DIM(9, 16), DIM(100), DIM(100, 16)), WRAP(DT_F32, DT_I64, DT_F32), .hi = {0, 9}),
    ONE(PERMUTE, "wide tiles", WRAP(DIM(2, 200, 136)), INTS(DIMS, 0, 2, 1)),
    ONE(SUM, "many short rows", WRAP(DIM(1100, 64)), INTS(DIMS, 1)),
    ONE(LOGSUMEXP, "long row, odd", WRAP(DIM(2, 4099)), I(DIM, 1)),
    ONE(CUMSUM, "whole rows", WRAP(DIM(2050, 24)), I(DIM, 1)),
    ONE(CUMSUM, "rows in reverse", WRAP(DIM(3, 3000)), I(DIM, 1), I(REVERSE, 1)),
    ONE(CUMSUM, "columns", WRAP(DIM(333, 16)), I(DIM, 0)),
    SAMPLE(CONV1D, "depthwise", 2, WRAP(DIM(2, 5, 1500), DIM(5, 1, 4)), WRAP(DT_F32, DT_F32), ATTRS(I(GROUPS, 5), I(LO, 3))),
    SAMPLE(CONV1D, "depthwise, odd, three taps", 2, WRAP(DIM(2, 3, 77), DIM(3, 1, 3)), WRAP(DT_F32, DT_F32),
           ATTRS(I(GROUPS, 3), I(LO, 1), I(HI, 1))),
    SAMPLE(CONV1D_GRAD_X, "depthwise", 2, WRAP(DIM(2, 5, 1500), DIM(5, 1, 4)), WRAP(DT_F32, DT_F32),
           ATTRS(I(GROUPS, 5), I(LO, 3), I(LENGTH, 1500))),
    SAMPLE(CONV1D_GRAD_W, "depthwise", 2, WRAP(DIM(2, 5, 1501), DIM(2, 5, 1501)), WRAP(DT_F32, DT_F32),
           ATTRS(I(GROUPS, 5), I(LO, 3), I(KERNEL, 4))),
    SAMPLE(CONV1D_GRAD_W, "depthwise in pieces", 2, WRAP(DIM(1, 2, 8200), DIM(1, 2, 8200)), WRAP(DT_F32, DT_F32),
           ATTRS(I(GROUPS, 2), I(LO, 3), I(KERNEL, 4))),
    SAMPLE(HISTOGRAM, "many bins", 1, WRAP(DIM(3000)), WRAP(DT_I64), .lo = {-5}, .hi = {2600}, ATTRS(I(NROWS, 2500))),
};

// ---- reshard: whole -> intervals, where nothing comes from other ranks ----------------------------------------------------

static void run_reshard(OpsRun *all) {
    static const Sample s = {.label = "own part", .nin = 1, .shape = {DIM(6, 10, 3)}, .dtype = {DT_F32}};
    OpsRun r = {.report = all->report};
    for (int nranks = 1; nranks <= 3; nranks++) {
        OpCase c;
        Diag d = {0};
        if (op_case_new(&c, OP_RESHARD, &s, DT_F32, nranks, SEED, &d) != ST_OK || op_case_expect(&c, &d) != ST_OK)
            ops_fail(&r, &c, DT_F32, "reshard", d.text);
        for (int dim = -1; dim < 3; dim++) {
            Row row = op_row_new(&c);
            // two intervals a rank, the later first
            Span span[6];
            int32_t count[3] = {2, 2, 2};
            int64_t n = dim >= 0 ? s.shape[0].dim[dim] : 0;
            for (int i = 0; i < 2 * nranks; i++) {
                int64_t block = i % 2 ? i / 2 : 2 * nranks - 1 - i / 2;
                span[i] = (Span){n * block / (2 * nranks), n * (block + 1) / (2 * nranks)};
            }
            if (dim >= 0) row.out[0] = shard_on(dim, layouts_intern(c.g->layouts, n, count, span));
            check_row(&c, &row, &r);
        }
        op_case_free(&c);
    }
    fprintf(r.report, "reshard: %d runs, %d failed%s\n", r.nrun, r.nfail, r.nmissing ? ", NO KERNEL" : "");
    all->nrun += r.nrun, all->nfail += r.nfail + (r.nmissing > 0);
}

// ---- special values and errors --------------------------------------------------------------------------------------------

static const LargeSample special[] = {
    ONE(AMAX, "not finite", WRAP(DIM(40, 12)), INTS(DIMS, 1)),
    ONE(AMAX, "not finite, columns", WRAP(DIM(40, 12)), INTS(DIMS, 0)),
    ONE(LOGSUMEXP, "not finite", WRAP(DIM(40, 12)), I(DIM, 1)),
    ONE(LOGSUMEXP, "not finite, columns", WRAP(DIM(40, 12)), I(DIM, 0)),
    ONE(SORT, "not finite", WRAP(DIM(40, 12)), I(DIM, 1)),
    ONE(SORT, "not finite, descending", WRAP(DIM(40, 12)), I(DIM, 1), I(DESCENDING, 1)),
    ONE(PERMUTE, "not finite", WRAP(DIM(40, 12)), INTS(DIMS, 1, 0)),
};

// What happens where operands are not finite: the reference says it.
static void run_special(OpsRun *r, OpKind op, const Sample *s) {
    static const double values[] = {NAN, INFINITY, -INFINITY, -0.0, 0.0, 3e38, -3e38, 1};
    for (int pattern = 0; pattern < 4; pattern++) {
        OpCase c;
        Diag d = {0};
        if (op_case_new(&c, op, s, DT_F32, 1, SEED, &d) != ST_OK) {
            ops_fail(r, &c, DT_F32, "special values", d.text);
        } else {
            int64_t n = shape_numel(&s->shape[0]);
            for (int64_t k = 0; k < n; k++) {  // few of them; infinities of one sign; all -inf in some rows
                bool all = pattern == 3 && k < n / 2;
                if (all) c.in[0][k] = -INFINITY;
                else if (k * 7 % 11 < 2 && pattern != 3)
                    c.in[0][k] = (float)values[pattern == 0 ? k % 8 : pattern == 1 ? 1 : 3 + k % 5];
            }
            if (op_case_expect(&c, &d) != ST_OK) ops_fail(r, &c, DT_F32, "reference", d.text);
            Row row = op_row_new(&c);
            check_row(&c, &row, r);
        }
        op_case_free(&c);
    }
}

static void run_specials(OpsRun *all, const char *only) {
    OpsRun r = {.report = all->report};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (!only || strstr(op_name(special[i].op), only)) run_special(&r, special[i].op, &special[i].s);
    fprintf(r.report, "special values: %d runs, %d failed\n", r.nrun, r.nfail);
    all->nrun += r.nrun, all->nfail += r.nfail;
}

// An index out of range is the error of the step, with value and limit.
static void run_out_of_range(OpsRun *r, OpKind op, const Sample *s, int operand, int64_t limit) {
    OpCase c;
    Diag d = {0};
    Str why = {0};
    bool ran;
    r->nrun++;
    if (op_case_new(&c, op, s, DT_F32, 1, SEED, &d) != ST_OK) {
        ops_fail(r, &c, DT_F32, "index out of range", d.text);
    } else {
        char want[64];
        for (int sign = 0; sign < 2; sign++) {
            double bad = sign ? -1 : (double)limit;
            c.in[operand][1] = bad;
            snprintf(want, sizeof want, "index %lld is outside [0, %lld)", (long long)bad, (long long)limit);
            Row row = op_row_new(&c);
            bool ok = op_check_row(&c, &backend_cuda, NULL, &row, &ran, &why);
            if (ok || !strstr(str_text(&why), want)) ops_fail(r, &c, DT_F32, want, ok ? "accepted" : str_text(&why));
            str_free(&why);
            why = (Str){0};
        }
    }
    op_case_free(&c);
}

static const struct {
    int operand;
    int64_t limit;
    LargeSample of;
} bad[] = {
    {1, 5, SAMPLE(EMBEDDING, "bad", 2, WRAP(DIM(5, 3), DIM(4)), WRAP(DT_F32, DT_I64), .hi = {0, 5})},
    {0, 5, SAMPLE(EMBEDDING_GRAD, "bad", 2, WRAP(DIM(4), DIM(4, 3)), WRAP(DT_I64, DT_F32), .hi = {5}, ATTRS(I(NROWS, 5)))},
    {1, 6, SAMPLE(PICK, "bad", 2, WRAP(DIM(4, 6), DIM(4)), WRAP(DT_F32, DT_I64), .hi = {0, 6})},
    {1, 4, SAMPLE(GATHER, "bad", 2, WRAP(DIM(4, 6), DIM(3, 6)), WRAP(DT_F32, DT_I64), .hi = {0, 4}, ATTRS(I(DIM, 0)))},
    {1, 4,
     SAMPLE(SCATTER_ADD, "bad", 3, WRAP(DIM(4, 6), DIM(3, 6), DIM(3, 6)), WRAP(DT_F32, DT_I64, DT_F32), .hi = {0, 4},
            ATTRS(I(DIM, 0)))},
    {1, 5, SAMPLE(INDEX_PUT, "bad", 3, WRAP(DIM(5, 3), DIM(4), DIM(4, 3)), WRAP(DT_F32, DT_I64, DT_F32), .hi = {0, 5})},
};

static void run_errors(OpsRun *all, const char *only) {
    OpsRun r = {.report = all->report};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!only || strstr(op_name(bad[i].of.op), only))
            run_out_of_range(&r, bad[i].of.op, &bad[i].of.s, bad[i].operand, bad[i].limit);
    fprintf(r.report, "index out of range: %d runs, %d failed\n", r.nrun, r.nfail);
    all->nrun += r.nrun, all->nfail += r.nfail;
}

static void run_op(OpsRun *all, OpKind op) {
    static const DType types[] = {DT_F32, DT_BF16, DT_I64, DT_BOOL};
    const OpInfo *info = op_info(op);
    OpsRun r = {.report = all->report};
    for (int i = 0; i < info->nsample; i++) {
        for (int t = 0; t < 4; t++)
            if (takes_type(op, types[t])) run_sample(&r, op, &info->samples[i], types[t], 1);
        for (int nranks = 2; nranks <= 4; nranks++) run_sample(&r, op, &info->samples[i], DT_F32, nranks);
    }
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        if (large[i].op != op) continue;
        for (int t = 0; t < 4; t++)
            if (takes_type(op, types[t])) run_sample(&r, op, &large[i].s, types[t], 1);
        run_sample(&r, op, &large[i].s, DT_F32, 3);
    }
    fprintf(r.report, "%s: %d runs, %d failed%s\n", op_name(op), r.nrun, r.nfail, r.nmissing ? ", NO KERNEL" : "");
    all->nrun += r.nrun, all->nfail += r.nfail + (r.nmissing > 0);
}

// The ops of this test; attention and generated kernels have their own.
static const OpKind ops[] = {OP_FULL,
                             OP_IOTA,
                             OP_RANDOM,
                             OP_RESHAPE,
                             OP_PERMUTE,
                             OP_BROADCAST,
                             OP_SLICE,
                             OP_PAD,
                             OP_CONCAT,
                             OP_SUM,
                             OP_AMAX,
                             OP_LOGSUMEXP,
                             OP_CUMSUM,
                             OP_EMBEDDING,
                             OP_EMBEDDING_GRAD,
                             OP_PICK,
                             OP_GATHER,
                             OP_SCATTER_ADD,
                             OP_INDEX_PUT,
                             OP_SORT,
                             OP_TOPK,
                             OP_HISTOGRAM,
                             OP_CONV1D,
                             OP_CONV1D_GRAD_X,
                             OP_CONV1D_GRAD_W,
                             OP_ADAMW,
                             OP_DOT,
                             OP_EXPERT_MATMUL,
                             OP_EXPERT_MATMUL_GRAD,
                             OP_HEAD_FWD,
                             OP_HEAD_GRAD,
                             OP_HEAD};

int cuda_ops_run(const char *only, FILE *report) {
    OpsRun all = {.report = report};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (!only || strstr(op_name(ops[i]), only)) run_op(&all, ops[i]);
    if (!only || strstr("reshard", only)) run_reshard(&all);
    run_specials(&all, only);
    run_errors(&all, only);
    fprintf(report, "%d runs, %d failures\n", all.nrun, all.nfail);
    return all.nfail;
}
