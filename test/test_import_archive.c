// Expressions, archives and binding: what is understood, and what is refused and how.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <unistd.h>
#include "archive_build.h"
#include "import/archive.h"

// ---- expressions -----------------------------------------------------------------------------------------------------------
static void test_sizes(void **state) {
    (void)state;
    static const struct { const char *text; int64_t value; } good[] = {
        {"Integer(7)", 7},
        {"Symbol('s1', positive=True, integer=True)", 10},
        {"Mul(Integer(2), Symbol('s1', positive=True, integer=True), Symbol('s0', positive=True, integer=True))", 60},
        {"Mul(Symbol('s0'), Add(Symbol('s1'), Integer(-1)))", 27},
        {"FloorDiv(Add(Symbol('s1'), Integer(3)), Integer(4))", 3},
        {"Mod(Symbol('s1'), Integer(4))", 2},
        {"Max(Integer(1), Min(Symbol('s0'), Symbol('s1')))", 3},
        {"Pow(Symbol('s0'), Integer(3))", 27},
        {"floor(Mul(Rational(1, 2), Add(Symbol('s1'), Integer(1))))", 5},
        {"ceiling(Mul(Rational(1, 2), Add(Symbol('s1'), Integer(1))))", 6},
        {"CeilToInt(IntTrueDiv(Symbol('s1'), Integer(4)))", 3},
        {"2*s0 + 3*(s1 - 1)//2 - -1", 20},
        {"s1**2 % 7", 2}, {"-s0**2", -9}, {"(-7)//2", -4}, {"(-7) % 4", 1}, {"2.0*s0", 6}, {"min(8*s1, 32*s1)", 80},
    };
    Arena *a = arena_new();
    int64_t values[2] = {3, 10}, v;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        SymTable t = {.a = a, .index = map_new(a)};
        symtable_intern(&t, "s0");
        symtable_intern(&t, "s1");
        Diag d = {0};
        Sym *s = NULL;
        Status st = sym_parse(&(SymScope){.a = a, .table = &t}, good[i].text, &s, &d);
        if (st != ST_OK) fail_msg("%s: %s", good[i].text, d.text);
        assert_int_equal(t.symbol.len, 2);
        assert_int_equal(sym_value(s, values, &v), EVAL_OK);
        if (v != good[i].value) fail_msg("%s is %lld", good[i].text, (long long)v);
        vec_free(&t.symbol);
    }
    arena_free(a);
}

static void test_bad_sizes(void **state) {
    (void)state;
    static const char *const bad[] = {"", "Add(", "Add()", "s0 +", "Foo(s0)", "s0 s0", "1 < 2", "Mul(Rational(1, 2), s0)",
                                      "s0/s0", "Pow(s0)",
                                      "99999999999999999999", "Symbol(s0)", "L['x'].size()[0]", "Rational(1, 0)", "1e5",
                                          "s0 if s0 else 1",
                                      "not s0", "Symbol('s0', 3)", "'s0'", "FloorDiv(s0, 2, 3)"};
    Arena *a = arena_new();
    SymTable t = {.a = a, .index = map_new(a)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Diag d = {0};
        Sym *s;
        if (sym_parse(&(SymScope){.a = a, .table = &t}, bad[i], &s, &d) != ST_UNSUPPORTED) fail_msg("\"%s\" was accepted",
                                                                                                    bad[i]);
        assert_non_null(strstr(d.text, "expression"));
    }
    Str deep = {0};
    for (int i = 0; i < 100000; i++) str_add(&deep, "(");
    Diag d = {0};
    Sym *s;
    assert_int_equal(sym_parse(&(SymScope){.a = a, .table = &t}, deep.data, &s, &d), ST_UNSUPPORTED);
    for (int i = 0; i < 100000; i++) deep.data[i] = '-';
    d = (Diag){0};
    assert_int_equal(sym_parse(&(SymScope){.a = a, .table = &t}, deep.data, &s, &d), ST_UNSUPPORTED);
    str_free(&deep);
    vec_free(&t.symbol);
    arena_free(a);
}

