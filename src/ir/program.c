// Programs: equality, well-formedness, and evaluation at one point (estimates and tests; kernels have their own evaluators).
#include <math.h>
#include <string.h>
#include "ir/graph.h"

bool program_equal(const Program *a, const Program *b) {
    if (a == b) return true;
    if (!a || !b || a->ninstr != b->ninstr || a->nout != b->nout) return false;
    for (int i = 0; i < a->ninstr; i++) {
        const Instr *x = &a->instr[i], *y = &b->instr[i];
        if (x->code != y->code || x->dtype != y->dtype || x->a != y->a || x->b != y->b || x->c != y->c) return false;
        if (x->code == PROG_CONST && memcmp(&x->imm, &y->imm, sizeof x->imm)) return false;  // bits: NaN equals itself
    }
    for (int i = 0; i < a->nout; i++)
        if (a->out[i] != b->out[i]) return false;
    return true;
}

// The pointwise ops stand in ops.def in the order unary, binary, ternary.
int program_op_arity(int op) {
    if (op >= OP_NEG && op <= OP_STOP_GRAD) return 1;
    if (op >= OP_ADD && op <= OP_XOR) return 2;
    return op == OP_WHERE ? 3 : 0;
}

// ---- well-formedness -----------------------------------------------------------------------------------------------------

// Positions and reductions of fused programs (the dims that they name are checked with the node's shape: ops/fused.c).
static Status check_row_instr(const Program *p, int i, bool attention, Diag *d) {
    const Instr *x = &p->instr[i];
    if (attention) return diag_error(d, ST_INPUT, "program: instruction %d is no leaf that may stand here", i);
    if (x->code == PROG_INDEX) {
        if (x->a >= 0 && x->a < MAX_DIMS && x->dtype == DT_I64) return ST_OK;
        return diag_error(d, ST_INPUT, "program: instruction %d is the i64 position along no dim", i);
    }
    if (x->a < 0 || x->a >= i) return diag_error(d, ST_INPUT, "program: instruction %d uses %d, which is not before it", i, x->a);
    if (p->instr[x->a].code == PROG_COL_SUM) return diag_error(d, ST_INPUT, "program: instruction %d reads a col_sum", i);
    if (x->dtype == DT_F32 && p->instr[x->a].dtype == DT_F32) return ST_OK;
    return diag_error(d, ST_INPUT, "program: instruction %d reduces what is not f32", i);
}

static Status check_instr(const Program *p, int i, bool attention, int nslot, Diag *d) {
    const Instr *x = &p->instr[i];
    if ((int)x->dtype < 0 || x->dtype >= DT_COUNT) return diag_error(d, ST_INPUT, "program: instruction %d has no dtype", i);
    if (x->code < PROG_OP) {
        if (program_is_reduction(x->code) || x->code == PROG_INDEX) return check_row_instr(p, i, attention, d);
        bool slot = x->code == PROG_INPUT || x->code == PROG_VEC_Q || x->code == PROG_VEC_K;
        bool mask_leaf = x->code >= PROG_INDEX_B && x->code <= PROG_VEC_K;
        bool belongs = x->code == PROG_CONST || (attention ? mask_leaf : x->code == PROG_INPUT);
        if (!belongs) return diag_error(d, ST_INPUT, "program: instruction %d is no leaf that may stand here", i);
        if (slot && (x->a < 0 || x->a >= nslot))
            return diag_error(d, ST_INPUT, "program: instruction %d reads operand %d of %d", i, x->a, nslot);
        return ST_OK;
    }
    int arity = program_op_arity(x->code - PROG_OP);
    if (arity == 0) return diag_error(d, ST_INPUT, "program: instruction %d is not a pointwise op", i);
    const int32_t operand[3] = {x->a, x->b, x->c};
    for (int k = 0; k < arity; k++)
        if (operand[k] < 0 || operand[k] >= i)
            return diag_error(d, ST_INPUT, "program: instruction %d uses %d, which is not before it", i, operand[k]);
    for (int k = 0; k < arity; k++)
        if (p->instr[operand[k]].code == PROG_COL_SUM)
            return diag_error(d, ST_INPUT, "program: instruction %d reads a col_sum", i);
    return ST_OK;
}

Status program_check(const Program *p, bool attention, int nslot, Diag *d) {
    if (!p) return diag_error(d, ST_INPUT, "program: missing");
    for (int i = 0; i < p->ninstr; i++) TRY(check_instr(p, i, attention, nslot, d));
    if (attention && p->nout != 2) return diag_error(d, ST_INPUT, "program: attention takes 2 outputs, not %d", p->nout);
    for (int i = 0; i < p->nout; i++) {
        if (p->out[i] == -1 && attention) continue;
        if (p->out[i] < 0 || p->out[i] >= p->ninstr) return diag_error(d, ST_INPUT, "program: output %d is out of range", i);
        if (!attention) continue;
        DType t = p->instr[p->out[i]].dtype;
        if (i == 0 ? t != DT_BOOL : !dtype_is_float(t))
            return diag_error(d, ST_INPUT, "program: output %d must be %s", i, i == 0 ? "bool (visible)" : "float (bias)");
    }
    return ST_OK;
}

