// Pointwise ops: one rule for all shapes (NumPy broadcasting), one table for all types.
#include "ops/pointwise.h"

// ---- types -------------------------------------------------------------------------------------------------------------
typedef enum ResultType { RESULT_SAME, RESULT_BOOL, RESULT_CAST } ResultType;

static const struct {
    int nin, classes;     // all operands (but where's condition) have one type of these classes
    ResultType result;
} signature[OP_COUNT] = {
    [OP_NEG] = {1, TYPE_NUMBER, RESULT_SAME},       [OP_ABS] = {1, TYPE_NUMBER, RESULT_SAME},
    [OP_SIGN] = {1, TYPE_NUMBER, RESULT_SAME},      [OP_EXP] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_EXPM1] = {1, TYPE_FLOAT, RESULT_SAME},      [OP_LOG] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_LOG1P] = {1, TYPE_FLOAT, RESULT_SAME},      [OP_SQRT] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_RSQRT] = {1, TYPE_FLOAT, RESULT_SAME},      [OP_SIN] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_COS] = {1, TYPE_FLOAT, RESULT_SAME},        [OP_TANH] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_SIGMOID] = {1, TYPE_FLOAT, RESULT_SAME},    [OP_ERF] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_FLOOR] = {1, TYPE_FLOAT, RESULT_SAME},      [OP_SILU] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_GELU] = {1, TYPE_FLOAT, RESULT_SAME},       [OP_GELU_TANH] = {1, TYPE_FLOAT, RESULT_SAME},
    [OP_NOT] = {1, TYPE_BOOL, RESULT_SAME},         [OP_CAST] = {1, TYPE_ANY, RESULT_CAST},
    [OP_STOP_GRAD] = {1, TYPE_ANY, RESULT_SAME},    [OP_ADD] = {2, TYPE_NUMBER, RESULT_SAME},
    [OP_SUB] = {2, TYPE_NUMBER, RESULT_SAME},       [OP_MUL] = {2, TYPE_NUMBER, RESULT_SAME},
    [OP_DIV] = {2, TYPE_FLOAT, RESULT_SAME},        [OP_POW] = {2, TYPE_NUMBER, RESULT_SAME},
    [OP_MAX] = {2, TYPE_NUMBER, RESULT_SAME},       [OP_MIN] = {2, TYPE_NUMBER, RESULT_SAME},
    [OP_FLOORDIV] = {2, TYPE_NUMBER, RESULT_SAME},  [OP_MOD] = {2, TYPE_NUMBER, RESULT_SAME},
    [OP_EQ] = {2, TYPE_ANY, RESULT_BOOL},           [OP_NE] = {2, TYPE_ANY, RESULT_BOOL},
    [OP_LT] = {2, TYPE_NUMBER, RESULT_BOOL},        [OP_LE] = {2, TYPE_NUMBER, RESULT_BOOL},
    [OP_GT] = {2, TYPE_NUMBER, RESULT_BOOL},        [OP_GE] = {2, TYPE_NUMBER, RESULT_BOOL},
    [OP_AND] = {2, TYPE_BOOL, RESULT_SAME},         [OP_OR] = {2, TYPE_BOOL, RESULT_SAME},
    [OP_XOR] = {2, TYPE_BOOL, RESULT_SAME},         [OP_WHERE] = {3, TYPE_ANY, RESULT_SAME},
};

int pointwise_nin(OpKind op) { return signature[op].nin; }

static const char *classes_text(int classes) {
    switch (classes) {
    case TYPE_FLOAT: return "floats";
    case TYPE_BOOL: return "bools";
    case TYPE_NUMBER: return "floats or i64";
    default: return "f32, f64, i64 or bool";
    }
}

