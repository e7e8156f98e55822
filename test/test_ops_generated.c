// Tests generated from the op table: for every op and every sample of its record
//   shapes    wrong arity, types, shapes and attributes are errors with a text, never a crash; what is accepted can be computed
//   gradient  the gradient rule against central differences, float64, by the reference executor
//   kernel    the CPU kernel against the reference executor, float32 and float64
//   sharded   every row of the sharding rule, P = 2, 3, 4: the kernel on each rank's part against the whole
// `test_ops_generated NAME` runs only the tests whose name contains NAME ("dot", "sharded", "conv1d/gradient").
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "base/random.h"
#include "ir/build.h"
#include "op_harness.h"
#include "pass/pass.h"

enum { SEED = 11 };

// Failures of one test are collected, so that one run shows all of them.
typedef struct Report {
    Str text;
    int nfail, nrun;
} Report;

static void report_fail(Report *r, OpKind op, const Sample *s, const char *what, const char *why) {
    if (r->nfail++ < 12) str_printf(&r->text, "  %s, sample \"%s\", %s: %s\n", op_name(op), s->label ? s->label : "?", what, why);
}

static void report_end(Report *r) {
    if (r->nfail) fprintf(stderr, "%d failures:\n%s", r->nfail, str_text(&r->text));  // longer than cmocka prints
    int nfail = r->nfail;
    str_free(&r->text);
    assert_int_equal(nfail, 0);
}

// ---- shapes --------------------------------------------------------------------------------------------------------------

static bool takes_arity(OpKind op, int nin) {
    if (op == OP_OFFLOAD) return nin == 1 || nin == 2;
    if (op_addend(op) >= 0 && (nin == op_addend(op) || nin == op_addend(op) + 1)) return true;
    return op == OP_CONCAT || op == OP_ASSEMBLE || op == OP_FUSED || op == OP_ATTENTION || op == OP_ATTENTION_GRAD ||
           op == OP_SDPA;
}

// The plan refuses bf16 on the CPU; kernels are not asked for it.
static bool has_bf16(const OpCase *c) {
    for (int64_t v = 0; v < c->g->values.len; v++)
        if (graph_value(c->g, (ValueId)v)->dtype == DT_BF16) return true;
    return false;
}

static bool small_enough(const OpCase *c) {
    const Node *n = op_case_node(c);
    double numel = 0;
    for (int j = 0; j < n->nout; j++) {
        double one = 1;
        const Shape *s = graph_shape(c->g, n->out[j]);
        for (int i = 0; i < s->ndim; i++) one *= (double)s->dim[i];
        numel += one;
    }
    return numel < 20000;
}

// Tries a changed sample. Accepted: reference and kernel must agree (or refuse). `must_fail`: accepting it is wrong.
static void try_sample(Report *r, OpKind op, const Sample *s, bool must_fail, Pool *pool, const char *what) {
    OpCase c;
    Diag d = {0};
    r->nrun++;
    Status st = op_case_new(&c, op, s, DT_F64, 1, SEED, &d);
    if (st != ST_OK && (!d.text[0] || d.status == ST_OK)) report_fail(r, op, s, what, "refused without a text");
    if (st == ST_OK && must_fail) report_fail(r, op, s, what, "accepted");
    if (st == ST_OK && small_enough(&c) && !has_bf16(&c) && op_case_expect(&c, &d) == ST_OK) {
        Row row = op_row_new(&c);
        Str why = {0};
        bool ran;
        if (!op_check_row(&c, &backend_cpu, pool, &row, &ran, &why)) report_fail(r, op, s, what, str_text(&why));
        str_free(&why);
    }
    op_case_free(&c);
}

static void try_shapes(Report *r, OpKind op, const Sample *s, Pool *pool) {
    for (int i = 0; i < s->nin; i++) {
        static const DType types[] = {DT_F32, DT_I64, DT_BOOL};
        for (int t = 0; t < 3; t++) {
            Sample m = *s;
            m.dtype[i] = types[t];
            m.lo[i] = m.hi[i] = types[t] == s->dtype[i] ? s->lo[i] : 0;
            if (types[t] != s->dtype[i]) try_sample(r, op, &m, false, pool, "another type");
        }
        for (int k = 0; k < s->shape[i].ndim; k++) {
            static const int64_t change[] = {-1, 1, 3};
            for (int x = 0; x < 3; x++) {
                Sample m = *s;
                m.shape[i].dim[k] += change[x];
                if (m.shape[i].dim[k] >= 0) try_sample(r, op, &m, false, pool, "another size");
            }
        }
        Sample m = *s;
        if (m.shape[i].ndim > 0) m.shape[i].ndim--, try_sample(r, op, &m, false, pool, "one dim less");
        m = *s;
        if (m.shape[i].ndim < MAX_DIMS) m.shape[i].dim[m.shape[i].ndim++] = 1, try_sample(r, op, &m, false, pool, "one dim more");
    }
}

