#include "driver/plan_report.h"

#include "driver/explain.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

// ---- collectives ----------------------------------------------------------------------------------------------------------

typedef struct Collective {  // one reshard, or a group of alike ones
    const char *name, *why, *phase;
    double nbytes;           // sent to other ranks by the busiest rank, each
    int64_t count;
} Collective;
typedef struct Collectives {
    VEC(Collective) item;
} Collectives;

// Layers repeat: every distinct move is reckoned once (its pieces are quadratic in the number of ranks).
typedef struct Sent {
    const Value *from, *to;
    double nbytes;
} Sent;
typedef struct SentMemo {
    VEC(Sent) item;
} SentMemo;

static double sent_nbytes(const Graph *g, const Node *n, SentMemo *memo) {
    const Value *from = graph_value(g, n->in[0]), *to = graph_value(g, n->out[0]);
    for (int64_t i = 0; i < memo->item.len; i++) {
        const Sent *s = &memo->item.data[i];
        if (s->to->dtype == to->dtype && shape_equal(&s->to->shape, &to->shape) &&
            placement_equal(&s->from->place, &from->place) && placement_equal(&s->to->place, &to->place))
            return s->nbytes;
    }
    int64_t most = 0;
    int ranks = graph_nranks(g);
    for (int r = 0; r < ranks; r++) {
        if (ranks > 16 && r > 1 && r < ranks - 2) continue;  // the ranks between are like their neighbours
        most = max_i64(most, reshard_sent_nbytes(g, &to->shape, to->dtype, &from->place, &to->place, r));
    }
    vec_push(&memo->item, ((Sent){from, to, (double)most}));
    return (double)most;
}

// "gradient of model.layers.3.mlp.up.weight, ..." and "... layers.4 ..." are one group: the digits do not count.
static bool same_but_digits(const char *a, const char *b) {
    for (;; a++, b++) {
        while (*a >= '0' && *a <= '9') a++;
        while (*b >= '0' && *b <= '9') b++;
        if (*a != *b) return false;
        if (!*a) return true;
    }
}

static void collect(const Compiled *c, bool group, Collectives *out) {
    const Graph *g = c->graph;
    SentMemo memo = {0};
    for (int64_t i = 0; i < g->nodes.len; i++) {
        const Node *n = graph_node(g, (NodeId)i);
        if (n->op != OP_RESHARD) continue;
        const Placement *from = &graph_value(g, n->in[0])->place, *to = &graph_value(g, n->out[0])->place;
        Collective x = {.name = reshard_name(g, from, to),
                        .why = n->note ? n->note : "",
                        .phase = phase_name(n->phase),
                        .nbytes = sent_nbytes(g, n, &memo),
                        .count = 1};
        if (x.nbytes == 0) continue;  // a local slice
        bool known = false;
        for (int64_t k = 0; k < out->item.len && group && !known; k++) {
            Collective *y = &out->item.data[k];
            known =
                !strcmp(x.name, y->name) && !strcmp(x.phase, y->phase) && x.nbytes == y->nbytes && same_but_digits(x.why, y->why);
            if (known) y->count++;
        }
        if (!known) vec_push(&out->item, x);
    }
    vec_free(&memo.item);
}

// ---- text -----------------------------------------------------------------------------------------------------------------

static void print_bytes(FILE *f, double v, int width) { fprintf(f, "%*s", width ? width + 3 : 0, bytes_text(v).s); }

static double largest_arena(const Plan *p) {
    int64_t most = 0;
    for (int r = 0; r < p->nmade; r++) most = max_i64(most, p->rank[r].arena_nbytes);
    return (double)most;
}

