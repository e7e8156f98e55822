// Intact zip files around damaged JSON: the program, the weight table, AutoSP's extras. What still opens is bound as well.
#include "archive_build.h"
#include "fuzz.h"
#include "import/archive.h"

static const char *const member[] = {"t/models/model.json", "t/data/weights/model_weights_config.json",
                                     "t/data/constants/model_constants_config.json", "t/extra/autosp.json"};
enum { NTEXT = sizeof member / sizeof *member };

typedef struct Seed {
    Str text[NTEXT];
} Seed;
typedef VEC(Seed) Seeds;

static void bind_some(Rng *r, const Archive *ar, Arena *a) {
    static const int64_t sizes[] = {0, 1, 2, 3, 8, 101, 1 << 20, INT64_MAX};
    int64_t *values = arena_alloc(a, sizeof *values * (size_t)(ar->nsymbol + 1)), v;
    Diag d = {0};
    if (archive_bind(ar, sizes[rng_below(r, 5)], sizes[rng_below(r, 8)], a, values, &d) != ST_OK) {
        if (!d.text[0]) abort();
        return;
    }
    for (int i = 0; i < ar->graph->ntensor; i++)
        for (int k = 0; k < ar->graph->tensor[i].ndim && ar->graph->tensor[i].known; k++)
            if (sym_eval(ar, ar->graph->tensor[i].size[k], values, &v, &d) != ST_OK) return;
}

static void one(Rng *r, void *ctx) {
    Seeds *seeds = ctx;
    const Seed *seed = &seeds->data[rng_below(r, (size_t)seeds->len)];
    size_t victim = rng_below(r, NTEXT);
    if (rng_below(r, 2)) victim = 0;
    float zeros[48] = {0};
    ZipBuild b = {0};
    zb_add(&b, "t/data/weights/weight_0", zeros, sizeof zeros);
    zb_add(&b, "t/data/constants/tensor_0", zeros, 12);
    for (size_t i = 0; i < NTEXT; i++) {
        Str s = {0};
        str_addn(&s, seed->text[i].data, seed->text[i].len);
        for (size_t n = i == victim ? 1 + rng_below(r, 4) : 0; n > 0; n--) mutate_json(r, &s);
        zb_add(&b, member[i], s.data, s.len);
        str_free(&s);
    }
    Str file = zb_finish(&b);
    Arena *a = arena_new();
    Diag d = {0};
    Zip *z;
    Archive *ar;
    ImportReport report = {0};
    if (zip_open_bytes(a, "fuzz", file.data, (int64_t)file.len, &z, &d) != ST_OK) abort();
    if (archive_read(a, z, NULL, &ar, &report, &d) == ST_OK) bind_some(r, ar, a);
    else if (!d.text[0]) abort();
    vec_free(&report.missing);
    vec_free(&report.notes);
    arena_free(a);
    str_free(&file);
}

static bool add_seed(Seeds *seeds, const void *data, size_t n) {
    static const char *const tails[NTEXT] = {"/models/model.json", "model_weights_config.json", "model_constants_config.json",
                                             "extra/autosp.json"};
    Arena *a = arena_new();
    Diag d = {0};
    Zip *z;
    Seed s = {0};
    const void *bytes;
    bool ok = zip_open_bytes(a, "seed", data, (int64_t)n, &z, &d) == ST_OK;
    for (int i = 0; i < NTEXT && ok; i++) {
        str_add(&s.text[i], "");
        for (int64_t k = 0; k < z->nmember; k++) {
            if (!strstr(z->member[k].name, tails[i])) continue;
            if (zip_bytes(z, a, &z->member[k], 64 << 20, true, &bytes, &d) == ST_OK)
                str_set(&s.text[i], bytes, (size_t)z->member[k].nbytes);
        }
    }
    if (ok) vec_push(seeds, s);
    arena_free(a);
    return ok;
}

int main(int argc, char **argv) {
    Seeds seeds = {0};
    Str s = tiny_archive(&(TinyArchive){.extra = "{\"autosp\": 1, \"tied\": [[\"w\", \"v\"]], \"no_decay\": [\"v\"], "
                                                 "\"seq_dim\": 1, "
                                                 "\"inputs\": {\"labels\": \"labels\"}, \"checkpoint_names\": {\"w\": \"w\"}}"});
    bool ok = add_seed(&seeds, s.data, s.len);
    str_free(&s);
    for (int i = 3; i < argc && ok; i++) {
        ok = read_whole(argv[i], &s) && add_seed(&seeds, s.data, s.len);
        str_free(&s);
    }
    int rc = ok ? fuzz_loop(argc, argv, one, &seeds) : 1;
    for (int64_t i = 0; i < seeds.len; i++)
        for (int k = 0; k < NTEXT; k++) str_free(&seeds.data[i].text[k]);
    vec_free(&seeds);
    return rc;
}
