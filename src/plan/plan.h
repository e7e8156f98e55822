// The Plan: for every rank, the steps in order, the address of every buffer, and why each collective is there. Immutable once
// made; the runtime only executes it. See README.md for what is in which file.
#pragma once
#include "backend/backend.h"
#include "ir/graph.h"
#include "plan/device.h"

typedef enum BufferKind {
    BUF_PARAM, BUF_MOMENT, BUF_INPUT, BUF_CONST, BUF_GRAD, BUF_SAVED, BUF_TRANSIENT, BUF_COMM, BUF_SCRATCH, BUF_HOST, BUF_KIND_COUNT
} BufferKind;
const char *buffer_kind_name(BufferKind k);  // "parameters", "moments", ..., for people

enum { BUFFER_ALIGN = 256 };     // cuBLAS wants it of workspaces; devices copy whole lines
typedef struct Buffer {
    BufferKind kind;
    bool host;                   // lies in the rank's host arena
    int64_t offset, nbytes;      // within the rank's arena of its side; a multiple of BUFFER_ALIGN
    int32_t first, last;         // steps between which it is alive (inclusive); 0..nstep-1; persistent ones span all
    ValueId value;               // or NO_VALUE (scratch, comm staging)
} Buffer;

// A box of elements to copy between a value and a packed message: `n` dims, same element order on both sides.
typedef struct Box {
    int peer;
    int ndim;
    int64_t size[MAX_DIMS];
    int64_t start[MAX_DIMS];     // first element in the local value
    int64_t msg_off;             // element offset within the packed messages of its side
} Box;
// One all-to-all-v: pack boxes -> move -> unpack boxes (add or max where `reduce`).
// Boxes whose peer is the rank itself never travel: the k-th such send box is copied to the k-th such recv box, and the offsets
// and byte counts of the own part are 0. Peers that are sent the same boxes (all-gather) share one packed message.
typedef struct Exchange {
    int nsend, nrecv;
    const Box *send, *recv;      // recv boxes in rank order: reductions are in a fixed order, hence bitwise the same everywhere
    const int64_t *send_off, *send_nbytes, *recv_off, *recv_nbytes;  // [nranks], bytes
    Reduce reduce;               // RED_NONE: boxes overwrite; else the destination starts at 0 / -inf and boxes are reduced in
    int ncover;                  // with `reduce`: so many first recv boxes cover the destination and overwrite it
    bool collective;             // some rank sends to another; false: every rank only copies from itself
    bool send_direct, recv_direct;  // messages lie contiguous in the value itself: no staging, offsets are into the value
    int64_t send_staging, recv_staging;  // bytes of packed messages
} Exchange;

typedef enum StepKind {
    STEP_KERNEL, STEP_EXCHANGE,
    STEP_OFFLOAD, STEP_OFFLOAD_DONE, STEP_FETCH, STEP_FETCH_DONE,  // copies to and from the host arena, and the waits for them
} StepKind;
static inline bool step_is_copy(StepKind k) { return k == STEP_OFFLOAD || k == STEP_FETCH; }
static inline bool step_is_wait(StepKind k) { return k == STEP_OFFLOAD_DONE || k == STEP_FETCH_DONE; }
typedef struct Step {
    StepKind kind;
    NodeId node;
    int nin, nout;
    const Operand *in, *out;     // data NULL; addresses are in in_buf/out_buf
    const int32_t *in_buf, *out_buf;
    const int64_t *in_off, *out_off;  // bytes into the buffer: parts of a value lie where they belong in it
    int32_t scratch_buf;         // -1 none; STEP_EXCHANGE: staging (send then recv)
    const Exchange *exchange;    // STEP_EXCHANGE
    int64_t staging_send_nbytes; // bytes of the send part of the staging buffer
    KernelFn kernel;
    Cost work;                   // of a kernel by its op's rule; of an exchange the bytes that this rank sends
    double seconds;              // predicted by the device model
    int32_t copy;                // copies and waits: which copy of the step, counted from 0
} Step;

typedef struct RankPlan {
    int rank;
    int nstep, nbuffer, ncopy;
    const Step *step;
    const Buffer *buffer;
    const int32_t *value_buf;    // [values]: buffer of each value (views share), -1 none
    const int64_t *value_off;    // [values]: where in it, bytes
    int64_t arena_nbytes;        // the peak, and exactly what is allocated
    int64_t lower_bound_nbytes;  // largest sum of live bytes over steps
    int64_t host_nbytes, host_lower_bound_nbytes;  // the same of the host arena
    int64_t nbytes_by_kind[BUF_KIND_COUNT];  // alive at the peak step, in the arena
    int32_t peak_step;
    double flops, seconds;       // predicted for this rank
    double comm_nbytes;          // sent to other ranks per step
} RankPlan;

