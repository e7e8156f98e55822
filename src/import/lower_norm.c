// Normalisation layers, as means and products: the statistics have shapes of their own, so that each shards with its tokens.
#include "import/lower.h"

typedef struct Stats {
    ValueId y, mean, rstd;  // mean and rstd keep the dims as 1
} Stats;

// (x - mean) / sqrt(var + eps) over nd dims; without the mean for RMS norms.
static Stats normalize(Lower *l, ValueId x, int nd, const int *dims, double eps, bool center) {
    Stats s = {.mean = NO_VALUE};
    if (center) {
        s.mean = lower_mean_dims(l, x, nd, dims, true);
        x = lower_binary(l, OP_SUB, x, s.mean);
    }
    ValueId var = lower_mean_dims(l, lower_binary(l, OP_MUL, x, x), nd, dims, true);
    s.rstd = lower_unary(l, OP_RSQRT, lower_scalar(l, OP_ADD, var, eps));
    s.y = lower_binary(l, OP_MUL, x, s.rstd);
    return s;
}

static ValueId affine(Lower *l, ValueId y, ValueId w, ValueId b) {
    if (w >= 0) y = lower_binary(l, OP_MUL, y, w);
    if (b >= 0) y = lower_binary(l, OP_ADD, y, b);
    return y;
}

static ValueId float_input(Lower *l, const char *name) {
    ValueId x = lower_in(l, name);
    if (!lower_failed(l) && !dtype_is_float(LDTYPE(l, x))) lower_invalid(l, "a norm of integers");
    return x;
}

// The last dims, whose sizes are normalized_shape.
static int trailing_dims(Lower *l, ValueId x, int *dims) {
    Shape n, s = LSHAPE(l, x);
    if (!lower_shape_arg(l, "normalized_shape", &n)) return 0;
    bool fits = n.ndim >= 1 && n.ndim <= s.ndim;
    for (int i = 0; i < n.ndim && fits; i++) {
        dims[i] = s.ndim - n.ndim + i;
        fits = s.dim[dims[i]] == n.dim[i];
    }
    if (!fits) lower_invalid(l, "normalized_shape is not the tensor's last dims");
    return n.ndim;
}

static void lower_layer_norm(Lower *l) {
    ValueId x = float_input(l, "input");
    int dims[MAX_DIMS], nd = trailing_dims(l, x, dims);
    Stats s = normalize(l, x, nd, dims, lower_float(l, "eps", 1e-5), true);
    lower_out(l, 0, affine(l, s.y, lower_in_or(l, "weight"), lower_in_or(l, "bias")));
    lower_out(l, 1, s.mean);
    lower_out(l, 2, s.rstd);
}

// eps defaults to the machine epsilon of the input's type.
static void lower_rms_norm(Lower *l) {
    ValueId x = float_input(l, "input");
    const Arg *a = lower_arg(l, "input");
    int code = a && a->kind == ARG_TENSOR ? lower_stored_code(l, a->names[0]) : -1;
    double eps = code == 6 ? 0.0009765625 : code == 13 ? 0.0078125 : code == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07;
    int dims[MAX_DIMS], nd = trailing_dims(l, x, dims);
    Stats s = normalize(l, x, nd, dims, lower_float(l, "eps", eps), false);
    lower_out(l, 0, affine(l, s.y, lower_in_or(l, "weight"), NO_VALUE));
    lower_out(l, 1, s.rstd);
}

// A vector per channel as [1, C, 1, ...].
static ValueId per_channel(Lower *l, ValueId w, int ndim, int64_t channels) {
    if (w < 0 || lower_failed(l)) return w;
    Shape s = {.ndim = ndim};
    for (int i = 0; i < ndim; i++) s.dim[i] = i == 1 ? channels : 1;
    if (lower_numel(l, LSHAPE(l, w)) != channels) lower_invalid(l, "a weight that does not have one entry per channel");
    return build_reshape(&l->b, w, s);
}