static void test_overflow(void **state) {
    (void)state;
    static const struct { const char *text; EvalResult want; } cases[] = {
        {"s0*s0", EVAL_OVERFLOW}, {"s0 + 9223372036854775807", EVAL_OVERFLOW}, {"7 // (s0 - s0)", EVAL_DOMAIN}, {"s0**9",
                                                                                                                 EVAL_OVERFLOW},
        {"2**(3 - s0)", EVAL_DOMAIN}, {"s1", EVAL_UNBOUND}, {"s0 % 0", EVAL_DOMAIN}, {"(-9223372036854775807 - 1) // (0 - 1)",
                                                                                      EVAL_OVERFLOW}};
    Arena *a = arena_new();
    SymTable t = {.a = a, .index = map_new(a)};
    symtable_intern(&t, "s0");
    int64_t values[2] = {1ll << 40, SYM_UNBOUND}, v;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Diag d = {0};
        Sym *s;
        assert_int_equal(sym_parse(&(SymScope){.a = a, .table = &t}, cases[i].text, &s, &d), ST_OK);
        assert_int_equal(sym_value(s, values, &v), cases[i].want);
    }
    vec_free(&t.symbol);
    arena_free(a);
}

// ---- archives --------------------------------------------------------------------------------------------------------------
typedef struct Opened {
    Arena *a;
    Str bytes;
    Archive *ar;
    ImportReport report;
    Diag d;
    Status st;
} Opened;

static Opened open_bytes(Str bytes, const char *weights) {
    Opened o = {.a = arena_new(), .bytes = bytes};
    Zip *zip;
    o.st = zip_open_bytes(o.a, "tiny.pt2", o.bytes.data, (int64_t)o.bytes.len, &zip, &o.d);
    if (o.st == ST_OK) o.st = archive_read(o.a, zip, weights, &o.ar, &o.report, &o.d);
    return o;
}

static Opened open_tiny(const TinyArchive *t, const char *weights) { return open_bytes(tiny_archive(t), weights); }

static void close_tiny(Opened *o) {
    vec_free(&o->report.missing);
    vec_free(&o->report.leftover);
    vec_free(&o->report.notes);
    arena_free(o->a);
    str_free(&o->bytes);
}

static void assert_refused(Opened o, Status st, const char *word) {
    if (o.st != st || !strstr(o.d.text, word)) fail_msg("wanted %s with \"%s\", got %s: %s", status_name(st), word,
                                                        status_name(o.st), o.d.text);
    close_tiny(&o);
}

static void test_tiny(void **state) {
    (void)state;
    Opened o = open_tiny(&(TinyArchive){0}, NULL);
    if (o.st != ST_OK) fail_msg("%s", o.d.text);
    assert_string_equal(o.ar->name, "tiny");
    assert_int_equal(o.ar->param.len, 2);
    assert_string_equal(o.ar->param.data[1].name, "v");
    assert_true(((const float *)o.ar->param.data[1].data)[1] == 0.125f * 13);
    assert_true(o.ar->param.data[0].decay && o.ar->param.data[0].trainable);
    assert_true(((const float *)o.ar->constant.data[0].data)[2] == 3);
    assert_string_equal(o.ar->graph->node[0].source, "model.py:12 in forward (embed)");
    assert_int_equal(o.ar->user[0].role, ROLE_TOKENS);
    assert_int_equal(o.ar->user[1].role, ROLE_LABELS);
    assert_int_equal(o.ar->user[1].seq_dim, 1);
    assert_int_equal(o.report.missing.len, 0);
    close_tiny(&o);
}

static char *payloads(const char *w_path, const char *w_strides, int v_offset, const char *v_sizes) {
    Str s = {0};
    add_payload(&s, "w", w_path, "4,3", w_strides, 0);
    add_payload(&s, "v", "weight_0", v_sizes, "3,1", v_offset);
    return s.data;
}

