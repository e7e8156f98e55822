// Tables of packed documents (backend/cuda/attention/packed.cu, dnn_call.c) on the emulated device: against a walk over the
// numbers, for random packings of sequences shorter and longer than a block looks at; what must be refused; sums of query heads' gradients.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "backend/cuda/attention/dnn_run.h"
#include "backend/cuda/attention/packed.h"
#include "base/random.h"

static DeviceError error;
static Device device = {.ordinal = -1, .nsm = 2, .error = &error, .name = "emulated", .key = "emulated"};
static int64_t counter;
static int64_t pick(int64_t n) { return (int64_t)(random_uniform(5, 6, 7, counter++) * (double)n); }

// Numbers of documents of random lengths up to `longest`; how many documents there are.
static int64_t fill(int64_t *ids, int64_t n, int64_t longest) {
    int64_t documents = 0, id = -7;
    for (int64_t at = 0, end; at < n; at = end, documents++, id += 1 + pick(3))
        for (end = at + 1 + pick(longest); at < end && at < n; at++) ids[at] = id;
    return documents;
}

typedef struct Packing {
    DnnCall call;
    DnnParts parts;
    int64_t *ids, documents;  // of the batch entry that has most
    char *scratch;
} Packing;

static Packing packing(int64_t batch, int64_t n, int64_t slots, int64_t longest, bool one) {
    Packing p = {.call = {.batch = batch, .heads = 4, .kv_heads = 2, .nq = n, .nk = n, .dim = 16, .mask = DNN_CAUSAL, .scale = 1,
                          .backward = true, .cut = -1, .slots = slots, .one_packing = one}};
    assert_null(dnn_refuses(&p.call));
    p.parts = dnn_parts(&p.call, batch, 2);
    assert_true((int64_t)dnn_scratch(&p.call) >= p.parts.total);
    p.ids = malloc((size_t)(batch * n) * 8);
    for (int64_t b = 0; b < (one ? 1 : batch); b++) {
        int64_t documents = fill(p.ids + b * n, n, longest);
        p.documents = documents > p.documents ? documents : p.documents;
    }
    p.scratch = malloc((size_t)p.parts.total);
    memset(p.scratch, 0xee, (size_t)p.parts.total);
    error = (DeviceError){0};
    return p;
}

static void pack(const Packing *p) {
    DnnData x = {.ids = p->ids, .node = 11};
    dnn_pack(&device, &p->call, &p->parts, p->call.batch, p->call.kv_heads, &x, p->scratch);
}

static void release(Packing *p) { free(p->ids), free(p->scratch); }

static void check_tables(const Packing *p) {
    const DnnCall *c = &p->call;
    const int64_t *q = (void *)(p->scratch + p->parts.q), *k = (void *)(p->scratch + p->parts.k),
                  *row = (void *)(p->scratch + p->parts.row);
    const int32_t *length = (void *)(p->scratch + p->parts.length);
    int64_t e = 0;
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t *ids = p->ids + (c->one_packing ? 0 : b * c->nq);
            int64_t at = 0;
            for (int64_t s = 0; s < c->slots; s++, e++) {
                int64_t end = at;
                while (end < c->nq && ids[end] == ids[at]) end++;
                assert_int_equal(length[e], end - at);
                assert_int_equal(row[e], (b * c->heads + h) * c->nq + at);
                assert_int_equal(q[e], row[e] * c->dim);
                assert_int_equal(k[e], ((b * c->kv_heads + h / 2) * c->nq + at) * c->dim);
                at = end;
            }
            assert_int_equal(at, c->nq);
        }
    assert_int_equal(row[e], c->batch * c->heads * c->nq);
}

static void test_tables(void **state) {
    (void)state;
    for (int i = 0; i < 60; i++) {
        int64_t n = 1 + pick(i < 30 ? 40 : 3000), slots = n < 500 ? n : 500;
        Packing p = packing(1 + pick(3), n, slots, i % 3 ? 40 : 4000, i % 4 == 0);
        pack(&p);
        if (p.documents <= slots) {
            assert_int_equal(error.code, DEVICE_OK);
            check_tables(&p);
        } else {
            assert_int_equal(error.code, DEVICE_DOCUMENTS);
        }
        release(&p);
    }
}

static void test_errors(void **state) {
    (void)state;
    Packing p = packing(2, 2500, 8, 100, true);
    pack(&p);
    assert_int_equal(error.code, DEVICE_DOCUMENTS);
    assert_int_equal(error.node, 11);
    assert_int_equal(error.value, p.documents);
    assert_int_equal(error.limit, 8);
    release(&p);
    p = packing(1, 2500, 500, 100, false);
    p.ids[2048] = p.ids[2047] - 1;  // at the edge of a block's positions
    for (int64_t i = 2049; i < 2500; i++) p.ids[i] += 100;
    pack(&p);
    assert_int_equal(error.code, DEVICE_UNSORTED);
    assert_int_equal(error.value, 2048);
    release(&p);
}

