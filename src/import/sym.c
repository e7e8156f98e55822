// The expression parser: recursive descent over Python's operators, sympy's constructor calls, and L['input'].size()[i].
#include "import/sym.h"
#include <ctype.h>
#include "import/sym_build.h"

#define MAX_DEPTH 100
#define MAX_TERMS 512       // of one call or operator chain
#define MAX_TOKENS 20000

typedef struct Item {       // a number, or a condition
    Pred *pred;
    Num num;
} Item;

typedef struct Parser {
    const SymScope *scope;
    Arena *a;
    const char *text, *at;
    int depth, ntoken;
    Diag *d;
} Parser;

static Status parse_any(Parser *p, Item *out);

static Status fail(Parser *p, const char *why) {
    return diag_error(p->d, ST_UNSUPPORTED, "cannot read the expression \"%.300s\": %s at \"%.40s\"", p->text, why, p->at);
}

static void skip_space(Parser *p) {
    while (isspace((unsigned char)*p->at)) p->at++;
}

// Takes `token` if it is next. Words must end at a word's end; "<" does not take the "<" of "<=", nor "*" that of "**".
static bool take(Parser *p, const char *token) {
    skip_space(p);
    size_t n = strlen(token);
    if (strncmp(p->at, token, n) != 0) return false;
    char next = p->at[n];
    if (isalpha((unsigned char)token[0]) && (isalnum((unsigned char)next) || next == '_' || next == '.')) return false;
    if (n == 1 && strchr("<>=", token[0]) && next == '=') return false;
    if (n == 1 && strchr("*/", token[0]) && next == token[0]) return false;
    p->at += n;
    return true;
}

static Status number_of(Parser *p, const Item *x, Num *out) {
    if (x->pred) return fail(p, "a condition where a number is expected");
    *out = x->num;
    return ST_OK;
}

static Status pred_of(Parser *p, const Item *x, Pred **out) {
    if (!x->pred) return fail(p, "a number where a condition is expected");
    *out = x->pred;
    return ST_OK;
}

// ---- atoms ---------------------------------------------------------------------------------------------------------------
static Status parse_literal(Parser *p, Num *out) {
    int64_t v = 0, den = 1;
    bool point = false;
    for (; isdigit((unsigned char)*p->at) || (*p->at == '.' && !point); p->at++) {
        if (*p->at == '.') {
            point = true;
            continue;
        }
        if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*p->at - '0'), &v) ||
            (point && __builtin_mul_overflow(den, (int64_t)10, &den)))
            return fail(p, "a number too large");
    }
    if (isalpha((unsigned char)*p->at)) return fail(p, "a number in a form not understood");
    for (; den > 1 && v % 10 == 0; v /= 10) den /= 10;  // 2.0 is 2
    *out = (Num){sym_int(p->a, v), den};
    return ST_OK;
}

// A quoted string without escapes, into the arena.
static Status parse_string(Parser *p, const char **out) {
    skip_space(p);
    char quote = *p->at;
    const char *end = quote == '\'' || quote == '"' ? strchr(p->at + 1, quote) : NULL;
    if (!end || memchr(p->at, '\\', (size_t)(end - p->at))) return fail(p, "a quoted name expected");
    *out = arena_strndup(p->a, p->at + 1, (size_t)(end - p->at - 1));
    p->at = end + 1;
    return ST_OK;
}

static Status symbol_named(Parser *p, const char *name, Num *out) {
    int64_t index = -1;
    if (p->scope->table) index = symtable_intern(p->scope->table, name);
    const Archive *ar = p->scope->archive;
    for (int i = 0; ar && index < 0 && i < ar->nsymbol; i++)
        if (strcmp(ar->symbol[i].name, name) == 0) index = i;
    if (index < 0) return fail(p, "an unknown symbol");
    Sym *s = ARENA_NEW(p->a, Sym);
    *s = (Sym){.op = SYM_SYMBOL, .value = index};
    *out = (Num){s, 1};
    return ST_OK;
}

// Inputs are dense row-major when they are bound, so a stride is the product of the sizes to its right.
static Num input_stride(Parser *p, const AtenUserInput *u, int64_t dim) {
    int n = 0;
    Sym *arg[MAX_DIMS + 1] = {sym_int(p->a, 1)};
    for (n = 1; dim + n < u->ndim; n++) arg[n] = u->size[dim + n];
    return (Num){sym_nary(p->a, SYM_MUL, n, arg), 1};
}

