// What pointwise.c shares: the gradient rules (pointwise_grad.c) with its records, the axes with special.c.
#pragma once
#include "ops/rules.h"

// Axes of a pointwise op (or fused group) are the dims of its output; a dim that is broadcast runs along none.
int pointwise_axis(const Graph *g, const Node *n, int slot, int dim);

Status grad_neg(GradCtx *c, Diag *d);
Status grad_abs(GradCtx *c, Diag *d);
Status grad_exp(GradCtx *c, Diag *d);
Status grad_expm1(GradCtx *c, Diag *d);
Status grad_log(GradCtx *c, Diag *d);
Status grad_log1p(GradCtx *c, Diag *d);
Status grad_sqrt(GradCtx *c, Diag *d);
Status grad_rsqrt(GradCtx *c, Diag *d);
Status grad_sin(GradCtx *c, Diag *d);
Status grad_cos(GradCtx *c, Diag *d);
Status grad_tanh(GradCtx *c, Diag *d);
Status grad_sigmoid(GradCtx *c, Diag *d);
Status grad_erf(GradCtx *c, Diag *d);
Status grad_silu(GradCtx *c, Diag *d);
Status grad_gelu(GradCtx *c, Diag *d);
Status grad_gelu_tanh(GradCtx *c, Diag *d);
Status grad_cast(GradCtx *c, Diag *d);
Status grad_add(GradCtx *c, Diag *d);
Status grad_sub(GradCtx *c, Diag *d);
Status grad_mul(GradCtx *c, Diag *d);
Status grad_div(GradCtx *c, Diag *d);
Status grad_pow(GradCtx *c, Diag *d);
Status grad_max(GradCtx *c, Diag *d);
Status grad_min(GradCtx *c, Diag *d);
Status grad_mod(GradCtx *c, Diag *d);
Status grad_where(GradCtx *c, Diag *d);
