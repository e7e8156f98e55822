// Matrix products: linear, matmul and its many spellings, and the grouped product of mixtures of experts.
#include <math.h>
#include "import/lower.h"

static ValueId scaled(Lower *l, ValueId x, double s) { return s == 1.0 || lower_failed(l) ? x : lower_scalar(l, OP_MUL, x, s); }

// x w^T + b, w [out, in] or [in].
static void lower_linear(Lower *l) {
    ValueId x = lower_in(l, "input"), w = lower_in(l, "weight");
    Shape sx = LSHAPE(l, x), sw = LSHAPE(l, w);
    if (!lower_failed(l) && (sx.ndim == 0 || sw.ndim < 1 || sw.ndim > 2 || sx.dim[sx.ndim - 1] != sw.dim[sw.ndim - 1]))
        lower_invalid(l, "linear of shapes that do not fit");
    ValueId y = build_dot(&l->b, x, w, 0, 1, false, sw.ndim == 2);
    if (lower_has(l, "bias")) y = lower_binary(l, OP_ADD, y, lower_in(l, "bias"));
    lower_out(l, 0, y);
}

// Argument names and ranks of the plain products; 0: any rank.
enum { MM_MATMUL, MM_MM, MM_BMM, MM_MV, MM_DOT };
static void lower_product(Lower *l) {
    static const struct {
        const char *other;
        int nx, ny;
    } form[] = {{"other", 0, 0}, {"mat2", 2, 2}, {"mat2", 3, 3}, {"vec", 2, 1}, {"tensor", 1, 1}};
    int f = l->cur->op;
    const char *other = lower_has(l, form[f].other) ? form[f].other : "other";
    ValueId x = lower_in(l, lower_has(l, "self") ? "self" : "input"), y = lower_in(l, other);
    if (!lower_failed(l) && form[f].nx && (LSHAPE(l, x).ndim != form[f].nx || LSHAPE(l, y).ndim != form[f].ny))
        lower_invalid(l, "a product of %d and %d dims", LSHAPE(l, x).ndim, LSHAPE(l, y).ndim);
    lower_out(l, 0, lower_matmul(l, x, y));
}

// beta * self + alpha * (a b)
enum { ADD_MM, ADD_BMM, ADD_MV, ADD_R, ADD_BMM_SUM };
static void lower_add_product(Lower *l) {
    static const char *const names[][2] = {
        {"mat1", "mat2"}, {"batch1", "batch2"}, {"mat", "vec"}, {"vec1", "vec2"}, {"batch1", "batch2"}};
    int f = l->cur->op;
    ValueId c = lower_in(l, "self"), x = lower_in(l, names[f][0]), y = lower_in(l, names[f][1]), p;
    double alpha = lower_float(l, "alpha", 1), beta = lower_float(l, "beta", 1);
    if (lower_failed(l)) return;
    if (f == ADD_R) {
        p = lower_binary(l, OP_MUL, build_unsqueeze(&l->b, x, 1), build_unsqueeze(&l->b, y, 0));
    } else {
        p = lower_matmul(l, x, y);
        if (f == ADD_BMM_SUM) p = lower_sum_dims(l, p, 1, (int[]){0}, false);
    }
    p = scaled(l, p, alpha);
    lower_out(l, 0, beta == 0 ? p : lower_binary(l, OP_ADD, scaled(l, c, beta), p));
}

static void lower_outer(Lower *l) {
    ValueId x = lower_in(l, "self"), y = lower_in(l, lower_has(l, "vec2") ? "vec2" : "other");
    if (!lower_failed(l) && (LSHAPE(l, x).ndim != 1 || LSHAPE(l, y).ndim != 1))
        lower_invalid(l, "an outer product of tensors that are not vectors");
    if (!lower_failed(l)) lower_out(l, 0, lower_binary(l, OP_MUL, build_unsqueeze(&l->b, x, 1), build_unsqueeze(&l->b, y, 0)));
}

// Sum over the last dims of both.
static void lower_inner(Lower *l) {
    ValueId x = lower_in(l, "self"), y = lower_in(l, "other");
    int nx = LSHAPE(l, x).ndim, ny = LSHAPE(l, y).ndim;
    if (lower_failed(l)) return;
    lower_out(l, 0, nx && ny ? build_dot(&l->b, x, y, 0, 1, false, true) : lower_binary(l, OP_MUL, x, y));
}