// L['x'].size()[1], .stride()[1], .storage_offset(), .dim(): "L" is already taken.
static Status parse_input(Parser *p, Num *out) {
    const char *name;
    if (!take(p, "[")) return fail(p, "L['input'] expected");
    TRY(parse_string(p, &name));
    const AtenUserInput *u = NULL;
    const Archive *ar = p->scope->archive;
    for (int i = 0; ar && i < ar->nuser; i++)
        if (strcmp(ar->user[i].name, name) == 0) u = &ar->user[i];
    if (!take(p, "]") || !u) return fail(p, "not an input of the program");
    if (take(p, ".storage_offset") && take(p, "(") && take(p, ")")) {
        *out = (Num){sym_int(p->a, 0), 1};
        return ST_OK;
    }
    if ((take(p, ".dim") && take(p, "(") && take(p, ")")) || take(p, ".ndim")) {
        *out = (Num){sym_int(p->a, u->ndim), 1};
        return ST_OK;
    }
    bool stride = take(p, ".stride");
    if (!stride && !take(p, ".size")) return fail(p, "a property of an input that is not understood");
    Num dim;
    if (!take(p, "(") || !take(p, ")") || !take(p, "[")) return fail(p, "()[dim] expected");
    skip_space(p);
    TRY(parse_literal(p, &dim));
    if (!take(p, "]") || dim.den != 1 || dim.num->value < 0 || dim.num->value >= u->ndim) return fail(p, "no such dimension");
    *out = stride ? input_stride(p, u, dim.num->value) : (Num){u->size[dim.num->value], 1};
    return ST_OK;
}

// ---- calls ---------------------------------------------------------------------------------------------------------------
typedef enum CallKind {
    CALL_NARY, CALL_NUM2, CALL_SAME, CALL_INT, CALL_FLOOR, CALL_CEIL, CALL_COMPARE, CALL_GREATER, CALL_LOGIC
} CallKind;
typedef bool (*NumFn)(Arena *, Num, Num, Num *);
typedef struct Call {
    const char *name;
    CallKind kind;
    int op;        // SymOp or PredOp
    NumFn fn;      // CALL_NUM2
} Call;

static const Call calls[] = {
    {"Add", CALL_NARY, SYM_ADD, NULL}, {"Mul", CALL_NARY, SYM_MUL, NULL},
    {"Min", CALL_NARY, SYM_MIN, NULL}, {"min", CALL_NARY, SYM_MIN, NULL}, {"torch.sym_min", CALL_NARY, SYM_MIN, NULL},
    {"Max", CALL_NARY, SYM_MAX, NULL}, {"max", CALL_NARY, SYM_MAX, NULL}, {"torch.sym_max", CALL_NARY, SYM_MAX, NULL},
    {"Pow", CALL_NUM2, 0, num_power}, {"PowByNatural", CALL_NUM2, 0, num_power},
    {"Mod", CALL_NUM2, 0, num_mod}, {"PythonMod", CALL_NUM2, 0, num_mod},
    {"FloorDiv", CALL_NUM2, 0, num_floordiv}, {"CleanDiv", CALL_NUM2, 0, num_floordiv},
    {"Rational", CALL_NUM2, 0, num_divide}, {"IntTrueDiv", CALL_NUM2, 0, num_divide}, {"FloatTrueDiv", CALL_NUM2, 0, num_divide},
    {"Integer", CALL_SAME, 0, NULL}, {"Identity", CALL_SAME, 0, NULL}, {"ToFloat", CALL_SAME, 0, NULL},
    {"float", CALL_SAME, 0, NULL}, {"int", CALL_INT, 0, NULL}, {"TruncToInt", CALL_INT, 0, NULL},
    {"floor", CALL_FLOOR, 0, NULL}, {"FloorToInt", CALL_FLOOR, 0, NULL}, {"math.floor", CALL_FLOOR, 0, NULL},
    {"ceiling", CALL_CEIL, 0, NULL}, {"CeilToInt", CALL_CEIL, 0, NULL}, {"math.ceil", CALL_CEIL, 0, NULL},
    {"Eq", CALL_COMPARE, PRED_EQ, NULL}, {"Equality", CALL_COMPARE, PRED_EQ, NULL},
    {"Ne", CALL_COMPARE, PRED_NE, NULL}, {"Unequality", CALL_COMPARE, PRED_NE, NULL},
    {"Lt", CALL_COMPARE, PRED_LT, NULL}, {"StrictLessThan", CALL_COMPARE, PRED_LT, NULL},
    {"Le", CALL_COMPARE, PRED_LE, NULL}, {"LessThan", CALL_COMPARE, PRED_LE, NULL},
    {"Gt", CALL_GREATER, PRED_LT, NULL}, {"StrictGreaterThan", CALL_GREATER, PRED_LT, NULL},
    {"Ge", CALL_GREATER, PRED_LE, NULL}, {"GreaterThan", CALL_GREATER, PRED_LE, NULL},
    {"And", CALL_LOGIC, PRED_AND, NULL}, {"Or", CALL_LOGIC, PRED_OR, NULL}, {"Not", CALL_LOGIC, PRED_NOT, NULL},
};

