#include "train/values.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "base/random.h"
#include "ir/convert.h"
#include "ops/op.h"

// ---- parameters ----------------------------------------------------------------------------------------------------------

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

typedef struct Draw {
    uint64_t key;
    bool matrix;       // normal with deviation 0.02, else all `constant`
    double constant;
    DType type;
    void *data;
} Draw;

static void draw_store(const Draw *w, int64_t i, double v) {
    if (w->type == DT_F32) ((float *)w->data)[i] = (float)v;
    else ((double *)w->data)[i] = v;
}

// Box and Muller's transform: two uniforms make elements 2k and 2k + 1. In float, of which a parameter keeps no more.
static void draw_part(void *ctx, int64_t begin, int64_t end) {
    const Draw *w = ctx;
    for (int64_t i = begin; i < end;) {
        if (!w->matrix) {
            draw_store(w, i++, w->constant);
            continue;
        }
        float u = 1.0f - (float)random_at(w->key, i & ~INT64_C(1)), turn = (float)random_at(w->key, i | 1) * 6.2831853f, s, c;
        float r = 0.02f * sqrtf(-2.0f * logf(u));
        sincosf(turn, &s, &c);
        if (!(i & 1)) draw_store(w, i++, r * c);
        if (i < end && (i & 1)) draw_store(w, i++, r * s);
    }
}

// An element is a function of the seed and its index, so any number of threads draws the same numbers.
static void draw_initial(const Param *p, uint64_t key, DType t, void *data, int64_t n) {
    Draw w = {
        .key = key, .matrix = p->shape.ndim >= 2, .constant = ends_with(p->name, "weight") ? 1.0 : 0.0, .type = t, .data = data};
    parallel_for(n, 65536, draw_part, &w);
}

// Index of the first NaN or infinity, -1 if all are finite.
static int64_t first_bad(const void *data, DType t, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(t == DT_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i])) return i;
    return -1;
}

Status values_param(const Graph *g, int32_t index, bool random_missing, uint64_t seed, DType t, void *data, Diag *d) {
    const Param *p = &g->params.data[index];
    int64_t n = shape_numel(&p->shape);
    CHECK(t == DT_F32 || t == DT_F64, "parameters are loaded as %s", dtype_name(t));
    if (p->data) {
        convert_array(p->data, p->dtype, data, t, n);
        int64_t bad = first_bad(data, t, n);
        if (bad >= 0) return diag_error(d, ST_NUMERIC, "parameter \"%s\" has NaN or infinity at element %" PRId64, p->name, bad);
        return ST_OK;
    }
    if (!random_missing)
        return diag_error(d, ST_INPUT,
                          "parameter \"%s\" has no bytes in the archive: give its checkpoint with --weights FILE-OR-FOLDER",
                          p->name);
    uint64_t key = random_key(seed, -1, index);
    draw_initial(p, key, t, data, n);
    return ST_OK;
}

Status values_load_params(Runtime *rt, const Graph *g, bool random_missing, uint64_t seed, Diag *d) {
    int64_t most = 0;
    for (int64_t p = 0; p < g->params.len; p++) most = max_i64(most, shape_numel(&g->params.data[p].shape));
    double *data = malloc((size_t)max_i64(most, 1) * sizeof *data);
    if (!data) return diag_error(d, ST_MEMORY, "out of memory for one parameter of %" PRId64 " elements", most);
    DType real = DT_F32;
    for (int64_t i = 0; i < g->outputs.len; i++)
        if (g->outputs.data[i].kind == OUT_LOSS) real = graph_value(g, g->outputs.data[i].value)->dtype;
    Status st = ST_OK;
    for (int64_t p = 0; p < g->params.len && st == ST_OK; p++) {
        st = values_param(g, (int32_t)p, random_missing, seed, real, data, d);
        if (st == ST_OK) st = runtime_set_state(rt, (int32_t)p, 0, data, real, d);
    }
    free(data);
    return st;
}

// ---- inputs ---------------------------------------------------------------------------------------------------------------

// Whether value v is input `index`, possibly reshaped, sliced, padded or moved.
static bool comes_from_input(const Graph *g, ValueId v, int32_t index) {
    for (int depth = 0; depth < 64; depth++) {
        const Node *n = graph_def(g, v);
        if (n->op == OP_INPUT) return node_int(n, ATTR_INDEX) == index;
        bool moves = n->op == OP_RESHAPE || n->op == OP_SLICE || n->op == OP_PAD || n->op == OP_PERMUTE || n->op == OP_RESHARD ||
                     n->op == OP_BROADCAST || n->op == OP_STOP_GRAD || n->op == OP_CAST;
        if (!moves) return false;
        v = n->in[0];
    }
    return false;
}

