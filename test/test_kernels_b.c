// CPU kernels of contractions and attention against the reference executor, on shapes that cross block borders, on one rank and
// under every sharding row on three; and mask predicates against evaluation point by point, with random programs.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/pool.h"
#include "backend/cpu/predicate.h"
#include "base/random.h"
#include "op_harness.h"
#include "ops/rules.h"

enum { SEED = 5, THREADS = 2 };  // the harness sizes scratch for two workers

// ---- a backend of these kernels alone -------------------------------------------------------------------------------------
typedef struct KernelRow {
    OpKind op;
    KernelFn f32, f64;
    size_t (*scratch)(const Node *n, const Operand *in, const Operand *out, int nthreads);
} KernelRow;
#define KERNEL(ENUM, name) \
    { OP_##ENUM, cpu_##name##_f32, cpu_##name##_f64, cpu_##name##_scratch }
static const KernelRow kernels[] = {KERNEL(DOT, dot),
                                    KERNEL(ATTENTION, attention),
                                    KERNEL(ATTENTION_GRAD, attention_grad),
                                    KERNEL(CONV1D, conv1d),
                                    KERNEL(CONV1D_GRAD_X, conv1d_grad_x),
                                    KERNEL(CONV1D_GRAD_W, conv1d_grad_w),
                                    KERNEL(EXPERT_MATMUL, expert_matmul),
                                    KERNEL(EXPERT_MATMUL_GRAD, expert_matmul_grad)};

static const KernelRow *kernel_row(OpKind op) {
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (kernels[i].op == op) return &kernels[i];
    return NULL;
}
static KernelFn find_kernel(OpKind op, DType real) {
    const KernelRow *r = kernel_row(op);
    return !r ? NULL : real == DT_F32 ? r->f32 : r->f64;
}
static size_t find_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    return kernel_row(n->op)->scratch(n, in, out, nthreads);
}
static const Backend backend_b = {.name = "cpu kernels b", .kernel = find_kernel, .scratch = find_scratch};

// ---- masks ------------------------------------------------------------------------------------------------------------------
#define LEAF(code_, dtype_, slot) \
    { .code = (code_), .dtype = (dtype_), .a = (slot), .b = -1, .c = -1 }
#define NUM(dtype_, v) \
    { .code = PROG_CONST, .dtype = (dtype_), .a = -1, .b = -1, .c = -1, .imm = (v) }
#define OP1(op, dtype_, x) \
    { .code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = -1, .c = -1 }
#define OP2(op, dtype_, x, y) \
    { .code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = -1 }
#define OP3(op, dtype_, x, y, z) \
    { .code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = (z) }
