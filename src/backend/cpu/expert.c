// expert_matmul and its weight gradient. Rows are ordered by expert with a counting sort of their indices; then each expert's
// rows go through its matrix a panel at a time, gathered into a worker's scratch. A panel of rows (or of a gradient's rows) is
// one task.
#include <string.h>
#include "backend/cpu/blas.h"
#include "backend/cpu/kernels_b.h"
#include "backend/cpu/tasks.h"
#include "base/containers.h"

enum { ROWS = 256 };  // rows gathered at a time

// order: rows sorted by expert, stable; those of expert e are order[first[e]] .. order[first[e + 1]). Rows whose expert is
// outside [0, nexpert) follow from first[nexpert] on.
typedef struct ExpertRows {
    int64_t nexpert, n;
    int64_t *first;  // [nexpert + 2]
    int64_t *order;  // [n]
} ExpertRows;

static size_t round_bytes(size_t n) { return (n + 63) & ~(size_t)63; }
static size_t rows_nbytes(int64_t nexpert, int64_t n) { return round_bytes((size_t)(nexpert + 2 + n) * sizeof(int64_t)); }

static ExpertRows sort_rows(const int64_t *expert, int64_t n, int64_t nexpert, void *memory) {
    ExpertRows r = {.nexpert = nexpert, .n = n, .first = memory, .order = (int64_t *)memory + nexpert + 2};
    memset(r.first, 0, (size_t)(nexpert + 2) * sizeof *r.first);
#define BIN(i) (expert[i] >= 0 && expert[i] < nexpert ? expert[i] : nexpert)
    for (int64_t i = 0; i < n; i++) r.first[BIN(i) + 1]++;
    for (int64_t e = 0; e <= nexpert; e++) r.first[e + 1] += r.first[e];
    for (int64_t i = 0; i < n; i++) r.order[r.first[BIN(i)]++] = i;
#undef BIN
    for (int64_t e = nexpert + 1; e > 0; e--) r.first[e] = r.first[e - 1];  // each had moved to the start of the next
    r.first[0] = 0;
    return r;
}

// The gradient's panels: enough of them that experts of unequal load even out.
static int64_t grad_panels(int64_t nexpert, int nthreads) { return nexpert >= 4 * (int64_t)nthreads ? 1 : 2 * (int64_t)nthreads; }

#define REAL_BITS 32
#include "backend/cpu/expert_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/expert_impl.h"
#undef REAL_BITS

static size_t worker_scratch(int64_t cols, DType t, int nthreads) {
    return (size_t)nthreads * round_bytes((size_t)(ROWS * cols) * (size_t)dtype_nbytes(t));
}
size_t cpu_expert_matmul_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n;
    return rows_nbytes(in[2].dim[0], in[0].dim[0]) + worker_scratch(in[0].dim[1] + out[0].dim[1], in[0].dtype, nthreads);
}
size_t cpu_expert_matmul_grad_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    (void)n;
    return rows_nbytes(out[0].dim[0], in[0].dim[0]) + worker_scratch(in[0].dim[1] + in[2].dim[1], in[0].dtype, nthreads);
}