Status pointwise_type(OpKind op, int nin, const DType *t, DType to, DType *out, Diag *d) {
    if (nin != signature[op].nin) return infer_error(d, "%s takes %d operands, got %d", op_name(op), signature[op].nin, nin);
    int first = op == OP_WHERE ? 1 : 0;
    if (op == OP_WHERE && t[0] != DT_BOOL) return infer_error(d, "the condition of where must be bool, not %s", dtype_name(t[0]));
    for (int i = first; i < nin; i++) {
        if (!(type_class(t[i]) & signature[op].classes))
            return infer_error(d, "%s takes %s, operand %d is %s", op_name(op), classes_text(signature[op].classes), i,
                               dtype_name(t[i]));
        if (t[i] == DT_BF16 && op != OP_CAST && op != OP_STOP_GRAD)
            return infer_error(d, "%s does not compute in bf16: cast operand %d to f32 first", op_name(op), i);
        if (t[i] != t[first])
            return infer_error(d, "operands of %s differ in type: %s and %s (cast one)", op_name(op), dtype_name(t[first]),
                               dtype_name(t[i]));
    }
    *out = signature[op].result == RESULT_BOOL ? DT_BOOL : signature[op].result == RESULT_CAST ? to : t[first];
    return ST_OK;
}

static Status infer_pointwise(const Graph *g, const Node *n, int *nout, TypeOut *out, Diag *d) {
    TRY(rule_nin(n, signature[n->op].nin, d));
    DType t[3], to = DT_F32, result;
    Shape s = *in_shape(g, n, 0);
    for (int i = 0; i < n->nin; i++) {
        t[i] = in_dtype(g, n, i);
        if (i > 0 && !broadcast_shapes(&s, in_shape(g, n, i), &s))
            return infer_error(d, "operand %d of %s, %s, does not broadcast with %s", i, op_name(n->op),
                               shape_text(in_shape(g, n, i)).s, shape_text(&s).s);
    }
    if (n->op == OP_CAST) TRY(rule_dtype(n, &to, d));
    TRY(pointwise_type(n->op, n->nin, t, to, &result, d));
    TRY(rule_check_shape(&s, d));
    return rule_result(nout, out, result, s);
}

// ---- sharding ----------------------------------------------------------------------------------------------------------
int pointwise_axis(const Graph *g, const Node *n, int slot, int dim) {
    const Shape *o = graph_shape(g, n->out[0]), *s = graph_shape(g, slot_value(n, slot));
    int at = dim + o->ndim - s->ndim;
    return s->dim[dim] > 1 && s->dim[dim] == o->dim[at] ? at : NO_AXIS;
}

// Where a sum may be carried out later: f(sum of x_r) = sum of f(x_r).
static bool shard_partial(const Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.reduce != RED_SUM) return false;
    switch (n->op) {
    case OP_NEG:
    case OP_STOP_GRAD:
    case OP_ADD:  // every operand must be a sum: a replicated one would be added once per rank
    case OP_SUB: return row_terms(g, n, p, row);
    case OP_MUL:
    case OP_DIV: {  // one factor; the divisor cannot be
        int factor = slot < 0 ? 0 : slot;
        if (n->op == OP_DIV && factor == 1) return false;
        row_replicate(n, row);
        row->in[factor] = row->out[0] = p;
        return true;
    }
    case OP_WHERE:
        if (slot == 0) return false;
        if (!row_terms(g, n, p, row)) return false;
        row->in[0] = REPLICATE;
        return true;
    default: return false;
    }
}

static bool shard_pointwise(Graph *g, const Node *n, int slot, Placement p, Row *row) {
    if (p.kind == PLACE_PARTIAL) return shard_partial(g, n, slot, p, row);
    return row_from_axes(g, n, slot, p, pointwise_axis, NULL, row);
}

// ---- cost --------------------------------------------------------------------------------------------------------------
static void cost_transcendental(const Node *n, const Operand *in, const Operand *out, Cost *c) {
    cost_memory_bound(n, in, out, c);
    c->flops *= 8;
}

// ---- samples: broadcasting on either side, odd sizes, dims of size 1, a scalar -------------------------------------------
#define FLOAT_UNARY(array, LO, HI)                                                                                            \
    static const Sample array[] = {                                                                                           \
        {.label = "2-d", .nin = 1, .shape = {DIMS(3, 7)}, .dtype = {DT_F32}, .lo = {LO}, .hi = {HI}},                         \
        {.label = "3-d", .nin = 1, .shape = {DIMS(2, 1, 5)}, .dtype = {DT_F32}, .lo = {LO}, .hi = {HI}},                      \
    }