static void test_weights(void **state) {
    (void)state;
    char *tied = payloads("weight_0", "3,1", 0, "4,3"), *overlap = payloads("weight_0", "3,1", 6, "4,3");
    char *columns = payloads("weight_0", "1,4", 12, "4,3"), *short_file = payloads("weight_0", "3,1", 13, "4,3");
    char *absent = payloads("weight_9", "3,1", 12, "4,3"), *wrong = payloads("weight_0", "3,1", 12, "3,3");
    char *huge = payloads("weight_0", "9223372036854775807,1", 12, "4,3"), *negative = payloads("weight_0", "-3,1", 12, "4,3");
    Opened o = open_tiny(&(TinyArchive){.weights = tied}, NULL);
    assert_int_equal(o.ar->param.len, 1);
    assert_string_equal(o.ar->param.data[0].alias[0], "v");
    assert_int_equal(o.ar->input[1].param, 0);
    close_tiny(&o);
    o = open_tiny(&(TinyArchive){.weights = columns}, NULL);
    const float *w = o.ar->param.data[0].data;  // stored by columns: w[i][j] at j*4 + i
    for (int i = 0; i < 12; i++) assert_true(w[i] == 0.125f * (float)(i % 3 * 4 + i / 3));
    close_tiny(&o);
    assert_refused(open_tiny(&(TinyArchive){.weights = overlap}, NULL), ST_UNSUPPORTED, "share memory");
    assert_refused(open_tiny(&(TinyArchive){.weights = short_file}, NULL), ST_INPUT,
                   "needs 100 bytes, but member 'tiny/data/weights/weight_0' has 96");
    assert_refused(open_tiny(&(TinyArchive){.weights = absent}, NULL), ST_INPUT, "weight_9");
    assert_refused(open_tiny(&(TinyArchive){.weights = wrong}, NULL), ST_INPUT, "[4, 3]");
    assert_refused(open_tiny(&(TinyArchive){.weights = huge}, NULL), ST_INPUT, "'w'");
    assert_refused(open_tiny(&(TinyArchive){.weights = negative}, NULL), ST_INPUT, "negative");
    o = open_tiny(&(TinyArchive){.no_weight_bytes = true}, NULL);
    assert_int_equal(o.report.missing.len, 2);
    assert_null(o.ar->param.data[0].data);
    close_tiny(&o);
    char *all[] = {tied, overlap, columns, short_file, absent, wrong, huge, negative};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void test_extra(void **state) {
    (void)state;
    Opened o = open_tiny(&(TinyArchive){.no_weight_bytes = true,
                                        .extra = "{\"autosp\": 1, \"tied\": [[\"w\", \"v\"]], \"no_decay\": [\"v\"], "
                                        "\"inputs\": {\"input_ids\": \"other\", \"labels\": \"tokens\"}, "
                                        "\"checkpoint_names\": {\"v\": \"head\"}}"}, NULL);
    if (o.st != ST_OK) fail_msg("%s", o.d.text);
    assert_int_equal(o.ar->param.len, 1);
    assert_false(o.ar->param.data[0].decay);
    assert_string_equal(o.ar->param.data[0].checkpoint_name, "head");
    assert_int_equal(o.ar->user[1].role, ROLE_TOKENS);
    close_tiny(&o);
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 1, \"tied\": [[\"w\", \"v\"]]}"}, NULL), ST_INPUT,
                   "bytes differ");
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 1, \"tied\": [[\"w\", \"q\"]]}"}, NULL), ST_INPUT, "'q'");
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 1, \"no_decay\": [\"q\"]}"}, NULL), ST_INPUT, "'q'");
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 2}"}, NULL), ST_UNSUPPORTED, "version 2");
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 1, \"inputs\": {\"labels\": \"lables\"}}"}, NULL), ST_INPUT,
                   "lables");
    assert_refused(open_tiny(&(TinyArchive){.extra = "{\"autosp\": 1, \"seq_dim\": 5}"}, NULL), ST_INPUT, "seq_dim");
}

// The program with one piece of text replaced.
static void assert_edit_refused(const char *from, const char *to, Status st, const char *word) {
    Str text = tiny_program(&(TinyArchive){0}), edited = {0};
    const char *at = strstr(text.data, from);
    assert_non_null(at);
    str_addn(&edited, text.data, (size_t)(at - text.data));
    str_add(&edited, to);
    str_add(&edited, at + strlen(from));
    assert_refused(open_tiny(&(TinyArchive){.program = edited.data}, NULL), st, word);
    str_free(&text);
    str_free(&edited);
}

