// Putting q, k, v into attention's order. A value's dims are addressed by expressions such as b, h/G, h%G, b*H + h, q; each is
// a number in mixed radix whose digits are parts of b, h, the position and the channel. If the digits of each index are all
// there, the value is [B, H/G, L, C] up to a split, a permutation and a merge of dims; G > 1 means that G query heads share a KV
// head.
#include "pass/mask.h"

typedef struct Digit {
    char kind;               // 'b', 'h', 'l' (position), 'c' (channel)
    int64_t stride, extent;  // value = floor(index / stride) % extent
} Digit;
enum { MAX_DIGITS = MAX_DIMS };
typedef struct Arrangement {
    int ndigit;
    Digit digit[MAX_DIGITS];                    // in the order of the split dims
    int64_t start[MAX_DIMS], length[MAX_DIMS];  // slice of each dim before the split
} Arrangement;

static bool leaf_digit(const MaskInterp *in, int32_t x, int seq, int chan, Digit *d) {
    int code = in->m->instr.data[x].code;
    int64_t e;
    if (code == PROG_INDEX_B) d->kind = 'b', e = in->m->extent[0];
    else if (code == PROG_INDEX_H) d->kind = 'h', e = in->m->extent[1];
    else if (code == seq) d->kind = 'l', e = in->m->extent[seq - PROG_INDEX_B];
    else if (code == chan) d->kind = 'c', e = in->m->extent[4 + chan - MP_INDEX_D];
    else return false;
    d->stride = 1;
    d->extent = e;
    return true;
}

// A leaf, leaf / c, leaf % c and their compositions.
static bool digit_of(const MaskInterp *in, int32_t x, int seq, int chan, Digit *d) {
    const Instr *i = &in->m->instr.data[x];
    double v;
    if (leaf_digit(in, x, seq, chan, d)) return true;
    if (i->code < PROG_OP || i->b < 0 || !mask_number(in->m, i->b, &v) || v < 1 || !digit_of(in, i->a, seq, chan, d))
        return false;
    int64_t c = (int64_t)v;
    if (d->extent % c) return false;
    if (i->code == PROG_OP + OP_FLOORDIV) {
        d->stride *= c;
        d->extent /= c;
        return true;
    }
    d->extent = c;
    return i->code == PROG_OP + OP_MOD;
}

// One dim of extent n: a constant, or digits with falling weights that fill it (or a leading part of it).
static bool split_dim(const MaskInterp *in, int dim, int64_t n, int x, int seq, int chan, Arrangement *a) {
    MaskLinear l = mask_linear_of(in->m, x);
    a->start[dim] = l.constant;
    a->length[dim] = 1;
    if (l.n < 0 || l.constant < 0) return false;
    int64_t done[MP_MAX_TERMS] = {0}, weight = 1;
    Digit found[MP_MAX_TERMS];
    for (int step = 0; step < l.n; step++) {  // from the fastest digit up
        int at = -1;
        for (int t = 0; t < l.n; t++)
            if (at < 0 && !done[t] && l.term[t].coef == weight && digit_of(in, l.term[t].atom, seq, chan, &found[step])) at = t;
        if (at < 0) return false;
        done[at] = 1;
        weight *= found[step].extent;
    }
    if (a->ndigit + l.n > MAX_DIGITS) return false;
    for (int step = l.n - 1; step >= 0; step--) a->digit[a->ndigit++] = found[step];
    a->length[dim] = weight;
    return a->start[dim] + weight <= n;
}