// A device with memory of its own: what it takes beside the arena, and whether all that fits where each rank has a device.
static void print_device_memory(FILE *f, const Compiled *c) {
    const DeviceModel *m = c->device;
    if (!c->plan->backend->device) return;
    double beside = device_beside_nbytes(m, plan_host_nbytes(c)), need = largest_arena(c->plan) + beside;
    fprintf(f, "  and about ");
    print_bytes(f, beside, 0);
    fprintf(f, " for the device's context and libraries; ");
    if (m->mem_nbytes > 0 && need <= m->mem_nbytes) {
        fprintf(f, "fits in the ");
        print_bytes(f, m->mem_nbytes, 0);
        fprintf(f, " of one %s with ", m->name);
        print_bytes(f, m->mem_nbytes - need, 0);
        fprintf(f, " to spare\n");
    } else if (m->mem_nbytes > 0) {
        fprintf(f, "DOES NOT FIT in the ");
        print_bytes(f, m->mem_nbytes, 0);
        fprintf(f, " of one %s: ", m->name);
        print_bytes(f, need - m->mem_nbytes, 0);
        fprintf(f, " too much\n");
    } else {
        fprintf(f, "the device's memory is unknown\n");
    }
}

// What was decided about memory, where there was something to decide.
static void print_choice(FILE *f, const Compiled *c) {
    const MemoryChoice *x = &c->memory;
    const MemoryOptions *m = &c->options;
    if (m->budget_nbytes <= 0 && m->remat != REMAT_LAYER && x->tile_rows == 0) return;
    fprintf(f, "\nmemory decisions (--remat %s, --offload %s", remat_mode_name(m->remat), m->offload ? "on" : "off");
    if (m->budget_nbytes > 0) fprintf(f, ", budget "), print_bytes(f, (double)m->budget_nbytes, 0);
    fprintf(f, "; %d candidates)\n  the backward needs ", x->ntrial);
    print_bytes(f, x->needed_nbytes, 0);
    fprintf(f, " in %" PRId64 " values: keeps ", x->nneeded);
    print_bytes(f, x->kept_nbytes, 0);
    if (x->noffload) {
        fprintf(f, ", of these ");
        print_bytes(f, x->offload_nbytes, 0);
        fprintf(f, " in %" PRId64 " values wait on the host", x->noffload);
    }
    fprintf(f, "; computes %" PRId64 " again in %.4f s\n", x->nagain, x->again_seconds);
    if (x->tile_rows) fprintf(f, "  token-wise kernels run over at most %" PRId64 " tokens at a time\n", x->tile_rows);
    else fprintf(f, "  nothing is tiled\n");
}

static void print_host_memory(FILE *f, const Plan *p) {
    int64_t all = 0;
    for (int r = 0; r < p->nranks; r++) all += p->rank[r].host_nbytes;
    fprintf(f, "  host memory beside it, for what is offloaded: ");
    print_bytes(f, (double)p->rank[0].host_nbytes, 0);
    fprintf(f, " on rank 0 (lower bound ");
    print_bytes(f, (double)p->rank[0].host_lower_bound_nbytes, 0);
    fprintf(f, "), ");
    print_bytes(f, (double)all, 0);
    fprintf(f, " for all ranks\n");
}

