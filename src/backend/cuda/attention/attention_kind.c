// See attention_kind.h. Terms joined by `and` are comparisons of two linear forms; each becomes a bound on k - q. What was
// recognised is then compared with the program itself at corners, around both edges of the band and at random positions: a wrong
// mask is the worst that can happen.
#include "backend/cuda/attention/attention_kind.h"
#include "base/containers.h"
#include "base/random.h"

// ---- recognition
// ------------------------------------------------------------------------------------------------------------------
typedef struct Linear {
    int64_t q, k, c;  // q * position of the query + k * position of the key + c
} Linear;

enum { MAX_DEPTH = 64, MAX_INSTRS = 256 };
static const int64_t MAX_CONST = (int64_t)1 << 40;

static bool is_integer(DType t) { return t == DT_I64 || t == DT_I32; }

static bool linear_const(double v, Linear *out) {
    if (!(v >= -(double)MAX_CONST && v <= (double)MAX_CONST) || v != (double)(int64_t)v) return false;
    *out = (Linear){0, 0, (int64_t)v};
    return true;
}

static bool small(const Linear *l) {
    int64_t most = 4 * MAX_CONST;
    return llabs(l->q) < 1 << 20 && llabs(l->k) < 1 << 20 && l->c > -most && l->c < most;
}

static bool linear(const Program *p, int x, int depth, Linear *out) {
    const Instr *i = &p->instr[x];
    Linear a, b;
    if (depth > MAX_DEPTH || !is_integer(i->dtype)) return false;
    if (i->code == PROG_CONST) return linear_const(i->imm, out);
    if (i->code == PROG_INDEX_Q) return *out = (Linear){1, 0, 0}, true;
    if (i->code == PROG_INDEX_K) return *out = (Linear){0, 1, 0}, true;
    if (i->code < PROG_OP) return false;
    OpKind op = (OpKind)(i->code - PROG_OP);
    if (op == OP_CAST) return linear(p, i->a, depth + 1, out);  // of an integer to an integer
    if (op == OP_NEG) {
        if (!linear(p, i->a, depth + 1, &a)) return false;
        return *out = (Linear){-a.q, -a.k, -a.c}, true;
    }
    if (op != OP_ADD && op != OP_SUB) return false;
    if (!linear(p, i->a, depth + 1, &a) || !linear(p, i->b, depth + 1, &b)) return false;
    int s = op == OP_ADD ? 1 : -1;
    *out = (Linear){a.q + s * b.q, a.k + s * b.k, a.c + s * b.c};
    return small(out);
}

static void bound_above(AttentionBand *b, int64_t hi) { b->hi = b->has_hi ? min_i64(b->hi, hi) : hi, b->has_hi = true; }
static void bound_below(AttentionBand *b, int64_t lo) { b->lo = b->has_lo ? max_i64(b->lo, lo) : lo, b->has_lo = true; }

// lhs <= rhs
static bool add_bound(Linear lhs, Linear rhs, AttentionBand *b) {
    Linear d = {lhs.q - rhs.q, lhs.k - rhs.k, rhs.c - lhs.c};  // d.q * q + d.k * k <= d.c
    if (d.k == 1 && d.q == -1) return bound_above(b, d.c), true;
    if (d.k == -1 && d.q == 1) return bound_below(b, -d.c), true;
    return d.k == 0 && d.q == 0 && d.c >= 0;  // always true
}

// Vector slot read with this leaf, -1: none.
static int slot_of(const Program *p, int x, ProgLeaf leaf) {
    const Instr *i = &p->instr[x];
    return i->code == (int32_t)leaf && i->dtype == DT_I64 ? i->a : -1;
}

// doc[q] == doc[k], either way around; the same pair wherever it stands.
static bool add_documents(const Program *p, const Instr *i, AttentionDocuments *docs) {
    int a = slot_of(p, i->a, PROG_VEC_Q) >= 0 ? i->a : i->b, b = a == i->a ? i->b : i->a;
    int q = slot_of(p, a, PROG_VEC_Q), k = slot_of(p, b, PROG_VEC_K);
    if (q < 0 || k < 0 || (docs->q >= 0 && (docs->q != q || docs->k != k))) return false;
    return docs->q = q, docs->k = k, true;
}