#define IQ LEAF(PROG_INDEX_Q, DT_I64, -1)
#define IK LEAF(PROG_INDEX_K, DT_I64, -1)
#define MASK(code, visible, bias)                                                                                     \
    {                                                                                                                 \
        .key = ATTR_PROG, .u.prog = &(const Program) {                                                                \
            .ninstr = (int)(sizeof(code) / sizeof((code)[0])), .instr = (code), .nout = 2, .out = (const int32_t[]) { \
                (visible), (bias)                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

static const Instr causal[] = {IQ, IK, OP2(LE, DT_BOOL, 1, 0)};
// k <= q + 150
static const Instr aligned_at_end[] = {IQ, IK, NUM(DT_I64, 150), OP2(ADD, DT_I64, 0, 2), OP2(LE, DT_BOOL, 1, 3)};
// k + 70 <= q: the first 70 queries see nothing
static const Instr late[] = {IQ, IK, NUM(DT_I64, 70), OP2(ADD, DT_I64, 1, 2), OP2(LE, DT_BOOL, 3, 0)};
// 0 <= q - k < 40
static const Instr window[] = {IQ,
                               IK,
                               OP2(SUB, DT_I64, 0, 1),
                               NUM(DT_I64, 0),
                               OP2(GE, DT_BOOL, 2, 3),
                               NUM(DT_I64, 40),
                               OP2(LT, DT_BOOL, 2, 5),
                               OP2(AND, DT_BOOL, 4, 6)};
// same chunk of 48 positions, or one of the first three keys
static const Instr chunks[] = {IQ,
                               IK,
                               NUM(DT_I64, 48),
                               OP2(FLOORDIV, DT_I64, 0, 2),
                               OP2(FLOORDIV, DT_I64, 1, 2),
                               OP2(EQ, DT_BOOL, 3, 4),
                               NUM(DT_I64, 3),
                               OP2(LT, DT_BOOL, 1, 6),
                               OP2(OR, DT_BOOL, 5, 7)};
// causal, same document, bias -2^-h * (q - k) / 8
static const Instr documents[] = {IQ,
                                  IK,
                                  OP2(LE, DT_BOOL, 1, 0),
                                  LEAF(PROG_VEC_Q, DT_I64, 0),
                                  LEAF(PROG_VEC_K, DT_I64, 1),
                                  OP2(EQ, DT_BOOL, 3, 4),
                                  OP2(AND, DT_BOOL, 2, 5),
                                  LEAF(PROG_INDEX_H, DT_I64, -1),
                                  OP1(CAST, DT_F32, 7),
                                  NUM(DT_F32, -0.7),
                                  OP2(MUL, DT_F32, 8, 9),
                                  OP1(EXP, DT_F32, 10),
                                  OP2(SUB, DT_I64, 1, 0),
                                  OP1(CAST, DT_F32, 12),
                                  NUM(DT_F32, 0.125),
                                  OP2(MUL, DT_F32, 13, 14),
                                  OP2(MUL, DT_F32, 11, 15)};
// keys that a bool vector per batch entry allows; a bias vector per head and query
static const Instr padding[] = {LEAF(PROG_VEC_K, DT_BOOL, 0), LEAF(PROG_VEC_Q, DT_F32, 1)};
// sin(q - k) > -0.5, products beyond 32 bits, and -inf added where k is 7 mod 11
static const Instr exotic[] = {IQ,
                               IK,
                               OP2(SUB, DT_I64, 0, 1),
                               OP1(CAST, DT_F32, 2),
                               OP1(SIN, DT_F32, 3),
                               NUM(DT_F32, -0.5),
                               OP2(GT, DT_BOOL, 4, 5),
                               NUM(DT_I64, 8589934592.0),
                               OP2(MUL, DT_I64, 0, 7),
                               OP2(MUL, DT_I64, 1, 7),
                               OP2(LE, DT_BOOL, 9, 8),
                               OP2(AND, DT_BOOL, 6, 10),
                               NUM(DT_I64, 11),
                               OP2(MOD, DT_I64, 1, 12),
                               NUM(DT_I64, 7),
                               OP2(EQ, DT_BOOL, 13, 14),
                               NUM(DT_F32, -INFINITY),
                               NUM(DT_F32, 0.25),
                               OP3(WHERE, DT_F32, 15, 16, 17)};

#define FLOATS DT_F32, DT_F32, DT_F32
#define SCALE(x) SAMPLE_F(SCALE, x)
static const Sample attention_cases[] = {
    {.label = "no mask, cross lengths",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 1,
     .attr = {SCALE(0.3)},
     .shape = {DIMS(1, 2, 140, 20), DIMS(1, 2, 300, 20), DIMS(1, 2, 300, 12)}},
    {.label = "causal, GQA",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SCALE(0.25), MASK(causal, 2, -1)},
     .shape = {DIMS(2, 4, 290, 16), DIMS(2, 2, 290, 16), DIMS(2, 2, 290, 16)}},
    {.label = "causal from the end",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SCALE(0.25), MASK(aligned_at_end, 4, -1)},
     .shape = {DIMS(1, 3, 150, 16), DIMS(1, 3, 300, 16), DIMS(1, 3, 300, 16)}},
    {.label = "window, MQA, soft-cap",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 3,
     .attr = {SCALE(0.4), SAMPLE_F(SOFTCAP, 2), MASK(window, 7, -1)},
     .shape = {DIMS(1, 5, 300, 8), DIMS(1, 1, 300, 8), DIMS(1, 1, 300, 8)}},
    {.label = "chunks",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SCALE(0.4), MASK(chunks, 8, -1)},
     .shape = {DIMS(1, 3, 280, 8), DIMS(1, 3, 280, 8), DIMS(1, 3, 280, 24)}},
    {.label = "documents, ALiBi",
     .nin = 5,
     .dtype = {FLOATS, DT_I64, DT_I64},
     .hi = {0, 0, 0, 3, 3},
     .nattr = 2,
     .attr = {SCALE(0.4), MASK(documents, 6, 16)},
     .shape = {DIMS(2, 4, 270, 8), DIMS(2, 2, 270, 8), DIMS(2, 2, 270, 8), DIMS(2, 1, 270), DIMS(2, 1, 270)}},
    {.label = "padding",
     .nin = 5,
     .dtype = {FLOATS, DT_BOOL, DT_F32},
     .nattr = 2,
     .attr = {SCALE(0.4), MASK(padding, 0, 1)},
     .shape = {DIMS(2, 2, 130, 8), DIMS(2, 2, 270, 8), DIMS(2, 2, 270, 8), DIMS(2, 1, 270), DIMS(1, 2, 130)}},
    {.label = "exotic",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SCALE(0.4), MASK(exotic, 11, 18)},
     .shape = {DIMS(1, 2, 280, 8), DIMS(1, 2, 280, 8), DIMS(1, 2, 280, 8)}},
    {.label = "unseen rows 0",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 3,
     .attr = {SCALE(0.4), SAMPLE_I(MASKED_ROW, 0), MASK(late, 4, -1)},
     .shape = {DIMS(1, 2, 270, 8), DIMS(1, 2, 270, 8), DIMS(1, 2, 270, 8)}},
    {.label = "unseen rows uniform",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 5,
     .attr = {SCALE(0.4), SAMPLE_I(MASKED_ROW, 2), SAMPLE_F(DROPOUT, 0.2), SAMPLE_I(SEED, 3), MASK(late, 4, -1)},
     .shape = {DIMS(1, 2, 270, 8), DIMS(1, 2, 270, 8), DIMS(1, 2, 270, 8)}},
    {.label = "dropout, negative scale",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 4,
     .attr = {SCALE(-0.4), SAMPLE_F(DROPOUT, 0.3), SAMPLE_I(SEED, 9), MASK(causal, 2, -1)},
     .shape = {DIMS(2, 3, 140, 8), DIMS(2, 3, 140, 8), DIMS(2, 3, 140, 8)}},
    {.label = "one query",
     .nin = 3,
     .dtype = {FLOATS},
     .nattr = 1,
     .attr = {SCALE(1)},
     .shape = {DIMS(1, 2, 1, 3), DIMS(1, 2, 5, 3), DIMS(1, 2, 5, 1)}},
};
static const Sample unseen_nan = {.label = "unseen rows NaN",
                                  .nin = 3,
                                  .dtype = {FLOATS},
                                  .nattr = 3,
                                  .attr = {SCALE(0.4), SAMPLE_I(MASKED_ROW, 1), MASK(late, 4, -1)},
                                  .shape = {DIMS(1, 2, 90, 8), DIMS(1, 2, 90, 8), DIMS(1, 2, 90, 8)}};

