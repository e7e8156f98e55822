// Attentions for the tests of our own CUDA kernels, here and on the GPU: masks of every kind, sizes that do not fit tiles.
#pragma once
#include "ops/op.h"

typedef struct FlashCase {
    const char *label;
    int64_t B, H, Hkv, Sq, Sk, D, Dv;
    const Program *prog;       // NULL: every key is seen
    int nvec;
    int vec_on_b[4], vec_on_h[4];  // vector i has the batch (head) dim
    DType vec_dtype[4];
    int64_t vec_lo[4], vec_hi[4];  // floats: /8
    double softcap, dropout;
    int masked_row;
    int groups;                // of heads
    const Program *like;       // where float32 rounds scores away: the mask that gives what is right, with masked_row 2
    int nranks;                // most ranks that the emulated test spreads it over
} FlashCase;
extern const FlashCase flash_cases[];
extern const int flash_ncase;
FlashCase flash_case_like(const FlashCase *c);   // with its `like`
Sample flash_case_forward(const FlashCase *c);   // operands q, k, v, vectors
Sample flash_case_backward(const FlashCase *c);  // q, k, v, o, lse, do, vectors
