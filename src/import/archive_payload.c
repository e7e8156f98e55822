// Reads the weight and constant tables and finds each tensor's bytes.
#include "import/archive_payload.h"
#include "import/mapfile.h"

#define CRC_LIMIT (4ll << 30)      // larger archives are not read through just for their checksums
#define COPY_LIMIT (256ll << 20)   // beyond the file's size: strided views may claim more elements than they store

static Status read_extents(ArchiveReader *r, const json_t *list, int64_t *out) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_object_get(json_array_get(list, i), "as_int");
        TRY(json_expect(v, JSON_INTEGER, "a size or stride", r->d));
        out[i] = json_integer_value(v);
        if (out[i] < 0) return diag_error(r->d, ST_INPUT, "a negative size or stride");
    }
    return ST_OK;
}

// Complex elements become pairs of real ones.
static Status split_complex(ArchiveReader *r, Payload *p) {
    int part;
    if (!aten_complex(p->dtype, &part)) return ST_OK;
    bool fits = mul_i64(p->offset, 2, &p->offset);
    for (int i = 0; i < p->shape.ndim; i++) fits = mul_i64(p->stride[i], 2, &p->stride[i]) && fits;
    if (!fits) return diag_error(r->d, ST_INPUT, "its strides overflow");
    if (p->shape.ndim == MAX_DIMS) return diag_error(r->d, ST_UNSUPPORTED, "a complex tensor of %d dims", MAX_DIMS);
    p->stride[p->shape.ndim] = 1;
    p->shape.dim[p->shape.ndim++] = 2;
    p->dtype = part;
    return ST_OK;
}

static Status read_meta(ArchiveReader *r, const json_t *meta, Payload *p) {
    json_t *sizes, *strides, *offset;
    int64_t dtype, layout;
    TRY(json_field_int(meta, "dtype", &dtype, r->d));
    TRY(json_field_int(meta, "layout", &layout, r->d));
    TRY(json_field_bool(meta, "requires_grad", &p->requires_grad, r->d));
    TRY(json_field(meta, "sizes", JSON_ARRAY, &sizes, r->d));
    TRY(json_field(meta, "strides", JSON_ARRAY, &strides, r->d));
    TRY(json_field_opt(meta, "storage_offset", JSON_OBJECT, &offset, r->d));
    size_t n = json_array_size(sizes);
    if (n != json_array_size(strides)) return diag_error(r->d, ST_INPUT, "it has %zu sizes and another number of strides", n);
    if (n > MAX_DIMS) return diag_error(r->d, ST_UNSUPPORTED, "%zu dims; at most %d are supported", n, MAX_DIMS);
    if (layout != 7) return diag_error(r->d, ST_UNSUPPORTED, "a sparse tensor (layout %lld)", (long long)layout);
    if (dtype < 0 || dtype > 1000) return diag_error(r->d, ST_INPUT, "impossible dtype code %lld", (long long)dtype);
    p->dtype = (int)dtype;
    p->shape.ndim = (int)n;
    TRY(read_extents(r, sizes, p->shape.dim));
    TRY(read_extents(r, strides, p->stride));
    const json_t *at = json_object_get(offset, "as_int");
    p->offset = json_is_integer(at) ? json_integer_value(at) : 0;
    if (p->offset < 0) return diag_error(r->d, ST_INPUT, "a negative storage offset");
    return split_complex(r, p);
}

static Status read_payload(ArchiveReader *r, const char *name, const json_t *v, const char *dir, PayloadTable *t) {
    Payload p = {.name = arena_strdup(r->scratch, name), .dir = dir};
    const char *path;
    json_t *meta;
    int64_t other;
    TRY(json_field_str(v, "path_name", &path, r->d));
    TRY(json_field_bool(v, "use_pickle", &p.pickled, r->d));
    TRY(json_field_opt(v, "tensor_meta", JSON_OBJECT, &meta, r->d));
    p.path = arena_strdup(r->scratch, path);
    if (meta) TRY(read_meta(r, meta, &p));
    else p.pickled = true;  // a custom object
    if (map_get(t->index, name, &other)) return ST_OK;  // buffers may be in both tables; the weights come first
    map_set(t->index, p.name, t->item.len);
    vec_push(&t->item, p);
    return ST_OK;
}

static Status read_table(ArchiveReader *r, const char *dir, PayloadTable *t) {
    ZipMember *m = archive_member(r, "data/%s/%s_%s_config.json", dir, r->stem, dir);
    json_t *root, *config, *v;
    const char *name;
    if (!m) {
        ZipMember *old = archive_member(r, "data/%s/%s.pt", dir, r->stem);
        if (!old) return ST_OK;
        return diag_error(r->d, ST_UNSUPPORTED, "member '%s' is pickled (an older PyTorch wrote it); export with PyTorch 2.11",
                          old->name);
    }
    TRY(archive_json(r, m, &root));
    Status st = json_field(root, "config", JSON_OBJECT, &config, r->d);
    if (st == ST_OK) {
        json_object_foreach(config, name, v) {
            st = read_payload(r, name, v, dir, t);
            if (st != ST_OK) st = diag_where(r->d, "tensor '%.200s'", name);
            if (st != ST_OK) break;
        }
    }
    return st == ST_OK ? ST_OK : diag_where(r->d, "%s", m->name);
}

