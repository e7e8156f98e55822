// Views: decoding, and what follows from them; see views.h.
#include "ir/views.h"

// ---- the list of ints -----------------------------------------------------------------------------------------------------

typedef struct Ints {
    const int64_t *at;
    int n;
} Ints;

static bool take(Ints *s, int64_t lo, int64_t hi, int64_t *out) {
    if (s->n == 0 || *s->at < lo || *s->at > hi) return false;
    *out = *s->at++;
    s->n--;
    return true;
}

static Status decode_one(Ints *s, int slot, int space_ndim, View *v, Diag *d) {
    int64_t ndim, dim, nwin;
    *v = (View){.broadcast = true};
    if (!take(s, -1, MAX_DIMS, &ndim)) return diag_error(d, ST_INPUT, "views: input %d starts with no number of dims", slot);
    if (ndim < 0) return ST_OK;
    *v = (View){.ndim = (int)ndim};
    for (int k = 0; k < v->ndim; k++) {
        ViewDim *x = &v->d[k];
        bool ok = take(s, -1, space_ndim - 1, &dim) && take(s, -INT64_MAX / 4, INT64_MAX / 4, &x->start);
        x->dim = ok ? (int)dim : -1;
        ok = ok && take(s, x->dim < 0 ? 0 : 1, x->dim < 0 ? INT64_MAX : INT32_MAX, &x->step);
        if (!ok) return diag_error(d, ST_INPUT, "views: dim %d of input %d is no triple of iteration dim, start, step", k, slot);
        if (x->dim < 0) x->step = 0;
    }
    if (!take(s, 0, MAX_VIEW_WINDOWS, &nwin)) return diag_error(d, ST_INPUT, "views: input %d has no number of windows", slot);
    v->nwin = (int)nwin;
    for (int k = 0; k < v->nwin; k++) {
        ViewWindow *w = &v->win[k];
        bool ok = take(s, 0, space_ndim - 1, &dim) && take(s, INT64_MIN, INT64_MAX, &w->lo);
        ok = ok && take(s, INT64_MIN, INT64_MAX, &w->hi);
        if (!ok) return diag_error(d, ST_INPUT, "views: window %d of input %d is no triple of iteration dim, lo, hi", k, slot);
        w->dim = (int)dim;
    }
    return ST_OK;
}

Status views_decode(const Node *n, View *out, Diag *d) {
    const int64_t *shape;
    int space_ndim = node_ints(n, ATTR_SHAPE, &shape);
    Ints s = {0};
    s.n = node_ints(n, ATTR_VIEWS, &s.at);
    bool present = node_attr(n, ATTR_VIEWS) != NULL;
    for (int i = 0; i < n->nin; i++) {
        out[i] = (View){.broadcast = true};
        if (present) TRY(decode_one(&s, i, space_ndim, &out[i], d));
    }
    return s.n == 0 ? ST_OK : diag_error(d, ST_INPUT, "views: %d ints more than the %d inputs have", s.n, n->nin);
}

void view_encode(const View *v, int64_t *list, int *n) {
    list[(*n)++] = v->broadcast ? -1 : v->ndim;
    if (v->broadcast) return;
    for (int k = 0; k < v->ndim; k++) {
        list[(*n)++] = v->d[k].dim;
        list[(*n)++] = v->d[k].start;
        list[(*n)++] = v->d[k].dim < 0 ? 0 : v->d[k].step;
    }
    list[(*n)++] = v->nwin;
    for (int k = 0; k < v->nwin; k++) {
        list[(*n)++] = v->win[k].dim;
        list[(*n)++] = v->win[k].lo;
        list[(*n)++] = v->win[k].hi;
    }
}

// ---- what a view means in an iteration space ------------------------------------------------------------------------------

