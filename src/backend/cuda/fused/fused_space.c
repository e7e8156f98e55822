// See fused_space.h.
#include "backend/cuda/fused/fused_space.h"
#include "backend/cuda/fused/codegen_expr.h"

// ---- the local space ----------------------------------------------------------------------------------------------------

static Shape global_shape(const Operand *x) { return shape_of(x->ndim, x->global); }

// Dims that are spread over ranks are shorter here; which ones they are the operands tell.
static void local_dims(FusedSpace *s, const View *view, const Operand *in, const Operand *out) {
    for (int i = 0; i < s->nin; i++)
        for (int k = 0; k < in[i].ndim; k++)
            if (in[i].dim[k] != in[i].global[k] && view[i].d[k].dim >= 0) s->dim[view[i].d[k].dim] = in[i].dim[k];
    for (int j = 0; j < s->nout; j++)
        for (int k = 0; k < out[j].ndim; k++)
            if (s->out_kind[j] != OUT_COL && out[j].dim[k] != out[j].global[k]) s->dim[k] = out[j].dim[k];
}

static void input_access(const FusedSpace *s, const View *v, const Operand *x, Access *a) {
    *a = (Access){.dtype = x->dtype};
    int64_t stride = 1;
    for (int k = x->ndim - 1; k >= 0; k--) {
        a->base += v->d[k].start * stride;
        if (v->d[k].dim >= 0) a->stride[v->d[k].dim] += v->d[k].step * stride;
        stride *= x->dim[k];
    }
    for (int k = 0; k < v->nwin; k++) {
        ViewWindow w = v->win[k];
        w.lo = max_i64(w.lo, 0), w.hi = min_i64(w.hi, s->dim[w.dim]);
        if (w.lo > 0 || w.hi < s->dim[w.dim]) a->win[a->nwin++] = w;
    }
    int64_t want = 1;
    a->identity = a->base == 0 && a->nwin == 0;
    for (int k = s->ndim - 1; k >= 0; k--) {
        a->identity = a->identity && (s->dim[k] == 1 || a->stride[k] == want);
        want *= s->dim[k];
    }
}

static void output_access(const FusedSpace *s, FusedOut kind, DType t, Access *a) {
    *a = (Access){.dtype = t};
    int64_t stride = 1;
    for (int k = s->ndim - 1; k >= 0; k--) {
        bool in_row = k >= s->ndim - s->row, absent = kind == OUT_ROW ? in_row : kind == OUT_COL ? !in_row : false;
        if (absent) continue;
        a->stride[k] = stride;
        stride *= s->dim[k];
    }
}

// ---- merging dims -------------------------------------------------------------------------------------------------------

static bool has_window(const Access *a, int dim) {
    for (int k = 0; k < a->nwin; k++)
        if (a->win[k].dim == dim) return true;
    return false;
}

static void drop_dim(FusedSpace *s, Access *a, int dim) {
    for (int k = dim; k + 1 < s->ndim; k++) a->stride[k] = a->stride[k + 1];
    a->stride[s->ndim - 1] = 0;
    for (int k = 0; k < a->nwin; k++)
        if (a->win[k].dim > dim) a->win[k].dim--;
}

static void remove_dim(FusedSpace *s, int dim) {
    if (dim >= s->ndim - s->row && s->row) s->row--;
    for (int i = 0; i < s->nin; i++) drop_dim(s, &s->in[i], dim);
    for (int j = 0; j < s->nout; j++) drop_dim(s, &s->out[j], dim);
    for (int k = dim; k + 1 < s->ndim; k++) s->dim[k] = s->dim[k + 1];
    for (int k = 0; k < MAX_DIMS; k++) {
        if (s->index_dim[k] == dim) s->index_dim[k] = -1;
        else if (s->index_dim[k] > dim) s->index_dim[k]--;
    }
    s->ndim--;
}

// Position along it is asked for, by `index` or a window.
static bool is_special(const FusedSpace *s, const bool *indexed, int dim) {
    for (int k = 0; k < MAX_DIMS; k++)
        if (indexed[k] && s->index_dim[k] == dim) return true;
    for (int i = 0; i < s->nin; i++)
        if (has_window(&s->in[i], dim)) return true;
    return false;
}

static bool merges(const FusedSpace *s, const Access *a, int dim) {
    return a->stride[dim] == a->stride[dim + 1] * s->dim[dim + 1];
}

static bool can_merge(const FusedSpace *s, const bool *indexed, int dim) {
    if (dim + 1 == s->ndim - s->row && s->row) return false;
    if (is_special(s, indexed, dim) || is_special(s, indexed, dim + 1)) return false;
    for (int i = 0; i < s->nin; i++)
        if (!merges(s, &s->in[i], dim)) return false;
    for (int j = 0; j < s->nout; j++)
        if (!merges(s, &s->out[j], dim)) return false;
    return true;
}

