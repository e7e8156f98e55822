// What every step made, as a line of numbers: to find where a NaN began, or where two devices part.
#include <math.h>
#include <stdlib.h>

#include "exec/runtime.h"
#include "ir/convert.h"

typedef struct Stats {
    int64_t n, nbad;             // elements; NaN and infinite ones
    double norm, first, last;    // of the finite ones; the first and last element
} Stats;

static Stats collect(const void *data, DType t, int64_t n) {
    enum { BLOCK = 1024 };
    double x[BLOCK], sum = 0;
    Stats s = {.n = n};
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t m = min_i64(BLOCK, n - i);
        convert_array((const char *)data + i * dtype_nbytes(t), t, x, DT_F64, m);
        for (int64_t k = 0; k < m; k++) {
            if (isfinite(x[k])) sum += x[k] * x[k];
            else s.nbad++;
        }
        if (i == 0) s.first = x[0];
        s.last = x[m - 1];
    }
    s.norm = sqrt(sum);
    return s;
}

static Status trace_value(Rank *r, const Step *s, int index, int j, const Operand *o, FILE *f, Diag *d) {
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    const void *data = o->data;
    void *copy = NULL;
    if (r->device && !r->runtime->plan->rank[r->index].buffer[s->out_buf[j]].host) {
        data = copy = malloc((size_t)max_i64(n * dtype_nbytes(o->dtype), 1));
        if (!copy) return diag_error(d, ST_MEMORY, "out of memory for a trace");
        Status st = runtime_device(r->runtime)->read(r->device, copy, o->data, (size_t)(n * dtype_nbytes(o->dtype)), d);
        if (st != ST_OK) return free(copy), st;
    }
    Stats x = collect(data, o->dtype, n);
    free(copy);
    const Node *node = graph_node(r->runtime->plan->graph, s->node);
    fprintf(f, "%d step %d %%%d %s %s[%lld] norm %.6e first %.6e last %.6e bad %lld at %s\n", r->index, index,
            s->kind == STEP_EXCHANGE ? node->out[0] : node->out[j], s->kind == STEP_EXCHANGE ? "exchange" : op_name(node->op),
            dtype_name(o->dtype), (long long)n, x.norm, x.first, x.last, (long long)x.nbad, node->source ? node->source : "?");
    fflush(f);
    return ST_OK;
}

Status rank_trace(Rank *r, int index, Diag *d) {
    const Step *s = &r->runtime->plan->rank[r->index].step[index];
    const Operand *out = r->operand + s->nin;
    NodeId failed;
    if (step_is_copy(s->kind)) return ST_OK;  // not there yet
    if (s->kind == STEP_OFFLOAD_DONE && r->device) TRY(runtime_device(r->runtime)->finish(r->device, &failed, d));
    for (int j = 0; j < s->nout; j++) TRY(trace_value(r, s, index, j, &out[j], r->runtime->options.trace, d));
    return ST_OK;
}
