// The graph as text. docs/ir.md is the grammar; parse.c reads it back: parse(print(g)) prints the same.
#include <inttypes.h>
#include <math.h>

#include "ir/graph.h"
#include "ops/op.h"

enum { MAX_INLINE_CONST = 4096 };  // larger constants are printed without their bytes

static void print_quoted(Str *s, const char *text) {
    str_add(s, "\"");
    for (const char *p = text; *p; p++) {
        if (*p == '"' || *p == '\\')
            str_printf(s, "\\%c", *p);
        else if ((unsigned char)*p < 32)
            str_printf(s, "\\x%02x", (unsigned char)*p);
        else
            str_addn(s, p, 1);
    }
    str_add(s, "\"");
}

static void print_type(Str *s, DType t, const Shape *shape) {
    str_printf(s, "%s[", dtype_name(t));
    for (int k = 0; k < shape->ndim; k++) str_printf(s, k ? ",%" PRId64 : "%" PRId64, shape->dim[k]);
    str_add(s, "]");
}

// Shortest text that reads back as the same double.
static void print_double(Str *s, double v) {
    char buf[40];
    if (isnan(v)) {
        str_add(s, "nan");
        return;
    }
    if (isinf(v)) {
        str_add(s, v < 0 ? "-inf" : "inf");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (strtod(buf, NULL) == v) break;
    }
    str_add(s, buf);
    if (!strpbrk(buf, ".en")) str_add(s, ".0");
}

static const char *const leaf_name[] = {
    [PROG_CONST] = "const", [PROG_INPUT] = "input",     [PROG_INDEX_B] = "b",       [PROG_INDEX_H] = "h",
    [PROG_INDEX_Q] = "q",   [PROG_INDEX_K] = "k",       [PROG_VEC_Q] = "vec_q",     [PROG_VEC_K] = "vec_k",
    [PROG_INDEX] = "index", [PROG_ROW_SUM] = "row_sum", [PROG_ROW_MAX] = "row_max", [PROG_COL_SUM] = "col_sum"};

static void print_program(Str *s, const Program *p) {
    str_add(s, "{");
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *in = &p->instr[i];
        str_printf(s, "$%d:%s = ", i, dtype_name(in->dtype));
        if (in->code >= PROG_OP) {
            str_printf(s, "%s(", op_name((OpKind)(in->code - PROG_OP)));
            const int32_t arg[3] = {in->a, in->b, in->c};
            for (int k = 0; k < 3 && arg[k] >= 0; k++) str_printf(s, "%s$%d", k ? ", " : "", arg[k]);
            str_add(s, ")");
        } else {
            str_add(s, leaf_name[in->code]);
            if (program_is_reduction(in->code)) str_printf(s, "($%d)", in->a);
            if (in->code == PROG_CONST) {
                str_add(s, " ");
                print_double(s, in->imm);
            } else if (in->code == PROG_INPUT || in->code == PROG_VEC_Q || in->code == PROG_VEC_K || in->code == PROG_INDEX) {
                str_printf(s, " %d", in->a);
            }
        }
        str_add(s, "; ");
    }
    str_add(s, "out");
    for (int j = 0; j < p->nout; j++) str_printf(s, p->out[j] < 0 ? " -" : " $%d", p->out[j]);
    str_add(s, "}");
}

static void print_attr(Str *s, const Attr *a) {
    str_printf(s, "%s=", attr_name(a->key));
    switch (attr_kind(a->key)) {
        case ATTRK_INT:
            if (a->key == ATTR_DTYPE)
                str_add(s, dtype_name((DType)a->u.i));
            else
                str_printf(s, "%" PRId64, a->u.i);
            break;
        case ATTRK_FLOAT: print_double(s, a->u.f); break;
        case ATTRK_INTS:
            str_add(s, "[");
            for (int i = 0; i < a->n; i++) str_printf(s, i ? ",%" PRId64 : "%" PRId64, a->u.ints[i]);
            str_add(s, "]");
            break;
        case ATTRK_STR: print_quoted(s, a->u.str); break;
        case ATTRK_PROG: print_program(s, a->u.prog); break;
    }
}

static void print_placement(Str *s, const Placement *p) {
    switch (p->kind) {
        case PLACE_NONE: break;
        case PLACE_REPLICATE: str_add(s, " replicate"); break;
        case PLACE_PARTIAL: str_printf(s, " partial(%s)", p->reduce == RED_MAX ? "max" : "sum"); break;
        case PLACE_SHARD: str_printf(s, " shard(%d,@%d%s)", p->dim, p->layout, p->reduce ? ",sum" : ""); break;
    }
}

