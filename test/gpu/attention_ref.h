// Attention in float64 on the host, any row or key by itself, so that large calls can be checked at a few places. bf16 operands.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct RefCall {
    int64_t batch, heads, kv_heads, nq, nk, dim;
    int mask;  // DnnMaskKind
    int64_t shift, window;
    double scale;
    bool rounded;  // as the best kernel there can be does it: scores and lse in f32; o, probabilities and ds in bf16; sums exact
    const uint16_t *q, *k, *v, *dout;  // dense, as the call's
    const int64_t *first, *end;        // packed: of the document of each position [batch, nq]; NULL: one
} RefCall;

// o[dim], lse and dq[dim] of query row r = (b * heads + h) * nq + i; delta = sum(do * o). Any may be NULL.
void ref_row(const RefCall *c, int64_t r, double *o, double *lse, double *dq, double *delta);
// dk[dim], dv[dim] of key row r = (b * kv_heads + h) * nk + j, from every query's lse and delta.
void ref_key(const RefCall *c, int64_t r, const double *lse, const double *delta, double *dk, double *dv);
bool ref_visible(const RefCall *c, int64_t i, int64_t j);
double bf16_value(uint16_t x);
uint16_t bf16_round(double x);
// body(argument, i) for i in [0, n) on all cores.
void parallel(int64_t n, void (*body)(void *argument, int64_t i), void *argument);
