#include "cuda_ops_run.h"
#include "op_harness.h"

extern const Backend backend_cuda;

enum { SEED = 23, MOST_SHOWN = 40 };

typedef struct OpsRun {
    FILE *report;
    int nrun, nfail, nmissing;
} OpsRun;

static void ops_fail(OpsRun *r, const OpCase *c, DType t, const char *what, const char *why) {
    if (r->nfail++ < MOST_SHOWN)
        fprintf(r->report, "%s of %s, sample \"%s\", %s: %s\n", op_name(c->op), dtype_name(t), c->sample && c->sample->label ? c->sample->label : "?", what, why);
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

static void run_sample(OpsRun *r, OpKind op, const Sample *s, DType t, int nranks) {
    OpCase c;
    Diag d = {0};
    bool built = op_case_new(&c, op, s, t, nranks, SEED, &d) == ST_OK;
    if (!built && t == DT_F32) ops_fail(r, &c, t, "sample", d.text);
    if (built && op_case_expect(&c, &d) != ST_OK) ops_fail(r, &c, t, "reference", d.text), built = false;
    if (built && nranks == 1) {
        Row row = op_row_new(&c);
        check_row(&c, &row, r);
    } else if (built) {
        op_each_row(&c, check_row, r);
    }
    op_case_free(&c);
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
    fprintf(r.report, "%s: %d runs, %d failed%s\n", op_name(op), r.nrun, r.nfail, r.nmissing ? ", NO KERNEL" : "");
    all->nrun += r.nrun, all->nfail += r.nfail + (r.nmissing > 0);
}

// The ops of this test; contractions, attention and generated kernels have their own.
static const OpKind ops[] = {OP_FULL, OP_IOTA, OP_RANDOM, OP_RESHAPE, OP_PERMUTE, OP_BROADCAST, OP_SLICE, OP_PAD, OP_CONCAT, OP_SUM, OP_AMAX,
                             OP_LOGSUMEXP, OP_CUMSUM, OP_EMBEDDING, OP_EMBEDDING_GRAD, OP_PICK, OP_GATHER, OP_SCATTER_ADD, OP_INDEX_PUT,
                             OP_SORT, OP_TOPK, OP_HISTOGRAM, OP_CONV1D, OP_CONV1D_GRAD_X, OP_CONV1D_GRAD_W, OP_ADAMW, OP_RESHARD};

int cuda_ops_run(const char *only, FILE *report) {
    OpsRun all = {.report = report};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (!only || strstr(op_name(ops[i]), only)) run_op(&all, ops[i]);
    fprintf(report, "%d runs, %d failures\n", all.nrun, all.nfail);
    return all.nfail;
}