static uint16_t bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16);
}

// Small integers: exact in bf16.
static void test_sum(void **state) {
    (void)state;
    enum { N = 3, GROUP = 5, ELEMS = 48 };
    uint16_t x[N * GROUP * ELEMS] __attribute__((aligned(16))), out[N * ELEMS] __attribute__((aligned(16)));
    for (int i = 0; i < N * GROUP * ELEMS; i++) x[i] = bf16((float)(i % 13));
    gpu_packed_sum(&device, x, out, N, GROUP, ELEMS);
    for (int i = 0; i < N; i++)
        for (int e = 0; e < ELEMS; e++) {
            float sum = 0;
            for (int j = 0; j < GROUP; j++) sum += (float)(((i * GROUP + j) * ELEMS + e) % 13);
            assert_int_equal(out[i * ELEMS + e], bf16(sum));
        }
}

static void test_refused(void **state) {
    (void)state;
    DnnCall c = {.batch = 1, .heads = 4, .kv_heads = 2, .nq = 64, .nk = 64, .dim = 64, .mask = DNN_CAUSAL, .scale = 1};
    c.slots = 64;
    assert_null(dnn_refuses(&c));
    DnnCall x = c;
    x.dim = 24;
    assert_non_null(dnn_refuses(&x));
    x = c, x.shift = 1;
    assert_non_null(dnn_refuses(&x));
    x = c, x.mask = DNN_WINDOW, x.window = 9;
    assert_non_null(dnn_refuses(&x));
    x = c, x.nk = 128;
    assert_non_null(dnn_refuses(&x));
    x = c, x.slots = 40000;
    assert_non_null(dnn_refuses(&x));
    x = c, x.heads = 64, x.kv_heads = 64, x.nq = x.nk = 1 << 17, x.slots = 1024;  // so many entries that heads go in groups
    assert_null(dnn_refuses(&x));
    DnnGroups g = dnn_groups(&x);
    assert_true(g.kv_heads * x.slots <= 65535 && g.n * g.kv_heads == 64);
}

static void test_slots(void **state) {
    (void)state;
    assert_int_equal(dnn_slots(0, 1000), 0);  // not known
    assert_int_equal(dnn_slots(1, 1000), 4);
    assert_int_equal(dnn_slots(5, 1000), 8);
    assert_int_equal(dnn_slots(64, 1000), 64);
    assert_int_equal(dnn_slots(65, 1000), 0);
    assert_int_equal(dnn_slots(1000, 7), 8);  // seven positions hold no more than seven
}

// What a run is given: lengths of queries and of keys wherever scores are cut by them, tables where documents are packed.
static void test_operands(void **state) {
    (void)state;
    enum { LENGTHS = 1 << DNN_NQ | 1 << DNN_NK, TABLES = 1 << DNN_OFFSET_Q | 1 << DNN_OFFSET_K | 1 << DNN_OFFSET_ROW };
    for (int i = 0; i < 12; i++) {
        int form = i % 3, backward = i / 3 % 2, mask = i / 6;  // whole tiles, off the tile, packed
        DnnCall c = {.batch = 1, .heads = 4, .kv_heads = 2, .nq = form == 0 ? 256 : 192, .nk = form == 0 ? 256 : 192, .dim = 64,
                     .mask = (DnnMaskKind)mask, .scale = 1, .backward = backward, .cut = -1, .slots = form == 2 ? 4 : 0};
        int32_t lengths[2] = {192, 192};
        DnnRun r = dnn_run_of(&c);
        r.lengths = lengths;
        DnnOperands x = dnn_operands(&r, &(DnnData){0}, NULL);
        bool cut = form == 2 || (form == 1 && backward);
        assert_int_equal(dnn_given(&x) & LENGTHS, cut ? LENGTHS : 0);
        assert_int_equal(dnn_given(&x) & TABLES, form == 2 ? TABLES : 0);
        assert_int_equal(dnn_given(&x) >> DNN_MINUS_INF & 1, cut || mask != DNN_FULL);
        assert_int_equal(dnn_given(&x) >> DNN_DQ_ACC & 1, backward);
        assert_int_equal(dnn_group(&r).cut, cut);
        if (form != 1 || !backward) continue;
        for (int j = 0; j < x.n; j++)
            if (x.uid[j] == DNN_NQ || x.uid[j] == DNN_NK) assert_int_equal(*(int32_t *)x.data[j], 192);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slots), cmocka_unit_test(test_operands),
                                       cmocka_unit_test(test_tables), cmocka_unit_test(test_errors), cmocka_unit_test(test_sum),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