#define CONV(stride, dilation, groups, lo, hi) \
    SAMPLE_I(STRIDE, stride), SAMPLE_I(DILATION, dilation), SAMPLE_I(GROUPS, groups), SAMPLE_I(LO, lo), SAMPLE_I(HI, hi)
static const Sample conv_cases[] = {
    {.label = "depthwise causal",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 5,
     .attr = {CONV(1, 1, 6, 3, 0)},
     .shape = {DIMS(2, 6, 50), DIMS(6, 1, 4)}},
    {.label = "dense, strided",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 5,
     .attr = {CONV(3, 2, 1, 4, 1)},
     .shape = {DIMS(2, 5, 61), DIMS(70, 5, 3)}},
    {.label = "grouped",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 5,
     .attr = {CONV(1, 2, 3, 2, 2)},
     .shape = {DIMS(1, 9, 33), DIMS(6, 3, 3)}},
    {.label = "two out of one, strided",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 5,
     .attr = {CONV(2, 1, 4, 0, 0)},
     .shape = {DIMS(1, 4, 34), DIMS(8, 1, 5)}},
};
static const Sample dot_cases[] = {
    {.label = "linear",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SAMPLE_I(NCONTRACT, 1), SAMPLE_I(TRANS_B, 1)},
     .shape = {DIMS(2, 70, 40), DIMS(90, 40)}},
    {.label = "weight gradient",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 2,
     .attr = {SAMPLE_I(NCONTRACT, 2), SAMPLE_I(TRANS_A, 1)},
     .shape = {DIMS(2, 70, 40), DIMS(2, 70, 90)}},
    {.label = "batched",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 3,
     .attr = {SAMPLE_I(NBATCH, 2), SAMPLE_I(NCONTRACT, 1), SAMPLE_I(TRANS_B, 1)},
     .shape = {DIMS(2, 3, 20, 8), DIMS(2, 3, 30, 8)}},
    {.label = "vectors",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 1,
     .attr = {SAMPLE_I(NCONTRACT, 1)},
     .shape = {DIMS(100), DIMS(100, 40)}},
    {.label = "column",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 1,
     .attr = {SAMPLE_I(NCONTRACT, 1)},
     .shape = {DIMS(40, 100), DIMS(100, 1)}},
    {.label = "nothing to add up",
     .nin = 2,
     .dtype = {FLOATS},
     .nattr = 1,
     .attr = {SAMPLE_I(NCONTRACT, 1)},
     .shape = {DIMS(7, 0), DIMS(0, 5)}},
};
static const Sample expert_cases[] = {
    {.label = "experts",
     .nin = 3,
     .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, -1, 0},
     .hi = {0, 5, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(TRANS_W, 0)},
     .shape = {DIMS(600, 20), DIMS(600), DIMS(4, 20, 30)}},
    {.label = "experts, transposed",
     .nin = 3,
     .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, 0, 0},
     .hi = {0, 12, 0},
     .nattr = 1,
     .attr = {SAMPLE_I(TRANS_W, 1)},
     .shape = {DIMS(300, 20), DIMS(300), DIMS(12, 30, 20)}},
};
static const Sample expert_grad_cases[] = {
    {.label = "experts",
     .nin = 3,
     .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, -1, 0},
     .hi = {0, 5, 0},
     .nattr = 2,
     .attr = {SAMPLE_I(NROWS, 6), SAMPLE_I(TRANS_W, 0)},
     .shape = {DIMS(600, 20), DIMS(600), DIMS(600, 30)}},
    {.label = "experts, transposed",
     .nin = 3,
     .dtype = {DT_F32, DT_I64, DT_F32},
     .lo = {0, 0, 0},
     .hi = {0, 20, 0},
     .nattr = 2,
     .attr = {SAMPLE_I(NROWS, 20), SAMPLE_I(TRANS_W, 1)},
     .shape = {DIMS(600, 20), DIMS(600), DIMS(600, 30)}},
};

