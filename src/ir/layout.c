// Layouts: interval arithmetic on one axis. All the sharding rules that would otherwise be special cases (lengths that ranks do
// not divide, slices, pads, merged and split dims, halos, shared KV heads) are the functions of this file.
#include "base/containers.h"
#include "ir/type.h"

struct LayoutTable {
    Arena *arena;
    int nranks;
    VEC(const Layout *) layout;  // in the arena, so that pointers stay good
    VEC(uint64_t) hash;
    int32_t *slot;  // open addressing over layout ids; -1 empty
    int64_t nslot;
};

static void layouts_free_vecs(void *ptr) {
    LayoutTable *t = ptr;
    vec_free(&t->layout);
    vec_free(&t->hash);
    free(t->slot);
}

LayoutTable *layouts_new(Arena *a, int nranks) {
    CHECK(nranks >= 1, "%d ranks", nranks);
    LayoutTable *t = ARENA_NEW(a, LayoutTable);
    t->arena = a;
    t->nranks = nranks;
    arena_defer(a, layouts_free_vecs, t);
    return t;
}

int layouts_nranks(const LayoutTable *t) { return t->nranks; }
int layouts_count(const LayoutTable *t) { return (int)t->layout.len; }

const Layout *layouts_get(const LayoutTable *t, LayoutId id) {
    CHECK(id >= 0 && id < t->layout.len, "layout %d of %lld", id, (long long)t->layout.len);
    return t->layout.data[id];
}

int64_t layout_local(const Layout *l, int rank) {
    int64_t n = 0;
    for (int i = l->first[rank]; i < l->first[rank + 1]; i++) n += l->span[i].end - l->span[i].begin;
    return n;
}

int64_t layout_max_local(const Layout *l) {
    int64_t most = 0;
    for (int r = 0; r < l->nranks; r++) most = max_i64(most, layout_local(l, r));
    return most;
}

// ---- interning ---------------------------------------------------------------------------------------------------------

typedef struct Draft {  // spans being collected rank by rank; malloc'ed
    VEC(Span) span;
    VEC(int32_t) first;
} Draft;

static void draft_rank(Draft *d) { vec_push(&d->first, (int32_t)d->span.len); }

// Appends to the current rank, merging with its last span where they touch.
static void draft_add(Draft *d, int64_t begin, int64_t end) {
    if (begin >= end) return;
    int32_t start = d->first.data[d->first.len - 1];
    if (d->span.len > start && d->span.data[d->span.len - 1].end == begin)
        d->span.data[d->span.len - 1].end = end;
    else
        vec_push(&d->span, ((Span){begin, end}));
}

