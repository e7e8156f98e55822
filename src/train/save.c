// Saving and resuming. Both files are written beside the old ones and renamed, the optimizer's first. It carries a hash of the
// parameters that belong to it, so that resuming from two files of different steps (killed between the renames) is refused.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "exec/exec.h"
#include "ir/convert.h"
#include "train/train.h"

static DType stored_dtype(const Param *p) { return dtype_is_float(p->dtype) ? p->dtype : DT_F32; }

// Half precision holds less than what is trained: then the optimizer's file keeps the parameter in full as well.
static bool stored_narrow(const Param *p) { return stored_dtype(p) == DT_BF16 || stored_dtype(p) == DT_F16; }

// A model with NaN or infinity is no use and must not replace a good one.
static Status check_finite(const TensorView *t, Diag *d) {
    enum { BLOCK = 256 };
    double x[BLOCK];
    for (int64_t i = 0, n = t->nbytes / dtype_nbytes(t->dtype); i < n; i++) {
        if (i % BLOCK == 0)
            convert_array((const char *)t->data + i * dtype_nbytes(t->dtype), t->dtype, x, DT_F64, min_i64(BLOCK, n - i));
        if (!isfinite(x[i % BLOCK]))
            return diag_error(d, ST_NUMERIC,
                              "parameter \"%s\" has NaN or infinity at element %" PRId64
                              " (as %s); it is not saved (a lower --lr or --clip may help)",
                              t->name, i, dtype_name(t->dtype));
    }
    return ST_OK;
}

// One state tensor of every parameter that has it, under prefix + name; aliases of tied parameters too when `aliases`. With
// `full` only the parameters that are stored narrow, in float32.
static Status collect_state(Arena *a, Runtime *rt, const Graph *g, int slot, const char *prefix, bool aliases, bool full,
                            TensorView *out, int64_t *n, Diag *d) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        if (full && !stored_narrow(p)) continue;
        DType t = slot || full ? DT_F32 : stored_dtype(p);
        int64_t count = shape_numel(&p->shape);
        void *data = arena_alloc(a, (size_t)(count * dtype_nbytes(t)));
        Diag none = {0};
        Status st = runtime_get_state(rt, (int32_t)i, slot, data, t, &none);
        if (st != ST_OK && slot) continue;  // frozen, or the loss does not depend on it: no moments
        if (st != ST_OK && p->data) {       // not used by the step at all: as it was in the archive
            convert_array(p->data, p->dtype, data, t, count);
        } else if (st != ST_OK) {
            continue;
        }
        TensorView v = {.name = arena_printf(a, "%s%s", prefix, p->name),
                        .dtype = t,
                        .known_dtype = true,
                        .shape = p->shape,
                        .data = data,
                        .nbytes = count * dtype_nbytes(t)};
        out[(*n)++] = v;
        for (int k = 0; k < p->nalias && aliases; k++) {
            v.name = p->alias[k];
            out[(*n)++] = v;
        }
    }
    (void)d;
    return ST_OK;
}

static int64_t count_names(const Graph *g) {
    int64_t n = 0;
    for (int64_t i = 0; i < g->params.len; i++) n += 1 + g->params.data[i].nalias;
    return n;
}

// Of bytes, parameter by parameter in the order of the table.
static uint64_t hash_tensor(uint64_t h, const TensorView *t) { return hash_bytes(h, t->data, (size_t)t->nbytes); }

static Status check_and_hash_state(Runtime *rt, const Graph *g, int64_t *hash, Diag *d) {
    Arena *a = arena_new();
    TensorView *v = ARENA_ARRAY(a, TensorView, g->params.len + 1);
    int64_t n = 0;
    uint64_t h = 0;
    Status st = collect_state(a, rt, g, 0, "", false, false, v, &n, d);
    for (int64_t i = 0; i < n && st == ST_OK; i++) {
        st = check_finite(&v[i], d);
        h = hash_tensor(h, &v[i]);
    }
    *hash = (int64_t)h;
    arena_free(a);
    return st;
}

enum { RUN_STEP, RUN_SEED, RUN_HASH, RUN_LEN };  // of "adamw.run"

