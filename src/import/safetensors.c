// Reads safetensors files: 8 bytes of header length, a JSON header, raw row-major bytes. One file, or a folder with an index.
#include <errno.h>
#include <sys/stat.h>
#include "import/import.h"
#include "import/json.h"
#include "import/mapfile.h"
#include "ir/convert.h"

#define HEADER_LIMIT (100ll << 20)  // as in the reference implementation

struct TensorFile {
    VEC(TensorView) tensor;
    Map *index;             // name -> tensor
};

// One file being read.
typedef struct Reader {
    Arena *a, *scratch;
    const char *path;       // of the file, for messages
    const uint8_t *data;    // after the header
    int64_t nbytes;
    Diag *d;
} Reader;

static const struct { const char *name; int nbits; int type; } dtypes[] = {
    {"F32", 32, DT_F32}, {"F64", 64, DT_F64}, {"BF16", 16, DT_BF16}, {"F16", 16, DT_F16},
    {"I64", 64, DT_I64}, {"I32", 32, DT_I32}, {"BOOL", 8, DT_BOOL},
    {"I16", 16, -1}, {"I8", 8, -1}, {"U8", 8, -1}, {"U16", 16, -1}, {"U32", 32, -1}, {"U64", 64, -1}, {"C64", 64, -1},
    {"F8_E4M3", 8, -1}, {"F8_E5M2", 8, -1}, {"F8_E8M0", 8, -1}};

// Sets dtype and returns the bits of an element; 0: a dtype newer than this table.
static int read_dtype(const char *name, TensorView *v) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, name) != 0) continue;
        v->known_dtype = dtypes[i].type >= 0;
        if (v->known_dtype) v->dtype = (DType)dtypes[i].type;
        return dtypes[i].nbits;
    }
    return 0;
}

static Status read_shape(Reader *r, const json_t *list, TensorView *v, int64_t *numel) {
    size_t n = json_array_size(list);
    *numel = 1;
    if (n > MAX_DIMS) v->known_dtype = false;  // legal, but nothing here can hold it
    v->shape.ndim = (int)min_i64((int64_t)n, MAX_DIMS);
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_array_get(list, i);
        TRY(json_expect(e, JSON_INTEGER, "a dim", r->d));
        int64_t dim = json_integer_value(e);
        if (dim < 0 || !mul_i64(*numel, dim, numel)) return diag_error(r->d, ST_INPUT, "its shape is negative or overflows");
        if (i < MAX_DIMS) v->shape.dim[i] = dim;
    }
    return ST_OK;
}

