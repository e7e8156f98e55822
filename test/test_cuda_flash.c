// Our own attention (backend/cuda/flash*) on the emulated device: every sample of the op table under every row of its sharding
// rule, and
// cases of our own, against the float64 reference. The kernels are the generated ones, compiled by the host's compiler.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "backend/cuda/attention/flash.h"
#include "backend/cuda/device/module.h"
#include "flash_cases.h"
#include "op_harness.h"

// ---- the emulated kernels as a backend ------------------------------------------------------------------------------------
static DeviceStep step;
static Device device = {.ordinal = -1, .nsm = 3, .step = &step, .name = "emulated", .key = "emulated"};

static Status run(const KernelArgs *args, bool grad, Diag *d) {
    KernelArgs k = *args;
    k.device = &device;
    step = (DeviceStep){.run_seed = k.run_seed, .step = k.step};
    TRY((grad ? flash_attention_grad_prepare : flash_attention_prepare)(&device, &k, &k.state, d));
    TRY(module_wait(&device, d));
    return (grad ? flash_attention_grad : flash_attention)(&k, d);
}
static Status run_attention(const KernelArgs *k, Diag *d) { return run(k, false, d); }
static Status run_attention_grad(const KernelArgs *k, Diag *d) { return run(k, true, d); }
static KernelFn kernel(OpKind op, DType real) {
    return real != DT_F32 ? NULL : op == OP_ATTENTION ? run_attention : op == OP_ATTENTION_GRAD ? run_attention_grad : NULL;
}
static size_t scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)nthreads;
    return n->op == OP_ATTENTION ? flash_attention_scratch(n, in, out) : flash_attention_grad_scratch(n, in, out);
}
static const Backend backend = {.name = "flash", .kernel = kernel, .scratch = scratch};

// ---- rows -----------------------------------------------------------------------------------------------------------------
static void check_row(OpCase *c, const Row *row, void *ctx) {
    (void)ctx;
    Str why = {0};
    bool ran;
    if (!op_check_row(c, &backend, NULL, row, &ran, &why))
        fail_msg("%s, %s, %d ranks, %s: %s", op_name(c->op), c->sample->label, c->nranks, op_row_text(c, row), str_text(&why));
    assert_true(ran);
    str_free(&why);
}

// o and lse of an attention_grad case are the forward's, not random numbers.
static void forward_of(OpCase *c) {
    Diag d = {0};
    const Sample *s = c->sample;
    Sample forward = *s;
    forward.nin = s->nin - 3;
    for (int i = 3; i < forward.nin; i++) forward.shape[i] = s->shape[i + 3], forward.dtype[i] = s->dtype[i + 3];
    OpCase f;
    assert_int_equal(op_case_new(&f, OP_ATTENTION, &forward, c->real, 1, c->run_seed, &d), ST_OK);
    f.step = c->step;
    for (int i = 0; i < f.nin; i++) {
        int from = i < 3 ? i : i + 3;
        memcpy(f.in[i], c->in[from], sizeof(double) * (size_t)shape_numel(&s->shape[from]));
    }
    assert_int_equal(op_case_expect(&f, &d), ST_OK);
    for (int j = 0; j < 2; j++) {
        int64_t n = shape_numel(&s->shape[3 + j]);
        for (int64_t i = 0; i < n; i++) c->in[3 + j][i] = (float)f.out[j][i];
    }
    op_case_free(&f);
}

// The expected results are those of the case's `like`: rows that it leaves blind are -1e9 in all scores here.
static void expect_like(OpCase *c, const FlashCase *fc) {
    Diag d = {0};
    FlashCase like = flash_case_like(fc);
    bool grad = c->op == OP_ATTENTION_GRAD;
    Sample s = grad ? flash_case_backward(&like) : flash_case_forward(&like);
    OpCase l;
    assert_int_equal(op_case_new(&l, c->op, &s, DT_F32, 1, c->run_seed, &d), ST_OK);
    if (grad) forward_of(&l);
    assert_int_equal(op_case_expect(&l, &d), ST_OK);
    for (int j = 0; j < c->nout; j++)
        memcpy(c->out[j], l.out[j], sizeof(double) * (size_t)shape_numel(graph_shape(l.g, op_case_node(&l)->out[j])));
    double *lse = grad ? c->in[4] : c->out[1];
    int64_t nblind = 0, rows = shape_numel(&flash_case_backward(fc).shape[4]);
    if (grad)
        memcpy(c->in[3], l.in[3], sizeof(double) * (size_t)shape_numel(&s.shape[3])),
            memcpy(lse, l.in[4], sizeof(double) * (size_t)rows);
    for (int64_t i = 0; i < rows; i++)
        if (lse[i] == -INFINITY) lse[i] = -1e9f, nblind++;
    assert_true(nblind > 0);
    op_case_free(&l);
}

static void check_sample(OpKind op, const Sample *s, const FlashCase *fc, int most_ranks) {
    for (int nranks = 1; nranks <= most_ranks; nranks += 2) {
        OpCase c;
        Diag d = {0};
        if (op_case_new(&c, op, s, DT_F32, nranks, 11, &d) != ST_OK) fail_msg("%s: %s", s->label, d.text);
        if (fc && fc->like) {
            expect_like(&c, fc);
        } else {
            if (fc && op == OP_ATTENTION_GRAD) forward_of(&c);
            if (op_case_expect(&c, &d) != ST_OK) fail_msg("%s: %s", s->label, d.text);
        }
        Row whole = op_row_new(&c);
        check_row(&c, &whole, NULL);
        if (nranks > 1) op_each_row(&c, check_row, NULL);
        op_case_free(&c);
    }
}

static void test_samples(void **state) {
    (void)state;
    static const OpKind ops[] = {OP_ATTENTION, OP_ATTENTION_GRAD};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < op_info(ops[i])->nsample; j++) check_sample(ops[i], &op_info(ops[i])->samples[j], NULL, 3);
}

static void test_forward_cases(void **state) {
    (void)state;
    for (int i = 0; i < flash_ncase; i++) {
        Sample s = flash_case_forward(&flash_cases[i]);
        check_sample(OP_ATTENTION, &s, &flash_cases[i], flash_cases[i].nranks);
    }
}

static void test_backward_cases(void **state) {
    (void)state;
    for (int i = 0; i < flash_ncase; i++) {
        Sample s = flash_case_backward(&flash_cases[i]);
        check_sample(OP_ATTENTION_GRAD, &s, &flash_cases[i], flash_cases[i].nranks);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_forward_cases),
        cmocka_unit_test(test_backward_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
