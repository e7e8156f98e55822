// What an attention mask program amounts to, where it is one of the few forms that cuDNN has: a band of keys around each query's
// position.
#pragma once
#include "ops/op.h"

// Key k is visible to query q, in global positions, iff (!has_hi || k - q <= hi) && (!has_lo || k - q >= lo).
typedef struct AttentionBand {
    bool has_lo, has_hi;
    int64_t lo, hi;
} AttentionBand;

// Documents: vector slot q (read at the query) equals vector slot k (read at the key).
typedef struct AttentionDocuments {
    int q, k;
} AttentionDocuments;
// Recognises p as a band within documents.
bool attention_documents(const Program *p, int64_t nq, int64_t nk, AttentionBand *band, AttentionDocuments *documents);
// Recognises p (NULL: everything is visible) for nq queries and nk keys (global). false: something else, or with a bias or
// vectors.
bool attention_band(const Program *p, int64_t nq, int64_t nk, AttentionBand *out);
