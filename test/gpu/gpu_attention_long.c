// Long sequences: heads in groups, and a million tokens.
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "attention_probe.h"

// ---- groups -----------------------------------------------------------------------------------------------------------------
// The results of one way of grouping, to compare others with.
typedef struct Results {
    uint16_t *each[4];  // o, dq, dk, dv
    float *lse;
} Results;

static Results keep_results(const Operands *x) {
    const uint16_t *from[] = {x->o, x->dq, x->dk, x->dv};
    Results r;
    for (int i = 0; i < 4; i++) {
        size_t nbytes = (size_t)(i < 2 ? x->nq : x->nk) * 2;
        r.each[i] = malloc(nbytes);
        memcpy(r.each[i], from[i], nbytes);
    }
    r.lse = malloc((size_t)x->nrow * 4);
    memcpy(r.lse, x->lse, (size_t)x->nrow * 4);
    return r;
}

static void free_results(Results *r) {
    for (int i = 0; i < 4; i++) free(r->each[i]);
    free(r->lse);
}

// Prints how much differs. dq is summed by atomics, and an engine may be another one for fewer heads: then a few elements are
// rounded the other way, by 2^-8 of themselves. false: more than that.
static bool compare_results(const Results *r, const Operands *x) {
    static const char *const name[] = {"o", "dq", "dk", "dv"};
    const uint16_t *got[] = {x->o, x->dq, x->dk, x->dv};
    bool ok = !memcmp(r->lse, x->lse, (size_t)x->nrow * 4);
    printf(" lse %s", ok ? "same" : "DIFFERS");
    for (int i = 0; i < 4; i++) {
        int64_t n = i < 2 ? x->nq : x->nk, ndiffer = 0;
        double differ = 0, all = 0;
        for (int64_t e = 0; e < n; e++) {
            double a = bf16_value(r->each[i][e]), b = bf16_value(got[i][e]);
            ndiffer += r->each[i][e] != got[i][e];
            differ += (a - b) * (a - b), all += a * a;
        }
        double rel = sqrt(differ / all);
        if (ndiffer == 0) printf(", %s same", name[i]);
        else printf(", %s %.1e in %.3f %%", name[i], rel, 100.0 * (double)ndiffer / (double)n);
        ok = ok && (ndiffer == 0 || rel < 1e-3);  // NaN: no
    }
    return ok;
}

static bool run_in_groups(const DnnCall *c, const Operands *x, double *forward, double *backward) {
    DnnPlan *f, *b;
    DnnData data = data_of(x);
    int repeat = c->nq > 65536 ? 2 : 10;
    if (prepare(c, false, &f) != ST_OK || prepare(c, true, &b) != ST_OK) return false;
    *forward = seconds_of(f, &data, x->scratch, repeat), *backward = seconds_of(b, &data, x->scratch, repeat);
    return isfinite(*forward) && isfinite(*backward);
}

static void run_groups_of(int64_t n) {
    Case k = {"groups", 1, 32, 8, n, n, 64, DNN_CAUSAL, 0, 0, -1, false};
    DnnCall c = call_of(&k);
    c.group_nbytes = INT64_MAX;  // as many groups as asked for, no more
    Operands x;
    Results one = {.lse = NULL};
    double first[2] = {0};
    bool ok = make_operands(&x, &c, false);
    for (int64_t groups = 1; groups <= 8 && ok; groups *= 2) {
        double t[2];
        DnnCall b = c;
        c.groups = b.groups = groups, b.backward = true;
        ok = run_in_groups(&c, &x, &t[0], &t[1]) && fetch_results(&x);
        if (!ok) break;
        if (groups == 1) one = keep_results(&x), first[0] = t[0], first[1] = t[1];
        printf("groups q%-6lld %lld of %lld KV heads: scratch %7.1f MiB, forward %8.3f ms (%.3f), backward %8.3f ms (%.3f):",
               (long long)n, (long long)dnn_groups(&b).n, (long long)dnn_groups(&b).kv_heads, (double)dnn_scratch(&b) / 1048576,
               t[0] * 1e3, t[0] / first[0], t[1] * 1e3, t[1] / first[1]);
        if (groups == 1) {
            Errors e;
            check_all(&c, &x, 32749, 32749, false, &e);
            verdict(report(&e, 10));
        } else {
            verdict(compare_results(&one, &x));
        }
    }
    if (!ok) verdict(false);
    free_results(&one), free_operands(&x);
}

