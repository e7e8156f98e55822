#include "pass/mincut.h"

void mincut_begin(MinCut *m, int32_t nnode, Arena *a) {
    *m = (MinCut){.nnode = nnode};
    m->first = ARENA_ARRAY(a, int32_t, nnode);
    m->level = ARENA_ARRAY(a, int32_t, nnode);
    m->at = ARENA_ARRAY(a, int32_t, nnode);
    for (int32_t i = 0; i < nnode; i++) m->first[i] = -1;
}

void mincut_add(MinCut *m, int32_t from, int32_t to, int64_t capacity) {
    CHECK(capacity >= 0 && from != to, "an edge %d -> %d of capacity %lld", from, to, (long long)capacity);
    vec_push(&m->edge, ((MinCutEdge){to, m->first[from], capacity}));
    m->first[from] = (int32_t)m->edge.len - 1;
    vec_push(&m->edge, ((MinCutEdge){from, m->first[to], 0}));
    m->first[to] = (int32_t)m->edge.len - 1;
}

// Distances from the source over edges with something left. Returns whether the sink is reached.
static bool find_levels(MinCut *m, int32_t source, int32_t sink) {
    for (int32_t i = 0; i < m->nnode; i++) m->level[i] = -1;
    m->queue.len = 0;
    vec_push(&m->queue, source);
    m->level[source] = 0;
    for (int64_t k = 0; k < m->queue.len; k++) {
        int32_t n = m->queue.data[k];
        for (int32_t e = m->first[n]; e >= 0; e = m->edge.data[e].next) {
            int32_t to = m->edge.data[e].to;
            if (m->edge.data[e].left <= 0 || m->level[to] >= 0) continue;
            m->level[to] = m->level[n] + 1;
            vec_push(&m->queue, to);
        }
    }
    return m->level[sink] >= 0;
}

// One path from the source to the sink along rising levels, filled to its narrowest edge. Paths are as long as programs: the path is
// a list of edges, not a recursion. Returns 0 when there is none left.
static int64_t augment(MinCut *m, int32_t source, int32_t sink) {
    m->queue.len = 0;  // edges of the path
    int32_t n = source;
    while (n != sink) {
        int32_t e = m->at[n];
        while (e >= 0 && (m->edge.data[e].left <= 0 || m->level[m->edge.data[e].to] != m->level[n] + 1)) e = m->edge.data[e].next;
        m->at[n] = e;
        if (e >= 0) {
            vec_push(&m->queue, e);
            n = m->edge.data[e].to;
            continue;
        }
        if (n == source) return 0;
        m->level[n] = -1;  // a dead end
        n = m->edge.data[m->queue.data[--m->queue.len] ^ 1].to;
    }
    int64_t most = MINCUT_INFINITE;
    for (int64_t k = 0; k < m->queue.len; k++) most = min_i64(most, m->edge.data[m->queue.data[k]].left);
    for (int64_t k = 0; k < m->queue.len; k++) {
        m->edge.data[m->queue.data[k]].left -= most;
        m->edge.data[m->queue.data[k] ^ 1].left += most;
    }
    return most;
}

int64_t mincut_solve(MinCut *m, int32_t source, int32_t sink, bool *from_source) {
    int64_t total = 0;
    while (find_levels(m, source, sink)) {
        for (int32_t i = 0; i < m->nnode; i++) m->at[i] = m->first[i];
        for (int64_t more = augment(m, source, sink); more > 0; more = augment(m, source, sink)) total += more;
        CHECK(total < MINCUT_INFINITE, "no finite cut");
    }
    for (int32_t i = 0; i < m->nnode; i++) from_source[i] = m->level[i] >= 0;
    return total;
}

void mincut_free(MinCut *m) {
    vec_free(&m->edge);
    vec_free(&m->queue);
}
