// From pieces to messages: for every rank the boxes to pack, where the packed messages lie, and the boxes to unpack.
#include "plan/reshard.h"

typedef struct Maker {
    Arena *arena;
    const LayoutTable *layouts;
    const PieceList *list;
    const Placement *from, *to;
    int nranks;
    int64_t elem;            // bytes
    int64_t *order;          // piece indices in the order wanted
} Maker;

// Sorts piece indices by (rank, peer), keeping their order otherwise: two counting sorts. first[r] is where rank r's begin.
static void sort_pieces(const Maker *m, bool sending, int64_t *first) {
    int64_t n = m->list->piece.len;
    int64_t *tmp = malloc(sizeof *tmp * (size_t)(n > 0 ? n : 1));
    CHECK(tmp != NULL, "out of memory for %lld pieces", (long long)n);
    const Piece *p = m->list->piece.data;
    for (int pass = 0; pass < 2; pass++) {
        bool by_source = (pass == 1) == sending;
        for (int r = 0; r <= m->nranks; r++) first[r] = 0;
        for (int64_t i = 0; i < n; i++) first[(by_source ? p[i].source : p[i].target) + 1]++;
        for (int r = 0; r < m->nranks; r++) first[r + 1] += first[r];
        for (int64_t i = 0; i < n; i++) {
            int64_t k = pass == 0 ? i : tmp[i];
            (pass == 0 ? tmp : m->order)[first[by_source ? p[k].source : p[k].target]++] = k;
        }
        for (int r = m->nranks; r > 0; r--) first[r] = first[r - 1];
        first[0] = 0;
    }
    free(tmp);
}

static Box box_from_piece(const Maker *m, const Piece *p, bool sending) {
    const PieceList *l = m->list;
    Box b = {.peer = sending ? p->target : p->source, .ndim = l->shape.ndim};
    for (int i = 0; i < b.ndim; i++) b.size[i] = l->shape.dim[i];
    for (int k = 0; k < l->ndim; k++) {
        b.size[l->dim[k]] = p->size[k];
        b.start[l->dim[k]] = sending ? p->source_start[k] : p->target_start[k];
    }
    return b;
}

static int64_t box_numel(const Box *b) {
    int64_t n = 1;
    for (int i = 0; i < b->ndim; i++) n *= b->size[i];
    return n;
}

// Element offset of a box that is one run of the value's storage, -1 if it is not.
static int64_t box_contiguous(const Box *b, const Shape *local) {
    int i = b->ndim - 1;
    while (i >= 0 && b->size[i] == local->dim[i]) i--;
    for (int k = 0; k < i; k++)
        if (b->size[k] != 1) return -1;
    int64_t off = 0;
    for (int k = 0; k < b->ndim; k++) off = off * local->dim[k] + b->start[k];
    return off;
}

static bool same_boxes(const Box *a, const Box *b, int n) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < a->ndim; k++)
            if (a[i].size[k] != b[i].size[k] || a[i].start[k] != b[i].start[k]) return false;
    return true;
}

// One side of one rank's exchange.
typedef struct Side {
    int nbox;
    const Box *box;
    int64_t *off, *nbytes;   // [nranks]
    int64_t staging;
    bool direct;
} Side;

// Every peer's message is one run of the value (and nothing has to be reduced in): no packing.
static bool side_direct(const Maker *m, const Box *box, int n, const Shape *local, int rank) {
    for (int i = 0; i < n; i++) {
        if (box[i].peer == rank) continue;
        if (i > 0 && box[i - 1].peer == box[i].peer) return false;
        if (i + 1 < n && box[i + 1].peer == box[i].peer) return false;
        if (box_contiguous(&box[i], local) < 0) return false;
    }
    return m->nranks > 1;
}

// Lays out the messages of boxes sorted by peer; when sending, equal neighbours share one. Returns the number of boxes kept.
static int side_pack(const Maker *m, Box *box, int n, int rank, bool sending, Side *s) {
    int kept = 0, last = 0, nlast = 0;  // the last packed message: boxes last..last+nlast
    for (int i = 0; i < n;) {
        int peer = box[i].peer, count = 0;
        while (i + count < n && box[i + count].peer == peer) count++;
        if (peer != rank && sending && count == nlast && same_boxes(&box[last], &box[i], count)) {
            s->off[peer] = s->off[box[last].peer];
            s->nbytes[peer] = s->nbytes[box[last].peer];
        } else {
            if (peer != rank) {
                last = kept;
                nlast = count;
                s->off[peer] = s->staging;
            }
            for (int k = 0; k < count; k++) {
                Box b = box[i + k];
                if (peer != rank) {
                    b.msg_off = s->staging / m->elem;
                    s->staging += box_numel(&b) * m->elem;
                }
                box[kept++] = b;
            }
            if (peer != rank) s->nbytes[peer] = s->staging - s->off[peer];
        }
        i += count;
    }
    return kept;
}

static void side_make(const Maker *m, int rank, bool sending, int64_t first, int64_t count, bool may_direct, Side *s) {
    *s = (Side){.off = ARENA_ARRAY(m->arena, int64_t, m->nranks), .nbytes = ARENA_ARRAY(m->arena, int64_t, m->nranks)};
    Box *box = ARENA_ARRAY(m->arena, Box, count);
    int n = 0;
    for (int64_t i = 0; i < count; i++) {
        box[n] = box_from_piece(m, &m->list->piece.data[m->order[first + i]], sending);
        if (box_numel(&box[n]) > 0) n++;
    }
    Shape local = placement_local_shape(m->layouts, sending ? m->from : m->to, &m->list->shape, rank);
    s->direct = may_direct && side_direct(m, box, n, &local, rank);
    if (s->direct) {
        for (int i = 0; i < n; i++) {
            if (box[i].peer == rank) continue;
            s->off[box[i].peer] = box_contiguous(&box[i], &local) * m->elem;
            s->nbytes[box[i].peer] = box_numel(&box[i]) * m->elem;
        }
    } else {
        n = side_pack(m, box, n, rank, sending, s);
    }
    s->nbox = n;
    s->box = box;
}