static int compare_spans(const void *pa, const void *pb) {
    const Span *a = pa, *b = pb;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

// Some element is owned twice (by any rank, or twice by one).
static bool spans_overlap(const Span *span, int64_t n) {
    bool sorted = true;
    for (int64_t i = 1; i < n; i++) sorted &= span[i - 1].begin <= span[i].begin;
    Span *copy = NULL;
    if (!sorted) {
        copy = malloc((size_t)n * sizeof *copy);
        CHECK(copy, "out of memory");
        memcpy(copy, span, (size_t)n * sizeof *copy);
        qsort(copy, (size_t)n, sizeof *copy, compare_spans);
        span = copy;
    }
    bool overlap = false;
    for (int64_t i = 1; i < n; i++) overlap |= span[i].begin < span[i - 1].end;
    free(copy);
    return overlap;
}

static bool layout_same(const Layout *l, int64_t extent, int nranks, const int32_t *first, const Span *span) {
    return l->extent == extent && !memcmp(l->first, first, sizeof *first * (size_t)(nranks + 1)) &&
           (first[nranks] == 0 || !memcmp(l->span, span, sizeof *span * (size_t)first[nranks]));
}

static void grow_slots(LayoutTable *t) {
    t->nslot = t->nslot ? t->nslot * 2 : 64;
    free(t->slot);
    t->slot = malloc((size_t)t->nslot * sizeof *t->slot);
    CHECK(t->slot, "out of memory");
    for (int64_t i = 0; i < t->nslot; i++) t->slot[i] = -1;
    for (int64_t k = 0; k < t->layout.len; k++) {
        int64_t i = (int64_t)(t->hash.data[k] & (uint64_t)(t->nslot - 1));
        while (t->slot[i] >= 0) i = (i + 1) & (t->nslot - 1);
        t->slot[i] = (int32_t)k;
    }
}

// Takes the draft (one draft_rank per rank was called) and frees it.
static LayoutId intern(LayoutTable *t, int64_t extent, Draft *d) {
    CHECK(d->first.len == t->nranks, "%lld ranks drafted of %d", (long long)d->first.len, t->nranks);
    draft_rank(d);  // the closing bound
    if ((t->layout.len + 1) * 2 > t->nslot) grow_slots(t);
    uint64_t h = hash_bytes((uint64_t)extent, d->first.data, sizeof(int32_t) * (size_t)d->first.len);
    if (d->span.len) h = hash_bytes(h, d->span.data, sizeof(Span) * (size_t)d->span.len);
    int64_t i = (int64_t)(h & (uint64_t)(t->nslot - 1));
    for (; t->slot[i] >= 0; i = (i + 1) & (t->nslot - 1)) {
        int32_t k = t->slot[i];
        if (t->hash.data[k] == h && layout_same(t->layout.data[k], extent, t->nranks, d->first.data, d->span.data)) {
            vec_free(&d->span);
            vec_free(&d->first);
            return k;
        }
    }
    Layout *l = ARENA_NEW(t->arena, Layout);
    *l = (Layout){.extent = extent, .nranks = t->nranks, .overlap = spans_overlap(d->span.data, d->span.len)};
    l->first = arena_copy(t->arena, d->first.data, sizeof(int32_t) * (size_t)d->first.len);
    l->span = arena_copy(t->arena, d->span.data, sizeof(Span) * (size_t)d->span.len);
    vec_free(&d->span);
    vec_free(&d->first);
    t->slot[i] = (int32_t)t->layout.len;
    vec_push(&t->layout, l);
    vec_push(&t->hash, h);
    return (LayoutId)(t->layout.len - 1);
}

LayoutId layouts_intern(LayoutTable *t, int64_t extent, const int32_t *nspan, const Span *span) {
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        for (int i = 0; i < nspan[r]; i++, span++) draft_add(&d, span->begin, span->end);
    }
    return intern(t, extent, &d);
}

LayoutId layouts_even_blocks(LayoutTable *t, int64_t extent, int64_t unit) {
    CHECK(unit >= 1 && extent % unit == 0, "extent %lld is no multiple of %lld", (long long)extent, (long long)unit);
    int64_t n = extent / unit, base = n / t->nranks, extra = n % t->nranks, at = 0;
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        int64_t end = at + base + (r < extra);
        draft_rank(&d);
        draft_add(&d, at * unit, end * unit);
        at = end;
    }
    return intern(t, extent, &d);
}

LayoutId layouts_even(LayoutTable *t, int64_t extent) { return layouts_even_blocks(t, extent, 1); }

LayoutId layouts_cuts(LayoutTable *t, int64_t extent, const int64_t *cut) {
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        draft_add(&d, cut[r], cut[r + 1]);
    }
    return intern(t, extent, &d);
}

// ---- derived layouts -----------------------------------------------------------------------------------------------------

