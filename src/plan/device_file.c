// Device models as JSON: reading what may be anything. Every error names the file, the key and the reason; a key that is not
// known is an error too, or a misspelt rate would silently be another.
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "plan/device.h"

enum { MAX_TEXT = 2000, MAX_NAME = 40, FORMAT = 1 };

typedef struct Reader {
    Arena *a;
    const char *what;  // the file
    Diag *d;
} Reader;

#define BAD(r, key, ...) diag_error((r)->d, ST_INPUT, "%s: %s: %s", (r)->what, key, arena_printf((r)->a, __VA_ARGS__))

static const struct {
    const char *key;
    size_t at;
    double least;  // 0: may be 0
    bool needed;
} numbers[] = {
#define NUMBER(key, field, least, needed) \
    { key, offsetof(DeviceModel, field), least, needed }
    NUMBER("memory_nbytes", mem_nbytes, 0, true),
    NUMBER("context_nbytes", context_nbytes, 0, true),
    NUMBER("host_memory_nbytes", host_mem_nbytes, 0, true),
    NUMBER("units", units, 1, true),
    NUMBER("tile", tile, 1, true),
    NUMBER("vector_flops", vector_flops, 1, true),
    NUMBER("memory_bandwidth", mem_bandwidth, 1, true),
    NUMBER("kernel_latency_s", kernel_latency_s, 0, true),
    NUMBER("link_bandwidth", link_bandwidth, 1, true),
    NUMBER("link_latency_s", link_latency_s, 0, true),
    NUMBER("to_host_bandwidth", to_host_bandwidth, 1, true),
    NUMBER("from_host_bandwidth", from_host_bandwidth, 1, true),
    NUMBER("host_latency_s", host_latency_s, 0, true),
};
enum { NNUMBER = sizeof numbers / sizeof *numbers };
static const char *const others[] = {"autosp_device", "name",  "about",    "source",    "measured",   "backend",
                                     "runs",          "match", "products", "attention", "efficiency", "notes"};

// ---- values ----------------------------------------------------------------------------------------------------------------
static Status get_object(const Reader *r, const json_t *o, const char *key, const char *path, const json_t **out) {
    *out = json_object_get(o, key);
    if (!*out) return BAD(r, path, "is missing");
    return json_is_object(*out) ? ST_OK : BAD(r, path, "must be an object");
}

static Status get_number(const Reader *r, const json_t *v, const char *path, double least, double *out) {
    if (!v) return BAD(r, path, "is missing");
    if (!json_is_number(v)) return BAD(r, path, "must be a number");
    *out = json_number_value(v);
    if (!isfinite(*out) || *out < least || *out > 1e30) return BAD(r, path, "%g is not between %g and 1e30", *out, least);
    return ST_OK;
}

// Text for people, one line: it is printed as it is.
static Status get_text(const Reader *r, const json_t *o, const char *key, bool needed, const char **out) {
    const json_t *v = json_object_get(o, key);
    *out = NULL;
    if (!v || json_is_null(v)) return needed ? BAD(r, key, "is missing") : ST_OK;
    if (!json_is_string(v)) return BAD(r, key, "must be a text");
    const char *text = json_string_value(v);
    size_t n = json_string_length(v);
    if (n == 0 || n > MAX_TEXT || strlen(text) != n) return BAD(r, key, "must be a text of 1 to %d bytes", MAX_TEXT);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 32 || text[i] == 127) return BAD(r, key, "has a control character");
    *out = arena_strdup(r->a, text);
    return ST_OK;
}

static Status get_name(const Reader *r, const json_t *o, const char *key, const char **out) {
    TRY(get_text(r, o, key, true, out));
    static const char legal[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    if (strlen(*out) > MAX_NAME || strspn(*out, legal) != strlen(*out))
        return BAD(r, key, "must be a name of at most %d letters, digits, '-', '_', '.'", MAX_NAME);
    return ST_OK;
}

static Status check_keys(const Reader *r, const json_t *o, const char *path, int n, const char *const *known) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v) {
        bool found = false;
        for (int i = 0; i < n && !found; i++) found = !strcmp(key, known[i]);
        if (!found) return BAD(r, path, "has an unknown key \"%.60s\"", key);
    }
    return ST_OK;
}

