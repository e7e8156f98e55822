// --weights: parameter bytes from safetensors files, matched by name, by checkpoint name, and by the names of the tied group.
#include "import/archive_payload.h"
#include "import/mapfile.h"
#include "ir/convert.h"

typedef struct Override {
    ArchiveReader *r;
    TensorFile *file;
    Map *taken;            // names in the file that something took
    int64_t nkept;         // parameters that keep the archive's bytes
    const char *kept;      // one of them
} Override;

static Status check_shape(Override *o, const TensorView *v, const char *name, const Shape *want) {
    Arena *s = o->r->scratch;
    if (!v->known_dtype)
        return diag_error(o->r->d, ST_UNSUPPORTED, "tensor '%.200s' has a dtype that is not supported", v->name);
    if (shape_equal(&v->shape, want)) return ST_OK;
    return diag_error(o->r->d, ST_INPUT, "tensor '%.200s' has shape %s, but '%.200s' of the program needs %s", v->name,
                      payload_shape_text(s, &v->shape), name, payload_shape_text(s, want));
}

// Takes tensor `name` for parameter p if the file has it. A second name of a tied group must bring the same bytes.
static Status take_param(Override *o, Param *p, const char *name, const TensorView **got) {
    const TensorView *v = name ? tensors_find(o->file, name) : NULL;
    if (!v || v == *got) return ST_OK;
    TRY(check_shape(o, v, p->name, &p->shape));
    if (!dtype_is_float(v->dtype))
        return diag_error(o->r->d, ST_INPUT, "tensor '%.200s' is %s, but the parameter is a float", v->name,
                          dtype_name(v->dtype));
    map_set(o->taken, v->name, 1);
    if (*got && ((*got)->nbytes != v->nbytes || memcmp((*got)->data, v->data, (size_t)v->nbytes) != 0))
        return diag_error(o->r->d, ST_INPUT, "tensors '%.200s' and '%.200s' differ, but the program ties them",
                          (*got)->name, v->name);
    if (!*got) *got = v;
    return ST_OK;
}

static Status override_param(Override *o, Param *p) {
    const TensorView *got = NULL;
    const json_t *names = json_object_get(o->r->extra, "checkpoint_names");
    for (int i = -1; i < p->nalias; i++) {
        const char *name = i < 0 ? p->name : p->alias[i];
        TRY(take_param(o, p, name, &got));
        TRY(take_param(o, p, json_string_value(json_object_get(names, name)), &got));
    }
    if (got) {
        p->data = got->data;
        p->dtype = got->dtype;
    } else if (p->data) {
        o->nkept++;
        o->kept = p->name;
    }
    return ST_OK;
}

static Status override_const(Override *o, Const *c) {
    const TensorView *v = tensors_find(o->file, c->name);
    void *data;
    if (!v) return ST_OK;
    TRY(check_shape(o, v, c->name, &c->shape));
    map_set(o->taken, v->name, 1);
    int64_t n = shape_numel(&c->shape);
    TRY(tensor_memory(o->r->a, n * dtype_nbytes(c->dtype), &data, o->r->d));
    convert_array(v->data, v->dtype, data, c->dtype, n);
    c->data = data;
    return ST_OK;
}

Status archive_override_weights(ArchiveReader *r, const char *weights) {
    Override o = {.r = r, .taken = map_new(r->scratch)};
    TRY(tensors_open(r->a, weights, &o.file, r->d));
    Status st = ST_OK;
    for (int64_t i = 0; st == ST_OK && i < r->ar->param.len; i++) st = override_param(&o, &r->ar->param.data[i]);
    for (int64_t i = 0; st == ST_OK && i < r->ar->constant.len; i++) st = override_const(&o, &r->ar->constant.data[i]);
    if (st != ST_OK) return diag_where(r->d, "%s", weights);
    for (int64_t i = 0; i < tensors_count(o.file); i++) {
        const char *name = tensors_at(o.file, i)->name;
        int64_t yes;
        if (!map_get(o.taken, name, &yes)) vec_push(&r->report->leftover, name);
    }
    if (tensors_count(o.file) && r->report->leftover.len == tensors_count(o.file))
        return diag_error(r->d, ST_INPUT,
                          "%s: none of its %lld tensors has the name of a parameter of this program; the first is '%.200s', the "
                          "program's '%.200s'",
                          weights, (long long)tensors_count(o.file), tensors_at(o.file, 0)->name,
                          r->ar->param.len ? r->ar->param.data[0].name : "");
    if (o.nkept)
        vec_push(&r->report->notes,
                 arena_printf(r->a, "%lld parameters are not in %s and keep the archive's values, among them '%s'",
                              (long long)o.nkept, weights, o.kept));
    return ST_OK;
}
