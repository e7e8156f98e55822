// The launchers of this folder's .cu files, and their parameters. Plain C and C++; addresses are the device's. (Copies and fills:
// box.h.)
#pragma once
#include "backend/cuda/ops/box.h"
#include "backend/cuda/device/device.h"
#ifdef __cplusplus
extern "C" {
#endif

// ---- source.cu ------------------------------------------------------------------------------------------------------------
// Elements (o, g, i) of [outer, begin..end, inner], stored at dst[o * pitch + (g - begin) * inner + i]: one interval of a sharded
// axis.
typedef struct GpuPlace {
    void *dst;
    GpuType type;
    long long outer, begin, end, inner, pitch;
} GpuPlace;
void gpu_iota(const Device *dev, const GpuPlace *p, long long start, long long step);              // start + g * step
void gpu_random(const Device *dev, const GpuPlace *p, long long extent,
                unsigned long long stream);  // of index (o * extent + g) * inner + i

// ---- reduce.cu ------------------------------------------------------------------------------------------------------------
// Dims of the source, kept and reduced in turn, but for the innermost, which is `row` (reduced) or `columns` (kept).
enum { GPU_REDUCE_DIMS = 4 };
typedef struct GpuReduction {
    const void *src;
    void *dst, *partial;           // partial: [pieces, results] of 8 bytes, where pieces > 1
    GpuType type, out;             // of the elements, of the results
    int max;                       // else the sum
    int nkept, nreduced;
    long long kept_size[GPU_REDUCE_DIMS], kept_stride[GPU_REDUCE_DIMS], reduced_size[GPU_REDUCE_DIMS],
        reduced_stride[GPU_REDUCE_DIMS];
    long long row;                 // elements reduced together; 0: columns
    long long columns;             // results next to each other; 1 with rows
    long long chunks;              // of a row
    long long units, results, steps, pieces;  // steps: (reduced index, chunk) pairs of a unit, cut into pieces
    int group;                     // rows: threads of a unit; columns: lanes of a block
} GpuReduction;
enum { GPU_REDUCE_CHUNK = 8192 };
// How many elements are loaded at once: 16 bytes of them where sizes allow, else 1. The caller divides columns among units by it.
int gpu_reduce_width(GpuType t);
void gpu_reduce(const Device *dev, const GpuReduction *r);

// ---- scan.cu: along dim n of [outer, n, inner] ----------------------------------------------------------------------------
typedef struct GpuScan {
    const void *src;
    void *dst, *partial;           // cumsum: [pieces, outer * inner] of 8 bytes, where pieces > 1
    GpuType type;
    long long outer, n, inner, pieces, length;  // length: elements of a piece, all but the last one's
    int reverse;
} GpuScan;
void gpu_logsumexp(const Device *dev, const GpuScan *s);
void gpu_cumsum(const Device *dev, const GpuScan *s);

// ---- index.cu -------------------------------------------------------------------------------------------------------------
// `n` rows of `rest` elements (nbytes each) and the table's `nrows`; indices out of range go to the error record under `node`.
typedef struct GpuRows {
    const long long *index;
    const void *src;
    void *dst;
    long long n, nrows, rest, skip;
    GpuType type;
    int node;
} GpuRows;
void gpu_take_rows(const Device *dev, const GpuRows *r);             // dst[i] = src[index[i]]
void gpu_add_rows(const Device *dev, const GpuRows *r, long long *sums);  // sums[index[i]] += src[i]: i64
void gpu_set_rows(const Device *dev, const GpuRows *r,
                  long long *owner);  // dst[index[i]] = src[i], the last i of equals; owner: [nrows]
void gpu_convert(const Device *dev, void *dst, GpuType to, const void *src, GpuType from, long long n);  // f32 <-> bf16

// ---- rows_sum.cu ----------------------------------------------------------------------------------------------------------
// sums[t] = the sum of src[i] over index[i] == t, for every t that is in the index; `add`: += instead. src f32 or bf16, sums f32;
// always in the same order.
void gpu_sum_rows(const Device *dev, const GpuRows *r, void *sums, int add, void *scratch);
size_t gpu_sum_rows_scratch(long long n, long long rest);

// ---- index.cu, continued --------------------------------------------------------------------------------------------------
// The lines of gather and scatter_add: small[c] <-> large[c with index[c] along `dim`]. Strides of each in elements, sizes of
// index.
typedef struct GpuLines {
    const long long *index;
    const void *src;
    void *dst;
    GpuType type;
    int ndim, dim, node;
    long long n, limit, size[GPU_BOX_DIMS], index_stride[GPU_BOX_DIMS], small_stride[GPU_BOX_DIMS], large_stride[GPU_BOX_DIMS];
} GpuLines;
void gpu_gather(const Device *dev, const GpuLines *l);
void gpu_scatter_add(const Device *dev, const GpuLines *l);  // dst is large: f32 or i64; src may be bf16
void gpu_histogram(const Device *dev, const long long *x, long long n, long long *count, long long bins);

// ---- sort.cu --------------------------------------------------------------------------------------------------------------
typedef struct GpuKey {
    long long key, index;
} GpuKey;
typedef struct GpuSort {
    const void *src;
    void *values;
    long long *indices;
    GpuKey *scratch;               // [2][batch][n] where n > GPU_SORT_CHUNK
    GpuType type;
    int descending;
    long long lines, n, inner, take, batch;  // batch: lines that are sorted at a time
} GpuSort;
enum { GPU_SORT_CHUNK = 1024 };
void gpu_sort(const Device *dev, const GpuSort *s);

// ---- conv.cu: [batch, channels, positions] --------------------------------------------------------------------------------
enum { GPU_SPANS = 96 };
typedef struct GpuSpans {
    int n;
    long long begin[GPU_SPANS], end[GPU_SPANS];
} GpuSpans;
typedef struct GpuConv {
    const void *x, *w, *y;         // whichever are operands
    void *out;
    GpuType type;
    int node;
    long long batch, groups, in_ch, out_ch;  // channels per group
    long long taps, stride, dilation, lo;
    long long x_n, y_n, x_len, y_len;        // local and global positions
    GpuSpans x_spans;
} GpuConv;
// The spans of y lie beside it: the two lists stay within the 4 KB of kernel parameters.
void gpu_conv1d(const Device *dev, const GpuConv *c, const GpuSpans *y_spans);
void gpu_conv1d_grad_x(const Device *dev, const GpuConv *c, const GpuSpans *y_spans);
// partial: 8 * taps * channels bytes for each of gpu_conv1d_grad_w_pieces of n local positions of y, where there are several.
void gpu_conv1d_grad_w(const Device *dev, const GpuConv *c, const GpuSpans *y_spans, void *partial);
long long gpu_conv1d_grad_w_pieces(long long channels, long long n);

// ---- adamw.cu -------------------------------------------------------------------------------------------------------------
typedef struct GpuAdamw {
    float *p, *m, *v;
    const float *g, *hyper, *scale;
    void *half;                    // the parameter's copy in bf16, or NULL
    double beta1, beta2, eps, decay;
    long long n;
} GpuAdamw;
void gpu_adamw(const Device *dev, const GpuAdamw *a);
#ifdef __cplusplus
}
#endif
