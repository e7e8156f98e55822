#include "flash_cases.h"
#include <math.h>

#define LEAF(code_, dtype_, slot) {.code = (code_), .dtype = (dtype_), .a = (slot), .b = -1, .c = -1}
#define NUM(dtype_, v) {.code = PROG_CONST, .dtype = (dtype_), .a = -1, .b = -1, .c = -1, .imm = (v)}
#define OP1(op, dtype_, x) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = -1, .c = -1}
#define OP2(op, dtype_, x, y) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = -1}
#define OP3(op, dtype_, x, y, z) {.code = PROG_OP + OP_##op, .dtype = (dtype_), .a = (x), .b = (y), .c = (z)}
#define Q LEAF(PROG_INDEX_Q, DT_I64, -1)
#define K LEAF(PROG_INDEX_K, DT_I64, -1)
#define MASK(code, visible, bias)                                                                    \
    (&(const Program){.ninstr = (int)(sizeof(code) / sizeof((code)[0])), .instr = (code), .nout = 2, \
                      .out = (const int32_t[]){(visible), (bias)}})

static const Instr causal[] = {Q, K, OP2(LE, DT_BOOL, 1, 0)};
static const Instr strict[] = {Q, K, OP2(LT, DT_BOOL, 1, 0)};
// k <= q and q - k < 40
static const Instr window[] = {
    Q, K, OP2(LE, DT_BOOL, 1, 0), OP2(SUB, DT_I64, 0, 1), NUM(DT_I64, 40), OP2(LT, DT_BOOL, 3, 4), OP2(AND, DT_BOOL, 2, 5)};
// (k <= q and q - k < 100 and document(q) == document(k)) or k < 5, with -0.03 (h + 1) (q - k)
static const Instr everything[] = {Q,
                                   K,
                                   OP2(LE, DT_BOOL, 1, 0),
                                   OP2(SUB, DT_I64, 0, 1),
                                   NUM(DT_I64, 100),
                                   OP2(LT, DT_BOOL, 3, 4),
                                   OP2(AND, DT_BOOL, 2, 5),
                                   LEAF(PROG_VEC_Q, DT_I64, 0),
                                   LEAF(PROG_VEC_K, DT_I64, 1),
                                   OP2(EQ, DT_BOOL, 7, 8),
                                   OP2(AND, DT_BOOL, 6, 9),
                                   NUM(DT_I64, 5),
                                   OP2(LT, DT_BOOL, 1, 11),
                                   OP2(OR, DT_BOOL, 10, 12),
                                   LEAF(PROG_INDEX_H, DT_I64, -1),
                                   NUM(DT_I64, 1),
                                   OP2(ADD, DT_I64, 14, 15),
                                   OP2(MUL, DT_I64, 16, 3),
                                   OP1(CAST, DT_F32, 17),
                                   NUM(DT_F32, -0.03),
                                   OP2(MUL, DT_F32, 18, 19)};
// keys of chunks of 64 up to one's own chunk; by integer division
static const Instr chunked[] = {
    Q, K, NUM(DT_I64, 64), OP2(FLOORDIV, DT_I64, 0, 2), OP2(FLOORDIV, DT_I64, 1, 2), OP2(LE, DT_BOOL, 4, 3)};
// what is hidden has -1e9 added; the first rows see nothing, and their scores are all -1e9 after rounding
static const Instr added[] = {Q,
                              K,
                              LEAF(PROG_VEC_K, DT_BOOL, 0),
                              OP2(LT, DT_BOOL, 1, 0),
                              OP2(AND, DT_BOOL, 2, 3),
                              NUM(DT_F32, 0),
                              NUM(DT_F32, -1e9),
                              OP3(WHERE, DT_F32, 4, 5, 6)};
// a bias by head and key, a bool by batch entry and query
static const Instr vectors[] = {
    LEAF(PROG_VEC_K, DT_F32, 0), LEAF(PROG_VEC_Q, DT_BOOL, 1), K, NUM(DT_I64, 3), OP2(MOD, DT_I64, 2, 3), NUM(DT_I64, 1),
    OP2(NE, DT_BOOL, 4, 5),      OP2(OR, DT_BOOL, 1, 6)};
// -inf added where k > q: a mask that is only a bias
static const Instr infinite[] = {
    Q, K, OP2(LE, DT_BOOL, 1, 0), NUM(DT_F32, 0), NUM(DT_F32, -INFINITY), OP3(WHERE, DT_F32, 2, 3, 4)};
