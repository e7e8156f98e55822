// Kernels of fused nodes with rows. A group of threads (part of a warp, or a block) takes a row: phases over its elements, each
// of which ends in the reductions that the next one waits for. What a thread needs of the row stays in its registers from phase
// to phase where there is room, so that inputs are read once. Three ways, by the row's length and how many there are:
//   kept   every thread has at most `ne` vectors of the row, in registers
//   long   a block reads the row again in each phase
//   split  few long rows: several blocks take a row, a launch for each phase, partial results through scratch
// Columns are summed by the threads that own them over the rows that a worker takes, then over workers by a second kernel
// (fused.c).
#include "backend/cuda/fused/codegen_expr.h"
#include "backend/cuda/fused/codegen_fused.h"

enum {
    WARP_BLOCK = 256, LONG_BLOCK = 512, SPLIT_BLOCK = 256, MAX_KEPT_VECTORS = 16,
    SPLIT_MAX_ROWS = 128, SPLIT_MIN_LENGTH = 1 << 15,
    SM_REGISTERS = 65536, THREAD_REGISTERS = 255,
};
typedef enum RowMode { ROW_KEPT, ROW_LONG, ROW_SPLIT } RowMode;

typedef struct Rows {
    RowMode mode;
    int64_t nrow, ncol, nv;   // nv: vectors of a row
    int threads, group, ne;
    int bound;                // blocks that a multiprocessor shall hold; 0: as it comes
    int64_t workers, nseg, chunk;  // split: segments of a row, vectors of each
    bool prefetch;            // the next row is loaded while this one is reduced
    int row_unroll;           // rows of which a thread starts the loads together
    bool *need, *used;        // [ninstr], [nin]
    bool *hoisted;            // [nin] kept, and the same in every row: loaded once
    int *nuse;                // [nin]: phases that read it
    int ncolsum;
    int64_t part_at;          // split: partial reductions, in scratch
} Rows;

static bool is_row_reduction(const Instr *x) { return x->code == PROG_ROW_SUM || x->code == PROG_ROW_MAX; }

// ---- what a phase needs -------------------------------------------------------------------------------------------------

// Instructions of phase k, stopping at row-constant ones; the last phase (k == nlevel) stores.
static void phase_need(const Gen *g, const Rows *r, int k, bool *need) {
    const FusedSpace *s = g->s;
    memset(need, 0, sizeof *need * (size_t)s->p->ninstr);
    for (int i = 0; i < s->p->ninstr; i++) {
        const Instr *x = &s->p->instr[i];
        if (is_row_reduction(x) && r->need[i] && s->level[i] == k + 1) gen_need(s, x->a, true, need);
    }
    for (int j = 0; j < s->nout && k == s->nlevel; j++) {
        int i = s->p->out[j];
        if (s->out_kind[j] == OUT_WHOLE) gen_need(s, i, true, need);
        if (s->out_kind[j] == OUT_COL) gen_need(s, s->p->instr[i].a, true, need);
    }
}

static bool phase_reads(const Gen *g, const bool *need, int input) {
    for (int i = 0; i < g->s->p->ninstr; i++)
        if (need[i] && !g->s->row_const[i] && g->s->p->instr[i].code == PROG_INPUT && g->s->p->instr[i].a == input) return true;
    return false;
}

static bool same_in_all_rows(const FusedSpace *s, const Access *x) {
    for (int k = 0; k < fused_nouter(s); k++)
        if (x->stride[k]) return false;
    for (int k = 0; k < x->nwin; k++)
        if (x->win[k].dim < fused_nouter(s)) return false;
    return true;
}

static void find_uses(Gen *g, Rows *r) {
    const FusedSpace *s = g->s;
    bool *need = ARENA_ARRAY(g->arena, bool, s->p->ninstr + 1);
    for (int j = 0; j < s->nout; j++) {
        gen_need(s, s->p->out[j], false, r->need);
        r->ncolsum += s->out_kind[j] == OUT_COL;
    }
    for (int i = 0; i < s->p->ninstr; i++)
        if (r->need[i] && s->p->instr[i].code == PROG_INPUT) r->used[s->p->instr[i].a] = true;
    for (int k = 0; k <= s->nlevel; k++) {
        phase_need(g, r, k, need);
        for (int i = 0; i < s->nin; i++) r->nuse[i] += phase_reads(g, need, i);
    }
}

