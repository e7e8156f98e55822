// The exported program as parsed from the archive, before lowering: plain data, all references checked, nothing bound.
#pragma once
#include "import/import.h"

// A symbolic size: a small expression over the archive's symbols ("s70", "s72"), parsed from sympy's srepr or str form.
typedef enum SymOp { SYM_INT, SYM_SYMBOL, SYM_ADD, SYM_MUL, SYM_POW, SYM_FLOORDIV, SYM_MOD, SYM_MIN, SYM_MAX, SYM_NEG } SymOp;
typedef struct Sym {
    SymOp op;
    int64_t value;         // SYM_INT; SYM_SYMBOL: symbol index
    int n;
    struct Sym **arg;
} Sym;

typedef enum ArgKind {
    ARG_NONE, ARG_TENSOR, ARG_TENSORS,   // names[]; in ARG_TENSORS an absent optional tensor is NULL
    ARG_INT, ARG_INTS, ARG_FLOAT, ARG_FLOATS, ARG_BOOL, ARG_BOOLS, ARG_STRING,
    ARG_SYM_INT,                         // sym_name[0] or i
    ARG_SYM_INTS,                        // per element sym_name[k] (NULL: ints[k])
    ARG_DTYPE,                           // i: PyTorch export ScalarType code (7 f32, 8 f64, 5 i64, 4 i32, 12 bool, 13 bf16, 6 f16, ...)
    ARG_DEVICE, ARG_LAYOUT, ARG_MEMORY_FORMAT, ARG_GRAPH,
    ARG_OTHER,                           // str says what it was; an error only if an op looks at it
} ArgKind;
typedef struct Arg {
    const char *name;                    // "self", "dim", ...; "" for positional (higher-order ops)
    ArgKind kind;
    int n;
    const char **names;                  // tensors
    const char **sym_names;
    int64_t i;
    int64_t *ints;
    double f;
    double *floats;
    const char *str;
    struct AtenGraph *graph;             // ARG_GRAPH
} Arg;

typedef struct AtenNode {
    const char *target;                  // "torch.ops.aten.linear.default"
    int nin;
    Arg *in;
    int nout;
    Arg *out;                            // ARG_TENSOR / ARG_TENSORS / ARG_SYM_INT (sym_names[0] = name) / ARG_NONE ...
    const char *source;                  // innermost user line and module: "modeling_llama.py:239 in forward (model.layers.0.mlp)"
} AtenNode;

typedef struct AtenTensor {              // stored metadata (the example's sizes; inferred again at lowering)
    const char *name;
    int dtype;                           // export ScalarType code
    int ndim;
    Sym *size[MAX_DIMS];
    bool known;                          // false: more than MAX_DIMS dims or a size that could not be parsed
} AtenTensor;

typedef struct AtenGraph {
    int nin;
    Arg *in;
    int nout;
    Arg *out;
    int nnode;
    AtenNode *node;
    int ntensor;
    AtenTensor *tensor;
    Map *tensor_index;                   // name -> index in tensor
} AtenGraph;

typedef enum AtenInputKind { AIN_USER, AIN_PARAMETER, AIN_BUFFER, AIN_CONSTANT } AtenInputKind;
typedef struct AtenInput {               // one graph input, in order
    AtenInputKind kind;
    const char *arg;                     // name inside the graph
    const char *target;                  // "model.embed_tokens.weight" for parameters, buffers, constants
    bool persistent;
    int32_t param;                       // AIN_PARAMETER: index into Archive.param (tied names share one)
    int32_t constant;                    // AIN_BUFFER/AIN_CONSTANT: index into Archive.constant
    int32_t user;                        // AIN_USER: index into Archive.user
    bool is_tensor;                      // user inputs that are ints/bools/None are not
} AtenInput;

typedef struct AtenUserInput {
    const char *name;
    Role role;
    int dtype;
    int ndim;
    Sym *size[MAX_DIMS];
    int seq_dim, batch_dim;              // which dims are the sequence and the batch, -1 if none
} AtenUserInput;

typedef struct SymbolInfo {
    const char *name;
    int64_t min, max;                    // range constraint; max INT64_MAX if none
    int64_t hint;                        // example value
} SymbolInfo;

typedef enum AtenOutputKind { AOUT_LOSS_OR_USER, AOUT_MUTATION } AtenOutputKind;
typedef struct AtenOutput {
    AtenOutputKind kind;
    Arg arg;
    const char *target;                  // mutated buffer or input
} AtenOutput;

struct Archive {
    const char *path, *name;             // file; program name
    int schema_major, schema_minor;
    AtenGraph *graph;
    int ninput;
    AtenInput *input;
    int noutput;
    AtenOutput *output;
    int nuser;
    AtenUserInput *user;
    int nsymbol;
    SymbolInfo *symbol;
    int nguard;
    const char **guard;                  // guards_code, Python expressions
    VEC(Param) param;                    // tied groups already merged (by shared weight file or extra/autosp.json "tied")
    VEC(Const) constant;                 // buffers and lifted tensors, data NULL when unknown
};

// Opens, checks and parses (import/archive.c and friends). `weights`: see ImportOptions.
Status archive_open(Arena *a, const char *path, const char *weights, Archive **out, ImportReport *r, Diag *d);
// Chooses a value for every symbol from batch and seq (0: the hints), then checks range constraints and guards. values[nsymbol].
// Which symbol is the batch and which the sequence: from the tokens input [B, S] (extra/autosp.json may say otherwise); symbols of
// other inputs are tied to these through the guards (e.g. labels' s38 == s70). Also fills user-input shapes: seq_dim, batch_dim.
Status archive_bind(const Archive *ar, int64_t batch, int64_t seq, Arena *a, int64_t *values, Diag *d);
Status sym_eval(const Archive *ar, const Sym *s, const int64_t *values, int64_t *out, Diag *d);
// ATen -> core ops (import/lower*.c). values from archive_bind. The result's name, params, consts, inputs are filled.
Status lower_archive(Arena *a, const Archive *ar, const int64_t *values, const ImportOptions *o, Graph **out, ImportReport *r, Diag *d);
// Export ScalarType code -> DType. False for complex, quantized, ...
bool aten_dtype(int code, DType *out);
// complex64, complex128: the code of their parts' type. Such a tensor is held as real numbers with a last dim of 2.
bool aten_complex(int code, int *part);
