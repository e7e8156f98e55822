// Chunks: where parts lie in the plan and what is refused, that tile_sketch foretells what the pass makes, that values are those
// of the whole and that the peak falls.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "driver/driver.h"
#include "exec/exec.h"
#include "pass/tile.h"

// ---- parts in the plan --------------------------------------------------------------------------------------------------
#define HEAD                                                                                                                     \
    "autosp.graph 1 \"t\" batch 1 seq 8 ranks %d\nparam 0 \"w\" f32[4,4]\ninput 0 \"x\" f32[2,8,4] role other batch_dim 0 "      \
    "seq_dim 1\n"

static Status plan_text(Arena *a, const char *text, Plan **out, Diag *d) {
    Graph *g = NULL;
    TRY(graph_parse(a, text, "test", &g, d));
    Status st = graph_verify(g, "parse", d);
    PlanOptions o = {.backend = &backend_cpu, .device = device_model_cpu(), .nthreads = 1};
    if (st == ST_OK) st = plan_make(a, g, &o, out, d);
    graph_free_vecs(g);
    return st;
}

// Two ranks with 5 and 3 rows in several runs; chunks [0,2)+[6,7) and the rest. Rank 0 has rows 0 1 2 6 7 in this order, rank 1 3
// 4 5.
static void test_offsets(void **state) {
    (void)state;
    static const char text[] = "autosp.graph 1 \"t\" batch 1 seq 8 ranks 2\nparam 0 \"w\" f32[4,4]\ninput 0 \"x\" f32[1,8,4] "
                               "role other batch_dim 0 seq_dim 1\n"
                               "layout @0 8: [0,3) [6,8) | [3,6)\nlayout @1 4: [0,2) | [2,4)\nlayout @2 4: [0,1) [2,4) | [1,2)\n"
                               "forward:\n"
                               "  %0 = param() {index=0, kind=0, dtype=f32} : f32[4,4] replicate\n"
                               "  %1 = input() {index=0} : f32[1,8,4] shard(1,@0)\n"
                               "  %2 = part(%1) {dim=1, intervals=[0,2,3,5]} : f32[1,4,4] shard(1,@1)\n"
                               "  %3 = part(%1) {dim=1, intervals=[2,3,5,8]} : f32[1,4,4] shard(1,@2)\n"
                               "  %4 = dot(%2, %0) {nbatch=0} : f32[1,4,4] shard(1,@1)\n"
                               "  %5 = tanh(%4) : f32[1,4,4] shard(1,@1)\n"
                               "  %6 = dot(%3, %0) {nbatch=0} : f32[1,4,4] shard(1,@2)\n"
                               "  %7 = assemble(%5, %6) {dim=1, intervals=[2,0,2,3,5,2,2,3,5,8]} : f32[1,8,4] shard(1,@0)\n"
                               "  %8 = dot(%7, %7) {ncontract=3, trans_a=1} : f32[] partial(sum)\n"
                               "  %9 = reshard(%8) : f32[] replicate\n"
                               "return loss -1 0 %9 \"loss\"\n";
    Arena *a = arena_new();
    Diag d = {0};
    Plan *p = NULL;
    if (plan_text(a, text, &p, &d) != ST_OK) fail_msg("%s", d.text);
    static const struct {
        ValueId part, whole;
        int64_t offset[2];  // in rows of 16 bytes
    } want[] = {{2, 1, {0, 0}}, {3, 1, {2, 2}}, {4, 7, {0, 0}}, {5, 7, {0, 0}}, {6, 7, {2, 2}}};
    for (int r = 0; r < 2; r++) {
        const RankPlan *q = &p->rank[r];
        assert_int_equal(q->buffer[q->value_buf[7]].nbytes, (r ? 3 : 5) * 16);
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
            assert_int_equal(q->value_buf[want[i].part], q->value_buf[want[i].whole]);
            assert_int_equal(q->value_off[want[i].part], 16 * want[i].offset[r]);
        }
        int kernels = 0;
        for (int s = 0; s < q->nstep; s++) kernels += q->step[s].kind == STEP_KERNEL;
        assert_int_equal(kernels, 4);  // three dots and the tanh, which is written over its operand
    }
    arena_free(a);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *body, *why;
    } cases[] = {
        {"  %1 = part(%0) {dim=1, intervals=[0,4]} : f32[2,4,4] replicate\n  %2 = tanh(%1) : f32[2,4,4] replicate\n"
         "  %3 = dot(%2, %2) {ncontract=3, trans_a=1} : f32[] replicate\nreturn loss -1 0 %3 \"loss\"\n",
         "not in one piece"},
        {"  %1 = tanh(%0) : f32[2,8,4] replicate\n  %2 = part(%1) {dim=0, intervals=[0,1]} : f32[1,8,4] replicate\n"
         "  %3 = part(%1) {dim=0, intervals=[1,2]} : f32[1,8,4] replicate\n"
         "  %4 = assemble(%3, %2) {dim=0, intervals=[1,0,1,1,1,2]} : f32[2,8,4] replicate\n"
         "  %5 = dot(%4, %4) {ncontract=3, trans_a=1} : f32[] replicate\nreturn loss -1 0 %5 \"loss\"\n",
         "lies elsewhere"},
        {"  %1 = part(%0) {dim=0, intervals=[0,1]} : f32[1,8,4] replicate\n  %2 = tanh(%1) : f32[1,8,4] replicate\n"
         "  %3 = assemble(%2, %2) {dim=0, intervals=[1,0,1,1,1,2]} : f32[2,8,4] replicate\n"
         "  %4 = dot(%3, %3) {ncontract=3, trans_a=1} : f32[] replicate\nreturn loss -1 0 %4 \"loss\"\n",
         "lies elsewhere"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2048];
        snprintf(text, sizeof text, HEAD "forward:\n  %%0 = input() {index=0} : f32[2,8,4] replicate\n%s", 1, cases[i].body);
        Arena *a = arena_new();
        Diag d = {0};
        Plan *p = NULL;
        if (plan_text(a, text, &p, &d) == ST_OK) fail_msg("case %zu was planned", i);
        if (!strstr(d.text, cases[i].why)) fail_msg("case %zu: %s", i, d.text);
        arena_free(a);
    }
}

