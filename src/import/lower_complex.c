// Complex tensors, as rotary embeddings written with polar and view_as_complex have them: a pair of real tensors. Operations
// that are linear over the reals (views, sums, indexing) run once for each part; products and changes of form are spelled out
// here; everything else is refused.
#include "import/lower.h"

typedef struct Pair {
    ValueId re, im;
} Pair;

bool lower_is_complex_code(int code) { return code >= 9 && code <= 11; }

static const Bind *argument_bind(const Lower *l, const Arg *a) {
    int64_t at;
    if (!a || a->kind != ARG_TENSOR || !map_get(l->scope->names, a->names[0], &at)) return NULL;
    return &l->binds.data[at];
}

bool lower_has_complex(const Lower *l) {
    for (int i = 0; i < l->n->nin; i++) {
        const Arg *a = &l->n->in[i];
        int64_t at;
        for (int k = 0; (a->kind == ARG_TENSOR || a->kind == ARG_TENSORS) && k < a->n; k++)
            if (a->names[k] && map_get(l->scope->names, a->names[k], &at) && l->binds.data[at].kind == BIND_COMPLEX) return true;
    }
    return false;
}

// The parts of tensor argument `name`; im is NO_VALUE if it is real.
static Pair pair_in(Lower *l, const char *name) {
    const Bind *b = argument_bind(l, lower_arg(l, name));
    if (!b || b->kind != BIND_COMPLEX) return (Pair){lower_real(l, lower_operand(l, name)), NO_VALUE};
    return (Pair){lower_read(l, b->tensor), lower_read(l, b->imag)};
}

void lower_bind_complex(Lower *l, const char *name, int32_t re, int32_t im) {
    if (lower_failed(l) || !name) return;
    map_set(l->scope->names, name, l->binds.len);
    vec_push(&l->binds, ((Bind){.kind = BIND_COMPLEX, .tensor = re, .imag = im}));
}

static void out_pair(Lower *l, ValueId re, ValueId im) {
    if (lower_failed(l) || l->nout < 1) return;
    lower_bind_complex(l, l->out[0], lower_new(l, re), lower_new(l, im));
}

// [..., 2] -> its two parts, as views.
void lower_split_complex(Lower *l, const char *name, int32_t t) {
    Shape s = LSHAPE(l, lower_read(l, t));
    int32_t part[2];
    if (!lower_failed(l) && (s.ndim == 0 || s.dim[s.ndim - 1] != 2))
        lower_invalid(l, "a complex view of a tensor whose last dim is not 2");
    for (int i = 0; i < 2 && !lower_failed(l); i++) {
        Shape rest = s;
        rest.ndim--;
        part[i] = lower_new_view(l, t, (View){.kind = VIEW_SLICE, .dim = s.ndim - 1, .start = i, .step = 1, .length = 1});
        if (!lower_failed(l)) part[i] = lower_new_view(l, part[i], (View){.kind = VIEW_RESHAPE, .shape = rest});
    }
    if (!lower_failed(l)) lower_bind_complex(l, name, part[0], part[1]);
}

static void lower_view_as_complex(Lower *l) {
    int32_t t = lower_handle(l, "self");
    if (!lower_failed(l)) lower_split_complex(l, l->out[0], t);
}

static void lower_view_as_real(Lower *l) {
    Pair x = pair_in(l, "self");
    if (lower_failed(l) || x.im < 0) {
        lower_invalid(l, "view_as_real of a real tensor");
        return;
    }
    lower_out(l, 0, lower_stack(l, 2, (ValueId[]){x.re, x.im}, LSHAPE(l, x.re).ndim));
}

// polar(abs, angle), complex(real, imag)
enum { MAKE_POLAR, MAKE_PARTS };
static void lower_make_complex(Lower *l) {
    bool polar = l->cur->op == MAKE_POLAR;
    ValueId a = lower_in(l, polar ? "abs" : "real"), b = lower_in(l, polar ? "angle" : "imag");
    Shape s;
    if (lower_failed(l) || !lower_broadcast(l, LSHAPE(l, a), LSHAPE(l, b), &s)) return;
    a = build_broadcast(&l->b, a, s);
    b = build_broadcast(&l->b, b, s);
    if (polar)
        out_pair(l, lower_binary(l, OP_MUL, a, lower_unary(l, OP_COS, b)), lower_binary(l, OP_MUL, a, lower_unary(l, OP_SIN, b)));
    else
        out_pair(l, a, b);
}

// real, imag, abs of a complex tensor; real of a real one is itself.
enum { PART_REAL, PART_IMAG };
static void lower_part(Lower *l) {
    const Bind *b = argument_bind(l, lower_arg(l, "self"));
    if (b && b->kind == BIND_COMPLEX)
        lower_out_handle(l, 0, l->cur->op == PART_REAL ? b->tensor : b->imag);
    else if (l->cur->op == PART_REAL)
        lower_out_handle(l, 0, lower_handle(l, "self"));
    else
        lower_invalid(l, "the imaginary part of a real tensor");
}

