// The loop of adamw.c for one float type (see real.h). Operands (p, g, m, v, hyper, scale); outputs are p, m, v themselves.
#include "backend/cpu/real.h"

static void FN(adamw_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const KernelArgs *k = ctx;
    const REAL *p = k->in[0].data, *g = k->in[1].data, *m = k->in[2].data, *v = k->in[3].data, *hyper = k->in[4].data;
    REAL *new_p = k->out[0].data, *new_m = k->out[1].data, *new_v = k->out[2].data;
    REAL b1 = (REAL)node_float(k->node, ATTR_BETA1), b2 = (REAL)node_float(k->node, ATTR_BETA2);
    REAL c1 = (REAL)(1 - node_float(k->node, ATTR_BETA1)), c2 = (REAL)(1 - node_float(k->node, ATTR_BETA2));
    REAL eps = (REAL)node_float(k->node, ATTR_EPS), scale = *(const REAL *)k->in[5].data;
    REAL keep = (REAL)(1 - (double)hyper[0] * node_float_or(k->node, ATTR_DECAY, 0));
    REAL rate = (REAL)((double)hyper[0] / (double)hyper[1]), inv_root = (REAL)(1 / sqrt((double)hyper[2]));
    KERNEL_LOOP for (int64_t i = begin; i < end; i++) {
        REAL gi = g[i] * scale, mi = b1 * m[i] + c1 * gi, vi = b2 * v[i] + c2 * gi * gi;
        new_p[i] = p[i] * keep - rate * mi / (FN(root)(vi) * inv_root + eps);
        new_m[i] = mi, new_v[i] = vi;
    }
}