// docs NULL: there must be none.
static bool add_term(const Program *p, int x, int depth, AttentionBand *b, AttentionDocuments *docs) {
    const Instr *i = &p->instr[x];
    if (depth > MAX_DEPTH) return false;
    if (i->code == PROG_CONST) return i->imm != 0;
    if (i->code < PROG_OP) return false;
    OpKind op = (OpKind)(i->code - PROG_OP);
    if (op == OP_CAST && p->instr[i->a].dtype == DT_BOOL) return add_term(p, i->a, depth + 1, b, docs);
    if (op == OP_AND) return add_term(p, i->a, depth + 1, b, docs) && add_term(p, i->b, depth + 1, b, docs);
    if (op == OP_EQ && docs) return add_documents(p, i, docs);
    if (op != OP_LE && op != OP_LT && op != OP_GE && op != OP_GT) return false;
    Linear l, r;
    if (!linear(p, i->a, 0, &l) || !linear(p, i->b, 0, &r)) return false;
    if (op == OP_LT || op == OP_GT) {  // integers: a < b is a + 1 <= b
        if (op == OP_LT)
            l.c++;
        else
            r.c++;
    }
    return op == OP_LE || op == OP_LT ? add_bound(l, r, b) : add_bound(r, l, b);
}

// ---- proof by trial
// ---------------------------------------------------------------------------------------------------------------
static bool in_band(const AttentionBand *b, int64_t q, int64_t k) {
    return (!b->has_hi || k - q <= b->hi) && (!b->has_lo || k - q >= b->lo);
}

static bool agrees_with(const Program *p, const double *vec, bool want, int64_t q, int64_t k) {
    double value[MAX_INSTRS];
    bool known[MAX_INSTRS];
    program_eval_scalar(p, &(ProgPoint){.q = q, .k = k, .vec = vec}, value, known);
    return known[p->out[0]] && (value[p->out[0]] != 0) == want;
}

static bool agrees(const Program *p, const AttentionBand *b, const AttentionDocuments *docs, int64_t q, int64_t k, int64_t nq,
                   int64_t nk) {
    if (q < 0 || q >= nq || k < 0 || k >= nk) return true;
    if (!docs) return agrees_with(p, NULL, in_band(b, q, k), q, k);
    static const double pair[][2] = {{0, 0}, {0, 1}, {1, 0}, {4e12, 4e12 - 1}};
    double vec[2];
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
        vec[docs->q] = pair[i][0], vec[docs->k] = pair[i][1];
        if (!agrees_with(p, vec, in_band(b, q, k) && pair[i][0] == pair[i][1], q, k)) return false;
    }
    return true;
}

static bool verify(const Program *p, const AttentionBand *b, const AttentionDocuments *docs, int64_t nq, int64_t nk) {
    const int64_t corner[] = {0, 1, 2, nq / 3, nq / 2, nq - 2, nq - 1};
    for (size_t i = 0; i < sizeof corner / sizeof *corner + 32; i++) {
        size_t ncorner = sizeof corner / sizeof *corner;
        int64_t q = i < ncorner ? corner[i] : (int64_t)(random_uniform(17, 1, 0, (int64_t)i) * (double)nq);
        const int64_t at[] = {0,
                              1,
                              nk / 2,
                              nk - 2,
                              nk - 1,
                              q,
                              q + (b->has_hi ? b->hi : 0),
                              q + (b->has_lo ? b->lo : 0),
                              (int64_t)(random_uniform(17, 2, 0, (int64_t)i) * (double)nk)};
        for (size_t j = 0; j < sizeof at / sizeof *at; j++)
            for (int64_t e = -2; e <= 2; e++)
                if (!agrees(p, b, docs, q, at[j] + e, nq, nk)) return false;
    }
    return true;
}

bool attention_band(const Program *p, int64_t nq, int64_t nk, AttentionBand *out) {
    *out = (AttentionBand){0};
    if (!p) return true;
    if (p->ninstr > MAX_INSTRS || (p->nout > 1 && p->out[1] >= 0)) return false;
    if (p->nout < 1 || p->out[0] < 0) return true;
    return add_term(p, p->out[0], 0, out, NULL) && verify(p, out, NULL, nq, nk);
}

bool attention_documents(const Program *p, int64_t nq, int64_t nk, AttentionBand *band, AttentionDocuments *docs) {
    *band = (AttentionBand){0}, *docs = (AttentionDocuments){-1, -1};
    if (!p || p->ninstr > MAX_INSTRS || p->nout < 1 || p->out[0] < 0 || (p->nout > 1 && p->out[1] >= 0)) return false;
    if (!add_term(p, p->out[0], 0, band, docs) || docs->q < 0 || docs->q > 1 || docs->q + docs->k != 1) return false;
    return verify(p, band, docs, nq, nk);
}
