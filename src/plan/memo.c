#include "plan/memo.h"
#include "plan/lower.h"

#include <stdlib.h>
#include <string.h>

typedef struct Entry {
    uint64_t key[2];         // two hashes: different work with the same 128 bits is not to be expected
    KernelWork work;
} Entry;

struct KernelMemo {
    Reshards reshards;       // of one rank, over one table of layouts
    const LayoutTable *layouts;
    int rank;
    Entry *entry;            // open addressing; key 0, 0 is free
    int64_t len, cap;        // cap: a power of two
};

KernelMemo *kernel_memo_new(void) { return calloc(1, sizeof(KernelMemo)); }

void kernel_memo_free(KernelMemo *m) {
    if (m && m->reshards.a) arena_free(m->reshards.a);
    if (m) vec_free(&m->reshards.list);
    if (m) free(m->entry);
    free(m);
}

// Word by word: keys are made for every kernel of every trial.
static uint64_t mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return n ? hash_bytes(h, p, n) : h;
}

static uint64_t mix_operand(uint64_t h, const Operand *x) {
    int64_t head[] = {x->dtype, x->ndim, x->sdim, x->nspan};
    h = mix(h, head, sizeof head);
    h = mix(h, x->dim, sizeof *x->dim * (size_t)x->ndim);
    h = mix(h, x->global, sizeof *x->global * (size_t)x->ndim);
    return x->nspan ? mix(h, x->span, sizeof *x->span * (size_t)x->nspan) : h;
}

static uint64_t mix_program(uint64_t h, const Program *p) {
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        int64_t part[] = {x->code, x->dtype, x->a, x->b, x->c};
        h = mix(h, part, sizeof part);
        if (x->code == PROG_CONST) h = mix(h, &x->imm, sizeof x->imm);
    }
    return mix(h, p->out, sizeof *p->out * (size_t)p->nout);
}

static uint64_t mix_attr(uint64_t h, const Attr *a) {
    int64_t key = a->key;
    h = mix(h, &key, sizeof key);
    switch (attr_kind(a->key)) {
    case ATTRK_INTS: return mix(h, a->u.ints, sizeof *a->u.ints * (size_t)a->n);
    case ATTRK_STR: return mix(h, a->u.str, strlen(a->u.str));
    case ATTRK_PROG: return mix_program(h, a->u.prog);
    case ATTRK_FLOAT: return mix(h, &a->u.f, sizeof a->u.f);
    default: return mix(h, &a->u.i, sizeof a->u.i);
    }
}

Reshards *memo_reshards(KernelMemo *m, const LayoutTable *layouts, int rank) {
    if (!m) return NULL;
    if (!m->reshards.a) m->reshards.a = arena_new(), m->layouts = layouts, m->rank = rank;
    return m->reshards.a && m->layouts == layouts && m->rank == rank ? &m->reshards : NULL;
}

static uint64_t work_key(uint64_t seed, const PlanOptions *o, const Node *n, const Operand *in, const Operand *out) {
    int64_t head[] = {n->op, n->nin, n->nout, n->nattr, o->nthreads};
    uint64_t h = mix(seed, head, sizeof head);
    for (int i = 0; i < n->nin; i++) h = mix_operand(h, &in[i]);
    for (int i = 0; i < n->nout; i++) h = mix_operand(h, &out[i]);
    for (int i = 0; i < n->nattr; i++) h = mix_attr(h, &n->attr[i]);
    return h;
}

static Entry *find(const KernelMemo *m, const uint64_t key[2]) {
    int64_t i = (int64_t)(key[0] & (uint64_t)(m->cap - 1));
    while ((m->entry[i].key[0] || m->entry[i].key[1]) && (m->entry[i].key[0] != key[0] || m->entry[i].key[1] != key[1]))
        i = (i + 1) & (m->cap - 1);
    return &m->entry[i];
}

static bool grow(KernelMemo *m) {
    if (m->len * 2 < m->cap) return true;
    KernelMemo larger = *m;
    larger.cap = m->cap ? m->cap * 2 : 256;
    larger.entry = calloc((size_t)larger.cap, sizeof *larger.entry);
    if (!larger.entry) return false;
    for (int64_t i = 0; i < m->cap; i++)
        if (m->entry[i].key[0] || m->entry[i].key[1]) *find(&larger, m->entry[i].key) = m->entry[i];
    larger.len = m->len;
    free(m->entry);
    *m = larger;
    return true;
}

static KernelWork find_out(const PlanOptions *o, const Node *n, const Operand *in, const Operand *out) {
    KernelWork w = {0};
    if (o->backend->scratch) w.scratch_nbytes = o->backend->scratch(n, in, out, o->nthreads);
    if (op_info(n->op)->cost) op_info(n->op)->cost(n, in, out, &w.cost);
    w.seconds = cost_seconds(o->device, n, in, out, &w.cost);
    return w;
}

KernelWork kernel_work(KernelMemo *m, const PlanOptions *o, const Node *n, const Operand *in, const Operand *out) {
    if (!m || !grow(m)) return find_out(o, n, in, out);
    uint64_t key[2] = {work_key(1, o, n, in, out), work_key(0x9e3779b97f4a7c15u, o, n, in, out)};
    Entry *e = find(m, key);
    if (!e->key[0] && !e->key[1]) {
        *e = (Entry){{key[0], key[1]}, find_out(o, n, in, out)};
        m->len++;
    }
    return e->work;
}