View view_resolve(const View *v, const Shape *in, const Shape *space) {
    View r = {.ndim = in->ndim};
    int skip = space->ndim - in->ndim;
    for (int k = 0; k < in->ndim; k++) {
        ViewDim x = v->broadcast ? (ViewDim){.dim = k + skip, .step = 1} : v->d[k];
        if (v->broadcast && in->dim[k] == 1) x = (ViewDim){.dim = -1};
        if (x.dim >= 0 && space->dim[x.dim] == 1) x = (ViewDim){.dim = -1, .start = x.start};
        r.d[k] = x;
    }
    for (int k = 0; !v->broadcast && k < v->nwin; k++)
        if (v->win[k].lo > 0 || v->win[k].hi < space->dim[v->win[k].dim]) r.win[r.nwin++] = v->win[k];
    return r;
}

// The positions along iteration dim `dim` that the windows let through: [*lo, *hi).
static void positions(const View *v, const Shape *space, int dim, int64_t *lo, int64_t *hi) {
    *lo = 0;
    *hi = space->dim[dim];
    for (int k = 0; k < v->nwin; k++) {
        if (v->win[k].dim != dim) continue;
        *lo = max_i64(*lo, v->win[k].lo);
        *hi = min_i64(*hi, v->win[k].hi);
    }
}

bool view_inside(const View *v, const Shape *in, const Shape *space) {
    for (int d = 0; d < space->ndim; d++) {  // nothing is read at all
        int64_t lo, hi;
        positions(v, space, d, &lo, &hi);
        if (lo >= hi) return true;
    }
    for (int k = 0; k < v->ndim; k++) {
        const ViewDim *x = &v->d[k];
        int64_t lo = 0, hi = 1, first = x->start, last = x->start, reach;
        if (x->dim >= 0) {
            positions(v, space, x->dim, &lo, &hi);
            if (!mul_i64(hi - 1, x->step, &reach)) return false;
            first = x->start + lo * x->step;
            if (x->start > INT64_MAX - reach) return false;
            last = x->start + reach;
        }
        if (first < 0 || last >= in->dim[k]) return false;
    }
    return true;
}

bool view_is_flat(const View *v, const Shape *in, const Shape *space) {
    int at = 0;  // the next iteration dim of more than one element
    if (v->nwin) return false;
    for (int k = 0; k < v->ndim; k++) {
        while (at < space->ndim && space->dim[at] == 1) at++;
        if (v->d[k].dim < 0 && v->d[k].start == 0 && in->dim[k] == 1) continue;
        if (v->d[k].dim != at || v->d[k].start != 0 || v->d[k].step != 1 || in->dim[k] != space->dim[at]) return false;
        at++;
    }
    while (at < space->ndim && space->dim[at] == 1) at++;
    return at == space->ndim;
}

bool view_is_broadcast(const View *v, const Shape *in, const Shape *space) {
    int skip = space->ndim - in->ndim;
    if (v->nwin || skip < 0) return false;
    for (int k = 0; k < in->ndim; k++) {
        const ViewDim *x = &v->d[k];
        bool one = in->dim[k] == 1 && x->dim < 0 && x->start == 0;
        if (!one && (x->dim != k + skip || x->start != 0 || x->step != 1 || in->dim[k] != space->dim[k + skip])) return false;
    }
    return true;
}

// ---- rows -----------------------------------------------------------------------------------------------------------------

static bool input_row_constant(const View *v, int ndim, int row) {
    for (int d = ndim - row; d < ndim; d++)
        if (view_runs_along(v, d)) return false;
    return true;
}

void program_row_constant(const Program *p, int ndim, int row, const View *views, bool *out) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        out[i] = row > 0;
        if (row == 0) continue;
        switch (x->code) {
        case PROG_CONST:
        case PROG_ROW_SUM:
        case PROG_ROW_MAX: continue;
        case PROG_INPUT: out[i] = input_row_constant(&views[x->a], ndim, row); continue;
        case PROG_INDEX: out[i] = x->a < ndim - row; continue;
        default: break;
        }
        if (x->code < PROG_OP) {  // col_sum
            out[i] = false;
            continue;
        }
        const int32_t operand[3] = {x->a, x->b, x->c};
        for (int k = 0; k < program_op_arity(x->code - PROG_OP); k++) out[i] = out[i] && out[operand[k]];
    }
}
