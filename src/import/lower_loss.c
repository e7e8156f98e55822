// Losses. Cross-entropy is logsumexp minus the picked logit: the log-softmax of the whole vocabulary is never made.
#include <math.h>
#include "import/lower.h"

enum { REDUCE_NONE, REDUCE_MEAN, REDUCE_SUM };

// ---- classes --------------------------------------------------------------------------------------------------------------

typedef struct Classes {
    ValueId x;            // [N..., C]: logits or log-probabilities, the class dim last
    ValueId target;       // [N...], 0 where ignored
    ValueId valid;        // bool [N...]
    ValueId weight;       // [C], NO_VALUE if none
    ValueId target_weight;  // [N...]: 0 where ignored, the class weight (or 1) elsewhere
    int64_t nclass;
    int64_t reduction;
} Classes;

// The class dim is dim 1 (dim 0 of a single sample); it moves last.
static bool read_classes(Lower *l, Classes *c) {
    c->x = lower_real(l, lower_in(l, "self"));
    c->target = lower_in(l, "target");
    c->weight = lower_in_or(l, "weight");
    c->reduction = lower_int(l, "reduction", REDUCE_MEAN);
    Shape s = LSHAPE(l, c->x);
    if (!lower_failed(l) && s.ndim < 1) lower_invalid(l, "a loss over classes of a 0-dim tensor");
    if (lower_failed(l)) return false;
    int dim = s.ndim == 1 ? 0 : 1;
    c->nclass = s.dim[dim];
    c->x = lower_move_dim(l, c->x, dim, s.ndim - 1);
    if (c->weight >= 0 && (LSHAPE(l, c->weight).ndim != 1 || LSHAPE(l, c->weight).dim[0] != c->nclass))
        lower_invalid(l, "class weights that are not one number per class");
    return !lower_failed(l);
}

static bool read_targets(Lower *l, Classes *c) {
    int64_t ignore = lower_int(l, "ignore_index", -100);
    Shape s = LSHAPE(l, c->x), st = LSHAPE(l, c->target);
    s.ndim--;
    if (!lower_failed(l) && (LDTYPE(l, c->target) != DT_I64 || !shape_equal(&s, &st)))
        lower_refuse(l, "targets that are not one class number per position");
    if (lower_failed(l)) return false;
    c->valid = lower_scalar(l, OP_NE, c->target, (double)ignore);
    c->target = lower_where(l, c->valid, c->target, lower_number(l, DT_I64, 0));
    ValueId one = lower_number(l, l->real, 1);
    if (c->weight >= 0) one = lower_take(l, c->weight, 0, c->target);
    c->target_weight = lower_where(l, c->valid, one, lower_number(l, l->real, 0));
    return !lower_failed(l);
}

// The sum of weights that a mean divides by; counted in integers where there are none.
static ValueId total_weight(Lower *l, const Classes *c) {
    if (c->weight >= 0) return build_sum_all(&l->b, c->target_weight);
    return lower_real(l, build_sum_all(&l->b, lower_cast(l, c->valid, DT_I64)));
}

// per[N...] -> the result; ignored positions are already 0.
static ValueId reduce_classes(Lower *l, const Classes *c, ValueId per) {
    if (c->reduction == REDUCE_NONE) return per;
    ValueId sum = build_sum_all(&l->b, per);
    if (c->reduction == REDUCE_SUM) return sum;
    return lower_binary(l, OP_DIV, sum, total_weight(l, c));
}

static ValueId picked(Lower *l, const Classes *c) { return build_binary(&l->b, OP_PICK, c->x, c->target); }

static ValueId only_valid(Lower *l, const Classes *c, ValueId per) {
    return lower_where(l, c->valid, per, lower_number(l, l->real, 0));
}

static ValueId weighted(Lower *l, const Classes *c, ValueId per) {
    return c->weight >= 0 ? lower_binary(l, OP_MUL, per, c->target_weight) : per;
}

// sum over classes of w_c * (lse - x_c), without the C-wide difference.
static ValueId smooth_loss(Lower *l, const Classes *c, ValueId lse) {
    if (c->weight >= 0) {
        ValueId all = build_sum_all(&l->b, c->weight);
        return lower_binary(l, OP_SUB, lower_binary(l, OP_MUL, lse, all), build_dot(&l->b, c->x, c->weight, 0, 1, false, false));
    }
    int last = LSHAPE(l, c->x).ndim - 1;
    ValueId sum = lower_sum_dims(l, c->x, 1, &last, false);
    return lower_binary(l, OP_SUB, lower_scalar(l, OP_MUL, lse, (double)c->nclass), sum);
}

