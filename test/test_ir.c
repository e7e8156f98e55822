// Graphs as text and the verifier: what is printed parses back to the same after every pass; what is malformed is refused with
// file and line; what a pass could break is found by the verifier.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

#include "driver/driver.h"
#include "ir/build.h"
#include "ops/op.h"
#include "random_graph.h"

// ---- parse(print(g)) == g --------------------------------------------------------------------------------------------------

static void check_round_trip(const Graph *g, const char *what) {
    Arena *a = arena_new();
    Diag d = {0};
    Str once = {0}, twice = {0};
    Graph *back = NULL;
    graph_print(g, &once);
    if (graph_parse(a, str_text(&once), "printed", &back, &d) != ST_OK) fail_msg("%s: %s", what, d.text);
    if (graph_verify(back, "parse", &d) != ST_OK) fail_msg("%s: %s", what, d.text);
    graph_print(back, &twice);
    if (strcmp(str_text(&once), str_text(&twice))) fail_msg("%s: prints otherwise once parsed", what);
    if (graph_hash(g) != graph_hash(back)) fail_msg("%s: another hash once parsed", what);
    graph_free_vecs(back);
    str_free(&once);
    str_free(&twice);
    arena_free(a);
}

static void round_trips(const char *fixture, int nranks) {
    int n;
    const char *const *pass = pass_names(&n);
    for (int i = 0; i < n - 1; i++) {
        CompileOptions o;
        compile_defaults(&o);
        char path[512], what[128];
        snprintf(path, sizeof path, "%s/fixtures/%s/model.pt2", TEST_DATA, fixture);
        snprintf(what, sizeof what, "%s after %s, %d ranks", fixture, pass[i], nranks);
        o.path = path;
        o.import.batch = 2;
        o.import.seq = 33;
        o.nranks = nranks;
        o.update = true;
        o.verify_each = true;
        o.stop_after = pass[i];
        Compiled c;
        Diag d = {0};
        if (compile_file(&o, &c, &d) != ST_OK) fail_msg("%s: %s", what, d.text);
        check_round_trip(c.graph, what);
        compiled_free(&c);
    }
}

static void test_round_trip(void **state) {
    (void)state;
    static const char *const fixture[] = {"llama", "mixtral", "short_conv", "doc_mask"};
    for (int i = 0; i < 4; i++) {
        round_trips(fixture[i], 1);
        round_trips(fixture[i], 3);
    }
}

static void test_round_trip_random(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        Arena *a = arena_new();
        RandomGraph r;
        random_graph(a, seed, 20, seed % 2 ? DT_F32 : DT_F64, &r);
        char what[64];
        snprintf(what, sizeof what, "random graph %d", (int)seed);
        check_round_trip(r.g, what);
        graph_free_vecs(r.g);
        arena_free(a);
    }
}

static void test_big_const(void **state) {  // its bytes are not in the text, their hash is
    (void)state;
    Arena *a = arena_new();
    Graph *g = graph_new(a, "big", 1);
    vec_push(&g->consts, ((Const){.name = "c", .shape = SHAPE(2000), .dtype = DT_F32, .data = arena_alloc(a, 8000)}));
    check_round_trip(g, "a large constant");
    graph_free_vecs(g);
    arena_free(a);
}

// ---- malformed text --------------------------------------------------------------------------------------------------------

#define HEAD "autosp.graph 1 \"t\" batch 1 seq 8 ranks 2\n"
#define TABLES "param 0 \"w\" f32[4,4]\ninput 0 \"x\" f32[8,4] role other batch_dim -1 seq_dim 0\n"
#define SOURCES "forward:\n%0 = param() {index=0, kind=0, dtype=f32} : f32[4,4]\n%1 = input() {index=0} : f32[8,4]\n"
#define PROGRAM HEAD TABLES SOURCES

typedef struct Malformed {
    const char *text, *want;
} Malformed;

