// fuse, for backends that take fused nodes of the second form (docs/cuda.md): what would go over the same memory becomes one
// kernel.
//
//   %5 = add(%1, %2)                                  %5, %9, %8 = fused(%1, %2, %3) {shape=[S,D], row=1, prog={...
//   %6 = mul(%5, %5)                                      $2 = add($0, $1); $3 = mul($2, $2); $4 = row_sum($3); ...
//   %7 = sum(%6) {dims=[1]}           ->                  $9 = mul($2, $8) ...; out $2 $8 $9}}
//   %8 = rsqrt(%7)
//   %9 = mul(%5, %8)
//   %10 = permute(%9)                                 a reader of %10 that is pointwise reads %9 through a view
//
// Requires: placements (shard ran). Establishes: the same values wherever they are used outside of a kernel; what is used only
// inside is never stored. A group is a set of nodes of one phase; its program is written from what is needed outside, each
// value under the view under which it is wanted, so that movements vanish and what stands behind them is computed where it
// lands. Nodes join in graph order: the groups of their operands, then groups that read the same large values. Whether they may
// is decided by trying: a program must exist (fuse_emit.c), within limits, in one of the members' spaces, and no path may leave
// the group and come back (fuse_order.c).
#include "pass/fuse_rows.h"

// ---- trying ---------------------------------------------------------------------------------------------------------------

static int compare_nodes(const void *a, const void *b) { return *(const NodeId *)a < *(const NodeId *)b ? -1 : 1; }

static Space natural_space(const Fuse *f, NodeId at) {
    const Node *n = graph_node(f->g, at);
    const Value *v = graph_value(f->g, f->kind[at] == FUSE_REDUCE ? n->in[0] : n->out[0]);
    return (Space){.shape = v->shape, .place = v->place};
}

static bool same_space(const Space *a, const Space *b) {
    return shape_equal(&a->shape, &b->shape) && placement_equal(&a->place, &b->place);
}

// Which row: none if nothing asks for one, else the first number of dims with which there is a program.
static bool try_rows(Fuse *f, Group *p, Space *s, bool reduces) {
    int first = s->row;
    for (int k = -1; k <= s->shape.ndim; k++) {
        s->row = k < 0 ? first : k;
        if ((k < 0 && first == 0) || (k >= 0 && k == first && first) || (reduces && s->row == 0)) continue;
        if (fuse_emit(f, p->member, p->n, s)) return true;
    }
    return false;
}

static void note_program(Fuse *f, Group *p, const Space *s) {
    const Emit *e = f->emit;
    p->space = *s;
    p->ninstr = e->ninstr;
    p->viewed = false;
    p->nin = p->nwide = 0;
    for (int i = 0; i < e->nin; i++) {
        const Shape *in = graph_shape(f->g, e->in[i]);
        p->viewed |= !view_is_broadcast(&e->view[i], in, &s->shape);
        p->in[p->nin++] = e->in[i];
        if (shape_numel(in) < shape_numel(&s->shape)) continue;
        p->in[p->nin - 1] = p->in[p->nwide];
        p->in[p->nwide++] = e->in[i];
    }
}

// One group of the groups join[] and node `at` (NO_NODE: none), into *out. Nodes after `last` are not part of any group yet.
static bool try_group(Fuse *f, const int32_t *join, int njoin, NodeId at, NodeId last, Group *out) {
    Space space[FUSE_JOIN + 2];
    int nspace = 0;
    bool reduces = false;
    *out = (Group){0};
    for (int j = 0; j < njoin; j++) {
        const Group *p = f->groups.data[join[j]];
        if (out->n + p->n >= FUSE_MEMBERS) return false;
        memcpy(out->member + out->n, p->member, sizeof(NodeId) * (size_t)p->n);
        out->n += p->n;
        bool known = false;
        for (int k = 0; k < nspace && !known; k++) {
            known = same_space(&space[k], &p->space);
            if (known && !space[k].row) space[k].row = p->space.row;
        }
        if (!known) space[nspace++] = p->space;
    }
    if (at != NO_NODE) {
        out->member[out->n++] = at;
        Space s = natural_space(f, at);
        bool known = false;
        for (int k = 0; k < nspace; k++) known |= same_space(&space[k], &s);
        if (!known) space[nspace++] = s;
    }
    qsort(out->member, (size_t)out->n, sizeof(NodeId), compare_nodes);
    for (int i = 0; i < out->n; i++) reduces |= f->kind[out->member[i]] == FUSE_REDUCE;
    fuse_mark(f, out->member, out->n);
    if (fuse_path_outside(f, out->member, out->n, last)) return false;
    for (int k = 0; k < nspace; k++)
        if (try_rows(f, out, &space[k], reduces)) {
            note_program(f, out, &space[k]);
            return true;
        }
    return false;
}

