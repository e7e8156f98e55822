// CPU kernels that are not contractions, beyond the op table's samples: random shapes and attributes against the reference
// executor, on one rank and on three; sizes that take every path (several pieces, tiles, blocks); results that do not depend on
// the number of threads; memory taken over; special values; errors; and the elementary functions against the C library.
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "backend/cpu/pool.h"
#include "backend/cpu/vmath.h"
#include "base/random.h"
#include "op_harness.h"

// ---- random numbers for shapes ------------------------------------------------------------------------------------------

typedef struct Dice {
    uint64_t seed;
    int64_t next;
} Dice;

static int64_t roll(Dice *d, int64_t lo, int64_t hi) {  // [lo, hi)
    return lo + (int64_t)(random_uniform(d->seed, 0, 0, d->next++) * (double)(hi - lo));
}

static Shape roll_shape(Dice *d, int min_dims, int max_dims, int64_t max_dim) {
    Shape s = {.ndim = (int)roll(d, min_dims, max_dims + 1)};
    for (int i = 0; i < s.ndim; i++) s.dim[i] = roll(d, 0, 5) == 0 ? 1 : roll(d, 1, max_dim + 1);
    return s;
}

// Some dims dropped from the front, some made 1.
static Shape roll_broadcast(Dice *d, Shape s) {
    int drop = roll(d, 0, 3) == 0 ? (int)roll(d, 0, s.ndim + 1) : 0;
    Shape b = {.ndim = s.ndim - drop};
    for (int i = 0; i < b.ndim; i++) b.dim[i] = roll(d, 0, 3) == 0 ? 1 : s.dim[i + drop];
    return b;
}

// ---- random samples, one maker per kind of op ---------------------------------------------------------------------------

typedef struct Making {
    Dice dice;
    Sample s;
    int64_t ints[2 * MAX_DIMS];  // attribute arrays
} Making;

static void add_operand(Making *m, Shape shape, DType t, int64_t lo, int64_t hi) {
    int i = m->s.nin++;
    m->s.shape[i] = shape, m->s.dtype[i] = t, m->s.lo[i] = lo, m->s.hi[i] = hi;
}
static void add_attr(Making *m, Attr a) { m->s.attr[m->s.nattr++] = a; }

