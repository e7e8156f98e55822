#include "backend/cpu/predicate.h"
#include <math.h>
#include <string.h>
#include "backend/cpu/interval.h"
#include "base/containers.h"

struct PredInstr {
    DType from;  // type of the operand that decides which loop runs (a; for where: b)
    bool on_q, on_k;  // depends on the query, the key
    bool for_visible, for_bias;  // an output needs it
};

// ---- lanes: element-wise loops for {32, 64}-bit integers x {float, double} --------------------------------------------------
#define LANES_PASTE(name, tag) lanes_##name##_##tag
#define LANES_NAME(name, tag) LANES_PASTE(name, tag)
#define LANES(name) LANES_NAME(name, LANES_TAG)
#define INT int32_t
#define REAL float
#define LANES_TAG i32_f32
#include "backend/cpu/lanes_impl.h"
#undef LANES_TAG
#undef REAL
#define REAL double
#define LANES_TAG i32_f64
#include "backend/cpu/lanes_impl.h"
#undef LANES_TAG
#undef INT
#define INT int64_t
#define LANES_TAG i64_f64
#include "backend/cpu/lanes_impl.h"
#undef LANES_TAG
#undef REAL
#define REAL float
#define LANES_TAG i64_f32
#include "backend/cpu/lanes_impl.h"
#undef LANES_TAG
#undef REAL
#undef INT