// ---- running ----------------------------------------------------------------------------------------------------------------
typedef struct Run {
    Pool *pool;
    int nfail, nrun;
} Run;

static void check_row(OpCase *c, const Row *row, void *ctx) {
    Run *run = ctx;
    Str why = {0};
    bool ran;
    run->nrun++;
    if (!op_check_row(c, &backend_b, run->pool, row, &ran, &why) && run->nfail++ < 10)
        fprintf(stderr, "%s \"%s\" %s, row %s: %s\n", op_name(c->op), c->sample->label, dtype_name(c->real), op_row_text(c, row),
                str_text(&why));
    str_free(&why);
}

static void check_rows(OpCase *c, Run *run) {
    Row whole = op_row_new(c);
    check_row(c, &whole, run);
    if (c->nranks > 1) op_each_row(c, check_row, run);
}

static void run_case(OpKind op, const Sample *s, DType real, int nranks, Run *run) {
    OpCase c;
    Diag d = {0};
    if (op_case_new(&c, op, s, real, nranks, SEED, &d) != ST_OK || op_case_expect(&c, &d) != ST_OK) {
        fprintf(stderr, "%s \"%s\": %s\n", op_name(op), s->label, d.text);
        run->nfail++;
    } else {
        check_rows(&c, run);
    }
    op_case_free(&c);
}

