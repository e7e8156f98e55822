// Taking tensors apart and putting them together: split, cat, repeat, roll, pad, triangles.
#include "import/lower.h"

// ---- apart ----------------------------------------------------------------------------------------------------------------

// Output i is x[start : start + n] of dim.
static void out_piece(Lower *l, int i, int32_t t, int dim, int64_t start, int64_t n) {
    lower_out_view(l, i, t, (View){.kind = VIEW_SLICE, .dim = dim, .start = start, .step = 1, .length = n});
}

// Pieces of the given size (split), or so many pieces (chunk).
enum { SPLIT_SIZE, SPLIT_CHUNKS };
static void lower_split(Lower *l) {
    int32_t t = lower_handle(l, "self");
    Shape s = LSHAPE(l, lower_in(l, "self"));
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    int64_t n = s.ndim ? s.dim[dim] : 0, size;
    if (l->cur->op == SPLIT_CHUNKS) {
        int64_t chunks = lower_int(l, "chunks", 1);
        if (chunks < 1) lower_invalid(l, "%lld chunks", (long long)chunks);
        size = lower_failed(l) ? 1 : max_i64(ceil_div(n, chunks), 1);
    } else {
        size = lower_int(l, "split_size", 1);
        if (size < 1 && n > 0) lower_invalid(l, "pieces of size %lld", (long long)size);
    }
    if (lower_failed(l)) return;
    int64_t count = n ? ceil_div(n, size) : 1;
    if (count != l->nout) {
        lower_refuse(
            l, "it makes %lld pieces at these sizes, but the program was exported with %d; bind a length with as many pieces",
            (long long)count, l->nout);
        return;
    }
    for (int i = 0; i < l->nout; i++) out_piece(l, i, t, dim, i * size, min_i64(size, n - i * size));
}

static void lower_split_sizes(Lower *l) {
    int32_t t = lower_handle(l, "self");
    Shape s = LSHAPE(l, lower_in(l, "self"));
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    int64_t sizes[256], at = 0;
    int n = lower_ints(l, lower_has(l, "split_sizes") ? "split_sizes" : "split_size", sizes, 256);
    if (!lower_failed(l) && n != l->nout) lower_invalid(l, "%d sizes for %d pieces", n, l->nout);
    for (int i = 0; i < n && !lower_failed(l); i++) {
        if (sizes[i] < 0 || sizes[i] > s.dim[dim] - at) lower_invalid(l, "pieces larger than the tensor");
        out_piece(l, i, t, dim, at, sizes[i]);
        at += sizes[i];
    }
    if (!lower_failed(l) && at != s.dim[dim])
        lower_invalid(l, "pieces of %lld elements in all for %lld", (long long)at, (long long)s.dim[dim]);
}

// At given positions, or into so many pieces of which the first ones are larger by one.
static void lower_tensor_split(Lower *l) {
    int32_t t = lower_handle(l, "self");
    Shape s = LSHAPE(l, lower_in(l, "self"));
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    int64_t cut[257] = {0}, n = s.ndim ? s.dim[dim] : 0, sections = lower_int(l, "sections", 0);
    int k = sections > 0 && sections <= 256 ? (int)sections - 1 : lower_ints(l, "indices", cut, 256);
    if (sections > 256) lower_refuse(l, "more than 256 pieces");
    for (int i = 0; sections > 0 && i < k; i++) cut[i] = (n / sections) * (i + 1) + min_i64(i + 1, n % sections);
    if (!lower_failed(l) && k + 1 != l->nout) lower_invalid(l, "%d pieces for %d outputs", k + 1, l->nout);
    for (int i = 0; i <= k && !lower_failed(l); i++) {
        int64_t from = i ? cut[i - 1] : 0, to = i < k ? cut[i] : n;
        from = max_i64(0, min_i64(from < 0 ? from + n : from, n));
        to = max_i64(from, min_i64(to < 0 ? to + n : to, n));
        out_piece(l, i, t, dim, from, to - from);
    }
}

