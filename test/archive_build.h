// Archives made in memory for tests and fuzzers: a small zip writer, and a one-embedding program as the exporter would write it.
#pragma once
#include <stdio.h>
#include <zlib.h>
#include "base/containers.h"

typedef struct ZipBuild {
    Str body, directory;
    int count;
} ZipBuild;

static inline void zb_u(Str *s, uint64_t v, int nbytes) {
    for (int i = 0; i < nbytes; i++) str_addn(s, (const char[]){(char)(i < 8 ? v >> (8 * i) : 0)}, 1);
}

// Offset of the local header in body is returned, for tests that damage it.
static inline size_t zb_raw(ZipBuild *z, const char *name, int method, int flags, uint32_t crc, const void *packed,
                            size_t npacked,
                            size_t nbytes) {
    size_t at = z->body.len;
    for (int central = 0; central < 2; central++) {
        Str *s = central ? &z->directory : &z->body;
        zb_u(s, central ? 0x02014b50 : 0x04034b50, 4);
        if (central) zb_u(s, 20, 2);
        zb_u(s, 20, 2);
        zb_u(s, (uint64_t)flags, 2);
        zb_u(s, (uint64_t)method, 2);
        zb_u(s, 0, 4);
        zb_u(s, crc, 4);
        zb_u(s, npacked, 4);
        zb_u(s, nbytes, 4);
        zb_u(s, strlen(name), 2);
        zb_u(s, 0, 2);
        if (central) {
            zb_u(s, 0, 10);
            zb_u(s, at, 4);
        }
        str_add(s, name);
    }
    str_addn(&z->body, packed, npacked);
    z->count++;
    return at;
}

static inline void zb_add(ZipBuild *z, const char *name, const void *data, size_t n) {
    zb_raw(z, name, 0, 0, (uint32_t)crc32(0, data, (uInt)n), data, n, n);
}

static inline void zb_text(ZipBuild *z, const char *name, const char *text) { zb_add(z, name, text, strlen(text)); }

