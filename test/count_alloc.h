// Counts heap allocations of all threads, libraries included, between count_begin and count_end. For one source file per program.
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static _Atomic int count_n, count_on;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED  // sanitizers bring their own malloc and call us from it
typedef void (*MallocHook)(const volatile void *, size_t);
typedef void (*FreeHook)(const volatile void *);
int __sanitizer_install_malloc_and_free_hooks(MallocHook on_malloc, FreeHook on_free);
static void on_malloc(const volatile void *p, size_t n) {
    (void)p, (void)n;
    if (count_on) count_n++;
}
static void on_free(const volatile void *p) { (void)p; }
static inline void count_install(void) {
    static bool installed;
    if (!installed) __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    installed = true;
}
#else  // this program's own malloc, for every library in the process too, on top of the C library's
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void *malloc(size_t n) {
    if (count_on) count_n++;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
    if (count_on) count_n++;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    if (count_on) count_n++;
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n) {
    if (count_on) count_n++;
    return __libc_memalign(align, n);
}
static inline void count_install(void) {}
#endif

static inline void count_begin(void) {
    count_install();
    count_n = 0;
    count_on = 1;
}
static inline int count_end(void) {
    count_on = 0;
    return count_n;
}