static void make_unary(Making *m) { add_operand(m, roll_shape(&m->dice, 0, 4, 12), DT_F32, 1, 16); }
static void make_binary(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 5, 9);
    DType t = roll(&m->dice, 0, 3) == 0 ? DT_I64 : DT_F32;
    add_operand(m, roll_broadcast(&m->dice, s), t, 1, 9);
    add_operand(m, roll_broadcast(&m->dice, s), t, 1, 5);
}
static void make_where(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 9);
    DType t = (DType[]){DT_F32, DT_I64, DT_BOOL}[roll(&m->dice, 0, 3)];
    add_operand(m, roll_broadcast(&m->dice, s), DT_BOOL, 0, 0);
    add_operand(m, roll_broadcast(&m->dice, s), t, 0, 0);
    add_operand(m, roll_broadcast(&m->dice, s), t, 0, 0);
}
static void make_permute(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 5, 20);
    for (int i = 0; i < s.ndim; i++) {
        int j = (int)roll(&m->dice, 0, i + 1);
        m->ints[i] = m->ints[j], m->ints[j] = i;
    }
    add_operand(m, s, (DType[]){DT_F32, DT_I64, DT_BOOL}[roll(&m->dice, 0, 3)], 0, 0);
    add_attr(m, attr_ints(ATTR_DIMS, s.ndim, m->ints));
}
static void make_broadcast(Making *m) {
    Shape to = roll_shape(&m->dice, 1, 4, 9), from = to;
    for (int i = 0; i < to.ndim; i++) {
        m->ints[i] = to.dim[i];
        if (roll(&m->dice, 0, 2)) from.dim[i] = 1;
    }
    add_operand(m, from, DT_F32, 0, 0);
    add_attr(m, attr_ints(ATTR_SHAPE, to.ndim, m->ints));
}
static void make_slice(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 12);
    int dim = (int)roll(&m->dice, 0, s.ndim);
    s.dim[dim] += 4;
    int64_t start = roll(&m->dice, 0, s.dim[dim]), step = roll(&m->dice, 0, 2) ? 1 : roll(&m->dice, 2, 4);
    int64_t most = (s.dim[dim] - 1 - start) / step + 1;
    add_operand(m, s, DT_F32, 0, 0);
    add_attr(m, attr_i(ATTR_DIM, dim));
    add_attr(m, attr_i(ATTR_START, start));
    add_attr(m, attr_i(ATTR_STEP, step));
    add_attr(m, attr_i(ATTR_LENGTH, roll(&m->dice, 0, most + 1)));
}
static void make_pad(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 9);
    add_operand(m, s, roll(&m->dice, 0, 2) ? DT_F32 : DT_I64, 0, 0);
    add_attr(m, attr_i(ATTR_DIM, roll(&m->dice, 0, s.ndim)));
    add_attr(m, attr_i(ATTR_LO, roll(&m->dice, 0, 4)));
    add_attr(m, attr_i(ATTR_HI, roll(&m->dice, 0, 4)));
    add_attr(m, attr_f(ATTR_VALUE, -7));
}
static void make_concat(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 7);
    int dim = (int)roll(&m->dice, 0, s.ndim), n = (int)roll(&m->dice, 1, 5);
    for (int i = 0; i < n; i++) {
        s.dim[dim] = roll(&m->dice, 0, 7);
        add_operand(m, s, DT_F32, 0, 0);
    }
    add_attr(m, attr_i(ATTR_DIM, dim));
}
static void make_reduce(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 5, 14);
    int n = 0;
    for (int i = 0; i < s.ndim; i++)
        if (roll(&m->dice, 0, 2)) m->ints[n++] = i;
    if (n == 0) m->ints[n++] = roll(&m->dice, 0, s.ndim);
    add_operand(m, s, roll(&m->dice, 0, 3) ? DT_F32 : DT_I64, 0, 0);
    add_attr(m, attr_ints(ATTR_DIMS, n, m->ints));
}
static void make_along(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 30);
    add_operand(m, s, DT_F32, 0, 0);
    add_attr(m, attr_i(ATTR_DIM, roll(&m->dice, 0, s.ndim)));
}
static void make_cumsum(Making *m) {
    make_along(m);
    add_attr(m, attr_i(ATTR_REVERSE, roll(&m->dice, 0, 2)));
}
static void make_sort(Making *m) {
    make_along(m);
    if (roll(&m->dice, 0, 2)) m->s.dtype[0] = DT_I64;  // few values: many ties
    add_attr(m, attr_i(ATTR_DESCENDING, roll(&m->dice, 0, 2)));
}
static void make_topk(Making *m) {
    make_sort(m);
    add_attr(m, attr_i(ATTR_K, roll(&m->dice, 1, m->s.shape[0].dim[m->s.attr[0].u.i] + 1)));
}
static void make_embedding(Making *m) {
    Shape table = roll_shape(&m->dice, 1, 3, 12);
    add_operand(m, table, DT_F32, 0, 0);
    add_operand(m, roll_shape(&m->dice, 0, 3, 6), DT_I64, 0, table.dim[0]);
}
static void make_embedding_grad(Making *m) {
    Shape index = roll_shape(&m->dice, 1, 2, 6), g = index;
    int64_t nrows = roll(&m->dice, 1, 9);
    for (int i = (int)roll(&m->dice, 0, 3); i > 0; i--) g.dim[g.ndim++] = roll(&m->dice, 1, 40);
    add_operand(m, index, DT_I64, 0, nrows);
    add_operand(m, g, DT_F32, 0, 0);
    add_attr(m, attr_i(ATTR_NROWS, nrows));
    add_attr(m, attr_i(ATTR_SKIP, roll(&m->dice, -1, nrows)));
}
static void make_pick(Making *m) {
    Shape x = roll_shape(&m->dice, 1, 4, 9), index = x;
    index.ndim--;
    add_operand(m, x, DT_F32, 0, 0);
    add_operand(m, index, DT_I64, 0, x.dim[x.ndim - 1]);
}
static void make_gather(Making *m) {
    Shape x = roll_shape(&m->dice, 1, 4, 7), index = x;
    int dim = (int)roll(&m->dice, 0, x.ndim);
    for (int i = 0; i < x.ndim; i++)
        if (roll(&m->dice, 0, 4) == 0) index.dim[i] = roll(&m->dice, 1, x.dim[i] + 1);
    index.dim[dim] = roll(&m->dice, 1, 9);
    add_operand(m, x, DT_F32, 0, 0);
    add_operand(m, index, DT_I64, 0, x.dim[dim]);
    add_attr(m, attr_i(ATTR_DIM, dim));
}
static void make_scatter_add(Making *m) {
    make_gather(m);
    Shape src = m->s.shape[1];
    for (int i = 0; i < src.ndim; i++)
        if (roll(&m->dice, 0, 4) == 0) src.dim[i] += 2;
    add_operand(m, src, DT_F32, 0, 0);
}
static void make_index_put(Making *m) {
    Shape x = roll_shape(&m->dice, 1, 3, 12), src = x;
    src.dim[0] = roll(&m->dice, 1, 9);
    add_operand(m, x, DT_F32, 0, 0);
    add_operand(m, SHAPE(src.dim[0]), DT_I64, 0, x.dim[0]);
    add_operand(m, src, DT_F32, 0, 0);
    add_attr(m, attr_i(ATTR_ACCUMULATE, roll(&m->dice, 0, 2)));
}
static void make_histogram(Making *m) {
    add_operand(m, roll_shape(&m->dice, 1, 3, 9), DT_I64, -2, 9);
    add_attr(m, attr_i(ATTR_NROWS, 6));
}
static void make_random(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 9);
    for (int i = 0; i < s.ndim; i++) m->ints[i] = s.dim[i];
    add_attr(m, attr_ints(ATTR_SHAPE, s.ndim, m->ints));
    add_attr(m, attr_i(ATTR_DTYPE, DT_F32));
    add_attr(m, attr_i(ATTR_SEED, 5));
}
static void make_iota(Making *m) {
    Shape s = roll_shape(&m->dice, 1, 4, 9);
    for (int i = 0; i < s.ndim; i++) m->ints[i] = s.dim[i];
    add_attr(m, attr_ints(ATTR_SHAPE, s.ndim, m->ints));
    add_attr(m, attr_i(ATTR_DTYPE, roll(&m->dice, 0, 2) ? DT_F32 : DT_I64));
    add_attr(m, attr_i(ATTR_DIM, roll(&m->dice, 0, s.ndim)));
    add_attr(m, attr_i(ATTR_START, 3));
    add_attr(m, attr_i(ATTR_STEP, -2));
}

