// Training data: files of tokens, cut into rows of the sequence length, in an order that depends only on the seed.
#pragma once
#include "base/containers.h"
#include "import/import.h"

typedef enum DataFormat { DATA_AUTO, DATA_BYTES, DATA_U16, DATA_U32, DATA_SAFETENSORS } DataFormat;
bool data_format_from_name(const char *s, DataFormat *out);  // "auto", "bytes", "u16", "u32", "safetensors"

typedef struct DataOptions {
    const char *const *file;
    int nfile;
    DataFormat format;      // auto: by extension (.u16, .u32, .safetensors), everything else is raw bytes
    int64_t doc_token;      // >= 0: documents end with this token (put between files too); -1: each file is one document
    int64_t seq, batch;
    uint64_t seed;
    int64_t vocabulary;     // ids must be below it; 0: not known
} DataOptions;

typedef struct Data Data;
// Opens and checks every file: token ids in range, at least one row of tokens. Owned by the arena.
Status data_open(Arena *a, const DataOptions *o, Data **out, Diag *d);
int64_t data_ntokens(const Data *x);
int64_t data_nrows(const Data *x);         // rows of `seq` tokens in one epoch
double data_unigram_entropy(const Data *x);  // nats per token: what a model that only counts tokens can reach
// No row holds more documents, however a program counts them by --doc-token: whether the token ends a document or begins one.
// 0: not known, as no token says so.
int64_t data_max_documents(const Data *x);

// The rows of step `step` (0-based): tokens [batch*seq]; positions count from the start of the row and restart where a document
// starts; labels are the tokens, but where positions are asked for -100 at the first token of a document that starts inside the
// row (nothing in sight predicts it).
// Any of the three may be NULL. Rows are a permutation of the data, anew in every epoch.
void data_batch(const Data *x, int64_t step, int64_t *tokens, int64_t *labels, int64_t *positions);
// Safetensors with a tensor per input, [N, ...]: row `i` of the permutation for step and batch row; NULL if the data are token
// files.
const TensorFile *data_tensors(const Data *x);
int64_t data_row(const Data *x, int64_t step, int64_t batch_row);
