// A device model as a file, in the format that device_file.c reads.
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "plan/device.h"

static json_t *curve_json(const RateCurve *c, const char *sizes) {
    json_t *at = json_array(), *rate = json_array();
    for (int i = 0; i < c->n; i++) {
        json_array_append_new(at, json_real(c->at[i]));
        json_array_append_new(rate, json_real(c->rate[i]));
    }
    return json_pack("{s:o, s:o}", sizes, at, "rate", rate);
}

static json_t *products_json(const DeviceModel *m) {
    json_t *all = json_object();
    for (int t = 0; t < PRODUCT_NTYPE; t++) {
        if (m->product[t][0].n == 0) continue;
        json_t *type = json_object();
        for (int f = 0; f < PRODUCT_NFORM; f++)
            json_object_set_new(type, product_form_names[f], curve_json(&m->product[t][f], "flops"));
        json_object_set_new(all, product_type_names[t], type);
    }
    return all;
}

static json_t *attention_json(const DeviceModel *m) {
    json_t *list = json_array();
    for (int i = 0; i < m->nattention; i++) {
        const AttentionRates *a = &m->attention[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:i, s:o, s:o}", "kernel", a->kernel, "head", a->head, "forward",
                                        curve_json(&a->forward, "length"), "backward", curve_json(&a->backward, "length")));
    }
    return list;
}

static json_t *efficiency_json(const DeviceModel *m) {
    json_t *all = json_pack("{s:f}", "other", m->other_efficiency);
    for (int op = 0; op < OP_COUNT; op++)
        if (m->efficiency[op] > 0) json_object_set_new(all, op_name((OpKind)op), json_real(m->efficiency[op]));
    return all;
}

static json_t *texts_json(int n, const char *const *text) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_string(text[i]));
    return list;
}

Status device_model_save(const DeviceModel *m, int nnote, const char *const *note, const char *path, Diag *d) {
    json_t *top = json_pack(
        "{s:i, s:s, s:s, s:s, s:b, s:s, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, "
        "s:o}",
        "autosp_device", 1, "name", m->name, "about", m->about, "source", m->source, "measured", (int)m->measured, "backend",
        m->backend, "match", texts_json(m->nmatch, m->match), "memory_nbytes", m->mem_nbytes, "context_nbytes",
        m->context_nbytes, "host_memory_nbytes", m->host_mem_nbytes, "units", m->units, "tile", m->tile, "vector_flops",
        m->vector_flops, "memory_bandwidth", m->mem_bandwidth, "kernel_latency_s", m->kernel_latency_s, "link_bandwidth",
        m->link_bandwidth, "link_latency_s", m->link_latency_s, "to_host_bandwidth", m->to_host_bandwidth,
        "from_host_bandwidth", m->from_host_bandwidth, "host_latency_s", m->host_latency_s, "products", products_json(m),
        "attention", attention_json(m), "efficiency", efficiency_json(m), "notes", texts_json(nnote, note));
    if (!top) return diag_error(d, ST_MEMORY, "out of memory");
    char *text = json_dumps(top, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    json_decref(top);
    if (!text) return diag_error(d, ST_MEMORY, "out of memory");
    Status st = file_replace(path, text, strlen(text), d);
    free(text);
    return st;
}
