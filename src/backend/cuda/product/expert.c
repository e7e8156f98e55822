// expert_matmul and the gradient of its matrices. Rows are ordered by expert on the device with a counting sort (stable: results
// do not depend on the order of threads), then a grouped product reads the groups' places from device memory: the host never
// waits.
#include "backend/cuda/product/expert.h"
#include "backend/cuda/kernels.h"
#include "base/containers.h"

static int64_t chunks(int64_t n) { return max_i64(1, min_i64(EXPERT_CHUNKS, ceil_div(n, EXPERT_STAGE))); }

static size_t order_nbytes(int64_t n, int64_t nexpert) {
    return sizeof(int64_t) * (size_t)(2 * (nexpert + 2) + chunks(n) * (nexpert + 1) + n);
}

static ExpertOrder order_of(const KernelArgs *k, int64_t nexpert, int tile) {
    int64_t n = k->in[0].dim[0];
    ExpertOrder o = {.expert = k->in[1].data, .n = n, .nexpert = nexpert, .tile = tile, .nchunk = chunks(n)};
    o.chunk = ceil_div(n, o.nchunk);
    o.first = k->scratch;
    o.tile_first = o.first + nexpert + 2;
    o.count = o.tile_first + nexpert + 2;
    o.order = o.count + o.nchunk * (nexpert + 1);
    return o;
}

static Status check_types(const KernelArgs *k, const Operand *second, Diag *d) {
    DType t = k->in[0].dtype, r = k->out[0].dtype;
    if (second->dtype == t && ((t == DT_F32 && r == DT_F32) || (t == DT_BF16 && (r == DT_F32 || r == DT_BF16)))) return ST_OK;
    return diag_error(d, ST_UNSUPPORTED, "%s: CUDA has no product of %s and %s that gives %s: use f32 or bf16",
                      op_name(k->node->op), dtype_name(t), dtype_name(second->dtype), dtype_name(r));
}

size_t cuda_expert_matmul_scratch(const Node *n, const Operand *in, const Operand *out) {
    (void)n, (void)out;
    return order_nbytes(in[0].dim[0], in[2].dim[0]);
}

Status cuda_expert_matmul_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    (void)dev;
    *state = NULL;
    return check_types(k, &k->in[2], d);
}

Status cuda_expert_matmul(const KernelArgs *k, Diag *d) {
    (void)d;
    const Operand *x = &k->in[0], *w = &k->in[2], *y = &k->out[0];
    if (x->dim[0] == 0 || y->dim[1] == 0) return ST_OK;
    int half = x->dtype == DT_BF16;
    ExpertProduct p = {.x = x->data, .w = w->data, .y = y->data, .nx = x->dim[1], .ny = y->dim[1]};
    p.trans_w = node_int_or(k->node, ATTR_TRANS_W, 0) != 0;
    p.rows = order_of(k, w->dim[0], expert_tile(half, p.nx, p.ny, p.x, p.w));
    expert_order_launch(k->device->stream, &p.rows);
    expert_product_launch(k->device->stream, half, y->dtype == DT_BF16, &p);
    return ST_OK;
}

size_t cuda_expert_matmul_grad_scratch(const Node *n, const Operand *in, const Operand *out) {
    (void)n;
    return order_nbytes(in[0].dim[0], out[0].dim[0]);
}

Status cuda_expert_matmul_grad_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d) {
    (void)dev;
    *state = NULL;
    return check_types(k, &k->in[2], d);
}

Status cuda_expert_matmul_grad(const KernelArgs *k, Diag *d) {
    (void)d;
    const Operand *x = &k->in[0], *g = &k->in[2], *dw = &k->out[0];
    if (dw->dim[0] == 0 || x->dim[1] == 0 || g->dim[1] == 0) return ST_OK;
    const Operand *left = x, *right = g;
    if (node_int_or(k->node, ATTR_TRANS_W, 0) != 0) left = g, right = x;
    int half = x->dtype == DT_BF16;
    ExpertGrad p = {.left = left->data, .right = right->data, .dw = dw->data, .nl = left->dim[1], .nr = right->dim[1]};
    p.add = k->nin == 4 ? k->in[3].data : NULL;
    p.rows = order_of(k, dw->dim[0], expert_tile(half, p.nl, p.nr, p.left, p.right));
    expert_order_launch(k->device->stream, &p.rows);
    expert_grad_launch(k->device->stream, half, dw->dtype == DT_BF16, &p);
    return ST_OK;
}
