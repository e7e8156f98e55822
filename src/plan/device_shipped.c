// The models that travel in the executable: texts made from devices/*.json by CMakeLists.txt, parsed when first asked for.
#include <pthread.h>
#include <string.h>

#include "plan/device.h"

extern const char h100_json_text[], h200_json_text[], a100_80g_json_text[], mi300x_json_text[], cpu_json_text[];
static const struct {
    const char *name, *text;
} shipped[] = {
    {"h100", h100_json_text},     {"h200", h200_json_text}, {"a100-80g", a100_80g_json_text},
    {"mi300x", mi300x_json_text}, {"cpu", cpu_json_text},
};
enum { NSHIPPED = sizeof shipped / sizeof *shipped };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const DeviceModel *model[NSHIPPED];
static Arena *arena;  // for the life of the process

static void parse_all(void) {
    arena = arena_new();
    CHECK(arena, "out of memory");
    for (int i = 0; i < NSHIPPED; i++) {
        Diag d = {0};
        Status st = device_model_parse(arena, shipped[i].name, shipped[i].text, (int64_t)strlen(shipped[i].text), &model[i], &d);
        CHECK(st == ST_OK, "shipped device model: %s", d.text);
        CHECK(!strcmp(model[i]->name, shipped[i].name), "devices/%s.json has the name %s", shipped[i].name, model[i]->name);
    }
}

const DeviceModel *device_model_at(int i) {
    pthread_once(&once, parse_all);
    return i >= 0 && i < NSHIPPED ? model[i] : NULL;
}

const DeviceModel *device_model_find(const char *name) {
    for (int i = 0; device_model_at(i); i++)
        if (!strcmp(model[i]->name, name)) return model[i];
    return NULL;
}

const DeviceModel *device_model_cpu(void) { return device_model_find("cpu"); }
const DeviceModel *device_model_h100(void) { return device_model_find("h100"); }

const DeviceModel *device_model_of(const char *driver_name) {
    for (int i = 0; device_model_at(i); i++)
        for (int k = 0; k < model[i]->nmatch; k++)
            if (strstr(driver_name, model[i]->match[k])) return model[i];
    return NULL;
}