static void lower_unbind(Lower *l) {
    int32_t t = lower_handle(l, "self");
    Shape s = LSHAPE(l, lower_in(l, "self")), rest = {0};
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    if (!lower_failed(l) && (s.ndim == 0 || s.dim[dim] != l->nout))
        lower_refuse(l, "unbind of a dim whose size is not that of the export");
    if (lower_failed(l)) return;
    for (int i = 0; i < s.ndim; i++)
        if (i != dim) rest.dim[rest.ndim++] = s.dim[i];
    for (int i = 0; i < l->nout; i++) {
        int32_t part = lower_new_view(l, t, (View){.kind = VIEW_SLICE, .dim = dim, .start = i, .step = 1, .length = 1});
        lower_out_view(l, i, part, (View){.kind = VIEW_RESHAPE, .shape = rest});
    }
}

// ---- together -------------------------------------------------------------------------------------------------------------

// The values of a tensor list in their common type.
static int list_values(Lower *l, const char *name, ValueId **out) {
    int32_t *t;
    int n = lower_in_list(l, name, &t);
    *out = ARENA_ARRAY(l->arena, ValueId, n);
    DType common = DT_BOOL;
    for (int i = 0; i < n; i++) {
        if (t[i] < 0) {
            lower_invalid(l, "an absent tensor in `%s`", name);
            return 0;
        }
        (*out)[i] = lower_read(l, t[i]);
        if (lower_failed(l)) return 0;
        common = lower_promote(l, common, LDTYPE(l, (*out)[i]));
    }
    for (int i = 0; i < n; i++) (*out)[i] = lower_cast(l, (*out)[i], common);
    return lower_failed(l) ? 0 : n;
}

static void lower_cat(Lower *l) {
    ValueId *x;
    int n = list_values(l, "tensors", &x), k = 0;
    for (int i = 0; i < n; i++) {  // PyTorch ignores empty tensors of one dim
        Shape s = LSHAPE(l, x[i]);
        if (s.ndim == 1 && s.dim[0] == 0 && n > 1) continue;
        x[k++] = x[i];
    }
    if (k == 0 && n > 0) k = 1;
    if (lower_failed(l)) return;
    int dim = lower_dim_arg(l, lower_has(l, "axis") ? "axis" : "dim", 0, LSHAPE(l, x[0]).ndim);
    lower_out(l, 0, build_concat(&l->b, k, x, dim));
}

// Along dim 1 (hstack; dim 0 of vectors), dim 0 (vstack), dim 2 (dstack), after giving every tensor enough dims.
enum { STACK_H, STACK_V, STACK_D };
static void lower_cat_along(Lower *l) {
    ValueId *x;
    int n = list_values(l, "tensors", &x), along = l->cur->op == STACK_H ? 1 : l->cur->op == STACK_V ? 0 : 2;
    for (int i = 0; i < n; i++) {
        if (LSHAPE(l, x[i]).ndim == 0) x[i] = build_unsqueeze(&l->b, x[i], 0);
        if (along != 1 && LSHAPE(l, x[i]).ndim == 1) x[i] = build_unsqueeze(&l->b, x[i], 0);
        if (along == 2 && LSHAPE(l, x[i]).ndim == 2) x[i] = build_unsqueeze(&l->b, x[i], 2);
    }
    if (lower_failed(l)) return;
    lower_out(l, 0, build_concat(&l->b, n, x, along == 1 && LSHAPE(l, x[0]).ndim == 1 ? 0 : along));
}

static void lower_stack_op(Lower *l) {
    ValueId *x;
    int n = list_values(l, "tensors", &x);
    if (lower_failed(l)) return;
    int dim = lower_dim_arg(l, "dim", 0, LSHAPE(l, x[0]).ndim + 1);
    lower_out(l, 0, lower_stack(l, n, x, dim));
}