// ---- a feed-forward -----------------------------------------------------------------------------------------------------
static const char feed_forward[] =
    "autosp.graph 1 \"ff\" batch 2 seq 300 ranks 1\nparam 0 \"up\" f32[256,16]\nparam 1 \"down\" f32[16,256]\n"
    "input 0 \"x\" f32[2,300,16] role other batch_dim 0 seq_dim 1\n"
    "forward:\n"
    "  %0 = param() {index=0, kind=0, dtype=f32} : f32[256,16]\n"
    "  %1 = param() {index=1, kind=0, dtype=f32} : f32[16,256]\n"
    "  %2 = input() {index=0} : f32[2,300,16]\n"
    "  %3 = dot(%2, %0) {trans_b=1} : f32[2,300,256]\n"
    "  %4 = silu(%3) : f32[2,300,256]\n"
    "  %5 = dot(%4, %1) {trans_b=1} : f32[2,300,16]\n"
    "  %6 = tanh(%5) : f32[2,300,16]\n"
    "  %7 = sum(%6) {dims=[0,1,2]} : f32[1,1,1]\n"
    "  %8 = reshape(%7) {shape=[]} : f32[]\n"
    "return loss -1 0 %8 \"loss\"\nreturn aux -1 0 %6 \"y\"\n";
enum { FF_NUMEL = 2 * 300 * 16 };

static void compile_text(const char *text, int nranks, int64_t rows, Compiled *out) {
    Arena *a = arena_new();
    Diag d = {0};
    Graph *g = NULL;
    CompileOptions o;
    compile_defaults(&o);
    o.nranks = nranks;
    o.nthreads = 1;
    o.memory.tile_rows = rows;
    o.verify_each = true;
    *out = (Compiled){0};
    if (graph_parse(a, text, "test", &g, &d) != ST_OK || compile_graph(a, g, &o, out, &d) != ST_OK)
        fail_msg("%s", d.text);
}

static void compile_ff(int nranks, int64_t rows, Compiled *out) { compile_text(feed_forward, nranks, rows, out); }

