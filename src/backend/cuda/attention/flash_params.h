// What a launch of our own attention is told, by value. Host and device read this file; it stands alone (in generated kernels it
// follows gpu.h). A launch is about a group of a rank's heads, mostly all of them: operands begin with the group, except vectors
// of masks. Sizes are the group's unless said otherwise.

#define FLASH_TILE 64     // queries, and keys, of a tile of the portable kernels
#define FLASH_BLOCK 128   // queries, and keys, that one verdict is about: whole tiles of every kernel
#define FLASH_THREADS 128
#define FLASH_MAX_SPAN 96
#define FLASH_MAX_VEC 16

// What is known about a block of scores. 0: no query of it sees any key of it.
#define FLASH_ALIVE 1   // some key may be seen
#define FLASH_MASKED 2  // and some may not: the program decides for each element
#define FLASH_BIASED 4  // something may be added: likewise
// What is known about a tile of queries in the backward.
#define FLASH_UNIFORM 1  // has rows that saw no key, and those attend to all keys alike (or are NaN)
#define FLASH_COARSE 2   // has rows whose log-sum-exp was rounded too coarsely: they are summed again

// Bounds of a value. `nan`: it may also be NaN.
typedef struct FlashRange {
    double lo, hi;
    long long nan;
} FlashRange;

typedef struct FlashSpan {
    long long begin, base;  // local element base + i is global element begin + i, up to the next span's base
} FlashSpan;

typedef struct FlashVec {
    const void *data;
    FlashRange *range;            // [rows][blocks of its positions], made by flash_ranges
    long long stride_b, stride_h; // elements; 0 where one serves all
    int nrow, len;                // the rank's: rows [batch entries * heads], positions of one
} FlashVec;

typedef struct FlashParams {
    const void *q, *k, *v, *o, *lse, *dout;
    void *out0, *out1, *out2;         // o, lse; backward: dq, dk, dv
    float *row_delta, *row_max, *row_unsum;  // backward, [B*H*nq]: rowsum(do * o); p = 2^((s - max) * unit) * unsum
    unsigned char *flags;             // [B*H][tiles of queries]
    int *any;                         // [B*H] some flag of that head is set
    unsigned char *verdict;           // [rows][blocks of queries][blocks of keys]
    int *bound_q, *bound_k;           // [rows][blocks][2] first and last block of keys (queries) that is alive
    long long verdict_b, verdict_h;   // row = b * verdict_b + h * verdict_h
    long long nrow_verdict;
    long long batch, heads, kv_heads, nq, nk;
    long long b0, h0, kv0;            // where the group begins in what the rank has
    long long heads_all, nq_all, nk_all, group;  // global; query heads per KV head
    const unsigned long long *step;   // run seed, step
    long long seed;
    unsigned long long drop_below;    // an element is dropped if its 24 random bits are below this
    float keep;                       // 1 / (1 - dropout)
    float scale, cap, inner;          // inner = scale / cap
    float unit;                       // p = 2^((s - max) * unit)
    float unit_lse;                   // log-sum-exp = max * unit_lse + log(sum)
    int qdim, nqspan, nkspan;         // q is sharded on qdim (-1: not); KV heads by nkspan spans (0: not)
    FlashSpan qspan[FLASH_MAX_SPAN], kspan[FLASH_MAX_SPAN];
    FlashVec vec[FLASH_MAX_VEC];
} FlashParams;
