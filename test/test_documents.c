// How many documents a row of the training data holds (train/data.c): what attention is planned for.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>
#include "train/data.h"

static char path[2][64];

static void write_file(int i, const char *text) {
    snprintf(path[i], sizeof path[i], "/tmp/autosp-documents-%d-%d", (int)getpid(), i);
    FILE *f = fopen(path[i], "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

// Of files of bytes in rows of `seq`, where `token` (-1: none) ends documents.
static int64_t documents(const char *a, const char *b, int64_t seq, int64_t token) {
    write_file(0, a);
    if (b) write_file(1, b);
    const char *file[] = {path[0], path[1]};
    DataOptions o = {.file = file, .nfile = b ? 2 : 1, .doc_token = token, .seq = seq, .batch = 1};
    Arena *arena = arena_new();
    Data *x;
    Diag d = {0};
    assert_int_equal(data_open(arena, &o, &x, &d), ST_OK);
    int64_t n = data_max_documents(x);
    arena_free(arena);
    unlink(path[0]);
    if (b) unlink(path[1]);
    return n;
}

static void test_streams(void **state) {
    (void)state;
    assert_int_equal(documents("abcdefgh", NULL, 4, -1), 0);    // nothing says where one ends
    assert_int_equal(documents("abcdefgh", NULL, 4, '.'), 1);
    assert_int_equal(documents("ab.defgh", NULL, 4, '.'), 2);
    assert_int_equal(documents("abcd.fgh", NULL, 4, '.'), 2);   // it may begin one as well
    assert_int_equal(documents("abc.efgh", NULL, 4, '.'), 2);
    assert_int_equal(documents("a.c.....", NULL, 4, '.'), 4);   // single tokens
    assert_int_equal(documents("abcdefgh....", NULL, 8, '.'), 1);  // the last four fill no row
    assert_int_equal(documents("abc", "defg", 4, '.'), 2);      // abc. defg .
    assert_int_equal(documents("abcd", "ef", 4, '.'), 2);       // abcd .ef.
    assert_int_equal(documents("ab", "c.e", 7, '.'), 4);        // ab.c.e. the last begins one
    assert_int_equal(documents(".b.d", NULL, 4, '.'), 3);       // the first ends one
}

// Examples [2, 3]: the second row holds two.
static void test_table(void **state) {
    (void)state;
    static const int64_t token[] = {4, 5, 6, 9, 7, 9};
    static const char head[] = "{\"input_ids\":{\"dtype\":\"I64\",\"shape\":[2,3],\"data_offsets\":[0,48]}}    ";
    uint64_t n = sizeof head - 1;
    snprintf(path[0], sizeof path[0], "/tmp/autosp-documents-%d.safetensors", (int)getpid());
    FILE *f = fopen(path[0], "w");
    assert_non_null(f);
    fwrite(&n, 8, 1, f), fwrite(head, 1, n, f), fwrite(token, 1, sizeof token, f);
    fclose(f);
    const char *file[] = {path[0]};
    Arena *arena = arena_new();
    for (int known = 0; known < 2; known++) {
        DataOptions o = {.file = file, .nfile = 1, .doc_token = known ? 9 : -1, .seq = 3, .batch = 1};
        Data *x;
        Diag d = {0};
        assert_int_equal(data_open(arena, &o, &x, &d), ST_OK);
        assert_int_equal(data_max_documents(x), known ? 2 : 0);
    }
    arena_free(arena);
    unlink(path[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streams), cmocka_unit_test(test_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
