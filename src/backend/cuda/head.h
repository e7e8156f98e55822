// In how many rows at a time the output layer (head.c) is taken.
#pragma once
#include "base/containers.h"
#include "ir/type.h"

// Of a chunk's logits. Larger ones read and write dw less often (2 * 4 * V * D bytes for each chunk), smaller ones leave more memory.
#define HEAD_CHUNK_NBYTES ((int64_t)512 << 20)
enum { HEAD_ROWS = 128 };  // rows come in whole tiles of the products

typedef struct HeadChunks {
    int64_t rows, nchunk, last;  // rows of every chunk but the last; how many; rows of the last. All 0 without rows
} HeadChunks;

// n rows over v classes, logits of type t.
static inline HeadChunks head_chunks(int64_t n, int64_t v, DType t) {
    int64_t row = max_i64(1, v * dtype_nbytes(t)), most = max_i64(1, HEAD_CHUNK_NBYTES / row / HEAD_ROWS) * HEAD_ROWS;
    if (n == 0) return (HeadChunks){0};
    int64_t rows = min_i64(n, round_up(ceil_div(n, ceil_div(n, most)), HEAD_ROWS)), nchunk = ceil_div(n, rows);
    return (HeadChunks){rows, nchunk, n - (nchunk - 1) * rows};
}