// queries 70 to 140 see nothing
static const Instr hole[] = {
    Q, NUM(DT_I64, 70),        NUM(DT_I64, 140),       OP2(LT, DT_BOOL, 0, 1), OP2(GE, DT_BOOL, 0, 2), OP2(OR, DT_BOOL, 3, 4),
    K, OP2(LE, DT_BOOL, 6, 0), OP2(AND, DT_BOOL, 5, 7)};
// powers, soft functions and floats from everywhere: |sin(0.1 k)| + tanh(0.01 q) - max(0, rsqrt(q + 1))
static const Instr functions[] = {Q,
                                  K,
                                  OP1(CAST, DT_F32, 0),
                                  OP1(CAST, DT_F32, 1),
                                  NUM(DT_F32, 0.1),
                                  OP2(MUL, DT_F32, 3, 4),
                                  OP1(SIN, DT_F32, 5),
                                  OP1(ABS, DT_F32, 6),
                                  NUM(DT_F32, 0.01),
                                  OP2(MUL, DT_F32, 2, 8),
                                  OP1(TANH, DT_F32, 9),
                                  OP2(ADD, DT_F32, 7, 10),
                                  NUM(DT_F32, 1),
                                  OP2(ADD, DT_F32, 2, 12),
                                  OP1(RSQRT, DT_F32, 13),
                                  NUM(DT_F32, 0),
                                  OP2(MAX, DT_F32, 15, 14),
                                  OP2(SUB, DT_F32, 11, 16)};

#define SIZE(b, h, hkv, sq, sk, d, dv) .B = (b), .H = (h), .Hkv = (hkv), .Sq = (sq), .Sk = (sk), .D = (d), .Dv = (dv)
#define DOCUMENTS .nvec = 2, .vec_on_b = {1, 1}, .vec_dtype = {DT_I64, DT_I64}, .vec_hi = {3, 3}
const FlashCase flash_cases[] = {
    {"whole", SIZE(2, 2, 2, 70, 130, 20, 12), NULL, .nranks = 1},
    {"causal", SIZE(1, 4, 2, 200, 200, 64, 64), MASK(causal, 2, -1), .nranks = 3},
    {"causal, one KV head, 8 channels", SIZE(1, 5, 1, 67, 67, 8, 8), MASK(causal, 2, -1), .nranks = 1},
    {"window", SIZE(1, 6, 2, 333, 333, 20, 20), MASK(window, 6, -1), .nranks = 1},
    {"window, prefix, documents, bias by distance", SIZE(2, 6, 2, 301, 301, 16, 16), MASK(everything, 13, 20), DOCUMENTS,
     .nranks = 3},
    {"the same, soft-cap, dropout", SIZE(2, 4, 2, 150, 150, 16, 24), MASK(everything, 13, 20), DOCUMENTS, .softcap = 1.5,
     .dropout = 0.3, .nranks = 3},
    {"chunks", SIZE(1, 2, 1, 260, 260, 32, 32), MASK(chunked, 5, -1), .nranks = 1},
    {"added -1e9", SIZE(2, 2, 1, 90, 90, 16, 16), MASK(added, -1, 7), .nvec = 1, .vec_on_b = {1}, .vec_dtype = {DT_BOOL},
     .like = MASK(added, 4, -1), .nranks = 3},
    {"vectors by head and batch", SIZE(3, 4, 2, 140, 135, 16, 16), MASK(vectors, 7, 0), .nvec = 2, .vec_on_b = {0, 1},
     .vec_on_h = {1, 0}, .vec_dtype = {DT_F32, DT_BOOL}, .nranks = 3},
    {"a bias of -inf", SIZE(1, 2, 2, 150, 150, 16, 16), MASK(infinite, -1, 5), .nranks = 1},
    {"functions", SIZE(1, 2, 2, 70, 70, 8, 8), MASK(functions, -1, 17), .nranks = 1},
    {"blind rows: zeros", SIZE(1, 2, 1, 200, 200, 16, 16), MASK(hole, 8, -1), .masked_row = 0, .nranks = 1},
    {"blind rows: NaN", SIZE(1, 2, 1, 200, 200, 16, 16), MASK(hole, 8, -1), .masked_row = 1, .nranks = 1},
    {"blind rows: uniform", SIZE(1, 2, 1, 200, 200, 16, 16), MASK(hole, 8, -1), .masked_row = 2, .nranks = 3},
    {"blind rows: uniform, scores replaced, dropout", SIZE(1, 2, 1, 200, 200, 16, 16), MASK(hole, 8, -1), .masked_row = 3,
     .dropout = 0.2, .nranks = 3},
    {"strict, soft-cap", SIZE(1, 2, 2, 65, 65, 16, 16), MASK(strict, 2, -1), .masked_row = 2, .softcap = 3, .nranks = 1},
    {"96 channels", SIZE(1, 2, 1, 130, 130, 96, 96), MASK(causal, 2, -1), .nranks = 1},
    {"128 channels", SIZE(1, 4, 2, 150, 150, 128, 128), MASK(causal, 2, -1), .nranks = 1},
    {"192 and 128 channels", SIZE(1, 2, 2, 100, 100, 192, 128), MASK(causal, 2, -1), .nranks = 1},
    {"groups: window, prefix, documents, bias by distance, dropout", SIZE(2, 6, 3, 150, 150, 16, 24), MASK(everything, 13, 20),
     DOCUMENTS, .dropout = 0.3, .groups = 3, .nranks = 3},
    {"groups: vectors by head and batch", SIZE(3, 8, 4, 70, 135, 16, 16), MASK(vectors, 7, 0), .nvec = 2, .vec_on_b = {0, 1},
     .vec_on_h = {1, 0}, .vec_dtype = {DT_F32, DT_BOOL}, .groups = 2, .nranks = 3},
    {"groups: blind rows uniform", SIZE(2, 4, 2, 200, 200, 16, 16), MASK(hole, 8, -1), .masked_row = 2, .groups = 2, .nranks = 3},
    {"256 channels", SIZE(1, 1, 1, 80, 80, 256, 256), MASK(causal, 2, -1), .nranks = 1},
};
const int flash_ncase = sizeof flash_cases / sizeof *flash_cases;

