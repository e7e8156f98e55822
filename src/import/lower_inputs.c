// Where a program meets the world: parameters, buffers and user inputs become sources of the graph, the loss its output.
#include "import/lower.h"
#include "ir/convert.h"

static Status add_const(Lower *l, const Const *c, Diag *d) {
    Const k = *c;
    k.dtype = dtype_is_float(c->dtype) ? l->real : c->dtype == DT_BOOL ? DT_BOOL : DT_I64;
    if (c->data && k.dtype != c->dtype) {
        int64_t n = shape_numel(&c->shape);
        if (n > (int64_t)1 << 32)
            return diag_error(d, ST_UNSUPPORTED, "buffer \"%s\" is too large to be held as a constant", c->name);
        void *data = arena_alloc(l->arena, (size_t)n * (size_t)dtype_nbytes(k.dtype) + 1);
        convert_array(c->data, c->dtype, data, k.dtype, n);
        k.data = data;
    }
    vec_push(&l->b.g->consts, k);
    return ST_OK;
}

static int find_dim(const Lower *l, const AtenUserInput *u, const Shape *s, const Sym *sym, int64_t extent, int prefer) {
    for (int i = 0; i < u->ndim; i++)
        if (sym && sym->op == SYM_SYMBOL && u->size[i] && u->size[i]->op == SYM_SYMBOL && u->size[i]->value == sym->value)
            return i;
    if (prefer < s->ndim && s->dim[prefer] == extent) return prefer;
    (void)l;
    return -1;
}

// The input that says what the batch and the sequence are: the tokens, else the first user input of two dims or more.
static const AtenUserInput *leading_input(const Archive *ar) {
    for (int i = 0; i < ar->nuser; i++)
        if (ar->user[i].role == ROLE_TOKENS && ar->user[i].ndim > 0) return &ar->user[i];
    for (int i = 0; i < ar->nuser; i++)
        if (ar->user[i].ndim >= 2) return &ar->user[i];
    for (int i = 0; i < ar->nuser; i++)
        if (ar->user[i].ndim == 1) return &ar->user[i];
    return NULL;
}

static Status add_inputs(Lower *l, Diag *d) {
    const Archive *ar = l->ar;
    Graph *g = l->b.g;
    for (int i = 0; i < ar->nuser; i++) {
        const AtenUserInput *u = &ar->user[i];
        Input in = {.name = u->name, .role = u->role, .seq_dim = -1, .batch_dim = -1, .shape = {.ndim = u->ndim}};
        for (int k = 0; k < u->ndim; k++) TRY(sym_eval(ar, u->size[k], l->values, &in.shape.dim[k], d));
        if (!lower_category(l, u->dtype, &in.dtype)) in.dtype = DT_I64;  // refused where it is used
        vec_push(&g->inputs, in);
    }
    const AtenUserInput *lead = leading_input(ar);
    if (!lead) return ST_OK;
    const Shape *s = &g->inputs.data[lead - ar->user].shape;
    int seq = s->ndim >= 2 ? 1 : 0;
    g->seq = s->dim[seq];
    g->batch = seq ? s->dim[0] : 1;
    for (int i = 0; i < ar->nuser; i++) {
        Input *in = &g->inputs.data[i];
        if (in->shape.ndim == 0) continue;
        in->seq_dim = find_dim(l, &ar->user[i], &in->shape, lead->size[seq], g->seq, seq);
        if (seq) in->batch_dim = find_dim(l, &ar->user[i], &in->shape, lead->size[0], g->batch, 0);
        if (in->batch_dim == in->seq_dim) in->batch_dim = -1;
    }
    return ST_OK;
}

static ValueId param_value(Lower *l, int32_t index, ValueId *made) {
    if (made[index] < 0) {
        Attr a[] = {attr_i(ATTR_INDEX, index), attr_i(ATTR_KIND, 0), attr_i(ATTR_DTYPE, l->real)};
        made[index] = build(&l->b, OP_PARAM, 0, NULL, 3, a);
        if (made[index] >= 0) graph_value(l->b.g, made[index])->name = l->b.g->params.data[index].name;
    }
    return made[index];
}

