// The program of a kernel: every value that is needed outside, computed from what is made outside, each value under the view
// under which it is wanted. See fuse_rows.c.
#include "ops/op.h"
#include "pass/fuse_rows.h"

// ---- instructions ---------------------------------------------------------------------------------------------------------

static bool same_instr(const Instr *x, const Instr *y) {
    return x->code == y->code && x->dtype == y->dtype && x->a == y->a && x->b == y->b && x->c == y->c &&
           !memcmp(&x->imm, &y->imm, sizeof x->imm);
}

int fuse_emit_instr(Emit *e, Instr x) {
    if (e->failed) return 0;
    if (x.code == PROG_OP + OP_CAST && x.dtype == DT_F32) {
        const Instr *y = &e->instr[x.a];
        bool there_and_back = y->code == PROG_OP + OP_CAST && y->dtype == DT_BF16 && e->moved[y->a];
        if (there_and_back) return y->a;  // bf16 that was chosen in f32, which is exact
    }
    for (int i = 0; i < e->ninstr; i++)
        if (same_instr(&e->instr[i], &x)) return i;
    if (e->ninstr == FUSE_INSTRS) {
        e->failed = true;
        return 0;
    }
    e->moved[e->ninstr] = false;
    e->instr[e->ninstr] = x;
    return e->ninstr++;
}

int fuse_emit_const(Emit *e, DType t, double value) {
    if (t != DT_BF16) return fuse_emit_instr(e, (Instr){PROG_CONST, t, -1, -1, -1, value});
    int x = fuse_emit_instr(e, (Instr){PROG_CONST, DT_F32, -1, -1, -1, value});
    return fuse_emit_instr(e, (Instr){PROG_OP + OP_CAST, DT_BF16, x, -1, -1, 0});
}

static int op(Emit *e, OpKind k, DType t, int a, int b, int c) { return fuse_emit_instr(e, (Instr){PROG_OP + k, t, a, b, c, 0}); }

static int fail(Emit *e) {
    e->failed = true;
    return 0;
}

// ---- inputs ---------------------------------------------------------------------------------------------------------------

bool fuse_made_inside(const Fuse *f, ValueId v) {
    NodeId def = graph_value(f->g, v)->def;
    if (f->inside[def] == f->stamp) return true;
    const Node *n = graph_node(f->g, def);
    for (int i = 0; i < n->nin && f->kind[def] == FUSE_MOVE; i++)
        if (fuse_made_inside(f, n->in[i])) return true;
    return false;
}

// The dim that the ranks divide is read as they divide it: at the same positions, and whole values not along it at all.
static bool reads_own_part(const Emit *e, ValueId v, const View *view) {
    const Placement *p = &graph_value(e->f->g, v)->place, *q = &e->space.place;
    if (p->kind == PLACE_PARTIAL || (p->kind == PLACE_SHARD && q->kind != PLACE_SHARD)) return false;
    if (q->kind != PLACE_SHARD) return true;
    for (int k = 0; k < view->nwin; k++)
        if (view->win[k].dim == q->dim) return false;
    bool found = false;
    for (int k = 0; k < view->ndim; k++) {
        if (view->d[k].dim != q->dim) continue;
        bool alike = p->kind == PLACE_SHARD && p->dim == k && p->layout == q->layout;
        if (!alike || view->d[k].start != 0 || view->d[k].step != 1) return false;
        found = true;
    }
    return found == (p->kind == PLACE_SHARD);
}

// A large operand whose fastest dim is not the kernel's, and which has the kernel's fastest elsewhere: a transpose, better done
// by tiles.
static bool reads_across(const Emit *e, ValueId v, const View *view) {
    enum { SMALL = 1 << 14 };
    const Shape *s = graph_shape(e->f->g, v);
    if (shape_numel(s) <= SMALL) return false;
    int last = e->space.shape.ndim - 1, fastest = view->ndim - 1;
    while (last >= 0 && e->space.shape.dim[last] == 1) last--;
    while (fastest >= 0 && s->dim[fastest] == 1) fastest--;
    return fastest >= 0 && view->d[fastest].dim != last && view_runs_along(view, last);
}

static int emit_input(Emit *e, ValueId v, const View *view) {
    if (fuse_made_inside(e->f, v) || e->nin == FUSE_INPUTS) return fail(e);
    if (!reads_own_part(e, v, view) || reads_across(e, v, view)) return fail(e);
    e->in[e->nin] = v;
    e->view[e->nin] = *view;
    return fuse_emit_instr(e, (Instr){PROG_INPUT, graph_value(e->f->g, v)->dtype, e->nin++, -1, -1, 0});
}