// ---- choices ------------------------------------------------------------------------------------------------------------

static int pow2_at_least(int64_t n) {
    int p = 1;
    while (p < n) p *= 2;
    return p;
}

// Sums of columns and nothing else: no thread waits for another.
static bool only_columns(const Gen *g, const Rows *r) {
    for (int j = 0; j < g->s->nout; j++)
        if (g->s->out_kind[j] != OUT_COL) return false;
    return r->ncolsum > 0 && g->s->nlevel == 0;
}

static void choose_threads(const Gen *g, Rows *r) {
    int each = only_columns(g, r) ? 1 : fused_tuning.row_vectors;  // vectors of a thread
    if (r->nv <= 128) {
        r->threads = WARP_BLOCK;
        r->group = pow2_at_least(min_i64(max_i64(r->nv, 1), 32));
    } else {
        r->threads = r->group = (int)min_i64(pow2_at_least(ceil_div(r->nv, each)), fused_tuning.row_threads);
    }
    r->ne = (int)min_i64(max_i64(1, ceil_div(r->nv, r->group)), INT32_MAX);
}

// Inputs that several phases read are kept, or the row is read again and again; then those that all rows share; then the others
// (so that all loads of a row start together).
static bool keep_inputs(Gen *g, Rows *r) {
    const FusedSpace *s = g->s;
    if (r->ne > MAX_KEPT_VECTORS) return false;
    int64_t sums = (int64_t)r->ncolsum * g->v * r->ne,
            room = r->ncolsum ? fused_tuning.summed_words - sums : fused_tuning.kept_words;
    for (int turn = 0; turn < 3; turn++)
        for (int i = 0; i < s->nin; i++) {
            bool shared = same_in_all_rows(s, &s->in[i]);
            bool mine = turn == 0 ? r->nuse[i] > 1 : turn == 1 ? shared && fused_tuning.hoist : !shared || fused_tuning.hoist;
            int64_t words = (int64_t)gen_words(g, i) * r->ne;
            if (g->cached[i] || r->nuse[i] == 0 || !mine) continue;
            if (words > room && turn == 0) return false;
            if (words > room) continue;
            g->cached[i] = true, room -= words;
            r->hoisted[i] = shared;
        }
    return room >= 0;
}

// Blocks that a multiprocessor holds if a thread keeps `words`, as far as one can tell before it is compiled.
static int64_t resident_blocks(const Gen *g, const Rows *r, int64_t words) {
    int64_t work = max_i64(0, g->s->p->ninstr - 24) / 2;
    int64_t registers = min_i64(round_up(fused_tuning.row_registers + words + work, 8), THREAD_REGISTERS + 1);
    return max_i64(1, min_i64(SM_REGISTERS / (registers * r->threads), 2048 / r->threads));
}

// Rows kept by blocks: whether to load the next one early.
static void choose_prefetch(const Gen *g, Rows *r) {
    int64_t kept = (int64_t)r->ncolsum * g->v * r->ne, row = 0;
    for (int i = 0; i < g->s->nin; i++) {
        if (!g->cached[i]) continue;
        kept += (int64_t)gen_words(g, i) * r->ne;
        if (!r->hoisted[i]) row += (int64_t)gen_words(g, i) * r->ne;
    }
    int64_t now = resident_blocks(g, r, kept), then = resident_blocks(g, r, kept + row);
    if (r->bound) now = then = min_i64(now, r->bound);
    if (r->group <= 32 || g->s->nlevel == 0 || row == 0 || row > fused_tuning.prefetch_words) return;
    if (now >= fused_tuning.blocks_per_level * g->s->nlevel) return;
    int64_t registers = fused_tuning.row_registers + fused_tuning.prefetch_registers + kept + row;
    if (registers > SM_REGISTERS / r->threads || registers > THREAD_REGISTERS) return;
    if (r->bound && registers > SM_REGISTERS / (r->threads * r->bound)) return;
    r->prefetch = true;
    if (!r->bound) r->bound = (int)max_i64(1, min_i64(then, fused_tuning.resident / r->threads));
}

