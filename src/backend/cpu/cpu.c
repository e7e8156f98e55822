// The CPU backend: which kernel and how much scratch for which op, memory, threads.
#include <sys/mman.h>
#include "backend/cpu/kernels.h"
#include "backend/cpu/kernels_b.h"

typedef struct CpuKernel {
    KernelFn f32, f64;
    size_t (*scratch)(const Node *n, const Operand *in, const Operand *out, int nthreads);  // NULL: none
} CpuKernel;

#define ANY(name) {cpu_##name, cpu_##name, NULL}
#define ANY_SCRATCH(name) {cpu_##name, cpu_##name, cpu_##name##_scratch}
#define TYPED(name) {cpu_##name##_f32, cpu_##name##_f64, cpu_##name##_scratch}
static const CpuKernel kernels[OP_COUNT] = {
    [OP_PARAM] = ANY(loaded),
    [OP_INPUT] = ANY(loaded),
    [OP_CONSTANT] = ANY(loaded),
    [OP_FULL] = ANY(full),
    [OP_IOTA] = ANY(iota),
    [OP_RANDOM] = ANY(random),
    [OP_RESHAPE] = ANY(copy),
    [OP_PERMUTE] = ANY(permute),
    [OP_BROADCAST] = ANY(broadcast),
    [OP_SLICE] = ANY(slice),
    [OP_PAD] = ANY(pad),
    [OP_CONCAT] = ANY(concat),
    [OP_SUM] = ANY_SCRATCH(sum),
    [OP_AMAX] = ANY_SCRATCH(amax),
    [OP_LOGSUMEXP] = ANY(logsumexp),
    [OP_CUMSUM] = ANY(cumsum),
    [OP_EMBEDDING] = ANY(embedding),
    [OP_EMBEDDING_GRAD] = ANY(embedding_grad),
    [OP_PICK] = ANY(pick),
    [OP_GATHER] = ANY(gather),
    [OP_SCATTER_ADD] = ANY(scatter_add),
    [OP_INDEX_PUT] = ANY(index_put),
    [OP_SORT] = ANY_SCRATCH(sort),
    [OP_TOPK] = ANY_SCRATCH(sort),
    [OP_HISTOGRAM] = ANY(histogram),
    [OP_DOT] = TYPED(dot),
    [OP_EXPERT_MATMUL] = TYPED(expert_matmul),
    [OP_EXPERT_MATMUL_GRAD] = TYPED(expert_matmul_grad),
    [OP_CONV1D] = TYPED(conv1d),
    [OP_CONV1D_GRAD_X] = TYPED(conv1d_grad_x),
    [OP_CONV1D_GRAD_W] = TYPED(conv1d_grad_w),
    [OP_HEAD_FWD] = TYPED(head_fwd),
    [OP_HEAD_GRAD] = TYPED(head_grad),
    [OP_HEAD] = TYPED(head),
    [OP_ATTENTION] = TYPED(attention),
    [OP_ATTENTION_GRAD] = TYPED(attention_grad),
    [OP_ADAMW] = ANY(adamw),
    [OP_RESHARD] = ANY(reshard),
    [OP_FUSED] = ANY_SCRATCH(fused),
};
static const CpuKernel pointwise = ANY_SCRATCH(pointwise);

static const CpuKernel *kernel_entry(OpKind op) { return op_is_pointwise(op) ? &pointwise : &kernels[op]; }

static KernelFn cpu_kernel(OpKind op, DType real) {
    const CpuKernel *k = kernel_entry(op);
    return real == DT_F32 ? k->f32 : real == DT_F64 ? k->f64 : NULL;
}

static size_t cpu_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    const CpuKernel *k = kernel_entry(n->op);
    return k->scratch ? k->scratch(n, in, out, nthreads) : 0;
}

// Fresh pages from the system: zeroed, and counted against the process only once they are touched.
static void *cpu_alloc(size_t nbytes) {
    void *p = mmap(NULL, nbytes ? nbytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void cpu_free(void *p, size_t nbytes) {
    if (p) munmap(p, nbytes ? nbytes : 1);
}

static Pool *cpu_pool_new(int nthreads) {
    cpu_blas_init();
    return pool_new(nthreads);
}

const Backend backend_cpu = {
    .name = "cpu",
    .kernel = cpu_kernel,
    .scratch = cpu_scratch,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .pool_new = cpu_pool_new,
    .pool_free = pool_free,
};