// The gradient of attention sample `s`: o and lse are what the forward gives.
static void run_attention_grad(const Sample *s, DType real, int nranks, Run *run) {
    Sample g = *s;
    Shape o = SHAPE(s->shape[0].dim[0], s->shape[0].dim[1], s->shape[0].dim[2], s->shape[2].dim[3]);
    g.nin = s->nin + 3;
    for (int i = 3; i < s->nin; i++)
        g.shape[i + 3] = s->shape[i], g.dtype[i + 3] = s->dtype[i], g.lo[i + 3] = s->lo[i], g.hi[i + 3] = s->hi[i];
    g.shape[3] = g.shape[5] = o;
    g.shape[4] = SHAPE(o.dim[0], o.dim[1], o.dim[2]);
    for (int i = 3; i < 6; i++) g.dtype[i] = DT_F32;
    OpCase f, c;
    Diag d = {0};
    assert_int_equal(op_case_new(&f, OP_ATTENTION, s, real, nranks, SEED, &d), ST_OK);
    Diag none = {0};
    assert_int_equal(op_case_new(&c, OP_ATTENTION_GRAD, &g, real, nranks, SEED, &none), ST_OK);
    for (int i = 0; i < s->nin; i++)  // operands are drawn by their number
        memcpy(f.in[i], c.in[i < 3 ? i : i + 3], (size_t)shape_numel(&s->shape[i]) * sizeof(double));
    assert_int_equal(op_case_expect(&f, &d), ST_OK);
    for (int64_t i = 0; i < shape_numel(&g.shape[3]); i++) c.in[3][i] = real == DT_F32 ? (float)f.out[0][i] : f.out[0][i];
    for (int64_t i = 0; i < shape_numel(&g.shape[4]); i++) c.in[4][i] = real == DT_F32 ? (float)f.out[1][i] : f.out[1][i];
    assert_int_equal(op_case_expect(&c, &d), ST_OK);
    check_rows(&c, run);
    op_case_free(&f);
    op_case_free(&c);
}

static void run_end(Run *run) {
    pool_free(run->pool);
    printf("%d runs\n", run->nrun);
    assert_int_equal(run->nfail, 0);
}
#define EACH(array, s) (const Sample *s = array; s < array + sizeof array / sizeof array[0]; s++)

static void test_attention(void **state) {
    (void)state;
    Run run = {.pool = pool_new(THREADS)};
    for
        EACH(attention_cases, s)
    for (int real = 0; real < 2; real++) {
        run_case(OP_ATTENTION, s, real ? DT_F64 : DT_F32, real ? 3 : 1, &run);
        run_attention_grad(s, real ? DT_F64 : DT_F32, real ? 3 : 1, &run);
    }
    run_case(OP_ATTENTION, &unseen_nan, DT_F32, 1, &run);
    run_end(&run);
}

static void test_conv1d(void **state) {
    (void)state;
    Run run = {.pool = pool_new(THREADS)};
    for
        EACH(conv_cases, s)
    for (int real = 0; real < 2; real++) {
        DType t = real ? DT_F64 : DT_F32;
        int64_t stride = s->attr[0].u.i, dilation = s->attr[1].u.i, lo = s->attr[3].u.i, hi = s->attr[4].u.i,
                taps = s->shape[1].dim[2];
        int64_t len = (s->shape[0].dim[2] + lo + hi - dilation * (taps - 1) - 1) / stride + 1;
        Sample gx = *s, gw = *s;
        gx.shape[0] = gw.shape[0] = SHAPE(s->shape[0].dim[0], s->shape[1].dim[0], len);
        gx.nattr = gw.nattr = 6;
        gx.attr[5] = attr_i(ATTR_LENGTH, s->shape[0].dim[2]);
        gw.shape[1] = s->shape[0], gw.attr[5] = attr_i(ATTR_KERNEL, taps);
        run_case(OP_CONV1D, s, t, 3, &run);
        run_case(OP_CONV1D_GRAD_X, &gx, t, 3, &run);
        run_case(OP_CONV1D_GRAD_W, &gw, t, 3, &run);
    }
    run_end(&run);
}

static void test_dot_and_experts(void **state) {
    (void)state;
    Run run = {.pool = pool_new(THREADS)};
    for (int real = 0; real < 2; real++) {
        DType t = real ? DT_F64 : DT_F32;
        for
            EACH(dot_cases, s) run_case(OP_DOT, s, t, 3, &run);
        for
            EACH(expert_cases, s) run_case(OP_EXPERT_MATMUL, s, t, 3, &run);
        for
            EACH(expert_grad_cases, s) run_case(OP_EXPERT_MATMUL_GRAD, s, t, 3, &run);
    }
    run_end(&run);
}

// ---- predicates -------------------------------------------------------------------------------------------------------------
enum { NQ = 70, NK = 200, BLOCK = 64, NINSTR = 14, NPROGRAM = 3000 };

typedef struct Dice {
    uint64_t key;
    int64_t at;
} Dice;
static int64_t roll(Dice *d, int64_t n) { return (int64_t)(random_at(d->key, d->at++) * (double)n); }

