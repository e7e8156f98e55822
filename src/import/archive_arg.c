// One argument of an exported node: a tagged union of some 25 kinds, read through a table.
#include <math.h>
#include "import/archive.h"

typedef Status (*ArgReader)(ArchiveReader *r, const json_t *v, int depth, Arg *out);

static Status read_none(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)r, (void)v, (void)depth, (void)out;
    return ST_OK;
}

static Status read_int(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(json_expect(v, JSON_INTEGER, "the value", r->d));
    out->i = json_integer_value(v);
    return ST_OK;
}

static Status read_bool(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(json_expect(v, JSON_TRUE, "the value", r->d));
    out->i = json_is_true(v);
    return ST_OK;
}

static Status read_string(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(json_expect(v, JSON_STRING, "the value", r->d));
    out->str = arena_strdup(r->a, json_string_value(v));
    return ST_OK;
}

// JSON has no infinities: the exporter writes them as strings.
static Status float_of(const json_t *v, double *out, Diag *d) {
    const char *s = json_is_string(v) ? json_string_value(v) : NULL;
    if (s && strcmp(s, "Infinity") == 0) *out = INFINITY;
    else if (s && strcmp(s, "-Infinity") == 0) *out = -INFINITY;
    else if (s && strcmp(s, "NaN") == 0) *out = NAN;
    else {
        TRY(json_expect(v, JSON_REAL, "the value", d));
        *out = json_number_value(v);
    }
    return ST_OK;
}

static Status read_float(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    return float_of(v, &out->f, r->d);
}

static Status list_of(ArchiveReader *r, const json_t *v, Arg *out) {
    TRY(json_expect(v, JSON_ARRAY, "the value", r->d));
    out->n = (int)json_array_size(v);
    return ST_OK;
}

static Status read_floats(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(list_of(r, v, out));
    out->floats = ARENA_ARRAY(r->a, double, out->n);
    for (int i = 0; i < out->n; i++) TRY(float_of(json_array_get(v, (size_t)i), &out->floats[i], r->d));
    return ST_OK;
}

static Status read_ints(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(list_of(r, v, out));
    out->ints = ARENA_ARRAY(r->a, int64_t, out->n);
    for (int i = 0; i < out->n; i++) {
        const json_t *e = json_array_get(v, (size_t)i);
        if (!json_is_boolean(e)) TRY(json_expect(e, JSON_INTEGER, "an element", r->d));
        out->ints[i] = json_is_boolean(e) ? json_is_true(e) : json_integer_value(e);
    }
    return ST_OK;
}

static Status tensor_name(ArchiveReader *r, const json_t *v, const char **out) {
    const char *name;
    TRY(json_field_str(v, "name", &name, r->d));
    *out = arena_strdup(r->a, name);
    return ST_OK;
}

static Status read_tensor(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    out->n = 1;
    out->names = ARENA_ARRAY(r->a, const char *, 1);
    return tensor_name(r, v, &out->names[0]);
}

static Status read_tensors(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(list_of(r, v, out));
    out->names = ARENA_ARRAY(r->a, const char *, out->n);
    for (int i = 0; i < out->n; i++) TRY(tensor_name(r, json_array_get(v, (size_t)i), &out->names[i]));
    return ST_OK;
}

// {"as_tensor": {"name": ...}} or {"as_none": true}, which leaves *out NULL.
static Status optional_tensor(ArchiveReader *r, const json_t *v, const char **out) {
    const char *key;
    json_t *value;
    TRY(json_union(v, &key, &value, r->d));
    if (strcmp(key, "as_none") == 0) return ST_OK;
    if (strcmp(key, "as_tensor") != 0) return diag_error(r->d, ST_INPUT, "\"%.60s\" where a tensor or none is expected", key);
    return tensor_name(r, value, out);
}

static Status read_optional_tensor(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    const char **name = ARENA_ARRAY(r->a, const char *, 1);
    TRY(optional_tensor(r, v, name));
    out->kind = *name ? ARG_TENSOR : ARG_NONE;
    out->n = *name ? 1 : 0;
    out->names = name;
    return ST_OK;
}

static Status read_optional_tensors(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(list_of(r, v, out));
    out->names = ARENA_ARRAY(r->a, const char *, out->n);
    for (int i = 0; i < out->n; i++) TRY(optional_tensor(r, json_array_get(v, (size_t)i), &out->names[i]));
    return ST_OK;
}

static Status sym_int_of(ArchiveReader *r, const json_t *v, const char **name, int64_t *value) {
    const char *key;
    json_t *x;
    TRY(json_union(v, &key, &x, r->d));
    if (strcmp(key, "as_name") == 0) {
        TRY(json_expect(x, JSON_STRING, "a size's name", r->d));
        *name = arena_strdup(r->a, json_string_value(x));
        return ST_OK;
    }
    if (strcmp(key, "as_int") != 0) return diag_error(r->d, ST_INPUT, "\"%.60s\" where a size is expected", key);
    TRY(json_expect(x, JSON_INTEGER, "a size", r->d));
    *value = json_integer_value(x);
    return ST_OK;
}

