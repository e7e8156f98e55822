#include "ir/scan.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/containers.h"

char scan_peek(Scan *s) {
    for (;; s->at++) {
        if (*s->at == '\n') s->line++;
        if (*s->at == '#') {
            while (*s->at && *s->at != '\n') s->at++;
            s->line += *s->at == '\n';
        }
        if (!*s->at || !isspace((unsigned char)*s->at)) return *s->at;
    }
}

Status scan_error(Scan *s, const char *wanted) {
    scan_peek(s);
    return diag_error(s->d, ST_INPUT, "%s:%d: expected %s, found \"%.20s\"", s->file, s->line, wanted, s->at);
}

bool scan_accept(Scan *s, const char *text) {
    scan_peek(s);
    size_t n = strlen(text);
    if (strncmp(s->at, text, n)) return false;
    s->at += n;
    return true;
}

static bool word_char(char c) { return isalnum((unsigned char)c) || c == '_' || c == '.'; }

bool scan_accept_word(Scan *s, const char *word) {
    scan_peek(s);
    size_t n = strlen(word);
    if (strncmp(s->at, word, n) || word_char(s->at[n])) return false;
    s->at += n;
    return true;
}

Status scan_expect(Scan *s, const char *text) { return scan_accept(s, text) ? ST_OK : scan_error(s, text); }

Status scan_word(Scan *s, char *out, size_t cap) {
    scan_peek(s);
    size_t n = 0;
    while (word_char(s->at[n])) n++;
    if (n == 0 || n >= cap) return scan_error(s, "a word");
    memcpy(out, s->at, n);
    out[n] = 0;
    s->at += n;
    return ST_OK;
}

Status scan_int(Scan *s, int64_t *out) {
    scan_peek(s);
    char *end;
    errno = 0;
    long long v = strtoll(s->at, &end, 10);
    if (end == s->at || errno) return scan_error(s, "a whole number");
    *out = v;
    s->at = end;
    return ST_OK;
}

Status scan_double(Scan *s, double *out) {
    scan_peek(s);
    char *end;
    *out = strtod(s->at, &end);
    if (end == s->at) return scan_error(s, "a number");
    s->at = end;
    return ST_OK;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

Status scan_hex_byte(Scan *s, unsigned char *out) {
    scan_peek(s);
    int hi = hex_digit(s->at[0]), lo = hi < 0 ? -1 : hex_digit(s->at[1]);
    if (lo < 0) return scan_error(s, "two hexadecimal digits");
    *out = (unsigned char)(hi * 16 + lo);
    s->at += 2;
    return ST_OK;
}

Status scan_string(Scan *s, Arena *a, const char **out) {
    TRY(scan_expect(s, "\""));
    Str text = {0};
    while (*s->at && *s->at != '"' && *s->at != '\n') {
        char c = *s->at++;
        if (c == '\\' && *s->at == 'x' && hex_digit(s->at[1]) >= 0 && hex_digit(s->at[2]) >= 0) {
            c = (char)(hex_digit(s->at[1]) * 16 + hex_digit(s->at[2]));
            s->at += 3;
        } else if (c == '\\' && (*s->at == '"' || *s->at == '\\')) {
            c = *s->at++;
        }
        str_addn(&text, &c, 1);
    }
    *out = arena_strdup(a, str_text(&text));
    str_free(&text);
    return *s->at == '"' ? (s->at++, ST_OK) : scan_error(s, "the end of a string");
}
