// Inside the lowering of ATen programs to core ops (lower*.c). One `Lower` carries the state; handlers read the current node's
// arguments, append core nodes through the Builder, and bind the node's outputs. Errors are latched in the Builder: after one,
// every helper returns NO_VALUE (or 0), so that a handler reads as its formula and the driver checks once per node.
#pragma once
#include "import/aten.h"
#include "ir/build.h"

// ---- tensors, views, in-place writes (lower_tensor.c) ---------------------------------------------------------------------
// An ATen tensor is a handle. A handle either owns its storage or is a view of another handle; writing through any of them
// rewrites the owner's value, and every other view is derived again when it is next read.
typedef enum ViewKind {
    VIEW_RESHAPE,    // shape
    VIEW_PERMUTE,    // dims
    VIEW_SLICE,      // dim, start, step, length
    VIEW_BROADCAST,  // shape
    VIEW_STOP,       // same bytes, no gradient (detach)
    VIEW_OPAQUE,     // shares memory in a way that is not tracked: reading it after a write, or writing it, is refused
} ViewKind;
typedef struct View {
    ViewKind kind;
    bool maybe;      // PyTorch shares or copies depending on strides, which are not tracked here
    Shape shape;
    int dims[MAX_DIMS];
    int dim;
    int64_t start, step, length;
} View;

typedef enum StorageKind { STORE_FRESH, STORE_INPUT, STORE_PARAM, STORE_BUFFER } StorageKind;
typedef struct LowerTensor {
    int32_t parent;       // handle that this is a view of; -1: owns its storage
    View view;
    ValueId value;
    int64_t stamp;        // clock at which `value` was derived
    DType dtype;
    // owners only:
    int64_t written;      // clock of the last write
    StorageKind storage;
    int32_t region;       // no-grad region in which it was made
    bool lost;            // a write elsewhere may or may not have changed it
} LowerTensor;

typedef enum BindKind { BIND_TENSOR, BIND_COMPLEX, BIND_INT, BIND_FLOAT, BIND_BOOL, BIND_NONE } BindKind;
typedef struct Bind {
    BindKind kind;
    int32_t tensor;       // BIND_COMPLEX: the real part
    int32_t imag;         // BIND_COMPLEX
    int64_t i;            // BIND_INT, BIND_BOOL
    double f;             // BIND_FLOAT
} Bind;

typedef struct Scope {    // names of one (sub)graph
    const AtenGraph *graph;
    Map *names;           // name -> index into Lower.binds
} Scope;

typedef struct Lower Lower;
typedef struct LowerRow {
    const char *name;     // "add" (aten), or with its namespace: "_operator.add"
    void (*fn)(Lower *l);
    int op;               // what the handler makes of it: usually an OpKind
} LowerRow;

struct Lower {
    Arena *arena;
    const Archive *ar;
    const int64_t *values;         // of the archive's symbols
    const ImportOptions *options;
    ImportReport *report;
    DType real;
    Builder b;
    Map *rows;                     // op name -> index into row
    VEC(const LowerRow *) row;
    VEC(Bind) binds;
    VEC(LowerTensor) tensors;
    int64_t clock;
    int32_t region, nregion;       // 0: gradients are recorded; else which part under no_grad
    int depth;                     // of subgraphs
    int64_t nstream;               // random streams handed out
    bool noted_random, noted_half;
    // the node being lowered
    const Scope *scope;
    const AtenNode *n;
    const LowerRow *cur;
    uint64_t used;                 // arguments that the handler looked at
    int nout;
    const char **out;              // names of its outputs, NULL where there is none
    int part;                      // of complex tensors: 0 real, 1 imaginary, -1 none is being lowered
    bool inplace;                  // output 0 is written into argument 0
    ValueId written;               // value of output 0 if inplace
};