static void print_ranks(FILE *f, const Compiled *c) {
    const Plan *p = c->plan;
    fprintf(f, "\nmemory per rank (one arena, allocated once; the peak is what is allocated)\n  rank ");
    bool host = false;
    for (int r = 0; r < p->nmade; r++) host |= p->rank[r].host_nbytes > 0;
    for (int k = 0; k < BUF_HOST; k++) fprintf(f, " %13s", buffer_kind_name((BufferKind)k));
    fprintf(f, " %13s %13s%s\n", "peak", "bytes", host ? "  host bytes" : "");
    for (int r = 0; r < p->nmade; r++) {
        const RankPlan *x = &p->rank[r];
        fprintf(f, "  %4d ", x->rank);
        for (int k = 0; k < BUF_HOST; k++) {
            fprintf(f, " ");
            print_bytes(f, (double)x->nbytes_by_kind[k], 10);
        }
        fprintf(f, " ");
        print_bytes(f, (double)x->arena_nbytes, 10);
        fprintf(f, " %13" PRId64, x->arena_nbytes);
        if (host) fprintf(f, " %11" PRId64, x->host_nbytes);
        fprintf(f, "\n");
    }
    if (p->nmade < p->nranks)
        fprintf(f, "  (of %d ranks, those that tell: the first, the fullest, the last; the others lie between)\n", p->nranks);
    fprintf(f, "  (by kind: alive at the peak step; the lower bound, the largest sum of live bytes, is ");
    print_bytes(f, (double)p->rank[0].lower_bound_nbytes, 0);
    fprintf(f, " on rank 0)\n");
    if (host) print_host_memory(f, p);
    print_device_memory(f, c);
    print_choice(f, c);
    fprintf(f, "\nwork per rank and step\n  rank    GFLOP   predicted s   sent to others\n");
    for (int r = 0; r < p->nmade; r++) {
        fprintf(f, "  %4d %8.2f %13.4f     ", p->rank[r].rank, p->rank[r].flops / 1e9, p->rank[r].seconds);
        print_bytes(f, p->rank[r].comm_nbytes, 10);
        fprintf(f, "\n");
    }
}

// Where the predicted seconds of rank 0 go.
static void print_groups(FILE *f, const Compiled *c, bool every) {
    StepGroup group[STEP_GROUPS];
    char name[STEP_GROUP_NAME];
    int n = plan_groups(c->plan, 0, NULL, group), most = every || n < 8 ? n : 8;
    const DeviceModel *m = c->device;
    double rest = 0;
    fprintf(f, "\npredicted time on rank 0, by kind of kernel\n  device model %s: %s\n  its numbers: %s\n", m->name, m->about,
            m->source);
    if (m->runs) fprintf(f, "  %s\n", m->runs);
    for (int i = 0; i < n; i++) {
        const StepGroup *g = &group[i];
        if (i < most) fprintf(f, "  %-28s %6" PRId64 " %11.3f ms\n", step_group_name(g, name), g->count, 1e3 * g->predicted);
        else rest += g->predicted;
    }
    if (most < n) fprintf(f, "  %-28s %6d %11.3f ms (--all lists them)\n", "other kinds", n - most, 1e3 * rest);
}

static bool same_attention(const AttentionReport *a, const AttentionReport *b) {
    return !strcmp(a->mask, b->mask) && !strcmp(a->strategy, b->strategy) && a->nbytes_sent == b->nbytes_sent;
}

static void print_attention(FILE *f, const Compiled *c) {
    const ShardReport *s = &c->shard;
    if (!s->attention.len) return;
    fprintf(f, "\nattention (forward and backward, the slowest rank, predicted)\n");
    for (int64_t i = 0, next; i < s->attention.len; i = next) {
        const AttentionReport *r = &s->attention.data[i];
        for (next = i + 1; next < s->attention.len && same_attention(r, &s->attention.data[next]);) next++;
        if (next == i + 1)
            fprintf(f, "  layer %" PRId64, i);
        else
            fprintf(f, "  layers %" PRId64 "-%" PRId64, i, next - 1);
        fprintf(f, ": mask %s; strategy %s", r->mask, r->strategy);
        if (r->source) fprintf(f, "; at %s", r->source);
        fprintf(f, "\n");
        for (int k = 0; k < r->nalt; k++) {
            fprintf(f, "    %c %-10s", strcmp(r->alt[k].strategy, r->strategy) ? ' ' : '*', r->alt[k].strategy);
            if (!r->alt[k].legal) {
                fprintf(f, " not possible (fewer rows in the batch than ranks)\n");
                continue;
            }
            fprintf(f, " %9.4f s, sends ", r->alt[k].seconds);
            print_bytes(f, r->alt[k].nbytes_sent, 0);
            fprintf(f, "\n");
        }
    }
}

