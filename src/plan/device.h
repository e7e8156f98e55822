// Device models: seconds from work. They rank alternatives and predict times for people; nothing depends on them for correctness.
// A model is a file (src/plan/devices/*.json, docs/memory.md "Device models"): what a device has, and rates measured on it.
#pragma once
#include "base/arena.h"
#include "ops/op.h"

enum { DEVICE_POINTS = 16, DEVICE_ATTENTION = 16, DEVICE_MATCH = 4 };

typedef struct RateCurve {       // rates at rising sizes; between them a power law, beyond the ends the rate there
    int n;
    double at[DEVICE_POINTS], rate[DEVICE_POINTS];
} RateCurve;
double rate_at(const RateCurve *c, double size);  // 0 without points

// Which operand's contracted dim lies contiguous: a [m,k] b [n,k] (a linear layer), b [k,n] (its input's gradient), a [k,m] (its
// weight's gradient, f32 from bf16).
typedef enum ProductForm { PRODUCT_NT, PRODUCT_NN, PRODUCT_TN, PRODUCT_NFORM } ProductForm;
typedef enum ProductType { PRODUCT_F32, PRODUCT_BF16, PRODUCT_NTYPE } ProductType;
extern const char *const product_form_names[PRODUCT_NFORM];  // "nt", "nn", "tn"
extern const char *const product_type_names[PRODUCT_NTYPE];  // "f32", "bf16"

typedef struct AttentionRates {  // FLOP/s on visible pairs; `at` is the length of the causal sequence with as many keys per query
    const char *kernel;          // as Backend.attention_kernel names it
    int head;
    RateCurve forward, backward;
} AttentionRates;

typedef struct DeviceModel {
    const char *name, *about;
    const char *source;          // where the numbers come from: "measured by us, ..." or "published: ..."
    bool measured;               // by us, on such a device
    const char *backend;         // whose kernels it describes: "cpu", "cuda"
    const char *runs;            // NULL, or why nothing can run on it yet
    int nmatch;
    const char *match[DEVICE_MATCH];  // parts of the names under which the driver knows such devices
    double mem_nbytes;           // of one device; 0 unknown
    double context_nbytes;       // beside the arena: driver context, library handles, compiled kernels
    double host_mem_nbytes;      // host memory for each device; 0 unknown
    RateCurve product[PRODUCT_NTYPE][PRODUCT_NFORM];  // FLOP/s over FLOPs, of products that fill whole waves of tiles
    double units;                // multiprocessors (1: no waves)
    double tile;                 // rows and columns of the tile of a result that one of them makes
    int nattention;
    AttentionRates attention[DEVICE_ATTENTION];
    double vector_flops;         // arithmetic outside products and attention, per second
    double mem_bandwidth;        // bytes per second, read and written, of a device copy
    double efficiency[OP_COUNT]; // of an op's kernel, in parts of mem_bandwidth; 0: `other`
    double other_efficiency;
    double kernel_latency_s;     // what a kernel takes besides its work, in a replayed step
    double link_bandwidth;       // to other devices, bytes per second each way
    double link_latency_s;       // per message round
    double to_host_bandwidth, from_host_bandwidth;  // pinned host memory, bytes per second; both ways at once
    double host_latency_s;       // per copy
} DeviceModel;

// The shipped models, in order; NULL after the last. `find`: by name, NULL if there is none.
const DeviceModel *device_model_at(int i);
const DeviceModel *device_model_find(const char *name);
const DeviceModel *device_model_cpu(void);
const DeviceModel *device_model_h100(void);
// The model whose `match` is a part of what the driver calls the device; NULL if there is none.
const DeviceModel *device_model_of(const char *driver_name);
// What the driver calls the first GPU of this machine (false: there is none, or it does not say), and its model (NULL: none).
bool device_name_here(char *name, size_t nbytes);
const DeviceModel *device_model_here(void);
// A model from a file or from text, in arena `a`. Errors name the file, the key and the reason.
Status device_model_load(Arena *a, const char *path, const DeviceModel **out, Diag *d);
Status device_model_parse(Arena *a, const char *what, const char *text, int64_t n, const DeviceModel **out, Diag *d);
// The same format; `notes` (may be NULL) are lines for people.
Status device_model_save(const DeviceModel *m, int nnote, const char *const *note, const char *path, Diag *d);

// Seconds of node n's kernel on operands in[n->nin], out[n->nout] of one rank; c is what its op's cost rule says of them.
// Bytes of the device beside a rank's arena: driver context, library handles and kernels, and the tables that let it reach `host_nbytes` of
// pinned host memory (8 bytes for each page of 4 KiB, measured).
double device_beside_nbytes(const DeviceModel *m, int64_t host_nbytes);
double cost_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c);
// Part of the multiprocessors that have work while a product's result is made, over all its waves of tiles.
double product_wave_part(const DeviceModel *m, double batch, double rows, double cols, double k);
// The length under which an attention's rate is found.
double attention_length(const Node *n, const Operand *in, const Cost *c);
// A message round in which this rank sends and receives so many bytes to and from others; `copied`: bytes that packing and
// unpacking read and write, in `ncopy` launches.
double exchange_seconds(const DeviceModel *m, double sent, double received, double copied, int ncopy, bool collective);
