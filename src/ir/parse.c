// Reads back what print.c wrote: parse(print(g)) prints the same. The text is checked like any file from outside: node types are
// inferred again and must agree with what is written.
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#include "ir/graph.h"
#include "ir/scan.h"
#include "ops/op.h"

typedef struct Parser {
    Scan s;
    Graph *g;
    Arena *a;
    VEC(LayoutId) layout;  // id in the text -> id in the table
    VEC(ValueId) value;    // likewise for values
    Phase phase;
} Parser;

static Status parse_type(Parser *p, DType *t, Shape *shape) {
    char name[16];
    TRY(scan_word(&p->s, name, sizeof name));
    if (!dtype_from_name(name, t)) return scan_error(&p->s, "a dtype");
    *shape = SHAPE0;
    TRY(scan_expect(&p->s, "["));
    while (!scan_accept(&p->s, "]")) {
        if (shape->ndim == MAX_DIMS) return scan_error(&p->s, "at most 8 dims");
        if (shape->ndim) TRY(scan_expect(&p->s, ","));
        TRY(scan_int(&p->s, &shape->dim[shape->ndim]));
        if (shape->dim[shape->ndim] < 0) return scan_error(&p->s, "a size");
        shape->ndim++;
    }
    int64_t n = 1;
    for (int k = 0; k < shape->ndim; k++)
        if (!mul_i64(n, shape->dim[k], &n) || n > INT64_MAX / 16) return scan_error(&p->s, "a shape that fits in memory");
    return ST_OK;
}

static Status parse_param(Parser *p) {
    int64_t i;
    Param x = {.trainable = true, .decay = true};
    TRY(scan_int(&p->s, &i));
    if (i != p->g->params.len) return scan_error(&p->s, "parameters in order");
    TRY(scan_string(&p->s, p->a, &x.name));
    TRY(parse_type(p, &x.dtype, &x.shape));
    if (scan_accept_word(&p->s, "frozen")) x.trainable = false;
    if (scan_accept_word(&p->s, "no_decay")) x.decay = false;
    while (scan_accept_word(&p->s, "tied")) {
        const char **alias = ARENA_ARRAY(p->a, const char *, x.nalias + 1);
        for (int k = 0; k < x.nalias; k++) alias[k] = x.alias[k];
        TRY(scan_string(&p->s, p->a, &alias[x.nalias++]));
        x.alias = alias;
    }
    vec_push(&p->g->params, x);
    return ST_OK;
}

static Status parse_const(Parser *p) {
    int64_t i;
    Const x = {0};
    TRY(scan_int(&p->s, &i));
    if (i != p->g->consts.len) return scan_error(&p->s, "constants in order");
    TRY(scan_string(&p->s, p->a, &x.name));
    TRY(parse_type(p, &x.dtype, &x.shape));
    int64_t nbytes = shape_numel(&x.shape) * dtype_nbytes(x.dtype);
    char hash[32];
    if (scan_accept_word(&p->s, "bytes")) {
        if (nbytes > 4096) return scan_error(&p->s, "a constant of at most 4096 bytes");
        unsigned char *data = ARENA_ARRAY(p->a, unsigned char, nbytes + 1);
        if (nbytes == 0) TRY(scan_expect(&p->s, "-"));
        for (int64_t k = 0; k < nbytes; k++) TRY(scan_hex_byte(&p->s, &data[k]));
        x.data = data;
    } else if (scan_accept_word(&p->s, "hash")) {
        TRY(scan_word(&p->s, hash, sizeof hash));
        x.hash = arena_strdup(p->a, hash);
    }
    vec_push(&p->g->consts, x);
    return ST_OK;
}

