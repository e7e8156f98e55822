// autosp calibrate: a device model of this machine.
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "backend/registry.h"
#include "driver/calibrate.h"

static Status run(Arena *a, const CalibrateOptions *o, const char *path, Diag *d) {
    DeviceModel m;
    const char *note[CALIBRATE_NOTES];
    int nnote;
    TRY(calibrate(a, o, &m, &nnote, note, d));
    TRY(device_model_save(&m, nnote, note, path, d));
    const DeviceModel *again;
    TRY(device_model_load(a, path, &again, d));  // what is written can be read
    for (int i = 0; i < nnote; i++) printf("%s\n", note[i]);
    printf("written: %s; use it with --device-model %s\n", path, path);
    return ST_OK;
}

static const DeviceModel *base_model(const Backend *b) {
    const DeviceModel *here = b->device ? device_model_here() : device_model_cpu();
    return here ? here : device_model_h100();
}

int command_calibrate(int argc, char **argv) {
    const char *device = "cpu", *path = "device.json", *name = NULL;
    int64_t threads = 0, seconds = 20;
    bool quiet = false;
    const Opt opts[] = {
        {"--device", OPT_TEXT, &device, "D", "cpu (default) or cuda"},
        {"-o", OPT_TEXT, &path, "FILE", "the model (default device.json)"},
        {"--name", OPT_TEXT, &name, "N", "its name (default: calibrated-D)"},
        {"--threads", OPT_INT, &threads, "N", "cpu: threads of a rank (default: processors)"},
        {"--seconds", OPT_INT, &seconds, "N", "about as long as kernels are measured; more measures larger ones (default 20)"},
        {"--quiet", OPT_FLAG, &quiet, NULL, "no table"},
    };
    const Usage u = {"autosp calibrate", "[--device cpu|cuda] [-o FILE]",
                     "Measures this machine with the backend's own kernels (products, attention, memory, launches, links) and "
                     "writes a device\n"
                     "model, from which plan --device-model and train --device-model predict seconds.",
                     opts, sizeof opts / sizeof *opts};
    const char *rest[1];
    int n = args_parse(&u, argc, argv, rest, 1);
    if (n == -2) return EXIT_DONE;
    if (n != 0) {
        if (n > 0) args_help(&u, stderr);
        return EXIT_USAGE;
    }
    Diag d = {0};
    Arena *a = arena_new();
    CalibrateOptions o = {.seconds = (double)seconds, .report = quiet ? NULL : stdout};
    Status st = backend_find(device, &o.backend, &d);
    if (st == ST_OK && (seconds < 1 || seconds > 3600)) st = diag_error(&d, ST_INPUT, "--seconds must be between 1 and 3600");
    if (st == ST_OK && (threads < 0 || threads > 4096)) st = diag_error(&d, ST_INPUT, "--threads must be between 1 and 4096");
    if (st == ST_OK && o.backend->device && o.backend->device->count() < 1)
        st = diag_error(&d, ST_UNSUPPORTED, "no NVIDIA GPU can be used here: there is nothing to measure");
    if (st == ST_OK) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        o.nthreads = o.backend->device ? 1 : threads > 0 ? (int)threads : cores > 0 ? (int)cores : 1;
        o.base = base_model(o.backend);
        o.name = name ? name : arena_printf(a, "calibrated-%s", device);
        st = run(a, &o, path, &d);
    }
    arena_free(a);
    if (st == ST_OK) return EXIT_DONE;
    print_error("autosp calibrate", &d);
    return EXIT_REFUSED;
}
