// Conversions, copies and aliases. All floating types are one real type here, so that most conversions only decide whether the
// result shares memory.
#include "import/lower.h"

static int argument_code(Lower *l, const char *name) {
    const Arg *a = lower_arg(l, name);
    return a && a->kind == ARG_TENSOR ? lower_stored_code(l, a->names[0]) : -1;
}

// Values out of range would wrap around; only bool is known to fit.
static void check_narrow(Lower *l, ValueId x, int code) {
    if (code >= 1 && code <= 3 && LDTYPE(l, x) != DT_BOOL)
        lower_refuse(l, "conversion to an 8- or 16-bit integer; use 64-bit integers or bool");
}

// to, _to_copy, type_as, float(): the same tensor if its type is already the wanted one and no copy is asked for.
enum { TO_MAYBE, TO_COPY };
static void lower_to(Lower *l) {
    int32_t t = lower_handle(l, "self");
    ValueId x = lower_in(l, "self");
    DType want = LDTYPE(l, x);
    bool given = lower_dtype_arg(l, "dtype", &want);
    if (lower_has(l, "other")) {
        want = LDTYPE(l, lower_in(l, "other"));
        given = true;
    }
    if (lower_failed(l)) return;
    if (!given) want = l->nout && lower_stored_code(l, l->out[0]) >= 0 ? lower_out_dtype(l, 0) : want;
    int from = argument_code(l, "self"), to = l->nout ? lower_stored_code(l, l->out[0]) : -1;
    if (l->cur->op == TO_MAYBE && from == to && !lower_bool(l, "copy", false)) {
        lower_out_handle(l, 0, t);
        return;
    }
    if (from != to) check_narrow(l, x, to);
    lower_out(l, 0, lower_cast(l, x, want));
}

static void lower_clone(Lower *l) { lower_out(l, 0, lower_in(l, lower_has(l, "self") ? "self" : "input")); }
static void lower_alias(Lower *l) { lower_out_handle(l, 0, lower_handle(l, lower_has(l, "self") ? "self" : "a")); }

// Shares memory only if the tensor is contiguous already.
static void lower_contiguous(Lower *l) {
    int32_t t = lower_handle(l, "self");
    lower_out_view(l, 0, t, (View){.kind = VIEW_RESHAPE, .shape = LSHAPE(l, lower_in(l, "self")), .maybe = true});
}

static void lower_detach_op(Lower *l) { lower_out_view(l, 0, lower_handle(l, "self"), (View){.kind = VIEW_STOP}); }

static void lower_detach_inplace(Lower *l) {
    int32_t t = lower_handle(l, "self");
    lower_detach(l, t);
    lower_out_handle(l, 0, t);
}

// In place, the write converts and expands to self's type; the functional form does so here.
static void lower_copy(Lower *l) {
    ValueId self = lower_in(l, "self"), v = lower_in(l, "src");
    if (!lower_failed(l)) lower_out(l, 0, lower_broadcast_like(l, lower_cast(l, v, LDTYPE(l, self)), LSHAPE(l, self)));
}

static void lower_fill(Lower *l) {
    ValueId self = lower_in(l, "self"), v = l->cur->op ? lower_number(l, DT_I64, 0) : lower_operand(l, "value");
    if (!lower_failed(l)) lower_out(l, 0, lower_broadcast_like(l, lower_cast(l, v, LDTYPE(l, self)), LSHAPE(l, self)));
}

static void lower_view_dtype(Lower *l) { lower_refuse(l, "reinterpreting a tensor's bytes; convert the values with .to()"); }

const LowerRow lower_rows_cast[] = {
    {"to", lower_to, TO_MAYBE},
    {"_to_copy", lower_to, TO_COPY},
    {"type_as", lower_to, TO_MAYBE},
    {"float", lower_to, TO_MAYBE},
    {"double", lower_to, TO_MAYBE},
    {"half", lower_to, TO_MAYBE},
    {"bfloat16", lower_to, TO_MAYBE},
    {"long", lower_to, TO_MAYBE},
    {"int", lower_to, TO_MAYBE},
    {"bool", lower_to, TO_MAYBE},
    {"_cast_Float", lower_to, TO_MAYBE},
    {"_cast_Long", lower_to, TO_MAYBE},
    {"_cast_Double", lower_to, TO_MAYBE},
    {"_autocast_to_reduced_precision", lower_to, TO_MAYBE},
    {"_autocast_to_full_precision", lower_to, TO_MAYBE},
    {"cpu", lower_alias, 0},
    {"cuda", lower_alias, 0},
    {"clone", lower_clone, 0},
    {"lift_fresh_copy", lower_clone, 0},
    {"alias_copy", lower_clone, 0},
    {"detach_copy", lower_detach_op, 0},
    {"lift_fresh", lower_alias, 0},
    {"lift", lower_alias, 0},
    {"alias", lower_alias, 0},
    {"positive", lower_alias, 0},
    {"requires_grad_", lower_alias, 0},
    {"resolve_conj", lower_alias, 0},
    {"resolve_neg", lower_alias, 0},
    {"contiguous", lower_contiguous, 0},
    {"detach", lower_detach_op, 0},
    {"detach_", lower_detach_inplace, 0},
    {"copy", lower_copy, 0},
    {"fill", lower_fill, 0},
    {"zero", lower_fill, 1},
    {"view_dtype", lower_view_dtype, 0},
    {NULL, NULL, 0},
};