static void print_node(Str *s, const Graph *g, const Node *n) {
    str_add(s, "  ");
    for (int j = 0; j < n->nout; j++) {
        const Value *v = graph_value(g, n->out[j]);
        str_printf(s, "%s%%%d", j ? ", " : "", n->out[j]);
        if (v->name) {
            str_add(s, " ");
            print_quoted(s, v->name);
        }
    }
    str_printf(s, " = %s(", op_name(n->op));
    for (int i = 0; i < n->nin; i++) str_printf(s, "%s%%%d", i ? ", " : "", n->in[i]);
    str_add(s, ")");
    if (n->nattr) {
        str_add(s, " {");
        for (int i = 0; i < n->nattr; i++) {
            if (i) str_add(s, ", ");
            print_attr(s, &n->attr[i]);
        }
        str_add(s, "}");
    }
    str_add(s, " :");
    for (int j = 0; j < n->nout; j++) {
        const Value *v = graph_value(g, n->out[j]);
        str_add(s, j ? ", " : " ");
        print_type(s, v->dtype, &v->shape);
        print_placement(s, &v->place);
    }
    if (n->note) {
        str_add(s, " why ");
        print_quoted(s, n->note);
    }
    if (n->source) {
        str_add(s, " at ");
        print_quoted(s, n->source);
    }
    str_add(s, "\n");
}

static void print_const(Str *s, const Const *c, int64_t i) {
    str_printf(s, "const %" PRId64 " ", i);
    print_quoted(s, c->name ? c->name : "");
    str_add(s, " ");
    print_type(s, c->dtype, &c->shape);
    int64_t nbytes = shape_numel(&c->shape) * dtype_nbytes(c->dtype);
    if (c->data && nbytes <= MAX_INLINE_CONST) {
        str_add(s, " bytes ");
        for (int64_t k = 0; k < nbytes; k++) str_printf(s, "%02x", ((const unsigned char *)c->data)[k]);
        if (nbytes == 0) str_add(s, "-");
    } else if (c->data) {
        str_printf(s, " hash %016" PRIx64, hash_bytes(0, c->data, (size_t)nbytes));
    } else if (c->hash) {
        str_printf(s, " hash %s", c->hash);
    }
    str_add(s, "\n");
}

static void print_tables(Str *s, const Graph *g) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        str_printf(s, "param %" PRId64 " ", i);
        print_quoted(s, p->name);
        str_add(s, " ");
        print_type(s, p->dtype, &p->shape);
        str_add(s, p->trainable ? "" : " frozen");
        str_add(s, p->decay ? "" : " no_decay");
        for (int k = 0; k < p->nalias; k++) {
            str_add(s, " tied ");
            print_quoted(s, p->alias[k]);
        }
        str_add(s, "\n");
    }
    for (int64_t i = 0; i < g->consts.len; i++) print_const(s, &g->consts.data[i], i);
    for (int64_t i = 0; i < g->inputs.len; i++) {
        const Input *in = &g->inputs.data[i];
        str_printf(s, "input %" PRId64 " ", i);
        print_quoted(s, in->name);
        str_add(s, " ");
        print_type(s, in->dtype, &in->shape);
        str_printf(s, " role %s batch_dim %d seq_dim %d\n", role_name(in->role), in->batch_dim, in->seq_dim);
    }
    for (int i = 0; i < layouts_count(g->layouts); i++) {
        const Layout *l = layouts_get(g->layouts, i);
        str_printf(s, "layout @%d %" PRId64 ":", i, l->extent);
        for (int r = 0; r < l->nranks; r++) {
            str_add(s, r ? " |" : "");
            for (int k = 0; k < layout_nspan(l, r); k++)
                str_printf(s, " [%" PRId64 ",%" PRId64 ")", layout_spans(l, r)[k].begin, layout_spans(l, r)[k].end);
            if (layout_nspan(l, r) == 0) str_add(s, " -");
        }
        str_add(s, "\n");
    }
}

const char *phase_name(Phase p) {
    static const char *const name[PHASE_COUNT] = {"forward", "backward", "update", "recompute"};
    return (unsigned)p < PHASE_COUNT ? name[p] : "?";
}

