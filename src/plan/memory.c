// Offsets for buffers whose sizes and lifetimes are known: two buffers may share bytes iff they are never alive together.
// Finding the least arena is NP-hard (dynamic storage allocation); placing large buffers first, each at the lowest offset where
// it fits, lands within a few percent of the lower bound (the largest sum of live bytes). Several orders are tried and the best
// one kept.
#include "plan/plan.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = BUFFER_ALIGN };

typedef struct Item {        // a buffer to place
    int64_t offset, nbytes;
    int32_t first, last;
    int32_t buffer;
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

// ---- the lowest free offset ---------------------------------------------------------------------------------------------
// What is placed, by offset. A step of a long program has few buffers alive but tens of thousands in all, so those of short lives
// are kept by blocks of steps: a search looks at the blocks that it overlaps.
enum { BLOCK = 128, SHORT_BLOCKS = 3 };
typedef struct Shelf {
    VEC(Item) item;      // ascending offsets
} Shelf;

typedef struct Shelves {
    Shelf lasting;       // of lives longer than SHORT_BLOCKS blocks
    Shelf *block;        // [nblock] of the others, in each block that they overlap
    int nblock;
    Item *all;           // room for every item: for what a lasting one overlaps
} Shelves;

static bool is_short(const Item *it) { return it->last / BLOCK - it->first / BLOCK < SHORT_BLOCKS; }

static void shelf_add(Shelf *s, const Item *it) {
    vec_push(&s->item, *it);
    int64_t i = s->item.len - 1;
    for (; i > 0 && s->item.data[i - 1].offset > it->offset; i--) s->item.data[i] = s->item.data[i - 1];
    s->item.data[i] = *it;
}

static void shelves_add(Shelves *s, const Item *it) {
    if (!is_short(it)) shelf_add(&s->lasting, it);
    else
        for (int b = it->first / BLOCK; b <= it->last / BLOCK; b++) shelf_add(&s->block[b], it);
}

static void shelves_reset(Shelves *s) {
    s->lasting.item.len = 0;
    for (int b = 0; b < s->nblock; b++) s->block[b].item.len = 0;
}

static bool together(const Item *a, const Item *b) { return a->first <= b->last && b->first <= a->last; }

// Passes p, the next placed item by offset. False: it fits below p.
static bool pass_item(const Item *it, const Item *p, int64_t *offset) {
    if (p->offset >= *offset + it->nbytes) return false;
    if (together(p, it)) *offset = max_i64(*offset, p->offset + p->nbytes);
    return true;
}

static int64_t lowest_for_short(const Shelves *s, const Item *it) {
    const Shelf *shelf[1 + SHORT_BLOCKS] = {&s->lasting};
    int64_t at[1 + SHORT_BLOCKS] = {0}, offset = 0;
    int n = 1;
    for (int b = it->first / BLOCK; b <= it->last / BLOCK; b++) shelf[n++] = &s->block[b];
    for (;;) {
        int next = -1;
        for (int k = 0; k < n; k++) {
            while (at[k] < shelf[k]->item.len && !together(&shelf[k]->item.data[at[k]], it)) at[k]++;
            if (at[k] == shelf[k]->item.len) continue;
            if (next < 0 || shelf[k]->item.data[at[k]].offset < shelf[next]->item.data[at[next]].offset) next = k;
        }
        if (next < 0 || !pass_item(it, &shelf[next]->item.data[at[next]++], &offset)) return offset;
    }
}

static int by_offset(const void *pa, const void *pb) {
    const Item *a = pa, *b = pb;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static int64_t lowest_for_lasting(Shelves *s, const Item *it) {
    int64_t n = 0, offset = 0;
    for (int64_t i = 0; i < s->lasting.item.len; i++)
        if (together(&s->lasting.item.data[i], it)) s->all[n++] = s->lasting.item.data[i];
    for (int b = it->first / BLOCK; b <= it->last / BLOCK; b++)
        for (int64_t i = 0; i < s->block[b].item.len; i++) {
            const Item *p = &s->block[b].item.data[i];
            bool here = p->first / BLOCK == b || b == it->first / BLOCK;  // of the blocks that it is in, the first that counts
            if (here && together(p, it)) s->all[n++] = *p;
        }
    qsort(s->all, (size_t)n, sizeof *s->all, by_offset);
    for (int64_t i = 0; i < n && pass_item(it, &s->all[i], &offset); i++) continue;
    return offset;
}

// Places items in array order at the lowest offset that is free during their lifetime. Stops early once the arena exceeds
// `limit`.
static int64_t place_first_fit(Shelves *s, Item *item, int n, int64_t limit) {
    int64_t total = 0;
    shelves_reset(s);
    for (int i = 0; i < n && total <= limit; i++) {
        Item *it = &item[i];
        it->offset = is_short(it) ? lowest_for_short(s, it) : lowest_for_lasting(s, it);
        shelves_add(s, it);
        total = max_i64(total, it->offset + it->nbytes);
    }
    return total;
}

static Shelves shelves_new(const Item *item, int n) {
    Shelves s = {.nblock = 1};
    for (int i = 0; i < n; i++) s.nblock = item[i].last / BLOCK + 1 > s.nblock ? item[i].last / BLOCK + 1 : s.nblock;
    s.block = calloc((size_t)s.nblock, sizeof *s.block);
    s.all = malloc(sizeof *s.all * (size_t)n);
    CHECK(s.block && s.all, "out of memory for %d buffers", n);
    return s;
}

static void shelves_free(Shelves *s) {
    for (int b = 0; b < s->nblock; b++) vec_free(&s->block[b].item);
    vec_free(&s->lasting.item);
    free(s->block);
    free(s->all);
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
    Shelves shelves = shelves_new(item, n);
    int64_t enough = bound + bound / 256;  // nearer than this, another order costs more time than it saves bytes
    for (int o = 0; o < ORDER_COUNT && best_total > enough; o++) {
        qsort(item, (size_t)n, sizeof *item, compare[o]);
        int64_t total = place_first_fit(&shelves, item, n, best_total);
        if (total >= best_total) continue;
        best_total = total;
        memcpy(best, item, sizeof *item * (size_t)n);
    }
    memcpy(item, best, sizeof *item * (size_t)n);
    shelves_free(&shelves);
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
