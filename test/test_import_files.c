// Zip and safetensors files: what comes back, and every way in which they can lie.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "archive_build.h"
#include "import/import.h"
#include "import/zip.h"

static char folder[] = "/tmp/autosp_files_XXXXXX";

static const char *in_folder(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

// ---- zip -------------------------------------------------------------------------------------------------------------------
// Opens the archive and reads all members; the first error is in d.
static Status read_all(const void *data, size_t n, Diag *d) {
    Arena *a = arena_new();
    Zip *z;
    const void *bytes;
    *d = (Diag){0};
    Status st = zip_open_bytes(a, "z", data, (int64_t)n, &z, d);
    for (int64_t i = 0; st == ST_OK && i < z->nmember; i++) st = zip_bytes(z, a, &z->member[i], 1ll << 40, true, &bytes, d);
    arena_free(a);
    return st;
}

static void assert_zip_refused(ZipBuild *z, Status want, const char *word) {
    Str s = zb_finish(z);
    Diag d;
    Status st = read_all(s.data, s.len, &d);
    if (st != want || !strstr(d.text, word)) fail_msg("wanted \"%s\", got %s: %s", word, status_name(st), d.text);
    str_free(&s);
}

static void test_zip(void **state) {
    (void)state;
    char text[5000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i * i % 26);
    ZipBuild b = {0};
    zb_text(&b, "x/stored", "hello");
    zb_deflated(&b, "x/packed", text, sizeof text, sizeof text);
    zb_text(&b, "x/empty", "");
    Str s = zb_finish(&b);
    Arena *a = arena_new();
    Zip *z;
    Diag d = {0};
    const void *bytes;
    assert_int_equal(zip_open_bytes(a, "z", s.data, (int64_t)s.len, &z, &d), ST_OK);
    assert_int_equal(z->nmember, 3);
    assert_int_equal(zip_bytes(z, a, zip_find(z, "x/stored"), 100, true, &bytes, &d), ST_OK);
    assert_memory_equal(bytes, "hello", 5);
    assert_true((const char *)bytes > s.data && (const char *)bytes < s.data + s.len);  // in place
    assert_int_equal(zip_bytes(z, a, zip_find(z, "x/packed"), 5000, false, &bytes, &d), ST_OK);
    assert_memory_equal(bytes, text, sizeof text);
    assert_null(zip_find(z, "x/absent"));
    assert_int_equal(zip_bytes(z, a, zip_find(z, "x/packed"), 4999, true, &bytes, &d), ST_INPUT);
    arena_free(a);
    for (size_t n = 0; n < s.len; n++) {
        Diag e;
        char *cut = malloc(n + 1);  // its own block, so that reading past the end is seen
        memcpy(cut, s.data, n);
        if (read_all(cut, n, &e) == ST_OK) fail_msg("cut to %zu bytes: accepted", n);
        free(cut);
    }
    str_free(&s);
}

static void test_zip_lies(void **state) {
    (void)state;
    ZipBuild b = {0};
    zb_text(&b, "a", "1");
    zb_text(&b, "a", "2");
    assert_zip_refused(&b, ST_INPUT, "two members are named 'a'");
    const char *const names[] = {"../x", "a/../b", "..", "/etc/passwd", "a\\b", "x/.."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        zb_text(&b, names[i], "1");
        assert_zip_refused(&b, ST_INPUT, "name");
    }
    zb_text(&b, "a..b/..c", "fine");
    Str s = zb_finish(&b);
    Diag d;
    assert_int_equal(read_all(s.data, s.len, &d), ST_OK);
    s.data[30 + 8] ^= 1;  // the first content byte
    assert_int_equal(read_all(s.data, s.len, &d), ST_INPUT);
    assert_non_null(strstr(d.text, "member 'a..b/..c': its checksum"));
    str_free(&s);
    zb_raw(&b, "a", 0, 1, 0, "x", 1, 1);
    assert_zip_refused(&b, ST_UNSUPPORTED, "encrypted");
    zb_raw(&b, "a", 12, 0, 0, "x", 1, 1);
    assert_zip_refused(&b, ST_UNSUPPORTED, "method 12");
    zb_raw(&b, "a", 0, 0, 0, "x", 1, 1000);
    assert_zip_refused(&b, ST_INPUT, "size");
    zb_deflated(&b, "a", "hello hello hello", 17, 16);
    assert_zip_refused(&b, ST_INPUT, "declared");
    zb_deflated(&b, "a", "hello hello hello", 17, 18);
    assert_zip_refused(&b, ST_INPUT, "declared");
    zb_deflated(&b, "a", "hello hello hello", 17, (size_t)2 << 30);
    assert_zip_refused(&b, ST_INPUT, "bomb");
    zb_text(&b, "a", "0123456789");
    zb_text(&b, "b", "0123456789");
    size_t second = b.directory.len / 2;
    memcpy(b.directory.data + second, b.directory.data, 46);  // b's entry points at a's header
    b.directory.data[second + 28] = 1;
    assert_zip_refused(&b, ST_INPUT, "another name");
}

static void test_zip_bomb(void **state) {
    (void)state;
    size_t n = 64 << 20;
    char *zeros = calloc(n, 1);
    ZipBuild b = {0};
    zb_deflated(&b, "zeros", zeros, n, n);
    free(zeros);
    assert_zip_refused(&b, ST_INPUT, "bomb");
}

// ---- safetensors -----------------------------------------------------------------------------------------------------------
static void test_tensors_round_trip(void **state) {
    (void)state;
    double f64[2] = {1.5, -2};
    float f32[6] = {0, 1, 2, 3, 4, 5};
    int64_t i64[1] = {-7};
    uint8_t flag[3] = {1, 0, 1};
    uint16_t bf16[2] = {0x3f80, 0xc000};
    TensorView t[] = {
        {.name = "flag", .dtype = DT_BOOL, .shape = SHAPE(3), .data = flag, .nbytes = 3},
        {.name = "odd \"name\"\n\xc3\xa9", .dtype = DT_F32, .shape = SHAPE(2, 3), .data = f32, .nbytes = 24},
        {.name = "d", .dtype = DT_F64, .shape = SHAPE(2, 1), .data = f64, .nbytes = 16},
        {.name = "scalar", .dtype = DT_I64, .shape = SHAPE0, .data = i64, .nbytes = 8},
        {.name = "half", .dtype = DT_BF16, .shape = SHAPE(2), .data = bf16, .nbytes = 4},
        {.name = "none", .dtype = DT_F32, .shape = SHAPE(0, 5), .data = f32, .nbytes = 0}};
    enum { N = sizeof t / sizeof *t };
    Diag d = {0};
    const char *path = in_folder("round.safetensors");
    if (tensors_write(path, N, t, &d) != ST_OK) fail_msg("%s", d.text);
    Arena *a = arena_new();
    TensorFile *f;
    if (tensors_open(a, path, &f, &d) != ST_OK) fail_msg("%s", d.text);
    assert_int_equal(tensors_count(f), N);
    for (int i = 0; i < N; i++) {
        const TensorView *v = tensors_find(f, t[i].name);
        assert_non_null(v);
        assert_true(v->known_dtype && v->dtype == t[i].dtype && v->nbytes == t[i].nbytes && shape_equal(&v->shape, &t[i].shape));
        assert_memory_equal(v->data, t[i].data, (size_t)t[i].nbytes);
    }
    float wide[2];
    assert_int_equal(tensor_convert(tensors_find(f, "half")->data, DT_BF16, wide, DT_F32, 2, &d), ST_OK);
    assert_true(wide[0] == 1 && wide[1] == -2);
    assert_null(tensors_find(f, "absent"));
    arena_free(a);
    t[1].name = "flag";
    assert_int_equal(tensors_write(path, N, t, &d), ST_INPUT);
}

static void assert_tensors(const char *header, size_t ndata, Status want, const char *word) {
    Str s = {0};
    zb_u(&s, strlen(header), 8);
    str_add(&s, header);
    for (size_t i = 0; i < ndata; i++) str_addn(&s, "\x01", 1);
    const char *path = in_folder("bad.safetensors");
    write_file(path, s.data, s.len);
    str_free(&s);
    Arena *a = arena_new();
    TensorFile *f;
    Diag d = {0};
    Status st = tensors_open(a, path, &f, &d);
    if (st != want || !strstr(d.text, word)) fail_msg("%s: wanted \"%s\", got %s: %s", header, word, status_name(st), d.text);
    arena_free(a);
}

#define T(name, dtype, shape, offsets) \
    "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": " offsets "}"