static inline void zb_deflated(ZipBuild *z, const char *name, const void *data, size_t n, size_t claimed) {
    z_stream s = {0};
    size_t cap = n + n / 100 + 100;
    uint8_t *packed = malloc(cap);
    if (!packed || deflateInit2(&s, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK) abort();
    s.next_in = (Bytef *)data;
    s.avail_in = (uInt)n;
    s.next_out = packed;
    s.avail_out = (uInt)cap;
    if (deflate(&s, Z_FINISH) != Z_STREAM_END) abort();
    zb_raw(z, name, 8, 0, (uint32_t)crc32(0, data, (uInt)n), packed, s.total_out, claimed);
    deflateEnd(&s);
    free(packed);
}

// The whole file; frees the builder.
static inline Str zb_finish(ZipBuild *z) {
    size_t at = z->body.len;
    if (z->directory.len) str_addn(&z->body, z->directory.data, z->directory.len);
    zb_u(&z->body, 0x06054b50, 4);
    zb_u(&z->body, 0, 4);
    zb_u(&z->body, (uint64_t)z->count, 2);
    zb_u(&z->body, (uint64_t)z->count, 2);
    zb_u(&z->body, z->directory.len, 4);
    zb_u(&z->body, at, 4);
    zb_u(&z->body, 0, 2);
    str_free(&z->directory);
    Str out = z->body;
    *z = (ZipBuild){0};
    return out;
}

// loss = sum(embedding(w, input_ids) * scale) with a second parameter v that nothing uses; w, v: f32 [4, 3]; scale: f32 [3].
// input_ids [s0, s1], labels [s2, s3].
#define SYM_TEXT(s) "{\"as_expr\": {\"expr_str\": \"Symbol('" s "', positive=True, integer=True)\", \"hint\": {\"as_int\": %d}}}"
#define META(dtype, sizes, strides)                                                                                      \
    "{\"dtype\": " dtype ", \"sizes\": [" sizes "], \"requires_grad\": true, \"device\": {\"type\": \"cpu\", \"index\": null}, " \
    "\"strides\": [" strides "], \"storage_offset\": {\"as_int\": 0}, \"layout\": 7}"
#define INT_TEXT(i) "{\"as_int\": " #i "}"
#define TWO_DIMS INT_TEXT(4) ", " INT_TEXT(3)
#define TENSOR_ARG(name, tensor) "{\"name\": \"" name "\", \"arg\": {\"as_tensor\": {\"name\": \"" tensor "\"}}, \"kind\": 1}"

static const char program_format[] =
    "{\"schema_version\": {\"major\": 8, \"minor\": 17}, \"torch_version\": \"2.11.0\", \"opset_version\": {\"aten\": 10},\n"
    "\"range_constraints\": {\"s0\": {\"min_val\": 2, \"max_val\": null}, \"s1\": {\"min_val\": 3, \"max_val\": 1000},\n"
    "  \"s2\": {\"min_val\": 2, \"max_val\": null}, \"s3\": {\"min_val\": 2, \"max_val\": null}},\n"
    "\"guards_code\": [\"L['input_ids'].size()[1] != 77\", \"min(8*L['input_ids'].size()[1], 32) <= 32\"%s],\n"
    "\"graph_module\": {\"graph\": {\n"
    "\"inputs\": [{\"as_tensor\": {\"name\": \"p_w\"}}, {\"as_tensor\": {\"name\": \"p_v\"}},\n"
    "  {\"as_tensor\": {\"name\": \"b_scale\"}},\n"
    "  {\"as_tensor\": {\"name\": \"input_ids\"}}, {\"as_tensor\": {\"name\": \"labels\"}}],\n"
    "\"outputs\": [{\"as_tensor\": {\"name\": \"sum_1\"}}],\n"
    "\"nodes\": [\n"
    " {\"target\": \"torch.ops.aten.embedding.default\", \"inputs\": [" TENSOR_ARG("weight", "p_w") ", "
    TENSOR_ARG("indices", "input_ids") "],\n"
    "  \"outputs\": [{\"as_tensor\": {\"name\": \"embedding\"}}],\n"
    "  \"metadata\": {\"stack_trace\": \"File \\\"/home/me/model.py\\\", line 12, "
    "in forward\\n    return x\\n  File \\\"/lib/site-packages/torch/nn/modules/sparse.py\\\", line 9, in forward\", "
    "\"nn_module_stack\": \"L__self__,,__main__.M;L__self___embed,embed,torch.nn.Embedding\"}},\n"
    " {\"target\": \"torch.ops.aten.mul.Tensor\", \"inputs\": [" TENSOR_ARG("self", "embedding") ", " TENSOR_ARG("other",
                                                                                                                 "b_scale") "],\n"
    "  \"outputs\": [{\"as_tensor\": {\"name\": \"mul\"}}], \"metadata\": {}},\n"
    " {\"target\": \"torch.ops.aten.sum.default\", \"inputs\": [" TENSOR_ARG("self", "mul") ", "
    "{\"name\": \"dtype\", \"arg\": {\"as_none\": true}, \"kind\": 2}],\n"
    "  \"outputs\": [{\"as_tensor\": {\"name\": \"sum_1\"}}], \"metadata\": {}}],\n"
    "\"tensor_values\": {\"p_w\": " META("7", TWO_DIMS, TWO_DIMS) ", \"p_v\": " META("7", TWO_DIMS, TWO_DIMS) ",\n"
    "  \"b_scale\": " META("7", INT_TEXT(3), INT_TEXT(1)) ",\n"
    "  \"input_ids\": " META("5", SYM_TEXT("s0") ", " SYM_TEXT("s1"), TWO_DIMS) ",\n"
    "  \"labels\": " META("5", SYM_TEXT("s2") ", " SYM_TEXT("s3"), TWO_DIMS) ",\n"
    "  \"sum_1\": " META("7", "", "") "},\n"
    "\"sym_int_values\": {}, \"sym_bool_values\": {}, \"is_single_tensor_return\": false, \"custom_obj_values\": {}},\n"
    "\"signature\": {\"input_specs\": [\n"
    "  {\"parameter\": {\"arg\": {\"name\": \"p_w\"}, \"parameter_name\": \"w\"}},\n"
    "  {\"parameter\": {\"arg\": {\"name\": \"p_v\"}, \"parameter_name\": \"v\"}},\n"
    "  {\"buffer\": {\"arg\": {\"name\": \"b_scale\"}, \"buffer_name\": \"scale\", \"persistent\": false}},\n"
    "  {\"user_input\": {\"arg\": {\"as_tensor\": {\"name\": \"input_ids\"}}}},\n"
    "  {\"user_input\": {\"arg\": {\"as_tensor\": {\"name\": \"labels\"}}}}],\n"
    " \"output_specs\": [{\"user_output\": {\"arg\": {\"as_tensor\": {\"name\": \"sum_1\"}}}}]}, \"module_call_graph\": []}}";

// A weight table entry; strides "3, 1" and offset in elements.
static inline void add_payload(Str *s, const char *name, const char *path, const char *sizes, const char *strides, int offset) {
    const char *list[2] = {sizes, strides};
    str_printf(s, "%s\"%s\": {\"path_name\": \"%s\", \"is_param\": true, \"use_pickle\": false, \"tensor_meta\": {\"dtype\": 7, "
               "\"requires_grad\": true, \"device\": {\"type\": \"cpu\"}, \"layout\": 7, \"storage_offset\": {\"as_int\": %d}",
               s->len ? ", " : "", name, path, offset);
    for (int k = 0; k < 2; k++) {
        str_printf(s, ", \"%s\": [", k ? "strides" : "sizes");
        for (const char *c = list[k]; *c; c += strcspn(c, ",")) {
            if (*c == ',') str_addn(s, c++, 1);
            str_printf(s, "{\"as_int\": %d}", atoi(c));
        }
        str_add(s, "]");
    }
    str_add(s, "}}");
}

// What tests vary; NULL members take defaults.
typedef struct TinyArchive {
    int hints[4];              // example sizes of s0..s3; all 0: 2, 8, 2, 8
    const char *guard;         // another guard, with a leading comma
    const char *program;       // model.json as a whole
    const char *weights;       // the entries of the weight table
    const char *extra;         // extra/autosp.json
    const float *w;            // 24 floats in weight_0
    bool no_weight_bytes;      // as exported on the meta device
} TinyArchive;

static inline Str tiny_program(const TinyArchive *t) {
    Str s = {0};
    const int *h = t->hints[0] ? t->hints : (const int[]){2, 8, 2, 8};
    str_printf(&s, program_format, t->guard ? t->guard : "", h[0], h[1], h[2], h[3]);
    return s;
}

static inline Str tiny_archive(const TinyArchive *t) {
    float w[24], scale[3] = {1, 2, 3};
    for (int i = 0; i < 24; i++) w[i] = t->w ? t->w[i] : 0.125f * (float)i;
    Str program = tiny_program(t), entries = {0}, table = {0}, constants = {0};
    add_payload(&entries, "w", "weight_0", "4,3", "3,1", 0);
    add_payload(&entries, "v", "weight_0", "4,3", "3,1", 12);
    str_printf(&table, "{\"config\": {%s}}", t->weights ? t->weights : entries.data);
    str_free(&entries);
    add_payload(&entries, "scale", "tensor_0", "3", "1", 0);
    str_printf(&constants, "{\"config\": {%s}}", entries.data);
    ZipBuild z = {0};
    zb_add(&z, "tiny/data/weights/weight_0", w, t->no_weight_bytes ? 0 : sizeof w);
    zb_text(&z, "tiny/data/weights/model_weights_config.json", table.data);
    zb_add(&z, "tiny/data/constants/tensor_0", scale, sizeof scale);
    zb_text(&z, "tiny/data/constants/model_constants_config.json", constants.data);
    zb_text(&z, "tiny/models/model.json", t->program ? t->program : program.data);
    if (t->extra) zb_text(&z, "tiny/extra/autosp.json", t->extra);
    zb_text(&z, "tiny/byteorder", "little");
    zb_text(&z, "tiny/archive_format", "pt2");
    str_free(&program);
    str_free(&entries);
    str_free(&table);
    str_free(&constants);
    return zb_finish(&z);
}
