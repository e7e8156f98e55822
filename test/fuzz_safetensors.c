// Damaged safetensors files: opened, every tensor's bytes read through.
#include "archive_build.h"
#include "fuzz.h"
#include "import/import.h"

typedef struct Job {
    VEC(Str) seed;
    char path[64];
} Job;

// Changes the header as JSON and keeps its length right, or changes the file as bytes.
static void mutate(Rng *r, Str *s) {
    uint64_t n = 0;
    if (s->len >= 8) memcpy(&n, s->data, 8);
    if (s->len < 8 || n > s->len - 8 || rng_below(r, 4) == 0) {
        mutate_bytes(r, s);
        return;
    }
    Str header = {0};
    str_addn(&header, s->data + 8, (size_t)n);
    mutate_json(r, &header);
    replace(s, 8, (size_t)n, header.data, header.len);
    n = header.len;
    memcpy(s->data, &n, 8);
    str_free(&header);
}

static void read_back(const char *path) {
    Arena *a = arena_new();
    TensorFile *f;
    Diag d = {0};
    unsigned sum = 0;
    if (tensors_open(a, path, &f, &d) == ST_OK) {
        for (int64_t i = 0; i < tensors_count(f); i++) {
            const TensorView *v = tensors_at(f, i);
            for (int64_t k = 0; k < v->nbytes; k++) sum += ((const uint8_t *)v->data)[k];
            if (v->known_dtype && v->nbytes != shape_numel(&v->shape) * dtype_nbytes(v->dtype)) abort();
            if (tensors_find(f, v->name) != v) abort();
        }
    } else if (!d.text[0]) {
        abort();
    }
    if (sum == 1u << 31) putchar(' ');  // keeps the reads
    arena_free(a);
}

static void one(Rng *r, void *ctx) {
    Job *job = ctx;
    const Str *seed = &job->seed.data[rng_below(r, (size_t)job->seed.len)];
    Str s = {0};
    str_set(&s, seed->data, seed->len);
    for (size_t n = 1 + rng_below(r, 3); n > 0; n--) mutate(r, &s);
    FILE *f = fopen(job->path, "wb");
    if (!f || fwrite(s.data, 1, s.len, f) != s.len || fclose(f) != 0) abort();
    str_free(&s);
    read_back(job->path);
}

int main(int argc, char **argv) {
    Job job = {.path = "/tmp/autosp_fuzz_XXXXXX"};
    int fd = mkstemp(job.path);
    if (fd < 0) return 1;
    close(fd);
    double values[12] = {0};
    TensorView t[] = {{.name = "a", .dtype = DT_F32, .shape = SHAPE(4, 3), .data = values, .nbytes = 48},
                      {.name = "b", .dtype = DT_I64, .shape = SHAPE(2), .data = values, .nbytes = 16},
                      {.name = "c", .dtype = DT_BOOL, .shape = SHAPE(3), .data = values, .nbytes = 3}};
    Diag d = {0};
    Str s = {0};
    if (tensors_write(job.path, 3, t, &d) != ST_OK || !read_whole(job.path, &s)) return 1;
    vec_push(&job.seed, s);
    for (int i = 3; i < argc; i++) {
        s = (Str){0};
        if (!read_whole(argv[i], &s)) return 1;
        vec_push(&job.seed, s);
    }
    int rc = fuzz_loop(argc, argv, one, &job);
    unlink(job.path);
    for (int64_t i = 0; i < job.seed.len; i++) str_free(&job.seed.data[i]);
    vec_free(&job.seed);
    return rc;
}
