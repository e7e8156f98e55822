// groups: attention's heads in groups, where the scratch for all of them at once is too much (docs/memory.md).
//
//   %9, %10, %11 = attention_grad(...) {scale=0.125}  ->  %9, %10, %11 = attention_grad(...) {scale=0.125, groups=4}
//
// Requires: nothing. Establishes: the same values; each attention does its KV heads, with their query heads, in so many groups.
#include "pass/groups.h"
#include "ops/attention.h"
#include "pass/pass.h"

static void set_groups(Graph *g, Arena *a, Node *n, int64_t most) {
    int64_t kv_heads = graph_shape(g, n->in[1])->dim[1], have = node_int_or(n, ATTR_GROUPS, 1);
    Attr want = attr_i(ATTR_GROUPS, attention_most_groups(most, kv_heads));
    if (want.u.i == have) return;
    Attr *attr = ARENA_ARRAY(a, Attr, n->nattr + 1);  // nodes may share their attributes
    int count = 0;
    for (int i = 0; i < n->nattr; i++)
        if (n->attr[i].key != ATTR_GROUPS) attr[count++] = n->attr[i];
    if (want.u.i > 1) attr[count++] = want;
    n->attr = attr, n->nattr = (int16_t)count;
}

void groups_set(Graph *g, Arena *a, int64_t most) {
    for (int64_t i = 0; i < g->nodes.len; i++) {
        Node *n = &g->nodes.data[i];
        if (n->op == OP_ATTENTION || n->op == OP_ATTENTION_GRAD) set_groups(g, a, n, most);
    }
}

Status pass_groups(PassContext *c, Graph *in, Graph **out, Diag *d) {
    (void)d;
    if (c->memory.attention_groups > 1) groups_set(in, in->arena, c->memory.attention_groups);
    *out = in;
    return ST_OK;
}
