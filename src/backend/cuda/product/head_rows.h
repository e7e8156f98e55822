// Parameters of the head's row kernel (head.cu) and its launch. Plain C and C++.
#pragma once
#include "backend/cuda/device/device.h"
#ifdef __cplusplus
extern "C" {
#endif

// Logits x [rows, v], rows ld elements apart, each at a multiple of 16 bytes, a row at a time; with a cap they stand for z = cap
// * tanh(x / cap), else z = x. Without lse_in: lse = log sum exp z and pick = z[idx] are computed. With glse: x becomes dz =
// exp(z - lse) * glse + onehot(idx) * gpick, through the cap. An idx outside [0, v) is recorded as an error of `node`.
typedef struct HeadRows {
    void *x;
    const long long *idx;
    const float *lse_in;        // NULL: computed
    const float *glse, *gpick;  // NULL: x is left alone
    float *lse, *pick;          // NULL with lse_in
    long long rows, v, ld;
    float cap;                  // 0: none
    DeviceError *error;
    int node;
} HeadRows;
void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p);

#ifdef __cplusplus
}
#endif