static ValueId class_lse(Lower *l, const Classes *c) {
    int last = LSHAPE(l, c->x).ndim - 1;
    ValueId lse = lower_logsumexp(l, c->x, last);
    return lower_drop_dims(l, lse, 1, &last);
}

// Targets that are probabilities: -sum_c w_c t_c log p_c, the mean over positions.
static void soft_cross_entropy(Lower *l, Classes *c, double smoothing) {
    int n = LSHAPE(l, c->x).ndim, last = n - 1;
    ValueId t = lower_move_dim(l, lower_real(l, c->target), n == 1 ? 0 : 1, last);
    lower_ignore(l, "ignore_index");
    if (lower_failed(l)) return;
    if (smoothing > 0) t = lower_scalar(l, OP_ADD, lower_scalar(l, OP_MUL, t, 1 - smoothing), smoothing / (double)c->nclass);
    if (c->weight >= 0) t = lower_binary(l, OP_MUL, t, c->weight);
    ValueId per = lower_sum_dims(l, lower_binary(l, OP_MUL, t, lower_log_softmax(l, c->x, last)), 1, &last, false);
    per = lower_unary(l, OP_NEG, per);
    lower_out(l, 0, lower_reduction(l, per, c->reduction));
}

static void lower_cross_entropy(Lower *l) {
    Classes c;
    double eps = lower_float(l, "label_smoothing", 0);
    if (!read_classes(l, &c)) return;
    if (!(eps >= 0 && eps <= 1)) lower_invalid(l, "a label smoothing of %g", eps);
    if (LDTYPE(l, c.target) != DT_I64) {
        soft_cross_entropy(l, &c, eps);
        return;
    }
    if (!read_targets(l, &c)) return;
    ValueId lse = class_lse(l, &c);
    ValueId nll = only_valid(l, &c, weighted(l, &c, lower_binary(l, OP_SUB, lse, picked(l, &c))));
    if (eps > 0) {
        ValueId smooth = only_valid(l, &c, smooth_loss(l, &c, lse));
        nll = lower_binary(l, OP_ADD, lower_scalar(l, OP_MUL, nll, 1 - eps),
                           lower_scalar(l, OP_MUL, smooth, eps / (double)c.nclass));
    }
    lower_out(l, 0, reduce_classes(l, &c, nll));
}

static void lower_nll(Lower *l) {
    Classes c;
    if (!read_classes(l, &c) || !read_targets(l, &c)) return;
    ValueId per = only_valid(l, &c, weighted(l, &c, lower_unary(l, OP_NEG, picked(l, &c))));
    lower_out(l, 0, reduce_classes(l, &c, per));
    lower_out(l, 1, total_weight(l, &c));
}

// ---- elementwise ----------------------------------------------------------------------------------------------------------

static ValueId absolute(Lower *l, ValueId x) { return lower_unary(l, OP_ABS, x); }

// |d| <= beta: d^2 / (2 beta), else |d| - beta / 2; Huber's is beta times that.
static ValueId smooth_l1(Lower *l, ValueId d, double beta, bool huber) {
    ValueId a = absolute(l, d);
    if (beta == 0) return a;
    ValueId square = lower_scalar(l, OP_MUL, lower_binary(l, OP_MUL, d, d), 0.5 / beta);
    ValueId y = lower_where(l, lower_scalar(l, OP_LT, a, beta), square, lower_scalar(l, OP_SUB, a, 0.5 * beta));
    return huber ? lower_scalar(l, OP_MUL, y, beta) : y;
}

enum { LOSS_MSE, LOSS_L1, LOSS_SMOOTH_L1, LOSS_HUBER };
static void lower_difference_loss(Lower *l) {
    ValueId d = lower_binary(l, OP_SUB, lower_real(l, lower_in(l, "self")), lower_real(l, lower_in(l, "target")));
    int64_t reduction = lower_int(l, "reduction", REDUCE_MEAN);
    ValueId per = d;
    switch (l->cur->op) {
        case LOSS_MSE: per = lower_binary(l, OP_MUL, d, d); break;
        case LOSS_L1: per = absolute(l, d); break;
        case LOSS_SMOOTH_L1: per = smooth_l1(l, d, lower_float(l, "beta", 1), false); break;
        default: per = smooth_l1(l, d, lower_float(l, "delta", 1), true); break;
    }
    lower_out(l, 0, lower_reduction(l, per, reduction));
}

