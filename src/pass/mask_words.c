// A mask program in words, for `autosp plan`: "causal & window 24 & same document", or the expression itself.
#include "ir/graph.h"
#include "ops/op.h"
#include "pass/pass.h"

static bool is_op(const Program *p, int x, OpKind op) { return p->instr[x].code == PROG_OP + (int)op; }
static bool is_leaf(const Program *p, int x, int code) { return p->instr[x].code == code; }
static bool is_const(const Program *p, int x, double *v) {
    *v = p->instr[x].imm;
    return p->instr[x].code == PROG_CONST;
}

// ---- expressions as text --------------------------------------------------------------------------------------------
static const char *infix(OpKind op) {
    switch (op) {
        case OP_ADD: return " + ";
        case OP_SUB: return " - ";
        case OP_MUL: return "*";
        case OP_DIV: return "/";
        case OP_FLOORDIV: return "//";
        case OP_MOD: return "%";
        case OP_EQ: return " == ";
        case OP_NE: return " != ";
        case OP_LT: return " < ";
        case OP_LE: return " <= ";
        case OP_GT: return " > ";
        case OP_GE: return " >= ";
        case OP_AND: return " & ";
        case OP_OR: return " | ";
        default: return NULL;
    }
}

static void print_leaf(const Instr *i, Str *s) {
    static const char *const index[] = {"b", "h", "q", "k"};
    if (i->code == PROG_CONST) str_printf(s, "%.9g", i->imm);
    else if (i->code >= PROG_INDEX_B && i->code <= PROG_INDEX_K) str_add(s, index[i->code - PROG_INDEX_B]);
    else str_printf(s, "vec%d[%s]", i->a, i->code == PROG_VEC_Q ? "q" : "k");
}

static void print_expr(const Program *p, int x, int depth, Str *s) {
    const Instr *i = &p->instr[x];
    if (i->code < PROG_OP) {
        print_leaf(i, s);
        return;
    }
    OpKind op = (OpKind)(i->code - PROG_OP);
    if (depth > 12 || s->len > 400) {
        str_add(s, "...");
        return;
    }
    if (op == OP_CAST) {
        print_expr(p, i->a, depth, s);
        return;
    }
    const char *mid = infix(op);
    if (mid) {
        if (depth > 0) str_add(s, "(");
        print_expr(p, i->a, depth + 1, s);
        str_add(s, mid);
        print_expr(p, i->b, depth + 1, s);
        if (depth > 0) str_add(s, ")");
        return;
    }
    str_printf(s, "%s(", op_name(op));
    const int32_t operand[3] = {i->a, i->b, i->c};
    for (int k = 0; k < program_op_arity((int)op); k++) {
        if (k) str_add(s, ", ");
        print_expr(p, operand[k], 1, s);
    }
    str_add(s, ")");
}

// ---- the usual terms ------------------------------------------------------------------------------------------------
// x == leaf + *offset
static bool leaf_plus(const Program *p, int x, int leaf, double *offset) {
    *offset = 0;
    if (is_leaf(p, x, leaf)) return true;
    if (!is_op(p, x, OP_ADD) && !is_op(p, x, OP_SUB)) return false;
    if (!is_leaf(p, p->instr[x].a, leaf) || !is_const(p, p->instr[x].b, offset)) return false;
    if (is_op(p, x, OP_SUB)) *offset = -*offset;
    return true;
}

static bool is_causal(const Program *p, int x) {
    return is_op(p, x, OP_LE) && is_leaf(p, p->instr[x].a, PROG_INDEX_K) && is_leaf(p, p->instr[x].b, PROG_INDEX_Q);
}

static bool print_prefix(const Program *p, int x, Str *s) {
    if (!is_op(p, x, OP_OR)) return false;
    int a = p->instr[x].a, b = p->instr[x].b;
    if (is_causal(p, b)) {
        int t = a;
        a = b, b = t;
    }
    double n;
    if (!is_causal(p, a) || !is_op(p, b, OP_LE) || !is_leaf(p, p->instr[b].a, PROG_INDEX_K)) return false;
    if (!is_const(p, p->instr[b].b, &n)) return false;
    str_printf(s, "prefix %.0f", n + 1);
    return true;
}

static bool print_compare(const Program *p, int x, Str *s) {
    if (p->instr[x].code < PROG_OP) return false;
    int a = p->instr[x].a, b = p->instr[x].b;
    double c;
    if (is_op(p, x, OP_LE) && leaf_plus(p, b, PROG_INDEX_Q, &c) && is_leaf(p, a, PROG_INDEX_K)) {
        if (c == 0) str_add(s, "causal");
        else str_printf(s, "causal %s %.0f", c < 0 ? "-" : "+", c < 0 ? -c : c);
        return true;
    }
    if (is_op(p, x, OP_LE) && is_leaf(p, a, PROG_INDEX_Q) && leaf_plus(p, b, PROG_INDEX_K, &c) && c >= 0) {
        str_printf(s, "window %.0f", c + 1);
        return true;
    }
    bool vecs = is_op(p, x, OP_EQ) && ((is_leaf(p, a, PROG_VEC_Q) && is_leaf(p, b, PROG_VEC_K)) ||
                                       (is_leaf(p, a, PROG_VEC_K) && is_leaf(p, b, PROG_VEC_Q)));
    if (vecs) str_add(s, "same document");
    return vecs;
}

// Words come in one order: causal, windows, documents, the rest.
static int term_rank(const Program *p, int x) {
    static const char *const first[] = {"causal", "window", "same"};
    Str t = {0};
    int rank = 3;
    if (print_compare(p, x, &t))
        for (int i = 2; i >= 0; i--)
            if (!strncmp(str_text(&t), first[i], strlen(first[i]))) rank = i;
    str_free(&t);
    return rank;
}

static void print_terms(const Program *p, int x, int rank, Str *s) {
    if (is_op(p, x, OP_AND)) {
        print_terms(p, p->instr[x].a, rank, s);
        print_terms(p, p->instr[x].b, rank, s);
        return;
    }
    if (term_rank(p, x) != rank) return;
    if (s->len) str_add(s, " & ");
    if (!print_compare(p, x, s) && !print_prefix(p, x, s)) print_expr(p, x, 1, s);
}

const char *mask_in_words(const Program *p, Arena *a) {
    Str s = {0};
    double v;
    bool all = !p || p->nout < 1 || p->out[0] < 0;
    if (all) str_add(&s, "full");
    else if (is_const(p, p->out[0], &v)) str_add(&s, v != 0 ? "full" : "nothing");
    else
        for (int rank = 0; rank < 4; rank++) print_terms(p, p->out[0], rank, &s);
    if (p && p->nout > 1 && p->out[1] >= 0) {
        str_add(&s, " + bias ");
        print_expr(p, p->out[1], 1, &s);
    }
    const char *text = arena_strdup(a, str_text(&s));
    str_free(&s);
    return text;
}