typedef struct LaneTable {
    void (*op)(const Instr *in, DType from, int64_t n, void *z, const void *a, const void *b, const void *c);
    void (*load)(const Operand *o, int64_t begin, int64_t n, void *z);
    void (*fill)(DType t, int64_t n, void *z, double v, int64_t integer);
    void (*iota)(int64_t begin, int64_t n, void *z);
    void (*spread)(DType t, int64_t n, void *z);
} LaneTable;
#define LANE_TABLE(tag) \
    { lanes_op_##tag, lanes_load_##tag, lanes_fill_##tag, lanes_iota_##tag, lanes_spread_##tag }
static const LaneTable lane_tables[2][2] = {{LANE_TABLE(i64_f32), LANE_TABLE(i64_f64)},
                                            {LANE_TABLE(i32_f32), LANE_TABLE(i32_f64)}};
static const LaneTable *lanes_of(const Predicate *p) { return &lane_tables[p->narrow][p->real == DT_F64]; }

// ---- vectors ----------------------------------------------------------------------------------------------------------------
// Where global index i of dim `dim` is stored locally. Dims of size 1 are broadcast.
static int64_t local_index(const Operand *o, int dim, int64_t i) {
    if (o->global[dim] == 1) return 0;
    if (o->sdim != dim) return i;
    int64_t base = 0;
    for (int s = 0; s < o->nspan; base += o->span[s].end - o->span[s].begin, s++)
        if (i >= o->span[s].begin && i < o->span[s].end) return base + i - o->span[s].begin;
    CHECK(false, "index %lld of dim %d is not on this rank", (long long)i, dim);
}

static double vec_at(const Operand *o, int64_t i) {
    switch (o->dtype) {
    case DT_F32: return ((const float *)o->data)[i];
    case DT_F64: return ((const double *)o->data)[i];
    case DT_BOOL: return ((const uint8_t *)o->data)[i] != 0;
    default: return (double)((const int64_t *)o->data)[i];
    }
}

static Interval vec_range(const Operand *o, int64_t begin, int64_t n) {
    Interval r = interval_empty();
    for (int64_t i = 0; i < n; i++) interval_add(&r, vec_at(o, begin + i));
    // Doubles hold integers exactly only so far; nothing is claimed about larger ones.
    if (o->dtype == DT_I64 && (r.lo < -0x1p50 || r.hi > 0x1p50)) return interval_unknown();
    return r;
}

// ---- binding ----------------------------------------------------------------------------------------------------------------
// Nodes of the tree of aligned runs of blocks: level l has ceil(nblock / 2^l) of them, down to one.
static int64_t tree_length(int64_t nblock) {
    int64_t n = nblock;
    for (int64_t w = nblock; w > 1; n += w) w = (w + 1) / 2;
    return n;
}

static int64_t tree_index(int64_t nblock, int level, int64_t i) {
    int64_t at = 0;
    for (; level > 0; level--, nblock = (nblock + 1) / 2) at += nblock;
    return at + i;
}

static size_t round_bytes(size_t n) { return (n + 63) & ~(size_t)63; }
static int64_t vec_rows(const Operand *o) { return o->dim[0] * o->dim[1]; }

size_t predicate_nbytes(const Program *prog, int nvec, const Operand *vec, int64_t nkey, int64_t block) {
    if (!prog) return 0;
    size_t n = round_bytes((size_t)prog->ninstr * sizeof(PredInstr)), len = (size_t)tree_length(ceil_div(nkey, block));
    for (int i = 0; i < nvec; i++) n += round_bytes((size_t)vec_rows(&vec[i]) * len * sizeof(Interval));
    return n + round_bytes((size_t)prog->ninstr * sizeof(Interval));
}

static size_t lane_stride(int64_t block) { return (size_t)block * 8 + 64; }  // not a power of two: cache sets

size_t predicate_worker_nbytes(const Program *prog, int64_t block) {
    if (!prog) return 0;
    return round_bytes((size_t)prog->ninstr * sizeof(Interval)) + round_bytes((size_t)prog->ninstr * lane_stride(block));
}

static void need(const Program *p, int out, PredInstr *pi, bool visible) {
    if (out < 0) return;
    *(visible ? &pi[out].for_visible : &pi[out].for_bias) = true;
    for (int i = out; i >= 0; i--) {
        if (!(visible ? pi[i].for_visible : pi[i].for_bias) || p->instr[i].code < PROG_OP) continue;
        int32_t arg[3] = {p->instr[i].a, p->instr[i].b, p->instr[i].c};
        for (int j = 0; j < program_op_arity(p->instr[i].code - PROG_OP); j++)
            *(visible ? &pi[arg[j]].for_visible : &pi[arg[j]].for_bias) = true;
    }
}

static void analyse(const Predicate *p, PredInstr *pi) {
    for (int i = 0; i < p->prog->ninstr; i++) {
        const Instr *in = &p->prog->instr[i];
        pi[i] = (PredInstr){.from = in->dtype};
        if (in->code < PROG_OP) {
            bool vec = in->code == PROG_VEC_Q || in->code == PROG_VEC_K;
            CHECK(!vec || (in->a >= 0 && in->a < p->nvec), "mask program reads vector %d of %d", in->a, p->nvec);
            CHECK(in->code != PROG_INPUT, "a mask program has no fused inputs");
            pi[i].on_q = in->code == PROG_INDEX_Q || (in->code == PROG_VEC_Q && p->vec[in->a].global[2] > 1);
            pi[i].on_k = in->code == PROG_INDEX_K || (in->code == PROG_VEC_K && p->vec[in->a].global[2] > 1);
            continue;
        }
        int32_t arg[3] = {in->a, in->b, in->c};
        for (int j = 0; j < program_op_arity(in->code - PROG_OP); j++)
            pi[i].on_q |= pi[arg[j]].on_q, pi[i].on_k |= pi[arg[j]].on_k;
        int from = in->code == PROG_OP + OP_WHERE ? in->b : in->a;
        pi[i].from = p->prog->instr[from].dtype;
    }
    need(p->prog, p->visible, pi, true);
    need(p->prog, p->bias, pi, false);
}

static void build_tree(const Predicate *p, const Operand *o, Interval *tree) {
    for (int64_t r = 0; r < vec_rows(o); r++, tree += p->tree_len) {
        for (int64_t i = 0; i < p->nblock; i++)
            tree[i] = vec_range(o, r * o->dim[2] + i * p->block, min_i64(p->block, p->nkey - i * p->block));
        Interval *below = tree;
        for (int64_t n = p->nblock; n > 1; n = (n + 1) / 2) {
            Interval *level = below + n;
            for (int64_t i = 0; i < (n + 1) / 2; i++) {
                level[i] = below[2 * i];
                if (2 * i + 1 < n) interval_join(&level[i], below[2 * i + 1]);
            }
            below = level;
        }
    }
}

// Where the program is: ranges of the indices and vectors for which instruction ranges are asked.
typedef struct RangeAt {
    Interval b, h, q, k;
    const Interval *vec_q, *vec_k;  // by slot
} RangeAt;

static Interval leaf_range(const Instr *in, const RangeAt *at) {
    switch (in->code) {
    case PROG_CONST: return interval_point(in->dtype == DT_F32 ? (double)(float)in->imm : in->imm);
    case PROG_INDEX_B: return at->b;
    case PROG_INDEX_H: return at->h;
    case PROG_INDEX_Q: return at->q;
    case PROG_INDEX_K: return at->k;
    case PROG_VEC_Q: return at->vec_q[in->a];
    default: return at->vec_k[in->a];
    }
}

static void eval_ranges(const Predicate *p, const RangeAt *at, Interval *range) {
    const Program *g = p->prog;
    for (int i = 0; i < g->ninstr; i++) {
        const Instr *in = &g->instr[i];
        range[i] = in->code < PROG_OP ? leaf_range(in, at) : interval_of(in, range, p->instr[i].from, p->real);
        if (in->dtype != DT_BOOL) continue;
        range[i].nan = false;
        range[i].lo = range[i].lo > 0 ? 1 : 0;
        range[i].hi = range[i].hi > 0 ? 1 : 0;
    }
}

// True if no integer anywhere in this call can leave 32 bits.
static bool fits_narrow(const Predicate *p, const RangeAt *at, Interval *range) {
    eval_ranges(p, at, range);
    for (int i = 0; i < p->prog->ninstr; i++)
        if (p->prog->instr[i].dtype == DT_I64 && !(range[i].lo >= -0x1p30 && range[i].hi <= 0x1p30)) return false;
    return true;
}

void predicate_bind(Predicate *p, const Program *prog, int nvec, const Operand *vec, DType real, int64_t batch, int64_t heads,
                    int64_t q_extent, int64_t nkey, int64_t block, void *memory) {
    *p = (Predicate){
        .prog = prog, .visible = -1, .bias = -1, .nvec = nvec, .vec = vec, .real = real, .nkey = nkey, .block = block};
    p->nblock = ceil_div(nkey, block);
    p->worker_nbytes = predicate_worker_nbytes(prog, block);
    if (!prog) return;
    CHECK(nvec <= PRED_MAX_VEC, "%d vectors in a mask program", nvec);
    p->visible = prog->nout > 0 ? prog->out[0] : -1;
    p->bias = prog->nout > 1 ? prog->out[1] : -1;
    char *at = memory;
    PredInstr *pi = (PredInstr *)at;
    at += round_bytes((size_t)prog->ninstr * sizeof *pi);
    analyse(p, pi);
    p->instr = pi;
    p->tree_len = tree_length(p->nblock);
    Interval whole[PRED_MAX_VEC];
    bool over_k[PRED_MAX_VEC] = {false};
    for (int i = 0; i < prog->ninstr; i++) {
        if (prog->instr[i].code == PROG_VEC_K) over_k[prog->instr[i].a] = true;
        if (prog->instr[i].code == PROG_VEC_Q) p->over_q[prog->instr[i].a] = true;
    }
    for (int i = 0; i < nvec; i++) {
        whole[i] = vec_range(&vec[i], 0, vec_rows(&vec[i]) * vec[i].dim[2]);
        if (!over_k[i] || vec[i].global[2] == 1) continue;
        CHECK(vec[i].dim[2] == nkey, "a vector over keys holds %lld of %lld", (long long)vec[i].dim[2], (long long)nkey);
        Interval *tree = (Interval *)at;
        at += round_bytes((size_t)(vec_rows(&vec[i]) * p->tree_len) * sizeof *tree);
        build_tree(p, &vec[i], tree);
        p->tree[i] = tree;
    }
    RangeAt all = {{0, (double)batch, false},
                   {0, (double)heads, false},
                   {0, (double)q_extent, false},
                   {0, (double)nkey, false},
                   whole,
                   whole};
    p->narrow = fits_narrow(p, &all, (Interval *)at);
}

void predicate_worker(PredWorker *w, const Predicate *p, void *memory) {
    *w = (PredWorker){.p = p};
    if (!p->prog) return;
    w->range = memory;
    w->lane = (char *)memory + round_bytes((size_t)p->prog->ninstr * sizeof(Interval));
}

// ---- blocks -----------------------------------------------------------------------------------------------------------------
void predicate_queries(PredWorker *w, int64_t b, int64_t h, int64_t q0, int64_t q1) {
    const Predicate *p = w->p;
    w->b = b, w->h = h, w->q0 = q0, w->q1 = q1;
    if (!p->prog) return;
    for (int s = 0; s < p->nvec; s++) {
        const Operand *o = &p->vec[s];
        w->vec_row[s] = (local_index(o, 0, b) * o->dim[1] + local_index(o, 1, h)) * o->dim[2];
        if (o->global[2] == 1)
            w->qrange[s] = vec_range(o, w->vec_row[s], 1);
        else if (p->over_q[s]) {
            w->qrange[s] = interval_empty();
            for (int64_t q = q0; q < q1; q++) interval_join(&w->qrange[s], vec_range(o, w->vec_row[s] + local_index(o, 2, q), 1));
        }
    }
}

// Verdict on keys [k0, k1) whose vector ranges are krange[].
static BlockVerdict judge(PredWorker *w, int64_t k0, int64_t k1, const Interval *krange) {
    const Predicate *p = w->p;
    RangeAt at = {interval_point((double)w->b),
                  interval_point((double)w->h),
                  {(double)w->q0, (double)(w->q1 - 1), false},
                  {(double)k0, (double)(k1 - 1), false},
                  w->qrange,
                  krange};
    eval_ranges(p, &at, w->range);
    BlockVerdict v = {PRED_ALL, false};
    if (p->visible >= 0) {
        Interval r = w->range[p->visible];
        v.visible = r.lo > 0 ? PRED_ALL : r.hi > 0 ? PRED_MIXED : PRED_NONE;
    }
    if (p->bias >= 0) {
        Interval r = w->range[p->bias];
        v.bias = !interval_is_point(r, 0);
        if (r.hi == -INFINITY && !r.nan) v.visible = PRED_NONE;  // -inf is added to every score
    }
    return v;
}

static BlockVerdict judge_node(PredWorker *w, int level, int64_t i) {
    const Predicate *p = w->p;
    Interval krange[PRED_MAX_VEC];
    for (int s = 0; s < p->nvec; s++) {
        const Operand *o = &p->vec[s];
        krange[s] =
            p->tree[s] ? p->tree[s][w->vec_row[s] / o->dim[2] * p->tree_len + tree_index(p->nblock, level, i)] : w->qrange[s];
    }
    int64_t k0 = (i << level) * p->block;
    return judge(w, k0, min_i64(p->nkey, k0 + (p->block << level)), krange);
}

int64_t predicate_next(PredWorker *w, int64_t from, BlockVerdict *v) {
    const Predicate *p = w->p;
    *v = (BlockVerdict){PRED_ALL, false};
    if (!p->prog || (p->visible < 0 && p->bias < 0)) return min_i64(from, p->nblock);
    // Runs of twice the length after each one ruled out, of half after each one that is not.
    for (int level = 0; from < p->nblock;) {
        while (level > 0 && (from & ((INT64_C(1) << level) - 1)) != 0) level--;
        *v = judge_node(w, level, from >> level);
        if (v->visible == PRED_NONE) {
            from += INT64_C(1) << level;
            if ((INT64_C(1) << level) < p->nblock) level++;
        } else if (level > 0) {
            level--;
        } else {
            return from;
        }
    }
    return p->nblock;
}

BlockVerdict predicate_keys(PredWorker *w, int64_t k0, int64_t nk) {
    const Predicate *p = w->p;
    if (!p->prog || (p->visible < 0 && p->bias < 0)) return (BlockVerdict){PRED_ALL, false};
    Interval krange[PRED_MAX_VEC];
    for (int s = 0; s < p->nvec; s++) krange[s] = p->tree[s] ? vec_range(&p->vec[s], w->vec_row[s] + k0, nk) : w->qrange[s];
    return judge(w, k0, k0 + nk, krange);
}

void predicate_trim(PredWorker *w, int64_t *k0, int64_t *nk) {
    enum { STEP = 48 };  // whole register tiles
    while (*nk > STEP && predicate_keys(w, *k0, STEP).visible == PRED_NONE) *k0 += STEP, *nk -= STEP;
    while (*nk > STEP) {
        int64_t tail = (*nk - 1) % STEP + 1;
        if (predicate_keys(w, *k0 + *nk - tail, tail).visible != PRED_NONE) break;
        *nk -= tail;
    }
}

// ---- elements ---------------------------------------------------------------------------------------------------------------
static bool wanted(const PredWorker *w, const PredInstr *pi) {
    return (w->need_visible && pi->for_visible) || (w->need_bias && pi->for_bias);
}

static void *lane_of(const PredWorker *w, int i) { return w->lane + (size_t)i * lane_stride(w->p->block); }

// Instruction i for query q over the current keys; one lane is computed and copied where the keys do not matter.
static void eval_lane(PredWorker *w, int i, int64_t q) {
    const Predicate *p = w->p;
    const Instr *in = &p->prog->instr[i];
    const LaneTable *t = lanes_of(p);
    bool on_k = p->instr[i].on_k;
    int64_t n = on_k ? w->nk : 1;
    void *z = lane_of(w, i);
    switch (in->code) {
    case PROG_CONST: t->fill(in->dtype, w->nk, z, in->imm, (int64_t)in->imm); return;
    case PROG_INDEX_B: t->fill(DT_I64, w->nk, z, 0, w->b); return;
    case PROG_INDEX_H: t->fill(DT_I64, w->nk, z, 0, w->h); return;
    case PROG_INDEX_Q: t->fill(DT_I64, w->nk, z, 0, q); return;
    case PROG_INDEX_K: t->iota(w->k0, n, z); return;
    case PROG_VEC_K: t->load(&p->vec[in->a], w->vec_row[in->a] + (on_k ? w->k0 : 0), n, z); break;
    case PROG_VEC_Q:
        t->load(&p->vec[in->a], w->vec_row[in->a] + (p->instr[i].on_q ? local_index(&p->vec[in->a], 2, q) : 0), 1, z);
        break;
    default: {
        int arity = program_op_arity(in->code - PROG_OP);
        t->op(in, p->instr[i].from, n, z, lane_of(w, in->a), arity > 1 ? lane_of(w, in->b) : NULL,
              arity > 2 ? lane_of(w, in->c) : NULL);
    }
    }
    if (!on_k) t->spread(in->dtype, w->nk, z);
}

void predicate_block(PredWorker *w, int64_t k0, int64_t nk, BlockVerdict v) {
    const Predicate *p = w->p;
    w->k0 = k0, w->nk = nk;
    w->need_visible = p->prog && p->visible >= 0 && v.visible == PRED_MIXED;
    w->need_bias = p->prog && p->bias >= 0 && v.bias;
    if (!w->need_visible && !w->need_bias) return;
    for (int i = 0; i < p->prog->ninstr; i++)
        if (!p->instr[i].on_q && wanted(w, &p->instr[i])) eval_lane(w, i, w->q0);
}

void predicate_row(PredWorker *w, int64_t q, const uint8_t **visible, const void **bias) {
    const Predicate *p = w->p;
    *visible = NULL, *bias = NULL;
    if (!w->need_visible && !w->need_bias) return;
    for (int i = 0; i < p->prog->ninstr; i++)
        if (p->instr[i].on_q && wanted(w, &p->instr[i])) eval_lane(w, i, q);
    if (w->need_visible) *visible = lane_of(w, p->visible);
    if (w->need_bias) *bias = lane_of(w, p->bias);
}
