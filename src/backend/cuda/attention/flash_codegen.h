// The device source of one attention node: its mask program as code, and the kernels around it.
#pragma once
#include "base/containers.h"
#include "base/diag.h"
#include "ops/op.h"

// Why our own kernels cannot do this node, as an error; ST_OK if they can. in[], out[] as a kernel sees them.
Status flash_check(const Node *n, const Operand *in, const Operand *out, Diag *d);
// The first operand that is a vector of the mask.
static inline int flash_first_vec(const Node *n) { return n->op == OP_ATTENTION_GRAD ? 6 : 3; }
// What the kernels are compiled for beside types and the program.
typedef struct FlashForm {
    bool visible, bias, raw;  // the program says which keys are seen; what is added; scores are products but for masking
    bool tensor;              // the tensor-core kernels can take it
    int mt;                   // theirs: tiles of 16 rows a warp
} FlashForm;
typedef enum FlashMma { FLASH_MMA_FORWARD, FLASH_MMA_DQ, FLASH_MMA_DKDV } FlashMma;
size_t flash_mma_shared(const FlashForm *f, const Operand *in, FlashMma kernel);  // dynamic shared memory of a block
bool flash_mma_together(const Operand *in);  // dk and dv by one block: as MMA_TOGETHER
FlashForm flash_form(const Node *n, const Operand *in, const Operand *out);
// tensor: with the tensor-core kernels (form.tensor must be set) instead of the portable ones.
Status flash_source(const Node *n, const Operand *in, const Operand *out, bool tensor, Str *source, Diag *d);