// A random instruction of the given type if some operands for it exist.
static bool random_instr(Dice *d, const Instr *prog, int n, Instr *out) {
    static const OpKind ints[] = {OP_NEG, OP_ABS, OP_SIGN,     OP_ADD, OP_SUB,  OP_MUL,
                                  OP_MAX, OP_MIN, OP_FLOORDIV, OP_MOD, OP_CAST, OP_WHERE, OP_POW};
    static const OpKind reals[] = {OP_NEG, OP_ABS, OP_FLOOR, OP_EXP, OP_TANH, OP_SIN, OP_SQRT, OP_LOG,
                                   OP_ADD, OP_SUB, OP_MUL,   OP_DIV, OP_MAX,  OP_MIN, OP_CAST, OP_WHERE};
    static const OpKind bools[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_AND, OP_OR, OP_XOR, OP_NOT, OP_CAST};
    static const DType types[] = {DT_I64, DT_F64, DT_BOOL};
    DType t = types[roll(d, 3)];
    OpKind op = t == DT_I64 ? ints[roll(d, 13)] : t == DT_F64 ? reals[roll(d, 16)] : bools[roll(d, 11)];
    int arity = program_op_arity(op);
    int32_t arg[3] = {-1, -1, -1};
    for (int i = 0; i < arity; i++) arg[i] = (int32_t)roll(d, n);
    DType x = prog[arg[0]].dtype, y = arity > 1 ? prog[arg[1]].dtype : x;
    bool compare = op == OP_EQ || op == OP_NE || op == OP_LT || op == OP_LE || op == OP_GT || op == OP_GE;
    if (op == OP_WHERE ? x != DT_BOOL || y != t || prog[arg[2]].dtype != t
        : compare      ? x != y
                       : op != OP_CAST && (x != t || y != t))
        return false;
    // By a divisor that may be 0 nothing is defined.
    if ((op == OP_FLOORDIV || op == OP_MOD) && (prog[arg[1]].code != PROG_CONST || prog[arg[1]].imm == 0)) return false;
    if (op == OP_POW && (prog[arg[1]].code != PROG_CONST || prog[arg[1]].imm < 0 || prog[arg[1]].imm > 4)) return false;
    *out = (Instr){.code = PROG_OP + (int)op, .dtype = t, .a = arg[0], .b = arg[1], .c = arg[2]};
    return true;
}

static int random_program(Dice *d, Instr *p) {
    const Instr leaves[] = {IQ,
                            IK,
                            LEAF(PROG_INDEX_H, DT_I64, -1),
                            LEAF(PROG_VEC_Q, DT_I64, 0),
                            LEAF(PROG_VEC_K, DT_I64, 1),
                            LEAF(PROG_VEC_K, DT_F64, 2),
                            NUM(DT_I64, (double)(roll(d, 100) - 20)),
                            NUM(DT_F64, (double)roll(d, 20) / 4 - 2)};
    int n = 0;
    for (; n < 8; n++) p[n] = leaves[n];
    for (int tries = 0; n < NINSTR && tries < 400; tries++)
        if (random_instr(d, p, n, &p[n])) n++;
    return n;
}

static Operand vec_operand(DType t, int64_t n, void *data) {
    return (Operand){.dtype = t, .ndim = 3, .sdim = -1, .dim = {1, 1, n}, .global = {1, 1, n}, .data = data};
}

