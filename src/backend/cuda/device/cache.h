// What was compiled or tuned, kept on disk: $AUTOSP_CACHE, or $XDG_CACHE_HOME/autosp, or ~/.cache/autosp. Entries are files named
// by a hash of `key`, written beside and renamed, with the key and a checksum inside; a damaged or foreign entry counts as
// absent. A folder that cannot be written is no error. AUTOSP_CACHE="" turns the cache off.
#pragma once
#include "base/arena.h"

// The bytes stored under `key` in arena a; NULL if there are none.
const void *cache_get(Arena *a, const char *kind, const char *key, size_t *nbytes);
void cache_put(const char *kind, const char *key, const void *data, size_t nbytes);
