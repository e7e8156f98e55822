// The oracle: float64, one op at a time, no fusion, no plan, no threads. Slow and obvious; shares no code with the kernels.
#include "exec/reference.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/random.h"

bool ref_next(const Shape *s, int64_t *index) {
    for (int i = s->ndim - 1; i >= 0; i--) {
        if (++index[i] < s->dim[i]) return true;
        index[i] = 0;
    }
    return false;
}

int64_t ref_offset(const Shape *s, const int64_t *index) {
    int64_t off = 0;
    for (int i = 0; i < s->ndim; i++) off = off * s->dim[i] + index[i];
    return off;
}

int64_t ref_broadcast_offset(const Shape *operand, const Shape *out, const int64_t *index) {
    int64_t off = 0;
    int skip = out->ndim - operand->ndim;
    for (int i = 0; i < operand->ndim; i++) off = off * operand->dim[i] + (operand->dim[i] == 1 ? 0 : index[i + skip]);
    return off;
}

void ref_split(const Shape *s, int dim, int64_t *outer, int64_t *n, int64_t *inner) {
    *outer = *inner = 1;
    for (int i = 0; i < dim; i++) *outer *= s->dim[i];
    *n = s->dim[dim];
    for (int i = dim + 1; i < s->ndim; i++) *inner *= s->dim[i];
}

// ---- sources ------------------------------------------------------------------------------------------------------------

static Status ref_full(const RefNode *r, Diag *d) {
    (void)d;
    int64_t n = shape_numel(ref_out_shape(r, 0));
    double v = node_float(r->n, ATTR_VALUE);
    if (ref_out_dtype(r, 0) == DT_BOOL) v = v != 0;
    if (ref_out_dtype(r, 0) == DT_I64) v = trunc(v);
    for (int64_t i = 0; i < n; i++) r->out[0][i] = v;
    return ST_OK;
}

static Status ref_iota(const RefNode *r, Diag *d) {
    (void)d;
    const Shape *s = ref_out_shape(r, 0);
    int64_t start = node_int(r->n, ATTR_START), step = node_int(r->n, ATTR_STEP), outer, n, inner;
    ref_split(s, (int)node_int(r->n, ATTR_DIM), &outer, &n, &inner);
    double *out = r->out[0];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < inner; k++) *out++ = (double)(start + i * step);
    return ST_OK;
}

static Status ref_random(const RefNode *r, Diag *d) {
    (void)d;
    int64_t n = shape_numel(ref_out_shape(r, 0)), seed = node_int(r->n, ATTR_SEED);
    for (int64_t i = 0; i < n; i++) r->out[0][i] = random_uniform(r->run_seed, r->step, seed, i);
    return ST_OK;
}

static Status ref_constant(const RefNode *r, Diag *d) {
    const Const *c = &r->g->consts.data[node_int(r->n, ATTR_INDEX)];
    if (!c->data) return diag_error(d, ST_INPUT, "the value of constant %s is not known", c->name ? c->name : "?");
    int64_t n = shape_numel(&c->shape);
    for (int64_t i = 0; i < n; i++) {
        switch (c->dtype) {
        case DT_F32: r->out[0][i] = ((const float *)c->data)[i]; break;
        case DT_F64: r->out[0][i] = ((const double *)c->data)[i]; break;
        case DT_I64: r->out[0][i] = (double)((const int64_t *)c->data)[i]; break;
        case DT_BOOL: r->out[0][i] = ((const uint8_t *)c->data)[i] != 0; break;
        default: return diag_error(d, ST_UNSUPPORTED, "constant of type %s", dtype_name(c->dtype));
        }
    }
    return ST_OK;
}

static Status ref_unbound(const RefNode *r, Diag *d) {
    return diag_error(d, ST_UNSUPPORTED, "%s has no value outside a whole run", op_name(r->n->op));
}

// ---- one node -----------------------------------------------------------------------------------------------------------

static RefFn ref_fn(OpKind op) {
    switch (op) {
    case OP_FULL: return ref_full;
    case OP_IOTA: return ref_iota;
    case OP_RANDOM: return ref_random;
    case OP_CONSTANT: return ref_constant;
    case OP_PARAM:
    case OP_INPUT: return ref_unbound;
    default: break;
    }
    RefFn (*const family[])(OpKind) = {ref_pointwise_fn, ref_fused_fn,     ref_tensor_fn, ref_index_fn,
                                       ref_contract_fn,  ref_attention_fn, ref_head_fn};
    for (size_t i = 0; i < sizeof family / sizeof *family; i++) {
        RefFn fn = family[i](op);
        if (fn) return fn;
    }
    return NULL;
}

