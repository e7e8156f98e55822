// Ranks compare a hash before they start: two that would run different plans must not begin.
#include "comm/comm.h"

#include <stdlib.h>

Status comm_agree(Comm *c, uint64_t hash, const char *what, Diag *d) {
    uint64_t *got = calloc((size_t)c->nranks, sizeof *got);
    if (!got) return diag_error(d, ST_MEMORY, "rank %d: out of memory comparing the %s", c->rank, what);
    Status st = c->vt->share(c, hash, got, what, d);
    // Every rank compares with rank 0's neighbours in the same order, so that all of them fail together.
    for (int r = 0; st == ST_OK && r < c->nranks; r++) {
        if (got[r] == got[0]) continue;
        int other = got[c->rank] == got[0] ? r : 0;
        st = diag_error(d, ST_COMM, "rank %d and rank %d do not have the same %s (%016llx, %016llx)", c->rank, other, what,
                        (unsigned long long)got[c->rank], (unsigned long long)got[other]);
    }
    free(got);
    return st;
}