static void merge_dims(FusedSpace *s) {
    bool indexed[MAX_DIMS] = {false};
    for (int i = 0; i < s->p->ninstr; i++)
        if (s->p->instr[i].code == PROG_INDEX) indexed[s->p->instr[i].a] = true;
    bool special;
    for (int k = s->ndim - 1; k >= 0; k--) {
        bool last_of_row = s->row == 1 && k == s->ndim - 1, last = s->ndim == 1 || last_of_row;
        bool last_outer = s->row && k == s->ndim - s->row - 1 && k == 0;
        special = s->dim[k] != 1;  // a window over a dim of one element may still hide it
        for (int i = 0; i < s->nin; i++) special = special || has_window(&s->in[i], k);
        if (!special && !last && !last_outer) remove_dim(s, k);
    }
    for (int k = s->ndim - 2; k >= 0; k--) {
        if (!can_merge(s, indexed, k)) continue;
        int64_t n = s->dim[k] * s->dim[k + 1];  // the inner strides stay
        remove_dim(s, k);
        s->dim[k] = n;
    }
}

static void insert_dim(FusedSpace *s, int at) {
    for (int k = s->ndim; k > at; k--) s->dim[k] = s->dim[k - 1];
    s->dim[at] = 1;
    for (int i = 0; i < s->nin + s->nout; i++) {
        Access *a = i < s->nin ? &s->in[i] : &s->out[i - s->nin];
        for (int k = s->ndim; k > at; k--) a->stride[k] = a->stride[k - 1];
        a->stride[at] = 0;
        for (int k = 0; k < a->nwin; k++)
            if (a->win[k].dim >= at) a->win[k].dim++;
    }
    for (int k = 0; k < MAX_DIMS; k++)
        if (s->index_dim[k] >= at) s->index_dim[k]++;
    s->ndim++;
}

// ---- the program --------------------------------------------------------------------------------------------------------

static void find_levels(FusedSpace *s) {
    const Program *p = s->p;
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        s->level[i] = 0;
        if (x->code < PROG_OP && !program_is_reduction(x->code)) continue;
        const int32_t use[3] = {x->a, x->b, x->c};
        int n = x->code < PROG_OP ? 1 : program_op_arity(x->code - PROG_OP);
        for (int k = 0; k < n; k++) s->level[i] = (int)max_i64(s->level[i], s->level[use[k]]);
        if (x->code == PROG_ROW_SUM || x->code == PROG_ROW_MAX) s->level[i]++;
        s->nlevel = (int)max_i64(s->nlevel, s->level[i]);
    }
}

// Casts to bf16 whose results are only stored become casts to f32: storing rounds.
static void drop_stored_casts(Arena *a, FusedSpace *s) {
    const Program *p = s->p;
    bool *only_stored = ARENA_ARRAY(a, bool, p->ninstr + 1);
    for (int i = 0; i < p->ninstr; i++) only_stored[i] = p->instr[i].code == PROG_OP + OP_CAST && p->instr[i].dtype == DT_BF16;
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        if (x->code < PROG_OP && !program_is_reduction(x->code)) continue;
        const int32_t use[3] = {x->a, x->b, x->c};
        int n = x->code < PROG_OP ? 1 : program_op_arity(x->code - PROG_OP);
        for (int k = 0; k < n; k++) only_stored[use[k]] = false;
    }
    Instr *instr = arena_copy(a, p->instr, sizeof *instr * (size_t)p->ninstr);
    for (int i = 0; i < p->ninstr; i++)
        if (only_stored[i]) instr[i].dtype = DT_F32;
    Program *q = ARENA_NEW(a, Program);
    *q = (Program){.ninstr = p->ninstr, .instr = instr, .nout = p->nout, .out = p->out};
    s->p = q;
    s->fast = true;
    for (int j = 0; j < s->nout; j++) s->fast = s->fast && s->out[j].dtype == DT_BF16;
}

static Status check_types(const FusedSpace *s, Diag *d) {
    for (int i = 0; i < s->nin + s->nout; i++) {
        DType t = i < s->nin ? s->in[i].dtype : s->out[i - s->nin].dtype;
        if (!expr_memory_type(t))
            return diag_error(d, ST_UNSUPPORTED, "%s: operands of %s are not for the GPU: use float32 or bfloat16", s->label,
                              dtype_name(t));
    }
    return ST_OK;
}

// A pointwise node is a program of one instruction.
static const Program *program_of(Arena *a, const Node *n, const Operand *in, const Operand *out) {
    if (n->op == OP_FUSED) return node_prog(n, ATTR_PROG);
    Instr *x = ARENA_ARRAY(a, Instr, n->nin + 1);
    int32_t *result = ARENA_NEW(a, int32_t);
    for (int i = 0; i < n->nin; i++) x[i] = (Instr){.code = PROG_INPUT, .dtype = in[i].dtype, .a = i, .b = -1, .c = -1};
    x[n->nin] = (Instr){.code = PROG_OP + n->op, .dtype = out[0].dtype, .a = 0, .b = -1, .c = -1};
    if (n->nin > 1) x[n->nin].b = 1;
    if (n->nin > 2) x[n->nin].c = 2;
    *result = n->nin;
    Program *p = ARENA_NEW(a, Program);
    *p = (Program){.ninstr = n->nin + 1, .instr = x, .nout = 1, .out = result};
    return p;
}