// Number of leading boxes, all from the first peer, that cover the local value; 0 if they do not.
static int cover_count(const Box *box, int n, int64_t numel) {
    int64_t covered = 0;
    int i = 0;
    for (; i < n && box[i].peer == box[0].peer; i++) covered += box_numel(&box[i]);
    return covered == numel ? i : 0;
}

static void fill_side(const Maker *m, Exchange *e, int rank, bool sending, int64_t first, int64_t count) {
    Side s;
    side_make(m, rank, sending, first, count, sending || e->reduce == RED_NONE, &s);
    if (sending) {
        e->nsend = s.nbox, e->send = s.box, e->send_off = s.off, e->send_nbytes = s.nbytes;
        e->send_staging = s.staging, e->send_direct = s.direct;
        return;
    }
    Shape local = placement_local_shape(m->layouts, m->to, &m->list->shape, rank);
    e->nrecv = s.nbox, e->recv = s.box, e->recv_off = s.off, e->recv_nbytes = s.nbytes;
    e->recv_staging = s.staging, e->recv_direct = s.direct;
    e->ncover = e->reduce == RED_NONE ? s.nbox : cover_count(s.box, s.nbox, shape_numel(&local));
}

static const Exchange *make(Arena *a, const LayoutTable *t, const Shape *shape, DType dtype, const Placement *from, const Placement *to,
                            int only) {
    PieceList list;
    reshard_pieces(t, shape, from, to, only, &list);
    int nranks = layouts_nranks(t), nmade = only == ALL_RANKS ? nranks : 1;
    int64_t n = list.piece.len;
    CHECK(n < INT32_MAX, "a reshard of %lld pieces", (long long)n);
    Maker m = {a, t, &list, from, to, nranks, dtype_nbytes(dtype), malloc(sizeof(int64_t) * (size_t)(n + nranks + 1))};
    CHECK(m.order != NULL, "out of memory for %lld pieces", (long long)n);
    int64_t *first = m.order + n;
    Exchange *e = ARENA_ARRAY(a, Exchange, nmade);
    for (int k = 0; k < nmade; k++) {
        e[k].reduce = list.reduces ? list.reduce : RED_NONE;
        e[k].collective = list.travels;
    }
    for (int sending = 0; sending < 2; sending++) {
        sort_pieces(&m, sending, first);
        for (int k = 0; k < nmade; k++) {
            int r = only == ALL_RANKS ? k : only;
            fill_side(&m, &e[k], r, sending, first[r], first[r + 1] - first[r]);
        }
    }
    free(m.order);
    vec_free(&list.piece);
    return e;
}

const Exchange *exchange_make(Arena *a, const LayoutTable *t, const Shape *shape, DType dtype, const Placement *from, const Placement *to) {
    return make(a, t, shape, dtype, from, to, ALL_RANKS);
}
const Exchange *exchange_make_one(Arena *a, const LayoutTable *t, const Shape *shape, DType dtype, const Placement *from,
                                  const Placement *to, int rank) {
    return make(a, t, shape, dtype, from, to, rank);
}

static int64_t piece_numel(const PieceList *l, const Piece *p) {
    int64_t n = p->size[0] * (l->ndim == 2 ? p->size[1] : 1);
    for (int i = 0; i < l->shape.ndim; i++)
        if (i != l->dim[0] && i != l->dim[1]) n *= l->shape.dim[i];
    return n;
}

// Where one rank's pieces travel none of the others need be made; where none travel there are few.
bool exchange_is_identity(const LayoutTable *t, const Shape *shape, const Placement *from, const Placement *to) {
    PieceList list;
    reshard_pieces(t, shape, from, to, 0, &list);
    bool same = !list.travels && !list.reduces;
    vec_free(&list.piece);
    if (!same) return false;
    reshard_pieces(t, shape, from, to, ALL_RANKS, &list);
    int nranks = layouts_nranks(t);
    int64_t *moved = calloc((size_t)nranks, sizeof *moved), *count = calloc((size_t)nranks, sizeof *count);
    CHECK(moved && count, "out of memory for %d ranks", nranks);
    for (int64_t i = 0; i < list.piece.len; i++) {
        const Piece *p = &list.piece.data[i];
        int64_t n = piece_numel(&list, p);
        moved[p->source] += n;
        count[p->source] += n > 0;
    }
    for (int r = 0; r < nranks && same; r++) {
        Shape a = placement_local_shape(t, from, shape, r), b = placement_local_shape(t, to, shape, r);
        same = count[r] <= 1 && moved[r] == shape_numel(&a) && moved[r] == shape_numel(&b);
    }
    free(moved);
    free(count);
    vec_free(&list.piece);
    return same;
}

const Exchange *plan_exchange(Arena *a, const Graph *g, const Shape *shape, DType dtype, const Placement *from,
                              const Placement *to, int rank) {
    return exchange_make_one(a, g->layouts, shape, dtype, from, to, rank);
}