static inline bool lower_failed(const Lower *l) { return l->b.status != ST_OK; }
// Refuses the current node: "not supported: <reason>".
void lower_refuse(Lower *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// The node contradicts itself or the archive: ST_INPUT.
void lower_invalid(Lower *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void lower_note(Lower *l, const char *text);                  // for the import's report
void lower_bind(Lower *l, const char *name, Bind b);          // in the current scope; NULL: nothing

int32_t lower_new(Lower *l, ValueId v);                       // a handle that owns v
int32_t lower_new_view(Lower *l, int32_t parent, View v);
int32_t lower_new_opaque(Lower *l, int32_t parent, ValueId v);
void lower_detach(Lower *l, int32_t tensor);
ValueId lower_read(Lower *l, int32_t tensor);
void lower_write(Lower *l, int32_t tensor, ValueId v);        // v is cast and broadcast to the tensor's type
ValueId lower_view_value(Lower *l, const View *v, ValueId x);
// y put into x at [start : : step] of dim.
ValueId lower_put_slice(Lower *l, ValueId x, ValueId y, int dim, int64_t start, int64_t step);

// ---- arguments of the current node (lower_args.c) -------------------------------------------------------------------------
typedef enum NumberKind { NUM_NONE, NUM_INT, NUM_FLOAT, NUM_BOOL } NumberKind;
const Arg *lower_arg(Lower *l, const char *name);             // NULL if absent; marks it as used
const Arg *lower_arg_at(Lower *l, int i);
bool lower_has(Lower *l, const char *name);                   // present and not None
bool lower_is_tensor(Lower *l, const char *name);
int32_t lower_handle(Lower *l, const char *name);             // tensor argument, required
ValueId lower_in(Lower *l, const char *name);                 // its value
ValueId lower_in_or(Lower *l, const char *name);              // NO_VALUE if absent or None
int lower_in_list(Lower *l, const char *name, int32_t **handles);  // tensor list; absent entries are -1
NumberKind lower_arg_number(Lower *l, const Arg *a, double *f, int64_t *i);  // a Python number, symbolic or not
ValueId lower_operand(Lower *l, const char *name);            // tensor or number (as a 0-dim value of its own type)
int64_t lower_int(Lower *l, const char *name, int64_t dflt);
double lower_float(Lower *l, const char *name, double dflt);
bool lower_bool(Lower *l, const char *name, bool dflt);
const char *lower_str(Lower *l, const char *name, const char *dflt);
int lower_ints(Lower *l, const char *name, int64_t *out, int max);  // count, -1 if absent; a single int counts as a list of one
bool lower_shape_arg(Lower *l, const char *name, Shape *out); // ints as a shape (sizes may be -1)
int lower_dims_arg(Lower *l, const char *name, int ndim, int *dims);  // wrapped, distinct dims; -1 if absent
int lower_dim(Lower *l, int64_t dim, int ndim);               // wraps a negative dim; 0-dim tensors count as one dim
int lower_dim_arg(Lower *l, const char *name, int64_t dflt, int ndim);
bool lower_dtype_arg(Lower *l, const char *name, DType *out); // false if absent or None
bool lower_category(Lower *l, int code, DType *out);          // export ScalarType -> the graph's dtype; false: not computable
int lower_stored_code(Lower *l, const char *name);            // stored ScalarType of a tensor of this graph, -1 unknown
DType lower_out_dtype(Lower *l, int i);                       // of output i, as stored
// Marks arguments as looked at without using them.
void lower_ignore(Lower *l, const char *name);

// ---- results --------------------------------------------------------------------------------------------------------------
void lower_out(Lower *l, int i, ValueId v);                   // output i is a new tensor
void lower_out_handle(Lower *l, int i, int32_t tensor);       // output i is this tensor
void lower_out_view(Lower *l, int i, int32_t parent, View v);
void lower_out_number(Lower *l, int i, Bind b);
int64_t lower_stream(Lower *l);                               // a fresh random stream

// ---- formulas that several families use (lower_util.c) --------------------------------------------------------------------
#define LSHAPE(l, v) build_shape(&(l)->b, (v))
#define LDTYPE(l, v) build_dtype(&(l)->b, (v))
DType lower_promote(Lower *l, DType a, DType b);
ValueId lower_cast(Lower *l, ValueId v, DType t);             // int -> float -> int round trips fold
ValueId lower_real(Lower *l, ValueId v);                      // to the real dtype
ValueId lower_unary(Lower *l, OpKind op, ValueId x);
ValueId lower_binary(Lower *l, OpKind op, ValueId x, ValueId y);  // promotes; comparisons give bool; bool arithmetic as PyTorch
ValueId lower_scalar(Lower *l, OpKind op, ValueId x, double v);   // x op v in x's dtype
ValueId lower_number(Lower *l, DType t, double v);            // 0-dim
ValueId lower_where(Lower *l, ValueId c, ValueId x, ValueId y);
ValueId lower_not(Lower *l, ValueId c);
ValueId lower_sum_dims(Lower *l, ValueId x, int nd, const int *dims, bool keep);
ValueId lower_mean_dims(Lower *l, ValueId x, int nd, const int *dims, bool keep);
ValueId lower_drop_dims(Lower *l, ValueId x, int nd, const int *dims);  // removes dims of size 1
ValueId lower_logsumexp(Lower *l, ValueId x, int dim);        // keeps dim as 1; x real
ValueId lower_softmax(Lower *l, ValueId x, int dim);
ValueId lower_log_softmax(Lower *l, ValueId x, int dim);
ValueId lower_softplus(Lower *l, ValueId x, double beta, double threshold);
ValueId lower_log_sigmoid(Lower *l, ValueId x);
ValueId lower_reduction(Lower *l, ValueId x, int64_t reduction);  // 0 none, 1 mean, 2 sum
ValueId lower_move_dim(Lower *l, ValueId x, int from, int to);
// x.index_select(dim, idx), idx of any shape; idx must be in range.
ValueId lower_take(Lower *l, ValueId x, int dim, ValueId idx);
ValueId lower_wrap_index(Lower *l, ValueId idx, int64_t n);       // idx < 0 counts from the end
ValueId lower_matmul(Lower *l, ValueId x, ValueId y);             // torch.matmul
ValueId lower_broadcast_like(Lower *l, ValueId x, Shape s);       // checked
bool lower_broadcast(Lower *l, Shape a, Shape b, Shape *out);
int64_t lower_numel(Lower *l, Shape s);
ValueId lower_uniform(Lower *l, Shape s);                         // [0, 1)
ValueId lower_dropped(Lower *l, ValueId x, double p);             // dropout in training
ValueId lower_stack(Lower *l, int n, const ValueId *x, int dim);

#define ROWS(name) extern const LowerRow name[]
ROWS(lower_rows_pointwise);
ROWS(lower_rows_activation);
ROWS(lower_rows_cast);
ROWS(lower_rows_shape);
ROWS(lower_rows_split);
ROWS(lower_rows_create);
ROWS(lower_rows_reduce);
ROWS(lower_rows_scan);
ROWS(lower_rows_index);
ROWS(lower_rows_select);
ROWS(lower_rows_linear);
ROWS(lower_rows_norm);
ROWS(lower_rows_nn);
ROWS(lower_rows_einsum);
ROWS(lower_rows_loss);
ROWS(lower_rows_control);
ROWS(lower_rows_complex);
#undef ROWS
// ---- complex tensors (lower_complex.c) ------------------------------------------------------------------------------------
bool lower_is_complex_code(int code);
bool lower_has_complex(const Lower *l);                        // an argument of the current node is complex
void lower_complex_node(Lower *l, bool inplace);               // the current node, of which that is so
void lower_bind_complex(Lower *l, const char *name, int32_t re, int32_t im);
void lower_split_complex(Lower *l, const char *name, int32_t t);  // binds name to the complex view of t [..., 2]

// Inlines a subgraph: its inputs bound to the current node's arguments from `first` on, its outputs to the node's.
void lower_inline(Lower *l, const AtenGraph *sub, int first, bool stop_grad);
Status lower_nodes(Lower *l, const AtenGraph *g);
Status lower_bind_inputs(Lower *l, Diag *d);                  // tables, sources, names (lower_inputs.c)
Status lower_find_loss(Lower *l, Diag *d);