static Status parse_input(Parser *p) {
    int64_t i, dim;
    Input x = {0};
    char role[32] = "";
    TRY(scan_int(&p->s, &i));
    if (i != p->g->inputs.len) return scan_error(&p->s, "inputs in order");
    TRY(scan_string(&p->s, p->a, &x.name));
    TRY(parse_type(p, &x.dtype, &x.shape));
    TRY(scan_expect(&p->s, "role"));
    if (!scan_accept(&p->s, "?")) TRY(scan_word(&p->s, role, sizeof role));
    for (int r = ROLE_TOKENS; r <= ROLE_OTHER; r++)
        if (!strcmp(role, role_name((Role)r))) x.role = (Role)r;
    if (role[0] && x.role == ROLE_UNKNOWN) return scan_error(&p->s, "a role");
    TRY(scan_expect(&p->s, "batch_dim"));
    TRY(scan_int(&p->s, &dim));
    x.batch_dim = (int)dim;
    TRY(scan_expect(&p->s, "seq_dim"));
    TRY(scan_int(&p->s, &dim));
    x.seq_dim = (int)dim;
    if (x.batch_dim < -1 || x.batch_dim >= x.shape.ndim || x.seq_dim < -1 || x.seq_dim >= x.shape.ndim)
        return scan_error(&p->s, "a dim of the input");
    vec_push(&p->g->inputs, x);
    return ST_OK;
}

static Status parse_layout(Parser *p) {
    int64_t id, extent;
    TRY(scan_expect(&p->s, "@"));
    TRY(scan_int(&p->s, &id));
    if (id != p->layout.len) return scan_error(&p->s, "layouts in order");
    TRY(scan_int(&p->s, &extent));
    TRY(scan_expect(&p->s, ":"));
    int nranks = graph_nranks(p->g);
    VEC(Span) span = {0};
    int32_t *nspan = ARENA_ARRAY(p->a, int32_t, nranks);
    Status st = ST_OK;
    for (int r = 0; r < nranks && st == ST_OK; r++) {
        if (r) st = scan_expect(&p->s, "|");
        if (st == ST_OK && scan_accept(&p->s, "-")) continue;
        while (st == ST_OK && scan_accept(&p->s, "[")) {
            Span x;
            st = scan_int(&p->s, &x.begin);
            if (st == ST_OK) st = scan_expect(&p->s, ",");
            if (st == ST_OK) st = scan_int(&p->s, &x.end);
            if (st == ST_OK) st = scan_expect(&p->s, ")");
            if (st == ST_OK && (x.begin < 0 || x.begin >= x.end || x.end > extent))
                st = scan_error(&p->s, "an interval of the axis");
            vec_push(&span, x);
            nspan[r]++;
        }
    }
    if (st == ST_OK) vec_push(&p->layout, layouts_intern(p->g->layouts, extent, nspan, span.data));
    vec_free(&span);
    return st;
}

// ---- nodes ----------------------------------------------------------------------------------------------------------------

static Status parse_instr(Parser *p, int i, Instr *x) {
    static const char *const leaf[] = {"const", "input", "b", "h", "q", "k", "vec_q", "vec_k", "index"};
    static const char *const reduction[] = {"row_sum", "row_max", "col_sum"};
    char name[32];
    int64_t at;
    *x = (Instr){.a = -1, .b = -1, .c = -1};
    TRY(scan_expect(&p->s, "$"));
    TRY(scan_int(&p->s, &at));
    if (at != i) return scan_error(&p->s, "instructions in order");
    TRY(scan_expect(&p->s, ":"));
    TRY(scan_word(&p->s, name, sizeof name));
    if (!dtype_from_name(name, &x->dtype)) return scan_error(&p->s, "a dtype");
    TRY(scan_expect(&p->s, "="));
    TRY(scan_word(&p->s, name, sizeof name));
    if (scan_accept(&p->s, "(")) {
        OpKind op;
        x->code = -1;
        for (int k = 0; k < 3; k++)
            if (!strcmp(name, reduction[k])) x->code = PROG_ROW_SUM + k;
        bool reduces = x->code >= 0;
        if (!reduces && (!op_from_name(name, &op) || !op_is_pointwise(op))) return scan_error(&p->s, "a pointwise op");
        if (!reduces) x->code = PROG_OP + (int32_t)op;
        int32_t *const arg[3] = {&x->a, &x->b, &x->c};
        for (int k = 0; !scan_accept(&p->s, ")"); k++) {
            if (k == (reduces ? 1 : 3)) return scan_error(&p->s, reduces ? "one operand" : "at most 3 operands");
            if (k) TRY(scan_expect(&p->s, ","));
            TRY(scan_expect(&p->s, "$"));
            TRY(scan_int(&p->s, &at));
            if (at < 0 || at >= i) return scan_error(&p->s, "an earlier instruction");
            *arg[k] = (int32_t)at;
        }
        return scan_expect(&p->s, ";");
    }
    x->code = -1;
    for (int k = 0; k < 9; k++)
        if (!strcmp(name, leaf[k])) x->code = k;
    if (x->code < 0) return scan_error(&p->s, "an instruction");
    if (x->code == PROG_CONST) TRY(scan_double(&p->s, &x->imm));
    if (x->code == PROG_INPUT || x->code == PROG_VEC_Q || x->code == PROG_VEC_K || x->code == PROG_INDEX) {
        TRY(scan_int(&p->s, &at));
        if (at < 0 || at > 4096) return scan_error(&p->s, "an operand slot");
        x->a = (int32_t)at;
    }
    return scan_expect(&p->s, ";");
}

