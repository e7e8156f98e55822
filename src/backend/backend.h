// The backend vtable: kernels for core ops on one device. The CPU backend is src/backend/cpu, the one for NVIDIA GPUs
// src/backend/cuda; a machine that has no such device can still plan for it.
#pragma once
#include "ops/op.h"

typedef struct Pool Pool;      // worker threads of one rank (backend/cpu/pool.h)
typedef struct Device Device;  // one rank's connection to a device with memory of its own; NULL on the CPU

typedef struct KernelArgs {
    const Node *node;      // attributes; ids refer to the global graph
    NodeId id;             // of the node; a device reports errors by it
    int nin, nout;
    const Operand *in;     // local shapes, spans, data (device addresses on a device)
    const Operand *out;    // data may alias in[0] for pointwise ops when the plan says so, and for OPF_INPLACE ops
    void *scratch;         // as many bytes as `scratch` asked for, 256-byte aligned
    size_t scratch_nbytes;
    Pool *pool;            // CPU
    Device *device;        // devices: the stream to launch on, library handles, the error record
    void *state;           // devices: what `prepare` made for this step of the plan
    uint64_t run_seed;     // random numbers are f(run_seed, step, node's seed, global index)
    int64_t step;          // on a device: for messages only; kernels read the step from device memory (captured launches repeat)
} KernelArgs;
typedef Status (*KernelFn)(const KernelArgs *k, Diag *d);  // on a device: launches and returns

// One box of elements to copy (or to reduce into what is there): `size` elements per dim between two dense row-major arrays.
typedef struct BoxCopy {
    void *dst;
    const void *src;
    int ndim;
    const int64_t *dst_dim, *dst_start, *src_dim, *src_start, *size;  // [ndim]
    DType dtype;
    Reduce reduce;         // RED_NONE: overwrite
} BoxCopy;

typedef enum CopyDirection { COPY_TO_HOST, COPY_TO_DEVICE, COPY_DIRECTIONS } CopyDirection;

// A device with memory of its own. All calls for one Device come from one thread at a time; launches are asynchronous and in
// order.
typedef struct DeviceApi {
    int (*count)(void);    // devices that can be used now; 0 where there is no driver
    // For `autosp --version`, one line: what it was built with and the devices that can be used now. Makes no connection.
    void (*about)(char *text, size_t nbytes);
    // Connects rank `rank` to device rank % count and allocates its arena there, zeroed. *arena is a device address.
    Status (*open)(int rank, int nranks, size_t arena_nbytes, Device **out, void **arena, Diag *d);
    void (*close)(Device *dev);  // NULL is fine
    Status (*available)(int rank, size_t *free_nbytes, size_t *total_nbytes, Diag *d);  // of that rank's device
    // Once for each step of the plan, in order, before anything runs: compiles, tunes, builds plans. May launch on the operands
    // (their contents are undefined then). *state is passed to the kernel; it is owned by the device.
    Status (*prepare)(Device *dev, const KernelArgs *k, void **state, Diag *d);
    Status (*begin)(Device *dev, uint64_t run_seed, int64_t step, Diag *d);  // of a training step
    // Waits for everything launched. An error that a kernel recorded: its Status and text, and *failed its node.
    Status (*finish)(Device *dev, NodeId *failed, Diag *d);
    Status (*read)(Device *dev, void *host, const void *device, size_t nbytes, Diag *d);   // waits
    Status (*write)(Device *dev, void *device, const void *host, size_t nbytes, Diag *d);  // waits
    Status (*copy)(Device *dev, void *dst, const void *src, size_t nbytes, Diag *d);       // device to device, peers included
    Status (*fill)(Device *dev, void *dst, DType t, int64_t n, double value, Diag *d);
    Status (*copy_box)(Device *dev, const BoxCopy *b, Diag *d);
    // Host memory that copies beside the kernels reach, for as long as the device is open. host_free waits for what is being copied.
    Status (*host_alloc)(Device *dev, size_t nbytes, void **out, Diag *d);
    void (*host_free)(Device *dev, void *p, size_t nbytes);
    // Once everything launched so far has run, copies on the stream of its direction: copies of one direction run one after the other, beside
    // the kernels launched later. `slot` (0, 1, ...) names the copy until the step ends.
    Status (*copy_start)(Device *dev, CopyDirection to, void *dst, const void *src, size_t nbytes, int slot, Diag *d);
    Status (*copy_wait)(Device *dev, int slot, Diag *d);  // what is launched from here on runs once that copy is complete
    // Seconds from mark 0 to when that copy began and ended; after finish.
    Status (*copy_times)(Device *dev, int slot, double *begin, double *end, Diag *d);
    // The launches between capture_begin and capture_end are recorded instead of run; replay runs them again. NULL: it
    // cannot record.
    Status (*capture_begin)(Device *dev, Diag *d);
    Status (*capture_end)(Device *dev, void **graph, Diag *d);
    Status (*replay)(Device *dev, void *graph, Diag *d);
    // Times of the launches: marks on the stream (see exec/profile.c). mark(dev, i) records event i; elapsed in seconds after
    // finish.
    Status (*mark)(Device *dev, int i, Diag *d);
    Status (*elapsed)(Device *dev, int from, int to, double *seconds, Diag *d);
    // Memory of ranks in other processes: a handle of 64 bytes names an arena, open_peer maps it.
    Status (*export_arena)(Device *dev, void *handle64, Diag *d);
    Status (*open_peer)(Device *dev, const void *handle64, void **arena, Diag *d);
} DeviceApi;

enum {
    BACKEND_BF16 = 1,       // dot, attention, pointwise and movement take bf16
    BACKEND_FUSE_ROWS = 2,  // fused nodes may have views, row reductions and column sums
    BACKEND_EPILOGUE = 4,   // dot takes a third operand
};

typedef struct Backend {
    const char *name;
    unsigned features;
    // The kernel of an op whose floats are `real` (DT_F32 or DT_F64), NULL if this backend has none. (bf16 beside f32 counts as
    // f32.)
    KernelFn (*kernel)(OpKind op, DType real);
    // Scratch bytes that the kernel needs for these operands with nthreads workers (data pointers unset). No device is needed to
    // ask.
    size_t (*scratch)(const Node *n, const Operand *in, const Operand *out, int nthreads);
    void *(*alloc)(size_t nbytes);    // CPU. The arena: zeroed, 64-byte aligned; NULL when it does not fit
    void (*free)(void *p, size_t nbytes);
    Pool *(*pool_new)(int nthreads);  // nthreads >= 1, the caller's thread included; NULL on a device
    void (*pool_free)(Pool *p);
    const DeviceApi *device;          // NULL: kernels run on host memory
    // Which of its attention kernels takes this node, by the name that device models have it under (plan/device.h); data pointers
    // unset, no device is needed. NULL: there is one.
    const char *(*attention_kernel)(const Node *n, const Operand *in, const Operand *out);
} Backend;
extern const Backend backend_cpu;
