// fuse: pointwise nodes that share an iteration space become one node with a program.
//
//   %3 = mul(%1, %2)                                %5, %4 = fused(%1, %2) {prog={$0:f32 = input 0; $1:f32 = input 1;
//   %4 = silu(%3)              ->                            $2:f32 = mul($0, $1); $3:f32 = silu($2); ... out ...}}
//   %5 = add(%4, %1)
//
// Requires: placements (shard ran). Establishes: the same values wherever they are used outside a group; values used only inside
// are never stored. Members agree in shape, placement and phase. A group is emitted where its last member stood, so a node may
// join only while nothing outside the group that stands before it uses a member: then the order stays topological.
#include "ir/uses.h"
#include "ops/op.h"
#include "pass/pass.h"
#include "pass/rewrite.h"

enum { MAX_MEMBERS = 64, MAX_INPUTS = 24, MAX_GROUP_OUTPUTS = 16 };

typedef struct Group {
    int n;
    NodeId member[MAX_MEMBERS];  // in graph order
} Group;

typedef struct Fuse {
    const Graph *g;
    Arena *a;
    int32_t *group;         // [nodes] index into groups, -1 none
    VEC(Group *) groups;    // NULL once merged into another
    Uses uses;
} Fuse;

static bool fusible(const Graph *g, const Node *n) {
    if (!op_is_pointwise(n->op) || n->nout != 1) return false;
    const Value *v = graph_value(g, n->out[0]);
    return v->place.kind == PLACE_REPLICATE || v->place.kind == PLACE_SHARD;
}

static bool same_space(const Graph *g, NodeId a, NodeId b) {
    const Node *x = graph_node(g, a), *y = graph_node(g, b);
    const Value *u = graph_value(g, x->out[0]), *v = graph_value(g, y->out[0]);
    return x->phase == y->phase && shape_equal(&u->shape, &v->shape) && placement_equal(&u->place, &v->place);
}

// Whether every use of group k's members before node `at` lies inside group k or one of the groups in join[].
static bool may_wait(const Fuse *f, int32_t k, NodeId at, const int32_t *join, int njoin) {
    const Group *p = f->groups.data[k];
    for (int i = 0; i < p->n; i++) {
        ValueId v = graph_node(f->g, p->member[i])->out[0];
        for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++) {
            NodeId user = f->uses.use[u].node;
            if (user == NO_NODE || user >= at) break;  // in graph order, outputs last
            bool inside = false;
            for (int j = 0; j < njoin; j++) inside |= f->group[user] == join[j];
            if (!inside) return false;
        }
    }
    return true;
}

static int compare_nodes(const void *a, const void *b) { return *(const NodeId *)a < *(const NodeId *)b ? -1 : 1; }

// Distinct operands from outside and values needed outside, if the listed groups and node `at` became one.
static bool fits(const Fuse *f, NodeId at, const int32_t *join, int njoin) {
    NodeId member[MAX_MEMBERS];
    int n = 0;
    for (int j = 0; j < njoin; j++) {
        const Group *p = f->groups.data[join[j]];
        if (n + p->n >= MAX_MEMBERS) return false;
        memcpy(member + n, p->member, sizeof(NodeId) * (size_t)p->n);
        n += p->n;
    }
    member[n++] = at;
    ValueId in[MAX_INPUTS];
    int nin = 0, nout = 0;
    for (int i = 0; i < n; i++) {
        const Node *x = graph_node(f->g, member[i]);
        for (int k = 0; k < x->nin; k++) {
            bool known = false;
            for (int m = 0; m < n && !known; m++) known = graph_node(f->g, member[m])->out[0] == x->in[k];
            for (int m = 0; m < nin && !known; m++) known = in[m] == x->in[k];
            if (known || graph_def(f->g, x->in[k])->op == OP_FULL) continue;
            if (nin == MAX_INPUTS) return false;
            in[nin++] = x->in[k];
        }
        bool outside = false;
        for (int32_t u = f->uses.first[x->out[0]]; u < f->uses.first[x->out[0] + 1] && !outside; u++) {
            NodeId user = f->uses.use[u].node;
            bool inside = user == at;
            for (int j = 0; j < njoin && user != NO_NODE; j++) inside |= f->group[user] == join[j];
            outside = !inside;
        }
        nout += outside;
    }
    return nout <= MAX_GROUP_OUTPUTS;
}

// Node `at` joins the groups of its producers, as far as order and size allow; else it starts a group of its own.
static void place_node(Fuse *f, NodeId at) {
    const Node *n = graph_node(f->g, at);
    int32_t join[8];
    int njoin = 0;
    for (int k = 0; k < n->nin && njoin < 8; k++) {
        NodeId def = graph_value(f->g, n->in[k])->def;
        int32_t p = f->group[def];
        if (p < 0 || !same_space(f->g, def, at)) continue;
        bool seen = false;
        for (int j = 0; j < njoin; j++) seen |= join[j] == p;
        if (!seen) join[njoin++] = p;
    }
    for (bool again = true; again;) {  // dropping one may make another impossible
        again = false;
        for (int j = 0; j < njoin; j++)
            if (!may_wait(f, join[j], at, join, njoin)) {
                join[j--] = join[--njoin];
                again = true;
            }
    }
    while (njoin && !fits(f, at, join, njoin)) njoin--;
    for (int j = 0; j < njoin; j++)  // shrinking may have cut off a group that another waits for
        if (!may_wait(f, join[j], at, join, njoin)) njoin = 0;
    if (!njoin) {
        Group *p = ARENA_NEW(f->a, Group);
        f->group[at] = (int32_t)f->groups.len;
        vec_push(&f->groups, p);
        p->member[p->n++] = at;
        return;
    }
    Group *into = f->groups.data[join[0]];
    for (int j = 1; j < njoin; j++) {
        Group *p = f->groups.data[join[j]];
        for (int i = 0; i < p->n; i++) {
            into->member[into->n++] = p->member[i];
            f->group[p->member[i]] = join[0];
        }
        f->groups.data[join[j]] = NULL;
    }
    into->member[into->n++] = at;
    f->group[at] = join[0];
    qsort(into->member, (size_t)into->n, sizeof(NodeId), compare_nodes);
}

