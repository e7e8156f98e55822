// What is not arithmetic on tensors: sizes as Python numbers, subgraphs of higher-order ops, and checks.
#include <math.h>
#include "import/lower.h"

// ---- sizes ----------------------------------------------------------------------------------------------------------------

enum { SIZE_DIM, SIZE_NUMEL, SIZE_NDIM };
static void lower_size(Lower *l) {
    Shape s = LSHAPE(l, lower_in(l, lower_has(l, "self") ? "self" : "a"));
    int64_t v = s.ndim;
    if (l->cur->op == SIZE_DIM) v = s.dim[lower_dim_arg(l, "dim", 0, s.ndim)];
    if (l->cur->op == SIZE_NUMEL) v = lower_numel(l, s);
    lower_out_number(l, 0, (Bind){.kind = BIND_INT, .i = v});
}

static void lower_no_layout(Lower *l) { lower_refuse(l, "a question about strides or storage, which tensors do not have here"); }

// ---- Python numbers -------------------------------------------------------------------------------------------------------

enum {  // of two numbers, then of one
    PY_ADD, PY_SUB, PY_MUL, PY_FLOORDIV, PY_MOD, PY_TRUEDIV, PY_POW, PY_MIN, PY_MAX,
    PY_EQ, PY_NE, PY_LT, PY_LE, PY_GT, PY_GE, PY_AND, PY_OR,
    PY_NEG, PY_POS, PY_ABS, PY_NOT, PY_FLOAT, PY_INT, PY_FLOOR, PY_CEIL, PY_SQRT, PY_ROUND
};

typedef struct Number {
    NumberKind kind;
    double f;
    int64_t i;
} Number;

static Number number_at(Lower *l, int i) {
    Number x;
    x.kind = lower_arg_number(l, lower_arg_at(l, i), &x.f, &x.i);
    if (x.kind == NUM_NONE) lower_invalid(l, "operand %d should be a number", i);
    return x;
}

static void out_int(Lower *l, int64_t v) { lower_out_number(l, 0, (Bind){.kind = BIND_INT, .i = v}); }
static void out_bool(Lower *l, bool v) { lower_out_number(l, 0, (Bind){.kind = BIND_BOOL, .i = v}); }
static void out_float(Lower *l, double v) { lower_out_number(l, 0, (Bind){.kind = BIND_FLOAT, .f = v}); }

// Rounds toward minus infinity, as Python does.
static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static void int_pow(Lower *l, int64_t base, int64_t e) {
    int64_t v = 1;
    bool ok = e >= 0;
    for (; ok && e > 0; e--) {
        ok = !__builtin_mul_overflow(v, base, &v);
        if (v == 0 || (v == 1 && base == 1)) break;
    }
    if (ok)
        out_int(l, v);
    else
        lower_invalid(l, "a size leaves the range of 64 bits");
}

static void int_binary(Lower *l, int op, int64_t a, int64_t b) {
    int64_t v = 0;
    bool overflow = false;
    if ((op == PY_FLOORDIV || op == PY_MOD) && (b == 0 || (b == -1 && a == INT64_MIN))) {
        lower_invalid(l, "a size divided by 0");
        return;
    }
    switch (op) {
        case PY_ADD: overflow = __builtin_add_overflow(a, b, &v); break;
        case PY_SUB: overflow = __builtin_sub_overflow(a, b, &v); break;
        case PY_MUL: overflow = __builtin_mul_overflow(a, b, &v); break;
        case PY_FLOORDIV: v = floor_div(a, b); break;
        case PY_MOD: v = a - floor_div(a, b) * b; break;
        case PY_MIN: v = min_i64(a, b); break;
        default: v = max_i64(a, b); break;
    }
    if (overflow)
        lower_invalid(l, "a size leaves the range of 64 bits");
    else
        out_int(l, v);
}

static void float_binary(Lower *l, int op, double a, double b) {
    switch (op) {
        case PY_ADD: out_float(l, a + b); break;
        case PY_SUB: out_float(l, a - b); break;
        case PY_MUL: out_float(l, a * b); break;
        case PY_TRUEDIV: out_float(l, a / b); break;
        case PY_FLOORDIV: out_float(l, floor(a / b)); break;
        case PY_MOD: out_float(l, a - floor(a / b) * b); break;
        case PY_POW: out_float(l, pow(a, b)); break;
        case PY_MIN: out_float(l, b < a ? b : a); break;
        default: out_float(l, b > a ? b : a); break;
    }
}

