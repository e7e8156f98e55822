// The graph: nodes in topological order over typed values, referred to by id. One graph describes one whole training step on
// one (virtual) device with the sequence length bound; after the shard pass every value also carries its placement.
#pragma once
#include "base/arena.h"
#include "base/containers.h"
#include "base/diag.h"
#include "ir/program.h"
#include "ir/type.h"

typedef int32_t ValueId;
typedef int32_t NodeId;
#define NO_VALUE (-1)
#define NO_NODE (-1)

typedef enum OpKind {
#define OP(ENUM, ...) OP_##ENUM,
#include "ops/ops.def"
#undef OP
    OP_COUNT
} OpKind;

// Attribute keys (ir/attrs.def): one list, so that printer, parser, hash and equality need no per-op code.
typedef enum AttrKey {
#define ATTR(ENUM, name, kind) ATTR_##ENUM,
#include "ir/attrs.def"
#undef ATTR
    ATTR_COUNT
} AttrKey;
typedef enum AttrKind { ATTRK_INT, ATTRK_FLOAT, ATTRK_INTS, ATTRK_STR, ATTRK_PROG } AttrKind;
typedef struct Attr {
    AttrKey key;
    int32_t n;  // ATTRK_INTS
    union {
        int64_t i;
        double f;
        const int64_t *ints;
        const char *str;
        const Program *prog;
    } u;
} Attr;
AttrKind attr_kind(AttrKey k);
const char *attr_name(AttrKey k);
static inline Attr attr_i(AttrKey k, int64_t v) { return (Attr){.key = k, .u.i = v}; }
static inline Attr attr_f(AttrKey k, double v) { return (Attr){.key = k, .u.f = v}; }
static inline Attr attr_s(AttrKey k, const char *v) { return (Attr){.key = k, .u.str = v}; }
static inline Attr attr_ints(AttrKey k, int n, const int64_t *v) { return (Attr){.key = k, .n = n, .u.ints = v}; }
static inline Attr attr_prog(AttrKey k, const Program *p) { return (Attr){.key = k, .u.prog = p}; }

// RECOMPUTE: what the forward did, once more, because the backward wants it and it was not kept.
typedef enum Phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_UPDATE, PHASE_RECOMPUTE, PHASE_COUNT } Phase;
const char *phase_name(Phase p);  // "forward", "backward", "update", "recompute"

typedef struct Node {
    OpKind op;
    Phase phase;
    int16_t nin, nout, nattr;
    ValueId *in, *out;
    Attr *attr;
    const char *source;  // where the user wrote it, "modeling_llama.py:239 (model.layers.0.mlp)"; may be NULL
    const char *note;    // why a pass put it here ("gather kv: attention needs every key"); may be NULL
} Node;

typedef struct Value {
    DType dtype;
    Shape shape;     // global
    NodeId def;
    int16_t index;   // which output of def
    Placement place; // PLACE_NONE before the shard pass
    const char *name;  // archive's name where there is one; for people only
} Value;

typedef struct Param {   // a parameter: one per tied group
    const char *name;    // canonical: the first name of the tied group
    int nalias;
    const char **alias;  // further names of the tied group
    Shape shape;
    DType dtype;         // stored dtype of `data`
    bool trainable;      // false: frozen
    bool decay;          // weight decay applies
    const void *data;    // row-major, dtype `dtype`; NULL: no bytes (meta export)
    const char *checkpoint_name;  // name in the Hugging Face checkpoint, or NULL
} Param;

typedef struct Const {   // bytes that came with the program: buffers, lifted tensors, folded values
    const char *name;
    Shape shape;
    DType dtype;         // DT_F32/F64/I64/BOOL
    const void *data;    // row-major; NULL: value unknown (refused at run time)
    const char *hash;    // of the bytes that a graph read back from text has not; NULL elsewhere
    bool persistent;     // part of the module's state dict: saved with the parameters
} Const;

typedef enum Role { ROLE_UNKNOWN, ROLE_TOKENS, ROLE_LABELS, ROLE_POSITIONS, ROLE_MASK, ROLE_OTHER } Role;
const char *role_name(Role r);  // "tokens", "labels", "positions", "mask", "other", "?"
typedef struct Input {
    const char *name;
    Role role;
    Shape shape;
    DType dtype;
    int seq_dim;         // the dim that is the sequence, -1 if none
    int batch_dim;       // -1 if none
} Input;

