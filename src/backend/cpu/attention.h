// What the attention kernels share: the geometry of one call, and the blocks of queries that tasks are made of.
#pragma once
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/predicate.h"

enum { ATTN_QBLOCK = 144 };  // queries of a block, in whole register tiles; never across two spans of the queries' layout

// A run of queries stored together: local rows [row, row + n), global positions [q, q + n).
typedef struct QBlock {
    int64_t row, n, q;
} QBlock;

typedef struct Attn {
    const Operand *q, *k, *v;
    int64_t batch, heads, kv_heads, nq, nk, dim, dim_v;  // local
    int64_t group;  // query heads per KV head
    int64_t kblock, nqblock;
    double scale, softcap, dropout;
    int masked_row;  // see ATTR_MASKED_ROW
    uint64_t dropout_key;
    Predicate pred;
} Attn;

// in[] = q, k, v and, from in[first_vec(n)] on, the vectors of the mask.
Status attn_bind(Attn *a, const KernelArgs *k, DType real, void *memory, Diag *d);
size_t attn_shared_nbytes(const Node *n, const Operand *in);
int64_t attn_kblock(const Node *n, const Operand *in);  // keys of a block

QBlock attn_qblock(const Attn *a, int64_t i);  // 0 <= i < nqblock
int64_t attn_global_batch(const Attn *a, int64_t b);
int64_t attn_global_head(const Attn *a, int64_t h);
int64_t attn_kv_head(const Attn *a, int64_t h);  // local KV head of local query head h
// Index of element (b, h, q, k = 0) in the global scores, which keys dropout.
int64_t attn_score_index(const Attn *a, int64_t b, int64_t h, int64_t q);