// {"flops": [...], "rate": [...]}: sizes rise, and so does the time that follows.
static Status get_curve(const Reader *r, const json_t *o, const char *key, const char *sizes, const char *path,
                        RateCurve *out) {
    const json_t *c;
    TRY(get_object(r, o, key, path, &c));
    TRY(check_keys(r, c, path, 2, (const char *const[]){sizes, "rate"}));
    const json_t *at = json_object_get(c, sizes), *rate = json_object_get(c, "rate");
    if (!json_is_array(at) || !json_is_array(rate)) return BAD(r, path, "needs lists \"%s\" and \"rate\"", sizes);
    size_t n = json_array_size(at);
    if (n != json_array_size(rate)) return BAD(r, path, "%zu sizes, but %zu rates", n, json_array_size(rate));
    if (n < 1 || n > DEVICE_POINTS) return BAD(r, path, "must have 1 to %d points", DEVICE_POINTS);
    out->n = (int)n;
    for (size_t i = 0; i < n; i++) {
        TRY(get_number(r, json_array_get(at, i), arena_printf(r->a, "%s.%s[%zu]", path, sizes, i), 1e-30, &out->at[i]));
        TRY(get_number(r, json_array_get(rate, i), arena_printf(r->a, "%s.rate[%zu]", path, i), 1e-30, &out->rate[i]));
        if (i == 0) continue;
        if (!(out->at[i] > out->at[i - 1])) return BAD(r, path, "%s[%zu] is not larger than the one before", sizes, i);
        if (!(out->at[i] / out->rate[i] > out->at[i - 1] / out->rate[i - 1]))
            return BAD(r, path, "at rate[%zu] more work would take less time than at the one before", i);
    }
    return ST_OK;
}

// ---- parts -----------------------------------------------------------------------------------------------------------------
static Status read_products(const Reader *r, const json_t *top, DeviceModel *m) {
    const json_t *all, *type;
    TRY(get_object(r, top, "products", "products", &all));
    TRY(check_keys(r, all, "products", PRODUCT_NTYPE, product_type_names));
    for (int t = 0; t < PRODUCT_NTYPE; t++) {
        if (t != PRODUCT_F32 && !json_object_get(all, product_type_names[t])) continue;
        const char *path = arena_printf(r->a, "products.%s", product_type_names[t]);
        TRY(get_object(r, all, product_type_names[t], path, &type));
        TRY(check_keys(r, type, path, PRODUCT_NFORM, product_form_names));
        for (int f = 0; f < PRODUCT_NFORM; f++)
            TRY(get_curve(r, type, product_form_names[f], "flops", arena_printf(r->a, "%s.%s", path, product_form_names[f]),
                          &m->product[t][f]));
    }
    return ST_OK;
}

static Status read_attention(const Reader *r, const json_t *top, DeviceModel *m) {
    const json_t *list = json_object_get(top, "attention");
    if (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) > DEVICE_ATTENTION)
        return BAD(r, "attention", "must be a list of 1 to %d tables", DEVICE_ATTENTION);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        const char *path = arena_printf(r->a, "attention[%zu]", i);
        AttentionRates *a = &m->attention[m->nattention++];
        double head;
        if (!json_is_object(o)) return BAD(r, path, "must be an object");
        TRY(check_keys(r, o, path, 4, (const char *const[]){"kernel", "head", "forward", "backward"}));
        TRY(get_name(r, o, "kernel", &a->kernel));
        TRY(get_number(r, json_object_get(o, "head"), arena_printf(r->a, "%s.head", path), 1, &head));
        if (head > 65536 || head != floor(head)) return BAD(r, path, "head must be a whole number up to 65,536");
        a->head = (int)head;
        TRY(get_curve(r, o, "forward", "length", arena_printf(r->a, "%s.forward", path), &a->forward));
        TRY(get_curve(r, o, "backward", "length", arena_printf(r->a, "%s.backward", path), &a->backward));
    }
    return ST_OK;
}

