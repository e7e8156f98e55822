// Every fixture, planned and run on a few rank counts: the arenas are as large as planned, to the byte, and no step allocates.
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "count_alloc.h"
#include "train/values.h"

static void check_program(const char *path, int nranks) {
    Diag d = {0};
    CompileOptions o;
    compile_defaults(&o);
    o.path = path;
    o.nranks = nranks;
    o.nthreads = 2;
    o.update = true;
    o.import.batch = 2;
    o.import.seq = 37;
    Compiled c;
    Runtime *rt = NULL;
    double loss;
    if (compile_file(&o, &c, &d) != ST_OK || runtime_new(c.plan, 1, &rt, &d) != ST_OK) fail_msg("%s: %s", path, d.text);
    for (int r = 0; r < nranks; r++) {
        const RankPlan *p = &c.plan->rank[r];
        assert_int_equal(runtime_arena_nbytes(rt, r), p->arena_nbytes);
        assert_true(p->arena_nbytes >= p->lower_bound_nbytes);
        if ((double)p->arena_nbytes > 1.05 * (double)p->lower_bound_nbytes)
            fail_msg("%s: rank %d of %d: the arena is %lld bytes, the least possible %lld", path, r, nranks,
                     (long long)p->arena_nbytes, (long long)p->lower_bound_nbytes);
    }
    if (values_load_params(rt, c.graph, true, 1, &d) != ST_OK) fail_msg("%s: %s", path, d.text);
    if (values_set_inputs(rt, c.graph, NULL, 1, &d) != ST_OK) fail_msg("%s: %s", path, d.text);
    assert_int_equal(runtime_set_hyper(rt, (double[]){1e-3, 0.1, 0.01}, &d), ST_OK);
    for (int step = 0; step < 3; step++) {  // threads and libraries may set themselves up in the first
        count_begin();
        Status st = runtime_step(rt, step, &loss, &d);
        int n = count_end();
        if (st != ST_OK) fail_msg("%s: %s", path, d.text);
        if (step > 0 && n > 0) fail_msg("%s: %d ranks: step %d allocated %d times", path, nranks, step, n);
    }
    runtime_free(rt);
    compiled_free(&c);
}

static void test_fixtures(void **state) {
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
        for (int nranks = 1; nranks <= 3; nranks++) check_program(path, nranks);
        n++;
    }
    closedir(dir);
    assert_true(n > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixtures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