// ---- emitting ------------------------------------------------------------------------------------------------------------

typedef struct Emit {
    Instr instr[MAX_MEMBERS * 4 + MAX_INPUTS];
    int ninstr;
    ValueId in[MAX_INPUTS];
    int nin;
    ValueId value[MAX_MEMBERS * 4 + MAX_INPUTS];  // which value an instruction holds
} Emit;

static int emit_operand(Emit *e, const Graph *g, ValueId v) {
    for (int i = 0; i < e->ninstr; i++)
        if (e->value[i] == v) return i;
    const Node *def = graph_def(g, v);
    Instr x = {.code = PROG_INPUT, .dtype = graph_value(g, v)->dtype, .a = -1, .b = -1, .c = -1};
    if (def->op == OP_FULL) {
        x.code = PROG_CONST;
        x.imm = node_float(def, ATTR_VALUE);
    } else {
        x.a = e->nin;
        e->in[e->nin++] = v;
    }
    e->instr[e->ninstr] = x;
    e->value[e->ninstr] = v;
    return e->ninstr++;
}

static bool used_outside(const Fuse *f, ValueId v, int32_t k) {
    for (int32_t u = f->uses.first[v]; u < f->uses.first[v + 1]; u++)
        if (f->uses.use[u].node == NO_NODE || f->group[f->uses.use[u].node] != k) return true;
    return false;
}

static Status emit_group(const Fuse *f, int32_t k, Rewrite *r, Diag *d) {
    const Group *p = f->groups.data[k];
    Emit e = {0};
    int32_t out[MAX_MEMBERS];
    ValueId old[MAX_MEMBERS];
    int nout = 0;
    for (int i = 0; i < p->n; i++) {
        const Node *n = graph_node(f->g, p->member[i]);
        int arg[3] = {-1, -1, -1};
        for (int m = 0; m < n->nin; m++) arg[m] = emit_operand(&e, f->g, n->in[m]);
        e.instr[e.ninstr] = (Instr){PROG_OP + n->op, graph_value(f->g, n->out[0])->dtype, arg[0], arg[1], arg[2], 0};
        e.value[e.ninstr] = n->out[0];
        if (used_outside(f, n->out[0], k)) {
            out[nout] = e.ninstr;
            old[nout++] = n->out[0];
        }
        e.ninstr++;
    }
    ValueId in[MAX_INPUTS];
    for (int i = 0; i < e.nin; i++) {
        in[i] = r->map[e.in[i]];
        CHECK(in[i] != NO_VALUE, "fused group reads value %d before it is made", e.in[i]);
    }
    Program prog = {.ninstr = e.ninstr, .instr = e.instr, .nout = nout, .out = out};
    const Node *last = graph_node(f->g, p->member[p->n - 1]);
    const Value *space = graph_value(f->g, last->out[0]);
    Attr attr[2] = {attr_prog(ATTR_PROG, &prog), attr_ints(ATTR_SHAPE, space->shape.ndim, space->shape.dim)};
    NodeId made;
    TRY(graph_add(r->out, OP_FUSED, e.nin, in, 2, attr, last->source, last->phase, &made, d));
    for (int j = 0; j < nout; j++) {
        ValueId v = graph_node(r->out, made)->out[j];
        graph_value(r->out, v)->place = space->place;
        graph_value(r->out, v)->name = graph_value(f->g, old[j])->name;
        r->map[old[j]] = v;
    }
    return ST_OK;
}

Status pass_fuse(PassContext *c, Graph *in, Graph **out, Diag *d) {
    if (c->features & BACKEND_FUSE_ROWS) return pass_fuse_rows(c, in, out, d);
    Fuse f = {.g = in, .a = c->scratch};
    f.group = ARENA_ARRAY(c->scratch, int32_t, in->nodes.len);
    for (int64_t i = 0; i < in->nodes.len; i++) f.group[i] = -1;
    f.uses = uses_collect(in, c->scratch);
    for (int64_t i = 0; i < in->nodes.len; i++)
        if (fusible(in, graph_node(in, (NodeId)i))) place_node(&f, (NodeId)i);
    Rewrite r;
    rewrite_begin(&r, in, c->scratch, d);
    Status st = ST_OK;
    for (int64_t i = 0; i < in->nodes.len && st == ST_OK; i++) {
        const Group *p = f.group[i] < 0 ? NULL : f.groups.data[f.group[i]];
        if (!p || p->n == 1)
            rewrite_copy(&r, (NodeId)i);
        else if (p->member[p->n - 1] == (NodeId)i)
            st = emit_group(&f, f.group[i], &r, d);
    }
    vec_free(&f.groups);
    return st == ST_OK ? rewrite_finish(&r, out) : st;
}