static void test_program_errors(void **state) {
    (void)state;
    assert_edit_refused("\"major\": 8", "\"major\": 7", ST_UNSUPPORTED, "schema 7.17");
    assert_edit_refused("\"name\": \"embedding\"", "\"name\": \"embeddings\"", ST_INPUT, "'embedding' is used before it is made");
    assert_edit_refused("\"name\": \"sum_1\"}}], \"metadata\"", "\"name\": \"mul\"}}], \"metadata\"", ST_INPUT, "made twice");
    assert_edit_refused("\"as_none\": true", "\"as_nonsense\": true", ST_UNSUPPORTED, "as_nonsense");
    assert_edit_refused("\"parameter_name\": \"v\"", "\"parameter_name\": \"w\"", ST_INPUT, "'w'");
    assert_edit_refused("{\"parameter\":", "{\"custom_obj\":", ST_UNSUPPORTED, "custom_obj");
    assert_edit_refused("\"user_output\"", "\"gradient_to_parameter\"", ST_UNSUPPORTED, "gradient_to_parameter");
    assert_edit_refused("\"dtype\": 7", "\"dtype\": 9", ST_UNSUPPORTED, "dtype");
    assert_edit_refused("\"min_val\": 3, \"max_val\": 1000", "\"min_val\": 3, \"max_val\": 1", ST_INPUT, "empty range");
    assert_edit_refused("\"nodes\": [", "\"nodes\": [[", ST_INPUT, "model.json");
    assert_edit_refused("\"layout\": 7", "\"layout\": 7, \"layout\": 7", ST_INPUT, "duplicate");
    assert_edit_refused("\"inputs\": [{\"as_tensor\": {\"name\": \"p_w\"}}, ", "\"inputs\": [", ST_INPUT, "p_w");
    Str deep = {0};
    for (int i = 0; i < 1000000; i++) str_add(&deep, "[");
    assert_refused(open_tiny(&(TinyArchive){.program = deep.data}, NULL), ST_INPUT, "depth");
    str_free(&deep);
}

static void test_nested_graph(void **state) {
    (void)state;
    // a graph inside a graph inside a graph ...: refused well before the stack ends
    Str text = {0};
    str_add(&text, "{\"schema_version\": {\"major\": 8, \"minor\": 0}, \"graph_module\": {\"signature\": {}, \"graph\": ");
    const char *open = "{\"inputs\": [], \"outputs\": [], \"tensor_values\": {}, \"nodes\": "
                       "[{\"target\": \"t\", \"outputs\": [], "
                       "\"inputs\": "
                       "[{\"name\": \"\", \"arg\": {\"as_graph\": {\"name\": \"g\", \"graph\": ";
    for (int i = 0; i < 200; i++) str_add(&text, open);
    str_add(&text, "{\"inputs\": [], \"outputs\": [], \"tensor_values\": {}, \"nodes\": []}");
    for (int i = 0; i < 200; i++) str_add(&text, "}}}]}]}");
    str_add(&text, "}}");
    assert_refused(open_tiny(&(TinyArchive){.program = text.data}, NULL), ST_INPUT, "nested");
    str_free(&text);
}

// ---- binding ---------------------------------------------------------------------------------------------------------------
static Status bind(Opened *o, int64_t batch, int64_t seq, int64_t *values) {
    diag_clear(&o->d);
    return archive_bind(o->ar, batch, seq, o->a, values, &o->d);
}

static void assert_bind_refused(Opened *o, int64_t batch, int64_t seq, const char *word) {
    int64_t v[8];
    Status st = bind(o, batch, seq, v);
    if (st != ST_INPUT || !strstr(o->d.text, word)) fail_msg("B %d S %d: wanted \"%s\", got: %s", (int)batch, (int)seq, word,
                                                             o->d.text);
}