static void print_collectives(FILE *f, const Compiled *c, bool every) {
    Collectives list = {0};
    collect(c, !every, &list);
    double total = 0;
    fprintf(f, "\ncollectives (bytes that the busiest rank sends, each)\n");
    for (int64_t i = 0; i < list.item.len; i++) {
        const Collective *x = &list.item.data[i];
        total += x->nbytes * (double)x->count;
        fprintf(f, "  %4" PRId64 " x %-9s %-16s ", x->count, x->phase, x->name);
        print_bytes(f, x->nbytes, 9);
        fprintf(f, "  %s\n", x->why);
    }
    if (list.item.len) {
        fprintf(f, "  together ");
        print_bytes(f, total, 0);
        fprintf(f, "\n");
    } else {
        fprintf(f, "  none\n");
    }
    vec_free(&list.item);
}

static const char *compute_name(const Compiled *c) { return dtype_name(c->compute == DT_BF16 ? DT_BF16 : c->plan->real); }

static void print_lines(FILE *f, int64_t n, const char *const *line, bool every) {
    enum { ENOUGH = 10 };
    for (int64_t i = 0; i < n && (every || i < ENOUGH); i++) fprintf(f, "  %s\n", line[i]);
    if (!every && n > ENOUGH) fprintf(f, "  ... and %" PRId64 " more (--all lists them)\n", n - ENOUGH);
}

void plan_report_text(FILE *f, const Compiled *c, bool every) {
    const Graph *g = c->graph;
    const Plan *p = c->plan;
    int64_t nparam = 0;
    for (int64_t i = 0; i < g->params.len; i++) nparam += shape_numel(&g->params.data[i].shape);
    fprintf(f, "program %s: batch %" PRId64 ", sequence %" PRId64 ", %.4g M parameters in %" PRId64 " tensors\n", g->name,
            g->batch, g->seq, (double)nparam / 1e6, g->params.len);
    fprintf(f, "plan for %d rank%s, %d thread%s each, %s on %s; %" PRId64 " nodes; compiled in %.2f s; hash %016" PRIx64 "\n",
            p->nranks, p->nranks == 1 ? "" : "s", p->nthreads, p->nthreads == 1 ? "" : "s", compute_name(c), p->backend->name,
            g->nodes.len, c->seconds, p->hash);
    print_ranks(f, c);
    Arena *a = arena_new();
    CHECK(a != NULL, "out of memory");
    Explanation e;
    explain(c, a, &e);
    explain_text(f, c, &e, every);
    arena_free(a);
    print_groups(f, c, every);
    print_attention(f, c);
    print_collectives(f, c, every);
    if (c->shard.gathered.len) fprintf(f, "\ncomputed whole on every rank\n");
    print_lines(f, c->shard.gathered.len, c->shard.gathered.data, every);
    if (c->shard.square.len) fprintf(f, "\nS x S tensors\n");
    print_lines(f, c->shard.square.len, c->shard.square.data, every);
    if (c->shard.logits.len) fprintf(f, "\nlogits that stay whole\n");
    print_lines(f, c->shard.logits.len, c->shard.logits.data, every);
    if (c->import.missing.len)
        fprintf(f, "\n%" PRId64 " parameters have no bytes in the archive (give --weights to train)\n", c->import.missing.len);
}

// ---- JSON -----------------------------------------------------------------------------------------------------------------

static json_t *rank_json(const RankPlan *x) {
    json_t *kinds = json_object();
    for (int k = 0; k < BUF_HOST; k++)
        json_object_set_new(kinds, buffer_kind_name((BufferKind)k), json_integer((json_int_t)x->nbytes_by_kind[k]));
    return json_pack("{s:i, s:I, s:I, s:I, s:I, s:o, s:f, s:f, s:f, s:i}", "rank", x->rank, "peak_nbytes", (json_int_t)x->arena_nbytes,
                     "lower_bound_nbytes", (json_int_t)x->lower_bound_nbytes, "host_nbytes", (json_int_t)x->host_nbytes, "host_lower_bound_nbytes",
                     (json_int_t)x->host_lower_bound_nbytes, "nbytes_by_kind_at_peak", kinds, "flops", x->flops, "predicted_seconds",
                     x->seconds, "sent_nbytes", x->comm_nbytes, "steps", x->nstep);
}

