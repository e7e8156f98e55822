// Mutation fuzzing without a fuzzing engine: deterministic per iteration, bounded in time.
//     fuzz_x [seconds [first_iteration [seed files...]]]
// A crash or a hang prints its iteration, from which it can be run again.
#pragma once
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "base/containers.h"

#define FUZZ_HANG_SECONDS 20
#define FUZZ_MAX_RSS_KIB (2l << 20)

typedef struct Rng {
    uint64_t s;
} Rng;

static inline uint64_t rng_next(Rng *r) {
    r->s ^= r->s << 13;
    r->s ^= r->s >> 7;
    r->s ^= r->s << 17;
    return r->s * 0x9e3779b97f4a7c15u >> 16;
}

static inline size_t rng_below(Rng *r, size_t n) { return n ? (size_t)(rng_next(r) % n) : 0; }

static long fuzz_iteration;  // read by the signal handler

static void fuzz_on_signal(int sig) {
    char text[100];
    int n = snprintf(text, sizeof text, "signal %d in iteration %ld\n", sig, fuzz_iteration);
    if (write(2, text, (size_t)n) < 0) _exit(3);
    _exit(2);
}

// Called by AddressSanitizer before it ends the process.
void __asan_on_error(void);
void __asan_on_error(void) { fprintf(stderr, "in iteration %ld\n", fuzz_iteration); }

static inline void str_set(Str *s, const char *data, size_t n) {
    s->len = 0;
    str_addn(s, data, n);
}

// One change of bytes: flips, extreme numbers, a cut, a repeated or removed stretch.
static inline void mutate_bytes(Rng *r, Str *s) {
    static const uint64_t extremes[] = {0, 1, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff,
                                        0xffffffffffffffff};
    if (s->len == 0) return;
    size_t at = rng_below(r, s->len), n = 1 + rng_below(r, rng_below(r, 4) ? 8 : s->len), left = s->len - at;
    if (n > left) n = left;
    switch (rng_below(r, 6)) {
    case 0: s->data[at] ^= (char)(1 << rng_below(r, 8)); break;
    case 1: s->data[at] = (char)rng_next(r); break;
    case 2: {
        uint64_t v = extremes[rng_below(r, sizeof extremes / sizeof *extremes)];
        memcpy(s->data + at, &v, left < 8 ? left : (size_t)1 << rng_below(r, 4));
        break;
    }
    case 3: if (rng_below(r, 4) == 0) s->len = at; break;
    case 4: {
        Str tail = {0};
        str_addn(&tail, s->data + at, left);
        str_addn(s, tail.data, tail.len);
        memmove(s->data + at + n, s->data + at, s->len - at - n);
        s->len = at + n + left;
        str_free(&tail);
        break;
    }
    default:
        memmove(s->data + at, s->data + at + n, left - n);
        s->len -= n;
    }
    s->data[s->len] = 0;
}

// The token (number, word or quoted string) at or after a random place.
static inline size_t token_at(Rng *r, const Str *s, size_t *len) {
    size_t i = rng_below(r, s->len);
    while (i < s->len && !strchr("\"-0123456789tfn", s->data[i])) i++;
    size_t k = i;
    if (k < s->len && s->data[k] == '"') {
        for (k++; k < s->len && s->data[k] != '"'; k++) {}
        k += k < s->len;
    } else {
        while (k < s->len && strchr("-.0123456789eEtrufalsn", s->data[k])) k++;
    }
    *len = k - i;
    return i;
}

static inline void replace(Str *s, size_t at, size_t n, const char *with, size_t nwith) {
    Str out = {0};
    str_addn(&out, s->data, at);
    str_addn(&out, with, nwith);
    str_addn(&out, s->data + at + n, s->len - at - n);
    str_free(s);
    *s = out;
}

// One change that tends to keep JSON well-formed: a token becomes an extreme value or another token of the text.
static inline void mutate_json(Rng *r, Str *s) {
    static const char *const words[] = {"0", "-1", "1e400", "9223372036854775807", "-9223372036854775808", "4294967296", "null",
                                        "true",
                                        "[]", "{}", "\"\"", "\"L['input_ids'].size()[1]\"", "3.5",
                                            "\"Symbol('s9', positive=True)\"",
                                        "\"FloorDiv(Integer(1), Add(Symbol('s0'), Integer(-2)))\"", "\"s0**s0**s0**s0\"",
                                            "\"Infinity\"",
                                        "\"as_int\"", "\"as_tensor\"", "\"as_sym_ints\"", "\"name\"", "7", "2", "64"};
    if (s->len == 0 || rng_below(r, 8) == 0) {
        mutate_bytes(r, s);
        return;
    }
    size_t n, at = token_at(r, s, &n);
    if (n == 0) return;
    if (rng_below(r, 2)) {
        const char *w = words[rng_below(r, sizeof words / sizeof *words)];
        replace(s, at, n, w, strlen(w));
        return;
    }
    size_t m, from = token_at(r, s, &m);
    char *copy = malloc(m + 1);
    if (!copy) abort();
    memcpy(copy, s->data + from, m);
    replace(s, at, n, copy, m);
    free(copy);
}

static inline bool read_whole(const char *path, Str *out) {
    FILE *f = fopen(path, "rb");
    char block[65536];
    if (!f) return false;
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) str_addn(out, block, n);
    fclose(f);
    return true;
}

// Calls one(rng, iteration, ctx) until the time is up. Returns the process's exit status.
static inline int fuzz_loop(int argc, char **argv, void (*one)(Rng *, void *), void *ctx) {
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    fuzz_iteration = argc > 2 ? atol(argv[2]) : 0;
    long first = fuzz_iteration;
#ifdef __SANITIZE_ADDRESS__
    const int fatal[] = {SIGALRM, SIGABRT};  // the sanitizer reports the others better
#else
    const int fatal[] = {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
#endif
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], fuzz_on_signal);
    struct timespec t0, t;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    do {
        Rng r = {(uint64_t)fuzz_iteration * 0x2545f4914f6cdd1du + 88172645463325252u};
        alarm(FUZZ_HANG_SECONDS);
        one(&r, ctx);
        alarm(0);
        fuzz_iteration++;
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while ((double)(t.tv_sec - t0.tv_sec) + 1e-9 * (double)(t.tv_nsec - t0.tv_nsec) < seconds);
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("%s: %ld iterations, peak %ld MiB\n", argv[0], fuzz_iteration - first, use.ru_maxrss >> 10);
    if (use.ru_maxrss <= FUZZ_MAX_RSS_KIB) return 0;
    fprintf(stderr, "%s: too much memory\n", argv[0]);
    return 1;
}