static void lower_broadcast_tensors(Lower *l) {
    int32_t *t;
    int n = lower_in_list(l, "tensors", &t);
    Shape s = {0};
    for (int i = 0; i < n; i++)
        if (t[i] < 0 || !lower_broadcast(l, s, LSHAPE(l, lower_read(l, t[i])), &s)) return;
    for (int i = 0; i < n; i++) {
        bool same = shape_equal(&s, graph_shape(l->b.g, lower_read(l, t[i])));
        lower_out_view(l, i, t[i], (View){.kind = same ? VIEW_RESHAPE : VIEW_BROADCAST, .shape = s});
    }
}

static void lower_meshgrid(Lower *l) {
    int32_t *t;
    int n = lower_in_list(l, "tensors", &t);
    bool xy = !strcmp(lower_str(l, "indexing", "ij"), "xy") && n >= 2;
    Shape s = {.ndim = n};
    if (n > MAX_DIMS) lower_refuse(l, "a grid of more than %d dims", MAX_DIMS);
    for (int i = 0; i < n && !lower_failed(l); i++)
        s.dim[xy && i < 2 ? 1 - i : i] = lower_numel(l, LSHAPE(l, lower_read(l, t[i])));
    for (int i = 0; i < n && !lower_failed(l); i++) {
        int at = xy && i < 2 ? 1 - i : i;
        Shape line = {.ndim = n};
        for (int k = 0; k < n; k++) line.dim[k] = k == at ? s.dim[k] : 1;
        lower_out(l, i, build_broadcast(&l->b, build_reshape(&l->b, lower_read(l, t[i]), line), s));
    }
}

// ---- repeats --------------------------------------------------------------------------------------------------------------

// Dim `dim` repeated `times`: each element in a row (each), or the whole dim again and again.
static ValueId repeat_dim(Lower *l, ValueId x, int dim, int64_t times, bool each) {
    if (times == 1 || lower_failed(l)) return x;
    Shape s = LSHAPE(l, x);
    int at = each ? dim + 1 : dim;
    ValueId wide = build_unsqueeze(&l->b, x, at);
    Shape w = LSHAPE(l, wide);
    if (lower_failed(l)) return NO_VALUE;
    w.dim[at] = times;
    s.dim[dim] *= times;
    return build_reshape(&l->b, build_broadcast(&l->b, wide, w), s);
}

enum { REPEAT, TILE };
static void lower_repeat(Lower *l) {
    ValueId x = lower_in(l, "self");
    Shape s = LSHAPE(l, x), times = {0}, wide = {0};
    if (!lower_shape_arg(l, l->cur->op == TILE ? "dims" : "repeats", &times)) return;
    if (l->cur->op == REPEAT && times.ndim < s.ndim) lower_invalid(l, "fewer repeats than dims");
    while (times.ndim < s.ndim && !lower_failed(l)) {  // tile: leading dims once
        for (int i = times.ndim++; i > 0; i--) times.dim[i] = times.dim[i - 1];
        times.dim[0] = 1;
    }
    if (lower_failed(l)) return;
    wide.ndim = times.ndim;
    for (int i = 0; i < wide.ndim; i++) wide.dim[i] = i < wide.ndim - s.ndim ? 1 : s.dim[i - (wide.ndim - s.ndim)];
    x = build_reshape(&l->b, x, wide);
    for (int i = wide.ndim - 1; i >= 0; i--) {
        if (times.dim[i] < 0) lower_invalid(l, "%lld repeats", (long long)times.dim[i]);
        x = repeat_dim(l, x, i, times.dim[i], false);
    }
    lower_out(l, 0, x);
}

static void lower_repeat_interleave(Lower *l) {
    if (!lower_has(l, "self") || lower_is_tensor(l, "repeats")) {
        lower_refuse(l, "repeat counts in a tensor, whose result size depends on the data; use one integer");
        return;
    }
    ValueId x = lower_in(l, "self");
    int64_t times = lower_int(l, "repeats", 1);
    lower_ignore(l, "output_size");
    if (!lower_failed(l) && times < 0) lower_invalid(l, "%lld repeats", (long long)times);
    if (!lower_has(l, "dim")) x = build_reshape(&l->b, x, SHAPE(lower_numel(l, LSHAPE(l, x))));
    int dim = lower_has(l, "dim") ? lower_dim_arg(l, "dim", 0, LSHAPE(l, x).ndim) : 0;
    lower_out(l, 0, repeat_dim(l, x, dim, times, true));
}

