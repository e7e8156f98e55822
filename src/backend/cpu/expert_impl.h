// The kernels of expert.c for one float type (see real.h).
#include "backend/cpu/real.h"

typedef struct FN(ExpertJob) {
    ExpertRows rows;
    int64_t nx, nw;  // columns of x and of the result (or of its cotangent)
    bool trans_w;
    const REAL *x, *w, *g, *add;  // add: to the gradient, which may lie there itself; or NULL
    REAL *out;
    REAL *panel;  // [worker][ROWS * (nx + nw)]
    int64_t panel_len;
    int64_t npanel;  // gradient: panels of rows of an expert's matrix
} FN(ExpertJob);

static FN(ExpertJob) FN(expert_job)(const KernelArgs *k, int64_t nexpert, int64_t nx, int64_t nw) {
    FN(ExpertJob) j = {.nx = nx, .nw = nw, .x = k->in[0].data, .out = k->out[0].data};
    int64_t n = k->in[0].dim[0];
    j.rows = sort_rows(k->in[1].data, n, nexpert, k->scratch);
    j.trans_w = node_int_or(k->node, ATTR_TRANS_W, 0) != 0;
    j.panel = (REAL *)((char *)k->scratch + rows_nbytes(nexpert, n));
    j.panel_len = (int64_t)(round_bytes((size_t)(ROWS * (nx + nw)) * sizeof(REAL)) / sizeof(REAL));
    return j;
}

// Tasks run over panels of ROWS sorted rows; a panel may span several experts.
static void FN(expert_task)(void *ctx, int64_t task, int worker) {
    const FN(ExpertJob) *j = ctx;
    const ExpertRows *r = &j->rows;
    REAL *x = j->panel + worker * j->panel_len, *y = x + ROWS * j->nx;
    int64_t begin = task * ROWS, end = min_i64(begin + ROWS, r->n);
    for (int64_t i = begin; i < end; i++) memcpy(x + (i - begin) * j->nx, j->x + r->order[i] * j->nx, (size_t)j->nx * sizeof *x);
    int64_t lo = 0, hi = r->nexpert;  // the last expert that starts at or before the panel
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        if (r->first[mid] <= begin)
            lo = mid;
        else
            hi = mid - 1;
    }
    for (int64_t e = lo; e <= r->nexpert; e++) {
        int64_t a = max_i64(begin, r->first[e]), z = min_i64(end, r->first[e + 1]);
        if (r->first[e] >= end) break;
        if (a >= z) continue;
        REAL *ye = y + (a - begin) * j->nw;
        if (e == r->nexpert)
            memset(ye, 0, (size_t)((z - a) * j->nw) * sizeof *ye);
        else
            GEMM(false, j->trans_w, z - a, j->nw, j->nx, 1, x + (a - begin) * j->nx, j->nx, j->w + e * j->nx * j->nw,
                 j->trans_w ? j->nx : j->nw, 0, ye, j->nw);
    }
    for (int64_t i = begin; i < end; i++)
        memcpy(j->out + r->order[i] * j->nw, y + (i - begin) * j->nw, (size_t)j->nw * sizeof *y);
}

Status FN(cpu_expert_matmul)(const KernelArgs *k, Diag *d) {
    (void)d;
    if (k->in[0].dim[0] == 0 || k->out[0].dim[1] == 0) return ST_OK;
    FN(ExpertJob) j = FN(expert_job)(k, k->in[2].dim[0], k->in[0].dim[1], k->out[0].dim[1]);
    j.w = k->in[2].data;
    tasks_run(k->pool, FN(expert_task), &j, ceil_div(j.rows.n, ROWS));
    return ST_OK;
}

// One panel of rows of one expert's dw = x^T g (trans_w: g^T x): left factor's columns [c0, c0 + nc) over all the expert's rows.
static void FN(expert_grad_task)(void *ctx, int64_t task, int worker) {
    const FN(ExpertJob) *j = ctx;
    const ExpertRows *r = &j->rows;
    int64_t nl = j->trans_w ? j->nw : j->nx, nr = j->trans_w ? j->nx : j->nw, e = task / j->npanel;
    int64_t width = round_up(ceil_div(nl, j->npanel), 16), c0 = task % j->npanel * width, nc = min_i64(width, nl - c0);
    if (nc <= 0) return;
    const REAL *left = (j->trans_w ? j->g : j->x) + c0, *right = j->trans_w ? j->x : j->g;
    REAL *l = j->panel + worker * j->panel_len, *q = l + ROWS * nc, *dw = j->out + (e * nl + c0) * nr;
    const REAL *add = j->add ? j->add + (e * nl + c0) * nr : NULL;
    if (add && add != dw) memcpy(dw, add, (size_t)(nc * nr) * sizeof *dw);
    if (!add && r->first[e] == r->first[e + 1]) memset(dw, 0, (size_t)(nc * nr) * sizeof *dw);
    for (int64_t begin = r->first[e]; begin < r->first[e + 1]; begin += ROWS) {
        int64_t n = min_i64(ROWS, r->first[e + 1] - begin);
        for (int64_t i = 0; i < n; i++) {
            int64_t row = r->order[begin + i];
            memcpy(l + i * nc, left + row * nl, (size_t)nc * sizeof *l);
            memcpy(q + i * nr, right + row * nr, (size_t)nr * sizeof *q);
        }
        GEMM(true, false, nc, nr, n, 1, l, nc, q, nr, begin == r->first[e] && !add ? 0 : 1, dw, nr);
    }
}

Status FN(cpu_expert_matmul_grad)(const KernelArgs *k, Diag *d) {
    (void)d;
    int64_t nexpert = k->out[0].dim[0];
    if (nexpert == 0 || k->in[0].dim[1] == 0 || k->in[2].dim[1] == 0) return ST_OK;  // no element
    FN(ExpertJob) j = FN(expert_job)(k, nexpert, k->in[0].dim[1], k->in[2].dim[1]);
    j.g = k->in[2].data;
    j.add = k->nin == 4 ? k->in[3].data : NULL;
    j.npanel = grad_panels(nexpert, pool_nthreads(k->pool));
    tasks_run(k->pool, FN(expert_grad_task), &j, nexpert * j.npanel);
    return ST_OK;
}