static void choose_workers(const Gen *g, Rows *r) {
    int per_block = r->threads / r->group;
    int64_t n = r->nrow;
    const int64_t sms = fused_tuning.sms;
    r->row_unroll = 1;
    if (r->ncolsum) {
        int words = r->ncolsum * g->v;
        for (int i = 0; i < g->s->nin; i++) words += g->cached[i] ? gen_words(g, i) : 0;
        int resident = r->mode == ROW_KEPT && words * r->ne > 28 ? 512 : 1024;
        r->bound = (int)max_i64(1, resident / r->threads);
        int64_t row = (int64_t)(words - r->ncolsum * g->v) * r->ne;
        if (r->mode == ROW_KEPT && only_columns(g, r))
            r->row_unroll = (int)max_i64(1, min_i64(4, fused_tuning.column_words / max_i64(1, row)));
        n = min_i64((int64_t)sms * r->bound * per_block, max_i64(ceil_div(r->nrow, 16), min_i64(r->nrow, sms)));
        n = max_i64(1, min_i64(n, ((int64_t)1 << 24) / max_i64(1, r->ncol)));
    } else {
        bool hoists = false;
        for (int i = 0; i < g->s->nin; i++) hoists = hoists || r->hoisted[i];
        if (r->mode == ROW_KEPT) choose_prefetch(g, r);
        if (hoists || r->prefetch) n = max_i64(ceil_div(r->nrow, 8), min_i64(r->nrow, sms * 16));
        int64_t fit = sms * r->bound * per_block;
        if (r->prefetch && r->nrow >= fit * fused_tuning.steady_rows) n = fit;
        n = min_i64(n, 1 << 22);
    }
    if (r->ncolsum && r->mode == ROW_KEPT) choose_prefetch(g, r);
    r->workers = round_up(n, per_block);  // groups of a block go through equally many rounds
}

static void choose(Gen *g, Rows *r) {
    const FusedSpace *s = g->s;
    r->nrow = fused_nrows(s), r->ncol = fused_ncols(s), r->nv = r->ncol / g->v;
    choose_threads(g, r);
    r->mode = keep_inputs(g, r) ? ROW_KEPT : ROW_LONG;
    if (r->nrow < SPLIT_MAX_ROWS && r->ncol >= SPLIT_MIN_LENGTH && r->nv > r->threads) r->mode = ROW_SPLIT;
    if (r->mode != ROW_KEPT) {
        memset(g->cached, 0, sizeof *g->cached * (size_t)s->nin);
        memset(r->hoisted, 0, sizeof *r->hoisted * (size_t)s->nin);
        r->threads = r->group = r->mode == ROW_LONG ? LONG_BLOCK : SPLIT_BLOCK;
    }
    if (r->mode == ROW_SPLIT) {
        // Segments in which every thread has whole turns of its unrolled loop: what remains is loaded one by one.
        int64_t enough = ceil_div(fused_tuning.sms * fused_tuning.split_blocks, max_i64(1, r->nrow));
        r->chunk = round_up(ceil_div(r->nv, enough), SPLIT_BLOCK * fused_tuning.split_unroll);
        r->nseg = max_i64(1, ceil_div(r->nv, r->chunk));
        r->bound = fused_tuning.split_blocks;
        r->workers = r->nrow;
    } else {
        choose_workers(g, r);
    }
    g->wide = r->nrow >= INT32_MAX || r->nv >= INT32_MAX;
}

// ---- pieces -------------------------------------------------------------------------------------------------------------