static Status read_offsets(Reader *r, const json_t *list, int64_t *begin, int64_t *end) {
    const json_t *b = json_array_get(list, 0), *e = json_array_get(list, 1);
    if (json_array_size(list) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return diag_error(r->d, ST_INPUT, "\"data_offsets\" is not two integers");
    *begin = json_integer_value(b);
    *end = json_integer_value(e);
    if (*begin < 0 || *end < *begin || *end > r->nbytes)
        return diag_error(r->d, ST_INPUT, "bytes [%lld, %lld) lie outside the %lld bytes of data (cut off?)", (long long)*begin,
                          (long long)*end, (long long)r->nbytes);
    return ST_OK;
}

static Status read_tensor(Reader *r, const char *name, const json_t *v, TensorView *out) {
    const char *dtype;
    json_t *shape, *offsets;
    int64_t numel, begin, end, nbits;
    *out = (TensorView){.name = arena_strdup(r->a, name)};
    TRY(json_field_str(v, "dtype", &dtype, r->d));
    TRY(json_field(v, "shape", JSON_ARRAY, &shape, r->d));
    TRY(json_field(v, "data_offsets", JSON_ARRAY, &offsets, r->d));
    int width = read_dtype(dtype, out);
    TRY(read_shape(r, shape, out, &numel));
    TRY(read_offsets(r, offsets, &begin, &end));
    out->nbytes = end - begin;
    out->data = r->data + begin;
    if (width && (!mul_i64(numel, width, &nbits) || nbits % 8 != 0 || nbits / 8 != out->nbytes))
        return diag_error(r->d, ST_INPUT, "%s of %lld elements does not take %lld bytes", dtype, (long long)numel,
                          (long long)out->nbytes);
    // Pointers into the mapping must be usable as arrays of their type.
    if (out->known_dtype && (uintptr_t)out->data % (uintptr_t)dtype_nbytes(out->dtype) != 0) {
        void *copy;
        TRY(tensor_memory(r->a, out->nbytes, &copy, r->d));
        memcpy(copy, out->data, (size_t)out->nbytes);
        out->data = copy;
    }
    return ST_OK;
}

typedef struct Extent {
    int64_t begin, end;
    const char *name;
} Extent;

static int extent_order(const void *x, const void *y) {
    const Extent *a = x, *b = y;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

// The format allows neither overlaps nor bytes that belong to no tensor: both mean damage, or two readings of one file.
static Status check_extents(Reader *r, int64_t n, Extent *e) {
    if (n > 1) qsort(e, (size_t)n, sizeof *e, extent_order);
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        if (e[i].begin < at) return diag_error(r->d, ST_INPUT, "tensors '%.200s' and '%.200s' overlap", e[i - 1].name, e[i].name);
        if (e[i].begin > at)
            return diag_error(r->d, ST_INPUT, "bytes [%lld, %lld) belong to no tensor", (long long)at, (long long)e[i].begin);
        at = e[i].end;
    }
    if (at != r->nbytes)
        return diag_error(r->d, ST_INPUT, "%lld bytes follow the last tensor", (long long)(r->nbytes - at));
    return ST_OK;
}

static Status read_header(Reader *r, json_t **out) {
    uint64_t n = 0;
    for (int i = 0; i < 8 && r->nbytes >= 8; i++) n |= (uint64_t)r->data[i] << (8 * i);
    if (r->nbytes < 8 || n > (uint64_t)(r->nbytes - 8))
        return diag_error(r->d, ST_INPUT, "not a safetensors file, or cut off: %lld bytes, header of %llu", (long long)r->nbytes,
                          (unsigned long long)n);
    if (n > (uint64_t)HEADER_LIMIT) return diag_error(r->d, ST_INPUT, "a header of %llu bytes", (unsigned long long)n);
    TRY(json_parse(r->scratch, "header", r->data + 8, (int64_t)n, out, r->d));
    TRY(json_expect(*out, JSON_OBJECT, "the header", r->d));
    r->data += 8 + n;
    r->nbytes -= 8 + (int64_t)n;
    return ST_OK;
}

// Adds the tensors of one file: all of them, or those that `wanted` (an index's weight_map) places in it.
static Status read_file(Reader *r, TensorFile *f, const json_t *wanted, const char *file) {
    json_t *header, *v;
    const char *name;
    int64_t n = 0, other;
    TRY(file_map(r->a, r->path, &r->data, &r->nbytes, r->d));
    TRY(read_header(r, &header));
    Extent *extent = ARENA_ARRAY(r->scratch, Extent, json_object_size(header));
    json_object_foreach(header, name, v) {
        TensorView t;
        if (strcmp(name, "__metadata__") == 0) continue;
        if (read_tensor(r, name, v, &t) != ST_OK) return diag_where(r->d, "tensor '%.200s'", name);
        int64_t begin, end;
        TRY(read_offsets(r, json_object_get(v, "data_offsets"), &begin, &end));
        extent[n++] = (Extent){begin, end, t.name};
        const char *place = wanted ? json_string_value(json_object_get(wanted, name)) : NULL;
        if (wanted && (!place || strcmp(place, file) != 0)) continue;
        if (map_get(f->index, t.name, &other)) return diag_error(r->d, ST_INPUT, "tensor '%.200s' is in two files", name);
        map_set(f->index, t.name, f->tensor.len);
        vec_push(&f->tensor, t);
    }
    return check_extents(r, n, extent);
}

static Status read_one(Reader *r, TensorFile *f, const json_t *wanted, const char *file) {
    return read_file(r, f, wanted, file) == ST_OK ? ST_OK : diag_where(r->d, "%s", r->path);
}

// {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00004.safetensors", ...}} beside the files.
static Status read_index(Reader *r, TensorFile *f, const char *folder) {
    const char *index_path = r->path, *name;
    const uint8_t *text;
    int64_t n, seen;
    json_t *root, *map, *v;
    TRY(file_map(r->a, index_path, &text, &n, r->d));
    Status st = json_parse(r->scratch, "index", text, n, &root, r->d);
    if (st == ST_OK) st = json_field(root, "weight_map", JSON_OBJECT, &map, r->d);
    if (st != ST_OK) return diag_where(r->d, "%s", index_path);
    Map *done = map_new(r->scratch);
    json_object_foreach(map, name, v) {
        const char *file = json_string_value(v);
        if (!file || !*file || strchr(file, '/') || strcmp(file, "..") == 0)
            return diag_error(r->d, ST_INPUT, "%s: '%.200s' is in no file of this folder", index_path, name);
        if (map_get(done, file, &seen)) continue;
        map_set(done, file, 1);
        r->path = arena_printf(r->a, "%s/%s", folder, file);
        TRY(read_one(r, f, map, file));
    }
    json_object_foreach(map, name, v)
        if (!map_get(f->index, name, &seen))
            return diag_error(r->d, ST_INPUT, "%s: '%.200s' is not in %s", index_path, name, json_string_value(v));
    return ST_OK;
}

static void free_tensors(void *p) {
    TensorFile *f = p;
    vec_free(&f->tensor);
}

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

static Status open_any(Reader *r, const char *path, TensorFile *f) {
    struct stat st;
    r->path = path;
    if (stat(path, &st) != 0) return diag_error(r->d, ST_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode) && !ends_with(path, ".json")) return read_one(r, f, NULL, NULL);
    if (!S_ISDIR(st.st_mode)) {
        const char *slash = strrchr(path, '/');
        return read_index(r, f, slash ? arena_strndup(r->a, path, (size_t)(slash - path)) : ".");
    }
    r->path = arena_printf(r->a, "%s/model.safetensors.index.json", path);
    if (stat(r->path, &st) == 0) return read_index(r, f, path);
    r->path = arena_printf(r->a, "%s/model.safetensors", path);
    if (stat(r->path, &st) == 0) return read_one(r, f, NULL, NULL);
    return diag_error(r->d, ST_IO, "%s: neither model.safetensors nor model.safetensors.index.json in this folder", path);
}