static const Malformed malformed[] = {
    {"", "t.ir:1: expected autosp.graph"},
    {"hello", "t.ir:1: expected autosp.graph"},
    {"autosp.graph 2 \"t\" batch 1 seq 8 ranks 1", "version 1"},
    {"autosp.graph 1 \"t\" batch 1 seq 8 ranks 0", "65536 ranks"},
    {"autosp.graph 1 \"t\" batch 1 seq 8 ranks 99999999999", "65536 ranks"},
    {"autosp.graph 1 \"t\" batch 1 seq 99999999999999999999 ranks 1", "a whole number"},
    {"autosp.graph 1 \"t batch 1", "the end of a string"},
    {HEAD "param 1 \"w\" f32[4]", "t.ir:2: expected parameters in order"},
    {HEAD "param 0 \"w\" f33[4]", "a dtype"},
    {HEAD "param 0 \"w\" f32[-4]", "a size"},
    {HEAD "param 0 \"w\" f32[4000000000,4000000000]", "fits in memory"},
    {HEAD "param 0 \"w\" f32[1,1,1,1,1,1,1,1,1]", "at most 8 dims"},
    {HEAD "const 0 \"c\" f32[1] bytes 0000zz", "hexadecimal"},
    {HEAD "const 0 \"c\" f32[2000] bytes 00", "at most 4096 bytes"},
    {HEAD "input 0 \"x\" f32[4] role king batch_dim 0 seq_dim 0", "a role"},
    {HEAD "input 0 \"x\" f32[4] role other batch_dim 0 seq_dim 1", "a dim of the input"},
    {HEAD "layout @1 8: [0,4) | [4,8)", "layouts in order"},
    {HEAD "layout @0 8: [0,4)", "expected |"},
    {HEAD "layout @0 8: [0,4) | [4,9)", "an interval of the axis"},
    {HEAD "layout @0 8: [4,0) | -", "an interval of the axis"},
    {PROGRAM "%3 = neg(%0) : f32[4,4]", "t.ir:7: expected values numbered in order"},
    {PROGRAM "%2 = neg(%2) : f32[4,4]", "t.ir:7: expected an operand made earlier"},
    {PROGRAM "%2 = neg(%-1) : f32[4,4]", "an operand made earlier"},
    {PROGRAM "%2 = frob(%0) : f32[4,4]", "expected an op"},
    {PROGRAM "%2 = neg(%0) : f32[4,5]", "the type that the op infers"},
    {PROGRAM "%2 = neg(%0) : i64[4,4]", "the type that the op infers"},
    {PROGRAM "%2 = neg(%0, %1) : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2 = neg() : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2, %3 = neg(%0) : f32[4,4], f32[4,4]", "as many results"},
    {PROGRAM "%2 = add(%0, %1) : f32[8,4]", "broadcast"},
    {PROGRAM "%2 = dot(%1, %0) {nbatch=0, ncontract=9} : f32[8,4]", "contracted"},
    {PROGRAM "%2 = reshape(%1) {shape=[5,5]} : f32[5,5]", "t.ir:7"},
    {PROGRAM "%2 = reshape(%1) : f32[32]", "shape"},
    {PROGRAM "%2 = slice(%1) {dim=0, start=7, step=1, length=2} : f32[2,4]", "t.ir:7"},
    {PROGRAM "%2 = slice(%1) {dim=0, start=9223372036854775807, step=9223372036854775807, length=2} : f32[2,4]", "t.ir:7"},
    {PROGRAM "%2 = pad(%1) {dim=0, lo=9223372036854775807, hi=9223372036854775807, value=0.0} : f32[6,4]", "t.ir:7"},
    {PROGRAM "%2 = permute(%1) {dims=[0,0]} : f32[8,8]", "t.ir:7"},
    {PROGRAM "%2 = param() {index=7, kind=0, dtype=f32} : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2 = constant() {index=0} : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2 = neg(%0) {colour=3} : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2 = neg(%0) : f32[4,4] shard(0,@0)", "a layout of the table"},
    {PROGRAM "%2 = neg(%0) : f32[4,4] shard(7,@0)", "a dim of the value"},
    {PROGRAM "%2 = fused(%0) {prog={$0:f32 = neg($0); out $0}} : f32[4,4]", "an earlier instruction"},
    {PROGRAM "%2 = fused(%0) {prog={$0:f32 = input 7; out $0}} : f32[4,4]", "t.ir:7"},
    {PROGRAM "%2 = fused(%0) {prog={$0:f32 = input 0; out $5}} : f32[4,4]", "an instruction of the program"},
    {PROGRAM "%2 = fused(%0) {prog={$0:f32 = dot($0); out $0}} : f32[4,4]", "a pointwise op"},
    {PROGRAM "return loss -1 0 %9 \"loss\"", "a value of the graph"},
    {PROGRAM "return grad 5 0 %0 \"w\"", "a parameter and slot"},
    {PROGRAM "return joy -1 0 %0 \"w\"", "loss, grad, state or aux"},
    {PROGRAM "gibberish", "t.ir:7: expected param"},
};

