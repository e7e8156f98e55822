// Tensors that share memory. PyTorch programs write into tensors and into views of them; the graph has values only. So a handle
// that owns storage has a current value, a view is a recipe for its value from its parent's, and a write through a view puts the
// new part into the parent, up to the owner. The clock says which derived values are out of date.
#include "import/lower.h"

int32_t lower_new(Lower *l, ValueId v) {
    LowerTensor t = {.parent = -1, .value = v, .dtype = LDTYPE(l, v), .region = l->region};
    t.stamp = t.written = ++l->clock;
    vec_push(&l->tensors, t);
    return (int32_t)(l->tensors.len - 1);
}

// A value that nothing differentiable made needs no stop.
static bool is_constant(const Lower *l, ValueId v) {
    OpKind op = graph_def(l->b.g, v)->op;
    return !dtype_is_float(LDTYPE(l, v)) || op == OP_CONSTANT || op == OP_FULL || op == OP_IOTA || op == OP_INPUT ||
           op == OP_RANDOM;
}

ValueId lower_view_value(Lower *l, const View *v, ValueId x) {
    switch (v->kind) {
        case VIEW_RESHAPE: return build_reshape(&l->b, x, v->shape);
        case VIEW_PERMUTE: return build_permute(&l->b, x, v->dims);
        case VIEW_SLICE: return build_slice(&l->b, x, v->dim, v->start, v->step, v->length);
        case VIEW_BROADCAST: return build_broadcast(&l->b, x, v->shape);
        case VIEW_STOP: return lower_failed(l) || is_constant(l, x) ? x : build_unary(&l->b, OP_STOP_GRAD, x);
        case VIEW_OPAQUE: break;
    }
    lower_refuse(l, "a tensor is read after an in-place write to memory that it shares; clone it before the write");
    return NO_VALUE;
}

// An opaque view's value is made by its handler; the view says only whose memory it shares.
int32_t lower_new_opaque(Lower *l, int32_t parent, ValueId v) {
    int32_t t = lower_new(l, v);
    l->tensors.data[t].parent = parent;
    l->tensors.data[t].view = (View){.kind = VIEW_OPAQUE};
    return t;
}

// detach_: the tensor itself becomes a constant to differentiation.
void lower_detach(Lower *l, int32_t tensor) {
    static const View stop = {.kind = VIEW_STOP};
    ValueId v = lower_view_value(l, &stop, lower_read(l, tensor));
    if (lower_failed(l)) return;
    LowerTensor *t = &l->tensors.data[tensor];
    if (t->parent >= 0) {
        lower_refuse(l, "detach_ of a view; use detach");
        return;
    }
    t->value = v;
    t->stamp = t->written = ++l->clock;
}

int32_t lower_new_view(Lower *l, int32_t parent, View v) {
    ValueId x = lower_read(l, parent);
    ValueId y = lower_view_value(l, &v, x);
    if (lower_failed(l)) return -1;
    LowerTensor t = {.parent = parent, .view = v, .value = y, .dtype = LDTYPE(l, y), .stamp = ++l->clock};
    vec_push(&l->tensors, t);
    return (int32_t)(l->tensors.len - 1);
}

static int32_t owner_of(const Lower *l, int32_t t) {
    while (l->tensors.data[t].parent >= 0) t = l->tensors.data[t].parent;
    return t;
}

ValueId lower_read(Lower *l, int32_t tensor) {
    if (lower_failed(l)) return NO_VALUE;
    LowerTensor *t = &l->tensors.data[tensor];
    const LowerTensor *owner = &l->tensors.data[owner_of(l, tensor)];
    bool current = t->stamp >= owner->written;
    if (owner->lost || (!current && t->view.maybe)) {
        lower_refuse(l, "a tensor is read after an in-place write to memory that it may or may not share (depending on strides); "
                        "clone it before the write");
        return NO_VALUE;
    }
    if (current) return t->value;
    ValueId x = lower_read(l, t->parent);
    if (lower_failed(l)) return NO_VALUE;
    t->value = lower_view_value(l, &t->view, x);
    t->stamp = ++l->clock;
    return t->value;
}