static void try_bad_programs(Report *r, OpKind op, const Sample *s, int at, Pool *pool) {
    const Program *p = s->attr[at].u.prog;
    Instr instr[64];
    int32_t out[8];
    CHECK(p->ninstr <= 64 && p->nout <= 8, "sample program too long");
    for (int i = 0; i < p->ninstr; i++) {
        memcpy(instr, p->instr, sizeof *instr * (size_t)p->ninstr);
        instr[i].a = 99;
        Program bad = {.ninstr = p->ninstr, .instr = instr, .nout = p->nout, .out = p->out};
        Sample m = *s;
        m.attr[at].u.prog = &bad;
        bool reads_a = instr[i].code >= PROG_OP || instr[i].code == PROG_INPUT || instr[i].code == PROG_VEC_Q ||
                       instr[i].code == PROG_VEC_K;
        try_sample(r, op, &m, reads_a, pool, "an instruction reads what is not there");
        instr[i].code = PROG_OP + OP_DOT;
        try_sample(r, op, &m, true, pool, "an instruction that is no pointwise op");
    }
    for (int i = 0; i < p->nout; i++) {
        memcpy(out, p->out, sizeof *out * (size_t)p->nout);
        out[i] = p->ninstr;
        Program bad = {.ninstr = p->ninstr, .instr = p->instr, .nout = p->nout, .out = out};
        Sample m = *s;
        m.attr[at].u.prog = &bad;
        try_sample(r, op, &m, true, pool, "an output that is not there");
    }
}

static void try_attributes(Report *r, OpKind op, const Sample *s, Pool *pool) {
    for (int i = 0; i < s->nattr; i++) {
        Sample m = *s;
        m.attr[i] = m.attr[--m.nattr];
        try_sample(r, op, &m, false, pool, "an attribute missing");
        AttrKind kind = attr_kind(s->attr[i].key);
        static const int64_t values[] = {-1, 0, 1, 2, 7, INT64_C(1) << 62, INT64_MAX, INT64_MIN};
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            int64_t ints[32];
            CHECK(kind != ATTRK_INTS || s->attr[i].n <= 32, "a sample of longer lists");
            m = *s;
            if (kind == ATTRK_INT) m.attr[i].u.i = values[v];
            if (kind == ATTRK_INTS) {
                for (int k = 0; k < s->attr[i].n; k++) ints[k] = k < s->attr[i].n - 1 ? s->attr[i].u.ints[k] : values[v];
                m.attr[i].u.ints = ints;
            }
            char what[64];
            snprintf(what, sizeof what, "%s changed to %lld", attr_name(s->attr[i].key), (long long)values[v]);
            if (kind == ATTRK_INT || kind == ATTRK_INTS) try_sample(r, op, &m, false, pool, what);
        }
        if (kind == ATTRK_PROG) try_bad_programs(r, op, s, i, pool);
    }
}

static void test_shapes(void **state) {
    OpKind op = (OpKind)(intptr_t)*state;
    const OpInfo *info = op_info(op);
    Report r = {0};
    Pool *pool = backend_cpu.pool_new(1);
    for (int i = 0; i < info->nsample; i++) {
        const Sample *s = &info->samples[i];
        Sample m = *s;
        if (m.nin > 0) m.nin--, try_sample(&r, op, &m, !takes_arity(op, m.nin), pool, "an operand less");
        m = *s;
        if (m.nin > 0 && m.nin < OP_MAX_IN) {
            m.shape[m.nin] = m.shape[m.nin - 1], m.dtype[m.nin] = m.dtype[m.nin - 1];
            m.lo[m.nin] = m.lo[m.nin - 1], m.hi[m.nin] = m.hi[m.nin - 1];
            m.nin++;
            try_sample(&r, op, &m, !takes_arity(op, m.nin), pool, "an operand more");
        }
        m = *s;
        m.nin = 0;
        if (s->nin > 0) try_sample(&r, op, &m, true, pool, "no operands");
        try_shapes(&r, op, s, pool);
        try_attributes(&r, op, s, pool);
    }
    backend_cpu.pool_free(pool);
    report_end(&r);
}

