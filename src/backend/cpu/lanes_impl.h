// One instruction of a Program over n lanes, for one width of integers (INT) and one float type (REAL): plain loops that the
// compiler turns into vector code. Bools are bytes. Included by predicate.c with LANES(name) naming the instance.
// A lane array is n elements of the instruction's type; leaves are filled by the caller.

// z[i] = expr in x = a[i], y = b[i] of types T, into type R.
#define LANE1(R, T, expr)                                              \
    {                                                                  \
        R *restrict zr = z;                                            \
        const T *ar = a;                                               \
        for (int64_t i = 0; i < n; i++) {                              \
            T x = ar[i];                                               \
            zr[i] = (R)(expr);                                         \
        }                                                              \
        return;                                                        \
    }
#define LANE2(R, T, expr)                                              \
    {                                                                  \
        R *restrict zr = z;                                            \
        const T *ar = a, *br = b;                                      \
        for (int64_t i = 0; i < n; i++) {                              \
            T x = ar[i], y = br[i];                                    \
            zr[i] = (R)(expr);                                         \
        }                                                              \
        return;                                                        \
    }

// x to the power y, toward zero as the quotient of 1 and a power is for y < 0.
static INT LANES(int_pow)(INT x, INT y) {
    if (y < 0) return x == 1 ? 1 : x == -1 ? (y % 2 ? -1 : 1) : 0;
    uint64_t r = 1, f = (uint64_t)x;  // wraps
    for (; y > 0; y /= 2, f *= f)
        if (y % 2) r *= f;
    return (INT)r;
}

static void LANES(int_op)(OpKind op, int64_t n, void *z, const void *a, const void *b) {
    switch (op) {
    case OP_NEG: LANE1(INT, INT, -x)
    case OP_ABS: LANE1(INT, INT, x < 0 ? -x : x)
    case OP_SIGN: LANE1(INT, INT, (x > 0) - (x < 0))
    case OP_FLOOR:
    case OP_STOP_GRAD: LANE1(INT, INT, x)
    case OP_ADD: LANE2(INT, INT, x + y)
    case OP_SUB: LANE2(INT, INT, x - y)
    case OP_MUL: LANE2(INT, INT, x *y)
    case OP_MAX: LANE2(INT, INT, x > y ? x : y)
    case OP_MIN: LANE2(INT, INT, x < y ? x : y)
    case OP_POW: LANE2(INT, INT, LANES(int_pow)(x, y))
    // By zero: the graph has no such thing; 0 instead of a trap.
    case OP_FLOORDIV: LANE2(INT, INT, y == 0 ? 0 : x / y - (x % y != 0 && (x < 0) != (y < 0)))
    case OP_MOD: LANE2(INT, INT, y == 0 ? 0 : (x % y != 0 && (x < 0) != (y < 0)) ? x % y + y : x % y)
    default: CHECK(false, "integer op %s in a mask program", op_name(op));
    }
}

static void LANES(real_op)(OpKind op, int64_t n, void *z, const void *a, const void *b) {
    switch (op) {
    case OP_NEG: LANE1(REAL, REAL, -x)
    case OP_ABS: LANE1(REAL, REAL, x < 0 ? -x : x + 0)
    case OP_SIGN: LANE1(REAL, REAL, x != x ? x : (REAL)((x > 0) - (x < 0)))
    case OP_STOP_GRAD: LANE1(REAL, REAL, x)
    case OP_FLOOR: LANE1(REAL, REAL, floor(x))
    case OP_EXP: LANE1(REAL, REAL, exp(x))
    case OP_EXPM1: LANE1(REAL, REAL, expm1(x))
    case OP_LOG: LANE1(REAL, REAL, log(x))
    case OP_LOG1P: LANE1(REAL, REAL, log1p(x))
    case OP_SQRT: LANE1(REAL, REAL, sqrt(x))
    case OP_RSQRT: LANE1(REAL, REAL, 1 / sqrt(x))
    case OP_SIN: LANE1(REAL, REAL, sin(x))
    case OP_COS: LANE1(REAL, REAL, cos(x))
    case OP_TANH: LANE1(REAL, REAL, tanh(x))
    case OP_SIGMOID: LANE1(REAL, REAL, 1 / (1 + exp(-(double)x)))
    case OP_ERF: LANE1(REAL, REAL, erf(x))
    case OP_SILU: LANE1(REAL, REAL, x / (1 + exp(-(double)x)))
    case OP_GELU: LANE1(REAL, REAL, 0.5 * x * (1 + erf(x * 0.70710678118654752440)))
    case OP_GELU_TANH: LANE1(REAL, REAL, 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))))
    case OP_ADD: LANE2(REAL, REAL, x + y)
    case OP_SUB: LANE2(REAL, REAL, x - y)
    case OP_MUL: LANE2(REAL, REAL, x *y)
    case OP_DIV: LANE2(REAL, REAL, x / y)
    case OP_POW: LANE2(REAL, REAL, pow(x, y))
    case OP_MAX: LANE2(REAL, REAL, x > y || x != x ? x : y)
    case OP_MIN: LANE2(REAL, REAL, x < y || x != x ? x : y)
    case OP_FLOORDIV: LANE2(REAL, REAL, floor(x / y))
    case OP_MOD: LANE2(REAL, REAL, x - floor(x / y) * y)
    default: CHECK(false, "float op %s in a mask program", op_name(op));
    }
}

