// Files of compiled and tuned things: see cache.h. A file is a header, the key and the data; the name is a hash of the key.
#include "backend/cuda/device/cache.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/containers.h"

typedef struct CacheHeader {
    char magic[8];
    uint64_t key_nbytes, data_nbytes, sum;  // sum: over key and data
} CacheHeader;
static const char cache_magic[8] = "ASPCACH1";

// The folder, "" where the cache is off.
static void cache_folder(Str *out) {
    const char *own = getenv("AUTOSP_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (own) str_add(out, own);
    else if (xdg && *xdg) str_printf(out, "%s/autosp", xdg);
    else if (home && *home) str_printf(out, "%s/.cache/autosp", home);
    else str_add(out, "");
}

static bool cache_path(Str *out, const char *kind, const char *key) {
    cache_folder(out);
    if (!out->len) return false;
    size_t n = strlen(key);
    unsigned long long a = hash_bytes(1, key, n), b = hash_bytes(2, key, n);
    str_printf(out, "/%s-%016llx%016llx", kind, a, b);
    return true;
}

static uint64_t cache_sum(const char *key, size_t nkey, const void *data, size_t nbytes) {
    return hash_bytes(hash_bytes(3, key, nkey), data, nbytes);
}

// The data of an open file if it is whole and of this key.
static const void *read_entry(Arena *a, FILE *f, const char *key, size_t *nbytes) {
    CacheHeader h;
    struct stat st;
    if (fread(&h, sizeof h, 1, f) != 1 || memcmp(h.magic, cache_magic, sizeof h.magic) || fstat(fileno(f), &st)) return NULL;
    size_t nkey = strlen(key);
    if (h.key_nbytes != nkey || h.data_nbytes > (uint64_t)st.st_size) return NULL;
    if ((uint64_t)st.st_size != sizeof h + h.key_nbytes + h.data_nbytes) return NULL;
    char *stored = arena_alloc(a, nkey + 1), *data = arena_alloc(a, (size_t)h.data_nbytes + 1);
    if (fread(stored, 1, nkey, f) != nkey || memcmp(stored, key, nkey)) return NULL;
    if (fread(data, 1, (size_t)h.data_nbytes, f) != h.data_nbytes) return NULL;
    if (cache_sum(key, nkey, data, (size_t)h.data_nbytes) != h.sum) return NULL;
    *nbytes = (size_t)h.data_nbytes;
    return data;
}

const void *cache_get(Arena *a, const char *kind, const char *key, size_t *nbytes) {
    Str path = {0};
    const void *data = NULL;
    if (cache_path(&path, kind, key)) {
        FILE *f = fopen(path.data, "rb");
        if (f) {
            data = read_entry(a, f, key, nbytes);
            fclose(f);
        }
    }
    str_free(&path);
    return data;
}

static void make_folders(const char *path) {  // all that stand before the last slash
    char *p = strdup(path);
    for (char *s = p ? strchr(p + 1, '/') : NULL; s; s = strchr(s + 1, '/')) {
        *s = 0;
        mkdir(p, 0755);
        *s = '/';
    }
    free(p);
}

static bool write_entry(FILE *f, const char *key, const void *data, size_t nbytes) {
    size_t nkey = strlen(key);
    CacheHeader h = {.key_nbytes = nkey, .data_nbytes = nbytes, .sum = cache_sum(key, nkey, data, nbytes)};
    memcpy(h.magic, cache_magic, sizeof h.magic);
    return fwrite(&h, sizeof h, 1, f) == 1 && fwrite(key, 1, nkey, f) == nkey && fwrite(data, 1, nbytes, f) == nbytes;
}

void cache_put(const char *kind, const char *key, const void *data, size_t nbytes) {
    static atomic_int serial;  // threads of one process write beside each other
    Str path = {0}, part = {0};
    if (cache_path(&path, kind, key)) {
        make_folders(path.data);
        str_printf(&part, "%s.%ld.%d", path.data, (long)getpid(), atomic_fetch_add(&serial, 1));
        FILE *f = fopen(part.data, "wb");
        if (f) {
            bool ok = write_entry(f, key, data, nbytes);
            ok = fclose(f) == 0 && ok;
            if (!ok || rename(part.data, path.data)) unlink(part.data);
        }
    }
    str_free(&path);
    str_free(&part);
}
