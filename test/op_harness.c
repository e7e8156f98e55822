// See op_harness.h. Everything here is written for being obvious: element by element, one allocation per buffer, so that the
// address sanitizer sees every byte that a kernel touches beyond its operands.
#include "op_harness.h"
#include <float.h>
#include <math.h>
#include "base/random.h"
#include "ops/chunk.h"

void (*op_device_gap)(void *p, size_t nbytes, bool forbid);

// ---- cases ---------------------------------------------------------------------------------------------------------------

static DType real_of(DType t, DType real) { return t == DT_F32 ? real : t; }

static uint16_t bf16_of(double v) {  // to nearest, ties to even
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static double bf16_value(uint16_t bits) {
    uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

double op_round_bf16(double v) { return bf16_value(bf16_of(v)); }

static const Program *program_of(Arena *a, const Program *p, DType real) {
    Instr *instr = arena_copy(a, p->instr, sizeof(Instr) * (size_t)p->ninstr);
    for (int i = 0; i < p->ninstr; i++) instr[i].dtype = real_of(instr[i].dtype, real);
    Program *q = ARENA_NEW(a, Program);
    *q = *p;
    q->instr = instr;
    return q;
}

Sample op_sample_of(Arena *a, const Sample *sample, DType real) {
    Sample s = *sample;
    for (int i = 0; i < s.nin; i++) s.dtype[i] = real_of(s.dtype[i], real);
    for (int i = 0; i < s.nattr; i++) {
        if (s.attr[i].key == ATTR_DTYPE) s.attr[i].u.i = real_of((DType)s.attr[i].u.i, real);
        if (attr_kind(s.attr[i].key) == ATTRK_PROG) s.attr[i].u.prog = program_of(a, s.attr[i].u.prog, real);
    }
    return s;
}

static double draw(const Sample *s, int i, double u) {
    bool range = s->hi[i] > s->lo[i];
    switch (s->dtype[i]) {
    case DT_BOOL: return u < 0.5;
    case DT_I64: return range ? (double)s->lo[i] + floor(u * (double)(s->hi[i] - s->lo[i])) : floor(u * 3);
    case DT_BF16: return bf16_value(bf16_of(range ? ((double)s->lo[i] + u * (double)(s->hi[i] - s->lo[i])) / 8 : 3 * u - 1.5));
    default: return (float)(range ? ((double)s->lo[i] + u * (double)(s->hi[i] - s->lo[i])) / 8 : 3 * u - 1.5);
    }
}

Status op_sources(Graph *g, const Sample *s, uint64_t seed, ValueId *ids, double **value, Diag *d) {
    for (int i = 0; i < s->nin; i++) {
        bool param = dtype_is_float(s->dtype[i]);
        const char *name = arena_printf(g->arena, "operand%d", i);
        bool half = s->dtype[i] == DT_BF16;  // only a parameter's copy is a source of that type
        Attr attr[3] = {attr_i(ATTR_INDEX, param ? g->params.len : g->inputs.len), attr_i(ATTR_KIND, half ? 3 : 0),
                        attr_i(ATTR_DTYPE, DT_BF16)};
        if (param)
            vec_push(&g->params, ((Param){.name = name, .shape = s->shape[i], .dtype = s->dtype[i], .trainable = true}));
        else
            vec_push(&g->inputs,
                     ((Input){.name = name, .shape = s->shape[i], .dtype = s->dtype[i], .seq_dim = -1, .batch_dim = -1}));
        NodeId n;
        TRY(graph_add(g, param ? OP_PARAM : OP_INPUT, 0, NULL, param ? 2 + half : 1, attr, NULL, PHASE_FORWARD, &n, d));
        ids[i] = graph_node(g, n)->out[0];
        CHECK(graph_value(g, ids[i])->dtype == s->dtype[i], "operand %d has another type than the sample says", i);
        int64_t numel = shape_numel(&s->shape[i]);
        value[i] = ARENA_ARRAY(g->arena, double, numel + 1);
        for (int64_t k = 0; k < numel; k++) value[i][k] = draw(s, i, random_uniform(seed, 0, i, k));
    }
    return ST_OK;
}

Status op_case_new(OpCase *c, OpKind op, const Sample *sample, DType real, int nranks, uint64_t seed, Diag *d) {
    *c = (OpCase){.op = op, .real = real, .nranks = nranks, .run_seed = seed, .step = 3, .arena = arena_new()};
    c->g = graph_new(c->arena, "sample", nranks);
    Sample *s = ARENA_NEW(c->arena, Sample);
    *s = op_sample_of(c->arena, sample, real);
    c->sample = s;
    ValueId ids[OP_MAX_IN];
    CHECK(s->nin <= OP_MAX_IN, "sample with %d operands", s->nin);
    TRY(op_sources(c->g, s, seed, ids, c->in, d));
    TRY(graph_add(c->g, op, s->nin, ids, s->nattr, s->attr, NULL, PHASE_FORWARD, &c->node, d));
    const Node *n = op_case_node(c);
    CHECK(n->nout <= OP_MAX_OUT, "%s has %d outputs", op_name(op), n->nout);
    c->nin = n->nin;
    c->nout = n->nout;
    for (int j = 0; j < n->nout; j++) c->out[j] = ARENA_ARRAY(c->arena, double, shape_numel(graph_shape(c->g, n->out[j])) + 1);
    return ST_OK;
}

void op_case_free(OpCase *c) {
    if (c->g) graph_free_vecs(c->g);
    arena_free(c->arena);
    *c = (OpCase){0};
}

Status op_case_expect(OpCase *c, Diag *d) {
    return reference_node(c->g, op_case_node(c), (const double *const *)c->in, c->out, c->run_seed, c->step, d);
}

// ---- rows ----------------------------------------------------------------------------------------------------------------

static Row row_alloc(OpCase *c) {
    return (Row){.in = ARENA_ARRAY(c->arena, Placement, c->nin + 1), .out = ARENA_ARRAY(c->arena, Placement, c->nout + 1)};
}

Row op_row_new(OpCase *c) {
    Row row = row_alloc(c);
    row_replicate(op_case_node(c), &row);
    return row;
}

static LayoutId layout_uneven(LayoutTable *t, int64_t extent) {
    int nranks = layouts_nranks(t);
    int64_t *cut = calloc((size_t)nranks + 1, sizeof *cut);
    CHECK(cut, "out of memory");
    for (int r = 1; r < nranks; r++) cut[r] = r == 2 ? cut[1] : max_i64(cut[r - 1], extent * r * r / (nranks * nranks));
    cut[nranks] = extent;
    LayoutId id = layouts_cuts(t, extent, cut);
    free(cut);
    return id;
}

// Rank r owns blocks r and 2P-1-r of 2P: the balanced layout of causal attention.
static LayoutId layout_zigzag(LayoutTable *t, int64_t extent) {
    int nranks = layouts_nranks(t);
    int32_t *count = calloc((size_t)nranks, sizeof *count);
    Span *span = calloc((size_t)nranks * 2, sizeof *span);
    CHECK(count && span, "out of memory");
    for (int r = 0; r < nranks; r++) {
        int64_t block[2] = {r, 2 * nranks - 1 - r};
        count[r] = 2;
        for (int k = 0; k < 2; k++)
            span[2 * r + k] = (Span){extent * block[k] / (2 * nranks), extent * (block[k] + 1) / (2 * nranks)};
    }
    LayoutId id = layouts_intern(t, extent, count, span);
    free(count);
    free(span);
    return id;
}

typedef struct RowSet {
    VEC(Row) rows;
} RowSet;

static bool row_equal(const OpCase *c, const Row *a, const Row *b) {
    for (int i = 0; i < c->nin; i++)
        if (!placement_equal(&a->in[i], &b->in[i])) return false;
    for (int j = 0; j < c->nout; j++)
        if (!placement_equal(&a->out[j], &b->out[j])) return false;
    return true;
}

static void row_set_add(OpCase *c, RowSet *s, Row row) {
    for (int64_t i = 0; i < s->rows.len; i++)
        if (row_equal(c, &s->rows.data[i], &row)) return;
    vec_push(&s->rows, row);
}

static void add_row_from(OpCase *c, RowSet *s, int slot, Placement p) {
    Row row = row_alloc(c);
    const OpInfo *info = op_info(c->op);
    if (info->shard && info->shard(c->g, op_case_node(c), slot, p, &row)) row_set_add(c, s, row);
}

int op_each_row(OpCase *c, OpRowFn fn, void *ctx) {
    RowSet s = {0};
    LayoutTable *t = c->g->layouts;
    for (int slot = -c->nout; slot < c->nin; slot++) {
        const Node *n = op_case_node(c);
        Shape shape = *graph_shape(c->g, slot >= 0 ? n->in[slot] : n->out[~slot]);
        for (int dim = 0; dim < shape.ndim; dim++) {
            if (shape.dim[dim] < 1) continue;
            add_row_from(c, &s, slot, shard_on(dim, layouts_even(t, shape.dim[dim])));
            add_row_from(c, &s, slot, shard_on(dim, layout_uneven(t, shape.dim[dim])));
            add_row_from(c, &s, slot, shard_on(dim, layout_zigzag(t, shape.dim[dim])));
        }
        add_row_from(c, &s, slot, PARTIAL_SUM);
        add_row_from(c, &s, slot, PARTIAL_MAX);
    }
    const OpInfo *info = op_info(c->op);
    int extra = info->extra_rows ? info->extra_rows(c->g, op_case_node(c), -1, NULL) : 0;
    for (int i = 0; i < extra; i++) {
        Row row = row_alloc(c);
        info->extra_rows(c->g, op_case_node(c), i, &row);
        row_set_add(c, &s, row);
    }
    int count = (int)s.rows.len;
    for (int i = 0; i < count; i++) fn(c, &s.rows.data[i], ctx);
    vec_free(&s.rows);
    return count;
}

static void placement_text(const Graph *g, const Placement *p, Str *s) {
    if (p->kind == PLACE_REPLICATE) str_add(s, "replicate");
    if (p->kind == PLACE_PARTIAL) str_add(s, p->reduce == RED_MAX ? "partial(max)" : "partial(sum)");
    if (p->kind == PLACE_NONE) str_add(s, "none");
    if (p->kind != PLACE_SHARD) return;
    const Layout *l = layouts_get(g->layouts, p->layout);
    str_printf(s, "shard(%d%s;", p->dim, p->reduce == RED_SUM ? ", sum" : "");
    for (int r = 0; r < l->nranks; r++) {
        if (r) str_add(s, " |");
        for (int i = 0; i < layout_nspan(l, r); i++)
            str_printf(s, " %lld-%lld", (long long)layout_spans(l, r)[i].begin, (long long)layout_spans(l, r)[i].end);
    }
    str_add(s, ")");
}

const char *op_row_text(OpCase *c, const Row *row) {
    Str s = {0};
    if (row->strategy) str_printf(&s, "%s: ", row->strategy);
    for (int i = 0; i < c->nin; i++) {
        if (i) str_add(&s, ", ");
        placement_text(c->g, &row->in[i], &s);
    }
    str_add(&s, " -> ");
    for (int j = 0; j < c->nout; j++) {
        if (j) str_add(&s, ", ");
        placement_text(c->g, &row->out[j], &s);
    }
    const char *text = arena_strdup(c->arena, str_text(&s));
    str_free(&s);
    return text;
}

// Owners of each element of the layout's axis; false when a rank holds one twice.
static bool count_owners(const Layout *l, int32_t *owners) {
    bool once = true;
    for (int r = 0; r < l->nranks; r++) {
        for (int i = 0; i < layout_nspan(l, r); i++) {
            Span a = layout_spans(l, r)[i];
            for (int j = 0; j < i; j++) {
                Span b = layout_spans(l, r)[j];
                once &= a.end <= b.begin || b.end <= a.begin;
            }
            for (int64_t k = a.begin; k < a.end; k++) owners[k]++;
        }
    }
    return once;
}

static bool placement_well_formed(OpCase *c, const Shape *shape, const Placement *p, bool output, Str *why) {
    if (p->kind == PLACE_NONE) return str_add(why, "a placement was not set"), false;
    if (p->kind != PLACE_SHARD) return true;
    if (p->dim < 0 || p->dim >= shape->ndim) return str_printf(why, "dim %d of %d", p->dim, shape->ndim), false;
    const Layout *l = layouts_get(c->g->layouts, p->layout);
    if (l->extent != shape->dim[p->dim])
        return str_printf(why, "layout of %lld on a dim of %lld", (long long)l->extent, (long long)shape->dim[p->dim]), false;
    int32_t *owners = calloc((size_t)l->extent + 1, sizeof *owners);
    CHECK(owners, "out of memory");
    bool once = count_owners(l, owners), complete = true, overlap = false;
    for (int64_t k = 0; k < l->extent; k++) complete &= owners[k] >= 1, overlap |= owners[k] > 1;
    free(owners);
    if (!once) return str_add(why, "a rank holds an element twice"), false;
    if (!complete) return str_add(why, "an element lives nowhere"), false;
    if (overlap != l->overlap) return str_add(why, "the layout's overlap flag is wrong"), false;
    if (output && overlap && p->reduce == RED_NONE) return str_add(why, "an output overlaps without being a sum"), false;
    if (!output && p->reduce != RED_NONE) return str_add(why, "an input is asked for as terms of a sum by interval"), false;
    return true;
}

bool op_row_well_formed(OpCase *c, const Row *row, Str *why) {
    const Node *n = op_case_node(c);
    for (int i = 0; i < c->nin; i++) {
        if (placement_well_formed(c, graph_shape(c->g, n->in[i]), &row->in[i], false, why)) continue;
        str_printf(why, " (operand %d)", i);
        return false;
    }
    for (int j = 0; j < c->nout; j++) {
        if (placement_well_formed(c, graph_shape(c->g, n->out[j]), &row->out[j], true, why)) continue;
        str_printf(why, " (output %d)", j);
        return false;
    }
    return true;
}

// ---- local operands ------------------------------------------------------------------------------------------------------

static Operand local_operand(const OpCase *c, ValueId v, const Placement *p, int rank) {
    const Value *value = graph_value(c->g, v);
    Shape local = placement_local_shape(c->g->layouts, p, &value->shape, rank);
    Operand o = {.dtype = value->dtype, .ndim = local.ndim, .sdim = -1};
    memcpy(o.dim, local.dim, sizeof o.dim);
    memcpy(o.global, value->shape.dim, sizeof o.global);
    if (p->kind == PLACE_SHARD) {
        const Layout *l = layouts_get(c->g->layouts, p->layout);
        o.sdim = p->dim;
        o.nspan = layout_nspan(l, rank);
        o.span = layout_spans(l, rank);
    }
    return o;
}

static int64_t local_numel(const Operand *o) {
    int64_t n = 1;
    for (int i = 0; i < o->ndim; i++) n *= o->dim[i];
    return n;
}

// Row-major index in the whole value of local element `at`.
static int64_t global_offset(const Operand *o, int64_t at) {
    int64_t offset = 0, stride = 1;
    for (int i = o->ndim - 1; i >= 0; i--) {
        int64_t k = at % o->dim[i];
        at /= o->dim[i];
        for (int s = 0; i == o->sdim && s < o->nspan; s++) {
            int64_t len = o->span[s].end - o->span[s].begin;
            if (k < len) {
                k += o->span[s].begin;
                break;
            }
            k -= len;
        }
        offset += k * stride;
        stride *= o->global[i];
    }
    return offset;
}

static void element_store(void *data, DType t, int64_t at, double v) {
    switch (t) {
    case DT_F32: ((float *)data)[at] = (float)v; break;
    case DT_F64: ((double *)data)[at] = v; break;
    case DT_BF16: ((uint16_t *)data)[at] = bf16_of(v); break;
    case DT_I64: ((int64_t *)data)[at] = (int64_t)v; break;
    default: ((uint8_t *)data)[at] = v != 0; break;
    }
}

static double element_load(const void *data, DType t, int64_t at) {
    switch (t) {
    case DT_F32: return ((const float *)data)[at];
    case DT_F64: return ((const double *)data)[at];
    case DT_BF16: return bf16_value(((const uint16_t *)data)[at]);
    case DT_I64: return (double)((const int64_t *)data)[at];
    default: return ((const uint8_t *)data)[at];
    }
}

// Element `k` of rank's term of a partial operand: random but for the last rank's, which makes the sum right; the maximum is held
// by one rank, the others have something less.
static double partial_term(const OpCase *c, const Placement *p, int slot, int rank, int64_t k, double whole) {
    if (p->reduce == RED_MAX) return k % c->nranks == rank ? whole : whole - 1 - random_uniform(c->run_seed, rank, 100 + slot, k);
    double before = 0;
    for (int r = 0; r < c->nranks - 1; r++) {
        double term = floor(8 * random_uniform(c->run_seed, r, 100 + slot, k)) - 4;  // integers: also right for i64
        if (r == rank) return term;
        before += term;
    }
    return whole - before;
}

static void *buffer_new(size_t nbytes) {
    void *p = NULL;
    CHECK(posix_memalign(&p, 64, nbytes ? nbytes : 1) == 0, "out of memory");
    memset(p, 0xA5, nbytes);  // a kernel that leaves an element unwritten shows
    return p;
}

static void cut_operand(const OpCase *c, int slot, const Placement *p, int rank, Operand *o) {
    int64_t n = local_numel(o);
    o->data = buffer_new((size_t)n * (size_t)dtype_nbytes(o->dtype));
    for (int64_t k = 0; k < n; k++) {
        int64_t at = global_offset(o, k);
        double v = c->in[slot][at];
        if (p->kind == PLACE_PARTIAL) v = partial_term(c, p, slot, rank, at, v);
        element_store(o->data, o->dtype, k, v);
    }
}

// ---- running and comparing -----------------------------------------------------------------------------------------------

typedef struct RankRun {
    Operand in[OP_MAX_IN], out[OP_MAX_OUT];  // on the host: what the kernel read (and overwrote), what it wrote
    void *scratch;
    size_t scratch_nbytes;
} RankRun;

// Which operand's buffer output j overwrites; -1: it has its own.
static int inplace_operand(OpKind op, int j) {
    static const int adamw[] = {0, 2, 3, 6};
    return op_flags(op) & OPF_INPLACE && j < 4 ? adamw[j] : -1;
}

static size_t operand_bytes(const Operand *o) { return (size_t)local_numel(o) * (size_t)dtype_nbytes(o->dtype); }

// Kernels know floats by f32 and f64: bf16 goes with f32, and so do ops on integers alone.
static DType kernel_real(const OpCase *c) { return c->real == DT_F64 ? DT_F64 : DT_F32; }

static KernelArgs kernel_args(const OpCase *c, const RankRun *r) {
    return (KernelArgs){.node = op_case_node(c), .id = c->node, .nin = c->nin, .nout = c->nout, .in = r->in, .out = r->out,
                        .scratch = r->scratch, .scratch_nbytes = r->scratch_nbytes, .run_seed = c->run_seed, .step = c->step};
}

// ---- what the plan makes of part and assemble ---------------------------------------------------------------------------
// They have no kernel: parts share the whole's bytes where these lie in one piece, else the plan is refused. Here they are copied
// element by element, and whether and where they would lie in one piece is compared with what the planner is told.
static bool inside(Intervals v, int64_t at) {
    for (int k = 0; k < v.n; k++)
        if (v.at[2 * k] <= at && at < v.at[2 * k + 1]) return true;
    return false;
}

static Status run_part(const Operand *whole, const Operand *part, int dim, Intervals v, bool gather, Diag *d) {
    int64_t outer = 1, row = dtype_nbytes(whole->dtype), at = 0, pos = 0, first = -1, last = -1;
    for (int i = 0; i < dim; i++) outer *= whole->dim[i];
    for (int i = dim + 1; i < whole->ndim; i++) row *= whole->dim[i];
    bool together = true;
    Span all = {0, whole->global[dim]};
    for (int s = 0; s < (whole->sdim == dim ? whole->nspan : 1); s++) {
        Span span = whole->sdim == dim ? whole->span[s] : all;
        for (int64_t g = span.begin; g < span.end; g++, pos++) {
            if (!inside(v, g)) continue;
            if (at == part->dim[dim])
                return diag_error(d, ST_NUMERIC, "the rank has more of the part than the part's layout says");
            for (int64_t o = 0; o < outer; o++) {
                char *w = (char *)whole->data + (o * whole->dim[dim] + pos) * row,
                     *p = (char *)part->data + (o * part->dim[dim] + at) * row;
                memcpy(gather ? p : w, gather ? w : p, (size_t)row);
            }
            together = together && (first < 0 || pos == last + 1);
            if (first < 0) first = pos;
            last = pos, at++;
        }
    }
    if (at != part->dim[dim])
        return diag_error(d, ST_NUMERIC, "the rank has %lld rows of the part, not %lld", (long long)at,
                          (long long)part->dim[dim]);
    int64_t offset, nbytes, n = outer * at * row;
    bool placed = intervals_place(whole, dim, v, &offset, &nbytes);
    bool right = placed == (n == 0 || (together && (outer == 1 || at == whole->dim[dim])));
    if (placed) right = right && nbytes == n && offset == (n ? first * row : 0);
    return right ? ST_OK
                 : diag_error(d, ST_NUMERIC, "%s at %lld, %lld bytes", placed ? "placed" : "not placed", (long long)offset,
                              (long long)nbytes);
}

static Status run_placed(const KernelArgs *k, Diag *d) {
    int dim = (int)node_int(k->node, ATTR_DIM);
    if (k->node->op == OP_PART) return run_part(&k->in[0], &k->out[0], dim, part_intervals(k->node), true, d);
    Intervals v = {0};
    for (int i = 0; i < k->nin; i++) {
        v = assemble_next(k->node, v);
        TRY(run_part(&k->out[0], &k->in[i], dim, v, false, d));
    }
    return ST_OK;
}

static KernelFn kernel_of(const OpCase *c, const Backend *b) {
    if (op_flags(c->op) & OPF_PLACED) return b->device ? NULL : run_placed;
    return b->kernel(c->op, b->device ? kernel_real(c) : c->real);
}

// A device's copy of a rank's buffers, one after the other in its arena with room between.
typedef struct DeviceRun {
    const DeviceApi *api;
    Device *dev;
    char *arena;
    size_t used;
    RankRun r;  // device addresses
} DeviceRun;

enum { DEVICE_ALIGN = 256, DEVICE_GAP = 256 };

static size_t device_room(size_t nbytes) { return (nbytes + DEVICE_GAP + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN; }

static void *device_place(DeviceRun *x, size_t nbytes) {
    char *p = x->arena + x->used;
    x->used += device_room(nbytes);
    if (op_device_gap) op_device_gap(p + nbytes, x->used - (size_t)(p - x->arena) - nbytes, true);
    return p;
}

static Status device_fill_in(OpCase *c, DeviceRun *x, const RankRun *host, Diag *d) {
    x->r = *host;
    for (int i = 0; i < c->nin; i++) {
        size_t n = operand_bytes(&host->in[i]);
        x->r.in[i].data = device_place(x, n);
        TRY(x->api->write(x->dev, x->r.in[i].data, host->in[i].data, n, d));
    }
    for (int j = 0; j < c->nout; j++) {
        int shared = inplace_operand(c->op, j);
        size_t n = operand_bytes(&host->out[j]);
        x->r.out[j].data = shared >= 0 ? x->r.in[shared].data : device_place(x, n);
        if (shared < 0) TRY(x->api->write(x->dev, x->r.out[j].data, host->out[j].data, n, d));
    }
    x->r.scratch = device_place(x, host->scratch_nbytes);
    return x->api->write(x->dev, x->r.scratch, host->scratch, host->scratch_nbytes, d);
}

static Status device_run(OpCase *c, const Backend *backend, DeviceRun *x, const RankRun *host, Diag *d) {
    void *state;
    NodeId failed;
    TRY(device_fill_in(c, x, host, d));
    KernelArgs k = kernel_args(c, &x->r);
    k.device = x->dev;
    TRY(x->api->prepare(x->dev, &k, &state, d));
    size_t used = x->used;
    x->used = 0;
    TRY(device_fill_in(c, x, host, d));  // preparing may have written to the operands
    CHECK(x->used == used, "operands moved");
    k.state = state;
    TRY(x->api->begin(x->dev, c->run_seed, c->step, d));
    TRY(kernel_of(c, backend)(&k, d));
    TRY(x->api->finish(x->dev, &failed, d));
    for (int j = 0; j < c->nout; j++)
        TRY(x->api->read(x->dev, host->out[j].data, x->r.out[j].data, operand_bytes(&host->out[j]), d));
    return ST_OK;
}

static Status run_on_device(OpCase *c, const Backend *backend, int rank, const RankRun *host, Diag *d) {
    DeviceRun x = {.api = backend->device};
    size_t nbytes = device_room(host->scratch_nbytes);
    for (int i = 0; i < c->nin; i++) nbytes += device_room(operand_bytes(&host->in[i]));
    for (int j = 0; j < c->nout; j++) nbytes += device_room(operand_bytes(&host->out[j]));
    TRY(x.api->open(rank, c->nranks, nbytes, &x.dev, (void **)&x.arena, d));
    Status st = device_run(c, backend, &x, host, d);
    if (op_device_gap) op_device_gap(x.arena, nbytes, false);
    x.api->close(x.dev);
    return st;
}

static Status run_rank(OpCase *c, const Backend *backend, Pool *pool, const Row *row, int rank, RankRun *r, Diag *d) {
    const Node *n = op_case_node(c);
    *r = (RankRun){0};
    for (int i = 0; i < c->nin; i++) {
        r->in[i] = local_operand(c, n->in[i], &row->in[i], rank);
        cut_operand(c, i, &row->in[i], rank, &r->in[i]);
    }
    for (int j = 0; j < c->nout; j++) {
        Operand *o = &r->out[j];
        *o = local_operand(c, n->out[j], &row->out[j], rank);
        int shared = inplace_operand(c->op, j);
        o->data = shared >= 0 ? r->in[shared].data : buffer_new(operand_bytes(o));
    }
    r->scratch_nbytes = backend->scratch(n, r->in, r->out, 2);
    r->scratch = buffer_new(r->scratch_nbytes);
    if (backend->device) return run_on_device(c, backend, rank, r, d);
    KernelArgs k = kernel_args(c, r);
    k.pool = pool;
    return kernel_of(c, backend)(&k, d);
}

static void free_rank(OpCase *c, RankRun *r) {
    for (int j = 0; j < c->nout; j++)
        if (inplace_operand(c->op, j) < 0) free(r->out[j].data);
    for (int i = 0; i < c->nin; i++) free(r->in[i].data);
    free(r->scratch);
}

// Rounding of the dtype times a modest reduction length, relative to the tensor's largest value. Integers are exact.
static double tolerance(DType t, const double *want, int64_t n) {
    if (!dtype_is_float(t)) return 0;
    double largest = 0;
    for (int64_t k = 0; k < n; k++)
        if (isfinite(want[k])) largest = fmax(largest, fabs(want[k]));
    if (t == DT_BF16) return 0x1p-8 * (1 + largest);  // one rounding, of the result
    return 64 * (t == DT_F32 ? FLT_EPSILON : DBL_EPSILON) * (1 + largest);
}

static bool close_to(double got, double want, double tol) {
    if (isnan(want)) return isnan(got);
    if (isinf(want)) return got == want;
    return fabs(got - want) <= tol;
}

// Puts the ranks' parts of output j together in *have and compares. Copies must each be right; terms are summed first.
static bool compare_output(OpCase *c, const Row *row, const RankRun *run, int j, Str *why) {
    const Value *v = graph_value(c->g, op_case_node(c)->out[j]);
    const Placement *p = &row->out[j];
    int64_t n = shape_numel(&v->shape);
    double tol = tolerance(v->dtype, c->out[j], n) + c->slack[j];
    bool terms = p->kind == PLACE_PARTIAL || p->reduce != RED_NONE, ok = true;
    if (p->kind == PLACE_PARTIAL) tol *= c->nranks;
    double *have = calloc((size_t)n + 1, sizeof *have);
    CHECK(have, "out of memory");
    for (int64_t k = 0; k < n && p->reduce == RED_MAX; k++) have[k] = -INFINITY;
    for (int r = 0; r < c->nranks && ok; r++) {
        const Operand *o = &run[r].out[j];
        for (int64_t k = 0; k < local_numel(o) && ok; k++) {
            int64_t at = global_offset(o, k);
            double got = element_load(o->data, o->dtype, k);
            if (terms) {
                have[at] = p->reduce == RED_MAX ? fmax(have[at], got) : have[at] + got;
            } else if (!close_to(got, c->out[j][at], tol)) {
                str_printf(why, "output %d on rank %d, element %lld: %.9g, not %.9g", j, r, (long long)at, got, c->out[j][at]);
                ok = false;
            }
        }
    }
    for (int64_t k = 0; k < n && ok && terms; k++) {
        if (close_to(have[k], c->out[j][k], tol)) continue;
        str_printf(why, "output %d, element %lld put together: %.9g, not %.9g", j, (long long)k, have[k], c->out[j][k]);
        ok = false;
    }
    free(have);
    return ok;
}

bool op_check_row(OpCase *c, const Backend *backend, Pool *pool, const Row *row, bool *ran, Str *why) {
    *ran = kernel_of(c, backend) != NULL;
    if (!*ran) return true;
    RankRun *run = calloc((size_t)c->nranks, sizeof *run);
    CHECK(run, "out of memory");
    bool ok = true;
    for (int r = 0; r < c->nranks; r++) {
        Diag d = {0};
        if (run_rank(c, backend, pool, row, r, &run[r], &d) == ST_OK) continue;
        str_printf(why, "rank %d: %s", r, d.text);
        ok = false;
    }
    for (int j = 0; j < c->nout && ok; j++) ok = compare_output(c, row, run, j, why);
    for (int r = 0; r < c->nranks; r++) free_rank(c, &run[r]);
    free(run);
    return ok;
}