void run_groups(void) {
    run_groups_of(8192);
    run_groups_of(131072);
}

// ---- a million --------------------------------------------------------------------------------------------------------------
// A few rows and keys, each against its own size: the results of late rows are a thousandth of those of early ones, which would
// hide them in an error over all.
enum { MAX_SPOTS = 64 };
typedef struct Spots {
    RefCall ref;
    const Operands *x;
    int64_t row[MAX_SPOTS], key[MAX_SPOTS];
    int nrow, nkey;
    double *lse, *delta;                       // of all rows, from the GPU's lse and o
    double error[4][MAX_SPOTS], lse_error[MAX_SPOTS];  // o, dq of rows; dk, dv of keys
} Spots;

static double own_error(const uint16_t *got, const double *want, int64_t n) {
    double differ = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        double g = bf16_value(got[i]);
        differ += (g - want[i]) * (g - want[i]), all += want[i] * want[i];
    }
    return sqrt(differ / all);
}

static void spot_row(void *p, int64_t i) {
    Spots *s = p;
    int64_t r = s->row[i], n = s->ref.dim;
    double o[256], dq[256], lse, delta;
    ref_row(&s->ref, r, o, &lse, dq, &delta);
    s->error[0][i] = own_error(s->x->o + r * n, o, n), s->error[1][i] = own_error(s->x->dq + r * n, dq, n);
    s->lse_error[i] = fabs(s->x->lse[r] - lse) / (1 + fabs(lse));
}
static void spot_key(void *p, int64_t i) {
    Spots *s = p;
    int64_t r = s->key[i], n = s->ref.dim;
    double dk[256], dv[256];
    ref_key(&s->ref, r, s->lse, s->delta, dk, dv);
    s->error[2][i] = own_error(s->x->dk + r * n, dk, n), s->error[3][i] = own_error(s->x->dv + r * n, dv, n);
}
static void spot_statistics(void *p, int64_t head) {
    Spots *s = p;
    int64_t n = s->ref.dim;
    for (int64_t r = head * s->ref.nq; r < (head + 1) * s->ref.nq; r++) {
        s->lse[r] = s->x->lse[r], s->delta[r] = 0;
        for (int64_t e = 0; e < n; e++) s->delta[r] += bf16_value(s->x->dout[r * n + e]) * bf16_value(s->x->o[r * n + e]);
    }
}

// Rows and keys of some heads, the last among them: early, in the middle, around it, at the end.
static void choose_spots(Spots *s) {
    static const double at[] = {0.002, 0.2512, 0.49999, 0.5, 0.87, 1};
    const RefCall *c = &s->ref;
    int64_t per = sizeof at / sizeof *at, heads = c->heads < 8 ? c->heads : 8, kv_heads = c->kv_heads < 4 ? c->kv_heads : 4;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < per; i++) {
            int64_t head = h == heads - 1 ? c->heads - 1 : h * (c->heads / heads);
            s->row[s->nrow++] = head * c->nq + (int64_t)(at[i] * (double)(c->nq - 1));
        }
    // The last of all keys have hardly any queries.
    for (int64_t h = 0; h < kv_heads; h++)
        for (int64_t i = 0; i < per; i++)
            s->key[s->nkey++] = (h == kv_heads - 1 ? c->kv_heads - 1 : h) * c->nk + (int64_t)(at[i] * (double)(c->nk - 300));
}

static double most_of(const double *x, int n) {
    double most = 0;
    for (int i = 0; i < n; i++)
        if (!(x[i] <= most)) most = x[i];  // NaN stays
    return most;
}

