// Whole values into the ranks' arenas and out of them, by placement.
#include <math.h>
#include <stdlib.h>

#include "exec/runtime.h"
#include "ir/convert.h"

typedef enum Direction { INTO_ARENA, OUT_OF_ARENA } Direction;

static ValueId find_state(const Graph *g, int64_t param, int64_t slot) {
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op == OP_PARAM && node_int(n, ATTR_INDEX) == param && node_int_or(n, ATTR_KIND, 0) == slot) return n->out[0];
    }
    return NO_VALUE;
}

// Calls fn for every run of elements that is contiguous both in the whole value and in this rank's part.
typedef void (*RunFn)(void *ctx, int64_t whole, int64_t local, int64_t n);
static void for_each_run(const Operand *o, RunFn fn, void *ctx) {
    int64_t outer = 1, inner = 1;
    if (o->sdim < 0) {
        for (int i = 0; i < o->ndim; i++) inner *= o->dim[i];
        fn(ctx, 0, 0, inner);
        return;
    }
    for (int i = 0; i < o->sdim; i++) outer *= o->dim[i];
    for (int i = o->sdim + 1; i < o->ndim; i++) inner *= o->dim[i];
    for (int64_t k = 0; k < outer; k++) {
        int64_t at = k * o->dim[o->sdim];
        for (int s = 0; s < o->nspan; s++) {
            int64_t len = o->span[s].end - o->span[s].begin;
            fn(ctx, (k * o->global[o->sdim] + o->span[s].begin) * inner, at * inner, len * inner);
            at += len;
        }
    }
}

typedef struct Transfer {
    char *whole, *local;
    DType whole_type, local_type;
    Direction direction;
} Transfer;
static void transfer_run(void *ctx, int64_t whole, int64_t local, int64_t n) {
    const Transfer *t = ctx;
    char *w = t->whole + whole * dtype_nbytes(t->whole_type), *l = t->local + local * dtype_nbytes(t->local_type);
    if (t->direction == INTO_ARENA) convert_array(w, t->whole_type, l, t->local_type, n);
    else convert_array(l, t->local_type, w, t->whole_type, n);
}

static int64_t operand_nbytes_local(const Operand *o) {
    int64_t n = dtype_nbytes(o->dtype);
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    return n;
}

// This rank's part of value v in host memory: the arena itself, or a copy of it that the caller frees.
static Status local_part(Runtime *rt, ValueId v, int rank, const Operand *o, bool read, char **out, Diag *d) {
    const RankPlan *p = &rt->plan->rank[rank];
    int32_t buf = p->value_buf[v];
    if (!runtime_device(rt)) {
        *out = (char *)rank_buffer(&rt->rank[rank], buf) + p->value_off[v];
        return ST_OK;
    }
    int64_t nbytes = operand_nbytes_local(o);
    *out = malloc((size_t)max_i64(nbytes, 1));
    if (!*out) return diag_error(d, ST_MEMORY, "out of memory for a copy of %lld bytes", (long long)nbytes);
    Status st = read ? runtime_read(rt, rank, buf, *out, nbytes, d) : ST_OK;
    if (st != ST_OK) free(*out);
    return st;
}

static Status transfer(Runtime *rt, ValueId v, int rank, void *data, DType t, Direction direction, Diag *d) {
    Operand o = plan_operand(NULL, rt->plan->graph, v, rank);
    int32_t buf = rt->plan->rank[rank].value_buf[v];
    if (runtime_device(rt) && o.sdim < 0 && t == o.dtype)  // nothing to cut or convert
        return direction == INTO_ARENA ? runtime_write(rt, rank, buf, data, operand_nbytes_local(&o), d)
                                       : runtime_read(rt, rank, buf, data, operand_nbytes_local(&o), d);
    char *local = NULL;
    TRY(local_part(rt, v, rank, &o, direction == OUT_OF_ARENA, &local, d));
    Transfer x = {data, local, t, o.dtype, direction};
    for_each_run(&o, transfer_run, &x);
    if (!runtime_device(rt)) return ST_OK;
    Status st = ST_OK;
    if (direction == INTO_ARENA) st = runtime_write(rt, rank, buf, local, operand_nbytes_local(&o), d);
    free(local);
    return st;
}

static bool is_terms(const Placement *p) { return p->kind == PLACE_PARTIAL || (p->kind == PLACE_SHARD && p->reduce != RED_NONE); }

// Every rank takes its part of the whole value.
static Status scatter_value(Runtime *rt, ValueId v, const void *data, DType t, Diag *d) {
    CHECK(!is_terms(&graph_value(rt->plan->graph, v)->place), "%%%d: a source cannot be made of terms", v);
    for (int r = 0; r < rt->plan->nranks; r++) TRY(transfer(rt, v, r, (void *)data, t, INTO_ARENA, d));
    return ST_OK;
}

static Status gather_copies(Runtime *rt, ValueId v, void *data, DType t, Diag *d) {
    bool shard = graph_value(rt->plan->graph, v)->place.kind == PLACE_SHARD;
    for (int r = 0; r < (shard ? rt->plan->nranks : 1); r++) TRY(transfer(rt, v, r, data, t, OUT_OF_ARENA, d));
    return ST_OK;
}

