// Reading JSON that may be hostile: limits before parsing, and accessors whose errors name the field.
#pragma once
#include <jansson.h>
#include "base/arena.h"
#include "base/diag.h"

// Parses n bytes; the tree lives until `scratch` is freed. Refuses duplicate keys, over 64 MiB, over 4 million values.
// `what` names the text in errors.
Status json_parse(Arena *scratch, const char *what, const void *text, int64_t n, json_t **out, Diag *d);

// Field `key` of object o, which must be there and have this type. (JSON_REAL accepts integers, JSON_TRUE stands for booleans.)
Status json_field(const json_t *o, const char *key, json_type type, json_t **out, Diag *d);
// As json_field, but *out is NULL when the field is absent or null.
Status json_field_opt(const json_t *o, const char *key, json_type type, json_t **out, Diag *d);
Status json_field_str(const json_t *o, const char *key, const char **out, Diag *d);  // borrowed from the tree
Status json_field_int(const json_t *o, const char *key, int64_t *out, Diag *d);
Status json_field_bool(const json_t *o, const char *key, bool *out, Diag *d);
Status json_expect(const json_t *v, json_type type, const char *what, Diag *d);
// The one key of a tagged union such as {"as_int": 3}.
Status json_union(const json_t *v, const char **key, json_t **value, Diag *d);
const char *json_type_name(json_type t);
