// Reshards between every pair of placements against direct assembly; arena offsets of random buffers.
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "comm/comm.h"
#include "exec/exchange.h"
#include "plan/reshard.h"

enum { MAX_RANKS = 5 };

static uint64_t rng = 1;
static int64_t draw(int64_t n) {  // [0, n)
    rng = hash_bytes(rng, "x", 1);
    return (int64_t)(rng % (uint64_t)n);
}

// ---- placements ---------------------------------------------------------------------------------------------------------
static Placement zigzag(LayoutTable *t, int dim, int64_t extent) {
    int n = layouts_nranks(t);
    int32_t count[MAX_RANKS];
    Span span[2 * MAX_RANKS];
    for (int r = 0; r < n; r++) {
        count[r] = 2;
        span[2 * r] = (Span){extent * r / (2 * n), extent * (r + 1) / (2 * n)};
        span[2 * r + 1] = (Span){extent * (2 * n - 1 - r) / (2 * n), extent * (2 * n - r) / (2 * n)};
    }
    return shard_on(dim, layouts_intern(t, extent, count, span));
}

static int all_placements(LayoutTable *t, const Shape *s, Placement *p) {
    int n = 0;
    p[n++] = REPLICATE;
    p[n++] = PARTIAL_SUM;
    p[n++] = PARTIAL_MAX;
    for (int d = 0; d < s->ndim; d++) {
        int64_t extent = s->dim[d], cut[MAX_RANKS + 1] = {0};
        LayoutId even = layouts_even(t, extent), halo = layout_stencil(t, even, 1, -2, 1, extent);
        p[n++] = shard_on(d, even);
        p[n++] = zigzag(t, d, extent);
        for (int r = 1; r < layouts_nranks(t); r++) cut[r] = min_i64(extent, cut[r - 1] + draw(4));
        cut[layouts_nranks(t)] = extent;
        p[n++] = shard_on(d, layouts_cuts(t, extent, cut));
        p[n++] = shard_on(d, halo);
        p[n++] = shard_sum_on(d, halo);
        p[n++] = (Placement){PLACE_SHARD, RED_MAX, d, halo};
        if (extent % 3 == 0) p[n++] = shard_on(d, layout_merge(t, layouts_even(t, extent / 3), 3, 1));
    }
    return n;
}

static bool is_terms(const Placement *p, Reduce *reduce) {
    *reduce = p->kind == PLACE_REPLICATE ? RED_NONE : p->reduce;
    return *reduce != RED_NONE;
}

// Global index of each local element of `rank`; returns how many there are.
static int64_t local_elements(const LayoutTable *t, const Placement *p, const Shape *s, int rank, int64_t *global) {
    Shape local = placement_local_shape(t, p, s, rank);
    int64_t n = shape_numel(&local), along[64], m = 0;
    if (p->kind == PLACE_SHARD) {
        const Layout *l = layouts_get(t, p->layout);
        for (int i = 0; i < layout_nspan(l, rank); i++)
            for (int64_t x = layout_spans(l, rank)[i].begin; x < layout_spans(l, rank)[i].end; x++) along[m++] = x;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t rest = i, stride = 1;
        global[i] = 0;
        for (int d = s->ndim - 1; d >= 0; d--) {
            int64_t x = rest % local.dim[d];
            rest /= local.dim[d];
            global[i] += stride * (p->kind == PLACE_SHARD && p->dim == d ? along[x] : x);
            stride *= s->dim[d];
        }
    }
    return n;
}

// ---- one case -----------------------------------------------------------------------------------------------------------
typedef struct Case {
    Placement from, to;
    int nhop;
    Hop hop[RESHARD_MAX_HOPS];
    const Exchange *exchange[RESHARD_MAX_HOPS];
    double *part[MAX_RANKS];  // source, then result
} Case;
enum { NUMEL_MAX = 2048 };

// Parts whose meaning is value[]: copies, or terms that sum to it or have it as their maximum.
static void make_parts(const LayoutTable *t, const Shape *s, const double *value, Case *c) {
    Reduce reduce;
    bool terms = is_terms(&c->from, &reduce);
    double left[NUMEL_MAX];
    int holders[NUMEL_MAX] = {0};
    int64_t global[NUMEL_MAX];
    memcpy(left, value, sizeof left);
    for (int r = 0; r < layouts_nranks(t); r++)
        for (int64_t i = local_elements(t, &c->from, s, r, global) - 1; i >= 0; i--) holders[global[i]]++;
    for (int r = 0; r < layouts_nranks(t); r++) {
        c->part[r] = calloc(NUMEL_MAX, sizeof(double));
        int64_t n = local_elements(t, &c->from, s, r, global);
        for (int64_t i = 0; i < n; i++) {
            int64_t k = global[i];
            bool last = --holders[k] == 0;
            double x = value[k];
            if (terms && reduce == RED_SUM) x = last ? left[k] : (double)draw(9) - 4;
            if (terms && reduce == RED_MAX && !last) x -= (double)draw(5);
            left[k] -= x;
            c->part[r][i] = x;
        }
    }
}