static Pred *pred_join(Parser *p, PredOp op, Pred *a, Pred *b) {
    Pred *q = ARENA_NEW(p->a, Pred);
    *q = (Pred){.op = op, .a = a, .b = b};
    return q;
}

static Status call_logic(Parser *p, PredOp op, int n, const Item *x, Item *out) {
    if (n < 1 || (op == PRED_NOT && n != 1)) return fail(p, "a wrong number of arguments");
    TRY(pred_of(p, &x[0], &out->pred));
    if (op == PRED_NOT) out->pred = pred_join(p, op, out->pred, NULL);
    for (int i = 1; i < n; i++) {
        Pred *q = NULL;
        TRY(pred_of(p, &x[i], &q));
        out->pred = pred_join(p, op, out->pred, q);
    }
    return ST_OK;
}

static Status compare(Parser *p, PredOp op, Num x, Num y, Item *out) {
    out->pred = pred_compare(p->a, op, x, y);
    return out->pred ? ST_OK : fail(p, "a number too large");
}

static Status apply_call(Parser *p, const Call *c, int n, const Item *x, Item *out) {
    if (c->kind == CALL_LOGIC) return call_logic(p, (PredOp)c->op, n, x, out);
    int want = c->kind == CALL_NUM2 || c->kind == CALL_COMPARE || c->kind == CALL_GREATER ? 2 : 1;
    if (c->kind == CALL_NARY ? n < 1 : n != want) return fail(p, "a wrong number of arguments");
    Num *v = ARENA_ARRAY(p->a, Num, n);
    for (int i = 0; i < n; i++) TRY(number_of(p, &x[i], &v[i]));
    bool ok = true;
    switch (c->kind) {
    case CALL_NARY: ok = num_combine(p->a, (SymOp)c->op, n, v, &out->num); break;
    case CALL_NUM2: ok = c->fn(p->a, v[0], v[1], &out->num); break;
    case CALL_SAME: out->num = v[0]; break;
    case CALL_INT: out->num = v[0]; ok = v[0].den == 1; break;
    case CALL_FLOOR: ok = num_floordiv(p->a, v[0], (Num){sym_int(p->a, 1), 1}, &out->num); break;
    case CALL_CEIL: ok = num_ceil(p->a, v[0], &out->num); break;
    case CALL_COMPARE: return compare(p, (PredOp)c->op, v[0], v[1], out);
    case CALL_GREATER: return compare(p, (PredOp)c->op, v[1], v[0], out);
    case CALL_LOGIC: break;
    }
    return ok ? ST_OK : fail(p, "arithmetic that is not whole or too large");
}

// Keyword arguments (positive=True, integer=True, evaluate=False) say nothing that matters here.
static bool take_keyword(Parser *p) {
    skip_space(p);
    const char *s = p->at;
    while (isalnum((unsigned char)*s) || *s == '_') s++;
    if (s == p->at || *s != '=' || s[1] == '=') return false;
    s++;
    const char *value = s;
    while (isalnum((unsigned char)*s)) s++;
    if (s == value) return false;
    p->at = s;
    return true;
}

static Status parse_symbol_call(Parser *p, Num *out) {
    const char *name;
    TRY(parse_string(p, &name));
    while (take(p, ","))
        if (!take_keyword(p)) return fail(p, "an argument of Symbol not understood");
    if (!take(p, ")")) return fail(p, "')' expected");
    return symbol_named(p, name, out);
}