ValueId lower_put_slice(Lower *l, ValueId x, ValueId y, int dim, int64_t start, int64_t step) {
    if (lower_failed(l)) return NO_VALUE;
    Builder *b = &l->b;
    Shape s = LSHAPE(l, x), part = LSHAPE(l, y);
    int64_t n = s.dim[dim], k = part.dim[dim];
    if (k == 0) return x;
    if (step == 1) {
        ValueId piece[3];
        int m = 0;
        if (start > 0) piece[m++] = build_slice(b, x, dim, 0, 1, start);
        piece[m++] = y;
        if (start + k < n) piece[m++] = build_slice(b, x, dim, start + k, 1, n - start - k);
        return build_concat(b, m, piece, dim);
    }
    // Spread y with step - 1 unused elements after each, then choose by position.
    ValueId wide = build_pad(b, build_unsqueeze(b, y, dim + 1), dim + 1, 0, step - 1, 0);
    part.dim[dim] = k * step;
    wide = build_reshape(b, wide, part);
    int64_t keep = min_i64(k * step, n - start);
    wide = build_pad(b, build_slice(b, wide, dim, 0, 1, keep), dim, start, n - start - keep, 0);
    Shape line = {.ndim = s.ndim};
    for (int i = 0; i < s.ndim; i++) line.dim[i] = i == dim ? n : 1;
    ValueId from = build_iota(b, line, dim, -start, 1, DT_I64);
    ValueId hit = build_binary_scalar(b, OP_EQ, build_binary_scalar(b, OP_MOD, from, (double)step), 0);
    hit = build_binary(b, OP_AND, hit, build_binary_scalar(b, OP_GE, from, 0));
    hit = build_binary(b, OP_AND, hit, build_binary_scalar(b, OP_LT, from, (double)(k * step)));
    return build_where(b, hit, wide, x);
}

// The parent's value after view v of it became y.
static ValueId put_view(Lower *l, const View *v, ValueId x, ValueId y) {
    switch (v->kind) {
        case VIEW_RESHAPE: return build_reshape(&l->b, y, LSHAPE(l, x));
        case VIEW_PERMUTE: {
            int inverse[MAX_DIMS];
            for (int i = 0; i < LSHAPE(l, x).ndim; i++) inverse[v->dims[i]] = i;
            return build_permute(&l->b, y, inverse);
        }
        case VIEW_SLICE: return lower_put_slice(l, x, y, v->dim, v->start, v->step);
        case VIEW_STOP:
            if (!dtype_is_float(LDTYPE(l, y))) return y;
            lower_refuse(l, "an in-place write through a detached tensor; write to the tensor itself, or to a clone");
            return NO_VALUE;
        case VIEW_BROADCAST:
            lower_refuse(l, "an in-place write to an expanded tensor, whose elements share memory; clone it first");
            break;
        case VIEW_OPAQUE: lower_refuse(l, "an in-place write through this kind of view; clone it first"); break;
    }
    return NO_VALUE;
}

static void check_writable(Lower *l, const LowerTensor *owner) {
    if (owner->storage == STORE_PARAM || owner->storage == STORE_BUFFER)
        lower_refuse(l, "an in-place write to a %s, which would outlive the step; write to a clone of it",
                     owner->storage == STORE_PARAM ? "parameter" : "buffer");
    else if (owner->region != l->region && dtype_is_float(owner->dtype))
        lower_refuse(l, "an in-place write under no_grad to a tensor from outside (or the other way round); use a clone");
}

static void write_chain(Lower *l, int32_t tensor, ValueId y) {
    int32_t parent = l->tensors.data[tensor].parent;
    if (parent >= 0) {
        View v = l->tensors.data[tensor].view;
        write_chain(l, parent, put_view(l, &v, lower_read(l, parent), y));
    }
    if (lower_failed(l)) return;
    LowerTensor *t = &l->tensors.data[tensor];
    t->value = y;
    t->stamp = ++l->clock;
    if (parent < 0) t->written = t->stamp;
}

// Where it is not known whether memory is shared, the written tensor becomes an owner and what it may have shared with is lost.
static void cut_doubtful(Lower *l, int32_t tensor) {
    int32_t at = tensor, doubtful = -1;
    for (; l->tensors.data[at].parent >= 0; at = l->tensors.data[at].parent)
        if (l->tensors.data[at].view.maybe) doubtful = at;
    if (doubtful < 0) return;
    ValueId v = lower_read(l, doubtful);
    int32_t owner = owner_of(l, doubtful);
    if (lower_failed(l)) return;
    LowerTensor *t = &l->tensors.data[doubtful];
    t->parent = -1;
    t->value = v;
    t->view = (View){0};
    t->region = l->tensors.data[owner].region;
    t->storage = STORE_FRESH;
    t->written = 0;
    t->stamp = ++l->clock;
    l->tensors.data[owner].lost = true;
}

void lower_write(Lower *l, int32_t tensor, ValueId v) {
    if (lower_failed(l)) return;
    ValueId old = lower_read(l, tensor);
    if (lower_failed(l)) return;
    check_writable(l, &l->tensors.data[owner_of(l, tensor)]);
    cut_doubtful(l, tensor);
    v = lower_broadcast_like(l, lower_cast(l, v, LDTYPE(l, old)), LSHAPE(l, old));
    if (!lower_failed(l)) write_chain(l, tensor, v);
}