// (1 - y) x + (1 + (pos_weight - 1) y) log(1 + exp(-x))
static void lower_bce_logits(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self")), y = lower_real(l, lower_in(l, "target")), one = lower_number(l, l->real, 1);
    ValueId low = lower_unary(l, OP_NEG, lower_log_sigmoid(l, x));
    if (lower_has(l, "pos_weight")) {
        ValueId w = lower_scalar(l, OP_SUB, lower_real(l, lower_in(l, "pos_weight")), 1);
        low = lower_binary(l, OP_MUL, low, lower_scalar(l, OP_ADD, lower_binary(l, OP_MUL, w, y), 1));
    }
    ValueId per = lower_binary(l, OP_ADD, lower_binary(l, OP_MUL, lower_binary(l, OP_SUB, one, y), x), low);
    if (lower_has(l, "weight")) per = lower_binary(l, OP_MUL, per, lower_in(l, "weight"));
    lower_out(l, 0, lower_reduction(l, per, lower_int(l, "reduction", REDUCE_MEAN)));
}

// Logarithms are kept above -100, as in PyTorch.
static ValueId clamped_log(Lower *l, ValueId x) {
    ValueId y = lower_unary(l, OP_LOG, x);
    return lower_where(l, lower_scalar(l, OP_LT, y, -100), lower_number(l, l->real, -100), y);
}

static void lower_bce(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self")), y = lower_real(l, lower_in(l, "target")), one = lower_number(l, l->real, 1);
    ValueId yes = lower_binary(l, OP_MUL, y, clamped_log(l, x));
    ValueId no = lower_binary(l, OP_MUL, lower_binary(l, OP_SUB, one, y), clamped_log(l, lower_binary(l, OP_SUB, one, x)));
    ValueId per = lower_unary(l, OP_NEG, lower_binary(l, OP_ADD, yes, no));
    if (lower_has(l, "weight")) per = lower_binary(l, OP_MUL, per, lower_in(l, "weight"));
    lower_out(l, 0, lower_reduction(l, per, lower_int(l, "reduction", REDUCE_MEAN)));
}

// t (log t - x), or exp(t) (t - x) for logarithms as targets.
static void lower_kl_div(Lower *l) {
    ValueId x = lower_real(l, lower_in(l, "self")), t = lower_real(l, lower_in(l, "target")), per;
    if (lower_bool(l, "log_target", false)) {
        per = lower_binary(l, OP_MUL, lower_unary(l, OP_EXP, t), lower_binary(l, OP_SUB, t, x));
    } else {
        ValueId positive = lower_scalar(l, OP_GT, t, 0), safe = lower_where(l, positive, t, lower_number(l, l->real, 1));
        per = lower_binary(l, OP_SUB, lower_binary(l, OP_MUL, t, lower_unary(l, OP_LOG, safe)), lower_binary(l, OP_MUL, t, x));
    }
    lower_out(l, 0, lower_reduction(l, per, lower_int(l, "reduction", REDUCE_MEAN)));
}

const LowerRow lower_rows_loss[] = {
    {"cross_entropy_loss", lower_cross_entropy, 0},
    {"nll_loss", lower_nll, 0},
    {"nll_loss_nd", lower_nll, 0},
    {"nll_loss2d", lower_nll, 0},
    {"nll_loss_forward", lower_nll, 0},
    {"nll_loss2d_forward", lower_nll, 0},
    {"mse_loss", lower_difference_loss, LOSS_MSE},
    {"l1_loss", lower_difference_loss, LOSS_L1},
    {"smooth_l1_loss", lower_difference_loss, LOSS_SMOOTH_L1},
    {"huber_loss", lower_difference_loss, LOSS_HUBER},
    {"binary_cross_entropy_with_logits", lower_bce_logits, 0},
    {"binary_cross_entropy", lower_bce, 0},
    {"kl_div", lower_kl_div, 0},
    {NULL, NULL, 0},
};