// `reads`: nothing is stored, so that the compiler can start the loads of several turns together.
static void open_vectors(Gen *g, const Rows *r, bool reads) {
    int unroll = r->mode == ROW_SPLIT ? fused_tuning.split_unroll : 4;
    if (r->mode != ROW_KEPT && reads) gen_line(g, "_Pragma(\"unroll %d\")", unroll);
    if (r->mode == ROW_KEPT) {
        gen_line(g, "GPU_UNROLL for (int k = 0; k < NE; k++) {");
        gen_line(g, "const i64 j = lane + k * G;");
        gen_line(g, "if ((NV > 0 && NV %% G == 0) || j < NV) {");
    } else if (r->mode == ROW_LONG) {
        gen_line(g, "for (i64 j = lane; j < p.nv; j += G) {\n{");
    } else {
        gen_line(g, "for (i64 j = j0 + lane; j < j1; j += G) {\n{");
    }
    gen_positions(g, "j", fused_nouter(g->s), g->s->ndim - 1, g->v);
}

static void load_inputs(Gen *g, const Rows *r, bool cached, bool hoisted, const bool *need) {
    for (int i = 0; i < g->s->nin; i++) {
        if (g->cached[i] != cached || (cached && r->hoisted[i] != hoisted) || r->nuse[i] == 0) continue;
        if (need && !phase_reads(g, need, i)) continue;
        if (!cached) gen_declare_input(g, i, "");
        gen_load_input(g, i, fused_nouter(g->s));
    }
}

static bool any_cached(const Gen *g, const Rows *r, bool hoisted) {
    for (int i = 0; i < g->s->nin; i++)
        if (g->cached[i] && r->hoisted[i] == hoisted) return true;
    return false;
}

static bool is_row_divisor(const Gen *g, const Rows *r, int i) {
    for (int k = i + 1; k < g->s->p->ninstr; k++)
        if (r->need[k] && gen_divides_by_row(g, k) && g->s->p->instr[k].b == i) return true;
    return false;
}

// Row-constant instructions that wait for exactly `level` reductions. reduced(i): text of a finished reduction.
static void gen_row_level(Gen *g, const Rows *r, int level) {
    const FusedSpace *s = g->s;
    for (int i = 0; i < s->p->ninstr; i++) {
        const Instr *x = &s->p->instr[i];
        if (!r->need[i] || !s->row_const[i] || s->level[i] != level) continue;
        const char *what = x->code == PROG_ROW_SUM ? "sum" : "max";
        if (!is_row_reduction(x)) {
            if (x->code == PROG_INPUT && r->prefetch) gen_line(g, "const %s v%d = s%d;", expr_register_type(x->dtype), i, i);
            else if (x->code == PROG_INPUT) gen_row_input(g, i);
            else gen_instr(g, i);
        } else if (r->mode == ROW_SPLIT) {
            gen_line(g, "const float v%d = gx_parts_%s(p.part + (%d * p.rows + r) * p.segments, p.segments, turn);", i, what, i);
        } else {
            gen_line(g, "const float v%d = gx_group_%s<G>(a%d, turn);", i, what, i);
        }
        if (is_row_divisor(g, r, i)) gen_line(g, "const GxInverse d%d = gx_inverse(v%d);", i, i);
    }
}

static void gen_column_add(Gen *g, const Rows *r, int j, int index) {
    int i = g->s->p->instr[g->s->p->out[j]].a;
    if (r->mode == ROW_KEPT) gen_line(g, "c%d[k][e] += live ? (float)v%d : 0.0f;", index, i);
    else gen_line(g, "c%d[e] = (float)v%d;", index, i);
}

static void gen_column_store(Gen *g, const Rows *r, int index) {
    const char *at = r->mode == ROW_SPLIT ? "r" : "w";
    if (r->mode == ROW_KEPT) return;
    gen_line(g, "float *t%d = p.columns + ((%d * p.workers + %s) * p.ncol + j * %d);", index, index, at, g->v);
    if (r->mode == ROW_LONG) {  // the worker's sum so far is in scratch
        gen_line(g, "if (it > 0) {\nGxVec<float, %d> old;\ngx_load(old, (const float *)t%d);", g->v, index);
        gen_line(g, "GPU_UNROLL for (int e = 0; e < %d; e++) c%d[e] += gx_get(old, e);\n}", g->v, index);
    }
    gen_line(g, "gx_store<%d>(t%d, c%d);", g->v, index, index);
}