// bf16 results from bf16 probabilities: each row is off by about 2^-8 of itself, whatever its size; 2 % are allowed. What was
// read or written elsewhere is off by more than all of itself.
bool check_spots(const DnnCall *c, const Operands *x) {
    static const char *const name[] = {"o", "dq", "dk", "dv"};
    Spots *s = calloc(1, sizeof *s);
    s->ref = (RefCall){c->batch, c->heads, c->kv_heads, c->nq, c->nk, c->dim, (int)c->mask, c->shift, c->window, c->scale,
                       false, x->q, x->k, x->v, x->dout, x->first, x->end};
    s->x = x, s->lse = malloc((size_t)x->nrow * 8), s->delta = malloc((size_t)x->nrow * 8);
    choose_spots(s);
    parallel(s->nrow, spot_row, s);
    parallel(c->heads, spot_statistics, s);
    parallel(s->nkey, spot_key, s);
    double lse = most_of(s->lse_error, s->nrow);
    bool ok = lse < 1e-5;
    printf("\n    %d rows, %d keys, each against its own size: lse %.1e", s->nrow, s->nkey, lse);
    for (int i = 0; i < 4; i++) {
        double most = most_of(s->error[i], i < 2 ? s->nrow : s->nkey);
        printf(" %s %.1e", name[i], most);
        ok = ok && most < 0.02;
    }
    free(s->lse), free(s->delta), free(s);
    return ok;
}

static double seconds_once(const DnnPlan *p, const DnnData *data, void *scratch) {
    double begin = now();
    bool ok = run(p, data, scratch) == ST_OK && cuda_ok(cudaStreamSynchronize(device.stream), "run");
    return ok ? now() - begin : INFINITY;
}

// Forward and backward once, then spots. `once`: all heads in one call, however large.
static void run_long(const Case *k, bool once) {
    DnnCall c = call_of(k), cb = c;
    if (once) c.group_nbytes = cb.group_nbytes = INT64_MAX;
    cb.backward = true;
    double flops = 4 * visible_pairs(&c) * (double)(c.dim * c.heads * c.batch);
    printf("%-16s h%lld/%lld q%lld d%lld:", k->name, (long long)k->h, (long long)k->hkv, (long long)k->nq, (long long)k->d);
    fflush(stdout);
    Operands x;
    DnnPlan *f, *b;
    bool ok = make_operands(&x, &c, false) && prepare(&c, false, &f) == ST_OK && prepare(&cb, true, &b) == ST_OK;
    DnnData data = data_of(&x);
    double t[2] = {0};
    ok = ok && isfinite(t[0] = seconds_once(f, &data, x.scratch)) && isfinite(t[1] = seconds_once(b, &data, x.scratch)) &&
         fetch_results(&x);
    if (ok)
        printf(" forward %.3f s (%.0f TFLOP/s, %lld groups), backward %.3f s (%.0f, %lld), scratch %.1f MiB", t[0],
               flops / t[0] * 1e-12, (long long)dnn_groups(&c).n, t[1], 2.5 * flops / t[1] * 1e-12, (long long)dnn_groups(&cb).n,
               (double)dnn_scratch(&cb) / 1048576);
    verdict(ok && check_spots(&c, &x));
    free_operands(&x);
}

// All of causal attention over a million; then windows, which leave out nothing of the offsets but most of the time: a group
// whose scratch is 2^32 bytes a part, and 2^31 elements of queries, which the forward does in two groups.
void run_million(void) {
    enum { MILLION = 1 << 20 };
    static const Case cases[] = {
        {"million", 1, 4, 1, MILLION, MILLION, 64, DNN_CAUSAL, 0, 0, -1, false},
        {"million window", 1, 8, 1, MILLION, MILLION, 128, DNN_WINDOW, 0, 2048, -1, false},
        {"million window", 1, 32, 8, MILLION, MILLION, 64, DNN_WINDOW, 0, 2048, -1, false},
        {"million less 24", 1, 4, 2, MILLION - 24, MILLION - 24, 64, DNN_WINDOW, 0, 2048, -1, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_long(&cases[i], false);
}

// For information: what cuDNN makes of tensors of more than 2^31 elements, which dnn_groups does not give it. 48 GiB; comes last,
// as a launch that reads where it must not ends all that follow.
void run_beyond(void) {
    Case k = {"beyond 2^31", 1, 40, 8, 1 << 20, 1 << 20, 64, DNN_WINDOW, 0, 2048, -1, false};
    counted = false;
    run_long(&k, true);
    counted = true;
}