LayoutId layout_slice(LayoutTable *t, LayoutId in, int64_t start, int64_t step, int64_t n) {
    CHECK(step >= 1, "step %lld", (long long)step);
    const Layout *l = layouts_get(t, in);
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        for (int i = 0; i < layout_nspan(l, r); i++) {
            // the j with begin <= start + j*step < end
            Span s = layout_spans(l, r)[i];
            int64_t lo = s.begin <= start ? 0 : ceil_div(s.begin - start, step);
            int64_t hi = s.end <= start ? 0 : ceil_div(s.end - start, step);
            draft_add(&d, min_i64(lo, n), min_i64(hi, n));
        }
    }
    return intern(t, n, &d);
}

LayoutId layout_pad(LayoutTable *t, LayoutId in, int64_t lo, int64_t hi) {
    const Layout *l = layouts_get(t, in);
    int64_t n = l->extent, total = lo + n + hi;
    Draft d = {0};
    bool low_done = n == 0, high_done = n == 0;  // one owner only, also where the layout overlaps
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        if (n == 0 && r == 0) draft_add(&d, 0, total);  // nothing to be near to: the first rank makes the padding
        for (int i = 0; i < layout_nspan(l, r); i++) {
            Span s = layout_spans(l, r)[i];
            int64_t begin = s.begin + lo, end = s.end + lo;
            if (s.begin == 0 && !low_done) begin = 0, low_done = true;
            if (s.end == n && !high_done) end = total, high_done = true;
            draft_add(&d, begin, end);
        }
    }
    return intern(t, total, &d);
}

LayoutId layout_merge(LayoutTable *t, LayoutId in, int64_t outer, int64_t inner) {
    const Layout *l = layouts_get(t, in);
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        for (int64_t o = 0; o < outer; o++)
            for (int i = 0; i < layout_nspan(l, r); i++) {
                Span s = layout_spans(l, r)[i];
                draft_add(&d, (o * l->extent + s.begin) * inner, (o * l->extent + s.end) * inner);
            }
    }
    return intern(t, outer * l->extent * inner, &d);
}

// Cuts rank r's spans of `l` at multiples of `period` and appends those of period block `o` (relative to it) to `out`, advancing
// *at (span index) and *skip (elements of that span already used). Stops at the first span that lies in another block.
static void take_block(const Layout *l, int r, int64_t period, int64_t o, int *at, int64_t *skip, Draft *out) {
    while (*at < layout_nspan(l, r)) {
        Span s = layout_spans(l, r)[*at];
        int64_t begin = s.begin + *skip;
        if (begin < o * period || begin >= (o + 1) * period) return;
        int64_t end = min_i64(s.end, (o + 1) * period);
        draft_add(out, begin - o * period, end - o * period);
        if (end == s.end)
            *at += 1, *skip = 0;
        else
            *skip = end - s.begin;
    }
}

bool layout_split(LayoutTable *t, LayoutId merged, int64_t outer, int64_t mid, int64_t inner, LayoutId *out) {
    const Layout *l = layouts_get(t, merged);
    CHECK(l->extent == outer * mid * inner, "split of %lld into %lld x %lld x %lld", (long long)l->extent, (long long)outer,
          (long long)mid, (long long)inner);
    if (l->extent == 0) return false;
    Draft d = {0}, probe = {0};
    bool ok = true;
    for (int r = 0; r < t->nranks && ok; r++) {
        draft_rank(&d);
        int at = 0;
        int64_t skip = 0;
        int64_t start = d.span.len;
        take_block(l, r, mid * inner, 0, &at, &skip, &d);
        for (int64_t i = start; i < d.span.len; i++) ok &= d.span.data[i].begin % inner == 0 && d.span.data[i].end % inner == 0;
        for (int64_t o = 1; o < outer && ok; o++) {  // every further block must own the same, in the same order
            probe.span.len = probe.first.len = 0;
            draft_rank(&probe);
            take_block(l, r, mid * inner, o, &at, &skip, &probe);
            int64_t n = d.span.len - start;
            ok = probe.span.len == n && (n == 0 || !memcmp(probe.span.data, d.span.data + start, sizeof(Span) * (size_t)n));
        }
        ok &= at == layout_nspan(l, r);
    }
    vec_free(&probe.span);
    vec_free(&probe.first);
    if (!ok) {
        vec_free(&d.span);
        vec_free(&d.first);
        return false;
    }
    for (int64_t i = 0; i < d.span.len; i++) d.span.data[i].begin /= inner, d.span.data[i].end /= inner;
    *out = intern(t, mid, &d);
    return true;
}

