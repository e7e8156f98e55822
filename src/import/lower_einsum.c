// einsum: the equation's letters become batch, free and contracted dims of dot. Several operands are contracted from the left.
#include "import/lower.h"

enum { MAX_TERMS = 8, MAX_LABELS = 52 + MAX_DIMS };

typedef struct Term {    // one operand: a label per dim. Letters are 0..51, the dims of "..." 52 + position from the right
    int n;
    int label[MAX_DIMS];
} Term;

typedef struct Equation {
    int nterm;
    Term term[MAX_TERMS];
    Term out;
} Equation;

static int letter(char c) { return c >= 'a' && c <= 'z' ? c - 'a' : c >= 'A' && c <= 'Z' ? 26 + c - 'A' : -1; }

// Parses one side's term; `ndim` >= 0 says how many dims "..." stands for, otherwise `ellipsis` does.
static const char *parse_term(Lower *l, const char *p, int ndim, int *ellipsis, Term *t) {
    int letters = 0, dots = 0;
    for (const char *q = p; *q && *q != ',' && *q != '-'; q++) {
        if (letter(*q) >= 0) letters++;
        if (*q == '.') dots++;
    }
    int wide = ndim >= 0 ? ndim - letters : *ellipsis;
    if (lower_failed(l)) return p;
    if ((dots != 0 && dots != 3) || (dots && wide < 0) || (ndim >= 0 && !dots && wide != 0) ||
        letters + (dots ? wide : 0) > MAX_DIMS) {
        lower_invalid(l, "an equation that does not fit its operands");
        return p;
    }
    if (dots && ndim >= 0 && wide > *ellipsis) *ellipsis = wide;
    for (; *p && *p != ',' && *p != '-'; p++) {
        if (*p == ' ') continue;
        if (letter(*p) >= 0) {
            t->label[t->n++] = letter(*p);
        } else if (!strncmp(p, "...", 3)) {
            for (int k = wide - 1; k >= 0; k--) t->label[t->n++] = 52 + k;
            p += 2;
        } else {
            lower_invalid(l, "character '%c' in an equation", *p);
            return p;
        }
    }
    return p;
}

// Without "->" the result has the dims of "...", then the letters that occur once, in order.
static void implicit_output(Equation *e, int ellipsis) {
    int count[MAX_LABELS] = {0};
    for (int i = 0; i < e->nterm; i++)
        for (int k = 0; k < e->term[i].n; k++) count[e->term[i].label[k]]++;
    for (int k = ellipsis - 1; k >= 0 && e->out.n < MAX_DIMS; k--) e->out.label[e->out.n++] = 52 + k;
    for (int c = 0; c < 52 && e->out.n < MAX_DIMS; c++) {
        int upper_first = c < 26 ? c + 26 : c - 26;  // capital letters sort first
        if (count[upper_first] == 1) e->out.label[e->out.n++] = upper_first;
    }
}

static bool parse_equation(Lower *l, const char *text, int n, const ValueId *x, Equation *e) {
    int ellipsis = 0;
    const char *p = text;
    *e = (Equation){.nterm = n};
    for (int i = 0; i < n && !lower_failed(l); i++) {
        p = parse_term(l, p, LSHAPE(l, x[i]).ndim, &ellipsis, &e->term[i]);
        if (i + 1 < n && *p++ != ',') lower_invalid(l, "equation \"%s\" has fewer terms than operands", text);
    }
    if (lower_failed(l)) return false;
    if (*p == '-' && p[1] == '>')
        p = parse_term(l, p + 2, -1, &ellipsis, &e->out);
    else
        implicit_output(e, ellipsis);
    if (*p) lower_invalid(l, "equation \"%s\" cannot be read", text);
    return !lower_failed(l);
}

static int find_label(const Term *t, int label) {
    for (int i = 0; i < t->n; i++)
        if (t->label[i] == label) return i;
    return -1;
}

static ValueId sum_labels(Lower *l, ValueId x, Term *t, const bool *keep) {
    int dims[MAX_DIMS], nd = 0;
    Term left = {0};
    for (int i = 0; i < t->n; i++) {
        if (keep[t->label[i]])
            left.label[left.n++] = t->label[i];
        else
            dims[nd++] = i;
    }
    *t = left;
    return nd ? lower_sum_dims(l, x, nd, dims, false) : x;
}

static ValueId order_labels(Lower *l, ValueId x, const Term *from, const Term *to) {
    int dims[MAX_DIMS];
    for (int i = 0; i < to->n; i++) dims[i] = find_label(from, to->label[i]);
    return build_permute(&l->b, x, dims);
}

static bool same_order(const Term *a, const Term *b) {
    return a->n == b->n && !memcmp(a->label, b->label, sizeof(int) * (size_t)a->n);
}

static void append(Term *t, const Term *part) {
    for (int i = 0; i < part->n && t->n < MAX_DIMS; i++) t->label[t->n++] = part->label[i];
}

// Size-1 dims that broadcast against larger ones ("..." only) are grown first, so that labels mean one size.
static void equalize(Lower *l, ValueId *x, const Term *t, int n) {
    int64_t size[MAX_LABELS];
    for (int i = 0; i < MAX_LABELS; i++) size[i] = 1;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < t[i].n; k++) {
            int64_t d = LSHAPE(l, x[i]).dim[k], *s = &size[t[i].label[k]];
            if (*s == 1) *s = d;
            if (d != 1 && d != *s) lower_invalid(l, "a letter of the equation has two sizes");
        }
    for (int i = 0; i < n && !lower_failed(l); i++) {
        Shape s = LSHAPE(l, x[i]);
        for (int k = 0; k < t[i].n; k++) s.dim[k] = size[t[i].label[k]];
        x[i] = build_broadcast(&l->b, x[i], s);
    }
}