static void test_malformed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = NULL;
        if (graph_parse(a, malformed[i].text, "t.ir", &g, &d) == ST_OK) fail_msg("accepted: %s", malformed[i].text);
        if (!strstr(d.text, malformed[i].want) || !strstr(d.text, "t.ir:"))
            fail_msg("%s\n  gives \"%s\"\n  and not \"%s\"", malformed[i].text, d.text, malformed[i].want);
        if (g) graph_free_vecs(g);
        arena_free(a);
    }
}

// ---- the verifier ----------------------------------------------------------------------------------------------------------

// A small sharded graph, sound as parsed; tests break it.
static const char placed[] =
    HEAD TABLES
    "layout @0 8: [0,4) | [4,8)\n"
    "layout @1 4: [0,2) | [2,4)\n"
    "forward:\n"
    "%0 = param() {index=0, kind=0, dtype=f32} : f32[4,4] replicate\n"
    "%1 = input() {index=0} : f32[8,4] shard(0,@0)\n"
    "%2 = dot(%1, %0) {nbatch=0, ncontract=1, trans_a=0, trans_b=1} : f32[8,4] shard(0,@0)\n"
    "%3 = sum(%2) {dims=[0,1]} : f32[1,1] partial(sum)\n"
    "%4 = reshard(%3) : f32[1,1] replicate\n"
    "%5 = reshape(%4) {shape=[]} : f32[] replicate\n"
    "return loss -1 0 %5 \"loss\"\n";

typedef struct Broken {
    const char *what;
    void (*harm)(Graph *g);
    const char *want;
} Broken;

static Placement *place(Graph *g, ValueId v) { return &graph_value(g, v)->place; }
static LayoutId layout_with(Graph *g, int64_t extent, int64_t a, int64_t b, int64_t c, int64_t d) {
    return layouts_intern(g->layouts, extent, (int32_t[]){1, 1}, (Span[]){{a, b}, {c, d}});
}

static void wrong_type(Graph *g) { graph_value(g, 2)->dtype = DT_F64; }
static void wrong_shape(Graph *g) { graph_value(g, 2)->shape.dim[0] = 9; }
static void wrong_order(Graph *g) { graph_node(g, 2)->in[0] = 4; }
static void own_operand(Graph *g) { graph_node(g, 3)->in[0] = 3; }
static void no_operand(Graph *g) { graph_node(g, 2)->in[0] = 99; }
static void wrong_def(Graph *g) { graph_value(g, 2)->def = 1; }
static void no_def(Graph *g) { graph_value(g, 2)->def = 77; }
static void gap(Graph *g) { place(g, 1)->layout = place(g, 2)->layout = layout_with(g, 8, 0, 3, 4, 8); }
static void short_layout(Graph *g) { place(g, 1)->layout = place(g, 2)->layout = layout_with(g, 8, 0, 3, 3, 7); }
static void extent(Graph *g) { place(g, 1)->layout = 1; }
static void no_layout(Graph *g) { place(g, 1)->layout = 55; }
static void no_dim(Graph *g) { place(g, 1)->dim = 2; }
static void illegal_row(Graph *g) { *place(g, 2) = REPLICATE; }
static void forgotten_sum(Graph *g) { *place(g, 3) = REPLICATE; }
static void partial_output(Graph *g) { g->outputs.data[0].value = 3, *place(g, 3) = PARTIAL_SUM; }
static void partial_of_nothing(Graph *g) { place(g, 3)->reduce = RED_NONE; }
static void terms_without_overlap(Graph *g) { place(g, 2)->reduce = RED_SUM; }
static void half_placed(Graph *g) { place(g, 3)->kind = PLACE_NONE; }
static void matrix_loss(Graph *g) { g->outputs.data[0].value = 0; }
static void no_output(Graph *g) { g->outputs.data[0].value = 44; }
static void other_gradient(Graph *g) { graph_add_output(g, OUT_GRAD, 0, 0, "w", 5); }