typedef struct Plan {
    const Graph *graph;          // after all passes
    int nranks;
    int nmade;                   // nranks; fewer: a plan to look at, of some ranks (plan_make_some)
    int nthreads;
    DType real;                  // DT_F32 or DT_F64
    const Backend *backend;
    const RankPlan *rank;        // [nmade]
    uint64_t hash;               // of everything global; ranks compare it before step 0. 0 where some ranks are missing
} Plan;

typedef struct PlanOptions {
    const Backend *backend;
    const DeviceModel *device;
    int nthreads;                // workers per rank
    struct KernelMemo *memo;     // plan/memo.h; may be NULL
    bool state_on_host;          // sketches: pass state will move it
} PlanOptions;
// Lowers a sharded (and fused) graph to a Plan in arena `a`.
Status plan_make(Arena *a, const Graph *g, const PlanOptions *o, Plan **out, Diag *d);
// The same for some ranks only, made[nmade], rising: for very many ranks, whose messages are as many as their square.
Status plan_make_some(Arena *a, const Graph *g, const PlanOptions *o, int nmade, const int *made, Plan **out, Diag *d);
// The ranks that say what all of them need: the fullest, the first, the last (which under a causal mask works most). rank[3], rising.
int plan_telling_ranks(const Graph *g, int rank[3]);
// Order of execution: pass over the graph that reorders nodes to shorten lifetimes (plan/schedule.c).
Status pass_schedule(const Graph *g, Graph **out, Diag *d);
Status schedule_order(const Graph *g, NodeId *order, Diag *d);  // the order alone: order[nodes]
// State that nothing but its own update reads (the moments; a parameter whose copy in bf16 the program reads): what pass state moves to host
// memory. host[values]; returns its bytes, the same on every rank.
int64_t plan_host_state(const Graph *g, Arena *scratch, bool *host);
typedef struct TileSketch {      // what pass tile will do, see pass/tile.h
    int32_t *pieces;             // [values]
    int32_t *region;             // [nodes]
} TileSketch;
// What one rank's plan would be, without offsets: for choices that need many tries. `tile` (NULL: nothing is cut): which values
// the pass tile will hold in pieces, and which nodes will run chunk by chunk. The arena's size is taken to be the lower bound. In arena `a`.
Status plan_sketch(Arena *a, const Graph *g, const PlanOptions *o, int rank, const TileSketch *tile, RankPlan *out, Diag *d);
// The first and the last step of the region that each step belongs to, or the step itself: first[nstep], last[nstep]. region[nodes].
void plan_regions(const RankPlan *p, const int32_t *region, Arena *a, int32_t *first, int32_t *last);
// The rank that holds the most bytes of values; the first of several.
int plan_fullest_rank(const Graph *g);
// Offsets for n buffers given sizes and lifetimes; returns the arena's size (plan/memory.c).
int64_t memory_assign(int n, Buffer *buf, int64_t *lower_bound);
// Operand of value v on `rank`, in arena a.
Operand plan_operand(Arena *a, const Graph *g, ValueId v, int rank);
// The exchange that turns `from` into `to` for `rank` (plan/reshard.c).
const Exchange *plan_exchange(Arena *a, const Graph *g, const Shape *shape, DType dtype, const Placement *from,
                              const Placement *to, int rank);
// What people call it: "all-to-all", "all-gather", "reduce-scatter", "all-reduce", "halo exchange", "local slice", ...
const char *reshard_name(const Graph *g, const Placement *from, const Placement *to);
// Bytes that `rank` sends to others in this reshard.
int64_t reshard_sent_nbytes(const Graph *g, const Shape *shape, DType dtype, const Placement *from, const Placement *to,
                            int rank);
// The steps of a rank by kind of kernel and phase, slowest first (groups.c). `seconds` of its steps as measured, or NULL.
enum { STEP_GROUPS = 256, STEP_GROUP_NAME = 64 };
typedef struct StepGroup {
    OpKind op;
    Phase phase;
    bool exchange;
    int64_t count;
    double predicted, seconds, flops, nbytes;
} StepGroup;
int plan_groups(const Plan *p, int rank, const double *seconds, StepGroup out[STEP_GROUPS]);
const char *step_group_name(const StepGroup *g, char text[STEP_GROUP_NAME]);  // "attention_grad backward"; text