// iota at a view's positions, from the position itself; -1 where the ranks divide that dim: it is read then.
static int emit_iota(Emit *e, const Node *n, const View *view) {
    int64_t start = node_int(n, ATTR_START), step = node_int(n, ATTR_STEP);
    const ViewDim *x = &view->d[node_int(n, ATTR_DIM)];
    DType t = graph_value(e->f->g, n->out[0])->dtype;
    if (t == DT_BF16) return -1;
    if (x->dim < 0) return fuse_emit_const(e, t, (double)(start + step * x->start));
    if (e->space.place.kind == PLACE_SHARD && e->space.place.dim == x->dim) return -1;
    int at = fuse_emit_instr(e, (Instr){PROG_INDEX, DT_I64, x->dim, -1, -1, 0});
    int64_t by = step * x->step, from = start + step * x->start;
    if (by != 1) at = op(e, OP_MUL, DT_I64, at, fuse_emit_const(e, DT_I64, (double)by), -1);
    if (from != 0) at = op(e, OP_ADD, DT_I64, at, fuse_emit_const(e, DT_I64, (double)from), -1);
    return t == DT_I64 ? at : op(e, OP_CAST, t, at, -1, -1);
}

// ---- what is made inside --------------------------------------------------------------------------------------------------

static int emit_pointwise(Emit *e, const Node *n, const View *view) {
    const Graph *g = e->f->g;
    const Shape *out = graph_shape(g, n->out[0]);
    DType t = graph_value(g, n->out[0])->dtype;
    int arg[3] = {-1, -1, -1};
    // A divisor that is not read outside of its window would be 0 there, and an error.
    if (t == DT_I64 && (n->op == OP_FLOORDIV || n->op == OP_MOD) && view->nwin) return fail(e);
    for (int i = 0; i < n->nin && !e->failed; i++) {
        const Shape *in = graph_shape(g, n->in[i]);
        View v = {.ndim = in->ndim, .nwin = view->nwin};
        memcpy(v.win, view->win, sizeof v.win);
        for (int k = 0; k < in->ndim; k++) v.d[k] = in->dim[k] == 1 ? (ViewDim){.dim = -1} : view->d[k + out->ndim - in->ndim];
        arg[i] = fuse_emit_value(e, n->in[i], &v);
    }
    return op(e, n->op, t, arg[0], arg[1], arg[2]);
}

static bool reduces(const Node *n, int dim) {
    if (n->op == OP_LOGSUMEXP) return node_int(n, ATTR_DIM) == dim;
    const int64_t *dims;
    int count = node_ints(n, ATTR_DIMS, &dims);
    for (int i = 0; i < count; i++)
        if (dims[i] == dim) return true;
    return false;
}

// The operand's view if a reduction's result is read by `view`: reduced dims run along the row, in order and all of it, the
// others where the result's do, which is not along the row.
static bool row_operand(const Emit *e, const Node *n, const View *view, View *out) {
    const Shape *in = graph_shape(e->f->g, n->in[0]), *s = &e->space.shape;
    int first = s->ndim - e->space.row, at = first;
    *out = (View){.ndim = in->ndim};
    for (int k = 0; k < in->ndim; k++) {
        out->d[k] = reduces(n, k) ? (ViewDim){.dim = -1} : view->d[k];
        if (out->d[k].dim >= first) return false;
        if (!reduces(n, k) || in->dim[k] == 1) continue;
        while (at < s->ndim && s->dim[at] == 1) at++;
        if (at == s->ndim || s->dim[at] != in->dim[k]) return false;
        out->d[k] = (ViewDim){.dim = at++, .step = 1};
    }
    while (at < s->ndim && s->dim[at] == 1) at++;
    for (int k = 0; k < view->nwin; k++)  // what a reduction gives does not depend on the position in the row
        if (view->win[k].dim < first) out->win[out->nwin++] = view->win[k];
    return at == s->ndim && e->space.row > 0;
}

static int reduce(Emit *e, int code, int a) { return fuse_emit_instr(e, (Instr){code, DT_F32, a, -1, -1, 0}); }

static int emit_reduction(Emit *e, const Node *n, const View *view) {
    View v;
    if (!row_operand(e, n, view, &v)) return fail(e);
    int x = fuse_emit_value(e, n->in[0], &v);
    if (n->op == OP_SUM) return reduce(e, PROG_ROW_SUM, x);
    int max = reduce(e, PROG_ROW_MAX, x);
    if (n->op == OP_AMAX) return max;
    // m + log(sum(exp(x - m))), with m = 0 where the maximum is infinite, so that no infinity is taken from itself
    int huge = op(e, OP_EQ, DT_BOOL, op(e, OP_ABS, DT_F32, max, -1, -1), fuse_emit_const(e, DT_F32, 1.0 / 0.0), -1);
    int m = op(e, OP_WHERE, DT_F32, huge, fuse_emit_const(e, DT_F32, 0), max);
    int sum = reduce(e, PROG_ROW_SUM, op(e, OP_EXP, DT_F32, op(e, OP_SUB, DT_F32, x, m, -1), -1, -1));
    return op(e, OP_ADD, DT_F32, m, op(e, OP_LOG, DT_F32, sum, -1, -1), -1);
}