static const Broken broken[] = {
    {"a result of another dtype", wrong_type, "not what the op infers"},
    {"a result of another shape", wrong_shape, "not what the op infers"},
    {"an operand made later", wrong_order, "made later"},
    {"a node that reads itself", own_operand, "made later"},
    {"an operand that is not there", no_operand, "does not exist"},
    {"a value with another node", wrong_def, "know its node"},
    {"a value without node", no_def, "without a node"},
    {"a layout with a gap", gap, "nowhere"},
    {"a layout that ends early", short_layout, "nowhere"},
    {"a layout of another extent", extent, "another extent"},
    {"a layout that is not there", no_layout, "does not exist"},
    {"a dim that is not there", no_dim, "does not have"},
    {"placements that are no row", illegal_row, "no row"},
    {"a sum over ranks forgotten", forgotten_sum, "no row"},
    {"an output that is a term", partial_output, "not every rank holds"},
    {"a partial of nothing", partial_of_nothing, "without a reduction"},
    {"terms in a partition", terms_without_overlap, "does not overlap"},
    {"a value without placement", half_placed, "some are not"},
    {"a loss that is a matrix", matrix_loss, "no scalar"},
    {"an output that is not there", no_output, "does not exist"},
    {"a gradient of another shape", other_gradient, "another shape"},
};

static void test_verifier(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        Arena *a = arena_new();
        Diag d = {0};
        Graph *g = NULL;
        if (graph_parse(a, placed, "placed", &g, &d) != ST_OK || graph_verify(g, "parse", &d) != ST_OK)
            fail_msg("the sound graph: %s", d.text);
        broken[i].harm(g);
        if (graph_verify(g, "harm", &d) == ST_OK) fail_msg("accepted: %s", broken[i].what);
        if (!strstr(d.text, broken[i].want) || !strstr(d.text, "harm"))
            fail_msg("%s gives \"%s\", and not \"%s\"", broken[i].what, d.text, broken[i].want);
        graph_free_vecs(g);
        arena_free(a);
    }
}

// A rank may store its intervals in any order (zigzag); what it needs around them is still all of it.
static void test_needs_of_unordered_intervals(void **state) {
    (void)state;
    Arena *a = arena_new();
    LayoutTable *t = layouts_new(a, 2);
    LayoutId in = layouts_intern(t, 10, (int32_t[]){2, 2}, (Span[]){{8, 10}, {2, 4}, {0, 2}, {4, 8}});
    LayoutId halo = layouts_intern(t, 10, (int32_t[]){2, 1}, (Span[]){{1, 5}, {7, 10}, {0, 9}});
    LayoutId group = layouts_intern(t, 5, (int32_t[]){2, 2}, (Span[]){{1, 2}, {4, 5}, {0, 1}, {2, 4}});
    assert_int_equal(layout_stencil(t, in, 1, -1, 1, 10), halo);
    assert_int_equal(layout_group(t, in, 2), group);
    arena_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needs_of_unordered_intervals),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_round_trip_random), cmocka_unit_test(test_big_const),
        cmocka_unit_test(test_malformed),  cmocka_unit_test(test_verifier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
