// Interval arithmetic over an attention program's instructions, the rules of backend/cpu/interval.c, on the device. Bounds are
// doubles; integers beyond 2^50 and anything uncertain become "unknown". f: the result is a float, rounded to float32 by the
// kernels.

#define IV_INF ((double)gpu_bits_float(0x7f800000u))
GPU_FN FlashRange iv_make(double lo, double hi, bool nan) { FlashRange r; r.lo = lo, r.hi = hi, r.nan = nan; return r; }
GPU_FN FlashRange iv_unknown(void) { return iv_make(-IV_INF, IV_INF, true); }
GPU_FN FlashRange iv_point(double v) { return iv_make(v, v, v != v); }
GPU_FN FlashRange iv_bool(bool may_false, bool may_true) { return iv_make(may_false ? 0 : 1, may_true ? 1 : 0, false); }
GPU_FN bool iv_is_point(FlashRange x, double v) { return x.lo == v && x.hi == v && !x.nan; }
GPU_FN FlashRange iv_add_value(FlashRange x, double v) {
    return iv_make(v < x.lo ? v : x.lo, v > x.hi ? v : x.hi, x.nan || v != v);
}
GPU_FN FlashRange iv_join(FlashRange x, FlashRange y) {
    return iv_make(y.lo < x.lo ? y.lo : x.lo, y.hi > x.hi ? y.hi : x.hi, x.nan || y.nan);
}
GPU_FN double iv_abs(double v) { return v < 0 ? -v : v; }
GPU_FN double iv_min(double a, double b) { return a < b ? a : b; }
GPU_FN double iv_max(double a, double b) { return a > b ? a : b; }
GPU_FN bool iv_isnan(double v) { return v != v; }
GPU_FN bool iv_infinite(FlashRange x) { return iv_abs(x.lo) == IV_INF || iv_abs(x.hi) == IV_INF; }
GPU_FN bool iv_has_zero(FlashRange x) { return x.lo <= 0 && x.hi >= 0; }
GPU_FN bool iv_bounded(FlashRange x) { return x.lo >= -0x1p50 && x.hi <= 0x1p50; }

// Rounding of each operation to float32, a little more than that for functions that are a few units off.
GPU_FN FlashRange iv_widen(FlashRange x) {
    const double eps = 0x1p-21, largest = 0x1.fffffep127, tiny = 0x1p-126;
    if (iv_isnan(x.lo) || iv_isnan(x.hi)) return iv_unknown();
    x.lo -= iv_abs(x.lo) * eps + tiny, x.hi += iv_abs(x.hi) * eps + tiny;  // tiny: results may be flushed to zero
    if (iv_isnan(x.lo)) x.lo = -IV_INF;  // inf - inf
    if (iv_isnan(x.hi)) x.hi = IV_INF;
    if (x.lo > largest) x.lo = largest;  // may have been rounded down to it
    if (x.hi < -largest) x.hi = -largest;
    if (x.hi > largest) x.hi = IV_INF;
    if (x.lo < -largest) x.lo = -IV_INF;
    return x;
}
GPU_FN FlashRange iv_finish(FlashRange x, bool f) {
    if (iv_isnan(x.lo) || iv_isnan(x.hi)) return iv_unknown();
    if (f) return x.lo == 0 && x.hi == 0 ? x : iv_widen(x);
    return iv_bounded(x) ? x : iv_unknown();
}
GPU_FN FlashRange iv_hull(double a, double b, double c, double d, bool nan) {
    if (iv_isnan(a) || iv_isnan(b) || iv_isnan(c) || iv_isnan(d)) return iv_unknown();
    return iv_make(iv_min(iv_min(a, b), iv_min(c, d)), iv_max(iv_max(a, b), iv_max(c, d)), nan);
}

GPU_FN FlashRange iv_neg(FlashRange x) { return iv_make(-x.hi, -x.lo, x.nan); }
GPU_FN FlashRange iv_absolute(FlashRange x) {
    double a = iv_abs(x.lo), b = iv_abs(x.hi);
    return iv_make(iv_has_zero(x) ? 0 : iv_min(a, b), iv_max(a, b), x.nan);
}
GPU_FN FlashRange iv_sign(FlashRange x) { return iv_make((x.lo > 0) - (x.lo < 0), (x.hi > 0) - (x.hi < 0), x.nan); }
GPU_FN FlashRange iv_floor(FlashRange x) { return iv_make(floor(x.lo), floor(x.hi), x.nan); }
GPU_FN FlashRange iv_not(FlashRange x) { return iv_make(1 - x.hi, 1 - x.lo, false); }
// Of a function that rises, given its values at the bounds.
GPU_FN FlashRange iv_rising(double lo, double hi, bool nan) {
    return iv_isnan(lo) || iv_isnan(hi) ? iv_unknown() : iv_widen(iv_make(lo, hi, nan));
}
GPU_FN FlashRange iv_exp(FlashRange x) { return iv_rising(exp(x.lo), exp(x.hi), x.nan); }
GPU_FN FlashRange iv_expm1(FlashRange x) { return iv_rising(expm1(x.lo), expm1(x.hi), x.nan); }
GPU_FN FlashRange iv_log(FlashRange x) { return iv_rising(log(x.lo), log(x.hi), x.nan); }
GPU_FN FlashRange iv_log1p(FlashRange x) { return iv_rising(log1p(x.lo), log1p(x.hi), x.nan); }
GPU_FN FlashRange iv_sqrt(FlashRange x) { return iv_rising(sqrt(x.lo), sqrt(x.hi), x.nan); }
GPU_FN FlashRange iv_tanh(FlashRange x) { return iv_rising(tanh(x.lo), tanh(x.hi), x.nan); }
GPU_FN FlashRange iv_erf(FlashRange x) { return iv_rising(erf(x.lo), erf(x.hi), x.nan); }
GPU_FN FlashRange iv_sigmoid(FlashRange x) { return iv_rising(1 / (1 + exp(-x.lo)), 1 / (1 + exp(-x.hi)), x.nan); }
GPU_FN FlashRange iv_to_bool(FlashRange x) { return iv_bool(iv_has_zero(x), x.nan || x.lo != 0 || x.hi != 0); }
GPU_FN FlashRange iv_int_to_float(FlashRange x) { return iv_abs(x.lo) <= 0x1p24 && iv_abs(x.hi) <= 0x1p24 ? x : iv_widen(x); }
GPU_FN FlashRange iv_float_to_int(FlashRange x) {
    return x.nan || !iv_bounded(x) ? iv_unknown() : iv_make(trunc(x.lo), trunc(x.hi), false);
}

