// Lowering of programs that no exporter wrote: arguments, targets and outputs of a real archive are changed and exchanged at
// random, consistently enough to pass the reader. Whatever comes out, a graph that verifies or an error, nothing may crash.
//   fuzz_lower SECONDS [ARCHIVE...]          SEED=n starts there, VERBOSE=1 prints every seed
#include <dirent.h>
#include <stdio.h>
#include <time.h>
#include "import/aten.h"

#ifndef TEST_DATA
#define TEST_DATA "test/data"
#endif

static uint64_t state = 88172645463325252ull;
static uint64_t draw(uint64_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return n ? (state >> 11) % n : 0;
}

static AtenNode *any_node(const Archive *ar) {
    const AtenGraph *g = ar->graph;
    AtenNode *n = &g->node[draw((uint64_t)g->nnode)];
    for (int i = 0; i < n->nin; i++)
        if (n->in[i].kind == ARG_GRAPH && n->in[i].graph->nnode && draw(2))
            return &n->in[i].graph->node[draw((uint64_t)n->in[i].graph->nnode)];
    return n;
}

static int64_t any_int(void) {
    static const int64_t odd[] = {0, 1, -1, 2, 3, -2, 7, 8, 64, -100, 1 << 20, INT64_MAX, INT64_MIN, INT64_MAX / 2, 1ll << 40};
    return odd[draw(sizeof odd / sizeof *odd)];
}

// Arrays are copied before they are written: the reader may share them.
static void change_numbers(Arena *a, Arg *x) {
    x->i = any_int();
    if (x->kind == ARG_FLOAT) x->f = draw(4) ? (double)any_int() : 0.0 / 0.0;
    if (x->n == 0 || !x->ints) return;
    x->ints = arena_copy(a, x->ints, sizeof *x->ints * (size_t)x->n);
    x->ints[draw((uint64_t)x->n)] = any_int();
}

static void change_names(Arena *a, Arg *x, const Arg *from) {
    if (x->n == 0 || !x->names || from->n == 0 || !from->names) return;
    x->names = arena_copy(a, x->names, sizeof *x->names * (size_t)x->n);
    x->names[draw((uint64_t)x->n)] = from->names[draw((uint64_t)from->n)];
}

static void mutate(Arena *a, Archive *ar) {
    AtenNode *n = any_node(ar), *m = any_node(ar);
    Arg *x = n->nin ? &n->in[draw((uint64_t)n->nin)] : NULL, *y = m->nin ? &m->in[draw((uint64_t)m->nin)] : NULL;
    switch (draw(7)) {
        case 0:
        case 1:
            if (x) change_numbers(a, x);
            break;
        case 2:
            if (x && y) change_names(a, x, y);
            break;
        case 3:  // another argument's value under this name
            if (x && y && y->kind != ARG_GRAPH) {
                const char *name = x->name;
                *x = *y;
                x->name = name;
            }
            break;
        case 4: n->target = m->target; break;
        case 5:
            if (x) n->nin--;
            break;
        default:
            if (n->nout) n->nout = (int)draw((uint64_t)n->nout + 1);
            break;
    }
}

static void one(const char *path, uint64_t seed, int64_t *nok) {
    Arena *a = arena_new();
    Diag d = {0};
    ImportReport r = {0};
    ImportOptions o = {.real = DT_F64, .batch = 2, .seq = 5};
    Archive *ar;
    Graph *g = NULL;
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    if (archive_open(a, path, NULL, &ar, &r, &d) == ST_OK) {
        int64_t *values = arena_alloc(a, sizeof *values * (size_t)(ar->nsymbol + 1));
        if (archive_bind(ar, o.batch, o.seq, a, values, &d) == ST_OK) {
            for (uint64_t k = 0, n = 1 + draw(3); k < n; k++) mutate(a, ar);
            if (lower_archive(a, ar, values, &o, &g, &r, &d) == ST_OK) {
                CHECK(graph_verify(g, "fuzz", &d) == ST_OK, "seed %llu of %s: %s", (unsigned long long)seed, path, d.text);
                graph_free_vecs(g);
                ++*nok;
            }
        }
    }
    vec_free(&r.notes);
    vec_free(&r.missing);
    vec_free(&r.leftover);
    arena_free(a);
}

// The programs of test/data/lower.
static int own_archives(char (*path)[512], int max) {
    int n = 0;
    DIR *d = opendir(TEST_DATA "/lower");
    for (struct dirent *e; d && n < max && (e = readdir(d));)
        if (strlen(e->d_name) > 4 && !strcmp(e->d_name + strlen(e->d_name) - 4, ".pt2"))
            snprintf(path[n++], sizeof *path, TEST_DATA "/lower/%s", e->d_name);
    if (d) closedir(d);
    return n;
}

int main(int argc, char **argv) {
    static char own[64][512];
    double limit = argc > 1 ? atof(argv[1]) : 5;
    int npath = argc > 2 ? argc - 2 : own_archives(own, 64);
    if (npath == 0) return fprintf(stderr, "fuzz_lower: no archives in " TEST_DATA "/lower\n"), 2;
    clock_t start = clock();
    int64_t n = 0, nok = 0;
    uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 1;
    for (; (double)(clock() - start) / CLOCKS_PER_SEC < limit; seed++, n++) {
        if (getenv("VERBOSE")) fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
        uint64_t k = seed % (uint64_t)npath;
        one(argc > 2 ? argv[2 + k] : own[k], seed, &nok);
    }
    printf("fuzz_lower: %lld programs, %lld of them lowered\n", (long long)n, (long long)nok);
    return 0;
}
