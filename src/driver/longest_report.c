// The table of longest contexts, for people and as JSON.
#include <inttypes.h>
#include <jansson.h>

#include "driver/longest.h"

static const char *grouped(int64_t n, char text[32]) {  // 1,048,576
    char digits[32];
    int len = snprintf(digits, sizeof digits, "%" PRId64, n), at = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

static double share(const Longest *x) { return x->step_seconds > 0 ? x->attention_seconds / x->step_seconds : 0; }

static void print_fitting(FILE *f, const Longest *x) {
    char seq[32], speed[32], again[48], away[48], rows[24];
    const MemoryChoice *c = &x->choice;
    snprintf(again, sizeof again, c->nagain ? "%" PRId64 " (%.2f s)" : "none", c->nagain, c->again_seconds);
    snprintf(away, sizeof away, c->noffload ? "%s" : "none", bytes_text(c->offload_nbytes).s);
    snprintf(rows, sizeof rows, c->tile_rows ? "%" PRId64 : "whole", c->tile_rows);
    fprintf(f, "  %5d %15s %12s %9.1f %% %-18s %10s %10s  %-16s %-10s %6s  %s%s\n", x->nranks, grouped(x->seq, seq),
            grouped((int64_t)x->tokens_per_second, speed), 100 * share(x), longest_limit_name(x->limit),
            bytes_text((double)x->device_nbytes).s, bytes_text((double)x->host_nbytes).s, again, away, rows, x->strategies,
            x->all_ranks ? "" : " *");
}

static void print_why(FILE *f, const Longest *x) {
    char a[32], b[32];
    if (x->seq > 0 && x->why) fprintf(f, "  %d rank%s, length %s: %s\n", x->nranks, x->nranks == 1 ? "" : "s", grouped(x->next, a), x->why);
    if (x->seq > 0) return;
    if (x->least_nbytes > 0)
        fprintf(f, "  %d rank%s: already %s tokens need %s each (%s bytes)\n", x->nranks, x->nranks == 1 ? "" : "s", grouped(x->shortest, a),
                bytes_text((double)x->least_nbytes).s, grouped(x->least_nbytes, b));
    else fprintf(f, "  %d rank%s: %s\n", x->nranks, x->nranks == 1 ? "" : "s", x->why ? x->why : "no plan was found");
}

void longest_text(FILE *f, const CompileOptions *o, int n, const Longest *row) {
    double seconds = 0;
    bool some = false;
    fprintf(f, "the longest context of %s, batch %" PRId64 ", with %s of device memory per rank for one step", row[0].program, row[0].batch,
            bytes_text((double)o->memory.budget_nbytes).s);
    if (o->memory.offload && o->memory.host_nbytes < INT64_MAX) fprintf(f, " and %s of host memory", bytes_text((double)o->memory.host_nbytes).s);
    fprintf(f, " (%s)\n\n  %5s %15s %12s %11s %-18s %10s %10s  %-16s %-10s %6s  %s\n", compile_device_model(o)->name, "ranks", "longest context",
            "tokens/s", "attention", "limited by", "device", "host", "computed again", "offloaded", "tile", "attention by");
    for (int i = 0; i < n; i++) {
        seconds += row[i].seconds;
        some |= row[i].seq > 0 && !row[i].all_ranks;
        if (row[i].seq > 0) print_fitting(f, &row[i]);
        else fprintf(f, "  %5d %15s\n", row[i].nranks, "does not fit");
    }
    fprintf(f, "\n  attention: its part of the step's time; device, host: peaks of the fullest rank; tile: rows of a chunk of token-wise kernels\n");
    if (some) fprintf(f, "  * planned for the ranks that tell (the first, the fullest, the last)\n");
    for (int i = 0; i < n; i++) print_why(f, &row[i]);
}

static json_t *row_json(const Longest *x) {
    const MemoryChoice *c = &x->choice;
    json_t *row = json_pack("{s:i, s:b, s:s?, s:i, s:f}", "ranks", x->nranks, "fits", x->seq > 0, "why", x->why, "plans", x->nprobe,
                            "search_seconds", x->seconds);
    if (row && x->seq == 0)
        json_object_update_new(row, json_pack("{s:I, s:I}", "shortest_tried", (json_int_t)x->shortest, "needs_nbytes", (json_int_t)x->least_nbytes));
    if (row && x->seq > 0)
        json_object_update_new(
            row, json_pack("{s:I, s:I, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:f, s:f, s:I, s:f, s:I, s:s, s:b}", "seq", (json_int_t)x->seq,
                           "does_not_fit", (json_int_t)x->next, "limited_by", longest_limit_name(x->limit), "predicted_seconds", x->step_seconds,
                           "tokens_per_second", x->tokens_per_second, "attention_share", share(x), "device_nbytes", (json_int_t)x->device_nbytes,
                           "host_nbytes", (json_int_t)x->host_nbytes, "values_computed_again", (json_int_t)c->nagain, "seconds_computed_again",
                           c->again_seconds, "kept_nbytes", c->kept_nbytes, "values_offloaded", (json_int_t)c->noffload, "offloaded_nbytes",
                           c->offload_nbytes, "tile_rows", (json_int_t)c->tile_rows, "attention", x->strategies, "all_ranks", (int)x->all_ranks));
    return row;
}

Status longest_json(FILE *f, const CompileOptions *o, int n, const Longest *row, Diag *d) {
    json_t *rows = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(rows, row_json(&row[i]));
    json_t *host = o->memory.offload && o->memory.host_nbytes < INT64_MAX ? json_integer((json_int_t)o->memory.host_nbytes) : json_null();
    json_t *top = json_pack("{s:s, s:I, s:s, s:I, s:o, s:b, s:o}", "program", row[0].program, "batch", (json_int_t)row[0].batch, "device_model",
                            compile_device_model(o)->name, "budget_nbytes", (json_int_t)o->memory.budget_nbytes, "host_budget_nbytes", host,
                            "offload", (int)o->memory.offload, "longest", rows);
    if (!top) return diag_error(d, ST_MEMORY, "out of memory");
    int bad = json_dumpf(top, f, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    fputc('\n', f);
    json_decref(top);
    return bad ? diag_error(d, ST_IO, "cannot write the table") : ST_OK;
}