static Status read_efficiency(const Reader *r, const json_t *top, DeviceModel *m) {
    const json_t *all;
    const char *key;
    json_t *v;
    TRY(get_object(r, top, "efficiency", "efficiency", &all));
    json_object_foreach((json_t *)all, key, v) {
        OpKind op;
        bool other = !strcmp(key, "other");
        if (!other && !op_from_name(key, &op)) return BAD(r, "efficiency", "there is no op \"%.60s\"", key);
        double *to = other ? &m->other_efficiency : &m->efficiency[op];
        const char *path = arena_printf(r->a, "efficiency.%s", key);
        TRY(get_number(r, v, path, 1e-6, to));
        if (*to > 4) return BAD(r, path, "%g: parts of memory_bandwidth, at most 4", *to);
    }
    return m->other_efficiency > 0 ? ST_OK : BAD(r, "efficiency", "needs \"other\", for the ops that are not listed");
}

static Status read_match(const Reader *r, const json_t *top, DeviceModel *m) {
    const json_t *list = json_object_get(top, "match");
    if (!list) return ST_OK;
    if (!json_is_array(list) || json_array_size(list) > DEVICE_MATCH)
        return BAD(r, "match", "must be a list of at most %d texts", DEVICE_MATCH);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (!s || !*s) return BAD(r, "match", "must be texts");
        m->match[m->nmatch++] = arena_strdup(r->a, s);
    }
    return ST_OK;
}

static Status read_model(const Reader *r, const json_t *top, DeviceModel *m) {
    if (!json_is_object(top)) return diag_error(r->d, ST_INPUT, "%s: this is no device model", r->what);
    const json_t *format = json_object_get(top, "autosp_device");
    if (!json_is_integer(format) || json_integer_value(format) != FORMAT)
        return diag_error(r->d, ST_INPUT, "%s: this is no device model (\"autosp_device\": %d is missing)", r->what, FORMAT);
    const char *known[NNUMBER + sizeof others / sizeof *others];
    for (int i = 0; i < NNUMBER; i++) known[i] = numbers[i].key;
    memcpy(known + NNUMBER, others, sizeof others);
    TRY(check_keys(r, top, "the model", sizeof known / sizeof *known, known));
    TRY(get_name(r, top, "name", &m->name));
    TRY(get_text(r, top, "about", true, &m->about));
    TRY(get_text(r, top, "source", true, &m->source));
    TRY(get_text(r, top, "runs", false, &m->runs));
    TRY(get_name(r, top, "backend", &m->backend));
    if (strcmp(m->backend, "cpu") && strcmp(m->backend, "cuda"))
        return BAD(r, "backend", "%s: there are cpu and cuda", m->backend);
    const json_t *measured = json_object_get(top, "measured");
    if (!json_is_boolean(measured)) return BAD(r, "measured", "must be true or false");
    m->measured = json_is_true(measured);
    TRY(read_match(r, top, m));
    for (int i = 0; i < NNUMBER; i++)
        TRY(get_number(r, json_object_get(top, numbers[i].key), numbers[i].key, numbers[i].least,
                       (double *)(void *)((char *)m + numbers[i].at)));
    TRY(read_products(r, top, m));
    TRY(read_attention(r, top, m));
    return read_efficiency(r, top, m);
}

Status device_model_parse(Arena *a, const char *what, const char *text, int64_t n, const DeviceModel **out, Diag *d) {
    Reader r = {a, what, d};
    json_error_t e;
    json_t *top = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &e);
    if (!top) return diag_error(d, ST_INPUT, "%s:%d: %s", what, e.line, e.text);
    DeviceModel *m = ARENA_NEW(a, DeviceModel);
    Status st = read_model(&r, top, m);
    json_decref(top);
    if (st == ST_OK) *out = m;
    return st;
}

Status device_model_load(Arena *a, const char *path, const DeviceModel **out, Diag *d) {
    enum { MOST = 1 << 20 };
    FILE *f = fopen(path, "rb");
    if (!f) return diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
    char *text = arena_alloc(a, MOST + 1);
    size_t n = fread(text, 1, MOST + 1, f);
    bool bad = ferror(f) != 0;
    fclose(f);
    if (bad) return diag_error(d, ST_IO, "%s: cannot be read", path);
    if (n > MOST) return diag_error(d, ST_INPUT, "%s: larger than 1 MiB: this is no device model", path);
    return device_model_parse(a, path, text, (int64_t)n, out, d);
}
