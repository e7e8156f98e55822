#include "base/files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/containers.h"

Status file_check_replaceable(const char *path, Diag *d) {
    struct stat old;
    if (stat(path, &old) == 0 && !S_ISREG(old.st_mode))
        return diag_error(d, ST_IO, "%s: cannot write: it is no regular file", path);
    return ST_OK;
}

Status file_replace(const char *path, const void *data, size_t n, Diag *d) {
    TRY(file_check_replaceable(path, d));
    Str tmp = {0};
    str_printf(&tmp, "%s.tmp.%ld", path, (long)getpid());
    FILE *f = fopen(str_text(&tmp), "wb");
    bool ok = f && fwrite(data, 1, n, f) == n;
    ok = ok && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int err = errno;
    if (f && fclose(f) != 0 && ok) {
        ok = false;
        err = errno;
    }
    if (ok && rename(str_text(&tmp), path) != 0) {
        ok = false;
        err = errno;
    }
    if (!ok && f) unlink(str_text(&tmp));
    str_free(&tmp);
    return ok ? ST_OK : diag_error(d, ST_IO, "%s: cannot write: %s (the old file, if any, is untouched)", path, strerror(err));
}