typedef struct Terms {
    double *whole;
    const char *local;
    DType type;
    Reduce reduce;
} Terms;
static void reduce_run(void *ctx, int64_t whole, int64_t local, int64_t n) {
    const Terms *t = ctx;
    double *w = t->whole + whole;
    for (int64_t i = 0; i < n; i++) {
        double x;
        convert_array(t->local + (local + i) * dtype_nbytes(t->type), t->type, &x, DT_F64, 1);
        if (t->reduce == RED_SUM) w[i] += x;
        else if (x > w[i] || isnan(x)) w[i] = x;
    }
}

static Status gather_terms(Runtime *rt, ValueId v, double *data, Diag *d) {
    const Value *x = graph_value(rt->plan->graph, v);
    int64_t n = shape_numel(&x->shape);
    for (int64_t i = 0; i < n; i++) data[i] = x->place.reduce == RED_MAX ? -INFINITY : 0;
    for (int r = 0; r < rt->plan->nranks; r++) {
        Operand o = plan_operand(NULL, rt->plan->graph, v, r);
        char *local = NULL;
        TRY(local_part(rt, v, r, &o, true, &local, d));
        Terms t = {data, local, o.dtype, x->place.reduce};
        for_each_run(&o, reduce_run, &t);
        if (runtime_device(rt)) free(local);
    }
    return ST_OK;
}

// ---- parameters and optimizer state -------------------------------------------------------------------------------------
static Status check_state(const Runtime *rt, int32_t param, int slot, Diag *d) {
    const Graph *g = rt->plan->graph;
    if (param < 0 || param >= g->params.len || slot < 0 || slot > 2)
        return diag_error(d, ST_INPUT, "state %d of parameter %d: the program has %lld parameters", slot, param,
                          (long long)g->params.len);
    return ST_OK;
}

Status runtime_set_state(Runtime *rt, int32_t param, int slot, const void *data, DType t, Diag *d) {
    TRY(check_state(rt, param, slot, d));
    ValueId v = find_state(rt->plan->graph, param, slot);
    if (v != NO_VALUE) TRY(scatter_value(rt, v, data, t, d));  // else the step does not use it
    v = slot == 0 ? find_state(rt->plan->graph, param, 3) : NO_VALUE;
    return v == NO_VALUE ? ST_OK : scatter_value(rt, v, data, t, d);  // the copy in bf16
}

Status runtime_get_state(Runtime *rt, int32_t param, int slot, void *data, DType t, Diag *d) {
    TRY(check_state(rt, param, slot, d));
    ValueId v = find_state(rt->plan->graph, param, slot);
    if (v == NO_VALUE)
        return diag_error(d, ST_INPUT, "parameter \"%s\": the program's step does not hold its %s",
                          rt->plan->graph->params.data[param].name, slot ? "moments" : "value");
    return gather_copies(rt, v, data, t, d);
}

// ---- inputs and outputs -------------------------------------------------------------------------------------------------
Status runtime_set_input(Runtime *rt, int32_t input, const void *data, Diag *d) {
    const Graph *g = rt->plan->graph;
    if (input < 0 || input >= g->inputs.len)
        return diag_error(d, ST_INPUT, "input %d of %lld", input, (long long)g->inputs.len);
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op == OP_INPUT && node_int(n, ATTR_INDEX) == input)
            TRY(scatter_value(rt, n->out[0], data, g->inputs.data[input].dtype, d));
    }
    return ST_OK;
}

Status runtime_set_const_inputs(Runtime *rt, Diag *d) {
    const Graph *g = rt->plan->graph;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_CONSTANT) continue;
        const Const *c = &g->consts.data[node_int(n, ATTR_INDEX)];
        if (!c->data && shape_numel(&c->shape) > 0)
            return diag_error(d, ST_INPUT, "constant \"%s\" has no value in the archive", c->name ? c->name : "?");
        TRY(scatter_value(rt, n->out[0], c->data, c->dtype, d));
    }
    return ST_OK;
}

Status runtime_set_hyper(Runtime *rt, const double hyper[3], Diag *d) {
    const Graph *g = rt->plan->graph;
    ValueId last = NO_VALUE;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_ADAMW) continue;
        ValueId v = n->in[4];
        while (graph_def(g, v)->op == OP_RESHARD) v = graph_def(g, v)->in[0];
        if (v == last || graph_def(g, v)->op != OP_INPUT) continue;  // usually one for all
        TRY(scatter_value(rt, v, hyper, DT_F64, d));
        last = v;
    }
    return ST_OK;
}

Status runtime_get_output(Runtime *rt, int i, double *data, Diag *d) {
    const Graph *g = rt->plan->graph;
    if (i < 0 || i >= g->outputs.len) return diag_error(d, ST_INPUT, "output %d of %lld", i, (long long)g->outputs.len);
    ValueId v = g->outputs.data[i].value;
    return is_terms(&graph_value(g, v)->place) ? gather_terms(rt, v, data, d) : gather_copies(rt, v, data, DT_F64, d);
}
