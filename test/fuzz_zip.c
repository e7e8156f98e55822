// Damaged zip files: opened, every member read, and opened as an archive. Nothing may crash, hang or take much memory.
#include "archive_build.h"
#include "fuzz.h"
#include "import/archive.h"

typedef struct Seeds {
    VEC(Str) file;
} Seeds;

static void one(Rng *r, void *ctx) {
    Seeds *seeds = ctx;
    const Str *seed = &seeds->file.data[rng_below(r, (size_t)seeds->file.len)];
    Str s = {0};
    str_set(&s, seed->data, seed->len);
    for (size_t n = 1 + rng_below(r, 4); n > 0; n--) {
        // most of what a zip reader believes is in the last kilobytes
        if (s.len > 4096 && rng_below(r, 2)) {
            Str tail = {0};
            str_addn(&tail, s.data + s.len - 4096, 4096);
            mutate_bytes(r, &tail);
            replace(&s, s.len - 4096, 4096, tail.data, tail.len);
            str_free(&tail);
        } else {
            mutate_bytes(r, &s);
        }
    }
    char *exact = malloc(s.len + 1);  // a block of its own, so that reading past its end is seen
    if (!exact) abort();
    memcpy(exact, s.data, s.len);
    Arena *a = arena_new();
    Diag d = {0};
    Zip *z;
    Archive *ar;
    ImportReport report = {0};
    const void *bytes;
    if (zip_open_bytes(a, "fuzz", exact, (int64_t)s.len, &z, &d) == ST_OK) {
        for (int64_t i = 0; i < z->nmember; i++) {
            Diag e = {0};
            if (zip_bytes(z, a, &z->member[i], 64 << 20, true, &bytes, &e) != ST_OK && e.status == ST_OK) abort();
        }
        if (archive_read(a, z, NULL, &ar, &report, &d) != ST_OK && !d.text[0]) abort();
    }
    vec_free(&report.missing);
    vec_free(&report.notes);
    arena_free(a);
    free(exact);
    str_free(&s);
}

int main(int argc, char **argv) {
    Seeds seeds = {0};
    char text[1000] = {0};
    ZipBuild b = {0};
    zb_deflated(&b, "x/one", text, sizeof text, sizeof text);
    zb_text(&b, "x/two", "stored");
    Str s = zb_finish(&b);
    vec_push(&seeds.file, s);
    s = tiny_archive(&(TinyArchive){.extra = "{\"autosp\": 1}"});
    vec_push(&seeds.file, s);
    for (int i = 3; i < argc; i++) {
        s = (Str){0};
        if (!read_whole(argv[i], &s)) return 1;
        vec_push(&seeds.file, s);
    }
    int rc = fuzz_loop(argc, argv, one, &seeds);
    for (int64_t i = 0; i < seeds.file.len; i++) str_free(&seeds.file.data[i]);
    vec_free(&seeds.file);
    return rc;
}
