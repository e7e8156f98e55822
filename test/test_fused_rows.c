// Fused nodes of the second form: what they mean, by values worked out by hand, and what is refused.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "exec/exec.h"
#include "ir/graph.h"
#include "ir/views.h"

#define HEAD "autosp.graph 1 \"t\" batch 1 seq 2 ranks 1\ninput 0 \"x\" f32[2,3] role other batch_dim 0 seq_dim -1\nforward:\n" \
             "  %0 = input() {index=0} : f32[2,3]\n"

static Status parse(Arena *a, const char *node, Graph **g, Diag *d) {
    const char *text = arena_printf(a, "%s%s\nreturn aux -1 0 %%1 \"y\"\n", HEAD, node);
    TRY(graph_parse(a, text, "test", g, d));
    return graph_verify(*g, "parse", d);
}

static const double x[6] = {1, 2, 4, -3, 0, 5};

// The first result of a node that reads x.
static void expect(const char *node, int n, const double *want) {
    Arena *a = arena_new();
    Graph *g = NULL;
    Diag d = {0};
    Status st = parse(a, node, &g, &d);
    if (st != ST_OK) fail_msg("%s", d.text);
    double got[64], *out[1] = {got};
    const double *in[1] = {x};
    Reference r = {.inputs = in};
    assert_int_equal(reference_run(g, &r, out, &d), ST_OK);
    assert_int_equal(shape_numel(graph_shape(g, g->outputs.data[0].value)), n);
    for (int i = 0; i < n; i++)
        if (got[i] != want[i]) fail_msg("%s: element %d is %g, not %g", node, i, got[i], want[i]);
    graph_free_vecs(g);
    arena_free(a);
}

static void values(void **state) {
    (void)state;
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = row_sum($0); out $1}, "
           "shape=[2,3], row=1} : f32[2,1]", 2, (double[]){7, 2});
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = row_max($0); $2:f32 = sub($0, $1); out $2}, "
           "shape=[2,3], row=1} : f32[2,3]", 6,
           (double[]){-3, -2, 0, -8, -5, 0});
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = col_sum($0); out $1}, "
           "shape=[2,3], row=1} : f32[1,3]", 3, (double[]){-2, 2, 9});
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = row_sum($0); out $1}, "
           "shape=[2,3], row=2} : f32[1,1]", 1, (double[]){9});
    // x^T, through a view
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, shape=[3,2], views=[2,1,0,1,0,0,1,0]} : f32[3,2]", 6,
           (double[]){1, -3, 2, 0, 4, 5});
    // shifted right by one, 0 where nothing is read; then every second column; then the position itself
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, shape=[2,4], views=[2,0,0,1,1,-1,1,1,1,1,4]} : f32[2,4]", 8,
           (double[]){0, 1, 2, 4, 0, -3, 0, 5});
    expect("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, "
           "shape=[2,2], views=[2,0,0,1,1,0,2,0]} : f32[2,2]", 4, (double[]){1, 4, -3, 5});
    expect("%1 = fused(%0) {prog={$0:i64 = index 1; $1:f32 = cast($0); $2:f32 = input 0; $3:f32 = mul($1, $2); out $3}, "
           "shape=[2,3]} : f32[2,3]",
           6, (double[]){0, 2, 8, 0, 0, 10});
}

static void refuse(const char *node, const char *why) {
    Arena *a = arena_new();
    Graph *g = NULL;
    Diag d = {0};
    assert_int_not_equal(parse(a, node, &g, &d), ST_OK);
    if (!strstr(d.text, why)) fail_msg("%s: refused, but because: %s", node, d.text);
    if (g) graph_free_vecs(g);
    arena_free(a);
}

static void refused(void **state) {
    (void)state;
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = row_sum($0); out $1}, shape=[2,3]} : f32[2,1]", "no row");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = row_sum($0); out $1}, "
           "shape=[2,3], row=3} : f32[2,1]", "a row of 3 dims");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; $1:f32 = col_sum($0); $2:f32 = neg($1); out $2}, "
           "shape=[2,3], row=1} : f32[1,3]", "reads a col_sum");
    refuse("%1 = fused(%0) {prog={$0:i64 = index 2; $1:f32 = input 0; out $1}, shape=[2,3]} : f32[2,3]", "along dim 2");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, "
           "shape=[2,4], views=[2,0,0,1,1,-1,1,0]} : f32[2,4]", "leads outside");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, "
           "shape=[2,4], views=[2,0,0,1,1,0,1,0]} : f32[2,4]", "leads outside");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, shape=[2,3], views=[2,0,0,1,2,0,1,0]} : f32[2,3]", "no triple");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, shape=[2,3], views=[2,0,0,1,1,0,1,0,7]} : f32[2,3]", "more than");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, shape=[2,3], views=[]} : f32[2,3]", "no number of dims");
    refuse("%1 = fused(%0) {prog={$0:f32 = input 0; out $0}, views=[-1]} : f32[2,3]", "needs attribute shape");
}

static void row_constant(void **state) {
    (void)state;
    const Instr instr[] = {{PROG_INPUT, DT_F32, 0, -1, -1, 0},           {PROG_INPUT, DT_F32, 1, -1, -1, 0},
                           {PROG_ROW_SUM, DT_F32, 0, -1, -1, 0},         {PROG_OP + OP_MUL, DT_F32, 1, 2, -1, 0},
                           {PROG_OP + OP_MUL, DT_F32, 0, 2, -1, 0},      {PROG_INDEX, DT_I64, 0, -1, -1, 0},
                           {PROG_INDEX, DT_I64, 1, -1, -1, 0}};
    const Program p = {.ninstr = 7, .instr = instr};
    Shape space = SHAPE(4, 8), whole = SHAPE(4, 8), narrow = SHAPE(4, 1);
    View plain = {.broadcast = true}, view[2] = {view_resolve(&plain, &whole, &space), view_resolve(&plain, &narrow, &space)};
    bool got[7], want[7] = {false, true, true, true, false, true, false};
    program_row_constant(&p, 2, 1, view, got);
    for (int i = 0; i < 7; i++) assert_int_equal(got[i], want[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(refused), cmocka_unit_test(row_constant)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
