// dot: every matrix product. Operands are dense and their dims come in groups (ops.def), so a group merges into one extent and
// the whole op is one batch of row-major GEMMs without a copy. Sharding needs no care: batch and free dims are just shorter,
// and a contraction over a sharded dim has both operands sharded alike and gives this rank's term.
#include "backend/cpu/blas.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/tasks.h"
#include "base/containers.h"

typedef struct DotSizes {
    int64_t batch, m, n, k;
    bool trans_a, trans_b;
} DotSizes;

static int64_t product(const Operand *o, int begin, int end) {
    int64_t p = 1;
    for (int i = begin; i < end; i++) p *= o->dim[i];
    return p;
}

static DotSizes dot_sizes(const Node *node, const Operand *a, const Operand *b) {
    DotSizes s = {.trans_a = node_int_or(node, ATTR_TRANS_A, 0) != 0, .trans_b = node_int_or(node, ATTR_TRANS_B, 0) != 0};
    int nb = (int)node_int_or(node, ATTR_NBATCH, 0), nc = (int)node_int_or(node, ATTR_NCONTRACT, 1);
    int free_a = a->ndim - nb - nc, free_b = b->ndim - nb - nc;
    s.batch = product(a, 0, nb);
    s.m = s.trans_a ? product(a, nb + nc, a->ndim) : product(a, nb, nb + free_a);
    s.k = s.trans_a ? product(a, nb, nb + nc) : product(a, nb + free_a, a->ndim);
    s.n = s.trans_b ? product(b, nb, nb + free_b) : product(b, nb + nc, b->ndim);
    return s;
}

// How one batch entry's [m, n] is cut into tasks: panels of whole register tiles along the longer side, so that what is packed
// twice is the smaller operand. The contraction is never cut: a task owns its part of the result.
typedef struct DotCut {
    bool along_m;
    int64_t panel, npanel;
} DotCut;

enum { TILE = 16 };  // rows or columns of a register tile, rounded up: no panel is cut finer
enum { MIN_PANEL_FLOPS = 1 << 17 };  // below this a task costs more than it does

static DotCut dot_cut(const DotSizes *s, int nthreads) {
    DotCut c = {.along_m = s->m >= s->n};
    int64_t side = c.along_m ? s->m : s->n;
    // Whole batch entries suffice once each worker gets several; otherwise give every worker an equal share of each entry.
    int64_t want = s->batch >= 4 * (int64_t)nthreads ? 1 : nthreads;
    double flops = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    if (flops / (double)want < MIN_PANEL_FLOPS) want = max_i64(1, (int64_t)(flops / MIN_PANEL_FLOPS));
    c.panel = round_up(ceil_div(side, want), TILE);
    c.npanel = ceil_div(side, c.panel);
    return c;
}

typedef struct DotJob {
    DotSizes s;
    DotCut cut;
    const void *a, *b;
    const void *add;  // NULL, or as large as the result, or a bias
    int64_t nbias;    // elements of a bias, the result's last dim; 0: it is none
    void *c;
} DotJob;

#define REAL_BITS 32
#include "backend/cpu/dot_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/dot_impl.h"

size_t cpu_dot_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n, (void)in, (void)out, (void)nthreads;
    return 0;
}
