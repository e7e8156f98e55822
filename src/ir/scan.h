// The lexical part of the graph parser: words, numbers, strings, with the line for messages.
#pragma once
#include "base/arena.h"
#include "base/diag.h"

typedef struct Scan {
    const char *at;
    const char *file;
    int line;
    Diag *d;
} Scan;

char scan_peek(Scan *s);                          // next character after blanks and # comments, 0 at the end
Status scan_error(Scan *s, const char *wanted);   // "file:line: expected ..., found ..."
bool scan_accept(Scan *s, const char *text);      // punctuation
bool scan_accept_word(Scan *s, const char *word); // a whole word
Status scan_expect(Scan *s, const char *text);
Status scan_word(Scan *s, char *out, size_t cap); // letters, digits, _ and .
Status scan_int(Scan *s, int64_t *out);
Status scan_double(Scan *s, double *out);         // inf, -inf and nan too
Status scan_string(Scan *s, Arena *a, const char **out);
Status scan_hex_byte(Scan *s, unsigned char *out);