static json_t *attention_json(const AttentionReport *r) {
    json_t *alt = json_array();
    for (int k = 0; k < r->nalt; k++)
        json_array_append_new(
            alt, json_pack("{s:s, s:b, s:f, s:f}", "strategy", r->alt[k].strategy, "possible", (int)r->alt[k].legal, "seconds",
                           r->alt[k].seconds, "sent_nbytes", r->alt[k].nbytes_sent));
    return json_pack("{s:s?, s:s, s:s, s:o}", "source", r->source, "mask", r->mask, "strategy", r->strategy, "alternatives", alt);
}

Status plan_report_json(FILE *f, const Compiled *c, Diag *d) {
    const Plan *p = c->plan;
    json_t *ranks = json_array(), *attention = json_array(), *coll = json_array(), *gathered = json_array(),
           *square = json_array(), *logits = json_array();
    for (int r = 0; r < p->nmade; r++) json_array_append_new(ranks, rank_json(&p->rank[r]));
    for (int64_t i = 0; i < c->shard.attention.len; i++)
        json_array_append_new(attention, attention_json(&c->shard.attention.data[i]));
    Collectives list = {0};
    collect(c, false, &list);
    for (int64_t i = 0; i < list.item.len; i++) {
        const Collective *x = &list.item.data[i];
        json_array_append_new(
            coll, json_pack("{s:s, s:s, s:f, s:s}", "phase", x->phase, "kind", x->name, "sent_nbytes", x->nbytes, "why", x->why));
    }
    vec_free(&list.item);
    Arena *a = arena_new();
    CHECK(a != NULL, "out of memory");
    Explanation e;
    explain(c, a, &e);
    json_t *explained = explain_json(c, &e);
    arena_free(a);
    for (int64_t i = 0; i < c->shard.gathered.len; i++) json_array_append_new(gathered, json_string(c->shard.gathered.data[i]));
    for (int64_t i = 0; i < c->shard.square.len; i++) json_array_append_new(square, json_string(c->shard.square.data[i]));
    for (int64_t i = 0; i < c->shard.logits.len; i++) json_array_append_new(logits, json_string(c->shard.logits.data[i]));
    char hash[32];
    snprintf(hash, sizeof hash, "%016" PRIx64, p->hash);
    bool own = p->backend->device != NULL;
    double beside = device_beside_nbytes(c->device, plan_host_nbytes(c)), need = largest_arena(p) + beside;
    json_t *device = own ? json_pack("{s:s, s:f, s:f, s:b}", "name", c->device->name, "context_nbytes", beside,
                                     "memory_nbytes", c->device->mem_nbytes, "fits", (int)(need <= c->device->mem_nbytes))
                         : json_null();
    json_t *model = json_pack("{s:s, s:s, s:s, s:b, s:s?}", "name", c->device->name, "about", c->device->about, "source",
                              c->device->source, "measured", (int)c->device->measured, "runs", c->device->runs);
    json_t *top = json_pack("{s:s, s:I, s:I, s:i, s:i, s:s, s:s, s:o, s:o, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "program",
                            c->graph->name, "batch", (json_int_t)c->graph->batch, "seq", (json_int_t)c->graph->seq, "ranks",
                            p->nranks, "threads", p->nthreads, "dtype", compute_name(c), "backend", p->backend->name, "device",
                            device, "device_model", model, "hash", hash, "compile_seconds", c->seconds, "per_rank", ranks, "attention", attention,
                            "collectives", coll, "computed_whole", gathered, "square_tensors", square, "whole_logits", logits, "explanation", explained);
    if (!top) return diag_error(d, ST_MEMORY, "out of memory");
    int bad = json_dumpf(top, f, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    fputc('\n', f);
    json_decref(top);
    return bad ? diag_error(d, ST_IO, "cannot write the plan") : ST_OK;
}