LayoutId layout_select(LayoutTable *t, LayoutId in, int n, const Span *interval) {
    const Layout *l = layouts_get(t, in);
    int64_t extent = 0;
    for (int k = 0; k < n; k++) extent += interval[k].end - interval[k].begin;
    Draft d = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        for (int i = 0; i < layout_nspan(l, r); i++) {
            Span s = layout_spans(l, r)[i];
            int64_t at = 0;  // where interval k begins in the new axis
            for (int k = 0; k < n && interval[k].begin < s.end; at += interval[k].end - interval[k].begin, k++) {
                int64_t begin = max_i64(s.begin, interval[k].begin), end = min_i64(s.end, interval[k].end);
                draft_add(&d, at + begin - interval[k].begin, at + max_i64(end, begin) - interval[k].begin);
            }
        }
    }
    return intern(t, extent, &d);
}

LayoutId layout_concat(LayoutTable *t, int n, const LayoutId *part) {
    Draft d = {0};
    int64_t extent = 0;
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        int64_t base = 0;
        for (int p = 0; p < n; p++) {
            const Layout *l = layouts_get(t, part[p]);
            for (int i = 0; i < layout_nspan(l, r); i++) draft_add(&d, base + layout_spans(l, r)[i].begin, base + layout_spans(l, r)[i].end);
            base += l->extent;
        }
        extent = base;
    }
    return intern(t, extent, &d);
}

// Appends the union of what one rank needs, ascending: widened spans of a rank may overlap each other, in whatever order it stores them.
static void draft_union(Draft *d, Span *need, int64_t n) {
    bool sorted = true;
    for (int64_t i = 1; i < n; i++) sorted &= need[i - 1].begin <= need[i].begin;
    if (!sorted) qsort(need, (size_t)n, sizeof *need, compare_spans);
    int64_t done = INT64_MIN;
    for (int64_t i = 0; i < n; i++) {
        draft_add(d, max_i64(need[i].begin, done), need[i].end);
        done = max_i64(done, need[i].end);
    }
}

LayoutId layout_stencil(LayoutTable *t, LayoutId in, int64_t mul, int64_t lo, int64_t hi, int64_t extent_out) {
    const Layout *l = layouts_get(t, in);
    Draft d = {0};
    VEC(Span) need = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        need.len = 0;
        for (int i = 0; i < layout_nspan(l, r); i++) {
            Span s = layout_spans(l, r)[i];
            vec_push(&need, ((Span){max_i64(0, s.begin * mul + lo), min_i64(extent_out, (s.end - 1) * mul + hi + 1)}));
        }
        draft_union(&d, need.data, need.len);
    }
    vec_free(&need);
    return intern(t, extent_out, &d);
}

LayoutId layout_group(LayoutTable *t, LayoutId in, int64_t group) {
    const Layout *l = layouts_get(t, in);
    CHECK(l->extent % group == 0, "%lld in groups of %lld", (long long)l->extent, (long long)group);
    Draft d = {0};
    VEC(Span) need = {0};
    for (int r = 0; r < t->nranks; r++) {
        draft_rank(&d);
        need.len = 0;
        for (int i = 0; i < layout_nspan(l, r); i++) {
            Span s = layout_spans(l, r)[i];
            vec_push(&need, ((Span){s.begin / group, ceil_div(s.end, group)}));
        }
        draft_union(&d, need.data, need.len);
    }
    vec_free(&need);
    return intern(t, l->extent / group, &d);
}
