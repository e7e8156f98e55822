// Interval arithmetic over a Program's instructions: bounds of every value given bounds of the leaves.
#pragma once
#include "backend/cpu/predicate.h"

// The interval of instruction `in` from those of its operands (index into range[]). Leaves are the caller's. `real` is the float
// type that lanes are computed in: bounds are widened by its rounding.
Interval interval_of(const Instr *in, const Interval *range, DType operand_type, DType real);
static inline Interval interval_unknown(void) { return (Interval){-__builtin_inf(), __builtin_inf(), true}; }
static inline Interval interval_point(double v) { return (Interval){v, v, v != v}; }
static inline Interval interval_bool(bool may_false, bool may_true) {
    return (Interval){may_false ? 0 : 1, may_true ? 1 : 0, false};
}
static inline bool interval_is_point(Interval x, double v) { return x.lo == v && x.hi == v && !x.nan; }
// Extends x so that it contains v (NaN too). Start from interval_empty.
static inline Interval interval_empty(void) { return (Interval){__builtin_inf(), -__builtin_inf(), false}; }
static inline void interval_add(Interval *x, double v) {
    if (v != v) x->nan = true;
    if (v < x->lo) x->lo = v;
    if (v > x->hi) x->hi = v;
}
static inline void interval_join(Interval *x, Interval y) {
    x->nan |= y.nan;
    if (y.lo < x->lo) x->lo = y.lo;
    if (y.hi > x->hi) x->hi = y.hi;
}