// a and b to one value; `keep` are the labels that the rest of the equation needs.
static ValueId contract(Lower *l, ValueId a, Term *ta, ValueId b, Term tb, const bool *keep) {
    bool in_a[MAX_LABELS] = {false}, in_b[MAX_LABELS] = {false}, keep_a[MAX_LABELS], keep_b[MAX_LABELS];
    for (int i = 0; i < ta->n; i++) in_a[ta->label[i]] = true;
    for (int i = 0; i < tb.n; i++) in_b[tb.label[i]] = true;
    for (int i = 0; i < MAX_LABELS; i++) {
        keep_a[i] = keep[i] || in_b[i];
        keep_b[i] = keep[i] || in_a[i];
    }
    a = sum_labels(l, a, ta, keep_a);
    b = sum_labels(l, b, &tb, keep_b);
    Term batch = {0}, both = {0}, free_a = {0}, free_b = {0};
    for (int i = 0; i < ta->n; i++) {
        int x = ta->label[i];
        Term *to = !in_b[x] ? &free_a : keep[x] ? &batch : &both;
        to->label[to->n++] = x;
    }
    for (int i = 0; i < tb.n; i++)
        if (!in_a[tb.label[i]]) free_b.label[free_b.n++] = tb.label[i];
    Term order_a[2] = {batch, batch}, order_b[2] = {batch, batch}, out = batch;
    append(&order_a[0], &free_a), append(&order_a[0], &both);
    append(&order_a[1], &both), append(&order_a[1], &free_a);
    append(&order_b[0], &both), append(&order_b[0], &free_b);
    append(&order_b[1], &free_b), append(&order_b[1], &both);
    append(&out, &free_a), append(&out, &free_b);
    if (out.n != batch.n + free_a.n + free_b.n) {
        lower_refuse(l, "an equation whose steps have more than %d dims", MAX_DIMS);
        return NO_VALUE;
    }
    bool trans_a = both.n && same_order(ta, &order_a[1]), trans_b = both.n && same_order(&tb, &order_b[1]);
    a = order_labels(l, a, ta, &order_a[trans_a]);
    b = order_labels(l, b, &tb, &order_b[trans_b]);
    *ta = out;
    if (both.n) return build_dot(&l->b, a, b, batch.n, both.n, trans_a, trans_b);
    Shape sa = LSHAPE(l, a), sb = LSHAPE(l, b), wa = {.ndim = out.n}, wb = {.ndim = out.n};
    for (int i = 0; i < out.n; i++) {  // nothing to sum: [batch, free_a, 1] * [batch, 1, free_b]
        int nb = batch.n, na = free_a.n;
        wa.dim[i] = i < nb + na ? sa.dim[i] : 1;
        wb.dim[i] = i < nb ? sb.dim[i] : i < nb + na ? 1 : sb.dim[i - na];
    }
    return lower_binary(l, OP_MUL, build_reshape(&l->b, a, wa), build_reshape(&l->b, b, wb));
}

static bool has_repeats(const Term *t) {
    for (int i = 0; i < t->n; i++)
        for (int k = 0; k < i; k++)
            if (t->label[i] == t->label[k]) return true;
    return false;
}

static void check_equation(Lower *l, const Equation *e) {
    bool known[MAX_LABELS] = {false}, repeats = has_repeats(&e->out);
    for (int i = 0; i < e->nterm; i++) {
        repeats = repeats || has_repeats(&e->term[i]);
        for (int k = 0; k < e->term[i].n; k++) known[e->term[i].label[k]] = true;
    }
    if (repeats) lower_refuse(l, "an equation with a letter twice in one term; use torch.diagonal");
    for (int k = 0; k < e->out.n; k++)
        if (!known[e->out.label[k]]) lower_invalid(l, "an equation whose result has a letter that no operand has");
}

static void lower_einsum(Lower *l) {
    int32_t *t;
    const char *text = lower_str(l, "equation", "");
    int n = lower_in_list(l, "tensors", &t);
    ValueId x[MAX_TERMS];
    Equation e;
    lower_ignore(l, "path");
    if (n > MAX_TERMS) lower_refuse(l, "an equation of more than %d operands", MAX_TERMS);
    for (int i = 0; i < n && !lower_failed(l); i++) x[i] = t[i] < 0 ? NO_VALUE : lower_real(l, lower_read(l, t[i]));
    if (lower_failed(l) || !parse_equation(l, text, n, x, &e)) return;
    check_equation(l, &e);
    equalize(l, x, e.term, n);
    Term acc = e.term[0];
    ValueId v = x[0];
    for (int i = 1; i <= n && !lower_failed(l); i++) {
        bool keep[MAX_LABELS] = {false};
        for (int k = 0; k < e.out.n; k++) keep[e.out.label[k]] = true;
        for (int j = i + 1; j < n; j++)
            for (int k = 0; k < e.term[j].n; k++) keep[e.term[j].label[k]] = true;
        v = i < n ? contract(l, v, &acc, x[i], e.term[i], keep) : sum_labels(l, v, &acc, keep);
    }
    if (!lower_failed(l)) lower_out(l, 0, order_labels(l, v, &acc, &e.out));
}

const LowerRow lower_rows_einsum[] = {
    {"einsum", lower_einsum, 0},
    {NULL, NULL, 0},
};
