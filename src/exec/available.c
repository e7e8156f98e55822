#include "exec/available.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// MemAvailable of /proc/meminfo in bytes; -1 where there is none.
static int64_t available_nbytes(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return -1;
    char line[256];
    long long kb = -1;
    while (kb < 0 && fgets(line, sizeof line, f)) sscanf(line, "MemAvailable: %lld kB", &kb);
    fclose(f);
    return kb < 0 ? -1 : kb * 1024;
}

// What the control group leaves, which a container sees beside the machine's own memory; -1 where it sets no limit. Pages of files
// that nobody used lately are given back when they are needed.
static int64_t group_nbytes(void) {
    long long most = -1, used = -1, files = 0;
    char line[256];
    FILE *f = fopen("/sys/fs/cgroup/memory.max", "r");
    if (f && fscanf(f, "%lld", &most) != 1) most = -1;  // "max"
    if (f) fclose(f);
    f = most < 0 ? NULL : fopen("/sys/fs/cgroup/memory.current", "r");
    if (f && fscanf(f, "%lld", &used) != 1) used = -1;
    if (f) fclose(f);
    f = used < 0 ? NULL : fopen("/sys/fs/cgroup/memory.stat", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "inactive_file %lld", &files) != 1) files = 0;
    if (f) fclose(f);
    return used < 0 ? -1 : max_i64(0, most - used + files);
}

int64_t available_host_nbytes(void) {
    int64_t have = available_nbytes(), group = group_nbytes();
    return group >= 0 && (have < 0 || group < have) ? group : have;
}

Status available_check(const Plan *p, Diag *d) {
    int64_t arenas = 0, host = 0, have = available_host_nbytes();
    for (int r = 0; r < p->nranks; r++) {
        if (!p->backend->device) arenas += p->rank[r].arena_nbytes;
        host += p->rank[r].host_nbytes;
    }
    if (have < 0 || arenas + host <= have) return ST_OK;
    const char *ranks = p->nranks == 1 ? "" : "s";
    if (p->backend->device)
        return diag_error(d, ST_MEMORY,
                          "the plan keeps %.2f GB in host memory for %d rank%s, %.2f GB are available here: offload less, take a shorter sequence, or "
                          "a machine with more memory",
                          (double)host / 1e9, p->nranks, ranks, (double)have / 1e9);
    return diag_error(d, ST_MEMORY,
                      "the plan needs %.2f GB for %d rank%s, %.2f GB are available here: take a shorter sequence, a smaller batch, or more machines",
                      (double)(arenas + host) / 1e9, p->nranks, ranks, (double)have / 1e9);
}
