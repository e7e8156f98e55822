// A string builder, a growable array and a string-keyed map: the three containers this code needs.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"

// ---- Str: a growing string; str_free when done (or keep it in an arena with str_take) --------------------------------
typedef struct Str {
    char *data;  // always NUL-terminated once anything was added
    size_t len, cap;
} Str;
void str_add(Str *s, const char *text);
void str_addn(Str *s, const char *text, size_t n);
void str_printf(Str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *str_text(const Str *s);  // "" when empty
void str_free(Str *s);

// ---- VEC: struct { T *data; int64_t len, cap; } on malloc --------------------------------------------------------------
#define VEC(T) struct { T *data; int64_t len, cap; }
void *vec_grow(void *data, int64_t *cap, int64_t need, size_t elem);
#define vec_push(v, x)                                                                                     \
    do {                                                                                                   \
        if ((v)->len == (v)->cap) (v)->data = vec_grow((v)->data, &(v)->cap, (v)->len + 1, sizeof *(v)->data); \
        (v)->data[(v)->len++] = (x);                                                                       \
    } while (0)
#define vec_free(v) (free((v)->data), (v)->data = NULL, (v)->len = (v)->cap = 0)

// ---- Map: string -> int64, insertion keeps the first key's bytes (copied into the arena) -------------------------------
typedef struct Map Map;
Map *map_new(Arena *a);
bool map_get(const Map *m, const char *key, int64_t *value);
void map_set(Map *m, const char *key, int64_t value);

// ---- numbers -----------------------------------------------------------------------------------------------------------
uint64_t hash_bytes(uint64_t seed, const void *data, size_t n);  // FNV-1a style with a final mix; stable across runs
// a*b and a+b that say when they overflow int64; both operands must be >= 0. Return false on overflow.
bool mul_i64(int64_t a, int64_t b, int64_t *out);
bool add_i64(int64_t a, int64_t b, int64_t *out);
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
