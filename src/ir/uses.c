#include "ir/uses.h"

Uses uses_collect(const Graph *g, Arena *a) {
    int32_t *first = ARENA_ARRAY(a, int32_t, g->values.len + 1);
    int64_t total = g->outputs.len;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        total += g->nodes.data[i].nin;
        for (int k = 0; k < g->nodes.data[i].nin; k++) first[g->nodes.data[i].in[k] + 1]++;
    }
    for (int64_t i = 0; i < g->outputs.len; i++) first[g->outputs.data[i].value + 1]++;
    for (int64_t v = 0; v < g->values.len; v++) first[v + 1] += first[v];
    Use *use = ARENA_ARRAY(a, Use, total);
    int32_t *at = arena_copy(a, first, sizeof *first * (size_t)(g->values.len + 1));
    for (int64_t i = 0; i < g->nodes.len; i++)
        for (int k = 0; k < g->nodes.data[i].nin; k++) use[at[g->nodes.data[i].in[k]]++] = (Use){(NodeId)i, k};
    for (int64_t i = 0; i < g->outputs.len; i++) use[at[g->outputs.data[i].value]++] = (Use){NO_NODE, 0};
    return (Uses){first, use};
}