// Channels in groups, each group of each sample normalised with its positions.
static void group_norm(Lower *l, ValueId x, int64_t groups, double eps) {
    Shape s = LSHAPE(l, x);
    if (!lower_failed(l) && (s.ndim < 2 || groups < 1 || s.dim[1] % groups))
        lower_invalid(l, "%lld groups of channels", (long long)groups);
    if (!lower_failed(l) && s.ndim == MAX_DIMS) lower_refuse(l, "a group norm of %d dims", MAX_DIMS);
    if (lower_failed(l)) return;
    Shape g = {.ndim = s.ndim + 1};
    int dims[MAX_DIMS];
    for (int i = 0; i <= s.ndim; i++) g.dim[i] = i == 0 ? s.dim[0] : i == 1 ? groups : i == 2 ? s.dim[1] / groups : s.dim[i - 1];
    for (int i = 0; i < s.ndim - 1; i++) dims[i] = i + 2;
    Stats st = normalize(l, build_reshape(&l->b, x, g), s.ndim - 1, dims, eps, true);
    ValueId y = build_reshape(&l->b, st.y, s);
    ValueId w = per_channel(l, lower_in_or(l, "weight"), s.ndim, s.dim[1]),
            b = per_channel(l, lower_in_or(l, "bias"), s.ndim, s.dim[1]);
    lower_out(l, 0, affine(l, y, w, b));
}

static void lower_group_norm(Lower *l) {
    ValueId x = float_input(l, "input");
    group_norm(l, x, lower_int(l, "num_groups", 1), lower_float(l, "eps", 1e-5));
}

static void lower_instance_norm(Lower *l) {
    ValueId x = float_input(l, "input");
    if (lower_has(l, "running_mean") || lower_has(l, "running_var") || !lower_bool(l, "use_input_stats", true))
        lower_refuse(l, "an instance norm with running statistics; set track_running_stats=False");
    lower_ignore(l, "momentum");
    if (lower_failed(l)) return;
    group_norm(l, x, LSHAPE(l, x).dim[1], lower_float(l, "eps", 1e-5));
}

// With the buffers' statistics (eval), or the batch's own where none are tracked.
static void lower_batch_norm(Lower *l) {
    ValueId x = float_input(l, "input"), y;
    Shape s = LSHAPE(l, x);
    bool training = lower_bool(l, "training", false), tracked = lower_has(l, "running_mean") || lower_has(l, "running_var");
    double eps = lower_float(l, "eps", 1e-5);
    lower_ignore(l, "momentum");
    if (training && tracked)
        lower_refuse(
            l,
            "a batch norm in training mode, which changes its running statistics; use eval mode, track_running_stats=False, "
            "or another norm");
    if (!lower_failed(l) && s.ndim < 2) lower_invalid(l, "a batch norm of %d dims", s.ndim);
    if (lower_failed(l)) return;
    if (tracked) {
        ValueId mean = per_channel(l, lower_in(l, "running_mean"), s.ndim, s.dim[1]);
        ValueId var = per_channel(l, lower_in(l, "running_var"), s.ndim, s.dim[1]);
        ValueId rstd = lower_unary(l, OP_RSQRT, lower_scalar(l, OP_ADD, var, eps));
        y = lower_binary(l, OP_MUL, lower_binary(l, OP_SUB, x, mean), rstd);
    } else {
        int dims[MAX_DIMS], nd = 0;
        for (int i = 0; i < s.ndim; i++)
            if (i != 1) dims[nd++] = i;
        y = normalize(l, x, nd, dims, eps, true).y;
    }
    ValueId w = per_channel(l, lower_in_or(l, "weight"), s.ndim, s.dim[1]),
            b = per_channel(l, lower_in_or(l, "bias"), s.ndim, s.dim[1]);
    lower_out(l, 0, affine(l, y, w, b));
}

const LowerRow lower_rows_norm[] = {
    {"layer_norm", lower_layer_norm, 0}, {"native_layer_norm", lower_layer_norm, 0}, {"rms_norm", lower_rms_norm, 0},
    {"_fused_rms_norm", lower_rms_norm, 0}, {"group_norm", lower_group_norm, 0}, {"instance_norm", lower_instance_norm, 0},
    {"batch_norm", lower_batch_norm, 0},
    {NULL, NULL, 0},
};