static ValueId roll_dim(Lower *l, ValueId x, int dim, int64_t shift) {
    int64_t n = LSHAPE(l, x).dim[dim];
    if (n == 0 || lower_failed(l)) return x;
    shift = ((shift % n) + n) % n;
    if (shift == 0) return x;
    ValueId part[] = {build_slice(&l->b, x, dim, n - shift, 1, shift), build_slice(&l->b, x, dim, 0, 1, n - shift)};
    return build_concat(&l->b, 2, part, dim);
}

static void lower_roll(Lower *l) {
    ValueId x = lower_in(l, "self");
    Shape s = LSHAPE(l, x);
    int64_t shifts[MAX_DIMS];
    int dims[MAX_DIMS], k = lower_ints(l, "shifts", shifts, MAX_DIMS), n = lower_dims_arg(l, "dims", s.ndim, dims);
    if (lower_failed(l)) return;
    if (n <= 0 && k == 1) {  // no dims: over the flattened tensor
        ValueId flat = build_reshape(&l->b, x, SHAPE(lower_numel(l, s)));
        lower_out(l, 0, build_reshape(&l->b, roll_dim(l, flat, 0, shifts[0]), s));
        return;
    }
    if (n != k) lower_invalid(l, "%d shifts for %d dims", k, n);
    for (int i = 0; i < n && s.ndim; i++) x = roll_dim(l, x, dims[i], shifts[i]);
    lower_out(l, 0, x);
}

enum { FLIP, FLIP_LAST, FLIP_FIRST };
static void lower_flip(Lower *l) {
    ValueId x = lower_in(l, "self");
    Shape s = LSHAPE(l, x);
    int dims[MAX_DIMS], n = 1;
    dims[0] = l->cur->op == FLIP_LAST ? 1 : 0;
    if (l->cur->op == FLIP) n = lower_dims_arg(l, "dims", s.ndim, dims);
    for (int i = 0; i < n && s.ndim && !lower_failed(l); i++) {
        int64_t len = s.dim[dims[i]];
        x = lower_take(l, x, dims[i], build_iota(&l->b, SHAPE(len), 0, len - 1, -1, DT_I64));
    }
    lower_out(l, 0, x);
}

// ---- pad ------------------------------------------------------------------------------------------------------------------

// A pad below 0 cuts.
static ValueId pad_constant(Lower *l, ValueId x, int dim, int64_t lo, int64_t hi, double value) {
    int64_t cut_lo = max_i64(-lo, 0), cut_hi = max_i64(-hi, 0), n = LSHAPE(l, x).dim[dim];
    if (!lower_failed(l) && cut_lo + cut_hi > n) lower_invalid(l, "a pad that cuts more than there is");
    if (lower_failed(l)) return NO_VALUE;
    x = build_slice(&l->b, x, dim, cut_lo, 1, n - cut_lo - cut_hi);
    return build_pad(&l->b, x, dim, max_i64(lo, 0), max_i64(hi, 0), value);
}

