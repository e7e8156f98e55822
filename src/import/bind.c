// Choosing a value for every symbol of an archive, and holding the user to the sizes it was exported for.
#include "import/sym.h"

typedef struct Binder {
    const Archive *ar;
    Arena *a;
    int64_t *values;
    const AtenUserInput *ref;  // its dims are the batch and the sequence; NULL if no input has any
    int64_t batch, seq;        // bound sizes; SYM_UNBOUND if the program has no such dim
    Pred **guard;
    Diag *d;
} Binder;

static const char *size_text(const Binder *b) {
    return arena_printf(b->a, "batch %lld, sequence length %lld", (long long)b->batch, (long long)b->seq);
}

// ---- solving -------------------------------------------------------------------------------------------------------------
static bool solve_pred(int64_t *values, const Pred *p) {
    if (p->op == PRED_EQ) return sym_solve(values, p->x, p->y);
    if (p->op != PRED_AND) return false;
    bool a = solve_pred(values, p->a), b = solve_pred(values, p->b);
    return a || b;
}

static void solve_guards(Binder *b) {
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < b->ar->nguard; i++) again = solve_pred(b->values, b->guard[i]) || again;
    }
}

// ---- the batch and the sequence ------------------------------------------------------------------------------------------
static int64_t example_of(const Binder *b, const Sym *s) {
    int64_t *hint = ARENA_ARRAY(b->a, int64_t, b->ar->nsymbol), v;
    for (int i = 0; i < b->ar->nsymbol; i++) hint[i] = b->ar->symbol[i].hint;
    return sym_value(s, hint, &v) == EVAL_OK ? v : SYM_UNBOUND;
}

// Binds dim `dim` of the reference input to `want` (0: its example size).
static Status bind_dim(Binder *b, int dim, int64_t want, const char *what, const char *option, int64_t *out) {
    *out = max_i64(want, 1);
    if (!b->ref || dim < 0) {
        if (want <= 1) return ST_OK;
        return diag_error(b->d, ST_INPUT, "the program has no %s dimension; leave out %s %lld", what, option, (long long)want);
    }
    const Sym *s = b->ref->size[dim];
    Sym number = {.op = SYM_INT, .value = want ? want : example_of(b, s)};
    if (number.value == SYM_UNBOUND)
        return diag_error(b->d, ST_INPUT, "the archive has no example %s; give %s", what, option);
    if (number.value < 1) return diag_error(b->d, ST_INPUT, "%s %lld is not possible", what, (long long)number.value);
    *out = number.value;
    if (s->op == SYM_INT) {
        if (s->value == number.value) return ST_OK;
        return diag_error(b->d, ST_INPUT, "%s is fixed at %lld in the archive, got %lld; export with that dimension dynamic",
                          what, (long long)s->value, (long long)number.value);
    }
    int64_t v;
    sym_solve(b->values, s, &number);
    if (sym_value(s, b->values, &v) == EVAL_OK && v == number.value) return ST_OK;
    Str text = {0};
    sym_print(b->ar, s, &text);
    Status st = diag_error(b->d, ST_INPUT, "%s %lld does not have the archive's form %.300s", what, (long long)number.value,
                           str_text(&text));
    str_free(&text);
    return st;
}

static bool is_open(const Binder *b, const Sym *s) { return s->op == SYM_SYMBOL && b->values[s->value] == SYM_UNBOUND; }

// Other inputs: a dim known to be the batch or the sequence takes its size; what guards conclude comes next; a dim that is
// neither keeps its example size.
static void bind_rest(Binder *b) {
    solve_guards(b);
    for (int i = 0; i < b->ar->nuser; i++) {
        const AtenUserInput *u = &b->ar->user[i];
        if (u->batch_dim >= 0 && is_open(b, u->size[u->batch_dim])) b->values[u->size[u->batch_dim]->value] = b->batch;
    }
    solve_guards(b);
    for (int i = 0; i < b->ar->nuser; i++) {
        const AtenUserInput *u = &b->ar->user[i];
        if (u->seq_dim >= 0 && is_open(b, u->size[u->seq_dim])) b->values[u->size[u->seq_dim]->value] = b->seq;
        solve_guards(b);
    }
    const AtenUserInput *ref = b->ref;
    int64_t batch0 = ref && ref->batch_dim >= 0 ? example_of(b, ref->size[ref->batch_dim]) : SYM_UNBOUND;
    int64_t seq0 = ref && ref->seq_dim >= 0 ? example_of(b, ref->size[ref->seq_dim]) : SYM_UNBOUND;
    for (int i = 0; i < b->ar->nuser; i++) {
        const AtenUserInput *u = &b->ar->user[i];
        for (int k = 0; k < u->ndim; k++) {
            if (!is_open(b, u->size[k])) continue;
            int64_t hint = b->ar->symbol[u->size[k]->value].hint;
            bool seq = hint == seq0 && hint != SYM_UNBOUND, batch = hint == batch0 && hint != SYM_UNBOUND && !seq;
            b->values[u->size[k]->value] = seq ? b->seq : batch ? b->batch : hint;
            solve_guards(b);
        }
    }
}