static bool compare(int op, bool less, bool equal) {
    switch (op) {
        case PY_EQ: return equal;
        case PY_NE: return !equal;
        case PY_LT: return less;
        case PY_LE: return less || equal;
        case PY_GT: return !less && !equal;
        default: return !less;
    }
}

static void lower_number_binary(Lower *l) {
    int op = l->cur->op;
    Number a = number_at(l, 0), b = number_at(l, 1);
    if (lower_failed(l)) return;
    bool ints = a.kind != NUM_FLOAT && b.kind != NUM_FLOAT;
    if (op == PY_AND || op == PY_OR)
        out_bool(l, op == PY_AND ? a.i && b.i : a.i || b.i);
    else if (op >= PY_EQ && op <= PY_GE)
        out_bool(l, compare(op, ints ? a.i < b.i : a.f < b.f, ints ? a.i == b.i : a.f == b.f));
    else if (ints && op == PY_POW)
        int_pow(l, a.i, b.i);
    else if (ints && op != PY_TRUEDIV)
        int_binary(l, op, a.i, b.i);
    else
        float_binary(l, op, a.f, b.f);
}

static void lower_number_unary(Lower *l) {
    Number a = number_at(l, 0);
    if (lower_failed(l)) return;
    bool is_float = a.kind == NUM_FLOAT;
    switch (l->cur->op) {
        case PY_NEG: is_float ? out_float(l, -a.f) : int_binary(l, PY_SUB, 0, a.i); break;
        case PY_POS: is_float ? out_float(l, a.f) : out_int(l, a.i); break;
        case PY_ABS: is_float ? out_float(l, fabs(a.f)) : int_binary(l, PY_MAX, a.i, a.i == INT64_MIN ? 0 : -a.i); break;
        case PY_NOT: out_bool(l, !a.i); break;
        case PY_FLOAT: out_float(l, a.f); break;
        case PY_SQRT: out_float(l, sqrt(a.f)); break;
        case PY_INT: out_int(l, a.i); break;
        case PY_FLOOR: out_int(l, is_float ? (int64_t)floor(a.f) : a.i); break;
        case PY_CEIL: out_int(l, is_float ? (int64_t)ceil(a.f) : a.i); break;
        default: out_int(l, is_float ? (int64_t)nearbyint(a.f) : a.i); break;
    }
}

// sym_ite(condition, then, else)
static void lower_number_choice(Lower *l) {
    Number c = number_at(l, 0), v = number_at(l, c.i ? 1 : 2);
    if (v.kind == NUM_FLOAT)
        out_float(l, v.f);
    else
        out_int(l, v.i);
}

// ---- subgraphs ------------------------------------------------------------------------------------------------------------

static const char *arg_name(const Arg *a) {
    if ((a->kind == ARG_TENSOR || a->kind == ARG_TENSORS) && a->n == 1) return a->names[0];
    return a->sym_names && a->n ? a->sym_names[0] : NULL;
}

// What the caller passes for one input of the subgraph.
static bool passed(Lower *l, const Arg *a, Bind *b) {
    double f;
    int64_t i, at;
    if (a->kind == ARG_TENSOR) {
        if (!map_get(l->scope->names, a->names[0], &at) ||
            (l->binds.data[at].kind != BIND_TENSOR && l->binds.data[at].kind != BIND_COMPLEX)) {
            lower_invalid(l, "it passes `%s`, which is not a tensor defined before", a->names[0]);
            return false;
        }
        *b = l->binds.data[at];
        return true;
    }
    *b = (Bind){.kind = BIND_NONE};
    if (a->kind == ARG_NONE) return true;
    NumberKind k = lower_arg_number(l, a, &f, &i);
    if (k == NUM_NONE && !lower_failed(l)) lower_refuse(l, "an argument of a subgraph that is neither a tensor nor a number");
    *b = (Bind){.kind = k == NUM_FLOAT ? BIND_FLOAT : k == NUM_BOOL ? BIND_BOOL : BIND_INT, .i = i, .f = f};
    return !lower_failed(l);
}

static int32_t owner_of(const Lower *l, int32_t t) {
    while (l->tensors.data[t].parent >= 0) t = l->tensors.data[t].parent;
    return t;
}

// Output i of the subgraph as the caller sees it. What a region without gradients made is cut off from differentiation.
static void out_of_region(Lower *l, int i, int32_t t, int32_t inside, bool is_input, int32_t *seen) {
    if (inside == l->region || is_input) {
        lower_out_handle(l, i, t);
        return;
    }
    int32_t owner = owner_of(l, t);
    if (l->tensors.data[owner].region != inside) {  // a view of a tensor from outside
        lower_out_view(l, i, t, (View){.kind = VIEW_STOP});
        return;
    }
    static const View stop = {.kind = VIEW_STOP};
    ValueId v = lower_view_value(l, &stop, lower_read(l, t));
    if (lower_failed(l)) return;
    int32_t made = seen[owner] ? lower_new_opaque(l, seen[owner] - 1, v) : lower_new(l, v);
    if (!seen[owner]) seen[owner] = made + 1;
    lower_out_handle(l, i, made);
}