static Status parse_program(Parser *p, const Program **out) {
    enum { MAX_INSTR = 4096, MAX_OUT = 64 };  // more than any pass makes
    Program *prog = ARENA_NEW(p->a, Program);
    Instr instr[MAX_INSTR];
    int32_t result[MAX_OUT];
    TRY(scan_expect(&p->s, "{"));
    while (!scan_accept_word(&p->s, "out")) {
        if (prog->ninstr == MAX_INSTR) return scan_error(&p->s, "a shorter program");
        TRY(parse_instr(p, prog->ninstr, &instr[prog->ninstr]));
        prog->ninstr++;
    }
    while (!scan_accept(&p->s, "}")) {
        int64_t at = -1;
        if (prog->nout == MAX_OUT) return scan_error(&p->s, "fewer results");
        if (!scan_accept(&p->s, "-")) {
            TRY(scan_expect(&p->s, "$"));
            TRY(scan_int(&p->s, &at));
            if (at < 0 || at >= prog->ninstr) return scan_error(&p->s, "an instruction of the program");
        }
        result[prog->nout++] = (int32_t)at;
    }
    prog->instr = arena_copy(p->a, instr, sizeof *instr * (size_t)prog->ninstr);
    prog->out = arena_copy(p->a, result, sizeof *result * (size_t)prog->nout);
    *out = prog;
    return ST_OK;
}

static Status parse_ints(Parser *p, Attr *x) {
    enum { MAX_INTS = 1 << 20 };  // the intervals of an assemble
    VEC(int64_t) ints = {0};
    Status st = scan_expect(&p->s, "[");
    while (st == ST_OK && !scan_accept(&p->s, "]")) {
        int64_t v = 0;
        if (ints.len == MAX_INTS) st = scan_error(&p->s, "a shorter list");
        if (st == ST_OK && ints.len) st = scan_expect(&p->s, ",");
        if (st == ST_OK) st = scan_int(&p->s, &v);
        if (st == ST_OK) vec_push(&ints, v);
    }
    if (st == ST_OK) x->n = (int32_t)ints.len, x->u.ints = arena_copy(p->a, ints.data, sizeof(int64_t) * (size_t)ints.len);
    vec_free(&ints);
    return st;
}

static Status parse_attr(Parser *p, Attr *x) {
    char name[32], word[16];
    DType t;
    TRY(scan_word(&p->s, name, sizeof name));
    TRY(scan_expect(&p->s, "="));
    *x = (Attr){.key = ATTR_COUNT};
    for (int k = 0; k < ATTR_COUNT; k++)
        if (!strcmp(name, attr_name((AttrKey)k))) x->key = (AttrKey)k;
    if (x->key == ATTR_COUNT) return scan_error(&p->s, "an attribute");
    switch (attr_kind(x->key)) {
        case ATTRK_INT:
            if (x->key != ATTR_DTYPE) return scan_int(&p->s, &x->u.i);
            TRY(scan_word(&p->s, word, sizeof word));
            if (!dtype_from_name(word, &t)) return scan_error(&p->s, "a dtype");
            x->u.i = t;
            return ST_OK;
        case ATTRK_FLOAT: return scan_double(&p->s, &x->u.f);
        case ATTRK_STR: return scan_string(&p->s, p->a, &x->u.str);
        case ATTRK_PROG: return parse_program(p, &x->u.prog);
        case ATTRK_INTS: break;
    }
    return parse_ints(p, x);
}