static void test_tensors_lies(void **state) {
    (void)state;
    assert_tensors("{" T("a", "F32", "[2]", "[0, 8]") "}", 8, ST_OK, "");
    // the second is not at a multiple of its size: copied
    assert_tensors("{" T("a", "BOOL", "[1]", "[0, 1]") ", " T("b", "F64", "[1]", "[1, 9]") "}", 9, ST_OK, "");
    assert_tensors("{" T("a", "F8_E4M3", "[3]", "[0, 3]") "}", 3, ST_OK, "");
    assert_tensors("{" T("a", "F4", "[3]", "[0, 2]") "}", 2, ST_OK, "");  // unknown: an error only if used
    assert_tensors("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0, 4]") "}", 4, ST_OK, "");
    assert_tensors("{\"__metadata__\": {\"format\": \"pt\"}}", 0, ST_OK, "");
    assert_tensors("{" T("a", "F32", "[2]", "[0, 8]") "}", 7, ST_INPUT, "outside the 7 bytes");
    assert_tensors("{" T("a", "F32", "[2]", "[0, 8]") "}", 9, ST_INPUT, "follow the last tensor");
    assert_tensors("{" T("a", "F32", "[2]", "[4, 12]") "}", 12, ST_INPUT, "belong to no tensor");
    assert_tensors("{" T("a", "F32", "[2]", "[0, 8]") ", " T("b", "F32", "[2]", "[4, 12]") "}", 12, ST_INPUT, "overlap");
    assert_tensors("{" T("a", "F32", "[3]", "[0, 8]") "}", 8, ST_INPUT, "does not take 8 bytes");
    assert_tensors("{" T("a", "F32", "[2]", "[8, 0]") "}", 8, ST_INPUT, "outside");
    assert_tensors("{" T("a", "F32", "[-2]", "[0, 8]") "}", 8, ST_INPUT, "negative");
    assert_tensors("{" T("a", "F32", "[4294967296, 4294967296]", "[0, 8]") "}", 8, ST_INPUT, "overflows");
    assert_tensors("{" T("a", "F32", "[2305843009213693954, 4]", "[0, 8]") "}", 8, ST_INPUT, "'a'");
    assert_tensors("{" T("a", "F32", "[2]", "[0]") "}", 8, ST_INPUT, "two integers");
    assert_tensors("{" T("a", "F32", "2", "[0, 8]") "}", 8, ST_INPUT, "shape");
    assert_tensors("{" T("a", "F32", "[2]", "[0, 8]") ", " T("a", "F32", "[2]", "[0, 8]") "}", 8, ST_INPUT, "duplicate");
    assert_tensors("[]", 0, ST_INPUT, "header is a list");
    assert_tensors("{", 0, ST_INPUT, "line 1");
    write_file(in_folder("bad.safetensors"), "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    Arena *a = arena_new();
    TensorFile *f;
    Diag d = {0};
    assert_int_equal(tensors_open(a, in_folder("bad.safetensors"), &f, &d), ST_INPUT);
    d = (Diag){0};
    write_file(in_folder("bad.safetensors"), "", 0);
    assert_int_equal(tensors_open(a, in_folder("bad.safetensors"), &f, &d), ST_INPUT);
    d = (Diag){0};
    assert_int_equal(tensors_open(a, in_folder("nowhere"), &f, &d), ST_IO);
    arena_free(a);
}