static void bind_subgraph_outputs(Lower *l, const AtenGraph *sub, const Scope *scope, int32_t inside) {
    int32_t *seen = ARENA_ARRAY(l->arena, int32_t, l->tensors.len + 1);
    for (int i = 0; i < sub->nout && !lower_failed(l); i++) {
        const char *name = arg_name(&sub->out[i]);
        int64_t at;
        if (!name) continue;
        if (!map_get(scope->names, name, &at)) {
            lower_invalid(l, "a subgraph returns `%s`, which it does not define", name);
            return;
        }
        Bind b = l->binds.data[at];
        bool is_input = false;
        for (int k = 0; k < sub->nin; k++) is_input = is_input || (arg_name(&sub->in[k]) && !strcmp(arg_name(&sub->in[k]), name));
        for (int part = 0; part < 2 && b.kind == BIND_COMPLEX; part++) {
            l->part = part;
            out_of_region(l, i, part ? b.imag : b.tensor, inside, is_input, seen);
        }
        l->part = -1;
        if (b.kind == BIND_COMPLEX) continue;
        if (b.kind == BIND_TENSOR)
            out_of_region(l, i, b.tensor, inside, is_input, seen);
        else
            lower_out_number(l, i, b);
    }
}

static void bind_subgraph_inputs(Lower *l, const AtenGraph *sub, int first, Scope *scope) {
    for (int i = 0; i < sub->nin; i++) {
        const char *name = arg_name(&sub->in[i]);
        Bind b;
        if (!name) continue;
        if (!passed(l, &l->n->in[first + i], &b)) return;
        map_set(scope->names, name, l->binds.len);
        vec_push(&l->binds, b);
    }
}

void lower_inline(Lower *l, const AtenGraph *sub, int first, bool stop_grad) {
    if (lower_failed(l)) return;
    if (!sub || l->n->nin - first < sub->nin) {
        lower_invalid(l, "a subgraph of %d inputs is given %d", sub ? sub->nin : 0, l->n->nin - first);
        return;
    }
    if (l->depth >= 64) {
        lower_refuse(l, "subgraphs nested more than 64 deep");
        return;
    }
    const Lower outer = *l;
    Scope scope = {.graph = sub, .names = map_new(l->arena)};
    bind_subgraph_inputs(l, sub, first, &scope);
    if (lower_failed(l)) return;
    int32_t inside = stop_grad && l->region == 0 ? ++l->nregion : l->region;
    l->scope = &scope;
    l->region = inside;
    l->depth++;
    Status s = lower_nodes(l, sub);
    l->b.status = s;
    l->b.source = outer.b.source;
    l->scope = outer.scope;
    l->n = outer.n;
    l->cur = outer.cur;
    l->out = outer.out;
    l->nout = outer.nout;
    l->region = outer.region;
    l->depth = outer.depth;
    l->used = ~(uint64_t)0;
    bind_subgraph_outputs(l, sub, &scope, inside);
}

static int find_graph(Lower *l) {
    for (int i = 0; i < l->n->nin; i++)
        if (l->n->in[i].kind == ARG_GRAPH) return i;
    lower_invalid(l, "a higher-order operation without a subgraph");
    return 0;
}

static void lower_set_grad(Lower *l) {
    int at = find_graph(l);
    Number enabled = number_at(l, 0);
    if (enabled.i && l->region) lower_refuse(l, "gradients switched on inside no_grad; move that part out of no_grad");
    if (!lower_failed(l)) lower_inline(l, l->n->in[at].graph, at + 1, !enabled.i);
}

// wrap_with_autocast, checkpointing and plain calls: precision and recomputation are the compiler's own decisions.
enum { CALL_PLAIN, CALL_NAMED };
static void lower_call(Lower *l) {
    int at = find_graph(l);
    if (!lower_failed(l)) lower_inline(l, l->n->in[at].graph, at + 1 + (l->cur->op == CALL_NAMED), false);
}

static void lower_no_control(Lower *l) {
    lower_refuse(l, "control flow that depends on the data; write it with torch.where, or as a loop of fixed length");
}

// ---- checks ---------------------------------------------------------------------------------------------------------------