// The other modes read element f(i - lo) for position i: the nearest, the mirrored, or the one a period away.
typedef enum PadMode { PAD_CONSTANT, PAD_REFLECT, PAD_REPLICATE, PAD_CIRCULAR } PadMode;
static ValueId pad_index(Lower *l, ValueId x, int dim, int64_t lo, int64_t hi, PadMode mode) {
    int64_t n = LSHAPE(l, x).dim[dim], total = n + lo + hi;
    int64_t limit = mode == PAD_REFLECT ? n - 1 : n;
    if (!lower_failed(l) && (n < 1 || lo < 0 || hi < 0 || (mode != PAD_REPLICATE && (lo > limit || hi > limit))))
        lower_invalid(l, "a pad of %lld and %lld for %lld elements", (long long)lo, (long long)hi, (long long)n);
    if (lower_failed(l)) return NO_VALUE;
    ValueId at = build_iota(&l->b, SHAPE(total), 0, -lo, 1, DT_I64);
    if (mode == PAD_CIRCULAR) {
        at = lower_scalar(l, OP_MOD, at, (double)n);
    } else if (mode == PAD_REPLICATE) {
        at = lower_scalar(l, OP_MIN, lower_scalar(l, OP_MAX, at, 0), (double)(n - 1));
    } else {
        at = lower_unary(l, OP_ABS, at);
        ValueId back = lower_binary(l, OP_SUB, lower_number(l, DT_I64, (double)(2 * (n - 1))), at);
        at = lower_binary(l, OP_MIN, at, back);
    }
    return lower_take(l, x, dim, at);
}

static PadMode pad_mode(Lower *l, const char *name) {
    static const char *const modes[] = {"constant", "reflect", "replicate", "circular"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(name, modes[i])) return (PadMode)i;
    lower_invalid(l, "pad mode \"%s\"", name);
    return PAD_CONSTANT;
}

// Pairs (lo, hi) from the last dim backward. `op`: the mode if the name says it, -1 if argument `mode` does.
static void lower_pad(Lower *l) {
    ValueId x = lower_in(l, "self");
    int64_t pad[2 * MAX_DIMS];
    int n = lower_ints(l, lower_has(l, "pad") ? "pad" : "padding", pad, 2 * MAX_DIMS), ndim = LSHAPE(l, x).ndim;
    PadMode mode = l->cur->op >= 0 ? (PadMode)l->cur->op : pad_mode(l, lower_str(l, "mode", "constant"));
    double value = lower_float(l, "value", 0);
    if (!lower_failed(l) && (n < 0 || n % 2 || n / 2 > ndim)) lower_invalid(l, "%d pad sizes for %d dims", n, ndim);
    for (int i = 0; i < n / 2 && !lower_failed(l); i++) {
        int dim = ndim - 1 - i;
        int64_t lo = pad[2 * i], hi = pad[2 * i + 1];
        if (lo == 0 && hi == 0) continue;
        x = mode == PAD_CONSTANT ? pad_constant(l, x, dim, lo, hi, value) : pad_index(l, x, dim, lo, hi, mode);
    }
    lower_out(l, 0, x);
}

// ---- triangles ------------------------------------------------------------------------------------------------------------

// Comparison of positions, so that the mask pass can read it: col <= row + diagonal (tril), col >= row + diagonal (triu).
static ValueId triangle(Lower *l, int64_t rows, int64_t cols, int64_t diagonal, bool lower) {
    ValueId row = build_iota(&l->b, SHAPE(rows, 1), 0, diagonal, 1, DT_I64),
            col = build_iota(&l->b, SHAPE(1, cols), 1, 0, 1, DT_I64);
    return lower_binary(l, lower ? OP_LE : OP_GE, col, row);
}

static void lower_tri(Lower *l) {
    ValueId x = lower_in(l, "self");
    Shape s = LSHAPE(l, x);
    int64_t diagonal = lower_int(l, "diagonal", 0);
    if (!lower_failed(l) && s.ndim < 2) lower_invalid(l, "a triangle of %d dims", s.ndim);
    if (lower_failed(l)) return;
    ValueId in = triangle(l, s.dim[s.ndim - 2], s.dim[s.ndim - 1], diagonal, l->cur->op == 0);
    if (LDTYPE(l, x) == DT_BOOL)
        lower_out(l, 0, lower_binary(l, OP_AND, x, in));
    else
        lower_out(l, 0, lower_where(l, in, x, lower_number(l, LDTYPE(l, x), 0)));
}

