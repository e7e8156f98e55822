// Parameters (tied names merged), buffers and constants of an archive.
#include "import/archive_payload.h"
#include "import/mapfile.h"
#include "ir/convert.h"

// One AIN_PARAMETER input before merging; the same order as those inputs.
typedef struct Entry {
    AtenInput *input;
    Payload *payload;      // NULL: in no table
    Shape shape;
    DType dtype;
    int parent;            // towards the first entry of its tied group, which is its own parent
    int nalias;            // of a group's first entry
} Entry;

typedef struct Entries {
    VEC(Entry) item;
    Map *index;            // parameter name -> item
} Entries;

static Status static_type(ArchiveReader *r, const AtenInput *in, Shape *shape, DType *dtype) {
    int64_t at;
    if (!map_get(r->ar->graph->tensor_index, in->arg, &at)) return diag_error(r->d, ST_INPUT, "its sizes are not in the graph");
    const AtenTensor *t = &r->ar->graph->tensor[at];
    int code = t->dtype;
    bool is_complex = aten_complex(t->dtype, &code);
    if (!aten_dtype(code, dtype) || (is_complex && in->kind == AIN_PARAMETER))
        return diag_error(r->d, ST_UNSUPPORTED, "its dtype (export code %d) is not supported", t->dtype);
    *shape = (Shape){.ndim = t->ndim};
    int64_t numel = 1;
    for (int i = 0; i < t->ndim; i++) {
        if (!t->known || t->size[i]->op != SYM_INT) return diag_error(r->d, ST_UNSUPPORTED, "its sizes are not constant");
        shape->dim[i] = t->size[i]->value;
        if (!mul_i64(numel, shape->dim[i], &numel) || numel > INT64_MAX / 16)
            return diag_error(r->d, ST_INPUT, "its sizes overflow");
    }
    if (is_complex && t->ndim < MAX_DIMS) shape->dim[shape->ndim++] = 2;
    return t->known && t->ndim + is_complex <= MAX_DIMS ? ST_OK : diag_error(r->d, ST_UNSUPPORTED, "over %d dims", MAX_DIMS);
}

// The table and the graph must tell the same of a tensor.
static Status check_payload(ArchiveReader *r, Payload *p, const Shape *shape, DType dtype) {
    TRY(payload_locate(r, p));
    if (p->type == dtype && shape_equal(&p->shape, shape)) return ST_OK;
    return diag_error(r->d, ST_INPUT, "the graph says %s%s, the weight table %s%s", dtype_name(dtype),
                      payload_shape_text(r->scratch, shape), dtype_name(p->type), payload_shape_text(r->scratch, &p->shape));
}

static Status collect(ArchiveReader *r, PayloadTable *t, Entries *out) {
    for (int i = 0; i < r->ar->ninput; i++) {
        AtenInput *in = &r->ar->input[i];
        if (in->kind != AIN_PARAMETER) continue;
        Entry e = {.input = in, .payload = payload_find(t, in->target), .parent = (int)out->item.len};
        Status st = static_type(r, in, &e.shape, &e.dtype);
        if (st == ST_OK && e.payload) st = check_payload(r, e.payload, &e.shape, e.dtype);
        if (st == ST_OK && !dtype_is_float(e.dtype))
            st = diag_error(r->d, ST_UNSUPPORTED, "its dtype is %s", dtype_name(e.dtype));
        if (st != ST_OK) return diag_where(r->d, "parameter '%.200s'", in->target);
        map_set(out->index, in->target, out->item.len);
        vec_push(&out->item, e);
    }
    return ST_OK;
}

// ---- tied names ----------------------------------------------------------------------------------------------------------
static bool has_bytes(const Entry *e) { return e->payload && e->payload->member; }

static Status same_bytes(ArchiveReader *r, const Entry *a, const Entry *b) {
    const void *x, *y;
    if (!has_bytes(a) || !has_bytes(b) || payload_same_view(a->payload, b->payload)) return ST_OK;
    TRY(payload_bytes(r, a->payload, &x));
    TRY(payload_bytes(r, b->payload, &y));
    if (memcmp(x, y, (size_t)(shape_numel(&a->shape) * dtype_nbytes(a->dtype))) == 0) return ST_OK;
    return diag_error(r->d, ST_INPUT, "extra/autosp.json ties '%.200s' to '%.200s', but their bytes differ", a->input->target,
                      b->input->target);
}

static int group_of(Entries *es, int i) {
    Entry *e = es->item.data;
    while (e[i].parent != i) i = e[i].parent = e[e[i].parent].parent;
    return i;
}