char program_vec_role(const Program *p, int slot) {
    for (int i = 0; p && i < p->ninstr; i++) {
        if (p->instr[i].a != slot) continue;
        if (p->instr[i].code == PROG_VEC_Q) return 'q';
        if (p->instr[i].code == PROG_VEC_K) return 'k';
    }
    return 0;
}

// ---- evaluation at a point -----------------------------------------------------------------------------------------------

static double eval_unary(OpKind op, double x, DType to) {
    switch (op) {
    case OP_NEG: return -x;
    case OP_ABS: return fabs(x);
    case OP_SIGN: return x > 0 ? 1 : x < 0 ? -1 : x;
    case OP_EXP: return exp(x);
    case OP_EXPM1: return expm1(x);
    case OP_LOG: return log(x);
    case OP_LOG1P: return log1p(x);
    case OP_SQRT: return sqrt(x);
    case OP_RSQRT: return 1 / sqrt(x);
    case OP_SIN: return sin(x);
    case OP_COS: return cos(x);
    case OP_TANH: return tanh(x);
    case OP_SIGMOID: return 1 / (1 + exp(-x));
    case OP_ERF: return erf(x);
    case OP_FLOOR: return floor(x);
    case OP_SILU: return x / (1 + exp(-x));
    case OP_GELU: return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case OP_GELU_TANH: return 0.5 * x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
    case OP_NOT: return x == 0;
    case OP_CAST: return to == DT_BOOL ? x != 0 : dtype_is_float(to) ? x : trunc(x);
    default: return x;  // stop_grad
    }
}

// Integer division rounds toward minus infinity, in doubles too: a quotient that rounds up to an integer is corrected.
static double floor_quotient(double x, double y) {
    double f = floor(x / y);
    return f * y > x && y > 0 ? f - 1 : f;
}

static double eval_binary(OpKind op, double x, double y) {
    switch (op) {
    case OP_ADD: return x + y;
    case OP_SUB: return x - y;
    case OP_MUL: return x * y;
    case OP_DIV: return x / y;
    case OP_POW: return pow(x, y);
    case OP_MAX: return isnan(x) || isnan(y) ? NAN : fmax(x, y);
    case OP_MIN: return isnan(x) || isnan(y) ? NAN : fmin(x, y);
    case OP_FLOORDIV: return y == 0 ? 0 : floor_quotient(x, y);
    case OP_MOD: return y == 0 ? 0 : x - y * floor_quotient(x, y);
    case OP_EQ: return x == y;
    case OP_NE: return x != y;
    case OP_LT: return x < y;
    case OP_LE: return x <= y;
    case OP_GT: return x > y;
    case OP_GE: return x >= y;
    case OP_AND: return x != 0 && y != 0;
    case OP_OR: return x != 0 || y != 0;
    default: return (x != 0) != (y != 0);  // xor
    }
}

static double eval_leaf(const Instr *x, const ProgPoint *at, bool *known) {
    *known = true;
    switch (x->code) {
    case PROG_CONST: return x->imm;
    case PROG_INDEX_B: return (double)at->b;
    case PROG_INDEX_H: return (double)at->h;
    case PROG_INDEX_Q: return (double)at->q;
    case PROG_INDEX_K: return (double)at->k;
    default: *known = at->vec != NULL; return at->vec ? at->vec[x->a] : 0;
    }
}

void program_eval_scalar(const Program *p, const ProgPoint *at, double *value, bool *known) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        if (x->code < PROG_OP) {
            value[i] = eval_leaf(x, at, &known[i]);
            continue;
        }
        OpKind op = (OpKind)(x->code - PROG_OP);
        int arity = program_op_arity(op), a = x->a, b = x->b;
        if (arity == 1) {
            value[i] = eval_unary(op, value[a], x->dtype);
            known[i] = known[a];
        } else if (arity == 2) {
            value[i] = eval_binary(op, value[a], value[b]);
            known[i] = known[a] && known[b];
            // One known operand can decide: and(x, false) is false, or(x, true) is true.
            double decides = op == OP_AND ? 0 : 1;
            bool by_a = known[a] && (value[a] != 0) == (decides != 0), by_b = known[b] && (value[b] != 0) == (decides != 0);
            if ((op == OP_AND || op == OP_OR) && (by_a || by_b)) value[i] = decides, known[i] = true;
        } else {
            int taken = value[a] != 0 ? b : x->c;
            value[i] = value[taken];
            known[i] = known[a] && known[taken];
        }
    }
}
