// Generated kernels compiled by the host's C++ compiler: see gpu.h, GPU_EMULATE.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include "backend/cuda/device/module_impl.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZE "-fsanitize=address"
#else
#define SANITIZE "-fno-sanitize=all"
#endif
extern char **environ;

Status module_compiler_key(int capability, Str *out, Diag *d) {
    (void)capability, (void)d;
    unsigned long long header = hash_bytes(0, gpu_h_text, strlen(gpu_h_text));
    str_printf(out, "host c++ " __VERSION__ " " SANITIZE " one thread, gpu.h %016llx", header);
    return ST_OK;
}

static Status write_text(const char *path, const void *data, size_t n, Diag *d) {
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(data, 1, n, f) == n;
    if (f) ok = fclose(f) == 0 && ok;
    return ok ? ST_OK : diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
}

static Status read_whole(const char *path, Str *out, Diag *d) {
    FILE *f = fopen(path, "rb");
    if (!f) return diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
    char buffer[1 << 14];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;) str_addn(out, buffer, n);
    fclose(f);
    return ST_OK;
}

// -nostdinc++: <math.h> is then the C one, which is read three times as fast.
// c++ in `folder`, its messages into file log; an error where it cannot be run or refuses.
static Status run_compiler(const char *folder, Diag *d) {
    char flag[320], out[320], in[320], log[320];
    snprintf(flag, sizeof flag, "-I%s", folder);
    snprintf(out, sizeof out, "%s/kernel.so", folder);
    snprintf(in, sizeof in, "%s/generated.cu", folder);
    snprintf(log, sizeof log, "%s/log", folder);
    char *argv[] = {"c++", "-std=c++17", "-O1", "-g0", "-w", "-x", "c++", "-DGPU_EMULATE", "-Dthread_local=", "-shared", "-fPIC",
                    "-ffp-contract=off", "-nostdinc++", SANITIZE, flag, "-o", out, in, NULL};
    posix_spawn_file_actions_t io;
    posix_spawn_file_actions_init(&io);
    posix_spawn_file_actions_addopen(&io, 2, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t pid;
    int e = posix_spawnp(&pid, "c++", &io, NULL, argv, environ), status = 0;
    posix_spawn_file_actions_destroy(&io);
    if (e)
        return diag_error(d, ST_UNSUPPORTED, "the emulated device compiles its kernels with c++, which cannot be run: %s",
                          strerror(e));
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return diag_error(d, ST_IO, "waiting for c++: %s", strerror(errno));
    return status == 0 ? ST_OK : diag_error(d, ST_UNSUPPORTED, "c++ failed (status %d)", status);
}

static Status new_folder(char *path, size_t n, Diag *d) {
    const char *tmp = getenv("TMPDIR");
    snprintf(path, n, "%s/autosp-kernel-XXXXXX", tmp && *tmp && strlen(tmp) < 200 ? tmp : "/tmp");
    return mkdtemp(path) ? ST_OK : diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
}

static void remove_folder(const char *folder) {
    static const char *const names[] = {"gpu.h", "generated.cu", "kernel.so", "log"};
    char path[320];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

Status module_compile(int capability, const char *source, void **image, size_t *nbytes, Str *log, Diag *d) {
    (void)capability;
    char folder[256], path[320];
    TRY(new_folder(folder, sizeof folder, d));
    snprintf(path, sizeof path, "%s/gpu.h", folder);
    Status st = write_text(path, gpu_h_text, strlen(gpu_h_text), d);
    snprintf(path, sizeof path, "%s/generated.cu", folder);
    if (st == ST_OK) st = write_text(path, source, strlen(source), d);
    if (st == ST_OK && (st = run_compiler(folder, d)) != ST_OK) {
        Diag ignored = {0};
        snprintf(path, sizeof path, "%s/log", folder);
        (void)!read_whole(path, log, &ignored);
    }
    Str code = {0};
    snprintf(path, sizeof path, "%s/kernel.so", folder);
    if (st == ST_OK) st = read_whole(path, &code, d);
    *image = code.data;
    *nbytes = code.len;
    remove_folder(folder);
    return st;
}

Status module_load(const void *image, size_t nbytes, void **library, Diag *d) {
    char folder[256], path[320];
    TRY(new_folder(folder, sizeof folder, d));
    snprintf(path, sizeof path, "%s/kernel.so", folder);
    Status st = write_text(path, image, nbytes, d);
    if (st == ST_OK && !(*library = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
        st = diag_error(d, ST_IO, "a compiled kernel cannot be loaded: %s", dlerror());
    remove_folder(folder);
    return st;
}

Status module_find(void *library, const char *name, void **entry, Diag *d) {
    *entry = dlsym(library, name);
    return *entry ? ST_OK : diag_error(d, ST_UNSUPPORTED, "the generated source has no kernel %s", name);
}

// Hundreds of libraries with thread-local variables are more than the leak sanitizer can follow: theirs are plain ones
// (-Dthread_local=), and ranks that are threads launch one at a time.
static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
typedef void (*EmulatedKernel)(const Grid *grid, const void *params);

Status module_start(Device *dev, void *entry, Grid grid, int threads, size_t shared_nbytes,
                     const void *params, size_t nparams, Diag *d) {
    (void)dev, (void)d;
    CHECK(threads > 0 && threads <= 1024 && shared_nbytes <= (227u << 10) && nparams <= 4096, "a launch that no GPU takes");
    CHECK(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y < 65536 && grid.z < 65536, "a grid that no GPU takes");
    EmulatedKernel fn;
    memcpy(&fn, &entry, sizeof fn);
    pthread_mutex_lock(&one_launch);
    fn(&grid, params);
    pthread_mutex_unlock(&one_launch);
    return ST_OK;
}