static Status read_sym_int(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    out->n = 1;
    out->sym_names = ARENA_ARRAY(r->a, const char *, 1);
    return sym_int_of(r, v, &out->sym_names[0], &out->i);
}

static Status read_sym_ints(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    TRY(list_of(r, v, out));
    out->sym_names = ARENA_ARRAY(r->a, const char *, out->n);
    out->ints = ARENA_ARRAY(r->a, int64_t, out->n);
    for (int i = 0; i < out->n; i++) TRY(sym_int_of(r, json_array_get(v, (size_t)i), &out->sym_names[i], &out->ints[i]));
    return ST_OK;
}

// SymBool and SymFloat: plain values are as good as bools and floats; named ones keep their name.
static Status read_sym_scalar(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    const char *key;
    json_t *x;
    TRY(json_union(v, &key, &x, r->d));
    if (strcmp(key, "as_bool") == 0) {
        out->kind = ARG_BOOL;
        return read_bool(r, x, depth, out);
    }
    if (strcmp(key, "as_float") == 0) {
        out->kind = ARG_FLOAT;
        return float_of(x, &out->f, r->d);
    }
    out->str = "symbolic bool or float";
    if (strcmp(key, "as_name") != 0) return ST_OK;
    TRY(json_expect(x, JSON_STRING, "a symbolic value's name", r->d));
    out->n = 1;
    out->sym_names = ARENA_ARRAY(r->a, const char *, 1);
    out->sym_names[0] = arena_strdup(r->a, json_string_value(x));
    return ST_OK;
}

static Status read_device(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    (void)depth;
    const char *type;
    TRY(json_field_str(v, "type", &type, r->d));
    out->str = arena_strdup(r->a, type);
    return ST_OK;
}

static Status read_graph(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    json_t *g;
    const char *name;
    TRY(json_field_str(v, "name", &name, r->d));
    out->str = arena_strdup(r->a, name);
    TRY(json_field(v, "graph", JSON_OBJECT, &g, r->d));
    if (archive_read_graph(r, g, depth + 1, &out->graph) != ST_OK) return diag_where(r->d, "sub-graph %s", out->str);
    return ST_OK;
}

static const struct {
    const char *key;
    ArgKind kind;
    ArgReader read;   // NULL: ARG_OTHER, the key is its description
} readers[] = {
    {"as_tensor", ARG_TENSOR, read_tensor},
    {"as_int", ARG_INT, read_int},
    {"as_sym_ints", ARG_SYM_INTS, read_sym_ints},
    {"as_ints", ARG_INTS, read_ints},
    {"as_float", ARG_FLOAT, read_float},
    {"as_floats", ARG_FLOATS, read_floats},
    {"as_bool", ARG_BOOL, read_bool},
    {"as_bools", ARG_BOOLS, read_ints},
    {"as_none", ARG_NONE, read_none},
    {"as_string", ARG_STRING, read_string},
    {"as_tensors", ARG_TENSORS, read_tensors},
    {"as_sym_int", ARG_SYM_INT, read_sym_int},
    {"as_scalar_type", ARG_DTYPE, read_int},
    {"as_device", ARG_DEVICE, read_device},
    {"as_layout", ARG_LAYOUT, read_int},
    {"as_memory_format", ARG_MEMORY_FORMAT, read_int},
    {"as_optional_tensor", ARG_TENSOR, read_optional_tensor},
    {"as_optional_tensors", ARG_TENSORS, read_optional_tensors},
    {"as_sym_bool", ARG_OTHER, read_sym_scalar},
    {"as_sym_float", ARG_OTHER, read_sym_scalar},
    {"as_graph", ARG_GRAPH, read_graph},
    {"as_strings", ARG_OTHER, NULL},
    {"as_sym_bools", ARG_OTHER, NULL},
    {"as_sym_floats", ARG_OTHER, NULL},
    {"as_custom_obj", ARG_OTHER, NULL},
    {"as_operator", ARG_OTHER, NULL},
    {"as_complex", ARG_OTHER, NULL},
    {"as_nested_tensors", ARG_OTHER, NULL},
    {"as_int_lists", ARG_OTHER, NULL},
    {"as_string_to_argument", ARG_OTHER, NULL},
};

Status archive_read_arg(ArchiveReader *r, const json_t *v, int depth, Arg *out) {
    const char *key;
    json_t *value;
    TRY(json_union(v, &key, &value, r->d));
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        if (strcmp(readers[i].key, key) != 0) continue;
        out->kind = readers[i].kind;
        if (readers[i].read) return readers[i].read(r, value, depth, out);
        out->str = readers[i].key;
        return ST_OK;
    }
    return diag_error(r->d, ST_UNSUPPORTED, "an argument of kind \"%.60s\", which schema 8.17 does not have", key);
}
