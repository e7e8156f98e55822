#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Block {
    struct Block *next;
    size_t used, cap;  // of the bytes behind this header
} Block;
typedef struct Deferred {
    struct Deferred *next;
    void (*fn)(void *);
    void *ptr;
} Deferred;
struct Arena {
    Block *block;
    Deferred *deferred;
    size_t nbytes;
};

enum { BLOCK_HEADER = (sizeof(Block) + 15) & ~(size_t)15, BLOCK_FIRST = 16 << 10, BLOCK_MAX = 4 << 20 };

Arena *arena_new(void) { return calloc(1, sizeof(Arena)); }

void arena_free(Arena *a) {
    if (!a) return;
    for (Deferred *d = a->deferred; d; d = d->next) d->fn(d->ptr);
    for (Block *b = a->block, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(a);
}

static _Noreturn void out_of_memory(size_t nbytes) {
    fprintf(stderr, "autosp: out of host memory for metadata (%zu bytes)\n", nbytes);
    abort();
}

static void add_block(Arena *a, size_t need) {
    size_t cap = a->block ? a->block->cap * 2 : BLOCK_FIRST;
    if (cap > BLOCK_MAX) cap = BLOCK_MAX;
    if (cap < need) cap = need;
    Block *b = malloc(BLOCK_HEADER + cap);
    if (!b) out_of_memory(cap);
    *b = (Block){.next = a->block, .cap = cap};
    a->block = b;
    a->nbytes += BLOCK_HEADER + cap;
}

void *arena_alloc(Arena *a, size_t nbytes) {
    if (nbytes > SIZE_MAX / 2) out_of_memory(nbytes);
    size_t need = (nbytes + 15) & ~(size_t)15;
    if (!a->block || a->block->cap - a->block->used < need) add_block(a, need);
    char *p = (char *)a->block + BLOCK_HEADER + a->block->used;
    a->block->used += need;
    memset(p, 0, need);
    return p;
}

void *arena_copy(Arena *a, const void *src, size_t nbytes) {
    void *p = arena_alloc(a, nbytes);
    if (nbytes) memcpy(p, src, nbytes);
    return p;
}

char *arena_strndup(Arena *a, const char *s, size_t n) {
    char *p = arena_alloc(a, n + 1);
    memcpy(p, s, n);
    return p;
}

char *arena_strdup(Arena *a, const char *s) { return s ? arena_strndup(a, s, strlen(s)) : NULL; }

char *arena_printf(Arena *a, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = arena_alloc(a, (size_t)n + 1);
    vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

void arena_defer(Arena *a, void (*fn)(void *), void *ptr) {
    Deferred *d = ARENA_NEW(a, Deferred);
    *d = (Deferred){.next = a->deferred, .fn = fn, .ptr = ptr};
    a->deferred = d;
}

size_t arena_nbytes(const Arena *a) { return a->nbytes; }
