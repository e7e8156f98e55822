// Reference: fused nodes of both forms. Row by row, instruction by instruction along the row, so that a reduction finds its
// operand done.
#include <math.h>
#include <stdlib.h>
#include "exec/reference.h"
#include "ir/views.h"

typedef struct RefFused {
    const RefNode *r;
    const Program *p;
    Shape space, outer, row;  // outer: the dims before the row; row: the rest
    View *view;               // [nin] resolved
    double *reg;              // [ninstr][points of the row]
    int64_t npoint, at;       // of the row; the row at hand, counted
} RefFused;

static double read_input(const RefFused *f, int slot, const int64_t *index) {
    const View *v = &f->view[slot];
    const Shape *s = ref_in_shape(f->r, slot);
    int64_t at[MAX_DIMS] = {0};
    for (int k = 0; k < v->nwin; k++)
        if (index[v->win[k].dim] < v->win[k].lo || index[v->win[k].dim] >= v->win[k].hi) return 0;
    for (int k = 0; k < v->ndim; k++) at[k] = v->d[k].start + (v->d[k].dim < 0 ? 0 : v->d[k].step * index[v->d[k].dim]);
    return f->r->in[slot][ref_offset(s, at)];
}

static double reduce(const double *x, int64_t n, bool max) {
    double t = max ? -INFINITY : 0;
    for (int64_t i = 0; i < n; i++) t = !max ? t + x[i] : isnan(x[i]) || x[i] > t ? x[i] : t;
    return t;
}

// Instruction i at every point of the row; index[] holds the position of the row in the dims before it.
static Status run_instr(RefFused *f, int i, int64_t *index, Diag *d) {
    const Instr *x = &f->p->instr[i];
    int64_t n = f->npoint;
    double *to = f->reg + i * n, *a = f->reg + (x->code == PROG_INPUT || x->code == PROG_INDEX || x->a < 0 ? 0 : x->a) * n;
    double whole = x->code == PROG_ROW_SUM || x->code == PROG_ROW_MAX ? reduce(a, n, x->code == PROG_ROW_MAX) : x->imm;
    int64_t *in_row = index + f->outer.ndim, e = 0;
    for (int k = 0; k < f->row.ndim; k++) in_row[k] = 0;
    do {
        switch (x->code) {
        case PROG_CONST:
        case PROG_ROW_SUM:
        case PROG_ROW_MAX: to[e] = whole; break;
        case PROG_INPUT: to[e] = read_input(f, x->a, index); break;
        case PROG_INDEX: to[e] = (double)index[x->a]; break;
        case PROG_COL_SUM: to[e] = a[e]; break;  // added up where the outputs are written
        default: {
            double b = x->b >= 0 ? f->reg[x->b * n + e] : 0, c = x->c >= 0 ? f->reg[x->c * n + e] : 0;
            TRY(ref_scalar((OpKind)(x->code - PROG_OP), f->p->instr[x->a].dtype, x->dtype, a[e], b, c, &to[e], d));
        }
        }
        e++;
    } while (ref_next(&f->row, in_row));
    return ST_OK;
}

static void write_outputs(RefFused *f) {
    int64_t n = f->npoint;
    for (int j = 0; j < f->p->nout; j++) {
        int32_t from = f->p->out[j];
        const double *x = f->reg + from * n;
        double *out = f->r->out[j];
        if (f->p->instr[from].code == PROG_COL_SUM) {
            for (int64_t e = 0; e < n; e++) out[e] = (f->at == 0 ? 0 : out[e]) + x[e];
        } else {  // a row-constant result has one element per row
            int64_t kept = shape_numel(ref_out_shape(f->r, j)) / shape_numel(&f->outer);
            for (int64_t e = 0; e < kept; e++) out[f->at * kept + e] = x[e];
        }
    }
    f->at++;
}

static Status run_rows(RefFused *f, Diag *d) {
    int64_t index[MAX_DIMS] = {0};
    do {
        for (int i = 0; i < f->p->ninstr; i++) TRY(run_instr(f, i, index, d));
        write_outputs(f);
    } while (ref_next(&f->outer, index));
    return ST_OK;
}

// Nothing before the row, and so no row: column sums of nothing are 0.
static void write_empty(const RefFused *f) {
    for (int j = 0; j < f->p->nout; j++)
        for (int64_t e = 0; e < shape_numel(ref_out_shape(f->r, j)); e++) f->r->out[j][e] = 0;
}

static Status ref_fused(const RefNode *r, Diag *d) {
    RefFused f = {.r = r, .p = node_prog(r->n, ATTR_PROG)};
    int row = (int)node_int_or(r->n, ATTR_ROW, 0);
    const int64_t *shape;
    int ndim = node_ints(r->n, ATTR_SHAPE, &shape);
    f.space = node_attr(r->n, ATTR_SHAPE) ? shape_of(ndim, shape) : *ref_out_shape(r, 0);
    for (int k = 0; k < f.space.ndim; k++) {
        Shape *part = k < f.space.ndim - row ? &f.outer : &f.row;
        part->dim[part->ndim++] = f.space.dim[k];
    }
    f.npoint = shape_numel(&f.row);
    f.view = calloc((size_t)r->n->nin + 1, sizeof *f.view);
    f.reg = calloc((size_t)(f.p->ninstr * f.npoint) + 1, sizeof *f.reg);
    Status st = f.view && f.reg ? views_decode(r->n, f.view, d) : diag_error(d, ST_MEMORY, "out of memory");
    for (int i = 0; st == ST_OK && i < r->n->nin; i++) f.view[i] = view_resolve(&f.view[i], ref_in_shape(r, i), &f.space);
    if (st == ST_OK && shape_numel(&f.space) == 0) write_empty(&f);
    else if (st == ST_OK) st = run_rows(&f, d);
    free(f.view);
    free(f.reg);
    return st;
}

RefFn ref_fused_fn(OpKind op) { return op == OP_FUSED ? ref_fused : NULL; }
