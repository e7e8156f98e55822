// conv1d and its gradients: out[b, o, t] = sum over c, j of w[o, c, j] * x[b, c, t*stride + j*dilation - lo], zeros outside x.
// Positions are global; a rank holds intervals of them, halos included.
#include "backend/cuda/kernels.h"
#include "backend/cuda/device/launch.h"
#include "backend/cuda/device/operand.h"

static Status spans_of(const Axis *a, const char *what, GpuSpans *s, Diag *d) {
    if (a->nspan > GPU_SPANS)
        return diag_error(
            d, ST_UNSUPPORTED,
            "%s: this rank holds %d intervals of the sequence; device cuda takes at most %d here: use another strategy", what,
            a->nspan, GPU_SPANS);
    s->n = a->nspan;
    for (int i = 0; i < a->nspan; i++) s->begin[i] = axis_spans(a)[i].begin, s->end[i] = axis_spans(a)[i].end;
    return ST_OK;
}

static Status conv_of(const KernelArgs *k, const Operand *x, const Operand *w, const Operand *y, GpuConv *c, GpuSpans *y_spans,
                      Diag *d) {
    Axis ax = axis_of(x, 2), ay = axis_of(y, 2);
    *c = (GpuConv){.x = x->data,
                   .w = w->data,
                   .y = y->data,
                   .out = k->out[0].data,
                   .node = (int)k->id,
                   .batch = x->dim[0],
                   .in_ch = w->dim[1],
                   .taps = w->dim[2],
                   .x_n = ax.n,
                   .y_n = ay.n,
                   .x_len = x->global[2],
                   .y_len = y->global[2]};
    c->groups = c->in_ch > 0 ? x->dim[1] / c->in_ch : 0;
    c->out_ch = c->groups > 0 ? y->dim[1] / c->groups : 0;
    c->stride = node_int_or(k->node, ATTR_STRIDE, 1), c->dilation = node_int_or(k->node, ATTR_DILATION, 1);
    c->lo = node_int_or(k->node, ATTR_LO, 0);
    const char *what = op_name(k->node->op);
    TRY(gpu_type_of(x->dtype, what, &c->type, d));
    for (int i = 0; i < k->nin; i++)
        if (k->in[i].dtype != k->out[0].dtype || (c->type != GPU_F32 && c->type != GPU_BF16))
            return diag_error(d, ST_UNSUPPORTED, "%s: device cuda needs operands of one type, f32 or bf16; operand %d is %s",
                              what, i, dtype_name(k->in[i].dtype));
    TRY(spans_of(&ax, what, &c->x_spans, d));
    return spans_of(&ay, what, y_spans, d);
}

Status cuda_conv1d(const KernelArgs *k, Diag *d) {
    GpuConv c;
    GpuSpans y;
    TRY(conv_of(k, &k->in[0], &k->in[1], &k->out[0], &c, &y, d));
    if (operand_elems(&k->out[0]) > 0) gpu_conv1d(k->device, &c, &y);
    return ST_OK;
}

Status cuda_conv1d_grad_x(const KernelArgs *k, Diag *d) {
    GpuConv c;
    GpuSpans y;
    TRY(conv_of(k, &k->out[0], &k->in[1], &k->in[0], &c, &y, d));
    if (operand_elems(&k->out[0]) > 0) gpu_conv1d_grad_x(k->device, &c, &y);
    return ST_OK;
}

// Used by depthwise ones: as many channels as rows of the result.
size_t cuda_conv1d_grad_w_scratch(const Node *n, const Operand *in, const Operand *out) {
    int64_t pieces = gpu_conv1d_grad_w_pieces(out[0].dim[0], in[0].dim[2]);
    return pieces > 1 ? (size_t)(8 * pieces * operand_elems(&out[0])) : 0;
}

Status cuda_conv1d_grad_w(const KernelArgs *k, Diag *d) {
    GpuConv c;
    GpuSpans y;
    TRY(conv_of(k, &k->in[1], &k->out[0], &k->in[0], &c, &y, d));
    CHECK(k->scratch_nbytes >= cuda_conv1d_grad_w_scratch(k->node, k->in, k->out), "scratch too small");
    if (operand_elems(&k->out[0]) > 0) gpu_conv1d_grad_w(k->device, &c, &y, k->scratch);
    return ST_OK;
}
