// Compiled kernels by source: in memory for the process, on disk by cache.h; compiled by threads that live as long as there is
// work.
#include "backend/cuda/device/module.h"
#include <pthread.h>
#include <unistd.h>
#include "backend/cuda/device/cache.h"
#include "backend/cuda/device/module_impl.h"

enum { MAX_COMPILERS = 16 };
typedef enum ModuleState { MODULE_WAITING, MODULE_COMPILING, MODULE_READY, MODULE_FAILED } ModuleState;

typedef struct Module {
    struct Module *next;       // of all modules
    struct Module *next_work;  // in the queue
    char *key, *source, *what; // key: compiler, device
    uint64_t hash;
    int capability;
    ModuleState state;
    void *library;
    Diag diag;                 // MODULE_FAILED
} Module;

struct GpuFunction {
    struct GpuFunction *next;
    Module *module;
    const char *name, *what;
    void *entry;
};

typedef struct DeviceModules {
    Arena *arena;
    GpuFunction *functions;
    char *key;
} DeviceModules;

// Modules are never given back: ranks that are threads of one process share them, and a second run in the process finds them.
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Module *all, *first, *last;
    int ncompilers;
} modules = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

// ---- compiling ----------------------------------------------------------------------------------------------------------

static const char *line_of(const char *source, int line, int *len) {
    while (--line > 0 && (source = strchr(source, '\n'))) source++;
    *len = source ? (int)strcspn(source, "\n") : 0;
    return source ? source : "";
}

// The first error of a compiler's log, "generated.cu(12): error: ..." or "generated.cu:12:3: error: ...", and that line.
static Status compile_error(const Module *m, const char *log, Diag *d) {
    const char *at = strstr(log, "error");
    while (at && at > log && at[-1] != '\n') at--;
    int line = 0, n = at ? (int)strcspn(at, "\n") : 0, len;
    const char *number = at ? strstr(at, "generated.cu") : NULL;
    if (number) line = atoi(number + sizeof "generated.cu");
    const char *text = line_of(m->source, line, &len);
    return diag_error(d, ST_UNSUPPORTED, "kernel %s does not compile (please report this): %.*s; line %d: %.*s", m->what,
                      n < 400 ? n : 400, at ? at : log, line, len < 300 ? len : 300, text);
}

static Status compile_now(Module *m, Diag *d) {
    Arena *a = arena_new();
    if (!a) return diag_error(d, ST_MEMORY, "out of memory");
    const char *key = arena_printf(a, "%s\n%s", m->key, m->source);
    size_t n = 0;
    const void *image = cache_get(a, "kernel", key, &n);
    Status st = image ? module_load(image, n, &m->library, d) : ST_OK;
    if (!image || st != ST_OK) {  // what the cache holds may have been made for another driver
        diag_clear(d);
        void *made = NULL;
        Str log = {0};
        st = module_compile(m->capability, m->source, &made, &n, &log, d);
        if (st != ST_OK && log.len) {
            diag_clear(d);
            st = compile_error(m, log.data, d);
        }
        if (st == ST_OK) st = module_load(made, n, &m->library, d);
        if (st == ST_OK) cache_put("kernel", key, made, n);
        free(made);
        str_free(&log);
    }
    arena_free(a);
    return st;
}

static void *compiler(void *unused) {
    (void)unused;
    pthread_mutex_lock(&modules.lock);
    while (modules.first) {
        Module *m = modules.first;
        modules.first = m->next_work;
        m->state = MODULE_COMPILING;
        pthread_mutex_unlock(&modules.lock);
        Diag d = {0};
        Status st = compile_now(m, &d);
        pthread_mutex_lock(&modules.lock);
        m->diag = d;
        m->state = st == ST_OK ? MODULE_READY : MODULE_FAILED;
        pthread_cond_broadcast(&modules.changed);
    }
    modules.ncompilers--;
    pthread_cond_broadcast(&modules.changed);
    pthread_mutex_unlock(&modules.lock);
    return NULL;
}

static int max_compilers(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > MAX_COMPILERS ? MAX_COMPILERS : (int)n;
}

static void start_compiler(void) {  // with the lock
    pthread_attr_t attr;
    pthread_t t;
    if (modules.ncompilers >= max_compilers() || pthread_attr_init(&attr)) return;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (!pthread_create(&t, &attr, compiler, NULL)) modules.ncompilers++;
    pthread_attr_destroy(&attr);
}