FLOAT_UNARY(any_float, 0, 0);
FLOAT_UNARY(positive_float, 2, 16);
FLOAT_UNARY(above_minus_one, -5, 12);

static const Sample float_or_int[] = {
    {.label = "float", .nin = 1, .shape = {DIMS(3, 7)}, .dtype = {DT_F32}},
    {.label = "i64", .nin = 1, .shape = {DIMS(6)}, .dtype = {DT_I64}, .lo = {-4}, .hi = {5}},
};
static const Sample one_bool[] = {
    {.label = "2-d", .nin = 1, .shape = {DIMS(3, 5)}, .dtype = {DT_BOOL}, .hi = {2}},
    {.label = "3-d", .nin = 1, .shape = {DIMS(2, 1, 7)}, .dtype = {DT_BOOL}, .hi = {2}},
};
static const Sample cast_samples[] = {
    {.label = "float to i64",
     .nin = 1,
     .shape = {DIMS(3, 7)},
     .dtype = {DT_F32},
     .lo = {-30},
     .hi = {30},
     .nattr = 1,
     .attr = {SAMPLE_I(DTYPE, DT_I64)}},
    {.label = "i64 to float",
     .nin = 1,
     .shape = {DIMS(5)},
     .dtype = {DT_I64},
     .lo = {-4},
     .hi = {5},
     .nattr = 1,
     .attr = {SAMPLE_I(DTYPE, DT_F32)}},
    {.label = "i64 to bool",
     .nin = 1,
     .shape = {DIMS(2, 6)},
     .dtype = {DT_I64},
     .lo = {-1},
     .hi = {2},
     .nattr = 1,
     .attr = {SAMPLE_I(DTYPE, DT_BOOL)}},
    {.label = "bool to float",
     .nin = 1,
     .shape = {DIMS(7)},
     .dtype = {DT_BOOL},
     .hi = {2},
     .nattr = 1,
     .attr = {SAMPLE_I(DTYPE, DT_F32)}},
};

// The second operand of a division stays away from 0.
#define FLOAT_PAIR(text, S0, S1, LO0, HI0, LO1, HI1) \
    {.label = text, .nin = 2, .shape = {S0, S1}, .dtype = {DT_F32, DT_F32}, .lo = {LO0, LO1}, .hi = {HI0, HI1}}
#define SHAPE_3_7 DIMS(3, 7)
#define SHAPE_2_1_5 DIMS(2, 1, 5)
#define SHAPE_3_1 DIMS(3, 1)
#define SHAPE_6_2 DIMS(6, 2)
#define SCALAR {0}
#define FLOAT_BINARY(...)                                           \
    FLOAT_PAIR("equal shapes", SHAPE_3_7, SHAPE_3_7, __VA_ARGS__),       \
    FLOAT_PAIR("broadcast both", SHAPE_2_1_5, SHAPE_3_1, __VA_ARGS__),   \
    FLOAT_PAIR("scalar", SHAPE_6_2, SCALAR, __VA_ARGS__)
#define INT_BINARY(LO0, HI0, LO1, HI1) \
    {.label = "i64", .nin = 2, .shape = {DIMS(5, 1), DIMS(6)}, .dtype = {DT_I64, DT_I64}, .lo = {LO0, LO1}, .hi = {HI0, HI1}}