// ---- gradient ------------------------------------------------------------------------------------------------------------

typedef struct GradCase {
    Arena *arena;
    Graph *forward, *joint;
    int nparam, ninput;
    double *param[OP_MAX_IN], *input[OP_MAX_IN + OP_MAX_OUT];
} GradCase;

// loss = sum over float outputs of sum(output * random weights); only output 0 if `first_only`. Bit p of `trainable`: a gradient
// of the p-th float operand is wanted.
static Status grad_case_new(GradCase *c, OpKind op, const Sample *sample, bool first_only, unsigned trainable, Diag *d) {
    *c = (GradCase){.arena = arena_new()};
    Graph *g = c->forward = graph_new(c->arena, "gradient", 1);
    Sample s = op_sample_of(c->arena, sample, DT_F64);
    ValueId ids[OP_MAX_IN];
    double *value[OP_MAX_IN];
    TRY(op_sources(g, &s, SEED, ids, value, d));
    for (int64_t p = 0; p < g->params.len; p++) g->params.data[p].trainable = trainable >> p & 1;
    for (int i = 0; i < s.nin; i++) {
        if (dtype_is_float(s.dtype[i]))
            c->param[c->nparam++] = value[i];
        else
            c->input[c->ninput++] = value[i];
    }
    NodeId id;
    TRY(graph_add(g, op, s.nin, ids, s.nattr, s.attr, NULL, PHASE_FORWARD, &id, d));
    int nout = graph_node(g, id)->nout;
    Builder b = {.g = g, .d = d};
    ValueId loss = NO_VALUE;
    for (int j = 0; j < (first_only ? 1 : nout); j++) {
        ValueId out = graph_node(g, id)->out[j], w;
        if (!dtype_is_float(graph_value(g, out)->dtype)) continue;
        Attr index = attr_i(ATTR_INDEX, g->inputs.len);
        Shape shape = *graph_shape(g, out);
        vec_push(&g->inputs, ((Input){.name = "w", .shape = shape, .dtype = DT_F64, .seq_dim = -1, .batch_dim = -1}));
        w = build(&b, OP_INPUT, 0, NULL, 1, &index);
        int64_t numel = shape_numel(&shape);
        double *data = c->input[c->ninput++] = ARENA_ARRAY(c->arena, double, numel + 1);
        for (int64_t k = 0; k < numel; k++) data[k] = 2 * random_uniform(SEED, 1, j, k) - 1;
        ValueId term = build_sum_all(&b, build_binary(&b, OP_MUL, out, w));
        loss = loss == NO_VALUE ? term : build_binary(&b, OP_ADD, loss, term);
    }
    TRY(b.status);
    if (loss == NO_VALUE) return ST_OK;  // nothing to differentiate
    graph_add_output(g, OUT_LOSS, -1, 0, "loss", loss);
    PassContext pc = {.scratch = c->arena, .nranks = 1};
    return pass_grad(&pc, g, &c->joint, d);
}

static void grad_case_free(GradCase *c) {
    if (c->joint && c->joint != c->forward) graph_free_vecs(c->joint);
    graph_free_vecs(c->forward);
    arena_free(c->arena);
}

static Reference reference_of(const GradCase *c) {
    return (Reference){.run_seed = SEED,
                       .step = 3,
                       .inputs = (const double *const *)c->input,
                       .params = (const double *const *)c->param};
}

static double loss_of(const GradCase *c, Diag *d) {
    double loss = NAN;
    Reference r = reference_of(c);
    if (reference_run(c->forward, &r, (double *[]){&loss}, d) != ST_OK) return NAN;
    return loss;
}

// Gradients by the rule, one array per parameter, zeros where the loss does not depend on it.
static Status gradients_of(const GradCase *c, double **grad, Diag *d) {
    double *out[OP_MAX_IN + 1], loss = 0;
    for (int64_t i = 0; i < c->joint->outputs.len; i++) {
        const Output *o = &c->joint->outputs.data[i];
        out[i] = o->kind == OUT_GRAD ? grad[o->param] : &loss;
        if (o->kind == OUT_GRAD && !shape_equal(graph_shape(c->joint, o->value), &c->joint->params.data[o->param].shape))
            return diag_error(d, ST_MISMATCH, "the gradient of operand %d has another shape", o->param);
    }
    Reference r = reference_of(c);
    return reference_run(c->joint, &r, out, d);
}