static Status open_folder(int64_t *count, Diag *d) {
    Arena *a = arena_new();
    TensorFile *f;
    *d = (Diag){0};
    Status st = tensors_open(a, folder, &f, d);
    if (st == ST_OK) *count = tensors_count(f);
    arena_free(a);
    return st;
}

static void write_index(const char *text) { write_file(in_folder("model.safetensors.index.json"), text, strlen(text)); }

static void test_tensor_folder(void **state) {
    (void)state;
    float x[2] = {1, 2};
    Diag d = {0};
    int64_t n = 0;
    TensorView t = {.name = "a", .dtype = DT_F32, .shape = SHAPE(2), .data = x, .nbytes = 8};
    assert_int_equal(open_folder(&n, &d), ST_IO);
    d = (Diag){0};
    assert_int_equal(tensors_write(in_folder("model.safetensors"), 1, &t, &d), ST_OK);
    assert_int_equal(open_folder(&n, &d), ST_OK);
    assert_int_equal(n, 1);
    t.name = "b";
    assert_int_equal(tensors_write(in_folder("second.safetensors"), 1, &t, &d), ST_OK);
    write_index("{\"weight_map\": {\"a\": \"model.safetensors\", \"b\": \"second.safetensors\"}}");
    assert_int_equal(open_folder(&n, &d), ST_OK);
    assert_int_equal(n, 2);
    write_index("{\"weight_map\": {\"a\": \"model.safetensors\", \"c\": \"second.safetensors\"}}");
    assert_int_equal(open_folder(&n, &d), ST_INPUT);
    assert_non_null(strstr(d.text, "'c' is not in second.safetensors"));
    write_index("{\"weight_map\": {\"a\": \"../model.safetensors\"}}");
    assert_int_equal(open_folder(&n, &d), ST_INPUT);
    write_index("{\"weight_map\": {\"a\": \"absent.safetensors\"}}");
    assert_int_equal(open_folder(&n, &d), ST_IO);
}