static void multiply(Lower *l) {
    Pair x = pair_in(l, "self"), y = pair_in(l, "other");
    if (lower_failed(l)) return;
    if (x.im < 0 || y.im < 0) {  // one of them is real
        Pair c = x.im < 0 ? y : x;
        ValueId r = x.im < 0 ? x.re : y.re;
        out_pair(l, lower_binary(l, OP_MUL, c.re, r), lower_binary(l, OP_MUL, c.im, r));
        return;
    }
    ValueId re = lower_binary(l, OP_SUB, lower_binary(l, OP_MUL, x.re, y.re), lower_binary(l, OP_MUL, x.im, y.im));
    ValueId im = lower_binary(l, OP_ADD, lower_binary(l, OP_MUL, x.re, y.im), lower_binary(l, OP_MUL, x.im, y.re));
    out_pair(l, re, im);
}

static void conjugate(Lower *l) {
    Pair x = pair_in(l, "self");
    out_pair(l, x.re, lower_unary(l, OP_NEG, x.im));
}

static void absolute(Lower *l) {
    Pair x = pair_in(l, "self");
    ValueId s = lower_binary(l, OP_ADD, lower_binary(l, OP_MUL, x.re, x.re), lower_binary(l, OP_MUL, x.im, x.im));
    lower_out(l, 0, lower_unary(l, OP_SQRT, s));
}

// A conversion between complex types, or none at all.
static void same_pair(Lower *l) {
    const Bind *b = argument_bind(l, lower_arg(l, "self"));
    l->used = ~(uint64_t)0;
    if (!b || b->kind != BIND_COMPLEX || !lower_is_complex_code(lower_stored_code(l, l->out[0])))
        lower_refuse(l, "a conversion of a complex tensor to a real type; use .real or view_as_real");
    else
        lower_bind_complex(l, l->out[0], b->tensor, b->imag);
}

static bool named(const Lower *l, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(l->cur->name, *list)) return true;
    return false;
}

static bool all_complex(const Lower *l) {
    for (int i = 0; i < l->n->nin; i++) {
        const Bind *b = argument_bind(l, &l->n->in[i]);
        if (b && b->kind == BIND_TENSOR) return false;
    }
    return true;
}

void lower_complex_node(Lower *l, bool inplace) {
    static const char *const linear[] = {"view",    "reshape",      "_unsafe_view",
                                         "flatten", "unflatten",    "unsqueeze",
                                         "squeeze", "permute",      "transpose",
                                         "expand",  "expand_as",    "slice",
                                         "narrow",  "select",       "split",
                                         "chunk",   "unbind",       "cat",
                                         "stack",   "repeat",       "repeat_interleave",
                                         "index",   "index_select", "embedding",
                                         "clone",   "contiguous",   "detach",
                                         "sum",     "neg",          NULL};
    static const char *const both[] = {"add", "sub", NULL};  // a real operand would be added to both parts
    static const char *const same[] = {"to", "_to_copy", "type_as", "alias", "resolve_conj", "lift_fresh_copy", NULL};
    static const char *const kept[] = {"real", "imag", "view_as_real", NULL};
    if (inplace)
        lower_refuse(l, "an in-place operation on complex tensors; use the form that returns a new tensor");
    else if (named(l, kept))
        l->cur->fn(l);
    else if (!strcmp(l->cur->name, "mul"))
        multiply(l);
    else if (!strcmp(l->cur->name, "conj") || !strcmp(l->cur->name, "_conj"))
        conjugate(l);
    else if (!strcmp(l->cur->name, "abs"))
        absolute(l);
    else if (named(l, same))
        same_pair(l);
    else if (!named(l, linear) && !(named(l, both) && all_complex(l)))
        lower_refuse(l, "this operation on complex tensors; use view_as_real and real arithmetic");
    for (int part = 0; part < 2 && !inplace && !lower_failed(l) && (named(l, linear) || named(l, both)); part++) {
        l->part = part;
        l->cur->fn(l);
    }
    l->part = -1;
}

static void lower_conj_real(Lower *l) { lower_out_handle(l, 0, lower_handle(l, "self")); }

const LowerRow lower_rows_complex[] = {
    {"polar", lower_make_complex, MAKE_POLAR},
    {"complex", lower_make_complex, MAKE_PARTS},
    {"view_as_complex", lower_view_as_complex, 0},
    {"view_as_real", lower_view_as_real, 0},
    {"real", lower_part, PART_REAL},
    {"imag", lower_part, PART_IMAG},
    {"conj", lower_conj_real, 0},
    {"_conj", lower_conj_real, 0},
    {NULL, NULL, 0},
};