// The elements of phase k: reductions into a<i>, in the last phase outputs and column sums too.
static void gen_phase(Gen *g, const Rows *r, int k) {
    const FusedSpace *s = g->s;
    const Program *p = s->p;
    bool *need = ARENA_ARRAY(g->arena, bool, p->ninstr + 1), last = k == s->nlevel, work = false;
    phase_need(g, r, k, need);
    for (int i = 0; i < p->ninstr; i++) {
        bool mine = is_row_reduction(&p->instr[i]) && r->need[i] && s->level[i] == k + 1;
        if (mine) gen_line(g, "float a%d = %s;", i, p->instr[i].code == PROG_ROW_SUM ? "0.0f" : "gpu_bits_float(0xff800000u)");
        work = work || mine;
    }
    for (int j = 0; j < s->nout; j++) work = work || (last && s->out_kind[j] != OUT_ROW);
    if (!work) return;
    open_vectors(g, r, !last);
    load_inputs(g, r, false, false, need);
    for (int j = 0, c = 0; j < s->nout && last; j++) {
        if (s->out_kind[j] == OUT_WHOLE) gen_line(g, "%s y%d[%d];", expr_register_type(s->out[j].dtype), j, g->v);
        if (s->out_kind[j] == OUT_COL && r->mode != ROW_KEPT) gen_line(g, "float c%d[%d];", c, g->v);
        c += s->out_kind[j] == OUT_COL;
    }
    gen_line(g, "GPU_UNROLL for (int e = 0; e < %d; e++) {", g->v);
    for (int i = 0; i < p->ninstr; i++) {
        if (need[i] && !s->row_const[i] && !is_row_reduction(&p->instr[i])) gen_instr(g, i);
    }
    for (int i = 0; i < p->ninstr; i++) {
        if (!is_row_reduction(&p->instr[i]) || !r->need[i] || s->level[i] != k + 1) continue;
        if (p->instr[i].code == PROG_ROW_SUM) gen_line(g, "a%d += (float)v%d;", i, p->instr[i].a);
        else gen_line(g, "a%d = gx_larger(a%d, (float)v%d);", i, i, p->instr[i].a);
    }
    for (int j = 0, c = 0; j < s->nout && last; j++) {
        if (s->out_kind[j] == OUT_WHOLE) gen_line(g, "y%d[e] = v%d;", j, p->out[j]);
        if (s->out_kind[j] == OUT_COL) gen_column_add(g, r, j, c++);
    }
    gen_line(g, "}");
    for (int j = 0, c = 0; j < s->nout && last; j++) {
        if (s->out_kind[j] == OUT_WHOLE)
            gen_line(g, "if (live) gx_store<%d>(p.o%d + (r * p.ncol + j * %d), y%d);", g->v, j, g->v, j);
        if (s->out_kind[j] == OUT_COL) gen_column_store(g, r, c++);
    }
    gen_line(g, "}\n}");
}

static void gen_row_outputs(Gen *g, const Rows *r) {
    const FusedSpace *s = g->s;
    bool any = false;
    for (int j = 0; j < s->nout; j++) any = any || s->out_kind[j] == OUT_ROW;
    if (!any) return;
    // An output may take over the memory of an input that the other threads of the block have yet to read.
    if (r->mode != ROW_SPLIT && r->group > 32 && s->nlevel == 0) gen_line(g, "gpu_sync();");
    gen_line(g, "if (lane == 0 && live) {");
    for (int j = 0; j < s->nout; j++) {
        if (s->out_kind[j] != OUT_ROW) continue;
        gen_line(g, "const %s y%d[1] = {v%d};", expr_register_type(s->out[j].dtype), j, s->p->out[j]);
        gen_line(g, "gx_store<1>(p.o%d + r, y%d);", j, j);
    }
    gen_line(g, "}");
}