// Central differences of at most PROBES elements of each parameter: error h^2 f'''/6 + rounding/h.
static void compare_differences(Report *r, OpKind op, const Sample *s, const GradCase *c, double **grad) {
    enum { PROBES = 24 };
    const double h = 1e-5;
    for (int p = 0; p < c->nparam; p++) {
        int64_t n = shape_numel(&c->forward->params.data[p].shape);
        double largest = 1;
        if (!c->forward->params.data[p].trainable) continue;
        for (int64_t k = 0; k < n; k++) largest = fmax(largest, fabs(grad[p][k]));
        for (int64_t k = 0; k < n; k += n > PROBES ? n / PROBES : 1) {
            Diag d = {0};
            double at = c->param[p][k];
            c->param[p][k] = at + h;
            double up = loss_of(c, &d);
            c->param[p][k] = at - h;
            double down = loss_of(c, &d);
            c->param[p][k] = at;
            double want = (up - down) / (2 * h);
            if (fabs(grad[p][k] - want) <= 1e-6 * largest) continue;
            char why[512];
            snprintf(why, sizeof why, "%s[%lld]: rule %.9g, differences %.9g %.200s", c->forward->params.data[p].name,
                     (long long)k, grad[p][k], want, d.text);
            report_fail(r, op, s, "gradient", why);
        }
    }
}

// Defined to be something else than the derivative: stop_grad; an embedding whose padding row gets none; attention rows that see
// no key and are uniform, which get what autograd gives where adding the most negative number rounded the scores away.
static bool gradient_is_defined_otherwise(OpKind op, const Sample *s) {
    if (op == OP_STOP_GRAD) return true;
    for (int i = 0; i < s->nattr; i++) {
        if (s->attr[i].key == ATTR_SKIP && s->attr[i].u.i >= 0) return true;
        if (s->attr[i].key == ATTR_MASKED_ROW && s->attr[i].u.i == 2) return true;
    }
    return false;
}

// False: no gradient of these operands (or of this output) is to be had, and the reason is given.
static bool check_gradient_of(Report *r, OpKind op, const Sample *s, bool first_only, unsigned trainable) {
    GradCase c;
    Diag d = {0};
    double *grad[OP_MAX_IN];
    Status st = grad_case_new(&c, op, s, first_only, trainable, &d);
    for (int p = 0; p < c.nparam; p++) grad[p] = ARENA_ARRAY(c.arena, double, shape_numel(&c.forward->params.data[p].shape) + 1);
    if (st == ST_OK && c.joint) st = gradients_of(&c, grad, &d);
    if (st == ST_OK && c.joint) compare_differences(r, op, s, &c, grad);
    bool refused = st == ST_UNSUPPORTED && d.text[0];
    if (st != ST_OK && !refused) report_fail(r, op, s, "gradient", d.text);
    grad_case_free(&c);
    return !refused;
}

static void check_gradient(Report *r, OpKind op, const Sample *s) {
    unsigned all = (1u << OP_MAX_IN) - 1;
    bool any = check_gradient_of(r, op, s, false, all) || check_gradient_of(r, op, s, true, all);
    bool each = !any;  // perhaps only some operand has none (a vector of an attention mask)
    for (int i = 0, p = 0; i < s->nin && each; i++)
        if (dtype_is_float(s->dtype[i])) any |= check_gradient_of(r, op, s, true, 1u << p++);
    bool none = op_info(op)->grad_error != NULL;
    if (any == none) report_fail(r, op, s, "gradient", none ? "not refused" : "refused");
    r->nrun++;
}

static bool has_float_operand(const Sample *s) {
    for (int i = 0; i < s->nin; i++)
        if (dtype_is_float(s->dtype[i])) return true;
    return false;
}

static void test_gradient(void **state) {
    OpKind op = (OpKind)(intptr_t)*state;
    const OpInfo *info = op_info(op);
    Report r = {0};
    for (int i = 0; i < info->nsample; i++) {
        const Sample *s = &info->samples[i];
        bool has_rule = info->grad || info->grad_error;
        if (has_rule && has_float_operand(s) && !gradient_is_defined_otherwise(op, s)) check_gradient(&r, op, s);
    }
    report_end(&r);
}

