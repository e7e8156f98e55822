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
    .mem_nbytes = 0,
};

const DeviceModel *device_model_cpu(void) { return &cpu_model; }

// Roofline: a kernel is bound by its arithmetic or by its traffic, whichever takes longer.
double cost_seconds(const DeviceModel *m, OpKind op, const Cost *c) {
    double rate = m->matmul_flops;
    if (op == OP_ATTENTION || op == OP_ATTENTION_GRAD || op == OP_SDPA) rate = m->attention_flops;
    double compute = rate > 0 ? c->flops / rate : 0;
    double memory = m->mem_bandwidth > 0 ? c->nbytes / m->mem_bandwidth : 0;
    return (compute > memory ? compute : memory) + m->kernel_latency_s;
}
