// The tensor-core kernels of our own attention on the host: test/gpu/gpu_fibers.h plays blocks of 128 threads and their warp-wide
// instructions. A stand-in for module.c compiles the generated source against it. The small cases;
// FLASH_CASE=<part of a label> runs those, FLASH_CASE= all.
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "backend/cuda/device/module.h"
#include "flash_run.h"

struct GpuFunction {
    void (*fn)(const Grid *grid, const void *params);
};
static Arena *arena;
static Map *libraries;  // by source: dlopen handles

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void *library_of(const char *source) {
    int64_t known;
    if (map_get(libraries, source, &known)) return (void *)(intptr_t)known;
    char folder[] = "/tmp/autosp-fibers-XXXXXX";
    assert_non_null(mkdtemp(folder));
    write_file(arena_printf(arena, "%s/generated.cu", folder), source);
    const char *cmd =
        arena_printf(arena,
                     "cd %s && cp %s/test/gpu/gpu_fibers.h gpu.h && cp %s/src/backend/cuda/device/gpu.h gpu_real.h && "
                     "c++ -std=c++17 -O1 -U_FORTIFY_SOURCE -w -x c++ -shared -fPIC -I. -o k.so generated.cu",
                     folder, SOURCE_DIR, SOURCE_DIR);
    assert_int_equal(system(cmd), 0);
    void *lib = dlopen(arena_printf(arena, "%s/k.so", folder), RTLD_NOW | RTLD_LOCAL);
    if (!lib) fail_msg("%s", dlerror());
    assert_int_equal(system(arena_printf(arena, "rm -r %s", folder)), 0);
    map_set(libraries, source, (int64_t)(intptr_t)lib);
    return lib;
}

Status module_function(Device *dev, const char *source, const char *name, const char *what, GpuFunction **out, Diag *d) {
    (void)dev, (void)what;
    *out = ARENA_NEW(arena, GpuFunction);
    void *p = dlsym(library_of(source), name);
    if (!p) return diag_error(d, ST_UNSUPPORTED, "no kernel %s", name);
    memcpy(&(*out)->fn, &p, sizeof p);
    return ST_OK;
}
Status module_launch(Device *dev, GpuFunction *f, Grid grid, int threads, size_t shared, const void *params, size_t nparams,
                     Diag *d) {
    (void)dev, (void)nparams, (void)d;
    assert_int_equal(threads, 128);
    assert_true(shared <= 227 << 10);
    f->fn(&grid, params);
    return ST_OK;
}
Status module_wait(Device *dev, Diag *d) { return (void)dev, (void)d, ST_OK; }
Arena *module_arena(Device *dev) { return (void)dev, arena; }

static void *host_alloc(size_t n) { return aligned_alloc(64, (n + 63) & ~(size_t)63); }
static void host_copy(void *to, const void *from, size_t n) { memcpy(to, from, n); }
static Device device = {.ordinal = 0, .capability = 90, .nsm = 3, .name = "fibers", .key = "fibers"};
static const FlashHost host = {.device = &device, .alloc = host_alloc, .release = free, .put = host_copy, .get = host_copy};

static void test_cases(void **state) {
    (void)state;
    arena = arena_new();
    libraries = map_new(arena);
    const char *only = getenv("FLASH_CASE");
    for (int i = 0; i < flash_ncase; i++)
        for (int backward = 0; backward < 2; backward++) {
            const FlashCase *c = &flash_cases[i];
            if (only ? !strstr(c->label, only) : c->B * c->H * c->Sq * c->Sk * (c->D + c->Dv) > 4000000) continue;
            if (flash_cases[i].like || flash_cases[i].D % 8 || flash_cases[i].Dv % 8) continue;
            Str why = {0};
            FlashError e;
            if (!flash_run(&host, &flash_cases[i], backward, DT_BF16, &e, &why))
                fail_msg("%s, %s: %s", flash_cases[i].label, backward ? "backward" : "forward", str_text(&why));
            print_message("%s, %s: rms %.2e, most %.2e\n", flash_cases[i].label, backward ? "backward" : "forward", e.rms,
                          e.most);
            str_free(&why);
        }
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