static const struct {
    OpKind op;
    void (*make)(Making *m);
} makers[] = {
    {OP_EXP, make_unary},        {OP_SIN, make_unary},       {OP_GELU, make_unary},        {OP_ADD, make_binary},
    {OP_MUL, make_binary},       {OP_POW, make_binary},      {OP_FLOORDIV, make_binary},   {OP_MOD, make_binary},
    {OP_MAX, make_binary},       {OP_LT, make_binary},       {OP_WHERE, make_where},       {OP_PERMUTE, make_permute},
    {OP_BROADCAST, make_broadcast}, {OP_SLICE, make_slice},  {OP_PAD, make_pad},           {OP_CONCAT, make_concat},
    {OP_SUM, make_reduce},       {OP_AMAX, make_reduce},     {OP_LOGSUMEXP, make_along},   {OP_CUMSUM, make_cumsum},
    {OP_SORT, make_sort},        {OP_TOPK, make_topk},       {OP_EMBEDDING, make_embedding},
    {OP_EMBEDDING_GRAD, make_embedding_grad},
    {OP_PICK, make_pick},        {OP_GATHER, make_gather},   {OP_SCATTER_ADD, make_scatter_add}, {OP_INDEX_PUT, make_index_put},
    {OP_HISTOGRAM, make_histogram}, {OP_RANDOM, make_random}, {OP_IOTA, make_iota},
};
enum { NMAKER = sizeof makers / sizeof *makers, ROUNDS = 6 };