static void gen_row_offsets(Gen *g, const Rows *r, const char *row) {
    gen_positions(g, row, 0, fused_nouter(g->s) - 1, 1);
    for (int i = 0; i < g->s->nin; i++)
        if (r->used[i] && !r->hoisted[i]) gen_outer_offset(g, i, fused_nouter(g->s));
}

static void gen_defines(Gen *g, const Rows *r) {
    gen_line(g, "#if defined(GPU_EMULATE)\n#define G 1\n#else\n#define G %d\n#endif", r->group);
    if (r->mode == ROW_KEPT) gen_line(g, "#define NV %lld\n#define NE (NV > G ? (NV + G - 1) / G : 1)", (long long)r->nv);
    if (r->bound > 1) gen_line(g, "#define GX_BOUNDS %d, %d", r->threads, r->bound);
    else gen_line(g, "#define GX_BOUNDS %d", r->threads);
}

static void gen_params(Gen *g, Rows *r) {
    gen_operands(g);
    gen_slot(g, SLOT_VALUE, r->nrow, "i64 ", "rows");
    gen_slot(g, SLOT_VALUE, r->ncol, "i64 ", "ncol");
    gen_slot(g, SLOT_VALUE, r->nv, "i64 ", "nv");
    gen_slot(g, SLOT_VALUE, r->workers, "i64 ", "workers");
    gen_slot(g, SLOT_VALUE, ceil_div(r->nrow, max_i64(1, r->workers)), "i64 ", "rounds");
    FusedPlan *plan = g->plan;
    int64_t at = 0, column = r->workers * r->ncol * 4;
    if (r->ncolsum) gen_slot(g, SLOT_SCRATCH, 0, "float *", "columns");
    plan->columns = ARENA_ARRAY(g->arena, FusedColumns, r->ncolsum + 1);
    for (int j = 0; j < g->s->nout; j++) {
        if (g->s->out_kind[j] != OUT_COL) continue;
        plan->columns[plan->ncolumns++] = (FusedColumns){.out = j, .offset = at, .nparts = r->workers, .ncols = r->ncol};
        at += column;
    }
    at = round_up(at, 256);
    if (r->mode == ROW_SPLIT) {
        r->part_at = at;
        gen_slot(g, SLOT_SCRATCH, at, "float *", "part");
        gen_slot(g, SLOT_VALUE, r->nseg, "i64 ", "segments");
        gen_slot(g, SLOT_VALUE, r->chunk, "i64 ", "chunk");
        at += round_up((int64_t)g->s->p->ninstr * r->nrow * r->nseg * 4, 256);
    }
    plan->scratch_nbytes = (size_t)at;
}

// ---- kernels ------------------------------------------------------------------------------------------------------------

static void gen_column_sums(Gen *g, const Rows *r, bool start) {
    if (r->mode != ROW_KEPT) return;
    for (int c = 0; c < r->ncolsum; c++) {
        if (start) gen_line(g, "float c%d[NE][%d] = {};", c, g->v);
        else gen_line(g, "GPU_UNROLL for (int k = 0; k < NE; k++)\nif ((NV > 0 && NV %% G == 0) || lane + k * G < NV)");
        if (start) continue;
        gen_line(g, "gx_store<%d>(p.columns + ((%d * p.workers + w) * p.ncol + (lane + k * G) * %d), c%d[k]);", g->v, c, g->v, c);
    }
}

static void gen_row_loads(Gen *g, const Rows *r) {
    if (!any_cached(g, r, false)) return;
    open_vectors(g, r, true);
    load_inputs(g, r, true, false, NULL);
    gen_line(g, "}\n}");
}

// Row `row` into the registers of the next one, if there is such a row.
static void gen_next_row(Gen *g, const Rows *r, const char *row) {
    const Program *p = g->s->p;
    gen_line(g, "if (const i64 rn = %s; rn < p.rows) {", row);
    gen_row_offsets(g, r, "rn");
    g->next = true;
    gen_row_loads(g, r);
    for (int i = 0; i < p->ninstr; i++)
        if (r->need[i] && g->s->row_const[i] && p->instr[i].code == PROG_INPUT) gen_row_input(g, i);
    g->next = false;
    gen_line(g, "}");
}

