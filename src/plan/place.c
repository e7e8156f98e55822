// Where values lie within the buffers that they share: at the start, but for parts of a value, which lie where the rank has those
// rows.
#include <stdlib.h>

#include "ops/chunk.h"
#include "plan/lower.h"

typedef struct Weighted {  // a forest over the values: `at` bytes from where the parent begins
    ValueId parent;
    int64_t at;
} Weighted;

// The tree's root, and how far from it v begins.
static ValueId find(Weighted *w, ValueId v, int64_t *at) {
    ValueId root = v;
    int64_t total = 0;
    for (; w[root].parent != root; root = w[root].parent) total += w[root].at;
    *at = total;
    while (w[v].parent != root && v != root) {  // all that were passed hang on the root now
        ValueId next = w[v].parent;
        int64_t step = w[v].at;
        w[v] = (Weighted){root, total};
        total -= step;
        v = next;
    }
    return root;
}

static Status part_offset(const Lower *l, int rank, const Join *j, Intervals v, int64_t *offset) {
    const Node *n = graph_node(l->g, j->node);
    Operand whole = plan_operand(l->a, l->g, j->into, rank);
    int64_t nbytes;
    if (intervals_place(&whole, (int)node_int(n, ATTR_DIM), v, offset, &nbytes)) return ST_OK;
    return diag_error(l->d, ST_UNSUPPORTED, "%s: on rank %d part %d is not in one piece of memory",
                      node_describe(l->g, j->node, l->a), rank, j->part);
}

// v begins `offset` bytes behind the start of `into`.
static Status connect(const Lower *l, Weighted *w, const Join *j, int64_t offset) {
    int64_t from, to;
    ValueId a = find(w, j->v, &from), b = find(w, j->into, &to);
    if (a != b) w[a] = (Weighted){b, to + offset - from};
    else if (from != to + offset)
        return diag_error(l->d, ST_UNSUPPORTED, "%s: %%%d would lie in two places", node_describe(l->g, j->node, l->a), j->v);
    return ST_OK;
}

Status lower_offsets(const Lower *l, int rank, int64_t *out) {
    const Graph *g = l->g;
    if (!l->parts) return ST_OK;  // all begin where their buffer does
    Weighted *w = ARENA_ARRAY(l->a, Weighted, g->values.len);
    for (int64_t v = 0; v < g->values.len; v++) w[v].parent = (ValueId)v;
    Intervals v = {0};
    for (int64_t i = 0; i < l->joins.len; i++) {
        const Join *j = &l->joins.data[i];
        int64_t offset = 0;
        if (j->node != NO_NODE) {
            const Node *n = graph_node(g, j->node);
            v = n->op == OP_PART ? part_intervals(n) : assemble_next(n, j->part == 0 ? (Intervals){0} : v);
            TRY(part_offset(l, rank, j, v, &offset));
        }
        TRY(connect(l, w, j, offset));
    }
    for (int64_t k = 0; k < g->values.len; k++) {
        int64_t at, start;
        find(w, lower_group(l, (ValueId)k), &start);
        find(w, (ValueId)k, &at);
        out[k] = at - start;
    }
    return ST_OK;
}