static Status bind_input(Lower *l, const AtenInput *in, const Arg *arg, ValueId *param, Diag *d) {
    static const StorageKind kind[] = {STORE_INPUT, STORE_PARAM, STORE_BUFFER, STORE_BUFFER};
    Graph *g = l->b.g;
    if (in->kind == AIN_USER && !in->is_tensor) {
        Bind b = {.kind = BIND_NONE};
        if (arg->kind == ARG_INT || arg->kind == ARG_BOOL)
            b = (Bind){.kind = arg->kind == ARG_INT ? BIND_INT : BIND_BOOL, .i = arg->i};
        if (arg->kind == ARG_FLOAT) b = (Bind){.kind = BIND_FLOAT, .f = arg->f};
        lower_bind(l, in->arg, b);
        return ST_OK;
    }
    ValueId v;
    if (in->kind == AIN_PARAMETER) {
        if (!dtype_is_float(g->params.data[in->param].dtype))
            return diag_error(d, ST_UNSUPPORTED, "parameter \"%s\" is not of a floating type", in->target);
        v = param_value(l, in->param, param);
    } else {
        Attr a[] = {attr_i(ATTR_INDEX, in->kind == AIN_USER ? in->user : in->constant)};
        v = build(&l->b, in->kind == AIN_USER ? OP_INPUT : OP_CONSTANT, 0, NULL, 1, a);
        if (v >= 0) graph_value(g, v)->name = in->kind == AIN_USER ? in->arg : in->target;
    }
    TRY(l->b.status);
    int32_t t = lower_new(l, v);
    l->tensors.data[t].storage = kind[in->kind];
    if (lower_is_complex_code(lower_stored_code(l, in->arg))) {
        if (in->kind == AIN_USER) return diag_error(d, ST_UNSUPPORTED, "not supported: a complex input");
        lower_split_complex(l, in->arg, t);
        return l->b.status;
    }
    lower_bind(l, in->arg, (Bind){.kind = BIND_TENSOR, .tensor = t});
    return ST_OK;
}

Status lower_bind_inputs(Lower *l, Diag *d) {
    const Archive *ar = l->ar;
    ValueId *param = ARENA_ARRAY(l->arena, ValueId, ar->param.len + 1);
    for (int64_t i = 0; i < ar->param.len; i++) {
        vec_push(&l->b.g->params, ar->param.data[i]);
        param[i] = NO_VALUE;
        if (ar->param.data[i].dtype == DT_BF16 || ar->param.data[i].dtype == DT_F16) l->noted_half = true;
    }
    for (int64_t i = 0; i < ar->constant.len; i++) TRY(add_const(l, &ar->constant.data[i], d));
    TRY(add_inputs(l, d));
    for (int i = 0; i < ar->ninput; i++) {
        if (i >= ar->graph->nin) return diag_error(d, ST_INPUT, "the signature has more inputs than the graph");
        Status s = bind_input(l, &ar->input[i], &ar->graph->in[i], param, d);
        if (s != ST_OK) return diag_where(d, "input \"%s\"", ar->input[i].target ? ar->input[i].target : ar->input[i].arg);
    }
    return ST_OK;
}

// The loss is the first output that is one floating number.
Status lower_find_loss(Lower *l, Diag *d) {
    const Archive *ar = l->ar;
    int ndropped = 0;
    ValueId loss = NO_VALUE;
    const char *name = NULL;
    for (int i = 0; i < ar->noutput; i++) {
        const AtenOutput *o = &ar->output[i];
        int64_t at;
        if (o->kind == AOUT_MUTATION)
            return diag_error(
                d, ST_UNSUPPORTED,
                "not supported: the program changes \"%s\" while it runs; compute a new tensor instead, or use eval mode",
                o->target ? o->target : "an input or a buffer");
        if (o->arg.kind != ARG_TENSOR || !map_get(l->scope->names, o->arg.names[0], &at)) continue;
        if (l->binds.data[at].kind != BIND_TENSOR) continue;
        ValueId v = lower_read(l, l->binds.data[at].tensor);
        TRY(l->b.status);
        if (loss >= 0 || graph_shape(l->b.g, v)->ndim || LDTYPE(l, v) != l->real) {
            ndropped++;
            continue;
        }
        loss = v;
        name = o->arg.names[0];
    }
    if (loss < 0)
        return diag_error(d, ST_UNSUPPORTED,
                          "not supported: no output of the program is a single floating number; return the loss");
    if (ndropped)
        lower_note(l, arena_printf(l->arena, "output \"%s\" is the loss; %d other outputs are dropped", name, ndropped));
    graph_add_output(l->b.g, OUT_LOSS, -1, 0, "loss", loss);
    return ST_OK;
}
