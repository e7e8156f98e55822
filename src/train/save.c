// Saving and resuming. Both files are written beside the old ones and renamed, the optimizer's first: a model file is never newer
// than an optimizer state that belongs to it, and resuming checks that they agree.
#include <inttypes.h>
#include <stdlib.h>

#include "exec/exec.h"
#include "ir/convert.h"
#include "train/train.h"

static DType stored_dtype(const Param *p) { return dtype_is_float(p->dtype) ? p->dtype : DT_F32; }

// One state tensor of every parameter that has it, under prefix + name; aliases of tied parameters too when `aliases`.
static Status collect_state(Arena *a, Runtime *rt, const Graph *g, int slot, const char *prefix, bool aliases, TensorView *out, int64_t *n, Diag *d) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        DType t = slot ? DT_F32 : stored_dtype(p);
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
        TensorView v = {.name = arena_printf(a, "%s%s", prefix, p->name), .dtype = t, .known_dtype = true, .shape = p->shape, .data = data,
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

Status save_model(const char *dir, Runtime *rt, const Graph *g, int64_t steps_done, uint64_t seed, Diag *d) {
    Arena *a = arena_new();
    TensorView *v = ARENA_ARRAY(a, TensorView, 2 * g->params.len + 2);
    int64_t n = 0, run[2] = {steps_done, (int64_t)seed};
    Status st = collect_state(a, rt, g, 1, "adamw.m.", false, v, &n, d);
    if (st == ST_OK) st = collect_state(a, rt, g, 2, "adamw.v.", false, v, &n, d);
    v[n++] = (TensorView){.name = "adamw.step_and_seed", .dtype = DT_I64, .known_dtype = true, .shape = SHAPE(2), .data = run, .nbytes = sizeof run};
    if (st == ST_OK) st = tensors_write(arena_printf(a, "%s/optimizer.safetensors", dir), n, v, d);
    arena_free(a);
    TRY(st);
    a = arena_new();
    v = ARENA_ARRAY(a, TensorView, count_names(g) + g->consts.len + 1);
    n = 0;
    st = collect_state(a, rt, g, 0, "", true, v, &n, d);
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

static Status load_state(const TensorFile *f, const char *prefix, Runtime *rt, const Graph *g, int slot, Arena *a, Diag *d) {
    for (int64_t i = 0; i < g->params.len; i++) {
        const Param *p = &g->params.data[i];
        const char *name = arena_printf(a, "%s%s", prefix, p->name);
        const TensorView *t = tensors_find(f, name);
        if (!t && slot) continue;
        if (!t) return diag_error(d, ST_INPUT, "cannot resume: there is no tensor \"%s\"", name);
        if (!t->known_dtype || !shape_equal(&t->shape, &p->shape)) return diag_error(d, ST_INPUT, "cannot resume: tensor \"%s\" has another shape or dtype", name);
        TRY(runtime_set_state(rt, (int32_t)i, slot, t->data, t->dtype, d));
    }
    return ST_OK;
}

Status save_load(const char *dir, Runtime *rt, const Graph *g, int64_t *steps_done, Diag *d) {
    Arena *a = arena_new();
    TensorFile *model = NULL, *opt = NULL;
    Status st = tensors_open(a, arena_printf(a, "%s/model.safetensors", dir), &model, d);
    if (st == ST_OK) st = tensors_open(a, arena_printf(a, "%s/optimizer.safetensors", dir), &opt, d);
    if (st == ST_OK) st = load_state(model, "", rt, g, 0, a, d);
    if (st == ST_OK) st = load_state(opt, "adamw.m.", rt, g, 1, a, d);
    if (st == ST_OK) st = load_state(opt, "adamw.v.", rt, g, 2, a, d);
    if (st == ST_OK) {
        const TensorView *t = tensors_find(opt, "adamw.step_and_seed");
        int64_t run[2];
        if (!t || t->dtype != DT_I64 || shape_numel(&t->shape) != 2) {
            st = diag_error(d, ST_INPUT, "%s/optimizer.safetensors: no step number", dir);
        } else {
            memcpy(run, t->data, sizeof run);
            *steps_done = run[0];
        }
    }
    arena_free(a);
    return st;
}
