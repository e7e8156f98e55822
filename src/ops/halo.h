// Checks on layouts that rules derive from others by widening intervals (halos, KV heads of query heads).
#pragma once
#include "base/containers.h"
#include "ir/type.h"

// Every rank stores its intervals in ascending order, none overlapping another of its own: what layout_stencil and layout_group
// need in order to give each rank everything it reads, once.
static inline bool layout_is_ascending(const Layout *l) {
    for (int r = 0; r < l->nranks; r++)
        for (int i = 1; i < layout_nspan(l, r); i++)
            if (layout_spans(l, r)[i].begin < layout_spans(l, r)[i - 1].end) return false;
    return true;
}

// Every element lives on some rank. (A stride or a short kernel can leave elements that nobody reads.)
static inline bool layout_is_complete(const Layout *l) {
    int64_t covered = 0;
    while (covered < l->extent) {
        int64_t end = covered;
        for (int32_t i = 0; i < l->first[l->nranks]; i++)
            if (l->span[i].begin <= covered) end = max_i64(end, l->span[i].end);
        if (end == covered) return false;
        covered = end;
    }
    return true;
}
