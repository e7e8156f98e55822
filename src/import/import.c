// From an archive to a graph: open, bind, lower.
#include "import/aten.h"
#include <math.h>
#include "ir/convert.h"

#define NAN_SCAN_LIMIT (4ll << 30)  // bytes of weights that are looked through when the caller could do without them

// Weights that are NaN or infinite make every later number meaningless: say so before anything is computed.
static Status check_finite(const Param *p, Diag *d) {
    enum { CHUNK = 1024 };
    double x[CHUNK];
    int64_t n = shape_numel(&p->shape), size = dtype_nbytes(p->dtype);
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = min_i64(CHUNK, n - i);
        convert_array((const char *)p->data + i * size, p->dtype, x, DT_F64, m);
        for (int64_t k = 0; k < m; k++)
            if (!isfinite(x[k]))
                return diag_error(d, ST_NUMERIC, "parameter '%.300s' holds %s at element %lld", p->name,
                                  isnan(x[k]) ? "NaN" : "infinity", (long long)(i + k));
    }
    return ST_OK;
}

static Status check_params(const Archive *ar, const ImportOptions *o, const ImportReport *r, Diag *d) {
    if (r->missing.len && !o->allow_missing_params)
        return diag_error(d, ST_INPUT, "%lld parameters have no values, the first is '%s'; give safetensors with --weights",
                          (long long)r->missing.len, r->missing.data[0]);
    int64_t nbytes = 0;
    for (int64_t i = 0; i < ar->param.len; i++) {
        const Param *p = &ar->param.data[i];
        if (p->data) nbytes += shape_numel(&p->shape) * dtype_nbytes(p->dtype);
    }
    if (o->allow_missing_params && nbytes > NAN_SCAN_LIMIT) return ST_OK;
    for (int64_t i = 0; i < ar->param.len; i++)
        if (ar->param.data[i].data) TRY(check_finite(&ar->param.data[i], d));
    return ST_OK;
}

Status import_pt2(Arena *a, const char *path, const ImportOptions *o, Graph **out, ImportReport *r, Diag *d) {
    Archive *ar;
    TRY(archive_open(a, path, o->weights, &ar, r, d));
    int64_t *values = ARENA_ARRAY(a, int64_t, ar->nsymbol);
    Status st = archive_bind(ar, o->batch, o->seq, a, values, d);
    if (st == ST_OK) st = check_params(ar, o, r, d);
    if (st == ST_OK) st = lower_archive(a, ar, values, o, out, r, d);
    return st == ST_OK ? ST_OK : diag_where(d, "%s", path);
}

Status import_open(Arena *a, const char *path, const ImportOptions *o, Archive **out, ImportReport *r, Diag *d) {
    TRY(archive_open(a, path, o->weights, out, r, d));
    Status st = check_params(*out, o, r, d);
    return st == ST_OK ? ST_OK : diag_where(d, "%s", path);
}

Status import_bind(Arena *a, const Archive *ar, const ImportOptions *o, Graph **out, ImportReport *r, Diag *d) {
    int64_t *values = ARENA_ARRAY(a, int64_t, ar->nsymbol);
    Status st = archive_bind(ar, o->batch, o->seq, a, values, d);
    if (st == ST_OK) st = lower_archive(a, ar, values, o, out, r, d);
    return st == ST_OK ? ST_OK : diag_where(d, "%s", ar->path);
}