Status tensors_open(Arena *a, const char *path, TensorFile **out, Diag *d) {
    TensorFile *f = ARENA_NEW(a, TensorFile);
    Reader r = {.a = a, .scratch = arena_new(), .d = d};
    if (!r.scratch) return diag_error(d, ST_MEMORY, "out of memory");
    f->index = map_new(a);
    arena_defer(a, free_tensors, f);
    Status st = open_any(&r, path, f);
    arena_free(r.scratch);
    if (st == ST_OK) *out = f;
    return st;
}

int64_t tensors_count(const TensorFile *f) { return f->tensor.len; }

const TensorView *tensors_at(const TensorFile *f, int64_t i) {
    CHECK(i >= 0 && i < f->tensor.len, "tensor %lld of %lld", (long long)i, (long long)f->tensor.len);
    return &f->tensor.data[i];
}

const TensorView *tensors_find(const TensorFile *f, const char *name) {
    int64_t i;
    return map_get(f->index, name, &i) ? &f->tensor.data[i] : NULL;
}

Status tensor_convert(const void *src, DType from, void *dst, DType to, int64_t n, Diag *d) {
    if (n < 0 || (unsigned)from >= DT_COUNT || (unsigned)to >= DT_COUNT)
        return diag_error(d, ST_INPUT, "cannot convert %lld elements", (long long)n);
    convert_array(src, from, dst, to, n);
    return ST_OK;
}