// ---- ranges and guards ---------------------------------------------------------------------------------------------------
// What to call symbol k; *batch says whether it is a batch size.
static const char *symbol_label(const Binder *b, int64_t k, bool *batch) {
    const char *label = NULL;
    *batch = false;
    for (int i = 0; i < b->ar->nuser; i++) {
        const AtenUserInput *u = &b->ar->user[i];
        for (int dim = 0; dim < u->ndim; dim++) {
            if (u->size[dim]->op != SYM_SYMBOL || u->size[dim]->value != k) continue;
            if (dim == u->batch_dim) *batch = true;
            if (u == b->ref && dim == u->seq_dim) label = "sequence length";
            if (u == b->ref && dim == u->batch_dim) label = "batch size";
            if (!label) label = arena_printf(b->a, "dim %d of input '%s',", dim, u->name);
        }
    }
    return label ? label : arena_printf(b->a, "size %s,", b->ar->symbol[k].name);
}

static Status check_range(const Binder *b, int64_t k) {
    const SymbolInfo *s = &b->ar->symbol[k];
    int64_t v = b->values[k];
    if (v == SYM_UNBOUND || (v >= s->min && v <= s->max)) return ST_OK;
    bool batch;
    const char *label = symbol_label(b, k, &batch);
    // The exporter writes 2 for every dynamic dim because it does not trace sizes 0 and 1; running its program with a batch of
    // 1 is allowed there too (torch/_export/utils.py: a minimum of 2 is not enforced).
    if (batch && v == 1 && s->min == 2) return ST_OK;
    const char *max = s->max == INT64_MAX ? "..." : arena_printf(b->a, "%lld", (long long)s->max);
    return diag_error(b->d, ST_INPUT, "%s %lld is outside the archive's range [%lld, %s]", label, (long long)v,
                      (long long)s->min, max);
}

static Status check_ranges(const Binder *b) {
    for (int64_t k = 0; k < b->ar->nsymbol; k++) TRY(check_range(b, k));
    for (int i = 0; i < b->ar->nuser; i++) {
        const AtenUserInput *u = &b->ar->user[i];
        for (int dim = 0; dim < u->ndim; dim++) {
            int64_t v;
            Status st = sym_eval(b->ar, u->size[dim], b->values, &v, b->d);
            if (st == ST_OK && v < 0) st = diag_error(b->d, ST_INPUT, "its size would be %lld", (long long)v);
            if (st != ST_OK) return diag_where(b->d, "dim %d of input '%s' at %s", dim, u->name, size_text(b));
        }
    }
    return ST_OK;
}

// The guard with L['x'].size()[1] written as S, B or x.size(1).
static const char *guard_words(const Binder *b, const char *text) {
    Str out = {0};
    while (*text) {
        char name[101];
        int dim, n = 0;
        const AtenUserInput *u = NULL;
        if (sscanf(text, "L['%100[^']'].size()[%9d]%n", name, &dim, &n) == 2 && n > 0)
            for (int i = 0; i < b->ar->nuser; i++)
                if (strcmp(b->ar->user[i].name, name) == 0) u = &b->ar->user[i];
        if (!u) {
            str_addn(&out, text++, 1);
            continue;
        }
        if (dim == u->seq_dim && u == b->ref) str_add(&out, "S");
        else if (dim == u->batch_dim && u == b->ref) str_add(&out, "B");
        else str_printf(&out, "%s.size(%d)", name, dim);
        text += n;
    }
    const char *words = arena_strdup(b->a, str_text(&out));
    str_free(&out);
    return words;
}

static Status check_guard(const Binder *b, int i) {
    bool holds = false;
    EvalResult e = pred_value(b->guard[i], b->values, &holds);
    if (e == EVAL_OK && holds) return ST_OK;
    const char *words = guard_words(b, b->ar->guard[i]);
    if (e == EVAL_OK)
        return diag_error(b->d, ST_INPUT, "the program was exported for %.600s; got B = %lld, S = %lld", words,
                          (long long)b->batch, (long long)b->seq);
    return diag_error(b->d, e == EVAL_UNBOUND ? ST_UNSUPPORTED : ST_INPUT, "the archive's guard %.600s has no value at %s",
                      words, size_text(b));
}

static Status parse_guards(Binder *b) {
    SymScope scope = {.a = b->a, .archive = b->ar};
    b->guard = ARENA_ARRAY(b->a, Pred *, b->ar->nguard);
    for (int i = 0; i < b->ar->nguard; i++)
        if (pred_parse(&scope, b->ar->guard[i], &b->guard[i], b->d) != ST_OK) return diag_where(b->d, "guard %d", i);
    return ST_OK;
}

static const AtenUserInput *reference_of(const Archive *ar) {
    const AtenUserInput *ref = NULL;
    for (int i = 0; i < ar->nuser; i++) {
        const AtenUserInput *u = &ar->user[i];
        if (u->seq_dim < 0) continue;
        if (u->role == ROLE_TOKENS) return u;
        if (!ref) ref = u;
    }
    return ref;
}

Status archive_bind(const Archive *ar, int64_t batch, int64_t seq, Arena *a, int64_t *values, Diag *d) {
    Binder b = {.ar = ar, .a = a, .values = values, .d = d, .ref = reference_of(ar)};
    if (batch < 0 || seq < 0)
        return diag_error(d, ST_INPUT, "batch %lld, sequence length %lld", (long long)batch, (long long)seq);
    for (int i = 0; i < ar->nsymbol; i++) values[i] = SYM_UNBOUND;
    TRY(parse_guards(&b));
    TRY(bind_dim(&b, b.ref ? b.ref->seq_dim : -1, seq, "sequence length", "--seq", &b.seq));
    TRY(bind_dim(&b, b.ref ? b.ref->batch_dim : -1, batch, "batch size", "--batch", &b.batch));
    bind_rest(&b);
    TRY(check_ranges(&b));
    for (int i = 0; i < ar->nguard; i++) TRY(check_guard(&b, i));
    return ST_OK;
}