static Status tie(ArchiveReader *r, Entries *es, int a, int b) {
    Entry *x = &es->item.data[a], *y = &es->item.data[b];
    if (!shape_equal(&x->shape, &y->shape) || x->dtype != y->dtype)
        return diag_error(r->d, ST_INPUT, "tied parameters '%.200s' %s and '%.200s' %s differ in type", x->input->target,
                          payload_shape_text(r->scratch, &x->shape), y->input->target, payload_shape_text(r->scratch, &y->shape));
    if (x->payload && y->payload && x->payload->requires_grad != y->payload->requires_grad)
        return diag_error(r->d, ST_INPUT, "of the tied parameters '%.200s' and '%.200s' only one is frozen", x->input->target,
                          y->input->target);
    TRY(same_bytes(r, x, y));
    a = group_of(es, a);
    b = group_of(es, b);
    es->item.data[a > b ? a : b].parent = a > b ? b : a;
    return ST_OK;
}

static Status tie_listed(ArchiveReader *r, Entries *es) {
    json_t *groups = NULL;
    if (r->extra) TRY(json_field_opt(r->extra, "tied", JSON_ARRAY, &groups, r->d));
    for (size_t i = 0; i < json_array_size(groups); i++) {
        const json_t *g = json_array_get(groups, i);
        int64_t head = -1;
        for (size_t k = 0; k < json_array_size(g); k++) {
            const char *name = json_string_value(json_array_get(g, k));
            int64_t at;
            if (!name || !map_get(es->index, name, &at))
                return diag_error(r->d, ST_INPUT, "extra/autosp.json: \"tied\" names '%.200s', which is no parameter",
                                  name ? name : "?");
            if (head >= 0) TRY(tie(r, es, (int)head, (int)at));
            else head = at;
        }
    }
    return ST_OK;
}

// ---- shared memory -------------------------------------------------------------------------------------------------------
typedef struct Region {
    const Payload *p;
    int entry;             // parameter entry, -1: a buffer
} Region;

static int region_order(const void *x, const void *y) {
    const Region *a = x, *b = y;
    if (a->p->member != b->p->member) return a->p->member < b->p->member ? -1 : 1;
    if (a->p->begin != b->p->begin) return a->p->begin < b->p->begin ? -1 : 1;
    return a->entry < b->entry ? -1 : a->entry > b->entry;
}

// Names over the same bytes are one tied parameter if they are the same view. Any other overlap would train differently here.
static Status tie_shared(ArchiveReader *r, PayloadTable *t, Entries *es) {
    Region *region = ARENA_ARRAY(r->scratch, Region, t->item.len);
    int64_t n = 0;
    for (int i = 0; i < r->ar->ninput; i++) {
        const AtenInput *in = &r->ar->input[i];
        Payload *p = in->target ? payload_find(t, in->target) : NULL;
        int64_t at = -1;
        if (in->kind == AIN_PARAMETER) map_get(es->index, in->target, &at);
        if (p && p->member && p->end > p->begin) region[n++] = (Region){p, (int)at};
    }
    if (n > 1) qsort(region, (size_t)n, sizeof *region, region_order);
    const Region *top = NULL;  // of the current member, the one that reaches furthest
    for (int64_t i = 0; i < n; i++) {
        const Region *x = &region[i];
        if (top && top->p->member == x->p->member && x->p->begin < top->p->end) {
            bool params = top->entry >= 0 && x->entry >= 0;
            if (params && payload_same_view(top->p, x->p)) TRY(tie(r, es, top->entry, x->entry));
            else if ((top->entry >= 0 && top->p->requires_grad) || (x->entry >= 0 && x->p->requires_grad))
                return diag_error(r->d, ST_UNSUPPORTED, "'%.200s' and '%.200s' share memory without being the same tensor; "
                                  "copy one of them before exporting", top->p->name, x->p->name);
        }
        if (!top || top->p->member != x->p->member || x->p->end > top->p->end) top = x;
    }
    return ST_OK;
}

// ---- params --------------------------------------------------------------------------------------------------------------
static const char *checkpoint_name(const ArchiveReader *r, const char *name) {
    const json_t *names = json_object_get(r->extra, "checkpoint_names");
    return json_string_value(json_object_get(names, name));
}

// Adds entry i to its group's parameter, which its first entry makes.
static Status add_param(ArchiveReader *r, Entries *es, int i) {
    Entry *e = &es->item.data[i], *head = &es->item.data[group_of(es, i)];
    if (e == head) {
        Param fresh = {.name = e->input->target, .shape = e->shape, .dtype = e->dtype, .decay = true, .trainable = true};
        fresh.alias = ARENA_ARRAY(r->a, const char *, e->nalias);
        vec_push(&r->ar->param, fresh);
        e->input->param = (int32_t)r->ar->param.len - 1;
    }
    Param *p = &r->ar->param.data[head->input->param];
    e->input->param = head->input->param;
    if (e != head) p->alias[p->nalias++] = e->input->target;
    if (e->payload) p->trainable = e->payload->requires_grad;
    const char *name = checkpoint_name(r, e->input->target);
    if (name && !p->checkpoint_name) p->checkpoint_name = arena_strdup(r->a, name);
    return e->payload && !p->data ? payload_bytes(r, e->payload, &p->data) : ST_OK;
}