#define D4(a, b, c, d) shape_of(4, (int64_t[]){(a), (b), (c), (d)})
#define D3(a, b, c) shape_of(3, (int64_t[]){(a), (b), (c)})

static Sample sample_of(const FlashCase *c, bool grad) {
    Sample s = {.label = c->label, .nin = grad ? 6 : 3};
    s.shape[0] = D4(c->B, c->H, c->Sq, c->D), s.shape[1] = D4(c->B, c->Hkv, c->Sk, c->D),
    s.shape[2] = D4(c->B, c->Hkv, c->Sk, c->Dv);
    if (grad) s.shape[3] = s.shape[5] = D4(c->B, c->H, c->Sq, c->Dv), s.shape[4] = D3(c->B, c->H, c->Sq);
    for (int i = 0; i < s.nin; i++) s.dtype[i] = DT_F32;
    for (int i = 0; i < c->nvec; i++, s.nin++) {
        s.shape[s.nin] =
            D3(c->vec_on_b[i] ? c->B : 1, c->vec_on_h[i] ? c->H : 1, program_vec_role(c->prog, i) == 'k' ? c->Sk : c->Sq);
        s.dtype[s.nin] = c->vec_dtype[i], s.lo[s.nin] = c->vec_lo[i], s.hi[s.nin] = c->vec_hi[i];
    }
    s.attr[s.nattr++] = attr_f(ATTR_SCALE, 1 / sqrt((double)c->D));
    if (c->prog) s.attr[s.nattr++] = attr_prog(ATTR_PROG, c->prog);
    if (c->softcap != 0) s.attr[s.nattr++] = attr_f(ATTR_SOFTCAP, c->softcap);
    if (c->dropout != 0) s.attr[s.nattr++] = attr_f(ATTR_DROPOUT, c->dropout);
    if (c->dropout != 0) s.attr[s.nattr++] = attr_i(ATTR_SEED, 5);
    if (c->groups != 0) s.attr[s.nattr++] = attr_i(ATTR_GROUPS, c->groups);
    if (c->masked_row != 0) s.attr[s.nattr++] = attr_i(ATTR_MASKED_ROW, c->masked_row);
    return s;
}
FlashCase flash_case_like(const FlashCase *c) {
    FlashCase like = *c;
    like.prog = c->like, like.masked_row = 2;
    return like;
}
Sample flash_case_forward(const FlashCase *c) { return sample_of(c, false); }
Sample flash_case_backward(const FlashCase *c) { return sample_of(c, true); }
