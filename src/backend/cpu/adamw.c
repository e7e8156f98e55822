// AdamW in place, as torch.optim.AdamW computes it (decoupled weight decay, Loshchilov & Hutter 2019).
#include <math.h>
#include "backend/cpu/kernels.h"

static inline float root_f32(float x) { return sqrtf(x); }
static inline double root_f64(double x) { return sqrt(x); }

#define REAL_BITS 32
#include "backend/cpu/adamw_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/adamw_impl.h"

Status cpu_adamw(const KernelArgs *k, Diag *d) {
    (void)d;
    bool f32 = k->in[0].dtype == DT_F32;
    kernel_run(k->pool, f32 ? adamw_part_f32 : adamw_part_f64, (void *)k, operand_elems(&k->in[0]), 4);
    return ST_OK;
}