static void run_ff(const Compiled *c, double *y) {
    Diag d = {0};
    Runtime *rt = NULL;
    float x[FF_NUMEL], w[256 * 16];
    for (int i = 0; i < FF_NUMEL; i++) x[i] = (float)((i * 37) % 101) / 50 - 1;
    for (int i = 0; i < 256 * 16; i++) w[i] = (float)((i * 53) % 97) / 300 - 0.15f;
    double loss;
    RuntimeOptions o = {.run_seed = 1, .poison = true};
    if (runtime_new_with(c->plan, &o, &rt, &d) != ST_OK) fail_msg("%s", d.text);
    for (int p = 0; p < 2; p++) assert_int_equal(runtime_set_state(rt, p, 0, w, DT_F32, &d), ST_OK);
    assert_int_equal(runtime_set_input(rt, 0, x, &d), ST_OK);
    if (runtime_step(rt, 0, &loss, &d) != ST_OK) fail_msg("%s", d.text);
    for (int64_t i = 0; i < c->graph->outputs.len; i++)
        if (c->graph->outputs.data[i].kind == OUT_AUX) assert_int_equal(runtime_get_output(rt, (int)i, y, &d), ST_OK);
    runtime_free(rt);
}

// Up to how products of other sizes add up (the BLAS chooses its kernel by shape): 16 terms, then 256.
static void test_forward(void **state) {
    (void)state;
    static double want[FF_NUMEL], got[FF_NUMEL];
    Compiled whole;
    compile_ff(1, 0, &whole);
    run_ff(&whole, want);
    for (int nranks = 1; nranks <= 3; nranks++)
        for (int64_t rows = 16; rows <= 600; rows = rows * 2 + 5) {
            Compiled c;
            compile_ff(nranks, rows, &c);
            run_ff(&c, got);
            for (int i = 0; i < FF_NUMEL; i++)
                if (!(fabs(got[i] - want[i]) <= (16 + 256) * 0x1p-24))
                    fail_msg("%d ranks, %lld rows: element %d is %.9g, whole %.9g", nranks, (long long)rows, i, got[i], want[i]);
            compiled_free(&c);
        }
    compiled_free(&whole);
}

// A permute that moves nothing shares its operand's bytes; both are wanted whole, and parts can lie in one whole only.
static void test_views(void **state) {
    (void)state;
    static const char text[] =
        "autosp.graph 1 \"views\" batch 1 seq 600 ranks 1\nparam 0 \"up\" f32[256,16]\nparam 1 \"down\" f32[16,256]\n"
        "input 0 \"x\" f32[1,600,16] role other batch_dim 0 seq_dim 1\n"
        "forward:\n"
        "  %0 = param() {index=0, kind=0, dtype=f32} : f32[256,16]\n"
        "  %1 = param() {index=1, kind=0, dtype=f32} : f32[16,256]\n"
        "  %2 = input() {index=0} : f32[1,600,16]\n"
        "  %3 = dot(%2, %0) {trans_b=1} : f32[1,600,256]\n"
        "  %4 = silu(%3) : f32[1,600,256]\n"
        "  %5 = dot(%4, %1) {trans_b=1} : f32[1,600,16]\n"
        "  %6 = permute(%5) {dims=[1,0,2]} : f32[600,1,16]\n"
        "  %7 = cumsum(%6) {dim=0} : f32[600,1,16]\n"
        "  %8 = cumsum(%5) {dim=1} : f32[1,600,16]\n"
        "  %9 = reshape(%7) {shape=[1,600,16]} : f32[1,600,16]\n"
        "  %10 = sub(%9, %8) : f32[1,600,16]\n"
        "  %11 = dot(%8, %9) {ncontract=3, trans_a=1} : f32[]\n"
        "return loss -1 0 %11 \"loss\"\nreturn aux -1 0 %10 \"y\"\n";
    static double y[FF_NUMEL];
    for (int64_t rows = 0; rows < 64; rows += 32) {
        Compiled c;
        compile_text(text, 1, rows, &c);
        int parts = 0;
        for (int64_t i = 0; i < c.graph->nodes.len; i++) parts += c.graph->nodes.data[i].op == OP_PART;
        assert_true((parts > 0) == (rows > 0));
        run_ff(&c, y);
        for (int i = 0; i < FF_NUMEL; i++) assert_true(y[i] == 0);
        compiled_free(&c);
    }
}

