// Packed documents as cuDNN wants them: from one document number per token, where each document of each head begins. Plain C and
// C++; addresses are the device's.
//
// An operand [rows, heads, n, dim] is one sequence of rows * heads * n tokens to cuDNN, with one head, cut into entries: the
// documents of the first head of the first row, then those of its second head, and so on. Every (row, head) has `slots` entries;
// those beyond its last document have length 0. Keys of a KV head are read by the entries of each of its query heads.
#pragma once
#include "backend/cuda/device/device.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { PACKED_CHUNK = 1024 };  // positions that a block looks at
typedef struct GpuPacked {
    const long long *ids;           // [rows or 1, n], never falling along n
    long long ids_stride;           // from row to row: n or 0
    long long rows, n, heads, group, slots, dim;  // heads: of queries; group: query heads of a KV head
    int *count;                     // scratch [rows, chunks of n]
    long long *begin;               // scratch [rows, slots]: of each document
    int *ndocument;                 // scratch [rows]
    long long *q, *k, *row;         // [rows * heads * slots + 1]: first element in q, in k, in lse
    int *length;                    // [rows * heads * slots]
    int node;                       // errors are reported under
} GpuPacked;
void gpu_packed(const Device *dev, const GpuPacked *p);
// out[i, e] = sum over j < group of x[i * group + j, e], bf16, e < elems (a multiple of 8): dk and dv of a KV head's query heads.
void gpu_packed_sum(const Device *dev, const void *x, void *out, long long n, long long group, long long elems);

#ifdef __cplusplus
}
#endif