static void check_parts(const LayoutTable *t, const Shape *s, const double *value, const Case *c) {
    Reduce reduce;
    bool terms = is_terms(&c->to, &reduce);
    int64_t numel = shape_numel(s), global[NUMEL_MAX];
    double got[NUMEL_MAX];
    for (int64_t i = 0; i < numel; i++) got[i] = reduce == RED_MAX ? -1e300 : 0;
    for (int r = 0; r < layouts_nranks(t); r++) {
        int64_t n = local_elements(t, &c->to, s, r, global);
        for (int64_t i = 0; i < n; i++) {
            double x = c->part[r][i];
            if (!terms) assert_true(x == value[global[i]]);
            else if (reduce == RED_SUM) got[global[i]] += x;
            else if (x > got[global[i]]) got[global[i]] = x;
        }
    }
    for (int64_t i = 0; terms && i < numel; i++) assert_true(got[i] == value[i]);
}

// ---- ranks as threads that run all cases --------------------------------------------------------------------------------
typedef struct Worker {
    Comm *comm;
    const LayoutTable *layouts;
    Case *cases;
    int ncase;
    Status status;
    Diag diag;
} Worker;

static Operand operand_of(const LayoutTable *t, const Shape *s, const Placement *p, int rank, void *data) {
    Operand o = {.dtype = DT_F64, .ndim = s->ndim, .sdim = -1, .data = data};
    Shape local = placement_local_shape(t, p, s, rank);
    for (int i = 0; i < s->ndim; i++) o.dim[i] = local.dim[i];
    return o;
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    int rank = w->comm->rank;
    for (int i = 0; i < w->ncase && w->status == ST_OK; i++) {
        Case *c = &w->cases[i];
        for (int h = 0; h < c->nhop && w->status == ST_OK; h++) {
            const Exchange *e = &c->exchange[h][rank];
            Step s = {.exchange = e, .staging_send_nbytes = e->send_staging};
            double *result = calloc(NUMEL_MAX, sizeof *result);
            char *staging = malloc((size_t)(e->send_staging + e->recv_staging) + 1);
            Operand in = operand_of(w->layouts, &c->hop[h].shape, &c->hop[h].from, rank, c->part[rank]);
            Operand out = operand_of(w->layouts, &c->hop[h].shape, &c->hop[h].to, rank, result);
            w->status = exchange_run(w->comm, &(Memory){0}, &s, &in, &out, staging, "case", &w->diag);
            free(staging);
            free(c->part[rank]);
            c->part[rank] = result;
        }
    }
    return NULL;
}

static void check_sent(const Graph *g, const Shape *s, const Case *c) {
    for (int r = 0; r < graph_nranks(g); r++) {
        int64_t sent = 0;
        for (int h = 0; h < c->nhop; h++)
            for (int k = 0; k < graph_nranks(g); k++) sent += c->exchange[h][r].send_nbytes[k];
        assert_int_equal(sent, reshard_sent_nbytes(g, s, DT_F64, &c->from, &c->to, r));
    }
}

static void same_boxes(int n, const Box *a, const Box *b) {
    for (int i = 0; i < n; i++) {
        assert_int_equal(a[i].peer, b[i].peer);
        assert_int_equal(a[i].ndim, b[i].ndim);
        assert_int_equal(a[i].msg_off, b[i].msg_off);
        for (int k = 0; k < a[i].ndim; k++) assert_true(a[i].size[k] == b[i].size[k] && a[i].start[k] == b[i].start[k]);
    }
}

// What is made for one rank is what is made for it among all.
static void check_one(Arena *a, const Graph *g, const Case *c) {
    size_t nbytes = sizeof(int64_t) * (size_t)graph_nranks(g);
    for (int h = 0; h < c->nhop; h++)
        for (int r = 0; r < graph_nranks(g); r++) {
            const Exchange *x = &c->exchange[h][r];
            const Exchange *y = exchange_make_one(a, g->layouts, &c->hop[h].shape, DT_F64, &c->hop[h].from, &c->hop[h].to, r);
            assert_true(x->nsend == y->nsend && x->nrecv == y->nrecv && x->reduce == y->reduce && x->ncover == y->ncover);
            assert_true(x->collective == y->collective && x->send_direct == y->send_direct && x->recv_direct == y->recv_direct);
            assert_true(x->send_staging == y->send_staging && x->recv_staging == y->recv_staging);
            same_boxes(x->nsend, x->send, y->send);
            same_boxes(x->nrecv, x->recv, y->recv);
            assert_memory_equal(x->send_off, y->send_off, nbytes);
            assert_memory_equal(x->send_nbytes, y->send_nbytes, nbytes);
            assert_memory_equal(x->recv_off, y->recv_off, nbytes);
            assert_memory_equal(x->recv_nbytes, y->recv_nbytes, nbytes);
        }
}