static Status parse_call(Parser *p, const char *name, Item *out) {
    if (strcmp(name, "Symbol") == 0) return parse_symbol_call(p, &out->num);
    const Call *c = NULL;
    for (size_t i = 0; i < sizeof calls / sizeof *calls && !c; i++)
        if (strcmp(calls[i].name, name) == 0) c = &calls[i];
    if (!c) return fail(p, "an unknown function");
    VEC(Item) arg = {0};
    Status st = ST_OK;
    bool more = !take(p, ")");
    while (st == ST_OK && more) {
        Item x = {0};
        if (!take_keyword(p)) {
            st = arg.len >= MAX_TERMS ? fail(p, "too many arguments") : parse_any(p, &x);
            vec_push(&arg, x);
        }
        more = st == ST_OK && take(p, ",");
        if (st == ST_OK && !more && !take(p, ")")) st = fail(p, "')' expected");
    }
    if (st == ST_OK) st = apply_call(p, c, (int)arg.len, arg.data, out);
    vec_free(&arg);
    return st;
}

static Status parse_atom(Parser *p, Item *out) {
    skip_space(p);
    if (++p->ntoken > MAX_TOKENS) return fail(p, "an expression too long");
    if (isdigit((unsigned char)*p->at)) return parse_literal(p, &out->num);
    if (take(p, "(")) {
        TRY(parse_any(p, out));
        return take(p, ")") ? ST_OK : fail(p, "')' expected");
    }
    bool yes = take(p, "True") || take(p, "true");
    if (yes || take(p, "False") || take(p, "false")) {
        out->pred = ARENA_NEW(p->a, Pred);
        *out->pred = (Pred){.op = PRED_CONST, .value = yes};
        return ST_OK;
    }
    const char *s = p->at;
    if (!isalpha((unsigned char)*s) && *s != '_') return fail(p, "a number or name expected");
    while (isalnum((unsigned char)*s) || *s == '_' || *s == '.') s++;
    char *name = arena_strndup(p->a, p->at, (size_t)(s - p->at));
    p->at = s;
    if (strcmp(name, "L") == 0) return parse_input(p, &out->num);
    if (take(p, "(")) return parse_call(p, name, out);
    return symbol_named(p, name, &out->num);
}

// ---- operators, tightest first -------------------------------------------------------------------------------------------
static Status parse_unary(Parser *p, Item *out) {
    if (p->depth >= MAX_DEPTH) return fail(p, "too deeply nested");
    p->depth++;
    Status st;
    if (take(p, "-")) {
        Num x[2] = {{sym_int(p->a, -1), 1}};
        st = parse_unary(p, out);
        if (st == ST_OK) st = number_of(p, out, &x[1]);
        if (st == ST_OK && x[1].num->op == SYM_INT) out->num = (Num){sym_int(p->a, -x[1].num->value), x[1].den};
        else if (st == ST_OK && !num_combine(p->a, SYM_MUL, 2, x, &out->num)) st = fail(p, "a number too large");
    } else {
        st = parse_atom(p, out);
        if (st == ST_OK && take(p, "**")) {
            Item e = {0};
            Num x, y;
            st = parse_unary(p, &e);
            if (st == ST_OK) st = number_of(p, out, &x);
            if (st == ST_OK) st = number_of(p, &e, &y);
            if (st == ST_OK && !num_power(p->a, x, y, &out->num)) st = fail(p, "a power that is not whole");
        }
    }
    p->depth--;
    return st;
}

static Status parse_term(Parser *p, Item *out) {
    TRY(parse_unary(p, out));
    for (int n = 0;; n++) {
        int op = take(p, "*") ? '*' : take(p, "//") ? '_' : take(p, "/") ? '/' : take(p, "%") ? '%' : 0;
        if (!op) return ST_OK;
        if (n >= MAX_TERMS) return fail(p, "an expression too long");
        Item rhs = {0};
        Num x[2];
        TRY(parse_unary(p, &rhs));
        TRY(number_of(p, out, &x[0]));
        TRY(number_of(p, &rhs, &x[1]));
        bool ok = op == '*' ? num_combine(p->a, SYM_MUL, 2, x, &out->num)
                : op == '_' ? num_floordiv(p->a, x[0], x[1], &out->num)
                : op == '/' ? num_divide(p->a, x[0], x[1], &out->num)
                            : num_mod(p->a, x[0], x[1], &out->num);
        if (!ok) return fail(p, "arithmetic that is not whole or too large");
    }
}

