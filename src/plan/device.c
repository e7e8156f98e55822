// Device models: seconds from work. They rank alternatives and predict times for people; nothing depends on them for
// correctness.
#include "plan/plan.h"

// One core of a present x86 server with AVX2 doing f32: a BLAS reaches about 60 Gflop/s, memory gives about 10 GB/s per core
// when all cores pull. Ranks are threads of one process, so the "link" is a memory copy.
static const DeviceModel cpu_model = {
    .name = "cpu",
    .matmul_flops = 60e9,
    .attention_flops = 40e9,
    .mem_bandwidth = 10e9,
    .link_bandwidth = 5e9,
    .link_latency_s = 20e-6,
    .kernel_latency_s = 2e-6,
    .host_bandwidth = 5e9,
    .mem_nbytes = 0,
};

// One H100 80GB (SXM) as measured, docs/performance.md: large bf16 products, cuDNN's causal attention forward and backward
// together at head size 64, device copies counting reads and writes, NVLink one way.
static const DeviceModel h100_model = {
    .name = "h100",
    .matmul_flops = 700e12,
    .attention_flops = 430e12,
    .mem_bandwidth = 2.7e12,
    .link_bandwidth = 300e9,
    .link_latency_s = 15e-6,
    .kernel_latency_s = 3e-6,
    .host_bandwidth = 50e9,
    .host_nbytes = 125e9,
    .mem_nbytes = 84.9e9,
    .context_nbytes = 600e6,
};

const DeviceModel *device_model_cpu(void) { return &cpu_model; }
const DeviceModel *device_model_h100(void) { return &h100_model; }

// Roofline: a kernel is bound by its arithmetic or by its traffic, whichever takes longer.
double cost_seconds(const DeviceModel *m, const Node *n, const Operand *in, const Operand *out, const Cost *c) {
    OpKind op = n->op;
    double rate = m->matmul_flops;
    if (op == OP_ATTENTION || op == OP_ATTENTION_GRAD || op == OP_SDPA) rate = m->attention_flops;
    double compute = rate > 0 ? c->flops / rate : 0;
    double memory = m->mem_bandwidth > 0 ? c->nbytes / m->mem_bandwidth : 0;
    return (compute > memory ? compute : memory) + m->kernel_latency_s * (double)(1 + c->launches);
}