static void run_cases(int nranks, Shape s, bool split_large) {
    Arena *a = arena_new();
    Graph *g = graph_new(a, "reshards", nranks);
    Placement place[64];
    int nplace = all_placements(g->layouts, &s, place), ncase = 0;
    Case *cases = calloc((size_t)(nplace * nplace), sizeof *cases);
    double value[NUMEL_MAX];
    for (int64_t i = 0; i < NUMEL_MAX; i++) value[i] = (double)draw(2000) - 1000;
    for (int i = 0; i < nplace * nplace; i++) {
        Case *c = &cases[ncase++];
        *c = (Case){.from = place[i / nplace], .to = place[i % nplace]};
        c->nhop = reshard_hops(g, &s, DT_F64, &c->from, &c->to, c->hop);
        bool all_reduce = c->from.kind == PLACE_PARTIAL && c->to.kind == PLACE_REPLICATE && nranks > 1;
        if (all_reduce && split_large) assert_int_equal(c->nhop, 2);
        for (int h = 0; h < c->nhop; h++)
            c->exchange[h] = exchange_make(a, g->layouts, &c->hop[h].shape, DT_F64, &c->hop[h].from, &c->hop[h].to);
        make_parts(g->layouts, &s, value, c);
        check_sent(g, &s, c);
        check_one(a, g, c);
        assert_non_null(reshard_name(g, &c->from, &c->to));
    }
    Comm *comm[MAX_RANKS];
    Worker worker[MAX_RANKS];
    pthread_t thread[MAX_RANKS];
    Diag d = {0};
    assert_int_equal(comm_threads_new(nranks, 20, comm, &d), ST_OK);
    for (int r = 0; r < nranks; r++) {
        worker[r] = (Worker){.comm = comm[r], .layouts = g->layouts, .cases = cases, .ncase = ncase};
        assert_int_equal(pthread_create(&thread[r], NULL, worker_main, &worker[r]), 0);
    }
    for (int r = 0; r < nranks; r++) {
        pthread_join(thread[r], NULL);
        if (worker[r].status != ST_OK) fail_msg("rank %d: %s", r, worker[r].diag.text);
        comm[r]->vt->free(comm[r]);
    }
    for (int i = 0; i < ncase; i++) {
        check_parts(g->layouts, &s, value, &cases[i]);
        for (int r = 0; r < nranks; r++) free(cases[i].part[r]);
    }
    free(cases);
    graph_free_vecs(g);
    arena_free(a);
}

static void test_reshard_pairs(void **state) {
    (void)state;
    for (int nranks = 1; nranks <= MAX_RANKS; nranks++) {
        run_cases(nranks, SHAPE(3, 7, 5), false);
        run_cases(nranks, SHAPE(9), false);
        run_cases(nranks, SHAPE(2, 3), false);
        run_cases(nranks, SHAPE(12, 4, 15), true);
    }
}

static void test_reshard_costs(void **state) {
    (void)state;
    Arena *a = arena_new();
    Graph *g = graph_new(a, "costs", 4);
    Shape s = SHAPE(1024, 64);
    Placement rep = REPLICATE, sum = PARTIAL_SUM, rows = shard_on(0, layouts_even(g->layouts, 1024));
    Placement cols = shard_on(1, layouts_even(g->layouts, 64));
    Placement halo = shard_on(0, layout_stencil(g->layouts, rows.layout, 1, -2, 0, 1024));
    int64_t whole = 1024 * 64 * 4;
    assert_int_equal(reshard_sent_nbytes(g, &s, DT_F32, &rep, &rows, 1), 0);
    assert_int_equal(reshard_sent_nbytes(g, &s, DT_F32, &rows, &rep, 1), whole / 4 * 3);
    assert_int_equal(reshard_sent_nbytes(g, &s, DT_F32, &rows, &cols, 1), whole / 16 * 3);
    assert_int_equal(reshard_sent_nbytes(g, &s, DT_F32, &sum, &rep, 1), whole / 4 * 3 * 2);
    assert_int_equal(reshard_sent_nbytes(g, &s, DT_F32, &rows, &halo, 1), 2 * 64 * 4);
    assert_string_equal(reshard_name(g, &sum, &rep), "all-reduce");
    assert_string_equal(reshard_name(g, &rows, &halo), "halo exchange");
    const Exchange *e = exchange_make(a, g->layouts, &s, DT_F32, &rows, &rep);
    assert_true(e->send_direct && e->recv_direct && e->collective);
    graph_free_vecs(g);
    arena_free(a);
}