int64_t values_vocabulary(const Graph *g, int32_t index) {
    int64_t rows = 0;
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_EMBEDDING || n->phase != PHASE_FORWARD || !comes_from_input(g, n->in[1], index)) continue;
        int64_t r = graph_shape(g, n->in[0])->dim[0];
        rows = rows ? min_i64(rows, r) : r;
    }
    return rows;
}

Status values_check_dtype(const Input *in, const TensorView *t, Diag *d) {
    bool both_float = dtype_is_float(in->dtype) && dtype_is_float(t->dtype);
    bool both_whole = !dtype_is_float(in->dtype) && !dtype_is_float(t->dtype);
    if (t->known_dtype && (both_float || both_whole)) return ST_OK;
    return diag_error(d, ST_INPUT, "input \"%s\" has %s%s in the file, the program wants %s", in->name,
                      t->known_dtype ? "dtype " : "a dtype of an unknown kind", t->known_dtype ? dtype_name(t->dtype) : "",
                      dtype_name(in->dtype));
}

static Status input_from_file(const Input *in, const TensorView *t, void *data, Diag *d) {
    if (!shape_equal(&t->shape, &in->shape)) {
        Str s = {0};
        str_printf(&s, "input \"%s\" has shape [", in->name);
        for (int k = 0; k < t->shape.ndim; k++) str_printf(&s, k ? ",%" PRId64 : "%" PRId64, t->shape.dim[k]);
        str_add(&s, "] in the file, the program was bound to [");
        for (int k = 0; k < in->shape.ndim; k++) str_printf(&s, k ? ",%" PRId64 : "%" PRId64, in->shape.dim[k]);
        str_add(&s, "]");
        Status st = diag_error(d, ST_INPUT, "%s", str_text(&s));
        str_free(&s);
        return st;
    }
    TRY(values_check_dtype(in, t, d));
    return tensor_convert(t->data, t->dtype, data, in->dtype, shape_numel(&in->shape), d);
}

static Status input_made_up(const Graph *g, int32_t index, uint64_t seed, void *data, Diag *d) {
    const Input *in = &g->inputs.data[index];
    int64_t n = shape_numel(&in->shape);
    int64_t vocab = 0;
    if (in->role == ROLE_TOKENS || in->role == ROLE_LABELS)
        for (int64_t i = 0; i < g->inputs.len; i++)  // labels equal the ids: draw both from the tokens' vocabulary
            if (g->inputs.data[i].role == ROLE_TOKENS) vocab = values_vocabulary(g, (int32_t)i);
    if (in->dtype == DT_I64 && (in->role == ROLE_TOKENS || in->role == ROLE_LABELS)) {
        uint64_t key = random_key(seed, -2, 0);
        for (int64_t i = 0; i < n; i++) ((int64_t *)data)[i] = (int64_t)(random_at(key, i) * (double)(vocab ? vocab : 2));
        return ST_OK;
    }
    if (in->dtype == DT_I64 && in->role == ROLE_POSITIONS && in->seq_dim >= 0) {
        int64_t inner = 1, extent = in->shape.dim[in->seq_dim];
        for (int k = in->seq_dim + 1; k < in->shape.ndim; k++) inner *= in->shape.dim[k];
        for (int64_t i = 0; i < n; i++) ((int64_t *)data)[i] = i / inner % extent;
        return ST_OK;
    }
    if (in->role == ROLE_MASK) {
        double one = 1;
        for (int64_t i = 0; i < n; i++) convert_array(&one, DT_F64, (char *)data + i * dtype_nbytes(in->dtype), in->dtype, 1);
        return ST_OK;
    }
    return diag_error(d, ST_INPUT,
                      "input \"%s\" (%s) has no role that says what to feed it: give it with --inputs FILE.safetensors (a tensor "
                      "\"%s\" of the bound shape)",
                      in->name, dtype_name(in->dtype), in->name);
}

Status values_set_inputs(Runtime *rt, const Graph *g, const TensorFile *file, uint64_t seed, Diag *d) {
    for (int64_t i = 0; i < g->inputs.len; i++) {
        const Input *in = &g->inputs.data[i];
        if (in->role == ROLE_OTHER && (!strcmp(in->name, "adamw.hyper") || !strncmp(in->name, "routing.", 8)))
            continue;  // made by passes
        const TensorView *t = file ? tensors_find(file, in->name) : NULL;
        if (file && !t) return diag_error(d, ST_INPUT, "the inputs file has no tensor \"%s\"", in->name);
        void *data = malloc((size_t)max_i64(shape_numel(&in->shape), 1) * 8);
        if (!data) return diag_error(d, ST_MEMORY, "out of memory for input \"%s\"", in->name);
        Status st = t ? input_from_file(in, t, data, d) : input_made_up(g, (int32_t)i, seed, data, d);
        if (st == ST_OK) st = runtime_set_input(rt, (int32_t)i, data, d);
        free(data);
        TRY(st);
    }
    return ST_OK;
}