static Status parse_placement(Parser *p, int ndim, Placement *out) {
    int64_t dim, id;
    *out = (Placement){0};
    if (scan_accept_word(&p->s, "replicate")) {
        *out = REPLICATE;
    } else if (scan_accept_word(&p->s, "partial")) {
        TRY(scan_expect(&p->s, "("));
        *out = scan_accept_word(&p->s, "max") ? PARTIAL_MAX : PARTIAL_SUM;
        if (out->reduce == RED_SUM) TRY(scan_expect(&p->s, "sum"));
        TRY(scan_expect(&p->s, ")"));
    } else if (scan_accept_word(&p->s, "shard")) {
        TRY(scan_expect(&p->s, "("));
        TRY(scan_int(&p->s, &dim));
        TRY(scan_expect(&p->s, ","));
        TRY(scan_expect(&p->s, "@"));
        TRY(scan_int(&p->s, &id));
        if (dim < 0 || dim >= ndim) return scan_error(&p->s, "a dim of the value");
        if (id < 0 || id >= p->layout.len) return scan_error(&p->s, "a layout of the table");
        *out = shard_on((int)dim, p->layout.data[id]);
        if (scan_accept(&p->s, ",")) {
            TRY(scan_expect(&p->s, "sum"));
            out->reduce = RED_SUM;
        }
        TRY(scan_expect(&p->s, ")"));
    }
    return ST_OK;
}

enum { MAX_RESULTS = 64, MAX_OPERANDS = 4096, MAX_ATTRS = 32 };

static Status parse_results(Parser *p, NodeId made, int nout) {
    for (int j = 0; j < nout; j++) {
        DType t;
        Shape shape;
        if (j) TRY(scan_expect(&p->s, ","));
        TRY(parse_type(p, &t, &shape));
        if (j >= graph_node(p->g, made)->nout) return scan_error(&p->s, "as many results as the op has");
        Value *v = graph_value(p->g, graph_node(p->g, made)->out[j]);
        if (v->dtype != t || !shape_equal(&v->shape, &shape)) return scan_error(&p->s, "the type that the op infers");
        TRY(parse_placement(p, shape.ndim, &v->place));
    }
    if (nout != graph_node(p->g, made)->nout) return scan_error(&p->s, "as many results as the op has");
    return ST_OK;
}

static Status parse_node(Parser *p) {
    int64_t id;
    const char *name[MAX_RESULTS] = {0};
    int nout = 0, nin = 0, nattr = 0;
    do {
        if (nout == MAX_RESULTS) return scan_error(&p->s, "fewer results");
        TRY(scan_expect(&p->s, "%"));
        TRY(scan_int(&p->s, &id));
        if (id != p->value.len + nout) return scan_error(&p->s, "values numbered in order");
        if (scan_peek(&p->s) == '"') TRY(scan_string(&p->s, p->a, &name[nout]));
        nout++;
    } while (scan_accept(&p->s, ","));
    char word[32];
    OpKind op;
    TRY(scan_expect(&p->s, "="));
    TRY(scan_word(&p->s, word, sizeof word));
    if (!op_from_name(word, &op)) return scan_error(&p->s, "an op");
    ValueId in[MAX_OPERANDS];
    TRY(scan_expect(&p->s, "("));
    while (!scan_accept(&p->s, ")")) {
        if (nin == MAX_OPERANDS) return scan_error(&p->s, "fewer operands");
        if (nin) TRY(scan_expect(&p->s, ","));
        TRY(scan_expect(&p->s, "%"));
        TRY(scan_int(&p->s, &id));
        if (id < 0 || id >= p->value.len) return scan_error(&p->s, "an operand made earlier");
        in[nin++] = p->value.data[id];
    }
    Attr attr[MAX_ATTRS];
    if (scan_accept(&p->s, "{")) {
        do {
            if (nattr == MAX_ATTRS) return scan_error(&p->s, "fewer attributes");
            TRY(parse_attr(p, &attr[nattr++]));
        } while (scan_accept(&p->s, ","));
        TRY(scan_expect(&p->s, "}"));
    }
    NodeId made;
    if (graph_add(p->g, op, nin, in, nattr, attr, NULL, p->phase, &made, p->s.d) != ST_OK)
        return diag_where(p->s.d, "%s:%d", p->s.file, p->s.line);
    TRY(scan_expect(&p->s, ":"));
    TRY(parse_results(p, made, nout));
    for (int j = 0; j < nout; j++) {
        ValueId v = graph_node(p->g, made)->out[j];
        graph_value(p->g, v)->name = name[j];
        vec_push(&p->value, v);
    }
    if (scan_accept_word(&p->s, "why")) TRY(scan_string(&p->s, p->a, &graph_node(p->g, made)->note));
    if (scan_accept_word(&p->s, "at")) TRY(scan_string(&p->s, p->a, &graph_node(p->g, made)->source));
    return ST_OK;
}

