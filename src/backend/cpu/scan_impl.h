// logsumexp and cumsum of scan.c for one float type (see real.h).
#include "backend/cpu/real.h"

// log(sum(exp(x))) of n elements next to each other. NaN is passed over by the maximum and comes out of the sum; a maximum of
// -inf gives log(0).
static REAL FN(lse_row)(const REAL *x, int64_t n) {
    REAL max = -INFINITY, lane_max[LANES], e[CHUNK];
    double lane[LANES] = {0}, sum = 0;
    for (int j = 0; j < LANES; j++) lane_max[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane_max[j] = x[i + j] > lane_max[j] ? x[i + j] : lane_max[j];
    for (; i < n; i++) lane_max[0] = x[i] > lane_max[0] ? x[i] : lane_max[0];
    for (int j = 0; j < LANES; j++) max = lane_max[j] > max ? lane_max[j] : max;
    REAL shift = max == INFINITY || max == -INFINITY ? 0 : max;
    for (int64_t c = 0; c < n; c += CHUNK) {
        int64_t m = min_i64(CHUNK, n - c);
        for (int64_t j = 0; j < m; j++) e[j] = FN(vexp)(x[c + j] - shift);
        for (int64_t j = m; j < round_up(m, LANES); j++) e[j] = 0;
        for (int64_t j = 0; j < m; j += LANES)
            for (int l = 0; l < LANES; l++) lane[l] += (double)e[j + l];
    }
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return (REAL)((double)shift + log(sum));
}

// The same of COLUMNS columns at once, which lie `pitch` apart from row to row.
static void FN(lse_columns)(const REAL *x, REAL *out, int64_t n, int64_t columns, int64_t pitch) {
    REAL max[COLUMNS], shift[COLUMNS];
    double sum[COLUMNS];
    for (int64_t j = 0; j < columns; j++) max[j] = -INFINITY, sum[j] = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < columns; j++) {
            REAL v = x[i * pitch + j];
            max[j] = v > max[j] ? v : max[j];
        }
    for (int64_t j = 0; j < columns; j++) shift[j] = max[j] == INFINITY || max[j] == -INFINITY ? 0 : max[j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < columns; j++) sum[j] += (double)FN(vexp)(x[i * pitch + j] - shift[j]);
    for (int64_t j = 0; j < columns; j++) out[j] = (REAL)((double)shift[j] + log(sum[j]));
}

static void FN(lse_part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Scan *s = ctx;
    const REAL *x = s->src;
    REAL *out = s->dst;
    for (int64_t u = begin; u < end; u++) {
        int64_t o = u / s->groups, c = u % s->groups * COLUMNS;
        if (s->inner == 1) out[o] = FN(lse_row)(x + o * s->n, s->n);
        else FN(lse_columns)(x + o * s->n * s->inner + c, out + o * s->inner + c, s->n, min_i64(COLUMNS, s->inner - c), s->inner);
    }
}