Status reference_node(const Graph *g, const Node *n, const double *const *in, double *const *out, uint64_t run_seed, int64_t step,
                      Diag *d) {
    RefFn fn = ref_fn(n->op);
    if (!fn) return diag_error(d, ST_UNSUPPORTED, "the reference executor has no %s", op_name(n->op));
    RefNode r = {.g = g, .n = n, .in = in, .out = out, .run_seed = run_seed, .step = step};
    if (fn(&r, d) == ST_OK) return ST_OK;
    return n->source ? diag_where(d, "%s at %s", op_name(n->op), n->source) : diag_where(d, "%s", op_name(n->op));
}

// ---- a whole graph ------------------------------------------------------------------------------------------------------

typedef struct Run {
    const Graph *g;
    const Reference *r;
    double **value;     // [values], NULL when not (or no longer) held
    int32_t *remaining; // uses by nodes still to come
} Run;

static Status run_source(const Run *run, const Node *n, double *out, bool *done, Diag *d) {
    const Graph *g = run->g;
    const Reference *r = run->r;
    int64_t numel = shape_numel(graph_shape(g, n->out[0]));
    const double *src;
    *done = n->op == OP_INPUT || n->op == OP_PARAM;
    if (!*done) return ST_OK;
    int64_t index = node_int(n, ATTR_INDEX), kind = node_int_or(n, ATTR_KIND, 0);
    if (n->op == OP_INPUT) {
        // The one input that is not data; pass/update.c makes it.
        bool hyper = r->hyper && !strcmp(g->inputs.data[index].name, "adamw.hyper");
        src = hyper ? r->hyper : r->inputs ? r->inputs[index] : NULL;
        if (!src) return diag_error(d, ST_INPUT, "no value given for input %s", g->inputs.data[index].name);
    } else if (kind == 0 || kind == 3) {  // the copy in bf16 has the value itself here
        src = r->params ? r->params[index] : NULL;
        if (!src) return diag_error(d, ST_INPUT, "no value given for parameter %s", g->params.data[index].name);
    } else {
        src = r->moments ? r->moments[2 * index + kind - 1] : NULL;
    }
    for (int64_t i = 0; i < numel; i++) out[i] = src ? src[i] : 0.0;
    return ST_OK;
}

static Status run_node(Run *run, const Node *n, Diag *d) {
    const Graph *g = run->g;
    const double **in = calloc((size_t)n->nin + 1, sizeof *in);
    double **out = calloc((size_t)n->nout + 1, sizeof *out);
    Status st = ST_OK;
    if (!in || !out) st = diag_error(d, ST_MEMORY, "out of memory");
    for (int i = 0; st == ST_OK && i < n->nin; i++) in[i] = run->value[n->in[i]];
    for (int j = 0; st == ST_OK && j < n->nout; j++) {
        int64_t numel = shape_numel(graph_shape(g, n->out[j]));
        out[j] = run->value[n->out[j]] = calloc((size_t)numel + 1, sizeof **out);
        if (!out[j]) st = diag_error(d, ST_MEMORY, "out of memory for %lld values", (long long)numel);
    }
    bool done = false;
    if (st == ST_OK) st = run_source(run, n, out[0], &done, d);
    if (st == ST_OK && !done) st = reference_node(g, n, in, out, run->r->run_seed, run->r->step, d);
    free(in);
    free(out);
    return st;
}

static void run_release(Run *run, ValueId v) {
    if (run->remaining[v] > 0) return;
    free(run->value[v]);
    run->value[v] = NULL;
}

Status reference_run(const Graph *g, const Reference *r, double *const *out, Diag *d) {
    Run run = {.g = g, .r = r};
    run.value = calloc((size_t)g->values.len + 1, sizeof *run.value);
    run.remaining = calloc((size_t)g->values.len + 1, sizeof *run.remaining);
    Status st = run.value && run.remaining ? ST_OK : diag_error(d, ST_MEMORY, "out of memory");
    for (NodeId k = 0; st == ST_OK && k < g->nodes.len; k++)
        for (int i = 0; i < graph_node(g, k)->nin; i++) run.remaining[graph_node(g, k)->in[i]]++;
    for (int64_t i = 0; st == ST_OK && i < g->outputs.len; i++) run.remaining[g->outputs.data[i].value]++;
    for (NodeId k = 0; st == ST_OK && k < g->nodes.len; k++) {
        const Node *n = graph_node(g, k);
        st = run_node(&run, n, d);
        for (int i = 0; st == ST_OK && i < n->nin; i++) {
            run.remaining[n->in[i]]--;
            run_release(&run, n->in[i]);
        }
        for (int j = 0; st == ST_OK && j < n->nout; j++) run_release(&run, n->out[j]);
    }
    for (int64_t i = 0; st == ST_OK && i < g->outputs.len; i++) {
        ValueId v = g->outputs.data[i].value;
        int64_t numel = shape_numel(graph_shape(g, v));
        for (int64_t e = 0; out[i] && e < numel; e++) out[i][e] = run.value[v][e];
    }
    for (int64_t v = 0; run.value && v < g->values.len; v++) free(run.value[v]);
    free(run.value);
    free(run.remaining);
    return st;
}
