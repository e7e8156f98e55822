// What the files of pass remat share: the graph of kernels as a question of what to keep, and answers to it.
#pragma once
#include "ir/uses.h"
#include "pass/pass.h"

typedef enum RematChoice { CHOICE_KEEP, CHOICE_AGAIN } RematChoice;  // AGAIN: computed again for the backward, if anything wants it

// The forward of a graph of kernels. Views are their operand (`root`); what is said of a value holds for its root.
typedef struct RematGraph {
    const Graph *g;
    Arena *a;            // scratch
    ValueId *root;       // [values]
    bool *forward;       // [values] made by a kernel of the forward: there is a choice
    bool *needed;        // [values] ... and read after it
    int64_t *nbytes;     // [values] on the fullest rank
    double *seconds;     // [nodes] of the forward there
    int64_t nchoice;     // values with `needed`
} RematGraph;

// a: scratch for as long as r lives.
Status remat_analyse(RematGraph *r, const Graph *g, const PlanOptions *o, Arena *a, Diag *d);

// The choice of least cost where keeping a byte costs `price` seconds and computing a node again its seconds: a minimum cut.
// *kept: bytes of needed values and of what recomputing them starts from, *seconds: of the nodes that run again.
void remat_cut(const RematGraph *r, double price, uint8_t *choice, double *kept, double *seconds);
// Bytes kept and seconds spent again with this choice.
void remat_cost(const RematGraph *r, const uint8_t *choice, double *kept, double *seconds);
// What people write by hand: the narrowest cut before each attention (the layer's input) is kept, all else computed again.
void remat_layers(const RematGraph *r, uint8_t *choice);
// g without results of fused nodes that nobody reads; *out is NULL where there are none.
Status remat_trim(const Graph *g, Arena *scratch, Graph **out, Diag *d);
// The graph with the copies that `choice` asks for.
Status remat_apply(const RematGraph *r, const uint8_t *choice, Graph **out, Diag *d);