// ---- random shapes ------------------------------------------------------------------------------------------------------

static Pool *pools[4];  // [n]: n threads; 0 unused

static void check_row(OpCase *c, const Row *row, void *pool) {
    Str why = {0};
    bool ran;
    if (!op_check_row(c, &backend_cpu, pool, row, &ran, &why)) {
        Str text = {0};
        graph_print(c->g, &text);
        fail_msg("%s: %s\n%s\n%s", op_name(c->op), str_text(&why), op_row_text(c, row), str_text(&text));
    }
    str_free(&why);
}

static void check_sample(OpKind op, const Sample *s, DType real, int nranks, uint64_t seed) {
    OpCase c;
    Diag d = {0};
    if (op_case_new(&c, op, s, real, nranks, seed, &d) != ST_OK || op_case_expect(&c, &d) != ST_OK) fail_msg("%s", d.text);
    Row row = op_row_new(&c);
    check_row(&c, &row, pools[2]);
    if (nranks > 1) op_each_row(&c, check_row, pools[2]);
    op_case_free(&c);
}

static void test_random_shapes(void **state) {
    (void)state;
    for (int i = 0; i < NMAKER; i++)
        for (int round = 0; round < ROUNDS; round++) {
            Making m = {.dice = {.seed = (uint64_t)(1000 * i + round)}};
            makers[i].make(&m);
            check_sample(makers[i].op, &m.s, round % 2 ? DT_F32 : DT_F64, round % 3 ? 3 : 1, m.dice.seed);
        }
}

// ---- sizes that take every path -----------------------------------------------------------------------------------------