static Status parse_return(Parser *p) {
    static const char *const kinds[] = {"loss", "grad", "state", "aux"};
    char word[16];
    int64_t param, slot, id;
    const char *name;
    int kind = -1;
    TRY(scan_word(&p->s, word, sizeof word));
    for (int k = 0; k < 4; k++)
        if (!strcmp(word, kinds[k])) kind = k;
    if (kind < 0) return scan_error(&p->s, "loss, grad, state or aux");
    TRY(scan_int(&p->s, &param));
    TRY(scan_int(&p->s, &slot));
    TRY(scan_expect(&p->s, "%"));
    TRY(scan_int(&p->s, &id));
    TRY(scan_string(&p->s, p->a, &name));
    bool of_param = kind == OUT_GRAD || kind == OUT_STATE;
    if (id < 0 || id >= p->value.len) return scan_error(&p->s, "a value of the graph");
    if (param < -1 || param >= p->g->params.len || (of_param && param < 0) || slot < 0 || slot > 2)
        return scan_error(&p->s, "a parameter and slot");
    graph_add_output(p->g, (OutputKind)kind, (int32_t)param, (int32_t)slot, name, p->value.data[id]);
    return ST_OK;
}

static Status parse_line(Parser *p) {
    if (scan_peek(&p->s) == '%') return parse_node(p);
    if (scan_accept_word(&p->s, "param")) return parse_param(p);
    if (scan_accept_word(&p->s, "const")) return parse_const(p);
    if (scan_accept_word(&p->s, "input")) return parse_input(p);
    if (scan_accept_word(&p->s, "layout")) return parse_layout(p);
    if (scan_accept_word(&p->s, "return")) return parse_return(p);
    for (int k = 0; k < PHASE_COUNT; k++)
        if (scan_accept_word(&p->s, phase_name((Phase)k))) {
            p->phase = (Phase)k;
            return scan_expect(&p->s, ":");
        }
    return scan_error(&p->s, "param, const, input, layout, a phase, a node or return");
}

static Status parse_header(Parser *p, Graph **out) {
    int64_t version, batch, seq, ranks;
    const char *name;
    TRY(scan_expect(&p->s, "autosp.graph"));
    TRY(scan_int(&p->s, &version));
    if (version != 1) return scan_error(&p->s, "version 1");
    TRY(scan_string(&p->s, p->a, &name));
    TRY(scan_expect(&p->s, "batch"));
    TRY(scan_int(&p->s, &batch));
    TRY(scan_expect(&p->s, "seq"));
    TRY(scan_int(&p->s, &seq));
    TRY(scan_expect(&p->s, "ranks"));
    TRY(scan_int(&p->s, &ranks));
    if (ranks < 1 || ranks > 65536) return scan_error(&p->s, "between 1 and 65536 ranks");
    *out = p->g = graph_new(p->a, name, (int)ranks);
    p->g->batch = batch;
    p->g->seq = seq;
    return ST_OK;
}

Status graph_parse(Arena *a, const char *text, const char *file, Graph **out, Diag *d) {
    Parser p = {.a = a, .s = {.at = text, .file = file, .line = 1, .d = d}};
    *out = NULL;
    Status st = parse_header(&p, out);
    while (st == ST_OK && scan_peek(&p.s)) st = parse_line(&p);
    vec_free(&p.layout);
    vec_free(&p.value);
    return st;
}

Status graph_parse_file(Arena *a, const char *path, Graph **out, Diag *d) {
    *out = NULL;
    FILE *f = fopen(path, "rb");
    if (!f) return diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
    Str text = {0};
    char buf[65536];
    for (size_t n; (n = fread(buf, 1, sizeof buf, f)) > 0;) str_addn(&text, buf, n);
    bool bad = ferror(f);
    fclose(f);
    Status st = bad ? diag_error(d, ST_IO, "%s: cannot read", path) : graph_parse(a, str_text(&text), path, out, d);
    str_free(&text);
    return st;
}