static Status start_space(Arena *a, const Node *n, const Operand *in, const Operand *out, FusedSpace *s, View **view, Diag *d) {
    *s = (FusedSpace){.p = program_of(a, n, in, out), .label = op_name(n->op), .nin = n->nin, .nout = n->nout};
    const int64_t *shape = NULL;
    int ndim = n->op == OP_FUSED ? node_ints(n, ATTR_SHAPE, &shape) : 0;
    Shape space = shape && ndim ? shape_of(ndim, shape) : global_shape(&out[0]);
    s->row = n->op == OP_FUSED ? (int)node_int_or(n, ATTR_ROW, 0) : 0;
    s->ndim = space.ndim;
    memcpy(s->dim, space.dim, sizeof s->dim);
    for (int k = 0; k < MAX_DIMS; k++) s->index_dim[k] = k < s->ndim ? k : -1;
    *view = ARENA_ARRAY(a, View, s->nin + 1);
    if (n->op == OP_FUSED) TRY(views_decode(n, *view, d));
    for (int i = 0; i < s->nin; i++) {
        View v = n->op == OP_FUSED ? (*view)[i] : (View){.broadcast = true};
        Shape x = global_shape(&in[i]);
        (*view)[i] = view_resolve(&v, &x, &space);
    }
    s->in = ARENA_ARRAY(a, Access, s->nin + 1), s->out = ARENA_ARRAY(a, Access, s->nout + 1);
    s->out_kind = ARENA_ARRAY(a, FusedOut, s->nout + 1);
    s->row_const = ARENA_ARRAY(a, bool, s->p->ninstr + 1);
    s->level = ARENA_ARRAY(a, int, s->p->ninstr + 1);
    program_row_constant(s->p, s->ndim, s->row, *view, s->row_const);
    for (int j = 0; j < s->nout; j++) {
        int i = s->p->out[j];
        s->out_kind[j] = s->p->instr[i].code == PROG_COL_SUM ? OUT_COL : s->row_const[i] ? OUT_ROW : OUT_WHOLE;
    }
    return ST_OK;
}

Status fused_space(Arena *a, const Node *n, const Operand *in, const Operand *out, FusedSpace *s, Diag *d) {
    View *view;
    TRY(start_space(a, n, in, out, s, &view, d));
    local_dims(s, view, in, out);
    for (int k = 0; k < s->ndim; k++) s->empty = s->empty || s->dim[k] == 0;
    for (int i = 0; i < s->nin; i++) input_access(s, &view[i], &in[i], &s->in[i]);
    for (int j = 0; j < s->nout; j++) output_access(s, s->out_kind[j], out[j].dtype, &s->out[j]);
    TRY(check_types(s, d));
    find_levels(s);
    drop_stored_casts(a, s);
    bool by_rows = s->nlevel > 0;
    for (int j = 0; j < s->nout; j++) by_rows = by_rows || s->out_kind[j] != OUT_WHOLE;
    if (!by_rows) s->row = 0;  // a row that nobody asks about
    if (s->row && s->row == s->ndim && s->ndim < MAX_DIMS) insert_dim(s, 0);
    if (s->ndim == 0) insert_dim(s, 0);
    merge_dims(s);
    if (s->row && s->row == s->ndim) insert_dim(s, 0);  // eight dims, all of the row, and some of them merged
    if (s->row && s->row == s->ndim)
        return diag_error(d, ST_UNSUPPORTED, "fused: a row of %d dims, none of which merge", MAX_DIMS);
    return ST_OK;
}

// ---- questions ----------------------------------------------------------------------------------------------------------

int64_t fused_nrows(const FusedSpace *s) {
    int64_t n = 1;
    for (int k = 0; k < fused_nouter(s); k++) n *= s->dim[k];
    return n;
}

int64_t fused_ncols(const FusedSpace *s) {
    int64_t n = 1;
    for (int k = fused_nouter(s); k < s->ndim; k++) n *= s->dim[k];
    return n;
}

bool access_varies(const FusedSpace *s, const Access *x) {
    for (int k = fused_nouter(s); k < s->ndim; k++)
        if (x->stride[k] != 0 || has_window(x, k)) return true;
    return false;
}

bool access_in_vectors(const FusedSpace *s, const Access *x, int v) {
    int last = s->ndim - 1;
    if (v == 1 || x->stride[last] != 1 || x->base % v != 0) return false;
    for (int k = 0; k < last; k++)
        if (x->stride[k] % v != 0) return false;
    for (int k = 0; k < x->nwin; k++)
        if (x->win[k].dim == last && (x->win[k].lo % v != 0 || x->win[k].hi % v != 0)) return false;
    return true;
}