static bool same_view(const View *a, const View *b) {
    if (a->ndim != b->ndim || a->nwin != b->nwin) return false;
    for (int k = 0; k < a->ndim; k++)
        if (a->d[k].dim != b->d[k].dim || a->d[k].start != b->d[k].start || a->d[k].step != b->d[k].step) return false;
    for (int k = 0; k < a->nwin; k++)
        if (a->win[k].dim != b->win[k].dim || a->win[k].lo != b->win[k].lo || a->win[k].hi != b->win[k].hi) return false;
    return true;
}

static int emit_new(Emit *e, ValueId v, const View *view) {
    const Fuse *f = e->f;
    NodeId def = graph_value(f->g, v)->def;
    const Node *n = graph_node(f->g, def);
    DType t = graph_value(f->g, v)->dtype;
    if (n->op == OP_FULL) return fuse_emit_const(e, t, node_float(n, ATTR_VALUE));
    if (n->op == OP_IOTA) {
        int at = emit_iota(e, n, view);
        if (at >= 0) return at;
    }
    bool inside = f->inside[def] == f->stamp;
    if (f->kind[def] == FUSE_MOVE && (inside || f->through[def] || fuse_made_inside(f, v))) return fuse_emit_move(e, n, view);
    if (inside && f->kind[def] == FUSE_POINTWISE) return emit_pointwise(e, n, view);
    if (inside && f->kind[def] == FUSE_REDUCE) return emit_reduction(e, n, view);
    return emit_input(e, v, view);
}

int fuse_emit_value(Emit *e, ValueId v, const View *view) {
    View w = *view;
    if (e->failed) return 0;
    if (!fuse_view_normal(&w, graph_shape(e->f->g, v), &e->space)) return fuse_emit_const(e, graph_value(e->f->g, v)->dtype, 0);
    for (int i = 0; i < e->nmemo; i++)
        if (e->memo[i].v == v && same_view(&e->memo[i].view, &w)) return e->memo[i].instr;
    int at = emit_new(e, v, &w);
    if (e->failed) return 0;
    if (e->nmemo == 4 * FUSE_INSTRS) return fail(e);
    e->memo[e->nmemo++] = (EmitMemo){v, w, at};
    return at;
}

// ---- outputs --------------------------------------------------------------------------------------------------------------

// A value of shape s along iteration dims [from, to), sizes of 1 apart. False if it has other sizes.
static bool canonical_view(const Space *space, const Shape *s, int from, int to, View *v) {
    int at = from;
    *v = (View){.ndim = s->ndim};
    for (int k = 0; k < s->ndim; k++) {
        v->d[k] = (ViewDim){.dim = -1};
        if (s->dim[k] == 1) continue;
        while (at < to && space->shape.dim[at] == 1) at++;
        if (at == to || space->shape.dim[at] != s->dim[k]) return false;
        v->d[k] = (ViewDim){.dim = at++, .step = 1};
    }
    while (at < to && space->shape.dim[at] == 1) at++;
    return at == to;
}

// A sum over all that comes before the row, of a value of the whole space.
static bool is_column_sum(const Emit *e, const Node *n, View *v) {
    const Shape *in = graph_shape(e->f->g, n->in[0]);
    if (n->op != OP_SUM || e->space.row == 0 || !canonical_view(&e->space, in, 0, e->space.shape.ndim, v)) return false;
    for (int k = 0; k < in->ndim; k++)
        if (in->dim[k] > 1 && reduces(n, k) != (v->d[k].dim < e->space.shape.ndim - e->space.row)) return false;
    return true;
}

// A small value that a kernel of other dims order has as something of each row: it is written in the order of the rows.
static bool permuted_view(const Emit *e, ValueId v, View *out) {
    enum { SMALLER = 16 };
    const Shape *s = graph_shape(e->f->g, v), *whole = &e->space.shape;
    int first = whole->ndim - e->space.row;
    if (e->space.row == 0 || shape_numel(s) * SMALLER > shape_numel(whole)) return false;
    for (int i = 0; i < e->nmemo; i++) {
        const View *x = &e->memo[i].view;
        bool used[MAX_DIMS] = {false}, fits = e->memo[i].v == v && x->nwin == 0;
        for (int k = 0; fits && k < x->ndim; k++) {
            const ViewDim *y = &x->d[k];
            if (s->dim[k] == 1) continue;
            fits = y->dim >= 0 && y->dim < first && y->start == 0 && y->step == 1;
            fits = fits && s->dim[k] == whole->dim[y->dim] && !used[y->dim];
            if (fits) used[y->dim] = true;
        }
        for (int k = 0; fits && k < first; k++) fits = used[k] || whole->dim[k] == 1;
        if (!fits) continue;
        *out = *x;
        return true;
    }
    return false;
}