#define INTS(KEY, ...) \
    {.key = ATTR_##KEY, .n = sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), .u.ints = (const int64_t[]){__VA_ARGS__}}
#define INT(KEY, v) {.key = ATTR_##KEY, .u.i = (v)}
#define DIMS(...) {.ndim = sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), .dim = {__VA_ARGS__}}
#define ONE(SHAPE_, T) .nin = 1, .shape = {SHAPE_}, .dtype = {T}
#define TWO(A, B, TA, TB) .nin = 2, .shape = {A, B}, .dtype = {TA, TB}

// gelu(a*b + 3), a*b < a, and a*b itself, of which an output is read by a later instruction
static const Instr group_instr[] = {
    {PROG_INPUT, DT_F32, 0, -1, -1, 0},      {PROG_INPUT, DT_F32, 1, -1, -1, 0},     {PROG_OP + OP_MUL, DT_F32, 0, 1, -1, 0},
    {PROG_CONST, DT_F32, -1, -1, -1, 3},     {PROG_OP + OP_ADD, DT_F32, 2, 3, -1, 0}, {PROG_OP + OP_GELU, DT_F32, 4, -1, -1, 0},
    {PROG_OP + OP_LT, DT_BOOL, 2, 0, -1, 0}, {PROG_OP + OP_WHERE, DT_F32, 6, 5, 0, 0},
};
static const Program group = {.ninstr = 8, .instr = group_instr, .nout = 4, .out = (const int32_t[]){7, 6, 2, 2}};

static const struct {
    OpKind op;
    Sample s;
} large[] = {
    {OP_SUM, {ONE(DIMS(300001), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_SUM, {ONE(DIMS(70000, 3), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_SUM, {ONE(DIMS(400, 700), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_SUM, {ONE(DIMS(3, 700, 2, 50), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 1, 3)}}},
    {OP_SUM, {ONE(DIMS(90, 5, 300), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0, 2)}}},
    {OP_SUM, {ONE(DIMS(200000), DT_BOOL), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_AMAX, {ONE(DIMS(100000), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_AMAX, {ONE(DIMS(2, 40000), DT_I64), .nattr = 1, .attr = {INTS(DIMS, 1)}}},
    {OP_LOGSUMEXP, {ONE(DIMS(30, 2001), DT_F32), .nattr = 1, .attr = {INT(DIM, 1)}}},
    {OP_LOGSUMEXP, {ONE(DIMS(3, 301, 130), DT_F32), .nattr = 1, .attr = {INT(DIM, 1)}}},
    {OP_CUMSUM, {ONE(DIMS(3, 2000, 70), DT_F32), .nattr = 2, .attr = {INT(DIM, 1), INT(REVERSE, 1)}}},
    {OP_PERMUTE, {ONE(DIMS(257, 131), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 1, 0)}}},
    {OP_PERMUTE, {ONE(DIMS(3, 70, 5, 40), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0, 2, 1, 3)}}},
    {OP_PERMUTE, {ONE(DIMS(40, 30, 50), DT_BOOL), .nattr = 1, .attr = {INTS(DIMS, 2, 0, 1)}}},
    {OP_BROADCAST, {ONE(DIMS(40, 1, 60), DT_F32), .nattr = 1, .attr = {INTS(SHAPE, 40, 30, 60)}}},
    {OP_ADD, {TWO(DIMS(60, 1, 70), DIMS(50, 1), DT_F32, DT_F32)}},
    {OP_MUL, {TWO(DIMS(150000), DIMS(1), DT_F32, DT_F32)}},
    {OP_FUSED, {TWO(DIMS(200, 700), DIMS(700), DT_F32, DT_F32), .nattr = 1, .attr = {{.key = ATTR_PROG, .u.prog = &group}}}},
    {OP_FUSED, {TWO(DIMS(150000), DIMS(150000), DT_F32, DT_F32), .nattr = 1, .attr = {{.key = ATTR_PROG, .u.prog = &group}}}},
    {OP_SORT, {ONE(DIMS(2, 5000), DT_I64), .hi = {700}, .nattr = 2, .attr = {INT(DIM, 1), INT(DESCENDING, 1)}}},
    {OP_SORT, {ONE(DIMS(5000, 3), DT_F32), .nattr = 2, .attr = {INT(DIM, 0), INT(DESCENDING, 0)}}},
    {OP_EMBEDDING, {TWO(DIMS(50, 80), DIMS(3, 300), DT_F32, DT_I64), .hi = {0, 50}}},
    {OP_EMBEDDING_GRAD, {TWO(DIMS(900), DIMS(900, 80), DT_I64, DT_F32), .hi = {50}, .nattr = 2,
                         .attr = {INT(NROWS, 50), INT(SKIP, 7)}}},
    {OP_EMBEDDING_GRAD, {TWO(DIMS(9000), DIMS(9000, 3), DT_I64, DT_F32), .hi = {900}, .nattr = 2,
                         .attr = {INT(NROWS, 900), INT(SKIP, -1)}}},
};
enum { NLARGE = sizeof large / sizeof *large };

static void test_large(void **state) {
    (void)state;
    for (int i = 0; i < NLARGE; i++) check_sample(large[i].op, &large[i].s, i % 2 ? DT_F32 : DT_F64, 1, 77);
    for (int i = 0; i < NLARGE; i++) check_sample(large[i].op, &large[i].s, DT_F32, 1, 78);
}

// ---- running a kernel directly ------------------------------------------------------------------------------------------

typedef struct Direct {
    OpCase c;
    Operand in[OP_MAX_IN], out[OP_MAX_OUT];
    void *scratch;
} Direct;

static size_t nbytes_of(const Operand *o) {
    size_t n = (size_t)dtype_nbytes(o->dtype);
    for (int i = 0; i < o->ndim; i++) n *= (size_t)o->dim[i];
    return n;
}

static Operand whole_operand(const OpCase *c, ValueId v, const double *value) {
    const Shape *s = graph_shape(c->g, v);
    Operand o = {.dtype = graph_value(c->g, v)->dtype, .ndim = s->ndim, .sdim = -1};
    for (int i = 0; i < s->ndim; i++) o.dim[i] = o.global[i] = s->dim[i];
    o.data = arena_alloc(c->arena, nbytes_of(&o) + 64);
    for (int64_t i = 0; value && i < shape_numel(s); i++) {
        if (o.dtype == DT_F32) ((float *)o.data)[i] = (float)value[i];
        else if (o.dtype == DT_F64) ((double *)o.data)[i] = value[i];
        else if (o.dtype == DT_I64) ((int64_t *)o.data)[i] = (int64_t)value[i];
        else ((uint8_t *)o.data)[i] = value[i] != 0;
    }
    return o;
}

static void direct_new(Direct *t, OpKind op, const Sample *s, DType real) {
    Diag d = {0};
    *t = (Direct){0};
    if (op_case_new(&t->c, op, s, real, 1, 5, &d) != ST_OK) fail_msg("%s", d.text);
    const Node *n = op_case_node(&t->c);
    for (int i = 0; i < n->nin; i++) t->in[i] = whole_operand(&t->c, n->in[i], t->c.in[i]);
    for (int j = 0; j < n->nout; j++) t->out[j] = whole_operand(&t->c, n->out[j], NULL);
}

static Status direct_run(Direct *t, Pool *pool, Diag *d) {
    const Node *n = op_case_node(&t->c);
    size_t nbytes = backend_cpu.scratch(n, t->in, t->out, pool_nthreads(pool));
    void *scratch = arena_alloc(t->c.arena, nbytes + 64);
    KernelArgs k = {.node = n, .nin = n->nin, .nout = n->nout, .in = t->in, .out = t->out, .pool = pool};
    k.scratch_nbytes = nbytes;
    k.scratch = (char *)scratch + (64 - (uintptr_t)scratch % 64) % 64;
    return backend_cpu.kernel(n->op, t->c.real)(&k, d);
}

// One, two and three threads give the same bits.
static void test_threads(void **state) {
    (void)state;
    for (int i = 0; i < NLARGE; i++) {
        Direct t;
        Diag d = {0};
        direct_new(&t, large[i].op, &large[i].s, DT_F32);
        assert_int_equal(direct_run(&t, pools[1], &d), ST_OK);
        for (int threads = 2; threads <= 3; threads++)
            for (int j = 0; j < t.c.nout; j++) {
                void *want = t.out[j].data;
                t.out[j].data = arena_alloc(t.c.arena, nbytes_of(&t.out[j]));
                assert_int_equal(direct_run(&t, pools[threads], &d), ST_OK);
                if (memcmp(want, t.out[j].data, nbytes_of(&t.out[j])))
                    fail_msg("%s: %d threads give other bits", op_name(large[i].op), threads);
            }
        op_case_free(&t.c);
    }
}

// The plan may give an output the memory of an operand of its own shape.
static void test_take_over(void **state) {
    (void)state;
    static const Sample add = {TWO(DIMS(90, 70), DIMS(70), DT_F32, DT_F32)};
    static const Sample fused = {TWO(DIMS(90, 70), DIMS(90, 70), DT_F32, DT_F32), .nattr = 1,
                                 .attr = {{.key = ATTR_PROG, .u.prog = &group}}};
    const struct { OpKind op; const Sample *s; int out, in; } cases[] = {
        {OP_ADD, &add, 0, 0}, {OP_FUSED, &fused, 0, 0}, {OP_FUSED, &fused, 2, 0}, {OP_FUSED, &fused, 3, 1}};
    for (int i = 0; i < 4; i++) {
        Direct t;
        Diag d = {0};
        direct_new(&t, cases[i].op, cases[i].s, DT_F32);
        assert_int_equal(direct_run(&t, pools[2], &d), ST_OK);
        void *want[OP_MAX_OUT];
        for (int j = 0; j < t.c.nout; j++) {
            want[j] = t.out[j].data;
            t.out[j].data = j == cases[i].out ? t.in[cases[i].in].data : arena_alloc(t.c.arena, nbytes_of(&t.out[j]));
        }
        assert_int_equal(direct_run(&t, pools[2], &d), ST_OK);
        for (int j = 0; j < t.c.nout; j++) assert_memory_equal(want[j], t.out[j].data, nbytes_of(&t.out[j]));
        op_case_free(&t.c);
    }
}

// ---- special values and errors ------------------------------------------------------------------------------------------

static const double special_values[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1, -1, 1e30, 3e6, -5e8, NAN, 1e-40};
static const struct { OpKind op; Sample s; } special[] = {
    {OP_MAX, {TWO(DIMS(12, 1), DIMS(12), DT_F32, DT_F32)}},
    {OP_MIN, {TWO(DIMS(12, 1), DIMS(12), DT_F32, DT_F32)}},
    {OP_EQ, {TWO(DIMS(12, 1), DIMS(12), DT_F32, DT_F32)}},
    {OP_AMAX, {ONE(DIMS(12, 1), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 0)}}},
    {OP_AMAX, {ONE(DIMS(12, 1), DT_F32), .nattr = 1, .attr = {INTS(DIMS, 1)}}},
    {OP_LOGSUMEXP, {ONE(DIMS(12, 1), DT_F32), .nattr = 1, .attr = {INT(DIM, 0)}}},
    {OP_LOGSUMEXP, {ONE(DIMS(12, 1), DT_F32), .nattr = 1, .attr = {INT(DIM, 1)}}},
    {OP_SORT, {ONE(DIMS(12), DT_F32), .nattr = 2, .attr = {INT(DIM, 0), INT(DESCENDING, 0)}}},
    {OP_SORT, {ONE(DIMS(12), DT_F32), .nattr = 2, .attr = {INT(DIM, 0), INT(DESCENDING, 1)}}},
    {OP_SIN, {ONE(DIMS(12), DT_F32)}},      {OP_COS, {ONE(DIMS(12), DT_F32)}},  {OP_TANH, {ONE(DIMS(12), DT_F32)}},
    {OP_SIGMOID, {ONE(DIMS(12), DT_F32)}},  {OP_EXP, {ONE(DIMS(12), DT_F32)}},  {OP_LOG, {ONE(DIMS(12), DT_F32)}},
    {OP_SILU, {ONE(DIMS(12), DT_F32)}},     {OP_GELU, {ONE(DIMS(12), DT_F32)}}, {OP_SIGN, {ONE(DIMS(12), DT_F32)}},
    {OP_EXPM1, {ONE(DIMS(12), DT_F32)}},    {OP_LOG1P, {ONE(DIMS(12), DT_F32)}}, {OP_ERF, {ONE(DIMS(12), DT_F32)}},
};

static void test_special_values(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        for (int one = -1; one < 12; one++) {  // all of them, then each alone
            OpCase c;
            Diag d = {0};
            assert_int_equal(op_case_new(&c, special[i].op, &special[i].s, DT_F32, 1, 3, &d), ST_OK);
            for (int k = 0; k < c.nin; k++)
                for (int e = 0; e < 12; e++) c.in[k][e] = (float)special_values[one < 0 || k == 1 ? e : one];
            assert_int_equal(op_case_expect(&c, &d), ST_OK);
            bool is_float = dtype_is_float(graph_value(c.g, op_case_node(&c)->out[0])->dtype);
            for (int64_t e = 0; is_float && e < shape_numel(graph_shape(c.g, op_case_node(&c)->out[0])); e++)
                c.out[0][e] = (float)c.out[0][e];  // float64 does not overflow where float32 does
            Row row = op_row_new(&c);
            check_row(&c, &row, pools[1]);
            op_case_free(&c);
        }
}

static void expect_error(OpKind op, const Sample *s, int operand, int64_t at, double value, const char *text) {
    Direct t;
    Diag d = {0}, r = {0};
    direct_new(&t, op, s, DT_F32);
    if (operand >= 0) ((int64_t *)t.in[operand].data)[at] = (int64_t)value, t.c.in[operand][at] = value;
    assert_int_equal(direct_run(&t, pools[2], &d), ST_NUMERIC);
    if (!strstr(d.text, text)) fail_msg("\"%s\" does not say \"%s\"", d.text, text);
    assert_int_equal(op_case_expect(&t.c, &r), ST_NUMERIC);
    op_case_free(&t.c);
}

static void test_errors(void **state) {
    (void)state;
    static const Sample embedding = {TWO(DIMS(5, 3), DIMS(4, 6), DT_F32, DT_I64), .hi = {0, 5}};
    expect_error(OP_EMBEDDING, &embedding, 1, 15, 99, "99 at [2, 3]");
    expect_error(OP_EMBEDDING, &embedding, 1, 23, -1, "-1 at [3, 5]");
    static const Sample gather = {TWO(DIMS(5, 3), DIMS(4, 3), DT_F32, DT_I64), .hi = {0, 5}, .nattr = 1, .attr = {INT(DIM, 0)}};
    expect_error(OP_GATHER, &gather, 1, 4, 5, "5 at [1, 1]");
    static const Sample divide = {TWO(DIMS(700), DIMS(700), DT_I64, DT_I64), .lo = {1, 1}, .hi = {9, 9}};
    expect_error(OP_FLOORDIV, &divide, 1, 650, 0, "division by zero");
    expect_error(OP_MOD, &divide, 1, 3, 0, "division by zero");
}

// ---- elementary functions and the pool ----------------------------------------------------------------------------------

static double exact_sigmoid(double x) { return 1 / (1 + exp(-x)); }

// Distance in units of the last place of the float nearest to `want`.
static double ulps(float got, double want) {
    if (isnan(want)) return isnan(got) ? 0 : INFINITY;
    if (isinf((float)want)) return got == (float)want ? 0 : INFINITY;
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static void test_elementary(void **state) {
    (void)state;
    static const struct { const char *name; float (*fast)(float); double (*exact)(double); double limit, bound; } f[] = {
        {"exp", vexp_f32, exp, INFINITY, 1.5},          {"expm1", vexpm1_f32, expm1, INFINITY, 2.5},
        {"log", vlog_f32, log, INFINITY, 1.5},          {"log1p", vlog1p_f32, log1p, INFINITY, 2.5},
        {"tanh", vtanh_f32, tanh, INFINITY, 2},         {"erf", verf_f32, erf, INFINITY, 2},
        {"sigmoid", vsigmoid_f32, exact_sigmoid, 88, 3}, {"sin", vsin_f32, sin, VTRIG_MAX, 2.5},
        {"cos", vcos_f32, cos, VTRIG_MAX, 2.5},
    };
    for (size_t i = 0; i < sizeof f / sizeof *f; i++) {
        double worst = 0;
        float at = 0;
        for (uint64_t bits = 0; bits < (1ull << 32); bits += 40009) {
            float x = vbits_to_float((uint32_t)bits);
            if (!(fabsf(x) <= f[i].limit)) continue;
            double u = ulps(f[i].fast(x), f[i].exact(x));
            if (u > worst) worst = u, at = x;
        }
        if (worst > f[i].bound) fail_msg("%s(%a) is off by %g ulp", f[i].name, at, worst);
    }
}

typedef struct Cover {
    int count[1000], worker[1000];
    int64_t grain;
    bool aligned;
} Cover;

static void cover_part(void *ctx, int64_t begin, int64_t end, int worker) {
    Cover *c = ctx;
    if (begin % c->grain) c->aligned = false;
    for (int64_t i = begin; i < end; i++) c->count[i]++, c->worker[i] = worker;
}

static void test_pool(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads++)
        for (int64_t n = 0; n <= 1000; n += n < 20 ? 1 : 98)
            for (int64_t grain = 1; grain <= 64; grain *= 4)
                for (int again = 0; again < 5; again++) {
                    Cover c = {.grain = grain, .aligned = true};
                    pool_run(pools[threads], cover_part, &c, n, grain);
                    assert_true(c.aligned);
                    for (int64_t i = 0; i < 1000; i++) {
                        assert_int_equal(c.count[i], i < n);
                        assert_in_range(c.worker[i], i > 0 && i < n ? c.worker[i - 1] : 0, threads - 1);
                    }
                }
}

static int make_pools(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++)
        if (!(pools[n] = pool_new(n))) return -1;
    return 0;
}

static int free_pools(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++) pool_free(pools[n]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),      cmocka_unit_test(test_elementary), cmocka_unit_test(test_random_shapes),
        cmocka_unit_test(test_large),     cmocka_unit_test(test_threads),    cmocka_unit_test(test_take_over),
        cmocka_unit_test(test_special_values), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, make_pools, free_pools);
}
