// Accessors over jansson.
#include "import/json.h"
#include "base/containers.h"

#define MAX_NBYTES (64ll << 20)
#define MAX_VALUES (4ll << 20)

// Values are at most one more than the commas and brackets outside strings; a tree costs about 100 bytes for each.
static int64_t count_values(const char *s, int64_t n) {
    int64_t count = 1;
    bool quoted = false;
    for (int64_t i = 0; i < n; i++) {
        char c = s[i];
        if (quoted) {
            if (c == '\\') i++;
            else if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else {
            count += c == ',' || c == '[' || c == '{';
        }
    }
    return count;
}

static void release(void *p) { json_decref(p); }

Status json_parse(Arena *scratch, const char *what, const void *text, int64_t n, json_t **out, Diag *d) {
    if (n > MAX_NBYTES) return diag_error(d, ST_INPUT, "%s: %lld bytes of JSON exceeds 64 MiB", what, (long long)n);
    if (count_values(text, n) > MAX_VALUES) return diag_error(d, ST_INPUT, "%s: over %lld JSON values", what, MAX_VALUES);
    json_error_t e;
    json_t *root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (!root) return diag_error(d, ST_INPUT, "%s: line %d, column %d: %s", what, e.line, e.column, e.text);
    arena_defer(scratch, release, root);
    *out = root;
    return ST_OK;
}

const char *json_type_name(json_type t) {
    switch (t) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    case JSON_NULL: return "null";
    }
    return "?";
}

static bool type_fits(const json_t *v, json_type type) {
    if (type == JSON_REAL) return json_is_number(v);
    if (type == JSON_TRUE) return json_is_boolean(v);
    return json_typeof(v) == type;
}

Status json_expect(const json_t *v, json_type type, const char *what, Diag *d) {
    if (v && type_fits(v, type)) return ST_OK;
    return diag_error(d, ST_INPUT, "%s is %s where %s is expected", what, v ? json_type_name(json_typeof(v)) : "missing",
                      json_type_name(type));
}

Status json_field_opt(const json_t *o, const char *key, json_type type, json_t **out, Diag *d) {
    json_t *v = json_is_object(o) ? json_object_get(o, key) : NULL;
    *out = NULL;
    if (!json_is_object(o)) return diag_error(d, ST_INPUT, "no object to hold field \"%s\"", key);
    if (!v || json_is_null(v)) return ST_OK;
    if (!type_fits(v, type))
        return diag_error(d, ST_INPUT, "field \"%s\" is %s where %s is expected", key,
                          json_type_name(json_typeof(v)), json_type_name(type));
    *out = v;
    return ST_OK;
}

Status json_field(const json_t *o, const char *key, json_type type, json_t **out, Diag *d) {
    TRY(json_field_opt(o, key, type, out, d));
    return *out ? ST_OK : diag_error(d, ST_INPUT, "field \"%s\" is missing", key);
}

Status json_field_str(const json_t *o, const char *key, const char **out, Diag *d) {
    json_t *v;
    TRY(json_field(o, key, JSON_STRING, &v, d));
    *out = json_string_value(v);
    return ST_OK;
}

Status json_field_int(const json_t *o, const char *key, int64_t *out, Diag *d) {
    json_t *v;
    TRY(json_field(o, key, JSON_INTEGER, &v, d));
    *out = json_integer_value(v);
    return ST_OK;
}

Status json_field_bool(const json_t *o, const char *key, bool *out, Diag *d) {
    json_t *v;
    TRY(json_field(o, key, JSON_TRUE, &v, d));
    *out = json_is_true(v);
    return ST_OK;
}

Status json_union(const json_t *v, const char **key, json_t **value, Diag *d) {
    if (!json_is_object(v) || json_object_size(v) != 1) {
        const char *what = v ? json_type_name(json_typeof(v)) : "nothing";
        return diag_error(d, ST_INPUT, "%s where one tagged value such as {\"as_int\": 3} is expected", what);
    }
    void *it = json_object_iter((json_t *)v);
    *key = json_object_iter_key(it);
    *value = json_object_iter_value(it);
    return ST_OK;
}
