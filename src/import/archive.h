// Inside of the archive reader: what its files share while one archive is being opened.
#pragma once
#include "import/aten.h"
#include "import/json.h"
#include "import/sym.h"
#include "import/zip.h"

typedef struct ArchiveReader {
    Arena *a;              // the archive's
    Arena *scratch;        // JSON trees, freed when the archive is open
    Archive *ar;
    Zip *zip;
    const char *top;       // "llama-3.1-8b": the folder all members are in
    const char *stem;      // "model": models/<stem>.json
    SymTable syms;
    Map *sym_cache;        // expression text -> index in sym_parsed
    VEC(Sym *) sym_parsed;
    int64_t ncopied;       // tensor bytes copied to make them row-major
    Map *used;             // tensors that nodes read; built when first asked for
    json_t *extra;         // extra/autosp.json, NULL if absent
    ImportReport *report;
    Diag *d;
} ArchiveReader;

// Opens what is already mapped: the reader behind archive_open, and what the fuzzers call.
Status archive_read(Arena *a, Zip *zip, const char *weights, Archive **out, ImportReport *r, Diag *d);

// archive_graph.c: a graph and its sub-graphs; every tensor and size used must be made before.
Status archive_read_graph(ArchiveReader *r, const json_t *graph, int depth, AtenGraph **out);
// A SymInt: {"as_int": 3} or {"as_expr": {"expr_str": ..., "hint": {"as_int": 3}}}. hint may be NULL; *hint: SYM_UNBOUND if none.
Status archive_read_size(ArchiveReader *r, const json_t *v, Sym **out, int64_t *hint);
// archive_arg.c: one tagged argument value; names are not yet checked.
Status archive_read_arg(ArchiveReader *r, const json_t *v, int depth, Arg *out);
// "modeling_llama.py:239 in forward (model.layers.0.mlp)" from a node's metadata; NULL if it has none.
const char *archive_node_source(Arena *a, const json_t *metadata);

// archive_signature.c: symbols and their ranges, guards; then inputs, outputs, roles, and which dims are batch and sequence.
Status archive_read_ranges(ArchiveReader *r, const json_t *program);
Status archive_read_signature(ArchiveReader *r, const json_t *signature);

// archive_weights.c: fills param and constant (needs the graph and the inputs), with bytes where there are any.
Status archive_read_weights(ArchiveReader *r);
// weights_override.c: replaces the parameters' bytes by those of `weights`.
Status archive_override_weights(ArchiveReader *r, const char *weights);

// A member of the archive below its top folder; NULL if absent.
ZipMember *archive_member(const ArchiveReader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
Status archive_json(ArchiveReader *r, ZipMember *m, json_t **out);