static void lower_nothing(Lower *l) { l->used = ~(uint64_t)0; }

static void lower_assert_number(Lower *l) {
    double f;
    int64_t i;
    NumberKind k = lower_arg_number(l, lower_arg(l, "self"), &f, &i);
    const char *text = lower_str(l, "assert_msg", "");
    if (k != NUM_NONE && f == 0) lower_invalid(l, "the program's own check fails at these sizes: %s", text);
}

const LowerRow lower_rows_control[] = {
    {"sym_size", lower_size, SIZE_DIM},
    {"size", lower_size, SIZE_DIM},
    {"sym_numel", lower_size, SIZE_NUMEL},
    {"numel", lower_size, SIZE_NUMEL},
    {"dim", lower_size, SIZE_NDIM},
    {"sym_stride", lower_no_layout, 0},
    {"sym_storage_offset", lower_no_layout, 0},
    {"sym_is_contiguous", lower_no_layout, 0},
    {"is_contiguous", lower_no_layout, 0},
    {"_operator.add", lower_number_binary, PY_ADD},
    {"_operator.iadd", lower_number_binary, PY_ADD},
    {"_operator.sub", lower_number_binary, PY_SUB},
    {"_operator.mul", lower_number_binary, PY_MUL},
    {"_operator.floordiv", lower_number_binary, PY_FLOORDIV},
    {"_operator.mod", lower_number_binary, PY_MOD},
    {"_operator.truediv", lower_number_binary, PY_TRUEDIV},
    {"_operator.pow", lower_number_binary, PY_POW},
    {"_operator.eq", lower_number_binary, PY_EQ},
    {"_operator.ne", lower_number_binary, PY_NE},
    {"_operator.lt", lower_number_binary, PY_LT},
    {"_operator.le", lower_number_binary, PY_LE},
    {"_operator.gt", lower_number_binary, PY_GT},
    {"_operator.ge", lower_number_binary, PY_GE},
    {"_operator.and_", lower_number_binary, PY_AND},
    {"_operator.or_", lower_number_binary, PY_OR},
    {"_operator.neg", lower_number_unary, PY_NEG},
    {"_operator.pos", lower_number_unary, PY_POS},
    {"_operator.abs", lower_number_unary, PY_ABS},
    {"_operator.not_", lower_number_unary, PY_NOT},
    {"torch.sym_max", lower_number_binary, PY_MAX},
    {"torch.sym_min", lower_number_binary, PY_MIN},
    {"torch.sym_not", lower_number_unary, PY_NOT},
    {"torch.sym_float", lower_number_unary, PY_FLOAT},
    {"torch.sym_int", lower_number_unary, PY_INT},
    {"torch.sym_ite", lower_number_choice, 0},
    {"torch._sym_sqrt", lower_number_unary, PY_SQRT},
    {"math.sqrt", lower_number_unary, PY_SQRT},
    {"math.floor", lower_number_unary, PY_FLOOR},
    {"math.ceil", lower_number_unary, PY_CEIL},
    {"math.trunc", lower_number_unary, PY_INT},
    {"builtins.round", lower_number_unary, PY_ROUND},
    {"builtins.max", lower_number_binary, PY_MAX},
    {"builtins.min", lower_number_binary, PY_MIN},
    {"builtins.int", lower_number_unary, PY_INT},
    {"higher_order.wrap_with_set_grad_enabled", lower_set_grad, 0},
    {"higher_order.wrap_with_autocast", lower_call, CALL_PLAIN},
    {"higher_order.tag_activation_checkpoint", lower_call, CALL_PLAIN},
    {"higher_order.wrap_activation_checkpoint", lower_call, CALL_PLAIN},
    {"higher_order.wrap", lower_call, CALL_PLAIN},
    {"higher_order.invoke_subgraph", lower_call, CALL_NAMED},
    {"higher_order.cond", lower_no_control, 0},
    {"higher_order.while_loop", lower_no_control, 0},
    {"higher_order.scan", lower_no_control, 0},
    {"higher_order.associative_scan", lower_no_control, 0},
    {"higher_order.map_impl", lower_no_control, 0},
    {"_assert_tensor_metadata", lower_nothing, 0},
    {"_assert_scalar", lower_assert_number, 0},
    {"_assert_async", lower_nothing, 0},
    {"_functional_assert_scalar", lower_nothing, 0},
    {"sym_constrain_range", lower_nothing, 0},
    {"sym_constrain_range_for_size", lower_nothing, 0},
    {"_print", lower_nothing, 0},
    {NULL, NULL, 0},
};
