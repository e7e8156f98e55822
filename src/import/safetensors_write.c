// Writes safetensors atomically: a temporary file beside the target, flushed to disk, then renamed over it.
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include "base/files.h"
#include "import/import.h"

// Text as a JSON string. Names come from archives, so anything may be in them.
static void add_json_string(Str *s, const char *text) {
    str_add(s, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') str_printf(s, "\\%c", c);
        else if (c < 0x20) str_printf(s, "\\u%04x", c);
        else str_addn(s, text, 1);
    }
    str_add(s, "\"");
}

static const char *dtype_tag(DType t) {
    static const char *const tag[DT_COUNT] = {[DT_F32] = "F32", [DT_F64] = "F64", [DT_BF16] = "BF16", [DT_F16] = "F16",
                                              [DT_I64] = "I64", [DT_I32] = "I32", [DT_BOOL] = "BOOL"};
    return tag[t];
}

// Widest elements first, so that every tensor starts at a multiple of its element size; otherwise the caller's order.
static void layout_order(int64_t n, const TensorView *t, int64_t *order) {
    int64_t k = 0;
    for (int size = 8; size >= 1; size /= 2)
        for (int64_t i = 0; i < n; i++)
            if (dtype_nbytes(t[i].dtype) == size) order[k++] = i;
}

static void build_header(int64_t n, const TensorView *t, const int64_t *order, Str *s) {
    int64_t at = 0;
    str_add(s, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t k = 0; k < n; k++) {
        const TensorView *v = &t[order[k]];
        str_add(s, ",");
        add_json_string(s, v->name);
        str_printf(s, ":{\"dtype\":\"%s\",\"shape\":[", dtype_tag(v->dtype));
        for (int i = 0; i < v->shape.ndim; i++) str_printf(s, "%s%lld", i ? "," : "", (long long)v->shape.dim[i]);
        str_printf(s, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + v->nbytes));
        at += v->nbytes;
    }
    str_add(s, "}");
    while (s->len % 8 != 0) str_add(s, " ");
}

static bool write_all(int fd, const void *data, int64_t n) {
    const char *p = data;
    while (n > 0) {
        ssize_t k = write(fd, p, (size_t)min_i64(n, 1 << 30));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            if (k == 0) errno = ENOSPC;
            return false;
        }
        p += k;
        n -= k;
    }
    return true;
}

static bool write_content(int fd, int64_t n, const TensorView *t, const int64_t *order) {
    Str header = {0};
    uint8_t length[8];
    build_header(n, t, order, &header);
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header.len >> (8 * i));
    bool ok = write_all(fd, length, 8) && write_all(fd, header.data, (int64_t)header.len);
    str_free(&header);
    for (int64_t k = 0; k < n && ok; k++) ok = write_all(fd, t[order[k]].data, t[order[k]].nbytes);
    return ok;
}

// The rename itself must reach the disk too; a file system that cannot sync folders is no error.
static void sync_folder(const char *path) {
    Str folder = {0};
    const char *slash = strrchr(path, '/');
    if (!slash) str_add(&folder, ".");
    else str_addn(&folder, path, slash == path ? 1 : (size_t)(slash - path));
    int fd = open(folder.data, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    str_free(&folder);
}

static Status write_file(const char *path, const char *temp, int64_t n, const TensorView *t, const int64_t *order, Diag *d) {
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) return diag_error(d, ST_IO, "%s: cannot create: %s", temp, strerror(errno));
    bool ok = write_content(fd, n, t, order) && fsync(fd) == 0;
    int err = errno;
    if (close(fd) != 0 && ok) {
        ok = false;
        err = errno;
    }
    if (ok && rename(temp, path) != 0) {
        ok = false;
        err = errno;
    }
    if (ok) {
        sync_folder(path);
        return ST_OK;
    }
    unlink(temp);
    return diag_error(d, ST_IO, "%s: cannot write: %s (the old file, if any, is untouched)", path, strerror(err));
}

static Status check_tensors(int64_t n, const TensorView *t, Diag *d) {
    Arena *scratch = arena_new();
    if (!scratch) return diag_error(d, ST_MEMORY, "out of memory");
    Map *seen = map_new(scratch);
    Status st = ST_OK;
    for (int64_t i = 0; i < n && st == ST_OK; i++) {
        int64_t other;
        CHECK((unsigned)t[i].dtype < DT_COUNT && t[i].nbytes == shape_numel(&t[i].shape) * dtype_nbytes(t[i].dtype),
              "tensor %s: bytes do not fit its shape", t[i].name);
        if (map_get(seen, t[i].name, &other) || strcmp(t[i].name, "__metadata__") == 0)
            st = diag_error(d, ST_INPUT, "two tensors named '%.200s' cannot be written to one file", t[i].name);
        map_set(seen, t[i].name, i);
    }
    arena_free(scratch);
    return st;
}

Status tensors_write(const char *path, int64_t n, const TensorView *t, Diag *d) {
    TRY(check_tensors(n, t, d));
    TRY(file_check_replaceable(path, d));
    Str temp = {0};
    str_printf(&temp, "%s.tmp.%ld", path, (long)getpid());
    int64_t *order = malloc(sizeof *order * (size_t)max_i64(n, 1));
    CHECK(order, "out of memory");
    layout_order(n, t, order);
    Status st = write_file(path, temp.data, n, t, order, d);
    free(order);
    str_free(&temp);
    return st;
}
