// Evaluates an attention node's Program (which keys a query sees, and what is added to its scores) over blocks of queries and
// keys: first by interval arithmetic, which rules whole blocks out or in whatever the mask is called, and only where that cannot
// decide element by element. All positions are global.
#pragma once
#include "backend/backend.h"

enum { PRED_MAX_VEC = 16 };

typedef struct Interval {
    double lo, hi;  // of a bool: 0 or 1
    bool nan;  // it may also be NaN
} Interval;

typedef enum Verdict { PRED_NONE, PRED_ALL, PRED_MIXED } Verdict;  // keys of the block seen: none, all, it depends
typedef struct BlockVerdict {
    Verdict visible;
    bool bias;  // something other than 0 may be added
} BlockVerdict;

// What the Program's instructions are when bound to one kernel call; see predicate.c.
typedef struct PredInstr PredInstr;

// Shared by the workers of one kernel call, read-only while they run.
typedef struct Predicate {
    const Program *prog;  // NULL: every key is seen
    int visible, bias;  // instruction of each output, -1: constant true / zero
    const PredInstr *instr;
    int nvec;
    const Operand *vec;
    const Interval *tree[PRED_MAX_VEC];  // per vector over keys: ranges over aligned runs of blocks, [rows][tree_len]
    bool over_q[PRED_MAX_VEC];  // the vector is read at the query
    int64_t tree_len;
    int64_t nkey, block, nblock;  // keys, keys per block, blocks
    DType real;
    bool narrow;  // every integer fits 32 bits, shown by interval arithmetic over the whole call
    size_t worker_nbytes;
} Predicate;

// One worker's view: which (b, h), which queries, which keys it is at.
typedef struct PredWorker {
    const Predicate *p;
    int64_t b, h;  // global
    int64_t vec_row[PRED_MAX_VEC];  // offset in elements of this (b, h) in each vector
    int64_t q0, q1;  // queries [q0, q1)
    int64_t k0, nk;  // keys of the current block
    bool need_visible, need_bias;
    Interval qrange[PRED_MAX_VEC];
    Interval *range;  // [ninstr]
    char *lane;  // [ninstr][block] values of 8 bytes at most
} PredWorker;

// Bytes that predicate_bind (shared) and each predicate_worker need.
size_t predicate_nbytes(const Program *prog, int nvec, const Operand *vec, int64_t nkey, int64_t block);
size_t predicate_worker_nbytes(const Program *prog, int64_t block);
// q_extent, batch, heads: global extents. `block` is a multiple of 16.
void predicate_bind(Predicate *p, const Program *prog, int nvec, const Operand *vec, DType real, int64_t batch, int64_t heads,
                    int64_t q_extent, int64_t nkey, int64_t block, void *memory);
void predicate_worker(PredWorker *w, const Predicate *p, void *memory);

// Points the worker at queries [q0, q1) of (b, h). vec_* of the vectors are found through their own spans.
void predicate_queries(PredWorker *w, int64_t b, int64_t h, int64_t q0, int64_t q1);
// The first key block >= from that is not ruled out for these queries; nblock if there is none.
int64_t predicate_next(PredWorker *w, int64_t from, BlockVerdict *v);
// What is known about keys [k0, k0 + nk).
BlockVerdict predicate_keys(PredWorker *w, int64_t k0, int64_t nk);
// Narrows [*k0, *k0 + *nk) by 48 keys at a time at both ends as long as no query sees them.
void predicate_trim(PredWorker *w, int64_t *k0, int64_t *nk);
// Prepares element-wise evaluation on keys [k0, k0 + nk), nk <= block.
void predicate_block(PredWorker *w, int64_t k0, int64_t nk, BlockVerdict v);
// One query: *visible is nk bytes, NULL if all are seen; *bias is nk reals, NULL if zero. Both until the next call.
void predicate_row(PredWorker *w, int64_t q, const uint8_t **visible, const void **bias);
