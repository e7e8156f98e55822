// Lowering of ATen programs, against PyTorch: every program of test/data/lower (made by make_lower_data.py) is imported,
// evaluated by the float64 reference and compared, loss and gradients. Programs under refuse/ must be refused for the reason in
// their name's .txt file.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "exec/exec.h"
#include "import/import.h"
#include "pass/pass.h"

#ifndef TEST_DATA
#define TEST_DATA "test/data"
#endif

typedef struct Program1 {  // an imported program and its golden
    Arena *a;
    Graph *g;
    TensorFile *gold;
    double **in, **param, **out;
} Program1;

static double *read_doubles(const TensorFile *f, const char *name, int64_t n) {
    Diag d = {0};
    const TensorView *t = tensors_find(f, name);
    if (!t || shape_numel(&t->shape) != n) fail_msg("the golden has no tensor \"%s\" of %lld elements", name, (long long)n);
    double *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    if (tensor_convert(t->data, t->dtype, x, DT_F64, n, &d) != ST_OK) fail_msg("%s", d.text);
    return x;
}

static void free_all(double **x, int64_t n) {
    for (int64_t i = 0; i < n; i++) free(x[i]);
    free(x);
}

// The passes up to the gradient; what the reference cannot run (sdpa's gradient) is gone after them.
static Graph *differentiate(Arena *a, Graph *g) {
    typedef Status (*Pass)(PassContext *, Graph *, Graph **, Diag *);
    const Pass passes[] = {pass_canonicalize, pass_experts, pass_mask, pass_canonicalize, pass_grad};
    PassContext c = {.scratch = a, .nranks = 1};
    Diag d = {0};
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        Graph *next = NULL;
        if (passes[i](&c, g, &next, &d) != ST_OK || graph_verify(next, "a pass", &d) != ST_OK)
            fail_msg("pass %zu: %s", i, d.text);
        if (next != g) graph_free_vecs(g);
        g = next;
    }
    return g;
}

static void load_values(Program1 *p) {
    Graph *g = p->g;
    p->in = calloc((size_t)g->inputs.len + 1, sizeof *p->in);
    p->param = calloc((size_t)g->params.len + 1, sizeof *p->param);
    for (int64_t i = 0; i < g->inputs.len; i++)
        p->in[i] = read_doubles(p->gold, g->inputs.data[i].name, shape_numel(&g->inputs.data[i].shape));
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *w = &g->params.data[i];
        int64_t n = shape_numel(&w->shape);
        Diag d = {0};
        p->param[i] = calloc((size_t)n + 1, sizeof(double));
        if (tensor_convert(w->data, w->dtype, p->param[i], DT_F64, n, &d) != ST_OK) fail_msg("%s", d.text);
    }
}

static void evaluate(Program1 *p) {
    Diag d = {0};
    p->out = calloc((size_t)p->g->outputs.len, sizeof *p->out);
    for (int64_t i = 0; i < p->g->outputs.len; i++)
        p->out[i] = calloc((size_t)shape_numel(graph_shape(p->g, p->g->outputs.data[i].value)) + 1, sizeof(double));
    Reference r = {.inputs = (const double *const *)p->in, .params = (const double *const *)p->param};
    if (reference_run(p->g, &r, p->out, &d) != ST_OK) fail_msg("%s", d.text);
}

static double norm2(const double *x, const double *y, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (x[i] - (y ? y[i] : 0)) * (x[i] - (y ? y[i] : 0));
    return sqrt(s);
}

// Float64 on both sides: agreement is limited by the order of sums only.
static void compare(Program1 *p, const char *name) {
    for (int64_t i = 0; i < p->g->outputs.len; i++) {
        const Output *o = &p->g->outputs.data[i];
        int64_t n = shape_numel(graph_shape(p->g, o->value));
        char key[256];
        snprintf(key, sizeof key, o->kind == OUT_LOSS ? "loss" : "grad.%s",
                 o->kind == OUT_LOSS ? "" : p->g->params.data[o->param].name);
        double *want = read_doubles(p->gold, key, n), err = norm2(p->out[i], want, n);
        if (!(err <= 1e-9 * (1 + norm2(want, NULL, n)))) fail_msg("%s: %s differs from PyTorch's by %g", name, key, err);
        free(want);
    }
}

