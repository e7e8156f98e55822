// logsumexp and cumsum: along one dim, which is never divided among ranks. [outer, n, inner]; a unit of parallel work is one
// outer index and COLUMNS of the inner ones.
#include <math.h>
#include "backend/cpu/kernels.h"
#include "backend/cpu/vmath.h"

enum { LANES = 16, COLUMNS = 64, CHUNK = 256 };

typedef struct Scan {
    int64_t outer, n, inner, groups;
    bool reverse;
    const void *src;
    void *dst;
} Scan;

#define REAL_BITS 32
#include "backend/cpu/scan_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/scan_impl.h"

static Scan scan_of(const KernelArgs *k) {
    Axis a = axis_of(&k->in[0], (int)node_int(k->node, ATTR_DIM));
    Scan s = {.outer = a.outer, .n = a.n, .inner = a.inner, .groups = ceil_div(a.inner, COLUMNS)};
    s.reverse = node_int_or(k->node, ATTR_REVERSE, 0) != 0;
    s.src = k->in[0].data, s.dst = k->out[0].data;
    return s;
}

Status cpu_logsumexp(const KernelArgs *k, Diag *d) {
    (void)d;
    Scan s = scan_of(k);
    PoolFn part = k->in[0].dtype == DT_F32 ? lse_part_f32 : lse_part_f64;
    kernel_run(k->pool, part, &s, s.outer * s.groups, 4 * s.n * min_i64(s.inner, COLUMNS));
    return ST_OK;
}

// Float sums run in float64, so that the error does not grow with the length.
#define CUMSUM(name, T, ACC)                                                                          \
    static void name(void *ctx, int64_t begin, int64_t end, int worker) {                             \
        (void)worker;                                                                                 \
        const Scan *s = ctx;                                                                          \
        for (int64_t u = begin; u < end; u++) {                                                       \
            int64_t c = u % s->groups * COLUMNS, columns = min_i64(COLUMNS, s->inner - c);            \
            int64_t base = u / s->groups * s->n * s->inner + c;                                       \
            ACC sum[COLUMNS] = {0};                                                                   \
            for (int64_t i = 0; i < s->n; i++) {                                                      \
                int64_t at = base + (s->reverse ? s->n - 1 - i : i) * s->inner;                       \
                for (int64_t j = 0; j < columns; j++) {                                               \
                    sum[j] += (ACC)((const T *)s->src)[at + j];                                       \
                    ((T *)s->dst)[at + j] = (T)sum[j];                                                \
                }                                                                                     \
            }                                                                                         \
        }                                                                                             \
    }
CUMSUM(cumsum_f32, float, double)
CUMSUM(cumsum_f64, double, double)
CUMSUM(cumsum_i64, int64_t, uint64_t)

Status cpu_cumsum(const KernelArgs *k, Diag *d) {
    Scan s = scan_of(k);
    PoolFn part = k->in[0].dtype == DT_F32 ? cumsum_f32 : k->in[0].dtype == DT_F64 ? cumsum_f64 : cumsum_i64;
    if (!dtype_is_float(k->in[0].dtype) && k->in[0].dtype != DT_I64)
        return diag_error(d, ST_UNSUPPORTED, "the CPU has no cumsum of %s", dtype_name(k->in[0].dtype));
    kernel_run(k->pool, part, &s, s.outer * s.groups, s.n * min_i64(s.inner, COLUMNS));
    return ST_OK;
}
