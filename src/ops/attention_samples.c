// Small attentions from which the per-op tests are generated: each with another kind of mask.
#include "ops/attention.h"
#include "ops/rules.h"

// ---- masks ---------------------------------------------------------------------------------------------------------------

#define LEAF(code_, dtype_, slot) {.code = (code_), .dtype = (dtype_), .a = (slot), .b = -1, .c = -1}
#define NUM(dtype_, v) {.code = PROG_CONST, .dtype = (dtype_), .a = -1, .b = -1, .c = -1, .imm = (v)}
#define OP1(op, dtype_, x) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = -1, .c = -1}
#define OP2(op, dtype_, x, y) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = -1}
#define INDEX_Q LEAF(PROG_INDEX_Q, DT_I64, -1)
#define INDEX_K LEAF(PROG_INDEX_K, DT_I64, -1)
#define MASK(code, visible, bias)                                                                         \
    (&(const Program){.ninstr = (int)(sizeof(code) / sizeof((code)[0])), .instr = (code), .nout = 2,      \
                      .out = (const int32_t[]){(visible), (bias)}})
#define ATTN_ATTRS(prog_) SAMPLE_F(SCALE, 0.5), {.key = ATTR_PROG, .u.prog = (prog_)}

// k <= q
static const Instr causal[] = {INDEX_Q, INDEX_K, OP2(LE, DT_BOOL, 1, 0)};
// k <= q and q - k < 4
static const Instr window[] = {INDEX_Q,
                               INDEX_K,
                               OP2(LE, DT_BOOL, 1, 0),
                               OP2(SUB, DT_I64, 0, 1),
                               NUM(DT_I64, 4),
                               OP2(LT, DT_BOOL, 3, 4),
                               OP2(AND, DT_BOOL, 2, 5)};
// k <= q and document(q) == document(k), with the bias -0.25 * (h + 1) * (q - k)
static const Instr documents[] = {INDEX_Q,
                                  INDEX_K,
                                  OP2(LE, DT_BOOL, 1, 0),
                                  LEAF(PROG_VEC_Q, DT_I64, 0),
                                  LEAF(PROG_VEC_K, DT_I64, 1),
                                  OP2(EQ, DT_BOOL, 3, 4),
                                  OP2(AND, DT_BOOL, 2, 5),
                                  LEAF(PROG_INDEX_H, DT_I64, -1),
                                  NUM(DT_I64, 1),
                                  OP2(ADD, DT_I64, 7, 8),
                                  OP2(SUB, DT_I64, 1, 0),
                                  OP2(MUL, DT_I64, 9, 10),
                                  OP1(CAST, DT_F32, 11),
                                  NUM(DT_F32, 0.25),
                                  OP2(MUL, DT_F32, 12, 13)};
// k < q: row 0 sees no key
static const Instr strict[] = {INDEX_Q, INDEX_K, OP2(LT, DT_BOOL, 1, 0)};
// a bias for each head and key, and a bool that hides keys of some rows of the batch
static const Instr per_head[] = {LEAF(PROG_VEC_K, DT_F32, 0), LEAF(PROG_VEC_Q, DT_BOOL, 1), INDEX_K, NUM(DT_I64, 2),
                                 OP2(LT, DT_BOOL, 2, 3), OP2(OR, DT_BOOL, 1, 4)};

// ---- sdpa ----------------------------------------------------------------------------------------------------------------

#define QKV(...) .shape = {__VA_ARGS__}
#define F32(n) .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32}, .nin = (n)

const Sample sdpa_samples[] = {
    {.label = "causal", F32(3), QKV(DIMS(2, 3, 5, 4), DIMS(2, 3, 5, 4), DIMS(2, 3, 5, 4)), .nattr = 2,
     .attr = {SAMPLE_F(SCALE, 0.5), SAMPLE_I(CAUSAL, 1)}},
    {.label = "shared KV heads, float mask", F32(4), QKV(DIMS(1, 4, 5, 3), DIMS(1, 2, 6, 3), DIMS(1, 2, 6, 2), DIMS(1, 1, 5, 6)),
     .nattr = 1, .attr = {SAMPLE_F(SCALE, 0.5)}},
    {.label = "bool mask", .nin = 4, QKV(DIMS(2, 2, 5, 4), DIMS(2, 2, 5, 4), DIMS(2, 2, 5, 4), DIMS(2, 1, 1, 5)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_BOOL}, .nattr = 1, .attr = {SAMPLE_F(SCALE, 0.5)}},
};

// ---- attention -----------------------------------------------------------------------------------------------------------