// Contraction of listed dims: dims_self of self with dims_other of other.
static void lower_tensordot(Lower *l) {
    ValueId in[2] = {lower_in(l, "self"), lower_in(l, "other")};
    int dims[2][MAX_DIMS], k[2];
    if (lower_failed(l)) return;
    k[0] = lower_dims_arg(l, "dims_self", LSHAPE(l, in[0]).ndim, dims[0]);
    k[1] = lower_dims_arg(l, "dims_other", LSHAPE(l, in[1]).ndim, dims[1]);
    if (!lower_failed(l) && (k[0] != k[1] || k[0] < 1)) lower_refuse(l, "tensordot over %d and %d dims", k[0], k[1]);
    for (int i = 0; i < 2 && !lower_failed(l); i++) {
        int n = LSHAPE(l, in[i]).ndim, order[MAX_DIMS], at = 0;
        bool used[MAX_DIMS] = {false};
        for (int j = 0; j < k[i]; j++) used[dims[i][j]] = true;
        for (int j = 0; j < k[i] && i == 1; j++) order[at++] = dims[i][j];
        for (int j = 0; j < n; j++)
            if (!used[j]) order[at++] = j;
        for (int j = 0; j < k[i] && i == 0; j++) order[at++] = dims[i][j];
        in[i] = build_permute(&l->b, in[i], order);
    }
    lower_out(l, 0, build_dot(&l->b, in[0], in[1], 0, k[0], false, false));
}

// Rows offs[e-1] .. offs[e] of input [N, K] times weight[e] [K, N2]: the expert of row i is the number of offs <= i. The experts
// pass recognises this form (expert_matmul whose expert numbers are sum_e(i >= offs[e])).
static void lower_grouped(Lower *l) {
    bool torch = lower_has(l, "self");
    ValueId x = lower_in(l, torch ? "self" : "input"), w = lower_in(l, torch ? "mat2" : "weight");
    if (!lower_failed(l) && !lower_has(l, "offs")) lower_refuse(l, "a grouped product without offsets");
    ValueId offs = lower_in(l, "offs");
    if (lower_has(l, "bias")) lower_refuse(l, "a grouped product with a bias");
    lower_ignore(l, "out_dtype");
    Shape sx = LSHAPE(l, x), sw = LSHAPE(l, w), so = LSHAPE(l, offs);
    if (!lower_failed(l) && (sx.ndim != 2 || sw.ndim != 3 || so.ndim != 1 || so.dim[0] != sw.dim[0]))
        lower_refuse(l, "a grouped product of other shapes than [N, K], [E, K, N2] and offsets [E]");
    if (lower_failed(l)) return;
    ValueId row = build_iota(&l->b, SHAPE(sx.dim[0], 1), 0, 0, 1, DT_I64);
    ValueId past = lower_cast(l, lower_binary(l, OP_GE, row, build_unsqueeze(&l->b, offs, 0)), DT_I64);
    ValueId expert = lower_sum_dims(l, past, 1, (int[]){1}, false);
    Attr a = attr_i(ATTR_TRANS_W, 0);
    lower_out(l, 0, build(&l->b, OP_EXPERT_MATMUL, 3, (ValueId[]){x, expert, w}, 1, &a));
}

const LowerRow lower_rows_linear[] = {
    {"linear", lower_linear, 0},
    {"matmul", lower_product, MM_MATMUL},
    {"__matmul__", lower_product, MM_MATMUL},
    {"linalg_matmul", lower_product, MM_MATMUL},
    {"mm", lower_product, MM_MM},
    {"bmm", lower_product, MM_BMM},
    {"mv", lower_product, MM_MV},
    {"dot", lower_product, MM_DOT},
    {"vdot", lower_product, MM_DOT},
    {"addmm", lower_add_product, ADD_MM},
    {"baddbmm", lower_add_product, ADD_BMM},
    {"addmv", lower_add_product, ADD_MV},
    {"addr", lower_add_product, ADD_R},
    {"addbmm", lower_add_product, ADD_BMM_SUM},
    {"outer", lower_outer, 0},
    {"ger", lower_outer, 0},
    {"inner", lower_inner, 0},
    {"tensordot", lower_tensordot, 0},
    {"_grouped_mm", lower_grouped, 0},
    {"transformers.grouped_mm_fallback", lower_grouped, 0},
    {NULL, NULL, 0},
};