GPU_FN FlashRange iv_add(FlashRange x, FlashRange y, bool f) {
    return iv_finish(iv_make(x.lo + y.lo, x.hi + y.hi, x.nan || y.nan || iv_infinite(x) || iv_infinite(y)), f);
}
GPU_FN FlashRange iv_sub(FlashRange x, FlashRange y, bool f) {
    return iv_finish(iv_make(x.lo - y.hi, x.hi - y.lo, x.nan || y.nan || iv_infinite(x) || iv_infinite(y)), f);
}
GPU_FN FlashRange iv_mul(FlashRange x, FlashRange y, bool f) {
    return iv_finish(iv_hull(x.lo * y.lo, x.lo * y.hi, x.hi * y.lo, x.hi * y.hi, x.nan || y.nan), f);
}
GPU_FN FlashRange iv_div(FlashRange x, FlashRange y, bool f) {
    if (iv_has_zero(y)) return iv_unknown();
    return iv_finish(iv_hull(x.lo / y.lo, x.lo / y.hi, x.hi / y.lo, x.hi / y.hi, x.nan || y.nan), f);
}
GPU_FN FlashRange iv_floordiv(FlashRange x, FlashRange y, bool f) {
    if (iv_has_zero(y)) return iv_unknown();
    FlashRange r = iv_hull(floor(x.lo / y.lo), floor(x.lo / y.hi), floor(x.hi / y.lo), floor(x.hi / y.hi), x.nan || y.nan);
    if (f) r.lo -= 1, r.hi += 1;  // the quotient may have been rounded across an integer
    return iv_finish(r, f);
}
// Python's modulo by a known positive number.
GPU_FN FlashRange iv_mod(FlashRange x, FlashRange y, bool f) {
    if (y.lo != y.hi || !(y.lo > 0) || x.nan || y.nan || iv_infinite(x) || iv_infinite(y)) return iv_unknown();
    double m = y.lo, first = floor(x.lo / m);
    if (!f && first == floor(x.hi / m)) return iv_make(x.lo - first * m, x.hi - first * m, false);
    return iv_finish(iv_make(0, f ? m : m - 1, false), f);
}
GPU_FN FlashRange iv_maximum(FlashRange x, FlashRange y) {
    return iv_make(iv_max(x.lo, y.lo), iv_max(x.hi, y.hi), x.nan || y.nan);
}
GPU_FN FlashRange iv_minimum(FlashRange x, FlashRange y) {
    return iv_make(iv_min(x.lo, y.lo), iv_min(x.hi, y.hi), x.nan || y.nan);
}

// Comparisons: which of <, =, > can hold. An empty range (nothing but NaN) compares as NaN does.
struct IvOrder { bool lt, eq, gt, nan; };
GPU_FN IvOrder iv_order(FlashRange x, FlashRange y) {
    IvOrder o;
    bool empty = x.lo > x.hi || y.lo > y.hi;
    o.nan = x.nan || y.nan;
    o.lt = !empty && x.lo < y.hi, o.gt = !empty && x.hi > y.lo, o.eq = !empty && x.lo <= y.hi && y.lo <= x.hi;
    return o;
}
GPU_FN FlashRange iv_eq(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.nan || o.lt || o.gt, o.eq); }
GPU_FN FlashRange iv_ne(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.eq, o.nan || o.lt || o.gt); }
GPU_FN FlashRange iv_lt(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.nan || o.eq || o.gt, o.lt); }
GPU_FN FlashRange iv_le(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.nan || o.gt, o.lt || o.eq); }
GPU_FN FlashRange iv_gt(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.nan || o.eq || o.lt, o.gt); }
GPU_FN FlashRange iv_ge(FlashRange x, FlashRange y) { IvOrder o = iv_order(x, y); return iv_bool(o.nan || o.lt, o.gt || o.eq); }
GPU_FN FlashRange iv_and(FlashRange x, FlashRange y) { return iv_make(iv_min(x.lo, y.lo), iv_min(x.hi, y.hi), false); }
GPU_FN FlashRange iv_or(FlashRange x, FlashRange y) { return iv_make(iv_max(x.lo, y.lo), iv_max(x.hi, y.hi), false); }
GPU_FN FlashRange iv_xor(FlashRange x, FlashRange y) {
    return x.lo != x.hi || y.lo != y.hi ? iv_bool(true, true) : iv_point(x.lo != y.lo);
}
GPU_FN FlashRange iv_where(FlashRange c, FlashRange x, FlashRange y) {
    return iv_is_point(c, 1) ? x : iv_is_point(c, 0) ? y : iv_join(y, x);
}
// What any bool is: 0 or 1, never NaN.
GPU_FN FlashRange iv_truth(FlashRange x) { return iv_make(x.lo > 0 ? 1 : 0, x.hi > 0 ? 1 : 0, false); }
