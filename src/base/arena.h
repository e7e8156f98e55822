// Bump allocation. Everything that belongs to one graph, one plan or one command lives in one arena and goes with it.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena;

// A new arena; NULL only when the machine is out of memory.
Arena *arena_new(void);
void arena_free(Arena *a);  // NULL is fine

// nbytes zeroed bytes, 16-byte aligned. Never NULL: running out of memory prints a line and aborts (host metadata only;
// tensor bytes never come from here).
void *arena_alloc(Arena *a, size_t nbytes);
void *arena_copy(Arena *a, const void *src, size_t nbytes);
char *arena_strdup(Arena *a, const char *s);
char *arena_strndup(Arena *a, const char *s, size_t n);
char *arena_printf(Arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Calls fn(ptr) when the arena is freed, last registered first: for the mappings and handles that its contents point into.
void arena_defer(Arena *a, void (*fn)(void *), void *ptr);
size_t arena_nbytes(const Arena *a);  // bytes reserved so far

#define ARENA_NEW(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define ARENA_ARRAY(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))
