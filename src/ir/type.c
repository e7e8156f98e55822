#include "ir/type.h"

#include <string.h>

static const struct {
    const char *name;
    int nbytes;
} dtypes[DT_COUNT] = {
    [DT_F32] = {"f32", 4}, [DT_F64] = {"f64", 8}, [DT_BF16] = {"bf16", 2}, [DT_F16] = {"f16", 2},
    [DT_I64] = {"i64", 8}, [DT_I32] = {"i32", 4}, [DT_BOOL] = {"bool", 1},
};

int dtype_nbytes(DType t) { return dtypes[t].nbytes; }
const char *dtype_name(DType t) { return (unsigned)t < DT_COUNT ? dtypes[t].name : "?"; }
bool dtype_is_float(DType t) { return t == DT_F32 || t == DT_F64 || t == DT_BF16 || t == DT_F16; }

bool dtype_from_name(const char *s, DType *out) {
    for (int t = 0; t < DT_COUNT; t++)
        if (!strcmp(s, dtypes[t].name)) {
            *out = (DType)t;
            return true;
        }
    return false;
}

int64_t shape_numel(const Shape *s) {
    int64_t n = 1;
    for (int i = 0; i < s->ndim; i++) n *= s->dim[i];
    return n;
}

bool shape_equal(const Shape *a, const Shape *b) {
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

Shape shape_of(int ndim, const int64_t *dims) {
    CHECK(ndim >= 0 && ndim <= MAX_DIMS, "%d dims", ndim);
    Shape s = {.ndim = ndim};
    for (int i = 0; i < ndim; i++) s.dim[i] = dims[i];
    return s;
}

bool placement_equal(const Placement *a, const Placement *b) {
    if (a->kind != b->kind) return false;
    switch (a->kind) {
        case PLACE_PARTIAL: return a->reduce == b->reduce;
        case PLACE_SHARD: return a->reduce == b->reduce && a->dim == b->dim && a->layout == b->layout;
        default: return true;
    }
}

Shape placement_local_shape(const LayoutTable *t, const Placement *p, const Shape *global, int rank) {
    Shape s = *global;
    if (p->kind == PLACE_SHARD) s.dim[p->dim] = layout_local(layouts_get(t, p->layout), rank);
    return s;
}