// ---- offsets ------------------------------------------------------------------------------------------------------------
static void check_offsets(int n, const Buffer *b, int64_t total) {
    for (int i = 0; i < n; i++) {
        assert_int_equal(b[i].offset % 64, 0);
        assert_true(b[i].offset >= 0 && b[i].offset + b[i].nbytes <= total);
        for (int k = 0; k < i; k++) {
            bool together = b[i].first <= b[k].last && b[k].first <= b[i].last;
            bool apart = b[i].offset + b[i].nbytes <= b[k].offset || b[k].offset + b[k].nbytes <= b[i].offset;
            assert_true(!together || apart);
        }
    }
}

static void test_memory_random(void **state) {
    (void)state;
    for (int round = 0; round < 30; round++) {
        int n = 1 + (int)draw(400), nstep = 1 + (int)draw(300);
        Buffer *b = calloc((size_t)n, sizeof *b);
        for (int i = 0; i < n; i++) {
            b[i].first = (int32_t)draw(nstep);
            b[i].last = (int32_t)min_i64(nstep - 1, b[i].first + draw(draw(5) ? 6 : nstep));
            b[i].nbytes = draw(10) ? draw(100000) : 0;
        }
        int64_t bound = 0, total = memory_assign(n, b, &bound);
        check_offsets(n, b, total);
        assert_true(total >= bound && (double)total <= 1.25 * (double)bound + 4096);
        free(b);
    }
}

// The shape of a training step: every forward step leaves something for its mirror image in the backward.
static void test_memory_layers(void **state) {
    (void)state;
    enum { LAYERS = 64, OPS = 20, N = LAYERS * OPS };
    Buffer *b = calloc(3 * N, sizeof *b);
    int n = 0;
    for (int i = 0; i < N; i++) {
        b[n++] = (Buffer){.first = i, .last = i % 3 ? i + 1 : 2 * N - 1 - i, .nbytes = 64 * (1 + (i * 37 % OPS) * 100)};
        b[n++] = (Buffer){.first = N + i, .last = i + 2 < N ? N + i + 2 : 2 * N - 1, .nbytes = 64 * (1 + (i * 13 % OPS) * 50)};
    }
    int64_t bound = 0, total = memory_assign(n, b, &bound);
    check_offsets(n, b, total);
    assert_true((double)total <= 1.02 * (double)bound);
    free(b);
}

// ---- communicators ------------------------------------------------------------------------------------------------------
typedef struct Late {
    Comm *comm;
    bool absent, differs;
    Status status;
    Diag diag;
} Late;
static void *late_main(void *arg) {
    Late *l = arg;
    if (l->differs) l->status = comm_agree(l->comm, (uint64_t)(l->comm->rank == 2), "plan", &l->diag);
    else if (!l->absent) l->status = l->comm->vt->barrier(l->comm, "the start", &l->diag);
    return NULL;
}
static void run_late(Late *late, double timeout_s, bool differs) {
    Comm *comm[3];
    pthread_t thread[3];
    Diag d = {0};
    assert_int_equal(comm_threads_new(3, timeout_s, comm, &d), ST_OK);
    for (int r = 0; r < 3; r++) {
        late[r] = (Late){.comm = comm[r], .absent = r == 1, .differs = differs};
        pthread_create(&thread[r], NULL, late_main, &late[r]);
    }
    for (int r = 0; r < 3; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < 3; r++) comm[r]->vt->free(comm[r]);
}
static void test_comm_missing_rank(void **state) {
    (void)state;
    Late late[3];
    run_late(late, 0.05, false);
    assert_int_equal(late[0].status, ST_COMM);
    assert_int_equal(late[2].status, ST_COMM);
    assert_non_null(strstr(late[0].diag.text, "the start: waited 0.05 s for rank 1"));
}
static void test_comm_disagree(void **state) {
    (void)state;
    Late late[3];
    run_late(late, 20, true);
    for (int r = 0; r < 3; r++) assert_int_equal(late[r].status, ST_COMM);
    assert_non_null(strstr(late[0].diag.text, "rank 0 and rank 2 do not have the same plan"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reshard_pairs),  cmocka_unit_test(test_reshard_costs),     cmocka_unit_test(test_memory_random),
        cmocka_unit_test(test_memory_layers),  cmocka_unit_test(test_comm_missing_rank), cmocka_unit_test(test_comm_disagree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
