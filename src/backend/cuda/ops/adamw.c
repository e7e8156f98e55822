// AdamW in place, as torch.optim.AdamW computes it (decoupled weight decay, Loshchilov & Hutter 2019). Operands (p, g, m, v,
// hyper, scale) and perhaps the parameter's copy in bf16; outputs are p, m, v and that copy, overwritten.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

Status cuda_adamw(const KernelArgs *k, Diag *d) {
    for (int i = 0; i < 6; i++)
        if (k->in[i].dtype != DT_F32)
            return diag_error(d, ST_UNSUPPORTED,
                              "adamw: operand %d is %s; on device cuda parameters, gradients and moments are f32", i,
                              dtype_name(k->in[i].dtype));
    GpuAdamw a = {.p = k->out[0].data, .m = k->out[1].data, .v = k->out[2].data, .g = k->in[1].data, .hyper = k->in[4].data,
                  .scale = k->in[5].data, .n = operand_elems(&k->in[0])};
    for (int j = 0; j < 3; j++) CHECK(k->out[j].data == k->in[j ? j + 1 : 0].data, "adamw: output %d is not in place", j);
    if (k->nin == 7) {
        if (k->out[3].dtype != DT_BF16)
            return diag_error(d, ST_UNSUPPORTED, "adamw: a copy in %s; it is made in bf16", dtype_name(k->out[3].dtype));
        a.half = k->out[3].data;
    }
    a.beta1 = node_float(k->node, ATTR_BETA1), a.beta2 = node_float(k->node, ATTR_BETA2);
    a.eps = node_float(k->node, ATTR_EPS), a.decay = node_float_or(k->node, ATTR_DECAY, 0);
    if (a.n > 0) gpu_adamw(k->device, &a);
    return ST_OK;
}