// ---- joining --------------------------------------------------------------------------------------------------------------

static Group *new_group(Fuse *f, const Group *from, int32_t into) {
    Group *p = into < 0 ? ARENA_NEW(f->a, Group) : f->groups.data[into];
    if (into < 0) {
        into = (int32_t)f->groups.len;
        vec_push(&f->groups, p);
    }
    *p = *from;
    for (int i = 0; i < p->n; i++) f->group[p->member[i]] = into;
    return p;
}

static int32_t merge(Fuse *f, const int32_t *join, int njoin, const Group *whole) {
    for (int j = 1; j < njoin; j++) f->groups.data[join[j]] = NULL;
    new_group(f, whole, njoin ? join[0] : -1);
    return f->group[whole->member[0]];
}

typedef struct Candidates {
    int32_t group[32];
    int n;
} Candidates;

static void add_candidate(const Fuse *f, int32_t k, Phase phase, Candidates *c) {
    if (k < 0 || c->n == 32 || graph_node(f->g, f->groups.data[k]->member[0])->phase != phase) return;
    for (int i = 0; i < c->n; i++)
        if (c->group[i] == k) return;
    NodeId last = f->groups.data[k]->member[f->groups.data[k]->n - 1];
    int at = c->n++;
    for (; at > 0; at--) {  // the one that ends last first: others may lie on its way
        const Group *q = f->groups.data[c->group[at - 1]];
        if (q->member[q->n - 1] > last) break;
        c->group[at] = c->group[at - 1];
    }
    c->group[at] = k;
}

// The groups that a node's operands come from, through movements.
static void producers(const Fuse *f, NodeId at, Phase phase, Candidates *c) {
    const Node *n = graph_node(f->g, at);
    for (int i = 0; i < n->nin; i++) {
        NodeId def = graph_value(f->g, n->in[i])->def;
        if (f->group[def] >= 0) add_candidate(f, f->group[def], phase, c);
        else if (f->kind[def] == FUSE_MOVE) producers(f, def, phase, c);
    }
}

// A group that would wait for a node far behind it keeps its inputs until then: only where that is no more than its results.
static bool waits_too_long(const Fuse *f, int32_t k, NodeId at) {
    enum { FAR = 100 };
    const Group *p = f->groups.data[k];
    return at - p->member[p->n - 1] > FAR && p->nwide > 1;
}

// Node `at` joins as many of the groups of its operands as can be; one may become possible by another.
static void place_node(Fuse *f, NodeId at) {
    Phase phase = graph_node(f->g, at)->phase;
    Candidates c = {.n = 0};
    int32_t join[FUSE_JOIN + 1];
    int njoin = 0;
    Group best, now;
    producers(f, at, phase, &c);
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < c.n && njoin < FUSE_JOIN; i++) {
            if (c.group[i] < 0 || waits_too_long(f, c.group[i], at)) continue;
            join[njoin] = c.group[i];
            if (!try_group(f, join, njoin + 1, at, at, &now)) continue;
            best = now;
            njoin++;
            c.group[i] = -1;
            again = true;
        }
    }
    if (njoin) {
        merge(f, join, njoin, &best);
    } else if (f->kind[at] == FUSE_POINTWISE) {
        if (try_group(f, NULL, 0, at, at, &now)) new_group(f, &now, -1);
    } else if (f->kind[at] == FUSE_REDUCE) {  // waits for company
        now = (Group){.n = 1, .member = {at}, .space = natural_space(f, at)};
        new_group(f, &now, -1);
    }
}

