// Offsets for buffers whose sizes and lifetimes are known: two buffers may share bytes iff they are never alive together.
// Finding the least arena is NP-hard (dynamic storage allocation); placing large buffers first, each at the lowest offset where
// it fits, lands within a few percent of the lower bound (the largest sum of live bytes). Several orders are tried and the best
// one kept.
#include "plan/plan.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = BUFFER_ALIGN };

typedef struct Item {        // a buffer to place; `next` links placed items by offset
    int64_t offset, nbytes;
    int32_t first, last;
    int32_t buffer, next;
} Item;

typedef enum Order { ORDER_SIZE, ORDER_AREA, ORDER_LENGTH, ORDER_COUNT } Order;

static double item_key(const Item *i, Order o) {
    double length = (double)i->last - i->first + 1, nbytes = (double)i->nbytes;
    return o == ORDER_SIZE ? nbytes : o == ORDER_AREA ? nbytes * length : length;
}

static int compare_items(const void *pa, const void *pb, Order o) {
    const Item *a = pa, *b = pb;
    double ka = item_key(a, o), kb = item_key(b, o);
    if (ka != kb) return ka > kb ? -1 : 1;
    if (a->nbytes != b->nbytes) return a->nbytes > b->nbytes ? -1 : 1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a->buffer < b->buffer ? -1 : a->buffer > b->buffer;
}
static int by_size(const void *a, const void *b) { return compare_items(a, b, ORDER_SIZE); }
static int by_area(const void *a, const void *b) { return compare_items(a, b, ORDER_AREA); }
static int by_length(const void *a, const void *b) { return compare_items(a, b, ORDER_LENGTH); }

// Places items in array order at the lowest offset that is free during their lifetime. Stops early once the arena exceeds
// `limit`.
static int64_t place_first_fit(Item *item, int n, int64_t limit) {
    int32_t head = -1;
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        Item *it = &item[i];
        int64_t offset = 0;  // lowest candidate so far: end of the last overlapping item passed
        int32_t before = -1;
        for (int32_t k = head; k >= 0; k = item[k].next) {
            const Item *p = &item[k];
            if (p->offset >= offset + it->nbytes) break;  // sorted by offset: nothing further is in the way
            if (p->first <= it->last && it->first <= p->last && p->offset + p->nbytes > offset) offset = p->offset + p->nbytes;
            if (p->offset <= offset) before = k;
        }
        it->offset = offset;
        int32_t *link = before < 0 ? &head : &item[before].next;
        while (*link >= 0 && item[*link].offset < offset) link = &item[*link].next;
        it->next = *link;
        *link = i;
        total = max_i64(total, offset + it->nbytes);
        if (total > limit) return total;
    }
    return total;
}

// Largest sum of sizes alive at one step.
static int64_t live_peak(const Item *item, int n) {
    int32_t nstep = 0;
    for (int i = 0; i < n; i++) nstep = item[i].last + 1 > nstep ? item[i].last + 1 : nstep;
    int64_t *delta = calloc((size_t)nstep + 1, sizeof *delta);
    CHECK(delta != NULL, "out of memory for %d steps", nstep);
    for (int i = 0; i < n; i++) {
        delta[item[i].first] += item[i].nbytes;
        delta[item[i].last + 1] -= item[i].nbytes;
    }
    int64_t live = 0, peak = 0;
    for (int32_t t = 0; t < nstep; t++) {
        live += delta[t];
        peak = max_i64(peak, live);
    }
    free(delta);
    return peak;
}

static int64_t place_best(Item *item, int n, int64_t bound) {
    static int (*const compare[ORDER_COUNT])(const void *, const void *) = {by_size, by_area, by_length};
    Item *best = malloc(sizeof *best * (size_t)n);
    CHECK(best != NULL, "out of memory for %d buffers", n);
    int64_t best_total = INT64_MAX;
    int64_t enough = bound + bound / 256;  // nearer than this, another order costs more time than it saves bytes
    for (int o = 0; o < ORDER_COUNT && best_total > enough; o++) {
        qsort(item, (size_t)n, sizeof *item, compare[o]);
        int64_t total = place_first_fit(item, n, best_total);
        if (total >= best_total) continue;
        best_total = total;
        memcpy(best, item, sizeof *item * (size_t)n);
    }
    memcpy(item, best, sizeof *item * (size_t)n);
    free(best);
    return best_total;
}

int64_t memory_assign(int n, Buffer *buf, int64_t *lower_bound) {
    int32_t end = 0;
    for (int i = 0; i < n; i++) end = buf[i].last > end ? buf[i].last : end;
    Item *item = malloc(sizeof *item * (size_t)(n > 0 ? n : 1));
    CHECK(item != NULL, "out of memory for %d buffers", n);
    int64_t base = 0;  // buffers alive throughout lie side by side at the bottom
    int m = 0;
    for (int i = 0; i < n; i++) {
        CHECK(buf[i].nbytes >= 0 && buf[i].first >= 0 && buf[i].first <= buf[i].last, "buffer %d: %lld bytes alive %d..%d", i,
              (long long)buf[i].nbytes, buf[i].first, buf[i].last);
        int64_t nbytes = round_up(buf[i].nbytes, ALIGN);
        if (nbytes == 0 || (buf[i].first == 0 && buf[i].last == end)) {
            buf[i].offset = nbytes ? base : 0;
            base += nbytes;
        } else {
            item[m++] = (Item){.nbytes = nbytes, .first = buf[i].first, .last = buf[i].last, .buffer = i};
        }
    }
    int64_t peak = m ? live_peak(item, m) : 0;
    int64_t total = m ? place_best(item, m, peak) : 0;
    for (int i = 0; i < m; i++) buf[item[i].buffer].offset = base + item[i].offset;
    free(item);
    *lower_bound = base + peak;
    return base + total;
}
