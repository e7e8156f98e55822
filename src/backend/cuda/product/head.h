// In how many rows at a time the output layer (head.c) is taken.
#pragma once
#include "base/containers.h"
#include "ir/type.h"

// Of a chunk's logits. Larger ones read and write dw less often (8 * V * D bytes for each chunk), smaller ones leave more memory.
#define HEAD_CHUNK_NBYTES ((int64_t)512 << 20)
enum { HEAD_ROWS = 128, HEAD_PITCH = 64, HEAD_ALIGN = 256 };  // rows come in whole tiles of the products

typedef struct HeadSizes {
    int64_t n, d, v, pitch;      // pitch: between rows of logits, so that any vocabulary's rows are aligned
    int64_t rows, nchunk, last;  // rows of every chunk but the last; of the last. 0 without rows
    int64_t logits_nbytes;       // of a chunk
} HeadSizes;

static inline HeadSizes head_sizes(int64_t n, int64_t d, int64_t v, DType t) {
    HeadSizes s = {.n = n, .d = d, .v = v, .pitch = round_up(v, HEAD_PITCH)};
    int64_t row = max_i64(1, s.pitch * dtype_nbytes(t)), most = max_i64(1, HEAD_CHUNK_NBYTES / row / HEAD_ROWS) * HEAD_ROWS;
    if (n > 0) {
        s.rows = min_i64(n, round_up(ceil_div(n, ceil_div(n, most)), HEAD_ROWS));
        s.nchunk = ceil_div(n, s.rows);
        s.last = n - (s.nchunk - 1) * s.rows;
    }
    s.logits_nbytes = round_up(s.rows * s.pitch * dtype_nbytes(t), HEAD_ALIGN);
    return s;
}
