// Reading the current node's arguments: by name, with symbolic sizes already numbers. Every look marks the argument, so that one
// which no handler knows is noticed (check_arguments in lower.c).
#include <math.h>
#include "import/lower.h"

static const Arg *mark(Lower *l, int i) {
    if (i < 64) l->used |= (uint64_t)1 << i;
    return &l->n->in[i];
}

const Arg *lower_arg(Lower *l, const char *name) {
    for (int i = 0; i < l->n->nin; i++)
        if (!strcmp(l->n->in[i].name, name)) return mark(l, i);
    return NULL;
}

const Arg *lower_arg_at(Lower *l, int i) { return i < l->n->nin ? mark(l, i) : NULL; }

void lower_ignore(Lower *l, const char *name) { (void)lower_arg(l, name); }

bool lower_has(Lower *l, const char *name) {
    const Arg *a = lower_arg(l, name);
    return a && a->kind != ARG_NONE;
}

bool lower_is_tensor(Lower *l, const char *name) {
    const Arg *a = lower_arg(l, name);
    return a && a->kind == ARG_TENSOR;
}

static const Bind *find_bind(Lower *l, const char *name) {
    int64_t at;
    if (!name || !map_get(l->scope->names, name, &at)) {
        lower_invalid(l, "it uses `%s`, which nothing before it defines", name ? name : "(nothing)");
        return NULL;
    }
    return &l->binds.data[at];
}

static int32_t find_tensor(Lower *l, const char *name) {
    const Bind *b = find_bind(l, name);
    if (!b) return -1;
    if (b->kind == BIND_TENSOR) return b->tensor;
    if (b->kind == BIND_COMPLEX && l->part >= 0) return l->part ? b->imag : b->tensor;
    if (b->kind == BIND_COMPLEX) {
        lower_refuse(l, "this operation on complex tensors; use view_as_real and real arithmetic");
        return -1;
    }
    lower_invalid(l, "it uses `%s` as a tensor, which it is not", name);
    return -1;
}

int32_t lower_handle(Lower *l, const char *name) {
    if (lower_failed(l)) return -1;
    const Arg *a = lower_arg(l, name);
    if (a && a->kind == ARG_TENSOR) return find_tensor(l, a->names[0]);
    lower_invalid(l, "argument `%s` should be a tensor", name);
    return -1;
}

ValueId lower_in(Lower *l, const char *name) {
    int32_t t = lower_handle(l, name);
    return t < 0 ? NO_VALUE : lower_read(l, t);
}

ValueId lower_in_or(Lower *l, const char *name) { return lower_has(l, name) ? lower_in(l, name) : NO_VALUE; }

int lower_in_list(Lower *l, const char *name, int32_t **handles) {
    *handles = NULL;
    if (lower_failed(l)) return 0;
    const Arg *a = lower_arg(l, name);
    if (!a || a->kind != ARG_TENSORS || a->n == 0) {
        lower_invalid(l, "argument `%s` should be a list of tensors", name);
        return 0;
    }
    *handles = ARENA_ARRAY(l->arena, int32_t, a->n);
    for (int i = 0; i < a->n; i++) (*handles)[i] = a->names[i] ? find_tensor(l, a->names[i]) : -1;
    return lower_failed(l) ? 0 : a->n;
}

// ---- numbers --------------------------------------------------------------------------------------------------------------

static NumberKind bind_number(const Bind *b, double *f, int64_t *i) {
    *i = b->i;
    *f = (double)b->i;
    switch (b->kind) {
        case BIND_INT: return NUM_INT;
        case BIND_BOOL: return NUM_BOOL;
        case BIND_FLOAT:
            *f = b->f;
            *i = (int64_t)(fabs(b->f) < 9e18 ? b->f : 0);
            return NUM_FLOAT;
        default: return NUM_NONE;
    }
}

