// Pinned host memory, much of it: the driver alone clears and pins about 1.6 GB/s, from one thread.
#pragma once
#include <stdbool.h>
#include <stddef.h>

typedef struct Pinned {
    void *data;              // NULL: none
    size_t nbytes;
    bool registered;         // mapped by us and then pinned; else the driver's own allocation
} Pinned;
// Of the current device, cleared or not. NULL: it worked; else why not, in the driver's words.
const char *pinned_alloc(Pinned *p, size_t nbytes);
void pinned_free(Pinned *p);
