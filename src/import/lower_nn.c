// Attention and one-dimensional convolution.
#include <math.h>
#include "import/lower.h"

// ---- attention ------------------------------------------------------------------------------------------------------------

// q, k, v as [B, H, S, D]: leading dims beyond four are merged, missing ones are 1. [B, S, D] is B samples of one head.
static ValueId four_dims(Lower *l, ValueId x) {
    Shape s = LSHAPE(l, x), t = {.ndim = 4, .dim = {1, 1, 1, 1}};
    int n = s.ndim;
    if (lower_failed(l)) return NO_VALUE;
    t.dim[3] = s.dim[n - 1];
    t.dim[2] = s.dim[n - 2];
    if (n >= 4) t.dim[1] = s.dim[n - 3];
    for (int i = 0; i < (n == 3 ? 1 : n - 3); i++) t.dim[0] *= s.dim[i];
    return build_reshape(&l->b, x, t);
}

// The mask broadcasts to [leading dims of q..., Sq, Sk].
static ValueId mask_four_dims(Lower *l, ValueId m, Shape q) {
    Shape s = LSHAPE(l, m), t = {.ndim = q.ndim};
    if (!lower_failed(l) && (s.ndim > q.ndim || s.ndim < 2)) lower_invalid(l, "an attention mask of %d dims", s.ndim);
    if (lower_failed(l)) return NO_VALUE;
    for (int i = 0; i < q.ndim; i++) t.dim[i] = i < q.ndim - s.ndim ? 1 : s.dim[i - (q.ndim - s.ndim)];
    if (q.ndim > 4) {  // merged leading dims need the mask's whole
        bool whole = false;
        for (int i = 0; i < q.ndim - 3; i++) whole = whole || t.dim[i] != 1;
        Shape full = t;
        for (int i = 0; i < q.ndim - 3 && whole; i++) full.dim[i] = q.dim[i];
        m = build_broadcast(&l->b, build_reshape(&l->b, m, t), full);
    }
    return four_dims(l, build_reshape(&l->b, m, LSHAPE(l, m).ndim == q.ndim ? LSHAPE(l, m) : t));
}

// Without grouped queries PyTorch broadcasts the leading dims of q, k and v.
static void broadcast_heads(Lower *l, ValueId *x, bool grouped) {
    Shape lead = {0};
    if (lower_failed(l)) return;
    for (int i = 0; i < 3; i++) {
        Shape s = LSHAPE(l, x[i]);
        s.ndim = grouped ? 1 : 2;
        if (!lower_broadcast(l, lead, s, &lead)) return;
    }
    for (int i = 0; i < 3; i++) {
        Shape s = LSHAPE(l, x[i]);
        for (int k = 0; k < lead.ndim; k++) s.dim[k] = lead.dim[k];
        x[i] = build_broadcast(&l->b, x[i], s);
    }
}

static void lower_sdpa(Lower *l) {
    ValueId x[4] = {lower_in(l, "query"), lower_in(l, "key"), lower_in(l, "value"), lower_in_or(l, "attn_mask")};
    double p = lower_float(l, "dropout_p", 0);
    bool causal = lower_bool(l, "is_causal", false), grouped = lower_bool(l, "enable_gqa", false);
    Shape q = LSHAPE(l, x[0]), v = LSHAPE(l, x[2]), k = LSHAPE(l, x[1]);
    lower_ignore(l, "return_debug_mask");
    lower_ignore(l, "compute_log_sumexp");
    if (!lower_failed(l) && (q.ndim < 2 || k.ndim != q.ndim || v.ndim != q.ndim))
        lower_refuse(l, "attention of tensors of %d, %d and %d dims; give them as many dims", q.ndim, k.ndim, v.ndim);
    if (lower_failed(l)) return;
    double scale = lower_float(l, "scale", 1 / sqrt((double)q.dim[q.ndim - 1]));
    for (int i = 0; i < 3; i++) x[i] = four_dims(l, x[i]);
    broadcast_heads(l, x, grouped);
    int nin = x[3] >= 0 ? 4 : 3;
    if (nin == 4) {
        Shape full = q;
        x[3] = mask_four_dims(l, x[3], full);
        if (LDTYPE(l, x[3]) != DT_BOOL) x[3] = lower_real(l, x[3]);
    }
    if (!(p >= 0 && p < 1)) lower_invalid(l, "an attention dropout of %g", p);
    int64_t seed = p > 0 && !lower_failed(l) ? lower_stream(l) : 0;
    Attr a[] = {attr_f(ATTR_SCALE, scale), attr_i(ATTR_CAUSAL, causal), attr_f(ATTR_DROPOUT, p), attr_i(ATTR_SEED, seed)};
    ValueId y = build(&l->b, OP_SDPA, nin, x, 4, a);
    Shape out = q;
    for (int i = 0; i < q.ndim - 2; i++) out.dim[i] = max_i64(q.dim[i], max_i64(k.dim[i], v.dim[i]));
    out.dim[q.ndim - 1] = v.dim[q.ndim - 1];
    lower_out(l, 0, build_reshape(&l->b, y, out));
}

