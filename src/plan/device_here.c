// The GPU of this machine by name, without the driver's library: a process that has used that cannot fork ranks any more.
#include <glob.h>
#include <string.h>

#include "plan/device.h"

bool device_name_here(char *name, size_t nbytes) {
    glob_t g;
    bool found = false;
    if (glob("/proc/driver/nvidia/gpus/*/information", 0, NULL, &g)) return false;
    for (size_t i = 0; i < g.gl_pathc && !found; i++) {
        char line[256];
        FILE *f = fopen(g.gl_pathv[i], "r");
        while (f && !found && fgets(line, sizeof line, f)) {
            if (strncmp(line, "Model:", 6)) continue;
            char *at = line + 6 + strspn(line + 6, " \t");
            at[strcspn(at, "\n")] = 0;
            snprintf(name, nbytes, "%s", at);
            found = *at != 0;
        }
        if (f) fclose(f);
    }
    globfree(&g);
    return found;
}

const DeviceModel *device_model_here(void) {
    char name[128];
    return device_name_here(name, sizeof name) ? device_model_of(name) : NULL;
}
