// mask: attention with predicates instead of S x S masks.
//
//   %10 = le(iota k, iota q)                          [1,1,S,S]
//   %11 = eq(%ids_q, %ids_k)                          [B,1,S,S]      %20 = reshape(%ids)            [B,1,S]
//   %12 = and(%10, %11)                                         ->   %21, %22 = attention(%q, %k, %v, %20, %20)
//   %13 = sdpa(%q, repeat(%k), repeat(%v), %12)                        {prog = k <= q & vec_q0 == vec_k1}
//
// Each mask is read symbolically as a function of (b, h, q, k) (mask_interp.c) and becomes a small program that the kernel
// evaluates, block by block; per-token vectors stay values. The same reading recognises attention that is written out as matrix
// products (mask_written.c). KV heads that the program repeats for grouped queries are traced back to where they stand once. A
// mask that is no such program leaves S x S values (mask_lower_sdpa), with a note that says why; the shard pass places or refuses
// them.
//
// Requires: canonicalize. Establishes: no sdpa; attention's extra operands need no gradient.
#include "pass/mask.h"

#include "pass/pass.h"

static void visit(MaskPass *p, NodeId id) {
    const Node *n = graph_node(p->r.in, id);
    const char *why = NULL;
    rewrite_at(&p->r, id);
    if (n->op == OP_SDPA) {
        if (!mask_rewrite_sdpa(p, id)) mask_lower_sdpa(p, id);
        return;
    }
    if (n->op == OP_DOT && mask_rewrite_written(p, id, &why)) return;
    rewrite_copy(&p->r, id);
    if (why) graph_node(p->r.out, (NodeId)(p->r.out->nodes.len - 1))->note = why;
}

Status pass_mask(PassContext *c, Graph *in, Graph **out, Diag *d) {
    MaskPass p = {.scratch = c->scratch, .needs = rewrite_needs_grad(in, c->scratch),
                  .max_documents = c->max_documents};
    rewrite_begin(&p.r, in, c->scratch, d);
    for (int64_t i = 0; i < in->nodes.len && p.r.b.status == ST_OK; i++) visit(&p, (NodeId)i);
    Graph *made = NULL;
    TRY(rewrite_finish(&p.r, &made));
    Status st = pass_canonicalize(c, made, out, d);
    graph_free_vecs(made);
    return st;
}