// Of the values of 256 columns only a chunk exists: without chunks two of them whole at least.
static void test_peak(void **state) {
    (void)state;
    for (int nranks = 1; nranks <= 2; nranks++) {
        Compiled whole, cut;
        compile_ff(nranks, 0, &whole);
        compile_ff(nranks, 32, &cut);
        int64_t wide = 600 / nranks * 256 * 4, chunk = 32 * 256 * 4, before = whole.plan->rank[0].arena_nbytes,
                after = cut.plan->rank[0].arena_nbytes;
        assert_true(before > 2 * wide);
        if (after > before - 2 * wide + 6 * chunk)  // three such values to a chunk, and each weight's gradient twice
            fail_msg("%d ranks: the peak is %lld bytes, whole %lld", nranks, (long long)after, (long long)before);
        assert_true(after < before / 3);
        compiled_free(&whole);
        compiled_free(&cut);
    }
}

// ---- tile_sketch --------------------------------------------------------------------------------------------------------
static int64_t count_shape(const Graph *g, const Value *like, const int32_t *pieces) {
    int64_t n = 0;
    for (int64_t v = 0; v < g->values.len; v++) {
        const Value *x = graph_value(g, (ValueId)v);
        n += x->dtype == like->dtype && shape_equal(&x->shape, &like->shape) && (!pieces || pieces[v] == 1);
    }
    return n;
}

// As many values of each shape stay whole as tile_sketch says; a value that is cut into n is there in n pieces.
static int check_pieces(const char *path, int64_t batch, int nranks, unsigned features, DType compute, int64_t rows) {
    Diag d = {0};
    CompileOptions o;
    compile_defaults(&o);
    o.path = path;
    o.nranks = nranks;
    o.update = true;
    o.features = features;
    o.compute = compute;
    o.import.batch = batch;
    o.import.seq = 53;
    o.stop_after = "schedule";
    Compiled c;
    if (compile_file(&o, &c, &d) != ST_OK) fail_msg("%s: %s", path, d.text);
    Arena *scratch = arena_new();
    TileOptions tile = {.rows = rows, .align = 1};
    int32_t *pieces = ARENA_ARRAY(scratch, int32_t, c.graph->values.len);
    memcpy(pieces, tile_sketch(c.graph, &tile, scratch).pieces, sizeof *pieces * (size_t)c.graph->values.len);
    PassContext pc = {.scratch = scratch, .nranks = nranks, .features = features, .tile = tile};
    Graph *out = NULL;
    if (pass_tile(&pc, c.graph, &out, &d) != ST_OK || graph_verify(out, "tile", &d) != ST_OK) fail_msg("%s: %s", path, d.text);
    int cut = 0;
    int64_t more = out->nodes.len - c.graph->nodes.len, least = 0;
    for (int64_t v = 0; v < c.graph->values.len; v++) {
        const Value *x = graph_value(c.graph, (ValueId)v);
        if (pieces[v] == 1) continue;
        cut++;
        least += x->index == 0 ? pieces[v] - 1 : 0;
        if (count_shape(out, x, NULL) != count_shape(c.graph, x, pieces))
            fail_msg("%s, batch %lld, %d ranks, %lld rows: %lld values like %%%lld are whole, %lld should be", path,
                     (long long)batch, nranks, (long long)rows, (long long)count_shape(out, x, NULL), (long long)v,
                     (long long)count_shape(c.graph, x, pieces));
    }
    assert_true(more >= least);
    graph_free_vecs(out);
    arena_free(scratch);
    compiled_free(&c);
    return cut;
}

static void test_pieces(void **state) {
    (void)state;
    DIR *dir = opendir(TEST_DATA "/fixtures");
    assert_non_null(dir);
    int n = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        char path[1024];
        snprintf(path, sizeof path, "%s/fixtures/%s/model.pt2", TEST_DATA, e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        fclose(f);
        for (int k = 0; k < 8; k++) {
            int cut = check_pieces(path, k % 3 ? 1 : 3, 1 + k / 3, k % 2 ? BACKEND_FUSE_ROWS : 0, k % 3 == 0 ? DT_BF16 : DT_F32,
                                   k % 4 < 2 ? 9 : 16);
            if (cut == 0 && k < 2) fail_msg("%s: nothing is cut", path);
        }
        n++;
    }
    closedir(dir);
    assert_true(n > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_offsets), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_forward), cmocka_unit_test(test_views), cmocka_unit_test(test_peak),
                                       cmocka_unit_test(test_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