static Status import_one(Arena *a, const char *path, const TensorFile *gold, Graph **g, Diag *d) {
    ImportOptions o = {.real = DT_F64};
    ImportReport r = {0};
    const TensorView *ids = gold ? tensors_find(gold, "input_ids") : NULL;
    if (ids) {
        o.batch = ids->shape.dim[0];
        o.seq = ids->shape.dim[1];
    }
    Status s = import_pt2(a, path, &o, g, &r, d);
    vec_free(&r.notes);
    vec_free(&r.missing);
    vec_free(&r.leftover);
    return s;
}

static void check_program(const char *name) {
    char path[512];
    Diag d = {0};
    Program1 p = {.a = arena_new()};
    snprintf(path, sizeof path, TEST_DATA "/lower/%s.safetensors", name);
    if (tensors_open(p.a, path, &p.gold, &d) != ST_OK) fail_msg("%s", d.text);
    snprintf(path, sizeof path, TEST_DATA "/lower/%s.pt2", name);
    if (import_one(p.a, path, p.gold, &p.g, &d) != ST_OK) fail_msg("%s", d.text);
    if (graph_verify(p.g, "import", &d) != ST_OK) fail_msg("%s", d.text);
    load_values(&p);
    evaluate(&p);
    compare(&p, name);
    free_all(p.out, p.g->outputs.len);
    p.g = differentiate(p.a, p.g);
    evaluate(&p);
    compare(&p, name);
    free_all(p.out, p.g->outputs.len);
    free_all(p.in, p.g->inputs.len);
    free_all(p.param, p.g->params.len);
    graph_free_vecs(p.g);
    arena_free(p.a);
}

static void check_refusal(const char *name) {
    char path[512], want[256] = "";
    Diag d = {0};
    Graph *g = NULL;
    Arena *a = arena_new();
    snprintf(path, sizeof path, TEST_DATA "/lower/refuse/%s.txt", name);
    FILE *f = fopen(path, "r");
    if (!f || !fgets(want, sizeof want, f)) fail_msg("cannot read %s", path);
    fclose(f);
    want[strcspn(want, "\n")] = 0;
    snprintf(path, sizeof path, TEST_DATA "/lower/refuse/%s.pt2", name);
    if (import_one(a, path, NULL, &g, &d) == ST_OK) fail_msg("%s was not refused", name);
    if (!strstr(d.text, want)) fail_msg("%s: \"%s\" does not say \"%s\"", name, d.text, want);
    if (d.status != ST_UNSUPPORTED) fail_msg("%s: status %s, not a refusal (%s)", name, status_name(d.status), d.text);
    arena_free(a);
}

static int for_each(const char *dir, void (*fn)(const char *)) {
    int n = 0;
    DIR *d = opendir(dir);
    if (!d) fail_msg("cannot open %s", dir);
    for (struct dirent *e; (e = readdir(d));) {
        char name[256];
        size_t len = strlen(e->d_name);
        if (len < 5 || len >= sizeof name || strcmp(e->d_name + len - 4, ".pt2")) continue;
        memcpy(name, e->d_name, len - 4);
        name[len - 4] = 0;
        fn(name);
        n++;
    }
    closedir(d);
    return n;
}

static void test_programs(void **state) {
    (void)state;
    assert_true(for_each(TEST_DATA "/lower", check_program) >= 10);
}

static void test_refusals(void **state) {
    (void)state;
    assert_true(for_each(TEST_DATA "/lower/refuse", check_refusal) >= 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_programs), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
