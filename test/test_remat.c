// Pass remat's search against going through everything: the minimum cut, the choice at a price, the choice under a budget.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "base/random.h"
#include "pass/mincut.h"
#include "remat_case.h"

#ifdef __SANITIZE_ADDRESS__
enum { CUTS = 2000, PRICES = 20, BUDGETS = 40, HOSTS = 6 };
#else
enum { CUTS = 20000, PRICES = 100, BUDGETS = 500, HOSTS = 100 };
#endif

// ---- the cut -------------------------------------------------------------------------------------------------------------------
static void test_mincut(void **state) {
    uint64_t rng = 1;
    enum { MOST = 9 };
    for (int round = 0; round < CUTS; round++) {
        int n = 2 + (int)remat_draw(&rng, MOST - 1);
        int64_t capacity[MOST][MOST] = {{0}};
        Arena *a = arena_new();
        MinCut m;
        mincut_begin(&m, n, a);
        int source = (int)remat_draw(&rng, (uint64_t)n), sink = (source + 1 + (int)remat_draw(&rng, (uint64_t)n - 1)) % n;
        for (int e = (int)remat_draw(&rng, 30); e > 0; e--) {
            int from = (int)remat_draw(&rng, (uint64_t)n), to = (from + 1 + (int)remat_draw(&rng, (uint64_t)n - 1)) % n;
            bool infinite = from != source && to != sink && remat_draw(&rng, 5) == 0;
            int64_t c = infinite ? MINCUT_INFINITE : (int64_t)remat_draw(&rng, 12);
            mincut_add(&m, from, to, c);
            capacity[from][to] = min_i64(MINCUT_INFINITE, capacity[from][to] + c);
        }
        bool side[MOST];
        int64_t got = mincut_solve(&m, source, sink, side), best = MINCUT_INFINITE, smallest = n + 1, of_side = 0, count = 0;
        for (uint32_t s = 0; s < 1u << n; s++) {
            if (!(s >> source & 1) || (s >> sink & 1)) continue;
            int64_t cut = 0;
            for (int i = 0; i < n; i++)
                for (int k = 0; k < n; k++)
                    if ((s >> i & 1) && !(s >> k & 1)) cut = min_i64(MINCUT_INFINITE, cut + capacity[i][k]);
            if (cut < best || (cut == best && __builtin_popcount(s) < smallest)) best = cut, smallest = __builtin_popcount(s);
        }
        for (int i = 0; i < n; i++) {
            count += side[i];
            for (int k = 0; k < n; k++) of_side += side[i] && !side[k] ? capacity[i][k] : 0;
        }
        assert_int_equal(got, best);
        assert_int_equal(of_side, best);
        assert_true(side[source] && !side[sink]);
        assert_int_equal(count, smallest);  // the cut nearest to the source
        mincut_free(&m);
        arena_free(a);
    }
}

static void test_price(void **state) {
    int done = 0;
    for (uint64_t number = 0; done < PRICES; number++) {
        RematCase c;
        if (!remat_case_make(&c, number, 2, REMAT_CASE_MOST)) continue;
        uint8_t *choice = ARENA_ARRAY(c.arena, uint8_t, c.r.g->values.len);
        uint64_t rng = number;
        for (int k = 0; k < 8; k++) {
            double price = k == 0 ? 0 : remat_draw_log(&rng, 1e-16, 1e-8), kept, seconds, best = INFINITY;
            remat_cut(&c.r, price, choice, &kept, &seconds);
            double got = price * kept + seconds;
            for (uint32_t bits = 0; bits < 1u << c.nvalue; bits++) {
                remat_case_choice(&c, bits, choice);
                remat_cost(&c.r, choice, &kept, &seconds);
                best = fmin(best, price * kept + seconds);
            }
            double rounding = 1e-12 * (double)(c.r.g->nodes.len + c.r.g->values.len);  // capacities are picoseconds, at least one
            if (!(got <= best * (1 + 1e-9) + rounding)) fail_msg("program %d: %.9g at price %.3g, best %.9g", (int)number, got, price, best);
        }
        remat_case_free(&c);
        done++;
    }
}