// The value of member n for outside. False: it may be found in another order of dims once the others are there.
static bool emit_output(Emit *e, const Node *n, bool last) {
    const Graph *g = e->f->g;
    const Space *s = &e->space;
    const Value *x = graph_value(g, n->out[0]);
    View v;
    int instr;
    bool divided = s->place.kind == PLACE_SHARD, permuted = false;
    if (e->nout == FUSE_OUTPUTS) e->failed = true;
    if (e->failed) return true;
    if (e->f->kind[x->def] == FUSE_REDUCE && is_column_sum(e, n, &v)) {
        if (x->place.kind != (divided ? PLACE_PARTIAL : PLACE_REPLICATE)) e->failed = true;
        instr = reduce(e, PROG_COL_SUM, fuse_emit_value(e, n->in[0], &v));
    } else {
        bool whole = canonical_view(s, &x->shape, 0, s->shape.ndim, &v);
        if (!whole && !(s->row && canonical_view(s, &x->shape, 0, s->shape.ndim - s->row, &v))) {
            if (!last) return false;
            permuted = permuted_view(e, n->out[0], &v);
            if (!permuted) e->failed = true;
        }
        if (!e->failed && !reads_own_part(e, n->out[0], &v)) e->failed = true;
        instr = fuse_emit_value(e, n->out[0], &v);
    }
    if (!e->failed) e->out[e->nout++] = (FuseOutput){n->out[0], instr, v, permuted};
    return true;
}

// Results have the shapes that the op infers, and a row is not made longer than one block can go through with its results.
static bool outputs_legal(const Emit *e) {
    bool constant[FUSE_INSTRS], depends[FUSE_INSTRS];
    const Shape *s = &e->space.shape;
    Program p = {.ninstr = e->ninstr, .instr = e->instr};
    int64_t row = 1, rows;
    for (int k = s->ndim - e->space.row; k < s->ndim; k++) row *= s->dim[k];
    rows = shape_numel(s) / row;
    program_row_constant(&p, s->ndim, e->space.row, e->view, constant);
    for (int i = 0; i < e->ninstr; i++) {  // on what a row is reduced to
        const Instr *x = &e->instr[i];
        const int32_t arg[3] = {x->a, x->b, x->c};
        depends[i] = false;
        int arity = x->code >= PROG_OP ? program_op_arity(x->code - PROG_OP) : program_is_reduction(x->code) ? 1 : 0;
        for (int k = 0; k < arity; k++) {
            int32_t code = e->instr[arg[k]].code;
            depends[i] |= depends[arg[k]] || code == PROG_ROW_SUM || code == PROG_ROW_MAX;
        }
    }
    bool spread = row > FUSE_LONG_ROW && rows < FUSE_FEW_ROWS;
    for (int j = 0; j < e->nout; j++) {
        int i = e->out[j].instr;
        bool narrow = row > 1 && !shape_equal_but_ones(graph_shape(e->f->g, e->out[j].v), s);
        if (e->instr[i].code == PROG_COL_SUM) continue;
        if (e->space.row && row > 1 && constant[i] == !narrow) return false;
        if (spread && (!narrow || depends[i])) return false;
    }
    return true;
}

bool fuse_needed_outside(const Fuse *f, ValueId v) {
    for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++) {
        NodeId user = f->uses.use[u].node;
        if (user == NO_NODE) return true;
        if (f->inside[user] == f->stamp) continue;
        if (f->kind[user] != FUSE_MOVE || f->group[user] >= 0) return true;
        if (fuse_needed_outside(f, graph_node(f->g, user)->out[0])) return true;
    }
    return false;
}

bool fuse_emit(Fuse *f, const NodeId *member, int n, const Space *space) {
    Emit *e = f->emit;
    e->f = f;
    e->space = *space;
    e->ninstr = e->nin = e->nmemo = e->nout = 0;
    e->failed = space->place.kind == PLACE_SHARD && space->place.dim >= space->shape.ndim - space->row;
    const Node *later[FUSE_OUTPUTS];
    int nlater = 0;
    for (int i = 0; i < n && !e->failed; i++) {
        const Node *x = graph_node(f->g, member[i]);
        if (!fuse_needed_outside(f, x->out[0]) || emit_output(e, x, nlater == FUSE_OUTPUTS)) continue;
        later[nlater++] = x;
    }
    for (int i = 0; i < nlater && !e->failed; i++) emit_output(e, later[i], true);
    return !e->failed && e->nout > 0 && outputs_legal(e);
}
