// See attention_ref.h.
#include "attention_ref.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

double bf16_value(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

uint16_t bf16_round(double x) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

bool ref_visible(const RefCall *c, int64_t i, int64_t j) {
    if (c->mask == 0) return true;
    if (j > i + c->shift) return false;
    return c->mask == 1 || j > i + c->shift - c->window;
}

// Products are summed in float64; the compiler vectorises over eight partial sums.
static double dot(const uint16_t *a, const uint16_t *b, int64_t n) {
    double s[8] = {0};
    for (int64_t i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += bf16_value(a[i + j]) * bf16_value(b[i + j]);
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static double in_f32(const RefCall *c, double x) { return c->rounded ? (double)(float)x : x; }
static double in_bf16(const RefCall *c, double x) { return c->rounded ? bf16_value(bf16_round(x)) : x; }

// Keys that row i of batch entry b can see lie in [*lo, *hi).
static void key_range(const RefCall *c, int64_t b, int64_t i, int64_t *lo, int64_t *hi) {
    *lo = 0, *hi = c->nk;
    if (c->mask >= 1 && i + c->shift + 1 < *hi) *hi = i + c->shift + 1;
    if (c->mask == 2 && i + c->shift - c->window + 1 > *lo) *lo = i + c->shift - c->window + 1;
    if (!c->first) return;
    if (c->first[b * c->nq + i] > *lo) *lo = c->first[b * c->nq + i];
    if (c->end[b * c->nq + i] < *hi) *hi = c->end[b * c->nq + i];
}

void ref_row(const RefCall *c, int64_t r, double *o, double *lse, double *dq, double *delta) {
    int64_t n = c->dim, i = r % c->nq, h = r / c->nq % c->heads, b = r / c->nq / c->heads, lo, hi;
    int64_t kv = (b * c->kv_heads + h / (c->heads / c->kv_heads)) * c->nk;
    const uint16_t *q = c->q + r * n, *k = c->k + kv * n, *v = c->v + kv * n;
    key_range(c, b, i, &lo, &hi);
    double *s = malloc((size_t)(hi > lo ? hi - lo : 1) * sizeof *s), most = -INFINITY, sum = 0, out[256] = {0};
    for (int64_t j = lo; j < hi; j++) {
        s[j - lo] = in_f32(c, c->scale * dot(q, k + j * n, n));
        if (s[j - lo] > most) most = s[j - lo];
    }
    for (int64_t j = lo; j < hi; j++) sum += exp(s[j - lo] - most);
    double l = in_f32(c, most + log(sum)), dl = 0;
    for (int64_t j = lo; j < hi; j++) {
        double p = in_bf16(c, exp(s[j - lo] - most)) / sum;  // kernels divide last
        for (int64_t e = 0; e < n; e++) out[e] += p * bf16_value(v[j * n + e]);
    }
    for (int64_t e = 0; e < n; e++) out[e] = in_bf16(c, out[e]);
    if (o) memcpy(o, out, (size_t)n * sizeof *o);
    if (lse) *lse = l;
    const uint16_t *g = c->dout ? c->dout + r * n : NULL;
    for (int64_t e = 0; g && e < n; e++) dl += bf16_value(g[e]) * out[e];
    if (delta) *delta = dl;
    if (dq && g) {
        memset(dq, 0, (size_t)n * sizeof *dq);
        for (int64_t j = lo; j < hi; j++) {
            double ds = in_bf16(c, c->scale * exp(s[j - lo] - l) * (dot(g, v + j * n, n) - dl));
            for (int64_t e = 0; e < n; e++) dq[e] += ds * bf16_value(k[j * n + e]);
        }
    }
    free(s);
}

void ref_key(const RefCall *c, int64_t r, const double *lse, const double *delta, double *dk, double *dv) {
    int64_t n = c->dim, j = r % c->nk, h = r / c->nk % c->kv_heads, b = r / c->nk / c->kv_heads, group = c->heads / c->kv_heads;
    const uint16_t *k = c->k + r * n, *v = c->v + r * n;
    memset(dk, 0, (size_t)n * sizeof *dk);
    memset(dv, 0, (size_t)n * sizeof *dv);
    for (int64_t x = 0; x < group; x++)
        for (int64_t i = c->first ? c->first[b * c->nq + j] : 0; i < (c->first ? c->end[b * c->nq + j] : c->nq); i++) {
            if (!ref_visible(c, i, j)) continue;
            int64_t row = (b * c->heads + h * group + x) * c->nq + i;
            const uint16_t *q = c->q + row * n, *g = c->dout + row * n;
            double p = exp(in_f32(c, c->scale * dot(q, k, n)) - lse[row]);
            double ds = in_bf16(c, c->scale * p * (dot(g, v, n) - delta[row]));
            p = in_bf16(c, p);
            for (int64_t e = 0; e < n; e++) dv[e] += p * bf16_value(g[e]), dk[e] += ds * bf16_value(q[e]);
        }
}

// ---- threads
// ----------------------------------------------------------------------------------------------------------------------
typedef struct Job {
    _Atomic int64_t next;
    int64_t n;
    void (*body)(void *, int64_t);
    void *argument;
} Job;

static void *work(void *p) {
    Job *job = p;
    for (int64_t i; (i = atomic_fetch_add(&job->next, 1)) < job->n;) job->body(job->argument, i);
    return NULL;
}

void parallel(int64_t n, void (*body)(void *, int64_t), void *argument) {
    Job job = {.n = n, .body = body, .argument = argument};
    pthread_t thread[64];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int count = cores > 64 ? 64 : cores < 1 ? 1 : (int)cores, started = 0;
    for (int i = 1; i < count; i++) started += !pthread_create(&thread[started], NULL, work, &job);
    work(&job);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
}