NumberKind lower_arg_number(Lower *l, const Arg *a, double *f, int64_t *i) {
    *f = 0;
    *i = 0;
    if (!a || lower_failed(l)) return NUM_NONE;
    switch (a->kind) {
        case ARG_INT:
        case ARG_BOOL:
            *i = a->i;
            *f = (double)a->i;
            return a->kind == ARG_INT ? NUM_INT : NUM_BOOL;
        case ARG_FLOAT:
            *f = a->f;
            *i = (int64_t)(fabs(a->f) < 9e18 ? a->f : 0);
            return NUM_FLOAT;
        default: break;
    }
    if (a->kind == ARG_TENSOR || a->kind == ARG_TENSORS || !a->sym_names) {
        if (a->kind != ARG_SYM_INT) return NUM_NONE;
        *i = a->i;
        *f = (double)a->i;
        return NUM_INT;
    }
    if (a->kind == ARG_SYM_INT && !a->sym_names[0]) {
        *i = a->i;
        *f = (double)a->i;
        return NUM_INT;
    }
    const Bind *b = find_bind(l, a->sym_names[0]);
    return b ? bind_number(b, f, i) : NUM_NONE;
}

static NumberKind named_number(Lower *l, const char *name, double *f, int64_t *i) {
    const Arg *a = lower_arg(l, name);
    *f = 0;
    *i = 0;
    if (!a || a->kind == ARG_NONE) return NUM_NONE;
    NumberKind k = lower_arg_number(l, a, f, i);
    if (k == NUM_NONE) lower_invalid(l, "argument `%s` should be a number", name);
    return k;
}

int64_t lower_int(Lower *l, const char *name, int64_t dflt) {
    double f;
    int64_t i;
    NumberKind k = named_number(l, name, &f, &i);
    if (k == NUM_FLOAT && f != (double)i) lower_invalid(l, "argument `%s` should be an integer", name);
    return k == NUM_NONE ? dflt : i;
}

double lower_float(Lower *l, const char *name, double dflt) {
    double f;
    int64_t i;
    return named_number(l, name, &f, &i) == NUM_NONE ? dflt : f;
}

bool lower_bool(Lower *l, const char *name, bool dflt) { return lower_int(l, name, dflt) != 0; }

const char *lower_str(Lower *l, const char *name, const char *dflt) {
    const Arg *a = lower_arg(l, name);
    if (!a || a->kind == ARG_NONE) return dflt;
    if (a->kind == ARG_STRING && a->str) return a->str;
    lower_invalid(l, "argument `%s` should be a string", name);
    return dflt;
}

ValueId lower_operand(Lower *l, const char *name) {
    if (lower_is_tensor(l, name)) return lower_in(l, name);
    double f;
    int64_t i;
    switch (named_number(l, name, &f, &i)) {
        case NUM_INT:
            if ((int64_t)(double)i != i || i == INT64_MAX)
                lower_refuse(l, "the integer %lld is not exact as a double", (long long)i);
            return lower_failed(l) ? NO_VALUE : build_scalar(&l->b, DT_I64, f);
        case NUM_BOOL: return build_scalar(&l->b, DT_BOOL, f);
        case NUM_FLOAT: return build_scalar(&l->b, l->real, f);
        case NUM_NONE: break;
    }
    lower_invalid(l, "argument `%s` should be a tensor or a number", name);
    return NO_VALUE;
}

// ---- lists, dims, dtypes --------------------------------------------------------------------------------------------------

int lower_ints(Lower *l, const char *name, int64_t *out, int max) {
    const Arg *a = lower_arg(l, name);
    if (lower_failed(l) || !a || a->kind == ARG_NONE) return -1;
    if (a->kind != ARG_INTS && a->kind != ARG_SYM_INTS) {
        double f;
        if (lower_arg_number(l, a, &f, &out[0]) == NUM_INT) return 1;
        lower_invalid(l, "argument `%s` should be a list of integers", name);
        return -1;
    }
    if (a->n > max) {
        lower_refuse(l, "argument `%s` has %d entries; at most %d are possible", name, a->n, max);
        return -1;
    }
    for (int k = 0; k < a->n; k++) {
        const char *sym = a->kind == ARG_SYM_INTS && a->sym_names ? a->sym_names[k] : NULL;
        double f;
        if (!sym) {
            out[k] = a->ints[k];
            continue;
        }
        const Bind *b = find_bind(l, sym);
        if (!b || bind_number(b, &f, &out[k]) != NUM_INT) {
            lower_invalid(l, "`%s` should be an integer", sym);
            return -1;
        }
    }
    return a->n;
}

