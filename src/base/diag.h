// Errors. Bad input or environment: a Status that must be checked, with the text in a Diag. A bug: CHECK, which aborts.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define MUST_CHECK __attribute__((warn_unused_result))

typedef enum Status {
    ST_OK = 0,
    ST_INPUT,        // a file or argument is malformed, contradictory or out of range
    ST_UNSUPPORTED,  // well-formed, but this compiler cannot do it (the text names the node and what to do)
    ST_IO,           // open, read, write, disk full
    ST_MEMORY,       // a large (tensor) allocation failed or does not fit the budget
    ST_NUMERIC,      // NaN/Inf where it may not be, token id out of range
    ST_COMM,         // ranks disagree, or a collective timed out
    ST_INTERRUPTED,  // Ctrl-C
    ST_MISMATCH,     // check: computed, but not equal
} Status;

// The text of the first error. `where` grows outward: "a.pt2: node add_3 (model.py:12): shapes differ".
typedef struct Diag {
    Status status;
    char text[2048];
} Diag;

// Records an error (the first one wins) and returns `s`.
Status diag_error(Diag *d, Status s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// Puts "where: " in front of an error on its way out; returns d->status. Does nothing if there is no error.
Status diag_where(Diag *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void diag_clear(Diag *d);

// A number of bytes for people: bytes_text(x).s is "61.28 GB", "558.89 MB", "12.30 kB".
typedef struct BytesText {
    char s[24];
} BytesText;
BytesText bytes_text(double nbytes);
const char *status_name(Status s);

#define TRY(expr)                        \
    do {                                 \
        Status try_st_ = (expr);         \
        if (try_st_ != ST_OK) return try_st_; \
    } while (0)

// A bug in this program: say what and where, then abort.
#define CHECK(cond, ...)                                             \
    do {                                                             \
        if (!(cond)) check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__); \
    } while (0)
_Noreturn void check_failed(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
