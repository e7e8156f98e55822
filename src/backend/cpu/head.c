// The output layer with its cross-entropy: head_fwd, head_grad, head. Rows go through in chunks whose logits fit in a bounded
// scratch: logits = scale * h w^T; then along each row log-sum-exp and the picked logit, and the logits become their gradients in
// place; then dh = scale * dlogits w for the chunk and dw += scale * dlogits^T h. Each of these steps is cut over the workers by
// what it writes, and chunks come one after the other, so that sums have one order.
#include <string.h>
#include "backend/cpu/blas.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/vmath.h"

enum { HEAD_TILE = 16 };                   // no panel is cut finer
enum { HEAD_MAX_ROWS = 512 };              // more rows at a time make the products no faster
enum { HEAD_MIN_ROWS = 8 };                // fewer, and reading and writing dw is all that it does
enum { HEAD_LOGITS_NBYTES = 32 << 20 };

// Rows of a chunk: of about equal size, so that no small one is left.
static int64_t head_rows(int64_t n, int64_t nv, int elem) {
    int64_t fit = max_i64(HEAD_MIN_ROWS, min_i64(HEAD_MAX_ROWS, HEAD_LOGITS_NBYTES / max_i64(1, nv * elem)));
    int64_t chunks = max_i64(1, ceil_div(n, fit));
    return ceil_div(n, chunks);
}

static size_t head_scratch(const Operand *in) {
    int elem = dtype_nbytes(in[0].dtype);
    return (size_t)(head_rows(in[0].dim[0], in[1].dim[0], elem) * in[1].dim[0]) * (size_t)elem;
}

// Panels of `side` columns or rows for the workers, in whole register tiles.
static int64_t head_panel(int64_t side, const Pool *p) {
    return max_i64(HEAD_TILE, round_up(ceil_div(side, pool_nthreads(p)), HEAD_TILE));
}

#define REAL_BITS 32
#include "backend/cpu/head_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/head_impl.h"
#undef REAL_BITS

#define SCRATCH(name)                                                                                      \
    size_t cpu_##name##_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {      \
        (void)n, (void)out, (void)nthreads;                                                                \
        return head_scratch(in);                                                                           \
    }
SCRATCH(head_fwd)
SCRATCH(head_grad)
SCRATCH(head)