static void print_head(Str *s, const Graph *g) {
    str_add(s, "autosp.graph 1 ");
    print_quoted(s, g->name);
    str_printf(s, " batch %" PRId64 " seq %" PRId64 " ranks %d\n", g->batch, g->seq, graph_nranks(g));
    print_tables(s, g);
}

static void print_outputs(Str *s, const Graph *g) {
    for (int64_t i = 0; i < g->outputs.len; i++) {
        const Output *o = &g->outputs.data[i];
        static const char *const kind[] = {"loss", "grad", "state", "aux"};
        str_printf(s, "return %s %d %d %%%d ", kind[o->kind], o->param, o->slot, o->value);
        print_quoted(s, o->name ? o->name : "");
        str_add(s, "\n");
    }
}

void graph_print(const Graph *g, Str *s) {
    print_head(s, g);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = &g->nodes.data[i];
        if (i == 0 || n->phase != g->nodes.data[i - 1].phase) str_printf(s, "%s:\n", phase_name(n->phase));
        print_node(s, g, n);
    }
    print_outputs(s, g);
}

// ---- the hash: what the text says, without writing out every node -------------------------------------------------------
static uint64_t hash_text(uint64_t h, const char *text) { return text ? hash_bytes(h ^ 1, text, strlen(text)) : h; }

static uint64_t hash_double(uint64_t h, double v) {
    if (v != v) v = 0, h ^= 2;  // one text for every NaN
    return hash_bytes(h, &v, sizeof v);
}

static uint64_t hash_program(uint64_t h, const Program *p) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *in = &p->instr[i];
        bool op = in->code >= PROG_OP, plain = !op && in->code != PROG_CONST;
        int32_t x[] = {in->code, (int32_t)in->dtype, op || plain ? in->a : -1, op ? in->b : -1, op ? in->c : -1};
        if (in->code == PROG_INDEX_B || in->code == PROG_INDEX_H || in->code == PROG_INDEX_Q || in->code == PROG_INDEX_K)
            x[2] = -1;
        h = hash_bytes(h, x, sizeof x);
        if (in->code == PROG_CONST) h = hash_double(h, in->imm);
    }
    return hash_bytes(h, p->out, sizeof *p->out * (size_t)p->nout);
}

static uint64_t hash_attr(uint64_t h, const Attr *a) {
    h = hash_bytes(h, &a->key, sizeof a->key);
    switch (attr_kind(a->key)) {
        case ATTRK_INT: return hash_bytes(h, &a->u.i, sizeof a->u.i);
        case ATTRK_FLOAT: return hash_double(h, a->u.f);
        case ATTRK_INTS: return hash_bytes(hash_bytes(h, &a->n, sizeof a->n), a->u.ints, sizeof *a->u.ints * (size_t)a->n);
        case ATTRK_STR: return hash_text(h, a->u.str);
        case ATTRK_PROG: return hash_program(h, a->u.prog);
    }
    return h;
}

static uint64_t hash_value(uint64_t h, const Value *v) {
    const Placement *p = &v->place;
    bool shard = p->kind == PLACE_SHARD;
    int32_t x[] = {(int32_t)v->dtype, v->shape.ndim, (int32_t)p->kind, shard || p->kind == PLACE_PARTIAL ? (int32_t)p->reduce : 0,
                   shard ? p->dim : 0, shard ? p->layout : 0};
    return hash_text(hash_bytes(hash_bytes(h, x, sizeof x), v->shape.dim, sizeof *v->shape.dim * (size_t)v->shape.ndim), v->name);
}

static uint64_t hash_node(uint64_t h, const Graph *g, const Node *n) {
    int32_t x[] = {(int32_t)n->op, (int32_t)n->phase, n->nin, n->nout, n->nattr};
    h = hash_bytes(hash_bytes(h, x, sizeof x), n->in, sizeof *n->in * (size_t)n->nin);
    for (int i = 0; i < n->nattr; i++) h = hash_attr(h, &n->attr[i]);
    for (int j = 0; j < n->nout; j++) h = hash_value(h, graph_value(g, n->out[j]));
    return hash_text(hash_text(h, n->note) ^ 4, n->source);
}

uint64_t graph_hash(const Graph *g) {
    Str s = {0};
    print_head(&s, g);
    print_outputs(&s, g);
    uint64_t h = hash_bytes(0, str_text(&s), s.len);
    str_free(&s);
    for (int64_t i = 0; i < g->nodes.len; i++) h = hash_node(h, g, graph_node(g, (NodeId)i));
    return h;
}
