#include "base/diag.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

Status diag_error(Diag *d, Status s, const char *fmt, ...) {
    if (d->status != ST_OK) return s;  // the first error is the cause
    d->status = s;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(d->text, sizeof d->text, fmt, ap);
    va_end(ap);
    return s;
}

Status diag_where(Diag *d, const char *fmt, ...) {
    if (d->status == ST_OK) return ST_OK;
    char text[sizeof d->text];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 3 >= sizeof text) return d->status;
    snprintf(text + n, sizeof text - (size_t)n, ": %.*s", (int)(sizeof text - (size_t)n - 3), d->text);
    memcpy(d->text, text, sizeof text);
    return d->status;
}

void diag_clear(Diag *d) {
    d->status = ST_OK;
    d->text[0] = 0;
}

const char *status_name(Status s) {
    static const char *const name[] = {"ok", "bad input", "not supported", "i/o error", "out of memory", "numeric error",
                                       "communication error", "interrupted", "mismatch"};
    return (unsigned)s < sizeof name / sizeof *name ? name[s] : "?";
}

_Noreturn void check_failed(const char *file, int line, const char *cond, const char *fmt, ...) {
    fprintf(stderr, "autosp: internal error at %s:%d: %s\n  ", file, line, cond);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n  This is a bug in AutoSP; please report it with the command line and the archive.\n");
    abort();
}

BytesText bytes_text(double nbytes) {
    BytesText t;
    double unit = nbytes >= 1e12 ? 1e12 : nbytes >= 1e9 ? 1e9 : nbytes >= 1e6 ? 1e6 : 1e3;
    snprintf(t.s, sizeof t.s, "%.2f %s", nbytes / unit, unit == 1e12 ? "TB" : unit == 1e9 ? "GB" : unit == 1e6 ? "MB" : "kB");
    return t;
}