static void gen_first_row(Gen *g, const Rows *r) {
    const Program *p = g->s->p;
    g->next = true;
    for (int i = 0; i < g->s->nin; i++)
        if (g->cached[i] && !r->hoisted[i]) gen_declare_input(g, i, "[NE]");
    g->next = false;
    for (int i = 0; i < p->ninstr; i++)
        if (r->need[i] && g->s->row_const[i] && p->instr[i].code == PROG_INPUT)
            gen_line(g, "%s m%d = 0;", expr_register_type(p->instr[i].dtype), i);
    gen_next_row(g, r, "w");
}

// Takes over the row that was loaded before, and starts to load the one after it.
static void gen_take_row(Gen *g, const Rows *r) {
    const Program *p = g->s->p;
    for (int i = 0; i < g->s->nin; i++)
        if (g->cached[i] && !r->hoisted[i])
            gen_line(g, "GPU_UNROLL for (int k = 0; k < NE; k++)\n"
                     "    if ((NV > 0 && NV %% G == 0) || lane + k * G < NV) x%d[k] = n%d[k];", i, i);
    for (int i = 0; i < p->ninstr; i++)
        if (r->need[i] && g->s->row_const[i] && p->instr[i].code == PROG_INPUT && g->s->level[i] == 0)
            gen_line(g, "const %s s%d = m%d;", expr_register_type(p->instr[i].dtype), i, i);
    gen_next_row(g, r, "r + p.workers");
}

static void gen_whole_rows(Gen *g, Rows *r) {
    const FusedSpace *s = g->s;
    gen_open_kernel(g, "fused", "GX_BOUNDS");
    gen_line(g, "const i64 per_block = gpu_block_threads / G, lane = gpu_thread_x %% G, group = gpu_thread_x / G;");
    for (int i = 0; i < s->nin; i++)
        if (g->cached[i] && r->hoisted[i]) gen_declare_input(g, i, "[NE]"), gen_outer_offset(g, i, 0);
    if (any_cached(g, r, true)) {
        open_vectors(g, r, true);
        load_inputs(g, r, true, true, NULL);
        gen_line(g, "}\n}");
    }
    gen_line(g, "int turn = 0;");
    gen_line(g, "for (i64 w = gpu_block_x * per_block + group; w < p.workers; w += gpu_grid_x * per_block) {");
    gen_column_sums(g, r, true);
    if (r->prefetch) gen_first_row(g, r);
    if (r->group > 32) gen_line(g, "const i64 rounds = w < p.rows ? (p.rows - 1 - w) / p.workers + 1 : 0;");
    else gen_line(g, "const i64 rounds = p.rounds;");
    if (r->row_unroll > 1) gen_line(g, "_Pragma(\"unroll %d\")", r->row_unroll);
    gen_line(g, "for (i64 it = 0; it < rounds; it++) {\ni64 r = w + it * p.workers;");
    if (r->group > 32) gen_line(g, "const bool live = true;");
    else gen_line(g, "const bool live = r < p.rows;\nif (!live) r = 0;  // the warp's other rows still need this thread");
    gen_row_offsets(g, r, "r");
    for (int i = 0; i < s->nin; i++)
        if (g->cached[i] && !r->hoisted[i]) gen_declare_input(g, i, "[NE]");
    if (r->prefetch) gen_take_row(g, r);
    else gen_row_loads(g, r);
    for (int k = 0; k <= s->nlevel; k++) {
        gen_row_level(g, r, k);
        gen_phase(g, r, k);
    }
    gen_row_outputs(g, r);
    gen_line(g, "}");
    gen_column_sums(g, r, false);
    gen_line(g, "}");
    gen_close_kernel(g);
    gen_launch(g, "fused", ceil_div(r->workers, r->threads / r->group), r->threads);
}