// Digits of `kind` from the slowest to the fastest, in order[]; their product. *last_stride is the fastest one's stride.
static bool collect(const Arrangement *a, char kind, int64_t extent, int *order, int *norder, int64_t *product,
                    int64_t *last_stride) {
    bool used[MAX_DIGITS] = {0};
    int64_t above = extent;  // stride * extent that the next digit must have
    *product = 1;
    *last_stride = extent;
    for (;;) {
        int at = -1;
        for (int i = 0; i < a->ndigit; i++)
            if (a->digit[i].kind == kind && !used[i] && a->digit[i].stride * a->digit[i].extent == above) at = i;
        if (at < 0) break;
        used[at] = true;
        order[(*norder)++] = at;
        above = a->digit[at].stride;
        *product *= a->digit[at].extent;
        *last_stride = above;
    }
    for (int i = 0; i < a->ndigit; i++)
        if (a->digit[i].kind == kind && !used[i]) return false;
    return true;
}

static ValueId build_arranged(Rewrite *r, ValueId x, const Arrangement *a, const int *order, Shape out) {
    Builder *b = &r->b;
    int ndim = build_shape(b, x).ndim;
    for (int d = 0; d < ndim; d++) x = build_slice(b, x, d, a->start[d], 1, a->length[d]);
    Shape split = {.ndim = a->ndigit};
    for (int i = 0; i < a->ndigit; i++) split.dim[i] = a->digit[i].extent;
    x = build_reshape(b, x, split);
    if (x != NO_VALUE) x = build_permute(b, x, order);
    return build_reshape(b, x, out);
}

bool mask_arrange(Rewrite *r, MaskInterp *in, ValueId v, const int *idx, int seq, int chan, ValueId *out, int64_t *group) {
    const Shape *s = graph_shape(in->g, v);
    const int64_t *e = in->m->extent;
    Arrangement a = {0};
    int order[MAX_DIGITS], n = 0;
    int64_t nb, nh, nl, nc, stride_b, stride_l, stride_c, len = e[seq - PROG_INDEX_B], chans = e[4 + chan - MP_INDEX_D];
    for (int d = 0; d < s->ndim; d++)
        if (idx[d] < 0 || !split_dim(in, d, s->dim[d], idx[d], seq, chan, &a)) return false;
    if (!collect(&a, 'b', e[0], order, &n, &nb, &stride_b) || !collect(&a, 'h', e[1], order, &n, &nh, group) ||
        !collect(&a, 'l', len, order, &n, &nl, &stride_l) || !collect(&a, 'c', chans, order, &n, &nc, &stride_c))
        return false;
    if ((nb != e[0] && nb != 1) || nl != len || nc != chans || n != a.ndigit) return false;
    if (!r) return true;
    ValueId x = build_arranged(r, r->map[v], &a, order, SHAPE(nb, nh, nl, nc));
    *out = build_broadcast(&r->b, x, SHAPE(e[0], nh, nl, nc));
    return true;
}

ValueId mask_repeat_heads(Builder *b, ValueId x, int64_t times) {
    if (times == 1 || b->status != ST_OK) return x;
    Shape s = build_shape(b, x);
    x = build_reshape(b, x, SHAPE(s.dim[0], s.dim[1], 1, s.dim[2], s.dim[3]));
    x = build_broadcast(b, x, SHAPE(s.dim[0], s.dim[1], times, s.dim[2], s.dim[3]));
    return build_reshape(b, x, SHAPE(s.dim[0], s.dim[1] * times, s.dim[2], s.dim[3]));
}

bool mask_settle(MaskInterp *in, ValueId *v, int *idx, int seq, int chan, bool unrepeat, int64_t *group) {
    ValueId at = *v, below;
    int cur[MAX_DIMS], next[MAX_DIMS];
    int64_t here = 1;
    bool found = false;
    memcpy(cur, idx, sizeof cur);
    for (int depth = 0; depth < 64; depth++) {
        if (mask_arrange(NULL, in, at, cur, seq, chan, NULL, &here) && (!found || here > 1)) {
            *v = at;
            *group = here;
            memcpy(idx, cur, sizeof cur);
            found = true;
            if (!unrepeat || here > 1) return true;
        }
        if (!mask_through_view(in, at, cur, &below, next)) return found;
        at = below;
        memcpy(cur, next, sizeof cur);
    }
    return found;
}