// x on a diagonal of two new dims.
static void lower_diag_embed(Lower *l) {
    ValueId x = lower_in(l, "self");
    Shape s = LSHAPE(l, x);
    if (lower_int(l, "offset", 0) || lower_int(l, "dim1", -2) != -2 || lower_int(l, "dim2", -1) != -1)
        lower_refuse(l, "diag_embed with an offset or other dims");
    if (lower_failed(l) || s.ndim == 0) return;
    int64_t n = s.dim[s.ndim - 1];
    ValueId row = build_iota(&l->b, SHAPE(n, 1), 0, 0, 1, DT_I64), col = build_iota(&l->b, SHAPE(1, n), 1, 0, 1, DT_I64);
    ValueId y = build_unsqueeze(&l->b, x, s.ndim);
    lower_out(l, 0, lower_where(l, lower_binary(l, OP_EQ, row, col), y, lower_number(l, LDTYPE(l, x), 0)));
}

// ---- the whole with a part replaced ---------------------------------------------------------------------------------------

static void lower_slice_scatter(Lower *l) {
    ValueId x = lower_in(l, "self"), y = lower_in(l, "src");
    Shape s = LSHAPE(l, x);
    int dim = lower_dim_arg(l, "dim", 0, s.ndim);
    if (lower_failed(l) || s.ndim == 0) return;
    int64_t n = s.dim[dim], start, step = 1;
    if (l->cur->op) {  // select_scatter
        start = lower_int(l, "index", 0);
        start = start < 0 ? start + n : start;
        y = build_unsqueeze(&l->b, y, dim);
    } else {
        start = lower_int(l, "start", 0);
        lower_ignore(l, "end");
        step = lower_int(l, "step", 1);
        start = max_i64(0, min_i64(start < 0 ? start + n : start, n));
    }
    int64_t k = LSHAPE(l, y).ndim == s.ndim ? LSHAPE(l, y).dim[dim] : -1;
    if (!lower_failed(l) && (k < 0 || step < 1 || start < 0 || start + (k - 1) * step >= n))
        lower_invalid(l, "a part outside the tensor");
    lower_out(l, 0, lower_put_slice(l, x, lower_cast(l, y, LDTYPE(l, x)), dim, start, step));
}

const LowerRow lower_rows_split[] = {
    {"split", lower_split, SPLIT_SIZE},
    {"unsafe_split", lower_split, SPLIT_SIZE},
    {"chunk", lower_split, SPLIT_CHUNKS},
    {"unsafe_chunk", lower_split, SPLIT_CHUNKS},
    {"split_with_sizes", lower_split_sizes, 0},
    {"unsafe_split_with_sizes", lower_split_sizes, 0},
    {"tensor_split", lower_tensor_split, 0},
    {"unbind", lower_unbind, 0},
    {"cat", lower_cat, 0},
    {"concat", lower_cat, 0},
    {"concatenate", lower_cat, 0},
    {"stack", lower_stack_op, 0},
    {"hstack", lower_cat_along, STACK_H},
    {"vstack", lower_cat_along, STACK_V},
    {"row_stack", lower_cat_along, STACK_V},
    {"dstack", lower_cat_along, STACK_D},
    {"broadcast_tensors", lower_broadcast_tensors, 0},
    {"meshgrid", lower_meshgrid, 0},
    {"repeat", lower_repeat, REPEAT},
    {"tile", lower_repeat, TILE},
    {"repeat_interleave", lower_repeat_interleave, 0},
    {"roll", lower_roll, 0},
    {"flip", lower_flip, FLIP},
    {"fliplr", lower_flip, FLIP_LAST},
    {"flipud", lower_flip, FLIP_FIRST},
    {"pad", lower_pad, -1},
    {"constant_pad_nd", lower_pad, PAD_CONSTANT},
    {"reflection_pad1d", lower_pad, PAD_REFLECT},
    {"replication_pad1d", lower_pad, PAD_REPLICATE},
    {"tril", lower_tri, 0},
    {"triu", lower_tri, 1},
    {"diag_embed", lower_diag_embed, 0},
    {"slice_scatter", lower_slice_scatter, 0},
    {"select_scatter", lower_slice_scatter, 1},
    {NULL, NULL, 0},
};