static void lower_no_flex(Lower *l) {
    lower_refuse(l, "flex_attention; load the model with attn_implementation=\"sdpa\" or \"eager\"");
}

// ---- convolution ----------------------------------------------------------------------------------------------------------

typedef struct Window {
    int64_t stride, lo, hi, dilation;
} Window;

static int64_t one_of(Lower *l, const char *name, int64_t dflt) {
    int64_t v[4];
    int n = lower_ints(l, name, v, 4);
    if (n > 1) lower_refuse(l, "a convolution over %d dims; only one-dimensional ones are done", n);
    return n == 1 ? v[0] : dflt;
}

static Window window_args(Lower *l, int64_t kernel) {
    Window w = {.stride = one_of(l, "stride", 1), .dilation = one_of(l, "dilation", 1)};
    const Arg *pad = lower_arg(l, "padding");
    if (pad && pad->kind == ARG_STRING) {
        int64_t total = strcmp(lower_str(l, "padding", "valid"), "same") ? 0 : w.dilation * (kernel - 1);
        w.lo = total / 2;
        w.hi = total - w.lo;
    } else {
        w.lo = w.hi = one_of(l, "padding", 0);
    }
    return w;
}

static void lower_conv1d(Lower *l) {
    ValueId x = lower_in(l, "input"), w = lower_in(l, "weight"), bias = lower_in_or(l, "bias");
    Shape s = LSHAPE(l, x), sw = LSHAPE(l, w);
    if (lower_bool(l, "transposed", false)) lower_refuse(l, "a transposed convolution");
    lower_ignore(l, "output_padding");
    int64_t groups = lower_int(l, "groups", 1);
    if (!lower_failed(l) && (sw.ndim != 3 || s.ndim < 2 || s.ndim > 3)) lower_refuse(l, "a convolution over other than one dim");
    if (lower_failed(l)) return;
    Window win = window_args(l, sw.dim[2]);
    if (s.ndim == 2) x = build_unsqueeze(&l->b, x, 0);
    Attr a[] = {attr_i(ATTR_STRIDE, win.stride), attr_i(ATTR_DILATION, win.dilation), attr_i(ATTR_GROUPS, groups),
                attr_i(ATTR_LO, win.lo), attr_i(ATTR_HI, win.hi)};
    ValueId y = build(&l->b, OP_CONV1D, 2, (ValueId[]){x, w}, 5, a);
    if (bias >= 0) y = lower_binary(l, OP_ADD, y, build_reshape(&l->b, bias, SHAPE(1, sw.dim[0], 1)));
    lower_out(l, 0, s.ndim == 2 ? build_squeeze(&l->b, y, 0) : y);
}

static void lower_no_conv(Lower *l) {
    lower_refuse(l, "a convolution or pooling other than conv1d; sequence models need one dim");
}

const LowerRow lower_rows_nn[] = {
    {"scaled_dot_product_attention", lower_sdpa, 0},
    {"_scaled_dot_product_flash_attention_for_cpu", lower_sdpa, 0},
    {"_scaled_dot_product_attention_math", lower_sdpa, 0},
    {"higher_order.flex_attention", lower_no_flex, 0},
    {"conv1d", lower_conv1d, 0},
    {"convolution", lower_conv1d, 0},
    {"conv2d", lower_no_conv, 0},
    {"conv3d", lower_no_conv, 0},
    {"conv_transpose1d", lower_no_conv, 0},
    {"conv_transpose2d", lower_no_conv, 0},
    {"max_pool1d", lower_no_conv, 0},
    {"avg_pool1d", lower_no_conv, 0},
    {"max_pool2d", lower_no_conv, 0},
    {"avg_pool2d", lower_no_conv, 0},
    {NULL, NULL, 0},
};