Status payloads_read(ArchiveReader *r, PayloadTable *t) {
    *t = (PayloadTable){.index = map_new(r->scratch)};
    TRY(read_table(r, "weights", t));
    return read_table(r, "constants", t);
}

Payload *payload_find(PayloadTable *t, const char *name) {
    int64_t i;
    return map_get(t->index, name, &i) ? &t->item.data[i] : NULL;
}

const char *payload_shape_text(Arena *a, const Shape *s) {
    Str t = {0};
    str_add(&t, "[");
    for (int i = 0; i < s->ndim; i++) str_printf(&t, "%s%lld", i ? ", " : "", (long long)s->dim[i]);
    str_add(&t, "]");
    const char *text = arena_strdup(a, str_text(&t));
    str_free(&t);
    return text;
}

// Elements of the tensor and elements of storage from the first it touches to the last; false on overflow.
static bool measure(const Payload *p, int64_t *numel, int64_t *span) {
    *numel = 1;
    *span = 1;
    for (int i = 0; i < p->shape.ndim; i++) {
        int64_t step;
        if (!mul_i64(*numel, p->shape.dim[i], numel)) return false;
        if (p->shape.dim[i] == 0) continue;
        if (!mul_i64(p->shape.dim[i] - 1, p->stride[i], &step) || !add_i64(*span, step, span)) return false;
    }
    if (*numel == 0) *span = 0;
    return true;
}

static Status locate(ArchiveReader *r, Payload *p) {
    if (p->pickled) return diag_error(r->d, ST_UNSUPPORTED, "it is pickled (a tensor subclass or custom object)");
    if (!aten_dtype(p->dtype, &p->type))
        return diag_error(r->d, ST_UNSUPPORTED, "its dtype (export code %d) is not supported", p->dtype);
    int64_t numel, span, size = dtype_nbytes(p->type), total;
    if (!measure(p, &numel, &span) || !mul_i64(numel, size, &total) || !mul_i64(span, size, &span) ||
        !mul_i64(p->offset, size, &p->begin) || !add_i64(p->begin, span, &p->end))
        return diag_error(r->d, ST_INPUT, "its sizes overflow");
    ZipMember *m = archive_member(r, "data/%s/%s", p->dir, p->path);
    if (!m) return diag_error(r->d, ST_INPUT, "its bytes, member 'data/%s/%.200s', are not in the archive", p->dir, p->path);
    if (m->nbytes == 0 && numel > 0) return ST_OK;  // meta device: sizes only
    if (p->end > m->nbytes)
        return diag_error(r->d, ST_INPUT, "shape %s needs %lld bytes, but member '%s' has %lld",
                          payload_shape_text(r->scratch, &p->shape), (long long)p->end, m->name, (long long)m->nbytes);
    p->member = m;
    return ST_OK;
}

Status payload_locate(ArchiveReader *r, Payload *p) {
    return locate(r, p) == ST_OK ? ST_OK : diag_where(r->d, "tensor '%.200s'", p->name);
}

static bool is_row_major(const Payload *p) {
    int64_t want = 1;
    for (int i = p->shape.ndim - 1; i >= 0; i--) {
        if (p->shape.dim[i] != 1 && p->stride[i] != want) return false;
        want *= p->shape.dim[i];
    }
    return true;
}

// Strided elements in row-major order; src is the tensor's first element.
static void gather(const Payload *p, const uint8_t *src, uint8_t *dst, size_t size) {
    int64_t index[MAX_DIMS] = {0}, numel = shape_numel(&p->shape), at = 0;
    for (int64_t i = 0; i < numel; i++) {
        memcpy(dst + (size_t)i * size, src + (size_t)at * size, size);
        for (int k = p->shape.ndim - 1; k >= 0; k--) {
            at += p->stride[k];
            if (++index[k] < p->shape.dim[k]) break;
            at -= p->shape.dim[k] * p->stride[k];
            index[k] = 0;
        }
    }
}

Status payload_bytes(ArchiveReader *r, const Payload *p, const void **out) {
    *out = NULL;
    if (!p->member) return ST_OK;
    const void *plain;
    TRY(zip_bytes(r->zip, r->a, p->member, INT64_MAX, r->zip->nbytes <= CRC_LIMIT, &plain, r->d));
    const uint8_t *src = (const uint8_t *)plain + p->begin;
    int64_t size = dtype_nbytes(p->type), numel = shape_numel(&p->shape);
    if (is_row_major(p) && (uintptr_t)src % (uintptr_t)size == 0) {
        *out = src;
        return ST_OK;
    }
    void *copy;
    r->ncopied += numel * size;
    if (numel * size > COPY_LIMIT + r->zip->nbytes || r->ncopied > COPY_LIMIT + r->zip->nbytes)
        return diag_error(r->d, ST_UNSUPPORTED, "expanded views of over %lld bytes", (long long)(COPY_LIMIT + r->zip->nbytes));
    TRY(tensor_memory(r->a, numel * size, &copy, r->d));
    if (numel > 0) gather(p, src, copy, (size_t)size);
    *out = copy;
    return ST_OK;
}

bool payload_same_view(const Payload *a, const Payload *b) {
    return a->member == b->member && a->begin == b->begin && a->type == b->type && shape_equal(&a->shape, &b->shape) &&
           memcmp(a->stride, b->stride, sizeof a->stride) == 0;
}