// Comparisons of operands of type T.
#define LANE_COMPARE(name, T)                                                                             \
    static void LANES(name)(OpKind op, int64_t n, void *z, const void *a, const void *b) {                 \
        switch (op) {                                                                                     \
        case OP_EQ: LANE2(uint8_t, T, x == y)                                                             \
        case OP_NE: LANE2(uint8_t, T, x != y)                                                             \
        case OP_LT: LANE2(uint8_t, T, x < y)                                                              \
        case OP_LE: LANE2(uint8_t, T, x <= y)                                                             \
        case OP_GT: LANE2(uint8_t, T, x > y)                                                              \
        default: LANE2(uint8_t, T, x >= y)                                                                \
        }                                                                                                 \
    }
LANE_COMPARE(compare_int, INT)
LANE_COMPARE(compare_real, REAL)
LANE_COMPARE(compare_bool, uint8_t)

#define LANE_WHERE(T)                                                                        \
    {                                                                                        \
        T *restrict zr = z;                                                                  \
        const T *ar = a, *br = b;                                                            \
        for (int64_t i = 0; i < n; i++) zr[i] = cond[i] ? ar[i] : br[i];                     \
        return;                                                                              \
    }
static void LANES(where)(DType t, int64_t n, void *z, const uint8_t *cond, const void *a, const void *b) {
    if (t == DT_BOOL) LANE_WHERE(uint8_t)
    if (t == DT_I64) LANE_WHERE(INT)
    LANE_WHERE(REAL)
}

static void LANES(cast)(DType to, DType from, int64_t n, void *z, const void *a) {
    if (to == DT_BOOL) {
        if (from == DT_BOOL) LANE1(uint8_t, uint8_t, x)
        if (from == DT_I64) LANE1(uint8_t, INT, x != 0)
        LANE1(uint8_t, REAL, x != 0)
    }
    if (to == DT_I64) {
        if (from == DT_BOOL) LANE1(INT, uint8_t, x)
        if (from == DT_I64) LANE1(INT, INT, x)
        // out of range or NaN: undefined in C, and in the program
        LANE1(INT, REAL, x >= (REAL)-0x1p62 && x <= (REAL)0x1p62 ? (int64_t)x : 0)
    }
    if (from == DT_BOOL) LANE1(REAL, uint8_t, x)
    if (from == DT_I64) LANE1(REAL, INT, x)
    LANE1(REAL, REAL, x)
}

static void LANES(bool_op)(OpKind op, int64_t n, void *z, const void *a, const void *b) {
    switch (op) {
    case OP_NOT: LANE1(uint8_t, uint8_t, !x)
    case OP_STOP_GRAD: LANE1(uint8_t, uint8_t, x)
    case OP_AND:
    case OP_MIN: LANE2(uint8_t, uint8_t, x &y)
    case OP_OR:
    case OP_MAX: LANE2(uint8_t, uint8_t, x | y)
    case OP_XOR: LANE2(uint8_t, uint8_t, x ^ y)
    default: CHECK(false, "bool op %s in a mask program", op_name(op));
    }
}

static void LANES(op)(const Instr *in, DType from, int64_t n, void *z, const void *a, const void *b, const void *c) {
    OpKind op = (OpKind)(in->code - PROG_OP);
    switch (op) {
    case OP_EQ: case OP_NE: case OP_LT: case OP_LE: case OP_GT: case OP_GE:
        if (from == DT_BOOL) LANES(compare_bool)(op, n, z, a, b);
        else if (from == DT_I64) LANES(compare_int)(op, n, z, a, b);
        else LANES(compare_real)(op, n, z, a, b);
        return;
    case OP_WHERE: LANES(where)(in->dtype, n, z, a, b, c); return;
    case OP_CAST: LANES(cast)(in->dtype, from, n, z, a); return;
    default:
        if (in->dtype == DT_BOOL) LANES(bool_op)(op, n, z, a, b);
        else if (in->dtype == DT_I64) LANES(int_op)(op, n, z, a, b);
        else LANES(real_op)(op, n, z, a, b);
    }
}

// Elements [begin, begin + n) of a vector operand, in its own type, into lanes.
static void LANES(load)(const Operand *o, int64_t begin, int64_t n, void *z) {
    const void *a = NULL;
    if (o->dtype == DT_I64) {
        const int64_t *src = (const int64_t *)o->data + begin;
        INT *restrict zr = z;
        for (int64_t i = 0; i < n; i++) zr[i] = (INT)src[i];
        return;
    }
    size_t size = o->dtype == DT_BOOL ? 1 : sizeof(REAL);
    a = (const char *)o->data + (size_t)begin * size;
    memcpy(z, a, (size_t)n * size);
}

// n lanes of one number.
static void LANES(fill)(DType t, int64_t n, void *z, double v, int64_t integer) {
    if (t == DT_BOOL) memset(z, v != 0, (size_t)n);
    else if (t == DT_I64)
        for (int64_t i = 0; i < n; i++) ((INT *)z)[i] = (INT)integer;
    else
        for (int64_t i = 0; i < n; i++) ((REAL *)z)[i] = (REAL)v;
}

static void LANES(iota)(int64_t begin, int64_t n, void *z) {
    INT *zr = z, b = (INT)begin;
    for (int64_t i = 0; i < n; i++) zr[i] = b + (INT)i;
}

// Copies lane 0 to the others.
static void LANES(spread)(DType t, int64_t n, void *z) {
    if (t == DT_BOOL) memset(z, *(uint8_t *)z, (size_t)n);
    else if (t == DT_I64) LANES(fill)(t, n, z, 0, *(INT *)z);
    else LANES(fill)(t, n, z, (double)*(REAL *)z, 0);
}
#undef LANE1
#undef LANE2
#undef LANE_COMPARE
#undef LANE_WHERE
