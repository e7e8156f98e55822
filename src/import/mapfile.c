// Mapping of input files, and memory for tensor bytes that cannot be used in place.
#include "import/mapfile.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/containers.h"

typedef struct Mapping {
    void *data;
    size_t nbytes;
} Mapping;

static void mapping_release(void *p) {
    Mapping *m = p;
    munmap(m->data, m->nbytes);
}

Status file_map(Arena *a, const char *path, const uint8_t **data, int64_t *nbytes, Diag *d) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return diag_error(d, ST_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return diag_error(d, ST_IO, "%s: not a regular file", path);
    }
    *nbytes = (int64_t)st.st_size;
    if (st.st_size == 0) {
        close(fd);
        *data = (const uint8_t *)"";
        return ST_OK;
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int err = errno;
    close(fd);
    if (p == MAP_FAILED) return diag_error(d, ST_IO, "%s: cannot map %lld bytes: %s", path, (long long)st.st_size, strerror(err));
    Mapping *m = ARENA_NEW(a, Mapping);
    *m = (Mapping){p, (size_t)st.st_size};
    arena_defer(a, mapping_release, m);
    *data = p;
    return ST_OK;
}

Status tensor_memory(Arena *a, int64_t nbytes, void **out, Diag *d) {
    void *p = NULL;
    if (nbytes < 0 || posix_memalign(&p, 64, (size_t)max_i64(nbytes, 1)) != 0)
        return diag_error(d, ST_MEMORY, "out of memory for %lld bytes of tensor data", (long long)nbytes);
    arena_defer(a, free, p);
    *out = p;
    return ST_OK;
}