// ---- kernel --------------------------------------------------------------------------------------------------------------

// No sdpa is left after the mask pass, and copies to host memory and back are steps of a plan (test_offload runs them).
static bool has_no_kernel(OpKind op) {
    return op == OP_SDPA || op == OP_OFFLOAD || op == OP_OFFLOAD_DONE || op == OP_FETCH || op == OP_FETCH_DONE;
}

static void test_kernel(void **state) {
    OpKind op = (OpKind)(intptr_t)*state;
    const OpInfo *info = op_info(op);
    Report r = {0};
    Pool *pool = backend_cpu.pool_new(2);
    static const DType reals[] = {DT_F32, DT_F64};
    for (int i = 0; i < info->nsample * 2; i++) {
        const Sample *s = &info->samples[i / 2];
        OpCase c;
        Diag d = {0};
        Str why = {0};
        bool ran;
        if (op_case_new(&c, op, s, reals[i % 2], 1, SEED, &d) != ST_OK || op_case_expect(&c, &d) != ST_OK) {
            report_fail(&r, op, s, "reference", d.text);
        } else {
            Row row = op_row_new(&c);
            if (!op_check_row(&c, &backend_cpu, pool, &row, &ran, &why))
                report_fail(&r, op, s, i % 2 ? "float64 kernel" : "float32 kernel", str_text(&why));
            if (!ran && !has_no_kernel(op)) report_fail(&r, op, s, "kernel", "there is none");
        }
        str_free(&why);
        op_case_free(&c);
    }
    backend_cpu.pool_free(pool);
    report_end(&r);
}

// ---- sharded -------------------------------------------------------------------------------------------------------------

typedef struct ShardTest {
    Report *report;
    Pool *pool;
} ShardTest;

static void check_sharded_row(OpCase *c, const Row *row, void *ctx) {
    ShardTest *t = ctx;
    Str why = {0};
    bool ran;
    t->report->nrun++;
    if (!op_row_well_formed(c, row, &why) || !op_check_row(c, &backend_cpu, t->pool, row, &ran, &why))
        report_fail(t->report, c->op, c->sample, op_row_text(c, row), str_text(&why));
    str_free(&why);
}

static void test_sharded(void **state) {
    OpKind op = (OpKind)(intptr_t)*state;
    const OpInfo *info = op_info(op);
    Report r = {0};
    ShardTest t = {.report = &r, .pool = backend_cpu.pool_new(2)};
    for (int i = 0; i < info->nsample * 3; i++) {
        OpCase c;
        Diag d = {0};
        if (op_case_new(&c, op, &info->samples[i / 3], DT_F32, 2 + i % 3, SEED, &d) != ST_OK || op_case_expect(&c, &d) != ST_OK)
            report_fail(&r, op, &info->samples[i / 3], "reference", d.text);
        else if (op_each_row(&c, check_sharded_row, &t) == 0 && op != OP_SDPA && op != OP_ADAMW)
            report_fail(&r, op, &info->samples[i / 3], "sharded", "no row at all");  // those two are whole on every rank
        op_case_free(&c);
    }
    backend_cpu.pool_free(t.pool);
    report_end(&r);
}

// ---- the table of tests --------------------------------------------------------------------------------------------------

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        CMUnitTestFunction run;
    } kinds[] = {{"shapes", test_shapes}, {"gradient", test_gradient}, {"kernel", test_kernel}, {"sharded", test_sharded}};
    enum { NKIND = sizeof kinds / sizeof *kinds };
    static struct CMUnitTest tests[OP_COUNT * NKIND];
    static char names[OP_COUNT * NKIND][64];
    size_t n = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        for (int k = 0; k < NKIND && op_info((OpKind)op)->nsample > 0; k++) {
            snprintf(names[n], sizeof names[n], "%s/%s", op_name((OpKind)op), kinds[k].name);
            if (argc > 1 && !strstr(names[n], argv[1])) continue;
            tests[n] = (struct CMUnitTest){names[n], kinds[k].run, NULL, NULL, (void *)(intptr_t)op};
            n++;
        }
    }
    return _cmocka_run_group_tests("ops", tests, n, NULL, NULL);
}
