// Layers repeat, and a search tries many orders of the same kernels: what one takes is reckoned once for each op, attributes and
// operands. Some costs are dear (attention samples its mask; the scratch of a generated kernel is known when its source is).
#include "plan/lower.h"

typedef struct Entry {
    struct Entry *next;
    uint64_t key;
    Node node;               // op and attributes, copied: the graph may be gone
    const Operand *operand;  // [nin + nout]
    KernelWork work;
} Entry;

enum { SLOTS = 4096 };
struct PlanMemo {
    Arena *a;
    Entry *slot[SLOTS];
};

PlanMemo *plan_memo_new(Arena *a) {
    PlanMemo *m = ARENA_NEW(a, PlanMemo);
    m->a = a;
    return m;
}

static uint64_t operand_key(uint64_t h, const Operand *x) {
    int64_t rest[] = {x->dtype, x->ndim, x->sdim, (int64_t)(intptr_t)x->span};
    return hash_bytes(hash_bytes(h, rest, sizeof rest), x->dim, sizeof *x->dim * (size_t)x->ndim);
}

static uint64_t work_key(const Node *n, const Operand *in, const Operand *out) {
    int64_t head[] = {n->op, n->nin, n->nout, n->nattr};
    uint64_t h = hash_bytes(1, head, sizeof head);
    for (int i = 0; i < n->nattr; i++) {
        const Attr *x = &n->attr[i];
        int64_t what[] = {x->key, x->n, attr_kind(x->key) == ATTRK_INT ? x->u.i : attr_kind(x->key) == ATTRK_PROG ? x->u.prog->ninstr : 0};
        h = hash_bytes(h, what, sizeof what);
    }
    for (int k = 0; k < n->nin; k++) h = operand_key(h, &in[k]);
    for (int k = 0; k < n->nout; k++) h = operand_key(h, &out[k]);
    return h;
}

// Spans are a layout's own: equal layouts are one, and outlive every graph.
static bool same_operand(const Operand *x, const Operand *y) {
    if (x->dtype != y->dtype || x->ndim != y->ndim || x->sdim != y->sdim || x->nspan != y->nspan || x->span != y->span) return false;
    for (int i = 0; i < x->ndim; i++)
        if (x->dim[i] != y->dim[i] || x->global[i] != y->global[i]) return false;
    return true;
}

static bool same_work(const Entry *e, uint64_t key, const Node *n, const Operand *in, const Operand *out) {
    if (e->key != key || e->node.op != n->op || e->node.nin != n->nin || e->node.nout != n->nout) return false;
    for (int k = 0; k < n->nin + n->nout; k++)
        if (!same_operand(&e->operand[k], k < n->nin ? &in[k] : &out[k - n->nin])) return false;
    return attrs_equal(&e->node, n);
}

static Attr copy_attr(Arena *a, const Attr *x) {
    Attr c = *x;
    if (attr_kind(x->key) == ATTRK_INTS) c.u.ints = arena_copy(a, x->u.ints, sizeof *x->u.ints * (size_t)x->n);
    if (attr_kind(x->key) == ATTRK_STR) c.u.str = arena_strdup(a, x->u.str);
    if (attr_kind(x->key) == ATTRK_PROG) {
        Program *p = ARENA_NEW(a, Program);
        *p = *x->u.prog;
        p->instr = arena_copy(a, p->instr, sizeof *p->instr * (size_t)p->ninstr);
        p->out = arena_copy(a, p->out, sizeof *p->out * (size_t)p->nout);
        c.u.prog = p;
    }
    return c;
}

static Entry *add_entry(PlanMemo *m, uint64_t key, const Node *n, const Operand *in, const Operand *out) {
    Entry *e = ARENA_NEW(m->a, Entry);
    Operand *op = ARENA_ARRAY(m->a, Operand, n->nin + n->nout);
    Attr *attr = ARENA_ARRAY(m->a, Attr, n->nattr);
    for (int k = 0; k < n->nin + n->nout; k++) op[k] = k < n->nin ? in[k] : out[k - n->nin];
    for (int i = 0; i < n->nattr; i++) attr[i] = copy_attr(m->a, &n->attr[i]);
    *e = (Entry){.next = m->slot[key % SLOTS], .key = key, .node = *n, .operand = op};
    e->node.attr = attr;
    e->node.in = e->node.out = NULL;
    m->slot[key % SLOTS] = e;
    return e;
}

KernelWork plan_work(PlanMemo *m, const PlanOptions *o, const Node *n, const Operand *in, const Operand *out) {
    uint64_t key = work_key(n, in, out);
    for (Entry *e = m->slot[key % SLOTS]; e; e = e->next)
        if (same_work(e, key, n, in, out)) return e->work;
    Entry *e = add_entry(m, key, n, in, out);
    if (o->backend->scratch) e->work.scratch_nbytes = (int64_t)o->backend->scratch(n, in, out, o->nthreads);
    if (op_info(n->op)->cost) op_info(n->op)->cost(n, in, out, &e->work.cost);
    e->work.seconds = cost_seconds(o->device, n, in, out, &e->work.cost);
    return e->work;
}
