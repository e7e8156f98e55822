#include "base/containers.h"

#include <stdarg.h>
#include <stdio.h>

static void str_reserve(Str *s, size_t extra) {
    if (s->len + extra + 1 <= s->cap) return;
    size_t cap = s->cap ? s->cap * 2 : 256;
    while (cap < s->len + extra + 1) cap *= 2;
    char *p = realloc(s->data, cap);
    if (!p) abort();
    s->data = p;
    s->cap = cap;
}

void str_addn(Str *s, const char *text, size_t n) {
    str_reserve(s, n);
    if (n) memcpy(s->data + s->len, text, n);
    s->len += n;
    s->data[s->len] = 0;
}

void str_add(Str *s, const char *text) { str_addn(s, text, strlen(text)); }

void str_printf(Str *s, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    str_reserve(s, (size_t)n);
    vsnprintf(s->data + s->len, (size_t)n + 1, fmt, again);
    va_end(again);
    s->len += (size_t)n;
}

const char *str_text(const Str *s) { return s->data ? s->data : ""; }

void str_free(Str *s) {
    free(s->data);
    *s = (Str){0};
}

void *vec_grow(void *data, int64_t *cap, int64_t need, size_t elem) {
    int64_t n = *cap ? *cap * 2 : 16;
    while (n < need) n *= 2;
    void *p = realloc(data, (size_t)n * elem);
    if (!p) {
        fprintf(stderr, "autosp: out of host memory for metadata (%lld elements)\n", (long long)n);
        abort();
    }
    *cap = n;
    return p;
}

// Open addressing with linear probing; keys live in the arena, tables are abandoned to it when they double.
typedef struct Entry {
    const char *key;
    uint64_t hash;
    int64_t value;
} Entry;
struct Map {
    Arena *arena;
    Entry *slot;
    size_t nslot, used;
};

Map *map_new(Arena *a) {
    Map *m = ARENA_NEW(a, Map);
    m->arena = a;
    m->nslot = 16;
    m->slot = ARENA_ARRAY(a, Entry, m->nslot);
    return m;
}

static Entry *map_find(const Map *m, const char *key, uint64_t hash) {
    for (size_t i = hash & (m->nslot - 1);; i = (i + 1) & (m->nslot - 1)) {
        Entry *e = &m->slot[i];
        if (!e->key || (e->hash == hash && !strcmp(e->key, key))) return e;
    }
}

bool map_get(const Map *m, const char *key, int64_t *value) {
    const Entry *e = map_find(m, key, hash_bytes(0, key, strlen(key)));
    if (!e->key) return false;
    *value = e->value;
    return true;
}

static void map_double(Map *m) {
    Entry *old = m->slot;
    size_t n = m->nslot;
    m->nslot *= 2;
    m->slot = ARENA_ARRAY(m->arena, Entry, m->nslot);
    for (size_t i = 0; i < n; i++)
        if (old[i].key) *map_find(m, old[i].key, old[i].hash) = old[i];
}

void map_set(Map *m, const char *key, int64_t value) {
    uint64_t hash = hash_bytes(0, key, strlen(key));
    Entry *e = map_find(m, key, hash);
    if (e->key) {
        e->value = value;
        return;
    }
    *e = (Entry){.key = arena_strdup(m->arena, key), .hash = hash, .value = value};
    if (++m->used * 2 > m->nslot) map_double(m);
}

uint64_t hash_bytes(uint64_t seed, const void *data, size_t n) {
    const unsigned char *p = data;
    uint64_t h = seed ^ 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

bool mul_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }
bool add_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