static void test_bind(void **state) {
    (void)state;
    Opened o = open_tiny(&(TinyArchive){0}, NULL);
    int64_t v[4];
    assert_int_equal(bind(&o, 3, 9, v), ST_OK);
    assert_true(v[0] == 3 && v[1] == 9 && v[2] == 3 && v[3] == 9);
    assert_int_equal(bind(&o, 0, 0, v), ST_OK);
    assert_true(v[0] == 2 && v[1] == 8 && v[2] == 2 && v[3] == 8);
    assert_int_equal(bind(&o, 1, 9, v), ST_OK);  // as PyTorch does, a range [2, ...] lets a batch of 1 pass
    assert_bind_refused(&o, 2, 2, "sequence length 2 is outside the archive's range [3, 1000]");
    assert_bind_refused(&o, 2, 1001, "sequence length 1001 is outside");
    assert_bind_refused(&o, 2, 77, "exported for S != 77; got B = 2, S = 77");
    assert_bind_refused(&o, -1, 8, "batch -1");
    close_tiny(&o);
    // labels one shorter than the tokens: only the guard says so
    o = open_tiny(&(TinyArchive){.hints = {2, 8, 2, 7}, .guard = ", \"(L['labels'].size()[0]*L['labels'].size()[1]) == "
                                 "(L['input_ids'].size()[0]*((-1) + L['input_ids'].size()[1]))\""}, NULL);
    assert_int_equal(bind(&o, 5, 100, v), ST_OK);
    assert_true(v[2] == 5 && v[3] == 99);
    close_tiny(&o);
    // a batch that happens to be as long as the sequence
    o = open_tiny(&(TinyArchive){.hints = {8, 8, 8, 8}}, NULL);
    assert_int_equal(bind(&o, 3, 10, v), ST_OK);
    assert_true(v[2] == 3 && v[3] == 10);
    close_tiny(&o);
    o = open_tiny(&(TinyArchive){.guard = ", \"mystery(L['labels'].size()[0])\""}, NULL);
    assert_int_equal(bind(&o, 3, 10, v), ST_UNSUPPORTED);
    assert_non_null(strstr(o.d.text, "mystery"));
    close_tiny(&o);
    const char *joined = ", \"not (L['labels'].size()[1] % 4 == 0 or 2 < L['labels'].size()[0] <= 3) and True\"";
    o = open_tiny(&(TinyArchive){.guard = joined}, NULL);
    assert_int_equal(bind(&o, 2, 9, v), ST_OK);
    assert_bind_refused(&o, 2, 12, "labels.size(1) % 4");
    assert_bind_refused(&o, 3, 9, "exported for");
    close_tiny(&o);
}

// ---- weights from outside --------------------------------------------------------------------------------------------------
static void write_weights(const char *path, const char *first, const float *data, Shape shape, const char *second) {
    TensorView t[2] = {{.name = first, .dtype = DT_F32, .known_dtype = true, .shape = shape, .data = data,
                        .nbytes = shape_numel(&shape) * 4}};
    t[1] = t[0];
    t[1].name = second;
    Diag d = {0};
    if (tensors_write(path, second ? 2 : 1, t, &d) != ST_OK) fail_msg("%s", d.text);
}

static void test_override(void **state) {
    (void)state;
    char path[] = "/tmp/autosp_test_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    float data[12];
    for (int i = 0; i < 12; i++) data[i] = (float)-i;
    write_weights(path, "w", data, SHAPE(4, 3), "stranger");
    Opened o = open_tiny(&(TinyArchive){.no_weight_bytes = true}, path);
    assert_int_equal(o.st, ST_OK);
    assert_true(((const float *)o.ar->param.data[0].data)[11] == -11);
    assert_int_equal(o.report.missing.len, 1);
    assert_string_equal(o.report.missing.data[0], "v");
    assert_int_equal(o.report.leftover.len, 1);
    assert_string_equal(o.report.leftover.data[0], "stranger");
    close_tiny(&o);
    o = open_tiny(&(TinyArchive){0}, path);  // v keeps the archive's bytes, and the report says so
    assert_int_equal(o.report.missing.len, 0);
    assert_int_equal(o.report.notes.len, 1);
    close_tiny(&o);
    write_weights(path, "head", data, SHAPE(4, 3), NULL);
    TinyArchive tied = {.no_weight_bytes = true,
                        .extra = "{\"autosp\": 1, \"tied\": [[\"w\", \"v\"]], \"checkpoint_names\": {\"v\": \"head\"}}"};
    o = open_tiny(&tied, path);
    assert_int_equal(o.report.missing.len, 0);
    assert_int_equal(o.report.leftover.len, 0);
    close_tiny(&o);
    write_weights(path, "w", data, SHAPE(3, 4), NULL);
    assert_refused(open_tiny(&(TinyArchive){0}, path), ST_INPUT, "has shape [3, 4], but 'w' of the program needs [4, 3]");
    unlink(path);
    assert_refused(open_tiny(&(TinyArchive){0}, path), ST_IO, path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes), cmocka_unit_test(test_bad_sizes), cmocka_unit_test(test_overflow),
            cmocka_unit_test(test_tiny),
        cmocka_unit_test(test_weights), cmocka_unit_test(test_extra), cmocka_unit_test(test_program_errors),
        cmocka_unit_test(test_nested_graph), cmocka_unit_test(test_bind), cmocka_unit_test(test_override)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