// A write that fails half-way (here: at a file size limit, which acts like a full disk) leaves the old file as it was.
static void test_failed_write(void **state) {
    (void)state;
    static float big[100000];
    Diag d = {0};
    char path[256];
    snprintf(path, sizeof path, "%s", in_folder("kept.safetensors"));
    TensorView t = {.name = "a", .dtype = DT_F32, .shape = SHAPE(2), .data = big, .nbytes = 8};
    assert_int_equal(tensors_write(path, 1, &t, &d), ST_OK);
    struct rlimit old, low;
    getrlimit(RLIMIT_FSIZE, &old);
    low = old;
    low.rlim_cur = 100000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &low);
    TensorView large = {.name = "a", .dtype = DT_F32, .shape = SHAPE(100000), .data = big, .nbytes = 400000};
    Status st = tensors_write(path, 1, &large, &d);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, ST_IO);
    assert_non_null(strstr(d.text, "untouched"));
    Arena *a = arena_new();
    TensorFile *f;
    d = (Diag){0};
    assert_int_equal(tensors_open(a, path, &f, &d), ST_OK);
    assert_int_equal(tensors_at(f, 0)->nbytes, 8);
    arena_free(a);
    char command[300];
    snprintf(command, sizeof command, "test -z \"$(ls %s/*.tmp.* 2>/dev/null)\"", folder);
    assert_int_equal(system(command), 0);
    d = (Diag){0};
    assert_int_equal(tensors_write(in_folder("no/such/folder.safetensors"), 1, &t, &d), ST_IO);
}

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zip), cmocka_unit_test(test_zip_lies), cmocka_unit_test(test_zip_bomb),
        cmocka_unit_test(test_tensors_round_trip), cmocka_unit_test(test_tensors_lies), cmocka_unit_test(test_tensor_folder),
        cmocka_unit_test(test_failed_write)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
