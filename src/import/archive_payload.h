// Tensors stored in the archive: data/weights and data/constants with their *_config.json.
#pragma once
#include "import/archive.h"

typedef struct Payload {
    const char *name;      // "model.embed_tokens.weight"
    const char *path;      // "weight_0"
    const char *dir;       // "weights" or "constants"
    bool pickled, requires_grad;
    int dtype;             // export ScalarType code
    Shape shape;
    int64_t stride[MAX_DIMS], offset;  // in elements
    // filled by payload_locate:
    DType type;
    ZipMember *member;     // NULL: no bytes (exported on the meta device)
    int64_t begin, end;    // bytes of the member that the tensor spans
} Payload;

typedef struct PayloadTable {
    VEC(Payload) item;
    Map *index;            // name -> item
} PayloadTable;
Status payloads_read(ArchiveReader *r, PayloadTable *t);
Payload *payload_find(PayloadTable *t, const char *name);  // NULL if absent
// Checks dtype, strides and extent against the member's size.
Status payload_locate(ArchiveReader *r, Payload *p);
// Row-major bytes, in place where the file has them so. *out is NULL if the archive has none.
Status payload_bytes(ArchiveReader *r, const Payload *p, const void **out);
bool payload_same_view(const Payload *a, const Payload *b);
// "[2, 64]"
const char *payload_shape_text(Arena *a, const Shape *s);
