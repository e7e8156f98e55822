// The table of operations and the few helpers that every family uses.
#include "ops/op.h"

#include <stdarg.h>
#include <string.h>

const OpInfo *const op_table[OP_COUNT] = {
#define OP(ENUM, ...) [OP_##ENUM] = &op_info_##ENUM,
#include "ops/ops.def"
#undef OP
};

static const struct {
    const char *name;
    uint32_t flags;
} op_names[OP_COUNT] = {
#define OP(ENUM, text, flags) [OP_##ENUM] = {text, flags},
#include "ops/ops.def"
#undef OP
};

const char *op_name(OpKind k) { return (unsigned)k < OP_COUNT ? op_names[k].name : "?"; }

uint32_t op_flags(OpKind k) { return (unsigned)k < OP_COUNT ? op_names[k].flags : 0; }

bool op_from_name(const char *s, OpKind *out) {
    for (int k = 0; k < OP_COUNT; k++)
        if (strcmp(s, op_names[k].name) == 0) {
            *out = (OpKind)k;
            return true;
        }
    return false;
}

Status infer_error(Diag *d, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return diag_error(d, ST_INPUT, "%s", text);
}

bool broadcast_shapes(const Shape *a, const Shape *b, Shape *out) {
    Shape s = {.ndim = a->ndim > b->ndim ? a->ndim : b->ndim};
    for (int i = 0; i < s.ndim; i++) {  // i counts from the last dim: shapes are right-aligned
        int64_t x = i < a->ndim ? a->dim[a->ndim - 1 - i] : 1;
        int64_t y = i < b->ndim ? b->dim[b->ndim - 1 - i] : 1;
        if (x != y && x != 1 && y != 1) return false;
        s.dim[s.ndim - 1 - i] = x == 1 ? y : x;
    }
    *out = s;
    return true;
}

void row_replicate(const Node *n, Row *row) {
    for (int i = 0; i < n->nin; i++) row->in[i] = REPLICATE;
    for (int i = 0; i < n->nout; i++) row->out[i] = REPLICATE;
    row->strategy = NULL;
}

bool placement_is_partition(const Graph *g, const Placement *p) {
    return p->kind == PLACE_SHARD && p->reduce == RED_NONE && !layouts_get(g->layouts, p->layout)->overlap;
}

double operand_numel(const Operand *o) {
    double n = 1;
    for (int i = 0; i < o->ndim; i++) n *= (double)o->dim[i];
    return n;
}

double operand_nbytes(const Operand *o) { return operand_numel(o) * dtype_nbytes(o->dtype); }

void cost_memory_bound(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    *c = (Cost){0};
    for (int i = 0; i < n->nin; i++) c->nbytes += operand_nbytes(&in[i]);
    for (int i = 0; i < n->nout; i++) {
        c->nbytes += operand_nbytes(&out[i]);
        c->flops += operand_numel(&out[i]);
    }
}

// Dims of more than one element stay in order: no byte moves.
static bool permute_is_view(const Graph *g, const Node *n) {
    const int64_t *dims;
    int ndim = node_ints(n, ATTR_DIMS, &dims);
    int64_t last = -1;
    for (int i = 0; i < ndim; i++) {
        if (graph_shape(g, n->in[0])->dim[dims[i]] == 1) continue;
        if (dims[i] < last) return false;
        last = dims[i];
    }
    return true;
}

bool op_is_view(const Graph *g, const Node *n) {
    return op_flags(n->op) & OPF_VIEW || n->op == OP_STOP_GRAD || (n->op == OP_PERMUTE && permute_is_view(g, n));
}