// Every verdict about a block must hold at each of its points, and evaluation by lanes must equal evaluation by points.
static int check_program(Dice *d, const Program *p, const Operand *vec, void *shared, void *own) {
    Predicate pred;
    PredWorker w;
    int bad = 0;
    predicate_bind(&pred, p, 3, vec, DT_F64, 1, 4, NQ, NK, BLOCK, shared);
    predicate_worker(&w, &pred, own);
    int64_t h = roll(d, 4), q0 = roll(d, NQ), q1 = q0 + 1 + roll(d, NQ - q0), next = 0;
    predicate_queries(&w, 0, h, q0, q1);
    BlockVerdict v;
    while ((next = predicate_next(&w, next, &v)) < pred.nblock) next++;
    double value[NINSTR], at[3];
    bool known[NINSTR];
    bool visited[(NK + BLOCK - 1) / BLOCK] = {false};
    for (int64_t kb = 0; (kb = predicate_next(&w, kb, &v)) < pred.nblock; kb++) visited[kb] = true;
    for (int64_t kb = 0; kb < pred.nblock; kb++) {
        int64_t k0 = kb * BLOCK, nk = min_i64(BLOCK, NK - k0), t0 = k0, tn = nk;
        v = predicate_keys(&w, k0, nk);
        predicate_trim(&w, &t0, &tn);
        predicate_block(&w, k0, nk, (BlockVerdict){PRED_MIXED, true});
        for (int64_t q = q0; q < q1; q++) {
            const uint8_t *visible;
            const void *bias;
            predicate_row(&w, q, &visible, &bias);
            for (int64_t k = k0; k < k0 + nk; k++) {
                at[0] = (double)((int64_t *)vec[0].data)[q], at[1] = (double)((int64_t *)vec[1].data)[k],
                at[2] = ((double *)vec[2].data)[k];
                program_eval_scalar(p, &(ProgPoint){0, h, q, k, at}, value, known);
                bool big = false;  // beyond what doubles hold exactly, the point-wise evaluation is no oracle
                for (int i = 0; i < p->ninstr; i++) big |= p->instr[i].dtype == DT_I64 && !(fabs(value[i]) < 0x1p53);
                bool see = value[p->out[0]] != 0, hidden = value[p->out[1]] == -INFINITY;
                if (big) continue;
                if ((v.visible == PRED_ALL && !see) || (v.visible == PRED_NONE && see && !hidden)) bad++;
                if (!visited[kb] && see && !hidden) bad++;
                if ((k < t0 || k >= t0 + tn) && see && !hidden) bad++;
                if (!v.bias && value[p->out[1]] != 0) bad++;
                double have = bias ? ((const double *)bias)[k - k0] : 0, want = value[p->out[1]];
                if ((visible ? visible[k - k0] != 0 : true) != see) bad++;
                if (!(have == want || (isnan(have) && isnan(want)) || fabs(have - want) <= 1e-12 * fabs(want))) bad++;
            }
        }
    }
    return bad;
}

static void test_predicates(void **state) {
    (void)state;
    int64_t vq[NQ], vk[NK];
    double fk[NK];
    Dice d = {.key = random_key(SEED, 0, 0)};
    for (int i = 0; i < NQ; i++) vq[i] = i / 9;
    for (int i = 0; i < NK; i++) vk[i] = i / 30 + roll(&d, 2), fk[i] = (double)roll(&d, 9) / 2 - 2;
    Operand vec[3] = {vec_operand(DT_I64, NQ, vq), vec_operand(DT_I64, NK, vk), vec_operand(DT_F64, NK, fk)};
    int nbad = 0, ntried = 0;
    for (int i = 0; i < NPROGRAM; i++) {
        Instr instr[NINSTR];
        int n = random_program(&d, instr), visible = -1, bias = -1;
        for (int j = 8; j < n; j++) {
            if (instr[j].dtype == DT_BOOL) visible = j;
            if (instr[j].dtype == DT_F64) bias = j;
        }
        if (visible < 0) continue;
        if (bias < 0) bias = 7;
        Program p = {.ninstr = n, .instr = instr, .nout = 2, .out = (const int32_t[]){visible, bias}};
        void *shared = malloc(predicate_nbytes(&p, 3, vec, NK, BLOCK) + 1), *own = malloc(predicate_worker_nbytes(&p, BLOCK) + 1);
        assert_non_null(shared);
        assert_non_null(own);
        int bad = check_program(&d, &p, vec, shared, own);
        if (bad && nbad++ < 3)
            for (int j = 0; j < n; j++)
                fprintf(stderr, "program %d: %%%d = %s %s %d %d %d imm %g%s\n", i, j, dtype_name(instr[j].dtype),
                        instr[j].code >= PROG_OP ? op_name((OpKind)(instr[j].code - PROG_OP)) : "leaf", instr[j].a, instr[j].b,
                        instr[j].c, instr[j].imm,
                        j == visible ? " visible"
                        : j == bias  ? " bias"
                                     : "");
        ntried++;
        free(shared), free(own);
    }
    printf("%d programs\n", ntried);
    assert_int_equal(nbad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_predicates), cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_conv1d), cmocka_unit_test(test_dot_and_experts)};
    cpu_blas_init();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