// Partial results of a row's segments, added up by every block that needs them, in one order.
static const char parts_text[] =
    "GPU_FN float gx_parts_sum(const float *part, i64 n, int &turn) {\n"
    "    float a = 0;\n"
    "    for (i64 i = gpu_thread_x; i < n; i += gpu_block_threads) a += part[i];\n"
    "    return gx_group_sum<G>(a, turn);\n"
    "}\n"
    "GPU_FN float gx_parts_max(const float *part, i64 n, int &turn) {\n"
    "    float a = gpu_bits_float(0xff800000u);\n"
    "    for (i64 i = gpu_thread_x; i < n; i += gpu_block_threads) a = gx_larger(a, part[i]);\n"
    "    return gx_group_max<G>(a, turn);\n"
    "}\n";

static void gen_split_kernel(Gen *g, Rows *r, int k, bool outputs) {
    const FusedSpace *s = g->s;
    char name[16];
    snprintf(name, sizeof name, "fused%d", k + outputs);
    gen_open_kernel(g, name, "GX_BOUNDS");
    gen_line(g, "const i64 lane = gpu_thread_x %% G;\nconst bool live = true;\nint turn = 0;");
    gen_line(g, "for (i64 w = gpu_block_x; w < p.rows%s; w += gpu_grid_x) {", outputs ? "" : " * p.segments");
    if (outputs) gen_line(g, "const i64 r = w;");
    else gen_line(g, "const i64 r = w / p.segments, segment = w %% p.segments, j0 = segment * p.chunk;");
    if (!outputs) gen_line(g, "const i64 j1 = j0 + p.chunk < p.nv ? j0 + p.chunk : p.nv;");
    gen_row_offsets(g, r, "r");
    for (int level = 0; level <= k; level++) gen_row_level(g, r, level);
    if (outputs) gen_row_outputs(g, r);
    else gen_phase(g, r, k);
    for (int i = 0; i < s->p->ninstr && !outputs; i++) {
        const Instr *x = &s->p->instr[i];
        if (!is_row_reduction(x) || !r->need[i] || s->level[i] != k + 1) continue;
        gen_line(g, "{\nconst float all = gx_group_%s<G>(a%d, turn);", x->code == PROG_ROW_SUM ? "sum" : "max", i);
        gen_line(g, "if (lane == 0) p.part[(%d * p.rows + r) * p.segments + segment] = all;\n}", i);
    }
    gen_line(g, "}");
    gen_close_kernel(g);
    gen_launch(g, name, outputs ? r->nrow : r->nrow * r->nseg, r->threads);
}

Status codegen_rows(Gen *g) {
    const FusedSpace *s = g->s;
    Rows r = {.need = ARENA_ARRAY(g->arena, bool, s->p->ninstr + 1), .used = ARENA_ARRAY(g->arena, bool, s->nin + 1)};
    r.hoisted = ARENA_ARRAY(g->arena, bool, s->nin + 1), r.nuse = ARENA_ARRAY(g->arena, int, s->nin + 1);
    find_uses(g, &r);
    choose(g, &r);
    gen_params(g, &r);
    gen_defines(g, &r);
    if (r.mode != ROW_SPLIT) {
        gen_whole_rows(g, &r);
        return ST_OK;
    }
    if (s->nlevel + 2 > FUSED_MAX_LAUNCHES)
        return diag_error(g->d, ST_UNSUPPORTED, "fused: %d reductions of a long row wait for each other; split the node",
                          s->nlevel);
    str_add(&g->body, parts_text);
    bool whole = r.ncolsum > 0, rows = false;
    for (int j = 0; j < s->nout; j++) whole = whole || s->out_kind[j] == OUT_WHOLE, rows = rows || s->out_kind[j] == OUT_ROW;
    for (int k = 0; k < s->nlevel + whole; k++) gen_split_kernel(g, &r, k, false);
    if (rows) gen_split_kernel(g, &r, s->nlevel, true);
    return ST_OK;
}
