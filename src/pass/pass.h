// The passes, in the order in which the driver runs them. Each reads a graph and makes a new or edited one in the same arena; its
// file says what it requires and establishes; graph_verify runs after it in debug builds and with --verify-each.
#pragma once
#include "ir/graph.h"
#include "pass/tile.h"
#include "plan/plan.h"

typedef enum AttentionChoice { ATTN_AUTO, ATTN_HEAD, ATTN_GATHER_KV } AttentionChoice;
const char *attention_choice_name(AttentionChoice c);  // "auto", "head", "gather-kv"

typedef enum RoutingChoice { ROUTING_FREE, ROUTING_SHOW, ROUTING_HOLD } RoutingChoice;  // of a mixture of experts, see hold.c

typedef struct AdamWOptions {
    double beta1, beta2, eps, weight_decay;
    double clip_norm;            // 0: no clipping
} AdamWOptions;

typedef struct AttentionReport { // one per attention node, for `autosp plan`
    NodeId node;                 // in the sharded graph (forward)
    const char *source, *mask;   // mask in words: "causal", "causal & window 24", "causal & same document", ...
    const char *strategy;
    double seconds, nbytes_sent; // of the chosen, forward + backward, slowest rank
    int nalt;
    struct { const char *strategy; double seconds, nbytes_sent; bool legal; } alt[4];
} AttentionReport;

typedef struct ShardReport {
    VEC(AttentionReport) attention;
    VEC(const char *) gathered;  // "node ... gathered whole because ..., N bytes": ops with no rule for a sharded input
    VEC(const char *) square;    // S x S values that stayed tensors, with bytes
    VEC(const char *) logits;    // of a cross-entropy, that stay whole: which, bytes, why (pass head)
} ShardReport;

typedef enum RematMode { REMAT_NONE, REMAT_LAYER, REMAT_AUTO } RematMode;
const char *remat_mode_name(RematMode m);  // "none", "layer", "auto"

typedef struct MemoryOptions {   // what the passes remat, offload and tile may do, docs/memory.md
    RematMode remat;
    bool offload;
    int64_t budget_nbytes;       // device bytes of the arena per rank; 0: no limit
    int64_t host_nbytes;         // pinned host bytes per rank that offloading may take
    int64_t tile_rows;           // of one chunk at most; 0: no tiling; TILE_AUTO: chosen with the rest
    bool quick;                  // no trials beyond what the search needs to find something: for probes
    int tile_align;              // chunks begin at multiples of so many bytes at least; 0: as the backend needs
    int64_t attention_groups;    // of heads, at most, that attention does one after the other; 0 or 1: all at once
} MemoryOptions;
#define TILE_AUTO (-1)

typedef struct MemoryChoice {    // what pass remat decided, for the passes after it and for people
    int64_t tile_rows;
    int64_t nneeded, nagain;     // values that the backward needs of the forward; of those not kept
    double needed_nbytes, kept_nbytes;  // of all of them; of what is kept or offloaded
    double again_seconds;        // of nodes that run again
    int64_t noffload;
    double offload_nbytes;
    double seconds;              // of the step, estimated
    int64_t peak_nbytes, host_peak_nbytes;  // estimated: largest sums of live bytes
    int ntrial;
} MemoryChoice;

typedef struct PassContext {
    Arena *scratch;              // freed by the driver after all passes
    int nranks;
    unsigned features;           // BACKEND_* of the backend that runs the graph (backend/backend.h); 0: the form that all take
    AttentionChoice attention;
    const char *const *strategies;  // saved decisions: the strategy of each attention in order of appearance; NULL: choose
    int nstrategies;
    const DeviceModel *device;
    const AdamWOptions *adamw;
    RoutingChoice routing;
    DType compute;               // DT_F32: everything in the program's own type; DT_BF16: mixed precision (docs/cuda.md)
    int64_t max_documents;       // packed into one row of the batch, as the user or the data say; 0: not known
    TileOptions tile;            // rows: as remat chose
    double square_limit_nbytes;  // an S x S tensor per rank beyond this is refused
    ShardReport *report;         // filled by shard and head; may be NULL
    const PlanOptions *plan;     // remat and offload try out plans
    MemoryOptions memory;
    MemoryChoice *choice;        // filled by remat, read by offload and tile
} PassContext;

Status pass_canonicalize(PassContext *c, Graph *in, Graph **out, Diag *d);  // folding, identities, CSE, DCE
Status pass_hold(PassContext *c, Graph *in, Graph **out, Diag *d);          // choices of experts shown, or held fixed
Status pass_experts(PassContext *c, Graph *in, Graph **out, Diag *d);       // MoE: sort/gather/grouped/scatter -> expert_matmul
Status pass_mask(PassContext *c, Graph *in, Graph **out, Diag *d);  // sdpa and hand-written attention -> attention + predicate
Status pass_precision(PassContext *c, Graph *in, Graph **out, Diag *d);     // bf16: products and attention
Status pass_head(PassContext *c, Graph *in, Graph **out, Diag *d);          // logits and cross-entropy -> head_fwd
Status pass_grad(PassContext *c, Graph *in, Graph **out, Diag *d);          // appends the backward; OUT_GRAD per trainable param
Status pass_head_join(PassContext *c, Graph *in, Graph **out, Diag *d);     // head_fwd + head_grad -> head
Status pass_update(PassContext *c, Graph *in, Graph **out, Diag *d);        // clipping + adamw; OUT_STATE outputs
Status pass_shard(PassContext *c, Graph *in, Graph **out, Diag *d);         // placements, reshard nodes
Status pass_epilogue(PassContext *c, Graph *in, Graph **out, Diag *d);      // sums into products
Status pass_recompute(PassContext *c, Graph *in, Graph **out, Diag *d);     // cheap forward values once more in the backward
Status pass_fuse(PassContext *c, Graph *in, Graph **out, Diag *d);          // pointwise groups -> fused
Status pass_fuse_rows(PassContext *c, Graph *in, Graph **out, Diag *d);     // fuse, where the backend has BACKEND_FUSE_ROWS
Status pass_narrow(PassContext *c, Graph *in, Graph **out, Diag *d);        // bf16: activations in memory
Status pass_groups(PassContext *c, Graph *in, Graph **out, Diag *d);        // attention's heads in groups
Status pass_remat(PassContext *c, Graph *in, Graph **out, Diag *d);         // keep or compute again, under a budget
Status pass_offload(PassContext *c, Graph *in, Graph **out, Diag *d);       // kept values to the host and back
Status pass_tile(PassContext *c, Graph *in, Graph **out, Diag *d);          // token-wise kernels chunk by chunk
Status pass_state(PassContext *c, Graph *in, Graph **out, Diag *d);         // the optimizer's state to host memory
const char *mask_in_words(const Program *p, Arena *a);                      // pass/mask*.c