static const Sample arithmetic[] = {FLOAT_BINARY(0, 0, 0, 0), INT_BINARY(-4, 5, -3, 4)};
static const Sample division[] = {FLOAT_BINARY(0, 0, 4, 16)};
static const Sample whole_division[] = {FLOAT_BINARY(-12, 12, 4, 16), INT_BINARY(-9, 10, 1, 5), INT_BINARY(-9, 10, -5, 0)};
static const Sample powers[] = {FLOAT_BINARY(3, 16, -16, 20), INT_BINARY(-3, 4, 0, 4)};
static const Sample comparisons[] = {FLOAT_BINARY(0, 0, 0, 0), INT_BINARY(0, 3, 0, 3)};
static const Sample two_bools[] = {
    {.label = "bool", .nin = 2, .shape = {DIMS(5, 3), DIMS(3)}, .dtype = {DT_BOOL, DT_BOOL}, .hi = {2, 2}},
    {.label = "bool, sizes of 1", .nin = 2, .shape = {DIMS(1, 6), DIMS(2, 1)}, .dtype = {DT_BOOL, DT_BOOL}, .hi = {2, 2}},
};
static const Sample where_samples[] = {
    {.label = "equal shapes",
     .nin = 3,
     .shape = {DIMS(3, 7), DIMS(3, 7), DIMS(3, 7)},
     .dtype = {DT_BOOL, DT_F32, DT_F32},
     .hi = {2, 0, 0}},
    {.label = "broadcast",
     .nin = 3,
     .shape = {DIMS(5, 1), DIMS(2, 1, 6), {0}},
     .dtype = {DT_BOOL, DT_F32, DT_F32},
     .hi = {2, 0, 0}},
    {.label = "i64",
     .nin = 3,
     .shape = {DIMS(5), DIMS(5), DIMS(1)},
     .dtype = {DT_BOOL, DT_I64, DT_I64},
     .lo = {0, -3, 7},
     .hi = {2, 3, 8}},
};

// ---- records -----------------------------------------------------------------------------------------------------------
#define CHEAP(ENUM, GRAD, array)    \
    const OpInfo op_info_##ENUM = { \
        .infer = infer_pointwise, .grad = GRAD, .shard = shard_pointwise, .cost = cost_memory_bound, SAMPLES(array)}
#define COSTLY(ENUM, GRAD, array)   \
    const OpInfo op_info_##ENUM = { \
        .infer = infer_pointwise, .grad = GRAD, .shard = shard_pointwise, .cost = cost_transcendental, SAMPLES(array)}

CHEAP(NEG, grad_neg, float_or_int);
CHEAP(ABS, grad_abs, float_or_int);
CHEAP(SIGN, NULL, float_or_int);
COSTLY(EXP, grad_exp, any_float);
COSTLY(EXPM1, grad_expm1, any_float);
COSTLY(LOG, grad_log, positive_float);
COSTLY(LOG1P, grad_log1p, above_minus_one);
CHEAP(SQRT, grad_sqrt, positive_float);
CHEAP(RSQRT, grad_rsqrt, positive_float);
COSTLY(SIN, grad_sin, any_float);
COSTLY(COS, grad_cos, any_float);
COSTLY(TANH, grad_tanh, any_float);
COSTLY(SIGMOID, grad_sigmoid, any_float);
COSTLY(ERF, grad_erf, any_float);
CHEAP(FLOOR, NULL, any_float);
COSTLY(SILU, grad_silu, any_float);
COSTLY(GELU, grad_gelu, any_float);
COSTLY(GELU_TANH, grad_gelu_tanh, any_float);
CHEAP(NOT, NULL, one_bool);
CHEAP(CAST, grad_cast, cast_samples);
CHEAP(STOP_GRAD, NULL, any_float);
CHEAP(ADD, grad_add, arithmetic);
CHEAP(SUB, grad_sub, arithmetic);
CHEAP(MUL, grad_mul, arithmetic);
CHEAP(DIV, grad_div, division);
COSTLY(POW, grad_pow, powers);
CHEAP(MAX, grad_max, arithmetic);
CHEAP(MIN, grad_min, arithmetic);
CHEAP(FLOORDIV, NULL, whole_division);
CHEAP(MOD, grad_mod, whole_division);
CHEAP(EQ, NULL, comparisons);
CHEAP(NE, NULL, comparisons);
CHEAP(LT, NULL, comparisons);
CHEAP(LE, NULL, comparisons);
CHEAP(GT, NULL, comparisons);
CHEAP(GE, NULL, comparisons);
CHEAP(AND, NULL, two_bools);
CHEAP(OR, NULL, two_bools);
CHEAP(XOR, NULL, two_bools);
CHEAP(WHERE, grad_where, where_samples);