bool lower_shape_arg(Lower *l, const char *name, Shape *out) {
    *out = SHAPE0;
    int n = lower_ints(l, name, out->dim, MAX_DIMS);
    if (lower_failed(l)) return false;
    if (n < 0) {
        lower_invalid(l, "argument `%s` is missing", name);
        return false;
    }
    out->ndim = n;
    return true;
}

int lower_dim(Lower *l, int64_t dim, int ndim) {
    int n = ndim ? ndim : 1;
    if (!lower_failed(l) && (dim < -n || dim >= n)) lower_invalid(l, "dim %lld of a tensor of %d dims", (long long)dim, ndim);
    if (lower_failed(l)) return 0;
    return (int)(dim < 0 ? dim + n : dim);
}

int lower_dim_arg(Lower *l, const char *name, int64_t dflt, int ndim) { return lower_dim(l, lower_int(l, name, dflt), ndim); }

int lower_dims_arg(Lower *l, const char *name, int ndim, int *dims) {
    int64_t raw[MAX_DIMS];
    bool seen[MAX_DIMS] = {false};
    int n = lower_ints(l, name, raw, MAX_DIMS);
    for (int i = 0; i < n; i++) {
        dims[i] = lower_dim(l, raw[i], ndim);
        if (lower_failed(l)) return -1;
        if (seen[dims[i]]) {
            lower_invalid(l, "argument `%s` names dim %d twice", name, dims[i]);
            return -1;
        }
        seen[dims[i]] = true;
    }
    return n;
}

// Codes of torch._export.serde.schema.ScalarType.
enum {
    SCALAR_BYTE = 1,
    SCALAR_CHAR,
    SCALAR_SHORT,
    SCALAR_INT,
    SCALAR_LONG,
    SCALAR_HALF,
    SCALAR_FLOAT,
    SCALAR_DOUBLE,
    SCALAR_BOOL = 12,
    SCALAR_BF16 = 13
};

bool lower_category(Lower *l, int code, DType *out) {
    if (code >= SCALAR_BYTE && code <= SCALAR_LONG) {
        *out = DT_I64;
    } else if (code == SCALAR_BOOL) {
        *out = DT_BOOL;
    } else if ((code >= SCALAR_HALF && code <= SCALAR_DOUBLE) || code == SCALAR_BF16) {
        if (code == SCALAR_HALF || code == SCALAR_BF16) l->noted_half = true;
        *out = l->real;
    } else {
        return false;
    }
    return true;
}

bool lower_dtype_arg(Lower *l, const char *name, DType *out) {
    const Arg *a = lower_arg(l, name);
    if (!a || a->kind == ARG_NONE) return false;
    if (a->kind != ARG_DTYPE) {
        lower_invalid(l, "argument `%s` should be an element type", name);
        return false;
    }
    if (lower_category(l, (int)a->i, out)) return true;
    lower_refuse(l, "element type %lld (complex, quantized or 8-bit float); use a real floating type", (long long)a->i);
    return false;
}

int lower_stored_code(Lower *l, const char *name) {
    int64_t at;
    if (!name || !map_get(l->scope->graph->tensor_index, name, &at)) return -1;
    return l->scope->graph->tensor[at].dtype;
}

DType lower_out_dtype(Lower *l, int i) {
    DType t = l->real;
    int code = i < l->nout ? lower_stored_code(l, l->out[i]) : -1;
    if (code < 0 || !lower_category(l, code, &t)) lower_refuse(l, "the archive does not say the element type of its result");
    return t;
}
