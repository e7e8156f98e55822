// Parameters of the head's row kernel (head.cu) and its launch. Plain C and C++.
#pragma once
#include "backend/cuda/device.h"
#ifdef __cplusplus
extern "C" {
#endif

// For each row of logits x [rows, v]: lse = log sum exp x, pick = x[idx]; then x becomes exp(x - lse) * glse + onehot(idx) * gpick. An idx
// outside [0, v) is recorded as an error of `node`.
typedef struct HeadRows {
    void *x;
    const long long *idx;
    const float *glse, *gpick;  // [rows], as the results
    float *lse, *pick;
    long long rows, v;
    DeviceError *error;
    int node;
} HeadRows;
void head_rows_launch(void *stream, int bf16_elements, const HeadRows *p);

#ifdef __cplusplus
}
#endif