static Status parse_sum(Parser *p, Item *out) {
    TRY(parse_term(p, out));
    for (int n = 0;; n++) {
        bool minus = take(p, "-");
        if (!minus && !take(p, "+")) return ST_OK;
        if (n >= MAX_TERMS) return fail(p, "an expression too long");
        Item rhs = {0};
        Num x[2], neg[2] = {{sym_int(p->a, -1), 1}};
        TRY(parse_term(p, &rhs));
        TRY(number_of(p, out, &x[0]));
        TRY(number_of(p, &rhs, &x[1]));
        neg[1] = x[1];
        if ((minus && !num_combine(p->a, SYM_MUL, 2, neg, &x[1])) || !num_combine(p->a, SYM_ADD, 2, x, &out->num))
            return fail(p, "a number too large");
    }
}

// Chains as in Python: a < b <= c is a < b and b <= c.
static Status parse_comparison(Parser *p, Item *out) {
    TRY(parse_sum(p, out));
    Pred *all = NULL;
    for (int n = 0;; n++) {
        static const struct { const char *token; PredOp op; bool swap; } ops[] = {
            {"==", PRED_EQ, false}, {"!=", PRED_NE, false}, {"<=", PRED_LE, false},
            {">=", PRED_LE, true}, {"<", PRED_LT, false}, {">", PRED_LT, true}};
        size_t k = 0;
        while (k < sizeof ops / sizeof *ops && !take(p, ops[k].token)) k++;
        if (k == sizeof ops / sizeof *ops) break;
        if (n >= MAX_TERMS) return fail(p, "an expression too long");
        Item rhs = {0}, link = {0};
        Num x, y;
        TRY(parse_sum(p, &rhs));
        TRY(number_of(p, out, &x));
        TRY(number_of(p, &rhs, &y));
        TRY(compare(p, ops[k].op, ops[k].swap ? y : x, ops[k].swap ? x : y, &link));
        all = all ? pred_join(p, PRED_AND, all, link.pred) : link.pred;
        *out = rhs;
    }
    if (all) *out = (Item){.pred = all};
    return ST_OK;
}

static Status parse_not(Parser *p, Item *out) {
    int n = 0;
    while (take(p, "not")) n++;
    TRY(parse_comparison(p, out));
    if (n == 0) return ST_OK;
    TRY(pred_of(p, out, &out->pred));
    if (n % 2) out->pred = pred_join(p, PRED_NOT, out->pred, NULL);
    return ST_OK;
}

static Status parse_joined(Parser *p, bool is_or, Item *out) {
    TRY(is_or ? parse_joined(p, false, out) : parse_not(p, out));
    for (int n = 0; take(p, is_or ? "or" : "and"); n++) {
        if (n >= MAX_TERMS) return fail(p, "an expression too long");
        Item x[2] = {*out, {0}};
        TRY(is_or ? parse_joined(p, false, &x[1]) : parse_not(p, &x[1]));
        TRY(call_logic(p, is_or ? PRED_OR : PRED_AND, 2, x, out));
    }
    return ST_OK;
}

static Status parse_any(Parser *p, Item *out) {
    if (p->depth >= MAX_DEPTH) return fail(p, "too deeply nested");
    p->depth++;
    Status st = parse_joined(p, true, out);
    p->depth--;
    return st;
}

static Status parse_all(const SymScope *s, const char *text, Parser *p, Item *out, Diag *d) {
    *p = (Parser){.scope = s, .a = s->a, .text = text, .at = text, .d = d};
    TRY(parse_any(p, out));
    skip_space(p);
    return *p->at ? fail(p, "an operator not understood") : ST_OK;
}

Status sym_parse(const SymScope *s, const char *text, Sym **out, Diag *d) {
    Parser p;
    Item x = {0};
    Num v = {0};
    TRY(parse_all(s, text, &p, &x, d));
    TRY(number_of(&p, &x, &v));
    if (v.den != 1) return fail(&p, "a size that need not be whole");
    *out = v.num;
    return ST_OK;
}

Status pred_parse(const SymScope *s, const char *text, Pred **out, Diag *d) {
    Parser p;
    Item x = {0};
    TRY(parse_all(s, text, &p, &x, d));
    return pred_of(&p, &x, out);
}

int64_t symtable_intern(SymTable *t, const char *name) {
    int64_t i;
    if (map_get(t->index, name, &i)) return i;
    SymbolInfo s = {.name = arena_strdup(t->a, name), .min = 0, .max = INT64_MAX, .hint = SYM_UNBOUND};
    vec_push(&t->symbol, s);
    map_set(t->index, name, t->symbol.len - 1);
    return t->symbol.len - 1;
}
