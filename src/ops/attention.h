// Shared by attention's three files: the rules (attention.c), the cost (attention_cost.c), the samples (attention_samples.c).
#pragma once
#include "ops/op.h"

enum {
    ATTENTION_NIN = 3,       // q, k, v; vectors follow
    ATTENTION_GRAD_NIN = 6,  // q, k, v, o, lse, do; vectors follow
};

void cost_attention(const Node *n, const Operand *in, const Operand *out, Cost *c);  // sdpa and attention
void cost_attention_grad(const Node *n, const Operand *in, const Operand *out, Cost *c);
// Part of the query-key pairs of one rank (its rows of `q`, all of Sk) that the mask leaves visible, estimated from samples.
double attention_visible_fraction(const Node *n, const Operand *q, const Operand *k);

// The most groups of equal size, at most `most`, that so many KV heads make.
int64_t attention_most_groups(int64_t most, int64_t kv_heads);
// In how many groups a rank does its `kv_heads` KV heads: as the node's `groups` says, or fewer where those do not divide by it.
int64_t attention_groups(const Node *n, int64_t kv_heads);

enum { SDPA_NSAMPLE = 3, ATTENTION_NSAMPLE = 12, ATTENTION_GRAD_NSAMPLE = 8 };
extern const Sample sdpa_samples[SDPA_NSAMPLE], attention_samples[ATTENTION_NSAMPLE],
    attention_grad_samples[ATTENTION_GRAD_NSAMPLE];
