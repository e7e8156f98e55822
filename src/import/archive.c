// torch.export archives: finds the members, checks versions, and reads program, weights and AutoSP's own extras in order.
#include "import/archive.h"
#include <stdarg.h>
#include "import/mapfile.h"

#define JSON_LIMIT (64ll << 20)

// Export ScalarType codes (torch/_export/serde/schema.py).
bool aten_dtype(int code, DType *out) {
    static const struct { int code; DType type; } known[] = {
        {4, DT_I32}, {5, DT_I64}, {6, DT_F16}, {7, DT_F32}, {8, DT_F64}, {12, DT_BOOL}, {13, DT_BF16}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == code) {
            *out = known[i].type;
            return true;
        }
    return false;
}

bool aten_complex(int code, int *part) {
    if (code != 10 && code != 11) return false;
    *part = code - 3;  // 7 float, 8 double
    return true;
}

ZipMember *archive_member(const ArchiveReader *r, const char *fmt, ...) {
    Str s = {0};
    char tail[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(tail, sizeof tail, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof tail) return NULL;
    str_printf(&s, "%s%s", r->top, tail);
    ZipMember *m = zip_find(r->zip, str_text(&s));
    str_free(&s);
    return m;
}

Status archive_json(ArchiveReader *r, ZipMember *m, json_t **out) {
    const void *text;
    TRY(zip_bytes(r->zip, r->a, m, JSON_LIMIT, true, &text, r->d));
    return json_parse(r->scratch, m->name, text, m->nbytes, out, r->d);
}

// The one program in the archive: "<top>/models/<stem>.json". With several, "model" is the default name.
static Status find_program(ArchiveReader *r, ZipMember **out) {
    ZipMember *found = NULL;
    int n = 0;
    for (int64_t i = 0; i < r->zip->nmember; i++) {
        ZipMember *m = &r->zip->member[i];
        const char *dir = strstr(m->name, "models/"), *file = dir ? dir + 7 : NULL;
        size_t len = file ? strlen(file) : 0;
        if (len <= 5 || strchr(file, '/') || strcmp(file + len - 5, ".json") != 0) continue;
        if (dir != m->name && (dir[-1] != '/' || strchr(m->name, '/') != dir - 1)) continue;
        n++;
        if (found && strcmp(file, "model.json") != 0) continue;
        found = m;
        r->top = arena_strndup(r->a, m->name, (size_t)(dir - m->name));
        r->stem = arena_strndup(r->a, file, len - 5);
    }
    if (!found)
        return diag_error(r->d, ST_INPUT, "no <name>/models/<name>.json inside: not a torch.export archive of PyTorch 2.8+");
    if (n > 1 && strcmp(r->stem, "model") != 0)
        return diag_error(r->d, ST_UNSUPPORTED, "%d programs in one archive; export the one to train by itself", n);
    *out = found;
    return ST_OK;
}

// Small text members that must say one thing if they are there.
static Status expect_text(ArchiveReader *r, const char *name, const char *want) {
    ZipMember *m = archive_member(r, "%s", name);
    const void *text;
    if (!m) return ST_OK;
    TRY(zip_bytes(r->zip, r->a, m, 64, true, &text, r->d));
    size_t n = strlen(want);
    if (m->nbytes >= (int64_t)n && memcmp(text, want, n) == 0) return ST_OK;
    return diag_error(r->d, ST_UNSUPPORTED, "%s is \"%.*s\" where \"%s\" is supported", name, (int)m->nbytes,
                      (const char *)text, want);
}

static Status read_version(ArchiveReader *r, const json_t *program) {
    json_t *v;
    int64_t major, minor;
    TRY(json_field(program, "schema_version", JSON_OBJECT, &v, r->d));
    TRY(json_field_int(v, "major", &major, r->d));
    TRY(json_field_int(v, "minor", &minor, r->d));
    if (major != 8 || minor < 0 || minor > INT32_MAX)
        return diag_error(r->d, ST_UNSUPPORTED, "export schema %lld.%lld; this reads 8.x: export again with PyTorch 2.11",
                          (long long)major, (long long)minor);
    r->ar->schema_major = 8;
    r->ar->schema_minor = (int)minor;
    return ST_OK;
}

static Status read_extra(ArchiveReader *r) {
    ZipMember *m = archive_member(r, "extra/autosp.json");
    int64_t version;
    json_t *names;
    if (!m) return ST_OK;
    TRY(archive_json(r, m, &r->extra));
    Status st = json_field_int(r->extra, "autosp", &version, r->d);
    if (st == ST_OK && version != 1)
        st = diag_error(r->d, ST_UNSUPPORTED, "version %lld; this reads version 1", (long long)version);
    if (st == ST_OK) st = json_field_opt(r->extra, "checkpoint_names", JSON_OBJECT, &names, r->d);
    return st == ST_OK ? ST_OK : diag_where(r->d, "%s", m->name);
}

static Status read_program(ArchiveReader *r) {
    ZipMember *m = NULL;
    json_t *program, *gm, *graph, *signature;
    TRY(find_program(r, &m));
    size_t ntop = strlen(r->top);
    r->ar->name = ntop ? arena_strndup(r->a, r->top, ntop - 1) : r->stem;
    TRY(expect_text(r, "archive_format", "pt2"));
    TRY(expect_text(r, "byteorder", "little"));
    TRY(archive_json(r, m, &program));
    TRY(read_version(r, program));
    TRY(read_extra(r));
    Status st = archive_read_ranges(r, program);
    if (st == ST_OK) st = json_field(program, "graph_module", JSON_OBJECT, &gm, r->d);
    if (st == ST_OK) st = json_field(gm, "graph", JSON_OBJECT, &graph, r->d);
    if (st == ST_OK) st = json_field(gm, "signature", JSON_OBJECT, &signature, r->d);
    if (st == ST_OK) st = archive_read_graph(r, graph, 0, &r->ar->graph);
    if (st == ST_OK) st = archive_read_signature(r, signature);
    if (st == ST_OK) return ST_OK;
    return diag_where(r->d, "%s", m->name);
}

static Status read_all(ArchiveReader *r, const char *weights) {
    TRY(read_program(r));
    TRY(archive_read_weights(r));
    return weights ? archive_override_weights(r, weights) : ST_OK;
}

Status archive_read(Arena *a, Zip *zip, const char *weights, Archive **out, ImportReport *report, Diag *d) {
    Arena *scratch = arena_new();
    if (!scratch) return diag_error(d, ST_MEMORY, "out of memory");
    ArchiveReader r = {.a = a, .scratch = scratch, .zip = zip, .report = report, .d = d, .ar = ARENA_NEW(a, Archive)};
    r.ar->path = zip->path;
    r.syms = (SymTable){.a = a, .index = map_new(scratch)};
    r.sym_cache = map_new(scratch);
    Status st = read_all(&r, weights);
    for (int64_t i = 0; st == ST_OK && i < r.ar->param.len; i++)
        if (!r.ar->param.data[i].data) vec_push(&report->missing, r.ar->param.data[i].name);
    vec_free(&r.syms.symbol);
    vec_free(&r.sym_parsed);
    arena_free(scratch);
    if (st != ST_OK) return diag_where(d, "%s", zip->path);
    *out = r.ar;
    return ST_OK;
}

Status archive_open(Arena *a, const char *path, const char *weights, Archive **out, ImportReport *r, Diag *d) {
    Zip *zip;
    TRY(zip_open(a, path, &zip, d));
    return archive_read(a, zip, weights, out, r, d);
}