static Status read_no_decay(ArchiveReader *r, const Entries *es) {
    json_t *list = NULL;
    if (r->extra) TRY(json_field_opt(r->extra, "no_decay", JSON_ARRAY, &list, r->d));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        int64_t at;
        if (!name || !map_get(es->index, name, &at))
            return diag_error(r->d, ST_INPUT, "extra/autosp.json: \"no_decay\" names '%.200s', which is no parameter",
                              name ? name : "?");
        r->ar->param.data[es->item.data[at].input->param].decay = false;
    }
    return ST_OK;
}

static Status read_params(ArchiveReader *r, PayloadTable *t, Entries *es) {
    TRY(collect(r, t, es));
    TRY(tie_listed(r, es));
    TRY(tie_shared(r, t, es));
    for (int i = 0; i < es->item.len; i++) {
        int first = group_of(es, i);
        if (first != i) es->item.data[first].nalias++;
    }
    for (int i = 0; i < es->item.len; i++) TRY(add_param(r, es, i));
    return read_no_decay(r, es);
}

// ---- buffers and constants -----------------------------------------------------------------------------------------------
// Whether any node of the graph reads `name`.
static bool is_used(ArchiveReader *r, const char *name) {
    int64_t yes;
    const AtenGraph *g = r->ar->graph;
    if (r->used) return map_get(r->used, name, &yes);
    r->used = map_new(r->scratch);
    for (int i = 0; i < g->nnode; i++)
        for (int k = 0; k < g->node[i].nin; k++) {
            const Arg *a = &g->node[i].in[k];
            for (int j = 0; a->names && j < a->n; j++)
                if (a->names[j]) map_set(r->used, a->names[j], 1);
        }
    return map_get(r->used, name, &yes);
}

static Status make_const(ArchiveReader *r, PayloadTable *t, const AtenInput *in, Const *c) {
    DType stored;
    *c = (Const){.name = in->target, .persistent = in->kind == AIN_BUFFER && in->persistent};
    Status st = static_type(r, in, &c->shape, &stored);
    if (st == ST_UNSUPPORTED && !is_used(r, in->arg)) {  // a byte buffer that nothing reads is no reason to refuse
        diag_clear(r->d);
        *c = (Const){.name = in->target, .dtype = DT_I64};
        return ST_OK;
    }
    if (st != ST_OK) return st;
    c->dtype = stored == DT_BF16 || stored == DT_F16 ? DT_F32 : stored == DT_I32 ? DT_I64 : stored;
    Payload *p = payload_find(t, in->target);
    if (!p) return ST_OK;
    const void *bytes;
    TRY(check_payload(r, p, &c->shape, stored));
    TRY(payload_bytes(r, p, &bytes));
    c->data = bytes;
    if (!bytes || c->dtype == stored) return ST_OK;
    int64_t n = shape_numel(&c->shape);
    void *wide;
    TRY(tensor_memory(r->a, n * dtype_nbytes(c->dtype), &wide, r->d));
    convert_array(bytes, stored, wide, c->dtype, n);
    c->data = wide;
    return ST_OK;
}

static Status read_constants(ArchiveReader *r, PayloadTable *t) {
    for (int i = 0; i < r->ar->ninput; i++) {
        AtenInput *in = &r->ar->input[i];
        if (in->kind != AIN_BUFFER && in->kind != AIN_CONSTANT) continue;
        Const c;
        if (make_const(r, t, in, &c) != ST_OK) return diag_where(r->d, "buffer '%.200s'", in->target);
        in->constant = (int32_t)r->ar->constant.len;
        vec_push(&r->ar->constant, c);
    }
    return ST_OK;
}

static void free_vecs(void *p) {
    Archive *ar = p;
    vec_free(&ar->param);
    vec_free(&ar->constant);
}

Status archive_read_weights(ArchiveReader *r) {
    PayloadTable t;
    Entries es = {.index = map_new(r->scratch)};
    arena_defer(r->a, free_vecs, r->ar);
    Status st = payloads_read(r, &t);
    if (st == ST_OK) st = read_constants(r, &t);  // first: locates every payload that a parameter might overlap
    if (st == ST_OK) st = read_params(r, &t, &es);
    vec_free(&t.item);
    vec_free(&es.item);
    return st;
}
