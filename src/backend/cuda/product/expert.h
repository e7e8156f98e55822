// Parameters of the expert kernels (expert.cu) and their launches. Plain C and C++.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// Rows sorted by expert, stable, all on the device: those of expert e are order[first[e]] .. order[first[e + 1]); rows whose
// expert is outside [0, nexpert) are the last group, nexpert. Each group's rows are cut into tiles of `tile` rows: those of group
// e are numbered tile_first[e] .. tile_first[e + 1].
typedef struct ExpertOrder {
    const long long *expert;        // [n]
    long long n, nexpert, tile;
    long long chunk, nchunk;        // rows that one block places, at most EXPERT_CHUNKS blocks
    long long *first, *tile_first;  // [nexpert + 2]
    long long *count;               // [nchunk][nexpert + 1]: rows of a group in a chunk; then the place of the chunk's next one
    long long *order;               // [n]
} ExpertOrder;
enum { EXPERT_CHUNKS = 256, EXPERT_STAGE = 1024 };  // EXPERT_STAGE: expert numbers that a block holds at a time

// y[i] = x[i] w[expert[i]]: x [n, nx], w [nexpert, nx, ny] (trans_w: [nexpert, ny, nx]), y [n, ny]; zeros for rows of no expert.
typedef struct ExpertProduct {
    ExpertOrder rows;
    const void *x, *w;
    void *y;
    long long nx, ny;
    int trans_w;
} ExpertProduct;

// dw[e] = sum over rows i of expert e of left[i]^T right[i]: left [n, nl], right [n, nr], dw [nexpert, nl, nr]. add: NULL, or
// what is added, of dw's type and shape; it may be dw.
typedef struct ExpertGrad {
    ExpertOrder rows;
    const void *left, *right, *add;
    void *dw;
    long long nl, nr;
} ExpertGrad;

// Whether the tensor cores take it: bf16 with rows and addresses of whole 16 bytes. Decides rows.tile, the height of a tile.
int expert_tile(int bf16_operands, long long cols_a, long long cols_b, const void *a, const void *b);
void expert_order_launch(void *stream, const ExpertOrder *o);
void expert_product_launch(void *stream, int in_bf16, int out_bf16, const ExpertProduct *p);
void expert_grad_launch(void *stream, int in_bf16, int out_bf16, const ExpertGrad *p);

#ifdef __cplusplus
}
#endif