// Groups that read value v, through movements.
static void readers(const Fuse *f, ValueId v, NodeId last, Phase phase, Candidates *c) {
    for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++) {
        NodeId user = f->uses.use[u].node;
        if (user == NO_NODE || user > last) break;
        if (f->group[user] >= 0) add_candidate(f, f->group[user], phase, c);
        else if (f->kind[user] == FUSE_MOVE) readers(f, graph_node(f->g, user)->out[0], last, phase, c);
    }
}

// The groups that may become one with group k: those that read the same large values in the same space and ended not long ago
// (the values are read once), and those that make its inputs (which may have been impossible until now).
static Candidates partners(const Fuse *f, int32_t k, NodeId at) {
    enum { NEAR = 40 };
    const Group *p = f->groups.data[k];
    Phase phase = graph_node(f->g, p->member[0])->phase;
    Candidates near = {.n = 0}, c = {.n = 0};
    for (int i = 0; i < p->nin; i++) {
        NodeId def = graph_value(f->g, p->in[i])->def;
        if (f->group[def] >= 0) add_candidate(f, f->group[def], phase, &c);
        else if (f->kind[def] == FUSE_MOVE) producers(f, def, phase, &c);
    }
    for (int i = 0; i < p->nwide; i++) readers(f, p->in[i], at, phase, &near);
    for (int i = 0; i < near.n; i++) {
        const Group *q = f->groups.data[near.group[i]];
        if (at - q->member[q->n - 1] <= NEAR && same_space(&p->space, &q->space)) add_candidate(f, near.group[i], phase, &c);
    }
    return c;
}

static void join_partners(Fuse *f, NodeId at) {
    for (bool again = true; again && f->group[at] >= 0;) {
        int32_t mine = f->group[at];
        Candidates c = partners(f, mine, at);
        again = false;
        for (int i = 0; i < c.n && !again; i++) {
            Group whole;
            int32_t join[2] = {mine, c.group[i]};
            if (c.group[i] == mine || waits_too_long(f, c.group[i], at) || !try_group(f, join, 2, NO_NODE, at, &whole)) continue;
            merge(f, join, 2, &whole);
            again = true;
        }
    }
}

// ---- the pass -------------------------------------------------------------------------------------------------------------

Status pass_fuse_rows(PassContext *c, Graph *in, Graph **out, Diag *d) {
    Fuse f = {.g = in, .a = c->scratch, .uses = uses_collect(in, c->scratch)};
    f.kind = ARENA_ARRAY(c->scratch, uint8_t, in->nodes.len);
    f.through = ARENA_ARRAY(c->scratch, bool, in->nodes.len);
    f.group = ARENA_ARRAY(c->scratch, int32_t, in->nodes.len);
    f.inside = ARENA_ARRAY(c->scratch, int32_t, in->nodes.len);
    f.visited = ARENA_ARRAY(c->scratch, int32_t, in->nodes.len);
    f.emit = ARENA_NEW(c->scratch, Emit);
    for (int64_t i = 0; i < in->nodes.len; i++) f.group[i] = -1;
    fuse_classify(&f);
    for (int64_t i = 0; i < in->nodes.len; i++) {
        NodeId at = (NodeId)i;
        bool vanishes = f.kind[at] == FUSE_MOVE && (f.through[at] || graph_node(in, at)->op == OP_RESHAPE);
        if (f.kind[at] == FUSE_OPAQUE || vanishes) continue;
        place_node(&f, at);
        join_partners(&f, at);
    }
    Status st = fuse_rewrite(&f, out, d);
    vec_free(&f.groups);
    vec_free(&f.stack);
    return st;
}