Status save_model(const char *dir, Runtime *rt, const Graph *g, int64_t steps_done, uint64_t seed, Diag *d) {
    int64_t n = 0, run[RUN_LEN] = {[RUN_STEP] = steps_done, [RUN_SEED] = (int64_t)seed};
    TRY(check_and_hash_state(rt, g, &run[RUN_HASH], d));
    Arena *a = arena_new();
    TensorView *v = ARENA_ARRAY(a, TensorView, 3 * g->params.len + 2);
    Status st = collect_state(a, rt, g, 1, "adamw.m.", false, false, v, &n, d);
    if (st == ST_OK) st = collect_state(a, rt, g, 2, "adamw.v.", false, false, v, &n, d);
    if (st == ST_OK) st = collect_state(a, rt, g, 0, "adamw.p.", false, true, v, &n, d);
    v[n++] = (TensorView){
        .name = "adamw.run", .dtype = DT_I64, .known_dtype = true, .shape = SHAPE(RUN_LEN), .data = run, .nbytes = sizeof run};
    if (st == ST_OK) st = tensors_write(arena_printf(a, "%s/optimizer.safetensors", dir), n, v, d);
    arena_free(a);
    TRY(st);
    a = arena_new();
    v = ARENA_ARRAY(a, TensorView, count_names(g) + g->consts.len + 1);
    n = 0;
    st = collect_state(a, rt, g, 0, "", true, false, v, &n, d);
    for (int64_t i = 0; i < g->consts.len; i++) {  // buffers that belong to the state dict
        const Const *c = &g->consts.data[i];
        if (!c->persistent || !c->data) continue;
        v[n++] = (TensorView){.name = c->name, .dtype = c->dtype, .known_dtype = true, .shape = c->shape, .data = c->data,
                              .nbytes = shape_numel(&c->shape) * dtype_nbytes(c->dtype)};
    }
    if (st == ST_OK) st = tensors_write(arena_printf(a, "%s/model.safetensors", dir), n, v, d);
    arena_free(a);
    return st;
}

static Status load_state(const TensorFile *f, const char *prefix, Runtime *rt, const Graph *g, int slot, Arena *a, uint64_t *hash,
                         Diag *d) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        const char *name = arena_printf(a, "%s%s", prefix, p->name);
        const TensorView *t = tensors_find(f, name);
        bool moments = false;  // the step updates this parameter
        for (int64_t k = 0; k < g->outputs.len; k++)
            moments |= g->outputs.data[k].kind == OUT_STATE && g->outputs.data[k].param == i;
        if (!t && slot && !moments) continue;
        if (!t) return diag_error(d, ST_INPUT, "cannot resume: there is no tensor \"%s\"", name);
        if (!t->known_dtype || !shape_equal(&t->shape, &p->shape))
            return diag_error(d, ST_INPUT, "cannot resume: tensor \"%s\" has another shape or dtype", name);
        TRY(runtime_set_state(rt, (int32_t)i, slot, t->data, t->dtype, d));
        if (hash) *hash = hash_tensor(*hash, t);
    }
    return ST_OK;
}

// The full values of parameters that the model's file has in half precision.
static Status load_full(const TensorFile *f, Runtime *rt, const Graph *g, Arena *a, Diag *d) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        const TensorView *t = tensors_find(f, arena_printf(a, "adamw.p.%s", p->name));
        if (!t) continue;
        if (!t->known_dtype || !shape_equal(&t->shape, &p->shape))
            return diag_error(d, ST_INPUT, "cannot resume: tensor \"%s\" has another shape or dtype", t->name);
        TRY(runtime_set_state(rt, (int32_t)i, 0, t->data, t->dtype, d));
    }
    return ST_OK;
}

static Status load_run(const TensorFile *opt, const char *dir, uint64_t seed, uint64_t hash, int64_t *steps_done, Diag *d) {
    const TensorView *t = tensors_find(opt, "adamw.run");
    int64_t run[RUN_LEN];
    if (!t || !t->known_dtype || t->dtype != DT_I64 || shape_numel(&t->shape) != RUN_LEN)
        return diag_error(d, ST_INPUT, "%s/optimizer.safetensors: says nothing of the run that it belongs to", dir);
    memcpy(run, t->data, sizeof run);
    if (run[RUN_STEP] < 0) return diag_error(d, ST_INPUT, "%s/optimizer.safetensors: a negative step", dir);
    if ((uint64_t)run[RUN_HASH] != hash)
        return diag_error(
            d, ST_INPUT,
            "%s: model.safetensors and optimizer.safetensors are not of the same step; training cannot go on from there", dir);
    if ((uint64_t)run[RUN_SEED] != seed)
        return diag_error(d, ST_INPUT, "%s: the saved run drew its data with --seed %" PRId64 "; give that to go on", dir,
                          run[RUN_SEED]);
    *steps_done = run[RUN_STEP];
    return ST_OK;
}

Status save_load(const char *dir, Runtime *rt, const Graph *g, uint64_t seed, int64_t *steps_done, Diag *d) {
    Arena *a = arena_new();
    TensorFile *model = NULL, *opt = NULL;
    uint64_t hash = 0;
    Status st = tensors_open(a, arena_printf(a, "%s/model.safetensors", dir), &model, d);
    if (st == ST_OK) st = tensors_open(a, arena_printf(a, "%s/optimizer.safetensors", dir), &opt, d);
    if (st == ST_OK) st = load_state(model, "", rt, g, 0, a, &hash, d);
    if (st == ST_OK) st = load_full(opt, rt, g, a, d);
    if (st == ST_OK) st = load_state(opt, "adamw.m.", rt, g, 1, a, NULL, d);
    if (st == ST_OK) st = load_state(opt, "adamw.v.", rt, g, 2, a, NULL, d);
    if (st == ST_OK) st = load_run(opt, dir, seed, hash, steps_done, d);
    arena_free(a);
    return st;
}
