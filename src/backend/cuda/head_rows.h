// Parameters of the head's row kernel (head.cu) and its launch. Plain C and C++.
#pragma once
#include "backend/cuda/device.h"
#ifdef __cplusplus
extern "C" {
#endif

// For each row of logits x [rows, v], which are z = x, or cap * tanh(x / cap) where cap > 0: lse = log sum exp z, pick = z[idx]; then x becomes
// the gradient (exp(z - lse) * glse + onehot(idx) * gpick) dz/dx. An idx outside [0, v) is recorded as an error of `node`.
typedef struct HeadRows {
    void *x;
    const long long *idx;
    const float *lse_in;        // [rows], as all vectors; NULL: computed
    const float *glse, *gpick;  // NULL: x is left alone
    float *lse, *pick;          // NULL where not wanted
    float cap;
    long long rows, v;
    DeviceError *error;
    int node;
} HeadRows;
void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p);

#ifdef __cplusplus
}
#endif
