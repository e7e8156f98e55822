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

Status available_check(const Plan *p, Diag *d) {
    int64_t need = 0, have = available_nbytes();
    for (int r = 0; r < p->nranks; r++) need += p->rank[r].arena_nbytes;
    if (have < 0 || need <= have) return ST_OK;
    return diag_error(d, ST_MEMORY,
                      "the plan needs %.2f GB for %d rank%s, %.2f GB are available here: take a shorter sequence, a smaller batch, or more machines",
                      (double)need / 1e9, p->nranks, p->nranks == 1 ? "" : "s", (double)have / 1e9);
}