const Sample attention_samples[] = {
    {.label = "whole", F32(3), QKV(DIMS(2, 2, 5, 4), DIMS(2, 2, 6, 4), DIMS(2, 2, 6, 3)), .nattr = 1,
     .attr = {SAMPLE_F(SCALE, 0.5)}},
    {.label = "causal", F32(3), QKV(DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4)), .nattr = 2,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1))}},
    {.label = "window, shared KV heads, soft-cap", F32(3), QKV(DIMS(1, 6, 9, 4), DIMS(1, 2, 9, 4), DIMS(1, 2, 9, 4)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(window, 6, -1)), SAMPLE_F(SOFTCAP, 2)}},
    {.label = "one KV head", F32(3), QKV(DIMS(1, 5, 6, 2), DIMS(1, 1, 6, 2), DIMS(1, 1, 6, 2)), .nattr = 2,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1))}},
    {.label = "documents and a bias by distance", .nin = 5,
     QKV(DIMS(2, 4, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 1, 7), DIMS(2, 1, 7)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_I64, DT_I64}, .hi = {0, 0, 0, 2, 2}, .nattr = 2,
     .attr = {ATTN_ATTRS(MASK(documents, 6, 14))}},
    {.label = "a row that sees no key is zeros", F32(3), QKV(DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(strict, 2, -1)), SAMPLE_I(MASKED_ROW, 0)}},
    {.label = "a row that sees no key is uniform", F32(3), QKV(DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(strict, 2, -1)), SAMPLE_I(MASKED_ROW, 2)}},
    {.label = "a row that sees no key is uniform, its scores replaced", F32(3),
     QKV(DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4), DIMS(1, 2, 5, 4)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(strict, 2, -1)), SAMPLE_I(MASKED_ROW, 3)}},
    {.label = "bias vectors by head and batch", .nin = 5,
     QKV(DIMS(3, 4, 5, 2), DIMS(3, 4, 6, 2), DIMS(3, 4, 6, 2), DIMS(1, 4, 6), DIMS(3, 1, 5)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_BOOL}, .nattr = 2, .attr = {ATTN_ATTRS(MASK(per_head, 5, 0))}},
    {.label = "dropout", F32(3), QKV(DIMS(2, 4, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 2, 7, 4)), .nattr = 4,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1)), SAMPLE_F(DROPOUT, 0.25), SAMPLE_I(SEED, 7)}},
    {.label = "heads in groups", F32(3), QKV(DIMS(2, 8, 9, 8), DIMS(2, 4, 9, 8), DIMS(2, 4, 9, 8)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1)), SAMPLE_I(GROUPS, 2)}},
    {.label = "heads in groups, documents and a bias by distance", .nin = 5,
     QKV(DIMS(2, 6, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 1, 7), DIMS(2, 1, 7)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_I64, DT_I64}, .hi = {0, 0, 0, 2, 2}, .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(documents, 6, 14)), SAMPLE_I(GROUPS, 3)}},
};

const Sample attention_grad_samples[] = {
    {.label = "whole", F32(6),
     QKV(DIMS(2, 2, 5, 4), DIMS(2, 2, 6, 4), DIMS(2, 2, 6, 3), DIMS(2, 2, 5, 3), DIMS(2, 2, 5), DIMS(2, 2, 5, 3)), .nattr = 1,
     .attr = {SAMPLE_F(SCALE, 0.5)}},
    {.label = "causal", F32(6),
     QKV(DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7), DIMS(2, 3, 7, 4)), .nattr = 2,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1))}},
    {.label = "window, shared KV heads, soft-cap", F32(6),
     QKV(DIMS(1, 6, 9, 4), DIMS(1, 2, 9, 4), DIMS(1, 2, 9, 4), DIMS(1, 6, 9, 4), DIMS(1, 6, 9), DIMS(1, 6, 9, 4)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(window, 6, -1)), SAMPLE_F(SOFTCAP, 2)}},
    {.label = "documents and a bias by distance", .nin = 8,
     QKV(DIMS(2, 4, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 4, 7, 4), DIMS(2, 4, 7), DIMS(2, 4, 7, 4), DIMS(2, 1, 7),
         DIMS(2, 1, 7)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_I64, DT_I64}, .hi = {0, 0, 0, 0, 0, 0, 2, 2}, .nattr = 2,
     .attr = {ATTN_ATTRS(MASK(documents, 6, 14))}},
    {.label = "dropout", F32(6),
     QKV(DIMS(2, 4, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 2, 7, 4), DIMS(2, 4, 7, 4), DIMS(2, 4, 7), DIMS(2, 4, 7, 4)), .nattr = 4,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1)), SAMPLE_F(DROPOUT, 0.25), SAMPLE_I(SEED, 7)}},
    {.label = "heads in groups", F32(6),
     QKV(DIMS(2, 8, 9, 8), DIMS(2, 4, 9, 8), DIMS(2, 4, 9, 8), DIMS(2, 8, 9, 8), DIMS(2, 8, 9), DIMS(2, 8, 9, 8)), .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(causal, 2, -1)), SAMPLE_I(GROUPS, 2)}},
    {.label = "heads in groups, documents and a bias by distance", .nin = 8,
     QKV(DIMS(2, 6, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 3, 7, 4), DIMS(2, 6, 7, 4), DIMS(2, 6, 7), DIMS(2, 6, 7, 4), DIMS(2, 1, 7),
         DIMS(2, 1, 7)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_I64, DT_I64}, .hi = {0, 0, 0, 0, 0, 0, 2, 2}, .nattr = 3,
     .attr = {ATTN_ATTRS(MASK(documents, 6, 14)), SAMPLE_I(GROUPS, 3)}},
    {.label = "heads in groups, dropout, bias vectors by head and batch", .nin = 8,
     QKV(DIMS(3, 4, 5, 2), DIMS(3, 4, 6, 2), DIMS(3, 4, 6, 2), DIMS(3, 4, 5, 2), DIMS(3, 4, 5), DIMS(3, 4, 5, 2), DIMS(1, 4, 6),
         DIMS(3, 1, 5)),
     .dtype = {DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_F32, DT_BOOL}, .nattr = 5,
     .attr = {ATTN_ATTRS(MASK(per_head, 5, 0)), SAMPLE_F(DROPOUT, 0.25), SAMPLE_I(SEED, 7), SAMPLE_I(GROUPS, 4)}},
};