// ---- under a budget --------------------------------------------------------------------------------------------------------------
typedef struct Outcome {
    double seconds;
    int64_t peak;
} Outcome;

static Outcome *all_outcomes(const RematCase *c) {
    Diag d = {0};
    MemoryOptions m = {.remat = REMAT_AUTO};
    Outcome *out = ARENA_ARRAY(c->arena, Outcome, (size_t)1 << c->nvalue);
    uint8_t *choice = ARENA_ARRAY(c->arena, uint8_t, c->r.g->values.len);
    for (uint32_t bits = 0; bits < 1u << c->nvalue; bits++) {
        RematTrial t = {.choice = choice};
        remat_case_choice(c, bits, choice);
        if (remat_try(&c->r, &c->plan, &m, 16, &t, &d) != ST_OK) fail_msg("%s", d.text);
        out[bits] = (Outcome){t.seconds, t.peak_nbytes};
    }
    return out;
}

// The fastest within the budget; *least: the smallest peak of all.
static double fastest(const Outcome *o, int n, int64_t budget, int64_t *least) {
    double best = INFINITY;
    *least = INT64_MAX;
    for (uint32_t bits = 0; bits < 1u << n; bits++) {
        *least = min_i64(*least, o[bits].peak);
        if (o[bits].peak <= budget) best = fmin(best, o[bits].seconds);
    }
    return best;
}

static void test_budget(void **state) {
    int done = 0, off = 0, missed = 0;
    double worst = 1, sum = 0, trials = 0, ways = 0;
    for (uint64_t number = 0; done < BUDGETS; number++) {
        RematCase c;
        if (!remat_case_make(&c, number, 3, 11)) continue;
        Outcome *all = all_outcomes(&c);
        int64_t least, unlimited = all[0].peak;
        fastest(all, c.nvalue, INT64_MAX, &least);
        uint64_t rng = random_mix(number);
        for (int k = 0; k < 4 && unlimited > least; k++) {
            MemoryOptions m = {.remat = REMAT_AUTO, .budget_nbytes = k == 0 ? least : least + (int64_t)remat_draw(&rng, (uint64_t)(unlimited - least))};
            RematTrial best = {.choice = ARENA_ARRAY(c.arena, uint8_t, c.r.g->values.len)};
            Diag d = {0};
            int64_t unused;
            if (remat_search(&c.r, &c.plan, &m, 16, &best, &d) != ST_OK) fail_msg("%s", d.text);
            double want = fastest(all, c.nvalue, m.budget_nbytes, &unused);
            bool fits = best.peak_nbytes <= m.budget_nbytes;
            double ratio = fits ? best.seconds / want : INFINITY;
            if (!fits) missed++, print_message("program %d budget %d: %lld bytes, least %lld, budget %lld (%d values, %d trials)\n", (int)number, k,
                                               (long long)best.peak_nbytes, (long long)least, (long long)m.budget_nbytes, c.nvalue, best.ntrial);
            else if (ratio > 1.05) off++, print_message("program %d budget %d: %.4f (%d values, %d trials)\n", (int)number, k, ratio, c.nvalue, best.ntrial);
            if (fits) worst = fmax(worst, ratio), sum += ratio;
            else sum += 1;
            trials += best.ntrial, ways += (double)(1u << c.nvalue);
            done++;
        }
        remat_case_free(&c);
    }
    print_message("%d budgets: %d missed, %d more than 5 %% off; worst %.4f, mean %.5f; %.0f trials of %.0f ways on average\n", done, missed, off,
                  worst, sum / done, trials / done, ways / done);
    assert_int_equal(missed + off, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mincut), cmocka_unit_test(test_price), cmocka_unit_test(test_budget)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