// Waits for m; where no thread could be started, compiles it here.
static Status await(Module *m, Diag *d) {
    pthread_mutex_lock(&modules.lock);
    while (m->state < MODULE_READY) {
        if (modules.ncompilers == 0) {
            modules.ncompilers++;
            pthread_mutex_unlock(&modules.lock);
            compiler(NULL);
            pthread_mutex_lock(&modules.lock);
        } else {
            pthread_cond_wait(&modules.changed, &modules.lock);
        }
    }
    pthread_mutex_unlock(&modules.lock);
    return m->state == MODULE_READY ? ST_OK : diag_error(d, m->diag.status, "%s", m->diag.text);
}

// ---- functions ----------------------------------------------------------------------------------------------------------

static Status device_modules(Device *dev, DeviceModules **out, Diag *d) {
    if (!dev->modules) {
        Str key = {0};
        Status st = module_compiler_key(dev->capability, &key, d);
        Arena *a = st == ST_OK ? arena_new() : NULL;
        if (st == ST_OK && !a) st = diag_error(d, ST_MEMORY, "out of memory");
        if (st == ST_OK) {
            DeviceModules *m = ARENA_NEW(a, DeviceModules);
            m->arena = a;
            m->key = arena_printf(a, "%s %s", dev->key, key.data);
            dev->modules = m;
        }
        str_free(&key);
        TRY(st);
    }
    *out = dev->modules;
    return ST_OK;
}

static char *copy_text(const char *s) {
    char *c = strdup(s);
    CHECK(c, "out of memory");
    return c;
}

static Module *module_of(const DeviceModules *dm, int capability, const char *source, const char *what) {
    uint64_t hash = hash_bytes(hash_bytes(0, dm->key, strlen(dm->key)), source, strlen(source));
    pthread_mutex_lock(&modules.lock);
    Module *m = modules.all;
    while (m && (m->hash != hash || strcmp(m->source, source) || strcmp(m->key, dm->key))) m = m->next;
    if (!m) {
        m = calloc(1, sizeof *m);
        CHECK(m, "out of memory");
        m->key = copy_text(dm->key), m->source = copy_text(source), m->what = copy_text(what);
        m->hash = hash, m->capability = capability, m->next = modules.all;
        modules.all = m;
        if (modules.first) modules.last->next_work = m;
        else modules.first = m;
        modules.last = m;
        start_compiler();
    }
    pthread_mutex_unlock(&modules.lock);
    return m;
}

Status module_function(Device *dev, const char *source, const char *name, const char *what, GpuFunction **out, Diag *d) {
    DeviceModules *dm;
    TRY(device_modules(dev, &dm, d));
    Module *m = module_of(dm, dev->capability, source, what);
    for (GpuFunction *f = dm->functions; f; f = f->next)
        if (f->module == m && !strcmp(f->name, name) && !strcmp(f->what, what)) {
            *out = f;
            return ST_OK;
        }
    GpuFunction *f = ARENA_NEW(dm->arena, GpuFunction);
    *f = (GpuFunction){.next = dm->functions, .module = m};
    f->name = arena_strdup(dm->arena, name), f->what = arena_strdup(dm->arena, what);
    dm->functions = f;
    *out = f;
    return ST_OK;
}

static Status function_ready(GpuFunction *f, Diag *d) {
    if (f->entry) return ST_OK;
    TRY(await(f->module, d));
    Status st = module_find(f->module->library, f->name, &f->entry, d);
    return st == ST_OK ? ST_OK : diag_where(d, "kernel %s", f->what);
}

Status module_wait(Device *dev, Diag *d) {
    DeviceModules *dm = dev->modules;
    for (GpuFunction *f = dm ? dm->functions : NULL; f; f = f->next) TRY(function_ready(f, d));
    return ST_OK;
}

Status module_launch(Device *dev, GpuFunction *f, Grid grid, int threads, size_t shared_nbytes,
                     const void *params, size_t nparams, Diag *d) {
    TRY(function_ready(f, d));
    Status st = module_start(dev, f->entry, grid, threads, shared_nbytes, params, nparams, d);
    return st == ST_OK ? ST_OK : diag_where(d, "kernel %s", f->what);
}

Arena *module_arena(Device *dev) {
    Diag d = {0};
    DeviceModules *dm;
    return device_modules(dev, &dm, &d) == ST_OK ? dm->arena : NULL;
}

// A process must not end while a compiler is at work in it.
static void finish_work(void) {
    pthread_mutex_lock(&modules.lock);
    while (modules.ncompilers > 0) pthread_cond_wait(&modules.changed, &modules.lock);
    pthread_mutex_unlock(&modules.lock);
}

void module_close(Device *dev) {
    if (dev->modules) finish_work();
    if (dev->modules) arena_free(((DeviceModules *)dev->modules)->arena);
    dev->modules = NULL;
}