typedef enum OutputKind { OUT_LOSS, OUT_GRAD, OUT_STATE, OUT_AUX } OutputKind;
typedef struct Output {
    OutputKind kind;
    int32_t param;       // OUT_GRAD, OUT_STATE: index into params; else -1
    int32_t slot;        // OUT_STATE: 0 parameter, 1 first moment, 2 second moment
    const char *name;
    ValueId value;
} Output;

typedef struct Graph {
    Arena *arena;        // owns everything below
    const char *name;
    int64_t batch, seq;  // what the program was bound to
    LayoutTable *layouts;  // nranks ranks; always present (nranks 1 before the shard pass)
    VEC(Node) nodes;
    VEC(Value) values;
    VEC(Param) params;
    VEC(Const) consts;
    VEC(Input) inputs;
    VEC(Output) outputs;
} Graph;

Graph *graph_new(Arena *a, const char *name, int nranks);
void graph_free_vecs(Graph *g);  // the VECs are malloc'ed: frees them early; the arena's end frees what is left
// A new graph on the same arena with the same tables (params, consts, inputs, layouts) but no nodes, values or outputs.
Graph *graph_new_like(const Graph *g);

static inline int graph_nranks(const Graph *g) { return layouts_nranks(g->layouts); }
static inline Node *graph_node(const Graph *g, NodeId n) { return &g->nodes.data[n]; }
static inline Value *graph_value(const Graph *g, ValueId v) { return &g->values.data[v]; }
static inline Node *graph_def(const Graph *g, ValueId v) { return graph_node(g, graph_value(g, v)->def); }
bool value_on_host(const Graph *g, ValueId v);  // lives in host memory, not on the device (ops/memory.c)
static inline const Shape *graph_shape(const Graph *g, ValueId v) { return &graph_value(g, v)->shape; }

// Appends a node. Checks arity and attributes, runs the op's shape rule, creates its output values. Inputs must exist already.
// On error nothing is appended and the Diag names the op, its operands' shapes, and the source.
Status graph_add(Graph *g, OpKind op, int nin, const ValueId *in, int nattr, const Attr *attr, const char *source, Phase phase,
                 NodeId *out, Diag *d);
void graph_add_output(Graph *g, OutputKind kind, int32_t param, int32_t slot, const char *name, ValueId v);

// Attributes. `has` looks it up; the getters abort on a missing required attribute (a bug: graph_add checked).
const Attr *node_attr(const Node *n, AttrKey k);  // NULL if absent
int64_t node_int(const Node *n, AttrKey k);
int64_t node_int_or(const Node *n, AttrKey k, int64_t dflt);
double node_float(const Node *n, AttrKey k);
double node_float_or(const Node *n, AttrKey k, double dflt);
const char *node_str(const Node *n, AttrKey k);
const Program *node_prog(const Node *n, AttrKey k);  // NULL if absent
int node_ints(const Node *n, AttrKey k, const int64_t **out);  // count; 0 and NULL if absent
bool attrs_equal(const Node *a, const Node *b);

// use_count[v]: number of (node, input) uses plus outputs. Arena array of values.len entries.
int32_t *graph_use_counts(const Graph *g, Arena *scratch);

// Copies node n of `src` into `dst` with inputs through map (map[v] = value in dst, NO_VALUE if not yet there) and fills map for
// its outputs, names and placements included. What every rewriting pass is made of.
void graph_copy_node(const Graph *src, NodeId n, Graph *dst, ValueId *map);

// "add_3 = add(%4: f32[2,64], %5: f32[64])  at model.py:12": how errors and reports name a node.
const char *node_describe(const Graph *g, NodeId n, Arena *scratch);

// ---- text (printer, parser, verifier) ------------------------------------------------------------------------------------
void graph_print(const Graph *g, Str *out);
// Parses what graph_print wrote. Weight bytes are not in the text: params and consts over 4096 bytes come back without data.
Status graph_parse(Arena *a, const char *text, const char *file, Graph **out, Diag *d);
Status graph_parse_file(Arena *a, const char *path, Graph **out, Diag *d);
// Everything docs/ir.md demands; `stage` names the pass that just ran (for the message). A failure is a bug in that pass.
Status graph_verify(const Graph *g, const char *stage, Diag *d);
uint64_t graph_hash(const Graph *g);  // over what the text says; equal texts, equal hash
